/* A row's product with a weight is the same whatever rows stand beside it: what lets jobs share a pass. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/rows_alone.h"
#include "op_case.h"
#include <stdlib.h>

static const int64_t sizes[][2] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536}, {320, 96}, {259, 64}, {64, 864}};
static const int64_t parts[][3] = {{64, 64, 64}, {64, 128, 320}, {128, 64, 512}, {256, 192, 64}};

static void check(enum gd_dtype source_dtype, enum gd_dtype quantised, enum gd_dtype dtype)
{
    struct gd_error err = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t count = sizes[i][0] * sizes[i][1];
        float *data = gd_alloc_array((size_t)count, sizeof(float));
        for (int64_t j = 0; j < count; j++)
            data[j] = (float)test_normal(i, (uint64_t)j);
        struct gd_tensor tensor = {.dtype = source_dtype, .rank = 2, .shape = {sizes[i][0], sizes[i][1]}, .data = data};
        struct gd_weight *weight = NULL;
        assert_true(gd_weight_create(&weight, "w", &tensor, NULL, 0.0f, &err));
        bool whole = quantised == GD_F32 || sizes[i][1] % gd_dtype_block(quantised) == 0, same = false;
        if (quantised != GD_F32 && whole)
            assert_true(gd_weight_quantise(weight, quantised, &err));
        for (int back = 0; back < 2 && whole; back++) {
            assert_true(gd_weight_prepare(weight, back ? GD_WEIGHT_LINEAR_BACK : GD_WEIGHT_LINEAR, dtype, &err));
            for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
                assert_true(gd_rows_alone(weight, back, dtype, parts[p], 3, &same, &err));
                if (!same)
                    fail_msg("[%d, %d] %s in %s: rows differ with %d rows beside them", (int)sizes[i][0], (int)sizes[i][1],
                             back ? "back" : "forward", gd_dtype_name(dtype), (int)(parts[p][1] + parts[p][2]));
            }
        }
        gd_weight_destroy(weight);
        gd_free(data);
    }
}

static void rows_of_f32_products_stand_alone(void **state)
{
    check(GD_F32, GD_F32, GD_F32);
}

static void rows_of_bf16_products_stand_alone(void **state)
{
    check(GD_F32, GD_F32, GD_BF16);
}

static void rows_of_products_with_quantised_weights_stand_alone(void **state)
{
    check(GD_F32, GD_NF4, GD_BF16);
    check(GD_F32, GD_NF4, GD_F32);
}

int main(void)
{
    struct gd_error err = {0};
    if (!gd_device_init("cpu", 2, &err))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_f32_products_stand_alone),
        cmocka_unit_test(rows_of_bf16_products_stand_alone),
        cmocka_unit_test(rows_of_products_with_quantised_weights_stand_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
