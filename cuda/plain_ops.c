/* Ops that are copies, or the host's own work. */
#include "cuda/internal.h"
#include "engine/tensor/ops.h"
#include <string.h>

static bool run_same(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0];
    return gd_cuda_copy(args->out[0].data, x->data, gd_dtype_bytes(x->dtype, gd_tensor_count(x)), "reshape", err);
}

const struct gd_backend_op gd_cuda_reshape = {.run = run_same};
const struct gd_backend_op gd_cuda_detach = {.run = run_same};

static bool run_nothing(const struct gd_kernel_args *args, struct gd_error *err)
{
    return true;
}

const struct gd_backend_op gd_cuda_split = {.run = run_nothing};

static bool run_join(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *out = &args->out[0];
    int64_t width = gd_tensor_count(out) / out->shape[0];
    char *to = out->data;
    for (int k = 0; k < GD_SPLIT_MAX && args->params->i[k] > 0; k++) {
        size_t bytes = gd_dtype_bytes(out->dtype, args->params->i[k] * width);
        if (args->in[k].rank == 0 ? !gd_cuda_check(cudaMemsetAsync(to, 0, bytes, gd_cuda_stream()), "cudaMemsetAsync", "join", err)
                                  : !gd_cuda_copy(to, args->in[k].data, bytes, "join", err))
            return false;
        to += bytes;
    }
    return true;
}

const struct gd_backend_op gd_cuda_join = {.run = run_join};

/* ---- segment_loss: the host's function in the middle of the stream ---- */

struct host_loss {
    const struct gd_segment_loss *loss;
    int64_t count;
    bool has_aside;
    float value;
    float numbers[];    /* x, aside, gradient: count each */
};

static void evaluate(void *context)
{
    struct host_loss *call = context;
    float *x = call->numbers, *aside = x + call->count, *gradient = aside + call->count;
    call->value = (float)call->loss->evaluate(call->loss->context, x, call->has_aside ? aside : NULL, call->count, gradient);
}

static bool run_segment_loss(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = gd_tensor_count(&args->in[0]);
    size_t bytes = (size_t)count * sizeof(float);
    void *memory = NULL;
    if (!gd_cuda_host_memory(&memory, sizeof(struct host_loss) + 3 * bytes, err))
        return false;
    struct host_loss *call = memory;
    call->loss = args->in[1].data;
    call->count = count;
    call->has_aside = args->in[2].rank != 0;
    float *x = call->numbers, *aside = x + count, *gradient = aside + count;
    cudaStream_t stream = gd_cuda_stream();
    return gd_cuda_check(cudaMemcpyAsync(x, args->in[0].data, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync", "segment_loss", err) &&
           (!call->has_aside || gd_cuda_check(cudaMemcpyAsync(aside, args->in[2].data, bytes, cudaMemcpyDeviceToHost, stream),
                                              "cudaMemcpyAsync", "segment_loss", err)) &&
           gd_cuda_check(cudaLaunchHostFunc(stream, evaluate, call), "cudaLaunchHostFunc", "segment_loss", err) &&
           gd_cuda_check(cudaMemcpyAsync(args->out[0].data, &call->value, sizeof(float), cudaMemcpyHostToDevice, stream),
                         "cudaMemcpyAsync", "segment_loss", err) &&
           gd_cuda_check(cudaMemcpyAsync(args->out[1].data, gradient, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync",
                         "segment_loss", err);
}

const struct gd_backend_op gd_cuda_segment_loss = {.run = run_segment_loss};
