/*
 * ln_tuning.c - norm tuning (Zhao et al. 2023): the weights of norms are trained, and their biases where they have them, everything
 * else is frozen. The start is the base's own values, the file holds the new ones. `width` numbers a norm.
 */
#include "engine/adapter/build.h"
#include "engine/tensor/ops.h"

static const struct gd_adapter_option options[] = {
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "input_layernorm,post_attention_layernorm,norm",
     .help = "Norms to train: names or dotted suffixes."},
};

static const char *const suffixes[] = {"ln_tuning_layers.weight", "ln_tuning_layers.bias"};

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
        for (int part = 0; part < (sites[i].bias != NULL ? 2 : 1); part++) {
            struct gd_graft_param *param = gd_graft_add(graft, true, sites[i].name, suffixes[part], sites[i].out, 1);
            param->rank = 1;
            param->flat = true;
        }
    }
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    for (int slot = 0; slot < gd_slot_count(graft->model); slot++) {
        const struct gd_site *site = gd_slot_site(graft->model, slot);
        int first = graft->site_param[slot];
        if (first < 0)
            continue;
        gd_weight_row_f32(site->weight, 0, block + graft->params[first].offset);
        if (site->bias != NULL)
            gd_weight_row_f32(site->bias, 0, block + graft->params[first + 1].offset);
    }
}

static struct gd_value *norm(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                             struct gd_value *x, struct gd_value *w, struct gd_value *bias, double eps,
                             struct gd_value *const *params)
{
    return gd_site_norm_base(g, site, x, params[0], bias != NULL ? params[1] : NULL, eps);
}

static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    part->norm = graft->block + params[0].offset;
    part->norm_bias = site->bias != NULL ? graft->block + params[1].offset : NULL;
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_ln_tuning = {
    .name = "ln_tuning",
    .peft_type = "LN_TUNING",
    .paper = "Zhao et al. 2023, Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
    .help = "Trains the weights of the norms, and their biases where they have them.",
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
