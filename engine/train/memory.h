/*
 * memory.h - what a job needs, part by part, before it begins; and what would fit where it does not.
 *
 * Why      A job that cannot fit is refused when it is submitted, with the numbers and the way out, and not after an hour.
 * Memory   A plain structure.
 * Threads  engine thread
 * Errors   those of building the graphs; GD_NO_ROOM from gd_job_memory_check.
 * Limits   none
 * Life     plan (dry: nothing large is made) -> check -> the run -> set peak.
 *
 * A job has its activations while it trains, or what evaluation and read-back need, never both: its arena rests meanwhile.
 *   total = all other parts + max(activations + head, evaluation + kv_cache)
 */
#ifndef GD_TRAIN_MEMORY_H
#define GD_TRAIN_MEMORY_H

#include "engine/train/passes.h"
#include "engine/train/spec.h"

#define GD_MEMORY_LIST(X)                                                                                              \
    X(WEIGHTS, "weights")           /* the base's, laid out for products, or quantised */                              \
    X(MODEL_FILE, "model_file")     /* of the mapped file: what goes on being read */                                  \
    X(ADAPTER, "adapter")           /* parameters */                                                                   \
    X(GRADIENTS, "gradients")       /* of a micro-batch, and the leaves' sums */                                       \
    X(OPTIMIZER, "optimizer")       /* moments */                                                                      \
    X(REFERENCE, "reference")       /* parameters that the job started from, where the loss needs them */              \
    X(ACTIVATIONS, "activations")   /* of the largest micro-batch, forward and backward */                             \
    X(HEAD, "head")                 /* vocabulary product and loss, where memory is fullest */                         \
    X(EVALUATION, "evaluation")     /* the largest of: validation pass, copies while a result is written, serving it */\
    X(KV_CACHE, "kv_cache")         /* of attached evals and read-back */                                              \
    X(DATA, "data")                 /* tokens, batches */                                                              \
    X(PROCESS, "process")           /* program, libraries and their scratch, tokenizer, graphs */

#define GD_MEMORY_ENUM(name, wire) GD_MEMORY_##name,
enum gd_memory_part { GD_MEMORY_LIST(GD_MEMORY_ENUM) GD_MEMORY_PARTS };
#undef GD_MEMORY_ENUM

struct gd_job_memory {
    size_t part[GD_MEMORY_PARTS];
    size_t total, limit;
    size_t peak;                 /* measured; 0: not yet */
    enum gd_checkpointing checkpointing; /* as asked or because it is needed; never AUTO */
    size_t without;              /* activations and head with less of it, where it is needed; else 0 */
};

/* What is known of the rows. */
struct gd_memory_shape {
    int longest;                 /* rows of the longest row that is trained, with virtual ones */
    int64_t step_tokens;         /* of all rows together: no micro-batch has more */
    int valid, surveyed;         /* the longest of the validation file, and of rows that losses look at besides; or 0 */
    size_t data_bytes;
    size_t embedding_bytes;      /* of the mapped table that reading their tokens touches (gd_model_touched_bytes) */
};

/* What the process brings. */
struct gd_memory_room {
    size_t limit;                /* 0: gd_memory_bytes() */
    size_t serving, kv_cache;    /* of read-back and attached evals (gd_infer_estimate) */
    struct gd_layout_cost serving_weights; /* layouts that they need */
    struct gd_layout_cost few_weights; /* and for GD_FEW_ROWS at a time */
    bool serving_apart;          /* in another dtype than the job's: none of these is the job's too */
    bool serving_stays;          /* evals run between steps, and what they need stays */
};

/* model, or a model of the same files that is kept otherwise: weights count as the spec's quantization has them. The spec's auto
 * values are resolved. */
GD_MUST_CHECK bool gd_job_memory_plan(struct gd_job_memory *out, const struct gd_model *model, const struct gd_graft *graft,
                                      const struct gd_job_spec *spec, const struct gd_memory_shape *shape,
                                      const struct gd_memory_room *room, struct gd_error *err);
/* What of the request could be less, each alone: 0: no value of it alone is enough. */
struct gd_memory_advice {
    int batch_size, tokens_per_batch, max_length, r;
};
void gd_job_memory_advise(struct gd_memory_advice *advice, const struct gd_model *model, const struct gd_job_spec *spec,
                          const struct gd_memory_shape *shape, const struct gd_memory_room *room);
/* GD_NO_ROOM with the parts and the advice, where the job does not fit. */
GD_MUST_CHECK bool gd_job_memory_check(const struct gd_job_memory *memory, const struct gd_memory_advice *advice, struct gd_error *err);

/* Of a micro-batch: tokens of the largest. */
int gd_memory_largest(const struct gd_job_spec *spec, const struct gd_memory_shape *shape);
/* {"weights_bytes", ..., "total_bytes", "limit_bytes", "peak_bytes" (null until measured), "gradient_checkpointing"} */
cJSON *gd_job_memory_json(const struct gd_job_memory *memory);
/* {"batch_size", "tokens_per_batch", "max_length", "r"}, null where nothing of it helps. */
cJSON *gd_memory_advice_json(const struct gd_memory_advice *advice);

/* What the spec asks for and the device is good at: GD_F32 or GD_BF16. */
enum gd_dtype gd_job_act(const struct gd_job_spec *spec);
const struct gd_objective *gd_job_objective(const struct gd_job_spec *spec);

#endif
