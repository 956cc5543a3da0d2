/* Pairs of calls that run as one launch: the bits of two, whoever reads what lies between, and in chains that share memory. */
#include "bench.h"
#include "engine/tensor/backend.h"
#include "engine/tensor/graph_internal.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include <math.h>

#define OUTPUTS_MAX 8
#define LINKS 4

/* A graph under way. apart: a call that concerns nobody stands between the two, so that they are two launches. */
struct chain {
    struct gd_graph *graph;
    struct gd_value *aside, *positions, *freq;
    struct gd_value *outputs[OUTPUTS_MAX];
    int output_count, bound_count;
    struct gd_value *bound[OUTPUTS_MAX];
    void *data[OUTPUTS_MAX];
    struct gd_weight *weight;   /* of a product */
    void *weight_data;
    struct gd_value *elsewhere; /* an output that is bound to memory of its own */
    int64_t rows, width, dim;
    bool apart, read;
};

static void gives(struct chain *chain, struct gd_value *value)
{
    assert_non_null(value);
    assert_true(chain->output_count < OUTPUTS_MAX);
    chain->outputs[chain->output_count++] = value;
}

static struct gd_value *input(struct chain *chain, const char *name, enum gd_dtype dtype, int rank, int64_t rows, int64_t width, void *data)
{
    struct gd_value *value = gd_graph_input(chain->graph, name, dtype, rank, (int64_t[]){rows, width});
    assert_true(value != NULL && chain->bound_count < OUTPUTS_MAX);
    chain->bound[chain->bound_count] = value;
    chain->data[chain->bound_count++] = data;
    return value;
}

static struct gd_value *matrix(struct chain *chain, const char *name, uint64_t stream)
{
    enum gd_dtype act = gd_graph_act(chain->graph);
    return input(chain, name, act, 2, chain->rows, chain->width, bench_random(act, chain->rows * chain->width, stream));
}

static struct gd_value *vector(struct chain *chain, const char *name, int64_t count, uint64_t stream)
{
    return input(chain, name, GD_F32, 1, count, 0, bench_random(GD_F32, count, stream));
}

/* After the first call of a pair. */
static void between(struct chain *chain, struct gd_value *value)
{
    if (chain->apart)
        gives(chain, gd_scale(chain->graph, chain->aside, 2));
    if (chain->read)
        gives(chain, value);
}

static struct gd_rope_options turn(const struct chain *chain)
{
    return (struct gd_rope_options){.head_dim = (int)chain->dim, .rotary_dim = (int)(2 * chain->freq->shape[0]), .attention_factor = 1.1};
}

static void places(struct chain *chain)
{
    int32_t *positions = gd_alloc_array((size_t)chain->rows + 1, sizeof(int32_t));
    for (int64_t t = 0; t < chain->rows; t++)
        positions[t] = (int32_t)(t * 7 % 1000);
    chain->positions = input(chain, "positions", GD_I32, 1, chain->rows, 0, positions);
    chain->freq = vector(chain, "freq", chain->dim > 8 ? chain->dim / 2 - 2 : chain->dim / 2, 5);
}

static struct gd_value *add_rms(struct chain *chain)
{
    struct gd_value *u = gd_add(chain->graph, matrix(chain, "a", 1), matrix(chain, "b", 2));
    between(chain, u);
    struct gd_value *y = gd_rms_norm(chain->graph, u, vector(chain, "w", chain->width, 3), 1e-5, 1);
    gives(chain, gd_value_output(y, 1));
    return y;
}

static struct gd_value *add_layer(struct chain *chain)
{
    struct gd_value *u = gd_add(chain->graph, matrix(chain, "a", 1), matrix(chain, "b", 2));
    between(chain, u);
    struct gd_value *bias = chain->rows % 2 ? vector(chain, "bias", chain->width, 4) : NULL;
    struct gd_value *y = gd_layer_norm(chain->graph, u, vector(chain, "w", chain->width, 3), bias, 1e-5);
    gives(chain, gd_value_output(y, 1));
    gives(chain, gd_value_output(y, 2));
    return y;
}

static struct gd_value *rms_rope(struct chain *chain)
{
    places(chain);
    struct gd_value *n = gd_rms_norm(chain->graph, matrix(chain, "x", 1), vector(chain, "w", chain->dim, 3), 1e-5, 0);
    struct gd_rope_options options = turn(chain);
    between(chain, n);
    gives(chain, gd_value_output(n, 1));
    return gd_rope(chain->graph, n, chain->positions, chain->freq, &options, 1);
}

static struct gd_value *rope_rms_grad(struct chain *chain)
{
    places(chain);
    struct gd_rope_options options = turn(chain);
    struct gd_value *d = gd_rope(chain->graph, matrix(chain, "dy", 1), chain->positions, chain->freq, &options, -1);
    between(chain, d);
    struct gd_value *in[] = {matrix(chain, "x", 2), vector(chain, "w", chain->dim, 3),
                             vector(chain, "r", chain->rows * (chain->width / chain->dim), 4), d};
    return gd_graph_call(chain->graph, gd_op_find("rms_norm_grad"), in, GD_COUNT(in), &(struct gd_op_params){.f = {1}});
}

/* Sums that take over each other's memory, each normed, scaled and added again, as in a model's layers. */
static struct gd_value *layers(struct chain *chain)
{
    struct gd_value *x = matrix(chain, "a", 1), *w = vector(chain, "w", chain->width, 3);
    x = gd_scale(chain->graph, x, 0.5);
    struct gd_value *n = gd_scale(chain->graph, x, 0.25);
    for (int i = 0; i < LINKS; i++) {
        x = gd_add(chain->graph, x, n);
        if (chain->apart && i == 0)
            gives(chain, gd_scale(chain->graph, chain->aside, 2));
        else if (chain->apart)
            chain->outputs[chain->output_count - 1] = gd_scale(chain->graph, chain->outputs[chain->output_count - 1], 2);
        n = gd_scale(chain->graph, gd_rms_norm(chain->graph, x, w, 1e-5, 0), 0.75);
    }
    return gd_add(chain->graph, x, n);
}

/* Sums of what nobody reads afterwards; the norm's small outputs would find room where these lay. */
static struct gd_value *dying(struct chain *chain)
{
    struct gd_value *a = gd_scale(chain->graph, matrix(chain, "a", 1), 2), *b = gd_scale(chain->graph, matrix(chain, "b", 2), 2);
    struct gd_value *u = gd_add(chain->graph, a, b);
    between(chain, u);
    struct gd_value *y = gd_layer_norm(chain->graph, u, vector(chain, "w", chain->width, 3), NULL, 1e-5);
    gives(chain, gd_value_output(y, 1));
    gives(chain, gd_value_output(y, 2));
    chain->elsewhere = y;
    return y;
}

/* x W^T + b, W of as many outputs as inputs. */
static struct gd_value *biased(struct chain *chain)
{
    struct gd_error err = {0};
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {chain->width, chain->width}};
    source.data = chain->weight_data = bench_random(GD_F32, chain->width * chain->width, 6);
    assert_true(gd_weight_create(&chain->weight, "w", &source, NULL, 0, &err));
    struct gd_value *u = gd_linear(chain->graph, matrix(chain, "x", 1), gd_graph_weight(chain->graph, chain->weight));
    between(chain, u);
    return gd_add_row(chain->graph, u, vector(chain, "bias", chain->width, 4));
}

/* ---- a run, and what it gave but for what stands apart ---- */

struct result {
    size_t bytes[OUTPUTS_MAX];
    char *data[OUTPUTS_MAX];
    int count, paired;
};

static int count_pairs(const struct gd_graph *graph)
{
    int pairs = 0;
    for (int i = 0; i + 1 < gd_graph_call_count(graph); i++)
        pairs += gd_backend()->pair(gd_graph_call_at(graph, i), gd_graph_call_at(graph, i + 1)) != NULL;
    return pairs;
}

static bool of_aside(const struct chain *chain, const struct gd_value *value)
{
    for (; value != NULL && value->producer != NULL; value = value->producer->in[0])
        if (strcmp(value->producer->op->name, "scale") != 0)
            return false;
    return value == chain->aside;
}

static struct result run(struct gd_value *(*build)(struct chain *), enum gd_dtype act, int64_t rows, int64_t width, int64_t dim, bool apart,
                         bool read)
{
    struct gd_error err = {0};
    struct result result = {.count = 0};
    struct chain chain = {.rows = rows, .width = width, .dim = dim, .apart = apart, .read = read};
    assert_true(gd_graph_create(&chain.graph, act, &err));
    chain.aside = input(&chain, "aside", act, 2, 1, 1, bench_random(act, 1, 9));
    gives(&chain, build(&chain));
    struct gd_plan *plan = NULL;
    if (!gd_plan_create(&plan, chain.graph, chain.outputs, chain.output_count, false, &err))
        fail_msg("%s", err.message);
    if (chain.elsewhere != NULL)
        gd_plan_bind(plan, chain.elsewhere, bench_room(gd_value_bytes(chain.elsewhere)));
    size_t bytes = gd_plan_arena_bytes(plan);
    char *poison = gd_alloc(bytes + 1);
    memset(poison, 0xFF, bytes);
    gd_plan_attach(plan, bench_put(poison, bytes));
    gd_free(poison);
    for (int i = 0; i < chain.bound_count; i++)
        gd_plan_bind(plan, chain.bound[i], chain.data[i]);
    for (int turns = 0; turns < 3; turns++) /* launched, recorded, repeated */
        if (!gd_plan_run(plan, NULL, &err))
            fail_msg("%s", err.message);
    for (int i = 0; i < chain.output_count; i++) {
        if (of_aside(&chain, chain.outputs[i]))
            continue;
        size_t size = result.bytes[result.count] = gd_value_bytes(chain.outputs[i]);
        result.data[result.count] = gd_alloc(size + 1);
        const void *got = gd_plan_read(plan, chain.outputs[i], &err);
        assert_non_null(got);
        memcpy(result.data[result.count++], got, size);
    }
    result.paired = count_pairs(chain.graph);
    gd_plan_destroy(plan);
    gd_graph_destroy(chain.graph);
    gd_weight_destroy(chain.weight);
    gd_free(chain.weight_data);
    for (int i = 0; i < chain.bound_count; i++)
        gd_free(chain.data[i]);
    bench_release(NULL);
    return result;
}

static void release(struct result *result)
{
    for (int i = 0; i < result->count; i++)
        gd_free(result->data[i]);
}

static void same_in(enum gd_dtype act, struct gd_value *(*build)(struct chain *), int64_t rows, int64_t width, int64_t dim, int pairs)
{
    for (int read = 0; read < 2; read++) {
        struct result one = run(build, act, rows, width, dim, false, read), two = run(build, act, rows, width, dim, true, read);
        assert_int_equal(one.paired, pairs);
        assert_int_equal(two.paired, 0);
        assert_int_equal(one.count, two.count);
        for (int k = 0; k < one.count; k++) {
            assert_int_equal(one.bytes[k], two.bytes[k]);
            if (memcmp(one.data[k], two.data[k], one.bytes[k]) != 0)
                fail_msg("%d rows of %d, %s, output %d of %d: one launch gives other bits than two", (int)rows, (int)width,
                         gd_dtype_name(act), k, one.count);
        }
        release(&one);
        release(&two);
    }
}

static void same(struct gd_value *(*build)(struct chain *), int64_t rows, int64_t width, int64_t dim, int pairs)
{
    same_in(GD_F32, build, rows, width, dim, pairs);
    same_in(GD_BF16, build, rows, width, dim, pairs);
}

static void a_sum_and_its_norm_give_the_bits_of_two_launches(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {5, 37}, {9, 64}, {3, 1032}, {2, 1031}};
    for (size_t i = 0; i < GD_COUNT(shapes); i++) {
        same(add_rms, shapes[i][0], shapes[i][1], 0, 1);
        same(add_layer, shapes[i][0], shapes[i][1], 0, 1);
    }
}

static void a_norm_of_heads_and_its_rotation_give_the_bits_of_two_launches(void **state)
{
    static const int64_t shapes[][3] = {{1, 2, 2}, {5, 33 * 2, 22}, {7, 9 * 64, 64}, {3, 512, 256}};
    for (size_t i = 0; i < GD_COUNT(shapes); i++) {
        same(rms_rope, shapes[i][0], shapes[i][1], shapes[i][2], 1);
        same(rope_rms_grad, shapes[i][0], shapes[i][1], shapes[i][2], 1);
    }
}

static void layers_that_share_memory_give_the_bits_of_two_launches(void **state)
{
    same(layers, 6, 48, 0, LINKS);
    same(layers, 300, 8, 0, LINKS);
    same(dying, 300, 8, 0, 1);
    same(dying, 40, 1032, 0, 1);
}

/* Once rounded instead of twice, where nobody reads the product without it. */
static void a_product_and_its_bias_differ_from_two_launches_by_one_rounding(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {5, 37}, {9, 64}, {40, 24}};
    for (size_t n = 0; n < GD_COUNT(shapes); n++) {
        same_in(GD_F32, biased, shapes[n][0], shapes[n][1], 0, 1);
        for (int read = 0; read < 2; read++) {
            int64_t rows = shapes[n][0], width = shapes[n][1];
            struct result one = run(biased, GD_BF16, rows, width, 0, false, read), two = run(biased, GD_BF16, rows, width, 0, true, read);
            assert_int_equal(one.paired, 1);
            for (int k = 0; k < one.count; k++)
                for (int64_t i = 0; i < rows * width; i++) {
                    double a = bench_at(GD_BF16, one.data[k], i), b = bench_at(GD_BF16, two.data[k], i);
                    assert_true(read ? a == b : fabs(a - b) <= 1e-2 * (1 + fabs(b)));
                }
            release(&one);
            release(&two);
        }
    }
}

static void calls_that_are_no_pair_are_left_alone(void **state)
{
    struct gd_error err = {0};
    struct chain chain = {.rows = 2, .width = 8, .dim = 4};
    assert_true(gd_graph_create(&chain.graph, GD_F32, &err));
    struct gd_value *a = matrix(&chain, "a", 1), *u = gd_add(chain.graph, a, a);
    struct gd_value *heads = gd_rms_norm(chain.graph, u, vector(&chain, "w", 4, 2), 1e-5, 0); /* of parts of the sum */
    struct gd_value *of_a = gd_rms_norm(chain.graph, a, vector(&chain, "v", 8, 3), 1e-5, 0);  /* of something else */
    assert_null(gd_backend()->pair(u->producer, heads->producer));
    assert_null(gd_backend()->pair(u->producer, of_a->producer));
    assert_null(gd_backend()->pair(heads->producer, u->producer));
    gd_graph_destroy(chain.graph);
    for (int i = 0; i < chain.bound_count; i++)
        gd_free(chain.data[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sum_and_its_norm_give_the_bits_of_two_launches),
        cmocka_unit_test(a_norm_of_heads_and_its_rotation_give_the_bits_of_two_launches),
        cmocka_unit_test(layers_that_share_memory_give_the_bits_of_two_launches),
        cmocka_unit_test(a_product_and_its_bias_differ_from_two_launches_by_one_rounding),
        cmocka_unit_test(calls_that_are_no_pair_are_left_alone),
    };
    return cmocka_run_group_tests(tests, bench_open, NULL);
}
