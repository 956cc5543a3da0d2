/* Methods that train the base's own tensors: what they pick, that nothing else moves, and that their gradients are those of
 * full tuning. */
#include "engine/adapter/picks.h"
#include "engine/adapter/rank.h"
#include "engine/base/philox.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "engine/train/optimizer.h"
#include "engine/train/passes.h"
#include "tests/unit/base/scratch.h"

#include <math.h>
#include <unistd.h>

#define ROWS 4
#define LENGTH 24

static struct gd_model *model;
static char scratch[] = "/tmp/graftd-whole-XXXXXX";

static int set_up(void **state)
{
    struct gd_error err = {0};
    must(gd_device_init("cpu", 2, &err), &err);
    char *path = gd_format("%s/models/tiny-llama", getenv("GD_FIXTURES"));
    must(gd_model_open(&model, "tiny-llama", path, &err), &err);
    assert_non_null(mkdtemp(scratch));
    gd_free(path);
    return 0;
}

static int tear_down(void **state)
{
    struct gd_error err = {0};
    gd_model_destroy(model);
    must(gd_remove_tree(scratch, &err), &err);
    return 0;
}

static struct gd_graft *make_by(const struct gd_model *base, const char *json, const struct gd_graft_source *source)
{
    struct gd_error err = {0};
    struct gd_adapter_config config;
    struct gd_graft *graft = NULL;
    cJSON *parsed = cJSON_Parse(json);
    must(gd_adapter_config_parse(&config, parsed, &err), &err);
    must(gd_graft_create_by(&graft, base, &config, source, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(parsed);
    return graft;
}

/* ---- a few rows, and the gradient of their mean loss ---- */

struct run {
    struct gd_graft *graft;
    struct gd_dataset data;
    struct gd_passes passes;
    struct gd_batch batch;
    float *block, *grad;
    double weight;
};

static void make_rows(struct gd_dataset *data)
{
    *data = (struct gd_dataset){.row_count = ROWS};
    data->rows = gd_alloc_array(ROWS, sizeof(*data->rows));
    data->tokens = gd_alloc_array(ROWS * LENGTH, sizeof(int32_t));
    data->weights = gd_alloc_array(ROWS * LENGTH, sizeof(float));
    for (int row = 0; row < ROWS; row++) {
        data->rows[row] = (struct gd_dataset_row){.line = row + 1, .offset = row * LENGTH, .length = LENGTH};
        for (int i = 0; i < LENGTH; i++) {
            data->tokens[row * LENGTH + i] = (row * 53 + i * i * 17 + 3) % model->config.vocab;
            data->weights[row * LENGTH + i] = i % 3 != 0;
        }
    }
}

static struct run *run_begin(struct gd_graft *graft)
{
    struct run *run = gd_alloc(sizeof(*run));
    size_t floats = (size_t)gd_graft_floats(graft);
    run->graft = graft;
    run->block = gd_alloc_array(floats, sizeof(float));
    run->grad = gd_alloc_array(floats, sizeof(float));
    gd_graft_init(graft, run->block, 3);
    make_rows(&run->data);
    for (int i = 0; i < ROWS * LENGTH; i++)
        run->weight += i % LENGTH > 0 ? run->data.weights[i] : 0;
    gd_passes_init(&run->passes, model, graft, gd_objective_find("supervised"), NULL, GD_F32, run->block, run->grad);
    gd_batch_init(&run->batch, 256, GD_BATCH_SEGMENTS_MAX);
    return run;
}

static double loss_of(struct run *run, bool training)
{
    static const int64_t rows[ROWS] = {0, 1, 2, 3};
    int32_t key[4] = {1, 0, 1, 0};
    struct gd_pass_result result;
    struct gd_error err = {0};
    gd_batch_fill(&run->batch, &run->data, rows, ROWS, gd_token_bucket(ROWS * LENGTH));
    must(gd_passes_run(&run->passes, training, &run->batch, 1.0 / run->weight, key, NULL, &result, &err), &err);
    return result.loss;
}

static void run_end(struct run *run)
{
    gd_passes_release(&run->passes);
    gd_batch_release(&run->batch);
    gd_graft_destroy(run->graft);
    gd_free(run->block);
    gd_free(run->grad);
    gd_free(run->data.rows);
    gd_free(run->data.tokens);
    gd_free(run->data.weights);
    gd_free(run);
}

/* Sensitivities of the rows above, one batch. */
static bool squares_of_rows(void *context, const struct gd_graft *probe, int batches, int batch_size, float *squares,
                            struct gd_error *err)
{
    struct run *run = run_begin((struct gd_graft *)(uintptr_t)probe);
    loss_of(run, true);
    bool ok = gd_vector_add_squares(squares, run->grad, probe->parameter_count, err);
    run->graft = NULL; /* not ours */
    run_end(run);
    return ok;
}

static const struct gd_graft_source by_rows = {.squares = squares_of_rows};

static const struct gd_graft_param *param_of(const struct gd_graft *graft, const char *name)
{
    for (int i = 0; i < graft->param_count; i++)
        if (strcmp(graft->params[i].name, name) == 0)
            return &graft->params[i];
    return NULL;
}

/* ---- half fine-tuning ---- */

static int trained_in(const struct gd_graft *graft, int layer, enum gd_site_kind kind, const char *part)
{
    int count = 0;
    for (int slot = 0; slot < graft->picks->slots; slot++) {
        const struct gd_site *site = gd_slot_site(graft->model, slot);
        count += site->layer == layer && site->kind == kind && strstr(site->name, part) != NULL &&
                 graft->picks->tensor[slot][GD_PICKED_WEIGHT].pick == GD_PICK_WHOLE;
    }
    return count;
}

static void check_draw(const struct gd_model *base, uint64_t seed)
{
    struct gd_graft_source source = {.seed = seed};
    struct gd_graft *graft = make_by(base, "{\"type\": \"hft\"}", &source);
    int layers = base->config.layers, single = 0;
    for (int layer = 0; layer < layers; layer++) {
        assert_int_equal(trained_in(graft, layer, GD_SITE_LINEAR, "self_attn"), 2);
        assert_int_equal(trained_in(graft, layer, GD_SITE_NORM, ""), 1);
        int mlp = trained_in(graft, layer, GD_SITE_LINEAR, "mlp");
        assert_in_range(mlp, 1, 2);
        single += mlp == 1;
    }
    assert_int_equal(single, layers / 2);
    assert_int_equal(trained_in(graft, -1, GD_SITE_NORM, "norm"), 1);
    gd_graft_destroy(graft);
}

static bool same_manifest(const struct gd_graft *a, const struct gd_graft *b)
{
    bool same = a->param_count == b->param_count;
    for (int i = 0; same && i < a->param_count; i++)
        same = strcmp(a->params[i].name, b->params[i].name) == 0 && a->params[i].offset == b->params[i].offset;
    return same;
}

static void a_half_is_drawn_in_every_layer_and_anew_in_every_round(void **state)
{
    for (uint64_t seed = 0; seed < 20; seed++)
        check_draw(model, seed);
    struct gd_graft_source source = {.seed = 9};
    static const char *const configs[] = {"{\"type\": \"hft\"}", "{\"type\": \"hft\", \"selection_seed\": 9}",
                                          "{\"type\": \"hft\", \"round\": 1}", "{\"type\": \"hft\", \"selection_seed\": 10}"};
    struct gd_graft *grafts[GD_COUNT(configs)];
    for (size_t i = 0; i < GD_COUNT(configs); i++)
        grafts[i] = make_by(model, configs[i], &source);
    assert_true(same_manifest(grafts[0], grafts[1]));
    assert_false(same_manifest(grafts[0], grafts[2]));
    assert_false(same_manifest(grafts[0], grafts[3]));
    for (size_t i = 0; i < GD_COUNT(configs); i++)
        gd_graft_destroy(grafts[i]);
}

static void levels_shares_and_tolerances_are_kept(void **state)
{
    struct gd_graft_source source = {.seed = 2};
    struct gd_graft *by_layer = make_by(model, "{\"type\": \"hft\", \"level\": \"layer\", \"share\": 0.34}", &source);
    int whole = 0;
    for (int layer = 0; layer < model->config.layers; layer++) {
        int trained = trained_in(by_layer, layer, GD_SITE_LINEAR, "") + trained_in(by_layer, layer, GD_SITE_NORM, "");
        assert_true(trained == 0 || trained == 9);
        whole += trained == 9;
    }
    assert_int_equal(whole, 1);
    gd_graft_destroy(by_layer);

    struct gd_graft *by_model = make_by(model, "{\"type\": \"hft\", \"level\": \"model\", \"share\": 0.25}", &source);
    int linear = 0, norms = 0;
    for (int layer = 0; layer < model->config.layers; layer++) {
        linear += trained_in(by_model, layer, GD_SITE_LINEAR, "");
        norms += trained_in(by_model, layer, GD_SITE_NORM, "");
    }
    assert_int_equal(linear, 5); /* of 21 */
    assert_int_equal(norms, 2);  /* of 6 */
    gd_graft_destroy(by_model);
}

/* The whole is full tuning, parameter for parameter. */
static void a_share_of_one_is_full_tuning(void **state)
{
    struct gd_graft_source source = {.seed = 2};
    struct gd_graft *all = make_by(model, "{\"type\": \"hft\", \"share\": 1}", &source), *full = make_by(model, "{\"type\": \"full\"}", &source);
    assert_true(same_manifest(all, full));
    gd_graft_destroy(all);
    gd_graft_destroy(full);
}

static void half_of_smollm2_is_half_over_many_seeds(void **state)
{
    const char *path = getenv("GD_SMOLLM2_GGUF");
    if (path == NULL) {
        print_message("GD_SMOLLM2_GGUF is not set\n");
        skip();
    }
    struct gd_model *base = NULL;
    struct gd_error err = {0};
    must(gd_model_open(&base, "smollm2", path, &err), &err);
    check_draw(base, 1);
    struct gd_graft *full = make_by(base, "{\"type\": \"full\"}", &(struct gd_graft_source){0});
    assert_int_equal(full->parameter_count, 106203456); /* 30 (2 576 576 + 2 192 576 + 3 1536 576) + 61 576 */
    double sum = 0, blocks = (double)(full->parameter_count - base->config.width);
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct gd_graft *graft = make_by(base, "{\"type\": \"hft\"}", &(struct gd_graft_source){.seed = seed});
        int64_t manifest = 0;
        for (int i = 0; i < graft->param_count; i++)
            manifest += graft->params[i].shape[0] * graft->params[i].shape[1];
        assert_int_equal(manifest, graft->parameter_count);
        sum += (double)(graft->parameter_count - base->config.width) / blocks;
        gd_graft_destroy(graft);
    }
    assert_true(fabs(sum / 200 - 0.5) < 0.005);
    struct gd_graft *near = make_by(base, "{\"type\": \"hft\", \"tolerance\": 0.001}", &(struct gd_graft_source){.seed = 4});
    assert_true(fabs((double)(near->parameter_count - base->config.width) / blocks - 0.5) <= 0.001);
    gd_graft_destroy(near);
    gd_graft_destroy(full);
    gd_model_destroy(base);
}

/* ---- gradients and steps ---- */

static void freezing_others_changes_no_bit_of_a_gradient(void **state)
{
    struct gd_graft_source source = {.seed = 5};
    struct run *full = run_begin(make_by(model, "{\"type\": \"full\"}", &source));
    struct run *half = run_begin(make_by(model, "{\"type\": \"hft\"}", &source));
    assert_true(loss_of(full, true) == loss_of(half, true));
    assert_true(half->graft->parameter_count < full->graft->parameter_count);
    for (int i = 0; i < half->graft->param_count; i++) {
        const struct gd_graft_param *mine = &half->graft->params[i], *of_full = param_of(full->graft, mine->name);
        assert_non_null(of_full);
        assert_memory_equal(half->grad + mine->offset, full->grad + of_full->offset,
                            (size_t)(mine->shape[0] * mine->shape[1]) * sizeof(float));
    }
    run_end(full);
    run_end(half);
}

/* With weight decay on: what is picked moves, each number of it; what is not is not in the result. */
static void steps_move_all_that_is_picked_and_nothing_else(void **state)
{
    static const char *const configs[] = {"{\"type\": \"full\", \"first_layer\": 1, \"last_layer\": 1}", "{\"type\": \"hft\"}",
                                          "{\"type\": \"spt\", \"budget\": 900, \"r\": 2, \"lora_dropout\": 0}"};
    for (size_t i = 0; i < GD_COUNT(configs); i++) {
        struct run *run = run_begin(make_by(model, configs[i], &by_rows));
        int64_t count = run->graft->parameter_count, floats = gd_graft_floats(run->graft), still = 0;
        float *m = gd_alloc_array((size_t)count, sizeof(float)), *v = gd_alloc_array((size_t)count, sizeof(float));
        float *start = gd_alloc_array((size_t)floats, sizeof(float));
        memcpy(start, run->block, (size_t)floats * sizeof(float));
        for (int step = 1; step <= 3; step++) {
            struct gd_error err = {0};
            loss_of(run, true);
            struct gd_adamw adamw = {.step = step, .learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1,
                                     .grad_scale = 0.5};
            must(gd_vector_adamw(run->block, m, v, run->grad, count, &adamw, &err), &err);
        }
        for (int64_t j = 0; j < count; j++)
            still += run->block[j] == start[j];
        assert_int_equal(still, 0);
        assert_memory_equal(run->block + count, start + count, (size_t)(floats - count) * sizeof(float));
        assert_int_equal(count, gd_picks_numbers(run->graft));
        gd_free(m);
        gd_free(v);
        gd_free(start);
        run_end(run);
    }
}

/* Runs of one rate and one decay cover every parameter once; norms are spared where the option says so. */
static void norms_may_be_spared_by_decay(void **state)
{
    for (int spared = 0; spared < 2; spared++) {
        struct gd_graft *graft = make_by(model, spared ? "{\"type\": \"hft\", \"decay_vectors\": false}" : "{\"type\": \"hft\"}",
                                         &(struct gd_graft_source){.seed = 1});
        double factor;
        int runs = 0;
        for (int64_t begin = 0, end; begin < graft->parameter_count; begin = end, runs++) {
            end = gd_graft_rate_run(graft, begin, &factor);
            assert_true(end > begin && factor == 1.0);
            for (int i = 0; i < graft->param_count; i++)
                if (graft->params[i].offset >= begin && graft->params[i].offset < end)
                    assert_true((graft->params[i].rank == 2 || !spared) == gd_graft_decays(graft, begin));
        }
        assert_int_equal(runs, spared ? 2 : 1);
        gd_graft_destroy(graft);
    }
}

/* ---- sensitivities ---- */

static void sensitivities_are_squared_gradients(void **state)
{
    struct run *run = run_begin(make_by(model, "{\"type\": \"full\"}", &(struct gd_graft_source){0}));
    struct gd_error err = {0};
    int64_t count = run->graft->parameter_count;
    float *squares = gd_alloc_array((size_t)count, sizeof(float));
    must(squares_of_rows(NULL, run->graft, 1, ROWS, squares, &err), &err);
    for (int k = 0; k < 20; k++) {
        int64_t place = (int64_t)gd_philox4(11, gd_philox_stream(GD_RANDOM_TEST, 0, 0), (uint64_t)k).v[0] % count;
        float kept = run->block[place], step = 0.02f;
        while (squares[place] < 1e-4f) /* a gradient too small for f32 losses to show */
            place = (place + 1) % count;
        kept = run->block[place];
        run->block[place] = kept + step;
        double up = loss_of(run, false);
        run->block[place] = kept - step;
        double down = loss_of(run, false);
        run->block[place] = kept;
        double slope = (up - down) / (2 * (double)step);
        if (fabs(slope * slope - (double)squares[place]) > 2e-2 * (double)squares[place])
            fail_msg("at %lld: %g by differences, %g by gradients", (long long)place, slope * slope, (double)squares[place]);
    }
    gd_free(squares);
    run_end(run);
}

static void ranks_agree_with_sorting(void **state)
{
    enum { N = 5000, PARTS = 3, TAUS = 6 };
    static const int64_t begins[PARTS + 1] = {0, 10, 2500, N}, taus[TAUS] = {1, 2, 77, 78, 3000, 3400};
    float values[N];
    int64_t selected[TAUS * PARTS];
    for (int i = 0; i < N; i++) { /* many ties, some zeros */
        struct gd_philox bits = gd_philox4(3, gd_philox_stream(GD_RANDOM_TEST, 1, 0), (uint64_t)i);
        values[i] = bits.v[0] % 10 < 3 ? 0 : (float)(bits.v[1] % 40) * 1e-20f * (float)(1 + bits.v[2] % 3) + (bits.v[3] % 50 == 0 ? 7.0f : 1e-9f);
    }
    assert_true(gd_rank_positive(values, N) >= taus[TAUS - 1]);
    gd_rank_count(values, begins, PARTS, taus, TAUS, selected);
    for (int k = 0; k < TAUS; k++) {
        struct gd_rank_cut cut = gd_rank_find(values, N, taus[k]);
        int64_t equal = 0, above = 0, ties = 0, total = 0;
        for (int i = 0; i < N; i++) {
            above += values[i] > cut.value;
            ties += values[i] == cut.value;
        }
        assert_true(above < taus[k] && taus[k] <= above + ties && cut.equal == taus[k] - above);
        for (int part = 0; part < PARTS; part++) {
            int64_t own = 0;
            for (int64_t i = begins[part]; i < begins[part + 1]; i++)
                own += gd_rank_passes(&cut, values[i], &equal);
            assert_int_equal(own, selected[k * PARTS + part]);
            total += own;
        }
        assert_int_equal(total, taus[k]);
    }
}

static void the_limits_of_the_allocation_are_lora_and_single_weights(void **state)
{
    struct gd_graft *all = make_by(model, "{\"type\": \"spt\", \"tau\": 9000, \"r\": 2, \"alpha\": 1e12, \"target_norms\": []}", &by_rows);
    assert_int_equal(gd_picks_count(all, GD_PICK_ENTRIES) + gd_picks_count(all, GD_PICK_WHOLE), 0);
    int64_t products = gd_picks_count(all, GD_PICK_PRODUCT), sides = 0;
    for (int slot = 0; slot < all->picks->slots; slot++)
        if (all->picks->tensor[slot][0].pick == GD_PICK_PRODUCT)
            sides += gd_slot_site(model, slot)->in + gd_slot_site(model, slot)->out;
    assert_true(products > 10 && all->parameter_count == 2 * sides);
    gd_graft_destroy(all);

    struct run *full = run_begin(make_by(model, "{\"type\": \"full\"}", &by_rows));
    struct run *single = run_begin(make_by(model, "{\"type\": \"spt\", \"tau\": 700, \"alpha\": 0, \"beta\": 1}", &by_rows));
    assert_int_equal(single->graft->parameter_count, 700);
    assert_true(loss_of(single, true) == loss_of(full, true));
    for (int slot = 0; slot < single->graft->picks->slots; slot++) {
        const struct gd_picked *picked = &single->graft->picks->tensor[slot][0];
        if (picked->pick != GD_PICK_ENTRIES)
            continue;
        const struct gd_site *site = gd_slot_site(model, slot);
        char name[192];
        snprintf(name, sizeof(name), "base_model.model.%s.weight", site->name);
        const float *dense = full->grad + param_of(full->graft, name)->offset;
        const float *sparse = single->grad + single->graft->params[single->graft->site_param[slot]].offset;
        for (int64_t i = 0; i < picked->entry_count; i++) {
            int64_t place = picked->column != NULL ? (int64_t)picked->row[i] * site->in + picked->column[i] : picked->row[i];
            assert_true(fabs((double)sparse[i] - (double)dense[place]) < 1e-6);
        }
    }
    run_end(full);
    run_end(single);
}

static bool picked_here(const struct gd_graft *graft, int slot, int64_t row, int64_t column)
{
    const struct gd_picked *picked = &graft->picks->tensor[slot][0];
    for (int64_t i = 0; i < picked->entry_count; i++)
        if (picked->row[i] == row && (picked->column == NULL || picked->column[i] == column))
            return true;
    return picked->pick == GD_PICK_WHOLE || picked->pick == GD_PICK_PRODUCT;
}

static void budgets_are_met_and_larger_ones_select_more_of_the_same(void **state)
{
    struct gd_graft *last = NULL;
    static const int budgets[] = {40, 300, 700, 1000, 1400};
    for (size_t b = 0; b < GD_COUNT(budgets); b++) {
        char json[160];
        snprintf(json, sizeof(json), "{\"type\": \"spt\", \"budget\": %d, \"r\": 1}", budgets[b]);
        struct gd_graft *graft = make_by(model, json, &by_rows), *again = make_by(model, json, &by_rows);
        assert_true(llabs(graft->parameter_count - budgets[b]) <= 100); /* the numbers of a product beyond its threshold */
        assert_true(same_manifest(graft, again));
        for (int slot = 0; slot < graft->picks->slots; slot++) {
            const struct gd_picked *a = &graft->picks->tensor[slot][0], *same = &again->picks->tensor[slot][0];
            assert_int_equal(a->entry_count, same->entry_count);
            if (a->entry_count > 0)
                assert_memory_equal(a->row, same->row, (size_t)a->entry_count * sizeof(int32_t));
            const struct gd_picked *before = last != NULL ? &last->picks->tensor[slot][0] : a;
            for (int64_t i = 0; last != NULL && i < before->entry_count; i++)
                assert_true(picked_here(graft, slot, before->row[i], before->column != NULL ? before->column[i] : 0));
            assert_true(last == NULL || before->pick == GD_PICK_NONE || a->pick != GD_PICK_NONE);
        }
        gd_graft_destroy(again);
        gd_graft_destroy(last);
        last = graft;
    }
    gd_graft_destroy(last);
}

/* ---- refusals ---- */

static void refuse(const char *json, const struct gd_graft_source *source, const char *param, const char *part)
{
    struct gd_error err = {0};
    struct gd_adapter_config config;
    struct gd_graft *graft = NULL;
    cJSON *parsed = cJSON_Parse(json);
    bool ok = gd_adapter_config_parse(&config, parsed, &err);
    if (ok) {
        if (gd_graft_create_by(&graft, model, &config, source, &err))
            fail_msg("%s is taken", json);
        gd_adapter_config_release(&config);
    }
    assert_string_equal(err.param, param);
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' lacks '%s'", err.message, part);
    cJSON_Delete(parsed);
}

static void choices_that_cannot_be_are_refused(void **state)
{
    refuse("{\"type\": \"full\", \"first_layer\": 3}", &by_rows, "adapter.first_layer", "layers 0 to 2");
    refuse("{\"type\": \"full\", \"last_layer\": 7}", &by_rows, "adapter.last_layer", "layers 0 to 2");
    refuse("{\"type\": \"full\", \"first_layer\": 2, \"last_layer\": 1}", &by_rows, "adapter.first_layer", "after last_layer");
    refuse("{\"type\": \"full\", \"target_modules\": [], \"target_norms\": []}", &by_rows, "adapter.target_modules", "nothing");
    refuse("{\"type\": \"full\", \"target_norms\": [\"q_proj\"]}", &by_rows, "adapter.target_norms", "all-norms");
    refuse("{\"type\": \"bitfit\", \"bitfit_add\": false}", &by_rows, "adapter.bitfit_add", "no bias");
    refuse("{\"type\": \"hft\", \"share\": 0.001, \"target_norms\": [\"input_layernorm\"], \"target_modules\": []}", &by_rows,
           "adapter.share", "raise share");
    refuse("{\"type\": \"hft\", \"share\": 0.123, \"tolerance\": 0}", &by_rows, "adapter.tolerance", "raise tolerance");
    refuse("{\"type\": \"hft\", \"target_modules\": [], \"target_norms\": [\"norm\"]}", &by_rows, "adapter.target_modules", "draw from");
    refuse("{\"type\": \"spt\", \"budget\": 10, \"tau\": 10}", &by_rows, "adapter.tau", "exclude");
    refuse("{\"type\": \"spt\", \"budget\": 100000000}", &by_rows, "adapter.budget", "may be selected");
    refuse("{\"type\": \"spt\", \"r\": 40}", &by_rows, "adapter.r", "at most");
    refuse("{\"type\": \"spt\", \"target_modules\": [], \"target_norms\": []}", &by_rows, "adapter.target_modules", "empty");
    refuse("{\"type\": \"spt\", \"structured\": \"none\", \"allow_unstructured\": false, \"beta\": 1, \"tau\": 3}", &by_rows,
           "adapter.allow_unstructured", "raise budget");
}

/* ---- files that lie ---- */

static void load_must_fail(const char *name, struct gd_safetensors_entry *entries, int count, const char *type, const char *part)
{
    struct gd_error err = {0};
    struct gd_graft *graft = NULL;
    char *folder = gd_format("%s/%s", scratch, name), *weights = gd_format("%s/adapter_model.safetensors", folder);
    char *config = gd_format("%s/adapter_config.json", folder), *json = gd_format("{\"peft_type\": \"%s\"}", type);
    must(gd_mkdirs(folder, &err), &err);
    must(gd_safetensors_write(weights, entries, count, NULL, &err), &err);
    must(gd_file_write_durable(config, json, strlen(json), &err), &err);
    if (gd_graft_load(&graft, model, folder, &err))
        fail_msg("%s is taken", name);
    if (strstr(err.message, part) == NULL)
        fail_msg("%s: '%s' lacks '%s'", name, err.message, part);
    gd_free(folder);
    gd_free(weights);
    gd_free(config);
    gd_free(json);
}

#define MODULE "base_model.model.model.layers.0.self_attn.q_proj."

static void files_with_impossible_picks_are_refused(void **state)
{
    static float values[64 * 32];
    static int32_t outside[4] = {1, 400, 0, 0}, unsorted[4] = {5, 1, 0, 0}, twice[4] = {5, 5, 3, 3}, good[4] = {1, 5, 2, 0};
    struct gd_tensor two = {.dtype = GD_F32, .rank = 1, .shape = {2}, .data = values};
    struct gd_tensor square = {.dtype = GD_F32, .rank = 2, .shape = {64, 32}, .data = values};
    struct { const char *name; int32_t *places; const char *part; } cases[] = {
        {"outside", outside, "outside"}, {"unsorted", unsorted, "sorted"}, {"twice", twice, "sorted"}};
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_tensor places = {.dtype = GD_I32, .rank = 2, .shape = {2, 2}, .data = cases[i].places};
        struct gd_safetensors_entry entries[] = {{MODULE "shira_weight", two}, {MODULE "shira_indices", places}};
        load_must_fail(cases[i].name, entries, 2, "SPT", cases[i].part);
    }
    struct gd_tensor places = {.dtype = GD_I32, .rank = 2, .shape = {2, 2}, .data = good};
    struct gd_safetensors_entry alone[] = {{MODULE "shira_weight", two}};
    struct gd_safetensors_entry both[] = {{MODULE "shira_weight", two}, {MODULE "shira_indices", places}, {MODULE "weight", square}};
    struct gd_safetensors_entry norm[] = {{"base_model.model.model.norm.weight", {.dtype = GD_F32, .rank = 1, .shape = {32}, .data = values}},
                                          {MODULE "bias", {.dtype = GD_F32, .rank = 1, .shape = {64}, .data = values}}};
    struct gd_safetensors_entry small[] = {{MODULE "weight", {.dtype = GD_F32, .rank = 2, .shape = {16, 32}, .data = values}}};
    load_must_fail("alone", alone, 1, "SPT", "without I32");
    load_must_fail("both", both, 3, "SPT", "two ways");
    load_must_fail("norm", norm, 2, "BITFIT", "fits nothing");
    load_must_fail("small", small, 1, "FULL", "shape");
    load_must_fail("none", &(struct gd_safetensors_entry){"base_model.model.lm_head.weight", square}, 1, "HFT", "no tensor of this base");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_half_is_drawn_in_every_layer_and_anew_in_every_round),
        cmocka_unit_test(levels_shares_and_tolerances_are_kept),
        cmocka_unit_test(a_share_of_one_is_full_tuning),
        cmocka_unit_test(half_of_smollm2_is_half_over_many_seeds),
        cmocka_unit_test(freezing_others_changes_no_bit_of_a_gradient),
        cmocka_unit_test(steps_move_all_that_is_picked_and_nothing_else),
        cmocka_unit_test(norms_may_be_spared_by_decay),
        cmocka_unit_test(sensitivities_are_squared_gradients),
        cmocka_unit_test(ranks_agree_with_sorting),
        cmocka_unit_test(the_limits_of_the_allocation_are_lora_and_single_weights),
        cmocka_unit_test(budgets_are_met_and_larger_ones_select_more_of_the_same),
        cmocka_unit_test(choices_that_cannot_be_are_refused),
        cmocka_unit_test(files_with_impossible_picks_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
