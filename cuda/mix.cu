/*
 * Products with small matrices that are mixed or that mix: mix_middle, outer_middle, mix_linear, mix_linear_grad, route,
 * route_grad. Mixed matrices are never made whole: each element is mixed where it is used.
 */
#include "cuda/column_sums.h"

#define TILE 4            /* rows that a thread takes at once */
#define OUTER_THREADS 128
#define OUTER_TOKENS 64   /* of a block's part of the sums, at least */
#define OUTER_PARTS 256
#define NARROW 32         /* fewer columns than this: a warp for each */

namespace {

/* ---- mix_middle, outer_middle ---- */

/* y[t][i][p] = sum_j w[i step_to + j step_from] x[t][j][p]: a thread has TILE of the i for one p. */
template <typename T>
__global__ void mix_middle_kernel(T *y, const T *x, const float *w, int64_t from, int64_t to, int64_t step_from, int64_t step_to, int64_t size)
{
    const T *row = x + blockIdx.x * from * size;
    for (int64_t n = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; n < (to + TILE - 1) / TILE * size; n += (int64_t)gridDim.y * blockDim.x) {
        int64_t i = n / size * TILE, p = n % size;
        float sums[TILE] = {};
        for (int64_t j = 0; j < from; j++) {
            float value = to_f32(row[j * size + p]);
#pragma unroll
            for (int u = 0; u < TILE; u++)
                if (i + u < to)
                    sums[u] += w[(i + u) * step_to + j * step_from] * value;
        }
#pragma unroll
        for (int u = 0; u < TILE; u++)
            if (i + u < to)
                y[(blockIdx.x * to + i + u) * size + p] = from_f32<T>(sums[u]);
    }
}

int64_t outer_tokens(int64_t tokens)
{
    int64_t least = (tokens + OUTER_PARTS - 1) / OUTER_PARTS;
    return least > OUTER_TOKENS ? least : OUTER_TOKENS;
}

int64_t outer_parts(int64_t tokens)
{
    return tokens == 0 ? 1 : (tokens + outer_tokens(tokens) - 1) / outer_tokens(tokens);
}

/* parts[z][i][j] = sum of a[t][i][p] b[t][j][p] over p and the z-th part of the tokens; a block has TILE x TILE of the (i, j). */
template <typename T>
__global__ void outer_kernel(float *parts, const T *a, const T *b, int64_t tokens, int64_t each, int64_t l, int64_t m, int64_t size)
{
    int64_t across = (m + TILE - 1) / TILE, i = blockIdx.x / across * TILE, j = blockIdx.x % across * TILE;
    int64_t first = (int64_t)blockIdx.y * each, end = first + each < tokens ? first + each : tokens;
    float sums[TILE][TILE] = {};
    for (int64_t n = first * size + threadIdx.x; n < end * size; n += blockDim.x) {
        int64_t t = n / size, p = n % size;
        float of_b[TILE];
#pragma unroll
        for (int v = 0; v < TILE; v++)
            of_b[v] = j + v < m ? to_f32(b[(t * m + j + v) * size + p]) : 0.0f;
#pragma unroll
        for (int u = 0; u < TILE; u++) {
            float of_a = i + u < l ? to_f32(a[(t * l + i + u) * size + p]) : 0.0f;
#pragma unroll
            for (int v = 0; v < TILE; v++)
                sums[u][v] += of_a * of_b[v];
        }
    }
#pragma unroll
    for (int u = 0; u < TILE; u++)
#pragma unroll
        for (int v = 0; v < TILE; v++) {
            float sum = block_sum(sums[u][v]);
            if (threadIdx.x == 0 && i + u < l && j + v < m)
                parts[((int64_t)blockIdx.y * l + i + u) * m + j + v] = sum;
        }
}

bool run_mix_middle(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *w = &args->in[1], *y = &args->out[0];
    bool transpose = args->params->i[0] != 0;
    int64_t from = w->shape[transpose ? 0 : 1], to = w->shape[transpose ? 1 : 0], columns = w->shape[1], size = x->shape[1] / from;
    int64_t across = ((to + TILE - 1) / TILE * size + GD_CUDA_THREADS - 1) / GD_CUDA_THREADS;
    if (gd_tensor_count(y) == 0)
        return true;
    GD_BY_ACT(x->dtype, T,
              CU_LAUNCH((mix_middle_kernel<T>), dim3((unsigned)x->shape[0], (unsigned)(across < 1024 ? across : 1024)), GD_CUDA_THREADS, 0,
                        gd_cuda_stream(), (T *)y->data, (const T *)x->data, (const float *)w->data, from, to, transpose ? columns : 1,
                        transpose ? 1 : columns, size));
    return gd_cuda_launched(args, "mix_middle", err);
}

/* Parts of the sums, and what adding them up takes. */
size_t outer_scratch(const struct gd_call *call)
{
    int64_t size = call->out[0]->shape[0] * call->out[0]->shape[1], parts = OUTER_PARTS;
    if (call->in[0]->shape[0] < OUTER_PARTS * OUTER_TOKENS)
        parts = outer_parts(call->in[0]->shape[0]);
    return (size_t)(parts * size) * sizeof(float) + gd_column_sums_bytes(parts, size);
}

bool run_outer_middle(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *a = &args->in[0], *y = &args->out[0];
    int64_t tokens = a->shape[0], l = y->shape[0], m = y->shape[1], parts = outer_parts(tokens);
    int64_t blocks = (l + TILE - 1) / TILE * ((m + TILE - 1) / TILE);
    float *sums = (float *)args->scratch;
    if (l * m == 0)
        return true;
    GD_BY_ACT(a->dtype, T,
              CU_LAUNCH((outer_kernel<T>), dim3((unsigned)blocks, (unsigned)parts), OUTER_THREADS, 0, gd_cuda_stream(), sums,
                        (const T *)a->data, (const T *)args->in[1].data, tokens, outer_tokens(tokens), l, m, a->shape[1] / l));
    gd_column_sums(gd_column_part{sums, l * m}, (float *)y->data, parts, l * m, sums + parts * l * m);
    return gd_cuda_launched(args, "outer_middle", err);
}

/* ---- mix_linear: M = sum_j w[h][j] F[h][j] for each segment (engine/tensor/ops/mix.h) ---- */

struct mix {
    int64_t splits, skills, in, out, rows, columns, segments, tokens;
    bool by_output;
    const float *f, *w;
    const int32_t *cu;
};

struct mix mix_of(const struct gd_kernel_args *args)
{
    struct mix mix = {};
    mix.splits = args->params->i[0];
    mix.skills = args->params->i[1];
    mix.by_output = args->params->i[2] != 0;
    mix.in = args->in[0].shape[1];
    mix.tokens = args->in[0].shape[0];
    mix.segments = args->in[2].shape[0];
    mix.rows = mix.by_output ? mix.in : mix.in / mix.splits;
    mix.columns = args->in[1].shape[1];
    mix.out = mix.by_output ? mix.columns * mix.splits : mix.columns;
    mix.f = (const float *)args->in[1].data;
    mix.w = (const float *)args->in[2].data;
    mix.cu = (const int32_t *)args->in[3].data;
    return mix;
}

/* The segment that row t is of, or -1. */
CU_FN int64_t segment_of(const struct mix &mix, int64_t t)
{
    int64_t low = 0, high = mix.segments; /* cu[low] <= t, if any is */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (mix.cu[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    return t >= mix.cu[low] && t < mix.cu[low + 1] ? low : -1;
}

/* Where element (k, c) of M's first factor lies; the others follow at rows * columns each. Its weights are part h's. */
CU_FN const float *factor_at(const struct mix &mix, int64_t k, int64_t c, int64_t *h)
{
    *h = mix.by_output ? c / mix.columns : k / mix.rows;
    return mix.f + (*h * mix.skills * mix.rows + (mix.by_output ? k : k % mix.rows)) * mix.columns + (mix.by_output ? c % mix.columns : c);
}

/* Of rows t.. of x: sums[u] += x[t + u][k] M[k][c] of their segments, `weights[u]` NULL where there is none. BACK: y[t + u][c] instead. */
template <typename T, bool BACK>
CU_FN void add_products(float (&sums)[TILE], const struct mix &mix, const T *rows, const float *const (&weights)[TILE], int64_t k, int64_t c)
{
    int64_t h, width = BACK ? mix.out : mix.in, at = BACK ? c : k;
    const float *f = factor_at(mix, k, c, &h);
    float mixed[TILE] = {};
    for (int64_t j = 0; j < mix.skills; j++) {
        float value = f[j * mix.rows * mix.columns];
#pragma unroll
        for (int u = 0; u < TILE; u++)
            if (weights[u] != NULL)
                mixed[u] += weights[u][h * mix.skills + j] * value;
    }
#pragma unroll
    for (int u = 0; u < TILE; u++)
        if (weights[u] != NULL)
            sums[u] += to_f32(rows[u * width + at]) * mixed[u];
}

/* y = x M, or (BACK) dx = dy M^T: TILE rows of a block. Where there are many results in a row a thread makes one, in order of the
 * other side; where there are few a warp does. */
template <typename T, bool BACK, bool FEW> __global__ void mix_kernel(T *y, const T *x, struct mix mix)
{
    int64_t t = (int64_t)blockIdx.x * TILE, results = BACK ? mix.in : mix.out, depth = BACK ? mix.out : mix.in;
    int64_t group = FEW ? threadIdx.x / CU_WARP : threadIdx.x, groups = FEW ? blockDim.x / CU_WARP : blockDim.x;
    int64_t lane = FEW ? threadIdx.x % CU_WARP : 0, step = FEW ? CU_WARP : 1;
    const float *weights[TILE];
#pragma unroll
    for (int u = 0; u < TILE; u++) {
        int64_t s = t + u < mix.tokens ? segment_of(mix, t + u) : -1;
        weights[u] = s >= 0 ? mix.w + s * mix.splits * mix.skills : NULL;
    }
    for (int64_t r = group + (int64_t)blockIdx.y * groups; r < results; r += groups * gridDim.y) {
        float sums[TILE] = {};
        for (int64_t d = lane; d < depth; d += step)
            add_products<T, BACK>(sums, mix, x + t * depth, weights, BACK ? r : d, BACK ? d : r);
#pragma unroll
        for (int u = 0; u < TILE; u++) {
            if constexpr (FEW)
                sums[u] = warp_sum(sums[u]);
            if (lane == 0 && t + u < mix.tokens)
                y[(t + u) * results + r] = from_f32<T>(sums[u]);
        }
    }
}

/* dF[h][j][k][c] = sum_s w[s][h][j] sum over the rows t of s of x[t][k] dy[t][c]. */
template <typename T> __global__ void mix_df_kernel(float *df, const T *x, const T *dy, struct mix mix)
{
    int64_t each = mix.rows * mix.columns, pairs = mix.splits * mix.skills;
    for (int64_t n = gd_cuda_thread(); n < pairs * each; n += gd_cuda_threads()) {
        int64_t pair = n / each, h = pair / mix.skills, k = n % each / mix.columns, c = n % mix.columns;
        float sum = 0;
        if (mix.by_output)
            c += h * mix.columns;
        else
            k += h * mix.rows;
        for (int64_t s = 0; s < mix.segments; s++) {
            float part = 0;
            for (int64_t t = mix.cu[s] > 0 ? mix.cu[s] : 0; t < mix.cu[s + 1] && t < mix.tokens; t++)
                part += to_f32(x[t * mix.in + k]) * to_f32(dy[t * mix.out + c]);
            sum += mix.w[s * pairs + pair] * part;
        }
        df[n] = sum;
    }
}

/* dw[s][h][j] = sum of F[h][j][k][c] x[t][k] dy[t][c] over the rows of s and the elements: a block for each. */
template <typename T> __global__ void mix_dw_kernel(float *dw, const T *x, const T *dy, struct mix mix)
{
    int64_t pairs = mix.splits * mix.skills, s = blockIdx.x / pairs, pair = blockIdx.x % pairs, h = pair / mix.skills;
    const float *f = mix.f + pair * mix.rows * mix.columns;
    double sum = 0;
    for (int64_t n = threadIdx.x; n < mix.rows * mix.columns; n += blockDim.x) {
        int64_t k = n / mix.columns + (mix.by_output ? 0 : h * mix.rows), c = n % mix.columns + (mix.by_output ? h * mix.columns : 0);
        float part = 0;
        for (int64_t t = mix.cu[s] > 0 ? mix.cu[s] : 0; t < mix.cu[s + 1] && t < mix.tokens; t++)
            part += to_f32(x[t * mix.in + k]) * to_f32(dy[t * mix.out + c]);
        sum += (double)f[n] * (double)part;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        dw[blockIdx.x] = (float)sum;
}

template <typename T, bool BACK> void launch_mix(void *y, const void *x, const struct mix *mix)
{
    int64_t results = BACK ? mix->in : mix->out;
    bool few = results < NARROW;
    int64_t each = few ? GD_CUDA_THREADS / CU_WARP : GD_CUDA_THREADS;
    dim3 grid((unsigned)((mix->tokens + TILE - 1) / TILE), (unsigned)((results + each - 1) / each < 1024 ? (results + each - 1) / each : 1024));
    if (few)
        CU_LAUNCH((mix_kernel<T, BACK, true>), grid, GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)y, (const T *)x, *mix);
    else
        CU_LAUNCH((mix_kernel<T, BACK, false>), grid, GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)y, (const T *)x, *mix);
}

bool run_mix_linear(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct mix mix = mix_of(args);
    if (gd_tensor_count(&args->out[0]) == 0)
        return true;
    GD_BY_ACT(args->in[0].dtype, T, launch_mix<T, false>(args->out[0].data, args->in[0].data, &mix));
    return gd_cuda_launched(args, "mix_linear", err);
}

bool run_mix_linear_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct mix mix = mix_of(args);
    const void *x = args->in[0].data, *dy = args->in[4].data;
    int64_t count = gd_tensor_count(&args->out[1]), numbers = gd_tensor_count(&args->out[2]);
    if (mix.tokens > 0)
        GD_BY_ACT(args->in[0].dtype, T, launch_mix<T, true>(args->out[0].data, dy, &mix));
    GD_BY_ACT(args->in[0].dtype, T,
              CU_LAUNCH((mix_df_kernel<T>), gd_cuda_blocks(count, GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(),
                        (float *)args->out[1].data, (const T *)x, (const T *)dy, mix);
              CU_LAUNCH((mix_dw_kernel<T>), (unsigned)numbers, GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)args->out[2].data,
                        (const T *)x, (const T *)dy, mix));
    return gd_cuda_launched(args, "mix_linear_grad", err);
}

/* ---- route (engine/tensor/ops/route.h): a thread for each group of skills, in double ---- */

#define ROUTE_SITE_SHIFT 40
#define ROUTE_EPS 1e-12

struct route {
    const uint32_t *key;        /* NULL: no noise */
    const int32_t *owner;
    int64_t groups, splits, skills, site;
};

CU_FN double gate(const struct route &route, float z, int64_t segment, int64_t element)
{
    double noise = 0;
    if (route.key != NULL) {
        uint64_t stream = gd_philox_stream(GD_RANDOM_ROUTE, route.key[2], route.key[3]);
        uint64_t at = ((uint64_t)route.site << ROUTE_SITE_SHIFT) + (uint64_t)(route.owner[segment] * route.splits * route.skills + element);
        struct gd_philox bits = gd_philox4((uint64_t)route.key[1] << 32 | route.key[0], stream, at);
        double v = ((double)(bits.v[0] >> 8) + 0.5) / 16777216.0;
        noise = log(v) - log1p(-v);
    }
    return 1 / (1 + exp(-((double)z + noise)));
}

__global__ void route_kernel(float *w, const float *z, struct route route)
{
    for (int64_t group = gd_cuda_thread(); group < route.groups; group += gd_cuda_threads()) {
        int64_t segment = group / route.splits, first = group % route.splits * route.skills, at = group * route.skills;
        double sum = ROUTE_EPS;
        for (int64_t j = 0; j < route.skills; j++)
            sum += gate(route, z[at + j], segment, first + j);
        for (int64_t j = 0; j < route.skills; j++)
            w[at + j] = (float)(gate(route, z[at + j], segment, first + j) / sum);
    }
}

__global__ void route_grad_kernel(float *dz, const float *z, const float *dw, struct route route)
{
    for (int64_t group = gd_cuda_thread(); group < route.groups; group += gd_cuda_threads()) {
        int64_t segment = group / route.splits, first = group % route.splits * route.skills, at = group * route.skills;
        double sum = ROUTE_EPS, along = 0;
        for (int64_t j = 0; j < route.skills; j++) {
            double u = gate(route, z[at + j], segment, first + j);
            sum += u;
            along += (double)dw[at + j] * u;
        }
        for (int64_t j = 0; j < route.skills; j++) {
            double u = gate(route, z[at + j], segment, first + j);
            dz[at + j] = (float)(((double)dw[at + j] - along / sum) / sum * u * (1 - u));
        }
    }
}

/* The call's key and owners are inputs `key_at` and the next. */
struct route route_of(const struct gd_kernel_args *args, int key_at)
{
    struct route route = {(const uint32_t *)args->in[key_at].data, (const int32_t *)args->in[key_at + 1].data,
                          args->in[0].shape[0] * args->params->i[0], args->params->i[0], args->params->i[1], args->params->i[2]};
    return route;
}

bool run_route(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct route route = route_of(args, 1);
    if (route.groups == 0)
        return true;
    CU_LAUNCH(route_kernel, gd_cuda_blocks(route.groups, CU_WARP), CU_WARP, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, route);
    return gd_cuda_launched(args, "route", err);
}

bool run_route_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct route route = route_of(args, 2);
    if (route.groups == 0)
        return true;
    CU_LAUNCH(route_grad_kernel, gd_cuda_blocks(route.groups, CU_WARP), CU_WARP, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, (const float *)args->in[1].data, route);
    return gd_cuda_launched(args, "route_grad", err);
}

} // namespace

GD_CUDA_OP(mix_middle, run_mix_middle, NULL)
GD_CUDA_OP(outer_middle, run_outer_middle, outer_scratch)
GD_CUDA_OP(mix_linear, run_mix_linear, NULL)
GD_CUDA_OP(mix_linear_grad, run_mix_linear_grad, NULL)
GD_CUDA_OP(route, run_route, NULL)
GD_CUDA_OP(route_grad, run_route_grad, NULL)
