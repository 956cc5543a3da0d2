/*
 * y = x W^T + s (x A^T) B^T with a frozen W, or c + s (x A^T) B^T (low_rank.h). in: x, A, B, W or none, c where there is no W.
 * f[0]: s. out: y, u = x A^T (kept for the way back). Gradients: low_rank_grad.c.
 */
#include "engine/tensor/ops/low_rank.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *a = call->in[1], *b = call->in[2], *w = call->in[3], *c = call->in[4];
    struct gd_value *y = call->out[0], *u = call->out[1];
    if (!gd_low_rank_check(graph, "low_rank", x, w, a, b, false))
        return false;
    if ((w == NULL) == (c == NULL))
        return gd_graph_fail(graph, "low_rank: it adds either to a product or to a value") != NULL;
    gd_shape_like(y, x, x->dtype);
    y->shape[1] = b->shape[0];
    if (c != NULL && (c->kind == GD_VALUE_WEIGHT || c->dtype != y->dtype || !gd_value_same_shape(c, y)))
        return gd_graph_fail(graph, "low_rank: '%s' differs from the result in shape or dtype", c->name) != NULL;
    gd_shape_like(u, x, x->dtype);
    u->shape[1] = gd_gemm_depth(a->shape[0], x->dtype);
    return true;
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return GD_WEIGHT_LINEAR;
}

static struct gd_low_rank sizes(const struct gd_call *call)
{
    return gd_low_rank(call->in[0]->shape[0], call->in[1]->shape, call->in[2]->shape, call->in[0]->dtype);
}

static size_t scratch_bytes(const struct gd_call *call)
{
    struct gd_low_rank n = sizes(call);
    return gd_low_rank_factor_bytes(&n);
}

struct job {
    struct gd_low_rank n;
    struct gd_low_rank_factors factors;
    const struct gd_weight *w;   /* NULL: none, or not in stretches */
    float scale;
    const struct gd_tensor *x, *u, *y;
};

static bool stretch(void *context, int64_t row, int64_t rows, int worker, bool first, struct gd_error *err)
{
    const struct job *job = context;
    const struct gd_low_rank *n = &job->n;
    const char *x = gd_at(job->x, row * n->in);
    char *u = gd_at(job->u, row * n->depth), *y = gd_at(job->y, row * n->out);
    struct gd_gemm down = {.m = rows, .n = n->depth, .k = n->in, .transpose_b = true, .in = n->act, .out = n->act, .alpha = 1.0f};
    struct gd_gemm up = {.m = rows, .n = n->out, .k = n->depth, .transpose_b = true, .in = n->act, .out = n->act,
                         .accumulate = true, .alpha = job->scale};
    return gd_gemm_run(&down, x, job->factors.a, u, err) &&
           (job->w == NULL || gd_weight_multiply(job->w, false, x, n->act, y, n->act, rows, false, err)) &&
           gd_gemm_run(&up, u, job->factors.b, y, err);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *c = &args->in[4], *y = &args->out[0];
    const struct gd_weight *w = args->weight[3];
    bool apart = w != NULL && gd_weight_quantised(w); /* it is unpacked once for all rows */
    struct job job = {.n = gd_low_rank(x->shape[0], args->in[1].shape, args->in[2].shape, x->dtype), .w = apart ? NULL : w,
                      .scale = (float)args->params->f[0], .x = x, .u = &args->out[1], .y = y};
    job.factors = gd_low_rank_factors(&job.n, args->in[1].data, args->in[2].data, args->scratch);
    if (c->rank != 0 && c->data != y->data)
        memcpy(y->data, c->data, gd_dtype_bytes(y->dtype, gd_tensor_count(y)));
    return (!apart || gd_weight_multiply(w, false, x->data, job.n.act, y->data, job.n.act, job.n.rows, false, err)) &&
           gd_low_rank_each(&job.n, stretch, &job, err);
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_low_rank_grad;
    struct gd_value *x = call->in[0], *a = call->in[1], *b = call->in[2], *w = call->in[3], *c = call->in[4], *dy = out_grad[0];
    if (out_grad[1] != NULL)
        return gd_graph_fail(graph, "low_rank: its inner value is not differentiable") != NULL;
    struct gd_op_params params = {.i = {x->needs_gradient, a->needs_gradient, b->needs_gradient}, .f = {call->params.f[0]}};
    struct gd_value *in[] = {dy, x, call->out[1], a, b, x->needs_gradient ? w : NULL};
    struct gd_value *dx = gd_graph_call(graph, &gd_op_low_rank_grad, in, GD_COUNT(in), &params);
    for (int k = 0; k < 3; k++)
        in_grad[k] = params.i[k] != 0 ? gd_value_output(dx, k) : NULL;
    if (c != NULL && c->needs_gradient)
        in_grad[4] = dy;
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    const int64_t *a = op_case->in[1].shape, *b = op_case->in[2].shape;
    int64_t depth = gd_gemm_depth(a[0], GD_F32);
    for (int64_t t = 0; t < op_case->in[0].shape[0]; t++) {
        double *u = out[1] + t * depth;
        for (int64_t r = 0; r < a[0]; r++) {
            u[r] = 0;
            for (int64_t i = 0; i < a[1]; i++)
                u[r] += in[0][t * a[1] + i] * in[1][r * a[1] + i];
        }
        for (int64_t o = 0; o < b[0]; o++) {
            double sum = op_case->in[4].rank > 0 ? in[4][t * b[0] + o] : 0.0;
            for (int64_t i = 0; op_case->in[3].rank > 0 && i < a[1]; i++)
                sum += in[0][t * a[1] + i] * in[3][o * a[1] + i];
            for (int64_t r = 0; r < a[0]; r++)
                sum += op_case->params.f[0] * u[r] * in[2][o * b[1] + r];
            out[0][t * b[0] + o] = sum;
        }
    }
}

/* Factors are positive, so that they stay f32 beside bf16 activations. */
#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define W(out, in) {.dtype = GD_F32, .rank = 2, .shape = {out, in}, .as_weight = true}
#define F(rows, columns) {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}, .fill = GD_FILL_POSITIVE, .gradient = true}
#define CASE(text, t, in_, out_, r, bf16) \
    {.name = text, .in_count = 5, .in = {X(t, in_), F(r, in_), F(out_, r), W(out_, in_), {.rank = 0}}, .params = {.f = {0.5}}, \
     .tolerance = 1e-5, .tolerance_bf16 = bf16}
#define ADDED(text, t, in_, out_, r) \
    {.name = text, .in_count = 5, .in = {X(t, in_), F(r, in_), F(out_, r), {.rank = 0}, X(t, out_)}, .params = {.f = {2.0}}, \
     .tolerance = 1e-5, .tolerance_bf16 = 3e-2}
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1, 1, 1, 0.2),
    CASE("odd sizes", 7, 37, 53, 5, 3e-2),
    CASE("rank 16, several stretches", 1300, 48, 40, 16, 3e-2),
    ADDED("odd sizes, to a value", 9, 35, 67, 3),
    ADDED("rank 16, to a value", 600, 40, 33, 16),
};

const struct gd_op gd_op_low_rank = {
    .name = "low_rank",
    .in_min = 3, .in_max = 5, .out_count = 2,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 4,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_low_rank_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *a, struct gd_value *b,
                                    double scale, struct gd_value *c)
{
    struct gd_op_params params = {.f = {scale}};
    return gd_graph_call(g, &gd_op_low_rank, (struct gd_value *[]){x, a, b, w, c}, 5, &params);
}
