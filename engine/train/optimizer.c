#include "engine/train/optimizer.h"

#include "engine/tensor/kernel.h"

#include <math.h>

struct adamw {
    float b1, b2, scale, epsilon, keep, rate, correction;
};

GD_KERNEL static void adamw_range(float *param, float *m, float *v, const float *grad, const struct adamw *a, int64_t begin,
                                  int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        float g = grad[i] * a->scale;
        float mi = a->b1 * m[i] + (1.0f - a->b1) * g;
        float vi = a->b2 * v[i] + (1.0f - a->b2) * g * g;
        m[i] = mi;
        v[i] = vi;
        param[i] = param[i] * a->keep - a->rate * mi / (sqrtf(vi) * a->correction + a->epsilon);
    }
}

void gd_adamw(float *param, float *m, float *v, const float *grad, int64_t count, int64_t step, double learning_rate,
              double beta1, double beta2, double eps, double weight_decay, double grad_scale)
{
    struct adamw a = {
        .b1 = (float)beta1, .b2 = (float)beta2, .scale = (float)grad_scale, .epsilon = (float)eps,
        .keep = (float)(1.0 - learning_rate * weight_decay),
        .rate = (float)(learning_rate / (1.0 - pow(beta1, (double)step))),
        .correction = (float)(1.0 / sqrt(1.0 - pow(beta2, (double)step))),
    };
    GD_PARALLEL(count)
    {
        struct gd_range r = gd_thread_range(count, 16);
        adamw_range(param, m, v, grad, &a, r.begin, r.end);
    }
}

double gd_learning_rate(const struct gd_job_spec *spec, int64_t step, int64_t total)
{
    int64_t warmup = (int64_t)ceil(spec->warmup_ratio * (double)total);
    if (step <= warmup)
        return spec->learning_rate * (double)step / (double)warmup;
    if (spec->schedule == GD_SCHEDULE_CONSTANT || total <= warmup)
        return spec->learning_rate;
    double progress = (double)(step - 1 - warmup) / (double)(total - warmup);
    if (spec->schedule == GD_SCHEDULE_LINEAR)
        return spec->learning_rate * (1.0 - progress);
    return spec->learning_rate * 0.5 * (1.0 + cos(3.14159265358979323846 * progress));
}
