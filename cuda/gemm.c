/*
 * Row-major C = op(A) op(B) is, to a library that thinks in columns, C^T = op(B)^T op(A)^T: the operands change places.
 *
 * Algorithms are tried against each other only where the outcome is kept on disk: a job that goes on after a restart must meet the
 * same sums. Elsewhere the library's first choice is taken, which is always the same.
 */
#include "cuda/gemm.h"
#include "cuda/blas.h"
#include "cuda/internal.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/tensor/pack_cache.h"
#include <assert.h>
#include <fcntl.h>
#include <float.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#ifdef GD_CUDA_EMULATED
#define WORKSPACE ((size_t)1 << 20)
#else
#define WORKSPACE ((size_t)32 << 20)
#endif
#define CANDIDATES 8
#define TRIES 3

struct shape {                   /* what an algorithm is chosen for; no padding */
    int64_t m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c;
    int32_t transpose_a, transpose_b, in, out, accumulate, align_a, align_b, align_c, bias, align_bias;
};

struct choice {
    struct choice *next;
    struct shape shape;
    cublasLtMatmulAlgo_t algorithm;
    bool unchecked;              /* from the file */
};

struct product {                 /* the library's descriptions of one call */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
};

#define BUCKETS 1024
static struct {
    struct gd_blas lt;
    cublasLtHandle_t handle;
    void *workspace[GD_CUDA_LANES];
    cudaEvent_t begin, end;
    struct choice *buckets[BUCKETS];
    char *file;                  /* where choices are kept; NULL: nowhere */
    char card[96];               /* begins each line: device, library */
    bool read;
} blas;

static bool check(cublasStatus_t status, const char *call, const struct shape *s, struct gd_error *err)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return true;
    char what[160];
    snprintf(what, sizeof(what), "a product [%" PRId64 ", %" PRId64 "] of %" PRId64 " (%s to %s, batch %" PRId64 ")", s->m, s->n, s->k,
             gd_dtype_name((enum gd_dtype)s->in), gd_dtype_name((enum gd_dtype)s->out), s->batch);
    if (!gd_cuda_check(cudaPeekAtLastError(), call, what, err))
        return false;
    return gd_fail(err, status == CUBLAS_STATUS_ALLOC_FAILED ? GD_NO_MEMORY : GD_INTERNAL, "%s for %s: %s", call, what,
                   blas.lt.cublasLtGetStatusString(status));
}

bool gd_cuda_gemm_open(const char *card, struct gd_error *err)
{
    if (!gd_blas_load(&blas.lt, err))
        return false;
    snprintf(blas.card, sizeof(blas.card), "%.64s/%zu", card, blas.lt.cublasLtGetVersion());
    for (char *c = blas.card; *c != '\0'; c++)
        *c = *c == ' ' ? '_' : *c;
    cublasStatus_t status = blas.lt.cublasLtCreate(&blas.handle);
    if (status != CUBLAS_STATUS_SUCCESS)
        return gd_fail_param(err, GD_UNSUPPORTED, "device", "cublasLtCreate: %s", blas.lt.cublasLtGetStatusString(status));
    for (int lane = 0; lane < GD_CUDA_LANES; lane++)
        if (!gd_cuda_alloc(&blas.workspace[lane], WORKSPACE, "the workspace of products", err))
            return false;
    return gd_cuda_check(cudaEventCreate(&blas.begin), "cudaEventCreate", "timing products", err) &&
           gd_cuda_check(cudaEventCreate(&blas.end), "cudaEventCreate", "timing products", err);
}

/* ---- descriptions ---- */

static cudaDataType_t type_of(enum gd_dtype dtype)
{
    return dtype == GD_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Of all matrices of a batch, `stride` elements apart. */
static int32_t alignment(const void *data, int64_t stride, enum gd_dtype dtype)
{
    uintptr_t bits = (uintptr_t)data | (uintptr_t)gd_dtype_bytes(dtype, stride) | 256;
    return (int32_t)(bits & -bits);
}

/* [rows, columns] of row length ld, as the library sees it: columns by rows. */
static bool make_layout(cublasLtMatrixLayout_t *out, const struct shape *s, enum gd_dtype dtype, int64_t rows, int64_t columns, int64_t ld,
                        int64_t stride, struct gd_error *err)
{
    int32_t batch = (int32_t)s->batch;
    return check(blas.lt.cublasLtMatrixLayoutCreate(out, type_of(dtype), (uint64_t)columns, (uint64_t)rows, ld), "cublasLtMatrixLayoutCreate", s, err) &&
           (batch == 1 ||
            (check(blas.lt.cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof(batch)),
                   "cublasLtMatrixLayoutSetAttribute", s, err) &&
             check(blas.lt.cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)),
                   "cublasLtMatrixLayoutSetAttribute", s, err)));
}

static void product_release(struct product *p)
{
    if (p->desc != NULL)
        blas.lt.cublasLtMatmulDescDestroy(p->desc);
    if (p->a != NULL)
        blas.lt.cublasLtMatrixLayoutDestroy(p->a);
    if (p->b != NULL)
        blas.lt.cublasLtMatrixLayoutDestroy(p->b);
    if (p->c != NULL)
        blas.lt.cublasLtMatrixLayoutDestroy(p->c);
}

static bool set_transpose(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which, bool on, const struct shape *s, struct gd_error *err)
{
    cublasOperation_t op = on ? CUBLAS_OP_T : CUBLAS_OP_N;
    return check(blas.lt.cublasLtMatmulDescSetAttribute(desc, which, &op, sizeof(op)), "cublasLtMatmulDescSetAttribute", s, err);
}

/* In columns, a bias has a number for each row of the result. */
static bool set_bias(cublasLtMatmulDesc_t desc, const void *bias, const struct shape *s, struct gd_error *err)
{
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    return bias == NULL ||
           (check(blas.lt.cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)),
                  "cublasLtMatmulDescSetAttribute", s, err) &&
            check(blas.lt.cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)),
                  "cublasLtMatmulDescSetAttribute", s, err));
}

static bool product_create(struct product *p, const struct shape *s, const void *bias, struct gd_error *err)
{
    *p = (struct product){0};
    bool ok = check(blas.lt.cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate", s, err) &&
              set_transpose(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, s->transpose_b, s, err) &&
              set_transpose(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, s->transpose_a, s, err) && set_bias(p->desc, bias, s, err) &&
              make_layout(&p->a, s, (enum gd_dtype)s->in, s->transpose_b ? s->n : s->k, s->transpose_b ? s->k : s->n, s->ldb, s->stride_b, err) &&
              make_layout(&p->b, s, (enum gd_dtype)s->in, s->transpose_a ? s->k : s->m, s->transpose_a ? s->m : s->k, s->lda, s->stride_a, err) &&
              make_layout(&p->c, s, (enum gd_dtype)s->out, s->m, s->n, s->ldc, s->stride_c, err);
    if (!ok)
        product_release(p);
    return ok;
}

static bool multiply(const struct product *p, const struct shape *s, float alpha, const void *a, const void *b, const void *c, void *d,
                     const cublasLtMatmulAlgo_t *algorithm, struct gd_error *err)
{
    float beta = s->accumulate ? 1.0f : 0.0f;
    return check(blas.lt.cublasLtMatmul(blas.handle, p->desc, &alpha, b, p->a, a, p->b, &beta, c, p->c, d, p->c, algorithm,
                                        blas.workspace[gd_cuda_lane()], WORKSPACE, gd_cuda_stream()),
                 "cublasLtMatmul", s, err);
}

/* ---- choosing ---- */

static bool prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t which, const void *value, size_t size,
                   const struct shape *s, struct gd_error *err)
{
    return check(blas.lt.cublasLtMatmulPreferenceSetAttribute(preference, which, value, size), "cublasLtMatmulPreferenceSetAttribute", s, err);
}

/* What the library would take, best first as it thinks; parts of a split sum are added in f32 and in order. */
static bool candidates(const struct product *p, const struct shape *s, cublasLtMatmulHeuristicResult_t *found, int *count, struct gd_error *err)
{
    cublasLtMatmulPreference_t preference = NULL;
    size_t workspace = WORKSPACE;
    uint32_t a = (uint32_t)s->align_b, b = (uint32_t)s->align_a, c = (uint32_t)s->align_c, reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    bool ok = check(blas.lt.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate", s, err) &&
              prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace), s, err) &&
              prefer(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof(reduction), s, err) &&
              prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof(a), s, err) &&
              prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof(b), s, err) &&
              prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof(c), s, err) &&
              prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof(c), s, err) &&
              check(blas.lt.cublasLtMatmulAlgoGetHeuristic(blas.handle, p->desc, p->a, p->b, p->c, p->c, preference, CANDIDATES, found, count),
                    "cublasLtMatmulAlgoGetHeuristic", s, err);
    if (preference != NULL)
        blas.lt.cublasLtMatmulPreferenceDestroy(preference);
    if (ok && *count == 0)
        ok = check(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic", s, err);
    return ok;
}

/* Milliseconds of one turn, the best of a few; negative: it does not run. */
static float time_of(const struct product *p, const struct shape *s, const void *a, const void *b, const void *c, void *d,
                     const cublasLtMatmulAlgo_t *algorithm)
{
    struct gd_error ignored = {0};
    float best = -1.0f;
    for (int i = 0; i <= TRIES; i++) { /* the first warms up */
        float ms = 0.0f;
        if (cudaEventRecord(blas.begin, gd_cuda_stream()) != cudaSuccess || !multiply(p, s, 1.0f, a, b, c, d, algorithm, &ignored) ||
            cudaEventRecord(blas.end, gd_cuda_stream()) != cudaSuccess || cudaEventSynchronize(blas.end) != cudaSuccess ||
            cudaEventElapsedTime(&ms, blas.begin, blas.end) != cudaSuccess)
            return -1.0f;
        if (i > 0 && (best < 0.0f || ms < best))
            best = ms;
    }
    return best;
}

/* Into memory of its own: an accumulating product must not add up. Where there is none, the library's first is taken. */
static int fastest(const struct product *p, const struct shape *s, const void *a, const void *b, const void *c,
                   const cublasLtMatmulHeuristicResult_t *found, int count)
{
    struct gd_error ignored = {0};
    void *d = NULL;
    size_t bytes = gd_dtype_bytes((enum gd_dtype)s->out, (s->batch - 1) * s->stride_c + (s->m - 1) * s->ldc + s->n);
    int best = 0;
    float best_ms = FLT_MAX;
    if (count < 2 || !gd_cuda_alloc(&d, bytes, "trying a product", &ignored))
        return 0;
    for (int i = 0; i < count; i++) {
        float ms = time_of(p, s, a, b, c, d, &found[i].algo);
        if (ms >= 0.0f && ms < best_ms) {
            best_ms = ms;
            best = i;
        }
    }
    cudaStreamSynchronize(gd_cuda_stream());
    gd_cuda_free(d);
    return best;
}

static struct choice *known(const struct shape *s)
{
    struct choice *choice = blas.buckets[XXH3_64bits(s, sizeof(*s)) % BUCKETS];
    while (choice != NULL && memcmp(&choice->shape, s, sizeof(*s)) != 0)
        choice = choice->next;
    return choice;
}

static struct choice *add(const struct shape *s, const cublasLtMatmulAlgo_t *algorithm, bool unchecked)
{
    struct choice **bucket = &blas.buckets[XXH3_64bits(s, sizeof(*s)) % BUCKETS], *choice = gd_alloc(sizeof(*choice));
    *choice = (struct choice){.next = *bucket, .shape = *s, .algorithm = *algorithm, .unchecked = unchecked};
    *bucket = choice;
    return choice;
}

/* ---- kept: a line for each shape, "CARD SHAPE ALGORITHM" in hexadecimal ---- */

#define FILE_MOST ((size_t)8 << 20)
#define SHAPE_HEX (2 * sizeof(struct shape))
#define ALGORITHM_HEX (2 * sizeof(cublasLtMatmulAlgo_t))

static void to_hex(char *out, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        snprintf(out + 2 * i, 3, "%02x", ((const unsigned char *)data)[i]);
}

static bool from_hex(void *out, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned byte;
        if (sscanf(text + 2 * i, "%2x", &byte) != 1)
            return false;
        ((unsigned char *)out)[i] = (unsigned char)byte;
    }
    return true;
}

/* Whether what a file said can be used here. */
static bool sound(struct choice *choice, const struct product *p)
{
    cublasLtMatmulHeuristicResult_t result;
    if (choice->unchecked && (blas.lt.cublasLtMatmulAlgoCheck(blas.handle, p->desc, p->a, p->b, p->c, p->c, &choice->algorithm, &result) !=
                                  CUBLAS_STATUS_SUCCESS ||
                              result.workspaceSize > WORKSPACE))
        return false;
    choice->unchecked = false;
    return true;
}

/* Takes what the file says of all shapes that are not known, or of this choice's (`of`, for the product p). The first line for a shape
 * counts, also where several processes wrote one, so that each meets the same sums when it goes on after a restart. */
static void read_choices(struct choice *of, const struct product *p)
{
    struct gd_error ignored = {0};
    char *text = NULL;
    size_t length = 0, card = strlen(blas.card);
    if (blas.file == NULL || !gd_file_read(blas.file, FILE_MOST, &text, &length, &ignored))
        return;
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        struct choice read = {.unchecked = true};
        if ((size_t)(end - line) != card + 2 + SHAPE_HEX + ALGORITHM_HEX || memcmp(line, blas.card, card) != 0 ||
            !from_hex(&read.shape, line + card + 1, sizeof(read.shape)) ||
            !from_hex(&read.algorithm, line + card + 2 + SHAPE_HEX, sizeof(read.algorithm)))
            continue;
        if (of == NULL && known(&read.shape) == NULL)
            add(&read.shape, &read.algorithm, true);
        if (of != NULL && memcmp(&read.shape, &of->shape, sizeof(read.shape)) == 0 && sound(&read, p)) {
            of->algorithm = read.algorithm;
            break;
        }
    }
    gd_free(text);
}

static void keep_choice(const struct choice *choice)
{
    char line[sizeof(blas.card) + SHAPE_HEX + ALGORITHM_HEX + 8];
    size_t at = (size_t)snprintf(line, sizeof(line), "%s ", blas.card);
    to_hex(line + at, &choice->shape, sizeof(choice->shape));
    at += SHAPE_HEX;
    line[at++] = ' ';
    to_hex(line + at, &choice->algorithm, sizeof(choice->algorithm));
    at += ALGORITHM_HEX;
    line[at++] = '\n';
    int fd = open(blas.file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, line, at) != (ssize_t)at)
        gd_log_warn("cuda", "state=choice_not_kept file=%s", blas.file);
    if (fd >= 0)
        close(fd);
}

static void find_file(void)
{
    const char *asked = getenv("GRAFTD_PRODUCTS"), *folder = gd_pack_cache_folder();
    if (asked != NULL && asked[0] != '\0')
        blas.file = gd_strdup(asked);
    else if (folder != NULL)
        blas.file = gd_format("%s/cuda-products", folder);
}

static const cublasLtMatmulAlgo_t *choose(const struct product *p, const struct shape *s, const void *a, const void *b, const void *c,
                                          struct gd_error *err)
{
    if (!blas.read) {
        find_file();
        read_choices(NULL, NULL);
        blas.read = true;
    }
    struct choice *choice = known(s);
    if (choice != NULL && sound(choice, p))
        return &choice->algorithm;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int count = 0;
    if (!candidates(p, s, found, &count, err))
        return NULL;
    bool keep = blas.file != NULL && !gd_cuda_capturing();
    int best = keep ? fastest(p, s, a, b, c, found, count) : 0;
    if (choice == NULL)
        choice = add(s, &found[best].algo, false);
    choice->algorithm = found[best].algo;
    choice->unchecked = false;
    if (keep) {
        keep_choice(choice);
        read_choices(choice, p);
    }
    return &choice->algorithm;
}

static struct shape shape_of(const struct gd_cuda_gemm *gemm, const void *a, const void *b, const void *c)
{
    return (struct shape){
        .m = gemm->m, .n = gemm->n, .k = gemm->k,
        .lda = gemm->lda ? gemm->lda : gemm->transpose_a ? gemm->m : gemm->k,
        .ldb = gemm->ldb ? gemm->ldb : gemm->transpose_b ? gemm->k : gemm->n,
        .ldc = gemm->ldc ? gemm->ldc : gemm->n,
        .batch = gemm->batch ? gemm->batch : 1,
        .stride_a = gemm->stride_a, .stride_b = gemm->stride_b, .stride_c = gemm->stride_c,
        .transpose_a = gemm->transpose_a, .transpose_b = gemm->transpose_b,
        .in = gemm->in, .out = gemm->out, .accumulate = gemm->accumulate,
        .align_a = alignment(a, gemm->stride_a, gemm->in), .align_b = alignment(b, gemm->stride_b, gemm->in),
        .align_c = alignment(c, gemm->stride_c, gemm->out),
        .bias = gemm->bias != NULL, .align_bias = gemm->bias != NULL ? alignment(gemm->bias, 0, gemm->out) : 0,
    };
}

/* A sum of nothing. */
static bool zeros(const struct shape *s, void *c, struct gd_error *err)
{
    size_t item = gd_dtype_bytes((enum gd_dtype)s->out, 1);
    for (int64_t i = 0; i < s->batch && !s->accumulate; i++)
        if (!gd_cuda_check(cudaMemset2DAsync((char *)c + (size_t)(i * s->stride_c) * item, (size_t)s->ldc * item, 0, (size_t)s->n * item,
                                             (size_t)s->m, gd_cuda_stream()),
                           "cudaMemset2DAsync", "a product of nothing", err))
            return false;
    return true;
}

bool gd_cuda_gemm(const struct gd_cuda_gemm *gemm, const void *a, const void *b, void *c, struct gd_error *err)
{
    struct shape s = shape_of(gemm, a, b, c);
    if (s.m == 0 || s.n == 0 || gemm->batch < 0)
        return true;
    if (s.k == 0 && gemm->bias == NULL)
        return zeros(&s, c, err);
    if (s.k == 0 || (s.in != GD_F32 && s.in != GD_BF16) || (s.out != GD_F32 && s.out != GD_BF16) || (s.in == GD_F32 && s.out == GD_BF16))
        return check(CUBLAS_STATUS_NOT_SUPPORTED, "gd_cuda_gemm", &s, err);
    struct product p;
    if (!product_create(&p, &s, gemm->bias, err))
        return false;
    const cublasLtMatmulAlgo_t *algorithm = choose(&p, &s, a, b, c, err);
    bool ok = algorithm != NULL && multiply(&p, &s, gemm->alpha, a, b, c, c, algorithm, err);
    product_release(&p);
    return ok;
}
