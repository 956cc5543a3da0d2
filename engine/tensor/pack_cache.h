/*
 * pack_cache.h - weights laid out for products, kept on disk by content and mapped.
 *
 * Why      Laying out a base takes longer than all else at a start, and gives the same bytes each time.
 * Memory   A loaded layout is a read-only mapping: the kernel may take its pages back.
 * Threads  engine thread; several processes may share the folder: files appear whole by rename, and are read after their
 *          checksum was compared.
 * Errors   none reach the caller: what cannot be read is laid out anew, what cannot be written is logged, once.
 * Limits   max_bytes in the folder, the files used longest ago go first; nothing is written to a disk with less than
 *          GD_PACK_CACHE_FREE_BYTES free.
 * Life     gd_pack_cache_configure once -> load, or pack and store.
 *
 * A file is a header of one page (magic, key, size, xxh3 of the data) and the data. Its name is the xxh3 of the key: the model's
 * digest, the weight's name, direction, dtype, shape, the library's layout, its version, the instruction set.
 */
#ifndef GD_TENSOR_PACK_CACHE_H
#define GD_TENSOR_PACK_CACHE_H

#include "engine/tensor/gemm.h"
#include <stdint.h>

#define GD_PACK_CACHE_FREE_BYTES (UINT64_C(1) << 30)

/* folder: made where it is not there; NULL or max_bytes 0: no cache. */
void gd_pack_cache_configure(const char *folder, uint64_t max_bytes);
bool gd_pack_cache_on(void);
const char *gd_pack_cache_folder(void); /* NULL: there is none */

/* what: the weight and its use. False: there is none, or none that is sound. */
bool gd_pack_cache_load(struct gd_gemm_packed **out, const char *what, int64_t k, int64_t n, enum gd_dtype dtype);
void gd_pack_cache_store(const struct gd_gemm_packed *packed, const char *what, int64_t k, int64_t n, enum gd_dtype dtype);

struct gd_pack_cache_stats {
    int64_t loaded, stored, unsound, evicted;
    uint64_t bytes;              /* in the folder, as far as this process knows */
};
struct gd_pack_cache_stats gd_pack_cache_get_stats(void);

#endif
