/*
 * fill.c - the tensor account: each tensor of the model is filled once, with the right shape; each tensor of the files
 * is used once or is on the list of what may be ignored.
 */
#include "engine/base/alloc.h"
#include "engine/model/family.h"
#include "engine/model/files.h"
#include "engine/model/text.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct tensor_name {
    char text[192];
};

struct filler {
    struct gd_model *model;
    struct gd_files *files;
    const struct gd_names *names;
    bool gguf;
    struct gd_error *err;
};

static int compare_tensor(const void *key, const void *entry)
{
    return strcmp(key, ((const struct gd_file_tensor *)entry)->name);
}

static struct gd_file_tensor *find(const struct gd_files *files, const char *name)
{
    if (files->tensor_count == 0)
        return NULL;
    return bsearch(name, files->tensors, (size_t)files->tensor_count, sizeof files->tensors[0], compare_tensor);
}

/* layer < 0: outside layers. */
static struct tensor_name tensor_name(const struct filler *f, int layer, const struct gd_name *module, const char *kind, bool gguf)
{
    struct tensor_name name;
    const char *stem = gguf ? module->gguf : module->hf;
    if (layer < 0)
        snprintf(name.text, sizeof name.text, "%s.%s", stem, kind);
    else {
        int number;
        const char *stack = gd_layer_stack(&f->model->config, layer, &number);
        snprintf(name.text, sizeof name.text, "%s.%d.%s.%s", gguf ? "blk" : stack, number, stem, kind);
    }
    return name;
}

/* The same with the base's other name, or without a name before it: a body alone has none. */
static struct gd_file_tensor *find_based(const struct filler *f, const char *name)
{
    size_t base = f->names->base != NULL ? strlen(f->names->base) : 0;
    struct gd_file_tensor *entry = find(f->files, name);
    if (entry != NULL || f->gguf || base == 0 || strncmp(name, f->names->base, base) != 0 || name[base] != '.')
        return entry;
    if (f->names->base_also != NULL) {
        struct tensor_name also;
        snprintf(also.text, sizeof also.text, "%s%s", f->names->base_also, name + base);
        entry = find(f->files, also.text);
    }
    return entry != NULL ? entry : find(f->files, name + base + 1);
}

/* A LayerNorm's vectors are called gamma and beta in old files. */
static struct gd_file_tensor *find_part(const struct filler *f, int layer, const struct gd_name *module, const char *kind, bool vector)
{
    struct gd_file_tensor *entry = find_based(f, tensor_name(f, layer, module, kind, f->gguf).text);
    if (entry == NULL && vector && !f->gguf && f->model->config.layer_norm)
        entry = find_based(f, tensor_name(f, layer, module, strcmp(kind, "weight") == 0 ? "gamma" : "beta", false).text);
    if (entry == NULL && module->also != NULL && !f->gguf)
        entry = find_based(f, tensor_name(f, layer, &(struct gd_name){.hf = module->also}, kind, false).text);
    return entry;
}

static bool check_tensor(const struct filler *f, const struct gd_file_tensor *entry, int rank, const int64_t *shape)
{
    const struct gd_tensor *tensor = &entry->tensor;
    struct gd_tensor wanted = {.rank = rank};
    memcpy(wanted.shape, shape, (size_t)rank * sizeof shape[0]);
    if (tensor->rank < 0 && tensor->dtype != GD_HANDLE)
        return gd_fail(f->err, GD_BAD_MODEL, "%s: tensor %s has more than %d dimensions, the config wants %s", entry->file, entry->name,
                       GD_RANK_MAX, gd_show_shape(&wanted).text);
    if (tensor->rank < 0 || tensor->dtype == GD_I32)
        return gd_fail(f->err, GD_UNSUPPORTED, "%s: tensor %s has dtype %s, which is not supported for weights",
                       entry->file, entry->name, entry->dtype_name);
    bool same = tensor->rank == rank;
    for (int axis = 0; same && axis < rank; axis++)
        same = tensor->shape[axis] == shape[axis];
    if (!same)
        return gd_fail(f->err, GD_BAD_MODEL, "%s: tensor %s is %s, the config wants %s", entry->file, entry->name,
                       gd_show_shape(tensor).text, gd_show_shape(&wanted).text);
    if (rank == 1 && gd_dtype_block(tensor->dtype) != 1)
        return gd_fail(f->err, GD_UNSUPPORTED, "%s: tensor %s is a vector of %s, which is not supported", entry->file,
                       entry->name, entry->dtype_name);
    return true;
}

/* Kernels read whole elements: a tensor at an odd place of its file is copied to an even one. */
static void align(const struct filler *f, struct gd_tensor *tensor)
{
    size_t unit = tensor->dtype == GD_F32 ? 4 : 2;
    if ((uintptr_t)tensor->data % unit == 0)
        return;
    size_t bytes = gd_dtype_bytes(tensor->dtype, gd_tensor_count(tensor));
    void *copy = gd_arena_alloc(&f->files->arena, bytes);
    memcpy(copy, tensor->data, bytes);
    tensor->data = copy;
}

/* A vector in the order of `rows`: gd_weight orders rows of matrices only. */
static void permute_vector(const struct filler *f, struct gd_tensor *tensor, const int32_t *rows)
{
    int64_t count = tensor->shape[0];
    size_t unit = gd_dtype_bytes(tensor->dtype, 1);
    char *copy = gd_arena_alloc_array(&f->files->arena, (size_t)count, unit);
    for (int64_t i = 0; i < count; i++)
        memcpy(copy + (size_t)i * unit, (const char *)tensor->data + (size_t)rows[i] * unit, unit);
    tensor->data = copy;
}

/* [in, out] as [out, in]. */
static void transpose(const struct filler *f, struct gd_tensor *tensor)
{
    int64_t in = tensor->shape[0], out = tensor->shape[1];
    size_t unit = gd_dtype_bytes(tensor->dtype, 1);
    char *copy = gd_arena_alloc_array(&f->files->arena, (size_t)in * (size_t)out, unit);
    for (int64_t i = 0; i < in; i++)
        for (int64_t o = 0; o < out; o++)
            memcpy(copy + (size_t)(o * in + i) * unit, (const char *)tensor->data + (size_t)(i * out + o) * unit, unit);
    *tensor = (struct gd_tensor){.dtype = tensor->dtype, .rank = 2, .shape = {out, in}, .data = copy};
}

/* How a tensor lies in the files. */
struct order {
    const int32_t *rows;
    bool transposed;
    float added;
};

static bool make_weight(const struct filler *f, struct gd_weight **out, const char *name, const struct gd_tensor *tensor,
                        struct order order)
{
    struct gd_model *model = f->model;
    *out = NULL;
    if (!gd_weight_create(out, name, tensor, tensor->rank == 2 ? order.rows : NULL, -order.added, f->err))
        return false;
    model->weights[model->weight_count++] = *out;
    model->parameter_count += gd_tensor_count(tensor);
    return true;
}

/* Finds the tensor, checks it, and makes the weight, which goes by the Hugging Face name. */
static bool fill_one(const struct filler *f, struct gd_weight **out, int layer, const struct gd_name *module, const char *kind,
                     int rank, const int64_t *shape, struct order order)
{
    struct tensor_name name = tensor_name(f, layer, module, kind, false), in_file = tensor_name(f, layer, module, kind, f->gguf);
    struct gd_file_tensor *entry = find_part(f, layer, module, kind, rank == 1);
    const int64_t in_order[2] = {shape[order.transposed], shape[!order.transposed]};
    if (entry == NULL)
        return gd_fail(f->err, GD_BAD_MODEL, "tensor %s is missing", in_file.text);
    if (!check_tensor(f, entry, rank, rank == 2 ? in_order : shape))
        return false;
    struct gd_tensor tensor = entry->tensor;
    align(f, &tensor);
    if (order.transposed)
        transpose(f, &tensor);
    if (rank == 1 && order.rows != NULL)
        permute_vector(f, &tensor, order.rows);
    if (!make_weight(f, out, name.text, &tensor, order))
        return false;
    entry->weight = *out;
    entry->rows = order.rows;
    entry->transposed = order.transposed;
    entry->added = order.added;
    return true;
}

/* The tensor that holds all copies of a part. */
static struct tensor_name stack_name(const struct filler *f, int layer, const struct gd_name *module)
{
    struct tensor_name name = tensor_name(f, layer, &(struct gd_name){module->stacked, module->gguf}, "weight", f->gguf);
    if (!f->gguf)
        name.text[strlen(name.text) - strlen(".weight")] = '\0';
    return name;
}

/* Copies of a part that the file holds as one tensor, [copies, out, in], or with the rows of others: [copies, shares out, in]. */
static bool fill_stack(const struct filler *f, struct gd_weight **out, int copies, int layer, const struct gd_name *module,
                       const int64_t *shape)
{
    struct tensor_name in_file = stack_name(f, layer, module);
    struct gd_file_tensor *entry = find_based(f, in_file.text);
    int shares = !f->gguf && module->shares > 0 ? module->shares : 1;
    if (entry == NULL)
        return gd_fail(f->err, GD_BAD_MODEL, "tensor %s is missing", in_file.text);
    if (!check_tensor(f, entry, 3, (int64_t[]){copies, shares * shape[0], shape[1]}))
        return false;
    struct gd_tensor tensor = entry->tensor;
    align(f, &tensor);
    if (entry->stack == NULL) {
        entry->stack_count = copies * shares;
        entry->stack = gd_arena_alloc_array(&f->files->arena, (size_t)entry->stack_count, sizeof(struct gd_weight *));
    }
    size_t bytes = gd_dtype_bytes(tensor.dtype, gd_tensor_count(&tensor)) / (size_t)entry->stack_count;
    for (int copy = 0; copy < copies; copy++) {
        struct gd_part_name one = gd_part_name(module->hf, copy);
        struct tensor_name name = tensor_name(f, layer, &(struct gd_name){.hf = one.text}, "weight", false);
        int at = copy * shares + (shares > 1 ? module->share : 0);
        struct gd_tensor part = {.dtype = tensor.dtype, .rank = 2, .shape = {shape[0], shape[1]}, .data = (char *)tensor.data + (size_t)at * bytes};
        if (!make_weight(f, &out[copy], name.text, &part, (struct order){.rows = NULL}))
            return false;
        entry->stack[at] = out[copy];
    }
    entry->weight = out[0];
    return true;
}

/* A part that a layer has several of: in the files one tensor for each, or one of all. */
static bool fill_copies(const struct filler *f, void *owner, int layer, const struct gd_part *part, const struct gd_name *name,
                        const int64_t *shape)
{
    int copies = gd_part_copies(&f->model->config, part, layer);
    struct gd_weight **out = gd_arena_alloc_array(&f->files->arena, (size_t)copies, sizeof(struct gd_weight *));
    *(struct gd_weight ***)((char *)owner + part->weight) = out;
    bool may_stack = f->gguf ? name->gguf != NULL : name->stacked != NULL, may_part = f->gguf ? name->gguf_apart != NULL : true;
    if (may_stack && (!may_part || find_based(f, stack_name(f, layer, name).text) != NULL))
        return fill_stack(f, out, copies, layer, name, shape);
    for (int copy = 0; copy < copies; copy++) {
        struct gd_part_name hf = gd_part_name(name->hf, copy), gguf = gd_part_name(f->gguf ? name->gguf_apart : "", copy);
        if (!fill_one(f, &out[copy], layer, &(struct gd_name){hf.text, gguf.text}, "weight", 2, shape, (struct order){.rows = NULL}))
            return false;
    }
    return true;
}

static bool fill_part(const struct filler *f, int layer, const struct gd_part *part, const struct gd_name *name, enum gd_site_kind kind)
{
    const struct gd_model_config *config = &f->model->config;
    void *owner = layer < 0 ? (void *)f->model : &f->model->layer[layer];
    int64_t shape[2] = {gd_extent_size(config, part->out), gd_extent_size(config, part->in)};
    struct order plain = {.rows = part->rows == GD_ROWS_QUERY ? f->files->query_rows
                                  : part->rows == GD_ROWS_KEY ? f->files->key_rows
                                                              : NULL};
    struct order order = plain;
    order.transposed = kind == GD_SITE_LINEAR && !f->gguf && config->transposed;
    order.added = kind == GD_SITE_NORM && f->gguf ? (float)config->norm_offset : 0; /* GGUF holds the sum */
    if (part->copies != 0)
        return fill_copies(f, owner, layer, part, name, shape);
    const char *tensor = part->tensor != NULL ? part->tensor : "weight";
    int rank = part->in == GD_EXTENT_NONE ? 1 : 2;
    return fill_one(f, gd_part_weight(owner, part, 0), layer, name, tensor, rank, shape, order) &&
           (!gd_part_has_bias(config, part) || fill_one(f, gd_part_bias(owner, part), layer, name, "bias", 1, shape, plain));
}

static bool fill_outer(const struct filler *f)
{
    struct gd_model *model = f->model;
    struct tensor_name head = tensor_name(f, -1, &f->names->outer[GD_OUTER_HEAD], "weight", f->gguf);
    const struct gd_part *parts = model->config.family->body->outer;
    for (int i = 0; i < GD_OUTER_COUNT; i++) {
        if (parts[i].optional && find_part(f, -1, &f->names->outer[i], "weight", false) != NULL)
            *(bool *)((char *)&model->config + parts[i].has) = true;
        if (!gd_part_present(&model->config, &parts[i]))
            continue;
        if (i == GD_OUTER_HEAD && model->config.head_optional && find(f->files, head.text) == NULL) {
            model->config.tied = true;
            continue;
        }
        if (i == GD_OUTER_HEAD && !f->gguf && find_part(f, -1, &f->names->outer[i], "weight", false) == NULL)
            return gd_fail(f->err, GD_BAD_MODEL, "tensor %s is missing, and config.json says tie_word_embeddings false", head.text);
        if (!fill_part(f, -1, &parts[i], &f->names->outer[i], i == GD_OUTER_NORM ? GD_SITE_NORM : GD_SITE_EMBED))
            return false;
    }
    if (model->config.tied)
        model->head = model->embed;
    if (model->config.scaled_embed) {
        float scale = sqrtf((float)model->config.width);
        bool rounded = gd_weight_source(model->embed)->dtype == GD_BF16;
        model->config.embed_scale = (double)(rounded ? gd_bf16_to_f32(gd_f32_to_bf16(scale)) : scale);
    }
    return true;
}

static bool fill_layers(const struct filler *f)
{
    const struct gd_model_config *config = &f->model->config;
    const struct gd_body *body = config->family->body;
    for (int layer = 0; layer < config->layers; layer++) {
        for (int i = 0; i < body->norm_count; i++)
            if (gd_part_in_layer(config, &body->norms[i], layer) && !fill_part(f, layer, &body->norms[i], &f->names->norms[i], GD_SITE_NORM))
                return false;
        for (int i = 0; i < body->linear_count; i++)
            if (gd_part_in_layer(config, &body->linears[i], layer) && !fill_part(f, layer, &body->linears[i], &f->names->linears[i], GD_SITE_LINEAR))
                return false;
    }
    return true;
}

/* Tensors of what else the files' model has. */
static bool lies_aside(const struct filler *f, const char *name)
{
    for (const char *const *each = f->model->config.family->aside; !f->gguf && each != NULL && *each != NULL; each++)
        if (strncmp(name, *each, strlen(*each)) == 0)
            return true;
    return false;
}

/* Tensors that files carry and that hold nothing of the model. */
static bool ignored(const struct filler *f, const char *name)
{
    static const char *const suffixes[] = {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
                                           ".attention.masked_bias"}; /* tables of angles, masks */
    size_t length = strlen(name);
    if (f->gguf)
        return strcmp(name, "rope_freqs.weight") == 0; /* used: it is in the config */
    for (const char *const *each = f->names->ignored; each != NULL && *each != NULL; each++)
        if (strcmp(name, *each) == 0)
            return true;
    struct tensor_name head = tensor_name(f, -1, &f->names->outer[GD_OUTER_HEAD], "weight", false);
    for (const char *const *each = f->model->config.family->ignored; each != NULL && *each != NULL; each++) {
        struct gd_file_tensor *entry = find_based(f, *each);
        if (entry != NULL && strcmp(entry->name, name) == 0)
            return true;
    }
    bool known = f->model->config.tied && strcmp(name, head.text) == 0;
    for (size_t i = 0; i < GD_COUNT(suffixes); i++)
        known = known || (length > strlen(suffixes[i]) && strcmp(name + length - strlen(suffixes[i]), suffixes[i]) == 0);
    return known;
}

static bool check_all_used(const struct filler *f)
{
    const struct gd_file_tensor *first = NULL;
    int count = 0;
    for (int i = 0; i < f->files->tensor_count; i++) {
        struct gd_file_tensor *entry = &f->files->tensors[i];
        entry->aside = entry->weight == NULL && lies_aside(f, entry->name);
        if (entry->weight != NULL || entry->aside || ignored(f, entry->name))
            continue;
        first = first != NULL ? first : entry;
        count++;
    }
    if (count == 0)
        return true;
    return gd_fail(f->err, GD_BAD_MODEL,
                   "%s: tensor %s %s is no part of a %s model with %d layers as the config describes it%s", first->file,
                   gd_show_text(first->name).text, gd_show_shape(&first->tensor).text, f->model->config.architecture,
                   f->model->config.layers, count > 1 ? ", and it is not the only one" : "");
}

int32_t *gd_rope_rows(int heads, int head_dim)
{
    int32_t *rows = gd_alloc_array((size_t)heads * (size_t)head_dim, sizeof rows[0]);
    int half = head_dim / 2;
    for (int head = 0; head < heads; head++)
        for (int side = 0; side < 2; side++)
            for (int j = 0; j < half; j++)
                rows[head * head_dim + side * half + j] = head * head_dim + 2 * j + side;
    return rows;
}

bool gd_files_fill(struct gd_model *model, bool gguf, struct gd_error *err)
{
    const struct gd_model_config *config = &model->config;
    const struct gd_family *family = config->family;
    struct filler filler = {model, model->files, family->names, gguf, err};
    if (gguf && family->gguf_permuted) {
        filler.files->query_rows = gd_rope_rows(config->heads, config->head_dim);
        filler.files->key_rows = gd_rope_rows(config->kv_heads, config->head_dim);
    }
    size_t parts = 2 * (size_t)(family->body->norm_count + gd_linears_of_layer(config));
    model->layer = gd_alloc_array((size_t)config->layers, sizeof model->layer[0]);
    model->weights = gd_alloc_array((size_t)config->layers * parts + 2 * GD_OUTER_COUNT, sizeof model->weights[0]);
    return fill_outer(&filler) && fill_layers(&filler) && check_all_used(&filler);
}
