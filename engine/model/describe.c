/*
 * describe.c - a model for `graftd inspect`: what it is, what is in its files, what it costs to serve and to tune.
 *
 * Memory: matrix products read weights laid out in the compute dtype (f32 or bf16), norms and biases in f32, and the
 * embedding table straight from the mapped file. Tuning adds a layout for the backward products, and for each
 * trained number of a LoRA its value, gradient and two moments in f32; activations depend on the batch and are the
 * planner's.
 */
#include "engine/base/alloc.h"
#include "engine/model/files.h"

#define LORA_RANK 16
#define LORA_STATES 4 /* value, gradient, two moments */

static void add_number(cJSON *object, const char *key, double value)
{
    cJSON_AddItemToObject(object, key, cJSON_CreateNumber(value));
}

static cJSON *add_object(cJSON *object, const char *key)
{
    cJSON *child = cJSON_CreateObject();
    cJSON_AddItemToObject(object, key, child);
    return child;
}

static cJSON *describe_config(const struct gd_model_config *c)
{
    static const char *const heads[] = {[GD_HEAD_VOCABULARY] = "vocabulary", [GD_HEAD_NONE] = "none", [GD_HEAD_MASKED] = "masked_lm",
                                        [GD_HEAD_LABELS] = "labels"};
    cJSON *object = cJSON_CreateObject();
    gd_json_add_text(object, "head", heads[c->head]);
    add_number(object, "hidden_size", c->width);
    add_number(object, "layers", c->layers);
    if (c->encoder_layers > 0) {
        add_number(object, "encoder_layers", c->encoder_layers);
        add_number(object, "position_buckets", c->bias_buckets);
        add_number(object, "position_distance", c->bias_distance);
    }
    add_number(object, "heads", c->heads);
    add_number(object, "kv_heads", c->kv_heads);
    add_number(object, "head_dim", c->head_dim);
    add_number(object, "rotary_dim", c->rotary_dim);
    add_number(object, "intermediate_size", c->ffn_width);
    if (c->experts > 0) {
        add_number(object, "experts", c->experts);
        add_number(object, "experts_per_token", c->experts_chosen);
    }
    add_number(object, "vocab_size", c->vocab);
    add_number(object, "context", c->context);
    add_number(object, "norm_eps", c->norm_eps);
    add_number(object, "rope_theta", c->rope_theta);
    if (c->local_rope)
        add_number(object, "rope_local_theta", c->local_rope_theta);
    if (c->long_from > 0)
        add_number(object, "rope_long_from", c->long_from);
    if (c->score_softcap != 0)
        add_number(object, "score_softcap", c->score_softcap);
    if (c->logit_softcap != 0)
        add_number(object, "logit_softcap", c->logit_softcap);
    add_number(object, "rope_slowest", c->rotary_dim > 0 ? (double)c->inv_freq[c->rotary_dim / 2 - 1] : 0);
    add_number(object, "attention_factor", c->attention_factor);
    add_number(object, "sliding_window", c->sliding_window);
    int sliding = 0;
    for (int layer = 0; layer < c->layers; layer++)
        sliding += c->slides[layer];
    add_number(object, "sliding_layers", sliding);
    cJSON_AddItemToObject(object, "qkv_bias", cJSON_CreateBool(c->qkv_bias));
    cJSON_AddItemToObject(object, "o_bias", cJSON_CreateBool(c->o_bias));
    cJSON_AddItemToObject(object, "mlp_bias", cJSON_CreateBool(c->mlp_bias));
    cJSON_AddItemToObject(object, "qk_norm", cJSON_CreateBool(c->qk_norm));
    cJSON_AddItemToObject(object, "tied_embeddings", cJSON_CreateBool(c->tied));
    if (c->label_count > 0) {
        cJSON_AddItemToObject(object, "labels", cJSON_CreateStringArray((const char *const *)(uintptr_t)c->labels, c->label_count));
        cJSON_AddItemToObject(object, "multi_label", cJSON_CreateBool(c->multi_label));
    }
    return object;
}

/* By dtype of the files: how many tensors, numbers, bytes. */
static cJSON *describe_dtypes(const struct gd_model *model)
{
    int tensors[GD_DTYPE_COUNT] = {0};
    double numbers[GD_DTYPE_COUNT] = {0}, bytes[GD_DTYPE_COUNT] = {0};
    for (int i = 0; i < model->weight_count; i++) {
        const struct gd_tensor *source = gd_weight_source(model->weights[i]);
        tensors[source->dtype]++;
        numbers[source->dtype] += (double)gd_tensor_count(source);
        bytes[source->dtype] += (double)gd_dtype_bytes(source->dtype, gd_tensor_count(source));
    }
    cJSON *object = cJSON_CreateObject();
    for (int dtype = 0; dtype < GD_DTYPE_COUNT; dtype++) {
        if (tensors[dtype] == 0)
            continue;
        cJSON *each = add_object(object, gd_dtype_name((enum gd_dtype)dtype));
        add_number(each, "tensors", tensors[dtype]);
        add_number(each, "parameters", numbers[dtype]);
        add_number(each, "bytes", bytes[dtype]);
    }
    return object;
}

/* What else the files hold, which is not read. */
static cJSON *describe_aside(const struct gd_model *model)
{
    const struct gd_files *files = gd_model_files(model);
    double tensors = 0, numbers = 0;
    for (int i = 0; i < files->tensor_count; i++)
        if (files->tensors[i].aside) {
            tensors++;
            numbers += files->tensors[i].tensor.rank < 0 ? 0 : (double)gd_tensor_count(&files->tensors[i].tensor);
        }
    if (tensors == 0)
        return NULL;
    cJSON *object = cJSON_CreateObject();
    add_number(object, "tensors", tensors);
    add_number(object, "parameters", numbers);
    return object;
}

static cJSON *describe_tensors(const struct gd_model *model)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < model->weight_count; i++) {
        const struct gd_tensor *source = gd_weight_source(model->weights[i]);
        cJSON *each = cJSON_CreateObject(), *shape = cJSON_CreateArray();
        gd_json_add_text(each, "name", gd_weight_name(model->weights[i]));
        gd_json_add_text(each, "dtype", gd_dtype_name(source->dtype));
        for (int axis = 0; axis < source->rank; axis++)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)source->shape[axis]));
        cJSON_AddItemToObject(each, "shape", shape);
        add_number(each, "bytes", (double)gd_dtype_bytes(source->dtype, gd_tensor_count(source)));
        cJSON_AddItemToArray(list, each);
    }
    return list;
}

static cJSON *describe_token(const struct gd_model *model, int32_t id)
{
    if (id < 0)
        return cJSON_CreateNull();
    cJSON *object = cJSON_CreateObject();
    add_number(object, "id", id);
    gd_json_add_text(object, "token", gd_tokenizer_token(model->tokenizer, id));
    return object;
}

static cJSON *describe_tokenizer(const struct gd_model *model)
{
    cJSON *object = cJSON_CreateObject(), *ends = cJSON_CreateArray();
    gd_json_add_text(object, "kind", gd_tokenizer_kind(model->tokenizer));
    add_number(object, "vocab_size", gd_tokenizer_vocab_count(model->tokenizer));
    cJSON_AddItemToObject(object, "bos", describe_token(model, gd_tokenizer_bos(model->tokenizer)));
    for (int i = 0; i < model->config.eos_count; i++)
        cJSON_AddItemToArray(ends, describe_token(model, model->config.eos_ids[i]));
    cJSON_AddItemToObject(object, "eos", ends);
    cJSON_AddItemToObject(object, "pad", describe_token(model, gd_tokenizer_pad(model->tokenizer)));
    gd_json_add_text(object, "digest", model->tokenizer_digest);
    return object;
}

static cJSON *describe_template(const struct gd_model *model)
{
    if (model->chat_template == NULL)
        return cJSON_CreateNull();
    cJSON *object = cJSON_CreateObject();
    char *line = gd_strndup(model->chat_template, strcspn(model->chat_template, "\n"));
    add_number(object, "bytes", (double)strlen(model->chat_template));
    gd_json_add_text(object, "first_line", line);
    gd_json_add_text(object, "digest", model->template_digest);
    cJSON_AddBoolToObject(object, "has_tool_use", model->tools_template != NULL);
    gd_free(line);
    return object;
}

static cJSON *describe_memory(const struct gd_model *model)
{
    const struct gd_model_config *c = &model->config;
    double matrices = (double)c->vocab * c->embed_width, vectors = 0, lora = 0;
    const struct gd_site *sites = NULL;
    int count = gd_model_linear_sites(model, &sites);
    for (int i = 0; i < count; i++) {
        matrices += (double)sites[i].in * sites[i].out;
        lora += sites[i].router ? 0 : (double)LORA_RANK * ((double)sites[i].in + sites[i].out);
    }
    for (int i = 0; i < model->weight_count; i++)
        if (gd_weight_rank(model->weights[i]) == 1)
            vectors += (double)gd_weight_dim(model->weights[i], 0);
    double kv = 2.0 * gd_model_decoder_layers(model) * c->kv_heads * c->head_dim;
    cJSON *memory = cJSON_CreateObject(), *serve = add_object(memory, "serve"), *tune = add_object(memory, "tune");
    add_number(serve, "weights_f32_bytes", 4 * (matrices + vectors));
    add_number(serve, "weights_bf16_bytes", 2 * matrices + 4 * vectors);
    add_number(serve, "cache_f32_bytes_per_1k_tokens", 1024 * 4 * kv);
    add_number(serve, "cache_bf16_bytes_per_1k_tokens", 1024 * 2 * kv);
    add_number(tune, "backward_weights_f32_bytes", 4 * matrices);
    add_number(tune, "backward_weights_bf16_bytes", 2 * matrices);
    add_number(tune, "lora_r16_parameters", lora);
    add_number(tune, "lora_r16_bytes", LORA_STATES * 4 * lora);
    return memory;
}

cJSON *gd_model_describe(const struct gd_model *model, bool with_tensors)
{
    cJSON *object = cJSON_CreateObject();
    gd_json_add_text(object, "id", model->id);
    gd_json_add_text(object, "path", model->path);
    gd_json_add_text(object, "format", model->format);
    gd_json_add_text(object, "architecture", model->config.architecture);
    add_number(object, "parameters", (double)model->parameter_count);
    add_number(object, "file_bytes", (double)gd_model_files(model)->size_bytes);
    gd_json_add_text(object, "digest", model->digest);
    cJSON_AddItemToObject(object, "config", describe_config(&model->config));
    cJSON_AddItemToObject(object, "dtypes", describe_dtypes(model));
    cJSON *aside = describe_aside(model);
    if (aside != NULL)
        cJSON_AddItemToObject(object, "not_read", aside);
    cJSON_AddItemToObject(object, "tokenizer", describe_tokenizer(model));
    cJSON_AddItemToObject(object, "template", describe_template(model));
    cJSON_AddItemToObject(object, "memory", describe_memory(model));
    if (with_tensors)
        cJSON_AddItemToObject(object, "tensors", describe_tensors(model));
    return object;
}
