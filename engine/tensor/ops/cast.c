/* y = x in dtype i[0] (F32 or BF16, round to nearest even); dx = dy in x's dtype. */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    enum gd_dtype dtype = (enum gd_dtype)call->params.i[0];
    if (dtype != GD_F32 && dtype != GD_BF16)
        return gd_graph_fail(graph, "cast: to %s; only F32 and BF16 are possible",
                             dtype < GD_DTYPE_COUNT ? gd_dtype_name(dtype) : "an unknown dtype") != NULL;
    if (!gd_shape_unary(graph, call))
        return false;
    call->out[0]->dtype = dtype;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t count = gd_tensor_count(x);
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 32);
        if (x->dtype == GD_F32)
            gd_row_from_f32(gd_at(y, r.begin), y->dtype, gd_at(x, r.begin), r.end - r.begin);
        else if (y->dtype == GD_F32)
            gd_row_to_f32(gd_at(y, r.begin), gd_at(x, r.begin), x->dtype, r.end - r.begin);
        else
            memcpy(gd_at(y, r.begin), gd_at(x, r.begin), (size_t)(r.end - r.begin) * sizeof(uint16_t));
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    in_grad[0] = gd_cast(graph, out_grad[0], call->in[0]->dtype);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    memcpy(out[0], in[0], (size_t)count * sizeof(double));
}

#define INPUT(t, n, grad) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = grad}
static const struct gd_op_case cases[] = {
    {.name = "one element to bf16", .in_count = 1, .in = {INPUT(1, 1, false)}, .params = {.i = {GD_BF16}}, .tolerance = 4e-3, .tolerance_bf16 = 4e-3},
    {.name = "odd sizes to bf16", .in_count = 1, .in = {INPUT(3, 37, false)}, .params = {.i = {GD_BF16}}, .tolerance = 4e-3, .tolerance_bf16 = 4e-3},
    {.name = "odd sizes to f32", .in_count = 1, .in = {INPUT(3, 37, true)}, .params = {.i = {GD_F32}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "large enough for threads", .in_count = 1, .in = {INPUT(65, 517, false)}, .params = {.i = {GD_BF16}}, .tolerance = 4e-3, .tolerance_bf16 = 4e-3},
};

const struct gd_op gd_op_cast = {
    .name = "cast",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_cast(struct gd_graph *g, struct gd_value *x, enum gd_dtype dtype)
{
    if (x != NULL && x->dtype == dtype)
        return x;
    return gd_graph_call(g, &gd_op_cast, &x, 1, &(struct gd_op_params){.i = {dtype}});
}
