/*
 * prefix_tuning.c - prefix tuning (Li & Liang 2021), also P-tuning v2 (Liu et al. 2022): every layer attends to n learned keys
 * and values before those of the tokens. Keys are used as they are, without rotary embedding. 2 n layers w numbers, w the
 * width of a layer's keys.
 *
 * With prefix_projection the rows of all layers come from one table, P = W2 tanh(W1 E + b1) + b2, E [n, w], W1 [h, w],
 * W2 [2 layers w, h]: n w + h w + h + 2 layers w (h + 1) numbers. Only training has them; the file holds P [n, 2 layers w], of
 * which part 2 l are layer l's keys and 2 l + 1 its values.
 *
 * Here each part has parameters of its own: a piece [n, w] of that tensor, or its share of W2 and b2. A virtual row passes through the layers,
 * but only its keys and values count.
 */
#include "engine/adapter/build.h"
#include "engine/base/alloc.h"
#include "engine/tensor/activation.h"
#include "engine/tensor/ops.h"

#include <stdio.h>
#include <string.h>

enum start { START_RANDOM, START_ZERO };
static const char *const starts[] = {"RANDOM", "ZERO", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "num_virtual_tokens", .type = GD_OPTION_INT, .min = 1, .max = GD_VIRTUAL_ROWS_MAX, .fallback = 20,
     .help = "Keys and values before those of the tokens; they count against the context, but not as tokens of usage."},
    {.name = "prefix_projection", .type = GD_OPTION_BOOL, .use = GD_OPTION_TRAINS,
     .help = "Train them through a two-layer network that all layers share; the result is kept without it."},
    {.name = "encoder_hidden_size", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .max = 65536,
     .help = "Width of that network; 0: that of a layer's keys."},
    {.name = "prefix_init", .type = GD_OPTION_CHOICE, .use = GD_OPTION_OURS, .choices = starts,
     .help = "Where they start: RANDOM (normal; through the network: as it gives it) or ZERO."},
};

/* Parameters with projection: E, W1, b1, then W2 and b2 of each part. */
enum { TABLE, FIRST_WEIGHT, FIRST_BIAS, PARTS };

static int kv_width(const struct gd_model *model)
{
    return model->config.kv_heads * model->config.head_dim;
}

static int part_count(const struct gd_graft *graft)
{
    return 2 * graft->model->config.layers;
}

static void add_flat(struct gd_graft *graft, const char *name, int64_t size)
{
    struct gd_graft_param *param = gd_graft_add_named(graft, name, size, 1);
    param->rank = 1;
    param->flat = true;
}

static void add_projection(struct gd_graft *graft, int hidden)
{
    int width = kv_width(graft->model);
    char name[64];
    gd_graft_add_named(graft, "prompt_encoder.embedding.weight", graft->virtual_rows.count, width);
    gd_graft_add_named(graft, "prompt_encoder.transform.0.weight", hidden, width);
    add_flat(graft, "prompt_encoder.transform.0.bias", hidden);
    for (int i = 0; i < part_count(graft); i++) {
        snprintf(name, sizeof(name), "prompt_encoder.transform.2.weight.%d", i);
        gd_graft_add_named(graft, name, width, hidden);
        snprintf(name, sizeof(name), "prompt_encoder.transform.2.bias.%d", i);
        add_flat(graft, name, width);
    }
}

static void add_parts(struct gd_graft *graft)
{
    int parts = part_count(graft);
    for (int i = 0; i < parts; i++) {
        struct gd_graft_param *param =
            gd_graft_add_named(graft, "prompt_embeddings", graft->virtual_rows.count, kv_width(graft->model));
        param->piece = i;
        param->pieces = parts;
    }
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    if (!gd_graft_begin_virtual(graft, err))
        return false;
    bool projection = gd_adapter_value(&graft->config, "prefix_projection") != 0;
    if (!projection && gd_adapter_value(&graft->config, "encoder_hidden_size") != 0)
        return gd_fail_param(err, GD_INVALID, "adapter.encoder_hidden_size",
                             "encoder_hidden_size counts only with prefix_projection: leave it out or set that");
    int hidden = (int)gd_adapter_value(&graft->config, "encoder_hidden_size");
    hidden = hidden > 0 ? hidden : kv_width(graft->model);
    if (projection)
        gd_adapter_set_value(&graft->config, "encoder_hidden_size", hidden);
    graft->bakes = projection && !graft->config.finished;
    if (graft->bakes)
        add_projection(graft, hidden);
    else
        add_parts(graft);
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    bool zero = gd_adapter_value(&graft->config, "prefix_init") == START_ZERO;
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
    if (!graft->bakes) {
        if (!zero)
            gd_fill_normal(block, graft->parameter_count, 1.0f, seed, 0);
        return;
    }
    gd_fill_normal(block, graft->params[TABLE].shape[0] * graft->params[TABLE].shape[1], 1.0f, seed, TABLE);
    gd_fill_layer(graft, block, FIRST_WEIGHT, FIRST_BIAS, seed);
    for (int i = 0; !zero && i < part_count(graft); i++)
        gd_fill_layer(graft, block, PARTS + 2 * i, PARTS + 2 * i + 1, seed);
}

/* Rows of part i: f32 [n, w]. */
static struct gd_value *part(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params, int i)
{
    if (!training->graft->bakes)
        return params[i];
    if (training->made == NULL)
        training->made = gd_activation(g, gd_graft_layer(g, params[TABLE], params[FIRST_WEIGHT], params[FIRST_BIAS]),
                                       GD_ACTIVATION_TANH);
    return gd_graft_layer(g, training->made, params[PARTS + 2 * i], params[PARTS + 2 * i + 1]);
}

static void kv(struct gd_graft_training *training, struct gd_graph *g, int layer, struct gd_value **k, struct gd_value **v,
               struct gd_value *const *params)
{
    *k = gd_graft_put_virtual(training, g, *k, part(training, g, params, 2 * layer));
    *v = gd_graft_put_virtual(training, g, *v, part(training, g, params, 2 * layer + 1));
}

static void all_parts(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params,
                      struct gd_value **values)
{
    for (int i = 0; i < part_count(training->graft); i++)
        values[i] = part(training, g, params, i);
}

static bool keep(const struct gd_graft *graft, const float *block, const struct gd_graft *kept, float *kept_block,
                 struct gd_error *err)
{
    int parts = part_count(graft);
    float **out = gd_alloc_array((size_t)parts, sizeof(float *));
    for (int i = 0; i < parts; i++)
        out[i] = kept_block + kept->params[i].offset;
    bool ok = gd_graft_compute(graft, block, all_parts, out, parts, err);
    gd_free(out);
    return ok;
}

/* The block holds part by part, as the prefix does. */
static void prefix(const struct gd_graft *graft, float *out)
{
    memcpy(out, graft->block, (size_t)graft->virtual_rows.count * (size_t)part_count(graft) * (size_t)kv_width(graft->model) *
                                  sizeof(float));
}

static void describe(const struct gd_graft *graft, cJSON *json)
{
    gd_graft_describe_virtual(graft, kv_width(graft->model), graft->model->config.kv_heads, json);
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_prefix_tuning = {
    .name = "prefix_tuning",
    .peft_type = "PREFIX_TUNING",
    .paper = "Li & Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation",
    .help = "Puts learned keys and values before those of the tokens, in every layer.",
    .options = options,
    .option_count = GD_COUNT(options),
    .peft_fields = "{\"modules_to_save\": null, \"init_weights\": null}",
    .refused = refused,
    .create = create,
    .init = init,
    .kv = kv,
    .prefix = prefix,
    .keep = keep,
    .describe = describe,
};
