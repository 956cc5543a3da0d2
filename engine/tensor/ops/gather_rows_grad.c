/*
 * The backward pass of gather_rows: dy [n, d], index -> dx [i[0], d], dx[r] = sum of dy[i] with index[i] = r, in the
 * order of i. The indices are sorted by row first, so that each row is summed in f32 by one thread.
 */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *dy = call->in[0], *index = call->in[1];
    int64_t rows = call->params.i[0];
    if (!gd_shape_unary(graph, call))
        return false;
    if (dy->rank != 2 || index->dtype != GD_I32 || index->rank != 1 || index->shape[0] != dy->shape[0] || rows < 0)
        return gd_graph_fail(graph, "gather_rows_grad: '%s' does not fit '%s'", index->name, dy->name) != NULL;
    call->out[0]->shape[0] = rows;
    return true;
}

/* Scratch: where each row's list of indices begins [rows + 1], the lists [n], one f32 row a thread. */
static size_t scratch_bytes(const struct gd_call *call)
{
    size_t integers = (size_t)(call->params.i[0] + 1 + call->in[1]->shape[0]);
    return (integers + (size_t)omp_get_max_threads() * (size_t)call->in[0]->shape[1]) * 4;
}

GD_INLINE void body(void *dx, const void *dy, const int32_t *first, const int32_t *list, float *sum, bool bf16,
                    int64_t width, int64_t begin, int64_t end)
{
    for (int64_t r = begin; r < end; r++) {
        memset(sum, 0, (size_t)width * sizeof(float));
        for (int32_t k = first[r]; k < first[r + 1]; k++)
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                sum[j] += gd_load(dy, bf16, list[k] * width + j);
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            gd_store(dx, bf16, r * width + j, sum[j]);
    }
}

GD_KERNEL static void rows_f32(float *dx, const float *dy, const int32_t *first, const int32_t *list, float *sum,
                               int64_t width, int64_t begin, int64_t end)
{
    body(dx, dy, first, list, sum, false, width, begin, end);
}

GD_KERNEL static void rows_bf16(uint16_t *dx, const uint16_t *dy, const int32_t *first, const int32_t *list, float *sum,
                                int64_t width, int64_t begin, int64_t end)
{
    body(dx, dy, first, list, sum, true, width, begin, end);
}

/* Lists of the indices of each row; first[r + 1] is r's end. Stable, so sums keep the order of i. */
static void sort_by_row(int32_t *first, int32_t *list, const int32_t *index, int64_t count, int64_t rows)
{
    memset(first, 0, (size_t)(rows + 1) * sizeof(*first));
    for (int64_t i = 0; i < count; i++)
        if (index[i] >= 0)
            first[index[i] + 1]++;
    for (int64_t r = 0; r < rows; r++)
        first[r + 1] += first[r];
    for (int64_t i = count - 1; i >= 0; i--) /* from the back: afterwards first[r + 1] is where r's list begins */
        if (index[i] >= 0)
            list[--first[index[i] + 1]] = (int32_t)i;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], width = args->out[0].shape[1], count = args->in[0].shape[0];
    const int32_t *index = args->in[1].data;
    int32_t *first = args->scratch, *list = first + rows + 1, listed = 0;
    float *sums = (float *)(list + count);
    for (int64_t i = 0; i < count; i++) {
        if (index[i] >= rows)
            return gd_fail(err, GD_INTERNAL, "gather_rows_grad: index[%" PRId64 "] = %d of %" PRId64 " rows", i, index[i], rows);
        listed += index[i] >= 0;
    }
    sort_by_row(first, list, index, count, rows);
    memmove(first, first + 1, (size_t)rows * sizeof(*first)); /* first[r]: begin of r's list */
    first[rows] = listed;
    GD_PARALLEL((rows + count) * width)
    {
        struct gd_range r = gd_thread_range(rows, 1);
        float *sum = sums + width * omp_get_thread_num();
        if (args->out[0].dtype == GD_BF16)
            rows_bf16(args->out[0].data, args->in[0].data, first, list, sum, width, r.begin, r.end);
        else
            rows_f32(args->out[0].data, args->in[0].data, first, list, sum, width, r.begin, r.end);
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->params.i[0], count = op_case->in[0].shape[0], width = op_case->in[0].shape[1];
    memset(out[0], 0, (size_t)(rows * width) * sizeof(double));
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; in[1][i] >= 0 && j < width; j++)
            out[0][(int64_t)in[1][i] * width + j] += in[0][i * width + j];
}

#define CASE(text, rows, width, count, kind) \
    {.name = text, .in_count = 2, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {count, width}}, \
            {.dtype = GD_I32, .rank = 1, .shape = {count}, .fill = kind, .fill_limit = rows}}, \
     .params = {.i = {rows}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-2}
static const struct gd_op_case cases[] = {
    CASE("one row", 1, 1, 1, GD_FILL_IDS),
    CASE("rows given several times", 5, 7, 23, GD_FILL_IDS),
    CASE("absent rows", 9, 13, 12, GD_FILL_LABELS),
    CASE("large enough for threads", 150, 161, 120, GD_FILL_LABELS),
    CASE("long lists of few rows", 7, 5, 600, GD_FILL_IDS),
};

const struct gd_op gd_op_gather_rows_grad = {
    .name = "gather_rows_grad",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
