/* list.c - the models of a folder. */
#include "engine/base/alloc.h"
#include "engine/model/model.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define GGUF_SUFFIX ".gguf"
#define ID_BYTES_MAX 200

/* Ids appear in URLs, logs and error messages. */
static bool plain_id(const char *id, size_t length)
{
    if (length == 0 || length > ID_BYTES_MAX || id[0] == '.')
        return false;
    for (size_t i = 0; i < length; i++)
        if (id[i] <= 0x20 || id[i] >= 0x7f || id[i] == '/' || id[i] == '\\')
            return false;
    return true;
}

/* A folder NAME and a file NAME.gguf: the file then goes by its whole name. `entries` are sorted. */
static void part_twins(struct gd_model_entry *entries, int count)
{
    for (int i = 1; i < count; i++) {
        if (strcmp(entries[i - 1].id, entries[i].id) != 0)
            continue;
        size_t length = strlen(entries[i].path), suffix = strlen(GGUF_SUFFIX);
        bool file = length > suffix && strcmp(entries[i].path + length - suffix, GGUF_SUFFIX) == 0;
        struct gd_model_entry *twin = &entries[file ? i : i - 1];
        char *id = gd_format("%s" GGUF_SUFFIX, twin->id);
        gd_free(twin->id);
        twin->id = id;
    }
}

/* The id's length in `name`, 0 if this entry is no model. */
static size_t id_length(const char *name, const char *path, const struct stat *status)
{
    size_t length = strlen(name), suffix = strlen(GGUF_SUFFIX);
    if (S_ISDIR(status->st_mode)) {
        char *config = gd_format("%s/config.json", path);
        bool model = access(config, F_OK) == 0;
        gd_free(config);
        return model ? length : 0;
    }
    bool model = S_ISREG(status->st_mode) && length > suffix && strcmp(name + length - suffix, GGUF_SUFFIX) == 0;
    return model ? length - suffix : 0;
}

static int compare_entries(const void *left, const void *right)
{
    return strcmp(((const struct gd_model_entry *)left)->id, ((const struct gd_model_entry *)right)->id);
}

static void consider(struct gd_model_entry **entries, int *count, const char *folder, const char *name)
{
    char *path = gd_format("%s/%s", folder, name), *real = realpath(path, NULL);
    struct stat status;
    size_t length =
        real != NULL && access(real, R_OK) == 0 && stat(real, &status) == 0 ? id_length(name, path, &status) : 0;
    if (plain_id(name, length)) {
        *entries = gd_realloc_array(*entries, (size_t)*count + 1, sizeof(*entries)[0]);
        (*entries)[(*count)++] = (struct gd_model_entry){gd_strndup(name, length), path, status.st_mtime};
        path = NULL;
    }
    free(real);
    gd_free(path);
}

bool gd_model_list(const char *folder, struct gd_model_entry **entries, int *count, struct gd_error *err)
{
    *entries = NULL;
    *count = 0;
    DIR *dir = opendir(folder);
    if (dir == NULL)
        return gd_fail_errno(err, errno, "models folder %s", folder);
    for (const struct dirent *each = readdir(dir); each != NULL; each = readdir(dir))
        if (each->d_name[0] != '.')
            consider(entries, count, folder, each->d_name);
    closedir(dir);
    if (*count > 0)
        qsort(*entries, (size_t)*count, sizeof(*entries)[0], compare_entries);
    part_twins(*entries, *count);
    return true;
}

void gd_model_list_release(struct gd_model_entry *entries, int count)
{
    for (int i = 0; i < count; i++) {
        gd_free(entries[i].id);
        gd_free(entries[i].path);
    }
    gd_free(entries);
}
