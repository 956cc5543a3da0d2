/*
 * The rows of one expert: y[i] = x[t], with (t, j) = divmod(order[i], k), times w[t][j] if w is given; zeros where order[i]
 * is -1. x: [T, d], offsets and order of expert_dispatch, w: f32 [T, k] or none -> [at most T and an eighth, d], a group's
 * rows. i[0]: expert, i[1]: k. dx is expert_sum of dy. Its test is experts_test.c.
 */
#include "engine/tensor/ops/experts.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *offsets = call->in[1], *order = call->in[2], *w = call->in[3];
    int64_t index = call->params.i[0], slots = call->params.i[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || x->group != NULL || offsets->dtype != GD_I32 || order->dtype != GD_I32 || index < 0 ||
        index + 1 >= offsets->shape[0] || slots < 1 || (w != NULL && (w->dtype != GD_F32 || w->rank != 2 || w->shape[0] != x->shape[0] || w->shape[1] != slots)))
        return gd_graph_fail(graph, "expert_rows: '%s' are no rows that were dispatched", x->name) != NULL;
    struct gd_value *out = call->out[0];
    out->shape[0] = gd_group_rows_max(x->shape[0]);
    out->group = gd_graph_group(graph, call->in[1], call->in[2], (int)index, (int)slots, out->shape[0]);
    return true;
}

GD_INLINE void body(void *y, const void *x, bool bf16, const int32_t *order, int64_t slots, const float *w, int64_t width,
                    int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        int64_t from = order[i] >= 0 ? order[i] / slots * width : 0;
        float weight = order[i] < 0 ? 0.0f : w != NULL ? w[order[i]] : 1.0f;
        if (order[i] < 0)
            memset((char *)y + (size_t)(i * width) * (bf16 ? 2 : 4), 0, (size_t)width * (bf16 ? 2 : 4));
        else
            for (int64_t c = 0; c < width; c++)
                gd_store(y, bf16, i * width + c, weight * gd_load(x, bf16, from + c));
    }
}

GD_KERNEL static void rows_f32(float *y, const float *x, const int32_t *order, int64_t slots, const float *w, int64_t width,
                               int64_t begin, int64_t end)
{
    body(y, x, false, order, slots, w, width, begin, end);
}

GD_KERNEL static void rows_bf16(uint16_t *y, const uint16_t *x, const int32_t *order, int64_t slots, const float *w,
                                int64_t width, int64_t begin, int64_t end)
{
    body(y, x, true, order, slots, w, width, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t width = x->shape[1], slots = args->params->i[1], count;
    const float *w = args->in[3].rank > 0 ? args->in[3].data : NULL;
    const int32_t *order;
    if (!gd_group_order(args, 1, x->shape[0], &order, &count, err))
        return false;
    GD_PARALLEL(count * width)
    {
        struct gd_range r = gd_thread_range(count, 1);
        if (x->dtype == GD_BF16)
            rows_bf16(y->data, x->data, order, slots, w, width, r.begin, r.end);
        else
            rows_f32(y->data, x->data, order, slots, w, width, r.begin, r.end);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[3] != NULL)
        return gd_graph_fail(graph, "expert_rows: not differentiable with weights") != NULL;
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_expert_sum(graph, out_grad[0], NULL, NULL, call->in[0]->shape[0]);
    return true;
}

const struct gd_op gd_op_expert_rows = {
    .name = "expert_rows",
    .in_min = 3, .in_max = 4, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .groups = GD_GROUPS_OWN,
};

struct gd_value *gd_expert_rows(struct gd_graph *g, struct gd_value *x, struct gd_value *offsets, int expert, int slots,
                                struct gd_value *weights)
{
    struct gd_value *in[] = {x, offsets, offsets != NULL ? gd_value_output(offsets, 1) : NULL, weights};
    return gd_graph_call(g, &gd_op_expert_rows, in, 4, &(struct gd_op_params){.i = {expert, slots}});
}
