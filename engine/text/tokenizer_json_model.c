/* The model of a tokenizer.json: which it is, its vocabulary, and the fields of Unigram, WordPiece and WordLevel. */
#include "engine/base/alloc.h"
#include "engine/text/tokenizer_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool gd_model_kind_of(const cJSON *model, enum gd_model_kind *out, struct gd_error *err)
{
    static const char *const names[] = {
        [GD_MODEL_BPE] = "BPE", [GD_MODEL_UNIGRAM] = "Unigram", [GD_MODEL_WORDPIECE] = "WordPiece",
        [GD_MODEL_WORDLEVEL] = "WordLevel"};
    const char *type = names[GD_MODEL_BPE];
    if (!gd_json_get_string(model, "model", "type", false, 0, SIZE_MAX, &type, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(names); i++)
        if (strcmp(type, names[i]) == 0) {
            *out = (enum gd_model_kind)i;
            return true;
        }
    return gd_fail_param(err, GD_UNSUPPORTED, "model.type",
                         "the tokenizer model \"%.60s\" is not supported, only BPE, Unigram, WordPiece and WordLevel are", type);
}

/* A number as the reference reads it: digits / 10^places, rounded twice, so up to one unit off in the last place; and sums of
 * scores decide between ways that are as good. Both sides write the shortest digits that give a double, so they can be found
 * again. */
static double read_score(double value)
{
    char text[32];
    int precision = 14;
    do
        (void)snprintf(text, sizeof(text), "%.*e", precision, fabs(value));
    while (++precision < 17 && strtod(text, NULL) != fabs(value));
    char *exponent = strchr(text, 'e');
    int power = atoi(exponent + 1);
    uint64_t digits = (uint64_t)(text[0] - '0');
    for (char *end = exponent; end > text + 2 && end[-1] == '0';)
        *--end = '\0';
    for (const char *at = text + 2; *at >= '0' && *at <= '9'; at++, power--)
        digits = digits * 10 + (uint64_t)(*at - '0');
    double read = (double)digits;
    if (power < -300 || power > 300)
        return value;
    read = power < 0 ? read / pow(10, -power) : read * pow(10, power);
    return value < 0 ? -read : read;
}

/* [["piece", score], ...]; the id of a piece is its place. */
static bool read_pieces(struct gd_tokenizer *tokenizer, const cJSON *vocab, struct gd_error *err)
{
    int64_t id = 0;
    for (const cJSON *item = vocab->child; item != NULL; item = item->next, id++) {
        const cJSON *text = cJSON_IsArray(item) ? item->child : NULL, *score = text != NULL ? text->next : NULL;
        char path[64];
        (void)snprintf(path, sizeof(path), "model.vocab[%lld]", (long long)id);
        if (!cJSON_IsString(text) || !cJSON_IsNumber(score) || score->next != NULL || !isfinite(score->valuedouble))
            return gd_fail_param(err, GD_BAD_MODEL, path, "%s is not [piece, score] with a finite score", path);
        if (!gd_vocab_add(&tokenizer->vocab, id, text->valuestring, strlen(text->valuestring), GD_TOKEN_MODEL, err)) {
            gd_error_context(err, "%s", path);
            return false;
        }
        gd_unigram_add(&tokenizer->unigram, read_score(score->valuedouble));
    }
    if (id == 0)
        return gd_fail_param(err, GD_BAD_MODEL, "model.vocab", "model.vocab is empty");
    return true;
}

static bool read_unigram(struct gd_tokenizer *tokenizer, const cJSON *model, const cJSON *vocab, struct gd_error *err)
{
    int64_t unknown = -1;
    struct gd_unigram *unigram = &tokenizer->unigram;
    if (!read_pieces(tokenizer, vocab, err) ||
        !gd_json_get_bool(model, "model", "byte_fallback", false, &unigram->byte_fallback, err) ||
        !gd_json_get_int(model, "model", "unk_id", false, 0, unigram->count - 1, &unknown, err))
        return false;
    unigram->unknown_id = (int32_t)unknown;
    return true;
}

static bool read_wordpiece(struct gd_tokenizer *tokenizer, const cJSON *model, const cJSON *vocab, struct gd_error *err)
{
    struct gd_wordpiece *wordpiece = &tokenizer->wordpiece;
    wordpiece->max_characters = 100;
    if (!gd_model_read_vocab(tokenizer, vocab, err) ||
        !gd_model_read_text(model, "unk_token", &wordpiece->unknown, err) ||
        !gd_model_read_text(model, "continuing_subword_prefix", &wordpiece->prefix, err))
        return false;
    if (gd_json_find(model, "unk_token") == NULL)
        wordpiece->unknown = gd_strdup("[UNK]");
    if (gd_json_find(model, "continuing_subword_prefix") == NULL)
        wordpiece->prefix = gd_strdup("##");
    return gd_json_get_int(model, "model", "max_input_chars_per_word", false, 0, INT32_MAX, &wordpiece->max_characters,
                           err);
}

static bool read_wordlevel(struct gd_tokenizer *tokenizer, const cJSON *model, const cJSON *vocab, struct gd_error *err)
{
    if (!gd_model_read_vocab(tokenizer, vocab, err) ||
        !gd_model_read_text(model, "unk_token", &tokenizer->wordpiece.unknown, err))
        return false;
    if (gd_json_find(model, "unk_token") == NULL)
        tokenizer->wordpiece.unknown = gd_strdup("<unk>");
    return true;
}

bool gd_model_read(struct gd_tokenizer *tokenizer, const cJSON *model, const cJSON *vocab, struct gd_error *err)
{
    switch (tokenizer->model) {
    case GD_MODEL_UNIGRAM:
        return read_unigram(tokenizer, model, vocab, err);
    case GD_MODEL_WORDLEVEL:
        return read_wordlevel(tokenizer, model, vocab, err);
    case GD_MODEL_WORDPIECE:
        return read_wordpiece(tokenizer, model, vocab, err);
    default:
        return gd_model_read_vocab(tokenizer, vocab, err);
    }
}
