/*
 * What an expert made, back at its tokens: y = c, then y[t] += w[t][j] x[i] with (t, j) = divmod(order[i], k), w = 1 if there
 * is none; c = 0 if there is none. x: a group's rows [., d]; w: f32 [T, k] or none; c: [T, d] or none -> [T, d].
 * i[0]: expert, i[1]: k, i[2]: T. dx = expert_rows of dy with w, dw = expert_dot, dc = dy. Its test is experts_test.c.
 */
#include "engine/tensor/ops/experts.h"

#define ADDEND 4

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *w = call->in[3], *c = call->in_count > ADDEND ? call->in[ADDEND] : NULL;
    int64_t rows = call->params.i[2];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || x->group == NULL || rows < 1 ||
        (w != NULL && (w->dtype != GD_F32 || w->rank != 2 || w->shape[0] != rows || w->shape[1] != x->group->slots)))
        return gd_graph_fail(graph, "expert_sum: '%s' are no rows of an expert, or its weights no [%" PRId64 ", %d]", x->name, rows,
                             x->group != NULL ? x->group->slots : 0) != NULL;
    struct gd_value *out = call->out[0];
    out->shape[0] = rows;
    if (c != NULL && (c->dtype != x->dtype || c->group != NULL || !gd_value_same_shape(c, out)))
        return gd_graph_fail(graph, "expert_sum: addend '%s' has another shape or dtype", c->name) != NULL;
    return true;
}

GD_INLINE void body(void *y, const void *x, bool bf16, const int32_t *order, int64_t slots, const float *w, int64_t width,
                    int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        if (order[i] < 0)
            continue;
        int64_t to = order[i] / slots * width;
        float weight = w != NULL ? w[order[i]] : 1.0f;
        for (int64_t c = 0; c < width; c++)
            gd_store(y, bf16, to + c, gd_load(y, bf16, to + c) + weight * gd_load(x, bf16, i * width + c));
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
    const struct gd_tensor *x = &args->in[0], *c = &args->in[ADDEND], *y = &args->out[0];
    int64_t width = x->shape[1], slots = args->params->i[1], count;
    size_t bytes = gd_dtype_bytes(y->dtype, gd_tensor_count(y));
    const float *w = args->in[3].rank > 0 ? args->in[3].data : NULL;
    const int32_t *order;
    if (!gd_group_order(args, 1, y->shape[0], &order, &count, err))
        return false;
    if (c->rank == 0)
        memset(y->data, 0, bytes);
    else if (c->data != y->data)
        memcpy(y->data, c->data, bytes);
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
    extern const struct gd_op gd_op_expert_dot;
    struct gd_value *x = call->in[0], *w = call->in[3], *dy = out_grad[0];
    if (x->needs_gradient)
        in_grad[0] = gd_expert_rows(graph, dy, call->in[1], x->group->index, x->group->slots, w);
    if (w != NULL && w->needs_gradient)
        in_grad[3] = gd_graph_call(graph, &gd_op_expert_dot, (struct gd_value *[]){x, call->in[1], call->in[2], dy}, 4, &call->params);
    if (call->in_count > ADDEND && call->in[ADDEND] != NULL && call->in[ADDEND]->needs_gradient)
        in_grad[ADDEND] = dy;
    return true;
}

const struct gd_op gd_op_expert_sum = {
    .name = "expert_sum",
    .in_min = 3, .in_max = 5, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = ADDEND,
    .addend = ADDEND,
    .groups = GD_GROUPS_OWN,
};

struct gd_value *gd_expert_sum(struct gd_graph *g, struct gd_value *x, struct gd_value *weights, struct gd_value *c, int64_t rows)
{
    if (x == NULL)
        return NULL;
    if (x->group == NULL)
        return gd_graph_fail(g, "expert_sum: '%s' are no rows of an expert", x->name);
    struct gd_value *in[] = {x, x->group->offsets, x->group->order, weights, c};
    return gd_graph_call(g, &gd_op_expert_sum, in, 5, &(struct gd_op_params){.i = {x->group->index, x->group->slots, rows}});
}
