#include "engine/train/start.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"
#include "engine/train/checkpoint.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static bool copy(struct gd_graft **out, const struct gd_model *model, const char *kept, const char *path, struct gd_error *err)
{
    char *config = gd_format("%s/adapter_config.json", path);
    bool there = gd_path_exists(config);
    gd_free(config);
    if (!there)
        return gd_fail_param(err, GD_NOT_FOUND, "model", "the tuned model that the job starts from is gone: there is no adapter in %s",
                             path);
    return gd_graft_read(out, model, path, err) && gd_adapter_publish(kept, *out, (*out)->block, NULL, err);
}

bool gd_start_open(struct gd_graft **out, const struct gd_model *model, const char *folder, const char *path, struct gd_error *err)
{
    char *kept = gd_format("%s/start", folder);
    bool ok = gd_path_exists(kept) ? gd_graft_read(out, model, kept, err) : copy(out, model, kept, path, err);
    if (!ok) {
        gd_graft_destroy(*out);
        *out = NULL;
        gd_error_context(err, "the model to start from");
    }
    gd_free(kept);
    return ok;
}

static bool same_params(const struct gd_graft *a, const struct gd_graft *b)
{
    if (a->param_count != b->param_count || a->frozen_param_count != b->frozen_param_count)
        return false;
    for (int i = 0; i < a->param_count + a->frozen_param_count; i++)
        if (strcmp(a->params[i].name, b->params[i].name) != 0 || a->params[i].offset != b->params[i].offset ||
            a->params[i].shape[0] != b->params[i].shape[0] || a->params[i].shape[1] != b->params[i].shape[1])
            return false;
    return gd_graft_floats(a) == gd_graft_floats(b);
}

static bool same_tasks(const struct gd_graft *a, const struct gd_graft *b)
{
    bool same = a->config.tasks.count == b->config.tasks.count;
    for (int i = 0; same && i < a->config.tasks.count; i++)
        same = strcmp(a->config.tasks.names[i], b->config.tasks.names[i]) == 0;
    return same;
}

/* Options that shape what the graft computes; which modules it touches is in its parameters. */
static const struct gd_adapter_option *other_option(const struct gd_graft *a, const struct gd_graft *b)
{
    for (int i = 0; i < a->method->option_count; i++) {
        const struct gd_adapter_option *option = &a->method->options[i];
        if (option->type != GD_OPTION_MODULES && !option->of_data && option->use == GD_OPTION_SHAPES && a->config.values[i] != b->config.values[i])
            return option;
    }
    return NULL;
}

static bool same_labels(const struct gd_modules *a, const struct gd_modules *b)
{
    bool same = a->count == b->count;
    for (int i = 0; same && i < a->count; i++)
        same = strcmp(a->names[i], b->names[i]) == 0;
    return same;
}

static bool check_like(const struct gd_graft *graft, const struct gd_graft *start, struct gd_error *err)
{
    char param[96] = "adapter";
    if (graft->config.score != start->config.score)
        return gd_fail_param(err, GD_INVALID, "model", "the model that the job starts from is %s, and method.type %s: only jobs of one "
                             "kind go on from each other", start->config.score ? "a reward model" : "no reward model",
                             graft->config.score ? "is reward" : "is not reward");
    if ((graft->config.labels.count > 0) != (start->config.labels.count > 0) || graft->config.multi_label != start->config.multi_label)
        return gd_fail_param(err, GD_INVALID, "model", "the model that the job starts from is %s, and method.type is %s: only jobs of one "
                             "kind go on from each other", start->config.labels.count == 0 ? "no classifier" : start->config.multi_label
                             ? "a classifier of several labels at once" : "a classifier of one label each",
                             graft->config.labels.count == 0 ? "not classification" : "classification of the other kind");
    if (graft->config.labels.count > 0 && !same_labels(&graft->config.labels, &start->config.labels))
        return gd_fail_param(err, GD_INVALID, "model", "the labels of the model that the job starts from are not those of this job: give them as "
                             "method.classification.labels, or start from the base");
    if (graft->method != start->method)
        return gd_fail_param(err, GD_INVALID, "adapter.type", "adapter.type is '%s'; the model that the job starts from has '%s': "
                             "leave adapter out to go on with that, or start from the base", graft->method->name, start->method->name);
    const struct gd_adapter_option *option = other_option(graft, start);
    if (option != NULL) {
        snprintf(param, sizeof param, "adapter.%s", option->name);
        return gd_fail_param(err, GD_INVALID, param, "%s is %g; the model that the job starts from has %g: leave adapter out to go "
                             "on with that, or start from the base", param, gd_adapter_value(&graft->config, option->name),
                             gd_adapter_value(&start->config, option->name));
    }
    if (!same_tasks(graft, start))
        return gd_fail_param(err, GD_INVALID, param, "the training file's tasks are not those of the model that the job starts from");
    return same_params(graft, start) ||
           gd_fail_param(err, GD_INVALID, param, "adapter describes other modules or sizes (%d parameters of %lld numbers) than the "
                         "model that the job starts from has (%d of %lld): leave adapter out to go on with those, or start from the "
                         "base", graft->param_count, (long long)graft->parameter_count, start->param_count,
                         (long long)start->parameter_count);
}

/* Options by which a method keeps another adapter than it trains are of fresh starts. */
static bool check_fresh(const struct gd_adapter_config *given, struct gd_error *err)
{
    struct gd_adapter_config copy = *given; /* the options only: the lists of modules stay the given one's */
    return given->method->kept_options == NULL || !given->method->kept_options(&copy) ||
           gd_fail_param(err, GD_INVALID, "adapter", "adapter asks for a start from the base's own weights, but the job starts from a "
                         "tuned model: leave adapter out to go on with that, or start from the base");
}

bool gd_start_adopt(struct gd_job_spec *spec, const struct gd_graft *start, struct gd_error *err)
{
    if (spec->adapter_given || start == NULL)
        return true;
    cJSON *json = gd_adapter_config_json(&start->config);
    bool score = spec->adapter.score;
    gd_adapter_config_release(&spec->adapter);
    bool ok = gd_adapter_config_parse(&spec->adapter, json, err);
    spec->adapter.score = score;
    for (int i = 0; ok && i < spec->adapter.method->option_count; i++)
        if (spec->adapter.method->options[i].of_data)
            spec->adapter.values[i] = spec->adapter.method->options[i].fallback;
    cJSON_Delete(json);
    return ok;
}

/* Like the start, or made of it. */
static bool check_start(const struct gd_graft *graft, struct gd_graft *start, struct gd_error *err)
{
    if (start == NULL)
        return graft->method->start == NULL || graft->method->start(graft, NULL, 0, NULL, err);
    if (check_like(graft, start, err))
        return true;
    if (graft->method->start == NULL || !start->method->by_task || graft->config.score || start->config.score)
        return false;
    gd_error_clear(err);
    return graft->method->start(graft, start, 0, NULL, err);
}

bool gd_start_make_graft(struct gd_graft **out, const struct gd_model *model, const struct gd_job_spec *spec,
                         struct gd_graft *start, const char *folder, const struct gd_graft_source *source, struct gd_error *err)
{
    struct gd_graft_source of_start = *source;
    struct gd_safetensors *file = NULL;
    if (start == NULL)
        return gd_graft_create_by(out, model, &spec->adapter, source, err) && check_start(*out, NULL, err);
    char *path = gd_format("%s/start/adapter_model.safetensors", folder);
    bool ok = check_fresh(&spec->adapter, err) && gd_safetensors_open(&file, path, err);
    of_start.file = file;
    ok = ok && gd_graft_create_by(out, model, &spec->adapter, &of_start, err) && check_start(*out, start, err);
    gd_safetensors_close(file);
    gd_free(path);
    return ok;
}

void gd_start_fill(const struct gd_graft *graft, struct gd_graft *start, uint64_t seed, float *block)
{
    struct gd_error none = {0};
    bool filled = true;
    if (check_like(graft, start, &none))
        memcpy(block, start->block, (size_t)gd_graft_floats(graft) * sizeof(float));
    else
        filled = graft->method->start(graft, start, seed, block, &none);
    assert(filled);
    (void)filled;
}
