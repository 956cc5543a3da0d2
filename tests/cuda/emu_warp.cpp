/* What the lanes of a warp do together. The last lane to arrive computes for all of them. */
#include "tests/cuda/emu_state.h"

#define PC __builtin_return_address(0)
#define LANES(meeting, lane)              \
    for (int lane = 0; lane < 32; lane++) \
        if ((meeting)->mask >> lane & 1)

/* ---- votes and shuffles ---- */

struct vote {
    unsigned predicate, ballot;
};

static void count_votes(emu_meeting *meeting)
{
    unsigned ballot = 0;
    LANES(meeting, i) ballot |= (unsigned)(((vote *)meeting->args[i])->predicate != 0) << i;
    LANES(meeting, i)((vote *)meeting->args[i])->ballot = ballot;
}

static unsigned vote_of(const char *what, unsigned mask, int predicate, const void *pc, const char *file, int line)
{
    vote mine = {predicate != 0, 0};
    emu_meet(what, mask, &mine, count_votes, pc, file, line);
    return mine.ballot;
}

unsigned __ballot_sync(unsigned mask, int predicate, const char *file, int line)
{
    return vote_of("__ballot_sync", mask, predicate, PC, file, line);
}

int __any_sync(unsigned mask, int predicate, const char *file, int line)
{
    return vote_of("__any_sync", mask, predicate, PC, file, line) != 0;
}

int __all_sync(unsigned mask, int predicate, const char *file, int line)
{
    return vote_of("__all_sync", mask, predicate, PC, file, line) == mask;
}

static void raise_interval(emu_meeting *meeting)
{
    if (meeting->mask == emu.warps[emu.current / 32].exists)
        emu.warps[emu.current / 32].interval++;
}

void __syncwarp(unsigned mask, const char *file, int line)
{
    emu_meet("__syncwarp", mask, NULL, raise_interval, PC, file, line);
}

struct shuffle {
    uint64_t value, out;
    int source; /* -1: keeps its own */
};

static void exchange(emu_meeting *meeting)
{
    LANES(meeting, i)
    {
        shuffle *mine = (shuffle *)meeting->args[i];
        if (mine->source >= 0 && (meeting->mask >> mine->source & 1) == 0)
            emu_fail("%s at %s:%d: lane %d reads from lane %d, which is not in the mask 0x%08x", meeting->what, meeting->file,
                     meeting->line, i, mine->source, meeting->mask);
        mine->out = mine->source < 0 ? mine->value : ((shuffle *)meeting->args[mine->source])->value;
    }
}

uint64_t emu_shuffle(emu_shuffle_kind kind, unsigned mask, uint64_t value, int lane, int width, const char *file, int line)
{
    static const char *const names[] = {"__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync", "__shfl_down_sync"};
    if (width < 1 || width > 32 || (width & (width - 1)) != 0)
        emu_fail("%s at %s:%d: a width of %d", names[kind], file, line, width);
    int me = emu.current % 32, first = me - me % width, source;
    if (kind == EMU_IDX)
        source = first + (int)((unsigned)lane % (unsigned)width);
    else if (kind == EMU_XOR)
        source = (me ^ lane) < first + width && lane >= 0 && lane < 32 ? me ^ lane : -1;
    else if (kind == EMU_UP)
        source = lane >= 0 && me - lane >= first ? me - lane : -1;
    else
        source = lane >= 0 && lane < width && me + lane < first + width ? me + lane : -1;
    shuffle mine = {value, 0, source};
    emu_meet(names[kind], mask, &mine, exchange, PC, file, line);
    return mine.out;
}

/* ---- reductions: the butterflies of device_ptx.h, in one meeting ---- */

template <class T> static T add(T a, T b) { return a + b; }
template <> int add<int>(int a, int b) { return (int)((unsigned)a + (unsigned)b); }
template <class T> static T most(T a, T b) { return a > b ? a : b; }

template <class T, T combine(T, T), int FIRST> static void butterfly(emu_meeting *meeting)
{
    T now[32], next[32];
    for (int i = 0; i < 32; i++)
        now[i] = *(T *)meeting->args[i];
    for (int by = FIRST; by > 0; by /= 2) {
        for (int i = 0; i < 32; i++)
            next[i] = combine(now[i], now[i ^ by]);
        memcpy(now, next, sizeof(now));
    }
    for (int i = 0; i < 32; i++)
        *(T *)meeting->args[i] = now[i];
}

#define REDUCTION(T, name, combine, first)                                       \
    T name(T value, const char *file, int line)                                  \
    {                                                                            \
        emu_meet(#name, ~0u, &value, butterfly<T, combine<T>, first>, PC, file, line); \
        return value;                                                            \
    }
#define REDUCTIONS(T)                \
    REDUCTION(T, warp_sum, add, 16)  \
    REDUCTION(T, warp_max, most, 16) \
    REDUCTION(T, quad_sum, add, 2)   \
    REDUCTION(T, quad_max, most, 2)
EMU_NUMBERS(REDUCTIONS)

/* ---- matrices ---- */

struct load {
    unsigned *r;
    const void *row;
};

static void count_conflicts(emu_meeting *meeting)
{
    for (int matrix = 0; matrix < 4; matrix++) {
        uintptr_t rows[8];
        int turns = 1;
        for (int group = 0; group < 8; group++) { /* 16 bytes are four banks: eight groups of them */
            int different = 0;
            for (int i = 0; i < 8; i++) {
                uintptr_t row = (uintptr_t)((load *)meeting->args[matrix * 8 + i])->row;
                bool seen = row / 16 % 8 != (uintptr_t)group;
                for (int j = 0; j < different && !seen; j++)
                    seen = rows[j] == row;
                if (!seen)
                    rows[different++] = row;
            }
            turns = different > turns ? different : turns;
        }
        emu.counts.ldmatrix_phases++;
        emu.counts.bank_conflicts += (uint64_t)(turns - 1);
    }
}

template <bool TRANSPOSED> static void load_matrices(emu_meeting *meeting)
{
    uint16_t m[4][8][8];
    for (int i = 0; i < 32; i++) {
        const void *row = ((load *)meeting->args[i])->row;
        if (emu_slot_of((uintptr_t)row) == NULL) {
            char where[256];
            emu_describe((uintptr_t)row, where, sizeof(where));
            emu_fail("%s at %s:%d: lane %d gives an address outside of shared memory: %s", meeting->what, meeting->file,
                     meeting->line, i, where);
        }
        emu_touch(emu.current / 32 * 32 + i, row, 16, EMU_READ, meeting->pc[i]);
        memcpy(m[i / 8][i % 8], row, 16);
    }
    count_conflicts(meeting);
    for (int i = 0; i < 32; i++) {
        unsigned *r = ((load *)meeting->args[i])->r;
        for (int k = 0; k < 4; k++) {
            int t = i % 4 * 2, g = i / 4;
            unsigned low = TRANSPOSED ? m[k][t][g] : m[k][g][t], high = TRANSPOSED ? m[k][t + 1][g] : m[k][g][t + 1];
            r[k] = low | high << 16;
        }
    }
}

void ldmatrix_x4(unsigned *r, const void *row, const char *file, int line)
{
    load mine = {r, row};
    emu_meet("ldmatrix_x4", ~0u, &mine, load_matrices<false>, PC, file, line);
}

void ldmatrix_x4_trans(unsigned *r, const void *row, const char *file, int line)
{
    load mine = {r, row};
    emu_meet("ldmatrix_x4_trans", ~0u, &mine, load_matrices<true>, PC, file, line);
}

struct product {
    int tiles;
    float (*d)[4];
    const unsigned *a;
    const unsigned (*b)[2];
};

static float low_of(unsigned pair) { return __builtin_bit_cast(float, pair << 16); }
static float high_of(unsigned pair) { return __builtin_bit_cast(float, pair & 0xFFFF0000u); }

/* Rows of eight sums: the compiler keeps them in registers. */
template <class T, bool BACKWARD> static void sum_products(const float (*a)[16], const float (*b)[8], float (*d)[8])
{
    T wide[16][8];
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < 8; n++)
            wide[k][n] = b[k][n];
    for (int m = 0; m < 16; m++) {
        T sum[8];
        for (int n = 0; n < 8; n++)
            sum[n] = d[m][n];
        for (int i = 0; i < 16; i++) {
            T factor = a[m][BACKWARD ? 15 - i : i];
            for (int n = 0; n < 8; n++)
                sum[n] += factor * wide[BACKWARD ? 15 - i : i][n];
        }
        for (int n = 0; n < 8; n++)
            d[m][n] = (float)sum[n];
    }
}

static void multiply(emu_meeting *meeting)
{
    float a[16][16], b[16][8], d[16][8];
    for (int i = 0; i < 32; i++) {
        const unsigned *r = ((product *)meeting->args[i])->a;
        int g = i / 4, t = i % 4 * 2;
        for (int k = 0; k < 4; k++) {
            a[g + k % 2 * 8][t + k / 2 * 8] = low_of(r[k]);
            a[g + k % 2 * 8][t + k / 2 * 8 + 1] = high_of(r[k]);
        }
    }
    for (int tile = 0; tile < ((product *)meeting->args[0])->tiles; tile++) {
        for (int i = 0; i < 32; i++) {
            const product *mine = (product *)meeting->args[i];
            int g = i / 4, t = i % 4 * 2;
            for (int k = 0; k < 2; k++) {
                b[t + k * 8][g] = low_of(mine->b[tile][k]);
                b[t + k * 8 + 1][g] = high_of(mine->b[tile][k]);
            }
            for (int k = 0; k < 4; k++)
                d[g + k / 2 * 8][t + k % 2] = mine->d[tile][k];
        }
        if (emu.settings.sum == EMU_DOUBLE)
            sum_products<double, false>(a, b, d);
        else if (emu.settings.sum == EMU_BACKWARD)
            sum_products<float, true>(a, b, d);
        else
            sum_products<float, false>(a, b, d);
        for (int i = 0; i < 32; i++) {
            float *mine = ((product *)meeting->args[i])->d[tile];
            int g = i / 4, t = i % 4 * 2;
            for (int k = 0; k < 4; k++)
                mine[k] = d[g + k / 2 * 8][t + k % 2];
        }
    }
}

void emu_mma(int tiles, float (*d)[4], const unsigned *a, const unsigned (*b)[2], const char *file, int line)
{
    product mine = {tiles, d, a, b};
    emu_meet("mma_bf16", ~0u, &mine, multiply, PC, file, line);
}

/* ---- numbers ---- */

float f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FFu;
    if (exponent == 31)
        return __builtin_bit_cast(float, sign | 0x7F800000u | fraction << 13);
    if (exponent != 0)
        return __builtin_bit_cast(float, sign | (exponent + 112) << 23 | fraction << 13);
    float value = (float)fraction * 5.9604644775390625e-08f; /* 2^-24 */
    return sign != 0 ? -value : value;
}

uint16_t f32_to_f16(float value)
{
    uint32_t u = __builtin_bit_cast(uint32_t, value), sign = u >> 16 & 0x8000u, rest = u & 0x7FFFFFFFu;
    if (rest > 0x7F800000u)
        return 0x7FFF;
    if (rest >= 0x477FF000u) /* 65520 and above */
        return (uint16_t)(sign | 0x7C00u);
    if (rest < 0x38800000u) { /* below 2^-14: adding 0.5 puts the last place of a subnormal at the last bit */
        float shifted = __builtin_bit_cast(float, rest) + 0.5f;
        return (uint16_t)(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3F000000u));
    }
    return (uint16_t)(sign | ((rest - 0x38000000u + 0xFFFu + (rest >> 13 & 1)) >> 13));
}

unsigned __brev(unsigned bits)
{
    unsigned out = 0;
    for (int i = 0; i < 32; i++)
        out |= (bits >> i & 1) << (31 - i);
    return out;
}

unsigned __byte_perm(unsigned low, unsigned high, unsigned selector)
{
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> i * 4 & 15, byte = (unsigned)(bytes >> (pick & 7) * 8) & 0xFF;
        out |= (pick & 8 ? (byte & 0x80 ? 0xFFu : 0u) : byte) << i * 8;
    }
    return out;
}

static int saturated(double value)
{
    return value != value ? 0 : value >= 2147483647.0 ? 2147483647 : value <= -2147483648.0 ? -2147483647 - 1 : (int)value;
}

int __float2int_rn(float value) { return saturated(nearbyint((double)value)); }
int __float2int_rz(float value) { return saturated(trunc((double)value)); }
int __float2int_rd(float value) { return saturated(floor((double)value)); }
int __float2int_ru(float value) { return saturated(ceil((double)value)); }

static unsigned saturated_unsigned(double value)
{
    return !(value > 0.0) ? 0u : value >= 4294967295.0 ? 4294967295u : (unsigned)value;
}

unsigned __float2uint_rn(float value) { return saturated_unsigned(nearbyint((double)value)); }
unsigned __float2uint_rz(float value) { return saturated_unsigned(trunc((double)value)); }

int __dp4a(int a, int b, int sum)
{
    for (int i = 0; i < 4; i++)
        sum += (int8_t)(a >> i * 8) * (int8_t)(b >> i * 8);
    return sum;
}
