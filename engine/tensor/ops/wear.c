/*
 * Serving: y * out_scale + out_add + scale b_scale * (B (mid * (A x))) + delta x + S x for each row, as the graft that it
 * wears says at i[0], the site (wear.h). Rows are sorted by graft; rows of the bare base, and padding rows, pass. f32
 * inside. Its test is in tests/unit/infer.
 */
#include "engine/tensor/ops/activation_math.h"
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/lanes.h"
#include "engine/tensor/ops/wear_groups.h"

#define RANK_MAX GD_WEAR_RANK_MAX
#define COLUMN_STEP 16 /* output columns that are expanded together */

struct gd_wear_kernels {
    void (*shrink)(float *s, const struct gd_wear_part *part, const float *x, int64_t in);
    void (*expand)(void *y, bool bf16, int64_t y_row, const float *s, int64_t s_row, const struct gd_wear_part *part,
                   int rows, int64_t begin, int64_t end, float *columns);
    void (*dense)(void *y, bool bf16, const float *delta, const float *x, int64_t in, int64_t begin, int64_t end);
};

#define LANES 16
#include "engine/tensor/ops/wear_block.h"
#undef LANES
#define LANES 8
#include "engine/tensor/ops/wear_block.h"
#undef LANES
#define LANES 4
#include "engine/tensor/ops/wear_block.h"
#undef LANES

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *y = call->in[0], *x = call->in[1], *wear = call->in[2];
    if (!gd_shape_unary(graph, call))
        return false;
    if (y->rank != 2 || x->rank != 2 || x->dtype != y->dtype || x->shape[0] != y->shape[0] || wear->dtype != GD_HANDLE ||
        call->params.i[0] < 0)
        return gd_graph_fail(graph, "wear: '%s' and '%s' are no rows of one dtype, '%s' is no handle, or the site "
                             "is negative", y->name, x->name, wear->name) != NULL;
    return true;
}

/* Scratch: where grafts begin, x A^T of all rows, then for each thread a row of x as f32 and the transposed columns of a block of B. */
static size_t thread_floats(int64_t in)
{
    return (size_t)gd_round_up(in, 16) + RANK_MAX * COLUMN_STEP;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return ((size_t)call->in[1]->shape[0] * RANK_MAX + (size_t)omp_get_max_threads() * thread_floats(call->in[1]->shape[1])) *
           sizeof(float) + gd_wear_groups_bytes(call);
}

struct job {
    const struct gd_wear *wear;
    const int32_t *row_begin;
    const struct gd_wear_kernels *isa;
    int site;
    int64_t in, out;
    bool bf16;
    const void *x;
    void *y;
    float *s;        /* [T][RANK_MAX] */
    float *threads;
};

/* The graft's part at this site, or NULL where there is nothing to add. */
static const struct gd_wear_part *find_part(const struct job *job, int group)
{
    const struct gd_wear_part *sites = job->wear->sites[group], *part = sites != NULL ? &sites[job->site] : NULL;
    bool acts = part != NULL && (part->rank > 0 || part->delta != NULL || part->out_scale != NULL || part->out_add != NULL ||
                                 part->skip != 0 || part->entry_count > 0);
    return acts ? part : NULL;
}

static void shrink_rows(const struct job *job, int64_t begin, int64_t end, float *row)
{
    int group = 0;
    for (int64_t t = begin; t < end; t++) {
        while (job->row_begin[group + 1] <= t)
            group++;
        const struct gd_wear_part *part = find_part(job, group);
        if (part == NULL || part->rank == 0)
            continue;
        const char *source = part->serial ? job->y : job->x;
        gd_row_to_f32(row, source + (size_t)(t * job->in) * (job->bf16 ? 2 : 4), job->bf16 ? GD_BF16 : GD_F32, job->in);
        job->isa->shrink(job->s + t * RANK_MAX, part, row, job->in);
    }
}

static void change_rows(void *y, const void *x, bool bf16, int64_t y_row, const struct gd_wear_part *part, int rows,
                        int64_t begin, int64_t end)
{
    for (int i = 0; i < rows; i++)
        for (int64_t o = begin; o < end; o++) {
            float value = gd_load(y, bf16, i * y_row + o);
            value = part->out_scale != NULL ? value * part->out_scale[o] : value;
            value = part->skip != 0 ? value + part->skip * gd_load(x, bf16, i * y_row + o) : value;
            gd_store(y, bf16, i * y_row + o, part->out_add != NULL ? value + part->out_add[o] : value);
        }
}

/* Columns [begin, end) of the rows of one group; COLUMN_STEP of them stay near while the rows pass. */
static void add_dense(const struct job *job, const struct gd_wear_part *part, int64_t first, int64_t rows, int64_t begin,
                      int64_t end, float *row)
{
    size_t item = job->bf16 ? 2 : 4;
    for (int64_t o = begin; o < end; o += COLUMN_STEP)
        for (int64_t t = first; t < first + rows; t++) {
            gd_row_to_f32(row, (const char *)job->x + (size_t)(t * job->in) * item, job->bf16 ? GD_BF16 : GD_F32, job->in);
            job->isa->dense((char *)job->y + (size_t)(t * job->out) * item, job->bf16, part->delta, row, job->in, o,
                            o + COLUMN_STEP < end ? o + COLUMN_STEP : end);
        }
}

static void add_entries(const struct job *job, const struct gd_wear_part *part, int64_t first, int64_t rows, int64_t begin,
                        int64_t end, float *row)
{
    int64_t from = gd_wear_entry_from(part, begin), to = gd_wear_entry_from(part, end);
    size_t item = job->bf16 ? 2 : 4;
    for (int64_t t = first; t < first + rows && from < to; t++) {
        gd_row_to_f32(row, (const char *)job->x + (size_t)(t * job->in) * item, job->bf16 ? GD_BF16 : GD_F32, job->in);
        for (int64_t e = from; e < to;) {
            int64_t o = part->entry_row[e];
            float sum = 0;
            for (; e < to && part->entry_row[e] == o; e++)
                sum += part->entry[e] * row[part->entry_column[e]];
            gd_store(job->y, job->bf16, t * job->out + o, gd_load(job->y, job->bf16, t * job->out + o) + sum);
        }
    }
}

static void run_all(const struct job *job, int64_t rows, int64_t work)
{
    GD_PARALLEL(work / 8) /* multiply-adds from near memory: eight cost about what an element elsewhere costs */
    {
        float *row = job->threads + (size_t)omp_get_thread_num() * thread_floats(job->in);
        struct gd_range r = gd_thread_range(rows, 1), c = gd_thread_range(job->out, COLUMN_STEP);
        shrink_rows(job, r.begin, r.end, row);
#pragma omp barrier
        for (int group = 0; group < job->wear->group_count; group++) {
            const struct gd_wear_part *part = find_part(job, group);
            int32_t begin = job->row_begin[group], end = job->row_begin[group + 1];
            if (part == NULL || end == begin)
                continue;
            char *y = (char *)job->y + (size_t)(begin * job->out) * (job->bf16 ? 2 : 4);
            if (part->out_scale != NULL || part->out_add != NULL || part->skip != 0)
                change_rows(y, (const char *)job->x + (size_t)(begin * job->in) * (job->bf16 ? 2 : 4), job->bf16, job->out, part,
                            end - begin, c.begin, c.end);
            if (part->rank > 0)
                job->isa->expand(y, job->bf16, job->out, job->s + begin * RANK_MAX, RANK_MAX, part, end - begin, c.begin,
                                 c.end, row + gd_round_up(job->in, 16));
            if (part->delta != NULL)
                add_dense(job, part, begin, end - begin, c.begin, c.end, row);
            if (part->entry_count > 0)
                add_entries(job, part, begin, end - begin, c.begin, c.end, row);
        }
    }
}

static bool check_wear(const struct job *job, int64_t rows, int64_t *work, struct gd_error *err)
{
    const struct gd_wear *wear = job->wear;
    *work = 0;
    for (int group = 0; group < wear->group_count; group++) {
        int32_t begin = job->row_begin[group], end = job->row_begin[group + 1];
        if (begin < 0 || end < begin || end > rows || (group == 0 && begin != 0))
            return gd_fail(err, GD_INTERNAL, "wear: group %d has rows %d to %d of %" PRId64, group, begin, end, rows);
        const struct gd_wear_part *part = find_part(job, group);
        if (part != NULL && part->rank > RANK_MAX)
            return gd_fail(err, GD_INTERNAL, "wear: rank %d, at most %d", part->rank, RANK_MAX);
        if (part != NULL && (part->serial || part->skip != 0) && job->in != job->out)
            return gd_fail(err, GD_INTERNAL, "wear: rows of %" PRId64 " become rows of %" PRId64 " at a block", job->in, job->out);
        *work += part != NULL ? (end - begin) * (job->out * (part->delta != NULL ? job->in : 1) + part->rank * (job->in + job->out) + part->entry_count) : 0;
    }
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->in[0].shape[0], work = 0;
    struct job job = {
        .wear = args->in[2].data, .site = (int)args->params->i[0],
        .in = args->in[1].shape[1], .out = args->in[0].shape[1], .bf16 = args->in[0].dtype == GD_BF16,
        .x = args->in[1].data, .y = args->out[0].data,
    };
    if (!gd_wear_groups(args, 3, job.wear, args->scratch, &job.row_begin, err))
        return false;
    size_t begins = job.row_begin != job.wear->row_begin ? ((size_t)job.wear->group_count + 1 + 15) / 16 * 16 : 0;
    job.s = (float *)args->scratch + begins;
    job.threads = job.s + rows * RANK_MAX;
    int lanes = gd_lanes();
    job.isa = lanes == 16 ? &gd_wear_kernels_16 : lanes == 8 ? &gd_wear_kernels_8 : &gd_wear_kernels_4;
    if (!check_wear(&job, rows, &work, err))
        return false;
    if (job.y != args->in[0].data)
        memcpy(job.y, args->in[0].data, gd_dtype_bytes(args->in[0].dtype, rows * job.out));
    if (work > 0)
        run_all(&job, job.row_begin[job.wear->group_count], work);
    return true;
}

const struct gd_op gd_op_wear = {
    .name = "wear",
    .in_min = 3, .in_max = 5, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
};

struct gd_value *gd_wear(struct gd_graph *g, struct gd_value *y, struct gd_value *x, struct gd_value *wear, int site)
{
    return gd_wear_call(g, &gd_op_wear, (struct gd_value *[]){y, x, wear}, 3, site);
}
