#include "engine/model/rewrite.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/family.h"
#include "engine/model/files.h"
#include "engine/model/gguf_write.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#define COPY_BYTES_MAX (256u << 20)

/* A tensor to write: one of the files' (source), or a bias that they have not (site). */
struct piece {
    const struct gd_file_tensor *source;
    const struct gd_site *site;
    const float *values;        /* of a new head */
    bool changed;
};

struct rewriter {
    const struct gd_model *model;
    const struct gd_files *files;
    const struct gd_rewrite *rewrite;
    enum gd_dtype dtype;
    bool gguf;
    bool bias[GD_PARTS_MAX];    /* parts that get one */
    struct gd_safetensors_entry *entries;
    struct piece *pieces;
    int count;
    float *values, *ordered;    /* the tensor at hand */
    void *bytes;
    size_t memory_bytes;        /* of the three, which begin at values */
};

static enum gd_dtype dtype_of(const struct rewriter *r, const struct gd_file_tensor *source, bool changed)
{
    const struct gd_tensor *tensor = &source->tensor;
    if (r->gguf && tensor->rank == 1)
        return tensor->dtype; /* programs that read GGUF want their vectors in f32 */
    if (r->dtype != GD_DTYPE_COUNT)
        return r->dtype;
    return changed && gd_dtype_block(tensor->dtype) > 1 ? GD_BF16 : tensor->dtype;
}

static void add_piece(struct rewriter *r, const char *name, struct piece piece, struct gd_tensor tensor)
{
    r->pieces[r->count] = piece;
    r->entries[r->count++] = (struct gd_safetensors_entry){name, tensor};
}

static int64_t matrices(const struct gd_file_tensor *source)
{
    return source->stack != NULL ? source->stack_count : 1;
}

static bool changes(const struct rewriter *r, const struct gd_file_tensor *source)
{
    bool any = false;
    for (int64_t i = 0; i < matrices(source); i++)
        any |= r->rewrite->changes(r->rewrite->context, source->stack != NULL ? source->stack[i] : source->weight);
    return any;
}

/* A tensor that a new head takes the place of. */
static bool of_old_head(const struct gd_model *model, const struct gd_weight *weight)
{
    const struct gd_weight *const old[] = {model->pool, model->pool_bias, model->label_head, model->label_bias, model->mask_dense,
                                           model->mask_dense_bias, model->mask_norm, model->mask_norm_bias, model->mask_bias,
                                           model->head != model->embed ? model->head : NULL};
    for (size_t i = 0; i < GD_COUNT(old); i++)
        if (weight != NULL && weight == old[i])
            return true;
    return false;
}

static void add_head(struct rewriter *r)
{
    const struct gd_rewrite_head *head = r->rewrite->head;
    enum gd_dtype dtype = r->dtype != GD_DTYPE_COUNT ? r->dtype : gd_weight_source(r->model->embed)->dtype;
    for (int i = 0; head != NULL && i < head->count; i++) {
        const struct gd_rewrite_tensor *tensor = &head->tensor[i];
        add_piece(r, tensor->name, (struct piece){.values = tensor->values, .changed = true},
                  (struct gd_tensor){.dtype = dtype, .rank = tensor->rank, .shape = {tensor->shape[0], tensor->shape[1]}});
    }
}

static bool check_aside(const struct rewriter *r, struct gd_error *err)
{
    for (int i = 0; i < r->files->tensor_count; i++) {
        const struct gd_file_tensor *source = &r->files->tensors[i];
        if (source->aside && source->tensor.rank < 0)
            return gd_fail(err, GD_UNSUPPORTED, "%s: tensor %s has dtype %s or more than %d dimensions: it cannot be copied", source->file,
                           source->name, source->dtype_name, GD_RANK_MAX);
    }
    return true;
}

static void add_sources(struct rewriter *r)
{
    for (int i = 0; i < r->files->tensor_count; i++) {
        const struct gd_file_tensor *source = &r->files->tensors[i];
        if (!source->aside && (source->tensor.rank < 1 || (source->weight == NULL && !r->gguf)))
            continue; /* it holds nothing of the model: the reader's account says so */
        if (r->rewrite->head != NULL && of_old_head(r->model, source->weight))
            continue;
        bool changed = source->weight != NULL && changes(r, source);
        /* Beside a head the body is below the base's name. */
        bool renamed = r->rewrite->head != NULL && source->stack == NULL && source->weight != NULL;
        struct gd_tensor tensor = source->tensor;
        tensor.dtype = source->aside ? tensor.dtype : dtype_of(r, source, changed);
        add_piece(r, renamed ? gd_weight_name(source->weight) : source->name, (struct piece){.source = source, .changed = changed}, tensor);
    }
}

/* ---- biases that the base has not ---- */

static int part_index(const struct rewriter *r, const struct gd_site *site)
{
    return (int)(site->part - r->model->config.family->body->linears);
}

/* A family's files have them for groups of modules: q, k, v and o (each on its own in GGUF), and gate, up, down. */
static bool choose_biases(struct rewriter *r, struct gd_error *err)
{
    const struct gd_model_config *config = &r->model->config;
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(r->model, &sites);
    bool ok = true;
    for (int i = 0; ok && r->rewrite->bias != NULL && i < site_count; i++) {
        if (sites[i].part != NULL && gd_part_has_bias(config, sites[i].part))
            continue;
        int part = sites[i].part != NULL ? part_index(r, &sites[i]) : -1;
        if (!r->rewrite->bias(r->rewrite->context, &sites[i], NULL))
            continue;
        if (!config->family->bias_options)
            ok = gd_fail(err, GD_UNSUPPORTED, "%s would need a bias, and %s models have none there", sites[i].name,
                         config->architecture);
        else if (part >= GD_LINEAR_GATE)
            r->bias[GD_LINEAR_GATE] = r->bias[GD_LINEAR_UP] = r->bias[GD_LINEAR_DOWN] = true;
        else if (!r->gguf || part == GD_LINEAR_O)
            r->bias[GD_LINEAR_O] = true;
        if (part < GD_LINEAR_O || (part == GD_LINEAR_O && !r->gguf))
            r->bias[GD_LINEAR_Q] = r->bias[GD_LINEAR_K] = r->bias[GD_LINEAR_V] = true;
    }
    return ok;
}

static void add_biases(struct rewriter *r, struct gd_arena *names)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(r->model, &sites);
    for (int i = 0; i < site_count; i++) {
        if (sites[i].part == NULL || !r->bias[part_index(r, &sites[i])] || gd_part_has_bias(&r->model->config, sites[i].part))
            continue;
        const char *name = gd_arena_format(names, "%s.bias", r->gguf ? sites[i].gguf : sites[i].name);
        enum gd_dtype dtype = r->gguf ? GD_F32 : r->dtype != GD_DTYPE_COUNT ? r->dtype : gd_weight_source(sites[i].weight)->dtype;
        add_piece(r, name, (struct piece){.site = &sites[i], .changed = true},
                  (struct gd_tensor){.dtype = dtype, .rank = 1, .shape = {sites[i].out}});
    }
}

/* ---- tensors ---- */

static const int32_t *bias_rows(const struct rewriter *r, const struct gd_site *site)
{
    enum gd_row_kind kind = site->part->rows;
    return kind == GD_ROWS_QUERY ? r->files->query_rows : kind == GD_ROWS_KEY ? r->files->key_rows : NULL;
}

/* What the files' weights become, one matrix after the other. */
static bool fill_values(const struct rewriter *r, const struct piece *piece, int64_t count, struct gd_error *err)
{
    int64_t parts = matrices(piece->source), each = count / parts;
    for (int64_t i = 0; i < parts; i++) {
        const struct gd_weight *weight = piece->source->stack != NULL ? piece->source->stack[i] : piece->source->weight;
        gd_weight_to_f32(weight, r->values + i * each);
        if (r->rewrite->changes(r->rewrite->context, weight) &&
            !r->rewrite->change(r->rewrite->context, weight, r->values + i * each, err))
            return false;
    }
    return true;
}

static bool provide(void *context, int index, const void **bytes, struct gd_error *err)
{
    struct rewriter *r = context;
    const struct piece *piece = &r->pieces[index];
    const struct gd_tensor *tensor = &r->entries[index].tensor;
    int64_t count = gd_tensor_count(tensor), rows = tensor->rank > 0 ? tensor->shape[0] : 1, width = count / rows;
    if (!piece->changed && tensor->dtype == piece->source->tensor.dtype) {
        *bytes = piece->source->tensor.data;
        return true;
    }
    if (piece->values != NULL) {
        gd_convert_from_f32(r->bytes, tensor->dtype, piece->values, count);
        *bytes = r->bytes;
        return true;
    }
    const int32_t *order = piece->source != NULL ? piece->source->rows : bias_rows(r, piece->site);
    if (piece->site != NULL) {
        memset(r->values, 0, (size_t)count * sizeof(float));
        (void)r->rewrite->bias(r->rewrite->context, piece->site, r->values);
    } else if (piece->source->weight == NULL) {
        gd_convert_to_f32(r->values, piece->source->tensor.data, piece->source->tensor.dtype, count);
        order = NULL;
    } else {
        if (!fill_values(r, piece, count, err))
            return false;
    }
    float *values = r->values;
    if (order != NULL) {
        values = r->ordered;
        for (int64_t i = 0; i < rows; i++)
            memcpy(values + order[i] * width, r->values + i * width, (size_t)width * sizeof(float));
    } else if (piece->source != NULL && piece->source->transposed) { /* rows and width are the file's: the weight is [width, rows] */
        values = r->ordered;
        for (int64_t i = 0; i < count; i++)
            values[i] = r->values[i % width * rows + i / width];
    }
    for (int64_t i = 0; piece->source != NULL && piece->source->added != 0 && i < count; i++)
        values[i] += piece->source->added;
    gd_convert_from_f32(r->bytes, tensor->dtype, values, count);
    *bytes = r->bytes;
    return true;
}

static bool reserve(struct rewriter *r, struct gd_error *err)
{
    int64_t largest = 1;
    for (int i = 0; i < r->count; i++)
        if (gd_tensor_count(&r->entries[i].tensor) > largest)
            largest = gd_tensor_count(&r->entries[i].tensor);
    void *memory = NULL;
    r->memory_bytes = (size_t)largest * 3 * sizeof(float);
    if (!gd_large_alloc(&memory, r->memory_bytes, "a tensor to be rewritten", err))
        return false;
    r->values = memory;
    r->ordered = r->values + largest;
    r->bytes = r->ordered + largest;
    return true;
}

/* ---- the two formats ---- */

static const char *dtype_in_config(enum gd_dtype dtype)
{
    return dtype == GD_F32 ? "float32" : dtype == GD_BF16 ? "bfloat16" : "float16";
}

/* What config.json says of a classifier. */
static void describe_head(const struct gd_rewrite_head *head, const struct gd_family *family, cJSON *json)
{
    static const char *const replaced[] = {"architectures", "id2label", "label2id", "num_labels", "problem_type"};
    char class_name[128], number[16];
    const char *names[] = {class_name};
    if (family->classifier != NULL)
        snprintf(class_name, sizeof class_name, "%s", family->classifier);
    else
        snprintf(class_name, sizeof class_name, "%.*sForSequenceClassification", (int)gd_family_stem(family), family->class_name);
    for (size_t i = 0; i < GD_COUNT(replaced); i++)
        cJSON_DeleteItemFromObjectCaseSensitive(json, replaced[i]);
    cJSON_AddItemToObject(json, "architectures", cJSON_CreateStringArray(names, 1));
    cJSON *by_number = cJSON_AddObjectToObject(json, "id2label"), *by_name = cJSON_AddObjectToObject(json, "label2id");
    for (int i = 0; i < head->label_count; i++) {
        snprintf(number, sizeof number, "%d", i);
        cJSON_AddStringToObject(by_number, number, head->labels[i]);
        cJSON_AddNumberToObject(by_name, head->labels[i], i);
    }
    cJSON_AddStringToObject(json, "problem_type", head->multi_label ? "multi_label_classification" : "single_label_classification");
}

static bool write_config(const struct rewriter *r, const char *folder, struct gd_error *err)
{
    char *from = gd_format("%s/config.json", r->model->path), *to = gd_format("%s/config.json", folder), *source = NULL;
    size_t length = 0;
    bool ok = gd_file_read(from, COPY_BYTES_MAX, &source, &length, err);
    cJSON *json = ok ? gd_json_parse(source, length, COPY_BYTES_MAX, err) : NULL;
    ok = json != NULL;
    if (ok) {
        gd_json_keep_numbers(json, source);
        const char *const flags[] = {r->bias[GD_LINEAR_O] ? "attention_bias" : NULL, r->bias[GD_LINEAR_GATE] ? "mlp_bias" : NULL};
        for (size_t i = 0; i < GD_COUNT(flags); i++)
            if (flags[i] != NULL) {
                cJSON_DeleteItemFromObjectCaseSensitive(json, flags[i]);
                cJSON_AddBoolToObject(json, flags[i], true);
            }
        const char *const names[] = {"torch_dtype", "dtype"};
        for (size_t i = 0; i < GD_COUNT(names) && r->dtype != GD_DTYPE_COUNT; i++)
            if (cJSON_GetObjectItemCaseSensitive(json, names[i]) != NULL)
                cJSON_ReplaceItemInObjectCaseSensitive(json, names[i], cJSON_CreateString(dtype_in_config(r->dtype)));
        if (r->rewrite->head != NULL)
            describe_head(r->rewrite->head, r->model->config.family, json);
        char *text = gd_json_print(json);
        ok = gd_file_write_durable(to, text, strlen(text), err);
        gd_free(text);
    }
    cJSON_Delete(json);
    gd_free(source);
    gd_free(from);
    gd_free(to);
    return ok;
}

static bool copy_file(const char *from_folder, const char *to_folder, const char *name, struct gd_error *err)
{
    char *from = gd_format("%s/%s", from_folder, name), *to = gd_format("%s/%s", to_folder, name), *data = NULL;
    size_t length = 0;
    bool ok = !gd_path_exists(from) ||
              (gd_file_read(from, COPY_BYTES_MAX, &data, &length, err) && gd_file_write_durable(to, data, length, err));
    gd_free(data);
    gd_free(from);
    gd_free(to);
    return ok;
}

static bool copy_more_templates(const char *from, const char *to, struct gd_error *err)
{
    static const char *const names[] = {"additional_chat_templates/default.jinja", "additional_chat_templates/tool_use.jinja"};
    char *source = gd_format("%s/additional_chat_templates", from), *target = gd_format("%s/additional_chat_templates", to);
    bool ok = !gd_path_exists(source) || gd_mkdirs(target, err);
    for (size_t i = 0; ok && i < GD_COUNT(names); i++)
        ok = copy_file(from, to, names[i], err);
    gd_free(source);
    gd_free(target);
    return ok;
}

static bool write_folder(struct rewriter *r, const char *path, struct gd_error *err)
{
    static const char *const beside[] = {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                         "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
                                         "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
                                         "sentencepiece.bpe.model"};
    struct gd_dir_tx *tx = NULL;
    if (!gd_dir_tx_begin(&tx, path, err))
        return false;
    const char *folder = gd_dir_tx_path(tx);
    cJSON *metadata = cJSON_CreateObject();
    cJSON_AddStringToObject(metadata, "format", "pt");
    char *weights = gd_format("%s/model.safetensors", folder);
    bool ok = write_config(r, folder, err);
    for (size_t i = 0; ok && i < GD_COUNT(beside); i++)
        ok = copy_file(r->model->path, folder, beside[i], err);
    ok = ok && copy_more_templates(r->model->path, folder, err) && gd_safetensors_stream(weights, r->entries, r->count, metadata, provide, r, err);
    gd_free(weights);
    cJSON_Delete(metadata);
    if (ok)
        return gd_dir_tx_commit(tx, err);
    gd_dir_tx_abort(tx);
    return false;
}

/* link, not rename: a file that came to be there meanwhile stays. */
static bool publish(const char *from, const char *path, struct gd_error *err)
{
    bool ok = link(from, path) == 0 || (errno == EEXIST ? gd_fail_param(err, GD_CONFLICT, "--out", "%s exists already", path)
                                                        : gd_fail_errno(err, errno, "link %s", path));
    char *folder = gd_strdup(path), *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder] = '\0';
    ok = ok && gd_fsync_dir(slash != NULL ? folder : ".", err);
    gd_free(folder);
    return ok;
}

static bool write_gguf(struct rewriter *r, const char *path, struct gd_error *err)
{
    char random[9];
    gd_random_id(random, 8);
    char *temporary = gd_format("%s.tmp-%s", path, random);
    struct gd_gguf_writer writer;
    gd_gguf_writer_init(&writer);
    gd_gguf_put_all(&writer, r->files->gguf, "general.file_type"); /* it names one type for all, which may be wrong now */
    bool ok = gd_gguf_write(&writer, temporary, r->entries, r->count, provide, r, err) && publish(temporary, path, err);
    (void)unlink(temporary);
    gd_gguf_writer_release(&writer);
    gd_free(temporary);
    return ok;
}

bool gd_model_rewrite(const struct gd_model *model, const struct gd_rewrite *rewrite, enum gd_dtype dtype, const char *path,
                      struct gd_error *err)
{
    struct rewriter r = {.model = model, .files = gd_model_files(model), .rewrite = rewrite, .dtype = dtype};
    struct gd_arena names = {0};
    r.gguf = r.files->gguf != NULL;
    if (gd_path_exists(path))
        return gd_fail_param(err, GD_CONFLICT, "--out", "%s exists already", path);
    size_t most = (size_t)r.files->tensor_count + (size_t)model->config.layers * GD_PARTS_MAX + GD_COUNT(rewrite->head->tensor);
    r.entries = gd_alloc_array(most, sizeof(*r.entries));
    r.pieces = gd_alloc_array(most, sizeof(*r.pieces));
    bool ok = check_aside(&r, err) && choose_biases(&r, err);
    if (ok) {
        add_sources(&r);
        add_biases(&r, &names);
        add_head(&r);
        ok = reserve(&r, err) && (r.gguf ? write_gguf(&r, path, err) : write_folder(&r, path, err));
    }
    if (r.values != NULL)
        gd_large_free(r.values, r.memory_bytes);
    gd_arena_release(&names);
    gd_free(r.entries);
    gd_free(r.pieces);
    return ok;
}
