/*
 * dept.c - DePT (Shi & Lipani 2024): a short prompt P [m, d] before the embedded tokens, and a low-rank table over positions that
 * is added to them: token t gets E_t + c (A B)_t, A [s, r], B [r, d], c = lora_alpha / sqrt(r). The first token has t = 0; tokens
 * from s on are left alone. A is U(-1/sqrt(r), 1/sqrt(r)), kaiming-uniform(sqrt 5), B is zero: the start is prompt tuning.
 * m d + r (s + d) numbers; budget_tokens l sets r = floor((l - m) d / (s + d)), so that these are at most l d.
 *
 * With apply_to "prompt" the tokens of an answer are left alone, in training as when they are generated. Where a row trains
 * several turns, its prompt is what stands before the first of them. The rows and the table learn at rates of their own.
 */
#include "engine/adapter/dept.h"

#include "engine/tensor/ops.h"

#include <math.h>
#include <string.h>

#define LENGTH_MAX 256

const char *const gd_dept_starts[] = {"RANDOM", "SAMPLE_VOCAB", "TEXT", NULL};
const char *const gd_dept_reaches[] = {"prompt", "sequence", NULL};

static const struct gd_adapter_option options[] = {GD_DEPT_OPTIONS};

struct gd_dept_parts gd_dept_parts(const struct gd_graft *graft)
{
    bool rows = graft->virtual_rows.count > 0, table = graft->virtual_rows.table_rows > 0;
    return (struct gd_dept_parts){rows ? 0 : -1, table ? rows : -1, table ? rows + 1 : -1};
}

double gd_dept_scale(const struct gd_graft *graft)
{
    double r = gd_adapter_value(&graft->config, "r");
    return r > 0 ? gd_adapter_value(&graft->config, "lora_alpha") / sqrt(r) : 0;
}

bool gd_dept_measure(struct gd_graft *graft, struct gd_error *err)
{
    int count = (int)gd_adapter_value(&graft->config, "num_virtual_tokens"), context = graft->model->config.context;
    int length = (int)gd_adapter_value(&graft->config, "max_length");
    if (count > 0 && !gd_graft_begin_virtual(graft, err))
        return false;
    if (length == 0) {
        length = context - count < LENGTH_MAX ? context - count : LENGTH_MAX;
        gd_adapter_set_value(&graft->config, "max_length", length);
    }
    if (length > context - count)
        return gd_fail_param(err, GD_INVALID, "adapter.max_length",
                             "max_length is %d; beside %d virtual tokens the context of '%s' holds %d", length, count,
                             graft->model->id, context - count);
    return true;
}

bool gd_dept_create(struct gd_graft *graft, struct gd_error *err)
{
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r"), width = graft->model->config.embed_width;
    int length = (int)gd_adapter_value(&graft->config, "max_length");
    bool from_text = gd_adapter_value(&graft->config, "prompt_tuning_init") == GD_DEPT_TEXT;
    if (!gd_graft_check_start(graft, "prompt_tuning_init_text", from_text, "prompt_tuning_init is \"TEXT\"", err))
        return false;
    if (graft->virtual_rows.count == 0 && r == 0)
        return gd_fail_param(err, GD_INVALID, "adapter.r", "num_virtual_tokens and r are both 0: nothing is left to train");
    if (graft->virtual_rows.count > 0)
        gd_graft_add_named(graft, "prompt_embeddings", graft->virtual_rows.count, width)->rate =
            gd_adapter_value(&graft->config, "prompt_lr_ratio");
    if (r == 0)
        return true;
    double rate = gd_adapter_value(&graft->config, "embedding_update_lr_ratio");
    graft->virtual_rows.table_rows = length;
    graft->virtual_rows.prompt_only = gd_adapter_value(&graft->config, "apply_to") == GD_DEPT_PROMPT;
    graft->site_param[gd_slot_of(graft->model, gd_model_embed_site(graft->model))] = graft->param_count;
    gd_graft_add_named(graft, "prompt_encoder.lora_embedding_A", length, r)->rate = rate;
    gd_graft_add_named(graft, "prompt_encoder.lora_embedding_B", r, width)->rate = rate;
    return true;
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    int count = (int)gd_adapter_value(&graft->config, "num_virtual_tokens");
    int budget = (int)gd_adapter_value(&graft->config, "budget_tokens");
    if (!gd_dept_measure(graft, err))
        return false;
    if (budget > 0 && budget <= count)
        return gd_fail_param(err, GD_INVALID, "adapter.budget_tokens",
                             "no_budget_left_for_rank: %d virtual tokens leave nothing of a budget of %d", count, budget);
    if (budget > 0) {
        int width = graft->model->config.embed_width, length = (int)gd_adapter_value(&graft->config, "max_length");
        int64_t r = (int64_t)(budget - count) * width / (length + width);
        if (r < 1 || r > GD_WEAR_RANK_MAX)
            return gd_fail_param(err, GD_INVALID, "adapter.budget_tokens",
                                 "no_budget_left_for_rank: a budget of %d tokens gives r = %lld, which must be 1 to %d", budget,
                                 (long long)r, GD_WEAR_RANK_MAX);
        gd_adapter_set_value(&graft->config, "r", (double)r);
    }
    return gd_dept_create(graft, err);
}

void gd_dept_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    struct gd_dept_parts parts = gd_dept_parts(graft);
    int count = graft->virtual_rows.count;
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
    if (parts.a >= 0) {
        const struct gd_graft_param *a = &graft->params[parts.a];
        gd_fill_uniform(block + a->offset, a->shape[0] * a->shape[1], 1.0f / sqrtf((float)a->shape[1]), seed, 1);
    }
    if (count == 0)
        return;
    switch ((enum gd_dept_start)gd_adapter_value(&graft->config, "prompt_tuning_init")) {
    case GD_DEPT_RANDOM:
        gd_fill_normal(block, (int64_t)count * graft->model->config.embed_width, 1.0f, seed, 0);
        break;
    case GD_DEPT_VOCABULARY:
        gd_fill_vocabulary(graft->model, block, count, seed);
        break;
    case GD_DEPT_TEXT:
        gd_fill_text(graft->model, block, count, gd_adapter_text(&graft->config, "prompt_tuning_init_text"));
        break;
    }
}

struct gd_value *gd_dept_update(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                                struct gd_value *const *params)
{
    struct gd_dept_parts parts = gd_dept_parts(training->graft);
    if (parts.a < 0 || x == NULL)
        return x;
    struct gd_value *rows = gd_gather_rows(g, params[parts.a], gd_graft_index(training, g, GD_ROW_TABLE, x->shape[0]));
    if (x->dtype != GD_F32)
        rows = gd_cast(g, rows, x->dtype);
    return gd_matmul(g, rows, false, params[parts.b], false, gd_dept_scale(training->graft), x, x->dtype);
}

static struct gd_value *embed(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                              struct gd_value *const *params)
{
    struct gd_dept_parts parts = gd_dept_parts(training->graft);
    if (parts.p >= 0)
        x = gd_graft_add_virtual(training, g, x, params[parts.p]);
    return gd_dept_update(training, g, x, params);
}

void gd_dept_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                  struct gd_wear_part *part)
{
    int64_t length = params[0].shape[0], r = params[0].shape[1], width = params[1].shape[1];
    const float *a = graft->block + params[0].offset, *b = graft->block + params[1].offset;
    double scale = gd_dept_scale(graft);
    float *rows = gd_graft_derive(graft, length * width);
    for (int64_t t = 0; t < length; t++)
        for (int64_t j = 0; j < width; j++) {
            double sum = 0;
            for (int64_t k = 0; k < r; k++)
                sum += (double)a[t * r + k] * (double)b[k * width + j];
            rows[t * width + j] = (float)(scale * sum);
        }
    part->rows = rows;
    part->row_count = (int)length;
}

void gd_dept_describe(const struct gd_graft *graft, cJSON *json)
{
    gd_graft_describe_virtual(graft, graft->model->config.embed_width, graft->model->config.heads, json);
    bool from_text = gd_adapter_value(&graft->config, "prompt_tuning_init") == GD_DEPT_TEXT;
    cJSON_AddItemToObject(json, "tokenizer_name_or_path", gd_adapter_text_json(from_text ? graft->model->id : NULL));
    cJSON_AddNumberToObject(json, "hidden_size", graft->model->config.embed_width);
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_dept = {
    .name = "dept",
    .peft_type = "PROMPT_TUNING_LORA",
    .paper = "Shi & Lipani 2024, DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning",
    .help = "Puts learned rows before the embedded tokens and adds a low-rank table of positions to these.",
    .options = options,
    .option_count = GD_COUNT(options),
    .peft_fields = "{\"bias\": \"none\", \"init_lora_weights\": true, \"save_lora_embeddings\": true, "
                   "\"load_lora_embeddings\": true, \"load_lora_embedding_B\": true}",
    .refused = refused,
    .create = create,
    .init = gd_dept_init,
    .embed = embed,
    .wear = gd_dept_wear,
    .describe = gd_dept_describe,
};
