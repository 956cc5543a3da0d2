/* readout_test.c - embeddings and classifiers: those of PEFT's adapters and of the bases, against transformers in float32. */
#include "engine/infer/readout.h"
#include "engine/adapter/export.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "tests/unit/base/scratch.h"

#include <math.h>

#define TEXTS 3
#define WIDTH 16

static const char *fixtures;

static struct gd_model *open_base(const char *name)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    char *path = gd_format("%s/models/%s", fixtures, name);
    must(gd_model_open(&model, name, path, &err), &err);
    gd_free(path);
    return model;
}

static struct gd_safetensors *open_file(const char *name)
{
    struct gd_safetensors *file = NULL;
    struct gd_error err = {0};
    char *path = gd_format("%s/%s", fixtures, name);
    must(gd_safetensors_open(&file, path, &err), &err);
    gd_free(path);
    return file;
}

static struct gd_tensor find(struct gd_safetensors *file, const char *prefix, const char *name, int k)
{
    struct gd_tensor tensor;
    char full[64];
    snprintf(full, sizeof full, "%s%s.%d", prefix, name, k);
    if (!gd_safetensors_find(file, full, &tensor))
        fail_msg("no tensor %s", full);
    return tensor;
}

/* The texts of a reference, ids and where the second one begins. */
static void read_texts(struct gd_safetensors *file, const char *prefix, struct gd_readout_text texts[TEXTS])
{
    for (int k = 0; k < TEXTS; k++) {
        struct gd_tensor ids = find(file, prefix, "ids", k), types = find(file, prefix, "types", k);
        texts[k] = (struct gd_readout_text){.index = k};
        for (int t = 0; t < (int)ids.shape[0]; t++) {
            gd_tokens_push(&texts[k].tokens, ((const int32_t *)ids.data)[t], 0, 0);
            if (((const int32_t *)types.data)[t] == 1 && texts[k].second == 0)
                texts[k].second = t;
        }
    }
}

static void release_texts(struct gd_readout_text texts[TEXTS])
{
    for (int k = 0; k < TEXTS; k++)
        gd_tokens_release(&texts[k].tokens);
}

static void check_classifier(struct gd_readout *readout, const struct gd_graft *graft, struct gd_safetensors *file, const char *prefix)
{
    struct gd_readout_text texts[TEXTS];
    struct gd_readout_labels labels;
    struct gd_error err = {0};
    float logits[TEXTS * 8];
    read_texts(file, prefix, texts);
    must(gd_readout_labels(readout, graft, &labels, &err), &err);
    assert_true(labels.count <= 8);
    must(gd_readout_classify(readout, graft, texts, TEXTS, logits, &err), &err);
    for (int k = 0; k < TEXTS; k++) {
        struct gd_tensor expected = find(file, prefix, "logits", k);
        assert_int_equal(gd_tensor_count(&expected), labels.count);
        for (int i = 0; i < labels.count; i++)
            if (!(fabsf(logits[k * labels.count + i] - ((const float *)expected.data)[i]) < 1e-4f))
                fail_msg("%stext %d, label %d: %g, not %g", prefix, k, i, (double)logits[k * labels.count + i],
                         (double)((const float *)expected.data)[i]);
    }
    release_texts(texts);
}

static void pefts_classifiers_are_read_and_give_its_logits(void **state)
{
    static const struct {
        const char *name, *base;
    } cases[] = {{"bert", "tiny-bert-mlm"}, {"bert-own", "tiny-bert"}, {"roberta", "tiny-roberta-mlm"}, {"llama", "tiny-llama"}};
    struct gd_safetensors *file = open_file("classifiers/logits.safetensors");
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_model *model = open_base(cases[i].base);
        struct gd_graft *graft = NULL;
        struct gd_readout *readout = NULL;
        struct gd_error err = {0};
        char *path = gd_format("%s/classifiers/%s", fixtures, cases[i].name), *prefix = gd_format("%s.", cases[i].name);
        must(gd_graft_load(&graft, model, path, &err), &err);
        assert_int_equal(graft->config.labels.count, 3);
        assert_string_equal(graft->config.labels.names[2], i == 1 ? "positive" : "LABEL_2");
        must(gd_readout_create(&readout, model, &err), &err);
        check_classifier(readout, graft, file, prefix);
        gd_readout_destroy(readout);
        gd_graft_destroy(graft);
        gd_model_destroy(model);
        gd_free(prefix);
        gd_free(path);
    }
    gd_safetensors_close(file);
}

static void bases_that_are_classifiers_give_their_own_logits(void **state)
{
    static const char *const names[] = {"tiny-bert", "tiny-roberta"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        char *path = gd_format("models/%s/reference.safetensors", names[i]);
        struct gd_safetensors *file = open_file(path);
        struct gd_model *model = open_base(names[i]);
        struct gd_readout *readout = NULL;
        struct gd_error err = {0};
        must(gd_readout_create(&readout, model, &err), &err);
        check_classifier(readout, NULL, file, "");
        gd_readout_destroy(readout);
        gd_model_destroy(model);
        gd_safetensors_close(file);
        gd_free(path);
    }
}

static void an_embedding_is_the_mean_over_the_tokens_of_length_1(void **state)
{
    struct gd_safetensors *file = open_file("models/tiny-minilm/reference.safetensors");
    struct gd_model *model = open_base("tiny-minilm");
    struct gd_readout *readout = NULL;
    struct gd_readout_text texts[TEXTS];
    struct gd_error err = {0};
    float vectors[TEXTS * WIDTH];
    int length = 0;
    must(gd_readout_create(&readout, model, &err), &err);
    must(gd_readout_dimensions(readout, 0, &length, &err), &err);
    assert_int_equal(length, WIDTH);
    read_texts(file, "", texts);
    must(gd_readout_embed(readout, NULL, texts, TEXTS, length, vectors, &err), &err);
    for (int k = 0; k < TEXTS; k++) {
        struct gd_tensor hidden = find(file, "", "hidden", k);
        double mean[WIDTH] = {0}, size = 0;
        for (int64_t t = 0; t < hidden.shape[0]; t++)
            for (int j = 0; j < WIDTH; j++)
                mean[j] += (double)((const float *)hidden.data)[t * WIDTH + j] / (double)hidden.shape[0];
        for (int j = 0; j < WIDTH; j++)
            size += mean[j] * mean[j];
        for (int j = 0; j < WIDTH; j++)
            assert_true(fabs((double)vectors[k * WIDTH + j] - mean[j] / sqrt(size)) < 1e-5);
    }
    release_texts(texts);
    gd_readout_destroy(readout);
    gd_model_destroy(model);
    gd_safetensors_close(file);
}

/* Some way from its start, in a folder, and the model that it is merged into. */
static struct gd_graft *make_graft(struct gd_model *model, const char *folder, struct gd_model **merged)
{
    struct gd_adapter_config config = {0};
    struct gd_graft *made = NULL, *graft = NULL;
    struct gd_error err = {0};
    cJSON *json = cJSON_Parse("{\"type\": \"full\", \"target_modules\": [\"query\"], \"train_embeddings\": true}");
    must(gd_adapter_config_parse(&config, json, &err) && gd_graft_create(&made, model, &config, &err), &err);
    float *block = gd_alloc_array((size_t)gd_graft_floats(made), sizeof(float));
    gd_graft_init(made, block, 1);
    for (int64_t i = 0; i < gd_graft_floats(made); i++)
        block[i] += 0.2f * sinf((float)i);
    char *adapter = gd_format("%s/adapter", folder), *path = gd_format("%s/merged", folder);
    must(gd_mkdirs(adapter, &err) && gd_graft_save(made, block, adapter, NULL, &err) && gd_graft_load(&graft, model, adapter, &err), &err);
    must(gd_graft_merge(graft, GD_F32, path, &err) && gd_model_open(merged, "merged", path, &err), &err);
    gd_graft_destroy(made);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    gd_free(block);
    gd_free(adapter);
    gd_free(path);
    return graft;
}

/* Embedding, positions and types are the graft's own; it says what the model says that it is merged into. */
static void trained_tables_are_worn_as_they_are_merged(void **state)
{
    static const char *const names[] = {"tiny-minilm", "tiny-roberta-mlm"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct gd_error err = {0};
        char folder[] = "/tmp/graftd-test-XXXXXX";
        assert_non_null(mkdtemp(folder));
        char *name = gd_format("models/%s/reference.safetensors", names[i]);
        struct gd_safetensors *file = open_file(name);
        struct gd_model *model = open_base(names[i]), *merged = NULL;
        struct gd_graft *graft = make_graft(model, folder, &merged);
        struct gd_readout *worn = NULL, *whole = NULL;
        struct gd_readout_text texts[TEXTS];
        float mine[TEXTS * WIDTH], theirs[TEXTS * WIDTH], bare[TEXTS * WIDTH];
        must(gd_readout_create(&worn, model, &err) && gd_readout_create(&whole, merged, &err), &err);
        read_texts(file, "", texts);
        assert_true(i == 1 || texts[2].second > 0);
        must(gd_readout_embed(worn, graft, texts, TEXTS, WIDTH, mine, &err) && gd_readout_embed(worn, NULL, texts, TEXTS, WIDTH, bare, &err) &&
             gd_readout_embed(whole, NULL, texts, TEXTS, WIDTH, theirs, &err), &err);
        for (int j = 0; j < TEXTS * WIDTH; j++) {
            assert_true(fabs((double)mine[j] - (double)theirs[j]) < 1e-5);
            assert_true(mine[j] != bare[j]);
        }
        release_texts(texts);
        gd_readout_destroy(worn);
        gd_readout_destroy(whole);
        gd_graft_destroy(graft);
        gd_model_destroy(model);
        gd_model_destroy(merged);
        gd_safetensors_close(file);
        assert_true(gd_remove_tree(folder, &err));
        gd_free(name);
    }
}

static void what_a_model_has_not_is_refused_by_name(void **state)
{
    struct gd_model *decoder = open_base("tiny-llama"), *encoder = open_base("tiny-minilm");
    struct gd_readout *of_decoder = NULL, *of_encoder = NULL;
    struct gd_readout_labels labels;
    struct gd_readout_text text = {.index = -1};
    struct gd_error err = {0};
    float vector[WIDTH];
    int length;
    must(gd_readout_create(&of_decoder, decoder, &err) && gd_readout_create(&of_encoder, encoder, &err), &err);
    assert_false(gd_readout_dimensions(of_decoder, 0, &length, &err));
    assert_string_equal(err.param, "model");
    gd_error_clear(&err);
    assert_false(gd_readout_dimensions(of_encoder, 8, &length, &err));
    assert_string_equal(err.param, "dimensions");
    gd_error_clear(&err);
    assert_false(gd_readout_labels(of_encoder, NULL, &labels, &err));
    assert_string_equal(err.param, "model");
    gd_error_clear(&err);
    assert_false(gd_readout_embed(of_encoder, NULL, &text, 1, WIDTH, vector, &err)); /* no token */
    gd_error_clear(&err);
    for (int i = 0; i < 41; i++)
        gd_tokens_push(&text.tokens, 5, 0, 0);
    assert_false(gd_readout_embed(of_encoder, NULL, &text, 1, WIDTH, vector, &err));
    assert_int_equal(err.code, GD_CONTEXT);
    gd_error_clear(&err);
    text.tokens.count = 2;
    text.tokens.ids[1] = 128;
    assert_false(gd_readout_embed(of_encoder, NULL, &text, 1, WIDTH, vector, &err));
    assert_string_equal(err.param, "input");
    gd_tokens_release(&text.tokens);
    gd_readout_destroy(of_decoder);
    gd_readout_destroy(of_encoder);
    gd_model_destroy(decoder);
    gd_model_destroy(encoder);
}

static int set_up(void **state)
{
    struct gd_error err = {0};
    fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    must(gd_device_init("cpu", 2, &err), &err);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pefts_classifiers_are_read_and_give_its_logits),
        cmocka_unit_test(bases_that_are_classifiers_give_their_own_logits),
        cmocka_unit_test(an_embedding_is_the_mean_over_the_tokens_of_length_1),
        cmocka_unit_test(trained_tables_are_worn_as_they_are_merged),
        cmocka_unit_test(what_a_model_has_not_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
