/* trainer_step.c - one optimiser step, and the validation file: rows packed into leaves, gradients, clipping, AdamW. */
#include "engine/train/trainer_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"
#include "engine/train/optimizer.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A row's part of what the step's loss is divided by: the sum of the loss weights of its targets (its first token is
 * nobody's target), with as much for each target among the virtual rows as without their weights; a pair counts as one. */
static double row_weight(const struct gd_dataset *data, int64_t row)
{
    const struct gd_dataset_row *entry = &data->rows[row];
    double sum = 0;
    if (data->classified)
        return gd_dataset_class_weight(data, row);
    if (data->pairs || data->labelled)
        return 1;
    for (int32_t i = 1; i < entry->length; i++)
        sum += data->weights[entry->offset + i];
    return sum + data->virtual_rows.target_count;
}

static void describe_rows(const struct gd_dataset *data, const int64_t *rows, int count, char *text, size_t size)
{
    text[0] = '\0';
    for (int i = 0; i < count; i++) {
        size_t used = strlen(text);
        if (i == 8 || used + 24 > size) {
            snprintf(text + used, size - used, ", and %d more", count - i);
            return;
        }
        snprintf(text + used, size - used, "%s%lld", i ? ", " : "", (long long)data->rows[rows[i]].line);
    }
}

static bool fail_not_finite(struct gd_trainer *trainer, const char *what, int64_t step, const int64_t *rows, int count,
                            struct gd_error *err)
{
    char lines[256];
    describe_rows(trainer->train, rows, count, lines, sizeof(lines));
    return gd_fail(err, GD_INTERNAL,
                   "%s is not finite at step %lld (training_file lines %s): lower learning_rate, or look at these rows", what,
                   (long long)step, lines);
}

const int64_t *gd_trainer_step_rows(struct gd_trainer *trainer, int64_t step, int *count)
{
    int epoch = (int)((step - 1) / trainer->steps_per_epoch);
    int64_t first = (step - 1) % trainer->steps_per_epoch * trainer->spec->batch_size;
    if (epoch != trainer->epoch) {
        gd_epoch_order(trainer->order, trainer->train->row_count, (uint64_t)trainer->spec->seed, epoch);
        trainer->epoch = epoch;
    }
    int64_t left = trainer->train->row_count - first;
    *count = left < trainer->spec->batch_size ? (int)left : trainer->spec->batch_size;
    return trainer->order + first;
}

static void add_pairs(struct gd_preference_sums *sums, const struct gd_preference_sums *more)
{
    sums->rows += more->rows;
    sums->chosen += more->chosen;
    sums->rejected += more->rejected;
    sums->preferred += more->preferred;
    sums->reward_chosen += more->reward_chosen;
    sums->reward_rejected += more->reward_rejected;
    sums->logp_chosen += more->logp_chosen;
    sums->logp_rejected += more->logp_rejected;
    sums->ratio += more->ratio;
}

/* What losses must know of the rows together, which are a training step's or some of the validation file's. */
static bool survey(struct gd_trainer *trainer, bool training, const struct gd_dataset *data, const int64_t *rows, int count,
                   int64_t before, const struct gd_step_counts *counts, struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    struct gd_run_options run = {.between = gd_trainer_between_ops, .context = trainer};
    struct gd_survey_options options = {.training = training, .rows = rows, .count = count, .before = before,
                                        .tokens_per_batch = spec->tokens_per_batch, .max_length = spec->max_length};
    gd_survey_begin(&trainer->survey, counts, trainer->state.running_mean, trainer->state.running_count);
    trainer->passes.survey = &trainer->survey;
    return !gd_survey_needed(&spec->preference, training) ||
           gd_survey_run(&trainer->survey, &trainer->passes, &trainer->batch, data, &options, &run, err);
}

static bool survey_step(struct gd_trainer *trainer, const int64_t *rows, int count, struct gd_error *err)
{
    struct gd_step_counts counts = {0};
    if (!gd_trainer_has_answers(trainer))
        return true;
    for (int i = 0; i < count; i++)
        gd_step_count_row(&counts, &trainer->spec->preference, trainer->train, rows[i]);
    /* Only the last step of an epoch can have one row where all others have more: another one is before it. */
    int64_t before = rows > trainer->order ? rows[-1] : rows[0];
    return survey(trainer, true, trainer->train, rows, count, before, &counts, err);
}

/* The micro-batch at hand belongs to the leaf at hand; leaves without one are empty. */
static bool find_leaf(struct gd_trainer *trainer, struct gd_error *err)
{
    struct gd_step_run *run = &trainer->run;
    bool ok = true;
    while (ok && run->leaf < trainer->spec->leaf_count &&
           (run->micro == run->micro_count || trainer->leaf_of[run->micro] != run->leaf)) {
        ok = gd_leaves_end(&trainer->leaves, err);
        run->part = 0;
        if (ok && ++run->leaf < trainer->spec->leaf_count)
            ok = gd_leaves_begin(&trainer->leaves, err);
    }
    return ok;
}

static bool open_rows(struct gd_trainer *trainer, int64_t step, const int64_t *rows, int row_count, struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    struct gd_step_run *run = &trainer->run;
    *run = (struct gd_step_run){.step = step, .rows = rows, .row_count = row_count, .started = gd_time_monotonic()};
    for (int i = 0; i < row_count; i++)
        run->total_weight += row_weight(trainer->train, rows[i]);
    run->micro_count = gd_step_pack(trainer->train, rows, row_count, spec->leaf_count, spec->tokens_per_batch,
                                    trainer->packed_rows, trainer->micro_begin, trainer->leaf_of);
    if (!survey_step(trainer, rows, row_count, err))
        return false;
    gd_trainer_begin_experts(trainer);
    gd_leaves_begin_step(&trainer->leaves);
    run->open = gd_leaves_begin(&trainer->leaves, err) && find_leaf(trainer, err);
    return run->open;
}

bool gd_trainer_open_step(struct gd_trainer *trainer, struct gd_error *err)
{
    int row_count;
    const int64_t *rows = gd_trainer_step_rows(trainer, trainer->state.step + 1, &row_count);
    return open_rows(trainer, trainer->state.step + 1, rows, row_count, err);
}

static const int64_t *micro_rows(const struct gd_trainer *trainer, int *count)
{
    const struct gd_step_run *run = &trainer->run;
    int begin = trainer->micro_begin[run->micro];
    *count = (run->micro + 1 < run->micro_count ? trainer->micro_begin[run->micro + 1] : run->row_count) - begin;
    return trainer->packed_rows + begin;
}

void gd_trainer_fill(struct gd_trainer *trainer)
{
    struct gd_step_run *run = &trainer->run;
    int count, space = 0;
    const int64_t *rows = micro_rows(trainer, &count);
    for (int i = 0; i < count; i++)
        space += gd_dataset_row_space(trainer->train, rows[i]);
    gd_batch_fill(&trainer->batch, trainer->train, rows, count, gd_token_bucket(space));
    uint64_t seed = (uint64_t)trainer->spec->seed;
    run->key[0] = (int32_t)(uint32_t)seed;
    run->key[1] = (int32_t)(uint32_t)(seed >> 32);
    run->key[2] = (int32_t)run->step;
    run->key[3] = run->leaf << 12 | run->part;
}

bool gd_trainer_take(struct gd_trainer *trainer, const struct gd_pass_result *pass, struct gd_error *err)
{
    struct gd_step_run *run = &trainer->run;
    struct gd_step_result *result = &run->result;
    int count;
    const int64_t *rows = micro_rows(trainer, &count);
    if (!isfinite(pass->loss + pass->penalty))
        return fail_not_finite(trainer, "the loss", run->step, rows, count, err);
    bool finite = false;
    if (!gd_vector_all_finite(&finite, trainer->grad, trainer->graft->parameter_count, err))
        return false;
    if (!finite)
        return fail_not_finite(trainer, "the gradient", run->step, rows, count, err);
    if (!gd_leaves_add(&trainer->leaves, trainer->grad, err))
        return false;
    result->loss += pass->loss;
    result->penalty += pass->penalty;
    gd_trainer_add_experts(trainer, pass, result);
    result->penalised |= pass->penalised;
    result->labelled += pass->labelled;
    result->correct += pass->correct;
    for (int i = 0; i < count; i++)
        result->tokens += trainer->train->rows[rows[i]].length;
    add_pairs(&result->pairs, &pass->pairs);
    run->micro++;
    run->part++;
    return find_leaf(trainer, err);
}

/* The micro-batch at hand, alone. */
bool gd_trainer_run_pass(struct gd_trainer *trainer, struct gd_error *err)
{
    struct gd_run_options options = {.between = gd_trainer_between_ops, .context = trainer};
    struct gd_pass_result pass;
    return gd_passes_run(&trainer->passes, true, &trainer->batch, 1.0 / trainer->run.total_weight, trainer->run.key, &options, &pass,
                         err) &&
           gd_trainer_take(trainer, &pass, err);
}

/* The gradient of the rows' mean loss, left as the leaves' sum. */
bool gd_trainer_run_rows(struct gd_trainer *trainer, int64_t step, const int64_t *rows, int row_count, struct gd_error *err)
{
    bool ok = open_rows(trainer, step, rows, row_count, err);
    while (ok && trainer->run.micro < trainer->run.micro_count) {
        gd_trainer_fill(trainer);
        ok = gd_trainer_run_pass(trainer, err);
    }
    trainer->run.open = false;
    return ok;
}

bool gd_trainer_close_step(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_job_spec *spec = trainer->spec;
    struct gd_step_run *run = &trainer->run;
    struct gd_step_result *result = &run->result;
    assert(run->open && run->micro == run->micro_count && run->leaf == spec->leaf_count);
    run->open = false;
    float *grad = gd_leaves_sum(&trainer->leaves);
    int64_t count = trainer->graft->parameter_count, step = run->step;
    double squares = 0;
    if (!gd_vector_sum_squares(&squares, grad, count, err))
        return false;
    result->grad_norm = sqrt(squares);
    if (!isfinite(result->grad_norm))
        return fail_not_finite(trainer, "the gradient norm", step, run->rows, run->row_count, err);
    double clip = 1.0;
    if (spec->max_grad_norm > 0 && result->grad_norm > spec->max_grad_norm)
        clip = spec->max_grad_norm / (result->grad_norm + 1e-6);
    result->learning_rate = gd_learning_rate(spec, step, trainer->total_steps);
    struct gd_checkpoint *state = &trainer->state;
    double factor;
    for (int64_t begin = 0, end; begin < count; begin = end) {
        end = gd_graft_rate_run(trainer->graft, begin, &factor);
        struct gd_adamw adamw = {.step = step, .learning_rate = factor * result->learning_rate, .beta1 = spec->adam_beta1,
                                 .beta2 = spec->adam_beta2, .eps = spec->adam_eps, .grad_scale = clip,
                                 .weight_decay = gd_graft_decays(trainer->graft, begin) ? spec->weight_decay : 0.0};
        if (!gd_vector_adamw(state->block + begin, state->exp_avg + begin, state->exp_avg_sq + begin, grad + begin, end - begin,
                             &adamw, err))
            return false;
    }
    if (trainer->graft->method->after_step != NULL) {
        if (!gd_twin_pull(state->block, trainer->block_bytes, err))
            return false;
        trainer->graft->method->after_step(trainer->graft, state->block);
        if (!gd_twin_push(state->block, trainer->block_bytes, err))
            return false;
    }
    result->kl = trainer->survey.step.kl;
    result->shift = trainer->survey.step.shift;
    trainer->state.running_mean = trainer->survey.running_mean;
    trainer->state.running_count = trainer->survey.running_count;
    trainer->state.step = step;
    trainer->state.trained_tokens += result->labelled;
    trainer->state.tokens += result->tokens;
    return true;
}

/* The rows [begin, end) of the validation file, a packed batch at a time. */
static bool evaluate_rows(struct gd_trainer *trainer, int64_t begin, int64_t end, struct gd_step_result *result, struct gd_error *err)
{
    const struct gd_dataset *data = trainer->valid;
    struct gd_run_options options = {.between = gd_trainer_between_ops, .context = trainer};
    int most = GD_BATCH_SEGMENTS_MAX / (data->triples ? 3 : data->pairs ? 2 : 1);
    int64_t rows[GD_BATCH_SEGMENTS_MAX];
    for (int64_t next = begin; next < end;) {
        int count = 0, tokens = 0;
        while (next < end && count < most &&
               (count == 0 || tokens + gd_dataset_row_space(data, next) <= trainer->spec->tokens_per_batch)) {
            tokens += gd_dataset_row_space(data, next);
            rows[count++] = next++;
        }
        struct gd_pass_result pass;
        gd_batch_fill(&trainer->batch, data, rows, count, gd_token_bucket(tokens));
        if (!gd_passes_run(&trainer->passes, false, &trainer->batch, 1.0, NULL, &options, &pass, err))
            return false;
        result->loss += pass.loss;
        result->labelled += pass.labelled;
        result->correct += pass.correct;
        add_pairs(&result->pairs, &pass.pairs);
    }
    return true;
}

/* The loss, tokens and answers of the whole validation file. Losses that look at a step's rows together see as many of the
 * file's rows at a time as a training step has. */
bool gd_trainer_evaluate(struct gd_trainer *trainer, struct gd_step_result *result, struct gd_error *err)
{
    const struct gd_dataset *data = trainer->valid;
    struct gd_step_counts counts = {0};
    double weight_sum = 0;
    memset(result, 0, sizeof(*result));
    if (!gd_trainer_has_answers(trainer)) {
        struct gd_label_counts *counted = data->classified ? gd_alloc_array((size_t)data->classes.count, sizeof *counted) : NULL;
        for (int64_t i = 0; i < data->row_count; i++)
            weight_sum += row_weight(data, i);
        trainer->passes.label_counts = counted;
        bool ok = evaluate_rows(trainer, 0, data->row_count, result, err);
        trainer->passes.label_counts = NULL;
        result->loss /= weight_sum;
        result->macro_f1 = counted != NULL ? gd_macro_f1(counted, data->classes.count) : 0;
        gd_free(counted);
        return ok;
    }
    for (int64_t i = 0; i < data->row_count; i++)
        gd_step_count_row(&counts, &trainer->spec->preference, data, i);
    bool together = gd_survey_needed(&trainer->spec->preference, false);
    int64_t group = together ? trainer->spec->batch_size : data->row_count, rows[GD_SURVEY_ROWS];
    for (int64_t begin = 0; begin < data->row_count; begin += group) {
        int64_t end = begin + group < data->row_count ? begin + group : data->row_count;
        for (int64_t i = begin; together && i < end; i++)
            rows[i - begin] = i;
        if (!survey(trainer, false, data, rows, together ? (int)(end - begin) : 0, begin > 0 ? begin - 1 : 0, &counts, err) ||
            !evaluate_rows(trainer, begin, end, result, err))
            return false;
        result->kl += trainer->survey.step.kl * (double)(end - begin) / (double)data->row_count;
    }
    result->shift = trainer->survey.step.shift;
    return true;
}
