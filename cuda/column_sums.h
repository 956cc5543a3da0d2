/*
 * column_sums.h - y[j] = sum_t f(t, j): gradients of what all rows share.
 *
 * Why      Sums over thousands of rows need many blocks, and the same order each time.
 * Memory   Scratch of the caller: gd_column_sums_bytes.
 * Threads  engine thread; launches on gd_cuda_stream()
 * Errors   none; who launches asks gd_cuda_launched
 * Limits   none
 * Life     none
 *
 * A block sums 32 columns of one part of the rows, a second kernel the parts, both in eight lanes of rows whose sums are then
 * added in order.
 */
#ifndef GD_CUDA_COLUMN_SUMS_H
#define GD_CUDA_COLUMN_SUMS_H

#include "cuda/map.h"

#define GD_SUM_COLUMNS 32
#define GD_SUM_LANES 8
#define GD_SUM_ROWS 64     /* of a part, at least */
#define GD_SUM_PARTS 1024  /* at most */

static inline int64_t gd_column_sums_rows(int64_t rows)
{
    int64_t least = (rows + GD_SUM_PARTS - 1) / GD_SUM_PARTS;
    return least > GD_SUM_ROWS ? least : GD_SUM_ROWS;
}

static inline int64_t gd_column_sums_parts(int64_t rows)
{
    int64_t each = gd_column_sums_rows(rows);
    return rows == 0 ? 1 : (rows + each - 1) / each;
}

/* Of the most rows that there may be: fewer need no more. */
static inline size_t gd_column_sums_bytes(int64_t rows, int64_t width)
{
    int64_t parts = rows < GD_SUM_ROWS * GD_SUM_PARTS ? gd_column_sums_parts(rows) : GD_SUM_PARTS;
    return (size_t)parts * (size_t)width * sizeof(float);
}

/* Elements of an array of sums in parts. */
struct gd_column_part {
    const float *parts;
    int64_t width;
    CU_FN float operator()(int64_t t, int64_t j) const
    {
        return parts[t * width + j];
    }
};

template <typename F> __global__ void gd_column_sums_kernel(F f, float *y, int64_t rows, int64_t each, int64_t width)
{
    CU_SHARED(float, lanes, [GD_SUM_LANES][GD_SUM_COLUMNS]);
    int column = threadIdx.x % GD_SUM_COLUMNS, lane = threadIdx.x / GD_SUM_COLUMNS;
    int64_t j = (int64_t)blockIdx.x * GD_SUM_COLUMNS + column, first = (int64_t)blockIdx.y * each;
    int64_t end = first + each < rows ? first + each : rows;
    float sum = 0;
    if (j < width)
        for (int64_t t = first + lane; t < end; t += GD_SUM_LANES)
            sum += f(t, j);
    lanes[lane][column] = sum;
    __syncthreads();
    if (lane == 0 && j < width) {
#pragma unroll
        for (int i = 1; i < GD_SUM_LANES; i++)
            sum += lanes[i][column];
        y[(int64_t)blockIdx.y * width + j] = sum;
    }
}

template <typename F> static inline void gd_column_sums(F f, float *y, int64_t rows, int64_t width, void *scratch)
{
    int64_t parts = gd_column_sums_parts(rows), each = gd_column_sums_rows(rows);
    unsigned across = (unsigned)((width + GD_SUM_COLUMNS - 1) / GD_SUM_COLUMNS), threads = GD_SUM_COLUMNS * GD_SUM_LANES;
    if (width == 0)
        return;
    float *to = parts > 1 ? (float *)scratch : y;
    CU_LAUNCH((gd_column_sums_kernel<F>), dim3(across, (unsigned)parts), threads, 0, gd_cuda_stream(), f, to, rows, each, width);
    if (parts > 1)
        CU_LAUNCH((gd_column_sums_kernel<gd_column_part>), dim3(across, 1), threads, 0, gd_cuda_stream(), gd_column_part{to, width}, y,
                  parts, parts, width);
}

#endif
