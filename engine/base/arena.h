/*
 * arena.h - bump allocation for things that end together (a graph, a request, a parsed file).
 *
 * Why      One release instead of many frees; no half-freed structures on error paths.
 * Memory   The arena owns all blocks; gd_arena_release returns them.
 * Threads  One thread at a time.
 * Errors   none (small blocks, see alloc.h)
 * Limits   none
 * Life     `struct gd_arena arena = {0};` -> alloc ... -> gd_arena_release (reusable afterwards).
 */
#ifndef GD_BASE_ARENA_H
#define GD_BASE_ARENA_H

#include <stddef.h>

struct gd_arena_block;
struct gd_arena {
    struct gd_arena_block *head;
};

void *gd_arena_alloc(struct gd_arena *arena, size_t size_bytes);               /* zeroed, 16-byte aligned */
void *gd_arena_alloc_array(struct gd_arena *arena, size_t count, size_t item_bytes);
char *gd_arena_strdup(struct gd_arena *arena, const char *text);
char *gd_arena_strndup(struct gd_arena *arena, const char *text, size_t length);
char *gd_arena_format(struct gd_arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));
void gd_arena_release(struct gd_arena *arena);

#endif
