/*
 * attached.h - an eval that belongs to a fine-tuning job, as its evaluation.evals has it.
 *
 * Why      The server refuses at submission what the worker could not run at a checkpoint.
 * Memory   Owns spec and source; borrows the JSON.
 * Threads  Any.
 * Errors   Those of gd_eval_spec_parse and gd_eval_source_parse, with err->param below `path`.
 * Limits   theirs
 * Life     parse -> (open the source) -> release, also after a failed parse.
 *
 *   {name, data_source_config, testing_criteria, data_source, max_items}
 *   {name, eval_id, data_source, max_items}     the server adds the stored eval's data_source_config and testing_criteria
 *
 * data_source is that of a run, without `model`: the checkpoint answers.
 */
#ifndef GD_EVAL_ATTACHED_H
#define GD_EVAL_ATTACHED_H

#include "engine/eval/source.h"

/* The id that stands for the checkpoint among the eval's models. */
#define GD_ATTACHED_MODEL "@checkpoint"

struct gd_attached_eval {
    const char *name;            /* in the JSON */
    int64_t max_items;           /* the first so many; GD_EVAL_ITEMS_MAX: all */
    struct gd_eval_spec spec;
    struct gd_eval_source *source;
};
GD_MUST_CHECK bool gd_attached_eval_parse(struct gd_attached_eval *eval, const cJSON *json, const char *path, struct gd_error *err);
void gd_attached_eval_release(struct gd_attached_eval *eval);

#endif
