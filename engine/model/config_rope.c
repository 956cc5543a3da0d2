/* config_rope.c - rotary position embedding in config.json: one table of angles and its scaling. */
#include "engine/model/config_read.h"
#include "engine/model/text.h"

#define PATH GD_CONFIG_PATH

struct rope_name {
    const char *name;
    enum gd_rope_kind kind;
};
static const struct rope_name rope_names[] = {
    {"default", GD_ROPE_DEFAULT}, {"linear", GD_ROPE_LINEAR}, {"dynamic", GD_ROPE_DYNAMIC},
    {"llama3", GD_ROPE_LLAMA3},   {"yarn", GD_ROPE_YARN},
};

static bool read_scaling_kind(struct gd_rope_scaling *scaling, const cJSON *json, const char *path,
                              struct gd_error *err)
{
    const char *kind = "default";
    if (!gd_json_get_string(json, path, "type", false, 1, 64, &kind, err) ||
        !gd_json_get_string(json, path, "rope_type", false, 1, 64, &kind, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(rope_names); i++)
        if (strcmp(kind, rope_names[i].name) == 0) {
            scaling->kind = rope_names[i].kind;
            return true;
        }
    return gd_fail_param(err, GD_UNSUPPORTED, path,
                         "%s.rope_type \"%s\" is not supported; supported are default, linear, dynamic, llama3, yarn",
                         path, gd_show_text(kind).text);
}

static bool read_yarn(struct gd_rope_scaling *scaling, const cJSON *json, const char *path, double context,
                      struct gd_error *err)
{
    scaling->factor = context / scaling->original_context; /* what an absent factor means */
    return gd_json_get_number(json, path, "factor", false, 1, 1e6, &scaling->factor, err) &&
           gd_json_get_number(json, path, "beta_fast", false, 1e-3, 1e6, &scaling->beta_fast, err) &&
           gd_json_get_number(json, path, "beta_slow", false, 1e-3, 1e6, &scaling->beta_slow, err) &&
           gd_json_get_number(json, path, "attention_factor", false, 1e-3, 1e3, &scaling->attention_factor, err) &&
           gd_json_get_number(json, path, "mscale", false, 0, 1e3, &scaling->mscale, err) &&
           gd_json_get_number(json, path, "mscale_all_dim", false, 0, 1e3, &scaling->mscale_all_dim, err) &&
           gd_json_get_bool(json, path, "truncate", false, &scaling->truncate, err);
}

static bool read_llama3(struct gd_rope_scaling *scaling, const cJSON *json, const char *path, struct gd_error *err)
{
    if (!gd_json_get_number(json, path, "factor", true, 1, 1e6, &scaling->factor, err) ||
        !gd_json_get_number(json, path, "low_freq_factor", false, 1e-3, 1e6, &scaling->low_freq_factor, err) ||
        !gd_json_get_number(json, path, "high_freq_factor", false, 1e-3, 1e6, &scaling->high_freq_factor, err))
        return false;
    if (scaling->high_freq_factor <= scaling->low_freq_factor)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.high_freq_factor %g is not above low_freq_factor %g", path,
                             scaling->high_freq_factor, scaling->low_freq_factor);
    return true;
}

static bool read_scaling(struct gd_rope_scaling *scaling, const struct gd_model_config *config, const cJSON *top,
                         const cJSON *json, const char *path, struct gd_error *err)
{
    for (const cJSON *each = json->child; each != NULL; each = each->next)
        if (cJSON_IsObject(each))
            return gd_fail_param(err, GD_UNSUPPORTED, path, "%s.%s: rope parameters by kind of layer are not supported",
                                 path, gd_show_text(each->string).text);
    scaling->original_context = config->context;
    if (!read_scaling_kind(scaling, json, path, err) ||
        !gd_json_get_number(json, path, "original_max_position_embeddings", false, 1, GD_CONTEXT_MAX,
                            &scaling->original_context, err) ||
        !gd_json_get_number(top, PATH, "original_max_position_embeddings", false, 1, GD_CONTEXT_MAX,
                            &scaling->original_context, err))
        return false;
    switch (scaling->kind) {
    case GD_ROPE_DEFAULT:
        return true;
    case GD_ROPE_LINEAR:
    case GD_ROPE_DYNAMIC:
        return gd_json_get_number(json, path, "factor", true, 1, 1e6, &scaling->factor, err);
    case GD_ROPE_LLAMA3:
        return read_llama3(scaling, json, path, err);
    case GD_ROPE_YARN:
        return read_yarn(scaling, json, path, config->context, err);
    }
    return false;
}

/* How much of a head is rotated: the factor at the top, or the one of rope_parameters. */
static bool read_rotary(const struct gd_config_reader *r, const cJSON *object, const char *path)
{
    struct gd_model_config *config = r->config;
    struct gd_error *err = r->err;
    double partial = 1;
    if (!gd_config_read_number(r, "partial_rotary_factor", 0, 1, &partial) ||
        (object != NULL && !gd_json_get_number(object, path, "partial_rotary_factor", false, 0, 1, &partial, err)))
        return false;
    if (partial != 1 && !r->family->partial_rotary)
        return gd_fail_param(err, GD_UNSUPPORTED, PATH ".partial_rotary_factor",
                             PATH ".partial_rotary_factor %g is not supported for %s; 1 is", partial,
                             r->family->model_type);
    config->rotary_dim = (int)(config->head_dim * partial);
    if (partial != 1 && (config->rotary_dim < 2 || config->rotary_dim % 2 != 0))
        return gd_fail_param(err, GD_BAD_MODEL, PATH ".partial_rotary_factor",
                             PATH ".partial_rotary_factor %g rotates %d of a head's %d dimensions; an even number of them is "
                                  "wanted", partial, config->rotary_dim, config->head_dim);
    return true;
}

/* Old files: rope_theta and rope_scaling; newer ones: rope_parameters with both. */
bool gd_config_read_rope(const struct gd_config_reader *r, struct gd_rope_scaling *scaling)
{
    const cJSON *object = NULL, *parameters = NULL;
    const char *path = PATH ".rope_scaling";
    struct gd_model_config *config = r->config;
    *scaling = gd_rope_scaling_default();
    if (!gd_config_read_number(r, "rope_theta", 2, 1e15, &config->rope_theta) ||
        !gd_json_get_object(r->json, PATH, "rope_scaling", false, &object, r->err) ||
        !gd_json_get_object(r->json, PATH, "rope_parameters", false, &parameters, r->err))
        return false;
    if (object == NULL || object->child == NULL) {
        object = parameters;
        path = PATH ".rope_parameters";
    }
    if (!read_rotary(r, object, path))
        return false;
    if (object == NULL)
        return true;
    return read_scaling(scaling, config, r->json, object, path, r->err) &&
           gd_json_get_number(object, path, "rope_theta", false, 2, 1e15, &config->rope_theta, r->err);
}
