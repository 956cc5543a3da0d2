/*
 * Walks the registry: every op against its double-precision reference in f32 and bf16, in place, on one thread and on
 * all, twice with the same bits, and its gradient against finite differences of the reference. GD_OP=name runs one op.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/graph_internal.h"
#include "op_case.h"
#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/unit/tensor/reading.h"

#define PRINTED_MAX 4       /* differing elements that are printed for one check */
#define ELEMENTS_MAX 24     /* elements of an input whose gradient is checked one by one */
#define STEP 1e-4           /* of the central differences of the double reference: error about 1e-8 */
#define ROUNDING 1e-10      /* what differences of sums may leave where the slope is 0 */

/* Ops that read a handle have tests of their own. */
static const char *const elsewhere[] = {"attention_cached", "expert_dot", "expert_rows", "expert_sum", "segment_loss", "wear", "wear_input", "wear_rows"};

struct check {
    const struct gd_op *op;
    const struct gd_op_case *op_case;
    enum gd_dtype act;
    double *data[GD_CALL_INPUTS_MAX];
    double *expected[GD_CALL_OUTPUTS_MAX];
    int64_t counts[GD_CALL_OUTPUTS_MAX];
    int failures;
};

__attribute__((format(printf, 2, 3))) static void report(struct check *check, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s (%s) in %s: ", check->op->name, check->op_case ? check->op_case->name : "-", gd_dtype_name(check->act));
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    check->failures++;
}

static double root_mean_square(const double *x, int64_t count)
{
    double sum = 0.0;
    int64_t finite = 0;
    for (int64_t i = 0; i < count; i++)
        if (isfinite(x[i])) {
            sum += x[i] * x[i];
            finite++;
        }
    return finite > 0 ? sqrt(sum / (double)finite) : 0.0;
}

/* Sums cancel, so the error of an element is measured against the larger of itself and the typical element. */
static bool is_close(double got, double expected, double typical, double tolerance)
{
    if (got == expected)
        return true;
    double scale = fabs(expected) > typical ? fabs(expected) : typical;
    return fabs(got - expected) <= tolerance * scale;
}

static void compare_outputs(struct check *check, const struct bench *bench, const char *run, int out_count)
{
    double tolerance = check->act == GD_BF16 ? check->op_case->tolerance_bf16 : check->op_case->tolerance;
    for (int k = 0; k < out_count; k++) {
        const struct gd_value *out = bench->call->out[k];
        bool exact = out->dtype == GD_I32;
        double typical = root_mean_square(check->expected[k], check->counts[k]);
        int printed = 0;
        for (int64_t i = 0; i < check->counts[k] && printed < PRINTED_MAX; i++) {
            double got = bench_at(bench, out, i), expected = check->expected[k][i];
            if (exact ? got == expected : is_close(got, expected, typical, tolerance))
                continue;
            report(check, "%s: output %d[%" PRId64 "] is %.9g, reference %.9g (tolerance %g, typical %g)", run, k, i, got,
                   expected, tolerance, typical);
            printed++;
        }
    }
}

static void make_reference(struct check *check, const struct bench *bench)
{
    for (int k = 0; k < bench->call->out_count; k++) {
        check->counts[k] = gd_value_elements(bench->call->out[k]);
        check->expected[k] = gd_alloc_array((size_t)check->counts[k] + 1, sizeof(double));
        for (int64_t i = 0; i < check->counts[k]; i++)
            check->expected[k][i] = NAN;
    }
    check->op->reference(check->op_case, check->data, check->expected);
}

/* ---- forward ---- */

static char *snapshot(const struct bench *bench, int k, size_t *size_bytes)
{
    *size_bytes = gd_value_bytes(bench->call->out[k]);
    char *copy = gd_alloc(*size_bytes + 1);
    memcpy(copy, test_read(bench->plan, bench->call->out[k]), *size_bytes);
    return copy;
}

static void check_repeats(struct check *check, struct bench *bench)
{
    struct gd_error err = {0};
    for (int k = 0; k < bench->call->out_count; k++) {
        size_t size_bytes = 0;
        char *before = snapshot(bench, k, &size_bytes);
        if (!bench_run(bench, &err))
            report(check, "second run: %s", err.message);
        else if (memcmp(before, test_read(bench->plan, bench->call->out[k]), size_bytes) != 0)
            report(check, "a second run gives other bits in output %d", k);
        gd_free(before);
    }
}

static void check_one_thread(struct check *check, struct bench *bench)
{
    struct gd_error err = {0};
    omp_set_num_threads(1);
    if (!bench_run(bench, &err))
        report(check, "one thread: %s", err.message);
    else
        compare_outputs(check, bench, "one thread", bench->call->out_count);
    omp_set_num_threads(gd_device()->threads);
}

static void check_in_place(struct check *check)
{
    struct gd_error err = {0};
    struct bench bench;
    int input = check->op->inplace;
    if (input >= 0 && input < check->op_case->in_count && check->op_case->in[input].rank > 0) {
        if (!bench_build(&bench, check->op, check->op_case, check->act, check->data, true, NULL, &err) || !bench_run(&bench, &err))
            report(check, "in place: %s", err.message);
        else
            compare_outputs(check, &bench, "in place", 1);
        bench_release(&bench);
    }
}

static void check_forward(struct check *check)
{
    struct gd_error err = {0};
    struct bench bench;
    if (!bench_build(&bench, check->op, check->op_case, check->act, check->data, false, NULL, &err) || !bench_run(&bench, &err)) {
        report(check, "%s", err.message);
    } else {
        make_reference(check, &bench);
        compare_outputs(check, &bench, "forward", bench.call->out_count);
        check_repeats(check, &bench);
        check_one_thread(check, &bench);
    }
    bench_release(&bench);
    if (check->expected[0] != NULL)
        check_in_place(check);
}

/* ---- gradient: of L(inputs) = sum_i upstream[i] out0[i] ---- */

static double functional(struct check *check, double *const *data, const double *upstream, double **out)
{
    check->op->reference(check->op_case, data, out);
    double sum = 0.0;
    for (int64_t i = 0; i < check->counts[0]; i++)
        if (isfinite(out[0][i]))
            sum += upstream[i] * out[0][i];
    return sum;
}

/* dL along `direction` of input j, by central differences. */
static double slope(struct check *check, int j, const double *direction, const double *upstream, double **out)
{
    int64_t count = case_count(&check->op_case->in[j]);
    double *kept = check->data[j], *moved = gd_alloc_array((size_t)count + 1, sizeof(double)), value[2];
    check->data[j] = moved;
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < count; i++)
            moved[i] = kept[i] + (side ? STEP : -STEP) * direction[i];
        value[side] = functional(check, check->data, upstream, out);
    }
    check->data[j] = kept;
    gd_free(moved);
    return (value[1] - value[0]) / (2.0 * STEP);
}

static void check_elements(struct check *check, int j, const double *grad, double *direction, const double *upstream,
                           double **out, double typical, double tolerance)
{
    int64_t count = case_count(&check->op_case->in[j]);
    int64_t tried = count < ELEMENTS_MAX ? count : ELEMENTS_MAX;
    for (int64_t n = 0, printed = 0; n < tried && printed < PRINTED_MAX; n++) {
        int64_t i = tried == 1 ? 0 : n * (count - 1) / (tried - 1);
        memset(direction, 0, (size_t)count * sizeof(double));
        direction[i] = 1.0;
        double expected = slope(check, j, direction, upstream, out);
        if (is_close(grad[i], expected, typical, tolerance) || fabs(grad[i] - expected) < ROUNDING)
            continue;
        report(check, "gradient of input %d at [%" PRId64 "] is %.9g, finite difference %.9g (tolerance %g, typical %g)", j, i,
               grad[i], expected, tolerance, typical);
        printed++;
    }
}

/* Random errors of the elements add up like a random walk, so the bound grows with the length of the direction. */
static void check_directions(struct check *check, int j, const double *grad, double *direction, const double *upstream,
                             double **out, double typical, double tolerance)
{
    int64_t count = case_count(&check->op_case->in[j]);
    for (uint64_t key = 0; key < 2; key++) {
        double along = 0.0;
        for (int64_t i = 0; i < count; i++) {
            direction[i] = test_normal(7000 + key, (uint64_t)i);
            along += direction[i] * grad[i];
        }
        double expected = slope(check, j, direction, upstream, out);
        if (!(fabs(along - expected) <= 4.0 * tolerance * typical * sqrt((double)count) + tolerance * fabs(expected) + ROUNDING))
            report(check, "gradient of input %d along direction %d is %.9g, finite difference %.9g (tolerance %g)", j, (int)key,
                   along, expected, tolerance);
    }
}

static void check_gradient_of(struct check *check, const struct bench *bench, int j, const double *upstream, double **out)
{
    int64_t count = case_count(&check->op_case->in[j]);
    double tolerance = check->act == GD_BF16 ? 4.0 * check->op_case->tolerance_bf16 : 10.0 * check->op_case->tolerance;
    double least = check->act == GD_BF16 ? 1.6e-2 : 1e-5; /* gradients of activations are rounded to bf16 */
    tolerance = tolerance > least ? tolerance : least;
    if (bench->grads[j] == NULL) {
        report(check, "no gradient for input %d", j);
        return;
    }
    double *grad = gd_alloc_array((size_t)count + 1, sizeof(double)), *direction = gd_alloc_array((size_t)count + 1, sizeof(double));
    for (int64_t i = 0; i < count; i++)
        grad[i] = bench_at(bench, bench->grads[j], i);
    double typical = root_mean_square(grad, count);
    if (check->act == GD_F32)
        check_elements(check, j, grad, direction, upstream, out, typical, tolerance);
    check_directions(check, j, grad, direction, upstream, out, typical, tolerance);
    gd_free(direction);
    gd_free(grad);
}

static bool wants_gradient(const struct gd_op_case *op_case)
{
    for (int j = 0; j < op_case->in_count; j++)
        if (op_case->in[j].rank > 0 && op_case->in[j].gradient)
            return true;
    return false;
}

static void check_gradient(struct check *check)
{
    struct gd_error err = {0};
    struct bench bench;
    double *out[GD_CALL_OUTPUTS_MAX] = {NULL}, *upstream = gd_alloc_array((size_t)check->counts[0] + 1, sizeof(double));
    for (int k = 0; k < check->op->out_count; k++)
        out[k] = gd_alloc_array((size_t)check->counts[k] + 1, sizeof(double));
    for (int64_t i = 0; i < check->counts[0]; i++) {
        float x = (float)test_normal(5000, (uint64_t)i);
        upstream[i] = (double)(check->act == GD_BF16 ? gd_bf16_to_f32(gd_f32_to_bf16(x)) : x);
    }
    if (!bench_build(&bench, check->op, check->op_case, check->act, check->data, false, upstream, &err) || !bench_run(&bench, &err))
        report(check, "gradient: %s", err.message);
    else
        for (int j = 0; j < check->op_case->in_count; j++)
            if (check->op_case->in[j].rank > 0 && check->op_case->in[j].gradient)
                check_gradient_of(check, &bench, j, upstream, out);
    bench_release(&bench);
    for (int k = 0; k < check->op->out_count; k++)
        gd_free(out[k]);
    gd_free(upstream);
}

/* ---- all ---- */

static int check_case(const struct gd_op *op, const struct gd_op_case *op_case, enum gd_dtype act)
{
    struct check check = {.op = op, .op_case = op_case, .act = act};
    case_fill(op_case, act, check.data);
    check_forward(&check);
    if (check.expected[0] != NULL && wants_gradient(op_case))
        check_gradient(&check);
    case_release(check.data);
    for (int k = 0; k < GD_CALL_OUTPUTS_MAX; k++)
        gd_free(check.expected[k]);
    return check.failures;
}

static bool tested_elsewhere(const struct gd_op *op)
{
    for (size_t i = 0; i < GD_COUNT(elsewhere); i++)
        if (strcmp(elsewhere[i], op->name) == 0)
            return true;
    return false;
}

/* Of all cases, every step-th from the first on. */
static struct {
    int next, first, step;
} part = {.step = 1};

static int check_op(const struct gd_op *op)
{
    struct check check = {.op = op};
    if (op->shape == NULL || op->run_cpu == NULL)
        report(&check, "has no shape rule or no CPU kernel");
    else if (!tested_elsewhere(op) && (op->case_count == 0 || op->reference == NULL))
        report(&check, "has no cases or no reference");
    for (int i = 0; op->shape != NULL && op->reference != NULL && i < op->case_count; i++) {
        if (part.next++ % part.step != part.first)
            continue;
        check.failures += check_case(op, &op->cases[i], GD_F32);
        if (op->cases[i].tolerance_bf16 > 0.0 && gd_device_multiplies(GD_BF16))
            check.failures += check_case(op, &op->cases[i], GD_BF16);
    }
    return check.failures;
}

static void every_op_agrees_with_its_reference_and_its_gradient_with_finite_differences(void **state)
{
    const char *only = getenv("GD_OP"), *wanted = getenv("GD_OP_PART"); /* "1/4": every fourth case, from the second on */
    int failures = 0;
    assert_true(wanted == NULL || (sscanf(wanted, "%d/%d", &part.first, &part.step) == 2 && part.first >= 0 && part.first < part.step));
    for (int i = 0; i < gd_op_count; i++)
        if (only == NULL || strcmp(only, gd_op_table[i]->name) == 0)
            failures += check_op(gd_op_table[i]);
    assert_int_equal(failures, 0);
}

static void ops_are_found_by_name_in_sorted_order(void **state)
{
    for (int i = 0; i < gd_op_count; i++) {
        assert_ptr_equal(gd_op_find(gd_op_table[i]->name), gd_op_table[i]);
        assert_true(i == 0 || strcmp(gd_op_table[i - 1]->name, gd_op_table[i]->name) < 0);
    }
    assert_null(gd_op_find("no such op"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ops_are_found_by_name_in_sorted_order),
        cmocka_unit_test(every_op_agrees_with_its_reference_and_its_gradient_with_finite_differences),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
