#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/tensor/device.h"
#include "engine/tensor/graph.h"
#include "engine/tensor/op.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include "op_case.h"
#include <math.h>
#include <stdlib.h>
#include "tests/unit/tensor/reading.h"

static struct gd_graph *new_graph(void)
{
    struct gd_graph *graph = NULL;
    struct gd_error err = {0};
    assert_true(gd_graph_create(&graph, GD_F32, &err));
    return graph;
}

static struct gd_value *matrix(struct gd_graph *g, const char *name, int64_t rows, int64_t columns)
{
    return gd_graph_input(g, name, GD_F32, 2, (const int64_t[]){rows, columns});
}

static void the_first_failure_is_kept_and_null_flows_on(void **state)
{
    struct gd_error err = {0};
    struct gd_graph *g = new_graph();
    struct gd_value *a = matrix(g, "a", 2, 3), *b = matrix(g, "b", 3, 2);
    struct gd_value *sum = gd_add(g, a, b);
    assert_null(sum);
    assert_null(gd_mul(g, sum, a));
    assert_null(gd_value_output(sum, 1));
    assert_null(gd_cast(g, NULL, GD_BF16));
    assert_null(matrix(g, "late", 1, 1));
    assert_false(gd_graph_ok(g, &err));
    assert_non_null(strstr(err.message, "'a'"));
    assert_non_null(strstr(err.message, "'b'"));
    assert_int_equal(gd_graph_call_count(g), 0);
    gd_graph_destroy(g);
}

static void absent_required_inputs_and_wrong_counts_fail_without_a_crash(void **state)
{
    struct gd_error err = {0};
    struct gd_graph *g = new_graph();
    assert_null(gd_add(g, NULL, matrix(g, "a", 1, 1)));
    assert_false(gd_graph_ok(g, &err));
    assert_non_null(strstr(err.message, "add"));
    gd_graph_destroy(g);

    g = new_graph();
    struct gd_value *a = matrix(g, "a", 1, 1);
    assert_null(gd_graph_call(g, gd_op_find("add"), (struct gd_value *[]){a, a, a}, 3, NULL));
    assert_null(gd_graph_call(g, gd_op_find("add"), &a, 1, NULL));
    gd_graph_destroy(g);

    static const struct gd_op stub = {.name = "stub", .out_count = 1};
    g = new_graph();
    assert_null(gd_graph_call(g, &stub, NULL, 0, NULL));
    gd_graph_destroy(g);
}

static void shapes_that_would_overflow_are_refused(void **state)
{
    struct gd_error err = {0};
    struct gd_graph *g = new_graph();
    assert_null(gd_graph_input(g, "huge", GD_F32, 3, (const int64_t[]){INT64_MAX / 2, 1 << 30, 1 << 30}));
    assert_false(gd_graph_ok(g, &err));
    assert_non_null(strstr(err.message, "huge"));
    gd_graph_destroy(g);
    g = new_graph();
    assert_null(matrix(g, "negative", -1, 4));
    gd_graph_destroy(g);
    g = new_graph();
    assert_null(gd_graph_param(g, "deep", 5, (const int64_t[]){1, 1, 1, 1, 1}));
    gd_graph_destroy(g);
}

static void a_weight_has_one_value_and_needs_no_gradient(void **state)
{
    struct gd_error err = {0};
    float data[6] = {0};
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {2, 3}, .data = data};
    struct gd_weight *weight = NULL;
    assert_true(gd_weight_create(&weight, "w", &source, NULL, 0.0f, &err));
    struct gd_graph *g = new_graph();
    struct gd_value *w = gd_graph_weight(g, weight), *x = matrix(g, "x", 4, 3);
    assert_ptr_equal(gd_graph_weight(g, weight), w);
    assert_false(gd_linear(g, x, w)->needs_gradient);
    struct gd_value *p = gd_graph_param(g, "p", 2, (const int64_t[]){4, 3});
    struct gd_value *y = gd_linear(g, gd_add(g, x, p), w);
    assert_true(y->needs_gradient);
    assert_false(gd_detach(g, y)->needs_gradient);
    gd_graph_destroy(g);
    gd_weight_destroy(weight);
}

/* loss = sum over everything of (x A^T) B^T + x W + 2 x, through shared x: a small net in which gradients must add up. */
struct net {
    struct gd_graph *g;
    struct gd_value *x, *a, *b, *loss, *unused;
};

#define T 3
#define N 4
#define R 2

static struct net build_net(struct gd_weight *weight)
{
    struct net net = {.g = new_graph()};
    struct gd_graph *g = net.g;
    net.x = matrix(g, "x", T, N);
    gd_graph_want(net.x);
    net.a = gd_graph_param(g, "a", 2, (const int64_t[]){R, N});
    net.b = gd_graph_param(g, "b", 2, (const int64_t[]){N, R});
    net.unused = gd_graph_param(g, "unused", 1, (const int64_t[]){1});
    struct gd_value *y = gd_linear(g, net.x, gd_graph_weight(g, weight));
    struct gd_value *t = gd_matmul(g, net.x, false, net.a, true, 1.0, NULL, GD_F32);
    y = gd_matmul(g, t, false, net.b, true, 0.5, y, GD_F32);
    y = gd_add(g, y, gd_scale(g, net.x, 2.0));
    y = gd_mul(g, y, y);
    /* [1, T] y [N, 1] is the sum of all elements, as a vector of one: row of ones, then the only column. */
    struct gd_value *left = matrix(g, "left", 1, T), *right = matrix(g, "right", N, 1);
    struct gd_value *total = gd_matmul(g, gd_matmul(g, left, false, y, false, 1.0, NULL, GD_F32), false, right, false, 1.0, NULL, GD_F32);
    net.loss = total;
    return net;
}

static double net_loss(const double *x, const double *a, const double *b, const float *w)
{
    double loss = 0.0;
    for (int t = 0; t < T; t++)
        for (int o = 0; o < N; o++) {
            double y = 2.0 * x[t * N + o];
            for (int i = 0; i < N; i++)
                y += x[t * N + i] * (double)w[o * N + i];
            for (int r = 0; r < R; r++)
                for (int i = 0; i < N; i++)
                    y += 0.5 * x[t * N + i] * a[r * N + i] * b[o * R + r];
            loss += y * y;
        }
    return loss;
}

static void check_against_differences(const float *grad, double *values, int count, const double *x, const double *a,
                                      const double *b, const float *w)
{
    for (int i = 0; i < count; i++) {
        double kept = values[i];
        values[i] = kept + 1e-5;
        double up = net_loss(x, a, b, w);
        values[i] = kept - 1e-5;
        double down = net_loss(x, a, b, w);
        values[i] = kept;
        assert_float_equal(grad[i], (up - down) / 2e-5, 1e-2 * (1.0 + fabs(up - down) / 2e-5));
    }
}

static void gradients_of_a_small_net_agree_with_finite_differences(void **state)
{
    struct gd_error err = {0};
    float w[N * N], xf[T * N], af[R * N], bf[N * R], left[T], right[N];
    double x[T * N], a[R * N], b[N * R];
    for (int i = 0; i < N * N; i++)
        w[i] = (float)test_normal(10, (uint64_t)i);
    for (int i = 0; i < T * N; i++)
        x[i] = xf[i] = (float)test_normal(11, (uint64_t)i);
    for (int i = 0; i < R * N; i++) {
        a[i] = af[i] = (float)test_normal(12, (uint64_t)i);
        b[i] = bf[i] = (float)test_normal(13, (uint64_t)i);
    }
    for (int i = 0; i < T; i++)
        left[i] = 1.0f;
    for (int i = 0; i < N; i++)
        right[i] = 1.0f;
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {N, N}, .data = w};
    struct gd_weight *weight = NULL;
    assert_true(gd_weight_create(&weight, "w", &source, NULL, 0.0f, &err));
    struct net net = build_net(weight);
    /* Rank 1 is what a loss has: the sum of the one row of `total`. */
    struct gd_value *loss = gd_sum_rows(net.g, net.loss);
    struct gd_value *wanted[] = {net.a, net.b, net.x, net.unused}, *grads[4] = {NULL};
    assert_false(gd_graph_gradient(net.g, net.loss, wanted, 4, grads, &err)); /* [1, 1] is no loss */
    gd_error_clear(&err);
    assert_true(gd_graph_gradient(net.g, loss, wanted, 4, grads, &err));
    assert_null(grads[3]);
    int adds = 0;
    for (int i = 0; i < gd_graph_call_count(net.g); i++)
        adds += strcmp(gd_graph_call_at(net.g, i)->op->name, "add") == 0;
    assert_int_equal(adds, 2); /* the net's own and that of y * y: the products carry the other sums */

    struct gd_plan *plan = NULL;
    struct gd_value *outputs[] = {loss, grads[0], grads[1], grads[2]};
    assert_true(gd_plan_create(&plan, net.g, outputs, 4, false, &err));
    void *arena = aligned_alloc(64, gd_plan_arena_bytes(plan) + 64);
    gd_plan_attach(plan, arena);
    gd_plan_bind(plan, net.x, xf);
    gd_plan_bind(plan, net.a, af);
    gd_plan_bind(plan, net.b, bf);
    for (int i = 0; i < gd_graph_value_count(net.g); i++) {
        struct gd_value *value = gd_graph_value_at(net.g, i);
        if (strcmp(value->name, "left") == 0)
            gd_plan_bind(plan, value, left);
        if (strcmp(value->name, "right") == 0)
            gd_plan_bind(plan, value, right);
    }
    if (!gd_plan_run(plan, NULL, &err))
        fail_msg("%s", err.message);
    assert_float_equal(*(float *)test_read(plan, loss), net_loss(x, a, b, w), 1e-2);
    check_against_differences(test_read(plan, grads[0]), a, R * N, x, a, b, w);
    check_against_differences(test_read(plan, grads[1]), b, N * R, x, a, b, w);
    check_against_differences(test_read(plan, grads[2]), x, T * N, x, a, b, w);
    gd_plan_destroy(plan);
    gd_graph_destroy(net.g);
    gd_weight_destroy(weight);
    free(arena);
}

static void only_what_leads_to_a_wanted_parameter_gets_gradients(void **state)
{
    struct gd_error err = {0};
    struct gd_graph *g = new_graph();
    struct gd_value *p = gd_graph_param(g, "p", 1, (const int64_t[]){1}), *q = gd_graph_param(g, "q", 1, (const int64_t[]){1});
    struct gd_value *loss = gd_mul(g, p, gd_scale(g, q, 3.0)), *grads[1] = {NULL};
    int before = gd_graph_call_count(g);
    assert_true(gd_graph_gradient(g, loss, &p, 1, grads, &err));
    assert_non_null(grads[0]);
    assert_int_equal(gd_graph_call_count(g), before + 1); /* dp = 1 * 3q, and nothing for q */
    assert_true(q->needs_gradient);
    gd_graph_destroy(g);
}

static bool blunt_shape(struct gd_graph *graph, struct gd_call *call)
{
    call->out[0]->dtype = GD_F32;
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = 1;
    return true;
}

static void an_op_without_a_gradient_before_a_parameter_is_an_error(void **state)
{
    static const struct gd_op blunt = {.name = "blunt", .in_min = 1, .in_max = 1, .out_count = 1, .shape = blunt_shape};
    struct gd_error err = {0};
    struct gd_graph *g = new_graph();
    struct gd_value *p = gd_graph_param(g, "p", 1, (const int64_t[]){1}), *grads[1] = {NULL};
    assert_false(gd_graph_gradient(g, gd_graph_call(g, &blunt, &p, 1, NULL), &p, 1, grads, &err));
    assert_non_null(strstr(err.message, "blunt"));
    gd_graph_destroy(g);
}

int main(void)
{
    struct gd_error err = {0};
    if (!gd_device_init("cpu", 2, &err))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_failure_is_kept_and_null_flows_on),
        cmocka_unit_test(absent_required_inputs_and_wrong_counts_fail_without_a_crash),
        cmocka_unit_test(shapes_that_would_overflow_are_refused),
        cmocka_unit_test(a_weight_has_one_value_and_needs_no_gradient),
        cmocka_unit_test(gradients_of_a_small_net_agree_with_finite_differences),
        cmocka_unit_test(only_what_leads_to_a_wanted_parameter_gets_gradients),
        cmocka_unit_test(an_op_without_a_gradient_before_a_parameter_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
