/* Gradients and 20 optimiser steps of a job of each method against PEFT + PyTorch (tests/fixtures/make_training.py), and of those
 * that PEFT lacks against PyTorch (make_whole.py), in f32. */
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "engine/train/leaves.h"
#include "engine/train/optimizer.h"
#include "engine/train/passes.h"
#include "tests/unit/base/scratch.h"

#include <math.h>

#define STEPS 20
#define ROWS 4
#define LENGTH_MAX 40

/* Methods as make_training.py and make_whole.py have them. */
static const struct kind {
    const char *file, *config;
    const char *model;      /* NULL: tiny-llama */
} kinds[] = {
    {"lora", "{\"r\": 4, \"lora_alpha\": 8}"},
    {"lora_qwen3", "{\"r\": 2, \"lora_alpha\": 4}", "tiny-qwen3"},
    {"lora_phi3", "{\"r\": 2, \"lora_alpha\": 4}", "tiny-phi3"},
    {"loraplus", "{\"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\", \"down_proj\"], \"loraplus_lr_ratio\": 16}"},
    {"dora", "{\"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\", \"down_proj\"], \"use_dora\": true}"},
    {"pissa", "{\"r\": 3, \"lora_alpha\": 6, \"target_modules\": [\"v_proj\", \"down_proj\"], \"init_lora_weights\": \"pissa\"}"},
    {"kasa", "{\"r\": 3, \"lora_alpha\": 6, \"use_kasa\": true, \"kasa_beta\": 0.02, \"kasa_gamma\": 0.01, \"kasa_reduction\": \"sum\", "
             "\"target_modules\": [\"v_proj\", \"down_proj\"]}"},
    {"loha", "{\"type\": \"loha\", \"r\": 3, \"alpha\": 6, \"target_modules\": [\"q_proj\", \"down_proj\"]}"},
    {"lokr", "{\"type\": \"lokr\", \"r\": 3, \"alpha\": 6, \"decompose_both\": true, \"decompose_factor\": 2, "
             "\"target_modules\": [\"q_proj\", \"down_proj\"]}"},
    {"lokr_full", "{\"type\": \"lokr\", \"alpha\": 4, \"target_modules\": [\"q_proj\", \"v_proj\", \"down_proj\"]}"},
    {"oft", "{\"type\": \"oft\", \"oft_block_size\": 8, \"target_modules\": [\"q_proj\", \"down_proj\"]}"},
    {"oft_cayley", "{\"type\": \"oft\", \"r\": 4, \"oft_block_size\": 0, \"use_cayley_neumann\": false, \"block_share\": true, "
                   "\"target_modules\": [\"q_proj\", \"down_proj\"]}"},
    {"ln_tuning", "{\"type\": \"ln_tuning\"}"},
    {"ln_tuning_qwen3", "{\"type\": \"ln_tuning\", \"target_modules\": [\"all-norms\"]}", "tiny-qwen3"},
    {"ia3", "{\"type\": \"ia3\"}"},
    {"vera", "{\"type\": \"vera\", \"r\": 8}"},
    {"poly", "{\"type\": \"poly\", \"r\": 2, \"n_tasks\": 3, \"n_skills\": 3, \"n_splits\": 4, \"target_modules\": [\"q_proj\", "
             "\"down_proj\"], \"router_noise\": \"none\", \"router_lr_ratio\": 20}"},
    {"houlsby", "{\"type\": \"houlsby\", \"bottleneck_size\": 5, \"learned_scaling\": true}"},
    {"pfeiffer", "{\"type\": \"pfeiffer\", \"non_linearity\": \"gelu\", \"residual\": false}"},
    {"parallel", "{\"type\": \"parallel\", \"reduction_factor\": 8, \"residual\": true, \"use_bias\": false}"},
    {"cpt", "{\"type\": \"cpt\", \"cpt_token_ids\": [7, 19, 33, 40, 12, 55, 61, 8, 90, 14], "
            "\"cpt_tokens_type_mask\": [1, 2, 2, 3, 4, 5, 6, 7, 8, 8], \"opt_weighted_loss_type\": \"decay\", "
            "\"opt_loss_decay_factor\": 0.5}"},
    {"ept", "{\"type\": \"ept\", \"num_virtual_tokens\": 4, \"r\": 3, \"max_length\": 12, \"fusion_width\": 5, \"space_count\": 3, "
            "\"space_rank\": 2, \"embedding_update_lr_ratio\": 1}"},
    {"dept", "{\"type\": \"dept\", \"num_virtual_tokens\": 4, \"r\": 3, \"max_length\": 12, \"apply_to\": \"sequence\", "
             "\"embedding_update_lr_ratio\": 1}"},
    {"p_tuning", "{\"type\": \"p_tuning\", \"num_virtual_tokens\": 5, \"encoder_hidden_size\": 12}"},
    {"prefix_tuning", "{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 5}"},
    {"prefix_projection", "{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 4, \"prefix_projection\": true, \"encoder_hidden_size\": 8}"},
    {"prompt_tuning", "{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 5}"},
    {"full", "{\"type\": \"full\"}", "tiny-qwen2"},
    {"bitfit", "{\"type\": \"bitfit\"}"},
    {"spt", "{\"type\": \"spt\", \"lora_dropout\": 0}", "tiny-qwen2"},
};

struct setting {
    struct gd_model *model;
    struct gd_graft *graft;
    struct gd_safetensors *file;
    struct gd_dataset data;
    struct gd_passes passes;
    struct gd_batch batch;
    float *block, *grad, *m, *v;
    double penalty;              /* of the newest run */
};

static struct gd_tensor tensor(const struct setting *s, const char *prefix, const char *name)
{
    struct gd_tensor found = {0};
    char key[256];
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    if (!gd_safetensors_find(s->file, key, &found))
        fail_msg("%s is not in the fixture", key);
    return found;
}

static struct gd_tensor tensor_of(const struct setting *s, const char *prefix, const struct gd_graft_param *param)
{
    char name[256];
    if (param->pieces == 0)
        return tensor(s, prefix, param->name);
    snprintf(name, sizeof(name), "%s.%d", param->name, param->piece);
    return tensor(s, prefix, name);
}

static void load_block(const struct setting *s, const char *prefix, float *block)
{
    int fixed = s->graft->bakes ? 0 : s->graft->frozen_param_count; /* constants of what is kept otherwise: as init has them */
    for (int i = 0; i < s->graft->param_count + fixed; i++) {
        const struct gd_graft_param *param = &s->graft->params[i];
        struct gd_tensor t = tensor_of(s, prefix, param);
        int64_t count = gd_tensor_count(&t), columns = t.rank >= 2 ? t.shape[t.rank - 1] : 1, rows = count / columns;
        for (int64_t j = 0; j < count; j++)
            block[param->offset + (param->transposed ? j % columns * rows + j / columns : j)] =
                param->integers ? (float)((const int32_t *)t.data)[j] : ((const float *)t.data)[j];
    }
}

/* The fixture's rows as a dataset: row STEP*ROWS+i. */
static void load_rows(struct setting *s)
{
    const int32_t *ids = tensor(s, "", "ids").data, *trained = tensor(s, "", "trained").data,
                  *lengths = tensor(s, "", "lengths").data;
    struct gd_dataset *data = &s->data;
    data->virtual_rows = s->graft->virtual_rows;
    data->row_count = STEPS * ROWS;
    data->rows = gd_alloc_array((size_t)data->row_count, sizeof(*data->rows));
    data->tokens = gd_alloc_array(STEPS * ROWS * LENGTH_MAX, sizeof(int32_t));
    data->weights = gd_alloc_array(STEPS * ROWS * LENGTH_MAX, sizeof(float));
    for (int row = 0; row < STEPS * ROWS; row++) {
        data->rows[row] = (struct gd_dataset_row){.line = row + 1, .offset = data->token_count, .length = lengths[row],
                                                    .task = (row / ROWS + row % ROWS) % 3}; /* where the method asks */
        for (int i = 0; i < lengths[row]; i++) {
            data->tokens[data->token_count] = ids[row * LENGTH_MAX + i];
            data->weights[data->token_count++] = (float)trained[row * LENGTH_MAX + i];
        }
    }
}

static struct setting *set_up(const struct kind *kind)
{
    struct setting *s = gd_alloc(sizeof(*s));
    struct gd_error err = {0};
    const char *fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    must(gd_device_init("cpu", 2, &err), &err);
    const char *model = kind->model != NULL ? kind->model : "tiny-llama";
    char *path = gd_format("%s/models/%s", fixtures, model), *file = gd_format("%s/training/%s.safetensors", fixtures, kind->file);
    must(gd_model_open(&s->model, model, path, &err), &err);
    must(gd_safetensors_open(&s->file, file, &err), &err);
    cJSON *json = cJSON_Parse(kind->config);
    struct gd_adapter_config config;
    must(gd_adapter_config_parse(&config, json, &err), &err);
    struct gd_graft_source source = {.file = s->file}; /* for methods that choose */
    must(gd_graft_create_by(&s->graft, s->model, &config, &source, &err), &err);
    const char *initial = config.method->choose != NULL ? "" : "initial.";
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    size_t count = (size_t)gd_graft_floats(s->graft);
    s->block = gd_alloc_array(count, sizeof(float));
    s->grad = gd_alloc_array(count, sizeof(float));
    s->m = gd_alloc_array(count, sizeof(float));
    s->v = gd_alloc_array(count, sizeof(float));
    load_rows(s);
    if (s->graft->bakes)
        gd_graft_init(s->graft, s->block, 1);
    load_block(s, initial, s->block);
    gd_passes_init(&s->passes, s->model, s->graft, gd_objective_find("supervised"), NULL, GD_F32, s->block, s->grad);
    gd_batch_init(&s->batch, 256, GD_BATCH_SEGMENTS_MAX);
    gd_free(path);
    gd_free(file);
    return s;
}

static void tear_down(struct setting *s)
{
    gd_passes_release(&s->passes);
    gd_batch_release(&s->batch);
    gd_graft_destroy(s->graft);
    gd_model_destroy(s->model);
    gd_safetensors_close(s->file);
    gd_free(s->block);
    gd_free(s->grad);
    gd_free(s->m);
    gd_free(s->v);
    gd_free(s->data.rows);
    gd_free(s->data.tokens);
    gd_free(s->data.weights);
    gd_free(s);
}

/* Of the labels of a step. */
static double step_weight(const struct setting *s, int step)
{
    double weight = 0;
    for (int row = step * ROWS; row < (step + 1) * ROWS; row++)
        for (int t = 1; t < s->data.rows[row].length; t++)
            weight += s->data.weights[s->data.rows[row].offset + t];
    return weight + ROWS * s->data.virtual_rows.target_count;
}

/* Loss of rows of a step that has `weight`, packed in one micro-batch; gradients in s->grad. */
static struct gd_pass_result run_rows(struct setting *s, int first, int count, double weight)
{
    struct gd_error err = {0};
    struct gd_pass_result result;
    int64_t rows[ROWS];
    int tokens = 0;
    for (int i = 0; i < count; i++) {
        rows[i] = first + i;
        tokens += gd_dataset_row_space(&s->data, rows[i]);
    }
    gd_batch_fill(&s->batch, &s->data, rows, count, gd_token_bucket(tokens));
    must(gd_passes_run(&s->passes, true, &s->batch, 1.0 / weight, NULL, NULL, &result, &err), &err);
    s->penalty = result.penalty;
    return result;
}

/* Loss of one step, all rows packed in one micro-batch. */
static double run_step(struct setting *s, int step)
{
    struct gd_pass_result result = run_rows(s, step * ROWS, ROWS, step_weight(s, step));
    assert_int_equal(result.labelled, (int64_t)step_weight(s, step));
    return result.loss;
}

/* ||a - b|| / ||b|| over one tensor. */
static void assert_near(const char *what, const char *name, const float *a, const float *b, int64_t count, double limit)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    if (sqrt(difference) > limit * sqrt(size))
        fail_msg("%s of %s differs by %.3g relative (limit %.3g)", what, name, sqrt(difference / size), limit);
}

static void check_gradients(struct setting *s)
{
    run_step(s, 0);
    for (int i = 0; i < s->graft->param_count; i++) {
        const struct gd_graft_param *param = &s->graft->params[i];
        struct gd_tensor expected = tensor_of(s, "grad.", param);
        assert_near("gradient", param->name, s->grad + param->offset, expected.data, gd_tensor_count(&expected), 1e-4);
    }
}

static void check_steps(struct setting *s)
{
    const float *losses = tensor(s, "", "losses").data, *norms = tensor(s, "", "norms").data;
    int64_t count = s->graft->parameter_count;
    for (int step = 0; step < STEPS; step++) {
        double loss = run_step(s, step);
        double squares;
        struct gd_error err = {0};
        must(gd_vector_sum_squares(&squares, s->grad, count, &err), &err);
        double norm = sqrt(squares);
        if (fabs(loss - losses[step]) > 1e-4 * fabs(losses[step]))
            fail_msg("loss of step %d is %.7f, PyTorch has %.7f", step, loss, losses[step]);
        if (fabs(norm - norms[step]) > 1e-4 * norms[step])
            fail_msg("gradient norm of step %d is %.7f, PyTorch has %.7f", step, norm, norms[step]);
        double clip = norm > 1.0 ? 1.0 / (norm + 1e-6) : 1.0;
        double factor;
        for (int64_t begin = 0, end; begin < count; begin = end) {
            end = gd_graft_rate_run(s->graft, begin, &factor);
            struct gd_adamw adamw = {.step = step + 1, .learning_rate = factor * 2e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
                                     .weight_decay = 0.01, .grad_scale = clip};
            must(gd_vector_adamw(s->block + begin, s->m + begin, s->v + begin, s->grad + begin, end - begin, &adamw, &err), &err);
        }
        if (s->graft->method->after_step != NULL)
            s->graft->method->after_step(s->graft, s->block);
    }
    for (int i = 0; i < s->graft->param_count; i++) {
        const struct gd_graft_param *param = &s->graft->params[i];
        struct gd_tensor expected = tensor_of(s, "final.", param);
        assert_near("final value", param->name, s->block + param->offset, expected.data, gd_tensor_count(&expected), 1e-4);
    }
}

static void gradients_and_twenty_steps_equal_pefts(void **state)
{
    for (size_t i = 0; i < GD_COUNT(kinds); i++) {
        print_message("%s\n", kinds[i].file);
        struct setting *s = set_up(&kinds[i]);
        check_gradients(s);
        check_steps(s);
        tear_down(s);
    }
}

/* s B0 A0 of the module whose A0 is `a`, in the given block; rows * columns of it (yours to gd_free). */
static float *product_of(const struct gd_graft_param *a, const float *block)
{
    const struct gd_graft_param *b = a + 1;
    int64_t rows = b->shape[0], columns = a->shape[1], r = a->shape[0];
    float *product = gd_alloc_array((size_t)(rows * columns), sizeof(float));
    for (int64_t o = 0; o < rows; o++)
        for (int64_t k = 0; k < r; k++)
            for (int64_t i = 0; i < columns; i++)
                product[o * columns + i] += block[b->offset + o * r + k] * block[a->offset + k * columns + i];
    return product;
}

static void pissa_starts_from_the_same_directions_as_pefts(void **state)
{
    struct setting *s = set_up(&(struct kind){"pissa", "{\"r\": 3, \"lora_alpha\": 6, \"target_modules\": [\"v_proj\", \"down_proj\"], "
                                                       "\"init_lora_weights\": \"pissa\"}"});
    float *block = gd_alloc_array((size_t)gd_graft_floats(s->graft), sizeof(float));
    gd_graft_init(s->graft, block, 1);
    for (int i = 0; i < s->graft->frozen_param_count; i += 2) {
        const struct gd_graft_param *start = &s->graft->params[s->graft->param_count + i], *trained = &s->graft->params[i];
        float *expected = product_of(start, s->block), *got = product_of(start, block), *at_start = product_of(trained, block);
        int64_t count = start[1].shape[0] * start[0].shape[1];
        assert_near("start", start->name, got, expected, count, 1e-5);
        assert_memory_equal(at_start, got, (size_t)count * sizeof(float));
        gd_free(expected);
        gd_free(got);
        gd_free(at_start);
    }
    gd_free(block);
    tear_down(s);
}

static double squares_of(const float *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

/* ||x x^T - I||_F of rows [count, width], `step` floats apart, whose elements are `stride` apart. */
static double from_orthonormal(const float *x, int64_t count, int64_t width, int64_t step, int64_t stride)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < count; j++) {
            double product = i == j ? -1 : 0;
            for (int64_t k = 0; k < width; k++)
                product += (double)x[i * step + k * stride] * (double)x[j * step + k * stride];
            sum += product * product;
        }
    return sqrt(sum);
}

static double kasa_penalty(const struct setting *s)
{
    double sum = 0;
    for (int p = 0; p < s->graft->param_count; p += 3) {
        const struct gd_graft_param *a = &s->graft->params[p], *b = a + 1, *d = a + 2;
        int64_t r = a->shape[0];
        sum += 0.02 * squares_of(s->block + d->offset, r);
        sum += 0.01 * from_orthonormal(s->block + a->offset, r, a->shape[1], a->shape[1], 1);
        sum += 0.01 * from_orthonormal(s->block + b->offset, r, b->shape[0], 1, r);
    }
    return sum;
}

static void a_penalty_counts_once_a_step(void **state)
{
    static const struct kind kind = {"kasa", "{\"r\": 3, \"lora_alpha\": 6, \"use_kasa\": true, \"kasa_beta\": 0.02, \"kasa_gamma\": 0.01, \"kasa_reduction\": \"sum\", "
             "\"target_modules\": [\"v_proj\", \"down_proj\"]}"};
    struct setting *s = set_up(&kind);
    double expected = kasa_penalty(s);
    run_step(s, 0);
    assert_true(fabs(s->penalty - expected) < 1e-5 * expected);
    for (int i = 0; i < s->graft->param_count; i++) /* B = 0 is sqrt(r) from orthonormal */
        if (i % 3 == 1)
            memset(s->block + s->graft->params[i].offset, 0, (size_t)(s->graft->params[i].shape[0] * 3) * sizeof(float));
    double now = kasa_penalty(s), parts = 0, halves = 0;
    for (int i = 0; i < s->graft->param_count; i += 3)
        parts += 0.02 * squares_of(s->block + s->graft->params[i + 2].offset, 3) + 0.01 * sqrt(3) +
                 0.01 * from_orthonormal(s->block + s->graft->params[i].offset, 3, s->graft->params[i].shape[1], s->graft->params[i].shape[1], 1);
    assert_true(fabs(now - parts) < 1e-9);
    for (int part = 0; part < 2; part++) { /* the same step in two micro-batches */
        run_rows(s, 2 * part, 2, step_weight(s, 0));
        halves += s->penalty;
    }
    assert_true(fabs(halves - now) < 1e-5 * now);
    tear_down(s);
}

static void leaves_add_in_one_tree_whatever_their_number(void **state)
{
    struct gd_error err = {0};
    struct gd_leaves leaves;
    float grad[8][3], expected[3];
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 3; j++)
            grad[i][j] = (float)(1.0 / (3 * i + j + 1));
    for (int j = 0; j < 3; j++)
        expected[j] = ((grad[0][j] + grad[1][j]) + (grad[2][j] + grad[3][j])) +
                      ((grad[4][j] + grad[5][j]) + (grad[6][j] + grad[7][j]));
    must(gd_leaves_init(&leaves, 3, 8, &err), &err);
    for (int round = 0; round < 2; round++) {
        gd_leaves_begin_step(&leaves);
        for (int i = 0; i < 8; i++) {
            must(gd_leaves_begin(&leaves, &err) && gd_leaves_add(&leaves, grad[i], &err) && gd_leaves_end(&leaves, &err), &err);
        }
        assert_memory_equal(gd_leaves_sum(&leaves), expected, sizeof(expected));
    }
    gd_leaves_release(&leaves);
}

static void schedules_warm_up_and_decay(void **state)
{
    struct gd_job_spec spec = {.learning_rate = 1.0, .warmup_ratio = 0.1, .schedule = GD_SCHEDULE_LINEAR};
    assert_true(fabs(gd_learning_rate(&spec, 1, 100) - 0.1) < 1e-12);
    assert_true(fabs(gd_learning_rate(&spec, 10, 100) - 1.0) < 1e-12);
    assert_true(fabs(gd_learning_rate(&spec, 11, 100) - 1.0) < 1e-12);
    assert_true(gd_learning_rate(&spec, 100, 100) > 0 && gd_learning_rate(&spec, 100, 100) < 0.02);
    spec.schedule = GD_SCHEDULE_COSINE;
    assert_true(fabs(gd_learning_rate(&spec, 56, 100) - 0.5) < 1e-9);
    spec.schedule = GD_SCHEDULE_CONSTANT;
    assert_true(fabs(gd_learning_rate(&spec, 100, 100) - 1.0) < 1e-12);
    spec.warmup_ratio = 0;
    assert_true(fabs(gd_learning_rate(&spec, 1, 1) - 1.0) < 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_and_twenty_steps_equal_pefts),
        cmocka_unit_test(pissa_starts_from_the_same_directions_as_pefts),
        cmocka_unit_test(a_penalty_counts_once_a_step),
        cmocka_unit_test(leaves_add_in_one_tree_whatever_their_number),
        cmocka_unit_test(schedules_warm_up_and_decay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
