/*
 * activation_math.h - the functions of activation.h and their slopes.
 *
 * Why      The training ops and the serving kernel compute the same numbers.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_OPS_ACTIVATION_MATH_H
#define GD_TENSOR_OPS_ACTIVATION_MATH_H

#include "engine/tensor/activation.h"
#include "engine/tensor/ops/sigmoid.h"

#define GD_SQRT_2_OVER_PI 0.7978845608028654f
#define GD_SQRT_HALF 0.7071067811865476f
#define GD_GELU_CUBE 0.044715f

GD_INLINE float gd_activate(enum gd_activation kind, float x)
{
    switch (kind) {
    case GD_ACTIVATION_RELU:
        return x < 0.0f ? 0.0f : x;
    case GD_ACTIVATION_GELU:
        return 0.5f * x * (1.0f + erff(x * GD_SQRT_HALF));
    case GD_ACTIVATION_GELU_NEW:
        return 0.5f * x * (1.0f + tanhf(GD_SQRT_2_OVER_PI * (x + GD_GELU_CUBE * x * x * x)));
    case GD_ACTIVATION_SILU:
        return x * gd_sigmoid(x);
    case GD_ACTIVATION_TANH:
        return tanhf(x);
    case GD_ACTIVATION_SIGMOID:
        return gd_sigmoid(x);
    case GD_ACTIVATION_LINEAR:
    case GD_ACTIVATION_COUNT:
        break;
    }
    return x;
}

/* d activate / d x; 0 at the kink of relu, as PyTorch has it. */
GD_INLINE float gd_activate_slope(enum gd_activation kind, float x)
{
    float s, inner;
    switch (kind) {
    case GD_ACTIVATION_RELU:
        return x > 0.0f ? 1.0f : 0.0f;
    case GD_ACTIVATION_GELU:
        return 0.5f * (1.0f + erff(x * GD_SQRT_HALF)) + 0.5f * GD_SQRT_2_OVER_PI * x * gd_exp(-0.5f * x * x);
    case GD_ACTIVATION_GELU_NEW:
        inner = tanhf(GD_SQRT_2_OVER_PI * (x + GD_GELU_CUBE * x * x * x));
        return 0.5f * (1.0f + inner) +
               0.5f * x * (1.0f - inner * inner) * GD_SQRT_2_OVER_PI * (1.0f + 3.0f * GD_GELU_CUBE * x * x);
    case GD_ACTIVATION_SILU:
        s = gd_sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    case GD_ACTIVATION_TANH:
        s = tanhf(x);
        return 1.0f - s * s;
    case GD_ACTIVATION_SIGMOID:
        s = gd_sigmoid(x);
        return s * (1.0f - s);
    case GD_ACTIVATION_LINEAR:
    case GD_ACTIVATION_COUNT:
        break;
    }
    return 1.0f;
}

/* The same in double, for references. */
static inline double gd_activate_reference(enum gd_activation kind, double x)
{
    switch (kind) {
    case GD_ACTIVATION_RELU:
        return x < 0 ? 0 : x;
    case GD_ACTIVATION_GELU:
        return 0.5 * x * (1 + erf(x / sqrt(2)));
    case GD_ACTIVATION_GELU_NEW:
        return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case GD_ACTIVATION_SILU:
        return x / (1 + exp(-x));
    case GD_ACTIVATION_TANH:
        return tanh(x);
    case GD_ACTIVATION_SIGMOID:
        return 1 / (1 + exp(-x));
    case GD_ACTIVATION_LINEAR:
    case GD_ACTIVATION_COUNT:
        break;
    }
    return x;
}

#endif
