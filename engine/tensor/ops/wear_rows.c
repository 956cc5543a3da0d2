/*
 * Serving: x + table[token] + rows[index of the token] for each row, as the graft that it wears says at i[0], the site (wear.h). Its test is in tests/unit/infer.
 */
#include "engine/tensor/ops/wear_groups.h"
#include "engine/tensor/wear.h"
#include <inttypes.h>

/* Row t of x += scale row. */
static void add(const struct gd_tensor *x, int64_t t, const float *row, float scale)
{
    int64_t width = x->shape[1];
    bool bf16 = x->dtype == GD_BF16;
    for (int64_t j = 0; j < width; j++)
        gd_store(x->data, bf16, t * width + j, gd_load(x->data, bf16, t * width + j) + scale * row[j]);
}

/* Rows [begin, end) of the batch. */
static void change(const struct gd_tensor *x, const struct gd_wear_part *part, const struct gd_wear *wear, int64_t begin, int64_t end)
{
    int64_t width = x->shape[1];
    for (int64_t t = begin; t < end; t++) {
        if (part->table != NULL)
            add(x, t, part->table + wear->ids[t] * width, part->table_scale);
        if (part->positions != NULL)
            add(x, t, part->positions + (wear->positions[t] + part->position_offset) * width, 1);
        int32_t index = part->rows != NULL ? wear->row_index[t] : -1;
        if (index >= 0 && index < part->row_count)
            add(x, t, part->rows + index * width, 1);
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_wear *wear = args->in[1].data;
    const struct gd_tensor *x = &args->out[0];
    int64_t rows = x->shape[0];
    if (x->data != args->in[0].data)
        memcpy(x->data, args->in[0].data, gd_dtype_bytes(x->dtype, rows * x->shape[1]));
    for (int group = 0; group < wear->group_count; group++) {
        const struct gd_wear_part *sites = wear->sites[group];
        int32_t begin = wear->row_begin[group], end = wear->row_begin[group + 1];
        if (begin < 0 || end < begin || end > rows)
            return gd_fail(err, GD_INTERNAL, "wear_rows: group %d has rows %d to %d of %" PRId64, group, begin, end, rows);
        if (sites != NULL)
            change(x, &sites[args->params->i[0]], wear, begin, end);
    }
    return true;
}

const struct gd_op gd_op_wear_rows = {
    .name = "wear_rows",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = gd_wear_shape_of_rows,
    .run_cpu = run_cpu,
    .inplace = 0,
};

struct gd_value *gd_wear_rows(struct gd_graph *g, struct gd_value *x, struct gd_value *wear, int site)
{
    struct gd_op_params params = {.i = {site}};
    return gd_graph_call(g, &gd_op_wear_rows, (struct gd_value *[]){x, wear}, 2, &params);
}
