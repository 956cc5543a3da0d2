/* Mixtures by task: their limits, their weights, their noise, tasks side by side in a batch. PEFT's figures are in parity_test. */
#include "engine/adapter/build.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include "tests/unit/base/scratch.h"
#include "tests/unit/tensor/reading.h"

#include <math.h>

#define TOKENS 48
#define SEGMENTS 4

static struct gd_model *model;

static int set_up(void **state)
{
    struct gd_error err = {0};
    must(gd_device_init("cpu", 2, &err), &err);
    char *path = gd_format("%s/models/tiny-llama", getenv("GD_FIXTURES"));
    must(gd_model_open(&model, "tiny-llama", path, &err), &err);
    gd_free(path);
    return 0;
}

static int tear_down(void **state)
{
    gd_model_destroy(model);
    return 0;
}

static struct gd_graft *make_graft(const char *json)
{
    struct gd_error err = {0};
    struct gd_adapter_config config;
    struct gd_graft *graft = NULL;
    cJSON *parsed = cJSON_Parse(json);
    must(gd_adapter_config_parse(&config, parsed, &err), &err);
    must(gd_graft_create(&graft, model, &config, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(parsed);
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_fill_normal(graft->block, graft->parameter_count, 0.3f, 5, 0);
    return graft;
}

/* The batch: segments of the given bounds, and their tasks. */
struct batch {
    int32_t bounds[SEGMENTS + 1], tasks[SEGMENTS];
};

/* Summed log-likelihood of the tokens and, with `grads`, its gradient; logits in `out`, [TOKENS][vocab]. */
static double run(const struct gd_graft *graft, struct batch batch, bool training, int32_t *key, float *out, float *grads)
{
    struct gd_error err = {0};
    struct gd_graph *g = NULL;
    struct gd_plan *plan = NULL;
    struct gd_model_inputs inputs;
    struct gd_graft_training sites;
    int32_t ids[TOKENS], positions[TOKENS] = {0}, labels[TOKENS], owner[SEGMENTS] = {0, 1, 2, 3};
    float weights[TOKENS];
    must(gd_graph_create(&g, GD_F32, &err), &err);
    gd_model_inputs_create(&inputs, g, model, TOKENS, SEGMENTS, false);
    gd_graft_training_sites(&sites, g, graft, training);
    gd_graft_training_segments(&sites, g, inputs.cu_seqlens);
    struct gd_value *hidden = gd_model_hidden(g, model, &inputs, &sites.sites), *head = gd_model_head(g, model, &sites.sites);
    struct gd_value *label = gd_graph_input(g, "labels", GD_I32, 1, (int64_t[]){TOKENS});
    struct gd_value *weight = gd_graph_input(g, "weights", GD_F32, 1, (int64_t[]){TOKENS});
    struct gd_value *loss = gd_cross_entropy(g, hidden, head, label, weight, 1.0, 0.0);
    struct gd_value *wanted[64] = {loss, gd_linear(g, hidden, head)}, **got = wanted + 2;
    must(gd_graph_ok(g, &err), &err);
    int count = 2;
    if (grads != NULL) {
        must(gd_graph_gradient(g, loss, sites.params, graft->param_count, got, &err), &err);
        count += graft->param_count;
    }
    must(gd_plan_create(&plan, g, wanted, count, false, &err), &err);
    for (int t = 0, s = 0; t < TOKENS; t++) {
        while (s < SEGMENTS && t >= batch.bounds[s + 1])
            s++;
        positions[t] = t - (s < SEGMENTS ? batch.bounds[s] : 0);
        ids[t] = (positions[t] * 37 + 11) % model->config.vocab; /* the same text in every segment */
        labels[t] = (ids[t] * 3 + 7) % model->config.vocab;
        weights[t] = t < batch.bounds[SEGMENTS] ? 1.0f : 0.0f;
    }
    gd_plan_bind(plan, inputs.ids, ids);
    gd_plan_bind(plan, inputs.positions, positions);
    gd_plan_bind(plan, inputs.cu_seqlens, batch.bounds);
    gd_plan_bind(plan, inputs.inv_freq, model->config.inv_freq);
    gd_plan_bind(plan, label, labels);
    gd_plan_bind(plan, weight, weights);
    if (sites.tasks != NULL)
        gd_plan_bind(plan, sites.tasks, batch.tasks);
    if (sites.owner != NULL)
        gd_plan_bind(plan, sites.owner, owner);
    if (sites.dropout_key != NULL)
        gd_plan_bind(plan, sites.dropout_key, key);
    gd_graft_training_bind(&sites, plan, graft->block);
    for (int i = 0; i < graft->param_count && grads != NULL; i++)
        gd_plan_bind(plan, got[i], grads + graft->params[i].offset);
    void *arena = NULL;
    must(gd_device_alloc(&arena, gd_plan_arena_bytes(plan), "arena", &err), &err);
    gd_plan_attach(plan, arena);
    must(gd_plan_run(plan, NULL, &err), &err);
    double value = (double)*(const float *)test_read(plan, loss);
    if (out != NULL)
        memcpy(out, test_read(plan, wanted[1]), sizeof(float) * TOKENS * (size_t)model->config.vocab);
    gd_device_free(arena, gd_plan_arena_bytes(plan));
    gd_plan_destroy(plan);
    gd_graph_destroy(g);
    gd_graft_training_release(&sites);
    return value;
}

static float *logits_memory(void)
{
    return gd_alloc_array(TOKENS * (size_t)model->config.vocab, sizeof(float));
}

static void close_to(const float *a, const float *b, int64_t count, double limit)
{
    for (int64_t i = 0; i < count; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= limit * (1 + fabs((double)b[i]))))
            fail_msg("[%lld] is %g, expected %g", (long long)i, (double)a[i], (double)b[i]);
}

static const struct batch one = {.bounds = {0, 40, 40, 40, 40}};

static void one_skill_is_lora_and_its_routing_learns_nothing(void **state)
{
    struct gd_graft *poly = make_graft("{\"type\": \"poly\", \"r\": 4, \"n_skills\": 1, \"target_modules\": [\"q_proj\", \"o_proj\"]}");
    struct gd_graft *lora = make_graft("{\"r\": 4, \"lora_alpha\": 1, \"target_modules\": [\"q_proj\", \"o_proj\"]}");
    for (int p = 0; p < lora->param_count; p++) { /* A and B turned */
        const struct gd_graft_param *to = &lora->params[p], *from = &poly->params[p / 2 * 3 + p % 2];
        for (int64_t i = 0; i < to->shape[0] * to->shape[1]; i++)
            lora->block[to->offset + i] = poly->block[from->offset + i % to->shape[1] * to->shape[0] + i / to->shape[1]];
    }
    float *a = logits_memory(), *b = logits_memory();
    float *ga = gd_alloc_array((size_t)poly->parameter_count, sizeof(float)), *gb = gd_alloc_array((size_t)lora->parameter_count, sizeof(float));
    int32_t key[4] = {1, 2, 3, 4};
    run(poly, one, true, key, a, ga); /* noise changes nothing where there is one skill */
    run(lora, one, true, key, b, gb);
    close_to(a, b, 40 * model->config.vocab, 1e-5);
    for (int p = 0; p < lora->param_count; p++) {
        const struct gd_graft_param *to = &lora->params[p], *from = &poly->params[p / 2 * 3 + p % 2];
        for (int64_t i = 0; i < to->shape[0] * to->shape[1]; i++)
            close_to(&ga[from->offset + i % to->shape[1] * to->shape[0] + i / to->shape[1]], &gb[to->offset + i], 1, 1e-4);
    }
    for (int p = 2; p < poly->param_count; p += 3)
        assert_true(fabsf(ga[poly->params[p].offset]) < 1e-6f);
    gd_free(a);
    gd_free(b);
    gd_free(ga);
    gd_free(gb);
    gd_graft_destroy(poly);
    gd_graft_destroy(lora);
}

static void tasks_of_a_batch_do_not_see_each_other(void **state)
{
    struct gd_graft *graft = make_graft("{\"type\": \"poly\", \"r\": 3, \"n_tasks\": 3, \"n_splits\": 4, \"target_modules\": \"all-linear\"}");
    float *together = logits_memory(), *alone = logits_memory();
    size_t row = (size_t)model->config.vocab;
    struct batch batch = {.bounds = {0, 11, 27, 36, 36}, .tasks = {2, 0, 1, -1}};
    run(graft, batch, false, NULL, together, NULL);
    for (int s = 0; s < 3; s++) {
        int32_t length = batch.bounds[s + 1] - batch.bounds[s];
        run(graft, (struct batch){.bounds = {0, length, length, length, length}, .tasks = {batch.tasks[s]}}, false, NULL, alone, NULL);
        close_to(together + (size_t)batch.bounds[s] * row, alone, length * (int64_t)row, 1e-5);
    }
    assert_true(fabsf(together[5] - together[11 * row + 5]) > 1e-3f); /* the same text, another task */
    gd_free(together);
    gd_free(alone);
    gd_graft_destroy(graft);
}

static void gradients_of_all_parts_agree_with_finite_differences(void **state)
{
    struct gd_graft *graft = make_graft("{\"type\": \"poly\", \"r\": 2, \"n_tasks\": 2, \"n_skills\": 3, \"n_splits\": 4, "
                                        "\"target_modules\": [\"layers.1.mlp.down_proj\"]}");
    struct batch batch = {.bounds = {0, 11, 27, 36, 40}, .tasks = {1, 0, 1, 0}};
    int32_t key[4] = {9, 8, 7, 6};
    float *grads = gd_alloc_array((size_t)graft->parameter_count, sizeof(float));
    run(graft, batch, true, key, NULL, grads);
    for (int p = 0; p < graft->param_count; p++) {
        const struct gd_graft_param *param = &graft->params[p];
        int64_t count = param->shape[0] * param->shape[1];
        double along = 0, size = 0;
        float *values = graft->block + param->offset, *kept = gd_alloc_array((size_t)count, sizeof(float));
        memcpy(kept, values, (size_t)count * sizeof(float));
        for (int64_t i = 0; i < count; i++)
            size += (double)grads[param->offset + i] * (double)grads[param->offset + i];
        double change[2];
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < count; i++)
                values[i] = kept[i] + (float)((side ? 0.02 : -0.02) * (double)grads[param->offset + i] / sqrt(size));
            change[side] = run(graft, batch, true, key, NULL, NULL);
        }
        along = (change[1] - change[0]) / 0.04;
        if (!(fabs(along - sqrt(size)) <= 1e-2 * sqrt(size)))
            fail_msg("%s: slope %g, gradient %g", param->name, along, sqrt(size));
        memcpy(values, kept, (size_t)count * sizeof(float));
        gd_free(kept);
    }
    gd_free(grads);
    gd_graft_destroy(graft);
}

/* Weights [groups][skills] of logits z, drawn with a key or not. */
static void route(const float *z, int32_t *key, int groups, int skills, float *w)
{
    struct gd_error err = {0};
    struct gd_graph *g = NULL;
    struct gd_plan *plan = NULL;
    must(gd_graph_create(&g, GD_F32, &err), &err);
    struct gd_value *in = gd_graph_input(g, "z", GD_F32, 2, (int64_t[]){groups, skills});
    struct gd_value *key_in = key != NULL ? gd_graph_input(g, "key", GD_I32, 1, (int64_t[]){4}) : NULL;
    struct gd_value *owner_in = key != NULL ? gd_graph_input(g, "owner", GD_I32, 1, (int64_t[]){groups}) : NULL;
    struct gd_value *out = gd_route(g, in, key_in, owner_in, 1, skills, 3);
    int32_t *owner = gd_alloc_array((size_t)groups, sizeof(int32_t));
    for (int i = 0; i < groups; i++)
        owner[i] = i;
    must(gd_graph_ok(g, &err) && gd_plan_create(&plan, g, &out, 1, false, &err), &err);
    void *arena = NULL;
    must(gd_device_alloc(&arena, gd_plan_arena_bytes(plan), "arena", &err), &err);
    gd_plan_attach(plan, arena);
    gd_plan_bind(plan, in, (void *)(uintptr_t)z);
    if (key != NULL) {
        gd_plan_bind(plan, key_in, key);
        gd_plan_bind(plan, owner_in, owner);
    }
    must(gd_plan_run(plan, NULL, &err), &err);
    memcpy(w, test_read(plan, out), (size_t)(groups * skills) * sizeof(float));
    gd_free(owner);
    gd_device_free(arena, gd_plan_arena_bytes(plan));
    gd_plan_destroy(plan);
    gd_graph_destroy(g);
}

/* With two skills of equal odds u is uniform, so P(w < x) = x / (1 - x) / 2 up to 1/2; with odds e^a to one the first is
 * the larger with probability e^a (e^a - 1 - a) / (e^a - 1)^2. */
static void routing_noise_is_relaxed_bernoulli(void **state)
{
    enum { GROUPS = 20000 };
    static float z[GROUPS * 2], w[GROUPS * 2], again[GROUPS * 2];
    int32_t key[4] = {11, 0, 5, 2}, other[4] = {11, 0, 6, 2};
    route(z, key, GROUPS, 2, w);
    int below = 0, quarter = 0;
    for (int i = 0; i < GROUPS; i++) {
        assert_true(fabsf(w[2 * i] + w[2 * i + 1] - 1) < 1e-6f);
        below += w[2 * i] < 0.1f;
        quarter += w[2 * i] < 0.25f;
    }
    assert_true(fabs((double)below / GROUPS - 1.0 / 18) < 0.006 && fabs((double)quarter / GROUPS - 1.0 / 6) < 0.01);
    route(z, key, GROUPS, 2, again);
    assert_memory_equal(w, again, sizeof(w));
    route(z, other, GROUPS, 2, again);
    assert_memory_not_equal(w, again, sizeof(w));
    double a = 1.2, e = exp(a), expected = e * (e - 1 - a) / ((e - 1) * (e - 1));
    int larger = 0;
    for (int i = 0; i < GROUPS; i++)
        z[2 * i] = 1.2f;
    route(z, key, GROUPS, 2, w);
    for (int i = 0; i < GROUPS; i++)
        larger += w[2 * i] > w[2 * i + 1];
    assert_true(fabs((double)larger / GROUPS - expected) < 0.015);
    route(z, NULL, GROUPS, 2, w);
    assert_true(fabs((double)w[0] - (1 / (1 + exp(-1.2))) / (1 / (1 + exp(-1.2)) + 0.5)) < 1e-6 && w[0] == w[2]);
}

static void the_average_is_a_task_of_equal_odds(void **state)
{
    struct gd_error err = {0};
    struct gd_graft *graft = make_graft("{\"type\": \"poly\", \"r\": 3, \"n_tasks\": 2, \"n_skills\": 3, \"n_splits\": 2}");
    const struct gd_site *sites;
    gd_model_linear_sites(model, &sites);
    for (int p = 2; p < graft->param_count; p += 3)
        for (int i = 0; i < 6; i++)
            graft->block[graft->params[p].offset + 6 + i] = -1.5f; /* task 1 */
    graft->task = -1;
    gd_graft_ready(graft);
    char digest[65];
    memcpy(digest, graft->digest, sizeof(digest));
    int64_t count = 3 * sites[0].in;
    float *average = gd_alloc_array((size_t)count, sizeof(float));
    memcpy(average, graft->wear[0].a, (size_t)count * sizeof(float));
    must(gd_graft_wear_task(graft, "1", &err), &err);
    close_to(graft->wear[0].a, average, count, 1e-6);
    assert_string_not_equal(graft->digest, digest); /* their pages are not shared */
    must(gd_graft_wear_task(graft, "0", &err), &err);
    assert_true(fabsf(graft->wear[0].a[0] - average[0]) > 1e-6f);
    must(gd_graft_wear_task(graft, "average", &err), &err);
    assert_string_equal(graft->digest, digest);
    gd_free(average);
    gd_graft_destroy(graft);
}

static struct gd_graft *make_with_tasks(const char *json, char *const *tasks, int count)
{
    struct gd_error err = {0};
    struct gd_adapter_config config;
    struct gd_graft *graft = NULL;
    cJSON *parsed = cJSON_Parse(json);
    must(gd_adapter_config_parse(&config, parsed, &err), &err);
    gd_adapter_set_tasks(&config, tasks, count);
    must(gd_graft_create(&graft, model, &config, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(parsed);
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_fill_normal(graft->block, gd_graft_floats(graft), 0.3f, 5, 0);
    return graft;
}

#define OPTIONS "\"r\": 3, \"n_skills\": 3, \"n_splits\": 2, \"target_modules\": [\"q_proj\", \"o_proj\"]"

/* MHR-z: the skills of the older model, the routing of the task that it knows, and nothing else is trained. */
static void routing_alone_learns_on_the_skills_of_another_model(void **state)
{
    struct gd_error err = {0};
    char *old_tasks[] = {"a", "b"}, *new_tasks[] = {"b", "c"};
    struct gd_graft *from = make_with_tasks("{\"type\": \"poly\", " OPTIONS "}", old_tasks, 2);
    struct gd_graft *graft = make_with_tasks("{\"type\": \"poly\", \"trained\": \"routing\", " OPTIONS "}", new_tasks, 2);
    int modules = graft->param_count;
    assert_int_equal(modules, 2 * model->config.layers);
    assert_int_equal(graft->parameter_count, modules * 2 * 2 * 3); /* tasks, splits, skills */
    assert_false(graft->method->start(graft, NULL, 1, NULL, &err));
    assert_string_equal(err.param, "adapter.trained");
    gd_error_clear(&err);
    must(graft->method->start(graft, from, 1, NULL, &err) && graft->method->start(graft, from, 1, graft->block, &err), &err);
    for (int m = 0; m < modules; m++) {
        const float *z = graft->block + graft->params[m].offset, *old = from->block + from->params[3 * m + 2].offset;
        assert_memory_equal(z, old + 6, 6 * sizeof(float)); /* b */
        for (int i = 0; i < 6; i++)
            assert_true(fabsf(z[6 + i]) <= 1e-3f && z[6 + i] != 0); /* c */
        for (int k = 0; k < 2; k++) {
            const struct gd_graft_param *skill = &graft->params[modules + 2 * m + k], *its = &from->params[3 * m + k];
            assert_string_equal(skill->name, its->name);
            assert_memory_equal(graft->block + skill->offset, from->block + its->offset,
                                (size_t)(skill->shape[0] * skill->shape[1]) * sizeof(float));
        }
    }
    float *a = logits_memory(), *b = logits_memory(), *grads = gd_alloc_array((size_t)graft->parameter_count, sizeof(float));
    struct batch of_new = {.bounds = {0, 40, 40, 40, 40}}, of_old = {.bounds = {0, 40, 40, 40, 40}, .tasks = {1}};
    int32_t key[4] = {0};
    run(graft, of_new, false, NULL, a, NULL);
    run(from, of_old, false, NULL, b, NULL);
    assert_memory_equal(a, b, 40 * (size_t)model->config.vocab * sizeof(float));
    run(graft, of_new, true, key, NULL, grads);
    assert_true(fabsf(grads[0]) > 0); /* of b; c has no row in the batch */
    assert_true(grads[6] == 0);
    gd_free(a);
    gd_free(b);
    gd_free(grads);
    gd_graft_destroy(graft);
    gd_graft_destroy(from);
}

/* MHR-mu: before its first step the LoRA is the mixture with equal odds. */
static void a_lora_goes_on_from_the_mean_of_the_skills(void **state)
{
    struct gd_error err = {0};
    char *tasks[] = {"a", "b"};
    struct gd_graft *from = make_with_tasks("{\"type\": \"poly\", " OPTIONS "}", tasks, 2);
    struct gd_graft *lora = make_graft("{\"r\": 3, \"lora_alpha\": 7, \"target_modules\": [\"q_proj\", \"o_proj\"]}");
    struct gd_graft *other = make_graft("{\"r\": 4, \"target_modules\": [\"q_proj\", \"o_proj\"]}");
    struct gd_graft *elsewhere = make_graft("{\"r\": 3, \"target_modules\": [\"q_proj\"]}");
    must(lora->method->start(lora, from, 1, lora->block, &err), &err);
    for (int p = 2; p < from->param_count; p += 3)
        memset(from->block + from->params[p].offset, 0, 12 * sizeof(float));
    float *a = logits_memory(), *b = logits_memory();
    run(lora, one, false, NULL, a, NULL);
    run(from, one, false, NULL, b, NULL);
    close_to(a, b, 40 * model->config.vocab, 1e-5);
    assert_false(other->method->start(other, from, 1, NULL, &err));
    assert_string_equal(err.param, "adapter.r");
    gd_error_clear(&err);
    assert_false(elsewhere->method->start(elsewhere, from, 1, NULL, &err));
    assert_string_equal(err.param, "adapter.target_modules");
    gd_error_clear(&err);
    gd_free(a);
    gd_free(b);
    gd_graft_destroy(from);
    gd_graft_destroy(lora);
    gd_graft_destroy(other);
    gd_graft_destroy(elsewhere);
}

static void a_task_that_is_not_there_is_an_error_that_lists_them(void **state)
{
    struct gd_error err = {0};
    struct gd_graft *graft = make_graft("{\"type\": \"poly\", \"n_tasks\": 2}"), *lora = make_graft("{\"r\": 2}");
    gd_graft_ready(graft);
    gd_graft_ready(lora);
    assert_false(gd_graft_wear_task(graft, NULL, &err));
    assert_string_equal(err.param, "task");
    assert_non_null(strstr(err.message, "'0', '1'"));
    gd_error_clear(&err);
    assert_false(gd_graft_wear_task(graft, "sum", &err));
    assert_non_null(strstr(err.message, "'sum'; its tasks are '0', '1', and 'average'"));
    gd_error_clear(&err);
    assert_false(gd_graft_wear_task(lora, "sum", &err));
    assert_non_null(strstr(err.message, "no tasks"));
    gd_error_clear(&err);
    assert_true(gd_graft_wear_task(lora, NULL, &err));
    gd_graft_destroy(graft);
    gd_graft_destroy(lora);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_skill_is_lora_and_its_routing_learns_nothing),
        cmocka_unit_test(tasks_of_a_batch_do_not_see_each_other),
        cmocka_unit_test(gradients_of_all_parts_agree_with_finite_differences),
        cmocka_unit_test(routing_noise_is_relaxed_bernoulli),
        cmocka_unit_test(the_average_is_a_task_of_equal_odds),
        cmocka_unit_test(routing_alone_learns_on_the_skills_of_another_model),
        cmocka_unit_test(a_lora_goes_on_from_the_mean_of_the_skills),
        cmocka_unit_test(a_task_that_is_not_there_is_an_error_that_lists_them),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
