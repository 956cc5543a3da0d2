/*
 * tokenizer_vocab.h - ids and their spelling, both ways.
 *
 * Why      One table for the model's own tokens and the added ones; an id has one spelling, a spelling one id.
 * Memory   The vocabulary owns copies of the spellings.
 * Threads  Read-only after loading.
 * Errors   GD_BAD_MODEL naming the token and the ids that clash.
 * Limits   GD_TOKENIZER_VOCAB_MAX ids; gaps between ids are allowed and cost 16 bytes each.
 * Life     init -> add ... -> find ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_VOCAB_H
#define GD_TEXT_TOKENIZER_VOCAB_H

#include "engine/base/arena.h"
#include "engine/base/error.h"
#include <stdint.h>

enum gd_token_flag {
    GD_TOKEN_MODEL = 1,   /* the model may produce it from text */
    GD_TOKEN_ADDED = 2,   /* matched in the text before the model */
    GD_TOKEN_SPECIAL = 4, /* never produced from what people write, skipped by decoding on request */
    GD_TOKEN_BYTE = 16,   /* stands for a byte, never for its spelling */
    GD_TOKEN_RENAMED = 8, /* an added token whose spelling the normalizers change */
};

struct gd_token {
    const char *text; /* NULL: no token has this id */
    uint32_t length;
    uint32_t flags;
};

struct gd_vocab {
    struct gd_token *token; /* [count] */
    int32_t count, capacity; /* count: highest id + 1 */
    int32_t used;
    uint32_t length_max;    /* of all spellings, in bytes */
    uint64_t *slot;         /* open addressing by spelling: upper half of its hash, id + 1; 0 = free */
    uint32_t slot_count;    /* a power of two, at least twice `used` */
    uint64_t seed;          /* random, so that no file can hold colliding spellings */
    struct gd_arena arena;
};

void gd_vocab_init(struct gd_vocab *vocab, size_t expected);
GD_MUST_CHECK bool gd_vocab_add(struct gd_vocab *vocab, int64_t id, const char *text, size_t length, uint32_t flags,
                                struct gd_error *err);
int32_t gd_vocab_find(const struct gd_vocab *vocab, const char *text, size_t length); /* -1 = none */
/* Only tokens that the model may produce: of the model and not special. */
int32_t gd_vocab_find_model(const struct gd_vocab *vocab, const char *text, size_t length);
void gd_vocab_release(struct gd_vocab *vocab);

/* A spelling for a message: at most 60 bytes, whole characters, control characters as '?'. Returns `out`. */
#define GD_TOKEN_SHOWN_BYTES 64
const char *gd_token_shown(char out[GD_TOKEN_SHOWN_BYTES], const char *text, size_t length);

#endif
