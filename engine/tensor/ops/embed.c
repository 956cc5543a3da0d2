/* y[t] = table[ids[t] + i[0]], read row by row from the table's source, whatever its format; zeros where ids[t] is -1. A
 * trained table goes through gather_rows. */
#include "engine/tensor/device.h"
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *table = call->in[0], *ids = call->in[1];
    if (table->kind != GD_VALUE_WEIGHT || table->rank != 2)
        return gd_graph_fail(graph, "embed: '%s' is no weight of two dimensions", table->name) != NULL;
    if (ids->dtype != GD_I32 || ids->rank != 1)
        return gd_graph_fail(graph, "embed: '%s' is no i32 list of ids", ids->name) != NULL;
    struct gd_value *out = call->out[0];
    out->dtype = gd_graph_act(graph);
    out->rank = 2;
    out->shape[0] = ids->shape[0];
    out->shape[1] = table->shape[1];
    return true;
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return GD_WEIGHT_ROWS;
}

/* One f32 row for each thread, where rows are converted on. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return call->out[0]->dtype == GD_F32 ? 0 : (size_t)call->out[0]->shape[1] * sizeof(float) * (size_t)gd_device()->threads;
}

static void copy_rows(const struct gd_kernel_args *args, float *row, int64_t begin, int64_t end)
{
    const int32_t *ids = args->in[1].data;
    int64_t offset = args->params->i[0];
    const struct gd_tensor *y = &args->out[0];
    int64_t width = y->shape[1];
    for (int64_t t = begin; t < end; t++) {
        float *out = y->dtype == GD_F32 ? (float *)y->data + t * width : row;
        if (ids[t] < 0)
            memset(out, 0, (size_t)width * sizeof(float));
        else
            gd_weight_row_f32(args->weight[0], ids[t] + offset, out);
        if (y->dtype != GD_F32)
            gd_row_from_f32(gd_at(y, t * width), y->dtype, out, width);
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], width = args->out[0].shape[1], count = gd_weight_dim(args->weight[0], 0) - args->params->i[0];
    const int32_t *ids = args->in[1].data;
    for (int64_t t = 0; t < rows; t++)
        if (ids[t] < -1 || ids[t] >= count)
            return gd_fail(err, GD_INVALID, "token id %" PRId32 " in row %" PRId64 ": the vocabulary has %" PRId64 " entries",
                           ids[t], t, count);
    GD_PARALLEL(rows * width)
    {
        struct gd_range r = gd_thread_range(rows, 1);
        copy_rows(args, (float *)args->scratch + (args->scratch ? omp_get_thread_num() * width : 0), r.begin, r.end);
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[1].shape[0], width = op_case->in[0].shape[1];
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < width; j++)
            out[0][t * width + j] = in[1][t] < 0 ? 0 : in[0][((int64_t)in[1][t] + op_case->params.i[0]) * width + j];
}

#define TABLE(v, d) {.dtype = GD_F32, .rank = 2, .shape = {v, d}, .as_weight = true}
#define IDS(t, v) {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = GD_FILL_IDS, .fill_limit = v}
static const struct gd_op_case cases[] = {
    {.name = "one row", .in_count = 2, .in = {TABLE(1, 1), IDS(1, 1)}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "odd sizes", .in_count = 2, .in = {TABLE(11, 37), IDS(5, 11)}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "rows from 2 on", .in_count = 2, .in = {TABLE(13, 8), IDS(7, 11)}, .params = {.i = {2}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "large enough for threads", .in_count = 2, .in = {TABLE(101, 259), IDS(131, 101)}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
};

const struct gd_op gd_op_embed = {
    .name = "embed",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_embed(struct gd_graph *g, struct gd_value *table, struct gd_value *ids)
{
    if (table != NULL && table->kind != GD_VALUE_WEIGHT) {
        struct gd_value *rows = gd_gather_rows(g, table, ids);
        return gd_graph_act(g) == GD_F32 ? rows : gd_cast(g, rows, gd_graph_act(g));
    }
    return gd_graph_call(g, &gd_op_embed, (struct gd_value *[]){table, ids}, 2, NULL);
}

struct gd_value *gd_embed_from(struct gd_graph *g, struct gd_value *table, struct gd_value *ids, int offset)
{
    if (table != NULL && table->kind != GD_VALUE_WEIGHT) {
        int64_t width = table->shape[1], rows = table->shape[0] - offset;
        struct gd_value *flat = gd_reshape(g, table, 1, table->shape[0] * width);
        return gd_embed(g, gd_reshape(g, gd_columns(g, flat, offset * width, rows * width), rows, width), ids);
    }
    return gd_graph_call(g, &gd_op_embed, (struct gd_value *[]){table, ids}, 2, &(struct gd_op_params){.i = {offset}});
}
