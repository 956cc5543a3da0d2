/*
 * kv_cache.h - pages of keys and values: who holds them, and which finished ones can be used again.
 *
 * Why      Sequences grow page by page and come and go in any order; a prompt that begins like an earlier one takes that
 *          one's full pages instead of computing them again.
 * Memory   One block of cache_bytes, given to the process by the kernel as pages are first written.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY; GD_INVALID when not even one page fits.
 * Limits   GD_KV_PAGE_TOKENS tokens a page.
 * Life     create -> take / share / publish / drop -> destroy.
 *
 * Invariants: a page is free, held (references > 0), or idle (published, no references, on the list of least recent use).
 * Published content never changes. An idle page is taken again, the least recently used first, when no page is free.
 */
#ifndef GD_INFER_KV_CACHE_H
#define GD_INFER_KV_CACHE_H

#include "engine/base/error.h"
#include "engine/tensor/kv.h"

/* What a page holds: SHA-256 over the key of the page before it and this page's token ids. The first one's parent is the
 * identity of the graft, so grafts never share pages: they change keys and values. */
struct gd_kv_key {
    char hex[65];
};

struct gd_kv_shape {
    enum gd_dtype dtype;
    int layers, kv_heads, head_dim;
};

struct gd_kv_cache;

GD_MUST_CHECK bool gd_kv_cache_create(struct gd_kv_cache **out, const struct gd_kv_shape *shape, size_t cache_bytes,
                                      struct gd_error *err);
size_t gd_kv_page_bytes(const struct gd_kv_shape *shape);
void gd_kv_cache_destroy(struct gd_kv_cache *cache);

int gd_kv_cache_total(const struct gd_kv_cache *cache);
int gd_kv_cache_held(const struct gd_kv_cache *cache);       /* pages with references */
int gd_kv_cache_available(const struct gd_kv_cache *cache);  /* free or idle */
void *gd_kv_cache_pages(const struct gd_kv_cache *cache);    /* gd_kv_batch.pages */

/* Content of pages that comes from the host: rows [0, rows) of `parts` (layer by layer, keys then values), each [row][kv_head][head_dim] of
 * `from`'s dtype, F32 or the cache's, into pages[] from number `first` on. Rows behind them in the last page are zeros. */
GD_MUST_CHECK bool gd_kv_pages_fill(const struct gd_kv_batch *kv, const int32_t *pages, int first, int rows, const void *const *parts,
                                    enum gd_dtype from, struct gd_error *err);

void gd_kv_key_next(struct gd_kv_key *key, const struct gd_kv_key *parent, const int32_t ids[GD_KV_PAGE_TOKENS]);

/* A page of one's own, with one reference; one must be available. */
int32_t gd_kv_cache_take(struct gd_kv_cache *cache);
/* One more reference to the page with this content; -1 if there is none. */
int32_t gd_kv_cache_share(struct gd_kv_cache *cache, const struct gd_kv_key *key);
/* A full page's content may be shared from now on. Nothing happens if other pages hold the same content. */
void gd_kv_cache_publish(struct gd_kv_cache *cache, int32_t page, const struct gd_kv_key *key);
void gd_kv_cache_drop(struct gd_kv_cache *cache, int32_t page);

#endif
