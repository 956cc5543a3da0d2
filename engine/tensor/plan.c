#include "engine/tensor/plan_internal.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/backend.h"
#include "engine/tensor/device.h"
#include "engine/tensor/graph_internal.h"
#include "engine/tensor/layout.h"
#include "engine/tensor/op.h"
#include "engine/tensor/slabs.h"
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const float one = 1.0f;      /* what gd_graph_one is bound to */

/* ---- which calls are needed, in order of creation ---- */

static void mark_needed(const struct gd_graph *graph, bool *needed, struct gd_value *const *outputs, int output_count)
{
    for (int i = 0; i < output_count; i++)
        needed[outputs[i]->producer->index] = true;
    for (int i = gd_graph_call_count(graph) - 1; i >= 0; i--) {
        const struct gd_call *call = gd_graph_call_at(graph, i);
        for (int j = 0; needed[i] && j < call->in_count; j++)
            if (call->in[j] != NULL && call->in[j]->producer != NULL)
                needed[call->in[j]->producer->index] = true;
    }
}

static bool list_steps(struct gd_plan *plan, struct gd_value *const *outputs, int output_count, struct gd_error *err)
{
    int call_count = gd_graph_call_count(plan->graph);
    bool *needed = gd_alloc_array((size_t)call_count + 1, sizeof(bool));
    mark_needed(plan->graph, needed, outputs, output_count);
    plan->steps = gd_alloc_array((size_t)call_count + 1, sizeof(struct step));
    bool ok = true;
    for (int i = 0; ok && i < call_count; i++) {
        if (!needed[i])
            continue;
        const struct gd_call *call = gd_graph_call_at(plan->graph, i);
        struct step *step = &plan->steps[plan->step_count++];
        step->call = call;
        step->scratch_block = -1;
        step->op = gd_backend()->op(call->op);
        if (step->op.run == NULL)
            ok = gd_fail(err, GD_UNSUPPORTED, "op '%s' does not run on device %s", call->op->name, gd_device()->name);
    }
    gd_free(needed);
    return ok;
}

static bool has_group(const struct gd_call *call)
{
    bool has = false;
    for (int j = 0; j < call->in_count; j++)
        has |= call->in[j] != NULL && call->in[j]->group != NULL;
    for (int k = 0; k < call->out_count; k++)
        has |= call->out[k]->group != NULL;
    return has;
}

static void pair_steps(struct gd_plan *plan)
{
    for (int s = 0; gd_backend()->pair != NULL && s + 1 < plan->step_count; s++) {
        struct step *step = &plan->steps[s], *next = step + 1;
        if (!step->paired && !has_group(step->call) && !has_group(next->call))
            step->pair = gd_backend()->pair(step->call, next->call);
        next->paired = step->pair != NULL;
    }
}

/* ---- liveness: every computed value gets a block of the arena, shared where an op works in place ---- */

static int new_block(struct gd_plan *plan, size_t size_bytes, int first_step, int last_step)
{
    plan->blocks[plan->block_count] = (struct gd_block){.size_bytes = size_bytes, .first = first_step, .last = last_step};
    plan->first_in_block[plan->block_count] = -1;
    return plan->block_count++;
}

/* Where a value lies in its block. */
static size_t place(const struct gd_plan *plan, const struct gd_value *value)
{
    size_t at = 0;
    for (; value != NULL; value = gd_plan_whole(value))
        at += plan->slots[value->index].offset;
    return at;
}

/* Whether somebody reads, in this step or later, what lies at [begin, end) of a block, other than through these values. */
static bool read_by_others(const struct gd_plan *plan, int block, size_t begin, size_t end, int step_index,
                           struct gd_value *const *allowed, int allowed_count)
{
    for (int i = plan->first_in_block[block]; i >= 0; i = plan->slots[i].next) {
        const struct gd_value *value = gd_graph_value_at(plan->graph, i);
        size_t at = place(plan, value);
        bool own = value->group != allowed[0]->group; /* the rows of another expert lie elsewhere */
        for (int k = 0; k < allowed_count; k++)
            own |= allowed[k] == value;
        if (!own && plan->slots[i].last_direct >= step_index && at < end && begin < at + gd_value_bytes(value))
            return true;
    }
    return false;
}

/* Whether a step may write where this input of it lies. */
static bool may_overwrite(const struct gd_plan *plan, const struct gd_value *value, int step_index)
{
    const struct slot *slot = &plan->slots[value->index];
    return value->kind == GD_VALUE_COMPUTED && !slot->is_output && slot->block >= 0 && slot->last_direct == step_index;
}

static int slab_block(struct gd_plan *plan, const struct gd_value *value, int output, int step)
{
    int *block = gd_slabs_find(plan->slabs, value, output);
    if (*block < 0)
        *block = new_block(plan, gd_slab_bytes(value), step, step);
    return *block;
}

/* The input whose memory out[0] may take over: it dies at this step and is read through this input only. */
static const struct gd_value *inplace_source(const struct gd_plan *plan, const struct step *step, int step_index)
{
    const struct gd_call *call = step->call;
    int input = call->op->inplace;
    if (input < 0 || input >= call->in_count || call->in[input] == NULL)
        return NULL;
    struct gd_value *value = call->in[input];
    if (!may_overwrite(plan, value, step_index))
        return NULL;
    if (value->dtype != call->out[0]->dtype || gd_value_elements(value) != gd_value_elements(call->out[0]) ||
        value->group != call->out[0]->group)
        return NULL;
    for (int j = 0; j < call->in_count; j++)
        if (j != input && call->in[j] == value)
            return NULL;
    size_t at = place(plan, value);
    if (read_by_others(plan, plan->slots[value->index].block, at, at + gd_value_bytes(value), step_index, &value, 1))
        return NULL;
    return value;
}

/* The first of the parts that are joined here, where they lie side by side already and nobody else reads them any more. */
static const struct gd_value *joined_source(const struct gd_plan *plan, const struct step *step, int step_index)
{
    const struct gd_call *call = step->call;
    if (!call->op->joins || call->in[0] == NULL)
        return NULL;
    int block = plan->slots[call->in[0]->index].block;
    size_t begin = place(plan, call->in[0]), end = begin;
    for (int k = 0; k < call->in_count; k++) {
        const struct gd_value *part = call->in[k];
        if (part == NULL || !may_overwrite(plan, part, step_index) || plan->slots[part->index].block != block ||
            place(plan, part) != end)
            return NULL;
        end += gd_value_bytes(part);
    }
    return read_by_others(plan, block, begin, end, step_index, call->in, call->in_count) ? NULL : call->in[0];
}

static void use_value(struct gd_plan *plan, const struct gd_value *value, int step)
{
    if (plan->slots[value->index].last_direct < step)
        plan->slots[value->index].last_direct = step;
}

static void find_last_uses(struct gd_plan *plan)
{
    for (int i = 0; i < plan->value_count; i++) {
        struct slot *slot = &plan->slots[i];
        slot->last_direct = slot->last_use = slot->is_output ? plan->step_count : -1;
    }
    for (int s = 0; s < plan->step_count; s++) {
        const struct gd_call *call = plan->steps[s].call;
        for (int j = 0; j < call->in_count; j++)
            if (call->in[j] != NULL)
                use_value(plan, call->in[j], s);
        for (int j = 0; j < call->in_count; j++) /* where a group's rows are is read by all that have them */
            if (call->in[j] != NULL && call->in[j]->group != NULL)
                use_value(plan, call->in[j]->group->offsets, s);
        for (int k = 0; k < call->out_count; k++)
            if (call->out[k]->group != NULL)
                use_value(plan, call->out[k]->group->offsets, s);
    }
    for (int i = plan->value_count - 1; i >= 0; i--) { /* parts come after what they are parts of */
        struct slot *slot = &plan->slots[i];
        const struct gd_value *whole = gd_plan_whole(gd_graph_value_at(plan->graph, i));
        slot->last_use = slot->last_use > slot->last_direct ? slot->last_use : slot->last_direct;
        if (whole != NULL && plan->slots[whole->index].last_use < slot->last_use)
            plan->slots[whole->index].last_use = slot->last_use;
    }
}

static void put_in_block(struct gd_plan *plan, const struct gd_value *value, int block, size_t offset)
{
    struct slot *slot = &plan->slots[value->index];
    slot->block = block;
    slot->offset = offset;
    if (block < 0)
        return;
    slot->next = plan->first_in_block[block];
    plan->first_in_block[block] = value->index;
}

static void assign_step(struct gd_plan *plan, int s)
{
    struct step *step = &plan->steps[s];
    const struct gd_call *call = step->call;
    const struct gd_value *source = inplace_source(plan, step, s);
    size_t part_offset = 0;
    if (source == NULL)
        source = joined_source(plan, step, s);
    for (int k = 0; k < call->out_count; k++) {
        const struct gd_value *value = call->out[k];
        struct slot *slot = &plan->slots[value->index];
        int last = slot->last_use > s ? slot->last_use : s;
        if (call->op->views) {
            put_in_block(plan, value, plan->slots[call->in[0]->index].block, part_offset);
            part_offset += gd_value_bytes(value);
        } else if (k == 0 && source != NULL && !slot->is_output) {
            int block = plan->slots[source->index].block;
            put_in_block(plan, value, block, place(plan, source));
            if (plan->blocks[block].last < last)
                plan->blocks[block].last = last;
        } else {
            int block = value->group != NULL ? slab_block(plan, value, k, s) : new_block(plan, gd_value_bytes(value), s, last);
            put_in_block(plan, value, block, 0);
            if (plan->blocks[block].last < last)
                plan->blocks[block].last = last;
        }
    }
    size_t scratch_bytes = step->op.scratch_bytes ? step->op.scratch_bytes(call) : 0;
    if (scratch_bytes > 0)
        step->scratch_block = new_block(plan, scratch_bytes, s, s);
}

/* What a pair's first step reads and writes is there until the second is done: they are one launch. */
static void keep_for_pairs(struct gd_plan *plan)
{
    for (int s = 0; s < plan->step_count; s++) {
        const struct gd_call *call = plan->steps[s].call;
        for (int i = 0; plan->steps[s].pair != NULL && i < call->in_count + call->out_count; i++) {
            const struct gd_value *value = i < call->in_count ? call->in[i] : call->out[i - call->in_count];
            int block = value != NULL ? plan->slots[value->index].block : -1;
            if (block >= 0 && plan->blocks[block].last < s + 1)
                plan->blocks[block].last = s + 1;
        }
    }
}

static void assign_blocks(struct gd_plan *plan)
{
    size_t most = (size_t)plan->step_count * (GD_CALL_OUTPUTS_MAX + 1) + 1;
    plan->blocks = gd_alloc_array(most, sizeof(struct gd_block));
    plan->first_in_block = gd_alloc_array(most, sizeof(int));
    plan->slabs = gd_slabs_create(plan->value_count);
    find_last_uses(plan);
    for (int s = 0; s < plan->step_count; s++)
        assign_step(plan, s);
    keep_for_pairs(plan);
    gd_slabs_destroy(plan->slabs);
    plan->layout_is_old = true;
}

/* ---- weights ---- */

static bool prepare_weights(struct gd_plan *plan, struct gd_error *err)
{
    unsigned *priced = gd_alloc_array((size_t)plan->value_count + 1, sizeof(unsigned)); /* bit per use */
    enum gd_dtype compute = gd_graph_act(plan->graph);
    bool ok = true;
    for (int s = 0; ok && s < plan->step_count; s++) {
        const struct gd_call *call = plan->steps[s].call;
        for (int j = 0; ok && j < call->in_count; j++) {
            if (call->in[j] == NULL || call->in[j]->weight == NULL)
                continue;
            enum gd_weight_use use = call->op->weight_use ? call->op->weight_use(call, j) : GD_WEIGHT_VECTOR;
            unsigned bit = 1u << use;
            if (priced[call->in[j]->index] & bit)
                continue;
            priced[call->in[j]->index] |= bit;
            gd_layout_cost_add(&plan->layouts, call->in[j]->weight, use, compute);
            if (!plan->dry)
                ok = gd_weight_prepare(call->in[j]->weight, use, compute, err);
        }
    }
    gd_free(priced);
    return ok;
}

/* ---- life ---- */

static bool check_outputs(struct gd_plan *plan, struct gd_value *const *outputs, int output_count, struct gd_error *err)
{
    if (!gd_graph_ok(plan->graph, err))
        return false;
    for (int i = 0; i < output_count; i++) {
        if (outputs[i] == NULL || outputs[i]->kind != GD_VALUE_COMPUTED)
            return gd_fail(err, GD_INVALID, "plan: output %d is %s: only computed values can be outputs", i,
                           outputs[i] ? outputs[i]->name : "absent");
        if (outputs[i]->group != NULL)
            return gd_fail(err, GD_INVALID, "plan: output %s has the rows of one expert", outputs[i]->name);
        plan->slots[outputs[i]->index].is_output = true;
    }
    return true;
}

bool gd_plan_create(struct gd_plan **out, struct gd_graph *graph, struct gd_value *const *outputs, int output_count,
                    bool dry, struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_plan *plan = gd_alloc(sizeof(*plan));
    plan->graph = graph;
    plan->dry = dry;
    plan->value_count = gd_graph_value_count(graph);
    plan->slots = gd_alloc_array((size_t)plan->value_count + 1, sizeof(struct slot));
    for (int i = 0; i < plan->value_count; i++)
        plan->slots[i] = (struct slot){.block = -1, .next = -1};
    bool ok = check_outputs(plan, outputs, output_count, err) && list_steps(plan, outputs, output_count, err);
    if (ok) {
        pair_steps(plan);
        assign_blocks(plan);
        ok = prepare_weights(plan, err);
    }
    if (!ok) {
        gd_plan_destroy(plan);
        return false;
    }
    if (gd_graph_one(graph) != NULL)
        gd_plan_bind(plan, (struct gd_value *)gd_graph_one(graph), (void *)&one);
    *out = plan;
    return true;
}

void gd_plan_destroy(struct gd_plan *plan)
{
    if (plan == NULL)
        return;
    gd_plan_forget(plan);
    gd_plan_free_staging(plan);
    for (int i = 0; i < plan->value_count; i++)
        gd_free(plan->slots[i].read);
    gd_free(plan->blocks);
    gd_free(plan->first_in_block);
    gd_free(plan->steps);
    gd_free(plan->slots);
    gd_free(plan);
}

/* ---- where things are ---- */

/* Outputs bound to memory that kernels reach need no room. A layout that would need more than the one already promised is not taken. */
void gd_plan_refresh_layout(struct gd_plan *plan)
{
    if (!plan->layout_is_old)
        return;
    plan->layout_is_old = false;
    bool first = plan->arena_bytes == 0;
    for (int i = 0; i < plan->value_count; i++)
        if (plan->slots[i].address != NULL && plan->slots[i].block >= 0)
            plan->blocks[plan->slots[i].block].size_bytes = 0;
    gd_layout_blocks(plan->blocks, plan->block_count, first ? SIZE_MAX : plan->arena_bytes, &plan->arena_bytes);
    plan->args_are_old = true;
}

size_t gd_plan_arena_bytes(const struct gd_plan *plan)
{
    gd_plan_refresh_layout((struct gd_plan *)plan);
    return plan->arena_bytes;
}

size_t gd_plan_share_bytes(const struct gd_plan *plan, int begin, int end)
{
    size_t *all = gd_alloc_array((size_t)plan->step_count + 2, sizeof(size_t));
    size_t *part = gd_alloc_array((size_t)plan->step_count + 2, sizeof(size_t));
    for (int b = 0; b < plan->block_count; b++) { /* differences from step to step; sums wrap and come out right */
        const struct gd_block *block = &plan->blocks[b];
        int index = plan->steps[block->first].call->index;
        int last = block->last < plan->step_count ? block->last : plan->step_count - 1;
        all[block->first] += block->size_bytes;
        all[last + 1] -= block->size_bytes;
        if (index >= begin && index < end) {
            part[block->first] += block->size_bytes;
            part[last + 1] -= block->size_bytes;
        }
    }
    size_t most = 0, share = 0, live = 0, held = 0;
    for (int s = 0; s < plan->step_count; s++) {
        live += all[s];
        held += part[s];
        if (live > most) {
            most = live;
            share = held;
        }
    }
    gd_free(all);
    gd_free(part);
    return share;
}

size_t gd_plan_table_bytes(const struct gd_plan *plan)
{
    int calls = gd_graph_call_count(plan->graph);
    return (size_t)plan->step_count * (sizeof(struct step) + (GD_CALL_OUTPUTS_MAX + 1) * sizeof(struct gd_block)) +
           (size_t)plan->value_count * (sizeof(struct slot) + sizeof(struct gd_value) + 32) + (size_t)calls * sizeof(struct gd_call);
}

size_t gd_plan_weight_bytes(const struct gd_plan *plan)
{
    return gd_layout_cost_sum(&plan->layouts);
}

const struct gd_layout_cost *gd_plan_layouts(const struct gd_plan *plan)
{
    return &plan->layouts;
}

void gd_plan_attach(struct gd_plan *plan, void *arena)
{
    assert(((uintptr_t)arena & 63) == 0);
    plan->arena = arena;
    plan->args_are_old = true;
}

void gd_plan_bind(struct gd_plan *plan, struct gd_value *value, void *data)
{
    assert(value->index < plan->value_count);
    struct slot *slot = &plan->slots[value->index];
    assert(value->kind == GD_VALUE_INPUT || value->kind == GD_VALUE_PARAM || (slot->is_output && gd_plan_whole(value) == NULL));
    if (slot->bound == data)
        return;
    void *address = value->dtype == GD_HANDLE || plan->dry ? data : gd_device_address(data);
    plan->layout_is_old |= slot->is_output && slot->address == NULL && address != NULL;
    plan->args_are_old |= slot->address != address || slot->bound == NULL;
    slot->bound = data;
    slot->address = address;
}

void *gd_plan_address(const struct gd_plan *plan, const struct gd_value *value)
{
    gd_plan_refresh_layout((struct gd_plan *)plan);
    const struct slot *slot = &plan->slots[value->index];
    if (slot->address != NULL)
        return slot->address;
    if (slot->bound != NULL && slot->block < 0)
        return plan->staged_device + slot->staged;
    const struct gd_value *whole = gd_plan_whole(value);
    if (whole != NULL) {
        char *data = gd_plan_address(plan, whole);
        return data != NULL ? data + slot->offset : NULL;
    }
    return slot->block >= 0 && plan->arena != NULL ? plan->arena + plan->blocks[slot->block].offset + slot->offset : NULL;
}

