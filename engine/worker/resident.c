#include "engine/worker/resident.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "engine/base/memory.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>

void gd_residents_init(struct gd_residents *residents, size_t cache_bytes)
{
    memset(residents, 0, sizeof(*residents));
    residents->cache_bytes = cache_bytes;
}

static void graft_drop(struct gd_resident *resident, int index)
{
    gd_graft_destroy(resident->grafts[index].graft);
    gd_free(resident->grafts[index].path);
    gd_free(resident->grafts[index].task);
    resident->grafts[index] = resident->grafts[--resident->graft_count];
}

static void resident_release(struct gd_resident *resident)
{
    gd_infer_destroy(resident->infer);
    gd_readout_destroy(resident->readout);
    while (resident->graft_count > 0)
        graft_drop(resident, 0);
    gd_model_destroy(resident->model);
    memset(resident, 0, sizeof(*resident));
}

void gd_residents_release(struct gd_residents *residents)
{
    while (residents->count > 0)
        resident_release(&residents->entry[--residents->count]);
}

static bool idle(const struct gd_resident *resident)
{
    return resident->holders == 0 && (resident->infer == NULL || !gd_infer_busy(resident->infer));
}

static void evict(struct gd_residents *residents, int index)
{
    gd_log_info("model", "model_id=%s state=evicted", residents->entry[index].model->id);
    resident_release(&residents->entry[index]);
    residents->entry[index] = residents->entry[--residents->count];
    memset(&residents->entry[residents->count], 0, sizeof(residents->entry[0]));
}

static bool make_room(struct gd_residents *residents, struct gd_error *err)
{
    if (residents->count < GD_RESIDENT_MODELS_MAX)
        return true;
    int oldest = -1;
    for (int i = 0; i < residents->count; i++)
        if (idle(&residents->entry[i]) && (oldest < 0 || residents->entry[i].used < residents->entry[oldest].used))
            oldest = i;
    if (oldest < 0)
        return gd_fail(err, GD_BUSY, "%d base models are in use on this worker, its most: try again when one is idle",
                       GD_RESIDENT_MODELS_MAX);
    evict(residents, oldest);
    return true;
}

bool gd_residents_model(struct gd_residents *residents, const char *id, const char *path,
                        enum gd_quantization quantization, struct gd_resident **out, struct gd_error *err)
{
    for (int i = 0; i < residents->count; i++) {
        if (strcmp(residents->entry[i].model->path, path) == 0 && residents->entry[i].model->quantization == quantization) {
            *out = &residents->entry[i];
            (*out)->used = ++residents->clock;
            return true;
        }
    }
    struct gd_model *model = NULL;
    int plain = 0;
    if (!make_room(residents, err) || !gd_model_open(&model, id, path, err))
        return false;
    if (!gd_model_quantise(model, quantization, &plain, err)) {
        gd_model_destroy(model);
        return false;
    }
    gd_log_info("model", "model_id=%s state=open architecture=%s parameters=%lld quantization=%s plain_weights=%d", model->id,
                model->config.architecture, (long long)model->parameter_count, gd_quantization_names[quantization], plain);
    *out = &residents->entry[residents->count++];
    **out = (struct gd_resident){.model = model, .used = ++residents->clock};
    return true;
}

void gd_residents_hold(struct gd_residents *residents, const struct gd_model *model, int change)
{
    for (int i = 0; i < residents->count; i++)
        if (residents->entry[i].model == model)
            residents->entry[i].holders += change;
}

/* The engine that was used longest ago among those that nobody waits for. */
static struct gd_resident *idle_engine(struct gd_residents *residents)
{
    struct gd_resident *oldest = NULL;
    for (int i = 0; i < residents->count; i++) {
        struct gd_resident *one = &residents->entry[i];
        if (one->infer != NULL && !gd_infer_busy(one->infer) && (oldest == NULL || one->used < oldest->used))
            oldest = one;
    }
    return oldest;
}

static bool evict_engine(struct gd_residents *residents)
{
    struct gd_resident *victim = idle_engine(residents);
    if (victim == NULL)
        return false;
    gd_log_info("model", "model_id=%s state=engine_evicted", victim->model->id);
    gd_infer_destroy(victim->infer);
    victim->infer = NULL;
    return true;
}

static bool evict_model(struct gd_residents *residents, const struct gd_model *keep)
{
    int oldest = -1;
    for (int i = 0; i < residents->count; i++)
        if (residents->entry[i].model != keep && idle(&residents->entry[i]) &&
            (oldest < 0 || residents->entry[i].used < residents->entry[oldest].used))
            oldest = i;
    if (oldest >= 0)
        evict(residents, oldest);
    return oldest >= 0;
}

bool gd_residents_make_room(struct gd_residents *residents, const struct gd_model *keep, size_t bytes)
{
    while (gd_memory_room() < bytes)
        if (!evict_engine(residents) && !evict_model(residents, keep))
            return false;
    return true;
}

/* An engine with less is of no use. */
static const struct gd_infer_load least_load = {.rows = GD_INFER_ROWS_MAX, .logits = GD_INFER_ROWS_MAX, .tokens = 2048};

/* Its cache takes what is left beside jobs; an idle engine gives way. */
bool gd_residents_infer(struct gd_residents *residents, struct gd_resident *resident, struct gd_error *err)
{
    struct gd_infer_need least;
    if (resident->infer != NULL)
        return true;
    if (gd_memory_limit() == SIZE_MAX)
        return gd_infer_create(&resident->infer, resident->model, residents->cache_bytes, err);
    if (!gd_infer_estimate(resident->model, residents->cache_bytes, &least_load, &least, err))
        return false;
    size_t packing = gd_dtype_bytes(GD_F32, gd_tensor_count(gd_weight_source(resident->model->head))); /* a weight on its way into a layout */
    size_t fixed = least.forward + gd_layout_cost_sum(&least.few) + packing;
    while (gd_memory_room() < fixed + residents->cache_bytes && evict_engine(residents))
        ;
    size_t room = gd_memory_room();
    if (room < fixed + least.kv)
        return gd_fail(err, GD_BUSY, "serving '%s' needs %.0f MiB and %.0f are left beside what runs: try again later, or raise --memory-limit",
                       resident->model->id, (double)(fixed + least.kv) / 1048576, (double)room / 1048576);
    size_t cache = room - fixed < residents->cache_bytes ? room - fixed : residents->cache_bytes;
    return gd_infer_create(&resident->infer, resident->model, cache, err);
}

bool gd_residents_readout(struct gd_residents *residents, struct gd_resident *resident, struct gd_error *err)
{
    return resident->readout != NULL || gd_readout_create(&resident->readout, resident->model, err);
}

static bool graft_idle(const struct gd_resident *resident, int index)
{
    return resident->infer == NULL || gd_infer_graft_users(resident->infer, resident->grafts[index].graft) == 0;
}

static bool same_task(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

bool gd_residents_graft(struct gd_residents *residents, struct gd_resident *resident, const char *folder, const char *task,
                        struct gd_graft **out, struct gd_error *err)
{
    for (int i = 0; i < resident->graft_count; i++) {
        if (strcmp(resident->grafts[i].path, folder) == 0 && same_task(resident->grafts[i].task, task)) {
            resident->grafts[i].used = ++residents->clock;
            *out = resident->grafts[i].graft;
            return true;
        }
    }
    if (resident->graft_count == GD_RESIDENT_GRAFTS_MAX) {
        int oldest = -1;
        for (int i = 0; i < resident->graft_count; i++)
            if (graft_idle(resident, i) && (oldest < 0 || resident->grafts[i].used < resident->grafts[oldest].used))
                oldest = i;
        if (oldest < 0)
            return gd_fail(err, GD_BUSY, "%d adapters of this base are in use, the most at a time: try again", GD_RESIDENT_GRAFTS_MAX);
        graft_drop(resident, oldest);
    }
    struct gd_graft *graft = NULL;
    if (!gd_graft_load(&graft, resident->model, folder, err))
        return false;
    if (!gd_graft_wear_task(graft, task, err) || !gd_graft_prepare(graft, err)) {
        gd_graft_destroy(graft);
        return false;
    }
    resident->grafts[resident->graft_count++] =
        (struct gd_resident_graft){.path = gd_strdup(folder), .task = gd_strdup(task), .graft = graft, .used = ++residents->clock};
    *out = graft;
    return true;
}

void gd_residents_forget(struct gd_residents *residents, const char *folder)
{
    for (int i = 0; i < residents->count; i++) {
        struct gd_resident *resident = &residents->entry[i];
        for (int j = resident->graft_count - 1; j >= 0; j--) { /* the last one takes the place of one that goes */
            if (strcmp(resident->grafts[j].path, folder) != 0)
                continue;
            if (graft_idle(resident, j)) {
                graft_drop(resident, j);
            } else { /* running requests keep the version they began with; nobody finds it any more */
                resident->grafts[j].path[0] = '\0';
                resident->grafts[j].used = 0;
            }
        }
    }
}

bool gd_residents_busy(const struct gd_residents *residents)
{
    for (int i = 0; i < residents->count; i++)
        if (residents->entry[i].infer != NULL && gd_infer_busy(residents->entry[i].infer))
            return true;
    return false;
}

void gd_residents_turn(struct gd_residents *residents)
{
    for (int i = 0; i < residents->count; i++) {
        struct gd_infer *infer = residents->entry[i].infer;
        struct gd_error err = {0};
        if (infer != NULL && gd_infer_busy(infer) && !gd_infer_turn(infer, &err))
            gd_log_error("infer", "model_id=%s error=%s", residents->entry[i].model->id, err.message);
    }
}

void gd_residents_stats(const struct gd_residents *residents, struct gd_infer_stats *sum)
{
    memset(sum, 0, sizeof(*sum));
    for (int i = 0; i < residents->count; i++) {
        struct gd_infer_stats one;
        for (int j = 0; j < residents->entry[i].graft_count; j++)
            sum->adapter_bytes += (int64_t)gd_graft_bytes(residents->entry[i].grafts[j].graft);
        if (residents->entry[i].infer == NULL)
            continue;
        gd_infer_get_stats(residents->entry[i].infer, &one);
        sum->running += one.running;
        sum->waiting += one.waiting;
        sum->pages_used += one.pages_used;
        sum->pages_total += one.pages_total;
        sum->prompt_tokens += one.prompt_tokens;
        sum->completion_tokens += one.completion_tokens;
        sum->cached_tokens += one.cached_tokens;
        sum->turns += one.turns;
    }
}
