/* config_test.c - config.json and rope: defaults of the families, ranges, spellings, scalings. */
#include "engine/model/config.h"
#include "tests/unit/model/model_testing.h"
#include <math.h>

#define LLAMA                                                                                                          \
    "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"                  \
    "\"num_attention_heads\":4,\"vocab_size\":100,\"max_position_embeddings\":256}"

/* `base` with the members of `patch` put in or replaced. */
static bool read_config(const char *base, const char *patch, const char *generation, struct gd_model_config *config,
                        struct gd_error *err)
{
    cJSON *json = gd_json_parse(base, strlen(base), 1 << 20, err),
          *more = gd_json_parse(patch, strlen(patch), 1 << 20, err);
    cJSON *other = generation != NULL ? gd_json_parse(generation, strlen(generation), 1 << 20, err) : NULL;
    if (err->code != GD_OK)
        fail_msg("%s in %s %s", err->message, base, patch);
    while (cJSON_IsObject(more) && more->child != NULL) {
        cJSON *item = cJSON_DetachItemViaPointer(more, more->child);
        cJSON_DeleteItemFromObjectCaseSensitive(json, item->string);
        cJSON_AddItemToObject(json, item->string, item);
    }
    bool ok = gd_model_config_from_json(config, cJSON_IsObject(more) ? json : more, other, err);
    cJSON_Delete(json);
    cJSON_Delete(more);
    cJSON_Delete(other);
    return ok;
}

static struct gd_model_config must_read(const char *base, const char *patch, const char *generation)
{
    struct gd_model_config config;
    struct gd_error err = {0};
    if (!read_config(base, patch, generation, &config, &err))
        fail_msg("%s: %s", patch, err.message);
    return config;
}

static void each_bad_field_is_refused_by_name(void **state)
{
    static const struct {
        const char *patch;
        enum gd_code code;
        const char *words;
    } cases[] = {
        {"[]", GD_BAD_MODEL, "config.json is not a JSON object"},
        {"{\"model_type\":7}", GD_BAD_MODEL, "config.json.model_type"},
        {"{\"model_type\":null}", GD_BAD_MODEL, "model_type"},
        {"{\"model_type\":\"bloom\"}", GD_UNSUPPORTED, "\"bloom\"|gemma2, gemma3_text, gemma3, gpt2, gpt_neox, |qwen3"},
        {"{\"architectures\":[\"LlamaForQuestionAnswering\"]}", GD_UNSUPPORTED,
         "config.json.architectures|LlamaForQuestionAnswering|LlamaForCausalLM, LlamaForSequenceClassification"},
        {"{\"architectures\":[\"LlamaForSequenceClassification\"],\"id2label\":{\"1\":\"a\"}}", GD_BAD_MODEL, "id2label|\"1\""},
        {"{\"architectures\":[\"LlamaForSequenceClassification\"],\"id2label\":{}}", GD_BAD_MODEL, "id2label|0 labels"},
        {"{\"architectures\":[\"LlamaForSequenceClassification\"],\"problem_type\":\"regression\"}", GD_UNSUPPORTED, "problem_type|regression"},
        {"{\"architectures\":[\"LlamaForSequenceClassification\"],\"num_labels\":0}", GD_BAD_MODEL, "num_labels"},
        {"{\"model_type\":\"bert\",\"is_decoder\":true}", GD_UNSUPPORTED, "is_decoder true|bert"},
        {"{\"model_type\":\"bert\",\"position_embedding_type\":\"relative_key\"}", GD_UNSUPPORTED, "position_embedding_type|relative_key"},
        {"{\"model_type\":\"roberta\",\"max_position_embeddings\":2}", GD_BAD_MODEL, "max_position_embeddings 2"},
        {"{\"architectures\":\"LlamaForCausalLM\"}", GD_BAD_MODEL, "architectures"},
        {"{\"quantization_config\":{\"bits\":4}}", GD_UNSUPPORTED, "quantization_config"},
        {"{\"hidden_size\":0}", GD_BAD_MODEL, "config.json.hidden_size"},
        {"{\"hidden_size\":-64}", GD_BAD_MODEL, "config.json.hidden_size"},
        {"{\"hidden_size\":64.5}", GD_BAD_MODEL, "config.json.hidden_size"},
        {"{\"hidden_size\":\"64\"}", GD_BAD_MODEL, "config.json.hidden_size"},
        {"{\"hidden_size\":1e15}", GD_BAD_MODEL, "config.json.hidden_size"},
        {"{\"num_hidden_layers\":0}", GD_BAD_MODEL, "num_hidden_layers"},
        {"{\"num_hidden_layers\":513}", GD_BAD_MODEL, "num_hidden_layers"},
        {"{\"num_attention_heads\":0}", GD_BAD_MODEL, "num_attention_heads"},
        {"{\"num_attention_heads\":5}", GD_BAD_MODEL, "num_attention_heads 5|hidden_size 64"},
        {"{\"num_attention_heads\":64}", GD_BAD_MODEL, "head_dim 1"},
        {"{\"num_key_value_heads\":3}", GD_BAD_MODEL, "num_key_value_heads 3|num_attention_heads 4"},
        {"{\"num_key_value_heads\":8}", GD_BAD_MODEL, "num_key_value_heads 8|num_attention_heads 4"},
        {"{\"head_dim\":15}", GD_BAD_MODEL, "head_dim 15"},
        {"{\"head_dim\":0}", GD_BAD_MODEL, "head_dim"},
        {"{\"head_dim\":2048}", GD_BAD_MODEL, "head_dim"},
        {"{\"intermediate_size\":0}", GD_BAD_MODEL, "intermediate_size"},
        {"{\"vocab_size\":0}", GD_BAD_MODEL, "vocab_size"},
        {"{\"vocab_size\":4000001}", GD_BAD_MODEL, "vocab_size"},
        {"{\"max_position_embeddings\":0}", GD_BAD_MODEL, "max_position_embeddings"},
        {"{\"rms_norm_eps\":0}", GD_BAD_MODEL, "rms_norm_eps"},
        {"{\"rms_norm_eps\":-1}", GD_BAD_MODEL, "rms_norm_eps"},
        {"{\"hidden_act\":\"mish\"}", GD_UNSUPPORTED, "hidden_act|mish|silu, gelu"},
        {"{\"tie_word_embeddings\":1}", GD_BAD_MODEL, "tie_word_embeddings"},
        {"{\"partial_rotary_factor\":0.5}", GD_UNSUPPORTED, "partial_rotary_factor 0.5"},
        {"{\"rope_theta\":0}", GD_BAD_MODEL, "rope_theta"},
        {"{\"rope_theta\":\"x\"}", GD_BAD_MODEL, "rope_theta"},
        {"{\"rope_scaling\":[]}", GD_BAD_MODEL, "rope_scaling"},
        {"{\"rope_scaling\":{\"rope_type\":\"longrope\"}}", GD_BAD_MODEL, "rope_scaling.short_factor"},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\"}}", GD_BAD_MODEL, "rope_scaling.factor"},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", GD_BAD_MODEL, "rope_scaling.factor"},
        {"{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}}",
         GD_BAD_MODEL, "high_freq_factor 4|low_freq_factor 4"},
        {"{\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}", GD_UNSUPPORTED,
         "rope_parameters.full_attention"},
        {"{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":-1}}", GD_BAD_MODEL,
         "rope_parameters.rope_theta"},
        {"{\"eos_token_id\":100}", GD_BAD_MODEL, "config.json.eos_token_id 100|vocabulary of 100"},
        {"{\"eos_token_id\":-1}", GD_BAD_MODEL, "config.json.eos_token_id -1"},
        {"{\"eos_token_id\":\"</s>\"}", GD_BAD_MODEL, "config.json.eos_token_id"},
        {"{\"eos_token_id\":[1,2.5]}", GD_BAD_MODEL, "config.json.eos_token_id"},
        {"{\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", GD_BAD_MODEL, "more than 8"},
        {"{\"bos_token_id\":100}", GD_BAD_MODEL, "config.json.bos_token_id"},
        {"{\"model_type\":\"qwen2\",\"use_sliding_window\":true,\"sliding_window\":0}", GD_BAD_MODEL, "sliding_window"},
        {"{\"model_type\":\"phi3\",\"partial_rotary_factor\":0.1}", GD_BAD_MODEL, "partial_rotary_factor 0.1 rotates 1|16"},
        {"{\"model_type\":\"phi3\",\"partial_rotary_factor\":1.5}", GD_BAD_MODEL, "partial_rotary_factor"},
        {"{\"model_type\":\"phi3\",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1]}}", GD_BAD_MODEL, "short_factor has 1 numbers; 8|wanted"},
        {"{\"model_type\":\"phi3\",\"rope_scaling\":{\"type\":\"mrope\"}}", GD_UNSUPPORTED, "rope_scaling|\"mrope\"|yarn, longrope"},
        {"{\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}}", GD_UNSUPPORTED, "partial_rotary_factor 0.5|llama"},
        {"{\"model_type\":\"qwen3\",\"attention_bias\":3}", GD_BAD_MODEL, "config.json.attention_bias"},
        {"{\"model_type\":\"qwen3\",\"num_key_value_heads\":4,\"head_dim\":7}", GD_BAD_MODEL, "head_dim 7"},
        {"{\"model_type\":\"phi3\",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1,1,1,1,\"x\"]}}", GD_BAD_MODEL,
         "short_factor[7]"},
        {"{\"model_type\":\"gpt2\",\"n_head\":5}", GD_BAD_MODEL, "n_head 5|n_embd 768"},
        {"{\"model_type\":\"gpt2\",\"n_inner\":0}", GD_BAD_MODEL, "config.json.n_inner"},
        {"{\"model_type\":\"gpt2\",\"scale_attn_by_inverse_layer_idx\":true}", GD_UNSUPPORTED, "scale_attn_by_inverse_layer_idx true|gpt2"},
        {"{\"model_type\":\"gpt_neox\",\"rotary_pct\":0.1}", GD_BAD_MODEL, "rotates 1|16"},
        {"{\"model_type\":\"gpt_neox\",\"use_parallel_residual\":1}", GD_BAD_MODEL, "use_parallel_residual"},
        {"{\"model_type\":\"opt\",\"layer_norm_elementwise_affine\":false}", GD_UNSUPPORTED, "layer_norm_elementwise_affine"},
        {"{\"model_type\":\"opt\",\"_remove_final_layer_norm\":true}", GD_UNSUPPORTED, "_remove_final_layer_norm true|opt"},
        {"{\"model_type\":\"gemma2\",\"attn_logit_softcapping\":0}", GD_BAD_MODEL, "attn_logit_softcapping"},
        {"{\"model_type\":\"gemma2\",\"query_pre_attn_scalar\":-4}", GD_BAD_MODEL, "query_pre_attn_scalar"},
        {"{\"model_type\":\"gemma2\",\"hidden_activation\":\"mish\"}", GD_UNSUPPORTED, "hidden_activation|mish"},
        {"{\"model_type\":\"gemma3_text\",\"sliding_window_pattern\":0}", GD_BAD_MODEL, "sliding_window_pattern"},
        {"{\"model_type\":\"gemma3_text\",\"use_bidirectional_attention\":true}", GD_UNSUPPORTED, "use_bidirectional_attention true|gemma3_text"},
        {"{\"model_type\":\"gemma3_text\",\"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"longrope\"}}}", GD_UNSUPPORTED,
         "rope_parameters.sliding_attention|longrope"},
        {"{\"model_type\":\"gemma3\"}", GD_BAD_MODEL, "config.json.text_config"},
        {"{\"model_type\":\"gemma3\",\"text_config\":[]}", GD_BAD_MODEL, "config.json.text_config"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{\"model_type\":\"llama\"}}", GD_UNSUPPORTED, "text_config.model_type \"llama\"|gemma3_text is"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{\"head_dim\":7}}", GD_BAD_MODEL, "text_config|head_dim 7"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{},\"tie_word_embeddings\":3}", GD_BAD_MODEL, "text_config|tie_word_embeddings"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{},\"eos_token_id\":[1,300000]}", GD_BAD_MODEL, "eos_token_id 300000"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{},\"architectures\":[\"Gemma3ForAudio\"]}", GD_UNSUPPORTED,
         "Gemma3ForAudio|Gemma3ForConditionalGeneration, Gemma3ForCausalLM, Gemma3ForSequenceClassification"},
        {"{\"model_type\":\"qwen2\",\"layer_types\":[\"full_attention\"]}", GD_BAD_MODEL, "layer_types has 1"},
        {"{\"model_type\":\"qwen2\",\"layer_types\":[\"x\",\"full_attention\"]}", GD_UNSUPPORTED, "layer_types|\"x\""},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_model_config config;
        struct gd_error err = {0};
        if (read_config(LLAMA, cases[i].patch, NULL, &config, &err))
            fail_msg("accepted: %s", cases[i].patch);
        check_error(cases[i].patch, &err, cases[i].code, cases[i].words);
        assert_null(config.inv_freq);
    }
}

static void absent_fields_mean_the_default_of_the_family(void **state)
{
    struct gd_model_config c = must_read("{\"model_type\":\"llama\"}", "{}", NULL);
    assert_int_equal(c.width, 4096);
    assert_int_equal(c.ffn_width, 11008);
    assert_int_equal(c.layers, 32);
    assert_int_equal(c.kv_heads, 32);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.vocab, 32000);
    assert_int_equal(c.context, 2048);
    assert_int_equal(c.bos_id, 1);
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos_ids[0], 2);
    assert_true(c.norm_eps == 1e-6);
    assert_true(c.rope_theta == 10000);
    assert_false(c.tied || c.qkv_bias || c.o_bias || c.mlp_bias);
    assert_int_equal(c.sliding_window, 0);
    gd_model_config_release(&c);

    c = must_read("{\"model_type\":\"mistral\"}", "{}", NULL);
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.ffn_width, 14336);
    assert_int_equal(c.sliding_window, 4096);
    assert_true(c.slides[0] && c.slides[31]);
    assert_int_equal(c.context, 131072);
    gd_model_config_release(&c);

    c = must_read("{\"model_type\":\"qwen2\"}", "{}", NULL);
    assert_int_equal(c.vocab, 151936);
    assert_int_equal(c.bos_id, -1);
    assert_int_equal(c.eos_count, 0);
    assert_true(c.qkv_bias);
    assert_false(c.o_bias || c.qk_norm);
    assert_int_equal(c.sliding_window, 0);
    gd_model_config_release(&c);

    c = must_read("{\"model_type\":\"phi3\"}", "{\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.75}}", NULL);
    assert_int_equal(c.head_dim, 96);
    assert_int_equal(c.rotary_dim, 72);
    assert_int_equal(c.eos_ids[0], 32000);
    assert_true(c.fused_qkv && c.fused_mlp && c.norm_eps == 1e-5);
    assert_int_equal(c.sliding_window, 0);
    gd_model_config_release(&c);

    c = must_read("{\"model_type\":\"qwen3\",\"hidden_size\":1024,\"num_attention_heads\":16,\"num_key_value_heads\":8}", "{}", NULL);
    assert_int_equal(c.head_dim, 128); /* not 1024 / 16 */
    assert_true(c.qk_norm);
    assert_false(c.qkv_bias || c.o_bias);
    assert_int_equal(c.sliding_window, 0);
    gd_model_config_release(&c);
}

static void null_means_none(void **state)
{
    struct gd_model_config c = must_read("{\"model_type\":\"mistral\"}",
                                         "{\"sliding_window\":null,\"num_key_value_heads\":null,\"bos_token_id\":null,"
                                         "\"head_dim\":null,\"rope_scaling\":null,\"eos_token_id\":null}",
                                         NULL);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.kv_heads, 32);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.bos_id, -1);
    assert_int_equal(c.eos_count, 0);
    gd_model_config_release(&c);
}

static void windows_follow_the_rules_of_qwen2(void **state)
{
    static const struct {
        const char *patch;
        int window;
        bool slides[2];
    } cases[] = {
        {"{\"use_sliding_window\":true,\"sliding_window\":6,\"max_window_layers\":1}", 6, {false, true}},
        {"{\"use_sliding_window\":true,\"sliding_window\":6,\"max_window_layers\":2}", 0, {false, false}},
        {"{\"use_sliding_window\":true,\"sliding_window\":6}", 0, {false, false}},
        {"{\"use_sliding_window\":false,\"sliding_window\":6,\"max_window_layers\":0}", 0, {false, false}},
        {"{\"use_sliding_window\":true,\"sliding_window\":null,\"max_window_layers\":0}", 0, {false, false}},
        {"{\"use_sliding_window\":true,\"max_window_layers\":0}", 4096, {true, true}},
        {"{\"use_sliding_window\":true,\"sliding_window\":6,\"max_window_layers\":0,"
         "\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
         6, {false, true}},
        {"{\"use_sliding_window\":true,\"sliding_window\":6,\"layer_types\":[\"sliding_attention\",\"full_attention\"]}",
         6, {true, false}},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_model_config c =
            must_read("{\"model_type\":\"qwen2\",\"num_hidden_layers\":2}", cases[i].patch, NULL);
        assert_int_equal(c.sliding_window, cases[i].window);
        assert_int_equal(c.slides[0], cases[i].slides[0]);
        assert_int_equal(c.slides[1], cases[i].slides[1]);
        gd_model_config_release(&c);
    }
}

static void end_ids_come_from_the_generation_config_when_it_has_them(void **state)
{
    struct gd_model_config c = must_read(LLAMA, "{\"eos_token_id\":[5,6]}", NULL);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos_ids[1], 6);
    gd_model_config_release(&c);
    c = must_read(LLAMA, "{\"eos_token_id\":[5,6]}", "{\"eos_token_id\":7}");
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos_ids[0], 7);
    gd_model_config_release(&c);
    c = must_read(LLAMA, "{\"eos_token_id\":5}", "{\"temperature\":1}");
    assert_int_equal(c.eos_ids[0], 5);
    gd_model_config_release(&c);
}

/* ---- rope ---- */

static void check_frequencies(const char *patch, const double *expected, double factor)
{
    struct gd_model_config c = must_read(LLAMA, patch, NULL); /* head_dim 16 */
    for (int j = 0; j < 8; j++)
        if (fabs(c.inv_freq[j] / expected[j] - 1) > 1e-6)
            fail_msg("%s: inv_freq[%d] %.9g instead of %.9g", patch, j, (double)c.inv_freq[j], expected[j]);
    assert_true(fabs(c.attention_factor - factor) < 1e-12);
    gd_model_config_release(&c);
}

static void frequencies_are_those_of_the_formula(void **state)
{
    double plain[8], scaled[8], ntk[8];
    for (int j = 0; j < 8; j++) {
        plain[j] = pow(10000, -j / 8.0);
        scaled[j] = plain[j] / 4;
    }
    check_frequencies("{}", plain, 1);
    check_frequencies("{\"rope_scaling\":{\"rope_type\":\"default\"}}", plain, 1);
    check_frequencies("{\"rope_scaling\":{}}", plain, 1);
    check_frequencies("{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}}", plain, 1);
    check_frequencies("{\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}", scaled, 1);
    for (int j = 0; j < 8; j++)
        ntk[j] = pow(10000 * pow(4, 16 / 14.0), -j / 8.0);
    check_frequencies("{\"rope_scaling\":{\"type\":\"ntk\",\"factor\":4}}", ntk, 1);
    check_frequencies(
        "{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4,\"rope_theta\":10000},\"rope_theta\":5}", scaled,
        1);
}

static void a_scaling_of_one_is_no_scaling(void **state)
{
    double plain[8];
    for (int j = 0; j < 8; j++)
        plain[j] = pow(10000, -j / 8.0);
    check_frequencies(
        "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":1,\"original_max_position_embeddings\":64}}", plain, 1);
    check_frequencies(
        "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":1,\"original_max_position_embeddings\":64}}", plain, 1);
}

/* Numbers by transformers 5.23: LlamaRotaryEmbedding(config).inv_freq and attention_scaling. */
static void scalings_equal_the_reference(void **state)
{
    static const double llama3[8] = {
        1, 0.244384587, 0.0130422562, 0.00395284733, 0.00124999997, 0.000395284733, 0.000125000006, 3.95284733e-05};
    static const double yarn[8] = {
        1, 0.237170815, 0.049999997, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05};
    static const double mscale[8] = {
        1, 0.212468684, 0.0256643984, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05};
    check_frequencies(
        "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
        "\"original_max_position_embeddings\":64}}",
        llama3, 1);
    check_frequencies(
        "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":64}}", yarn,
        1.138629436111989);
    check_frequencies("{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":64,"
                      "\"truncate\":false,\"beta_fast\":8,\"mscale\":0.7,\"mscale_all_dim\":1.2}}",
                      mscale, 0.9405715251010841);
}

/* Numbers by transformers 5.23: longrope's two tables, Gemma 3's by kind of layer. */
static void several_tables_equal_the_reference(void **state)
{
    static const double longrope[12] = {1, 0.205184266, 0.0421962552, 0.00833333284, 0.00143628952, 0.000232079474,
                                        1, 0.14362897,  0.0185663532, 0.00249999994, 0.000359072379, 5.80198684e-05};
    static const double gemma3[16] = {0.125, 0.0222284924, 0.00395284733, 0.000702926656, 0.000125000006, 2.22284925e-05, 3.95284678e-06,
                                      7.02926684e-07, 1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786,
                                      0.00100000005, 0.000316227786};
    static const struct {
        const char *text;
        const double *expected;
        int count, long_from;
        double factor;
    } cases[] = {
        {"{\"model_type\":\"phi3\",\"max_position_embeddings\":1024,\"original_max_position_embeddings\":256,\"partial_rotary_factor\":0.75,"
         "\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1.05,1.1,1.2,1.5,2],\"long_factor\":[1,1.5,2.5,4,6,8]}}",
         longrope, 12, 256, 1.118033988749895},
        {"{\"model_type\":\"gemma3_text\",\"head_dim\":16,\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8,"
         "\"rope_theta\":1000000},\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":10000}}}",
         gemma3, 16, 0, 1},
        {"{\"model_type\":\"gemma3_text\",\"head_dim\":16,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8},\"rope_theta\":1000000,"
         "\"rope_local_base_freq\":10000}",
         gemma3, 16, 0, 1},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_model_config c = must_read(LLAMA, cases[i].text, NULL);
        assert_int_equal(gd_model_frequencies(&c), cases[i].count);
        for (int j = 0; j < cases[i].count; j++)
            if (fabs(c.inv_freq[j] / cases[i].expected[j] - 1) > 1e-6)
                fail_msg("%s: inv_freq[%d] %.9g instead of %.9g", cases[i].text, j, (double)c.inv_freq[j], cases[i].expected[j]);
        assert_true(fabs(c.attention_factor - cases[i].factor) < 1e-12);
        assert_int_equal(c.long_from, cases[i].long_from);
        gd_model_config_release(&c);
    }
}

static void other_families_say_things_in_their_own_way(void **state)
{
    struct gd_model_config c = must_read("{\"model_type\":\"gpt2\"}", "{\"n_embd\":48,\"n_head\":4}", NULL);
    assert_int_equal(c.head_dim, 12);
    assert_int_equal(c.ffn_width, 192);
    assert_int_equal(c.positions, 1024);
    assert_int_equal(c.eos_ids[0], 50256);
    assert_int_equal(gd_model_frequencies(&c), 1);
    assert_true(c.learned_positions && c.transposed && c.layer_norm && c.tied && c.attention_scale == 1 / sqrt(12));
    gd_model_config_release(&c);

    c = must_read("{\"model_type\":\"gpt_neox\"}", "{\"rope_parameters\":{\"rope_theta\":500,\"partial_rotary_factor\":0.5}}", NULL);
    assert_int_equal(c.rotary_dim, 48);
    assert_true(c.rope_theta == 500 && c.parallel_residual && c.activation == GD_ACTIVATION_GELU);
    gd_model_config_release(&c);
    c = must_read("{\"model_type\":\"gpt_neox\"}", "{\"rotary_emb_base\":700,\"use_parallel_residual\":false}", NULL);
    assert_int_equal(c.rotary_dim, 24); /* a quarter of 96 */
    assert_true(c.rope_theta == 700 && !c.parallel_residual);
    gd_model_config_release(&c);

    c = must_read("{\"model_type\":\"opt\"}", "{\"do_layer_norm_before\":false,\"enable_bias\":false}", NULL);
    assert_true(c.norm_after && !c.qkv_bias && !c.mlp_bias);
    assert_int_equal(c.positions, 2050);
    gd_model_config_release(&c);

    static const char *const classifiers[] = {"{\"model_type\":\"gemma3_text\",\"architectures\":[\"Gemma3TextForSequenceClassification\"]}",
                                              "{\"model_type\":\"gemma3\",\"architectures\":[\"Gemma3ForSequenceClassification\"],\"text_config\":{}}",
                                              "{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2ForSequenceClassification\"]}"};
    for (size_t i = 0; i < GD_COUNT(classifiers); i++) {
        c = must_read(classifiers[i], "{}", NULL);
        assert_true(c.classifies && c.label_count == 2 && !c.multi_label);
        gd_model_config_release(&c);
    }
    c = must_read("{\"model_type\":\"bert\",\"architectures\":[\"BertForSequenceClassification\"]}", "{\"id2label\":{\"0\":\"fits\"}}", NULL);
    assert_true(c.label_count == 1 && c.multi_label); /* a softmax over one label would say 1 to everything */
    gd_model_config_release(&c);
    c = must_read("{\"model_type\":\"bert\",\"architectures\":[\"BertForPreTraining\"]}", "{}", NULL);
    assert_true(c.masks && !c.classifies);
    gd_model_config_release(&c);
    c = must_read("{\"model_type\":\"qwen3\"}", "{\"attention_bias\":true}", NULL);
    assert_true(c.qkv_bias && c.o_bias && c.qk_norm);
    gd_model_config_release(&c);

    c = must_read("{\"model_type\":\"gemma2\"}", "{\"query_pre_attn_scalar\":144,\"final_logit_softcapping\":null,\"num_hidden_layers\":3}", NULL);
    assert_true(c.attention_scale == 1.0 / 12 && c.score_softcap == 50 && c.logit_softcap == 0);
    assert_true(c.slides[0] && !c.slides[1] && c.slides[2]);
    gd_model_config_release(&c);
    c = must_read("{\"model_type\":\"gemma3_text\"}", "{\"num_hidden_layers\":13}", NULL);
    for (int layer = 0; layer < 13; layer++)
        assert_int_equal(c.slides[layer], layer != 5 && layer != 11);
    assert_true(c.score_softcap == 0 && c.logit_softcap == 0 && c.qk_norm && c.norm_offset == 1);
    gd_model_config_release(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_bad_field_is_refused_by_name),
        cmocka_unit_test(absent_fields_mean_the_default_of_the_family),
        cmocka_unit_test(null_means_none),
        cmocka_unit_test(windows_follow_the_rules_of_qwen2),
        cmocka_unit_test(end_ids_come_from_the_generation_config_when_it_has_them),
        cmocka_unit_test(frequencies_are_those_of_the_formula),
        cmocka_unit_test(a_scaling_of_one_is_no_scaling),
        cmocka_unit_test(scalings_equal_the_reference),
        cmocka_unit_test(several_tables_equal_the_reference),
        cmocka_unit_test(other_families_say_things_in_their_own_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
