#include "engine/adapter/adapter.h"

#include "adapter_list.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"

#include <assert.h>
#include <string.h>

#define GD_ADAPTER(name) extern const struct gd_adapter_method gd_adapter_##name;
GD_ADAPTER_LIST
#undef GD_ADAPTER
#define GD_ADAPTER(name) &gd_adapter_##name,
const struct gd_adapter_method *const gd_adapter_table[] = {GD_ADAPTER_LIST};
#undef GD_ADAPTER
const int gd_adapter_count = (int)GD_COUNT(gd_adapter_table);

static void copy_config(struct gd_adapter_config *to, const struct gd_adapter_config *from)
{
    *to = *from;
    to->targets = gd_alloc_array((size_t)from->target_count, sizeof(char *));
    for (int i = 0; i < from->target_count; i++)
        to->targets[i] = gd_strdup(from->targets[i]);
}

bool gd_graft_create(struct gd_graft **out, const struct gd_model *model, const struct gd_adapter_config *config,
                     struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_graft *graft = gd_alloc(sizeof(*graft));
    copy_config(&graft->config, config);
    graft->model = model;
    for (int i = 0; i < gd_adapter_count; i++)
        if (strcmp(gd_adapter_table[i]->name, config->type) == 0)
            graft->method = gd_adapter_table[i];
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(model, &sites);
    graft->site_param = gd_alloc_array((size_t)site_count, sizeof(int));
    for (int i = 0; i < site_count; i++)
        graft->site_param[i] = -1;
    bool ok = graft->method != NULL;
    if (!ok)
        gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "adapter type '%s' is unknown", config->type);
    ok = ok && graft->method->create(graft, err);
    if (ok)
        *out = graft;
    else
        gd_graft_destroy(graft);
    return ok;
}

void gd_graft_destroy(struct gd_graft *graft)
{
    if (graft == NULL)
        return;
    gd_adapter_config_release(&graft->config);
    gd_free(graft->params);
    gd_free(graft->site_param);
    gd_free(graft->block);
    gd_free(graft->wear);
    gd_free(graft);
}

void gd_graft_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    graft->method->init(graft, block, seed);
}

static struct gd_value *training_linear(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                        struct gd_value *w, struct gd_value *bias)
{
    struct gd_graft_training *training = context;
    int first = training->graft->site_param[site->index];
    if (first < 0)
        return gd_site_linear_base(g, x, w, bias);
    return training->graft->method->linear(training->graft, g, site, x, w, bias, training->params + first,
                                           training->dropout_key);
}

void gd_graft_training_sites(struct gd_graft_training *training, struct gd_graph *graph, const struct gd_graft *graft,
                             bool training_pass)
{
    memset(training, 0, sizeof(*training));
    training->graft = graft;
    training->params = gd_alloc_array((size_t)graft->param_count, sizeof(struct gd_value *));
    for (int i = 0; i < graft->param_count; i++) {
        const struct gd_graft_param *param = &graft->params[i];
        training->params[i] = training_pass ? gd_graph_param(graph, param->name, param->rank, param->shape)
                                            : gd_graph_input(graph, param->name, GD_F32, param->rank, param->shape);
    }
    if (training_pass && graft->config.lora_dropout > 0.0)
        training->dropout_key = gd_graph_input(graph, "dropout_key", GD_I32, 1, (int64_t[]){4});
    training->sites.context = training;
    training->sites.linear = training_linear;
}

void gd_graft_training_release(struct gd_graft_training *training)
{
    gd_free(training->params);
    memset(training, 0, sizeof(*training));
}

static struct gd_value *serving_linear(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                       struct gd_value *w, struct gd_value *bias)
{
    struct gd_graft_serving *serving = context;
    return gd_wear_lowrank(g, gd_site_linear_base(g, x, w, bias), x, serving->wear, site->index);
}

void gd_graft_serving_sites(struct gd_graft_serving *serving, struct gd_graph *graph, const struct gd_model *model)
{
    memset(serving, 0, sizeof(*serving));
    serving->model = model;
    serving->wear = gd_graph_handle(graph, "wear");
    serving->sites.context = serving;
    serving->sites.linear = serving_linear;
}
