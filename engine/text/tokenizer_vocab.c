#include "engine/text/tokenizer_vocab.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/tokenizer.h"

#include <string.h>
#include <xxhash.h>

const char *gd_token_shown(char out[GD_TOKEN_SHOWN_BYTES], const char *text, size_t length)
{
    size_t end = length < GD_TOKEN_SHOWN_BYTES - 4 ? length : GD_TOKEN_SHOWN_BYTES - 4;
    while (end > 0 && end < length && ((unsigned char)text[end] & 0xC0) == 0x80)
        end--;
    for (size_t i = 0; i < end; i++)
        out[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7F ? '?' : text[i];
    memcpy(out + end, end < length ? "..." : "", end < length ? 4 : 1);
    return out;
}

/* The slot of a spelling, or the free one where it belongs. `mark` is what the slot holds besides the id. */
static uint64_t *slot_of(const struct gd_vocab *vocab, const char *text, size_t length, uint64_t *mark)
{
    uint64_t hash = XXH3_64bits_withSeed(text, length, vocab->seed);
    uint32_t mask = vocab->slot_count - 1;
    *mark = hash & 0xFFFFFFFF00000000u;
    for (uint32_t i = (uint32_t)hash & mask;; i = (i + 1) & mask) {
        uint64_t slot = vocab->slot[i];
        if (slot == 0)
            return &vocab->slot[i];
        if ((slot & 0xFFFFFFFF00000000u) != *mark)
            continue;
        const struct gd_token *token = &vocab->token[(uint32_t)slot - 1];
        if (token->length == length && memcmp(token->text, text, length) == 0)
            return &vocab->slot[i];
    }
}

static void grow_slots(struct gd_vocab *vocab, uint32_t slot_count)
{
    gd_free(vocab->slot);
    vocab->slot = gd_alloc_array(slot_count, sizeof(vocab->slot[0]));
    vocab->slot_count = slot_count;
    for (int32_t id = 0; id < vocab->count; id++) {
        if (vocab->token[id].text == NULL)
            continue;
        uint64_t mark, *slot = slot_of(vocab, vocab->token[id].text, vocab->token[id].length, &mark);
        *slot = mark | ((uint32_t)id + 1);
    }
}

void gd_vocab_init(struct gd_vocab *vocab, size_t expected)
{
    memset(vocab, 0, sizeof(*vocab));
    gd_random_bytes(&vocab->seed, sizeof(vocab->seed));
    uint32_t slot_count = 1024;
    while (slot_count < (1u << 23) && slot_count < 2 * expected)
        slot_count *= 2;
    grow_slots(vocab, slot_count);
}

static bool refuse(const struct gd_vocab *vocab, int64_t id, const char *text, size_t length, uint64_t taken,
                   struct gd_error *err)
{
    char shown[GD_TOKEN_SHOWN_BYTES], other[GD_TOKEN_SHOWN_BYTES];
    gd_token_shown(shown, text, length);
    if (id < 0 || id >= GD_TOKENIZER_VOCAB_MAX)
        return gd_fail(err, GD_BAD_MODEL, "token \"%s\" has id %lld, allowed are 0 to %d", shown, (long long)id,
                       GD_TOKENIZER_VOCAB_MAX - 1);
    if (length >= UINT32_MAX)
        return gd_fail(err, GD_BAD_MODEL, "token %lld is %zu bytes long", (long long)id, length);
    if (taken != 0)
        return gd_fail(err, GD_BAD_MODEL, "token \"%s\" has two ids, %u and %lld", shown, (uint32_t)taken - 1,
                       (long long)id);
    return gd_fail(err, GD_BAD_MODEL, "id %lld belongs to two tokens, \"%s\" and \"%s\"", (long long)id,
                   gd_token_shown(other, vocab->token[id].text, vocab->token[id].length), shown);
}

bool gd_vocab_add(struct gd_vocab *vocab, int64_t id, const char *text, size_t length, uint32_t flags,
                  struct gd_error *err)
{
    uint64_t mark, *slot = slot_of(vocab, text, length, &mark);
    if (id < 0 || id >= GD_TOKENIZER_VOCAB_MAX || length >= UINT32_MAX || *slot != 0 ||
        (id < vocab->count && vocab->token[id].text != NULL))
        return refuse(vocab, id, text, length, *slot, err);
    if (id >= vocab->capacity) {
        int32_t capacity = vocab->capacity == 0 ? 1024 : vocab->capacity;
        while (capacity <= id)
            capacity *= 2;
        vocab->token = gd_realloc_array(vocab->token, (size_t)capacity, sizeof(vocab->token[0]));
        memset(vocab->token + vocab->capacity, 0, (size_t)(capacity - vocab->capacity) * sizeof(vocab->token[0]));
        vocab->capacity = capacity;
    }
    vocab->token[id] = (struct gd_token){gd_arena_strndup(&vocab->arena, text, length), (uint32_t)length, flags};
    *slot = mark | ((uint32_t)id + 1);
    if (id >= vocab->count)
        vocab->count = (int32_t)id + 1;
    if (length > vocab->length_max)
        vocab->length_max = (uint32_t)length;
    if (2 * (uint32_t)++vocab->used > vocab->slot_count)
        grow_slots(vocab, vocab->slot_count * 2);
    return true;
}

int32_t gd_vocab_find(const struct gd_vocab *vocab, const char *text, size_t length)
{
    uint64_t mark;
    return (int32_t)(uint32_t)*slot_of(vocab, text, length, &mark) - 1;
}

int32_t gd_vocab_find_model(const struct gd_vocab *vocab, const char *text, size_t length)
{
    int32_t id = gd_vocab_find(vocab, text, length);
    bool usable = id >= 0 && (vocab->token[id].flags & (GD_TOKEN_MODEL | GD_TOKEN_SPECIAL)) == GD_TOKEN_MODEL;
    return usable ? id : -1;
}

void gd_vocab_release(struct gd_vocab *vocab)
{
    gd_free(vocab->token);
    gd_free(vocab->slot);
    gd_arena_release(&vocab->arena);
    memset(vocab, 0, sizeof(*vocab));
}
