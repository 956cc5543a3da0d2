/* The gradient of every weight of each family's tiny model against transformers, in f32: all models with a gradients.json
 * (tests/fixtures/make_gradients.py, which says what stands in it). */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/json.h"
#include "engine/tensor/device.h"
#include "engine/train/passes.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VECTORS 8
#define ROWS_MAX 8
#define TOKENS_MAX 256
#define PREFIX "base_model.model."

static void must(bool ok, const struct gd_error *err)
{
    if (!ok)
        fail_msg("%s", err->message);
}

static float sign(int64_t i, int k)
{
    uint32_t h = (uint32_t)((uint64_t)i * 2654435761u + (uint64_t)k * 0x9E3779B9u);
    h ^= h >> 15;
    h *= 2246822519u;
    return h >> 31 ? -1.0f : 1.0f;
}

static void fill_rows(struct gd_dataset *data, const cJSON *rows, int64_t *targets)
{
    const cJSON *row, *id;
    *data = (struct gd_dataset){0};
    data->rows = gd_alloc_array(ROWS_MAX, sizeof(*data->rows));
    data->tokens = gd_alloc_array(TOKENS_MAX, sizeof(int32_t));
    data->weights = gd_alloc_array(TOKENS_MAX, sizeof(float));
    int at = 0;
    *targets = 0;
    cJSON_ArrayForEach(row, rows) {
        assert_true(data->row_count < ROWS_MAX && at + cJSON_GetArraySize(row) <= TOKENS_MAX);
        data->rows[data->row_count] = (struct gd_dataset_row){.line = data->row_count + 1, .offset = at,
                                                              .length = cJSON_GetArraySize(row)};
        data->row_count++;
        *targets += cJSON_GetArraySize(row) - 1;
        cJSON_ArrayForEach(id, row) {
            data->tokens[at] = id->valueint;
            data->weights[at++] = 1;
        }
    }
}

/* How far a gradient is from the one whose length and products are given, and that one's length. */
static double distance(const float *gradient, int64_t count, const cJSON *expected, double *length)
{
    double squares = 0, apart = 0;
    for (int64_t i = 0; i < count; i++)
        squares += (double)gradient[i] * (double)gradient[i];
    for (int k = 0; k < VECTORS; k++) {
        double product = 0;
        for (int64_t i = 0; i < count; i++)
            product += (double)gradient[i] * (double)sign(i, k);
        double error = product - cJSON_GetArrayItem(expected, k + 1)->valuedouble;
        apart += error * error / VECTORS;
    }
    *length = cJSON_GetArrayItem(expected, 0)->valuedouble;
    return fmax(sqrt(apart), fabs(sqrt(squares) - *length));
}

static void compare(const char *name, const struct gd_graft *graft, const float *grad, const cJSON *expected)
{
    const cJSON *each;
    double all = 0, length;
    cJSON_ArrayForEach(each, expected)
        all += pow(cJSON_GetArrayItem(each, 0)->valuedouble, 2);
    assert_int_equal(graft->param_count, cJSON_GetArraySize(expected));
    for (int i = 0; i < graft->param_count; i++) {
        const struct gd_graft_param *param = &graft->params[i];
        each = cJSON_GetObjectItemCaseSensitive(expected, param->name + strlen(PREFIX));
        if (each == NULL)
            fail_msg("%s: %s has no gradient in the fixture", name, param->name);
        double apart = distance(grad + param->offset, param->shape[0] * param->shape[1], each, &length);
        if (!(apart <= 1e-4 * length + 1e-6 * sqrt(all)))
            fail_msg("%s: the gradient of %s is off by %g; its length is %g", name, param->name, apart, length);
    }
}

static void check_model(const char *name, const char *path, const cJSON *fixture)
{
    static const int64_t rows[ROWS_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};
    struct gd_model *model = NULL;
    struct gd_graft *graft = NULL;
    struct gd_adapter_config config;
    struct gd_dataset data;
    struct gd_passes passes;
    struct gd_batch batch;
    struct gd_pass_result result;
    struct gd_error err = {0};
    int32_t key[4] = {0};
    int64_t targets = 0;
    must(gd_model_open(&model, name, path, &err), &err);
    cJSON *json = cJSON_Parse("{\"type\": \"full\", \"train_embeddings\": true}");
    must(gd_adapter_config_parse(&config, json, &err) && gd_graft_create(&graft, model, &config, &err), &err);
    assert_int_equal(graft->parameter_count, model->parameter_count);
    float *block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    float *grad = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_graft_init(graft, block, 1);
    fill_rows(&data, gd_json_find(fixture, "rows"), &targets);
    data.long_from = model->config.long_from;
    gd_passes_init(&passes, model, graft, gd_objective_find("supervised"), NULL, GD_F32, block, grad);
    gd_batch_init(&batch, TOKENS_MAX, GD_BATCH_SEGMENTS_MAX);
    gd_batch_fill(&batch, &data, rows, data.row_count, gd_token_bucket((int)targets + data.row_count));
    must(gd_passes_run(&passes, true, &batch, 1.0 / (double)targets, key, NULL, &result, &err), &err);
    double loss = gd_json_find(fixture, "loss")->valuedouble;
    if (!(fabs(result.loss - loss) <= 1e-5 * loss))
        fail_msg("%s: the loss is %.9g, not %.9g", name, result.loss, loss);
    compare(name, graft, grad, gd_json_find(fixture, "gradients"));
    gd_passes_release(&passes);
    gd_batch_release(&batch);
    gd_graft_destroy(graft);
    gd_adapter_config_release(&config);
    gd_model_destroy(model);
    cJSON_Delete(json);
    gd_free(block);
    gd_free(grad);
    gd_free(data.rows);
    gd_free(data.tokens);
    gd_free(data.weights);
}

static void every_weight_of_every_family_has_the_gradient_of_the_reference(void **state)
{
    char *folder = gd_format("%s/models", getenv("GD_FIXTURES"));
    DIR *dir = opendir(folder);
    int checked = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char *path = gd_format("%s/%s", folder, entry->d_name), *file = gd_format("%s/gradients.json", path);
        struct gd_error err = {0};
        cJSON *fixture = entry->d_name[0] != '.' && gd_path_exists(file) ? gd_json_parse_file(file, 1 << 20, &err) : NULL;
        must(err.code == GD_OK, &err);
        if (fixture != NULL) {
            check_model(entry->d_name, path, fixture);
            checked++;
        }
        cJSON_Delete(fixture);
        gd_free(path);
        gd_free(file);
    }
    closedir(dir);
    gd_free(folder);
    assert_true(checked >= 6);
}

static int set_up(void **state)
{
    struct gd_error err = {0};
    must(gd_device_init("cpu", 2, &err), &err);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_of_every_family_has_the_gradient_of_the_reference),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
