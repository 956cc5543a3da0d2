/* The formula of a multi grader: what it computes, and how it says no. */
#include "engine/base/alloc.h"
#include "engine/eval/formula.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char *const names[] = {"exact", "fuzzy", "min", "größe"};
static const double values[] = {0.5, 0.25, 3, 7};

static bool compute(const char *text, double *result, struct gd_error *err)
{
    struct gd_formula *formula = gd_formula_parse(text, names, 4, "grader.calculate_output", err);
    bool ok = formula != NULL && gd_formula_evaluate(formula, values, result, err);
    gd_formula_destroy(formula);
    return ok;
}

static void formulas_compute(void **state)
{
    static const struct {
        const char *text;
        double value;
    } cases[] = {
        {"1", 1},
        {" 1.5e2 ", 150},
        {".5", 0.5},
        {"1.", 1},
        {"exact", 0.5},
        {"0.7*exact+0.3*fuzzy", 0.425},
        {"2+3*4", 14},
        {"(2+3)*4", 20},
        {"10-4-3", 3},
        {"16/4/2", 2},
        {"2^3^2", 512},
        {"-2^2", -4},
        {"2^-1", 0.5},
        {"--2", 2},
        {"+2", 2},
        {"7%4", 3},
        {"-7%4", 1},
        {"7%-4", -1},
        {"7.5%2", 1.5},
        {"2*-3", -6},
        {"0^0", 1},
        {"min", 3},
        {"min(min, 2)", 2},
        {"min (exact,fuzzy)", 0.25},
        {"max(1,2,5,3)", 5},
        {"max(4)", 4},
        {"abs(-3)", 3},
        {"floor(-1.5)", -2},
        {"ceil(1.2)", 2},
        {"exp(0)", 1},
        {"sqrt(16)", 4},
        {"log(exp(2))", 2},
        {"größe", 7},
        {"(exact + fuzzy) / 2", 0.375},
        {"max(exact, fuzzy) * (1 - abs(exact - fuzzy)) ^ 2", 0.28125},
        {"1\n+\t1", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gd_error err = {0};
        double result = NAN;
        if (!compute(cases[i].text, &result, &err) || fabs(result - cases[i].value) > 1e-12)
            fail_msg("%s: %g (%s)", cases[i].text, result, err.message);
    }
}

static void mistakes_are_named_with_their_place(void **state)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "a value is missing at the end"},
        {"1+", "at character 3: a value is missing"},
        {"1 2", "at character 3: an operator must stand here"},
        {"exakt", "did you mean 'exact'"},
        {"1 + zebra", "at character 5: there is no grader 'zebra'"},
        {"größe + q", "at character 9"},
        {"(1", "at character 1: '(' is not closed"},
        {"1)", "')' closes nothing"},
        {"*1", "not '*'"},
        {"1 & 1", "at character 3"},
        {"sqr(4)", "did you mean 'sqrt'"},
        {"abs(1,2)", "abs takes one value, not 2"},
        {"max()", "a value must stand here, not ')'"},
        {"max(1,)", "at character 7"},
        {"min(1", "'min(' is not closed"},
        {"1.2.3", "'1.2.3' is not a number"},
        {"2e", "an operator must stand"},
        {"1e999", "is not a number"},
        {".", "'.' is not a number"},
        {"2exact", "between a number and a name"},
        {"exact > 1", "at character 7"},
        {"0x10", "between a number and a name"},
        {"\"a\"", "not '\"'"},
        {"1/0", "division of 1 by zero"},
        {"exact % (fuzzy - 0.25)", "division of 0.5 by zero"},
        {"sqrt(-1)", "sqrt(-1) is not a finite"},
        {"log(0)", "log(0)"},
        {"exp(1000)", "exp(1000)"},
        {"10^400", "10 ^ 400 is not"},
        {"(-8)^0.5", "-8 ^ 0.5"},
        {"1e308*10", "is not a finite number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gd_error err = {0};
        double result;
        if (compute(cases[i].text, &result, &err) || strstr(err.message, cases[i].part) == NULL ||
            strncmp(err.message, err.param, strlen(err.param)) != 0)
            fail_msg("%s: '%s' lacks '%s'", cases[i].text, err.message, cases[i].part);
        assert_string_equal(err.param, "grader.calculate_output");
    }
}

static void repeat(char *out, const char *unit, size_t times)
{
    for (size_t i = 0; i < times; i++)
        memcpy(out + i * strlen(unit), unit, strlen(unit));
    out[times * strlen(unit)] = '\0';
}

static void size_and_depth_are_bounded(void **state)
{
    static const char *const units[] = {"(", "-", "2^", "max(", "1+", " ", "((1)"};
    char *text = gd_alloc(3 * GD_FORMULA_BYTES_MAX);
    double result;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        struct gd_error err = {0};
        repeat(text, units[i], GD_FORMULA_BYTES_MAX / strlen(units[i]));
        assert_false(compute(text, &result, &err));
        struct gd_error longer = {0};
        repeat(text, units[i], GD_FORMULA_BYTES_MAX / strlen(units[i]) + 1);
        assert_false(compute(text, &result, &longer));
    }
    struct gd_error err = {0};
    repeat(text, "1+", 500);
    strcat(text, "1");
    assert_true(compute(text, &result, &err) && result == 501);
    repeat(text, "(", 60);
    strcat(text, "1");
    repeat(text + 61, ")", 60);
    assert_true(compute(text, &result, &err) && result == 1);
    gd_free(text);
}

static void names_are_those_that_a_formula_can_call(void **state)
{
    assert_true(gd_formula_is_name("a_1") && gd_formula_is_name("_") && gd_formula_is_name("größe"));
    assert_false(gd_formula_is_name("") || gd_formula_is_name("1a") || gd_formula_is_name("a-b") ||
                 gd_formula_is_name("a b"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formulas_compute),
        cmocka_unit_test(mistakes_are_named_with_their_place),
        cmocka_unit_test(size_and_depth_are_bounded),
        cmocka_unit_test(names_are_those_that_a_formula_can_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
