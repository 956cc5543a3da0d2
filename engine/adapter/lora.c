/*
 * lora.c - LoRA (Hu et al. 2021): y = W x + s B A dropout(x), s = lora_alpha / r, or lora_alpha / sqrt(r) with
 * rsLoRA (Kalajdzievski 2023). A is kaiming-uniform(sqrt 5), that is U(-1/sqrt(in), 1/sqrt(in)); B is zero.
 */
#include "engine/adapter/adapter.h"

#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/ops.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A name matches a module that it equals, or that ends in "." + name. */
static bool matches(const char *target, const char *module)
{
    if (strcmp(target, "all-linear") == 0 || strcmp(target, module) == 0)
        return true;
    size_t target_length = strlen(target), module_length = strlen(module);
    return module_length > target_length && module[module_length - target_length - 1] == '.' &&
           strcmp(module + module_length - target_length, target) == 0;
}

static bool fail_unmatched(const char *target, const struct gd_site *sites, int site_count, struct gd_error *err)
{
    /* The distinct last parts of the modules: q_proj, k_proj, ... */
    char names[512] = "";
    for (int i = 0; i < site_count; i++) {
        const char *leaf = strrchr(sites[i].name, '.');
        leaf = leaf ? leaf + 1 : sites[i].name;
        bool seen = false;
        for (int j = 0; j < i && !seen; j++) {
            const char *other = strrchr(sites[j].name, '.');
            seen = strcmp(other ? other + 1 : sites[j].name, leaf) == 0;
        }
        size_t used = strlen(names);
        if (!seen && used + strlen(leaf) + 3 < sizeof(names))
            snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "", leaf);
    }
    return gd_fail_param(err, GD_INVALID, "adapter.target_modules",
                         "target module '%s' matches nothing in this model; its linear modules are: %s (or \"all-linear\")",
                         target, names);
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_adapter_config *config = &graft->config;
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    for (int t = 0; t < config->target_count; t++) {
        bool found = false;
        for (int i = 0; i < site_count; i++) {
            if (!matches(config->targets[t], sites[i].name))
                continue;
            found = true;
            graft->site_param[i] = 0;
        }
        if (!found)
            return fail_unmatched(config->targets[t], sites, site_count, err);
    }

    int touched = 0;
    for (int i = 0; i < site_count; i++)
        touched += graft->site_param[i] == 0;
    graft->params = gd_alloc_array((size_t)touched * 2, sizeof(*graft->params));
    int64_t r = config->r;
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        int limit = sites[i].in < sites[i].out ? sites[i].in : sites[i].out;
        if (r > limit)
            return gd_fail_param(err, GD_INVALID, "adapter.r", "rank %d is larger than %s allows (%d x %d: at most %d)",
                                 config->r, sites[i].name, sites[i].out, sites[i].in, limit);
        graft->site_param[i] = graft->param_count;
        struct gd_graft_param *a = &graft->params[graft->param_count++];
        snprintf(a->name, sizeof(a->name), "base_model.model.%s.lora_A.weight", sites[i].name);
        a->rank = 2;
        a->shape[0] = r;
        a->shape[1] = sites[i].in;
        a->offset = graft->parameter_count;
        graft->parameter_count += r * sites[i].in;
        struct gd_graft_param *b = &graft->params[graft->param_count++];
        snprintf(b->name, sizeof(b->name), "base_model.model.%s.lora_B.weight", sites[i].name);
        b->rank = 2;
        b->shape[0] = sites[i].out;
        b->shape[1] = r;
        b->offset = graft->parameter_count;
        graft->parameter_count += r * sites[i].out;
    }
    graft->scale = config->use_rslora ? config->lora_alpha / sqrt((double)r) : config->lora_alpha / (double)r;
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
    for (int p = 0; p < graft->param_count; p += 2) {
        const struct gd_graft_param *a = &graft->params[p];
        int64_t count = a->shape[0] * a->shape[1];
        float bound = 1.0f / sqrtf((float)a->shape[1]);
        uint64_t stream = gd_philox_stream(GD_RANDOM_INIT, (uint32_t)(p / 2), 0);
        for (int64_t i = 0; i < count; i += 4) {
            struct gd_philox word = gd_philox4(seed, stream, (uint64_t)(i / 4));
            for (int64_t j = 0; j < 4 && i + j < count; j++)
                block[a->offset + i + j] = bound * (2.0f * gd_uniform_from_bits(word.v[j]) - 1.0f);
        }
    }
}

static struct gd_value *linear(const struct gd_graft *graft, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                               struct gd_value *const *params, struct gd_value *dropout_key)
{
    struct gd_value *y = gd_site_linear_base(g, x, w, bias);
    if (dropout_key != NULL)
        x = gd_dropout(g, x, dropout_key, graft->config.lora_dropout, site->index);
    struct gd_value *u = gd_matmul(g, x, false, params[0], true, 1.0, NULL, gd_graph_act(g));
    return gd_matmul(g, u, false, params[1], true, graft->scale, y, gd_graph_act(g));
}

const struct gd_adapter_method gd_adapter_lora = {
    .name = "lora",
    .peft_type = "LORA",
    .paper = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models",
    .create = create,
    .init = init,
    .linear = linear,
};
