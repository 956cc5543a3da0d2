#include "bench.h"
#include <math.h>

static struct array {
    void *data;
    size_t bytes;
} arrays[BENCH_ARRAYS_MAX];
static int array_count;

int bench_open(void **state)
{
    struct gd_error err = {0};
    if (!gd_device_init("cuda:0", 1, &err))
        fail_msg("%s", err.message);
    return 0;
}

int bench_release(void **state)
{
    for (int i = 0; i < array_count; i++)
        gd_device_free(arrays[i].data, arrays[i].bytes);
    array_count = 0;
    return 0;
}

void *bench_room(size_t bytes)
{
    struct gd_error err = {0};
    struct array *array = &arrays[array_count++];
    assert_true(array_count <= BENCH_ARRAYS_MAX);
    array->bytes = bytes > 0 ? bytes : 1;
    array->data = NULL;
    if (!gd_device_alloc(&array->data, array->bytes, "a test's array", &err))
        fail_msg("%s", err.message);
    return array->data;
}

void *bench_put(const void *host, size_t bytes)
{
    struct gd_error err = {0};
    void *device = bench_room(bytes);
    if (bytes > 0 && !gd_device_write(device, host, bytes, &err))
        fail_msg("%s", err.message);
    return device;
}

void bench_get(void *host, const void *device, size_t bytes)
{
    struct gd_error err = {0};
    if (bytes > 0 && !gd_device_read(host, device, bytes, &err))
        fail_msg("%s", err.message);
}

float bench_normal(uint64_t stream, uint64_t i)
{
    struct gd_philox bits = gd_philox4(stream, gd_philox_stream(GD_RANDOM_TEST, 0, 0), i);
    return gd_normal_from_bits(bits.v[0], bits.v[1]);
}

void *bench_random(enum gd_dtype dtype, int64_t count, uint64_t stream)
{
    float *x = gd_alloc_array((size_t)count + 1, sizeof(float));
    void *memory = gd_alloc_array((size_t)count + 1, sizeof(float));
    for (int64_t i = 0; i < count; i++)
        x[i] = bench_normal(stream, (uint64_t)i);
    gd_convert_from_f32(memory, dtype, x, count);
    gd_free(x);
    return memory;
}

uint8_t *bench_blocks(enum gd_dtype dtype, int64_t count)
{
    size_t bytes = gd_dtype_block_bytes(dtype);
    uint8_t *blocks = gd_alloc_array((size_t)count, bytes);
    for (size_t i = 0; i < (size_t)count * bytes; i++)
        blocks[i] = (uint8_t)gd_philox4(dtype, 5, i).v[0];
    for (int64_t b = 0; b < count; b++) {
        uint8_t *block = blocks + (size_t)b * bytes;
        float step = 0.02f * bench_normal(6, (uint64_t)b), base = 0.3f * bench_normal(7, (uint64_t)b);
        uint16_t halves[2] = {gd_f32_to_f16(step), gd_f32_to_f16(base)};
        if (dtype == GD_NF4)
            memcpy(block, &base, 4);
        else if (dtype == GD_Q6_K)
            memcpy(block + 208, halves, 2);
        else
            memcpy(block, halves, dtype == GD_Q4_0 || dtype == GD_Q5_0 || dtype == GD_Q8_0 ? 2 : 4);
    }
    return blocks;
}

double bench_at(enum gd_dtype dtype, const void *data, int64_t i)
{
    return dtype == GD_BF16 ? (double)gd_bf16_to_f32(((const uint16_t *)data)[i]) : (double)((const float *)data)[i];
}
