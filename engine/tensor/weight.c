#include "engine/tensor/weight.h"
#include "engine/base/alloc.h"
#include "engine/tensor/backend.h"
#include "engine/tensor/dequant.h"
#include "engine/tensor/few_rows.h"
#include "engine/tensor/kernel.h"
#include "engine/tensor/weight_rows.h"
#include <assert.h>
#include <inttypes.h>

/* One slot per use and compute dtype: an f32 and a bf16 plan may share the weight. */
struct slot {
    struct gd_layout *layout;
    size_t size_bytes;
};

struct gd_weight {
    char *name;
    struct gd_tensor source;
    const int32_t *row_order;
    float add;
    void *quantised;                           /* the source's data, where the weight was quantised here */
    size_t quantised_bytes;
    bool unpacked_each_time, pretended;
    const struct gd_map *map;                  /* that the source lies in; NULL: memory */
    char identity[65];
    struct slot slots[GD_WEIGHT_USE_COUNT][2]; /* [use][compute is BF16] */
};

bool gd_weight_create(struct gd_weight **out, const char *name, const struct gd_tensor *source, const int32_t *row_order,
                      float add, struct gd_error *err)
{
    assert(*out == NULL);
    if (source->rank < 1 || source->rank > 2)
        return gd_fail(err, GD_UNSUPPORTED, "weight '%s' has %d dimensions; 1 or 2 are possible", name, source->rank);
    if (source->dtype == GD_I32 || source->dtype == GD_HANDLE)
        return gd_fail(err, GD_UNSUPPORTED, "weight '%s' has dtype %s", name, gd_dtype_name(source->dtype));
    for (int i = 0; i < source->rank; i++)
        if (source->shape[i] < 1 || source->shape[i] > INT32_MAX)
            return gd_fail(err, GD_BAD_MODEL, "weight '%s' has size %" PRId64 " in dimension %d", name, source->shape[i], i);
    if (source->shape[source->rank - 1] % gd_dtype_block(source->dtype) != 0)
        return gd_fail(err, GD_BAD_MODEL, "weight '%s': rows of %" PRId64 " are not whole %s blocks of %" PRId64, name,
                       source->shape[source->rank - 1], gd_dtype_name(source->dtype), gd_dtype_block(source->dtype));
    for (int64_t i = 0; source->rank == 2 && row_order != NULL && i < source->shape[0]; i++)
        if (row_order[i] < 0 || row_order[i] >= source->shape[0])
            return gd_fail(err, GD_INTERNAL, "weight '%s': row %" PRId64 " is taken from row %" PRId32 " of %" PRId64, name, i,
                           row_order[i], source->shape[0]);
    struct gd_weight *weight = gd_alloc(sizeof(*weight));
    weight->name = gd_strdup(name);
    weight->source = *source;
    weight->row_order = source->rank == 2 ? row_order : NULL;
    weight->add = add;
    *out = weight;
    return true;
}

void gd_weight_destroy(struct gd_weight *weight)
{
    if (weight == NULL)
        return;
    for (int use = 0; use < GD_WEIGHT_USE_COUNT; use++)
        for (int wide = 0; wide < 2; wide++)
            if (weight->slots[use][wide].layout != NULL)
                gd_backend()->layout_destroy(weight->slots[use][wide].layout);
    if (weight->quantised != NULL)
        gd_large_free(weight->quantised, weight->quantised_bytes);
    gd_free(weight->name);
    gd_free(weight);
}

/* What is needed again is read again. */
static void forget_source(const struct gd_weight *weight)
{
    const struct gd_tensor *source = &weight->source;
    if (weight->map != NULL)
        gd_map_forget(weight->map, (size_t)((const unsigned char *)source->data - weight->map->data),
                      gd_dtype_bytes(source->dtype, gd_tensor_count(source)));
}

bool gd_weight_quantise(struct gd_weight *weight, enum gd_dtype dtype, struct gd_error *err)
{
    struct gd_tensor *source = &weight->source;
    int64_t width = source->shape[source->rank - 1], block = gd_dtype_block(dtype);
    assert(dtype == GD_NF4 || dtype == source->dtype);
    if (source->rank != 2 || width % block != 0)
        return gd_fail(err, GD_UNSUPPORTED, "weight '%s': rows of %" PRId64 " are not whole %s blocks of %" PRId64, weight->name,
                       width, gd_dtype_name(dtype), block);
    weight->unpacked_each_time = true;
    if (dtype == source->dtype)
        return true;
    void *memory = NULL;
    size_t row_bytes = gd_dtype_bytes(dtype, width), bytes = row_bytes * (size_t)source->shape[0];
    if (!gd_large_alloc(&memory, bytes, "a quantised weight", err))
        return false;
    GD_PARALLEL(source->shape[0] * width)
    {
        struct gd_range range = gd_thread_range(source->shape[0], 1);
        float *row = gd_alloc_array((size_t)width, sizeof(float));
        for (int64_t i = range.begin; i < range.end; i++) {
            gd_weight_row_f32(weight, i, row);
            gd_quantise_nf4((char *)memory + (size_t)i * row_bytes, row, width / block);
        }
        gd_free(row);
    }
    forget_source(weight);
    weight->map = NULL;
    source->dtype = dtype;
    source->data = weight->quantised = memory;
    weight->quantised_bytes = bytes;
    weight->row_order = NULL;
    weight->add = 0;
    return true;
}

bool gd_weight_quantised(const struct gd_weight *weight)
{
    return weight->unpacked_each_time || weight->pretended;
}

void gd_weight_pretend_quantised(struct gd_weight *weight, bool on)
{
    weight->pretended = on;
}

void gd_weight_identify(struct gd_weight *weight, const char digest[65])
{
    memcpy(weight->identity, digest, sizeof(weight->identity));
}

const char *gd_weight_identity(const struct gd_weight *weight)
{
    return weight->identity;
}

void gd_weight_mapped(struct gd_weight *weight, const struct gd_map *map)
{
    weight->map = map;
}

bool gd_weight_is_mapped(const struct gd_weight *weight)
{
    return weight->map != NULL;
}

const char *gd_weight_name(const struct gd_weight *weight)
{
    return weight->name;
}

const struct gd_tensor *gd_weight_source(const struct gd_weight *weight)
{
    return &weight->source;
}

int gd_weight_rank(const struct gd_weight *weight)
{
    return weight->source.rank;
}

int64_t gd_weight_dim(const struct gd_weight *weight, int axis)
{
    assert(axis >= 0 && axis < weight->source.rank);
    return weight->source.shape[axis];
}

/* ---- layouts ---- */

/* Vectors are f32 whatever the products compute in, rows as the file has them. */
static struct slot *slot_of(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    assert(use < GD_WEIGHT_USE_COUNT);
    assert(compute == GD_F32 || compute == GD_BF16);
    bool bf16 = compute == GD_BF16 && use != GD_WEIGHT_VECTOR && use != GD_WEIGHT_ROWS;
    return (struct slot *)&weight->slots[use][bf16];
}

/* Few rows have a layout of their own where the backend has one. */
static enum gd_weight_use use_here(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    return use == GD_WEIGHT_FEW_ROWS && gd_backend()->layout_bytes(weight, use, compute) == 0 ? GD_WEIGHT_LINEAR : use;
}

/* Rows are served from the file where kernels can reach it. */
static bool is_there(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    return (use == GD_WEIGHT_ROWS && !gd_backend()->own_memory) || slot_of(weight, use, compute)->layout != NULL;
}

bool gd_weight_prepare(struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute, struct gd_error *err)
{
    use = use_here(weight, use, compute);
    struct slot *slot = slot_of(weight, use, compute);
    if (is_there(weight, use, compute))
        return true;
    if ((use == GD_WEIGHT_LINEAR || use == GD_WEIGHT_LINEAR_BACK) && weight->source.rank != 2)
        return gd_fail(err, GD_UNSUPPORTED, "weight '%s' is a vector and cannot be multiplied as a matrix", weight->name);
    slot->size_bytes = gd_backend()->layout_bytes(weight, use, compute);
    bool ok = gd_backend()->layout_create(&slot->layout, weight, use, compute, err);
    if (!ok)
        gd_error_context(err, "weight '%s'", weight->name);
    forget_source(weight);
    return ok;
}

size_t gd_weight_prepare_cost(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    use = use_here(weight, use, compute);
    if (is_there(weight, use, compute))
        return 0;
    return gd_backend()->layout_bytes(weight, use, compute);
}

void gd_layout_cost_add(struct gd_layout_cost *cost, const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    cost->bytes[use_here(weight, use, compute)] += gd_weight_prepare_cost(weight, use, compute);
}

void gd_layout_cost_join(struct gd_layout_cost *cost, const struct gd_layout_cost *other)
{
    for (int use = 0; use < GD_WEIGHT_USE_COUNT; use++)
        if (other->bytes[use] > cost->bytes[use])
            cost->bytes[use] = other->bytes[use];
}

size_t gd_layout_cost_sum(const struct gd_layout_cost *cost)
{
    size_t sum = 0;
    for (int use = 0; use < GD_WEIGHT_USE_COUNT; use++)
        sum += cost->bytes[use];
    return sum;
}

size_t gd_weight_prepared_bytes(const struct gd_weight *weight)
{
    size_t bytes = weight->quantised_bytes;
    for (int use = 0; use < GD_WEIGHT_USE_COUNT; use++)
        for (int wide = 0; wide < 2; wide++)
            if (weight->slots[use][wide].layout != NULL)
                bytes += weight->slots[use][wide].size_bytes;
    return bytes;
}

const struct gd_layout *gd_weight_layout(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute)
{
    return slot_of(weight, use, compute)->layout;
}

const float *gd_weight_vector(const struct gd_weight *weight)
{
    const struct slot *slot = &weight->slots[GD_WEIGHT_VECTOR][0];
    assert(slot->layout != NULL);
    return gd_backend()->layout_data(slot->layout);
}

bool gd_weight_multiply(const struct gd_weight *weight, bool back, const void *x, enum gd_dtype x_dtype, void *y,
                        enum gd_dtype y_dtype, int64_t rows, bool accumulate, struct gd_error *err)
{
    const struct slot *slot = slot_of(weight, back ? GD_WEIGHT_LINEAR_BACK : GD_WEIGHT_LINEAR, x_dtype);
    const struct slot *few = slot_of(weight, GD_WEIGHT_FEW_ROWS, x_dtype);
    if (!back && rows <= GD_FEW_ROWS && few->layout != NULL)
        slot = few;
    if (slot->layout == NULL)
        return gd_fail(err, GD_INTERNAL, "weight '%s' is not laid out for %s products in %s", weight->name,
                       back ? "backward" : "forward", gd_dtype_name(x_dtype));
    if (rows == 0)
        return true;
    return gd_backend()->multiply(slot->layout, x, x_dtype, y, y_dtype, rows, accumulate, err);
}

/* ---- rows of the source ---- */

const void *gd_weight_plain(const struct gd_weight *weight, enum gd_dtype dtype)
{
    const struct gd_tensor *source = &weight->source;
    bool plain = source->dtype == dtype && weight->row_order == NULL && weight->add == 0.0f;
    return plain && (uintptr_t)source->data % gd_dtype_block_bytes(dtype) == 0 ? source->data : NULL;
}

const void *gd_weight_row_blocks(const struct gd_weight *weight, int64_t row)
{
    const struct gd_tensor *source = &weight->source;
    int64_t from = weight->row_order != NULL ? weight->row_order[row] : row;
    if (weight->add != 0.0f)
        return NULL;
    return (const char *)source->data + (size_t)from * gd_dtype_bytes(source->dtype, source->shape[source->rank - 1]);
}

static int64_t row_elements(const struct gd_weight *weight)
{
    return weight->source.shape[weight->source.rank - 1];
}

void gd_weight_row_part_f32(const struct gd_weight *weight, int64_t row, int64_t begin, int64_t end, float *out)
{
    enum gd_dtype dtype = weight->source.dtype;
    assert(row >= 0 && row < (weight->source.rank == 2 ? weight->source.shape[0] : 1));
    int64_t from = weight->row_order != NULL ? weight->row_order[row] : row;
    const char *data = (const char *)weight->source.data + (size_t)from * gd_dtype_bytes(dtype, row_elements(weight));
    gd_convert_to_f32(out, data + gd_dtype_bytes(dtype, begin), dtype, end - begin);
    for (int64_t i = 0; weight->add != 0.0f && i < end - begin; i++)
        out[i] += weight->add;
}

void gd_weight_row_f32(const struct gd_weight *weight, int64_t row, float *out)
{
    gd_weight_row_part_f32(weight, row, 0, row_elements(weight), out);
}

void gd_weight_rows_f32(const struct gd_weight *weight, int64_t begin, int64_t end, float *out)
{
    int64_t width = row_elements(weight);
    GD_PARALLEL((end - begin) * width)
    {
        struct gd_range range = gd_thread_range(end - begin, 1);
        for (int64_t i = range.begin; i < range.end; i++)
            gd_weight_row_f32(weight, begin + i, out + i * width);
    }
}

void gd_weight_to_f32(const struct gd_weight *weight, float *out)
{
    gd_weight_rows_f32(weight, 0, weight->source.rank == 2 ? weight->source.shape[0] : 1, out);
    forget_source(weight);
}
