#include "engine/tensor/pack_cache.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define HEADER_BYTES 4096 /* data begin at a page */
#define KEY_BYTES 1024
#define STALE_SECONDS 600 /* of a file that somebody began to write */
#define SUFFIX ".pack"

struct header {
    char magic[8];
    uint64_t data_bytes;
    char data_hash[40];
    char key[KEY_BYTES];
};
static const char magic[8] = "GDPACK1";

static struct {
    char *folder;
    uint64_t max_bytes;
    bool told;                   /* that writing failed */
    struct gd_pack_cache_stats stats;
} cache;

/* ---- the folder ---- */

struct entry {
    char name[64];
    uint64_t bytes;
    time_t used;
};

static int by_use(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    return a->used < b->used ? -1 : a->used > b->used ? 1 : strcmp(a->name, b->name);
}

/* Its files, those used longest ago first. What a writer left behind is removed. */
static struct entry *list_entries(int *count)
{
    struct entry *entries = NULL;
    DIR *folder = opendir(cache.folder);
    *count = 0;
    cache.stats.bytes = 0;
    for (struct dirent *each; folder != NULL && (each = readdir(folder)) != NULL;) {
        struct stat facts;
        size_t length = strlen(each->d_name);
        if (each->d_name[0] == '.' && strncmp(each->d_name, ".tmp-", 5) != 0)
            continue;
        if (length >= sizeof(entries[0].name) || fstatat(dirfd(folder), each->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(facts.st_mode))
            continue;
        if (each->d_name[0] == '.') {
            if (time(NULL) - facts.st_mtime > STALE_SECONDS)
                unlinkat(dirfd(folder), each->d_name, 0);
            continue;
        }
        if (length <= strlen(SUFFIX) || strcmp(each->d_name + length - strlen(SUFFIX), SUFFIX) != 0)
            continue;
        if ((*count & (*count - 1)) == 0) /* full at every power of two */
            entries = gd_realloc_array(entries, *count > 0 ? 2 * (size_t)*count : 1, sizeof(*entries));
        struct entry *entry = &entries[(*count)++];
        *entry = (struct entry){.bytes = (uint64_t)facts.st_size, .used = facts.st_mtime};
        memcpy(entry->name, each->d_name, length + 1);
        cache.stats.bytes += entry->bytes;
    }
    if (folder != NULL)
        closedir(folder);
    if (*count > 1)
        qsort(entries, (size_t)*count, sizeof(*entries), by_use);
    return entries;
}

static void evict_for(uint64_t bytes)
{
    int count;
    if (cache.stats.bytes + bytes <= cache.max_bytes)
        return;
    struct entry *entries = list_entries(&count);
    for (int i = 0; i < count && cache.stats.bytes + bytes > cache.max_bytes; i++) {
        char *path = gd_format("%s/%s", cache.folder, entries[i].name);
        if (unlink(path) == 0) { /* who has it mapped keeps it */
            cache.stats.bytes -= entries[i].bytes;
            cache.stats.evicted++;
        }
        gd_free(path);
    }
    gd_free(entries);
}

void gd_pack_cache_configure(const char *folder, uint64_t max_bytes)
{
    struct gd_error err = {0};
    int count;
    gd_free(cache.folder);
    memset(&cache, 0, sizeof(cache));
    if (folder == NULL || max_bytes == 0)
        return;
    if (!gd_mkdirs(folder, &err)) {
        gd_log_warn("pack_cache", "state=off error=%s", err.message);
        return;
    }
    cache.folder = gd_strdup(folder);
    cache.max_bytes = max_bytes;
    gd_free(list_entries(&count));
    evict_for(0);
}

bool gd_pack_cache_on(void)
{
    return cache.folder != NULL;
}

const char *gd_pack_cache_folder(void)
{
    return cache.folder;
}

struct gd_pack_cache_stats gd_pack_cache_get_stats(void)
{
    return cache.stats;
}

/* ---- one file ---- */

/* NULL: this layout is not one that bytes can stand for. */
static char *find_path(char key[KEY_BYTES], const char *what, int64_t k, int64_t n, enum gd_dtype dtype)
{
    char layout[512], hash[33];
    if (!gd_gemm_packed_layout(k, n, dtype, layout, sizeof(layout)))
        return NULL;
    int length = snprintf(key, KEY_BYTES, "%s %" PRId64 "x%" PRId64 " %s %s", what, k, n, gd_dtype_name(dtype), layout);
    if (length < 0 || length >= KEY_BYTES)
        return NULL;
    gd_hash_xxh3(key, (size_t)length, hash);
    return gd_format("%s/%s" SUFFIX, cache.folder, hash);
}

static bool sound(const struct gd_map *map, const char *key)
{
    char hash[33];
    const struct header *header = (const struct header *)(const void *)map->data;
    if (map->size_bytes < HEADER_BYTES || memcmp(header->magic, magic, sizeof(magic)) != 0 ||
        header->data_bytes != map->size_bytes - HEADER_BYTES || strncmp(header->key, key, KEY_BYTES) != 0)
        return false;
    gd_hash_xxh3(map->data + HEADER_BYTES, map->size_bytes - HEADER_BYTES, hash);
    return strncmp(hash, header->data_hash, sizeof(header->data_hash)) == 0;
}

bool gd_pack_cache_load(struct gd_gemm_packed **out, const char *what, int64_t k, int64_t n, enum gd_dtype dtype)
{
    char key[KEY_BYTES];
    struct gd_map map;
    struct gd_error ignored = {0};
    char *path = cache.folder != NULL ? find_path(key, what, k, n, dtype) : NULL;
    if (path == NULL)
        return false;
    bool ok = gd_map_open(&map, path, &ignored);
    if (ok && !sound(&map, key)) {
        gd_log_warn("pack_cache", "path=%s state=unsound, it is made anew", path);
        gd_map_release(&map);
        (void)unlink(path);
        cache.stats.unsound++;
        ok = false;
    }
    if (ok) {
        ok = gd_gemm_packed_map(out, k, n, dtype, &map, HEADER_BYTES, &ignored);
        cache.stats.loaded += ok;
        (void)utimensat(AT_FDCWD, path, NULL, 0); /* used now */
    }
    gd_free(path);
    return ok;
}

static bool write_file(const char *temporary, const char *path, const struct header *header, const void *data, struct gd_error *err)
{
    static const char padding[HEADER_BYTES - sizeof(struct header)];
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return gd_fail_errno(err, errno, "create %s", temporary);
    bool ok = gd_write_all(fd, header, sizeof(*header), temporary, err) && gd_write_all(fd, padding, sizeof(padding), temporary, err) &&
              gd_write_all(fd, data, header->data_bytes, temporary, err);
    if (close(fd) != 0 && ok)
        ok = gd_fail_errno(err, errno, "close %s", temporary);
    if (ok && rename(temporary, path) != 0)
        ok = gd_fail_errno(err, errno, "rename %s", temporary);
    if (!ok)
        (void)unlink(temporary);
    return ok;
}

/* No fsync: what a crash leaves unwritten does not pass its checksum. */
void gd_pack_cache_store(const struct gd_gemm_packed *packed, const char *what, int64_t k, int64_t n, enum gd_dtype dtype)
{
    static unsigned number;
    struct header header = {.data_bytes = gd_gemm_packed_size(packed)};
    struct statvfs disk;
    struct gd_error err = {0};
    uint64_t bytes = header.data_bytes + HEADER_BYTES;
    char *path = cache.folder != NULL && bytes <= cache.max_bytes ? find_path(header.key, what, k, n, dtype) : NULL;
    if (path == NULL)
        return;
    _Static_assert(sizeof(struct header) <= HEADER_BYTES, "a header is a page");
    memcpy(header.magic, magic, sizeof(magic));
    gd_hash_xxh3(gd_gemm_packed_data(packed), header.data_bytes, header.data_hash);
    evict_for(bytes);
    char *temporary = gd_format("%s/.tmp-%ld-%u", cache.folder, (long)getpid(), number++);
    bool room = statvfs(cache.folder, &disk) != 0 || (uint64_t)disk.f_bavail * disk.f_frsize >= GD_PACK_CACHE_FREE_BYTES + bytes;
    if (!room)
        gd_fail(&err, GD_DISK_FULL, "less than %" PRIu64 " MiB are free at %s", GD_PACK_CACHE_FREE_BYTES >> 20, cache.folder);
    if (room && write_file(temporary, path, &header, gd_gemm_packed_data(packed), &err)) {
        cache.stats.stored++;
        cache.stats.bytes += bytes;
    } else if (!cache.told) {
        cache.told = true;
        gd_log_warn("pack_cache", "state=not_written, weights are laid out again at the next start: %s", err.message);
    }
    gd_free(temporary);
    gd_free(path);
}
