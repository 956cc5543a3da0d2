/* Losses over the vocabulary: cross_entropy, token_logprob, token_logprob_grad. */
#include "cuda/head.h"

namespace {

/* -sum_t weights[t] log_p[t] over labelled rows. */
__global__ void loss_kernel(float *loss, const int32_t *labels, const float *weights, const float *log_p, int64_t rows)
{
    double sum = 0;
    for (int64_t t = threadIdx.x; t < rows; t += blockDim.x)
        if (labels[t] != -100)
            sum -= (double)weights[t] * (double)log_p[t];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *loss = (float)sum;
}

void *wanted(const struct gd_tensor *gradient)
{
    return gd_tensor_count(gradient) > 0 ? gradient->data : NULL;
}

size_t cross_entropy_scratch(const struct gd_call *call)
{
    return gd_cuda_head_scratch(call, call->in[0]->needs_gradient, call->in[1]->needs_gradient);
}

bool run_cross_entropy(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct gd_cuda_head head = {};
    head.args = args;
    head.name = "cross_entropy";
    head.weights = (const float *)args->in[3].data;
    head.sign = 1;
    head.log_p = (float *)args->out[1].data;
    head.argmax = (int32_t *)args->out[2].data;
    head.dh = wanted(&args->out[3]);
    head.dtable = (float *)wanted(&args->out[4]);
    if (!gd_cuda_head_run(&head, err))
        return false;
    CU_LAUNCH(loss_kernel, 1, 1024, 0, gd_cuda_stream(), (float *)args->out[0].data, (const int32_t *)args->in[2].data, head.weights,
              (const float *)head.log_p, args->in[0].shape[0]);
    return gd_cuda_launched(args, "cross_entropy", err);
}

size_t token_logprob_scratch(const struct gd_call *call)
{
    return gd_cuda_head_scratch(call, false, false);
}

bool run_token_logprob(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct gd_cuda_head head = {};
    head.args = args;
    head.name = "token_logprob";
    head.log_p = (float *)args->out[0].data;
    head.argmax = (int32_t *)args->out[1].data;
    head.collision = (float *)args->out[2].data;
    return gd_cuda_head_run(&head, err);
}

size_t token_logprob_grad_scratch(const struct gd_call *call)
{
    return gd_cuda_head_scratch(call, true, call->in[1]->needs_gradient);
}

bool run_token_logprob_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct gd_cuda_head head = {};
    head.args = args;
    head.name = "token_logprob_grad";
    head.weights = (const float *)args->in[3].data;
    head.sign = -1;
    head.dh = args->out[0].data;
    head.dtable = (float *)wanted(&args->out[1]);
    return gd_cuda_head_run(&head, err);
}

} // namespace

GD_CUDA_OP(cross_entropy, run_cross_entropy, cross_entropy_scratch)
GD_CUDA_OP(token_logprob, run_token_logprob, token_logprob_scratch)
GD_CUDA_OP(token_logprob_grad, run_token_logprob_grad, token_logprob_grad_scratch)
