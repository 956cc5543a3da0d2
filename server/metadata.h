/*
 * metadata.h - the `metadata` that clients hang on jobs, evals and runs.
 *
 * Why      OpenAI's bounds are the same everywhere.
 * Memory   *out is the caller's.
 * Threads  Any; pure.
 * Errors   GD_INVALID with err->param "metadata" or "metadata.KEY".
 * Limits   16 pairs, keys of 64 characters, values of 512
 * Life     none
 */
#ifndef GD_SERVER_METADATA_H
#define GD_SERVER_METADATA_H

#include "engine/base/json.h"

/* The member `metadata` of body as JSON text; unchanged if there is none. */
GD_MUST_CHECK bool gd_metadata_read(const cJSON *body, char **out, struct gd_error *err);

#endif
