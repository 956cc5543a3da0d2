/*
 * What one turn does: choose rows, run them, publish full pages, sample, report.
 */
#include "engine/base/alloc.h"
#include "engine/infer/draw.h"
#include "engine/infer/engine_internal.h"
#include "engine/tensor/device.h"
#include "engine/tensor/few_rows.h"
#include <assert.h>
#include <math.h>
#include <omp.h>

/* ---- the batch ---- */

/* What its decoder looks at is in the pages. */
static bool is_ready(const struct gd_sequence *sequence)
{
    return sequence->admitted && !sequence->finished && (sequence->encoder_count == 0 || sequence->encoded);
}

/* Of what is pending, the most that leaves no remainder of few rows: these have layouts of weights of their own, which a prompt
 * alone is not worth. */
static int slice_of(int pending, int budget)
{
    bool few_left = pending > budget && pending - budget <= GD_FEW_ROWS && budget > 2 * GD_FEW_ROWS;
    return pending <= budget ? pending : few_left ? budget - GD_FEW_ROWS : budget;
}

static bool may_share(const struct gd_sequence *sequence, const void *key)
{
    return is_ready(sequence) && gd_graft_tables_key(sequence->graft) == key;
}

/* Tables that a graph takes whole are those of one graft: where grafts have some of their own, they take turns. */
static const struct gd_sequence *find_longest_waiting(const struct gd_infer *infer)
{
    const struct gd_sequence *found = NULL;
    for (int i = 0; i < infer->count; i++) {
        const struct gd_sequence *sequence = infer->sequences[i];
        if (is_ready(sequence) && gd_sequence_pending(sequence) > 0 && (found == NULL || sequence->turn < found->turn))
            found = sequence;
    }
    return found;
}

/* Sequences with one token to go take a row each; longer ones share what is left of a slice of prefill. Together they
 * stay within one slice where they can: a bucket of that size is not left half empty. */
static void choose_slices(struct gd_infer *infer)
{
    int decoding = 0;
    const struct gd_sequence *longest = find_longest_waiting(infer);
    const void *key = longest != NULL ? gd_graft_tables_key(longest->graft) : NULL;
    for (int i = 0; i < infer->count; i++)
        decoding += may_share(infer->sequences[i], key) && gd_sequence_pending(infer->sequences[i]) == 1;
    int budget = decoding <= GD_INFER_PREFILL_TOKENS * 3 / 4 ? GD_INFER_PREFILL_TOKENS - decoding : GD_INFER_PREFILL_TOKENS / 2;
    infer->slice_count = 0;
    for (int i = 0; i < infer->count; i++) {
        struct gd_sequence *sequence = infer->sequences[i];
        int pending = may_share(sequence, key) ? gd_sequence_pending(sequence) : 0;
        int count = pending == 1 ? 1 : slice_of(pending, budget);
        if (count < 1)
            continue;
        budget -= pending == 1 ? 0 : count;
        sequence->turn = infer->stats.turns;
        assert(infer->slice_count < GD_INFER_REQUESTS_MAX);
        infer->slices[infer->slice_count++] = (struct gd_slice){.sequence = sequence, .count = count};
    }
}

/* Sorts the slices by graft, groups in order of first appearance; returns the most that one of them does. */
static enum gd_wear_depth group_slices(struct gd_infer *infer)
{
    struct gd_slice sorted[GD_INFER_REQUESTS_MAX];
    const struct gd_graft *grafts[GD_INFER_REQUESTS_MAX];
    int groups = 0, rows = 0, done = 0;
    enum gd_wear_depth depth = GD_WEAR_NONE;
    for (int i = 0; i < infer->slice_count; i++) {
        struct gd_slice *slice = &infer->slices[i];
        for (slice->group = 0; slice->group < groups && grafts[slice->group] != slice->sequence->graft;)
            slice->group++;
        if (slice->group == groups)
            grafts[groups++] = slice->sequence->graft;
    }
    for (int group = 0; group < groups; group++) {
        infer->group_begin[group] = rows;
        infer->group_sites[group] = grafts[group] != NULL ? grafts[group]->wear : NULL;
        if (grafts[group] != NULL && grafts[group]->depth > depth)
            depth = grafts[group]->depth;
        for (int i = 0; i < infer->slice_count; i++)
            if (infer->slices[i].group == group) {
                sorted[done++] = infer->slices[i];
                rows += infer->slices[i].count;
            }
    }
    infer->group_begin[groups] = rows;
    infer->forward->wear.group_count = groups;
    memcpy(infer->slices, sorted, (size_t)done * sizeof(sorted[0]));
    return depth;
}

static void take_pages(struct gd_infer *infer, struct gd_sequence *sequence, int tokens)
{
    int need = (tokens + GD_KV_PAGE_TOKENS - 1) / GD_KV_PAGE_TOKENS;
    assert(need <= sequence->pages_max);
    while (sequence->page_count < need) {
        sequence->pages[sequence->page_count++] = gd_kv_cache_take(infer->cache);
        infer->pages_promised--;
    }
}

/* The graft's virtual rows, into the pages that hold them and are the sequence's own. */
static bool put_prefix(struct gd_infer *infer, struct gd_sequence *sequence, struct gd_error *err)
{
    const struct gd_kv_batch *kv = &infer->forward->kv;
    int shared = sequence->page_count, count = 2 * kv->layer_count;
    sequence->led = true;
    if (sequence->lead == 0)
        return true;
    take_pages(infer, sequence, sequence->lead);
    const float *prefix = sequence->graft->prefix + (sequence->long_bit != 0 ? gd_graft_prefix_floats(sequence->graft) : 0);
    const void **parts = gd_alloc_array((size_t)count, sizeof(*parts));
    for (int part = 0; part < count; part++)
        parts[part] = prefix + (size_t)part * (size_t)sequence->lead * (size_t)kv->kv_heads * (size_t)kv->head_dim;
    bool ok = gd_kv_pages_fill(kv, sequence->pages, shared, sequence->lead, parts, GD_F32, err);
    gd_free(parts);
    return ok;
}

/* The text that the sequence's decoder looks at, into pages of its own. */
static bool encode(struct gd_infer *infer, struct gd_sequence *sequence, struct gd_error *err)
{
    if (!gd_encoder_run(infer->encoder, sequence->encoder_ids, sequence->encoder_count, sequence->graft, err))
        return false;
    while (sequence->cross_count < sequence->cross_max) {
        sequence->cross_pages[sequence->cross_count++] = gd_kv_cache_take(infer->cache);
        infer->pages_promised--;
    }
    sequence->encoded = gd_encoder_store(infer->encoder, &infer->forward->kv, sequence->cross_pages, err);
    return sequence->encoded;
}

/* Texts of sequences that are new, as many as a turn has time for. */
static void encode_texts(struct gd_infer *infer)
{
    for (int i = 0, tokens = 0; infer->encoder != NULL && i < infer->count && tokens < GD_INFER_ENCODED_TOKENS; i++) {
        struct gd_sequence *sequence = infer->sequences[i];
        struct gd_error err = {0};
        if (!sequence->admitted || sequence->finished || sequence->encoded || gd_sequence_pending(sequence) == 0)
            continue;
        tokens += sequence->encoder_count;
        if (!encode(infer, sequence, &err))
            gd_infer_end(infer, sequence, GD_FINISH_ERROR, &err);
    }
}

/* The pages of each sequence of the batch, or those of what it encoded, as rows of one table. */
static void fill_page_table(struct gd_infer *infer, struct gd_kv_batch *kv, bool cross, int32_t **table, size_t *table_size)
{
    int stride = 1;
    for (int s = 0; s < infer->slice_count; s++) {
        const struct gd_sequence *sequence = infer->slices[s].sequence;
        int count = cross ? sequence->cross_count : sequence->page_count;
        stride = count > stride ? count : stride;
    }
    int rounded = 8; /* few strides, so that launches which were recorded with one are used again */
    while (rounded < stride)
        rounded *= 2;
    stride = rounded;
    size_t size = (size_t)stride * (size_t)infer->slice_count;
    if (size > *table_size) {
        *table = gd_realloc_array(*table, size, sizeof(**table));
        *table_size = size;
    }
    for (int s = 0; s < infer->slice_count; s++) {
        const struct gd_sequence *sequence = infer->slices[s].sequence;
        int count = cross ? sequence->cross_count : sequence->page_count;
        if (count > 0)
            memcpy(*table + (size_t)s * (size_t)stride, cross ? sequence->cross_pages : sequence->pages, (size_t)count * sizeof(**table));
    }
    kv->page_table = *table;
    kv->page_table_stride = stride;
    kv->sequence_count = infer->slice_count;
}

/* Row `row` holds token `position`; are its logits needed? */
static bool is_wanted(const struct gd_sequence *sequence, int position)
{
    if (position == sequence->count - 1)
        return sequence->sampling.max_tokens > 0 || sequence->sampling.score;
    return gd_sequence_scores_prompt(sequence) && position < sequence->prompt_count - 1 &&
           position + 1 >= sequence->sampling.score_from;
}

static int32_t table_index(const struct gd_sequence *sequence, int position)
{
    const struct gd_virtual_rows *rows = sequence->graft != NULL ? &sequence->graft->virtual_rows : NULL;
    bool changed = rows != NULL && position < rows->table_rows && (!rows->prompt_only || position < sequence->prompt_count);
    return changed ? position : -1;
}

/* Fills the forward pass's inputs; *used: the number of rows. */
static bool fill_batch(struct gd_infer *infer, int *used, struct gd_error *err)
{
    int rows = 0;
    infer->wanted_count = 0;
    for (int s = 0; s < infer->slice_count; s++) {
        struct gd_sequence *sequence = infer->slices[s].sequence;
        if (!sequence->led && !put_prefix(infer, sequence, err))
            return false;
        take_pages(infer, sequence, sequence->lead + sequence->past + infer->slices[s].count);
        infer->cu_seqlens[s] = rows;
        infer->past[s] = sequence->lead + sequence->past;
        infer->encoded[s] = sequence->encoder_count;
        for (int i = 0; i < infer->slices[s].count; i++, rows++) {
            int position = sequence->past + i;
            infer->forward->ids[rows] = sequence->ids[position];
            infer->forward->positions[rows] = (sequence->lead + position) | sequence->long_bit;
            infer->row_index[rows] = table_index(sequence, position);
            if (is_wanted(sequence, position))
                infer->wanted[infer->wanted_count++] = (struct gd_wanted_row){sequence, rows, position + 1};
        }
    }
    infer->cu_seqlens[infer->slice_count] = rows;
    fill_page_table(infer, &infer->forward->kv, false, &infer->page_table, &infer->page_table_size);
    if (infer->encoder != NULL)
        fill_page_table(infer, &infer->forward->cross, true, &infer->cross_table, &infer->cross_table_size);
    *used = rows;
    return true;
}

void gd_infer_page_key(const struct gd_sequence *sequence, int page, struct gd_kv_key *key)
{
    int32_t ids[GD_KV_PAGE_TOKENS];
    for (int i = 0; i < GD_KV_PAGE_TOKENS; i++) {
        int row = page * GD_KV_PAGE_TOKENS + i;
        ids[i] = row < sequence->lead ? -1 - row : sequence->ids[row - sequence->lead]; /* no token has a negative id */
    }
    gd_kv_key_next(key, &sequence->key, ids);
}

/* The rows are in the pages now; full pages may be shared. */
static void advance(struct gd_infer *infer)
{
    for (int s = 0; s < infer->slice_count; s++) {
        struct gd_sequence *sequence = infer->slices[s].sequence;
        sequence->past += infer->slices[s].count;
        for (; sequence->encoder_count == 0 && (sequence->published + 1) * GD_KV_PAGE_TOKENS <= gd_sequence_shared_rows(sequence); sequence->published++) {
            struct gd_kv_key key;
            gd_infer_page_key(sequence, sequence->published, &key);
            gd_kv_cache_publish(infer->cache, sequence->pages[sequence->published], &key);
            sequence->key = key;
        }
    }
}

/* ---- from logits to tokens ---- */

static int32_t choose_output(struct gd_sampler *sampler, const struct gd_wanted_row *wanted, const float *logits)
{
    const struct gd_sequence *sequence = wanted->sequence;
    int32_t next[GD_OUTPUTS_MAX + 1];
    int count = gd_sequence_next_tokens(sequence, next);
    assert(count > 0);
    return gd_sample_among(sampler, logits, &sequence->sampling, sequence->counts, sequence->seen, next, count,
                           (uint32_t)sequence->sampling.choice, (uint32_t)wanted->next);
}

static void choose_token(struct gd_sampler *sampler, const struct gd_wanted_row *wanted, const float *logits,
                         struct gd_sequence_result *result)
{
    const struct gd_sequence *sequence = wanted->sequence;
    const struct gd_sampling *sampling = &sequence->sampling;
    if (wanted->next < sequence->count)
        result->id = sequence->ids[wanted->next];
    else if (sampling->output_count > 0)
        result->id = choose_output(sampler, wanted, logits);
    else
        result->id = gd_sample(sampler, logits, sampling, sequence->counts, sequence->seen, (uint32_t)sampling->choice,
                               (uint32_t)wanted->next);
    if (sampling->logprobs < 0)
        return;
    result->top_count = sampling->logprobs < sampler->vocab ? sampling->logprobs : sampler->vocab;
    gd_logprobs(sampler, logits, result->id, &result->logprob, result->top, result->top_count);
}

static void deliver(struct gd_infer *infer, const struct gd_wanted_row *wanted, const struct gd_sequence_result *result,
                    bool finite)
{
    struct gd_sequence *sequence = wanted->sequence;
    if (sequence->finished)
        return;
    if (!finite) {
        struct gd_error error = {0};
        gd_fail(&error, GD_INTERNAL, "the logits after token %d are not finite: model or graft is broken", wanted->next - 1);
        gd_infer_end(infer, sequence, GD_FINISH_ERROR, &error);
        return;
    }
    int before = sequence->usage.completion_tokens;
    if (wanted->next < sequence->prompt_count)
        gd_sequence_report_scored(sequence, wanted->next, result);
    else
        gd_sequence_accept(sequence, result);
    infer->stats.completion_tokens += sequence->usage.completion_tokens - before;
    if (!sequence->finished && sequence->sampling.max_tokens == 0 && wanted->next == sequence->prompt_count - 1)
        gd_sequence_finish(sequence, GD_FINISH_LENGTH, NULL); /* scored, nothing to generate */
    if (sequence->finished && sequence->admitted)
        gd_infer_give_back(infer, sequence);
}

/* What a reward model's head says of the last row of each sequence that asks for it; the other rows stay wanted. */
static bool give_scores(struct gd_infer *infer, struct gd_error *err)
{
    int width = infer->model->config.embed_width, kept = 0;
    float *row = gd_alloc_array((size_t)width, sizeof(*row));
    bool ok = true;
    for (int i = 0; ok && i < infer->wanted_count; i++) {
        struct gd_sequence *sequence = infer->wanted[i].sequence;
        if (!sequence->sampling.score) {
            infer->wanted[kept++] = infer->wanted[i];
            continue;
        }
        const float *head = gd_graft_score(sequence->graft, sequence->graft->block);
        double score = 0;
        ok = gd_forward_row(infer->forward, infer->wanted[i].row, row, err);
        for (int d = 0; ok && d < width; d++)
            score += (double)head[d] * (double)row[d];
        if (!ok)
            break;
        struct gd_error error = {0};
        if (!isfinite(score)) {
            gd_fail(&error, GD_INTERNAL, "the score is not finite: model or graft is broken");
            gd_infer_end(infer, sequence, GD_FINISH_ERROR, &error);
            continue;
        }
        sequence->sink.score(sequence->sink.context, score);
        if (!sequence->finished)
            gd_infer_end(infer, sequence, GD_FINISH_STOP, NULL);
    }
    infer->wanted_count = kept;
    gd_free(row);
    return ok;
}

static bool answer(struct gd_infer *infer, struct gd_error *err)
{
    if (!give_scores(infer, err))
        return false;
    int vocab = infer->model->config.vocab, chunk = infer->forward->head->rows_max;
    for (int at = 0; at < infer->wanted_count; at += chunk) {
        int count = infer->wanted_count - at < chunk ? infer->wanted_count - at : chunk;
        const struct gd_wanted_row *wanted = infer->wanted + at;
        int32_t rows[GD_FORWARD_ROWS];
        bool finite[GD_FORWARD_ROWS];
        for (int i = 0; i < count; i++)
            rows[i] = wanted[i].row;
        if (!gd_forward_logits(infer->forward, rows, count, err))
            return false;
        bool drawn = false;
        if (!gd_draw(infer, wanted, count, infer->results, &drawn, err) || (!drawn && !gd_logits_fetch(infer->forward->head, count, err)))
            return false;
        int team = count < infer->sampler_count ? count : infer->sampler_count;
#pragma omp parallel for schedule(static, 1) num_threads(team) if (team > 1)
        for (int i = 0; i < count; i++) {
            const float *logits = infer->forward->head->logits + (size_t)i * (size_t)vocab;
            finite[i] = drawn || gd_all_finite(logits, vocab);
            if (finite[i] && !drawn && !wanted[i].sequence->finished)
                choose_token(&infer->samplers[omp_get_thread_num()], &wanted[i], logits, &infer->results[i]);
        }
        for (int i = 0; i < count; i++)
            deliver(infer, &wanted[i], &infer->results[i], finite[i]);
    }
    return true;
}

static void end_all(struct gd_infer *infer, const struct gd_error *error)
{
    for (int i = 0; i < infer->count; i++)
        if (!infer->sequences[i]->finished)
            gd_infer_end(infer, infer->sequences[i], GD_FINISH_ERROR, error);
}

bool gd_infer_turn(struct gd_infer *infer, struct gd_error *err)
{
    assert(!infer->in_turn);
    infer->in_turn = true;
    infer->stats.turns++;
    gd_infer_admit(infer);
    encode_texts(infer);
    choose_slices(infer);
    bool ok = true;
    if (infer->slice_count > 0) {
        enum gd_wear_depth depth = group_slices(infer);
        int rows = 0;
        ok = fill_batch(infer, &rows, err) && gd_forward_run(infer->forward, rows, depth, err);
        if (ok) {
            advance(infer);
            ok = answer(infer, err);
        }
    }
    if (!ok)
        end_all(infer, err);
    infer->in_turn = false;
    gd_infer_sweep(infer);
    return ok;
}
