/* dvalues[i] = sum_t dy[t][rows[i]] x[t][columns[i]]: the gradient of sparse_linear at its places only. f32, t upwards. */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *dy = call->in[0], *x = call->in[1], *rows = call->in[2], *columns = call->in[3];
    if (!gd_shape_unary(graph, call))
        return false;
    if (dy->rank != 2 || x->rank != 2 || x->dtype != dy->dtype || x->shape[0] != dy->shape[0] || rows->dtype != GD_I32 ||
        rows->rank != 1 || columns->dtype != GD_I32 || !gd_value_same_shape(rows, columns))
        return gd_graph_fail(graph, "sparse_grad: '%s' and '%s' are no rows of one dtype, or the places no lists of one length",
                             dy->name, x->name) != NULL;
    gd_shape_like(call->out[0], rows, GD_F32);
    return true;
}

/* Scratch: for each thread a row of dy and one of x in f32. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return (size_t)omp_get_max_threads() * (size_t)(call->in[0]->shape[1] + call->in[1]->shape[1]) * sizeof(float);
}

GD_KERNEL static void add_row(float *out, const float *dy, const float *x, const int32_t *rows, const int32_t *columns,
                              int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        out[i] += dy[rows[i]] * x[columns[i]];
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *dy = &args->in[0], *x = &args->in[1];
    int64_t tokens = dy->shape[0], height = dy->shape[1], width = x->shape[1], count = args->out[0].shape[0];
    const int32_t *rows = args->in[2].data, *columns = args->in[3].data;
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= height || columns[i] < 0 || columns[i] >= width)
            return gd_fail(err, GD_INTERNAL, "sparse_grad: place %" PRId64 " (%d, %d) lies outside", i, rows[i], columns[i]);
    memset(args->out[0].data, 0, (size_t)count * sizeof(float));
    GD_PARALLEL(tokens * (count + width + height))
    {
        float *dy_row = (float *)args->scratch + (size_t)omp_get_thread_num() * (size_t)(height + width), *x_row = dy_row + height;
        struct gd_range r = gd_thread_range(count, 16);
        for (int64_t t = 0; t < tokens && r.begin < r.end; t++) {
            gd_row_to_f32(dy_row, gd_at(dy, t * height), dy->dtype, height);
            gd_row_to_f32(x_row, gd_at(x, t * width), x->dtype, width);
            add_row(args->out[0].data, dy_row, x_row, rows, columns, r.begin, r.end);
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t tokens = op_case->in[0].shape[0], height = op_case->in[0].shape[1], width = op_case->in[1].shape[1];
    for (int64_t i = 0; i < op_case->in[2].shape[0]; i++) {
        out[0][i] = 0;
        for (int64_t t = 0; t < tokens; t++)
            out[0][i] += in[0][t * height + (int64_t)in[2][i]] * in[1][t * width + (int64_t)in[3][i]];
    }
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
#define PLACES(n, limit) {.dtype = GD_I32, .rank = 1, .shape = {n}, .fill = GD_FILL_IDS, .fill_limit = limit}
#define CASE(text, t, height, width, n) \
    {.name = text, .in_count = 4, .in = {X(t, height), X(t, width), PLACES(n, height), PLACES(n, width)}, \
     .tolerance = 1e-5, .tolerance_bf16 = 1e-5}
static const struct gd_op_case cases[] = {
    CASE("one number", 1, 1, 1, 1),
    CASE("places taken several times", 5, 3, 4, 21),
    CASE("large enough for threads", 65, 96, 130, 700),
};

const struct gd_op gd_op_sparse_grad = {
    .name = "sparse_grad",
    .in_min = 4, .in_max = 4, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = -1,
    .groups = GD_GROUPS_OWN,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_sparse_grad(struct gd_graph *g, struct gd_value *dy, struct gd_value *x, struct gd_value *rows,
                                struct gd_value *columns)
{
    return gd_graph_call(g, &gd_op_sparse_grad, (struct gd_value *[]){dy, x, rows, columns}, 4, NULL);
}
