#include "engine/infer/draw.h"
#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/sample.h"
#include <stdlib.h>
#include <string.h>

static bool device_draws(const struct gd_infer *infer, const struct gd_wanted_row *wanted)
{
    const struct gd_sequence *sequence = wanted->sequence;
    return wanted->next == sequence->count && sequence->sampling.output_count == 0 && sequence->sampling.logprobs <= GD_SAMPLE_TOP_MAX &&
           infer->model->config.vocab <= GD_SAMPLE_VOCAB_MAX;
}

static int compare_edits(const void *a, const void *b)
{
    int32_t left = ((const struct gd_sample_edit *)a)->id, right = ((const struct gd_sample_edit *)b)->id;
    return (left > right) - (left < right);
}

/* Most that a row may change: its biases, and the tokens that are there. */
static int edits_most(const struct gd_sequence *sequence)
{
    bool penalised = sequence->counts != NULL || sequence->seen != NULL;
    return sequence->sampling.bias_count + (penalised ? sequence->count : 0);
}

/* Every id once, what is said of it together. */
static int merge(struct gd_sample_edit *edits, int count)
{
    int kept = 0;
    qsort(edits, (size_t)count, sizeof(*edits), compare_edits);
    for (int i = 0; i < count; i++) {
        if (kept > 0 && edits[kept - 1].id == edits[i].id)
            edits[kept - 1].bias += edits[i].bias;
        else
            edits[kept++] = edits[i];
    }
    return kept;
}

static int add_edits(const struct gd_sequence *sequence, int vocab, struct gd_sample_edit *edits)
{
    const struct gd_sampling *sampling = &sequence->sampling;
    int count = 0;
    for (int i = 0; i < sampling->bias_count; i++)
        if (sampling->bias_ids[i] >= 0 && sampling->bias_ids[i] < vocab)
            edits[count++] = (struct gd_sample_edit){.id = sampling->bias_ids[i], .bias = sampling->bias_values[i]};
    for (int i = 0; (sequence->counts != NULL || sequence->seen != NULL) && i < sequence->count; i++)
        edits[count++] = (struct gd_sample_edit){.id = sequence->ids[i]};
    count = merge(edits, count);
    for (int i = 0; i < count; i++) {
        edits[i].count = sequence->counts != NULL ? sequence->counts[edits[i].id] : 0;
        edits[i].seen = sequence->seen != NULL && sequence->seen[edits[i].id] != 0;
    }
    return count;
}

static void fill_row(struct gd_sample_row *row, const struct gd_wanted_row *wanted, int vocab)
{
    const struct gd_sampling *sampling = &wanted->sequence->sampling;
    *row = (struct gd_sample_row){
        .temperature = sampling->temperature, .top_p = sampling->top_p, .min_p = sampling->min_p, .top_k = sampling->top_k,
        .frequency_penalty = sampling->frequency_penalty, .presence_penalty = sampling->presence_penalty,
        .repetition_penalty = sampling->repetition_penalty,
        .uniform = gd_sample_uniform(sampling->seed, (uint32_t)sampling->choice, (uint32_t)wanted->next),
        .top_count = sampling->logprobs < vocab ? sampling->logprobs : vocab,
    };
}

static void take(const struct gd_sampled *sampled, const struct gd_sample_row *row, struct gd_sequence_result *result)
{
    result->id = sampled->token;
    if (row->top_count < 0)
        return;
    result->logprob = sampled->logprob;
    result->top_count = row->top_count;
    for (int k = 0; k < row->top_count; k++)
        result->top[k] = (struct gd_token_logprob){sampled->top_ids[k], sampled->top_logprobs[k]};
}

static bool draw_all(struct gd_infer *infer, const struct gd_wanted_row *wanted, int count, struct gd_sequence_result *results,
                     struct gd_error *err)
{
    int vocab = infer->model->config.vocab, most = 0;
    for (int i = 0; i < count; i++)
        most += edits_most(wanted[i].sequence);
    struct gd_sample_row *rows = gd_alloc_array((size_t)count, sizeof(*rows));
    struct gd_sampled *sampled = gd_alloc_array((size_t)count, sizeof(*sampled));
    struct gd_sample_edit *edits = gd_alloc_array((size_t)most + 1, sizeof(*edits));
    struct gd_sample_batch batch = {.logits = infer->forward->head->there, .row_count = count, .vocab = vocab, .rows = rows, .edits = edits};
    for (int i = 0; i < count; i++) {
        fill_row(&rows[i], &wanted[i], vocab);
        rows[i].edit_begin = batch.edit_count;
        rows[i].edit_count = add_edits(wanted[i].sequence, vocab, edits + batch.edit_count);
        batch.edit_count += rows[i].edit_count;
    }
    bool ok = gd_device_sample(&batch, sampled, err);
    for (int i = 0; ok && i < count; i++)
        take(&sampled[i], &rows[i], &results[i]);
    gd_free(edits);
    gd_free(sampled);
    gd_free(rows);
    return ok;
}

bool gd_draw(struct gd_infer *infer, const struct gd_wanted_row *wanted, int count, struct gd_sequence_result *results, bool *drawn,
             struct gd_error *err)
{
    *drawn = gd_device_samples();
    for (int i = 0; *drawn && i < count; i++)
        *drawn = wanted[i].sequence->finished || device_draws(infer, &wanted[i]);
    if (*drawn && !gd_vector_all_finite(drawn, infer->forward->head->there, (int64_t)count * infer->model->config.vocab, err))
        return false;
    return !*drawn || draw_all(infer, wanted, count, results, err);
}
