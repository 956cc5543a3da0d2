/*
 * spec.h - a fine-tuning job as the engine sees it: validated, resolved, complete.
 *
 * Why      The API, `graftd run` and the trainer read one structure; nothing is defaulted twice.
 * Memory   gd_job_spec owns its strings; release with gd_job_spec_release.
 * Threads  Any.
 * Errors   GD_INVALID, GD_MISSING, GD_UNKNOWN_FIELD with OpenAI's parameter path.
 * Limits   OpenAI's ranges (batch_size 1..256, n_epochs 1..50, ...).
 * Life     parse -> (resolve, in the engine, once data and model are known) -> release.
 */
#ifndef GD_TRAIN_SPEC_H
#define GD_TRAIN_SPEC_H

#include "engine/adapter/adapter.h"
#include "engine/data/dataset.h"
#include "engine/objective/preference.h"
#include "engine/train/best.h"

enum gd_schedule { GD_SCHEDULE_CONSTANT, GD_SCHEDULE_LINEAR, GD_SCHEDULE_COSINE };

/* Layers keep only what enters them, and are made again in the backward pass. */
/* From least to most that is made again. */
enum gd_checkpointing { GD_CHECKPOINTING_AUTO, GD_CHECKPOINTING_OFF, GD_CHECKPOINTING_FEED_FORWARD, GD_CHECKPOINTING_ON };

/* Method "classification". */
struct gd_classes_spec {
    bool on;
    bool multi;                      /* "problem_type": multi_label_classification */
    struct gd_modules labels;        /* none: those of the training file */
    cJSON *weights;                  /* "class_weights": "balanced", or an object of numbers by label; NULL: every row counts as much */
};

struct gd_job_spec {
    char *model;                     /* model id: the base */
    char *init_from;                 /* the graft to start from: a tuned model's id in the API, an adapter's folder in `graftd run`;
                                      * NULL: a fresh one */
    char *training_file, *validation_file; /* file ids in the API, paths in `graftd run`; validation may be NULL */
    char *suffix;                    /* or NULL */
    int64_t seed;                    /* -1: to be picked by the server and echoed */
    char method[32];                 /* "supervised", "dpo", "preference", "reward", "classification" */
    struct gd_classes_spec classes;
    struct gd_preference preference; /* no term with supervised; dpo: the loss of that name */
    enum gd_reference reference;     /* NONE with losses that have none */
    struct gd_adapter_config adapter;
    bool adapter_given;              /* the request has it; else a start's own is gone on with */

    /* 0 / negative = "auto" until resolved */
    int batch_size;                  /* rows of an optimiser step */
    double learning_rate_multiplier; /* times the method's base rate */
    int n_epochs;

    /* extensions ("hyperparameters" members beside OpenAI's) */
    double learning_rate;            /* given directly; excludes learning_rate_multiplier */
    double weight_decay;             /* 0 */
    double adam_beta1, adam_beta2, adam_eps; /* 0.9, 0.999, 1e-8 */
    double max_grad_norm;            /* 1.0; 0 = no clipping */
    double router_aux_loss_coef;     /* of a model with experts; negative: auto, or there are none */
    enum gd_schedule schedule;       /* "lr_scheduler_type": linear */
    double warmup_ratio;             /* 0.03 */
    int max_steps;                   /* 0: from n_epochs */
    int leaf_count;                  /* "gradient_leaves": power of two; auto 1 */
    int tokens_per_batch;            /* token budget of a micro-batch; auto */
    enum gd_checkpointing gradient_checkpointing; /* auto: the least with which the job fits; a quantised base has its feed-forward parts made again */
    int eval_interval;               /* steps; auto = each epoch's end and the last step */
    int checkpoint_interval;         /* steps; auto = min(200 steps, about 5 minutes) resolved to steps at start */
    enum gd_overlong overlong;       /* data.overlong: "error" | "truncate" | "drop" */
    bool drop_incomparable;          /* data.incomparable: "error" | "drop" */
    int max_length;                  /* data.max_length: tokens; auto = the model's context */
    struct gd_evaluation evaluation; /* "evaluation": what is kept and when to stop */
    char precision[8];               /* "auto" | "f32" | "bf16" */
    enum gd_quantization quantization; /* of the frozen base in memory: "none" | "file" | "nf4" (QLoRA) */
};

/* Parses POST /v1/fine_tuning/jobs (the whole body; members that only the server uses, as metadata and integrations,
 * are checked there and skipped here). Unknown members are errors. */
GD_MUST_CHECK bool gd_job_spec_parse(struct gd_job_spec *spec, const cJSON *body, struct gd_error *err);
void gd_job_spec_release(struct gd_job_spec *spec);

/* Fills every "auto" by the documented rules (README, "Automatic values") from rows and tokens of the training file. */
GD_MUST_CHECK bool gd_job_spec_resolve(struct gd_job_spec *spec, int64_t rows, int64_t tokens, int model_width,
                                       int model_context, struct gd_error *err);
/* {"n_epochs":..,"batch_size":..,"learning_rate_multiplier":..} for the job's hyperparameters (with dpo also "beta"): "auto"
 * where unresolved, and with every extension once resolved. */
cJSON *gd_job_spec_hyperparameters(const struct gd_job_spec *spec);
/* Jobs with the same key may train side by side (job_group.h); NULL: the job trains alone. Yours to free. */
char *gd_job_spec_pass_key(const struct gd_job_spec *spec);
/* A body that parses to the same spec (checkpoints keep it; resumed jobs read it). */
cJSON *gd_job_spec_json(const struct gd_job_spec *spec);

/* true, false or "feed_forward"; not of AUTO. */
cJSON *gd_checkpointing_json(enum gd_checkpointing checkpointing);

#endif
