/* Causal attention with an online softmax on tensor cores: a block has 32 queries, a warp 16; 32 keys at a time; heads of 32. */
#include "tests/cuda/planted/planted.h"

#define THREADS 64
#define D 32
#define PITCH 40

__global__ void __launch_bounds__(THREADS) flash(float *out, const bf16 *q, const bf16 *k, const bf16 *v, int T, float scale, int bug)
{
    CU_SHARED(bf16, qs, [32][PITCH]);
    CU_SHARED(bf16, ks, [32][PITCH]);
    CU_SHARED(bf16, vs, [32][PITCH]);
    CU_SHARED(bf16, ps, [2][16][PITCH]);
    int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    int first = (int)blockIdx.x * 32;
    bf16 zero = {0};
    for (int i = thread; i < 32 * D; i += THREADS)
        qs[i / D][i % D] = first + i / D < T ? q[(size_t)(first + i / D) * D + i % D] : zero;
    float o[4][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    int end = BUG(1) ? min(first + 32 * warp, T) : min(first + 32, T);
    for (int j0 = BUG(8) && first > 0 ? 32 : 0; j0 < end; j0 += 32) {
        if (!BUG(2))
            __syncthreads();
        for (int i = thread; i < 32 * D; i += THREADS) {
            bool inside = j0 + i / D < T;
            if (inside || !BUG(3)) {
                ks[i / D][i % D] = inside ? k[(size_t)(j0 + i / D) * D + i % D] : zero;
                vs[i / D][i % D] = inside ? v[(size_t)(j0 + i / D) * D + i % D] : zero;
            }
        }
        if (!BUG(4))
            __syncthreads();
        float s[4][4] = {};
        for (int c = 0; c < D; c += 16) {
            unsigned a[4], b[4][2];
            ldmatrix_x4(a, &qs[warp * 16 + lane % 16][c + lane / 16 * 8]);
            for (int n = 0; n < 2; n++)
                ldmatrix_x4(b[2 * n], &ks[n * 16 + lane % 8 + lane / 16 * 8][c + lane / 8 % 2 * 8]);
            mma_bf16_row<4>(s, a, b);
        }
        for (int half = 0; half < 2; half++) {
            int i = first + warp * 16 + g + half * 8;
            float now = most[half];
            for (int n = 0; n < 4; n++) {
                for (int e = 0; e < 2; e++) {
                    int j = j0 + n * 8 + t * 2 + e;
                    float &x = s[n][half * 2 + e];
                    x = (BUG(5) ? j <= i + 1 && j < T : BUG(6) ? j <= i - first : j <= i && j < T) ? x * scale : -INFINITY;
                    now = fmaxf(now, x);
                }
            }
            if (!BUG(7))
                now = quad_max(now);
            float old = now == -INFINITY ? 1.0f : expf(most[half] - now), part = 0.0f;
            for (int n = 0; n < 4; n++) {
                for (int e = 0; e < 2; e++) {
                    float &x = s[n][half * 2 + e];
                    x = now == -INFINITY ? 0.0f : expf(x - now);
                    part += x;
                }
                if (!BUG(9)) {
                    o[n][half * 2] *= old;
                    o[n][half * 2 + 1] *= old;
                }
            }
            sum[half] = sum[half] * (BUG(10) ? 1.0f : old) + quad_sum(part);
            most[half] = now;
        }
        for (int c = 0; c < 2; c++) {
            unsigned p[4], b[4][2];
            if (BUG(11) || BUG(12)) {
                for (int e = 0; e < 8; e++)
                    ps[warp][g + e / 2 % 2 * 8][c * 16 + e / 4 * 8 + t * 2 + e % 2] = to_bf16(s[2 * c + e / 4][e % 4]);
                if (BUG(12))
                    warp_sum(p[0] = 1);
                ldmatrix_x4(p, &ps[warp][lane % 16][c * 16 + lane / 16 * 8]);
            } else {
                p[0] = pack_bf16(s[2 * c][0], s[2 * c][1]);
                p[BUG(13) ? 2 : 1] = pack_bf16(s[2 * c][2], s[2 * c][3]);
                p[BUG(13) ? 1 : 2] = pack_bf16(s[2 * c + 1][0], s[2 * c + 1][1]);
                p[3] = BUG(14) ? pack_bf16(s[2 * c + 1][3], s[2 * c + 1][2]) : pack_bf16(s[2 * c + 1][2], s[2 * c + 1][3]);
            }
            for (int n = 0; n < 2; n++)
                ldmatrix_x4_trans(b[2 * n], &vs[c * 16 + lane % 16][n * 16 + lane / 16 * 8]);
            mma_bf16_row<4>(o, p, b);
        }
    }
    for (int e = 0; e < 16; e++) {
        int i = first + warp * 16 + g + e / 2 % 2 * 8;
        if (i < (BUG(15) ? T + 1 : T))
            out[(size_t)i * D + e / 4 * 8 + t * 2 + e % 2] = o[e / 4][e % 4] / sum[e / 2 % 2];
    }
}

static void run_flash(planted_run &run)
{
    int bug = run.bug;
    static const int lengths[] = {1, 31, 32, 75};
    for (int T : lengths) {
        float scale = 0.9f;
        device_array<bf16> q("q", T * D, [](int i) { return to_bf16(random_value(8, i)); });
        device_array<bf16> k("k", T * D, [](int i) { return to_bf16(random_value(9, i) * (1.0f + 0.1f * (float)(i / D))); });
        device_array<bf16> v("v", T * D, [](int i) { return to_bf16(random_value(10, i)); });
        device_array<float> out("out", T * D);
        CU_LAUNCH(flash, (T + 31) / 32, THREADS, 0, NULL, out.data, q.data, k.data, v.data, T, scale, bug);
        for (int i = 0; i < T; i++) {
            std::vector<double> p((size_t)i + 1);
            double most = -INFINITY, sum = 0.0;
            for (int j = 0; j <= i; j++) {
                double s = 0.0;
                for (int c = 0; c < D; c++)
                    s += (double)to_f32(q.data[i * D + c]) * to_f32(k.data[j * D + c]);
                p[(size_t)j] = s * scale;
                most = fmax(most, p[(size_t)j]);
            }
            for (double &x : p)
                sum += x = exp(x - most);
            for (int c = 0; c < D; c++) {
                double want = 0.0;
                for (int j = 0; j <= i; j++)
                    want += p[(size_t)j] / sum * to_f32(v.data[j * D + c]);
                run.compare("out", i * D + c, out.data[i * D + c], want, 0x1p-8); /* p is rounded to bf16 */
            }
        }
        run.keep(out);
    }
}

static const planted_bug bugs[] = {
    {1, "a trip count that differs between warps, with barriers inside", "end|barrier", "end|barrier", "end|barrier|never written|race"},
    {2, "no barrier before keys are overwritten", "", "", "race|never written"},
    {3, "keys beyond the end left as they are", "wrong", "wrong", "reads what was never written"},
    {4, "no barrier behind the keys", "wrong", "wrong", "race|never written"},
    {5, "sees one key of the future", "wrong", "wrong", "wrong"},
    {6, "a mask that forgets where the block begins", "wrong", "wrong", "wrong"},
    {7, "the maximum of a quarter of the row", "wrong", "wrong", "wrong"},
    {8, "leaves out the first keys", "wrong", "wrong", "wrong"},
    {9, "sums not scaled down when the maximum grows", "wrong", "wrong", "wrong"},
    {10, "the denominator not scaled down", "wrong", "wrong", "wrong"},
    {11, "no __syncwarp between storing p and ldmatrix", "", "", "race"},
    {12, "a shuffle taken for a __syncwarp", "", "", "race"},
    {13, "p1 and p2 exchanged", "wrong", "wrong", "wrong"},
    {14, "halves of p3 exchanged", "wrong", "wrong", "wrong"},
    {15, "writes one row too many", "wrong|signal", "heap-buffer-overflow", "out of bounds"},
};
const planted_case planted_flash = {"flash", run_flash, bugs, sizeof(bugs) / sizeof(bugs[0])};
