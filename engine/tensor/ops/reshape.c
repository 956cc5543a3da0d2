/* y holds the elements of x in the same order as [i[0], i[1]], or as [i[0]] where i[1] is 0; dx is dy in x's shape. */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    int64_t rows = call->params.i[0], columns = call->params.i[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (rows < 1 || columns < 0 || rows * (columns > 0 ? columns : 1) != gd_value_elements(x))
        return gd_graph_fail(graph, "reshape: '%s' has not %" PRId64 " x %" PRId64 " elements", x->name, rows, columns) != NULL;
    if (x->group != NULL && (columns == 0 || rows % x->group->rows_max != 0))
        return gd_graph_fail(graph, "reshape: '%s' are the rows of one expert, and stay rows of it", x->name) != NULL;
    struct gd_value *out = call->out[0];
    out->group = x->group;
    memset(out->shape, 0, sizeof(out->shape));
    out->rank = columns > 0 ? 2 : 1;
    out->shape[0] = rows;
    out->shape[1] = columns;
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    const struct gd_value *x = call->in[0];
    if (x->rank > 2)
        return gd_graph_fail(graph, "reshape: '%s' has more than two dimensions", x->name) != NULL;
    in_grad[0] = gd_reshape(graph, out_grad[0], x->shape[0], x->rank == 2 ? x->shape[1] : 0);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    const int64_t *shape = op_case->in[0].shape;
    memcpy(out[0], in[0], (size_t)(shape[0] * (op_case->in[0].rank == 2 ? shape[1] : 1)) * sizeof(double));
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element to a vector", .in_count = 1, .in = {X(1, 1)}, .params = {.i = {1, 0}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "longer rows", .in_count = 1, .in = {X(12, 5)}, .params = {.i = {4, 15}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "a vector to rows", .in_count = 1, .in = {{.dtype = GD_F32, .rank = 1, .shape = {35}, .gradient = true}},
     .params = {.i = {7, 5}}, .tolerance = 1e-7},
};

const struct gd_op gd_op_reshape = {
    .name = "reshape",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = gd_run_copy,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_OWN,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_reshape(struct gd_graph *g, struct gd_value *x, int64_t rows, int64_t columns)
{
    return gd_graph_call(g, &gd_op_reshape, &x, 1, &(struct gd_op_params){.i = {rows, columns}});
}
