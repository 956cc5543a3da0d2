/*
 * A scalar loss of the numbers x, given as a function (struct gd_segment_loss in ops.h) that returns loss and
 * gradient together: losses over whole answers need numbers of the batch that are no part of the graph. Its test
 * is in tests/unit/objective.
 */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *loss = call->in[1], *aside = call->in[2];
    bool column = x->rank == 1 || (x->rank == 2 && x->shape[1] == 1);
    if (x->dtype != GD_F32 || !column || loss->dtype != GD_HANDLE)
        return gd_graph_fail(graph, "segment_loss: '%s' must be f32 [N] or [N, 1] and '%s' a handle", x->name, loss->name) != NULL;
    if (aside != NULL && (aside->dtype != GD_F32 || aside->rank != 1 || aside->shape[0] != x->shape[0]))
        return gd_graph_fail(graph, "segment_loss: '%s' must be like '%s'", aside->name, x->name) != NULL;
    call->out[0]->dtype = GD_F32;
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = 1;
    gd_shape_like(call->out[1], x, GD_F32);
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_segment_loss *loss = args->in[1].data;
    *(float *)args->out[0].data = (float)loss->evaluate(loss->context, args->in[0].data, args->in[2].data, args->in[0].shape[0], args->out[1].data);
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (out_grad[1] != NULL)
        return gd_graph_fail(graph, "segment_loss: only its loss is differentiable") != NULL;
    in_grad[0] = gd_mul_scalar(graph, call->out[1], out_grad[0]);
    return true;
}

const struct gd_op gd_op_segment_loss = {
    .name = "segment_loss",
    .in_min = 2, .in_max = 3, .out_count = 2,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
};

struct gd_value *gd_segment_loss(struct gd_graph *g, struct gd_value *x, struct gd_value *aside, struct gd_value *loss)
{
    return gd_graph_call(g, &gd_op_segment_loss, (struct gd_value *[]){x, loss, aside}, 3, NULL);
}
