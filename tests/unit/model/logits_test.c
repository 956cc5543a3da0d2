/* logits_test.c - the graph against logits by transformers in float32, on tiny models and on SmolLM2. */
#include "engine/model/files.h"
#include "engine/model/parts.h"
#include "engine/tensor/device.h"
#include "tests/unit/model/forward.h"
#include <math.h>
#include "tests/unit/tensor/reading.h"

struct reference {
    struct gd_safetensors *file;
};

static struct reference open_reference(const char *name)
{
    struct reference reference = {NULL};
    struct gd_error err = {0};
    char *path = fixture_path(name);
    if (!gd_safetensors_open(&reference.file, path, &err))
        fail_msg("%s", err.message);
    gd_free(path);
    return reference;
}

/* "logits.2"; false when there is no such tensor. */
static bool numbered(const struct reference *reference, const char *name, int number, struct gd_tensor *out)
{
    char full[64];
    snprintf(full, sizeof full, "%s.%d", name, number);
    return gd_safetensors_find(reference->file, full, out);
}

/* ---- tiny models ---- */

struct parity {
    double largest;   /* |difference| */
    double relative;  /* norm of the difference over norm of the reference, all rows */
    double worst_row; /* the same for the worst row */
    int top1, rows;
};

static struct parity compare(const struct gd_model *model, const struct reference *reference, enum gd_dtype act)
{
    struct parity parity = {0};
    struct gd_tensor ids, wanted;
    int vocab = model->config.vocab;
    double all_differences = 0, all_norms = 0;
    for (int k = 0; numbered(reference, "ids", k, &ids) && numbered(reference, "logits", k, &wanted); k++) {
        int count = (int)ids.shape[0], rows = (int)wanted.shape[0]; /* the last ones */
        float *logits = forward(model, ids.data, count, act), *last = logits + (size_t)(count - rows) * (size_t)vocab;
        parity.largest = fmax(parity.largest, largest_difference(last, wanted.data, (int64_t)rows * vocab));
        for (int t = 0; t < rows; t++) {
            const float *row = last + (size_t)t * (size_t)vocab;
            const float *expected = (const float *)wanted.data + (size_t)t * (size_t)vocab;
            double difference = 0, norm = 0;
            for (int v = 0; v < vocab; v++) {
                difference += pow((double)row[v] - (double)expected[v], 2);
                norm += pow((double)expected[v], 2);
            }
            all_differences += difference;
            all_norms += norm;
            parity.worst_row = fmax(parity.worst_row, sqrt(difference / norm));
            parity.top1 += argmax(row, vocab) == argmax(expected, vocab);
            parity.rows++;
        }
        gd_free(logits);
    }
    assert_true(parity.rows > 20);
    parity.relative = sqrt(all_differences / all_norms);
    return parity;
}

static const char *const tiny_names[] = {"tiny-gemma3-sees", "tiny-llama",   "tiny-llama-sharded", "tiny-llama-yarn",  "tiny-llama3-rope",
                                         "tiny-mistral", "tiny-qwen2",         "tiny-qwen2-window", "tiny-qwen3", "tiny-phi3",
                                         "tiny-gemma2",  "tiny-gemma3",        "tiny-gpt2",         "tiny-neox",
                                         "tiny-opt",     "tiny-opt-after", "tiny-opt-350m",     "tiny-phi3-long"};

static void f32_logits_equal_the_reference(void **state)
{
    for (size_t i = 0; i < GD_COUNT(tiny_names); i++) {
        char *path = gd_format("%s/reference.safetensors", tiny_names[i]);
        struct reference reference = open_reference(path);
        struct gd_model *model = open_fixture(tiny_names[i]);
        struct parity parity = compare(model, &reference, GD_F32);
        print_message("%s: largest difference %.2e, top-1 %d of %d\n", tiny_names[i], parity.largest, parity.top1,
                      parity.rows);
        assert_true(parity.largest < 1e-4);
        assert_int_equal(parity.top1, parity.rows);
        gd_model_destroy(model);
        gd_safetensors_close(reference.file);
        gd_free(path);
    }
}

/* PyTorch's own bf16 on these models: relative 0.02, worst row 0.03 to 0.10. */
static void bf16_logits_are_near_the_reference(void **state)
{
    for (size_t i = 0; i < GD_COUNT(tiny_names); i++) {
        char *path = gd_format("%s/reference.safetensors", tiny_names[i]);
        struct reference reference = open_reference(path);
        struct gd_model *model = open_fixture(tiny_names[i]);
        struct parity parity = compare(model, &reference, GD_BF16);
        print_message("%s in bf16: relative %.2e, worst row %.2e, top-1 %d of %d\n", tiny_names[i], parity.relative,
                      parity.worst_row, parity.top1, parity.rows);
        assert_true(parity.relative < 3e-2);
        assert_true(parity.worst_row < 1e-1);
        gd_model_destroy(model);
        gd_safetensors_close(reference.file);
        gd_free(path);
    }
}

/* ---- GGUF twins ---- */

static void check_greedy(const struct gd_model *model, const struct reference *reference)
{
    struct gd_tensor prompt, greedy;
    int32_t ids[128];
    assert_true(gd_safetensors_find(reference->file, "ids.1", &prompt));
    assert_true(gd_safetensors_find(reference->file, "greedy", &greedy));
    int count = (int)prompt.shape[0], more = (int)greedy.shape[0], vocab = model->config.vocab;
    memcpy(ids, prompt.data, (size_t)count * sizeof ids[0]);
    memcpy(ids + count, greedy.data, (size_t)more * sizeof ids[0]);
    float *logits = forward(model, ids, count + more - 1, GD_F32);
    for (int t = 0; t < more; t++)
        assert_int_equal(argmax(logits + (size_t)(count - 1 + t) * (size_t)vocab, vocab), ids[count + t]);
    gd_free(logits);
}

/* The folder's model with its matrices rounded to F16, as the GGUF twin has them. */
static struct gd_model *open_rounded(const char *folder)
{
    static const char *const others[] = {"config.json", "tokenizer.json", "tokenizer_config.json"};
    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    struct gd_safetensors *file = NULL;
    struct gd_safetensors_entry entries[64];
    struct gd_model *model = NULL;
    char *name = gd_format("%s/model.safetensors", folder), *from = fixture_path(name);
    char *to = scratch_path(&scratch, "model.safetensors");
    assert_true(gd_safetensors_open(&file, from, &err));
    int count = gd_safetensors_count(file);
    for (int i = 0; i < count; i++) {
        struct gd_tensor *tensor = &entries[i].tensor;
        *tensor = gd_safetensors_at(file, i);
        entries[i].name = gd_safetensors_name(file, i);
        const float *numbers = tensor->data;
        tensor->data = gd_alloc_array((size_t)gd_tensor_count(tensor), sizeof(float));
        memcpy(tensor->data, numbers, (size_t)gd_tensor_count(tensor) * sizeof(float));
        if (tensor->rank == 2) {
            gd_convert_from_f32(tensor->data, GD_F16, numbers, gd_tensor_count(tensor));
            tensor->dtype = GD_F16;
        }
    }
    assert_true(gd_safetensors_write(to, entries, count, NULL, &err));
    for (int i = 0; i < count; i++)
        gd_free(entries[i].tensor.data);
    gd_safetensors_close(file);
    for (size_t i = 0; i < GD_COUNT(others); i++)
        scratch_copy(&scratch, folder, others[i]);
    if (!gd_model_open(&model, folder, scratch.folder, &err))
        fail_msg("%s", err.message);
    gd_free(name);
    gd_free(from);
    gd_free(to);
    scratch_end(&scratch);
    return model;
}

static void f16_gguf_twins_give_the_logits_of_their_folders(void **state)
{
    static const char *const names[] = {"tiny-llama", "tiny-llama3-rope", "tiny-qwen2", "tiny-qwen3", "tiny-gemma2", "tiny-gemma3"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        char *path = gd_format("%s/reference.safetensors", names[i]), *twin = gd_format("%s-f16.gguf", names[i]);
        struct reference reference = open_reference(path);
        struct gd_model *gguf = open_fixture(twin), *folder = open_fixture(names[i]), *rounded = open_rounded(names[i]);
        struct gd_tensor ids;
        assert_true(numbered(&reference, "ids", 2, &ids));
        int count = (int)ids.shape[0];
        float *a = forward(gguf, ids.data, count, GD_F32), *b = forward(rounded, ids.data, count, GD_F32);
        double largest = largest_difference(a, b, (int64_t)count * gguf->config.vocab);
        struct parity parity = compare(gguf, &reference, GD_F32);
        print_message("%s: from the rounded folder %.2e, from the f32 reference %.2e (relative %.2e), top-1 %d of %d\n",
                      twin, largest, parity.largest, parity.relative, parity.top1, parity.rows);
        assert_true(largest < 1e-4);
        assert_true(parity.relative < 5e-3);
        check_greedy(gguf, &reference);
        check_greedy(folder, &reference);
        assert_int_equal(gguf->parameter_count, folder->parameter_count);
        assert_string_equal(gguf->config.architecture, folder->config.architecture);
        assert_int_equal(gguf->config.bos_id, folder->config.bos_id);
        assert_int_equal(gguf->config.eos_ids[0], folder->config.eos_ids[0]);
        gd_free(a);
        gd_free(b);
        gd_model_destroy(gguf);
        gd_model_destroy(folder);
        gd_model_destroy(rounded);
        gd_safetensors_close(reference.file);
        gd_free(path);
        gd_free(twin);
    }
}

static void a_q8_0_gguf_twin_is_near_its_folder(void **state)
{
    struct reference reference = open_reference("tiny-llama/reference.safetensors");
    struct gd_model *model = open_fixture("tiny-llama-q8_0.gguf");
    struct parity parity = compare(model, &reference, GD_F32);
    print_message("tiny-llama-q8_0.gguf: relative %.2e, top-1 %d of %d\n", parity.relative, parity.top1, parity.rows);
    assert_true(parity.relative < 5e-2);
    gd_model_destroy(model);
    gd_safetensors_close(reference.file);
}

/* The same file read as if its rows were in half-split order. */
static void without_the_row_order_the_logits_are_others(void **state)
{
    struct reference reference = open_reference("tiny-llama/reference.safetensors");
    struct gd_model *model = open_fixture("tiny-llama-f16.gguf");
    struct gd_files *files = gd_model_files(model);
    struct gd_error err = {0};
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(model, &sites);
    for (int i = 0; i < site_count; i++) {
        int part = (int)(sites[i].part - gd_body_decoder.linears);
        if (part != GD_LINEAR_Q && part != GD_LINEAR_K)
            continue;
        struct gd_weight *old = files->linear_sites[i].weight, *plain = NULL;
        assert_true(gd_weight_create(&plain, gd_weight_name(old), gd_weight_source(old), NULL, 0, &err));
        for (int w = 0; w < model->weight_count; w++)
            if (model->weights[w] == old)
                model->weights[w] = plain;
        files->linear_sites[i].weight = plain;
        gd_weight_destroy(old);
    }
    struct parity parity = compare(model, &reference, GD_F32);
    print_message("without the row order: largest difference %.2e, top-1 %d of %d\n", parity.largest, parity.top1,
                  parity.rows);
    assert_true(parity.largest > 0.1);
    gd_model_destroy(model);
    gd_safetensors_close(reference.file);
}

/* ---- packing, cache ---- */

static void packed_segments_equal_each_alone(void **state)
{
    static const char *const names[] = {"tiny-llama", "tiny-mistral"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        char *path = gd_format("%s/reference.safetensors", names[i]);
        struct reference reference = open_reference(path);
        struct gd_model *model = open_fixture(names[i]);
        struct prompt prompts[4];
        struct gd_tensor ids;
        size_t row = 0, vocab = (size_t)model->config.vocab;
        for (int k = 0; k < 4; k++) {
            assert_true(numbered(&reference, "ids", k, &ids));
            prompts[k] = (struct prompt){ids.data, (int)ids.shape[0]};
        }
        float *packed = forward_with(model, prompts, 4, GD_F32, NULL);
        for (int k = 0; k < 4; k++) {
            float *alone = forward(model, prompts[k].ids, prompts[k].count, GD_F32);
            assert_true(largest_difference(alone, packed + row * vocab, prompts[k].count * (int64_t)vocab) < 1e-5);
            row += (size_t)prompts[k].count;
            gd_free(alone);
        }
        gd_free(packed);
        gd_model_destroy(model);
        gd_safetensors_close(reference.file);
        gd_free(path);
    }
}

/* `count` rows of one sequence that has `past` tokens in the cache: logits f32 [count, vocab]. */
static float *forward_cached(const struct gd_model *model, struct gd_kv_batch *cache, const int32_t *ids, int count,
                             int past)
{
    struct gd_error err = {0};
    struct gd_graph *graph = NULL;
    struct gd_model_inputs inputs;
    int32_t positions[128], cu_seqlens[2] = {0, count}, before = past;
    for (int t = 0; t < count; t++)
        positions[t] = (past + t) | (model->config.long_from > 0 ? GD_POSITION_LONG : 0);
    cache->cu_seqlens = cu_seqlens;
    cache->past = &before;
    float *logits = gd_alloc_array((size_t)count * (size_t)model->config.vocab, sizeof(float));
    assert_true(gd_graph_create(&graph, GD_F32, &err));
    gd_model_inputs_create(&inputs, graph, model, count, 1, true);
    struct gd_value *hidden = gd_model_hidden(graph, model, &inputs, NULL);
    struct gd_value *output = gd_model_cap(graph, model, gd_linear(graph, hidden, gd_model_head(graph, model, NULL)));
    struct gd_value *values[] = {inputs.ids, inputs.positions, inputs.inv_freq, inputs.cache};
    void *data[] = {(void *)ids, positions, model->config.inv_freq, cache};
    run_graph(graph, output, logits, values, data, GD_COUNT(values));
    gd_graph_destroy(graph);
    return logits;
}

static void decoding_through_the_cache_equals_the_whole(void **state)
{
    static const char *const names[] = {"tiny-llama", "tiny-mistral", "tiny-qwen2-window", "tiny-qwen3", "tiny-phi3",
                                         "tiny-gemma2",  "tiny-gemma3",        "tiny-gpt2",         "tiny-neox",
                                         "tiny-opt",     "tiny-opt-after", "tiny-opt-350m",     "tiny-phi3-long"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        char *path = gd_format("%s/reference.safetensors", names[i]);
        struct reference reference = open_reference(path);
        struct gd_model *model = open_fixture(names[i]);
        const struct gd_model_config *c = &model->config;
        struct gd_tensor ids, wanted;
        int longest = numbered(&reference, "ids", 3, &ids) ? 3 : 2;
        assert_true(numbered(&reference, "ids", longest, &ids) && numbered(&reference, "logits", longest, &wanted));
        int count = (int)ids.shape[0], prefill = count / 2, missing = count - (int)wanted.shape[0]; /* the last ones are given */
        int32_t pages[] = {2, 0, 3};
        size_t floats = (size_t)c->layers * 2 * (size_t)c->kv_heads * GD_KV_PAGE_TOKENS * (size_t)c->head_dim;
        struct gd_kv_batch cache = {.dtype = GD_F32,
                                    .layer_count = c->layers,
                                    .kv_heads = c->kv_heads,
                                    .head_dim = c->head_dim,
                                    .pages = gd_alloc_array(4 * floats, sizeof(float)),
                                    .sequence_count = 1,
                                    .page_table = pages,
                                    .page_table_stride = 3};
        double largest = 0;
        for (int past = 0; past < count; past += past == 0 ? prefill : 1) {
            int rows = past == 0 ? prefill : 1;
            float *logits = forward_cached(model, &cache, (const int32_t *)ids.data + past, rows, past);
            int begin = past < missing ? missing - past : 0; /* of these rows, the first that is given */
            if (begin < rows)
                largest = fmax(largest, largest_difference(logits + (int64_t)begin * c->vocab,
                                                           (const float *)wanted.data + (int64_t)(past + begin - missing) * c->vocab,
                                                           (int64_t)(rows - begin) * c->vocab));
            gd_free(logits);
        }
        print_message("%s through the cache: largest difference %.2e\n", names[i], largest);
        assert_true(largest < 1e-4);
        gd_free(cache.pages);
        gd_model_destroy(model);
        gd_safetensors_close(reference.file);
        gd_free(path);
    }
}

/* ---- SmolLM2 ---- */

static void check_rows(const float *logits, int vocab, const struct reference *reference, int k, int count,
                       enum gd_dtype act, double sums[2])
{
    struct gd_tensor columns, wanted, best, lse;
    assert_true(gd_safetensors_find(reference->file, "columns", &columns));
    assert_true(numbered(reference, "logits", k, &wanted) && numbered(reference, "argmax", k, &best) &&
                numbered(reference, "lse", k, &lse));
    double largest = 0, largest_lse = 0, differences = 0, norms = 0;
    int top1 = 0;
    for (int t = 0; t < count; t++) {
        const float *row = logits + (size_t)t * (size_t)vocab;
        double sum = 0;
        int top = argmax(row, vocab);
        top1 += top == ((const int32_t *)best.data)[t];
        for (int v = 0; v < vocab; v++)
            sum += exp((double)row[v] - (double)row[top]);
        largest_lse = fmax(largest_lse, fabs((double)row[top] + log(sum) - (double)((const float *)lse.data)[t]));
        for (int64_t i = 0; i < columns.shape[0]; i++) {
            double expected = (double)((const float *)wanted.data)[t * columns.shape[0] + i];
            double difference = (double)row[((const int32_t *)columns.data)[i]] - expected;
            largest = fmax(largest, fabs(difference));
            differences += difference * difference;
            norms += expected * expected;
        }
    }
    double relative = sqrt(differences / norms);
    print_message(
        "SmolLM2 text %d in %s: largest difference %.2e, relative %.2e, of log-sum-exp %.2e, top-1 %d of %d\n", k,
        gd_dtype_name(act), largest, relative, largest_lse, top1, count);
    if (act == GD_F32) {
        assert_true(largest < 1e-3);
        assert_true(largest_lse < 1e-3);
        assert_int_equal(top1, count);
    }
    sums[0] += differences;
    sums[1] += norms;
}

/* The texts are in the reference's metadata, as JSON. */
static void check_tokens(const struct gd_model *model, const struct reference *reference)
{
    struct gd_error err = {0};
    const char *texts = gd_safetensors_metadata(reference->file, "texts");
    cJSON *list = gd_json_parse(texts, strlen(texts), 1 << 20, &err);
    int k = 0;
    for (const cJSON *each = list->child; each != NULL; each = each->next, k++) {
        struct gd_tokens tokens = {0};
        struct gd_tensor ids;
        assert_true(numbered(reference, "ids", k, &ids));
        assert_true(gd_tokenizer_encode(model->tokenizer, each->valuestring, strlen(each->valuestring),
                                        GD_SPECIAL_PARSE, false, &tokens, &err));
        assert_int_equal(tokens.count, ids.shape[0]);
        assert_memory_equal(tokens.ids, ids.data, (size_t)tokens.count * 4);
        gd_tokens_release(&tokens);
    }
    cJSON_Delete(list);
}

static void smollm2_gives_the_logits_of_the_reference(void **state)
{
    const char *path = getenv("GD_SMOLLM2_GGUF");
    if (path == NULL) {
        print_message("GD_SMOLLM2_GGUF is not set\n");
        skip();
    }
    struct reference reference = open_reference("smollm2.safetensors");
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    double begin = gd_time_monotonic();
    if (!gd_model_open(&model, "smollm2", path, &err))
        fail_msg("%s", err.message);
    double opened = gd_time_monotonic();
    gd_model_make_digest(model);
    print_message("opened in %.0f ms, of which the digest %.0f ms\n", 1e3 * (opened - begin),
                  1e3 * (gd_time_monotonic() - opened));
    assert_int_equal(model->parameter_count, 134515008);
    assert_int_equal(model->config.context, 8192);
    assert_int_equal(model->config.eos_ids[0], 2);
    assert_ptr_equal(model->head, model->embed);
    check_tokens(model, &reference);
    struct gd_tensor ids;
    double sums[2][2] = {{0}}; /* squares of the differences and of the reference, in f32 and bf16 */
    for (int k = 0; numbered(&reference, "ids", k, &ids); k++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            enum gd_dtype act = bf16 ? GD_BF16 : GD_F32;
            int count = (int)ids.shape[0];
            float *logits = forward(model, ids.data, count, act);
            check_rows(logits, model->config.vocab, &reference, k, count, act, sums[bf16]);
            gd_free(logits);
        }
    }
    assert_true(sqrt(sums[1][0] / sums[1][1]) < 3e-2); /* PyTorch's own bf16: 2.2e-2 */
    gd_model_destroy(model);
    gd_safetensors_close(reference.file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_logits_equal_the_reference),
        cmocka_unit_test(bf16_logits_are_near_the_reference),
        cmocka_unit_test(f16_gguf_twins_give_the_logits_of_their_folders),
        cmocka_unit_test(a_q8_0_gguf_twin_is_near_its_folder),
        cmocka_unit_test(without_the_row_order_the_logits_are_others),
        cmocka_unit_test(packed_segments_equal_each_alone),
        cmocka_unit_test(decoding_through_the_cache_equals_the_whole),
        cmocka_unit_test(smollm2_gives_the_logits_of_the_reference),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
