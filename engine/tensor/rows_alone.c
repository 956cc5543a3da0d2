#include "engine/tensor/rows_alone.h"

#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"

/* Random numbers where kernels find them. */
static bool fill(void *x, enum gd_dtype dtype, int64_t count, struct gd_error *err)
{
    uint64_t stream = gd_philox_stream(GD_RANDOM_TEST, 2, 0);
    void *host = NULL;
    size_t bytes = gd_dtype_bytes(dtype, count);
    if (!gd_large_alloc(&host, bytes, "rows to compare", err))
        return false;
    for (int64_t i = 0; i < count; i++) {
        struct gd_philox word = gd_philox4(1, stream, (uint64_t)i);
        float value = gd_normal_from_bits(word.v[0], word.v[1]);
        gd_convert_from_f32((char *)host + gd_dtype_bytes(dtype, i), dtype, &value, 1);
    }
    bool ok = gd_device_write(x, host, bytes, err);
    gd_large_free(host, bytes);
    return ok;
}

static bool are_same(bool *same, const void *a, const void *b, size_t bytes, struct gd_error *err)
{
    void *host[2] = {NULL, NULL};
    bool ok = gd_large_alloc(&host[0], bytes, "rows to compare", err) && gd_large_alloc(&host[1], bytes, "rows to compare", err) &&
              gd_device_read(host[0], a, bytes, err) && gd_device_read(host[1], b, bytes, err);
    *same = ok && memcmp(host[0], host[1], bytes) == 0;
    gd_large_free(host[0], bytes);
    gd_large_free(host[1], bytes);
    return ok;
}

bool gd_rows_alone(const struct gd_weight *weight, bool back, enum gd_dtype dtype, const int64_t *rows, int count, bool *same,
                   struct gd_error *err)
{
    int64_t in = gd_weight_dim(weight, back ? 0 : 1), out = gd_weight_dim(weight, back ? 1 : 0), total = 0;
    for (int k = 0; k < count; k++)
        total += rows[k];
    size_t x_bytes = gd_dtype_bytes(dtype, total * in), y_bytes = gd_dtype_bytes(dtype, total * out);
    void *x = NULL, *together = NULL, *alone = NULL;
    bool ok = gd_device_alloc(&x, x_bytes, "rows to compare", err) && gd_device_alloc(&together, y_bytes, "rows to compare", err) &&
              gd_device_alloc(&alone, y_bytes, "rows to compare", err) && fill(x, dtype, total * in, err) &&
              gd_weight_multiply(weight, back, x, dtype, together, dtype, total, false, err);
    int64_t row = 0;
    for (int k = 0; ok && k < count; k++) {
        ok = gd_weight_multiply(weight, back, (char *)x + gd_dtype_bytes(dtype, row * in), dtype,
                                (char *)alone + gd_dtype_bytes(dtype, row * out), dtype, rows[k], false, err);
        row += rows[k];
    }
    ok = ok && are_same(same, together, alone, y_bytes, err);
    gd_device_free(x, x_bytes);
    gd_device_free(together, y_bytes);
    gd_device_free(alone, y_bytes);
    return ok;
}
