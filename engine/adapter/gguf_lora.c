/* gguf_lora.c - low-rank grafts in llama.cpp's adapter format, both ways. */
#include "engine/adapter/export.h"
#include "engine/adapter/build.h"

#include "engine/base/alloc.h"
#include "engine/model/family.h"
#include "engine/model/files.h"
#include "engine/model/gguf_write.h"

#include <stdio.h>
#include <unistd.h>

#define NAME_FORMAT "%s.weight.lora_%c"

/* What the format's names and rows need to know of the base. */
struct target {
    const struct gd_model *model;
    const char *architecture;
    int32_t *query_rows, *key_rows; /* NULL: rows are plain */
};

static bool target_init(struct target *target, const struct gd_model *model, struct gd_error *err)
{
    const struct gd_family *family = model->config.family;
    *target = (struct target){.model = model};
    if (family->gguf == NULL)
        return gd_fail(err, GD_UNSUPPORTED, "GGUF adapters of %s models are not supported; PEFT folders are", family->model_type);
    target->architecture = family->gguf;
    if (family->gguf_permuted) {
        target->query_rows = gd_rope_rows(model->config.heads, model->config.head_dim);
        target->key_rows = gd_rope_rows(model->config.kv_heads, model->config.head_dim);
    }
    return true;
}

static void target_release(struct target *target)
{
    gd_free(target->query_rows);
    gd_free(target->key_rows);
}

static const int32_t *rows_of(const struct target *target, const struct gd_site *site)
{
    enum gd_row_kind kind = site->part->rows;
    return kind == GD_ROWS_QUERY ? target->query_rows : kind == GD_ROWS_KEY ? target->key_rows : NULL;
}

/* ---- writing ---- */

static bool check_low_rank(const struct gd_graft *graft, struct gd_error *err)
{
    int slots = gd_slot_count(graft->model);
    for (int slot = 0; slot < slots; slot++) {
        const struct gd_wear_part *part = &graft->wear[slot];
        struct gd_wear_part product = {.rank = part->rank, .scale = part->scale, .a = part->a, .a_row = part->a_row,
                                       .mid = part->mid, .b = part->b, .b_scale = part->b_scale};
        if (graft->site_param[slot] >= 0 && (part->rank == 0 || memcmp(&product, part, sizeof(product)) != 0))
            return gd_fail_param(err, GD_UNSUPPORTED, "--format", "%s: a %s adapter is no sum of low-rank products, which is all "
                                 "that a GGUF adapter holds", gd_slot_site(graft->model, slot)->name, graft->method->name);
    }
    return true;
}

struct writer {
    const struct gd_graft *graft;
    const struct target *target;
    const struct gd_site **sites; /* [pair] */
    enum gd_dtype dtype;
    float *values;
    void *bytes;
};

/* Tensors 2i and 2i + 1 are A and B of the i-th touched module. */
static bool provide(void *context, int index, const void **bytes, struct gd_error *err)
{
    struct writer *w = context;
    const struct gd_site *site = w->sites[index / 2];
    const struct gd_wear_part *part = &w->graft->wear[site->index];
    int64_t count = (int64_t)part->rank * (index % 2 == 0 ? site->in : site->out);
    const int32_t *rows = rows_of(w->target, site);
    for (int k = 0; k < part->rank && index % 2 == 0; k++)
        memcpy(w->values + (int64_t)k * site->in, part->a + k * part->a_row, (size_t)site->in * sizeof(float));
    for (int o = 0; o < site->out && index % 2 == 1; o++) {
        float *to = w->values + (int64_t)(rows != NULL ? rows[o] : o) * part->rank;
        float scale = part->scale * (part->b_scale != NULL ? part->b_scale[o] : 1.0f);
        for (int k = 0; k < part->rank; k++)
            to[k] = scale * part->b[(int64_t)o * part->rank + k] * (part->mid != NULL ? part->mid[k] : 1.0f);
    }
    gd_convert_from_f32(w->bytes, w->dtype, w->values, count);
    *bytes = w->bytes;
    return true;
}

static bool write_file(struct writer *w, const struct gd_safetensors_entry *entries, int count, float alpha, const char *path,
                       struct gd_error *err)
{
    struct gd_gguf_writer writer;
    gd_gguf_writer_init(&writer);
    gd_gguf_put_string(&writer, "general.architecture", w->target->architecture);
    gd_gguf_put_string(&writer, "general.type", "adapter");
    gd_gguf_put_string(&writer, "general.name", w->graft->method->name);
    gd_gguf_put_string(&writer, "general.base_model.0.name", w->graft->model->id);
    gd_gguf_put_u32(&writer, "general.base_model.count", 1);
    gd_gguf_put_string(&writer, "adapter.type", "lora");
    gd_gguf_put_f32(&writer, "adapter.lora.alpha", alpha);
    bool ok = gd_gguf_write(&writer, path, entries, count, provide, w, err);
    gd_gguf_writer_release(&writer);
    return ok;
}

/* Experts are one tensor of all in these files. */
static bool check_modules(const struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    for (int i = 0; i < site_count; i++)
        if (graft->site_param[i] >= 0 && sites[i].gguf == NULL)
            return gd_fail_param(err, GD_UNSUPPORTED, "--format", "%s is no module of its own in GGUF files: --format merged folds the "
                                 "adapter into the base", sites[i].name);
    return true;
}

bool gd_graft_write_gguf(const struct gd_graft *graft, enum gd_dtype dtype, const char *path, struct gd_error *err)
{
    struct target target;
    if (!check_low_rank(graft, err) || !check_modules(graft, err) || !target_init(&target, graft->model, err))
        return false;
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites), count = 0, rank = -1;
    struct writer w = {.graft = graft, .target = &target, .dtype = dtype};
    struct gd_safetensors_entry *entries = gd_alloc_array(2 * (size_t)site_count, sizeof(*entries));
    struct gd_arena names = {0};
    int64_t largest = 0;
    w.sites = gd_alloc_array((size_t)site_count, sizeof(*w.sites));
    for (int i = 0; i < site_count; i++) {
        const struct gd_wear_part *part = &graft->wear[i];
        if (graft->site_param[i] < 0)
            continue;
        w.sites[count / 2] = &sites[i];
        for (int side = 0; side < 2; side++)
            entries[count++] = (struct gd_safetensors_entry){
                gd_arena_format(&names, NAME_FORMAT, sites[i].gguf, 'a' + side),
                {.dtype = dtype, .rank = 2, .shape = {side == 0 ? part->rank : sites[i].out, side == 0 ? sites[i].in : part->rank}}};
        int64_t longer = (int64_t)part->rank * (sites[i].in > sites[i].out ? sites[i].in : sites[i].out);
        largest = longer > largest ? longer : largest;
        rank = rank == -1 || rank == part->rank ? part->rank : 0;
    }
    w.values = gd_alloc_array((size_t)largest, sizeof(float));
    w.bytes = gd_alloc_array((size_t)largest, sizeof(float));
    /* Readers multiply by alpha / rank, and by nothing where alpha is 0. */
    bool ok = write_file(&w, entries, count, (float)rank, path, err);
    gd_free(w.values);
    gd_free(w.bytes);
    gd_free(w.sites);
    gd_free(entries);
    gd_arena_release(&names);
    target_release(&target);
    return ok;
}

/* ---- reading ---- */

/* The site and the side (0: A, 1: B) that a tensor's name means; NULL: none. */
static const struct gd_site *site_of_name(const struct gd_model *model, const char *name, int *side)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(model, &sites);
    char wanted[96];
    for (int i = 0; i < site_count; i++)
        for (*side = 0; sites[i].gguf != NULL && *side < 2; (*side)++) {
            snprintf(wanted, sizeof(wanted), NAME_FORMAT, sites[i].gguf, 'a' + *side);
            if (strcmp(name, wanted) == 0)
                return &sites[i];
        }
    return NULL;
}

static bool check_header(struct gd_gguf *file, const struct target *target, double *alpha, struct gd_error *err)
{
    const char *type = "", *kind = "", *architecture = "";
    if (!gd_gguf_get_string(file, "general.type", true, &type, err) || !gd_gguf_get_string(file, "adapter.type", true, &kind, err) ||
        !gd_gguf_get_string(file, "general.architecture", true, &architecture, err) ||
        !gd_gguf_get_number(file, "adapter.lora.alpha", false, 0, 1e9, alpha, err))
        return false;
    if (strcmp(type, "adapter") != 0 || strcmp(kind, "lora") != 0)
        return gd_fail(err, GD_UNSUPPORTED, "general.type is \"%s\" and adapter.type \"%s\", not \"adapter\" and \"lora\"", type, kind);
    if (strcmp(architecture, target->architecture) != 0)
        return gd_fail(err, GD_BAD_MODEL, "the adapter is for architecture \"%s\", base '%s' is \"%s\"", architecture,
                       target->model->id, target->architecture);
    return true;
}

/* The one rank of all A's, and the modules that have one. */
static bool read_modules(const struct gd_gguf *file, const struct gd_model *model, int64_t *rank, cJSON *modules, struct gd_error *err)
{
    for (int i = 0; i < gd_gguf_count(file); i++) {
        int side;
        struct gd_tensor tensor = gd_gguf_at(file, i);
        const struct gd_site *site = site_of_name(model, gd_gguf_name(file, i), &side);
        if (site == NULL)
            return gd_fail(err, GD_BAD_MODEL, "tensor %s fits no linear module of base '%s'", gd_gguf_name(file, i), model->id);
        int64_t r = tensor.shape[side];
        if (tensor.rank != 2 || tensor.shape[1 - side] != (side == 0 ? site->in : site->out))
            return gd_fail(err, GD_BAD_MODEL, "tensor %s has %d dimensions, the first %lld: it does not fit %s (%d x %d)",
                           gd_gguf_name(file, i), tensor.rank, (long long)tensor.shape[0], site->name, site->out, site->in);
        if (*rank != 0 && r != *rank)
            return gd_fail(err, GD_UNSUPPORTED, "tensor %s has rank %lld, others %lld: one rank for all modules is supported",
                           gd_gguf_name(file, i), (long long)r, (long long)*rank);
        *rank = r;
        if (side == 0)
            cJSON_AddItemToArray(modules, cJSON_CreateString(site->name));
    }
    if (*rank == 0)
        return gd_fail(err, GD_BAD_MODEL, "the file holds no tensor");
    return true;
}

static bool read_tensors(struct gd_graft *graft, const struct gd_gguf *file, const struct target *target, struct gd_error *err)
{
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    for (int i = 0; i < site_count; i++) {
        const struct gd_site *site = &sites[i];
        for (int side = 0; side < 2 && graft->site_param[i] >= 0; side++) {
            const struct gd_graft_param *param = &graft->params[graft->site_param[i] + side];
            struct gd_tensor tensor;
            char name[96];
            snprintf(name, sizeof(name), NAME_FORMAT, site->gguf, 'a' + side);
            if (!gd_gguf_find(file, name, &tensor))
                return gd_fail(err, GD_BAD_MODEL, "tensor %s is missing", name);
            float *to = graft->block + param->offset;
            int64_t rows = param->shape[0], columns = param->shape[1];
            const int32_t *order = side == 1 ? rows_of(target, site) : NULL;
            for (int64_t r = 0; r < rows; r++)
                gd_convert_to_f32(to + r * columns,
                                  (const char *)tensor.data + gd_dtype_bytes(tensor.dtype, (order != NULL ? order[r] : r) * columns),
                                  tensor.dtype, columns);
        }
    }
    return true;
}

static bool read_graft(struct gd_graft **out, struct gd_gguf *file, const struct target *target, struct gd_error *err)
{
    double alpha = 0;
    int64_t rank = 0;
    struct gd_adapter_config config = {0};
    cJSON *json = cJSON_CreateObject(), *modules = cJSON_AddArrayToObject(json, "target_modules");
    cJSON_AddStringToObject(json, "type", "lora");
    bool ok = check_header(file, target, &alpha, err) && read_modules(file, target->model, &rank, modules, err);
    cJSON_AddNumberToObject(json, "r", (double)rank);
    cJSON_AddNumberToObject(json, "lora_alpha", alpha > 0 ? alpha : (double)rank);
    ok = ok && gd_adapter_config_parse(&config, json, err) && (config.finished = true) &&
         gd_graft_create(out, target->model, &config, err) &&
         read_tensors(*out, file, target, err);
    if (ok)
        gd_graft_ready(*out);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    return ok;
}

bool gd_graft_read_gguf(struct gd_graft **out, const struct gd_model *model, const char *path, struct gd_error *err)
{
    struct gd_gguf *file = NULL;
    struct target target = {0};
    bool ok = target_init(&target, model, err) && gd_gguf_open(&file, path, err) && read_graft(out, file, &target, err);
    if (!ok) {
        gd_graft_destroy(*out);
        *out = NULL;
        gd_error_context(err, "%s", path);
    }
    gd_gguf_close(file);
    target_release(&target);
    return ok;
}
