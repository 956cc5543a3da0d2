/*
 * lora_pissa.c - PiSSA (Meng et al. 2024): with W = U S V^T, training starts from B0 = U_r sqrt(S_r / s), A0 = sqrt(S_r / s) V_r^T
 * of the r largest singular values, on the base W - s B0 A0. The shared base stays as it is: y = W x + s (B A x - B0 A0 x) with
 * frozen B0 and A0. It is kept as PEFT keeps it after conversion, as a LoRA of rank 2 r: A' = [A; A0], B' = [B, -B0].
 */
#include "engine/adapter/lora.h"
#include "engine/adapter/svd.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <string.h>

void gd_lora_pissa_add(struct gd_graft *graft, const struct gd_site *site)
{
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r");
    gd_graft_add(graft, false, site->name, "lora_A0.weight", r, site->in);
    gd_graft_add(graft, false, site->name, "lora_B0.weight", site->out, r);
}

/* A and B of a module have their starts as many parameters later as are trained. */
static const struct gd_graft_param *start_of(const struct gd_graft *graft, const struct gd_site *site)
{
    return &graft->params[graft->param_count + graft->site_param[site->index]];
}

static void init_module(const struct gd_graft *graft, const struct gd_site *site, float *block)
{
    const struct gd_graft_param *trained = &graft->params[graft->site_param[site->index]], *start = start_of(graft, site);
    int64_t in = site->in, out = site->out, r = trained[0].shape[0];
    float *w = gd_alloc_array((size_t)(in * out), sizeof(float)), *u = gd_alloc_array((size_t)(r * out), sizeof(float));
    double *sigma = gd_alloc_array((size_t)(in < out ? in : out), sizeof(double));
    float *a = block + trained[0].offset, *b = block + trained[1].offset;
    gd_weight_to_f32(site->weight, w);
    gd_singular_triplets(w, out, in, 0, r, sigma, u, a);
    for (int64_t k = 0; k < r; k++) {
        float root = (float)sqrt(sigma[k] / graft->scale);
        for (int64_t i = 0; i < in; i++)
            a[k * in + i] *= root;
        for (int64_t o = 0; o < out; o++)
            b[o * r + k] = root * u[k * out + o];
    }
    memcpy(block + start[0].offset, a, (size_t)(r * in) * sizeof(float));
    memcpy(block + start[1].offset, b, (size_t)(r * out) * sizeof(float));
    gd_free(sigma);
    gd_free(u);
    gd_free(w);
}

void gd_lora_pissa_init(const struct gd_graft *graft, float *block)
{
    gd_svd_each(graft, block, init_module);
}

struct gd_value *gd_lora_pissa_base(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                    struct gd_value *x, struct gd_value *y)
{
    const struct gd_graft_param *start = start_of(training->graft, site);
    enum gd_dtype act = gd_graph_act(g);
    struct gd_value *u = gd_matmul(g, x, false, gd_graft_view(training, g, &start[0], start[0].shape[0]), true, 1.0, NULL, act);
    return gd_matmul(g, u, false, gd_graft_view(training, g, &start[1], site->out), true, -training->graft->scale, y, act);
}

bool gd_lora_pissa_kept_options(struct gd_adapter_config *config)
{
    if (gd_adapter_value(config, "init_lora_weights") != GD_LORA_PISSA)
        return false;
    bool root = gd_adapter_value(config, "use_rslora") != 0;
    gd_adapter_set_value(config, "init_lora_weights", GD_LORA_TRUE);
    gd_adapter_set_value(config, "r", 2 * gd_adapter_value(config, "r"));
    gd_adapter_set_value(config, "lora_alpha", (root ? sqrt(2) : 2) * gd_adapter_value(config, "lora_alpha"));
    return true;
}

/* Rows of B' are [b, -b0]: copied between the trained block and the kept one. */
static void copy_rows(float *kept, float *b, float *b0, int64_t out, int64_t r, bool keep)
{
    for (int64_t o = 0; o < out; o++)
        for (int64_t k = 0; k < r; k++) {
            float *left = &kept[o * 2 * r + k], *right = left + r;
            if (keep) {
                *left = b[o * r + k];
                *right = -b0[o * r + k];
            } else {
                b[o * r + k] = *left;
                b0[o * r + k] = -*right;
            }
        }
}

static void convert(const struct gd_graft *graft, float *block, const struct gd_graft *kept, float *kept_block, bool keep)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        const struct gd_graft_param *trained = &graft->params[graft->site_param[i]], *start = start_of(graft, &sites[i]);
        const struct gd_graft_param *both = &kept->params[kept->site_param[i]];
        int64_t r = trained[0].shape[0], count = r * sites[i].in;
        float *a[] = {block + trained[0].offset, block + start[0].offset}, *ab = kept_block + both[0].offset;
        for (int j = 0; j < 2; j++)
            memcpy(keep ? ab + j * count : a[j], keep ? a[j] : ab + j * count, (size_t)count * sizeof(float));
        copy_rows(kept_block + both[1].offset, block + trained[1].offset, block + start[1].offset, sites[i].out, r, keep);
    }
}

bool gd_lora_pissa_keep(const struct gd_graft *graft, const float *block, const struct gd_graft *kept, float *kept_block,
                        struct gd_error *err)
{
    convert(graft, (float *)(uintptr_t)block, kept, kept_block, true);
    return true;
}

void gd_lora_pissa_resume(const struct gd_graft *graft, float *block, const struct gd_graft *kept)
{
    convert(graft, block, kept, kept->block, false);
}
