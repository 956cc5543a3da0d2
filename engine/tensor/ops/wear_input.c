/*
 * Serving: in_rotate (in_scale * x) for each row, as the graft that it wears says at i[0], the site (wear.h); other rows pass. Its
 * test is in tests/unit/infer.
 */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/wear_groups.h"

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

/* Scratch: where grafts begin; a row of x as f32 for each thread, before and after. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return 2 * (size_t)omp_get_max_threads() * (size_t)call->in[0]->shape[1] * sizeof(float) + gd_wear_groups_bytes(call);
}

GD_KERNEL static void rotate_row(float *restrict to, const float *restrict from, const float *restrict squares, int64_t width,
                                 int64_t block)
{
    for (int64_t first = 0; first < width; first += block)
        for (int64_t i = 0; i < block; i++) {
            const float *row = squares + (first + i) * block;
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < block; j++)
                sum += row[j] * from[first + j];
            to[first + i] = sum;
        }
}

static void rotate_rows(const struct gd_tensor *x, const struct gd_wear_part *part, float *scratch, int64_t begin, int64_t end)
{
    int64_t width = x->shape[1], block = part->rotate_block;
    GD_PARALLEL((end - begin) * width * block / 8)
    {
        float *from = scratch + 2 * (int64_t)omp_get_thread_num() * width, *to = from + width;
        struct gd_range r = gd_thread_range(end - begin, 1);
        for (int64_t t = begin + r.begin; t < begin + r.end; t++) {
            gd_row_to_f32(from, gd_at(x, t * width), x->dtype, width);
            rotate_row(to, from, part->in_rotate, width, block);
            gd_row_from_f32(gd_at(x, t * width), x->dtype, to, width);
        }
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_wear *wear = args->in[1].data;
    int64_t rows = args->in[0].shape[0], width = args->in[0].shape[1];
    bool bf16 = args->in[0].dtype == GD_BF16;
    const int32_t *row_begin;
    if (!gd_wear_groups(args, 2, wear, args->scratch, &row_begin, err))
        return false;
    float *scratch = (float *)args->scratch + (row_begin != wear->row_begin ? ((size_t)wear->group_count + 1 + 15) / 16 * 16 : 0);
    if (args->out[0].data != args->in[0].data)
        memcpy(args->out[0].data, args->in[0].data, gd_dtype_bytes(args->in[0].dtype, rows * width));
    for (int group = 0; group < wear->group_count; group++) {
        const struct gd_wear_part *sites = wear->sites[group];
        int32_t begin = row_begin[group], end = row_begin[group + 1];
        if (begin < 0 || end < begin || end > rows)
            return gd_fail(err, GD_INTERNAL, "wear_input: group %d has rows %d to %d of %" PRId64, group, begin, end, rows);
        const struct gd_wear_part *part = sites != NULL ? &sites[args->params->i[0]] : NULL;
        const float *scale = part != NULL ? part->in_scale : NULL;
        if (scale != NULL && bf16)
            rows_bf16(args->out[0].data, scale, width, begin, end);
        else if (scale != NULL)
            rows_f32(args->out[0].data, scale, width, begin, end);
        if (part == NULL || part->in_rotate == NULL)
            continue;
        if (part->rotate_block < 1 || width % part->rotate_block != 0)
            return gd_fail(err, GD_INTERNAL, "wear_input: blocks of %d in rows of %" PRId64, part->rotate_block, width);
        rotate_rows(&args->out[0], part, scratch, begin, end);
    }
    return true;
}

const struct gd_op gd_op_wear_input = {
    .name = "wear_input",
    .in_min = 2, .in_max = 4, .out_count = 1,
    .shape = gd_wear_shape_of_rows,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
};

struct gd_value *gd_wear_input(struct gd_graph *g, struct gd_value *x, struct gd_value *wear, int site)
{
    return gd_wear_call(g, &gd_op_wear_input, (struct gd_value *[]){x, wear}, 2, site);
}
