/*
 * preference.h - losses over answers that people prefer or reject, in the notation of Saeidi et al. 2024 (arXiv 2404.14723).
 *
 * Why      Each loss is a scalar function of the log-probabilities of a row's answers, and returns its slopes; what turns
 *          slopes into gradients of a model is the same for all (token_logprob, segment_loss). A job has a weighted sum
 *          of losses, with modifiers that change the log-probabilities which they see.
 * Memory   Plain structures; a batch borrows its arrays.
 * Threads  Any; pure functions. A gd_preference_batch belongs to one run.
 * Errors   GD_MISSING, GD_INVALID, GD_UNKNOWN_FIELD naming the field, with the nearest loss.
 * Limits   GD_PREFERENCE_SEGMENTS segments in a batch, GD_PREFERENCE_TERMS_MAX losses in a sum
 * Life     parse -> one batch a micro-batch.
 *
 * To add a loss: one function and one line of the table in preference_losses.c.
 */
#ifndef GD_OBJECTIVE_PREFERENCE_H
#define GD_OBJECTIVE_PREFERENCE_H

#include "engine/base/json.h"
#include <stdint.h>

#define GD_PREFERENCE_SEGMENTS 256
#define GD_PREFERENCE_TERMS_MAX 8

/*    name                wire                  is true or false */
#define GD_PREFERENCE_PARAMETER_LIST(X) \
    X(BETA,               "beta",               false) \
    X(LABEL_SMOOTHING,    "label_smoothing",    false) \
    X(GAMMA,              "gamma",              false) \
    X(LAMBDA,             "lambda",             false) \
    X(TAU,                "tau",                false) \
    X(ALPHA,              "alpha",              false) \
    X(LENGTH_NORMALIZE,   "length_normalize",   true)  \
    X(DESIRABLE_WEIGHT,   "desirable_weight",   false) \
    X(UNDESIRABLE_WEIGHT, "undesirable_weight", false) \
    X(TPO_ALPHA,          "tpo_alpha",          false) \
    X(CENTER_REWARDS,     "center_rewards_coefficient", false) \
    X(NLL_WEIGHT,         "nll_weight",         false)

#define GD_PREFERENCE_PARAMETER_ENUM(name, wire, boolean) GD_PREFERENCE_##name,
enum gd_preference_parameter { GD_PREFERENCE_PARAMETER_LIST(GD_PREFERENCE_PARAMETER_ENUM) GD_PREFERENCE_PARAMETERS };
#undef GD_PREFERENCE_PARAMETER_ENUM
const char *gd_preference_parameter_name(enum gd_preference_parameter parameter);

/* What the rows of a loss are: two answers, one answer with a label, or two answers and a third one to imitate. */
enum gd_answers { GD_ANSWERS_PAIR, GD_ANSWERS_LABELLED, GD_ANSWERS_TRIPLE };

/* Sums over the answer's tokens: a = log p(chosen), b = log p(rejected) under the model, a0, b0 under the reference
 * (0 for losses without one); tokens of each answer. Of losses that sort the step's pairs: the partner's a0 - b0, and the
 * log-ratios that this pair's two are compared with. */
struct gd_pair {
    double chosen, rejected, reference_chosen, reference_rejected;
    double chosen_tokens, rejected_tokens;
    double partner_margin, partner_of_chosen, partner_of_rejected;
    double margin;           /* by which the row says that the chosen answer is better */
};
struct gd_pair_loss {
    double loss;
    double chosen, rejected; /* d loss / d a, d loss / d b */
};

/* One answer with its label; ratio: log p - log p of the reference. */
struct gd_labelled {
    double ratio;
    bool desirable;
    double importance;       /* of its prompt, where undesirable */
    double kl, shift;        /* of the step: KTO's estimate of the KL divergence, BCO's running mean of ratios */
};
struct gd_labelled_loss {
    double loss, slope;      /* d loss / d log p */
};

struct gd_preference_range {
    bool taken;
    double min, max, fallback;
};

enum gd_preference_trait {
    GD_LOSS_REFERENCE = 1,   /* compares with the reference */
    GD_LOSS_PER_TOKEN = 2,   /* rewards are means over tokens */
    GD_LOSS_DIVERGENCE = 4,  /* takes f-divergences */
    GD_LOSS_WEIGHTING = 8,   /* takes use_weighting */
    GD_LOSS_SORTS = 16,      /* needs the log-probabilities of all pairs of the step first */
    GD_LOSS_KL = 32,         /* needs the step's estimate of the KL divergence first */
    GD_LOSS_SCORES = 128,    /* sees scores of answers, not log-probabilities */
    GD_LOSS_SHIFT = 64,      /* needs the running mean with the step's rewards in it first */
};

struct gd_preference_loss {
    const char *name;
    const char *alias;       /* TRL's name where it differs, or NULL */
    const char *paper;
    enum gd_answers answers;
    unsigned traits;
    enum gd_preference_parameter scale; /* what rewards are multiplied by; GD_PREFERENCE_PARAMETERS: 1 */
    /* One of the two; none of `sft`, which is the NLL alone. */
    void (*pair)(const double *parameter, const struct gd_pair *pair, struct gd_pair_loss *out);
    void (*labelled)(const double *parameter, const struct gd_labelled *row, struct gd_labelled_loss *out);
    struct gd_preference_range range[GD_PREFERENCE_PARAMETERS];
};

extern const struct gd_preference_loss gd_preference_table[];
extern const int gd_preference_count;
/* Bradley-Terry over the scores of a reward model; in no list of losses: it is a method of its own. */
extern const struct gd_preference_loss gd_preference_reward;
const struct gd_preference_loss *gd_preference_find(const char *name); /* by name or alias; or NULL */

/* What a0 and b0 come from. */
/*    name          wire */
#define GD_REFERENCE_LIST(X)                                                                          \
    X(BASE,        "base")        /* the model without its graft */                                   \
    X(START,       "start")       /* the model as it is before the first step */                      \
    X(PRECOMPUTED, "precomputed") /* the same, computed once for each row or given with it */         \
    X(NONE,        "none")        /* nothing: a0 = b0 = 0 */
#define GD_REFERENCE_ENUM(name, wire) GD_REFERENCE_##name,
enum gd_reference { GD_REFERENCE_LIST(GD_REFERENCE_ENUM) GD_REFERENCES };
#undef GD_REFERENCE_ENUM

/* A loss with its parameters. */
struct gd_preference_term {
    const struct gd_preference_loss *loss;
    double weight;
    double parameter[GD_PREFERENCE_PARAMETERS]; /* 0 where the loss takes none */
};

/* Log-ratios h as losses see them (Wang et al. 2023), with t = e^h: f'(t). */
enum gd_divergence { GD_REVERSE_KL, GD_FORWARD_KL, GD_JS_DIVERGENCE, GD_ALPHA_DIVERGENCE };

struct gd_preference {
    int term_count;          /* 0: no preference at all */
    struct gd_preference_term term[GD_PREFERENCE_TERMS_MAX];
    enum gd_divergence divergence;
    double divergence_alpha; /* of GD_ALPHA_DIVERGENCE */
    double ld_alpha;         /* weight of the tokens by which an answer is longer than the other one; 1 changes nothing */
    bool weighting;          /* WPO */
    bool full_nll;           /* the NLL is that of the prompt as well */
    struct {                 /* underlying distribution matching: undesirable rows weigh by their prompts, within min and max */
        bool on;
        int sample;          /* prompts of each kind that are compared */
        double min, max;
    } matching;
};
/* One loss, weight 1, no modifiers. */
void gd_preference_default(struct gd_preference *preference, const struct gd_preference_loss *loss);
/* {"loss": NAME or list, "weights"/"loss_weights", parameters and modifiers by name, "hyperparameters", "reference": ignored here}. */
GD_MUST_CHECK bool gd_preference_parse(struct gd_preference *preference, const cJSON *object, const char *path,
                                       struct gd_error *err);
/* The same members, resolved, into `object`. */
void gd_preference_add_json(const struct gd_preference *preference, cJSON *object);

enum gd_answers gd_preference_answers(const struct gd_preference *preference);
int gd_preference_sides(const struct gd_preference *preference); /* segments of a row */
/* Whether one of the losses has the trait. */
bool gd_preference_has(const struct gd_preference *preference, enum gd_preference_trait trait);
/* What the NLL terms weigh: of the chosen answers, of TPO's third ones. */
double gd_preference_nll_weight(const struct gd_preference *preference);
double gd_preference_gold_weight(const struct gd_preference *preference);
/* From log-ratios to the rewards of the first loss with GD_LOSS_SHIFT. */
double gd_preference_shift_scale(const struct gd_preference *preference);

/* The weighted sum over losses with modifiers, and the NLL as of a step that is this pair alone. */
void gd_preference_evaluate(const struct gd_preference *preference, const struct gd_pair *pair, struct gd_pair_loss *out);

/* What the losses need to know of the optimiser step that a micro-batch is part of. */
struct gd_preference_step {
    double scale;            /* of each row's loss: 1 / rows */
    double nll_scale, gold_scale; /* 1 / tokens of the NLL terms */
    double kl, shift;        /* as of struct gd_labelled */
};

/* Sums over rows; the trainer divides them. A pair counts on both sides. */
struct gd_preference_sums {
    int64_t rows, chosen, rejected;
    int64_t preferred;       /* pairs with the chosen reward above the other's (a tie is not); labelled answers on their side */
    double reward_chosen, reward_rejected, logp_chosen, logp_rejected;
    double ratio;            /* log p - log p of the reference, over all answers */
};

/* One micro-batch. Segment sides * i is the chosen answer of row i, or its only one; the rejected and the third one follow. */
struct gd_preference_batch {
    const struct gd_preference *preference;
    struct gd_preference_step step;
    int rows;
    const int32_t *cu_seqlens;   /* [segments + 1] */
    const int32_t *prefix;       /* [2 segments]: rows that a segment continues (struct gd_batch); or NULL */
    int32_t *labels;             /* [tokens]: -100 where no answer is */
    float *weights;              /* [tokens]: of log p in its answer's sum */
    float *nll;                  /* [tokens], zero at first: 1 where the NLL counts it */
    int32_t tokens[GD_PREFERENCE_SEGMENTS];   /* of each answer */
    float reference[GD_PREFERENCE_SEGMENTS];  /* log p of each segment under the reference */
    bool desirable[GD_PREFERENCE_SEGMENTS];   /* of labelled rows */
    const float *importance;                  /* [rows]: of them; NULL: all 1 */
    float margin[GD_PREFERENCE_SEGMENTS];     /* of each pair: struct gd_pair */
    float partner[GD_PREFERENCE_SEGMENTS][3]; /* of each pair, with GD_LOSS_SORTS: partner_* of struct gd_pair */
    struct gd_preference_sums sums;           /* out */
};
/* Counts the answers' tokens, weighs those that ld_alpha is about, and marks what the NLL counts, which may give prompts labels.
 * ids: [tokens]; virtual_rows: [tokens], -1 where a token is, or NULL. */
void gd_preference_batch_begin(struct gd_preference_batch *batch, const int32_t *ids, const int32_t *virtual_rows);
/* For struct gd_segment_loss: log p of each token, log sum_v p(v)^2 beside it -> the batch's loss and its gradient. */
double gd_preference_batch_evaluate(void *batch, const float *logp, const float *collision, int64_t tokens, float *gradient);
/* The same without a loss: log p of each segment. */
void gd_preference_segment_sums(const struct gd_preference_batch *batch, const float *logp, float *segment);
/* Partners of the step's pairs: sorted by rank, log-ratios and margins of the model meet those of the reference. logp,
 * reference: [2 count], chosen and rejected; partner: [count][3]. */
void gd_preference_match(const float *logp, const float *reference, int count, float (*partner)[3]);
/* Welford's merge of a running mean and its count with `count` more values. */
void gd_preference_merge_mean(double *mean, double *total, double more, double count);

#endif
