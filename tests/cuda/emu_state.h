/*
 * emu_state.h - what the emulator's files share: the block that runs, its threads, and memory.
 *
 * Why      Fibres (emu.cpp), warps (emu_warp.cpp), memory (emu_memory.cpp) and the race detector (check.cpp) see one state.
 * Memory   One static state; carriers and allocations are never destroyed before the process ends.
 * Threads  The one that runs kernels.
 * Errors   emu_fail() ends the launch and does not return.
 * Limits   EMU_THREADS threads a block, EMU_ARENA_BYTES of shared memory with its gaps.
 * Life     none
 */
#ifndef GD_TESTS_CUDA_EMU_STATE_H
#define GD_TESTS_CUDA_EMU_STATE_H

#include "tests/cuda/emu.h"

#include <vector>

#define EMU_THREADS 1024
#define EMU_WARPS (EMU_THREADS / 32)
#define EMU_MEETINGS 4                 /* of one warp at a time, with masks that do not overlap */
#define EMU_GAP 64
#define EMU_ARENA_BYTES (320 * 1024)
#define EMU_SLOTS 64
#define EMU_STATIC_BYTES_MAX (48 * 1024)

struct emu_carrier {
    void *context;                     /* where it goes on */
    char *stack;
    size_t stack_bytes;
    void *fake_stack;                  /* AddressSanitizer's */
    emu_carrier *next_free;
};

struct emu_meeting;
typedef void (*emu_compute)(emu_meeting *meeting);

struct emu_meeting {
    const char *what, *file;
    int line;
    unsigned mask, arrived;
    void *args[32];
    const void *pc[32];                /* the call in the kernel */
};

struct emu_warp {
    unsigned exists, ready, done;
    uint32_t interval;                 /* raised by a full __syncwarp */
    int meeting_count;
    emu_meeting meetings[EMU_MEETINGS];
};

struct emu_copy {                      /* a cp.async under way */
    void *shared;
    const void *global;
    int bytes;
    const void *pc;
};

struct emu_thread {
    emu_carrier *carrier;              /* NULL: has not begun, or is done */
    const char *what, *file;           /* waits there */
    int line;
    std::vector<emu_copy> copies;
    std::vector<size_t> groups;        /* committed: index behind the last copy of each */
};

struct emu_slot {                      /* an array in shared memory */
    const emu_site *site;              /* NULL: the dynamic one */
    size_t start, bytes;               /* in the arena */
};

struct emu_allocation {
    uintptr_t start;
    size_t bytes;
    const char *name;
    void *shadow;                      /* check.cpp's */
};

struct emu_state {
    const emu_kernel *kernel;          /* NULL: none runs */
    uint32_t block_serial;             /* of the block that runs; never repeats */
    uint32_t launch_serial;            /* of its launch's first block */
    uint32_t interval;                 /* raised by __syncthreads */
    int thread_count, warp_count;
    int current;                       /* thread */
    emu_carrier *carrier;              /* its */
    unsigned warps_ready;
    int done_count;
    emu_warp warps[EMU_WARPS];
    emu_thread threads[EMU_THREADS];
    uint3 index[EMU_THREADS];
    const char *barrier_what, *barrier_file;
    int barrier_line, barrier_count, barrier_sum, barrier_result;
    unsigned char *arena;
    size_t arena_used;
    int slot_count;
    emu_slot slots[EMU_SLOTS];         /* slot 0 is the dynamic array */
    size_t static_bytes;
    emu_settings settings;
    emu_order order;                   /* of this launch */
    emu_counts counts;
};
extern emu_state emu;

/* The message is preceded by kernel, block and thread. */
[[noreturn]] void emu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Waits until all lanes of the mask are here; the last one runs `compute`. */
void emu_meet(const char *what, unsigned mask, void *args, emu_compute compute, const void *pc, const char *file, int line);
void emu_rotate(bool at_barrier);

enum emu_access { EMU_READ = 0, EMU_WRITE = 1, EMU_ATOMIC = 2, EMU_UNWRITTEN = 4 }; /* the last: a write under way */
/* An access by the emulator on behalf of `thread`: fails where it is out of bounds or misaligned. */
void emu_touch(int thread, const void *pointer, size_t bytes, unsigned access, const void *pc);

size_t emu_dynamic_limit(const void *function);
emu_allocation *emu_allocation_of(uintptr_t address);  /* NULL: none */
const emu_slot *emu_slot_of(uintptr_t address);        /* an array of the arena, or NULL */
void emu_describe(uintptr_t address, char *out, size_t size);
void emu_memory_block_begin(void);
void emu_copies_forgotten(void);

/* check.cpp; NULL where it is not linked in. */
void emu_check_access(int thread, const void *pointer, size_t bytes, unsigned access, const void *pc) __attribute__((weak));
void emu_check_register(emu_allocation *allocation) __attribute__((weak));
void emu_check_unregister(emu_allocation *allocation) __attribute__((weak));
enum emu_mark { EMU_MARK_WRITTEN, EMU_MARK_NEVER, EMU_MARK_FORBIDDEN };
void emu_check_mark(emu_allocation *allocation, size_t offset, size_t bytes, emu_mark mark) __attribute__((weak));
/* Offset of the first byte in the range that may not be read, or `bytes`. */
size_t emu_check_readable(emu_allocation *allocation, size_t offset, size_t bytes) __attribute__((weak));

extern "C" {
void __asan_poison_memory_region(void const volatile *pointer, size_t bytes) __attribute__((weak));
void __asan_unpoison_memory_region(void const volatile *pointer, size_t bytes) __attribute__((weak));
void *__asan_region_is_poisoned(void *pointer, size_t bytes) __attribute__((weak));
void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void *save, const void **bottom, size_t *size) __attribute__((weak));
}

#endif
