#include "engine/train/reference.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/json.h"
#include "engine/model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define FACTS_BYTES_MAX (1u << 20)

static bool fail_missing(const struct gd_dataset *data, const char *name, int64_t given, struct gd_error *err)
{
    char lines[160] = "";
    int named = 0;
    for (int64_t i = 0; i < data->row_count && named < GD_DATASET_LINES_NAMED; i++)
        if (!data->rows[i].has_reference)
            snprintf(lines + strlen(lines), sizeof(lines) - strlen(lines), "%s%lld", named++ ? ", " : "", (long long)data->rows[i].line);
    return gd_fail_param(err, GD_INVALID, "ref_chosen_logps", "%s_file: %lld of %lld rows bring ref_chosen_logps and ref_rejected_logps "
                         "that hold for them (line %s%s do not; those of a truncated row do not): give them in all rows or in none",
                         name, (long long)given, (long long)data->row_count, lines, data->row_count - given > named ? ", ..." : "");
}

static bool compute(struct gd_passes *passes, struct gd_dataset *data, struct gd_batch *batch, int token_budget,
                    const struct gd_run_options *options, struct gd_error *err)
{
    int64_t rows[GD_BATCH_SEGMENTS_MAX];
    for (int64_t next = 0; next < data->row_count;) {
        int count = 0, space = 0, sides = gd_preference_sides(passes->preference);
        float logps[GD_BATCH_SEGMENTS_MAX];
        while (next < data->row_count && count < GD_BATCH_SEGMENTS_MAX / sides &&
               (count == 0 || space + gd_dataset_row_space(data, next) <= token_budget)) {
            space += gd_dataset_row_space(data, next);
            rows[count++] = next++;
        }
        gd_batch_fill(batch, data, rows, count, gd_token_bucket(space));
        if (!gd_passes_reference(passes, batch, options, logps, err))
            return false;
        for (int i = 0; i < count; i++) {
            struct gd_dataset_row *row = &data->rows[rows[i]];
            bool finite = true;
            for (int s = 0; s < sides; s++) {
                row->reference[s] = logps[sides * i + s];
                finite &= isfinite(row->reference[s]);
            }
            if (!finite)
                return gd_fail(err, GD_INTERNAL, "the reference's log-probability of line %lld is not finite", (long long)row->line);
        }
    }
    return true;
}

/* Reads back what an earlier attempt kept. False: nothing that holds. */
static bool read_kept(const char *path, const struct gd_reference_facts *facts, struct gd_dataset *data, int sides)
{
    struct gd_error ignored = {0};
    struct gd_safetensors *file = NULL;
    struct gd_tensor tensor;
    struct stat info;
    char *json_path = gd_format("%s/reference.json", path), *logps_path = gd_format("%s/logps.safetensors", path);
    cJSON *json = NULL;
    const char *of_data = NULL, *of_model = NULL;
    bool ok = stat(path, &info) == 0 && gd_dir_verify(path, &ignored) &&
              (json = gd_json_parse_file(json_path, FACTS_BYTES_MAX, &ignored)) != NULL &&
              gd_json_get_string(json, "", "data", true, 1, 128, &of_data, &ignored) &&
              gd_json_get_string(json, "", "model", true, 1, 256, &of_model, &ignored) && strcmp(of_data, facts->data) == 0 &&
              strcmp(of_model, facts->model) == 0 && gd_safetensors_open(&file, logps_path, &ignored) &&
              gd_safetensors_find(file, "logps", &tensor) && tensor.dtype == GD_F32 && tensor.rank == 2 &&
              tensor.shape[0] == data->row_count && tensor.shape[1] == sides;
    for (int64_t i = 0; ok && i < data->row_count; i++)
        memcpy(data->rows[i].reference, (const float *)tensor.data + sides * i, (size_t)sides * sizeof(float));
    gd_safetensors_close(file);
    cJSON_Delete(json);
    gd_free(json_path);
    gd_free(logps_path);
    return ok;
}

static bool fill(const char *path, const struct gd_reference_facts *facts, const struct gd_dataset *data, int sides,
                 struct gd_error *err)
{
    float *logps = gd_alloc_array((size_t)data->row_count * (size_t)sides, sizeof(float));
    for (int64_t i = 0; i < data->row_count; i++)
        memcpy(logps + sides * i, data->rows[i].reference, (size_t)sides * sizeof(float));
    struct gd_safetensors_entry entry = {"logps", {.dtype = GD_F32, .rank = 2, .shape = {data->row_count, sides}, .data = logps}};
    char *json_path = gd_format("%s/reference.json", path), *logps_path = gd_format("%s/logps.safetensors", path);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "data", facts->data);
    cJSON_AddStringToObject(json, "model", facts->model);
    char *text = gd_json_print(json);
    bool ok = gd_safetensors_write(logps_path, &entry, 1, NULL, err) && gd_file_write_durable(json_path, text, strlen(text), err);
    cJSON_Delete(json);
    gd_free(text);
    gd_free(json_path);
    gd_free(logps_path);
    gd_free(logps);
    return ok;
}

static bool keep(const char *path, const struct gd_reference_facts *facts, const struct gd_dataset *data, int sides,
                 struct gd_error *err)
{
    struct gd_dir_tx *tx = NULL;
    struct stat info;
    if ((stat(path, &info) == 0 && !gd_remove_tree(path, err)) || !gd_dir_tx_begin(&tx, path, err))
        return false;
    if (fill(gd_dir_tx_path(tx), facts, data, sides, err))
        return gd_dir_tx_commit(tx, err);
    gd_dir_tx_abort(tx);
    return false;
}

bool gd_reference_prepare(struct gd_passes *passes, struct gd_dataset *data, struct gd_batch *batch, int token_budget,
                          const char *folder, const struct gd_reference_facts *facts, const struct gd_run_options *options,
                          bool *computed, struct gd_error *err)
{
    int sides = gd_preference_sides(passes->preference);
    int64_t given = 0;
    *computed = false;
    for (int64_t i = 0; i < data->row_count; i++)
        given += data->rows[i].has_reference;
    if (given > 0 && passes->preference->ld_alpha != 1)
        return gd_fail_param(err, GD_INVALID, "ref_chosen_logps", "%s_file: the rows bring ref_chosen_logps, which are of whole answers; "
                             "with ld_alpha leave them out, and they are computed", facts->name);
    if (given > 0)
        return given == data->row_count || fail_missing(data, facts->name, given, err);
    char *path = gd_format("%s/reference-%s", folder, facts->name);
    bool ok = read_kept(path, facts, data, sides);
    if (!ok) {
        *computed = true;
        ok = compute(passes, data, batch, token_budget, options, err) && keep(path, facts, data, sides, err);
        if (!ok)
            gd_error_context(err, "the reference's log-probabilities");
    }
    gd_free(path);
    return ok;
}
