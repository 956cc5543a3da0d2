#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/dequant.h"
#include "engine/tensor/tensor.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void half_precision_survives_the_round_trip_for_every_bit_pattern(void **state)
{
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = gd_f16_to_f32((uint16_t)bits);
        if (isnan(value))
            assert_true(isnan(gd_f16_to_f32(gd_f32_to_f16(value))));
        else
            assert_int_equal(gd_f32_to_f16(value), bits);
    }
}

static void half_precision_rounds_to_nearest_even_and_overflows_to_infinity(void **state)
{
    assert_int_equal(gd_f32_to_f16(65519.0f), 0x7BFF);
    assert_int_equal(gd_f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(gd_f32_to_f16(-1e30f), 0xFC00);
    assert_int_equal(gd_f32_to_f16(1.0f + 0x1p-11f), 0x3C00);         /* tie: to even */
    assert_int_equal(gd_f32_to_f16(1.0f + 3 * 0x1p-11f), 0x3C02);     /* tie: to even */
    assert_int_equal(gd_f32_to_f16(0x1p-25f), 0x0000);                /* tie at half of the smallest */
    assert_int_equal(gd_f32_to_f16(0x1.8p-25f), 0x0001);
    assert_int_equal(gd_f32_to_f16(-0.0f), 0x8000);
}

static void bf16_rounds_to_nearest_even_and_keeps_nan(void **state)
{
    assert_int_equal(gd_f32_to_bf16(1.0f + 0x1p-8f), 0x3F80);
    assert_int_equal(gd_f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3F82);
    assert_true(isnan(gd_bf16_to_f32(gd_f32_to_bf16(NAN))));
    assert_true(isinf(gd_bf16_to_f32(gd_f32_to_bf16(INFINITY))));
    float row[37], back[37];
    uint16_t wide[37];
    for (int i = 0; i < 37; i++)
        row[i] = i == 5 ? NAN : (float)(i - 18) * 1.37f;
    gd_convert_from_f32(wide, GD_BF16, row, 37);
    gd_convert_to_f32(back, wide, GD_BF16, 37);
    for (int i = 0; i < 37; i++) {
        assert_int_equal(wide[i], gd_f32_to_bf16(row[i]));
        assert_true(i == 5 ? isnan(back[i]) : back[i] == gd_bf16_to_f32(wide[i]));
    }
}

static void sizes_of_blocks_follow_the_table(void **state)
{
    assert_int_equal(gd_dtype_bytes(GD_Q4_K, 512), 288);
    assert_int_equal(gd_dtype_bytes(GD_BF16, 3), 6);
    assert_string_equal(gd_dtype_name(GD_Q6_K), "Q6_K");
    assert_int_equal(gd_dtype_block(GD_Q8_0), 32);
    struct gd_tensor tensor = {.dtype = GD_F32, .rank = 3, .shape = {2, 3, 5}};
    assert_int_equal(gd_tensor_count(&tensor), 30);
}

/* ---- vectors made by the gguf package (tests/fixtures/make_quant.py) ---- */

static size_t unhex(uint8_t *out, const char *hex)
{
    size_t length = strlen(hex) / 2;
    for (size_t i = 0; i < length; i++)
        assert_int_equal(sscanf(hex + 2 * i, "%2" SCNx8, &out[i]), 1);
    return length;
}

static enum gd_dtype dtype_named(const char *name)
{
    for (int dtype = 0; dtype < GD_DTYPE_COUNT; dtype++)
        if (strcmp(gd_dtype_name((enum gd_dtype)dtype), name) == 0)
            return (enum gd_dtype)dtype;
    fail_msg("no dtype %s", name);
    return GD_F32;
}

static void check_vector(char *line)
{
    char *rest = NULL, *name = strtok_r(line, " ", &rest);
    enum gd_dtype dtype = dtype_named(name);
    int64_t blocks = atoi(strtok_r(NULL, " ", &rest)), count = blocks * gd_dtype_block(dtype);
    /* One byte of offset: blocks in a file have no alignment. */
    uint8_t *bytes = gd_alloc(gd_dtype_bytes(dtype, count) + 1);
    float *expected = gd_alloc_array((size_t)count, sizeof(float)), *got = gd_alloc_array((size_t)count, sizeof(float));
    assert_int_equal(unhex(bytes + 1, strtok_r(NULL, " ", &rest)), gd_dtype_bytes(dtype, count));
    assert_int_equal(unhex((uint8_t *)expected, strtok_r(NULL, " ", &rest)), (size_t)count * sizeof(float));
    gd_convert_to_f32(got, bytes + 1, dtype, count);
    for (int64_t i = 0; i < count; i++)
        if (fabsf(got[i] - expected[i]) > 1e-6f * fabsf(expected[i]) + 1e-9f)
            fail_msg("%s[%" PRId64 "] is %.9g, the gguf package says %.9g", name, i, (double)got[i], (double)expected[i]);
    gd_free(got);
    gd_free(expected);
    gd_free(bytes);
}

static void quantised_blocks_have_the_values_that_the_gguf_package_gives_them(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/quant.txt", getenv("GD_FIXTURES")), *text = NULL;
    size_t length = 0;
    int checked = 0;
    if (!gd_file_read(path, 1 << 20, &text, &length, &err))
        fail_msg("%s", err.message);
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
        if (line[0] != '#') {
            check_vector(line);
            checked++;
        }
    assert_int_equal(checked, GD_DTYPE_COUNT - GD_Q4_0); /* all quantised dtypes */
    gd_free(text);
    gd_free(path);
}

static void normals_become_the_nf4_blocks_that_bitsandbytes_makes(void **state)
{
    struct gd_error err = {0};
    char *paths[] = {gd_format("%s/nf4.txt", getenv("GD_FIXTURES")), gd_format("%s/quant.txt", getenv("GD_FIXTURES"))};
    char *texts[2] = {NULL};
    size_t length = 0;
    float inputs[192];
    uint8_t blocks[3 * 36], expected[3 * 36];
    for (int i = 0; i < 2; i++)
        if (!gd_file_read(paths[i], 1 << 20, &texts[i], &length, &err))
            fail_msg("%s", err.message);
    texts[0][strcspn(texts[0], "\n")] = '\0';
    assert_int_equal(unhex((uint8_t *)inputs, texts[0]), sizeof(inputs));
    char *line = strstr(texts[1], "\nNF4 3 ");
    assert_non_null(line);
    line += strlen("\nNF4 3 ");
    line[strcspn(line, " ")] = '\0';
    assert_int_equal(unhex(expected, line), sizeof(expected));
    gd_quantise_nf4(blocks, inputs, 3);
    assert_memory_equal(blocks, expected, sizeof(blocks));

    memset(inputs, 0, sizeof(inputs));
    gd_quantise_nf4(blocks, inputs, 3);
    gd_convert_to_f32(inputs, blocks, GD_NF4, 192);
    for (int i = 0; i < 192; i++)
        assert_float_equal(inputs[i], 0, 0);
    for (int i = 0; i < 2; i++) {
        gd_free(texts[i]);
        gd_free(paths[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(half_precision_survives_the_round_trip_for_every_bit_pattern),
        cmocka_unit_test(half_precision_rounds_to_nearest_even_and_overflows_to_infinity),
        cmocka_unit_test(bf16_rounds_to_nearest_even_and_keeps_nan),
        cmocka_unit_test(sizes_of_blocks_follow_the_table),
        cmocka_unit_test(quantised_blocks_have_the_values_that_the_gguf_package_gives_them),
        cmocka_unit_test(normals_become_the_nf4_blocks_that_bitsandbytes_makes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
