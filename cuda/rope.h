/*
 * rope.h - the cosines and sines of a row's position, for kernels that rotate.
 *
 * Why      rope alone, and rope beside a norm of heads (norm_pair.cu), rotate by the same bits.
 * Memory   2 half floats of shared memory, the caller's
 * Threads  a block for each row
 * Errors   none
 * Limits   none
 * Life     none
 *
 * As on the CPU (ops/rope.c) the angle is rounded to f32, from there on double, with the period taken off in two parts, so that
 * positions of any size keep their digits.
 */
#ifndef GD_CUDA_ROPE_H
#define GD_CUDA_ROPE_H

#include "cuda/map.h"

/* How an op rope rotates (ops.h). */
struct gd_turn {
    const float *inv_freq;      /* the table of most rows; the one of long sequences is `second` floats behind */
    int64_t second;
    double factor, sign;
};

CU_FN void gd_angle_of(float *cosine, float *sine, float angle, double factor, double sign)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to an integer in the low bits */
    double shifted = (double)angle * 0.63661977236758134308 + magic, n = shifted - magic;
    double r = (double)angle - n * 1.57079632679489655800 - n * 6.12323399573676603587e-17, z = r * r;
    double s = r * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880)))));
    double c = 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z * (1.0 / 3628800)))));
    unsigned long long quadrant = (unsigned long long)__double_as_longlong(shifted);
    double x = quadrant & 1 ? s : c, y = quadrant & 1 ? c : s;
    *cosine = (float)(factor * ((quadrant + 1) & 2 ? -x : x));
    *sine = (float)(factor * sign * (quadrant & 2 ? -y : y));
}

/* For the position of this block's row; all threads of the block. */
CU_FN void gd_turn_angles(float *cosine, float *sine, const int32_t *positions, const struct gd_turn &turn, int64_t half)
{
    int32_t position = positions[blockIdx.x];
    const float *inv_freq = turn.inv_freq + (position & GD_POSITION_LONG ? turn.second : 0);
    for (int64_t d = threadIdx.x; d < half; d += blockDim.x)
        gd_angle_of(&cosine[d], &sine[d], (float)(position & ~GD_POSITION_LONG) * inv_freq[d], turn.factor, turn.sign);
    __syncthreads();
}

static inline struct gd_turn gd_turn_of(const struct gd_kernel_args *args)
{
    int64_t half = args->params->i[2], table = args->params->i[3];
    return gd_turn{(const float *)args->in[2].data + table * half, args->in[2].shape[0] / half > table + 1 ? half : 0, args->params->f[0],
                   (double)args->params->i[1]};
}

#endif
