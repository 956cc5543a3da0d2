#include "cuda/wear.h"
#include "engine/base/alloc.h"
#include "engine/tensor/backend.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 64
#define ARRAYS 18          /* pointers of a part */

/* ---- which grafts are there: few, looked up for each group of each batch ---- */

struct adopted {
    const struct gd_wear_part *host;
    char *device;
    size_t size_bytes;
};

static struct adopted *all;    /* by address of the host's sites */
static int all_count, all_room;

static int place_of(const struct gd_wear_part *sites)
{
    int low = 0, high = all_count;
    while (low < high) {
        int middle = (low + high) / 2;
        if ((uintptr_t)all[middle].host < (uintptr_t)sites)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct gd_wear_part *gd_cuda_wear_find(const struct gd_wear_part *sites)
{
    int at = place_of(sites);
    return at < all_count && all[at].host == sites ? (const struct gd_wear_part *)(const void *)all[at].device : NULL;
}

static void remember(struct adopted adopted)
{
    if (all_count == all_room) {
        all_room = all_room > 0 ? 2 * all_room : 16;
        all = gd_realloc_array(all, (size_t)all_room, sizeof(*all));
    }
    int at = place_of(adopted.host);
    memmove(all + at + 1, all + at, (size_t)(all_count - at) * sizeof(*all));
    all[at] = adopted;
    all_count++;
}

void gd_cuda_wear_drop(const struct gd_wear_part *sites)
{
    int at = place_of(sites);
    if (at >= all_count || all[at].host != sites)
        return;
    gd_backend()->free(all[at].device, all[at].size_bytes);
    all_count--;
    memmove(all + at, all + at + 1, (size_t)(all_count - at) * sizeof(*all));
}

/* ---- what parts point at ---- */

/* Memory of the host, and where in the block its copy lies. Sites may share arrays, or have parts of one. */
struct range {
    const char *begin, *end;
    size_t at;
};

struct array {
    const void **pointer;      /* the part's */
    int64_t count;             /* of four bytes each */
};

static int list_arrays(struct array *out, struct gd_wear_part *part, const struct gd_wear_shape *shape)
{
    int64_t in = shape->in, width = shape->out, rank = part->rank;
    struct array arrays[ARRAYS] = {
        {(const void **)&part->in_scale, in},
        {(const void **)&part->in_rotate, in * part->rotate_block},
        {(const void **)&part->out_scale, width},
        {(const void **)&part->out_add, width},
        {(const void **)&part->a, rank > 0 ? (rank - 1) * part->a_row + in : 0},
        {(const void **)&part->mid, rank},
        {(const void **)&part->b, width * rank},
        {(const void **)&part->b_scale, width},
        {(const void **)&part->delta, width * in},
        {(const void **)&part->entry_row, part->entry_count},
        {(const void **)&part->entry_column, part->entry_count},
        {(const void **)&part->entry, part->entry_count},
        {(const void **)&part->norm, width},
        {(const void **)&part->norm_bias, width},
        {(const void **)&part->mid_add, rank},
        {(const void **)&part->rows, part->row_count * width},
        {(const void **)&part->table, shape->table_rows * width},
        {(const void **)&part->positions, shape->position_rows * width},
    };
    int count = 0;
    for (int i = 0; i < ARRAYS; i++) {
        if (*arrays[i].pointer == NULL || arrays[i].count <= 0)
            *arrays[i].pointer = NULL;
        else
            out[count++] = arrays[i];
    }
    return count;
}

static bool check_part(const struct gd_wear_part *part, const struct gd_wear_shape *shape, int site, struct gd_error *err)
{
    if (part->rank < 0 || part->rank > GD_WEAR_RANK_MAX)
        return gd_fail(err, GD_INTERNAL, "wear: rank %d at site %d, at most %d", part->rank, site, GD_WEAR_RANK_MAX);
    if ((part->serial || part->skip != 0) && shape->in != shape->out)
        return gd_fail(err, GD_INTERNAL, "wear: rows of %" PRId64 " become rows of %" PRId64 " at a block", shape->in, shape->out);
    if (part->in_rotate != NULL && (part->rotate_block < 1 || shape->in % part->rotate_block != 0))
        return gd_fail(err, GD_INTERNAL, "wear: blocks of %d in rows of %" PRId64, part->rotate_block, shape->in);
    if ((part->rows != NULL || part->table != NULL || part->positions != NULL) && shape->out < 1)
        return gd_fail(err, GD_INTERNAL, "wear: rows of no width at site %d", site);
    return true;
}

static int by_begin(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct range *)a)->begin, y = (uintptr_t)((const struct range *)b)->begin;
    return x < y ? -1 : x > y;
}

/* Ranges that overlap become one; each gets its place from *at on. Returns how many there are. */
static int place_ranges(struct range *ranges, int count, size_t *at)
{
    int kept = 0;
    qsort(ranges, (size_t)count, sizeof(*ranges), by_begin);
    for (int i = 0; i < count; i++) {
        if (kept > 0 && (uintptr_t)ranges[i].begin < (uintptr_t)ranges[kept - 1].end) {
            if ((uintptr_t)ranges[i].end > (uintptr_t)ranges[kept - 1].end)
                ranges[kept - 1].end = ranges[i].end;
        } else {
            ranges[kept++] = ranges[i];
        }
    }
    for (int i = 0; i < kept; i++) {
        ranges[i].at = *at;
        *at += ((size_t)(ranges[i].end - ranges[i].begin) + ALIGN - 1) / ALIGN * ALIGN;
    }
    return kept;
}

static const struct range *range_of(const struct range *ranges, int count, const void *pointer)
{
    int low = 0, high = count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if ((uintptr_t)ranges[middle].begin <= (uintptr_t)pointer)
            low = middle;
        else
            high = middle;
    }
    return &ranges[low];
}

static bool copy_all(char *device, const struct gd_wear_part *parts, int count, const struct range *ranges, int range_count,
                     struct gd_error *err)
{
    bool ok = gd_backend()->copy(device, parts, (size_t)count * sizeof(*parts), GD_COPY_TO_DEVICE, err);
    for (int i = 0; ok && i < range_count; i++)
        ok = gd_backend()->copy(device + ranges[i].at, ranges[i].begin, (size_t)(ranges[i].end - ranges[i].begin), GD_COPY_TO_DEVICE, err);
    return ok;
}

/* `parts` are copies of the sites, whose pointers become the device's. */
static bool take(struct gd_wear_part *parts, const struct array *arrays, int array_count, struct range *ranges, int count,
                 struct adopted *adopted, struct gd_error *err)
{
    size_t bytes = ((size_t)count * sizeof(*parts) + ALIGN - 1) / ALIGN * ALIGN;
    int range_count = place_ranges(ranges, array_count, &bytes);
    void *device = NULL;
    if (!gd_backend()->alloc(&device, bytes, "a graft on the device", err))
        return false;
    for (int i = 0; i < array_count; i++) {
        const struct range *range = range_of(ranges, range_count, *arrays[i].pointer);
        *arrays[i].pointer = (char *)device + range->at + ((const char *)*arrays[i].pointer - range->begin);
    }
    if (!copy_all(device, parts, count, ranges, range_count, err)) {
        gd_backend()->free(device, bytes);
        return false;
    }
    adopted->device = device;
    adopted->size_bytes = bytes;
    return true;
}

bool gd_cuda_wear_adopt(const struct gd_wear_part *sites, const struct gd_wear_shape *shapes, int count, struct gd_error *err)
{
    gd_cuda_wear_drop(sites); /* it may have been here before it changed */
    struct gd_wear_part *parts = gd_alloc_array((size_t)count + 1, sizeof(*parts));
    struct array *arrays = gd_alloc_array((size_t)count * ARRAYS + 1, sizeof(*arrays));
    struct range *ranges = gd_alloc_array((size_t)count * ARRAYS + 1, sizeof(*ranges));
    struct adopted adopted = {.host = sites};
    int array_count = 0;
    bool ok = true;
    memcpy(parts, sites, (size_t)count * sizeof(*parts));
    for (int i = 0; ok && i < count; i++) {
        ok = check_part(&parts[i], &shapes[i], i, err);
        if (ok)
            array_count += list_arrays(arrays + array_count, &parts[i], &shapes[i]);
    }
    for (int i = 0; i < array_count; i++) {
        const char *begin = *arrays[i].pointer;
        ranges[i] = (struct range){.begin = begin, .end = begin + arrays[i].count * 4};
    }
    ok = ok && take(parts, arrays, array_count, ranges, count, &adopted, err);
    if (ok)
        remember(adopted);
    gd_free(parts);
    gd_free(arrays);
    gd_free(ranges);
    return ok;
}

/* ---- staging ---- */

size_t gd_cuda_wear_bytes(int64_t room)
{
    return sizeof(struct gd_cuda_wear) + (size_t)room * (sizeof(const struct gd_wear_part *) + 3 * sizeof(int32_t));
}

static const struct gd_wear *handle_of(const struct gd_kernel_args *args, int *input)
{
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++)
        if (args->in[j].rank > 0 && args->in[j].dtype == GD_HANDLE) {
            *input = j;
            return args->in[j].data;
        }
    return NULL;
}

/* Rows of the batch: of an expert's the order behind the handle tells how many there are at most. */
static int64_t room_of(const struct gd_kernel_args *args)
{
    int input = 0;
    if (handle_of(args, &input) == NULL)
        return 0;
    const struct gd_tensor *order = input + 2 < GD_CALL_INPUTS_MAX ? &args->in[input + 2] : NULL;
    return order != NULL && order->rank > 0 ? order->shape[0] / args->params->i[2] : args->in[0].shape[0];
}

size_t gd_cuda_wear_staged_bytes(const struct gd_kernel_args *args)
{
    int64_t room = room_of(args);
    return room > 0 ? gd_cuda_wear_bytes(room) : 0;
}

static bool pack_sites(struct gd_cuda_wear *out, const struct gd_wear *wear, struct gd_error *err)
{
    for (int group = 0; group < wear->group_count; group++) {
        int32_t begin = wear->row_begin[group], end = wear->row_begin[group + 1];
        if (begin < 0 || end < begin || end > out->room || (group == 0 && begin != 0))
            return gd_fail(err, GD_INTERNAL, "wear: group %d has rows %d to %d of %" PRId64, group, begin, end, out->room);
        const struct gd_wear_part *sites = wear->sites[group] != NULL ? gd_cuda_wear_find(wear->sites[group]) : NULL;
        if (wear->sites[group] != NULL && sites == NULL)
            return gd_fail(err, GD_INTERNAL, "wear: the graft of group %d is not on the device", group);
        for (int32_t row = begin; row < end; row++)
            out->sites[row] = sites;
        out->rows = end;
    }
    return true;
}

bool gd_cuda_wear_stage(const struct gd_kernel_args *args, void *out, struct gd_error *err)
{
    int input = 0;
    const struct gd_wear *wear = handle_of(args, &input);
    struct gd_cuda_wear *staged = out;
    if (wear == NULL)
        return true;
    memset(out, 0, gd_cuda_wear_staged_bytes(args));
    staged->room = room_of(args);
    if (!pack_sites(staged, wear, err))
        return false;
    int32_t *numbers = (int32_t *)(void *)(staged->sites + staged->room);
    const int32_t *from[] = {wear->row_index, wear->ids, wear->positions};
    for (int i = 0; i < 3; i++)
        if (from[i] != NULL)
            memcpy(numbers + i * staged->room, from[i], (size_t)staged->rows * sizeof(int32_t));
    return true;
}
