/*
 * gemm.h - matrix products on the CPU; the one place that knows oneDNN.
 *
 * Why      The library picks AVX2, AVX-512, VDPBF16PS or AMX at run time and likes its right operand packed.
 * Memory   gd_gemm_packed owns its packed copy; primitives and their scratch are kept for the process.
 * Threads  the engine thread, whose products all threads share; or threads of a parallel region that called omp_set_num_threads(1),
 *          each with products of its own (gd_gemm_run, gd_gemm_run_packed)
 * Errors   GD_NO_MEMORY for the packed copy; GD_INTERNAL with the library's status.
 * Limits   F32 and BF16 operands; sums in f32. A row of c is computed from that row of a alone, in an order that does not depend
 *          on how many rows there are: jobs that share a pass rely on it (rows_alone.h looks), whatever kernel stands here.
 * Life     process
 */
#ifndef GD_TENSOR_GEMM_H
#define GD_TENSOR_GEMM_H

#include "engine/base/fsio.h"
#include "engine/tensor/tensor.h"

/* c[M, N] (+)= alpha * op(a)[M, K] op(b)[K, N]; a and b in one dtype, row-major, transposed ones stored [K, M], [N, K]. */
struct gd_gemm {
    int64_t m, n, k;
    bool transpose_a, transpose_b;
    enum gd_dtype in, out;      /* BF16 in may give F32 or BF16 out; F32 gives F32 */
    bool accumulate;            /* c += instead of c = */
    float alpha;
    int64_t lda, ldc;           /* elements from row to row of a and c; 0: rows touch */
};
GD_MUST_CHECK bool gd_gemm_run(const struct gd_gemm *gemm, const void *a, const void *b, void *c, struct gd_error *err);

/* A right operand [K, N] in the library's own layout. */
struct gd_gemm_packed;
/* Bytes of the packed copy; 0 if the library refuses the shape. */
size_t gd_gemm_packed_bytes(int64_t k, int64_t n, enum gd_dtype dtype);
/* b: [K, N], or [N, K] when transposed, in `dtype`. */
GD_MUST_CHECK bool gd_gemm_pack(struct gd_gemm_packed **out, int64_t k, int64_t n, enum gd_dtype dtype, const void *b,
                                bool transposed, const char *what, struct gd_error *err);
void gd_gemm_packed_destroy(struct gd_gemm_packed *packed);
/* How packed copies of this shape lie in memory here, with the library's version and the instruction set: where this text is the
 * same, the bytes of one matrix are. False: the layout is more than strides and blocks. */
bool gd_gemm_packed_layout(int64_t k, int64_t n, enum gd_dtype dtype, char *text, size_t size);
const void *gd_gemm_packed_data(const struct gd_gemm_packed *packed);
size_t gd_gemm_packed_size(const struct gd_gemm_packed *packed);
/* Such bytes in a file, from `offset` on. Takes the map over, on failure too. */
GD_MUST_CHECK bool gd_gemm_packed_map(struct gd_gemm_packed **out, int64_t k, int64_t n, enum gd_dtype dtype, struct gd_map *map, size_t offset,
                                      struct gd_error *err);
/* c[rows, N] (+)= a[rows, K] * packed */
GD_MUST_CHECK bool gd_gemm_run_packed(const struct gd_gemm_packed *packed, const void *a, void *c, enum gd_dtype out,
                                      int64_t rows, bool accumulate, struct gd_error *err);

/* An inner size that the library multiplies at full speed, the least of at least k: AMX takes 32 bf16 numbers at a time, and what is
 * shorter goes another, several times slower way. */
int64_t gd_gemm_depth(int64_t k, enum gd_dtype dtype);

/* What the library will use here: "amx_bf16", "avx512_bf16", "avx512", "avx2", "generic". */
const char *gd_gemm_isa(void);

#endif
