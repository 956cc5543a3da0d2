/*
 * backend.h - what a kind of device must offer: kernels by op, memory, copies, runs of a plan, weight layouts, vectors.
 *
 * Why      A graph and its plan know nothing of the device; a second device is a second table.
 * Memory   alloc'd blocks are the caller's, returned with free and the same size.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY with what the block is for; library errors as GD_INTERNAL; a device that is gone as GD_DEVICE_LOST.
 * Limits   none
 * Life     constants; device.c picks one in gd_device_init.
 */
#ifndef GD_TENSOR_BACKEND_H
#define GD_TENSOR_BACKEND_H

#include "engine/tensor/device.h"
#include "engine/tensor/op.h"
#include "engine/tensor/sample.h"
#include "engine/tensor/wear.h"

struct gd_layout;    /* a weight laid out for one use; the backend knows what is inside */
struct gd_recording; /* the launches of a plan, to be repeated */

/* How an op runs on a device. `run` of a device with memory of its own only launches: it reads nothing back, waits for nothing,
 * and launches the same for whatever the inputs hold, so that a run can be recorded and repeated. */
struct gd_backend_op {
    gd_kernel_fn run;
    size_t (*scratch_bytes)(const struct gd_call *call); /* NULL: none */
    /* What the kernel reads of handles, packed for the device before each run; NULL: nothing. When the bytes change,
     * launches are not repeated but made anew: let them depend on shapes and on what grows in steps; what is packed depends on the handle alone, so that ops share it. */
    size_t (*staged_bytes)(const struct gd_kernel_args *args);
    bool (*stage)(const struct gd_kernel_args *args, void *out, struct gd_error *err);
};

/* Two calls as one launch, which reads and writes the memory between them once less: the bits are those of the two, but that a bias
 * is added to a product before that is rounded. What the first makes and nobody but the second reads has no address (out[0].data
 * is NULL). */
typedef bool (*gd_pair_fn)(const struct gd_kernel_args *first, const struct gd_kernel_args *second, struct gd_error *err);

/* A plan's run on a device with memory of its own. */
struct gd_backend_run {
    void *staged_device;         /* gets staged_host's bytes before the first launch */
    const void *staged_host;
    size_t staged_bytes;
    struct gd_recording **recording; /* NULL: the launches differ from run to run; else made at the first run, repeated later */
    bool (*launch)(void *context, struct gd_error *err);
    void *context;
    bool (*between)(void *context); /* called while the device works; may run other plans; false: GD_CANCELLED. NULL: none */
    void *between_context;
};

enum gd_copy { GD_COPY_TO_DEVICE, GD_COPY_FROM_DEVICE, GD_COPY_INSIDE };

struct gd_backend {
    const char *name;
    const char *(*lost)(void);   /* gd_device_lost; NULL: that cannot be */
    bool own_memory;             /* kernels cannot reach the host's memory. False: what is marked (own) is not called */
    struct gd_backend_op (*op)(const struct gd_op *op); /* run is NULL where the op does not run on this device */
    /* For calls that follow each other and have the rows of no group. NULL, or what it gives is: a launch each. */
    gd_pair_fn (*pair)(const struct gd_call *first, const struct gd_call *second);

    bool (*alloc)(void **out, size_t size_bytes, const char *what, struct gd_error *err);
    void (*free)(void *memory, size_t size_bytes);
    bool (*owns)(const void *memory);                                           /* (own) is it an address of the device's? */
    bool (*alloc_staging)(void **out, size_t size_bytes, struct gd_error *err); /* (own) host memory that is copied fast */
    void (*free_staging)(void *memory, size_t size_bytes);                      /* (own) */
    /* Waits until it is done, and for what was launched before. */
    bool (*copy)(void *to, const void *from, size_t size_bytes, enum gd_copy direction, struct gd_error *err);
    bool (*fill_zero)(void *memory, size_t size_bytes, struct gd_error *err);
    bool (*run)(const struct gd_backend_run *run, struct gd_error *err);        /* (own) */
    void (*forget)(struct gd_recording *recording);                             /* (own) */

    /* Weight layouts (weight.h). Bytes that layout_create will keep, and its making from the source. */
    size_t (*layout_bytes)(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute);
    bool (*layout_create)(struct gd_layout **out, const struct gd_weight *weight, enum gd_weight_use use,
                          enum gd_dtype compute, struct gd_error *err);
    void (*layout_destroy)(struct gd_layout *layout);
    const void *(*layout_data)(const struct gd_layout *layout);
    bool (*multiply)(const struct gd_layout *layout, const void *x, enum gd_dtype x_dtype, void *y,
                     enum gd_dtype y_dtype, int64_t rows, bool accumulate, struct gd_error *err);

    /* What a graft's parts point at, brought to the device (wear.h); sites[i] belongs to a linear map or block of shapes[i]. */
    bool (*wear_adopt)(const struct gd_wear_part *sites, const struct gd_wear_shape *shapes, int count, struct gd_error *err); /* (own) */
    void (*wear_drop)(const struct gd_wear_part *sites);                        /* (own) */

    /* (own) Tokens of logits that lie there (sample.h); NULL: logits are brought to the host. */
    bool (*sample)(const struct gd_sample_batch *batch, struct gd_sampled *out, struct gd_error *err);

    /* Vectors in the device's memory; device.h says what they make. */
    bool (*vector_add)(float *y, const float *x, int64_t count, struct gd_error *err);
    bool (*vector_add_squares)(float *y, const float *x, int64_t count, struct gd_error *err);
    bool (*vector_sum_squares)(double *out, const float *x, int64_t count, struct gd_error *err);
    bool (*vector_all_finite)(bool *out, const float *x, int64_t count, struct gd_error *err);
    bool (*vector_adamw)(float *param, float *m, float *v, const float *grad, int64_t count, const struct gd_adamw *adamw,
                         struct gd_error *err);
};

extern const struct gd_backend gd_backend_cpu;
const struct gd_backend *gd_backend(void);

#endif
