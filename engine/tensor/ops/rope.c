/*
 * Rotary position embedding, half-split form (Su et al. 2021): with r rotated dimensions of a head, for d < r/2
 *     y[d]       = a (x[d] cos - x[d + r/2] sin sign),  angle = position * inv_freq[d],
 *     y[d + r/2] = a (x[d + r/2] cos + x[d] sin sign),
 * and the dimensions from r on pass. The gradient is the same with the other sign.
 * inv_freq holds tables of r/2 frequencies: rows go by table i[3], those whose position has GD_POSITION_LONG by the next.
 * i[0] head size, i[1] sign, i[2] r/2, i[3] table; f[0] attention factor a.
 */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>
#include <math.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *positions = call->in[1], *freq = call->in[2];
    int64_t head_dim = call->params.i[0], sign = call->params.i[1], half = call->params.i[2], table = call->params.i[3];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || head_dim < 2 || x->shape[1] % head_dim != 0 || (sign != 1 && sign != -1))
        return gd_graph_fail(graph, "rope: '%s' is no matrix of heads of %" PRId64 " (sign %" PRId64 ")", x->name, head_dim,
                             sign) != NULL;
    if (positions->dtype != GD_I32 || positions->rank != 1 || positions->shape[0] != x->shape[0])
        return gd_graph_fail(graph, "rope: '%s' does not give an i32 position for each row of '%s'", positions->name,
                             x->name) != NULL;
    if (half < 1 || 2 * half > head_dim || table < 0 || freq->dtype != GD_F32 || freq->rank != 1 || freq->shape[0] % half != 0 ||
        freq->shape[0] / half <= table)
        return gd_graph_fail(graph, "rope: '%s' is no f32 [n r/2] with r <= %" PRId64 " and n > %" PRId64, freq->name, head_dim,
                             table) != NULL;
    return true;
}

/* cos and sin of one row's angles. The angle is rounded to f32 as the reference does; from there on double, with the
 * period taken off in two parts, so that positions of any size keep their digits. Plain arithmetic, so that it
 * vectorises: the quadrant is in the low bits of the rounded sum. */
GD_KERNEL static void angles(float *cosine, float *sine, const float *inv_freq, int64_t half, int32_t position,
                             double factor, double sign)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
#pragma omp simd
    for (int64_t d = 0; d < half; d++) {
        float angle = (float)position * inv_freq[d];
        double shifted = (double)angle * 0.63661977236758134308 + magic, n = shifted - magic;
        double r = (double)angle - n * 1.57079632679489655800 - n * 6.12323399573676603587e-17, z = r * r;
        double s = r * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880)))));
        double c = 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z * (1.0 / 3628800)))));
        uint64_t quadrant;
        memcpy(&quadrant, &shifted, sizeof(quadrant));
        double x = quadrant & 1 ? s : c, y = quadrant & 1 ? c : s;
        cosine[d] = (float)(factor * ((quadrant + 1) & 2 ? -x : x));
        sine[d] = (float)(factor * sign * (quadrant & 2 ? -y : y));
    }
}

GD_INLINE void body(void *y, const void *x, const float *cosine, const float *sine, bool bf16, int64_t heads,
                    int64_t head_dim, int64_t half, int64_t at)
{
    for (int64_t h = 0; h < heads; h++, at += head_dim) {
#pragma omp simd
        for (int64_t d = 0; d < half; d++) {
            float low = gd_load(x, bf16, at + d), high = gd_load(x, bf16, at + d + half);
            gd_store(y, bf16, at + d, low * cosine[d] - high * sine[d]);
            gd_store(y, bf16, at + d + half, high * cosine[d] + low * sine[d]);
        }
        for (int64_t d = 2 * half; d < head_dim; d++)
            gd_store(y, bf16, at + d, gd_load(x, bf16, at + d));
    }
}

GD_KERNEL static void row_f32(float *y, const float *x, const float *cosine, const float *sine, int64_t heads,
                              int64_t head_dim, int64_t half, int64_t at)
{
    body(y, x, cosine, sine, false, heads, head_dim, half, at);
}

GD_KERNEL static void row_bf16(uint16_t *y, const uint16_t *x, const float *cosine, const float *sine, int64_t heads,
                               int64_t head_dim, int64_t half, int64_t at)
{
    body(y, x, cosine, sine, true, heads, head_dim, half, at);
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return (size_t)omp_get_max_threads() * 2 * (size_t)call->params.i[2] * sizeof(float);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], width = args->out[0].shape[1], half = args->params->i[2];
    int64_t head_dim = args->params->i[0], heads = width / head_dim, table = args->params->i[3];
    const int32_t *positions = args->in[1].data;
    const float *inv_freq = (const float *)args->in[2].data + table * half;
    int64_t second = args->in[2].shape[0] / half > table + 1 ? half : 0;
    GD_PARALLEL(rows * width)
    {
        float *cosine = (float *)args->scratch + 2 * half * omp_get_thread_num(), *sine = cosine + half;
        struct gd_range r = gd_thread_range(rows, 1);
        for (int64_t t = r.begin; t < r.end; t++) {
            bool is_long = (positions[t] & GD_POSITION_LONG) != 0;
            angles(cosine, sine, inv_freq + (is_long ? second : 0), half, positions[t] & ~GD_POSITION_LONG, args->params->f[0],
                   (double)args->params->i[1]);
            if (args->out[0].dtype == GD_BF16)
                row_bf16(args->out[0].data, args->in[0].data, cosine, sine, heads, head_dim, half, t * width);
            else
                row_f32(args->out[0].data, args->in[0].data, cosine, sine, heads, head_dim, half, t * width);
        }
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_rope(graph, out_grad[0], call->in[1], call->in[2],
                             &(struct gd_rope_options){.head_dim = (int)call->params.i[0], .rotary_dim = 2 * (int)call->params.i[2],
                                                       .table = (int)call->params.i[3], .attention_factor = call->params.f[0]},
                             -(int)call->params.i[1]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], half = op_case->params.i[2];
    int64_t head_dim = op_case->params.i[0];
    double factor = op_case->params.f[0], sign = (double)op_case->params.i[1];
    for (int64_t i = 0; i < rows * width; i++) {
        int64_t d = i % width % head_dim, f = (d < half ? d : d - half) + op_case->params.i[3] * half;
        if (d >= 2 * half) {
            out[0][i] = in[0][i];
            continue;
        }
        double c = factor * cos(in[1][i / width] * in[2][f]), s = factor * sign * sin(in[1][i / width] * in[2][f]);
        out[0][i] = d < half ? in[0][i] * c - in[0][i + half] * s : in[0][i] * c + in[0][i - half] * s;
    }
}

#define CASE(text, t, heads, dh, half, sign, factor, table) \
    {.name = text, .in_count = 3, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, (heads) * (dh)}, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = GD_FILL_POSITIONS}, \
            {.dtype = GD_F32, .rank = 1, .shape = {((table) + 1) * (half)}, .fill = GD_FILL_FREQS}}, \
     .params = {.i = {dh, sign, half, table}, .f = {factor}}, .tolerance = 2e-5, .tolerance_bf16 = 8e-3}
static const struct gd_op_case cases[] = {
    CASE("one row", 1, 1, 2, 1, 1, 1.0, 0),
    CASE("odd sizes", 5, 3, 14, 7, 1, 1.0, 0),
    CASE("partial rotation, scaled", 9, 2, 20, 5, 1, 1.3, 0),
    CASE("rotated back", 9, 2, 16, 8, -1, 1.0, 0),
    CASE("second table", 9, 2, 12, 6, 1, 1.0, 1),
    CASE("large enough for threads", 130, 9, 64, 32, 1, 1.0, 0),
};

const struct gd_op gd_op_rope = {
    .name = "rope",
    .in_min = 3, .in_max = 3, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_rope(struct gd_graph *g, struct gd_value *x, struct gd_value *positions, struct gd_value *inv_freq,
                         const struct gd_rope_options *options, int sign)
{
    struct gd_op_params params = {.i = {options->head_dim, sign, options->rotary_dim / 2, options->table},
                                  .f = {options->attention_factor}};
    return gd_graph_call(g, &gd_op_rope, (struct gd_value *[]){x, positions, inv_freq}, 3, &params);
}
