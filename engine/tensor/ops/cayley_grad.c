/*
 * The backward pass of cayley: x f32 [n, b (b - 1) / 2], dy f32 [n b, b] -> dx. With G = dy and the symmetric rule for skew Q,
 * dx[ij] = dQ[i][j] - dQ[j][i], where for the exact map, M = (I + Q)^-1:  dQ = -2 M^T G M^T, and for the series, whose steps are
 * s_k = c_k I + Q s_(k+1):  g_0 = G, dQ = sum_k g_k s_(k+1)^T, g_(k+1) = Q^T g_k.
 */
#include "engine/tensor/ops/cayley.h"
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *dy = call->in[1];
    int64_t size = call->params.i[0], terms = call->params.i[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->dtype != GD_F32 || dy->dtype != GD_F32 || x->rank != 2 || dy->rank != 2 || size < 2 || terms < 0 || terms == 1 ||
        terms > GD_CAYLEY_TERMS_MAX || x->shape[1] != size * (size - 1) / 2 || dy->shape[0] != x->shape[0] * size ||
        dy->shape[1] != size)
        return gd_graph_fail(graph, "cayley_grad: '%s' does not fit '%s'", dy->name, x->name) != NULL;
    return true;
}

/* Squares: Q, G, dQ, two of work, and what the series kept. */
static int64_t squares_of(int64_t terms)
{
    return 5 + (terms == 0 ? 1 : gd_cayley_degree((int)terms) + 1);
}

static size_t scratch_bytes(const struct gd_call *call)
{
    int64_t size = call->params.i[0];
    return (size_t)omp_get_max_threads() * (size_t)(squares_of(call->params.i[1]) * size * size) * sizeof(double);
}

GD_KERNEL static void exact(const double *q, const double *g, int64_t n, double *dq, double *work)
{
    double *m = work, *other = work + n * n;
    gd_cayley_exact(q, n, m, other);
    gd_square_product(m, true, g, false, n, false, other);
    gd_square_product(other, false, m, true, n, false, dq);
    for (int64_t i = 0; i < n * n; i++)
        dq[i] *= -2;
}

/* g is used up. */
GD_KERNEL static void series(const double *q, double *g, int64_t n, int terms, double *dq, double *work)
{
    int64_t count = n * n;
    double *next = work, *kept = work + 2 * count;
    gd_cayley_series(q, n, terms, work + count, next, kept);
    memset(dq, 0, (size_t)count * sizeof(double));
    for (int k = 0; k < gd_cayley_degree(terms); k++) {
        gd_square_product(g, false, kept + k * count, true, n, true, dq);
        gd_square_product(q, true, g, false, n, false, next);
        memcpy(g, next, (size_t)count * sizeof(double));
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t size = args->params->i[0], terms = args->params->i[1], squares = args->in[0].shape[0], count = size * size;
    int64_t packed = args->in[0].shape[1];
    GD_PARALLEL(squares * count * size)
    {
        double *q = (double *)args->scratch + omp_get_thread_num() * squares_of(terms) * count, *g = q + count, *dq = g + count;
        struct gd_range r = gd_thread_range(squares, 1);
        for (int64_t n = r.begin; n < r.end; n++) {
            float *dx = (float *)args->out[0].data + n * packed;
            gd_cayley_unpack((const float *)args->in[0].data + n * packed, size, q);
            for (int64_t i = 0; i < count; i++)
                g[i] = (double)((const float *)args->in[1].data)[n * count + i];
            if (terms == 0)
                exact(q, g, size, dq, dq + count);
            else
                series(q, g, size, (int)terms, dq, dq + count);
            for (int64_t i = 0, k = 0; i < size; i++)
                for (int64_t j = i + 1; j < size; j++, k++)
                    dx[k] = (float)(dq[i * size + j] - dq[j * size + i]);
        }
    }
    return true;
}

/* dx by differences along each entry would be another op's reference: the series of the exact map stands for both. */
static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t size = op_case->params.i[0], terms = op_case->params.i[1], packed = op_case->in[0].shape[1], count = size * size;
    int degree = terms == 0 ? 60 : gd_cayley_degree((int)terms);
    for (int64_t n = 0; n < op_case->in[0].shape[0]; n++) {
        double q[8 * 8], left[8 * 8], mid[8 * 8], right[8 * 8], dq[8 * 8] = {0};
        float narrow[28];
        for (int64_t k = 0; k < packed; k++)
            narrow[k] = (float)in[0][n * packed + k];
        gd_cayley_unpack(narrow, size, q);
        /* d(Q^k) = sum_j Q^j dQ Q^(k-1-j), so dQ gets (Q^j)^T G (Q^(k-1-j))^T. */
        for (int k = 1; k <= degree; k++)
            for (int j = 0; j < k; j++) {
                double factor = terms == 0 ? (k % 2 ? -2 : 2) : gd_cayley_coefficient((int)terms, k);
                memcpy(left, in[1] + n * count, (size_t)count * sizeof(double));
                for (int p = 0; p < j; p++) {
                    gd_square_product(q, true, left, false, size, false, mid);
                    memcpy(left, mid, sizeof(left));
                }
                for (int p = j + 1; p < k; p++) {
                    gd_square_product(left, false, q, true, size, false, right);
                    memcpy(left, right, sizeof(left));
                }
                for (int64_t i = 0; i < count; i++)
                    dq[i] += factor * left[i];
            }
        for (int64_t i = 0, k = 0; i < size; i++)
            for (int64_t j = i + 1; j < size; j++, k++)
                out[0][n * packed + k] = dq[i * size + j] - dq[j * size + i];
    }
}

#define X(n, b) {.dtype = GD_F32, .rank = 2, .shape = {n, b * (b - 1) / 2}, .fill = GD_FILL_SMALL}
#define G(n, b) {.dtype = GD_F32, .rank = 2, .shape = {(n) * (b), b}, .fill = GD_FILL_POSITIVE}
static const struct gd_op_case cases[] = {
    {.name = "one square, five terms", .in_count = 2, .in = {X(1, 2), G(1, 2)}, .params = {.i = {2, 5}}, .tolerance = 1e-5},
    {.name = "three terms", .in_count = 2, .in = {X(3, 4), G(3, 4)}, .params = {.i = {4, 3}}, .tolerance = 1e-5},
    {.name = "exact", .in_count = 2, .in = {X(3, 5), G(3, 5)}, .params = {.i = {5, 0}}, .tolerance = 1e-5},
    {.name = "large enough for threads", .in_count = 2, .in = {X(40, 8), G(40, 8)}, .params = {.i = {8, 5}}, .tolerance = 1e-5},
};

const struct gd_op gd_op_cayley_grad = {
    .name = "cayley_grad",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_cayley_grad(struct gd_graph *g, struct gd_value *x, struct gd_value *dy, int64_t size, int terms)
{
    return gd_graph_call(g, &gd_op_cayley_grad, (struct gd_value *[]){x, dy}, 2, &(struct gd_op_params){.i = {size, terms}});
}
