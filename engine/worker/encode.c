/* encode.c - what clients ask of encoders and classifiers: embeddings, and which labels texts have. */
#include "engine/worker/worker.h"

#include "engine/base/alloc.h"
#include "engine/data/classes.h"
#include "engine/infer/readout.h"
#include "engine/objective/labels.h"

#include <string.h>

struct texts {
    struct gd_readout_text *item;
    int count;
};

static void release(struct texts *texts)
{
    for (int i = 0; i < texts->count; i++)
        gd_tokens_release(&texts->item[i].tokens);
    gd_free(texts->item);
}

/* [ids], or {text, text_pair}: with the tokens that the tokenizer puts around them. */
static bool read_text(const cJSON *input, const struct gd_model *model, struct gd_readout_text *text, struct gd_error *err)
{
    const char *first = NULL, *pair = NULL;
    int whole = 0;
    if (cJSON_IsArray(input))
        return gd_worker_read_ids(input, &text->tokens, err);
    return gd_json_get_string(input, "", "text", true, 0, GD_ROW_BYTES_MAX, &first, err) &&
           gd_json_get_string(input, "", "text_pair", false, 0, GD_ROW_BYTES_MAX, &pair, err) &&
           gd_text_encode(model->tokenizer, first, pair, 0, &text->tokens, &text->second, &whole, err);
}

static bool read_texts(const cJSON *message, const struct gd_model *model, struct texts *texts, struct gd_error *err)
{
    const cJSON *inputs = NULL, *input;
    int64_t first = -1;
    if (!gd_json_get_array(message, "", "inputs", true, &inputs, err) || !gd_json_get_int(message, "", "first", false, -1, INT32_MAX, &first, err))
        return false;
    texts->item = gd_alloc_array((size_t)cJSON_GetArraySize(inputs) + 1, sizeof *texts->item);
    cJSON_ArrayForEach(input, inputs) {
        struct gd_readout_text *text = &texts->item[texts->count++];
        text->index = first < 0 ? -1 : (int)first + texts->count - 1;
        if (!read_text(input, model, text, err))
            return false;
    }
    return true;
}

static cJSON *base64_json(const void *bytes, size_t length)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *in = bytes;
    struct gd_buf text;
    gd_buf_init(&text, GD_FRAME_BYTES_MAX);
    for (size_t i = 0; i < length; i += 3) {
        uint32_t group = (uint32_t)in[i] << 16 | (i + 1 < length ? (uint32_t)in[i + 1] << 8 : 0) | (i + 2 < length ? in[i + 2] : 0);
        char four[4] = {digits[group >> 18], digits[group >> 12 & 63], i + 1 < length ? digits[group >> 6 & 63] : '=',
                        i + 2 < length ? digits[group & 63] : '='};
        gd_buf_append(&text, four, sizeof four);
    }
    cJSON *json = cJSON_CreateString(text.length > 0 ? text.data : "");
    gd_buf_release(&text);
    return json;
}

static cJSON *numbers_json(const float *values, int count)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < count; i++)
        cJSON_AddItemToArray(list, cJSON_CreateNumber((double)values[i]));
    return list;
}

static bool embed(struct gd_readout *encode, const struct gd_graft *graft, const struct texts *texts, const cJSON *message, cJSON *result,
                  struct gd_error *err)
{
    int64_t dimensions = 0;
    bool base64 = false;
    int length = 0;
    if (!gd_json_get_int(message, "", "dimensions", false, 1, INT32_MAX, &dimensions, err) ||
        !gd_json_get_bool(message, "", "base64", false, &base64, err) || !gd_readout_dimensions(encode, (int)dimensions, &length, err))
        return false;
    float *vectors = gd_alloc_array((size_t)texts->count * (size_t)length + 1, sizeof(float));
    bool ok = gd_readout_embed(encode, graft, texts->item, texts->count, length, vectors, err);
    cJSON *list = cJSON_AddArrayToObject(result, "vectors");
    for (int i = 0; ok && i < texts->count; i++) {
        const float *vector = vectors + (size_t)i * (size_t)length;
        cJSON_AddItemToArray(list, base64 ? base64_json(vector, (size_t)length * sizeof(float)) : numbers_json(vector, length));
    }
    gd_free(vectors);
    return ok;
}

static bool classify(struct gd_readout *encode, const struct gd_graft *graft, const struct texts *texts, cJSON *result, struct gd_error *err)
{
    struct gd_readout_labels labels;
    if (!gd_readout_labels(encode, graft, &labels, err))
        return false;
    float *logits = gd_alloc_array((size_t)texts->count * (size_t)labels.count + 1, sizeof(float));
    double *scores = gd_alloc_array((size_t)labels.count, sizeof(double));
    bool ok = gd_readout_classify(encode, graft, texts->item, texts->count, logits, err);
    cJSON *names = cJSON_AddArrayToObject(result, "labels"), *list = cJSON_AddArrayToObject(result, "scores");
    for (int i = 0; i < labels.count; i++)
        cJSON_AddItemToArray(names, cJSON_CreateString(labels.names[i]));
    cJSON_AddBoolToObject(result, "multi", labels.multi);
    for (int i = 0; ok && i < texts->count; i++) {
        cJSON *one = cJSON_CreateArray();
        gd_label_scores(logits + (size_t)i * (size_t)labels.count, labels.count, labels.multi, scores);
        for (int j = 0; j < labels.count; j++)
            cJSON_AddItemToArray(one, cJSON_CreateNumber(scores[j]));
        cJSON_AddItemToArray(list, one);
    }
    gd_free(logits);
    gd_free(scores);
    return ok;
}

bool gd_worker_encode(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err)
{
    struct gd_resident *resident = NULL;
    struct gd_graft *graft = NULL;
    struct texts texts = {0};
    const char *adapter = NULL, *kind = NULL;
    bool ok = gd_worker_find_model(worker, message, &resident, err) && gd_json_get_string(message, "", "kind", true, 1, 16, &kind, err) &&
              gd_json_get_string(message, "", "adapter_path", false, 1, 4095, &adapter, err) &&
              gd_residents_readout(&worker->residents, resident, err) &&
              (adapter == NULL || gd_residents_graft(&worker->residents, resident, adapter, NULL, &graft, err)) &&
              read_texts(message, resident->model, &texts, err) &&
              (strcmp(kind, "embed") == 0 ? embed(resident->readout, graft, &texts, message, result, err)
                                          : classify(resident->readout, graft, &texts, result, err));
    cJSON *counts = cJSON_AddArrayToObject(result, "tokens");
    for (int i = 0; ok && i < texts.count; i++)
        cJSON_AddItemToArray(counts, cJSON_CreateNumber(texts.item[i].tokens.count));
    release(&texts);
    return ok;
}
