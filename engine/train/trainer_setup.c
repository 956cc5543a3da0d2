/* trainer_setup.c - everything that a job needs before its first step, and its end: memory, plans, references, the newest
 * checkpoint. */
#include "engine/train/trainer_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/memory.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"
#include "engine/train/matching.h"
#include "engine/train/optimizer.h"

#include <assert.h>
#include <string.h>

size_t gd_trainer_weight_bytes(const struct gd_trainer *trainer)
{
    size_t bytes = 0;
    for (int i = 0; i < trainer->model->weight_count; i++)
        bytes += gd_weight_prepared_bytes(trainer->model->weights[i]);
    return bytes;
}

size_t gd_trainer_held_bytes(const struct gd_trainer *trainer)
{
    return 6 * trainer->block_bytes + gd_leaves_bytes(trainer->graft->parameter_count, trainer->spec->leaf_count);
}

static bool make_blocks(struct gd_trainer *trainer, struct gd_error *err)
{
    trainer->block_bytes = (size_t)gd_graft_floats(trainer->graft) * sizeof(float);
    void *memory[4] = {NULL};
    static const char *const what[] = {"adapter parameters", "first moments", "second moments", "micro-batch gradient"};
    bool ok = true;
    for (int i = 0; i < 4 && ok; i++)
        ok = gd_twin_alloc(&memory[i], trainer->block_bytes, what[i], err);
    trainer->state.block = memory[0];
    trainer->state.exp_avg = memory[1];
    trainer->state.exp_avg_sq = memory[2];
    trainer->grad = memory[3];
    return ok && gd_leaves_init(&trainer->leaves, trainer->graft->parameter_count, trainer->spec->leaf_count, err);
}

static int longest_row(const struct gd_dataset *data)
{
    int longest = 0;
    for (int64_t i = 0; i < data->row_count; i++)
        if (gd_dataset_row_space(data, i) > longest)
            longest = gd_dataset_row_space(data, i);
    return longest;
}

/* Of the rows that losses look at besides the step's own. */
static int longest_survey(const struct gd_trainer *trainer)
{
    const struct gd_dataset *sets[] = {trainer->train, trainer->valid};
    int longest = 0;
    for (size_t i = 0; gd_trainer_has_answers(trainer) && i < GD_COUNT(sets); i++) {
        int own = sets[i] != NULL ? gd_survey_longest(&trainer->spec->preference, sets[i], trainer->spec->max_length) : 0;
        longest = own > longest ? own : longest;
    }
    return longest;
}

static size_t data_bytes(const struct gd_trainer *trainer)
{
    const struct gd_dataset *sets[] = {trainer->train, trainer->valid};
    size_t bytes = 0;
    for (size_t i = 0; i < GD_COUNT(sets); i++)
        if (sets[i] != NULL)
            bytes += (size_t)sets[i]->token_count * (sizeof(int32_t) + sizeof(float)) +
                     (size_t)sets[i]->row_count * sizeof(struct gd_dataset_row);
    return bytes;
}

/* Of the mapped embedding, what the rows' tokens touch. */
static size_t embedding_bytes(const struct gd_trainer *trainer)
{
    const struct gd_dataset *sets[] = {trainer->train, trainer->valid};
    bool *seen = gd_alloc_array((size_t)trainer->model->config.vocab, sizeof(bool));
    seen[0] = true; /* what batches are filled up with */
    for (size_t i = 0; i < GD_COUNT(sets); i++)
        for (int64_t t = 0; sets[i] != NULL && t < sets[i]->token_count; t++)
            seen[sets[i]->tokens[t]] = true;
    size_t bytes = gd_model_touched_bytes(trainer->model, seen);
    gd_free(seen);
    return bytes;
}

static bool first_parameters(const struct gd_trainer *trainer, float *block, struct gd_error *err)
{
    if (trainer->start != NULL)
        gd_start_fill(trainer->graft, trainer->start, (uint64_t)trainer->spec->seed, block);
    else
        gd_graft_init(trainer->graft, block, (uint64_t)trainer->spec->seed);
    return trainer->command != GD_TRAIN_CANCEL || gd_fail(err, GD_CANCELLED, "cancelled before the first step");
}

/* What the losses' reference needs before the first step. */
static bool set_reference(struct gd_trainer *trainer, struct gd_error *err)
{
    enum gd_reference reference = trainer->spec->reference;
    void *block = NULL;
    trainer->passes.reference = reference;
    if (!gd_trainer_has_answers(trainer) || (reference != GD_REFERENCE_START && reference != GD_REFERENCE_PRECOMPUTED))
        return true;
    if (!gd_twin_alloc(&block, trainer->block_bytes, "the reference's parameters", err))
        return false;
    trainer->passes.start_block = trainer->start_block = block;
    return first_parameters(trainer, block, err) && gd_twin_push(block, trainer->block_bytes, err);
}

/* What the job needs, before anything large is made. A resumed job may choose checkpointing otherwise: its bits are the same. */
static bool plan_memory(struct gd_trainer *trainer, struct gd_error *err)
{
    struct gd_job_spec *spec = trainer->spec;
    struct gd_job_memory *memory = &trainer->memory;
    struct gd_memory_advice advice;
    struct gd_memory_shape shape = {.longest = longest_row(trainer->train), .valid = trainer->valid != NULL ? longest_row(trainer->valid) : 0,
                                    .surveyed = longest_survey(trainer), .data_bytes = data_bytes(trainer),
                                    .embedding_bytes = embedding_bytes(trainer)};
    for (int64_t i = 0; i < trainer->train->row_count && shape.step_tokens < spec->tokens_per_batch; i++)
        shape.step_tokens += gd_dataset_row_space(trainer->train, i);
    trainer->largest = gd_memory_largest(spec, &shape);
    trainer->surveyed = shape.surveyed;
    trainer->longest_valid = shape.valid;
    if (!gd_job_memory_plan(memory, trainer->model, trainer->graft, spec, &shape, &trainer->room, err))
        return false;
    if (memory->total > memory->limit) {
        gd_job_memory_advise(&advice, trainer->model, spec, &shape, &trainer->room);
        return gd_job_memory_check(memory, &advice, err);
    }
    if (memory->without > 0)
        gd_trainer_say(trainer, "info", "Gradient checkpointing is on: activations need %.0f MiB instead of %.0f, with which the job would "
                       "not fit the %.0f that there are; %s computed twice", (double)(memory->part[GD_MEMORY_ACTIVATIONS] +
                       memory->part[GD_MEMORY_HEAD]) / 1048576, (double)memory->without / 1048576, (double)memory->limit / 1048576,
                       memory->checkpointing == GD_CHECKPOINTING_ON ? "each layer is" : "feed-forward parts are");
    size_t there = memory->part[GD_MEMORY_PROCESS] + memory->part[GD_MEMORY_MODEL_FILE] + gd_trainer_weight_bytes(trainer);
    if (trainer->observer.make_room != NULL && memory->total > there)
        trainer->observer.make_room(trainer->observer.context, memory->total - there);
    spec->gradient_checkpointing = memory->checkpointing;
    return true;
}

static bool make_passes(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    enum gd_dtype act = gd_job_act(spec);
    strcpy(trainer->spec->precision, act == GD_F32 ? "f32" : "bf16");
    const struct gd_objective *objective = gd_job_objective(spec);
    gd_passes_init(&trainer->passes, trainer->model, trainer->graft, objective, &spec->preference, act, trainer->state.block,
                   trainer->grad);
    trainer->passes.router_loss = spec->router_aux_loss_coef > 0 ? spec->router_aux_loss_coef : 0;
    if (!set_reference(trainer, err))
        return false;

    trainer->passes.recompute = trainer->memory.checkpointing == GD_CHECKPOINTING_ON;
    trainer->passes.narrow = trainer->memory.checkpointing == GD_CHECKPOINTING_FEED_FORWARD;
    trainer->passes.make_room = trainer->observer.make_room;
    trainer->passes.room_context = trainer->observer.context;
    int most = trainer->largest > trainer->longest_valid ? trainer->largest : trainer->longest_valid;
    most = most > trainer->surveyed ? most : trainer->surveyed;
    most = most > spec->tokens_per_batch ? most : spec->tokens_per_batch;
    size_t need = 0, survey_need = 0;
    gd_batch_init(&trainer->batch, gd_token_bucket(most), GD_BATCH_SEGMENTS_MAX);
    bool ok = gd_passes_prepare(&trainer->passes, trainer->largest, true, &need, err) &&
              (trainer->surveyed == 0 || gd_passes_prepare(&trainer->passes, trainer->surveyed, false, &survey_need, err));
    trainer->activation_bytes = survey_need > need ? survey_need : need;
    gd_model_forget_files(trainer->model);
    return ok;
}

/* What the job's "quantization" came to. */
void gd_trainer_report_quantisation(struct gd_trainer *trainer)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(trainer->model, &sites), quantised = 0;
    for (int i = 0; i < site_count; i++)
        quantised += gd_weight_quantised(sites[i].weight);
    if (trainer->spec->quantization != GD_QUANTIZATION_NONE)
        gd_trainer_say(trainer, "info", "The base stays quantised in memory (%s): %d of %d matrices", gd_quantization_names[trainer->spec->quantization],
                       quantised, site_count);
}

static void report_damaged(void *context, int64_t step, const char *why)
{
    gd_trainer_say(context, "warn", "checkpoint of step %lld is damaged and was passed over: %s", (long long)step, why);
}

static bool prepare_reference(struct gd_trainer *trainer, struct gd_dataset *data, const char *name, struct gd_error *err)
{
    struct gd_run_options options = {.between = gd_trainer_between_ops, .context = trainer};
    char mine[33], model[33], *key;
    bool computed = false;
    gd_trainer_fingerprint(data, mine);
    gd_hash_xxh3(trainer->start_block, trainer->block_bytes, model);
    key = gd_format("%s %s %s %s", trainer->model->digest, model, trainer->spec->precision,
                    gd_quantization_names[trainer->spec->quantization]);
    struct gd_reference_facts facts = {name, mine, key};
    bool ok = gd_reference_prepare(&trainer->passes, data, &trainer->batch, trainer->spec->tokens_per_batch, trainer->folder, &facts,
                                   &options, &computed, err);
    gd_free(key);
    if (ok && computed)
        gd_trainer_say(trainer, "info", "%s_file: the reference's log-probabilities of %lld rows are computed and kept", name,
                       (long long)data->row_count);
    return ok;
}

static bool precompute_reference(struct gd_trainer *trainer, struct gd_error *err)
{
    if (trainer->start_block == NULL || trainer->spec->reference != GD_REFERENCE_PRECOMPUTED)
        return true;
    return prepare_reference(trainer, trainer->train, "training", err) &&
           (trainer->valid == NULL || prepare_reference(trainer, trainer->valid, "validation", err));
}

static bool match_prompts(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_preference *preference = &trainer->spec->preference;
    struct gd_run_options run = {.between = gd_trainer_between_ops, .context = trainer};
    struct gd_matching_options options = {.preference = preference, .act = trainer->passes.act,
                                          .tokens_per_batch = trainer->spec->tokens_per_batch, .seed = (uint64_t)trainer->spec->seed};
    struct gd_matching_result result;
    if (!gd_trainer_has_answers(trainer) || !preference->matching.on)
        return true;
    if (!gd_match_prompts(trainer->model, trainer->train, trainer->valid, &trainer->batch, &options, &run, &result, err))
        return false;
    gd_trainer_say(trainer, "info", "The prompts alone put %.0f %% of the rows compared on their side; undesirable rows weigh %.3g to %.3g",
                   100 * result.told_apart, result.least, result.most);
    return true;
}

static bool push_state(struct gd_trainer *trainer, struct gd_error *err)
{
    return gd_twin_push(trainer->state.block, trainer->block_bytes, err) && gd_twin_push(trainer->state.exp_avg, trainer->block_bytes, err) &&
           gd_twin_push(trainer->state.exp_avg_sq, trainer->block_bytes, err);
}

static bool restore(struct gd_trainer *trainer, struct gd_error *err)
{
    char mine[33];
    gd_trainer_fingerprint(trainer->train, mine);
    cJSON *facts = NULL;
    gd_checkpoint_read_newest(trainer->folder, trainer->graft, &trainer->state, &facts, report_damaged, trainer);
    if (trainer->state.step == 0) {
        if (!first_parameters(trainer, trainer->state.block, err))
            return false;
        memset(trainer->state.exp_avg, 0, trainer->block_bytes);
        memset(trainer->state.exp_avg_sq, 0, trainer->block_bytes);
        trainer->state.trained_tokens = trainer->state.tokens = 0;
        trainer->state.running_mean = trainer->state.running_count = 0;
        memcpy(trainer->state.data_fingerprint, mine, sizeof(mine));
        return push_state(trainer, err);
    }
    bool ok = push_state(trainer, err);
    if (ok && strcmp(mine, trainer->state.data_fingerprint) != 0)
        ok = gd_fail_param(err, GD_BAD_FILE, "training_file",
                           "the training data differs from what the checkpoint of step %lld was made with: restore the file or "
                           "start a new job",
                           (long long)trainer->state.step);
    const cJSON *threads = gd_json_find(facts, "threads"), *isa = gd_json_find(facts, "isa");
    if (ok && ((cJSON_IsNumber(threads) && threads->valueint != gd_device()->threads) ||
               (cJSON_IsString(isa) && strcmp(isa->valuestring, gd_device()->isa) != 0)))
        gd_trainer_say(trainer, "warn", "this checkpoint was made with another thread count or processor: the run continues, but not bit for bit");
    trainer->resumed_from = trainer->checkpointed_step = trainer->state.step;
    cJSON_Delete(facts);
    return ok;
}

/* What an interrupted write left behind. */
static bool sweep(struct gd_trainer *trainer, struct gd_error *err)
{
    char *checkpoints = gd_format("%s/checkpoints", trainer->folder), *state = gd_format("%s/state", trainer->folder);
    bool ok = gd_mkdirs(checkpoints, err) && gd_mkdirs(state, err) && gd_dir_sweep(checkpoints, err) &&
              gd_dir_sweep(state, err) && gd_dir_sweep(trainer->folder, err);
    gd_free(checkpoints);
    gd_free(state);
    return ok;
}

/* Both files and what is resolved from them; once. */
bool gd_trainer_make_data(struct gd_trainer *trainer, struct gd_error *err)
{
    struct gd_job_spec *spec = trainer->spec;
    if (trainer->train != NULL)
        return true;
    if (!gd_trainer_open_data(trainer, &trainer->train, trainer->training_path, "training_file", err) ||
        (trainer->validation_path != NULL && !gd_trainer_open_data(trainer, &trainer->valid, trainer->validation_path, "validation_file", err)))
        return false;
    if (!gd_job_spec_resolve(spec, trainer->train->row_count, trainer->train->token_count, trainer->model->config.width,
                             trainer->model->config.context - trainer->graft->virtual_rows.count, err))
        return false;
    if (!gd_trainer_weigh_labels(trainer, err))
        return false;
    char advice[400];
    if (gd_trainer_has_answers(trainer) && gd_label_advice(&spec->preference, trainer->train, advice, sizeof(advice)))
        gd_trainer_say(trainer, "warn", "%s", advice);
    return true;
}

/* What a step needs beside the graft, for steps of `batch_size` rows. */
bool gd_trainer_make_steps(struct gd_trainer *trainer, int batch_size, struct gd_error *err)
{
    trainer->spec->batch_size = batch_size;
    trainer->steps_per_epoch = (trainer->train->row_count + batch_size - 1) / batch_size;
    trainer->order = gd_alloc_array((size_t)trainer->train->row_count, sizeof(int64_t));
    trainer->packed_rows = gd_alloc_array((size_t)batch_size, sizeof(int64_t));
    trainer->micro_begin = gd_alloc_array((size_t)batch_size + 1, sizeof(int));
    trainer->leaf_of = gd_alloc_array((size_t)batch_size, sizeof(int));
    return plan_memory(trainer, err) && make_blocks(trainer, err) && make_passes(trainer, err);
}

void gd_trainer_release_steps(struct gd_trainer *trainer)
{
    gd_passes_release(&trainer->passes);
    gd_leaves_release(&trainer->leaves);
    gd_batch_release(&trainer->batch);
    gd_twin_free(trainer->state.block, trainer->block_bytes);
    gd_twin_free(trainer->state.exp_avg, trainer->block_bytes);
    gd_twin_free(trainer->state.exp_avg_sq, trainer->block_bytes);
    gd_twin_free(trainer->grad, trainer->block_bytes);
    gd_twin_free(trainer->start_block, trainer->block_bytes);
    gd_free(trainer->order);
    gd_free(trainer->packed_rows);
    gd_free(trainer->micro_begin);
    gd_free(trainer->leaf_of);
    trainer->state.block = trainer->state.exp_avg = trainer->state.exp_avg_sq = trainer->grad = trainer->start_block = NULL;
    trainer->order = trainer->packed_rows = NULL;
    trainer->micro_begin = trainer->leaf_of = NULL;
    trainer->epoch = -1;
}

/* Losses over answers look at prompt and answer as one text. */
static bool check_encoder(const struct gd_trainer *trainer, struct gd_error *err)
{
    if (!gd_model_encodes(trainer->model) || !(gd_trainer_has_answers(trainer) || trainer->spec->adapter.score || trainer->spec->classes.on))
        return true;
    return gd_fail_param(err, GD_UNSUPPORTED, "method.type", "'%s' has an encoder (%s): it is tuned with method type 'supervised', where the "
                         "prompt is encoded and the answer decoded", trainer->model->id, trainer->model->config.architecture);
}

static bool set_up(struct gd_trainer *trainer, const struct gd_trainer_options *options, struct gd_error *err)
{
    struct gd_job_spec *spec = trainer->spec;
    if (spec->seed < 0)
        spec->seed = 0;
    if ((!spec->classes.on && !gd_model_generates(trainer->model, err)) || !check_encoder(trainer, err) || !gd_trainer_choose_experts(trainer, err) || !gd_mkdirs(trainer->folder, err) ||
        !sweep(trainer, err) ||
        !gd_chat_create(&trainer->chat, trainer->model->tokenizer, trainer->model->chat_template, err) ||
        (trainer->model->tools_template != NULL &&
         !gd_chat_add_tools_template(trainer->chat, trainer->model->tools_template, err)))
        return false;
    gd_chat_set_now(trainer->chat, options->created_at);
    if (!gd_trainer_make_graft(trainer, options->init_path, err) || !gd_trainer_make_data(trainer, err) || !gd_trainer_make_steps(trainer, spec->batch_size, err))
        return false;
    trainer->total_steps = spec->max_steps > 0 ? spec->max_steps : trainer->steps_per_epoch * spec->n_epochs;
    return match_prompts(trainer, err) && restore(trainer, err) && precompute_reference(trainer, err);
}

bool gd_trainer_create(struct gd_trainer **out, const struct gd_model *model, struct gd_job_spec *spec,
                       const struct gd_trainer_options *options, const struct gd_train_observer *observer,
                       struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_trainer *trainer = gd_alloc(sizeof(*trainer));
    trainer->model = model;
    trainer->spec = spec;
    trainer->job_id = gd_strdup(options->job_id);
    trainer->folder = gd_strdup(options->folder);
    trainer->training_path = options->training_path;
    trainer->validation_path = options->validation_path;
    trainer->keep_checkpoints = options->keep_checkpoints;
    trainer->room = options->room;
    trainer->observer = *observer;
    trainer->epoch = -1;
    if (!set_up(trainer, options, err)) {
        gd_trainer_destroy(trainer);
        return false;
    }
    *out = trainer;
    return true;
}

void gd_trainer_destroy(struct gd_trainer *trainer)
{
    if (trainer == NULL)
        return;
    gd_trainer_release_steps(trainer);
    gd_dataset_destroy(trainer->train);
    gd_dataset_destroy(trainer->valid);
    gd_tasks_release(&trainer->tasks);
    gd_tasks_release(&trainer->labels);
    gd_free(trainer->class_weights);
    gd_chat_destroy(trainer->chat);
    gd_graft_destroy(trainer->graft);
    gd_graft_destroy(trainer->start);
    gd_free(trainer->expert_rows);
    gd_free(trainer->job_id);
    gd_free(trainer->folder);
    gd_free(trainer);
}

int64_t gd_trainer_trained_tokens(const struct gd_trainer *trainer)
{
    return trainer->state.trained_tokens;
}

int64_t gd_trainer_resumed_from(const struct gd_trainer *trainer)
{
    return trainer->resumed_from;
}

cJSON *gd_trainer_memory(const struct gd_trainer *trainer)
{
    struct gd_job_memory memory = trainer->memory;
    memory.peak = trainer->state.step == trainer->total_steps ? gd_memory_peak() : 0;
    return gd_job_memory_json(&memory);
}
