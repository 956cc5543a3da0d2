/* Sampling on the device against infer/sampler.h. */
#include "bench.h"
#include "cuda/sample.h"
#include "engine/infer/sampler.h"
#include <math.h>
#include <stdio.h>

#define ROWS 3

/* A row of logits as a model makes them: few large ones. levels > 0: so many different ones. */
static float *random_logits(int vocab, int rows, int levels, uint64_t stream)
{
    float *z = gd_alloc_array((size_t)(rows * vocab), sizeof(float));
    for (int i = 0; i < rows * vocab; i++) {
        float x = bench_normal(stream, (uint64_t)i);
        z[i] = levels > 0 ? rintf(x * (float)levels) / (float)levels : 2 * x + (x > 2 ? 4 * (x - 2) : 0);
    }
    return z;
}

struct history {
    uint16_t *counts;
    uint8_t *seen;
    int32_t ids[3];
    float values[3];
    struct gd_sample_edit *edits;
    int edit_count;
};

static void history_init(struct history *h, int vocab, int row)
{
    h->counts = gd_alloc_array((size_t)vocab, sizeof(uint16_t));
    h->seen = gd_alloc_array((size_t)vocab, 1);
    h->edits = gd_alloc_array((size_t)vocab, sizeof(*h->edits));
    for (int i = row; i < vocab; i += 3 + row) {
        h->seen[i] = 1;
        h->counts[i] = (uint16_t)(i % 2 ? i % 5 : 0);
    }
    for (int i = 0; i < 3; i++) {
        h->ids[i] = (row + 7 * i) % vocab;
        h->values[i] = 3.0f - 2.5f * (float)i;
    }
    for (int id = 0; id < vocab; id++) {
        struct gd_sample_edit edit = {.id = id, .count = h->counts[id], .seen = h->seen[id]};
        for (int i = 0; i < 3; i++)
            edit.bias += h->ids[i] == id ? h->values[i] : 0;
        if (edit.count > 0 || edit.seen || edit.bias != 0)
            h->edits[h->edit_count++] = edit;
    }
}

static void history_release(struct history *h)
{
    gd_free(h->counts);
    gd_free(h->seen);
    gd_free(h->edits);
}

/* ROWS rows with one set of options, at several positions; with `past` each has a history of its own. */
static void check(int vocab, int levels, struct gd_sampling sampling, bool past, uint64_t stream)
{
    struct gd_error err = {0};
    struct gd_sampler sampler;
    struct history histories[ROWS] = {0};
    struct gd_sample_row rows[ROWS] = {0};
    struct gd_sampled got[ROWS];
    float *logits = random_logits(vocab, ROWS, levels, stream);
    struct gd_sample_edit *edits = gd_alloc_array((size_t)(ROWS * vocab), sizeof(*edits));
    int edit_count = 0;
    gd_sampler_init(&sampler, vocab);
    for (int r = 0; r < ROWS; r++) {
        history_init(&histories[r], vocab, r);
        rows[r] = (struct gd_sample_row){
            .temperature = sampling.temperature, .top_p = sampling.top_p, .min_p = sampling.min_p, .top_k = sampling.top_k,
            .frequency_penalty = sampling.frequency_penalty, .presence_penalty = sampling.presence_penalty,
            .repetition_penalty = sampling.repetition_penalty, .top_count = -1, .edit_begin = edit_count,
            .edit_count = past ? histories[r].edit_count : 0, .uniform = gd_sample_uniform(sampling.seed, (uint32_t)r, 17)};
        for (int i = 0; i < rows[r].edit_count; i++)
            edits[edit_count++] = histories[r].edits[i];
    }
    struct gd_sample_batch batch = {.logits = bench_put(logits, (size_t)(ROWS * vocab) * sizeof(float)), .row_count = ROWS, .vocab = vocab,
                                    .rows = rows, .edits = edits, .edit_count = edit_count};
    void *scratch = bench_room(gd_cuda_sample_bytes(ROWS, vocab, edit_count));
    if (!gd_cuda_sample(&batch, scratch, got, &err))
        fail_msg("%s", err.message);
    for (int r = 0; r < ROWS; r++) {
        sampling.bias_ids = histories[r].ids;
        sampling.bias_values = histories[r].values;
        sampling.bias_count = past ? 3 : 0;
        int32_t expected = gd_sample(&sampler, logits + r * vocab, &sampling, past ? histories[r].counts : NULL, past ? histories[r].seen : NULL,
                                     (uint32_t)r, 17);
        if (got[r].token != expected)
            fail_msg("vocabulary %d, %d levels, t %g, k %d, p %g, min %g, row %d: token %d, expected %d", vocab, levels, sampling.temperature,
                     sampling.top_k, sampling.top_p, sampling.min_p, r, got[r].token, expected);
        history_release(&histories[r]);
    }
    gd_sampler_release(&sampler);
    gd_free(logits);
    gd_free(edits);
    bench_release(NULL);
}

static struct gd_sampling plain(double temperature, int top_k, double top_p, double min_p)
{
    return (struct gd_sampling){.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p, .repetition_penalty = 1, .seed = 11};
}

static const int vocabs[] = {1, 257, 700};

static void the_largest_logit_is_taken_and_the_lowest_id_among_equals(void **state)
{
    for (size_t v = 0; v < GD_COUNT(vocabs); v++) {
        check(vocabs[v], 0, plain(0, 0, 1, 0), false, v);
        check(vocabs[v], 2, plain(0, 0, 1, 0), false, v + 10);
    }
}

static void draws_are_those_of_the_cpu(void **state)
{
    for (size_t v = 0; v < GD_COUNT(vocabs); v++)
        for (uint64_t seed = 0; seed < 1 + v / 2; seed++) {
            check(vocabs[v], 0, plain(1, 0, 1, 0), false, seed);
            check(vocabs[v], 0, plain(0.7, 0, 0.9, 0), false, seed);
            check(vocabs[v], 0, plain(1.3, 0, 0.5, 0), false, seed);
            check(vocabs[v], 0, plain(1, 5, 1, 0), false, seed);
            check(vocabs[v], 0, plain(1, 40, 0.8, 0.02), false, seed);
            check(vocabs[v], 0, plain(2, 0, 1, 0.1), false, seed);
        }
}

static void vocabularies_are_read_in_many_tiles(void **state)
{
    check(9001, 0, plain(1.5, 0, 1, 0), false, 5);
}

static void ties_are_cut_by_lower_ids(void **state)
{
    for (uint64_t seed = 0; seed < 2; seed++) {
        check(300, 2, plain(1, 7, 1, 0), false, seed);
        check(300, 1, plain(1, 20, 0.7, 0), false, seed);
        check(300, 2, plain(1, 0, 0.3, 0), false, seed);
    }
}

static void penalties_and_biases_count(void **state)
{
    struct gd_sampling sampling = plain(0.9, 0, 0.95, 0);
    sampling.repetition_penalty = 1.3;
    sampling.frequency_penalty = 0.4;
    sampling.presence_penalty = -0.3;
    for (uint64_t seed = 0; seed < 2; seed++)
        check(700, 0, sampling, true, seed);
    sampling.temperature = 0;
    check(700, 0, sampling, true, 9);
}

static void log_probabilities_are_told(void **state)
{
    struct gd_error err = {0};
    struct gd_sampler sampler;
    int vocab = 900, wanted[] = {0, 1, 20};
    float *logits = random_logits(vocab, 3, 4, 3);
    struct gd_sample_row rows[3] = {0};
    struct gd_sampled got[3];
    struct gd_token_logprob top[20];
    double logprob;
    for (int r = 0; r < 3; r++)
        rows[r] = (struct gd_sample_row){.top_p = 1, .repetition_penalty = 1, .top_count = wanted[r]};
    struct gd_sample_batch batch = {.logits = bench_put(logits, (size_t)(3 * vocab) * sizeof(float)), .row_count = 3, .vocab = vocab, .rows = rows};
    assert_true(gd_cuda_sample(&batch, bench_room(gd_cuda_sample_bytes(3, vocab, 0)), got, &err));
    gd_sampler_init(&sampler, vocab);
    for (int r = 0; r < 3; r++) {
        gd_logprobs(&sampler, logits + r * vocab, got[r].token, &logprob, top, wanted[r]);
        assert_true(fabs(logprob - got[r].logprob) < 1e-6);
        for (int i = 0; i < wanted[r]; i++) {
            assert_int_equal(top[i].id, got[r].top_ids[i]);
            assert_true(fabs(top[i].logprob - got[r].top_logprobs[i]) < 1e-6);
        }
    }
    gd_sampler_release(&sampler);
    gd_free(logits);
}

static void batches_that_do_not_fit_are_refused(void **state)
{
    struct gd_error err = {0};
    struct gd_sampled got;
    struct gd_sample_row row = {.top_count = 21};
    struct gd_sample_batch batch = {.row_count = 1, .vocab = 100, .rows = &row};
    assert_false(gd_cuda_sample(&batch, NULL, &got, &err));
    gd_error_clear(&err);
    row = (struct gd_sample_row){.top_count = -1, .edit_begin = 2, .edit_count = 3};
    assert_false(gd_cuda_sample(&batch, NULL, &got, &err));
    gd_error_clear(&err);
    batch.vocab = GD_SAMPLE_VOCAB_MAX + 1;
    assert_false(gd_cuda_sample(&batch, NULL, &got, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(the_largest_logit_is_taken_and_the_lowest_id_among_equals, bench_release),
        cmocka_unit_test_teardown(draws_are_those_of_the_cpu, bench_release),
        cmocka_unit_test_teardown(vocabularies_are_read_in_many_tiles, bench_release),
        cmocka_unit_test_teardown(ties_are_cut_by_lower_ids, bench_release),
        cmocka_unit_test_teardown(penalties_and_biases_count, bench_release),
        cmocka_unit_test_teardown(log_probabilities_are_told, bench_release),
        cmocka_unit_test_teardown(batches_that_do_not_fit_are_refused, bench_release),
    };
    return cmocka_run_group_tests(tests, bench_open, NULL);
}
