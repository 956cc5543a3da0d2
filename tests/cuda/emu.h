/*
 * emu.h - CUDA kernels on the CPU: what cuda/device.h is for g++, and what the stand-in runtime calls.
 *
 * Why      Kernels are tested where there is no GPU, with errors found that a GPU would pass over.
 * Memory   Device memory is the stand-in runtime's, registered here; shared memory is an arena of the emulator.
 * Threads  One OS thread runs kernels; a CUDA thread is a fibre. Everything repeats from emu_configure()'s settings.
 * Errors   The first error of a kernel ends its launch: emu_run() returns false, emu_error() says what and where.
 * Limits   1024 threads a block, 227 KiB of shared memory, what emu_settings says of the card.
 * Life     register memory -> emu_run() for each launch, in an order that CUDA allows -> emu_error()
 *
 * The stand-in runtime (fake_runtime.cpp, or sync_runtime.cpp in the emulator's own tests) gives emu_enqueue() and
 * emu_refuse(); it calls emu_register_device() for cudaMalloc, emu_device_write() for what copies, memsets and products
 * write, emu_device_read() for what they read, and emu_allow_dynamic() for cudaFuncSetAttribute.
 */
#ifndef GD_TESTS_CUDA_EMU_H
#define GD_TESTS_CUDA_EMU_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <memory>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>
#include <vector_functions.h>

/* ---- for the stand-in runtime ---- */

struct emu_kernel {
    const char *name, *file;
    int line;
    const void *function;
    dim3 grid, block;
    size_t shared_bytes;
    void (*call)(const void *args);            /* one thread of the kernel */
    std::shared_ptr<const void> args;          /* function and arguments, by value */
    size_t args_bytes;
};

/* A launch whose configuration is sound: run it now or later with emu_run(). Implemented by the stand-in runtime. */
void emu_enqueue(cudaStream_t stream, const emu_kernel &kernel);
/* A launch that CUDA refuses; the message is emu_error()'s. Implemented by the stand-in runtime. */
void emu_refuse(cudaStream_t stream, cudaError_t status);
/* Runs all threads. False after an error in the kernel (CUDA: cudaErrorLaunchFailure, sticky). */
bool emu_run(const emu_kernel &kernel);

/* Device memory: accessible to kernels, filled with 0xFF and never written until somebody does. Any address and size. */
void emu_register_device(void *pointer, size_t bytes, const char *name);
bool emu_unregister_device(void *pointer);                      /* false: not the start of one */
void emu_forget(void *pointer, size_t bytes);                   /* 0xFF and never written again: memory with a new owner */
void emu_forbid(void *pointer, size_t bytes);                   /* a gap in a pool that nobody may touch (8-byte aligned) */
void emu_allow(void *pointer, size_t bytes);
/* A copy, memset or product on behalf of the runtime: false, with emu_error() set, where the range does not lie wholly in
 * one allocation or (the check build) was never written. `who` is the call's name. A write marks the range. */
bool emu_device_read(const void *pointer, size_t bytes, const char *who);
bool emu_device_write(void *pointer, size_t bytes, const char *who);
/* The allocation that holds the address (NULL: none), with its start and size. */
const char *emu_device_find(const void *pointer, void **start, size_t *bytes);
/* cudaFuncAttributeMaxDynamicSharedMemorySize. False: above the card's limit. */
bool emu_allow_dynamic(const void *function, size_t bytes);

const char *emu_error(void);          /* the first error since the last clear, one or more lines; "" if none */
void emu_clear_error(void);
void emu_report(const char *format, ...) __attribute__((format(printf, 1, 2)));   /* an error outside of kernels */

/* The third and fourth: rotated there. EMU_CHANGING: each launch of a kernel has the next order and another seed, so that a test
 * which runs everything twice and compares bits finds what depends on the order. */
enum emu_order { EMU_ASCENDING, EMU_DESCENDING, EMU_BARRIERS, EMU_COLLECTIVES, EMU_CHANGING, EMU_ORDER_COUNT = EMU_CHANGING };
enum emu_sum { EMU_FORWARD, EMU_BACKWARD, EMU_DOUBLE, EMU_SUM_COUNT };                            /* how an mma sums over k */

struct emu_settings {
    emu_order order;           /* of threads and of blocks; EMU_ORDER=0..4 in the environment is the start value */
    unsigned seed;             /* EMU_SEED */
    emu_sum sum;               /* EMU_SUM=0..2 */
    size_t shared_bytes_max;   /* a block's shared memory: 163 KiB (sm_80) unless EMU_SHARED says otherwise */
    bool quiet;                /* no line on stderr for an error: EMU_QUIET=1 */
};
emu_settings emu_configured(void);
void emu_configure(const emu_settings &settings);

struct emu_counts {
    uint64_t launches, blocks, threads, switches, barriers, collectives;
    uint64_t ldmatrix_phases, bank_conflicts;      /* extra turns of ldmatrix's phases of eight rows */
};
emu_counts emu_counted(void);
/* The build that also finds races and reads of what was never written (check.cpp is linked in). */
bool emu_checks(void);

/* ---- for kernels: through cuda/device.h only ---- */

#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_OWN __attribute__((no_sanitize("thread"))) inline

#undef __launch_bounds__
#define __launch_bounds__(...)
#define CU_FN inline

struct emu_index {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern emu_index emu_current;
#define threadIdx (emu_current.thread)
#define blockIdx (emu_current.block)
#define blockDim (emu_current.block_dim)
#define gridDim (emu_current.grid_dim)
#define warpSize 32

/* Checks the configuration; false after emu_refuse(). */
bool emu_sound(const emu_kernel &kernel, cudaStream_t stream);

template <class... P, class... A>
EMU_OWN void emu_launch(const char *file, int line, const char *name, void (*function)(P...), dim3 grid, dim3 block,
                        size_t shared_bytes, cudaStream_t stream, A &&...args)
{
    struct packed {
        void (*function)(P...);
        std::tuple<P...> args;
    };
    emu_kernel kernel = {name, file, line, reinterpret_cast<const void *>(function), grid, block, shared_bytes,
                         [](const void *p) {
                             const packed *call = static_cast<const packed *>(p);
                             std::apply(call->function, call->args);
                         },
                         std::shared_ptr<const void>(new packed{function, std::tuple<P...>(static_cast<P>(args)...)},
                                                     [](const void *p) { delete static_cast<const packed *>(p); }),
                         sizeof(packed)};
    if (emu_sound(kernel, stream))
        emu_enqueue(stream, kernel);
}

#define CU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    emu_launch(__FILE__, __LINE__, #kernel, kernel, (grid), (block), (shared_bytes), (stream), ##__VA_ARGS__)

struct emu_site {
    const char *name, *file;
    int line;
};
void *emu_shared(const emu_site *site, size_t bytes);
void *emu_dynamic_shared(void);

#define CU_SHARED(type, name, ...)                                                      \
    typedef type name##_shared __VA_ARGS__;                                             \
    static const emu_site name##_site = {#name, __FILE__, __LINE__};                    \
    name##_shared &name = *static_cast<name##_shared *>(emu_shared(&name##_site, sizeof(name##_shared)))
#define CU_DYN_SHARED(type, name) type *name = static_cast<type *>(emu_dynamic_shared())

struct bf16 {
    uint16_t bits;
};

CU_FN float to_f32(bf16 value)
{
    return __builtin_bit_cast(float, (uint32_t)value.bits << 16);
}

CU_FN bf16 to_bf16(float value)
{
    uint32_t u = __builtin_bit_cast(uint32_t, value);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u)
        return bf16{0x7FFF};
    return bf16{(uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
}

CU_FN unsigned pack_bf16(float low, float high)
{
    return to_bf16(low).bits | (unsigned)to_bf16(high).bits << 16;
}

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

CU_FN float fast_exp2(float value)
{
    float power = exp2f(value);
    return power < 1.17549435e-38f ? 0.0f : power; /* .ftz */
}

/* Collectives. */
void __syncthreads(EMU_HERE);
int __syncthreads_or(int predicate, EMU_HERE);
int __syncthreads_and(int predicate, EMU_HERE);
int __syncthreads_count(int predicate, EMU_HERE);
void __syncwarp(unsigned mask = ~0u, EMU_HERE);
unsigned __ballot_sync(unsigned mask, int predicate, EMU_HERE);
int __any_sync(unsigned mask, int predicate, EMU_HERE);
int __all_sync(unsigned mask, int predicate, EMU_HERE);

enum emu_shuffle_kind { EMU_IDX, EMU_XOR, EMU_UP, EMU_DOWN };
uint64_t emu_shuffle(emu_shuffle_kind kind, unsigned mask, uint64_t value, int lane, int width, const char *file, int line);

template <class T>
EMU_OWN T emu_shuffle_of(emu_shuffle_kind kind, unsigned mask, T value, int lane, int width, const char *file, int line)
{
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "a shuffle moves 4 or 8 bytes");
    using word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    return __builtin_bit_cast(T, (word)emu_shuffle(kind, mask, __builtin_bit_cast(word, value), lane, width, file, line));
}
template <class T> EMU_OWN T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMU_HERE)
{
    return emu_shuffle_of(EMU_IDX, mask, value, lane, width, file, line);
}
template <class T> EMU_OWN T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_HERE)
{
    return emu_shuffle_of(EMU_XOR, mask, value, lanes, width, file, line);
}
template <class T> EMU_OWN T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_HERE)
{
    return emu_shuffle_of(EMU_UP, mask, value, (int)by, width, file, line);
}
template <class T> EMU_OWN T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_HERE)
{
    return emu_shuffle_of(EMU_DOWN, mask, value, (int)by, width, file, line);
}

#define EMU_NUMBERS(X) X(float) X(double) X(int) X(unsigned) X(long) X(unsigned long) X(long long) X(unsigned long long)
#define EMU_REDUCTIONS(T)          \
    T warp_sum(T value, EMU_HERE); \
    T warp_max(T value, EMU_HERE); \
    T quad_sum(T value, EMU_HERE); \
    T quad_max(T value, EMU_HERE);
EMU_NUMBERS(EMU_REDUCTIONS)
#undef EMU_REDUCTIONS

void ldmatrix_x4(unsigned *r, const void *row, EMU_HERE);
void ldmatrix_x4_trans(unsigned *r, const void *row, EMU_HERE);
void emu_mma(int tiles, float (*d)[4], const unsigned *a, const unsigned (*b)[2], const char *file, int line);

EMU_OWN void mma_bf16(float *d, const unsigned *a, unsigned b0, unsigned b1, EMU_HERE)
{
    unsigned b[1][2] = {{b0, b1}};
    emu_mma(1, reinterpret_cast<float(*)[4]>(d), a, b, file, line);
}
template <int NT> EMU_OWN void mma_bf16_row(float (*d)[4], const unsigned *a, const unsigned (*b)[2], EMU_HERE)
{
    emu_mma(NT, d, a, b, file, line);
}

void cp_async16(void *shared, const void *global, int source_bytes = 16, EMU_HERE);
void cp_async_commit();
void emu_cp_async_wait(int groups, const char *file, int line);
template <int GROUPS> EMU_OWN void cp_async_wait(EMU_HERE)
{
    static_assert(GROUPS >= 0, "groups that may still be under way");
    emu_cp_async_wait(GROUPS, file, line);
}

/* Atomics: what they were before. */
#define EMU_ATOMICS(T)                                                  \
    T atomicAdd(T *address, T value, EMU_HERE);                         \
    T atomicMin(T *address, T value, EMU_HERE);                         \
    T atomicMax(T *address, T value, EMU_HERE);                         \
    T atomicAnd(T *address, T value, EMU_HERE);                         \
    T atomicOr(T *address, T value, EMU_HERE);                          \
    T atomicXor(T *address, T value, EMU_HERE);                         \
    T atomicExch(T *address, T value, EMU_HERE);                        \
    T atomicCAS(T *address, T compare, T value, EMU_HERE);
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)
#undef EMU_ATOMICS
int atomicSub(int *address, int value, EMU_HERE);
unsigned atomicSub(unsigned *address, unsigned value, EMU_HERE);
float atomicAdd(float *address, float value, EMU_HERE);
double atomicAdd(double *address, double value, EMU_HERE);

CU_FN void __threadfence() {}
CU_FN void __threadfence_block() {}
[[noreturn]] void __trap(EMU_HERE);

/* Plain functions of one thread. */
template <class T> CU_FN T __ldg(const T *address) { return *address; }
CU_FN float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
CU_FN unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
CU_FN float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
CU_FN int __float_as_int(float value) { return __builtin_bit_cast(int, value); }
CU_FN double __longlong_as_double(long long bits) { return __builtin_bit_cast(double, bits); }
CU_FN long long __double_as_longlong(double value) { return __builtin_bit_cast(long long, value); }
CU_FN int __popc(unsigned bits) { return __builtin_popcount(bits); }
CU_FN int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
CU_FN int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz((unsigned)bits); }
CU_FN int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll((unsigned long long)bits); }
CU_FN int __ffs(int bits) { return __builtin_ffs(bits); }
CU_FN int __ffsll(long long bits) { return __builtin_ffsll(bits); }
unsigned __brev(unsigned bits);
unsigned __byte_perm(unsigned low, unsigned high, unsigned selector);
CU_FN unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
CU_FN unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
CU_FN float rsqrtf(float value) { return 1.0f / sqrtf(value); }
CU_FN double rsqrt(double value) { return 1.0 / sqrt(value); }
CU_FN float __expf(float value) { return expf(value); }
CU_FN float __exp10f(float value) { return powf(10.0f, value); }
CU_FN float __logf(float value) { return logf(value); }
CU_FN float __log2f(float value) { return log2f(value); }
CU_FN float __sinf(float value) { return sinf(value); }
CU_FN float __cosf(float value) { return cosf(value); }
CU_FN float __powf(float base, float exponent) { return powf(base, exponent); }
CU_FN float __fdividef(float a, float b) { return a / b; }
CU_FN float __frcp_rn(float value) { return 1.0f / value; }
CU_FN float __fsqrt_rn(float value) { return sqrtf(value); }
CU_FN float __frsqrt_rn(float value) { return (float)(1.0 / sqrt((double)value)); }
CU_FN float __fadd_rn(float a, float b) { return a + b; }
CU_FN float __fsub_rn(float a, float b) { return a - b; }
CU_FN float __fmul_rn(float a, float b) { return a * b; }
CU_FN float __fdiv_rn(float a, float b) { return a / b; }
CU_FN float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
CU_FN double __dadd_rn(double a, double b) { return a + b; }
CU_FN double __dmul_rn(double a, double b) { return a * b; }
CU_FN double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
CU_FN float __saturatef(float value) { return value > 0.0f ? value < 1.0f ? value : 1.0f : 0.0f; }
int __float2int_rn(float value);       /* saturate as the card does; NaN is 0 */
int __float2int_rz(float value);
int __float2int_rd(float value);
int __float2int_ru(float value);
unsigned __float2uint_rn(float value);
unsigned __float2uint_rz(float value);
CU_FN float __int2float_rn(int value) { return (float)value; }
CU_FN float __uint2float_rn(unsigned value) { return (float)value; }
CU_FN float __ll2float_rn(long long value) { return (float)value; }
CU_FN float __double2float_rn(double value) { return (float)value; }
int __dp4a(int a, int b, int sum);
CU_FN float exp10f(float value) { return powf(10.0f, value); }

#define EMU_MIN_MAX(T)                                       \
    CU_FN T min(T a, T b) { return b < a ? b : a; }          \
    CU_FN T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
CU_FN float min(float a, float b) { return fminf(a, b); }
CU_FN float max(float a, float b) { return fmaxf(a, b); }
CU_FN double min(double a, double b) { return fmin(a, b); }
CU_FN double max(double a, double b) { return fmax(a, b); }

#endif
