/* Flat vectors on the device. */
#include "bench.h"
#include "cuda/vector.h"
#include <math.h>

static const int64_t counts[] = {1, 33, 4097, 200003};

static void sums_and_squares_are_added(void **state)
{
    struct gd_error err = {0};
    for (size_t n = 0; n < GD_COUNT(counts); n++) {
        int64_t count = counts[n];
        size_t bytes = (size_t)count * sizeof(float);
        float *x = bench_random(GD_F32, count, 1), *y = bench_random(GD_F32, count, 2), *got = bench_random(GD_F32, count, 3);
        void *device_x = bench_put(x, bytes), *device_y = bench_put(y, bytes);
        assert_true(gd_cuda_vector_add(device_y, device_x, count, &err));
        assert_true(gd_cuda_vector_add_squares(device_y, device_x, count, &err));
        bench_get(got, device_y, bytes);
        for (int64_t i = 0; i < count; i++)
            assert_true(fabs((double)got[i] - ((double)y[i] + (double)x[i] + (double)x[i] * (double)x[i])) <= 1e-6 * (2 + fabs((double)got[i])));
        gd_free(x);
        gd_free(y);
        gd_free(got);
        bench_release(NULL);
    }
}

static void squares_sum_up_and_broken_numbers_are_found(void **state)
{
    struct gd_error err = {0};
    for (size_t n = 0; n < GD_COUNT(counts); n++) {
        int64_t count = counts[n];
        float *x = bench_random(GD_F32, count, 1), *device = bench_put(x, (size_t)count * sizeof(float)), bad = n % 2 ? NAN : INFINITY;
        double sum = 0, got = -1, again = -1;
        bool finite = false;
        for (int64_t i = 0; i < count; i++)
            sum += (double)x[i] * (double)x[i];
        assert_true(gd_cuda_vector_sum_squares(&got, device, count, &err));
        assert_true(gd_cuda_vector_sum_squares(&again, device, count, &err));
        assert_true(fabs(got - sum) <= 1e-12 * sum);
        assert_true(got == again);
        assert_true(gd_cuda_vector_all_finite(&finite, device, count, &err));
        assert_true(finite);
        assert_true(gd_device_write(device + (count - 1) * 2 / 3, &bad, sizeof(bad), &err));
        assert_true(gd_cuda_vector_all_finite(&finite, device, count, &err));
        assert_false(finite);
        gd_free(x);
        bench_release(NULL);
    }
    bool finite = false;
    double none = -1;
    assert_true(gd_cuda_vector_sum_squares(&none, NULL, 0, &err));
    assert_true(none == 0);
    assert_true(gd_cuda_vector_all_finite(&finite, NULL, 0, &err));
    assert_true(finite);
}

static void the_optimiser_steps(void **state)
{
    struct gd_error err = {0};
    int64_t count = 5003;
    size_t bytes = (size_t)count * sizeof(float);
    struct gd_adamw a = {.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .grad_scale = 0.5};
    float *param = bench_random(GD_F32, count, 1), *grad = bench_random(GD_F32, count, 2), *got = bench_random(GD_F32, count, 3);
    float *zeros = gd_alloc_array((size_t)count, sizeof(float));
    double *p = gd_alloc_array((size_t)count, sizeof(double)), *m = gd_alloc_array((size_t)count, sizeof(double));
    double *v = gd_alloc_array((size_t)count, sizeof(double));
    void *device_p = bench_put(param, bytes), *device_g = bench_put(grad, bytes), *device_m = bench_put(zeros, bytes), *device_v = bench_put(zeros, bytes);
    for (int64_t i = 0; i < count; i++)
        p[i] = (double)param[i];
    for (a.step = 1; a.step <= 3; a.step++) {
        assert_true(gd_cuda_vector_adamw(device_p, device_m, device_v, device_g, count, &a, &err));
        for (int64_t i = 0; i < count; i++) {
            double g = 0.5 * (double)grad[i];
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.99 * v[i] + 0.01 * g * g;
            double mh = m[i] / (1 - pow(0.9, (double)a.step)), vh = v[i] / (1 - pow(0.99, (double)a.step));
            p[i] = p[i] * (1 - 1e-2 * 0.1) - 1e-2 * mh / (sqrt(vh) + 1e-8);
        }
    }
    bench_get(got, device_p, bytes);
    for (int64_t i = 0; i < count; i++)
        assert_true(fabs((double)got[i] - p[i]) <= 1e-6 * (1 + fabs(p[i])));
    gd_free(param);
    gd_free(grad);
    gd_free(got);
    gd_free(zeros);
    gd_free(p);
    gd_free(m);
    gd_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(sums_and_squares_are_added, bench_release),
        cmocka_unit_test_teardown(squares_sum_up_and_broken_numbers_are_found, bench_release),
        cmocka_unit_test_teardown(the_optimiser_steps, bench_release),
    };
    return cmocka_run_group_tests(tests, bench_open, NULL);
}
