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

GD_INLINE void body(void *d_gate, void *d_up, const void *gate, const void *up, const void *dy, bool bf16, int64_t begin,
                    int64_t end)
{
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float g = gd_load(gate, bf16, i), u = gd_load(up, bf16, i), d = gd_load(dy, bf16, i), s = gd_sigmoid(g);
        gd_store(d_gate, bf16, i, d * u * s * (1.0f + g * (1.0f - s)));
        gd_store(d_up, bf16, i, d * g * s);
    }
}

GD_KERNEL static void part_f32(float *d_gate, float *d_up, const float *gate, const float *up, const float *dy,
                               int64_t begin, int64_t end)
{
    body(d_gate, d_up, gate, up, dy, false, begin, end);
}

GD_KERNEL static void part_bf16(uint16_t *d_gate, uint16_t *d_up, const uint16_t *gate, const uint16_t *up,
                                const uint16_t *dy, int64_t begin, int64_t end)
{
    body(d_gate, d_up, gate, up, dy, true, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = gd_tensor_count(&args->out[0]);
    void *d_gate = args->out[0].data, *d_up = args->out[1].data;
    const void *gate = args->in[0].data, *up = args->in[1].data, *dy = args->in[2].data;
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 32);
        if (args->out[0].dtype == GD_BF16)
            part_bf16(d_gate, d_up, gate, up, dy, r.begin, r.end);
        else
            part_f32(d_gate, d_up, gate, up, dy, r.begin, r.end);
    }
    return true;
}

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
