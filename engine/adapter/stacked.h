/*
 * stacked.h - LoRAs of stacked experts, as PEFT writes them from transformers 5, as those of one module for each expert.
 *
 * Why      There a layer's experts are two parameters, gate_up_proj [E, 2f, d] and down_proj [E, d, f] ("target_parameters"); here, and
 *          in older files, each linear map of each expert is a module.
 * Memory   The tensors once more, in f32; a file that has no name any more, as long as it is open.
 * Threads  engine thread
 * Errors   GD_BAD_MODEL naming the tensor; GD_UNSUPPORTED naming what is not understood; those of files
 * Limits   none
 * Life     inside gd_graft_read
 */
#ifndef GD_ADAPTER_STACKED_H
#define GD_ADAPTER_STACKED_H

#include "engine/adapter/adapter.h"
#include "engine/model/safetensors.h"

/* Whether the adapter's config says so. */
bool gd_stacked_is(const struct gd_model *model, const cJSON *config);
/* Replaces *file, and in `config` what describes it: ranks that differ become the largest, with zeros, and scales are folded into B. */
GD_MUST_CHECK bool gd_stacked_unfold(const struct gd_model *model, cJSON *config, struct gd_safetensors **file, struct gd_error *err);

#endif
