#include "engine/tensor/ops/head_rows.h"
#include "engine/tensor/gemm.h"
#include <inttypes.h>

/* Logits of a chunk stay below this, within [CHUNK_MIN, CHUNK_MAX] rows. Each chunk passes once over the gradient of a trained head,
 * which is as large as three chunks of a small model: fewer and larger ones then. */
#define CHUNK_BYTES ((int64_t)48 << 20)
#define CHUNK_MIN 32
#define CHUNK_MAX 256
#define TRAINED_CHUNKS 3
#define ROW_STEP 32 /* rows of a product are rounded up to it: few distinct shapes for the library */
#define BLOCK 256   /* logits summed in f32 before they go into a double */

/* Scratch in order: labelled rows, h of a chunk, its gradient, logits, in bf16 the gradient of the logits, and in bf16 a trained
 * head as bf16. */
struct layout {
    int64_t chunk;
    size_t h, dh, logits, dlogits, table, total;
};

static struct layout scratch_layout(int64_t rows, int64_t width, int64_t vocab, bool bf16, bool trained, bool dh, bool dtable)
{
    size_t item = bf16 ? 2 : 4, narrow = bf16 && (dh || dtable) ? 2 : 0;
    int64_t times = dtable ? TRAINED_CHUNKS : 1, chunk = times * CHUNK_BYTES / (vocab * (int64_t)(4 + narrow)) / ROW_STEP * ROW_STEP;
    chunk = chunk < CHUNK_MIN ? CHUNK_MIN : chunk > times * CHUNK_MAX ? times * CHUNK_MAX : chunk;
    int64_t all = (rows + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
    struct layout at = {.chunk = chunk < all ? chunk : all};
    size_t n = (size_t)at.chunk, chunk_bytes = (n * (size_t)width * item + 63) / 64 * 64;
    at.h = ((size_t)rows * sizeof(int32_t) + 63) / 64 * 64;
    at.dh = at.h + chunk_bytes;
    at.logits = at.dh + (dh ? chunk_bytes : 0);
    at.dlogits = at.logits + n * (size_t)vocab * 4;
    at.table = (at.dlogits + n * (size_t)vocab * narrow + 63) / 64 * 64;
    at.total = at.table + (trained && bf16 ? (size_t)vocab * (size_t)width * 2 : 0);
    return at;
}

size_t gd_head_rows_scratch(const struct gd_value *h, const struct gd_value *head, bool dh, bool dtable)
{
    return scratch_layout(h->shape[0], h->shape[1], head->shape[0], h->dtype == GD_BF16, head->kind != GD_VALUE_WEIGHT, dh, dtable)
        .total;
}

void gd_head_rows_take(struct gd_head_rows *rows, const struct gd_kernel_args *args)
{
    rows->h = &args->in[0];
    rows->head = args->weight[1];
    rows->table = rows->head == NULL ? args->in[1].data : NULL;
    rows->vocab = args->in[1].shape[0];
}

/* The largest of z[0..n), the lower index where equal. */
GD_INLINE int64_t argmax(const float *z, int64_t n)
{
    float best = z[0];
    int64_t best_block = 0;
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t end = n - at < BLOCK ? n : at + BLOCK;
        float max = z[at];
#pragma omp simd reduction(max : max)
        for (int64_t v = at; v < end; v++)
            max = z[v] > max ? z[v] : max;
        if (max > best) {
            best = max;
            best_block = at;
        }
    }
    for (int64_t v = best_block; v < n; v++)
        if (z[v] == best)
            return v;
    return 0; /* all NaN */
}

struct row_result {
    float log_p, collision;
    int32_t argmax;
};

/* One row of raw products z to its loss, and z to the loss's gradient: in place, or to `narrow` as bf16. */
GD_INLINE struct row_result row_body(float *z, uint16_t *narrow, bool wants_gradient, int64_t vocab, int32_t label,
                                     float weight, float scale, float cap)
{
    if (cap > 0) {
        for (int64_t v = 0; v < vocab; v++)
            z[v] = cap * tanhf(scale * z[v] / cap);
    } else if (scale != 1.0f) {
        for (int64_t v = 0; v < vocab; v++)
            z[v] *= scale;
    }
    int64_t top = argmax(z, vocab);
    float max = z[top];
    double total = 0, squares = 0;
    for (int64_t at = 0; at < vocab; at += BLOCK) {
        int64_t end = vocab - at < BLOCK ? vocab : at + BLOCK;
        float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum, square)
        for (int64_t v = at; v < end; v++) {
            float e = gd_exp(z[v] - max);
            sum += e;
            square += e * e;
        }
        total += (double)sum;
        squares += (double)square;
    }
    struct row_result result = {(float)((double)z[label] - (double)max - log(total)), (float)(log(squares) - 2 * log(total)),
                                (int32_t)top};
    if (!wants_gradient)
        return result;
    float factor = (float)((double)weight / total), label_gradient = weight, chain = scale;
    if (cap > 0)
        chain *= 1.0f - z[label] / cap * (z[label] / cap);
    label_gradient = (float)((double)factor * (double)gd_exp(z[label] - max) - (double)weight) * chain;
    if (cap > 0) {
        for (int64_t v = 0; v < vocab; v++) {
            float d = factor * gd_exp(z[v] - max) * scale * (1.0f - z[v] / cap * (z[v] / cap));
            gd_store(narrow != NULL ? (void *)narrow : (void *)z, narrow != NULL, v, d);
        }
    } else if (narrow != NULL) {
#pragma omp simd
        for (int64_t v = 0; v < vocab; v++)
            narrow[v] = gd_f32_to_bf16(factor * scale * gd_exp(z[v] - max));
    } else {
#pragma omp simd
        for (int64_t v = 0; v < vocab; v++)
            z[v] = factor * scale * gd_exp(z[v] - max);
    }
    gd_store(narrow != NULL ? (void *)narrow : (void *)z, narrow != NULL, label, label_gradient);
    return result;
}

GD_KERNEL static struct row_result row(float *z, uint16_t *narrow, bool wants_gradient, int64_t vocab, int32_t label,
                                       float weight, float scale, float cap)
{
    return row_body(z, narrow, wants_gradient, vocab, label, weight, scale, cap);
}

struct job {
    const struct gd_head_rows *rows;
    struct layout at;
    int64_t count, width, vocab; /* count: rows of h */
    bool bf16, wants_gradient;
    int32_t *labelled;           /* rows with a label, rising */
    const void *table;           /* a trained head in the dtype of h */
};

/* c = a op(head), the head [V, d] transposed or not; frozen ones are laid out for it. */
static bool multiply_head(const struct job *job, bool back, const void *a, void *c, enum gd_dtype out, int64_t n, struct gd_error *err)
{
    enum gd_dtype dtype = job->bf16 ? GD_BF16 : GD_F32;
    if (job->table == NULL)
        return gd_weight_multiply(job->rows->head, back, a, dtype, c, out, n, false, err);
    struct gd_gemm gemm = {.m = n, .n = back ? job->width : job->vocab, .k = back ? job->vocab : job->width, .transpose_b = !back,
                           .in = dtype, .out = out, .alpha = 1.0f};
    return gd_gemm_run(&gemm, a, job->table, c, err);
}

/* Labelled rows [begin, begin + n): products, log-probabilities, gradients. */
static bool run_chunk(const struct job *job, int64_t begin, int64_t n, struct gd_error *err)
{
    const struct gd_head_rows *rows = job->rows;
    enum gd_dtype dtype = job->bf16 ? GD_BF16 : GD_F32;
    char *scratch = rows->scratch, *h = scratch + job->at.h, *dh = scratch + job->at.dh;
    float *logits = (float *)(scratch + job->at.logits);
    uint16_t *narrow = job->bf16 && job->wants_gradient ? (uint16_t *)(scratch + job->at.dlogits) : NULL;
    const int32_t *labelled = job->labelled + begin;
    size_t row_bytes = (size_t)job->width * (job->bf16 ? 2 : 4);
    int64_t padded = (n + ROW_STEP - 1) / ROW_STEP * ROW_STEP;

    for (int64_t i = 0; i < n; i++)
        memcpy(h + (size_t)i * row_bytes, (const char *)rows->h->data + (size_t)labelled[i] * row_bytes, row_bytes);
    memset(h + (size_t)n * row_bytes, 0, (size_t)(padded - n) * row_bytes);
    if (!multiply_head(job, false, h, logits, GD_F32, padded, err))
        return false;
    GD_PARALLEL(n * job->vocab)
    {
        struct gd_range r = gd_thread_range(n, 1);
        for (int64_t i = r.begin; i < r.end; i++) {
            int32_t t = labelled[i];
            float weight = rows->weights != NULL ? rows->sign * rows->weights[t] : 0;
            struct row_result result = row(logits + i * job->vocab, narrow != NULL ? narrow + i * job->vocab : NULL,
                                           job->wants_gradient, job->vocab, rows->labels[t], weight, rows->logit_scale,
                                           rows->softcap);
            if (rows->log_p != NULL)
                rows->log_p[t] = result.log_p;
            if (rows->argmax != NULL)
                rows->argmax[t] = result.argmax;
            if (rows->collision != NULL)
                rows->collision[t] = result.collision;
        }
    }
    if (!job->wants_gradient)
        return true;
    const void *dlogits = narrow != NULL ? (const void *)narrow : (const void *)logits;
    if (narrow != NULL) /* the padding rows: what an earlier run left there may be no number */
        memset(narrow + n * job->vocab, 0, (size_t)((padded - n) * job->vocab) * sizeof(*narrow));
    else
        memset(logits + n * job->vocab, 0, (size_t)((padded - n) * job->vocab) * sizeof(*logits));
    struct gd_gemm outer = {.m = job->vocab, .n = job->width, .k = padded, .transpose_a = true, .in = dtype, .out = GD_F32,
                            .accumulate = begin > 0, .alpha = 1.0f};
    if (rows->dtable != NULL && !gd_gemm_run(&outer, dlogits, h, rows->dtable, err))
        return false;
    if (rows->dh == NULL)
        return true;
    if (!multiply_head(job, true, dlogits, dh, dtype, padded, err))
        return false;
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)rows->dh + (size_t)labelled[i] * row_bytes, dh + (size_t)i * row_bytes, row_bytes);
    return true;
}

/* Clears the outputs and lists the rows that have a label. */
static bool list_labelled(const struct job *job, int64_t *count, struct gd_error *err)
{
    const struct gd_head_rows *rows = job->rows;
    size_t row_bytes = (size_t)job->width * (job->bf16 ? 2 : 4);
    *count = 0;
    for (int64_t t = 0; t < job->count; t++) {
        int32_t label = rows->labels[t];
        if (rows->log_p != NULL)
            rows->log_p[t] = 0;
        if (rows->argmax != NULL)
            rows->argmax[t] = -1;
        if (rows->collision != NULL)
            rows->collision[t] = 0;
        if (label >= 0 && label < job->vocab)
            job->labelled[(*count)++] = (int32_t)t;
        else if (label != -100)
            return gd_fail(err, GD_INTERNAL, "%s: label %d of row %" PRId64 " is not in the vocabulary of %" PRId64, rows->name,
                           label, t, job->vocab);
        else if (rows->dh != NULL)
            memset((char *)rows->dh + (size_t)t * row_bytes, 0, row_bytes);
    }
    return true;
}

bool gd_head_rows_run(const struct gd_head_rows *rows, struct gd_error *err)
{
    struct job job = {.rows = rows, .count = rows->h->shape[0], .width = rows->h->shape[1],
                      .vocab = rows->vocab, .bf16 = rows->h->dtype == GD_BF16,
                      .wants_gradient = rows->dh != NULL || rows->dtable != NULL, .labelled = rows->scratch, .table = rows->table};
    job.at = scratch_layout(job.count, job.width, job.vocab, job.bf16, rows->table != NULL, rows->dh != NULL, rows->dtable != NULL);
    int64_t count = 0;
    if (!list_labelled(&job, &count, err))
        return false;
    if (rows->dtable != NULL && count == 0)
        memset(rows->dtable, 0, (size_t)(job.vocab * job.width) * sizeof(float));
    if (rows->table != NULL && job.bf16) {
        uint16_t *table = (void *)((char *)rows->scratch + job.at.table);
        job.table = table;
        GD_PARALLEL(job.vocab * job.width)
        {
            struct gd_range r = gd_thread_range(job.vocab * job.width, 32);
            gd_row_from_f32(table + r.begin, GD_BF16, rows->table + r.begin, r.end - r.begin);
        }
    }
    int64_t chunks = count > 0 ? (count + job.at.chunk - 1) / job.at.chunk : 0, done = 0;
    for (int64_t c = 0; c < chunks; c++) { /* equal chunks, so that the last is no small rest */
        int64_t n = (count - done + chunks - c - 1) / (chunks - c);
        if (!run_chunk(&job, done, n, err))
            return false;
        done += n;
    }
    return true;
}

bool gd_head_rows_shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *h = call->in[0], *w = call->in[1], *labels = call->in[2];
    if (!gd_is_float(h) || h->rank != 2 || (w->kind != GD_VALUE_WEIGHT && w->dtype != GD_F32) || w->rank != 2 ||
        w->shape[1] != h->shape[1])
        return gd_graph_fail(graph, "%s: '%s' must be [T, d] and '%s' a weight or f32 [V, d]", call->op->name, h->name, w->name) != NULL;
    if (labels->dtype != GD_I32 || labels->rank != 1 || labels->shape[0] != h->shape[0])
        return gd_graph_fail(graph, "%s: labels '%s' (i32) need one entry for each row of '%s'", call->op->name, labels->name,
                             h->name) != NULL;
    if (!(call->params.f[1] >= 0))
        return gd_graph_fail(graph, "%s: softcap %g is negative", call->op->name, call->params.f[1]) != NULL;
    return true;
}

void gd_head_rows_shape_gradient(struct gd_value *out, const struct gd_value *of)
{
    if (of->needs_gradient) {
        gd_shape_like(out, of, of->dtype);
        return;
    }
    out->dtype = GD_F32;
    out->rank = 1;
    out->shape[0] = 0;
}
