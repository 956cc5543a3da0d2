/* evaluate.c - the items of an eval, from the source to the engines, back, and out. */
#include "engine/worker/evaluate_internal.h"

#include "engine/base/alloc.h"

#include <string.h>

#define THINKING_MAX 64

static cJSON *usage_of(const struct gd_evaluation *evaluation, const struct gd_eval_item *item)
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

static void report(struct gd_evaluation *evaluation, struct gd_eval_running *running)
{
    struct gd_evaluated item = {.index = running->item.index, .status = running->item.status, .body = running->item.body,
                                .usage = usage_of(evaluation, &running->item)};
    running->item.body = NULL;
    evaluation->observer->item(evaluation->observer->context, &item);
}

static void release_running(struct gd_evaluation *evaluation, struct gd_eval_running *running)
{
    const struct gd_eval_source_type *type = evaluation->source->type;
    if (running->item.state != NULL && type->release_item != NULL)
        type->release_item(evaluation->source, &running->item);
    gd_eval_item_release(&running->item);
    gd_free(running);
}

static bool is_done(const struct gd_evaluation *evaluation, int64_t index)
{
    const unsigned char *done = evaluation->options->done;
    return done != NULL && (done[index / 8] >> (index % 8) & 1) != 0;
}

static void begin_items(struct gd_evaluation *evaluation)
{
    while (evaluation->next < evaluation->source->count && evaluation->flight_count < GD_EVALUATE_ASKS_MAX &&
           evaluation->thinking_count < THINKING_MAX) {
        int64_t index = evaluation->next++;
        if (is_done(evaluation, index))
            continue;
        struct gd_eval_running *running = gd_alloc(sizeof *running);
        running->item.index = index;
        *evaluation->last = running;
        evaluation->last = &running->next;
        gd_eval_give_to_source(evaluation, running);
    }
}

/* What the source is not looking at goes on: to the engines, back to the source, or out. */
static void move_items(struct gd_evaluation *evaluation)
{
    struct gd_eval_running **link = &evaluation->first;
    while (*link != NULL) {
        struct gd_eval_running *running = *link;
        if (running->thinking || !running->item.finished) {
            link = &running->next;
            if (!running->thinking && gd_eval_send_asks(evaluation, running) && running->item.unanswered == 0)
                gd_eval_give_to_source(evaluation, running); /* from here on it is not this thread's */
            continue;
        }
        *link = running->next;
        if (*link == NULL)
            evaluation->last = link;
        report(evaluation, running);
        release_running(evaluation, running);
    }
}

static void abandon(struct gd_evaluation *evaluation)
{
    while (evaluation->flights != NULL)
        gd_infer_cancel(evaluation->flights->infer, evaluation->flights->sequence);
    while (evaluation->first != NULL) {
        struct gd_eval_running *running = evaluation->first;
        evaluation->first = running->next;
        release_running(evaluation, running);
    }
    for (int i = 0; i < evaluation->held_count; i++)
        gd_residents_hold(evaluation->options->residents, evaluation->held[i], -1);
}

static bool run_items(struct gd_evaluation *evaluation, struct gd_error *err)
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
        gd_eval_take_thoughts(evaluation, !busy && evaluation->thinking_count > 0);
        move_items(evaluation);
    }
    return true;
}

bool gd_evaluate(struct gd_eval_source *source, const struct gd_evaluate_options *options,
                 const struct gd_evaluate_observer *observer, struct gd_error *err)
{
    struct gd_evaluation evaluation = {.source = source, .options = options, .observer = observer};
    evaluation.last = &evaluation.first;
    if (!gd_eval_thinker_start(&evaluation.thinker, source, err))
        return false;
    bool ok = run_items(&evaluation, err);
    gd_eval_thinker_stop(&evaluation.thinker);
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
