/* Blocks of all formats on the device against the CPU's. */
#include "bench.h"
#include "cuda/quant.h"
#include "engine/tensor/dequant.h"
#include <math.h>

static const enum gd_dtype formats[] = {GD_Q4_0, GD_Q4_1, GD_Q5_0, GD_Q5_1, GD_Q8_0, GD_Q4_K, GD_Q5_K, GD_Q6_K, GD_NF4};

static void check_unpack(enum gd_dtype dtype, enum gd_dtype out_dtype)
{
    struct gd_error err = {0};
    int64_t block = gd_dtype_block(dtype), width = 3 * block, rows = 7, r0 = 2, r1 = 7, c0 = block, c1 = 3 * block;
    uint8_t *blocks = bench_blocks(dtype, rows * 3);
    float *all = gd_alloc_array((size_t)(rows * width), sizeof(float));
    int64_t count = (r1 - r0) * (c1 - c0);
    void *got = gd_alloc_array((size_t)count, sizeof(float));
    gd_dequantise(all, blocks, dtype, rows * 3);
    void *device = bench_put(blocks, (size_t)(rows * 3) * gd_dtype_block_bytes(dtype)), *out = bench_room(gd_dtype_bytes(out_dtype, count));
    if (!gd_cuda_unpack(device, dtype, width, r0, r1, c0, c1, out, out_dtype, &err))
        fail_msg("%s", err.message);
    bench_get(got, out, gd_dtype_bytes(out_dtype, count));
    for (int64_t i = 0; i < count; i++) {
        double expected = (double)all[(r0 + i / (c1 - c0)) * width + c0 + i % (c1 - c0)];
        double most = fabs(expected) * (out_dtype == GD_BF16 ? 0.0040 : 3e-7) + 1e-7;
        if (!(fabs(bench_at(out_dtype, got, i) - expected) <= most))
            fail_msg("%s [%d]: %.9g, expected %.9g", gd_dtype_name(dtype), (int)i, bench_at(out_dtype, got, i), expected);
    }
    gd_free(blocks);
    gd_free(all);
    gd_free(got);
}

static void blocks_unpack_to_what_the_cpu_makes_of_them(void **state)
{
    for (size_t f = 0; f < GD_COUNT(formats); f++) {
        check_unpack(formats[f], GD_F32);
        check_unpack(formats[f], GD_BF16);
        bench_release(NULL);
    }
}

static void halves_unpack_to_f32(void **state)
{
    struct gd_error err = {0};
    uint16_t halves[5 * 7];
    float got[3 * 4];
    for (int i = 0; i < 35; i++)
        halves[i] = (uint16_t)(i < 4 ? i * 300 : gd_f32_to_f16(bench_normal(1, (uint64_t)i)));
    void *device = bench_put(halves, sizeof(halves)), *out = bench_room(sizeof(got));
    assert_true(gd_cuda_unpack(device, GD_F16, 7, 0, 3, 1, 5, out, GD_F32, &err));
    bench_get(got, out, sizeof(got));
    for (int i = 0; i < 12; i++)
        assert_true(got[i] == gd_f16_to_f32(halves[i / 4 * 7 + 1 + i % 4]));
}

static void what_is_no_whole_block_is_refused(void **state)
{
    struct gd_error err = {0};
    void *device = bench_room(18 * 4), *out = bench_room(256 * 4);
    assert_false(gd_cuda_unpack(device, GD_Q4_0, 64, 0, 2, 16, 32, out, GD_F32, &err));
    gd_error_clear(&err);
    assert_false(gd_cuda_unpack(device, GD_F32, 64, 0, 1, 0, 32, out, GD_F32, &err));
}

static void check_few_rows(enum gd_dtype dtype, enum gd_dtype x_dtype, enum gd_dtype y_dtype, int64_t out, int64_t in, int64_t rows, bool accumulate)
{
    struct gd_error err = {0};
    int64_t blocks_count = out * in / gd_dtype_block(dtype);
    uint8_t *blocks = bench_blocks(dtype, blocks_count);
    float *w = gd_alloc_array((size_t)(out * in), sizeof(float));
    gd_dequantise(w, blocks, dtype, blocks_count);
    void *x = bench_random(x_dtype, rows * in, 1), *before = bench_random(y_dtype, rows * out, 2), *y = bench_random(y_dtype, rows * out, 2);
    void *device = bench_put(blocks, (size_t)blocks_count * gd_dtype_block_bytes(dtype));
    void *device_x = bench_put(x, gd_dtype_bytes(x_dtype, rows * in)), *device_y = bench_put(before, gd_dtype_bytes(y_dtype, rows * out));
    if (!gd_cuda_few_rows(device, dtype, out, in, device_x, x_dtype, device_y, y_dtype, rows, accumulate, &err))
        fail_msg("%s", err.message);
    bench_get(y, device_y, gd_dtype_bytes(y_dtype, rows * out));
    for (int64_t i = 0; i < rows * out; i++) {
        double sum = accumulate ? bench_at(y_dtype, before, i) : 0, size = fabs(sum);
        for (int64_t k = 0; k < in; k++) {
            double term = (double)w[i % out * in + k] * bench_at(x_dtype, x, i / out * in + k);
            sum += term;
            size += fabs(term);
        }
        double most = size * (double)in * 1e-8 + size * 2e-7 + (y_dtype == GD_BF16 ? fabs(sum) * 0.004 : 0);
        if (!(fabs(bench_at(y_dtype, y, i) - sum) <= most))
            fail_msg("%s row %d output %d: %.9g, expected %.9g", gd_dtype_name(dtype), (int)(i / out), (int)(i % out), bench_at(y_dtype, y, i), sum);
    }
    gd_free(blocks);
    gd_free(w);
    gd_free(x);
    gd_free(before);
    gd_free(y);
    bench_release(NULL);
}

static void few_rows_multiply_by_blocks(void **state)
{
    static const int64_t rows[] = {1, 3, 4, 9, 16};
    for (size_t f = 0; f < GD_COUNT(formats); f++) {
        int64_t block = gd_dtype_block(formats[f]), in = block * (1408 / block);
        check_few_rows(formats[f], GD_BF16, GD_BF16, 5, in, rows[f % 5], false);
        check_few_rows(formats[f], GD_BF16, GD_F32, 4, block, rows[(f + 1) % 5], true);
        check_few_rows(formats[f], GD_F32, GD_F32, 3, in, rows[(f + 2) % 5], f % 2);
    }
    check_few_rows(GD_Q4_1, GD_BF16, GD_BF16, 31, 2304, 16, true);
}

/* A row's result is the same bits whatever came with it. */
static void rows_do_not_depend_on_each_other(void **state)
{
    struct gd_error err = {0};
    int64_t in = 768, out = 6;
    uint8_t *blocks = bench_blocks(GD_Q4_K, out * in / 256);
    float *x = bench_random(GD_F32, 16 * in, 1), together[16 * 6], alone[6];
    void *device = bench_put(blocks, (size_t)(out * in / 256) * 144), *device_x = bench_put(x, (size_t)(16 * in) * 4), *y = bench_room(sizeof(together));
    assert_true(gd_cuda_few_rows(device, GD_Q4_K, out, in, device_x, GD_F32, y, GD_F32, 16, false, &err));
    bench_get(together, y, sizeof(together));
    for (int row = 0; row < 16; row += 5) {
        assert_true(gd_cuda_few_rows(device, GD_Q4_K, out, in, (float *)device_x + row * in, GD_F32, y, GD_F32, 1, false, &err));
        bench_get(alone, y, sizeof(alone));
        assert_memory_equal(alone, together + row * 6, sizeof(alone));
    }
    gd_free(blocks);
    gd_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(blocks_unpack_to_what_the_cpu_makes_of_them, bench_release),
        cmocka_unit_test_teardown(halves_unpack_to_f32, bench_release),
        cmocka_unit_test_teardown(what_is_no_whole_block_is_refused, bench_release),
        cmocka_unit_test_teardown(few_rows_multiply_by_blocks, bench_release),
        cmocka_unit_test_teardown(rows_do_not_depend_on_each_other, bench_release),
    };
    return cmocka_run_group_tests(tests, bench_open, NULL);
}
