/*
 * routes_tuning.c - /v1/tuning/methods: what a job can train, straight from the registry.
 */
#include "engine/adapter/adapter.h"
#include "server/handlers.h"
#include "server/http.h"

void gd_handle_method_list(struct gd_app *app, struct gd_request *request)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "object", "list");
    cJSON_AddItemToObject(json, "data", gd_adapter_registry_json());
    gd_http_reply(request, 200, json);
}
