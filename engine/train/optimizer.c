#include "engine/train/optimizer.h"

#include <math.h>

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
