/*
 * lora_kasa.c - KaSA (Wang et al. 2025): y = (W - U_d V_d) x + s B (d * (A dropout(x))), U_d V_d the product of the r smallest
 * singular directions of W with their values, d a trained diagonal. The shared base stays as it is: U_d and V_d are frozen parts of
 * the graft, kept beside PEFT's files, and taken from the base again where they are absent, as PEFT does whenever it loads. A starts
 * as LoRA's does, B at zero, d normal, so the start is the truncated base. The loss gets, summed over modules or as their mean,
 *     beta sum_i d_i^2 + gamma (||B^T B - I||_F + ||A A^T - I||_F).
 * r (in + out + 1) numbers a module.
 */
#include "engine/adapter/lora.h"
#include "engine/adapter/svd.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"

#include <string.h>

bool gd_lora_is_kasa(const struct gd_adapter_config *config)
{
    return gd_adapter_value(config, "use_kasa") != 0;
}

void gd_lora_kasa_add(struct gd_graft *graft, const struct gd_site *site, double rate)
{
    struct gd_graft_param *diagonal = gd_graft_add(graft, true, site->name, "lora_diag", (int64_t)gd_adapter_value(&graft->config, "r"), 1);
    diagonal->rank = 1;
    diagonal->flat = true;
    diagonal->rate = rate;
}

void gd_lora_kasa_add_dropped(struct gd_graft *graft, const struct gd_site *site)
{
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r");
    gd_graft_add(graft, false, site->name, "kasa_dropped_V", r, site->in)->apart = true;
    gd_graft_add(graft, false, site->name, "kasa_dropped_U", site->out, r)->apart = true;
}

/* V_d and U_d: two for every three that are trained. */
static const struct gd_graft_param *dropped_of(const struct gd_graft *graft, const struct gd_site *site)
{
    return &graft->params[graft->param_count + graft->site_param[site->index] / 3 * 2];
}

static void derive_module(const struct gd_graft *graft, const struct gd_site *site, float *block)
{
    const struct gd_graft_param *dropped = dropped_of(graft, site);
    int64_t in = site->in, out = site->out, r = dropped[0].shape[0], first = (in < out ? in : out) - r;
    float *w = gd_alloc_array((size_t)(in * out), sizeof(float)), *u = gd_alloc_array((size_t)(r * out), sizeof(float));
    double *sigma = gd_alloc_array((size_t)(in < out ? in : out), sizeof(double));
    gd_weight_to_f32(site->weight, w);
    gd_singular_triplets(w, out, in, first, r, sigma, u, block + dropped[0].offset);
    for (int64_t o = 0; o < out; o++)
        for (int64_t k = 0; k < r; k++)
            block[dropped[1].offset + o * r + k] = (float)(sigma[first + k] * (double)u[k * out + o]);
    gd_free(sigma);
    gd_free(u);
    gd_free(w);
}

void gd_lora_kasa_derive(const struct gd_graft *graft, float *block)
{
    gd_svd_each(graft, block, derive_module);
}

void gd_lora_kasa_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    for (int p = 2; p < graft->param_count; p += 3) /* streams of their own: A's are numbered by module */
        gd_fill_normal(block + graft->params[p].offset, graft->params[p].shape[0], 1.0f, seed, (uint32_t)(GD_TARGETS_MAX + p));
    gd_lora_kasa_derive(graft, block);
}

struct gd_value *gd_lora_kasa_linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                     struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                                     struct gd_value *const *params)
{
    const struct gd_graft_param *dropped = dropped_of(training->graft, site);
    enum gd_dtype act = gd_graph_act(g);
    struct gd_value *y = gd_graft_base(training, g, x, w, bias);
    struct gd_value *u = gd_matmul(g, x, false, gd_graft_view(training, g, &dropped[0], dropped[0].shape[0]), true, 1.0, NULL, act);
    y = gd_matmul(g, u, false, gd_graft_view(training, g, &dropped[1], site->out), true, -1.0, y, act);
    if (training->dropout_key != NULL)
        x = gd_dropout(g, x, training->dropout_key, training->graft->dropout, site->index);
    u = gd_mul_row(g, gd_matmul(g, x, false, params[0], true, 1.0, NULL, act), params[2]);
    return gd_matmul(g, u, false, params[1], true, training->graft->scale, y, act);
}

struct gd_value *gd_lora_kasa_penalty(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params)
{
    const struct gd_graft *graft = training->graft;
    double beta = gd_adapter_value(&graft->config, "kasa_beta"), gamma = gd_adapter_value(&graft->config, "kasa_gamma");
    struct gd_value *sum = NULL;
    if (!gd_lora_is_kasa(&graft->config) || (beta == 0 && gamma == 0))
        return NULL;
    for (int p = 0; p < graft->param_count; p += 3) {
        struct gd_value *a = params[p], *b = params[p + 1];
        struct gd_value *gram_a = gd_matmul(g, a, false, a, true, 1.0, NULL, GD_F32), *gram_b = gd_matmul(g, b, true, b, false, 1.0, NULL, GD_F32);
        struct gd_value *far = gd_add(g, gd_identity_distance(g, gram_b), gd_identity_distance(g, gram_a));
        struct gd_value *part = gd_add(g, gd_scale(g, gd_dot(g, params[p + 2], params[p + 2]), beta), gd_scale(g, far, gamma));
        sum = sum != NULL ? gd_add(g, sum, part) : part;
    }
    return gd_scale(g, sum, gd_adapter_value(&graft->config, "kasa_reduction") == GD_KASA_SUM ? 1.0 : 3.0 / graft->param_count);
}

/* One product of rank 2 r on the untouched base: [B, U_d] diag(d, -1/s) [A; V_d], times s. */
void gd_lora_kasa_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                       struct gd_wear_part *part)
{
    const struct gd_graft_param *dropped = dropped_of(graft, site);
    int64_t r = params[0].shape[0], in = site->in, out = site->out;
    float *a = gd_graft_derive(graft, 2 * r * in), *b = gd_graft_derive(graft, 2 * r * out), *mid = gd_graft_derive(graft, 2 * r);
    memcpy(a, graft->block + params[0].offset, (size_t)(r * in) * sizeof(float));
    memcpy(a + r * in, graft->block + dropped[0].offset, (size_t)(r * in) * sizeof(float));
    for (int64_t o = 0; o < out; o++) {
        memcpy(b + o * 2 * r, graft->block + params[1].offset + o * r, (size_t)r * sizeof(float));
        memcpy(b + o * 2 * r + r, graft->block + dropped[1].offset + o * r, (size_t)r * sizeof(float));
    }
    for (int64_t k = 0; k < r; k++) {
        mid[k] = graft->block[params[2].offset + k];
        mid[r + k] = (float)(-1.0 / graft->scale);
    }
    part->rank = (int)(2 * r);
    part->a = a;
    part->a_row = in;
    part->mid = mid;
    part->b = b;
}

void gd_lora_kasa_describe(const struct gd_graft *graft, cJSON *json)
{
    if (!gd_lora_is_kasa(&graft->config)) {
        cJSON_AddNullToObject(json, "kasa_config");
        return;
    }
    cJSON *object = cJSON_AddObjectToObject(json, "kasa_config");
    cJSON_AddNumberToObject(object, "beta", gd_adapter_value(&graft->config, "kasa_beta"));
    cJSON_AddNumberToObject(object, "gamma", gd_adapter_value(&graft->config, "kasa_gamma"));
}

bool gd_lora_kasa_read(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    const cJSON *kasa = gd_json_find(json, "kasa_config");
    double beta = 1e-4, gamma = 1e-3;
    if (kasa == NULL || cJSON_IsNull(kasa))
        return true;
    if (!cJSON_IsObject(kasa))
        return gd_fail_param(err, GD_BAD_MODEL, "kasa_config", "adapter_config.json: kasa_config must be an object");
    if (!gd_json_get_number(kasa, "kasa_config", "beta", false, 0, 1e6, &beta, err) ||
        !gd_json_get_number(kasa, "kasa_config", "gamma", false, 0, 1e6, &gamma, err))
        return false;
    gd_adapter_set_value(config, "use_kasa", 1);
    gd_adapter_set_value(config, "kasa_beta", beta);
    gd_adapter_set_value(config, "kasa_gamma", gamma);
    return true;
}
