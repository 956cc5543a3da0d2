#include "engine/tensor/device.h"
#include "engine/tensor/kernel.h"
#include <math.h>

GD_KERNEL static void add(float *restrict y, const float *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] += x[i];
}

GD_KERNEL static void scale(float *x, float factor, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] *= factor;
}

GD_KERNEL static double sum_squares(const float *x, int64_t count)
{
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

GD_KERNEL static void add_squares(float *y, const float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] += x[i] * x[i];
}

/* x - x is 0 for finite x and NaN otherwise. */
GD_KERNEL static bool all_finite(const float *x, int64_t count)
{
    int64_t bad = 0;
#pragma omp simd reduction(+ : bad)
    for (int64_t i = 0; i < count; i++)
        bad += x[i] - x[i] != 0.0f;
    return bad == 0;
}

void gd_vector_zero(float *x, int64_t count)
{
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        memset(x + r.begin, 0, (size_t)(r.end - r.begin) * sizeof(float));
    }
}

void gd_vector_add(float *y, const float *x, int64_t count)
{
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        add(y + r.begin, x + r.begin, r.end - r.begin);
    }
}

void gd_vector_add_squares(float *y, const float *x, int64_t count)
{
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        add_squares(y + r.begin, x + r.begin, r.end - r.begin);
    }
}

void gd_vector_scale(float *x, float factor, int64_t count)
{
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        scale(x + r.begin, factor, r.end - r.begin);
    }
}

/* Pieces of a fixed length, added in order: the same for every thread count. */
#define PIECE 65536

double gd_vector_sum_squares(const float *x, int64_t count)
{
    double total = 0.0, sums[64];
    for (int64_t base = 0; base < count; base += PIECE * (int64_t)GD_COUNT(sums)) {
        int64_t rest = count - base;
        int64_t pieces = (rest + PIECE - 1) / PIECE < (int64_t)GD_COUNT(sums) ? (rest + PIECE - 1) / PIECE : (int64_t)GD_COUNT(sums);
        GD_PARALLEL(pieces * PIECE)
        {
            struct gd_range r = gd_thread_range(pieces, 1);
            for (int64_t i = r.begin; i < r.end; i++)
                sums[i] = sum_squares(x + base + i * PIECE, rest - i * PIECE < PIECE ? rest - i * PIECE : PIECE);
        }
        for (int64_t i = 0; i < pieces; i++)
            total += sums[i];
    }
    return total;
}

bool gd_vector_all_finite(const float *x, int64_t count)
{
    int bad = 0;
#pragma omp parallel if (count >= GD_PARALLEL_MIN) reduction(+ : bad)
    {
        struct gd_range r = gd_thread_range(count, 16);
        bad += !all_finite(x + r.begin, r.end - r.begin);
    }
    return bad == 0;
}
