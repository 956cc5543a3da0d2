#include "storage/ballast.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define LEAST_BYTES (UINT64_C(256) << 10)
#define MOST_BYTES (UINT64_C(64) << 20)

void gd_ballast_take(const char *data_dir)
{
    struct statvfs disk;
    char *path = gd_format("%s/ballast", data_dir);
    uint64_t bytes = statvfs(data_dir, &disk) == 0 ? (uint64_t)disk.f_bavail * disk.f_frsize / 64 : 0;
    bytes = bytes < LEAST_BYTES ? LEAST_BYTES : bytes > MOST_BYTES ? MOST_BYTES : bytes;
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    int failed = fd < 0 ? -1 : posix_fallocate(fd, 0, (off_t)bytes);
    if (fd >= 0)
        (void)close(fd);
    if (failed != 0) {
        (void)unlink(path);
        gd_log_warn("store", "state=no_ballast bytes=%llu", (unsigned long long)bytes);
    }
    gd_free(path);
}

bool gd_ballast_drop(const char *data_dir)
{
    char *path = gd_format("%s/ballast", data_dir);
    bool dropped = unlink(path) == 0;
    if (dropped)
        gd_log_warn("store", "state=ballast_dropped reason=disk_full");
    gd_free(path);
    return dropped;
}
