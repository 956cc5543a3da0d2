/* y = f[0] * a; da = f[0] * dy. */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/scaling.h"

GD_INLINE void body(void *y, const void *x, bool bf16, float factor, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        gd_store(y, bf16, i, factor * gd_load(x, bf16, i));
}

GD_KERNEL static void part_f32(float *y, const float *x, float factor, int64_t begin, int64_t end)
{
    body(y, x, false, factor, begin, end);
}

GD_KERNEL static void part_bf16(uint16_t *y, const uint16_t *x, float factor, int64_t begin, int64_t end)
{
    body(y, x, true, factor, begin, end);
}

void gd_scale_kernel(const struct gd_tensor *y, const struct gd_tensor *x, float factor)
{
    int64_t count = gd_tensor_count(y);
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 32);
        if (y->dtype == GD_BF16)
            part_bf16(y->data, x->data, factor, r.begin, r.end);
        else
            part_f32(y->data, x->data, factor, r.begin, r.end);
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    gd_scale_kernel(&args->out[0], &args->in[0], (float)args->params->f[0]);
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    in_grad[0] = gd_scale(graph, out_grad[0], call->params.f[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++)
        out[0][i] = op_case->params.f[0] * in[0][i];
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element, negative factor", .in_count = 1, .in = {INPUT(1, 1)}, .params = {.f = {-2.5}}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 1, .in = {INPUT(3, 37)}, .params = {.f = {0.125}}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "large enough for threads", .in_count = 1, .in = {INPUT(65, 517)}, .params = {.f = {3.0}}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
};

const struct gd_op gd_op_scale = {
    .name = "scale",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = gd_shape_unary,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_scale(struct gd_graph *g, struct gd_value *a, double factor)
{
    if (factor == 1.0)
        return a;
    return gd_graph_call(g, &gd_op_scale, &a, 1, &(struct gd_op_params){.f = {factor}});
}
