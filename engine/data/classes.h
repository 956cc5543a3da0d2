/*
 * classes.h - what a classifier's rows are: texts or pairs of them, each with a label or, for several labels at once, a list.
 *
 * Why      Rows of a classifier have no answer to predict: what is learnt is a number of a closed set.
 * Memory   The caller owns what is filled.
 * Threads  Any.
 * Errors   GD_BAD_FILE naming line and field
 * Limits   GD_TASKS_MAX labels, names of 1 to GD_TASK_NAME_MAX bytes
 * Life     gd_labels_read -> gd_dataset_open with gd_classes ...
 */
#ifndef GD_DATA_CLASSES_H
#define GD_DATA_CLASSES_H

#include "engine/data/row.h"
#include "engine/text/tokenizer.h"

/* For the options of a dataset. */
struct gd_classes {
    const struct gd_tokenizer *tokenizer;
    const struct gd_tasks *labels;   /* by name: a row with another one is an error */
    bool multi;                      /* a row has a list of labels, maybe an empty one; else exactly one */
    bool typed;                      /* the model has token types: a second text is of type 1 */
};

/* The labels of a training file: sorted by name, or by value where all are whole numbers. */
GD_MUST_CHECK bool gd_labels_read(struct gd_tasks *labels, const char *path, bool multi, struct gd_error *err);

/* A label's name: a string, or a whole number's decimal digits. NULL: it is neither. */
const char *gd_label_name(const cJSON *label, char buffer[GD_TASK_NAME_MAX + 1]);

/* The tokens of a text or a pair within `most` tokens (0: all): what is cut is the end of the last text, before the tokens that the
 * tokenizer puts at the end. *second: where the second text begins; 0: there is none. *whole: tokens before cutting. */
GD_MUST_CHECK bool gd_text_encode(const struct gd_tokenizer *tokenizer, const char *text, const char *pair, int most,
                                  struct gd_tokens *out, int *second, int *whole, struct gd_error *err);

#endif
