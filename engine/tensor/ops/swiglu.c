/* y = silu(gate) * up, silu(g) = g / (1 + exp(-g)) (Shazeer 2020). */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/sigmoid.h"

GD_INLINE void body(const struct gd_kernel_args *args, bool bf16, int64_t begin, int64_t end)
{
    void *y = args->out[0].data;
    const void *gate = args->in[0].data, *up = args->in[1].data;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float g = gd_load(gate, bf16, i);
        gd_store(y, bf16, i, g * gd_sigmoid(g) * gd_load(up, bf16, i));
    }
}

#include "engine/tensor/ops/by_element.h"

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_swiglu_grad;
    struct gd_value *in[] = {call->in[0], call->in[1], out_grad[0]};
    struct gd_value *d_gate = gd_graph_call(graph, &gd_op_swiglu_grad, in, GD_COUNT(in), NULL);
    in_grad[0] = call->in[0]->needs_gradient ? d_gate : NULL;
    in_grad[1] = call->in[1]->needs_gradient ? gd_value_output(d_gate, 1) : NULL;
    return d_gate != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++)
        out[0][i] = in[0][i] / (1 + exp(-in[0][i])) * in[1][i];
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {INPUT(1, 1), INPUT(1, 1)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 2, .in = {INPUT(3, 37), INPUT(3, 37)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "large enough for threads", .in_count = 2, .in = {INPUT(33, 517), INPUT(33, 517)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
};

const struct gd_op gd_op_swiglu = {
    .name = "swiglu",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = gd_shape_binary,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .light = true,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_swiglu(struct gd_graph *g, struct gd_value *gate, struct gd_value *up)
{
    return gd_graph_call(g, &gd_op_swiglu, (struct gd_value *[]){gate, up}, 2, NULL);
}
