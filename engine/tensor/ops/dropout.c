/*
 * y = x keep / (1 - p), keep[i] = (bits[i] >= p 2^32) with bits from Philox: the backward pass is the same op on dy, and
 * the mask depends on nothing but (seed, step, leaf, site, i). key: i32 [4] = seed low, seed high, step, leaf.
 * i[0] site; f[0] p. Element i is word i % 4 of counter (site << 40) + i / 4.
 */
#include "engine/base/philox.h"
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

#define SITE_SHIFT 40
#define SITES_MAX ((int64_t)1 << (64 - SITE_SHIFT))

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *key = call->in[1];
    double p = call->params.f[0];
    int64_t site = call->params.i[0];
    if (!gd_shape_unary(graph, call))
        return false;
    if (key->dtype != GD_I32 || key->rank != 1 || key->shape[0] != 4)
        return gd_graph_fail(graph, "dropout: key '%s' is not i32 [4]", key->name) != NULL;
    if (!(p >= 0 && p < 1) || site < 0 || site >= SITES_MAX || gd_value_elements(x) > (int64_t)1 << (SITE_SHIFT + 2))
        return gd_graph_fail(graph, "dropout: p %g must be in [0, 1), site %" PRId64 " in [0, %" PRId64 ")", p, site,
                             SITES_MAX) != NULL;
    return true;
}

struct stream {
    uint64_t key, high, low; /* gd_philox4's arguments; low is the counter of element 0 */
    uint32_t threshold;      /* keep where bits >= threshold */
    float scale;
};

#define BATCH 64 /* elements whose bits are made at once: 16 counters in vector lanes */

GD_INLINE void batch_bits(uint32_t bits[BATCH], const struct stream *stream, uint64_t counter)
{
#pragma omp simd
    for (int c = 0; c < BATCH / 4; c++) {
        struct gd_philox r = gd_philox4(stream->key, stream->high, stream->low + counter + (uint64_t)c);
        bits[4 * c] = r.v[0];
        bits[4 * c + 1] = r.v[1];
        bits[4 * c + 2] = r.v[2];
        bits[4 * c + 3] = r.v[3];
    }
}

GD_INLINE void body(void *y, const void *x, const struct stream *stream, bool bf16, int64_t begin, int64_t end)
{
    for (int64_t at = begin; at < end; at += BATCH) {
        uint32_t bits[BATCH];
        batch_bits(bits, stream, (uint64_t)at / 4);
        int64_t n = end - at < BATCH ? end - at : BATCH;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float value = gd_load(x, bf16, at + i) * stream->scale;
            gd_store(y, bf16, at + i, bits[i] >= stream->threshold ? value : 0.0f);
        }
    }
}

GD_KERNEL static void part_f32(float *y, const float *x, const struct stream *stream, int64_t begin, int64_t end)
{
    body(y, x, stream, false, begin, end);
}

GD_KERNEL static void part_bf16(uint16_t *y, const uint16_t *x, const struct stream *stream, int64_t begin, int64_t end)
{
    body(y, x, stream, true, begin, end);
}

static struct stream make_stream(const uint32_t key[4], int64_t site, double p)
{
    return (struct stream){
        .key = (uint64_t)key[1] << 32 | key[0],
        .high = gd_philox_stream(GD_RANDOM_DROPOUT, key[2], key[3]),
        .low = (uint64_t)site << SITE_SHIFT,
        .threshold = (uint32_t)(p * 4294967296.0),
        .scale = (float)(1 / (1 - p)),
    };
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = gd_tensor_count(&args->out[0]);
    uint32_t key[4];
    memcpy(key, args->in[1].data, sizeof(key));
    struct stream stream = make_stream(key, args->params->i[0], args->params->f[0]);
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, BATCH);
        if (args->out[0].dtype == GD_BF16)
            part_bf16(args->out[0].data, args->in[0].data, &stream, r.begin, r.end);
        else
            part_f32(args->out[0].data, args->in[0].data, &stream, r.begin, r.end);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_dropout(graph, out_grad[0], call->in[1], call->params.f[0], (int)call->params.i[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    double p = op_case->params.f[0];
    uint32_t key[4];
    for (int i = 0; i < 4; i++)
        key[i] = (uint32_t)(int64_t)in[1][i];
    struct stream stream = make_stream(key, op_case->params.i[0], p);
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = gd_philox4(stream.key, stream.high, stream.low + (uint64_t)i / 4).v[i % 4];
        out[0][i] = bits >= stream.threshold ? in[0][i] / (1 - p) : 0;
    }
}

#define CASE(text, t, n, p, site) \
    {.name = text, .in_count = 2, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {4}, .fill = GD_FILL_KEY}}, \
     .params = {.i = {site}, .f = {p}}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3}
static const struct gd_op_case cases[] = {
    CASE("one element, p 0", 1, 1, 0.0, 0),
    CASE("odd sizes, p 0", 3, 37, 0.0, 7),
    CASE("odd sizes, p 0.1", 7, 37, 0.1, 7),
    CASE("p near 1", 9, 64, 0.9375, 3),
    CASE("large enough for threads", 65, 517, 0.5, 209),
};

const struct gd_op gd_op_dropout = {
    .name = "dropout",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_dropout(struct gd_graph *g, struct gd_value *x, struct gd_value *key, double p, int site)
{
    struct gd_op_params params = {.i = {site}, .f = {p}};
    return gd_graph_call(g, &gd_op_dropout, (struct gd_value *[]){x, key}, 2, &params);
}
