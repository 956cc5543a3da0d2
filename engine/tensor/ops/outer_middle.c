/*
 * y[i][j] = sum over t and p of a[t][i][p] b[t][j][p], f32 [l, m]; rows of a [T, l p] and b [T, m p] as matrices, l = i[0]. The
 * gradient of mix_middle for its matrix; itself not differentiable.
 */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *a = call->in[0], *b = call->in[1];
    int64_t l = call->params.i[0];
    if (!gd_is_float(a) || a->dtype != b->dtype || a->rank != 2 || b->rank != 2 || a->shape[0] != b->shape[0] || l < 1 ||
        a->shape[1] % l != 0 || a->shape[1] == 0 || b->shape[1] % (a->shape[1] / l) != 0)
        return gd_graph_fail(graph, "outer_middle: rows of '%s' and '%s' are no matrices of one width", a->name, b->name) != NULL;
    struct gd_value *out = call->out[0];
    out->dtype = GD_F32;
    out->rank = 2;
    out->shape[0] = l;
    out->shape[1] = b->shape[1] / (a->shape[1] / l);
    return true;
}

/* A row of a and one of b as f32 for each thread. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return (size_t)omp_get_max_threads() * (size_t)(call->in[0]->shape[1] + call->in[1]->shape[1]) * sizeof(float);
}

GD_KERNEL static void add_row(float *restrict y, const float *restrict a, const float *restrict b, int64_t m, int64_t size,
                              int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < m; j++) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t p = 0; p < size; p++)
                sum += a[i * size + p] * b[j * size + p];
            y[i * m + j] += sum;
        }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *a = &args->in[0], *b = &args->in[1], *y = &args->out[0];
    int64_t l = y->shape[0], m = y->shape[1], wide = a->shape[1], narrow = b->shape[1];
    GD_PARALLEL(a->shape[0] * wide * m / 8)
    {
        float *row = (float *)args->scratch + (int64_t)omp_get_thread_num() * (wide + narrow), *sums = y->data;
        struct gd_range r = gd_thread_range(l, 1);
        memset(sums + r.begin * m, 0, (size_t)((r.end - r.begin) * m) * sizeof(float));
        for (int64_t t = 0; t < a->shape[0] && r.begin < r.end; t++) {
            gd_row_to_f32(row, gd_at(a, t * wide), a->dtype, wide);
            gd_row_to_f32(row + wide, gd_at(b, t * narrow), b->dtype, narrow);
            add_row(sums, row, row + wide, m, wide / l, r.begin, r.end);
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], l = op_case->params.i[0], size = op_case->in[0].shape[1] / l;
    int64_t m = op_case->in[1].shape[1] / size;
    for (int64_t i = 0; i < l; i++)
        for (int64_t j = 0; j < m; j++) {
            double sum = 0;
            for (int64_t t = 0; t < rows; t++)
                for (int64_t p = 0; p < size; p++)
                    sum += in[0][(t * l + i) * size + p] * in[1][(t * m + j) * size + p];
            out[0][i * m + j] = sum;
        }
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {X(1, 1), X(1, 1)}, .params = {.i = {1}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "odd sizes", .in_count = 2, .in = {X(9, 21), X(9, 35)}, .params = {.i = {3}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "large enough for threads", .in_count = 2, .in = {X(70, 384), X(70, 256)}, .params = {.i = {24}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "many rows", .in_count = 2, .in = {X(300, 12), X(300, 8)}, .params = {.i = {3}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
};

const struct gd_op gd_op_outer_middle = {
    .name = "outer_middle",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = -1,
    .groups = GD_GROUPS_OWN,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_outer_middle(struct gd_graph *g, struct gd_value *a, struct gd_value *b, int64_t rows)
{
    return gd_graph_call(g, &gd_op_outer_middle, (struct gd_value *[]){a, b}, 2, &(struct gd_op_params){.i = {rows}});
}
