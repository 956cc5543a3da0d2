/* The emulator itself: layouts against double references, orders, every error that it reports at once. */
#include "tests/cuda/device_array.h"
#include "tests/cuda/sync_runtime.h"

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

/* ---- fragments ---- */

__global__ void fragments(const bf16 *a, const bf16 *b, float *d)
{
    int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
    auto pair = [](bf16 low, bf16 high) { return low.bits | (unsigned)high.bits << 16; };
    unsigned ra[4], rb[2];
    for (int i = 0; i < 4; i++) {
        const bf16 *at = &a[(g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8];
        ra[i] = pair(at[0], at[1]);
    }
    for (int i = 0; i < 2; i++) {
        const bf16 *at = &b[(2 * t + i * 8) * 8 + g];
        rb[i] = pair(at[0], at[8]);
    }
    float rd[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t], d[(g + 8) * 8 + 2 * t + 1]};
    __syncwarp();
    mma_bf16(rd, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++)
        d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = rd[i];
}

static void an_mma_multiplies_by_the_documented_layout(void **)
{
    for (int sum = 0; sum < EMU_SUM_COUNT; sum++) {
        emu_settings old = quiet(EMU_ASCENDING, 1, (emu_sum)sum);
        device<bf16> a("a", 256, [](int i) { return to_bf16(random_float((uint64_t)i)); });
        device<bf16> b("b", 128, [](int i) { return to_bf16(random_float(1000 + (uint64_t)i)); });
        device<float> d("d", 128, [](int i) { return random_float(2000 + (uint64_t)i); });
        CU_LAUNCH(fragments, 1, 32, 0, NULL, a.data, b.data, d.data);
        assert_int_equal(sync_status(), cudaSuccess);
        for (int m = 0; m < 16; m++) {
            for (int n = 0; n < 8; n++) {
                double want = random_float(2000 + (uint64_t)(m * 8 + n));
                for (int k = 0; k < 16; k++)
                    want += (double)to_f32(a.data[m * 16 + k]) * (double)to_f32(b.data[k * 8 + n]);
                assert_true(fabs(d.data[m * 8 + n] - want) < 2e-6);
            }
        }
        emu_configure(old);
    }
}

/* C 16x16 = A 16x16 B 16x16, each operand stored either way, in rows of PITCH. */
template <bool A_TURNED, bool B_TURNED, int PITCH> __global__ void four_forms(const bf16 *a, const bf16 *b, float *c)
{
    CU_SHARED(bf16, sa, [16][PITCH]);
    CU_SHARED(bf16, sb, [16][PITCH]);
    int l = (int)threadIdx.x;
    for (int i = l; i < 256; i += 32) {
        sa[A_TURNED ? i % 16 : i / 16][A_TURNED ? i / 16 : i % 16] = a[i];
        sb[B_TURNED ? i % 16 : i / 16][B_TURNED ? i / 16 : i % 16] = b[i];
    }
    __syncwarp();
    unsigned ra[4], rb[2][2];
    if (A_TURNED)
        ldmatrix_x4_trans(ra, &sa[l % 8 + l / 16 * 8][l / 8 % 2 * 8]);
    else
        ldmatrix_x4(ra, &sa[l % 16][l / 16 * 8]);
    if (B_TURNED)
        ldmatrix_x4(rb[0], &sb[l % 8 + l / 16 * 8][l / 8 % 2 * 8]);
    else
        ldmatrix_x4_trans(rb[0], &sb[l % 16][l / 16 * 8]);
    float d[2][4] = {};
    mma_bf16_row<2>(d, ra, rb);
    for (int n = 0; n < 2; n++) {
        for (int i = 0; i < 4; i++)
            c[(l / 4 + i / 2 * 8) * 16 + n * 8 + l % 4 * 2 + i % 2] = d[n][i];
    }
}

template <bool A_TURNED, bool B_TURNED, int PITCH> static uint64_t conflicts_of_form(void)
{
    device<bf16> a("a", 256, [](int i) { return to_bf16(random_float((uint64_t)i)); });
    device<bf16> b("b", 256, [](int i) { return to_bf16(random_float(500 + (uint64_t)i)); });
    device<float> c("c", 256, [](int) { return 0.0f; });
    emu_counts before = emu_counted();
    CU_LAUNCH((four_forms<A_TURNED, B_TURNED, PITCH>), 1, 32, 0, NULL, a.data, b.data, c.data);
    assert_int_equal(sync_status(), cudaSuccess);
    for (int i = 0; i < 256; i++) {
        double want = 0;
        for (int k = 0; k < 16; k++)
            want += (double)to_f32(a.data[i / 16 * 16 + k]) * (double)to_f32(b.data[k * 16 + i % 16]);
        assert_true(fabs(c.data[i] - want) < 2e-6);
    }
    emu_counts after = emu_counted();
    assert_int_equal(after.ldmatrix_phases - before.ldmatrix_phases, 8);
    return after.bank_conflicts - before.bank_conflicts;
}

static void ldmatrix_loads_all_four_forms_and_counts_bank_conflicts(void **)
{
    assert_int_equal((conflicts_of_form<false, false, 40>()), 0);
    assert_int_equal((conflicts_of_form<true, false, 40>()), 0);
    assert_int_equal((conflicts_of_form<false, true, 72>()), 0);
    assert_int_equal((conflicts_of_form<true, true, 72>()), 0);
    assert_int_equal((conflicts_of_form<false, false, 32>()), 8 * 3);
    assert_int_equal((conflicts_of_form<false, true, 64>()), 8 * 7);
}

/* ---- warps and blocks ---- */

__global__ void exchanges(int *out)
{
    int l = (int)threadIdx.x;
    int *mine = out + l * 10;
    mine[0] = __shfl_sync(~0u, l, l * 7);
    mine[1] = __shfl_sync(~0u, l, 3, 8);
    mine[2] = __shfl_xor_sync(~0u, l, 5);
    mine[3] = __shfl_up_sync(~0u, l, 3, 16);
    mine[4] = __shfl_down_sync(~0u, l, 3, 16);
    mine[5] = (int)__ballot_sync(~0u, l % 3 == 0);
    mine[6] = __any_sync(~0u, l == 31) * 2 + __all_sync(~0u, l < 31);
    mine[7] = l < 16 ? __shfl_xor_sync(0xFFFFu, l, 1) : __shfl_xor_sync(0xFFFF0000u, l, 2);
    mine[8] = (int)(__shfl_sync(~0u, (long long)l << 40, 9) >> 40);
    mine[9] = __syncthreads_count(l < 5) * 100 + __syncthreads_or(l == 4) * 10 + __syncthreads_and(l < 31);
}

static void shuffles_and_votes_follow_the_manual(void **)
{
    device<int> out("out", 320, [](int) { return -1; });
    CU_LAUNCH(exchanges, 1, 32, 0, NULL, out.data);
    assert_int_equal(sync_status(), cudaSuccess);
    for (int l = 0; l < 32; l++) {
        const int *mine = out.data + l * 10;
        assert_int_equal(mine[0], l * 7 % 32);
        assert_int_equal(mine[1], l / 8 * 8 + 3);
        assert_int_equal(mine[2], l ^ 5);
        assert_int_equal(mine[3], l % 16 < 3 ? l : l - 3);
        assert_int_equal(mine[4], l % 16 > 12 ? l : l + 3);
        assert_int_equal((unsigned)mine[5], 0x49249249u);
        assert_int_equal(mine[6], 2);
        assert_int_equal(mine[7], l < 16 ? l ^ 1 : l ^ 2);
        assert_int_equal(mine[8], 9);
        assert_int_equal(mine[9], 5 * 100 + 10);
    }
}

template <class T> __global__ void reductions(const T *in, T *out)
{
    T x = in[threadIdx.x];
    T *mine = out + threadIdx.x * 6;
    mine[0] = warp_sum(x);
    mine[1] = warp_max(x);
    mine[2] = quad_sum(x);
    mine[3] = quad_max(x);
    mine[4] = block_sum(x);
    mine[5] = block_max(x);
}

template <class T> static void check_reductions(void)
{
    device<T> in("in", 96, [](int i) { return (T)(random_float(77 + (uint64_t)i) * 1000); });
    device<T> out("out", 96 * 6, [](int) { return T(); });
    CU_LAUNCH(reductions<T>, 1, 96, 0, NULL, in.data, out.data);
    assert_int_equal(sync_status(), cudaSuccess);
    T warps[3], sum = T(), most = in.data[0];
    for (int w = 0; w < 3; w++) { /* a butterfly is a tree: halves of the warp are added first */
        T tree[32];
        memcpy(tree, in.data + w * 32, sizeof(tree));
        for (int half = 16; half > 0; half /= 2) {
            for (int i = 0; i < half; i++)
                tree[i] = tree[i] + tree[i + half];
        }
        warps[w] = tree[0];
    }
    sum = warps[0] + warps[1] + warps[2];
    for (int i = 0; i < 96; i++)
        most = in.data[i] > most ? in.data[i] : most;
    for (int i = 0; i < 96; i++) {
        const T *mine = out.data + i * 6, *quad = in.data + i / 4 * 4;
        assert_true(mine[0] == warps[i / 32]);
        assert_true(mine[2] == (quad[0] + quad[2]) + (quad[1] + quad[3]));
        assert_true(mine[3] == max(max(quad[0], quad[1]), max(quad[2], quad[3])));
        assert_true(mine[4] == sum);
        assert_true(mine[5] == most);
    }
}

static void reductions_add_in_a_fixed_order(void **)
{
    for (int order = 0; order < EMU_ORDER_COUNT; order++) {
        emu_settings old = quiet((emu_order)order, 3, EMU_FORWARD);
        check_reductions<float>();
        check_reductions<double>();
        check_reductions<int>();
        check_reductions<int64_t>();
        check_reductions<long long>();
        emu_configure(old);
    }
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

__global__ void histogram(const int *values, int count, int *bins)
{
    CU_SHARED(int, mine, [8]);
    if (threadIdx.x < 8)
        mine[threadIdx.x] = 0;
    __syncthreads();
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += (int)(gridDim.x * blockDim.x))
        atomicAdd(&mine[values[i]], 1);
    __syncthreads();
    if (threadIdx.x < 8)
        atomicAdd(&bins[threadIdx.x], mine[threadIdx.x]);
}

static void atomics_count(void **)
{
    device<int> values("values", 1001, [](int i) { return i * i % 8; }), bins("bins", 8, [](int) { return 0; });
    CU_LAUNCH(histogram, 3, 64, 0, NULL, values.data, 1001, bins.data);
    assert_int_equal(sync_status(), cudaSuccess);
    int want[8] = {};
    for (int i = 0; i < 1001; i++)
        want[i * i % 8]++;
    assert_memory_equal(bins.data, want, sizeof(want));
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

__global__ void copies(const float *in, float *out)
{
    CU_SHARED(float, tile, [2][32][4]);
    int l = (int)threadIdx.x;
    cp_async16(tile[0][l], in + l * 4, 16);
    cp_async_commit();
    cp_async16(tile[1][l], in + l * 4, l % 3 * 4);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    out[l] = tile[0][31 - l][1];
    cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++)
        out[32 + l * 4 + i] = tile[1][l][i];
}

static void copies_come_at_the_wait_and_pad_with_zeros(void **)
{
    device<float> in("in", 128, [](int i) { return (float)i + 1; }), out("out", 160, [](int) { return -1.0f; });
    CU_LAUNCH(copies, 1, 32, 0, NULL, in.data, out.data);
    assert_int_equal(sync_status(), cudaSuccess);
    for (int l = 0; l < 32; l++) {
        assert_true(out.data[l] == (float)((31 - l) * 4 + 2));
        for (int i = 0; i < 4; i++)
            assert_true(out.data[32 + l * 4 + i] == (i < l % 3 ? (float)(l * 4 + i + 1) : 0.0f));
    }
}

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

__global__ void random_numbers(uint32_t *out)
{
    struct gd_philox p = gd_philox4(0x123456789ABCDEFull, gd_philox_stream(GD_RANDOM_DROPOUT, 3, 4), threadIdx.x);
    for (int i = 0; i < 4; i++)
        out[threadIdx.x * 4 + (unsigned)i] = p.v[i];
}

static void philox_gives_the_cpus_numbers(void **)
{
    device<uint32_t> out("out", 128, [](int) { return 0u; });
    CU_LAUNCH(random_numbers, 1, 32, 0, NULL, out.data);
    assert_int_equal(sync_status(), cudaSuccess);
    for (unsigned i = 0; i < 128; i++)
        assert_int_equal(out.data[i], gd_philox4(0x123456789ABCDEFull, gd_philox_stream(GD_RANDOM_DROPOUT, 3, 4), i / 4).v[i % 4]);
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
    check_reductions<float>(); /* the emulator goes on behind an error */
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
        cmocka_unit_test(an_mma_multiplies_by_the_documented_layout),
        cmocka_unit_test(ldmatrix_loads_all_four_forms_and_counts_bank_conflicts),
        cmocka_unit_test(shuffles_and_votes_follow_the_manual),
        cmocka_unit_test(reductions_add_in_a_fixed_order),
        cmocka_unit_test(orders_are_permutations_and_differ),
        cmocka_unit_test(atomics_count),
        cmocka_unit_test(a_changing_order_shows_between_two_runs),
        cmocka_unit_test(copies_come_at_the_wait_and_pad_with_zeros),
        cmocka_unit_test(a_copy_read_too_early_is_poison),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(conversions_saturate_as_the_card_does),
        cmocka_unit_test(philox_gives_the_cpus_numbers),
        cmocka_unit_test(every_error_is_reported_where_it_happens),
        cmocka_unit_test(launches_outside_of_the_limits_are_refused),
        cmocka_unit_test(device_memory_is_poisoned_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
