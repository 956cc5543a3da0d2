#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"
#include "engine/tensor/graph_internal.h"
#include "engine/tensor/plan_internal.h"
#include "engine/tensor/slabs.h"
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const void *gd_plan_read(struct gd_plan *plan, const struct gd_value *value, struct gd_error *err)
{
    void *address = gd_plan_address(plan, value);
    if (!gd_backend()->own_memory)
        return address;
    struct slot *slot = &plan->slots[value->index];
    if (slot->bound != NULL && slot->address == NULL)
        return slot->bound;
    if (slot->read != NULL && slot->read_run == plan->runs)
        return slot->read;
    if (slot->read == NULL)
        slot->read = gd_alloc(gd_value_bytes(value) + 1);
    slot->read_run = plan->runs;
    return gd_device_read(slot->read, address, gd_value_bytes(value), err) ? slot->read : NULL;
}

void gd_plan_forget(struct gd_plan *plan)
{
    if (plan->recording != NULL)
        gd_backend()->forget(plan->recording);
    plan->recording = NULL;
}

void gd_plan_free_staging(struct gd_plan *plan)
{
    if (plan->staged_room == 0)
        return;
    gd_backend()->free_staging(plan->staged_host, plan->staged_room);
    gd_device_free(plan->staged_device, plan->staged_room);
    plan->staged_host = plan->staged_device = NULL;
    plan->staged_room = 0;
}

/* ---- what is staged: bound inputs that the device cannot reach, and what kernels read of handles ---- */

static bool same_handles(const struct gd_call *a, const struct gd_call *b)
{
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++) {
        const struct gd_value *x = j < a->in_count ? a->in[j] : NULL, *y = j < b->in_count ? b->in[j] : NULL;
        bool xs = x != NULL && x->dtype == GD_HANDLE, ys = y != NULL && y->dtype == GD_HANDLE;
        if (xs != ys || (xs && x != y))
            return false;
    }
    return true;
}

static void place_handles(struct gd_plan *plan, int s, size_t *at)
{
    struct step *step = &plan->steps[s];
    step->staged = SIZE_MAX;
    step->stages = false;
    if (step->op.staged_bytes == NULL)
        return;
    size_t bytes = step->staged_bytes = step->op.staged_bytes(&step->args);
    for (int i = 0; i < s; i++) {
        const struct step *other = &plan->steps[i];
        if (other->stages && other->op.stage == step->op.stage && same_handles(other->call, step->call) &&
            other->staged_bytes == bytes) {
            step->staged = other->staged;
            return;
        }
    }
    step->staged = *at;
    step->stages = true;
    *at += (bytes + GD_BLOCK_ALIGN - 1) / GD_BLOCK_ALIGN * GD_BLOCK_ALIGN;
}

/* What a handle holds has outgrown the room for it. */
static bool handles_changed(const struct gd_plan *plan)
{
    bool changed = false;
    for (int s = 0; !plan->args_are_old && s < plan->step_count; s++)
        changed |= plan->steps[s].stages && plan->steps[s].op.staged_bytes(&plan->steps[s].args) != plan->steps[s].staged_bytes;
    return changed;
}

static bool reserve_staging(struct gd_plan *plan, struct gd_error *err)
{
    if (plan->staged_bytes <= plan->staged_room)
        return true;
    gd_plan_free_staging(plan);
    void *host = NULL, *device = NULL;
    if (!gd_backend()->alloc_staging(&host, plan->staged_bytes, err))
        return false;
    if (!gd_device_alloc(&device, plan->staged_bytes, "inputs of a plan", err)) {
        gd_backend()->free_staging(host, plan->staged_bytes);
        return false;
    }
    plan->staged_host = host;
    plan->staged_device = device;
    plan->staged_room = plan->staged_bytes;
    return true;
}

static size_t place_inputs(struct gd_plan *plan)
{
    size_t at = 0;
    for (int i = 0; i < plan->value_count; i++) {
        struct slot *slot = &plan->slots[i];
        if (slot->bound == NULL || slot->address != NULL || slot->block >= 0)
            continue;
        slot->staged = at;
        at += (gd_value_bytes(gd_graph_value_at(plan->graph, i)) + GD_BLOCK_ALIGN - 1) / GD_BLOCK_ALIGN * GD_BLOCK_ALIGN;
    }
    return at;
}

static bool stage(struct gd_plan *plan, struct gd_error *err)
{
    for (int i = 0; i < plan->value_count; i++) {
        const struct slot *slot = &plan->slots[i];
        if (slot->bound != NULL && slot->address == NULL && slot->block < 0)
            memcpy(plan->staged_host + slot->staged, slot->bound, gd_value_bytes(gd_graph_value_at(plan->graph, i)));
    }
    for (int s = 0; s < plan->step_count; s++) {
        struct step *step = &plan->steps[s];
        if (step->stages && !step->op.stage(&step->args, plan->staged_host + step->staged, err)) {
            gd_error_context(err, "op '%s'", step->call->out[0]->name);
            return false;
        }
    }
    return true;
}

/* ---- running ---- */

static struct gd_tensor view(const struct gd_plan *plan, const struct gd_value *value)
{
    struct gd_tensor tensor = {.dtype = value->dtype, .rank = value->rank, .data = gd_plan_address(plan, value)};
    memcpy(tensor.shape, value->shape, sizeof(tensor.shape));
    return tensor;
}

/* The value between a pair's steps, where nobody else reads it. */
static bool is_between(const struct gd_plan *plan, int s)
{
    const struct slot *slot = &plan->slots[plan->steps[s].call->out[0]->index];
    return plan->steps[s].pair != NULL && !slot->is_output && slot->last_use <= s + 1;
}

static bool fill_args(struct gd_plan *plan, struct gd_error *err)
{
    if (plan->arena == NULL && plan->arena_bytes > 0)
        return gd_fail(err, GD_INTERNAL, "plan: run before gd_plan_attach");
    gd_plan_forget(plan);
    plan->grouped = false;
    size_t staged = place_inputs(plan);
    for (int s = 0; s < plan->step_count; s++) {
        struct step *step = &plan->steps[s];
        const struct gd_call *call = step->call;
        step->args.params = &call->params;
        step->args.scratch = step->scratch_block >= 0 ? plan->arena + plan->blocks[step->scratch_block].offset : NULL;
        for (int j = 0; j < call->in_count; j++) {
            if (call->in[j] == NULL)
                continue;
            const struct slot *slot = &plan->slots[call->in[j]->index];
            if (slot->bound == NULL && call->in[j]->weight == NULL && slot->block < 0 && gd_plan_whole(call->in[j]) == NULL)
                return gd_fail(err, GD_INTERNAL, "plan: '%s' is not bound", call->in[j]->name);
            step->args.in[j] = (struct gd_tensor){.dtype = call->in[j]->dtype, .rank = call->in[j]->rank,
                                                  .data = call->in[j]->dtype == GD_HANDLE ? slot->bound : NULL};
            memcpy(step->args.in[j].shape, call->in[j]->shape, sizeof(step->args.in[j].shape));
        }
        place_handles(plan, s, &staged);
    }
    plan->staged_bytes = staged;
    if (!reserve_staging(plan, err))
        return false;
    for (int s = 0; s < plan->step_count; s++) {
        struct step *step = &plan->steps[s];
        const struct gd_call *call = step->call;
        for (int j = 0; j < call->in_count; j++) {
            if (call->in[j] == NULL)
                continue;
            step->args.in[j] = view(plan, call->in[j]);
            step->args.weight[j] = call->in[j]->weight;
            step->grouped |= call->in[j]->group != NULL;
        }
        for (int k = 0; k < call->out_count; k++) {
            step->args.out[k] = view(plan, call->out[k]);
            step->grouped |= call->out[k]->group != NULL;
        }
        if (is_between(plan, s))
            step->args.out[0].data = NULL;
        step->args.staged = step->staged != SIZE_MAX ? plan->staged_device + step->staged : NULL;
        plan->grouped |= step->grouped;
    }
    plan->args_are_old = false;
    return true;
}

/* The rows of a value's group, as they are now. */
static bool narrow(struct gd_plan *plan, const struct gd_value *value, struct gd_tensor *tensor, struct gd_error *err)
{
    if (value == NULL || value->group == NULL)
        return true;
    const int32_t *offsets = gd_plan_read(plan, value->group->offsets, err); /* brought to the host once for all that have such rows */
    if (offsets == NULL)
        return false;
    int64_t begin = offsets[value->group->index], end = offsets[value->group->index + 1], all = value->group->order->shape[0];
    if (begin < 0 || end < begin || end > all || end - begin > value->group->rows_max)
        return gd_fail(err, GD_INTERNAL, "plan: '%s' has rows %" PRId64 " to %" PRId64 " of %" PRId64, value->name, begin, end, all);
    tensor->shape[0] = (end - begin) * (value->shape[0] / value->group->rows_max);
    tensor->data = (char *)gd_plan_address(plan, value) + (size_t)begin * gd_slab_row_bytes(value);
    return true;
}

/* *idle: it works row by row, and there are none. */
static bool narrow_step(struct gd_plan *plan, struct step *step, bool *idle, struct gd_error *err)
{
    const struct gd_call *call = step->call;
    for (int j = 0; j < call->in_count; j++)
        if (!narrow(plan, call->in[j], &step->args.in[j], err))
            return false;
    for (int k = 0; k < call->out_count; k++)
        if (!narrow(plan, call->out[k], &step->args.out[k], err))
            return false;
    *idle = call->op->groups == GD_GROUPS_KEPT && step->args.out[0].shape[0] == 0;
    return true;
}

static bool is_finite_at(const struct gd_tensor *tensor, int64_t i, float *value)
{
    *value = tensor->dtype == GD_F32 ? ((const float *)tensor->data)[i] : gd_bf16_to_f32(((const uint16_t *)tensor->data)[i]);
    return isfinite(*value);
}

static bool check_finite(const struct step *step, struct gd_error *err)
{
    bool ok = true;
    for (int k = 0; ok && k < step->call->out_count; k++) {
        struct gd_tensor out = step->args.out[k];
        int64_t count = gd_tensor_count(&out);
        bool finite = false;
        if ((out.dtype != GD_F32 && out.dtype != GD_BF16) || out.data == NULL)
            continue;
        if (out.dtype == GD_F32 && (!gd_backend()->vector_all_finite(&finite, out.data, count, err) || finite))
            continue;
        void *copy = gd_alloc(gd_dtype_bytes(out.dtype, count) + 1);
        ok = gd_device_read(copy, out.data, gd_dtype_bytes(out.dtype, count), err);
        out.data = copy;
        float value;
        for (int64_t i = 0; ok && i < count; i++)
            if (!is_finite_at(&out, i, &value))
                ok = gd_fail(err, GD_INTERNAL, "op '%s' made %s[%" PRId64 "] = %g", step->call->op->name, step->call->out[k]->name, i,
                             (double)value);
        gd_free(copy);
    }
    return ok;
}

/* GRAFTD_DEBUG=2 and above. */
static bool wants_times(void)
{
    const char *level = getenv("GRAFTD_DEBUG");
    return level != NULL && atoi(level) >= 2;
}

static void print_times(const struct gd_plan *plan, const double *seconds)
{
    double total = 0.0;
    for (int s = 0; s < plan->step_count; s++)
        total += seconds[s];
    fprintf(stderr, "plan of %d calls, %.3f ms\n", plan->step_count, total * 1e3);
    for (int i = 0; i < gd_op_count; i++) {
        double sum = 0.0;
        int count = 0;
        for (int s = 0; s < plan->step_count; s++)
            if (plan->steps[s].call->op == gd_op_table[i]) {
                sum += seconds[s];
                count++;
            }
        if (count > 0)
            fprintf(stderr, "  %-18s %5d calls %10.3f ms %5.1f %%\n", gd_op_table[i]->name, count, sum * 1e3,
                    100.0 * sum / total);
    }
}

static bool run_step(struct gd_plan *plan, struct step *step, struct gd_error *err)
{
    bool idle = step->paired;
    if (step->grouped && !narrow_step(plan, step, &idle, err))
        return false;
    if (idle || (step->pair != NULL ? step->pair(&step->args, &step[1].args, err) : step->op.run(&step->args, err)))
        return true;
    gd_error_context(err, "op '%s'", step->call->out[0]->name);
    return false;
}

static bool run_alone(struct gd_plan *plan, struct step *step, struct gd_error *err);

/* One step after the other, each done before the next begins. */
static bool run_steps(struct gd_plan *plan, const struct gd_run_options *options, struct gd_error *err)
{
    double *seconds = wants_times() ? gd_alloc_array((size_t)plan->step_count + 1, sizeof(double)) : NULL;
    bool ok = true;
    for (int s = 0; ok && s < plan->step_count; s++) {
        struct step *step = &plan->steps[s];
        double start = seconds ? gd_time_monotonic() : 0.0;
        ok = gd_backend()->own_memory ? run_alone(plan, step, err) : run_step(plan, step, err);
        if (seconds)
            seconds[s] = gd_time_monotonic() - start;
        if (ok && options->check_finite)
            ok = check_finite(step, err);
        if (ok && options->between != NULL && !options->between(options->context))
            ok = gd_fail(err, GD_CANCELLED, "stopped between two ops");
    }
    if (ok && seconds)
        print_times(plan, seconds);
    gd_free(seconds);
    return ok;
}

/* ---- on a device with memory of its own: all steps are launched, then waited for ---- */

struct alone {
    struct gd_plan *plan;
    struct step *step;
};

static bool launch_alone(void *context, struct gd_error *err)
{
    struct alone *alone = context;
    return run_step(alone->plan, alone->step, err);
}

static bool run_alone(struct gd_plan *plan, struct step *step, struct gd_error *err)
{
    struct alone alone = {plan, step};
    struct gd_backend_run run = {.staged_device = plan->staged_device, .staged_host = plan->staged_host,
                                 .staged_bytes = plan->staged_bytes, .launch = launch_alone, .context = &alone};
    return gd_backend()->run(&run, err);
}

static bool launch_all(void *context, struct gd_error *err)
{
    struct gd_plan *plan = context;
    for (int s = 0; s < plan->step_count; s++)
        if (!run_step(plan, &plan->steps[s], err))
            return false;
    return true;
}

static bool fetch_outputs(struct gd_plan *plan, struct gd_error *err)
{
    for (int i = 0; i < plan->value_count; i++) {
        const struct slot *slot = &plan->slots[i];
        const struct gd_value *value = gd_graph_value_at(plan->graph, i);
        if (slot->is_output && slot->bound != NULL && slot->address == NULL &&
            !gd_device_read(slot->bound, gd_plan_address(plan, value), gd_value_bytes(value), err))
            return false;
    }
    return true;
}

static bool run_there(struct gd_plan *plan, const struct gd_run_options *options, struct gd_error *err)
{
    if (!stage(plan, err))
        return false;
    struct gd_backend_run run = {
        .staged_device = plan->staged_device, .staged_host = plan->staged_host, .staged_bytes = plan->staged_bytes,
        .recording = plan->grouped ? NULL : &plan->recording, .launch = launch_all, .context = plan,
        .between = options->between, .between_context = options->context,
    };
    bool ok = options->check_finite || wants_times() ? run_steps(plan, options, err) : gd_backend()->run(&run, err);
    return ok && fetch_outputs(plan, err);
}

bool gd_plan_run(struct gd_plan *plan, const struct gd_run_options *options, struct gd_error *err)
{
    static const struct gd_run_options none = {0};
    if (options == NULL)
        options = &none;
    assert(!plan->dry);
    gd_plan_refresh_layout(plan);
    plan->runs++;
    plan->args_are_old |= handles_changed(plan);
    if (plan->args_are_old && !fill_args(plan, err))
        return false;
    return gd_backend()->own_memory ? run_there(plan, options, err) : run_steps(plan, options, err);
}
