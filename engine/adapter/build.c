#include "engine/adapter/build.h"

#include "engine/base/alloc.h"
#include "engine/base/philox.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static bool matches(const char *target, const struct gd_site *site)
{
    if ((site->kind == GD_SITE_LINEAR && strcmp(target, "all-linear") == 0) ||
        (site->kind == GD_SITE_NORM && strcmp(target, "all-norms") == 0) || strcmp(target, site->name) == 0)
        return true;
    size_t target_length = strlen(target), length = strlen(site->name);
    return length > target_length && site->name[length - target_length - 1] == '.' &&
           strcmp(site->name + length - target_length, target) == 0;
}

bool gd_modules_match(const struct gd_modules *modules, const struct gd_site *site)
{
    for (int i = 0; i < modules->count; i++)
        if (matches(modules->names[i], site))
            return true;
    return false;
}

static int sites_of(const struct gd_graft *graft, enum gd_site_kind kind, const struct gd_site **sites)
{
    return kind == GD_SITE_NORM    ? gd_model_norm_sites(graft->model, sites)
           : kind == GD_SITE_BLOCK ? gd_model_block_sites(graft->model, sites)
                                   : gd_model_linear_sites(graft->model, sites);
}

static const char *leaf_of(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot != NULL ? dot + 1 : name;
}

static bool fail_unmatched(enum gd_site_kind kind, const char *option, const char *target, const struct gd_site *sites,
                           int site_count, struct gd_error *err)
{
    /* The distinct last parts of the modules: q_proj, k_proj, ... */
    char names[512] = "", param[64];
    for (int i = 0; i < site_count; i++) {
        const char *leaf = leaf_of(sites[i].name);
        bool seen = false;
        for (int j = 0; j < i && !seen; j++)
            seen = strcmp(leaf_of(sites[j].name), leaf) == 0;
        size_t used = strlen(names);
        if (!seen && used + strlen(leaf) + 3 < sizeof(names))
            snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "", leaf);
    }
    snprintf(param, sizeof(param), "adapter.%s", option);
    return gd_fail_param(err, GD_INVALID, param, "target module '%s' matches nothing in this model; its %s are: %s%s", target,
                         kind == GD_SITE_NORM ? "norms" : kind == GD_SITE_BLOCK ? "blocks" : "linear modules", names,
                         kind == GD_SITE_LINEAR ? " (or \"all-linear\")" : kind == GD_SITE_NORM ? " (or \"all-norms\")" : "");
}

/* "all-linear" leaves routers of experts alone, unless the base's own tensors are trained. */
static bool leaves_out(const struct gd_graft *graft, const struct gd_modules *modules, const struct gd_site *site)
{
    if (!site->router || graft->picks != NULL)
        return false;
    for (int i = 0; i < modules->count; i++)
        if (strcmp(modules->names[i], "all-linear") != 0 && matches(modules->names[i], site))
            return false;
    return true;
}

int gd_graft_choose(struct gd_graft *graft, enum gd_site_kind kind, const char *option, struct gd_error *err)
{
    const struct gd_modules *modules = gd_adapter_modules(&graft->config, option);
    const struct gd_site *sites;
    int site_count = sites_of(graft, kind, &sites), chosen = 0;
    for (int t = 0; t < modules->count; t++) {
        bool found = false;
        for (int i = 0; i < site_count && !found; i++)
            found = matches(modules->names[t], &sites[i]);
        if (!found) {
            fail_unmatched(kind, option, modules->names[t], sites, site_count, err);
            return 0;
        }
    }
    for (int i = 0; i < site_count; i++)
        if (gd_modules_match(modules, &sites[i]) && !leaves_out(graft, modules, &sites[i])) {
            graft->site_param[gd_slot_of(graft->model, &sites[i])] = 0;
            chosen++;
        }
    return chosen;
}

struct gd_graft_param *gd_graft_add(struct gd_graft *graft, bool trained, const char *module, const char *suffix,
                                    int64_t rows, int64_t columns)
{
    assert(!trained || graft->frozen_param_count == 0);
    int count = graft->param_count + graft->frozen_param_count;
    if ((count & (count + 1)) == 0 || count == 0) /* doubles at 0, 1, 3, 7, ... */
        graft->params = gd_realloc_array(graft->params, (size_t)count * 2 + 2, sizeof(*graft->params));
    struct gd_graft_param *param = &graft->params[count];
    *param = (struct gd_graft_param){.offset = gd_graft_floats(graft), .rank = 2, .shape = {rows, columns}, .rate = 1.0};
    snprintf(param->name, sizeof(param->name), "base_model.%s%s%s%s", module != NULL ? "model." : "",
             module != NULL ? module : "", module != NULL ? "." : "", suffix);
    *(trained ? &graft->param_count : &graft->frozen_param_count) += 1;
    *(trained ? &graft->parameter_count : &graft->frozen_count) += rows * columns;
    return param;
}

struct gd_graft_param *gd_graft_add_last(struct gd_graft *graft, const char *module, const char *suffix, int64_t rows, int64_t columns)
{
    int at = graft->param_count, frozen = graft->frozen_param_count;
    int64_t size = rows * columns;
    (void)gd_graft_add(graft, false, module, suffix, rows, columns);
    struct gd_graft_param last = graft->params[at + frozen];
    memmove(graft->params + at + 1, graft->params + at, (size_t)frozen * sizeof(*graft->params));
    for (int i = 0; i < frozen; i++)
        graft->params[at + 1 + i].offset += size;
    for (int i = 0; i < gd_slot_count(graft->model); i++)
        graft->site_param[i] += graft->site_param[i] >= at;
    last.offset = graft->parameter_count;
    graft->params[at] = last;
    graft->param_count++;
    graft->frozen_param_count--;
    graft->parameter_count += size;
    graft->frozen_count -= size;
    return &graft->params[at];
}

struct gd_graft_param *gd_graft_add_named(struct gd_graft *graft, const char *name, int64_t rows, int64_t columns)
{
    struct gd_graft_param *param = gd_graft_add(graft, true, NULL, name, rows, columns);
    snprintf(param->name, sizeof(param->name), "%s", name);
    return param;
}

struct gd_value *gd_graft_base(const struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x, struct gd_value *w,
                               struct gd_value *bias)
{
    return x != NULL && x == training->base_x ? training->base_y : gd_site_linear_base(g, x, w, bias);
}

struct gd_value *gd_graft_view(struct gd_graft_training *training, struct gd_graph *g, const struct gd_graft_param *param,
                               int64_t rows)
{
    int64_t columns = param->transposed ? param->shape[0] : param->shape[1];
    for (int i = 0; i < training->view_count; i++) {
        struct gd_graft_view *view = &training->views[i];
        if (view->param == param && view->value != NULL && view->value->shape[0] == rows)
            return view->value;
    }
    training->views = gd_realloc_array(training->views, (size_t)training->view_count + 1, sizeof(*training->views));
    struct gd_graft_view *view = &training->views[training->view_count++];
    view->param = param;
    view->value = gd_graph_input(g, param->name, GD_F32, 2, (int64_t[]){rows, columns});
    return view->value;
}

bool gd_graft_check_rank(const struct gd_graft *graft, const struct gd_site *site, int64_t r, struct gd_error *err)
{
    int limit = site->in < site->out ? site->in : site->out;
    if (r <= limit || graft->config.finished)
        return true;
    return gd_fail_param(err, GD_INVALID, "adapter.r", "rank %d is larger than %s allows (%d x %d: at most %d)", (int)r, site->name,
                         site->out, site->in, limit);
}

float *gd_graft_derive(struct gd_graft *graft, int64_t count)
{
    int have = graft->derived_count++;
    graft->derived = gd_realloc_array(graft->derived, (size_t)graft->derived_count, sizeof(float *));
    graft->derived[have] = gd_alloc_array((size_t)count, sizeof(float));
    graft->derived_floats += count;
    return graft->derived[have];
}

struct gd_value *gd_graft_list(struct gd_graft_training *training, struct gd_graph *g, const char *name, const int32_t *data,
                               int64_t count)
{
    int at = training->list_count;
    if ((at & (at + 1)) == 0) /* doubles at 0, 1, 3, 7, ... */
        training->lists = gd_realloc_array(training->lists, (size_t)at * 2 + 2, sizeof(*training->lists));
    struct gd_graft_list *list = &training->lists[training->list_count++];
    list->data = data;
    list->value = gd_graph_input(g, name, GD_I32, 1, &count);
    return list->value;
}

void gd_graft_drop_derived(struct gd_graft *graft)
{
    for (int i = 0; i < graft->derived_count; i++)
        gd_free(graft->derived[i]);
    gd_free(graft->derived);
    graft->derived = NULL;
    graft->derived_count = 0;
}

void gd_fill_uniform(float *out, int64_t count, float bound, uint64_t seed, uint32_t stream)
{
    uint64_t key = gd_philox_stream(GD_RANDOM_INIT, stream, 0);
    for (int64_t i = 0; i < count; i += 4) {
        struct gd_philox word = gd_philox4(seed, key, (uint64_t)(i / 4));
        for (int64_t j = 0; j < 4 && i + j < count; j++)
            out[i + j] = bound * (2.0f * gd_uniform_from_bits(word.v[j]) - 1.0f);
    }
}

void gd_fill_normal(float *out, int64_t count, float deviation, uint64_t seed, uint32_t stream)
{
    uint64_t key = gd_philox_stream(GD_RANDOM_INIT, stream, 0);
    for (int64_t i = 0; i < count; i++) {
        struct gd_philox word = gd_philox4(seed, key, (uint64_t)i);
        out[i] = deviation * gd_normal_from_bits(word.v[0], word.v[1]);
    }
}

void gd_fill_kaiming(const struct gd_graft_param *param, float *block, uint64_t seed, uint32_t stream)
{
    gd_fill_uniform(block + param->offset, param->shape[0] * param->shape[1], 1.0f / sqrtf((float)param->shape[1]), seed, stream);
}

float *gd_transposed(const float *from, int64_t rows, int64_t columns)
{
    float *to = gd_alloc_array((size_t)(rows * columns), sizeof(float));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            to[i * columns + j] = from[j * rows + i];
    return to;
}
