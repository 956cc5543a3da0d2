/*
 * The few functions of cuBLASLt that cuda/gemm.c calls, on a plain product of the CPU. What the library would crash on, compute
 * wrongly or refuse is an error here: shapes that do not fit, operands that do not lie wholly in device memory or are less
 * aligned than was said, an algorithm found for another shape, a workspace that is too small or that another product takes meanwhile.
 */
#include "tests/cuda/emu.h"
#include "tests/cuda/fake.h"
#include <cublasLt.h>
#include <dnnl.h>
#include <memory>
#include <string.h>
#include <vector>

namespace {

struct desc {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
};

struct layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld;
    int32_t batch;
    int64_t stride;
};

struct preference {
    uint64_t workspace;
    uint32_t align_a, align_b, align_c, align_d, reduction;
};

/* What an algorithm remembers of what it was found for (64 bytes are there). */
struct algorithm {
    uint32_t magic, index;
    uint64_t shape;
    uint32_t align[4];
    uint64_t workspace;
};
static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm is larger than the library's");

const uint32_t magic = 0x600DA190;

uint32_t last_algorithm;

template <class T, class P> T *mine(P *pointer)
{
    return reinterpret_cast<T *>(pointer);
}

uint64_t mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * UINT64_C(0x9E3779B97F4A7C15) ^ hash >> 29;
}

uint64_t mix_layout(uint64_t hash, const layout &l)
{
    for (uint64_t value : {(uint64_t)l.type, l.rows, l.columns, (uint64_t)l.ld, (uint64_t)l.batch, (uint64_t)l.stride})
        hash = mix(hash, value);
    return hash;
}

uint64_t shape_of(const desc &form, const layout &a, const layout &b, const layout &c, const layout &d)
{
    uint64_t hash = mix(mix(mix(mix(1, form.compute), form.a), form.b), form.epilogue);
    return mix_layout(mix_layout(mix_layout(mix_layout(hash, a), b), c), d);
}

size_t item(cudaDataType_t type)
{
    return type == CUDA_R_16BF ? 2 : 4;
}

size_t span(const layout &l)
{
    return ((size_t)(l.batch - 1) * (size_t)l.stride + (size_t)(l.columns - 1) * (size_t)l.ld + l.rows) * item(l.type);
}

bool sound(const layout &l)
{
    return (l.type == CUDA_R_16BF || l.type == CUDA_R_32F) && l.rows > 0 && l.columns > 0 && l.ld >= (int64_t)l.rows && l.batch > 0;
}

/* M, N, K as the library has them. */
bool fits(const desc &form, const layout &a, const layout &b, const layout &c, const layout &d)
{
    uint64_t m = form.a == CUBLAS_OP_N ? a.rows : a.columns, k = form.a == CUBLAS_OP_N ? a.columns : a.rows;
    uint64_t n = form.b == CUBLAS_OP_N ? b.columns : b.rows, k_b = form.b == CUBLAS_OP_N ? b.rows : b.columns;
    return sound(a) && sound(b) && sound(c) && sound(d) && k == k_b && d.rows == m && d.columns == n && c.rows == m && c.columns == n &&
           a.type == b.type && c.type == d.type && (a.type == CUDA_R_16BF || c.type == CUDA_R_32F) && a.batch == b.batch &&
           a.batch == d.batch && c.batch == d.batch && form.compute == CUBLAS_COMPUTE_32F && form.scale == CUDA_R_32F &&
           (form.epilogue == CUBLASLT_EPILOGUE_DEFAULT || (form.epilogue == CUBLASLT_EPILOGUE_BIAS && form.bias != nullptr));
}

float load(const char *data, cudaDataType_t type, size_t i)
{
    if (type == CUDA_R_32F) {
        float value;
        memcpy(&value, data + i * 4, 4);
        return value;
    }
    bf16 value;
    memcpy(&value, data + i * 2, 2);
    return to_f32(value);
}

void store(char *data, cudaDataType_t type, size_t i, float value)
{
    if (type == CUDA_R_32F) {
        memcpy(data + i * 4, &value, 4);
        return;
    }
    bf16 rounded = to_bf16(value);
    memcpy(data + i * 2, &rounded, 2);
}

/* A matrix of columns as floats, tight. */
std::vector<float> floats(const layout &l, const void *data, int32_t batch)
{
    std::vector<float> out(l.rows * l.columns);
    for (uint64_t j = 0; j < l.columns; j++)
        for (uint64_t i = 0; i < l.rows; i++)
            out[j * l.rows + i] = load((const char *)data, l.type, (size_t)batch * (size_t)l.stride + j * (size_t)l.ld + i);
    return out;
}

struct product {
    desc form;
    layout a, b, c, d;
    const void *a_data, *b_data, *c_data;
    void *d_data, *workspace;
    size_t workspace_bytes;
    float alpha, beta;
    uint64_t token;                  /* lies in the workspace while the product is under way */
};

bool read_columns(const layout &l, const void *data)
{
    for (int32_t batch = 0; batch < l.batch; batch++)
        for (uint64_t j = 0; j < l.columns; j++)
            if (!emu_device_read((const char *)data + ((size_t)batch * (size_t)l.stride + j * (size_t)l.ld) * item(l.type),
                                 l.rows * item(l.type), "cublasLtMatmul"))
                return false;
    return true;
}

bool write_columns(const layout &l, void *data)
{
    for (int32_t batch = 0; batch < l.batch; batch++)
        for (uint64_t j = 0; j < l.columns; j++)
            if (!emu_device_write((char *)data + ((size_t)batch * (size_t)l.stride + j * (size_t)l.ld) * item(l.type), l.rows * item(l.type),
                                  "cublasLtMatmul"))
                return false;
    return true;
}

/* What a product has in its workspace is its own until it ends: steps of other streams come between. */
bool begin(product &p)
{
    static uint64_t tokens;
    if (p.workspace_bytes == 0)
        return true;
    if (!emu_device_write(p.workspace, p.workspace_bytes, "cublasLtMatmul's workspace"))
        return false;
    memset(p.workspace, 0xFF, p.workspace_bytes);
    p.token = ++tokens;
    memcpy(p.workspace, &p.token, sizeof(p.token));
    return true;
}

bool still_mine(const product &p)
{
    if (p.workspace_bytes == 0 || memcmp(p.workspace, &p.token, sizeof(p.token)) == 0)
        return true;
    emu_report("cublasLtMatmul: another stream wrote into the workspace while the product was under way");
    return false;
}

/* dnnl_sgemm thinks in rows: of columns, the operands change places once more. */
bool compute(const product &p)
{
    if (!still_mine(p) || !read_columns(p.a, p.a_data) || !read_columns(p.b, p.b_data) || (p.beta != 0.0f && !read_columns(p.c, p.c_data)) ||
        !write_columns(p.d, p.d_data) ||
        (p.form.bias != nullptr && !emu_device_read(p.form.bias, p.d.rows * item(p.d.type), "cublasLtMatmul's bias")))
        return false;
    dnnl_dim_t m = (dnnl_dim_t)p.d.rows, n = (dnnl_dim_t)p.d.columns;
    dnnl_dim_t k = (dnnl_dim_t)(p.form.a == CUBLAS_OP_N ? p.a.columns : p.a.rows);
    for (int32_t batch = 0; batch < p.d.batch; batch++) {
        std::vector<float> a = floats(p.a, p.a_data, batch), b = floats(p.b, p.b_data, batch), sum((size_t)(m * n));
        dnnl_sgemm(p.form.b == CUBLAS_OP_N ? 'N' : 'T', p.form.a == CUBLAS_OP_N ? 'N' : 'T', n, m, k, 1.0f, b.data(), (dnnl_dim_t)p.b.rows,
                   a.data(), (dnnl_dim_t)p.a.rows, 0.0f, sum.data(), m);
        for (dnnl_dim_t j = 0; j < n; j++)
            for (dnnl_dim_t i = 0; i < m; i++) {
                size_t at_d = (size_t)batch * (size_t)p.d.stride + (size_t)j * (size_t)p.d.ld + (size_t)i;
                size_t at_c = (size_t)batch * (size_t)p.c.stride + (size_t)j * (size_t)p.c.ld + (size_t)i;
                float value = p.alpha * sum[(size_t)(j * m + i)];
                if (p.beta != 0.0f)
                    value += p.beta * load((const char *)p.c_data, p.c.type, at_c);
                if (p.form.bias != nullptr)
                    value += load((const char *)p.form.bias, p.d.type, (size_t)i);
                store((char *)p.d_data, p.d.type, at_d, value);
            }
    }
    return true;
}

bool lies_in_memory(const void *data, size_t bytes, const char *name)
{
    void *start;
    size_t size;
    if (emu_device_find(data, &start, &size) != nullptr && (size_t)((const char *)data - (const char *)start) + bytes <= size)
        return true;
    emu_report("cublasLtMatmul: %s, %zu bytes, does not lie wholly in one allocation of the device", name, bytes);
    return false;
}

/* All matrices of a batch. */
bool aligned(const layout &l, const void *data, uint32_t bytes, const char *name)
{
    size_t apart = l.batch > 1 ? (size_t)l.stride * item(l.type) : 0;
    if (((uintptr_t)data | apart) % bytes == 0)
        return true;
    emu_report("cublasLtMatmul: %s is not aligned to the %u bytes that its algorithm was chosen for", name, bytes);
    return false;
}

} // namespace

extern "C" {

uint32_t fake_blas_last_algorithm(void)
{
    return last_algorithm;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    if (fake_blas_fault("cublasLtCreate"))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    static int one;
    *handle = reinterpret_cast<cublasLtHandle_t>(&one);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale)
{
    *out = reinterpret_cast<cublasLtMatmulDesc_t>(new desc{compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete mine<desc>(d);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t which, const void *value, size_t size)
{
    desc &form = *mine<desc>(d);
    cublasOperation_t op;
    if (which == CUBLASLT_MATMUL_DESC_EPILOGUE && size == sizeof(form.epilogue)) {
        memcpy(&form.epilogue, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }
    if (which == CUBLASLT_MATMUL_DESC_BIAS_POINTER && size == sizeof(form.bias)) {
        memcpy(&form.bias, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }
    if (size != sizeof(op) || (which != CUBLASLT_MATMUL_DESC_TRANSA && which != CUBLASLT_MATMUL_DESC_TRANSB))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&op, value, size);
    (which == CUBLASLT_MATMUL_DESC_TRANSA ? form.a : form.b) = op;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld)
{
    *out = reinterpret_cast<cublasLtMatrixLayout_t>(new layout{type, rows, columns, ld, 1, 0});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete mine<layout>(l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t which, const void *value, size_t size)
{
    if (which == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT && size == sizeof(int32_t))
        memcpy(&mine<layout>(l)->batch, value, size);
    else if (which == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET && size == sizeof(int64_t))
        memcpy(&mine<layout>(l)->stride, value, size);
    else
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    *out = reinterpret_cast<cublasLtMatmulPreference_t>(new preference{0, 256, 256, 256, 256, CUBLASLT_REDUCTION_SCHEME_MASK});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete mine<preference>(p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t which, const void *value,
                                                    size_t size)
{
    preference &own = *mine<preference>(p);
    if (which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && size == sizeof(uint64_t)) {
        memcpy(&own.workspace, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }
    uint32_t *field = which == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES   ? &own.align_a
                      : which == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES ? &own.align_b
                      : which == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES ? &own.align_c
                      : which == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES ? &own.align_d
                      : which == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK ? &own.reduction
                                                                            : nullptr;
    if (field == nullptr || size != sizeof(*field))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out, cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *count)
{
    const preference &own = *mine<preference>(p);
    *count = 0;
    if (fake_blas_fault("cublasLtMatmulAlgoGetHeuristic"))
        return CUBLAS_STATUS_INTERNAL_ERROR;
    if (!fits(*mine<desc>(d), *mine<layout>(a), *mine<layout>(b), *mine<layout>(c), *mine<layout>(out)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const uint64_t workspaces[] = {UINT64_C(4) << 10, 0, UINT64_C(1) << 20};
    for (uint32_t i = 0; i < 3 && *count < wanted; i++) {
        if (workspaces[i] > own.workspace)
            continue;
        algorithm algorithm = {magic, i, shape_of(*mine<desc>(d), *mine<layout>(a), *mine<layout>(b), *mine<layout>(c), *mine<layout>(out)),
                               {own.align_a, own.align_b, own.align_c, own.align_d}, workspaces[i]};
        cublasLtMatmulHeuristicResult_t &result = results[(*count)++];
        memset(&result, 0, sizeof(result));
        memcpy(&result.algo, &algorithm, sizeof(algorithm));
        result.workspaceSize = workspaces[i];
        result.state = CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out, const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result)
{
    algorithm chosen;
    memcpy(&chosen, algo, sizeof(chosen));
    if (chosen.magic != magic ||
        chosen.shape != shape_of(*mine<desc>(d), *mine<layout>(a), *mine<layout>(b), *mine<layout>(c), *mine<layout>(out)))
        return CUBLAS_STATUS_INVALID_VALUE;
    memset(result, 0, sizeof(*result));
    result->workspaceSize = chosen.workspace;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout,
                              const void *b, cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *out, cublasLtMatrixLayout_t out_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    if (fake_blas_fault("cublasLtMatmul"))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    auto p = std::make_shared<product>(product{*mine<desc>(d), *mine<layout>(a_layout), *mine<layout>(b_layout), *mine<layout>(c_layout),
                                               *mine<layout>(out_layout), a, b, c, out, workspace, 0, 0.0f, 0.0f, 0});
    memcpy(&p->alpha, alpha, sizeof(float));
    memcpy(&p->beta, beta, sizeof(float));
    if (!fits(p->form, p->a, p->b, p->c, p->d))
        return CUBLAS_STATUS_INVALID_VALUE;
    algorithm chosen;
    memcpy(&chosen, algo, sizeof(chosen));
    if (chosen.magic != magic || chosen.shape != shape_of(p->form, p->a, p->b, p->c, p->d)) {
        emu_report("cublasLtMatmul: the algorithm was found for another shape");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (chosen.workspace > workspace_bytes) {
        emu_report("cublasLtMatmul: the algorithm needs %zu bytes of workspace, there are %zu", (size_t)chosen.workspace, workspace_bytes);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    p->workspace_bytes = chosen.workspace;
    last_algorithm = chosen.index;
    if (!lies_in_memory(a, span(p->a), "operand A") || !lies_in_memory(b, span(p->b), "operand B") ||
        (p->beta != 0.0f && !lies_in_memory(c, span(p->c), "operand C")) || !lies_in_memory(out, span(p->d), "the result") ||
        (chosen.workspace > 0 && !lies_in_memory(workspace, chosen.workspace, "the workspace")) ||
        !aligned(p->a, a, chosen.align[0], "operand A") || !aligned(p->b, b, chosen.align[1], "operand B") ||
        (p->beta != 0.0f && !aligned(p->c, c, chosen.align[2], "operand C")) || !aligned(p->d, out, chosen.align[3], "the result"))
        return CUBLAS_STATUS_INVALID_VALUE;
    return (chosen.workspace == 0 || fake_blas_put(stream, "product", [p] { return begin(*p); })) &&
                   fake_blas_put(stream, "product", [p] { return compute(*p); })
               ? CUBLAS_STATUS_SUCCESS
               : CUBLAS_STATUS_EXECUTION_FAILED;
}

} // extern "C"
