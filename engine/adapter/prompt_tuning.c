/*
 * prompt_tuning.c - prompt tuning (Lester et al. 2021): rows P [n, width] stand before the embedded tokens, at positions
 * 0..n-1, and are all that is learned. They start as N(0, 1), as embeddings of tokens drawn from the vocabulary, or as those
 * of a text, repeated where it is shorter. n width numbers.
 */
#include "engine/adapter/build.h"
#include "engine/base/philox.h"

enum start { START_RANDOM, START_VOCABULARY, START_TEXT };
static const char *const starts[] = {"RANDOM", "SAMPLE_VOCAB", "TEXT", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "num_virtual_tokens", .type = GD_OPTION_INT, .min = 1, .max = GD_VIRTUAL_ROWS_MAX, .fallback = 20,
     .help = "Rows before the tokens; they count against the context, but not as tokens of usage."},
    {.name = "prompt_tuning_init", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = starts, .fallback = START_VOCABULARY,
     .help = "Where they start: RANDOM (normal), SAMPLE_VOCAB (embeddings of drawn tokens) or TEXT."},
    {.name = "prompt_tuning_init_text", .type = GD_OPTION_TEXT, .use = GD_OPTION_TRAINS,
     .help = "With TEXT: text of at most num_virtual_tokens tokens, repeated where it has fewer."},
};

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    bool from_text = gd_adapter_value(&graft->config, "prompt_tuning_init") == START_TEXT;
    if (!gd_graft_begin_virtual(graft, err) ||
        !gd_graft_check_start(graft, "prompt_tuning_init_text", from_text, "prompt_tuning_init is \"TEXT\"", err))
        return false;
    gd_graft_add_named(graft, "prompt_embeddings", graft->virtual_rows.count, graft->model->config.embed_width);
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    switch ((enum start)gd_adapter_value(&graft->config, "prompt_tuning_init")) {
    case START_RANDOM:
        gd_fill_normal(block, graft->parameter_count, 1.0f, seed, 0);
        break;
    case START_VOCABULARY:
        gd_fill_vocabulary(graft->model, block, graft->virtual_rows.count, seed);
        break;
    case START_TEXT:
        gd_fill_text(graft->model, block, graft->virtual_rows.count, gd_adapter_text(&graft->config, "prompt_tuning_init_text"));
        break;
    }
}

static struct gd_value *embed(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                              struct gd_value *const *params)
{
    return gd_graft_add_virtual(training, g, x, params[0]);
}

static void describe(const struct gd_graft *graft, cJSON *json)
{
    gd_graft_describe_virtual(graft, graft->model->config.embed_width, graft->model->config.heads, json);
    bool from_text = gd_adapter_value(&graft->config, "prompt_tuning_init") == START_TEXT;
    cJSON_AddItemToObject(json, "tokenizer_name_or_path", gd_adapter_text_json(from_text ? graft->model->id : NULL));
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_prompt_tuning = {
    .name = "prompt_tuning",
    .peft_type = "PROMPT_TUNING",
    .paper = "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning",
    .help = "Puts learned rows before the embedded tokens.",
    .options = options,
    .option_count = GD_COUNT(options),
    .peft_fields = "{\"modules_to_save\": null, \"tokenizer_kwargs\": null}",
    .refused = refused,
    .create = create,
    .init = init,
    .embed = embed,
    .describe = describe,
};
