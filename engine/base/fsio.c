#include "engine/base/fsio_internal.h"
#include "engine/base/alloc.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TREE_DEPTH_MAX 64

/* Opens a regular file for reading. Non-blocking, so that a named pipe in its place cannot hang the caller. */
static bool open_regular(const char *path, int *fd, struct stat *facts, struct gd_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return gd_fail_errno(err, errno, "open %s", path);
    bool ok = fstat(*fd, facts) == 0 || gd_fail_errno(err, errno, "stat %s", path);
    if (ok && !S_ISREG(facts->st_mode))
        ok = gd_fail(err, GD_INVALID, "%s is %s, not a regular file", path,
                     S_ISDIR(facts->st_mode) ? "a folder" : "a device, pipe or socket");
    if (!ok)
        close(*fd);
    return ok;
}

bool gd_map_open(struct gd_map *map, const char *path, struct gd_error *err)
{
    static const unsigned char nothing[1];
    *map = (struct gd_map){.data = nothing};
    int fd;
    struct stat facts;
    if (!open_regular(path, &fd, &facts, err))
        return false;
    bool ok = true;
    if ((uintmax_t)facts.st_size > (uintmax_t)PTRDIFF_MAX) {
        ok = gd_fail(err, GD_TOO_LARGE, "%s has %jd bytes, more than can be mapped", path, (intmax_t)facts.st_size);
    } else if (facts.st_size > 0) {
        void *data = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            ok = gd_fail_errno(err, errno, "map %s (%jd bytes)", path, (intmax_t)facts.st_size);
        else
            *map = (struct gd_map){.data = data, .size_bytes = (size_t)facts.st_size};
    }
    close(fd);
    return ok;
}

void gd_map_forget(const struct gd_map *map, size_t offset, size_t length)
{
    assert(offset <= map->size_bytes);
    assert(length <= map->size_bytes - offset);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t start = (offset + page - 1) / page * page; /* pages shared with a neighbour stay */
    size_t end = (offset + length) / page * page;
    if (start < end)
        (void)madvise((void *)(uintptr_t)(map->data + start), end - start, MADV_DONTNEED);
}

void gd_map_release(struct gd_map *map)
{
    if (map->size_bytes > 0)
        (void)munmap((void *)(uintptr_t)map->data, map->size_bytes);
    *map = (struct gd_map){.data = NULL};
}

bool gd_file_read(const char *path, size_t size_max, char **data, size_t *length, struct gd_error *err)
{
    *data = NULL;
    *length = 0;
    int fd;
    struct stat facts;
    if (!open_regular(path, &fd, &facts, err))
        return false;
    size_t used = 0, capacity = 0;
    char *bytes = NULL;
    bool ok = true;
    /* The size that stat gives is a hint: a file may grow, and those of /proc say 0. */
    if ((uintmax_t)facts.st_size > size_max)
        ok = gd_fail(err, GD_TOO_LARGE, "%s has %jd bytes, the limit is %zu", path, (intmax_t)facts.st_size, size_max);
    while (ok) {
        if (capacity - used < 2) {
            capacity = used == 0 ? (size_t)facts.st_size + 2 : capacity + capacity / 2 + 4096;
            bytes = gd_realloc_array(bytes, capacity, 1);
        }
        ssize_t got = read(fd, bytes + used, capacity - used - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            ok = gd_fail_errno(err, errno, "read %s", path);
        if (got <= 0)
            break;
        used += (size_t)got;
        if (used > size_max)
            ok = gd_fail(err, GD_TOO_LARGE, "%s has more than %zu bytes, the limit", path, size_max);
    }
    close(fd);
    if (!ok) {
        gd_free(bytes);
        return false;
    }
    bytes[used] = '\0';
    *data = bytes;
    *length = used;
    return true;
}

bool gd_write_all(int fd, const void *bytes, size_t length, const char *path, struct gd_error *err)
{
    const unsigned char *at = bytes;
    while (length > 0) {
        ssize_t wrote = write(fd, at, length);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote < 0)
            return gd_fail_errno(err, errno, "write %s", path);
        at += wrote;
        length -= (size_t)wrote;
    }
    return true;
}

/* The folder that holds `path`: "a/b/" -> "a", "b" -> ".", "/b" -> "/". */
static bool parent_of(const char *path, char out[GD_PATH_BYTES_MAX], struct gd_error *err)
{
    size_t length = strlen(path);
    if (length == 0 || length >= GD_PATH_BYTES_MAX)
        return gd_fail(err, GD_IO, "a path of %zu bytes is not usable (1 to %d)", length, GD_PATH_BYTES_MAX - 1);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    (void)snprintf(out, GD_PATH_BYTES_MAX, "%.*s", length == 0 ? 1 : (int)length, length == 0 ? "." : path);
    return true;
}

bool gd_fsync_parent(const char *path, struct gd_error *err)
{
    char parent[GD_PATH_BYTES_MAX];
    return parent_of(path, parent, err) && gd_fsync_dir(parent, err);
}

bool gd_file_write_durable(const char *path, const void *bytes, size_t length, struct gd_error *err)
{
    char suffix[13];
    gd_random_id(suffix, sizeof(suffix) - 1);
    char *temporary = gd_format("%s.tmp-%s", path, suffix);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        gd_fail_errno(err, errno, "create %s", temporary);
        gd_free(temporary);
        return false;
    }
    bool ok = gd_write_all(fd, bytes, length, temporary, err);
    if (ok && fsync(fd) != 0)
        ok = gd_fail_errno(err, errno, "fsync %s", temporary);
    if (close(fd) != 0 && ok)
        ok = gd_fail_errno(err, errno, "close %s", temporary);
    if (ok && rename(temporary, path) != 0)
        ok = gd_fail_errno(err, errno, "rename %s to %s", temporary, path);
    if (!ok)
        (void)unlink(temporary);
    gd_free(temporary);
    return ok && gd_fsync_parent(path, err);
}

bool gd_fsync_dir(const char *path, struct gd_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return gd_fail_errno(err, errno, "open folder %s", path);
    bool ok = fsync(fd) == 0 || gd_fail_errno(err, errno, "fsync folder %s", path);
    close(fd);
    return ok;
}

/* One folder of gd_mkdirs. A new one is made durable in its parent; one that is there already is fine. */
static bool make_folder(const char *path, struct gd_error *err)
{
    if (mkdir(path, 0700) == 0)
        return gd_fsync_parent(path, err);
    struct stat facts;
    if (errno == EEXIST && stat(path, &facts) == 0)
        return S_ISDIR(facts.st_mode) || gd_fail(err, GD_IO, "%s is there, but is not a folder", path);
    return gd_fail_errno(err, errno, "create folder %s", path);
}

bool gd_mkdirs(const char *path, struct gd_error *err)
{
    char part[GD_PATH_BYTES_MAX];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof(part))
        return gd_fail(err, GD_IO, "a folder path of %zu bytes is not usable (1 to %d)", length, GD_PATH_BYTES_MAX - 1);
    memcpy(part, path, length + 1);
    for (size_t i = 1; i < length; i++) {
        if (part[i] != '/' || part[i - 1] == '/')
            continue;
        part[i] = '\0';
        struct stat facts;
        if (stat(part, &facts) != 0 && !make_folder(part, err))
            return false;
        part[i] = '/';
    }
    return make_folder(part, err);
}

static bool remove_at(int parent_fd, const char *name, const char *path, int depth, struct gd_error *err);

static bool remove_children(int fd, const char *path, int depth, struct gd_error *err)
{
    DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        gd_fail_errno(err, errno, "read folder %s", path);
        close(fd);
        return false;
    }
    bool ok = true;
    struct dirent *entry;
    while (ok && (errno = 0, entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char *child = gd_format("%s/%s", path, entry->d_name);
        ok = remove_at(dirfd(dir), entry->d_name, child, depth + 1, err);
        gd_free(child);
    }
    if (ok && errno != 0)
        ok = gd_fail_errno(err, errno, "read folder %s", path);
    closedir(dir);
    return ok;
}

/* By descriptor and without following links: a link swapped in during the walk is removed, not walked. */
static bool remove_at(int parent_fd, const char *name, const char *path, int depth, struct gd_error *err)
{
    if (unlinkat(parent_fd, name, 0) == 0 || errno == ENOENT)
        return true;
    if (errno != EISDIR && errno != EPERM)
        return gd_fail_errno(err, errno, "remove %s", path);
    if (depth > TREE_DEPTH_MAX)
        return gd_fail(err, GD_IO, "%s is nested deeper than %d folders; remove it by hand", path, TREE_DEPTH_MAX);
    int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return gd_fail_errno(err, errno, "remove %s", path);
    if (!remove_children(fd, path, depth, err))
        return false;
    if (unlinkat(parent_fd, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        return gd_fail_errno(err, errno, "remove folder %s", path);
    return true;
}

bool gd_remove_tree(const char *path, struct gd_error *err)
{
    return remove_at(AT_FDCWD, path, path, 0, err);
}

void gd_random_bytes(void *out, size_t length)
{
    unsigned char *at = out;
    while (length > 0) {
        ssize_t got = getrandom(at, length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            abort(); /* a kernel without getrandom: nothing here may guess instead */
        at += got;
        length -= (size_t)got;
    }
}

void gd_random_id(char *out, size_t length)
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    for (size_t used = 0; used < length;) {
        unsigned char bytes[64];
        gd_random_bytes(bytes, sizeof(bytes));
        for (size_t i = 0; i < sizeof(bytes) && used < length; i++)
            if (bytes[i] < 252) /* 7 * 36: the rest would favour the first digits */
                out[used++] = digits[bytes[i] % 36];
    }
    out[length] = '\0';
}

static struct timespec read_clock(clockid_t clock)
{
    struct timespec now = {0};
    (void)clock_gettime(clock, &now);
    return now;
}

int64_t gd_time_unix(void)
{
    return read_clock(CLOCK_REALTIME).tv_sec;
}

double gd_time_unix_fraction(void)
{
    struct timespec now = read_clock(CLOCK_REALTIME);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double gd_time_monotonic(void)
{
    struct timespec now = read_clock(CLOCK_MONOTONIC);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

bool gd_path_exists(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0;
}

bool gd_path_is_file(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0 && S_ISREG(facts.st_mode);
}
