/*
 * Serving: x * in_scale for each row, as the graft that it wears says at i[0], the site (wear.h); other rows pass. Its
 * test is in tests/unit/infer.
 */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/wear.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *wear = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || wear->dtype != GD_HANDLE || call->params.i[0] < 0)
        return gd_graph_fail(graph, "wear_input: '%s' is no rows, '%s' is no handle, or the site is negative", x->name,
                             wear->name) != NULL;
    return true;
}

GD_INLINE void body(void *x, const float *scale, bool bf16, int64_t width, int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t++)
        for (int64_t j = 0; j < width; j++)
            gd_store(x, bf16, t * width + j, gd_load(x, bf16, t * width + j) * scale[j]);
}

GD_KERNEL static void rows_f32(float *x, const float *scale, int64_t width, int64_t begin, int64_t end)
{
    body(x, scale, false, width, begin, end);
}

GD_KERNEL static void rows_bf16(uint16_t *x, const float *scale, int64_t width, int64_t begin, int64_t end)
{
    body(x, scale, true, width, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_wear *wear = args->in[1].data;
    int64_t rows = args->in[0].shape[0], width = args->in[0].shape[1];
    bool bf16 = args->in[0].dtype == GD_BF16;
    if (args->out[0].data != args->in[0].data)
        memcpy(args->out[0].data, args->in[0].data, gd_dtype_bytes(args->in[0].dtype, rows * width));
    for (int group = 0; group < wear->group_count; group++) {
        const struct gd_wear_part *sites = wear->sites[group];
        int32_t begin = wear->row_begin[group], end = wear->row_begin[group + 1];
        if (begin < 0 || end < begin || end > rows)
            return gd_fail(err, GD_INTERNAL, "wear_input: group %d has rows %d to %d of %" PRId64, group, begin, end, rows);
        const float *scale = sites != NULL ? sites[args->params->i[0]].in_scale : NULL;
        if (scale != NULL && bf16)
            rows_bf16(args->out[0].data, scale, width, begin, end);
        else if (scale != NULL)
            rows_f32(args->out[0].data, scale, width, begin, end);
    }
    return true;
}

const struct gd_op gd_op_wear_input = {
    .name = "wear_input",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = 0,
};

struct gd_value *gd_wear_input(struct gd_graph *g, struct gd_value *x, struct gd_value *wear, int site)
{
    struct gd_op_params params = {.i = {site}};
    return gd_graph_call(g, &gd_op_wear_input, (struct gd_value *[]){x, wear}, 2, &params);
}
