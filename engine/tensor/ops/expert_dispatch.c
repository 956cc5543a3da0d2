/*
 * Rows by expert (experts.h): choice i32 [T, k], the rows in use -> offsets i32 [E + 1], order i32 [at most T k and an
 * eighth]; entries from offsets[E] on are -1. i[0]: E. Stable, so that the rows of an expert keep the batch's order. A choice beyond
 * the experts is an error. Not differentiable.
 */
#include "engine/tensor/ops/experts.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *choice = call->in[0], *used = call->in[1];
    int64_t experts = call->params.i[0];
    if (choice->dtype != GD_I32 || choice->rank != 2 || choice->shape[1] < 1 || choice->shape[1] > experts ||
        !gd_used_rows_shape(used) || gd_value_elements(choice) > INT32_MAX / 2)
        return gd_graph_fail(graph, "expert_dispatch: '%s' is no choice of %" PRId64 " experts, or '%s' no segments", choice->name,
                             experts, used->name) != NULL;
    struct gd_value *offsets = call->out[0], *order = call->out[1];
    offsets->dtype = order->dtype = GD_I32;
    offsets->rank = order->rank = 1;
    offsets->shape[0] = experts + 1;
    order->shape[0] = gd_group_rows_max(gd_value_elements(choice));
    return true;
}

/* How many rows each expert gets, in offsets[e + 1]. */
static bool count_rows(const struct gd_tensor *choice, int64_t used, int32_t *offsets, int64_t experts, struct gd_error *err)
{
    const int32_t *of = choice->data;
    memset(offsets, 0, (size_t)(experts + 1) * sizeof(*offsets));
    for (int64_t i = 0; i < used * choice->shape[1]; i++) {
        if (of[i] < 0 || of[i] >= experts)
            return gd_fail(err, GD_INTERNAL, "expert_dispatch: row %" PRId64 " chose expert %d of %" PRId64, i / choice->shape[1],
                           of[i], experts);
        offsets[of[i] + 1]++;
    }
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *choice = &args->in[0];
    int64_t experts = args->params->i[0], slots = choice->shape[1], used, most = args->out[1].shape[0];
    int32_t *offsets = args->out[0].data, *order = args->out[1].data;
    if (!gd_used_rows(&args->in[1], choice->shape[0], &used, err) || !count_rows(choice, used, offsets, experts, err))
        return false;
    for (int64_t e = 0; e < experts; e++)
        offsets[e + 1] = offsets[e] + (int32_t)gd_padded_rows(offsets[e + 1]);
    for (int64_t i = 0; i < most; i++)
        order[i] = -1;
    for (int64_t i = 0; i < used * slots; i++)
        order[offsets[((const int32_t *)choice->data)[i]]++] = (int32_t)i;
    for (int64_t e = experts; e > 0; e--) /* each now ends where its rows do, without padding */
        offsets[e] = offsets[e - 1];
    offsets[0] = 0;
    for (int64_t e = 0; e < experts; e++) {
        int64_t rows = offsets[e + 1] - offsets[e];
        offsets[e + 1] = offsets[e] + (int32_t)gd_padded_rows(rows);
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t experts = op_case->params.i[0], slots = op_case->in[0].shape[1], at = 0;
    int64_t used = (int64_t)in[1][op_case->in[1].shape[0] - 1];
    for (int64_t i = 0; i < gd_group_rows_max(op_case->in[0].shape[0] * slots); i++)
        out[1][i] = -1;
    for (int64_t e = 0; e < experts; e++) {
        int64_t begin = at;
        out[0][e] = (double)begin;
        for (int64_t i = 0; i < used * slots; i++)
            if (in[0][i] == (double)e)
                out[1][at++] = (double)i;
        at = begin + gd_padded_rows(at - begin);
    }
    out[0][experts] = (double)at;
}

#define CASE(text, t, k, experts, used) \
    {.name = text, .in_count = 2, \
     .in = {{.dtype = GD_I32, .rank = 2, .shape = {t, k}, .fill = GD_FILL_IDS, .fill_limit = experts}, \
            {.dtype = GD_I32, .rank = 1, .shape = {4}, .fill = GD_FILL_OFFSETS, .fill_limit = used}}, \
     .params = {.i = {experts}}, .tolerance = 1e-6}
static const struct gd_op_case cases[] = {
    CASE("one row", 1, 1, 1, 1),
    CASE("two of four", 37, 2, 4, 37),
    CASE("padding rows", 64, 2, 8, 41),
    CASE("experts without rows", 3, 1, 40, 3),
    CASE("many rows", 500, 2, 3, 497),
};

const struct gd_op gd_op_expert_dispatch = {
    .name = "expert_dispatch",
    .in_min = 2, .in_max = 2, .out_count = 2,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_expert_dispatch(struct gd_graph *g, struct gd_value *choice, struct gd_value *used, int experts)
{
    return gd_graph_call(g, &gd_op_expert_dispatch, (struct gd_value *[]){choice, used}, 2,
                         &(struct gd_op_params){.i = {experts}});
}
