/* model_test.c - what an open model says of itself: sites, digest, description, parameter count. */
#include "engine/model/files.h"
#include "engine/model/parts.h"
#include "engine/tensor/device.h"
#include "tests/unit/model/forward.h"

/* ---- sites ---- */

struct visit {
    enum gd_site_kind kind;
    int layer, index;
    const char *name;
};

struct visits {
    struct visit list[256];
    int count;
    double hidden_factor;
};

static void note(struct visits *visits, const struct gd_site *site)
{
    assert_true(visits->count < (int)GD_COUNT(visits->list));
    visits->list[visits->count++] = (struct visit){site->kind, site->layer, site->index, site->name};
}

static struct gd_value *on_linear(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                  struct gd_value *w, struct gd_value *bias)
{
    note(context, site);
    assert_int_equal(x->shape[1], site->in);
    assert_int_equal(w->shape[0], site->out);
    assert_ptr_equal(w->weight, site->weight);
    return gd_site_linear_base(g, x, w, bias);
}

static struct gd_value *on_embed(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *rows)
{
    note(context, site);
    return rows;
}

static void on_kv(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value **k,
                  struct gd_value **v)
{
    note(context, site);
    assert_int_equal((*k)->shape[1], (*v)->shape[1]);
}

static struct gd_value *on_block(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *input,
                                 struct gd_value *output)
{
    note(context, site);
    assert_int_equal(input->shape[1], output->shape[1]);
    return output;
}

static struct gd_value *on_norm(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                struct gd_value *w, struct gd_value *bias, double eps)
{
    note(context, site);
    assert_ptr_equal(w->weight, site->weight);
    return gd_site_norm_base(g, site, x, w, bias, eps);
}

static struct gd_value *on_hidden(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *h)
{
    note(context, site);
    return gd_scale(g, h, ((struct visits *)context)->hidden_factor);
}

static void every_site_is_visited_once_in_the_order_of_the_graph(void **state)
{
    static const char *const one_layer[] = {
        "model.layers.%d.input_layernorm",  "model.layers.%d.self_attn.q_proj",
        "model.layers.%d.self_attn.k_proj", "model.layers.%d.self_attn.v_proj",
        "model.layers.%d.self_attn",        "model.layers.%d.self_attn.o_proj",
        "model.layers.%d.self_attn",        "model.layers.%d.post_attention_layernorm",
        "model.layers.%d.mlp.gate_proj",    "model.layers.%d.mlp.up_proj",
        "model.layers.%d.mlp.down_proj",    "model.layers.%d.mlp"};
    static const int32_t ids[] = {5, 9, 300, 41};
    struct gd_model *model = open_fixture("tiny-qwen2");
    struct visits visits = {.hidden_factor = 2};
    struct gd_sites sites = {&visits, on_linear, on_embed, on_kv, on_block, on_norm, on_hidden};
    struct prompt prompt = {ids, 4};
    float *plain = forward(model, ids, 4, GD_F32);
    float *visited = forward_with(model, &prompt, 1, GD_F32, &sites);
    for (int i = 0; i < 4 * 320; i++)
        assert_true(visited[i] == 2 * plain[i]); /* the hidden site doubled, the others changed nothing */

    int each = GD_COUNT(one_layer), at = 0;
    assert_int_equal(visits.count, 3 * each + 3);
    assert_string_equal(visits.list[at++].name, "model.embed_tokens");
    for (int layer = 0; layer < 3; layer++)
        for (int i = 0; i < each; i++, at++) {
            char *name = gd_format("%.13s%d%s", one_layer[i], layer, one_layer[i] + 15);
            assert_string_equal(visits.list[at].name, name);
            assert_int_equal(visits.list[at].layer, layer);
            gd_free(name);
        }
    assert_string_equal(visits.list[at++].name, "model.norm");
    assert_int_equal(visits.list[at].kind, GD_SITE_HIDDEN);

    int next[GD_SITE_HIDDEN + 1] = {0};
    for (int i = 0; i < visits.count; i++)
        assert_int_equal(visits.list[i].index, next[visits.list[i].kind]++);
    const struct gd_site *linear = NULL;
    assert_int_equal(gd_model_linear_sites(model, &linear), next[GD_SITE_LINEAR]);
    assert_string_equal(linear[13].name, "model.layers.1.mlp.down_proj");
    assert_int_equal(linear[13].in, 96);
    assert_int_equal(linear[13].out, 32);
    gd_free(plain);
    gd_free(visited);
    gd_model_destroy(model);
}

static void absent_members_leave_their_sites_alone(void **state)
{
    static const int32_t ids[] = {1, 2, 3};
    struct gd_model *model = open_fixture("tiny-llama");
    struct visits visits = {.hidden_factor = 1};
    struct gd_sites sites = {.context = &visits, .norm = on_norm};
    struct prompt prompt = {ids, 3};
    float *plain = forward(model, ids, 3, GD_F32), *visited = forward_with(model, &prompt, 1, GD_F32, &sites);
    assert_memory_equal(plain, visited, 3 * 320 * sizeof(float));
    assert_int_equal(visits.count, 7);
    gd_free(plain);
    gd_free(visited);
    gd_model_destroy(model);
}

/* ---- counts and digests ---- */

static int64_t count_formula(const struct gd_model_config *c)
{
    int64_t d = c->width, h = c->heads, g = c->kv_heads, dh = c->head_dim, f = c->ffn_width;
    int64_t layer = 2 * d * h * dh + 2 * d * g * dh + 3 * d * f + 2 * d;
    if (c->qk_norm)
        layer += 2 * dh;
    if (c->qkv_bias)
        layer += (h + 2 * g) * dh;
    if (c->o_bias)
        layer += d;
    if (c->mlp_bias)
        layer += 2 * f + d;
    return (int64_t)c->vocab * d * (c->tied ? 1 : 2) + c->layers * layer + d;
}

static void parameters_are_counted_as_the_formula_counts_them(void **state)
{
    static const char *const names[] = {"tiny-llama",       "tiny-qwen2",         "tiny-mistral",
                                        "tiny-llama3-rope", "tiny-llama-sharded", "tiny-qwen2-f16.gguf",
                                        "tiny-qwen3",       "tiny-qwen3-f16.gguf", "tiny-phi3"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct gd_model *model = open_fixture(names[i]);
        assert_int_equal(model->parameter_count, count_formula(&model->config));
        gd_model_destroy(model);
    }
}

static void digests_tell_models_apart_and_not_copies(void **state)
{
    struct gd_model *a = open_fixture("tiny-llama"), *b = open_fixture("tiny-llama"),
                    *c = open_fixture("tiny-llama3-rope");
    assert_int_equal(strlen(a->digest), 64);
    assert_string_equal(a->digest, b->digest);
    assert_string_not_equal(a->digest, c->digest);
    assert_string_equal(a->tokenizer_digest, c->tokenizer_digest);
    assert_string_equal(a->template_digest, c->template_digest);
    gd_model_destroy(a);
    gd_model_destroy(b);
    gd_model_destroy(c);

    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    size_t length = 0;
    char *bytes = fixture_read("tiny-llama-q8_0.gguf", &length), *path = scratch_path(&scratch, "x.gguf");
    a = open_fixture("tiny-llama-q8_0.gguf");
    bytes[length - 100] ^= 1; /* one bit of one weight */
    scratch_write(&scratch, "x.gguf", bytes, length);
    assert_true(gd_model_open(&b, "m", path, &err));
    assert_string_not_equal(a->digest, b->digest);
    gd_model_destroy(a);
    gd_model_destroy(b);
    gd_free(bytes);
    gd_free(path);
    scratch_end(&scratch);
}

static void the_tokenizer_s_end_token_stops_too(void **state)
{
    struct gd_model *model = open_fixture("tiny-mistral");
    assert_int_equal(model->config.eos_count, 2); /* generation_config.json: [2, 0] */
    assert_int_equal(model->config.eos_ids[0], 2);
    assert_int_equal(model->config.eos_ids[1], 0);
    gd_model_destroy(model);

    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json"};
    static const char config[] = "{\"eos_token\": \"<|endoftext|>\"}";
    for (size_t i = 0; i < GD_COUNT(names); i++)
        scratch_copy(&scratch, "tiny-llama", names[i]);
    scratch_write(&scratch, "tokenizer_config.json", config, strlen(config));
    if (!gd_model_open(&model, "m", scratch.folder, &err))
        fail_msg("%s", err.message);
    assert_int_equal(model->config.eos_count, 2);
    assert_int_equal(model->config.eos_ids[0], 2);
    assert_int_equal(model->config.eos_ids[1], 0);
    gd_model_destroy(model);
    scratch_end(&scratch);
}

/* ---- inspect ---- */

static double number_at(const cJSON *object, const char *a, const char *b, const char *c)
{
    const cJSON *value = gd_json_find(object, a);
    value = b != NULL ? gd_json_find(value, b) : value;
    value = c != NULL ? gd_json_find(value, c) : value;
    assert_true(cJSON_IsNumber(value));
    return value->valuedouble;
}

static void the_description_says_what_inspect_shows(void **state)
{
    struct gd_model *model = open_fixture("tiny-llama-q8_0.gguf");
    cJSON *json = gd_model_describe(model, true);
    assert_string_equal(cJSON_GetStringValue(gd_json_find(json, "architecture")), "llama");
    assert_string_equal(cJSON_GetStringValue(gd_json_find(json, "format")), "gguf");
    assert_true(number_at(json, "parameters", NULL, NULL) == (double)model->parameter_count);
    assert_true(number_at(json, "file_bytes", NULL, NULL) == 59136);
    assert_true(number_at(json, "config", "layers", NULL) == 3);
    assert_true(number_at(json, "dtypes", "Q8_0", "tensors") == 22);
    assert_true(number_at(json, "dtypes", "F32", "tensors") == 7);
    assert_true(number_at(json, "dtypes", "F32", "bytes") == 7 * 32 * 4);
    double matrices = 320 * 32 + 3 * (2 * 64 * 32 + 2 * 32 * 32 + 3 * 64 * 32);
    assert_true(number_at(json, "memory", "serve", "weights_f32_bytes") == 4 * (matrices + 7 * 32));
    assert_true(number_at(json, "memory", "serve", "cache_bf16_bytes_per_1k_tokens") == 1024.0 * 2 * 2 * 3 * 2 * 16);
    double lora = 3 * 16 * (2 * (64 + 32) + 2 * (32 + 32) + 3 * (64 + 32));
    assert_true(number_at(json, "memory", "tune", "lora_r16_parameters") == lora);
    assert_int_equal(cJSON_GetArraySize(gd_json_find(json, "tensors")), 29);
    const cJSON *eos = gd_json_find(gd_json_find(json, "tokenizer"), "eos");
    assert_string_equal(cJSON_GetStringValue(gd_json_find(eos->child, "token")), "<|im_end|>");
    const char *line = cJSON_GetStringValue(gd_json_find(gd_json_find(json, "template"), "first_line"));
    assert_non_null(strstr(line, "for message in messages"));
    cJSON_Delete(json);
    gd_model_destroy(model);

    model = open_fixture("tiny-llama-yarn");
    json = gd_model_describe(model, false);
    assert_true(cJSON_IsNull(gd_json_find(json, "template")));
    assert_null(gd_json_find(json, "tensors"));
    assert_true(number_at(json, "dtypes", "BF16", "tensors") == 29);
    assert_null(gd_json_find(json, "not_read"));
    cJSON_Delete(json);
    gd_model_destroy(model);

    model = open_fixture("tiny-gemma3-sees");
    json = gd_model_describe(model, false);
    assert_string_equal(cJSON_GetStringValue(gd_json_find(json, "architecture")), "gemma3");
    assert_true(number_at(json, "not_read", "tensors", NULL) == 23);
    assert_true(number_at(json, "not_read", "parameters", NULL) == 236);
    assert_int_equal(model->config.eos_count, 2);
    cJSON_Delete(json);
    gd_model_destroy(model);
}

static int init_device(void **state)
{
    struct gd_error err = {0};
    if (!gd_device_init("cpu", 2, &err))
        fail_msg("%s", err.message);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_site_is_visited_once_in_the_order_of_the_graph),
        cmocka_unit_test(absent_members_leave_their_sites_alone),
        cmocka_unit_test(parameters_are_counted_as_the_formula_counts_them),
        cmocka_unit_test(digests_tell_models_apart_and_not_copies),
        cmocka_unit_test(the_tokenizer_s_end_token_stops_too),
        cmocka_unit_test(the_description_says_what_inspect_shows),
    };
    return cmocka_run_group_tests(tests, init_device, NULL);
}
