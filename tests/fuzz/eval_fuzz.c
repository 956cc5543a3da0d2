/* Evals: what is accepted runs on any rows, and each item ends as pass, fail or error. */
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

static void run(const struct gd_eval_spec *spec, const cJSON *json)
{
    struct gd_error err = {0};
    const cJSON *text = gd_json_find(json, "answer");
    struct gd_eval_source *source = gd_eval_source_parse(spec, gd_json_find(json, "data_source"), &err);
    if (source == NULL) {
        if (err.param[0] == '\0' || err.message[0] == '\0')
            abort();
        return;
    }
    if (source->file_id == NULL && gd_eval_source_open(source, NULL, &err))
        for (int64_t i = 0; i < source->count; i++)
            run_item(source, i, cJSON_IsString(text) ? text->valuestring : "");
    gd_eval_source_destroy(source);
}

/* {"data_source_config": ..., "testing_criteria": ..., "data_source": ..., "answer": ...} */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    struct gd_eval_spec spec, restored;
    if (size == 0)
        return 0;
    cJSON *json = gd_json_parse((const char *)data, size, size, &err);
    if (!cJSON_IsObject(json)) {
        cJSON_Delete(json);
        return 0;
    }
    if (gd_eval_spec_parse(&spec, json, &err)) {
        if (!gd_eval_spec_restore(&restored, spec.config, gd_json_find(json, "testing_criteria"), &err))
            abort();
        run(&restored, json);
        gd_eval_spec_release(&restored);
        gd_eval_spec_release(&spec);
    } else if (err.param[0] == '\0' || err.message[0] == '\0') {
        abort();
    }
    cJSON_Delete(json);
    return 0;
}
