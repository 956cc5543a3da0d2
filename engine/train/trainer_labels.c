/* trainer_labels.c - what a classifier tells apart: which labels there are, how many rows have each, what a row counts. */
#include "engine/train/trainer_internal.h"

#include "engine/base/alloc.h"

#include <stdio.h>
#include <string.h>

/* As the job names them, in its order. */
static bool take_given(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_modules *given = &trainer->spec->classes.labels;
    for (int i = 0; i < given->count; i++)
        if (gd_tasks_add(&trainer->labels, given->names[i], err) < 0)
            return false;
    return true;
}

/* A model that the job goes on from keeps its labels, and the base's own stay where the rows have no others. */
static void take_known(struct gd_trainer *trainer, char *const *names, int count)
{
    struct gd_tasks known = {0};
    struct gd_error none = {0};
    int found = 0;
    for (int i = 0; i < count; i++) {
        (void)gd_tasks_add(&known, names[i], &none);
        found += gd_tasks_find(&trainer->labels, names[i]) >= 0;
    }
    if (known.count == count && found == trainer->labels.count) {
        struct gd_tasks swap = trainer->labels;
        trainer->labels = known;
        known = swap;
    }
    gd_tasks_release(&known);
}

bool gd_trainer_read_labels(struct gd_trainer *trainer, struct gd_error *err)
{
    struct gd_job_spec *spec = trainer->spec;
    const struct gd_model_config *config = &trainer->model->config;
    if (!spec->classes.on)
        return true;
    if (spec->classes.labels.count > 0 ? !take_given(trainer, err) : !gd_labels_read(&trainer->labels, trainer->training_path, spec->classes.multi, err)) {
        gd_error_context(err, "training_file");
        return false;
    }
    if (spec->classes.labels.count == 0 && trainer->start != NULL)
        take_known(trainer, trainer->start->config.labels.names, trainer->start->config.labels.count);
    else if (spec->classes.labels.count == 0)
        take_known(trainer, config->labels, config->label_count);
    gd_adapter_set_labels(&spec->adapter, trainer->labels.names, trainer->labels.count, spec->classes.multi);
    return true;
}

/* "12 positive, 7 negative" */
static void say_counts(struct gd_trainer *trainer, const char *param, const struct gd_tasks *classes)
{
    char text[600] = "";
    for (int i = 0; i < classes->count; i++) {
        size_t used = strlen(text);
        if (used + strlen(classes->names[i]) + 48 > sizeof text) {
            snprintf(text + used, sizeof text - used, ", and %d labels more", classes->count - i);
            break;
        }
        snprintf(text + used, sizeof text - used, "%s%lld %s", i > 0 ? ", " : "", (long long)classes->rows[i], classes->names[i]);
        if (classes->rows[i] == 0 && strcmp(param, "training_file") == 0)
            gd_trainer_say(trainer, "warn", "training_file: no row has the label '%s'", classes->names[i]);
    }
    gd_trainer_say(trainer, "info", "%s: rows by label: %s", param, text);
}

static bool given_weights(struct gd_trainer *trainer, struct gd_error *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, trainer->spec->classes.weights) {
        int number = gd_tasks_find(&trainer->labels, item->string);
        if (number < 0) {
            char list[512];
            gd_tasks_list(trainer->labels.names, trainer->labels.count, list, sizeof list);
            return gd_fail_param(err, GD_INVALID, "method.classification.class_weights", "class_weights has '%s', which is no label; the labels "
                                 "are: %s", item->string, list);
        }
        trainer->class_weights[number] = item->valuedouble;
    }
    return true;
}

bool gd_trainer_weigh_labels(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_tasks *classes = &trainer->train->classes;
    const cJSON *weights = trainer->spec->classes.weights;
    if (!trainer->spec->classes.on)
        return true;
    say_counts(trainer, "training_file", classes);
    if (trainer->valid != NULL)
        say_counts(trainer, "validation_file", &trainer->valid->classes);
    if (weights == NULL)
        return true;
    trainer->class_weights = gd_alloc_array((size_t)classes->count, sizeof *trainer->class_weights);
    for (int i = 0; i < classes->count; i++) /* balanced: as much for each label as for the others together */
        trainer->class_weights[i] = cJSON_IsString(weights) && classes->rows[i] > 0
                                        ? (double)trainer->train->row_count / ((double)classes->count * (double)classes->rows[i]) : 1;
    if (cJSON_IsObject(weights) && !given_weights(trainer, err))
        return false;
    trainer->train->class_weights = trainer->class_weights;
    if (trainer->valid != NULL)
        trainer->valid->class_weights = trainer->class_weights;
    return true;
}
