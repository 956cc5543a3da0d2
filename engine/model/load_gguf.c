/* load_gguf.c - a model from one GGUF file: config, weights, tokenizer and template are all in it. */
#include "engine/model/config.h"
#include "engine/model/files.h"
#include "engine/base/alloc.h"
#include "engine/model/text.h"

#define CHARSMAP_BYTES_MAX (16 << 20)

static bool get_id(const struct gd_gguf *file, const char *key, int32_t *out, struct gd_error *err)
{
    int64_t id = -1;
    if (!gd_gguf_get_int(file, key, false, -1, INT32_MAX, &id, err))
        return false;
    *out = (int32_t)id;
    return true;
}

static bool get_flag(const struct gd_gguf *file, const char *key, int *out, struct gd_error *err)
{
    bool flag = false;
    *out = -1;
    if (!gd_gguf_has(file, key))
        return true;
    if (!gd_gguf_get_bool(file, key, true, &flag, err))
        return false;
    *out = flag;
    return true;
}

static bool check_length(const char *key, int count, int wanted, struct gd_error *err)
{
    if (count == wanted)
        return true;
    return gd_fail_param(err, GD_BAD_MODEL, key, "key %s has %d items, tokenizer.ggml.tokens has %d", key, count,
                         wanted);
}

static bool read_arrays(struct gd_tokenizer_gguf *meta, struct gd_gguf *file, struct gd_error *err)
{
    int types = 0, scores = 0;
    if (!gd_gguf_get_strings(file, "tokenizer.ggml.tokens", true, GD_TOKENIZER_VOCAB_MAX, &meta->tokens,
                             &meta->vocab_count, err) ||
        !gd_gguf_get_i32s(file, "tokenizer.ggml.token_type", false, GD_TOKENIZER_VOCAB_MAX, &meta->token_types, &types,
                          err) ||
        !gd_gguf_get_f32s(file, "tokenizer.ggml.scores", false, GD_TOKENIZER_VOCAB_MAX, &meta->scores, &scores, err) ||
        !gd_gguf_get_strings(file, "tokenizer.ggml.merges", false, GD_TOKENIZER_VOCAB_MAX, &meta->merges,
                             &meta->merge_count, err))
        return false;
    const void *charsmap = NULL;
    int charsmap_length = 0;
    if (!gd_gguf_get_bytes(file, "tokenizer.ggml.precompiled_charsmap", false, CHARSMAP_BYTES_MAX, &charsmap, &charsmap_length, err))
        return false;
    meta->charsmap = charsmap;
    meta->charsmap_length = (size_t)charsmap_length;
    return (meta->token_types == NULL || check_length("tokenizer.ggml.token_type", types, meta->vocab_count, err)) &&
           (meta->scores == NULL || check_length("tokenizer.ggml.scores", scores, meta->vocab_count, err));
}

static bool load_tokenizer(struct gd_model *model, struct gd_gguf *file, struct gd_error *err)
{
    struct gd_tokenizer_gguf meta = {.pre = "default"};
    if (!gd_gguf_get_string(file, "tokenizer.ggml.model", true, &meta.model, err) ||
        !gd_gguf_get_string(file, "tokenizer.ggml.pre", false, &meta.pre, err) || !read_arrays(&meta, file, err) ||
        !get_id(file, "tokenizer.ggml.bos_token_id", &meta.bos_id, err) ||
        !get_id(file, "tokenizer.ggml.eos_token_id", &meta.eos_id, err) ||
        !get_id(file, "tokenizer.ggml.unknown_token_id", &meta.unknown_id, err) ||
        !get_id(file, "tokenizer.ggml.padding_token_id", &meta.padding_id, err) ||
        !get_id(file, "tokenizer.ggml.cls_token_id", &meta.cls_id, err) ||
        !get_id(file, "tokenizer.ggml.seperator_token_id", &meta.separator_id, err) || /* the key is spelled so */
        !get_flag(file, "tokenizer.ggml.remove_extra_whitespaces", &meta.remove_extra_whitespaces, err) ||
        !get_flag(file, "tokenizer.ggml.add_bos_token", &meta.add_bos, err) ||
        !get_flag(file, "tokenizer.ggml.add_eos_token", &meta.add_eos, err) ||
        !get_flag(file, "tokenizer.ggml.add_space_prefix", &meta.add_space_prefix, err))
        return false;
    return gd_tokenizer_from_gguf(&model->tokenizer, &meta, err);
}

static bool load(struct gd_model *model, struct gd_gguf *file, struct gd_error *err)
{
    const char *template_source = NULL;
    if (!gd_model_config_from_gguf(&model->config, file, err) || !gd_files_fill(model, true, err) ||
        !load_tokenizer(model, file, err) ||
        !gd_gguf_get_string(file, "tokenizer.chat_template", false, &template_source, err))
        return false;
    model->chat_template = gd_strdup(template_source);
    if (!gd_chat_create(&model->chat, model->tokenizer, model->chat_template, err)) {
        gd_error_context(err, "key tokenizer.chat_template");
        return false;
    }
    static const char *const tool_use = "tokenizer.chat_template.tool_use";
    template_source = NULL;
    if (!gd_gguf_get_string(file, tool_use, false, &template_source, err))
        return false;
    if (template_source == NULL || model->chat_template == NULL)
        return true;
    model->tools_template = gd_strdup(template_source);
    if (gd_chat_add_tools_template(model->chat, template_source, err))
        return true;
    gd_error_context(err, "key %s", tool_use);
    return false;
}

bool gd_model_load_gguf(struct gd_model *model, struct gd_error *err)
{
    struct gd_gguf *file = NULL;
    memcpy(model->format, "gguf", sizeof "gguf");
    if (!gd_gguf_open(&file, model->path, err))
        return false;
    gd_files_take_gguf(model->files, file, model->path);
    if (load(model, file, err))
        return true;
    gd_error_context(err, "%s", model->path);
    return false;
}
