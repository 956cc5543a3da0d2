/* ready.c - what serving needs of a graft whose block is filled: what it wears, how deep, for which task, its digest. */
#include "engine/adapter/build.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"

#include <stdio.h>
#include <string.h>

void gd_graft_make_wear(struct gd_graft *graft)
{
    int slots = gd_slot_count(graft->model);
    graft->wear = gd_alloc_array((size_t)slots, sizeof(*graft->wear));
    graft->depth = GD_WEAR_NONE;
    for (int i = 0; i < slots; i++) {
        int first = graft->site_param[i];
        if (first < 0)
            continue;
        graft->method->wear(graft, gd_slot_site(graft->model, i), &graft->params[first], &graft->wear[i]);
        const struct gd_wear_part *part = &graft->wear[i];
        const struct gd_site *site = gd_slot_site(graft->model, i);
        bool positions = site->weight != NULL && site->weight == graft->model->positions;
        if (site->kind == GD_SITE_TABLE && (site->index == 0 || positions)) { /* rows wear it, each its own */
            const struct gd_site *rows = positions && graft->model->config.projects ? site : gd_model_embed_site(graft->model);
            struct gd_wear_part *embed = &graft->wear[gd_slot_of(graft->model, rows)];
            *(positions ? &embed->positions : &embed->table) = part->delta;
            embed->table_scale = (float)graft->model->config.embed_scale;
            embed->position_offset = graft->model->config.first_position;
            graft->depth = GD_WEAR_ROWS;
        } else if (site->small) {
            graft->depth = GD_WEAR_ROWS;
        }
        enum gd_wear_depth depth = part->rows != NULL                                    ? GD_WEAR_ROWS
                                   : site->kind == GD_SITE_BLOCK ? GD_WEAR_BLOCKS
                                   : part->norm != NULL || part->norm_bias != NULL       ? GD_WEAR_NORMS
                                   : part->in_scale != NULL || part->in_rotate != NULL   ? GD_WEAR_INPUTS
                                                                                         : GD_WEAR_OUTPUTS;
        graft->depth = depth > graft->depth ? depth : graft->depth;
    }
}

void gd_graft_drop_wear(struct gd_graft *graft)
{
    if (graft->adopted)
        gd_wear_drop(graft->wear);
    graft->adopted = false;
    gd_free(graft->wear);
    graft->wear = NULL;
}

/* Where tokens are embedded, and of learned positions, only rows are worn. */
static struct gd_wear_shape shape_of(const struct gd_model *model, const struct gd_site *site)
{
    bool positions = site->weight != NULL && site->weight == model->positions;
    struct gd_wear_shape shape = {.in = site->in, .out = site->out, .table_rows = model->config.vocab,
                                  .position_rows = model->positions != NULL ? gd_weight_dim(model->positions, 0) : 0};
    if (site->kind == GD_SITE_EMBED || positions) {
        shape.in = 0;
        shape.out = positions ? site->in : model->config.embed_width;
    }
    return shape;
}

bool gd_graft_adopt(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_model *model = graft->model;
    int slots = gd_slot_count(model);
    if (graft->adopted || graft->wear == NULL)
        return true;
    struct gd_wear_shape *shapes = gd_alloc_array((size_t)slots, sizeof(*shapes));
    for (int i = 0; i < slots; i++)
        shapes[i] = shape_of(model, gd_slot_site(model, i));
    graft->adopted = gd_wear_adopt(graft->wear, shapes, slots, err);
    gd_free(shapes);
    return graft->adopted;
}

bool gd_graft_prepare(struct gd_graft *graft, struct gd_error *err)
{
    return gd_graft_adopt(graft, err) && gd_graft_make_prefix(graft, err);
}

void gd_graft_make_digest(struct gd_graft *graft)
{
    struct gd_buf text;
    char digest[33], *options;
    cJSON *config = gd_adapter_config_json(&graft->config);
    options = gd_json_print(config);
    gd_buf_init(&text, 0);
    gd_hash_xxh3(graft->block, (size_t)gd_graft_floats(graft) * sizeof(float), digest);
    gd_buf_printf(&text, "%s scale %a task %d xxh3 %s", options, graft->scale, graft->task, digest);
    for (int i = 0; i < graft->param_count + graft->frozen_param_count; i++)
        gd_buf_printf(&text, "\n%s %lld", graft->params[i].name, (long long)graft->params[i].offset);
    gd_hash_sha256(text.data, text.length, graft->digest);
    gd_buf_release(&text);
    gd_free(options);
    cJSON_Delete(config);
}

void gd_graft_ready(struct gd_graft *graft)
{
    gd_graft_make_digest(graft);
    gd_graft_make_wear(graft); /* may use the block up */
}

/* "'a', 'b', 'c'" as far as it fits. */
static void list_tasks(const struct gd_modules *tasks, char *text, size_t size)
{
    text[0] = '\0';
    for (int i = 0; i < tasks->count; i++) {
        size_t used = strlen(text);
        if (used + strlen(tasks->names[i]) + 12 > size) {
            snprintf(text + used, size - used, ", ...");
            break;
        }
        snprintf(text + used, size - used, "%s'%s'", i > 0 ? ", " : "", tasks->names[i]);
    }
}

static bool find_task(const struct gd_graft *graft, const char *task, int *index, struct gd_error *err)
{
    const struct gd_modules *tasks = &graft->config.tasks;
    char list[512];
    list_tasks(tasks, list, sizeof(list));
    *index = tasks->count == 1 ? 0 : -1;
    if (task == NULL)
        return tasks->count == 1 || gd_fail_param(err, GD_MISSING, "task", "this model was trained on several tasks: give task, one of "
                                                  "%s, or '%s' for the mean of all", list, GD_TASK_AVERAGE);
    for (*index = 0; *index < tasks->count; ++*index)
        if (strcmp(tasks->names[*index], task) == 0)
            return true;
    *index = -1;
    return strcmp(task, GD_TASK_AVERAGE) == 0 ||
           gd_fail_param(err, GD_INVALID, "task", "this model was not trained on task '%.64s'; its tasks are %s, and '%s' is the mean "
                         "of all", task, list, GD_TASK_AVERAGE);
}

bool gd_graft_wear_task(struct gd_graft *graft, const char *task, struct gd_error *err)
{
    int index;
    if (!graft->method->by_task)
        return task == NULL || gd_fail_param(err, GD_INVALID, "task", "this model (%s) has no tasks to choose from: leave task out",
                                             graft->method->name);
    if (!find_task(graft, task, &index, err))
        return false;
    if (index == graft->task)
        return true;
    graft->task = index;
    gd_graft_drop_wear(graft);
    gd_graft_drop_derived(graft);
    gd_graft_ready(graft);
    return true;
}
