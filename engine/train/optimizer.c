#include "engine/train/optimizer.h"

#include <math.h>

void gd_adamw(float *param, float *m, float *v, const float *grad, int64_t count, int64_t step, double learning_rate,
              double beta1, double beta2, double eps, double weight_decay, double grad_scale)
{
    float b1 = (float)beta1, b2 = (float)beta2, scale = (float)grad_scale, epsilon = (float)eps;
    float keep = (float)(1.0 - learning_rate * weight_decay);
    float rate = (float)(learning_rate / (1.0 - pow(beta1, (double)step)));
    float correction = (float)(1.0 / sqrt(1.0 - pow(beta2, (double)step)));
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float g = grad[i] * scale;
        float mi = b1 * m[i] + (1.0f - b1) * g;
        float vi = b2 * v[i] + (1.0f - b2) * g * g;
        m[i] = mi;
        v[i] = vi;
        param[i] = param[i] * keep - rate * mi / (sqrtf(vi) * correction + epsilon);
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
