/*
 * ept.c - EPT (Lan et al. 2025): DePT (dept.c) whose prompt is fused with its table and projected into several spaces while it
 * is trained. No code was published: these formulas are this project's, of the four parts that the paper names.
 *
 *   C   = lora_alpha / sqrt(r) A B                                      the table, [s, d]
 *   F   = P + g (softmax(P Uq^T (C Uk^T)^T / sqrt k) C - P)             fusion; g starts at fusion_gate_init
 *   P_o = sum_j w_j (F + gelu(F D_j^T) V_j),  w = softmax(u)            spaces; D_0 = V_0 = 0, V_j and u start at 0
 *
 * Uq, Uk [k, d], D_j, V_j [q, d], u [N]. The start is prompt tuning. m d + r (s + d) numbers as DePT, 2 d k + 1 for fusion, which
 * a table (r > 0) and k > 0 give, and 2 (N - 1) q d + N for N > 1 spaces. All but P learn at the rate of the table.
 *
 * What is kept is P_o in place of P: a DePT adapter.
 */
#include "engine/adapter/dept.h"
#include "engine/base/alloc.h"
#include "engine/tensor/activation.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <string.h>

static const struct gd_adapter_option options[] = {
    GD_DEPT_OPTIONS,
    {.name = "fusion_width", .type = GD_OPTION_INT, .use = GD_OPTION_OURS, .max = 1024, .fallback = 8,
     .help = "Width of the attention from the rows to the table; 0: no fusion."},
    {.name = "fusion_gate_init", .type = GD_OPTION_NUMBER, .use = GD_OPTION_OURS, .min = -10, .max = 10,
     .help = "Start of its gate."},
    {.name = "space_count", .type = GD_OPTION_INT, .use = GD_OPTION_OURS, .min = 1, .max = 64, .fallback = 4,
     .help = "Spaces that the rows are projected into, the identity among them."},
    {.name = "space_rank", .type = GD_OPTION_INT, .use = GD_OPTION_OURS, .min = 1, .max = 1024, .fallback = 3,
     .help = "Rank of each projection."},
};

/* Indices of the parameters behind DePT's; -1: absent. */
struct parts {
    struct gd_dept_parts dept;
    int query, key, gate, down, up, choice;
};

static struct parts parts_of(const struct gd_graft *graft)
{
    struct parts parts = {gd_dept_parts(graft), -1, -1, -1, -1, -1, -1};
    int at = (parts.dept.p >= 0) + 2 * (parts.dept.a >= 0);
    if (parts.dept.a >= 0 && parts.dept.p >= 0 && gd_adapter_value(&graft->config, "fusion_width") > 0) {
        parts.query = at++;
        parts.key = at++;
        parts.gate = at++;
    }
    if (gd_adapter_value(&graft->config, "space_count") > 1) {
        parts.down = at++;
        parts.up = at++;
        parts.choice = at++;
    }
    return parts;
}

/* Numbers beside those of DePT with rank r. */
static int64_t extra_count(const struct gd_graft *graft, int64_t r)
{
    int64_t width = graft->model->config.embed_width, k = (int64_t)gd_adapter_value(&graft->config, "fusion_width");
    int64_t spaces = (int64_t)gd_adapter_value(&graft->config, "space_count");
    int64_t rank = (int64_t)gd_adapter_value(&graft->config, "space_rank");
    return (r > 0 && k > 0 ? 2 * width * k + 1 : 0) + (spaces > 1 ? 2 * (spaces - 1) * rank * width + spaces : 0);
}

static bool apply_budget(struct gd_graft *graft, struct gd_error *err)
{
    int64_t budget = (int64_t)gd_adapter_value(&graft->config, "budget_tokens"), width = graft->model->config.embed_width;
    int64_t length = (int64_t)gd_adapter_value(&graft->config, "max_length");
    int64_t fixed = (int64_t)graft->virtual_rows.count * width + extra_count(graft, 1);
    if (budget == 0)
        return true;
    int64_t r = (budget * width - fixed) / (length + width);
    if (budget * width < fixed || r < 1)
        return gd_fail_param(err, GD_INVALID, "adapter.budget_tokens",
                             "budget_too_small: the rows and the fixed parts leave nothing for r; give at least %lld",
                             (long long)((fixed + length + width + width - 1) / width));
    if (r > GD_WEAR_RANK_MAX)
        return gd_fail_param(err, GD_INVALID, "adapter.budget_tokens", "a budget of %lld tokens gives r = %lld, above %d",
                             (long long)budget, (long long)r, GD_WEAR_RANK_MAX);
    gd_adapter_set_value(&graft->config, "r", (double)r);
    return true;
}

static void add(struct gd_graft *graft, const char *name, int64_t rows, int64_t columns, bool flat)
{
    struct gd_graft_param *param = gd_graft_add_named(graft, name, rows, columns);
    param->rate = gd_adapter_value(&graft->config, "embedding_update_lr_ratio");
    param->rank = flat ? 1 : 2;
    param->flat = flat;
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    int64_t width = graft->model->config.embed_width, k = (int64_t)gd_adapter_value(&graft->config, "fusion_width");
    int64_t spaces = (int64_t)gd_adapter_value(&graft->config, "space_count");
    int64_t inner = (spaces - 1) * (int64_t)gd_adapter_value(&graft->config, "space_rank");
    if (gd_adapter_value(&graft->config, "num_virtual_tokens") < 1)
        return gd_fail_param(err, GD_INVALID, "adapter.num_virtual_tokens", "num_virtual_tokens must be at least 1: the rows are what "
                             "is fused and projected");
    graft->bakes = !graft->config.finished;
    if (!gd_dept_measure(graft, err) || (graft->bakes && !apply_budget(graft, err)) || !gd_dept_create(graft, err))
        return false;
    if (!graft->bakes)
        return true;
    if (gd_adapter_value(&graft->config, "r") > 0 && k > 0) {
        add(graft, "fusion.query", k, width, false);
        add(graft, "fusion.key", k, width, false);
        add(graft, "fusion.gate", 1, 1, true);
    }
    if (spaces > 1) {
        add(graft, "spaces.down", inner, width, false);
        add(graft, "spaces.up", inner, width, false);
        add(graft, "spaces.gate", 1, spaces, false);
        gd_graft_add(graft, false, NULL, "spaces.of", spaces, inner); /* 1 where a column belongs to a space */
    }
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    struct parts parts = parts_of(graft);
    gd_dept_init(graft, block, seed);
    if (parts.query >= 0) {
        gd_fill_layer(graft, block, parts.query, -1, seed);
        gd_fill_layer(graft, block, parts.key, -1, seed);
        block[graft->params[parts.gate].offset] = (float)gd_adapter_value(&graft->config, "fusion_gate_init");
    }
    if (parts.down < 0)
        return;
    gd_fill_layer(graft, block, parts.down, -1, seed);
    const struct gd_graft_param *of = &graft->params[graft->param_count];
    int64_t rank = (int64_t)gd_adapter_value(&graft->config, "space_rank"), inner = of->shape[1];
    memset(block + of->offset, 0, (size_t)(of->shape[0] * inner) * sizeof(float));
    for (int64_t i = 0; i < inner; i++)
        block[of->offset + (1 + i / rank) * inner + i] = 1;
}

static struct gd_value *product(struct gd_graph *g, struct gd_value *a, struct gd_value *b, bool transpose_b, double scale)
{
    return gd_matmul(g, a, false, b, transpose_b, scale, NULL, GD_F32);
}

static struct gd_value *fused(const struct gd_graft *graft, struct gd_graph *g, const struct parts *parts,
                              struct gd_value *const *params)
{
    struct gd_value *p = params[parts->dept.p];
    if (parts->query < 0)
        return p;
    double k = (double)graft->params[parts->query].shape[0];
    struct gd_value *table = product(g, params[parts->dept.a], params[parts->dept.b], false, gd_dept_scale(graft));
    struct gd_value *query = product(g, p, params[parts->query], true, 1), *key = product(g, table, params[parts->key], true, 1);
    struct gd_value *read = product(g, gd_softmax(g, product(g, query, key, true, 1 / sqrt(k))), table, false, 1);
    return gd_add(g, p, gd_mul_scalar(g, gd_add(g, read, gd_scale(g, p, -1)), params[parts->gate]));
}

/* P_o, f32 [m, d]. The weights sum to 1, so that F stands whole. */
static struct gd_value *rows(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params)
{
    const struct gd_graft *graft = training->graft;
    if (!graft->bakes)
        return params[0];
    struct parts parts = parts_of(graft);
    struct gd_value *f = fused(graft, g, &parts, params);
    if (parts.down < 0)
        return f;
    const struct gd_graft_param *of = &graft->params[graft->param_count];
    struct gd_value *weights = gd_softmax(g, params[parts.choice]);
    weights = gd_sum_rows(g, product(g, weights, gd_graft_view(training, g, of, of->shape[0]), false, 1));
    struct gd_value *moved = gd_activation(g, product(g, f, params[parts.down], true, 1), GD_ACTIVATION_GELU);
    return gd_add(g, f, product(g, gd_mul_row(g, moved, weights), params[parts.up], false, 1));
}

static struct gd_value *embed(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                              struct gd_value *const *params)
{
    return gd_dept_update(training, g, gd_graft_add_virtual(training, g, x, rows(training, g, params)), params);
}

static void result(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params, struct gd_value **values)
{
    values[0] = rows(training, g, params);
}

static bool keep(const struct gd_graft *graft, const float *block, const struct gd_graft *kept, float *kept_block,
                 struct gd_error *err)
{
    int64_t prompt = (int64_t)graft->virtual_rows.count * graft->model->config.embed_width;
    struct parts parts = parts_of(graft);
    memcpy(kept_block, block, (size_t)kept->parameter_count * sizeof(float)); /* A and B stand where they stood */
    if (parts.query < 0 && parts.down < 0)
        return true;
    float *computed = gd_alloc_array((size_t)prompt, sizeof(float));
    bool ok = gd_graft_compute(graft, block, result, &computed, 1, err);
    if (ok)
        memcpy(kept_block, computed, (size_t)prompt * sizeof(float));
    gd_free(computed);
    return ok;
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_ept = {
    .name = "ept",
    .peft_type = "PROMPT_TUNING_LORA",
    .paper = "Lan et al. 2025, Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion",
    .help = "DePT whose rows are fused with its table and projected into several spaces; the result is a DePT adapter.",
    .options = options,
    .option_count = GD_COUNT(options),
    .peft_fields = "{\"bias\": \"none\", \"init_lora_weights\": true, \"save_lora_embeddings\": true, "
                   "\"load_lora_embeddings\": true, \"load_lora_embedding_B\": true}",
    .refused = refused,
    .create = create,
    .init = init,
    .embed = embed,
    .wear = gd_dept_wear,
    .keep = keep,
    .describe = gd_dept_describe,
};
