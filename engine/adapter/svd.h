/*
 * svd.h - singular values and some of the singular vectors of a weight.
 *
 * Why      Adapters that start from the base's own directions (PiSSA), or leave some out (KaSA), need them exactly and
 *          the same on every machine run.
 * Memory   Results are the caller's; three squares of the smaller side in double while it runs.
 * Threads  any; one matrix is worked on by one thread, so that many can be at once.
 * Errors   none
 * Limits   Work grows with the cube of the smaller side: about a second at 576, minutes at 4096. The Gram matrix in double
 *          keeps values down to 1e-8 of the largest.
 * Life     none
 */
#ifndef GD_ADAPTER_SVD_H
#define GD_ADAPTER_SVD_H

#include "engine/adapter/adapter.h"

/* w [out, in] = sum_i sigma[i] u_i v_i^T, sigma falling. sigma: all min(out, in) of them; u: [count, out] and v: [count, in] of
 * the triplets from `first` on, as rows of unit length, of which the longer is zero where sigma vanishes. */
void gd_singular_triplets(const float *w, int64_t out, int64_t in, int64_t first, int64_t count, double *sigma, float *u,
                          float *v);

/* Calls `module` for each linear site that the graft touches, on as many threads as there are and 4 GiB allow; asks
 * graft->between now and then. */
void gd_svd_each(const struct gd_graft *graft, float *block,
                 void (*module)(const struct gd_graft *graft, const struct gd_site *site, float *block));

/* Eigenvalues of the symmetric a [n, n] in rising order, and rows of `vectors` [n, n] that are their unit eigenvectors. Destroys a. */
void gd_symmetric_eigen(double *a, int64_t n, double *values, double *vectors);

#endif
