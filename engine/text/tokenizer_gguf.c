/* The tokenizer from the metadata of a GGUF file. */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/base/log.h"
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_parts.h"
#include "engine/text/tokenizer_patterns.h"
#include "engine/text/tokenizer_spm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define META GD_SPM_SPACE

/* What a family's own tokenizer does before BPE; every pattern isolates what it matches, one after the other. */
struct family {
    const char *names[8];
    const char *patterns[4];
    bool nfc, digits, ignore_merges;
    int add_bos;
};

static const struct family families[] = {
    {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell"}, .patterns = {GD_PATTERN_GPT2}, .digits = true},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"},
     .patterns = {GD_PATTERN_LLAMA3}, .ignore_merges = true, .add_bos = 1},
    {.names = {"dbrx", "smaug-bpe"}, .patterns = {GD_PATTERN_LLAMA3}}, /* Phi-4 */
    {.names = {"qwen2", "deepseek-r1-qwen", "megrez"}, .patterns = {GD_PATTERN_QWEN2}, .nfc = true},
    {.names = {"qwen35"}, .patterns = {GD_PATTERN_QWEN35}, .nfc = true},
    {.names = {"tekken"}, .patterns = {GD_PATTERN_TEKKEN}, .ignore_merges = true,
     .add_bos = 1}, /* Mistral Nemo */
    {.names = {"gpt-4o", "llama4"},
     .patterns = {GD_PATTERN_GPT4O}},
    {.names = {"gpt-2", "phi-2", "roberta-bpe", "jina-es", "jina-de"}, .patterns = {GD_PATTERN_GPT2}},
    {.names = {"mpt", "olmo"}, .patterns = {GD_PATTERN_GPT2}, .nfc = true}, /* GPT-NeoX */
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
    return meta->token_types != NULL ? meta->token_types[id] : GD_SPM_NORMAL;
}

static bool check_ids(const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    const struct {
        const char *name;
        int32_t id;
    } ids[] = {
        {"bos", meta->bos_id}, {"eos", meta->eos_id}, {"unknown", meta->unknown_id}, {"padding", meta->padding_id},
        {"cls", meta->cls_id}, {"seperator", meta->separator_id}};
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
        if (type < GD_SPM_NORMAL || type > GD_SPM_BYTE)
            return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.token_type[%d] is %d, allowed are 1 to 6", id, type);
        bool special =
            type == GD_SPM_CONTROL || type == GD_SPM_UNKNOWN || id == meta->bos_id || id == meta->eos_id || id == meta->padding_id;
        bool model = !special && (type == GD_SPM_NORMAL || type == GD_SPM_BYTE);
        if (!gd_vocab_add(&tokenizer->vocab, id, text, length, model ? GD_TOKEN_MODEL : 0, err)) {
            gd_error_context(err, "tokenizer.ggml.tokens");
            return false;
        }
        struct gd_added flags = {.id = id, .special = special};
        if ((special || type == GD_SPM_USER_DEFINED) && !gd_tokenizer_add(tokenizer, text, length, &flags, err))
            return false;
    }
    tokenizer->bos = meta->bos_id;
    tokenizer->eos = meta->eos_id;
    tokenizer->pad = meta->padding_id;
    tokenizer->unk = meta->unknown_id;
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

/* Types for those who need them; the caller frees. */
static int32_t *types_of(const struct gd_tokenizer_gguf *meta)
{
    int32_t *types = gd_alloc_array((size_t)meta->vocab_count, sizeof(types[0]));
    for (int id = 0; id < meta->vocab_count; id++)
        types[id] = type_of(meta, id);
    return types;
}

static bool add_scored_merges(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    int32_t *types = types_of(meta);
    struct gd_spm spm = {.count = meta->vocab_count, .pieces = meta->tokens, .scores = meta->scores, .types = types};
    bool ok = true;
    for (int id = 0; id < meta->vocab_count && ok; id++)
        if (isnan(meta->scores[id]))
            ok = gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.scores[%d] is not a number", id);
    ok = ok && gd_spm_add_merges(tokenizer, &spm, err);
    gd_free(types);
    return ok;
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
        if (type_of(meta, id) == GD_SPM_UNKNOWN)
            unknown = id;
    const char *spelling = unknown >= 0 ? gd_tokenizer_token(tokenizer, unknown) : NULL;
    tokenizer->bpe.unknown = gd_strdup(spelling);
    tokenizer->bpe.byte_fallback = true;
    tokenizer->bpe.fuse_unknown = true;
    int add_bos = meta->add_bos >= 0 ? meta->add_bos : meta->bos_id >= 0;
    return gd_tokenizer_finish(tokenizer, err) && gd_tokenizer_set_ends(tokenizer, add_bos, meta->add_eos > 0, err);
}

/* Special ids whose type does not say so. */
static bool add_ends(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    const int32_t ids[] = {meta->bos_id, meta->eos_id, meta->padding_id};
    tokenizer->bos = meta->bos_id;
    tokenizer->eos = meta->eos_id;
    tokenizer->pad = meta->padding_id;
    tokenizer->unk = meta->unknown_id;
    for (size_t i = 0; i < GD_COUNT(ids); i++) {
        struct gd_added flags = {.id = ids[i], .special = true};
        const char *text = gd_tokenizer_token(tokenizer, ids[i]);
        if (text != NULL && !gd_tokenizer_is_special(tokenizer, ids[i]) &&
            !gd_tokenizer_add(tokenizer, text, strlen(text), &flags, err))
            return false;
    }
    return true;
}

/* "t5": SentencePiece's unigram. */
static bool load_t5(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    if (meta->scores == NULL)
        return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.scores is absent, the model \"t5\" needs it");
    int32_t *types = types_of(meta);
    struct gd_spm spm = {.count = meta->vocab_count, .pieces = meta->tokens, .scores = meta->scores, .types = types,
                         .unigram = true, .escape = true, .prefix = meta->add_space_prefix != 0,
                         .squeeze = meta->remove_extra_whitespaces != 0, .charsmap = meta->charsmap,
                         .charsmap_length = meta->charsmap_length};
    for (int id = 0; id < meta->vocab_count; id++) {
        spm.byte_fallback = spm.byte_fallback || types[id] == GD_SPM_BYTE;
        if (id == meta->unknown_id)
            types[id] = GD_SPM_UNKNOWN;
    }
    bool ok = gd_spm_add_pieces(tokenizer, &spm, err) && add_ends(tokenizer, meta, err) &&
              gd_spm_finish(tokenizer, &spm, err);
    gd_free(types);
    return ok && gd_tokenizer_set_ends(tokenizer, meta->add_bos > 0, meta->add_eos >= 0 ? meta->add_eos : meta->eos_id >= 0,
                                       err);
}

/* Tokens that begin a word are stored with U+2581, those inside one without their "##". */
static char *word_piece(const char *text)
{
    size_t length = strlen(text), space = strlen(META);
    if (length > 1 && text[0] == '[' && text[length - 1] == ']')
        return gd_strdup(text);
    bool begins = strncmp(text, META, space) == 0 && length > space; /* the mark alone is a piece inside words */
    return begins ? gd_strdup(text + space) : gd_format("##%s", text);
}

static bool add_word_pieces(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    bool ok = true;
    for (int id = 0; id < meta->vocab_count && ok; id++) {
        if (meta->tokens[id][0] == '\0')
            continue;
        if (!gd_utf8_valid(meta->tokens[id], strlen(meta->tokens[id])))
            return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.tokens[%d] is not valid UTF-8", id);
        char *text = word_piece(meta->tokens[id]);
        size_t length = strlen(text);
        bool special = type_of(meta, id) == GD_SPM_CONTROL || type_of(meta, id) == GD_SPM_UNKNOWN ||
                       id == meta->unknown_id || id == meta->cls_id || id == meta->separator_id;
        struct gd_added flags = {.id = id, .special = true};
        ok = gd_vocab_add(&tokenizer->vocab, id, text, length, special ? 0 : GD_TOKEN_MODEL, err) &&
             (!special || gd_tokenizer_add(tokenizer, text, length, &flags, err));
        if (ok && id == meta->unknown_id)
            tokenizer->wordpiece.unknown = gd_strdup(text);
        gd_free(text);
    }
    return ok;
}

static bool add_kinds(struct gd_steps *steps, const enum gd_step_kind *kinds, size_t count, struct gd_error *err)
{
    struct gd_step *step = NULL;
    for (size_t i = 0; i < count; i++) {
        if (!gd_steps_add(steps, kinds[i], &step, err))
            return false;
        step->behavior = kinds[i] == GD_STEP_WHITESPACE_SPLIT ? GD_SPLIT_REMOVED : GD_SPLIT_ISOLATED;
    }
    return true;
}

/* Some word with a capital is a token. */
static bool has_capitals(const struct gd_vocab *vocab)
{
    for (int32_t id = 0; id < vocab->count; id++) {
        const struct gd_token *token = &vocab->token[id];
        if ((token->flags & GD_TOKEN_MODEL) && token->length > 1 && token->text[0] >= 'A' && token->text[0] <= 'Z' &&
            token->text[1] >= 'a' && token->text[1] <= 'z')
            return true;
    }
    return false;
}

/* "bert": WordPiece. The file does not say whether case counts; it does not, unless words with capitals have tokens. */
static bool load_bert(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    static const enum gd_step_kind cased[] = {GD_STEP_CLEAN, GD_STEP_CHINESE};
    static const enum gd_step_kind lower[] = {GD_STEP_NFD, GD_STEP_STRIP_NONSPACING, GD_STEP_LOWERCASE};
    static const enum gd_step_kind splits[] = {GD_STEP_WHITESPACE_SPLIT, GD_STEP_PUNCTUATION};
    struct gd_decoder *decoder = NULL;
    tokenizer->model = GD_MODEL_WORDPIECE;
    tokenizer->wordpiece.prefix = gd_strdup("##");
    tokenizer->wordpiece.max_characters = 100;
    if (!add_word_pieces(tokenizer, meta, err) || !add_ends(tokenizer, meta, err))
        return false;
    if (!add_kinds(&tokenizer->normalizers, cased, GD_COUNT(cased), err) ||
        (!has_capitals(&tokenizer->vocab) && !add_kinds(&tokenizer->normalizers, lower, GD_COUNT(lower), err)) ||
        !add_kinds(&tokenizer->pretokenizers, splits, GD_COUNT(splits), err) ||
        !gd_decoders_add(&tokenizer->decoders, GD_DECODE_WORDPIECE, &decoder, err))
        return false;
    decoder->text = gd_strdup("##");
    decoder->text_length = 2;
    decoder->cleanup = true;
    int32_t first = meta->cls_id >= 0 ? meta->cls_id : meta->bos_id;
    int32_t last = meta->separator_id >= 0 ? meta->separator_id : meta->eos_id;
    if (meta->add_bos != 0 && first >= 0)
        tokenizer->before[tokenizer->before_count++] = first;
    if (meta->add_eos != 0 && last >= 0)
        tokenizer->after[tokenizer->after_count++] = last;
    return gd_tokenizer_finish(tokenizer, err);
}

bool gd_tokenizer_from_gguf(struct gd_tokenizer **out, const struct gd_tokenizer_gguf *meta, struct gd_error *err)
{
    *out = NULL;
    char shown[GD_TOKEN_SHOWN_BYTES];
    const char *model = meta->model != NULL ? meta->model : "";
    static const struct {
        const char *model;
        bool (*load)(struct gd_tokenizer *tokenizer, const struct gd_tokenizer_gguf *meta, struct gd_error *err);
    } loaders[] = {{"gpt2", load_gpt2}, {"llama", load_llama}, {"t5", load_t5}, {"bert", load_bert}};
    size_t at = 0;
    while (at < GD_COUNT(loaders) && strcmp(model, loaders[at].model) != 0)
        at++;
    if (at == GD_COUNT(loaders))
        return gd_fail_param(err, GD_UNSUPPORTED, "tokenizer.ggml.model",
                             "the tokenizer model \"%s\" is not supported; gpt2, llama, t5 and bert are",
                             gd_token_shown(shown, model, strlen(model)));
    if (meta->vocab_count < 1 || meta->vocab_count > GD_TOKENIZER_VOCAB_MAX || meta->merge_count < 0)
        return gd_fail(err, GD_BAD_MODEL, "tokenizer.ggml.tokens has %d tokens, allowed are 1 to %d", meta->vocab_count,
                       GD_TOKENIZER_VOCAB_MAX);
    if (!check_ids(meta, err))
        return false;
    struct gd_tokenizer *tokenizer = gd_tokenizer_create((size_t)meta->vocab_count, (size_t)meta->merge_count);
    if (!loaders[at].load(tokenizer, meta, err)) {
        gd_tokenizer_destroy(tokenizer);
        return false;
    }
    *out = tokenizer;
    return true;
}
