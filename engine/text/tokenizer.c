#include "engine/text/tokenizer.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

void gd_tokens_push(struct gd_tokens *tokens, int32_t id, int32_t begin, int32_t end)
{
    if (tokens->count == tokens->capacity) {
        int capacity = tokens->capacity < 64 ? 64 : tokens->capacity * 2;
        tokens->ids = gd_realloc_array(tokens->ids, (size_t)capacity, sizeof(tokens->ids[0]));
        if (tokens->with_offsets) {
            tokens->begin = gd_realloc_array(tokens->begin, (size_t)capacity, sizeof(tokens->begin[0]));
            tokens->end = gd_realloc_array(tokens->end, (size_t)capacity, sizeof(tokens->end[0]));
        }
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->count] = id;
    if (tokens->with_offsets) {
        tokens->begin[tokens->count] = begin;
        tokens->end[tokens->count] = end;
    }
    tokens->count++;
}

void gd_tokens_release(struct gd_tokens *tokens)
{
    gd_free(tokens->ids);
    gd_free(tokens->begin);
    gd_free(tokens->end);
    memset(tokens, 0, sizeof(*tokens));
}

struct gd_tokenizer *gd_tokenizer_create(size_t tokens_expected, size_t merges_expected)
{
    struct gd_tokenizer *tokenizer = gd_alloc(sizeof(*tokenizer));
    gd_vocab_init(&tokenizer->vocab, tokens_expected);
    gd_bpe_init(&tokenizer->bpe, &tokenizer->vocab, merges_expected);
    tokenizer->bos = tokenizer->eos = tokenizer->pad = -1;
    tokenizer->unk = tokenizer->sep = tokenizer->cls = tokenizer->mask = -1;
    return tokenizer;
}

void gd_tokenizer_destroy(struct gd_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    gd_bpe_release(&tokenizer->bpe);
    gd_unigram_release(&tokenizer->unigram);
    gd_wordpiece_release(&tokenizer->wordpiece);
    gd_vocab_release(&tokenizer->vocab);
    gd_added_release(&tokenizer->pending);
    gd_added_release(&tokenizer->added);
    gd_added_release(&tokenizer->added_normalized);
    gd_steps_release(&tokenizer->normalizers);
    gd_steps_release(&tokenizer->pretokenizers);
    gd_decoders_release(&tokenizer->decoders);
    gd_free(tokenizer);
}

bool gd_steps_add(struct gd_steps *steps, enum gd_step_kind kind, struct gd_step **step, struct gd_error *err)
{
    if (steps->count == GD_STEPS_MAX)
        return gd_fail(err, GD_BAD_MODEL, "more than %d normalizers or pre-tokenizers in a row", GD_STEPS_MAX);
    *step = &steps->step[steps->count++];
    (*step)->kind = kind;
    return true;
}

bool gd_decoders_add(struct gd_decoders *decoders, enum gd_decoder_kind kind, struct gd_decoder **step,
                     struct gd_error *err)
{
    if (decoders->count == GD_DECODERS_MAX)
        return gd_fail(err, GD_BAD_MODEL, "more than %d decoders in a row", GD_DECODERS_MAX);
    *step = &decoders->step[decoders->count++];
    (*step)->kind = kind;
    return true;
}

bool gd_tokenizer_add(struct gd_tokenizer *tokenizer, const char *content, size_t length, const struct gd_added *flags,
                      struct gd_error *err)
{
    struct gd_vocab *vocab = &tokenizer->vocab;
    uint32_t bits = GD_TOKEN_ADDED | (flags->special ? GD_TOKEN_SPECIAL : 0);
    int32_t there = gd_vocab_find(vocab, content, length);
    if (there == flags->id)
        vocab->token[there].flags = (vocab->token[there].flags & GD_TOKEN_MODEL) | bits;
    else if (!gd_vocab_add(vocab, flags->id, content, length, bits, err))
        return false;
    return gd_added_add(&tokenizer->pending, content, length, flags, err);
}

static bool remove_id(int32_t *ids, int *count, int at, int32_t id)
{
    if (at < 0 || at >= *count || ids[at] != id)
        return false;
    memmove(ids + at, ids + at + 1, (size_t)(*count - at - 1) * sizeof(ids[0]));
    --*count;
    return true;
}

bool gd_tokenizer_set_ends(struct gd_tokenizer *tokenizer, int add_bos, int add_eos, struct gd_error *err)
{
    if ((add_bos > 0 && tokenizer->bos < 0) || (add_eos > 0 && tokenizer->eos < 0))
        return gd_fail(err, GD_BAD_MODEL, "%s is to be added to texts, but there is no such token",
                       add_bos > 0 && tokenizer->bos < 0 ? "bos" : "eos");
    if (tokenizer->before_count == GD_TEMPLATE_IDS_MAX || tokenizer->after_count == GD_TEMPLATE_IDS_MAX)
        return gd_fail(err, GD_BAD_MODEL, "the post-processor adds more than %d tokens", GD_TEMPLATE_IDS_MAX - 1);
    if (add_bos >= 0) {
        (void)remove_id(tokenizer->before, &tokenizer->before_count, 0, tokenizer->bos);
        if (add_bos > 0) {
            memmove(tokenizer->before + 1, tokenizer->before,
                    (size_t)tokenizer->before_count * sizeof(tokenizer->before[0]));
            tokenizer->before[0] = tokenizer->bos;
            tokenizer->before_count++;
        }
    }
    if (add_eos >= 0) {
        (void)remove_id(tokenizer->after, &tokenizer->after_count, tokenizer->after_count - 1, tokenizer->eos);
        if (add_eos > 0)
            tokenizer->after[tokenizer->after_count++] = tokenizer->eos;
    }
    return true;
}

static int by_id(const void *a, const void *b)
{
    const struct gd_added *x = a, *y = b;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* A token that is matched behind the normalizers is itself matched as they write it. */
static bool add_normalized(struct gd_tokenizer *tokenizer, const struct gd_added *item, struct gd_error *err)
{
    struct gd_flow flow = {0};
    struct gd_regex_run regex;
    gd_regex_run_init(&regex, (size_t)item->length);
    gd_flow_start(&flow, item->content, item->length, NULL, NULL, 0);
    bool ok = gd_steps_run(&tokenizer->normalizers, &flow, &regex, err);
    if (ok) {
        struct gd_range range = flow.pieces.count > 0 ? flow.pieces.at[0] : (struct gd_range){0, 0};
        size_t length = (size_t)(range.end - range.begin);
        if (length != (size_t)item->length || memcmp(flow.bytes + range.begin, item->content, length) != 0)
            tokenizer->vocab.token[item->id].flags |= GD_TOKEN_RENAMED;
        ok = gd_added_add(&tokenizer->added_normalized, flow.bytes + range.begin, length, item, err);
    }
    gd_regex_run_release(&regex);
    gd_flow_release(&flow);
    return ok;
}

bool gd_tokenizer_finish(struct gd_tokenizer *tokenizer, struct gd_error *err)
{
    struct gd_added_set *pending = &tokenizer->pending;
    if (pending->count > 1)
        qsort(pending->item, (size_t)pending->count, sizeof(pending->item[0]), by_id);
    bool ok = true;
    for (int32_t i = 0; i < pending->count && ok; i++) {
        const struct gd_added *item = &pending->item[i];
        if (i + 1 < pending->count && item[1].id == item->id)
            continue;
        ok = item->normalized && tokenizer->normalizers.count > 0
                 ? add_normalized(tokenizer, item, err)
                 : gd_added_add(item->normalized ? &tokenizer->added_normalized : &tokenizer->added, item->content,
                                (size_t)item->length, item, err);
    }
    gd_added_release(pending);
    if (!ok)
        return false;
    gd_added_finish(&tokenizer->added);
    gd_added_finish(&tokenizer->added_normalized);
    if (tokenizer->model == GD_MODEL_UNIGRAM) {
        tokenizer->kind = tokenizer->unigram.byte_fallback ? "Unigram (byte fallback)" : "Unigram";
        return gd_unigram_finish(&tokenizer->unigram, &tokenizer->vocab, err);
    }
    if (tokenizer->model == GD_MODEL_WORDPIECE || tokenizer->model == GD_MODEL_WORDLEVEL) {
        tokenizer->kind = tokenizer->model == GD_MODEL_WORDPIECE ? "WordPiece" : "WordLevel";
        gd_wordpiece_finish(&tokenizer->wordpiece, &tokenizer->vocab);
        return true;
    }
    gd_bpe_finish(&tokenizer->bpe);
    tokenizer->kind = tokenizer->bpe.byte_level      ? "BPE (byte-level)"
                      : tokenizer->bpe.byte_fallback ? "BPE (characters, byte fallback)"
                                                     : "BPE (characters)";
    return true;
}

int gd_tokenizer_vocab_count(const struct gd_tokenizer *tokenizer)
{
    return tokenizer->vocab.count;
}

int32_t gd_tokenizer_find(const struct gd_tokenizer *tokenizer, const char *token)
{
    return gd_vocab_find(&tokenizer->vocab, token, strlen(token));
}

const char *gd_tokenizer_token(const struct gd_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && id < tokenizer->vocab.count ? tokenizer->vocab.token[id].text : NULL;
}

bool gd_tokenizer_is_special(const struct gd_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && id < tokenizer->vocab.count && (tokenizer->vocab.token[id].flags & GD_TOKEN_SPECIAL) != 0;
}

int32_t gd_tokenizer_bos(const struct gd_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t gd_tokenizer_eos(const struct gd_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

int32_t gd_tokenizer_pad(const struct gd_tokenizer *tokenizer)
{
    return tokenizer->pad;
}

int32_t gd_tokenizer_named(const struct gd_tokenizer *tokenizer, const char *name)
{
    const struct {
        const char *name;
        int32_t id;
    } named[] = {{"bos_token", tokenizer->bos}, {"eos_token", tokenizer->eos},   {"pad_token", tokenizer->pad},
                 {"unk_token", tokenizer->unk}, {"sep_token", tokenizer->sep},   {"cls_token", tokenizer->cls},
                 {"mask_token", tokenizer->mask}};
    for (size_t i = 0; i < GD_COUNT(named); i++)
        if (strcmp(name, named[i].name) == 0)
            return named[i].id;
    return -1;
}

const char *gd_tokenizer_kind(const struct gd_tokenizer *tokenizer)
{
    return tokenizer->kind;
}

/* The spelling that decoding starts from; NULL: nothing to decode. */
static const char *spelling(const struct gd_tokenizer *tokenizer, int32_t id, bool specials, size_t *length)
{
    if (id < 0 || id >= tokenizer->vocab.count)
        return NULL;
    const struct gd_token *token = &tokenizer->vocab.token[id];
    if (!specials && (token->flags & GD_TOKEN_SPECIAL))
        return NULL;
    *length = token->length;
    if (!(token->flags & GD_TOKEN_RENAMED))
        return token->text;
    for (int32_t i = 0; i < tokenizer->added_normalized.count; i++) {
        const struct gd_added *item = &tokenizer->added_normalized.item[i];
        if (item->id == id) {
            *length = (size_t)item->length;
            return item->content;
        }
    }
    return token->text;
}

void gd_tokenizer_piece(const struct gd_tokenizer *tokenizer, int32_t id, bool specials, struct gd_buf *out)
{
    size_t length = 0;
    const char *text = spelling(tokenizer, id, specials, &length);
    if (text != NULL)
        gd_decoders_piece(&tokenizer->decoders, text, length, out);
}

void gd_tokenizer_decode(const struct gd_tokenizer *tokenizer, const int32_t *ids, int count, bool skip_specials,
                         struct gd_buf *out)
{
    struct gd_spellings spellings = {0};
    gd_buf_init(&spellings.text, out->limit_bytes);
    for (int i = 0; i < count; i++) {
        size_t length = 0;
        const char *text = spelling(tokenizer, ids[i], !skip_specials, &length);
        if (text != NULL)
            gd_spellings_push(&spellings, text, length);
    }
    out->overflow = out->overflow || spellings.text.overflow;
    gd_decoders_all(&tokenizer->decoders, &spellings, out);
    gd_spellings_release(&spellings);
}

static void put_number(struct gd_buf *out, uint32_t value)
{
    unsigned char bytes[4] = {(unsigned char)value, (unsigned char)(value >> 8), (unsigned char)(value >> 16),
                              (unsigned char)(value >> 24)};
    gd_buf_append(out, bytes, sizeof(bytes));
}

static void describe_tokens(const struct gd_vocab *vocab, struct gd_buf *out)
{
    for (int32_t id = 0; id < vocab->count; id++) {
        const struct gd_token *token = &vocab->token[id];
        if (token->text == NULL)
            continue;
        put_number(out, (uint32_t)id);
        put_number(out, token->flags);
        put_number(out, token->length);
        gd_buf_append(out, token->text, token->length);
    }
}

static int by_rank(const void *a, const void *b)
{
    const struct gd_merge *x = a, *y = b;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return x->pair < y->pair ? -1 : x->pair > y->pair;
}

/* In order; equal ranks matter, their numbers do not. */
static void describe_merges(const struct gd_bpe *bpe, struct gd_buf *out)
{
    struct gd_merge *merge = gd_alloc_array(bpe->merge_count + 1, sizeof(merge[0]));
    size_t count = 0;
    for (uint64_t i = 0; i < bpe->merge_slots; i++)
        if (bpe->merge[i].pair != UINT64_MAX)
            merge[count++] = bpe->merge[i];
    qsort(merge, count, sizeof(merge[0]), by_rank);
    for (size_t i = 0; i < count; i++) {
        put_number(out, (uint32_t)(merge[i].pair >> 32));
        put_number(out, (uint32_t)merge[i].pair);
        put_number(out, (uint32_t)merge[i].id);
        put_number(out, i > 0 && merge[i].rank == merge[i - 1].rank);
    }
    gd_free(merge);
}

static void describe_added(const struct gd_added_set *set, struct gd_buf *out)
{
    for (int32_t i = 0; i < set->count; i++) {
        const struct gd_added *item = &set->item[i];
        gd_buf_printf(out, "added %d %d%d%d%d%d %d:%s\n", item->id, item->special, item->single_word, item->lstrip,
                      item->rstrip, item->normalized, item->length, item->content);
    }
}

void gd_tokenizer_digest(const struct gd_tokenizer *tokenizer, char out[65])
{
    struct gd_buf text;
    gd_buf_init(&text, 0);
    const struct gd_bpe *bpe = &tokenizer->bpe;
    gd_buf_printf(&text, "tokenizer 1\nbpe %d%d%d%d unknown %s prefix %s suffix %s\n", bpe->byte_level,
                  bpe->byte_fallback, bpe->fuse_unknown, bpe->ignore_merges, bpe->unknown ? bpe->unknown : "",
                  bpe->prefix ? bpe->prefix : "", bpe->suffix ? bpe->suffix : "");
    if (tokenizer->model == GD_MODEL_UNIGRAM)
        gd_unigram_describe(&tokenizer->unigram, &text);
    if (tokenizer->model == GD_MODEL_WORDLEVEL)
        gd_buf_append_text(&text, "words ");
    if (tokenizer->model == GD_MODEL_WORDPIECE || tokenizer->model == GD_MODEL_WORDLEVEL)
        gd_wordpiece_describe(&tokenizer->wordpiece, &text);
    describe_tokens(&tokenizer->vocab, &text);
    describe_merges(bpe, &text);
    describe_added(&tokenizer->added, &text);
    describe_added(&tokenizer->added_normalized, &text);
    gd_steps_describe(&tokenizer->normalizers, &text);
    gd_steps_describe(&tokenizer->pretokenizers, &text);
    gd_decoders_describe(&tokenizer->decoders, &text);
    gd_buf_printf(&text, "ends %d %d %d", tokenizer->bos, tokenizer->eos, tokenizer->pad);
    for (int i = 0; i < tokenizer->before_count; i++)
        gd_buf_printf(&text, " <%d", tokenizer->before[i]);
    for (int i = 0; i < tokenizer->after_count; i++)
        gd_buf_printf(&text, " >%d", tokenizer->after[i]);
    gd_hash_sha256(text.data, text.length, out);
    gd_buf_release(&text);
}
