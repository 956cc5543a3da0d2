/* config.c - what the two readers of a model's description share: relations between fields, rope, end ids. */
#include "engine/model/config.h"
#include "engine/base/alloc.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

void gd_model_config_begin(struct gd_model_config *config, const struct gd_family *family)
{
    *config = family->defaults;
    config->family = family;
    snprintf(config->architecture, sizeof config->architecture, "%s", family->model_type);
}

static bool check_heads(const struct gd_model_config *config, const struct gd_model_config_names *names,
                        struct gd_error *err)
{
    if (config->kv_heads > config->heads || config->heads % config->kv_heads != 0)
        return gd_fail_param(err, GD_BAD_MODEL, names->kv_heads, "%s %d is not a divisor of %s %d", names->kv_heads,
                             config->kv_heads, names->heads, config->heads);
    if (config->head_dim < 2 || config->head_dim > GD_HEAD_DIM_MAX || config->head_dim % 2 != 0)
        return gd_fail_param(err, GD_BAD_MODEL, names->head_dim, "%s %d is not an even number from 2 to %d",
                             names->head_dim, config->head_dim, GD_HEAD_DIM_MAX);
    return true;
}

/* Positions are learned rows, or distances have a bias, instead. */
static bool rotates(const struct gd_model_config *config)
{
    return !config->learned_positions && config->bias_buckets == 0;
}

int gd_model_frequencies(const struct gd_model_config *config)
{
    return !rotates(config) ? 1 : config->rope_tables * (config->rotary_dim / 2);
}

static bool make_frequencies(struct gd_model_config *config, const struct gd_rope_scaling *ropes,
                             const struct gd_model_config_names *names, struct gd_error *err)
{
    config->rope_tables = config->local_rope || config->long_from > 0 ? 2 : 1;
    config->rotary_dim = !rotates(config) ? 0 : config->rotary_dim == 0 ? config->head_dim : config->rotary_dim;
    int count = gd_model_frequencies(config), half = config->rotary_dim / 2;
    config->inv_freq = gd_alloc_array((size_t)count, sizeof config->inv_freq[0]);
    config->attention_factor = config->local_attention_factor = 1;
    if (!rotates(config))
        return true;
    double factors[2] = {1, 1}, thetas[2] = {config->rope_theta, config->local_rope ? config->local_rope_theta : config->rope_theta};
    for (int i = 0; i < config->rope_tables; i++)
        factors[i] = gd_rope_frequencies(config->inv_freq + i * half, config->rotary_dim, thetas[i], &ropes[i]);
    config->attention_factor = factors[0];
    config->local_attention_factor = factors[1];
    bool ok = isfinite(factors[0]) && factors[0] > 0 && isfinite(factors[1]) && factors[1] > 0;
    for (int j = 0; j < count; j++)
        ok = ok && isfinite(config->inv_freq[j]) && config->inv_freq[j] >= 0;
    if (!ok)
        return gd_fail_param(err, GD_BAD_MODEL, names->theta,
                             "%s %g and its scaling give rotation frequencies that are no numbers", names->theta,
                             config->rope_theta);
    return true;
}

bool gd_model_config_finish(struct gd_model_config *config, const struct gd_rope_scaling *ropes,
                            const struct gd_model_config_names *names, struct gd_error *err)
{
    if (!check_heads(config, names, err))
        return false;
    bool any = false;
    for (int layer = 0; layer < config->layers; layer++)
        any = any || config->slides[layer];
    if (!any || config->sliding_window == 0) {
        config->sliding_window = 0;
        memset(config->slides, 0, sizeof config->slides);
    }
    if (config->attention_scale == 0)
        config->attention_scale = 1 / sqrt(config->head_dim);
    config->embed_scale = 1;
    config->embed_width = config->embed_width == 0 ? config->width : config->embed_width;
    config->projects = config->embed_width != config->width;
    if (config->learned_positions)
        config->positions = config->context + config->first_position;
    return make_frequencies(config, ropes, names, err);
}

void gd_model_config_release(struct gd_model_config *config)
{
    gd_free(config->inv_freq);
    for (int i = 0; config->labels != NULL && i < config->label_count; i++)
        gd_free(config->labels[i]);
    gd_free(config->labels);
    config->inv_freq = NULL;
    config->labels = NULL;
    config->label_count = 0;
}

bool gd_model_config_add_eos(struct gd_model_config *config, int64_t id, const char *field, struct gd_error *err)
{
    if (id < 0 || id >= config->vocab)
        return gd_fail_param(err, GD_BAD_MODEL, field, "%s %" PRId64 " is outside the vocabulary of %d", field, id,
                             config->vocab);
    for (int i = 0; i < config->eos_count; i++)
        if (config->eos_ids[i] == id)
            return true;
    if (config->eos_count == GD_EOS_MAX)
        return gd_fail_param(err, GD_BAD_MODEL, field, "%s: more than %d end-of-sequence ids", field, GD_EOS_MAX);
    config->eos_ids[config->eos_count++] = (int32_t)id;
    return true;
}
