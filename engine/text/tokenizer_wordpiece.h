/*
 * tokenizer_wordpiece.h - the longest token first, from the left, or the whole word is unknown (BERT's model); WordLevel
 * knows whole words only.
 *
 * Why      BERT, MiniLM and their relatives.
 * Memory   gd_wordpiece owns its spellings and a cache.
 * Threads  Read-only after finish (its cache is lock-free); one gd_bpe_work per thread.
 * Errors   GD_BAD_MODEL for a word that needs the unknown token when it is absent.
 * Limits   Words of more than max_characters characters are unknown.
 * Life     zeroed, filled by a loader -> finish -> encode ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_WORDPIECE_H
#define GD_TEXT_TOKENIZER_WORDPIECE_H

#include "engine/base/buf.h"
#include "engine/text/tokenizer_bpe.h"

struct gd_wordpiece {
    const struct gd_vocab *vocab;
    char *unknown;
    char *prefix;          /* of all tokens of a word but the first; NULL = none */
    size_t prefix_length;
    int64_t max_characters;
    int32_t unknown_id;    /* -1 = the vocabulary lacks it */
    uint64_t seed;
    struct gd_cache *cache;
};

void gd_wordpiece_finish(struct gd_wordpiece *wordpiece, const struct gd_vocab *vocab);
void gd_wordpiece_release(struct gd_wordpiece *wordpiece);
GD_MUST_CHECK bool gd_wordpiece_encode(const struct gd_wordpiece *wordpiece, struct gd_bpe_work *work, const char *text,
                                       int32_t length, struct gd_error *err);
/* A pre-token is one token or unknown. */
GD_MUST_CHECK bool gd_wordlevel_encode(const struct gd_wordpiece *wordpiece, struct gd_bpe_work *work, const char *text,
                                       int32_t length, struct gd_error *err);
/* All that decides ids besides the vocabulary, for the digest. */
void gd_wordpiece_describe(const struct gd_wordpiece *wordpiece, struct gd_buf *out);

#endif
