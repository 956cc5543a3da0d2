/* Evals: what is accepted runs on any rows, and each item ends as pass, fail or error. */
#include "tests/fuzz/items.h"

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
