#include "engine/base/philox.h"
#include "tests/unit/base/scratch.h"

/* Known answers of Random123's kat_vectors, philox4x32, 10 rounds. */
static void philox_gives_the_known_answers(void **state)
{
    static const struct {
        uint64_t key, hi, lo;
        uint32_t out[4];
    } known[] = {
        {0, 0, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
        {0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u,
         {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
    };
    for (size_t i = 0; i < GD_COUNT(known); i++) {
        struct gd_philox got = gd_philox4(known[i].key, known[i].hi, known[i].lo);
        for (int j = 0; j < 4; j++)
            assert_int_equal(got.v[j], known[i].out[j]);
    }
}

static void uniform_stays_below_one_and_normal_has_mean_0_and_variance_1(void **state)
{
    assert_true(gd_uniform_from_bits(UINT32_MAX) < 1.0f);
    assert_true(gd_uniform_from_bits64(UINT32_MAX, UINT32_MAX) < 1.0);
    double sum = 0, squares = 0;
    int count = 200000;
    for (int i = 0; i < count; i++) {
        struct gd_philox r = gd_philox4(42, gd_philox_stream(GD_RANDOM_TEST, 1, 2), (uint64_t)i);
        float u = gd_uniform_from_bits(r.v[2]), n = gd_normal_from_bits(r.v[0], r.v[1]);
        assert_true(u >= 0.0f && u < 1.0f && isfinite(n));
        sum += n;
        squares += (double)n * n;
    }
    assert_true(fabs(sum / count) < 0.01);
    assert_true(fabs(squares / count - 1.0) < 0.02);
}

static void streams_differ_by_purpose_step_and_leaf(void **state)
{
    uint64_t a = gd_philox_stream(GD_RANDOM_DROPOUT, 1, 0);
    assert_true(a != gd_philox_stream(GD_RANDOM_SAMPLE, 1, 0));
    assert_true(a != gd_philox_stream(GD_RANDOM_DROPOUT, 2, 0));
    assert_true(a != gd_philox_stream(GD_RANDOM_DROPOUT, 1, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(uniform_stays_below_one_and_normal_has_mean_0_and_variance_1),
        cmocka_unit_test(streams_differ_by_purpose_step_and_leaf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
