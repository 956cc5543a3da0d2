/*
 * The backward of expert_sum for its weights: y = c, then y[t][j] = <x[i], dy[t]> with (t, j) = divmod(order[i], k); c = 0 if
 * there is none. x: a group's rows [., d], dy: [T, d] -> f32 [T, k]. i[0]: expert, i[1]: k. Not differentiable. Its test is
 * experts_test.c.
 */
#include "engine/tensor/ops/experts.h"

#define ADDEND 4

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *dy = call->in[3];
    if (!gd_is_float(x) || x->rank != 2 || x->group == NULL || dy->dtype != x->dtype || dy->rank != 2 || dy->shape[1] != x->shape[1])
        return gd_graph_fail(graph, "expert_dot: '%s' are no rows of an expert like those of '%s'", x->name, dy->name) != NULL;
    struct gd_value *out = call->out[0];
    out->dtype = GD_F32;
    out->rank = 2;
    out->shape[0] = dy->shape[0];
    out->shape[1] = x->group->slots;
    return true;
}

GD_INLINE void body(float *y, const void *x, const void *dy, bool bf16, const int32_t *order, int64_t slots, int64_t width,
                    int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        if (order[i] < 0)
            continue;
        int64_t at = order[i] / slots * width;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < width; c++)
            sum += gd_load(x, bf16, i * width + c) * gd_load(dy, bf16, at + c);
        y[order[i]] = sum;
    }
}

GD_KERNEL static void rows_f32(float *y, const float *x, const float *dy, const int32_t *order, int64_t slots, int64_t width,
                               int64_t begin, int64_t end)
{
    body(y, x, dy, false, order, slots, width, begin, end);
}

GD_KERNEL static void rows_bf16(float *y, const uint16_t *x, const uint16_t *dy, const int32_t *order, int64_t slots, int64_t width,
                                int64_t begin, int64_t end)
{
    body(y, x, dy, true, order, slots, width, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *dy = &args->in[3], *c = &args->in[ADDEND], *y = &args->out[0];
    int64_t width = x->shape[1], slots = args->params->i[1], count;
    size_t bytes = gd_dtype_bytes(GD_F32, gd_tensor_count(y));
    const int32_t *order;
    if (!gd_group_order(args, 1, dy->shape[0], &order, &count, err))
        return false;
    if (c->rank == 0)
        memset(y->data, 0, bytes);
    else if (c->data != y->data)
        memcpy(y->data, c->data, bytes);
    GD_PARALLEL(count * width)
    {
        struct gd_range r = gd_thread_range(count, 1);
        if (x->dtype == GD_BF16)
            rows_bf16(y->data, x->data, dy->data, order, slots, width, r.begin, r.end);
        else
            rows_f32(y->data, x->data, dy->data, order, slots, width, r.begin, r.end);
    }
    return true;
}

const struct gd_op gd_op_expert_dot = {
    .name = "expert_dot",
    .in_min = 4, .in_max = 5, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = ADDEND,
    .addend = ADDEND,
    .groups = GD_GROUPS_OWN,
};
