/*
 * lanes_math.h - template: small matrix products, exp2 and transposition on vectors of LANES floats (see lanes.h).
 *
 * Why      One micro-kernel serves all products of attention, forward and backward.
 * Memory   The caller's blocks; rows of b and c need not be aligned.
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   none
 * Life     none
 */
typedef float VEC __attribute__((vector_size(LANES * 4)));
typedef int32_t IVEC __attribute__((vector_size(LANES * 4)));
typedef uint32_t ISA(gd_uvec) __attribute__((vector_size(LANES * 4)));
typedef float ISA(gd_vec_unaligned) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ISA(gd_ivec_unaligned) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* c[m][0..nv*LANES) (+)= sum_k a[m*a_row + k*a_step] * b[k*b_row + ...], m < rows; rows and nv are constants. Each
 * element is one chain of multiply-adds in the order of k, whatever the tile. */
LANES_TILE void ISA(tile)(const int rows, const int nv, int depth, const float *a, int64_t a_row, int64_t a_step,
                            const float *b, int64_t b_row, float *c, int64_t c_row, bool accumulate)
{
    VEC acc[12][4];
    if (accumulate) {
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++)
                acc[m][v] = VLOAD(c + m * c_row + v * LANES);
    } else {
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++)
                acc[m][v] = (VEC){0};
    }
    for (int k = 0; k < depth; k++) {
        VEC x[4];
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            x[v] = VLOAD(b + k * b_row + v * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++)
                acc[m][v] += a[m * a_row + k * a_step] * x[v];
    }
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            VSTORE(c + m * c_row + v * LANES, acc[m][v]);
}

/* All rows of one panel of nv vectors: tiles of `high`, then of `low`, then single rows. */
LANES_TILE void ISA(panel)(const int high, const int low, const int nv, int rows, int depth, const float *a,
                             int64_t a_row, int64_t a_step, const float *b, int64_t b_row, float *c, int64_t c_row,
                             bool accumulate)
{
    int m = 0;
    for (; m + high <= rows; m += high)
        ISA(tile)(high, nv, depth, a + m * a_row, a_row, a_step, b, b_row, c + m * c_row, c_row, accumulate);
    for (; m + low <= rows; m += low)
        ISA(tile)(low, nv, depth, a + m * a_row, a_row, a_step, b, b_row, c + m * c_row, c_row, accumulate);
    for (; m < rows; m++)
        ISA(tile)(1, nv, depth, a + m * a_row, a_row, a_step, b, b_row, c + m * c_row, c_row, accumulate);
}

/* The product for any number of rows and nv vectors of columns. 32 vector registers hold 24 accumulators, 16 hold 12. */
LANES_PRODUCT void ISA(product)(int rows, int nv, int depth, const float *a, int64_t a_row, int64_t a_step, const float *b,
                           int64_t b_row, float *c, int64_t c_row, bool accumulate)
{
    const int widest = LANES == 16 ? 4 : 2;
    for (int v = 0; v < nv;) {
        int take = nv - v < widest ? nv - v : widest;
        const float *bv = b + v * LANES;
        float *cv = c + v * LANES;
        if (LANES == 16 && take == 4)
            ISA(panel)(6, 2, 4, rows, depth, a, a_row, a_step, bv, b_row, cv, c_row, accumulate);
        else if (LANES == 16 && take == 3)
            ISA(panel)(8, 2, 3, rows, depth, a, a_row, a_step, bv, b_row, cv, c_row, accumulate);
        else if (LANES == 16 && take == 2)
            ISA(panel)(12, 4, 2, rows, depth, a, a_row, a_step, bv, b_row, cv, c_row, accumulate);
        else if (LANES == 16)
            ISA(panel)(12, 4, 1, rows, depth, a, a_row, a_step, bv, b_row, cv, c_row, accumulate);
        else if (take == 2)
            ISA(panel)(6, 2, 2, rows, depth, a, a_row, a_step, bv, b_row, cv, c_row, accumulate);
        else
            ISA(panel)(8, 4, 1, rows, depth, a, a_row, a_step, bv, b_row, cv, c_row, accumulate);
        v += take;
    }
}

/* 2^x for x < 127; 0 below -126; exactly 1 for 0; NaN stays NaN. Relative error below 2e-7 (Cephes' exp2f polynomial). */
LANES_INLINE VEC ISA(exp2)(VEC x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    VEC shifted = x + magic;
    ISA(gd_uvec) power = (ISA(gd_uvec))shifted - 0x4B400000u;
    VEC f = x - (shifted - magic);
    VEC p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    IVEC tiny = x < -126.0f;
    return (VEC)(((ISA(gd_uvec))p + (power << 23)) & (ISA(gd_uvec))~tiny);
}

LANES_INLINE VEC ISA(select)(IVEC mask, VEC a, VEC b);

/* tanh x; NaN stays NaN. A series near 0, where 1 - 2 / (e^2x + 1) would cancel. Relative error below 1e-6. */
LANES_INLINE VEC ISA(tanh)(VEC x)
{
    VEC far = ISA(select)(x > 9.0f, (VEC){0} + 9.0f, x), square = x * x;
    far = ISA(select)(far < -9.0f, (VEC){0} - 9.0f, far);
    far = 1.0f - 2.0f / (ISA(exp2)(far * 2.88539008177792681472f) + 1.0f);
    VEC near = square * 2.1869488536155203e-2f - 5.3968253968253971e-2f;
    near = near * square + 1.3333333333333333e-1f;
    near = near * square - 3.3333333333333331e-1f;
    near = near * square * x + x;
    return ISA(select)(square < 0.0625f, near, far);
}

LANES_INLINE VEC ISA(max)(VEC a, VEC b)
{
    IVEC greater = a > b;
    return (VEC)(((IVEC)a & greater) | ((IVEC)b & ~greater));
}

/* where mask (all bits or none): a, else b */
LANES_INLINE VEC ISA(select)(IVEC mask, VEC a, VEC b)
{
    return (VEC)(((IVEC)a & mask) | ((IVEC)b & ~mask));
}

/* rows x n elements of an F32 or BF16 matrix to f32 rows of `out_row` floats, zeros in [n, out_row). */
LANES_FN void ISA(rows_to_f32)(float *out, int64_t out_row, const void *in, bool bf16, int64_t in_row, int rows, int n)
{
    for (int i = 0; i < rows; i++) {
        float *o = out + i * out_row;
        if (bf16) {
            const uint16_t *x = (const uint16_t *)in + i * in_row;
#pragma omp simd
            for (int j = 0; j < n; j++)
                o[j] = gd_bf16_to_f32(x[j]);
        } else {
            memcpy(o, (const float *)in + i * in_row, (size_t)n * sizeof(float));
        }
        for (int64_t j = n; j < out_row; j++)
            o[j] = 0;
    }
}

LANES_FN void ISA(rows_from_f32)(void *out, bool bf16, int64_t out_row, const float *in, int64_t in_row, int rows, int n)
{
    for (int i = 0; i < rows; i++) {
        const float *x = in + i * in_row;
        if (bf16) {
            uint16_t *o = (uint16_t *)out + i * out_row;
#pragma omp simd
            for (int j = 0; j < n; j++)
                o[j] = gd_f32_to_bf16(x[j]);
        } else {
            memcpy((float *)out + i * out_row, x, (size_t)n * sizeof(float));
        }
    }
}

/* out[j][i] = in[i][j] for i < rows, j < columns, both multiples of 4. */
LANES_FN void ISA(transpose)(float *out, int64_t out_row, const float *in, int64_t in_row, int rows, int columns)
{
    typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
    for (int i = 0; i < rows; i += 4)
        for (int j = 0; j < columns; j += 4) {
            const float *x = in + i * in_row + j;
            float *y = out + j * out_row + i;
            quad a = *(const quad *)x, b = *(const quad *)(x + in_row);
            quad c = *(const quad *)(x + 2 * in_row), d = *(const quad *)(x + 3 * in_row);
            quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            *(quad *)y = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
            *(quad *)(y + out_row) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
            *(quad *)(y + 2 * out_row) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
            *(quad *)(y + 3 * out_row) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
        }
}
