/*
 * activation.h - the functions of engine/tensor/activation.h and their slopes, in kernels.
 *
 * Why      The training ops and the serving kernel compute the same numbers, those of engine/tensor/ops/activation_math.h.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_CUDA_ACTIVATION_H
#define GD_CUDA_ACTIVATION_H

#include "cuda/device.h"
extern "C" {
#include "engine/tensor/activation.h"
}

CU_FN float gd_cuda_sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

CU_FN float gd_cuda_gelu_inner(float x)
{
    return tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x));
}

CU_FN float gd_cuda_activate(enum gd_activation kind, float x)
{
    switch (kind) {
    case GD_ACTIVATION_RELU:
        return x < 0.0f ? 0.0f : x;
    case GD_ACTIVATION_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case GD_ACTIVATION_GELU_NEW:
        return 0.5f * x * (1.0f + gd_cuda_gelu_inner(x));
    case GD_ACTIVATION_SILU:
        return x * gd_cuda_sigmoid(x);
    case GD_ACTIVATION_TANH:
        return tanhf(x);
    case GD_ACTIVATION_SIGMOID:
        return gd_cuda_sigmoid(x);
    default:
        return x;
    }
}

/* d activate / d x; 0 at the kink of relu. */
CU_FN float gd_cuda_activate_slope(enum gd_activation kind, float x)
{
    float s;
    switch (kind) {
    case GD_ACTIVATION_RELU:
        return x > 0.0f ? 1.0f : 0.0f;
    case GD_ACTIVATION_GELU:
        return 0.5f * (1.0f + erff(x * 0.7071067811865476f)) + 0.3989422804014327f * x * expf(-0.5f * x * x);
    case GD_ACTIVATION_GELU_NEW:
        s = gd_cuda_gelu_inner(x);
        return 0.5f * (1.0f + s) + 0.5f * x * (1.0f - s * s) * 0.7978845608028654f * (1.0f + 3.0f * 0.044715f * x * x);
    case GD_ACTIVATION_SILU:
        s = gd_cuda_sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    case GD_ACTIVATION_TANH:
        s = tanhf(x);
        return 1.0f - s * s;
    case GD_ACTIVATION_SIGMOID:
        s = gd_cuda_sigmoid(x);
        return s * (1.0f - s);
    default:
        return 1.0f;
    }
}

#endif
