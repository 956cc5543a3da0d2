/*
 * fallback.c - the modules that an option names by itself, in the words of the model's family. Methods name them as Llama does;
 * GPT-2 has one attn.c_attn where Llama has q_proj, k_proj and v_proj. A list that is not the option's own is left alone.
 */
#include "engine/adapter/build.h"

#include "engine/base/alloc.h"
#include "engine/model/family.h"

#include <string.h>

static bool is_fallback(const struct gd_adapter_option *option, const struct gd_modules *modules)
{
    const char *at = option->modules;
    for (int i = 0; i < modules->count; i++) {
        size_t length = strcspn(at, ",");
        if (length == 0 || strlen(modules->names[i]) != length || memcmp(at, modules->names[i], length) != 0)
            return false;
        at += length + (at[length] == ',');
    }
    return *at == '\0';
}

static bool named(const char *full, const char *name)
{
    const char *dot = full != NULL ? strrchr(full, '.') : NULL;
    return full != NULL && strcmp(dot != NULL ? dot + 1 : full, name) == 0;
}

/* The part that does the work of Llama's: q_proj, k_proj, v_proj may be one, gate_proj and up_proj too, or there is no gate. */
static const char *linear_for(const struct gd_model_config *config, int part, const char *name)
{
    const struct gd_part *parts = config->family->body->linears;
    const struct gd_name *names = config->family->names->linears;
    int fused = part == GD_LINEAR_Q || part == GD_LINEAR_K || part == GD_LINEAR_V ? GD_LINEAR_QKV : GD_LINEAR_GATE_UP;
    if (gd_part_present(config, &parts[part]))
        return named(names[part].hf, name) ? name : names[part].hf;
    if (gd_part_present(config, &parts[fused]))
        return names[fused].hf;
    return part == GD_LINEAR_GATE ? names[GD_LINEAR_UP].hf : NULL;
}

static const char *norm_for(const struct gd_model_config *config, int part, const char *name)
{
    const char *own = config->family->names->norms[part].hf;
    return !gd_part_present(config, &config->family->body->norms[part]) ? NULL : named(own, name) ? name : own;
}

/* NULL: the model has nothing of the kind. */
static const char *translate(const struct gd_model *model, const char *name)
{
    const struct gd_model_config *config = &model->config;
    const struct gd_names *names = config->family->names;
    if (gd_model_encodes(model)) /* its parts are others: who means them names them */
        return name;
    for (int i = 0; i < GD_LINEAR_COUNT; i++)
        if (named(gd_names_llama.linears[i].hf, name))
            return linear_for(config, i, name);
    for (int i = 0; i < GD_NORM_COUNT; i++)
        if (named(gd_names_llama.norms[i].hf, name))
            return norm_for(config, i, name);
    if (named(gd_names_llama.outer[GD_OUTER_NORM].hf, name))
        return model->final_norm == NULL ? NULL : named(names->outer[GD_OUTER_NORM].hf, name) ? name : names->outer[GD_OUTER_NORM].hf;
    return strcmp(name, gd_names_llama.attention) == 0 ? names->attention : strcmp(name, gd_names_llama.mlp) == 0 ? names->mlp : name;
}

static void translate_list(const struct gd_model *model, struct gd_modules *modules)
{
    int count = 0;
    for (int i = 0; i < modules->count; i++) {
        const char *name = translate(model, modules->names[i]);
        bool seen = name == NULL;
        for (int j = 0; j < count && !seen; j++)
            seen = strcmp(modules->names[j], name) == 0;
        char *copy = seen ? NULL : gd_strdup(name);
        gd_free(modules->names[i]);
        if (copy != NULL)
            modules->names[count++] = copy;
    }
    modules->count = count;
}

void gd_graft_translate_fallbacks(struct gd_graft *graft)
{
    const struct gd_adapter_method *method = graft->config.method;
    const struct gd_body *body = graft->model->config.family->body;
    if (body != &gd_body_decoder && !body->encoder)
        return;
    for (int i = 0; i < method->option_count; i++)
        if (method->options[i].type == GD_OPTION_MODULES && is_fallback(&method->options[i], &graft->config.modules[i]))
            translate_list(graft->model, &graft->config.modules[i]);
}
