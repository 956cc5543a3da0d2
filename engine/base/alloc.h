/*
 * alloc.h - small allocations that cannot fail, large ones that can.
 *
 * Why      A daemon on Linux meets exhaustion at large blocks (weights, arenas, caches): those
 *          return an error with the size. Small blocks end the process with a message; a
 *          worker is restarted by the server and its jobs continue from their checkpoint.
 * Memory   Free with gd_free (gd_alloc family) or gd_large_free (gd_large_alloc).
 * Threads  Any.
 * Errors   gd_large_alloc: GD_NO_MEMORY with the size and what for; also where memory.h's limit would be passed.
 * Limits   none
 * Life     none
 */
#ifndef GD_BASE_ALLOC_H
#define GD_BASE_ALLOC_H

#include "engine/base/error.h"
#include <stddef.h>

void *gd_alloc(size_t size_bytes);                       /* zeroed; never NULL */
void *gd_alloc_array(size_t count, size_t item_bytes);   /* zeroed, overflow checked; never NULL */
void *gd_realloc_array(void *old, size_t count, size_t item_bytes); /* new part not zeroed */
void gd_free(void *memory);
char *gd_strdup(const char *text);                       /* NULL gives NULL */
char *gd_strndup(const char *text, size_t length);
char *gd_format(const char *format, ...) __attribute__((format(printf, 1, 2))); /* yours to free */

/* Page-aligned (64-byte at least), zeroed lazily by the kernel. `what` names it in the error. */
GD_MUST_CHECK bool gd_large_alloc(void **out, size_t size_bytes, const char *what, struct gd_error *err);
void gd_large_free(void *memory, size_t size_bytes);

#endif
