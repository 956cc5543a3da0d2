/* Memory of the device: chunks from the driver, blocks in them, neighbours that are free become one. */
#include "cuda/internal.h"
#include "engine/base/alloc.h"
#include "engine/base/memory.h"
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define ALIGN ((size_t)256)               /* what every kernel and the library's fastest ones want */
#define PAGE ((size_t)2 << 20)            /* the driver's own unit for large allocations */
#define CHUNK ((size_t)16 << 20)
#define SHARED_MOST ((size_t)64 << 20)    /* a larger block's chunk serves it alone, so that it goes back with it */

struct chunk;
struct block {
    struct chunk *chunk;
    struct block *before, *after;         /* neighbours in the chunk */
    struct block *next_free, **at_free;   /* at_free NULL: in use */
    struct block *next_in_bucket;         /* in use: found by its address */
    char *memory;
    size_t size;
};
struct chunk {
    char *memory;
    size_t size;
    bool own;                             /* made for one block: goes back to the driver when nothing in it is used */
};

#ifdef GD_CUDA_EMULATED
static size_t chunk_bytes = 0;            /* what reaches beyond a block is then beyond an allocation, and found */
#else
static size_t chunk_bytes = CHUNK;
#endif

#define BUCKETS 4096
static struct {
    struct block *free, *buckets[BUCKETS];
    struct chunk **chunks;                /* by address */
    size_t count, room;
    struct gd_cuda_memory memory;
} pool;

void gd_cuda_pool_set_chunk(size_t bytes)
{
    assert(pool.memory.used == 0);
    chunk_bytes = bytes;
}

struct gd_cuda_memory gd_cuda_memory(void)
{
    return pool.memory;
}

static struct block **bucket(const void *memory)
{
    return &pool.buckets[((uintptr_t)memory / ALIGN * UINT64_C(0x9E3779B97F4A7C15)) >> 52];
}

/* How many chunks begin at or before an address. */
static size_t chunks_up_to(const char *address)
{
    size_t low = 0, high = pool.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (pool.chunks[middle]->memory <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool gd_cuda_owns(const void *memory)
{
    size_t i = chunks_up_to(memory);
    return i > 0 && (const char *)memory < pool.chunks[i - 1]->memory + pool.chunks[i - 1]->size;
}

static void list_chunk(struct chunk *chunk)
{
    if (pool.count == pool.room) {
        pool.room = pool.room * 2 + 64;
        pool.chunks = gd_realloc_array(pool.chunks, pool.room, sizeof(*pool.chunks));
    }
    size_t at = chunks_up_to(chunk->memory);
    memmove(pool.chunks + at + 1, pool.chunks + at, (pool.count - at) * sizeof(*pool.chunks));
    pool.chunks[at] = chunk;
    pool.count++;
}

static void unlist_chunk(const struct chunk *chunk)
{
    size_t at = chunks_up_to(chunk->memory) - 1;
    assert(pool.chunks[at] == chunk);
    pool.count--;
    memmove(pool.chunks + at, pool.chunks + at + 1, (pool.count - at) * sizeof(*pool.chunks));
}

static void put_free(struct block *block)
{
    block->next_free = pool.free;
    block->at_free = &pool.free;
    if (pool.free != NULL)
        pool.free->at_free = &block->next_free;
    pool.free = block;
}

static void take_free(struct block *block)
{
    *block->at_free = block->next_free;
    if (block->next_free != NULL)
        block->next_free->at_free = block->at_free;
    block->at_free = NULL;
}

static void give_back(struct block *block)
{
    take_free(block);
    unlist_chunk(block->chunk);
    cudaFree(block->chunk->memory);
    gd_memory_give(block->chunk->size);
    pool.memory.taken -= block->chunk->size;
    gd_free(block->chunk);
    gd_free(block);
}

/* Chunks of which nothing is used. */
static bool give_back_idle(void)
{
    bool any = false;
    for (struct block *block = pool.free, *next; block != NULL; block = next) {
        next = block->next_free;
        if (block->size == block->chunk->size) {
            give_back(block);
            any = true;
        }
    }
    return any;
}

static bool new_chunk(size_t size, bool own, const char *what, struct gd_error *err)
{
    void *memory = NULL;
    if (!gd_memory_take(size) && !(give_back_idle() && gd_memory_take(size)))
        return gd_fail(err, GD_NO_MEMORY, "%.1f MiB for %s do not fit: %.1f of the device's %.1f MiB are in use", (double)size / 1048576,
                       what, (double)gd_memory_taken() / 1048576, (double)gd_memory_bytes() / 1048576);
    cudaError_t status = cudaMalloc(&memory, size);
    if (status == cudaErrorMemoryAllocation && give_back_idle()) {
        cudaGetLastError();
        status = cudaMalloc(&memory, size);
    }
    if (status != cudaSuccess) {
        gd_memory_give(size);
        char call[160];
        size_t free = 0, total = 0;
        if (status == cudaErrorMemoryAllocation && cudaMemGetInfo(&free, &total) == cudaSuccess)
            snprintf(call, sizeof(call), "cudaMalloc of %zu bytes (%zu of %zu are free)", size, free, total);
        else
            snprintf(call, sizeof(call), "cudaMalloc of %zu bytes", size);
        return gd_cuda_check(status, call, what, err);
    }
    struct chunk *chunk = gd_alloc(sizeof(*chunk));
    struct block *block = gd_alloc(sizeof(*block));
    *chunk = (struct chunk){.memory = memory, .size = size, .own = own};
    *block = (struct block){.chunk = chunk, .memory = memory, .size = size};
    pool.memory.taken += size;
    list_chunk(chunk);
    put_free(block);
    return true;
}

static struct block *best_fit(size_t size)
{
    struct block *best = NULL;
    for (struct block *block = pool.free; block != NULL; block = block->next_free)
        if (block->size >= size && (best == NULL || block->size < best->size))
            best = block;
    return best;
}

static void split(struct block *block, size_t size)
{
    struct block *rest = gd_alloc(sizeof(*rest));
    *rest = (struct block){.chunk = block->chunk, .before = block, .after = block->after, .memory = block->memory + size,
                           .size = block->size - size};
    if (rest->after != NULL)
        rest->after->before = rest;
    block->after = rest;
    block->size = size;
    put_free(rest);
}

bool gd_cuda_alloc(void **out, size_t bytes, const char *what, struct gd_error *err)
{
    assert(*out == NULL && !gd_cuda_capturing());
    if (bytes == 0)
        bytes = 1;
    if (bytes > SIZE_MAX / 2)
        return gd_fail(err, GD_NO_MEMORY, "%zu bytes for %s: more than there can be", bytes, what);
    size_t size = chunk_bytes == 0 ? bytes : (bytes + ALIGN - 1) / ALIGN * ALIGN;
    bool own = size > chunk_bytes / 4, alone = chunk_bytes == 0 || size > SHARED_MOST;
    struct block *block = alone ? NULL : best_fit(size);
    if (block == NULL) {
        size_t whole = !own ? chunk_bytes : chunk_bytes == 0 ? size : (size + PAGE - 1) / PAGE * PAGE;
        if (!new_chunk(whole, own, what, err))
            return false;
        block = pool.free;
    }
    take_free(block);
    if (block->size > size && !alone)
        split(block, size);
    block->next_in_bucket = *bucket(block->memory);
    *bucket(block->memory) = block;
    pool.memory.used += block->size;
    if (pool.memory.used > pool.memory.used_peak)
        pool.memory.used_peak = pool.memory.used;
    *out = block->memory;
    return true;
}

static struct block *join(struct block *left, struct block *right)
{
    left->size += right->size;
    left->after = right->after;
    if (right->after != NULL)
        right->after->before = left;
    gd_free(right);
    return left;
}

void gd_cuda_free(void *memory)
{
    if (memory == NULL)
        return;
    struct block **at = bucket(memory);
    while (*at != NULL && (*at)->memory != memory)
        at = &(*at)->next_in_bucket;
    struct block *block = *at;
    assert(block != NULL);
    *at = block->next_in_bucket;
    pool.memory.used -= block->size;
    if (block->after != NULL && block->after->at_free != NULL) {
        take_free(block->after);
        join(block, block->after);
    }
    if (block->before != NULL && block->before->at_free != NULL) {
        take_free(block->before);
        block = join(block->before, block);
    }
    put_free(block);
    if (block->chunk->own && block->size == block->chunk->size)
        give_back(block);
}
