/* lora_mean.c - LoRA that goes on from a mixture of low-rank pairs: from the mean of all its skills (MHR-mu). */
#include "engine/adapter/lora.h"

#include <string.h>

static bool check(const struct gd_graft *graft, const struct gd_graft *from, struct gd_error *err)
{
    if (gd_adapter_value(&graft->config, "use_dora") != 0)
        return gd_fail_param(err, GD_INVALID, "adapter.use_dora", "a job that goes on from a mixture of skills trains their mean, which "
                             "has no magnitudes: leave use_dora out");
    if (gd_lora_is_kasa(&graft->config))
        return gd_fail_param(err, GD_INVALID, "adapter.use_kasa", "a job that goes on from a mixture of skills trains their mean, and "
                             "KaSA starts from the base's own weights: leave use_kasa out");
    for (int i = 0; i < gd_slot_count(graft->model); i++) {
        const struct gd_wear_part *part = &from->wear[i];
        const char *name = gd_slot_site(graft->model, i)->name;
        if ((graft->site_param[i] < 0) != (from->site_param[i] < 0))
            return gd_fail_param(err, GD_INVALID, "adapter.target_modules", "%s is adapted %s: give the modules of the model that the "
                                 "job starts from", name, from->site_param[i] < 0 ? "here, but not there" : "there, but not here");
        if (graft->site_param[i] >= 0 && part->rank != (int)gd_adapter_value(&graft->config, "r"))
            return gd_fail_param(err, GD_INVALID, "adapter.r", "r is %d; the mean of the skills that the job starts from has rank %d",
                                 (int)gd_adapter_value(&graft->config, "r"), part->rank);
    }
    return true;
}

bool gd_lora_start(const struct gd_graft *graft, struct gd_graft *from, uint64_t seed, float *block, struct gd_error *err)
{
    if (from == NULL)
        return true;
    if (from->wear == NULL) {
        from->task = -1;
        gd_graft_ready(from);
    }
    if (!check(graft, from, err))
        return false;
    for (int i = 0; block != NULL && i < gd_slot_count(graft->model); i++) {
        if (graft->site_param[i] < 0)
            continue;
        const struct gd_wear_part *part = &from->wear[i];
        const struct gd_graft_param *a = &graft->params[graft->site_param[i]], *b = a + 1;
        float scale = part->scale / (float)graft->scale;
        for (int64_t k = 0; k < a->shape[0]; k++)
            memcpy(block + a->offset + k * a->shape[1], part->a + k * part->a_row, (size_t)a->shape[1] * sizeof(float));
        for (int64_t k = 0; k < b->shape[0] * b->shape[1]; k++)
            block[b->offset + k] = scale * part->b[k];
    }
    return true;
}
