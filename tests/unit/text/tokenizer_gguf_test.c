/* Tokenizers from GGUF metadata: the families' stored cases, the real SmolLM2, and what is refused. */
#include "engine/base/alloc.h"
#include "engine/model/gguf.h"
#include "tests/unit/text/tokenizer_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS_MAX = 4096, MERGES_MAX = 65536 };

struct metadata {
    struct gd_tokenizer_gguf meta;
    cJSON *spec;
    const char *tokens[TOKENS_MAX];
    int32_t types[TOKENS_MAX];
    float scores[TOKENS_MAX];
    char *merges[MERGES_MAX];
};

static void set_token(struct metadata *m, int id, const char *text, int type)
{
    assert_in_range(id, 0, TOKENS_MAX - 1);
    m->tokens[id] = text;
    m->types[id] = type;
    m->scores[id] = -(float)id;
    if (id >= m->meta.vocab_count)
        m->meta.vocab_count = id + 1;
}

/* The metadata that a converter writes for the tokenizer.json of a fixture. */
static struct metadata *metadata_of(const char *fixture, const char *model, const char *pre)
{
    struct metadata *m = gd_alloc(sizeof(*m));
    char *file = gd_format("%s.json", fixture);
    m->spec = open_fixture(file);
    gd_free(file);
    m->meta = (struct gd_tokenizer_gguf){.model = model, .pre = pre, .tokens = m->tokens, .token_types = m->types,
                                         .scores = m->scores, .merges = (const char *const *)m->merges, .bos_id = -1,
                                         .eos_id = -1, .unknown_id = -1, .padding_id = -1, .cls_id = -1,
                                         .separator_id = -1, .remove_extra_whitespaces = -1, .add_bos = -1, .add_eos = -1,
                                         .add_space_prefix = -1};
    for (const cJSON *item = gd_json_find(gd_json_find(m->spec, "model"), "vocab")->child; item != NULL;
         item = item->next)
        set_token(m, item->valueint, item->string,
                  strlen(item->string) == 6 && strncmp(item->string, "<0x", 3) == 0 && item->string[5] == '>' ? 6 : 1);
    for (const cJSON *item = gd_json_find(m->spec, "added_tokens")->child; item != NULL; item = item->next) {
        const char *text = gd_json_find(item, "content")->valuestring;
        bool special = cJSON_IsTrue(gd_json_find(item, "special"));
        set_token(m, gd_json_find(item, "id")->valueint, text, !special ? 4 : strcmp(text, "<unk>") == 0 ? 2 : 3);
    }
    const cJSON *merges = gd_json_find(gd_json_find(m->spec, "model"), "merges");
    for (const cJSON *item = merges != NULL ? merges->child : NULL; item != NULL; item = item->next)
        m->merges[m->meta.merge_count++] = cJSON_IsString(item) ? gd_strdup(item->valuestring)
                                           : gd_format("%s %s", item->child->valuestring, item->child->next->valuestring);
    return m;
}

static void release(struct metadata *m)
{
    for (int i = 0; i < m->meta.merge_count; i++)
        gd_free(m->merges[i]);
    cJSON_Delete(m->spec);
    gd_free(m);
}

static struct gd_tokenizer *load(const struct gd_tokenizer_gguf *meta)
{
    struct gd_tokenizer *tokenizer = NULL;
    struct gd_error err = {0};
    if (!gd_tokenizer_from_gguf(&tokenizer, meta, &err))
        fail_msg("%s", err.message);
    return tokenizer;
}

static void check_family(const char *fixture, const char *model, const char *pre, int bos)
{
    struct metadata *m = metadata_of(fixture, model, pre);
    m->meta.bos_id = bos;
    struct gd_tokenizer *tokenizer = load(&m->meta);
    release(m);
    char *file = gd_format("%s.cases.json", fixture);
    cJSON *root = open_fixture(file);
    assert_true(check_cases(tokenizer, gd_json_find(root, "cases"), file) >= 420);
    check_with_ends(tokenizer, gd_json_find(root, "with_ends"), file);
    assert_int_equal(gd_tokenizer_bos(tokenizer), bos);
    cJSON_Delete(root);
    gd_free(file);
    gd_tokenizer_destroy(tokenizer);
}

static void the_gpt2_family_gives_the_ids_of_the_reference(void **state)
{
    check_family("gpt2", "gpt2", "gpt-2", -1);
}

static void the_llama3_family_gives_the_ids_of_the_reference(void **state)
{
    struct metadata *m = metadata_of("llama3", "gpt2", "llama-bpe");
    int bos = 0;
    while (strcmp(m->tokens[bos], "<|begin_of_text|>") != 0)
        bos++;
    release(m);
    check_family("llama3", "gpt2", "llama-bpe", bos);
}

static void the_qwen2_family_gives_the_ids_of_the_reference(void **state)
{
    check_family("qwen2", "gpt2", "qwen2", -1);
}

static void the_smollm_family_gives_the_ids_of_the_reference(void **state)
{
    check_family("smollm", "gpt2", "smollm", -1);
}

static void scored_pieces_give_the_ids_of_the_reference(void **state)
{
    check_family("llama2", "llama", NULL, 1);
}

static void newer_patterns_give_the_ids_of_the_reference(void **state)
{
    cJSON *root = open_fixture("pre.json");
    int count = 0;
    for (const cJSON *pre = gd_json_find(root, "pre")->child; pre != NULL; pre = pre->next, count++) {
        struct metadata *m = metadata_of("gpt2", "gpt2", pre->string);
        struct gd_tokenizer *tokenizer = load(&m->meta);
        assert_true(check_cases(tokenizer, pre, pre->string) >= 20);
        gd_tokenizer_destroy(tokenizer);
        release(m);
    }
    assert_int_equal(count, 4);
    cJSON_Delete(root);
}

static void the_neox_family_gives_the_ids_of_the_reference(void **state)
{
    struct metadata *m = metadata_of("neox", "gpt2", "olmo");
    struct gd_tokenizer *tokenizer = load(&m->meta);
    cJSON *root = open_fixture("neox.cases.json");
    assert_true(check_cases(tokenizer, gd_json_find(root, "cases"), "neox") >= 50);
    cJSON_Delete(root);
    gd_tokenizer_destroy(tokenizer);
    release(m);
}

static void gemma_gives_the_ids_of_the_reference(void **state)
{
    struct metadata *m = metadata_of("gemma", "llama", NULL);
    m->meta.bos_id = 2;
    m->meta.eos_id = 1;
    m->meta.unknown_id = 3;
    m->meta.add_space_prefix = 0;
    struct gd_tokenizer *tokenizer = load(&m->meta);
    cJSON *root = open_fixture("gemma.cases.json");
    assert_true(check_cases(tokenizer, gd_json_find(root, "cases"), "gemma") >= 50);
    check_with_ends(tokenizer, gd_json_find(root, "with_ends"), "gemma");
    cJSON_Delete(root);
    gd_tokenizer_destroy(tokenizer);
    release(m);
}

/* SentencePiece's unigram as converters store it. */
static void t5_gives_the_ids_of_sentencepiece(void **state)
{
    cJSON *root = open_fixture("spm_t5.json");
    struct metadata *m = gd_alloc(sizeof(*m));
    size_t length = 0;
    unsigned char *charsmap = hex_of(gd_json_find(root, "charsmap")->valuestring, &length);
    m->meta = (struct gd_tokenizer_gguf){.model = "t5", .tokens = m->tokens, .token_types = m->types, .scores = m->scores,
                                         .bos_id = -1, .eos_id = 1, .unknown_id = 2, .padding_id = 0, .cls_id = -1,
                                         .separator_id = -1, .remove_extra_whitespaces = 1, .add_bos = 0, .add_eos = 1,
                                         .add_space_prefix = 1, .charsmap = (const char *)charsmap, .charsmap_length = length};
    int id = 0;
    for (const cJSON *piece = gd_json_find(root, "pieces")->child; piece != NULL; piece = piece->next, id++) {
        set_token(m, id, piece->child->valuestring, piece->child->next->next->valueint);
        m->scores[id] = (float)piece->child->next->valuedouble;
    }
    struct gd_tokenizer *tokenizer = load(&m->meta);
    assert_true(check_plain_cases(tokenizer, gd_json_find(root, "cases"), "t5") >= 45);
    struct gd_tokens tokens = {0};
    struct gd_error err = {0};
    assert_true(gd_tokenizer_encode(tokenizer, "", 0, GD_SPECIAL_PARSE, true, &tokens, &err));
    assert_true(tokens.count == 1 && tokens.ids[0] == 1);
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
    m->meta.charsmap_length = 5;
    err = (struct gd_error){0};
    assert_false(gd_tokenizer_from_gguf(&tokenizer, &m->meta, &err));
    assert_non_null(strstr(err.message, "charsmap"));
    gd_free(charsmap);
    gd_free(m);
    cJSON_Delete(root);
}

/* WordPiece, with the marks of words turned round. */
static void bert_gives_the_ids_of_the_reference(void **state)
{
    struct metadata *m = metadata_of("bert", "bert", NULL);
    char *renamed[TOKENS_MAX] = {0};
    for (int id = 0; id < m->meta.vocab_count; id++) {
        const char *text = m->tokens[id];
        bool special = text[0] == '[' && strlen(text) > 1 && text[strlen(text) - 1] == ']';
        renamed[id] = special ? gd_strdup(text) : strncmp(text, "##", 2) == 0 ? gd_strdup(text + 2) : gd_format("\xE2\x96\x81%s", text);
        m->tokens[id] = renamed[id];
    }
    m->meta.unknown_id = 1;
    m->meta.cls_id = 2;
    m->meta.separator_id = 3;
    struct gd_tokenizer *tokenizer = load(&m->meta);
    cJSON *root = open_fixture("bert.cases.json");
    assert_true(check_cases(tokenizer, gd_json_find(root, "cases"), "bert") >= 240);
    check_with_ends(tokenizer, gd_json_find(root, "with_ends"), "bert");
    cJSON_Delete(root);
    gd_tokenizer_destroy(tokenizer);
    for (int id = 0; id < m->meta.vocab_count; id++)
        gd_free(renamed[id]);
    release(m);
}

/* Falcon's rules: punctuation apart, then GPT-2's pattern, then digits in threes. */
static void the_default_family_cuts_digits_in_threes(void **state)
{
    struct metadata *m = metadata_of("gpt2", "gpt2", "default");
    struct gd_tokenizer *tokenizer = load(&m->meta);
    struct gd_tokens tokens = {.with_offsets = true};
    struct gd_error err = {0};
    assert_true(gd_tokenizer_encode(tokenizer, "x,12345", 7, GD_SPECIAL_PARSE, true, &tokens, &err));
    bool cut_after_comma = false, cut_after_threes = false;
    for (int i = 0; i < tokens.count; i++) {
        cut_after_comma = cut_after_comma || tokens.end[i] == 2;
        cut_after_threes = cut_after_threes || tokens.end[i] == 5;
    }
    assert_true(cut_after_comma && cut_after_threes);
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
    release(m);
}

static void smollm2_gives_the_ids_of_the_reference(void **state)
{
    const char *path = getenv("GD_SMOLLM2_GGUF");
    if (path == NULL) {
        print_message("GD_SMOLLM2_GGUF is not set\n");
        skip();
    }
    struct gd_gguf *file = NULL;
    struct gd_error err = {0};
    struct gd_tokenizer_gguf meta = {
        .bos_id = 1, .eos_id = 2, .unknown_id = 0, .padding_id = 2, .cls_id = -1, .separator_id = -1, .add_bos = 0,
        .add_eos = -1, .add_space_prefix = 0};
    int types = 0;
    bool ok =
        gd_gguf_open(&file, path, &err) && gd_gguf_get_string(file, "tokenizer.ggml.model", true, &meta.model, &err) &&
        gd_gguf_get_string(file, "tokenizer.ggml.pre", true, &meta.pre, &err) &&
        gd_gguf_get_strings(file, "tokenizer.ggml.tokens", true, TOKENS_MAX * 16, &meta.tokens, &meta.vocab_count,
                            &err) &&
        gd_gguf_get_i32s(file, "tokenizer.ggml.token_type", true, TOKENS_MAX * 16, &meta.token_types, &types, &err) &&
        gd_gguf_get_strings(file, "tokenizer.ggml.merges", true, MERGES_MAX, &meta.merges, &meta.merge_count, &err);
    if (!ok)
        fail_msg("%s", err.message);
    struct gd_tokenizer *tokenizer = load(&meta);
    gd_gguf_close(file);
    assert_int_equal(gd_tokenizer_vocab_count(tokenizer), 49152);
    assert_true(gd_tokenizer_is_special(tokenizer, gd_tokenizer_find(tokenizer, "<|im_end|>")));
    cJSON *root = open_fixture("smollm2.cases.json");
    assert_true(check_cases(tokenizer, gd_json_find(root, "cases"), "SmolLM2") >= 500);
    cJSON_Delete(root);
    gd_tokenizer_destroy(tokenizer);
}

static void expect_refusal(const struct gd_tokenizer_gguf *meta, enum gd_code code, const char *part)
{
    struct gd_tokenizer *tokenizer = NULL;
    struct gd_error err = {0};
    assert_false(gd_tokenizer_from_gguf(&tokenizer, meta, &err));
    assert_null(tokenizer);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("expected %s with \"%s\", got %s: %s", gd_code_wire(code), part, gd_code_wire(err.code), err.message);
}

static void damaged_metadata_is_refused_by_name(void **state)
{
    struct metadata *m = metadata_of("smollm", "gpt2", "smollm");
    struct gd_tokenizer_gguf meta = m->meta;
    meta.pre = "viking";
    expect_refusal(&meta, GD_UNSUPPORTED, "viking");
    meta = m->meta;
    meta.model = "rwkv";
    expect_refusal(&meta, GD_UNSUPPORTED, "rwkv");
    meta.model = "bert";
    meta.cls_id = meta.vocab_count;
    expect_refusal(&meta, GD_BAD_MODEL, "cls_token_id");
    meta.model = "t5";
    meta.cls_id = -1;
    meta.scores = NULL;
    expect_refusal(&meta, GD_BAD_MODEL, "scores");
    meta = m->meta;
    meta.model = NULL;
    expect_refusal(&meta, GD_UNSUPPORTED, "tokenizer model");
    meta = m->meta;
    meta.eos_id = meta.vocab_count;
    expect_refusal(&meta, GD_BAD_MODEL, "eos_token_id");
    meta.eos_id = -2;
    expect_refusal(&meta, GD_BAD_MODEL, "eos_token_id");
    meta = m->meta;
    meta.vocab_count = 0;
    expect_refusal(&meta, GD_BAD_MODEL, "0 tokens");
    meta = m->meta;
    meta.add_bos = 1;
    expect_refusal(&meta, GD_BAD_MODEL, "bos");
    meta = m->meta;
    meta.model = "llama";
    meta.scores = NULL;
    expect_refusal(&meta, GD_BAD_MODEL, "scores");
    meta.scores = m->scores;
    m->scores[300] = NAN;
    expect_refusal(&meta, GD_BAD_MODEL, "scores[300]");
    meta = m->meta;
    m->types[5] = 9;
    expect_refusal(&meta, GD_BAD_MODEL, "token_type[5]");
    m->types[5] = 1;
    const char *kept = m->tokens[7];
    m->tokens[7] = m->tokens[8];
    expect_refusal(&meta, GD_BAD_MODEL, "two ids");
    m->tokens[7] = "\xFF\xFE";
    expect_refusal(&meta, GD_BAD_MODEL, "tokens[7]");
    m->tokens[7] = kept;
    char *merge = m->merges[3];
    const char *const bad[] = {"", " ", "a", "a ", "nothing like_it", "a nothing-like-it"};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        m->merges[3] = gd_strdup(bad[i]);
        expect_refusal(&meta, GD_BAD_MODEL, "merges[3]");
        gd_free(m->merges[3]);
    }
    m->merges[3] = merge;
    struct gd_tokenizer *tokenizer = load(&meta); /* all is well again */
    gd_tokenizer_destroy(tokenizer);
    release(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_gpt2_family_gives_the_ids_of_the_reference),
        cmocka_unit_test(the_llama3_family_gives_the_ids_of_the_reference),
        cmocka_unit_test(the_qwen2_family_gives_the_ids_of_the_reference),
        cmocka_unit_test(the_smollm_family_gives_the_ids_of_the_reference),
        cmocka_unit_test(scored_pieces_give_the_ids_of_the_reference),
        cmocka_unit_test(newer_patterns_give_the_ids_of_the_reference),
        cmocka_unit_test(the_neox_family_gives_the_ids_of_the_reference),
        cmocka_unit_test(gemma_gives_the_ids_of_the_reference),
        cmocka_unit_test(t5_gives_the_ids_of_sentencepiece),
        cmocka_unit_test(bert_gives_the_ids_of_the_reference),
        cmocka_unit_test(the_default_family_cuts_digits_in_threes),
        cmocka_unit_test(smollm2_gives_the_ids_of_the_reference),
        cmocka_unit_test(damaged_metadata_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
