/*
 * The backward pass of expert_route: w f32 [T, k], choice i32 [T, k], p f32 [T, E], dw [T, k] or none, dp [T, E] or none ->
 *
 *   dz_e = p_e (dp_e - sum_i p_i dp_i),  and  + w_j (dw_j - sum_i w_i dw_i)  where e is the j-th choice
 *
 * in dtype i[0]. Itself not differentiable.
 */
#include "engine/tensor/ops/experts.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *w = call->in[0], *choice = call->in[1], *p = call->in[2], *dw = call->in[3], *dp = call->in[4];
    enum gd_dtype dtype = (enum gd_dtype)call->params.i[0];
    if (w->dtype != GD_F32 || choice->dtype != GD_I32 || p->dtype != GD_F32 || w->rank != 2 || p->rank != 2 ||
        !gd_value_same_shape(w, choice) || p->shape[0] != w->shape[0] || (dtype != GD_F32 && dtype != GD_BF16) ||
        (dw != NULL && (dw->dtype != GD_F32 || !gd_value_same_shape(dw, w))) ||
        (dp != NULL && (dp->dtype != GD_F32 || !gd_value_same_shape(dp, p))))
        return gd_graph_fail(graph, "expert_route_grad: '%s', '%s' and '%s' are not what a router made", w->name, choice->name,
                             p->name) != NULL;
    gd_shape_like(call->out[0], p, dtype);
    return true;
}

static float dot(const float *a, const float *b, int64_t count)
{
    float sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

static bool add_row(const struct gd_kernel_args *args, int64_t t)
{
    int64_t k = args->in[0].shape[1], experts = args->in[2].shape[1];
    const float *w = (const float *)args->in[0].data + t * k, *p = (const float *)args->in[2].data + t * experts;
    const float *dw = args->in[3].rank > 0 ? (const float *)args->in[3].data + t * k : NULL;
    const float *dp = args->in[4].rank > 0 ? (const float *)args->in[4].data + t * experts : NULL;
    const int32_t *choice = (const int32_t *)args->in[1].data + t * k;
    const struct gd_tensor *dz = &args->out[0];
    bool bf16 = dz->dtype == GD_BF16;
    float mean_p = dp != NULL ? dot(p, dp, experts) : 0, mean_w = dw != NULL ? dot(w, dw, k) : 0;
    for (int64_t e = 0; e < experts; e++) {
        float value = dp != NULL ? p[e] * (dp[e] - mean_p) : 0;
        for (int64_t j = 0; dw != NULL && j < k; j++)
            value += choice[j] == e ? w[j] * (dw[j] - mean_w) : 0;
        gd_store(dz->data, bf16, t * experts + e, value);
    }
    for (int64_t j = 0; j < k; j++)
        if (choice[j] < 0 || choice[j] >= experts)
            return false;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], bad = 0;
    GD_PARALLEL(rows * args->out[0].shape[1] * args->in[0].shape[1])
    {
        struct gd_range r = gd_thread_range(rows, 1);
        for (int64_t t = r.begin; t < r.end; t++)
            if (!add_row(args, t)) {
#pragma omp atomic
                bad++;
            }
    }
    return bad == 0 || gd_fail(err, GD_INTERNAL, "expert_route_grad: %" PRId64 " rows chose experts that are not there", bad);
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], k = op_case->in[0].shape[1], experts = op_case->in[2].shape[1];
    for (int64_t t = 0; t < rows; t++) {
        double mean_p = 0, mean_w = 0;
        for (int64_t e = 0; op_case->in[4].rank > 0 && e < experts; e++)
            mean_p += in[2][t * experts + e] * in[4][t * experts + e];
        for (int64_t j = 0; op_case->in[3].rank > 0 && j < k; j++)
            mean_w += in[0][t * k + j] * in[3][t * k + j];
        for (int64_t e = 0; e < experts; e++) {
            double *dz = &out[0][t * experts + e];
            *dz = op_case->in[4].rank > 0 ? in[2][t * experts + e] * (in[4][t * experts + e] - mean_p) : 0;
            for (int64_t j = 0; op_case->in[3].rank > 0 && j < k; j++)
                if (in[1][t * k + j] == (double)e)
                    *dz += in[0][t * k + j] * (in[3][t * k + j] - mean_w);
        }
    }
}

#define M(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .fill = GD_FILL_POSITIVE}
#define CHOICE(t, n, e) {.dtype = GD_I32, .rank = 2, .shape = {t, n}, .fill = GD_FILL_IDS, .fill_limit = e}
static const struct gd_op_case cases[] = {
    {.name = "weights only", .in_count = 5, .in = {M(7, 2), CHOICE(7, 2, 4), M(7, 4), M(7, 2), {.rank = 0}}, .params = {.i = {GD_F32}}, .tolerance = 1e-5},
    {.name = "probabilities only", .in_count = 5, .in = {M(7, 2), CHOICE(7, 2, 4), M(7, 4), {.rank = 0}, M(7, 4)}, .params = {.i = {GD_F32}}, .tolerance = 1e-5},
    {.name = "both, to bf16", .in_count = 5, .in = {M(300, 3), CHOICE(300, 3, 37), M(300, 37), M(300, 3), M(300, 37)}, .params = {.i = {GD_BF16}}, .tolerance = 1e-2},
};

const struct gd_op gd_op_expert_route_grad = {
    .name = "expert_route_grad",
    .in_min = 3, .in_max = 5, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
