#include "cuda/internal.h"
#include "cuda/pair.h"
#include "cuda/sample.h"
#include "cuda/vector.h"
#include "cuda/wear.h"
#include "op_list.h"
#include <string.h>

/* An op's entry is a constant of its own in a file of kernels (kernel.h). */
#define GD_OP(name) extern const struct gd_backend_op gd_cuda_##name;
GD_OP_LIST
#undef GD_OP

static const struct {
    const char *name;
    const struct gd_backend_op *op;
} entries[] = {
#define GD_OP(name) {#name, &gd_cuda_##name},
    GD_OP_LIST
#undef GD_OP
};

static struct gd_backend_op find(const struct gd_op *op)
{
    for (size_t i = 0; i < GD_COUNT(entries); i++)
        if (strcmp(entries[i].name, op->name) == 0)
            return *entries[i].op;
    return (struct gd_backend_op){0};
}

static void free_block(void *memory, size_t size_bytes)
{
    gd_cuda_free(memory);
}

static bool alloc_staging(void **out, size_t size_bytes, struct gd_error *err)
{
    return gd_cuda_check(cudaHostAlloc(out, size_bytes, cudaHostAllocDefault), "cudaHostAlloc", "what is copied to the device", err);
}

static void free_staging(void *memory, size_t size_bytes)
{
    if (memory != NULL)
        cudaFreeHost(memory);
}

static bool copy(void *to, const void *from, size_t size_bytes, enum gd_copy direction, struct gd_error *err)
{
    static const enum cudaMemcpyKind kinds[] = {
        [GD_COPY_TO_DEVICE] = cudaMemcpyHostToDevice,
        [GD_COPY_FROM_DEVICE] = cudaMemcpyDeviceToHost,
        [GD_COPY_INSIDE] = cudaMemcpyDeviceToDevice,
    };
    if (size_bytes == 0)
        return true;
    return gd_cuda_check(cudaMemcpyAsync(to, from, size_bytes, kinds[direction], gd_cuda_stream()), "cudaMemcpyAsync", "a copy", err) &&
           gd_cuda_check(cudaStreamSynchronize(gd_cuda_stream()), "cudaStreamSynchronize", "a copy", err);
}

static bool fill_zero(void *memory, size_t size_bytes, struct gd_error *err)
{
    if (size_bytes == 0)
        return true;
    return gd_cuda_check(cudaMemsetAsync(memory, 0, size_bytes, gd_cuda_stream()), "cudaMemsetAsync", "zeros", err) &&
           gd_cuda_check(cudaStreamSynchronize(gd_cuda_stream()), "cudaStreamSynchronize", "zeros", err);
}

/* What sampling works in is kept, and grows: the driver's own taking and giving back at each turn would wait for all that runs. */
static bool sample(const struct gd_sample_batch *batch, struct gd_sampled *out, struct gd_error *err)
{
    static void *scratch;
    static size_t room;
    size_t bytes = gd_cuda_sample_bytes(batch->row_count, batch->vocab, batch->edit_count);
    if (bytes > room) {
        gd_cuda_free(scratch);
        scratch = NULL;
        room = 0;
        if (!gd_cuda_alloc(&scratch, bytes + bytes / 8, "the choice of tokens", err))
            return false;
        room = bytes + bytes / 8;
    }
    return gd_cuda_sample(batch, scratch, out, err);
}

const struct gd_backend gd_backend_cuda = {
    .name = "cuda",
    .lost = gd_cuda_lost,
    .own_memory = true,
    .op = find,
    .pair = gd_cuda_pair,
    .alloc = gd_cuda_alloc,
    .free = free_block,
    .owns = gd_cuda_owns,
    .alloc_staging = alloc_staging,
    .free_staging = free_staging,
    .copy = copy,
    .fill_zero = fill_zero,
    .run = gd_cuda_run,
    .forget = gd_cuda_forget,
    .layout_bytes = gd_cuda_layout_bytes,
    .layout_create = gd_cuda_layout_create,
    .layout_destroy = gd_cuda_layout_destroy,
    .layout_data = gd_cuda_layout_data,
    .multiply = gd_cuda_multiply,
    .wear_adopt = gd_cuda_wear_adopt,
    .wear_drop = gd_cuda_wear_drop,
    .sample = sample,
    .vector_add = gd_cuda_vector_add,
    .vector_add_squares = gd_cuda_vector_add_squares,
    .vector_sum_squares = gd_cuda_vector_sum_squares,
    .vector_all_finite = gd_cuda_vector_all_finite,
    .vector_adamw = gd_cuda_vector_adamw,
};
