/*
 * cayley.h - rotations from skew-symmetric matrices.
 *
 * Why      Training and serving of orthogonal adapters make the same squares from the same parameters.
 * Memory   Of the caller.
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_CAYLEY_H
#define GD_TENSOR_CAYLEY_H

#include <stddef.h>
#include <stdint.h>

/* Doubles of scratch. */
static inline size_t gd_cayley_scratch(int64_t size)
{
    return 3 * (size_t)(size * size);
}

/* rotation [size, size] from the upper triangle of Q, row by row, packed: (I - Q)(I + Q)^-1 with terms 0; else the Neumann series
 * I + 2 Q + 2 Q^2 + ... whose last term, the power terms - 1 (but at least 3 where terms is over 2), counts once. Row vectors are
 * turned: x' = x rotation. */
void gd_cayley(const float *packed, int64_t size, int terms, float *rotation, double *scratch);

#endif
