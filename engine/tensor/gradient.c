/*
 * The backward pass: calls in reverse, each op adding its own part, contributions to one value added up in that order.
 * Where layers are made again, their calls are repeated just before their gradients, which read the new values.
 */
#include "engine/base/alloc.h"
#include "engine/tensor/again.h"
#include "engine/tensor/graph_internal.h"
#include "engine/tensor/op.h"
#include "engine/tensor/ops.h"
#include <assert.h>

struct walk {
    struct gd_graph *graph;
    int value_count;            /* of the forward graph: only its values have gradients */
    bool *wanted;               /* depends on one of the params */
    struct gd_value **grad;     /* so far, per forward value */
    struct gd_call **again;     /* per forward call: the same call, made again; NULL: not (yet) */
};

/* From here on needs_gradient means "leads from a wanted param to somewhere", so that ops build nothing else. */
static void narrow(struct walk *walk, struct gd_value *const *params, int param_count)
{
    for (int i = 0; i < param_count; i++)
        if (params[i] != NULL && params[i]->needs_gradient)
            walk->wanted[params[i]->index] = true;
    for (int i = 0; i < gd_graph_call_count(walk->graph); i++) {
        struct gd_call *call = gd_graph_call_at(walk->graph, i);
        bool wanted = false;
        for (int j = 0; j < call->in_count; j++)
            wanted |= call->in[j] != NULL && walk->wanted[call->in[j]->index];
        for (int k = 0; k < call->out_count; k++)
            walk->wanted[call->out[k]->index] |= wanted && call->out[k]->needs_gradient;
    }
}

/* True if nothing but the gradient of one input refers to `value`, which the call that is now last but for others of
 * the same op->gradient has just made. */
static bool is_fresh(const struct gd_graph *graph, const struct gd_value *value, int first_new_call)
{
    if (value->producer == NULL || value->producer->index < first_new_call || value->producer->out[0] != value)
        return false;
    for (int i = value->producer->index + 1; i < gd_graph_call_count(graph); i++) {
        const struct gd_call *call = gd_graph_call_at(graph, i);
        for (int j = 0; j < call->in_count; j++)
            if (call->in[j] == value)
                return false;
    }
    return true;
}

/* sum + part. A part that a product has just made takes the sum as its addend: no pass over memory for the addition. */
static struct gd_value *accumulate(struct gd_graph *graph, struct gd_value *sum, struct gd_value *part,
                                   int first_new_call, bool shared)
{
    if (sum == NULL || part == NULL)
        return part;
    struct gd_call *call = part->producer;
    int addend = call != NULL ? call->op->addend : 0;
    bool free_slot = addend > 0 && (call->in_count <= addend || call->in[addend] == NULL);
    if (free_slot && !shared && sum->dtype == part->dtype && is_fresh(graph, part, first_new_call) &&
        (sum->producer == NULL || sum->producer->index < call->index)) {
        call->in[addend] = sum;
        if (call->in_count <= addend)
            call->in_count = addend + 1;
        return part;
    }
    return gd_add(graph, sum, part);
}

static bool check_part(struct gd_graph *graph, const struct gd_call *call, int input, const struct gd_value *part)
{
    const struct gd_value *of = call->in[input];
    if (gd_value_same_shape(of, part) && of->dtype == part->dtype)
        return true;
    gd_graph_fail(graph, "op '%s': its gradient for input %d has another shape or dtype (%s for %s)", call->op->name, input,
                  gd_dtype_name(part->dtype), gd_dtype_name(of->dtype));
    return false;
}

/* ---- layers that are made again ---- */

static struct gd_value *value_again(const struct walk *walk, struct gd_value *value)
{
    const struct gd_call *producer = value != NULL ? value->producer : NULL;
    if (producer == NULL || walk->again[producer->index] == NULL)
        return value;
    for (int k = 0; k < producer->out_count; k++)
        if (producer->out[k] == value)
            return walk->again[producer->index]->out[k];
    return value;
}

/* What gradients do not read of it the plan leaves out. */
static bool repeat_call(struct walk *walk, const struct gd_call *call)
{
    struct gd_value *in[GD_CALL_INPUTS_MAX] = {NULL};
    for (int j = 0; j < call->in_count; j++)
        in[j] = value_again(walk, call->in[j]);
    struct gd_value *first = gd_graph_call(walk->graph, call->op, in, call->in_count, &call->params);
    if (first == NULL)
        return false;
    walk->again[call->index] = first->producer;
    for (int k = 0; k < call->out_count; k++)
        first->producer->out[k]->needs_gradient = call->out[k]->needs_gradient;
    return true;
}

static bool repeat_calls(struct walk *walk, int begin, int end)
{
    for (int i = begin; i < end; i++)
        if (!repeat_call(walk, gd_graph_call_at(walk->graph, i)))
            return false;
    return true;
}

static bool enter_stretch(struct walk *walk, int index)
{
    int begin, end;
    if (walk->again[index] != NULL || !gd_graph_stretch(walk->graph, index, &begin, &end))
        return true;
    return repeat_calls(walk, begin, end);
}

/* Makes a call again, and before it those wide ones, or light ones of a wide one, that it reads. */
static bool make_again(struct walk *walk, const struct gd_call *call)
{
    int begin, end;
    if (walk->again[call->index] != NULL || gd_graph_stretch(walk->graph, call->index, &begin, &end))
        return true; /* those of a stretch come with that */
    bool wide = gd_graph_is_wide(walk->graph, call->index);
    for (int j = 0; j < call->in_count; j++) {
        const struct gd_call *producer = call->in[j] != NULL ? call->in[j]->producer : NULL;
        if (producer != NULL && (gd_graph_is_wide(walk->graph, producer->index) || (wide && producer->op->light)) &&
            !make_again(walk, producer))
            return false;
    }
    return repeat_call(walk, call);
}

/* The call with what light ops and wide ones give it made again, once for all calls that read it. */
static bool read_again(struct walk *walk, const struct gd_call *call, struct gd_call *reads)
{
    *reads = *call;
    for (int j = 0; j < call->in_count; j++) {
        const struct gd_call *producer = call->in[j] != NULL ? call->in[j]->producer : NULL;
        if (producer == NULL || (!producer->op->light && !gd_graph_is_wide(walk->graph, producer->index)))
            continue;
        if (!make_again(walk, producer))
            return false;
        reads->in[j] = value_again(walk, call->in[j]);
    }
    return true;
}

/* ---- the walk ---- */

/* A part goes on from the whole's gradient so far, which its way back replaces. */
static void begin_part(struct walk *walk, const struct gd_value *part)
{
    const struct gd_call *call = part->producer;
    if (call == NULL || !call->op->views || walk->grad[call->in[0]->index] == NULL)
        return;
    for (int k = 0; k < call->out_count; k++)
        if (walk->grad[call->out[k]->index] != NULL)
            return;
    struct gd_value **whole = &walk->grad[call->in[0]->index], *first = gd_split(walk->graph, *whole, call->params.i, call->out_count);
    for (int k = 0; k < call->out_count; k++)
        walk->grad[call->out[k]->index] = gd_value_output(first, k);
    *whole = NULL;
}

static bool walk_call(struct walk *walk, const struct gd_call *call)
{
    struct gd_value *out_grad[GD_CALL_OUTPUTS_MAX] = {NULL}, *in_grad[GD_CALL_INPUTS_MAX] = {NULL};
    bool flows = false, wanted = false;
    for (int k = 0; k < call->out_count; k++) {
        out_grad[k] = walk->grad[call->out[k]->index];
        flows |= out_grad[k] != NULL;
    }
    for (int j = 0; j < call->in_count; j++)
        wanted |= call->in[j] != NULL && walk->wanted[call->in[j]->index];
    if (!flows || !wanted)
        return true;
    struct gd_graph *graph = walk->graph;
    if (call->op->gradient == NULL) {
        gd_graph_fail(graph, "op '%s' (%s) is not differentiable, but a parameter lies behind it", call->op->name,
                      call->out[0]->name);
        return false;
    }
    if (!enter_stretch(walk, call->index))
        return false;
    const struct gd_call *made = walk->again[call->index] != NULL ? walk->again[call->index] : call;
    struct gd_call reads;
    if (made == call && !read_again(walk, call, &reads))
        return false;
    for (int j = 0; j < call->in_count; j++)
        if (call->in[j] != NULL && walk->wanted[call->in[j]->index])
            begin_part(walk, call->in[j]);
    int first_new_call = gd_graph_call_count(graph);
    if (!call->op->gradient(graph, made == call ? &reads : made, out_grad, in_grad)) {
        gd_graph_fail(graph, "op '%s' has no gradient for these inputs", call->op->name);
        return false;
    }
    for (int j = 0; j < call->in_count; j++) {
        if (in_grad[j] == NULL || !walk->wanted[call->in[j]->index])
            continue;
        if (!check_part(graph, call, j, in_grad[j]))
            return false;
        bool shared = false;
        for (int other = 0; other < call->in_count; other++)
            shared |= other != j && in_grad[other] == in_grad[j];
        struct gd_value **sum = &walk->grad[call->in[j]->index];
        *sum = accumulate(graph, *sum, in_grad[j], first_new_call, shared);
    }
    return gd_graph_ok(graph, &(struct gd_error){0});
}

static bool walk_back(struct walk *walk, struct gd_value *from, struct gd_value *from_grad)
{
    if (!walk->wanted[from->index])
        return true;
    walk->grad[from->index] = from_grad;
    for (int i = from->producer ? from->producer->index : -1; i >= 0; i--)
        if (!walk_call(walk, gd_graph_call_at(walk->graph, i)))
            return false;
    return true;
}

bool gd_graph_gradient_from(struct gd_graph *graph, struct gd_value *from, struct gd_value *from_grad,
                            struct gd_value *const *params, int param_count, struct gd_value **grads, struct gd_error *err)
{
    struct walk walk = {.graph = graph, .value_count = gd_graph_value_count(graph)};
    walk.wanted = gd_alloc_array((size_t)walk.value_count + 1, sizeof(bool));
    walk.grad = gd_alloc_array((size_t)walk.value_count + 1, sizeof(struct gd_value *));
    walk.again = gd_alloc_array((size_t)gd_graph_call_count(graph) + 1, sizeof(struct gd_call *));
    bool *kept = gd_alloc_array((size_t)walk.value_count + 1, sizeof(bool));

    narrow(&walk, params, param_count);
    for (int i = 0; i < walk.value_count; i++) {
        kept[i] = gd_graph_value_at(graph, i)->needs_gradient;
        gd_graph_value_at(graph, i)->needs_gradient = walk.wanted[i];
    }
    bool ok = walk_back(&walk, from, from_grad);
    for (int i = 0; i < walk.value_count; i++)
        gd_graph_value_at(graph, i)->needs_gradient = kept[i];
    for (int i = 0; ok && i < param_count; i++)
        grads[i] = params[i] != NULL ? walk.grad[params[i]->index] : NULL;

    gd_free(kept);
    gd_free(walk.again);
    gd_free(walk.grad);
    gd_free(walk.wanted);
    return gd_graph_ok(graph, err) && ok;
}

bool gd_graph_gradient(struct gd_graph *graph, struct gd_value *loss, struct gd_value *const *params, int param_count,
                       struct gd_value **grads, struct gd_error *err)
{
    if (!gd_graph_ok(graph, err))
        return false;
    if (loss == NULL || loss->dtype != GD_F32 || loss->rank != 1 || loss->shape[0] != 1)
        return gd_fail(err, GD_INVALID, "graph: a loss is an f32 value of shape [1]");
    return gd_graph_gradient_from(graph, loss, gd_graph_make_one(graph), params, param_count, grads, err);
}
