/*
 * ln_tuning.c - norm tuning (Zhao et al. 2023): the weights of norms are trained, everything else is frozen. The start is
 * the base's own weight, the file holds the new one. `width` numbers a norm.
 */
#include "engine/adapter/build.h"
#include "engine/tensor/ops.h"

static const struct gd_adapter_option options[] = {
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "input_layernorm,post_attention_layernorm,norm",
     .help = "Norms to train: names or dotted suffixes."},
};

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_norm_sites(graft->model, &sites);
    if (gd_graft_choose(graft, GD_SITE_NORM, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        int *first = &graft->site_param[gd_slot_of(graft->model, &sites[i])];
        if (*first < 0)
            continue;
        *first = graft->param_count;
        struct gd_graft_param *weight = gd_graft_add(graft, true, sites[i].name, "ln_tuning_layers.weight", sites[i].out, 1);
        weight->rank = 1;
        weight->flat = true;
    }
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    for (int slot = 0; slot < gd_slot_count(graft->model); slot++)
        if (graft->site_param[slot] >= 0)
            gd_weight_row_f32(gd_slot_site(graft->model, slot)->weight, 0, block + graft->params[graft->site_param[slot]].offset);
}

static struct gd_value *norm(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                             struct gd_value *x, struct gd_value *w, double eps, struct gd_value *const *params)
{
    return gd_rms_norm(g, x, params[0], eps);
}

static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    part->norm = graft->block + params[0].offset;
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_ln_tuning = {
    .name = "ln_tuning",
    .peft_type = "LN_TUNING",
    .paper = "Zhao et al. 2023, Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
    .help = "Trains the weights of the norms.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "ln_tuning_layers.weight",
    .peft_fields = "{\"modules_to_save\": null}",
    .refused = refused,
    .create = create,
    .init = init,
    .norm = norm,
    .wear = wear,
};
