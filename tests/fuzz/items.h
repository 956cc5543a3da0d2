/*
 * items.h - runs items of a source without a model, for the harnesses of evals.
 *
 * Why      Whatever is accepted must end each item as pass, fail or error, whatever models answer.
 * Memory   none kept
 * Threads  One.
 * Errors   abort
 * Limits   ROUNDS_MAX rounds of asks an item
 * Life     one call an item
 */
#ifndef TESTS_FUZZ_ITEMS_H
#define TESTS_FUZZ_ITEMS_H

#include "engine/base/alloc.h"
#include "engine/eval/source.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

#define ROUNDS_MAX 64

static void check_item(const struct gd_eval_item *item)
{
    const cJSON *results = gd_json_find(item->body, "results");
    if (item->state != NULL || !cJSON_IsArray(results) || strchr("pfe", item->status[0]) == NULL)
        abort();
    if (item->status[0] == 'p' && cJSON_GetArraySize(results) == 0)
        abort();
}

/* Every ask gets the same answer: a choice where there are choices, else `text`. */
static void answer(struct gd_ask *ask, const char *text, int64_t index)
{
    int count = cJSON_GetArraySize(ask->choices);
    ask->answered = true;
    if (ask->error.code == GD_OK)
        ask->text = gd_strdup(count > 0 ? cJSON_GetArrayItem(ask->choices, (int)(index % count))->valuestring : text);
}

static void run_item(struct gd_eval_source *source, int64_t index, const char *text)
{
    struct gd_eval_item item = {.index = index};
    int answered = 0, round = 0;
    source->type->begin(source, &item);
    for (; !item.finished && round < ROUNDS_MAX; round++) {
        for (; answered < item.ask_count; answered++)
            answer(&item.asks[answered], text, index);
        source->type->answered(source, &item);
    }
    if (!item.finished)
        abort();
    check_item(&item);
    gd_eval_item_release(&item);
}

#endif
