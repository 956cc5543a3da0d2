/*
 * ia3.c - (IA)^3 (Liu et al. 2022): y = l * (W x + b), l [out]; in feed-forward modules y = W (l * x) + b, l [in].
 * l starts at 1, so the start is the base. out (or in) numbers a module.
 */
#include "engine/adapter/build.h"
#include "engine/tensor/ops.h"

static const struct gd_adapter_option options[] = {
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "k_proj,v_proj,down_proj",
     .help = "Linear modules to rescale: names, dotted suffixes, or \"all-linear\"."},
    {.name = "feedforward_modules", .type = GD_OPTION_MODULES, .modules = "down_proj",
     .help = "Those of target_modules whose inputs are rescaled instead of their outputs; an empty list: none."},
};

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_modules *inputs = gd_adapter_modules(&graft->config, "feedforward_modules");
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    if (inputs->count > 0 && gd_graft_choose(graft, GD_SITE_LINEAR, "feedforward_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++)
        graft->site_param[i] = -1;
    if (gd_graft_choose(graft, GD_SITE_LINEAR, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        bool input = gd_modules_match(inputs, &sites[i]);
        if (graft->site_param[i] < 0) {
            if (input)
                return gd_fail_param(err, GD_INVALID, "adapter.feedforward_modules",
                                     "feedforward_modules names %s, which is not among target_modules: add it there, or give the list that is meant", sites[i].name);
            continue;
        }
        graft->site_param[i] = graft->param_count;
        gd_graft_add(graft, true, sites[i].name, "ia3_l", input ? 1 : sites[i].out, input ? sites[i].in : 1)->flat = true;
    }
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    for (int64_t i = 0; i < graft->parameter_count; i++)
        block[i] = 1.0f;
}

static bool scales_input(const struct gd_graft *graft, const struct gd_site *site)
{
    return gd_modules_match(gd_adapter_modules(&graft->config, "feedforward_modules"), site);
}

static struct gd_value *linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params)
{
    if (scales_input(training->graft, site))
        return gd_site_linear_base(g, gd_mul_row(g, x, params[0]), w, bias);
    return gd_mul_row(g, gd_site_linear_base(g, x, w, bias), params[0]);
}

static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    *(scales_input(graft, site) ? &part->in_scale : &part->out_scale) = graft->block + params[0].offset;
}

static const char *const refused[] = {"fan_in_fan_out", "modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_ia3 = {
    .name = "ia3",
    .peft_type = "IA3",
    .paper = "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    .help = "Rescales keys, values and the inputs of the feed-forward down projection by learned vectors.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "ia3_l",
    .peft_fields = "{\"fan_in_fan_out\": false, \"init_ia3_weights\": true, \"modules_to_save\": null}",
    .refused = refused,
    .create = create,
    .init = init,
    .linear = linear,
    .wear = wear,
};
