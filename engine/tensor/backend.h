/*
 * backend.h - what a kind of device must offer: kernels by op, memory, copies, weight layouts.
 *
 * Why      A graph and its plan know nothing of the device; a second device is a second table.
 * Memory   alloc'd blocks are the caller's, returned with free and the same size.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY with what the block is for; library errors as GD_INTERNAL.
 * Limits   none
 * Life     constants; device.c picks one in gd_device_init.
 */
#ifndef GD_TENSOR_BACKEND_H
#define GD_TENSOR_BACKEND_H

#include "engine/tensor/op.h"

struct gd_layout; /* a weight laid out for one use; the backend knows what is inside */

struct gd_backend {
    const char *name;
    gd_kernel_fn (*kernel)(const struct gd_op *op); /* NULL: the op does not run on this device */
    bool (*alloc)(void **out, size_t size_bytes, const char *what, struct gd_error *err);
    void (*free)(void *memory, size_t size_bytes);
    void (*copy)(void *to, const void *from, size_t size_bytes); /* either end may be host memory */

    /* Weight layouts (weight.h). Bytes that layout_create will keep, and its making from the source. */
    size_t (*layout_bytes)(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute);
    bool (*layout_create)(struct gd_layout **out, const struct gd_weight *weight, enum gd_weight_use use,
                          enum gd_dtype compute, struct gd_error *err);
    void (*layout_destroy)(struct gd_layout *layout);
    const void *(*layout_data)(const struct gd_layout *layout);
    bool (*multiply)(const struct gd_layout *layout, const void *x, enum gd_dtype x_dtype, void *y,
                     enum gd_dtype y_dtype, int64_t rows, bool accumulate, struct gd_error *err);
};

extern const struct gd_backend gd_backend_cpu;
const struct gd_backend *gd_backend(void);

#endif
