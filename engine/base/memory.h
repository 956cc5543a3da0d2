/*
 * memory.h - how much memory there is, and how much of it this process has.
 *
 * Why      Work that does not fit is refused before it begins; what slips through fails as an error and not by the kernel's
 *          hand: large blocks stop at the limit.
 * Memory   none
 * Threads  Any.
 * Errors   none
 * Limits   none
 * Life     gd_memory_set_limit once, before the first large block
 *
 * Pages of mapped files are not counted: the kernel takes them back when it needs them.
 */
#ifndef GD_BASE_MEMORY_H
#define GD_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes that this process may use at most: the machine's memory, or less where its control group (version 1 or 2, or one
 * above it), RLIMIT_AS or gd_memory_set_limit says so. */
size_t gd_memory_bytes(void);
/* From now on gd_large_alloc refuses what would exceed `bytes` less what small blocks and libraries need; 0: no limit. */
void gd_memory_set_limit(size_t bytes);
size_t gd_memory_limit(void);       /* SIZE_MAX: none */

/* The key/value cache's part of `bytes` where nobody says otherwise: an eighth, from 512 MiB to 64 GiB, but never more than a
 * quarter: a request without max_tokens reserves pages for the whole context. */
size_t gd_memory_cache_share(size_t bytes);

size_t gd_memory_room(void);        /* for further large blocks */

/* Generated code and scratch of the library that multiplies, thread stacks, heap that is not given back. */
#define GD_MEMORY_LIBRARY_BYTES ((size_t)10 << 20)

/* From now on what is told above, taken and given is memory of a device with `bytes` of its own, and blocks of the host do not count. */
void gd_memory_count_device(size_t bytes);
bool gd_memory_of_device(void);

/* Large blocks (alloc.c), or the blocks of a device. */
bool gd_memory_take(size_t bytes);
void gd_memory_give(size_t bytes);
size_t gd_memory_taken(void);

void gd_memory_note_start(void);    /* the program and its libraries are there, and nothing else; the first call counts */
size_t gd_memory_start(void);
/* What a process has beside its model's weights and its work: program, libraries and their scratch, a tokenizer of `vocab` entries. */
size_t gd_memory_process(int vocab);
size_t gd_memory_resident(void);    /* now, with touched pages of files */
size_t gd_memory_peak(void);        /* the most so far */

#endif
