/* evaluate_ask.c - what items ask, in the engines of the models that they ask: from texts to tokens, and back. */
#include "engine/worker/evaluate_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/worker/choices.h"

#include <string.h>

#define ANSWER_BYTES_MAX (8u << 20)
#define CHOICES (1 << 20) /* that one seed of the engine has */

/* ---- answers ---- */

static struct gd_ask *ask_of(const struct gd_eval_flight *flight)
{
    return &flight->running->item.asks[flight->ask];
}

static void on_token(void *context, const struct gd_infer_token *token)
{
    struct gd_eval_flight *flight = context;
    if (!token->from_prompt) {
        for (size_t i = 0; i < token->text_length; i++)
            if (token->text[i] != '\0') /* a model's NUL byte is not text */
                gd_buf_append_char(&flight->text, token->text[i]);
        return;
    }
    struct gd_ask *ask = ask_of(flight);
    ask->loglikelihood += token->logprob;
    ask->greedy = ask->greedy && token->top_count > 0 && token->top[0].id == token->id;
    ask->token_count++;
}

static void on_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                      const struct gd_infer_usage *usage, const struct gd_error *error)
{
    struct gd_eval_flight *flight = context;
    struct gd_ask *ask = ask_of(flight);
    if (finish == GD_FINISH_ERROR)
        ask->error = *error;
    gd_buf_append(&flight->text, tail, tail_length);
    if (flight->text.overflow)
        gd_fail(&ask->error, GD_TOO_LARGE, "the answer has more than %u bytes", ANSWER_BYTES_MAX);
    gd_free(ask->text);
    ask->text = gd_buf_take(&flight->text);
    ask->truncated = finish == GD_FINISH_LENGTH;
    ask->prompt_tokens += usage->prompt_tokens;
    ask->cached_tokens += usage->cached_tokens;
    ask->completion_tokens += usage->completion_tokens;
    if (--ask->parts == 0) {
        ask->answered = true;
        flight->running->item.unanswered--;
    }
    struct gd_eval_flight **link = &flight->evaluation->flights;
    while (*link != flight)
        link = &(*link)->next;
    *link = flight->next;
    flight->evaluation->flight_count--;
    gd_free(flight);
}

/* ---- asking ---- */

static const struct gd_evaluate_model *find_model(const struct gd_evaluation *evaluation, const char *id, struct gd_error *err)
{
    const struct gd_evaluate_options *options = evaluation->options;
    for (int i = 0; i < options->model_count; i++)
        if (strcmp(options->models[i].id, id) == 0)
            return &options->models[i];
    gd_fail(err, GD_NOT_FOUND, "model '%.200s' is not among those of this run", id);
    return NULL;
}

/* Its engine, and the graft it wears. The base stays as long as the run does. */
static bool seat(struct gd_evaluation *evaluation, const char *id, struct gd_resident **resident, struct gd_graft **graft,
                 struct gd_error *err)
{
    struct gd_residents *residents = evaluation->options->residents;
    const struct gd_evaluate_model *model = find_model(evaluation, id, err);
    *graft = NULL;
    if (model == NULL || !gd_residents_model(residents, model->base_id, model->base_path, model->quantization, resident, err))
        return false;
    int at = 0;
    while (at < evaluation->held_count && evaluation->held[at] != (*resident)->model)
        at++;
    if (at == evaluation->held_count) {
        evaluation->held[evaluation->held_count++] = (*resident)->model;
        gd_residents_hold(residents, (*resident)->model, 1);
    }
    const struct gd_eval_source *source = evaluation->source;
    const char *task = source->model != NULL && strcmp(id, source->model) == 0 ? source->task : NULL;
    if (task != NULL && model->adapter_path == NULL)
        return gd_fail_param(err, GD_INVALID, "task", "a base model has no tasks to choose from: leave task out");
    return gd_residents_infer(residents, *resident, err) &&
           (model->adapter_path == NULL || gd_residents_graft(residents, *resident, model->adapter_path, task, graft, err));
}

static bool encode_chat(const struct gd_model *model, const struct gd_ask *ask, struct gd_tokens *tokens,
                        struct gd_error *err)
{
    struct gd_chat_encoding encoding = {0};
    bool ok = gd_chat_encode_prompt(model->chat, ask->messages, ask->tools, &encoding, err);
    for (int i = 0; ok && i < encoding.tokens.count; i++)
        gd_tokens_push(tokens, encoding.tokens.ids[i], 0, 0);
    gd_chat_encoding_release(&encoding);
    if (ok && gd_model_encodes(model))
        gd_chat_end_text(model->chat, tokens);
    return ok;
}

static bool encode(const struct gd_model *model, const char *text, bool add_bos, struct gd_tokens *tokens,
                   struct gd_error *err)
{
    return gd_tokenizer_encode(model->tokenizer, text, strlen(text), GD_SPECIAL_PARSE, add_bos, tokens, err);
}

/* What stands before a text that nothing stands before. */
static bool first_token(const struct gd_model *model, int32_t *first, struct gd_error *err)
{
    *first = gd_tokenizer_bos(model->tokenizer);
    if (*first < 0)
        *first = gd_tokenizer_eos(model->tokenizer);
    return *first >= 0 || gd_fail(err, GD_UNSUPPORTED, "the model has no token for the beginning of a text");
}

/*
 * The continuation's tokens are those that prompt + continuation has beyond the prompt's own; white space that ends the
 * prompt counts as the continuation's, so that words keep the token that has the space in it. An empty prompt is the
 * model's first token.
 */
static bool encode_pair(const struct gd_model *model, const struct gd_ask *ask, struct gd_tokens *tokens, int *from,
                        struct gd_error *err)
{
    const char *prompt = ask->prompt != NULL ? ask->prompt : "";
    size_t length = strlen(prompt);
    while (length > 0 && strchr(" \t\r\n\v\f", prompt[length - 1]) != NULL)
        length--;
    char *whole = gd_format("%s%s", prompt, ask->continuation), *start = gd_strndup(prompt, length);
    struct gd_tokens before = {0};
    bool ok = true;
    if (length == 0) {
        int32_t first = 0;
        ok = first_token(model, &first, err);
        if (ok)
            gd_tokens_push(&before, first, 0, 0);
        for (int i = 0; i < before.count; i++)
            gd_tokens_push(tokens, before.ids[i], 0, 0);
    } else {
        ok = encode(model, start, true, &before, err);
    }
    ok = ok && encode(model, whole, length > 0, tokens, err);
    *from = before.count;
    if (ok && tokens->count <= before.count)
        ok = gd_fail(err, GD_INVALID, "the continuation has no tokens");
    gd_tokens_release(&before);
    gd_free(whole);
    gd_free(start);
    return ok;
}

static bool set_stops(const struct gd_ask *ask, struct gd_sampling *sampling, struct gd_error *err)
{
    const cJSON *stop;
    cJSON_ArrayForEach(stop, ask->stops)
    {
        if (!cJSON_IsString(stop) || stop->valuestring[0] == '\0' || sampling->stop_count == GD_STOPS_MAX)
            return gd_fail(err, GD_INVALID, "stop must hold at most %d strings, none empty", GD_STOPS_MAX);
        sampling->stops[sampling->stop_count++] = stop->valuestring;
    }
    return true;
}

/* Seed, item and ask name the random numbers of an answer. */
static void set_seed(const struct gd_eval_item *item, int index, struct gd_sampling *sampling)
{
    uint64_t more = (uint64_t)(item->index / CHOICES) * GD_EVAL_ASKS_MAX + (uint64_t)index;
    sampling->seed = (uint64_t)item->asks[index].seed + more * UINT64_C(0x9E3779B97F4A7C15);
    sampling->choice = (int)(item->index % CHOICES);
}

/* `taken`: tokens of the context that the prompt has, and the graft. */
static bool set_sampling(const struct gd_model *model, const struct gd_eval_item *item, int index, int taken,
                         struct gd_choices *choices, struct gd_sampling *sampling, struct gd_error *err)
{
    const struct gd_ask *ask = &item->asks[index];
    int room = model->config.context - taken;
    *sampling = (struct gd_sampling){.temperature = ask->temperature, .top_p = ask->top_p, .repetition_penalty = 1,
                                     .logprobs = -1};
    set_seed(item, index, sampling);
    if (ask->kind == GD_ASK_LOGLIKELIHOOD || ask->kind == GD_ASK_ROLLING) {
        *sampling = (struct gd_sampling){.top_p = 1, .repetition_penalty = 1, .logprobs = 1, .echo = true};
        return true;
    }
    sampling->max_tokens = ask->max_tokens >= 0 ? (int)ask->max_tokens : room > 0 ? room : 0;
    return set_stops(ask, sampling, err) && gd_choices_encode(choices, model->tokenizer, ask->choices, sampling, err);
}

/* Where an ask is answered. */
struct place {
    struct gd_evaluation *evaluation;
    struct gd_eval_running *running;
    int ask;
    struct gd_resident *resident;
    struct gd_graft *graft;
};

/* ids: what the model reads; from `from` on it is scored. */
static bool submit(const struct place *place, const int32_t *ids, int count, int from, struct gd_error *err)
{
    struct gd_evaluation *evaluation = place->evaluation;
    struct gd_ask *ask = &place->running->item.asks[place->ask];
    struct gd_choices choices = {{0}};
    struct gd_sampling sampling;
    int taken = count + (place->graft != NULL ? place->graft->virtual_rows.count : 0);
    if (!set_sampling(place->resident->model, &place->running->item, place->ask, taken, &choices, &sampling, err)) {
        gd_choices_release(&choices);
        return false;
    }
    sampling.score_from = sampling.echo ? from : 0;
    struct gd_eval_flight *flight = gd_alloc(sizeof *flight);
    *flight = (struct gd_eval_flight){.evaluation = evaluation, .running = place->running, .ask = place->ask,
                              .infer = place->resident->infer, .next = evaluation->flights};
    gd_buf_init(&flight->text, ANSWER_BYTES_MAX);
    struct gd_infer_sink sink = {.context = flight, .token = on_token, .finish = on_finish};
    bool ok = gd_infer_submit(place->resident->infer, place->graft, ids, count, &sampling, &sink, &flight->sequence, err);
    gd_choices_release(&choices);
    if (!ok) {
        gd_free(flight);
        return false;
    }
    ask->parts++;
    evaluation->flights = flight;
    evaluation->flight_count++;
    return true;
}

/*
 * A whole text, every token of it scored: the first window after the model's first token, each further one after the last
 * token of the one before, the last one with as much before it as there is room for.
 */
static bool submit_windows(const struct place *place, struct gd_error *err)
{
    const struct gd_model *model = place->resident->model;
    struct gd_ask *ask = &place->running->item.asks[place->ask];
    int room = model->config.context - 1;
    int32_t first = 0;
    struct gd_tokens tokens = {0};
    bool ok = first_token(model, &first, err);
    if (ok)
        gd_tokens_push(&tokens, first, 0, 0);
    ok = ok && encode(model, ask->continuation, true, &tokens, err);
    if (ok && tokens.count < 2)
        ok = gd_fail(err, GD_INVALID, "the text has no tokens");
    for (int begin = 1; ok && begin < tokens.count; begin += room) {
        int end = tokens.count - begin > room ? begin + room : tokens.count;
        int start = end - room - 1 > 0 ? end - room - 1 : 0;
        ok = submit(place, tokens.ids + start, end - start, begin - start, err);
    }
    gd_tokens_release(&tokens);
    if (ok || ask->parts == 0)
        return ok;
    ask->error = *err; /* the windows that are on their way end the ask */
    return true;
}

static bool send_ask(struct gd_evaluation *evaluation, struct gd_eval_running *running, int index, struct gd_error *err)
{
    struct gd_ask *ask = &running->item.asks[index];
    const char *id = ask->model != NULL ? ask->model : evaluation->source->model;
    struct place place = {.evaluation = evaluation, .running = running, .ask = index};
    struct gd_tokens tokens = {0};
    int from = 0;
    if (id == NULL)
        return gd_fail(err, GD_INTERNAL, "an item asks a model, and the run has none");
    if (!seat(evaluation, id, &place.resident, &place.graft, err))
        return false;
    const struct gd_model *model = place.resident->model;
    ask->greedy = ask->kind == GD_ASK_LOGLIKELIHOOD || ask->kind == GD_ASK_ROLLING;
    if (ask->kind == GD_ASK_ROLLING)
        return submit_windows(&place, err);
    bool ok = (ask->kind == GD_ASK_CHAT   ? encode_chat(model, ask, &tokens, err)
               : ask->kind == GD_ASK_TEXT ? encode(model, ask->prompt, true, &tokens, err)
                                          : encode_pair(model, ask, &tokens, &from, err)) &&
              submit(&place, tokens.ids, tokens.count, from, err);
    gd_tokens_release(&tokens);
    return ok;
}

bool gd_eval_send_asks(struct gd_evaluation *evaluation, struct gd_eval_running *running)
{
    for (; running->sent < running->item.ask_count; running->sent++) {
        struct gd_ask *ask = &running->item.asks[running->sent];
        struct gd_error err = {0};
        if (ask->answered)
            continue;
        if (evaluation->flight_count >= GD_EVALUATE_ASKS_MAX)
            return false;
        running->item.unanswered++;
        if (send_ask(evaluation, running, running->sent, &err))
            continue;
        running->item.unanswered--;
        if (err.code == GD_BUSY && evaluation->flight_count > 0)
            return false;
        ask->error = err;
        ask->answered = true;
    }
    return true;
}
