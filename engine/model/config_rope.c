/*
 * config_rope.c - rotary position embedding in config.json: theta, scaling and how much of a head is rotated; for all layers,
 * or (Gemma 3) for those that see everything and for those that slide.
 */
#include "engine/model/config_read.h"
#include "engine/model/text.h"

#define PATH GD_CONFIG_PATH

struct rope_name {
    const char *name;
    enum gd_rope_kind kind;
};
static const struct rope_name rope_names[] = {
    {"default", GD_ROPE_DEFAULT}, {"linear", GD_ROPE_LINEAR}, {"ntk", GD_ROPE_NTK},
    {"dynamic", GD_ROPE_DYNAMIC}, {"llama3", GD_ROPE_LLAMA3}, {"yarn", GD_ROPE_YARN},
    {"longrope", GD_ROPE_LONG},   {"su", GD_ROPE_LONG},
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
                         "%s.rope_type \"%s\" is not supported; supported are default, linear, ntk, dynamic, llama3, yarn, longrope",
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

/* One factor for each frequency. */
static bool read_factors(float *factors, const struct gd_model_config *config, const cJSON *json, const char *path, const char *key,
                         struct gd_error *err)
{
    const cJSON *list = NULL;
    int count = 0, half = config->rotary_dim / 2;
    if (!gd_json_get_array(json, path, key, true, &list, err))
        return false;
    for (const cJSON *each = list->child; each != NULL; each = each->next, count++) {
        if (!cJSON_IsNumber(each) || !(each->valuedouble >= 1e-3 && each->valuedouble <= 1e6))
            return gd_fail_param(err, GD_BAD_MODEL, path, "%s.%s[%d] is no number from 0.001 to 1000000", path, key, count);
        if (count < half)
            factors[count] = (float)each->valuedouble;
    }
    return count == half || gd_fail_param(err, GD_BAD_MODEL, path, "%s.%s has %d numbers; %d, half of the rotated dimensions, are wanted",
                                          path, key, count, half);
}

/* Sequences of more than the original context go by a table of their own. */
static bool read_long(const struct gd_config_reader *r, struct gd_config_ropes *ropes, const cJSON *json, const char *path)
{
    struct gd_rope_scaling *first = &ropes->table[0];
    struct gd_model_config *config = r->config;
    first->factor = config->context / first->original_context; /* what an absent factor means */
    if (config->local_rope)
        return gd_fail_param(r->err, GD_UNSUPPORTED, path, "%s.rope_type longrope is not supported where layers that slide have a rope of "
                             "their own", path);
    if (!gd_json_get_number(json, path, "factor", false, 1e-3, 1e6, &first->factor, r->err) ||
        !gd_json_get_number(json, path, "attention_factor", false, 1e-3, 1e3, &first->attention_factor, r->err) ||
        !read_factors(ropes->divisors[0], config, json, path, "short_factor", r->err) ||
        !read_factors(ropes->divisors[1], config, json, path, "long_factor", r->err))
        return false;
    ropes->table[1] = *first;
    for (int i = 0; i < 2; i++)
        ropes->table[i].divisors = ropes->divisors[i];
    config->long_from = config->context > first->original_context ? (int)first->original_context : 0;
    return true;
}

static bool read_scaling(const struct gd_config_reader *r, struct gd_config_ropes *ropes, int table, const cJSON *json, const char *path)
{
    struct gd_rope_scaling *scaling = &ropes->table[table];
    for (const cJSON *each = json->child; each != NULL; each = each->next)
        if (cJSON_IsObject(each))
            return gd_fail_param(r->err, GD_UNSUPPORTED, path, "%s.%s: rope parameters by kind of layer are not supported for %s",
                                 path, gd_show_text(each->string).text, r->family->model_type);
    scaling->original_context = r->config->context;
    if (!read_scaling_kind(scaling, json, path, r->err) ||
        !gd_json_get_number(json, path, "original_max_position_embeddings", false, 1, GD_CONTEXT_MAX,
                            &scaling->original_context, r->err) ||
        !gd_config_read_number(r, "original_max_position_embeddings", 1, GD_CONTEXT_MAX, &scaling->original_context))
        return false;
    switch (scaling->kind) {
    case GD_ROPE_DEFAULT:
        return true;
    case GD_ROPE_LINEAR:
    case GD_ROPE_NTK:
    case GD_ROPE_DYNAMIC:
        return gd_json_get_number(json, path, "factor", true, 1, 1e6, &scaling->factor, r->err);
    case GD_ROPE_LLAMA3:
        return read_llama3(scaling, json, path, r->err);
    case GD_ROPE_YARN:
        return read_yarn(scaling, json, path, r->config->context, r->err);
    case GD_ROPE_LONG:
        return read_long(r, ropes, json, path);
    }
    return false;
}

/* How much of a head is rotated: the factor at the top, or the one of rope_parameters. */
static bool read_rotary(const struct gd_config_reader *r, const cJSON *object, const char *path)
{
    struct gd_model_config *config = r->config;
    double partial = r->family->partial_rotary > 0 ? r->family->partial_rotary : 1;
    if (!gd_config_read_number(r, r->family->fields->partial_rotary, 0, 1, &partial) ||
        (object != NULL && !gd_json_get_number(object, path, "partial_rotary_factor", false, 0, 1, &partial, r->err)))
        return false;
    if (partial != 1 && r->family->partial_rotary == 0)
        return gd_fail_param(r->err, GD_UNSUPPORTED, PATH ".partial_rotary_factor",
                             PATH ".partial_rotary_factor %g is not supported for %s; 1 is", partial,
                             r->family->model_type);
    config->rotary_dim = (int)(config->head_dim * partial);
    if (partial != 1 && (config->rotary_dim < 2 || config->rotary_dim % 2 != 0))
        return gd_fail_param(r->err, GD_BAD_MODEL, PATH ".partial_rotary_factor",
                             PATH ".partial_rotary_factor %g rotates %d of a head's %d dimensions; an even number of them is "
                                  "wanted", partial, config->rotary_dim, config->head_dim);
    return true;
}

static bool read_table(const struct gd_config_reader *r, struct gd_config_ropes *ropes, int table, const cJSON *object, const char *path)
{
    double *theta = table == 0 ? &r->config->rope_theta : &r->config->local_rope_theta;
    return object == NULL || (read_scaling(r, ropes, table, object, path) &&
                              gd_json_get_number(object, path, "rope_theta", false, 2, 1e15, theta, r->err));
}

/* Old files: rope_theta and rope_scaling; newer ones: rope_parameters with both, or with both for each kind of layer. */
bool gd_config_read_rope(const struct gd_config_reader *r, struct gd_config_ropes *ropes)
{
    const cJSON *object = NULL, *parameters = NULL, *global = NULL, *local = NULL;
    const char *path = PATH ".rope_scaling";
    struct gd_model_config *config = r->config;
    ropes->table[0] = ropes->table[1] = gd_rope_scaling_default();
    if (config->learned_positions)
        return true;
    if (!gd_config_read_number(r, r->family->fields->theta, 2, 1e15, &config->rope_theta) ||
        !gd_json_get_object(r->json, PATH, "rope_scaling", false, &object, r->err) ||
        !gd_json_get_object(r->json, PATH, "rope_parameters", false, &parameters, r->err))
        return false;
    if (config->local_rope && parameters != NULL) {
        if (!gd_json_get_object(parameters, PATH ".rope_parameters", "full_attention", false, &global, r->err) ||
            !gd_json_get_object(parameters, PATH ".rope_parameters", "sliding_attention", false, &local, r->err))
            return false;
        if ((global != NULL || local != NULL) && (!read_rotary(r, NULL, path) ||
                                                  !read_table(r, ropes, 0, global, PATH ".rope_parameters.full_attention") ||
                                                  !read_table(r, ropes, 1, local, PATH ".rope_parameters.sliding_attention")))
            return false;
        parameters = global != NULL || local != NULL ? NULL : parameters;
    }
    if (object == NULL || object->child == NULL) {
        object = parameters;
        path = PATH ".rope_parameters";
    }
    return read_rotary(r, object, path) && read_table(r, ropes, 0, object, path);
}
