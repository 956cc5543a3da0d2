/*
 * kv.h - what attention_cached needs to know about the key/value cache in one batch.
 *
 * Why      Pages let sequences grow without copies and come and go in any order.
 * Memory   Borrowed by the kernel; the pool belongs to engine/infer/kv_cache.h.
 * Threads  engine thread
 * Errors   none
 * Limits   GD_KV_PAGE_TOKENS rows a page
 * Life     filled for each run
 */
#ifndef GD_TENSOR_KV_H
#define GD_TENSOR_KV_H

#include "engine/tensor/tensor.h"

#define GD_KV_PAGE_TOKENS 32

struct gd_kv_batch {
    enum gd_dtype dtype;         /* of the pages: F32 or BF16 */
    int layer_count, kv_heads, head_dim;
    void *pages;                 /* [page][layer][2: k, v][kv_head][GD_KV_PAGE_TOKENS][head_dim] */
    int sequence_count;          /* S */
    const int32_t *cu_seqlens;   /* [S+1] rows of this batch that belong to each sequence; rows >= cu[S] are padding */
    const int32_t *past;         /* [S] tokens already in the cache */
    const int32_t *page_table;   /* [S][page_table_stride] */
    int page_table_stride;
};

#endif
