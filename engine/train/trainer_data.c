/* trainer_data.c - the rows of a job: opened, counted, reported, fingerprinted. */
#include "engine/train/trainer_internal.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

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
        gd_trainer_say(trainer, "info", "%s: rows by task: %s", param, text);
}

bool gd_trainer_has_answers(const struct gd_trainer *trainer)
{
    return trainer->spec->preference.term_count > 0;
}

void gd_job_dataset_options(struct gd_dataset_options *options, const struct gd_job_spec *spec, const struct gd_model *model,
                            int virtual_rows, const struct gd_tasks *tasks)
{
    enum gd_answers answers = spec->preference.term_count > 0 ? gd_preference_answers(&spec->preference) : GD_ANSWERS_PAIR;
    bool has_answers = spec->preference.term_count > 0;
    *options = (struct gd_dataset_options){
        .context = spec->max_length > 0 ? spec->max_length : model->config.context - virtual_rows,
        .virtual_rows = virtual_rows,
        .overlong = spec->overlong,
        .drop_incomparable = spec->drop_incomparable,
        .pairs = has_answers && answers != GD_ANSWERS_LABELLED,
        .triples = has_answers && answers == GD_ANSWERS_TRIPLE,
        .labelled = has_answers && answers == GD_ANSWERS_LABELLED,
        .apart = gd_model_encodes(model),
        .tasks = spec->adapter.method->by_task ? tasks : NULL,
    };
}

bool gd_trainer_open_data(struct gd_trainer *trainer, struct gd_dataset **out, const char *path, const char *param,
                          struct gd_error *err)
{
    int virtual_rows = trainer->graft->virtual_rows.count, room = trainer->model->config.context - virtual_rows;
    const struct gd_classes classes = {.tokenizer = trainer->model->tokenizer, .labels = &trainer->labels,
                                       .multi = trainer->spec->classes.multi, .typed = trainer->model->config.types > 1};
    struct gd_dataset_options options;
    gd_job_dataset_options(&options, trainer->spec, trainer->model, virtual_rows, &trainer->tasks);
    options.progress = gd_trainer_dataset_progress;
    options.progress_context = trainer;
    options.classes = trainer->spec->classes.on ? &classes : NULL;
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
    (*out)->long_from = trainer->model->config.long_from;
    (*out)->start_id = trainer->model->config.decoder_start_id;
    const struct gd_dataset *data = *out;
    char lines[160];
    if (data->row_count == 0)
        return gd_fail_param(err, GD_BAD_FILE, param, "%s has no row with a token to train", param);
    if (data->row_count == 1 && gd_trainer_has_answers(trainer) && gd_preference_has(&trainer->spec->preference, GD_LOSS_KL))
        return gd_fail_param(err, GD_BAD_FILE, param, "%s has one row; kto compares rows with each other and needs 2 or more", param);
    name_lines(data->overlong_lines, data->dropped_rows + data->truncated_rows, lines, sizeof(lines));
    if (data->dropped_rows > 0)
        gd_trainer_say(trainer, "warn", "%s: %lld over-long rows were dropped, as data.overlong asks (line %s)", param,
                       (long long)data->dropped_rows, lines);
    if (data->truncated_rows > 0)
        gd_trainer_say(trainer, "warn", "%s: %lld over-long rows were truncated by %lld tokens in all, as data.overlong asks (line %s)", param,
                       (long long)data->truncated_rows, (long long)data->truncated_tokens, lines);
    name_lines(data->incomparable_lines, data->incomparable_rows, lines, sizeof(lines));
    if (data->incomparable_rows > 0)
        gd_trainer_say(trainer, "warn", "%s: %lld rows with identical or empty answers were dropped, as data.incomparable asks (line %s)", param,
                       (long long)data->incomparable_rows, lines);
    name_lines(data->untrained_lines, data->untrained_rows, lines, sizeof(lines));
    if (data->untrained_rows > 0)
        gd_trainer_say(trainer, "warn", "%s: %lld rows have no token to train (every weight is 0) and are left out (line %s)", param,
                       (long long)data->untrained_rows, lines);
    report_tasks(trainer, param, &data->tasks);
    return true;
}

void gd_trainer_fingerprint(const struct gd_dataset *data, char out[33])
{
    XXH3_state_t *hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    XXH3_128bits_update(hash, data->tokens, (size_t)data->token_count * sizeof(int32_t));
    XXH3_128bits_update(hash, data->weights, (size_t)data->token_count * sizeof(float));
    for (int64_t i = 0; (data->pairs || data->labelled) && i < data->row_count; i++) { /* where a side ends matters too */
        int32_t facts[] = {data->rows[i].chosen, data->rows[i].gold, data->rows[i].desirable};
        XXH3_128bits_update(hash, facts, data->triples || data->labelled ? sizeof(facts) : sizeof(facts[0]));
    }
    for (int64_t i = 0; data->classified && i < data->row_count; i++) {
        int32_t facts[] = {data->rows[i].second, data->rows[i].label_count};
        XXH3_128bits_update(hash, facts, sizeof facts);
    }
    if (data->classified)
        XXH3_128bits_update(hash, data->labels, (size_t)data->label_total * sizeof *data->labels);
    for (int i = 0; i < data->classes.count; i++)
        XXH3_128bits_update(hash, data->classes.names[i], strlen(data->classes.names[i]) + 1);
    for (int64_t i = 0; data->apart && i < data->row_count; i++)
        XXH3_128bits_update(hash, &data->rows[i].encoded, sizeof(data->rows[i].encoded));
    for (int64_t i = 0; data->tasks.count > 0 && i < data->row_count; i++)
        XXH3_128bits_update(hash, &data->rows[i].task, sizeof(data->rows[i].task));
    for (int i = 0; i < data->tasks.count; i++)
        XXH3_128bits_update(hash, data->tasks.names[i], strlen(data->tasks.names[i]) + 1);
    XXH128_hash_t digest = XXH3_128bits_digest(hash);
    XXH3_freeState(hash);
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)digest.high64, (unsigned long long)digest.low64);
}
