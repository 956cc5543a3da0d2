/*
 * s = sum_i a[i] b[i], f32 [1]. Sums of BLOCK elements, then a sum of these, in double: the order does not depend on the
 * number of threads. da = b ds, db = a ds.
 */
#include "engine/tensor/ops/elementwise.h"

#define BLOCK 4096

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (!gd_shape_binary(graph, call))
        return false;
    *call->out[0]->shape = 1;
    call->out[0]->rank = 1;
    call->out[0]->dtype = GD_F32;
    return true;
}

static int64_t blocks_of(int64_t count)
{
    return (count + BLOCK - 1) / BLOCK;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return (size_t)blocks_of(gd_value_elements(call->in[0])) * sizeof(double);
}

GD_INLINE double body(const void *a, const void *b, bool bf16, int64_t begin, int64_t end)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; i++)
        sum += (double)gd_load(a, bf16, i) * (double)gd_load(b, bf16, i);
    return sum;
}

GD_KERNEL static double block_f32(const float *a, const float *b, int64_t begin, int64_t end)
{
    return body(a, b, false, begin, end);
}

GD_KERNEL static double block_bf16(const uint16_t *a, const uint16_t *b, int64_t begin, int64_t end)
{
    return body(a, b, true, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = gd_tensor_count(&args->in[0]), blocks = blocks_of(count);
    bool bf16 = args->in[0].dtype == GD_BF16;
    double *sums = args->scratch, total = 0;
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(blocks, 1);
        for (int64_t i = r.begin; i < r.end; i++) {
            int64_t end = (i + 1) * BLOCK < count ? (i + 1) * BLOCK : count;
            sums[i] = bf16 ? block_bf16(args->in[0].data, args->in[1].data, i * BLOCK, end)
                           : block_f32(args->in[0].data, args->in[1].data, i * BLOCK, end);
        }
    }
    for (int64_t i = 0; i < blocks; i++)
        total += sums[i];
    *(float *)args->out[0].data = (float)total;
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    for (int i = 0; i < 2; i++)
        if (call->in[i]->needs_gradient)
            in_grad[i] = gd_mul_scalar(graph, call->in[1 - i], out_grad[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    out[0][0] = 0;
    for (int64_t i = 0; i < count; i++)
        out[0][0] += in[0][i] * in[1][i];
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {INPUT(1, 1), INPUT(1, 1)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 2, .in = {INPUT(3, 37), INPUT(3, 37)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "large enough for threads", .in_count = 2, .in = {INPUT(33, 517), INPUT(33, 517)}, .tolerance = 1e-4, .tolerance_bf16 = 8e-3},
};

const struct gd_op gd_op_dot = {
    .name = "dot",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_dot(struct gd_graph *g, struct gd_value *a, struct gd_value *b)
{
    return gd_graph_call(g, &gd_op_dot, (struct gd_value *[]){a, b}, 2, NULL);
}
