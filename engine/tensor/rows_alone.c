#include "engine/tensor/rows_alone.h"

#include "engine/base/alloc.h"
#include "engine/base/philox.h"

static void fill(void *x, enum gd_dtype dtype, int64_t count)
{
    uint64_t stream = gd_philox_stream(GD_RANDOM_TEST, 2, 0);
    for (int64_t i = 0; i < count; i++) {
        struct gd_philox word = gd_philox4(1, stream, (uint64_t)i);
        float value = gd_normal_from_bits(word.v[0], word.v[1]);
        gd_convert_from_f32((char *)x + gd_dtype_bytes(dtype, i), dtype, &value, 1);
    }
}

bool gd_rows_alone(const struct gd_weight *weight, bool back, enum gd_dtype dtype, const int64_t *rows, int count, bool *same,
                   struct gd_error *err)
{
    int64_t in = gd_weight_dim(weight, back ? 0 : 1), out = gd_weight_dim(weight, back ? 1 : 0), total = 0;
    for (int k = 0; k < count; k++)
        total += rows[k];
    size_t x_bytes = gd_dtype_bytes(dtype, total * in), y_bytes = gd_dtype_bytes(dtype, total * out);
    void *x = NULL, *together = NULL, *alone = NULL;
    bool ok = gd_large_alloc(&x, x_bytes, "rows to compare", err) && gd_large_alloc(&together, y_bytes, "rows to compare", err) &&
              gd_large_alloc(&alone, y_bytes, "rows to compare", err);
    if (ok)
        fill(x, dtype, total * in);
    ok = ok && gd_weight_multiply(weight, back, x, dtype, together, dtype, total, false, err);
    int64_t row = 0;
    for (int k = 0; ok && k < count; k++) {
        ok = gd_weight_multiply(weight, back, (char *)x + gd_dtype_bytes(dtype, row * in), dtype,
                                (char *)alone + gd_dtype_bytes(dtype, row * out), dtype, rows[k], false, err);
        row += rows[k];
    }
    *same = ok && memcmp(together, alone, y_bytes) == 0;
    gd_large_free(x, x_bytes);
    gd_large_free(together, y_bytes);
    gd_large_free(alone, y_bytes);
    return ok;
}
