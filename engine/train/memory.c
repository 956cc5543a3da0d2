#include "engine/train/memory.h"

#include "engine/base/alloc.h"
#include "engine/base/memory.h"
#include "engine/tensor/device.h"
#include "engine/tensor/few_rows.h"
#include "engine/train/leaves.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define TILE_BYTES ((size_t)9 << 20)       /* quantised weights are unpacked into it */
#define PASSES_KEPT 3                      /* graphs of other bucket sizes beside the largest */
#define MIB(bytes) ((double)(bytes) / 1048576)

enum gd_dtype gd_job_act(const struct gd_job_spec *spec)
{
    return strcmp(spec->precision, "f32") == 0 ? GD_F32 : strcmp(spec->precision, "bf16") == 0 ? GD_BF16 : gd_device()->compute;
}

const struct gd_objective *gd_job_objective(const struct gd_job_spec *spec)
{
    return gd_objective_find(spec->classes.on ? "classification" : spec->adapter.score ? "reward" : spec->preference.term_count > 0 ? "preference" : "supervised");
}

int gd_memory_largest(const struct gd_job_spec *spec, const struct gd_memory_shape *shape)
{
    int64_t step = (int64_t)spec->batch_size * shape->longest, largest = step < shape->step_tokens ? step : shape->step_tokens;
    largest = largest < spec->tokens_per_batch ? largest : spec->tokens_per_batch;
    return shape->longest > largest ? shape->longest : (int)largest;
}

/* ---- the base ---- */

/* Its weights as the spec's quantization keeps them. While a plan is made of a model that keeps them plain, they pass for
 * quantised. */
static void pretend(const struct gd_model *model, enum gd_quantization wanted, bool on)
{
    const struct gd_site *sites;
    int count = gd_model_linear_sites(model, &sites);
    for (int i = 0; i < count && wanted != model->quantization; i++) {
        enum gd_dtype dtype = wanted == GD_QUANTIZATION_NF4 ? GD_NF4 : gd_weight_source(sites[i].weight)->dtype;
        bool whole = wanted != GD_QUANTIZATION_NONE && gd_dtype_block(dtype) > 1 && sites[i].in % gd_dtype_block(dtype) == 0;
        gd_weight_pretend_quantised(sites[i].weight, on && whole);
    }
}

static void add_base(struct gd_job_memory *memory, const struct gd_model *model, enum gd_quantization wanted)
{
    for (int i = 0; i < model->weight_count; i++) {
        const struct gd_weight *weight = model->weights[i];
        const struct gd_tensor *source = gd_weight_source(weight);
        size_t plain = gd_dtype_bytes(source->dtype, gd_tensor_count(source));
        bool quantised = gd_weight_quantised(weight);
        if (model->quantization == wanted || !quantised)
            memory->part[GD_MEMORY_WEIGHTS] += gd_weight_prepared_bytes(weight);
        else if (wanted == GD_QUANTIZATION_NF4)
            memory->part[GD_MEMORY_WEIGHTS] += gd_dtype_bytes(GD_NF4, gd_tensor_count(source));
        if (quantised && wanted == GD_QUANTIZATION_FILE)
            memory->part[GD_MEMORY_MODEL_FILE] += plain;
        if (!gd_weight_is_mapped(weight) && source->dtype != GD_NF4) /* a copy in another order than the file's */
            memory->part[GD_MEMORY_WEIGHTS] += plain;
    }
}

/* ---- the plan ---- */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Of a device with memory of its own only that is counted. */
static void add_up(struct gd_job_memory *memory)
{
    static const enum gd_memory_part of_host[] = {GD_MEMORY_MODEL_FILE, GD_MEMORY_DATA, GD_MEMORY_PROCESS};
    for (size_t i = 0; gd_memory_of_device() && i < GD_COUNT(of_host); i++)
        memory->part[of_host[i]] = 0;
    memory->total = larger(memory->part[GD_MEMORY_ACTIVATIONS] + memory->part[GD_MEMORY_HEAD],
                           memory->part[GD_MEMORY_EVALUATION] + memory->part[GD_MEMORY_KV_CACHE]);
    for (int i = 0; i < GD_MEMORY_PARTS; i++)
        if (i != GD_MEMORY_ACTIVATIONS && i != GD_MEMORY_HEAD && i != GD_MEMORY_EVALUATION && i != GD_MEMORY_KV_CACHE)
            memory->total += memory->part[i];
}

static bool add_passes(struct gd_job_memory *memory, struct gd_passes *passes, const struct gd_memory_shape *shape,
                       const struct gd_memory_room *room, int largest, struct gd_error *err)
{
    struct gd_pass_need train, valid = {0}, surveyed = {0};
    passes->recompute = memory->checkpointing == GD_CHECKPOINTING_ON;
    passes->narrow = memory->checkpointing == GD_CHECKPOINTING_FEED_FORWARD;
    if (!gd_passes_estimate(passes, largest, true, &train, err) ||
        (shape->valid > 0 && !gd_passes_estimate(passes, shape->valid, false, &valid, err)) ||
        (shape->surveyed > 0 && !gd_passes_estimate(passes, shape->surveyed, false, &surveyed, err)))
        return false;
    struct gd_pass_need *most = surveyed.arena > train.arena ? &surveyed : &train;
    memory->part[GD_MEMORY_HEAD] = most->head;
    memory->part[GD_MEMORY_ACTIVATIONS] = most->arena - most->head;
    memory->part[GD_MEMORY_EVALUATION] = larger(memory->part[GD_MEMORY_EVALUATION], valid.arena);
    bool few = room->serving_stays || shape->longest <= GD_FEW_ROWS;
    const struct gd_layout_cost *serving = few ? &room->few_weights : &room->serving_weights;
    struct gd_layout_cost both = train.weights;
    gd_layout_cost_join(&both, serving);
    size_t laid = gd_layout_cost_sum(&train.weights);
    size_t more = gd_layout_cost_sum(room->serving_apart ? serving : &both) - (room->serving_apart ? 0 : laid);
    size_t served = room->serving + memory->part[GD_MEMORY_ADAPTER] + (room->serving_stays ? 0 : more);
    memory->part[GD_MEMORY_EVALUATION] = larger(memory->part[GD_MEMORY_EVALUATION], served);
    memory->part[GD_MEMORY_WEIGHTS] += room->serving_stays ? more : 0;
    memory->part[GD_MEMORY_WEIGHTS] += laid;
    memory->part[GD_MEMORY_PROCESS] += train.tables * (1 + PASSES_KEPT) + valid.tables + surveyed.tables;
    add_up(memory);
    return true;
}

static void add_graft(struct gd_job_memory *memory, const struct gd_graft *graft, const struct gd_job_spec *spec,
                      const struct gd_memory_room *room)
{
    size_t block = (size_t)gd_graft_floats(graft) * sizeof(float);
    bool start = spec->preference.term_count > 0 && (spec->reference == GD_REFERENCE_START || spec->reference == GD_REFERENCE_PRECOMPUTED);
    memory->part[GD_MEMORY_ADAPTER] = block;
    memory->part[GD_MEMORY_GRADIENTS] = block + gd_leaves_bytes(graft->parameter_count, spec->leaf_count);
    memory->part[GD_MEMORY_OPTIMIZER] = 2 * block;
    memory->part[GD_MEMORY_REFERENCE] = start ? block : 0;
    memory->part[GD_MEMORY_EVALUATION] = 2 * block; /* what is written is read and compared */
    memory->part[GD_MEMORY_KV_CACHE] = room->kv_cache;
}

bool gd_job_memory_plan(struct gd_job_memory *out, const struct gd_model *model, const struct gd_graft *graft,
                        const struct gd_job_spec *spec, const struct gd_memory_shape *shape, const struct gd_memory_room *room,
                        struct gd_error *err)
{
    /* Plans bind addresses, and a dry one touches none of them. */
    size_t block = (size_t)(gd_graft_floats(graft) + 1) * sizeof(float);
    void *range = mmap(NULL, block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return gd_fail_param(err, GD_NO_ROOM, "adapter", "%lld trained numbers are more than the address space holds",
                             (long long)gd_graft_floats(graft));
    struct gd_job_memory memory = {.limit = room->limit > 0 ? room->limit : gd_memory_bytes()}, with;
    struct gd_passes passes;
    int largest = gd_memory_largest(spec, shape);
    gd_passes_init(&passes, model, graft, gd_job_objective(spec), &spec->preference, gd_job_act(spec), range, range);
    passes.reference = spec->reference;
    passes.start_block = range;
    pretend(model, spec->quantization, true);
    add_base(&memory, model, spec->quantization);
    add_graft(&memory, graft, spec, room);
    memory.part[GD_MEMORY_MODEL_FILE] += room->serving_stays ? gd_model_touched_most(model, INT64_MAX) : shape->embedding_bytes;
    memory.part[GD_MEMORY_DATA] = shape->data_bytes;
    memory.part[GD_MEMORY_PROCESS] = gd_memory_process(model->config.vocab) + (spec->quantization != GD_QUANTIZATION_NONE ? TILE_BYTES : 0);
    bool automatic = spec->gradient_checkpointing == GD_CHECKPOINTING_AUTO, quantised = spec->quantization != GD_QUANTIZATION_NONE;
    memory.checkpointing = !automatic ? spec->gradient_checkpointing : quantised ? GD_CHECKPOINTING_FEED_FORWARD : GD_CHECKPOINTING_OFF;
    with = memory;
    bool ok = add_passes(&memory, &passes, shape, room, largest, err);
    while (ok && automatic && memory.total > memory.limit && with.checkpointing < GD_CHECKPOINTING_ON) {
        struct gd_job_memory more = with;
        more.checkpointing = ++with.checkpointing;
        more.without = with.without = with.without > 0 ? with.without : memory.part[GD_MEMORY_ACTIVATIONS] + memory.part[GD_MEMORY_HEAD];
        ok = add_passes(&more, &passes, shape, room, largest, err);
        memory = more.total < memory.total ? more : memory;
    }
    pretend(model, spec->quantization, false);
    gd_passes_release(&passes);
    munmap(range, block);
    *out = memory;
    return ok;
}

/* ---- what would fit ---- */

static bool fits(const struct gd_model *model, const struct gd_graft *graft, const struct gd_job_spec *spec,
                 const struct gd_memory_shape *shape, const struct gd_memory_room *room)
{
    struct gd_job_memory memory;
    struct gd_error ignored = {0};
    return gd_job_memory_plan(&memory, model, graft, spec, shape, room, &ignored) && memory.total <= memory.limit;
}

struct search {
    const struct gd_model *model;
    const struct gd_graft *graft;
    const struct gd_job_spec *spec;
    const struct gd_memory_shape *shape;
    const struct gd_memory_room *room;
};

static bool try_tokens(const struct search *search, int tokens)
{
    struct gd_job_spec spec = *search->spec;
    spec.tokens_per_batch = tokens;
    return fits(search->model, search->graft, &spec, search->shape, search->room);
}

static bool try_batch(const struct search *search, int rows)
{
    struct gd_job_spec spec = *search->spec;
    spec.batch_size = rows;
    return fits(search->model, search->graft, &spec, search->shape, search->room);
}

static bool try_length(const struct search *search, int length)
{
    struct gd_memory_shape shape = *search->shape;
    int sides = search->spec->preference.term_count > 0 ? 2 : 1, longest = length * sides + search->graft->virtual_rows.count * sides;
    shape.longest = shape.longest < longest ? shape.longest : longest;
    shape.valid = shape.valid < longest ? shape.valid : longest;
    shape.surveyed = shape.surveyed < longest ? shape.surveyed : longest;
    return fits(search->model, search->graft, search->spec, &shape, search->room);
}

/* The spec's adapter with another rank. */
static bool try_rank(const struct search *search, int r)
{
    struct gd_job_spec spec = *search->spec;
    struct gd_graft *graft = NULL;
    struct gd_error ignored = {0};
    cJSON *json = gd_adapter_config_json(&search->spec->adapter);
    cJSON_ReplaceItemInObjectCaseSensitive(json, "r", cJSON_CreateNumber(r));
    bool parsed = gd_adapter_config_parse(&spec.adapter, json, &ignored);
    if (parsed)
        spec.adapter.score = search->spec->adapter.score;
    bool ok = parsed && gd_graft_create(&graft, search->model, &spec.adapter, &ignored) &&
              fits(search->model, graft, &spec, search->shape, search->room);
    gd_graft_destroy(graft);
    if (parsed)
        gd_adapter_config_release(&spec.adapter);
    cJSON_Delete(json);
    return ok;
}

/* The largest value below `asked`, in steps of `step`, that fits; 0: none. Memory grows with it. */
static int largest_that_fits(const struct search *search, bool (*try)(const struct search *, int), int step, int asked)
{
    int low = 0, high = (asked + step - 1) / step; /* low fits or is 0, high does not */
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (try(search, middle * step))
            low = middle;
        else
            high = middle;
    }
    return low * step;
}

void gd_job_memory_advise(struct gd_memory_advice *advice, const struct gd_model *model, const struct gd_job_spec *spec,
                          const struct gd_memory_shape *shape, const struct gd_memory_room *room)
{
    struct gd_memory_room narrow = *room; /* so that what is said to fit does, whatever the rest of the file holds */
    narrow.limit = (room->limit > 0 ? room->limit : gd_memory_bytes()) / 100 * 99;
    struct search search = {model, NULL, spec, shape, &narrow};
    struct gd_graft *graft = NULL;
    struct gd_error ignored = {0};
    *advice = (struct gd_memory_advice){0};
    if (!gd_graft_create(&graft, model, &spec->adapter, &ignored))
        return;
    search.graft = graft;
    int most = gd_memory_largest(spec, shape);
    if (most > shape->longest)
        advice->batch_size = largest_that_fits(&search, try_batch, 1, spec->batch_size);
    if (most > shape->longest)
        advice->tokens_per_batch = largest_that_fits(&search, try_tokens, 64, spec->tokens_per_batch);
    if (shape->longest > 64)
        advice->max_length = largest_that_fits(&search, try_length, 64, shape->longest);
    cJSON *json = gd_adapter_config_json(&spec->adapter);
    const cJSON *r = gd_json_find(json, "r");
    if (cJSON_IsNumber(r) && r->valueint > 1)
        advice->r = largest_that_fits(&search, try_rank, 1, r->valueint);
    cJSON_Delete(json);
    gd_graft_destroy(graft);
}

#define GD_MEMORY_WIRE(name, wire) wire,
static const char *const part_names[GD_MEMORY_PARTS] = {GD_MEMORY_LIST(GD_MEMORY_WIRE)};
#undef GD_MEMORY_WIRE

static void add_choice(char *text, size_t size, const char *name, int value)
{
    size_t used = strlen(text);
    if (value > 0 && used < size)
        snprintf(text + used, size - used, "%s%s %d", used > 0 ? ", or " : "", name, value);
}

bool gd_job_memory_check(const struct gd_job_memory *memory, const struct gd_memory_advice *advice, struct gd_error *err)
{
    if (memory->total <= memory->limit)
        return true;
    char parts[400] = "", choices[160] = "";
    for (int i = 0; i < GD_MEMORY_PARTS; i++) {
        size_t used = strlen(parts);
        if (memory->part[i] >= 1 << 20)
            snprintf(parts + used, sizeof(parts) - used, "%s%s %.0f", used > 0 ? ", " : "", part_names[i], MIB(memory->part[i]));
    }
    add_choice(choices, sizeof(choices), "batch_size", advice->batch_size);
    add_choice(choices, sizeof(choices), "tokens_per_batch", advice->tokens_per_batch);
    add_choice(choices, sizeof(choices), "data.max_length", advice->max_length);
    add_choice(choices, sizeof(choices), "adapter.r", advice->r);
    return gd_fail_param(err, GD_NO_ROOM, advice->tokens_per_batch > 0 ? "tokens_per_batch" : advice->max_length > 0 ? "data.max_length" : "adapter",
                         "the job needs %.0f MiB and has %.0f (%s)%s; %s%s", MIB(memory->total), MIB(memory->limit), parts,
                         memory->checkpointing > GD_CHECKPOINTING_OFF ? " with gradient checkpointing" : "",
                         choices[0] != '\0' ? "what fits: " : "train fewer modules or layers, quantise the base, or use a smaller one",
                         choices);
}

cJSON *gd_job_memory_json(const struct gd_job_memory *memory)
{
    cJSON *json = cJSON_CreateObject();
    char name[48];
    for (int i = 0; i < GD_MEMORY_PARTS; i++) {
        snprintf(name, sizeof(name), "%s_bytes", part_names[i]);
        cJSON_AddNumberToObject(json, name, (double)memory->part[i]);
    }
    cJSON_AddNumberToObject(json, "total_bytes", (double)memory->total);
    cJSON_AddNumberToObject(json, "limit_bytes", (double)memory->limit);
    cJSON_AddItemToObject(json, "peak_bytes", memory->peak > 0 ? cJSON_CreateNumber((double)memory->peak) : cJSON_CreateNull());
    cJSON_AddItemToObject(json, "gradient_checkpointing", gd_checkpointing_json(memory->checkpointing));
    return json;
}

cJSON *gd_memory_advice_json(const struct gd_memory_advice *advice)
{
    const int values[] = {advice->batch_size, advice->tokens_per_batch, advice->max_length, advice->r};
    static const char *const names[] = {"batch_size", "tokens_per_batch", "max_length", "r"};
    cJSON *json = cJSON_CreateObject();
    for (size_t i = 0; i < GD_COUNT(names); i++)
        cJSON_AddItemToObject(json, names[i], values[i] > 0 ? cJSON_CreateNumber(values[i]) : cJSON_CreateNull());
    return json;
}
