/*
 * y = c + x S^T, S [out, in] with values at rows and columns, everywhere else zero. i[0]: out. Sums in f32, in the order of
 * the values. dx = dy S, which is the same with rows and columns exchanged; dvalues is sparse_grad.
 */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

#define ADDEND 4

static bool is_list(const struct gd_value *value, const struct gd_value *values)
{
    return value->dtype == GD_I32 && gd_value_same_shape(value, values);
}

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *values = call->in[1], *c = call->in_count > ADDEND ? call->in[ADDEND] : NULL;
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || values->dtype != GD_F32 || values->rank != 1 || values->kind == GD_VALUE_WEIGHT ||
        !is_list(call->in[2], values) || !is_list(call->in[3], values) || call->params.i[0] < 1)
        return gd_graph_fail(graph, "sparse_linear: '%s' is no matrix, or '%s' and its places are no lists of one length", x->name,
                             values->name) != NULL;
    call->out[0]->shape[1] = call->params.i[0];
    if (c != NULL && (c->dtype != x->dtype || !gd_value_same_shape(c, call->out[0])))
        return gd_graph_fail(graph, "sparse_linear: addend '%s' has another shape or dtype", c->name) != NULL;
    return true;
}

/* Scratch of a thread: a row of x and one of y, in f32. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return (size_t)omp_get_max_threads() * (size_t)(call->in[0]->shape[1] + call->params.i[0]) * sizeof(float);
}

static bool check_places(const int32_t *places, int64_t count, int64_t limit, struct gd_error *err)
{
    for (int64_t i = 0; i < count; i++)
        if (places[i] < 0 || places[i] >= limit)
            return gd_fail(err, GD_INTERNAL, "sparse_linear: place %" PRId64 " is %d of %" PRId64, i, places[i], limit);
    return true;
}

GD_KERNEL static void row_product(float *y, const float *x, const float *values, const int32_t *rows, const int32_t *columns,
                                  int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[rows[i]] += values[i] * x[columns[i]];
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *c = &args->in[ADDEND], *y = &args->out[0];
    int64_t tokens = x->shape[0], in = x->shape[1], out = y->shape[1], count = args->in[1].shape[0];
    const int32_t *rows = args->in[2].data, *columns = args->in[3].data;
    if (!check_places(rows, count, out, err) || !check_places(columns, count, in, err))
        return false;
    GD_PARALLEL(tokens * (count + in + out))
    {
        float *from = (float *)args->scratch + (size_t)omp_get_thread_num() * (size_t)(in + out), *to = from + in;
        struct gd_range r = gd_thread_range(tokens, 1);
        for (int64_t t = r.begin; t < r.end; t++) {
            gd_row_to_f32(from, gd_at(x, t * in), x->dtype, in);
            if (c->rank != 0)
                gd_row_to_f32(to, gd_at(c, t * out), c->dtype, out);
            else
                memset(to, 0, (size_t)out * sizeof(float));
            row_product(to, from, args->in[1].data, rows, columns, count);
            gd_row_from_f32(gd_at(y, t * out), y->dtype, to, out);
        }
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_sparse_linear(graph, out_grad[0], call->in[1], call->in[3], call->in[2], call->in[0]->shape[1], NULL);
    if (call->in[1]->needs_gradient)
        in_grad[1] = gd_sparse_grad(graph, out_grad[0], call->in[0], call->in[2], call->in[3]);
    if (call->in_count > ADDEND && call->in[ADDEND] != NULL && call->in[ADDEND]->needs_gradient)
        in_grad[ADDEND] = out_grad[0];
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t tokens = op_case->in[0].shape[0], width = op_case->in[0].shape[1], height = op_case->params.i[0];
    for (int64_t i = 0; i < tokens * height; i++)
        out[0][i] = op_case->in_count > ADDEND ? in[ADDEND][i] : 0;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < op_case->in[1].shape[0]; i++)
            out[0][t * height + (int64_t)in[2][i]] += in[1][i] * in[0][t * width + (int64_t)in[3][i]];
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define VALUES(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .gradient = true}
#define PLACES(n, limit) {.dtype = GD_I32, .rank = 1, .shape = {n}, .fill = GD_FILL_IDS, .fill_limit = limit}
#define CASE(text, t, out, width, n) \
    {.name = text, .in_count = 4, .in = {X(t, width), VALUES(n), PLACES(n, out), PLACES(n, width)}, .params = {.i = {out}}, \
     .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2}
static const struct gd_op_case cases[] = {
    CASE("one number", 1, 1, 1, 1),
    CASE("places taken several times", 5, 3, 4, 21),
    CASE("large enough for threads", 65, 96, 130, 700),
    CASE("many outputs", 3, 1100, 30, 90),
    {.name = "an addend", .in_count = 5, .in = {X(7, 19), VALUES(40), PLACES(40, 23), PLACES(40, 19), X(7, 23)},
     .params = {.i = {23}}, .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
};

const struct gd_op gd_op_sparse_linear = {
    .name = "sparse_linear",
    .in_min = 4, .in_max = 5, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = ADDEND,
    .groups = GD_GROUPS_KEPT,
    .addend = ADDEND,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_sparse_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *values, struct gd_value *rows,
                                  struct gd_value *columns, int64_t out, struct gd_value *c)
{
    struct gd_op_params params = {.i = {out}};
    return gd_graph_call(g, &gd_op_sparse_linear, (struct gd_value *[]){x, values, rows, columns, c}, c != NULL ? 5 : 4, &params);
}
