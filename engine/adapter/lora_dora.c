/*
 * lora_dora.c - DoRA (Liu et al. 2024): y = c * (W x + s B A x) + bias with c = m / ||W + s B A||, the norm of each row, which
 * counts as a constant in the backward pass; m [out] starts at the norms of W, so the start is the base. Dropout acts on all
 * that the adapter sees, as in PEFT: y = W x + (c - 1) * (W x') + c * (s B A x') + bias with x' = dropout(x).
 */
#include "engine/adapter/lora.h"
#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/row_norms.h"

void gd_lora_dora_add(struct gd_graft *graft, const struct gd_site *site, double rate)
{
    struct gd_graft_param *magnitude = gd_graft_add(graft, true, site->name, "lora_magnitude_vector", site->out, 1);
    magnitude->rank = 1;
    magnitude->flat = true;
    magnitude->rate = rate;
}

/* ||W + scale B A|| of each row. */
static void row_norms(const struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                      const float *block, float *out)
{
    float *scratch = gd_alloc(gd_row_norms_scratch_bytes(site->in, gd_device()->threads));
    gd_row_norms(site->weight, block + params[1].offset, block + params[0].offset, params[0].shape[0], (float)graft->scale, out,
                 scratch);
    gd_free(scratch);
}

void gd_lora_dora_init(const struct gd_graft *graft, float *block)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        const struct gd_graft_param *params = &graft->params[graft->site_param[i]];
        row_norms(graft, &sites[i], params, block, block + params[2].offset);
    }
}

struct gd_value *gd_lora_dora_linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                     struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                                     struct gd_value *const *params)
{
    enum gd_dtype act = gd_graph_act(g);
    double scale = training->graft->scale;
    struct gd_value *c = gd_row_norm_ratio(g, w, params[1], params[0], scale, params[2]), *dropped = x;
    if (training->dropout_key != NULL)
        dropped = gd_dropout(g, x, training->dropout_key, training->graft->dropout, site->index);
    struct gd_value *base = gd_linear(g, dropped, w);
    struct gd_value *u = gd_matmul(g, dropped, false, params[0], true, 1.0, NULL, act);
    struct gd_value *y = gd_mul_row(g, gd_matmul(g, u, false, params[1], true, scale, base, act), c);
    if (dropped != x)
        y = gd_add(g, gd_linear(g, x, w), gd_add(g, y, gd_scale(g, base, -1.0)));
    return bias != NULL ? gd_add_row(g, y, bias) : y;
}

void gd_lora_dora_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                       struct gd_wear_part *part)
{
    float *c = gd_graft_derive(graft, site->out);
    const float *magnitude = graft->block + params[2].offset;
    row_norms(graft, site, params, graft->block, c);
    for (int o = 0; o < site->out; o++)
        c[o] = c[o] > 0 ? magnitude[o] / c[o] : 0.0f;
    part->out_scale = part->b_scale = c;
    if (site->bias == NULL)
        return;
    float *add = gd_graft_derive(graft, site->out); /* the bias itself is not scaled */
    gd_weight_row_f32(site->bias, 0, add);
    for (int o = 0; o < site->out; o++)
        add[o] *= 1.0f - c[o];
    part->out_add = add;
}
