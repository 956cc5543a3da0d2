/* parts.c - questions about the parts of layers. */
#include "engine/model/family.h"
#include <stdio.h>
#include <string.h>

int gd_extent_size(const struct gd_model_config *config, enum gd_extent extent)
{
    switch (extent) {
    case GD_EXTENT_WIDTH:
        return config->width;
    case GD_EXTENT_EMBED:
        return config->embed_width;
    case GD_EXTENT_FFN:
        return config->ffn_width;
    case GD_EXTENT_QUERY:
        return config->heads * config->head_dim;
    case GD_EXTENT_KV:
        return config->kv_heads * config->head_dim;
    case GD_EXTENT_HEAD:
        return config->head_dim;
    case GD_EXTENT_QKV:
        return (config->heads + 2 * config->kv_heads) * config->head_dim;
    case GD_EXTENT_FFN_TWICE:
        return 2 * config->ffn_width;
    case GD_EXTENT_VOCAB:
        return config->vocab;
    case GD_EXTENT_POSITIONS:
        return config->positions;
    case GD_EXTENT_TYPES:
        return config->types;
    case GD_EXTENT_LABELS:
        return config->label_count;
    case GD_EXTENT_HEADS:
        return config->heads;
    case GD_EXTENT_BUCKETS:
        return config->bias_buckets;
    case GD_EXTENT_EXPERTS:
        return config->experts;
    case GD_EXTENT_NONE:
        break;
    }
    return 0;
}

static bool flag_at(const struct gd_model_config *config, size_t offset)
{
    return *(const bool *)((const char *)config + offset);
}

bool gd_part_present(const struct gd_model_config *config, const struct gd_part *part)
{
    return part->out != GD_EXTENT_NONE && (part->has == 0 || flag_at(config, part->has)) && (part->lacks == 0 || !flag_at(config, part->lacks));
}

bool gd_part_in_layer(const struct gd_model_config *config, const struct gd_part *part, int layer)
{
    return gd_part_present(config, part) &&
           (part->stack == GD_STACK_ANY || (part->stack == GD_STACK_ENCODER) == (layer < config->encoder_layers));
}

static int copies_of(const struct gd_model_config *config, const struct gd_part *part)
{
    return part->copies != 0 ? *(const int *)((const char *)config + part->copies) : 1;
}

int gd_part_copies(const struct gd_model_config *config, const struct gd_part *part, int layer)
{
    return gd_part_in_layer(config, part, layer) ? copies_of(config, part) : 0;
}

struct gd_part_name gd_part_name(const char *name, int copy)
{
    struct gd_part_name text;
    const char *star = strchr(name, '*');
    if (star == NULL)
        snprintf(text.text, sizeof text.text, "%s", name);
    else
        snprintf(text.text, sizeof text.text, "%.*s%d%s", (int)(star - name), name, copy, star + 1);
    return text;
}

static int in_layer(const struct gd_model_config *config, const struct gd_part *parts, int end, int layer)
{
    int count = 0;
    for (int i = 0; i < end; i++)
        count += gd_part_copies(config, &parts[i], layer);
    return count;
}

/* All layers of a stack have as many. */
static int index_of(const struct gd_model_config *config, const struct gd_part *parts, int part_count, int layer, int part)
{
    int encoders = layer < config->encoder_layers ? layer : config->encoder_layers, index = in_layer(config, parts, part, layer);
    if (encoders > 0)
        index += encoders * in_layer(config, parts, part_count, 0);
    if (layer > encoders)
        index += (layer - encoders) * in_layer(config, parts, part_count, config->encoder_layers);
    return index;
}

int gd_linear_index(const struct gd_model_config *config, int layer, int linear)
{
    const struct gd_body *body = config->family->body;
    return index_of(config, body->linears, body->linear_count, layer, linear);
}

int gd_norm_index(const struct gd_model_config *config, int layer, int norm)
{
    const struct gd_body *body = config->family->body;
    return index_of(config, body->norms, body->norm_count, layer, norm);
}

const char *gd_layer_stack(const struct gd_model_config *config, int layer, int *number)
{
    bool second = config->encoder_layers > 0 && layer >= config->encoder_layers;
    *number = second ? layer - config->encoder_layers : layer;
    return second ? config->family->names->decoder_layers : config->family->names->layers;
}

static int present_before(const struct gd_model_config *config, const struct gd_part *parts, int end)
{
    int count = 0;
    for (int i = 0; i < end; i++)
        count += gd_part_present(config, &parts[i]) ? copies_of(config, &parts[i]) : 0;
    return count;
}

int gd_linears_before(const struct gd_model_config *config, int linear)
{
    return present_before(config, config->family->body->linears, linear);
}

int gd_linears_of_layer(const struct gd_model_config *config)
{
    return gd_linears_before(config, config->family->body->linear_count);
}

int gd_norms_before(const struct gd_model_config *config, int norm)
{
    return present_before(config, config->family->body->norms, norm);
}

int gd_norms_of_layer(const struct gd_model_config *config)
{
    return gd_norms_before(config, config->family->body->norm_count);
}

bool gd_part_has_bias(const struct gd_model_config *config, const struct gd_part *part)
{
    return part->has_bias != 0 && flag_at(config, part->has_bias);
}

struct gd_weight **gd_part_weight(void *owner, const struct gd_part *part, int copy)
{
    char *at = (char *)owner + part->weight;
    return part->copies != 0 ? *(struct gd_weight ***)at + copy : (struct gd_weight **)at;
}

struct gd_weight **gd_part_bias(void *owner, const struct gd_part *part)
{
    return (struct gd_weight **)((char *)owner + part->bias);
}
