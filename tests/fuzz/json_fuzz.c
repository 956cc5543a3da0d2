/* The strict parser: what it accepts prints, and parses again to the same text. */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    cJSON *value = gd_json_parse((const char *)data, size, 1 << 20, &err);
    if (value == NULL)
        return 0;
    char *text = gd_json_print(value);
    cJSON *again = gd_json_parse(text, strlen(text), 8 << 20, &err);
    if (again == NULL)
        abort();
    char *second = gd_json_print(again);
    if (strcmp(text, second) != 0)
        abort();
    gd_free(text);
    gd_free(second);
    cJSON_Delete(value);
    cJSON_Delete(again);
    return 0;
}
