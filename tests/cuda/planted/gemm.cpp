/* C = A B on tensor cores: blocks of 64x64, k in tiles of 32 in two buffers; A is a[m][k], B is b[k][n]; four warps of 32x32. */
#include "tests/cuda/planted/planted.h"

#define THREADS 128
#define TILE_K 32
#define A_PITCH 40
#define B_PITCH 72

__global__ void __launch_bounds__(THREADS) gemm(float *c, const bf16 *a, const bf16 *b, int M, int N, int K, int bug)
{
    CU_SHARED(bf16, as, [2][64][A_PITCH]);
    CU_SHARED(bf16, bs, [2][TILE_K][B_PITCH]);
    CU_SHARED(bf16, tight, [64][36]);
    int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32;
    int m0 = (int)blockIdx.y * 64, n0 = (int)blockIdx.x * 64, wm = warp / 2 * 32, wn = warp % 2 * 32;
    float d[2][4][4] = {};
    bf16 zero = {0};
    int tiles = (K + TILE_K - 1) / TILE_K;
    auto store = [&](int tile) {
        int buffer = tile % 2, k0 = tile * TILE_K;
        for (int i = thread; i < 64 * TILE_K; i += THREADS) {
            int m = i / TILE_K, k = i % TILE_K;
            as[buffer][m][k] = m0 + m < M && k0 + k < K ? a[(size_t)(m0 + m) * K + k0 + k] : zero;
            if (BUG(1))
                tight[m][k] = as[buffer][m][k];
        }
        for (int i = thread; i < TILE_K * 64; i += THREADS) {
            int k = i / 64, n = i % 64;
            if (BUG(2) ? k0 + k < K : k0 + k < K && n0 + n < N)
                bs[buffer][k][n] = b[(size_t)(k0 + k) * N + n0 + n];
            else if (!BUG(3))
                bs[buffer][k][n] = zero;
        }
    };
    store(0);
    __syncthreads();
    for (int tile = 0; tile < (BUG(4) ? K / TILE_K : tiles); tile++) {
        if (tile + 1 < tiles)
            store(BUG(5) ? tile : tile + 1);
        int buffer = tile % 2;
        for (int k = 0; k < TILE_K; k += 16) {
            unsigned ra[2][4], rb[4][2];
            for (int i = 0; i < 2; i++) {
                const bf16 *row = BUG(1) ? &tight[wm + i * 16 + lane % 16][k + lane / 16 * 8]
                                         : &as[buffer][wm + i * 16 + lane % 16][k + lane / 16 * 8];
                if (BUG(6))
                    row = &as[buffer][wm + i * 16 + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8];
                ldmatrix_x4(ra[i], row);
            }
            for (int j = 0; j < 2; j++) {
                const bf16 *row = &bs[buffer][k + lane % 16][wn + j * 16 + lane / 16 * 8];
                if (BUG(7))
                    row = &bs[buffer][k + lane / 16 * 8 + lane % 8][wn + j * 16 + lane / 8 % 2 * 8];
                if (BUG(8))
                    ldmatrix_x4(rb[2 * j], row);
                else
                    ldmatrix_x4_trans(rb[2 * j], row);
            }
            for (int i = 0; i < 2; i++) {
                if (BUG(9)) {
                    unsigned swap = ra[i][1];
                    ra[i][1] = ra[i][2];
                    ra[i][2] = swap;
                }
                if (!BUG(10))
                    mma_bf16_row<4>(d[i], ra[i], rb);
                else if (lane < 16)
                    mma_bf16_row<4>(d[i], ra[i], rb);
            }
        }
        if (!BUG(11))
            __syncthreads();
    }
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) {
            for (int e = 0; e < 4; e++) {
                int m = m0 + wm + i * 16 + lane / 4 + (BUG(12) ? 0 : e / 2 * 8), n = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
                if (BUG(13) ? m < M : m < M && n < N)
                    c[(size_t)m * N + n] = d[i][j][BUG(14) ? e ^ 1 : e];
            }
        }
    }
}

static void run_gemm(planted_run &run)
{
    int bug = run.bug;
    static const int shapes[][3] = {{1, 1, 1}, {65, 33, 40}, {63, 66, 100}};
    for (auto &shape : shapes) {
        int M = shape[0], N = shape[1], K = shape[2];
        device_array<bf16> a("a", M * K, [](int i) { return to_bf16(random_value(6, i)); });
        device_array<bf16> b("b", K * N, [](int i) { return to_bf16(random_value(7, i)); });
        device_array<float> c("c", M * N);
        if (BUG(15))
            CU_LAUNCH(gemm, dim3((N + 63) / 64, M / 64), THREADS, 0, NULL, c.data, a.data, b.data, M, N, K, bug);
        else
            CU_LAUNCH(gemm, dim3((N + 63) / 64, (M + 63) / 64), THREADS, 0, NULL, c.data, a.data, b.data, M, N, K, bug);
        for (int i = 0; i < M * N; i++) {
            double want = 0.0, size = 0.0;
            for (int k = 0; k < K; k++) {
                double product = (double)to_f32(a.data[i / N * K + k]) * to_f32(b.data[k * N + i % N]);
                want += product;
                size += fabs(product);
            }
            run.compare("c", i, c.data[i], want, size * K * 0x1p-23);
        }
        run.keep(c);
    }
}

static const planted_bug bugs[] = {
    {1, "rows of 72 bytes for ldmatrix", "misaligned", "misaligned", "misaligned"},
    {2, "no mask on the columns of B", "", "heap-buffer-overflow", "out of bounds"},
    {3, "no zeros beyond the last k", "wrong", "wrong", "reads what was never written"},
    {4, "the ragged tile of k is left out", "wrong", "wrong", "never written|wrong"},
    {5, "refills the tile that is being read", "wrong", "wrong", "race"},
    {6, "A addressed as B", "wrong", "wrong", "wrong"},
    {7, "quarters of B exchanged", "wrong", "wrong", "wrong"},
    {8, "B not transposed", "wrong", "wrong", "wrong"},
    {9, "a1 and a2 exchanged", "wrong", "wrong", "wrong"},
    {10, "an mma by half of the warp", "nothing can run|different collectives", "nothing can run|different collectives",
     "nothing can run|different collectives"},
    {11, "no barrier between reading and refilling", "wrong", "wrong", "race|never written"},
    {12, "both halves of a fragment to one row", "wrong", "wrong", "race|wrong"},
    {13, "no mask on the columns of C", "wrong|signal", "wrong|heap-buffer-overflow", "race|out of bounds"},
    {14, "neighbours in a fragment exchanged", "wrong", "wrong", "wrong"},
    {15, "the grid leaves out the ragged rows", "an empty grid", "an empty grid", "an empty grid"},
};
const planted_case planted_gemm = {"gemm", run_gemm, bugs, sizeof(bugs) / sizeof(bugs[0])};
