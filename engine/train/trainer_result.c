/* trainer_result.c - what a job leaves behind: checkpoints, the final adapter, and the proof that it is the one that was trained. */
#include "engine/train/trainer_internal.h"

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"


cJSON *gd_trainer_facts(const struct gd_trainer *trainer)
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

static bool pull_state(struct gd_trainer *trainer, struct gd_error *err)
{
    return gd_twin_pull(trainer->state.block, trainer->block_bytes, err) && gd_twin_pull(trainer->state.exp_avg, trainer->block_bytes, err) &&
           gd_twin_pull(trainer->state.exp_avg_sq, trainer->block_bytes, err);
}

/* The adapter of this step, whole and durable. *folder: gd_free it. */
bool gd_trainer_begin_checkpoint(struct gd_trainer *trainer, char **folder, struct gd_error *err)
{
    gd_trainer_rest(trainer); /* copies of the adapter, and evals, have their turn */
    cJSON *json = gd_trainer_facts(trainer);
    bool ok = pull_state(trainer, err) && gd_checkpoint_write_adapter(trainer->folder, trainer->graft, &trainer->state, json, folder, err);
    cJSON_Delete(json);
    return ok;
}

bool gd_trainer_end_checkpoint(struct gd_trainer *trainer, const char *folder, const struct gd_metric *metrics, int metric_count,
                               struct gd_error *err)
{
    const struct gd_train_observer *observer = &trainer->observer;
    cJSON *json = gd_trainer_facts(trainer);
    bool ok = (observer->checkpoint == NULL ||
               observer->checkpoint(observer->context, trainer->state.step, folder, metrics, metric_count, err)) &&
              gd_checkpoint_write_state(trainer->folder, trainer->graft, &trainer->state, json, trainer->keep_checkpoints, err);
    if (ok)
        trainer->checkpointed_step = trainer->state.step;
    cJSON_Delete(json);
    return ok;
}

bool gd_trainer_write_checkpoint(struct gd_trainer *trainer, struct gd_error *err)
{
    char *folder = NULL;
    bool ok = trainer->checkpointed_step == trainer->state.step ||
              (gd_trainer_begin_checkpoint(trainer, &folder, err) && gd_trainer_end_checkpoint(trainer, folder, NULL, 0, err));
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
        gd_trainer_say(trainer, "info", "The result is the adapter of step %lld: its %s is %g", (long long)best->step,
                       trainer->spec->evaluation.metric_for_best_model, best->value);
    gd_free(path);
    return ok;
}

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
    if (trainer->observer.read_back == NULL || trainer->passes.objective->scores ||
        trainer->passes.objective->classifies) /* neither has log-probabilities */
        return true;
    int64_t row = probe_row(trainer->train);
    struct gd_run_options options = {.between = gd_trainer_between_ops, .context = trainer};
    gd_batch_fill(&trainer->batch, trainer->train, &row, 1, gd_token_bucket(gd_dataset_row_space(trainer->train, row)));
    int first = ask_all(&trainer->batch, &trainer->train->virtual_rows), count = trainer->batch.cu_seqlens[1] - first;
    const float *logprob = gd_passes_probe(&trainer->passes, &trainer->batch, &options, err);
    if (logprob == NULL)
        return false;
    float *shifted = gd_alloc_array((size_t)count, sizeof(float));
    for (int i = 1; i < count; i++)
        shifted[i] = logprob[first + i - 1];
    gd_trainer_rest(trainer);
    bool by_task = trainer->graft->method->by_task;
    struct gd_probe probe = {.ids = trainer->batch.ids + first, .logprob = shifted, .count = count, .act = trainer->passes.act,
                             .encoder_ids = trainer->batch.encoder_ids, .encoder_count = trainer->batch.encoder_used,
                             .task = by_task ? trainer->tasks.names[trainer->train->rows[row].task] : NULL};
    bool ok = trainer->observer.read_back(trainer->observer.context, folder, &probe, err);
    gd_free(shifted);
    return ok;
}

bool gd_trainer_write_result(struct gd_trainer *trainer, struct gd_error *err)
{
    char *path = gd_format("%s/adapter", trainer->folder);
    int64_t step = trainer->state.step;
    struct gd_graft *best = NULL;
    bool ok = true;
    if (trainer->spec->evaluation.load_best_model_at_end && trainer->state.best.step > 0 && trainer->state.best.step != step) {
        ok = load_best(trainer, &best, err);
        step = trainer->state.best.step;
    }
    gd_trainer_rest(trainer);
    cJSON *json = gd_trainer_facts(trainer);
    cJSON_AddNumberToObject(json, "step", (double)step);
    const struct gd_graft *graft = best != NULL ? best : trainer->graft;
    const float *block = best != NULL ? best->block : trainer->state.block;
    char *last = gd_format("%s/checkpoints/step-%lld", trainer->folder, (long long)trainer->state.step);
    ok = ok && gd_twin_pull(trainer->state.block, trainer->block_bytes, err) && gd_adapter_publish(path, graft, block, json, err) && gd_adapter_verify(path, graft, block, err) &&
         read_back(trainer, last, err);
    if (!ok && err->code != GD_CANCELLED)
        gd_error_context(err, "final adapter");
    gd_graft_destroy(best);
    cJSON_Delete(json);
    gd_free(last);
    gd_free(path);
    return ok;
}
