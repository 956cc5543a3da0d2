/* y = f(x) by element, f being i[0] of activation.h. */
#include "engine/tensor/ops/activation_math.h"
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (call->params.i[0] < 0 || call->params.i[0] >= GD_ACTIVATION_COUNT)
        return gd_graph_fail(graph, "activation: there is no function %lld", (long long)call->params.i[0]) != NULL;
    return gd_shape_unary(graph, call);
}

GD_INLINE void body(const struct gd_kernel_args *args, bool bf16, int64_t begin, int64_t end)
{
    enum gd_activation kind = (enum gd_activation)args->params->i[0];
    void *y = args->out[0].data;
    const void *x = args->in[0].data;
    for (int64_t i = begin; i < end; i++)
        gd_store(y, bf16, i, gd_activate(kind, gd_load(x, bf16, i)));
}

#include "engine/tensor/ops/by_element.h"

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_activation_grad;
    in_grad[0] = gd_graph_call(graph, &gd_op_activation_grad, (struct gd_value *[]){call->in[0], out_grad[0]}, 2, &call->params);
    return in_grad[0] != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++)
        out[0][i] = gd_activate_reference((enum gd_activation)op_case->params.i[0], in[0][i]);
}

#define CASE(text, t, n, kind) \
    {.name = text, .in_count = 1, .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}}, \
     .params = {.i = {kind}}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3}
static const struct gd_op_case cases[] = {
    CASE("one element, linear", 1, 1, GD_ACTIVATION_LINEAR),
    CASE("odd sizes, relu", 3, 37, GD_ACTIVATION_RELU),
    CASE("odd sizes, gelu", 3, 37, GD_ACTIVATION_GELU),
    CASE("odd sizes, gelu_new", 3, 37, GD_ACTIVATION_GELU_NEW),
    CASE("odd sizes, tanh", 3, 37, GD_ACTIVATION_TANH),
    CASE("odd sizes, sigmoid", 3, 37, GD_ACTIVATION_SIGMOID),
    CASE("large enough for threads, silu", 33, 517, GD_ACTIVATION_SILU),
};

const struct gd_op gd_op_activation = {
    .name = "activation",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_activation(struct gd_graph *g, struct gd_value *x, enum gd_activation kind)
{
    return gd_graph_call(g, &gd_op_activation, &x, 1, &(struct gd_op_params){.i = {kind}});
}
