/* picks.c - choosing tensors of the base, declaring and filling their parameters, and the hooks that use them. */
#include "engine/adapter/picks.h"

#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define SIDE_MAX (1 << 24) /* what f32 counts exactly */

struct gd_picks *gd_picks_create(const struct gd_model *model)
{
    struct gd_picks *picks = gd_alloc(sizeof(*picks));
    picks->slots = gd_slot_count(model);
    picks->tensor = gd_alloc_array((size_t)picks->slots, sizeof(*picks->tensor));
    return picks;
}

void gd_picks_destroy(struct gd_picks *picks)
{
    if (picks == NULL)
        return;
    for (int slot = 0; slot < picks->slots; slot++)
        for (int part = 0; part < GD_PICKED_PARTS; part++) {
            gd_free(picks->tensor[slot][part].row);
            gd_free(picks->tensor[slot][part].column);
        }
    gd_free(picks->tensor);
    gd_free(picks);
}

struct gd_weight *gd_picked_weight(const struct gd_site *site, enum gd_picked_part part)
{
    return part == GD_PICKED_WEIGHT ? site->weight : site->bias;
}

int64_t gd_picked_rows(const struct gd_site *site, enum gd_picked_part part)
{
    return site->out;
}

int64_t gd_picked_columns(const struct gd_site *site, enum gd_picked_part part)
{
    return (site->kind == GD_SITE_LINEAR || site->kind == GD_SITE_TABLE) && part == GD_PICKED_WEIGHT ? site->in : 1;
}

/* ---- choosing ---- */

bool gd_picks_choose(struct gd_graft *graft, enum gd_site_kind kind, const char *option, bool weights, bool biases,
                     int first_layer, int last_layer, struct gd_error *err)
{
    int slots = gd_slot_count(graft->model), layers = graft->model->config.layers;
    bool ok = gd_adapter_modules(&graft->config, option)->count == 0 || gd_graft_choose(graft, kind, option, err) > 0;
    for (int slot = 0; slot < slots; slot++) {
        const struct gd_site *site = gd_slot_site(graft->model, slot);
        int layer = site->layer >= 0 ? site->layer : layers - 1;
        bool chosen = graft->site_param[slot] >= 0 && layer >= first_layer && layer <= last_layer;
        graft->site_param[slot] = -1;
        if (chosen && weights)
            graft->picks->tensor[slot][GD_PICKED_WEIGHT].pick = GD_PICK_WHOLE;
        if (chosen && (site->kind == GD_SITE_LINEAR ? biases : weights && site->bias != NULL))
            graft->picks->tensor[slot][GD_PICKED_BIAS].pick = GD_PICK_WHOLE;
    }
    return ok;
}

void gd_picks_choose_tables(struct gd_graft *graft)
{
    for (int slot = 0; slot < graft->picks->slots; slot++)
        if (gd_slot_site(graft->model, slot)->kind == GD_SITE_TABLE)
            graft->picks->tensor[slot][GD_PICKED_WEIGHT].pick = GD_PICK_WHOLE;
}

int64_t gd_picks_count(const struct gd_graft *graft, enum gd_pick pick)
{
    int64_t count = 0;
    for (int slot = 0; slot < graft->picks->slots; slot++)
        for (int part = 0; part < GD_PICKED_PARTS; part++)
            count += graft->picks->tensor[slot][part].pick == pick;
    return count;
}

static int64_t numbers(const struct gd_site *site, enum gd_picked_part part, const struct gd_picked *picked)
{
    int64_t rows = gd_picked_rows(site, part), columns = gd_picked_columns(site, part);
    switch (picked->pick) {
    case GD_PICK_WHOLE:
        return rows * columns;
    case GD_PICK_ENTRIES:
        return picked->entry_count;
    case GD_PICK_PRODUCT:
        return picked->rank * (rows + columns);
    case GD_PICK_NONE:
        break;
    }
    return 0;
}

int64_t gd_picks_numbers(const struct gd_graft *graft)
{
    int64_t count = 0;
    for (int slot = 0; slot < graft->picks->slots; slot++)
        for (int part = 0; part < GD_PICKED_PARTS; part++)
            count += numbers(gd_slot_site(graft->model, slot), part, &graft->picks->tensor[slot][part]);
    return count;
}

/* ---- parameters ---- */

/* A list of numbers: a vector of the base, or entries of one or of a matrix. */
static void add_list(struct gd_graft *graft, const char *module, const char *suffix, int64_t count, bool vector)
{
    struct gd_graft_param *param = gd_graft_add(graft, true, module, suffix, count, 1);
    param->rank = 1;
    param->flat = true;
    param->undecayed = vector && graft->picks->undecayed_vectors;
}

static void declare_part(struct gd_graft *graft, const struct gd_site *site, enum gd_picked_part part,
                         const struct gd_picked *picked)
{
    int64_t rows = gd_picked_rows(site, part), columns = gd_picked_columns(site, part);
    bool bias = part == GD_PICKED_BIAS;
    switch (picked->pick) {
    case GD_PICK_WHOLE:
        if (columns > 1 || site->kind == GD_SITE_TABLE)
            gd_graft_add(graft, true, site->name, "weight", rows, columns);
        else
            add_list(graft, site->name, bias ? "bias" : "weight", rows, true);
        break;
    case GD_PICK_ENTRIES:
        add_list(graft, site->name, bias ? "bias.shira_weight" : "shira_weight", picked->entry_count, columns == 1);
        break;
    case GD_PICK_PRODUCT:
        gd_graft_add(graft, true, site->name, "lora_A.weight", picked->rank, columns);
        gd_graft_add(graft, true, site->name, "lora_B.weight", rows, picked->rank);
        break;
    case GD_PICK_NONE:
        break;
    }
}

bool gd_picks_declare(struct gd_graft *graft, struct gd_error *err)
{
    for (int slot = 0; slot < graft->picks->slots; slot++) {
        const struct gd_site *site = gd_slot_site(graft->model, slot);
        int first = graft->param_count;
        for (int part = 0; part < GD_PICKED_PARTS; part++) {
            const struct gd_picked *picked = &graft->picks->tensor[slot][part];
            if (picked->pick == GD_PICK_ENTRIES && (gd_picked_rows(site, part) > SIDE_MAX || gd_picked_columns(site, part) > SIDE_MAX))
                return gd_fail_param(err, GD_UNSUPPORTED, "adapter.target_modules",
                                     "%s has a side above %d: its entries cannot be chosen one by one", site->name, SIDE_MAX);
            declare_part(graft, site, part, picked);
        }
        if (graft->param_count > first)
            graft->site_param[slot] = first;
    }
    for (int slot = 0; slot < graft->picks->slots; slot++)
        for (int part = 0; part < GD_PICKED_PARTS; part++) {
            const struct gd_picked *picked = &graft->picks->tensor[slot][part];
            if (picked->pick == GD_PICK_ENTRIES)
                gd_graft_add(graft, false, gd_slot_site(graft->model, slot)->name,
                             part == GD_PICKED_BIAS ? "bias.shira_indices" : "shira_indices", picked->column != NULL ? 2 : 1,
                             picked->entry_count)->integers = true;
        }
    graft->scale = 1.0;
    return true;
}

/* The base's own values; zeros where it has no such tensor. */
static void fill_base(const struct gd_site *site, enum gd_picked_part part, float *out)
{
    const struct gd_weight *weight = gd_picked_weight(site, part);
    if (weight != NULL)
        gd_weight_to_f32(weight, out);
    else
        memset(out, 0, (size_t)gd_picked_rows(site, part) * sizeof(float));
}

static void fill_places(const struct gd_picked *picked, float *out)
{
    for (int64_t i = 0; i < picked->entry_count; i++) {
        out[i] = (float)picked->row[i];
        if (picked->column != NULL)
            out[picked->entry_count + i] = (float)picked->column[i];
    }
}

void gd_picks_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    int frozen = graft->param_count;
    memset(block, 0, (size_t)gd_graft_floats(graft) * sizeof(float));
    for (int slot = 0; slot < graft->picks->slots; slot++) {
        int next = graft->site_param[slot];
        for (int part = 0; part < GD_PICKED_PARTS; part++) {
            const struct gd_picked *picked = &graft->picks->tensor[slot][part];
            if (picked->pick == GD_PICK_NONE)
                continue;
            const struct gd_graft_param *param = &graft->params[next];
            float *values = block + param->offset;
            if (picked->pick == GD_PICK_WHOLE)
                fill_base(gd_slot_site(graft->model, slot), part, values);
            else if (picked->pick == GD_PICK_ENTRIES)
                fill_places(picked, block + graft->params[frozen++].offset);
            else
                gd_fill_uniform(values, param->shape[0] * param->shape[1], 1.0f / sqrtf((float)param->shape[1]), seed,
                                (uint32_t)slot);
            next += picked->pick == GD_PICK_PRODUCT ? 2 : 1;
        }
    }
}

/* ---- in training graphs ---- */

static struct gd_value *spread(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *values,
                               const struct gd_picked *picked, int64_t length)
{
    struct gd_value *places = gd_graft_list(training, g, "places", picked->row, picked->entry_count);
    return gd_scatter(g, values, places, length);
}

static struct gd_value *add_product(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                    struct gd_value *x, struct gd_value *y, struct gd_value *a, struct gd_value *b)
{
    if (training->dropout_key != NULL)
        x = gd_dropout(g, x, training->dropout_key, training->graft->dropout, site->index);
    struct gd_value *u = gd_matmul(g, x, false, a, true, 1.0, NULL, gd_graph_act(g));
    return gd_matmul(g, u, false, b, true, 1.0, y, gd_graph_act(g));
}

struct gd_value *gd_picks_linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                 struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                                 struct gd_value *const *params)
{
    const struct gd_picked *weight = training->graft->picks->tensor[site->index], *added = weight + GD_PICKED_BIAS;
    struct gd_value *const *mine = params; /* the weight's, then the bias's */
    params += weight->pick == GD_PICK_PRODUCT ? 2 : weight->pick != GD_PICK_NONE;
    struct gd_value *y = gd_site_linear_base(g, x, weight->pick == GD_PICK_WHOLE ? mine[0] : w,
                                             added->pick == GD_PICK_WHOLE ? params[0] : bias);
    if (added->pick == GD_PICK_ENTRIES)
        y = gd_add_row(g, y, spread(training, g, params[0], added, site->out));
    if (weight->pick == GD_PICK_ENTRIES)
        y = gd_sparse_linear(g, x, mine[0], gd_graft_list(training, g, "rows", weight->row, weight->entry_count),
                             gd_graft_list(training, g, "columns", weight->column, weight->entry_count), site->out, y);
    return weight->pick == GD_PICK_PRODUCT ? add_product(training, g, site, x, y, mine[0], mine[1]) : y;
}

struct gd_value *gd_picks_norm(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, double eps,
                               struct gd_value *const *params)
{
    const struct gd_picked *weight = training->graft->picks->tensor[gd_slot_of(training->graft->model, site)];
    const struct gd_picked *added = weight + GD_PICKED_BIAS;
    struct gd_value *const *mine = params; /* the weight's, then the bias's */
    params += weight->pick != GD_PICK_NONE;
    struct gd_value *y = gd_site_norm_base(g, site, x, weight->pick == GD_PICK_WHOLE ? mine[0] : w,
                                           added->pick == GD_PICK_WHOLE ? params[0] : bias, eps);
    struct gd_site without_offset = *site;
    without_offset.offset = 0;
    if (weight->pick == GD_PICK_ENTRIES) /* a norm is linear in its weight */
        y = gd_add(g, y, gd_site_norm_base(g, &without_offset, x, spread(training, g, mine[0], weight, site->out), NULL, eps));
    return added->pick == GD_PICK_ENTRIES ? gd_add_row(g, y, spread(training, g, params[0], added, site->out)) : y;
}

struct gd_value *gd_picks_table(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                struct gd_value *w, struct gd_value *const *params)
{
    return params[0];
}

/* ---- in serving ---- */

/* values -= the base's, row by row. */
static void subtract_base(const struct gd_site *site, enum gd_picked_part part, float *values)
{
    const struct gd_weight *weight = gd_picked_weight(site, part);
    if (weight == NULL)
        return;
    bool vector = gd_weight_rank(weight) == 1;
    int64_t rows = vector ? 1 : gd_weight_dim(weight, 0), width = gd_weight_dim(weight, vector ? 0 : 1);
    float *base = gd_alloc_array((size_t)width, sizeof(float));
    for (int64_t row = 0; row < rows; row++) {
        gd_weight_row_f32(weight, row, base);
        for (int64_t i = 0; i < width; i++)
            values[row * width + i] -= base[i];
    }
    gd_free(base);
}

/* A vector's entries as a whole vector. */
static float *spread_entries(struct gd_graft *graft, const struct gd_picked *picked, const float *values, int64_t length)
{
    float *out = gd_graft_derive(graft, length);
    for (int64_t i = 0; i < picked->entry_count; i++)
        out[picked->row[i]] = values[i];
    return out;
}

/* The values of a norm's vector: those in the block, or the base's with entries added. */
static const float *norm_values(struct gd_graft *graft, const struct gd_site *site, enum gd_picked_part part,
                                const struct gd_picked *picked, const float *values)
{
    if (picked->pick == GD_PICK_WHOLE)
        return values;
    float *sum = spread_entries(graft, picked, values, site->out);
    float *base = gd_alloc_array((size_t)site->out, sizeof(float));
    gd_weight_row_f32(gd_picked_weight(site, part), 0, base);
    for (int i = 0; i < site->out; i++)
        sum[i] += base[i];
    gd_free(base);
    return sum;
}

static void wear_norm(struct gd_graft *graft, const struct gd_site *site, const struct gd_picked *picked,
                      const struct gd_graft_param *params, struct gd_wear_part *part)
{
    if (picked[GD_PICKED_WEIGHT].pick != GD_PICK_NONE)
        part->norm = norm_values(graft, site, GD_PICKED_WEIGHT, picked, graft->block + params++->offset);
    if (picked[GD_PICKED_BIAS].pick != GD_PICK_NONE)
        part->norm_bias = norm_values(graft, site, GD_PICKED_BIAS, picked + GD_PICKED_BIAS, graft->block + params->offset);
}

void gd_picks_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                   struct gd_wear_part *part)
{
    const struct gd_picked *weight = graft->picks->tensor[gd_slot_of(graft->model, site)], *added = weight + GD_PICKED_BIAS;
    float *values = graft->block + params[0].offset;
    if (site->kind == GD_SITE_NORM) {
        wear_norm(graft, site, weight, params, part);
        return;
    }
    if (weight->pick == GD_PICK_WHOLE) {
        subtract_base(site, GD_PICKED_WEIGHT, values);
        part->delta = values;
    } else if (weight->pick == GD_PICK_ENTRIES) {
        part->entry_count = weight->entry_count;
        part->entry = values;
        part->entry_row = weight->row;
        part->entry_column = weight->column;
    } else if (weight->pick == GD_PICK_PRODUCT) {
        part->rank = weight->rank;
        part->scale = 1.0f;
        part->a = values;
        part->a_row = site->in;
        part->b = graft->block + params[1].offset;
    }
    params += weight->pick == GD_PICK_PRODUCT ? 2 : weight->pick != GD_PICK_NONE;
    if (added->pick == GD_PICK_WHOLE) {
        subtract_base(site, GD_PICKED_BIAS, graft->block + params[0].offset);
        part->out_add = graft->block + params[0].offset;
    } else if (added->pick == GD_PICK_ENTRIES) {
        part->out_add = spread_entries(graft, added, graft->block + params[0].offset, site->out);
    }
}
