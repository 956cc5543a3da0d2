/*
 * tokenizer_cache.h - the ids of words that were met before.
 *
 * Why      Text repeats itself: most words need no merging the second time.
 * Memory   1 MiB per tokenizer, fixed.
 * Threads  Any number at once, without locks: an entry that is being written is a miss, never a mix.
 * Errors   none; a miss only costs time.
 * Limits   GD_CACHE_KEY_BYTES per word, GD_CACHE_IDS ids; others are not kept. A new word replaces the one in its place.
 * Life     create -> get / put ... -> destroy.
 */
#ifndef GD_TEXT_TOKENIZER_CACHE_H
#define GD_TEXT_TOKENIZER_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GD_CACHE_KEY_BYTES 50
#define GD_CACHE_IDS 13

struct gd_cache_entry {
    uint8_t length;   /* of the word; 0 = free */
    uint8_t count;
    char key[GD_CACHE_KEY_BYTES];
    int32_t id[GD_CACHE_IDS];
    uint8_t end[GD_CACHE_IDS]; /* where each token ends in the word; it begins where the one before ends */
    uint8_t unused[3];
};
_Static_assert(sizeof(struct gd_cache_entry) == 120, "an entry and its version fill two cache lines");

struct gd_cache;
struct gd_cache *gd_cache_create(void);
void gd_cache_destroy(struct gd_cache *cache);
/* On a hit fills `entry`. */
bool gd_cache_get(const struct gd_cache *cache, uint64_t hash, const char *key, size_t length,
                  struct gd_cache_entry *entry);
void gd_cache_put(struct gd_cache *cache, uint64_t hash, const struct gd_cache_entry *entry);

#endif
