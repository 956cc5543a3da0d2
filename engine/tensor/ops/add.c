/* y = a + b */
#include "engine/tensor/ops/elementwise.h"

GD_INLINE void body(const struct gd_kernel_args *args, bool bf16, int64_t begin, int64_t end)
{
    void *y = args->out[0].data;
    const void *a = args->in[0].data, *b = args->in[1].data;
    for (int64_t i = begin; i < end; i++)
        gd_store(y, bf16, i, gd_load(a, bf16, i) + gd_load(b, bf16, i));
}

#include "engine/tensor/ops/by_element.h"

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    in_grad[0] = call->in[0]->needs_gradient ? out_grad[0] : NULL;
    in_grad[1] = call->in[1]->needs_gradient ? out_grad[0] : NULL;
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++)
        out[0][i] = in[0][i] + in[1][i];
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {INPUT(1, 1), INPUT(1, 1)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 2, .in = {INPUT(3, 37), INPUT(3, 37)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "large enough for threads", .in_count = 2, .in = {INPUT(65, 517), INPUT(65, 517)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
};

const struct gd_op gd_op_add = {
    .name = "add",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = gd_shape_binary,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_add(struct gd_graph *g, struct gd_value *a, struct gd_value *b)
{
    return gd_graph_call(g, &gd_op_add, (struct gd_value *[]){a, b}, 2, NULL);
}
