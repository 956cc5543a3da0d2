#include "engine/tensor/graph.h"
#include "engine/base/alloc.h"
#include "engine/base/arena.h"
#include "engine/tensor/again.h"
#include "engine/tensor/graph_internal.h"
#include "engine/tensor/op.h"
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* Far above any real tensor, and low enough that bytes never overflow. */
#define ELEMENTS_MAX ((int64_t)1 << 48)

struct gd_graph {
    struct gd_arena arena;
    enum gd_dtype act;
    struct gd_error failure;
    struct gd_value **values;
    int value_count, value_capacity;
    struct gd_call **calls;
    int call_count, call_capacity;
    struct gd_value *one;
    int *marks;               /* calls made before each */
    int mark_count, mark_capacity;
    bool recompute;
    int (*wide)[2];           /* ranges of calls, in order */
    int wide_count, wide_capacity;
    bool narrow;
    struct gd_group **groups;
    int group_count;
};

bool gd_graph_create(struct gd_graph **out, enum gd_dtype act, struct gd_error *err)
{
    assert(*out == NULL);
    if (act != GD_F32 && act != GD_BF16)
        return gd_fail(err, GD_UNSUPPORTED, "activations in %s: a graph computes in F32 or BF16", gd_dtype_name(act));
    struct gd_graph *graph = gd_alloc(sizeof(*graph));
    graph->act = act;
    *out = graph;
    return true;
}

void gd_graph_destroy(struct gd_graph *graph)
{
    if (graph == NULL)
        return;
    gd_arena_release(&graph->arena);
    gd_free(graph->values);
    gd_free(graph->calls);
    gd_free(graph->marks);
    gd_free(graph->wide);
    gd_free(graph->groups);
    gd_free(graph);
}

enum gd_dtype gd_graph_act(const struct gd_graph *graph)
{
    return graph->act;
}

bool gd_graph_ok(const struct gd_graph *graph, struct gd_error *err)
{
    if (graph->failure.code == GD_OK)
        return true;
    return gd_fail(err, graph->failure.code, "%s", graph->failure.message);
}

struct gd_value *gd_graph_fail(struct gd_graph *graph, const char *format, ...)
{
    char message[GD_ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    gd_fail(&graph->failure, GD_INVALID, "graph: %s", message);
    return NULL;
}

static bool shape_allowed(const struct gd_value *value)
{
    if (value->dtype >= GD_DTYPE_COUNT || value->rank < 1 || value->rank > GD_RANK_MAX)
        return false;
    int64_t count = 1;
    for (int i = 0; i < value->rank; i++) {
        int64_t n = value->shape[i];
        if (n < 0 || (n > 0 && count > ELEMENTS_MAX / n))
            return false;
        count *= n;
    }
    return count % gd_dtype_block(value->dtype) == 0;
}

int64_t gd_value_elements(const struct gd_value *value)
{
    int64_t count = 1;
    for (int i = 0; i < value->rank; i++)
        count *= value->shape[i];
    return count;
}

size_t gd_value_bytes(const struct gd_value *value)
{
    return gd_dtype_bytes(value->dtype, gd_value_elements(value));
}

bool gd_value_same_shape(const struct gd_value *a, const struct gd_value *b)
{
    return a->rank == b->rank && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof(a->shape[0])) == 0;
}

static void append_value(struct gd_graph *graph, struct gd_value *value)
{
    if (graph->value_count == graph->value_capacity) {
        graph->value_capacity = graph->value_capacity ? 2 * graph->value_capacity : 256;
        graph->values = gd_realloc_array(graph->values, (size_t)graph->value_capacity, sizeof(struct gd_value *));
    }
    value->index = graph->value_count;
    graph->values[graph->value_count++] = value;
}

static void append_call(struct gd_graph *graph, struct gd_call *call)
{
    if (graph->call_count == graph->call_capacity) {
        graph->call_capacity = graph->call_capacity ? 2 * graph->call_capacity : 256;
        graph->calls = gd_realloc_array(graph->calls, (size_t)graph->call_capacity, sizeof(struct gd_call *));
    }
    assert(call->index == graph->call_count);
    graph->calls[graph->call_count++] = call;
}

/* A value that no call computes. */
static struct gd_value *leaf(struct gd_graph *graph, enum gd_value_kind kind, const char *name, enum gd_dtype dtype,
                             int rank, const int64_t *shape)
{
    if (graph->failure.code != GD_OK)
        return NULL;
    struct gd_value *value = gd_arena_alloc(&graph->arena, sizeof(*value));
    value->kind = kind;
    value->dtype = dtype;
    value->rank = rank;
    for (int i = 0; i < rank && i < GD_RANK_MAX; i++)
        value->shape[i] = shape[i];
    value->name = gd_arena_strdup(&graph->arena, name ? name : "");
    if (!shape_allowed(value))
        return gd_graph_fail(graph, "%s '%s': rank %d or a size in its shape is out of range",
                             kind == GD_VALUE_PARAM ? "parameter" : "input", value->name, rank);
    append_value(graph, value);
    return value;
}

struct gd_value *gd_graph_input(struct gd_graph *graph, const char *name, enum gd_dtype dtype, int rank,
                                const int64_t *shape)
{
    return leaf(graph, GD_VALUE_INPUT, name, dtype, rank, shape);
}

struct gd_value *gd_graph_handle(struct gd_graph *graph, const char *name)
{
    return leaf(graph, GD_VALUE_INPUT, name, GD_HANDLE, 1, (const int64_t[]){1});
}

struct gd_value *gd_graph_weight(struct gd_graph *graph, struct gd_weight *weight)
{
    for (int i = 0; i < graph->value_count; i++)
        if (graph->values[i]->weight == weight)
            return graph->values[i];
    int64_t shape[2] = {gd_weight_dim(weight, 0), gd_weight_rank(weight) > 1 ? gd_weight_dim(weight, 1) : 1};
    struct gd_value *value =
        leaf(graph, GD_VALUE_WEIGHT, gd_weight_name(weight), gd_weight_source(weight)->dtype, gd_weight_rank(weight), shape);
    if (value != NULL)
        value->weight = weight;
    return value;
}

struct gd_value *gd_graph_param(struct gd_graph *graph, const char *name, int rank, const int64_t *shape)
{
    struct gd_value *value = leaf(graph, GD_VALUE_PARAM, name, GD_F32, rank, shape);
    if (value != NULL)
        value->needs_gradient = true;
    return value;
}

void gd_graph_want(struct gd_value *input)
{
    if (input != NULL) {
        assert(input->kind == GD_VALUE_INPUT);
        assert(input->dtype == GD_F32 || input->dtype == GD_BF16);
        input->needs_gradient = true;
    }
}

static bool inputs_present(struct gd_graph *graph, const struct gd_op *op, struct gd_value *const *in, int in_count)
{
    if (op->shape == NULL)
        return gd_graph_fail(graph, "op '%s' has no implementation in this build", op->name) != NULL;
    if (in_count < op->in_min || in_count > op->in_max || in_count > GD_CALL_INPUTS_MAX)
        return gd_graph_fail(graph, "op '%s' takes %d to %d inputs, not %d", op->name, op->in_min, op->in_max,
                             in_count) != NULL;
    for (int i = 0; i < op->in_min; i++)
        if (in[i] == NULL)
            return gd_graph_fail(graph, "op '%s': input %d is missing", op->name, i) != NULL;
    return true;
}

const struct gd_group *gd_graph_group(struct gd_graph *graph, struct gd_value *offsets, struct gd_value *order, int index, int slots,
                                      int64_t rows_max)
{
    for (int i = graph->group_count - 1; i >= 0; i--)
        if (graph->groups[i]->offsets == offsets && graph->groups[i]->index == index)
            return graph->groups[i];
    struct gd_group *group = gd_arena_alloc(&graph->arena, sizeof(*group));
    *group = (struct gd_group){.offsets = offsets, .order = order, .index = index, .slots = slots, .rows_max = rows_max};
    if ((graph->group_count & (graph->group_count + 1)) == 0) /* doubles at 0, 1, 3, 7, ... */
        graph->groups = gd_realloc_array(graph->groups, (size_t)graph->group_count * 2 + 2, sizeof(*graph->groups));
    graph->groups[graph->group_count++] = group;
    return group;
}

/* Rows of two groups have nothing to do with each other. */
static bool pass_group(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *first = NULL;
    for (int i = 0; i < call->in_count; i++) {
        const struct gd_value *value = call->in[i];
        if (value == NULL || value->group == NULL)
            continue;
        if (call->op->groups == GD_GROUPS_REFUSED)
            return gd_graph_fail(graph, "op '%s' does not work on the rows of one expert (%s)", call->op->name, value->name) != NULL;
        if (first != NULL && first->group != value->group)
            return gd_graph_fail(graph, "op '%s': %s and %s have rows of two experts", call->op->name, first->name, value->name) != NULL;
        first = first != NULL ? first : value;
    }
    for (int k = 0; first != NULL && call->op->groups == GD_GROUPS_KEPT && k < call->out_count; k++) {
        if (call->out[k]->shape[0] != first->shape[0])
            return gd_graph_fail(graph, "op '%s': output %d has not the rows of %s", call->op->name, k, first->name) != NULL;
        call->out[k]->group = first->group;
    }
    return true;
}

struct gd_value *gd_graph_call(struct gd_graph *graph, const struct gd_op *op, struct gd_value *const *in, int in_count,
                               const struct gd_op_params *params)
{
    if (graph->failure.code != GD_OK || !inputs_present(graph, op, in, in_count))
        return NULL;
    assert(op->out_count >= 1);
    assert(op->out_count <= GD_CALL_OUTPUTS_MAX);
    struct gd_call *call = gd_arena_alloc(&graph->arena, sizeof(*call));
    call->op = op;
    call->index = graph->call_count;
    call->in_count = in_count;
    call->out_count = op->out_count;
    if (params != NULL)
        call->params = *params;
    bool needs_gradient = false;
    for (int i = 0; i < in_count; i++) {
        call->in[i] = in[i];
        needs_gradient |= in[i] != NULL && in[i]->needs_gradient;
    }
    for (int k = 0; k < op->out_count; k++) {
        call->out[k] = gd_arena_alloc(&graph->arena, sizeof(*call->out[k]));
        call->out[k]->kind = GD_VALUE_COMPUTED;
        call->out[k]->producer = call;
        call->out[k]->needs_gradient = needs_gradient;
        call->out[k]->name = k == 0 ? gd_arena_format(&graph->arena, "%s#%d", op->name, call->index)
                                    : gd_arena_format(&graph->arena, "%s#%d:%d", op->name, call->index, k);
    }
    if (!op->shape(graph, call)) {
        if (graph->failure.code == GD_OK)
            gd_graph_fail(graph, "op '%s' refuses its inputs", op->name);
        return NULL;
    }
    if (!pass_group(graph, call))
        return NULL;
    for (int k = 0; k < call->out_count; k++) {
        if (!shape_allowed(call->out[k]))
            return gd_graph_fail(graph, "op '%s': the shape of output %d is out of range", op->name, k);
        call->out[k]->needs_gradient &= call->out[k]->dtype == GD_F32 || call->out[k]->dtype == GD_BF16;
    }
    for (int k = 0; k < call->out_count; k++)
        append_value(graph, call->out[k]);
    append_call(graph, call);
    return call->out[0];
}

struct gd_value *gd_value_output(struct gd_value *first, int output_index)
{
    if (first == NULL)
        return NULL;
    assert(first->producer != NULL);
    assert(output_index >= 0 && output_index < first->producer->out_count);
    return first->producer->out[output_index];
}

int gd_graph_call_count(const struct gd_graph *graph)
{
    return graph->call_count;
}

struct gd_call *gd_graph_call_at(const struct gd_graph *graph, int index)
{
    assert(index >= 0 && index < graph->call_count);
    return graph->calls[index];
}

int gd_graph_value_count(const struct gd_graph *graph)
{
    return graph->value_count;
}

struct gd_value *gd_graph_value_at(const struct gd_graph *graph, int index)
{
    assert(index >= 0 && index < graph->value_count);
    return graph->values[index];
}

const struct gd_value *gd_graph_one(const struct gd_graph *graph)
{
    return graph->one;
}

struct gd_value *gd_graph_make_one(struct gd_graph *graph)
{
    if (graph->one == NULL)
        graph->one = leaf(graph, GD_VALUE_INPUT, "one", GD_F32, 1, (const int64_t[]){1});
    return graph->one;
}

void gd_graph_mark(struct gd_graph *graph)
{
    if (graph->mark_count == graph->mark_capacity) {
        graph->mark_capacity = graph->mark_capacity ? 2 * graph->mark_capacity : 64;
        graph->marks = gd_realloc_array(graph->marks, (size_t)graph->mark_capacity, sizeof(int));
    }
    graph->marks[graph->mark_count++] = graph->call_count;
}

void gd_graph_wide(struct gd_graph *graph, int begin)
{
    if (graph->wide_count == graph->wide_capacity) {
        graph->wide_capacity = graph->wide_capacity ? 2 * graph->wide_capacity : 64;
        graph->wide = gd_realloc_array(graph->wide, (size_t)graph->wide_capacity, sizeof(graph->wide[0]));
    }
    graph->wide[graph->wide_count][0] = begin;
    graph->wide[graph->wide_count++][1] = graph->call_count;
}

void gd_graph_keep_narrow(struct gd_graph *graph)
{
    graph->narrow = true;
}

bool gd_graph_is_wide(const struct gd_graph *graph, int index)
{
    int low = 0, high = graph->narrow ? graph->wide_count : 0; /* the first range that ends behind it */
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (graph->wide[middle][1] <= index)
            low = middle + 1;
        else
            high = middle;
    }
    return graph->narrow && low < graph->wide_count && graph->wide[low][0] <= index;
}

void gd_graph_recompute(struct gd_graph *graph)
{
    graph->recompute = true;
}

bool gd_graph_stretch(const struct gd_graph *graph, int index, int *begin, int *end)
{
    for (int i = 1; graph->recompute && i < graph->mark_count; i++) {
        *begin = graph->marks[i - 1];
        *end = graph->marks[i];
        if (index >= *begin && index < *end)
            return true;
    }
    return false;
}
