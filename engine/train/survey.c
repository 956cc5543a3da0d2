#include "engine/train/survey.h"

#include "engine/train/passes.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define EVEN_MAX 1.33 /* desirable to undesirable weight, times their numbers (Ethayarajh et al. 2024, equation 8) */

/* Trained tokens of a row's tokens [begin, end); nothing predicts the first one of a side. */
static int trained(const struct gd_dataset *data, int64_t begin, int64_t end)
{
    int count = 0;
    for (int64_t i = begin + 1; i < end; i++)
        count += data->weights[i] != 0;
    return count;
}

void gd_step_count_row(struct gd_step_counts *counts, const struct gd_preference *preference, const struct gd_dataset *data,
                       int64_t row)
{
    const struct gd_dataset_row *entry = &data->rows[row];
    int64_t end = entry->offset + entry->length;
    counts->rows++;
    if (entry->chosen > 0)
        counts->nll += preference->full_nll ? entry->chosen - 1 : trained(data, entry->offset, entry->offset + entry->chosen);
    if (entry->gold > 0)
        counts->gold += trained(data, end - entry->gold, end);
}

bool gd_label_advice(const struct gd_preference *preference, const struct gd_dataset *data, char *text, size_t size)
{
    const struct gd_preference_term *term = &preference->term[0];
    int64_t good = 0, bad = 0;
    for (int64_t i = 0; i < data->row_count; i++)
        good += data->rows[i].desirable;
    bad = data->row_count - good;
    if (!data->labelled)
        return false;
    if (good == 0 || bad == 0) {
        snprintf(text, size, "training_file: every row is %s; losses over labelled answers need both kinds", good > 0 ? "desirable" : "undesirable");
        return true;
    }
    if (!term->loss->range[GD_PREFERENCE_DESIRABLE_WEIGHT].taken || good == bad)
        return false;
    double even = (double)bad * term->parameter[GD_PREFERENCE_UNDESIRABLE_WEIGHT] / (double)good;
    if (term->parameter[GD_PREFERENCE_DESIRABLE_WEIGHT] >= even && term->parameter[GD_PREFERENCE_DESIRABLE_WEIGHT] <= EVEN_MAX * even)
        return false;
    snprintf(text, size, "training_file has %lld desirable and %lld undesirable rows: Ethayarajh et al. 2024 advise a desirable_weight from %.3g "
             "to %.3g with this undesirable_weight", (long long)good, (long long)bad, even, EVEN_MAX * even);
    return true;
}

static double inverse(double count)
{
    return count > 0 ? 1 / count : 0;
}

void gd_survey_begin(struct gd_survey *survey, const struct gd_step_counts *counts, double running_mean, double running_count)
{
    survey->step = (struct gd_preference_step){.scale = inverse(counts->rows), .nll_scale = inverse(counts->nll),
                                               .gold_scale = inverse(counts->gold), .shift = running_mean};
    survey->count = 0;
    survey->has_reference = false;
    survey->running_mean = running_mean;
    survey->running_count = running_count;
}

bool gd_survey_needed(const struct gd_preference *preference, bool training)
{
    return gd_preference_has(preference, GD_LOSS_SORTS) || gd_preference_has(preference, GD_LOSS_KL) ||
           (training && gd_preference_has(preference, GD_LOSS_SHIFT));
}

int gd_survey_longest(const struct gd_preference *preference, const struct gd_dataset *data, int max_length)
{
    int64_t prompt = 0, answer = 0;
    if (!gd_preference_has(preference, GD_LOSS_KL))
        return 0;
    for (int64_t i = 0; i < data->row_count; i++) {
        int64_t own = gd_mismatched_length(data, i, i), mine = own - gd_answer_length(data, i);
        prompt = mine > prompt ? mine : prompt;
        answer = own - mine > answer ? own - mine : answer;
    }
    return (prompt + answer < max_length ? (int)(prompt + answer) : max_length) + data->virtual_rows.count;
}

int gd_survey_find(const struct gd_survey *survey, int64_t row)
{
    for (int i = 0; i < survey->count; i++)
        if (survey->rows[i] == row)
            return i;
    return -1;
}

/* log p of all segments of the step's rows under the model and the reference, a packed batch at a time. */
static bool read_rows(struct gd_survey *survey, float *own, struct gd_passes *passes, struct gd_batch *batch,
                      const struct gd_dataset *data, const struct gd_survey_options *options, const struct gd_run_options *run,
                      struct gd_error *err)
{
    int sides = gd_preference_sides(passes->preference), most = GD_BATCH_SEGMENTS_MAX / sides;
    for (int next = 0; next < options->count;) {
        int first = next, space = 0;
        while (next < options->count && next - first < most) {
            int more = gd_dataset_row_space(data, options->rows[next]);
            if (next > first && space + more > options->tokens_per_batch)
                break;
            space += more;
            next++;
        }
        gd_batch_fill(batch, data, options->rows + first, next - first, gd_token_bucket(space));
        if (!gd_passes_logprobs(passes, batch, run, own + sides * first, survey->reference + sides * first, err))
            return false;
    }
    survey->has_reference = true;
    return true;
}

/* KTO's z: max(0, mean over rows of log p - log p of the reference of the previous row's answer after this row's prompt). */
static bool estimate_kl(struct gd_survey *survey, struct gd_passes *passes, struct gd_batch *batch, const struct gd_dataset *data,
                        const struct gd_survey_options *options, const struct gd_run_options *run, struct gd_error *err)
{
    int64_t partner[GD_SURVEY_ROWS];
    float own[GD_SURVEY_ROWS], reference[GD_SURVEY_ROWS];
    double sum = 0;
    for (int i = 0; i < options->count; i++)
        partner[i] = i > 0 ? options->rows[i - 1] : options->count > 1 ? options->rows[options->count - 1] : options->before;
    for (int next = 0; next < options->count;) {
        int first = next, space = 0;
        while (next < options->count) {
            int more = gd_mismatched_length(data, options->rows[next], partner[next]);
            more = (more < options->max_length ? more : options->max_length) + data->virtual_rows.count;
            if (next > first && space + more > options->tokens_per_batch)
                break;
            space += more;
            next++;
        }
        gd_batch_fill_mismatched(batch, data, options->rows + first, partner + first, next - first, options->max_length,
                                 gd_token_bucket(space));
        if (!gd_passes_logprobs(passes, batch, run, own, reference, err))
            return false;
        for (int i = 0; i < next - first; i++)
            sum += (double)own[i] - (double)reference[i];
    }
    sum /= options->count;
    survey->step.kl = sum > 0 ? sum : 0;
    return true;
}

bool gd_survey_run(struct gd_survey *survey, struct gd_passes *passes, struct gd_batch *batch, const struct gd_dataset *data,
                   const struct gd_survey_options *options, const struct gd_run_options *run, struct gd_error *err)
{
    const struct gd_preference *preference = passes->preference;
    bool sorts = gd_preference_has(preference, GD_LOSS_SORTS);
    bool shifts = options->training && gd_preference_has(preference, GD_LOSS_SHIFT);
    float own[3 * GD_SURVEY_ROWS];
    assert(options->count <= GD_SURVEY_ROWS);
    if (gd_preference_has(preference, GD_LOSS_KL) && !estimate_kl(survey, passes, batch, data, options, run, err))
        return false;
    if ((sorts || shifts) && !read_rows(survey, own, passes, batch, data, options, run, err))
        return false;
    survey->count = options->count;
    memcpy(survey->rows, options->rows, (size_t)options->count * sizeof(*options->rows));
    if (sorts)
        gd_preference_match(own, survey->reference, options->count, survey->partner);
    if (shifts) {
        double sum = 0;
        for (int i = 0; i < options->count; i++)
            sum += (double)own[i] - (double)survey->reference[i];
        gd_preference_merge_mean(&survey->running_mean, &survey->running_count, sum / options->count, options->count);
        survey->step.shift = survey->running_mean;
    }
    return true;
}
