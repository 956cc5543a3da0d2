/*
 * y[t] = x[t] M_s for the rows t of segment s, M_s mixed of factors with the weights of the segment (mix.h); rows of no
 * segment give 0. The matrix exists for one segment at a time.
 */
#include "engine/tensor/ops/mix.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (!gd_mix_shape(graph, call))
        return false;
    gd_shape_like(call->out[0], call->in[0], call->in[0]->dtype);
    call->out[0]->shape[1] = gd_mix_of(&call->params, call->in[0]->shape, call->in[1]->shape).out;
    return true;
}

/* The matrix, then x as f32. */
static size_t scratch_bytes(const struct gd_call *call)
{
    struct gd_mix mix = gd_mix_of(&call->params, call->in[0]->shape, call->in[1]->shape);
    return (size_t)(mix.in * gd_mix_padded(mix.out) + call->in[0]->shape[0] * mix.in) * sizeof(float);
}

GD_KERNEL static void make_rows(float *m, int64_t stride, const struct gd_mix *mix, const float *f, const float *w, int64_t begin,
                                int64_t end)
{
    gd_mix_rows(m, stride, mix, f, w, begin, end);
}

GD_KERNEL static void multiply(void *y, bool bf16, int64_t out, const float *x, int64_t in, const float *m, int64_t m_row,
                               int64_t begin, int64_t end)
{
    gd_mix_product(y, bf16, out, x, in, in, m, m_row, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    struct gd_mix mix = gd_mix_of(args->params, x->shape, args->in[1].shape);
    const float *f = args->in[1].data, *w = args->in[2].data;
    const int32_t *cu = args->in[3].data;
    int64_t rows = x->shape[0], segments = args->in[2].shape[0], stride = gd_mix_padded(mix.out);
    float *m = args->scratch, *values = m + mix.in * stride;
    bool bf16 = y->dtype == GD_BF16;
    if (!gd_mix_check("mix_linear", cu, segments, rows, err))
        return false;
    memset(y->data, 0, gd_dtype_bytes(y->dtype, rows * mix.out));
    GD_PARALLEL(rows * mix.in * mix.out / 8)
    {
        struct gd_range all = gd_thread_range(rows * mix.in, 32);
        gd_row_to_f32(values + all.begin, gd_at(x, all.begin), x->dtype, all.end - all.begin);
        for (int64_t s = 0; s < segments; s++) {
            if (cu[s + 1] == cu[s])
                continue;
            struct gd_range r = gd_thread_range(mix.in, 1), t = gd_thread_range(cu[s + 1] - cu[s], GD_MIX_ROWS);
#pragma omp barrier
            make_rows(m, stride, &mix, f, w + s * mix.splits * mix.skills, r.begin, r.end);
#pragma omp barrier
            multiply(y->data, bf16, mix.out, values, mix.in, m, stride, cu[s] + t.begin, cu[s] + t.end);
        }
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_mix_linear_grad;
    struct gd_value *in[] = {call->in[0], call->in[1], call->in[2], call->in[3], out_grad[0]};
    struct gd_value *dx = gd_graph_call(graph, &gd_op_mix_linear_grad, in, GD_COUNT(in), &call->params);
    for (int i = 0; i < 3 && dx != NULL; i++)
        if (call->in[i]->needs_gradient)
            in_grad[i] = gd_value_output(dx, i);
    return dx != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    struct gd_mix mix = gd_mix_of(&op_case->params, op_case->in[0].shape, op_case->in[1].shape);
    int64_t rows = op_case->in[0].shape[0], segments = op_case->in[2].shape[0];
    memset(out[0], 0, (size_t)(rows * mix.out) * sizeof(double));
    for (int64_t s = 0; s < segments; s++)
        for (int64_t t = (int64_t)in[3][s]; t < (int64_t)in[3][s + 1]; t++)
            for (int64_t k = 0; k < mix.in; k++)
                for (int64_t c = 0; c < mix.out; c++) {
                    int64_t h = mix.by_output ? c / mix.columns : k / mix.rows;
                    for (int64_t j = 0; j < mix.skills; j++)
                        out[0][t * mix.out + c] += in[0][t * mix.in + k] * in[2][(s * mix.splits + h) * mix.skills + j] *
                                                   in[1][((h * mix.skills + j) * mix.rows + k % mix.rows) * mix.columns + c % mix.columns];
                }
}

/* Factors and weights stay f32 in the bf16 run: they are positive, not activations. */
#define CASE(text, t, n, m, h, s, by_output, g) \
    {.name = text, .in_count = 4, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}, \
            {.dtype = GD_F32, .rank = 2, .shape = {(by_output) ? (h) * (s) * (n) : (s) * (n), (by_output) ? (m) / (h) : (m)}, \
             .fill = GD_FILL_POSITIVE, .gradient = true}, \
            {.dtype = GD_F32, .rank = 2, .shape = {g, (h) * (s)}, .fill = GD_FILL_POSITIVE, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {(g) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = (t) - ((t) > 1)}}, \
     .params = {.i = {h, s, by_output}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-2}
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1, 1, 1, 1, 0, 1),
    CASE("odd sizes, by input", 13, 15, 7, 3, 2, 0, 3),
    CASE("odd sizes, by output", 13, 5, 21, 3, 2, 1, 3),
    CASE("one split, by output", 11, 6, 37, 1, 4, 1, 2),
    CASE("large enough for threads", 67, 96, 24, 4, 3, 0, 4),
    CASE("a wide result, by output", 11, 6, 70, 2, 3, 1, 3),
};

const struct gd_op gd_op_mix_linear = {
    .name = "mix_linear",
    .in_min = 4, .in_max = 4, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_mix_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *f, struct gd_value *w,
                               struct gd_value *cu_seqlens, int splits, int skills, bool by_output)
{
    struct gd_op_params params = {.i = {splits, skills, by_output}};
    return gd_graph_call(g, &gd_op_mix_linear, (struct gd_value *[]){x, f, w, cu_seqlens}, 4, &params);
}
