#include "engine/base/alloc.h"
#include "engine/tensor/backend.h"
#include "engine/tensor/few_rows.h"
#include "engine/tensor/gemm.h"
#include "engine/tensor/kernel.h"
#include "engine/tensor/pack_cache.h"
#include "engine/tensor/vector.h"
#include "engine/tensor/weight_rows.h"
#include <assert.h>

/* Rows that are converted at a time on the way into a bf16 layout: 16 MiB of f32 at 65536 columns. */
#define BLOCK_ROWS 64

/* A quantised weight is unpacked in tiles of about so many elements: 8 MiB of bf16. */
#define TILE_ELEMENTS ((int64_t)4 << 20)

struct gd_layout {
    const struct gd_weight *unpacked; /* quantised: products read its blocks */
    bool back;
    enum gd_dtype compute;
    float *vector;                  /* GD_WEIGHT_VECTOR */
    size_t vector_bytes;
    struct gd_few_rows *few;        /* GD_WEIGHT_FEW_ROWS */
    struct gd_gemm_packed *packed;  /* GD_WEIGHT_LINEAR, GD_WEIGHT_LINEAR_BACK */
};

static struct gd_backend_op find(const struct gd_op *op)
{
    return (struct gd_backend_op){.run = op->run_cpu, .scratch_bytes = op->scratch_bytes};
}

static bool alloc(void **out, size_t size_bytes, const char *what, struct gd_error *err)
{
    return gd_large_alloc(out, size_bytes, what, err);
}

static bool copy(void *to, const void *from, size_t size_bytes, enum gd_copy direction, struct gd_error *err)
{
    memcpy(to, from, size_bytes);
    return true;
}

static bool fill_zero(void *memory, size_t size_bytes, struct gd_error *err)
{
    GD_PARALLEL((int64_t)size_bytes)
    {
        struct gd_range r = gd_thread_range((int64_t)size_bytes, 64);
        memset((char *)memory + r.begin, 0, (size_t)(r.end - r.begin));
    }
    return true;
}

static int64_t elements(const struct gd_weight *weight)
{
    return gd_tensor_count(gd_weight_source(weight));
}

/* W is [out, in]. Forward multiplies by W^T: K = in, N = out. Backward by W itself: K = out, N = in. */
static size_t layout_bytes(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    if (use == GD_WEIGHT_VECTOR)
        return (size_t)elements(weight) * sizeof(float);
    if (use == GD_WEIGHT_FEW_ROWS)
        return compute == GD_BF16 ? gd_few_rows_bytes(weight) : 0;
    if (use == GD_WEIGHT_ROWS || gd_weight_rank(weight) != 2 || gd_weight_quantised(weight))
        return 0;
    int64_t out = gd_weight_dim(weight, 0), in = gd_weight_dim(weight, 1);
    return use == GD_WEIGHT_LINEAR ? gd_gemm_packed_bytes(in, out, compute) : gd_gemm_packed_bytes(out, in, compute);
}

static void rows_to_bf16(const struct gd_weight *weight, uint16_t *out, float *block)
{
    int64_t rows = gd_weight_dim(weight, 0), width = gd_weight_dim(weight, 1);
    for (int64_t begin = 0; begin < rows; begin += BLOCK_ROWS) {
        int64_t end = begin + BLOCK_ROWS < rows ? begin + BLOCK_ROWS : rows;
        gd_weight_rows_f32(weight, begin, end, block);
        GD_PARALLEL((end - begin) * width)
        {
            struct gd_range range = gd_thread_range((end - begin) * width, 32);
            gd_row_from_f32(out + begin * width + range.begin, GD_BF16, block + range.begin, range.end - range.begin);
        }
    }
}

static bool pack_plain(struct gd_layout *layout, const struct gd_weight *weight, bool forward, enum gd_dtype compute,
                       const void *plain, struct gd_error *err)
{
    int64_t out = gd_weight_dim(weight, 0), in = gd_weight_dim(weight, 1);
    return forward ? gd_gemm_pack(&layout->packed, in, out, compute, plain, true, "a weight laid out for forward products", err)
                   : gd_gemm_pack(&layout->packed, out, in, compute, plain, false, "a weight laid out for backward products", err);
}

/* By way of a row-major copy in `compute`, unless the file has it so already. */
static bool pack_anew(struct gd_layout *layout, const struct gd_weight *weight, bool forward, enum gd_dtype compute,
                 struct gd_error *err)
{
    const void *mapped = gd_weight_plain(weight, compute);
    if (mapped != NULL)
        return pack_plain(layout, weight, forward, compute, mapped, err);
    size_t plain_bytes = gd_dtype_bytes(compute, elements(weight));
    size_t block_bytes = (size_t)(BLOCK_ROWS * gd_weight_dim(weight, 1)) * sizeof(float);
    void *plain = NULL, *block = NULL;
    bool ok = gd_large_alloc(&plain, plain_bytes, "a weight on its way into a layout", err);
    if (ok && compute == GD_BF16)
        ok = gd_large_alloc(&block, block_bytes, "rows of a weight on their way into a layout", err);
    if (ok && compute == GD_BF16)
        rows_to_bf16(weight, plain, block);
    else if (ok)
        gd_weight_to_f32(weight, plain);
    ok = ok && pack_plain(layout, weight, forward, compute, plain, err);
    gd_large_free(block, block ? block_bytes : 0);
    gd_large_free(plain, plain ? plain_bytes : 0);
    return ok;
}

static bool pack(struct gd_layout *layout, const struct gd_weight *weight, bool forward, enum gd_dtype compute, struct gd_error *err)
{
    int64_t out = gd_weight_dim(weight, 0), in = gd_weight_dim(weight, 1), k = forward ? in : out, n = forward ? out : in;
    bool known = gd_pack_cache_on() && gd_weight_identity(weight)[0] != '\0';
    char *what = known ? gd_format("%s %s %s", gd_weight_identity(weight), gd_weight_name(weight), forward ? "forward" : "backward") : NULL;
    bool ok = known && gd_pack_cache_load(&layout->packed, what, k, n, compute);
    if (!ok) {
        ok = pack_anew(layout, weight, forward, compute, err);
        if (ok && known)
            gd_pack_cache_store(layout->packed, what, k, n, compute);
    }
    gd_free(what);
    return ok;
}

static void layout_destroy(struct gd_layout *layout)
{
    if (layout == NULL)
        return;
    gd_gemm_packed_destroy(layout->packed);
    gd_few_rows_destroy(layout->few);
    if (layout->vector != NULL)
        gd_large_free(layout->vector, layout->vector_bytes);
    gd_free(layout);
}

static bool layout_create(struct gd_layout **out, const struct gd_weight *weight, enum gd_weight_use use,
                          enum gd_dtype compute, struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_layout *layout = gd_alloc(sizeof(*layout));
    bool ok;
    if (use == GD_WEIGHT_VECTOR) {
        void *memory = NULL;
        layout->vector_bytes = (size_t)elements(weight) * sizeof(float);
        ok = gd_large_alloc(&memory, layout->vector_bytes, "a weight as f32", err);
        layout->vector = memory;
        if (ok)
            gd_weight_to_f32(weight, layout->vector);
    } else if (use == GD_WEIGHT_FEW_ROWS) {
        ok = gd_few_rows_create(&layout->few, weight, err);
    } else if (gd_weight_quantised(weight)) {
        layout->unpacked = weight;
        layout->back = use == GD_WEIGHT_LINEAR_BACK;
        layout->compute = compute;
        ok = true;
    } else {
        ok = pack(layout, weight, use == GD_WEIGHT_LINEAR, compute, err);
    }
    if (!ok) {
        layout_destroy(layout);
        return false;
    }
    *out = layout;
    return true;
}

static const void *layout_data(const struct gd_layout *layout)
{
    return layout->vector;
}

/* ---- quantised weights ---- */

/* One tile and a row for each thread, kept for the process as the library's scratch is. */
static struct {
    void *memory;
    size_t size_bytes;
} unpacking;

static bool reserve_tile(size_t size_bytes, struct gd_error *err)
{
    if (size_bytes <= unpacking.size_bytes)
        return true;
    gd_large_free(unpacking.memory, unpacking.size_bytes);
    unpacking.memory = NULL;
    unpacking.size_bytes = 0;
    if (!gd_large_alloc(&unpacking.memory, size_bytes, "a tile of a quantised weight", err))
        return false;
    unpacking.size_bytes = size_bytes;
    return true;
}

/* Rows [r0, r1), columns [c0, c1) of the weight as a matrix in `compute`. */
static void unpack(const struct gd_layout *layout, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *tile, float *rows)
{
    int64_t width = c1 - c0;
    size_t row_bytes = gd_dtype_bytes(layout->compute, width);
    GD_PARALLEL((r1 - r0) * width)
    {
        struct gd_range range = gd_thread_range(r1 - r0, 1);
        float *row = rows + omp_get_thread_num() * width;
        for (int64_t i = range.begin; i < range.end; i++) {
            char *to = (char *)tile + (size_t)i * row_bytes;
            if (layout->compute == GD_F32) {
                gd_weight_row_part_f32(layout->unpacked, r0 + i, c0, c1, (float *)to);
                continue;
            }
            gd_weight_row_part_f32(layout->unpacked, r0 + i, c0, c1, row);
            gd_row_from_f32(to, GD_BF16, row, width);
        }
    }
}

/* Tiles run along the result's columns, so that each sum is made at once: rows of W forward, columns of it backward. */
static bool multiply_unpacked(const struct gd_layout *layout, const void *x, void *y, enum gd_dtype y_dtype, int64_t rows,
                              bool accumulate, struct gd_error *err)
{
    int64_t out = gd_weight_dim(layout->unpacked, 0), in = gd_weight_dim(layout->unpacked, 1);
    int64_t columns = layout->back ? in : out, sum = layout->back ? out : in;
    int64_t block = layout->back ? gd_dtype_block(gd_weight_source(layout->unpacked)->dtype) : 1;
    int64_t step = TILE_ELEMENTS / sum / block * block;
    step = step < block ? block : step;
    step = step > columns ? columns : step;
    size_t tile_bytes = (gd_dtype_bytes(layout->compute, step * sum) + 63) / 64 * 64;
    int64_t row_floats = layout->back ? step : in;
    if (!reserve_tile(tile_bytes + (size_t)(row_floats * omp_get_max_threads()) * sizeof(float), err))
        return false;
    for (int64_t begin = 0; begin < columns; begin += step) {
        int64_t end = begin + step < columns ? begin + step : columns;
        unpack(layout, layout->back ? 0 : begin, layout->back ? out : end, layout->back ? begin : 0, layout->back ? end : in,
               unpacking.memory, (float *)(void *)((char *)unpacking.memory + tile_bytes));
        struct gd_gemm gemm = {.m = rows, .n = end - begin, .k = sum, .transpose_b = !layout->back, .in = layout->compute,
                               .out = y_dtype, .accumulate = accumulate, .alpha = 1.0f, .ldc = columns};
        if (!gd_gemm_run(&gemm, x, unpacking.memory, (char *)y + gd_dtype_bytes(y_dtype, begin), err))
            return false;
    }
    return true;
}

static bool multiply(const struct gd_layout *layout, const void *x, enum gd_dtype x_dtype, void *y, enum gd_dtype y_dtype,
                     int64_t rows, bool accumulate, struct gd_error *err)
{
    if (layout->few != NULL) {
        gd_few_rows_run(layout->few, x, x_dtype, y, y_dtype, rows, accumulate);
        return true;
    }
    if (layout->unpacked != NULL)
        return multiply_unpacked(layout, x, y, y_dtype, rows, accumulate, err);
    return gd_gemm_run_packed(layout->packed, x, y, y_dtype, rows, accumulate, err);
}

const struct gd_backend gd_backend_cpu = {
    .name = "cpu",
    .op = find,
    .alloc = alloc,
    .free = gd_large_free,
    .copy = copy,
    .fill_zero = fill_zero,
    .layout_bytes = layout_bytes,
    .layout_create = layout_create,
    .layout_destroy = layout_destroy,
    .layout_data = layout_data,
    .multiply = multiply,
    .vector_add = gd_cpu_vector_add,
    .vector_add_squares = gd_cpu_vector_add_squares,
    .vector_sum_squares = gd_cpu_vector_sum_squares,
    .vector_all_finite = gd_cpu_vector_all_finite,
    .vector_adamw = gd_cpu_vector_adamw,
};
