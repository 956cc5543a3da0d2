#include "op_case.h"
#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"
#include "engine/tensor/graph_internal.h"
#include "tests/unit/tensor/reading.h"

double test_uniform(uint64_t key, uint64_t i)
{
    struct gd_philox bits = gd_philox4(key, gd_philox_stream(GD_RANDOM_TEST, 0, 0), i);
    return gd_uniform_from_bits64(bits.v[0], bits.v[1]);
}

double test_normal(uint64_t key, uint64_t i)
{
    struct gd_philox bits = gd_philox4(key, gd_philox_stream(GD_RANDOM_TEST, 1, 0), i);
    return (double)gd_normal_from_bits(bits.v[0], bits.v[1]);
}

int64_t case_count(const struct gd_case_input *input)
{
    int64_t count = 1;
    for (int i = 0; i < input->rank; i++)
        count *= input->shape[i];
    return count;
}

/* Segments of lengths that grow by about one unit each, so that none is like its neighbour. */
static double offset_at(const struct gd_case_input *input, int64_t segments, int64_t i)
{
    return i == segments ? (double)input->fill_limit : floor((double)input->fill_limit * (double)(i * (i + 1)) / (double)(segments * (segments + 1)));
}

/* Segments 3n + 1 and 3n + 2 continue what segment 3n has between its second row, if it is long, and its last but one. */
static double prefix_at(const struct gd_case_input *input, int64_t i)
{
    int64_t segments = input->shape[0] / 2, parent = i / 2 - i / 2 % 3;
    double begin = offset_at(input, segments, parent), end = offset_at(input, segments, parent + 1);
    if (parent == i / 2)
        return 0;
    begin += end - begin > 4;
    return i % 2 == 0 || end - 1 < begin ? begin : end - 1;
}

/* Element i's place among those of its row, and somewhere in that place's lower half. */
static double apart_at(const struct gd_case_input *input, uint64_t key, int64_t i)
{
    int64_t width = input->shape[input->rank - 1], first = i - i % width, place = 0;
    double own = test_uniform(key, (uint64_t)i);
    for (int64_t j = first; j < first + width; j++)
        place += test_uniform(key, (uint64_t)j) < own;
    return 4.0 * ((double)place + 0.5 * own) / (double)width - 2.0;
}

static double fill_at(const struct gd_case_input *input, uint64_t key, int64_t i)
{
    switch (input->fill) {
    case GD_FILL_APART:
        return apart_at(input, key, i);
    case GD_FILL_NORMAL:
        return test_normal(key, (uint64_t)i);
    case GD_FILL_POSITIVE:
        return 0.5 + test_uniform(key, (uint64_t)i);
    case GD_FILL_SMALL:
        return 0.05 * test_normal(key, (uint64_t)i);
    case GD_FILL_IDS:
        return floor(test_uniform(key, (uint64_t)i) * (double)input->fill_limit);
    case GD_FILL_POSITIONS:
        return (double)i;
    case GD_FILL_OFFSETS:
        return offset_at(input, input->shape[0] - 1, i);
    case GD_FILL_PREFIXES:
        return prefix_at(input, i);
    case GD_FILL_LABELS:
        return i % 3 == 2 ? -100.0 : floor(test_uniform(key, (uint64_t)i) * (double)input->fill_limit);
    case GD_FILL_FREQS:
        return pow(10000.0, -(double)i / (double)input->shape[0]);
    case GD_FILL_KEY:
        return floor(test_uniform(key, (uint64_t)i) * 2147483647.0);
    }
    return 0.0;
}

/* GD_TEST_SEED=N: other data, as far as it is random. */
static uint64_t data_key(int input)
{
    const char *seed = getenv("GD_TEST_SEED");
    return 1000 + (uint64_t)input + (seed != NULL ? strtoull(seed, NULL, 10) * 64 : 0);
}

void case_fill(const struct gd_op_case *op_case, enum gd_dtype act, double *data[GD_CALL_INPUTS_MAX])
{
    for (int j = 0; j < op_case->in_count; j++) {
        const struct gd_case_input *input = &op_case->in[j];
        data[j] = NULL;
        if (input->rank == 0)
            continue;
        int64_t count = case_count(input);
        data[j] = gd_alloc_array((size_t)count + 1, sizeof(double));
        for (int64_t i = 0; i < count; i++) {
            double x = fill_at(input, data_key(j), i);
            if (input->dtype == GD_F32) {
                x = (double)(float)x;
                if (act == GD_BF16 && (input->fill == GD_FILL_NORMAL || input->fill == GD_FILL_APART || input->fill == GD_FILL_POSITIVE))
                    x = (double)gd_bf16_to_f32(gd_f32_to_bf16((float)x));
            }
            data[j][i] = x;
        }
    }
}

void case_release(double *data[GD_CALL_INPUTS_MAX])
{
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++) {
        gd_free(data[j]);
        data[j] = NULL;
    }
}

static void *stored(enum gd_dtype dtype, const double *data, int64_t count)
{
    char *memory = gd_alloc((size_t)count * 4 + 64);
    for (int64_t i = 0; i < count; i++) {
        if (dtype == GD_I32)
            ((int32_t *)memory)[i] = (int32_t)data[i];
        else if (dtype == GD_BF16)
            ((uint16_t *)memory)[i] = gd_f32_to_bf16((float)data[i]);
        else
            ((float *)memory)[i] = (float)data[i];
    }
    return memory;
}

/* The dtype that an input has in the run: activations follow `act` (op.h, GD_FILL_NORMAL). */
static enum gd_dtype run_dtype(const struct gd_case_input *input, enum gd_dtype act)
{
    bool activation = input->dtype == GD_F32 && (input->fill == GD_FILL_NORMAL || input->fill == GD_FILL_APART) && input->rank >= 2 &&
                      !input->as_weight;
    return activation ? act : input->dtype;
}

static bool build_input(struct bench *bench, const struct gd_case_input *input, int j, enum gd_dtype act, const double *data,
                        struct gd_error *err)
{
    enum gd_dtype dtype = run_dtype(input, act);
    bench->memory[j] = stored(dtype, data, case_count(input));
    if (input->as_weight) {
        struct gd_tensor source = {.dtype = dtype, .rank = input->rank, .data = bench->memory[j]};
        memcpy(source.shape, input->shape, sizeof(source.shape));
        if (!gd_weight_create(&bench->weights[j], "weight", &source, NULL, 0.0f, err))
            return false;
        bench->in[j] = gd_graph_weight(bench->graph, bench->weights[j]);
    } else {
        bench->in[j] = gd_graph_input(bench->graph, "input", dtype, input->rank, input->shape);
        if (input->gradient)
            gd_graph_want(bench->in[j]);
    }
    return true;
}

static bool build_gradient(struct bench *bench, const struct gd_op_case *op_case, const double *upstream, struct gd_error *err)
{
    struct gd_value *out = bench->call->out[0], *wanted[GD_CALL_INPUTS_MAX] = {NULL};
    bench->upstream_memory = stored(out->dtype, upstream, gd_value_elements(out));
    bench->upstream = gd_graph_input(bench->graph, "upstream", out->dtype, out->rank, out->shape);
    for (int j = 0; j < op_case->in_count; j++)
        wanted[j] = op_case->in[j].rank > 0 && op_case->in[j].gradient ? bench->in[j] : NULL;
    return gd_graph_gradient_from(bench->graph, out, bench->upstream, wanted, op_case->in_count, bench->grads, err);
}

static bool build_plan(struct bench *bench, struct gd_error *err)
{
    struct gd_value *outputs[GD_CALL_OUTPUTS_MAX + GD_CALL_INPUTS_MAX];
    int count = 0;
    for (int k = 0; bench->upstream == NULL && k < bench->call->out_count; k++)
        outputs[count++] = bench->call->out[k];
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++)
        if (bench->grads[j] != NULL && bench->grads[j]->kind == GD_VALUE_COMPUTED)
            outputs[count++] = bench->grads[j];
    if (!gd_plan_create(&bench->plan, bench->graph, outputs, count, false, err))
        return false;
    bench->arena_bytes = gd_plan_arena_bytes(bench->plan);
    bench->arena = test_poisoned(bench->arena_bytes + 64);
    gd_plan_attach(bench->plan, bench->arena);
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++)
        if (bench->in[j] != NULL && bench->in[j]->kind == GD_VALUE_INPUT)
            gd_plan_bind(bench->plan, bench->in[j], bench->memory[j]);
    if (bench->upstream != NULL)
        gd_plan_bind(bench->plan, bench->upstream, bench->upstream_memory);
    return true;
}

bool bench_build(struct bench *bench, const struct gd_op *op, const struct gd_op_case *op_case, enum gd_dtype act,
                 double *const *data, bool through_copy, const double *upstream, struct gd_error *err)
{
    memset(bench, 0, sizeof(*bench));
    if (!gd_graph_create(&bench->graph, act, err))
        return false;
    struct gd_value *in[GD_CALL_INPUTS_MAX] = {NULL};
    for (int j = 0; j < op_case->in_count; j++) {
        if (op_case->in[j].rank > 0 && !build_input(bench, &op_case->in[j], j, act, data[j], err))
            return false;
        in[j] = bench->in[j];
        if (through_copy && j == op->inplace && in[j] != NULL && in[j]->kind == GD_VALUE_INPUT)
            in[j] = gd_graph_call(bench->graph, gd_op_find("detach"), &in[j], 1, NULL);
    }
    struct gd_value *out = gd_graph_call(bench->graph, op, in, op_case->in_count, &op_case->params);
    if (!gd_graph_ok(bench->graph, err))
        return false;
    bench->call = out->producer;
    return (upstream == NULL || build_gradient(bench, op_case, upstream, err)) && build_plan(bench, err);
}

bool bench_run(struct bench *bench, struct gd_error *err)
{
    test_poison(bench->arena, bench->arena_bytes);
    return gd_plan_run(bench->plan, NULL, err);
}

double bench_at(const struct bench *bench, const struct gd_value *value, int64_t i)
{
    const void *data = value == bench->upstream ? bench->upstream_memory : test_read(bench->plan, value);
    if (value->dtype == GD_I32)
        return ((const int32_t *)data)[i];
    if (value->dtype == GD_BF16)
        return (double)gd_bf16_to_f32(((const uint16_t *)data)[i]);
    return (double)((const float *)data)[i];
}

void bench_release(struct bench *bench)
{
    gd_plan_destroy(bench->plan);
    gd_graph_destroy(bench->graph);
    if (bench->arena != NULL)
        gd_device_free(bench->arena, bench->arena_bytes + 64);
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++) {
        gd_weight_destroy(bench->weights[j]);
        gd_free(bench->memory[j]);
    }
    gd_free(bench->upstream_memory);
    memset(bench, 0, sizeof(*bench));
}
