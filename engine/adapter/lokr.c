/*
 * lokr.c - LoKr (Edalati et al. 2022, KronA; LyCORIS): y = W x + s kron(w1, w2) x, s = alpha / r. With out = l k and in = m n as
 * decompose_factor splits them, w1 is [l, m] and w2 [k, n]; w2 = w2_a w2_b of rank r where r < max(k, n) / 2, and so is w1 with
 * decompose_both. The product is never built in training: rows of x as matrices [m, n] are multiplied by w2 and mixed by w1. w1 (or
 * w1_a) is zero, so the start is the base; the others are U(-1/sqrt(fan_in), 1/sqrt(fan_in)). l m + k n numbers a module, r (l + m)
 * and r (k + n) where the factors are products.
 */
#include "engine/adapter/build.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <string.h>

static const struct gd_adapter_option options[] = {
    {.name = "r", .type = GD_OPTION_INT, .min = 1, .max = 65536, .fallback = 8, .peft_fallback = 8,
     .help = "Rank of the factors; one that is smaller than twice the rank is kept whole."},
    {.name = "alpha", .type = GD_OPTION_NUMBER, .min = 1e-6, .max = 1e6, .fallback = 1, .times = "r", .peft_fallback = 8,
     .help = "The update is scaled by alpha / r."},
    {.name = "decompose_both", .type = GD_OPTION_BOOL, .help = "Make the first factor a product of rank r too."},
    {.name = "decompose_factor", .type = GD_OPTION_INT, .min = -1, .max = 65536, .fallback = -1, .peft_fallback = -1,
     .help = "Rows and columns of the first factor, as near as the sides' divisors allow; -1: as near as possible to the roots of the sides."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "all-linear",
     .help = "Linear modules to adapt: names, dotted suffixes, or \"all-linear\"."},
};

/* A side as first * second, as LyCORIS splits it: a factor that divides it is taken; else the largest divisor that is at most
 * the factor (-1: any) and at most the root. */
static void split(int64_t side, int64_t factor, int64_t *first, int64_t *second)
{
    *first = 1;
    if (factor > 0 && side % factor == 0)
        *first = factor;
    else
        for (int64_t i = 2; i * i <= side && (factor < 0 || i <= factor); i++)
            *first = side % i == 0 ? i : *first;
    *second = side / *first;
}

struct factors {
    int64_t l, m, k, n;
    bool whole[2];               /* w1, w2: not a product */
    int at[2];                   /* of the first parameter of each among the module's */
};

static struct factors factors_of(const struct gd_graft *graft, const struct gd_site *site)
{
    int64_t factor = (int64_t)gd_adapter_value(&graft->config, "decompose_factor");
    double r = gd_adapter_value(&graft->config, "r");
    struct factors f;
    split(site->out, factor, &f.l, &f.k);
    split(site->in, factor, &f.m, &f.n);
    f.whole[0] = gd_adapter_value(&graft->config, "decompose_both") == 0 || r >= fmax((double)f.l, (double)f.m) / 2;
    f.whole[1] = r >= fmax((double)f.k, (double)f.n) / 2;
    f.at[0] = 0;
    f.at[1] = f.whole[0] ? 1 : 2;
    return f;
}

static void add_factor(struct gd_graft *graft, const struct gd_site *site, const char *name, bool whole, int64_t rows, int64_t columns)
{
    char *first = gd_format("%s%s", name, whole ? "" : "_a"), *second = gd_format("%s_b", name);
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r");
    gd_graft_add(graft, true, site->name, first, rows, whole ? columns : r);
    if (!whole)
        gd_graft_add(graft, true, site->name, second, r, columns);
    gd_free(first);
    gd_free(second);
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    if (gd_adapter_value(&graft->config, "decompose_factor") == 0)
        return gd_fail_param(err, GD_INVALID, "adapter.decompose_factor", "decompose_factor is 0: give -1 or a factor from 1");
    if (gd_graft_choose(graft, GD_SITE_LINEAR, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        struct factors f = factors_of(graft, &sites[i]);
        graft->site_param[i] = graft->param_count;
        add_factor(graft, &sites[i], "lokr_w1", f.whole[0], f.l, f.m);
        add_factor(graft, &sites[i], "lokr_w2", f.whole[1], f.k, f.n);
    }
    graft->scale = gd_adapter_value(&graft->config, "alpha") / gd_adapter_value(&graft->config, "r");
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    for (int p = 0; p < graft->param_count; p++)
        gd_fill_kaiming(&graft->params[p], block, seed, (uint32_t)p);
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        const struct gd_graft_param *first = &graft->params[graft->site_param[i]];
        memset(block + first->offset, 0, (size_t)(first->shape[0] * first->shape[1]) * sizeof(float));
    }
}

static struct gd_value *linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params)
{
    struct factors f = factors_of(training->graft, site);
    struct gd_value *factor[2], *y = gd_graft_base(training, g, x, w, bias);
    enum gd_dtype act = gd_graph_act(g);
    for (int i = 0; i < 2; i++) {
        struct gd_value *const *own = params + f.at[i];
        factor[i] = f.whole[i] ? own[0] : gd_matmul(g, own[0], false, own[1], false, 1.0, NULL, GD_F32);
    }
    if (x == NULL)
        return NULL;
    int64_t rows = x->shape[0];
    struct gd_value *z = gd_matmul(g, gd_reshape(g, x, rows * f.m, f.n), false, factor[1], true, training->graft->scale, NULL, act);
    return gd_add(g, y, gd_mix_middle(g, gd_reshape(g, z, rows, f.m * f.k), factor[0], false));
}

/* ---- serving ---- */

/* A factor as left [rows, rank] right [rank, columns]; one that is whole takes a unit matrix for its smaller side. */
struct pair {
    int64_t rows, columns, rank;
    float *left, *right;
};

static struct pair pair_of(const struct gd_graft *graft, const struct gd_graft_param *own, bool whole, int64_t rows, int64_t columns)
{
    struct pair pair = {rows, columns, whole ? (rows < columns ? rows : columns) : own[0].shape[1], NULL, NULL};
    pair.left = gd_alloc_array((size_t)(rows * pair.rank), sizeof(float));
    pair.right = gd_alloc_array((size_t)(pair.rank * columns), sizeof(float));
    const float *values = graft->block + own[0].offset;
    bool tall = whole && rows >= columns;
    if (!whole || tall)
        memcpy(pair.left, values, (size_t)(rows * pair.rank) * sizeof(float));
    if (!tall)
        memcpy(pair.right, whole ? values : graft->block + own[1].offset, (size_t)(pair.rank * columns) * sizeof(float));
    for (int64_t i = 0; whole && i < pair.rank; i++)
        (tall ? pair.right : pair.left)[i * pair.rank + i] = 1.0f;
    return pair;
}

/* out = factor * kron(a [ar, ac], b [br, bc]) */
static void kron(const float *a, int64_t ar, int64_t ac, const float *b, int64_t br, int64_t bc, float factor, float *out)
{
    for (int64_t i = 0; i < ar; i++)
        for (int64_t j = 0; j < ac; j++)
            for (int64_t p = 0; p < br; p++)
                for (int64_t q = 0; q < bc; q++)
                    out[(i * br + p) * ac * bc + j * bc + q] = factor * a[i * ac + j] * b[p * bc + q];
}

/* The factor itself (yours to gd_free). */
static float *whole_of(const struct pair *pair)
{
    float *out = gd_alloc_array((size_t)(pair->rows * pair->columns), sizeof(float));
    for (int64_t i = 0; i < pair->rows; i++)
        for (int64_t j = 0; j < pair->columns; j++) {
            double sum = 0;
            for (int64_t k = 0; k < pair->rank; k++)
                sum += (double)pair->left[i * pair->rank + k] * (double)pair->right[k * pair->columns + j];
            out[i * pair->columns + j] = (float)sum;
        }
    return out;
}

/* The product of factors is the product of their Kronecker products: of low rank where that is less work. */
static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    struct factors f = factors_of(graft, site);
    struct pair one = pair_of(graft, params + f.at[0], f.whole[0], f.l, f.m), two = pair_of(graft, params + f.at[1], f.whole[1], f.k, f.n);
    int64_t rank = one.rank * two.rank, in = site->in, out = site->out;
    if (rank <= GD_WEAR_RANK_MAX && rank * (in + out) < in * out) {
        float *a = gd_graft_derive(graft, rank * in), *b = gd_graft_derive(graft, rank * out);
        kron(one.right, one.rank, f.m, two.right, two.rank, f.n, 1.0f, a);
        kron(one.left, f.l, one.rank, two.left, f.k, two.rank, 1.0f, b);
        part->rank = (int)rank;
        part->scale = (float)graft->scale;
        part->a = a;
        part->a_row = in;
        part->b = b;
    } else {
        float *delta = gd_graft_derive(graft, out * in), *w1 = whole_of(&one), *w2 = whole_of(&two);
        kron(w1, f.l, f.m, w2, f.k, f.n, (float)graft->scale, delta);
        part->delta = delta;
        gd_free(w1);
        gd_free(w2);
    }
    gd_free(one.left);
    gd_free(one.right);
    gd_free(two.left);
    gd_free(two.right);
}

static const char *const refused[] = {"modules_to_save", "rank_pattern", "alpha_pattern", NULL};

const struct gd_adapter_method gd_adapter_lokr = {
    .name = "lokr",
    .peft_type = "LOKR",
    .paper = "Edalati et al. 2022, KronA: Parameter Efficient Tuning with Kronecker Adapter",
    .help = "Adds a Kronecker product of two small matrices to linear modules.",
    .options = options,
    .option_count = GD_COUNT(options),
    .shares_pass = true,
    .anchor = "lokr_w1,lokr_w1_a",
    .peft_fields = "{\"rank_dropout\": 0.0, \"module_dropout\": 0.0, \"rank_dropout_scale\": false, \"use_effective_conv2d\": false, "
                   "\"init_weights\": true, \"modules_to_save\": null, \"layers_to_transform\": null, \"layers_pattern\": null, "
                   "\"rank_pattern\": {}, \"alpha_pattern\": {}}",
    .refused = refused,
    .create = create,
    .init = init,
    .linear = linear,
    .wear = wear,
};
