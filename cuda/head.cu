#include "cuda/head.h"

/* Logits of a chunk stay below this, within [CHUNK_MIN, CHUNK_MAX] rows. Each chunk passes once over the gradient of a trained
 * head: fewer and larger ones then. */
#define CHUNK_BYTES ((int64_t)256 << 20)
#define CHUNK_MIN 32
#define CHUNK_MAX 256
#define TRAINED_CHUNKS 3
#define ROW_STEP 32
#define THREADS 512 /* of a row */
#define BATCH 8     /* logits that a thread reads before it looks at them */
#define LISTERS 1024

namespace {

/* Scratch in order: how many rows have a label, which, h of a chunk, its gradient, logits, in bf16 the gradient of the logits, and
 * in bf16 a trained head as bf16. */
struct layout {
    int64_t chunk;
    size_t listed, h, dh, logits, dlogits, table, total;
};

struct layout layout_of(int64_t rows, int64_t width, int64_t vocab, bool narrow, bool trained, bool dh, bool dtable)
{
    size_t item = narrow ? 2 : 4, gradient = narrow && (dh || dtable) ? 2 : 0;
    int64_t times = dtable ? TRAINED_CHUNKS : 1, chunk = times * CHUNK_BYTES / (vocab * (int64_t)(4 + gradient)) / ROW_STEP * ROW_STEP;
    chunk = chunk < CHUNK_MIN ? CHUNK_MIN : chunk > times * CHUNK_MAX ? times * CHUNK_MAX : chunk;
    int64_t all = (rows + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
    struct layout at = {};
    at.chunk = chunk < all ? chunk : all;
    size_t n = (size_t)at.chunk, chunk_bytes = (n * (size_t)width * item + 63) / 64 * 64;
    at.listed = 64;
    at.h = at.listed + ((size_t)rows * sizeof(int32_t) + 63) / 64 * 64;
    at.dh = at.h + chunk_bytes;
    at.logits = at.dh + (dh ? chunk_bytes : 0);
    at.dlogits = at.logits + n * (size_t)vocab * 4;
    at.table = (at.dlogits + n * (size_t)vocab * gradient + 63) / 64 * 64;
    at.total = at.table + (trained && narrow ? (size_t)vocab * (size_t)width * 2 : 0);
    return at;
}

/* Lists the rows that have a label of the vocabulary, in order, and sets what the others get. One block. */
__global__ void list_kernel(int32_t *count, int32_t *listed, const int32_t *labels, float *log_p, float *collision, int32_t *argmax,
                            int64_t rows, int64_t vocab)
{
    CU_SHARED(int, before, [LISTERS / CU_WARP]);
    int lane = threadIdx.x % CU_WARP, warp = threadIdx.x / CU_WARP;
    int total = 0;
    for (int64_t tile = 0; tile < rows; tile += LISTERS) {
        int64_t t = tile + threadIdx.x;
        int32_t label = t < rows ? labels[t] : -100;
        bool has = label >= 0 && label < vocab;
        unsigned bits = __ballot_sync(~0u, has);
        if (lane == 0)
            before[warp] = __popc(bits);
        __syncthreads();
        int place = total + __popc(bits & ((1u << lane) - 1));
        for (int w = 0; w < LISTERS / CU_WARP; w++) {
            place += w < warp ? before[w] : 0;
            total += before[w];
        }
        __syncthreads(); /* the next tile writes */
        if (has)
            listed[place] = (int32_t)t;
        if (t < rows && !has) {
            if (log_p != NULL)
                log_p[t] = label == -100 ? 0.0f : NAN;
            if (collision != NULL)
                collision[t] = 0;
            if (argmax != NULL)
                argmax[t] = -1;
        }
    }
    if (threadIdx.x == 0)
        *count = total;
}

/* Rows without label have no gradient. */
template <typename T> __global__ void clear_kernel(T *dh, const int32_t *labels, int64_t width, int64_t vocab)
{
    int64_t t = blockIdx.x;
    if (!(labels[t] >= 0 && labels[t] < vocab))
        for (int64_t j = threadIdx.x; j < width; j += blockDim.x)
            dh[t * width + j] = from_f32<T>(0.0f);
}

/* h of the listed rows from `first` on; zeros behind the last. */
template <typename T> __global__ void take_kernel(T *to, const T *h, const int32_t *count, const int32_t *listed, int64_t first, int64_t width)
{
    int64_t i = first + blockIdx.x;
    bool is_row = i < *count;
    const T *from = h + (is_row ? listed[i] : 0) * width;
    for (int64_t j = threadIdx.x; j < width; j += blockDim.x)
        to[blockIdx.x * width + j] = is_row ? from[j] : from_f32<T>(0.0f);
}

template <typename T> __global__ void give_kernel(T *dh, const T *from, const int32_t *count, const int32_t *listed, int64_t first, int64_t width)
{
    int64_t i = first + blockIdx.x;
    if (i < *count)
        for (int64_t j = threadIdx.x; j < width; j += blockDim.x)
            dh[listed[i] * width + j] = from[blockIdx.x * width + j];
}

/* What is known of some of a row's logits: the largest and where it is, and sums of e^(z - max) and its square. */
struct seen {
    float max, sum, square;
    int32_t at;
};

CU_FN void merge(struct seen *a, const struct seen *b)
{
    bool other = b->max > a->max || (b->max == a->max && b->at < a->at);
    float max = other ? b->max : a->max;
    float fa = a->max == max ? 1.0f : expf(a->max - max), fb = b->max == max ? 1.0f : expf(b->max - max);
    a->sum = a->sum * fa + b->sum * fb;
    a->square = a->square * fa * fa + b->square * fb * fb;
    a->at = other ? b->at : a->at;
    a->max = max;
}

CU_FN float capped(float z, float scale, float cap)
{
    return cap > 0 ? cap * tanhf(scale * z / cap) : scale * z;
}

struct row_job {
    const int32_t *count, *listed, *labels;
    const float *weights;
    float sign, scale, cap;
    float *log_p, *collision;
    int32_t *argmax;
    int64_t vocab;
};

/* Logits `begin`, begin + THREADS, ...: several are on their way at once. */
CU_FN void load_batch(float (&values)[BATCH], const float *z, int64_t begin, int64_t vocab, const struct row_job &job)
{
#pragma unroll
    for (int k = 0; k < BATCH; k++)
        values[k] = begin + k * THREADS < vocab ? z[begin + k * THREADS] : 0.0f;
#pragma unroll
    for (int k = 0; k < BATCH; k++)
        values[k] = begin + k * THREADS < vocab ? capped(values[k], job.scale, job.cap) : -INFINITY;
}

/* One row of raw products z to its log p, and to the gradient of the logits: in place, or in bf16. Rows behind the last labelled
 * one have a gradient of zeros. */
template <typename T, bool GRADIENT> __global__ void row_kernel(T *dz, float *logits, struct row_job job, int64_t first)
{
    CU_SHARED(struct seen, parts, [THREADS]);
    int64_t i = first + blockIdx.x, vocab = job.vocab;
    float *z = logits + blockIdx.x * vocab;
    T *d = dz + blockIdx.x * vocab;
    if (i < *job.count) {
        int32_t t = job.listed[i], label = job.labels[t];
        struct seen here = {-INFINITY, 0, 0, INT32_MAX};
        for (int64_t begin = threadIdx.x; begin < vocab; begin += THREADS * BATCH) {
            float values[BATCH], before = here.max;
            bool first_batch = here.at == INT32_MAX;
            load_batch(values, z, begin, vocab, job);
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                if (values[k] > here.max || here.at == INT32_MAX) {
                    here.max = values[k];
                    here.at = (int32_t)(begin + k * THREADS);
                }
            if (here.max != before) {
                float factor = first_batch ? 0.0f : expf(before - here.max);
                here.sum *= factor;
                here.square *= factor * factor;
            }
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                if (begin + k * THREADS < vocab) {
                    float e = expf(values[k] - here.max);
                    here.sum += e;
                    here.square += e * e;
                }
        }
        parts[threadIdx.x] = here;
        for (int half = THREADS / 2; half > 0; half /= 2) {
            __syncthreads();
            if ((int)threadIdx.x < half && parts[threadIdx.x + half].at != INT32_MAX)
                merge(&parts[threadIdx.x], &parts[threadIdx.x + half]);
        }
        __syncthreads();
        struct seen all = parts[0];
        float at_label = capped(z[label], job.scale, job.cap);
        __syncthreads(); /* the gradient may take the place of z */
        if (threadIdx.x == 0) {
            double log_sum = log((double)all.sum);
            if (job.log_p != NULL)
                job.log_p[t] = (float)((double)at_label - (double)all.max - log_sum);
            if (job.collision != NULL)
                job.collision[t] = (float)(log((double)all.square) - 2 * log_sum);
            if (job.argmax != NULL)
                job.argmax[t] = all.at;
        }
        if constexpr (GRADIENT) {
            float weight = job.sign * job.weights[t], factor = (float)((double)weight / (double)all.sum);
            for (int64_t begin = threadIdx.x; begin < vocab; begin += THREADS * BATCH) {
                float values[BATCH];
                load_batch(values, z, begin, vocab, job);
#pragma unroll
                for (int k = 0; k < BATCH; k++) {
                    int64_t v = begin + k * THREADS;
                    float p = factor * expf(values[k] - all.max), bent = job.cap > 0 ? values[k] / job.cap : 0.0f;
                    if (v < vocab)
                        d[v] = from_f32<T>((v == label ? p - weight : p) * job.scale * (1.0f - bent * bent));
                }
            }
        }
    } else if constexpr (GRADIENT) {
        for (int64_t v = threadIdx.x; v < vocab; v += THREADS)
            d[v] = from_f32<T>(0.0f);
    }
}

__global__ void narrow_kernel(bf16 *to, const float *from, int64_t count)
{
    for (int64_t i = gd_cuda_thread(); i < count; i += gd_cuda_threads())
        to[i] = to_bf16(from[i]);
}

struct job {
    const struct gd_cuda_head *head;
    struct layout at;
    int64_t rows, width, vocab;
    enum gd_dtype dtype;       /* of h */
    const void *table;         /* a trained head in the dtype of h; NULL: frozen */
    struct row_job row;
    char *scratch;
};

/* c = a op(head), the head [V, d] transposed or not, for the rows of a chunk. */
bool multiply_head(const struct job *job, bool back, const void *a, void *c, enum gd_dtype out, struct gd_error *err)
{
    int64_t n = job->at.chunk;
    if (job->table == NULL)
        return gd_weight_multiply(job->head->args->weight[1], back, a, job->dtype, c, out, n, false, err);
    struct gd_cuda_gemm gemm = {};
    gemm.m = n;
    gemm.n = back ? job->width : job->vocab;
    gemm.k = back ? job->vocab : job->width;
    gemm.transpose_b = !back;
    gemm.in = job->dtype;
    gemm.out = out;
    gemm.alpha = 1.0f;
    return gd_cuda_gemm(&gemm, a, job->table, c, err);
}

/* dtable += dlogits^T h of a chunk. */
bool add_outer(const struct job *job, const void *dlogits, const void *h, bool accumulate, struct gd_error *err)
{
    struct gd_cuda_gemm gemm = {};
    gemm.m = job->vocab;
    gemm.n = job->width;
    gemm.k = job->at.chunk;
    gemm.transpose_a = true;
    gemm.in = job->dtype;
    gemm.out = GD_F32;
    gemm.accumulate = accumulate;
    gemm.alpha = 1.0f;
    return gd_cuda_gemm(&gemm, dlogits, h, job->head->dtable, err);
}

/* Listed rows from `first` on: products, log-probabilities, gradients. */
template <typename T> bool run_chunk(const struct job *job, int64_t first, struct gd_error *err)
{
    const struct gd_cuda_head *head = job->head;
    const struct row_job *row = &job->row;
    T *h = (T *)(job->scratch + job->at.h), *dh = (T *)(job->scratch + job->at.dh);
    float *logits = (float *)(job->scratch + job->at.logits);
    T *dlogits = sizeof(T) == 2 ? (T *)(job->scratch + job->at.dlogits) : (T *)logits;
    unsigned n = (unsigned)job->at.chunk;
    CU_LAUNCH((take_kernel<T>), n, GD_CUDA_THREADS, 0, gd_cuda_stream(), h, (const T *)head->args->in[0].data, row->count, row->listed, first,
              job->width);
    if (!gd_cuda_launched(head->args, head->name, err) || !multiply_head(job, false, h, logits, GD_F32, err))
        return false;
    if (head->dh == NULL && head->dtable == NULL) {
        CU_LAUNCH((row_kernel<T, false>), n, THREADS, 0, gd_cuda_stream(), (T *)logits, logits, *row, first);
        return gd_cuda_launched(head->args, head->name, err);
    }
    CU_LAUNCH((row_kernel<T, true>), n, THREADS, 0, gd_cuda_stream(), dlogits, logits, *row, first);
    if (!gd_cuda_launched(head->args, head->name, err) || (head->dtable != NULL && !add_outer(job, dlogits, h, first > 0, err)))
        return false;
    if (head->dh == NULL)
        return true;
    if (!multiply_head(job, true, dlogits, dh, job->dtype, err))
        return false;
    CU_LAUNCH((give_kernel<T>), n, GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)head->dh, (const T *)dh, row->count, row->listed, first,
              job->width);
    return gd_cuda_launched(head->args, head->name, err);
}

/* Lists the labelled rows, clears what the others get, and brings a trained head to the dtype of h. */
bool prepare(struct job *job, struct gd_error *err)
{
    const struct gd_cuda_head *head = job->head;
    CU_LAUNCH(list_kernel, 1, LISTERS, 0, gd_cuda_stream(), (int32_t *)job->scratch, (int32_t *)(job->scratch + job->at.listed),
              job->row.labels, head->log_p, head->collision, head->argmax, job->rows, job->vocab);
    if (head->dh != NULL)
        GD_BY_ACT(job->dtype, T, CU_LAUNCH((clear_kernel<T>), (unsigned)job->rows, GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)head->dh,
                                           job->row.labels, job->width, job->vocab));
    if (job->table != NULL && job->dtype == GD_BF16) {
        bf16 *narrow = (bf16 *)(job->scratch + job->at.table);
        int64_t count = job->vocab * job->width;
        CU_LAUNCH(narrow_kernel, gd_cuda_blocks(count, GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(), narrow,
                  (const float *)job->table, count);
        job->table = narrow;
    }
    return gd_cuda_launched(head->args, head->name, err);
}

} // namespace

size_t gd_cuda_head_scratch(const struct gd_call *call, bool dh, bool dtable)
{
    const struct gd_value *h = call->in[0], *head = call->in[1];
    return layout_of(h->shape[0], h->shape[1], head->shape[0], h->dtype == GD_BF16, head->kind != GD_VALUE_WEIGHT, dh, dtable).total;
}

bool gd_cuda_head_run(const struct gd_cuda_head *head, struct gd_error *err)
{
    const struct gd_kernel_args *args = head->args;
    const struct gd_tensor *h = &args->in[0];
    struct job job = {};
    job.head = head;
    job.rows = h->shape[0];
    job.width = h->shape[1];
    job.vocab = args->in[1].shape[0];
    job.dtype = h->dtype;
    job.table = args->weight[1] == NULL ? args->in[1].data : NULL;
    job.scratch = (char *)args->scratch;
    job.at = layout_of(job.rows, job.width, job.vocab, h->dtype == GD_BF16, job.table != NULL, head->dh != NULL, head->dtable != NULL);
    job.row = {(const int32_t *)job.scratch, (const int32_t *)(job.scratch + job.at.listed), (const int32_t *)args->in[2].data,
               head->weights, head->sign, (float)args->params->f[0], (float)args->params->f[1], head->log_p, head->collision,
               head->argmax, job.vocab};
    if (job.rows == 0)
        return head->dtable == NULL || gd_cuda_check(cudaMemsetAsync(head->dtable, 0, (size_t)(job.vocab * job.width) * sizeof(float),
                                                                     gd_cuda_stream()),
                                                     "cudaMemsetAsync", head->name, err);
    if (!prepare(&job, err))
        return false;
    for (int64_t first = 0; first < job.rows; first += job.at.chunk)
        if (!(job.dtype == GD_BF16 ? run_chunk<bf16>(&job, first, err) : run_chunk<float>(&job, first, err)))
            return false;
    return true;
}
