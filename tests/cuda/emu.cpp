/* Fibres: the threads of a block take turns on one OS thread. A carrier is a stack; it runs thread after thread as plain
 * calls, and only a thread that must wait keeps its carrier. Compiled without instrumentation: it is the sanitizers' peer. */
#include "tests/cuda/emu_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

emu_state emu;
emu_index emu_current;

static emu_carrier *free_carriers;
static unsigned carrier_count;
static unsigned random_state;
static unsigned rotation_lane, rotation_warp;
static bool descending;
static void *main_context, *main_fake_stack;
static const void *main_stack;
static size_t main_stack_bytes;
static char error_text[4096];
static std::map<const void *, unsigned> &launches_of = *new std::map<const void *, unsigned>;

/* ---- settings and errors ---- */

static long environment(const char *name, long otherwise, long most)
{
    const char *text = getenv(name);
    if (text == NULL || *text == '\0')
        return otherwise;
    char *end;
    long value = strtol(text, &end, 0);
    if (*end != '\0' || value < 0 || value > most) {
        fprintf(stderr, "%s=%s is not a number from 0 to %ld\n", name, text, most);
        exit(2);
    }
    return value;
}

static void configure_once(void)
{
    static bool done;
    if (done)
        return;
    done = true;
    emu.settings.order = (emu_order)environment("EMU_ORDER", 0, EMU_CHANGING);
    emu.settings.seed = (unsigned)environment("EMU_SEED", 1, 0xFFFFFFFFl);
    emu.settings.sum = (emu_sum)environment("EMU_SUM", 0, EMU_SUM_COUNT - 1);
    emu.settings.shared_bytes_max = (size_t)environment("EMU_SHARED", 163 * 1024, 227 * 1024);
    emu.settings.quiet = environment("EMU_QUIET", 0, 1) != 0;
}

emu_settings emu_configured(void)
{
    configure_once();
    return emu.settings;
}

void emu_configure(const emu_settings &settings)
{
    configure_once();
    emu.settings = settings;
}

emu_counts emu_counted(void)
{
    return emu.counts;
}

bool emu_checks(void)
{
    return emu_check_access != NULL;
}

const char *emu_error(void)
{
    return error_text;
}

void emu_clear_error(void)
{
    error_text[0] = '\0';
}

static void keep_error(const char *text)
{
    if (!emu_configured().quiet)
        fprintf(stderr, "emulator: %s\n", text);
    if (error_text[0] == '\0')
        snprintf(error_text, sizeof(error_text), "%s", text);
}

void emu_report(const char *format, ...)
{
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    keep_error(text);
}

/* ---- carriers ---- */

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
extern "C" void emu_switch(void **save, void *context);
asm(".text\n"
    ".globl emu_switch\n"
    ".type emu_switch, @function\n"
    "emu_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    popq %rcx\n"
    "    jmpq *%rcx\n"
    ".size emu_switch, .-emu_switch\n");

static void *fresh_context(char *low, size_t bytes, size_t stagger, void (*entry)(void))
{
    uintptr_t top = ((uintptr_t)low + bytes - stagger) & ~(uintptr_t)15;
    void **frame = (void **)top - 8;   /* six registers, the entry, and a return address that is never used */
    memset(frame, 0, 64);
    frame[6] = (void *)entry;
    return frame;
}
#else
#include <ucontext.h>
static void emu_switch(void **save, void *context)
{
    if (*save == NULL)
        *save = calloc(1, sizeof(ucontext_t));
    swapcontext((ucontext_t *)*save, (ucontext_t *)context);
}

static void *fresh_context(char *low, size_t bytes, size_t stagger, void (*entry)(void))
{
    ucontext_t *context = (ucontext_t *)calloc(1, sizeof(ucontext_t));
    getcontext(context);
    context->uc_stack.ss_sp = low;
    context->uc_stack.ss_size = bytes - stagger;
    makecontext(context, entry, 0);
    return context;
}
#endif

static void carrier_main(void);

static void reset_carrier(emu_carrier *carrier)
{
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(carrier->stack, carrier->stack_bytes);
    /* Tops at different offsets: else all stacks fall into the same cache sets. */
    size_t stagger = (size_t)((uintptr_t)carrier / sizeof(emu_carrier) % 12) * 320;
#if !(defined(__x86_64__) && !defined(EMU_UCONTEXT))
    free(carrier->context);
#endif
    carrier->context = fresh_context(carrier->stack, carrier->stack_bytes, stagger, carrier_main);
    carrier->fake_stack = NULL;
}

static void make_carriers(void)
{
    if (carrier_count + 32 > EMU_THREADS + 32)
        abort();
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = __asan_unpoison_memory_region || emu_check_access ? 256 * 1024 : 64 * 1024;
    emu_carrier *carriers = (emu_carrier *)mmap(NULL, 32 * sizeof(emu_carrier), PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *stacks = (char *)mmap(NULL, 32 * (bytes + page), PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (carriers == MAP_FAILED || stacks == MAP_FAILED) {
        fprintf(stderr, "emulator: no memory for stacks\n");
        abort();
    }
    for (int i = 31; i >= 0; i--) {
        carriers[i].stack = stacks + (size_t)i * (bytes + page) + page;
        carriers[i].stack_bytes = bytes;
        mprotect(stacks + (size_t)i * (bytes + page), page, PROT_NONE);
        reset_carrier(&carriers[i]);
        carriers[i].next_free = free_carriers;
        free_carriers = &carriers[i];
    }
    carrier_count += 32;
}

static emu_carrier *take_carrier(void)
{
    if (free_carriers == NULL)
        make_carriers();
    emu_carrier *carrier = free_carriers;
    free_carriers = carrier->next_free;
    return carrier;
}

static void free_carrier(emu_carrier *carrier)
{
    carrier->next_free = free_carriers;
    free_carriers = carrier;
}

static void finish_switch(void *fake_stack, bool from_main)
{
    if (__sanitizer_finish_switch_fiber == NULL)
        return;
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    if (from_main) {
        main_stack = bottom;
        main_stack_bytes = bytes;
    }
}

static bool switched_from_main;

static void switch_to(emu_carrier *from, emu_carrier *to)
{
    emu.carrier = to;
    emu.counts.switches++;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
    switched_from_main = false;
    emu_switch(&from->context, to->context);
    finish_switch(from->fake_stack, switched_from_main);
}

static void switch_to_main(emu_carrier *from, bool dies)
{
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(dies ? NULL : &from->fake_stack, main_stack, main_stack_bytes);
    emu_switch(&from->context, main_context);
    finish_switch(from->fake_stack, switched_from_main);
}

/* ---- turns ---- */

static unsigned random_next(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

void emu_rotate(bool at_barrier)
{
    if (emu.order != EMU_COLLECTIVES && !(emu.order == EMU_BARRIERS && at_barrier))
        return;
    unsigned bits = random_next();
    rotation_lane = bits % 32;
    rotation_warp = (bits >> 5) % (unsigned)emu.warp_count;
    descending = (bits >> 16) % 2;
}

static int choose(unsigned mask, unsigned rotation)
{
    unsigned turned = rotation == 0 ? mask : mask >> rotation | mask << (32 - rotation);
    unsigned bit = descending ? 31u - (unsigned)__builtin_clz(turned) : (unsigned)__builtin_ctz(turned);
    return (int)((bit + rotation) % 32);
}

static int take_ready(void) /* the next thread, or -1 */
{
    if (emu.warps_ready == 0)
        return -1;
    int w = choose(emu.warps_ready, rotation_warp);
    emu_warp *warp = &emu.warps[w];
    int lane = choose(warp->ready, rotation_lane);
    warp->ready &= ~(1u << lane);
    if (warp->ready == 0)
        emu.warps_ready &= ~(1u << w);
    return w * 32 + lane;
}

static void set_current(int thread)
{
    emu.current = thread;
    emu_current.thread = emu.index[thread];
}

static bool same_place(const emu_thread *a, const emu_thread *b)
{
    return (a->carrier != NULL) == (b->carrier != NULL) && (a->carrier == NULL || (a->what == b->what && a->line == b->line));
}

static void describe_waiting(char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < emu.thread_count && used + 200 < size;) {
        const emu_thread *thread = &emu.threads[i];
        int end = i + 1;
        while (end < emu.thread_count && same_place(&emu.threads[end], thread))
            end++;
        if (thread->carrier != NULL)
            used += (size_t)snprintf(out + used, size - used, "; threads %d to %d wait in %s at %s:%d", i, end - 1,
                                     thread->what, thread->file, thread->line);
        i = end;
    }
}

static void stuck(void)
{
    char where[2048];
    describe_waiting(where, sizeof(where));
    emu_fail("nothing can run%s", where);
}

/* The running thread waits until somebody sets its ready bit. */
static void wait_here(const char *what, const char *file, int line)
{
    emu_thread *me = &emu.threads[emu.current];
    int thread = emu.current;
    me->what = what;
    me->file = file;
    me->line = line;
    int next = take_ready();
    if (next < 0)
        stuck();
    if (next != thread) {
        set_current(next);
        emu_carrier *to = emu.threads[next].carrier;
        switch_to(me->carrier, to != NULL ? to : take_carrier());
        set_current(thread);
    }
}

static void finish_thread(void)
{
    int thread = emu.current;
    emu_thread *me = &emu.threads[thread];
    emu_warp *warp = &emu.warps[thread / 32];
    unsigned bit = 1u << thread % 32;
    if (emu.barrier_count > 0)
        emu_fail("the thread ends while others wait in %s at %s:%d", emu.barrier_what, emu.barrier_file, emu.barrier_line);
    for (int i = 0; i < warp->meeting_count; i++) {
        if (warp->meetings[i].mask & bit)
            emu_fail("the thread ends while lanes of its warp wait for it in %s at %s:%d", warp->meetings[i].what,
                     warp->meetings[i].file, warp->meetings[i].line);
    }
    if (!me->copies.empty())
        emu_fail("the thread ends with a cp.async that was never waited for");
    warp->done |= bit;
    emu.done_count++;
    me->carrier = NULL;
}

static void carrier_main(void)
{
    finish_switch(NULL, switched_from_main);
    for (;;) {
        emu_carrier *self = emu.carrier;
        emu.threads[emu.current].carrier = self;
        emu.kernel->call(emu.kernel->args.get());
        finish_thread();
        int next = take_ready();
        if (next < 0) {
            if (emu.done_count < emu.thread_count)
                stuck();
            free_carrier(self);
            switch_to_main(self, false);
        } else {
            set_current(next);
            emu_carrier *to = emu.threads[next].carrier;
            if (to != NULL) {
                free_carrier(self);
                switch_to(self, to);
            }
        }
    }
}

void emu_fail(const char *format, ...)
{
    char text[3072];
    size_t used = (size_t)snprintf(text, sizeof(text), "%s, block (%u,%u,%u), thread (%u,%u,%u): ", emu.kernel->name,
                                   emu_current.block.x, emu_current.block.y, emu_current.block.z, emu_current.thread.x,
                                   emu_current.thread.y, emu_current.thread.z);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, sizeof(text) - used, format, args);
    va_end(args);
    keep_error(text);
    switch_to_main(emu.carrier, true);
    abort();
}

/* ---- meetings ---- */

static bool same(const char *a, const char *b)
{
    return a == b || strcmp(a, b) == 0;
}

void emu_meet(const char *what, unsigned mask, void *args, emu_compute compute, const void *pc, const char *file, int line)
{
    emu_warp *warp = &emu.warps[emu.current / 32];
    int lane = emu.current % 32;
    if ((mask >> lane & 1) == 0)
        emu_fail("%s at %s:%d: the calling lane is not in the mask 0x%08x", what, file, line, mask);
    if ((mask & ~warp->exists) != 0)
        emu_fail("%s at %s:%d: the mask 0x%08x names lanes that do not exist", what, file, line, mask);
    if ((mask & warp->done) != 0)
        emu_fail("%s at %s:%d: the mask 0x%08x names lanes that have ended", what, file, line, mask);
    emu_meeting *meeting = NULL;
    for (int i = 0; i < warp->meeting_count; i++) {
        emu_meeting *other = &warp->meetings[i];
        if (other->mask == mask && other->line == line && same(other->what, what) && same(other->file, file))
            meeting = other;
        else if ((other->mask >> lane & 1) && (mask & other->arrived)) /* each waits for the other */
            emu_fail("lanes of one warp are at different collectives: %s (mask 0x%08x) at %s:%d, and %s (mask 0x%08x) at %s:%d",
                     what, mask, file, line, other->what, other->mask, other->file, other->line);
    }
    if (meeting == NULL) {
        if (warp->meeting_count == EMU_MEETINGS)
            emu_fail("%s at %s:%d: more than %d collectives of one warp at once", what, file, line, EMU_MEETINGS);
        meeting = &warp->meetings[warp->meeting_count++];
        meeting->what = what;
        meeting->file = file;
        meeting->line = line;
        meeting->mask = mask;
        meeting->arrived = 0;
    }
    meeting->args[lane] = args;
    meeting->pc[lane] = pc;
    meeting->arrived |= 1u << lane;
    if (meeting->arrived != mask) {
        wait_here(what, file, line);
        return;
    }
    emu.counts.collectives++;
    if (compute != NULL)
        compute(meeting);
    *meeting = warp->meetings[--warp->meeting_count];
    warp->ready |= mask & ~(1u << lane);
    if (warp->ready != 0)
        emu.warps_ready |= 1u << emu.current / 32;
    emu_rotate(false);
}

static int barrier(const char *what, int predicate, const char *file, int line)
{
    if (emu.done_count > 0)
        emu_fail("%s at %s:%d: %d threads of the block have ended", what, file, line, emu.done_count);
    if (emu.barrier_count == 0) {
        emu.barrier_what = what;
        emu.barrier_file = file;
        emu.barrier_line = line;
        emu.barrier_sum = 0;
    } else if (emu.barrier_line != line || !same(emu.barrier_what, what) || !same(emu.barrier_file, file)) {
        emu_fail("threads of one block are at different barriers: %s at %s:%d, and %s at %s:%d", what, file, line,
                 emu.barrier_what, emu.barrier_file, emu.barrier_line);
    }
    emu.barrier_sum += predicate;
    if (++emu.barrier_count < emu.thread_count) {
        wait_here(what, file, line);
        return emu.barrier_result;
    }
    emu.counts.barriers++;
    emu.barrier_result = emu.barrier_sum;
    emu.barrier_count = 0;
    emu.interval++;
    for (int w = 0; w < emu.warp_count; w++)
        emu.warps[w].ready = emu.warps[w].exists;
    int me = emu.current;
    emu.warps[me / 32].ready &= ~(1u << me % 32);
    emu.warps_ready = 0;
    for (int w = 0; w < emu.warp_count; w++)
        emu.warps_ready |= (unsigned)(emu.warps[w].ready != 0) << w;
    emu_rotate(true);
    return emu.barrier_result;
}

void __syncthreads(const char *file, int line)
{
    barrier("__syncthreads", 0, file, line);
}

int __syncthreads_or(int predicate, const char *file, int line)
{
    return barrier("__syncthreads_or", predicate != 0, file, line) > 0;
}

int __syncthreads_and(int predicate, const char *file, int line)
{
    return barrier("__syncthreads_and", predicate != 0, file, line) == emu.thread_count;
}

int __syncthreads_count(int predicate, const char *file, int line)
{
    return barrier("__syncthreads_count", predicate != 0, file, line);
}

void __trap(const char *file, int line)
{
    emu_fail("__trap at %s:%d", file, line);
}

/* ---- launches ---- */

bool emu_sound(const emu_kernel &kernel, cudaStream_t stream)
{
    const dim3 &g = kernel.grid, &b = kernel.block;
    const char *wrong = NULL;
    cudaError_t status = cudaErrorInvalidConfiguration;
    uint64_t threads = (uint64_t)b.x * b.y * b.z;
    if (g.x == 0 || g.y == 0 || g.z == 0)
        wrong = "an empty grid";
    else if (g.x > 0x7FFFFFFFu || g.y > 65535 || g.z > 65535)
        wrong = "a grid above 2147483647 x 65535 x 65535";
    else if (b.x > 1024 || b.y > 1024 || b.z > 64 || threads == 0 || threads > EMU_THREADS)
        wrong = "a block of no threads or of more than 1024";
    else if (threads % 32 != 0)
        wrong = "a block that is not a multiple of 32 threads";
    else if (kernel.shared_bytes > emu_dynamic_limit(kernel.function)) {
        wrong = "more dynamic shared memory than 48 KiB or than cudaFuncSetAttribute allowed";
        status = cudaErrorInvalidValue;
    } else if (kernel.args_bytes > 4096 + sizeof(void *))
        wrong = "arguments above 4096 bytes";
    if (wrong == NULL)
        return true;
    emu_report("%s launched at %s:%d with grid (%u,%u,%u), block (%u,%u,%u), %zu shared bytes: %s", kernel.name, kernel.file,
               kernel.line, g.x, g.y, g.z, b.x, b.y, b.z, kernel.shared_bytes, wrong);
    emu_refuse(stream, status);
    return false;
}

static void begin_block(void)
{
    emu.block_serial++;
    emu.interval = 0;
    emu.warps_ready = 0;
    emu.done_count = 0;
    emu.barrier_count = 0;
    for (int w = 0; w < emu.warp_count; w++) {
        emu_warp *warp = &emu.warps[w];
        int lanes = emu.thread_count - w * 32 < 32 ? emu.thread_count - w * 32 : 32;
        warp->exists = warp->ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
        warp->done = 0;
        warp->interval = 0;
        warp->meeting_count = 0;
        emu.warps_ready |= 1u << w;
    }
    emu_memory_block_begin();
    emu_rotate(true);
    emu.counts.blocks++;
    emu.counts.threads += (uint64_t)emu.thread_count;
}

static bool run_block(void)
{
    begin_block();
    set_current(take_ready());
    emu_carrier *carrier = take_carrier();
    emu.carrier = carrier;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&main_fake_stack, carrier->stack, carrier->stack_bytes);
    switched_from_main = true;
    emu_switch(&main_context, carrier->context);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(main_fake_stack, NULL, NULL);
    if (emu.done_count == emu.thread_count)
        return true;
    /* An error: the failed carrier and those of all waiting threads begin anew. */
    reset_carrier(emu.carrier);
    free_carrier(emu.carrier);
    for (int i = 0; i < emu.thread_count; i++) {
        if (emu.threads[i].carrier != NULL && emu.threads[i].carrier != emu.carrier) {
            reset_carrier(emu.threads[i].carrier);
            free_carrier(emu.threads[i].carrier);
        }
        emu.threads[i].carrier = NULL;
    }
    emu_copies_forgotten();
    return false;
}

static uint64_t coprime_stride(uint64_t count)
{
    uint64_t stride = (uint64_t)((double)count * 0.6180339887) | 1;
    for (;; stride += 2) {
        uint64_t a = stride, b = count;
        while (b != 0) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1)
            return stride;
    }
}

bool emu_run(const emu_kernel &kernel)
{
    configure_once();
    if (emu.kernel != NULL) {
        emu_report("%s is run while %s runs", kernel.name, emu.kernel->name);
        return false;
    }
    emu.kernel = &kernel;
    emu.thread_count = (int)(kernel.block.x * kernel.block.y * kernel.block.z);
    emu.warp_count = (emu.thread_count + 31) / 32;
    emu.launch_serial = emu.block_serial + 1;
    emu_current.block_dim = kernel.block;
    emu_current.grid_dim = kernel.grid;
    for (int i = 0; i < emu.thread_count; i++) {
        unsigned u = (unsigned)i;
        emu.index[i] = {u % kernel.block.x, u / kernel.block.x % kernel.block.y, u / kernel.block.x / kernel.block.y};
    }
    unsigned turn = emu.settings.order == EMU_CHANGING ? launches_of[kernel.function]++ : 0;
    emu.order = emu.settings.order == EMU_CHANGING ? (emu_order)(turn % EMU_ORDER_COUNT) : emu.settings.order;
    random_state = (emu.settings.seed + turn) * 2654435761u + 12345u;
    rotation_lane = rotation_warp = 0;
    descending = emu.order == EMU_DESCENDING;
    emu.counts.launches++;
    uint64_t count = (uint64_t)kernel.grid.x * kernel.grid.y * kernel.grid.z;
    uint64_t stride = emu.order >= EMU_BARRIERS ? coprime_stride(count) % count : 1, offset = random_next() % count;
    bool ok = true;
    for (uint64_t i = 0; i < count && ok; i++) {
        uint64_t b = i;
        if (emu.order == EMU_DESCENDING)
            b = count - 1 - i;
        else if (emu.order >= EMU_BARRIERS)
            b = (uint64_t)(((unsigned __int128)i * stride + offset) % count);
        emu_current.block = {(unsigned)(b % kernel.grid.x), (unsigned)(b / kernel.grid.x % kernel.grid.y),
                             (unsigned)(b / kernel.grid.x / kernel.grid.y)};
        ok = run_block();
    }
    emu.kernel = NULL;
    return ok;
}
