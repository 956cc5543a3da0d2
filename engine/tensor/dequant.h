/*
 * dequant.h - blocks of quantised formats to f32 or to their codes, and f32 to NF4.
 *
 * Why      A frozen base may stay quantised in its file; every other layout is made from these values.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   The quantised dtypes of tensor.h.
 * Life     none
 */
#ifndef GD_TENSOR_DEQUANT_H
#define GD_TENSOR_DEQUANT_H

#include "engine/tensor/tensor.h"

/* NF4 (Dettmers et al. 2023, QLoRA, appendix E): 64 elements are f32 absmax, then 32 bytes of two codes each, the first one in
 * the high nibble; x = absmax * quantile[code]. Each element becomes the nearest of the sixteen. out: blocks * 36 bytes. */
void gd_quantise_nf4(void *out, const float *in, int64_t blocks);

/* out[blocks * gd_dtype_block(dtype)]; `in` needs no alignment. */
void gd_dequantise(float *out, const void *in, enum gd_dtype dtype, int64_t blocks);

/* GGUF's formats: parts of a block share a step, and x = step (q - offset), or step q + base where `based`. */
struct gd_block_form {
    int part;        /* elements of a part: 16 or 32 */
    int bits;        /* of q */
    int offset;
    bool based;
};
const struct gd_block_form *gd_block_form(enum gd_dtype dtype); /* NULL: none of them (NF4) */

struct gd_block_codes {
    uint8_t q[256];             /* of each element of the block */
    float step[16], base[16];   /* of each part; base: of forms that have one */
};
void gd_block_codes(struct gd_block_codes *codes, const void *block, enum gd_dtype dtype);

#endif
