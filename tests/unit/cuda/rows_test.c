/* What the shared op test has no inputs for: tables of all formats, norms that grafts bring, positions of long sequences. */
#include "bench.h"
#include "cuda/wear.h"
#include "engine/tensor/backend.h"
#include <math.h>

#define WIDTH 256
#define TABLE 300      /* rows: more than are unpacked at a time */
#define SCRATCH (1 << 22)

extern const struct gd_backend_op gd_cuda_embed, gd_cuda_row_norm_ratio, gd_cuda_rms_norm, gd_cuda_layer_norm, gd_cuda_rope;

static struct gd_tensor tensor(enum gd_dtype dtype, int64_t rows, int64_t width, const void *data)
{
    return (struct gd_tensor){.dtype = dtype, .rank = width > 0 ? 2 : 1, .shape = {rows, width}, .data = (void *)(uintptr_t)data};
}

static void compare(const char *name, int output, const struct gd_tensor *out, const void *expected, const void *got)
{
    double most = out->dtype == GD_BF16 ? 1e-2 : 3e-5;
    for (int64_t i = 0; i < gd_tensor_count(out); i++) {
        double e = bench_at(out->dtype, expected, i), g = bench_at(out->dtype, got, i);
        if (!(fabs(e - g) <= most * (fabs(e) > 1 ? fabs(e) : 1)))
            fail_msg("%s: output %d [%d] is %.9g, the CPU's %.9g", name, output, (int)i, g, e);
    }
}

/* The CPU's kernel on the arguments as they are, the device's on copies. `call`: what scratch is asked with; NULL: none. */
static void check(const char *name, const struct gd_backend_op *cuda, struct gd_kernel_args args, const struct gd_call *call)
{
    struct gd_error err = {0};
    struct gd_kernel_args there = args;
    size_t staged = cuda->staged_bytes != NULL ? cuda->staged_bytes(&args) : 0;
    void *host = gd_alloc(staged + 1), *scratch = gd_alloc(SCRATCH), *got[3] = {NULL};
    if (staged > 0 && !cuda->stage(&args, host, &err))
        fail_msg("%s", err.message);
    there.staged = staged > 0 ? bench_put(host, staged) : NULL;
    there.scratch = cuda->scratch_bytes != NULL ? bench_room(cuda->scratch_bytes(call)) : NULL;
    args.scratch = scratch;
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++)
        if (args.in[j].data != NULL && args.in[j].dtype != GD_HANDLE)
            there.in[j].data = bench_put(args.in[j].data, gd_dtype_bytes(args.in[j].dtype, gd_tensor_count(&args.in[j])));
    for (int k = 0; k < 3 && args.out[k].rank > 0; k++) {
        size_t bytes = gd_dtype_bytes(args.out[k].dtype, gd_tensor_count(&args.out[k]));
        args.out[k].data = gd_alloc(bytes);
        got[k] = gd_alloc(bytes);
        there.out[k].data = bench_room(bytes);
    }
    if (!gd_op_find(name)->run_cpu(&args, &err) || !cuda->run(&there, &err))
        fail_msg("%s", err.message);
    for (int k = 0; k < 3 && args.out[k].rank > 0; k++) {
        bench_get(got[k], there.out[k].data, gd_dtype_bytes(args.out[k].dtype, gd_tensor_count(&args.out[k])));
        compare(name, k, &args.out[k], args.out[k].data, got[k]);
        gd_free(args.out[k].data);
        gd_free(got[k]);
    }
    gd_free(host);
    gd_free(scratch);
}

/* A weight [TABLE, WIDTH] of a format; *memory is its source. */
static struct gd_weight *weight_of(enum gd_dtype dtype, void **memory)
{
    struct gd_error err = {0};
    struct gd_weight *weight = NULL;
    int64_t block = gd_dtype_block(dtype);
    enum gd_dtype source = dtype == GD_NF4 ? GD_F32 : dtype;
    *memory = block > 1 && dtype != GD_NF4 ? bench_blocks(dtype, TABLE * WIDTH / block) : bench_random(source, TABLE * WIDTH, 9);
    struct gd_tensor view = tensor(source, TABLE, WIDTH, *memory);
    if (!gd_weight_create(&weight, "table", &view, NULL, 0, &err) || (dtype == GD_NF4 && !gd_weight_quantise(weight, dtype, &err)))
        fail_msg("%s", err.message);
    return weight;
}

static const enum gd_dtype formats[] = {GD_F32, GD_BF16, GD_F16, GD_Q4_0, GD_Q5_1, GD_Q8_0, GD_Q4_K, GD_Q6_K, GD_NF4};

static void check_embed(struct gd_weight *weight, enum gd_dtype act)
{
    struct gd_error err = {0};
    int32_t ids[] = {0, 299, -1, 17, 17, 256, 3};
    enum { ROWS = GD_COUNT(ids) };
    struct gd_value table = {.weight = weight, .rank = 2, .shape = {TABLE, WIDTH}}, out = {.dtype = act, .rank = 2, .shape = {ROWS, WIDTH}};
    struct gd_call call = {.in = {&table}, .out = {&out}};
    struct gd_op_params params = {.i = {0}};
    if (!gd_weight_prepare(weight, GD_WEIGHT_ROWS, act, &err))
        fail_msg("%s", err.message);
    check("embed", &gd_cuda_embed,
          (struct gd_kernel_args){.in = {tensor(GD_F32, TABLE, WIDTH, NULL), tensor(GD_I32, ROWS, 0, ids)}, .weight = {weight},
                                  .out = {tensor(act, ROWS, WIDTH, NULL)}, .params = &params},
          &call);
}

static void check_norms(struct gd_weight *weight)
{
    enum { RANK = 5 };
    float *b = bench_random(GD_F32, TABLE * RANK, 1), *a = bench_random(GD_F32, RANK * WIDTH, 2), *m = bench_random(GD_F32, TABLE, 3);
    struct gd_value w = {.weight = weight, .rank = 2, .shape = {TABLE, WIDTH}};
    struct gd_call call = {.in = {&w}};
    struct gd_op_params params = {.f = {0.3}};
    check("row_norm_ratio", &gd_cuda_row_norm_ratio,
          (struct gd_kernel_args){.in = {tensor(GD_F32, TABLE, WIDTH, NULL), tensor(GD_F32, TABLE, RANK, b), tensor(GD_F32, RANK, WIDTH, a),
                                         tensor(GD_F32, TABLE, 0, m)},
                                  .weight = {weight}, .out = {tensor(GD_F32, TABLE, 0, NULL), tensor(GD_F32, TABLE, 0, NULL)},
                                  .params = &params},
          &call);
    gd_free(b);
    gd_free(a);
    gd_free(m);
}

static void rows_of_tables_of_every_format_are_read(void **state)
{
    for (size_t f = 0; f < GD_COUNT(formats); f++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            void *memory;
            struct gd_weight *weight = weight_of(formats[f], &memory);
            check_embed(weight, bf16 ? GD_BF16 : GD_F32);
            if (!bf16)
                check_norms(weight);
            gd_weight_destroy(weight);
            gd_free(memory);
            bench_release(NULL);
        }
}

static void an_id_outside_of_the_table_gives_no_number(void **state)
{
    struct gd_error err = {0};
    int32_t ids[] = {TABLE};
    void *memory;
    float got[WIDTH];
    struct gd_weight *weight = weight_of(GD_F32, &memory);
    struct gd_op_params params = {.i = {0}};
    assert_true(gd_weight_prepare(weight, GD_WEIGHT_ROWS, GD_F32, &err));
    struct gd_kernel_args args = {.in = {tensor(GD_F32, TABLE, WIDTH, NULL), tensor(GD_I32, 1, 0, bench_put(ids, sizeof(ids)))},
                                  .weight = {weight}, .out = {tensor(GD_F32, 1, WIDTH, bench_room(sizeof(got)))}, .params = &params};
    assert_true(gd_cuda_embed.run(&args, &err));
    bench_get(got, args.out[0].data, sizeof(got));
    for (int j = 0; j < WIDTH; j++)
        assert_true(isnan(got[j]));
    gd_weight_destroy(weight);
    gd_free(memory);
}

/* Of three grafts the first brings a weight, the second nothing, the third both. */
static void check_worn(enum gd_dtype act)
{
    enum { ROWS = 11, NORM = 75, HEADS = 2 };
    struct gd_error err = {0};
    struct gd_wear_part parts[3][2] = {{{0}}};
    struct gd_wear_shape shapes[] = {{.out = NORM}, {.out = NORM}};
    const struct gd_wear_part *sites[] = {parts[0], NULL, parts[1], parts[2]};
    const int32_t begin[] = {0, 2, 3, 7, 9};
    struct gd_wear wear = {.group_count = 4, .row_begin = begin, .sites = sites};
    struct gd_op_params params = {.i = {1}, .f = {1e-5, 0.5}};
    void *x = bench_random(act, ROWS * HEADS * NORM, 1), *w = bench_random(GD_F32, NORM, 2), *b = bench_random(GD_F32, NORM, 3);
    float *own[] = {bench_random(GD_F32, NORM, 4), bench_random(GD_F32, NORM, 5), bench_random(GD_F32, NORM, 6)};
    parts[0][1].norm = own[0];
    parts[2][1].norm = own[1];
    parts[2][1].norm_bias = own[2];
    for (int g = 0; g < 3; g++)
        if (!gd_cuda_wear_adopt(parts[g], shapes, 2, &err))
            fail_msg("%s", err.message);
    struct gd_tensor handle = {.dtype = GD_HANDLE, .rank = 1, .shape = {1}, .data = &wear};
    check("rms_norm", &gd_cuda_rms_norm,
          (struct gd_kernel_args){.in = {tensor(act, ROWS, HEADS * NORM, x), tensor(GD_F32, NORM, 0, w), handle},
                                  .out = {tensor(act, ROWS, HEADS * NORM, NULL), tensor(GD_F32, ROWS * HEADS, 0, NULL)}, .params = &params},
          NULL);
    check("layer_norm", &gd_cuda_layer_norm,
          (struct gd_kernel_args){.in = {tensor(act, ROWS, NORM, x), tensor(GD_F32, NORM, 0, w), tensor(GD_F32, NORM, 0, b), handle},
                                  .out = {tensor(act, ROWS, NORM, NULL), tensor(GD_F32, ROWS, 0, NULL), tensor(GD_F32, ROWS, 0, NULL)},
                                  .params = &params},
          NULL);
    for (int g = 0; g < 3; g++) {
        gd_cuda_wear_drop(parts[g]);
        gd_free(own[g]);
    }
    gd_free(x);
    gd_free(w);
    gd_free(b);
}

static void norms_that_grafts_bring_are_worn(void **state)
{
    check_worn(GD_F32);
    check_worn(GD_BF16);
}

static void rows_of_long_sequences_turn_by_their_own_table(void **state)
{
    enum { ROWS = 5, HEAD = 16, HALF = 8 };
    int32_t positions[ROWS] = {0, 7 | GD_POSITION_LONG, 7, 100000, 100000 | GD_POSITION_LONG};
    float freqs[2 * HALF];
    for (int i = 0; i < 2 * HALF; i++)
        freqs[i] = 1.0f / (float)(1 + i * i);
    struct gd_op_params params = {.i = {HEAD, 1, HALF, 0}, .f = {1.1}};
    void *x = bench_random(GD_F32, ROWS * 3 * HEAD, 1);
    check("rope", &gd_cuda_rope,
          (struct gd_kernel_args){.in = {tensor(GD_F32, ROWS, 3 * HEAD, x), tensor(GD_I32, ROWS, 0, positions), tensor(GD_F32, 2 * HALF, 0, freqs)},
                                  .out = {tensor(GD_F32, ROWS, 3 * HEAD, NULL)}, .params = &params},
          NULL);
    gd_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(rows_of_tables_of_every_format_are_read, bench_release),
        cmocka_unit_test_teardown(an_id_outside_of_the_table_gives_no_number, bench_release),
        cmocka_unit_test_teardown(norms_that_grafts_bring_are_worn, bench_release),
        cmocka_unit_test_teardown(rows_of_long_sequences_turn_by_their_own_table, bench_release),
    };
    return cmocka_run_group_tests(tests, bench_open, NULL);
}
