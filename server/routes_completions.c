/* Runs completions: one generate request for each sequence, gathered into one answer or passed on as a stream. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/worker/protocol.h"
#include "server/app.h"
#include "server/completion.h"
#include "server/counters.h"
#include "server/gather.h"
#include "server/handlers.h"
#include <stdio.h>
#include <string.h>

struct completion;

struct choice {
    struct completion *completion;
    int prompt, index;               /* which prompt, and the place in choices */
    bool begun, prompt_over;
    struct gd_buf text;              /* not sent yet; all of it without a stream */
    cJSON *logprobs;                 /* of the same tokens, or NULL */
    int64_t offset;                  /* characters so far */
    double logprob_sum;
    int generated;
    char finish[16];
    struct gd_completion_usage usage;
};

struct completion {
    struct gd_app *app;
    struct gd_gather *gather;
    struct gd_completion_ask ask;
    struct gd_completion_head head;
    char id[40];
    char *model;
    struct choice *choices;
    int choice_count;
    double started;
    bool first_seen;
};

static void release(void *context)
{
    struct completion *completion = context;
    for (int i = 0; i < completion->choice_count; i++) {
        gd_buf_release(&completion->choices[i].text);
        cJSON_Delete(completion->choices[i].logprobs);
    }
    gd_free(completion->choices);
    gd_free(completion->model);
    gd_completion_ask_release(&completion->ask);
    gd_free(completion);
}

/* ---- the answer ---- */

static const char *text_of(const struct choice *choice)
{
    return choice->text.data != NULL ? choice->text.data : "";
}

static cJSON *take_logprobs(struct choice *choice)
{
    cJSON *logprobs = choice->logprobs;
    choice->logprobs = NULL;
    return logprobs;
}

/* Usage of all sequences; a prompt counts once however many were made of it. */
static struct gd_completion_usage total_usage(const struct completion *completion)
{
    struct gd_completion_usage total = {0};
    for (int i = 0; i < completion->choice_count; i++) {
        const struct choice *choice = &completion->choices[i];
        total.completion_tokens += choice->usage.completion_tokens;
        if (i % completion->ask.best_of != 0)
            continue;
        total.prompt_tokens += choice->usage.prompt_tokens;
        total.cached_tokens += choice->usage.cached_tokens;
    }
    return total;
}

static double mean_logprob(const struct choice *choice)
{
    return choice->generated > 0 ? choice->logprob_sum / choice->generated : 0;
}

/* The n best of a prompt's sequences get the first places, in the order of their means; the rest get none. */
static void rank(struct completion *completion)
{
    int n = completion->ask.n, best_of = completion->ask.best_of;
    for (int prompt = 0; prompt < completion->ask.prompt_count && best_of > n; prompt++) {
        struct choice *group = &completion->choices[prompt * best_of];
        for (int i = 0; i < best_of; i++) {
            int better = 0;
            for (int j = 0; j < best_of; j++)
                better += mean_logprob(&group[j]) > mean_logprob(&group[i]) ||
                          (j < i && mean_logprob(&group[j]) == mean_logprob(&group[i]));
            group[i].index = better < n ? prompt * n + better : -1;
        }
    }
}

static cJSON *whole_answer(struct completion *completion)
{
    int shown = completion->ask.prompt_count * completion->ask.n;
    cJSON **ordered = gd_alloc_array((size_t)shown, sizeof *ordered);
    rank(completion);
    for (int i = 0; i < completion->choice_count; i++) {
        struct choice *choice = &completion->choices[i];
        if (choice->index >= 0)
            ordered[choice->index] = gd_completion_choice(&completion->head, choice->index, text_of(choice),
                                                          take_logprobs(choice), choice->finish, false);
    }
    cJSON *choices = cJSON_CreateArray();
    for (int i = 0; i < shown; i++)
        cJSON_AddItemToArray(choices, ordered[i]);
    gd_free(ordered);
    struct gd_completion_usage usage = total_usage(completion);
    return gd_completion_json(&completion->head, choices, &usage, false);
}

/* ---- the stream ---- */

static void send_choice(struct completion *completion, cJSON *choice_taken)
{
    cJSON *choices = cJSON_CreateArray();
    cJSON_AddItemToArray(choices, choice_taken);
    gd_gather_send(completion->gather, gd_completion_json(&completion->head, choices, NULL, completion->ask.include_usage));
}

static void begin_choice(struct choice *choice)
{
    struct completion *completion = choice->completion;
    gd_gather_stream(completion->gather);
    if (choice->begun)
        return;
    choice->begun = true;
    if (completion->ask.chat)
        send_choice(completion, gd_completion_choice(&completion->head, choice->index, NULL, NULL, NULL, true));
}

/* Log-probabilities wait for the text that they belong to: a chunk never holds the one without the other. */
static void send_text(struct choice *choice)
{
    struct completion *completion = choice->completion;
    if (choice->text.length == 0)
        return;
    send_choice(completion, gd_completion_choice(&completion->head, choice->index, text_of(choice), take_logprobs(choice),
                                                 NULL, false));
    gd_buf_clear(&choice->text);
}

static void send_end(struct choice *choice)
{
    struct completion *completion = choice->completion;
    if (completion->ask.chat && (choice->text.length > 0 || choice->logprobs != NULL)) {
        send_choice(completion, gd_completion_choice(&completion->head, choice->index, text_of(choice), take_logprobs(choice),
                                                     NULL, false));
        gd_buf_clear(&choice->text);
    }
    send_choice(completion, gd_completion_choice(&completion->head, choice->index, completion->ask.chat ? NULL : text_of(choice),
                                                 take_logprobs(choice), choice->finish, false));
    gd_buf_clear(&choice->text);
}

static void send_usage(struct completion *completion)
{
    struct gd_completion_usage usage = total_usage(completion);
    gd_gather_send(completion->gather, gd_completion_json(&completion->head, NULL, &usage, false));
}

static cJSON *reply(void *context, double *prompt_tokens)
{
    struct completion *completion = context;
    if (!completion->ask.stream)
        return whole_answer(completion);
    if (completion->ask.include_usage)
        send_usage(completion);
    return NULL;
}

/* ---- frames ---- */

static void note_first_token(struct completion *completion)
{
    if (completion->first_seen)
        return;
    completion->first_seen = true;
    gd_counters_observe(completion->app->counters, GD_COUNTER_FIRST_TOKEN, gd_time_monotonic() - completion->started, NULL);
}

static void hear(void *context, int part, const cJSON *frame)
{
    struct completion *completion = context;
    struct choice *choice = &completion->choices[part];
    const struct gd_completion_ask *ask = &completion->ask;
    const cJSON *text = gd_json_find(frame, "text"), *logprob = gd_json_find(frame, "logprob");
    bool of_prompt = cJSON_IsTrue(gd_json_find(frame, "prompt"));
    if (!of_prompt)
        note_first_token(completion);
    if (ask->stream)
        begin_choice(choice);
    if (ask->stream && !of_prompt && !choice->prompt_over)
        send_text(choice); /* an echoed prompt goes out in one piece */
    choice->prompt_over = choice->prompt_over || !of_prompt;
    if (cJSON_IsString(text))
        gd_buf_append_text(&choice->text, text->valuestring);
    if (ask->logprobs >= 0) {
        if (choice->logprobs == NULL)
            choice->logprobs = gd_completion_logprobs(ask->chat);
        gd_completion_logprobs_add(choice->logprobs, ask->chat, frame, ask->logprobs, choice->offset);
        choice->offset += gd_completion_piece_characters(frame);
    }
    if (!of_prompt) {
        choice->generated++;
        choice->logprob_sum += cJSON_IsNumber(logprob) ? logprob->valuedouble : -9999.0;
        if (ask->stream)
            send_text(choice);
    }
}

static bool take(void *context, int part, const cJSON *frame, struct gd_error *err)
{
    struct completion *completion = context;
    struct choice *choice = &completion->choices[part];
    const cJSON *finish = gd_json_find(frame, "finish"), *tail = gd_json_find(frame, "tail");
    const cJSON *usage = gd_json_find(frame, "usage");
    if (!cJSON_IsString(finish) || strcmp(finish->valuestring, "cancelled") == 0)
        return gd_fail(err, GD_UNAVAILABLE, "the worker gave up this request: try again");
    snprintf(choice->finish, sizeof choice->finish, "%s", finish->valuestring);
    choice->usage.prompt_tokens = gd_frame_int(usage, "prompt_tokens", 0);
    choice->usage.cached_tokens = gd_frame_int(usage, "cached_tokens", 0);
    choice->usage.completion_tokens = gd_frame_int(usage, "completion_tokens", 0);
    gd_counters_add(completion->app->counters, GD_COUNTER_PROMPT_TOKENS, (double)choice->usage.prompt_tokens, NULL);
    gd_counters_add(completion->app->counters, GD_COUNTER_GENERATED_TOKENS, (double)choice->usage.completion_tokens, NULL);
    if (cJSON_IsString(tail))
        gd_buf_append_text(&choice->text, tail->valuestring);
    if (completion->ask.stream) {
        begin_choice(choice);
        send_end(choice);
    }
    return true;
}

/* ---- the questions ---- */

static cJSON *ask_choice(void *context, int part)
{
    const struct completion *completion = context;
    const struct gd_completion_ask *ask = &completion->ask;
    cJSON *message = cJSON_CreateObject();
    cJSON_AddItemToObject(message, "task", ask->task[0] != '\0' ? cJSON_CreateString(ask->task) : cJSON_CreateNull());
    cJSON_AddStringToObject(message, "kind", ask->chat ? "chat" : "text");
    if (ask->chat) {
        cJSON_AddItemToObject(message, "messages", cJSON_Duplicate(ask->messages, true));
        cJSON_AddItemToObject(message, "tools", ask->tools != NULL ? cJSON_Duplicate(ask->tools, true) : cJSON_CreateNull());
        if (ask->template_kwargs != NULL)
            cJSON_AddItemToObject(message, "chat_template_kwargs", cJSON_Duplicate(ask->template_kwargs, true));
    } else {
        cJSON_AddItemToObject(message, "prompt", cJSON_Duplicate(ask->prompts[completion->choices[part].prompt], true));
    }
    cJSON_AddNumberToObject(message, "choice", part % ask->best_of);
    cJSON_AddItemToObject(message, "sampling", cJSON_Duplicate(ask->sampling, true));
    return message;
}

static const struct gd_gather_kind kind = {"generate", "generated", ask_choice, hear, take, NULL, reply, release};

/* ---- the request ---- */

static void make_choices(struct completion *completion)
{
    const struct gd_completion_ask *ask = &completion->ask;
    completion->choice_count = ask->prompt_count * ask->best_of;
    completion->choices = gd_alloc_array((size_t)completion->choice_count, sizeof *completion->choices);
    for (int i = 0; i < completion->choice_count; i++) {
        struct choice *choice = &completion->choices[i];
        choice->completion = completion;
        choice->prompt = i / ask->best_of;
        choice->index = choice->prompt * ask->n + i % ask->best_of; /* rank() sets it anew where best_of > n */
        gd_buf_init(&choice->text, 0);
    }
}

/* Each sequence travels to the worker with its prompt. */
static bool check_size(const struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    if (ask->best_of == 1)
        return true;
    char *text = gd_json_print(body);
    size_t length = strlen(text);
    gd_free(text);
    return length <= GD_FRAME_BYTES_MAX / (size_t)ask->best_of ||
           gd_fail_param(err, GD_TOO_LARGE, ask->best_of > ask->n ? "best_of" : "n",
                         "a prompt of %zu bytes cannot be answered %d times in one request: ask for fewer at a time", length,
                         ask->best_of);
}

static void handle(struct gd_app *app, struct gd_request *request, bool chat)
{
    struct completion *completion = gd_alloc(sizeof *completion);
    struct gd_error err = {0};
    completion->app = app;
    completion->gather = gd_gather_create(app, request, &kind, completion);
    completion->started = gd_time_monotonic();
    bool ok = !app->draining || gd_fail_stopping(&err);
    if (!ok || !gd_completion_parse(&completion->ask, chat, gd_request_json(request), &err) ||
        !check_size(&completion->ask, gd_request_json(request), &err)) {
        gd_gather_refuse(completion->gather, &err);
        return;
    }
    char unique[25];
    gd_random_id(unique, 24);
    snprintf(completion->id, sizeof completion->id, "%s-%s", chat ? "chatcmpl" : "cmpl", unique);
    completion->model = gd_strdup(completion->ask.model);
    completion->head = (struct gd_completion_head){.chat = chat, .chunk = completion->ask.stream, .id = completion->id,
                                                   .model = completion->model, .created = gd_time_unix()};
    if (completion->ask.ignored != NULL)
        gd_http_header(request, "x-graftd-ignored-fields", completion->ask.ignored);
    make_choices(completion);
    gd_gather_start(completion->gather, completion->model, completion->choice_count);
}

void gd_handle_chat_completions(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, true);
}

void gd_handle_completions(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, false);
}
