/*
 * blas.h - cuBLASLt's functions, found when a device is opened.
 *
 * Why      The library is large and not everywhere: a CUDA build starts without it and says what is missing.
 * Memory   The library stays loaded.
 * Threads  engine thread
 * Errors   GD_UNSUPPORTED naming the file that was looked for.
 * Limits   the major version of the header that was compiled against
 * Life     process
 */
#ifndef GD_CUDA_BLAS_H
#define GD_CUDA_BLAS_H

#include "engine/base/error.h"
#include <cublasLt.h>

#define GD_BLAS_LIST(X)            \
    X(cublasLtCreate)              \
    X(cublasLtGetVersion)          \
    X(cublasLtGetStatusString)     \
    X(cublasLtMatmul)              \
    X(cublasLtMatmulAlgoCheck)     \
    X(cublasLtMatmulAlgoGetHeuristic) \
    X(cublasLtMatmulDescCreate)    \
    X(cublasLtMatmulDescDestroy)   \
    X(cublasLtMatmulDescSetAttribute) \
    X(cublasLtMatmulPreferenceCreate) \
    X(cublasLtMatmulPreferenceDestroy) \
    X(cublasLtMatmulPreferenceSetAttribute) \
    X(cublasLtMatrixLayoutCreate)  \
    X(cublasLtMatrixLayoutDestroy) \
    X(cublasLtMatrixLayoutSetAttribute)

struct gd_blas {
#define GD_BLAS_FIELD(name) __typeof__(&name) name;
    GD_BLAS_LIST(GD_BLAS_FIELD)
#undef GD_BLAS_FIELD
};

GD_MUST_CHECK bool gd_blas_load(struct gd_blas *blas, struct gd_error *err);

#endif
