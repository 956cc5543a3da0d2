/*
 * The vocabulary product and the cross-entropy in one op, over labelled rows only, a chunk of rows at a time:
 *     z = cap(logit_scale h W^T),  cap(z) = c tanh(z / c) with softcap c,  log p = z[label] - log sum exp z,
 *     loss = -sum_t weights[t] log p[t],  d loss / d z = weights[t] (softmax(z) - onehot(label)).
 * The gradient for h is made while the logits of the chunk are there (Wijmans et al. 2024 and Liger do the same), so
 * neither direction keeps [T, V]. f[0] logit_scale, f[1] softcap.
 */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/sigmoid.h"
#include <inttypes.h>

/* Logits of a chunk stay below this, within [CHUNK_MIN, CHUNK_MAX] rows. */
#define CHUNK_BYTES ((int64_t)48 << 20)
#define CHUNK_MIN 32
#define CHUNK_MAX 256
#define ROW_STEP 32 /* rows of a product are rounded up to it: few distinct shapes for the library */
#define BLOCK 256   /* logits summed in f32 before they go into a double */

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *h = call->in[0], *w = call->in[1], *labels = call->in[2], *weights = call->in[3];
    if (!gd_is_float(h) || h->rank != 2 || w->kind != GD_VALUE_WEIGHT || w->rank != 2 || w->shape[1] != h->shape[1])
        return gd_graph_fail(graph, "cross_entropy: '%s' must be [T, d] and '%s' a weight [V, d]", h->name, w->name) != NULL;
    if (labels->dtype != GD_I32 || labels->rank != 1 || labels->shape[0] != h->shape[0] || weights->dtype != GD_F32 ||
        weights->rank != 1 || weights->shape[0] != h->shape[0])
        return gd_graph_fail(graph, "cross_entropy: labels '%s' (i32) and weights '%s' (f32) need one entry for each row of '%s'",
                             labels->name, weights->name, h->name) != NULL;
    if (!(call->params.f[1] >= 0))
        return gd_graph_fail(graph, "cross_entropy: softcap %g is negative", call->params.f[1]) != NULL;
    call->out[0]->dtype = GD_F32;
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = 1;
    gd_shape_like(call->out[1], labels, GD_F32);
    gd_shape_like(call->out[2], labels, GD_I32);
    if (h->needs_gradient) {
        gd_shape_like(call->out[3], h, h->dtype);
        call->in[4] = call->in[1]; /* the head is read backwards too: a second use, a second layout */
        call->in_count = 5;
    } else {
        call->out[3]->dtype = h->dtype;
        call->out[3]->rank = 1;
        call->out[3]->shape[0] = 0;
    }
    return true;
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return input == 4 ? GD_WEIGHT_LINEAR_BACK : GD_WEIGHT_LINEAR;
}

/* Scratch in order: labelled rows, h of a chunk, its gradient, logits, and in bf16 the gradient of the logits. */
struct layout {
    int64_t chunk;
    size_t h, dh, logits, dlogits, total;
};

static struct layout scratch_layout(int64_t rows, int64_t width, int64_t vocab, bool bf16, bool wants_gradient)
{
    size_t item = bf16 ? 2 : 4, narrow = bf16 && wants_gradient ? 2 : 0;
    int64_t chunk = CHUNK_BYTES / (vocab * (int64_t)(4 + narrow)) / ROW_STEP * ROW_STEP;
    chunk = chunk < CHUNK_MIN ? CHUNK_MIN : chunk > CHUNK_MAX ? CHUNK_MAX : chunk;
    int64_t all = (rows + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
    struct layout at = {.chunk = chunk < all ? chunk : all};
    size_t n = (size_t)at.chunk, chunk_bytes = (n * (size_t)width * item + 63) / 64 * 64;
    at.h = ((size_t)rows * sizeof(int32_t) + 63) / 64 * 64;
    at.dh = at.h + chunk_bytes;
    at.logits = at.dh + (wants_gradient ? chunk_bytes : 0);
    at.dlogits = at.logits + n * (size_t)vocab * 4;
    at.total = at.dlogits + n * (size_t)vocab * narrow;
    return at;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    const struct gd_value *h = call->in[0];
    return scratch_layout(h->shape[0], h->shape[1], call->in[1]->shape[0], h->dtype == GD_BF16, call->in_count == 5).total;
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
    float log_p;
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
    double total = 0;
    for (int64_t at = 0; at < vocab; at += BLOCK) {
        int64_t end = vocab - at < BLOCK ? vocab : at + BLOCK;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = at; v < end; v++)
            sum += gd_exp(z[v] - max);
        total += (double)sum;
    }
    struct row_result result = {(float)((double)z[label] - (double)max - log(total)), (int32_t)top};
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
    const struct gd_kernel_args *args;
    struct layout at;
    int64_t rows, width, vocab;
    bool bf16, wants_gradient;
    int32_t *labelled;           /* rows with a label, rising */
};

/* Labelled rows [begin, begin + n): products, losses, gradients. */
static bool run_chunk(const struct job *job, int64_t begin, int64_t n, struct gd_error *err)
{
    const struct gd_kernel_args *args = job->args;
    enum gd_dtype dtype = job->bf16 ? GD_BF16 : GD_F32;
    char *scratch = args->scratch, *h = scratch + job->at.h, *dh = scratch + job->at.dh;
    float *logits = (float *)(scratch + job->at.logits), *log_p = args->out[1].data;
    uint16_t *narrow = job->bf16 && job->wants_gradient ? (uint16_t *)(scratch + job->at.dlogits) : NULL;
    const int32_t *labels = args->in[2].data, *labelled = job->labelled + begin;
    const float *weights = args->in[3].data;
    int32_t *best = args->out[2].data;
    size_t row_bytes = (size_t)job->width * (job->bf16 ? 2 : 4);
    int64_t padded = (n + ROW_STEP - 1) / ROW_STEP * ROW_STEP;

    for (int64_t i = 0; i < n; i++)
        memcpy(h + (size_t)i * row_bytes, (const char *)args->in[0].data + (size_t)labelled[i] * row_bytes, row_bytes);
    memset(h + (size_t)n * row_bytes, 0, (size_t)(padded - n) * row_bytes);
    if (!gd_weight_multiply(args->weight[1], false, h, dtype, logits, GD_F32, padded, false, err))
        return false;
    GD_PARALLEL(n * job->vocab)
    {
        struct gd_range r = gd_thread_range(n, 1);
        for (int64_t i = r.begin; i < r.end; i++) {
            int32_t t = labelled[i];
            struct row_result result = row(logits + i * job->vocab, narrow != NULL ? narrow + i * job->vocab : NULL,
                                           job->wants_gradient, job->vocab, labels[t], weights[t],
                                           (float)args->params->f[0], (float)args->params->f[1]);
            log_p[t] = result.log_p;
            best[t] = result.argmax;
        }
    }
    if (!job->wants_gradient)
        return true;
    const void *dlogits = narrow != NULL ? (const void *)narrow : (const void *)logits;
    if (narrow != NULL) /* the padding rows: what an earlier run left there may be no number */
        memset(narrow + n * job->vocab, 0, (size_t)((padded - n) * job->vocab) * sizeof(*narrow));
    if (!gd_weight_multiply(args->weight[4], true, dlogits, dtype, dh, dtype, padded, false, err))
        return false;
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)args->out[3].data + (size_t)labelled[i] * row_bytes, dh + (size_t)i * row_bytes, row_bytes);
    return true;
}

/* Clears the outputs and lists the rows that have a label. */
static bool list_labelled(const struct job *job, int64_t *count, struct gd_error *err)
{
    const struct gd_kernel_args *args = job->args;
    const int32_t *labels = args->in[2].data;
    float *log_p = args->out[1].data;
    int32_t *best = args->out[2].data;
    size_t row_bytes = (size_t)job->width * (job->bf16 ? 2 : 4);
    *count = 0;
    for (int64_t t = 0; t < job->rows; t++) {
        log_p[t] = 0;
        best[t] = -1;
        if (labels[t] >= 0 && labels[t] < job->vocab)
            job->labelled[(*count)++] = (int32_t)t;
        else if (labels[t] != -100)
            return gd_fail(err, GD_INTERNAL, "cross_entropy: label %d of row %" PRId64 " is not in the vocabulary of %" PRId64,
                           labels[t], t, job->vocab);
        else if (job->wants_gradient)
            memset((char *)args->out[3].data + (size_t)t * row_bytes, 0, row_bytes);
    }
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct job job = {.args = args, .rows = args->in[0].shape[0], .width = args->in[0].shape[1],
                      .vocab = gd_weight_dim(args->weight[1], 0), .bf16 = args->in[0].dtype == GD_BF16,
                      .wants_gradient = args->weight[4] != NULL, .labelled = args->scratch};
    job.at = scratch_layout(job.rows, job.width, job.vocab, job.bf16, job.wants_gradient);
    int64_t count = 0;
    if (!list_labelled(&job, &count, err))
        return false;
    int64_t chunks = count > 0 ? (count + job.at.chunk - 1) / job.at.chunk : 0, done = 0;
    for (int64_t c = 0; c < chunks; c++) { /* equal chunks, so that the last is no small rest */
        int64_t n = (count - done + chunks - c - 1) / (chunks - c);
        if (!run_chunk(&job, done, n, err))
            return false;
        done += n;
    }
    const float *weights = args->in[3].data, *log_p = args->out[1].data;
    double loss = 0;
    for (int64_t i = 0; i < count; i++)
        loss -= (double)weights[job.labelled[i]] * (double)log_p[job.labelled[i]];
    *(float *)args->out[0].data = (float)loss;
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (out_grad[1] != NULL || out_grad[3] != NULL)
        return gd_graph_fail(graph, "cross_entropy: only its loss is differentiable") != NULL;
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_mul_scalar(graph, call->out[3], out_grad[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], vocab = op_case->in[1].shape[0];
    double scale = op_case->params.f[0], cap = op_case->params.f[1];
    bool wants_gradient = op_case->in[0].gradient;
    out[0][0] = 0;
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0, best = -INFINITY, label_z = 0, *dh = wants_gradient ? out[3] + t * width : NULL;
        int64_t label = (int64_t)in[2][t];
        out[1][t] = 0;
        out[2][t] = -1;
        for (int64_t j = 0; wants_gradient && j < width; j++)
            dh[j] = 0;
        for (int pass = 0; label >= 0 && pass < (wants_gradient ? 2 : 1); pass++)
            for (int64_t v = 0; v < vocab; v++) {
                double z = 0;
                for (int64_t j = 0; j < width; j++)
                    z += scale * in[0][t * width + j] * in[1][v * width + j];
                double chain = scale;
                if (cap > 0) {
                    z = cap * tanh(z / cap);
                    chain *= 1 - z * z / cap / cap;
                }
                double d = in[3][t] * (exp(z) / sum - (v == label)) * chain;
                for (int64_t j = 0; pass == 1 && j < width; j++)
                    dh[j] += d * in[1][v * width + j];
                if (pass == 1)
                    continue;
                sum += exp(z);
                label_z = v == label ? z : label_z;
                if (z > best) {
                    best = z;
                    out[2][t] = (double)v;
                }
            }
        if (label >= 0) {
            out[1][t] = label_z - log(sum);
            out[0][0] -= in[3][t] * out[1][t];
        }
    }
}

#define CASE(text, t, d, v, fill_kind, scale, cap, wanted) \
    {.name = text, .in_count = 4, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, d}, .gradient = wanted}, \
            {.dtype = GD_F32, .rank = 2, .shape = {v, d}, .as_weight = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = fill_kind, .fill_limit = v}, \
            {.dtype = GD_F32, .rank = 1, .shape = {t}, .fill = GD_FILL_POSITIVE}}, \
     .params = {.f = {scale, cap}}, .tolerance = 2e-5, .tolerance_bf16 = 3e-2}
static const struct gd_op_case cases[] = {
    CASE("one row, two words", 1, 3, 2, GD_FILL_IDS, 1.0, 0.0, true),
    CASE("odd sizes, some rows without label", 11, 7, 37, GD_FILL_LABELS, 1.0, 0.0, true),
    CASE("scaled logits", 5, 8, 19, GD_FILL_LABELS, 0.25, 0.0, true),
    CASE("capped logits", 6, 8, 23, GD_FILL_IDS, 0.5, 2.0, true),
    CASE("no gradient wanted", 33, 16, 300, GD_FILL_LABELS, 0.25, 0.0, false),
    CASE("large vocabulary, several chunks", 270, 8, 1501, GD_FILL_IDS, 0.5, 0.0, true),
};

const struct gd_op gd_op_cross_entropy = {
    .name = "cross_entropy",
    .in_min = 4, .in_max = 4, .out_count = 4,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_cross_entropy(struct gd_graph *g, struct gd_value *h, struct gd_value *w, struct gd_value *labels,
                                  struct gd_value *weights, double logit_scale, double softcap)
{
    struct gd_op_params params = {.f = {logit_scale, softcap}};
    return gd_graph_call(g, &gd_op_cross_entropy, (struct gd_value *[]){h, w, labels, weights}, 4, &params);
}
