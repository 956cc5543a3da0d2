/* Folders that appear whole or not at all, and the manifest that tells whether they still are. Contract: fsio.h. */
#include "engine/base/alloc.h"
#include "engine/base/fsio_internal.h"
#include "engine/base/json.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MANIFEST "manifest.json"
#define MANIFEST_BYTES_MAX ((size_t)64 << 20)
#define MANIFEST_FORMAT 1
#define DEPTH_MAX 16
#define TEMPORARY_MARK ".tmp-"
#define RANDOM_LENGTH 12

struct gd_dir_tx {
    char *final_path;
    char *path;
};

/* Every regular file below a folder, by its path relative to it, and the folders themselves. */
struct entry {
    char *name;
    uint64_t bytes;
    bool folder, listed;
};
struct listing {
    struct entry *items;
    size_t count, capacity;
};

static void listing_release(struct listing *list)
{
    for (size_t i = 0; i < list->count; i++)
        gd_free(list->items[i].name);
    gd_free(list->items);
    *list = (struct listing){0};
}

static void listing_add(struct listing *list, const char *name, const struct stat *facts)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity == 0 ? 16 : list->capacity * 2;
        list->items = gd_realloc_array(list->items, list->capacity, sizeof(struct entry));
    }
    list->items[list->count++] = (struct entry){
        .name = gd_strdup(name), .bytes = (uint64_t)facts->st_size, .folder = S_ISDIR(facts->st_mode)};
}

static bool collect(struct listing *list, const char *root, const char *prefix, int depth, struct gd_error *err)
{
    char *path = gd_format("%s%s%s", root, prefix[0] != '\0' ? "/" : "", prefix);
    DIR *dir = opendir(path);
    if (dir == NULL) {
        gd_fail_errno(err, errno, "read folder %s", path);
        gd_free(path);
        return false;
    }
    bool ok = depth <= DEPTH_MAX || gd_fail(err, GD_IO, "%s is nested deeper than %d folders", path, DEPTH_MAX);
    struct dirent *entry;
    while (ok && (errno = 0, entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char *name = gd_format("%s%s%s", prefix, prefix[0] != '\0' ? "/" : "", entry->d_name);
        struct stat facts;
        if (fstatat(dirfd(dir), entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0)
            ok = gd_fail_errno(err, errno, "stat %s/%s", root, name);
        else if (!S_ISREG(facts.st_mode) && !S_ISDIR(facts.st_mode))
            ok = gd_fail(err, GD_IO, "%s/%s is neither a regular file nor a folder", root, name);
        else if (!gd_utf8_valid(name, strlen(name)))
            ok = gd_fail(err, GD_IO, "%s/%s: the name is not UTF-8", root, name);
        else
            listing_add(list, name, &facts);
        if (ok && S_ISDIR(facts.st_mode))
            ok = collect(list, root, name, depth + 1, err);
        gd_free(name);
        errno = 0;
    }
    if (ok && errno != 0)
        ok = gd_fail_errno(err, errno, "read folder %s", path);
    closedir(dir);
    gd_free(path);
    return ok;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static bool list_folder(struct listing *list, const char *root, struct gd_error *err)
{
    if (!collect(list, root, "", 0, err))
        return false;
    if (list->count > 1) /* sorted: the same content gives the same manifest */
        qsort(list->items, list->count, sizeof(struct entry), by_name);
    return true;
}

bool gd_dir_tx_begin(struct gd_dir_tx **out, const char *final_path, struct gd_error *err)
{
    *out = NULL;
    size_t length = strlen(final_path);
    while (length > 1 && final_path[length - 1] == '/')
        length--;
    if (length == 0 || length > GD_PATH_BYTES_MAX - 512)
        return gd_fail(err, GD_IO, "a folder path of %zu bytes is not usable (1 to %d)", length, GD_PATH_BYTES_MAX - 512);
    char suffix[RANDOM_LENGTH + 1];
    gd_random_id(suffix, RANDOM_LENGTH);
    struct gd_dir_tx *tx = gd_alloc(sizeof(*tx));
    tx->final_path = gd_strndup(final_path, length);
    tx->path = gd_format("%s" TEMPORARY_MARK "%s", tx->final_path, suffix);
    struct stat facts;
    bool ok = lstat(tx->final_path, &facts) != 0 ||
              gd_fail(err, GD_CONFLICT, "%s is there already; a folder is written once", tx->final_path);
    if (ok && mkdir(tx->path, 0700) != 0)
        ok = errno == ENOENT ? gd_mkdirs(tx->path, err) : gd_fail_errno(err, errno, "create folder %s", tx->path);
    if (!ok) {
        gd_free(tx->final_path);
        gd_free(tx->path);
        gd_free(tx);
        return false;
    }
    *out = tx;
    return true;
}

const char *gd_dir_tx_path(const struct gd_dir_tx *tx)
{
    return tx->path;
}

static bool fsync_file(const char *path, struct gd_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return gd_fail_errno(err, errno, "open %s", path);
    bool ok = fsync(fd) == 0 || gd_fail_errno(err, errno, "fsync %s", path);
    close(fd);
    return ok;
}

/* Syncs one file or folder and, for a file, appends its line of the manifest. */
static bool seal(const char *root, const struct entry *entry, bool first, struct gd_buf *manifest, struct gd_error *err)
{
    char *path = gd_format("%s/%s", root, entry->name);
    char hash[33];
    bool ok = entry->folder ? gd_fsync_dir(path, err) : fsync_file(path, err) && gd_hash_file_xxh3(path, hash, err);
    gd_free(path);
    if (!ok || entry->folder)
        return ok;
    gd_buf_append_text(manifest, first ? "\n    " : ",\n    ");
    gd_json_append_string(manifest, entry->name, strlen(entry->name));
    gd_buf_printf(manifest, ": {\"bytes\": %llu, \"xxh3\": \"%s\"}", (unsigned long long)entry->bytes, hash);
    return true;
}

static bool write_manifest(const char *root, const struct gd_buf *manifest, struct gd_error *err)
{
    if (manifest->overflow)
        return gd_fail(err, GD_TOO_LARGE, "the manifest of %s is larger than %zu bytes", root, MANIFEST_BYTES_MAX);
    char *path = gd_format("%s/" MANIFEST, root);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool ok = fd >= 0 || gd_fail_errno(err, errno, "create %s", path);
    if (ok)
        ok = gd_write_all(fd, manifest->data, manifest->length, path, err);
    if (ok && fsync(fd) != 0)
        ok = gd_fail_errno(err, errno, "fsync %s", path);
    if (fd >= 0 && close(fd) != 0 && ok)
        ok = gd_fail_errno(err, errno, "close %s", path);
    gd_free(path);
    return ok;
}

/* Order: each file, the folders below, the manifest, the folder, the rename, the parent. Whoever sees the final name
 * sees everything. */
static bool commit(const struct gd_dir_tx *tx, struct gd_error *err)
{
    struct listing list = {0};
    struct gd_buf manifest;
    gd_buf_init(&manifest, MANIFEST_BYTES_MAX);
    gd_buf_printf(&manifest, "{\n  \"format\": %d,\n  \"files\": {", MANIFEST_FORMAT);
    bool ok = list_folder(&list, tx->path, err), first = true;
    for (size_t i = 0; ok && i < list.count; i++) {
        ok = seal(tx->path, &list.items[i], first, &manifest, err);
        first = first && list.items[i].folder;
    }
    gd_buf_append_text(&manifest, "\n  }\n}\n");
    ok = ok && write_manifest(tx->path, &manifest, err) && gd_fsync_dir(tx->path, err);
    if (ok && renameat2(AT_FDCWD, tx->path, AT_FDCWD, tx->final_path, RENAME_NOREPLACE) != 0) {
        if (errno == EEXIST)
            ok = gd_fail(err, GD_CONFLICT, "%s is there already; a folder is written once", tx->final_path);
        else
            ok = gd_fail_errno(err, errno, "rename %s to %s", tx->path, tx->final_path);
    }
    gd_buf_release(&manifest);
    listing_release(&list);
    return ok;
}

static void destroy(struct gd_dir_tx *tx)
{
    gd_free(tx->final_path);
    gd_free(tx->path);
    gd_free(tx);
}

bool gd_dir_tx_commit(struct gd_dir_tx *tx, struct gd_error *err)
{
    if (!commit(tx, err)) {
        gd_dir_tx_abort(tx);
        return false;
    }
    bool ok = gd_fsync_parent(tx->final_path, err);
    destroy(tx);
    return ok;
}

void gd_dir_tx_abort(struct gd_dir_tx *tx)
{
    struct gd_error ignored = {0}; /* what stays is swept at the next start */
    (void)!gd_remove_tree(tx->path, &ignored);
    destroy(tx);
}

bool gd_dir_sweep(const char *parent, struct gd_error *err)
{
    DIR *dir = opendir(parent);
    if (dir == NULL)
        return errno == ENOENT || gd_fail_errno(err, errno, "read folder %s", parent);
    bool ok = true;
    struct dirent *entry;
    while (ok && (errno = 0, entry = readdir(dir)) != NULL) {
        size_t length = strlen(entry->d_name), mark = strlen(TEMPORARY_MARK);
        if (length <= mark + RANDOM_LENGTH ||
            memcmp(entry->d_name + length - RANDOM_LENGTH - mark, TEMPORARY_MARK, mark) != 0)
            continue;
        char *path = gd_format("%s/%s", parent, entry->d_name);
        ok = gd_remove_tree(path, err);
        gd_free(path);
        errno = 0;
    }
    if (ok && errno != 0)
        ok = gd_fail_errno(err, errno, "read folder %s", parent);
    closedir(dir);
    return ok;
}

static bool verify_file(const char *root, const struct entry *entry, const cJSON *expected, struct gd_error *err)
{
    int64_t bytes = -1;
    const char *hash = NULL;
    if (!gd_json_get_int(expected, entry->name, "bytes", true, 0, INT64_C(1) << 52, &bytes, err) ||
        !gd_json_get_string(expected, entry->name, "xxh3", true, 32, 32, &hash, err))
        return false;
    if ((uint64_t)bytes != entry->bytes)
        return gd_fail(err, GD_IO, "%s/%s has %llu bytes, its manifest says %lld: it is damaged", root, entry->name,
                       (unsigned long long)entry->bytes, (long long)bytes);
    char actual[33];
    char *path = gd_format("%s/%s", root, entry->name);
    bool ok = gd_hash_file_xxh3(path, actual, err);
    if (ok && strcmp(actual, hash) != 0)
        ok = gd_fail(err, GD_IO, "%s has xxh3 %s, its manifest says %s: it is damaged", path, actual, hash);
    gd_free(path);
    return ok;
}

/* Each file of the manifest against the folder, then each file of the folder against the manifest. */
static bool verify_listing(const char *root, struct listing *list, const cJSON *files, struct gd_error *err)
{
    const cJSON *file;
    cJSON_ArrayForEach(file, files) {
        struct entry key = {.name = file->string};
        struct entry *entry = NULL;
        if (list->count > 0)
            entry = bsearch(&key, list->items, list->count, sizeof(key), by_name);
        if (entry == NULL || entry->folder)
            return gd_fail(err, GD_IO, "%s/%s is missing, but its manifest lists it", root, file->string);
        entry->listed = true;
        if (!verify_file(root, entry, file, err))
            return false;
    }
    for (size_t i = 0; i < list->count; i++)
        if (!list->items[i].listed && !list->items[i].folder && strcmp(list->items[i].name, MANIFEST) != 0)
            return gd_fail(err, GD_IO, "%s/%s is extra: its manifest does not list it", root, list->items[i].name);
    return true;
}

static bool verify_manifest(const char *root, struct listing *list, struct gd_error *err)
{
    char *path = gd_format("%s/" MANIFEST, root);
    cJSON *manifest = gd_json_parse_file(path, MANIFEST_BYTES_MAX, err);
    const cJSON *files = NULL;
    int64_t format;
    bool ok = manifest != NULL &&
              gd_json_get_int(manifest, "", "format", true, MANIFEST_FORMAT, MANIFEST_FORMAT, &format, err) &&
              gd_json_get_object(manifest, "", "files", true, &files, err);
    if (!ok) {
        gd_error_context(err, "%s", path);
        err->code = GD_IO; /* a folder without a good manifest is damaged, whatever the parser says */
    } else {
        ok = verify_listing(root, list, files, err);
        if (!ok && err->code != GD_NOT_FOUND)
            err->code = GD_IO;
    }
    cJSON_Delete(manifest);
    gd_free(path);
    return ok;
}

bool gd_dir_verify(const char *path, struct gd_error *err)
{
    struct listing list = {0};
    bool ok = list_folder(&list, path, err) && verify_manifest(path, &list, err);
    listing_release(&list);
    return ok;
}
