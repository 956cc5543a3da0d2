#include "engine/adapter/build.h"
#include "engine/adapter/head.h"
#include "engine/adapter/score.h"
#include "engine/adapter/picks.h"

#include "adapter_list.h"
#include "engine/adapter/build.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"

#include <assert.h>
#include <string.h>

#define GD_ADAPTER(name) extern const struct gd_adapter_method gd_adapter_##name;
GD_ADAPTER_LIST
#undef GD_ADAPTER
#define GD_ADAPTER(name) &gd_adapter_##name,
const struct gd_adapter_method *const gd_adapter_table[] = {GD_ADAPTER_LIST};
#undef GD_ADAPTER
const int gd_adapter_count = (int)GD_COUNT(gd_adapter_table);

static void copy_names(struct gd_modules *to, const struct gd_modules *from)
{
    to->names = gd_alloc_array((size_t)from->count, sizeof(char *));
    for (int i = 0; i < from->count; i++)
        to->names[i] = gd_strdup(from->names[i]);
}

static void copy_config(struct gd_adapter_config *to, const struct gd_adapter_config *from)
{
    *to = *from;
    for (int i = 0; i < GD_ADAPTER_OPTIONS_MAX; i++) {
        to->texts[i] = gd_strdup(from->texts[i]);
        to->ints[i].values = gd_alloc_array((size_t)from->ints[i].count + 1, sizeof(int32_t));
        for (int j = 0; j < from->ints[i].count; j++)
            to->ints[i].values[j] = from->ints[i].values[j];
        copy_names(&to->modules[i], &from->modules[i]);
    }
    copy_names(&to->tasks, &from->tasks);
    copy_names(&to->labels, &from->labels);
}

/* The sites of a kind, in the order of slots; their count. */
static int sites_at(const struct gd_model *model, int kind, const struct gd_site **sites)
{
    switch (kind) {
    case 0:
        return gd_model_linear_sites(model, sites);
    case 1:
        return gd_model_norm_sites(model, sites);
    case 2:
        return gd_model_block_sites(model, sites);
    case 3:
        *sites = gd_model_embed_site(model);
        return 1;
    default:
        return gd_model_table_sites(model, sites);
    }
}
#define SLOT_KINDS 5

static int slots_before(const struct gd_model *model, int kind)
{
    const struct gd_site *sites;
    int slots = 0;
    for (int k = 0; k < kind; k++)
        slots += sites_at(model, k, &sites);
    return slots;
}

int gd_slot_count(const struct gd_model *model)
{
    return slots_before(model, SLOT_KINDS);
}

int gd_slot_of(const struct gd_model *model, const struct gd_site *site)
{
    static const int kinds[] = {[GD_SITE_LINEAR] = 0, [GD_SITE_NORM] = 1, [GD_SITE_BLOCK] = 2, [GD_SITE_EMBED] = 3, [GD_SITE_TABLE] = 4};
    return slots_before(model, kinds[site->kind]) + site->index;
}

const struct gd_site *gd_slot_site(const struct gd_model *model, int slot)
{
    const struct gd_site *sites = NULL;
    int kind = 0;
    for (int count; slot >= (count = sites_at(model, kind, &sites)); kind++)
        slot -= count;
    return &sites[slot];
}

int gd_slot_of_head(const struct gd_model *model)
{
    return gd_slot_of(model, gd_model_table_site(model, model->head));
}

const struct gd_adapter_method *gd_adapter_find(const char *name)
{
    for (int i = 0; i < gd_adapter_count; i++)
        if (strcmp(gd_adapter_table[i]->name, name) == 0)
            return gd_adapter_table[i];
    return NULL;
}

bool gd_graft_create(struct gd_graft **out, const struct gd_model *model, const struct gd_adapter_config *config,
                     struct gd_error *err)
{
    struct gd_graft_source source = {0};
    return gd_graft_create_by(out, model, config, &source, err);
}

/* What a method does to embedded tokens, keys, blocks or whole sequences is written for a decoder alone. */
static bool check_encoder(const struct gd_model *model, const struct gd_adapter_method *method, struct gd_error *err)
{
    bool one_stack = method->embed != NULL || method->kv != NULL || method->block != NULL || method->prefix != NULL || method->by_task;
    return !gd_model_encodes(model) || !one_stack ||
           gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "'%s' is a method for decoders, and '%s' has an encoder beside its decoder (%s): "
                         "choose a method that changes weights, such as lora, ia3, loha, lokr, oft, vera, ln_tuning or full", method->name,
                         model->id, model->config.architecture);
}

bool gd_graft_create_by(struct gd_graft **out, const struct gd_model *model, const struct gd_adapter_config *config,
                        const struct gd_graft_source *source, struct gd_error *err)
{
    assert(*out == NULL);
    if (!check_encoder(model, config->method, err))
        return false;
    struct gd_graft *graft = gd_alloc(sizeof(*graft));
    copy_config(&graft->config, config);
    graft->method = config->method;
    graft->model = model;
    gd_graft_translate_fallbacks(graft);
    int slots = gd_slot_count(model);
    graft->site_param = gd_alloc_array((size_t)slots, sizeof(int));
    for (int i = 0; i < slots; i++)
        graft->site_param[i] = -1;
    bool ok = (graft->method->choose == NULL || graft->method->choose(graft, source, err)) && graft->method->create(graft, err) &&
              (!graft->config.score || gd_score_add(graft, err)) &&
              (graft->config.labels.count == 0 || gd_head_add(graft, err));
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
    gd_picks_destroy(graft->picks);
    gd_free(graft->block);
    gd_graft_drop_wear(graft);
    gd_graft_drop_derived(graft);
    gd_graft_drop_prefix(graft);
    gd_free((void *)(uintptr_t)graft->virtual_rows.ids);
    gd_free((void *)(uintptr_t)graft->virtual_rows.weights);
    gd_free((void *)(uintptr_t)graft->virtual_rows.learned);
    gd_free(graft);
}

size_t gd_graft_bytes(const struct gd_graft *graft)
{
    int64_t floats = graft->derived_floats + (graft->block != NULL ? gd_graft_floats(graft) : 0);
    return (size_t)floats * sizeof(float) + (graft->prefix != NULL ? gd_graft_prefix_bytes(graft) : 0);
}

void gd_graft_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    graft->method->init(graft, block, seed);
    gd_score_init(graft, block, seed);
    gd_head_init(graft, block, seed);
}

bool gd_graft_keep(const struct gd_graft *graft, const float *block, struct gd_graft **kept, struct gd_error *err)
{
    struct gd_adapter_config config;
    copy_config(&config, &graft->config);
    config.finished = true;
    bool ok = true;
    if (graft->bakes || (graft->method->kept_options != NULL && graft->method->kept_options(&config))) {
        struct gd_graft *made = NULL;
        ok = gd_graft_create(&made, graft->model, &config, err);
        if (ok) {
            made->block = gd_alloc_array((size_t)gd_graft_floats(made), sizeof(float));
            ok = graft->method->keep(graft, block, made, made->block, err);
            gd_score_copy(graft, block, made, made->block);
            gd_head_copy(graft, block, made, made->block);
        }
        if (ok)
            *kept = made;
        else
            gd_graft_destroy(made);
    }
    gd_adapter_config_release(&config);
    return ok;
}

static void resume_both(const struct gd_graft *graft, float *block, const struct gd_graft *kept)
{
    graft->method->resume(graft, block, kept);
    gd_score_copy(kept, kept->block, graft, block);
    gd_head_copy(kept, kept->block, graft, block);
}

bool gd_graft_resume(const struct gd_graft *graft, const struct gd_graft *kept, float *block, struct gd_error *err)
{
    struct gd_adapter_config config;
    copy_config(&config, &graft->config);
    bool differ = graft->method->kept_options != NULL && graft->method->kept_options(&config);
    gd_adapter_config_release(&config);
    if (gd_graft_floats(kept) != gd_graft_floats(graft) || (!differ && kept->parameter_count != graft->parameter_count))
        return gd_fail(err, GD_BAD_FILE, "it holds %lld parameters; the job has %lld", (long long)gd_graft_floats(kept),
                       (long long)gd_graft_floats(graft));
    if (differ)
        resume_both(graft, block, kept);
    else
        memcpy(block, kept->block, (size_t)gd_graft_floats(graft) * sizeof(float));
    return true;
}

static int param_at(const struct gd_graft *graft, int64_t at)
{
    int i = 0;
    while (i + 1 < graft->param_count && graft->params[i + 1].offset <= at)
        i++;
    return i;
}

int64_t gd_graft_rate_run(const struct gd_graft *graft, int64_t begin, double *factor)
{
    int i = param_at(graft, begin);
    const struct gd_graft_param *first = &graft->params[i];
    *factor = first->rate;
    while (i < graft->param_count && graft->params[i].rate == first->rate && graft->params[i].undecayed == first->undecayed)
        i++;
    return i < graft->param_count ? graft->params[i].offset : graft->parameter_count;
}

bool gd_graft_decays(const struct gd_graft *graft, int64_t at)
{
    return !graft->params[param_at(graft, at)].undecayed;
}

static struct gd_value *training_linear(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                        struct gd_value *w, struct gd_value *bias)
{
    struct gd_graft_training *training = context;
    int first = training->graft->site_param[site->index];
    if (first < 0)
        return gd_site_linear_base(g, x, w, bias);
    return training->graft->method->linear(training, g, site, x, w, bias, training->params + first);
}

static struct gd_value *training_norm(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                      struct gd_value *w, struct gd_value *bias, double eps)
{
    struct gd_graft_training *training = context;
    const struct gd_graft *graft = training->graft;
    int first = graft->site_param[gd_slot_of(graft->model, site)];
    if (first < 0)
        return gd_site_norm_base(g, site, x, w, bias, eps);
    return graft->method->norm(training, g, site, x, w, bias, eps, training->params + first);
}

static struct gd_value *training_block(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *input,
                                       struct gd_value *output)
{
    struct gd_graft_training *training = context;
    const struct gd_graft *graft = training->graft;
    int first = graft->site_param[gd_slot_of(graft->model, site)];
    if (first < 0)
        return output;
    return graft->method->block(training, g, site, input, output, training->params + first);
}

static struct gd_value *training_table(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *w)
{
    struct gd_graft_training *training = context;
    const struct gd_graft *graft = training->graft;
    int first = graft->site_param[gd_slot_of(graft->model, site)];
    return first < 0 ? w : graft->method->table(training, g, site, w, training->params + first);
}

static struct gd_value *training_embed(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *rows)
{
    struct gd_graft_training *training = context;
    return training->graft->method->embed(training, g, rows, training->params);
}

static void training_kv(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value **k, struct gd_value **v)
{
    struct gd_graft_training *training = context;
    training->graft->method->kv(training, g, site->layer, k, v, training->params);
}

void gd_graft_training_sites(struct gd_graft_training *training, struct gd_graph *graph, const struct gd_graft *graft,
                             bool training_pass)
{
    memset(training, 0, sizeof(*training));
    training->graft = graft;
    training->params = gd_alloc_array((size_t)graft->param_count, sizeof(struct gd_value *));
    for (int i = 0; i < graft->param_count; i++) {
        const struct gd_graft_param *param = &graft->params[i];
        int64_t flat = param->shape[0] * param->shape[1];
        int rank = param->flat ? 1 : param->rank > 2 ? 2 : param->rank;
        const int64_t *shape = param->flat ? &flat : param->shape;
        training->params[i] = training_pass ? gd_graph_param(graph, param->name, rank, shape)
                                            : gd_graph_input(graph, param->name, GD_F32, rank, shape);
    }
    if (training_pass && (graft->dropout > 0.0 || graft->noisy))
        training->dropout_key = gd_graph_input(graph, "dropout_key", GD_I32, 1, (int64_t[]){4});
    training->noise_key = graft->noisy ? training->dropout_key : NULL;
    training->sites.context = training;
    training->sites.linear = training_linear;
    training->sites.norm = training_norm;
    training->sites.block = training_block;
    training->sites.table = training_table;
    training->sites.embed = graft->method->embed != NULL ? training_embed : NULL;
    training->sites.kv = graft->method->kv != NULL ? training_kv : NULL;
}

void gd_graft_training_segments(struct gd_graft_training *training, struct gd_graph *graph, struct gd_value *cu_seqlens)
{
    if (!training->graft->method->by_task || cu_seqlens == NULL)
        return;
    training->cu_seqlens = cu_seqlens;
    training->tasks = gd_graph_input(graph, "tasks", GD_I32, 1, (int64_t[]){cu_seqlens->shape[0] - 1});
    if (training->noise_key != NULL)
        training->owner = gd_graph_input(graph, "owner", GD_I32, 1, (int64_t[]){cu_seqlens->shape[0] - 1});
}

void gd_graft_training_bind(const struct gd_graft_training *training, struct gd_plan *plan, float *block)
{
    for (int i = 0; i < training->graft->param_count; i++)
        gd_plan_bind(plan, training->params[i], block + training->graft->params[i].offset);
    for (int i = 0; i < training->view_count; i++)
        gd_plan_bind(plan, training->views[i].value, block + training->views[i].param->offset);
    for (int i = 0; i < training->list_count; i++)
        gd_plan_bind(plan, training->lists[i].value, (void *)(uintptr_t)training->lists[i].data);
}

void gd_graft_training_release(struct gd_graft_training *training)
{
    gd_free(training->params);
    gd_free(training->views);
    gd_free(training->lists);
    memset(training, 0, sizeof(*training));
}

static struct gd_value *serving_linear(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                       struct gd_value *w, struct gd_value *bias)
{
    struct gd_graft_serving *serving = context;
    if (serving->depth >= GD_WEAR_INPUTS)
        x = gd_wear_input(g, x, serving->wear, site->index);
    return gd_wear(g, gd_site_linear_base(g, x, w, bias), x, serving->wear, site->index);
}

static struct gd_value *serving_norm(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                     struct gd_value *w, struct gd_value *bias, double eps)
{
    struct gd_graft_serving *serving = context;
    int slot = gd_slot_of(serving->model, site);
    return site->centred ? gd_layer_norm_worn(g, x, w, bias, eps, serving->wear, slot)
                         : gd_rms_norm_worn(g, x, w, eps, site->offset, serving->wear, slot);
}

static struct gd_value *serving_block(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *input,
                                      struct gd_value *output)
{
    struct gd_graft_serving *serving = context;
    return gd_wear(g, output, input, serving->wear, gd_slot_of(serving->model, site));
}

static struct gd_value *serving_embed(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *rows)
{
    struct gd_graft_serving *serving = context;
    return gd_wear_rows(g, rows, serving->wear, gd_slot_of(serving->model, site));
}

static struct gd_value *serving_table(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *w)
{
    struct gd_graft_serving *serving = context;
    return site->small ? gd_graft_tables_value(&serving->tables, g, site) : w;
}

void gd_graft_serving_sites(struct gd_graft_serving *serving, struct gd_graph *graph, const struct gd_model *model,
                            enum gd_wear_depth depth)
{
    memset(serving, 0, sizeof(*serving));
    serving->model = model;
    serving->depth = depth;
    serving->wear = gd_graph_handle(graph, "wear");
    serving->sites.context = serving;
    serving->sites.linear = serving_linear;
    serving->sites.norm = depth >= GD_WEAR_NORMS ? serving_norm : NULL;
    serving->sites.block = depth >= GD_WEAR_BLOCKS ? serving_block : NULL;
    serving->sites.embed = depth >= GD_WEAR_ROWS ? serving_embed : NULL;
    serving->sites.place = depth >= GD_WEAR_ROWS ? serving_embed : NULL;
    serving->sites.table = depth >= GD_WEAR_ROWS ? serving_table : NULL;
}
