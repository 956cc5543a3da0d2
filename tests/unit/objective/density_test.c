/* How likely points are among two kinds, against scikit-learn (make_density.py). */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/objective/density.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define POINTS_MAX 64
#define WIDTH_MAX 8

static int read_points(const cJSON *test, float *x, bool *label)
{
    const cJSON *value;
    int count = 0, at = 0;
    cJSON_ArrayForEach(value, gd_json_find(test, "x")) {
        assert_true(at < POINTS_MAX * WIDTH_MAX);
        x[at++] = (float)value->valuedouble;
    }
    cJSON_ArrayForEach(value, gd_json_find(test, "label"))
        label[count++] = cJSON_IsTrue(value);
    return count;
}

static void probabilities_equal_scikit_learns(void **state)
{
    struct gd_error err = {0};
    const char *folder = getenv("GD_FIXTURES");
    assert_non_null(folder);
    char *path = gd_format("%s/training/density.json", folder);
    cJSON *fixture = gd_json_parse_file(path, 1 << 20, &err);
    const cJSON *test;
    assert_non_null(fixture);
    cJSON_ArrayForEach(test, gd_json_find(fixture, "cases")) {
        float x[POINTS_MAX * WIDTH_MAX];
        bool label[POINTS_MAX];
        struct gd_density density;
        int width = gd_json_find(test, "width")->valueint, count = read_points(test, x, label);
        gd_density_fit(&density, x, label, count, width);
        for (int i = 0; i < count; i++) {
            double ratio = gd_density_ratio(&density, x + i * width, 0, 1e9);
            double p = cJSON_GetArrayItem(gd_json_find(test, "p"), i)->valuedouble;
            if (fabs(ratio / (1 + ratio) - p) > 1e-5)
                fail_msg("point %d: %.8f, scikit-learn has %.8f", i, ratio / (1 + ratio), p);
            assert_true(gd_density_ratio(&density, x + i * width, 0.9, 1.1) >= 0.9 && gd_density_ratio(&density, x + i * width, 0.9, 1.1) <= 1.1);
        }
        gd_density_release(&density);
    }
    cJSON_Delete(fixture);
    gd_free(path);
}

static void points_that_are_all_the_same_are_as_likely_on_both_sides(void **state)
{
    const float x[8] = {3, -1, 3, -1, 3, -1, 3, -1};
    struct gd_density density;
    gd_density_fit(&density, x, (bool[]){true, false, false, false}, 4, 2);
    assert_true(fabs(gd_density_ratio(&density, x, 0, 10) - 1) < 1e-5);
    gd_density_release(&density);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probabilities_equal_scikit_learns),
        cmocka_unit_test(points_that_are_all_the_same_are_as_likely_on_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
