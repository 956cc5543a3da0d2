/* fuzz.h - what the harnesses share: bytes as a file without touching the disk or in a folder, and contexts made once. */
#ifndef GD_TESTS_FUZZ_H
#define GD_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A path that holds the bytes until the descriptor is closed. */
static inline int gd_fuzz_file(const uint8_t *data, size_t size, char path[64])
{
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

/* Looks at every byte; the sanitizers complain where one is not there. */
static inline int gd_fuzz_touch(const void *bytes, size_t size)
{
    int zeros = 0;
    for (size_t i = 0; i < size; i++)
        zeros += ((const uint8_t *)bytes)[i] == 0;
    return zeros;
}

/* A file of `folder` anew; data NULL: none. */
static inline void gd_fuzz_put(const char *folder, const char *name, const void *data, size_t size)
{
    char path[96];
    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    (void)unlink(path);
    FILE *file = data != NULL ? fopen(path, "wb") : NULL;
    if (file == NULL)
        return;
    (void)fwrite(data, 1, size, file);
    (void)fclose(file);
}

#endif
