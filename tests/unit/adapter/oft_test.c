/* Rotations: how near to orthogonal they are. */
#include "engine/base/philox.h"
#include "engine/tensor/cayley.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { SIZE = 9, PACKED = SIZE * (SIZE - 1) / 2 };

static void make_packed(float *packed, float size)
{
    for (int i = 0; i < PACKED; i++) {
        struct gd_philox bits = gd_philox4(3, gd_philox_stream(GD_RANDOM_TEST, 0, 0), (uint64_t)i);
        packed[i] = size * gd_normal_from_bits(bits.v[0], bits.v[1]);
    }
}

static void rotation_of(const float *packed, int terms, float *rotation)
{
    double scratch[6 * SIZE * SIZE];
    assert_true(gd_cayley_scratch(SIZE) <= sizeof(scratch) / sizeof(scratch[0]));
    gd_cayley(packed, SIZE, terms, rotation, scratch);
}

static void square(const double *a, const double *b, double *out)
{
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            out[i * SIZE + j] = 0;
            for (int k = 0; k < SIZE; k++)
                out[i * SIZE + j] += a[i * SIZE + k] * b[k * SIZE + j];
        }
}

/* R^T R */
static void gram_of(const float *rotation, double *out)
{
    double r[SIZE * SIZE], transposed[SIZE * SIZE];
    for (int i = 0; i < SIZE * SIZE; i++) {
        r[i] = (double)rotation[i];
        transposed[i % SIZE * SIZE + i / SIZE] = r[i];
    }
    square(transposed, r, out);
}

static void the_exact_map_is_a_rotation(void **state)
{
    float packed[PACKED], rotation[SIZE * SIZE];
    double gram[SIZE * SIZE];
    for (float size = 0; size < 20; size = 3 * size + 0.1f) {
        make_packed(packed, size);
        rotation_of(packed, 0, rotation);
        gram_of(rotation, gram);
        for (int i = 0; i < SIZE * SIZE; i++)
            assert_true(fabs(gram[i] - (i % (SIZE + 1) == 0)) < 1e-5);
    }
}

/* R^T R = (I - Q^4)^2 for five terms, whatever the size of Q. */
static void the_series_misses_a_rotation_by_the_fourth_power(void **state)
{
    float packed[PACKED], rotation[SIZE * SIZE];
    double q[SIZE * SIZE] = {0}, squares[SIZE * SIZE], fourth[SIZE * SIZE], gap[SIZE * SIZE], gram[SIZE * SIZE];
    make_packed(packed, 0.2f);
    rotation_of(packed, 5, rotation);
    gram_of(rotation, gram);
    for (int i = 0, k = 0; i < SIZE; i++)
        for (int j = i + 1; j < SIZE; j++, k++) {
            q[i * SIZE + j] = (double)packed[k];
            q[j * SIZE + i] = -(double)packed[k];
        }
    square(q, q, squares);
    square(squares, squares, fourth);
    for (int i = 0; i < SIZE * SIZE; i++)
        fourth[i] = (i % (SIZE + 1) == 0) - fourth[i];
    square(fourth, fourth, gap);
    for (int i = 0; i < SIZE * SIZE; i++)
        assert_true(fabs(gram[i] - gap[i]) < 1e-5);
}

/* The largest difference of the series at Q to the exact map at -Q. */
static double miss(float size)
{
    float packed[PACKED], series[SIZE * SIZE], exact[SIZE * SIZE];
    double worst = 0;
    make_packed(packed, size);
    rotation_of(packed, 5, series);
    for (int i = 0; i < PACKED; i++)
        packed[i] = -packed[i];
    rotation_of(packed, 0, exact);
    for (int i = 0; i < SIZE * SIZE; i++)
        worst = fmax(worst, fabs((double)series[i] - (double)exact[i]));
    return worst;
}

static void the_series_nears_the_exact_map_with_the_other_sign(void **state)
{
    double large = miss(0.1f), half = miss(0.05f);
    assert_true(large < 0.1);
    assert_true(half < large / 12); /* the error is of the fourth power: a sixteenth */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_exact_map_is_a_rotation),
        cmocka_unit_test(the_series_misses_a_rotation_by_the_fourth_power),
        cmocka_unit_test(the_series_nears_the_exact_map_with_the_other_sign),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
