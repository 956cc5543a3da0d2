/*
 * full.c - full fine-tuning of chosen layers: weights of linear modules, their biases where the base has them, and norms are
 * trained from the base's values on, the tables (embedding, head, positions, types, distances) too if they are asked for. The numbers are those of the chosen tensors.
 */
#include "engine/adapter/picks.h"

static const struct gd_adapter_option options[] = {
    {.name = "target_modules", .type = GD_OPTION_MODULES, .use = GD_OPTION_TRAINS, .modules = "all-linear",
     .help = "Linear modules to train: names, dotted suffixes, or \"all-linear\"; an empty list: none."},
    {.name = "target_norms", .type = GD_OPTION_MODULES, .use = GD_OPTION_TRAINS, .modules = "all-norms",
     .help = "Norms to train: names, dotted suffixes, or \"all-norms\"; an empty list: none."},
    {.name = "train_biases", .type = GD_OPTION_BOOL, .use = GD_OPTION_TRAINS, .fallback = 1,
     .help = "Train the biases that the base has at the chosen linear modules."},
    {.name = "train_embeddings", .type = GD_OPTION_BOOL, .use = GD_OPTION_TRAINS,
     .help = "Train the tables too: embedding and head (one matrix where the base ties them), and where the base has them learned "
             "positions, token types and T5's distances."},
    {.name = "first_layer", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .max = GD_LAYERS_MAX - 1,
     .help = "First layer that is trained."},
    {.name = "last_layer", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .min = -1, .max = GD_LAYERS_MAX - 1, .fallback = -1,
     .help = "Last layer that is trained; -1: the model's last. The norm after the layers counts with the last one."},
    {.name = "decay_vectors", .type = GD_OPTION_BOOL, .use = GD_OPTION_TRAINS, .fallback = 1,
     .help = "Weight decay acts on norms and biases too; false: on matrices only, as transformers' Trainer has it."},
};

/* Biases that the base lacks are not made. */
static void drop_absent_biases(struct gd_graft *graft)
{
    for (int slot = 0; slot < graft->picks->slots; slot++)
        if (gd_slot_site(graft->model, slot)->bias == NULL)
            graft->picks->tensor[slot][GD_PICKED_BIAS].pick = GD_PICK_NONE;
}

static bool choose(struct gd_graft *graft, const struct gd_graft_source *source, struct gd_error *err)
{
    graft->picks = gd_picks_create(graft->model);
    graft->picks->undecayed_vectors = gd_adapter_value(&graft->config, "decay_vectors") == 0;
    if (source->file != NULL)
        return gd_picks_read(graft, source->file, err);
    const struct gd_adapter_config *config = &graft->config;
    int layers = graft->model->config.layers, first = (int)gd_adapter_value(config, "first_layer");
    int last = (int)gd_adapter_value(config, "last_layer");
    if (first >= layers || last >= layers)
        return gd_fail_param(err, GD_INVALID, first >= layers ? "adapter.first_layer" : "adapter.last_layer",
                             "layer %d does not exist: the model has layers 0 to %d", first >= layers ? first : last, layers - 1);
    last = last < 0 ? layers - 1 : last;
    if (first > last)
        return gd_fail_param(err, GD_INVALID, "adapter.first_layer", "first_layer %d lies after last_layer %d", first, last);
    if (!gd_picks_choose(graft, GD_SITE_LINEAR, "target_modules", true, gd_adapter_value(config, "train_biases") != 0, first,
                         last, err) ||
        !gd_picks_choose(graft, GD_SITE_NORM, "target_norms", true, false, first, last, err))
        return false;
    drop_absent_biases(graft);
    if (gd_adapter_value(config, "train_embeddings") != 0)
        gd_picks_choose_tables(graft);
    if (gd_picks_numbers(graft) == 0)
        return gd_fail_param(err, GD_INVALID, "adapter.target_modules",
                             "target_modules and target_norms choose nothing in layers %d to %d: name a module or a norm there, or set "
                             "train_embeddings",
                             first, last);
    return true;
}

static const char *const refused[] = {NULL};

const struct gd_adapter_method gd_adapter_full = {
    .name = "full",
    .peft_type = "FULL",
    .paper = "Han et al. 2024, Parameter-Efficient Fine-Tuning for Large Models: A Comprehensive Survey (full fine-tuning)",
    .help = "Trains the base's own weights, biases and norms in chosen layers.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "weight",
    .peft_fields = "{}",
    .refused = refused,
    .choose = choose,
    .create = gd_picks_declare,
    .init = gd_picks_init,
    .linear = gd_picks_linear,
    .norm = gd_picks_norm,
    .table = gd_picks_table,
    .wear = gd_picks_wear,
};
