/*
 * houlsby.c - serial bottlenecks after attention and after the feed-forward part (Houlsby et al. 2019); defaults as
 * AdapterHub's double_seq_bn.
 */
#include "engine/adapter/bottleneck.h"

static const struct gd_adapter_option options[] = {GD_BOTTLENECK_OPTIONS(16, GD_ACTIVATION_SILU, 1, 1, "self_attn,mlp")};

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_houlsby = {
    .name = "houlsby",
    .peft_type = "HOULSBY",
    .paper = "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP",
    .help = "Puts a bottleneck with a non-linearity behind attention and behind the feed-forward part of each layer.",
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
