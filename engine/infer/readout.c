#include "engine/infer/readout.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PLANS_MAX 24
#define TEXTS_MAX 256
#define CONFIG_BYTES_MAX (4u << 20)

/* A graph for so many rows and what grafts do of that depth. */
struct encode_plan {
    int rows;
    enum gd_wear_depth depth;
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_model_inputs inputs;
    struct gd_value *hidden, *wear;
    struct gd_graft_tables tables;
    uint64_t used;
};

/* The base's head as f32. */
struct head {
    float *pool, *pool_bias, *label, *label_bias;
};

struct gd_readout {
    struct gd_model *model;
    enum gd_dtype act;
    bool first, normalise;       /* an embedding is the first token's row, not the mean; it is made of length 1 */
    int *dimensions;             /* that config.json allows */
    int dimension_count;
    struct head base;
    struct encode_plan plan[PLANS_MAX];
    int plan_count;
    uint64_t clock;
    struct gd_device_block arena;
    int capacity;                /* rows of the lists below */
    int32_t *ids, *types, *positions, *row_index;
    int32_t cu_seqlens[TEXTS_MAX + 1];
    float *row, *pooled;         /* [width] */
};

/* ---- what the folder says of embeddings ---- */

static cJSON *read_beside(const struct gd_model *model, const char *name, struct gd_error *err)
{
    char *path = gd_format("%s/%s", model->path, name);
    cJSON *json = gd_path_exists(path) ? gd_json_parse_file(path, CONFIG_BYTES_MAX, err) : NULL;
    gd_free(path);
    return json;
}

static bool read_pooling(struct gd_readout *encode, const char *folder, struct gd_error *err)
{
    char *name = gd_format("%s/config.json", folder);
    cJSON *json = read_beside(encode->model, name, err);
    const cJSON *item;
    bool ok = err->code == GD_OK;
    cJSON_ArrayForEach(item, json) {
        bool mode = strncmp(item->string, "pooling_mode_", 13) == 0 && cJSON_IsTrue(item);
        if (ok && mode && strcmp(item->string, "pooling_mode_cls_token") == 0)
            encode->first = true;
        else if (ok && mode && strcmp(item->string, "pooling_mode_mean_tokens") != 0)
            ok = gd_fail_param(err, GD_UNSUPPORTED, "model", "%s/%s: %s is not supported; supported are pooling_mode_mean_tokens and "
                               "pooling_mode_cls_token", encode->model->id, name, item->string);
    }
    cJSON_Delete(json);
    gd_free(name);
    return ok;
}

/* modules.json of sentence-transformers: a Transformer, a Pooling, maybe a Normalize. Without it: the mean, of length 1. */
static bool read_modules(struct gd_readout *encode, struct gd_error *err)
{
    cJSON *modules = read_beside(encode->model, "modules.json", err);
    const cJSON *module;
    bool ok = err->code == GD_OK;
    encode->normalise = modules == NULL;
    cJSON_ArrayForEach(module, modules) {
        const cJSON *type = gd_json_find(module, "type"), *path = gd_json_find(module, "path");
        const char *dot = cJSON_IsString(type) ? strrchr(type->valuestring, '.') : NULL, *kind = dot != NULL ? dot + 1 : "";
        if (ok && strcmp(kind, "Pooling") == 0 && cJSON_IsString(path))
            ok = read_pooling(encode, path->valuestring, err);
        else if (ok && strcmp(kind, "Normalize") == 0)
            encode->normalise = true;
        else if (ok && strcmp(kind, "Transformer") != 0)
            ok = gd_fail_param(err, GD_UNSUPPORTED, "model", "%s/modules.json: module '%.64s' is not supported; supported are Transformer, "
                               "Pooling and Normalize", encode->model->id, cJSON_IsString(type) ? type->valuestring : "?");
    }
    cJSON_Delete(modules);
    return ok;
}

static bool read_dimensions(struct gd_readout *encode, struct gd_error *err)
{
    cJSON *config = read_beside(encode->model, "config.json", err);
    const cJSON *list = gd_json_find(config, "matryoshka_dimensions"), *item;
    encode->dimensions = gd_alloc_array((size_t)cJSON_GetArraySize(list) + 1, sizeof *encode->dimensions);
    cJSON_ArrayForEach(item, list)
        if (cJSON_IsNumber(item) && item->valuedouble >= 1 && item->valuedouble <= encode->model->config.embed_width)
            encode->dimensions[encode->dimension_count++] = item->valueint;
    cJSON_Delete(config);
    return err->code == GD_OK;
}

/* ---- life ---- */

static float *copy_weight(const struct gd_weight *weight)
{
    if (weight == NULL)
        return NULL;
    float *copy = gd_alloc_array((size_t)gd_weight_dim(weight, 0), (gd_weight_rank(weight) == 2 ? (size_t)gd_weight_dim(weight, 1) : 1) * sizeof(float));
    gd_weight_to_f32(weight, copy);
    return copy;
}

bool gd_readout_create(struct gd_readout **out, struct gd_model *model, struct gd_error *err)
{
    struct gd_readout *encode = gd_alloc(sizeof *encode);
    encode->model = model;
    /* What an encoder gives is compared with what others gave: small differences would be seen. */
    encode->act = gd_model_is_encoder(model) ? GD_F32 : gd_device()->compute;
    encode->row = gd_alloc_array((size_t)model->config.embed_width, sizeof(float));
    encode->pooled = gd_alloc_array((size_t)model->config.embed_width, sizeof(float));
    encode->base = (struct head){copy_weight(model->pool), copy_weight(model->pool_bias), copy_weight(model->label_head),
                                 copy_weight(model->label_bias)};
    bool folder = strcmp(model->format, "gguf") != 0;
    if (gd_model_is_encoder(model) && folder && (!read_modules(encode, err) || !read_dimensions(encode, err))) {
        gd_readout_destroy(encode);
        return false;
    }
    *out = encode;
    return true;
}

static void plan_release(struct encode_plan *plan)
{
    gd_plan_destroy(plan->plan);
    gd_graph_destroy(plan->graph);
    gd_graft_tables_release(&plan->tables);
    memset(plan, 0, sizeof *plan);
}

static void release_lists(struct gd_readout *encode)
{
    gd_free(encode->ids);
    gd_free(encode->types);
    gd_free(encode->positions);
    gd_free(encode->row_index);
    encode->ids = encode->types = encode->positions = encode->row_index = NULL;
    encode->capacity = 0;
}

void gd_readout_destroy(struct gd_readout *encode)
{
    if (encode == NULL)
        return;
    for (int i = 0; i < encode->plan_count; i++)
        plan_release(&encode->plan[i]);
    gd_device_release(&encode->arena);
    release_lists(encode);
    gd_free(encode->dimensions);
    gd_free(encode->base.pool);
    gd_free(encode->base.pool_bias);
    gd_free(encode->base.label);
    gd_free(encode->base.label_bias);
    gd_free(encode->row);
    gd_free(encode->pooled);
    gd_free(encode);
}

/* ---- a pass ---- */

static bool plan_build(struct gd_readout *encode, struct encode_plan *plan, int rows, enum gd_wear_depth depth, struct gd_error *err)
{
    struct gd_graft_serving serving = {0};
    *plan = (struct encode_plan){.rows = rows, .depth = depth};
    if (!gd_graph_create(&plan->graph, encode->act, err))
        return false;
    gd_model_inputs_create(&plan->inputs, plan->graph, encode->model, rows, TEXTS_MAX, false);
    if (depth != GD_WEAR_NONE)
        gd_graft_serving_sites(&serving, plan->graph, encode->model, depth);
    plan->wear = serving.wear;
    plan->hidden = gd_model_hidden(plan->graph, encode->model, &plan->inputs, depth != GD_WEAR_NONE ? &serving.sites : NULL);
    if (!gd_graph_ok(plan->graph, err) || !gd_plan_create(&plan->plan, plan->graph, &plan->hidden, 1, false, err))
        return false;
    plan->tables = serving.tables;
    gd_graft_tables_bind(&plan->tables, plan->plan);
    return true;
}

static struct encode_plan *plan_get(struct gd_readout *encode, int rows, enum gd_wear_depth depth, struct gd_error *err)
{
    int oldest = 0;
    for (int i = 0; i < encode->plan_count; i++) {
        if (encode->plan[i].rows == rows && encode->plan[i].depth == depth)
            return &encode->plan[i];
        oldest = encode->plan[i].used < encode->plan[oldest].used ? i : oldest;
    }
    struct encode_plan *plan = &encode->plan[encode->plan_count < PLANS_MAX ? encode->plan_count++ : oldest];
    plan_release(plan);
    if (plan_build(encode, plan, rows, depth, err))
        return plan;
    plan_release(plan);
    *plan = encode->plan[--encode->plan_count];
    memset(&encode->plan[encode->plan_count], 0, sizeof *plan);
    gd_error_context(err, "plan a batch of %d rows", rows);
    return NULL;
}

static void reserve_lists(struct gd_readout *encode, int rows)
{
    if (rows <= encode->capacity)
        return;
    release_lists(encode);
    encode->ids = gd_alloc_array((size_t)rows, sizeof(int32_t));
    encode->types = gd_alloc_array((size_t)rows, sizeof(int32_t));
    encode->positions = gd_alloc_array((size_t)rows, sizeof(int32_t));
    encode->row_index = gd_alloc_array((size_t)rows, sizeof(int32_t));
    encode->capacity = rows;
}

static int fill(struct gd_readout *encode, const struct gd_readout_text *texts, int count, int rows)
{
    const struct gd_model_config *config = &encode->model->config;
    int at = 0;
    for (int i = 0; i < count; i++) {
        encode->cu_seqlens[i] = at;
        bool is_long = config->long_from > 0 && texts[i].tokens.count > config->long_from;
        for (int t = 0; t < texts[i].tokens.count; t++, at++) {
            encode->ids[at] = texts[i].tokens.ids[t];
            encode->positions[at] = is_long ? t | GD_POSITION_LONG : t;
            encode->types[at] = config->types > 1 && texts[i].second > 0 && t >= texts[i].second;
            encode->row_index[at] = t;
        }
    }
    for (int i = count; i <= TEXTS_MAX; i++)
        encode->cu_seqlens[i] = at;
    for (int t = at; t < rows; t++) {
        encode->ids[t] = encode->positions[t] = encode->types[t] = 0;
        encode->row_index[t] = -1;
    }
    return at;
}

/* Few sizes, so that plans are used again. */
static int bucket(int tokens)
{
    int unit = tokens <= 256 ? 32 : tokens <= 1024 ? 128 : 512;
    return (tokens + unit - 1) / unit * unit;
}

/* The last hidden states of some texts, in encode->act; NULL: an error. */
static const void *run(struct gd_readout *encode, const struct gd_graft *graft, const struct gd_readout_text *texts, int count, struct gd_error *err)
{
    int tokens = 0;
    for (int i = 0; i < count; i++)
        tokens += texts[i].tokens.count;
    int rows = bucket(tokens);
    struct encode_plan *plan = plan_get(encode, rows, graft != NULL ? graft->depth : GD_WEAR_NONE, err);
    if (plan == NULL || !gd_device_reserve(&encode->arena, gd_plan_arena_bytes(plan->plan), "activations of an encoder", err))
        return NULL;
    reserve_lists(encode, rows);
    plan->used = ++encode->clock;
    int32_t begin[] = {0, fill(encode, texts, count, rows)};
    const struct gd_wear_part *sites[] = {graft != NULL ? graft->wear : NULL};
    struct gd_wear wear = {.group_count = 1, .row_begin = begin, .sites = sites, .row_index = encode->row_index, .ids = encode->ids,
                           .positions = encode->positions};
    gd_plan_attach(plan->plan, encode->arena.memory);
    gd_plan_bind(plan->plan, plan->inputs.ids, encode->ids);
    gd_plan_bind(plan->plan, plan->inputs.positions, encode->positions);
    gd_plan_bind(plan->plan, plan->inputs.inv_freq, encode->model->config.inv_freq);
    gd_plan_bind(plan->plan, plan->inputs.cu_seqlens, encode->cu_seqlens);
    if (plan->inputs.types != NULL)
        gd_plan_bind(plan->plan, plan->inputs.types, encode->types);
    if (plan->wear != NULL)
        gd_plan_bind(plan->plan, plan->wear, &wear);
    gd_graft_tables_fill(&plan->tables, encode->model, sites[0]);
    return gd_plan_run(plan->plan, NULL, err) ? gd_plan_read(plan->plan, plan->hidden, err) : NULL;
}

static bool check_texts(const struct gd_readout *encode, const struct gd_readout_text *texts, int count, struct gd_error *err)
{
    const struct gd_model_config *config = &encode->model->config;
    char param[32];
    for (int i = 0; i < count; i++) {
        if (texts[i].index >= 0)
            snprintf(param, sizeof param, "input[%d]", texts[i].index);
        else
            snprintf(param, sizeof param, "input");
        if (texts[i].tokens.count == 0)
            return gd_fail_param(err, GD_INVALID, param, "%s is empty: it has no token", param);
        if (texts[i].tokens.count > config->context)
            return gd_fail_param(err, GD_CONTEXT, param, "%s has %d tokens; the model's context is %d: shorten it", param,
                                 texts[i].tokens.count, config->context);
        for (int t = 0; t < texts[i].tokens.count; t++)
            if (texts[i].tokens.ids[t] < 0 || texts[i].tokens.ids[t] >= config->vocab)
                return gd_fail_param(err, GD_INVALID, param, "%s has token id %d; the vocabulary has %d entries", param, texts[i].tokens.ids[t],
                                     config->vocab);
    }
    return true;
}

/* As many texts as go into one pass. */
static int pass_end(const struct gd_readout_text *texts, int count, int begin)
{
    int tokens = texts[begin].tokens.count, end = begin + 1;
    while (end < count && end - begin < TEXTS_MAX && tokens + texts[end].tokens.count <= GD_READOUT_TOKENS)
        tokens += texts[end++].tokens.count;
    return end;
}

static void read_row(const struct gd_readout *encode, const void *hidden, int row, float *out)
{
    int width = encode->model->config.embed_width;
    gd_convert_to_f32(out, (const char *)hidden + gd_dtype_bytes(encode->act, (int64_t)row * width), encode->act, width);
}

/* ---- embeddings ---- */

bool gd_readout_dimensions(const struct gd_readout *encode, int dimensions, int *length, struct gd_error *err)
{
    int width = encode->model->config.embed_width;
    *length = dimensions == 0 ? width : dimensions;
    if (!gd_model_is_encoder(encode->model))
        return gd_fail_param(err, GD_UNSUPPORTED, "model", "'%s' (%s) is no encoder: it makes no embeddings; use a BERT or RoBERTa model, as "
                             "all-MiniLM-L6-v2", encode->model->id, encode->model->config.architecture);
    if (*length == width)
        return true;
    for (int i = 0; i < encode->dimension_count; i++)
        if (encode->dimensions[i] == dimensions)
            return true;
    return gd_fail_param(err, GD_INVALID, "dimensions", "dimensions is %d; embeddings of '%s' have %d numbers, and its config.json lists no "
                         "matryoshka_dimensions%s to cut them to", dimensions, encode->model->id, width, encode->dimension_count > 0 ? " like that" : "");
}

static void pool(struct gd_readout *encode, const void *hidden, int text, int length, float *out)
{
    int begin = encode->cu_seqlens[text], end = encode->first ? begin + 1 : encode->cu_seqlens[text + 1];
    double size = 0;
    memset(encode->pooled, 0, (size_t)encode->model->config.embed_width * sizeof(float));
    for (int t = begin; t < end; t++) {
        read_row(encode, hidden, t, encode->row);
        for (int j = 0; j < length; j++)
            encode->pooled[j] += encode->row[j];
    }
    for (int j = 0; j < length; j++) {
        out[j] = encode->pooled[j] / (float)(end - begin);
        size += (double)out[j] * (double)out[j];
    }
    bool cut = length < encode->model->config.embed_width;
    for (int j = 0; j < length && (encode->normalise || cut); j++)
        out[j] = (float)((double)out[j] / fmax(sqrt(size), 1e-12));
}

bool gd_readout_embed(struct gd_readout *encode, const struct gd_graft *graft, const struct gd_readout_text *texts, int count, int length,
                     float *out, struct gd_error *err)
{
    if (!check_texts(encode, texts, count, err))
        return false;
    for (int begin = 0, end; begin < count; begin = end) {
        end = pass_end(texts, count, begin);
        const void *hidden = run(encode, graft, texts + begin, end - begin, err);
        if (hidden == NULL)
            return false;
        for (int i = begin; i < end; i++)
            pool(encode, hidden, i - begin, length, out + (size_t)i * (size_t)length);
    }
    return true;
}

/* ---- classification ---- */

bool gd_readout_labels(const struct gd_readout *encode, const struct gd_graft *graft, struct gd_readout_labels *labels, struct gd_error *err)
{
    const struct gd_model_config *config = &encode->model->config;
    if (graft != NULL && graft->head_params > 0)
        *labels = (struct gd_readout_labels){graft->config.labels.names, graft->config.labels.count, graft->config.multi_label};
    else if (config->classifies)
        *labels = (struct gd_readout_labels){config->labels, config->label_count, config->multi_label};
    else
        return gd_fail_param(err, GD_UNSUPPORTED, "model", "'%s' is no classifier; tune one with method type 'classification'", encode->model->id);
    return true;
}

/* y = W x + b in double; b may be NULL. */
static void multiply(const float *w, const float *b, const float *x, int out, int in, float *y)
{
    for (int o = 0; o < out; o++) {
        double sum = b != NULL ? (double)b[o] : 0;
        for (int i = 0; i < in; i++)
            sum += (double)w[(int64_t)o * in + i] * (double)x[i];
        y[o] = (float)sum;
    }
}

static struct head head_of(const struct gd_readout *encode, const struct gd_graft *graft)
{
    if (graft == NULL || graft->head_params == 0)
        return encode->base;
    const struct gd_graft_param *params = graft->params + graft->param_count - graft->head_params;
    if (graft->head_params == 1)
        return (struct head){.label = graft->block + params[0].offset};
    return (struct head){graft->block + params[0].offset, graft->block + params[1].offset, graft->block + params[2].offset,
                         graft->block + params[3].offset};
}

bool gd_readout_classify(struct gd_readout *encode, const struct gd_graft *graft, const struct gd_readout_text *texts, int count, float *logits,
                        struct gd_error *err)
{
    struct gd_readout_labels labels;
    int width = encode->model->config.embed_width;
    if (!gd_readout_labels(encode, graft, &labels, err) || !check_texts(encode, texts, count, err))
        return false;
    struct head head = head_of(encode, graft);
    for (int begin = 0, end; begin < count; begin = end) {
        end = pass_end(texts, count, begin);
        const void *hidden = run(encode, graft, texts + begin, end - begin, err);
        if (hidden == NULL)
            return false;
        for (int i = begin; i < end; i++) {
            int text = i - begin;
            read_row(encode, hidden, head.pool != NULL ? encode->cu_seqlens[text] : encode->cu_seqlens[text + 1] - 1, encode->row);
            float *x = encode->row;
            if (head.pool != NULL) {
                multiply(head.pool, head.pool_bias, encode->row, width, width, encode->pooled);
                x = encode->pooled;
                for (int j = 0; j < width; j++)
                    x[j] = tanhf(x[j]);
            }
            multiply(head.label, head.label_bias, x, labels.count, width, logits + (size_t)i * (size_t)labels.count);
        }
    }
    return true;
}
