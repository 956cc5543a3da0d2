/*
 * A layer of experts built of its ops, against loops in double, and its gradients against finite differences of these;
 * and what is planned for rows whose number is not known.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/op.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include "op_case.h"
#include <math.h>
#include <stdlib.h>
#include "tests/unit/tensor/reading.h"

#define ROWS 37
#define WIDTH 6
#define FFN 5
#define RANK 2
#define CHOSEN 2
#define BALANCE 0.7
#define EXPERTS_MAX 16

enum { X, ROUTER, W1, W2 = W1 + 2 * EXPERTS_MAX, A = W2 + EXPERTS_MAX, B, PARTS };
#define W1_OF(e) (W1 + (e))
#define W3_OF(e) (W1 + EXPERTS_MAX + (e))
#define W2_OF(e) (W2 + (e))

struct layer {
    int experts, used, rows;
    bool shunned;                    /* the last expert is never chosen */
    double *of[PARTS];               /* X [ROWS, WIDTH], weights as a checkpoint has them; A and B are a low-rank pair on W1 of expert 0 */
    int64_t count[PARTS], columns[PARTS];
    double *upstream;                /* of y */
    float *data[PARTS];
};

static void add_part(struct layer *layer, int part, int64_t rows, int64_t columns, double deviation)
{
    layer->count[part] = rows * columns;
    layer->columns[part] = columns;
    layer->of[part] = gd_alloc_array((size_t)layer->count[part], sizeof(double));
    layer->data[part] = gd_alloc_array((size_t)layer->count[part], sizeof(float));
    for (int64_t i = 0; i < layer->count[part]; i++) {
        layer->data[part][i] = (float)(deviation * test_normal(100 + (uint64_t)part, (uint64_t)i));
        layer->of[part][i] = (double)layer->data[part][i];
    }
}

static void layer_init(struct layer *layer, int experts, int rows, int used, bool shunned)
{
    *layer = (struct layer){.experts = experts, .used = used, .rows = rows, .shunned = shunned};
    add_part(layer, X, rows, WIDTH, 1);
    add_part(layer, ROUTER, experts, WIDTH, 1);
    for (int e = 0; e < experts; e++) {
        add_part(layer, W1_OF(e), FFN, WIDTH, 0.5);
        add_part(layer, W3_OF(e), FFN, WIDTH, 0.5);
        add_part(layer, W2_OF(e), WIDTH, FFN, 0.5);
    }
    add_part(layer, A, RANK, WIDTH, 0.5);
    add_part(layer, B, FFN, RANK, 0.5);
    layer->upstream = gd_alloc_array((size_t)rows * WIDTH, sizeof(double));
    for (int64_t i = 0; i < (int64_t)rows * WIDTH; i++)
        layer->upstream[i] = (double)(float)test_normal(7, (uint64_t)i);
}

static void layer_release(struct layer *layer)
{
    for (int part = 0; part < PARTS; part++) {
        gd_free(layer->of[part]);
        gd_free(layer->data[part]);
    }
    gd_free(layer->upstream);
}

/* ---- in double ---- */

static double dot_row(const double *w, const double *x, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        sum += w[i] * x[i];
    return sum;
}

static void expert(const struct layer *layer, int e, const double *x, double weight, double *y)
{
    double h[FFN];
    for (int i = 0; i < FFN; i++) {
        double gate = dot_row(layer->of[W1_OF(e)] + i * WIDTH, x, WIDTH), up = dot_row(layer->of[W3_OF(e)] + i * WIDTH, x, WIDTH);
        for (int r = 0; e == 0 && r < RANK; r++)
            gate += layer->of[B][i * RANK + r] * dot_row(layer->of[A] + r * WIDTH, x, WIDTH);
        h[i] = gate / (1 + exp(-gate)) * up;
    }
    for (int i = 0; i < WIDTH; i++)
        y[i] += weight * dot_row(layer->of[W2_OF(e)] + i * FFN, h, FFN);
}

/* The two most likely experts of a row. */
static void choose(const double *z, int experts, int choice[CHOSEN])
{
    choice[0] = 0;
    for (int e = 1; e < experts; e++)
        choice[0] = z[e] > z[choice[0]] ? e : choice[0];
    choice[1] = choice[0] == 0;
    for (int e = 0; e < experts; e++)
        choice[1] = e != choice[0] && z[e] > z[choice[1]] ? e : choice[1];
}

static double loss_of(const struct layer *layer, double *y)
{
    double rows[EXPERTS_MAX] = {0}, sums[EXPERTS_MAX] = {0}, balance = 0, loss = 0;
    memset(y, 0, (size_t)layer->rows * WIDTH * sizeof(double));
    for (int t = 0; t < layer->used; t++) {
        const double *x = layer->of[X] + t * WIDTH;
        double z[EXPERTS_MAX], all = 0;
        int choice[CHOSEN];
        for (int e = 0; e < layer->experts; e++) {
            z[e] = dot_row(layer->of[ROUTER] + e * WIDTH, x, WIDTH) - (layer->shunned && e == layer->experts - 1 ? 100 : 0);
            all += exp(z[e]);
        }
        choose(z, layer->experts, choice);
        double chosen = exp(z[choice[0]]) + exp(z[choice[1]]);
        for (int j = 0; j < CHOSEN; j++) {
            expert(layer, choice[j], x, exp(z[choice[j]]) / chosen, y + t * WIDTH);
            rows[choice[j]]++;
        }
        for (int e = 0; e < layer->experts; e++)
            sums[e] += exp(z[e]) / all;
    }
    for (int e = 0; e < layer->experts; e++)
        balance += layer->experts * rows[e] * sums[e] / ((double)layer->used * layer->used);
    for (int64_t i = 0; i < (int64_t)layer->rows * WIDTH; i++)
        loss += layer->upstream[i] * y[i];
    return loss + BALANCE * balance;
}

/* ---- as a graph ---- */

struct built {
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_value *part[PARTS], *used, *upstream, *shun, *y, *loss, *grads[PARTS];
    void *arena;
};

static struct gd_value *build_expert(struct built *b, struct gd_value *x, int e)
{
    struct gd_graph *g = b->graph;
    struct gd_value *gate = gd_linear(g, x, b->part[W1_OF(e)]);
    if (e == 0)
        gate = gd_matmul(g, gd_matmul(g, x, false, b->part[A], true, 1, NULL, GD_F32), false, b->part[B], true, 1, gate, GD_F32);
    return gd_linear(g, gd_swiglu(g, gate, gd_linear(g, x, b->part[W3_OF(e)])), b->part[W2_OF(e)]);
}

static void build(struct built *b, const struct layer *layer, bool gradients)
{
    struct gd_error err = {0};
    memset(b, 0, sizeof(*b));
    assert_true(gd_graph_create(&b->graph, GD_F32, &err));
    struct gd_graph *g = b->graph;
    struct gd_value *outputs[PARTS + 2];
    int output_count = 0;
    for (int part = 0; part < PARTS; part++)
        if (layer->count[part] > 0)
            b->part[part] = gd_graph_param(g, "part", 2, (int64_t[]){layer->count[part] / layer->columns[part], layer->columns[part]});
    b->used = gd_graph_input(g, "cu_seqlens", GD_I32, 1, (int64_t[]){3});
    b->upstream = gd_graph_input(g, "upstream", GD_F32, 2, (int64_t[]){layer->rows, WIDTH});
    b->shun = gd_graph_input(g, "shun", GD_F32, 1, (int64_t[]){layer->experts});
    struct gd_value *route = gd_expert_route(g, gd_add_row(g, gd_linear(g, b->part[X], b->part[ROUTER]), b->shun), CHOSEN);
    struct gd_value *choice = gd_value_output(route, 1), *rows = gd_expert_dispatch(g, choice, b->used, layer->experts);
    for (int e = 0; e < layer->experts; e++)
        b->y = gd_expert_sum(g, build_expert(b, gd_expert_rows(g, b->part[X], rows, e, CHOSEN, NULL), e), route, b->y, layer->rows);
    struct gd_value *balance = gd_expert_balance(g, gd_expert_load(g, gd_value_output(route, 2), choice, b->used), CHOSEN);
    b->loss = gd_add(g, gd_dot(g, b->y, b->upstream), gd_scale(g, balance, BALANCE));
    assert_true(gd_graph_ok(g, &err));
    if (gradients)
        assert_true(gd_graph_gradient(g, b->loss, b->part, PARTS, b->grads, &err));
    outputs[output_count++] = b->y;
    outputs[output_count++] = b->loss;
    for (int part = 0; part < PARTS; part++)
        if (b->grads[part] != NULL)
            outputs[output_count++] = b->grads[part];
    assert_true(gd_plan_create(&b->plan, g, outputs, output_count, false, &err));
}

static void run(struct built *b, const struct layer *layer)
{
    static float upstream[512 * WIDTH], shun[EXPERTS_MAX];
    static int32_t cu_seqlens[3];
    struct gd_error err = {0};
    size_t bytes = gd_plan_arena_bytes(b->plan);
    cu_seqlens[1] = layer->used / 3;
    cu_seqlens[2] = layer->used;
    for (int64_t i = 0; i < (int64_t)layer->rows * WIDTH; i++)
        upstream[i] = (float)layer->upstream[i];
    shun[layer->experts - 1] = layer->shunned ? -100 : 0;
    for (int part = 0; part < PARTS; part++)
        if (b->part[part] != NULL)
            gd_plan_bind(b->plan, b->part[part], layer->data[part]);
    gd_plan_bind(b->plan, b->used, cu_seqlens);
    gd_plan_bind(b->plan, b->upstream, upstream);
    gd_plan_bind(b->plan, b->shun, shun);
    if (b->arena == NULL)
        b->arena = test_poisoned(bytes);
    test_poison(b->arena, bytes);
    gd_plan_attach(b->plan, b->arena);
    if (!gd_plan_run(b->plan, &(struct gd_run_options){.check_finite = true}, &err))
        fail_msg("%s", err.message);
    shun[layer->experts - 1] = 0;
}

static void built_release(struct built *b)
{
    gd_device_free(b->arena, b->plan != NULL ? gd_plan_arena_bytes(b->plan) : 0);
    gd_plan_destroy(b->plan);
    gd_graph_destroy(b->graph);
}

static void check_gradient(struct layer *layer, const struct built *b, int part, double *y)
{
    const float *grad = test_read(b->plan, b->grads[part]);
    double typical = 0, step = 1e-5;
    for (int64_t i = 0; i < layer->count[part]; i++)
        typical += (double)grad[i] * (double)grad[i] / (double)layer->count[part];
    for (int64_t i = 0; i < layer->count[part]; i++) {
        double kept = layer->of[part][i];
        layer->of[part][i] = kept + step;
        double above = loss_of(layer, y);
        layer->of[part][i] = kept - step;
        double below = loss_of(layer, y), slope = (above - below) / (2 * step);
        layer->of[part][i] = kept;
        if (!(fabs((double)grad[i] - slope) <= 1e-4 * fmax(sqrt(typical), fabs(slope)) + 1e-7))
            fail_msg("part %d, gradient [%d] is %.9g, finite difference %.9g", part, (int)i, (double)grad[i], slope);
    }
}

static void check_layer(int experts, int rows, int used, bool shunned)
{
    struct layer layer;
    struct built b;
    layer_init(&layer, experts, rows, used, shunned);
    build(&b, &layer, true);
    double *y = gd_alloc_array((size_t)rows * WIDTH, sizeof(double));
    for (int again = 0; again < 2; again++) {
        run(&b, &layer);
        double loss = loss_of(&layer, y);
        const float *got = test_read(b.plan, b.y);
        for (int64_t i = 0; i < (int64_t)rows * WIDTH; i++)
            if (!(fabs((double)got[i] - y[i]) < 1e-5))
                fail_msg("y[%d] is %.9g, in double %.9g", (int)i, (double)got[i], y[i]);
        assert_true(fabs((double)*(const float *)test_read(b.plan, b.loss) - loss) < 1e-4);
    }
    for (int part = 0; part < PARTS; part++)
        if (layer.count[part] > 0)
            check_gradient(&layer, &b, part, y);
    gd_free(y);
    built_release(&b);
    layer_release(&layer);
}

static void a_layer_of_experts_and_its_gradients_agree_with_loops(void **state)
{
    check_layer(4, ROWS, ROWS, false);
    check_layer(4, ROWS, 29, false);  /* padding rows */
    check_layer(4, ROWS, ROWS, true); /* an expert without rows */
    check_layer(2, 5, 3, false);
    check_layer(7, 1, 1, false);
}

static void experts_share_the_memory_of_the_rows_that_all_get_together(void **state)
{
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        struct layer layer;
        struct built b;
        layer_init(&layer, i == 0 ? 4 : EXPERTS_MAX, 512, 512, false);
        build(&b, &layer, true);
        bytes[i] = gd_plan_arena_bytes(b.plan);
        run(&b, &layer);
        built_release(&b);
        layer_release(&layer);
    }
    assert_true((double)bytes[1] < 1.5 * (double)bytes[0]);
}

static void rows_of_two_experts_do_not_meet_in_one_op(void **state)
{
    struct gd_error err = {0};
    const char *const words[] = {"two experts", "softmax"};
    for (int i = 0; i < 2; i++) {
        struct gd_graph *g = NULL;
        assert_true(gd_graph_create(&g, GD_F32, &err));
        struct gd_value *x = gd_graph_input(g, "x", GD_F32, 2, (int64_t[]){8, 3});
        struct gd_value *used = gd_graph_input(g, "used", GD_I32, 1, (int64_t[]){2});
        struct gd_value *rows = gd_expert_dispatch(g, gd_value_output(gd_expert_route(g, x, 2), 1), used, 3);
        struct gd_value *a = gd_expert_rows(g, x, rows, 0, 2, NULL), *b = gd_expert_rows(g, x, rows, 1, 2, NULL);
        assert_ptr_not_equal(a->group, b->group);
        assert_ptr_equal(gd_scale(g, a, 2)->group, a->group);
        assert_null(i == 0 ? gd_matmul(g, a, true, b, false, 1, NULL, GD_F32) : gd_softmax(g, a));
        struct gd_error failure = {0};
        assert_false(gd_graph_ok(g, &failure));
        assert_non_null(strstr(failure.message, words[i]));
        gd_graph_destroy(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_of_experts_and_its_gradients_agree_with_loops),
        cmocka_unit_test(experts_share_the_memory_of_the_rows_that_all_get_together),
        cmocka_unit_test(rows_of_two_experts_do_not_meet_in_one_op),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
