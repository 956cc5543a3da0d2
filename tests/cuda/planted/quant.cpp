/* Q4_0 blocks (18 bytes: a half and 32 nibbles) to bf16, and back to int8 rows with a scale. */
#include "tests/cuda/planted/planted.h"

__global__ void unpack(bf16 *out, const unsigned char *blocks, int count, int bug)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (BUG(1) ? i > count : i >= count)
        return;
    const unsigned char *block = blocks + (size_t)(i / 32) * 18;
    int place = i % 32;
    if (BUG(2)) {
        unsigned word = *(const unsigned *)(block + 2 + place % 16 / 4 * 4);
        int nibble = (int)(word >> (place % 4 * 8 + place / 16 * 4) & 15);
        out[i] = to_bf16(f16_to_f32((uint16_t)(block[0] | block[1] << 8)) * (float)(nibble - 8));
        return;
    }
    if (BUG(3)) {
        cu_vector<bf16, 4> four = *(const cu_vector<bf16, 4> *)(block + 2);
        out[i] = four.v[place % 4];
        return;
    }
    unsigned word = 0;
    for (int b = 0; b < 4; b++)
        word |= (unsigned)block[2 + place % 16 / 4 * 4 + b] << b * 8;
    int shift = place % 4 * 8 + (BUG(4) ? place / 16 * 8 : place / 16 * 4);
    if (BUG(5))
        shift = place % 2 * 4 + place / 2 % 4 * 8;
    int nibble = (int)(word >> shift & 15);
    float scale = f16_to_f32((uint16_t)(block[BUG(6) ? 1 : 0] | block[BUG(6) ? 0 : 1] << 8));
    out[i] = to_bf16(scale * (float)(BUG(7) ? nibble : nibble - 8));
}

/* A row of 64 in a block of 64 threads. */
__global__ void pack(signed char *out, float *scales, const bf16 *in, int bug)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float value = to_f32(in[i]), most = block_max(fabsf(value)), scale = most / 127.0f;
    if (!BUG(8) && threadIdx.x == 0)
        scales[blockIdx.x] = scale;
    if (BUG(8) && threadIdx.x < 2)
        scales[blockIdx.x] = scale;
    float scaled = most == 0.0f && !BUG(9) ? 0.0f : value / scale;
    out[i] = (signed char)(BUG(9) ? (int)rintf(scaled) : __float2int_rn(scaled));
}

static void run_quant(planted_run &run)
{
    int bug = run.bug;
    static const int counts[] = {32, 320, 1056};
    for (int count : counts) {
        device_array<unsigned char> blocks("blocks", count / 32 * 18, [](int i) {
            uint16_t scale = f32_to_f16(0.01f + fabsf(random_value(11, i / 18)));
            return (unsigned char)(i % 18 == 0 ? scale & 255 : i % 18 == 1 ? scale >> 8 : gd_philox4(1, 2, (uint64_t)i).v[0]);
        });
        device_array<bf16> out("out", count);
        CU_LAUNCH(unpack, (count + 127) / 128, 128, 0, NULL, out.data, blocks.data, count, bug);
        for (int i = 0; i < count; i++) {
            const unsigned char *block = blocks.data + i / 32 * 18;
            int place = i % 32, nibble = place < 16 ? block[2 + place] & 15 : block[2 + place - 16] >> 4;
            double want = (double)f16_to_f32((uint16_t)(block[0] | block[1] << 8)) * (nibble - 8);
            run.compare("out", i, to_f32(out.data[i]), want, fabs(want) * 0x1p-8);
        }
        run.keep(out);
    }
    device_array<bf16> in("in", 3 * 64, [](int i) { return to_bf16(i < 64 ? 0.0f : random_value(12, i)); });
    device_array<signed char> packed("packed", 3 * 64);
    device_array<float> scales("scales", 3);
    CU_LAUNCH(pack, 3, 64, 0, NULL, packed.data, scales.data, in.data, bug);
    for (int i = 0; i < 3 * 64; i++)
        run.compare("packed", i, packed.data[i] * scales.data[i / 64], to_f32(in.data[i]), scales.data[i / 64] * 0.5001 + 1e-30);
    run.keep(packed);
}

static const planted_bug bugs[] = {
    {1, "one element too many", "", "heap-buffer-overflow", "out of bounds|race"},
    {2, "words read from blocks of 18 bytes", "", "misaligned address", "misaligned"},
    {3, "a vector of four read from blocks of 18 bytes", "wrong", "misaligned address", "misaligned"},
    {4, "a shift beyond the word", "wrong", "shift exponent", "shift exponent"},
    {5, "order of the nibbles", "wrong", "wrong", "wrong"},
    {6, "bytes of the scale exchanged", "wrong", "wrong", "wrong"},
    {7, "no offset", "wrong", "wrong", "wrong"},
    {8, "two threads write the same value", "", "", "race"},
    {9, "zero divided by zero, then made an integer", "", "outside the range", "outside the range"},
};
const planted_case planted_quant = {"quant", run_quant, bugs, sizeof(bugs) / sizeof(bugs[0])};
