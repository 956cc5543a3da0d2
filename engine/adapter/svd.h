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

#include "engine/model/site.h"

/* w [out, in] = sum_i sigma[i] u_i v_i^T, sigma falling. sigma: all min(out, in) of them; u: [count, out] and v: [count, in] of
 * the triplets from `first` on, as rows of unit length, of which the longer is zero where sigma vanishes. */
void gd_singular_triplets(const float *w, int64_t out, int64_t in, int64_t first, int64_t count, double *sigma, float *u,
                          float *v);

/* Of how many sites' weights at once: as many as there are threads, within 4 GiB. */
int gd_svd_threads(const struct gd_site *sites, int site_count);

/* Eigenvalues of the symmetric a [n, n] in rising order, and rows of `vectors` [n, n] that are their unit eigenvectors. Destroys a. */
void gd_symmetric_eigen(double *a, int64_t n, double *values, double *vectors);

#endif
