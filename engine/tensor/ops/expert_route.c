/*
 * The router of a mixture of experts: p = softmax(z) over E experts, the k largest of each row, and their weights
 *
 *   w_j = p_j / sum of the k = softmax of the k largest z
 *
 * Equal logits: the lower expert first. z: [T, E]; i[0]: k. Output 0: w f32 [T, k], 1: the choice i32 [T, k], 2: p f32 [T, E].
 * The choice has no gradient: dz is that of w, to the chosen logits, plus that of p (expert_route_grad).
 */
#include "engine/tensor/ops/experts.h"
#include <math.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *z = call->in[0];
    int64_t k = call->params.i[0];
    if (!gd_shape_unary(graph, call))
        return false;
    if (z->rank != 2 || k < 1 || k > z->shape[1])
        return gd_graph_fail(graph, "expert_route: '%s' are no logits of at least %" PRId64 " experts", z->name, k) != NULL;
    for (int out = 0; out < 2; out++) {
        gd_shape_like(call->out[out], z, out == 0 ? GD_F32 : GD_I32);
        call->out[out]->shape[1] = k;
    }
    gd_shape_like(call->out[2], z, GD_F32);
    return true;
}

static void probabilities(float *p, int64_t experts)
{
    float most = p[0], sum = 0;
    for (int64_t e = 1; e < experts; e++)
        most = fmaxf(most, p[e]);
    for (int64_t e = 0; e < experts; e++)
        sum += p[e] = expf(p[e] - most);
    for (int64_t e = 0; e < experts; e++)
        p[e] /= sum;
}

/* The largest logit that comes after (value, expert) in the order of falling logits, then rising experts. */
static int32_t next_expert(const struct gd_tensor *z, int64_t row, float value, int32_t expert)
{
    int32_t best = -1;
    float most = 0;
    for (int32_t e = 0; e < z->shape[1]; e++) {
        float here = gd_load(z->data, z->dtype == GD_BF16, row * z->shape[1] + e);
        bool later = expert < 0 || here < value || (here == value && e > expert);
        if (later && (best < 0 || here > most)) {
            best = e;
            most = here;
        }
    }
    return best;
}

static bool route_row(const struct gd_kernel_args *args, int64_t t)
{
    const struct gd_tensor *z = &args->in[0];
    int64_t experts = z->shape[1], k = args->params->i[0];
    float *w = (float *)args->out[0].data + t * k, *p = (float *)args->out[2].data + t * experts, sum = 0;
    int32_t *choice = (int32_t *)args->out[1].data + t * k;
    float value = 0;
    for (int64_t j = 0; j < k; j++) {
        choice[j] = next_expert(z, t, value, j > 0 ? choice[j - 1] : -1);
        if (choice[j] < 0)
            return false;
        value = gd_load(z->data, z->dtype == GD_BF16, t * experts + choice[j]);
        w[j] = expf(value - gd_load(z->data, z->dtype == GD_BF16, t * experts + choice[0]));
        sum += w[j];
    }
    for (int64_t j = 0; j < k; j++)
        w[j] /= sum;
    gd_row_to_f32(p, gd_at(z, t * experts), z->dtype, experts);
    probabilities(p, experts);
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->in[0].shape[0], bad = 0;
    GD_PARALLEL(rows * args->in[0].shape[1] * args->params->i[0])
    {
        struct gd_range r = gd_thread_range(rows, 1);
        for (int64_t t = r.begin; t < r.end; t++)
            if (!route_row(args, t)) {
#pragma omp atomic
                bad++;
            }
    }
    return bad == 0 || gd_fail(err, GD_INTERNAL, "expert_route: %" PRId64 " rows of logits are no numbers", bad);
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_expert_route_grad;
    struct gd_op_params params = {.i = {call->in[0]->dtype}};
    struct gd_value *in[] = {call->out[0], call->out[1], call->out[2], out_grad[0], out_grad[2]};
    in_grad[0] = gd_graph_call(graph, &gd_op_expert_route_grad, in, GD_COUNT(in), &params);
    return true;
}

static void reference_row(double *w, double *choice, double *p, const double *z, int64_t experts, int64_t k)
{
    double sum = 0, all = 0;
    for (int64_t j = 0; j < k; j++) {
        int64_t best = -1;
        for (int64_t e = 0; e < experts; e++) {
            bool used = false;
            for (int64_t i = 0; i < j; i++)
                used |= (int64_t)choice[i] == e;
            if (!used && (best < 0 || z[e] > z[best]))
                best = e;
        }
        choice[j] = (double)best;
        sum += w[j] = exp(z[best]);
    }
    for (int64_t j = 0; j < k; j++)
        w[j] /= sum;
    for (int64_t e = 0; e < experts; e++)
        all += exp(z[e]);
    for (int64_t e = 0; e < experts; e++)
        p[e] = exp(z[e]) / all;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], experts = op_case->in[0].shape[1], k = op_case->params.i[0];
    for (int64_t t = 0; t < rows; t++)
        reference_row(out[0] + t * k, out[1] + t * k, out[2] + t * experts, in[0] + t * experts, experts, k);
}

#define CASE(text, t, e, k, kind) \
    {.name = text, .in_count = 1, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, e}, .fill = kind, .fill_limit = 3, .gradient = kind == GD_FILL_APART}}, \
     .params = {.i = {k}}, .tolerance = 1e-5, .tolerance_bf16 = kind == GD_FILL_APART ? 1e-2 : 0}
static const struct gd_op_case cases[] = {
    CASE("one expert", 1, 1, 1, GD_FILL_APART),
    CASE("two of four", 37, 4, 2, GD_FILL_APART),
    CASE("all of five", 9, 5, 5, GD_FILL_APART),
    CASE("equal logits", 23, 8, 3, GD_FILL_IDS),
    CASE("large enough for threads", 400, 64, 6, GD_FILL_APART),
};

const struct gd_op gd_op_expert_route = {
    .name = "expert_route",
    .in_min = 1, .in_max = 1, .out_count = 3,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_expert_route(struct gd_graph *g, struct gd_value *logits, int chosen)
{
    return gd_graph_call(g, &gd_op_expert_route, &logits, 1, &(struct gd_op_params){.i = {chosen}});
}
