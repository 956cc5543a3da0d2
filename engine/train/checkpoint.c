#include "engine/train/checkpoint.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool same_floats(const float *a, const float *b, const struct gd_graft *graft)
{
    return memcmp(a, b, (size_t)gd_graft_floats(graft) * sizeof(float)) == 0;
}

bool gd_adapter_verify(const char *path, const struct gd_graft *graft, const float *block, struct gd_error *err)
{
    struct gd_graft *loaded = NULL, *kept = NULL;
    float *have = gd_alloc((size_t)gd_graft_floats(graft) * sizeof(float));
    bool ok = gd_graft_read(&loaded, graft->model, path, err), same = false;
    if (ok && graft->bakes) {
        ok = gd_graft_keep(graft, block, &kept, err);
        same = ok && gd_graft_floats(kept) == gd_graft_floats(loaded) && same_floats(loaded->block, kept->block, kept);
    } else if (ok) {
        ok = gd_graft_resume(graft, loaded, have, err);
        same = ok && same_floats(have, block, graft);
    }
    if (ok && !same)
        ok = gd_fail(err, GD_INTERNAL, "%s: what is read is not what was written", path);
    gd_graft_destroy(loaded);
    gd_graft_destroy(kept);
    gd_free(have);
    return ok;
}

/* Whether a sound adapter with exactly these weights stands at `path`. */
static bool stands(const char *path, const struct gd_graft *graft, const float *block)
{
    struct gd_error ignored = {0};
    return gd_path_exists(path) && gd_adapter_verify(path, graft, block, &ignored);
}

bool gd_adapter_publish(const char *path, const struct gd_graft *graft, const float *block, const cJSON *extra,
                        struct gd_error *err)
{
    struct gd_dir_tx *tx = NULL;
    if (stands(path, graft, block))
        return true;
    if ((gd_path_exists(path) && !gd_remove_tree(path, err)) || !gd_dir_tx_begin(&tx, path, err))
        return false;
    if (gd_graft_save(graft, block, gd_dir_tx_path(tx), extra, err))
        return gd_dir_tx_commit(tx, err);
    gd_dir_tx_abort(tx);
    return false;
}

static bool write_adapter(const char *folder, const struct gd_graft *graft, const struct gd_checkpoint *checkpoint,
                          const cJSON *facts, char **path, struct gd_error *err)
{
    char *parent = gd_format("%s/checkpoints", folder);
    *path = gd_format("%s/step-%lld", parent, (long long)checkpoint->step);
    cJSON *extra = cJSON_Duplicate(facts, true);
    cJSON_AddNumberToObject(extra, "step", (double)checkpoint->step);
    bool ok = gd_mkdirs(parent, err) && gd_adapter_publish(*path, graft, checkpoint->block, extra, err);
    cJSON_Delete(extra);
    gd_free(parent);
    return ok;
}

/* A number to its last bit, as hexadecimal text. */
static void add_exact(cJSON *json, const char *key, double value)
{
    char text[64];
    snprintf(text, sizeof(text), "%a", value);
    cJSON_AddStringToObject(json, key, text);
}

static bool get_exact(const cJSON *json, const char *key, double *value, struct gd_error *err)
{
    const char *text = NULL;
    char *end = NULL;
    *value = 0;
    if (!gd_json_get_string(json, "", key, false, 1, 63, &text, err))
        return false;
    if (text == NULL)
        return true;
    *value = strtod(text, &end);
    return (*end == '\0' && isfinite(*value)) || gd_fail(err, GD_BAD_FILE, "trainer.json: %s is '%s', which is no number", key, text);
}

static bool fill_state(const char *path, const struct gd_graft *graft, const struct gd_checkpoint *checkpoint,
                       const cJSON *facts, struct gd_error *err)
{
    int64_t count = graft->parameter_count;
    struct gd_safetensors_entry entries[] = {
        {"exp_avg", {.dtype = GD_F32, .rank = 1, .shape = {count}, .data = checkpoint->exp_avg}},
        {"exp_avg_sq", {.dtype = GD_F32, .rank = 1, .shape = {count}, .data = checkpoint->exp_avg_sq}},
        {"parameters", {.dtype = GD_F32, .rank = 1, .shape = {gd_graft_floats(graft)}, .data = checkpoint->block}},
    };
    int entry_count = graft->bakes ? 3 : 2; /* else the adapter has them */
    char *weights = gd_format("%s/optimizer.safetensors", path), *json_path = gd_format("%s/trainer.json", path);
    cJSON *json = cJSON_Duplicate(facts, true);
    cJSON_AddNumberToObject(json, "step", (double)checkpoint->step);
    cJSON_AddNumberToObject(json, "trained_tokens", (double)checkpoint->trained_tokens);
    cJSON_AddNumberToObject(json, "tokens", (double)checkpoint->tokens);
    cJSON_AddStringToObject(json, "data_fingerprint", checkpoint->data_fingerprint);
    cJSON_AddNumberToObject(json, "best_step", (double)checkpoint->best.step);
    cJSON_AddNumberToObject(json, "best_value", checkpoint->best.value);
    cJSON_AddNumberToObject(json, "best_since", checkpoint->best.since);
    add_exact(json, "running_mean", checkpoint->running_mean);
    add_exact(json, "running_count", checkpoint->running_count);
    char *text = gd_json_print(json);
    bool ok = gd_safetensors_write(weights, entries, entry_count, NULL, err) && gd_file_write_durable(json_path, text, strlen(text), err);
    gd_free(text);
    cJSON_Delete(json);
    gd_free(weights);
    gd_free(json_path);
    return ok;
}

static bool write_state(const char *folder, const struct gd_graft *graft, const struct gd_checkpoint *checkpoint,
                        const cJSON *facts, struct gd_error *err)
{
    char *parent = gd_format("%s/state", folder), *path = gd_format("%s/step-%lld", parent, (long long)checkpoint->step);
    struct gd_dir_tx *tx = NULL;
    /* A state of this step that is there already was found damaged: else the run would have continued from it. */
    bool ok = gd_mkdirs(parent, err) && (!gd_path_exists(path) || gd_remove_tree(path, err)) && gd_dir_tx_begin(&tx, path, err);
    if (ok && !fill_state(gd_dir_tx_path(tx), graft, checkpoint, facts, err)) {
        gd_dir_tx_abort(tx);
        ok = false;
    } else if (ok) {
        ok = gd_dir_tx_commit(tx, err);
    }
    gd_free(path);
    gd_free(parent);
    return ok;
}

/* Steps that have a state folder, newest first. */
static int list_steps(const char *folder, int64_t *steps, int max)
{
    char *parent = gd_format("%s/state", folder);
    int count = 0;
    DIR *dir = opendir(parent);
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        long long step;
        char rest;
        if (sscanf(entry->d_name, "step-%lld%c", &step, &rest) != 1)
            continue;
        int at = count < max ? count++ : max - 1;
        while (at > 0 && steps[at - 1] < step) {
            steps[at] = steps[at - 1];
            at--;
        }
        steps[at] = step;
    }
    if (dir != NULL)
        closedir(dir);
    gd_free(parent);
    return count;
}

#define STEPS_LISTED 4096

static void prune(const char *folder, int keep)
{
    int64_t *steps = gd_alloc_array(STEPS_LISTED, sizeof(int64_t));
    int count = list_steps(folder, steps, STEPS_LISTED);
    for (int i = keep < 2 ? 2 : keep; i < count; i++) {
        struct gd_error ignored = {0};
        char *path = gd_format("%s/state/step-%lld", folder, (long long)steps[i]);
        if (!gd_remove_tree(path, &ignored))
            gd_error_clear(&ignored); /* an old state that stays costs only room; the next checkpoint tries again */
        gd_free(path);
    }
    gd_free(steps);
}

bool gd_checkpoint_write_adapter(const char *folder, const struct gd_graft *graft, const struct gd_checkpoint *checkpoint,
                                 const cJSON *facts, char **adapter_folder, struct gd_error *err)
{
    if (write_adapter(folder, graft, checkpoint, facts, adapter_folder, err))
        return true;
    gd_error_context(err, "checkpoint at step %lld", (long long)checkpoint->step);
    return false;
}

bool gd_checkpoint_write_state(const char *folder, const struct gd_graft *graft, const struct gd_checkpoint *checkpoint,
                               const cJSON *facts, int keep, struct gd_error *err)
{
    bool ok = write_state(folder, graft, checkpoint, facts, err);
    if (ok)
        prune(folder, keep);
    else
        gd_error_context(err, "checkpoint at step %lld", (long long)checkpoint->step);
    return ok;
}

static bool read_floats(const struct gd_safetensors *file, const char *name, float *out, int64_t count, struct gd_error *err)
{
    struct gd_tensor tensor;
    if (!gd_safetensors_find(file, name, &tensor) || tensor.dtype != GD_F32 || tensor.rank != 1 || tensor.shape[0] != count)
        return gd_fail(err, GD_BAD_FILE, "optimizer.safetensors: '%s' is missing or has another size than %lld", name,
                       (long long)count);
    memcpy(out, tensor.data, (size_t)count * sizeof(float));
    return true;
}

static bool read_step(const char *folder, const struct gd_graft *graft, int64_t step, struct gd_checkpoint *checkpoint,
                      cJSON **facts, struct gd_error *err)
{
    char *state = gd_format("%s/state/step-%lld", folder, (long long)step);
    char *adapter = gd_format("%s/checkpoints/step-%lld", folder, (long long)step);
    char *json_path = gd_format("%s/trainer.json", state), *weights = gd_format("%s/optimizer.safetensors", state);
    struct gd_safetensors *file = NULL;
    struct gd_graft *loaded = NULL;
    cJSON *json = NULL;
    const char *fingerprint = NULL;
    int64_t recorded = 0, since = 0;
    struct gd_best best = {0};
    bool ok = gd_dir_verify(state, err) && gd_dir_verify(adapter, err) && gd_graft_read(&loaded, graft->model, adapter, err);
    if (ok) {
        json = gd_json_parse_file(json_path, 16u << 20, err);
        ok = json != NULL && gd_safetensors_open(&file, weights, err);
    }
    ok = ok && gd_json_get_int(json, "", "step", true, step, step, &recorded, err) &&
         gd_json_get_int(json, "", "trained_tokens", true, 0, INT64_MAX >> 11, &checkpoint->trained_tokens, err) &&
         gd_json_get_int(json, "", "tokens", true, 0, INT64_MAX >> 11, &checkpoint->tokens, err) &&
         gd_json_get_string(json, "", "data_fingerprint", true, 32, 32, &fingerprint, err) &&
         gd_json_get_int(json, "", "best_step", false, 0, step, &best.step, err) &&
         gd_json_get_number(json, "", "best_value", false, -HUGE_VAL, HUGE_VAL, &best.value, err) &&
         gd_json_get_int(json, "", "best_since", false, 0, INT32_MAX, &since, err) &&
         get_exact(json, "running_mean", &checkpoint->running_mean, err) &&
         get_exact(json, "running_count", &checkpoint->running_count, err) &&
         read_floats(file, "exp_avg", checkpoint->exp_avg, graft->parameter_count, err) &&
         read_floats(file, "exp_avg_sq", checkpoint->exp_avg_sq, graft->parameter_count, err) &&
         (graft->bakes ? read_floats(file, "parameters", checkpoint->block, gd_graft_floats(graft), err)
                       : gd_graft_resume(graft, loaded, checkpoint->block, err));
    if (ok) {
        memcpy(checkpoint->data_fingerprint, fingerprint, 33);
        checkpoint->step = step;
        checkpoint->best = best;
        checkpoint->best.since = (int)since;
        *facts = json;
    } else {
        cJSON_Delete(json);
    }
    gd_graft_destroy(loaded);
    gd_safetensors_close(file);
    gd_free(state);
    gd_free(adapter);
    gd_free(json_path);
    gd_free(weights);
    return ok;
}

void gd_checkpoint_read_newest(const char *folder, const struct gd_graft *graft, struct gd_checkpoint *checkpoint,
                               cJSON **facts, void (*damaged)(void *context, int64_t step, const char *why), void *context)
{
    int64_t *steps = gd_alloc_array(STEPS_LISTED, sizeof(int64_t));
    int count = list_steps(folder, steps, STEPS_LISTED);
    bool found = false;
    for (int i = 0; i < count && !found; i++) {
        struct gd_error why = {0};
        found = read_step(folder, graft, steps[i], checkpoint, facts, &why);
        if (!found && damaged != NULL)
            damaged(context, steps[i], why.message);
    }
    if (!found)
        checkpoint->step = 0;
    gd_free(steps);
}
