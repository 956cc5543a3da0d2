#include "engine/text/tokenizer_cache.h"
#include "engine/base/alloc.h"

#include <stdatomic.h>
#include <string.h>

#define LINE_COUNT 8192u /* 1 MiB */
#define WORDS 15u        /* 120 bytes of entry */

/*
 * A sequence lock per line: `version` is odd while a writer is inside. A reader copies the words and keeps them only if
 * the version was even and is still the same. Words are atomics, so that copying beside a writer is defined.
 */
struct line {
    _Atomic uint64_t version;
    _Atomic uint64_t word[WORDS];
};

struct gd_cache {
    struct line line[LINE_COUNT];
};

struct gd_cache *gd_cache_create(void)
{
    return gd_alloc(sizeof(struct gd_cache));
}

void gd_cache_destroy(struct gd_cache *cache)
{
    gd_free(cache);
}

bool gd_cache_get(const struct gd_cache *cache, uint64_t hash, const char *key, size_t length,
                  struct gd_cache_entry *entry)
{
    const struct line *line = &cache->line[hash % LINE_COUNT];
    uint64_t version = atomic_load_explicit(&line->version, memory_order_acquire);
    if (version % 2 == 1)
        return false;
    uint64_t words[WORDS];
    for (unsigned i = 0; i < WORDS; i++)
        words[i] = atomic_load_explicit(&line->word[i], memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&line->version, memory_order_relaxed) != version)
        return false;
    memcpy(entry, words, sizeof(*entry));
    return entry->length == length && memcmp(entry->key, key, length) == 0;
}

void gd_cache_put(struct gd_cache *cache, uint64_t hash, const struct gd_cache_entry *entry)
{
    struct line *line = &cache->line[hash % LINE_COUNT];
    uint64_t version = atomic_load_explicit(&line->version, memory_order_relaxed);
    if (version % 2 == 1 || !atomic_compare_exchange_strong_explicit(&line->version, &version, version + 1,
                                                                     memory_order_acquire, memory_order_relaxed))
        return; /* somebody else writes here: theirs is as good */
    atomic_thread_fence(memory_order_release);
    uint64_t words[WORDS];
    memcpy(words, entry, sizeof(words));
    for (unsigned i = 0; i < WORDS; i++)
        atomic_store_explicit(&line->word[i], words[i], memory_order_relaxed);
    atomic_store_explicit(&line->version, version + 2, memory_order_release);
}
