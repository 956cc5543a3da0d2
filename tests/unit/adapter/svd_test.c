/* Singular triplets: they rebuild the weight, are orthonormal, fall, and stand for what is left out. */
#include "engine/adapter/svd.h"
#include "engine/base/alloc.h"
#include "engine/base/philox.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum kind { RANDOM, IDENTITY, RANK_ONE, ZERO, STEPS };

static float *make(int out, int in, enum kind kind)
{
    float *w = gd_alloc_array((size_t)(out * in), sizeof(float));
    for (int i = 0; i < out; i++)
        for (int j = 0; j < in; j++) {
            struct gd_philox bits = gd_philox4(7, gd_philox_stream(GD_RANDOM_TEST, 0, 0), (uint64_t)(i * in + j));
            float diagonal = i == j ? (float)(i / 3 + 1) : 0.0f;
            w[i * in + j] = kind == RANDOM     ? gd_normal_from_bits(bits.v[0], bits.v[1])
                            : kind == IDENTITY ? (float)(i == j)
                            : kind == RANK_ONE ? 0.01f * (float)(i + 1) * (float)(j - 2)
                            : kind == ZERO     ? 0.0f
                                               : diagonal;
        }
    return w;
}

static double largest(const float *w, int count)
{
    double most = 0;
    for (int i = 0; i < count; i++)
        most = fmax(most, fabs((double)w[i]));
    return most;
}

static void check_orthonormal(const float *rows, int count, int width)
{
    for (int a = 0; a < count; a++)
        for (int b = 0; b <= a; b++) {
            double product = 0;
            for (int k = 0; k < width; k++)
                product += (double)rows[a * width + k] * (double)rows[b * width + k];
            assert_true(fabs(product - (a == b)) < 1e-6);
        }
}

static void check(int out, int in, enum kind kind)
{
    int n = out < in ? out : in;
    float *w = make(out, in, kind), *u = gd_alloc_array((size_t)(n * out), sizeof(float));
    float *v = gd_alloc_array((size_t)(n * in), sizeof(float));
    double *sigma = gd_alloc_array((size_t)n, sizeof(double)), size = largest(w, out * in);
    gd_singular_triplets(w, out, in, 0, n, sigma, u, v);
    for (int k = 1; k < n; k++)
        assert_true(sigma[k] <= sigma[k - 1] + 1e-6 * sigma[0]);
    for (int i = 0; i < out; i++)
        for (int j = 0; j < in; j++) {
            double sum = 0;
            for (int k = 0; k < n; k++)
                sum += sigma[k] * (double)u[k * out + i] * (double)v[k * in + j];
            assert_true(fabs(sum - (double)w[i * in + j]) <= 2e-6 * size);
        }
    check_orthonormal(out < in ? u : v, n, n);
    gd_free(sigma);
    gd_free(v);
    gd_free(u);
    gd_free(w);
}

static void the_triplets_rebuild_the_weight(void **state)
{
    static const int shapes[][2] = {{1, 1}, {2, 2}, {3, 2}, {2, 3}, {7, 5}, {5, 7}, {33, 64}, {64, 64}, {90, 40}};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        for (enum kind kind = RANDOM; kind <= STEPS; kind++)
            check(shapes[i][0], shapes[i][1], kind);
}

/* W without the triplets from `first` on: their squares are its loss, and its rank is what is left. */
static void check_truncation(int out, int in, int dropped)
{
    int n = out < in ? out : in, first = n - dropped;
    float *w = make(out, in, RANDOM), *u = gd_alloc_array((size_t)(n * out), sizeof(float));
    float *v = gd_alloc_array((size_t)(n * in), sizeof(float)), *rest = gd_alloc_array((size_t)(out * in), sizeof(float));
    double *sigma = gd_alloc_array((size_t)n, sizeof(double)), *left = gd_alloc_array((size_t)n, sizeof(double)), lost = 0, squares = 0;
    gd_singular_triplets(w, out, in, first, dropped, sigma, u, v);
    for (int i = 0; i < out; i++)
        for (int j = 0; j < in; j++) {
            double sum = 0;
            for (int k = 0; k < dropped; k++)
                sum += sigma[first + k] * (double)u[k * out + i] * (double)v[k * in + j];
            rest[i * in + j] = (float)((double)w[i * in + j] - sum);
            lost += sum * sum;
        }
    for (int k = first; k < n; k++)
        squares += sigma[k] * sigma[k];
    assert_true(fabs(lost - squares) < 1e-4 * squares);
    gd_singular_triplets(rest, out, in, 0, n, left, u, v);
    for (int k = 0; k < n; k++)
        assert_true(k < first ? fabs(left[k] - sigma[k]) < 1e-5 * sigma[0] : left[k] < 1e-5 * sigma[0]);
    gd_free(left);
    gd_free(sigma);
    gd_free(rest);
    gd_free(v);
    gd_free(u);
    gd_free(w);
}

static void what_is_truncated_is_the_sum_of_the_smallest_squares(void **state)
{
    check_truncation(48, 40, 6);
    check_truncation(20, 70, 5); /* fewer rows than columns */
}

static void numbers_that_are_not_finite_end_too(void **state)
{
    float w[6] = {1, NAN, 3, INFINITY, 5, 6}, u[6], v[6];
    double sigma[2];
    gd_singular_triplets(w, 3, 2, 0, 2, sigma, u, v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_triplets_rebuild_the_weight),
        cmocka_unit_test(what_is_truncated_is_the_sum_of_the_smallest_squares),
        cmocka_unit_test(numbers_that_are_not_finite_end_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
