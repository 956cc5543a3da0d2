#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/tensor/device.h"
#include "engine/tensor/graph.h"
#include "engine/tensor/layout.h"
#include "engine/tensor/op.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include "op_case.h"
#include <math.h>
#include <stdlib.h>
#include "tests/unit/tensor/reading.h"

#define ROWS 4
#define COLUMNS 16
#define BYTES ((size_t)ROWS * COLUMNS * sizeof(float))

struct fixture {
    struct gd_graph *g;
    struct gd_value *x;
    struct gd_plan *plan;
    struct gd_error err;
    float x_data[ROWS * COLUMNS];
    _Alignas(64) char arena[64 * 1024];
};

static int set_up(void **state)
{
    struct fixture *f = aligned_alloc(64, (sizeof(*f) + 63) / 64 * 64);
    memset(f, 0, sizeof(*f));
    assert_true(gd_graph_create(&f->g, GD_F32, &f->err));
    f->x = gd_graph_input(f->g, "x", GD_F32, 2, (const int64_t[]){ROWS, COLUMNS});
    for (int i = 0; i < ROWS * COLUMNS; i++)
        f->x_data[i] = (float)i;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    gd_plan_destroy(f->plan);
    gd_graph_destroy(f->g);
    free(f);
    return 0;
}

static void create_plan(struct fixture *f, struct gd_value *const *outputs, int count)
{
    if (!gd_plan_create(&f->plan, f->g, outputs, count, false, &f->err))
        fail_msg("%s", f->err.message);
    assert_true(gd_plan_arena_bytes(f->plan) <= sizeof(f->arena));
    memset(f->arena, 0xFF, sizeof(f->arena));
    gd_plan_attach(f->plan, f->arena);
    gd_plan_bind(f->plan, f->x, f->x_data);
}

static void run_plan(struct fixture *f)
{
    if (!gd_plan_run(f->plan, NULL, &f->err))
        fail_msg("%s", f->err.message);
}

static void a_chain_works_in_place_in_one_block(void **state)
{
    struct fixture *f = *state;
    struct gd_value *y = gd_scale(f->g, gd_scale(f->g, gd_scale(f->g, f->x, 2.0), 3.0), 5.0);
    struct gd_value *z = gd_sum_rows(f->g, y);
    create_plan(f, &z, 1);
    assert_int_equal(gd_plan_arena_bytes(f->plan), BYTES + COLUMNS * sizeof(float));
    run_plan(f);
    const float *sums = test_read(f->plan, z);
    assert_float_equal(sums[1], 30.0 * (1 + 17 + 33 + 49), 1e-3);
}

static void parts_work_in_place_where_they_lie(void **state)
{
    struct fixture *f = *state;
    const int64_t rows[] = {1, 3};
    struct gd_value *y = gd_scale(f->g, f->x, 2.0), *parts = gd_split(f->g, y, rows, 2);
    struct gd_value *scaled[] = {gd_scale(f->g, parts, 3.0), gd_scale(f->g, gd_value_output(parts, 1), 5.0)};
    struct gd_value *z = gd_sum_rows(f->g, gd_join(f->g, scaled, rows, 2));
    create_plan(f, &z, 1);
    assert_int_equal(gd_plan_arena_bytes(f->plan), BYTES + COLUMNS * sizeof(float));
    run_plan(f);
    const float *sums = test_read(f->plan, z);
    assert_float_equal(sums[1], 6.0 * 1 + 10.0 * (17 + 33 + 49), 1e-3);
}

static void a_part_is_not_overwritten_while_the_whole_is_read_later(void **state)
{
    struct fixture *f = *state;
    const int64_t rows[] = {1, 3};
    struct gd_value *y = gd_scale(f->g, f->x, 2.0), *parts = gd_split(f->g, y, rows, 2);
    struct gd_value *scaled[] = {gd_scale(f->g, parts, 3.0), gd_scale(f->g, gd_value_output(parts, 1), 5.0)};
    struct gd_value *z = gd_sum_rows(f->g, gd_add(f->g, gd_join(f->g, scaled, rows, 2), y));
    create_plan(f, &z, 1);
    run_plan(f);
    const float *sums = test_read(f->plan, z);
    assert_float_equal(sums[1], 8.0 * 1 + 12.0 * (17 + 33 + 49), 1e-3);
}

static void products_of_parts_add_to_the_gradient_of_the_whole(void **state)
{
    struct fixture *f = *state;
    const int64_t rows[] = {1, 3}, square[] = {COLUMNS, COLUMNS};
    gd_graph_want(f->x);
    struct gd_value *w[2], *v, *out[2], *y = gd_scale(f->g, f->x, 1.0), *grad = NULL;
    float identity[2][COLUMNS * COLUMNS] = {{0}};
    for (int k = 0; k < 2; k++)
        w[k] = gd_graph_param(f->g, "w", 2, square);
    struct gd_value *parts = gd_split(f->g, y, rows, 2);
    for (int k = 0; k < 2; k++)
        out[k] = gd_matmul(f->g, gd_value_output(parts, k), false, w[k], true, k + 1.0, NULL, GD_F32);
    v = gd_join(f->g, out, rows, 2);
    struct gd_value *loss = gd_dot(f->g, gd_add(f->g, v, gd_scale(f->g, y, 10.0)), gd_detach(f->g, f->x));
    assert_true(gd_graph_gradient(f->g, loss, &f->x, 1, &grad, &f->err));
    int adds = 0;
    for (int i = 0; i < gd_graph_call_count(f->g); i++)
        adds += strcmp(gd_graph_call_at(f->g, i)->op->name, "add") == 0;
    assert_int_equal(adds, 1); /* the forward pass's own */
    create_plan(f, &grad, 1);
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < COLUMNS; i++)
            identity[k][i * COLUMNS + i] = 1;
        gd_plan_bind(f->plan, w[k], identity[k]);
    }
    run_plan(f);
    const float *d = test_read(f->plan, grad);
    assert_float_equal(d[3], 11.0 * 3, 1e-3);
    assert_float_equal(d[2 * COLUMNS + 3], 12.0 * (2 * COLUMNS + 3), 1e-3);
}

static void a_value_that_is_read_later_is_not_overwritten(void **state)
{
    struct fixture *f = *state;
    struct gd_value *a = gd_scale(f->g, f->x, 2.0), *b = gd_scale(f->g, a, 3.0), *c = gd_add(f->g, b, a);
    struct gd_value *both = gd_mul(f->g, c, c);
    create_plan(f, &both, 1);
    run_plan(f);
    const float *out = test_read(f->plan, both);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        assert_float_equal(out[i], 64.0 * i * i, 1e-2);
}

static void outputs_keep_their_memory_until_the_end(void **state)
{
    struct fixture *f = *state;
    struct gd_value *a = gd_scale(f->g, f->x, 2.0), *b = gd_scale(f->g, a, 3.0), *c = gd_scale(f->g, b, 5.0);
    struct gd_value *outputs[] = {a, b, c};
    create_plan(f, outputs, 3);
    assert_int_equal(gd_plan_arena_bytes(f->plan), 3 * BYTES);
    run_plan(f);
    assert_float_equal(((float *)test_read(f->plan, a))[7], 14.0, 0);
    assert_float_equal(((float *)test_read(f->plan, b))[7], 42.0, 0);
    assert_float_equal(((float *)test_read(f->plan, c))[7], 210.0, 0);
}

static void bound_outputs_are_written_directly_and_need_no_arena(void **state)
{
    struct fixture *f = *state;
    struct gd_value *a = gd_scale(f->g, f->x, 2.0), *b = gd_scale(f->g, a, 3.0);
    float out[ROWS * COLUMNS];
    create_plan(f, &b, 1);
    gd_plan_bind(f->plan, b, out);
    assert_int_equal(gd_plan_arena_bytes(f->plan), BYTES);
    assert_ptr_equal(test_read(f->plan, b), out);
    run_plan(f);
    assert_float_equal(out[9], 54.0, 0);
}

static void calls_that_nobody_needs_are_not_run(void **state)
{
    struct fixture *f = *state;
    struct gd_value *unbound = gd_graph_input(f->g, "unbound", GD_F32, 2, (const int64_t[]){ROWS, COLUMNS});
    struct gd_value *needed = gd_scale(f->g, f->x, 2.0);
    assert_non_null(gd_add(f->g, unbound, needed));
    create_plan(f, &needed, 1);
    run_plan(f);
}

static void an_unbound_input_is_named(void **state)
{
    struct fixture *f = *state;
    struct gd_value *forgotten = gd_graph_input(f->g, "forgotten", GD_F32, 2, (const int64_t[]){ROWS, COLUMNS});
    struct gd_value *y = gd_add(f->g, f->x, forgotten);
    create_plan(f, &y, 1);
    assert_false(gd_plan_run(f->plan, NULL, &f->err));
    assert_non_null(strstr(f->err.message, "forgotten"));
}

static void outputs_must_be_computed_and_the_graph_sound(void **state)
{
    struct fixture *f = *state;
    assert_false(gd_plan_create(&f->plan, f->g, &f->x, 1, false, &f->err));
    assert_null(f->plan);
    gd_error_clear(&f->err);
    struct gd_value *none = NULL;
    assert_false(gd_plan_create(&f->plan, f->g, &none, 1, false, &f->err));
    gd_error_clear(&f->err);
    struct gd_value *y = gd_scale(f->g, f->x, 2.0);
    gd_graph_fail(f->g, "something was wrong with %s", "layer 3");
    assert_false(gd_plan_create(&f->plan, f->g, &y, 1, false, &f->err));
    assert_non_null(strstr(f->err.message, "layer 3"));
}

static bool count_down(void *context)
{
    int *left = context;
    return --*left > 0;
}

static void a_run_can_be_stopped_between_two_ops(void **state)
{
    struct fixture *f = *state;
    struct gd_value *y = gd_mul(f->g, gd_scale(f->g, f->x, 2.0), gd_scale(f->g, f->x, 3.0));
    create_plan(f, &y, 1);
    int left = 2;
    struct gd_run_options options = {.between = count_down, .context = &left};
    assert_false(gd_plan_run(f->plan, &options, &f->err));
    assert_int_equal(f->err.code, GD_CANCELLED);
    gd_error_clear(&f->err);
    left = 100;
    assert_true(gd_plan_run(f->plan, &options, &f->err));
    assert_int_equal(left, 97);
}

static void the_first_value_that_is_not_finite_is_named(void **state)
{
    struct fixture *f = *state;
    struct gd_value *y = gd_scale(f->g, gd_scale(f->g, f->x, 1e30), 1e30);
    create_plan(f, &y, 1);
    assert_true(gd_plan_run(f->plan, NULL, &f->err));
    struct gd_run_options options = {.check_finite = true};
    assert_false(gd_plan_run(f->plan, &options, &f->err));
    assert_non_null(strstr(f->err.message, "scale#1[1]"));
}

static void errors_of_kernels_name_the_op_and_the_value(void **state)
{
    struct fixture *f = *state;
    float table_data[3 * COLUMNS] = {0};
    int32_t ids[2] = {2, 3};
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {3, COLUMNS}, .data = table_data};
    struct gd_weight *table = NULL;
    assert_true(gd_weight_create(&table, "table", &source, NULL, 0.0f, &f->err));
    struct gd_value *id_value = gd_graph_input(f->g, "ids", GD_I32, 1, (const int64_t[]){2});
    struct gd_value *y = gd_embed(f->g, gd_graph_weight(f->g, table), id_value);
    create_plan(f, &y, 1);
    gd_plan_bind(f->plan, id_value, ids);
    assert_false(gd_plan_run(f->plan, NULL, &f->err));
    assert_non_null(strstr(f->err.message, "embed"));
    assert_non_null(strstr(f->err.message, "token id 3"));
    gd_weight_destroy(table);
}

static void a_dry_plan_prices_layouts_without_making_them(void **state)
{
    struct fixture *f = *state;
    static float data[32 * COLUMNS];
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {32, COLUMNS}, .data = data};
    struct gd_weight *weight = NULL;
    assert_true(gd_weight_create(&weight, "w", &source, NULL, 0.0f, &f->err));
    struct gd_value *w = gd_graph_weight(f->g, weight);
    struct gd_value *y = gd_linear(f->g, f->x, w), *z = gd_linear(f->g, f->x, w), *sum = gd_add(f->g, y, z);
    assert_true(gd_plan_create(&f->plan, f->g, &sum, 1, true, &f->err));
    assert_int_equal(gd_plan_weight_bytes(f->plan), gd_weight_prepare_cost(weight, GD_WEIGHT_LINEAR, GD_F32));
    assert_int_equal(gd_weight_prepared_bytes(weight), 0);
    size_t dry_bytes = gd_plan_arena_bytes(f->plan), weight_bytes = gd_plan_weight_bytes(f->plan);
    gd_plan_destroy(f->plan);
    f->plan = NULL;
    create_plan(f, &sum, 1);
    assert_int_equal(gd_plan_arena_bytes(f->plan), dry_bytes);
    assert_int_equal(gd_weight_prepared_bytes(weight), weight_bytes);
    gd_plan_destroy(f->plan);
    f->plan = NULL;
    gd_weight_destroy(weight);
}

/* ---- the layout alone ---- */

static void random_blocks_never_overlap_while_both_live(void **state)
{
    for (uint64_t round = 0; round < 50; round++) {
        struct gd_block blocks[40];
        size_t peak = 0, live_max = 0;
        for (uint64_t i = 0; i < 40; i++) {
            int first = (int)(test_uniform(round, 3 * i) * 60.0);
            blocks[i] = (struct gd_block){.first = first, .last = first + (int)(test_uniform(round, 3 * i + 1) * 20.0),
                                          .size_bytes = (size_t)(test_uniform(round, 3 * i + 2) * 5000.0)};
        }
        gd_layout_blocks(blocks, 40, SIZE_MAX, &peak);
        for (int i = 0; i < 40; i++) {
            assert_int_equal(blocks[i].offset % GD_BLOCK_ALIGN, 0);
            assert_true(blocks[i].offset + blocks[i].size_bytes <= peak);
            for (int j = 0; j < i; j++) {
                bool together = blocks[i].first <= blocks[j].last && blocks[j].first <= blocks[i].last;
                bool overlap = blocks[i].offset < blocks[j].offset + blocks[j].size_bytes &&
                               blocks[j].offset < blocks[i].offset + blocks[i].size_bytes;
                assert_false(together && overlap && blocks[i].size_bytes > 0 && blocks[j].size_bytes > 0);
            }
        }
        for (int step = 0; step < 80; step++) {
            size_t live = 0;
            for (int i = 0; i < 40; i++)
                live += blocks[i].first <= step && step <= blocks[i].last ? blocks[i].size_bytes : 0;
            live_max = live > live_max ? live : live_max;
        }
        assert_true(peak >= live_max);
        assert_true((double)peak <= 1.5 * (double)live_max + 64.0 * 40.0);
    }
}

static void a_layout_over_its_limit_leaves_the_blocks_alone(void **state)
{
    struct gd_block blocks[2] = {{.size_bytes = 100, .first = 0, .last = 1, .offset = 7}, {.size_bytes = 100, .first = 1, .last = 2, .offset = 9}};
    size_t peak = 5;
    gd_layout_blocks(blocks, 2, 64, &peak);
    assert_int_equal(peak, 5);
    assert_int_equal(blocks[0].offset, 7);
    assert_int_equal(blocks[1].offset, 9);
}

int main(void)
{
    struct gd_error err = {0};
    if (!gd_device_init("cpu", 2, &err))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_chain_works_in_place_in_one_block, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_value_that_is_read_later_is_not_overwritten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(parts_work_in_place_where_they_lie, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_part_is_not_overwritten_while_the_whole_is_read_later, set_up, tear_down),
        cmocka_unit_test_setup_teardown(products_of_parts_add_to_the_gradient_of_the_whole, set_up, tear_down),
        cmocka_unit_test_setup_teardown(outputs_keep_their_memory_until_the_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bound_outputs_are_written_directly_and_need_no_arena, set_up, tear_down),
        cmocka_unit_test_setup_teardown(calls_that_nobody_needs_are_not_run, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_unbound_input_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(outputs_must_be_computed_and_the_graph_sound, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_run_can_be_stopped_between_two_ops, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_first_value_that_is_not_finite_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(errors_of_kernels_name_the_op_and_the_value, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_dry_plan_prices_layouts_without_making_them, set_up, tear_down),
        cmocka_unit_test(random_blocks_never_overlap_while_both_live),
        cmocka_unit_test(a_layout_over_its_limit_leaves_the_blocks_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
