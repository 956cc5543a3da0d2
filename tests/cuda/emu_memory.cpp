/* Device memory as the runtime registered it, the block's shared memory, copies under way, atomics. */
#include "tests/cuda/emu_state.h"

#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PC __builtin_return_address(0)
#define CACHE_BITS 8
#define CACHE_ENTRIES 1024

/* Never destroyed: kernels and the runtime may still run when the process ends. */
static std::map<uintptr_t, emu_allocation> &allocations = *new std::map<uintptr_t, emu_allocation>;
static std::map<const void *, size_t> &dynamic_limits = *new std::map<const void *, size_t>;

static emu_allocation *cache[CACHE_ENTRIES]; /* by address: what was found there last */

/* ---- device memory ---- */

emu_allocation *emu_allocation_of(uintptr_t address)
{
    emu_allocation **entry = &cache[(address >> CACHE_BITS) % CACHE_ENTRIES];
    if (*entry != NULL && address - (*entry)->start < (*entry)->bytes)
        return *entry;
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin())
        return NULL;
    emu_allocation *found = &std::prev(next)->second;
    if (address - found->start >= found->bytes)
        return NULL;
    *entry = found;
    return found;
}

void emu_register_device(void *pointer, size_t bytes, const char *name)
{
    uintptr_t start = (uintptr_t)pointer;
    memset(pointer, 0xFF, bytes);
    emu_allocation *allocation = &(allocations[start] = emu_allocation{start, bytes, name, NULL});
    memset(cache, 0, sizeof(cache));
    if (emu_check_register)
        emu_check_register(allocation);
}

bool emu_unregister_device(void *pointer)
{
    auto found = allocations.find((uintptr_t)pointer);
    if (found == allocations.end())
        return false;
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(pointer, found->second.bytes);
    if (emu_check_unregister)
        emu_check_unregister(&found->second);
    allocations.erase(found);
    memset(cache, 0, sizeof(cache));
    return true;
}

static emu_allocation *whole_range(const void *pointer, size_t bytes, const char *who)
{
    uintptr_t start = (uintptr_t)pointer;
    emu_allocation *allocation = emu_allocation_of(start);
    if (allocation != NULL && bytes <= allocation->start + allocation->bytes - start)
        return allocation;
    char where[256];
    emu_describe(start, where, sizeof(where));
    emu_report("%s: %zu bytes at %p are not wholly in device memory: %s", who, bytes, pointer, where);
    return NULL;
}

static void mark(void *pointer, size_t bytes, emu_mark mark, const char *who)
{
    if (bytes == 0)
        return;
    emu_allocation *allocation = whole_range(pointer, bytes, who);
    if (allocation != NULL && emu_check_mark)
        emu_check_mark(allocation, (uintptr_t)pointer - allocation->start, bytes, mark);
}

void emu_forget(void *pointer, size_t bytes)
{
    memset(pointer, 0xFF, bytes);
    mark(pointer, bytes, EMU_MARK_NEVER, "emu_forget");
}

void emu_forbid(void *pointer, size_t bytes)
{
    mark(pointer, bytes, EMU_MARK_FORBIDDEN, "emu_forbid");
    if (__asan_poison_memory_region)
        __asan_poison_memory_region(pointer, bytes);
}

void emu_allow(void *pointer, size_t bytes)
{
    mark(pointer, bytes, EMU_MARK_NEVER, "emu_allow");
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(pointer, bytes);
}

static bool poisoned(const void *pointer, size_t bytes)
{
    return __asan_region_is_poisoned && __asan_region_is_poisoned((void *)(uintptr_t)pointer, bytes) != NULL;
}

bool emu_device_read(const void *pointer, size_t bytes, const char *who)
{
    if (bytes == 0)
        return true;
    emu_allocation *allocation = whole_range(pointer, bytes, who);
    if (allocation == NULL)
        return false;
    size_t offset = (uintptr_t)pointer - allocation->start;
    size_t good = emu_check_readable ? emu_check_readable(allocation, offset, bytes) : bytes;
    if (good == bytes && !poisoned(pointer, bytes))
        return true;
    emu_report("%s reads %zu bytes at offset %zu of %s: byte %zu was never written", who, bytes, offset, allocation->name, good);
    return false;
}

bool emu_device_write(void *pointer, size_t bytes, const char *who)
{
    if (bytes == 0)
        return true;
    emu_allocation *allocation = whole_range(pointer, bytes, who);
    if (allocation == NULL)
        return false;
    size_t offset = (uintptr_t)pointer - allocation->start;
    if (poisoned(pointer, bytes)) {
        emu_report("%s writes %zu bytes at offset %zu of %s: into a gap", who, bytes, offset, allocation->name);
        return false;
    }
    if (emu_check_mark)
        emu_check_mark(allocation, offset, bytes, EMU_MARK_WRITTEN);
    return true;
}

const char *emu_device_find(const void *pointer, void **start, size_t *bytes)
{
    emu_allocation *allocation = emu_allocation_of((uintptr_t)pointer);
    if (allocation == NULL)
        return NULL;
    *start = (void *)allocation->start;
    *bytes = allocation->bytes;
    return allocation->name;
}

/* ---- shared memory ---- */

size_t emu_dynamic_limit(const void *function)
{
    auto found = dynamic_limits.find(function);
    return found != dynamic_limits.end() ? found->second : EMU_STATIC_BYTES_MAX;
}

bool emu_allow_dynamic(const void *function, size_t bytes)
{
    if (bytes > emu_configured().shared_bytes_max)
        return false;
    dynamic_limits[function] = bytes;
    return true;
}

static void *new_slot(const emu_site *site, size_t bytes)
{
    size_t start = emu.arena_used + EMU_GAP, end = start + (bytes + 15) / 16 * 16;
    if (end + EMU_GAP > EMU_ARENA_BYTES || emu.slot_count == EMU_SLOTS)
        emu_fail("shared memory: more than the emulator has");
    emu.slots[emu.slot_count++] = {site, start, bytes};
    emu.arena_used = end;
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(emu.arena + start, bytes);
    memset(emu.arena + start, 0xFF, bytes);
    return emu.arena + start;
}

void emu_memory_block_begin(void)
{
    if (emu.arena == NULL) {
        emu.arena = (unsigned char *)mmap(NULL, EMU_ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (emu.arena == MAP_FAILED)
            abort();
        emu.arena_used = EMU_ARENA_BYTES;
    }
    if (__asan_poison_memory_region)
        __asan_poison_memory_region(emu.arena, emu.arena_used);
    emu.arena_used = 0;
    emu.slot_count = 0;
    emu.static_bytes = 0;
    new_slot(NULL, emu.kernel->shared_bytes);
}

void *emu_shared(const emu_site *site, size_t bytes)
{
    for (int i = 1; i < emu.slot_count; i++) {
        if (emu.slots[i].site == site)
            return emu.arena + emu.slots[i].start;
    }
    emu.static_bytes += (bytes + 15) / 16 * 16;
    if (emu.static_bytes > EMU_STATIC_BYTES_MAX)
        emu_fail("shared memory: %zu static bytes with %s at %s:%d; the limit is %d", emu.static_bytes, site->name, site->file,
                 site->line, EMU_STATIC_BYTES_MAX);
    size_t total = emu.static_bytes + emu.kernel->shared_bytes, limit = emu_dynamic_limit(emu.kernel->function);
    if (total > (limit > EMU_STATIC_BYTES_MAX ? emu.settings.shared_bytes_max : EMU_STATIC_BYTES_MAX))
        emu_fail("shared memory: %zu static and %zu dynamic bytes are more than the card has for a block", emu.static_bytes,
                 emu.kernel->shared_bytes);
    return new_slot(site, bytes);
}

void *emu_dynamic_shared(void)
{
    return emu.arena + emu.slots[0].start;
}

const emu_slot *emu_slot_of(uintptr_t address)
{
    size_t offset = address - (uintptr_t)emu.arena;
    if (offset >= EMU_ARENA_BYTES)
        return NULL;
    for (int i = 0; i < emu.slot_count; i++) {
        if (offset - emu.slots[i].start < emu.slots[i].bytes)
            return &emu.slots[i];
    }
    return NULL;
}

void emu_describe(uintptr_t address, char *out, size_t size)
{
    const emu_slot *slot = emu_slot_of(address);
    emu_allocation *allocation = emu_allocation_of(address);
    if (slot != NULL) {
        snprintf(out, size, "offset %zu of shared %s", address - (uintptr_t)emu.arena - slot->start,
                 slot->site != NULL ? slot->site->name : "memory of the launch");
    } else if (allocation != NULL) {
        snprintf(out, size, "offset %zu of %s (%zu bytes)", address - allocation->start, allocation->name, allocation->bytes);
    } else if (emu.arena != NULL && address - (uintptr_t)emu.arena < EMU_ARENA_BYTES) {
        const emu_slot *before = NULL;
        for (int i = 0; i < emu.slot_count; i++) {
            if (emu.slots[i].start <= address - (uintptr_t)emu.arena)
                before = &emu.slots[i];
        }
        if (before == NULL)
            snprintf(out, size, "before all shared arrays");
        else
            snprintf(out, size, "%zu bytes behind the start of shared %s (%zu bytes)",
                     address - (uintptr_t)emu.arena - before->start,
                     before->site != NULL ? before->site->name : "memory of the launch", before->bytes);
    } else {
        auto next = allocations.upper_bound(address);
        if (next == allocations.begin() || address - (std::prev(next)->second.start + std::prev(next)->second.bytes) > 65536)
            snprintf(out, size, "not device memory");
        else
            snprintf(out, size, "%zu bytes behind the end of %s (%zu bytes)",
                     address - (std::prev(next)->second.start + std::prev(next)->second.bytes), std::prev(next)->second.name,
                     std::prev(next)->second.bytes);
    }
}

void emu_touch(int thread, const void *pointer, size_t bytes, unsigned access, const void *pc)
{
    uintptr_t address = (uintptr_t)pointer;
    const char *verb = access & EMU_ATOMIC ? "atomic access" : access & EMU_WRITE ? "write" : "read";
    char where[256];
    if (address % bytes != 0) {
        emu_describe(address, where, sizeof(where));
        emu_fail("misaligned %s of %zu bytes: %s", verb, bytes, where);
    }
    const emu_slot *slot = emu_slot_of(address);
    emu_allocation *allocation = slot != NULL ? NULL : emu_allocation_of(address);
    size_t left = slot != NULL ? slot->bytes - (address - (uintptr_t)emu.arena - slot->start)
                  : allocation != NULL ? allocation->bytes - (address - allocation->start) : 0;
    if (left < bytes || poisoned(pointer, bytes)) {
        emu_describe(address, where, sizeof(where));
        emu_fail("out of bounds: %s of %zu bytes: %s", verb, bytes, where);
    }
    if (emu_check_access)
        emu_check_access(thread, pointer, bytes, access, pc);
}

/* ---- copies under way: performed at the wait, the last moment that is legal ---- */

void cp_async16(void *shared, const void *global, int source_bytes, const char *file, int line)
{
    char where[256];
    if (source_bytes < 0 || source_bytes > 16)
        emu_fail("cp_async16 at %s:%d: %d source bytes", file, line, source_bytes);
    if ((uintptr_t)shared % 16 != 0 || emu_slot_of((uintptr_t)shared) == NULL) {
        emu_describe((uintptr_t)shared, where, sizeof(where));
        emu_fail("cp_async16 at %s:%d: the target is not a 16-byte-aligned address of shared memory: %s", file, line, where);
    }
    if ((uintptr_t)global % 16 != 0 || emu_allocation_of((uintptr_t)global) == NULL) {
        emu_describe((uintptr_t)global, where, sizeof(where));
        emu_fail("cp_async16 at %s:%d: the source is not a 16-byte-aligned address of device memory: %s", file, line, where);
    }
    for (int i = 0; i < source_bytes;) { /* the largest aligned pieces: a ragged end may stop inside a word */
        int piece = source_bytes - i;
        piece = piece >= 8 && i % 8 == 0 ? 8 : piece >= 4 && i % 4 == 0 ? 4 : piece >= 2 && i % 2 == 0 ? 2 : 1;
        emu_touch(emu.current, (const char *)global + i, (size_t)piece, EMU_READ, PC);
        i += piece;
    }
    emu_touch(emu.current, shared, 16, EMU_WRITE | EMU_UNWRITTEN, PC);
    memset(shared, 0xFF, 16);
    emu.threads[emu.current].copies.push_back({shared, global, source_bytes, PC});
}

void cp_async_commit()
{
    emu_thread *me = &emu.threads[emu.current];
    me->groups.push_back(me->copies.size());
}

void emu_cp_async_wait(int groups, const char *file, int line)
{
    emu_thread *me = &emu.threads[emu.current];
    if (me->groups.size() <= (size_t)groups)
        return;
    size_t done = me->groups.size() - (size_t)groups, count = me->groups[done - 1];
    for (size_t i = 0; i < count; i++) {
        const emu_copy *copy = &me->copies[i];
        emu_touch(emu.current, copy->shared, 16, EMU_WRITE, copy->pc);
        memset(copy->shared, 0, 16);
        memcpy(copy->shared, copy->global, (size_t)copy->bytes);
    }
    me->copies.erase(me->copies.begin(), me->copies.begin() + (std::ptrdiff_t)count);
    me->groups.erase(me->groups.begin(), me->groups.begin() + (std::ptrdiff_t)done);
    for (size_t &end : me->groups)
        end -= count;
}

void emu_copies_forgotten(void)
{
    for (emu_thread &thread : emu.threads) {
        thread.copies.clear();
        thread.groups.clear();
    }
}

/* ---- atomics ---- */

#define ATOMIC(T, name, expression)                                             \
    T name(T *address, T value, const char *file, int line)                     \
    {                                                                           \
        emu_touch(emu.current, address, sizeof(T), EMU_WRITE | EMU_ATOMIC, PC); \
        T old = *address;                                                       \
        *address = expression;                                                  \
        return old;                                                             \
    }
#define ATOMICS(T, U)                                                                      \
    ATOMIC(T, atomicAdd, (T)((U)old + (U)value))                                           \
    ATOMIC(T, atomicMin, value < old ? value : old)                                        \
    ATOMIC(T, atomicMax, value > old ? value : old)                                        \
    ATOMIC(T, atomicAnd, old & value)                                                      \
    ATOMIC(T, atomicOr, old | value)                                                       \
    ATOMIC(T, atomicXor, old ^ value)                                                      \
    ATOMIC(T, atomicExch, value)                                                           \
    T atomicCAS(T *address, T compare, T value, const char *file, int line)                \
    {                                                                                      \
        emu_touch(emu.current, address, sizeof(T), EMU_WRITE | EMU_ATOMIC, PC);            \
        T old = *address;                                                                  \
        *address = old == compare ? value : old;                                           \
        return old;                                                                        \
    }
ATOMICS(int, unsigned)
ATOMICS(unsigned, unsigned)
ATOMICS(unsigned long long, unsigned long long)
ATOMIC(int, atomicSub, (int)((unsigned)old - (unsigned)value))
ATOMIC(unsigned, atomicSub, old - value)
ATOMIC(float, atomicAdd, old + value)
ATOMIC(double, atomicAdd, old + value)
