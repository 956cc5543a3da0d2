#include "engine/base/arena.h"
#include "engine/base/alloc.h"

#include <assert.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define ALIGN_BYTES 16u
#define BLOCK_BYTES_MIN 4096u
#define BLOCK_BYTES_MAX ((size_t)1 << 20)

struct gd_arena_block {
    struct gd_arena_block *next;
    size_t used, capacity;
    _Alignas(ALIGN_BYTES) unsigned char bytes[];
};

/* Blocks double from 4 KiB to 1 MiB, so that a small arena stays small and a large one has few blocks. */
static struct gd_arena_block *new_block(const struct gd_arena *arena, size_t needed)
{
    size_t capacity = BLOCK_BYTES_MIN;
    if (arena->head != NULL)
        capacity = arena->head->capacity < BLOCK_BYTES_MAX / 2 ? arena->head->capacity * 2 : BLOCK_BYTES_MAX;
    if (capacity < needed)
        capacity = needed;
    size_t total = SIZE_MAX; /* too large: gd_alloc ends the process with the size */
    (void)__builtin_add_overflow(capacity, sizeof(struct gd_arena_block), &total);
    struct gd_arena_block *block = gd_alloc(total < capacity ? SIZE_MAX : total);
    block->capacity = capacity;
    return block;
}

void *gd_arena_alloc(struct gd_arena *arena, size_t size_bytes)
{
    size_t rounded = size_bytes == 0 ? ALIGN_BYTES : size_bytes;
    if (rounded > SIZE_MAX - ALIGN_BYTES)
        return gd_alloc(SIZE_MAX);
    rounded = (rounded + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    struct gd_arena_block *block = arena->head;
    if (block == NULL || block->capacity - block->used < rounded) {
        block = new_block(arena, rounded);
        /* A block made for one large piece goes behind the head, whose free room is still of use. */
        if (arena->head != NULL && rounded > BLOCK_BYTES_MAX / 2) {
            block->next = arena->head->next;
            arena->head->next = block;
        } else {
            block->next = arena->head;
            arena->head = block;
        }
    }
    void *memory = block->bytes + block->used;
    block->used += rounded;
    assert(block->used <= block->capacity);
    return memory;
}

void *gd_arena_alloc_array(struct gd_arena *arena, size_t count, size_t item_bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, item_bytes, &total))
        return gd_alloc_array(count, item_bytes); /* ends the process with both factors */
    return gd_arena_alloc(arena, total);
}

char *gd_arena_strdup(struct gd_arena *arena, const char *text)
{
    return text == NULL ? NULL : gd_arena_strndup(arena, text, strlen(text));
}

char *gd_arena_strndup(struct gd_arena *arena, const char *text, size_t length)
{
    if (text == NULL)
        return NULL;
    size_t used = strnlen(text, length);
    char *copy = gd_arena_alloc(arena, used + 1);
    memcpy(copy, text, used);
    return copy;
}

char *gd_arena_format(struct gd_arena *arena, const char *format, ...)
{
    assert(format != NULL);
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    int length = vsnprintf(NULL, 0, format, list);
    va_end(list);
    assert(length >= 0);
    char *text = gd_arena_alloc(arena, (size_t)length + 1);
    (void)vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

void gd_arena_release(struct gd_arena *arena)
{
    struct gd_arena_block *block = arena->head;
    while (block != NULL) {
        struct gd_arena_block *next = block->next;
        gd_free(block);
        block = next;
    }
    arena->head = NULL;
}
