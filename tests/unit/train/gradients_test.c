/* The gradient of every weight of each family's tiny model against transformers, in f32: all models with gradients*.json
 * (tests/fixtures/make_gradients.py, which says what stands in them), encoders as classifiers, encoders with decoders. */
#include "engine/base/json.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "engine/train/passes.h"
#include "tests/unit/base/scratch.h"
#include "tests/unit/tensor/reading.h"

#include <glob.h>
#include <math.h>
#include <unistd.h>

#define VECTORS 8
#define ROWS_MAX 8
#define TOKENS_MAX 256
#define PREFIX "base_model.model."

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

/* `all`: the length of all gradients together. */
static void check_close(const char *name, const char *param, double apart, double length, double all)
{
    if (!(apart <= 1e-4 * length + 1e-6 * all))
        fail_msg("%s: the gradient of %s is off by %g; its length is %g", name, param, apart, length);
}

/* A graft of every weight of a model, and what training it needs. */
struct trial {
    struct gd_model *model;
    struct gd_graft *graft;
    struct gd_dataset data;
    struct gd_passes passes;
    struct gd_batch batch;
    float *block, *grad;
};

static struct trial *trial_begin(const char *name, const char *path)
{
    struct trial *trial = gd_alloc(sizeof(*trial));
    struct gd_error err = {0};
    must(gd_model_open(&trial->model, name, path, &err), &err);
    return trial;
}

/* A classifier gets a head of the base's labels, which begins as the base's own. */
static void make_graft(struct trial *trial)
{
    struct gd_adapter_config config;
    struct gd_error err = {0};
    cJSON *json = cJSON_Parse("{\"type\": \"full\", \"train_embeddings\": true}");
    must(gd_adapter_config_parse(&config, json, &err), &err);
    gd_adapter_set_labels(&config, trial->model->config.labels, trial->model->config.label_count, trial->model->config.multi_label);
    must(gd_graft_create(&trial->graft, trial->model, &config, &err), &err);
    trial->block = gd_alloc_array((size_t)gd_graft_floats(trial->graft), sizeof(float));
    trial->grad = gd_alloc_array((size_t)gd_graft_floats(trial->graft), sizeof(float));
    gd_graft_init(trial->graft, trial->block, 1);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
}

/* The loss of all rows, and its gradient. */
static double run(struct trial *trial, const char *objective, int tokens, double scale)
{
    static const int64_t rows[ROWS_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};
    struct gd_pass_result result;
    struct gd_error err = {0};
    int32_t key[4] = {0};
    trial->data.long_from = trial->model->config.long_from;
    gd_passes_init(&trial->passes, trial->model, trial->graft, gd_objective_find(objective), NULL, GD_F32, trial->block, trial->grad);
    gd_batch_init(&trial->batch, TOKENS_MAX, GD_BATCH_SEGMENTS_MAX);
    gd_batch_fill(&trial->batch, &trial->data, rows, (int)trial->data.row_count, gd_token_bucket(tokens));
    must(gd_passes_run(&trial->passes, true, &trial->batch, scale, key, NULL, &result, &err), &err);
    return result.loss;
}

static void check_loss(const char *name, double got, double wanted)
{
    if (!(fabs(got - wanted) <= 1e-5 * wanted))
        fail_msg("%s: the loss is %.9g, not %.9g", name, got, wanted);
}

static void trial_end(struct trial *trial)
{
    gd_passes_release(&trial->passes);
    gd_batch_release(&trial->batch);
    gd_graft_destroy(trial->graft);
    gd_model_destroy(trial->model);
    gd_free(trial->block);
    gd_free(trial->grad);
    gd_free(trial->data.rows);
    gd_free(trial->data.tokens);
    gd_free(trial->data.weights);
    gd_free(trial->data.labels);
    gd_tasks_release(&trial->data.classes);
    gd_free(trial);
}

/* ---- decoders: gradients.json ---- */

static void compare(const char *name, const struct trial *trial, const cJSON *expected)
{
    const cJSON *each;
    double all = 0, length;
    cJSON_ArrayForEach(each, expected)
        all += pow(cJSON_GetArrayItem(each, 0)->valuedouble, 2);
    assert_int_equal(trial->graft->param_count, cJSON_GetArraySize(expected));
    for (int i = 0; i < trial->graft->param_count; i++) {
        const struct gd_graft_param *param = &trial->graft->params[i];
        each = cJSON_GetObjectItemCaseSensitive(expected, param->name + strlen(PREFIX));
        if (each == NULL)
            fail_msg("%s: %s has no gradient in the fixture", name, param->name);
        double apart = distance(trial->grad + param->offset, param->shape[0] * param->shape[1], each, &length);
        check_close(name, param->name, apart, length, sqrt(all));
    }
}

static void check_model(const char *name, const char *path, const cJSON *fixture)
{
    struct trial *trial = trial_begin(name, path);
    int64_t targets = 0;
    make_graft(trial);
    assert_int_equal(trial->graft->parameter_count, trial->model->parameter_count);
    fill_rows(&trial->data, gd_json_find(fixture, "rows"), &targets);
    double loss = run(trial, "supervised", (int)targets + (int)trial->data.row_count, 1.0 / (double)targets);
    check_loss(name, loss, gd_json_find(fixture, "loss")->valuedouble);
    compare(name, trial, gd_json_find(fixture, "gradients"));
    trial_end(trial);
}

/* The same files under another config.json. */
static char *patched(const char *path, const cJSON *patch)
{
    static const char *const others[] = {"model.safetensors", "tokenizer.json", "tokenizer_config.json"};
    static char folder[] = "/tmp/graftd-gradients-XXXXXX";
    struct gd_error err = {0};
    memcpy(folder + sizeof(folder) - 7, "XXXXXX", 6);
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < GD_COUNT(others); i++) {
        char *from = gd_format("%s/%s", path, others[i]), *to = gd_format("%s/%s", folder, others[i]);
        assert_int_equal(symlink(from, to), 0);
        gd_free(from);
        gd_free(to);
    }
    char *from = gd_format("%s/config.json", path), *to = gd_format("%s/config.json", folder);
    cJSON *config = gd_json_parse_file(from, 1 << 20, &err);
    const cJSON *each;
    cJSON_ArrayForEach(each, patch)
        cJSON_ReplaceItemInObjectCaseSensitive(config, each->string, cJSON_Duplicate(each, true));
    char *text = gd_json_print(config);
    must(gd_file_write_durable(to, text, strlen(text), &err), &err);
    cJSON_Delete(config);
    gd_free(text);
    gd_free(from);
    gd_free(to);
    return folder;
}

static void check_fixture(const char *name, const char *path, const char *file)
{
    struct gd_error err = {0};
    cJSON *fixture = gd_json_parse_file(file, 1 << 20, &err);
    must(fixture != NULL, &err);
    const cJSON *patch = gd_json_find(fixture, "config");
    if (patch != NULL) {
        char *folder = patched(path, patch);
        check_model(name, folder, fixture);
        must(gd_remove_tree(folder, &err), &err);
    } else {
        check_model(name, path, fixture);
    }
    cJSON_Delete(fixture);
}

static void every_weight_of_every_family_has_the_gradient_of_the_reference(void **state)
{
    char *folder = gd_format("%s/models", getenv("GD_FIXTURES"));
    glob_t found;
    char *pattern = gd_format("%s/*/gradients*.json", folder);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char *path = gd_strdup(found.gl_pathv[i]);
        *strrchr(path, '/') = '\0';
        check_fixture(found.gl_pathv[i] + strlen(folder) + 1, path, found.gl_pathv[i]);
        gd_free(path);
    }
    print_message("%zu files of gradients\n", found.gl_pathc);
    assert_true(found.gl_pathc >= 13);
    globfree(&found);
    gd_free(pattern);
    gd_free(folder);
}

/* ---- encoders and T5: grad.NAME of reference.safetensors ---- */

static struct gd_tensor stored(const struct gd_safetensors *file, const char *name)
{
    struct gd_tensor tensor;
    if (!gd_safetensors_find(file, name, &tensor))
        fail_msg("no %s", name);
    return tensor;
}

static void compare_stored(const char *name, const struct trial *trial, const struct gd_safetensors *file)
{
    double all = 0;
    int known = 0;
    for (int i = 0; i < gd_safetensors_count(file); i++) {
        struct gd_tensor tensor = gd_safetensors_at(file, i);
        bool one = strncmp(gd_safetensors_name(file, i), "grad.", 5) == 0;
        for (int64_t k = 0; one && k < gd_tensor_count(&tensor); k++)
            all += pow((double)((const float *)tensor.data)[k], 2);
        known += one;
    }
    assert_int_equal(trial->graft->param_count, known);
    for (int i = 0; i < trial->graft->param_count; i++) {
        const struct gd_graft_param *param = &trial->graft->params[i];
        char *key = gd_format("grad.%s", param->name + strlen(PREFIX));
        struct gd_tensor wanted = stored(file, key);
        const float *mine = trial->grad + param->offset, *theirs = wanted.data;
        double apart = 0, length = 0;
        assert_int_equal(gd_tensor_count(&wanted), param->shape[0] * param->shape[1]);
        for (int64_t k = 0; k < gd_tensor_count(&wanted); k++) {
            apart += pow((double)mine[k] - (double)theirs[k], 2);
            length += pow((double)theirs[k], 2);
        }
        check_close(name, param->name, sqrt(apart), sqrt(length), sqrt(all));
        gd_free(key);
    }
}

static void add_tokens(struct gd_dataset *data, const struct gd_tensor *ids, int *used)
{
    for (int64_t i = 0; i < ids->shape[0]; i++) {
        data->tokens[*used] = ((const int32_t *)ids->data)[i];
        data->weights[(*used)++] = 1;
    }
}

static struct gd_dataset empty(void)
{
    return (struct gd_dataset){.rows = gd_alloc_array(ROWS_MAX, sizeof(struct gd_dataset_row)), .tokens = gd_alloc_array(TOKENS_MAX, sizeof(int32_t)),
                               .weights = gd_alloc_array(TOKENS_MAX, sizeof(float)), .labels = gd_alloc_array(TOKENS_MAX, sizeof(int32_t))};
}

static struct gd_safetensors *open_reference(const char *path)
{
    struct gd_safetensors *file = NULL;
    struct gd_error err = {0};
    char *name = gd_format("%s/reference.safetensors", path);
    must(gd_safetensors_open(&file, name, &err), &err);
    gd_free(name);
    return file;
}

/* Embedding, positions, types and pooler with the rest; the rows and labels of make_encoders.py. */
static void every_weight_of_an_encoder_has_the_gradient_of_the_reference(void **state)
{
    static const char *const names[] = {"tiny-bert", "tiny-roberta"};
    static const int single[] = {2, 0, 1, 0}, several[][4] = {{1, 0, 0, 1}, {0, 0, 0, 0}, {0, 1, 1, 0}, {1, 1, 1, 1}};
    for (size_t n = 0; n < GD_COUNT(names); n++) {
        char *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), names[n]);
        struct trial *trial = trial_begin(names[n], path);
        struct gd_safetensors *file = open_reference(path);
        const struct gd_model_config *config = &trial->model->config;
        make_graft(trial);
        struct gd_dataset *data = &trial->data;
        int used = 0;
        *data = empty();
        data->classified = true;
        data->multi = config->multi_label;
        for (int label = 0; label < config->label_count; label++) {
            struct gd_error err = {0};
            assert_int_equal(gd_tasks_add(&data->classes, config->labels[label], &err), label);
        }
        for (int k = 0; k < (int)GD_COUNT(single); k++) {
            char ids_name[20], types_name[20];
            snprintf(ids_name, sizeof ids_name, "ids.%d", k);
            snprintf(types_name, sizeof types_name, "types.%d", k);
            struct gd_tensor ids = stored(file, ids_name), types = stored(file, types_name);
            struct gd_dataset_row *row = &data->rows[data->row_count++];
            *row = (struct gd_dataset_row){.line = k + 1, .offset = used, .length = (int32_t)ids.shape[0], .label_at = data->label_total};
            for (int32_t i = row->length - 1; i > 0 && ((const int32_t *)types.data)[i] == 1; i--)
                row->second = i;
            add_tokens(data, &ids, &used);
            for (int label = 0; label < config->label_count; label++)
                if (config->multi_label ? several[k][label] : single[k] == label)
                    data->labels[data->label_total++] = label;
            row->label_count = (int32_t)(data->label_total - row->label_at);
        }
        double loss = run(trial, "classification", used, 1.0 / (double)data->row_count);
        check_loss(names[n], loss, (double)*(const float *)stored(file, "loss").data);
        compare_stored(names[n], trial, file);
        gd_safetensors_close(file);
        trial_end(trial);
        gd_free(path);
    }
}

/* The tables of distances with the rest. */
static void every_weight_of_an_encoder_and_decoder_has_the_gradient_of_the_reference(void **state)
{
    static const char *const names[] = {"tiny-t5", "tiny-t5-gated"};
    for (size_t n = 0; n < GD_COUNT(names); n++) {
        char *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), names[n]);
        struct trial *trial = trial_begin(names[n], path);
        struct gd_safetensors *file = open_reference(path);
        struct gd_tensor source = stored(file, "source.0"), labels = stored(file, "labels.0");
        int used = 0;
        make_graft(trial);
        assert_int_equal(trial->graft->parameter_count, trial->model->parameter_count);
        trial->data = empty();
        trial->data.apart = true;
        trial->data.start_id = trial->model->config.decoder_start_id;
        trial->data.rows[trial->data.row_count++] =
            (struct gd_dataset_row){.line = 1, .length = (int32_t)(source.shape[0] + labels.shape[0]), .encoded = (int32_t)source.shape[0]};
        add_tokens(&trial->data, &source, &used);
        add_tokens(&trial->data, &labels, &used);
        (void)run(trial, "supervised", used, 1.0);
        compare_stored(names[n], trial, file);
        gd_safetensors_close(file);
        trial_end(trial);
        gd_free(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_of_every_family_has_the_gradient_of_the_reference),
        cmocka_unit_test(every_weight_of_an_encoder_has_the_gradient_of_the_reference),
        cmocka_unit_test(every_weight_of_an_encoder_and_decoder_has_the_gradient_of_the_reference),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
