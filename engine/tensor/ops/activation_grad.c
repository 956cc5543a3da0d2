/* The backward pass of activation: x, dy -> dx = dy f'(x), f being i[0] of activation.h. */
#include "engine/tensor/ops/activation_math.h"
#include "engine/tensor/ops/elementwise.h"

GD_INLINE void body(const struct gd_kernel_args *args, bool bf16, int64_t begin, int64_t end)
{
    enum gd_activation kind = (enum gd_activation)args->params->i[0];
    void *dx = args->out[0].data;
    const void *x = args->in[0].data, *dy = args->in[1].data;
    for (int64_t i = begin; i < end; i++)
        gd_store(dx, bf16, i, gd_load(dy, bf16, i) * gd_activate_slope(kind, gd_load(x, bf16, i)));
}

#include "engine/tensor/ops/by_element.h"

/* The slope by a central difference, so that the case does not repeat the formula. */
static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    enum gd_activation kind = (enum gd_activation)op_case->params.i[0];
    for (int64_t i = 0; i < count; i++) {
        double up = gd_activate_reference(kind, in[0][i] + 1e-6), down = gd_activate_reference(kind, in[0][i] - 1e-6);
        out[0][i] = in[1][i] * (up - down) / 2e-6;
    }
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
#define CASE(text, t, n, kind) \
    {.name = text, .in_count = 2, .in = {INPUT(t, n), INPUT(t, n)}, .params = {.i = {kind}}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3}
static const struct gd_op_case cases[] = {
    CASE("one element, linear", 1, 1, GD_ACTIVATION_LINEAR),
    CASE("odd sizes, relu", 3, 37, GD_ACTIVATION_RELU),
    CASE("odd sizes, gelu", 3, 37, GD_ACTIVATION_GELU),
    CASE("odd sizes, gelu_new", 3, 37, GD_ACTIVATION_GELU_NEW),
    CASE("odd sizes, tanh", 3, 37, GD_ACTIVATION_TANH),
    CASE("odd sizes, sigmoid", 3, 37, GD_ACTIVATION_SIGMOID),
    CASE("large enough for threads, silu", 33, 517, GD_ACTIVATION_SILU),
};

const struct gd_op gd_op_activation_grad = {
    .name = "activation_grad",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = gd_shape_binary,
    .run_cpu = run_cpu,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
