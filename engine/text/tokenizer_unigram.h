/*
 * tokenizer_unigram.h - the likeliest split of one pre-token into pieces (SentencePiece's Unigram model).
 *
 * Why      T5, ALBERT and XLM-R choose the path of highest summed log-probability: best[j] = max best[i] + score(i, j).
 * Memory   gd_unigram owns its tables (12 bytes per piece); 16 bytes of scratch per byte of a pre-token.
 * Threads  Read-only after finish (its cache is lock-free); one gd_bpe_work per thread.
 * Errors   GD_BAD_MODEL at finish (a piece too long) and for text that needs an unknown token which is absent.
 * Limits   GD_UNIGRAM_PIECE_BYTES per piece (bounds the work per byte of text).
 * Life     zeroed -> add ... -> finish -> encode ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_UNIGRAM_H
#define GD_TEXT_TOKENIZER_UNIGRAM_H

#include "engine/base/buf.h"
#include "engine/text/tokenizer_bpe.h"

#define GD_UNIGRAM_PIECE_BYTES 1024

struct gd_unigram {
    const struct gd_vocab *vocab;
    double *score;            /* by id, log-probability */
    int32_t count, capacity;  /* ids 0 to count - 1 are pieces */
    int32_t *order;           /* ids of what text may become, sorted by spelling */
    int32_t first[257];       /* pieces that begin with byte b: order[first[b], first[b + 1]) */
    int32_t unknown_id;       /* -1 = none */
    double unknown_score;     /* of a character without a piece; 0: below the lowest piece */
    bool single;              /* sums are floats */
    bool byte_fallback;
    int32_t fallback_id[256]; /* of <0x00> to <0xFF>; -1 = none */
    uint64_t seed;
    struct gd_cache *cache;
};

/* Scores of ids 0, 1, ... in order; they must be finite. */
void gd_unigram_add(struct gd_unigram *unigram, double score);
GD_MUST_CHECK bool gd_unigram_finish(struct gd_unigram *unigram, const struct gd_vocab *vocab, struct gd_error *err);
void gd_unigram_release(struct gd_unigram *unigram);
GD_MUST_CHECK bool gd_unigram_encode(const struct gd_unigram *unigram, struct gd_bpe_work *work, const char *text,
                                     int32_t length, struct gd_error *err);
/* All that decides ids besides the vocabulary, for the digest. */
void gd_unigram_describe(const struct gd_unigram *unigram, struct gd_buf *out);

#endif
