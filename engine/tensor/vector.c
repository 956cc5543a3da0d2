#include "engine/tensor/vector.h"
#include "engine/tensor/kernel.h"
#include <math.h>

GD_KERNEL static void add(float *restrict y, const float *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] += x[i];
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

bool gd_cpu_vector_add(float *y, const float *x, int64_t count, struct gd_error *err)
{
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        add(y + r.begin, x + r.begin, r.end - r.begin);
    }
    return true;
}

bool gd_cpu_vector_add_squares(float *y, const float *x, int64_t count, struct gd_error *err)
{
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        add_squares(y + r.begin, x + r.begin, r.end - r.begin);
    }
    return true;
}

/* Pieces of a fixed length, added in order: the same for every thread count. */
#define PIECE 65536

bool gd_cpu_vector_sum_squares(double *out, const float *x, int64_t count, struct gd_error *err)
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
    *out = total;
    return true;
}

bool gd_all_finite(const float *x, int64_t count)
{
    int bad = 0;
#pragma omp parallel if (count >= GD_PARALLEL_MIN) reduction(+ : bad)
    {
        struct gd_range r = gd_thread_range(count, 16);
        bad += !all_finite(x + r.begin, r.end - r.begin);
    }
    return bad == 0;
}

bool gd_cpu_vector_all_finite(bool *out, const float *x, int64_t count, struct gd_error *err)
{
    *out = gd_all_finite(x, count);
    return true;
}

struct factors {
    float b1, b2, scale, epsilon, keep, rate, correction;
};

GD_KERNEL static void adamw(float *param, float *m, float *v, const float *grad, const struct factors *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        float g = grad[i] * a->scale;
        float mi = a->b1 * m[i] + (1.0f - a->b1) * g;
        float vi = a->b2 * v[i] + (1.0f - a->b2) * g * g;
        m[i] = mi;
        v[i] = vi;
        param[i] = param[i] * a->keep - a->rate * mi / (sqrtf(vi) * a->correction + a->epsilon);
    }
}

bool gd_cpu_vector_adamw(float *param, float *m, float *v, const float *grad, int64_t count, const struct gd_adamw *o,
                         struct gd_error *err)
{
    struct factors a = {
        .b1 = (float)o->beta1, .b2 = (float)o->beta2, .scale = (float)o->grad_scale, .epsilon = (float)o->eps,
        .keep = (float)(1.0 - o->learning_rate * o->weight_decay),
        .rate = (float)(o->learning_rate / (1.0 - pow(o->beta1, (double)o->step))),
        .correction = (float)(1.0 / sqrt(1.0 - pow(o->beta2, (double)o->step))),
    };
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        adamw(param, m, v, grad, &a, r.begin, r.end);
    }
    return true;
}
