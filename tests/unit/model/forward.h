/*
 * forward.h - runs a model over packed prompts and gives all logits, for the tests of engine/model.
 *
 * Why      Parity tests want logits of every position; the server never makes them.
 * Memory   gd_free the result.
 * Threads  One.
 * Errors   A failure ends the test.
 * Limits   none
 * Life     none
 */
#ifndef TESTS_MODEL_FORWARD_H
#define TESTS_MODEL_FORWARD_H

#include "engine/model/model.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include "tests/unit/model/model_testing.h"

struct prompt {
    const int32_t *ids;
    int count;
};

static inline struct gd_model *open_fixture(const char *name)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    char *path = fixture_path(name);
    if (!gd_model_open(&model, name, path, &err))
        fail_msg("%s", err.message);
    gd_free(path);
    return model;
}

/* Runs a finished graph once with values[i] bound to data[i]; the output goes to `out`. */
static inline void run_graph(struct gd_graph *graph, struct gd_value *output, float *out,
                             struct gd_value *const *values, void *const *data, int count)
{
    struct gd_error err = {0};
    struct gd_plan *plan = NULL;
    void *arena = NULL;
    if (!gd_graph_ok(graph, &err) || !gd_plan_create(&plan, graph, &output, 1, false, &err))
        fail_msg("%s", err.message);
    size_t bytes = gd_plan_arena_bytes(plan);
    assert_true(gd_device_alloc(&arena, bytes, "arena", &err));
    gd_plan_attach(plan, arena);
    for (int i = 0; i < count; i++)
        gd_plan_bind(plan, values[i], data[i]);
    gd_plan_bind(plan, output, out);
    if (!gd_plan_run(plan, NULL, &err))
        fail_msg("%s", err.message);
    gd_plan_destroy(plan);
    gd_device_free(arena, bytes);
}

/* f32 [sum of counts, vocab]. */
static inline float *forward_with(const struct gd_model *model, const struct prompt *prompts, int prompt_count,
                                  enum gd_dtype act, const struct gd_sites *sites)
{
    int tokens = 0, row = 0;
    struct gd_error err = {0};
    struct gd_graph *graph = NULL;
    struct gd_model_inputs inputs;
    for (int i = 0; i < prompt_count; i++)
        tokens += prompts[i].count;
    int32_t *ids = gd_alloc_array((size_t)tokens, 4), *positions = gd_alloc_array((size_t)tokens, 4);
    int32_t *cu_seqlens = gd_alloc_array((size_t)prompt_count + 1, 4);
    for (int i = 0; i < prompt_count; i++) {
        for (int t = 0; t < prompts[i].count; t++, row++) {
            ids[row] = prompts[i].ids[t];
            positions[row] = t | (model->config.long_from > 0 && prompts[i].count > model->config.long_from ? GD_POSITION_LONG : 0);
        }
        cu_seqlens[i + 1] = row;
    }
    float *logits = gd_alloc_array((size_t)tokens * (size_t)model->config.vocab, sizeof(float));
    assert_true(gd_graph_create(&graph, act, &err));
    gd_model_inputs_create(&inputs, graph, model, tokens, prompt_count, false);
    struct gd_value *hidden = gd_model_hidden(graph, model, &inputs, sites);
    struct gd_value *logits_value = gd_linear(graph, hidden, gd_model_head(graph, model, sites));
    struct gd_value *output = gd_cast(graph, gd_model_cap(graph, model, logits_value), GD_F32);
    struct gd_value *values[] = {inputs.ids, inputs.positions, inputs.inv_freq, inputs.cu_seqlens};
    void *data[] = {ids, positions, model->config.inv_freq, cu_seqlens};
    run_graph(graph, output, logits, values, data, GD_COUNT(values));
    gd_graph_destroy(graph);
    gd_free(ids);
    gd_free(positions);
    gd_free(cu_seqlens);
    return logits;
}

static inline float *forward(const struct gd_model *model, const int32_t *ids, int count, enum gd_dtype act)
{
    struct prompt prompt = {ids, count};
    return forward_with(model, &prompt, 1, act, NULL);
}

static inline int argmax(const float *x, int count)
{
    int best = 0;
    for (int i = 1; i < count; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

static inline double largest_difference(const float *a, const float *b, int64_t count)
{
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = a[i] > b[i] ? (double)a[i] - (double)b[i] : (double)b[i] - (double)a[i];
        if (!(difference <= largest)) /* NaN too */
            largest = difference;
    }
    return largest;
}

#endif
