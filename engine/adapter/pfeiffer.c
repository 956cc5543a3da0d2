/*
 * pfeiffer.c - a serial bottleneck after the feed-forward part only (Pfeiffer et al. 2021); defaults as AdapterHub's
 * seq_bn.
 */
#include "engine/adapter/bottleneck.h"

static const struct gd_adapter_option options[] = {GD_BOTTLENECK_OPTIONS(16, GD_ACTIVATION_RELU, 1, 1, "mlp")};

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_pfeiffer = {
    .name = "pfeiffer",
    .peft_type = "PFEIFFER",
    .paper = "Pfeiffer et al. 2021, AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
    .help = "Puts a bottleneck with a non-linearity behind the feed-forward part of each layer.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "adapter_down.weight",
    .peft_fields = "{\"modules_to_save\": null}",
    .refused = refused,
    .create = gd_bottleneck_create,
    .init = gd_bottleneck_init,
    .block = gd_bottleneck_serial,
    .wear = gd_bottleneck_wear_serial,
};
