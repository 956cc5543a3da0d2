/* The order of rows, the micro-batches of a step, and the arrays of a batch. */
#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/data/dataset.h"
#include "engine/tensor/tensor.h"
#include <assert.h>
#include <string.h>

int gd_token_bucket(int tokens)
{
    int unit = tokens <= 512 ? 64 : tokens <= 2048 ? 128 : 256;
    return tokens < 1 ? unit : (tokens + unit - 1) / unit * unit;
}

/* Uniform in [0, bound) without modulo bias: words beyond the largest multiple of bound are rejected. */
static uint64_t uniform_below(uint64_t seed, uint64_t stream, uint64_t *counter, uint64_t bound)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
    for (;;) {
        struct gd_philox word = gd_philox4(seed, stream, (*counter)++);
        uint64_t value = (uint64_t)word.v[0] << 32 | word.v[1];
        if (value < limit)
            return value % bound;
    }
}

void gd_epoch_order(int64_t *order, int64_t row_count, uint64_t seed, int epoch)
{
    uint64_t stream = gd_philox_stream(GD_RANDOM_SHUFFLE, (uint32_t)epoch, 0), counter = 0;
    for (int64_t i = 0; i < row_count; i++)
        order[i] = i;
    for (int64_t i = row_count - 1; i > 0; i--) {
        int64_t j = (int64_t)uniform_below(seed, stream, &counter, (uint64_t)i + 1);
        int64_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

/* First-fit in order: each row goes to the first open micro-batch that has room, else it opens one. */
static int pack_leaf(const struct gd_dataset *dataset, const int64_t *rows, int count, int token_budget, int64_t *rows_out,
                     int *sizes)
{
    int *bin = gd_alloc_array((size_t)count + 1, sizeof(int)), *begin = gd_alloc_array((size_t)count + 1, sizeof(int));
    int64_t *used = gd_alloc_array((size_t)count + 1, sizeof(int64_t));
    int bins = 0, first_open = 0, most = GD_BATCH_SEGMENTS_MAX / (dataset->triples ? 3 : dataset->pairs ? 2 : 1);
    memset(sizes, 0, (size_t)count * sizeof *sizes);
    for (int i = 0; i < count; i++) {
        int length = gd_dataset_row_space(dataset, rows[i]);
        while (first_open < bins && (used[first_open] >= token_budget || sizes[first_open] == most))
            first_open++; /* full ones stay full */
        int target = first_open;
        while (target < bins && (used[target] + length > token_budget || sizes[target] == most))
            target++;
        bins += target == bins;
        used[target] += length;
        sizes[target]++;
        bin[i] = target;
    }
    for (int b = 1; b < bins; b++)
        begin[b] = begin[b - 1] + sizes[b - 1];
    for (int i = 0; i < count; i++)
        rows_out[begin[bin[i]]++] = rows[i];
    gd_free(bin);
    gd_free(begin);
    gd_free(used);
    return bins;
}

int gd_step_pack(const struct gd_dataset *dataset, const int64_t *step_rows, int step_row_count, int leaf_count,
                 int token_budget, int64_t *rows_out, int *micro_begin, int *leaf_of)
{
    int64_t *leaf_rows = gd_alloc_array((size_t)step_row_count + 1, sizeof(int64_t));
    int *sizes = gd_alloc_array((size_t)step_row_count + 1, sizeof(int));
    int micro = 0, begin = 0;
    for (int leaf = 0; leaf < leaf_count; leaf++) {
        int count = 0;
        for (int i = leaf; i < step_row_count; i += leaf_count)
            leaf_rows[count++] = step_rows[i];
        int bins = pack_leaf(dataset, leaf_rows, count, token_budget, rows_out + begin, sizes);
        for (int b = 0; b < bins; b++) {
            leaf_of[micro] = leaf;
            micro_begin[micro++] = begin;
            begin += sizes[b];
        }
    }
    assert(begin == step_row_count);
    gd_free(leaf_rows);
    gd_free(sizes);
    return micro;
}

void gd_batch_init(struct gd_batch *batch, int capacity_max, int segment_max)
{
    size_t tokens = (size_t)capacity_max;
    memset(batch, 0, sizeof(*batch));
    batch->segment_max = segment_max;
    batch->ids = gd_alloc_array(tokens, sizeof(int32_t));
    batch->positions = gd_alloc_array(tokens, sizeof(int32_t));
    batch->types = gd_alloc_array(tokens, sizeof(int32_t));
    batch->labels = gd_alloc_array(tokens, sizeof(int32_t));
    batch->weights = gd_alloc_array(tokens, sizeof(float));
    batch->cu_seqlens = gd_alloc_array((size_t)segment_max + 1, sizeof(int32_t));
    batch->encoder_ids = gd_alloc_array(tokens, sizeof(int32_t));
    batch->encoder_cu_seqlens = gd_alloc_array((size_t)segment_max + 1, sizeof(int32_t));
    batch->prefix = gd_alloc_array(2 * (size_t)segment_max, sizeof(int32_t));
    batch->margin = gd_alloc_array((size_t)segment_max, sizeof(float));
    batch->reference = gd_alloc_array((size_t)segment_max, sizeof(float));
    batch->tasks = gd_alloc_array((size_t)segment_max, sizeof(int32_t));
    batch->owner = gd_alloc_array((size_t)segment_max, sizeof(int32_t));
    batch->row_index = gd_alloc_array((size_t)segment_max, sizeof(int64_t));
    for (int i = 0; i < GD_ROW_INDICES; i++)
        batch->index[i] = gd_alloc_array(tokens, sizeof(int32_t));
    batch->desirable = gd_alloc_array((size_t)segment_max, sizeof(bool));
    batch->importance = gd_alloc_array((size_t)segment_max, sizeof(float));
}

void gd_batch_release(struct gd_batch *batch)
{
    gd_free(batch->ids);
    gd_free(batch->positions);
    gd_free(batch->types);
    gd_free(batch->labels);
    gd_free(batch->weights);
    gd_free(batch->cu_seqlens);
    gd_free(batch->encoder_ids);
    gd_free(batch->encoder_cu_seqlens);
    gd_free(batch->prefix);
    gd_free(batch->reference);
    gd_free(batch->tasks);
    gd_free(batch->owner);
    gd_free(batch->margin);
    gd_free(batch->row_index);
    for (int i = 0; i < GD_ROW_INDICES; i++)
        gd_free(batch->index[i]);
    gd_free(batch->desirable);
    gd_free(batch->importance);
    memset(batch, 0, sizeof(*batch));
}

static void append_virtual(struct gd_batch *batch, const struct gd_virtual_rows *rows, bool targets)
{
    for (int j = 0; j < rows->count; j++) {
        int at = batch->used++;
        bool trained = targets && rows->weights != NULL && j + 1 < rows->count && rows->weights[j + 1] != 0;
        batch->ids[at] = rows->ids != NULL ? rows->ids[j] : -1;
        batch->positions[at] = j;
        batch->labels[at] = trained ? rows->ids[j + 1] : -100;
        batch->weights[at] = trained ? rows->weights[j + 1] : 0;
        batch->index[GD_ROW_VIRTUAL][at] = j;
        batch->index[GD_ROW_TOKEN][at] = batch->index[GD_ROW_TABLE][at] = -1;
    }
}

/* Tokens that a table changes: all that it has an entry for, or those of the prompt among them. */
static int32_t changed_tokens(const struct gd_virtual_rows *rows, const float *weights, int32_t length)
{
    int32_t changed = rows->table_rows < length ? rows->table_rows : length;
    for (int32_t i = 0; rows->prompt_only && i < changed; i++)
        if (weights[i] != 0)
            return i;
    return changed;
}

/* The first `shared` tokens, and the virtual rows with them, are already in the batch: the last segment begins with them. */
static void append_tokens(struct gd_batch *batch, const struct gd_dataset *dataset, const int32_t *tokens, const float *weights,
                          int32_t length, int32_t shared)
{
    const struct gd_virtual_rows *rows = &dataset->virtual_rows;
    int32_t changed = changed_tokens(rows, weights, length);
    assert(batch->used + (shared > 0 ? -shared : rows->count) + length <= batch->capacity);
    assert(batch->segment_count < batch->segment_max);
    int32_t *prefix = batch->prefix + 2 * batch->segment_count;
    prefix[0] = shared > 0 ? batch->cu_seqlens[batch->segment_count - 1] : 0;
    prefix[1] = prefix[0] + (shared > 0 ? rows->count + shared : 0);
    if (shared == 0)
        append_virtual(batch, rows, !dataset->pairs && !dataset->labelled);
    int at = batch->used;
    for (int i = shared; i < length; i++, at++) {
        bool trained = i + 1 < length && weights[i + 1] != 0;
        batch->ids[at] = tokens[i];
        batch->positions[at] = rows->count + i;
        batch->labels[at] = trained ? tokens[i + 1] : -100;
        batch->weights[at] = trained ? weights[i + 1] : 0;
        batch->index[GD_ROW_VIRTUAL][at] = -1;
        batch->index[GD_ROW_TOKEN][at] = at;
        batch->index[GD_ROW_TABLE][at] = i < changed ? i : -1;
    }
    batch->used = at;
    batch->cu_seqlens[++batch->segment_count] = at;
}

static void append_segment(struct gd_batch *batch, const struct gd_dataset *dataset, int64_t offset, int32_t length, int32_t shared)
{
    append_tokens(batch, dataset, dataset->tokens + offset, dataset->weights + offset, length, shared);
}

/* The prompt among the encoder's rows, the answer as what the decoder says behind the start token. */
static void append_apart(struct gd_batch *batch, const struct gd_dataset *dataset, const struct gd_dataset_row *row)
{
    const int32_t *tokens = dataset->tokens + row->offset;
    assert(batch->segment_count < batch->segment_max);
    memcpy(batch->encoder_ids + batch->encoder_used, tokens, (size_t)row->encoded * sizeof(*tokens));
    batch->encoder_used += row->encoded;
    batch->prefix[2 * batch->segment_count] = batch->prefix[2 * batch->segment_count + 1] = 0;
    for (int32_t i = row->encoded; i < row->length; i++) {
        int at = batch->used++;
        float weight = dataset->weights[row->offset + i];
        batch->ids[at] = i == row->encoded ? dataset->start_id : tokens[i - 1];
        batch->positions[at] = i - row->encoded;
        batch->labels[at] = weight != 0 ? tokens[i] : -100;
        batch->weights[at] = weight;
        batch->index[GD_ROW_VIRTUAL][at] = batch->index[GD_ROW_TABLE][at] = -1;
        batch->index[GD_ROW_TOKEN][at] = at;
    }
    batch->segment_count++;
    batch->cu_seqlens[batch->segment_count] = batch->used;
    batch->encoder_cu_seqlens[batch->segment_count] = batch->encoder_used;
}

/* As many rows as each side has, rounded up, and nothing behind them. */
static void fill_apart(struct gd_batch *batch)
{
    batch->capacity = gd_token_bucket(batch->used);
    batch->encoder_capacity = gd_token_bucket(batch->encoder_used);
    for (int s = batch->segment_count; s < batch->segment_max; s++)
        batch->encoder_cu_seqlens[s + 1] = batch->encoder_used;
    memset(batch->encoder_ids + batch->encoder_used, 0, (size_t)(batch->encoder_capacity - batch->encoder_used) * sizeof(int32_t));
}

/* What follows the last segment: no labels, and no segment. */
static void fill_rest(struct gd_batch *batch)
{
    for (int s = batch->segment_count; s < batch->segment_max; s++) {
        batch->cu_seqlens[s + 1] = batch->used;
        batch->prefix[2 * s] = batch->prefix[2 * s + 1] = 0;
        batch->tasks[s] = -1;
        batch->owner[s] = s;
    }
    for (int at = batch->used; at < batch->capacity; at++) {
        batch->ids[at] = 0;
        batch->positions[at] = 0;
        batch->labels[at] = -100;
        batch->weights[at] = 0;
        for (int i = 0; i < GD_ROW_INDICES; i++)
            batch->index[i][at] = -1;
    }
}

/* A common beginning goes with the segments that continue it: all of them are long if one is. */
static void mark_long(struct gd_batch *batch, const struct gd_dataset *dataset)
{
    for (int s = 0, last; dataset->long_from > 0 && s < batch->segment_count; s = last) {
        int longest = 0;
        for (last = s; last < batch->segment_count && (last == s || batch->prefix[2 * last + 1] > batch->prefix[2 * last]); last++) {
            int length = batch->cu_seqlens[last + 1] - batch->cu_seqlens[last] + batch->prefix[2 * last + 1] - batch->prefix[2 * last];
            longest = length > longest ? length : longest;
        }
        for (int t = batch->cu_seqlens[s]; longest > dataset->long_from && t < batch->cu_seqlens[last]; t++)
            batch->positions[t] |= GD_POSITION_LONG;
    }
}

static void begin_batch(struct gd_batch *batch, int row_count, int capacity)
{
    assert(row_count <= batch->segment_max);
    batch->capacity = capacity;
    memset(batch->types, 0, (size_t)capacity * sizeof *batch->types);
    batch->segment_count = batch->used = batch->encoder_used = 0;
    batch->cu_seqlens[0] = batch->encoder_cu_seqlens[0] = 0;
    batch->mismatched = false;
}

/* Segments from `first` on are those of row `r` of the batch. */
static void own_segments(struct gd_batch *batch, int first, int r, int32_t task)
{
    for (int s = first; s < batch->segment_count; s++) {
        batch->tasks[s] = task;
        batch->owner[s] = r;
    }
}

void gd_batch_fill(struct gd_batch *batch, const struct gd_dataset *dataset, const int64_t *row_index, int row_count,
                   int capacity)
{
    begin_batch(batch, row_count, capacity);
    batch->dataset = dataset;
    for (int r = 0; r < row_count; r++) {
        const struct gd_dataset_row *row = &dataset->rows[row_index[r]];
        int segments = batch->segment_count;
        batch->row_index[r] = row_index[r];
        batch->desirable[r] = row->desirable;
        batch->importance[r] = row->importance;
        batch->margin[r] = row->margin;
        int first = batch->segment_count;
        if (dataset->apart)
            append_apart(batch, dataset, row);
        else if (row->chosen > 0)
            append_segment(batch, dataset, row->offset, row->chosen, 0);
        if (!dataset->apart)
            append_segment(batch, dataset, row->offset + row->chosen, row->length - row->chosen - row->gold, row->shared);
        if (row->gold > 0)
            append_segment(batch, dataset, row->offset + row->length - row->gold, row->gold, 0);
        memcpy(batch->reference + first, row->reference, (size_t)(batch->segment_count - first) * sizeof(float));
        for (int t = batch->used - row->length + row->second; row->second > 0 && t < batch->used; t++)
            batch->types[t] = 1;
        own_segments(batch, segments, r, row->task);
    }
    if (dataset->apart)
        fill_apart(batch);
    fill_rest(batch);
    mark_long(batch, dataset);
}

static int virtual_rows_in(const struct gd_batch *batch, int begin, int end)
{
    int count = 0;
    for (int t = begin; t < end; t++)
        count += batch->index[GD_ROW_VIRTUAL][t] >= 0;
    return count;
}

void gd_batch_strip(struct gd_batch *batch, const struct gd_batch *from, int capacity)
{
    begin_batch(batch, 0, capacity);
    assert(from->segment_count <= batch->segment_max);
    for (int s = 0; s < from->segment_count; s++) {
        const int32_t *old = from->prefix + 2 * s;
        int32_t *prefix = batch->prefix + 2 * s;
        int lead = virtual_rows_in(from, old[0], old[1]) + virtual_rows_in(from, from->cu_seqlens[s], from->cu_seqlens[s + 1]);
        prefix[0] = old[1] > old[0] ? batch->cu_seqlens[s - 1] : 0; /* a prefix is how the segment before begins */
        prefix[1] = old[1] > old[0] ? prefix[0] + old[1] - old[0] - lead : 0;
        for (int t = from->cu_seqlens[s]; t < from->cu_seqlens[s + 1]; t++) {
            if (from->index[GD_ROW_VIRTUAL][t] >= 0)
                continue;
            int at = batch->used++;
            assert(at < capacity);
            batch->ids[at] = from->ids[t];
            batch->positions[at] = from->positions[t] - lead;
            batch->labels[at] = from->labels[t];
            batch->weights[at] = from->weights[t];
            batch->index[GD_ROW_VIRTUAL][at] = batch->index[GD_ROW_TABLE][at] = -1;
            batch->index[GD_ROW_TOKEN][at] = at;
        }
        batch->cu_seqlens[++batch->segment_count] = batch->used;
    }
    fill_rest(batch);
}

/* Tokens before the answer of a row with one: those before the first that is trained. */
int32_t gd_prompt_length(const struct gd_dataset *dataset, int64_t row)
{
    const struct gd_dataset_row *entry = &dataset->rows[row];
    int32_t length = 1; /* nothing predicts the first token */
    while (length < entry->length && dataset->weights[entry->offset + length] == 0)
        length++;
    return length;
}

int32_t gd_answer_length(const struct gd_dataset *dataset, int64_t row)
{
    return dataset->rows[row].length - gd_prompt_length(dataset, row);
}

int32_t gd_mismatched_length(const struct gd_dataset *dataset, int64_t row, int64_t partner)
{
    return gd_prompt_length(dataset, row) + gd_answer_length(dataset, partner);
}

static void append_mismatched(struct gd_batch *batch, const struct gd_dataset *dataset, int64_t row, int64_t partner, int longest)
{
    int32_t own = gd_prompt_length(dataset, row), length = gd_mismatched_length(dataset, row, partner);
    int64_t from = dataset->rows[row].offset, answer = dataset->rows[partner].offset + gd_prompt_length(dataset, partner);
    int32_t *tokens = gd_alloc_array((size_t)length, sizeof(int32_t));
    float *weights = gd_alloc_array((size_t)length, sizeof(float));
    memcpy(tokens, dataset->tokens + from, (size_t)own * sizeof(*tokens));
    memcpy(weights, dataset->weights + from, (size_t)own * sizeof(*weights));
    memcpy(tokens + own, dataset->tokens + answer, (size_t)(length - own) * sizeof(*tokens));
    memcpy(weights + own, dataset->weights + answer, (size_t)(length - own) * sizeof(*weights));
    append_tokens(batch, dataset, tokens, weights, length < longest ? length : longest, 0);
    gd_free(tokens);
    gd_free(weights);
}

void gd_batch_fill_mismatched(struct gd_batch *batch, const struct gd_dataset *dataset, const int64_t *row_index,
                              const int64_t *partner, int row_count, int longest, int capacity)
{
    begin_batch(batch, row_count, capacity);
    batch->mismatched = true;
    for (int r = 0; r < row_count; r++) {
        batch->row_index[r] = row_index[r];
        int segments = batch->segment_count;
        batch->desirable[r] = false;
        append_mismatched(batch, dataset, row_index[r], partner[r], longest);
        own_segments(batch, segments, r, dataset->rows[row_index[r]].task);
    }
    fill_rest(batch);
}

void gd_batch_fill_prompts(struct gd_batch *batch, const struct gd_dataset *dataset, const int64_t *row_index, int row_count,
                           int capacity)
{
    begin_batch(batch, row_count, capacity);
    for (int r = 0; r < row_count; r++) {
        batch->row_index[r] = row_index[r];
        append_segment(batch, dataset, dataset->rows[row_index[r]].offset, gd_prompt_length(dataset, row_index[r]), 0);
    }
    fill_rest(batch);
}

int gd_batch_labelled(const struct gd_batch *batch, int segment)
{
    int count = 0;
    for (int t = batch->prefix[2 * segment]; t < batch->prefix[2 * segment + 1]; t++)
        count += batch->labels[t] >= 0;
    for (int t = batch->cu_seqlens[segment]; t < batch->cu_seqlens[segment + 1]; t++)
        count += batch->labels[t] >= 0;
    return count;
}
