/* The primitives of cuda/device.h: in the emulator, and with nvcc the same tests on a GPU, where they are the first to run. Products
 * against double references, everything else to the bit. */
#include "tests/cuda/device_array.h"
#include "tests/cuda/primitives.h"

#include "engine/tensor/tensor.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

extern "C" {
#include <cmocka.h>
}

template <class T> using device = device_array<T>;

static float random_float(uint64_t i)
{
    return random_value(1, (int)i);
}

static bf16 host_bf16(float value)
{
    bf16 out;
    out.bits = gd_f32_to_bf16(value);
    return out;
}

static double host_f32(bf16 value)
{
    return (double)gd_bf16_to_f32(value.bits);
}

#ifdef GD_CUDA_EMULATED
static int orders(void) { return EMU_ORDER_COUNT; }
static int sums(void) { return EMU_SUM_COUNT; }
static void choose(int order, int sum)
{
    emu_settings settings = emu_configured();
    settings.order = (emu_order)order;
    settings.sum = (emu_sum)sum;
    emu_configure(settings);
}
static uint64_t phases_and_conflicts(void) { return emu_counted().ldmatrix_phases * 1000 + emu_counted().bank_conflicts; }
#else
/* A GPU has an order of its own, and does not tell. */
static int orders(void) { return 1; }
static int sums(void) { return 1; }
static void choose(int, int) {}
static uint64_t phases_and_conflicts(void) { return 0; }

cudaError_t sync_status(void)
{
    cudaError_t launched = cudaGetLastError(), done = cudaDeviceSynchronize();
    return launched != cudaSuccess ? launched : done;
}

int main(void)
{
    return primitives_test();
}
#endif

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
    for (int sum = 0; sum < sums(); sum++) {
        choose(0, sum);
        device<bf16> a("a", 256, [](int i) { return host_bf16(random_float((uint64_t)i)); });
        device<bf16> b("b", 128, [](int i) { return host_bf16(random_float(1000 + (uint64_t)i)); });
        device<float> d("d", 128, [](int i) { return random_float(2000 + (uint64_t)i); });
        CU_LAUNCH(fragments, 1, 32, 0, NULL, a.data, b.data, d.data);
        assert_int_equal(sync_status(), cudaSuccess);
        for (int m = 0; m < 16; m++) {
            for (int n = 0; n < 8; n++) {
                double want = random_float(2000 + (uint64_t)(m * 8 + n));
                for (int k = 0; k < 16; k++)
                    want += host_f32(a.data[m * 16 + k]) * host_f32(b.data[k * 8 + n]);
                assert_true(fabs(d.data[m * 8 + n] - want) < 4e-6);
            }
        }
    }
    choose(0, 0);
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
    device<bf16> a("a", 256, [](int i) { return host_bf16(random_float((uint64_t)i)); });
    device<bf16> b("b", 256, [](int i) { return host_bf16(random_float(500 + (uint64_t)i)); });
    device<float> c("c", 256, [](int) { return 0.0f; });
    uint64_t before = phases_and_conflicts();
    CU_LAUNCH((four_forms<A_TURNED, B_TURNED, PITCH>), 1, 32, 0, NULL, a.data, b.data, c.data);
    assert_int_equal(sync_status(), cudaSuccess);
    for (int i = 0; i < 256; i++) {
        double want = 0;
        for (int k = 0; k < 16; k++)
            want += host_f32(a.data[i / 16 * 16 + k]) * host_f32(b.data[k * 16 + i % 16]);
        assert_true(fabs(c.data[i] - want) < 4e-6);
    }
    return phases_and_conflicts() - before;
}

static void expect_conflicts(uint64_t seen, uint64_t extra)
{
    if (orders() > 1)
        assert_int_equal(seen, 8 * 1000 + extra);
}

static void ldmatrix_loads_all_four_forms_and_counts_bank_conflicts(void **)
{
    expect_conflicts(conflicts_of_form<false, false, 40>(), 0);
    expect_conflicts(conflicts_of_form<true, false, 40>(), 0);
    expect_conflicts(conflicts_of_form<false, true, 72>(), 0);
    expect_conflicts(conflicts_of_form<true, true, 72>(), 0);
    expect_conflicts(conflicts_of_form<false, false, 32>(), 8 * 3);
    expect_conflicts(conflicts_of_form<false, true, 64>(), 8 * 7);
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
    for (int order = 0; order < orders(); order++) {
        choose(order, 0);
        check_reductions<float>();
        check_reductions<double>();
        check_reductions<int>();
        check_reductions<int64_t>();
        check_reductions<long long>();
    }
    choose(0, 0);
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

/* ---- numbers ---- */

__global__ void conversions(const float *in, int count, uint16_t *halves, bf16 *brains, float *back, unsigned *pairs)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count)
        return;
    halves[i] = f32_to_f16(in[i]);
    brains[i] = to_bf16(in[i]);
    back[i] = f16_to_f32((uint16_t)i);
    pairs[i] = pack_bf16(in[i], in[count - 1 - i]);
}

static double half_value(unsigned bits)
{
    int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    double value = exponent == 31 ? (fraction != 0 ? NAN : INFINITY)
                   : exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -value : value;
}

static unsigned nearest_half(double value)
{
    int exponent;
    double size = fabs(value);
    frexp(size, &exponent);
    exponent = exponent - 1 < -14 ? -14 : exponent - 1;
    unsigned bits = size >= 65520.0 ? 0x7C00u : (unsigned)(exponent + 14) * 1024 + (unsigned)nearbyint(ldexp(size, 10 - exponent));
    return bits | (value < 0.0 ? 0x8000u : 0u);
}

static void conversions_round_to_nearest_even(void **)
{
    enum { COUNT = 65536 }; /* every half, and as many values between halves */
    device<float> in("in", COUNT, [](int i) { return ldexpf(random_float((uint64_t)i), i % 48 - 26); });
    device<uint16_t> halves("halves", COUNT);
    device<bf16> brains("brains", COUNT);
    device<float> back("back", COUNT);
    device<unsigned> pairs("pairs", COUNT);
    CU_LAUNCH(conversions, COUNT / 256, 256, 0, NULL, in.data, COUNT, halves.data, brains.data, back.data, pairs.data);
    assert_int_equal(sync_status(), cudaSuccess);
    for (int i = 0; i < COUNT; i++) {
        uint16_t other = gd_f32_to_bf16(in.data[COUNT - 1 - i]);
        assert_int_equal(halves.data[i], nearest_half(in.data[i]));
        assert_int_equal(brains.data[i].bits, gd_f32_to_bf16(in.data[i]));
        assert_int_equal(pairs.data[i], gd_f32_to_bf16(in.data[i]) | (unsigned)other << 16);
        double want = half_value((unsigned)i);
        assert_true(isnan(want) ? isnan(back.data[i]) : (double)back.data[i] == want);
    }
}

int primitives_test(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_mma_multiplies_by_the_documented_layout),
        cmocka_unit_test(ldmatrix_loads_all_four_forms_and_counts_bank_conflicts),
        cmocka_unit_test(shuffles_and_votes_follow_the_manual),
        cmocka_unit_test(reductions_add_in_a_fixed_order),
        cmocka_unit_test(atomics_count),
        cmocka_unit_test(copies_come_at_the_wait_and_pad_with_zeros),
        cmocka_unit_test(philox_gives_the_cpus_numbers),
        cmocka_unit_test(conversions_round_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
