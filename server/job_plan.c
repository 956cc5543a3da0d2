#include "server/job_plan.h"

#include "engine/base/alloc.h"
#include "server/files.h"
#include "server/models.h"
#include "server/supervisor.h"
#include <string.h>

struct planning {
    struct gd_app *app;
    uv_timer_t timer;
    uint64_t request;
    gd_job_planned done;
    void *context;
};

static void on_closed(uv_handle_t *handle)
{
    gd_free(handle->data);
}

static void end(struct planning *planning, const cJSON *memory)
{
    gd_job_planned done = planning->done;
    void *context = planning->context;
    uv_close((uv_handle_t *)&planning->timer, on_closed);
    done(context, memory);
}

static void on_frame(void *context, const cJSON *frame, bool last)
{
    const cJSON *memory = gd_json_find(frame, "memory");
    end(context, cJSON_IsObject(memory) ? memory : NULL);
}

static void on_timer(uv_timer_t *timer)
{
    struct planning *planning = timer->data;
    gd_supervisor_cancel(planning->app->supervisor, planning->request);
    end(planning, NULL);
}

static void add_path(cJSON *message, const char *name, char *path_taken)
{
    gd_json_add_text(message, name, path_taken);
    gd_free(path_taken);
}

void gd_job_plan(struct gd_app *app, const cJSON *spec, const struct gd_job_record *record, gd_job_planned done, void *context)
{
    const struct gd_base_model *base = gd_models_find(app->models, record->model);
    struct gd_error ignored = {0};
    if (base == NULL) {
        done(context, NULL);
        return;
    }
    struct planning *planning = gd_alloc(sizeof *planning);
    *planning = (struct planning){.app = app, .done = done, .context = context};
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "plan");
    cJSON_AddItemToObject(message, "spec", cJSON_Duplicate(spec, true));
    cJSON_AddStringToObject(message, "model_path", base->path);
    add_path(message, "training_path", gd_file_path(app, record->training_file));
    add_path(message, "validation_path", record->validation_file != NULL ? gd_file_path(app, record->validation_file) : NULL);
    add_path(message, "init_path", record->start_folder != NULL ? gd_format("%s/%s", app->config.data_dir, record->start_folder) : NULL);
    uv_timer_init(app->loop, &planning->timer);
    planning->timer.data = planning;
    if (gd_supervisor_request(app->supervisor, message, on_frame, planning, &planning->request, &ignored))
        uv_timer_start(&planning->timer, on_timer, GD_JOB_PLAN_MS, 0);
    else
        end(planning, NULL);
}
