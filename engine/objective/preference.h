/*
 * preference.h - losses over pairs of answers, in the notation of Saeidi et al. 2024 (arXiv 2404.14723).
 *
 * Why      Each loss is a scalar function of four log-probabilities and two lengths, and returns two slopes; what turns
 *          slopes into gradients of a model is the same for all (token_logprob, segment_sum, segment_loss).
 * Memory   Plain structures.
 * Threads  Any; pure functions. A gd_preference_batch belongs to one run.
 * Errors   GD_MISSING, GD_INVALID, GD_UNKNOWN_FIELD naming the field, with the nearest loss.
 * Limits   GD_PREFERENCE_SEGMENTS segments in a batch
 * Life     parse -> one batch a micro-batch.
 *
 * To add a loss: one function and one line of the table in preference_losses.c.
 */
#ifndef GD_OBJECTIVE_PREFERENCE_H
#define GD_OBJECTIVE_PREFERENCE_H

#include "engine/base/json.h"
#include <stdint.h>

#define GD_PREFERENCE_SEGMENTS 256

/*    name             wire */
#define GD_PREFERENCE_PARAMETER_LIST(X) \
    X(BETA,            "beta")            \
    X(LABEL_SMOOTHING, "label_smoothing") \
    X(GAMMA,           "gamma")           \
    X(LAMBDA,          "lambda")          \
    X(TAU,             "tau")             \
    X(NLL_WEIGHT,      "nll_weight")

#define GD_PREFERENCE_PARAMETER_ENUM(name, wire) GD_PREFERENCE_##name,
enum gd_preference_parameter { GD_PREFERENCE_PARAMETER_LIST(GD_PREFERENCE_PARAMETER_ENUM) GD_PREFERENCE_PARAMETERS };
#undef GD_PREFERENCE_PARAMETER_ENUM
const char *gd_preference_parameter_name(enum gd_preference_parameter parameter);

/* Sums over the answer's tokens: a = log p(chosen), b = log p(rejected) under the model, a0, b0 under the reference
 * (0 for losses without one); tokens of each answer. */
struct gd_pair {
    double chosen, rejected, reference_chosen, reference_rejected;
    double chosen_tokens, rejected_tokens;
};

struct gd_pair_loss {
    double loss;
    double chosen, rejected; /* d loss / d a, d loss / d b */
};

struct gd_preference_range {
    bool taken;
    double min, max, fallback;
};

struct gd_preference_loss {
    const char *name;
    const char *alias;          /* TRL's name where it differs, or NULL */
    const char *paper;
    bool reference;             /* compares with the model without its graft */
    bool per_token;             /* rewards are means over tokens */
    enum gd_preference_parameter scale; /* what rewards are multiplied by */
    void (*evaluate)(const double *parameter, const struct gd_pair *pair, struct gd_pair_loss *out);
    struct gd_preference_range range[GD_PREFERENCE_PARAMETERS];
};

extern const struct gd_preference_loss gd_preference_table[];
extern const int gd_preference_count;
const struct gd_preference_loss *gd_preference_find(const char *name); /* by name or alias; or NULL */

/* A loss with its parameters. */
struct gd_preference {
    const struct gd_preference_loss *loss;
    double parameter[GD_PREFERENCE_PARAMETERS]; /* 0 where the loss takes none */
};
void gd_preference_default(struct gd_preference *preference, const struct gd_preference_loss *loss);
/* {"loss": NAME, its parameters by name, "hyperparameters": ignored here}. */
GD_MUST_CHECK bool gd_preference_parse(struct gd_preference *preference, const cJSON *object, const char *path,
                                       struct gd_error *err);
/* The same members, resolved, into `object`. */
void gd_preference_add_json(const struct gd_preference *preference, cJSON *object);

/* The loss itself plus nll_weight * -a / tokens. */
void gd_preference_evaluate(const struct gd_preference *preference, const struct gd_pair *pair, struct gd_pair_loss *out);

/* Sums over pairs; the trainer divides them. */
struct gd_preference_sums {
    int64_t pairs, preferred;   /* preferred: reward of the chosen answer above the other's; a tie is not */
    double reward_chosen, reward_rejected, logp_chosen, logp_rejected;
};

/* One micro-batch: segment 2i is the chosen answer of pair i, 2i + 1 the rejected one. */
struct gd_preference_batch {
    const struct gd_preference *preference;
    int pairs;
    double scale;               /* of each pair's loss: 1 / pairs of the optimiser step */
    int32_t tokens[GD_PREFERENCE_SEGMENTS];  /* labelled tokens of each segment */
    float reference[GD_PREFERENCE_SEGMENTS]; /* log p of each segment under the reference */
    struct gd_preference_sums sums;          /* out */
};
/* For struct gd_segment_loss: logp of each segment -> the batch's loss and its gradient. */
double gd_preference_batch_evaluate(void *batch, const float *logp, int64_t segments, float *gradient);

#endif
