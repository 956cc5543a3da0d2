/* config_gguf.c - the metadata of a GGUF file as a model's config. */
#include "engine/model/config_read.h"
#include "engine/model/text.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* "llama.attention.head_count" */
struct key {
    char text[128];
};

static struct key make_key(const char *architecture, const char *name)
{
    struct key key;
    snprintf(key.text, sizeof key.text, "%s.%s", architecture, name);
    return key;
}

static bool get_int(const struct gd_gguf *file, const char *architecture, const char *name, bool required, int64_t max,
                    int *out, struct gd_error *err)
{
    int64_t value = *out;
    if (!gd_gguf_get_uniform_int(file, make_key(architecture, name).text, required, 1, max, &value, err))
        return false;
    *out = (int)value;
    return true;
}

/* Keys that change what is computed, with the value that changes nothing. */
static bool check_plain(const struct gd_gguf *file, const char *architecture, struct gd_error *err)
{
    static const struct {
        const char *name;
        double neutral;
    } plain[] = {
        {"attention.max_alibi_bias", 0},
        {"attention.clamp_kqv", 0},
        {"logit_scale", 1},
        {"residual_scale", 1},
        {"embedding_scale", 1},
        {"rope.scaling.yarn_ext_factor", 1},
    };
    for (size_t i = 0; i < GD_COUNT(plain); i++) {
        struct key key = make_key(architecture, plain[i].name);
        double value = plain[i].neutral;
        if (!gd_gguf_get_number(file, key.text, false, -INFINITY, INFINITY, &value, err))
            return false;
        if (value != plain[i].neutral)
            return gd_fail_param(err, GD_UNSUPPORTED, key.text, "key %s %g is not supported", key.text, value);
    }
    bool causal = true;
    if (!gd_gguf_get_bool(file, make_key(architecture, "attention.causal").text, false, &causal, err))
        return false;
    if (!causal)
        return gd_fail(err, GD_UNSUPPORTED, "key %s.attention.causal is false: encoders are not supported",
                       architecture);
    return true;
}

static bool read_heads(struct gd_model_config *config, const struct gd_gguf *file, const char *a, struct gd_error *err)
{
    int value_length, rotary;
    if (!get_int(file, a, "attention.head_count", true, GD_HEADS_MAX, &config->heads, err))
        return false;
    config->kv_heads = config->heads;
    if (!get_int(file, a, "attention.head_count_kv", false, GD_HEADS_MAX, &config->kv_heads, err) ||
        !get_int(file, a, "attention.key_length", false, GD_HEAD_DIM_MAX, &config->head_dim, err))
        return false;
    if (config->head_dim == 0) {
        if (config->width % config->heads != 0)
            return gd_fail(err, GD_BAD_MODEL,
                           "key %s.attention.head_count %d is not a divisor of embedding_length %d, and there is no "
                           "attention.key_length",
                           a, config->heads, config->width);
        config->head_dim = config->width / config->heads;
    }
    value_length = rotary = config->head_dim;
    if (!get_int(file, a, "attention.value_length", false, GD_HEAD_DIM_MAX, &value_length, err) ||
        !get_int(file, a, "rope.dimension_count", false, GD_HEAD_DIM_MAX, &rotary, err))
        return false;
    if (value_length != config->head_dim || rotary != config->head_dim)
        return gd_fail(
            err, GD_UNSUPPORTED,
            "key length %d, %s.attention.value_length %d and %s.rope.dimension_count %d differ, which is not "
            "supported",
            config->head_dim, a, value_length, a, rotary);
    return true;
}

static bool read_sizes(struct gd_model_config *config, const struct gd_gguf *file, const char *a, struct gd_error *err)
{
    struct gd_tensor embed;
    if (!get_int(file, a, "embedding_length", true, GD_WIDTH_MAX, &config->width, err) ||
        !get_int(file, a, "block_count", true, GD_LAYERS_MAX, &config->layers, err) ||
        !get_int(file, a, "feed_forward_length", true, GD_FFN_WIDTH_MAX, &config->ffn_width, err) ||
        !get_int(file, a, "context_length", true, GD_CONTEXT_MAX, &config->context, err) ||
        !gd_gguf_get_number(file, make_key(a, "attention.layer_norm_rms_epsilon").text, true, 1e-12, 1,
                            &config->norm_eps, err) ||
        !read_heads(config, file, a, err))
        return false;
    if (!gd_gguf_find(file, "token_embd.weight", &embed))
        return gd_fail(err, GD_BAD_MODEL, "tensor token_embd.weight is missing");
    if (embed.rank != 2 || embed.shape[0] > GD_TOKENIZER_VOCAB_MAX)
        return gd_fail(err, GD_BAD_MODEL, "tensor token_embd.weight is %s; a table of at most %d rows is wanted",
                       gd_show_shape(&embed).text, GD_TOKENIZER_VOCAB_MAX);
    config->vocab = (int)embed.shape[0];
    int vocab = config->vocab;
    if (!get_int(file, a, "vocab_size", false, GD_TOKENIZER_VOCAB_MAX, &vocab, err))
        return false;
    if (vocab != config->vocab)
        return gd_fail(err, GD_BAD_MODEL, "key %s.vocab_size is %d, tensor token_embd.weight has %d rows", a, vocab,
                       config->vocab);
    return true;
}

static void read_flags(struct gd_model_config *config, const struct gd_gguf *file)
{
    struct gd_tensor unused;
    config->tied = !gd_gguf_find(file, "output.weight", &unused);
    if (config->family->bias_options) {
        config->qkv_bias = gd_gguf_find(file, "blk.0.attn_q.bias", &unused);
        config->o_bias = gd_gguf_find(file, "blk.0.attn_output.bias", &unused);
        config->mlp_bias = gd_gguf_find(file, "blk.0.ffn_gate.bias", &unused);
    }
}

/* Which layers slide is the family's rule (its defaults or read_gguf say so); no key tells it. */
static bool read_window(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err)
{
    int64_t window = 0;
    struct key key = make_key(config->family->gguf, "attention.sliding_window");
    if (!gd_gguf_get_int(file, key.text, false, 0, GD_CONTEXT_MAX, &window, err))
        return false;
    config->sliding_window = (int)window;
    for (int layer = 0; layer < config->layers; layer++)
        config->slides[layer] = window > 0;
    return true;
}

bool gd_gguf_refuse_window(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err)
{
    struct key key = make_key(config->family->gguf, "attention.sliding_window");
    (void)file;
    return config->sliding_window == 0 ||
           gd_fail_param(err, GD_UNSUPPORTED, key.text, "key %s %d: the file does not say which layers slide, so it is not supported",
                         key.text, config->sliding_window);
}

/* YaRN's factor of cos and sin here is a factor on top of the usual one. */
static bool read_yarn(struct gd_rope_scaling *scaling, const struct gd_gguf *file, const char *a, struct gd_error *err)
{
    double factor = 1;
    if (!gd_gguf_get_number(file, make_key(a, "rope.scaling.original_context_length").text, false, 1, GD_CONTEXT_MAX,
                            &scaling->original_context, err) ||
        !gd_gguf_get_number(file, make_key(a, "rope.scaling.attn_factor").text, false, 1e-3, 1e3, &factor, err) ||
        !gd_gguf_get_number(file, make_key(a, "rope.scaling.yarn_attn_factor").text, false, 1e-3, 1e3, &factor, err) ||
        !gd_gguf_get_number(file, make_key(a, "rope.scaling.yarn_beta_fast").text, false, 1e-3, 1e6,
                            &scaling->beta_fast, err) ||
        !gd_gguf_get_number(file, make_key(a, "rope.scaling.yarn_beta_slow").text, false, 1e-3, 1e6,
                            &scaling->beta_slow, err))
        return false;
    scaling->attention_factor = factor * (0.1 * log(scaling->factor) + 1);
    return true;
}

/* llama3's scaling comes as one divisor a frequency. */
static bool read_divisors(struct gd_rope_scaling *scaling, const struct gd_model_config *config,
                          const struct gd_gguf *file, struct gd_error *err)
{
    struct gd_tensor tensor;
    if (!gd_gguf_find(file, "rope_freqs.weight", &tensor))
        return true;
    if (tensor.dtype != GD_F32 || tensor.rank != 1 || tensor.shape[0] != config->head_dim / 2)
        return gd_fail(err, GD_BAD_MODEL, "tensor rope_freqs.weight is %s %s, not F32 [%d]",
                       gd_dtype_name(tensor.dtype), gd_show_shape(&tensor).text, config->head_dim / 2);
    scaling->divisors = tensor.data;
    for (int j = 0; j < config->head_dim / 2; j++)
        if (!(scaling->divisors[j] >= 1e-6f && scaling->divisors[j] <= 1e6f))
            return gd_fail(err, GD_BAD_MODEL, "tensor rope_freqs.weight[%d] is %g, a divisor is wanted", j,
                           (double)scaling->divisors[j]);
    return true;
}

static bool read_caps(struct gd_model_config *config, const struct gd_gguf *file, const char *a, struct gd_error *err)
{
    return gd_gguf_get_number(file, make_key(a, "attn_logit_softcapping").text, false, 0, 1e6, &config->score_softcap, err) &&
           gd_gguf_get_number(file, make_key(a, "final_logit_softcapping").text, false, 0, 1e6, &config->logit_softcap, err);
}

static bool read_rope(struct gd_model_config *config, struct gd_rope_scaling *scaling, struct gd_gguf *file,
                      const char *a, struct gd_error *err)
{
    const char *kind = "none";
    struct key kind_key = make_key(a, "rope.scaling.type");
    *scaling = gd_rope_scaling_default();
    scaling->original_context = config->context;
    if (!gd_gguf_get_number(file, make_key(a, "rope.freq_base").text, false, 2, 1e15, &config->rope_theta, err) ||
        !gd_gguf_get_string(file, kind_key.text, false, &kind, err) ||
        !gd_gguf_get_number(file, make_key(a, "rope.scale_linear").text, false, 1, 1e6, &scaling->factor, err) ||
        !gd_gguf_get_number(file, make_key(a, "rope.scaling.factor").text, false, 1, 1e6, &scaling->factor, err))
        return false;
    if (strcmp(kind, "linear") == 0 || (!gd_gguf_has(file, kind_key.text) && scaling->factor > 1))
        scaling->kind = GD_ROPE_LINEAR;
    else if (strcmp(kind, "yarn") == 0)
        scaling->kind = GD_ROPE_YARN;
    else if (strcmp(kind, "none") != 0)
        return gd_fail_param(err, GD_UNSUPPORTED, kind_key.text,
                             "key %s \"%s\" is not supported; supported are none, linear, yarn", kind_key.text,
                             gd_show_text(kind).text);
    return (scaling->kind != GD_ROPE_YARN || read_yarn(scaling, file, a, err)) &&
           read_divisors(scaling, config, file, err);
}

static bool read_ids(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err)
{
    static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id"};
    int64_t bos = -1;
    if (!gd_gguf_get_int(file, "tokenizer.ggml.bos_token_id", false, 0, config->vocab - 1, &bos, err))
        return false;
    config->bos_id = (int32_t)bos;
    for (size_t i = 0; i < GD_COUNT(end_keys); i++) {
        int64_t id = 0;
        if (!gd_gguf_has(file, end_keys[i]))
            continue;
        if (!gd_gguf_get_int(file, end_keys[i], true, 0, config->vocab - 1, &id, err) ||
            !gd_model_config_add_eos(config, id, end_keys[i], err))
            return false;
    }
    return true;
}

static bool find_family(const struct gd_family **family, const struct gd_gguf *file, const char *architecture, struct gd_error *err)
{
    int64_t experts = 0;
    if (!gd_family_find_gguf(family, architecture, false, err) ||
        !gd_gguf_get_int(file, make_key((*family)->gguf, "expert_count").text, false, 0, GD_EXPERTS_MAX, &experts, err))
        return false;
    return experts == 0 || gd_family_find_gguf(family, architecture, true, err);
}

static bool read_all(struct gd_model_config *config, struct gd_gguf *file, struct gd_error *err)
{
    const char *architecture = NULL, *type = "model";
    const struct gd_family *family = NULL;
    struct gd_rope_scaling ropes[2] = {gd_rope_scaling_default(), gd_rope_scaling_default()};
    if (!gd_gguf_get_string(file, "general.type", false, &type, err))
        return false;
    if (strcmp(type, "model") != 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "general.type", "general.type is \"%s\", not a model",
                             gd_show_text(type).text);
    if (!gd_gguf_get_string(file, "general.architecture", true, &architecture, err) ||
        !find_family(&family, file, architecture, err))
        return false;
    const char *a = family->gguf;
    struct key heads = make_key(a, "attention.head_count"), kv_heads = make_key(a, "attention.head_count_kv");
    struct key head_dim = make_key(a, "attention.key_length"), theta = make_key(a, "rope.freq_base");
    struct gd_model_config_names names = {heads.text, kv_heads.text, head_dim.text, theta.text};
    gd_model_config_begin(config, family);
    config->eos_count = 0;
    config->head_dim = 0;
    if (!check_plain(file, a, err) || !read_sizes(config, file, a, err) || !read_window(config, file, err) ||
        !read_caps(config, file, a, err) ||
        !read_rope(config, &ropes[0], file, a, err) || !read_ids(config, file, err) ||
        (family->read_gguf != NULL && !family->read_gguf(config, file, err)))
        return false;
    read_flags(config, file);
    return gd_model_config_finish(config, ropes, &names, err);
}

bool gd_model_config_from_gguf(struct gd_model_config *config, struct gd_gguf *file, struct gd_error *err)
{
    memset(config, 0, sizeof *config);
    if (read_all(config, file, err))
        return true;
    gd_model_config_release(config);
    return gd_bad_model(err);
}
