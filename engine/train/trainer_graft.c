/* trainer_graft.c - the graft of a job, before training: what it is made of may depend on the rows, and stays as it was chosen. */
#include "engine/train/trainer_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"

#include <unistd.h>

/* Runs with `probe` in place of the job's graft, which does not exist yet. */
static bool sense(void *context, const struct gd_graft *probe, int batches, int batch_size, float *squares, struct gd_error *err)
{
    struct gd_trainer *trainer = context;
    struct gd_job_spec *spec = trainer->spec;
    if (spec->classes.on)
        return gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "a %s adapter chooses what it trains by next tokens, which a classifier's rows "
                             "have not; use another type (GET /v1/tuning/methods lists them)", spec->adapter.method->name);
    trainer->graft = (struct gd_graft *)(uintptr_t)probe;
    bool ok = gd_trainer_make_data(trainer, err);
    int own_batch = spec->batch_size, own_leaves = spec->leaf_count;
    spec->leaf_count = 1;
    ok = ok && gd_trainer_make_steps(trainer, batch_size, err);
    if (ok) {
        gd_graft_init(probe, trainer->state.block, 0);
        ok = gd_twin_push(trainer->state.block, trainer->block_bytes, err);
    }
    for (int64_t step = 1; ok && step <= batches && step <= trainer->steps_per_epoch; step++) {
        int row_count;
        const int64_t *rows = gd_trainer_step_rows(trainer, step, &row_count);
        ok = gd_trainer_run_rows(trainer, step, rows, row_count, err);
        if (ok)
            ok = gd_vector_add_squares(squares, gd_leaves_sum(&trainer->leaves), probe->parameter_count, err);
    }
    if (trainer->order != NULL)
        gd_trainer_release_steps(trainer);
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

bool gd_trainer_make_graft(struct gd_trainer *trainer, const char *init_path, struct gd_error *err)
{
    struct gd_safetensors *file = NULL;
    struct gd_error damaged = {0};
    char *start = gd_format("%s/start", trainer->folder), *weights = gd_format("%s/adapter_model.safetensors", start);
    bool from = trainer->spec->init_from != NULL, ok = !from || gd_start_open(&trainer->start, trainer->model, trainer->folder, init_path, err);
    ok = ok && gd_start_adopt(trainer->spec, trainer->start, err) && read_tasks(trainer, err) && gd_trainer_read_labels(trainer, err);
    if (!from && access(start, F_OK) == 0 && (!gd_dir_verify(start, &damaged) || !gd_safetensors_open(&file, weights, &damaged)))
        gd_trainer_say(trainer, "warn", "the choice that this job began with is damaged and is made again: %s", damaged.message);
    struct gd_graft_source source = {.file = file, .seed = (uint64_t)trainer->spec->seed, .squares = sense, .context = trainer};
    struct gd_graft *graft = NULL;
    ok = ok && gd_start_make_graft(&graft, trainer->model, trainer->spec, trainer->start, trainer->folder, &source, err);
    trainer->graft = graft;
    if (ok) {
        graft->between = gd_trainer_between_ops;
        graft->between_context = trainer;
    }
    if (ok && graft->summary[0] != '\0')
        gd_trainer_say(trainer, "info", "%s", graft->summary);
    ok = ok && (!trainer->sensed || keep_start(trainer, start, err));
    gd_safetensors_close(file);
    gd_free(start);
    gd_free(weights);
    return ok;
}
