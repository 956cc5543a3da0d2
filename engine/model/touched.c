/* touched.c - how much of the mapped embedding table is in memory when some of its rows are read. */
#include "engine/model/model.h"

#define STRETCH ((uintptr_t)64 << 10)

static size_t row_bytes(const struct gd_model *model)
{
    const struct gd_tensor *source = gd_weight_source(model->embed);
    return gd_dtype_bytes(source->dtype, source->shape[1]);
}

size_t gd_model_touched_bytes(const struct gd_model *model, const bool *seen)
{
    const struct gd_tensor *source = gd_weight_source(model->embed);
    uintptr_t begin = (uintptr_t)source->data, next = 0; /* stretches below `next` are counted */
    size_t stretches = 0, bytes = row_bytes(model);
    for (int64_t row = 0; gd_weight_is_mapped(model->embed) && row < source->shape[0]; row++) {
        uintptr_t at = begin + (uintptr_t)row * bytes, first = at / STRETCH, last = (at + bytes - 1) / STRETCH;
        if (!seen[row])
            continue;
        first = first > next ? first : next;
        stretches += last >= first ? last - first + 1 : 0;
        next = last + 1;
    }
    return stretches * STRETCH;
}

size_t gd_model_touched_most(const struct gd_model *model, int64_t tokens)
{
    size_t bytes = row_bytes(model), whole = bytes * (size_t)model->config.vocab, each = STRETCH + bytes;
    if (!gd_weight_is_mapped(model->embed))
        return 0;
    return tokens < (int64_t)(whole / each) ? (size_t)tokens * each : whole;
}
