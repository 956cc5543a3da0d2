/*
 * bitfit.c - BitFit (Ben Zaken et al. 2022): the biases of linear modules are trained, everything else is frozen. Bases of the
 * Llama family have few or none; bitfit_add gives modules without one a bias that starts at zero, so the start is the base.
 * `out` numbers a module.
 */
#include "engine/adapter/picks.h"

static const struct gd_adapter_option options[] = {
    {.name = "target_modules", .type = GD_OPTION_MODULES, .use = GD_OPTION_TRAINS, .min = 1, .modules = "all-linear",
     .help = "Linear modules whose biases are trained: names, dotted suffixes, or \"all-linear\"."},
    {.name = "bitfit_add", .type = GD_OPTION_BOOL, .use = GD_OPTION_TRAINS, .fallback = 1,
     .help = "Give modules without a bias one that starts at zero; false: train the base's own biases only."},
};

static bool choose(struct gd_graft *graft, const struct gd_graft_source *source, struct gd_error *err)
{
    graft->picks = gd_picks_create(graft->model);
    if (source->file != NULL)
        return gd_picks_read(graft, source->file, err);
    if (!gd_picks_choose(graft, GD_SITE_LINEAR, "target_modules", false, true, 0, graft->model->config.layers - 1, err))
        return false;
    if (gd_adapter_value(&graft->config, "bitfit_add") != 0)
        return true;
    for (int slot = 0; slot < graft->picks->slots; slot++)
        if (gd_slot_site(graft->model, slot)->bias == NULL)
            graft->picks->tensor[slot][GD_PICKED_BIAS].pick = GD_PICK_NONE;
    if (gd_picks_numbers(graft) == 0)
        return gd_fail_param(err, GD_INVALID, "adapter.bitfit_add",
                             "bitfit_add is false, and the base has no bias at target_modules: leave bitfit_add true to add biases "
                             "that start at zero, or use adapter type 'ln_tuning'");
    return true;
}

static const char *const refused[] = {NULL};

const struct gd_adapter_method gd_adapter_bitfit = {
    .name = "bitfit",
    .peft_type = "BITFIT",
    .paper = "Ben Zaken et al. 2022, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
    .help = "Trains the biases of linear modules; where the base has none, ones that start at zero.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "bias",
    .peft_fields = "{}",
    .refused = refused,
    .choose = choose,
    .create = gd_picks_declare,
    .init = gd_picks_init,
    .linear = gd_picks_linear,
    .wear = gd_picks_wear,
};
