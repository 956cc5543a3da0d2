/*
 * A mixture of experts against transformers in float32 (tests/fixtures/make_mixtral.py): hidden states, the loss and its
 * balance, gradients of the bare weights and of a LoRA on everything; from a folder and from GGUF.
 */
#include "engine/base/philox.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/dequant.h"
#include "engine/tensor/device.h"
#include "engine/train/passes.h"
#include "tests/unit/base/scratch.h"
#include "tests/unit/model/forward.h"

#include <math.h>
#include <unistd.h>

#define COEFFICIENT 0.05
#define ROWS 2

static const char *const lora = "{\"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", "
                                "\"gate\", \"w1\", \"w2\", \"w3\"]}";

struct setting {
    struct gd_model *model;
    struct gd_safetensors *file;
    struct gd_graft *graft;
    struct gd_dataset data;
    struct gd_passes passes;
    struct gd_batch batch;
    float *block, *grad;
    double weight;
};

static struct gd_tensor tensor(const struct setting *s, const char *prefix, const char *name)
{
    struct gd_tensor found;
    char key[256];
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    if (!gd_safetensors_find(s->file, key, &found))
        fail_msg("%s is not in the fixture", key);
    return found;
}

static double number(const struct setting *s, const char *name)
{
    return (double)*(const float *)tensor(s, "", name).data;
}

static void open_model(struct setting *s, const char *name)
{
    struct gd_error err = {0};
    char *path = fixture_path("tiny-mixtral/reference.safetensors");
    if (name[0] == '/')
        must(gd_model_open(&s->model, "mixtral", name, &err), &err);
    else
        s->model = open_fixture(name);
    must(gd_safetensors_open(&s->file, path, &err), &err);
    gd_free(path);
}

static void load_rows(struct setting *s)
{
    struct gd_dataset *data = &s->data;
    data->rows = gd_alloc_array(ROWS, sizeof(*data->rows));
    data->tokens = gd_alloc_array(64, sizeof(int32_t));
    data->weights = gd_alloc_array(64, sizeof(float));
    for (; data->row_count < ROWS; data->row_count++) {
        struct gd_tensor ids = tensor(s, "ids.", data->row_count == 0 ? "0" : "1");
        data->rows[data->row_count] = (struct gd_dataset_row){.line = data->row_count + 1, .offset = data->token_count, .length = (int32_t)ids.shape[0]};
        for (int64_t i = 0; i < ids.shape[0]; i++) {
            data->weights[data->token_count] = 1;
            data->tokens[data->token_count++] = ((const int32_t *)ids.data)[i];
        }
        s->weight += (double)(ids.shape[0] - 1);
    }
}

static struct setting *begin(const char *model, const char *adapter, double coefficient)
{
    struct setting *s = gd_alloc(sizeof(*s));
    struct gd_error err = {0};
    struct gd_adapter_config config;
    open_model(s, model);
    cJSON *json = cJSON_Parse(adapter);
    must(gd_adapter_config_parse(&config, json, &err), &err);
    must(gd_graft_create(&s->graft, s->model, &config, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    s->block = gd_alloc_array((size_t)gd_graft_floats(s->graft), sizeof(float));
    s->grad = gd_alloc_array((size_t)gd_graft_floats(s->graft), sizeof(float));
    gd_graft_init(s->graft, s->block, 1);
    load_rows(s);
    gd_passes_init(&s->passes, s->model, s->graft, gd_objective_find("supervised"), NULL, GD_F32, s->block, s->grad);
    s->passes.router_loss = coefficient;
    gd_batch_init(&s->batch, 256, GD_BATCH_SEGMENTS_MAX);
    return s;
}

static void end(struct setting *s)
{
    gd_passes_release(&s->passes);
    gd_batch_release(&s->batch);
    gd_graft_destroy(s->graft);
    gd_model_destroy(s->model);
    gd_safetensors_close(s->file);
    gd_free(s->block);
    gd_free(s->grad);
    gd_free(s->data.rows);
    gd_free(s->data.tokens);
    gd_free(s->data.weights);
    gd_free(s);
}

static struct gd_pass_result run(struct setting *s)
{
    static const int64_t rows[ROWS] = {0, 1};
    struct gd_error err = {0};
    struct gd_pass_result result;
    gd_batch_fill(&s->batch, &s->data, rows, ROWS, gd_token_bucket((int)s->data.token_count));
    must(gd_passes_run(&s->passes, true, &s->batch, 1.0 / s->weight, NULL, NULL, &result, &err), &err);
    return result;
}

static double distance(const float *a, const float *b, int64_t count)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / size);
}

/* ---- the model ---- */

static float *hidden_of(const struct setting *s, enum gd_dtype act)
{
    struct gd_tensor a = tensor(s, "ids.", "0"), b = tensor(s, "ids.", "1");
    struct prompt prompts[] = {{a.data, (int)a.shape[0]}, {b.data, (int)b.shape[0]}};
    return forward_with(s->model, prompts, 2, act, NULL);
}

/* Logits of the last token of each row. */
static double logits_distance(const struct setting *s, const float *logits, double *largest)
{
    int64_t vocab = s->model->config.vocab, ends[] = {tensor(s, "ids.", "0").shape[0] - 1, tensor(s, "hidden", "").shape[0] - 1};
    const float *expected = tensor(s, "logits", "").data;
    double worst = 0;
    *largest = 0;
    for (int i = 0; i < 2; i++) {
        worst = fmax(worst, distance(logits + ends[i] * vocab, expected + i * vocab, vocab));
        *largest = fmax(*largest, largest_difference(logits + ends[i] * vocab, expected + i * vocab, vocab));
    }
    return worst;
}

static void logits_equal_transformers(void **state)
{
    static const struct {
        const char *name;
        enum gd_quantization quantization;
        enum gd_dtype act;
        double relative;
    } cases[] = {
        {"tiny-mixtral", GD_QUANTIZATION_NONE, GD_F32, 1e-5},
        {"tiny-mixtral", GD_QUANTIZATION_NONE, GD_BF16, 5e-2},
        {"tiny-mixtral.gguf", GD_QUANTIZATION_NONE, GD_F32, 3e-2},  /* experts in Q8_0 */
        {"tiny-mixtral.gguf", GD_QUANTIZATION_FILE, GD_F32, 3e-2},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct setting s = {0};
        struct gd_error err = {0};
        int plain;
        double largest;
        open_model(&s, cases[i].name);
        must(gd_model_quantise(s.model, cases[i].quantization, &plain, &err), &err);
        float *logits = hidden_of(&s, cases[i].act);
        double relative = logits_distance(&s, logits, &largest);
        print_message("%s, %s: relative %.2e, largest difference %.2e\n", cases[i].name, gd_dtype_name(cases[i].act), relative, largest);
        assert_true(relative < cases[i].relative);
        gd_free(logits);
        gd_model_destroy(s.model);
        gd_safetensors_close(s.file);
    }
}

static void sites_are_named_as_their_modules(void **state)
{
    static const char *const names[] = {"tiny-mixtral", "tiny-mixtral.gguf"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct gd_model *model = open_fixture(names[i]);
        const struct gd_site *sites;
        assert_int_equal(gd_model_linear_sites(model, &sites), 2 * (5 + 3 * 4));
        assert_string_equal(sites[4].name, "model.layers.0.block_sparse_moe.gate");
        assert_true(sites[4].router);
        assert_int_equal(sites[4].out, 4);
        assert_string_equal(sites[5 + 2].name, "model.layers.0.block_sparse_moe.experts.2.w1");
        assert_string_equal(sites[17 + 5 + 4 + 3].name, "model.layers.1.block_sparse_moe.experts.3.w3");
        assert_string_equal(sites[17 + 5 + 8].name, "model.layers.1.block_sparse_moe.experts.0.w2");
        assert_string_equal(gd_weight_name(sites[17 + 5 + 8].weight), "model.layers.1.block_sparse_moe.experts.0.w2.weight");
        for (int j = 0; j < 34; j++)
            assert_int_equal(sites[j].index, j);
        assert_int_equal(model->config.experts, 4);
        assert_int_equal(model->config.experts_chosen, 2);
        assert_int_equal(model->parameter_count, 320 * 32 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 4 * 32 + 12 * 32 * 32));
        gd_model_destroy(model);
    }
}

/* ---- training ---- */

static void gradients_of_a_lora_on_everything_equal_transformers(void **state)
{
    struct setting *s = begin("tiny-mixtral", lora, COEFFICIENT);
    for (int i = 0; i < s->graft->param_count; i++) {
        struct gd_tensor start = tensor(s, "lora.", s->graft->params[i].name);
        memcpy(s->block + s->graft->params[i].offset, start.data, (size_t)gd_tensor_count(&start) * sizeof(float));
    }
    assert_int_equal(s->graft->param_count, 2 * 2 * 17);
    struct gd_pass_result result = run(s);
    assert_true(fabs(result.loss - number(s, "lora_loss")) < 1e-4);
    assert_true(fabs(result.balance - number(s, "lora_aux_loss")) < 1e-5);
    double worst = 0;
    for (int i = 0; i < s->graft->param_count; i++) {
        const struct gd_graft_param *param = &s->graft->params[i];
        struct gd_tensor expected = tensor(s, "lora_grad.", param->name);
        double off = distance(s->grad + param->offset, expected.data, gd_tensor_count(&expected));
        worst = fmax(worst, off);
        if (!(off < 1e-4))
            fail_msg("gradient of %s differs by %.3g relative", param->name, off);
    }
    print_message("LoRA: worst relative difference of a gradient %.1e\n", worst);
    end(s);
}

static void gradients_of_the_weights_equal_transformers(void **state)
{
    struct setting *s = begin("tiny-mixtral", "{\"type\": \"full\"}", COEFFICIENT);
    struct gd_pass_result result = run(s);
    assert_true(fabs(result.loss - number(s, "loss")) < 1e-4);
    assert_true(fabs(result.balance - number(s, "aux_loss")) < 1e-5);
    double rows = 0, worst = 0;
    for (int e = 0; e < 4; e++)
        rows += (double)result.expert_rows[e];
    assert_true(rows == 2 * 2 * (double)s->data.token_count); /* layers, experts of each row, and no padding */
    int compared = 0;
    for (int i = 0; i < s->graft->param_count; i++) {
        const struct gd_graft_param *param = &s->graft->params[i];
        const char *name = param->name + strlen("base_model.model.");
        char key[256];
        struct gd_tensor expected;
        snprintf(key, sizeof(key), "grad.%s", name);
        if (!gd_safetensors_find(s->file, key, &expected))
            continue;
        double off = distance(s->grad + param->offset, expected.data, gd_tensor_count(&expected));
        worst = fmax(worst, off);
        if (!(off < 1e-4))
            fail_msg("gradient of %s differs by %.3g relative", name, off);
        compared++;
    }
    assert_int_equal(compared, 9);
    print_message("weights: worst relative difference of a gradient %.1e\n", worst);
    end(s);
}

/* ---- adapters as PEFT writes them from stacked experts ---- */

static void save_peft(const struct setting *s, const char *folder, const char *config)
{
    struct gd_error err = {0};
    struct gd_safetensors_entry entries[64];
    int count = 0;
    char *path = gd_format("%s/adapter_model.safetensors", folder), *config_path = gd_format("%s/adapter_config.json", folder);
    for (int i = 0; i < gd_safetensors_count(s->file); i++)
        if (strncmp(gd_safetensors_name(s->file, i), "peft.", 5) == 0)
            entries[count++] = (struct gd_safetensors_entry){gd_safetensors_name(s->file, i) + 5, gd_safetensors_at(s->file, i)};
    assert_true(count > 0);
    must(gd_safetensors_write(path, entries, count, NULL, &err), &err);
    must(gd_file_write_durable(config_path, config, strlen(config), &err), &err);
    gd_free(path);
    gd_free(config_path);
}

/* scale B A of a module, into out [out, in]. */
static void product(const struct gd_graft *graft, int at, double scale, double *out)
{
    const struct gd_graft_param *a = &graft->params[at], *b = a + 1;
    for (int64_t o = 0; o < b->shape[0]; o++)
        for (int64_t i = 0; i < a->shape[1]; i++) {
            double sum = 0;
            for (int64_t r = 0; r < a->shape[0]; r++)
                sum += (double)graft->block[b->offset + o * b->shape[1] + r] * (double)graft->block[a->offset + r * a->shape[1] + i];
            out[o * a->shape[1] + i] = scale * sum;
        }
}

static void stacked_adapters_of_peft_are_read(void **state)
{
    static const char *const good = "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\"], "
                                    "\"target_parameters\": [\"gate_up_proj\", \"gate.weight\", \"down_proj\"], "
                                    "\"rank_pattern\": {\".*\\\\.gate_up_proj\": 4}, \"alpha_pattern\": {\".*\\\\.gate_up_proj\": 8}}";
    static const char *const bad = "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"target_parameters\": [\"gate_up_proj\"], "
                                   "\"rank_pattern\": {\"q_proj\": 4}}";
    struct setting *s = begin("tiny-mixtral", lora, 0);
    struct gd_error err = {0};
    struct gd_graft *read = NULL;
    char folder[] = "/tmp/graftd-experts-XXXXXX";
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < s->graft->param_count; i++) {
        struct gd_tensor start = tensor(s, "lora.", s->graft->params[i].name);
        memcpy(s->block + s->graft->params[i].offset, start.data, (size_t)gd_tensor_count(&start) * sizeof(float));
    }
    s->graft->block = s->block;
    save_peft(s, folder, good);
    must(gd_graft_load(&read, s->model, folder, &err), &err);
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(s->model, &sites);
    for (int i = 0; i < site_count; i++) {
        double wanted[32 * 32], got[32 * 32];
        assert_true(read->site_param[i] >= 0);
        product(s->graft, s->graft->site_param[i], s->graft->scale, wanted);
        product(read, read->site_param[i], read->scale, got);
        for (int k = 0; k < sites[i].in * sites[i].out; k++)
            if (!(fabs(got[k] - wanted[k]) < 1e-6))
                fail_msg("%s: entry %d is %g, not %g", sites[i].name, k, got[k], wanted[k]);
    }
    gd_graft_destroy(read);
    read = NULL;
    save_peft(s, folder, bad);
    assert_false(gd_graft_load(&read, s->model, folder, &err));
    assert_string_equal(err.param, "rank_pattern");
    s->graft->block = NULL;
    assert_true(gd_remove_tree(folder, &err));
    end(s);
}

/* Layers made again in the backward pass dispatch their rows again. */
static void layers_made_again_give_the_same_bits(void **state)
{
    struct setting *s[2];
    for (int i = 0; i < 2; i++) {
        s[i] = begin("tiny-mixtral", lora, COEFFICIENT);
        s[i]->passes.recompute = i == 1;
        for (int64_t k = 0; k < s[i]->graft->parameter_count; k++)
            s[i]->block[k] += 0.01f * (float)(k % 13 - 6);
        run(s[i]);
    }
    assert_memory_equal(s[0]->grad, s[1]->grad, (size_t)s[0]->graft->parameter_count * sizeof(float));
    end(s[0]);
    end(s[1]);
}

static void all_linear_leaves_the_router_to_those_who_name_it(void **state)
{
    static const struct {
        const char *adapter;
        bool router;
    } cases[] = {
        {"{\"r\": 2}", false},
        {"{\"r\": 2, \"target_modules\": [\"all-linear\", \"gate\"]}", true},
        {"{\"type\": \"ia3\", \"target_modules\": [\"k_proj\", \"w2\"], \"feedforward_modules\": [\"w2\"]}", false},
        {"{\"type\": \"full\"}", true},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct setting *s = begin("tiny-mixtral", cases[i].adapter, 0);
        const struct gd_site *sites;
        gd_model_linear_sites(s->model, &sites);
        assert_int_equal(s->graft->site_param[sites[4].index] >= 0, cases[i].router);
        run(s);
        end(s);
    }
}

/* Methods whose parts of a linear module the rows of an expert go through. */
static void every_method_trains_on_experts(void **state)
{
    static const char *const adapters[] = {
        "{\"r\": 2, \"use_dora\": true}", "{\"r\": 2, \"lora_dropout\": 0.1}", "{\"r\": 2, \"init_lora_weights\": \"pissa\"}",
        "{\"r\": 2, \"use_kasa\": true}", "{\"type\": \"loha\", \"r\": 2}", "{\"type\": \"lokr\", \"r\": 2}",
        "{\"type\": \"oft\", \"oft_block_size\": 8}", "{\"type\": \"vera\", \"r\": 8}", "{\"type\": \"bitfit\"}", "{\"type\": \"ln_tuning\"}",
        "{\"type\": \"pfeiffer\"}", "{\"type\": \"hft\"}",
    };
    for (size_t i = 0; i < GD_COUNT(adapters); i++) {
        struct gd_error err = {0};
        struct gd_adapter_config config;
        cJSON *json = cJSON_Parse(adapters[i]);
        print_message("%s\n", adapters[i]);
        must(gd_adapter_config_parse(&config, json, &err), &err);
        gd_adapter_config_release(&config);
        cJSON_Delete(json);
        struct setting *s = begin("tiny-mixtral", adapters[i], COEFFICIENT);
        static const int64_t rows[ROWS] = {0, 1};
        int32_t key[4] = {1, 2, 3, 4};
        struct gd_pass_result result;
        gd_batch_fill(&s->batch, &s->data, rows, ROWS, gd_token_bucket((int)s->data.token_count));
        must(gd_passes_run(&s->passes, true, &s->batch, 1.0 / s->weight, key, NULL, &result, &err), &err);
        double norm = 0;
        for (int64_t k = 0; k < s->graft->parameter_count; k++)
            norm += (double)s->grad[k] * (double)s->grad[k];
        assert_true(isfinite(norm) && norm > 0);
        end(s);
    }
}

/* ---- quantised experts ---- */

#define WIDE 64 /* a whole number of blocks */

/* A model of two experts a layer in `folder`; rounded: its linear weights are what NF4 makes of the others'. */
static void write_wide(const char *folder, bool rounded)
{
    static const char *const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                        "block_sparse_moe.experts.0.w1", "block_sparse_moe.experts.0.w2", "block_sparse_moe.experts.0.w3",
                                        "block_sparse_moe.experts.1.w1", "block_sparse_moe.experts.1.w2", "block_sparse_moe.experts.1.w3",
                                        "block_sparse_moe.gate", "input_layernorm", "post_attention_layernorm"};
    static const char config[] = "{\"model_type\": \"mixtral\", \"vocab_size\": 320, \"hidden_size\": 64, \"intermediate_size\": 64, "
                                 "\"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"num_local_experts\": 2, "
                                 "\"num_experts_per_tok\": 1, \"tie_word_embeddings\": true, \"sliding_window\": null}";
    struct gd_safetensors_entry entries[GD_COUNT(names) + 2];
    struct gd_error err = {0};
    char *paths[] = {gd_format("%s/config.json", folder), gd_format("%s/model.safetensors", folder), gd_format("%s/tokenizer.json", folder),
                     fixture_path("tiny-mixtral/tokenizer.json")};
    must(gd_mkdirs(folder, &err), &err);
    for (size_t i = 0; i < GD_COUNT(entries); i++) {
        const char *part = i < GD_COUNT(names) ? names[i] : NULL;
        bool norm = part == NULL ? i == GD_COUNT(names) : strstr(part, "norm") != NULL, table = part == NULL && !norm;
        int64_t rows = table ? 320 : norm ? 1 : strstr(part, ".gate") != NULL ? 2 : WIDE, count = rows * WIDE;
        float *values = gd_alloc_array((size_t)count, sizeof(float));
        for (int64_t k = 0; k < count; k++) {
            struct gd_philox bits = gd_philox4(7, i, (uint64_t)k);
            values[k] = norm ? 1 : (table ? 0.5f : 0.15f) * gd_normal_from_bits(bits.v[0], bits.v[1]);
        }
        if (rounded && rows == WIDE) {
            void *blocks = gd_alloc_array(gd_dtype_bytes(GD_NF4, count), 1);
            gd_quantise_nf4(blocks, values, count / gd_dtype_block(GD_NF4));
            gd_convert_to_f32(values, blocks, GD_NF4, count);
            gd_free(blocks);
        }
        entries[i].name = part != NULL ? gd_format("model.layers.0.%s.weight", part)
                                       : gd_strdup(norm ? "model.norm.weight" : "model.embed_tokens.weight");
        entries[i].tensor = (struct gd_tensor){.dtype = GD_F32, .rank = norm ? 1 : 2, .shape = {norm ? WIDE : rows, norm ? 0 : WIDE}, .data = values};
    }
    must(gd_safetensors_write(paths[1], entries, (int)GD_COUNT(entries), NULL, &err), &err);
    must(gd_file_write_durable(paths[0], config, strlen(config), &err), &err);
    assert_int_equal(symlink(paths[3], paths[2]), 0);
    for (size_t i = 0; i < GD_COUNT(entries); i++) {
        gd_free((char *)(uintptr_t)entries[i].name);
        gd_free(entries[i].tensor.data);
    }
    for (size_t i = 0; i < GD_COUNT(paths); i++)
        gd_free(paths[i]);
}

/* Quantised experts give the loss and the gradients of the numbers that their blocks hold. */
static void check_quantised(const char *quantised, const char *plain, enum gd_quantization quantization, int left, const char *adapter)
{
    struct setting *s[2] = {begin(quantised, adapter, 0), begin(plain, adapter, 0)};
    struct gd_error err = {0};
    int count = -1;
    must(gd_model_quantise(s[0]->model, quantization, &count, &err), &err);
    assert_int_equal(count, left);
    for (int64_t k = 0; k < s[0]->graft->parameter_count; k++)
        s[0]->block[k] = s[1]->block[k] += 0.02f * (float)(k % 11 - 5);
    double losses[] = {run(s[0]).loss, run(s[1]).loss};
    double apart = distance(s[0]->grad, s[1]->grad, s[1]->graft->parameter_count);
    print_message("%s: losses %.7f and %.7f, gradients %.1e apart\n", gd_quantization_names[quantization], losses[0], losses[1], apart);
    assert_true(fabs(losses[0] - losses[1]) < 1e-5 && apart < 1e-4);
    end(s[0]);
    end(s[1]);
}

static void quantised_experts_are_the_numbers_that_their_blocks_hold(void **state)
{
    char folder[] = "/tmp/graftd-experts-XXXXXX";
    struct gd_error err = {0};
    assert_non_null(mkdtemp(folder));
    char *exact = gd_format("%s/exact", folder), *rounded = gd_format("%s/rounded", folder);
    write_wide(exact, false);
    write_wide(rounded, true);
    check_quantised(exact, rounded, GD_QUANTIZATION_NF4, 1, lora); /* the router chooses: it stays */
    check_quantised("tiny-mixtral.gguf", "tiny-mixtral.gguf", GD_QUANTIZATION_FILE, 10, lora);
    assert_true(gd_remove_tree(folder, &err));
    gd_free(exact);
    gd_free(rounded);
}

int main(void)
{
    struct gd_error err = {0};
    if (!gd_device_init("cpu", 2, &err))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sites_are_named_as_their_modules),
        cmocka_unit_test(logits_equal_transformers),
        cmocka_unit_test(gradients_of_a_lora_on_everything_equal_transformers),
        cmocka_unit_test(gradients_of_the_weights_equal_transformers),
        cmocka_unit_test(stacked_adapters_of_peft_are_read),
        cmocka_unit_test(layers_made_again_give_the_same_bits),
        cmocka_unit_test(all_linear_leaves_the_router_to_those_who_name_it),
        cmocka_unit_test(every_method_trains_on_experts),
        cmocka_unit_test(quantised_experts_are_the_numbers_that_their_blocks_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
