/*
 * tokenizer_bpe.h - byte pair encoding of one pre-token.
 *
 * Why      The lowest-ranked pair merges first, leftmost among equals: the same ids as the reference, in O(n log n).
 * Memory   gd_bpe owns its tables; gd_bpe_work owns the scratch and the result of the last call.
 * Threads  A loaded gd_bpe is read-only (its cache is lock-free); one gd_bpe_work per thread.
 * Errors   GD_BAD_MODEL at load (a merge of absent tokens) and for text that needs an unknown token which is absent.
 * Limits   Pre-tokens of INT32_MAX bytes.
 * Life     init -> add_merge ... -> finish -> encode ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_BPE_H
#define GD_TEXT_TOKENIZER_BPE_H

#include "engine/text/tokenizer_cache.h"
#include "engine/text/tokenizer_vocab.h"

struct gd_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX = free slot */
    uint32_t rank;
    int32_t id;    /* of the merged token */
};

struct gd_bpe {
    const struct gd_vocab *vocab;
    struct gd_merge *merge; /* open addressing by pair */
    uint64_t merge_slots;   /* a power of two, at least twice merge_count */
    uint64_t merge_count;
    uint64_t seed;
    bool byte_level;        /* pre-tokens are bytes, each standing for its character of the byte-level alphabet */
    bool byte_fallback, fuse_unknown, ignore_merges;
    char *unknown;          /* spelling, or NULL: what has no token is left out */
    char *prefix, *suffix;  /* of inner and of last characters, or NULL */
    size_t prefix_length, suffix_length;
    int32_t unknown_id;       /* -1 = the vocabulary lacks it */
    int32_t byte_id[256];     /* byte_level: of the byte's character; -1 = none */
    int32_t fallback_id[256]; /* of <0x00> to <0xFF>; -1 = none */
    struct gd_cache *cache;
};

struct gd_symbol {
    int32_t id;
    int32_t prev, next;
    int32_t begin, end; /* bytes of the pre-token */
};

struct gd_bpe_work {
    struct gd_symbol *symbol; /* the result: ids and ranges in order */
    int32_t count, capacity;
    struct gd_heap_item *heap;
    int32_t heap_count, heap_capacity;
    char *scratch;
    size_t scratch_capacity;
};

void gd_bpe_init(struct gd_bpe *bpe, const struct gd_vocab *vocab, size_t merges_expected);
/* A later merge of the same pair replaces the earlier. Merges into a special token are left out. */
void gd_bpe_add_merge(struct gd_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* Call when vocabulary, flags and spellings are complete. */
void gd_bpe_finish(struct gd_bpe *bpe);
void gd_bpe_release(struct gd_bpe *bpe);

GD_MUST_CHECK bool gd_bpe_encode(const struct gd_bpe *bpe, struct gd_bpe_work *work, const char *text, int32_t length,
                                 struct gd_error *err);
void gd_bpe_work_release(struct gd_bpe_work *work);

/* For every model that turns a pre-token into symbols. Scratch holds until the next call. */
void gd_bpe_work_push(struct gd_bpe_work *work, int32_t id, int32_t begin, int32_t end);
char *gd_bpe_work_scratch(struct gd_bpe_work *work, size_t size);
/* The symbols of a word met before; `hash` is of the word and only used for words that a cache may keep. */
bool gd_bpe_work_recall(struct gd_bpe_work *work, const struct gd_cache *cache, uint64_t hash, const char *text,
                        int32_t length);
void gd_bpe_work_remember(const struct gd_bpe_work *work, struct gd_cache *cache, uint64_t hash, const char *text,
                          int32_t length);

#endif
