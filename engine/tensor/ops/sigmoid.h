/*
 * sigmoid.h - exp and the logistic function as plain arithmetic, so that loops over them vectorise.
 *
 * Why      Calls of libm keep a loop scalar; the polynomial is accurate to 2e-7 relative.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   exp is 0 below -87.3 and inf above 88.7; NaN stays NaN.
 * Life     none
 */
#ifndef GD_TENSOR_OPS_SIGMOID_H
#define GD_TENSOR_OPS_SIGMOID_H

#include "engine/tensor/kernel.h"
#include <math.h>

/* e^x = 2^n 2^f, n = round(x log2 e), f in [-1/2, 1/2] (Cephes' exp2f polynomial). */
GD_INLINE float gd_exp(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    float bounded = x < -100.0f ? -100.0f : x > 100.0f ? 100.0f : x;
    float shifted = bounded * 1.44269504088896341f + magic, n = shifted - magic;
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f; /* x - n ln 2 in two steps */
    float f = r * 1.44269504088896341f;
    float p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    uint32_t bits, power;
    memcpy(&power, &shifted, sizeof(power));
    memcpy(&bits, &p, sizeof(bits));
    bits += (power - 0x4B400000u) << 23;
    float result;
    memcpy(&result, &bits, sizeof(result));
    result = x < -87.3f ? 0.0f : result;
    result = x > 88.7f ? INFINITY : result;
    return x != x ? x : result;
}

GD_INLINE float gd_sigmoid(float x)
{
    return 1.0f / (1.0f + gd_exp(-x));
}

#endif
