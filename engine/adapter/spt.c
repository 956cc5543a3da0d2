/*
 * spt.c - sensitivity-aware tuning (He et al. 2023). The sensitivity of a weight is the sum of its squared gradients over some
 * batches of the job's rows, before training. The tau most sensitive weights of all candidates are selected; then, tensor by tensor,
 * with m of them selected:
 *
 *   matrix [out, in]   m >= r (in + out) / alpha: a product B A of rank r beside it, y = W x + B A dropout(x), unscaled
 *   vector [n]         m >= n / beta: all of it
 *   else               the m selected weights, as additions that start at zero
 *
 * tau is searched for, so that the trained numbers come as near to the budget as they can: first on a grid of powers of
 * 1.1, then on a linear one around the best; with alpha >= 1 a larger budget selects a superset. Among equal
 * sensitivities the earlier tensor and place come first. Weights whose sensitivity is zero are never selected.
 */
#include "engine/adapter/picks.h"

#include "engine/adapter/rank.h"
#include "engine/base/alloc.h"
#include "engine/base/memory.h"
#include "engine/tensor/device.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PROBE_FLOATS (INT64_C(64) << 20) /* of a probe, or one layer */
#define GRID_MAX 256
#define FINE 64

enum structured { STRUCTURED_LORA, STRUCTURED_NONE };
static const char *const structures[] = {"lora", "none", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "budget", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .max = 9007199254740991.0,
     .help = "Trained numbers to come near to; 0: a two-hundredth of those that may be selected."},
    {.name = "tau", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .max = 9007199254740991.0,
     .help = "Weights to select, instead of a budget; 0: as many as the budget asks."},
    {.name = "structured", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = structures, .fallback = STRUCTURED_LORA,
     .help = "What a matrix with many sensitive weights gets: lora, a low-rank product; none: its weights stay single."},
    {.name = "allow_unstructured", .type = GD_OPTION_BOOL, .use = GD_OPTION_TRAINS, .fallback = 1,
     .help = "Train single weights where they are few; false: leave those tensors alone."},
    {.name = "r", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .min = 1, .max = GD_WEAR_RANK_MAX, .fallback = 8,
     .help = "Rank of a product."},
    {.name = "alpha", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 1e12, .fallback = 10,
     .help = "How easily a matrix gets a product: from 1/alpha of the product's numbers on; 0: never."},
    {.name = "beta", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .min = 1, .max = 1e12, .fallback = 5,
     .help = "How easily a vector is trained whole: from 1/beta of it on."},
    {.name = "sensitivity_batches", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .min = 1, .max = 10000, .fallback = 16,
     .help = "Batches to measure sensitivities over; fewer where the training file ends."},
    {.name = "sensitivity_batch_size", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .min = 1, .max = 256, .fallback = 32,
     .help = "Rows of such a batch."},
    {.name = "lora_dropout", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 0.95, .fallback = 0.1,
     .help = "Part of the inputs of products that training zeroes."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .use = GD_OPTION_TRAINS, .modules = "all-linear",
     .help = "Linear modules to select from, with their biases: names, dotted suffixes, or \"all-linear\"; an empty list: none."},
    {.name = "target_norms", .type = GD_OPTION_MODULES, .use = GD_OPTION_TRAINS, .modules = "all-norms",
     .help = "Norms to select from: names, dotted suffixes, or \"all-norms\"; an empty list: none."},
};

/* ---- sensitivities ---- */

/* The candidates, tensor by tensor, in one list. */
struct tensors {
    struct tensor {
        const struct gd_site *site;
        enum gd_picked_part part;
        struct gd_picked *picked;
        int64_t begin, count;
    } *all;
    int count;
    int64_t numbers;
    float *squares;              /* [numbers] */
};

static bool list_tensors(const struct gd_graft *graft, struct tensors *list, struct gd_error *err)
{
    list->all = gd_alloc_array((size_t)graft->picks->slots * GD_PICKED_PARTS, sizeof(*list->all));
    for (int slot = 0; slot < graft->picks->slots; slot++)
        for (int part = 0; part < GD_PICKED_PARTS; part++) {
            struct gd_picked *picked = &graft->picks->tensor[slot][part];
            const struct gd_site *site = gd_slot_site(graft->model, slot);
            if (picked->pick == GD_PICK_NONE || gd_picked_weight(site, part) == NULL)
                continue;
            int64_t count = gd_picked_rows(site, part) * gd_picked_columns(site, part);
            list->all[list->count++] = (struct tensor){site, part, picked, list->numbers, count};
            list->numbers += count;
        }
    if (list->count == 0)
        return gd_fail_param(err, GD_INVALID, "adapter.target_modules", "target_modules and target_norms are both empty: name what to select from");
    if ((size_t)list->numbers * sizeof(float) > gd_memory_bytes())
        return gd_fail_param(err, GD_NO_MEMORY, "adapter.target_modules",
                             "the sensitivities of %lld weights take %.2f GiB and this machine grants %.2f: name fewer modules",
                             (long long)list->numbers, (double)list->numbers * 4 / 1073741824.0, (double)gd_memory_bytes() / 1073741824.0);
    void *memory = NULL;
    bool ok = gd_large_alloc(&memory, (size_t)list->numbers * sizeof(float), "sensitivities", err);
    list->squares = memory;
    return ok;
}

static cJSON *names_json(const struct gd_modules *modules)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < modules->count; i++)
        cJSON_AddItemToArray(list, cJSON_CreateString(modules->names[i]));
    return list;
}

/* A graft that trains the candidates of some layers whole: its gradients are those of the base's weights. */
static bool make_probe(struct gd_graft **out, const struct gd_graft *graft, int first, int last, struct gd_error *err)
{
    struct gd_adapter_config config = {0};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", "full");
    cJSON_AddItemToObject(json, "target_modules", names_json(gd_adapter_modules(&graft->config, "target_modules")));
    cJSON_AddItemToObject(json, "target_norms", names_json(gd_adapter_modules(&graft->config, "target_norms")));
    cJSON_AddNumberToObject(json, "first_layer", first);
    cJSON_AddNumberToObject(json, "last_layer", last);
    bool ok = gd_adapter_config_parse(&config, json, err) && gd_graft_create(out, graft->model, &config, err);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    return ok;
}

static bool in_layers(const struct gd_graft *graft, const struct gd_site *site, int first, int last)
{
    int layer = site->layer >= 0 ? site->layer : graft->model->config.layers - 1;
    return layer >= first && layer <= last;
}

/* Layers from `first` on whose candidates a probe may hold together; *count gets their numbers. */
static int last_of_probe(const struct gd_graft *graft, const struct tensors *list, int first, int64_t *count)
{
    int layers = graft->model->config.layers, last = first;
    for (int layer = first; layer < layers; layer++) {
        int64_t numbers = 0;
        for (int i = 0; i < list->count; i++)
            numbers += in_layers(graft, list->all[i].site, first, layer) ? list->all[i].count : 0;
        if (layer > first && numbers > PROBE_FLOATS)
            break;
        last = layer;
        *count = numbers;
    }
    return last;
}

static bool measure(const struct gd_graft *graft, const struct gd_graft_source *source, struct tensors *list, struct gd_error *err)
{
    int batches = (int)gd_adapter_value(&graft->config, "sensitivity_batches");
    int batch_size = (int)gd_adapter_value(&graft->config, "sensitivity_batch_size");
    bool ok = true;
    for (int first = 0, last; ok && first < graft->model->config.layers; first = last + 1) {
        struct gd_graft *probe = NULL;
        void *squares = NULL;
        int64_t count = 0;
        last = last_of_probe(graft, list, first, &count);
        if (count == 0)
            continue;
        size_t bytes = (size_t)count * sizeof(float);
        ok = make_probe(&probe, graft, first, last, err) && gd_twin_alloc(&squares, bytes, "sensitivities", err) &&
             source->squares(source->context, probe, batches, batch_size, squares, err) && gd_twin_pull(squares, bytes, err);
        const float *from = squares;
        for (int i = 0; ok && i < list->count; i++)
            if (in_layers(graft, list->all[i].site, first, last)) {
                memcpy(list->squares + list->all[i].begin, from, (size_t)list->all[i].count * sizeof(float));
                from += list->all[i].count;
            }
        gd_twin_free(squares, squares != NULL ? bytes : 0);
        gd_graft_destroy(probe);
    }
    return ok;
}

/* ---- allocation ---- */

static void allocate(const struct gd_graft *graft, const struct tensor *tensor, int64_t selected, struct gd_picked *out)
{
    int64_t rows = gd_picked_rows(tensor->site, tensor->part), columns = gd_picked_columns(tensor->site, tensor->part);
    double alpha = gd_adapter_value(&graft->config, "alpha"), beta = gd_adapter_value(&graft->config, "beta");
    int r = (int)gd_adapter_value(&graft->config, "r");
    bool single = gd_adapter_value(&graft->config, "allow_unstructured") != 0;
    bool product = gd_adapter_value(&graft->config, "structured") == STRUCTURED_LORA && columns > 1;
    *out = (struct gd_picked){.pick = single ? GD_PICK_ENTRIES : GD_PICK_NONE, .entry_count = single ? selected : 0};
    if (selected == 0)
        out->pick = GD_PICK_NONE;
    else if (columns == 1 && (double)selected * beta >= (double)rows)
        *out = (struct gd_picked){.pick = GD_PICK_WHOLE};
    else if (product && (double)selected * alpha >= (double)r * (double)(rows + columns))
        *out = (struct gd_picked){.pick = GD_PICK_PRODUCT, .rank = r};
}

static int64_t trained_by(const struct gd_graft *graft, const struct tensors *list, const int64_t *selected)
{
    int64_t trained = 0;
    for (int i = 0; i < list->count; i++) {
        const struct tensor *tensor = &list->all[i];
        int64_t sides = gd_picked_rows(tensor->site, tensor->part) + gd_picked_columns(tensor->site, tensor->part);
        struct gd_picked picked;
        allocate(graft, tensor, selected[i], &picked);
        trained += picked.pick == GD_PICK_WHOLE ? tensor->count : picked.pick == GD_PICK_PRODUCT ? picked.rank * sides : picked.entry_count;
    }
    return trained;
}

/* The best of the taus, which rise; the smaller of two that are as near. */
static int nearest(const struct gd_graft *graft, const struct tensors *list, const int64_t *taus, int tau_count, int64_t budget)
{
    int64_t *begins = gd_alloc_array((size_t)list->count + 1, sizeof(int64_t)), best_gap = INT64_MAX;
    int64_t *selected = gd_alloc_array((size_t)tau_count * (size_t)list->count, sizeof(int64_t));
    int best = 0;
    for (int i = 0; i < list->count; i++)
        begins[i + 1] = list->all[i].begin + list->all[i].count;
    gd_rank_count(list->squares, begins, list->count, taus, tau_count, selected);
    for (int k = 0; k < tau_count; k++) {
        int64_t gap = trained_by(graft, list, selected + (int64_t)k * list->count) - budget;
        gap = gap < 0 ? -gap : gap;
        if (gap < best_gap) {
            best_gap = gap;
            best = k;
        }
    }
    gd_free(begins);
    gd_free(selected);
    return best;
}

static int64_t search_tau(const struct gd_graft *graft, const struct tensors *list, int64_t most, int64_t budget)
{
    int64_t grid[GRID_MAX], fine[FINE];
    int count = 0, fine_count = 0;
    for (double tau = 1; tau < (double)most && count < GRID_MAX - 1; tau *= 1.1)
        if (count == 0 || (int64_t)tau > grid[count - 1])
            grid[count++] = (int64_t)tau;
    grid[count++] = most;
    int best = nearest(graft, list, grid, count, budget);
    int64_t low = best > 0 ? grid[best - 1] : 1, high = best + 1 < count ? grid[best + 1] : most;
    for (int i = 0; i < FINE; i++) {
        int64_t tau = low + (int64_t)((double)(high - low) * i / (FINE - 1) + 0.5);
        if (fine_count == 0 || tau > fine[fine_count - 1])
            fine[fine_count++] = tau;
    }
    return fine[nearest(graft, list, fine, fine_count, budget)];
}

static void fill_entries(const struct tensors *list, const struct tensor *tensor, const struct gd_rank_cut *cut, int64_t *equal)
{
    struct gd_picked *picked = tensor->picked;
    int64_t columns = gd_picked_columns(tensor->site, tensor->part), count = 0;
    bool entries = picked->pick == GD_PICK_ENTRIES;
    if (entries) {
        picked->row = gd_alloc_array((size_t)picked->entry_count, sizeof(int32_t));
        picked->column = columns > 1 ? gd_alloc_array((size_t)picked->entry_count, sizeof(int32_t)) : NULL;
    }
    for (int64_t i = 0; i < tensor->count; i++) {
        if (!gd_rank_passes(cut, list->squares[tensor->begin + i], equal) || !entries)
            continue;
        picked->row[count] = (int32_t)(i / columns);
        if (columns > 1)
            picked->column[count] = (int32_t)(i % columns);
        count++;
    }
}

static void pick(struct gd_graft *graft, struct tensors *list, int64_t tau)
{
    int64_t *begins = gd_alloc_array((size_t)list->count + 1, sizeof(int64_t)), equal = 0;
    int64_t *selected = gd_alloc_array((size_t)list->count, sizeof(int64_t));
    for (int i = 0; i < list->count; i++)
        begins[i + 1] = list->all[i].begin + list->all[i].count;
    gd_rank_count(list->squares, begins, list->count, &tau, 1, selected);
    struct gd_rank_cut cut = gd_rank_find(list->squares, list->numbers, tau);
    for (int i = 0; i < list->count; i++) {
        allocate(graft, &list->all[i], selected[i], list->all[i].picked);
        fill_entries(list, &list->all[i], &cut, &equal);
    }
    gd_free(begins);
    gd_free(selected);
}

static bool check_ranks(const struct gd_graft *graft, const struct tensors *list, struct gd_error *err)
{
    int r = (int)gd_adapter_value(&graft->config, "r");
    bool products = gd_adapter_value(&graft->config, "structured") == STRUCTURED_LORA;
    for (int i = 0; products && i < list->count; i++) {
        const struct gd_site *site = list->all[i].site;
        int limit = site->in < site->out ? site->in : site->out;
        if (site->kind == GD_SITE_LINEAR && r > limit)
            return gd_fail_param(err, GD_INVALID, "adapter.r", "rank %d is larger than %s allows (%d x %d: at most %d)", r, site->name,
                                 site->out, site->in, limit);
    }
    return true;
}

static bool select_by(struct gd_graft *graft, struct tensors *list, struct gd_error *err)
{
    int64_t budget = (int64_t)gd_adapter_value(&graft->config, "budget"), tau = (int64_t)gd_adapter_value(&graft->config, "tau");
    int64_t most = gd_rank_positive(list->squares, list->numbers);
    if (budget > list->numbers || tau > list->numbers)
        return gd_fail_param(err, GD_INVALID, budget > list->numbers ? "adapter.budget" : "adapter.tau",
                             "%lld is more than the %lld weights that may be selected", (long long)(budget > list->numbers ? budget : tau),
                             (long long)list->numbers);
    if (most == 0)
        return gd_fail_param(err, GD_INVALID, "adapter.target_modules",
                             "no weight of the targets has a gradient over the rows that were measured: name other modules or rows");
    budget = budget > 0 ? budget : (list->numbers + 199) / 200;
    bool given = tau > 0;
    tau = given ? (tau < most ? tau : most) : search_tau(graft, list, most, budget);
    pick(graft, list, tau);
    int64_t trained = gd_picks_numbers(graft), entries = 0;
    if (trained == 0)
        return gd_fail_param(err, GD_INVALID, "adapter.allow_unstructured",
                             "no tensor has weights enough for a product or for being trained whole: raise budget, alpha or beta, or set "
                             "allow_unstructured");
    for (int i = 0; i < list->count; i++)
        entries += list->all[i].picked->pick == GD_PICK_ENTRIES ? list->all[i].picked->entry_count : 0;
    char goal[64] = "";
    if (!given)
        snprintf(goal, sizeof(goal), " for a budget of %lld", (long long)budget);
    snprintf(graft->summary, sizeof(graft->summary),
             "spt: %lld trained numbers%s, from the %lld most sensitive weights: %lld products, %lld whole vectors, %lld single weights",
             (long long)trained, goal, (long long)tau, (long long)gd_picks_count(graft, GD_PICK_PRODUCT),
             (long long)gd_picks_count(graft, GD_PICK_WHOLE), (long long)entries);
    return true;
}

static bool choose(struct gd_graft *graft, const struct gd_graft_source *source, struct gd_error *err)
{
    struct tensors list = {0};
    int last = graft->model->config.layers - 1;
    graft->picks = gd_picks_create(graft->model);
    if (source->file != NULL)
        return gd_picks_read(graft, source->file, err);
    if (gd_adapter_value(&graft->config, "budget") > 0 && gd_adapter_value(&graft->config, "tau") > 0)
        return gd_fail_param(err, GD_INVALID, "adapter.tau", "tau and budget exclude each other: give one of them");
    bool ok = gd_picks_choose(graft, GD_SITE_LINEAR, "target_modules", true, true, 0, last, err) &&
              gd_picks_choose(graft, GD_SITE_NORM, "target_norms", true, false, 0, last, err) && list_tensors(graft, &list, err) &&
              check_ranks(graft, &list, err);
    if (ok && source->squares == NULL)
        ok = gd_fail(err, GD_INVALID, "spt selects by the rows that it will train on, and there are none");
    for (int slot = 0; ok && slot < graft->picks->slots; slot++)
        for (int part = 0; part < GD_PICKED_PARTS; part++)
            graft->picks->tensor[slot][part].pick = GD_PICK_NONE;
    ok = ok && measure(graft, source, &list, err) && select_by(graft, &list, err);
    gd_large_free(list.squares, list.squares != NULL ? (size_t)list.numbers * sizeof(float) : 0);
    gd_free(list.all);
    return ok;
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    graft->dropout = gd_picks_count(graft, GD_PICK_PRODUCT) > 0 ? gd_adapter_value(&graft->config, "lora_dropout") : 0;
    return gd_picks_declare(graft, err);
}

static const char *const refused[] = {NULL};

const struct gd_adapter_method gd_adapter_spt = {
    .name = "spt",
    .peft_type = "SPT",
    .paper = "He et al. 2023, Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning",
    .help = "Trains the weights that the rows' gradients select: single ones, or low-rank products where they are many.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "shira_weight",
    .peft_fields = "{}",
    .refused = refused,
    .choose = choose,
    .create = create,
    .init = gd_picks_init,
    .linear = gd_picks_linear,
    .norm = gd_picks_norm,
    .wear = gd_picks_wear,
};
