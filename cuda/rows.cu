/*
 * Rows and elements taken from elsewhere, and the way back: columns, columns_grad, embed, gather_rows, gather_rows_grad, pick,
 * scatter. Ids and places come from lists that the host has checked; one that lies outside all the same makes NaN, which the
 * losses show, and touches no memory.
 */
#include "cuda/layout.h"
#include "cuda/map.h"
#include "cuda/quant.h"

namespace {

/* Rows are moved in units of 16, 4, 2 or 1 bytes, the widest that divides all of `bytes`; T is a type of that size. */
#define BY_UNIT(bytes, T, ...)        \
    do {                              \
        if ((bytes) % 16 == 0) {      \
            using T = uint4;          \
            __VA_ARGS__;              \
        } else if ((bytes) % 4 == 0) { \
            using T = uint32_t;       \
            __VA_ARGS__;              \
        } else if ((bytes) % 2 == 0) { \
            using T = uint16_t;       \
            __VA_ARGS__;              \
        } else {                      \
            using T = uint8_t;        \
            __VA_ARGS__;              \
        }                             \
    } while (0)

template <typename T> CU_FN T all_bits(uint32_t bits)
{
    return (T)bits;
}

template <> CU_FN uint4 all_bits<uint4>(uint32_t bits)
{
    return make_uint4(bits, bits, bits, bits);
}

/* Blocks for rows of `units`: one or more side by side for each row. */
dim3 row_grid(int64_t rows, int64_t units)
{
    int64_t across = (units + GD_CUDA_THREADS - 1) / GD_CUDA_THREADS;
    return dim3((unsigned)rows, (unsigned)(across < 1 ? 1 : across > 1024 ? 1024 : across));
}

/* y[t][j] = x[t][j + from], or 0 where x has no such column; widths in units. */
template <typename T> __global__ void columns_kernel(T *y, const T *x, int64_t y_width, int64_t x_width, int64_t from)
{
    int64_t t = blockIdx.x;
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < y_width; j += (int64_t)gridDim.y * blockDim.x) {
        int64_t at = j + from;
        y[t * y_width + j] = at >= 0 && at < x_width ? x[t * x_width + at] : all_bits<T>(0);
    }
}

/* y[i] = x[index[i] + offset]; zeros where index[i] is negative, all bits set (NaN in each float format) where there is no such row. */
template <typename T>
__global__ void gather_kernel(T *y, const T *x, const int32_t *index, int64_t offset, int64_t rows, int64_t width)
{
    int64_t row = index[blockIdx.x];
    bool none = row < 0, inside = row + offset < rows;
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < width; j += (int64_t)gridDim.y * blockDim.x)
        y[blockIdx.x * width + j] = none ? all_bits<T>(0) : inside ? x[(row + offset) * width + j] : all_bits<T>(~0u);
}

/* The same from one dtype to another. */
template <typename TO, typename FROM>
__global__ void embed_kernel(TO *y, const FROM *x, const int32_t *index, int64_t offset, int64_t rows, int64_t width)
{
    int64_t row = index[blockIdx.x];
    bool none = row < 0, inside = row + offset < rows;
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < width; j += (int64_t)gridDim.y * blockDim.x)
        y[blockIdx.x * width + j] = from_f32<TO>(none ? 0.0f : inside ? to_f32(x[(row + offset) * width + j]) : NAN);
}

/*
 * dx[index[i]] = sum of dy[k] with index[k] = index[i], in the order of k, made by the block of the first such i; the others
 * leave. The list goes by in tiles of a block's threads; a bit says which of a tile belong. dx is zeros before.
 */
template <typename T> __global__ void gather_grad_kernel(T *dx, const T *dy, const int32_t *index, int64_t count, int64_t rows, int64_t width)
{
    CU_SHARED(unsigned, chosen, [GD_CUDA_THREADS / CU_WARP]);
    int64_t i = blockIdx.x, j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    int32_t row = index[i];
    int earlier = row < 0 || row >= rows;
    for (int64_t k = threadIdx.x; k < i && !earlier; k += blockDim.x)
        earlier = index[k] == row;
    if (!__syncthreads_or(earlier)) {
        float sum = 0;
        for (int64_t tile = i / blockDim.x * blockDim.x; tile < count; tile += blockDim.x) {
            int64_t k = tile + threadIdx.x;
            unsigned bits = __ballot_sync(~0u, k >= i && k < count && index[k < count ? k : i] == row);
            if (threadIdx.x % CU_WARP == 0)
                chosen[threadIdx.x / CU_WARP] = bits;
            __syncthreads();
            for (int warp = 0; warp < GD_CUDA_THREADS / CU_WARP; warp++)
                for (unsigned left = chosen[warp]; left != 0; left &= left - 1)
                    if (j < width)
                        sum += to_f32(dy[(tile + warp * CU_WARP + __ffs((int)left) - 1) * width + j]);
            __syncthreads(); /* the next tile writes */
        }
        if (j < width)
            dx[row * width + j] = from_f32<T>(sum);
    }
}

__global__ void pick_kernel(float *y, const float *x, const int32_t *places, int64_t count, int64_t length)
{
    for (int64_t i = gd_cuda_thread(); i < count; i += gd_cuda_threads())
        y[i] = places[i] >= 0 && places[i] < length ? x[places[i]] : NAN;
}

/* y[p] = sum of values[i] with places[i] = p, in the order of i: a warp goes through the list for each p, lane by lane in turn. */
__global__ void scatter_kernel(float *y, const float *values, const int32_t *places, int64_t count, int64_t length)
{
    int64_t p = gd_cuda_thread() / CU_WARP;
    int lane = threadIdx.x % CU_WARP;
    if (p < length) {
        float sum = 0;
        for (int64_t i = 0; i < count; i += CU_WARP) {
            bool mine = i + lane < count && places[i + lane] == p;
            for (unsigned left = __ballot_sync(~0u, mine); left != 0; left &= left - 1)
                sum += values[i + __ffs((int)left) - 1];
        }
        if (lane == 0)
            y[p] = sum;
    }
}

bool clear(void *to, size_t bytes, const char *op, struct gd_error *err)
{
    return gd_cuda_check(cudaMemsetAsync(to, 0, bytes, gd_cuda_stream()), "cudaMemsetAsync", op, err);
}

/* columns and its way back: y[t] from column `from` of x[t] on, which may be negative. */
bool move_columns(const struct gd_kernel_args *args, int64_t from, const char *op, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t rows = y->shape[0], unit = (int64_t)gd_dtype_bytes(y->dtype, 1);
    int64_t x_bytes = x->shape[1] * unit, y_bytes = y->shape[1] * unit, from_bytes = from * unit;
    if (rows == 0 || y_bytes == 0)
        return true;
    uintptr_t all = (uintptr_t)x->data | (uintptr_t)y->data | (uintptr_t)x_bytes | (uintptr_t)y_bytes | (uintptr_t)from_bytes;
    BY_UNIT(all, T,
            int64_t width = y_bytes / (int64_t)sizeof(T);
            CU_LAUNCH((columns_kernel<T>), row_grid(rows, width), GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)y->data, (const T *)x->data,
                      width, x_bytes / (int64_t)sizeof(T), from_bytes / (int64_t)sizeof(T)));
    return gd_cuda_launched(args, op, err);
}

bool run_columns(const struct gd_kernel_args *args, struct gd_error *err)
{
    return move_columns(args, args->params->i[0], "columns", err);
}

bool run_columns_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    return move_columns(args, -args->params->i[0], "columns_grad", err);
}

/* to[i] = from[index[i] + offset], rows of `bytes` bytes. */
void gather(void *to, const void *from, const int32_t *index, int64_t count, int64_t offset, int64_t rows, int64_t bytes)
{
    uintptr_t all = (uintptr_t)to | (uintptr_t)from | (uintptr_t)bytes;
    BY_UNIT(all, T,
            int64_t width = bytes / (int64_t)sizeof(T);
            CU_LAUNCH((gather_kernel<T>), row_grid(count, width), GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)to, (const T *)from, index,
                      offset, rows, width));
}

bool run_gather_rows(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    if (gd_tensor_count(y) == 0)
        return true;
    gather(y->data, x->data, (const int32_t *)args->in[1].data, y->shape[0], 0, x->shape[0], (int64_t)gd_dtype_bytes(x->dtype, x->shape[1]));
    return gd_cuda_launched(args, "gather_rows", err);
}

bool run_gather_rows_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *dy = &args->in[0], *dx = &args->out[0];
    int64_t count = dy->shape[0], rows = dx->shape[0], width = dx->shape[1];
    if (gd_tensor_count(dx) == 0)
        return true;
    if (!clear(dx->data, gd_dtype_bytes(dx->dtype, rows * width), "gather_rows_grad", err))
        return false;
    if (count == 0)
        return true;
    GD_BY_ACT(dx->dtype, T,
              CU_LAUNCH((gather_grad_kernel<T>), dim3((unsigned)count, (unsigned)((width + GD_CUDA_THREADS - 1) / GD_CUDA_THREADS)),
                        GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)dx->data, (const T *)dy->data, (const int32_t *)args->in[1].data, count,
                        rows, width));
    return gd_cuda_launched(args, "gather_rows_grad", err);
}

/* Rows of a quantised table: their blocks are gathered first, and unpacked as a matrix of their own. */
size_t embed_scratch(const struct gd_call *call)
{
    const struct gd_weight *table = call->in[0]->weight;
    enum gd_dtype dtype = gd_weight_source(table)->dtype;
    if (gd_weight_quantised(table) && gd_dtype_block(dtype) == 1)
        dtype = GD_NF4;
    return gd_dtype_block(dtype) == 1 ? 0 : (size_t)call->out[0]->shape[0] * gd_dtype_bytes(dtype, call->out[0]->shape[1]);
}

template <typename TO> bool embed(const struct gd_kernel_args *args, TO *y, struct gd_error *err)
{
    enum gd_dtype dtype;
    const void *table = gd_cuda_rows(args->weight[0], &dtype);
    const int32_t *ids = (const int32_t *)args->in[1].data;
    int64_t count = args->out[0].shape[0], width = args->out[0].shape[1], offset = args->params->i[0];
    int64_t rows = gd_weight_dim(args->weight[0], 0);
    if (dtype == args->out[0].dtype) {
        gather(y, table, ids, count, offset, rows, (int64_t)gd_dtype_bytes(dtype, width));
    } else if (dtype == GD_F32) {
        CU_LAUNCH((embed_kernel<TO, float>), row_grid(count, width), GD_CUDA_THREADS, 0, gd_cuda_stream(), y, (const float *)table, ids,
                  offset, rows, width);
    } else if (dtype == GD_BF16) {
        CU_LAUNCH((embed_kernel<TO, bf16>), row_grid(count, width), GD_CUDA_THREADS, 0, gd_cuda_stream(), y, (const bf16 *)table, ids,
                  offset, rows, width);
    } else if (dtype == GD_F16) {
        CU_LAUNCH((embed_kernel<TO, gd_f16>), row_grid(count, width), GD_CUDA_THREADS, 0, gd_cuda_stream(), y, (const gd_f16 *)table, ids,
                  offset, rows, width);
    } else {
        gather(args->scratch, table, ids, count, offset, rows, (int64_t)gd_dtype_bytes(dtype, width));
        if (!gd_cuda_unpack(args->scratch, dtype, width, 0, count, 0, width, y, args->out[0].dtype, err))
            return false;
    }
    return gd_cuda_launched(args, "embed", err);
}

bool run_embed(const struct gd_kernel_args *args, struct gd_error *err)
{
    if (gd_tensor_count(&args->out[0]) == 0)
        return true;
    return args->out[0].dtype == GD_BF16 ? embed(args, (bf16 *)args->out[0].data, err) : embed(args, (float *)args->out[0].data, err);
}

bool run_pick(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = args->out[0].shape[0];
    if (count == 0)
        return true;
    CU_LAUNCH(pick_kernel, gd_cuda_blocks(count, GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, (const int32_t *)args->in[1].data, count, args->in[0].shape[0]);
    return gd_cuda_launched(args, "pick", err);
}

bool run_scatter(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t length = args->out[0].shape[0], each = GD_CUDA_THREADS / CU_WARP;
    CU_LAUNCH(scatter_kernel, (unsigned)((length + each - 1) / each), GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, (const int32_t *)args->in[1].data, args->in[0].shape[0], length);
    return gd_cuda_launched(args, "scatter", err);
}

} // namespace

GD_CUDA_OP(columns, run_columns, NULL)
GD_CUDA_OP(columns_grad, run_columns_grad, NULL)
GD_CUDA_OP(embed, run_embed, embed_scratch)
GD_CUDA_OP(gather_rows, run_gather_rows, NULL)
GD_CUDA_OP(gather_rows_grad, run_gather_rows_grad, NULL)
GD_CUDA_OP(pick, run_pick, NULL)
GD_CUDA_OP(scatter, run_scatter, NULL)
