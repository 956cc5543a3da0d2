/* Grafts on their way out: folded into a base of either format, and as GGUF adapters; all read back with the same logits. */
#include "engine/adapter/build.h"
#include "engine/adapter/export.h"
#include "engine/model/gguf_write.h"
#include "engine/tensor/device.h"
#include "tests/unit/base/scratch.h"

#include <dirent.h>
#include <unistd.h>

static const char *fixtures;
static char scratch[] = "/tmp/graftd-export-XXXXXX";

static struct gd_model *open_model(const char *path)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    must(gd_model_open(&model, "base", path, &err), &err);
    return model;
}

static struct gd_model *open_base(const char *name)
{
    char *path = gd_format("%s/models/%s", fixtures, name);
    struct gd_model *model = open_model(path);
    gd_free(path);
    return model;
}

static struct gd_graft *load(const struct gd_model *model, const char *name)
{
    struct gd_graft *graft = NULL;
    struct gd_error err = {0};
    char *path = gd_format("%s/adapters/%s", fixtures, name);
    must(gd_graft_load(&graft, model, path, &err), &err);
    gd_free(path);
    return graft;
}

/* Of random numbers, whatever the method starts from. */
static struct gd_graft *random_graft(const struct gd_model *model, const char *options)
{
    struct gd_adapter_config config = {0};
    struct gd_graft *graft = NULL;
    struct gd_error err = {0};
    cJSON *json = cJSON_Parse(options);
    must(gd_adapter_config_parse(&config, json, &err), &err);
    must(gd_graft_create(&graft, model, &config, &err), &err);
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_fill_uniform(graft->block, gd_graft_floats(graft), 0.2f, 7, 0);
    gd_graft_ready(graft);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    return graft;
}

/* On all linear modules. */
static struct gd_graft *random_lora(const struct gd_model *model)
{
    return random_graft(model, "{\"type\": \"lora\", \"r\": 4, \"lora_alpha\": 6}");
}

static int set_up(void **state)
{
    struct gd_error err = {0};
    fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    must(gd_device_init("cpu", 2, &err), &err);
    assert_non_null(mkdtemp(scratch));
    return 0;
}

static int tear_down(void **state)
{
    struct gd_error err = {0};
    must(gd_remove_tree(scratch, &err), &err);
    return 0;
}

static double difference(const struct gd_model *a, const struct gd_graft *worn_by_a, const struct gd_model *b,
                         const struct gd_graft *worn_by_b)
{
    struct gd_error err = {0};
    double result = -1;
    must(gd_worn_difference(&(struct gd_worn){a, worn_by_a}, &(struct gd_worn){b, worn_by_b}, &result, &err), &err);
    return result;
}

/* Merges, opens what was written, and says how far its logits are from the graft's. */
static double merge(const struct gd_graft *graft, enum gd_dtype dtype, const char *name)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/%s", scratch, name);
    must(gd_graft_merge(graft, dtype, path, &err), &err);
    struct gd_model *merged = open_model(path);
    double apart = difference(graft->model, graft, merged, NULL);
    assert_true(difference(graft->model, NULL, merged, NULL) > 1e-3); /* the graft did something */
    assert_string_equal(merged->tokenizer_digest, graft->model->tokenizer_digest);
    assert_string_equal(merged->template_digest, graft->model->template_digest);
    gd_model_destroy(merged);
    gd_free(path);
    return apart;
}

static const char *const adapters[] = {"peft-lora", "peft-dora", "peft-pissa", "peft-kasa", "peft-loha", "peft-lokr", "peft-oft",
                                       "peft-vera", "peft-ia3", "peft-ln_tuning", "torch-full", "torch-bitfit", "torch-hft", "torch-spt"};

static void a_merged_folder_has_the_grafts_logits(void **state)
{
    struct gd_model *base = open_base("tiny-llama");
    for (size_t i = 0; i < GD_COUNT(adapters); i++) {
        struct gd_graft *graft = load(base, adapters[i]);
        char name[64];
        snprintf(name, sizeof(name), "folder-%s", adapters[i]);
        assert_true(merge(graft, GD_DTYPE_COUNT, name) < 1e-5);
        gd_graft_destroy(graft);
    }
    static const char *const bases[] = {"tiny-llama", "tiny-mistral", "tiny-llama-f16.gguf"}; /* tied, untied, tied */
    for (size_t i = 0; i < GD_COUNT(bases); i++) {
        struct gd_model *whole = open_base(bases[i]);
        struct gd_graft *graft = random_graft(whole, "{\"type\": \"full\", \"train_embeddings\": true}");
        char name[64];
        snprintf(name, sizeof(name), "whole-%s", bases[i]);
        assert_true(merge(graft, GD_F32, name) < 1e-5);
        gd_graft_destroy(graft);
        gd_model_destroy(whole);
    }
    struct gd_graft *graft = load(base, "peft-lora");
    assert_true(merge(graft, GD_BF16, "folder-bf16") < 3e-2);
    assert_true(merge(graft, GD_F16, "folder-f16") < 3e-3);
    gd_graft_destroy(graft);
    gd_model_destroy(base);
}

/* Every adapter among the fixtures: merged with its own logits, or refused with a reason. */
static void every_method_merges_or_says_why_not(void **state)
{
    struct gd_model *base = open_base("tiny-llama");
    char *folder = gd_format("%s/adapters", fixtures);
    DIR *list = opendir(folder);
    struct dirent *entry;
    int merged = 0, refused = 0;
    assert_non_null(list);
    while ((entry = readdir(list)) != NULL) {
        struct gd_graft *graft = NULL;
        struct gd_error err = {0};
        char *path = gd_format("%s/%s", folder, entry->d_name), name[300];
        /* Some fixtures belong to other bases. */
        if (entry->d_name[0] != '.' && gd_graft_load(&graft, base, path, &err) && gd_graft_mergeable(graft, &err)) {
            snprintf(name, sizeof(name), "every-%s", entry->d_name);
            double apart = merge(graft, GD_F32, name);
            if (apart > 1e-4)
                fail_msg("%s: relative difference %.2e", entry->d_name, apart);
            merged++;
        } else if (graft != NULL) {
            assert_int_equal(err.code, GD_UNSUPPORTED);
            assert_non_null(strstr(err.message, graft->method->name));
            refused++;
        }
        gd_graft_destroy(graft);
        gd_free(path);
    }
    closedir(list);
    assert_true(merged >= 15 && refused >= 6);
    gd_free(folder);
    gd_model_destroy(base);
}

static void a_merged_gguf_file_has_the_grafts_logits(void **state)
{
    static const char *const bases[] = {"tiny-llama-f16.gguf", "tiny-llama-q8_0.gguf"};
    for (size_t b = 0; b < GD_COUNT(bases); b++) {
        struct gd_model *base = open_base(bases[b]);
        for (size_t i = 0; i < GD_COUNT(adapters); i++) {
            struct gd_graft *graft = load(base, adapters[i]);
            char name[64];
            snprintf(name, sizeof(name), "%zu-%s.gguf", b, adapters[i]);
            assert_true(merge(graft, GD_F32, name) < 1e-5);
            snprintf(name, sizeof(name), "%zu-%s-as-is.gguf", b, adapters[i]);
            assert_true(merge(graft, GD_DTYPE_COUNT, name) < 3e-2);
            gd_graft_destroy(graft);
        }
        gd_model_destroy(base);
    }
}

static void scales_and_sums_of_outputs_become_biases(void **state)
{
    static const struct {
        const char *base;
        int part; /* of layer 0 */
    } cases[] = {{"tiny-llama", 0}, {"tiny-llama", 5}, {"tiny-llama-f16.gguf", 1}, {"tiny-llama-f16.gguf", 3}, {"tiny-qwen2", 2}};
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_model *base = open_base(cases[i].base);
        struct gd_graft *graft = random_lora(base);
        const struct gd_site *site = gd_slot_site(base, cases[i].part);
        float *add = gd_alloc_array((size_t)site->out, sizeof(float)), *by = gd_alloc_array((size_t)site->out, sizeof(float));
        for (int o = 0; o < site->out; o++) {
            add[o] = 0.25f * (float)(o % 7 - 3);
            by[o] = 1.0f + 0.1f * (float)(o % 5);
        }
        graft->wear[cases[i].part].out_add = add;
        graft->wear[cases[i].part].out_scale = by;
        char name[64];
        snprintf(name, sizeof(name), "bias-%zu%s", i, strstr(cases[i].base, ".gguf") != NULL ? ".gguf" : "");
        assert_true(merge(graft, GD_F32, name) < 1e-5);
        gd_graft_destroy(graft);
        gd_model_destroy(base);
        gd_free(add);
        gd_free(by);
    }
}

static void fused_modules_merge_whole(void **state)
{
    struct gd_model *base = open_base("tiny-phi3");
    static const char *const options[] = {"{\"type\": \"lora\", \"r\": 4, \"lora_alpha\": 6}", "{\"type\": \"full\"}",
                                          "{\"type\": \"lora\", \"r\": 4, \"target_modules\": [\"qkv_proj\", \"gate_up_proj\"]}"};
    const struct gd_site *sites;
    assert_int_equal(gd_model_linear_sites(base, &sites), 8);
    for (size_t i = 0; i < GD_COUNT(options); i++) {
        struct gd_graft *graft = random_graft(base, options[i]);
        char name[64];
        snprintf(name, sizeof(name), "fused-%zu", i);
        assert_true(merge(graft, GD_F32, name) < 1e-5);
        struct gd_error err = {0};
        char *path = gd_format("%s/%s.gguf", scratch, name);
        assert_false(gd_graft_write_gguf(graft, GD_F32, path, &err));
        assert_int_equal(err.code, GD_UNSUPPORTED);
        assert_non_null(strstr(err.message, i == 1 ? "" : "phi3"));
        gd_free(path);
        gd_graft_destroy(graft);
    }
    gd_model_destroy(base);
}

static void norms_of_heads_are_kept_and_merged(void **state)
{
    static const char *const bases[] = {"tiny-qwen3", "tiny-qwen3-f16.gguf"};
    static const char *const options[] = {
        "{\"type\": \"lora\", \"r\": 4, \"lora_alpha\": 6}",
        "{\"type\": \"ln_tuning\", \"target_modules\": [\"q_norm\", \"k_norm\"]}",
        "{\"type\": \"full\"}",
    };
    for (size_t b = 0; b < GD_COUNT(bases); b++) {
        struct gd_model *base = open_base(bases[b]);
        for (size_t i = 0; i < GD_COUNT(options); i++) {
            struct gd_graft *graft = random_graft(base, options[i]);
            char name[64];
            snprintf(name, sizeof(name), "heads-%zu-%zu%s", b, i, b == 1 ? ".gguf" : "");
            assert_true(merge(graft, GD_F32, name) < 1e-5);
            gd_graft_destroy(graft);
        }
        gd_model_destroy(base);
    }
}

/* Transposed files, fused projections, norms around 1, learned positions: what is written is read as it was meant. */
static void every_family_merges_in_its_own_layout(void **state)
{
    static const char *const bases[] = {"tiny-gemma2", "tiny-gemma3", "tiny-gemma3-sees", "tiny-gemma3-f16.gguf", "tiny-gpt2", "tiny-neox",
                                        "tiny-opt", "tiny-opt-after", "tiny-opt-350m", "tiny-phi3-long"};
    static const char *const options[] = {"{\"type\": \"lora\", \"r\": 4, \"lora_alpha\": 6}",
                                          "{\"type\": \"ln_tuning\"}",
                                          "{\"type\": \"full\", \"train_embeddings\": true}"};
    for (size_t b = 0; b < GD_COUNT(bases); b++) {
        struct gd_model *base = open_base(bases[b]);
        const char *suffix = strstr(bases[b], ".gguf") != NULL ? ".gguf" : "";
        for (size_t i = 0; i < GD_COUNT(options); i++) {
            struct gd_graft *graft = random_graft(base, options[i]);
            char name[64];
            snprintf(name, sizeof(name), "layout-%zu-%zu%s", b, i, suffix);
            double apart = merge(graft, GD_F32, name);
            if (!(apart < 1e-5))
                fail_msg("%s, %s: merged logits are %g apart", bases[b], options[i], apart);
            snprintf(name, sizeof(name), "layout-%zu-%zu-bf16%s", b, i, suffix);
            apart = merge(graft, GD_BF16, name);
            if (!(apart < 5e-2))
                fail_msg("%s, %s in bf16: merged logits are %g apart", bases[b], options[i], apart);
            gd_graft_destroy(graft);
        }
        gd_model_destroy(base);
    }
}

/* A model that sees is merged in its language part; its eyes are copied, byte for byte. */
static void what_is_not_read_is_kept(void **state)
{
    struct gd_model *base = open_base("tiny-gemma3-sees");
    struct gd_graft *graft = random_graft(base, "{\"type\": \"lora\", \"r\": 4}");
    struct gd_safetensors *before = NULL, *after = NULL;
    struct gd_error err = {0};
    char *to = gd_format("%s/seeing", scratch), *one = gd_format("%s/model.safetensors", base->path), *other = gd_format("%s/model.safetensors", to);
    assert_true(gd_graft_merge(graft, GD_BF16, to, &err));
    assert_true(gd_safetensors_open(&before, one, &err) && gd_safetensors_open(&after, other, &err));
    assert_int_equal(gd_safetensors_count(after), gd_safetensors_count(before));
    int kept = 0;
    for (int i = 0; i < gd_safetensors_count(before); i++) {
        const char *name = gd_safetensors_name(before, i);
        struct gd_tensor was = gd_safetensors_at(before, i), is;
        assert_true(gd_safetensors_find(after, name, &is));
        if (strncmp(name, "language_model.", 15) == 0)
            continue;
        assert_int_equal(is.dtype, was.dtype);
        assert_memory_equal(is.data, was.data, gd_dtype_bytes(was.dtype, gd_tensor_count(&was)));
        kept++;
    }
    assert_int_equal(kept, 23);
    char *config = gd_format("%s/config.json", to), *text = NULL;
    size_t length = 0;
    assert_true(gd_file_read(config, 1 << 20, &text, &length, &err));
    assert_non_null(strstr(text, "\"factor\":2.0")); /* readers that tell types apart want their numbers as they were */
    gd_free(config);
    gd_free(text);
    gd_safetensors_close(before);
    gd_safetensors_close(after);
    gd_graft_destroy(graft);
    gd_model_destroy(base);
    gd_free(to);
    gd_free(one);
    gd_free(other);
}

static void deltas_and_rotations_are_folded_in(void **state)
{
    struct gd_model *base = open_base("tiny-llama");
    struct gd_graft *graft = random_lora(base);
    const struct gd_site *site = gd_slot_site(base, 6);
    struct gd_wear_part *part = &graft->wear[6];
    int size = 4;
    float *delta = gd_alloc_array((size_t)site->out * (size_t)site->in, sizeof(float));
    float *turn = gd_alloc_array((size_t)site->in * (size_t)size, sizeof(float));
    float *by = gd_alloc_array((size_t)site->in, sizeof(float));
    gd_fill_uniform(delta, (int64_t)site->out * site->in, 0.1f, 3, 0);
    gd_fill_uniform(turn, (int64_t)site->in * size, 0.9f, 3, 1);
    gd_fill_uniform(by, site->in, 1.5f, 3, 2);
    part->delta = delta;
    part->in_rotate = turn;
    part->rotate_block = size;
    part->in_scale = by;
    graft->depth = GD_WEAR_INPUTS;
    assert_true(merge(graft, GD_F32, "turned") < 1e-5);
    gd_graft_destroy(graft);
    gd_model_destroy(base);
    gd_free(delta);
    gd_free(turn);
    gd_free(by);
}

static void a_family_without_such_a_bias_is_refused(void **state)
{
    struct gd_error err = {0};
    struct gd_model *base = open_base("tiny-qwen2");
    struct gd_graft *graft = random_lora(base);
    const struct gd_site *site = gd_slot_site(base, 3);
    float *add = gd_alloc_array((size_t)site->out, sizeof(float));
    graft->wear[3].out_add = add;
    char *path = gd_format("%s/refused", scratch);
    assert_false(gd_graft_merge(graft, GD_F32, path, &err));
    assert_int_equal(err.code, GD_UNSUPPORTED);
    assert_non_null(strstr(err.message, "model.layers.0.self_attn.o_proj"));
    assert_int_not_equal(access(path, F_OK), 0);
    gd_graft_destroy(graft);
    gd_model_destroy(base);
    gd_free(add);
    gd_free(path);
}

static void what_stands_at_the_place_is_left_alone(void **state)
{
    struct gd_error err = {0};
    struct gd_model *base = open_base("tiny-llama-f16.gguf");
    struct gd_graft *graft = load(base, "peft-lora");
    char *path = gd_format("%s/taken.gguf", scratch);
    must(gd_file_write_durable(path, "mine", 4, &err), &err);
    assert_false(gd_graft_merge(graft, GD_F32, path, &err));
    assert_int_equal(err.code, GD_CONFLICT);
    gd_graft_destroy(graft);
    gd_model_destroy(base);
    gd_free(path);
}

static void check_gguf(const struct gd_model *base, struct gd_graft *graft, const char *name)
{
    struct gd_error err = {0};
    struct gd_graft *back = NULL;
    char *path = gd_format("%s/adapter-%s.gguf", scratch, name);
    must(gd_graft_write_gguf(graft, GD_F32, path, &err), &err);
    must(gd_graft_read_gguf(&back, base, path, &err), &err);
    assert_true(difference(base, graft, base, back) < 1e-5);
    gd_graft_destroy(back);
    gd_graft_destroy(graft);
    gd_free(path);
}

static void gguf_adapters_are_read_back_as_loras(void **state)
{
    static const char *const bases[] = {"tiny-llama", "tiny-llama-f16.gguf", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"};
    for (size_t b = 0; b < GD_COUNT(bases); b++) {
        struct gd_model *base = open_base(bases[b]);
        check_gguf(base, random_lora(base), bases[b]);
        gd_model_destroy(base);
    }
    struct gd_model *base = open_base("tiny-llama");
    check_gguf(base, load(base, "peft-vera"), "vera");
    check_gguf(base, load(base, "peft-pissa"), "pissa");
    check_gguf(base, load(base, "peft-kasa"), "kasa");
    check_gguf(base, load(base, "peft-loha"), "loha");
    gd_model_destroy(base);
}

static void methods_that_are_no_products_have_no_gguf_adapter(void **state)
{
    struct gd_error err = {0};
    struct gd_model *base = open_base("tiny-llama");
    struct gd_graft *graft = load(base, "peft-ia3");
    char *path = gd_format("%s/none.gguf", scratch);
    assert_false(gd_graft_write_gguf(graft, GD_F32, path, &err));
    assert_int_equal(err.code, GD_UNSUPPORTED);
    assert_non_null(strstr(err.message, "ia3"));
    gd_graft_destroy(graft);
    gd_model_destroy(base);
    gd_free(path);
}

/* A file of one tensor, zero everywhere. */
static bool zeros(void *context, int index, const void **bytes, struct gd_error *err)
{
    static const float data[4096];
    *bytes = data;
    return true;
}

static void refuses(const struct gd_model *base, const char *type, const char *architecture, const char *tensor, int64_t rows,
                    int64_t columns, const char *words)
{
    struct gd_error err = {0};
    struct gd_graft *graft = NULL;
    struct gd_gguf_writer writer;
    struct gd_safetensors_entry entry = {tensor, {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}}};
    char *path = gd_format("%s/hostile.gguf", scratch);
    gd_gguf_writer_init(&writer);
    gd_gguf_put_string(&writer, "general.architecture", architecture);
    gd_gguf_put_string(&writer, "general.type", type);
    gd_gguf_put_string(&writer, "adapter.type", "lora");
    (void)unlink(path);
    must(gd_gguf_write(&writer, path, &entry, tensor != NULL, zeros, NULL, &err), &err);
    assert_false(gd_graft_read_gguf(&graft, base, path, &err));
    if (strstr(err.message, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
    assert_null(graft);
    gd_gguf_writer_release(&writer);
    gd_free(path);
}

static void a_gguf_adapter_that_does_not_fit_is_refused_by_name(void **state)
{
    struct gd_model *base = open_base("tiny-llama");
    int width = base->config.width;
    refuses(base, "model", "llama", "blk.0.attn_q.weight.lora_a", 4, width, "general.type is \"model\"");
    refuses(base, "adapter", "qwen2", "blk.0.attn_q.weight.lora_a", 4, width, "architecture \"qwen2\"");
    refuses(base, "adapter", "llama", "blk.99.attn_q.weight.lora_a", 4, width, "blk.99.attn_q.weight.lora_a");
    refuses(base, "adapter", "llama", "blk.0.attn_q.weight.lora_a", 4, width + 1, "does not fit");
    refuses(base, "adapter", "llama", "blk.0.attn_q.weight.lora_a", 4, width, "blk.0.attn_q.weight.lora_b is missing");
    refuses(base, "adapter", "llama", NULL, 0, 0, "no tensor");
    gd_model_destroy(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_merged_folder_has_the_grafts_logits),
        cmocka_unit_test(every_method_merges_or_says_why_not),
        cmocka_unit_test(a_merged_gguf_file_has_the_grafts_logits),
        cmocka_unit_test(scales_and_sums_of_outputs_become_biases),
        cmocka_unit_test(fused_modules_merge_whole),
        cmocka_unit_test(norms_of_heads_are_kept_and_merged),
        cmocka_unit_test(every_family_merges_in_its_own_layout),
        cmocka_unit_test(what_is_not_read_is_kept),
        cmocka_unit_test(deltas_and_rotations_are_folded_in),
        cmocka_unit_test(a_family_without_such_a_bias_is_refused),
        cmocka_unit_test(what_stands_at_the_place_is_left_alone),
        cmocka_unit_test(gguf_adapters_are_read_back_as_loras),
        cmocka_unit_test(methods_that_are_no_products_have_no_gguf_adapter),
        cmocka_unit_test(a_gguf_adapter_that_does_not_fit_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
