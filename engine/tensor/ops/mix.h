/*
 * mix.h - what mix_linear and its backward pass share: a matrix mixed of `skills` others for each of `splits` parts.
 *
 * Why      Both make the same matrix for each segment, and multiply rows by it.
 * Memory   the ops' scratch
 * Threads  Parts of rows or of the matrix; one thread owns each result.
 * Errors   through the graph; GD_INTERNAL for broken segments
 * Limits   none
 * Life     none
 *
 * M [in, out] = sum_j w[h][j] F[h][j], h the part that a row (by_output 0) or a column (by_output 1) of M belongs to;
 * F[h][j] is [in/splits, out] or [in, out/splits]. i[0] splits, i[1] skills, i[2] by_output.
 */
#ifndef GD_TENSOR_OPS_MIX_H
#define GD_TENSOR_OPS_MIX_H

#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

#define GD_MIX_ROWS 4      /* of a tile */
#define GD_MIX_COLUMNS 16

struct gd_mix {
    int64_t splits, skills, in, out;
    bool by_output;
    int64_t rows, columns;   /* of one F[h][j] */
};

static inline int64_t gd_mix_padded(int64_t count)
{
    return (count + GD_MIX_COLUMNS - 1) / GD_MIX_COLUMNS * GD_MIX_COLUMNS;
}

static inline struct gd_mix gd_mix_of(const struct gd_op_params *params, const int64_t *x, const int64_t *f)
{
    struct gd_mix mix = {.splits = params->i[0], .skills = params->i[1], .by_output = params->i[2] != 0, .in = x[1]};
    mix.rows = mix.by_output ? mix.in : mix.in / mix.splits;
    mix.columns = f[1];
    mix.out = mix.by_output ? mix.columns * mix.splits : mix.columns;
    return mix;
}

/* x act [T, in], f f32 [splits * skills * rows, columns], w f32 [G, splits * skills], cu i32 [G + 1] */
static inline bool gd_mix_shape(struct gd_graph *graph, const struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *f = call->in[1], *w = call->in[2], *cu = call->in[3];
    const struct gd_op_params *params = &call->params;
    if (x->rank != 2 || !gd_is_float(x) || x->kind == GD_VALUE_WEIGHT || f->rank != 2 || f->dtype != GD_F32 || w->rank != 2 ||
        w->dtype != GD_F32 || cu->rank != 1 || cu->dtype != GD_I32 || cu->shape[0] != w->shape[0] + 1)
        return gd_graph_fail(graph, "%s: '%s', '%s', '%s', '%s' are no rows, factors, weights and segments", call->op->name, x->name,
                             f->name, w->name, cu->name) != NULL;
    if (params->i[0] < 1 || params->i[1] < 1 || (params->i[2] == 0 && x->shape[1] % params->i[0] != 0))
        return gd_graph_fail(graph, "%s: %lld splits of the rows of '%s', or %lld skills", call->op->name, (long long)params->i[0],
                             x->name, (long long)params->i[1]) != NULL;
    struct gd_mix mix = gd_mix_of(params, x->shape, f->shape);
    if (f->shape[0] != mix.splits * mix.skills * mix.rows || w->shape[1] != mix.splits * mix.skills)
        return gd_graph_fail(graph, "%s: '%s' or '%s' is not made for %lld splits and %lld skills", call->op->name, f->name, w->name,
                             (long long)mix.splits, (long long)mix.skills) != NULL;
    return true;
}

static inline bool gd_mix_check(const char *op, const int32_t *cu, int64_t segments, int64_t rows, struct gd_error *err)
{
    for (int64_t s = 0; s < segments; s++)
        if (cu[s] < 0 || cu[s] > cu[s + 1] || cu[s + 1] > rows)
            return gd_fail(err, GD_INTERNAL, "%s: segment %" PRId64 " is rows %d to %d of %" PRId64, op, s, cu[s], cu[s + 1], rows);
    return true;
}

/* Rows [begin, end) of M, `stride` floats apart, zeros behind the last column. */
GD_INLINE void gd_mix_rows(float *m, int64_t stride, const struct gd_mix *mix, const float *f, const float *w, int64_t begin,
                           int64_t end)
{
    int64_t parts = mix->by_output ? mix->splits : 1;
    for (int64_t i = begin; i < end; i++) {
        float *row = m + i * stride;
        for (int64_t part = 0; part < parts; part++) {
            int64_t h = mix->by_output ? part : i / mix->rows, local = mix->by_output ? i : i % mix->rows;
            float *to = row + part * mix->columns;
            for (int64_t c = 0; c < mix->columns; c++)
                to[c] = 0;
            for (int64_t j = 0; j < mix->skills; j++) {
                float weight = w[h * mix->skills + j];
                const float *from = f + ((h * mix->skills + j) * mix->rows + local) * mix->columns;
                for (int64_t c = 0; c < mix->columns; c++)
                    to[c] += weight * from[c];
            }
        }
        for (int64_t c = mix->out; c < stride; c++)
            row[c] = 0;
    }
}

/* y[t][c] = sum_k x[t][k] m[k][c] for rows [begin, end); x f32 rows x_row apart, m with padded columns. */
GD_INLINE void gd_mix_product(void *y, bool bf16, int64_t out, const float *x, int64_t x_row, int64_t depth, const float *m,
                              int64_t m_row, int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t += GD_MIX_ROWS) {
        int64_t rows = end - t < GD_MIX_ROWS ? end - t : GD_MIX_ROWS;
        for (int64_t c = 0; c < out; c += GD_MIX_COLUMNS) {
            int64_t columns = out - c < GD_MIX_COLUMNS ? out - c : GD_MIX_COLUMNS;
            float sum[GD_MIX_ROWS][GD_MIX_COLUMNS] = {{0}};
            for (int64_t k = 0; k < depth; k++)
                for (int u = 0; u < GD_MIX_ROWS; u++) {
                    float value = x[(u < rows ? t + u : t) * x_row + k];
                    for (int v = 0; v < GD_MIX_COLUMNS; v++)
                        sum[u][v] += value * m[k * m_row + c + v];
                }
            for (int64_t u = 0; u < rows; u++)
                for (int64_t v = 0; v < columns; v++)
                    gd_store(y, bf16, (t + u) * out + c + v, sum[u][v]);
        }
    }
}

#endif
