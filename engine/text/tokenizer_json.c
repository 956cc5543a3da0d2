/* tokenizer.json and tokenizer_config.json. The components (steps, decoders, post-processor) are in tokenizer_parts.c. */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/base/log.h"
#include "engine/text/tokenizer_parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define JSON_BYTES_MAX ((size_t)256 << 20)

bool gd_model_read_vocab(struct gd_tokenizer *tokenizer, const cJSON *vocab, struct gd_error *err)
{
    for (const cJSON *item = vocab->child; item != NULL; item = item->next) {
        char shown[GD_TOKEN_SHOWN_BYTES];
        size_t length = strlen(item->string);
        if (!cJSON_IsNumber(item) || item->valuedouble != trunc(item->valuedouble) || fabs(item->valuedouble) > 1e15)
            return gd_fail_param(err, GD_BAD_MODEL, "model.vocab",
                                 "the id of token \"%s\" in model.vocab is not an integer",
                                 gd_token_shown(shown, item->string, length));
        if (!gd_vocab_add(&tokenizer->vocab, (int64_t)item->valuedouble, item->string, length, GD_TOKEN_MODEL, err)) {
            gd_error_context(err, "model.vocab");
            return false;
        }
    }
    if (tokenizer->vocab.used == 0)
        return gd_fail_param(err, GD_BAD_MODEL, "model.vocab", "model.vocab is empty");
    return true;
}

static bool read_added(struct gd_tokenizer *tokenizer, const cJSON *item, const char *path, int64_t id,
                       struct gd_error *err)
{
    struct gd_added flags = {0};
    const char *content = NULL;
    if (!cJSON_IsObject(item))
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s is not an object", path);
    if (!gd_json_get_string(item, path, "content", true, 0, SIZE_MAX, &content, err) ||
        !gd_json_get_bool(item, path, "special", false, &flags.special, err))
        return false;
    flags.normalized = !flags.special;
    if (!gd_json_get_bool(item, path, "single_word", false, &flags.single_word, err) ||
        !gd_json_get_bool(item, path, "lstrip", false, &flags.lstrip, err) ||
        !gd_json_get_bool(item, path, "rstrip", false, &flags.rstrip, err) ||
        !gd_json_get_bool(item, path, "normalized", false, &flags.normalized, err))
        return false;
    if (id < 0 && !gd_json_get_int(item, path, "id", true, 0, GD_TOKENIZER_VOCAB_MAX - 1, &id, err))
        return false;
    flags.id = (int32_t)id;
    if (gd_tokenizer_add(tokenizer, content, strlen(content), &flags, err))
        return true;
    gd_error_context(err, "%s", path);
    return false;
}

static bool read_added_tokens(struct gd_tokenizer *tokenizer, const cJSON *tokens, struct gd_error *err)
{
    int index = 0;
    for (const cJSON *item = tokens != NULL ? tokens->child : NULL; item != NULL; item = item->next, index++) {
        char path[64];
        (void)snprintf(path, sizeof(path), "added_tokens[%d]", index);
        if (!read_added(tokenizer, item, path, -1, err))
            return false;
    }
    return true;
}

/* The two sides of a merge: "a b" or ["a", "b"]. */
static bool merge_sides(const cJSON *item, const char *side[2], size_t length[2])
{
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL)
            return false;
        side[0] = item->valuestring;
        length[0] = (size_t)(space - item->valuestring);
        side[1] = space + 1;
        length[1] = strlen(side[1]);
        return true;
    }
    const cJSON *first = cJSON_IsArray(item) ? item->child : NULL;
    const cJSON *second = first != NULL ? first->next : NULL;
    if (!cJSON_IsString(first) || !cJSON_IsString(second) || second->next != NULL)
        return false;
    side[0] = first->valuestring;
    side[1] = second->valuestring;
    length[0] = strlen(side[0]);
    length[1] = strlen(side[1]);
    return true;
}

static bool read_merges(struct gd_tokenizer *tokenizer, const cJSON *merges, struct gd_error *err)
{
    int index = 0;
    uint32_t rank = 0;
    struct gd_merge_reader reader = {.tokenizer = tokenizer};
    bool ok = true;
    for (const cJSON *item = merges->child; item != NULL && ok; item = item->next, index++) {
        const char *side[2];
        size_t length[2];
        if (cJSON_IsString(item) && strncmp(item->valuestring, "#version", 8) == 0)
            continue;
        if (!merge_sides(item, side, length))
            ok = gd_fail(err, GD_BAD_MODEL, "not two tokens");
        else
            ok = gd_merge_read(&reader, side[0], length[0], side[1], length[1], rank++, err);
        if (!ok)
            gd_error_context(err, "model.merges[%d]", index);
    }
    gd_free(reader.joined);
    return ok;
}

bool gd_model_read_text(const cJSON *model, const char *key, char **out, struct gd_error *err)
{
    const char *text = NULL;
    if (!gd_json_get_string(model, "model", key, false, 0, GD_ADDED_BYTES_MAX, &text, err))
        return false;
    *out = text != NULL && text[0] != '\0' ? gd_strdup(text) : NULL;
    return true;
}

static bool check_bpe(const cJSON *model, struct gd_error *err)
{
    double dropout = 0;
    if (!gd_json_get_number(model, "model", "dropout", false, 0, 1, &dropout, err))
        return false;
    if (dropout != 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "model.dropout",
                             "BPE dropout %g makes ids random, only 0 is supported", dropout);
    return true;
}

static bool read_model_flags(struct gd_tokenizer *tokenizer, const cJSON *model, struct gd_error *err)
{
    struct gd_bpe *bpe = &tokenizer->bpe;
    return gd_model_read_text(model, "unk_token", &bpe->unknown, err) &&
           gd_model_read_text(model, "continuing_subword_prefix", &bpe->prefix, err) &&
           gd_model_read_text(model, "end_of_word_suffix", &bpe->suffix, err) &&
           gd_json_get_bool(model, "model", "fuse_unk", false, &bpe->fuse_unknown, err) &&
           gd_json_get_bool(model, "model", "byte_fallback", false, &bpe->byte_fallback, err) &&
           gd_json_get_bool(model, "model", "ignore_merges", false, &bpe->ignore_merges, err);
}

/* A special token of the config: a spelling or an added token. -1 when absent from the vocabulary. */
static bool read_special(struct gd_tokenizer *tokenizer, const cJSON *item, const char *path, int32_t *id,
                         struct gd_error *err)
{
    *id = -1;
    const char *content = cJSON_IsString(item) ? item->valuestring : NULL;
    if (item == NULL || cJSON_IsNull(item))
        return true;
    if (content == NULL && !gd_json_get_string(item, path, "content", true, 0, SIZE_MAX, &content, err))
        return false;
    *id = gd_vocab_find(&tokenizer->vocab, content, strlen(content));
    if (*id < 0 || (tokenizer->vocab.token[*id].flags & GD_TOKEN_SPECIAL))
        return true;
    struct gd_added flags = {.id = *id, .special = true};
    if (cJSON_IsObject(item) && (!gd_json_get_bool(item, path, "single_word", false, &flags.single_word, err) ||
                                 !gd_json_get_bool(item, path, "lstrip", false, &flags.lstrip, err) ||
                                 !gd_json_get_bool(item, path, "rstrip", false, &flags.rstrip, err) ||
                                 !gd_json_get_bool(item, path, "normalized", false, &flags.normalized, err)))
        return false;
    return gd_tokenizer_add(tokenizer, content, strlen(content), &flags, err);
}

/* {"128000": {"content": ...}}: these win over added_tokens of tokenizer.json, as in the reference. */
static bool read_added_decoder(struct gd_tokenizer *tokenizer, const cJSON *decoder, struct gd_error *err)
{
    for (const cJSON *item = decoder != NULL ? decoder->child : NULL; item != NULL; item = item->next) {
        char path[64];
        int64_t id = 0;
        size_t digits = strspn(item->string, "0123456789");
        (void)snprintf(path, sizeof(path), "added_tokens_decoder.%.20s", item->string);
        if (digits == 0 || digits > 9 || item->string[digits] != '\0')
            return gd_fail_param(err, GD_BAD_MODEL, path, "%s is not an id", path);
        for (size_t i = 0; i < digits; i++)
            id = id * 10 + (item->string[i] - '0');
        if (!read_added(tokenizer, item, path, id, err))
            return false;
    }
    return true;
}

static bool read_config_tokens(struct gd_tokenizer *tokenizer, const cJSON *config, struct gd_error *err)
{
    const cJSON *decoder = NULL, *more = NULL;
    if (!gd_json_get_object(config, "", "added_tokens_decoder", false, &decoder, err) ||
        !read_added_decoder(tokenizer, decoder, err))
        return false;
    const struct {
        const char *key;
        int32_t *id;
    } ends[] = {{"bos_token", &tokenizer->bos}, {"eos_token", &tokenizer->eos}, {"pad_token", &tokenizer->pad}};
    for (size_t i = 0; i < GD_COUNT(ends); i++) {
        const cJSON *item = gd_json_find(config, ends[i].key);
        if (item == NULL) /* as the model's own file has it */
            continue;
        if (!read_special(tokenizer, item, ends[i].key, ends[i].id, err))
            return false;
        if (cJSON_IsNull(item) || *ends[i].id >= 0)
            continue;
        if (ends[i].id != &tokenizer->pad)
            return gd_fail_param(err, GD_BAD_MODEL, ends[i].key, "%s is not in the vocabulary", ends[i].key);
        gd_log_warn("tokenizer", "pad_token=absent the model's vocabulary has no such token, padding is not needed here");
    }
    const struct {
        const char *key;
        int32_t *id;
    } others[] = {{"unk_token", &tokenizer->unk}, {"sep_token", &tokenizer->sep}, {"cls_token", &tokenizer->cls},
                  {"mask_token", &tokenizer->mask}};
    for (size_t i = 0; i < GD_COUNT(others); i++)
        if (!read_special(tokenizer, gd_json_find(config, others[i].key), others[i].key, others[i].id, err))
            return false;
    if (!gd_json_get_array(config, "", "additional_special_tokens", false, &more, err))
        return false;
    for (const cJSON *item = more != NULL ? more->child : NULL; item != NULL; item = item->next) {
        int32_t id;
        if (!read_special(tokenizer, item, "additional_special_tokens[]", &id, err))
            return false;
    }
    return true;
}

bool gd_config_tokens(struct gd_tokenizer *tokenizer, const cJSON *config, struct gd_error *err)
{
    if (config == NULL || read_config_tokens(tokenizer, config, err))
        return true;
    gd_error_context(err, "tokenizer_config.json");
    return false;
}

int gd_config_flag(const cJSON *object, const char *key)
{
    const cJSON *item = gd_json_find(object, key);
    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : -1;
}

static bool load(struct gd_tokenizer *tokenizer, const cJSON *root, const cJSON *model, const cJSON *vocab,
                 const cJSON *merges, const cJSON *config, struct gd_error *err)
{
    const cJSON *added = NULL;
    bool ok = gd_model_read(tokenizer, model, vocab, err) && gd_json_get_array(root, "", "added_tokens", false, &added, err) &&
              read_added_tokens(tokenizer, added, err);
    ok = ok && gd_config_tokens(tokenizer, config, err);
    /* Merges come behind all that makes tokens special: none may yield one. */
    return ok && (merges == NULL || (read_model_flags(tokenizer, model, err) && read_merges(tokenizer, merges, err))) &&
           gd_parts_normalizer(tokenizer, gd_json_find(root, "normalizer"), "normalizer", err) &&
           gd_parts_pretokenizer(tokenizer, gd_json_find(root, "pre_tokenizer"), "pre_tokenizer", err) &&
           gd_parts_post_processor(tokenizer, gd_json_find(root, "post_processor"), "post_processor", err) &&
           gd_parts_decoder(tokenizer, gd_json_find(root, "decoder"), "decoder", err) &&
           gd_tokenizer_finish(tokenizer, err) &&
           gd_tokenizer_set_ends(tokenizer, gd_config_flag(config, "add_bos_token"), gd_config_flag(config, "add_eos_token"),
                                 err);
}

bool gd_tokenizer_from_tree(struct gd_tokenizer **out, const cJSON *root, const cJSON *config, struct gd_error *err)
{
    const cJSON *model = NULL, *vocab = NULL, *merges = NULL;
    enum gd_model_kind kind = GD_MODEL_BPE;
    if (!gd_json_get_object(root, "", "model", true, &model, err) || !gd_model_kind_of(model, &kind, err) ||
        !(kind == GD_MODEL_UNIGRAM ? gd_json_get_array(model, "model", "vocab", true, &vocab, err)
                                   : gd_json_get_object(model, "model", "vocab", true, &vocab, err)) ||
        (kind == GD_MODEL_BPE &&
         (!check_bpe(model, err) || !gd_json_get_array(model, "model", "merges", true, &merges, err))))
        return false;
    size_t merge_count = merges != NULL ? (size_t)cJSON_GetArraySize(merges) : 0;
    struct gd_tokenizer *tokenizer = gd_tokenizer_create((size_t)cJSON_GetArraySize(vocab), merge_count);
    tokenizer->model = kind;
    if (!load(tokenizer, root, model, vocab, merges, config, err)) {
        gd_tokenizer_destroy(tokenizer);
        return false;
    }
    *out = tokenizer;
    return true;
}

bool gd_tokenizer_from_json(struct gd_tokenizer **out, const char *json, size_t length, const char *config_json,
                            size_t config_length, struct gd_error *err)
{
    *out = NULL;
    cJSON *root = gd_json_parse_within(json, length, JSON_BYTES_MAX, gd_tokenizer_values_max(length), err), *config = NULL;
    bool ok = root != NULL;
    if (ok && config_json != NULL) {
        config = gd_json_parse_within(config_json, config_length, JSON_BYTES_MAX, GD_JSON_FEW_VALUES, err);
        ok = config != NULL;
        if (!ok)
            gd_error_context(err, "tokenizer_config.json");
    }
    ok = ok && gd_tokenizer_from_tree(out, root, config, err);
    cJSON_Delete(root);
    cJSON_Delete(config);
    if (!ok) {
        if (err->code == GD_INVALID || err->code == GD_MISSING || err->code == GD_TOO_LARGE)
            err->code = GD_BAD_MODEL;
        gd_error_context(err, "tokenizer.json");
    }
    return ok;
}
