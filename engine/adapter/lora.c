/*
 * lora.c - LoRA (Hu et al. 2021): y = W x + s B A dropout(x), s = lora_alpha / r, or lora_alpha / sqrt(r) with
 * rsLoRA (Kalajdzievski 2023). A is kaiming-uniform(sqrt 5), that is U(-1/sqrt(in), 1/sqrt(in)); B is zero, so the start
 * is the base; "gaussian" draws A from N(0, 1/r^2) as PEFT does, "pissa" is in lora_pissa.c. LoRA+ (Hayou et al. 2024): B learns loraplus_lr_ratio
 * times as fast as A. r (in + out) numbers a module, and out more with DoRA (lora_dora.c), r more with KaSA
 * (lora_kasa.c).
 */
#include "engine/adapter/lora.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <string.h>

static const char *const inits[] = {[GD_LORA_TRUE] = "true", [GD_LORA_GAUSSIAN] = "gaussian", [GD_LORA_PISSA] = "pissa", NULL};

static const char *const reductions[] = {[GD_KASA_MEAN] = "mean", [GD_KASA_SUM] = "sum", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "r", .type = GD_OPTION_INT, .min = 1, .max = GD_WEAR_RANK_MAX, .fallback = 16, .peft_fallback = 8,
     .help = "Rank of the update; at most the smaller side of each module."},
    {.name = "lora_alpha", .type = GD_OPTION_NUMBER, .min = 1e-6, .max = 1e6, .fallback = 2, .times = "r", .peft_fallback = 8,
     .help = "The update is scaled by lora_alpha / r."},
    {.name = "lora_dropout", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 0.95,
     .help = "Part of the inputs of the update that training zeroes."},
    {.name = "use_rslora", .type = GD_OPTION_BOOL, .help = "Scale by lora_alpha / sqrt(r) instead (rsLoRA)."},
    {.name = "use_dora", .type = GD_OPTION_BOOL,
     .help = "Learn the lengths of the rows of the changed weight apart from their directions (DoRA)."},
    {.name = "init_lora_weights", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = inits,
     .help = "Start: true has A uniform within 1/sqrt(in) and \"gaussian\" normal with deviation 1/r, B at zero; \"pissa\" takes "
             "the base's largest singular directions, and is kept as a LoRA of twice the rank."},
    {.name = "use_kasa", .type = GD_OPTION_BOOL, .use = GD_OPTION_OURS,
     .help = "Leave out the base's r smallest singular directions, and learn a diagonal between A and B (KaSA)."},
    {.name = "kasa_beta", .type = GD_OPTION_NUMBER, .use = GD_OPTION_OURS, .max = 1e6, .fallback = 1e-4,
     .help = "KaSA: weight of the diagonal's squares in the loss."},
    {.name = "kasa_gamma", .type = GD_OPTION_NUMBER, .use = GD_OPTION_OURS, .max = 1e6, .fallback = 1e-3,
     .help = "KaSA: weight of the distance of A and B from orthonormal rows and columns in the loss."},
    {.name = "kasa_reduction", .type = GD_OPTION_CHOICE, .use = GD_OPTION_OURS, .choices = reductions,
     .help = "KaSA: the mean over modules of these terms, or their sum, as PEFT has it."},
    {.name = "loraplus_lr_ratio", .type = GD_OPTION_NUMBER, .use = GD_OPTION_OURS, .min = 1e-3, .max = 1e3, .fallback = 1,
     .help = "B learns at this multiple of A's rate (LoRA+; about 16)."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "all-linear",
     .help = "Linear modules to adapt: names, dotted suffixes, or \"all-linear\"."},
};

static bool check_variants(const struct gd_adapter_config *config, struct gd_error *err)
{
    bool pissa = gd_adapter_value(config, "init_lora_weights") == GD_LORA_PISSA, kasa = gd_lora_is_kasa(config);
    if (!pissa && !kasa)
        return true;
    if (kasa && (pissa || gd_adapter_value(config, "use_dora") != 0))
        return gd_fail_param(err, GD_INVALID, pissa ? "adapter.init_lora_weights" : "adapter.use_dora", "KaSA goes neither with "
                             "use_dora nor with the start \"pissa\": leave one of them out");
    if (gd_adapter_value(config, "use_dora") != 0)
        return gd_fail_param(err, GD_INVALID, "adapter.use_dora", "use_dora and the start \"pissa\" do not go together: magnitudes "
                             "are lost when PiSSA is kept as a plain LoRA; leave one of them out");
    if (gd_adapter_value(config, "r") > GD_WEAR_RANK_MAX / 2)
        return gd_fail_param(err, GD_INVALID, "adapter.r", "with %s r is at most %d, because it is served as a product of rank 2 r",
                             kasa ? "KaSA" : "the start \"pissa\"", GD_WEAR_RANK_MAX / 2);
    return true;
}

/* KaSA leaves something of every weight. */
static bool check_left(const struct gd_site *site, int64_t r, struct gd_error *err)
{
    int limit = (site->in < site->out ? site->in : site->out) - 1;
    if (r <= limit)
        return true;
    return gd_fail_param(err, GD_INVALID, "adapter.r", "KaSA leaves out r = %d singular directions of %s, which has %d: r is at most %d",
                         (int)r, site->name, limit + 1, limit);
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r");
    bool kasa = gd_lora_is_kasa(&graft->config);
    double alpha = gd_adapter_value(&graft->config, "lora_alpha"), ratio = gd_adapter_value(&graft->config, "loraplus_lr_ratio");
    if (!check_variants(&graft->config, err) || gd_graft_choose(graft, GD_SITE_LINEAR, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        if (!gd_graft_check_rank(graft, &sites[i], r, err) || (kasa && !check_left(&sites[i], r, err)))
            return false;
        graft->site_param[i] = graft->param_count;
        gd_graft_add(graft, true, sites[i].name, "lora_A.weight", r, sites[i].in);
        gd_graft_add(graft, true, sites[i].name, "lora_B.weight", sites[i].out, r)->rate = ratio;
        if (gd_adapter_value(&graft->config, "use_dora") != 0)
            gd_lora_dora_add(graft, &sites[i], ratio);
        if (kasa)
            gd_lora_kasa_add(graft, &sites[i], ratio);
    }
    for (int i = 0; i < site_count && kasa; i++)
        if (graft->site_param[i] >= 0)
            gd_lora_kasa_add_dropped(graft, &sites[i]);
    for (int i = 0; i < site_count && gd_adapter_value(&graft->config, "init_lora_weights") == GD_LORA_PISSA; i++)
        if (graft->site_param[i] >= 0)
            gd_lora_pissa_add(graft, &sites[i]);
    graft->scale = gd_adapter_value(&graft->config, "use_rslora") != 0 ? alpha / sqrt((double)r) : alpha / (double)r;
    graft->dropout = gd_adapter_value(&graft->config, "lora_dropout");
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    if (gd_adapter_value(&graft->config, "init_lora_weights") == GD_LORA_PISSA) {
        gd_lora_pissa_init(graft, block);
        return;
    }
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    bool gaussian = gd_adapter_value(&graft->config, "init_lora_weights") == GD_LORA_GAUSSIAN;
    uint32_t stream = 0;
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        const struct gd_graft_param *a = &graft->params[graft->site_param[i]];
        int64_t count = a->shape[0] * a->shape[1];
        if (gaussian)
            gd_fill_normal(block + a->offset, count, 1.0f / (float)a->shape[0], seed, stream++);
        else
            gd_fill_uniform(block + a->offset, count, 1.0f / sqrtf((float)a->shape[1]), seed, stream++);
    }
    if (gd_adapter_value(&graft->config, "use_dora") != 0)
        gd_lora_dora_init(graft, block);
    if (gd_lora_is_kasa(&graft->config))
        gd_lora_kasa_init(graft, block, seed);
}

static struct gd_value *linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params)
{
    if (gd_adapter_value(&training->graft->config, "use_dora") != 0)
        return gd_lora_dora_linear(training, g, site, x, w, bias, params);
    if (gd_lora_is_kasa(&training->graft->config))
        return gd_lora_kasa_linear(training, g, site, x, w, bias, params);
    bool pissa = gd_adapter_value(&training->graft->config, "init_lora_weights") == GD_LORA_PISSA;
    double scale = training->graft->scale;
    bool plain = w != NULL && w->kind == GD_VALUE_WEIGHT && x != NULL && x->group == NULL;
    if (plain && bias == NULL && !pissa && training->dropout_key == NULL && x != training->base_x)
        return gd_low_rank_linear(g, x, w, params[0], params[1], scale, NULL);
    struct gd_value *y = gd_graft_base(training, g, x, w, bias);
    if (pissa)
        y = gd_lora_pissa_base(training, g, site, x, y);
    if (training->dropout_key != NULL)
        x = gd_dropout(g, x, training->dropout_key, training->graft->dropout, site->index);
    if (plain)
        return gd_low_rank_linear(g, x, NULL, params[0], params[1], scale, y);
    struct gd_value *u = gd_matmul(g, x, false, params[0], true, 1.0, NULL, gd_graph_act(g));
    return gd_matmul(g, u, false, params[1], true, scale, y, gd_graph_act(g));
}

static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    part->rank = (int)params[0].shape[0];
    part->scale = (float)graft->scale;
    part->a = graft->block + params[0].offset;
    part->a_row = site->in;
    part->b = graft->block + params[1].offset;
    if (gd_adapter_value(&graft->config, "use_dora") != 0)
        gd_lora_dora_wear(graft, site, params, part);
    if (gd_lora_is_kasa(&graft->config))
        gd_lora_kasa_wear(graft, site, params, part);
}

static void derive(const struct gd_graft *graft, float *block)
{
    if (gd_lora_is_kasa(&graft->config))
        gd_lora_kasa_derive(graft, block);
}

/* These starts change the base under the adapter, so that the file alone is not enough. */
static bool check_file(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    static const char *const residual[] = {"pissa", "olora", "corda", "loftq", "lora_ga"};
    const cJSON *init = gd_json_find(json, "init_lora_weights");
    for (size_t i = 0; cJSON_IsString(init) && i < GD_COUNT(residual); i++)
        if (strncmp(init->valuestring, residual[i], strlen(residual[i])) == 0)
            return gd_fail_param(err, GD_UNSUPPORTED, "init_lora_weights",
                                 "adapter_config.json: init_lora_weights is '%.32s', and such an adapter fits only the base that its "
                                 "start left behind: convert it with PEFT's save_pretrained(..., "
                                 "path_initial_model_for_weight_conversion=...)",
                                 init->valuestring);
    return gd_lora_kasa_read(config, json, err);
}

static const char *const refused[] = {
    "use_qalora", "use_bdlora", "bias", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern",
    "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
    "arrow_config", "monteclora_config", "velora_config", NULL};

const struct gd_adapter_method gd_adapter_lora = {
    .name = "lora",
    .peft_type = "LORA",
    .paper = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models",
    .help = "Adds a product of two thin matrices to linear modules.",
    .options = options,
    .option_count = GD_COUNT(options),
    .shares_pass = true,
    .anchor = "lora_A.weight",
    .peft_fields = "{\"bias\": \"none\", \"fan_in_fan_out\": false, "
                   "\"modules_to_save\": null, \"layers_to_transform\": null, \"layers_pattern\": null, "
                   "\"rank_pattern\": {}, \"alpha_pattern\": {}}",
    .refused = refused,
    .check_file = check_file,
    .create = create,
    .init = init,
    .start = gd_lora_start,
    .linear = linear,
    .penalty = gd_lora_kasa_penalty,
    .derive = derive,
    .describe = gd_lora_kasa_describe,
    .wear = wear,
    .kept_options = gd_lora_pissa_kept_options,
    .keep = gd_lora_pissa_keep,
    .resume = gd_lora_pissa_resume,
};
