/*
 * vera.c - VeRA (Kopiczko et al. 2024): y = W x + b * (B (d * (A dropout(x)))), * by element. A [r, widest in] and
 * B [widest out, r] are random, frozen and shared by all modules, each of which uses A's first `in` columns and B's first
 * `out` rows; a module's own are d [r], at d_initial, and b [out], at 0, so the start is the base. r + out numbers a module.
 * A and B are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as kaiming-uniform(sqrt 5), and travel with the file.
 */
#include "engine/adapter/build.h"
#include "engine/tensor/ops.h"

#include <math.h>

static const struct gd_adapter_option options[] = {
    {.name = "r", .type = GD_OPTION_INT, .min = 1, .max = GD_WEAR_RANK_MAX, .fallback = 256, .peft_fallback = 256,
     .help = "Rank of the shared random projections."},
    {.name = "d_initial", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .min = 1e-6, .max = 10, .fallback = 0.1,
     .help = "Start of the vector between the projections."},
    {.name = "vera_dropout", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 0.95,
     .help = "Part of the inputs of the update that training zeroes."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "all-linear",
     .help = "Linear modules to adapt: names, dotted suffixes, or \"all-linear\"."},
};

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites), in = 0, out = 0;
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r");
    if (gd_graft_choose(graft, GD_SITE_LINEAR, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        graft->site_param[i] = graft->param_count;
        in = sites[i].in > in ? sites[i].in : in;
        out = sites[i].out > out ? sites[i].out : out;
        struct gd_graft_param *d = gd_graft_add(graft, true, sites[i].name, "vera_lambda_d", r, 1);
        d->rank = 1;
        d->flat = true;
        struct gd_graft_param *b = gd_graft_add(graft, true, sites[i].name, "vera_lambda_b", sites[i].out, 1);
        b->rank = 1;
        b->flat = true;
    }
    gd_graft_add(graft, false, NULL, "vera_A", r, in)->transposed = true; /* so that its first columns are one piece */
    gd_graft_add(graft, false, NULL, "vera_B", out, r);
    graft->scale = 1.0;
    graft->dropout = gd_adapter_value(&graft->config, "vera_dropout");
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    const struct gd_graft_param *a = &graft->params[graft->param_count], *b = a + 1;
    float start = (float)gd_adapter_value(&graft->config, "d_initial");
    for (int p = 0; p < graft->param_count; p++) {
        float *values = block + graft->params[p].offset;
        for (int64_t i = 0; i < graft->params[p].shape[0]; i++)
            values[i] = p % 2 == 0 ? start : 0.0f;
    }
    gd_fill_uniform(block + a->offset, a->shape[0] * a->shape[1], 1.0f / sqrtf((float)a->shape[1]), seed, 0);
    gd_fill_uniform(block + b->offset, b->shape[0] * b->shape[1], 1.0f / sqrtf((float)b->shape[1]), seed, 1);
}

static struct gd_value *linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params)
{
    const struct gd_graft_param *shared = &training->graft->params[training->graft->param_count];
    enum gd_dtype act = gd_graph_act(g);
    struct gd_value *y = gd_graft_base(training, g, x, w, bias);
    if (training->dropout_key != NULL)
        x = gd_dropout(g, x, training->dropout_key, training->graft->dropout, site->index);
    struct gd_value *u = gd_matmul(g, x, false, gd_graft_view(training, g, &shared[0], site->in), false, 1.0, NULL, act);
    u = gd_mul_row(g, u, params[0]);
    u = gd_matmul(g, u, false, gd_graft_view(training, g, &shared[1], site->out), true, 1.0, NULL, act);
    return gd_add(g, y, gd_mul_row(g, u, params[1]));
}

static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    const struct gd_graft_param *shared = &graft->params[graft->param_count];
    int64_t r = shared[0].shape[0], in = shared[0].shape[1];
    if (graft->derived_count == 0) { /* A as it stands in the file */
        float *a = gd_graft_derive(graft, r * in);
        for (int64_t i = 0; i < in; i++)
            for (int64_t j = 0; j < r; j++)
                a[j * in + i] = graft->block[shared[0].offset + i * r + j];
    }
    part->rank = (int)r;
    part->scale = 1.0f;
    part->a = graft->derived[0];
    part->a_row = in;
    part->mid = graft->block + params[0].offset;
    part->b = graft->block + shared[1].offset;
    part->b_scale = graft->block + params[1].offset;
}

static const char *const refused[] = {"fan_in_fan_out", "modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_vera = {
    .name = "vera",
    .peft_type = "VERA",
    .paper = "Kopiczko et al. 2024, VeRA: Vector-based Random Matrix Adaptation",
    .help = "Adds a product of two shared random matrices, of which each module learns two scaling vectors.",
    .options = options,
    .option_count = GD_COUNT(options),
    .shares_pass = true,
    .anchor = "vera_lambda_b",
    .peft_fields = "{\"projection_prng_key\": 0, \"save_projection\": true, \"fan_in_fan_out\": false, \"bias\": \"none\", "
                   "\"init_weights\": true, \"modules_to_save\": null, \"layers_to_transform\": null, \"layers_pattern\": null}",
    .refused = refused,
    .create = create,
    .init = init,
    .linear = linear,
    .wear = wear,
};
