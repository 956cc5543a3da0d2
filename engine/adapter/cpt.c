/*
 * cpt.c - context-aware prompt tuning (Blau et al. 2024). The rows before the tokens are the embeddings E of a context of
 * examples, whose tokens are given, plus delta [n, width], which starts at zero and stays in a ball around each token. The type
 * of a token says what it is: modulo 4, 1 and 3 are template, 2 is text, 0 (of a type above 0) is the label of its example; 0
 * itself is anything else. n width numbers, of which those of labels and type 0 never move.
 *
 *   radius of a token = epsilon sqrt(width / 2048), epsilon for text, another for template
 *   loss = sum over label tokens, of the context and of the row, of weight -log p, divided by their number
 *
 * With "decay" the labels of the last example weigh g, of the one before g^2, ...; those of the row weigh 1. Loss and projection
 * are PEFT's, but that the row's first token is nobody's target. The file holds E + delta.
 */
#include "engine/adapter/build.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WEIGHTS_NONE, WEIGHTS_DECAY };
static const char *const weights_of[] = {"none", "decay", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "cpt_token_ids", .type = GD_OPTION_INTS, .max = INT32_MAX, .help = "Tokens of the context."},
    {.name = "cpt_mask", .type = GD_OPTION_INTS, .min = 1, .max = 1, .help = "As many ones, or null."},
    {.name = "cpt_tokens_type_mask", .type = GD_OPTION_INTS, .max = 1 << 20,
     .help = "Their types: 4 j + 1, 2, 3, 4 for template, text, template, label of example j; 0 for what never moves. Null: all 1."},
    {.name = "opt_weighted_loss_type", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = weights_of,
     .help = "Whether earlier examples' labels count less."},
    {.name = "opt_loss_decay_factor", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 1, .fallback = 1,
     .help = "By which factor, from one example to the one before."},
    {.name = "opt_projection_epsilon", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 1e6, .fallback = 0.1,
     .help = "Radius in which text moves, at width 2048."},
    {.name = "opt_projection_format_epsilon", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 1e6, .fallback = 0.1,
     .help = "Radius in which template moves."},
};

static int type_at(const struct gd_graft *graft, int row)
{
    const struct gd_ints *types = gd_adapter_ints(&graft->config, "cpt_tokens_type_mask");
    return types->count > 0 ? types->values[row] : 1;
}

static bool is_label(int type)
{
    return type > 0 && type % 4 == 0;
}

static bool check_lists(const struct gd_graft *graft, struct gd_error *err)
{
    static const char *const others[] = {"cpt_mask", "cpt_tokens_type_mask"};
    const struct gd_ints *ids = gd_adapter_ints(&graft->config, "cpt_token_ids");
    for (int i = 0; i < ids->count; i++)
        if (ids->values[i] >= graft->model->config.vocab)
            return gd_fail_param(err, GD_INVALID, "adapter.cpt_token_ids", "cpt_token_ids[%d] is %d; the vocabulary of '%s' has %d",
                                 i, ids->values[i], graft->model->id, graft->model->config.vocab);
    for (size_t i = 0; i < GD_COUNT(others); i++) {
        const struct gd_ints *list = gd_adapter_ints(&graft->config, others[i]);
        char param[64];
        snprintf(param, sizeof(param), "adapter.%s", others[i]);
        if (list->count != 0 && list->count != ids->count)
            return gd_fail_param(err, GD_INVALID, param, "%s has %d entries, cpt_token_ids %d: give as many, or null", others[i],
                                 list->count, ids->count);
    }
    return true;
}

/* g to the number of later examples with labels, and once more for the row that follows the context. */
static float weight_of(const struct gd_graft *graft, int row)
{
    int type = type_at(graft, row), later = 1;
    if (gd_adapter_value(&graft->config, "opt_weighted_loss_type") == WEIGHTS_NONE)
        return 1;
    for (int i = 0; i < graft->virtual_rows.count; i++) {
        bool counts = is_label(type_at(graft, i)) && type_at(graft, i) > type;
        for (int j = 0; j < i && counts; j++)
            counts = type_at(graft, j) != type_at(graft, i);
        later += counts;
    }
    return (float)pow(gd_adapter_value(&graft->config, "opt_loss_decay_factor"), later);
}

static void fill_rows(struct gd_graft *graft)
{
    struct gd_virtual_rows *rows = &graft->virtual_rows;
    size_t count = (size_t)rows->count;
    int32_t *ids = gd_alloc_array(count, sizeof(int32_t)), *learned = gd_alloc_array(count, sizeof(int32_t));
    float *weights = gd_alloc_array(count, sizeof(float));
    memcpy(ids, gd_adapter_ints(&graft->config, "cpt_token_ids")->values, count * sizeof(int32_t));
    for (int i = 0; i < rows->count; i++) {
        learned[i] = type_at(graft, i) % 4 != 0 ? i : -1;
        weights[i] = is_label(type_at(graft, i)) ? weight_of(graft, i) : 0;
        rows->target_count += i > 0 && is_label(type_at(graft, i));
    }
    rows->ids = ids;
    rows->learned = learned;
    rows->weights = weights;
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_ints *ids = gd_adapter_ints(&graft->config, "cpt_token_ids");
    if (!gd_graft_set_virtual(graft, ids->count, "cpt_token_ids", err) || !check_lists(graft, err))
        return false;
    graft->bakes = !graft->config.finished;
    if (graft->bakes)
        fill_rows(graft);
    gd_graft_add_named(graft, graft->bakes ? "prompt_encoder.delta_embedding.weight" : "prompt_embeddings", ids->count,
                       graft->model->config.embed_width);
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
}

static struct gd_value *embed(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                              struct gd_value *const *params)
{
    const struct gd_virtual_rows *rows = &training->graft->virtual_rows;
    struct gd_value *delta = params[0];
    if (rows->learned != NULL) /* the others get no gradient */
        delta = gd_gather_rows(g, delta, gd_graft_list(training, g, "learned_rows", rows->learned, rows->count));
    return gd_graft_add_virtual(training, g, x, delta);
}

static void project(const struct gd_graft *graft, float *block)
{
    int64_t width = graft->model->config.embed_width;
    double scale = sqrt((double)width / 2048);
    double text = scale * gd_adapter_value(&graft->config, "opt_projection_epsilon");
    double format = scale * gd_adapter_value(&graft->config, "opt_projection_format_epsilon");
    for (int row = 0; row < graft->virtual_rows.count; row++) {
        int role = type_at(graft, row) % 4;
        double radius = role == 0 ? 0 : role == 2 ? text : format, sum = 0;
        float *delta = block + row * width;
        for (int64_t i = 0; i < width; i++)
            sum += (double)delta[i] * (double)delta[i];
        if (sqrt(sum) <= radius * (1 + 1e-7)) /* what was projected stays as it is */
            continue;
        for (int64_t i = 0; i < width; i++)
            delta[i] = (float)((double)delta[i] * radius / sqrt(sum));
    }
}

static bool keep(const struct gd_graft *graft, const float *block, const struct gd_graft *kept, float *kept_block,
                 struct gd_error *err)
{
    int64_t width = graft->model->config.embed_width;
    for (int row = 0; row < graft->virtual_rows.count; row++) {
        gd_weight_row_f32(graft->model->embed, graft->virtual_rows.ids[row], kept_block + row * width);
        for (int64_t i = 0; i < width; i++)
            kept_block[row * width + i] += block[row * width + i];
    }
    return true;
}

static void describe(const struct gd_graft *graft, cJSON *json)
{
    cJSON_AddNumberToObject(json, "num_virtual_tokens", graft->virtual_rows.count);
    cJSON_AddStringToObject(json, "tokenizer_name_or_path", graft->model->id);
    gd_graft_describe_virtual(graft, graft->model->config.embed_width, graft->model->config.heads, json);
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_cpt = {
    .name = "cpt",
    .peft_type = "CPT",
    .paper = "Blau et al. 2024, Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods",
    .help = "Puts a context of examples before the tokens and moves its embeddings a little.",
    .options = options,
    .option_count = GD_COUNT(options),
    .peft_fields = "{\"modules_to_save\": null}",
    .refused = refused,
    .create = create,
    .init = init,
    .embed = embed,
    .after_step = project,
    .keep = keep,
    .describe = describe,
};
