#include "engine/text/tokenizer_added.h"
#include "engine/base/alloc.h"
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_vocab.h"

#include <stdlib.h>
#include <string.h>

bool gd_added_add(struct gd_added_set *set, const char *content, size_t length, const struct gd_added *flags,
                  struct gd_error *err)
{
    char shown[GD_TOKEN_SHOWN_BYTES];
    if (length == 0 || length > GD_ADDED_BYTES_MAX)
        return gd_fail(err, GD_BAD_MODEL, "added token %d \"%s\" has %zu bytes, allowed are 1 to %d", flags->id,
                       gd_token_shown(shown, content, length), length, GD_ADDED_BYTES_MAX);
    if (set->count == set->capacity) {
        set->capacity = set->capacity < 32 ? 32 : set->capacity * 2;
        set->item = gd_realloc_array(set->item, (size_t)set->capacity, sizeof(set->item[0]));
    }
    set->item[set->count] = *flags;
    set->item[set->count].order = set->count;
    set->item[set->count].content = gd_strndup(content, length);
    set->item[set->count++].length = (int32_t)length;
    return true;
}

static int by_content(const void *a, const void *b)
{
    const struct gd_added *x = a, *y = b;
    int order = memcmp(x->content, y->content, (size_t)(x->length < y->length ? x->length : y->length));
    if (order == 0)
        order = x->length < y->length ? -1 : x->length > y->length;
    return order != 0 ? order : x->id < y->id ? -1 : x->id > y->id;
}

void gd_added_finish(struct gd_added_set *set)
{
    if (set->count > 1)
        qsort(set->item, (size_t)set->count, sizeof(set->item[0]), by_content);
    int32_t at = 0;
    for (int byte = 0; byte < 256; byte++) {
        set->first[byte] = at;
        while (at < set->count && (unsigned char)set->item[at].content[0] == byte)
            at++;
    }
    set->first[256] = at;
}

void gd_added_release(struct gd_added_set *set)
{
    for (int32_t i = 0; i < set->count; i++)
        gd_free(set->item[i].content);
    gd_free(set->item);
    memset(set, 0, sizeof(*set));
}

/* The first item in [low, high) whose byte at `depth` is at least `byte`; all of them share the bytes before. */
static int32_t lower_bound(const struct gd_added_set *set, int32_t low, int32_t high, int32_t depth, int byte)
{
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((unsigned char)set->item[middle].content[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest allowed item that stands at text[at]. */
static const struct gd_added *longest_at(const struct gd_added_set *set, const char *text, int32_t length, int32_t at,
                                         gd_added_allowed *allowed, const void *context)
{
    const struct gd_added *best = NULL;
    unsigned char byte = (unsigned char)text[at];
    int32_t low = set->first[byte], high = set->first[byte + 1];
    for (int32_t depth = 1; low < high; depth++) {
        for (; low < high && set->item[low].length == depth; low++)
            if (allowed(context, &set->item[low], at, at + depth))
                best = &set->item[low];
        if (at + depth >= length)
            break;
        byte = (unsigned char)text[at + depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
    }
    return best;
}

static bool is_whole_word(const char *text, int32_t length, int32_t begin, int32_t end)
{
    int32_t code;
    if (begin > 0) {
        gd_char_decode(text + gd_char_before(text, (size_t)begin), &code);
        if (gd_char_is_word(code))
            return false;
    }
    if (end < length) {
        gd_char_decode(text + end, &code);
        if (gd_char_is_word(code))
            return false;
    }
    return true;
}

bool gd_added_next(const struct gd_added_set *set, const char *text, int32_t length, int32_t from,
                   gd_added_allowed *allowed, const void *context, struct gd_added_match *match)
{
    if (set->count == 0)
        return false;
    for (int32_t at = from; at < length; at++) {
        if (set->first[(unsigned char)text[at]] == set->first[(unsigned char)text[at] + 1])
            continue;
        const struct gd_added *item = longest_at(set, text, length, at, allowed, context);
        if (item == NULL)
            continue;
        int32_t begin = at, end = at + item->length, code;
        if (item->single_word && !is_whole_word(text, length, begin, end)) {
            at = end - 1;
            continue;
        }
        while (item->lstrip && begin > from) {
            int32_t before = (int32_t)gd_char_before(text, (size_t)begin);
            gd_char_decode(text + before, &code);
            if (!gd_char_is_space(code))
                break;
            begin = before;
        }
        while (item->rstrip && end < length) {
            size_t step = gd_char_decode(text + end, &code);
            if (!gd_char_is_space(code))
                break;
            end += (int32_t)step;
        }
        *match = (struct gd_added_match){item->id, begin, end};
        return true;
    }
    return false;
}
