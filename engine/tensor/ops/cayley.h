/*
 * cayley.h - the small dense matrices behind cayley and cayley_grad.
 *
 * Why      Both need the same powers or the same inverse.
 * Memory   Scratch of the op.
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   GD_CAYLEY_TERMS_MAX
 * Life     none
 */
#ifndef GD_TENSOR_OPS_CAYLEY_H
#define GD_TENSOR_OPS_CAYLEY_H

#include "engine/tensor/cayley.h"
#include "engine/tensor/kernel.h"

#define GD_CAYLEY_TERMS_MAX 64

/* c (+)= op(a) op(b), n x n, without aliasing. */
GD_INLINE void gd_square_product(const double *restrict a, bool transpose_a, const double *restrict b, bool transpose_b, int64_t n,
                                 bool add, double *restrict c)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n && !add; j++)
            c[i * n + j] = 0;
        for (int64_t k = 0; k < n; k++) {
            double factor = transpose_a ? a[k * n + i] : a[i * n + k];
            if (transpose_b)
                for (int64_t j = 0; j < n; j++)
                    c[i * n + j] += factor * b[j * n + k];
            else
                for (int64_t j = 0; j < n; j++)
                    c[i * n + j] += factor * b[k * n + j];
        }
    }
}

/* The coefficient of Q^k in the series, and its highest power. */
static inline int gd_cayley_degree(int terms)
{
    return terms == 2 ? 1 : terms == 3 ? 3 : terms - 1;
}

static inline double gd_cayley_coefficient(int terms, int k)
{
    return k == 0 || (k == gd_cayley_degree(terms) && terms > 2) ? 1.0 : 2.0;
}

GD_INLINE void gd_cayley_unpack(const float *packed, int64_t n, double *q)
{
    for (int64_t i = 0, k = 0; i < n; i++) {
        q[i * n + i] = 0;
        for (int64_t j = i + 1; j < n; j++, k++) {
            q[i * n + j] = (double)packed[k];
            q[j * n + i] = -(double)packed[k];
        }
    }
}

/* The series by Horner's rule: s_d = c_d I, s_k = c_k I + Q s_(k+1); s_0 to r. kept: the others, s_1 first, or NULL. work: a square. */
GD_INLINE void gd_cayley_series(const double *q, int64_t n, int terms, double *r, double *work, double *kept)
{
    int degree = gd_cayley_degree(terms);
    int64_t count = n * n;
    for (int64_t i = 0; i < count; i++)
        r[i] = i % (n + 1) == 0 ? gd_cayley_coefficient(terms, degree) : 0;
    for (int k = degree - 1; k >= 0; k--) {
        if (kept != NULL)
            memcpy(kept + k * count, r, (size_t)count * sizeof(double));
        gd_square_product(q, false, r, false, n, false, work);
        memcpy(r, work, (size_t)count * sizeof(double));
        for (int64_t i = 0; i < n; i++)
            r[i * n + i] += gd_cayley_coefficient(terms, k);
    }
}

/* (I + Q)^-1 by Gauss and Jordan, to r; I + Q has no eigenvalue smaller than 1 in modulus. work: a square. */
GD_INLINE void gd_cayley_exact(const double *q, int64_t n, double *r, double *work)
{
    for (int64_t i = 0; i < n * n; i++) {
        r[i] = i % (n + 1) == 0;
        work[i] = q[i] + r[i];
    }
    for (int64_t k = 0; k < n; k++) {
        double pivot = 1 / work[k * n + k]; /* the symmetric part stays positive: no exchange of rows is needed */
        for (int64_t j = 0; j < n; j++) {
            work[k * n + j] *= pivot;
            r[k * n + j] *= pivot;
        }
        for (int64_t i = 0; i < n; i++) {
            double factor = work[i * n + k];
            for (int64_t j = 0; j < n && i != k; j++) {
                work[i * n + j] -= factor * work[k * n + j];
                r[i * n + j] -= factor * r[k * n + j];
            }
        }
    }
}

#endif
