#include "engine/adapter/score.h"

#include "engine/adapter/build.h"

#include <string.h>

#define DEVIATION 0.02f
#define STREAM 0x73636f72u /* of random numbers; methods count theirs from 0 */

bool gd_score_add(struct gd_graft *graft, struct gd_error *err)
{
    if (graft->method->choose != NULL || graft->method->by_task)
        return gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "a %s adapter, which chooses what it trains or has tasks, trains no "
                             "reward model; use another type (GET /v1/tuning/methods lists them)", graft->method->name);
    (void)gd_graft_add_last(graft, "score", "weight", 1, graft->model->config.embed_width);
    return true;
}

void gd_score_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    if (graft->config.score)
        gd_fill_normal(block + graft->params[graft->param_count - 1].offset, graft->model->config.embed_width, DEVIATION, seed, STREAM);
}

void gd_score_copy(const struct gd_graft *from, const float *block, const struct gd_graft *to, float *to_block)
{
    const float *head = gd_graft_score(from, block);
    if (head != NULL && to->config.score)
        memcpy(to_block + to->params[to->param_count - 1].offset, head, (size_t)from->model->config.embed_width * sizeof(float));
}

void gd_score_describe(const struct gd_graft *graft, cJSON *json)
{
    static const char *const saved[] = {"score"};
    if (!graft->config.score)
        return;
    cJSON_ReplaceItemInObjectCaseSensitive(json, "task_type", cJSON_CreateString("SEQ_CLS"));
    cJSON_DeleteItemFromObjectCaseSensitive(json, "modules_to_save");
    cJSON_AddItemToObject(json, "modules_to_save", cJSON_CreateStringArray(saved, 1));
}

/* PEFT names both classifier and score for this task; Llama and its relatives have the second. */
bool gd_score_read(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    const cJSON *task = gd_json_find(json, "task_type"), *saved = gd_json_find(json, "modules_to_save"), *item;
    if (!cJSON_IsString(task) || strcmp(task->valuestring, "SEQ_CLS") != 0)
        return true;
    bool has = false;
    cJSON_ArrayForEach(item, saved) {
        bool score = cJSON_IsString(item) && strcmp(item->valuestring, "score") == 0;
        has |= score;
        if (!score && (!cJSON_IsString(item) || strcmp(item->valuestring, "classifier") != 0))
            return gd_fail_param(err, GD_UNSUPPORTED, "modules_to_save", "adapter_config.json: modules_to_save may name 'score' alone");
    }
    config->score = has;
    return has || gd_fail_param(err, GD_UNSUPPORTED, "modules_to_save", "adapter_config.json: task_type is SEQ_CLS, but modules_to_save "
                                "has no 'score', which is the head of a reward model");
}
