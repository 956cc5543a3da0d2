/*
 * y: f32 [n b, b], n squares made from the rows of x f32 [n, b (b - 1) / 2] (cayley.h); i[0]: b, i[1]: terms of the series, 0 for the
 * exact map. The gradient is cayley_grad.
 */
#include "engine/tensor/cayley.h"
#include "engine/tensor/ops/cayley.h"
#include "engine/tensor/ops/elementwise.h"

GD_KERNEL static void make(const float *packed, int64_t size, int terms, float *rotation, double *scratch)
{
    int64_t count = size * size;
    double *q = scratch, *r = scratch + count, *work = scratch + 2 * count;
    gd_cayley_unpack(packed, size, q);
    if (terms == 0)
        gd_cayley_exact(q, size, r, work);
    else
        gd_cayley_series(q, size, terms, r, work, NULL);
    for (int64_t i = 0; i < count; i++)
        rotation[i] = (float)(terms == 0 ? 2 * r[i] - (double)(i % (size + 1) == 0) : r[i]);
}

void gd_cayley(const float *packed, int64_t size, int terms, float *rotation, double *scratch)
{
    make(packed, size, terms, rotation, scratch);
}

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    int64_t size = call->params.i[0], terms = call->params.i[1];
    if (x->dtype != GD_F32 || x->rank != 2 || x->kind == GD_VALUE_WEIGHT || size < 2 || terms < 0 || terms == 1 ||
        terms > GD_CAYLEY_TERMS_MAX || x->shape[1] != size * (size - 1) / 2)
        return gd_graph_fail(graph, "cayley: '%s' holds no triangles of %lld rows, or %lld is no number of terms", x->name,
                             (long long)size, (long long)terms) != NULL;
    struct gd_value *out = call->out[0];
    gd_shape_like(out, x, GD_F32);
    out->shape[0] = x->shape[0] * size;
    out->shape[1] = size;
    return true;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return (size_t)omp_get_max_threads() * gd_cayley_scratch(call->params.i[0]) * sizeof(double);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t size = args->params->i[0], count = args->in[0].shape[0], packed = args->in[0].shape[1];
    GD_PARALLEL(count * size * size * size)
    {
        double *scratch = (double *)args->scratch + (size_t)omp_get_thread_num() * gd_cayley_scratch(size);
        struct gd_range r = gd_thread_range(count, 1);
        for (int64_t n = r.begin; n < r.end; n++)
            gd_cayley((const float *)args->in[0].data + n * packed, size, (int)args->params->i[1],
                      (float *)args->out[0].data + n * size * size, scratch);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    in_grad[0] = gd_cayley_grad(graph, call->in[0], out_grad[0], call->params.i[0], (int)call->params.i[1]);
    return true;
}

/* Sums of powers; the exact map is I - 2 Q + 2 Q^2 - ... for small Q. */
static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t size = op_case->params.i[0], terms = op_case->params.i[1], packed = op_case->in[0].shape[1];
    for (int64_t n = 0; n < op_case->in[0].shape[0]; n++) {
        double q[16 * 16] = {0}, power[16 * 16] = {0}, next[16 * 16], *y = out[0] + n * size * size;
        for (int64_t i = 0, k = 0; i < size; i++)
            for (int64_t j = i + 1; j < size; j++, k++) {
                q[i * size + j] = in[0][n * packed + k];
                q[j * size + i] = -q[i * size + j];
            }
        int64_t last = terms == 0 ? 200 : terms == 2 ? 1 : terms == 3 ? 3 : terms - 1;
        for (int64_t i = 0; i < size * size; i++)
            y[i] = power[i] = i % (size + 1) == 0;
        for (int64_t k = 1; k <= last; k++) {
            for (int64_t i = 0; i < size; i++)
                for (int64_t j = 0; j < size; j++) {
                    next[i * size + j] = 0;
                    for (int64_t p = 0; p < size; p++)
                        next[i * size + j] += power[i * size + p] * q[p * size + j];
                }
            memcpy(power, next, sizeof(power));
            double factor = terms == 0 ? (k % 2 ? -2 : 2) : k == last && terms > 2 ? 1 : 2;
            for (int64_t i = 0; i < size * size; i++)
                y[i] += factor * power[i];
        }
    }
}

/* Small entries, so that the exact map's series ends. */
#define X(n, b) {.dtype = GD_F32, .rank = 2, .shape = {n, b * (b - 1) / 2}, .fill = GD_FILL_SMALL, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one square, five terms", .in_count = 1, .in = {X(1, 2)}, .params = {.i = {2, 5}}, .tolerance = 1e-5},
    {.name = "two terms", .in_count = 1, .in = {X(3, 4)}, .params = {.i = {4, 2}}, .tolerance = 1e-5},
    {.name = "three terms", .in_count = 1, .in = {X(3, 4)}, .params = {.i = {4, 3}}, .tolerance = 1e-5},
    {.name = "seven terms", .in_count = 1, .in = {X(2, 7)}, .params = {.i = {7, 7}}, .tolerance = 1e-5},
    {.name = "exact", .in_count = 1, .in = {X(3, 5)}, .params = {.i = {5, 0}}, .tolerance = 1e-5},
    {.name = "large enough for threads", .in_count = 1, .in = {X(9, 16)}, .params = {.i = {16, 5}}, .tolerance = 1e-5},
};

const struct gd_op gd_op_cayley = {
    .name = "cayley",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_cayley_rotation(struct gd_graph *g, struct gd_value *x, int64_t size, int terms)
{
    return gd_graph_call(g, &gd_op_cayley, &x, 1, &(struct gd_op_params){.i = {size, terms}});
}
