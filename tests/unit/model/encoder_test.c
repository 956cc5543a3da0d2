/* encoder_test.c - BERT and RoBERTa against transformers in float32: hidden states, poolers, heads, gradients of all weights. */
#include "engine/model/encoder.h"
#include "engine/base/alloc.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "tests/unit/model/forward.h"
#include <math.h>
#include "tests/unit/tensor/reading.h"

#define TEXTS 4
#define PARAMS_MAX 64

/* All texts of a fixture as one packed batch, with what transformers makes of each. */
struct batch {
    struct gd_model *model;
    struct gd_safetensors *file;
    int32_t ids[256], types[256], positions[256], cu_seqlens[TEXTS + 1], first[TEXTS];
    int tokens;
};

static bool wanted(const struct batch *batch, const char *name, int text, struct gd_tensor *out)
{
    char full[64];
    snprintf(full, sizeof full, "%s.%d", name, text);
    return gd_safetensors_find(batch->file, full, out);
}

static struct batch open_batch(const char *name)
{
    struct batch batch = {.model = open_fixture(name)};
    struct gd_error err = {0};
    char *path = fixture_path(name), *file = gd_format("%s/reference.safetensors", path);
    assert_true(gd_safetensors_open(&batch.file, file, &err));
    for (int k = 0; k < TEXTS; k++) {
        struct gd_tensor ids, types;
        assert_true(wanted(&batch, "ids", k, &ids) && wanted(&batch, "types", k, &types));
        batch.first[k] = batch.tokens;
        for (int t = 0; t < (int)ids.shape[0]; t++, batch.tokens++) {
            batch.ids[batch.tokens] = ((const int32_t *)ids.data)[t];
            batch.types[batch.tokens] = ((const int32_t *)types.data)[t];
            batch.positions[batch.tokens] = t;
        }
        batch.cu_seqlens[k + 1] = batch.tokens;
    }
    gd_free(file);
    gd_free(path);
    return batch;
}

static void close_batch(struct batch *batch)
{
    gd_model_destroy(batch->model);
    gd_safetensors_close(batch->file);
}

/* A graph of the batch, with more inputs than the model's. */
struct run {
    struct gd_graph *graph;
    struct gd_model_inputs inputs;
    struct gd_value *values[PARAMS_MAX + 8];
    void *data[PARAMS_MAX + 8];
    int count;
};

static void bind(struct run *run, struct gd_value *value, void *data)
{
    run->values[run->count] = value;
    run->data[run->count++] = data;
}

static struct run begin(struct batch *batch, enum gd_dtype act)
{
    struct run run = {0};
    struct gd_error err = {0};
    assert_true(gd_graph_create(&run.graph, act, &err));
    gd_model_inputs_create(&run.inputs, run.graph, batch->model, batch->tokens, TEXTS, false);
    bind(&run, run.inputs.ids, batch->ids);
    bind(&run, run.inputs.positions, batch->positions);
    bind(&run, run.inputs.types, batch->types);
    bind(&run, run.inputs.cu_seqlens, batch->cu_seqlens);
    return run;
}

static struct gd_value *first_rows(struct run *run, struct batch *batch, struct gd_value *hidden)
{
    struct gd_value *index = gd_graph_input(run->graph, "first", GD_I32, 1, (int64_t[]){TEXTS});
    bind(run, index, batch->first);
    return gd_gather_rows(run->graph, hidden, index);
}

static float *finish(struct run *run, struct gd_value *output)
{
    assert_non_null(output);
    float *out = gd_alloc_array((size_t)(output->shape[0] * output->shape[1]), sizeof(float));
    run_graph(run->graph, gd_cast(run->graph, output, GD_F32), out, run->values, run->data, run->count);
    gd_graph_destroy(run->graph);
    return out;
}

/* rows: of all tokens, or one for each text. */
static double compare(const struct batch *batch, const char *name, const float *rows, int width, bool tokens)
{
    double largest = 0;
    int seen = 0;
    for (int k = 0; k < TEXTS; k++) {
        struct gd_tensor expected;
        if (!wanted(batch, name, k, &expected))
            continue;
        assert_int_equal(gd_tensor_count(&expected) % width, 0);
        largest = fmax(largest, largest_difference(rows + (size_t)(tokens ? batch->cu_seqlens[k] : k) * (size_t)width, expected.data,
                                                   gd_tensor_count(&expected)));
        seen++;
    }
    assert_true(seen > 0);
    return largest;
}

static const char *const names[] = {"tiny-bert", "tiny-bert-mlm", "tiny-minilm", "tiny-roberta", "tiny-roberta-mlm", "tiny-xlmr"};

static void hidden_states_poolers_and_heads_equal_the_reference(void **state)
{
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct batch batch = open_batch(names[i]);
        const struct gd_model_config *config = &batch.model->config;
        assert_true(gd_model_is_encoder(batch.model));
        struct run run = begin(&batch, GD_F32);
        float *hidden = finish(&run, gd_model_hidden(run.graph, batch.model, &run.inputs, NULL));
        double apart = compare(&batch, "hidden", hidden, config->width, true), pooled = 0, head = 0;
        gd_free(hidden);
        if (config->pools) {
            run = begin(&batch, GD_F32);
            struct gd_value *rows = first_rows(&run, &batch, gd_model_hidden(run.graph, batch.model, &run.inputs, NULL));
            float *out = finish(&run, gd_encoder_pooled(run.graph, batch.model, rows));
            pooled = compare(&batch, "pooled", out, config->width, false);
            gd_free(out);
        }
        if (config->classifies) {
            run = begin(&batch, GD_F32);
            struct gd_value *rows = first_rows(&run, &batch, gd_model_hidden(run.graph, batch.model, &run.inputs, NULL));
            float *out = finish(&run, gd_model_label_logits(run.graph, batch.model, gd_encoder_pooled(run.graph, batch.model, rows)));
            head = compare(&batch, "logits", out, config->label_count, false);
            gd_free(out);
        } else if (config->masks) {
            run = begin(&batch, GD_F32);
            float *out = finish(&run, gd_encoder_mask_logits(run.graph, batch.model,
                                                             gd_model_hidden(run.graph, batch.model, &run.inputs, NULL)));
            head = compare(&batch, "logits", out, config->vocab, true);
            gd_free(out);
        }
        print_message("%s: hidden %.1e, pooled %.1e, head %.1e\n", names[i], apart, pooled, head);
        assert_true(apart < 1e-4);
        assert_true(pooled < 1e-4);
        assert_true(head < 1e-3);
        close_batch(&batch);
    }
}

static void classifiers_know_their_labels(void **state)
{
    struct gd_model *model = open_fixture("tiny-bert");
    assert_int_equal(model->config.label_count, 3);
    assert_string_equal(model->config.labels[2], "positive");
    assert_false(model->config.multi_label);
    gd_model_destroy(model);
    model = open_fixture("tiny-roberta");
    assert_int_equal(model->config.label_count, 4);
    assert_string_equal(model->config.labels[0], "sport");
    assert_true(model->config.multi_label);
    assert_int_equal(model->config.context, 64);
    gd_model_destroy(model);
}

/* ---- gradients ---- */

struct trained {
    struct run *run;
    struct gd_value *params[PARAMS_MAX];
    struct gd_weight *weights[PARAMS_MAX];
    float *data[PARAMS_MAX];
    int count;
};

static struct gd_value *train(struct trained *trained, struct gd_graph *g, struct gd_weight *weight)
{
    if (weight == NULL)
        return NULL;
    int rank = gd_weight_rank(weight), at = trained->count++;
    int64_t shape[2] = {gd_weight_dim(weight, 0), rank == 2 ? gd_weight_dim(weight, 1) : 1};
    assert_true(at < PARAMS_MAX);
    trained->weights[at] = weight;
    trained->data[at] = gd_alloc_array((size_t)(shape[0] * shape[1]), sizeof(float));
    gd_weight_to_f32(weight, trained->data[at]);
    trained->params[at] = gd_graph_param(g, gd_weight_name(weight), rank, shape);
    bind(trained->run, trained->params[at], trained->data[at]);
    return trained->params[at];
}

static struct gd_value *train_linear(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                     struct gd_value *w, struct gd_value *bias)
{
    struct gd_value *trained_w = train(context, g, site->weight);
    return gd_site_linear_base(g, x, trained_w, train(context, g, site->bias));
}

static struct gd_value *train_norm(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                   struct gd_value *w, struct gd_value *bias, double eps)
{
    struct gd_value *trained_w = train(context, g, site->weight);
    return gd_site_norm_base(g, site, x, trained_w, train(context, g, site->bias), eps);
}

static struct gd_value *train_head(struct trained *trained, struct gd_graph *g, struct gd_value *x, struct gd_weight *w, struct gd_weight *b)
{
    struct gd_value *trained_w = train(trained, g, w);
    return gd_site_linear_base(g, x, trained_w, train(trained, g, b));
}

/* Mean over texts, as make_encoders.py has it; slopes of softmax or sigmoid cross-entropy. */
static double loss_of(void *context, const float *x, const float *aside, int64_t count, float *slopes)
{
    static const int single[TEXTS] = {2, 0, 1, 0};
    static const int several[TEXTS][4] = {{1, 0, 0, 1}, {0, 0, 0, 0}, {0, 1, 1, 0}, {1, 1, 1, 1}};
    const struct gd_model_config *config = context;
    int labels = config->label_count;
    double loss = 0;
    for (int k = 0; k < TEXTS; k++) {
        double sum = 0;
        for (int i = 0; i < labels; i++)
            sum += exp((double)x[k * labels + i]);
        for (int i = 0; i < labels; i++) {
            double z = (double)x[k * labels + i], p = config->multi_label ? 1 / (1 + exp(-z)) : exp(z) / sum;
            int is = config->multi_label ? several[k][i] : single[k] == i;
            double part = TEXTS * (config->multi_label ? labels : 1);
            loss -= config->multi_label ? (is ? log(p) : log(1 - p)) / part : (is ? log(p) : 0) / part;
            slopes[k * labels + i] = (float)((p - is) / part);
        }
    }
    return loss;
}

static void gradients_of_all_weights_equal_the_reference(void **state)
{
    static const char *const classifiers[] = {"tiny-bert", "tiny-roberta"};
    for (size_t i = 0; i < GD_COUNT(classifiers); i++) {
        struct batch batch = open_batch(classifiers[i]);
        const struct gd_model *model = batch.model;
        struct run run = begin(&batch, GD_F32);
        struct trained trained = {.run = &run};
        struct gd_sites sites = {.context = &trained, .linear = train_linear, .norm = train_norm};
        struct gd_graph *g = run.graph;
        struct gd_value *rows = first_rows(&run, &batch, gd_model_hidden(g, model, &run.inputs, &sites));
        struct gd_value *pooled = gd_activation(g, train_head(&trained, g, rows, model->pool, model->pool_bias), GD_ACTIVATION_TANH);
        struct gd_value *logits = train_head(&trained, g, pooled, model->label_head, model->label_bias);
        struct gd_segment_loss function = {(void *)(uintptr_t)&model->config, loss_of};
        struct gd_value *handle = gd_graph_handle(g, "loss");
        bind(&run, handle, &function);
        struct gd_value *loss = gd_segment_loss(g, gd_reshape(g, logits, TEXTS * model->config.label_count, 0), NULL, handle);
        struct gd_value *grads[PARAMS_MAX], *outputs[PARAMS_MAX + 1] = {loss};
        struct gd_error err = {0};
        struct gd_plan *plan = NULL;
        assert_true(gd_graph_ok(g, &err));
        assert_true(gd_graph_gradient(g, loss, trained.params, trained.count, grads, &err));
        for (int p = 0; p < trained.count; p++) {
            assert_non_null(grads[p]);
            outputs[1 + p] = grads[p];
        }
        if (!gd_plan_create(&plan, g, outputs, 1 + trained.count, false, &err))
            fail_msg("%s", err.message);
        void *arena = NULL;
        size_t bytes = gd_plan_arena_bytes(plan);
        assert_true(gd_device_alloc(&arena, bytes, "arena", &err));
        gd_plan_attach(plan, arena);
        for (int v = 0; v < run.count; v++)
            gd_plan_bind(plan, run.values[v], run.data[v]);
        if (!gd_plan_run(plan, NULL, &err))
            fail_msg("%s", err.message);
        struct gd_tensor expected;
        assert_true(gd_safetensors_find(batch.file, "loss", &expected));
        assert_true(fabs((double)*(const float *)test_read(plan, loss) - (double)*(const float *)expected.data) < 1e-5);
        double worst = 0;
        for (int p = 0; p < trained.count; p++) {
            char name[128];
            snprintf(name, sizeof name, "grad.%s", gd_weight_name(trained.weights[p]));
            if (!gd_safetensors_find(batch.file, name, &expected))
                fail_msg("no %s", name);
            const float *mine = test_read(plan, grads[p]), *theirs = expected.data;
            double apart = 0, norm = 0;
            for (int64_t e = 0; e < gd_tensor_count(&expected); e++) {
                apart += pow((double)mine[e] - (double)theirs[e], 2);
                norm += pow((double)theirs[e], 2);
            }
            /* A key's bias changes no score relative to another: its gradient is nothing but rounding. */
            double relative = sqrt(apart) / fmax(sqrt(norm), 1e-3);
            worst = fmax(worst, relative);
            if (!(relative < 1e-4))
                fail_msg("%s: relative difference %g, norm %g", name, relative, sqrt(norm));
            gd_free(trained.data[p]);
        }
        print_message("%s: gradients of %d tensors, largest relative difference %.1e\n", classifiers[i], trained.count, worst);
        gd_plan_destroy(plan);
        gd_device_free(arena, bytes);
        gd_graph_destroy(g);
        close_batch(&batch);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hidden_states_poolers_and_heads_equal_the_reference),
        cmocka_unit_test(classifiers_know_their_labels),
        cmocka_unit_test(gradients_of_all_weights_equal_the_reference),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
