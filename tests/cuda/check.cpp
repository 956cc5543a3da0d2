/* The race detector. Kernels are compiled with -fsanitize=thread, which puts a call before every access that is not provably
 * local; the binary is linked without libtsan, and these are the functions that are called. Every cell of memory remembers
 * its last write and its reads; two accesses by different threads of which one writes must be ordered by a barrier.
 * Kept out of line, compiled without instrumentation. */
#include "tests/cuda/emu_state.h"

#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PAGE_BITS 10
#define PAGE_BYTES (1u << PAGE_BITS)

enum { WRITTEN = 1, ATOMIC = 2, OF_LANES = 4, OF_WARPS = 8, OF_BLOCKS = 16, READ_BY_BLOCKS = 32, FORBIDDEN = 64 };

struct cell {
    uint32_t write_block, write_interval, write_warp_interval;
    uint16_t write_thread;
    uint8_t flags;              /* OF_*: atomics of several that nothing orders */
    uint8_t read_warp;          /* the last to read: its lanes are known */
    uint32_t write_pc;
    uint32_t read_block, read_interval, read_warp_interval, read_warps, read_lanes;
    uint32_t read_pc;
};

struct page {
    cell *cells;                /* NULL: all as `flags` says, by nobody */
    uint8_t shift;              /* log2 of the bytes of a cell */
    uint8_t flags;
};

struct shadow {
    size_t page_count;
    page *pages;
};

static shadow arena_shadow;
static cell *free_cells[3];     /* by shift, chained through the first bytes */

/* ---- the program's own addresses ---- */

extern "C" char __executable_start, __data_start;

static uintptr_t load_base(void)
{
    static uintptr_t base = ~(uintptr_t)0;
    if (base == ~(uintptr_t)0)
        dl_iterate_phdr(
            [](dl_phdr_info *info, size_t, void *out) {
                *(uintptr_t *)out = info->dlpi_addr; /* the first is the program */
                return 1;
            },
            &base);
    return base;
}

static uint32_t short_pc(const void *pc)
{
    return (uint32_t)((uintptr_t)pc - load_base());
}

/* "name at file:line" of the call before this address, outermost caller of inlined functions last. */
static void describe_line(uint32_t pc, char *out, size_t size)
{
    char path[1024], command[1200], function[512], place[1024];
    size_t used = (size_t)snprintf(out, size, "0x%x", pc);
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (length <= 0)
        return;
    path[length] = '\0';
    snprintf(command, sizeof(command), "addr2line -f -C -i -e '%s' 0x%x 2>/dev/null", path, pc - 1);
    FILE *lines = popen(command, "r");
    if (lines == NULL)
        return;
    bool first = true;
    while (fgets(function, sizeof(function), lines) != NULL && fgets(place, sizeof(place), lines) != NULL) {
        place[strcspn(place, " \n")] = '\0';
        function[strcspn(function, "(<\n")] = '\0';
        const char *from = strstr(place, "/../");
        if (strchr(place, '?') == NULL && used + 40 < size)
            used = (first ? 0 : used) + (size_t)snprintf(out + (first ? 0 : used), size - (first ? 0 : used), "%s%s (%s)",
                                                         first ? "" : ", inlined at ", from != NULL ? from + 4 : place, function);
        first = false;
    }
    pclose(lines);
}

/* ---- cells ---- */

static cell *take_cells(unsigned shift)
{
    cell *cells = free_cells[shift];
    if (cells != NULL)
        memcpy(&free_cells[shift], cells, sizeof(cell *));
    else
        cells = (cell *)malloc((PAGE_BYTES >> shift) * sizeof(cell));
    if (cells == NULL)
        abort();
    return cells;
}

static void drop_cells(page *p)
{
    if (p->cells == NULL)
        return;
    memcpy(p->cells, &free_cells[p->shift], sizeof(cell *));
    free_cells[p->shift] = p->cells;
    p->cells = NULL;
}

static void make_cells(page *p, unsigned shift)
{
    p->shift = (uint8_t)shift;
    p->cells = take_cells(shift);
    memset(p->cells, 0, (PAGE_BYTES >> shift) * sizeof(cell));
    for (unsigned i = 0; p->flags != 0 && i < PAGE_BYTES >> shift; i++)
        p->cells[i].flags = p->flags;
}

static void split_cells(page *p, unsigned shift)
{
    cell *whole = p->cells, *parts = take_cells(shift);
    unsigned old_shift = p->shift;
    for (unsigned i = 0; i < PAGE_BYTES >> shift; i++)
        parts[i] = whole[i >> (old_shift - shift)];
    drop_cells(p);
    p->cells = parts;
    p->shift = (uint8_t)shift;
}

static unsigned shift_for(uintptr_t offset, size_t bytes)
{
    uintptr_t bits = offset | bytes | 4;
    return (unsigned)__builtin_ctzl(bits);
}

static page *page_of(shadow *s, uintptr_t offset, unsigned shift)
{
    page *p = &s->pages[offset >> PAGE_BITS];
    if (p->cells == NULL)
        make_cells(p, shift);
    else if (p->shift > shift)
        split_cells(p, shift);
    return p;
}

static shadow *new_shadow(size_t bytes)
{
    shadow *s = (shadow *)malloc(sizeof(shadow));
    s->page_count = (bytes + PAGE_BYTES - 1) / PAGE_BYTES;
    s->pages = (page *)calloc(s->page_count + 1, sizeof(page));
    return s;
}

void emu_check_register(emu_allocation *allocation)
{
    allocation->shadow = new_shadow(allocation->bytes);
}

void emu_check_unregister(emu_allocation *allocation)
{
    shadow *s = (shadow *)allocation->shadow;
    for (size_t i = 0; i < s->page_count; i++)
        drop_cells(&s->pages[i]);
    free(s->pages);
    free(s);
}

void emu_check_mark(emu_allocation *allocation, size_t offset, size_t bytes, emu_mark mark)
{
    shadow *s = (shadow *)allocation->shadow;
    uint8_t flags = mark == EMU_MARK_WRITTEN ? WRITTEN : mark == EMU_MARK_FORBIDDEN ? FORBIDDEN : 0;
    for (size_t end = offset + bytes; offset < end;) {
        size_t page_end = (offset / PAGE_BYTES + 1) * PAGE_BYTES, stop = page_end < end ? page_end : end;
        if (offset % PAGE_BYTES == 0 && (stop == page_end || stop == allocation->bytes)) {
            page *p = &s->pages[offset / PAGE_BYTES];
            drop_cells(p);
            p->flags = flags;
        } else {
            unsigned shift = shift_for(offset, stop - offset);
            page *p = page_of(s, offset, shift);
            cell fresh = {};
            fresh.flags = flags;
            for (size_t i = offset % PAGE_BYTES; i < offset % PAGE_BYTES + (stop - offset); i += (size_t)1 << p->shift)
                p->cells[i >> p->shift] = fresh;
        }
        offset = stop;
    }
}

size_t emu_check_readable(emu_allocation *allocation, size_t offset, size_t bytes)
{
    shadow *s = (shadow *)allocation->shadow;
    for (size_t at = offset; at < offset + bytes;) {
        const page *p = &s->pages[at / PAGE_BYTES];
        uint8_t flags = p->cells != NULL ? p->cells[at % PAGE_BYTES >> p->shift].flags : p->flags;
        if ((flags & WRITTEN) == 0)
            return at - offset;
        size_t step = p->cells != NULL ? (size_t)1 << p->shift : PAGE_BYTES;
        at = (at / step + 1) * step;
    }
    return bytes;
}

/* ---- accesses ---- */

struct accessor {
    int thread, warp, lane;
    uint32_t warp_interval;
    unsigned access;
    const void *pc;
    uintptr_t address;
    size_t bytes;
};

static const char *verb_of(unsigned access)
{
    return access & EMU_ATOMIC ? "atomic" : access & EMU_UNWRITTEN ? "cp.async" : access & EMU_WRITE ? "write" : "read";
}

[[noreturn]] static void fail_at(const accessor &a, const char *what)
{
    char place[256], line[1024];
    emu_describe(a.address, place, sizeof(place));
    describe_line(short_pc(a.pc), line, sizeof(line));
    emu_fail("%s: %s of %zu bytes at %s; %s", what, verb_of(a.access), a.bytes, line, place);
}

[[noreturn]] static void fail_race(const accessor &a, const char *other, const char *who, uint32_t pc)
{
    char place[256], here[1024], there[1024];
    emu_describe(a.address, place, sizeof(place));
    describe_line(short_pc(a.pc), here, sizeof(here));
    describe_line(pc, there, sizeof(there));
    emu_fail("race: %s by thread %d at %s, and %s by %s at %s, nothing between them; %s, barrier interval %u", verb_of(a.access),
             a.thread, here, other, who, there, place, emu.interval);
}

static void race_with_write(const accessor &a, const cell *c)
{
    char who[96];
    if (c->write_block != emu.block_serial)
        snprintf(who, sizeof(who), "another block's thread %d", c->write_thread);
    else
        snprintf(who, sizeof(who), "thread %d%s", c->write_thread, c->flags & (OF_LANES | OF_WARPS | OF_BLOCKS) ? " and others" : "");
    fail_race(a, c->flags & ATOMIC ? "atomic" : "write", who, c->write_pc);
}

static void race_with_read(const accessor &a, const cell *c, unsigned warps, unsigned lanes)
{
    char who[96];
    if (c->read_block != emu.block_serial || c->flags & READ_BY_BLOCKS)
        snprintf(who, sizeof(who), "another block");
    else if (warps != 0)
        snprintf(who, sizeof(who), "warp %d", __builtin_ctz(warps));
    else
        snprintf(who, sizeof(who), "thread %d", a.warp * 32 + __builtin_ctz(lanes));
    fail_race(a, "read", who, c->read_pc);
}

static bool write_unordered(const accessor &a, const cell *c)
{
    if (c->write_block < emu.launch_serial)
        return false;
    if (c->write_block != emu.block_serial || (c->flags & OF_BLOCKS))
        return true;
    if (c->write_interval != emu.interval)
        return false;
    if (c->flags & OF_WARPS || c->write_thread / 32 != a.warp)
        return true;
    if (c->write_warp_interval != a.warp_interval)
        return false;
    return c->write_thread != a.thread || (c->flags & OF_LANES) != 0;
}

static void note_read(const accessor &a, cell *c)
{
    if (c->write_block != 0 && (!(a.access & EMU_ATOMIC) || !(c->flags & ATOMIC)) && write_unordered(a, c))
        race_with_write(a, c);
    if (c->read_block != emu.block_serial || c->read_interval != emu.interval) {
        if (c->read_block != emu.block_serial)
            c->flags = (uint8_t)(c->read_block >= emu.launch_serial ? c->flags | READ_BY_BLOCKS : c->flags & ~READ_BY_BLOCKS);
        c->read_block = emu.block_serial;
        c->read_interval = emu.interval;
        c->read_warps = 0;
        c->read_lanes = 0;
    }
    if (c->read_warp != a.warp || c->read_warp_interval != a.warp_interval)
        c->read_lanes = 0;
    c->read_warps |= 1u << a.warp;
    c->read_warp = (uint8_t)a.warp;
    c->read_warp_interval = a.warp_interval;
    c->read_lanes |= 1u << a.lane;
    c->read_pc = short_pc(a.pc);
}

static void note_write(const accessor &a, cell *c)
{
    bool atomic = a.access & EMU_ATOMIC, joins = false;
    if (c->write_block != 0 && write_unordered(a, c)) {
        if (!atomic || !(c->flags & ATOMIC))
            race_with_write(a, c);
        joins = true;
    }
    if (c->read_block >= emu.launch_serial) {
        if (c->read_block != emu.block_serial || (c->flags & READ_BY_BLOCKS))
            race_with_read(a, c, 0, 0);
        if (c->read_interval == emu.interval) {
            unsigned warps = c->read_warps & ~(1u << a.warp);
            unsigned lanes = c->read_warp == a.warp && c->read_warp_interval == a.warp_interval ? c->read_lanes & ~(1u << a.lane) : 0;
            if (warps != 0 || lanes != 0)
                race_with_read(a, c, warps, lanes);
        }
    }
    uint8_t flags = c->flags & READ_BY_BLOCKS;
    if (joins) {
        flags |= c->flags & (OF_LANES | OF_WARPS | OF_BLOCKS);
        flags |= c->write_block != emu.block_serial ? OF_BLOCKS : c->write_thread / 32 != a.warp ? OF_WARPS
                 : c->write_thread != a.thread ? OF_LANES : 0;
    }
    c->flags = (uint8_t)(flags | (a.access & EMU_UNWRITTEN ? 0 : WRITTEN) | (atomic ? ATOMIC : 0));
    c->write_block = emu.block_serial;
    c->write_interval = emu.interval;
    c->write_warp_interval = a.warp_interval;
    c->write_thread = (uint16_t)a.thread;
    c->write_pc = short_pc(a.pc);
}

static void note(const accessor &a, shadow *s, uintptr_t offset, bool shared)
{
    unsigned shift = shift_for(offset, a.bytes);
    for (uintptr_t at = offset; at < offset + a.bytes;) {
        page *p = page_of(s, at, shift);
        cell *c = &p->cells[at % PAGE_BYTES >> p->shift];
        if (shared && c->write_block != emu.block_serial && c->read_block != emu.block_serial)
            memset(c, 0, sizeof(*c)); /* a block's shared memory is its own */
        if (c->flags & FORBIDDEN)
            fail_at(a, "out of bounds, in a gap");
        bool reads = !(a.access & EMU_WRITE) || (a.access & EMU_ATOMIC);
        if (reads && (!(c->flags & WRITTEN) || (shared && c->write_block != emu.block_serial)))
            fail_at(a, "reads what was never written");
        if (a.access & EMU_WRITE)
            note_write(a, c);
        else
            note_read(a, c);
        at = (at >> p->shift << p->shift) + ((uintptr_t)1 << p->shift);
    }
}

static accessor accessor_of(int thread, uintptr_t address, size_t bytes, unsigned access, const void *pc)
{
    return {thread, thread / 32, thread % 32, emu.warps[thread / 32].interval, access, pc, address, bytes};
}

void emu_check_access(int thread, const void *pointer, size_t bytes, unsigned access, const void *pc)
{
    uintptr_t address = (uintptr_t)pointer;
    accessor a = accessor_of(thread, address, bytes, access, pc);
    if (address - (uintptr_t)emu.arena < EMU_ARENA_BYTES) {
        const emu_slot *slot = emu_slot_of(address);
        if (slot == NULL || address + bytes > (uintptr_t)emu.arena + slot->start + slot->bytes)
            fail_at(a, "out of bounds");
        if (arena_shadow.pages == NULL)
            arena_shadow = *new_shadow(EMU_ARENA_BYTES);
        note(a, &arena_shadow, address - (uintptr_t)emu.arena, true);
        return;
    }
    emu_allocation *allocation = emu_allocation_of(address);
    if (allocation == NULL)
        fail_at(a, "out of bounds");
    uintptr_t offset = address - allocation->start;
    if (offset + bytes > allocation->bytes)
        fail_at(a, "out of bounds");
    note(a, (shadow *)allocation->shadow, offset, false);
}

static void access_of_kernel(const void *pointer, size_t bytes, bool write, bool aligned, const void *pc)
{
    uintptr_t address = (uintptr_t)pointer;
    if (emu.kernel == NULL || address - (uintptr_t)emu.carrier->stack < emu.carrier->stack_bytes)
        return;
    if (!write) {
        if (address - (uintptr_t)&emu_current < sizeof(emu_current) ||
            address - (uintptr_t)emu.kernel->args.get() < emu.kernel->args_bytes ||
            address - (uintptr_t)&__executable_start < (uintptr_t)(&__data_start - &__executable_start))
            return;
    }
    unsigned access = write ? EMU_WRITE : EMU_READ;
    if (aligned && address % bytes != 0)
        fail_at(accessor_of(emu.current, address, bytes, access, pc), "misaligned");
    if (address - (uintptr_t)emu.arena >= EMU_ARENA_BYTES && emu_allocation_of(address) == NULL) {
        accessor a = accessor_of(emu.current, address, bytes, access, pc);
        for (int i = 0; i < emu.thread_count; i++) {
            const emu_carrier *carrier = emu.threads[i].carrier;
            if (carrier != NULL && address - (uintptr_t)carrier->stack < carrier->stack_bytes)
                fail_at(a, "another thread's local memory");
        }
        fail_at(a, "out of bounds, or a host pointer");
    }
    emu_check_access(emu.current, pointer, bytes, access, pc);
}

#define PC __builtin_return_address(0)
#define ACCESSES(bytes)                                                                                           \
    void __tsan_read##bytes(void *p) { access_of_kernel(p, bytes, false, true, PC); }                             \
    void __tsan_write##bytes(void *p) { access_of_kernel(p, bytes, true, true, PC); }                             \
    void __tsan_unaligned_read##bytes(void *p) { access_of_kernel(p, bytes, false, false, PC); }                  \
    void __tsan_unaligned_write##bytes(void *p) { access_of_kernel(p, bytes, true, false, PC); }                  \
    void __tsan_read##bytes##_pc(void *p, void *pc) { access_of_kernel(p, bytes, false, true, pc); }              \
    void __tsan_write##bytes##_pc(void *p, void *pc) { access_of_kernel(p, bytes, true, true, pc); }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void *p, size_t bytes) { access_of_kernel(p, bytes, false, false, PC); }
void __tsan_write_range(void *p, size_t bytes) { access_of_kernel(p, bytes, true, false, PC); }
void __tsan_init(void) {}
void __tsan_func_entry(void *pc) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void **p, void *value) {}
void __tsan_vptr_read(void **p) {}
/* Counts of owners, in the host's part of a launch. */
int __tsan_atomic32_fetch_add(volatile int *p, int value, int order) { return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST); }
void *__tsan_memcpy(void *to, const void *from, size_t bytes)
{
    access_of_kernel(from, bytes, false, false, PC);
    access_of_kernel(to, bytes, true, false, PC);
    return memcpy(to, from, bytes);
}
void *__tsan_memset(void *to, int value, size_t bytes)
{
    access_of_kernel(to, bytes, true, false, PC);
    return memset(to, value, bytes);
}
}
