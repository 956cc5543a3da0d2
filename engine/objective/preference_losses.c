/*
 * The losses. h_w = a - a0, h_l = b - b0: log-ratios to the reference; s = beta (h_w - h_l); r = beta h: implicit
 * rewards; d, A, B: means over tokens. Slopes are of a (chosen) and b (rejected).
 */
#include "engine/objective/preference.h"

#include <math.h>
#include <string.h>

#define P(name) (p[GD_PREFERENCE_##name])

static double sigmoid(double u)
{
    return u >= 0 ? 1 / (1 + exp(-u)) : exp(u) / (1 + exp(u));
}

static double log_sigmoid(double u)
{
    return u >= 0 ? -log1p(exp(-u)) : u - log1p(exp(u));
}

static double sigmoid_slope(double u)
{
    return sigmoid(u) * sigmoid(-u);
}

static double ratio_w(const struct gd_pair *x)
{
    return x->chosen - x->reference_chosen;
}

static double ratio_l(const struct gd_pair *x)
{
    return x->rejected - x->reference_rejected;
}

static double margin(const double *p, const struct gd_pair *x)
{
    return P(BETA) * (ratio_w(x) - ratio_l(x));
}

/* A loss of s alone, with dL/ds. */
static void of_margin(const double *p, double loss, double slope, struct gd_pair_loss *out)
{
    *out = (struct gd_pair_loss){loss, P(BETA) * slope, -P(BETA) * slope};
}

/* A loss of d = mean log-ratio difference or mean log p difference, with dL/dd. */
static void of_means(const struct gd_pair *x, double loss, double slope, struct gd_pair_loss *out)
{
    *out = (struct gd_pair_loss){loss, slope / x->chosen_tokens, -slope / x->rejected_tokens};
}

static double mean_difference(const struct gd_pair *x)
{
    return ratio_w(x) / x->chosen_tokens - ratio_l(x) / x->rejected_tokens;
}

static void dpo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double s = margin(p, x), e = P(LABEL_SMOOTHING);
    of_margin(p, -(1 - e) * log_sigmoid(s) - e * log_sigmoid(-s), e - sigmoid(-s), out);
}

static void robust(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double s = margin(p, x), e = P(LABEL_SMOOTHING);
    of_margin(p, (-(1 - e) * log_sigmoid(s) + e * log_sigmoid(-s)) / (1 - 2 * e), -(sigmoid(-s) + e / (1 - 2 * e)), out);
}

static void hinge(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double s = margin(p, x);
    of_margin(p, s < 1 ? 1 - s : 0, s < 1 ? -1 : 0, out);
}

static void ipo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double away = mean_difference(x) - 1 / (2 * P(BETA));
    of_means(x, away * away, 2 * away, out);
}

static void sigmoid_norm(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double u = P(BETA) * mean_difference(x);
    of_means(x, -log_sigmoid(u), -P(BETA) * sigmoid(-u), out);
}

static void exo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double s = margin(p, x), e = P(LABEL_SMOOTHING), q = sigmoid(s);
    double loss = q * (log_sigmoid(s) - log1p(-e)) + sigmoid(-s) * (log_sigmoid(-s) - log(e));
    of_margin(p, loss, q * sigmoid(-s) * (s - log((1 - e) / e)), out);
}

static void nca(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double w = P(BETA) * ratio_w(x), l = P(BETA) * ratio_l(x);
    *out = (struct gd_pair_loss){-log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l),
                                 P(BETA) * (0.5 * sigmoid(w) - sigmoid(-w)), 0.5 * P(BETA) * sigmoid(l)};
}

static void bco_pair(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double w = P(BETA) * ratio_w(x), l = P(BETA) * ratio_l(x);
    *out = (struct gd_pair_loss){-log_sigmoid(w) - log_sigmoid(-l), -P(BETA) * sigmoid(-w), P(BETA) * sigmoid(l)};
}

static void sppo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double w = ratio_w(x) - 1 / (2 * P(BETA)), l = ratio_l(x) + 1 / (2 * P(BETA));
    *out = (struct gd_pair_loss){w * w + l * l, 2 * w, 2 * l};
}

static void apo_zero(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double w = P(BETA) * ratio_w(x), l = P(BETA) * ratio_l(x);
    *out = (struct gd_pair_loss){1 - sigmoid(w) + sigmoid(l), -P(BETA) * sigmoid_slope(w), P(BETA) * sigmoid_slope(l)};
}

static void apo_down(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double w = P(BETA) * ratio_w(x), s = margin(p, x);
    *out = (struct gd_pair_loss){sigmoid(w) + 1 - sigmoid(s), P(BETA) * (sigmoid_slope(w) - sigmoid_slope(s)),
                                 P(BETA) * sigmoid_slope(s)};
}

/* m = sig(s / tau): (m - 1) logsig(s) + m e^-s; m e^-s through its logarithm, since e^-s alone overflows. */
static void discopop(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double s = margin(p, x), m = sigmoid(s / P(TAU)), rest = sigmoid(-s / P(TAU));
    double tail = exp(log_sigmoid(s / P(TAU)) - s);
    double slope = -rest * sigmoid(-s) - tail + rest / P(TAU) * (tail + m * log_sigmoid(s));
    of_margin(p, -rest * log_sigmoid(s) + tail, slope, out);
}

static void cpo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double s = margin(p, x);
    of_margin(p, -log_sigmoid(s), -sigmoid(-s), out);
}

static void simpo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double u = P(BETA) * mean_difference(x) - P(GAMMA);
    of_means(x, -log_sigmoid(u), -P(BETA) * sigmoid(-u), out);
}

/* log(1 - e^u), u < 0 (Maechler 2012). */
static double log_one_minus_exp(double u)
{
    return u > -0.693 ? log(-expm1(u)) : log1p(-exp(u));
}

static void orpo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double w = fmin(x->chosen / x->chosen_tokens, -1e-7), l = fmin(x->rejected / x->rejected_tokens, -1e-7);
    double odds = w - l - (log_one_minus_exp(w) - log_one_minus_exp(l)), pull = P(LAMBDA) * sigmoid(-odds);
    *out = (struct gd_pair_loss){-P(LAMBDA) * log_sigmoid(odds), pull / (expm1(w) * x->chosen_tokens),
                                 -pull / (expm1(l) * x->rejected_tokens)};
}

#define TAKES(name, min, max, fallback) [GD_PREFERENCE_##name] = {true, min, max, fallback}
#define BETA(fallback) TAKES(BETA, 1e-6, 1000.0, fallback)
#define NLL(fallback) TAKES(NLL_WEIGHT, 0.0, 1000.0, fallback)
#define SMOOTH(min, fallback) TAKES(LABEL_SMOOTHING, min, 0.499, fallback)

const struct gd_preference_loss gd_preference_table[] = {
    {"dpo", "sigmoid", "Rafailov et al. 2023; label_smoothing: Mitchell 2023", true, false, GD_PREFERENCE_BETA, dpo,
     {BETA(0.1), SMOOTH(0.0, 0.0), NLL(0.0)}},
    {"robust", NULL, "Chowdhury et al. 2024", true, false, GD_PREFERENCE_BETA, robust,
     {BETA(0.1), SMOOTH(0.0, 0.1), NLL(0.0)}},
    {"hinge", NULL, "Liu et al. 2023 (RSO), Zhao et al. 2023 (SLiC)", true, false, GD_PREFERENCE_BETA, hinge,
     {BETA(0.1), NLL(0.0)}},
    {"ipo", NULL, "Azar et al. 2023, averaged over tokens", true, true, GD_PREFERENCE_BETA, ipo, {BETA(0.1), NLL(0.0)}},
    {"sigmoid_norm", NULL, "DPO with log-ratios averaged over tokens", true, true, GD_PREFERENCE_BETA, sigmoid_norm,
     {BETA(0.1), NLL(0.0)}},
    {"exo", "exo_pair", "Ji et al. 2024", true, false, GD_PREFERENCE_BETA, exo, {BETA(0.1), SMOOTH(1e-9, 1e-3), NLL(0.0)}},
    {"nca", "nca_pair", "Chen et al. 2024", true, false, GD_PREFERENCE_BETA, nca, {BETA(0.01), NLL(0.0)}},
    {"bco_pair", NULL, "Jung et al. 2024, pairwise and without shift", true, false, GD_PREFERENCE_BETA, bco_pair,
     {BETA(0.01), NLL(0.0)}},
    {"sppo", "sppo_hard", "Wu et al. 2024, hard labels", true, false, GD_PREFERENCE_BETA, sppo, {BETA(0.001), NLL(0.0)}},
    {"apo_zero", NULL, "D'Oosterlinck et al. 2024", true, false, GD_PREFERENCE_BETA, apo_zero, {BETA(0.1), NLL(0.0)}},
    {"apo_down", NULL, "D'Oosterlinck et al. 2024", true, false, GD_PREFERENCE_BETA, apo_down, {BETA(0.1), NLL(0.0)}},
    {"discopop", NULL, "Lu et al. 2024", true, false, GD_PREFERENCE_BETA, discopop,
     {BETA(0.05), TAKES(TAU, 1e-3, 1.0, 0.05), NLL(0.0)}},
    {"cpo", NULL, "Xu et al. 2024", false, false, GD_PREFERENCE_BETA, cpo, {BETA(0.1), NLL(1.0)}},
    {"simpo", NULL, "Meng et al. 2024", false, true, GD_PREFERENCE_BETA, simpo,
     {BETA(2.0), TAKES(GAMMA, 0.0, 1000.0, 0.5), NLL(0.0)}},
    {"orpo", NULL, "Hong et al. 2024", false, true, GD_PREFERENCE_LAMBDA, orpo,
     {TAKES(LAMBDA, 0.0, 1000.0, 0.1), NLL(1.0)}},
};
const int gd_preference_count = (int)GD_COUNT(gd_preference_table);

const struct gd_preference_loss *gd_preference_find(const char *name)
{
    for (int i = 0; i < gd_preference_count; i++) {
        const struct gd_preference_loss *loss = &gd_preference_table[i];
        if (strcmp(loss->name, name) == 0 || (loss->alias != NULL && strcmp(loss->alias, name) == 0))
            return loss;
    }
    return NULL;
}

void gd_preference_evaluate(const struct gd_preference *preference, const struct gd_pair *pair, struct gd_pair_loss *out)
{
    double nll = preference->parameter[GD_PREFERENCE_NLL_WEIGHT] / pair->chosen_tokens;
    preference->loss->evaluate(preference->parameter, pair, out);
    out->loss -= nll * pair->chosen;
    out->chosen -= nll;
}

double gd_preference_batch_evaluate(void *context, const float *logp, int64_t segments, float *gradient)
{
    struct gd_preference_batch *batch = context;
    const struct gd_preference_loss *loss = batch->preference->loss;
    double sum = 0, scale = batch->preference->parameter[loss->scale];
    memset(gradient, 0, (size_t)segments * sizeof *gradient);
    memset(&batch->sums, 0, sizeof batch->sums);
    for (int i = 0; i < batch->pairs; i++) {
        const float *own = logp + 2 * i, *reference = batch->reference + 2 * i;
        struct gd_pair pair = {own[0], own[1], loss->reference ? reference[0] : 0, loss->reference ? reference[1] : 0,
                               batch->tokens[2 * i], batch->tokens[2 * i + 1]};
        struct gd_pair_loss result;
        gd_preference_evaluate(batch->preference, &pair, &result);
        sum += result.loss;
        gradient[2 * i] = (float)(batch->scale * result.chosen);
        gradient[2 * i + 1] = (float)(batch->scale * result.rejected);
        double chosen = scale * ratio_w(&pair) / (loss->per_token ? pair.chosen_tokens : 1);
        double rejected = scale * ratio_l(&pair) / (loss->per_token ? pair.rejected_tokens : 1);
        batch->sums.preferred += chosen > rejected;
        batch->sums.reward_chosen += chosen;
        batch->sums.reward_rejected += rejected;
        batch->sums.logp_chosen += pair.chosen;
        batch->sums.logp_rejected += pair.rejected;
    }
    batch->sums.pairs = batch->pairs;
    return batch->scale * sum;
}
