/*
 * tokenizer_added.h - tokens that are matched in the text before anything else: longest first, leftmost first.
 *
 * Why      "<|im_end|>" in template text is one id; the same characters written by a person are not.
 * Memory   A set owns its items; contents are copies.
 * Threads  Read-only after gd_added_finish.
 * Errors   GD_BAD_MODEL for contents beyond the limit (bounds the work per byte of text).
 * Limits   GD_ADDED_BYTES_MAX per content.
 * Life     add ... -> finish -> next ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_ADDED_H
#define GD_TEXT_TOKENIZER_ADDED_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define GD_ADDED_BYTES_MAX 1024

struct gd_added {
    char *content;
    int32_t length;
    int32_t id;
    int32_t order; /* of addition */
    bool special, single_word, lstrip, rstrip, normalized;
};

struct gd_added_set {
    struct gd_added *item; /* sorted by content after finish */
    int32_t count, capacity;
    int32_t first[257];    /* items that begin with byte b: [first[b], first[b + 1]) */
};

GD_MUST_CHECK bool gd_added_add(struct gd_added_set *set, const char *content, size_t length,
                                const struct gd_added *flags, struct gd_error *err);
void gd_added_finish(struct gd_added_set *set);
void gd_added_release(struct gd_added_set *set);

struct gd_added_match {
    int32_t id;
    int32_t begin, end; /* with the whitespace that lstrip and rstrip take */
};

/* May the item be recognised at text[begin, end)? */
typedef bool gd_added_allowed(const void *context, const struct gd_added *item, int32_t begin, int32_t end);

/* The next match in text at or after `from`; lstrip does not reach before `from`. False: none. */
bool gd_added_next(const struct gd_added_set *set, const char *text, int32_t length, int32_t from,
                   gd_added_allowed *allowed, const void *context, struct gd_added_match *match);

#endif
