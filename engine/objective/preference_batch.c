/*
 * From the log-probabilities of tokens to the loss of a micro-batch and its gradient: sums over answers, the modifiers, the
 * losses of each row, and the way back. What a step's rows must know of each other is at the end.
 */
#include "engine/base/alloc.h"
#include "engine/objective/preference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXPONENT_MAX 80.0 /* TRL's bound: e^80 is finite in f32 */

/* ---- modifiers ---- */

/* f'(t) at t = e^h, and its slope in h. Constants cancel in differences, but not where each side has its own length. */
static double divergence_score(const struct gd_preference *preference, double h, double *slope)
{
    double power = preference->divergence_alpha - 1;
    *slope = 1;
    switch (preference->divergence) {
    case GD_FORWARD_KL: /* 1 - 1/t */
        *slope = exp(-h);
        return -expm1(-h);
    case GD_JS_DIVERGENCE: /* log(2t / (t + 1)) */
        *slope = h >= 0 ? exp(-h) / (1 + exp(-h)) : 1 / (1 + exp(h));
        return log(2) + (h >= 0 ? -log1p(exp(-h)) : h - log1p(exp(h)));
    case GD_ALPHA_DIVERGENCE: /* (t^(alpha - 1) - 1) / (alpha - 1) */
        if (fabs(power) < 1e-6)
            return h;
        *slope = power * h < EXPONENT_MAX ? exp(power * h) : 0;
        return expm1(fmin(power * h, EXPONENT_MAX)) / power;
    case GD_REVERSE_KL:
        break;
    }
    return h;
}

/* The pair as losses see it, with the slopes of what they see in a and b. */
static struct gd_pair seen_pair(const struct gd_preference *preference, const struct gd_pair *pair, double slope[2])
{
    struct gd_pair seen = *pair;
    slope[0] = slope[1] = 1;
    if (preference->divergence == GD_REVERSE_KL)
        return seen;
    seen.chosen = divergence_score(preference, pair->chosen - pair->reference_chosen, &slope[0]);
    seen.rejected = divergence_score(preference, pair->rejected - pair->reference_rejected, &slope[1]);
    seen.reference_chosen = seen.reference_rejected = 0;
    return seen;
}

/* The weighted sum over losses, without NLL. */
static void evaluate_terms(const struct gd_preference *preference, const struct gd_pair *pair, struct gd_pair_loss *out)
{
    double slope[2];
    struct gd_pair seen = seen_pair(preference, pair, slope);
    *out = (struct gd_pair_loss){0};
    for (int i = 0; i < preference->term_count; i++) {
        const struct gd_preference_term *term = &preference->term[i];
        struct gd_pair own = seen;
        struct gd_pair_loss result;
        if (term->loss->pair == NULL)
            continue;
        if (!(term->loss->traits & GD_LOSS_REFERENCE))
            own.reference_chosen = own.reference_rejected = 0;
        term->loss->pair(term->parameter, &own, &result);
        out->loss += term->weight * result.loss;
        out->chosen += term->weight * slope[0] * result.chosen;
        out->rejected += term->weight * slope[1] * result.rejected;
    }
}

void gd_preference_evaluate(const struct gd_preference *preference, const struct gd_pair *pair, struct gd_pair_loss *out)
{
    double nll = gd_preference_nll_weight(preference) / pair->chosen_tokens;
    evaluate_terms(preference, pair, out);
    out->loss -= nll * pair->chosen;
    out->chosen -= nll;
}

/* ---- tokens ---- */

/* The rows of a segment: those of its prefix, then its own. */
struct rows {
    int begin[2], end[2];
};

static struct rows rows_of(const struct gd_preference_batch *batch, int segment)
{
    struct rows rows = {{0, batch->cu_seqlens[segment]}, {0, batch->cu_seqlens[segment + 1]}};
    if (batch->prefix != NULL) {
        rows.begin[0] = batch->prefix[2 * segment];
        rows.end[0] = batch->prefix[2 * segment + 1];
    }
    return rows;
}

#define EACH_ROW(t, rows) \
    for (int part_ = 0; part_ < 2; part_++) \
        for (int t = (rows).begin[part_]; t < (rows).end[part_]; t++)

/* In f32 as the reference's sums are: where both are the same model, the difference is 0. */
static double segment_sum(const struct gd_preference_batch *batch, int segment, const float *x)
{
    struct rows rows = rows_of(batch, segment);
    double sum = 0;
    EACH_ROW(t, rows)
        sum += (double)batch->weights[t] * (double)x[t];
    return (double)(float)sum;
}

static void spread(const struct gd_preference_batch *batch, int segment, double slope, float *gradient)
{
    struct rows rows = rows_of(batch, segment);
    EACH_ROW(t, rows)
        gradient[t] += (float)slope * batch->weights[t];
}

static int labelled_tokens(const struct gd_preference_batch *batch, int segment)
{
    struct rows rows = rows_of(batch, segment);
    int count = 0;
    EACH_ROW(t, rows)
        count += batch->labels[t] >= 0;
    return count;
}

/* Tokens by which an answer is longer than the other one weigh ld_alpha (Liu et al. 2024, LD-DPO). What both answers begin with
 * is in both, so no token that they share is such. */
static void weigh_tail(struct gd_preference_batch *batch, int segment, int both)
{
    struct rows rows = rows_of(batch, segment);
    int seen = 0;
    EACH_ROW(t, rows) {
        seen += batch->labels[t] >= 0;
        if (batch->labels[t] >= 0 && seen > both)
            batch->weights[t] *= (float)batch->preference->ld_alpha;
    }
}

/* An answer, or where `whole` its prompt as well, which gets labels for it. */
static void mark_nll(struct gd_preference_batch *batch, int segment, bool whole, const int32_t *ids, const int32_t *virtual_rows)
{
    int end = batch->cu_seqlens[segment + 1];
    for (int t = batch->cu_seqlens[segment]; t < end; t++) {
        if (whole && t + 1 < end && (virtual_rows == NULL || virtual_rows[t] < 0))
            batch->labels[t] = ids[t + 1];
        batch->nll[t] = batch->labels[t] >= 0;
    }
}

void gd_preference_batch_begin(struct gd_preference_batch *batch, const int32_t *ids, const int32_t *virtual_rows)
{
    const struct gd_preference *preference = batch->preference;
    int sides = gd_preference_sides(preference), count = sides * batch->rows;
    for (int s = 0; s < count; s++)
        batch->tokens[s] = labelled_tokens(batch, s);
    for (int w = 0; sides >= 2 && w < count; w += sides) {
        int both = batch->tokens[w] < batch->tokens[w + 1] ? batch->tokens[w] : batch->tokens[w + 1];
        for (int s = w; preference->ld_alpha != 1 && s < w + 2; s++)
            weigh_tail(batch, s, both);
        if (gd_preference_nll_weight(preference) > 0)
            mark_nll(batch, w, preference->full_nll, ids, virtual_rows);
        if (sides == 3)
            mark_nll(batch, w + 2, false, ids, virtual_rows);
    }
}

/* `scale` times the sum of -log p over the tokens that the NLL counts. */
static double nll(const struct gd_preference_batch *batch, int segment, double scale, const float *logp, float *gradient)
{
    struct rows rows = rows_of(batch, segment);
    double sum = 0;
    if (scale == 0)
        return 0;
    EACH_ROW(t, rows) {
        sum -= (double)batch->nll[t] * (double)logp[t];
        gradient[t] -= (float)scale * batch->nll[t];
    }
    return scale * sum;
}

/* WPO (Zhou et al. 2024): exp of the mean over tokens of log p(y_t) - log sum_v p(v)^2. */
static double likeness(const struct gd_preference_batch *batch, int segment, const float *logp, const float *collision)
{
    struct rows rows = rows_of(batch, segment);
    double sum = 0;
    EACH_ROW(t, rows)
        if (batch->labels[t] >= 0)
            sum += (double)logp[t] - (double)collision[t];
    return exp(sum / batch->tokens[segment]);
}

void gd_preference_segment_sums(const struct gd_preference_batch *batch, const float *logp, float *segment)
{
    int count = batch->rows * gd_preference_sides(batch->preference);
    for (int s = 0; s < count; s++)
        segment[s] = (float)segment_sum(batch, s, logp);
}

/* ---- rows ---- */

/* The loss whose scale rewards have: the first that is one over answers. */
static const struct gd_preference_term *reward_term(const struct gd_preference *preference)
{
    for (int i = 0; i < preference->term_count; i++)
        if (preference->term[i].loss->scale < GD_PREFERENCE_PARAMETERS)
            return &preference->term[i];
    return &preference->term[0];
}

static double reward(const struct gd_preference *preference, double logp, double reference, double tokens)
{
    const struct gd_preference_term *term = reward_term(preference);
    bool per_token = (term->loss->traits & GD_LOSS_PER_TOKEN) &&
                     (!term->loss->range[GD_PREFERENCE_LENGTH_NORMALIZE].taken || term->parameter[GD_PREFERENCE_LENGTH_NORMALIZE] != 0);
    double scale = term->loss->scale < GD_PREFERENCE_PARAMETERS ? term->parameter[term->loss->scale] : 1;
    double ratio = logp - (term->loss->traits & GD_LOSS_REFERENCE ? reference : 0);
    return scale * ratio / (per_token ? tokens : 1);
}

static double pair_row(struct gd_preference_batch *batch, int row, const float *logp, const float *collision, float *gradient)
{
    const struct gd_preference *preference = batch->preference;
    struct gd_preference_sums *sums = &batch->sums;
    int sides = gd_preference_sides(preference), w = sides * row, l = w + 1;
    const float *partner = batch->partner[row];
    struct gd_pair pair = {segment_sum(batch, w, logp), segment_sum(batch, l, logp), batch->reference[w], batch->reference[l],
                           batch->tokens[w], batch->tokens[l], partner[0], partner[1], partner[2], batch->margin[row]};
    struct gd_pair_loss result;
    evaluate_terms(preference, &pair, &result);
    double scale = batch->step.scale;
    if (preference->weighting)
        scale *= likeness(batch, w, logp, collision) * likeness(batch, l, logp, collision);
    spread(batch, w, scale * result.chosen, gradient);
    spread(batch, l, scale * result.rejected, gradient);
    double loss = scale * result.loss;
    loss += nll(batch, w, gd_preference_nll_weight(preference) * batch->step.nll_scale, logp, gradient);
    if (sides == 3)
        loss += nll(batch, l + 1, gd_preference_gold_weight(preference) * batch->step.gold_scale, logp, gradient);

    double chosen = reward(preference, pair.chosen, pair.reference_chosen, pair.chosen_tokens);
    double rejected = reward(preference, pair.rejected, pair.reference_rejected, pair.rejected_tokens);
    sums->chosen++;
    sums->rejected++;
    sums->preferred += chosen > rejected;
    sums->reward_chosen += chosen;
    sums->reward_rejected += rejected;
    sums->logp_chosen += pair.chosen;
    sums->logp_rejected += pair.rejected;
    sums->ratio += pair.chosen - pair.reference_chosen + pair.rejected - pair.reference_rejected;
    return loss;
}

static double labelled_row(struct gd_preference_batch *batch, int row, const float *logp, float *gradient)
{
    const struct gd_preference *preference = batch->preference;
    struct gd_preference_sums *sums = &batch->sums;
    double own = segment_sum(batch, row, logp), reference = batch->reference[row], loss = 0, slope = 0, middle = 0;
    double importance = batch->importance != NULL ? (double)batch->importance[row] : 1;
    struct gd_labelled x = {own - reference, batch->desirable[row], importance, batch->step.kl, batch->step.shift};
    for (int i = 0; i < preference->term_count; i++) {
        const struct gd_preference_term *term = &preference->term[i];
        struct gd_labelled_loss result;
        term->loss->labelled(term->parameter, &x, &result);
        loss += term->weight * result.loss;
        slope += term->weight * result.slope;
    }
    spread(batch, row, batch->step.scale * slope, gradient);

    unsigned traits = reward_term(preference)->loss->traits;
    middle = traits & GD_LOSS_KL ? x.kl : traits & GD_LOSS_SHIFT ? x.shift : 0;
    double own_reward = reward(preference, own, reference, batch->tokens[row]);
    sums->chosen += x.desirable;
    sums->rejected += !x.desirable;
    sums->preferred += x.desirable ? x.ratio > middle : x.ratio < middle;
    *(x.desirable ? &sums->reward_chosen : &sums->reward_rejected) += own_reward;
    *(x.desirable ? &sums->logp_chosen : &sums->logp_rejected) += own;
    sums->ratio += x.ratio;
    return batch->step.scale * loss;
}

double gd_preference_batch_evaluate(void *context, const float *logp, const float *collision, int64_t tokens, float *gradient)
{
    struct gd_preference_batch *batch = context;
    bool labelled = gd_preference_answers(batch->preference) == GD_ANSWERS_LABELLED;
    double loss = 0;
    memset(gradient, 0, (size_t)tokens * sizeof *gradient);
    memset(&batch->sums, 0, sizeof batch->sums);
    for (int i = 0; i < batch->rows; i++)
        loss += labelled ? labelled_row(batch, i, logp, gradient) : pair_row(batch, i, logp, collision, gradient);
    batch->sums.rows = batch->rows;
    return loss;
}

/* ---- what a step's rows know of each other ---- */

struct ranked {
    double value;
    int index;
};

static int by_value(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    return a->value < b->value ? -1 : a->value > b->value ? 1 : a->index - b->index;
}

/* values[i] = the one in `other` that has the rank of own[i] in `own`, times sign. */
static void match(const struct ranked *own, const struct ranked *other, int count, int column, float (*partner)[3])
{
    for (int rank = 0; rank < count; rank++)
        partner[own[rank].index][column] = (float)other[rank].value;
}

void gd_preference_match(const float *logp, const float *reference, int count, float (*partner)[3])
{
    struct ranked *rank[4];
    for (int k = 0; k < 4; k++)
        rank[k] = gd_alloc_array((size_t)count + 1, sizeof(struct ranked));
    for (int i = 0; i < count; i++) {
        const float *own = logp + 2 * i, *other = reference + 2 * i;
        rank[0][i] = (struct ranked){(double)own[0] - own[1], i};
        rank[1][i] = (struct ranked){(double)other[0] - other[1], i};
        rank[2][i] = (struct ranked){(double)own[0] - other[0], i};
        rank[3][i] = (struct ranked){(double)own[1] - other[1], i};
    }
    for (int k = 0; k < 4; k++)
        qsort(rank[k], (size_t)count, sizeof(struct ranked), by_value);
    match(rank[0], rank[1], count, 0, partner);
    match(rank[2], rank[3], count, 1, partner);
    match(rank[3], rank[2], count, 2, partner);
    for (int k = 0; k < 4; k++)
        gd_free(rank[k]);
}

void gd_preference_merge_mean(double *mean, double *total, double more, double count)
{
    if (count == 0)
        return;
    *mean += (more - *mean) * count / (*total + count);
    *total += count;
}
