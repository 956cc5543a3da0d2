/*
 * The backward pass of low_rank: dy, x, u, A, B, W or none, an addend of dx or none ->
 *     du = s dy B,  dx = c + du A + dy W,  dA = du^T x,  dB = s dy^T u
 * i[0..2]: whether dx, dA, dB are wanted (else shape [0]); f[0]: s.
 */
#include "engine/tensor/ops/low_rank.h"

struct wanted {
    bool x, a, b;
};

static struct wanted wanted(const struct gd_op_params *params)
{
    return (struct wanted){params->i[0] != 0, params->i[1] != 0, params->i[2] != 0};
}

static void shape_if(struct gd_value *out, const struct gd_value *like, bool wanted, enum gd_dtype dtype)
{
    gd_shape_like(out, like, dtype);
    if (!wanted) {
        out->rank = 1;
        out->shape[0] = 0;
    }
}

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *dy = call->in[0], *x = call->in[1], *u = call->in[2], *a = call->in[3], *b = call->in[4], *w = call->in_count > 5 ? call->in[5] : NULL;
    struct wanted want = wanted(&call->params);
    if (!gd_low_rank_check(graph, "low_rank_grad", x, w, a, b, false) || !gd_low_rank_check(graph, "low_rank_grad", dy, w, a, b, true))
        return false;
    if (dy->shape[0] != x->shape[0] || u->rank != 2 || u->dtype != x->dtype || u->shape[0] != x->shape[0] ||
        u->shape[1] != gd_gemm_depth(a->shape[0], x->dtype))
        return gd_graph_fail(graph, "low_rank_grad: '%s', '%s' and '%s' do not fit", dy->name, x->name, u->name) != NULL;
    shape_if(call->out[0], x, want.x, x->dtype);
    shape_if(call->out[1], a, want.a, GD_F32);
    shape_if(call->out[2], b, want.b, GD_F32);
    return true;
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return GD_WEIGHT_LINEAR_BACK;
}

/* ---- scratch: the factors' copies, du of each worker's stretch, each worker's sums but the first's dA, which lies in the output ---- */

static size_t du_bytes(const struct gd_low_rank *n)
{
    return gd_low_rank_bytes(n->act, n->stretch * n->depth);
}

static size_t da_bytes(const struct gd_low_rank *n)
{
    return gd_low_rank_bytes(GD_F32, n->rank * n->in);
}

static size_t db_bytes(const struct gd_low_rank *n)
{
    return gd_low_rank_bytes(GD_F32, n->rank * n->out);
}

static size_t scratch_bytes(const struct gd_call *call)
{
    struct gd_low_rank n = gd_low_rank(call->in[0]->shape[0], call->in[3]->shape, call->in[4]->shape, call->in[0]->dtype);
    return gd_low_rank_factor_bytes(&n) + (size_t)n.workers * (du_bytes(&n) + db_bytes(&n)) + (size_t)(n.workers - 1) * da_bytes(&n);
}

struct job {
    struct gd_low_rank n;
    struct gd_low_rank_factors factors;
    struct wanted want;
    const struct gd_weight *w;   /* NULL: none, or not in stretches */
    float scale;
    const struct gd_tensor *dy, *x, *u, *dx;
    char *du, *da_first, *da_others, *db; /* du: [stretch, depth]; dA: [rank, in]; dB the other way round: [rank, out] */
    bool added;                  /* dx holds a sum already */
};

static float *da_of(const struct job *job, int worker)
{
    return (float *)(void *)(worker == 0 ? job->da_first : job->da_others + (size_t)(worker - 1) * da_bytes(&job->n));
}

static float *db_of(const struct job *job, int worker)
{
    return (float *)(void *)(job->db + (size_t)worker * db_bytes(&job->n));
}

/* What reads x comes last, when dy and dx have been used up: all three do not fit into the processor's own cache at once. Products
 * over the rows of a stretch add to those of the worker's before. */
static bool stretch(void *context, int64_t row, int64_t rows, int worker, bool first, struct gd_error *err)
{
    const struct job *job = context;
    const struct gd_low_rank *n = &job->n;
    const char *dy = gd_at(job->dy, row * n->out), *x = gd_at(job->x, row * n->in), *u = gd_at(job->u, row * n->depth);
    char *dx = job->want.x ? gd_at(job->dx, row * n->in) : NULL, *du = job->du + (size_t)worker * du_bytes(n);
    struct gd_gemm down = {.m = rows, .n = n->depth, .k = n->out, .in = n->act, .out = n->act, .alpha = job->scale};
    struct gd_gemm back = {.m = rows, .n = n->in, .k = n->depth, .in = n->act, .out = n->act, .accumulate = job->added, .alpha = 1.0f};
    struct gd_gemm da = {.m = n->rank, .n = n->in, .k = rows, .transpose_a = true, .in = n->act, .out = GD_F32, .accumulate = !first,
                         .alpha = 1.0f, .lda = n->depth};
    struct gd_gemm db = {.m = n->rank, .n = n->out, .k = rows, .transpose_a = true, .in = n->act, .out = GD_F32, .accumulate = !first,
                         .alpha = job->scale, .lda = n->depth};
    return (!(job->want.x || job->want.a) || gd_gemm_run(&down, dy, job->factors.b, du, err)) &&
           (!job->want.x || gd_gemm_run(&back, du, job->factors.a, dx, err)) &&
           (!job->want.x || job->w == NULL || gd_weight_multiply(job->w, true, dy, n->act, dx, n->act, rows, true, err)) &&
           (!job->want.b || gd_gemm_run(&db, u, dy, db_of(job, worker), err)) &&
           (!job->want.a || gd_gemm_run(&da, du, x, da_of(job, worker), err));
}

/* The workers' sums, in their order, as the first's. */
static void add_up(const struct job *job)
{
    const struct gd_low_rank *n = &job->n;
    for (int worker = 1; worker < n->workers; worker++) {
        float *da = da_of(job, 0), *db = db_of(job, 0);
        const float *more_a = da_of(job, worker), *more_b = db_of(job, worker);
        for (int64_t i = 0; job->want.a && i < n->rank * n->in; i++)
            da[i] += more_a[i];
        for (int64_t i = 0; job->want.b && i < n->rank * n->out; i++)
            db[i] += more_b[i];
    }
}

static void transpose(float *out, const float *in, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < columns; i++)
        for (int64_t r = 0; r < rows; r++)
            out[i * rows + r] = in[r * columns + i];
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *dy = &args->in[0], *x = &args->in[1], *c = &args->in[6], *dx = &args->out[0];
    struct gd_low_rank n = gd_low_rank(x->shape[0], args->in[3].shape, args->in[4].shape, x->dtype);
    char *scratch = args->scratch;
    const struct gd_weight *w = args->weight[5];
    bool apart = w != NULL && gd_weight_quantised(w); /* it is unpacked once for all rows */
    struct job job = {
        .n = n, .factors = gd_low_rank_factors(&n, args->in[3].data, args->in[4].data, scratch), .want = wanted(args->params),
        .w = apart ? NULL : w, .scale = (float)args->params->f[0], .dy = dy, .x = x, .u = &args->in[2], .dx = dx,
        .du = scratch + gd_low_rank_factor_bytes(&n), .da_first = args->out[1].data, .added = c->rank != 0,
    };
    job.db = job.du + (size_t)n.workers * du_bytes(&n);
    job.da_others = job.db + (size_t)n.workers * db_bytes(&n);
    if (n.rows == 0) {
        memset(args->out[1].data, 0, gd_dtype_bytes(GD_F32, gd_tensor_count(&args->out[1])));
        memset(args->out[2].data, 0, gd_dtype_bytes(GD_F32, gd_tensor_count(&args->out[2])));
        return true;
    }
    if (job.want.x && job.added && c->data != dx->data)
        memcpy(dx->data, c->data, gd_dtype_bytes(n.act, n.rows * n.in));
    if (!gd_low_rank_each(&n, stretch, &job, err))
        return false;
    add_up(&job);
    if (job.want.b)
        transpose(args->out[2].data, db_of(&job, 0), n.rank, n.out);
    return !job.want.x || !apart || gd_weight_multiply(w, true, dy->data, n.act, dx->data, n.act, n.rows, true, err);
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    const int64_t *a = op_case->in[3].shape, *b = op_case->in[4].shape;
    int64_t rank = a[0], depth = op_case->in[2].shape[1], rows = op_case->in[0].shape[0];
    const int64_t *want = op_case->params.i;
    double scale = op_case->params.f[0];
    for (int64_t i = 0; want[1] && i < rank * a[1]; i++)
        out[1][i] = 0;
    for (int64_t i = 0; want[2] && i < b[0] * rank; i++)
        out[2][i] = 0;
    for (int64_t t = 0; t < rows; t++) {
        const double *dy = in[0] + t * b[0], *x = in[1] + t * a[1];
        for (int64_t i = 0; want[0] && i < a[1]; i++) {
            double sum = op_case->in_count > 6 && op_case->in[6].rank > 0 ? in[6][t * a[1] + i] : 0.0;
            for (int64_t o = 0; op_case->in[5].rank > 0 && o < b[0]; o++)
                sum += dy[o] * in[5][o * a[1] + i];
            out[0][t * a[1] + i] = sum;
        }
        for (int64_t r = 0; r < rank; r++) {
            double du = 0;
            for (int64_t o = 0; o < b[0]; o++) {
                du += scale * dy[o] * in[4][o * rank + r];
                if (want[2])
                    out[2][o * rank + r] += scale * dy[o] * in[2][t * depth + r];
            }
            for (int64_t i = 0; i < a[1]; i++) {
                if (want[0])
                    out[0][t * a[1] + i] += du * in[3][r * a[1] + i];
                if (want[1])
                    out[1][r * a[1] + i] += du * x[i];
            }
        }
    }
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
#define W(out, in) {.dtype = GD_F32, .rank = 2, .shape = {out, in}, .as_weight = true}
#define F(rows, columns) {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}, .fill = GD_FILL_POSITIVE}
#define NONE {.rank = 0}
#define CASE(text, t, in_, out_, r, w, c, x_, a_, b_) \
    {.name = text, .in_count = 7, .in = {X(t, out_), X(t, in_), X(t, r), F(r, in_), F(out_, r), w, c}, \
     .params = {.i = {x_, a_, b_}, .f = {0.5}}, .tolerance = 2e-5, .tolerance_bf16 = 3e-2}
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1, 1, 32, W(1, 1), NONE, 1, 1, 1),
    CASE("odd sizes", 7, 37, 53, 32, W(53, 37), NONE, 1, 1, 1),
    CASE("an addend", 9, 35, 67, 32, W(67, 35), X(9, 35), 1, 1, 1),
    CASE("several stretches", 1300, 48, 40, 32, W(40, 48), X(1300, 48), 1, 1, 1),
    CASE("no weight", 600, 24, 40, 32, NONE, NONE, 1, 1, 1),
    CASE("factors alone", 33, 24, 40, 32, NONE, NONE, 0, 1, 1),
    CASE("one factor", 33, 24, 40, 32, NONE, NONE, 0, 0, 1),
    CASE("input and the other factor", 33, 24, 40, 32, W(40, 24), NONE, 1, 1, 0),
};

const struct gd_op gd_op_low_rank_grad = {
    .name = "low_rank_grad",
    .in_min = 5, .in_max = 7, .out_count = 3,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .inplace = 6,
    .addend = 6,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
