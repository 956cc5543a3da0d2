/* The tokenizer from the metadata of a GGUF file. */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/base/log.h"
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SPM_PIECE_BYTES_MAX 512 /* every cut of a piece is looked up at load time */
#define META "\xE2\x96\x81"     /* U+2581 stands for a space */

enum token_type { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

#define LLAMA3_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"

/* What a family's own tokenizer does before BPE; every pattern isolates what it matches, one after the other. */
struct family {
    const char *names[8];
    const char *patterns[4];
    bool nfc, digits, ignore_merges;
    int add_bos;
};

static const struct family families[] = {
    {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell"}, .patterns = {GD_PATTERN_GPT2}, .digits = true},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3"}, .patterns = {LLAMA3_HEAD "\\p{N}{1,3}" LLAMA3_TAIL},
     .ignore_merges = true, .add_bos = 1},
    {.names = {"qwen2", "deepseek-r1-qwen"}, .patterns = {LLAMA3_HEAD "\\p{N}" LLAMA3_TAIL}, .nfc = true},
    {.names = {"gpt-2", "phi-2", "mpt", "olmo"}, .patterns = {GD_PATTERN_GPT2}},
    {.names = {"default"}, .patterns = {"[\\p{P}\\$\\+<=>\\^~\\|]+", GD_PATTERN_GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

static const struct family *find_family(const char *pre)
{
    for (size_t i = 0; i < GD_COUNT(families); i++)
        for (size_t k = 0; k < GD_COUNT(families[i].names) && families[i].names[k] != NULL; k++)
            if (strcmp(pre, families[i].names[k]) == 0)
                return &families[i];
    return NULL;
}

static bool add_pattern(struct gd_steps *steps, const char *pattern, struct gd_error *err)
{
    struct gd_step *step = NULL;
    return gd_steps_add(steps, GD_STEP_SPLIT, &step, err) &&
           gd_regex_compile(&step->regex, pattern, strlen(pattern), GD_REGEX_RUBY, "tokenizer.ggml.pre", err);
}

static int type_of(const struct gd_tokenizer_gguf *meta, int id)
{
    return meta->token_types != NULL ? meta->token_types[id] : NORMAL;
}

static bool check_ids(const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    const struct {
        const char *name;
        int32_t id;
    } ids[] = {
        {"bos", meta->bos_id}, {"eos", meta->eos_id}, {"unknown", meta->unknown_id}, {"padding", meta->padding_id}};
    for (size_t i = 0; i < GD_COUNT(ids); i++)
        if (ids[i].id < -1 || ids[i].id >= meta->vocab_count)
            return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.%s_token_id is %d, the vocabulary has %d tokens",
                           ids[i].name, ids[i].id, meta->vocab_count);
    return true;
}

/* All tokens; those that are matched in text before BPE go to the added ones. */
static bool add_tokens(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    for (int id = 0; id < meta->vocab_count; id++) {
        const char *text = meta->tokens[id];
        int type = type_of(meta, id);
        size_t length = strlen(text);
        if (length == 0) /* a place holder: no text has it */
            continue;
        if (!gd_utf8_valid(text, length))
            return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.tokens[%d] is not valid UTF-8", id);
        if (type < NORMAL || type > BYTE)
            return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.token_type[%d] is %d, allowed are 1 to 6", id, type);
        bool special =
            type == CONTROL || type == UNKNOWN || id == meta->bos_id || id == meta->eos_id || id == meta->padding_id;
        bool model = !special && (type == NORMAL || type == BYTE);
        if (!gd_vocab_add(&tokenizer->vocab, id, text, length, model ? GD_TOKEN_MODEL : 0, err)) {
            gd_error_context(err, "tokenizer.ggml.tokens");
            return false;
        }
        struct gd_added flags = {.id = id, .special = special};
        if ((special || type == USER_DEFINED) && !gd_tokenizer_add(tokenizer, text, length, &flags, err))
            return false;
    }
    tokenizer->bos = meta->bos_id;
    tokenizer->eos = meta->eos_id;
    tokenizer->pad = meta->padding_id;
    return true;
}

static bool add_merges(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    struct gd_merge_reader reader = {.tokenizer = tokenizer};
    bool ok = true;
    for (int i = 0; i < meta->merge_count && ok; i++) {
        const char *merge = meta->merges[i];
        const char *space = merge[0] != '\0' ? strchr(merge + 1, ' ') : NULL;
        if (space == NULL || space[1] == '\0')
            ok = gd_fail(err, GD_BAD_MODEL, "not two tokens");
        else
            ok = gd_merge_read(&reader, merge, (size_t)(space - merge), space + 1, strlen(space + 1), (uint32_t)i, err);
        if (!ok)
            gd_error_context(err, "tokenizer.ggml.merges[%d]", i);
    }
    gd_free(reader.joined);
    return ok;
}

static bool load_gpt2(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    if (meta->pre == NULL)
        gd_log_warn("tokenizer",
                    "tokenizer.ggml.pre=absent the file does not say how its tokenizer splits text, using default");
    const char *pre = meta->pre != NULL ? meta->pre : "default";
    const struct family *family = find_family(pre);
    char shown[GD_TOKEN_SHOWN_BYTES];
    if (family == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "tokenizer.ggml.pre",
                             "the pre-tokenizer \"%s\" is not supported; use the "
                             "model's folder with tokenizer.json",
                             gd_token_shown(shown, pre, strlen(pre)));
    struct gd_steps *steps = &tokenizer->pretokenizers;
    struct gd_step *step = NULL;
    struct gd_decoder *decoder = NULL;
    if (family->nfc && !gd_steps_add(&tokenizer->normalizers, GD_STEP_NFC, &step, err))
        return false;
    if (family->digits && !gd_steps_add(steps, GD_STEP_DIGITS, &step, err)) /* one by one: isolated */
        return false;
    if (meta->add_space_prefix > 0 && !gd_steps_add(steps, GD_STEP_PREFIX_SPACE, &step, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(family->patterns) && family->patterns[i] != NULL; i++)
        if (!add_pattern(steps, family->patterns[i], err))
            return false;
    tokenizer->bpe.byte_level = true;
    tokenizer->bpe.ignore_merges = family->ignore_merges;
    int add_bos = meta->add_bos >= 0 ? meta->add_bos : family->add_bos && meta->bos_id >= 0;
    return gd_decoders_add(&tokenizer->decoders, GD_DECODE_BYTE_LEVEL, &decoder, err) &&
           add_tokens(tokenizer, meta, err) && add_merges(tokenizer, meta, err) &&
           gd_tokenizer_finish(tokenizer, err) && gd_tokenizer_set_ends(tokenizer, add_bos, meta->add_eos > 0, err);
}

struct scored {
    float score;
    int32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Both halves of every cut of a piece, where both are pieces, may merge into it. */
static void add_cuts(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, int32_t id, uint32_t rank)
{
    const struct gd_token *token = &tokenizer->vocab.token[id];
    for (size_t cut = gd_char_length(token->text[0]); cut < token->length; cut += gd_char_length(token->text[cut])) {
        int32_t left = gd_vocab_find_model(&tokenizer->vocab, token->text, cut);
        int32_t right = gd_vocab_find_model(&tokenizer->vocab, token->text + cut, token->length - cut);
        if (left >= 0 && right >= 0 && type_of(meta, left) == NORMAL && type_of(meta, right) == NORMAL)
            gd_bpe_add_merge(&tokenizer->bpe, left, right, rank, id);
    }
}

/* SentencePiece merges the two neighbours whose joined piece has the best score, leftmost among equals: a merge's rank
 * is the place of its score among all scores. */
static bool add_scored_merges(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    struct scored *order = gd_alloc_array((size_t)meta->vocab_count, sizeof(order[0]));
    size_t count = 0;
    bool ok = true;
    for (int32_t id = 0; id < tokenizer->vocab.count && ok; id++) {
        const struct gd_token *token = &tokenizer->vocab.token[id];
        if (token->text == NULL || !(token->flags & GD_TOKEN_MODEL) || type_of(meta, id) != NORMAL)
            continue;
        if (isnan(meta->scores[id]))
            ok = gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.scores[%d] is not a number", id);
        else if (token->length > SPM_PIECE_BYTES_MAX)
            ok = gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.tokens[%d] has %u bytes, the limit is %d", id, token->length,
                         SPM_PIECE_BYTES_MAX);
        order[count++] = (struct scored){meta->scores[id], id};
    }
    if (ok)
        qsort(order, count, sizeof(order[0]), by_score);
    uint32_t rank = 0;
    for (size_t i = 0; i < count && ok; i++) {
        if (i > 0 && order[i].score != order[i - 1].score)
            rank++;
        add_cuts(tokenizer, meta, order[i].id, rank);
    }
    gd_free(order);
    return ok;
}

static bool add_meta_steps(struct gd_tokenizer *tokenizer, bool prefix, struct gd_error *err)
{
    struct gd_step *step = NULL;
    struct gd_decoder *decoder = NULL;
    if (prefix) {
        if (!gd_steps_add(&tokenizer->normalizers, GD_STEP_PREPEND, &step, err))
            return false;
        step->text = gd_strdup(META);
        step->text_length = strlen(META);
    }
    if (!gd_steps_add(&tokenizer->normalizers, GD_STEP_REPLACE, &step, err) ||
        !gd_regex_compile(&step->regex, " ", 1, GD_REGEX_LITERAL, "spaces", err))
        return false;
    step->text = gd_strdup(META);
    step->text_length = strlen(META);
    if (!gd_decoders_add(&tokenizer->decoders, GD_DECODE_REPLACE, &decoder, err) ||
        !gd_regex_compile(&decoder->regex, META, strlen(META), GD_REGEX_LITERAL, "spaces", err))
        return false;
    decoder->text = gd_strdup(" ");
    decoder->text_length = 1;
    if (!gd_decoders_add(&tokenizer->decoders, GD_DECODE_BYTE_FALLBACK, &decoder, err) ||
        !gd_decoders_add(&tokenizer->decoders, GD_DECODE_FUSE, &decoder, err))
        return false;
    if (!prefix)
        return true;
    if (!gd_decoders_add(&tokenizer->decoders, GD_DECODE_STRIP, &decoder, err))
        return false;
    decoder->text = gd_strdup(" ");
    decoder->text_length = 1;
    decoder->start = 1;
    return true;
}

static bool load_llama(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    if (meta->scores == NULL)
        return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.scores is absent, the model \"llama\" needs it");
    if (!add_tokens(tokenizer, meta, err) || !add_scored_merges(tokenizer, meta, err) ||
        !add_meta_steps(tokenizer, meta->add_space_prefix != 0, err))
        return false;
    int32_t unknown = meta->unknown_id;
    for (int id = 0; id < meta->vocab_count && unknown < 0; id++)
        if (type_of(meta, id) == UNKNOWN)
            unknown = id;
    const char *spelling = unknown >= 0 ? gd_tokenizer_token(tokenizer, unknown) : NULL;
    tokenizer->bpe.unknown = gd_strdup(spelling);
    tokenizer->bpe.byte_fallback = true;
    tokenizer->bpe.fuse_unknown = true;
    int add_bos = meta->add_bos >= 0 ? meta->add_bos : meta->bos_id >= 0;
    return gd_tokenizer_finish(tokenizer, err) && gd_tokenizer_set_ends(tokenizer, add_bos, meta->add_eos > 0, err);
}

bool gd_tokenizer_from_gguf(struct gd_tokenizer **out, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    *out = NULL;
    char shown[GD_TOKEN_SHOWN_BYTES];
    const char *model = meta->model != NULL ? meta->model : "";
    bool gpt2 = strcmp(model, "gpt2") == 0;
    if (!gpt2 && strcmp(model, "llama") != 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "tokenizer.ggml.model",
                             "the tokenizer model \"%s\" is not supported; gpt2 and "
                             "llama are",
                             gd_token_shown(shown, model, strlen(model)));
    if (meta->vocab_count < 1 || meta->vocab_count > GD_TOKENIZER_VOCAB_MAX || meta->merge_count < 0)
        return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.tokens has %d tokens, allowed are 1 to %d", meta->vocab_count,
                       GD_TOKENIZER_VOCAB_MAX);
    if (!check_ids(meta, err))
        return false;
    struct gd_tokenizer *tokenizer = gd_tokenizer_create((size_t)meta->vocab_count, (size_t)meta->merge_count);
    if (!(gpt2 ? load_gpt2(tokenizer, meta, err) : load_llama(tokenizer, meta, err))) {
        gd_tokenizer_destroy(tokenizer);
        return false;
    }
    *out = tokenizer;
    return true;
}
