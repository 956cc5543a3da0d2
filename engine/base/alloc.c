#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "engine/base/memory.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE_FROM_BYTES ((size_t)4 << 20) /* below this, huge pages waste more than they speed up */

static _Noreturn void out_of_memory(size_t count, size_t item_bytes)
{
    gd_log_error("memory", "error=out_of_memory count=%zu item_bytes=%zu", count, item_bytes);
    abort();
}

void *gd_alloc(size_t size_bytes)
{
    return gd_alloc_array(size_bytes, 1);
}

void *gd_alloc_array(size_t count, size_t item_bytes)
{
    bool empty = count == 0 || item_bytes == 0;
    void *memory = empty ? calloc(1, 1) : calloc(count, item_bytes); /* calloc checks the product */
    if (memory == NULL)
        out_of_memory(count, item_bytes);
    return memory;
}

void *gd_realloc_array(void *old, size_t count, size_t item_bytes)
{
    bool empty = count == 0 || item_bytes == 0;
    void *memory = empty ? realloc(old, 1) : reallocarray(old, count, item_bytes);
    if (memory == NULL)
        out_of_memory(count, item_bytes);
    return memory;
}

void gd_free(void *memory)
{
    free(memory);
}

char *gd_strdup(const char *text)
{
    return text == NULL ? NULL : gd_strndup(text, strlen(text));
}

char *gd_strndup(const char *text, size_t length)
{
    if (text == NULL)
        return NULL;
    size_t used = strnlen(text, length);
    if (used == SIZE_MAX)
        out_of_memory(used, 1);
    char *copy = gd_alloc(used + 1);
    memcpy(copy, text, used);
    return copy;
}

char *gd_format(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    char *text = NULL;
    int length = vasprintf(&text, format, list);
    va_end(list);
    if (length < 0)
        out_of_memory(0, 1);
    return text;
}

/* The mapped size for `size_bytes`: whole pages, at least one. 0 when it does not fit the address space. */
static size_t mapped_bytes(size_t size_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size_bytes > (size_t)PTRDIFF_MAX - page)
        return 0;
    return size_bytes == 0 ? page : (size_bytes + page - 1) / page * page;
}

bool gd_large_alloc(void **out, size_t size_bytes, const char *what, struct gd_error *err)
{
    *out = NULL;
    size_t mapped = mapped_bytes(size_bytes);
    if (mapped == 0)
        return gd_fail(err, GD_NO_MEMORY, "%zu bytes for %s are more than the address space holds", size_bytes, what);
    bool counts = !gd_memory_of_device();
    if (counts && !gd_memory_take(mapped))
        return gd_fail(err, GD_NO_MEMORY, "%.1f MiB for %s do not fit: %.1f of the limit of %.1f MiB are in use", (double)size_bytes / 1048576.0,
                       what, (double)gd_memory_taken() / 1048576.0, (double)gd_memory_limit() / 1048576.0);
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        if (counts)
            gd_memory_give(mapped);
        return gd_fail(err, GD_NO_MEMORY, "%zu bytes (%.1f MiB) for %s are not available", size_bytes,
                       (double)size_bytes / 1048576.0, what);
    }
    if (mapped >= HUGE_PAGE_FROM_BYTES)
        (void)madvise(memory, mapped, MADV_HUGEPAGE); /* only advice: a kernel without huge pages refuses it */
    *out = memory;
    return true;
}

void gd_large_free(void *memory, size_t size_bytes)
{
    if (memory == NULL)
        return;
    (void)munmap(memory, mapped_bytes(size_bytes));
    if (!gd_memory_of_device())
        gd_memory_give(mapped_bytes(size_bytes));
}
