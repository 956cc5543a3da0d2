/*
 * How the rows in use spread over the experts: y[0][e] = rows that chose e, y[1][e] = sum of p[t][e]; f32 [2, E], summed in
 * double in the order of rows. p: f32 [T, E], choice: i32 [T, k], the rows in use (experts.h). dp[t][e] = dy[1][e] in the
 * rows in use (expert_load_grad); the choice has no gradient.
 */
#include "engine/tensor/ops/experts.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *p = call->in[0], *choice = call->in[1];
    if (p->dtype != GD_F32 || p->rank != 2 || choice->dtype != GD_I32 || choice->rank != 2 || choice->shape[0] != p->shape[0] ||
        !gd_used_rows_shape(call->in[2]))
        return gd_graph_fail(graph, "expert_load: '%s' and '%s' are not what a router made", p->name, choice->name) != NULL;
    gd_shape_like(call->out[0], p, GD_F32);
    call->out[0]->shape[0] = 2;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *p = &args->in[0], *choice = &args->in[1];
    int64_t experts = p->shape[1], used;
    const int32_t *of = choice->data;
    float *rows = args->out[0].data, *sums = rows + experts;
    if (!gd_used_rows(&args->in[2], p->shape[0], &used, err))
        return false;
    memset(rows, 0, (size_t)experts * sizeof(*rows));
    for (int64_t i = 0; i < used * choice->shape[1]; i++) {
        if (of[i] < 0 || of[i] >= experts)
            return gd_fail(err, GD_INTERNAL, "expert_load: a row chose expert %d of %" PRId64, of[i], experts);
        rows[of[i]]++;
    }
    for (int64_t e = 0; e < experts; e++) {
        double sum = 0;
        for (int64_t t = 0; t < used; t++)
            sum += (double)((const float *)p->data)[t * experts + e];
        sums[e] = (float)sum;
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_expert_load_grad;
    struct gd_op_params params = {.i = {call->in[0]->shape[0]}};
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_graph_call(graph, &gd_op_expert_load_grad, (struct gd_value *[]){out_grad[0], call->in[2]}, 2, &params);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t experts = op_case->in[0].shape[1], slots = op_case->in[1].shape[1];
    int64_t used = (int64_t)in[2][op_case->in[2].shape[0] - 1];
    memset(out[0], 0, (size_t)(2 * experts) * sizeof(double));
    for (int64_t t = 0; t < used; t++) {
        for (int64_t j = 0; j < slots; j++)
            out[0][(int64_t)in[1][t * slots + j]]++;
        for (int64_t e = 0; e < experts; e++)
            out[0][experts + e] += in[0][t * experts + e];
    }
}

#define CASE(text, t, experts, k, used) \
    {.name = text, .in_count = 3, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, experts}, .fill = GD_FILL_POSITIVE, .gradient = true}, \
            {.dtype = GD_I32, .rank = 2, .shape = {t, k}, .fill = GD_FILL_IDS, .fill_limit = experts}, \
            {.dtype = GD_I32, .rank = 1, .shape = {4}, .fill = GD_FILL_OFFSETS, .fill_limit = used}}, \
     .tolerance = 1e-5}
static const struct gd_op_case cases[] = {
    CASE("one row", 1, 1, 1, 1),
    CASE("two of four", 37, 4, 2, 37),
    CASE("padding rows", 64, 8, 2, 41),
};

const struct gd_op gd_op_expert_load = {
    .name = "expert_load",
    .in_min = 3, .in_max = 3, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_expert_load(struct gd_graph *g, struct gd_value *probabilities, struct gd_value *choice, struct gd_value *used)
{
    return gd_graph_call(g, &gd_op_expert_load, (struct gd_value *[]){probabilities, choice, used}, 3, NULL);
}
