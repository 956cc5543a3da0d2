/*
 * parallel.c - a bottleneck beside the feed-forward part (He et al. 2022); defaults as AdapterHub's par_bn.
 */
#include "engine/adapter/bottleneck.h"

static const struct gd_adapter_option options[] = {GD_BOTTLENECK_OPTIONS(2, GD_ACTIVATION_RELU, 4, 0, "mlp")};

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_parallel = {
    .name = "parallel",
    .peft_type = "PARALLEL",
    .paper = "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning",
    .help = "Puts a bottleneck with a non-linearity beside the feed-forward part of each layer.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "adapter_down.weight",
    .peft_fields = "{\"modules_to_save\": null}",
    .refused = refused,
    .create = gd_bottleneck_create,
    .init = gd_bottleneck_init,
    .block = gd_bottleneck_parallel,
    .wear = gd_bottleneck_wear_parallel,
};
