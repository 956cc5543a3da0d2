#include "engine/eval/ask.h"

#include "engine/base/alloc.h"

void gd_ask_init(struct gd_ask *ask, enum gd_ask_kind kind)
{
    *ask = (struct gd_ask){.kind = kind, .temperature = 1, .top_p = 1, .max_tokens = -1};
}

void gd_ask_release(struct gd_ask *ask)
{
    gd_free(ask->model);
    cJSON_Delete(ask->messages);
    cJSON_Delete(ask->tools);
    gd_free(ask->prompt);
    gd_free(ask->continuation);
    cJSON_Delete(ask->stops);
    cJSON_Delete(ask->choices);
    gd_free(ask->text);
    *ask = (struct gd_ask){0};
}
