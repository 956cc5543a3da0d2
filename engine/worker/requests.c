/* requests.c - what clients ask of a worker: completions, previews of rows, tokens, descriptions. */
#include "engine/worker/worker.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/worker/choices.h"
#include "engine/worker/plan.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void gd_worker_fail(struct gd_worker *worker, const cJSON *id, const struct gd_error *err)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", "failed");
    cJSON_AddItemToObject(json, "id", cJSON_Duplicate(id, true));
    cJSON_AddItemToObject(json, "error", gd_error_to_json(err));
    gd_channel_send(&worker->channel, json);
}

static cJSON *answer(const char *type, const cJSON *id)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", type);
    cJSON_AddItemToObject(json, "id", cJSON_Duplicate(id, true));
    return json;
}

/* ---- generate ---- */

struct generation {
    struct gd_worker *worker;
    double id;
    uint64_t sequence;
    struct gd_infer *infer;
    struct gd_tokenizer *tokenizer;
    bool scores;
    double score;
    struct generation *next;
};

static struct generation *generations; /* running ones, for generate_cancel */

/* Bytes that are not valid UTF-8 by themselves travel as numbers. */
static cJSON *piece_json(const char *bytes, size_t length)
{
    if (gd_utf8_valid(bytes, length) && memchr(bytes, 0, length) == NULL) {
        char *text = gd_strndup(bytes, length);
        cJSON *json = cJSON_CreateString(text);
        gd_free(text);
        return json;
    }
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < length; i++)
        cJSON_AddItemToArray(list, cJSON_CreateNumber((unsigned char)bytes[i]));
    return list;
}

static void add_text(cJSON *json, const char *key, const char *text, size_t length)
{
    struct gd_buf copy;
    gd_buf_init(&copy, GD_FRAME_BYTES_MAX);
    for (size_t i = 0; i < length; i++)
        if (text[i] != '\0') /* JSON strings of the library end at NUL; a model's NUL byte is not text */
            gd_buf_append_char(&copy, text[i]);
    cJSON_AddStringToObject(json, key, copy.length ? copy.data : "");
    gd_buf_release(&copy);
}

static void on_token(void *context, const struct gd_infer_token *token)
{
    struct generation *generation = context;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", "token");
    cJSON_AddNumberToObject(json, "id", generation->id);
    cJSON_AddNumberToObject(json, "token", token->id);
    add_text(json, "text", token->text, token->text_length);
    cJSON_AddItemToObject(json, "piece", piece_json(token->piece, token->piece_length));
    if (token->has_logprob)
        cJSON_AddNumberToObject(json, "logprob", token->logprob);
    else
        cJSON_AddNullToObject(json, "logprob");
    cJSON *top = cJSON_AddArrayToObject(json, "top");
    for (int i = 0; i < token->top_count; i++) {
        struct gd_buf piece;
        gd_buf_init(&piece, 0);
        gd_tokenizer_piece(generation->tokenizer, token->top[i].id, true, &piece);
        cJSON *entry = cJSON_CreateArray();
        cJSON_AddItemToArray(entry, cJSON_CreateNumber(token->top[i].id));
        cJSON_AddItemToArray(entry, piece_json(piece.length ? piece.data : "", piece.length));
        cJSON_AddItemToArray(entry, cJSON_CreateNumber(token->top[i].logprob));
        cJSON_AddItemToArray(top, entry);
        gd_buf_release(&piece);
    }
    cJSON_AddBoolToObject(json, "prompt", token->from_prompt);
    gd_channel_send(&generation->worker->channel, json);
}

static void on_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                      const struct gd_infer_usage *usage, const struct gd_error *error)
{
    struct generation *generation = context;
    cJSON *id = cJSON_CreateNumber(generation->id);
    if (finish == GD_FINISH_ERROR) {
        gd_worker_fail(generation->worker, id, error);
    } else {
        cJSON *json = answer(generation->scores ? "scored" : "generated", id);
        if (generation->scores)
            cJSON_AddNumberToObject(json, "score", generation->score);
        cJSON_AddStringToObject(json, "finish", finish == GD_FINISH_STOP ? "stop" : finish == GD_FINISH_LENGTH ? "length" : "cancelled");
        add_text(json, "tail", tail, tail_length);
        cJSON *counts = cJSON_AddObjectToObject(json, "usage");
        cJSON_AddNumberToObject(counts, "prompt_tokens", usage->prompt_tokens);
        cJSON_AddNumberToObject(counts, "cached_tokens", usage->cached_tokens);
        cJSON_AddNumberToObject(counts, "completion_tokens", usage->completion_tokens);
        gd_channel_send(&generation->worker->channel, json);
    }
    cJSON_Delete(id);
    struct generation **link = &generations;
    while (*link != NULL && *link != generation)
        link = &(*link)->next;
    if (*link != NULL)
        *link = generation->next;
    gd_free(generation);
}

static void on_score(void *context, double score)
{
    struct generation *generation = context;
    generation->score = score;
}

static bool read_stops(const cJSON *json, struct gd_sampling *sampling, struct gd_error *err)
{
    const cJSON *list = NULL, *item;
    if (!gd_json_get_array(json, "sampling", "stop", false, &list, err))
        return false;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsString(item) || sampling->stop_count == GD_STOPS_MAX)
            return gd_fail_param(err, GD_INVALID, "stop", "stop must hold at most %d strings", GD_STOPS_MAX);
        sampling->stops[sampling->stop_count++] = item->valuestring;
    }
    return true;
}

static bool read_bias(const cJSON *json, int vocab, struct gd_sampling *sampling, struct gd_error *err)
{
    const cJSON *object = NULL, *item;
    if (!gd_json_get_object(json, "sampling", "logit_bias", false, &object, err) || object == NULL)
        return err->code == GD_OK;
    int count = cJSON_GetArraySize(object);
    sampling->bias_ids = gd_alloc_array((size_t)count + 1, sizeof(int32_t));
    sampling->bias_values = gd_alloc_array((size_t)count + 1, sizeof(float));
    cJSON_ArrayForEach(item, object)
    {
        char *end;
        long id = strtol(item->string, &end, 10);
        if (*end != '\0' || end == item->string || id < 0 || id >= vocab || !cJSON_IsNumber(item))
            return gd_fail_param(err, GD_INVALID, "logit_bias", "logit_bias key '%.40s' is not a token id of this model (0 to %d)",
                                 item->string, vocab - 1);
        sampling->bias_ids[sampling->bias_count] = (int32_t)id;
        sampling->bias_values[sampling->bias_count++] = (float)item->valuedouble;
    }
    return true;
}

/* taken: rows of the context that prompt and graft hold. */
static bool read_sampling(const cJSON *message, const struct gd_model *model, int taken, struct gd_sampling *sampling,
                          struct gd_error *err)
{
    const cJSON *json = NULL;
    const char *seed = "0";
    int64_t top_k = 0, max_tokens = -1, logprobs = -1, choice = 0;
    *sampling = (struct gd_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    const char *p = "sampling";
    if (!gd_json_get_object(message, "", "sampling", true, &json, err) ||
        !gd_json_get_int(message, "", "choice", false, 0, INT32_MAX, &choice, err) ||
        !gd_json_get_number(json, p, "temperature", false, 0, 100, &sampling->temperature, err) ||
        !gd_json_get_number(json, p, "top_p", false, 0, 1, &sampling->top_p, err) ||
        !gd_json_get_int(json, p, "top_k", false, 0, INT32_MAX, &top_k, err) ||
        !gd_json_get_number(json, p, "min_p", false, 0, 1, &sampling->min_p, err) ||
        !gd_json_get_number(json, p, "frequency_penalty", false, -100, 100, &sampling->frequency_penalty, err) ||
        !gd_json_get_number(json, p, "presence_penalty", false, -100, 100, &sampling->presence_penalty, err) ||
        !gd_json_get_number(json, p, "repetition_penalty", false, 1e-3, 1e3, &sampling->repetition_penalty, err) ||
        !gd_json_get_string(json, p, "seed", false, 1, 24, &seed, err) ||
        !gd_json_get_int(json, p, "max_tokens", false, 0, INT32_MAX, &max_tokens, err) ||
        !gd_json_get_bool(json, p, "ignore_eos", false, &sampling->ignore_eos, err) ||
        !gd_json_get_int(json, p, "logprobs", false, -1, GD_TOP_LOGPROBS_MAX, &logprobs, err) ||
        !gd_json_get_bool(json, p, "echo", false, &sampling->echo, err) || !read_stops(json, sampling, err) ||
        !read_bias(json, model->config.vocab, sampling, err))
        return false;
    errno = 0;
    sampling->seed = seed[0] == '-' ? (uint64_t)strtoll(seed, NULL, 10) : strtoull(seed, NULL, 10);
    sampling->choice = (int)choice;
    sampling->top_k = (int)top_k;
    sampling->logprobs = (int)logprobs;
    int room = model->config.context - (gd_model_encodes(model) ? 0 : taken);
    sampling->max_tokens = max_tokens < 0 ? (room > 0 ? room : 0) : (int)max_tokens;
    return true;
}

bool gd_worker_read_ids(const cJSON *list, struct gd_tokens *tokens, struct gd_error *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) || item->valuedouble < 0 ||
            item->valuedouble > INT32_MAX)
            return gd_fail_param(err, GD_INVALID, "prompt", "a token array must hold non-negative integers");
        gd_tokens_push(tokens, (int32_t)item->valuedouble, 0, 0);
    }
    return true;
}

/* The prompt's ids: a rendered chat, a text, or ids as given. */
static bool read_prompt(const cJSON *message, const struct gd_model *model, struct gd_tokens *tokens, struct gd_error *err)
{
    const char *kind = NULL;
    if (!gd_json_get_string(message, "", "kind", true, 1, 16, &kind, err))
        return false;
    if (strcmp(kind, "chat") == 0) {
        struct gd_chat_encoding encoding = {0};
        bool ok = gd_chat_encode_prompt_with(model->chat, gd_json_find(message, "messages"), gd_json_find(message, "tools"),
                                             gd_json_find(message, "chat_template_kwargs"), &encoding, err);
        for (int i = 0; ok && i < encoding.tokens.count; i++)
            gd_tokens_push(tokens, encoding.tokens.ids[i], 0, 0);
        gd_chat_encoding_release(&encoding);
        if (ok && gd_model_encodes(model))
            gd_chat_end_text(model->chat, tokens);
        return ok;
    }
    const cJSON *prompt = gd_json_find(message, "prompt");
    if (cJSON_IsArray(prompt))
        return gd_worker_read_ids(prompt, tokens, err);
    if (!cJSON_IsString(prompt))
        return gd_fail_param(err, GD_INVALID, "prompt", "prompt must be a string or an array of token ids");
    if (!gd_tokenizer_encode(model->tokenizer, prompt->valuestring, strlen(prompt->valuestring), GD_SPECIAL_PARSE, true, tokens, err))
        return false;
    if (gd_model_encodes(model))
        gd_chat_end_text(model->chat, tokens);
    return true;
}

/* The whole conversation as training has it, or a text, or ids. */
static bool read_scored(const cJSON *message, const struct gd_model *model, struct gd_tokens *tokens, struct gd_error *err)
{
    const cJSON *messages = gd_json_find(message, "messages"), *prompt = gd_json_find(message, "prompt");
    struct gd_chat_encoding encoding = {0};
    if (messages == NULL && cJSON_IsArray(prompt))
        return gd_worker_read_ids(prompt, tokens, err);
    if (messages == NULL)
        return cJSON_IsString(prompt) ? gd_tokenizer_encode(model->tokenizer, prompt->valuestring, strlen(prompt->valuestring),
                                                            GD_SPECIAL_PARSE, true, tokens, err)
                                      : gd_fail_param(err, GD_INVALID, "input", "input must be text, token ids or messages");
    bool ok = gd_chat_encode_training(model->chat, messages, NULL, NULL, &encoding, err);
    for (int i = 0; ok && i < encoding.tokens.count; i++)
        gd_tokens_push(tokens, encoding.tokens.ids[i], 0, 0);
    gd_chat_encoding_release(&encoding);
    return ok;
}

bool gd_worker_find_model(struct gd_worker *worker, const cJSON *message, struct gd_resident **resident, struct gd_error *err)
{
    const char *path = NULL, *id = NULL;
    if (!gd_json_get_string(message, "", "model_path", true, 1, 4095, &path, err) ||
        !gd_json_get_string(message, "", "model_id", false, 1, 511, &id, err))
        return false;
    return gd_residents_model(&worker->residents, id ? id : path, path, GD_QUANTIZATION_NONE, resident, err);
}

static bool check_task(const char *adapter, const char *task, struct gd_error *err)
{
    return adapter != NULL || task == NULL ||
           gd_fail_param(err, GD_INVALID, "task", "a base model has no tasks to choose from: leave task out");
}

static bool generate(struct gd_worker *worker, const cJSON *message, bool scores, struct gd_error *err)
{
    struct gd_resident *resident = NULL;
    struct gd_graft *graft = NULL;
    struct gd_tokens prompt = {0};
    struct gd_sampling sampling = {0};
    struct gd_choices choices = {{0}};
    const char *adapter = NULL, *task = NULL;
    const cJSON *id = gd_json_find(message, "id");
    bool ok = gd_worker_find_model(worker, message, &resident, err) && gd_residents_infer(&worker->residents, resident, err) &&
              gd_json_get_string(message, "", "adapter_path", false, 1, 4095, &adapter, err) &&
              gd_json_get_string(message, "", "task", false, 1, 63, &task, err) && check_task(adapter, task, err) &&
              (adapter == NULL || gd_residents_graft(&worker->residents, resident, adapter, task, &graft, err)) &&
              (scores ? read_scored : read_prompt)(message, resident->model, &prompt, err) &&
              (scores || (read_sampling(message, resident->model, prompt.count + (graft != NULL ? graft->virtual_rows.count : 0),
                                        &sampling, err) &&
                          gd_choices_encode(&choices, resident->model->tokenizer,
                                            gd_json_find(gd_json_find(message, "sampling"), "choices"), &sampling, err)));
    if (scores)
        sampling = (struct gd_sampling){.score = true, .top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    if (ok) {
        struct generation *generation = gd_alloc(sizeof(*generation));
        *generation = (struct generation){.worker = worker, .id = id->valuedouble, .infer = resident->infer,
                                          .tokenizer = resident->model->tokenizer, .scores = scores, .next = generations};
        struct gd_infer_sink sink = {.context = generation, .token = on_token, .score = on_score, .finish = on_finish};
        generations = generation;
        ok = gd_infer_submit(resident->infer, graft, prompt.ids, prompt.count, &sampling, &sink, &generation->sequence, err);
        if (!ok) {
            generations = generation->next;
            gd_free(generation);
        }
    }
    gd_free(sampling.bias_ids);
    gd_free(sampling.bias_values);
    gd_tokens_release(&prompt);
    gd_choices_release(&choices);
    return ok;
}

static void generate_cancel(const cJSON *id)
{
    for (struct generation *generation = generations; generation != NULL; generation = generation->next) {
        if (generation->id == id->valuedouble) {
            gd_infer_cancel(generation->infer, generation->sequence); /* frees the generation through on_finish */
            return;
        }
    }
}

/* ---- previews and tokens ---- */

static cJSON *encoding_json(const struct gd_model *model, const struct gd_chat_encoding *encoding)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "text", encoding->text.length ? encoding->text.data : "");
    cJSON_AddNumberToObject(json, "token_count", encoding->tokens.count);
    int trained = 0;
    cJSON *tokens = cJSON_AddArrayToObject(json, "tokens");
    for (int i = 0; i < encoding->tokens.count; i++) {
        struct gd_buf piece;
        gd_buf_init(&piece, 0);
        gd_tokenizer_piece(model->tokenizer, encoding->tokens.ids[i], true, &piece);
        cJSON *token = cJSON_CreateObject();
        cJSON_AddNumberToObject(token, "id", encoding->tokens.ids[i]);
        cJSON_AddItemToObject(token, "text", piece_json(piece.length ? piece.data : "", piece.length));
        cJSON_AddNumberToObject(token, "weight", encoding->weights[i]);
        cJSON_AddItemToArray(tokens, token);
        trained += i > 0 && encoding->weights[i] > 0;
        gd_buf_release(&piece);
    }
    cJSON_AddNumberToObject(json, "trained_tokens", trained);
    cJSON_AddNumberToObject(json, "context", model->config.context);
    int answer = encoding->tokens.count - encoding->encoded, longest = answer > encoding->encoded ? answer : encoding->encoded;
    cJSON_AddBoolToObject(json, "overlong", longest > model->config.context);
    return json;
}

/* One side of a row. */
static cJSON *side_json(const struct gd_model *model, const struct gd_row *row, int side, struct gd_error *err)
{
    struct gd_chat_encoding encoding = {0};
    bool apart = gd_model_encodes(model) && !gd_row_is_pair(row) && row->format != GD_ROW_CLASSIFIED;
    int second = 0, whole = 0;
    if (row->format == GD_ROW_CLASSIFIED) {
        bool ok = gd_text_encode(model->tokenizer, row->text, row->text_pair, 0, &encoding.tokens, &second, &whole, err);
        encoding.weights = gd_alloc_array((size_t)encoding.tokens.count + 1, sizeof *encoding.weights);
        gd_buf_init(&encoding.text, 0);
        if (ok)
            gd_tokenizer_decode(model->tokenizer, encoding.tokens.ids, encoding.tokens.count, false, &encoding.text);
        else
            gd_chat_encoding_release(&encoding);
        if (!ok)
            return NULL;
    } else if (apart ? !gd_row_encode_apart(model->chat, row, &encoding, err) : !gd_row_encode(model->chat, row, side, &encoding, err)) {
        return NULL;
    }
    cJSON *json = encoding_json(model, &encoding);
    if (apart)
        cJSON_AddNumberToObject(json, "encoder_tokens", encoding.encoded);
    gd_chat_encoding_release(&encoding);
    return json;
}

cJSON *gd_render_row(const struct gd_model *model, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_row row = {0};
    if (!gd_row_parse(&row, text, length, line, err))
        return NULL;
    cJSON *json = side_json(model, &row, 0, err);
    cJSON *rejected = json != NULL && gd_row_is_pair(&row) ? side_json(model, &row, 1, err) : NULL;
    if (json != NULL && gd_row_is_pair(&row) && rejected == NULL) {
        cJSON_Delete(json);
        json = NULL;
    }
    if (json != NULL) {
        cJSON_AddStringToObject(json, "format", gd_row_format_name(row.format));
        cJSON_AddNumberToObject(json, "line", (double)line);
        if (row.format == GD_ROW_LABELLED)
            cJSON_AddBoolToObject(json, "label", row.desirable);
        if (row.format == GD_ROW_CLASSIFIED)
            cJSON_AddItemToObject(json, "label", cJSON_Duplicate(row.label, true));
    }
    if (rejected != NULL)
        cJSON_AddItemToObject(json, "rejected", rejected);
    gd_row_release(&row);
    return json;
}

static bool render(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err)
{
    struct gd_resident *resident = NULL;
    const char *text = NULL;
    int64_t line = 1;
    if (!gd_worker_find_model(worker, message, &resident, err) ||
        !gd_json_get_string(message, "", "row_text", true, 0, GD_ROW_BYTES_MAX, &text, err) ||
        !gd_json_get_int(message, "", "line", false, 1, INT64_MAX >> 11, &line, err))
        return false;
    cJSON *json = gd_render_row(resident->model, text, strlen(text), line, err);
    if (json == NULL)
        return false;
    cJSON_AddItemToObject(result, "result", json);
    return true;
}

static bool tokenize(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err)
{
    struct gd_resident *resident = NULL;
    const char *text = NULL;
    bool specials = true;
    struct gd_tokens tokens = {0};
    bool ok = gd_worker_find_model(worker, message, &resident, err) &&
              gd_json_get_string(message, "", "text", true, 0, GD_ROW_BYTES_MAX, &text, err) &&
              gd_json_get_bool(message, "", "add_special_tokens", false, &specials, err) &&
              gd_tokenizer_encode(resident->model->tokenizer, text, strlen(text), GD_SPECIAL_PARSE, specials, &tokens, err);
    if (ok) {
        cJSON *list = cJSON_AddArrayToObject(result, "tokens");
        for (int i = 0; i < tokens.count; i++)
            cJSON_AddItemToArray(list, cJSON_CreateNumber(tokens.ids[i]));
        cJSON_AddNumberToObject(result, "context", resident->model->config.context);
        const char *eos = gd_tokenizer_token(resident->model->tokenizer, gd_tokenizer_eos(resident->model->tokenizer));
        const char *bos = gd_tokenizer_token(resident->model->tokenizer, gd_tokenizer_bos(resident->model->tokenizer));
        cJSON_AddItemToObject(result, "eos_token", eos ? cJSON_CreateString(eos) : cJSON_CreateNull());
        cJSON_AddItemToObject(result, "bos_token", bos ? cJSON_CreateString(bos) : cJSON_CreateNull());
    }
    gd_tokens_release(&tokens);
    return ok;
}

static bool detokenize(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err)
{
    struct gd_resident *resident = NULL;
    const cJSON *list = NULL;
    struct gd_tokens tokens = {0};
    bool ok = gd_worker_find_model(worker, message, &resident, err) && gd_json_get_array(message, "", "tokens", true, &list, err) &&
              gd_worker_read_ids(list, &tokens, err);
    if (ok) {
        struct gd_buf text;
        gd_buf_init(&text, GD_FRAME_BYTES_MAX);
        gd_tokenizer_decode(resident->model->tokenizer, tokens.ids, tokens.count, false, &text);
        add_text(result, "text", text.length ? text.data : "", text.length);
        gd_buf_release(&text);
    }
    gd_tokens_release(&tokens);
    return ok;
}

static bool describe(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err)
{
    struct gd_resident *resident = NULL;
    if (!gd_worker_find_model(worker, message, &resident, err))
        return false;
    cJSON_AddItemToObject(result, "result", gd_model_describe(resident->model, false));
    return true;
}

/* What a job would need: {memory}. */
static bool plan_job(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err)
{
    const cJSON *body = NULL;
    const char *model = NULL;
    struct gd_plan_request request = {0};
    struct gd_job_spec spec;
    cJSON *memory = NULL;
    if (!gd_json_get_object(message, "", "spec", true, &body, err) ||
        !gd_json_get_string(message, "", "model_path", true, 1, GD_PATH_BYTES_MAX, &model, err) ||
        !gd_json_get_string(message, "", "training_path", true, 1, GD_PATH_BYTES_MAX, &request.training_path, err) ||
        !gd_json_get_string(message, "", "validation_path", false, 1, GD_PATH_BYTES_MAX, &request.validation_path, err) ||
        !gd_json_get_string(message, "", "init_path", false, 1, GD_PATH_BYTES_MAX, &request.init_path, err) ||
        !gd_job_spec_parse(&spec, body, err))
        return false;
    bool ok = gd_plan_job(&worker->residents, &spec, model, &request, &memory, err);
    if (ok)
        cJSON_AddItemToObject(result, "memory", memory);
    gd_job_spec_release(&spec);
    return ok;
}

void gd_worker_request(struct gd_worker *worker, const char *type, const cJSON *message)
{
    static const struct {
        const char *type;
        bool (*run)(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err);
    } requests[] = {{"render", render}, {"tokenize", tokenize}, {"detokenize", detokenize}, {"describe", describe},
                  {"plan", plan_job}, {"encode", gd_worker_encode}};
    struct gd_error err = {0};
    const cJSON *id = gd_json_find(message, "id");
    if (!cJSON_IsNumber(id))
        return;
    if (strcmp(type, "generate_cancel") == 0) {
        generate_cancel(id);
        return;
    }
    if (strcmp(type, "generate") == 0 || strcmp(type, "score") == 0) {
        if (!generate(worker, message, strcmp(type, "score") == 0, &err))
            gd_worker_fail(worker, id, &err);
        return;
    }
    for (size_t i = 0; i < GD_COUNT(requests); i++) {
        if (strcmp(requests[i].type, type) != 0)
            continue;
        cJSON *result = answer("result", id);
        if (requests[i].run(worker, message, result, &err)) {
            gd_channel_send(&worker->channel, result);
        } else {
            cJSON_Delete(result);
            gd_worker_fail(worker, id, &err);
        }
        return;
    }
    gd_fail(&err, GD_INTERNAL, "message type '%.40s' is unknown to this worker", type);
    gd_worker_fail(worker, id, &err);
}
