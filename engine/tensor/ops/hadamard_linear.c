/*
 * y = x D^T, D = f[0] (a1 b1) * (a2 b2) by element; a1, a2: f32 [out, r], b1, b2: f32 [r, in]. D exists only while it is
 * used, here and in the backward pass, which is built from products: with G = f[0] dy^T x,
 *     dx = dy D,   da1 = (G * (a2 b2)) b1^T,   db1 = a1^T (G * (a2 b2)),   and the same with 1 and 2 exchanged.
 */
#include "engine/tensor/gemm.h"
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *a1 = call->in[1], *b1 = call->in[2];
    if (!gd_shape_unary(graph, call))
        return false;
    for (int j = 1; j < 5; j++) {
        const struct gd_value *like = j % 2 ? a1 : b1, *f = call->in[j];
        if (f->rank != 2 || f->dtype != GD_F32 || f->kind == GD_VALUE_WEIGHT || !gd_value_same_shape(f, like))
            return gd_graph_fail(graph, "hadamard_linear: '%s' is no f32 factor as '%s' is", f->name, like->name) != NULL;
    }
    if (x->rank != 2 || b1->shape[1] != x->shape[1] || a1->shape[1] != b1->shape[0])
        return gd_graph_fail(graph, "hadamard_linear: '%s' and '%s' make no matrix for '%s'", a1->name, b1->name, x->name) != NULL;
    call->out[0]->shape[1] = a1->shape[0];
    return true;
}

/* Both products, and D in the dtype of x. */
static size_t scratch_bytes(const struct gd_call *call)
{
    size_t count = (size_t)call->in[1]->shape[0] * (size_t)call->in[2]->shape[1];
    return 2 * ((count * sizeof(float) + 63) / 64 * 64) + (call->in[0]->dtype == GD_BF16 ? count * 2 : 0);
}

GD_KERNEL static void multiply(float *restrict d, const float *restrict other, float factor, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        d[i] *= factor * other[i];
}

static bool product(const struct gd_tensor *a, const struct gd_tensor *b, float *out, struct gd_error *err)
{
    struct gd_gemm gemm = {.m = a->shape[0], .n = b->shape[1], .k = a->shape[1], .alpha = 1.0f};
    return gd_gemm_run(&gemm, a->data, b->data, out, err);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *in = args->in;
    int64_t count = in[1].shape[0] * in[2].shape[1];
    size_t part = ((size_t)count * sizeof(float) + 63) / 64 * 64;
    float *d = args->scratch, *other = (float *)((char *)args->scratch + part);
    if (!product(&in[1], &in[2], d, err) || !product(&in[3], &in[4], other, err))
        return false;
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 32);
        multiply(d, other, (float)args->params->f[0], r.begin, r.end);
    }
    void *matrix = d;
    if (in[0].dtype == GD_BF16) {
        matrix = (char *)args->scratch + 2 * part;
        gd_convert_from_f32(matrix, GD_BF16, d, count);
    }
    struct gd_gemm gemm = {.m = in[0].shape[0], .n = in[1].shape[0], .k = in[0].shape[1], .transpose_b = true,
                           .in = in[0].dtype, .out = in[0].dtype, .alpha = 1.0f};
    return gd_gemm_run(&gemm, in[0].data, matrix, args->out[0].data, err);
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    struct gd_value *const *in = call->in, *dy = out_grad[0];
    struct gd_value *products[2], *g = NULL;
    double scale = call->params.f[0];
    for (int k = 0; k < 2; k++)
        products[k] = gd_matmul(graph, in[1 + 2 * k], false, in[2 + 2 * k], false, 1.0, NULL, GD_F32);
    if (in[0]->needs_gradient)
        in_grad[0] = gd_matmul(graph, dy, false, gd_mul(graph, products[0], products[1]), false, scale, NULL, in[0]->dtype);
    for (int k = 0; k < 2; k++) {
        struct gd_value *a = in[1 + 2 * k], *b = in[2 + 2 * k];
        if (!a->needs_gradient && !b->needs_gradient)
            continue;
        g = g != NULL ? g : gd_matmul(graph, dy, true, in[0], false, scale, NULL, GD_F32);
        struct gd_value *part = gd_mul(graph, g, products[1 - k]);
        if (a->needs_gradient)
            in_grad[1 + 2 * k] = gd_matmul(graph, part, false, b, true, 1.0, NULL, GD_F32);
        if (b->needs_gradient)
            in_grad[2 + 2 * k] = gd_matmul(graph, a, true, part, false, 1.0, NULL, GD_F32);
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], height = op_case->in[1].shape[0],
            rank = op_case->in[1].shape[1];
    memset(out[0], 0, (size_t)(rows * height) * sizeof(double));
    for (int64_t o = 0; o < height; o++)
        for (int64_t i = 0; i < width; i++) {
            double first = 0, second = 0;
            for (int64_t r = 0; r < rank; r++) {
                first += in[1][o * rank + r] * in[2][r * width + i];
                second += in[3][o * rank + r] * in[4][r * width + i];
            }
            for (int64_t t = 0; t < rows; t++)
                out[0][t * height + o] += op_case->params.f[0] * first * second * in[0][t * width + i];
        }
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define F(rows, columns) {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}, .fill = GD_FILL_POSITIVE, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 5, .in = {X(1, 1), F(1, 1), F(1, 1), F(1, 1), F(1, 1)}, .params = {.f = {0.5}},
     .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "odd sizes", .in_count = 5, .in = {X(7, 37), F(19, 3), F(3, 37), F(19, 3), F(3, 37)}, .params = {.f = {-2.0}},
     .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "large enough for threads", .in_count = 5, .in = {X(40, 160), F(130, 8), F(8, 160), F(130, 8), F(8, 160)},
     .params = {.f = {0.25}}, .tolerance = 1e-5},
};

const struct gd_op gd_op_hadamard_linear = {
    .name = "hadamard_linear",
    .in_min = 5, .in_max = 5, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_hadamard_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *a1, struct gd_value *b1,
                                    struct gd_value *a2, struct gd_value *b2, double scale)
{
    return gd_graph_call(g, &gd_op_hadamard_linear, (struct gd_value *[]){x, a1, b1, a2, b2}, 5,
                         &(struct gd_op_params){.f = {scale}});
}
