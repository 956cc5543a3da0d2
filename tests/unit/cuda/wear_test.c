/* Worn rows on the device against the CPU's ops: every step of wear.h, many grafts in a batch, rows of an expert. */
#include "bench.h"
#include "cuda/wear.h"
#include "engine/tensor/backend.h"
#include <math.h>

#define GRAFTS 7
#define ROOM 64            /* rows of the batch, padding included */
#define SCRATCH (1 << 22)

extern const struct gd_backend_op gd_cuda_wear, gd_cuda_wear_input, gd_cuda_wear_rows;

struct setting {
    int in, out;
    enum gd_dtype act;
    int experts;           /* 0: all rows; else those that went to expert 1 of so many */
};

static float *floats(int64_t count, float scale, uint64_t stream)
{
    float *x = bench_random(GD_F32, count, stream);
    for (int64_t i = 0; i < count; i++)
        x[i] *= scale;
    return x;
}

static void add_product(struct gd_wear_part *part, const struct setting *s, int rank, int a_row, uint64_t stream)
{
    part->rank = rank;
    part->a_row = a_row;
    part->scale = 0.7f;
    part->a = floats((int64_t)rank * a_row, 0.3f, stream);
    part->b = floats((int64_t)s->out * rank, 0.3f, stream + 1);
}

static void add_entries(struct gd_wear_part *part, const struct setting *s)
{
    int32_t *rows = gd_alloc_array(3 * (size_t)s->out, sizeof(int32_t)), *columns = gd_alloc_array(3 * (size_t)s->out, sizeof(int32_t));
    for (int o = 0; o < s->out; o++)
        for (int j = 0; o % 4 != 1 && j < 1 + o % 3; j++) {
            rows[part->entry_count] = o;
            columns[part->entry_count++] = (o + 5 * j) % s->in;
        }
    part->entry_row = rows;
    part->entry_column = columns;
    part->entry = floats(part->entry_count, 0.5f, 40);
}

/* Two sites; the second is what is worn. Graft 0 is the base. */
static void make_grafts(struct gd_wear_part parts[GRAFTS][2], const struct setting *s)
{
    memset(parts, 0, GRAFTS * sizeof(*parts));
    add_product(&parts[1][1], s, 5, s->in, 10);
    parts[1][1].mid = floats(5, 1, 12);
    parts[1][1].b_scale = floats(s->out, 1, 13);
    parts[1][1].out_scale = floats(s->out, 1, 14);
    parts[1][1].out_add = floats(s->out, 1, 15);
    parts[1][1].in_scale = floats(s->in, 1, 16);
    add_product(&parts[2][1], s, 16, s->in + 4, 20);
    parts[2][1].delta = floats((int64_t)s->out * s->in, 0.2f, 22);
    add_entries(&parts[2][1], s);
    parts[3][1].in_rotate = floats((int64_t)s->in * (s->in % 4 == 0 ? s->in / 4 : s->in), 0.4f, 30);
    parts[3][1].rotate_block = s->in % 4 == 0 ? s->in / 4 : s->in;
    parts[3][1].in_scale = floats(s->in, 1, 31);
    add_product(&parts[4][1], s, 70, s->in, 50);
    parts[4][1].activation = GD_ACTIVATION_GELU;
    parts[4][1].mid_add = floats(70, 1, 52);
    add_product(&parts[5][1], s, 3, s->in, 60);
    if (s->in == s->out) {
        parts[5][1].serial = true;
        parts[5][1].skip = 0.5f;
        parts[5][1].activation = GD_ACTIVATION_SILU;
    }
    parts[6][1].out_add = floats(s->out, 1, 70);
}

static void release_grafts(struct gd_wear_part parts[GRAFTS][2])
{
    for (int g = 0; g < GRAFTS; g++) {
        const struct gd_wear_part *p = &parts[g][1];
        const void *all[] = {p->in_scale, p->in_rotate, p->out_scale, p->out_add, p->a, p->mid, p->b, p->b_scale, p->delta, p->entry_row,
                             p->entry_column, p->entry, p->mid_add, p->rows, p->table, p->positions};
        for (size_t i = 0; i < GD_COUNT(all); i++)
            gd_free((void *)(uintptr_t)all[i]);
        gd_cuda_wear_drop(parts[g]);
    }
}

static const int32_t row_begin[] = {0, 3, 4, 13, 30, 30, 41, 43, 44, 46};
static const int worn_by[] = {1, 0, 2, 3, 6, 4, 5, 6, 1};
#define GROUPS 9

static struct gd_wear batch_of(struct gd_wear_part parts[GRAFTS][2], const struct gd_wear_part **sites)
{
    for (int group = 0; group < GROUPS; group++)
        sites[group] = worn_by[group] > 0 ? parts[worn_by[group]] : NULL;
    return (struct gd_wear){.group_count = GROUPS, .row_begin = row_begin, .sites = sites};
}

static void adopt(struct gd_wear_part parts[GRAFTS][2], struct gd_wear_shape shape)
{
    struct gd_error err = {0};
    for (int g = 1; g < GRAFTS; g++)
        if (!gd_cuda_wear_adopt(parts[g], (struct gd_wear_shape[]){shape, shape}, 2, &err))
            fail_msg("%s", err.message);
}

static struct gd_tensor rows_of(enum gd_dtype dtype, int64_t rows, int64_t width, void *data)
{
    return (struct gd_tensor){.dtype = dtype, .rank = 2, .shape = {rows, width}, .data = data};
}

static struct gd_tensor numbers(int32_t *data, int64_t count)
{
    return (struct gd_tensor){.dtype = GD_I32, .rank = 1, .shape = {count}, .data = data};
}

/* out has the memory of in[0] where `in_place`. */
static void run_there(const struct gd_backend_op *cuda, const struct gd_kernel_args *args, bool in_place, void *out)
{
    struct gd_error err = {0};
    struct gd_kernel_args there = *args;
    size_t bytes = gd_dtype_bytes(args->out[0].dtype, gd_tensor_count(&args->out[0])), staged = cuda->staged_bytes(args);
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++)
        if (args->in[j].rank > 0 && args->in[j].dtype != GD_HANDLE)
            there.in[j].data = bench_put(args->in[j].data, gd_dtype_bytes(args->in[j].dtype, gd_tensor_count(&args->in[j])));
    there.out[0].data = in_place ? there.in[0].data : bench_room(bytes);
    void *host = gd_alloc_array(staged, 1);
    if (!cuda->stage(args, host, &err))
        fail_msg("%s", err.message);
    there.staged = bench_put(host, staged);
    there.scratch = bench_room(SCRATCH);
    if (!cuda->run(&there, &err))
        fail_msg("%s", err.message);
    bench_get(out, there.out[0].data, bytes);
    gd_free(host);
}

static void run_both(const struct gd_op *op, const struct gd_backend_op *cuda, struct gd_kernel_args *args, bool in_place, void *cpu_out, void *cuda_out)
{
    struct gd_error err = {0};
    run_there(cuda, args, in_place, cuda_out);
    args->scratch = gd_alloc_array(SCRATCH, 1);
    args->out[0].data = cpu_out;
    if (!op->run_cpu(args, &err))
        fail_msg("%s", err.message);
    gd_free(args->scratch);
}

static void compare(const char *what, enum gd_dtype dtype, const void *expected, const void *got, int64_t rows, int64_t width, int64_t untouched)
{
    double tolerance = dtype == GD_BF16 ? 0.02 : 3e-6;
    for (int64_t i = 0; i < rows * width; i++) {
        double a = bench_at(dtype, expected, i), b = bench_at(dtype, got, i);
        if (!(fabs(a - b) <= tolerance * (2 + fabs(a))) || (i >= untouched * width && a != b))
            fail_msg("%s, %s, row %d of %d [%d]: %g, expected %g", what, gd_dtype_name(dtype), (int)(i / width), (int)rows, (int)(i % width), b, a);
    }
}

/* Rows of the batch that went to an expert: order has others before and after. */
static int64_t expert_rows(int32_t *offsets, int32_t *order)
{
    int at = 0;
    memset(offsets, 0, 4 * sizeof(int32_t));
    for (int expert = 0; expert < 3; expert++) {
        for (int t = 0; t < row_begin[GROUPS]; t++)
            if ((t * 7 + expert) % 3 != 0)
                order[at++] = 2 * t + expert % 2;
        order[at++] = -1;
        offsets[expert + 1] = at;
    }
    return offsets[2] - offsets[1];
}

static void check_linear(const struct setting *s, bool in_place)
{
    struct gd_wear_part parts[GRAFTS][2];
    const struct gd_wear_part *sites[GROUPS];
    int32_t offsets[4], order[3 * ROOM];
    make_grafts(parts, s);
    adopt(parts, (struct gd_wear_shape){.in = s->in, .out = s->out});
    struct gd_wear wear = batch_of(parts, sites);
    int64_t rows = s->experts > 0 ? expert_rows(offsets, order) : ROOM, used = s->experts > 0 ? rows : row_begin[GROUPS];
    void *x = bench_random(s->act, rows * s->in, 1), *y = bench_random(s->act, rows * s->out, 2);
    void *expected = bench_random(s->act, rows * s->out, 3), *got = bench_random(s->act, rows * s->out, 4);
    struct gd_op_params params = {.i = {1, 1, 2}};
    struct gd_tensor handle = {.dtype = GD_HANDLE, .rank = 1, .shape = {1}, .data = &wear};
    struct gd_kernel_args args = {.in = {rows_of(s->act, rows, s->out, y), rows_of(s->act, rows, s->in, x), handle},
                                  .out = {rows_of(s->act, rows, s->out, NULL)}, .params = &params};
    struct gd_kernel_args input = {.in = {rows_of(s->act, rows, s->in, x), handle}, .out = {rows_of(s->act, rows, s->in, NULL)}, .params = &params};
    if (s->experts > 0) {
        args.in[3] = input.in[2] = numbers(offsets, 4);
        args.in[4] = input.in[3] = numbers(order, 3 * ROOM);
    }
    run_both(gd_op_find("wear"), &gd_cuda_wear, &args, in_place, expected, got);
    compare("wear", s->act, expected, got, rows, s->out, used);
    void *expected_in = bench_random(s->act, rows * s->in, 3), *got_in = bench_random(s->act, rows * s->in, 4);
    run_both(gd_op_find("wear_input"), &gd_cuda_wear_input, &input, in_place, expected_in, got_in);
    compare("wear_input", s->act, expected_in, got_in, rows, s->in, used);
    release_grafts(parts);
    void *all[] = {x, y, expected, got, expected_in, got_in};
    for (size_t i = 0; i < GD_COUNT(all); i++)
        gd_free(all[i]);
    bench_release(NULL);
}

static void linear_maps_and_blocks_are_worn(void **state)
{
    static const struct setting settings[] = {{32, 32, GD_F32, 0}, {32, 32, GD_BF16, 0}, {37, 53, GD_F32, 0}, {37, 53, GD_BF16, 0},
                                              {36, 36, GD_F32, 0}, {520, 150, GD_F32, 0}, {520, 150, GD_BF16, 0}};
    for (size_t i = 0; i < GD_COUNT(settings); i++)
        check_linear(&settings[i], i % 2 == 0);
    check_linear(&settings[0], false);
}

static void rows_of_an_expert_are_worn(void **state)
{
    check_linear(&(struct setting){40, 24, GD_F32, 3}, true);
    check_linear(&(struct setting){40, 24, GD_BF16, 3}, false);
}

/* The same bits alone and among others, at any place of a chunk. */
static void a_row_does_not_depend_on_its_neighbours(void **state)
{
    struct setting s = {520, 150, GD_BF16, 0};
    struct gd_wear_part parts[GRAFTS][2];
    const struct gd_wear_part *sites[GROUPS];
    make_grafts(parts, &s);
    adopt(parts, (struct gd_wear_shape){.in = s.in, .out = s.out});
    struct gd_wear wear = batch_of(parts, sites);
    uint16_t *x = bench_random(s.act, ROOM * s.in, 1), *y = bench_random(s.act, ROOM * s.out, 2), *all = bench_random(s.act, ROOM * s.out, 3), alone[150];
    struct gd_op_params params = {.i = {1}};
    struct gd_tensor handle = {.dtype = GD_HANDLE, .rank = 1, .shape = {1}, .data = &wear};
    struct gd_kernel_args args = {.in = {rows_of(s.act, ROOM, s.out, y), rows_of(s.act, ROOM, s.in, x), handle},
                                  .out = {rows_of(s.act, ROOM, s.out, NULL)}, .params = &params};
    run_there(&gd_cuda_wear, &args, true, all);
    for (int group = 0; group < GROUPS; group++) {
        int row = row_begin[group + 1] - 1;
        struct gd_wear one = {.group_count = 1, .row_begin = (int32_t[]){0, 1}, .sites = &sites[group]};
        struct gd_kernel_args single = {.in = {rows_of(s.act, 1, s.out, y + row * s.out), rows_of(s.act, 1, s.in, x + row * s.in), handle},
                                        .out = {rows_of(s.act, 1, s.out, NULL)}, .params = &params};
        single.in[2].data = &one;
        if (row_begin[group] > row)
            continue;
        run_there(&gd_cuda_wear, &single, true, alone);
        assert_memory_equal(alone, all + row * s.out, sizeof(alone));
    }
    release_grafts(parts);
    gd_free(x);
    gd_free(y);
    gd_free(all);
}

static void embedded_tokens_are_worn(void **state)
{
    for (int bf16 = 0; bf16 < 2; bf16++) {
        enum gd_dtype act = bf16 ? GD_BF16 : GD_F32;
        enum { WIDTH = 150 };
        struct gd_wear_part parts[GRAFTS][2];
        const struct gd_wear_part *sites[GROUPS];
        int32_t ids[ROOM], positions[ROOM], index[ROOM];
        memset(parts, 0, sizeof(parts));
        for (int t = 0; t < ROOM; t++) {
            ids[t] = t * 5 % 11;
            positions[t] = t % 6;
            index[t] = t % 5 - 1;
        }
        parts[1][1] = (struct gd_wear_part){.rows = floats(3 * WIDTH, 1, 1), .row_count = 3};
        parts[2][1] = (struct gd_wear_part){.table = floats(11 * WIDTH, 1, 2), .table_scale = 0.3f};
        parts[3][1] = (struct gd_wear_part){.positions = floats(8 * WIDTH, 1, 3), .position_offset = 2, .rows = floats(WIDTH, 1, 4), .row_count = 1};
        adopt(parts, (struct gd_wear_shape){.out = WIDTH, .table_rows = 11, .position_rows = 8});
        struct gd_wear wear = batch_of(parts, sites);
        wear.ids = ids;
        wear.positions = positions;
        wear.row_index = index;
        void *x = bench_random(act, ROOM * WIDTH, 1), *expected = bench_random(act, ROOM * WIDTH, 3), *got = bench_random(act, ROOM * WIDTH, 4);
        struct gd_op_params params = {.i = {1}};
        struct gd_kernel_args args = {.in = {rows_of(act, ROOM, WIDTH, x), {.dtype = GD_HANDLE, .rank = 1, .shape = {1}, .data = &wear}},
                                      .out = {rows_of(act, ROOM, WIDTH, NULL)}, .params = &params};
        run_both(gd_op_find("wear_rows"), &gd_cuda_wear_rows, &args, bf16, expected, got);
        compare("wear_rows", act, expected, got, ROOM, WIDTH, row_begin[GROUPS]);
        release_grafts(parts);
        gd_free(x);
        gd_free(expected);
        gd_free(got);
        bench_release(NULL);
    }
}

static void a_graft_that_was_not_adopted_or_does_not_fit_is_an_error(void **state)
{
    struct gd_error err = {0};
    struct gd_wear_part part = {.rank = GD_WEAR_RANK_MAX + 1}, bare = {0};
    const struct gd_wear_part *sites[] = {&bare};
    int32_t begin[] = {0, 1};
    struct gd_wear wear = {.group_count = 1, .row_begin = begin, .sites = sites};
    struct gd_kernel_args args = {.in = {rows_of(GD_F32, 4, 8, NULL), {.dtype = GD_HANDLE, .rank = 1, .shape = {1}, .data = &wear}}};
    struct gd_wear_shape shape = {.in = 8, .out = 9};
    void *staged = gd_alloc_array(gd_cuda_wear_staged_bytes(&args), 1);
    assert_false(gd_cuda_wear_adopt(&part, &shape, 1, &err));
    gd_error_clear(&err);
    part = (struct gd_wear_part){.serial = true};
    assert_false(gd_cuda_wear_adopt(&part, &shape, 1, &err));
    gd_error_clear(&err);
    assert_false(gd_cuda_wear_stage(&args, staged, &err));
    gd_error_clear(&err);
    begin[1] = 5;
    assert_false(gd_cuda_wear_stage(&args, staged, &err));
    gd_free(staged);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(linear_maps_and_blocks_are_worn, bench_release),
        cmocka_unit_test_teardown(rows_of_an_expert_are_worn, bench_release),
        cmocka_unit_test_teardown(a_row_does_not_depend_on_its_neighbours, bench_release),
        cmocka_unit_test_teardown(embedded_tokens_are_worn, bench_release),
        cmocka_unit_test_teardown(a_graft_that_was_not_adopted_or_does_not_fit_is_an_error, bench_release),
    };
    return cmocka_run_group_tests(tests, bench_open, NULL);
}
