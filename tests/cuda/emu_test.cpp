/* The emulator itself: orders, every error that it reports at once. The primitives are primitives_test.cu's. */
#include "tests/cuda/device_array.h"
#include "tests/cuda/primitives.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

extern "C" {
#include <cmocka.h>
}

template <class T> using device = device_array<T>;

static float random_float(uint64_t i)
{
    return random_value(1, (int)i);
}

static emu_settings quiet(emu_order order, unsigned seed, emu_sum sum)
{
    emu_settings old = emu_configured(), now = old;
    now.order = order;
    now.seed = seed;
    now.sum = sum;
    now.quiet = true;
    emu_configure(now);
    return old;
}

__global__ void tickets(int *next, int *by_thread, int *by_block)
{
    int thread = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    by_thread[thread] = atomicAdd(next, 1);
    __syncthreads();
    __syncwarp();
    by_block[thread] = atomicAdd(next, 1);
}

static void orders_are_permutations_and_differ(void **)
{
    enum { THREADS = 256 };
    int seen[6][2 * THREADS];
    for (int run = 0; run < 6; run++) {
        emu_settings old = quiet((emu_order)(run < 4 ? run : run - 2), run < 4 ? 1 : 2, EMU_FORWARD);
        device<int> next("next", 1, [](int) { return 0; });
        device<int> first("first", THREADS, [](int) { return -1; }), second("second", THREADS, [](int) { return -1; });
        CU_LAUNCH(tickets, 4, THREADS / 4, 0, NULL, next.data, first.data, second.data);
        assert_int_equal(sync_status(), cudaSuccess);
        bool used[2 * THREADS] = {};
        for (int i = 0; i < 2 * THREADS; i++) {
            seen[run][i] = i < THREADS ? first.data[i] : second.data[i - THREADS];
            assert_in_range(seen[run][i], 0, 2 * THREADS - 1);
            assert_false(used[seen[run][i]]);
            used[seen[run][i]] = true;
        }
        for (int other = 0; other < run; other++)
            assert_memory_not_equal(seen[run], seen[other], sizeof(seen[run]));
        emu_configure(old);
    }
    assert_int_equal(seen[0][0], 0);
    assert_int_equal(seen[0][63], 63);
    assert_int_equal(seen[1][255], 0); /* the last block first, its last thread first */
}

__global__ void sum_in_turn(float *sum, const float *in)
{
    atomicAdd(sum, in[threadIdx.x]);
}

static void a_changing_order_shows_between_two_runs(void **)
{
    emu_settings old = quiet(EMU_CHANGING, 1, EMU_FORWARD);
    device<float> in("in", 256, [](int i) { return random_float((uint64_t)i); }), sums("sums", 5, [](int) { return 0.0f; });
    for (int i = 0; i < 5; i++)
        CU_LAUNCH(sum_in_turn, 1, 256, 0, NULL, sums.data + i, in.data);
    assert_int_equal(sync_status(), cudaSuccess);
    assert_true(sums.data[0] != sums.data[1]);
    assert_true(sums.data[0] == sums.data[4]); /* ascending again */
    emu_configure(old);
}

/* ---- asynchronous copies ---- */

__global__ void early_reader(const float *in, float *out)
{
    CU_SHARED(float, tile, [32][4]);
    int l = (int)threadIdx.x;
    cp_async16(tile[l], in + l * 4);
    cp_async_commit();
    cp_async_wait<1>(); /* of one group: waits for none */
    out[l] = tile[l][0];
    cp_async_wait<0>();
}

static void a_copy_read_too_early_is_poison(void **)
{
    emu_settings old = quiet(EMU_ASCENDING, 1, EMU_FORWARD);
    device<float> in("in", 128, [](int i) { return (float)i; }), out("out", 32, [](int) { return 0.0f; });
    CU_LAUNCH(early_reader, 1, 32, 0, NULL, in.data, out.data);
    if (emu_checks()) {
        assert_int_equal(sync_status(), cudaErrorLaunchFailure);
        assert_non_null(strstr(emu_error(), "never written"));
        emu_clear_error();
    } else {
        assert_int_equal(sync_status(), cudaSuccess);
        assert_true(isnan(out.data[5]));
    }
    emu_configure(old);
}

/* ---- numbers ---- */

static void halves_round_to_nearest_even(void **)
{
    for (unsigned bits = 0; bits < 65536; bits++) {
        float value = f16_to_f32((uint16_t)bits);
        if (isnan(value))
            continue;
        assert_int_equal(f32_to_f16(value), bits);
        if ((bits & 0x7FFF) >= 0x7BFF)
            continue;
        float next = f16_to_f32((uint16_t)(bits + 1)), middle = (value + next) / 2; /* exact in f32 */
        assert_int_equal(f32_to_f16(middle), bits % 2 == 0 ? bits : bits + 1);
        assert_int_equal(f32_to_f16(nextafterf(middle, value)), bits);
        assert_int_equal(f32_to_f16(nextafterf(middle, next)), bits + 1);
    }
    assert_int_equal(f32_to_f16(65519.0f), 0x7BFF);
    assert_int_equal(f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(f32_to_f16(INFINITY), 0x7C00);
    assert_int_equal(f32_to_f16(NAN), 0x7FFF);
    for (unsigned bits = 0; bits < 65536; bits++) {
        float value = to_f32(bf16{(uint16_t)bits});
        assert_int_equal(to_bf16(value).bits, isnan(value) ? 0x7FFF : bits);
    }
    assert_int_equal(to_bf16(1.00390625f).bits, 0x3F80);
    assert_int_equal(to_bf16(1.01171875f).bits, 0x3F82);
    assert_int_equal(pack_bf16(1.0f, -2.0f), 0xC0003F80u);
}

static void conversions_saturate_as_the_card_does(void **)
{
    assert_int_equal(__float2int_rn(2.5f), 2);
    assert_int_equal(__float2int_rz(-2.9f), -2);
    assert_int_equal(__float2int_rd(-2.1f), -3);
    assert_int_equal(__float2int_ru(2.1f), 3);
    assert_int_equal(__float2int_rn(3e9f), 2147483647);
    assert_int_equal(__float2int_rn(NAN), 0);
    assert_int_equal(__float2uint_rz(-1.0f), 0);
    assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0x7530u), 0x77553300u);
    assert_int_equal(__brev(1u), 0x80000000u);
    assert_int_equal(__dp4a(0x01FF0203, 0x01010101, 10), 15);
}

/* ---- errors ---- */

#define BAD(name, ...)                                        \
    __global__ void name(float *x)                            \
    {                                                         \
        int l = (int)threadIdx.x;                             \
        (void)l;                                              \
        __VA_ARGS__                                           \
    }
__global__ void two_barriers(float *x)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void two_lines(float *x)
{
    float y;
    if (threadIdx.x % 2)
        y = warp_sum(1.0f);
    else
        y = warp_sum(2.0f);
    x[threadIdx.x] = y;
}
BAD(barrier_after_end, if (l < 32) return;
    __syncthreads();)
BAD(end_before_barrier, if (l >= 32) return;
    __syncthreads();)
BAD(not_in_mask, x[l] = __shfl_sync(0xFFFEu, 1.0f, 1);)
BAD(source_not_in_mask, if (l % 32 < 16) x[l] = __shfl_sync(0xFFFFu, 1.0f, 20);)
BAD(ended_lanes, if (l % 32 == 3) return;
    __syncwarp(l % 32 == 0 ? ~0u : ~0u);)
BAD(two_collectives, float y = l % 2 ? warp_sum(1.0f) : warp_max(1.0f); x[l] = y;)
BAD(overlapping_masks, if (l % 32 < 16) __syncwarp(0x1FFFFu);
    else __syncwarp(~0u);)
BAD(stuck_threads, if (l % 32 < 16) __syncthreads();
    else __syncwarp();)
BAD(bad_width, x[l] = __shfl_xor_sync(~0u, 1.0f, 1, 12);)
BAD(never_waited, CU_SHARED(float, t, [64][4]); cp_async16(t[l], x + 4 * l);
    cp_async_commit();)
BAD(copy_misaligned, CU_SHARED(float, t, [64][5]); cp_async16(&t[0][1], x + 4 * l);)
BAD(copy_source_misaligned, CU_SHARED(float, t, [64][4]); cp_async16(t[l], x + 1);)
BAD(copy_to_global, cp_async16(x + 4 * l, x + 4 * l);)
BAD(copy_too_far, CU_SHARED(float, t, [64][4]); cp_async16(t[l], x + 4 * l + 256);)
BAD(copy_too_much, CU_SHARED(float, t, [64][4]); cp_async16(t[l], x + 4 * l, 17);)
BAD(matrix_of_global, unsigned r[4]; ldmatrix_x4(r, x);)
BAD(matrix_misaligned, CU_SHARED(float, t, [64]); t[l] = 0; __syncthreads(); unsigned r[4]; ldmatrix_x4(r, t + 1);)
BAD(matrix_beyond, CU_SHARED(float, t, [64]); t[l] = 0; __syncthreads(); unsigned r[4]; ldmatrix_x4(r, t + 64);)
BAD(too_much_static, CU_SHARED(float, t, [64][200]); t[l][0] = 0;)
BAD(atomic_beyond, atomicAdd(x + 256, 1.0f);)
BAD(atomic_misaligned, atomicAdd((int *)((char *)x + 2), 1);)
BAD(atomic_host, int here = 0; atomicAdd(&here, 1);)
BAD(trapped, if (l == 40) __trap();)
#undef BAD

static void expect_error(void (*kernel)(float *), const char *name, const char *message)
{
    device<float> x("x", 256, [](int i) { return (float)i; });
    CU_LAUNCH(kernel, 2, 64, 0, NULL, x.data);
    if (sync_status() != cudaErrorLaunchFailure || strstr(emu_error(), message) == NULL)
        fail_msg("%s: '%s' instead of '%s'", name, emu_error(), message);
    emu_clear_error();
}

__global__ void nothing(float *x) {}

static void refused(cudaError_t status, const char *message, dim3 grid, dim3 block, size_t shared_bytes)
{
    CU_LAUNCH(nothing, grid, block, shared_bytes, NULL, nullptr);
    assert_int_equal(sync_status(), status);
    if (strstr(emu_error(), message) == NULL)
        fail_msg("'%s' instead of '%s'", emu_error(), message);
    emu_clear_error();
}

static void every_error_is_reported_where_it_happens(void **)
{
    for (int order = 0; order < EMU_ORDER_COUNT; order++) {
        emu_settings old = quiet((emu_order)order, 5, EMU_FORWARD);
#define EXPECT(kernel, message) expect_error(kernel, #kernel, message)
        EXPECT(two_barriers, "threads of one block are at different barriers");
        EXPECT(barrier_after_end, "end");
        EXPECT(end_before_barrier, "end");
        EXPECT(not_in_mask, "the calling lane is not in the mask");
        EXPECT(source_not_in_mask, "which is not in the mask");
        EXPECT(ended_lanes, "end");
        EXPECT(two_collectives, "lanes of one warp are at different collectives");
        EXPECT(two_lines, "lanes of one warp are at different collectives");
        EXPECT(overlapping_masks, "lane");
        EXPECT(stuck_threads, "nothing can run; threads 0 to 15 wait in __syncthreads at");
        EXPECT(bad_width, "a width of 12");
        EXPECT(never_waited, "a cp.async that was never waited for");
        EXPECT(copy_misaligned, "the target is not a 16-byte-aligned address of shared memory");
        EXPECT(copy_source_misaligned, "the source is not a 16-byte-aligned address of device memory");
        EXPECT(copy_to_global, "the target is not a 16-byte-aligned address of shared memory");
        EXPECT(copy_too_far, "the source is not a 16-byte-aligned address of device memory");
        EXPECT(copy_too_much, "17 source bytes");
        EXPECT(matrix_of_global, "outside of shared memory: offset 0 of x (1024 bytes)");
        EXPECT(matrix_misaligned, "misaligned read of 16 bytes: offset 4 of shared t");
        EXPECT(matrix_beyond, "outside of shared memory: 256 bytes behind the start of shared t (256 bytes)");
        EXPECT(too_much_static, "51200 static bytes");
        EXPECT(atomic_beyond, "out of bounds: atomic access of 4 bytes: 0 bytes behind the end of x (1024 bytes)");
        EXPECT(atomic_misaligned, "misaligned atomic access of 4 bytes: offset 2 of x");
        EXPECT(atomic_host, "out of bounds: atomic access of 4 bytes: not device memory");
        EXPECT(trapped, "thread (40,0,0): __trap");
#undef EXPECT
        emu_configure(old);
    }
    refused(cudaSuccess, "", 1, 32, 0); /* the emulator goes on behind an error */
}

static void launches_outside_of_the_limits_are_refused(void **)
{
    emu_settings old = quiet(EMU_ASCENDING, 1, EMU_FORWARD);
    refused(cudaErrorInvalidConfiguration, "an empty grid", 0, 32, 0);
    refused(cudaErrorInvalidConfiguration, "a grid above", dim3(1, 65536), 32, 0);
    refused(cudaErrorInvalidConfiguration, "a block of no threads", 1, 0, 0);
    refused(cudaErrorInvalidConfiguration, "more than 1024", 1, 1056, 0);
    refused(cudaErrorInvalidConfiguration, "multiple of 32", 1, 33, 0);
    refused(cudaErrorInvalidValue, "dynamic shared memory", 1, 32, 49153);
    refused(cudaSuccess, "", 1, 32, 49152);
    assert_true(emu_allow_dynamic((const void *)nothing, 100000));
    refused(cudaSuccess, "", 1, 32, 100000);
    refused(cudaErrorInvalidValue, "dynamic shared memory", 1, 32, 100001);
    assert_false(emu_allow_dynamic((const void *)nothing, 163 * 1024 + 1));
    emu_configure(old);
}

static void device_memory_is_poisoned_and_bounded(void **)
{
    emu_settings old = quiet(EMU_ASCENDING, 1, EMU_FORWARD);
    unsigned char *p = (unsigned char *)aligned_alloc(256, 8192);
    emu_register_device(p, 5000, "p");
    assert_int_equal(p[4999], 0xFF);
    void *start;
    size_t bytes;
    assert_string_equal(emu_device_find(p + 4999, &start, &bytes), "p");
    assert_ptr_equal(start, p);
    assert_int_equal(bytes, 5000);
    assert_null(emu_device_find(p + 5000, &start, &bytes));
    assert_true(emu_device_write(p + 100, 3000, "copy"));
    assert_true(emu_device_read(p + 100, 3000, "copy"));
    assert_true(emu_device_read(p, 0, "copy"));
    assert_int_equal(emu_device_read(p + 99, 10, "copy"), !emu_checks());
    assert_int_equal(emu_device_read(p + 3000, 101, "copy"), !emu_checks());
    assert_false(emu_device_read(p + 4000, 1001, "copy of a row"));
    if (!emu_checks())
        assert_non_null(strstr(emu_error(), "copy of a row: 1001 bytes at"));
    emu_clear_error();
    emu_forget(p + 1024, 1024);
    assert_int_equal(p[1024], 0xFF);
    assert_int_equal(emu_device_read(p + 100, 1000, "copy"), !emu_checks());
    emu_clear_error();
    emu_forbid(p + 2048, 64);
    emu_allow(p + 2048, 64);
    assert_true(emu_device_write(p + 2048, 64, "copy"));
    assert_true(emu_unregister_device(p));
    assert_false(emu_unregister_device(p));
    free(p);
    emu_configure(old);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders_are_permutations_and_differ),
        cmocka_unit_test(a_changing_order_shows_between_two_runs),
        cmocka_unit_test(a_copy_read_too_early_is_poison),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(conversions_saturate_as_the_card_does),
        cmocka_unit_test(every_error_is_reported_where_it_happens),
        cmocka_unit_test(launches_outside_of_the_limits_are_refused),
        cmocka_unit_test(device_memory_is_poisoned_and_bounded),
    };
    return primitives_test() + cmocka_run_group_tests(tests, NULL, NULL);
}
