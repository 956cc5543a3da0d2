/*
 * export.c - folding a graft into its base. What rows do at a linear site (wear.h) is one matrix and one bias:
 *
 *   W' = (diag(out_scale) W + scale diag(b_scale) B diag(mid) A + delta + S) in_rotate diag(in_scale)
 *   b' = out_scale * b + out_add
 */
#include "engine/adapter/export.h"

#include "engine/base/alloc.h"
#include "engine/model/files.h"
#include "engine/model/parts.h"
#include "engine/model/rewrite.h"

static const struct gd_wear_part *part_at(const struct gd_graft *graft, int slot)
{
    return graft->site_param[slot] >= 0 ? &graft->wear[slot] : NULL;
}

bool gd_graft_mergeable(const struct gd_graft *graft, struct gd_error *err)
{
    int slots = gd_slot_count(graft->model);
    if (graft->config.score)
        return gd_fail_param(err, GD_UNSUPPORTED, "--format", "this %s adapter is a reward model: its head gives a score, for which the "
                             "base has no place, so that it cannot be merged; serve it as an adapter", graft->method->name);
    if (graft->head_params > 0 && strcmp(graft->model->format, "gguf") == 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "--format", "this %s adapter is a classifier: GGUF has no place for its head, so that it "
                             "cannot be merged there; serve it as an adapter", graft->method->name);
    if (graft->virtual_rows.count > 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "--format", "a %s adapter puts %d virtual tokens before every sequence, which no "
                             "weight of the base can do, so that it cannot be merged; serve it as an adapter", graft->method->name,
                             graft->virtual_rows.count);
    for (int slot = 0; slot < slots; slot++) {
        const struct gd_site *site = gd_slot_site(graft->model, slot);
        if (graft->site_param[slot] >= 0 && site->kind != GD_SITE_LINEAR && site->kind != GD_SITE_NORM && site->kind != GD_SITE_TABLE)
            return gd_fail_param(err, GD_UNSUPPORTED, "--format", "%s: what a %s adapter does there is not a change of a weight "
                                 "or a bias, so that it cannot be merged; serve it as an adapter", site->name, graft->method->name);
    }
    return true;
}

/* The slot of a weight, or of the site that a bias belongs to (*bias). -1: no site's. */
static int slot_of_weight(const struct gd_graft *graft, const struct gd_weight *weight, bool *bias)
{
    *bias = false;
    int slots = gd_slot_count(graft->model);
    for (int slot = 0; slot < slots; slot++) {
        const struct gd_site *site = gd_slot_site(graft->model, slot);
        *bias = site->bias == weight;
        if (*bias || site->weight == weight)
            return slot;
    }
    return -1;
}

static bool changes(void *context, const struct gd_weight *weight)
{
    const struct gd_graft *graft = context;
    bool bias;
    int slot = slot_of_weight(graft, weight, &bias);
    const struct gd_wear_part *part = slot >= 0 ? part_at(graft, slot) : NULL;
    if (part == NULL)
        return false;
    return bias ? part->out_scale != NULL || part->out_add != NULL || part->norm_bias != NULL
                : part->in_scale != NULL || part->in_rotate != NULL || part->out_scale != NULL || part->rank > 0 ||
                      part->delta != NULL || part->entry_count > 0 || part->norm != NULL;
}

static void add_product(const struct gd_wear_part *part, const struct gd_site *site, float *w, double *row)
{
    for (int o = 0; o < site->out; o++) {
        memset(row, 0, (size_t)site->in * sizeof(double));
        for (int k = 0; k < part->rank; k++) {
            const float *a = part->a + k * part->a_row;
            double b = (double)part->b[(int64_t)o * part->rank + k] * (double)(part->mid != NULL ? part->mid[k] : 1.0f);
            for (int i = 0; i < site->in; i++)
                row[i] += b * (double)a[i];
        }
        double scale = (double)part->scale * (double)(part->b_scale != NULL ? part->b_scale[o] : 1.0f);
        for (int i = 0; i < site->in; i++)
            w[(int64_t)o * site->in + i] = (float)((double)w[(int64_t)o * site->in + i] + scale * row[i]);
    }
}

/* Each row of w times the block-diagonal rotation. */
static void rotate(const struct gd_wear_part *part, const struct gd_site *site, float *w, double *row)
{
    int size = part->rotate_block;
    for (int o = 0; o < site->out; o++) {
        float *of = w + (int64_t)o * site->in;
        memset(row, 0, (size_t)site->in * sizeof(double));
        for (int i = 0; i < site->in; i++)
            for (int j = 0; j < size; j++)
                row[i / size * size + j] += (double)of[i] * (double)part->in_rotate[(int64_t)i * size + j];
        for (int i = 0; i < site->in; i++)
            of[i] = (float)row[i];
    }
}

static void merge_linear(const struct gd_wear_part *part, const struct gd_site *site, float *w)
{
    for (int o = 0; o < site->out && part->out_scale != NULL; o++)
        for (int i = 0; i < site->in; i++)
            w[(int64_t)o * site->in + i] *= part->out_scale[o];
    double *row = gd_alloc_array((size_t)site->in, sizeof(double));
    if (part->rank > 0)
        add_product(part, site, w, row);
    for (int64_t i = 0; i < (int64_t)site->out * site->in && part->delta != NULL; i++)
        w[i] += part->delta[i];
    for (int64_t i = 0; i < part->entry_count; i++)
        w[(int64_t)part->entry_row[i] * site->in + part->entry_column[i]] += part->entry[i];
    if (part->in_rotate != NULL)
        rotate(part, site, w, row);
    gd_free(row);
    for (int o = 0; o < site->out && part->in_scale != NULL; o++)
        for (int i = 0; i < site->in; i++)
            w[(int64_t)o * site->in + i] *= part->in_scale[i];
}

static void merge_bias(const struct gd_wear_part *part, const struct gd_site *site, float *values)
{
    for (int o = 0; o < site->out; o++) {
        values[o] = part->out_scale != NULL ? values[o] * part->out_scale[o] : values[o];
        values[o] += part->out_add != NULL ? part->out_add[o] : 0.0f;
    }
}

static bool change(void *context, const struct gd_weight *weight, float *values, struct gd_error *err)
{
    const struct gd_graft *graft = context;
    bool bias;
    int slot = slot_of_weight(graft, weight, &bias);
    const struct gd_site *site = gd_slot_site(graft->model, slot);
    const struct gd_wear_part *part = part_at(graft, slot);
    if (site->kind == GD_SITE_NORM)
        memcpy(values, bias ? part->norm_bias : part->norm, (size_t)site->out * sizeof(float));
    else if (bias)
        merge_bias(part, site, values);
    else
        merge_linear(part, site, values);
    return true;
}

static bool new_bias(void *context, const struct gd_site *site, float *values)
{
    const struct gd_wear_part *part = part_at(context, site->index);
    if (part == NULL || part->out_add == NULL)
        return false;
    if (values != NULL)
        memcpy(values, part->out_add, (size_t)site->out * sizeof(float));
    return true;
}

bool gd_graft_merge(const struct gd_graft *graft, enum gd_dtype dtype, const char *path, struct gd_error *err)
{
    struct gd_rewrite_head head = {.count = graft->head_params, .labels = graft->config.labels.names,
                                   .label_count = graft->config.labels.count, .multi_label = graft->config.multi_label};
    for (int i = 0; i < graft->head_params; i++) {
        const struct gd_graft_param *param = &graft->params[graft->param_count - graft->head_params + i];
        head.tensor[i] = (struct gd_rewrite_tensor){param->name + strlen("base_model.model."), param->rank,
                                                    {param->shape[0], param->shape[1]}, graft->block + param->offset};
    }
    struct gd_rewrite rewrite = {.context = (void *)(uintptr_t)graft, .changes = changes, .change = change, .bias = new_bias,
                                 .head = graft->head_params > 0 ? &head : NULL};
    return gd_graft_mergeable(graft, err) && gd_model_rewrite(graft->model, &rewrite, dtype, path, err);
}
