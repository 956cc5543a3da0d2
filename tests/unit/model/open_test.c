/* open_test.c - folders and GGUF files that are not quite models, and the listing of a models folder. */
#include "engine/model/model.h"
#include "engine/model/safetensors.h"
#include "tests/unit/model/model_testing.h"
#include <sys/stat.h>
#include <unistd.h>

static struct scratch copy_llama(void)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"};
    struct scratch scratch = scratch_begin();
    for (size_t i = 0; i < GD_COUNT(names); i++)
        scratch_copy(&scratch, "tiny-llama", names[i]);
    return scratch;
}

static struct scratch copy_sharded(void)
{
    static const char *const names[] = {"config.json",
                                        "model-00001-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors",
                                        "model.safetensors.index.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json"};
    struct scratch scratch = scratch_begin();
    for (size_t i = 0; i < GD_COUNT(names); i++)
        scratch_copy(&scratch, "tiny-llama-sharded", names[i]);
    return scratch;
}

/* Replaces the first `from` in a file of the folder by `to`. */
static void edit(const struct scratch *scratch, const char *name, const char *from, const char *to)
{
    struct gd_error err = {0};
    char *path = scratch_path(scratch, name), *data = NULL;
    size_t length = 0;
    assert_true(gd_file_read(path, 1 << 20, &data, &length, &err));
    char *at = memmem(data, length, from, strlen(from));
    if (at == NULL)
        fail_msg("%s does not hold %s", name, from);
    struct gd_buf buf;
    gd_buf_init(&buf, 0);
    gd_buf_append(&buf, data, (size_t)(at - data));
    gd_buf_append_text(&buf, to);
    gd_buf_append(&buf, at + strlen(from), length - (size_t)(at - data) - strlen(from));
    scratch_write(scratch, name, buf.data, buf.length);
    gd_buf_release(&buf);
    gd_free(data);
    gd_free(path);
}

static void drop(const struct scratch *scratch, const char *name)
{
    char *path = scratch_path(scratch, name);
    assert_int_equal(unlink(path), 0);
    gd_free(path);
}

static void refuse(const char *what, struct scratch *scratch, enum gd_code code, const char *words)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    if (gd_model_open(&model, "m", scratch->folder, &err))
        fail_msg("accepted: %s", what);
    assert_null(model);
    check_error(what, &err, code, words);
    scratch_end(scratch);
}

static struct gd_model *must_open(const char *path)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    if (!gd_model_open(&model, "m", path, &err))
        fail_msg("%s", err.message);
    return model;
}

static void a_folder_that_lacks_a_file_says_which(void **state)
{
    struct scratch scratch = copy_llama();
    drop(&scratch, "config.json");
    refuse("config", &scratch, GD_BAD_MODEL, "config.json");
    scratch = copy_llama();
    drop(&scratch, "tokenizer.json");
    refuse("tokenizer", &scratch, GD_BAD_MODEL, "tokenizer.json");
    scratch = copy_llama();
    drop(&scratch, "model.safetensors");
    refuse("weights", &scratch, GD_BAD_MODEL, "model.safetensors|index.json|converted");
    scratch = copy_llama();
    drop(&scratch, "model.safetensors");
    char *path = scratch_path(&scratch, "model.safetensors");
    assert_int_equal(mkdir(path, 0700), 0);
    gd_free(path);
    refuse("a folder as weights", &scratch, GD_BAD_MODEL, "model.safetensors is a folder");
    scratch = copy_sharded();
    drop(&scratch, "model-00002-of-00003.safetensors");
    refuse("shard", &scratch, GD_BAD_MODEL, "index.json names a file that is missing|model-00002-of-00003.safetensors");
}

static void a_config_that_its_tensors_do_not_fit_is_refused(void **state)
{
    static const struct {
        const char *from, *to, *words;
    } cases[] = {
        {"\"intermediate_size\": 64", "\"intermediate_size\": 96",
         "model.safetensors|model.layers.0.mlp.gate_proj.weight|[64, 32]|[96, 32]"},
        {"\"head_dim\": 16", "\"head_dim\": 8", "model.layers.0.self_attn.q_proj.weight|[64, 32]|[32, 32]"},
        {"\"vocab_size\": 320", "\"vocab_size\": 321", "model.embed_tokens.weight|[320, 32]|[321, 32]"},
        {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", "model.layers.3.input_layernorm.weight is missing"},
        {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2", "model.layers.2.|2 layers|not the only one"},
        {"\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "lm_head.weight|tie_word_embeddings"},
        {"\"attention_bias\": false", "\"attention_bias\": true", "model.layers.0.self_attn.q_proj.bias is missing"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct scratch scratch = copy_llama();
        edit(&scratch, "config.json", cases[i].from, cases[i].to);
        refuse(cases[i].to, &scratch, GD_BAD_MODEL, cases[i].words);
    }
}

static void other_architectures_are_refused_by_name(void **state)
{
    struct scratch scratch = copy_llama();
    edit(&scratch, "config.json", "\"model_type\": \"llama\"", "\"model_type\": \"bloom\"");
    refuse("bloom", &scratch, GD_UNSUPPORTED, "\"bloom\"|gemma2, |llama, mistral, |qwen3");
}

/* GPT-2 as it is published: no "transformer." before the names, and the masks of its layers in the file. */
static void files_of_a_body_without_its_head_are_read(void **state)
{
    static const char *const others[] = {"config.json", "tokenizer.json", "tokenizer_config.json"};
    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    struct gd_safetensors *file = NULL;
    struct gd_safetensors_entry entries[64];
    struct gd_model *model = NULL;
    float mask[4] = {0};
    char *from = fixture_path("tiny-gpt2/model.safetensors"), *to = scratch_path(&scratch, "model.safetensors");
    assert_true(gd_safetensors_open(&file, from, &err));
    int count = gd_safetensors_count(file);
    for (int i = 0; i < count; i++)
        entries[i] = (struct gd_safetensors_entry){gd_safetensors_name(file, i) + strlen("transformer."), gd_safetensors_at(file, i)};
    entries[count++] = (struct gd_safetensors_entry){"h.0.attn.bias", {GD_F32, 2, {2, 2}, mask}};
    entries[count++] = (struct gd_safetensors_entry){"h.1.attn.masked_bias", {GD_F32, 1, {1}, mask}};
    assert_true(gd_safetensors_write(to, entries, count, NULL, &err));
    for (size_t i = 0; i < GD_COUNT(others); i++)
        scratch_copy(&scratch, "tiny-gpt2", others[i]);
    if (!gd_model_open(&model, "gpt2", scratch.folder, &err))
        fail_msg("%s", err.message);
    assert_int_equal(model->weight_count, 28);
    assert_string_equal(gd_weight_name(model->layer[0].qkv), "transformer.h.0.attn.c_attn.weight");
    gd_model_destroy(model);
    /* [in, out], as Conv1D has it: what is square may lie either way, what is not is refused */
    for (int i = 0; i < count; i++)
        if (strcmp(entries[i].name, "h.0.mlp.c_fc.weight") == 0)
            entries[i].tensor = (struct gd_tensor){GD_F32, 2, {64, 16}, entries[i].tensor.data};
    assert_true(gd_safetensors_write(to, entries, count, NULL, &err));
    assert_false(gd_model_open(&model, "gpt2", scratch.folder, &err));
    check_error("turned", &err, GD_BAD_MODEL, "h.0.mlp.c_fc.weight|[64, 16]|[16, 64]");
    gd_safetensors_close(file);
    gd_free(from);
    gd_free(to);
    scratch_end(&scratch);
}

/* The tensors of tiny-llama, with one more or one as another dtype. */
static void rewrite(const struct scratch *scratch, const char *replaced, struct gd_safetensors_entry extra)
{
    struct gd_error err = {0};
    struct gd_safetensors *file = NULL;
    struct gd_safetensors_entry entries[64];
    int count = 0;
    char *from = fixture_path("tiny-llama/model.safetensors"), *to = scratch_path(scratch, "model.safetensors");
    assert_true(gd_safetensors_open(&file, from, &err));
    for (int i = 0; i < gd_safetensors_count(file); i++)
        if (replaced == NULL || strcmp(gd_safetensors_name(file, i), replaced) != 0)
            entries[count++] = (struct gd_safetensors_entry){gd_safetensors_name(file, i), gd_safetensors_at(file, i)};
    if (extra.name != NULL)
        entries[count++] = extra;
    if (!gd_safetensors_write(to, entries, count, NULL, &err))
        fail_msg("%s", err.message);
    gd_safetensors_close(file);
    gd_free(from);
    gd_free(to);
}

static void each_tensor_is_used_once_or_ignored_by_rule(void **state)
{
    static float numbers[320 * 32];
    struct scratch scratch = copy_llama();
    rewrite(&scratch, NULL, (struct gd_safetensors_entry){"model.layers.0.extra.weight", {GD_F32, 1, {4}, numbers}});
    refuse("extra", &scratch, GD_BAD_MODEL, "model.layers.0.extra.weight [4]");

    scratch = copy_llama();
    rewrite(&scratch, "model.norm.weight",
            (struct gd_safetensors_entry){"model.norm.weight", {GD_I32, 1, {32}, numbers}});
    refuse("I32", &scratch, GD_UNSUPPORTED, "model.norm.weight|I32");

    scratch = copy_llama();
    rewrite(&scratch, NULL,
            (struct gd_safetensors_entry){"model.layers.0.self_attn.rotary_emb.inv_freq", {GD_F32, 1, {8}, numbers}});
    gd_model_destroy(must_open(scratch.folder));
    scratch_end(&scratch);

    scratch = copy_llama(); /* tied: a head in the file is not used */
    rewrite(&scratch, NULL, (struct gd_safetensors_entry){"lm_head.weight", {GD_F32, 2, {320, 32}, numbers}});
    struct gd_model *model = must_open(scratch.folder);
    assert_ptr_equal(model->head, model->embed);
    gd_model_destroy(model);
    scratch_end(&scratch);
}

static void shards_stay_in_their_folder_and_agree_with_the_index(void **state)
{
    static const char first[] = "model-00001-of-00003.safetensors", index[] = "model.safetensors.index.json";
    static const char *const names[] = {
        "../model.safetensors", "/etc/passwd",       "a/b.safetensors", "..", "model.bin", "",
        ".safetensors",         "a\\\\b.safetensors"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct scratch scratch = copy_sharded();
        edit(&scratch, index, first, names[i]);
        refuse(names[i], &scratch, GD_BAD_MODEL, "index.json|same folder");
    }
    struct scratch scratch = copy_sharded(); /* the index points elsewhere */
    edit(&scratch, index, first, "model-00002-of-00003.safetensors");
    refuse("elsewhere", &scratch, GD_BAD_MODEL,
           "index.json|is not in model-00002-of-00003.safetensors but in model-00001");

    scratch = copy_sharded(); /* a tensor that no shard has */
    edit(&scratch, index, "\"weight_map\": {",
         "\"weight_map\": {\"model.none\": \"model-00001-of-00003.safetensors\",");
    refuse("none", &scratch, GD_BAD_MODEL, "tensor model.none is not in model-00001-of-00003.safetensors");

    scratch = copy_sharded(); /* the same tensors in two shards */
    scratch_copy(&scratch, "tiny-llama-sharded", "model-00001-of-00003.safetensors");
    size_t length = 0;
    char *bytes = fixture_read("tiny-llama-sharded/model-00001-of-00003.safetensors", &length);
    scratch_write(&scratch, "model-00002-of-00003.safetensors", bytes, length);
    gd_free(bytes);
    refuse("twice", &scratch, GD_BAD_MODEL, "is in model-00001-of-00003.safetensors and in model-00002");

    scratch = copy_sharded();
    scratch_write(&scratch, index, "{\"weight_map\": {\"a\": 1}}", 24);
    refuse("number", &scratch, GD_BAD_MODEL, "weight_map.a");
    scratch = copy_sharded();
    scratch_write(&scratch, index, "{\"weight_map\": {}}", 18);
    refuse("empty", &scratch, GD_BAD_MODEL, "weight_map is empty");
    scratch = copy_sharded();
    scratch_write(&scratch, index, "{}", 2);
    refuse("absent", &scratch, GD_BAD_MODEL, "weight_map");
    scratch = copy_sharded();
    scratch_write(&scratch, index, "{\"weight_map\": {\"a\": \"b\", \"a\": \"c\"}}", 37);
    refuse("twin keys", &scratch, GD_BAD_MODEL, "index.json");
}

static void templates_come_from_where_the_rules_say(void **state)
{
    struct scratch scratch = copy_llama();
    scratch_write(&scratch, "chat_template.jinja", "{{ 'from the file' }}", 21);
    struct gd_model *model = must_open(scratch.folder);
    assert_string_equal(model->chat_template, "{{ 'from the file' }}");
    assert_true(gd_chat_has_template(model->chat));
    gd_model_destroy(model);
    drop(&scratch, "chat_template.jinja");

    static const char list[] = "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"},"
                               " {\"name\": \"default\", \"template\": \"D\"}]}";
    scratch_write(&scratch, "tokenizer_config.json", list, strlen(list));
    model = must_open(scratch.folder);
    assert_string_equal(model->chat_template, "D");
    assert_string_equal(model->tools_template, "T");
    gd_model_destroy(model);

    scratch_write(&scratch, "chat_template.json", "{\"chat_template\": \"J\"}", 22);
    scratch_write(&scratch, "chat_template.jinja", "F", 1);
    model = must_open(scratch.folder);
    assert_string_equal(model->chat_template, "F");
    assert_string_equal(model->tools_template, "T");
    gd_model_destroy(model);
    drop(&scratch, "chat_template.jinja");
    scratch_write(&scratch, "tokenizer_config.json", "{}", 2);
    model = must_open(scratch.folder);
    assert_string_equal(model->chat_template, "J");
    assert_null(model->tools_template);
    gd_model_destroy(model);
    char *more = gd_format("%s/additional_chat_templates", scratch.folder);
    assert_int_equal(mkdir(more, 0700), 0);
    scratch_write(&scratch, "additional_chat_templates/tool_use.jinja", "{{ tools|length }}", 18);
    model = must_open(scratch.folder);
    assert_string_equal(model->chat_template, "J");
    assert_string_equal(model->tools_template, "{{ tools|length }}");
    gd_model_destroy(model);
    drop(&scratch, "additional_chat_templates/tool_use.jinja");
    assert_int_equal(rmdir(more), 0);
    gd_free(more);
    drop(&scratch, "chat_template.json");

    scratch_write(&scratch, "tokenizer_config.json", "{}", 2);
    model = must_open(scratch.folder);
    assert_null(model->chat_template);
    assert_string_equal(model->template_digest, "");
    assert_false(gd_chat_has_template(model->chat));
    gd_model_destroy(model);

    drop(&scratch, "tokenizer_config.json");
    gd_model_destroy(must_open(scratch.folder));
    scratch_end(&scratch);
}

static void a_broken_template_is_named_with_its_line(void **state)
{
    static const char broken[] = "{{ 'fine' }}\n{% if x %}\n{{ 1 + }}";
    static const char list[] = "{\"chat_template\": [{\"name\": \"a\", \"template\": \"A\"},"
                               " {\"name\": \"b\", \"template\": \"B\"}]}";
    struct scratch scratch = copy_llama();
    scratch_write(&scratch, "chat_template.jinja", broken, strlen(broken));
    refuse("broken", &scratch, GD_BAD_MODEL, "chat_template.jinja|line 3");
    scratch = copy_llama();
    scratch_write(&scratch, "chat_template.jinja", "a\0b", 3);
    refuse("NUL", &scratch, GD_BAD_MODEL, "chat_template.jinja|NUL");
    scratch = copy_llama();
    scratch_write(&scratch, "tokenizer_config.json", list, strlen(list));
    refuse("no default", &scratch, GD_BAD_MODEL, "chat_template|default");
    scratch = copy_llama();
    scratch_write(&scratch, "tokenizer_config.json", "{\"chat_template\": 7}", 20);
    refuse("number", &scratch, GD_BAD_MODEL, "chat_template");
}

static void broken_json_is_named_by_its_file(void **state)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                        "generation_config.json"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct scratch scratch = copy_llama();
        scratch_write(&scratch, names[i], "{\"a\": ", 6);
        refuse(names[i], &scratch, GD_BAD_MODEL, names[i]);
    }
}

static void what_is_neither_folder_nor_gguf_is_refused(void **state)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    assert_false(gd_model_open(&model, "m", "/nonexistent/model", &err));
    check_error("absent", &err, GD_NOT_FOUND, "/nonexistent/model");
    gd_error_clear(&err);
    char *path = fixture_path("tiny-llama/config.json");
    assert_false(gd_model_open(&model, "m", path, &err));
    check_error("json", &err, GD_BAD_MODEL, "config.json|GGUF");
    gd_free(path);
}

/* ---- GGUF ---- */

static void no_flipped_bit_of_a_gguf_header_crashes(void **state)
{
    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    struct gd_model *model = NULL;
    size_t length = 0;
    char *bytes = fixture_read("tiny-llama-q8_0.gguf", &length), *path = scratch_path(&scratch, "x.gguf");
    for (size_t bit = 0; bit < 8 * 9000; bit += 61) { /* metadata and tensor table */
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        scratch_write(&scratch, "x.gguf", bytes, length);
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        gd_error_clear(&err);
        if (gd_model_open(&model, "m", path, &err))
            gd_model_destroy(model);
        else
            assert_true(err.code == GD_BAD_MODEL || err.code == GD_UNSUPPORTED);
        model = NULL;
    }
    gd_free(bytes);
    gd_free(path);
    scratch_end(&scratch);
}

/* Replaces bytes of the same length in a GGUF twin and opens it. */
static void refuse_gguf(const char *from, size_t from_length, const char *to, enum gd_code code, const char *words)
{
    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    struct gd_model *model = NULL;
    size_t length = 0;
    char *bytes = fixture_read("tiny-llama-q8_0.gguf", &length), *path = scratch_path(&scratch, "x.gguf");
    char *at = memmem(bytes, length, from, from_length);
    assert_non_null(at);
    memcpy(at, to, from_length);
    scratch_write(&scratch, "x.gguf", bytes, length);
    assert_false(gd_model_open(&model, "m", path, &err));
    check_error(words, &err, code, words);
    gd_free(bytes);
    gd_free(path);
    scratch_end(&scratch);
}

#define REFUSE_GGUF(from, to, code, words)                                                                             \
    do {                                                                                                               \
        _Static_assert(sizeof(from) == sizeof(to), "the file keeps its size");                                         \
        refuse_gguf(from, sizeof(from) - 1, to, code, words);                                                          \
    } while (0)

static void gguf_metadata_that_lies_is_refused_by_key(void **state)
{
    REFUSE_GGUF("general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
                "general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba", GD_UNSUPPORTED, "\"mamba\"|llama, qwen2, qwen3");
    REFUSE_GGUF("llama.block_count\x04\0\0\0\x03", "llama.block_count\x04\0\0\0\x04", GD_BAD_MODEL,
                "blk.3.attn_norm.weight");
    REFUSE_GGUF("llama.block_count\x04\0\0\0\x03", "llama.block_count\x04\0\0\0\x02", GD_BAD_MODEL, "blk.2.|2 layers");
    REFUSE_GGUF("llama.block_count\x04\0\0\0\x03", "llama.block_count\x06\0\0\0\x03", GD_BAD_MODEL,
                "llama.block_count is float32");
    REFUSE_GGUF("llama.block_count", "llama.block_xount", GD_BAD_MODEL, "llama.block_count is missing");
    REFUSE_GGUF("llama.attention.head_count\x04\0\0\0\x04", "llama.attention.head_count\x04\0\0\0\x00", GD_BAD_MODEL,
                "llama.attention.head_count is 0");
    REFUSE_GGUF("llama.attention.head_count\x04\0\0\0\x04", "llama.attention.head_count\x04\0\0\0\x03", GD_BAD_MODEL,
                "head_count_kv 2|head_count 3");
    REFUSE_GGUF("llama.attention.key_length\x04\0\0\0\x10", "llama.attention.key_length\x04\0\0\0\x0f", GD_UNSUPPORTED,
                "key length 15");
    REFUSE_GGUF("llama.vocab_size\x04\0\0\0\x40\x01", "llama.vocab_size\x04\0\0\0\x41\x01", GD_BAD_MODEL,
                "321|320 rows");
    REFUSE_GGUF("tokenizer.ggml.token_type\x09\0\0\0\x05", "tokenizer.ggml.token_type\x09\0\0\0\x06", GD_BAD_MODEL,
                "tokenizer.ggml.token_type is an array of float32");
    REFUSE_GGUF("tokenizer.ggml.eos_token_id\x04\0\0\0\x02\0", "tokenizer.ggml.eos_token_id\x04\0\0\0\x40\x01",
                GD_BAD_MODEL, "tokenizer.ggml.eos_token_id is 320");
    REFUSE_GGUF("tokenizer.ggml.tokens", "tokenizer.ggml.xokens", GD_BAD_MODEL, "tokenizer.ggml.tokens is missing");
    REFUSE_GGUF("{% for message in", "{% far message in", GD_BAD_MODEL, "tokenizer.chat_template|line 1");
}

/* ---- listing ---- */

static void make_folder(const struct scratch *scratch, const char *name, bool with_config)
{
    char *path = scratch_path(scratch, name);
    assert_int_equal(mkdir(path, 0700), 0);
    gd_free(path);
    if (with_config) {
        char *config = gd_format("%s/config.json", name);
        scratch_write(scratch, config, "{", 1);
        gd_free(config);
    }
}

static void a_models_folder_lists_what_may_be_a_model(void **state)
{
    static const char *const expected[] = {"alpha", "beta", "beta.gguf", "gamma", "linked"};
    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    struct gd_model_entry *entries = NULL;
    int count = 0;
    make_folder(&scratch, "beta", true);
    make_folder(&scratch, "alpha", true);
    make_folder(&scratch, "no config", false);
    make_folder(&scratch, "two words", true);
    make_folder(&scratch, ".hidden", true);
    make_folder(&scratch, "folder.gguf", false);
    scratch_write(&scratch, "gamma.gguf", "x", 1);
    scratch_write(&scratch, "beta.gguf", "x", 1);
    scratch_write(&scratch, ".hidden.gguf", "x", 1);
    scratch_write(&scratch, ".gguf", "x", 1);
    scratch_write(&scratch, "readme.txt", "x", 1);
    char *link = scratch_path(&scratch, "linked"), *dangling = scratch_path(&scratch, "dangling.gguf");
    assert_int_equal(symlink("alpha", link), 0);
    assert_int_equal(symlink("/nonexistent", dangling), 0);
    assert_true(gd_model_list(scratch.folder, &entries, &count, &err));
    assert_int_equal(count, GD_COUNT(expected));
    for (int i = 0; i < count; i++) {
        assert_string_equal(entries[i].id, expected[i]);
        assert_true(entries[i].created > 1600000000);
    }
    assert_non_null(strstr(entries[2].path, "/beta.gguf"));
    gd_model_list_release(entries, count);
    assert_false(gd_model_list("/nonexistent", &entries, &count, &err));
    check_error("absent", &err, GD_NOT_FOUND, "/nonexistent");
    gd_free(link);
    gd_free(dangling);
    scratch_end(&scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_that_lacks_a_file_says_which),
        cmocka_unit_test(a_config_that_its_tensors_do_not_fit_is_refused),
        cmocka_unit_test(other_architectures_are_refused_by_name),
        cmocka_unit_test(files_of_a_body_without_its_head_are_read),
        cmocka_unit_test(each_tensor_is_used_once_or_ignored_by_rule),
        cmocka_unit_test(shards_stay_in_their_folder_and_agree_with_the_index),
        cmocka_unit_test(templates_come_from_where_the_rules_say),
        cmocka_unit_test(a_broken_template_is_named_with_its_line),
        cmocka_unit_test(broken_json_is_named_by_its_file),
        cmocka_unit_test(what_is_neither_folder_nor_gguf_is_refused),
        cmocka_unit_test(no_flipped_bit_of_a_gguf_header_crashes),
        cmocka_unit_test(gguf_metadata_that_lies_is_refused_by_key),
        cmocka_unit_test(a_models_folder_lists_what_may_be_a_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
