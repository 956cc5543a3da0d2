/*
 * models.h - what a model id means: a base in the models folder, or a tuned model of a project.
 *
 * Why      Requests name models; the worker needs paths. Ids are looked up here and never become paths themselves.
 * Memory   gd_models owns its bases; a gd_model_ref given to a callback is borrowed for the call.
 * Threads  Loop thread.
 * Errors   GD_NOT_FOUND (wire code model_not_found is the route's business) naming the id and where it was looked for.
 * Limits   GD_MODELS_MAX bases.
 * Life     gd_models_open -> find / resolve ... -> gd_models_destroy.
 *
 * A base is a subfolder of the models folder with a config.json (id: its name) or a file NAME.gguf (id: NAME). The folder
 * is looked at again when it changes, at most once a second.
 */
#ifndef GD_SERVER_MODELS_H
#define GD_SERVER_MODELS_H

#include "engine/base/json.h"
#include <stdint.h>

#define GD_MODELS_MAX 4096

struct gd_app;
struct gd_models;

struct gd_base_model {
    char *id;
    char *path;        /* absolute: folder, or .gguf file */
    int64_t created;
};

GD_MUST_CHECK bool gd_models_open(struct gd_models **out, const char *folder, struct gd_error *err);
void gd_models_destroy(struct gd_models *models);
/* Borrowed until the next call into gd_models. NULL if there is none. */
const struct gd_base_model *gd_models_find(struct gd_models *models, const char *id);
int gd_models_count(struct gd_models *models);
const struct gd_base_model *gd_models_at(const struct gd_models *models, int index); /* sorted by id */

struct gd_model_ref {
    const char *id;
    const char *base_model;
    const char *base_path;
    const char *parent;       /* what it was tuned from: a tuned model, or base_model; NULL for a base */
    const char *adapter_path; /* absolute; NULL: the base itself */
    const char *job_id;       /* NULL for a base */
    int64_t created;
};
/* Calls `found` exactly once: with a ref, or NULL and an error (GD_NOT_FOUND for an unknown id and for a tuned model of
 * another project). For a base it is called before this returns; for a tuned model later, on the loop. */
typedef void (*gd_model_found)(void *context, const struct gd_model_ref *ref, const struct gd_error *err);
void gd_models_resolve(struct gd_app *app, const char *project, const char *id, gd_model_found found, void *context);

/* model_id, model_path and adapter_path (null: the base itself), as messages to workers name a model. */
void gd_model_ref_name(const struct gd_model_ref *ref, cJSON *message);

/* models: [{id, base_id, folder (of the adapter, below the data folder) or null}], as jobs keep those that their evals ask: each gets
 * base_path and adapter_path, as the worker reads them. GD_NOT_FOUND: a base is gone. Loop thread. */
GD_MUST_CHECK bool gd_models_place(const struct gd_app *app, cJSON *models, struct gd_error *err);

#endif
