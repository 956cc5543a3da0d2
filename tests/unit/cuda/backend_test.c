/* The CUDA backend on the stand-in runtime: opening, memory, runs, products, weights, and every way to fail. */
#include "child.h"
#include "cuda/gemm.h"
#include "cuda/internal.h"
#include "cuda/layout.h"
#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"
#include "tests/cuda/fake.h"
#include <math.h>

static void open_device(void)
{
    struct gd_error err = {0};
    if (!gd_device_init("cuda:0", 1, &err))
        fprintf(stderr, "%s\n", err.message);
    EXPECT(err.code == GD_OK);
}

static float number(uint64_t i)
{
    struct gd_philox bits = gd_philox4(7, 0, i);
    return (float)(2.0 * gd_uniform_from_bits64(bits.v[0], bits.v[1]) - 1.0);
}

/* ---- opening ---- */

static const char *wanted;

static void refused(void)
{
    struct gd_error err = {0};
    EXPECT(!gd_device_init(getenv("GD_ASKED"), 1, &err));
    EXPECT(err.code == GD_UNSUPPORTED || err.code == GD_INVALID);
    EXPECT(strcmp(err.param, "device") == 0);
    EXPECT_IN(err.message, getenv("GD_ASKED"));
    EXPECT_IN(err.message, wanted);
}

static void a_device_that_cannot_be_used_is_refused_with_the_reason(void **state)
{
    wanted = "no NVIDIA driver";
    in_child(refused, SETTINGS("GD_ASKED=cuda:0", "EMU_DRIVER=0"));
    wanted = "0 devices are here";
    in_child(refused, SETTINGS("GD_ASKED=cuda:0", "EMU_DEVICES=0"));
    wanted = "2 devices are here";
    in_child(refused, SETTINGS("GD_ASKED=cuda:2", "EMU_DEVICES=2"));
    wanted = "compute capability 7.5; 8.0 or later";
    in_child(refused, SETTINGS("GD_ASKED=cuda:0", "EMU_CAPABILITY=7.5"));
    wanted = "number";
    in_child(refused, SETTINGS("GD_ASKED=cuda:x"));
    in_child(refused, SETTINGS("GD_ASKED=cuda:"));
}

static void says_what_it_is(void)
{
    open_device();
    EXPECT(strcmp(gd_device()->name, "cuda:0") == 0 && strcmp(gd_device()->isa, "emulated") == 0 && gd_device()->compute == GD_BF16);
    EXPECT(gd_backend()->own_memory);
    for (int i = 0; i < gd_op_count; i++)
        if (gd_backend()->op(gd_op_table[i]).run == NULL) {
            fprintf(stderr, "op '%s' has no kernel\n", gd_op_table[i]->name);
            _exit(1);
        }
}

static void every_op_has_a_kernel(void **state)
{
    in_child(says_what_it_is, NULL);
}

/* ---- memory ---- */

#define BLOCKS 200

static void random_blocks(void)
{
    open_device();
    struct gd_error err = {0};
    size_t before = fake_runtime_meter().device_bytes, used = gd_cuda_memory().used;
    struct {
        char *memory;
        size_t bytes;
    } blocks[BLOCKS] = {{0}};
    for (int turn = 0; turn < 4000; turn++) {
        int i = (int)(gd_philox4(1, 0, (uint64_t)turn).v[0] % BLOCKS);
        if (blocks[i].memory != NULL) {
            gd_cuda_free(blocks[i].memory);
            blocks[i].memory = NULL;
            continue;
        }
        blocks[i].bytes = gd_philox4(2, 0, (uint64_t)turn).v[0] % (turn % 50 == 0 ? 3000000 : 40000);
        void *memory = NULL;
        EXPECT(gd_cuda_alloc(&memory, blocks[i].bytes, "a test", &err));
        EXPECT((uintptr_t)memory % 256 == 0 && gd_cuda_owns(memory));
        blocks[i].memory = memory;
        for (int j = 0; j < BLOCKS; j++)
            EXPECT(j == i || blocks[j].memory == NULL || blocks[j].memory + blocks[j].bytes <= blocks[i].memory ||
                   blocks[i].memory + blocks[i].bytes <= blocks[j].memory);
        struct gd_cuda_memory now = gd_cuda_memory();
        EXPECT(now.taken == fake_runtime_meter().device_bytes && now.used <= now.taken && now.used <= now.used_peak);
    }
    struct gd_cuda_figures figures;
    EXPECT(gd_cuda_figures(&figures, &err));
    EXPECT(figures.total - figures.free == fake_runtime_meter().device_bytes && figures.taken == fake_runtime_meter().device_bytes);
    for (int i = 0; i < BLOCKS; i++)
        gd_cuda_free(blocks[i].memory);
    EXPECT(gd_cuda_memory().used == used);
    int host = 0;
    EXPECT(!gd_cuda_owns(&host) && !gd_cuda_owns(NULL));
    EXPECT(fake_runtime_meter().device_bytes - before <= (size_t)24 << 20);
}

/* A load as a model's: what is handed out is nearly all that was taken. */
static void large_blocks(void)
{
    struct gd_error err = {0};
    gd_cuda_pool_set_chunk((size_t)4 << 20);
    open_device();
    size_t sum = gd_cuda_memory().used;
    for (int i = 0; i < 300; i++) {
        void *memory = NULL;
        size_t bytes = i % 3 == 0 ? 2300 : i % 3 == 1 ? 1179648 : 884736;
        EXPECT(gd_cuda_alloc(&memory, bytes, "a weight", &err));
        sum += bytes;
    }
    EXPECT((double)fake_runtime_meter().device_bytes < 1.05 * (double)sum);
    EXPECT((double)gd_cuda_memory().used < 1.05 * (double)sum && gd_cuda_memory().used >= sum);
}

static void small_pool(void)
{
    gd_cuda_pool_set_chunk((size_t)1 << 20);
    random_blocks();
}

static void blocks_lie_apart_and_are_accounted_to_the_byte(void **state)
{
    in_child(random_blocks, NULL);
    in_child(small_pool, NULL);
    in_child(large_blocks, NULL);
}

static void too_much(void)
{
    open_device();
    struct gd_error err = {0};
    void *memory = NULL, *other = NULL;
    EXPECT(!gd_backend()->alloc(&memory, (size_t)100 << 20, "an arena", &err));
    EXPECT(err.code == GD_NO_MEMORY && memory == NULL);
    EXPECT_IN(err.message, "100.0 MiB");
    EXPECT_IN(err.message, "an arena");
    EXPECT_IN(err.message, "are in use");
    gd_error_clear(&err);
    EXPECT(gd_backend()->alloc(&other, (size_t)1 << 20, "less", &err)); /* nothing lasts of it */
}

static void idle_chunks(void)
{
    struct gd_error err = {0};
    gd_cuda_pool_set_chunk((size_t)16 << 20);
    open_device();
    void *small[4] = {NULL}, *large = NULL; /* beside the workspaces they fill a second chunk */
    for (int i = 0; i < 4; i++)
        EXPECT(gd_cuda_alloc(&small[i], (size_t)4 << 20, "a small block", &err));
    EXPECT(!gd_cuda_alloc(&large, (size_t)30 << 20, "a large block", &err) && err.code == GD_NO_MEMORY);
    gd_error_clear(&err);
    for (int i = 0; i < 4; i++)
        gd_cuda_free(small[i]);
    EXPECT(gd_cuda_alloc(&large, (size_t)30 << 20, "a large block", &err)); /* in the room of the chunk that nobody uses */
}

static void what_does_not_fit_is_refused_with_its_size(void **state)
{
    in_child(too_much, SETTINGS("EMU_MEMORY=67108864"));
    in_child(idle_chunks, SETTINGS("EMU_MEMORY=50331648"));
}

/* ---- runs ---- */

static int launches;

struct work {
    const float *staged;
    float *out;
    int64_t count;
    bool fails;
};

/* out += staged, twice, by way of copies and vectors. */
static bool launch(void *context, struct gd_error *err)
{
    struct work *work = context;
    launches++;
    if (work->fails)
        return gd_fail(err, GD_INVALID, "this fails");
    return gd_backend()->vector_add(work->out, work->staged, work->count, err) &&
           gd_backend()->vector_add(work->out, work->staged, work->count, err);
}

static int nested_calls;

static bool nothing_between(void *context)
{
    return nested_calls++ < 100000;
}

static bool stop(void *context)
{
    nested_calls++;
    return false;
}

#define COUNT 1000

struct place {
    void *host, *staged, *out;
};

static struct place make_place(void)
{
    struct gd_error err = {0};
    struct place p = {0};
    EXPECT(gd_backend()->alloc_staging(&p.host, COUNT * sizeof(float), &err));
    EXPECT(gd_backend()->alloc(&p.staged, COUNT * sizeof(float), "staged", &err));
    EXPECT(gd_backend()->alloc(&p.out, COUNT * sizeof(float), "out", &err));
    EXPECT(gd_backend()->fill_zero(p.out, COUNT * sizeof(float), &err));
    return p;
}

static bool run_once(const struct place *p, struct gd_recording **recording, bool (*between)(void *), void *context, bool fails,
                     struct gd_error *err)
{
    struct work work = {p->staged, p->out, COUNT, fails};
    struct gd_backend_run run = {.staged_device = p->staged, .staged_host = p->host, .staged_bytes = COUNT * sizeof(float),
                                 .recording = recording, .launch = launch, .context = &work, .between = between, .between_context = context};
    return gd_backend()->run(&run, err);
}

static float first_of(const struct place *p)
{
    struct gd_error err = {0};
    float out[COUNT];
    EXPECT(gd_backend()->copy(out, p->out, sizeof(out), GD_COPY_FROM_DEVICE, &err));
    for (int i = 1; i < COUNT; i++)
        EXPECT(out[i] == out[0]);
    return out[0];
}

static void runs(void)
{
    open_device();
    struct gd_error err = {0};
    struct place p = make_place();
    struct gd_recording *recording = NULL;
    float sum = 0.0f;
    for (int turn = 1; turn <= 5; turn++) {
        for (int i = 0; i < COUNT; i++)
            ((float *)p.host)[i] = (float)turn;
        EXPECT(run_once(&p, &recording, turn % 2 ? nothing_between : NULL, NULL, false, &err));
        sum += 2.0f * (float)turn;
        EXPECT(first_of(&p) == sum);
    }
    EXPECT(launches == 2 && fake_runtime_meter().graphs == 1 && fake_runtime_meter().graph_launches == 4);
    EXPECT(nested_calls > 0);
    gd_backend()->forget(recording);
    EXPECT(run_once(&p, NULL, NULL, NULL, false, &err) && run_once(&p, NULL, NULL, NULL, false, &err) && launches == 4);

    recording = NULL;                                     /* one that fails leaves nothing behind */
    EXPECT(!run_once(&p, &recording, NULL, NULL, true, &err) && err.code == GD_INVALID);
    gd_error_clear(&err);
    EXPECT(run_once(&p, &recording, NULL, NULL, false, &err) && fake_runtime_meter().graphs == 1); /* that was the first to its end */
    EXPECT(!run_once(&p, &recording, NULL, NULL, true, &err) && err.code == GD_INVALID); /* while it is recorded */
    gd_error_clear(&err);
    EXPECT(run_once(&p, &recording, NULL, NULL, false, &err) && fake_runtime_meter().graphs == 2);
    EXPECT(!run_once(&p, &recording, stop, NULL, false, &err) && err.code == GD_CANCELLED);
    gd_error_clear(&err);
    float before = first_of(&p);
    EXPECT(run_once(&p, &recording, NULL, NULL, false, &err) && first_of(&p) == before + 10.0f);
    gd_backend()->forget(recording);
}

static struct place inner;
static struct gd_recording *inner_recording;
static int inner_runs;

static bool run_inner(void *context)
{
    struct gd_error err = {0};
    if (inner_runs < 3) {
        EXPECT(run_once(&inner, &inner_recording, NULL, NULL, false, &err));
        inner_runs++;
        EXPECT(gd_cuda_lane() == GD_CUDA_LANE_NESTED && first_of(&inner) == 2.0f * (float)inner_runs);
    }
    return true;
}

static void nested(void)
{
    open_device();
    struct gd_error err = {0};
    struct place p = make_place();
    inner = make_place();
    for (int i = 0; i < COUNT; i++) {
        ((float *)p.host)[i] = 5.0f;
        ((float *)inner.host)[i] = 1.0f;
    }
    struct gd_recording *recording = NULL;
    for (int turn = 1; turn <= 12; turn++) {
        EXPECT(run_once(&p, &recording, run_inner, NULL, false, &err));
        EXPECT(gd_cuda_lane() == GD_CUDA_LANE_MAIN && first_of(&p) == 10.0f * (float)turn);
    }
    EXPECT(inner_runs == 3);
}

static void a_run_is_recorded_the_second_time_and_repeated_with_new_inputs(void **state)
{
    for (int seed = 1; seed <= 4; seed++) {
        char text[32];
        snprintf(text, sizeof(text), "EMU_SEED=%d", seed);
        in_child(runs, SETTINGS(text));
    }
}

static void runs_between_go_to_another_lane(void **state)
{
    for (int seed = 1; seed <= 4; seed++) {
        char text[32];
        snprintf(text, sizeof(text), "EMU_SEED=%d", seed);
        in_child(nested, SETTINGS(text));
    }
}

/* ---- products ---- */

static float read_at(const void *data, enum gd_dtype dtype, int64_t i)
{
    return dtype == GD_BF16 ? gd_bf16_to_f32(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

static void *on_device(enum gd_dtype dtype, int64_t count, uint64_t key, void **host)
{
    struct gd_error err = {0};
    size_t bytes = gd_dtype_bytes(dtype, count);
    float *numbers = gd_alloc_array((size_t)count, sizeof(float));
    void *device = NULL;
    *host = gd_alloc(bytes + 8);
    for (int64_t i = 0; i < count; i++)
        numbers[i] = number(key * 1000003 + (uint64_t)i);
    gd_convert_from_f32(*host, dtype, numbers, count);
    gd_free(numbers);
    EXPECT(gd_backend()->alloc(&device, bytes, "an operand", &err) && gd_backend()->copy(device, *host, bytes, GD_COPY_TO_DEVICE, &err));
    return device;
}

static void check_product(const struct gd_cuda_gemm *g)
{
    struct gd_error err = {0};
    int64_t lda = g->lda ? g->lda : g->transpose_a ? g->m : g->k, ldb = g->ldb ? g->ldb : g->transpose_b ? g->k : g->n;
    int64_t ldc = g->ldc ? g->ldc : g->n, batch = g->batch ? g->batch : 1;
    int64_t a_count = (batch - 1) * g->stride_a + (g->transpose_a ? g->k : g->m) * lda;
    int64_t b_count = (batch - 1) * g->stride_b + (g->transpose_b ? g->n : g->k) * ldb, c_count = (batch - 1) * g->stride_c + g->m * ldc;
    void *a, *b, *c, *out = gd_alloc(gd_dtype_bytes(g->out, c_count) + 8);
    void *da = on_device(g->in, a_count, 1, &a), *db = on_device(g->in, b_count, 2, &b), *dc = on_device(g->out, c_count, 3, &c);
    if (!gd_cuda_gemm(g, da, db, dc, &err))
        fprintf(stderr, "%s\n", err.message);
    EXPECT(err.code == GD_OK);
    EXPECT(gd_backend()->copy(out, dc, gd_dtype_bytes(g->out, c_count), GD_COPY_FROM_DEVICE, &err));
    for (int64_t t = 0; t < batch; t++)
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) {
                double sum = 0.0;
                for (int64_t k = 0; k < g->k; k++)
                    sum += (double)read_at(a, g->in, t * g->stride_a + (g->transpose_a ? k * lda + i : i * lda + k)) *
                           (double)read_at(b, g->in, t * g->stride_b + (g->transpose_b ? j * ldb + k : k * ldb + j));
                int64_t at = t * g->stride_c + i * ldc + j;
                double expected = (double)g->alpha * sum + (g->accumulate ? (double)read_at(c, g->out, at) : 0.0);
                double error = fabs((double)read_at(out, g->out, at) - expected);
                EXPECT(error < (g->out == GD_BF16 ? 8e-3 : 1e-5) * (1.0 + fabs(expected)));
            }
    for (int64_t i = 0; i < g->m && batch == 1; i++) /* what lies between rows stays */
        for (int64_t j = g->n; j < ldc; j++)
            EXPECT(read_at(out, g->out, i * ldc + j) == read_at(c, g->out, i * ldc + j));
    gd_free(a);
    gd_free(b);
    gd_free(c);
    gd_free(out);
    gd_cuda_free(da);
    gd_cuda_free(db);
    gd_cuda_free(dc);
}

static void products(void)
{
    open_device();
    static const enum gd_dtype dtypes[][2] = {{GD_F32, GD_F32}, {GD_BF16, GD_F32}, {GD_BF16, GD_BF16}};
    for (size_t d = 0; d < GD_COUNT(dtypes); d++)
        for (int bits = 0; bits < 8; bits++) {
            struct gd_cuda_gemm g = {.m = 7, .n = 33, .k = 19, .transpose_a = bits & 1, .transpose_b = (bits & 2) != 0,
                                     .accumulate = (bits & 4) != 0, .in = dtypes[d][0], .out = dtypes[d][1], .alpha = bits & 1 ? 1.0f : -0.5f};
            check_product(&g);
            g.lda = 40, g.ldb = 48, g.ldc = 56;
            check_product(&g);
            g.batch = 3, g.stride_a = 40 * 20, g.stride_b = 48 * 40, g.stride_c = 56 * 8;
            check_product(&g);
            check_product(&(struct gd_cuda_gemm){.m = 1, .n = 1, .k = 1, .in = dtypes[d][0], .out = dtypes[d][1], .alpha = 1.0f});
            check_product(&(struct gd_cuda_gemm){.m = 4, .n = 5, .k = 0, .in = dtypes[d][0], .out = dtypes[d][1], .alpha = 1.0f,
                                                 .accumulate = g.accumulate});
        }
}

static void products_agree_with_plain_sums(void **state)
{
    in_child(products, NULL);
}

/* ---- products of a plan that runs by itself, then within another's run ---- */

struct multiplying {
    void *a, *b, *c;
    struct gd_recording *recording;
};

static bool launch_products(void *context, struct gd_error *err)
{
    const struct multiplying *m = context;
    struct gd_cuda_gemm g = {.m = 8, .n = 8, .k = 8, .in = GD_F32, .out = GD_F32, .alpha = 1.0f};
    for (int i = 0; i < 6; i++)
        if (!gd_cuda_gemm(&g, m->a, m->b, m->c, err))
            return false;
    return true;
}

static void multiply_all(struct multiplying *m, bool (*between)(void *), void *context)
{
    struct gd_error err = {0};
    struct gd_backend_run run = {.recording = &m->recording, .launch = launch_products, .context = m, .between = between,
                                 .between_context = context};
    if (!gd_backend()->run(&run, &err))
        fprintf(stderr, "%s\n", err.message);
    EXPECT(err.code == GD_OK);
}

static bool multiply_between(void *context)
{
    if (inner_runs++ < 20)
        multiply_all(context, NULL, NULL);
    return true;
}

static void products_in_both_lanes(void)
{
    open_device();
    struct multiplying plans[2] = {{0}};
    for (int i = 0; i < 2; i++) {
        void *host;
        plans[i] = (struct multiplying){.a = on_device(GD_F32, 64, 1, &host), .b = on_device(GD_F32, 64, 2, &host),
                                        .c = on_device(GD_F32, 64, 3, &host)};
        for (int turn = 0; turn < 3; turn++)
            multiply_all(&plans[i], NULL, NULL); /* by itself: recorded in the main lane */
    }
    for (int turn = 0; turn < 4; turn++)
        multiply_all(&plans[0], multiply_between, &plans[1]);
    EXPECT(inner_runs >= 4 && fake_runtime_meter().graphs == 3);
    for (int i = 0; i < 2; i++)
        gd_backend()->forget(plans[i].recording);
}

static void what_was_recorded_by_itself_keeps_apart_from_a_run_that_it_is_nested_in(void **state)
{
    for (int seed = 1; seed <= 4; seed++) {
        char text[32];
        snprintf(text, sizeof(text), "EMU_SEED=%d", seed);
        in_child(products_in_both_lanes, SETTINGS(text));
    }
}

/* ---- weights ---- */

#define OUT 70
#define IN 96
#define ROWS 33

static void multiply_weight(enum gd_dtype source_dtype, enum gd_dtype compute, const int32_t *order, float add, bool quantised)
{
    struct gd_error err = {0};
    static float numbers[OUT * IN], w[OUT * IN];
    void *file = gd_alloc(OUT * IN * sizeof(float)), *x, *y, *dx, *dy;
    for (int i = 0; i < OUT * IN; i++)
        numbers[i] = number((uint64_t)i);
    if (source_dtype == GD_NF4 || gd_dtype_block(source_dtype) == 1) /* NF4 is made of it */
        gd_convert_from_f32(file, source_dtype == GD_NF4 ? GD_F32 : source_dtype, numbers, OUT * IN);
    else
        for (size_t i = 0; i < gd_dtype_bytes(source_dtype, OUT * IN); i += 18) { /* Q4_0: a scale of 1/8 and any nibbles */
            ((uint16_t *)file)[i / 2] = gd_f32_to_f16(0.125f);
            for (int j = 2; j < 18; j++)
                ((unsigned char *)file)[i + (size_t)j] = (unsigned char)(i * 7 + (size_t)j * 13);
        }
    struct gd_tensor source = {.dtype = source_dtype == GD_NF4 ? GD_F32 : source_dtype, .rank = 2, .shape = {OUT, IN}, .data = file};
    struct gd_weight *weight = NULL;
    size_t before = gd_cuda_memory().used;
    EXPECT(gd_weight_create(&weight, "w", &source, order, add, &err));
    EXPECT(!quantised || gd_weight_quantise(weight, source_dtype, &err));
    size_t planned = gd_weight_prepare_cost(weight, GD_WEIGHT_LINEAR, compute) + gd_weight_prepare_cost(weight, GD_WEIGHT_LINEAR_BACK, compute);
    EXPECT(gd_weight_prepare(weight, GD_WEIGHT_LINEAR, compute, &err) && gd_weight_prepare(weight, GD_WEIGHT_LINEAR_BACK, compute, &err));
    EXPECT(quantised || gd_cuda_memory().used - before == planned);
    gd_weight_to_f32(weight, w);
    for (int back = 0; back < 2; back++) {
        int64_t k = back ? OUT : IN, n = back ? IN : OUT;
        dx = on_device(compute, ROWS * k, 5, &x);
        dy = on_device(GD_F32, ROWS * n, 6, &y);
        float *out = gd_alloc_array((size_t)(ROWS * n), sizeof(float));
        EXPECT(gd_weight_multiply(weight, back, dx, compute, dy, GD_F32, ROWS, true, &err));
        EXPECT(gd_backend()->copy(out, dy, (size_t)(ROWS * n) * sizeof(float), GD_COPY_FROM_DEVICE, &err));
        for (int64_t i = 0; i < ROWS; i++)
            for (int64_t j = 0; j < n; j++) {
                double sum = (double)((float *)y)[i * n + j], size = 1.0;
                for (int64_t c = 0; c < k; c++) {
                    float element = back ? w[c * IN + j] : w[j * IN + c];
                    if (compute == GD_BF16)
                        element = gd_bf16_to_f32(gd_f32_to_bf16(element));
                    double product = (double)read_at(x, compute, i * k + c) * (double)element;
                    sum += product;
                    size += fabs(product);
                }
                EXPECT(fabs((double)out[i * n + j] - sum) < 1e-5 * size);
            }
        gd_free(x);
        gd_free(y);
        gd_free(out);
        gd_cuda_free(dx);
        gd_cuda_free(dy);
    }
    gd_weight_destroy(weight);
    gd_free(file);
}

static void weights(void)
{
    open_device();
    static int32_t order[OUT];
    for (int i = 0; i < OUT; i++)
        order[i] = (i * 31 + 7) % OUT;
    for (int b = 0; b < 2; b++) {
        enum gd_dtype compute = b ? GD_BF16 : GD_F32;
        multiply_weight(GD_F32, compute, NULL, 0.0f, false);
        multiply_weight(GD_BF16, compute, order, 0.0f, false);
        multiply_weight(GD_F16, compute, order, 0.5f, false);
        multiply_weight(GD_Q4_0, compute, order, 0.0f, false);
        multiply_weight(GD_Q4_0, compute, order, 0.0f, true);
        multiply_weight(GD_Q4_0, compute, NULL, 0.0f, true);
    }
}

static void tables(void)
{
    open_device();
    struct gd_error err = {0};
    static uint16_t file[OUT * IN];
    static uint16_t back[OUT * IN];
    static int32_t order[OUT];
    for (int i = 0; i < OUT * IN; i++)
        file[i] = gd_f32_to_bf16(number((uint64_t)i));
    for (int i = 0; i < OUT; i++)
        order[i] = (i * 31 + 7) % OUT;
    struct gd_tensor source = {.dtype = GD_BF16, .rank = 2, .shape = {OUT, IN}, .data = file};
    struct gd_weight *weight = NULL;
    size_t before = gd_cuda_memory().used;
    EXPECT(gd_weight_create(&weight, "embedding", &source, order, 0.0f, &err));
    EXPECT(gd_weight_prepare(weight, GD_WEIGHT_ROWS, GD_BF16, &err) && gd_weight_prepare(weight, GD_WEIGHT_LINEAR, GD_BF16, &err));
    EXPECT(gd_cuda_memory().used - before == sizeof(file)); /* one copy for both */
    enum gd_dtype dtype;
    const void *rows = gd_cuda_rows(weight, &dtype);
    EXPECT(dtype == GD_BF16 && gd_backend()->copy(back, rows, sizeof(back), GD_COPY_FROM_DEVICE, &err));
    for (int i = 0; i < OUT; i++)
        EXPECT(memcmp(back + i * IN, file + order[i] * IN, IN * sizeof(uint16_t)) == 0);
    gd_weight_destroy(weight);
    EXPECT(gd_cuda_memory().used == before);
    struct gd_tensor norm = {.dtype = GD_BF16, .rank = 1, .shape = {IN}, .data = file};
    float vector[IN];
    weight = NULL;
    EXPECT(gd_weight_create(&weight, "norm", &norm, NULL, -1.0f, &err) && gd_weight_prepare(weight, GD_WEIGHT_VECTOR, GD_BF16, &err));
    EXPECT(gd_backend()->copy(vector, gd_weight_vector(weight), sizeof(vector), GD_COPY_FROM_DEVICE, &err));
    for (int i = 0; i < IN; i++)
        EXPECT(vector[i] == gd_bf16_to_f32(file[i]) - 1.0f);
    gd_weight_destroy(weight);
    EXPECT(gd_cuda_memory().used == before);
}

/* More than two slices on the way. */
static void long_weight(void)
{
    open_device();
    struct gd_error err = {0};
    int64_t rows = 1300, width = 4096;
    float *file = gd_alloc_array((size_t)(rows * width), sizeof(float)), *back = gd_alloc_array((size_t)(rows * width), sizeof(float));
    for (int64_t i = 0; i < rows * width; i++)
        file[i] = (float)i;
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {rows, width}, .data = file};
    struct gd_weight *weight = NULL;
    EXPECT(gd_weight_create(&weight, "table", &source, NULL, 0.0f, &err) && gd_weight_prepare(weight, GD_WEIGHT_ROWS, GD_F32, &err));
    enum gd_dtype dtype;
    const void *device = gd_cuda_rows(weight, &dtype);
    EXPECT(dtype == GD_F32 && gd_backend()->copy(back, device, (size_t)(rows * width) * sizeof(float), GD_COPY_FROM_DEVICE, &err));
    EXPECT(memcmp(file, back, (size_t)(rows * width) * sizeof(float)) == 0);
    gd_weight_destroy(weight);
    gd_free(file);
    gd_free(back);
}

static void weights_are_multiplied_from_one_copy_whatever_the_file_holds(void **state)
{
    in_child(weights, NULL);
    in_child(tables, NULL);
    in_child(long_weight, SETTINGS("EMU_SEED=3"));
}

/* ---- failing ---- */

static int lost_code;

static void lost(void)
{
    open_device();
    struct gd_error err = {0};
    struct place p = {0};
    setenv("EMU_FAULT", getenv("GD_FAULT"), 1);
    fake_runtime_reset();
    bool ok = gd_backend()->alloc_staging(&p.host, COUNT * sizeof(float), &err) &&
              gd_backend()->alloc(&p.staged, COUNT * sizeof(float), "staged", &err) &&
              gd_backend()->alloc(&p.out, COUNT * sizeof(float), "out", &err) &&
              gd_backend()->fill_zero(p.out, COUNT * sizeof(float), &err);
    struct gd_recording *recording = NULL;
    memset(ok ? p.host : &ok, 0, ok ? COUNT * sizeof(float) : 0);
    for (int turn = 0; ok && turn < 3; turn++)
        ok = run_once(&p, &recording, turn == 1 ? nothing_between : NULL, NULL, false, &err);
    EXPECT(!ok);
    if ((int)err.code != lost_code)
        fprintf(stderr, "%s\n", err.message);
    EXPECT((int)err.code == lost_code);
    EXPECT_IN(err.message, wanted);
    if (lost_code != GD_DEVICE_LOST)
        return;
    gd_error_clear(&err);
    void *memory = NULL;
    EXPECT(!gd_backend()->alloc(&memory, 16, "later", &err) && err.code == GD_DEVICE_LOST);
    EXPECT_IN(err.message, wanted);
    gd_error_clear(&err);
    float out;
    EXPECT(!gd_backend()->copy(&out, p.out, 4, GD_COPY_FROM_DEVICE, &err) && err.code == GD_DEVICE_LOST);
}

static void expect_lost(const char *faults, int code, const char *text)
{
    lost_code = code;
    wanted = text;
    char setting[128];
    snprintf(setting, sizeof(setting), "GD_FAULT=%s", faults);
    in_child(lost, SETTINGS(setting));
}

static void a_failing_call_is_named_and_a_sick_device_is_lost_for_good(void **state)
{
    expect_lost("cudaMalloc:1:2", GD_NO_MEMORY, "cudaMalloc of 4000 bytes");
    expect_lost("cudaHostAlloc:1:2", GD_NO_MEMORY, "cudaHostAlloc");
    expect_lost("cudaMemsetAsync:1:1", GD_INTERNAL, "cudaMemsetAsync");
    expect_lost("cudaMemcpyAsync:1:214", GD_DEVICE_LOST, "uncorrectable ECC");
    expect_lost("launch:1:719", GD_DEVICE_LOST, "launch");
    expect_lost("launch:3:214", GD_DEVICE_LOST, "uncorrectable ECC");
    expect_lost("step:2:700", GD_DEVICE_LOST, "illegal memory access");
    expect_lost("step:5:214", GD_DEVICE_LOST, "uncorrectable ECC");
    expect_lost("step:8:719", GD_DEVICE_LOST, "launch failure");
    expect_lost("cudaStreamSynchronize:2:719", GD_DEVICE_LOST, "cudaStreamSynchronize");
    expect_lost("cudaStreamBeginCapture:1:2", GD_NO_MEMORY, "cudaStreamBeginCapture");
    expect_lost("cudaStreamEndCapture:1:2", GD_NO_MEMORY, "cudaStreamEndCapture");
    expect_lost("cudaGraphInstantiate:1:2", GD_NO_MEMORY, "cudaGraphInstantiate");
    expect_lost("cudaGraphLaunch:1:214", GD_DEVICE_LOST, "cudaGraphLaunch");
    expect_lost("cudaEventRecord:1:1", GD_INTERNAL, "cudaEventRecord");
    expect_lost("cudaEventQuery:1:214", GD_DEVICE_LOST, "cudaEventQuery");
}

static void failing_product(void)
{
    open_device();
    struct gd_error err = {0};
    void *a, *b;
    void *da = on_device(GD_F32, 64, 1, &a), *db = on_device(GD_F32, 64, 2, &b);
    setenv("EMU_FAULT", getenv("GD_FAULT"), 1);
    fake_runtime_reset();
    struct gd_cuda_gemm g = {.m = 8, .n = 8, .k = 8, .in = GD_F32, .out = GD_F32, .alpha = 1.0f};
    bool ok = gd_cuda_gemm(&g, da, db, da, &err);
    if (wanted == NULL) {
        EXPECT(ok);
        return;
    }
    EXPECT(!ok);
    EXPECT_IN(err.message, wanted);
    EXPECT_IN(err.message, "[8, 8]");
}

static void a_product_that_fails_is_named_with_its_shape(void **state)
{
    wanted = "cublasLtMatmulAlgoGetHeuristic";
    in_child(failing_product, SETTINGS("GD_FAULT=cublasLtMatmulAlgoGetHeuristic:1:214"));
    wanted = "cublasLtMatmul";
    in_child(failing_product, SETTINGS("GD_FAULT=cublasLtMatmul:1:719"));
    wanted = "uncorrectable ECC";           /* while algorithms are tried */
    char file[] = "/tmp/graftd-products-XXXXXX", setting[64];
    snprintf(setting, sizeof(setting), "GRAFTD_PRODUCTS=%s", (close(mkstemp(file)), file));
    in_child(failing_product, SETTINGS("GD_FAULT=step:3:214", setting));
    wanted = NULL;                          /* no room for trying: the library's first choice is taken */
    in_child(failing_product, SETTINGS("GD_FAULT=cudaMalloc:1:2", setting));
    unlink(file);
}

static int kept_lines(const char *file)
{
    int lines = 0;
    FILE *in = fopen(file, "r");
    for (int c; in != NULL && (c = fgetc(in)) != EOF;)
        lines += c == '\n';
    if (in != NULL)
        fclose(in);
    return lines;
}

static void chosen_once(void)
{
    int before = kept_lines(getenv("GRAFTD_PRODUCTS"));
    open_device();
    check_product(&(struct gd_cuda_gemm){.m = 5, .n = 6, .k = 7, .in = GD_F32, .out = GD_F32, .alpha = 1.0f, .accumulate = true});
    check_product(&(struct gd_cuda_gemm){.m = 5, .n = 6, .k = 8, .in = GD_BF16, .out = GD_F32, .alpha = 1.0f});
    int after = kept_lines(getenv("GRAFTD_PRODUCTS"));
    EXPECT(before == 0 ? after == 2 : after == before + atoi(getenv("GD_MORE")));
}

static void algorithms_are_chosen_once_for_all_processes(void **state)
{
    char file[] = "/tmp/graftd-products-XXXXXX", setting[64];
    close(mkstemp(file));
    snprintf(setting, sizeof(setting), "GRAFTD_PRODUCTS=%s", file);
    in_child(chosen_once, SETTINGS(setting));
    in_child(chosen_once, SETTINGS(setting, "GD_MORE=0"));
    FILE *out = fopen(file, "r+");          /* one that does not stand for anything is chosen anew */
    assert_non_null(out);
    for (long i = 257; i < 271; i++)
        assert_true(fseek(out, i, SEEK_SET) == 0 && fputc('7', out) == '7');
    fclose(out);
    in_child(chosen_once, SETTINGS(setting, "GD_MORE=1"));
    unlink(file);
}

/* Two processes that try the same product may find another algorithm the fastest. */
static void another_was_first(void)
{
    const char *path = getenv("GRAFTD_PRODUCTS");
    char line[4096];
    open_device();
    check_product(&(struct gd_cuda_gemm){.m = 5, .n = 6, .k = 7, .in = GD_F32, .out = GD_F32, .alpha = 1.0f}); /* the file is read */
    FILE *file = fopen(getenv("GD_OTHER"), "r+");
    EXPECT(file != NULL && fgets(line, sizeof(line), file) != NULL);
    fclose(file);
    char *index = strrchr(line, ' ') + 1 + 8;       /* behind what marks an algorithm */
    EXPECT(index[0] == '0' && index[1] >= '0' && index[1] <= '2');
    index[1] = index[1] == '2' ? '1' : '2';
    file = fopen(path, "a");
    EXPECT(file != NULL && fputs(line, file) >= 0 && fclose(file) == 0);
    check_product(&(struct gd_cuda_gemm){.m = 9, .n = 6, .k = 7, .in = GD_F32, .out = GD_F32, .alpha = 1.0f});
    EXPECT(fake_blas_last_algorithm() == (uint32_t)(index[1] - '0') && kept_lines(path) == 3);
}

static void one_product(void)
{
    open_device();
    check_product(&(struct gd_cuda_gemm){.m = 9, .n = 6, .k = 7, .in = GD_F32, .out = GD_F32, .alpha = 1.0f});
}

static void the_first_choice_that_is_kept_counts_for_all_processes(void **state)
{
    char file[] = "/tmp/graftd-products-XXXXXX", other[] = "/tmp/graftd-products-XXXXXX", setting[64], first[64], more[64];
    close(mkstemp(file));
    close(mkstemp(other));
    snprintf(setting, sizeof(setting), "GRAFTD_PRODUCTS=%s", file);
    snprintf(first, sizeof(first), "GRAFTD_PRODUCTS=%s", other);
    snprintf(more, sizeof(more), "GD_OTHER=%s", other);
    in_child(one_product, SETTINGS(first));
    in_child(another_was_first, SETTINGS(setting, more));
    unlink(file);
    unlink(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_cannot_be_used_is_refused_with_the_reason),
        cmocka_unit_test(every_op_has_a_kernel),
        cmocka_unit_test(blocks_lie_apart_and_are_accounted_to_the_byte),
        cmocka_unit_test(what_does_not_fit_is_refused_with_its_size),
        cmocka_unit_test(a_run_is_recorded_the_second_time_and_repeated_with_new_inputs),
        cmocka_unit_test(runs_between_go_to_another_lane),
        cmocka_unit_test(products_agree_with_plain_sums),
        cmocka_unit_test(what_was_recorded_by_itself_keeps_apart_from_a_run_that_it_is_nested_in),
        cmocka_unit_test(weights_are_multiplied_from_one_copy_whatever_the_file_holds),
        cmocka_unit_test(a_failing_call_is_named_and_a_sick_device_is_lost_for_good),
        cmocka_unit_test(a_product_that_fails_is_named_with_its_shape),
        cmocka_unit_test(algorithms_are_chosen_once_for_all_processes),
        cmocka_unit_test(the_first_choice_that_is_kept_counts_for_all_processes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
