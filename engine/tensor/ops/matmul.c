/*
 * out = alpha op(a) op(b) + c.   i[0], i[1]: transpose a, b; i[2]: dtype of out; f[0]: alpha.
 * With P = op(a), Q = op(b):  dP = alpha dout Q^T, dQ = alpha P^T dout, dc = dout; a transposed operand gets the
 * transpose of that, which is the same product with its factors exchanged.
 */
#include "engine/tensor/gemm.h"
#include "engine/tensor/ops/elementwise.h"

struct sizes {
    int64_t m, n, k;
};

static struct sizes sizes_of(const int64_t *a, const int64_t *b, const struct gd_op_params *params)
{
    return (struct sizes){.m = a[params->i[0] ? 1 : 0], .k = a[params->i[0] ? 0 : 1], .n = b[params->i[1] ? 0 : 1]};
}

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *a = call->in[0], *b = call->in[1], *c = call->in_count > 2 ? call->in[2] : NULL;
    for (int j = 0; j < call->in_count; j++)
        if (call->in[j] != NULL && (call->in[j]->kind == GD_VALUE_WEIGHT || !gd_is_float(call->in[j]) || call->in[j]->rank != 2))
            return gd_graph_fail(graph, "matmul: '%s' is no F32 or BF16 matrix (frozen weights go through linear)",
                                 call->in[j]->name) != NULL;
    struct sizes n = sizes_of(a->shape, b->shape, &call->params);
    if (b->shape[call->params.i[1] ? 1 : 0] != n.k)
        return gd_graph_fail(graph, "matmul: '%s' and '%s' do not fit: inner sizes %lld and %lld", a->name, b->name,
                             (long long)n.k, (long long)b->shape[call->params.i[1] ? 1 : 0]) != NULL;
    if (call->params.i[2] != GD_F32 && call->params.i[2] != GD_BF16)
        return gd_graph_fail(graph, "matmul: results are F32 or BF16") != NULL;
    struct gd_value *out = call->out[0];
    out->dtype = (enum gd_dtype)call->params.i[2];
    out->rank = 2;
    out->shape[0] = n.m;
    out->shape[1] = n.n;
    if (a->group != NULL && !call->params.i[0])
        out->group = a->group;
    if (b->group != NULL && (a->group == NULL || !call->params.i[0] || call->params.i[1]))
        return gd_graph_fail(graph, "matmul: the rows of '%s' are those of one expert, and not summed over", b->name) != NULL;
    if (c != NULL && (!gd_value_same_shape(c, out) || c->group != out->group))
        return gd_graph_fail(graph, "matmul: addend '%s' is not [%lld, %lld]", c->name, (long long)n.m, (long long)n.n) != NULL;
    return true;
}

/* Products are in bf16 as soon as one operand is. */
static enum gd_dtype product_dtype(enum gd_dtype a, enum gd_dtype b)
{
    return a == GD_BF16 || b == GD_BF16 ? GD_BF16 : GD_F32;
}

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Copies of operands in the product's dtype, and an f32 result on its way to bf16 where the product is f32. */
struct scratch {
    size_t a, b, out;
};

static struct scratch scratch_parts(enum gd_dtype a, int64_t a_count, enum gd_dtype b, int64_t b_count, enum gd_dtype out,
                                    int64_t out_count)
{
    enum gd_dtype in = product_dtype(a, b);
    return (struct scratch){
        .a = a != in ? aligned(gd_dtype_bytes(in, a_count)) : 0,
        .b = b != in ? aligned(gd_dtype_bytes(in, b_count)) : 0,
        .out = in == GD_F32 && out == GD_BF16 ? aligned(gd_dtype_bytes(GD_F32, out_count)) : 0,
    };
}

static size_t scratch_bytes(const struct gd_call *call)
{
    struct scratch parts = scratch_parts(call->in[0]->dtype, gd_value_elements(call->in[0]), call->in[1]->dtype,
                                         gd_value_elements(call->in[1]), call->out[0]->dtype, gd_value_elements(call->out[0]));
    return parts.a + parts.b + parts.out;
}

/* to = from, between F32 and BF16. */
static void convert(void *to, enum gd_dtype to_dtype, const void *from, enum gd_dtype from_dtype, int64_t count)
{
    if (to == from)
        return;
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 32);
        struct gd_tensor in = {.dtype = from_dtype, .data = (void *)from}, out = {.dtype = to_dtype, .data = to};
        int64_t n = r.end - r.begin;
        if (to_dtype == from_dtype)
            memcpy(gd_at(&out, r.begin), gd_at(&in, r.begin), gd_dtype_bytes(to_dtype, n));
        else if (to_dtype == GD_F32)
            gd_row_to_f32(gd_at(&out, r.begin), gd_at(&in, r.begin), from_dtype, n);
        else
            gd_row_from_f32(gd_at(&out, r.begin), to_dtype, gd_at(&in, r.begin), n);
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *a = &args->in[0], *b = &args->in[1], *c = &args->in[2], *out = &args->out[0];
    struct sizes n = sizes_of(a->shape, b->shape, args->params);
    int64_t a_count = gd_tensor_count(a), b_count = gd_tensor_count(b), out_count = gd_tensor_count(out);
    struct scratch parts = scratch_parts(a->dtype, a_count, b->dtype, b_count, out->dtype, out_count);
    char *scratch = args->scratch;
    struct gd_gemm gemm = {
        .m = n.m, .n = n.n, .k = n.k,
        .transpose_a = args->params->i[0] != 0, .transpose_b = args->params->i[1] != 0,
        .in = product_dtype(a->dtype, b->dtype), .out = parts.out ? GD_F32 : out->dtype,
        .accumulate = c->rank != 0, .alpha = (float)args->params->f[0],
    };
    const void *a_data = parts.a ? scratch : a->data, *b_data = parts.b ? scratch + parts.a : b->data;
    void *out_data = parts.out ? scratch + parts.a + parts.b : out->data;
    if (out_count == 0)
        return true;
    if (parts.a)
        convert(scratch, gemm.in, a->data, a->dtype, a_count);
    if (parts.b)
        convert(scratch + parts.a, gemm.in, b->data, b->dtype, b_count);
    if (gemm.accumulate)
        convert(out_data, gemm.out, c->data, c->dtype, out_count);
    if (n.k == 0 && !gemm.accumulate)
        memset(out_data, 0, gd_dtype_bytes(gemm.out, out_count));
    if (n.k > 0 && !gd_gemm_run(&gemm, a_data, b_data, out_data, err))
        return false;
    convert(out->data, out->dtype, out_data, gemm.out, out_count);
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    struct gd_value *a = call->in[0], *b = call->in[1], *d = out_grad[0];
    bool ta = call->params.i[0] != 0, tb = call->params.i[1] != 0;
    double alpha = call->params.f[0];
    if (a->needs_gradient)
        in_grad[0] = ta ? gd_matmul(graph, b, tb, d, true, alpha, NULL, a->dtype)
                        : gd_matmul(graph, d, false, b, !tb, alpha, NULL, a->dtype);
    if (b->needs_gradient)
        in_grad[1] = tb ? gd_matmul(graph, d, true, a, ta, alpha, NULL, b->dtype)
                        : gd_matmul(graph, a, !ta, d, false, alpha, NULL, b->dtype);
    if (call->in_count > 2 && call->in[2] != NULL && call->in[2]->needs_gradient)
        in_grad[2] = gd_cast(graph, d, call->in[2]->dtype);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    const int64_t *a = op_case->in[0].shape, *b = op_case->in[1].shape;
    struct sizes n = sizes_of(a, b, &op_case->params);
    for (int64_t i = 0; i < n.m; i++)
        for (int64_t j = 0; j < n.n; j++) {
            double sum = 0.0;
            for (int64_t k = 0; k < n.k; k++)
                sum += in[0][op_case->params.i[0] ? k * a[1] + i : i * a[1] + k] *
                       in[1][op_case->params.i[1] ? j * b[1] + k : k * b[1] + j];
            out[0][i * n.n + j] = op_case->params.f[0] * sum + (op_case->in_count > 2 ? in[2][i * n.n + j] : 0.0);
        }
}

/* POSITIVE operands stay f32 in the bf16 run: a param beside an activation. */
#define M(rows, columns) {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}, .gradient = true}
#define P(rows, columns) {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}, .fill = GD_FILL_POSITIVE, .gradient = true}
#define N(rows, columns) {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}}
#define PARAMS(ta, tb, dtype, alpha) {.i = {ta, tb, dtype}, .f = {alpha}}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {M(1, 1), M(1, 1)}, .params = PARAMS(0, 0, GD_F32, 1.0), .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "odd sizes", .in_count = 2, .in = {M(7, 37), M(37, 5)}, .params = PARAMS(0, 0, GD_F32, -0.5), .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "a transposed", .in_count = 2, .in = {M(37, 7), M(37, 5)}, .params = PARAMS(1, 0, GD_F32, 1.0), .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "b transposed", .in_count = 2, .in = {M(7, 37), M(5, 37)}, .params = PARAMS(0, 1, GD_F32, 2.0), .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "both transposed", .in_count = 2, .in = {M(37, 7), M(5, 37)}, .params = PARAMS(1, 1, GD_F32, 1.0), .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "an addend", .in_count = 3, .in = {M(9, 16), M(16, 33), M(9, 33)}, .params = PARAMS(0, 0, GD_F32, 0.25), .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "rank 16 down, f32 param", .in_count = 2, .in = {M(130, 96), P(16, 96)}, .params = PARAMS(0, 1, GD_F32, 1.0), .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "rank 16 up, f32 param and addend", .in_count = 3, .in = {M(130, 16), P(144, 16), M(130, 144)}, .params = PARAMS(0, 1, GD_F32, 2.0), .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "gradient of a factor, inner size over rows", .in_count = 2, .in = {M(300, 16), M(300, 72)}, .params = PARAMS(1, 0, GD_F32, 1.0), .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "a bf16 result", .in_count = 3, .in = {N(33, 40), N(40, 65), N(33, 65)}, .params = PARAMS(0, 0, GD_BF16, 1.0), .tolerance = 1.6e-2, .tolerance_bf16 = 1.6e-2},
};

const struct gd_op gd_op_matmul = {
    .name = "matmul",
    .in_min = 2, .in_max = 3, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 2,
    .groups = GD_GROUPS_OWN,
    .addend = 2,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_matmul(struct gd_graph *g, struct gd_value *a, bool transpose_a, struct gd_value *b, bool transpose_b,
                           double alpha, struct gd_value *c, enum gd_dtype out_dtype)
{
    struct gd_op_params params = {.i = {transpose_a, transpose_b, out_dtype}, .f = {alpha}};
    return gd_graph_call(g, &gd_op_matmul, (struct gd_value *[]){a, b, c}, c != NULL ? 3 : 2, &params);
}
