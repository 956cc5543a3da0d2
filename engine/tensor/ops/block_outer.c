/*
 * y[n][k][c] = sum_t a[t][n][k] b[t][n][c], f32 [n i[0], i[0]]; rows of a and b as n rows of i[0]. i[1]: summed over n too, [i[0], i[0]].
 * The gradient of block_rotate for its squares; itself not differentiable.
 */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *a = call->in[0], *b = call->in[1];
    int64_t size = call->params.i[0];
    if (!gd_shape_binary(graph, call))
        return false;
    if (a->rank != 2 || size < 1 || a->shape[1] % size != 0)
        return gd_graph_fail(graph, "block_outer: rows of '%s' and '%s' do not split into %lld", a->name, b->name,
                             (long long)size) != NULL;
    struct gd_value *out = call->out[0];
    out->dtype = GD_F32;
    out->shape[0] = call->params.i[1] ? size : a->shape[1];
    out->shape[1] = size;
    return true;
}

/* A row of a and one of b as f32 for each thread. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return 2 * (size_t)omp_get_max_threads() * (size_t)call->in[0]->shape[1] * sizeof(float);
}

/* Rows [begin, end) of y. */
GD_KERNEL static void add_row(float *restrict y, const float *restrict a, const float *restrict b, int64_t width, int64_t size,
                              bool shared, int64_t begin, int64_t end)
{
    for (int64_t k = begin; k < end; k++)
        for (int64_t at = k; at < (shared ? width : k + 1); at += size) {
            float factor = a[at];
            const float *other = b + at / size * size;
            for (int64_t c = 0; c < size; c++)
                y[k * size + c] += factor * other[c];
        }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *a = &args->in[0], *b = &args->in[1];
    int64_t rows = a->shape[0], width = a->shape[1], size = args->params->i[0];
    GD_PARALLEL(rows * width * size / 8)
    {
        float *row = (float *)args->scratch + 2 * (int64_t)omp_get_thread_num() * width, *sums = args->out[0].data;
        struct gd_range r = gd_thread_range(args->out[0].shape[0], 1);
        memset(sums + r.begin * size, 0, (size_t)((r.end - r.begin) * size) * sizeof(float));
        for (int64_t t = 0; t < rows && r.begin < r.end; t++) {
            gd_row_to_f32(row, gd_at(a, t * width), a->dtype, width);
            gd_row_to_f32(row + width, gd_at(b, t * width), b->dtype, width);
            add_row(sums, row, row + width, width, size, args->params->i[1], r.begin, r.end);
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], size = op_case->params.i[0];
    bool shared = op_case->params.i[1];
    memset(out[0], 0, (size_t)((shared ? size : width) * size) * sizeof(double));
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < width; i++)
            for (int64_t c = 0; c < size; c++)
                out[0][(shared ? i % size : i) * size + c] += in[0][t * width + i] * in[1][t * width + i / size * size + c];
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {X(1, 1), X(1, 1)}, .params = {.i = {1}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "odd sizes", .in_count = 2, .in = {X(9, 35), X(9, 35)}, .params = {.i = {7}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "one square for all", .in_count = 2, .in = {X(9, 35), X(9, 35)}, .params = {.i = {7, 1}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "large enough for threads", .in_count = 2, .in = {X(70, 384), X(70, 384)}, .params = {.i = {32}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
};

const struct gd_op gd_op_block_outer = {
    .name = "block_outer",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = -1,
    .groups = GD_GROUPS_OWN,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_block_outer(struct gd_graph *g, struct gd_value *a, struct gd_value *b, int64_t size, bool shared)
{
    return gd_graph_call(g, &gd_op_block_outer, (struct gd_value *[]){a, b}, 2, &(struct gd_op_params){.i = {size, shared}});
}
