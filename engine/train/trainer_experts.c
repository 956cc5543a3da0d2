/* trainer_experts.c - jobs on models with experts: how much their balance counts, and what is told of it. */
#include "engine/train/trainer_internal.h"

#include "engine/base/alloc.h"
#include "engine/model/family.h"

#include <stdio.h>
#include <string.h>

/* "auto": as the model's config has it. */
bool gd_trainer_choose_experts(struct gd_trainer *trainer, struct gd_error *err)
{
    const struct gd_model_config *config = &trainer->model->config;
    struct gd_job_spec *spec = trainer->spec;
    char param[96];
    if (config->experts == 0) {
        snprintf(param, sizeof(param), "method.%s.hyperparameters.router_aux_loss_coef", spec->method);
        return spec->router_aux_loss_coef < 0 ||
               gd_fail_param(err, GD_INVALID, param, "router_aux_loss_coef is for models with experts, and '%s' (%s) has none: leave it out",
                             trainer->model->id, config->architecture);
    }
    if (spec->router_aux_loss_coef < 0)
        spec->router_aux_loss_coef = config->router_loss_coefficient;
    if (trainer->expert_rows == NULL)
        trainer->expert_rows = gd_alloc_array((size_t)config->experts, sizeof(double));
    return true;
}

void gd_trainer_begin_experts(struct gd_trainer *trainer)
{
    if (trainer->expert_rows != NULL)
        memset(trainer->expert_rows, 0, (size_t)trainer->model->config.experts * sizeof(double));
}

void gd_trainer_add_experts(struct gd_trainer *trainer, const struct gd_pass_result *pass, struct gd_step_result *result)
{
    result->balance += pass->balance;
    for (int e = 0; trainer->expert_rows != NULL && pass->expert_rows != NULL && e < trainer->model->config.experts; e++)
        trainer->expert_rows[e] += (double)pass->expert_rows[e];
}

/* The loads are of the busiest and of the idlest expert, over that of an even spread. */
int gd_trainer_expert_metrics(const struct gd_trainer *trainer, const struct gd_step_result *result, struct gd_metric *metrics)
{
    int experts = trainer->model->config.experts;
    double sum = 0, most = 0, least = 0;
    if (trainer->expert_rows == NULL)
        return 0;
    for (int e = 0; e < experts; e++) {
        double rows = trainer->expert_rows[e];
        sum += rows;
        most = rows > most ? rows : most;
        least = e == 0 || rows < least ? rows : least;
    }
    metrics[0] = (struct gd_metric){"router_aux_loss", result->balance};
    metrics[1] = (struct gd_metric){"expert_load_max", sum > 0 ? most * experts / sum : 0};
    metrics[2] = (struct gd_metric){"expert_load_min", sum > 0 ? least * experts / sum : 0};
    return 3;
}
