/*
 * poly.c - Polytropon (Ponti et al. 2022) and, with n_splits > 1, multi-head adapter routing (Caccia et al. 2023): an inventory
 * of n_skills low-rank pairs a module, mixed for each task before the product. For task t and part h of the features
 *
 *   w[h][j] = u[h][j] / sum_j u[h][j]     u = sigmoid(Z[t][h][j]), in training a relaxed Bernoulli sample of these odds
 *   A_t = rows of sum_j w[h][j] A[h][j], part after part      B_t = columns of sum_j w[h][j] B[h][j], part after part
 *   y = W x + (x A_t) B_t / r
 *
 * A[h][j] [in/n_splits, r] is U(-1, 1) / sqrt(in/n_splits), B[h][j] [r, out/n_splits] is 0, so the start is the base, and Z is
 * U(-1e-3, 1e-3). A module has n_skills r (in + out) + n_tasks n_splits n_skills numbers. For one task, or with all weights
 * 1/n_skills, it is a low-rank pair: so it is served.
 *
 * A job that goes on from such a model with tasks that it does not know starts with fresh rows of Z for these (few-shot
 * adaptation); with `trained` "routing" A and B stay as they are (MHR-z), and n_tasks n_splits n_skills numbers a module are
 * trained. MHR-mu is a LoRA job that goes on from the model: it takes the mean of all (lora.c).
 */
#include "engine/adapter/build.h"
#include "engine/tensor/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { RELAXED_BERNOULLI, NO_NOISE };
enum { TRAIN_ALL, TRAIN_ROUTING };

static const char *const types[] = {"poly", NULL};
static const char *const noises[] = {"relaxed_bernoulli", "none", NULL};
static const char *const trains[] = {"all", "routing", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "r", .type = GD_OPTION_INT, .min = 1, .max = GD_WEAR_RANK_MAX, .fallback = 8, .peft_fallback = 8,
     .help = "Rank of each skill; at most the smaller side of each module."},
    {.name = "n_skills", .type = GD_OPTION_INT, .min = 1, .max = 256, .fallback = 4, .peft_fallback = 4,
     .help = "Low-rank pairs a module."},
    {.name = "n_splits", .type = GD_OPTION_INT, .min = 1, .max = 4096, .fallback = 1, .peft_fallback = 1,
     .help = "Parts of the features that are mixed each in its own way; more than 1 is multi-head routing. Must divide both sides of each module."},
    {.name = "n_tasks", .type = GD_OPTION_INT, .min = 0, .max = 4096, .of_data = true, .peft_fallback = 1,
     .help = "Tasks of the training file; 0: as many as it has."},
    {.name = "poly_type", .type = GD_OPTION_CHOICE, .choices = types, .help = "The kind of routing."},
    {.name = "trained", .type = GD_OPTION_CHOICE, .choices = trains,
     .help = "What learns: 'all', or only the 'routing' of a model that the job goes on from (MHR-z)."},
    {.name = "router_noise", .type = GD_OPTION_CHOICE, .use = GD_OPTION_OURS, .choices = noises,
     .help = "Noise of the routing in training: samples of relaxed Bernoulli variables, or none."},
    {.name = "router_lr_ratio", .type = GD_OPTION_NUMBER, .use = GD_OPTION_OURS, .min = 1e-3, .max = 1e4, .fallback = 100,
     .help = "The routing learns at this multiple of the skills' rate."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "q_proj,k_proj,v_proj,o_proj",
     .help = "Linear modules to adapt: names, dotted suffixes, or \"all-linear\"."},
};

static int whole(const struct gd_graft *graft, const char *option)
{
    return (int)gd_adapter_value(&graft->config, option);
}

/* ---- what is trained ---- */

static bool check_site(const struct gd_graft *graft, const struct gd_site *site, struct gd_error *err)
{
    int r = whole(graft, "r"), splits = whole(graft, "n_splits"), limit = site->in < site->out ? site->in : site->out;
    if (site->expert)
        return gd_fail_param(err, GD_INVALID, "adapter.target_modules", "poly mixes by row of the data, and %s gets single tokens of many: "
                             "name modules outside the experts", site->name);
    if (r > limit)
        return gd_fail_param(err, GD_INVALID, "adapter.r", "rank %d is larger than %s allows (%d x %d: at most %d)", r, site->name,
                             site->out, site->in, limit);
    if (site->in % splits == 0 && site->out % splits == 0)
        return true;
    char list[256] = "";
    for (int divisor = 1; divisor <= limit; divisor++) {
        size_t used = strlen(list);
        if (site->in % divisor == 0 && site->out % divisor == 0 && used + 16 < sizeof(list))
            snprintf(list + used, sizeof(list) - used, "%s%d", used ? ", " : "", divisor);
    }
    return gd_fail_param(err, GD_INVALID, "adapter.n_splits", "n_splits %d does not divide both sides of %s (%d x %d); these do: %s",
                         splits, site->name, site->out, site->in, list);
}

static bool count_tasks(struct gd_graft *graft, struct gd_error *err)
{
    struct gd_modules *tasks = &graft->config.tasks;
    int given = whole(graft, "n_tasks");
    if (tasks->count > 0 && given > 0 && given != tasks->count)
        return gd_fail_param(err, GD_INVALID, "adapter.n_tasks", "n_tasks is %d, but there are %d tasks: leave it out, or give that",
                             given, tasks->count);
    if (tasks->count == 0)
        gd_adapter_number_tasks(&graft->config, given > 0 ? given : 1);
    gd_adapter_set_value(&graft->config, "n_tasks", tasks->count);
    return true;
}

/* A module's parameters by their numbers. Where only the routing learns, the factors follow all that is trained. */
struct parts {
    int a, b, router;
};

static struct parts parts_at(const struct gd_graft *graft, int first)
{
    int frozen = graft->param_count + 2 * first;
    if (whole(graft, "trained") == TRAIN_ROUTING)
        return (struct parts){frozen, frozen + 1, first};
    return (struct parts){first, first + 1, first + 2};
}

static void add_factors(struct gd_graft *graft, bool trained, const char *module, const char *name, int64_t a, int64_t b)
{
    int64_t skills = whole(graft, "n_skills"), splits = whole(graft, "n_splits");
    struct gd_graft_param *param = gd_graft_add(graft, trained, module, name, splits * skills * a, b);
    int64_t shape[4] = {splits, skills, a, b};
    param->rank = 4;
    memcpy(param->file_shape, shape, sizeof(shape));
}

static void add_pair(struct gd_graft *graft, bool trained, const struct gd_site *site)
{
    int r = whole(graft, "r"), splits = whole(graft, "n_splits");
    add_factors(graft, trained, site->name, "poly_lora_A", site->in / splits, r);
    add_factors(graft, trained, site->name, "poly_lora_B", r, site->out / splits);
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    if (!count_tasks(graft, err) || gd_graft_choose(graft, GD_SITE_LINEAR, "target_modules", err) == 0)
        return false;
    bool all = whole(graft, "trained") == TRAIN_ALL;
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        if (!check_site(graft, &sites[i], err))
            return false;
        graft->site_param[i] = graft->param_count;
        if (all)
            add_pair(graft, true, &sites[i]);
        gd_graft_add(graft, true, sites[i].name, "poly_router.module_logits", whole(graft, "n_tasks"),
                     whole(graft, "n_splits") * whole(graft, "n_skills"))->rate = gd_adapter_value(&graft->config, "router_lr_ratio");
    }
    for (int i = 0; i < site_count && !all; i++)
        if (graft->site_param[i] >= 0)
            add_pair(graft, false, &sites[i]);
    graft->scale = 1.0 / whole(graft, "r");
    graft->noisy = whole(graft, "router_noise") == RELAXED_BERNOULLI;
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    int slots = gd_slot_count(graft->model);
    uint32_t stream = 0;
    memset(block, 0, (size_t)gd_graft_floats(graft) * sizeof(float));
    for (int i = 0; i < slots; i++) {
        if (graft->site_param[i] < 0)
            continue;
        struct parts at = parts_at(graft, graft->site_param[i]);
        const struct gd_graft_param *a = &graft->params[at.a], *z = &graft->params[at.router];
        gd_fill_uniform(block + a->offset, a->shape[0] * a->shape[1], 1.0f / sqrtf((float)a->file_shape[2]), seed, stream++);
        gd_fill_uniform(block + z->offset, z->shape[0] * z->shape[1], 1e-3f, seed, stream++);
    }
}

/* ---- going on from another ---- */

static bool check_from(const struct gd_graft *graft, const struct gd_graft *from, struct gd_error *err)
{
    static const char *const shapes[] = {"r", "n_skills", "n_splits"};
    char param[48];
    if (from->method != graft->method)
        return gd_fail_param(err, GD_INVALID, "adapter.type", "adapter.type is 'poly'; the model that the job starts from has '%s'",
                             from->method->name);
    for (size_t i = 0; i < GD_COUNT(shapes); i++) {
        snprintf(param, sizeof(param), "adapter.%s", shapes[i]);
        if (whole(graft, shapes[i]) != whole(from, shapes[i]))
            return gd_fail_param(err, GD_INVALID, param, "%s is %d; the model that the job starts from has %d", shapes[i],
                                 whole(graft, shapes[i]), whole(from, shapes[i]));
    }
    for (int i = 0; i < gd_slot_count(graft->model); i++)
        if ((graft->site_param[i] < 0) != (from->site_param[i] < 0))
            return gd_fail_param(err, GD_INVALID, "adapter.target_modules", "%s is adapted %s: give the modules of the model that the "
                                 "job starts from", gd_slot_site(graft->model, i)->name,
                                 from->site_param[i] < 0 ? "here, but not there" : "there, but not here");
    return true;
}

static void copy_param(float *to, const struct gd_graft_param *param, const struct gd_graft *from, int at)
{
    memcpy(to + param->offset, from->block + from->params[at].offset, (size_t)(param->shape[0] * param->shape[1]) * sizeof(float));
}

/* The factors, and the routing of tasks that both know; others begin afresh. */
static bool start(const struct gd_graft *graft, struct gd_graft *from, uint64_t seed, float *block, struct gd_error *err)
{
    if (from == NULL)
        return whole(graft, "trained") == TRAIN_ALL ||
               gd_fail_param(err, GD_INVALID, "adapter.trained", "trained 'routing' mixes skills that are there already: let the job go "
                             "on from a poly model (init_from)");
    if (!check_from(graft, from, err) || block == NULL)
        return err->code == GD_OK;
    const struct gd_modules *tasks = &graft->config.tasks, *known = &from->config.tasks;
    int64_t width = whole(graft, "n_splits") * whole(graft, "n_skills");
    init(graft, block, seed);
    for (int i = 0; i < gd_slot_count(graft->model); i++) {
        if (graft->site_param[i] < 0)
            continue;
        struct parts at = parts_at(graft, graft->site_param[i]), old = parts_at(from, from->site_param[i]);
        copy_param(block, &graft->params[at.a], from, old.a);
        copy_param(block, &graft->params[at.b], from, old.b);
        for (int t = 0; t < tasks->count; t++)
            for (int k = 0; k < known->count; k++)
                if (strcmp(tasks->names[t], known->names[k]) == 0)
                    memcpy(block + graft->params[at.router].offset + t * width,
                           from->block + from->params[old.router].offset + k * width, (size_t)width * sizeof(float));
    }
    return true;
}

/* ---- training ---- */

static struct gd_value *factors(struct gd_graft_training *training, struct gd_graph *g, int at)
{
    const struct gd_graft *graft = training->graft;
    return at < graft->param_count ? training->params[at] : gd_graft_view(training, g, &graft->params[at], graft->params[at].shape[0]);
}

static struct gd_value *linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params)
{
    const struct gd_graft *graft = training->graft;
    struct parts at = parts_at(graft, graft->site_param[site->index]);
    int skills = whole(graft, "n_skills"), splits = whole(graft, "n_splits");
    struct gd_value *y = gd_site_linear_base(g, x, w, bias), *cu = training->cu_seqlens;
    struct gd_value *z = gd_gather_rows(g, training->params[at.router], training->tasks);
    z = gd_route(g, z, training->noise_key, training->owner, splits, skills, site->index);
    struct gd_value *u = gd_mix_linear(g, x, factors(training, g, at.a), z, cu, splits, skills, false);
    u = gd_mix_linear(g, u, factors(training, g, at.b), z, cu, splits, skills, true);
    return gd_add(g, y, gd_scale(g, u, graft->scale));
}

/* ---- what is served ---- */

/* Weight of skill j in part h for the task that the graft is worn for. */
static float weight(const struct gd_graft *graft, const float *z, int h, int j)
{
    int skills = whole(graft, "n_skills");
    double sum = 1e-12, own = 0;
    if (graft->task < 0)
        return 1.0f / (float)skills;
    z += (int64_t)graft->task * whole(graft, "n_splits") * skills + (int64_t)h * skills;
    for (int k = 0; k < skills; k++) {
        double u = 1 / (1 + exp(-(double)z[k]));
        sum += u;
        own = k == j ? u : own;
    }
    return (float)(own / sum);
}

/* A_t turned: [r][in]; B_t turned: [out][r]. */
static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    int r = whole(graft, "r"), skills = whole(graft, "n_skills"), splits = whole(graft, "n_splits");
    int in = site->in / splits, out = site->out / splits;
    float *a = gd_graft_derive(graft, (int64_t)r * site->in), *b = gd_graft_derive(graft, (int64_t)r * site->out);
    struct parts at = parts_at(graft, graft->site_param[site->index]);
    const float *from_a = graft->block + graft->params[at.a].offset, *from_b = graft->block + graft->params[at.b].offset;
    for (int h = 0; h < splits; h++)
        for (int j = 0; j < skills; j++) {
            float w = weight(graft, graft->block + graft->params[at.router].offset, h, j);
            for (int i = 0; i < in; i++)
                for (int c = 0; c < r; c++)
                    a[(int64_t)c * site->in + h * in + i] += w * *from_a++;
            for (int c = 0; c < r; c++)
                for (int o = 0; o < out; o++)
                    b[((int64_t)h * out + o) * r + c] += w * *from_b++;
        }
    part->rank = r;
    part->scale = (float)graft->scale;
    part->a = a;
    part->a_row = site->in;
    part->b = b;
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_poly = {
    .name = "poly",
    .peft_type = "POLY",
    .paper = "Ponti et al. 2022, Combining Modular Skills in Multitask Learning; Caccia et al. 2023, Multi-Head Adapter Routing "
             "for Cross-Task Generalization",
    .help = "Mixes an inventory of low-rank pairs for each task; with n_splits, for each part of the features.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "poly_lora_A",
    .peft_fields = "{\"init_weights\": true, \"modules_to_save\": null}",
    .refused = refused,
    .by_task = true,
    .create = create,
    .init = init,
    .start = start,
    .linear = linear,
    .wear = wear,
};
