/* files.c - the files of a model as one sorted table of tensors. */
#include "engine/model/files.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/text.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_NAME "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"
#define INDEX_BYTES_MAX (64u << 20)

static int compare_tensors(const void *left, const void *right)
{
    return strcmp(((const struct gd_file_tensor *)left)->name, ((const struct gd_file_tensor *)right)->name);
}

static void add_tensor(struct gd_files *files, const char *name, const char *file, const char *dtype_name,
                       struct gd_tensor tensor)
{
    if ((files->tensor_count & (files->tensor_count - 1)) == 0) /* full at every power of two */
        files->tensors = gd_realloc_array(files->tensors, files->tensor_count > 0 ? 2 * (size_t)files->tensor_count : 1,
                                          sizeof files->tensors[0]);
    files->tensors[files->tensor_count++] = (struct gd_file_tensor){.name = name, .file = file, .dtype_name = dtype_name, .tensor = tensor};
}

static bool sort_tensors(struct gd_files *files, struct gd_error *err)
{
    if (files->tensor_count > 0)
        qsort(files->tensors, (size_t)files->tensor_count, sizeof files->tensors[0], compare_tensors);
    for (int i = 1; i < files->tensor_count; i++)
        if (strcmp(files->tensors[i - 1].name, files->tensors[i].name) == 0)
            return gd_fail(err, GD_BAD_MODEL, "tensor %s is in %s and in %s", gd_show_text(files->tensors[i].name).text,
                           files->tensors[i - 1].file, files->tensors[i].file);
    return true;
}

static bool open_shard(struct gd_files *files, const char *folder, const char *name, struct gd_error *err)
{
    char *path = gd_format("%s/%s", folder, name);
    struct gd_safetensors *shard = NULL;
    bool ok = gd_safetensors_open(&shard, path, err);
    if (ok) {
        struct stat status;
        files->shards[files->shard_count++] = shard;
        files->size_bytes += stat(path, &status) == 0 ? (uint64_t)status.st_size : 0;
        const char *file = gd_arena_strdup(&files->arena, name);
        for (int i = 0; i < gd_safetensors_count(shard); i++)
            add_tensor(files, gd_safetensors_name(shard, i), file, gd_safetensors_dtype_name(shard, i),
                       gd_safetensors_at(shard, i));
    }
    gd_free(path);
    return ok;
}

/* ---- model.safetensors.index.json ---- */

struct placed {
    const char *tensor, *file;
};

static int compare_placed(const void *left, const void *right)
{
    return strcmp(((const struct placed *)left)->tensor, ((const struct placed *)right)->tensor);
}

static int compare_names(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* A shard is a file of this folder and of no other. */
static bool check_shard_name(const char *name, struct gd_error *err)
{
    size_t length = strlen(name), suffix = strlen(".safetensors");
    bool plain = length > suffix && length <= 255 && name[0] != '.' &&
                 strcmp(name + length - suffix, ".safetensors") == 0 && strpbrk(name, "/\\") == NULL;
    for (const char *c = name; plain && *c != 0; c++)
        plain = (unsigned char)*c >= 0x20 && (unsigned char)*c != 0x7f;
    if (plain)
        return true;
    return gd_fail(err, GD_BAD_MODEL, INDEX_NAME ": \"%s\" is not the name of a .safetensors file in the same folder",
                   gd_show_text(name).text);
}

static bool open_shards(struct gd_files *files, const char *folder, const struct placed *placed, int count,
                        struct gd_error *err)
{
    const char **names = gd_alloc_array((size_t)count + 1, sizeof names[0]);
    int unique = 0;
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        ok = check_shard_name(placed[i].file, err);
        names[i] = placed[i].file;
    }
    if (ok)
        qsort(names, (size_t)count, sizeof names[0], compare_names);
    for (int i = 0; ok && i < count; i++)
        if (i == 0 || strcmp(names[i - 1], names[i]) != 0)
            names[unique++] = names[i];
    if (ok && unique > GD_SHARDS_MAX)
        ok = gd_fail(err, GD_BAD_MODEL, INDEX_NAME " names %d files, limit %d", unique, GD_SHARDS_MAX);
    if (ok)
        files->shards = gd_alloc_array((size_t)unique + 1, sizeof files->shards[0]);
    for (int i = 0; ok && i < unique; i++)
        ok = open_shard(files, folder, names[i], err);
    if (err->code == GD_NOT_FOUND) { /* the model is there, a part of it is not */
        err->code = GD_BAD_MODEL;
        gd_error_context(err, INDEX_NAME " names a file that is missing");
    }
    gd_free(names);
    return ok;
}

/* Both lists are sorted: each tensor of the index is in the file that it names, and no other is there. */
static bool compare_with_index(const struct gd_files *files, const struct placed *placed, int count,
                               struct gd_error *err)
{
    int i = 0, k = 0;
    while (i < count || k < files->tensor_count) {
        const struct gd_file_tensor *tensor = k < files->tensor_count ? &files->tensors[k] : NULL;
        int order = i == count ? 1 : tensor == NULL ? -1 : strcmp(placed[i].tensor, tensor->name);
        if (order < 0)
            return gd_fail(err, GD_BAD_MODEL, INDEX_NAME ": tensor %s is not in %s",
                           gd_show_text(placed[i].tensor).text, placed[i].file);
        if (order > 0)
            return gd_fail(err, GD_BAD_MODEL, "%s: tensor %s is not in " INDEX_NAME, tensor->file,
                           gd_show_text(tensor->name).text);
        if (strcmp(placed[i].file, tensor->file) != 0)
            return gd_fail(err, GD_BAD_MODEL, INDEX_NAME ": tensor %s is not in %s but in %s",
                           gd_show_text(tensor->name).text, placed[i].file, tensor->file);
        i++;
        k++;
    }
    return true;
}

static bool open_index(struct gd_files *files, const char *folder, const cJSON *json, struct gd_error *err)
{
    const cJSON *map = NULL;
    if (!cJSON_IsObject(json))
        return gd_fail(err, GD_BAD_MODEL, INDEX_NAME " is not a JSON object");
    if (!gd_json_get_object(json, INDEX_NAME, "weight_map", true, &map, err))
        return gd_bad_model(err);
    int count = 0;
    struct placed *placed = gd_alloc_array((size_t)cJSON_GetArraySize(map) + 1, sizeof placed[0]);
    bool ok = true;
    for (const cJSON *each = map->child; ok && each != NULL; each = each->next) {
        if (!cJSON_IsString(each))
            ok = gd_fail(err, GD_BAD_MODEL, INDEX_NAME ": weight_map.%s is not a string",
                         gd_show_text(each->string).text);
        else
            placed[count++] = (struct placed){each->string, each->valuestring};
    }
    if (ok && count == 0)
        ok = gd_fail(err, GD_BAD_MODEL, INDEX_NAME ": weight_map is empty");
    if (ok)
        qsort(placed, (size_t)count, sizeof placed[0], compare_placed);
    ok = ok && open_shards(files, folder, placed, count, err) && sort_tensors(files, err) &&
         compare_with_index(files, placed, count, err);
    gd_free(placed);
    return ok;
}

bool gd_files_open_folder(struct gd_files *files, const char *folder, struct gd_error *err)
{
    char *single = gd_format("%s/" SINGLE_NAME, folder), *index = gd_format("%s/" INDEX_NAME, folder);
    bool ok;
    if (access(single, F_OK) == 0) {
        files->shards = gd_alloc_array(1, sizeof files->shards[0]);
        ok = open_shard(files, folder, SINGLE_NAME, err) && sort_tensors(files, err);
    } else if (access(index, F_OK) == 0) {
        cJSON *json = gd_json_parse_file(index, INDEX_BYTES_MAX, err);
        ok = json != NULL ? open_index(files, folder, json, err) : gd_bad_model(err);
        cJSON_Delete(json);
    } else
        ok = gd_fail(err, GD_BAD_MODEL,
                     "%s: no " SINGLE_NAME " and no " INDEX_NAME " (weights in .bin or .pt files must be converted)",
                     folder);
    gd_free(single);
    gd_free(index);
    return ok;
}

void gd_files_take_gguf(struct gd_files *files, struct gd_gguf *gguf, const char *path)
{
    const char *file = gd_arena_strdup(&files->arena, gd_path_name(path));
    files->gguf = gguf;
    files->size_bytes = gd_gguf_bytes(gguf);
    for (int i = 0; i < gd_gguf_count(gguf); i++) {
        struct gd_tensor tensor = gd_gguf_at(gguf, i);
        add_tensor(files, gd_gguf_name(gguf, i), file, gd_dtype_name(tensor.dtype), tensor);
    }
    if (files->tensor_count > 0) /* the reader has refused duplicates */
        qsort(files->tensors, (size_t)files->tensor_count, sizeof files->tensors[0], compare_tensors);
}

static bool holds(const struct gd_map *map, const void *data)
{
    const unsigned char *at = data;
    return at >= map->data && at < map->data + map->size_bytes;
}

const struct gd_map *gd_files_map(const struct gd_files *files, const void *data)
{
    for (int i = 0; i < files->shard_count; i++)
        if (holds(gd_safetensors_map(files->shards[i]), data))
            return gd_safetensors_map(files->shards[i]);
    return files->gguf != NULL && holds(gd_gguf_map(files->gguf), data) ? gd_gguf_map(files->gguf) : NULL;
}

void gd_files_close(struct gd_files *files)
{
    if (files == NULL)
        return;
    for (int i = 0; i < files->shard_count; i++)
        gd_safetensors_close(files->shards[i]);
    gd_free(files->shards);
    gd_gguf_close(files->gguf);
    gd_free(files->tensors);
    gd_free(files->query_rows);
    gd_free(files->key_rows);
    gd_arena_release(&files->arena);
    gd_free(files);
}
