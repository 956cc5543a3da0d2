#include "engine/base/memory.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static atomic_size_t limit, taken, taken_peak, start, device_bytes;

/* A number in a file, SIZE_MAX for "max" and where there is none. */
static size_t read_number(const char *path)
{
    char line[64], *end;
    FILE *file = fopen(path, "re");
    bool found = file != NULL && fgets(line, sizeof(line), file) != NULL;
    if (file != NULL)
        fclose(file);
    unsigned long long value = found ? strtoull(line, &end, 10) : 0;
    return found && end != line && value > 0 && value < SIZE_MAX ? (size_t)value : SIZE_MAX;
}

/* The least of a group's limit and those of the groups above it. */
static size_t least_above(const char *root, char *group, const char *name)
{
    size_t least = SIZE_MAX;
    for (;;) {
        char path[1024];
        snprintf(path, sizeof(path), "%s%s/%s", root, group, name);
        size_t one = read_number(path);
        least = one < least ? one : least;
        char *slash = strrchr(group, '/');
        if (slash == NULL)
            return least;
        *slash = '\0';
    }
}

/* Lines of /proc/self/cgroup: "0::/path" (version 2), "5:memory:/path" (version 1). */
static size_t group_limit(void)
{
    char line[600];
    size_t least = SIZE_MAX;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL)
            continue;
        *group++ = '\0';
        size_t one = SIZE_MAX;
        if (controllers[1] == '\0')
            one = least_above("/sys/fs/cgroup", group, "memory.max");
        else if (strcmp(controllers + 1, "memory") == 0)
            one = least_above("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
        least = one < least ? one : least;
    }
    if (file != NULL)
        fclose(file);
    return least;
}

size_t gd_memory_bytes(void)
{
    if (gd_memory_of_device())
        return gd_memory_limit();
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    size_t most = pages > 0 && page_bytes > 0 ? (size_t)pages * (size_t)page_bytes : SIZE_MAX, group = group_limit();
    struct rlimit space;
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY && space.rlim_cur < most)
        most = (size_t)space.rlim_cur;
    most = group < most ? group : most;
    return gd_memory_limit() < most ? gd_memory_limit() : most;
}

size_t gd_memory_cache_share(size_t bytes)
{
    const size_t least = (size_t)512 << 20, most = (size_t)64 << 30;
    size_t share = bytes / 8 < least ? least : bytes / 8 > most ? most : bytes / 8;
    return share < bytes / 4 ? share : bytes / 4;
}

void gd_memory_count_device(size_t bytes)
{
    atomic_store(&device_bytes, bytes);
    atomic_store(&taken, 0);
}

bool gd_memory_of_device(void)
{
    return atomic_load(&device_bytes) > 0;
}

void gd_memory_set_limit(size_t bytes)
{
    atomic_store(&limit, bytes);
}

size_t gd_memory_limit(void)
{
    size_t device = atomic_load(&device_bytes);
    if (device > 0)
        return device;
    size_t bytes = atomic_load(&limit);
    return bytes == 0 ? SIZE_MAX : bytes;
}

/* For all large blocks together. */
static size_t large_limit(void)
{
    size_t most = gd_memory_limit(), other = gd_memory_start() + GD_MEMORY_LIBRARY_BYTES;
    if (gd_memory_of_device())
        return gd_memory_bytes();
    return most == SIZE_MAX ? SIZE_MAX : most > other ? most - other : 0;
}

size_t gd_memory_room(void)
{
    size_t most = large_limit(), used = gd_memory_taken();
    return most == SIZE_MAX ? SIZE_MAX : most > used ? most - used : 0;
}

bool gd_memory_take(size_t bytes)
{
    size_t before = atomic_fetch_add(&taken, bytes), most = large_limit();
    if (bytes <= most && before <= most - bytes) {
        size_t now = before + bytes, peak = atomic_load(&taken_peak);
        while (now > peak && !atomic_compare_exchange_weak(&taken_peak, &peak, now))
            ;
        return true;
    }
    atomic_fetch_sub(&taken, bytes);
    return false;
}

void gd_memory_give(size_t bytes)
{
    atomic_fetch_sub(&taken, bytes);
}

size_t gd_memory_taken(void)
{
    return atomic_load(&taken);
}

#define VOCAB_ENTRY_BYTES 160 /* of a tokenizer, and its template */

size_t gd_memory_process(int vocab)
{
    return gd_memory_start() + GD_MEMORY_LIBRARY_BYTES + (size_t)vocab * VOCAB_ENTRY_BYTES;
}

size_t gd_memory_resident(void)
{
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL)
        return 0;
    if (fscanf(file, "%*u %llu", &pages) != 1)
        pages = 0;
    fclose(file);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

void gd_memory_note_start(void)
{
    size_t unknown = 0;
    atomic_compare_exchange_strong(&start, &unknown, gd_memory_resident());
}

size_t gd_memory_start(void)
{
    return atomic_load(&start);
}

size_t gd_memory_peak(void)
{
    if (gd_memory_of_device())
        return atomic_load(&taken_peak);
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (size_t)usage.ru_maxrss * 1024 : 0;
}
