/* Frozen weights: one copy for each weight and form, whoever uses it. */
#include "cuda/layout.h"
#include "cuda/gemm.h"
#include "cuda/internal.h"
#include "cuda/quant.h"
#include "engine/base/alloc.h"
#include "engine/tensor/weight_rows.h"
#include <assert.h>
#include <string.h>

struct copy {
    struct copy *next;
    const struct gd_weight *weight;
    enum gd_dtype dtype;             /* F32, BF16, F16, or the source's blocks */
    int users;
    void *memory;
    size_t bytes;
};

struct gd_layout {
    struct copy *copy;
    bool back;
};

#define BUCKETS 4096
static struct copy *copies[BUCKETS];

static struct copy **bucket(const struct gd_weight *weight)
{
    return &copies[((uintptr_t)weight / 16 * UINT64_C(0x9E3779B97F4A7C15)) >> 52];
}

static struct copy *find(const struct gd_weight *weight, enum gd_dtype dtype)
{
    struct copy *copy = *bucket(weight);
    while (copy != NULL && (copy->weight != weight || copy->dtype != dtype))
        copy = copy->next;
    return copy;
}

static bool in_blocks(const struct gd_weight *weight)
{
    return gd_dtype_block(gd_weight_source(weight)->dtype) > 1 && (gd_weight_rank(weight) < 2 || gd_weight_row_blocks(weight, 0) != NULL);
}

/* The dtype that a use keeps. */
static enum gd_dtype form(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    enum gd_dtype source = gd_weight_source(weight)->dtype;
    switch (use) {
    case GD_WEIGHT_VECTOR:
        return GD_F32;
    case GD_WEIGHT_ROWS:
        if (in_blocks(weight) || ((source == GD_BF16 || source == GD_F16) && gd_weight_row_blocks(weight, 0) != NULL))
            return source;
        return GD_F32;
    case GD_WEIGHT_FEW_ROWS:
        return source;
    default:
        return gd_weight_quantised(weight) && in_blocks(weight) ? source : compute;
    }
}

static int64_t rows_of(const struct gd_weight *weight)
{
    return gd_weight_rank(weight) == 2 ? gd_weight_dim(weight, 0) : 1;
}

static int64_t width_of(const struct gd_weight *weight)
{
    return gd_weight_dim(weight, gd_weight_rank(weight) - 1);
}

static size_t bytes_of(const struct gd_weight *weight, enum gd_dtype dtype)
{
    return gd_dtype_bytes(dtype, width_of(weight)) * (size_t)rows_of(weight);
}

/* Both directions of a product share a copy, which the forward one pays for. Few rows of a weight whose blocks all products read
 * need nothing more. */
size_t gd_cuda_layout_bytes(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    if (use == GD_WEIGHT_LINEAR_BACK || (use != GD_WEIGHT_VECTOR && gd_weight_rank(weight) != 2))
        return 0;
    if (use == GD_WEIGHT_FEW_ROWS && (compute != GD_BF16 || gd_weight_quantised(weight) || !in_blocks(weight)))
        return 0;
    return bytes_of(weight, form(weight, use, compute));
}

/* ---- on the way to the device: two slices, one filled while the other is copied ---- */

#define SLICE ((size_t)8 << 20)

static struct {
    char *memory[2];
    cudaEvent_t copied[2];
} slices;

static bool make_slices(struct gd_error *err)
{
    for (int i = 0; i < 2; i++) {
        void *memory = NULL;
        if (slices.memory[i] != NULL)
            continue;
        if (!gd_cuda_check(cudaHostAlloc(&memory, SLICE, cudaHostAllocDefault), "cudaHostAlloc", "weights on their way to the device", err) ||
            !gd_cuda_check(cudaEventCreateWithFlags(&slices.copied[i], cudaEventDisableTiming | cudaEventBlockingSync),
                           "cudaEventCreateWithFlags", "weights", err))
            return false;
        slices.memory[i] = memory;
    }
    return true;
}

/* Rows [begin, end), or of one row longer than a slice a part, as the copy has them. */
static void fill(char *out, const struct copy *copy, int64_t row, int64_t begin, int64_t end, float *line)
{
    enum gd_dtype source = gd_weight_source(copy->weight)->dtype;
    const char *blocks = copy->dtype == source ? gd_weight_row_blocks(copy->weight, row) : NULL;
    if (blocks != NULL) {
        memcpy(out, blocks + gd_dtype_bytes(source, begin), gd_dtype_bytes(source, end - begin));
        return;
    }
    gd_weight_row_part_f32(copy->weight, row, begin, end, line);
    gd_convert_from_f32(out, copy->dtype, line, end - begin);
}

static bool send(const struct copy *copy, size_t at, int slice, size_t bytes, struct gd_error *err)
{
    return gd_cuda_check(cudaMemcpyAsync((char *)copy->memory + at, slices.memory[slice], bytes, cudaMemcpyHostToDevice, gd_cuda_copy_stream()),
                         "cudaMemcpyAsync", "a weight", err) &&
           gd_cuda_check(cudaEventRecord(slices.copied[slice], gd_cuda_copy_stream()), "cudaEventRecord", "a weight", err);
}

static bool upload(const struct copy *copy, struct gd_error *err)
{
    const struct gd_weight *weight = copy->weight;
    int64_t rows = rows_of(weight), width = width_of(weight);
    int64_t unit = 256;                                  /* a multiple of every block */
    int64_t piece = (int64_t)(SLICE / 4) / unit * unit;  /* of a row, at most */
    piece = piece > width ? width : piece;
    float *line = gd_alloc_array((size_t)piece, sizeof(float));
    size_t at = 0, filled = 0;
    int slice = 0;
    bool ok = make_slices(err) && gd_cuda_check(cudaEventSynchronize(slices.copied[slice]), "cudaEventSynchronize", "a weight", err);
    for (int64_t row = 0; ok && row < rows; row++)
        for (int64_t begin = 0; ok && begin < width; begin += piece) {
            int64_t end = begin + piece < width ? begin + piece : width;
            size_t bytes = gd_dtype_bytes(copy->dtype, end - begin);
            if (filled + bytes > SLICE) {
                ok = send(copy, at, slice, filled, err);
                at += filled;
                filled = 0;
                slice = !slice;
                ok = ok && gd_cuda_check(cudaEventSynchronize(slices.copied[slice]), "cudaEventSynchronize", "a weight", err);
            }
            if (ok)
                fill(slices.memory[slice] + filled, copy, row, begin, end, line);
            filled += bytes;
        }
    ok = ok && send(copy, at, slice, filled, err) &&
         gd_cuda_check(cudaStreamSynchronize(gd_cuda_copy_stream()), "cudaStreamSynchronize", "a weight", err);
    gd_free(line);
    return ok;
}

/* ---- copies ---- */

static void drop(struct copy *copy)
{
    if (--copy->users > 0)
        return;
    struct copy **at = bucket(copy->weight);
    while (*at != copy)
        at = &(*at)->next;
    *at = copy->next;
    gd_cuda_free(copy->memory);
    gd_free(copy);
}

static bool take(struct copy **out, const struct gd_weight *weight, enum gd_dtype dtype, struct gd_error *err)
{
    struct copy *copy = find(weight, dtype);
    if (copy != NULL) {
        copy->users++;
        *out = copy;
        return true;
    }
    copy = gd_alloc(sizeof(*copy));
    *copy = (struct copy){.next = *bucket(weight), .weight = weight, .dtype = dtype, .users = 1, .bytes = bytes_of(weight, dtype)};
    *bucket(weight) = copy;
    if (!gd_cuda_alloc(&copy->memory, copy->bytes, "a weight", err) || !upload(copy, err)) {
        drop(copy);
        return false;
    }
    *out = copy;
    return true;
}

/* ---- tiles of quantised weights ---- */

#define TILE_ELEMENTS ((int64_t)16 << 20)

/* Of the tiles that recordings may still write, the last is the largest. */
static struct {
    void *memory[GD_CUDA_LANES];
    size_t bytes;
} tile;

/* Columns of the result that a tile makes: rows of W forward, columns of it backward. */
static int64_t tile_step(const struct gd_weight *weight, bool back)
{
    int64_t out = gd_weight_dim(weight, 0), in = gd_weight_dim(weight, 1);
    int64_t columns = back ? in : out, sum = back ? out : in;
    int64_t unit = back ? 256 : 64;      /* whole blocks; results begin at 128 bytes */
    int64_t step = TILE_ELEMENTS / sum / unit * unit;
    step = step < unit ? unit : step;
    return step > columns ? columns : step;
}

static size_t tile_bytes(const struct gd_weight *weight, bool back, enum gd_dtype compute)
{
    return gd_dtype_bytes(compute, tile_step(weight, back) * gd_weight_dim(weight, back ? 0 : 1));
}

static bool reserve_tiles(size_t bytes, struct gd_error *err)
{
    if (bytes <= tile.bytes)
        return true;
    for (int lane = 0; lane < GD_CUDA_LANES; lane++) {
        void *memory = NULL;
        if (!gd_cuda_alloc(&memory, bytes, "a tile of a quantised weight", err))
            return false;
        tile.memory[lane] = memory;
    }
    tile.bytes = bytes;
    return true;
}

static bool multiply_blocks(const struct gd_layout *layout, const void *x, enum gd_dtype x_dtype, void *y, enum gd_dtype y_dtype, int64_t rows,
                            bool accumulate, struct gd_error *err)
{
    const struct copy *copy = layout->copy;
    int64_t out = gd_weight_dim(copy->weight, 0), in = gd_weight_dim(copy->weight, 1);
    int64_t columns = layout->back ? in : out, sum = layout->back ? out : in, step = tile_step(copy->weight, layout->back);
    void *memory = tile.memory[gd_cuda_lane()];
    for (int64_t begin = 0; begin < columns; begin += step) {
        int64_t end = begin + step < columns ? begin + step : columns;
        bool ok = layout->back ? gd_cuda_unpack(copy->memory, copy->dtype, in, 0, out, begin, end, memory, x_dtype, err)
                               : gd_cuda_unpack(copy->memory, copy->dtype, in, begin, end, 0, in, memory, x_dtype, err);
        struct gd_cuda_gemm gemm = {.m = rows, .n = end - begin, .k = sum, .transpose_b = !layout->back, .in = x_dtype, .out = y_dtype,
                                    .accumulate = accumulate, .alpha = 1.0f, .ldc = columns};
        if (!ok || !gd_cuda_gemm(&gemm, x, memory, (char *)y + gd_dtype_bytes(y_dtype, begin), err))
            return false;
    }
    return true;
}

/* ---- the table's ---- */

bool gd_cuda_layout_create(struct gd_layout **out, const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute,
                           struct gd_error *err)
{
    assert(*out == NULL);
    enum gd_dtype dtype = form(weight, use, compute);
    bool back = use == GD_WEIGHT_LINEAR_BACK, product = back || use == GD_WEIGHT_LINEAR;
    if (product && gd_dtype_block(dtype) > 1 && !reserve_tiles(tile_bytes(weight, back, compute), err))
        return false;
    struct copy *copy = NULL;
    if (!take(&copy, weight, dtype, err))
        return false;
    *out = gd_alloc(sizeof(**out));
    **out = (struct gd_layout){.copy = copy, .back = back};
    return true;
}

void gd_cuda_layout_destroy(struct gd_layout *layout)
{
    if (layout == NULL)
        return;
    drop(layout->copy);
    gd_free(layout);
}

const void *gd_cuda_layout_data(const struct gd_layout *layout)
{
    return layout->copy->memory;
}

const void *gd_cuda_rows(const struct gd_weight *weight, enum gd_dtype *dtype)
{
    *dtype = form(weight, GD_WEIGHT_ROWS, GD_F32);
    const struct copy *copy = find(weight, *dtype);
    assert(copy != NULL);
    return copy->memory;
}

const void *gd_cuda_plain(const struct gd_weight *weight, enum gd_dtype dtype)
{
    const struct copy *copy = find(weight, dtype);
    return copy != NULL ? copy->memory : NULL;
}

bool gd_cuda_multiply(const struct gd_layout *layout, const void *x, enum gd_dtype x_dtype, void *y, enum gd_dtype y_dtype,
                      int64_t rows, bool accumulate, struct gd_error *err)
{
    const struct copy *copy = layout->copy;
    int64_t out = gd_weight_dim(copy->weight, 0), in = gd_weight_dim(copy->weight, 1);
    if (gd_dtype_block(copy->dtype) > 1 && !layout->back && rows <= GD_CUDA_FEW_ROWS)
        return gd_cuda_few_rows(copy->memory, copy->dtype, out, in, x, x_dtype, y, y_dtype, rows, accumulate, err);
    if (gd_dtype_block(copy->dtype) > 1)
        return multiply_blocks(layout, x, x_dtype, y, y_dtype, rows, accumulate, err);
    struct gd_cuda_gemm gemm = {.m = rows, .n = layout->back ? in : out, .k = layout->back ? out : in, .transpose_b = !layout->back,
                                .in = x_dtype, .out = y_dtype, .accumulate = accumulate, .alpha = 1.0f};
    return gd_cuda_gemm(&gemm, x, copy->memory, y, err);
}
