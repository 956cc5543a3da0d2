/*
 * hft.c - half fine-tuning (Hui et al. 2025): of each layer, a random half of the matrices and norms is trained, the rest frozen.
 *
 * By category, the default: of every group of n tensors that a layer has (the attention's matrices, the feed-forward's, the
 * norms) `share` times n are trained. Where that is no whole number, some layers train one more than others, chosen at random: of
 * three feed-forward matrices and L layers, floor(L/2) layers train one, the others two. By layer: whole layers. By model: any
 * matrices, any norms. A matrix takes its bias with it; a norm after the layers is always trained; the embedding and the head stay
 * as they are. A round is one job: the next round draws anew.
 */
#include "engine/adapter/picks.h"

#include "engine/base/alloc.h"
#include "engine/base/philox.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define DRAWS_MAX 1000

enum level { BY_CATEGORY, BY_LAYER, BY_MODEL };
static const char *const levels[] = {"category", "layer", "model", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "share", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .min = 1e-3, .max = 1, .fallback = 0.5,
     .help = "Part of the tensors that is trained."},
    {.name = "level", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = levels, .fallback = BY_CATEGORY,
     .help = "category: that part of each layer's attention matrices, feed-forward matrices and norms; layer: of the layers; "
             "model: of all matrices, and of all norms."},
    {.name = "round", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .max = 1000000,
     .help = "Number of the fine-tuning round: each draws anew."},
    {.name = "selection_seed", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .min = -1, .max = 9007199254740991.0, .fallback = -1,
     .help = "Seed of the draw; -1: the job's."},
    {.name = "tolerance", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 1, .fallback = 1,
     .help = "Draw again until the part of the numbers that is trained is as near to share; matrices differ in size."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .use = GD_OPTION_TRAINS, .modules = "all-linear",
     .help = "Linear modules to draw from: names, dotted suffixes, or \"all-linear\"; an empty list: none."},
    {.name = "target_norms", .type = GD_OPTION_MODULES, .use = GD_OPTION_TRAINS, .modules = "all-norms",
     .help = "Norms to draw from: names, dotted suffixes, or \"all-norms\"; an empty list: none."},
    {.name = "decay_vectors", .type = GD_OPTION_BOOL, .use = GD_OPTION_TRAINS, .fallback = 1,
     .help = "Weight decay acts on norms and biases too; false: on matrices only, as transformers' Trainer has it."},
};

/* Random numbers in order: each names its seed, round, draw and place. */
struct draw {
    uint64_t seed, stream, next;
};

static void shuffle(struct draw *draw, int *items, int count)
{
    for (int i = count - 1; i > 0; i--) {
        struct gd_philox bits = gd_philox4(draw->seed, draw->stream, draw->next++);
        int j = (int)(gd_uniform_from_bits64(bits.v[0], bits.v[1]) * (i + 1)), kept = items[i];
        items[i] = items[j];
        items[j] = kept;
    }
}

/* "self_attn" of model.layers.3.self_attn.q_proj; "" of a norm: what a layer's tensors are grouped by. */
static void category_of(const struct gd_site *site, char *out, size_t size)
{
    const char *leaf = strrchr(site->name, '.'), *start = leaf;
    while (start != NULL && start > site->name && start[-1] != '.')
        start--;
    snprintf(out, size, "%.*s", site->kind == GD_SITE_LINEAR && leaf != NULL ? (int)(leaf - start) : 0, start != NULL ? start : "");
}

/* Candidates, one group after the other: slots that are alike in kind, category and, by category, layer. */
struct group {
    int first, count, trained;
};

struct candidates {
    int *slots;
    struct group *groups;
    int slot_count, group_count;
};

static bool belongs(const struct gd_model *model, enum level level, int a, int b, bool same_layer)
{
    const struct gd_site *x = gd_slot_site(model, a), *y = gd_slot_site(model, b);
    char of_x[64], of_y[64];
    if (same_layer && x->layer != y->layer)
        return false;
    if (level == BY_LAYER)
        return true;
    if (x->kind != y->kind || level == BY_MODEL)
        return x->kind == y->kind;
    category_of(x, of_x, sizeof(of_x));
    category_of(y, of_y, sizeof(of_y));
    return strcmp(of_x, of_y) == 0;
}

/* What is picked so far, but for norms after the layers, into groups. */
static void gather(const struct gd_graft *graft, enum level level, struct candidates *all)
{
    int slots = graft->picks->slots;
    bool *taken = gd_alloc_array((size_t)slots, sizeof(bool));
    all->slots = gd_alloc_array((size_t)slots, sizeof(int));
    all->groups = gd_alloc_array((size_t)slots, sizeof(struct group));
    for (int i = 0; i < slots; i++)
        taken[i] = graft->picks->tensor[i][GD_PICKED_WEIGHT].pick == GD_PICK_NONE || gd_slot_site(graft->model, i)->layer < 0;
    for (int i = 0; i < slots; i++) {
        if (taken[i])
            continue;
        struct group *group = &all->groups[all->group_count++];
        group->first = all->slot_count;
        for (int j = i; j < slots; j++)
            if (!taken[j] && belongs(graft->model, level, i, j, level != BY_MODEL)) {
                taken[j] = true;
                all->slots[all->slot_count++] = j;
            }
        group->count = all->slot_count - group->first;
    }
    gd_free(taken);
}

/* `share` of the groups' members in all, rounded; each group gets the whole part of its own, and the rest goes to those that
 * are owed a fraction, in random order. */
static void divide(const struct gd_graft *graft, const struct candidates *all, double share, struct draw *draw, bool *seen,
                   int like)
{
    int *owed = gd_alloc_array((size_t)all->group_count, sizeof(int)), owed_count = 0, given = 0;
    double wanted = 0;
    for (int g = like; g < all->group_count; g++) {
        struct group *group = &all->groups[g];
        if (seen[g] || !belongs(graft->model, BY_CATEGORY, all->slots[all->groups[like].first], all->slots[group->first], false))
            continue;
        seen[g] = true;
        double part = share * group->count;
        group->trained = (int)floor(part + 1e-9);
        wanted += part;
        given += group->trained;
        if (part - group->trained > 1e-9)
            owed[owed_count++] = g;
    }
    shuffle(draw, owed, owed_count);
    int rest = (int)floor(wanted + 0.5 + 1e-9) - given;
    for (int i = 0; i < rest && i < owed_count; i++)
        all->groups[owed[i]].trained++;
    gd_free(owed);
}

static void set(struct gd_graft *graft, int slot, bool trained)
{
    graft->picks->tensor[slot][GD_PICKED_WEIGHT].pick = trained ? GD_PICK_WHOLE : GD_PICK_NONE;
    graft->picks->tensor[slot][GD_PICKED_BIAS].pick =
        trained && gd_slot_site(graft->model, slot)->bias != NULL ? GD_PICK_WHOLE : GD_PICK_NONE;
}

/* One draw over all groups. */
static void select_half(struct gd_graft *graft, struct candidates *all, enum level level, double share, struct draw *draw)
{
    if (level == BY_LAYER) { /* the groups are the layers */
        int *order = gd_alloc_array((size_t)all->group_count, sizeof(int));
        for (int g = 0; g < all->group_count; g++)
            order[g] = g;
        shuffle(draw, order, all->group_count);
        for (int i = 0; i < all->group_count; i++)
            all->groups[order[i]].trained = i < (int)floor(share * all->group_count + 0.5) ? all->groups[order[i]].count : 0;
        gd_free(order);
    } else {
        bool *seen = gd_alloc_array((size_t)all->group_count, sizeof(bool));
        for (int g = 0; g < all->group_count; g++)
            if (!seen[g])
                divide(graft, all, share, draw, seen, g);
        gd_free(seen);
    }
    for (int g = 0; g < all->group_count; g++) {
        struct group *group = &all->groups[g];
        int *members = all->slots + group->first;
        shuffle(draw, members, group->count);
        for (int i = 0; i < group->count; i++)
            set(graft, members[i], i < group->trained);
    }
}

static int64_t size_of(const struct gd_graft *graft, const struct candidates *all, bool trained_only)
{
    int64_t numbers = 0;
    for (int i = 0; i < all->slot_count; i++) {
        const struct gd_site *site = gd_slot_site(graft->model, all->slots[i]);
        if (!trained_only || graft->picks->tensor[all->slots[i]][GD_PICKED_WEIGHT].pick == GD_PICK_WHOLE)
            numbers += gd_picked_rows(site, GD_PICKED_WEIGHT) * gd_picked_columns(site, GD_PICKED_WEIGHT);
    }
    return numbers;
}

static bool draw_until_near(struct gd_graft *graft, struct candidates *all, uint64_t seed, struct gd_error *err)
{
    const struct gd_adapter_config *config = &graft->config;
    double share = gd_adapter_value(config, "share"), tolerance = gd_adapter_value(config, "tolerance"), nearest = 2, part = 0;
    uint32_t round = (uint32_t)gd_adapter_value(config, "round");
    enum level level = (enum level)gd_adapter_value(config, "level");
    int draws = 0, trained = 0;
    double chosen = gd_adapter_value(config, "selection_seed");
    do {
        struct draw draw = {chosen >= 0 ? (uint64_t)chosen : seed, gd_philox_stream(GD_RANDOM_CHOICE, round, (uint32_t)draws++), 0};
        select_half(graft, all, level, share, &draw);
        part = (double)size_of(graft, all, true) / (double)size_of(graft, all, false);
        nearest = fmin(nearest, fabs(part - share));
    } while (fabs(part - share) > tolerance && draws < DRAWS_MAX);
    if (fabs(part - share) > tolerance)
        return gd_fail_param(err, GD_INVALID, "adapter.tolerance",
                             "no draw of %d trained a part of the numbers within %g of %g (the nearest is off by %g): raise tolerance",
                             draws, tolerance, share, nearest);
    for (int i = 0; i < all->slot_count; i++)
        trained += graft->picks->tensor[all->slots[i]][GD_PICKED_WEIGHT].pick == GD_PICK_WHOLE;
    snprintf(graft->summary, sizeof(graft->summary),
             "hft round %u by %s: trains %d of %d tensors of the layers, %.2f %% of their %lld numbers", round, levels[level], trained,
             all->slot_count, 100 * part, (long long)size_of(graft, all, false));
    return true;
}

static bool choose(struct gd_graft *graft, const struct gd_graft_source *source, struct gd_error *err)
{
    graft->picks = gd_picks_create(graft->model);
    graft->picks->undecayed_vectors = gd_adapter_value(&graft->config, "decay_vectors") == 0;
    if (source->file != NULL)
        return gd_picks_read(graft, source->file, err);
    int last = graft->model->config.layers - 1;
    if (!gd_picks_choose(graft, GD_SITE_LINEAR, "target_modules", true, false, 0, last, err) ||
        !gd_picks_choose(graft, GD_SITE_NORM, "target_norms", true, false, 0, last, err))
        return false;
    struct candidates all = {0};
    gather(graft, (enum level)gd_adapter_value(&graft->config, "level"), &all);
    bool ok = all.slot_count > 0 ? draw_until_near(graft, &all, source->seed, err)
                                 : gd_fail_param(err, GD_INVALID, "adapter.target_modules",
                                                 "target_modules and target_norms name nothing in a layer: there is nothing to draw from");
    if (ok && gd_picks_numbers(graft) == 0)
        ok = gd_fail_param(err, GD_INVALID, "adapter.share", "a share of %g of these targets is none of them: raise share, or name more",
                           gd_adapter_value(&graft->config, "share"));
    gd_free(all.slots);
    gd_free(all.groups);
    return ok;
}

static const char *const refused[] = {NULL};

const struct gd_adapter_method gd_adapter_hft = {
    .name = "hft",
    .peft_type = "HFT",
    .paper = "Hui et al. 2025, HFT: Half Fine-Tuning for Large Language Models",
    .help = "Trains a random half of each layer's matrices and norms, and freezes the rest.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "weight",
    .peft_fields = "{}",
    .refused = refused,
    .choose = choose,
    .create = gd_picks_declare,
    .init = gd_picks_init,
    .linear = gd_picks_linear,
    .norm = gd_picks_norm,
    .wear = gd_picks_wear,
};
