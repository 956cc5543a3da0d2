#include "engine/infer/kv_cache.h"
#include "engine/tensor/device.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

struct page {
    struct gd_kv_key key;
    bool published;
    int references;
    int32_t previous, next;   /* in the list of idle pages, or `next` in the list of free ones; -1 = none */
    int32_t same_slot;        /* next page in the hash table's slot */
};

struct gd_kv_cache {
    void *memory;
    size_t memory_bytes;
    struct page *pages;
    int page_count, free_count, idle_count;
    int32_t first_free;
    int32_t oldest, newest;   /* idle pages */
    int32_t *slots;           /* published pages by key */
    uint32_t slot_mask;
};

size_t gd_kv_page_bytes(const struct gd_kv_shape *shape)
{
    return (size_t)shape->layers * 2 * (size_t)shape->kv_heads * GD_KV_PAGE_TOKENS * (size_t)shape->head_dim *
           (shape->dtype == GD_BF16 ? 2 : 4);
}

bool gd_kv_cache_create(struct gd_kv_cache **out, const struct gd_kv_shape *shape, size_t cache_bytes, struct gd_error *err)
{
    assert(*out == NULL);
    assert(shape->dtype == GD_F32 || shape->dtype == GD_BF16);
    size_t bytes = gd_kv_page_bytes(shape), count = cache_bytes / bytes;
    if (count == 0)
        return gd_fail(err, GD_INVALID, "a key/value cache of %zu bytes holds not even one page of %zu bytes (%d tokens)",
                       cache_bytes, bytes, GD_KV_PAGE_TOKENS);
    count = count < INT32_MAX / 4 ? count : INT32_MAX / 4;
    struct gd_kv_cache *cache = gd_alloc(sizeof(*cache));
    cache->memory_bytes = count * bytes;
    if (!gd_device_alloc(&cache->memory, cache->memory_bytes, "the key/value cache", err)) {
        gd_free(cache);
        return false;
    }
    cache->page_count = cache->free_count = (int)count;
    cache->pages = gd_alloc_array(count, sizeof(*cache->pages));
    for (int i = 0; i < cache->page_count; i++)
        cache->pages[i].next = i + 1 < cache->page_count ? i + 1 : -1;
    cache->oldest = cache->newest = -1;
    uint32_t slots = 16;
    while (slots < count)
        slots *= 2;
    cache->slots = gd_alloc_array(slots, sizeof(*cache->slots));
    memset(cache->slots, 0xFF, slots * sizeof(*cache->slots));
    cache->slot_mask = slots - 1;
    *out = cache;
    return true;
}

void gd_kv_cache_destroy(struct gd_kv_cache *cache)
{
    if (cache == NULL)
        return;
    gd_device_free(cache->memory, cache->memory_bytes);
    gd_free(cache->pages);
    gd_free(cache->slots);
    gd_free(cache);
}

int gd_kv_cache_total(const struct gd_kv_cache *cache)
{
    return cache->page_count;
}

int gd_kv_cache_held(const struct gd_kv_cache *cache)
{
    return cache->page_count - cache->free_count - cache->idle_count;
}

int gd_kv_cache_available(const struct gd_kv_cache *cache)
{
    return cache->free_count + cache->idle_count;
}

void *gd_kv_cache_pages(const struct gd_kv_cache *cache)
{
    return cache->memory;
}

static void fill_page(char *image, const struct gd_kv_batch *kv, int begin, int end, const void *const *parts, enum gd_dtype from)
{
    size_t heads = (size_t)kv->kv_heads, dim = (size_t)kv->head_dim, element = gd_dtype_bytes(kv->dtype, 1);
    for (size_t part = 0; part < 2 * (size_t)kv->layer_count; part++)
        for (int row = begin; row < end; row++)
            for (size_t head = 0; head < heads; head++) {
                const char *source = (const char *)parts[part] + gd_dtype_bytes(from, (int64_t)(((size_t)row * heads + head) * dim));
                char *to = image + ((part * heads + head) * GD_KV_PAGE_TOKENS + (size_t)(row - begin)) * dim * element;
                if (from == kv->dtype)
                    memcpy(to, source, dim * element);
                else
                    gd_convert_from_f32(to, kv->dtype, (const float *)(const void *)source, (int64_t)dim);
            }
}

bool gd_kv_pages_fill(const struct gd_kv_batch *kv, const int32_t *pages, int first, int rows, const void *const *parts,
                      enum gd_dtype from, struct gd_error *err)
{
    assert(from == GD_F32 || from == kv->dtype);
    struct gd_kv_shape shape = {.dtype = kv->dtype, .layers = kv->layer_count, .kv_heads = kv->kv_heads, .head_dim = kv->head_dim};
    size_t bytes = gd_kv_page_bytes(&shape);
    char *image = gd_alloc(bytes);
    bool ok = true;
    for (int page = first; ok && page * GD_KV_PAGE_TOKENS < rows; page++) {
        int begin = page * GD_KV_PAGE_TOKENS, end = begin + GD_KV_PAGE_TOKENS < rows ? begin + GD_KV_PAGE_TOKENS : rows;
        memset(image, 0, bytes);
        fill_page(image, kv, begin, end, parts, from);
        ok = gd_device_write((char *)kv->pages + (size_t)pages[page] * bytes, image, bytes, err);
    }
    gd_free(image);
    return ok;
}

void gd_kv_key_next(struct gd_kv_key *key, const struct gd_kv_key *parent, const int32_t ids[GD_KV_PAGE_TOKENS])
{
    char bytes[64 + GD_KV_PAGE_TOKENS * sizeof(int32_t)];
    memcpy(bytes, parent->hex, 64);
    memcpy(bytes + 64, ids, GD_KV_PAGE_TOKENS * sizeof(int32_t));
    gd_hash_sha256(bytes, sizeof(bytes), key->hex);
}

/* ---- the hash table of published pages ---- */

static int32_t *slot_of(const struct gd_kv_cache *cache, const struct gd_kv_key *key)
{
    char digits[9];
    memcpy(digits, key->hex, 8);
    digits[8] = '\0';
    return &cache->slots[(uint32_t)strtoul(digits, NULL, 16) & cache->slot_mask];
}

static int32_t find_page(const struct gd_kv_cache *cache, const struct gd_kv_key *key)
{
    int32_t page = *slot_of(cache, key);
    while (page >= 0 && memcmp(cache->pages[page].key.hex, key->hex, sizeof(key->hex)) != 0)
        page = cache->pages[page].same_slot;
    return page;
}

static void unpublish(struct gd_kv_cache *cache, int32_t page)
{
    int32_t *link = slot_of(cache, &cache->pages[page].key);
    while (*link != page)
        link = &cache->pages[*link].same_slot;
    *link = cache->pages[page].same_slot;
    cache->pages[page].published = false;
}

/* ---- the list of idle pages ---- */

static void make_idle(struct gd_kv_cache *cache, int32_t page)
{
    struct page *p = &cache->pages[page];
    p->previous = cache->newest;
    p->next = -1;
    if (cache->newest >= 0)
        cache->pages[cache->newest].next = page;
    else
        cache->oldest = page;
    cache->newest = page;
    cache->idle_count++;
}

static void wake(struct gd_kv_cache *cache, int32_t page)
{
    struct page *p = &cache->pages[page];
    if (p->previous >= 0)
        cache->pages[p->previous].next = p->next;
    else
        cache->oldest = p->next;
    if (p->next >= 0)
        cache->pages[p->next].previous = p->previous;
    else
        cache->newest = p->previous;
    cache->idle_count--;
}

/* ---- references ---- */

int32_t gd_kv_cache_take(struct gd_kv_cache *cache)
{
    assert(gd_kv_cache_available(cache) > 0);
    int32_t page = cache->first_free;
    if (cache->free_count > 0) {
        cache->first_free = cache->pages[page].next;
        cache->free_count--;
    } else {
        page = cache->oldest;
        wake(cache, page);
        unpublish(cache, page);
    }
    assert(cache->pages[page].references == 0);
    cache->pages[page].references = 1;
    return page;
}

int32_t gd_kv_cache_share(struct gd_kv_cache *cache, const struct gd_kv_key *key)
{
    int32_t page = find_page(cache, key);
    if (page < 0)
        return -1;
    if (cache->pages[page].references++ == 0)
        wake(cache, page);
    return page;
}

void gd_kv_cache_publish(struct gd_kv_cache *cache, int32_t page, const struct gd_kv_key *key)
{
    struct page *p = &cache->pages[page];
    assert(p->references > 0);
    if (p->published || find_page(cache, key) >= 0)
        return;
    p->key = *key;
    p->published = true;
    int32_t *slot = slot_of(cache, key);
    p->same_slot = *slot;
    *slot = page;
}

void gd_kv_cache_drop(struct gd_kv_cache *cache, int32_t page)
{
    struct page *p = &cache->pages[page];
    assert(p->references > 0);
    if (--p->references > 0)
        return;
    if (p->published) {
        make_idle(cache, page);
        return;
    }
    p->next = cache->first_free;
    cache->first_free = page;
    cache->free_count++;
}
