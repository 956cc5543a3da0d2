/*
 * Parts side by side: the way back of split, and where they lie side by side already, nothing (plan.h). i[k]: rows of part k;
 * an absent part is zeros.
 */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *like = NULL;
    int64_t rows = 0;
    for (int k = 0; k < call->in_count && like == NULL; k++)
        like = call->in[k];
    if (like == NULL)
        return gd_graph_fail(graph, "join: every part is absent") != NULL;
    for (int k = 0; k < call->in_count; k++) {
        const struct gd_value *part = call->in[k];
        bool fits = part == NULL || (part->kind != GD_VALUE_WEIGHT && part->dtype == like->dtype && part->rank == like->rank &&
                                     part->shape[0] == call->params.i[k]);
        for (int i = 1; fits && part != NULL && i < part->rank; i++)
            fits = part->shape[i] == like->shape[i];
        if (!fits)
            return gd_graph_fail(graph, "join: part %d, '%s', is not %" PRId64 " rows like those of '%s'", k, part->name,
                                 call->params.i[k], like->name) != NULL;
        rows += call->params.i[k];
    }
    gd_shape_like(call->out[0], like, like->dtype);
    call->out[0]->shape[0] = rows;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *out = &args->out[0];
    int64_t width = gd_tensor_count(out) / out->shape[0];
    char *to = out->data;
    for (int k = 0; k < GD_SPLIT_MAX && args->params->i[k] > 0; k++) {
        size_t bytes = gd_dtype_bytes(out->dtype, args->params->i[k] * width);
        if (args->in[k].rank == 0)
            memset(to, 0, bytes);
        else if (args->in[k].data != to)
            memcpy(to, args->in[k].data, bytes);
        to += bytes;
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    struct gd_value *parts = gd_split(graph, out_grad[0], call->params.i, call->in_count);
    for (int k = 0; parts != NULL && k < call->in_count; k++)
        in_grad[k] = call->in[k] != NULL && call->in[k]->needs_gradient ? gd_value_output(parts, k) : NULL;
    return parts != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t at = 0, width = 0;
    for (int k = 0; k < op_case->in_count; k++)
        if (op_case->in[k].rank > 0)
            width = op_case->in[k].shape[1];
    for (int k = 0; k < op_case->in_count; k++)
        for (int64_t i = 0; i < op_case->params.i[k] * width; i++)
            out[0][at++] = op_case->in[k].rank > 0 ? in[k][i] : 0;
}

#define PART(t, width) {.dtype = GD_F32, .rank = 2, .shape = {t, width}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one part", .in_count = 1, .in = {PART(3, 5)}, .params = {.i = {3}}, .tolerance = 1e-9, .tolerance_bf16 = 1e-9},
    {.name = "parts of many sizes", .in_count = 4, .in = {PART(1, 7), PART(9, 7), PART(2, 7), PART(5, 7)},
     .params = {.i = {1, 9, 2, 5}}, .tolerance = 1e-9, .tolerance_bf16 = 1e-9},
    {.name = "absent parts", .in_count = 4, .in = {{.rank = 0}, PART(4, 6), {.rank = 0}, PART(3, 6)},
     .params = {.i = {2, 4, 5, 3}}, .tolerance = 1e-9, .tolerance_bf16 = 1e-9},
};

const struct gd_op gd_op_join = {
    .name = "join",
    .in_min = 0, .in_max = GD_SPLIT_MAX, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .joins = true,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

/* The value whose parts these are, all and in order; NULL: they are not. */
static struct gd_value *whole_of(struct gd_value *const *parts, const int64_t *rows, int count)
{
    struct gd_call *call = parts[0] != NULL ? parts[0]->producer : NULL;
    if (call == NULL || !call->op->views || call->out_count != count)
        return NULL;
    for (int k = 0; k < count; k++)
        if (parts[k] != call->out[k] || parts[k]->shape[0] != rows[k])
            return NULL;
    return call->in[0];
}

struct gd_value *gd_join(struct gd_graph *g, struct gd_value *const *parts, const int64_t *rows, int count)
{
    struct gd_op_params params = {0};
    struct gd_value *whole = whole_of(parts, rows, count);
    if (whole != NULL)
        return whole;
    for (int k = 0; k < count && k < GD_SPLIT_MAX; k++)
        params.i[k] = rows[k];
    return gd_graph_call(g, &gd_op_join, parts, count, &params);
}
