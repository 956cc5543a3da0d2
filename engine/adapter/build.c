#include "engine/adapter/build.h"

#include "engine/base/alloc.h"
#include "engine/base/philox.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static bool matches(const char *target, const char *module)
{
    if (strcmp(target, "all-linear") == 0 || strcmp(target, module) == 0)
        return true;
    size_t target_length = strlen(target), module_length = strlen(module);
    return module_length > target_length && module[module_length - target_length - 1] == '.' &&
           strcmp(module + module_length - target_length, target) == 0;
}

bool gd_modules_match(const struct gd_modules *modules, const char *module)
{
    for (int i = 0; i < modules->count; i++)
        if (matches(modules->names[i], module))
            return true;
    return false;
}

static bool fail_unmatched(const char *option, const char *target, const struct gd_site *sites, int site_count,
                           struct gd_error *err)
{
    /* The distinct last parts of the modules: q_proj, k_proj, ... */
    char names[512] = "", param[64];
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
    snprintf(param, sizeof(param), "adapter.%s", option);
    return gd_fail_param(err, GD_INVALID, param,
                         "target module '%s' matches nothing in this model; its linear modules are: %s (or \"all-linear\")",
                         target, names);
}

int gd_graft_choose(struct gd_graft *graft, const char *option, struct gd_error *err)
{
    const struct gd_modules *modules = gd_adapter_modules(&graft->config, option);
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites), chosen = 0;
    for (int t = 0; t < modules->count; t++) {
        bool found = false;
        for (int i = 0; i < site_count && !found; i++)
            found = matches(modules->names[t], sites[i].name);
        if (!found) {
            fail_unmatched(option, modules->names[t], sites, site_count, err);
            return 0;
        }
    }
    for (int i = 0; i < site_count; i++)
        if (gd_modules_match(modules, sites[i].name)) {
            graft->site_param[i] = 0;
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

struct gd_value *gd_graft_view(struct gd_graft_training *training, struct gd_graph *g, const struct gd_graft_param *param,
                               int64_t rows)
{
    int64_t columns = param->transposed ? param->shape[0] : param->shape[1];
    for (int i = 0; i < training->view_count; i++) {
        struct gd_graft_view *view = &training->views[i];
        if (view->param == param && view->value != NULL && view->value->shape[0] == rows)
            return view->value;
    }
    if (training->view_count == GD_GRAFT_VIEWS_MAX)
        return gd_graph_fail(g, "'%s' is used in more than %d widths", param->name, GD_GRAFT_VIEWS_MAX);
    struct gd_graft_view *view = &training->views[training->view_count++];
    view->param = param;
    view->value = gd_graph_input(g, param->name, GD_F32, 2, (int64_t[]){rows, columns});
    return view->value;
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
