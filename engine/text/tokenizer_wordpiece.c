#include "engine/text/tokenizer_wordpiece.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/tokenizer_char.h"

#include <string.h>
#include <xxhash.h>

void gd_wordpiece_finish(struct gd_wordpiece *wordpiece, const struct gd_vocab *vocab)
{
    wordpiece->vocab = vocab;
    wordpiece->prefix_length = wordpiece->prefix != NULL ? strlen(wordpiece->prefix) : 0;
    wordpiece->unknown_id =
        wordpiece->unknown != NULL ? gd_vocab_find(vocab, wordpiece->unknown, strlen(wordpiece->unknown)) : -1;
    gd_random_bytes(&wordpiece->seed, sizeof(wordpiece->seed));
    wordpiece->cache = gd_cache_create();
}

void gd_wordpiece_release(struct gd_wordpiece *wordpiece)
{
    gd_free(wordpiece->unknown);
    gd_free(wordpiece->prefix);
    gd_cache_destroy(wordpiece->cache);
    memset(wordpiece, 0, sizeof(*wordpiece));
}

/* The longest token that text[begin, length) starts with; -1 = none. `spelling` has room for every token. */
static int32_t longest(const struct gd_wordpiece *wordpiece, char *spelling, const char *text, int32_t begin,
                       int32_t length, int32_t *end)
{
    size_t prefix = begin > 0 ? wordpiece->prefix_length : 0, longest = wordpiece->vocab->length_max;
    if (prefix >= longest)
        return -1;
    size_t room = longest - prefix, left = (size_t)(length - begin);
    size_t take = left < room ? left : room;
    if (prefix > 0)
        memcpy(spelling, wordpiece->prefix, prefix);
    memcpy(spelling + prefix, text + begin, take);
    while (take < left && take > 0 && ((unsigned char)text[begin + (int32_t)take] & 0xC0) == 0x80)
        take--;
    for (; take > 0; take = gd_char_before(spelling + prefix, take)) {
        int32_t id = gd_vocab_find_model(wordpiece->vocab, spelling, prefix + take);
        if (id >= 0) {
            *end = begin + (int32_t)take;
            return id;
        }
    }
    return -1;
}

static bool is_too_long(const struct gd_wordpiece *wordpiece, const char *text, int32_t length)
{
    int64_t characters = 0;
    for (int32_t at = 0; at < length; at += (int32_t)gd_char_length(text[at]))
        characters++;
    return characters > wordpiece->max_characters;
}

static bool push_unknown(const struct gd_wordpiece *wordpiece, struct gd_bpe_work *work, int32_t length,
                         struct gd_error *err)
{
    if (wordpiece->unknown_id < 0)
        return gd_fail(err, GD_BAD_MODEL, "the text has a word without tokens, and the unknown token \"%s\" is not in "
                       "the vocabulary", wordpiece->unknown != NULL ? wordpiece->unknown : "");
    work->count = 0;
    gd_bpe_work_push(work, wordpiece->unknown_id, 0, length);
    return true;
}

bool gd_wordlevel_encode(const struct gd_wordpiece *wordpiece, struct gd_bpe_work *work, const char *text, int32_t length,
                         struct gd_error *err)
{
    int32_t id = gd_vocab_find_model(wordpiece->vocab, text, (size_t)length);
    work->count = 0;
    if (id < 0)
        return push_unknown(wordpiece, work, length, err);
    gd_bpe_work_push(work, id, 0, length);
    return true;
}

bool gd_wordpiece_encode(const struct gd_wordpiece *wordpiece, struct gd_bpe_work *work, const char *text, int32_t length,
                         struct gd_error *err)
{
    work->count = 0;
    if (length == 0)
        return true;
    uint64_t hash = length <= GD_CACHE_KEY_BYTES ? XXH3_64bits_withSeed(text, (size_t)length, wordpiece->seed) : 0;
    if (gd_bpe_work_recall(work, wordpiece->cache, hash, text, length))
        return true;
    bool known = !is_too_long(wordpiece, text, length);
    char *spelling = gd_bpe_work_scratch(work, (size_t)wordpiece->vocab->length_max + 1);
    for (int32_t begin = 0, end = 0; begin < length && known; begin = end) {
        int32_t id = longest(wordpiece, spelling, text, begin, length, &end);
        known = id >= 0;
        if (known)
            gd_bpe_work_push(work, id, begin, end);
    }
    if (!known && !push_unknown(wordpiece, work, length, err))
        return false;
    gd_bpe_work_remember(work, wordpiece->cache, hash, text, length);
    return true;
}

void gd_wordpiece_describe(const struct gd_wordpiece *wordpiece, struct gd_buf *out)
{
    gd_buf_printf(out, "wordpiece %lld unknown %s prefix %s\n", (long long)wordpiece->max_characters,
                  wordpiece->unknown != NULL ? wordpiece->unknown : "", wordpiece->prefix != NULL ? wordpiece->prefix : "");
}
