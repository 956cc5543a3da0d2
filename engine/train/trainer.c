#include "engine/train/trainer.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/philox.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "engine/train/checkpoint.h"
#include "engine/train/leaves.h"
#include "engine/train/matching.h"
#include "engine/train/optimizer.h"
#include "engine/train/passes.h"
#include "engine/train/reference.h"
#include "engine/train/start.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

struct gd_trainer {
    const struct gd_model *model;
    struct gd_job_spec *spec;
    char *job_id, *folder;
    const char *training_path, *validation_path; /* the caller's, while it sets up */
    int keep_checkpoints;
    struct gd_train_observer observer;
    enum gd_train_command command;

    struct gd_chat *chat;            /* the model's template with the job's own clock */
    struct gd_dataset *train, *valid;
    struct gd_tasks tasks;           /* of the training file, for a method by task */
    struct gd_graft *graft, *start;  /* start: what the job goes on from, or NULL */
    float *start_block;              /* parameters before the first step, where the reference needs them */
    struct gd_passes passes;
    struct gd_survey survey;         /* of the step at hand */
    struct gd_leaves leaves;
    struct gd_batch batch;
    struct gd_checkpoint state;      /* step, counters, and the flat blocks */
    float *grad;
    size_t block_bytes, activation_bytes;

    int64_t total_steps, steps_per_epoch, resumed_from;
    int64_t checkpointed_step;
    bool sensed;                     /* the graft was chosen by gradients of rows */
    int epoch;                       /* whose order is in `order`; -1 = none */
    int64_t *order;
    int64_t *packed_rows;            /* the step's rows, by leaf */
    int *micro_begin, *leaf_of;
};

/* ---- the observer ---- */

static void say(struct gd_trainer *trainer, const char *level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void say(struct gd_trainer *trainer, const char *level, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (trainer->observer.message != NULL)
        trainer->observer.message(trainer->observer.context, level, text);
}

static bool poll_observer(struct gd_trainer *trainer)
{
    if (trainer->observer.poll != NULL && trainer->command != GD_TRAIN_CANCEL) {
        enum gd_train_command command = trainer->observer.poll(trainer->observer.context);
        if (command != GD_TRAIN_GO)
            trainer->command = command;
    }
    return trainer->command != GD_TRAIN_CANCEL;
}

static bool between_ops(void *context)
{
    return poll_observer(context);
}

static bool dataset_progress(void *context, int64_t rows_done, int64_t rows_total)
{
    return poll_observer(context);
}

/* ---- set-up ---- */

/* "3, 9, 12, and 4 more" */
static void name_lines(const int64_t *lines, int64_t count, char *text, size_t size)
{
    text[0] = '\0';
    for (int64_t i = 0; i < count && i < GD_DATASET_LINES_NAMED; i++)
        snprintf(text + strlen(text), size - strlen(text), "%s%lld", i ? ", " : "", (long long)lines[i]);
    if (count > GD_DATASET_LINES_NAMED)
        snprintf(text + strlen(text), size - strlen(text), ", and %lld more", (long long)(count - GD_DATASET_LINES_NAMED));
}

/* "20 of sum, 12 of case" */
static void report_tasks(struct gd_trainer *trainer, const char *param, const struct gd_tasks *tasks)
{
    char text[600] = "";
    for (int i = 0; i < tasks->count; i++) {
        size_t used = strlen(text);
        if (used + strlen(tasks->names[i]) + 32 > sizeof(text)) {
            snprintf(text + used, sizeof(text) - used, ", and %d tasks more", tasks->count - i);
            break;
        }
        snprintf(text + used, sizeof(text) - used, "%s%lld of %s", i > 0 ? ", " : "", (long long)tasks->rows[i], tasks->names[i]);
    }
    if (tasks->count > 0)
        say(trainer, "info", "%s: rows by task: %s", param, text);
}

static bool has_answers(const struct gd_trainer *trainer)
{
    return trainer->spec->preference.term_count > 0;
}

static bool open_data(struct gd_trainer *trainer, struct gd_dataset **out, const char *path, const char *param,
                      struct gd_error *err)
{
    int virtual_rows = trainer->graft->virtual_rows.count, room = trainer->model->config.context - virtual_rows;
    struct gd_dataset_options options = {
        .context = trainer->spec->max_length > 0 ? trainer->spec->max_length : room,
        .virtual_rows = virtual_rows,
        .overlong = trainer->spec->overlong,
        .drop_incomparable = trainer->spec->drop_incomparable,
        .pairs = has_answers(trainer) && gd_preference_answers(&trainer->spec->preference) != GD_ANSWERS_LABELLED,
        .triples = has_answers(trainer) && gd_preference_answers(&trainer->spec->preference) == GD_ANSWERS_TRIPLE,
        .labelled = has_answers(trainer) && gd_preference_answers(&trainer->spec->preference) == GD_ANSWERS_LABELLED,
        .tasks = trainer->spec->adapter.method->by_task ? &trainer->tasks : NULL,
        .progress = dataset_progress,
        .progress_context = trainer,
    };
    if (options.context > room && virtual_rows > 0)
        return gd_fail_param(err, GD_INVALID, "data.max_length",
                             "max_length is %d; the model's context is %d, of which the adapter's virtual tokens take %d",
                             options.context, trainer->model->config.context, virtual_rows);
    if (options.context > room)
        return gd_fail_param(err, GD_INVALID, "data.max_length", "max_length is %d; the model's context is %d", options.context,
                             trainer->model->config.context);
    if (!gd_dataset_open(out, path, trainer->chat, &options, err)) {
        if (err->param[0] == '\0')
            snprintf(err->param, sizeof(err->param), "%s", param);
        gd_error_context(err, "%s", param);
        return false;
    }
    (*out)->virtual_rows = trainer->graft->virtual_rows;
    const struct gd_dataset *data = *out;
    char lines[160];
    if (data->row_count == 0)
        return gd_fail_param(err, GD_BAD_FILE, param, "%s has no row with a token to train", param);
    if (data->row_count == 1 && has_answers(trainer) && gd_preference_has(&trainer->spec->preference, GD_LOSS_KL))
        return gd_fail_param(err, GD_BAD_FILE, param, "%s has one row; kto compares rows with each other and needs 2 or more", param);
    name_lines(data->overlong_lines, data->dropped_rows + data->truncated_rows, lines, sizeof(lines));
    if (data->dropped_rows > 0)
        say(trainer, "warn", "%s: %lld over-long rows were dropped, as data.overlong asks (line %s)", param,
            (long long)data->dropped_rows, lines);
    if (data->truncated_rows > 0)
        say(trainer, "warn", "%s: %lld over-long rows were truncated by %lld tokens in all, as data.overlong asks (line %s)", param,
            (long long)data->truncated_rows, (long long)data->truncated_tokens, lines);
    name_lines(data->incomparable_lines, data->incomparable_rows, lines, sizeof(lines));
    if (data->incomparable_rows > 0)
        say(trainer, "warn", "%s: %lld rows with identical or empty answers were dropped, as data.incomparable asks (line %s)", param,
            (long long)data->incomparable_rows, lines);
    name_lines(data->untrained_lines, data->untrained_rows, lines, sizeof(lines));
    if (data->untrained_rows > 0)
        say(trainer, "warn", "%s: %lld rows have no token to train (every weight is 0) and are left out (line %s)", param,
            (long long)data->untrained_rows, lines);
    report_tasks(trainer, param, &data->tasks);
    return true;
}

static void fingerprint(const struct gd_dataset *data, char out[33])
{
    XXH3_state_t *hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    XXH3_128bits_update(hash, data->tokens, (size_t)data->token_count * sizeof(int32_t));
    XXH3_128bits_update(hash, data->weights, (size_t)data->token_count * sizeof(float));
    for (int64_t i = 0; (data->pairs || data->labelled) && i < data->row_count; i++) { /* where a side ends matters too */
        int32_t facts[] = {data->rows[i].chosen, data->rows[i].gold, data->rows[i].desirable};
        XXH3_128bits_update(hash, facts, data->triples || data->labelled ? sizeof(facts) : sizeof(facts[0]));
    }
    for (int64_t i = 0; data->tasks.count > 0 && i < data->row_count; i++)
        XXH3_128bits_update(hash, &data->rows[i].task, sizeof(data->rows[i].task));
    for (int i = 0; i < data->tasks.count; i++)
        XXH3_128bits_update(hash, data->tasks.names[i], strlen(data->tasks.names[i]) + 1);
    XXH128_hash_t digest = XXH3_128bits_digest(hash);
    XXH3_freeState(hash);
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)digest.high64, (unsigned long long)digest.low64);
}

static size_t prepared_weights(const struct gd_trainer *trainer)
{
    size_t bytes = 0;
    for (int i = 0; i < trainer->model->weight_count; i++)
        bytes += gd_weight_prepared_bytes(trainer->model->weights[i]);
    return bytes;
}

/* Values, moments, gradients, and two copies while a result is read back; before anything is touched, and again when the
 * activations are known. */
static bool check_memory(const struct gd_trainer *trainer, struct gd_error *err)
{
    const double gib = 1073741824.0;
    size_t floats = 6 * trainer->block_bytes + gd_leaves_bytes(trainer->graft->parameter_count, trainer->spec->leaf_count);
    size_t need = floats + trainer->activation_bytes + prepared_weights(trainer), limit = gd_memory_bytes();
    if (need <= limit)
        return true;
    return gd_fail_param(err, GD_NO_MEMORY, "adapter",
                         "the job needs at least %.2f GiB and this machine grants %.2f: %.2f for values, moments and gradients of "
                         "%lld numbers, %.2f for activations, %.2f for the base's weights; train fewer modules or layers, choose a "
                         "method with fewer parameters, or lower tokens_per_batch or gradient_leaves",
                         (double)need / gib, (double)limit / gib, (double)floats / gib,
                         (long long)trainer->graft->parameter_count, (double)trainer->activation_bytes / gib,
                         (double)prepared_weights(trainer) / gib);
}

static bool make_blocks(struct gd_trainer *trainer, struct gd_error *err)
{
    trainer->block_bytes = (size_t)gd_graft_floats(trainer->graft) * sizeof(float);
    if (!check_memory(trainer, err))
        return false;
    void *memory[4] = {NULL};
    static const char *const what[] = {"adapter parameters", "first moments", "second moments", "micro-batch gradient"};
    bool ok = true;
    for (int i = 0; i < 4 && ok; i++)
        ok = gd_large_alloc(&memory[i], trainer->block_bytes, what[i], err);
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
    for (size_t i = 0; has_answers(trainer) && i < GD_COUNT(sets); i++) {
        int own = sets[i] != NULL ? gd_survey_longest(&trainer->spec->preference, sets[i], trainer->spec->max_length) : 0;
        longest = own > longest ? own : longest;
    }
    return longest;
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
    if (!has_answers(trainer) || (reference != GD_REFERENCE_START && reference != GD_REFERENCE_PRECOMPUTED))
        return true;
    if (!gd_large_alloc(&block, trainer->block_bytes, "the reference's parameters", err))
        return false;
    trainer->passes.start_block = trainer->start_block = block;
    return first_parameters(trainer, block, err);
}

static bool make_passes(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    enum gd_dtype act = strcmp(spec->precision, "f32") == 0 ? GD_F32 : strcmp(spec->precision, "bf16") == 0 ? GD_BF16
                                                                                                        : gd_device()->compute;
    strcpy(trainer->spec->precision, act == GD_F32 ? "f32" : "bf16");
    const struct gd_objective *objective = gd_objective_find(spec->adapter.score ? "reward" : has_answers(trainer) ? "preference" : "supervised");
    gd_passes_init(&trainer->passes, trainer->model, trainer->graft, objective, &spec->preference, act, trainer->state.block,
                   trainer->grad);
    if (!set_reference(trainer, err))
        return false;

    int64_t step_tokens = 0;
    for (int64_t i = 0; i < trainer->train->row_count && step_tokens < spec->tokens_per_batch; i++)
        step_tokens += gd_dataset_row_space(trainer->train, i);
    int longest = longest_row(trainer->train), longest_valid = trainer->valid ? longest_row(trainer->valid) : 0;
    int largest = step_tokens < spec->tokens_per_batch ? (int)step_tokens : spec->tokens_per_batch;
    largest = longest > largest ? longest : largest;
    int capacity = gd_token_bucket(longest_valid > largest ? longest_valid : largest);
    if (capacity < gd_token_bucket(spec->tokens_per_batch))
        capacity = gd_token_bucket(spec->tokens_per_batch);
    size_t need = 0, survey_need = 0;
    int surveyed = longest_survey(trainer);
    if (capacity < gd_token_bucket(surveyed))
        capacity = gd_token_bucket(surveyed);
    gd_batch_init(&trainer->batch, capacity, GD_BATCH_SEGMENTS_MAX);
    if (!gd_passes_prepare(&trainer->passes, largest, true, &need, err) ||
        (surveyed > 0 && !gd_passes_prepare(&trainer->passes, surveyed, false, &survey_need, err)))
        return false;
    need = survey_need > need ? survey_need : need;
    trainer->activation_bytes = need;
    return check_memory(trainer, err);
}

/* What the job's "quantization" came to. */
static void report_quantisation(struct gd_trainer *trainer)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(trainer->model, &sites), quantised = 0;
    for (int i = 0; i < site_count; i++)
        quantised += gd_weight_quantised(sites[i].weight);
    if (trainer->spec->quantization != GD_QUANTIZATION_NONE)
        say(trainer, "info", "The base stays quantised in memory (%s): %d of %d matrices", gd_quantization_names[trainer->spec->quantization],
            quantised, site_count);
}

static void report_damaged(void *context, int64_t step, const char *why)
{
    say(context, "warn", "checkpoint of step %lld is damaged and was passed over: %s", (long long)step, why);
}

static bool prepare_reference(struct gd_trainer *trainer, struct gd_dataset *data, const char *name, struct gd_error *err)
{
    struct gd_run_options options = {.between = between_ops, .context = trainer};
    char mine[33], model[33], *key;
    bool computed = false;
    fingerprint(data, mine);
    gd_hash_xxh3(trainer->start_block, trainer->block_bytes, model);
    key = gd_format("%s %s %s %s", trainer->model->digest, model, trainer->spec->precision,
                    gd_quantization_names[trainer->spec->quantization]);
    struct gd_reference_facts facts = {name, mine, key};
    bool ok = gd_reference_prepare(&trainer->passes, data, &trainer->batch, trainer->spec->tokens_per_batch, trainer->folder, &facts,
                                   &options, &computed, err);
    gd_free(key);
    if (ok && computed)
        say(trainer, "info", "%s_file: the reference's log-probabilities of %lld rows are computed and kept", name,
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
    struct gd_run_options run = {.between = between_ops, .context = trainer};
    struct gd_matching_options options = {.preference = preference, .act = trainer->passes.act,
                                          .tokens_per_batch = trainer->spec->tokens_per_batch, .seed = (uint64_t)trainer->spec->seed};
    struct gd_matching_result result;
    if (!has_answers(trainer) || !preference->matching.on)
        return true;
    if (!gd_match_prompts(trainer->model, trainer->train, trainer->valid, &trainer->batch, &options, &run, &result, err))
        return false;
    say(trainer, "info", "The prompts alone put %.0f %% of the rows compared on their side; undesirable rows weigh %.3g to %.3g",
        100 * result.told_apart, result.least, result.most);
    return true;
}

static bool restore(struct gd_trainer *trainer, struct gd_error *err)
{
    char mine[33];
    fingerprint(trainer->train, mine);
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
        return true;
    }
    bool ok = true;
    if (strcmp(mine, trainer->state.data_fingerprint) != 0)
        ok = gd_fail_param(err, GD_BAD_FILE, "training_file",
                           "the training data differs from what the checkpoint of step %lld was made with: restore the file or "
                           "start a new job",
                           (long long)trainer->state.step);
    const cJSON *threads = gd_json_find(facts, "threads"), *isa = gd_json_find(facts, "isa");
    if (ok && ((cJSON_IsNumber(threads) && threads->valueint != gd_device()->threads) ||
               (cJSON_IsString(isa) && strcmp(isa->valuestring, gd_device()->isa) != 0)))
        say(trainer, "warn", "this checkpoint was made with another thread count or processor: the run continues, but not bit for bit");
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
static bool make_data(struct gd_trainer *trainer, struct gd_error *err)
{
    struct gd_job_spec *spec = trainer->spec;
    if (trainer->train != NULL)
        return true;
    if (!open_data(trainer, &trainer->train, trainer->training_path, "training_file", err) ||
        (trainer->validation_path != NULL && !open_data(trainer, &trainer->valid, trainer->validation_path, "validation_file", err)))
        return false;
    if (!gd_job_spec_resolve(spec, trainer->train->row_count, trainer->train->token_count, trainer->model->config.width,
                             trainer->model->config.context - trainer->graft->virtual_rows.count, err))
        return false;
    char advice[400];
    if (has_answers(trainer) && gd_label_advice(&spec->preference, trainer->train, advice, sizeof(advice)))
        say(trainer, "warn", "%s", advice);
    return true;
}

/* What a step needs beside the graft, for steps of `batch_size` rows. */
static bool make_steps(struct gd_trainer *trainer, int batch_size, struct gd_error *err)
{
    trainer->spec->batch_size = batch_size;
    trainer->steps_per_epoch = (trainer->train->row_count + batch_size - 1) / batch_size;
    trainer->order = gd_alloc_array((size_t)trainer->train->row_count, sizeof(int64_t));
    trainer->packed_rows = gd_alloc_array((size_t)batch_size, sizeof(int64_t));
    trainer->micro_begin = gd_alloc_array((size_t)batch_size + 1, sizeof(int));
    trainer->leaf_of = gd_alloc_array((size_t)batch_size, sizeof(int));
    return make_blocks(trainer, err) && make_passes(trainer, err);
}

static void release_steps(struct gd_trainer *trainer)
{
    gd_passes_release(&trainer->passes);
    gd_leaves_release(&trainer->leaves);
    gd_batch_release(&trainer->batch);
    gd_large_free(trainer->state.block, trainer->block_bytes);
    gd_large_free(trainer->state.exp_avg, trainer->block_bytes);
    gd_large_free(trainer->state.exp_avg_sq, trainer->block_bytes);
    gd_large_free(trainer->grad, trainer->block_bytes);
    gd_large_free(trainer->start_block, trainer->block_bytes);
    gd_free(trainer->order);
    gd_free(trainer->packed_rows);
    gd_free(trainer->micro_begin);
    gd_free(trainer->leaf_of);
    trainer->state.block = trainer->state.exp_avg = trainer->state.exp_avg_sq = trainer->grad = trainer->start_block = NULL;
    trainer->order = trainer->packed_rows = NULL;
    trainer->micro_begin = trainer->leaf_of = NULL;
    trainer->epoch = -1;
}

static bool make_graft(struct gd_trainer *trainer, const char *init_path, struct gd_error *err);

static bool set_up(struct gd_trainer *trainer, const struct gd_trainer_options *options, struct gd_error *err)
{
    struct gd_job_spec *spec = trainer->spec;
    if (spec->seed < 0)
        spec->seed = 0;
    if (!gd_mkdirs(trainer->folder, err) || !sweep(trainer, err) ||
        !gd_chat_create(&trainer->chat, trainer->model->tokenizer, trainer->model->chat_template, err))
        return false;
    gd_chat_set_now(trainer->chat, options->created_at);
    if (!make_graft(trainer, options->init_path, err) || !make_data(trainer, err) || !make_steps(trainer, spec->batch_size, err))
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
    release_steps(trainer);
    gd_dataset_destroy(trainer->train);
    gd_dataset_destroy(trainer->valid);
    gd_tasks_release(&trainer->tasks);
    gd_chat_destroy(trainer->chat);
    gd_graft_destroy(trainer->graft);
    gd_graft_destroy(trainer->start);
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
    size_t weights = prepared_weights(trainer);
    size_t leaves = gd_leaves_bytes(trainer->graft->parameter_count, trainer->spec->leaf_count);
    const struct gd_dataset *sets[] = {trainer->train, trainer->valid};
    size_t data = 0;
    for (size_t i = 0; i < GD_COUNT(sets); i++)
        if (sets[i] != NULL)
            data += (size_t)sets[i]->token_count * (sizeof(int32_t) + sizeof(float)) +
                    (size_t)sets[i]->row_count * sizeof(struct gd_dataset_row);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "weights_bytes", (double)weights);
    cJSON_AddNumberToObject(json, "adapter_bytes", (double)trainer->block_bytes);
    cJSON_AddNumberToObject(json, "gradients_bytes", (double)(trainer->block_bytes + leaves));
    cJSON_AddNumberToObject(json, "optimizer_bytes", (double)(2 * trainer->block_bytes));
    cJSON_AddNumberToObject(json, "activations_bytes", (double)trainer->activation_bytes);
    cJSON_AddNumberToObject(json, "data_bytes", (double)data);
    cJSON_AddNumberToObject(json, "total_bytes",
                            (double)(weights + 4 * trainer->block_bytes + leaves + trainer->activation_bytes + data));
    return json;
}

/* ---- one step ---- */

/* A row's part of what the step's loss is divided by: the sum of the loss weights of its targets (its first token is
 * nobody's target), with as much for each target among the virtual rows as without their weights; a pair counts as one. */
static double row_weight(const struct gd_dataset *data, int64_t row)
{
    const struct gd_dataset_row *entry = &data->rows[row];
    double sum = 0;
    if (data->pairs || data->labelled)
        return 1;
    for (int32_t i = 1; i < entry->length; i++)
        sum += data->weights[entry->offset + i];
    return sum + data->virtual_rows.target_count;
}

static void describe_rows(const struct gd_dataset *data, const int64_t *rows, int count, char *text, size_t size)
{
    text[0] = '\0';
    for (int i = 0; i < count; i++) {
        size_t used = strlen(text);
        if (i == 8 || used + 24 > size) {
            snprintf(text + used, size - used, ", and %d more", count - i);
            return;
        }
        snprintf(text + used, size - used, "%s%lld", i ? ", " : "", (long long)data->rows[rows[i]].line);
    }
}

static bool fail_not_finite(struct gd_trainer *trainer, const char *what, int64_t step, const int64_t *rows, int count,
                            struct gd_error *err)
{
    char lines[256];
    describe_rows(trainer->train, rows, count, lines, sizeof(lines));
    return gd_fail(err, GD_INTERNAL,
                   "%s is not finite at step %lld (training_file lines %s): lower learning_rate, or look at these rows", what,
                   (long long)step, lines);
}

static const int64_t *step_rows(struct gd_trainer *trainer, int64_t step, int *count)
{
    int epoch = (int)((step - 1) / trainer->steps_per_epoch);
    int64_t first = (step - 1) % trainer->steps_per_epoch * trainer->spec->batch_size;
    if (epoch != trainer->epoch) {
        gd_epoch_order(trainer->order, trainer->train->row_count, (uint64_t)trainer->spec->seed, epoch);
        trainer->epoch = epoch;
    }
    int64_t left = trainer->train->row_count - first;
    *count = left < trainer->spec->batch_size ? (int)left : trainer->spec->batch_size;
    return trainer->order + first;
}

struct step_result {
    double loss, penalty, grad_norm, learning_rate;
    bool penalised;
    double kl, shift;           /* of losses that need them */
    int64_t labelled, correct, tokens;
    struct gd_preference_sums pairs;
};

static void add_pairs(struct gd_preference_sums *sums, const struct gd_preference_sums *more)
{
    sums->rows += more->rows;
    sums->chosen += more->chosen;
    sums->rejected += more->rejected;
    sums->preferred += more->preferred;
    sums->reward_chosen += more->reward_chosen;
    sums->reward_rejected += more->reward_rejected;
    sums->logp_chosen += more->logp_chosen;
    sums->logp_rejected += more->logp_rejected;
    sums->ratio += more->ratio;
}

/* What losses must know of the rows together, which are a training step's or some of the validation file's. */
static bool survey(struct gd_trainer *trainer, bool training, const struct gd_dataset *data, const int64_t *rows, int count,
                   int64_t before, const struct gd_step_counts *counts, struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    struct gd_run_options run = {.between = between_ops, .context = trainer};
    struct gd_survey_options options = {.training = training, .rows = rows, .count = count, .before = before,
                                        .tokens_per_batch = spec->tokens_per_batch, .max_length = spec->max_length};
    gd_survey_begin(&trainer->survey, counts, trainer->state.running_mean, trainer->state.running_count);
    trainer->passes.survey = &trainer->survey;
    return !gd_survey_needed(&spec->preference, training) ||
           gd_survey_run(&trainer->survey, &trainer->passes, &trainer->batch, data, &options, &run, err);
}

static bool survey_step(struct gd_trainer *trainer, const int64_t *rows, int count, struct gd_error *err)
{
    struct gd_step_counts counts = {0};
    if (!has_answers(trainer))
        return true;
    for (int i = 0; i < count; i++)
        gd_step_count_row(&counts, &trainer->spec->preference, trainer->train, rows[i]);
    /* Only the last step of an epoch can have one row where all others have more: another one is before it. */
    int64_t before = rows > trainer->order ? rows[-1] : rows[0];
    return survey(trainer, true, trainer->train, rows, count, before, &counts, err);
}

static bool run_micro_batches(struct gd_trainer *trainer, int64_t step, int row_count, int micro_count, double total_weight,
                              struct step_result *result, struct gd_error *err)
{
    struct gd_run_options options = {.between = between_ops, .context = trainer};
    int micro = 0;
    gd_leaves_begin_step(&trainer->leaves);
    for (int leaf = 0; leaf < trainer->spec->leaf_count; leaf++) {
        gd_leaves_begin(&trainer->leaves);
        for (int part = 0; micro < micro_count && trainer->leaf_of[micro] == leaf; micro++, part++) {
            int begin = trainer->micro_begin[micro];
            int end = micro + 1 < micro_count ? trainer->micro_begin[micro + 1] : row_count;
            const int64_t *rows = trainer->packed_rows + begin;
            int tokens = 0, space = 0;
            for (int i = begin; i < end; i++) {
                tokens += trainer->train->rows[trainer->packed_rows[i]].length;
                space += gd_dataset_row_space(trainer->train, trainer->packed_rows[i]);
            }
            gd_batch_fill(&trainer->batch, trainer->train, rows, end - begin, gd_token_bucket(space));
            int32_t key[4] = {(int32_t)(uint32_t)trainer->spec->seed, (int32_t)(uint32_t)((uint64_t)trainer->spec->seed >> 32),
                              (int32_t)step, leaf << 12 | part};
            struct gd_pass_result pass;
            if (!gd_passes_run(&trainer->passes, true, &trainer->batch, 1.0 / total_weight, key, &options, &pass, err))
                return false;
            if (!isfinite(pass.loss + pass.penalty))
                return fail_not_finite(trainer, "the loss", step, rows, end - begin, err);
            if (!gd_vector_all_finite(trainer->grad, trainer->graft->parameter_count))
                return fail_not_finite(trainer, "the gradient", step, rows, end - begin, err);
            gd_leaves_add(&trainer->leaves, trainer->grad);
            result->loss += pass.loss;
            result->penalty += pass.penalty;
            result->penalised |= pass.penalised;
            result->labelled += pass.labelled;
            result->correct += pass.correct;
            result->tokens += tokens;
            add_pairs(&result->pairs, &pass.pairs);
        }
        gd_leaves_end(&trainer->leaves);
    }
    assert(micro == micro_count);
    return true;
}

/* The gradient of the rows' mean loss, left as the leaves' sum. */
static bool run_rows(struct gd_trainer *trainer, int64_t step, const int64_t *rows, int row_count, struct step_result *result,
                     struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    double total_weight = 0;
    memset(result, 0, sizeof(*result));
    for (int i = 0; i < row_count; i++)
        total_weight += row_weight(trainer->train, rows[i]);
    int micro_count = gd_step_pack(trainer->train, rows, row_count, spec->leaf_count, spec->tokens_per_batch,
                                   trainer->packed_rows, trainer->micro_begin, trainer->leaf_of);
    return survey_step(trainer, rows, row_count, err) &&
           run_micro_batches(trainer, step, row_count, micro_count, total_weight, result, err);
}

static bool run_step(struct gd_trainer *trainer, int64_t step, struct step_result *result, struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    int row_count;
    const int64_t *rows = step_rows(trainer, step, &row_count);
    if (!run_rows(trainer, step, rows, row_count, result, err))
        return false;

    float *grad = gd_leaves_sum(&trainer->leaves);
    int64_t count = trainer->graft->parameter_count;
    result->grad_norm = sqrt(gd_vector_sum_squares(grad, count));
    if (!isfinite(result->grad_norm))
        return fail_not_finite(trainer, "the gradient norm", step, rows, row_count, err);
    double clip = 1.0;
    if (spec->max_grad_norm > 0 && result->grad_norm > spec->max_grad_norm)
        clip = spec->max_grad_norm / (result->grad_norm + 1e-6);
    result->learning_rate = gd_learning_rate(spec, step, trainer->total_steps);
    struct gd_checkpoint *state = &trainer->state;
    double factor;
    for (int64_t begin = 0, end; begin < count; begin = end) {
        end = gd_graft_rate_run(trainer->graft, begin, &factor);
        double decay = gd_graft_decays(trainer->graft, begin) ? spec->weight_decay : 0.0;
        gd_adamw(state->block + begin, state->exp_avg + begin, state->exp_avg_sq + begin, grad + begin, end - begin, step,
                 factor * result->learning_rate, spec->adam_beta1, spec->adam_beta2, spec->adam_eps, decay, clip);
    }
    if (trainer->graft->method->after_step != NULL)
        trainer->graft->method->after_step(trainer->graft, state->block);
    result->kl = trainer->survey.step.kl;
    result->shift = trainer->survey.step.shift;
    trainer->state.running_mean = trainer->survey.running_mean;
    trainer->state.running_count = trainer->survey.running_count;
    trainer->state.step = step;
    trainer->state.trained_tokens += result->labelled;
    trainer->state.tokens += result->tokens;
    return true;
}

/* ---- before training: what a graft is made of may depend on the rows ---- */

/* Runs with `probe` in place of the job's graft, which does not exist yet. */
static bool sense(void *context, const struct gd_graft *probe, int batches, int batch_size, float *squares, struct gd_error *err)
{
    struct gd_trainer *trainer = context;
    struct gd_job_spec *spec = trainer->spec;
    trainer->graft = (struct gd_graft *)(uintptr_t)probe;
    bool ok = make_data(trainer, err);
    int own_batch = spec->batch_size, own_leaves = spec->leaf_count;
    spec->leaf_count = 1;
    ok = ok && make_steps(trainer, batch_size, err);
    if (ok)
        gd_graft_init(probe, trainer->state.block, 0);
    for (int64_t step = 1; ok && step <= batches && step <= trainer->steps_per_epoch; step++) {
        struct step_result result;
        int row_count;
        const int64_t *rows = step_rows(trainer, step, &row_count);
        ok = run_rows(trainer, step, rows, row_count, &result, err);
        if (ok)
            gd_vector_add_squares(squares, gd_leaves_sum(&trainer->leaves), probe->parameter_count);
    }
    if (trainer->order != NULL)
        release_steps(trainer);
    spec->batch_size = own_batch;
    spec->leaf_count = own_leaves;
    trainer->graft = NULL;
    trainer->sensed = true;
    if (!ok)
        gd_error_context(err, "sensitivities");
    return ok;
}

/* What was chosen by the rows stays chosen: FOLDER/start is the graft as it began. */
static bool keep_start(struct gd_trainer *trainer, const char *path, struct gd_error *err)
{
    void *block = NULL;
    size_t bytes = (size_t)gd_graft_floats(trainer->graft) * sizeof(float);
    if (!gd_large_alloc(&block, bytes, "adapter parameters", err))
        return false;
    gd_graft_init(trainer->graft, block, (uint64_t)trainer->spec->seed);
    bool ok = gd_adapter_publish(path, trainer->graft, block, NULL, err);
    gd_large_free(block, bytes);
    return ok;
}

/* The tasks of a model that the job goes on from stay as they are where the data has no others. */
static void keep_tasks(struct gd_tasks *tasks, const struct gd_modules *old)
{
    struct gd_tasks kept = {0};
    struct gd_error none = {0};
    int known = 0;
    for (int i = 0; i < old->count; i++) {
        int number = gd_tasks_find(tasks, old->names[i]), at = gd_tasks_add(&kept, old->names[i], &none);
        known += number >= 0;
        if (at >= 0)
            kept.rows[at] = number >= 0 ? tasks->rows[number] : 0;
    }
    if (known == tasks->count) {
        struct gd_tasks swap = *tasks;
        *tasks = kept;
        kept = swap;
    }
    gd_tasks_release(&kept);
}

/* A graft by task is made for the tasks of its data. */
static bool read_tasks(struct gd_trainer *trainer, struct gd_error *err)
{
    if (!trainer->spec->adapter.method->by_task)
        return true;
    if (!gd_tasks_read(&trainer->tasks, trainer->training_path, err)) {
        gd_error_context(err, "training_file");
        return false;
    }
    if (trainer->start != NULL)
        keep_tasks(&trainer->tasks, &trainer->start->config.tasks);
    gd_adapter_set_tasks(&trainer->spec->adapter, trainer->tasks.names, trainer->tasks.count);
    return true;
}

static bool make_graft(struct gd_trainer *trainer, const char *init_path, struct gd_error *err)
{
    struct gd_safetensors *file = NULL;
    struct gd_error damaged = {0};
    char *start = gd_format("%s/start", trainer->folder), *weights = gd_format("%s/adapter_model.safetensors", start);
    bool from = trainer->spec->init_from != NULL, ok = !from || gd_start_open(&trainer->start, trainer->model, trainer->folder, init_path, err);
    ok = ok && gd_start_adopt(trainer->spec, trainer->start, err) && read_tasks(trainer, err);
    if (!from && access(start, F_OK) == 0 && (!gd_dir_verify(start, &damaged) || !gd_safetensors_open(&file, weights, &damaged)))
        say(trainer, "warn", "the choice that this job began with is damaged and is made again: %s", damaged.message);
    struct gd_graft_source source = {.file = file, .seed = (uint64_t)trainer->spec->seed, .squares = sense, .context = trainer};
    struct gd_graft *graft = NULL;
    ok = ok && gd_start_make_graft(&graft, trainer->model, trainer->spec, trainer->start, trainer->folder, &source, err);
    trainer->graft = graft;
    if (ok) {
        graft->between = between_ops;
        graft->between_context = trainer;
    }
    if (ok && graft->summary[0] != '\0')
        say(trainer, "info", "%s", graft->summary);
    ok = ok && (!trainer->sensed || keep_start(trainer, start, err));
    gd_safetensors_close(file);
    gd_free(start);
    gd_free(weights);
    return ok;
}

/* ---- evaluation ---- */

/* The rows [begin, end) of the validation file, a packed batch at a time. */
static bool evaluate_rows(struct gd_trainer *trainer, int64_t begin, int64_t end, struct step_result *result, struct gd_error *err)
{
    const struct gd_dataset *data = trainer->valid;
    struct gd_run_options options = {.between = between_ops, .context = trainer};
    int most = GD_BATCH_SEGMENTS_MAX / (data->triples ? 3 : data->pairs ? 2 : 1);
    int64_t rows[GD_BATCH_SEGMENTS_MAX];
    for (int64_t next = begin; next < end;) {
        int count = 0, tokens = 0;
        while (next < end && count < most &&
               (count == 0 || tokens + gd_dataset_row_space(data, next) <= trainer->spec->tokens_per_batch)) {
            tokens += gd_dataset_row_space(data, next);
            rows[count++] = next++;
        }
        struct gd_pass_result pass;
        gd_batch_fill(&trainer->batch, data, rows, count, gd_token_bucket(tokens));
        if (!gd_passes_run(&trainer->passes, false, &trainer->batch, 1.0, NULL, &options, &pass, err))
            return false;
        result->loss += pass.loss;
        result->labelled += pass.labelled;
        result->correct += pass.correct;
        add_pairs(&result->pairs, &pass.pairs);
    }
    return true;
}

/* The loss, tokens and answers of the whole validation file. Losses that look at a step's rows together see as many of the
 * file's rows at a time as a training step has. */
static bool evaluate(struct gd_trainer *trainer, struct step_result *result, struct gd_error *err)
{
    const struct gd_dataset *data = trainer->valid;
    struct gd_step_counts counts = {0};
    double weight_sum = 0;
    memset(result, 0, sizeof(*result));
    if (!has_answers(trainer)) {
        for (int64_t i = 0; i < data->row_count; i++)
            weight_sum += row_weight(data, i);
        bool ok = evaluate_rows(trainer, 0, data->row_count, result, err);
        result->loss /= weight_sum;
        return ok;
    }
    for (int64_t i = 0; i < data->row_count; i++)
        gd_step_count_row(&counts, &trainer->spec->preference, data, i);
    bool together = gd_survey_needed(&trainer->spec->preference, false);
    int64_t group = together ? trainer->spec->batch_size : data->row_count, rows[GD_SURVEY_ROWS];
    for (int64_t begin = 0; begin < data->row_count; begin += group) {
        int64_t end = begin + group < data->row_count ? begin + group : data->row_count;
        for (int64_t i = begin; together && i < end; i++)
            rows[i - begin] = i;
        if (!survey(trainer, false, data, rows, together ? (int)(end - begin) : 0, begin > 0 ? begin - 1 : 0, &counts, err) ||
            !evaluate_rows(trainer, begin, end, result, err))
            return false;
        result->kl += trainer->survey.step.kl * (double)(end - begin) / (double)data->row_count;
    }
    result->shift = trainer->survey.step.shift;
    return true;
}

/* ---- checkpoints ---- */

static cJSON *facts(const struct gd_trainer *trainer)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "job_id", trainer->job_id);
    cJSON_AddItemToObject(json, "spec", gd_job_spec_json(trainer->spec));
    if (trainer->start != NULL) {
        cJSON_AddStringToObject(json, "init_from", trainer->spec->init_from);
        cJSON_AddStringToObject(json, "init_digest", trainer->start->digest);
    }
    cJSON_AddStringToObject(json, "device", gd_device()->name);
    cJSON_AddStringToObject(json, "isa", gd_device()->isa);
    cJSON_AddNumberToObject(json, "threads", gd_device()->threads);
    cJSON_AddNumberToObject(json, "total_steps", (double)trainer->total_steps);
    return json;
}

/* The adapter of this step, whole and durable. *folder: gd_free it. */
static bool begin_checkpoint(struct gd_trainer *trainer, char **folder, struct gd_error *err)
{
    cJSON *json = facts(trainer);
    bool ok = gd_checkpoint_write_adapter(trainer->folder, trainer->graft, &trainer->state, json, folder, err);
    cJSON_Delete(json);
    return ok;
}

static bool end_checkpoint(struct gd_trainer *trainer, const char *folder, const struct gd_metric *metrics, int metric_count,
                           struct gd_error *err)
{
    const struct gd_train_observer *observer = &trainer->observer;
    cJSON *json = facts(trainer);
    bool ok = (observer->checkpoint == NULL ||
               observer->checkpoint(observer->context, trainer->state.step, folder, metrics, metric_count, err)) &&
              gd_checkpoint_write_state(trainer->folder, trainer->graft, &trainer->state, json, trainer->keep_checkpoints, err);
    if (ok)
        trainer->checkpointed_step = trainer->state.step;
    cJSON_Delete(json);
    return ok;
}

static bool write_checkpoint(struct gd_trainer *trainer, struct gd_error *err)
{
    char *folder = NULL;
    bool ok = trainer->checkpointed_step == trainer->state.step ||
              (begin_checkpoint(trainer, &folder, err) && end_checkpoint(trainer, folder, NULL, 0, err));
    gd_free(folder);
    return ok;
}

/* The adapter of the best evaluation, from its checkpoint. */
static bool load_best(struct gd_trainer *trainer, struct gd_graft **out, struct gd_error *err)
{
    const struct gd_best *best = &trainer->state.best;
    char *path = gd_format("%s/checkpoints/step-%lld", trainer->folder, (long long)best->step);
    bool ok = gd_graft_load(out, trainer->model, path, err);
    if (ok)
        say(trainer, "info", "The result is the adapter of step %lld: its %s is %g", (long long)best->step,
            trainer->spec->evaluation.metric_for_best_model, best->value);
    gd_free(path);
    return ok;
}

/* ---- reading back ---- */

#define PROBE_TOKENS 256

/* The longest row of few tokens, or else the shortest: of a pair its chosen side. */
static int64_t probe_row(const struct gd_dataset *data)
{
    int64_t best = 0;
    for (int64_t i = 1; i < data->row_count; i++) {
        int32_t length = data->rows[i].length, other = data->rows[best].length;
        best = length <= PROBE_TOKENS ? (other > PROBE_TOKENS || length > other ? i : best) : length < other ? i : best;
    }
    return best;
}

/* Every token of the batch's first segment is asked for, and nothing else, as the prompt that it is when it is served. Returns the first row that is a token. */
static int ask_all(struct gd_batch *batch, const struct gd_virtual_rows *rows)
{
    int first = 0, end = batch->cu_seqlens[1];
    while (first < end && batch->index[GD_ROW_VIRTUAL][first] >= 0)
        first++;
    for (int t = 0; t < batch->capacity; t++) {
        batch->labels[t] = t >= first && t + 1 < end ? batch->ids[t + 1] : -100;
        batch->index[GD_ROW_TABLE][t] = t >= first && t < end && t - first < rows->table_rows ? t - first : -1;
    }
    return first;
}

static bool read_back(struct gd_trainer *trainer, const char *folder, struct gd_error *err)
{
    if (trainer->observer.read_back == NULL || trainer->passes.objective->scores) /* a reward model has no log-probabilities */
        return true;
    int64_t row = probe_row(trainer->train);
    struct gd_run_options options = {.between = between_ops, .context = trainer};
    gd_batch_fill(&trainer->batch, trainer->train, &row, 1, gd_token_bucket(gd_dataset_row_space(trainer->train, row)));
    int first = ask_all(&trainer->batch, &trainer->train->virtual_rows), count = trainer->batch.cu_seqlens[1] - first;
    const float *logprob = gd_passes_probe(&trainer->passes, &trainer->batch, &options, err);
    if (logprob == NULL)
        return false;
    float *shifted = gd_alloc_array((size_t)count, sizeof(float));
    for (int i = 1; i < count; i++)
        shifted[i] = logprob[first + i - 1];
    bool by_task = trainer->graft->method->by_task;
    struct gd_probe probe = {trainer->batch.ids + first, shifted, count, trainer->passes.act,
                             by_task ? trainer->tasks.names[trainer->train->rows[row].task] : NULL};
    bool ok = trainer->observer.read_back(trainer->observer.context, folder, &probe, err);
    gd_free(shifted);
    return ok;
}

static bool write_result(struct gd_trainer *trainer, struct gd_error *err)
{
    char *path = gd_format("%s/adapter", trainer->folder);
    int64_t step = trainer->state.step;
    struct gd_graft *best = NULL;
    bool ok = true;
    if (trainer->spec->evaluation.load_best_model_at_end && trainer->state.best.step > 0 && trainer->state.best.step != step) {
        ok = load_best(trainer, &best, err);
        step = trainer->state.best.step;
    }
    cJSON *json = facts(trainer);
    cJSON_AddNumberToObject(json, "step", (double)step);
    const struct gd_graft *graft = best != NULL ? best : trainer->graft;
    const float *block = best != NULL ? best->block : trainer->state.block;
    char *last = gd_format("%s/checkpoints/step-%lld", trainer->folder, (long long)trainer->state.step);
    ok = ok && gd_adapter_publish(path, graft, block, json, err) && gd_adapter_verify(path, graft, block, err) &&
         read_back(trainer, last, err);
    if (!ok && err->code != GD_CANCELLED)
        gd_error_context(err, "final adapter");
    gd_graft_destroy(best);
    cJSON_Delete(json);
    gd_free(last);
    gd_free(path);
    return ok;
}

/* ---- the loop ---- */

#define METRICS_MAX 64

enum part { TRAIN, VALID, FULL_VALID };

/* Means over the answers of a step or of the validation file; a side that has no row has none. */
static int add_answer_metrics(struct gd_metric *metrics, enum part part, const struct gd_job_spec *spec,
                              const struct step_result *result)
{
    const struct gd_preference *preference = &spec->preference;
    static const char *const names[][10] = {
        {"rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy", "logps_chosen", "logps_rejected", "kl",
         "reward_shift", "rows_desirable", "rows_undesirable"},
        {"valid_rewards_chosen", "valid_rewards_rejected", "valid_reward_margin", "valid_reward_accuracy", "valid_logps_chosen",
         "valid_logps_rejected", "valid_kl", "valid_reward_shift", "valid_rows_desirable", "valid_rows_undesirable"},
    };
    const struct gd_preference_sums *sums = &result->pairs;
    bool labelled = gd_preference_answers(preference) == GD_ANSWERS_LABELLED, kto = gd_preference_has(preference, GD_LOSS_KL);
    bool scores = gd_preference_has(preference, GD_LOSS_SCORES);
    double chosen = (double)sums->chosen, rejected = (double)sums->rejected, answers = chosen + rejected;
    struct {
        bool known;
        double value;
    } values[] = {
        {chosen > 0, sums->reward_chosen / chosen},
        {rejected > 0, sums->reward_rejected / rejected},
        {chosen > 0 && rejected > 0, sums->reward_chosen / chosen - sums->reward_rejected / rejected},
        {true, (double)sums->preferred / (double)sums->rows},
        {chosen > 0 && !scores, sums->logp_chosen / chosen},
        {rejected > 0 && !scores, sums->logp_rejected / rejected},
        {spec->reference != GD_REFERENCE_NONE, kto ? result->kl : sums->ratio / answers},
        {gd_preference_has(preference, GD_LOSS_SHIFT), gd_preference_shift_scale(preference) * result->shift},
        {labelled, chosen},
        {labelled, rejected},
    };
    int count = 0;
    for (size_t i = 0; i < GD_COUNT(values); i++)
        if (values[i].known)
            metrics[count++] = (struct gd_metric){names[part][i], values[i].value};
    return count;
}

/* What is said of a step's rows, or of the validation file's, by their kind. */
static int add_row_metrics(struct gd_metric *metrics, enum part part, const struct gd_job_spec *spec,
                           const struct step_result *result)
{
    static const char *const loss[] = {"train_loss", "valid_loss", "full_valid_loss"};
    static const char *const accuracy[] = {"train_mean_token_accuracy", "valid_mean_token_accuracy", "full_valid_mean_token_accuracy"};
    int count = 0;
    metrics[count++] = (struct gd_metric){loss[part], result->loss};
    if (result->pairs.rows > 0)
        return part == FULL_VALID ? count : count + add_answer_metrics(metrics + count, part, spec, result);
    metrics[count++] = (struct gd_metric){accuracy[part],
                                          result->labelled > 0 ? (double)result->correct / (double)result->labelled : 0.0};
    return count;
}

/* The attached evals, with the checkpoint's adapter. */
static bool run_evals(struct gd_trainer *trainer, const char *folder, struct gd_metric *metrics, int *count, struct gd_error *err)
{
    const struct gd_train_observer *observer = &trainer->observer;
    const struct gd_evaluation *evaluation = &trainer->spec->evaluation;
    int before = *count;
    if (evaluation->evals == NULL || observer->evaluate == NULL)
        return true;
    if (!observer->evaluate(observer->context, trainer->state.step, folder, evaluation->evals, metrics, METRICS_MAX, count, err))
        return false;
    gd_best_consider(&trainer->state.best, evaluation, trainer->state.step, metrics + before, *count - before);
    return true;
}

static bool after_step(struct gd_trainer *trainer, const struct step_result *result, double started, struct gd_error *err)
{
    int64_t step = trainer->state.step;
    const struct gd_job_spec *spec = trainer->spec;
    bool last = step == trainer->total_steps;
    double seconds = gd_time_monotonic() - started;
    struct gd_metric metrics[METRICS_MAX];
    int count = add_row_metrics(metrics, TRAIN, spec, result);
    if (result->penalised)
        metrics[count++] = (struct gd_metric){"penalty_loss", result->penalty};
    metrics[count++] = (struct gd_metric){"learning_rate", result->learning_rate};
    metrics[count++] = (struct gd_metric){"grad_norm", result->grad_norm};
    metrics[count++] = (struct gd_metric){"tokens_per_second", seconds > 0 ? (double)result->tokens / seconds : 0.0};
    struct step_result valid;
    bool evaluated = trainer->valid != NULL && (last || step % spec->eval_interval == 0);
    if (evaluated && !evaluate(trainer, &valid, err))
        return false;
    count += evaluated ? add_row_metrics(metrics + count, VALID, spec, &valid) : 0;

    struct gd_best *best = &trainer->state.best;
    bool improved = gd_best_consider(best, &spec->evaluation, step, metrics, count);
    bool keep = last || step % spec->checkpoint_interval == 0 || gd_best_stops(best, &spec->evaluation) ||
                (improved && spec->evaluation.load_best_model_at_end);
    char *folder = NULL;
    bool ok = !keep || (begin_checkpoint(trainer, &folder, err) && run_evals(trainer, folder, metrics, &count, err));
    if (ok && evaluated && (last || gd_best_stops(best, &spec->evaluation)))
        count += add_row_metrics(metrics + count, FULL_VALID, spec, &valid);
    assert(count <= METRICS_MAX);
    if (ok && trainer->observer.step != NULL)
        trainer->observer.step(trainer->observer.context, step, trainer->total_steps, trainer->state.trained_tokens,
                               trainer->state.tokens, seconds, metrics, count);
    ok = ok && (!keep || end_checkpoint(trainer, folder, metrics, count, err));
    gd_free(folder);
    return ok;
}

bool gd_trainer_run(struct gd_trainer *trainer, struct gd_error *err)
{
    report_quantisation(trainer);
    if (trainer->resumed_from > 0)
        say(trainer, "info", "Continuing from the checkpoint of step %lld", (long long)trainer->resumed_from);
    if (trainer->observer.started != NULL)
        trainer->observer.started(trainer->observer.context, trainer->total_steps, trainer->train->row_count,
                                  trainer->train->token_count, trainer->spec);
    const struct gd_best *best = &trainer->state.best;
    const struct gd_evaluation *evaluation = &trainer->spec->evaluation;
    while (trainer->state.step < trainer->total_steps && !gd_best_stops(best, evaluation)) {
        if (!poll_observer(trainer))
            return gd_fail(err, GD_CANCELLED, "cancelled at step %lld", (long long)trainer->state.step);
        if (trainer->command == GD_TRAIN_PAUSE)
            return (trainer->state.step == 0 || write_checkpoint(trainer, err)) &&
                   gd_fail(err, GD_CANCELLED, "paused at step %lld", (long long)trainer->state.step);
        double started = gd_time_monotonic();
        struct step_result result;
        if (!run_step(trainer, trainer->state.step + 1, &result, err) || !after_step(trainer, &result, started, err))
            return false;
    }
    if (trainer->state.step < trainer->total_steps)
        say(trainer, "info", "Stopped at step %lld of %lld: %s was %g at step %lld, and %d evaluations since were no better",
            (long long)trainer->state.step, (long long)trainer->total_steps, evaluation->metric_for_best_model, best->value,
            (long long)best->step, best->since);
    return write_result(trainer, err);
}
