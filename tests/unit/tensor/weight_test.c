#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"
#include "engine/tensor/few_rows.h"
#include "engine/tensor/weight.h"
#include "op_case.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/unit/tensor/reading.h"

#define OUT 70
#define IN 96

struct fixture {
    float source[OUT * IN];
    int32_t order[OUT];
    struct gd_weight *weight;
};

/* Rows in reverse and one added to every element, as GGUF files may ask for. */
static int set_up(void **state)
{
    struct fixture *f = gd_alloc(sizeof(*f));
    struct gd_error err = {0};
    for (int i = 0; i < OUT * IN; i++)
        f->source[i] = (float)test_normal(1, (uint64_t)i);
    for (int i = 0; i < OUT; i++)
        f->order[i] = OUT - 1 - i;
    struct gd_tensor tensor = {.dtype = GD_F32, .rank = 2, .shape = {OUT, IN}, .data = f->source};
    assert_true(gd_weight_create(&f->weight, "w", &tensor, f->order, 1.0f, &err));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    gd_weight_destroy(f->weight);
    gd_free(f);
    return 0;
}

static double element(const struct fixture *f, int row, int column)
{
    return (double)f->source[(OUT - 1 - row) * IN + column] + 1.0;
}

static void rows_come_in_the_given_order_with_the_constant_added(void **state)
{
    struct fixture *f = *state;
    float row[IN];
    static float all[OUT * IN];
    gd_weight_to_f32(f->weight, all);
    for (int r = 0; r < OUT; r += 23) {
        gd_weight_row_f32(f->weight, r, row);
        assert_memory_equal(row, all + r * IN, sizeof(row));
        for (int i = 0; i < IN; i++)
            assert_float_equal(row[i], element(f, r, i), 1e-6);
    }
}

static double expected_at(const struct fixture *f, bool back, const float *x, int64_t row, int column)
{
    double sum = 0.0;
    for (int i = 0; i < (back ? OUT : IN); i++)
        sum += (double)x[row * (back ? OUT : IN) + i] * (back ? element(f, i, column) : element(f, column, i));
    return sum;
}

static void check_product(const struct fixture *f, bool back, enum gd_dtype dtype, enum gd_dtype out, int64_t rows, bool accumulate)
{
    struct gd_error err = {0};
    int from = back ? OUT : IN, to = back ? IN : OUT;
    float *x = gd_alloc_array((size_t)(rows * from), sizeof(float)), *y = gd_alloc_array((size_t)(rows * to), sizeof(float));
    uint16_t *x_wide = gd_alloc_array((size_t)(rows * from), sizeof(uint16_t)), *y_wide = gd_alloc_array((size_t)(rows * to), sizeof(uint16_t));
    for (int64_t i = 0; i < rows * from; i++)
        x[i] = gd_bf16_to_f32(gd_f32_to_bf16((float)test_normal(2, (uint64_t)i)));
    for (int64_t i = 0; i < rows * to; i++)
        y[i] = 3.0f;
    gd_convert_from_f32(x_wide, GD_BF16, x, rows * from);
    gd_convert_from_f32(y_wide, GD_BF16, y, rows * to);
    bool wide = dtype == GD_BF16, y_is_wide = out == GD_BF16;
    if (!gd_weight_multiply(f->weight, back, wide ? (void *)x_wide : x, dtype, y_is_wide ? (void *)y_wide : y, out, rows, accumulate, &err))
        fail_msg("%s", err.message);
    if (y_is_wide)
        gd_convert_to_f32(y, y_wide, GD_BF16, rows * to);
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < to; c++) {
            double expected = expected_at(f, back, x, r, c) + (accumulate ? 3.0 : 0.0);
            double tolerance = wide ? 1e-2 * sqrt((double)from) + 5e-3 * fabs(expected) : 1e-4;
            if (fabs((double)y[r * to + c] - expected) > tolerance)
                fail_msg("%s %s->%s rows %d [%d][%d]: %g, expected %g", back ? "back" : "forward", gd_dtype_name(dtype),
                         gd_dtype_name(out), (int)rows, (int)r, c, (double)y[r * to + c], expected);
        }
    gd_free(y_wide);
    gd_free(x_wide);
    gd_free(y);
    gd_free(x);
}

static void products_forward_and_backward_agree_with_the_plain_sum(void **state)
{
    struct fixture *f = *state;
    struct gd_error err = {0};
    static const int64_t rows[] = {1, 2, 7, 64, 130};
    for (int wide = 0; wide < (gd_device_multiplies(GD_BF16) ? 2 : 1); wide++) {
        enum gd_dtype dtype = wide ? GD_BF16 : GD_F32;
        assert_true(gd_weight_prepare(f->weight, GD_WEIGHT_LINEAR, dtype, &err));
        assert_true(gd_weight_prepare(f->weight, GD_WEIGHT_LINEAR_BACK, dtype, &err));
        for (size_t i = 0; i < GD_COUNT(rows); i++)
            for (int mode = 0; mode < 4; mode++)
                check_product(f, mode & 1, dtype, dtype, rows[i], mode & 2);
    }
    if (gd_device_multiplies(GD_BF16)) {
        check_product(f, false, GD_BF16, GD_F32, 33, true);
        check_product(f, true, GD_BF16, GD_F32, 33, false);
    }
}

static void layouts_cost_what_was_said_and_are_made_once(void **state)
{
    struct fixture *f = *state;
    struct gd_error err = {0};
    enum gd_dtype compute = gd_device_multiplies(GD_BF16) ? GD_BF16 : GD_F32;
    size_t sum = 0;
    assert_int_equal(gd_weight_prepared_bytes(f->weight), 0);
    for (int use = 0; use < GD_WEIGHT_USE_COUNT; use++) {
        size_t cost = gd_weight_prepare_cost(f->weight, (enum gd_weight_use)use, compute);
        bool free = use == GD_WEIGHT_ROWS || use == GD_WEIGHT_FEW_ROWS; /* the latter is LINEAR here, which is there */
        assert_true(free ? cost == 0 : cost >= OUT * IN * (use == GD_WEIGHT_VECTOR ? sizeof(float) : gd_dtype_bytes(compute, 1)));
        assert_true(gd_weight_prepare(f->weight, (enum gd_weight_use)use, compute, &err));
        assert_true(gd_weight_prepare(f->weight, (enum gd_weight_use)use, compute, &err));
        assert_int_equal(gd_weight_prepare_cost(f->weight, (enum gd_weight_use)use, compute), 0);
        sum += cost;
        assert_int_equal(gd_weight_prepared_bytes(f->weight), sum);
    }
    assert_float_equal(gd_weight_vector(f->weight)[IN + 3], element(f, 1, 3), 1e-6);
}

/* ---- few rows by blocks ---- */

#define BLOCKS_OUT 37 /* neither whole groups nor a row order of whole ones */
#define BLOCKS_IN 512

/* Random codes, and steps and bases of about 0.01. */
static void random_blocks(uint8_t *to, enum gd_dtype dtype, int64_t blocks)
{
    size_t bytes = gd_dtype_block_bytes(dtype);
    bool based = dtype == GD_Q4_1 || dtype == GD_Q5_1 || dtype == GD_Q4_K || dtype == GD_Q5_K;
    for (int64_t b = 0; b < blocks; b++, to += bytes) {
        for (size_t i = 0; i < bytes; i++)
            to[i] = (uint8_t)(gd_philox4(9, (uint64_t)dtype, (uint64_t)b * bytes + i).v[0] >> 7);
        for (int field = 0; field < (based ? 2 : 1); field++) {
            uint16_t half = gd_f32_to_f16((float)(0.01 * test_normal(5, (uint64_t)(2 * b + field))));
            memcpy(to + (dtype == GD_Q6_K ? 208 : 2 * field), &half, 2);
        }
    }
}

static void check_few(struct gd_weight *weight, const float *values, enum gd_dtype out, int64_t rows, bool accumulate)
{
    static float x[GD_FEW_ROWS * BLOCKS_IN], y[GD_FEW_ROWS * BLOCKS_OUT];
    static uint16_t x_wide[GD_FEW_ROWS * BLOCKS_IN], y_wide[GD_FEW_ROWS * BLOCKS_OUT];
    struct gd_error err = {0};
    for (int64_t i = 0; i < rows * BLOCKS_IN; i++)
        x[i] = gd_bf16_to_f32(gd_f32_to_bf16((float)test_normal(6, (uint64_t)i)));
    for (int64_t i = 0; i < rows * BLOCKS_OUT; i++)
        y[i] = 3.0f;
    gd_convert_from_f32(x_wide, GD_BF16, x, rows * BLOCKS_IN);
    gd_convert_from_f32(y_wide, GD_BF16, y, rows * BLOCKS_OUT);
    assert_true(gd_weight_multiply(weight, false, x_wide, GD_BF16, out == GD_F32 ? (void *)y : y_wide, out, rows, accumulate, &err));
    if (out == GD_BF16)
        gd_convert_to_f32(y, y_wide, GD_BF16, rows * BLOCKS_OUT);
    for (int64_t r = 0; r < rows; r++)
        for (int o = 0; o < BLOCKS_OUT; o++) {
            double expected = accumulate ? 3.0 : 0.0, size = 0;
            for (int i = 0; i < BLOCKS_IN; i++) {
                expected += (double)x[r * BLOCKS_IN + i] * (double)values[o * BLOCKS_IN + i];
                size += pow((double)x[r * BLOCKS_IN + i] * (double)values[o * BLOCKS_IN + i], 2);
            }
            double tolerance = 2e-4 * sqrt(size) + (out == GD_BF16 ? 4e-3 * fabs(expected) : 0.0);
            if (!(fabs((double)y[r * BLOCKS_OUT + o] - expected) <= tolerance))
                fail_msg("%s, %d rows [%d][%d]: %g, expected %g", gd_dtype_name(gd_weight_source(weight)->dtype), (int)rows, (int)r, o,
                         (double)y[r * BLOCKS_OUT + o], expected);
        }
}

static void few_rows_are_multiplied_by_blocks(void **state)
{
    static const enum gd_dtype dtypes[] = {GD_Q4_0, GD_Q4_1, GD_Q5_0, GD_Q5_1, GD_Q8_0, GD_Q4_K, GD_Q5_K, GD_Q6_K};
    static uint8_t blocks[BLOCKS_OUT * BLOCKS_IN * 2];
    static float values[BLOCKS_OUT * BLOCKS_IN], broken[BLOCKS_IN], y[BLOCKS_OUT];
    int32_t order[BLOCKS_OUT];
    for (int i = 0; i < BLOCKS_OUT; i++)
        order[i] = (i * 5 + 3) % BLOCKS_OUT;
    if (!gd_device_multiplies(GD_BF16))
        return; /* nothing is ever laid out so */
    for (size_t d = 0; d < GD_COUNT(dtypes); d++) {
        struct gd_weight *weight = NULL;
        struct gd_error err = {0};
        struct gd_tensor source = {.dtype = dtypes[d], .rank = 2, .shape = {BLOCKS_OUT, BLOCKS_IN}, .data = blocks};
        random_blocks(blocks, dtypes[d], BLOCKS_OUT * BLOCKS_IN / gd_dtype_block(dtypes[d]));
        assert_true(gd_weight_create(&weight, "w", &source, d % 2 ? order : NULL, 0.0f, &err));
        gd_weight_to_f32(weight, values);
        assert_int_equal(gd_weight_prepare_cost(weight, GD_WEIGHT_FEW_ROWS, GD_F32), gd_weight_prepare_cost(weight, GD_WEIGHT_LINEAR, GD_F32));
        assert_true(gd_weight_prepare(weight, GD_WEIGHT_FEW_ROWS, GD_BF16, &err));
        for (int64_t rows = 1; rows <= GD_FEW_ROWS; rows++)
            check_few(weight, values, rows % 2 ? GD_F32 : GD_BF16, rows, rows % 3 == 0);
        broken[77] = INFINITY;
        if (gd_few_rows_bytes(weight) > 0) {
            uint16_t wide[BLOCKS_IN];
            gd_convert_from_f32(wide, GD_BF16, broken, BLOCKS_IN);
            assert_true(gd_weight_multiply(weight, false, wide, GD_BF16, y, GD_F32, 1, false, &err));
            assert_true(isnan(y[0]) && isnan(y[BLOCKS_OUT - 1]));
        }
        gd_weight_destroy(weight);
    }
}

static void a_product_without_its_layout_is_refused_by_name(void **state)
{
    struct fixture *f = *state;
    struct gd_error err = {0};
    float x[IN] = {0}, y[OUT];
    assert_false(gd_weight_multiply(f->weight, false, x, GD_F32, y, GD_F32, 1, false, &err));
    assert_int_equal(err.code, GD_INTERNAL);
    assert_non_null(strstr(err.message, "'w'"));
}

static void sources_of_impossible_shape_are_refused(void **state)
{
    struct gd_error err = {0};
    struct gd_weight *weight = NULL;
    struct gd_tensor bad[] = {
        {.dtype = GD_F32, .rank = 3, .shape = {2, 2, 2}},
        {.dtype = GD_F32, .rank = 2, .shape = {0, 4}},
        {.dtype = GD_Q4_K, .rank = 2, .shape = {4, 128}},
        {.dtype = GD_I32, .rank = 1, .shape = {4}},
        {.dtype = GD_F32, .rank = 1, .shape = {-1}},
    };
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        gd_error_clear(&err);
        assert_false(gd_weight_create(&weight, "strange", &bad[i], NULL, 0.0f, &err));
        assert_non_null(strstr(err.message, "strange"));
        assert_null(weight);
    }
}

static void a_row_order_that_leaves_the_source_is_refused(void **state)
{
    struct gd_error err = {0};
    struct gd_weight *weight = NULL;
    float data[4] = {0};
    int32_t order[2] = {0, 2};
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {2, 2}, .data = data};
    assert_false(gd_weight_create(&weight, "w", &source, order, 0.0f, &err));
    assert_null(weight);
}

/* Such a source is packed without a copy; one that is off by a byte takes the way through a copy. */
static void sources_in_the_compute_dtype_are_multiplied_at_any_alignment(void **state)
{
    static _Alignas(16) char bytes[5 * 8 * sizeof(float) + 16];
    float x[8], y[2][5];
    for (int i = 0; i < 8; i++)
        x[i] = (float)(i + 1);
    for (int shift = 0; shift < 2; shift++) {
        struct gd_error err = {0};
        struct gd_weight *weight = NULL;
        for (int i = 0; i < 40; i++)
            memcpy(bytes + shift + (size_t)i * sizeof(float), &(float){(float)test_normal(4, (uint64_t)i)}, sizeof(float));
        struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {5, 8}, .data = bytes + shift};
        assert_true(gd_weight_create(&weight, "w", &source, NULL, 0.0f, &err));
        assert_true(gd_weight_prepare(weight, GD_WEIGHT_LINEAR, GD_F32, &err));
        assert_true(gd_weight_multiply(weight, false, x, GD_F32, y[shift], GD_F32, 1, false, &err));
        gd_weight_destroy(weight);
    }
    assert_memory_equal(y[0], y[1], sizeof(y[0]));
}

static void quantised_sources_are_multiplied_as_their_values(void **state)
{
    struct gd_error err = {0};
    uint8_t blocks[5 * 2 * 34];
    float values[5 * 64], x[64], y[5];
    for (int b = 0; b < 10; b++) {
        uint16_t scale = gd_f32_to_f16(0.01f * (float)(b + 1));
        memcpy(blocks + b * 34, &scale, 2);
        for (int i = 0; i < 32; i++)
            blocks[b * 34 + 2 + i] = (uint8_t)(i * 7 + b);
    }
    struct gd_tensor source = {.dtype = GD_Q8_0, .rank = 2, .shape = {5, 64}, .data = blocks};
    struct gd_weight *weight = NULL;
    assert_true(gd_weight_create(&weight, "q", &source, NULL, 0.0f, &err));
    assert_true(gd_weight_prepare(weight, GD_WEIGHT_LINEAR, GD_F32, &err));
    gd_weight_to_f32(weight, values);
    for (int i = 0; i < 64; i++)
        x[i] = (float)test_normal(3, (uint64_t)i);
    assert_true(gd_weight_multiply(weight, false, x, GD_F32, y, GD_F32, 1, false, &err));
    for (int o = 0; o < 5; o++) {
        double sum = 0.0;
        for (int i = 0; i < 64; i++)
            sum += (double)values[o * 64 + i] * (double)x[i];
        assert_float_equal(y[o], sum, 1e-3);
    }
    gd_weight_destroy(weight);
}

/* A weight of normals in `dtype`: Q8_0 blocks as a file has them, or f32 that is quantised to NF4. */
static struct gd_weight *quantised_weight(enum gd_dtype dtype, int out, int in, void *bytes)
{
    struct gd_error err = {0};
    struct gd_weight *weight = NULL;
    for (int i = 0; i < out * in / 32 && dtype == GD_Q8_0; i++) {
        uint8_t *block = (uint8_t *)bytes + 34 * i;
        uint16_t scale = gd_f32_to_f16(0.01f);
        memcpy(block, &scale, 2);
        for (int j = 0; j < 32; j++)
            block[2 + j] = (uint8_t)(int8_t)(100.0 * test_normal(5, (uint64_t)(32 * i + j)) / 3.0);
    }
    for (int i = 0; i < out * in && dtype == GD_NF4; i++)
        ((float *)bytes)[i] = (float)test_normal(6, (uint64_t)i);
    struct gd_tensor source = {.dtype = dtype == GD_NF4 ? GD_F32 : dtype, .rank = 2, .shape = {out, in}, .data = bytes};
    assert_true(gd_weight_create(&weight, "q", &source, NULL, 0.0f, &err));
    return weight;
}

static void quantised_weights_that_stay_so_multiply_alike(void **state)
{
    static const struct {
        enum gd_dtype dtype;
        int out, in, rows;
    } cases[] = {{GD_Q8_0, 70, 96, 3}, {GD_NF4, 70, 128, 5}, {GD_NF4, 3000, 2048, 2}, {GD_Q8_0, 1, 32, 1}};
    for (size_t c = 0; c < GD_COUNT(cases); c++) {
        int out = cases[c].out, in = cases[c].in, rows = cases[c].rows, most = out > in ? out : in;
        struct gd_error err = {0};
        void *bytes = gd_alloc_array((size_t)out * (size_t)in, sizeof(float));
        struct gd_weight *weight = quantised_weight(cases[c].dtype, out, in, bytes), *plain = NULL;
        assert_true(gd_weight_quantise(weight, cases[c].dtype, &err));
        float *values = gd_alloc_array((size_t)out * (size_t)in, sizeof(float));
        gd_weight_to_f32(weight, values);
        struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {out, in}, .data = values};
        assert_true(gd_weight_create(&plain, "p", &source, NULL, 0.0f, &err));
        float *x = gd_alloc_array((size_t)rows * (size_t)most, 4), *y[2];
        for (int i = 0; i < rows * most; i++)
            x[i] = (float)test_normal(7, (uint64_t)i);
        for (int w = 0; w < 2; w++)
            y[w] = gd_alloc_array((size_t)rows * (size_t)most, 4);
        for (int back = 0; back < 2; back++)
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                struct gd_weight *of[] = {weight, plain};
                enum gd_weight_use use = back ? GD_WEIGHT_LINEAR_BACK : GD_WEIGHT_LINEAR;
                for (int w = 0; w < 2; w++) {
                    assert_true(gd_weight_prepare(of[w], use, GD_F32, &err));
                    if (!gd_weight_multiply(of[w], back, x, GD_F32, y[w], GD_F32, rows, accumulate, &err))
                        fail_msg("%s", err.message);
                }
                for (int i = 0; i < rows * (back ? in : out); i++)
                    assert_float_equal(y[0][i], y[1][i], 2e-3);
            }
        assert_int_equal(gd_weight_prepare_cost(weight, GD_WEIGHT_LINEAR, GD_BF16), 0);
        for (int w = 0; w < 2; w++)
            gd_free(y[w]);
        gd_weight_destroy(weight);
        gd_weight_destroy(plain);
        gd_free(values);
        gd_free(bytes);
        gd_free(x);
    }
}

static void rows_that_are_not_whole_blocks_are_refused(void **state)
{
    struct fixture *f = *state;
    struct gd_error err = {0};
    assert_false(gd_weight_quantise(f->weight, GD_NF4, &err));
    assert_int_equal(err.code, GD_UNSUPPORTED);
    assert_non_null(strstr(err.message, "NF4 blocks of 64"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_come_in_the_given_order_with_the_constant_added, set_up, tear_down),
        cmocka_unit_test_setup_teardown(products_forward_and_backward_agree_with_the_plain_sum, set_up, tear_down),
        cmocka_unit_test(few_rows_are_multiplied_by_blocks),
        cmocka_unit_test_setup_teardown(layouts_cost_what_was_said_and_are_made_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_product_without_its_layout_is_refused_by_name, set_up, tear_down),
        cmocka_unit_test(sources_of_impossible_shape_are_refused),
        cmocka_unit_test(a_row_order_that_leaves_the_source_is_refused),
        cmocka_unit_test(sources_in_the_compute_dtype_are_multiplied_at_any_alignment),
        cmocka_unit_test(quantised_sources_are_multiplied_as_their_values),
        cmocka_unit_test(quantised_weights_that_stay_so_multiply_alike),
        cmocka_unit_test_setup_teardown(rows_that_are_not_whole_blocks_are_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
