/* y = a * b, element by element; da = dy * b, db = dy * a. */
#include "engine/tensor/ops/elementwise.h"

GD_INLINE void body(void *y, const void *a, const void *b, bool bf16, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        gd_store(y, bf16, i, gd_load(a, bf16, i) * gd_load(b, bf16, i));
}

GD_KERNEL static void part_f32(float *y, const float *a, const float *b, int64_t begin, int64_t end)
{
    body(y, a, b, false, begin, end);
}

GD_KERNEL static void part_bf16(uint16_t *y, const uint16_t *a, const uint16_t *b, int64_t begin, int64_t end)
{
    body(y, a, b, true, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = gd_tensor_count(&args->out[0]);
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 32);
        if (args->out[0].dtype == GD_BF16)
            part_bf16(args->out[0].data, args->in[0].data, args->in[1].data, r.begin, r.end);
        else
            part_f32(args->out[0].data, args->in[0].data, args->in[1].data, r.begin, r.end);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_mul(graph, out_grad[0], call->in[1]);
    if (call->in[1]->needs_gradient)
        in_grad[1] = gd_mul(graph, out_grad[0], call->in[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++)
        out[0][i] = in[0][i] * in[1][i];
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {INPUT(1, 1), INPUT(1, 1)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 2, .in = {INPUT(3, 37), INPUT(3, 37)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "large enough for threads", .in_count = 2, .in = {INPUT(65, 517), INPUT(65, 517)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
};

const struct gd_op gd_op_mul = {
    .name = "mul",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = gd_shape_binary,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_mul(struct gd_graph *g, struct gd_value *a, struct gd_value *b)
{
    return gd_graph_call(g, &gd_op_mul, (struct gd_value *[]){a, b}, 2, NULL);
}
