/* bottleneck.c - the module of bottleneck.h: its parameters, its start, its graph, what rows that wear it do. */
#include "engine/adapter/bottleneck.h"

#include "engine/adapter/build.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <string.h>

#define NAME(id, name) name,
const char *const gd_bottleneck_functions[] = {GD_ACTIVATION_LIST(NAME) NULL};
#undef NAME
const char *const gd_bottleneck_starts[] = {"mam_adapter", "bert", NULL};
enum { START_MAM_ADAPTER, START_BERT };

/* A module's parameters, in this order; absent ones are -1. */
struct places {
    int down, down_bias, up, up_bias, scale, count;
};

static struct places places_of(const struct gd_graft *graft)
{
    bool bias = gd_adapter_value(&graft->config, "use_bias") != 0;
    struct places at = {.down = 0, .down_bias = -1, .up_bias = -1, .scale = -1, .count = 1};
    if (bias)
        at.down_bias = at.count++;
    at.up = at.count++;
    if (bias)
        at.up_bias = at.count++;
    if (gd_adapter_value(&graft->config, "learned_scaling") != 0)
        at.scale = at.count++;
    return at;
}

static bool find_size(struct gd_graft *graft, int64_t *size, struct gd_error *err)
{
    int width = graft->model->config.width;
    double reduction = gd_adapter_value(&graft->config, "reduction_factor");
    *size = (int64_t)gd_adapter_value(&graft->config, "bottleneck_size");
    if (*size > width)
        return gd_fail_param(err, GD_INVALID, "adapter.bottleneck_size", "bottleneck_size is %lld; the model is %d wide, and a "
                             "bottleneck is at most that", (long long)*size, width);
    if (*size == 0)
        *size = (int64_t)((double)width / reduction);
    if (*size < 1 || *size > GD_WEAR_RANK_MAX)
        return gd_fail_param(err, GD_INVALID, "adapter.reduction_factor", "reduction_factor %g makes a bottleneck of %lld of the "
                             "model's width %d; 1 to %d are possible: change it, or give bottleneck_size", reduction,
                             (long long)*size, width, GD_WEAR_RANK_MAX);
    gd_adapter_set_value(&graft->config, "bottleneck_size", (double)*size);
    return true;
}

static void add_vector(struct gd_graft *graft, const char *module, const char *suffix, int64_t count)
{
    struct gd_graft_param *param = gd_graft_add(graft, true, module, suffix, count, 1);
    param->rank = 1;
    param->flat = true;
}

bool gd_bottleneck_create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_block_sites(graft->model, &sites);
    int64_t size;
    struct places at = places_of(graft);
    if (!find_size(graft, &size, err) || gd_graft_choose(graft, GD_SITE_BLOCK, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        int *first = &graft->site_param[gd_slot_of(graft->model, &sites[i])];
        if (*first < 0)
            continue;
        *first = graft->param_count;
        gd_graft_add(graft, true, sites[i].name, "adapter_down.weight", size, sites[i].in);
        if (at.down_bias >= 0)
            add_vector(graft, sites[i].name, "adapter_down.bias", size);
        gd_graft_add(graft, true, sites[i].name, "adapter_up.weight", sites[i].out, size);
        if (at.up_bias >= 0)
            add_vector(graft, sites[i].name, "adapter_up.bias", sites[i].out);
        if (at.scale >= 0)
            add_vector(graft, sites[i].name, "adapter_scaling", 1);
    }
    graft->dropout = gd_adapter_value(&graft->config, "adapter_dropout");
    return true;
}

void gd_bottleneck_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    struct places at = places_of(graft);
    bool bert = (int)gd_adapter_value(&graft->config, "init_weights") == START_BERT;
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
    for (int p = 0; p < graft->param_count; p += at.count) {
        const struct gd_graft_param *down = &graft->params[p + at.down], *up = &graft->params[p + at.up];
        int64_t count = down->shape[0] * down->shape[1];
        if (bert) {
            gd_fill_normal(block + down->offset, count, 0.02f, seed, (uint32_t)(2 * p));
            gd_fill_normal(block + up->offset, count, 0.02f, seed, (uint32_t)(2 * p + 1));
        } else {
            gd_fill_uniform(block + down->offset, count, 1.0f / sqrtf((float)down->shape[1]), seed, (uint32_t)(2 * p));
        }
        if (at.scale >= 0)
            block[graft->params[p + at.scale].offset] = (float)gd_adapter_value(&graft->config, "scaling");
    }
}

/* ---- training ---- */

static struct gd_value *module(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *const *params)
{
    const struct gd_graft *graft = training->graft;
    struct places at = places_of(graft);
    enum gd_dtype act = gd_graph_act(g);
    struct gd_value *h = gd_matmul(g, x, false, params[at.down], true, 1.0, NULL, act);
    if (at.down_bias >= 0)
        h = gd_add_row(g, h, params[at.down_bias]);
    h = gd_activation(g, h, (enum gd_activation)gd_adapter_value(&graft->config, "non_linearity"));
    h = gd_matmul(g, h, false, params[at.up], true, 1.0, NULL, act);
    if (at.up_bias >= 0)
        h = gd_add_row(g, h, params[at.up_bias]);
    h = at.scale >= 0 ? gd_mul_scalar(g, h, params[at.scale]) : gd_scale(g, h, gd_adapter_value(&graft->config, "scaling"));
    if (training->dropout_key != NULL)
        h = gd_dropout(g, h, training->dropout_key, graft->dropout, gd_slot_of(graft->model, site));
    return h;
}

static bool has_residual(const struct gd_graft *graft)
{
    return gd_adapter_value(&graft->config, "residual") != 0;
}

struct gd_value *gd_bottleneck_serial(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                      struct gd_value *input, struct gd_value *output, struct gd_value *const *params)
{
    struct gd_value *made = module(training, g, site, output, params);
    return has_residual(training->graft) ? gd_add(g, output, made) : made;
}

struct gd_value *gd_bottleneck_parallel(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                        struct gd_value *input, struct gd_value *output, struct gd_value *const *params)
{
    struct gd_value *y = gd_add(g, output, module(training, g, site, input, params));
    return has_residual(training->graft) ? gd_add(g, y, input) : y;
}

/* ---- serving ---- */

static void fill_part(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                      struct gd_wear_part *part)
{
    struct places at = places_of(graft);
    const float *block = graft->block;
    float scale = at.scale >= 0 ? block[params[at.scale].offset] : (float)gd_adapter_value(&graft->config, "scaling");
    float *row = at.up_bias >= 0 ? gd_graft_derive(graft, site->out) : NULL;
    part->rank = (int)params[at.down].shape[0];
    part->scale = scale;
    part->a = block + params[at.down].offset;
    part->a_row = site->in;
    part->b = block + params[at.up].offset;
    part->activation = (enum gd_activation)gd_adapter_value(&graft->config, "non_linearity");
    if (at.down_bias >= 0)
        part->mid_add = block + params[at.down_bias].offset;
    for (int i = 0; at.up_bias >= 0 && i < site->out; i++)
        row[i] = scale * block[params[at.up_bias].offset + i];
    if (at.up_bias >= 0)
        part->out_add = row;
}

void gd_bottleneck_wear_serial(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                               struct gd_wear_part *part)
{
    fill_part(graft, site, params, part);
    part->serial = true;
    if (!has_residual(graft))
        part->out_scale = gd_graft_derive(graft, site->out); /* zeros */
}

void gd_bottleneck_wear_parallel(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                                 struct gd_wear_part *part)
{
    fill_part(graft, site, params, part);
    part->skip = has_residual(graft) ? 1.0f : 0.0f;
}
