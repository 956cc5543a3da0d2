/*
 * The losses, row by row. h_w = a - a0, h_l = b - b0: log-ratios to the reference; s = beta (h_w - h_l); r = beta h: implicit
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
    bool mean = P(LENGTH_NORMALIZE) != 0;
    double away = (mean ? mean_difference(x) : ratio_w(x) - ratio_l(x)) - 1 / (2 * P(BETA));
    if (mean)
        of_means(x, away * away, 2 * away, out);
    else
        *out = (struct gd_pair_loss){away * away, 2 * away, -2 * away};
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

#define EXPONENT_MAX 80.0 /* e^80 is finite in f32 */

/* AlphaPO (Gupta et al. 2025): r = (1 - e^(-alpha v)) / alpha of a log-probability v, v itself with alpha 0; beyond
 * EXPONENT_MAX it stays where it is. */
static double alpha_reward(double alpha, double v, double *slope)
{
    *slope = 1;
    if (alpha == 0)
        return v;
    *slope = -alpha * v < EXPONENT_MAX ? exp(-alpha * v) : 0;
    return -expm1(fmin(-alpha * v, EXPONENT_MAX)) / alpha;
}

/* Losses of u = beta (r(a) - r(b)) - gamma over log-probabilities v, sums or means over tokens. */
static void smoothed(const double *p, double w, double l, double per_w, double per_l, struct gd_pair_loss *out)
{
    double e = P(LABEL_SMOOTHING), slope_w, slope_l;
    double u = P(BETA) * (alpha_reward(P(ALPHA), w, &slope_w) - alpha_reward(P(ALPHA), l, &slope_l)) - P(GAMMA);
    double slope = P(BETA) * (e - sigmoid(-u));
    *out = (struct gd_pair_loss){-(1 - e) * log_sigmoid(u) - e * log_sigmoid(-u), slope * slope_w * per_w, -slope * slope_l * per_l};
}

static void cpo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    smoothed(p, x->chosen, x->rejected, 1, 1, out);
}

static void simpo(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    smoothed(p, x->chosen / x->chosen_tokens, x->rejected / x->rejected_tokens, 1 / x->chosen_tokens, 1 / x->rejected_tokens, out);
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

/* Against the margin of the reference that has the same rank among the step's pairs. */
static void aot(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double s = P(BETA) * (x->chosen - x->rejected - x->partner_margin), e = P(LABEL_SMOOTHING);
    of_margin(p, -(1 - e) * log_sigmoid(s) - e * log_sigmoid(-s), e - sigmoid(-s), out);
}

/* Each log-ratio against the one of the same rank on the other side: every comparison has two owners, half of it each; a
 * slope is that of the whole comparison. */
static void aot_unpaired(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double e = P(LABEL_SMOOTHING), w = P(BETA) * (ratio_w(x) - x->partner_of_chosen);
    double l = P(BETA) * (x->partner_of_rejected - ratio_l(x));
    *out = (struct gd_pair_loss){
        0.5 * (-(1 - e) * (log_sigmoid(w) + log_sigmoid(l)) - e * (log_sigmoid(-w) + log_sigmoid(-l))),
        P(BETA) * (e - sigmoid(-w)), -P(BETA) * (e - sigmoid(-l))};
}

/* ---- one answer with a label ---- */

static double label_weight(const double *p, const struct gd_labelled *x)
{
    return x->desirable ? P(DESIRABLE_WEIGHT) : P(UNDESIRABLE_WEIGHT);
}

/* 1 - sig(u) with u towards the label. */
static void one_minus_sigmoid(const double *p, const struct gd_labelled *x, double away, struct gd_labelled_loss *out)
{
    double sign = x->desirable ? 1 : -1, weight = label_weight(p, x), u = sign * P(BETA) * away;
    *out = (struct gd_labelled_loss){weight * sigmoid(-u), -sign * weight * P(BETA) * sigmoid_slope(u)};
}

static void kto(const double *p, const struct gd_labelled *x, struct gd_labelled_loss *out)
{
    one_minus_sigmoid(p, x, x->ratio - x->kl, out);
}

static void apo_zero_unpaired(const double *p, const struct gd_labelled *x, struct gd_labelled_loss *out)
{
    one_minus_sigmoid(p, x, x->ratio, out);
}

static void bco(const double *p, const struct gd_labelled *x, struct gd_labelled_loss *out)
{
    double sign = x->desirable ? 1 : -1, u = sign * P(BETA) * (x->ratio - x->shift), weight = x->desirable ? 1 : x->importance;
    *out = (struct gd_labelled_loss){-weight * log_sigmoid(u), -sign * weight * P(BETA) * sigmoid(-u)};
}

/* Scores r in place of a and b: -log sig(r_w - r_l - m) + c (r_w + r_l)^2. */
static void bradley_terry(const double *p, const struct gd_pair *x, struct gd_pair_loss *out)
{
    double u = x->chosen - x->rejected - x->margin, sum = x->chosen + x->rejected, centre = 2 * P(CENTER_REWARDS) * sum;
    *out = (struct gd_pair_loss){-log_sigmoid(u) + 0.5 * centre * sum, centre - sigmoid(-u), centre + sigmoid(-u)};
}

#define TAKES(name, min, max, fallback) [GD_PREFERENCE_##name] = {true, min, max, fallback}
#define BETA(fallback) TAKES(BETA, 1e-6, 1000.0, fallback)
#define NLL(fallback) TAKES(NLL_WEIGHT, 0.0, 1000.0, fallback)
#define SMOOTH(min, fallback) TAKES(LABEL_SMOOTHING, min, 0.499, fallback)
#define ALPHA TAKES(ALPHA, 0.0, 10.0, 0.0)
#define SIDES TAKES(DESIRABLE_WEIGHT, 0.0, 1000.0, 1.0), TAKES(UNDESIRABLE_WEIGHT, 0.0, 1000.0, 1.0)

#define REFERENCE GD_LOSS_REFERENCE
#define MARGIN (GD_LOSS_REFERENCE | GD_LOSS_WEIGHTING | GD_LOSS_DIVERGENCE) /* the partition function cancels */
#define SIDED (GD_LOSS_REFERENCE | GD_LOSS_WEIGHTING)

#define PAIR(name, alias, paper, traits, scale, ...) \
    {#name, alias, paper, GD_ANSWERS_PAIR, traits, GD_PREFERENCE_##scale, name, NULL, {__VA_ARGS__}}
#define LABELLED(name, paper, traits, ...) \
    {#name, NULL, paper, GD_ANSWERS_LABELLED, traits, GD_PREFERENCE_BETA, NULL, name, {__VA_ARGS__}}
#define TRIPLE(name, alias, paper, traits, function, ...) \
    {#name, alias, paper, GD_ANSWERS_TRIPLE, traits, GD_PREFERENCE_BETA, function, NULL, {__VA_ARGS__}}

const struct gd_preference_loss gd_preference_table[] = {
    PAIR(dpo, "sigmoid", "Rafailov et al. 2023; label_smoothing: Mitchell 2023", MARGIN, BETA, BETA(0.1), SMOOTH(0.0, 0.0), NLL(0.0)),
    PAIR(robust, NULL, "Chowdhury et al. 2024", MARGIN, BETA, BETA(0.1), SMOOTH(0.0, 0.1), NLL(0.0)),
    PAIR(hinge, NULL, "Liu et al. 2023 (RSO), Zhao et al. 2023 (SLiC)", MARGIN, BETA, BETA(0.1), NLL(0.0)),
    PAIR(ipo, NULL, "Azar et al. 2023", MARGIN | GD_LOSS_PER_TOKEN, BETA, BETA(0.1), TAKES(LENGTH_NORMALIZE, 0, 1, 1), NLL(0.0)),
    PAIR(sigmoid_norm, NULL, "DPO with log-ratios averaged over tokens", MARGIN | GD_LOSS_PER_TOKEN, BETA, BETA(0.1), NLL(0.0)),
    PAIR(exo, "exo_pair", "Ji et al. 2024", MARGIN, BETA, BETA(0.1), SMOOTH(1e-9, 1e-3), NLL(0.0)),
    PAIR(nca, "nca_pair", "Chen et al. 2024", SIDED, BETA, BETA(0.01), NLL(0.0)),
    PAIR(bco_pair, NULL, "Jung et al. 2024, pairwise and without shift", SIDED, BETA, BETA(0.01), NLL(0.0)),
    PAIR(sppo, "sppo_hard", "Wu et al. 2024, hard labels", SIDED, BETA, BETA(0.001), NLL(0.0)),
    PAIR(apo_zero, NULL, "D'Oosterlinck et al. 2024", SIDED, BETA, BETA(0.1), NLL(0.0)),
    PAIR(apo_down, NULL, "D'Oosterlinck et al. 2024", SIDED, BETA, BETA(0.1), NLL(0.0)),
    PAIR(discopop, NULL, "Lu et al. 2024", MARGIN, BETA, BETA(0.05), TAKES(TAU, 1e-3, 1.0, 0.05), NLL(0.0)),
    PAIR(aot, NULL, "Melnyk et al. 2024, paired", REFERENCE | GD_LOSS_SORTS, BETA, BETA(0.1), SMOOTH(0.0, 0.0), NLL(0.0)),
    PAIR(aot_unpaired, NULL, "Melnyk et al. 2024, unpaired", REFERENCE | GD_LOSS_SORTS, BETA, BETA(0.1), SMOOTH(0.0, 0.0), NLL(0.0)),
    PAIR(cpo, NULL, "Xu et al. 2024", GD_LOSS_WEIGHTING, BETA, BETA(0.1), SMOOTH(0.0, 0.0), ALPHA, NLL(1.0)),
    PAIR(simpo, NULL, "Meng et al. 2024; alpha: Gupta et al. 2025 (AlphaPO)", GD_LOSS_WEIGHTING | GD_LOSS_PER_TOKEN, BETA,
         BETA(2.0), TAKES(GAMMA, 0.0, 1000.0, 0.5), SMOOTH(0.0, 0.0), ALPHA, NLL(0.0)),
    PAIR(orpo, NULL, "Hong et al. 2024", GD_LOSS_PER_TOKEN, LAMBDA, TAKES(LAMBDA, 0.0, 1000.0, 0.1), NLL(1.0)),
    {"sft", NULL, "the chosen answer's likelihood", GD_ANSWERS_PAIR, GD_LOSS_DIVERGENCE, GD_PREFERENCE_PARAMETERS, NULL, NULL, {{0}}},
    TRIPLE(tpo, NULL, "Saeidi et al. 2024 (Triple Preference Optimization)", 0, cpo, BETA(0.01), SMOOTH(0.0, 0.0),
           TAKES(TPO_ALPHA, 0.0, 1000.0, 1.0)),
    TRIPLE(tpo_l, "tpo-l", "Saeidi et al. 2024, averaged over tokens, with a margin", GD_LOSS_PER_TOKEN, simpo, BETA(0.01),
           TAKES(GAMMA, 0.0, 1000.0, 0.5), SMOOTH(0.0, 0.0), TAKES(TPO_ALPHA, 0.0, 1000.0, 1.0)),
    LABELLED(kto, "Ethayarajh et al. 2024", REFERENCE | GD_LOSS_KL, BETA(0.1), SIDES),
    LABELLED(apo_zero_unpaired, "D'Oosterlinck et al. 2024, one answer a row", REFERENCE, BETA(0.1), SIDES),
    LABELLED(bco, "Jung et al. 2024", REFERENCE | GD_LOSS_SHIFT, BETA(0.1)),
};
const struct gd_preference_loss gd_preference_reward = {
    "bradley_terry", NULL, "Bradley & Terry 1952; centring: Eisenstein et al. 2023", GD_ANSWERS_PAIR, GD_LOSS_SCORES,
    GD_PREFERENCE_PARAMETERS, bradley_terry, NULL, {TAKES(CENTER_REWARDS, 0.0, 1000.0, 0.0)}};
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
