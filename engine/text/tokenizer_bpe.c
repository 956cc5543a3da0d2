#include "engine/text/tokenizer_bpe.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/tokenizer_char.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#define SHORT_SYMBOLS 24 /* up to here scanning all pairs is faster than a heap */

struct gd_heap_item {
    uint64_t key; /* rank << 32 | index of the left symbol: lowest rank first, then leftmost */
    int32_t id;
};

static uint64_t first_slot(const struct gd_bpe *bpe, uint64_t pair)
{
    __uint128_t product = (__uint128_t)(pair ^ bpe->seed) * 0x9E3779B97F4A7C15u;
    return ((uint64_t)product ^ (uint64_t)(product >> 64)) & (bpe->merge_slots - 1);
}

static struct gd_merge *merge_slot(const struct gd_bpe *bpe, uint64_t pair)
{
    uint64_t at = first_slot(bpe, pair);
    while (bpe->merge[at].pair != pair && bpe->merge[at].pair != UINT64_MAX)
        at = (at + 1) & (bpe->merge_slots - 1);
    return &bpe->merge[at];
}

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* NULL when the two do not merge. */
static const struct gd_merge *find_merge(const struct gd_bpe *bpe, int32_t left, int32_t right)
{
    const struct gd_merge *merge = merge_slot(bpe, pair_of(left, right));
    return merge->pair == UINT64_MAX ? NULL : merge;
}

static void set_slots(struct gd_bpe *bpe, uint64_t slots)
{
    struct gd_merge *old = bpe->merge;
    uint64_t old_slots = bpe->merge_slots;
    bpe->merge = gd_alloc_array(slots, sizeof(bpe->merge[0]));
    bpe->merge_slots = slots;
    for (uint64_t i = 0; i < slots; i++)
        bpe->merge[i].pair = UINT64_MAX;
    for (uint64_t i = 0; i < old_slots; i++)
        if (old[i].pair != UINT64_MAX)
            *merge_slot(bpe, old[i].pair) = old[i];
    gd_free(old);
}

void gd_bpe_init(struct gd_bpe *bpe, const struct gd_vocab *vocab, size_t merges_expected)
{
    memset(bpe, 0, sizeof(*bpe));
    bpe->vocab = vocab;
    bpe->unknown_id = -1;
    gd_random_bytes(&bpe->seed, sizeof(bpe->seed));
    uint64_t slots = 64;
    while (slots < (1u << 24) && slots < 2 * merges_expected)
        slots *= 2;
    set_slots(bpe, slots);
}

void gd_bpe_add_merge(struct gd_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    if (bpe->vocab->token[id].flags & GD_TOKEN_SPECIAL)
        return;
    struct gd_merge *merge = merge_slot(bpe, pair_of(left, right));
    bool fresh = merge->pair == UINT64_MAX;
    *merge = (struct gd_merge){pair_of(left, right), rank, id};
    if (fresh && 2 * ++bpe->merge_count > bpe->merge_slots)
        set_slots(bpe, bpe->merge_slots * 2);
}

void gd_bpe_finish(struct gd_bpe *bpe)
{
    bpe->prefix_length = bpe->prefix != NULL ? strlen(bpe->prefix) : 0;
    bpe->suffix_length = bpe->suffix != NULL ? strlen(bpe->suffix) : 0;
    for (int byte = 0; byte < 256; byte++) {
        char spelling[8];
        bpe->byte_id[byte] = gd_vocab_find_model(bpe->vocab, spelling, gd_alphabet_write((unsigned char)byte, spelling));
        int length = snprintf(spelling, sizeof(spelling), "<0x%02X>", (unsigned)byte);
        bpe->fallback_id[byte] = gd_vocab_find_model(bpe->vocab, spelling, (size_t)length);
    }
    if (bpe->unknown != NULL) /* the unknown token may be special: it stands for what cannot be written otherwise */
        bpe->unknown_id = gd_vocab_find(bpe->vocab, bpe->unknown, strlen(bpe->unknown));
    bpe->cache = gd_cache_create();
}

void gd_bpe_release(struct gd_bpe *bpe)
{
    gd_free(bpe->merge);
    gd_free(bpe->unknown);
    gd_free(bpe->prefix);
    gd_free(bpe->suffix);
    gd_cache_destroy(bpe->cache);
    memset(bpe, 0, sizeof(*bpe));
}

void gd_bpe_work_release(struct gd_bpe_work *work)
{
    gd_free(work->symbol);
    gd_free(work->heap);
    gd_free(work->scratch);
    memset(work, 0, sizeof(*work));
}

char *gd_bpe_work_scratch(struct gd_bpe_work *work, size_t size)
{
    if (size > work->scratch_capacity) {
        work->scratch = gd_realloc_array(work->scratch, size * 2, 1);
        work->scratch_capacity = size * 2;
    }
    return work->scratch;
}

void gd_bpe_work_push(struct gd_bpe_work *work, int32_t id, int32_t begin, int32_t end)
{
    if (work->count == work->capacity) {
        work->capacity = work->capacity < 64 ? 64 : work->capacity > INT32_MAX / 2 ? INT32_MAX : work->capacity * 2;
        work->symbol = gd_realloc_array(work->symbol, (size_t)work->capacity, sizeof(work->symbol[0]));
    }
    int32_t index = work->count++;
    work->symbol[index] = (struct gd_symbol){.id = id, .prev = index - 1, .next = index + 1, .begin = begin, .end = end};
}

/* Bytes of one character that has no token: all of them by byte tokens, or none. */
static bool push_fallback(const struct gd_bpe *bpe, struct gd_bpe_work *work, const char *spelling, size_t length,
                          int32_t begin, int32_t end)
{
    for (size_t i = 0; i < length; i++)
        if (bpe->fallback_id[(unsigned char)spelling[i]] < 0)
            return false;
    bool exact = length == (size_t)(end - begin); /* not when the spelling has a prefix, a suffix or is of the alphabet */
    for (size_t i = 0; i < length; i++)
        gd_bpe_work_push(work, bpe->fallback_id[(unsigned char)spelling[i]], exact ? begin + (int32_t)i : begin,
                    exact ? begin + (int32_t)i + 1 : end);
    return true;
}

/* How one character of the pre-token is spelled in the vocabulary. */
static const char *spell(const struct gd_bpe *bpe, struct gd_bpe_work *work, const char *text, int32_t begin, int32_t end,
                         int32_t length, size_t *spelling_length)
{
    if (!bpe->byte_level && bpe->prefix_length == 0 && bpe->suffix_length == 0) {
        *spelling_length = (size_t)(end - begin);
        return text + begin;
    }
    char *out = gd_bpe_work_scratch(work, bpe->prefix_length + bpe->suffix_length + 8), *at = out;
    if (begin > 0 && bpe->prefix_length > 0)
        at = (char *)memcpy(at, bpe->prefix, bpe->prefix_length) + bpe->prefix_length;
    if (bpe->byte_level)
        at += gd_alphabet_write((unsigned char)text[begin], at);
    else
        at = (char *)memcpy(at, text + begin, (size_t)(end - begin)) + (end - begin);
    if (end == length && bpe->suffix_length > 0)
        at = (char *)memcpy(at, bpe->suffix, bpe->suffix_length) + bpe->suffix_length;
    *spelling_length = (size_t)(at - out);
    return out;
}

/* The characters as symbols. An unknown one waits, so that neighbours can be fused with it. */
static bool push_characters(const struct gd_bpe *bpe, struct gd_bpe_work *work, const char *text, int32_t length,
                            struct gd_error *err)
{
    bool direct = bpe->byte_level && bpe->prefix_length == 0 && bpe->suffix_length == 0;
    bool waiting = false;
    int32_t unknown_begin = 0, unknown_end = 0;
    for (int32_t begin = 0, end; begin < length; begin = end) {
        end = begin + (bpe->byte_level ? 1 : (int32_t)gd_char_length(text[begin]));
        size_t spelling_length = 0;
        const char *spelling = NULL;
        int32_t id = direct ? bpe->byte_id[(unsigned char)text[begin]] : -1;
        if (id < 0) {
            spelling = spell(bpe, work, text, begin, end, length, &spelling_length);
            id = gd_vocab_find_model(bpe->vocab, spelling, spelling_length);
        }
        if (id >= 0) {
            if (waiting)
                gd_bpe_work_push(work, bpe->unknown_id, unknown_begin, unknown_end);
            waiting = false;
            gd_bpe_work_push(work, id, begin, end);
            continue;
        }
        if (bpe->byte_fallback && push_fallback(bpe, work, spelling, spelling_length, begin, end))
            continue;
        if (bpe->unknown == NULL)
            continue;
        if (bpe->unknown_id < 0)
            return gd_fail(err, GD_BAD_MODEL, "the text has a character without a token, and the unknown token \"%s\" is "
                           "not in the vocabulary", bpe->unknown);
        if (waiting && !bpe->fuse_unknown)
            gd_bpe_work_push(work, bpe->unknown_id, unknown_begin, unknown_end);
        if (!waiting || !bpe->fuse_unknown)
            unknown_begin = begin;
        unknown_end = end;
        waiting = true;
    }
    if (waiting)
        gd_bpe_work_push(work, bpe->unknown_id, unknown_begin, unknown_end);
    return true;
}

static void merge_short(const struct gd_bpe *bpe, struct gd_bpe_work *work)
{
    struct gd_symbol *symbol = work->symbol;
    const struct gd_merge *merge[SHORT_SYMBOLS]; /* of symbols i and i + 1 */
    int32_t count = work->count;
    for (int32_t i = 0; i + 1 < count; i++)
        merge[i] = find_merge(bpe, symbol[i].id, symbol[i + 1].id);
    for (;;) {
        int32_t best = -1;
        for (int32_t i = 0; i + 1 < count; i++)
            if (merge[i] != NULL && (best < 0 || merge[i]->rank < merge[best]->rank))
                best = i;
        if (best < 0)
            break;
        symbol[best].id = merge[best]->id;
        symbol[best].end = symbol[best + 1].end;
        count--;
        for (int32_t i = best + 1; i < count; i++) {
            symbol[i] = symbol[i + 1];
            if (i + 1 < count)
                merge[i] = merge[i + 1];
        }
        if (best > 0)
            merge[best - 1] = find_merge(bpe, symbol[best - 1].id, symbol[best].id);
        if (best + 1 < count)
            merge[best] = find_merge(bpe, symbol[best].id, symbol[best + 1].id);
    }
    work->count = count;
}

static void heap_push(struct gd_bpe_work *work, const struct gd_bpe *bpe, int32_t left, int32_t right)
{
    const struct gd_merge *merge = find_merge(bpe, work->symbol[left].id, work->symbol[right].id);
    if (merge == NULL)
        return;
    if (work->heap_count == work->heap_capacity) {
        work->heap_capacity = work->heap_capacity < 64 ? 64 : work->heap_capacity * 2;
        work->heap = gd_realloc_array(work->heap, (size_t)work->heap_capacity, sizeof(work->heap[0]));
    }
    struct gd_heap_item item = {(uint64_t)merge->rank << 32 | (uint32_t)left, merge->id};
    int32_t at = work->heap_count++;
    while (at > 0 && work->heap[(at - 1) / 2].key > item.key) {
        work->heap[at] = work->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    work->heap[at] = item;
}

static struct gd_heap_item heap_pop(struct gd_bpe_work *work)
{
    struct gd_heap_item top = work->heap[0], last = work->heap[--work->heap_count];
    int32_t at = 0;
    for (int32_t child; (child = 2 * at + 1) < work->heap_count; at = child) {
        if (child + 1 < work->heap_count && work->heap[child + 1].key < work->heap[child].key)
            child++;
        if (work->heap[child].key >= last.key)
            break;
        work->heap[at] = work->heap[child];
    }
    work->heap[at] = last;
    return top;
}

/* Symbols form a linked list; the heap holds every pair that could merge when it was pushed. A popped pair is stale when
 * its symbols have merged with others since: then the left one is gone or the two now give another token. */
static void merge_long(const struct gd_bpe *bpe, struct gd_bpe_work *work)
{
    struct gd_symbol *symbol = work->symbol;
    int32_t count = work->count;
    work->heap_count = 0;
    for (int32_t i = 0; i + 1 < count; i++)
        heap_push(work, bpe, i, i + 1);
    while (work->heap_count > 0) {
        struct gd_heap_item top = heap_pop(work);
        int32_t left = (int32_t)(uint32_t)top.key, right = symbol[left].next;
        if (symbol[left].id < 0 || right >= count)
            continue;
        const struct gd_merge *merge = find_merge(bpe, symbol[left].id, symbol[right].id);
        if (merge == NULL || merge->id != top.id)
            continue;
        symbol[left].id = top.id;
        symbol[left].end = symbol[right].end;
        symbol[left].next = symbol[right].next;
        symbol[right].id = -1;
        if (symbol[left].next < count)
            symbol[symbol[left].next].prev = left;
        if (symbol[left].prev >= 0)
            heap_push(work, bpe, symbol[left].prev, left);
        if (symbol[left].next < count)
            heap_push(work, bpe, left, symbol[left].next);
    }
    work->count = 0;
    for (int32_t i = 0; i < count; i = symbol[i].next)
        symbol[work->count++] = symbol[i];
}

/* The whole pre-token as one token, or -1. */
static int32_t find_whole(const struct gd_bpe *bpe, struct gd_bpe_work *work, const char *text, int32_t length)
{
    if ((uint32_t)length > bpe->vocab->length_max)
        return -1;
    if (!bpe->byte_level)
        return gd_vocab_find_model(bpe->vocab, text, (size_t)length);
    char *out = gd_bpe_work_scratch(work, 2 * (size_t)length), *at = out;
    for (int32_t i = 0; i < length; i++)
        at += gd_alphabet_write((unsigned char)text[i], at);
    return gd_vocab_find_model(bpe->vocab, out, (size_t)(at - out));
}

bool gd_bpe_work_recall(struct gd_bpe_work *work, const struct gd_cache *cache, uint64_t hash, const char *text,
                        int32_t length)
{
    struct gd_cache_entry entry;
    if (length > GD_CACHE_KEY_BYTES || !gd_cache_get(cache, hash, text, (size_t)length, &entry))
        return false;
    for (int32_t i = 0; i < entry.count; i++)
        gd_bpe_work_push(work, entry.id[i], i == 0 ? 0 : entry.end[i - 1], entry.end[i]);
    return true;
}

void gd_bpe_work_remember(const struct gd_bpe_work *work, struct gd_cache *cache, uint64_t hash, const char *text,
                          int32_t length)
{
    if (length > GD_CACHE_KEY_BYTES || work->count > GD_CACHE_IDS)
        return;
    struct gd_cache_entry entry = {.length = (uint8_t)length, .count = (uint8_t)work->count};
    int32_t end = 0;
    for (int32_t i = 0; i < work->count; i++) {
        if (work->symbol[i].begin != end) /* something was left out or fused */
            return;
        end = work->symbol[i].end;
        entry.id[i] = work->symbol[i].id;
        entry.end[i] = (uint8_t)end;
    }
    memcpy(entry.key, text, (size_t)length);
    gd_cache_put(cache, hash, &entry);
}

bool gd_bpe_encode(const struct gd_bpe *bpe, struct gd_bpe_work *work, const char *text, int32_t length,
                   struct gd_error *err)
{
    work->count = 0;
    if (length == 0)
        return true;
    uint64_t hash = length <= GD_CACHE_KEY_BYTES ? XXH3_64bits_withSeed(text, (size_t)length, bpe->seed) : 0;
    if (gd_bpe_work_recall(work, bpe->cache, hash, text, length))
        return true;
    int32_t whole = bpe->ignore_merges ? find_whole(bpe, work, text, length) : -1;
    if (whole >= 0) {
        gd_bpe_work_push(work, whole, 0, length);
    } else {
        if (!push_characters(bpe, work, text, length, err))
            return false;
        if (work->count <= SHORT_SYMBOLS)
            merge_short(bpe, work);
        else
            merge_long(bpe, work);
    }
    gd_bpe_work_remember(work, bpe->cache, hash, text, length);
    return true;
}
