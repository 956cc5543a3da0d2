#include "engine/worker/evaluate.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/worker/choices.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define ANSWER_BYTES_MAX (8u << 20)
#define CHOICES (1 << 20) /* that one seed of the engine has */

#define THINKING_MAX 64
#define IDLE_MS 20

/* An item on its way: either the source looks at it on the other thread (thinking), or it is this thread's. */
struct running {
    struct gd_eval_item item;
    bool begun, thinking;
    int sent;                        /* asks that were given to an engine, or had an error from the start */
    struct running *next;
    struct running *next_thought;    /* in a queue of the thinker */
};

struct queue {
    struct running *first, **last;
};

/*
 * Begins and judges items beside the engine: comparing long texts takes up to a second and Python as long as the operator
 * allows, while requests want their tokens. One thread, so that a source sees one call at a time.
 */
struct thinker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t come, gone;       /* something is to be thought about; something was */
    struct gd_eval_source *source;
    struct queue waiting, thought;
    bool ended;
};

/* One ask in an engine. */
struct flight {
    struct evaluation *evaluation;
    struct running *running;
    int ask;
    struct gd_infer *infer;
    uint64_t sequence;
    struct gd_buf text;
    struct flight *next;
};

struct evaluation {
    struct gd_eval_source *source;
    const struct gd_evaluate_options *options;
    const struct gd_evaluate_observer *observer;
    struct running *first, **last;
    struct flight *flights;
    int flight_count, thinking_count;
    struct thinker thinker;
    int64_t next;                    /* item to begin */
    const struct gd_model *held[GD_RESIDENT_MODELS_MAX];
    int held_count;
};

/* ---- the source, on its own thread ---- */

static void push(struct queue *queue, struct running *running)
{
    running->next_thought = NULL;
    if (queue->first == NULL)
        queue->last = &queue->first;
    *queue->last = running;
    queue->last = &running->next_thought;
}

static struct running *pop(struct queue *queue)
{
    struct running *running = queue->first;
    if (running != NULL)
        queue->first = running->next_thought;
    return running;
}

static void *think(void *context)
{
    struct thinker *thinker = context;
    pthread_mutex_lock(&thinker->mutex);
    while (!thinker->ended) {
        struct running *running = pop(&thinker->waiting);
        if (running == NULL) {
            pthread_cond_wait(&thinker->come, &thinker->mutex);
            continue;
        }
        pthread_mutex_unlock(&thinker->mutex);
        (running->begun ? thinker->source->type->answered : thinker->source->type->begin)(thinker->source, &running->item);
        running->begun = true;
        pthread_mutex_lock(&thinker->mutex);
        push(&thinker->thought, running);
        pthread_cond_signal(&thinker->gone);
    }
    pthread_mutex_unlock(&thinker->mutex);
    return NULL;
}

static bool start_thinker(struct thinker *thinker, struct gd_eval_source *source, struct gd_error *err)
{
    pthread_condattr_t clock;
    thinker->source = source;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&thinker->mutex, NULL);
    pthread_cond_init(&thinker->come, NULL);
    pthread_cond_init(&thinker->gone, &clock);
    pthread_condattr_destroy(&clock);
    int code = pthread_create(&thinker->thread, NULL, think, thinker);
    return code == 0 || gd_fail_errno(err, code, "start a thread");
}

/* It ends what it is at. */
static void stop_thinker(struct thinker *thinker)
{
    pthread_mutex_lock(&thinker->mutex);
    thinker->ended = true;
    pthread_cond_signal(&thinker->come);
    pthread_mutex_unlock(&thinker->mutex);
    pthread_join(thinker->thread, NULL);
    pthread_cond_destroy(&thinker->come);
    pthread_cond_destroy(&thinker->gone);
    pthread_mutex_destroy(&thinker->mutex);
}

static void give_to_source(struct evaluation *evaluation, struct running *running)
{
    struct thinker *thinker = &evaluation->thinker;
    running->thinking = true;
    evaluation->thinking_count++;
    pthread_mutex_lock(&thinker->mutex);
    push(&thinker->waiting, running);
    pthread_cond_signal(&thinker->come);
    pthread_mutex_unlock(&thinker->mutex);
}

/* `idle`: nothing else is to be done, so it waits a little. */
static void take_thoughts(struct evaluation *evaluation, bool idle)
{
    struct thinker *thinker = &evaluation->thinker;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += IDLE_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&thinker->mutex);
    while (idle && thinker->thought.first == NULL)
        if (pthread_cond_timedwait(&thinker->gone, &thinker->mutex, &until) == ETIMEDOUT)
            break;
    for (struct running *running; (running = pop(&thinker->thought)) != NULL; evaluation->thinking_count--)
        running->thinking = false;
    pthread_mutex_unlock(&thinker->mutex);
}

/* ---- answers ---- */

static struct gd_ask *ask_of(const struct flight *flight)
{
    return &flight->running->item.asks[flight->ask];
}

static void on_token(void *context, const struct gd_infer_token *token)
{
    struct flight *flight = context;
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
    struct flight *flight = context;
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
    struct flight **link = &flight->evaluation->flights;
    while (*link != flight)
        link = &(*link)->next;
    *link = flight->next;
    flight->evaluation->flight_count--;
    gd_free(flight);
}

/* ---- asking ---- */

static const struct gd_evaluate_model *find_model(const struct evaluation *evaluation, const char *id, struct gd_error *err)
{
    const struct gd_evaluate_options *options = evaluation->options;
    for (int i = 0; i < options->model_count; i++)
        if (strcmp(options->models[i].id, id) == 0)
            return &options->models[i];
    gd_fail(err, GD_NOT_FOUND, "model '%.200s' is not among those of this run", id);
    return NULL;
}

/* Its engine, and the graft it wears. The base stays as long as the run does. */
static bool seat(struct evaluation *evaluation, const char *id, struct gd_resident **resident, struct gd_graft **graft,
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
    struct evaluation *evaluation;
    struct running *running;
    int ask;
    struct gd_resident *resident;
    struct gd_graft *graft;
};

/* ids: what the model reads; from `from` on it is scored. */
static bool submit(const struct place *place, const int32_t *ids, int count, int from, struct gd_error *err)
{
    struct evaluation *evaluation = place->evaluation;
    struct gd_ask *ask = &place->running->item.asks[place->ask];
    struct gd_choices choices = {{0}};
    struct gd_sampling sampling;
    int taken = count + (place->graft != NULL ? place->graft->virtual_rows.count : 0);
    if (!set_sampling(place->resident->model, &place->running->item, place->ask, taken, &choices, &sampling, err)) {
        gd_choices_release(&choices);
        return false;
    }
    sampling.score_from = sampling.echo ? from : 0;
    struct flight *flight = gd_alloc(sizeof *flight);
    *flight = (struct flight){.evaluation = evaluation, .running = place->running, .ask = place->ask,
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

static bool send_ask(struct evaluation *evaluation, struct running *running, int index, struct gd_error *err)
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

/* False: the engine takes no more for now. */
static bool send_asks(struct evaluation *evaluation, struct running *running)
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

/* ---- items ---- */

static cJSON *usage_of(const struct evaluation *evaluation, const struct gd_eval_item *item)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < item->ask_count; i++) {
        const struct gd_ask *ask = &item->asks[i];
        const char *id = ask->model != NULL ? ask->model : evaluation->source->model;
        const int64_t counts[] = {1, ask->prompt_tokens, ask->completion_tokens, ask->cached_tokens};
        static const char *const names[] = {"invocations", "prompt_tokens", "completion_tokens", "cached_tokens"};
        if (ask->prompt_tokens == 0 || id == NULL)
            continue; /* no model saw it */
        cJSON *entry;
        cJSON_ArrayForEach(entry, list) if (strcmp(gd_json_find(entry, "model")->valuestring, id) == 0) break;
        if (entry == NULL) {
            entry = cJSON_CreateObject();
            cJSON_AddStringToObject(entry, "model", id);
            for (size_t n = 0; n < GD_COUNT(names); n++)
                cJSON_AddNumberToObject(entry, names[n], 0);
            cJSON_AddItemToArray(list, entry);
        }
        for (size_t n = 0; n < GD_COUNT(names); n++) {
            cJSON *value = gd_json_find(entry, names[n]);
            cJSON_SetNumberHelper(value, value->valuedouble + (double)counts[n]);
        }
    }
    return list;
}

static void report(struct evaluation *evaluation, struct running *running)
{
    struct gd_evaluated item = {.index = running->item.index, .status = running->item.status, .body = running->item.body,
                                .usage = usage_of(evaluation, &running->item)};
    running->item.body = NULL;
    evaluation->observer->item(evaluation->observer->context, &item);
}

static void release_running(struct evaluation *evaluation, struct running *running)
{
    const struct gd_eval_source_type *type = evaluation->source->type;
    if (running->item.state != NULL && type->release_item != NULL)
        type->release_item(evaluation->source, &running->item);
    gd_eval_item_release(&running->item);
    gd_free(running);
}

static bool is_done(const struct evaluation *evaluation, int64_t index)
{
    const unsigned char *done = evaluation->options->done;
    return done != NULL && (done[index / 8] >> (index % 8) & 1) != 0;
}

static void begin_items(struct evaluation *evaluation)
{
    while (evaluation->next < evaluation->source->count && evaluation->flight_count < GD_EVALUATE_ASKS_MAX &&
           evaluation->thinking_count < THINKING_MAX) {
        int64_t index = evaluation->next++;
        if (is_done(evaluation, index))
            continue;
        struct running *running = gd_alloc(sizeof *running);
        running->item.index = index;
        *evaluation->last = running;
        evaluation->last = &running->next;
        give_to_source(evaluation, running);
    }
}

/* What the source is not looking at goes on: to the engines, back to the source, or out. */
static void move_items(struct evaluation *evaluation)
{
    struct running **link = &evaluation->first;
    while (*link != NULL) {
        struct running *running = *link;
        if (running->thinking || !running->item.finished) {
            link = &running->next;
            if (!running->thinking && send_asks(evaluation, running) && running->item.unanswered == 0)
                give_to_source(evaluation, running); /* from here on it is not this thread's */
            continue;
        }
        *link = running->next;
        if (*link == NULL)
            evaluation->last = link;
        report(evaluation, running);
        release_running(evaluation, running);
    }
}

static void abandon(struct evaluation *evaluation)
{
    while (evaluation->flights != NULL)
        gd_infer_cancel(evaluation->flights->infer, evaluation->flights->sequence);
    while (evaluation->first != NULL) {
        struct running *running = evaluation->first;
        evaluation->first = running->next;
        release_running(evaluation, running);
    }
    for (int i = 0; i < evaluation->held_count; i++)
        gd_residents_hold(evaluation->options->residents, evaluation->held[i], -1);
}

static bool run_items(struct evaluation *evaluation, struct gd_error *err)
{
    const struct gd_evaluate_observer *observer = evaluation->observer;
    struct gd_residents *residents = evaluation->options->residents;
    while (evaluation->first != NULL || evaluation->next < evaluation->source->count) {
        bool nothing = evaluation->first == NULL;
        enum gd_evaluate_command command = observer->poll(observer->context, nothing);
        if (command == GD_EVALUATE_STOP)
            return gd_fail(err, GD_CANCELLED, "stopped");
        if (command == GD_EVALUATE_GO)
            begin_items(evaluation);
        bool busy = gd_residents_busy(residents); /* with others' requests, too */
        if (busy)
            gd_residents_turn(residents);
        take_thoughts(evaluation, !busy && evaluation->thinking_count > 0);
        move_items(evaluation);
    }
    return true;
}

bool gd_evaluate(struct gd_eval_source *source, const struct gd_evaluate_options *options,
                 const struct gd_evaluate_observer *observer, struct gd_error *err)
{
    struct evaluation evaluation = {.source = source, .options = options, .observer = observer};
    evaluation.last = &evaluation.first;
    if (!start_thinker(&evaluation.thinker, source, err))
        return false;
    bool ok = run_items(&evaluation, err);
    stop_thinker(&evaluation.thinker);
    abandon(&evaluation);
    return ok;
}

bool gd_evaluate_models(const cJSON *list, struct gd_evaluate_model *models, int *count, struct gd_error *err)
{
    const cJSON *model;
    cJSON_ArrayForEach(model, list)
    {
        struct gd_evaluate_model *out = &models[*count];
        if (*count == GD_EVAL_MODELS_MAX)
            return gd_fail(err, GD_INTERNAL, "more than %d models", GD_EVAL_MODELS_MAX);
        if (!gd_json_get_string(model, "models", "id", true, 1, 1023, &out->id, err) ||
            !gd_json_get_string(model, "models", "base_id", true, 1, 1023, &out->base_id, err) ||
            !gd_json_get_string(model, "models", "base_path", true, 1, GD_PATH_BYTES_MAX, &out->base_path, err) ||
            !gd_json_get_string(model, "models", "adapter_path", false, 1, GD_PATH_BYTES_MAX, &out->adapter_path, err))
            return false;
        ++*count;
    }
    return true;
}
