/* y[i] = x[index[i]], a zero row where index[i] is negative. Indices beyond the rows are an error. */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *index = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || index->dtype != GD_I32 || index->rank != 1)
        return gd_graph_fail(graph, "gather_rows: '%s' is no matrix or '%s' no i32 vector", x->name, index->name) != NULL;
    call->out[0]->shape[0] = index->shape[0];
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = args->out[0].shape[0], width = args->out[0].shape[1], rows = args->in[0].shape[0];
    const int32_t *index = args->in[1].data;
    size_t row_bytes = gd_dtype_bytes(args->in[0].dtype, width);
    for (int64_t i = 0; i < count; i++)
        if (index[i] >= rows)
            return gd_fail(err, GD_INTERNAL, "gather_rows: index[%" PRId64 "] = %d of %" PRId64 " rows", i, index[i], rows);
    GD_PARALLEL(count * width)
    {
        struct gd_range r = gd_thread_range(count, 1);
        for (int64_t i = r.begin; i < r.end; i++) {
            char *to = (char *)args->out[0].data + (size_t)i * row_bytes;
            if (index[i] < 0)
                memset(to, 0, row_bytes);
            else
                memcpy(to, (const char *)args->in[0].data + (size_t)index[i] * row_bytes, row_bytes);
        }
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_gather_rows_grad;
    struct gd_op_params params = {.i = {call->in[0]->shape[0]}};
    struct gd_value *in[] = {out_grad[0], call->in[1]};
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_graph_call(graph, &gd_op_gather_rows_grad, in, GD_COUNT(in), &params);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[1].shape[0], width = op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < width; j++)
            out[0][i * width + j] = in[1][i] < 0 ? 0 : in[0][(int64_t)in[1][i] * width + j];
}

#define CASE(text, t, width, count, kind) \
    {.name = text, .in_count = 2, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, width}, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {count}, .fill = kind, .fill_limit = t}}, \
     .tolerance = 1e-6, .tolerance_bf16 = 8e-3}
static const struct gd_op_case cases[] = {
    CASE("one row", 1, 1, 1, GD_FILL_IDS),
    CASE("rows taken several times", 5, 7, 23, GD_FILL_IDS),
    CASE("absent rows", 9, 13, 12, GD_FILL_LABELS),
    CASE("large enough for threads", 150, 161, 120, GD_FILL_LABELS),
};

const struct gd_op gd_op_gather_rows = {
    .name = "gather_rows",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_gather_rows(struct gd_graph *g, struct gd_value *x, struct gd_value *index)
{
    return gd_graph_call(g, &gd_op_gather_rows, (struct gd_value *[]){x, index}, 2, NULL);
}
