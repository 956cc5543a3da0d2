/* Task files: any YAML is a task or an error that names its field, and what is a task runs over any rows. */
#include "tests/fuzz/items.h"
#include <stdio.h>
#include <unistd.h>

static const char rows[] = "{\"q\": \"2 + 2 =\", \"choices\": [\"3\", \"4\"], \"gold\": 1, \"a\": \"4\"}\n"
                           "{\"q\": \"\", \"choices\": [], \"gold\": \"x\", \"a\": null}\n"
                           "{\"q\": 7, \"choices\": {\"label\": [\"A\"], \"text\": [\"a b\"]}, \"gold\": -1, \"a\": [\"x\", \"y\"]}\n";
static const char source_text[] = "{\"type\": \"task\", \"model\": \"m\", \"limit\": 3, \"source\": {\"type\": \"file_id\", \"id\": \"f\"}}";

/* The rows as a file, once for the process. */
static const char *rows_file(void)
{
    static char path[] = "/tmp/gd-task-fuzz-XXXXXX";
    static bool written;
    if (!written) {
        int fd = mkstemp(path);
        if (fd < 0 || write(fd, rows, sizeof(rows) - 1) != (ssize_t)(sizeof(rows) - 1) || close(fd) != 0)
            abort();
        written = true;
    }
    return path;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    struct gd_eval_spec spec;
    char *text = gd_strndup((const char *)data, size);
    cJSON *body = cJSON_CreateObject(), *config = cJSON_AddObjectToObject(body, "data_source_config");
    cJSON_AddStringToObject(config, "type", "task");
    cJSON_AddStringToObject(config, "task", text);
    if (gd_eval_spec_parse(&spec, body, &err)) {
        cJSON *json = cJSON_Parse(source_text);
        struct gd_eval_source *source = gd_eval_source_parse(&spec, json, &err);
        if (source != NULL && gd_eval_source_open(source, rows_file(), &err))
            for (int64_t i = 0; i < source->count; i++)
                run_item(source, i, "4");
        gd_eval_source_destroy(source);
        gd_eval_spec_release(&spec);
        cJSON_Delete(json);
    } else if (err.param[0] == '\0' || err.message[0] == '\0') {
        abort();
    }
    cJSON_Delete(body);
    gd_free(text);
    return 0;
}
