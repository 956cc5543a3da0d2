/*
 * loha.c - LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS): y = W x + s ((w1_a w1_b) * (w2_a w2_b)) x, * by element,
 * s = alpha / r; hada_w1_a, hada_w2_a [out, r], hada_w1_b, hada_w2_b [r, in]. All are kaiming-uniform(sqrt 5), U(-1/sqrt(fan_in),
 * 1/sqrt(fan_in)), but hada_w2_b, which is zero, so the start is the base. 2 r (in + out) numbers a module, of rank up to r^2:
 * the products by element of columns and rows of the factors are factors of that rank.
 */
#include "engine/adapter/build.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <string.h>

static const struct gd_adapter_option options[] = {
    {.name = "r", .type = GD_OPTION_INT, .min = 1, .max = GD_WEAR_RANK_MAX, .fallback = 8, .peft_fallback = 8,
     .help = "Rank of each of the two products; at most the smaller side of each module."},
    {.name = "alpha", .type = GD_OPTION_NUMBER, .min = 1e-6, .max = 1e6, .fallback = 1, .times = "r", .peft_fallback = 8,
     .help = "The update is scaled by alpha / r."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "all-linear",
     .help = "Linear modules to adapt: names, dotted suffixes, or \"all-linear\"."},
};

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r");
    if (gd_graft_choose(graft, GD_SITE_LINEAR, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        if (!gd_graft_check_rank(graft, &sites[i], r, err))
            return false;
        graft->site_param[i] = graft->param_count;
        gd_graft_add(graft, true, sites[i].name, "hada_w1_a", sites[i].out, r);
        gd_graft_add(graft, true, sites[i].name, "hada_w1_b", r, sites[i].in);
        gd_graft_add(graft, true, sites[i].name, "hada_w2_a", sites[i].out, r);
        gd_graft_add(graft, true, sites[i].name, "hada_w2_b", r, sites[i].in);
    }
    graft->scale = gd_adapter_value(&graft->config, "alpha") / (double)r;
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
    for (int p = 0; p < graft->param_count; p++)
        if (p % 4 != 3)
            gd_fill_kaiming(&graft->params[p], block, seed, (uint32_t)p);
}

static struct gd_value *linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params)
{
    struct gd_value *y = gd_graft_base(training, g, x, w, bias);
    return gd_add(g, y, gd_hadamard_linear(g, x, params[0], params[1], params[2], params[3], training->graft->scale));
}

/* Of rows [count, r] of one factor and of the other: all products of an entry of one and an entry of the other. */
static void pair_columns(const float *one, const float *other, int64_t count, int64_t r, float *out)
{
    for (int64_t o = 0; o < count; o++)
        for (int64_t p = 0; p < r; p++)
            for (int64_t q = 0; q < r; q++)
                out[(o * r + p) * r + q] = one[o * r + p] * other[o * r + q];
}

static void pair_rows(const float *one, const float *other, int64_t count, int64_t r, float *out)
{
    for (int64_t p = 0; p < r; p++)
        for (int64_t q = 0; q < r; q++)
            for (int64_t i = 0; i < count; i++)
                out[(p * r + q) * count + i] = one[p * count + i] * other[q * count + i];
}

static void wear_delta(struct gd_graft *graft, const struct gd_site *site, const float *const *f, int64_t r,
                       struct gd_wear_part *part)
{
    int64_t in = site->in, out = site->out;
    float *delta = gd_graft_derive(graft, out * in);
    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++) {
            double first = 0, second = 0;
            for (int64_t k = 0; k < r; k++) {
                first += (double)f[0][o * r + k] * (double)f[1][k * in + i];
                second += (double)f[2][o * r + k] * (double)f[3][k * in + i];
            }
            delta[o * in + i] = (float)(graft->scale * first * second);
        }
    part->delta = delta;
}

/* As a product of rank r^2 where that is possible and less work than the whole matrix. */
static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    int64_t r = params[0].shape[1], in = site->in, out = site->out, rank = r * r;
    const float *f[4];
    for (int i = 0; i < 4; i++)
        f[i] = graft->block + params[i].offset;
    if (rank > GD_WEAR_RANK_MAX || rank * (in + out) > in * out) {
        wear_delta(graft, site, f, r, part);
        return;
    }
    float *a = gd_graft_derive(graft, rank * in), *b = gd_graft_derive(graft, rank * out);
    pair_rows(f[1], f[3], in, r, a);
    pair_columns(f[0], f[2], out, r, b);
    part->rank = (int)rank;
    part->scale = (float)graft->scale;
    part->a = a;
    part->a_row = in;
    part->b = b;
}

static const char *const refused[] = {"modules_to_save", "rank_pattern", "alpha_pattern", NULL};

const struct gd_adapter_method gd_adapter_loha = {
    .name = "loha",
    .peft_type = "LOHA",
    .paper = "Hyeon-Woo et al. 2022, FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
    .help = "Adds the product by element of two products of thin matrices to linear modules.",
    .options = options,
    .option_count = GD_COUNT(options),
    .shares_pass = true,
    .anchor = "hada_w1_a",
    .peft_fields = "{\"rank_dropout\": 0.0, \"module_dropout\": 0.0, \"use_effective_conv2d\": false, \"init_weights\": true, "
                   "\"modules_to_save\": null, \"layers_to_transform\": null, \"layers_pattern\": null, \"rank_pattern\": {}, "
                   "\"alpha_pattern\": {}}",
    .refused = refused,
    .create = create,
    .init = init,
    .linear = linear,
    .wear = wear,
};
