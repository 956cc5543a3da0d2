/* attention_cached and wear read structs through handles; their cases stand here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"
#include "engine/tensor/kv.h"
#include "engine/tensor/ops/attention_bias.h"
#include "engine/tensor/plan.h"
#include "engine/tensor/wear.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/unit/tensor/reading.h"

static float normal(uint64_t stream, uint64_t i)
{
    struct gd_philox bits = gd_philox4(stream, gd_philox_stream(GD_RANDOM_TEST, 0, 0), i);
    return gd_normal_from_bits(bits.v[0], bits.v[1]);
}

/* A graph of one call, its inputs in memory. */
struct bench {
    struct gd_graph *graph;
    struct gd_plan *plan;
    void *arena;
    size_t arena_bytes;
    struct gd_value *in[5], *out;
    void *memory[5];
};

static void *filled(enum gd_dtype dtype, int64_t count, uint64_t stream)
{
    float *x = gd_alloc_array((size_t)count + 1, sizeof(float));
    void *memory = gd_alloc_array((size_t)count + 16, sizeof(float));
    for (int64_t i = 0; i < count; i++)
        x[i] = normal(stream, (uint64_t)i);
    gd_convert_from_f32(memory, dtype, x, count);
    gd_free(x);
    return memory;
}

static double element(enum gd_dtype dtype, const void *data, int64_t i)
{
    return dtype == GD_BF16 ? (double)gd_bf16_to_f32(((const uint16_t *)data)[i]) : (double)((const float *)data)[i];
}

static void bench_plan(struct bench *bench, int inputs)
{
    struct gd_error err = {0};
    if (!gd_graph_ok(bench->graph, &err) || !gd_plan_create(&bench->plan, bench->graph, &bench->out, 1, false, &err))
        fail_msg("%s", err.message);
    bench->arena_bytes = gd_plan_arena_bytes(bench->plan);
    bench->arena = test_poisoned(bench->arena_bytes);
    gd_plan_attach(bench->plan, bench->arena);
    for (int i = 0; i < inputs; i++)
        gd_plan_bind(bench->plan, bench->in[i], bench->memory[i]);
}

static const void *bench_run(struct bench *bench)
{
    struct gd_error err = {0};
    if (!gd_plan_run(bench->plan, NULL, &err))
        fail_msg("%s", err.message);
    return test_read(bench->plan, bench->out);
}

static void bench_release(struct bench *bench, int owned)
{
    gd_plan_destroy(bench->plan);
    gd_graph_destroy(bench->graph);
    gd_device_free(bench->arena, bench->arena_bytes);
    for (int i = 0; i < owned; i++)
        gd_free(bench->memory[i]);
    memset(bench, 0, sizeof(*bench));
}

/* ---- attention_cached ---- */

struct attention {
    int heads, kv_heads, head_dim, window, layer, layers;
    double softcap;
    int buckets;                   /* of a position bias that reaches 20 far; or 0 */
    bool cross;                    /* rows see all that is in the pages, and store nothing */
    enum gd_dtype act, page_dtype;
    int tokens;                    /* of each sequence */
    float *q[3], *k[3], *v[3];     /* of three sequences, rounded to act */
    void *pages;
    int32_t page_table[3 * 16];
};

#define STRIDE 16
#define BIAS_DISTANCE 20
#define BIAS_STREAM 99

static size_t pages_bytes(const struct attention *a)
{
    return 48 * (size_t)a->layers * 2 * (size_t)(a->kv_heads * a->head_dim) * GD_KV_PAGE_TOKENS * sizeof(float);
}

/* NaN: rows that nobody stored must not be read. */
static void spoil_pages(struct attention *a)
{
    struct gd_error err = {0};
    char *nan = gd_alloc(pages_bytes(a));
    memset(nan, 0xFF, pages_bytes(a));
    assert_true(gd_device_write(a->pages, nan, pages_bytes(a), &err));
    gd_free(nan);
}

static void attention_init(struct attention *a)
{
    struct gd_error err = {0};
    int q_width = a->heads * a->head_dim, kv_width = a->kv_heads * a->head_dim;
    for (int s = 0; s < 3; s++) {
        struct { float **rows; int width; } parts[] = {{&a->q[s], q_width}, {&a->k[s], kv_width}, {&a->v[s], kv_width}};
        for (int p = 0; p < 3; p++) {
            int64_t count = (int64_t)a->tokens * parts[p].width;
            void *rounded = filled(a->act, count, (uint64_t)(10 * s + p));
            *parts[p].rows = gd_alloc_array((size_t)count, sizeof(float));
            gd_convert_to_f32(*parts[p].rows, rounded, a->act, count);
            gd_free(rounded);
        }
    }
    assert_true(gd_device_alloc(&a->pages, pages_bytes(a), "a test's pages", &err));
    spoil_pages(a);
    for (int i = 0; i < 3 * STRIDE; i++)
        a->page_table[i] = (i * 29 + 5) % 48; /* scattered, all different */
}

static void attention_release(struct attention *a)
{
    for (int s = 0; s < 3; s++) {
        gd_free(a->q[s]);
        gd_free(a->k[s]);
        gd_free(a->v[s]);
    }
    gd_device_free(a->pages, pages_bytes(a));
}

/* Runs one batch: `take[s]` further tokens of sequence s, in `rows` rows (the rest is padding with NaN). Results go to
 * out[s], rows of heads * head_dim floats by position. */
static void run_batch(struct attention *a, const int *past, const int *take, int rows, float **out)
{
    struct bench bench = {0};
    struct gd_error err = {0};
    int widths[3] = {a->heads * a->head_dim, a->kv_heads * a->head_dim, a->kv_heads * a->head_dim};
    int32_t cu[4] = {0}, past32[3];
    for (int s = 0; s < 3; s++) {
        cu[s + 1] = cu[s] + take[s];
        past32[s] = past[s];
    }
    assert_true(gd_graph_create(&bench.graph, a->act, &err));
    for (int p = 0; p < 3; p++) {
        float *all = gd_alloc_array((size_t)(rows * widths[p]), sizeof(float));
        for (int i = 0; i < rows * widths[p]; i++)
            all[i] = NAN;
        for (int s = 0; s < 3; s++) {
            const float *source = p == 0 ? a->q[s] : p == 1 ? a->k[s] : a->v[s];
            int from = p > 0 && a->cross ? 0 : past[s]; /* nobody reads k and v of cross attention */
            memcpy(all + cu[s] * widths[p], source + from * widths[p], (size_t)(take[s] * widths[p]) * sizeof(float));
        }
        bench.memory[p] = gd_alloc_array((size_t)(rows * widths[p]), sizeof(float));
        gd_convert_from_f32(bench.memory[p], a->act, all, (int64_t)rows * widths[p]);
        gd_free(all);
        bench.in[p] = gd_graph_input(bench.graph, "rows", a->act, 2, (int64_t[]){rows, widths[p]});
    }
    struct gd_kv_batch batch = {.dtype = a->page_dtype, .layer_count = a->layers, .kv_heads = a->kv_heads,
                                .head_dim = a->head_dim, .pages = a->pages, .sequence_count = 3, .cu_seqlens = cu,
                                .past = past32, .page_table = a->page_table, .page_table_stride = STRIDE};
    bench.in[3] = gd_graph_handle(bench.graph, "cache");
    bench.memory[3] = &batch;
    struct gd_attention_options options = {.heads = a->heads, .kv_heads = a->kv_heads, .head_dim = a->head_dim, .scale = 0.2,
                                           .window = a->window, .softcap = a->softcap, .bias_distance = BIAS_DISTANCE};
    if (a->buckets > 0) {
        options.bias = bench.in[4] = gd_graph_input(bench.graph, "bias", GD_F32, 2, (int64_t[]){a->buckets, a->heads});
        bench.memory[4] = filled(GD_F32, a->buckets * a->heads, BIAS_STREAM);
    }
    bench.out = gd_attention_cached(bench.graph, bench.in[0], a->cross ? NULL : bench.in[1], a->cross ? NULL : bench.in[2], bench.in[3],
                                    a->layer, &options);
    bench_plan(&bench, a->buckets > 0 ? 5 : 4);
    const void *result = bench_run(&bench);
    for (int s = 0; s < 3; s++)
        for (int64_t i = 0; i < (int64_t)take[s] * widths[0]; i++)
            out[s][(int64_t)past[s] * widths[0] + i] = (float)element(a->act, result, (int64_t)cu[s] * widths[0] + i);
    for (int64_t i = (int64_t)cu[3] * widths[0]; i < (int64_t)rows * widths[0]; i++)
        assert_true(element(a->act, result, i) == 0);
    gd_free(bench.memory[4]);
    bench_release(&bench, 3);
}

static double page_rounded(const struct attention *a, float x)
{
    return (double)(a->page_dtype == GD_BF16 ? gd_bf16_to_f32(gd_f32_to_bf16(x)) : x);
}

static void check_against_double(const struct attention *a, int s, int tokens, const float *out, double tolerance)
{
    int group = a->heads / a->kv_heads, dh = a->head_dim;
    double *expected = gd_alloc_array((size_t)dh, sizeof(double));
    struct gd_attention_sizes sizes = {.buckets = a->buckets, .max_distance = BIAS_DISTANCE};
    float *bias = filled(GD_F32, a->buckets * a->heads, BIAS_STREAM);
    for (int i = 0; i < tokens; i++)
        for (int h = 0; h < a->heads; h++) {
            double sum = 0;
            memset(expected, 0, (size_t)dh * sizeof(double));
            for (int j = a->window > 0 && i - a->window + 1 > 0 ? i - a->window + 1 : 0; j < (a->cross ? tokens : i + 1); j++) {
                const float *k = a->k[s] + (j * a->kv_heads + h / group) * dh, *v = a->v[s] + (j * a->kv_heads + h / group) * dh;
                double z = 0;
                for (int d = 0; d < dh; d++)
                    z += (double)a->q[s][(i * a->heads + h) * dh + d] * page_rounded(a, k[d]);
                z = a->softcap > 0 ? a->softcap * tanh(0.2 * z / a->softcap) : 0.2 * z;
                z += a->buckets > 0 ? (double)bias[gd_attention_bucket(&sizes, i - j) * a->heads + h] : 0;
                sum += exp(z);
                for (int d = 0; d < dh; d++)
                    expected[d] += exp(z) * page_rounded(a, v[d]);
            }
            for (int d = 0; d < dh; d++) {
                double got = (double)out[(i * a->heads + h) * dh + d];
                if (!(fabs(got - expected[d] / sum) <= tolerance * (1 + fabs(expected[d] / sum))))
                    fail_msg("sequence %d row %d head %d [%d]: %g, expected %g", s, i, h, d, got, expected[d] / sum);
            }
        }
    gd_free(bias);
    gd_free(expected);
}

/* Prefill in uneven slices beside others and decode, against double; then the same rows alone in one go, bit for bit. */
static void check_attention(struct attention a, double tolerance)
{
    attention_init(&a);
    int lengths[3] = {a.tokens, a.tokens / 2 + 1, 3}, past[3] = {0}, batch = 0;
    float *out[3], *alone[3];
    for (int s = 0; s < 3; s++) {
        out[s] = gd_alloc_array((size_t)(a.tokens * a.heads * a.head_dim), sizeof(float));
        alone[s] = gd_alloc_array((size_t)(a.tokens * a.heads * a.head_dim), sizeof(float));
    }
    for (bool more = true; more; batch++) {
        int take[3], rows = 0;
        for (int s = 0; s < 3; s++) {
            int step = batch % 2 ? 1 : 37 + 11 * s, left = lengths[s] - past[s];
            take[s] = step < left ? step : left;
            rows += take[s];
        }
        run_batch(&a, past, take, rows + batch % 3, out);
        more = false;
        for (int s = 0; s < 3; s++) {
            past[s] += take[s];
            more |= past[s] < lengths[s];
        }
    }
    for (int s = 0; s < 3; s++) {
        int zero[3] = {0}, take[3] = {0};
        check_against_double(&a, s, lengths[s], out[s], tolerance);
        take[s] = lengths[s];
        spoil_pages(&a);
        run_batch(&a, zero, take, lengths[s], alone);
        assert_memory_equal(alone[s], out[s], (size_t)(lengths[s] * a.heads * a.head_dim) * sizeof(float));
    }
    for (int s = 0; s < 3; s++) {
        gd_free(out[s]);
        gd_free(alone[s]);
    }
    attention_release(&a);
}

static void cached_attention_agrees_with_double_and_does_not_depend_on_slices(void **state)
{
    check_attention((struct attention){.heads = 4, .kv_heads = 2, .head_dim = 6, .layers = 2, .layer = 1, .tokens = 150}, 1e-5);
    check_attention((struct attention){.heads = 9, .kv_heads = 3, .head_dim = 64, .layers = 1, .tokens = 140}, 1e-5);
    check_attention((struct attention){.heads = 1, .kv_heads = 1, .head_dim = 1, .layers = 1, .tokens = 40}, 1e-5);
}

static void cached_attention_sees_no_further_than_its_window(void **state)
{
    check_attention((struct attention){.heads = 2, .kv_heads = 1, .head_dim = 8, .layers = 1, .tokens = 150, .window = 5}, 1e-5);
    check_attention((struct attention){.heads = 6, .kv_heads = 2, .head_dim = 20, .layers = 1, .tokens = 200, .window = 70}, 1e-5);
}

static void cached_attention_caps_its_scores(void **state)
{
    check_attention((struct attention){.heads = 6, .kv_heads = 2, .head_dim = 20, .layers = 1, .tokens = 150, .softcap = 0.7}, 1e-5);
}

static void cached_attention_knows_distances(void **state)
{
    check_attention((struct attention){.heads = 3, .kv_heads = 3, .head_dim = 20, .layers = 1, .tokens = 150, .buckets = 8}, 1e-5);
    check_attention((struct attention){.heads = 2, .kv_heads = 2, .head_dim = 6, .layers = 1, .tokens = 130, .buckets = 9, .window = 70}, 1e-5);
}

static void cross_attention_sees_all_that_is_in_the_pages(void **state)
{
    struct attention a = {.heads = 4, .kv_heads = 2, .head_dim = 6, .layers = 2, .layer = 1, .tokens = 100};
    int zero[3] = {0}, lengths[3] = {100, 51, 3};
    float *out[3];
    attention_init(&a);
    for (int s = 0; s < 3; s++)
        out[s] = gd_alloc_array((size_t)(2 * a.tokens * a.heads * a.head_dim), sizeof(float));
    run_batch(&a, zero, lengths, 154, out); /* stores */
    a.cross = true;
    for (int s = 0; s < 3; s++) { /* q of a.tokens rows stands twice, so that rows "behind the past" have one */
        size_t row = (size_t)(a.heads * a.head_dim), rows = (size_t)lengths[s];
        float *twice = gd_alloc_array(2 * (size_t)a.tokens * row, sizeof(float));
        memcpy(twice, a.q[s], rows * row * sizeof(float));
        memcpy(twice + rows * row, a.q[s], rows * row * sizeof(float));
        gd_free(a.q[s]);
        a.q[s] = twice;
    }
    run_batch(&a, lengths, lengths, 154, out);
    for (int s = 0; s < 3; s++) {
        check_against_double(&a, s, lengths[s], out[s] + lengths[s] * a.heads * a.head_dim, 1e-5);
        gd_free(out[s]);
    }
    attention_release(&a);
}

static void buckets_of_distances_are_those_of_t5(void **state)
{
    struct gd_attention_sizes both = {.buckets = 32, .max_distance = 128, .bidirectional = true}, causal = {.buckets = 32, .max_distance = 128};
    /* From transformers' T5Attention._relative_position_bucket; distance = row - key. */
    static const struct { int distance, both, causal; } expected[] = {
        {0, 0, 0}, {1, 1, 1}, {-1, 17, 0}, {7, 7, 7}, {8, 8, 8}, {11, 8, 11}, {12, 9, 12}, {16, 10, 16}, {-16, 26, 0},
        {31, 11, 21}, {64, 14, 26}, {90, 14, 29}, {91, 15, 29}, {127, 15, 31}, {128, 15, 31}, {-128, 31, 0}, {100000, 15, 31},
    };
    for (size_t i = 0; i < GD_COUNT(expected); i++) {
        assert_int_equal(gd_attention_bucket(&both, expected[i].distance), expected[i].both);
        assert_int_equal(gd_attention_bucket(&causal, expected[i].distance), expected[i].causal);
    }
}

static void cached_attention_takes_more_heads_a_group_than_lanes(void **state)
{
    check_attention((struct attention){.heads = 71, .kv_heads = 1, .head_dim = 4, .layers = 1, .tokens = 45}, 1e-5);
}

static void cached_attention_works_in_bf16_and_with_bf16_pages(void **state)
{
    check_attention((struct attention){.heads = 4, .kv_heads = 2, .head_dim = 16, .layers = 1, .tokens = 100, .act = GD_BF16,
                                       .page_dtype = GD_BF16}, 5e-3);
    check_attention((struct attention){.heads = 4, .kv_heads = 2, .head_dim = 16, .layers = 1, .tokens = 100,
                                       .page_dtype = GD_BF16}, 1e-5);
    check_attention((struct attention){.heads = 7, .kv_heads = 1, .head_dim = 64, .layers = 1, .tokens = 100, .window = 40,
                                       .page_dtype = GD_BF16}, 1e-5);
    check_attention((struct attention){.heads = 9, .kv_heads = 3, .head_dim = 72, .layers = 1, .tokens = 70, .softcap = 2,
                                       .page_dtype = GD_BF16}, 1e-5);
}

/* Long enough that a device splits the keys of few rows. */
static void cached_attention_of_long_sequences_works_in_bf16(void **state)
{
    check_attention((struct attention){.heads = 6, .kv_heads = 2, .head_dim = 40, .layers = 2, .layer = 1, .tokens = 420, .window = 300,
                                       .act = GD_BF16, .page_dtype = GD_BF16}, 8e-3);
    check_attention((struct attention){.heads = 2, .kv_heads = 2, .head_dim = 136, .layers = 1, .tokens = 170, .softcap = 2,
                                       .act = GD_BF16, .page_dtype = GD_BF16}, 8e-3);
    check_attention((struct attention){.heads = 3, .kv_heads = 1, .head_dim = 256, .layers = 1, .tokens = 170,
                                       .act = GD_BF16, .page_dtype = GD_BF16}, 8e-3);
    check_attention((struct attention){.heads = 3, .kv_heads = 1, .head_dim = 201, .layers = 1, .tokens = 140, .window = 133,
                                       .act = GD_BF16, .page_dtype = GD_BF16}, 8e-3);
    check_attention((struct attention){.heads = 2, .kv_heads = 2, .head_dim = 6, .layers = 1, .tokens = 300, .buckets = 8,
                                       .act = GD_BF16, .page_dtype = GD_BF16}, 8e-3);
}

/* ---- wear ---- */

struct wear_case {
    int in, out, groups;
    int ranks[4], rows[4];         /* rank -1: base rows */
    bool dense[4];
    int entries[4];
    enum gd_dtype act;
};

/* A device with memory of its own takes what is worn: two sites each. */
static void adopt(const struct gd_wear *wear, struct gd_wear_shape shape)
{
    struct gd_error err = {0};
    for (int group = 0; group < wear->group_count; group++)
        if (wear->sites[group] != NULL && !gd_wear_adopt(wear->sites[group], (struct gd_wear_shape[]){shape, shape}, 2, &err))
            fail_msg("%s", err.message);
}

static void drop(const struct gd_wear *wear)
{
    for (int group = 0; group < wear->group_count; group++)
        gd_wear_drop(wear->sites[group]);
}

static const void *run_wear(struct bench *bench, const struct wear_case *c, struct gd_wear *wear, int rows, const void *x,
                            const void *y)
{
    struct gd_error err = {0};
    memset(bench, 0, sizeof(*bench));
    assert_true(gd_graph_create(&bench->graph, c->act, &err));
    bench->in[0] = gd_graph_input(bench->graph, "y", c->act, 2, (int64_t[]){rows, c->out});
    bench->in[1] = gd_graph_input(bench->graph, "x", c->act, 2, (int64_t[]){rows, c->in});
    bench->in[2] = gd_graph_handle(bench->graph, "wear");
    bench->memory[0] = (void *)y;
    bench->memory[1] = (void *)x;
    bench->memory[2] = wear;
    bench->out = gd_wear(bench->graph, bench->in[0], bench->in[1], bench->in[2], 1);
    bench_plan(bench, 3);
    adopt(wear, (struct gd_wear_shape){.in = c->in, .out = c->out});
    const void *result = bench_run(bench);
    drop(wear);
    return result;
}

static double expected_wear(const struct wear_case *c, const struct gd_wear_part *part, const void *x, const void *y,
                            int row, int o)
{
    double sum = 0;
    for (int r = 0; part != NULL && r < part->rank; r++) {
        double dot = 0;
        for (int k = 0; k < c->in; k++)
            dot += (double)part->a[r * part->a_row + k] * element(c->act, x, (int64_t)row * c->in + k);
        sum += dot * (double)part->b[o * part->rank + r] * (part->mid != NULL ? (double)part->mid[r] : 1);
    }
    double value = element(c->act, y, (int64_t)row * c->out + o);
    if (part == NULL)
        return value;
    value = value * (part->out_scale != NULL ? (double)part->out_scale[o] : 1) + (part->out_add != NULL ? (double)part->out_add[o] : 0);
    for (int k = 0; part->delta != NULL && k < c->in; k++)
        value += (double)part->delta[o * c->in + k] * element(c->act, x, (int64_t)row * c->in + k);
    for (int64_t e = 0; e < part->entry_count; e++)
        if (part->entry_row[e] == o)
            value += (double)part->entry[e] * element(c->act, x, (int64_t)row * c->in + part->entry_column[e]);
    return value + (double)part->scale * (part->b_scale != NULL ? (double)part->b_scale[o] : 1) * sum;
}

/* Places in order of rows, some rows with several, some with none. */
static void fill_entries(struct gd_wear_part *part, int count, int in, int out, uint64_t seed)
{
    int32_t *rows = gd_alloc_array((size_t)count, sizeof(int32_t)), *columns = gd_alloc_array((size_t)count, sizeof(int32_t));
    for (int i = 0; i < count; i++) {
        rows[i] = (int32_t)((int64_t)i * i * out / ((int64_t)count * count));
        columns[i] = (i * 7 + 3) % in;
    }
    part->entry_count = count;
    part->entry_row = rows;
    part->entry_column = columns;
    part->entry = filled(GD_F32, count, seed);
}

static void check_wear(const struct wear_case *c, double tolerance)
{
    struct gd_wear_part parts[4][2] = {0};
    const struct gd_wear_part *sites[4] = {NULL};
    int32_t row_begin[5] = {0}, one[2] = {0, 1};
    for (int g = 0; g < c->groups; g++) {
        row_begin[g + 1] = row_begin[g] + c->rows[g];
        if (c->ranks[g] < 0)
            continue;
        struct gd_wear_part *part = &parts[g][1];
        uint64_t seed = 90 + 10 * (uint64_t)g;
        *part = (struct gd_wear_part){.rank = c->ranks[g], .scale = 0.5f + (float)g, .a_row = c->in + 3 * g};
        part->a = filled(GD_F32, c->ranks[g] * part->a_row, seed);
        part->b = filled(GD_F32, c->ranks[g] * c->out, seed + 1);
        part->mid = g % 2 == 1 ? filled(GD_F32, c->ranks[g], seed + 2) : NULL;
        part->b_scale = g % 2 == 1 ? filled(GD_F32, c->out, seed + 3) : NULL;
        part->out_scale = g != 1 ? filled(GD_F32, c->out, seed + 4) : NULL;
        part->out_add = g % 3 == 0 ? filled(GD_F32, c->out, seed + 5) : NULL;
        part->delta = c->dense[g] ? filled(GD_F32, c->in * c->out, seed + 6) : NULL;
        if (c->entries[g] > 0)
            fill_entries(part, c->entries[g], c->in, c->out, seed + 7);
        sites[g] = parts[g];
    }
    int used = row_begin[c->groups], rows = used + 2; /* two rows of padding */
    struct gd_wear wear = {c->groups, row_begin, sites};
    void *x = filled(c->act, rows * c->in, 1), *y = filled(c->act, rows * c->out, 2);
    size_t item = c->act == GD_BF16 ? 2 : 4;
    struct bench bench, single;
    const char *result = run_wear(&bench, c, &wear, rows, x, y);
    for (int row = 0, g = 0; row < rows; row++) {
        while (g < c->groups && row >= row_begin[g + 1])
            g++;
        const struct gd_wear_part *part = g < c->groups && c->ranks[g] >= 0 ? &parts[g][1] : NULL;
        for (int o = 0; o < c->out; o++) {
            double got = element(c->act, result, (int64_t)row * c->out + o), expected = expected_wear(c, part, x, y, row, o);
            if (!(fabs(got - expected) <= tolerance * (sqrt((double)c->in) + fabs(expected))))
                fail_msg("row %d [%d]: %g, expected %g", row, o, got, expected);
        }
        if (g == c->groups)
            continue;
        struct gd_wear alone = {1, one, &sites[g]}; /* the row by itself: the same bits */
        const char *bits = run_wear(&single, c, &alone, 1, (char *)x + (size_t)(row * c->in) * item,
                                    (char *)y + (size_t)(row * c->out) * item);
        assert_memory_equal(bits, result + (size_t)(row * c->out) * item, (size_t)c->out * item);
        bench_release(&single, 0);
    }
    bench_release(&bench, 0);
    for (int g = 0; g < c->groups; g++) {
        const struct gd_wear_part *part = &parts[g][1];
        const float *owned[] = {part->a, part->b, part->mid, part->b_scale, part->out_scale, part->out_add, part->delta, part->entry};
        for (size_t i = 0; i < GD_COUNT(owned); i++)
            gd_free((void *)(uintptr_t)owned[i]);
        gd_free((void *)(uintptr_t)part->entry_row);
        gd_free((void *)(uintptr_t)part->entry_column);
    }
    gd_free(x);
    gd_free(y);
}

static void each_row_wears_its_own_graft_whatever_is_beside_it(void **state)
{
    check_wear(&(struct wear_case){.in = 1, .out = 1, .groups = 1, .ranks = {1}, .rows = {1}}, 1e-5);
    check_wear(&(struct wear_case){.in = 37, .out = 45, .groups = 4, .ranks = {5, -1, 16, 0}, .rows = {1, 2, 3, 1}}, 1e-5);
    check_wear(&(struct wear_case){.in = 576, .out = 192, .groups = 3, .ranks = {-1, 16, 40}, .rows = {2, 1, 70}}, 1e-5);
    check_wear(&(struct wear_case){.in = 64, .out = 33, .groups = 2, .ranks = {8, 512}, .rows = {17, 3}}, 1e-5);
    check_wear(&(struct wear_case){.in = 96, .out = 80, .groups = 2, .ranks = {16, 7}, .rows = {5, 6}, .act = GD_BF16}, 5e-3);
    check_wear(&(struct wear_case){.in = 1, .out = 1, .groups = 1, .ranks = {0}, .rows = {1}, .dense = {true}}, 1e-5);
    check_wear(&(struct wear_case){.in = 37, .out = 45, .groups = 4, .ranks = {5, -1, 0, 0}, .rows = {1, 2, 3, 1},
                                   .dense = {true, false, true, false}}, 1e-5);
    check_wear(&(struct wear_case){.in = 1, .out = 1, .groups = 1, .ranks = {0}, .rows = {1}, .entries = {1}}, 1e-5);
    check_wear(&(struct wear_case){.in = 37, .out = 45, .groups = 4, .ranks = {5, -1, 0, 0}, .rows = {1, 2, 3, 1},
                                   .entries = {30, 0, 200, 1}}, 1e-5);
    check_wear(&(struct wear_case){.in = 96, .out = 80, .groups = 2, .ranks = {0, 7}, .rows = {5, 60}, .entries = {90, 400}, .act = GD_BF16}, 8e-3);
    check_wear(&(struct wear_case){.in = 576, .out = 193, .groups = 2, .ranks = {0, 8}, .rows = {40, 1}, .dense = {true, true}}, 1e-5);
    check_wear(&(struct wear_case){.in = 96, .out = 80, .groups = 2, .ranks = {0, 7}, .rows = {5, 6}, .dense = {true}, .act = GD_BF16}, 5e-3);
}

/* Rows 2 and 3 wear the part; row 4 is padding. */
static void check_inputs(const struct gd_wear_part *part, int width, enum gd_dtype act)
{
    enum { ROWS = 5 };
    struct gd_wear_part parts[2] = {{0}, *part};
    const struct gd_wear_part *sites[2] = {NULL, parts};
    int32_t row_begin[3] = {0, 2, 4};
    struct gd_wear wear = {2, row_begin, sites};
    void *x = filled(act, ROWS * width, 8);
    struct gd_error err = {0};
    struct bench bench = {0};
    assert_true(gd_graph_create(&bench.graph, act, &err));
    bench.in[0] = gd_graph_input(bench.graph, "x", act, 2, (int64_t[]){ROWS, width});
    bench.in[1] = gd_graph_handle(bench.graph, "wear");
    bench.memory[0] = x;
    bench.memory[1] = &wear;
    bench.out = gd_wear_input(bench.graph, bench.in[0], bench.in[1], 1);
    bench_plan(&bench, 2);
    adopt(&wear, (struct gd_wear_shape){.in = width});
    const void *result = bench_run(&bench);
    drop(&wear);
    for (int i = 0; i < ROWS * width; i++) {
        bool worn = i / width == 2 || i / width == 3;
        int block = worn && part->in_rotate != NULL ? part->rotate_block : 1, row = i % width;
        double expected = 0, size = 0;
        for (int j = row / block * block; j < row / block * block + block; j++) {
            double term = element(act, x, i - row + j) * (worn && part->in_scale != NULL ? (double)part->in_scale[j] : 1) *
                          (worn && part->in_rotate != NULL ? (double)part->in_rotate[row * block + j % block] : 1);
            expected += term;
            size += fabs(term);
        }
        assert_true(fabs(element(act, result, i) - expected) <= (act == GD_BF16 ? 8e-3 : 1e-6) * size);
    }
    bench_release(&bench, 0);
    gd_free(x);
}

static void inputs_are_scaled_and_rotated_by_the_graft_of_their_row(void **state)
{
    float *scale = filled(GD_F32, 48, 7), *squares = filled(GD_F32, 48 * 48, 9);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        enum gd_dtype act = bf16 ? GD_BF16 : GD_F32;
        check_inputs(&(struct gd_wear_part){.in_scale = scale}, 37, act);
        check_inputs(&(struct gd_wear_part){.in_rotate = squares, .rotate_block = 1}, 7, act);
        check_inputs(&(struct gd_wear_part){.in_rotate = squares, .rotate_block = 8}, 48, act);
        check_inputs(&(struct gd_wear_part){.in_scale = scale, .in_rotate = squares, .rotate_block = 48}, 48, act);
    }
    gd_free(squares);
    gd_free(scale);
}

/* One block's rows: serial without residual, parallel with it, the base's; each alone gives the same bits. */
static void blocks_take_their_input_or_their_output_through_a_function(void **state)
{
    enum { ROWS = 6, WIDTH = 37, RANK = 5 };
    static const float zeros[WIDTH];
    struct gd_wear_part parts[2][2] = {0};
    for (int g = 0; g < 2; g++)
        parts[g][1] = (struct gd_wear_part){
            .rank = RANK, .scale = 1.5f, .a_row = WIDTH, .a = filled(GD_F32, RANK * WIDTH, 21 + 10 * (uint64_t)g),
            .b = filled(GD_F32, WIDTH * RANK, 22 + 10 * (uint64_t)g), .mid_add = filled(GD_F32, RANK, 23 + 10 * (uint64_t)g),
            .out_add = filled(GD_F32, WIDTH, 24 + 10 * (uint64_t)g), .serial = g == 0, .skip = g == 0 ? 0 : 0.5f,
            .out_scale = g == 0 ? zeros : NULL, .activation = g == 0 ? GD_ACTIVATION_GELU : GD_ACTIVATION_TANH};
    const struct gd_wear_part *sites[3] = {parts[0], NULL, parts[1]};
    int32_t row_begin[4] = {0, 2, 3, 5}, one[2] = {0, 1}; /* the last row is padding */
    struct gd_wear wear = {3, row_begin, sites};
    struct wear_case c = {.in = WIDTH, .out = WIDTH};
    float *x = filled(GD_F32, ROWS * WIDTH, 1), *y = filled(GD_F32, ROWS * WIDTH, 2);
    struct bench bench, single;
    const float *result = run_wear(&bench, &c, &wear, ROWS, x, y);
    for (int row = 0; row < ROWS; row++) {
        int group = row < 2 ? 0 : row < 3 ? 1 : row < 5 ? 2 : 1;
        const struct gd_wear_part *part = sites[group] != NULL ? &sites[group][1] : NULL;
        const float *in = part != NULL && part->serial ? y + row * WIDTH : x + row * WIDTH;
        for (int o = 0; o < WIDTH; o++) {
            double expected = (double)y[row * WIDTH + o];
            if (part != NULL) {
                expected = expected * (part->out_scale != NULL ? 0 : 1) + (double)part->out_add[o] +
                           (double)part->skip * (double)x[row * WIDTH + o];
                for (int r = 0; r < RANK; r++) {
                    double h = (double)part->mid_add[r];
                    for (int k = 0; k < WIDTH; k++)
                        h += (double)part->a[r * WIDTH + k] * (double)in[k];
                    h = group == 0 ? 0.5 * h * (1 + erf(h / sqrt(2))) : tanh(h);
                    expected += 1.5 * (double)part->b[o * RANK + r] * h;
                }
            }
            if (!(fabs((double)result[row * WIDTH + o] - expected) <= 1e-4 * (1 + fabs(expected))))
                fail_msg("row %d [%d]: %g, expected %g", row, o, (double)result[row * WIDTH + o], expected);
        }
        struct gd_wear alone = {1, one, &sites[group]};
        assert_memory_equal(run_wear(&single, &c, &alone, 1, x + row * WIDTH, y + row * WIDTH), result + row * WIDTH,
                            WIDTH * sizeof(float));
        bench_release(&single, 0);
    }
    bench_release(&bench, 0);
    for (int g = 0; g < 2; g++) {
        const float *owned[] = {parts[g][1].a, parts[g][1].b, parts[g][1].mid_add, parts[g][1].out_add};
        for (size_t i = 0; i < GD_COUNT(owned); i++)
            gd_free((void *)(uintptr_t)owned[i]);
    }
    gd_free(x);
    gd_free(y);
}

static void a_rank_beyond_the_limit_is_an_error(void **state)
{
    struct gd_wear_part parts[2] = {{0}, {.rank = 513, .scale = 1}};
    const struct gd_wear_part *sites[1] = {parts};
    int32_t row_begin[2] = {0, 1};
    struct gd_wear wear = {1, row_begin, sites};
    struct wear_case c = {.in = 2, .out = 2};
    float x[2] = {1, 2}, y[2] = {3, 4};
    struct bench bench = {0};
    struct gd_error err = {0};
    parts[1].rank = 0;
    run_wear(&bench, &c, &wear, 1, x, y);
    parts[1].rank = 513;
    assert_false(gd_plan_run(bench.plan, NULL, &err));
    assert_int_equal(err.code, GD_INTERNAL);
    bench_release(&bench, 0);
}

static void tokens_are_changed_by_their_index_in_the_sequence(void **state)
{
    enum { ROWS = 6, WIDTH = 37 };
    static const enum gd_dtype acts[] = {GD_F32, GD_BF16};
    static const int32_t index[ROWS] = {0, 1, 1, 2, -1, 0}, row_begin[3] = {0, 2, 5};
    for (int a = 0; a < 2; a++) {
        float *table = filled(GD_F32, 2 * WIDTH, 3);
        struct gd_wear_part parts[2] = {{0}, {.rows = table, .row_count = 2}};
        const struct gd_wear_part *sites[2] = {NULL, parts};
        struct gd_wear wear = {2, row_begin, sites, index};
        void *x = filled(acts[a], ROWS * WIDTH, 8);
        struct gd_error err = {0};
        struct bench bench = {0};
        assert_true(gd_graph_create(&bench.graph, acts[a], &err));
        bench.in[0] = gd_graph_input(bench.graph, "x", acts[a], 2, (int64_t[]){ROWS, WIDTH});
        bench.in[1] = gd_graph_handle(bench.graph, "wear");
        bench.memory[0] = x;
        bench.memory[1] = &wear;
        bench.out = gd_wear_rows(bench.graph, bench.in[0], bench.in[1], 1);
        bench_plan(&bench, 2);
        adopt(&wear, (struct gd_wear_shape){.out = WIDTH});
        const void *result = bench_run(&bench);
        drop(&wear);
        for (int i = 0; i < ROWS * WIDTH; i++) {
            bool worn = i / WIDTH == 2; /* the others: base rows, beyond the table, without index, of no group */
            double expected = element(acts[a], x, i) + (worn ? (double)table[WIDTH + i % WIDTH] : 0);
            assert_true(fabs(element(acts[a], result, i) - expected) <= (acts[a] == GD_BF16 ? 8e-3 : 1e-6) * (1 + fabs(expected)));
        }
        bench_release(&bench, 0);
        gd_free(x);
        gd_free(table);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cached_attention_agrees_with_double_and_does_not_depend_on_slices),
        cmocka_unit_test(cached_attention_sees_no_further_than_its_window),
        cmocka_unit_test(cached_attention_caps_its_scores),
        cmocka_unit_test(cached_attention_knows_distances),
        cmocka_unit_test(cross_attention_sees_all_that_is_in_the_pages),
        cmocka_unit_test(buckets_of_distances_are_those_of_t5),
        cmocka_unit_test(cached_attention_takes_more_heads_a_group_than_lanes),
        cmocka_unit_test(cached_attention_works_in_bf16_and_with_bf16_pages),
        cmocka_unit_test(cached_attention_of_long_sequences_works_in_bf16),
        cmocka_unit_test(each_row_wears_its_own_graft_whatever_is_beside_it),
        cmocka_unit_test(inputs_are_scaled_and_rotated_by_the_graft_of_their_row),
        cmocka_unit_test(blocks_take_their_input_or_their_output_through_a_function),
        cmocka_unit_test(a_rank_beyond_the_limit_is_an_error),
        cmocka_unit_test(tokens_are_changed_by_their_index_in_the_sequence),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
