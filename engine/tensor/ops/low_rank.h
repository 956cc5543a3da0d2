/*
 * low_rank.h - what low_rank and low_rank_grad share: rows in stretches, factors as the products like them.
 *
 * Why      The thin products of an adapter read and write what the base's product has just touched: taken by stretches of rows
 *          that fit into the processor's own cache they cost little more than their arithmetic.
 * Memory   The ops' scratch.
 * Threads  Where there are rows enough each thread takes rows of its own through all products: a product that is shared by all costs
 *          a beginning and an end for each stretch. Where there are few the library's threads share each product.
 * Errors   GD_INTERNAL from the library
 * Limits   none
 * Life     one run
 *
 *     y = c or x W^T,  + s u B^T,  u = x A^T         x: act [T, in], A: f32 [r, in], B: f32 [out, r], u: act [T, depth]
 *
 * Products over the rank run at the library's full speed from a depth of gd_gemm_depth(r) on: u and the factors' copies have so
 * many columns, the last ones zero. Sums over rows (the factors' gradients) add up stretch by stretch, in their order, then
 * thread by thread.
 */
#ifndef GD_TENSOR_OPS_LOW_RANK_H
#define GD_TENSOR_OPS_LOW_RANK_H

#include "engine/tensor/gemm.h"
#include "engine/tensor/ops/elementwise.h"

/* Rows of a stretch for each thread, at most; a thread takes rows of its own where there are at least GD_LOW_RANK_LEAST. */
#define GD_LOW_RANK_ROWS 256
#define GD_LOW_RANK_LEAST 128

struct gd_low_rank {
    int64_t rows, in, out, rank, depth;
    int64_t stretch;   /* rows at a time, at most: of each worker */
    int workers;       /* threads with rows of their own; 1: all threads share each product */
    enum gd_dtype act;
};

/* a: [rank, in], b: [out, rank] */
static inline struct gd_low_rank gd_low_rank(int64_t rows, const int64_t *a, const int64_t *b, enum gd_dtype act)
{
    int threads = omp_get_max_threads(), workers = rows / threads >= GD_LOW_RANK_LEAST ? threads : 1;
    int64_t stretch = (int64_t)GD_LOW_RANK_ROWS * (threads / workers);
    return (struct gd_low_rank){.rows = rows, .in = a[1], .out = b[0], .rank = a[0], .depth = gd_gemm_depth(a[0], act),
                                .stretch = stretch < rows ? stretch : rows, .workers = workers, .act = act};
}

/* Does something for rows [row, row + count), which are worker's next. */
typedef bool (*gd_low_rank_fn)(void *context, int64_t row, int64_t count, int worker, bool first, struct gd_error *err);

/* Rows [begin, end) in stretches of about the same length. */
static inline bool gd_low_rank_stretches(const struct gd_low_rank *n, int64_t begin, int64_t end, int worker, gd_low_rank_fn run, void *context,
                                         struct gd_error *err)
{
    int64_t rows = end - begin, count = (rows + n->stretch - 1) / n->stretch;
    bool ok = true;
    for (int64_t i = 0; ok && i < count; i++) {
        int64_t from = begin + rows * i / count, to = begin + rows * (i + 1) / count;
        ok = run(context, from, to - from, worker, i == 0, err);
    }
    return ok;
}

/* workers becomes the number that there were. */
static inline bool gd_low_rank_each(struct gd_low_rank *n, gd_low_rank_fn run, void *context, struct gd_error *err)
{
    if (n->workers == 1)
        return gd_low_rank_stretches(n, 0, n->rows, 0, run, context, err);
    bool ok = true;
    int workers = 1;
#pragma omp parallel num_threads(n->workers)
    {
#pragma omp master
        workers = omp_get_num_threads();
        struct gd_error own = {0};
        struct gd_range r = gd_thread_range(n->rows, 1);
        omp_set_num_threads(1); /* of products in here */
        if (!gd_low_rank_stretches(n, r.begin, r.end, omp_get_thread_num(), run, context, &own))
#pragma omp critical(gd_low_rank_failed)
        {
            ok = false;
            *err = own;
        }
    }
    n->workers = workers;
    return ok;
}

static inline size_t gd_low_rank_bytes(enum gd_dtype dtype, int64_t count)
{
    return (gd_dtype_bytes(dtype, count) + 63) / 64 * 64;
}

/* A as [depth, in], B as [out, depth], in the dtype of products. */
static inline size_t gd_low_rank_factor_bytes(const struct gd_low_rank *n)
{
    return gd_low_rank_bytes(n->act, n->depth * n->in) + gd_low_rank_bytes(n->act, n->out * n->depth);
}

struct gd_low_rank_factors {
    const char *a, *b;
};

static inline struct gd_low_rank_factors gd_low_rank_factors(const struct gd_low_rank *n, const float *a, const float *b, char *scratch)
{
    char *a_copy = scratch, *b_copy = scratch + gd_low_rank_bytes(n->act, n->depth * n->in);
    size_t column = gd_dtype_bytes(n->act, 1);
    gd_row_from_f32(a_copy, n->act, a, n->rank * n->in);
    memset(a_copy + (size_t)(n->rank * n->in) * column, 0, (size_t)((n->depth - n->rank) * n->in) * column);
    if (n->depth == n->rank) {
        gd_row_from_f32(b_copy, n->act, b, n->out * n->rank);
        return (struct gd_low_rank_factors){a_copy, b_copy};
    }
    memset(b_copy, 0, (size_t)(n->out * n->depth) * column);
    for (int64_t o = 0; o < n->out; o++)
        gd_row_from_f32(b_copy + (size_t)(o * n->depth) * column, n->act, b + o * n->rank, n->rank);
    return (struct gd_low_rank_factors){a_copy, b_copy};
}

/* x, w or none, a, b: the shapes fit. `back`: x is [T, out], what flows back. */
static inline bool gd_low_rank_check(struct gd_graph *graph, const char *op, const struct gd_value *x, const struct gd_value *w,
                                     const struct gd_value *a, const struct gd_value *b, bool back)
{
    if (x->kind == GD_VALUE_WEIGHT || x->rank != 2 || x->dtype != gd_graph_act(graph) || x->group != NULL)
        return gd_graph_fail(graph, "%s: '%s' is no matrix of activations", op, x->name) != NULL;
    if (a->kind == GD_VALUE_WEIGHT || b->kind == GD_VALUE_WEIGHT || a->dtype != GD_F32 || b->dtype != GD_F32 || a->rank != 2 ||
        b->rank != 2 || a->shape[0] != b->shape[1] || x->shape[1] != (back ? b->shape[0] : a->shape[1]))
        return gd_graph_fail(graph, "%s: '%s' and '%s' must be f32 [r, in] and [out, r] and fit '%s'", op, a->name, b->name, x->name) != NULL;
    if (w != NULL && (w->kind != GD_VALUE_WEIGHT || w->rank != 2 || w->shape[0] != b->shape[0] || w->shape[1] != a->shape[1]))
        return gd_graph_fail(graph, "%s: '%s' is no weight [%lld, %lld]", op, w->name, (long long)b->shape[0], (long long)a->shape[1]) != NULL;
    return true;
}

#endif
