/* The backward pass of swiglu: gate, up, dy -> d_gate = dy up s (1 + g (1 - s)), d_up = dy g s, with s = sigmoid(g). */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/sigmoid.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (!gd_shape_binary(graph, call))
        return false;
    const struct gd_value *gate = call->in[0], *dy = call->in[2];
    if (dy->dtype != gate->dtype || !gd_value_same_shape(gate, dy))
        return gd_graph_fail(graph, "swiglu_grad: '%s' and '%s' differ in shape or dtype", gate->name, dy->name) != NULL;
    gd_shape_like(call->out[1], gate, gate->dtype);
    return true;
}

GD_INLINE void body(const struct gd_kernel_args *args, bool bf16, int64_t begin, int64_t end)
{
    void *d_gate = args->out[0].data, *d_up = args->out[1].data;
    const void *gate = args->in[0].data, *up = args->in[1].data, *dy = args->in[2].data;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float g = gd_load(gate, bf16, i), u = gd_load(up, bf16, i), d = gd_load(dy, bf16, i), s = gd_sigmoid(g);
        gd_store(d_gate, bf16, i, d * u * s * (1.0f + g * (1.0f - s)));
        gd_store(d_up, bf16, i, d * g * s);
    }
}

#include "engine/tensor/ops/by_element.h"

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++) {
        double g = in[0][i], s = 1 / (1 + exp(-g));
        out[0][i] = in[2][i] * in[1][i] * s * (1 + g * (1 - s));
        out[1][i] = in[2][i] * g * s;
    }
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
#define CASE(text, t, n) \
    {.name = text, .in_count = 3, .in = {INPUT(t, n), INPUT(t, n), INPUT(t, n)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3}
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1),
    CASE("odd sizes", 3, 37),
    CASE("large enough for threads", 33, 517),
};

const struct gd_op gd_op_swiglu_grad = {
    .name = "swiglu_grad",
    .in_min = 3, .in_max = 3, .out_count = 2,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
