/*
 * answers_testing.h - what the tests of losses over answers share: stored tensors, pairs of rows, and the LoRA of the fixtures.
 *
 * Why      make_preference.py and make_reward.py store their rows and parameters in one way.
 * Memory   gd_free and destroy what is returned; a dataset's arrays with free_rows.
 * Threads  One.
 * Errors   A failure ends the test.
 * Limits   LENGTH_MAX tokens of an answer with its prompt
 * Life     none
 */
#ifndef TESTS_TRAIN_ANSWERS_TESTING_H
#define TESTS_TRAIN_ANSWERS_TESTING_H

#include "engine/adapter/adapter.h"
#include "engine/data/dataset.h"
#include "engine/model/safetensors.h"
#include "tests/unit/base/scratch.h"

#include <math.h>

#define LENGTH_MAX 24

/* |a - b| / |b| */
static inline double distance(const float *a, const float *b, int64_t count)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return sqrt(difference) / (sqrt(size) + 1e-12);
}

static inline struct gd_tensor stored(const struct gd_safetensors *file, const char *prefix, const char *name)
{
    struct gd_tensor found;
    char key[256];
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    if (!gd_safetensors_find(file, key, &found))
        fail_msg("%s is not in the fixture", key);
    return found;
}

/* Pairs of the stored ids [pairs, 2, LENGTH_MAX] and lengths [pairs, 2]; what stands after `prompt` is trained. */
static inline void load_pairs(struct gd_dataset *data, const struct gd_safetensors *file, int pairs, int prompt)
{
    const int32_t *ids = stored(file, "", "ids").data, *lengths = stored(file, "", "lengths").data;
    data->pairs = true;
    data->row_count = pairs;
    data->rows = gd_alloc_array((size_t)pairs, sizeof(*data->rows));
    data->tokens = gd_alloc_array((size_t)pairs * 2 * LENGTH_MAX, sizeof(int32_t));
    data->weights = gd_alloc_array((size_t)pairs * 2 * LENGTH_MAX, sizeof(float));
    for (int row = 0; row < pairs; row++) {
        data->rows[row] = (struct gd_dataset_row){.line = row + 1, .offset = data->token_count, .chosen = lengths[2 * row],
                                                  .length = lengths[2 * row] + lengths[2 * row + 1]};
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < lengths[2 * row + side]; i++) {
                data->tokens[data->token_count] = ids[(2 * row + side) * LENGTH_MAX + i];
                data->weights[data->token_count++] = i >= prompt;
            }
    }
}

static inline void free_rows(struct gd_dataset *data)
{
    gd_free(data->rows);
    gd_free(data->tokens);
    gd_free(data->weights);
}

/* tiny-llama and the file training/NAME of the fixtures. */
static inline void open_stored(struct gd_model **model, struct gd_safetensors **file, const char *name)
{
    struct gd_error err = {0};
    const char *fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    char *base = gd_format("%s/models/tiny-llama", fixtures), *path = gd_format("%s/training/%s", fixtures, name);
    must(gd_model_open(model, "tiny-llama", base, &err), &err);
    must(gd_safetensors_open(file, path, &err), &err);
    gd_free(base);
    gd_free(path);
}

/* The LoRA whose parameters make_preference.py stores. */
static inline struct gd_graft *make_lora(const struct gd_model *model)
{
    struct gd_error err = {0};
    struct gd_graft *graft = NULL;
    struct gd_adapter_config config = {0};
    cJSON *json = cJSON_Parse("{\"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\", \"v_proj\"]}");
    must(gd_adapter_config_parse(&config, json, &err), &err);
    must(gd_graft_create(&graft, model, &config, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    return graft;
}

#endif
