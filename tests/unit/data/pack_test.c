/* Order, packing and batches as pure functions of their arguments. */
#include "engine/base/alloc.h"
#include "engine/data/dataset.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static uint32_t next_random(uint32_t *random)
{
    *random = *random * 1664525u + 1013904223u;
    return *random >> 8;
}

/* Rows of given lengths; token i of row r is 1000 r + i, its weight is (i % 3) / 2. */
static struct gd_dataset *dataset_of(const int *lengths, int count)
{
    struct gd_dataset *data = gd_alloc(sizeof *data);
    int64_t total = 0;
    data->rows = gd_alloc_array((size_t)count, sizeof *data->rows);
    for (int r = 0; r < count; r++) {
        data->rows[r] = (struct gd_dataset_row){.line = r + 1, .offset = total, .length = lengths[r]};
        total += lengths[r];
    }
    data->tokens = gd_alloc_array((size_t)total, sizeof *data->tokens);
    data->weights = gd_alloc_array((size_t)total, sizeof *data->weights);
    for (int r = 0; r < count; r++) {
        for (int i = 0; i < lengths[r]; i++) {
            data->tokens[data->rows[r].offset + i] = 1000 * r + i;
            data->weights[data->rows[r].offset + i] = (float)(i % 3) / 2;
        }
    }
    data->row_count = count;
    data->token_count = total;
    return data;
}

static void free_dataset(struct gd_dataset *data)
{
    gd_free(data->rows);
    gd_free(data->tokens);
    gd_free(data->weights);
    gd_free(data);
}

static void epoch_order_is_a_permutation_that_seed_and_epoch_decide(void **state)
{
    enum { COUNT = 1000 };
    int64_t a[COUNT], b[COUNT];
    bool seen[COUNT] = {false};
    gd_epoch_order(a, COUNT, 42, 0);
    gd_epoch_order(b, COUNT, 42, 0);
    assert_memory_equal(a, b, sizeof a);
    for (int i = 0; i < COUNT; i++) {
        assert_in_range(a[i], 0, COUNT - 1);
        assert_false(seen[a[i]]);
        seen[a[i]] = true;
    }
    gd_epoch_order(b, COUNT, 42, 1);
    assert_memory_not_equal(a, b, sizeof a);
    gd_epoch_order(b, COUNT, 43, 0);
    assert_memory_not_equal(a, b, sizeof a);
    gd_epoch_order(b, 1, 7, 3);
    assert_int_equal(b[0], 0);
    gd_epoch_order(b, 0, 7, 3);
}

/* A stored order: a change of it would silently change every run that is resumed. */
static void epoch_order_stays_what_it_was(void **state)
{
    static const int64_t expected[12] = {0, 5, 2, 3, 8, 11, 9, 4, 7, 6, 10, 1};
    int64_t order[12];
    gd_epoch_order(order, 12, 2024, 3);
    assert_memory_equal(order, expected, sizeof order);
}

static void epoch_order_favours_no_place(void **state)
{
    enum { COUNT = 6, EPOCHS = 12000 };
    int counts[COUNT][COUNT] = {{0}};
    int64_t order[COUNT];
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        gd_epoch_order(order, COUNT, 99, epoch);
        for (int i = 0; i < COUNT; i++)
            counts[order[i]][i]++;
    }
    for (int r = 0; r < COUNT; r++) {
        for (int i = 0; i < COUNT; i++) /* 2000 expected, standard deviation 41 */
            assert_in_range(counts[r][i], 1800, 2200);
    }
}

/* Every row of the step is in exactly one micro-batch, of its own leaf, and none is over the budget. */
static void check_packing(const struct gd_dataset *data, const int64_t *rows, int count, int leaves, int budget)
{
    int64_t *packed = gd_alloc_array((size_t)count + 1, sizeof *packed);
    int *begin = gd_alloc_array((size_t)count + 1, sizeof *begin), *leaf_of = gd_alloc_array((size_t)count + 1, sizeof *leaf_of);
    int *leaf_of_row = gd_alloc_array((size_t)data->row_count, sizeof *leaf_of_row);
    int *seen = gd_alloc_array((size_t)data->row_count, sizeof *seen);
    int micros = gd_step_pack(data, rows, count, leaves, budget, packed, begin, leaf_of);
    for (int i = 0; i < count; i++)
        leaf_of_row[rows[i]] = i % leaves;
    assert_true(micros <= count);
    for (int m = 0; m < micros; m++) {
        int end = m + 1 < micros ? begin[m + 1] : count;
        int64_t tokens = 0;
        assert_true(end > begin[m]);
        assert_true(m == 0 ? begin[m] == 0 : begin[m] > begin[m - 1]);
        assert_true(m == 0 || leaf_of[m] >= leaf_of[m - 1]);
        assert_true(end - begin[m] <= GD_BATCH_SEGMENTS_MAX);
        for (int i = begin[m]; i < end; i++) {
            tokens += data->rows[packed[i]].length;
            assert_int_equal(leaf_of_row[packed[i]], leaf_of[m]);
            seen[packed[i]]++;
        }
        assert_true(tokens <= budget || end - begin[m] == 1);
    }
    for (int i = 0; i < count; i++)
        assert_int_equal(seen[rows[i]], 1);
    gd_free(packed);
    gd_free(begin);
    gd_free(leaf_of);
    gd_free(leaf_of_row);
    gd_free(seen);
}

static void packing_is_disjoint_and_complete_for_any_lengths(void **state)
{
    uint32_t random = 7;
    for (int round = 0; round < 300; round++) {
        int lengths[400], row_count = 1 + (int)(next_random(&random) % 400), longest = 1 + (int)(next_random(&random) % 600);
        int64_t order[400];
        for (int i = 0; i < row_count; i++)
            lengths[i] = 1 + (int)(next_random(&random) % (uint32_t)longest);
        struct gd_dataset *data = dataset_of(lengths, row_count);
        gd_epoch_order(order, row_count, 5, round);
        int count = 1 + (int)(next_random(&random) % (uint32_t)row_count), leaves = 1 << next_random(&random) % 5;
        check_packing(data, order, count, leaves, 1 + (int)(next_random(&random) % 1000));
        free_dataset(data);
    }
}

static void a_micro_batch_never_has_more_rows_than_a_batch_holds(void **state)
{
    enum { COUNT = 3 * GD_BATCH_SEGMENTS_MAX + 5 };
    int lengths[COUNT];
    int64_t rows[COUNT], packed[COUNT];
    int begin[COUNT], leaf_of[COUNT];
    for (int i = 0; i < COUNT; i++) {
        lengths[i] = 2;
        rows[i] = i;
    }
    struct gd_dataset *data = dataset_of(lengths, COUNT);
    assert_int_equal(gd_step_pack(data, rows, COUNT, 1, 1000000, packed, begin, leaf_of), 4);
    check_packing(data, rows, COUNT, 1, 1000000);
    free_dataset(data);
}

static void first_fit_goes_back_to_where_there_is_room(void **state)
{
    static const int lengths[] = {6, 6, 4, 3, 20, 1};
    static const int64_t rows[] = {0, 1, 2, 3, 4, 5};
    static const int64_t expected[] = {0, 2, 1, 3, 5, 4};
    int64_t packed[6];
    int begin[6], leaf_of[6];
    struct gd_dataset *data = dataset_of(lengths, 6);
    assert_int_equal(gd_step_pack(data, rows, 6, 1, 10, packed, begin, leaf_of), 3);
    assert_memory_equal(packed, expected, sizeof expected);
    assert_int_equal(begin[1], 2);
    assert_int_equal(begin[2], 5);
    free_dataset(data);
}

static void batches_shift_labels_inside_segments_only(void **state)
{
    static const int lengths[] = {4, 1, 5};
    static const int64_t rows[] = {2, 0, 1};
    struct gd_dataset *data = dataset_of(lengths, 3);
    struct gd_batch batch;
    gd_batch_init(&batch, 64, 8);
    memset(batch.ids, 0x7F, 64 * sizeof *batch.ids);
    gd_batch_fill(&batch, data, rows, 3, 16);
    assert_int_equal(batch.capacity, 16);
    assert_int_equal(batch.used, 10);
    assert_int_equal(batch.segment_count, 3);
    static const int32_t offsets[] = {0, 5, 9, 10, 10, 10, 10, 10, 10};
    assert_memory_equal(batch.cu_seqlens, offsets, sizeof offsets);
    int at = 0;
    for (int s = 0; s < 3; s++) {
        int length = lengths[rows[s]];
        assert_int_equal(batch.row_index[s], rows[s]);
        for (int i = 0; i < length; i++, at++) {
            float weight = i + 1 < length ? (float)((i + 1) % 3) / 2 : 0;
            assert_int_equal(batch.ids[at], 1000 * rows[s] + i);
            assert_int_equal(batch.positions[at], i);
            assert_int_equal(batch.labels[at], weight != 0 ? 1000 * rows[s] + i + 1 : -100);
            assert_true(batch.weights[at] == weight);
        }
    }
    for (; at < 16; at++) {
        assert_int_equal(batch.ids[at], 0);
        assert_int_equal(batch.positions[at], 0);
        assert_int_equal(batch.labels[at], -100);
        assert_true(batch.weights[at] == 0);
    }
    gd_batch_release(&batch);
    free_dataset(data);
}

static void virtual_rows_lead_every_segment_and_can_be_taken_out(void **state)
{
    static const int lengths[] = {4, 6};
    static const int64_t rows[] = {1, 0};
    static const int32_t stands_for[] = {7, 8, 9};
    static const float weights[] = {0, 0, 0.25f};
    struct gd_dataset *data = dataset_of(lengths, 2);
    struct gd_batch batch, bare, plain;
    gd_batch_init(&batch, 64, 8);
    gd_batch_init(&bare, 64, 8);
    gd_batch_init(&plain, 64, 8);
    gd_batch_fill(&plain, data, rows, 2, 16);
    data->virtual_rows = (struct gd_virtual_rows){.count = 3, .ids = stands_for, .weights = weights, .target_count = 1, .table_rows = 3};
    assert_int_equal(gd_dataset_row_space(data, 0), 7);
    gd_batch_fill(&batch, data, rows, 2, 20);
    assert_int_equal(batch.used, 16);
    for (int s = 0, at = 0; s < 2; s++) {
        for (int i = 0; i < 3 + lengths[rows[s]]; i++, at++) {
            assert_int_equal(batch.positions[at], i);
            assert_int_equal(batch.index[GD_ROW_VIRTUAL][at], i < 3 ? i : -1);
            assert_int_equal(batch.index[GD_ROW_TOKEN][at], i < 3 ? -1 : at);
            assert_int_equal(batch.index[GD_ROW_TABLE][at], i >= 3 && i < 6 ? i - 3 : -1);
            assert_int_equal(batch.ids[at], i < 3 ? stands_for[i] : 1000 * rows[s] + i - 3);
            if (i < 3) /* the first token is nobody's target */
                assert_int_equal(batch.labels[at], i == 1 ? 9 : -100);
        }
        assert_int_equal(batch.cu_seqlens[s + 1], at);
    }
    assert_true(batch.weights[1] == 0.25f);
    data->virtual_rows.ids = NULL;
    data->virtual_rows.weights = NULL;
    data->virtual_rows.prompt_only = true;
    gd_batch_fill(&batch, data, rows, 2, 20);
    assert_int_equal(batch.ids[0], -1);
    assert_int_equal(batch.labels[1], -100);
    assert_int_equal(batch.index[GD_ROW_TABLE][3], 0);
    assert_int_equal(batch.index[GD_ROW_TABLE][4], -1); /* trained: an answer's */
    gd_batch_strip(&bare, &batch, 16);
    assert_memory_equal(bare.ids, plain.ids, 16 * sizeof *bare.ids);
    assert_memory_equal(bare.positions, plain.positions, 16 * sizeof *bare.ids);
    assert_memory_equal(bare.labels, plain.labels, 16 * sizeof *bare.ids);
    assert_memory_equal(bare.weights, plain.weights, 16 * sizeof *bare.weights);
    assert_memory_equal(bare.cu_seqlens, plain.cu_seqlens, 9 * sizeof *bare.cu_seqlens);
    gd_batch_release(&batch);
    gd_batch_release(&bare);
    gd_batch_release(&plain);
    free_dataset(data);
}

static void a_pair_shares_its_virtual_rows_and_its_prompt(void **state)
{
    static const int lengths[] = {9}; /* chosen 5, rejected 4, 2 in common */
    static const int64_t rows[] = {0};
    struct gd_dataset *data = dataset_of(lengths, 1);
    struct gd_batch batch, bare;
    data->pairs = true;
    data->rows[0].chosen = 5;
    data->rows[0].shared = 2;
    data->virtual_rows.count = 3;
    gd_batch_init(&batch, 64, 8);
    gd_batch_init(&bare, 64, 8);
    assert_int_equal(gd_dataset_row_space(data, 0), 10);
    gd_batch_fill(&batch, data, rows, 1, 16);
    assert_int_equal(batch.used, 10);
    assert_int_equal(batch.cu_seqlens[1], 8);
    assert_int_equal(batch.prefix[2], 0);
    assert_int_equal(batch.prefix[3], 5);
    assert_int_equal(batch.positions[8], 5);
    gd_batch_strip(&bare, &batch, 16);
    assert_int_equal(bare.used, 7);
    assert_int_equal(bare.prefix[2], 0);
    assert_int_equal(bare.prefix[3], 2);
    assert_int_equal(bare.positions[5], 2);
    gd_batch_release(&batch);
    gd_batch_release(&bare);
    free_dataset(data);
}

static void prompts_and_answers_apart_are_packed_on_two_sides(void **state)
{
    struct gd_dataset *data = dataset_of((int[]){7, 3, 5}, 3);
    int64_t rows[] = {2, 0, 1};
    struct gd_batch batch;
    data->apart = true;
    data->start_id = 77;
    data->rows[0].encoded = 4;
    data->rows[1].encoded = 1;
    data->rows[2].encoded = 3;
    gd_batch_init(&batch, 64, 8);
    gd_batch_fill(&batch, data, rows, 3, 64);
    static const int32_t encoder[] = {2000, 2001, 2002, 0, 1, 2, 3, 1000}, ids[] = {77, 2003, 77, 4, 5, 77, 1001};
    static const int32_t labels[] = {-100, 2004, 4, 5, -100, 1001, 1002}, positions[] = {0, 1, 0, 1, 2, 0, 1};
    static const float weights[] = {0, 0.5f, 0.5f, 1, 0, 0.5f, 1};
    assert_int_equal(batch.encoder_used, 8);
    assert_int_equal(batch.used, 7);
    assert_int_equal(batch.encoder_capacity, 64);
    assert_memory_equal(batch.encoder_ids, encoder, sizeof encoder);
    assert_memory_equal(batch.ids, ids, sizeof ids);
    assert_memory_equal(batch.labels, labels, sizeof labels);
    assert_memory_equal(batch.positions, positions, sizeof positions);
    assert_memory_equal(batch.weights, weights, sizeof weights);
    assert_memory_equal(batch.encoder_cu_seqlens, ((int32_t[]){0, 3, 7, 8, 8, 8, 8, 8, 8}), 9 * sizeof(int32_t));
    assert_memory_equal(batch.cu_seqlens, ((int32_t[]){0, 2, 5, 7, 7, 7, 7, 7, 7}), 9 * sizeof(int32_t));
    gd_batch_release(&batch);
    free_dataset(data);
}

static void buckets_round_up_in_steps(void **state)
{
    static const int pairs[][2] = {{0, 64}, {1, 64}, {64, 64}, {65, 128}, {512, 512}, {513, 640}, {2048, 2048}, {2049, 2304}, {5000, 5120}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        assert_int_equal(gd_token_bucket(pairs[i][0]), pairs[i][1]);
    for (int tokens = 1; tokens < 5000; tokens++) {
        assert_true(gd_token_bucket(tokens) >= tokens);
        assert_true(gd_token_bucket(tokens) <= gd_token_bucket(tokens + 1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epoch_order_is_a_permutation_that_seed_and_epoch_decide),
        cmocka_unit_test(epoch_order_stays_what_it_was),
        cmocka_unit_test(epoch_order_favours_no_place),
        cmocka_unit_test(packing_is_disjoint_and_complete_for_any_lengths),
        cmocka_unit_test(a_micro_batch_never_has_more_rows_than_a_batch_holds),
        cmocka_unit_test(first_fit_goes_back_to_where_there_is_room),
        cmocka_unit_test(batches_shift_labels_inside_segments_only),
        cmocka_unit_test(virtual_rows_lead_every_segment_and_can_be_taken_out),
        cmocka_unit_test(a_pair_shares_its_virtual_rows_and_its_prompt),
        cmocka_unit_test(prompts_and_answers_apart_are_packed_on_two_sides),
        cmocka_unit_test(buckets_round_up_in_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
