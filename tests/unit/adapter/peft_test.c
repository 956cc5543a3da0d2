/* Adapters on disk: PEFT's load here with PEFT's logits, ours are read back exactly, and nothing is taken silently. */
#include "engine/adapter/adapter.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include "tests/unit/base/scratch.h"
#include "tests/unit/tensor/reading.h"

#include <math.h>
#include <unistd.h>

static struct gd_model *model;
static const char *fixtures;
static char scratch[] = "/tmp/graftd-peft-XXXXXX";

static int set_up(void **state)
{
    struct gd_error err = {0};
    fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    must(gd_device_init("cpu", 2, &err), &err);
    char *path = gd_format("%s/models/tiny-llama", fixtures);
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

/* f32 logits [count, vocab] of one sequence with the graft on (yours to gd_free). */
static float *logits_of(const struct gd_graft *graft, const int32_t *ids, int count)
{
    struct gd_error err = {0};
    struct gd_graph *g = NULL;
    struct gd_plan *plan = NULL;
    struct gd_model_inputs inputs;
    struct gd_graft_training sites;
    must(gd_graph_create(&g, GD_F32, &err), &err);
    int lead = graft->virtual_rows.count, rows = lead + count;
    gd_model_inputs_create(&inputs, g, model, rows, 1, false);
    gd_graft_training_sites(&sites, g, graft, false);
    gd_graft_training_segments(&sites, g, inputs.cu_seqlens);
    struct gd_value *logits = gd_linear(g, gd_model_hidden(g, model, &inputs, &sites.sites), gd_model_head(g, model, &sites.sites));
    must(gd_graph_ok(g, &err), &err);
    must(gd_plan_create(&plan, g, &logits, 1, false, &err), &err);
    int32_t positions[256], all_ids[256], index[GD_ROW_INDICES][256], bounds[2] = {0, rows};
    for (int i = 0; i < rows; i++) {
        const struct gd_virtual_rows *virtual_rows = &graft->virtual_rows;
        positions[i] = i;
        all_ids[i] = i >= lead ? ids[i - lead] : virtual_rows->ids != NULL ? virtual_rows->ids[i] : -1;
        index[GD_ROW_VIRTUAL][i] = i < lead ? i : -1;
        index[GD_ROW_TOKEN][i] = i < lead ? -1 : i;
        index[GD_ROW_TABLE][i] = i >= lead && i - lead < virtual_rows->table_rows ? i - lead : -1;
    }
    for (int i = 0; i < GD_ROW_INDICES; i++)
        if (sites.index[i] != NULL)
            gd_plan_bind(plan, sites.index[i], index[i]);
    gd_plan_bind(plan, inputs.ids, all_ids);
    gd_plan_bind(plan, inputs.positions, positions);
    gd_plan_bind(plan, inputs.cu_seqlens, bounds);
    gd_plan_bind(plan, inputs.inv_freq, model->config.inv_freq);
    gd_graft_training_bind(&sites, plan, graft->block);
    int32_t task = graft->config.tasks.count - 1;
    if (sites.tasks != NULL)
        gd_plan_bind(plan, sites.tasks, &task);
    void *arena = NULL;
    must(gd_device_alloc(&arena, gd_plan_arena_bytes(plan), "arena", &err), &err);
    gd_plan_attach(plan, arena);
    must(gd_plan_run(plan, NULL, &err), &err);
    size_t bytes = (size_t)count * (size_t)model->config.vocab * sizeof(float);
    float *copy = gd_alloc(bytes);
    memcpy(copy, (const float *)test_read(plan, logits) + (size_t)lead * (size_t)model->config.vocab, bytes);
    gd_device_free(arena, gd_plan_arena_bytes(plan));
    gd_plan_destroy(plan);
    gd_graph_destroy(g);
    gd_graft_training_release(&sites);
    return copy;
}

/* The reference is PEFT where it has the method, else PyTorch. */
static char *fixture_of(const char *method)
{
    char *folder = gd_format("%s/adapters/peft-%s", fixtures, method);
    if (access(folder, F_OK) == 0)
        return folder;
    gd_free(folder);
    return gd_format("%s/adapters/torch-%s", fixtures, method);
}

static void check_pefts_folder(const char *method)
{
    struct gd_error err = {0};
    char *folder = fixture_of(method);
    struct gd_graft *graft = NULL;
    struct gd_safetensors *file = NULL;
    struct gd_tensor ids, expected, base;
    char *path = gd_format("%s/logits.safetensors", folder);
    must(gd_graft_read(&graft, model, folder, &err), &err);
    must(gd_safetensors_open(&file, path, &err), &err);
    assert_true(gd_safetensors_find(file, "ids", &ids) && gd_safetensors_find(file, "logits", &expected) &&
                gd_safetensors_find(file, "base_logits", &base));
    float *logits = logits_of(graft, ids.data, (int)ids.shape[0]);
    double worst = 0, effect = 0;
    for (int64_t i = 0; i < gd_tensor_count(&expected); i++) {
        worst = fmax(worst, fabs((double)logits[i] - ((float *)expected.data)[i]));
        effect = fmax(effect, fabs((double)((float *)base.data)[i] - ((float *)expected.data)[i]));
    }
    if (worst > 1e-3 || effect < 0.1)
        fail_msg("%s: largest logit difference %.3g (the adapter moves logits by %.3g)", method, worst, effect);
    gd_free(logits);
    gd_free(path);
    gd_free(folder);
    gd_safetensors_close(file);
    gd_graft_destroy(graft);
}

static void adapters_written_by_peft_give_pefts_logits(void **state)
{
    static const char *const variants[] = {"dora", "pissa", "kasa", "oft_cayley", "lokr_full"};
    for (size_t i = 0; i < GD_COUNT(variants); i++)
        check_pefts_folder(variants[i]);
    for (int i = 0; i < gd_adapter_count; i++)
        check_pefts_folder(gd_adapter_table[i]->name);
}

/* Sensitivities for methods that choose by them. */
static bool some_squares(void *context, const struct gd_graft *probe, int batches, int batch_size, float *squares, struct gd_error *err)
{
    for (int64_t i = 0; i < probe->parameter_count; i++)
        squares[i] = (float)(i * 7919 % 10007) / 10007.0f;
    return true;
}

static struct gd_graft *make_graft(const char *json)
{
    struct gd_error err = {0};
    struct gd_adapter_config config;
    struct gd_graft *graft = NULL;
    struct gd_graft_source source = {.squares = some_squares};
    cJSON *parsed = cJSON_Parse(json);
    must(gd_adapter_config_parse(&config, parsed, &err), &err);
    must(gd_graft_create_by(&graft, model, &config, &source, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(parsed);
    return graft;
}

static char *save(struct gd_graft *graft, const char *name)
{
    struct gd_error err = {0};
    struct gd_dir_tx *tx = NULL;
    char *folder = gd_format("%s/%s", scratch, name);
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_graft_init(graft, graft->block, 9);
    for (int64_t i = 0; i < graft->parameter_count; i++)
        graft->block[i] += 0.01f * (float)(i % 7);
    if (graft->method->after_step != NULL)
        graft->method->after_step(graft, graft->block);
    must(gd_dir_tx_begin(&tx, folder, &err), &err);
    must(gd_graft_save(graft, graft->block, gd_dir_tx_path(tx), NULL, &err), &err);
    must(gd_dir_tx_commit(tx, &err), &err);
    return folder;
}

/* For make_adapter.py FOLDER: what PEFT must compute with this adapter. */
static void keep_for_peft(const char *parent, const char *name, const struct gd_graft *graft)
{
    struct gd_error err = {0};
    int32_t ids[24];
    for (int i = 0; i < 24; i++)
        ids[i] = (i * 37 + 11) % model->config.vocab;
    float *logits = logits_of(graft, ids, 24);
    struct gd_safetensors_entry entries[] = {
        {"ids", {.dtype = GD_I32, .rank = 1, .shape = {24}, .data = ids}},
        {"logits", {.dtype = GD_F32, .rank = 2, .shape = {24, model->config.vocab}, .data = logits}}};
    struct gd_dir_tx *tx = NULL;
    char *keep = gd_format("%s/%s", parent, name);
    must(gd_dir_tx_begin(&tx, keep, &err), &err);
    must(gd_graft_save(graft, graft->block, gd_dir_tx_path(tx), NULL, &err), &err);
    char *path = gd_format("%s/logits.safetensors", gd_dir_tx_path(tx));
    must(gd_safetensors_write(path, entries, 2, NULL, &err), &err);
    must(gd_dir_tx_commit(tx, &err), &err);
    gd_free(path);
    gd_free(keep);
    gd_free(logits);
}

/* What was trained and what the file holds in its place compute the same, for sequences of several lengths. */
static void check_baked(const struct gd_graft *trained, const struct gd_graft *loaded)
{
    int32_t ids[20];
    for (int i = 0; i < 20; i++)
        ids[i] = (i * 31 + 5) % model->config.vocab;
    for (int count = 1; count <= 20; count += 9) {
        float *expected = logits_of(trained, ids, count), *logits = logits_of(loaded, ids, count);
        for (int i = 0; i < count * model->config.vocab; i++)
            if (fabsf(expected[i] - logits[i]) > 1e-5f * fmaxf(1.0f, fabsf(expected[i])))
                fail_msg("logit %d is %g as trained, %g as stored", i, (double)expected[i], (double)logits[i]);
        gd_free(expected);
        gd_free(logits);
    }
}

static void what_is_saved_is_read_back_exactly(void **state)
{
    static const char *const configs[] = {
        "{\"r\": 3, \"lora_alpha\": 5, \"use_rslora\": true}",
        "{\"r\": 4, \"use_dora\": true, \"init_lora_weights\": \"gaussian\", \"target_modules\": [\"k_proj\", \"up_proj\"]}",
        "{\"type\": \"ia3\", \"target_modules\": \"all-linear\", \"feedforward_modules\": [\"down_proj\", \"layers.0.self_attn.q_proj\"]}",
        "{\"type\": \"ln_tuning\", \"target_modules\": [\"input_layernorm\", \"layers.1.post_attention_layernorm\", \"norm\"]}",
        "{\"r\": 3, \"use_kasa\": true, \"target_modules\": [\"k_proj\", \"gate_proj\"]}",
        "{\"type\": \"loha\", \"r\": 3, \"alpha\": 1.5}",
        "{\"type\": \"lokr\", \"r\": 2, \"decompose_both\": true, \"decompose_factor\": 3, \"target_modules\": [\"v_proj\", \"mlp.up_proj\"]}",
        "{\"type\": \"lokr\", \"r\": 2, \"target_modules\": [\"k_proj\", \"down_proj\"]}",
        "{\"type\": \"oft\", \"oft_block_size\": 4, \"num_cayley_neumann_terms\": 3}",
        "{\"type\": \"oft\", \"r\": 2, \"oft_block_size\": 0, \"use_cayley_neumann\": false, \"block_share\": true}",
        "{\"type\": \"vera\", \"r\": 5, \"vera_dropout\": 0.1}",
        "{\"type\": \"poly\", \"r\": 3, \"n_splits\": 2, \"n_tasks\": 4, \"target_modules\": \"all-linear\"}",
        "{\"type\": \"houlsby\", \"reduction_factor\": 7, \"learned_scaling\": true, \"target_modules\": [\"mlp\", \"layers.0.self_attn\"]}",
        "{\"type\": \"pfeiffer\", \"bottleneck_size\": 3, \"non_linearity\": \"gelu_new\", \"residual\": false}",
        "{\"type\": \"parallel\", \"reduction_factor\": 8, \"use_bias\": false, \"scaling\": 2.5, \"target_modules\": [\"self_attn\"]}",
        "{\"type\": \"cpt\", \"cpt_token_ids\": [7, 19, 33, 40, 12, 55, 61, 8, 90, 14], "
        "\"cpt_tokens_type_mask\": [1, 2, 2, 3, 4, 5, 6, 7, 8, 8], \"opt_weighted_loss_type\": \"decay\", "
        "\"opt_loss_decay_factor\": 0.5, \"opt_projection_epsilon\": 3}",
        "{\"type\": \"ept\", \"num_virtual_tokens\": 6, \"r\": 5, \"max_length\": 30}",
        "{\"type\": \"ept\", \"num_virtual_tokens\": 6, \"r\": 5, \"space_count\": 1, \"fusion_width\": 0}",
        "{\"type\": \"ept\", \"num_virtual_tokens\": 6, \"r\": 0}",
        "{\"type\": \"dept\", \"num_virtual_tokens\": 6, \"r\": 5, \"max_length\": 30}",
        "{\"type\": \"dept\", \"num_virtual_tokens\": 0, \"r\": 5, \"apply_to\": \"sequence\"}",
        "{\"type\": \"dept\", \"num_virtual_tokens\": 5, \"r\": 0}",
        "{\"type\": \"p_tuning\", \"num_virtual_tokens\": 6, \"encoder_hidden_size\": 10}",
        "{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 6}",
        "{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 3, \"prefix_projection\": true, \"encoder_hidden_size\": 9}",
        "{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 7, \"prompt_tuning_init\": \"TEXT\", \"prompt_tuning_init_text\": \"ab\"}",
        "{\"type\": \"full\", \"first_layer\": 1, \"target_norms\": [\"norm\"], \"target_modules\": [\"k_proj\", \"mlp.up_proj\"]}",
        "{\"type\": \"hft\", \"share\": 0.4, \"target_modules\": [\"mlp.up_proj\", \"self_attn.k_proj\"]}",
        "{\"type\": \"spt\", \"tau\": 2000, \"r\": 2, \"alpha\": 1.5, \"target_modules\": [\"v_proj\", \"mlp.up_proj\"]}",
        "{\"type\": \"bitfit\", \"target_modules\": [\"k_proj\", \"layers.1.mlp.up_proj\"]}",
    };
    int seen[64] = {0};
    for (size_t i = 0; i < GD_COUNT(configs); i++) {
        struct gd_error err = {0};
        struct gd_graft *graft = make_graft(configs[i]), *loaded = NULL;
        char name[16];
        snprintf(name, sizeof(name), "config-%zu", i);
        char *folder = save(graft, name);
        must(gd_graft_read(&loaded, model, folder, &err), &err);
        if (graft->bakes) {
            check_baked(graft, loaded);
        } else {
            assert_int_equal(loaded->parameter_count, graft->parameter_count);
            assert_int_equal(loaded->frozen_count, graft->frozen_count);
            assert_memory_equal(loaded->block, graft->block, (size_t)gd_graft_floats(graft) * sizeof(float));
        }
        assert_string_equal(loaded->method->peft_type, graft->method->peft_type);
        assert_true(graft->bakes || (loaded->method == graft->method && loaded->scale == graft->scale));
        for (int m = 0; m < gd_adapter_count; m++)
            seen[m] += gd_adapter_table[m] == graft->method;
        assert_int_equal(strlen(loaded->digest), 64);
        if (getenv("GD_ADAPTER_OUT") != NULL)
            keep_for_peft(getenv("GD_ADAPTER_OUT"), name, graft);
        gd_graft_destroy(loaded);
        gd_graft_destroy(graft);
        gd_free(folder);
    }
    for (int m = 0; m < gd_adapter_count; m++)
        if (seen[m] == 0)
            fail_msg("no configuration of %s is tried", gd_adapter_table[m]->name);
}

/* What is kept is another graft than what is trained: it computes the same, and the trained one comes back bit by bit. */
static void check_kept(const char *json, const char *name)
{
    struct gd_error err = {0};
    struct gd_graft *graft = make_graft(json), *loaded = NULL;
    char *folder = save(graft, name);
    int32_t ids[20];
    for (int i = 0; i < 20; i++)
        ids[i] = (i * 31 + 5) % model->config.vocab;
    must(gd_graft_load(&loaded, model, folder, &err), &err);
    float *block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    must(gd_graft_resume(graft, loaded, block, &err), &err);
    assert_memory_equal(block, graft->block, (size_t)gd_graft_floats(graft) * sizeof(float));
    float *trained = logits_of(graft, ids, 20), *served = logits_of(loaded, ids, 20);
    for (int64_t i = 0; i < 20 * (int64_t)model->config.vocab; i++)
        if (fabs((double)trained[i] - (double)served[i]) > 1e-3)
            fail_msg("%s: logit %lld is %g in training, %g as it is kept", json, (long long)i, (double)trained[i], (double)served[i]);
    if (getenv("GD_ADAPTER_OUT") != NULL)
        keep_for_peft(getenv("GD_ADAPTER_OUT"), name, graft);
    gd_free(trained);
    gd_free(served);
    gd_free(block);
    gd_graft_destroy(loaded);
    gd_graft_destroy(graft);
    gd_free(folder);
}

static void what_is_kept_in_another_form_is_resumed_exactly(void **state)
{
    check_kept("{\"r\": 4, \"init_lora_weights\": \"pissa\"}", "pissa");
    check_kept("{\"r\": 20, \"init_lora_weights\": \"pissa\", \"use_rslora\": true}", "pissa-rslora"); /* kept above the full rank */
}

static void damage(const char *folder, const char *name, const char *text)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/%s", folder, name);
    must(gd_file_write_durable(path, text, strlen(text), &err), &err);
    gd_free(path);
}

static void remove_manifest(const char *folder)
{
    char *path = gd_format("%s/manifest.json", folder);
    unlink(path);
    gd_free(path);
}

/* A graft with its own block, filled from `init`. */
static struct gd_graft *started(const char *json)
{
    struct gd_graft *graft = make_graft(json);
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_graft_init(graft, graft->block, 7);
    return graft;
}

static double apart(const struct gd_graft *a, const struct gd_graft *b)
{
    int32_t ids[20];
    double worst = 0;
    for (int i = 0; i < 20; i++)
        ids[i] = (i * 31 + 5) % model->config.vocab;
    float *one = logits_of(a, ids, 20), *other = logits_of(b, ids, 20);
    for (int64_t i = 0; i < 20 * (int64_t)model->config.vocab; i++)
        worst = fmax(worst, fabs((double)one[i] - (double)other[i]));
    gd_free(one);
    gd_free(other);
    return worst;
}

/* `plain` is a LoRA of the same modules and rank: its A and B become what the KaSA graft dropped, with the other sign (taken
 * = true), or what it trains. */
static void copy_into(const struct gd_graft *plain, const struct gd_graft *kasa, bool taken)
{
    for (int p = 0; p < plain->param_count; p++) {
        const struct gd_graft_param *to = &plain->params[p];
        const struct gd_graft_param *from = &kasa->params[taken ? kasa->param_count + p : p / 2 * 3 + p % 2];
        for (int64_t i = 0; i < to->shape[0] * to->shape[1]; i++)
            plain->block[to->offset + i] = (taken && p % 2 == 1 ? -1.0f : 1.0f) * kasa->block[from->offset + i];
    }
}

static void kasa_starts_from_the_truncated_base(void **state)
{
    struct gd_graft *kasa = started("{\"r\": 5, \"lora_alpha\": 5, \"use_kasa\": true}"), *base = started("{\"type\": \"ln_tuning\"}");
    struct gd_graft *plain = started("{\"r\": 5, \"lora_alpha\": 5}");
    copy_into(plain, kasa, true);
    assert_true(apart(kasa, base) > 1e-2);
    assert_true(apart(kasa, plain) < 1e-4);
    gd_graft_destroy(kasa);
    gd_graft_destroy(base);
    gd_graft_destroy(plain);
}

static void kasa_without_its_own_is_lora(void **state)
{
    struct gd_graft *kasa = started("{\"r\": 5, \"use_kasa\": true}"), *plain = started("{\"r\": 5}");
    for (int p = 0; p < kasa->param_count + kasa->frozen_param_count; p++) {
        const struct gd_graft_param *param = &kasa->params[p];
        for (int64_t i = 0; i < param->shape[0] * param->shape[1]; i++) {
            float *value = &kasa->block[param->offset + i];
            *value = p >= kasa->param_count ? 0.0f : p % 3 == 2 ? 1.0f : *value + 0.01f * (float)(i % 7);
        }
    }
    copy_into(plain, kasa, false);
    assert_true(apart(kasa, plain) < 1e-5);
    gd_graft_destroy(kasa);
    gd_graft_destroy(plain);
}

/* PEFT keeps no dropped directions: they are taken from the base again. */
static void dropped_directions_are_found_again(void **state)
{
    struct gd_error err = {0};
    struct gd_graft *kasa = make_graft("{\"r\": 5, \"use_kasa\": true}"), *loaded = NULL;
    char *folder = save(kasa, "dropped"), *path = gd_format("%s/graftd_base.safetensors", folder);
    remove_manifest(folder);
    assert_int_equal(unlink(path), 0);
    must(gd_graft_load(&loaded, model, folder, &err), &err);
    assert_true(apart(kasa, loaded) < 1e-4);
    gd_graft_destroy(loaded);
    loaded = NULL;
    damage(folder, "graftd_base.safetensors", "broken");
    assert_false(gd_graft_load(&loaded, model, folder, &err));
    assert_null(loaded);
    gd_graft_destroy(kasa);
    gd_free(folder);
    gd_free(path);
}

static void check_count(const char *json, int64_t expected)
{
    struct gd_graft *graft = make_graft(json);
    assert_int_equal(graft->parameter_count, expected);
    gd_graft_destroy(graft);
}

static void check_count_of(const char *begin, const char *options, int64_t expected)
{
    char json[256];
    snprintf(json, sizeof(json), "%s%s}", begin, options);
    check_count(json, expected);
}

static void parameter_counts_follow_the_formulas(void **state)
{
    const struct gd_site *sites;
    int count = gd_model_linear_sites(model, &sites);
    int64_t lora = 0, vera = 0, out = 0;
    for (int i = 0; i < count; i++) {
        lora += 6 * (int64_t)(sites[i].in + sites[i].out);
        vera += 11 + sites[i].out;
        out += sites[i].out;
    }
    const struct gd_model_config *config = &model->config;
    int64_t kv = (int64_t)config->kv_heads * config->head_dim;
    check_count("{\"r\": 6}", lora);
    check_count("{\"r\": 6, \"use_dora\": true}", lora + out);
    check_count("{\"r\": 6, \"init_lora_weights\": \"pissa\"}", lora);
    check_count("{\"r\": 6, \"use_kasa\": true}", lora + 6 * count);
    check_count("{\"type\": \"loha\", \"r\": 6}", 2 * lora);
    /* q is 64 x 32, down 32 x 64: 64 = 8 * 8, 32 = 4 * 8; with a factor of 2, 2 * 32 and 2 * 16 */
    const char *lokr = "{\"type\": \"lokr\", \"target_modules\": [\"q_proj\", \"down_proj\"], ";
    check_count_of(lokr, "\"r\": 4", config->layers * 2 * (8 * 4 + 8 * 8));
    check_count_of(lokr, "\"r\": 3", config->layers * 2 * (8 * 4 + 3 * (8 + 8)));
    check_count_of(lokr, "\"r\": 3, \"decompose_both\": true", config->layers * 2 * (3 * (8 + 4) + 3 * (8 + 8)));
    check_count_of(lokr, "\"r\": 3, \"decompose_factor\": 2", config->layers * 2 * (2 * 2 + 3 * (32 + 16)));
    check_count_of(lokr, "\"r\": 3, \"decompose_factor\": 3", config->layers * 2 * (2 * 2 + 3 * (32 + 16)));
    check_count("{\"type\": \"oft\", \"oft_block_size\": 8, \"target_modules\": [\"q_proj\"]}", config->layers * 4 * 28);
    check_count("{\"type\": \"oft\", \"r\": 2, \"oft_block_size\": 0, \"target_modules\": [\"q_proj\"]}", config->layers * 2 * 120);
    check_count("{\"type\": \"oft\", \"oft_block_size\": 8, \"block_share\": true, \"target_modules\": [\"q_proj\"]}", config->layers * 28);
    check_count("{\"type\": \"vera\", \"r\": 11}", vera);
    check_count("{\"type\": \"dept\", \"num_virtual_tokens\": 9, \"r\": 4, \"max_length\": 50}",
                9 * config->width + 4 * (50 + config->width));
    check_count("{\"type\": \"dept\", \"num_virtual_tokens\": 9, \"max_length\": 50, \"budget_tokens\": 30}",
                9 * config->width + (21 * config->width / (50 + config->width)) * (50 + config->width));
    check_count("{\"type\": \"cpt\", \"cpt_token_ids\": [1, 2, 3]}", 3 * config->width);
    check_count("{\"type\": \"ept\", \"num_virtual_tokens\": 9, \"r\": 4, \"max_length\": 50, \"fusion_width\": 6, \"space_count\": 3, "
                "\"space_rank\": 2}",
                9 * config->width + 4 * (50 + config->width) + 2 * config->width * 6 + 1 + 2 * 2 * config->width * 2 + 3);
    check_count("{\"type\": \"p_tuning\", \"num_virtual_tokens\": 9, \"encoder_hidden_size\": 5}",
                (9 + 5 + 5 + 1) * config->width + 5 + 5 * 5 + 5);
    check_count("{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 9}", 9 * 2 * config->layers * kv);
    check_count("{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 9, \"prefix_projection\": true, \"encoder_hidden_size\": 5}",
                9 * kv + 5 * kv + 5 + 2 * config->layers * kv * (5 + 1));
    check_count("{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 9}", 9 * config->width);
    check_count("{\"type\": \"ln_tuning\"}", (2 * config->layers + 1) * config->width);
    check_count("{\"type\": \"ia3\"}", config->layers * (2 * kv + config->ffn_width));
    check_count("{\"type\": \"poly\", \"r\": 6, \"n_skills\": 5, \"n_splits\": 2, \"n_tasks\": 7, \"target_modules\": \"all-linear\"}",
                5 * lora + 7 * 2 * 5 * count);
    int64_t d = config->width, m = d / 4, module = 2 * d * m + m + d;
    check_count("{\"type\": \"houlsby\", \"reduction_factor\": 4}", config->layers * 2 * module);
    check_count("{\"type\": \"pfeiffer\", \"reduction_factor\": 4}", config->layers * module);
    check_count("{\"type\": \"parallel\", \"bottleneck_size\": 3}", config->layers * (2 * d * 3 + 3 + d));
    check_count("{\"type\": \"parallel\", \"bottleneck_size\": 3, \"use_bias\": false, \"learned_scaling\": true}",
                config->layers * (2 * d * 3 + 1));
}

/* Logits of 20 ids at the start of a graft. */
static void check_start(const char *json, const int32_t *ids, const float *expected, double tolerance)
{
    struct gd_graft *graft = make_graft(json);
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_graft_init(graft, graft->block, 7);
    float *logits = logits_of(graft, ids, 20);
    for (int64_t i = 0; i < 20 * (int64_t)model->config.vocab; i++)
        if (!(fabs((double)logits[i] - (double)expected[i]) <= tolerance))
            fail_msg("%s: logit %lld is %.9g, of the base %.9g", json, (long long)i, (double)logits[i], (double)expected[i]);
    gd_free(logits);
    gd_graft_destroy(graft);
}

static void the_start_is_the_base(void **state)
{
    int32_t ids[20];
    for (int i = 0; i < 20; i++)
        ids[i] = (i * 31 + 5) % model->config.vocab;
    struct gd_graft *base = make_graft("{\"type\": \"ia3\", \"target_modules\": [\"layers.0.self_attn.k_proj\"], "
                                       "\"feedforward_modules\": []}");
    base->block = gd_alloc_array((size_t)gd_graft_floats(base), sizeof(float));
    gd_graft_init(base, base->block, 1);
    float *expected = logits_of(base, ids, 20);
    for (int i = 0; i < gd_adapter_count; i++) {
        char *json = gd_format("{\"type\": \"%s\"%s}", gd_adapter_table[i]->name, strcmp(gd_adapter_table[i]->name, "lora") == 0  ? ", \"r\": 2"
                               : strcmp(gd_adapter_table[i]->name, "cpt") == 0 ? ", \"cpt_token_ids\": [3]"
                                                                               : "");
        struct gd_graft *graft = make_graft(json);
        if (graft->virtual_rows.count == 0) /* else sequences are longer from the start */
            check_start(json, ids, expected, 0);
        gd_graft_destroy(graft);
        gd_free(json);
    }
    check_start("{\"r\": 2, \"init_lora_weights\": \"gaussian\"}", ids, expected, 0);
    check_start("{\"r\": 2, \"use_dora\": true}", ids, expected, 0);
    check_start("{\"r\": 4, \"init_lora_weights\": \"pissa\"}", ids, expected, 1e-4);
    gd_free(expected);
    gd_graft_destroy(base);
}

/* Largest change of a logit when a bottleneck at its start, whose output is zero, is put on. */
static double effect_at_start(const char *json)
{
    int32_t ids[20];
    for (int i = 0; i < 20; i++)
        ids[i] = (i * 31 + 5) % model->config.vocab;
    struct gd_graft *graft = make_graft(json), *base = make_graft("{\"type\": \"ln_tuning\"}");
    struct gd_graft *both[] = {graft, base};
    float *logits[2];
    double worst = 0;
    for (int i = 0; i < 2; i++) {
        both[i]->block = gd_alloc_array((size_t)gd_graft_floats(both[i]), sizeof(float));
        gd_graft_init(both[i], both[i]->block, 7);
        logits[i] = logits_of(both[i], ids, 20);
    }
    assert_true(graft->block[0] != 0 && graft->block[1] != graft->block[0]); /* else only the last bias would ever learn */
    for (int i = 0; i < 20 * model->config.vocab; i++)
        worst = fmax(worst, fabs((double)logits[0][i] - (double)logits[1][i]));
    for (int i = 0; i < 2; i++) {
        gd_free(logits[i]);
        gd_graft_destroy(both[i]);
    }
    return worst;
}

static void the_residual_of_a_bottleneck_is_what_the_request_says(void **state)
{
    static const char *const blocks[] = {"self_attn", "mlp"};
    for (int i = 0; i < 2; i++)
        for (int parallel = 0; parallel < 2; parallel++)
            for (int residual = 0; residual < 2; residual++) {
                char *json = gd_format("{\"type\": \"%s\", \"residual\": %s, \"target_modules\": [\"%s\"]}",
                                       parallel ? "parallel" : "houlsby", residual ? "true" : "false", blocks[i]);
                double effect = effect_at_start(json);
                if (parallel == residual ? effect < 0.05 : effect != 0)
                    fail_msg("%s moves logits by %g", json, effect);
                gd_free(json);
            }
}

static void refuse(const char *json, const char *param, const char *part)
{
    struct gd_error err = {0};
    struct gd_adapter_config config;
    struct gd_graft *graft = NULL;
    cJSON *parsed = cJSON_Parse(json);
    bool ok = gd_adapter_config_parse(&config, parsed, &err);
    if (ok) {
        assert_false(gd_graft_create(&graft, model, &config, &err));
        gd_adapter_config_release(&config);
    }
    assert_string_equal(err.param, param);
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' lacks '%s'", err.message, part);
    cJSON_Delete(parsed);
}

static void bad_options_are_named(void **state)
{
    refuse("{\"type\": \"lorra\"}", "adapter.type", "'lora'");
    refuse("{\"r\": 0}", "adapter.r", "r");
    refuse("{\"rank\": 8}", "adapter.rank", "rank");
    refuse("{\"type\": \"ia3\", \"r\": 8}", "adapter.r", "not of 'ia3'");
    refuse("{\"d_initial\": 0.5}", "adapter.d_initial", "'vera'");
    refuse("{\"lora_alpa\": 5}", "adapter.lora_alpa", "lora_alpha");
    refuse("{\"loraplus_lr_ratio\": -1}", "adapter.loraplus_lr_ratio", "loraplus_lr_ratio");
    refuse("{\"type\": \"vera\", \"r\": 513}", "adapter.r", "512");
    refuse("{\"type\": \"ia3\", \"target_modules\": [\"q_proj\"]}", "adapter.feedforward_modules", "down_proj");
    refuse("{\"type\": \"ia3\", \"feedforward_modules\": [\"mlp\"]}", "adapter.feedforward_modules", "matches nothing");
    refuse("{\"type\": \"ln_tuning\", \"target_modules\": \"all-linear\"}", "adapter.target_modules",
           "its norms are: input_layernorm, post_attention_layernorm, norm");
    refuse("{\"type\": \"houlsby\", \"reduction_factor\": 1000}", "adapter.reduction_factor", "bottleneck of 0");
    refuse("{\"type\": \"pfeiffer\", \"bottleneck_size\": 300}", "adapter.bottleneck_size", "wide");
    refuse("{\"type\": \"pfeiffer\", \"non_linearity\": \"gelu_nw\"}", "adapter.non_linearity", "gelu_new");
    refuse("{\"type\": \"parallel\", \"target_modules\": [\"q_proj\"]}", "adapter.target_modules", "its blocks are: self_attn, mlp");
    refuse("{\"init_lora_weights\": \"gausian\"}", "adapter.init_lora_weights", "did you mean 'gaussian'?");
    refuse("{\"init_lora_weights\": false}", "adapter.init_lora_weights", "there are 'true', 'gaussian', 'pissa'");
    refuse("{\"init_lora_weights\": 5}", "adapter.init_lora_weights", "must be a string or true");
    refuse("{\"init_lora_weights\": \"pisa\"}", "adapter.init_lora_weights", "did you mean 'pissa'?");
    refuse("{\"init_lora_weights\": \"pissa\", \"use_dora\": true}", "adapter.use_dora", "leave one of them out");
    refuse("{\"init_lora_weights\": \"pissa\", \"r\": 300}", "adapter.r", "at most 256");
    refuse("{\"type\": \"loha\", \"r\": 500}", "adapter.r", "at most");
    refuse("{\"type\": \"loha\", \"lora_alpha\": 8}", "adapter.lora_alpha", "'lora'");
    refuse("{\"type\": \"lokr\", \"decompose_factor\": 0}", "adapter.decompose_factor", "give -1");
    refuse("{\"type\": \"oft\", \"oft_block_size\": 12}", "adapter.oft_block_size", "32 inputs of model.layers.0.self_attn.q_proj");
    refuse("{\"type\": \"oft\", \"r\": 4}", "adapter.oft_block_size", "not both");
    refuse("{\"type\": \"oft\", \"oft_block_size\": 0}", "adapter.oft_block_size", "give one of them");
    refuse("{\"type\": \"oft\", \"r\": 32, \"oft_block_size\": 0}", "adapter.r", "two and more");
    refuse("{\"type\": \"oft\", \"num_cayley_neumann_terms\": 1}", "adapter.num_cayley_neumann_terms", "2");
    refuse("{\"type\": \"poly\", \"n_splits\": 3}", "adapter.n_splits", "these do: 1, 2, 4, 8, 16, 32");
    refuse("{\"type\": \"poly\", \"r\": 40}", "adapter.r", "q_proj");
    refuse("{\"type\": \"poly\", \"poly_type\": \"pooly\"}", "adapter.poly_type", "'poly'");
    refuse("{\"use_kasa\": true, \"use_dora\": true}", "adapter.use_dora", "leave one of them out");
    refuse("{\"use_kasa\": true, \"init_lora_weights\": \"pissa\"}", "adapter.init_lora_weights", "leave one of them out");
    refuse("{\"use_kasa\": true, \"r\": 32}", "adapter.r", "q_proj, which has 32: r is at most 31");
    refuse("{\"use_kasa\": true, \"kasa_reduction\": \"men\"}", "adapter.kasa_reduction", "did you mean 'mean'?");
    refuse("{\"r\": 500}", "adapter.r", "q_proj");
    refuse("{\"target_modules\": [\"qproj\"]}", "adapter.target_modules", "q_proj, k_proj, v_proj");
    refuse("{\"type\": \"ept\", \"budget_tokens\": 41}", "adapter.budget_tokens", "budget_too_small");
    refuse("{\"type\": \"ept\", \"num_virtual_tokens\": 0}", "adapter.num_virtual_tokens", "at least 1");
    refuse("{\"type\": \"cpt\"}", "adapter.cpt_token_ids", "missing");
    refuse("{\"type\": \"cpt\", \"cpt_token_ids\": [5, 9999]}", "adapter.cpt_token_ids", "cpt_token_ids[1] is 9999");
    refuse("{\"type\": \"cpt\", \"cpt_token_ids\": [5, -1]}", "adapter.cpt_token_ids", "cpt_token_ids[1]");
    refuse("{\"type\": \"cpt\", \"cpt_token_ids\": \"abc\"}", "adapter.cpt_token_ids", "list");
    refuse("{\"type\": \"cpt\", \"cpt_token_ids\": [5], \"cpt_tokens_type_mask\": [1, 2]}", "adapter.cpt_tokens_type_mask", "has 2 entries");
    refuse("{\"type\": \"cpt\", \"cpt_token_ids\": [5, 6], \"cpt_mask\": [1, 0]}", "adapter.cpt_mask", "cpt_mask[1]");
    refuse("{\"type\": \"dept\", \"budget_tokens\": 40}", "adapter.budget_tokens", "no_budget_left_for_rank");
    refuse("{\"type\": \"dept\", \"budget_tokens\": 41}", "adapter.budget_tokens", "r = 0");
    refuse("{\"type\": \"dept\", \"max_length\": 250}", "adapter.max_length", "holds 216");
    refuse("{\"type\": \"dept\", \"num_virtual_tokens\": 0, \"r\": 0}", "adapter.r", "nothing is left to train");
    refuse("{\"type\": \"p_tuning\", \"encoder_reparameterization_type\": \"LSTM\"}", "adapter.encoder_reparameterization_type", "there are 'MLP'");
    refuse("{\"type\": \"prefix_tuning\", \"encoder_hidden_size\": 7}", "adapter.encoder_hidden_size", "prefix_projection");
    refuse("{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 4000}", "adapter.num_virtual_tokens", "at most");
    refuse("{\"type\": \"prompt_tuning\", \"prompt_tuning_init\": \"TEXT\"}", "adapter.prompt_tuning_init_text", "missing");
    refuse("{\"type\": \"prompt_tuning\", \"prompt_tuning_init_text\": \"x\"}", "adapter.prompt_tuning_init_text", "counts only if");
    refuse("{\"type\": \"prompt_tuning\", \"prompt_tuning_init\": \"TEXTS\"}", "adapter.prompt_tuning_init", "'TEXT'");
    refuse("{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 2, \"prompt_tuning_init\": \"TEXT\", "
           "\"prompt_tuning_init_text\": \"a text of more than two tokens\"}", "adapter.prompt_tuning_init_text", "for 2 virtual ones");
    refuse("{\"target_modules\": [5]}", "adapter.target_modules", "strings");
}

static void load_must_fail(const char *folder, const char *part)
{
    struct gd_error err = {0};
    struct gd_graft *loaded = NULL;
    assert_false(gd_graft_read(&loaded, model, folder, &err));
    assert_null(loaded);
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' lacks '%s'", err.message, part);
}

static void a_changed_file_is_never_served(void **state)
{
    struct gd_graft *graft = make_graft("{\"r\": 2}");
    char *folder = save(graft, "changed");
    damage(folder, "adapter_config.json", "{}");
    load_must_fail(folder, "adapter_config.json");
    gd_graft_destroy(graft);
    gd_free(folder);
}

static void leftovers_and_foreign_bases_are_errors(void **state)
{
    struct gd_graft *graft = make_graft("{\"r\": 2, \"target_modules\": [\"q_proj\"]}");
    char *folder = save(graft, "partial");
    remove_manifest(folder);
    damage(folder, "adapter_config.json",
           "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\", \"k_proj\"]}");
    load_must_fail(folder, "k_proj");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\"]}");
    load_must_fail(folder, "shape");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 2, \"use_dora\": true, \"target_modules\": [\"q_proj\"]}");
    load_must_fail(folder, "lora_magnitude_vector");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 2, \"use_qalora\": true, \"target_modules\": [\"q_proj\"]}");
    load_must_fail(folder, "use_qalora");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 2, \"init_lora_weights\": \"pissa\", \"target_modules\": [\"q_proj\"]}");
    load_must_fail(folder, "path_initial_model_for_weight_conversion");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"OFT\", \"oft_block_size\": 8, \"target_modules\": [\"q_proj\"]}");
    load_must_fail(folder, "sign of the rotation");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"OFT\", \"oft_block_size\": 8, \"use_cayley_neumann\": true, \"peft_version\": \"0.17.1\"}");
    load_must_fail(folder, "PEFT 0.17.1 is another series");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"XLORA\"}");
    load_must_fail(folder, "XLORA");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"VERA\"}");
    load_must_fail(folder, "vera_lambda_b");
    damage(folder, "adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\"]}");
    char *digest = gd_format("{\"base_digest\": \"%064d\"}", 7);
    damage(folder, "graftd.json", digest);
    load_must_fail(folder, "base model");
    gd_free(digest);
    gd_graft_destroy(graft);
    gd_free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adapters_written_by_peft_give_pefts_logits),
        cmocka_unit_test(what_is_saved_is_read_back_exactly),
        cmocka_unit_test(what_is_kept_in_another_form_is_resumed_exactly),
        cmocka_unit_test(kasa_starts_from_the_truncated_base),
        cmocka_unit_test(kasa_without_its_own_is_lora),
        cmocka_unit_test(dropped_directions_are_found_again),
        cmocka_unit_test(parameter_counts_follow_the_formulas),
        cmocka_unit_test(the_start_is_the_base),
        cmocka_unit_test(the_residual_of_a_bottleneck_is_what_the_request_says),
        cmocka_unit_test(bad_options_are_named),
        cmocka_unit_test(a_changed_file_is_never_served),
        cmocka_unit_test(leftovers_and_foreign_bases_are_errors),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
