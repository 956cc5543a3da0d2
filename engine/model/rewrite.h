/*
 * rewrite.h - a model's files once more, with some tensors changed: the same format, names, tokenizer and template.
 *
 * Why      What is folded into the weights is a model that every other program reads.
 * Memory   One tensor at a time is in memory.
 * Threads  engine thread
 * Errors   GD_UNSUPPORTED naming what the format or the family cannot say; GD_CONFLICT when the place is taken; GD_IO, GD_DISK_FULL.
 * Limits   none
 * Life     one call
 */
#ifndef GD_MODEL_REWRITE_H
#define GD_MODEL_REWRITE_H

#include "engine/model/model.h"

/* A classifier's head, in place of whatever head the base has. */
struct gd_rewrite_tensor {
    const char *name;            /* "classifier.weight" */
    int rank;
    int64_t shape[2];
    const float *values;
};
struct gd_rewrite_head {
    struct gd_rewrite_tensor tensor[4];
    int count;
    char *const *labels;
    int label_count;
    bool multi_label;
};

struct gd_rewrite {
    void *context;
    /* Will `change` change this weight? */
    bool (*changes)(void *context, const struct gd_weight *weight);
    /* values: f32, the weight's, rows in the model's order; the new ones are left there. */
    bool (*change)(void *context, const struct gd_weight *weight, float *values, struct gd_error *err);
    /* The bias that the linear site gets although the base has none there: fills values [out] (values NULL: only
     * says so); false: it stays zero. NULL: none of the model's linear sites gets one. */
    bool (*bias)(void *context, const struct gd_site *site, float *values);
    const struct gd_rewrite_head *head; /* a folder's class becomes ...ForSequenceClassification; NULL: it stays */
};

/* A folder gives a folder at `path`, a GGUF file a file. dtype: of the changed tensors; GD_DTYPE_COUNT: as they are, bf16
 * where they are quantised. `path` must not exist; it appears whole or not at all. */
GD_MUST_CHECK bool gd_model_rewrite(const struct gd_model *model, const struct gd_rewrite *rewrite, enum gd_dtype dtype,
                                    const char *path, struct gd_error *err);

#endif
