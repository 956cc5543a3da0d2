#include "server/spool.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>
#include <xxhash.h>

struct gd_spool {
    uv_work_t work;
    uv_loop_t *loop;
    int fd;
    char *path;
    char *block;
    size_t block_used, block_capacity;
    uint64_t bytes;
    XXH3_state_t *hash;
    char xxh3[33];
    bool busy, finishing, taken, destroyed;
    struct gd_error err;
    gd_spool_done done;
    void *context;
};

bool gd_spool_open(struct gd_spool **out, struct uv_loop_s *loop, const char *folder, struct gd_error *err)
{
    char id[17];
    gd_random_id(id, 16);
    char *path = gd_format("%s/body-%s", folder, id);
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        gd_fail_errno(err, errno, "create %s", path);
        gd_free(path);
        return false;
    }
    struct gd_spool *spool = gd_alloc(sizeof(*spool));
    spool->loop = loop;
    spool->fd = fd;
    spool->path = path;
    spool->hash = XXH3_createState();
    XXH3_128bits_reset(spool->hash);
    *out = spool;
    return true;
}

void gd_spool_append(struct gd_spool *spool, const void *bytes, size_t length)
{
    if (spool->block_used + length > spool->block_capacity) {
        size_t capacity = spool->block_used + length;
        if (capacity < GD_SPOOL_BLOCK_BYTES + (64u << 10))
            capacity = GD_SPOOL_BLOCK_BYTES + (64u << 10);
        spool->block = gd_realloc_array(spool->block, capacity, 1);
        spool->block_capacity = capacity;
    }
    memcpy(spool->block + spool->block_used, bytes, length);
    spool->block_used += length;
    spool->bytes += length;
}

bool gd_spool_full(const struct gd_spool *spool)
{
    return spool->block_used >= GD_SPOOL_BLOCK_BYTES;
}

bool gd_spool_busy(const struct gd_spool *spool)
{
    return spool->busy;
}

static void close_file(struct gd_spool *spool)
{
    if (spool->fd >= 0)
        close(spool->fd);
    spool->fd = -1;
}

static void work(uv_work_t *request)
{
    struct gd_spool *spool = request->data;
    if (spool->err.code != GD_OK)
        return;
    XXH3_128bits_update(spool->hash, spool->block, spool->block_used);
    bool ok = gd_write_all(spool->fd, spool->block, spool->block_used, spool->path, &spool->err);
    spool->block_used = 0;
    if (!ok || !spool->finishing)
        return;
    if (fsync(spool->fd) != 0) {
        gd_fail_errno(&spool->err, errno, "fsync %s", spool->path);
        return;
    }
    close_file(spool);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(spool->hash));
    for (int i = 0; i < 16; i++)
        snprintf(spool->xxh3 + 2 * i, 3, "%02x", canonical.digest[i]);
}

static void release(struct gd_spool *spool)
{
    close_file(spool);
    if (!spool->taken)
        unlink(spool->path);
    XXH3_freeState(spool->hash);
    gd_free(spool->path);
    gd_free(spool->block);
    gd_free(spool);
}

static void after(uv_work_t *request, int status)
{
    struct gd_spool *spool = request->data;
    spool->busy = false;
    if (spool->destroyed) {
        release(spool);
        return;
    }
    spool->done(spool->context, &spool->err);
}

static void start(struct gd_spool *spool, gd_spool_done done, void *context)
{
    spool->done = done;
    spool->context = context;
    spool->busy = true;
    spool->work.data = spool;
    uv_queue_work(spool->loop, &spool->work, work, after);
}

void gd_spool_flush(struct gd_spool *spool, gd_spool_done done, void *context)
{
    start(spool, done, context);
}

void gd_spool_finish(struct gd_spool *spool, gd_spool_done done, void *context)
{
    spool->finishing = true;
    start(spool, done, context);
}

uint64_t gd_spool_bytes(const struct gd_spool *spool)
{
    return spool->bytes;
}

const char *gd_spool_path(const struct gd_spool *spool)
{
    return spool->path;
}

const char *gd_spool_xxh3(const struct gd_spool *spool)
{
    return spool->xxh3;
}

void gd_spool_take(struct gd_spool *spool)
{
    spool->taken = true;
}

void gd_spool_destroy(struct gd_spool *spool)
{
    if (spool == NULL)
        return;
    if (spool->busy)
        spool->destroyed = true;
    else
        release(spool);
}
