#include "engine/text/tokenizer_unigram.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/tokenizer_char.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define UNKNOWN_PENALTY 10.0 /* the score of an unknown character lies that far below the lowest piece */

/* The best way to the end of a byte. */
struct node {
    double score;
    int32_t id;
    int32_t begin; /* where the last piece of that way begins; -1 = no way yet */
};

void gd_unigram_add(struct gd_unigram *unigram, double score)
{
    if (unigram->count == unigram->capacity) {
        unigram->capacity = unigram->capacity < 1024 ? 1024 : unigram->capacity * 2;
        unigram->score = gd_realloc_array(unigram->score, (size_t)unigram->capacity, sizeof(unigram->score[0]));
    }
    unigram->score[unigram->count++] = score;
}

static int by_spelling(const void *a, const void *b, void *context)
{
    const struct gd_vocab *vocab = context;
    const struct gd_token *x = &vocab->token[*(const int32_t *)a], *y = &vocab->token[*(const int32_t *)b];
    int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    return order != 0 ? order : x->length < y->length ? -1 : x->length > y->length;
}

bool gd_unigram_finish(struct gd_unigram *unigram, const struct gd_vocab *vocab, struct gd_error *err)
{
    unigram->vocab = vocab;
    unigram->order = gd_alloc_array((size_t)unigram->count + 1, sizeof(unigram->order[0]));
    double lowest = 0;
    int32_t used = 0;
    for (int32_t id = 0; id < unigram->count; id++) {
        const struct gd_token *token = &vocab->token[id];
        lowest = id == 0 || unigram->score[id] < lowest ? unigram->score[id] : lowest;
        if (token->length > GD_UNIGRAM_PIECE_BYTES)
            return gd_fail_param(err, GD_BAD_MODEL, "model.vocab", "piece %d of model.vocab has %u bytes, allowed are %d",
                                 id, token->length, GD_UNIGRAM_PIECE_BYTES);
        if (token->length > 0 && (token->flags & GD_TOKEN_MODEL) && !(token->flags & (GD_TOKEN_SPECIAL | GD_TOKEN_BYTE)))
            unigram->order[used++] = id;
    }
    if (used > 1)
        qsort_r(unigram->order, (size_t)used, sizeof(unigram->order[0]), by_spelling, (void *)vocab);
    int32_t at = 0;
    for (int byte = 0; byte < 256; byte++) {
        unigram->first[byte] = at;
        while (at < used && (unsigned char)vocab->token[unigram->order[at]].text[0] == byte)
            at++;
        char spelling[8];
        int length = snprintf(spelling, sizeof(spelling), "<0x%02X>", (unsigned)byte);
        unigram->fallback_id[byte] = gd_vocab_find_model(vocab, spelling, (size_t)length);
    }
    unigram->first[256] = at;
    if (unigram->unknown_score == 0)
        unigram->unknown_score = lowest - UNKNOWN_PENALTY;
    gd_random_bytes(&unigram->seed, sizeof(unigram->seed));
    unigram->cache = gd_cache_create();
    return true;
}

void gd_unigram_release(struct gd_unigram *unigram)
{
    gd_free(unigram->score);
    gd_free(unigram->order);
    gd_cache_destroy(unigram->cache);
    memset(unigram, 0, sizeof(*unigram));
}

/* The first piece in [low, high) whose byte at `depth` is at least `byte`; all of them share the bytes before. */
static int32_t lower_bound(const struct gd_unigram *unigram, int32_t low, int32_t high, int32_t depth, int byte)
{
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((unsigned char)unigram->vocab->token[unigram->order[middle]].text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void offer(const struct gd_unigram *unigram, struct node *node, double score, int32_t id, int32_t begin)
{
    if (unigram->single)
        score = (float)score;
    if (node->begin < 0 || score > node->score)
        *node = (struct node){score, id, begin};
}

/* Offers every piece that stands at text[begin]. Returns whether the character there is a piece on its own. */
static bool offer_pieces(const struct gd_unigram *unigram, struct node *node, const char *text, int32_t length,
                         int32_t begin)
{
    bool single = false;
    int32_t character = (int32_t)gd_char_length(text[begin]);
    unsigned char byte = (unsigned char)text[begin];
    int32_t low = unigram->first[byte], high = unigram->first[byte + 1];
    for (int32_t depth = 1; low < high; depth++) {
        int32_t id = unigram->order[low];
        if (unigram->vocab->token[id].length == (uint32_t)depth) {
            offer(unigram, &node[begin + depth], node[begin].score + unigram->score[id], id, begin);
            single = single || depth == character;
            low++;
        }
        if (begin + depth >= length)
            break;
        byte = (unsigned char)text[begin + depth];
        low = lower_bound(unigram, low, high, depth, byte);
        high = lower_bound(unigram, low, high, depth, byte + 1);
    }
    return single;
}

/* A run of unknowns: what is in the vocabulary after all, its bytes when all of them have tokens, or one unknown token. */
static void push_unknown(const struct gd_unigram *unigram, struct gd_bpe_work *work, const char *text, int32_t begin,
                         int32_t end)
{
    int32_t whole = gd_vocab_find_model(unigram->vocab, text + begin, (size_t)(end - begin));
    if (whole >= 0) {
        gd_bpe_work_push(work, whole, begin, end);
        return;
    }
    bool bytes = unigram->byte_fallback;
    for (int32_t i = begin; i < end && bytes; i++)
        bytes = unigram->fallback_id[(unsigned char)text[i]] >= 0;
    if (!bytes)
        gd_bpe_work_push(work, unigram->unknown_id, begin, end);
    for (int32_t i = begin; i < end && bytes; i++)
        gd_bpe_work_push(work, unigram->fallback_id[(unsigned char)text[i]], i, i + 1);
}

/* The way back from the end, turned round by way of the nodes that it visits: `id` and `begin` of node j become those of
 * the piece that begins at j. Neighbouring unknown characters are one. */
static void push_path(const struct gd_unigram *unigram, struct gd_bpe_work *work, struct node *node, const char *text,
                      int32_t length)
{
    int32_t next_id = -1, next_end = -1;
    for (int32_t end = length; end >= 0;) {
        struct node here = node[end];
        node[end].id = next_id;
        node[end].begin = next_end;
        if (end == 0)
            break;
        next_id = here.id;
        next_end = end;
        end = here.begin;
    }
    for (int32_t at = 0; at < length;) {
        int32_t id = node[at].id, end = node[at].begin;
        if (id != unigram->unknown_id || id < 0) {
            gd_bpe_work_push(work, id, at, end);
        } else {
            while (end < length && node[end].id == id)
                end = node[end].begin;
            push_unknown(unigram, work, text, at, end);
        }
        at = end;
    }
}

bool gd_unigram_encode(const struct gd_unigram *unigram, struct gd_bpe_work *work, const char *text, int32_t length,
                       struct gd_error *err)
{
    work->count = 0;
    if (length == 0)
        return true;
    uint64_t hash = length <= GD_CACHE_KEY_BYTES ? XXH3_64bits_withSeed(text, (size_t)length, unigram->seed) : 0;
    if (gd_bpe_work_recall(work, unigram->cache, hash, text, length))
        return true;
    struct node *node = (struct node *)(void *)gd_bpe_work_scratch(work, ((size_t)length + 1) * sizeof(*node));
    for (int32_t i = 0; i <= length; i++)
        node[i] = (struct node){0, -1, -1};
    for (int32_t begin = 0; begin < length;) {
        int32_t character = (int32_t)gd_char_length(text[begin]);
        if (!offer_pieces(unigram, node, text, length, begin)) {
            if (unigram->unknown_id < 0)
                return gd_fail(err, GD_BAD_MODEL, "the text has a character without a piece, and model.unk_id names no "
                               "unknown token");
            offer(unigram, &node[begin + character], node[begin].score + unigram->unknown_score, unigram->unknown_id, begin);
        }
        begin += character;
    }
    push_path(unigram, work, node, text, length);
    gd_bpe_work_remember(work, unigram->cache, hash, text, length);
    return true;
}

void gd_unigram_describe(const struct gd_unigram *unigram, struct gd_buf *out)
{
    gd_buf_printf(out, "unigram %d%d unknown %d scores %d:", unigram->byte_fallback, unigram->single, unigram->unknown_id, unigram->count);
    for (int32_t id = 0; id < unigram->count; id++)
        gd_buf_printf(out, " %a", unigram->score[id]);
    gd_buf_append_char(out, '\n');
}
