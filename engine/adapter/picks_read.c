/* picks_read.c - what a saved graft picked, from the tensors of its file. */
#include "engine/adapter/picks.h"
#include "engine/base/alloc.h"
#include "engine/model/safetensors.h"

#include <stdio.h>
#include <string.h>

static bool find(const struct gd_safetensors *file, const char *module, const char *suffix, struct gd_tensor *tensor)
{
    char name[256];
    snprintf(name, sizeof(name), "base_model.model.%s.%s", module, suffix);
    return gd_safetensors_find(file, name, tensor);
}

static bool bad(const char *module, const char *what, struct gd_error *err)
{
    return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: %s %s", module, what);
}

/* Sorted places inside the tensor, each once. */
static bool check_places(const struct gd_picked *picked, const struct gd_site *site, int64_t rows, int64_t columns,
                         struct gd_error *err)
{
    int64_t last = -1;
    for (int64_t i = 0; i < picked->entry_count; i++) {
        int64_t row = picked->row[i], column = picked->column != NULL ? picked->column[i] : 0;
        if (row < 0 || row >= rows || column < 0 || column >= columns)
            return bad(site->name, "has a place in shira_indices that lies outside the base's tensor", err);
        if (row * columns + column <= last)
            return bad(site->name, "has shira_indices that are not sorted by row and column", err);
        last = row * columns + column;
    }
    return true;
}

static bool read_entries(struct gd_picked *picked, const struct gd_site *site, enum gd_picked_part part,
                         const struct gd_safetensors *file, int64_t count, struct gd_error *err)
{
    struct gd_tensor places;
    int64_t rows = gd_picked_rows(site, part), columns = gd_picked_columns(site, part), lists = columns > 1 ? 2 : 1;
    if (!find(file, site->name, part == GD_PICKED_BIAS ? "bias.shira_indices" : "shira_indices", &places) ||
        places.dtype != GD_I32 || places.rank != 2 || places.shape[0] != lists || places.shape[1] != count)
        return bad(site->name, "has a shira_weight without I32 shira_indices of the same length", err);
    size_t bytes = (size_t)count * sizeof(int32_t);
    picked->pick = GD_PICK_ENTRIES;
    picked->entry_count = count;
    picked->row = gd_alloc(bytes);
    memcpy(picked->row, places.data, bytes);
    if (lists == 2) {
        picked->column = gd_alloc(bytes);
        memcpy(picked->column, (const char *)places.data + bytes, bytes);
    }
    return check_places(picked, site, rows, columns, err);
}

static bool read_part(struct gd_picked *picked, const struct gd_site *site, enum gd_picked_part part,
                      const struct gd_safetensors *file, struct gd_error *err)
{
    bool bias = part == GD_PICKED_BIAS;
    struct gd_tensor whole, entries, product;
    bool has_whole = find(file, site->name, bias ? "bias" : "weight", &whole);
    bool has_entries = find(file, site->name, bias ? "bias.shira_weight" : "shira_weight", &entries);
    bool has_product = !bias && site->kind == GD_SITE_LINEAR && find(file, site->name, "lora_A.weight", &product);
    if (has_whole + has_entries + has_product > 1)
        return bad(site->name, "is changed in two ways: whole values, shira_weight and lora_A exclude each other", err);
    if (has_whole)
        picked->pick = GD_PICK_WHOLE;
    if (has_entries)
        return entries.rank == 1 && entries.shape[0] > 0 ? read_entries(picked, site, part, file, entries.shape[0], err)
                                                         : bad(site->name, "has a shira_weight that is no list of numbers", err);
    if (has_product) {
        if (product.rank != 2 || product.shape[0] < 1 || product.shape[0] > GD_WEAR_RANK_MAX)
            return bad(site->name, "has a lora_A of an impossible rank", err);
        picked->pick = GD_PICK_PRODUCT;
        picked->rank = (int)product.shape[0];
    }
    return true;
}

bool gd_picks_read(struct gd_graft *graft, const struct gd_safetensors *file, struct gd_error *err)
{
    for (int slot = 0; slot < graft->picks->slots; slot++) {
        const struct gd_site *site = gd_slot_site(graft->model, slot);
        if (site->weight == NULL || (site->kind == GD_SITE_NORM && graft->method->norm == NULL) ||
            (site->kind == GD_SITE_TABLE && graft->method->table == NULL))
            continue; /* such a tensor is left over */
        for (int part = 0; part < GD_PICKED_PARTS; part++)
            if ((part == GD_PICKED_WEIGHT || site->kind == GD_SITE_LINEAR || site->bias != NULL) &&
                !read_part(&graft->picks->tensor[slot][part], site, part, file, err))
                return false;
    }
    if (gd_picks_numbers(graft) == 0)
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors holds no tensor of this base");
    return true;
}
