#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "op_case.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>

static void only_devices_of_this_build_are_accepted(void **state)
{
    static const char *const bad[] = {"cuda:0", "cuda", "gpu", ""};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        struct gd_error err = {0};
        assert_false(gd_device_init(bad[i], 0, &err));
        assert_int_equal(err.code, GD_UNSUPPORTED);
        assert_string_equal(err.param, "device");
        assert_non_null(strstr(err.message, "cpu"));
    }
}

static void thread_counts_out_of_range_are_refused(void **state)
{
    struct gd_error err = {0};
    assert_false(gd_device_init("cpu", -1, &err));
    assert_string_equal(err.param, "threads");
    gd_error_clear(&err);
    assert_false(gd_device_init("cpu", 1 << 20, &err));
    gd_error_clear(&err);
    assert_true(gd_device_init("auto", 0, &err));
    assert_true(gd_device()->threads >= 1);
    assert_true(gd_device_init("cpu", 2, &err));
    assert_int_equal(gd_device()->threads, 2);
    assert_string_equal(gd_device()->name, "cpu");
}

static void the_environment_chooses_the_compute_dtype(void **state)
{
    struct gd_error err = {0};
    setenv("GRAFTD_COMPUTE", "f32", 1);
    assert_true(gd_device_init("cpu", 2, &err));
    assert_int_equal(gd_device()->compute, GD_F32);
    setenv("GRAFTD_COMPUTE", "bf16", 1);
    bool can = gd_device_multiplies(GD_BF16);
    assert_int_equal(gd_device_init("cpu", 2, &err), can);
    assert_true(can ? gd_device()->compute == GD_BF16 : strstr(err.message, "bf16") != NULL);
    gd_error_clear(&err);
    setenv("GRAFTD_COMPUTE", "f16", 1);
    assert_false(gd_device_init("cpu", 2, &err));
    assert_non_null(strstr(err.message, "f16"));
    unsetenv("GRAFTD_COMPUTE");
}

static void a_wait_policy_of_the_user_is_kept(void **state)
{
    unsetenv("OMP_WAIT_POLICY");
    unsetenv("GOMP_SPINCOUNT");
    assert_true(gd_device_quiet_environment());
    assert_string_equal(getenv("OMP_WAIT_POLICY"), "passive");
    assert_false(gd_device_quiet_environment());
    unsetenv("OMP_WAIT_POLICY");
    setenv("GOMP_SPINCOUNT", "1000", 1);
    assert_false(gd_device_quiet_environment());
    assert_null(getenv("OMP_WAIT_POLICY"));
    unsetenv("GOMP_SPINCOUNT");
}

static void vector_work_agrees_with_plain_loops_for_all_lengths(void **state)
{
    static const int64_t lengths[] = {0, 1, 15, 17, 1000, 100003, 5000001};
    for (size_t n = 0; n < GD_COUNT(lengths); n++) {
        int64_t count = lengths[n];
        float *x = gd_alloc_array((size_t)count + 1, sizeof(float)), *y = gd_alloc_array((size_t)count + 1, sizeof(float));
        struct gd_error err = {0};
        bool finite = false;
        double squares = 0.0, sum = 0.0;
        for (int64_t i = 0; i < count; i++) {
            x[i] = (float)((i * 7919) % 1000 - 500) * 0.01f;
            y[i] = 1.0f;
            squares += (double)x[i] * (double)x[i];
        }
        assert_true(gd_vector_add(y, x, count, &err));
        for (int64_t i = 0; i < count; i++)
            if (y[i] != 1.0f + x[i])
                fail_msg("element %d of %d", (int)i, (int)count);
        assert_true(gd_vector_sum_squares(&sum, x, count, &err));
        assert_true(fabs(sum - squares) <= 1e-9 * squares);
        assert_true(gd_vector_all_finite(&finite, x, count, &err) && finite);
        if (count > 0) {
            x[count - 1] = count % 2 ? NAN : -INFINITY;
            assert_true(gd_vector_all_finite(&finite, x, count, &err) && !finite);
        }
        assert_true(gd_vector_zero(x, count, &err));
        assert_true(gd_vector_sum_squares(&sum, x, count, &err) && sum == 0.0);
        gd_free(y);
        gd_free(x);
    }
}

static void a_sum_of_squares_is_the_same_for_any_number_of_threads(void **state)
{
    int64_t count = 300001;
    float *x = gd_alloc_array((size_t)count, sizeof(float));
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)test_normal(1, (uint64_t)i);
    omp_set_num_threads(1);
    struct gd_error err = {0};
    double one = 0, two = 1;
    assert_true(gd_vector_sum_squares(&one, x, count, &err));
    omp_set_num_threads(2);
    assert_true(gd_vector_sum_squares(&two, x, count, &err) && one == two);
    gd_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_devices_of_this_build_are_accepted),
        cmocka_unit_test(thread_counts_out_of_range_are_refused),
        cmocka_unit_test(the_environment_chooses_the_compute_dtype),
        cmocka_unit_test(a_wait_policy_of_the_user_is_kept),
        cmocka_unit_test(vector_work_agrees_with_plain_loops_for_all_lengths),
        cmocka_unit_test(a_sum_of_squares_is_the_same_for_any_number_of_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
