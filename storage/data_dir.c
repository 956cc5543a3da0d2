/* The data folder: on a local disk, and for one server at a time. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "storage/db_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#define HOLDER_BYTES_MAX 128

/* Filesystems whose locks or shared memory do not hold what SQLite's WAL needs. */
static const struct {
    uint32_t magic;
    const char *name;
} refused[] = {
    {NFS_SUPER_MAGIC, "NFS"},   {SMB_SUPER_MAGIC, "SMB"},     {SMB2_SUPER_MAGIC, "SMB2"}, {CIFS_SUPER_MAGIC, "CIFS"},
    {FUSE_SUPER_MAGIC, "FUSE"}, {CODA_SUPER_MAGIC, "Coda"},   {AFS_SUPER_MAGIC, "AFS"},   {AFS_FS_MAGIC, "AFS"},
    {V9FS_MAGIC, "9P"},         {CEPH_SUPER_MAGIC, "Ceph"},   {NCP_SUPER_MAGIC, "NCP"},   {0x0BD00BD0u, "Lustre"},
};

static bool check_filesystem(const char *data_dir, struct gd_error *err)
{
    struct statfs facts;
    if (statfs(data_dir, &facts) != 0)
        return gd_fail_errno(err, errno, "data folder %s", data_dir);
    for (size_t i = 0; i < GD_COUNT(refused); i++)
        if ((uint32_t)facts.f_type == refused[i].magic)
            return gd_fail_param(err, GD_UNSUPPORTED, "data_dir",
                                 "data folder %s is on %s, where the database cannot keep its promises; "
                                 "choose a folder on a local disk", data_dir, refused[i].name);
    return true;
}

/* What the process that holds the lock wrote into it. */
static void read_holder(int fd, char out[HOLDER_BYTES_MAX])
{
    ssize_t got = pread(fd, out, HOLDER_BYTES_MAX - 1, 0);
    out[got > 0 ? got : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

static bool write_holder(int fd, const char *path, struct gd_error *err)
{
    char text[HOLDER_BYTES_MAX];
    time_t now = (time_t)gd_time_unix();
    struct tm utc;
    gmtime_r(&now, &utc);
    size_t length = (size_t)snprintf(text, sizeof(text), "process %ld, started ", (long)getpid());
    length += strftime(text + length, sizeof(text) - length, "%Y-%m-%d %H:%M:%S UTC\n", &utc);
    if (ftruncate(fd, 0) != 0)
        return gd_fail_errno(err, errno, "truncate %s", path);
    return gd_write_all(fd, text, length, path, err);
}

bool gd_data_dir_lock(const char *data_dir, int *lock_fd, struct gd_error *err)
{
    *lock_fd = -1;
    if (!gd_mkdirs(data_dir, err) || !check_filesystem(data_dir, err))
        return false;
    char *path = gd_format("%s/lock", data_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool ok = fd >= 0 || gd_fail_errno(err, errno, "open %s", path);
    if (ok && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        char holder[HOLDER_BYTES_MAX];
        int reason = errno;
        read_holder(fd, holder);
        if (reason == EWOULDBLOCK)
            ok = gd_fail_param(err, GD_CONFLICT, "data_dir",
                               "data folder %s is in use by another graftd (%s); stop it or choose another folder",
                               data_dir, holder[0] != '\0' ? holder : "unknown process");
        else
            ok = gd_fail_errno(err, reason, "lock %s", path);
    }
    ok = ok && write_holder(fd, path, err);
    if (!ok && fd >= 0)
        close(fd);
    gd_free(path);
    if (ok)
        *lock_fd = fd;
    return ok;
}

void gd_data_dir_unlock(int lock_fd)
{
    if (lock_fd >= 0)
        close(lock_fd);
}
