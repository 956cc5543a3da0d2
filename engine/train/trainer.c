/* trainer.c - the step loop of one job: who is told, when to evaluate, what to keep, when to stop. */
#include "engine/train/trainer_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"

#include <assert.h>
#include <stdio.h>

void gd_trainer_say(struct gd_trainer *trainer, const char *level, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (trainer->observer.message != NULL)
        trainer->observer.message(trainer->observer.context, level, text);
}

static bool poll_observer(struct gd_trainer *trainer)
{
    if (trainer->observer.poll != NULL && trainer->command != GD_TRAIN_CANCEL) {
        enum gd_train_command command = trainer->observer.poll(trainer->observer.context);
        if (command != GD_TRAIN_GO)
            trainer->command = command;
    }
    return trainer->command != GD_TRAIN_CANCEL;
}

bool gd_trainer_between_ops(void *context)
{
    return poll_observer(context);
}

bool gd_trainer_dataset_progress(void *context, int64_t rows_done, int64_t rows_total)
{
    return poll_observer(context);
}

#define METRICS_MAX 64

enum part { TRAIN, VALID, FULL_VALID };

/* Means over the answers of a step or of the validation file; a side that has no row has none. */
static int add_answer_metrics(struct gd_metric *metrics, enum part part, const struct gd_job_spec *spec,
                              const struct gd_step_result *result)
{
    const struct gd_preference *preference = &spec->preference;
    static const char *const names[][10] = {
        {"rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy", "logps_chosen", "logps_rejected", "kl",
         "reward_shift", "rows_desirable", "rows_undesirable"},
        {"valid_rewards_chosen", "valid_rewards_rejected", "valid_reward_margin", "valid_reward_accuracy", "valid_logps_chosen",
         "valid_logps_rejected", "valid_kl", "valid_reward_shift", "valid_rows_desirable", "valid_rows_undesirable"},
    };
    const struct gd_preference_sums *sums = &result->pairs;
    bool labelled = gd_preference_answers(preference) == GD_ANSWERS_LABELLED, kto = gd_preference_has(preference, GD_LOSS_KL);
    bool scores = gd_preference_has(preference, GD_LOSS_SCORES);
    double chosen = (double)sums->chosen, rejected = (double)sums->rejected, answers = chosen + rejected;
    struct {
        bool known;
        double value;
    } values[] = {
        {chosen > 0, sums->reward_chosen / chosen},
        {rejected > 0, sums->reward_rejected / rejected},
        {chosen > 0 && rejected > 0, sums->reward_chosen / chosen - sums->reward_rejected / rejected},
        {true, (double)sums->preferred / (double)sums->rows},
        {chosen > 0 && !scores, sums->logp_chosen / chosen},
        {rejected > 0 && !scores, sums->logp_rejected / rejected},
        {spec->reference != GD_REFERENCE_NONE, kto ? result->kl : sums->ratio / answers},
        {gd_preference_has(preference, GD_LOSS_SHIFT), gd_preference_shift_scale(preference) * result->shift},
        {labelled, chosen},
        {labelled, rejected},
    };
    int count = 0;
    for (size_t i = 0; i < GD_COUNT(values); i++)
        if (values[i].known)
            metrics[count++] = (struct gd_metric){names[part][i], values[i].value};
    return count;
}

/* What is said of a step's rows, or of the validation file's, by their kind. */
static int add_row_metrics(struct gd_metric *metrics, enum part part, const struct gd_job_spec *spec,
                           const struct gd_step_result *result)
{
    static const char *const loss[] = {"train_loss", "valid_loss", "full_valid_loss"};
    static const char *const accuracy[] = {"train_mean_token_accuracy", "valid_mean_token_accuracy", "full_valid_mean_token_accuracy"};
    int count = 0;
    metrics[count++] = (struct gd_metric){loss[part], result->loss};
    if (result->pairs.rows > 0)
        return part == FULL_VALID ? count : count + add_answer_metrics(metrics + count, part, spec, result);
    if (spec->classes.on) {
        static const char *const right[] = {"train_accuracy", "valid_accuracy", "full_valid_accuracy"};
        metrics[count++] = (struct gd_metric){right[part], result->labelled > 0 ? (double)result->correct / (double)result->labelled : 0.0};
        if (part != TRAIN)
            metrics[count++] = (struct gd_metric){part == VALID ? "valid_macro_f1" : "full_valid_macro_f1", result->macro_f1};
        return count;
    }
    metrics[count++] = (struct gd_metric){accuracy[part],
                                          result->labelled > 0 ? (double)result->correct / (double)result->labelled : 0.0};
    return count;
}

/* The attached evals, with the checkpoint's adapter. */
static bool run_evals(struct gd_trainer *trainer, const char *folder, struct gd_metric *metrics, int *count, struct gd_error *err)
{
    const struct gd_train_observer *observer = &trainer->observer;
    const struct gd_evaluation *evaluation = &trainer->spec->evaluation;
    int before = *count;
    if (evaluation->evals == NULL || observer->evaluate == NULL)
        return true;
    if (!observer->evaluate(observer->context, trainer->state.step, folder, evaluation->evals, metrics, METRICS_MAX, count, err))
        return false;
    gd_best_consider(&trainer->state.best, evaluation, trainer->state.step, metrics + before, *count - before);
    return true;
}

static bool after_step(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_step_result *result = &trainer->run.result;
    int64_t step = trainer->state.step;
    const struct gd_job_spec *spec = trainer->spec;
    bool last = step == trainer->total_steps;
    double seconds = gd_time_monotonic() - trainer->run.started;
    struct gd_metric metrics[METRICS_MAX];
    int count = add_row_metrics(metrics, TRAIN, spec, result);
    if (result->penalised)
        metrics[count++] = (struct gd_metric){"penalty_loss", result->penalty};
    count += gd_trainer_expert_metrics(trainer, result, metrics + count);
    metrics[count++] = (struct gd_metric){"learning_rate", result->learning_rate};
    metrics[count++] = (struct gd_metric){"grad_norm", result->grad_norm};
    metrics[count++] = (struct gd_metric){"tokens_per_second", seconds > 0 ? (double)result->tokens / seconds : 0.0};
    struct gd_step_result valid;
    bool evaluated = trainer->valid != NULL && (last || step % spec->eval_interval == 0);
    if (evaluated && trainer->make_room != NULL)
        trainer->make_room(trainer->room_context);
    if (evaluated && !gd_trainer_evaluate(trainer, &valid, err))
        return false;
    count += evaluated ? add_row_metrics(metrics + count, VALID, spec, &valid) : 0;

    struct gd_best *best = &trainer->state.best;
    bool improved = gd_best_consider(best, &spec->evaluation, step, metrics, count);
    bool keep = last || step % spec->checkpoint_interval == 0 || gd_best_stops(best, &spec->evaluation) ||
                (improved && spec->evaluation.load_best_model_at_end);
    char *folder = NULL;
    bool ok = !keep || (gd_trainer_begin_checkpoint(trainer, &folder, err) && run_evals(trainer, folder, metrics, &count, err));
    if (ok && evaluated && (last || gd_best_stops(best, &spec->evaluation)))
        count += add_row_metrics(metrics + count, FULL_VALID, spec, &valid);
    assert(count <= METRICS_MAX);
    if (ok && trainer->observer.step != NULL)
        trainer->observer.step(trainer->observer.context, step, trainer->total_steps, trainer->state.trained_tokens,
                               trainer->state.tokens, seconds, metrics, count);
    ok = ok && (!keep || gd_trainer_end_checkpoint(trainer, folder, metrics, count, err));
    gd_free(folder);
    return ok;
}

void gd_trainer_rest(struct gd_trainer *trainer)
{
    gd_passes_rest(&trainer->passes);
    if (trainer->make_room != NULL)
        trainer->make_room(trainer->room_context);
}

void gd_trainer_begin(struct gd_trainer *trainer)
{
    gd_trainer_report_quantisation(trainer);
    if (trainer->resumed_from > 0)
        gd_trainer_say(trainer, "info", "Continuing from the checkpoint of step %lld", (long long)trainer->resumed_from);
    if (trainer->observer.started != NULL)
        trainer->observer.started(trainer->observer.context, trainer->total_steps, trainer->train->row_count,
                                  trainer->train->token_count, trainer->spec);
}

static bool finish(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_best *best = &trainer->state.best;
    if (trainer->state.step < trainer->total_steps)
        gd_trainer_say(trainer, "info",
                       "Stopped at step %lld of %lld: %s was %g at step %lld, and %d evaluations since were no better",
                       (long long)trainer->state.step, (long long)trainer->total_steps,
                       trainer->spec->evaluation.metric_for_best_model, best->value, (long long)best->step, best->since);
    return gd_trainer_write_result(trainer, err);
}

static bool between_steps(struct gd_trainer *trainer, struct gd_error *err)
{
    if (!poll_observer(trainer))
        return gd_fail(err, GD_CANCELLED, "cancelled at step %lld", (long long)trainer->state.step);
    if (trainer->command == GD_TRAIN_PAUSE)
        return (trainer->state.step == 0 || gd_trainer_write_checkpoint(trainer, err)) &&
               gd_fail(err, GD_CANCELLED, "paused at step %lld", (long long)trainer->state.step);
    return gd_trainer_open_step(trainer, err);
}

bool gd_trainer_advance(struct gd_trainer *trainer, bool *over, struct gd_error *err)
{
    *over = false;
    for (;;) {
        if (trainer->run.open && trainer->run.micro < trainer->run.micro_count) {
            if (!poll_observer(trainer))
                return gd_fail(err, GD_CANCELLED, "cancelled at step %lld", (long long)trainer->state.step);
            gd_trainer_fill(trainer);
            return true;
        }
        if (trainer->run.open && (!gd_trainer_close_step(trainer, err) || !after_step(trainer, err)))
            return false;
        *over = trainer->state.step >= trainer->total_steps || gd_best_stops(&trainer->state.best, &trainer->spec->evaluation);
        if (*over)
            return finish(trainer, err);
        if (!between_steps(trainer, err))
            return false;
    }
}

bool gd_trainer_run(struct gd_trainer *trainer, struct gd_error *err)
{
    bool over = false;
    gd_trainer_begin(trainer);
    while (gd_trainer_advance(trainer, &over, err)) {
        if (over)
            return true;
        if (!gd_trainer_run_pass(trainer, err))
            return false;
    }
    return false;
}
