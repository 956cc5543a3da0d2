/* Folders without tokenizer.json: SentencePiece models, vocab.txt, vocab.json with merges.txt; what they must give, and what is
 * refused by name. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "tests/unit/text/tokenizer_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static unsigned char *model_of(const cJSON *root, size_t *length)
{
    return hex_of(gd_json_find(root, "model")->valuestring, length);
}

static cJSON *open_model(const char *name)
{
    char *file = gd_format("spm_%s.json", name);
    cJSON *root = open_fixture(file);
    gd_free(file);
    return root;
}

static struct gd_tokenizer *load_model(const cJSON *root, const char *file, const char *config)
{
    size_t length = 0;
    unsigned char *data = model_of(root, &length);
    struct gd_tokenizer *tokenizer = NULL;
    struct gd_error err = {0};
    cJSON *tree = config != NULL ? cJSON_Parse(config) : NULL;
    if (!gd_tokenizer_from_sentencepiece(&tokenizer, data, length, file, tree, NULL, &err))
        fail_msg("%s", err.message);
    cJSON_Delete(tree);
    gd_free(data);
    return tokenizer;
}

static void expect_ids(const struct gd_tokenizer *tokenizer, const char *text, enum gd_special_mode mode, bool ends,
                       const int32_t *ids, int count)
{
    struct gd_tokens tokens = {0};
    struct gd_error err = {0};
    assert_true(gd_tokenizer_encode(tokenizer, text, strlen(text), mode, ends, &tokens, &err));
    if (tokens.count != count || (count > 0 && memcmp(tokens.ids, ids, (size_t)count * sizeof(ids[0])) != 0)) {
        for (int i = 0; i < tokens.count; i++)
            print_message("%d %s\n", tokens.ids[i], gd_tokenizer_token(tokenizer, tokens.ids[i]));
        fail_msg("other ids for \"%s\"", text);
    }
    gd_tokens_release(&tokens);
}

static void models_do_as_sentencepiece_does(void **state)
{
    static const char *const names[] = {"t5", "unigram", "suffix", "bpe", "llama", "gemma"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        cJSON *root = open_model(names[i]);
        struct gd_tokenizer *tokenizer = load_model(root, "tokenizer.model", NULL);
        assert_true(check_plain_cases(tokenizer, gd_json_find(root, "cases"), names[i]) >= 45);
        gd_tokenizer_destroy(tokenizer);
        cJSON_Delete(root);
    }
}

/* <s> and </s> in a template's text are the tokens; behind them a space is put again unless "legacy" is false. */
static void llama_wraps_a_model_as_its_config_says(void **state)
{
    cJSON *root = open_model("llama");
    struct gd_tokenizer *tokenizer = load_model(root, "tokenizer.model", NULL);
    int32_t space = gd_tokenizer_find(tokenizer, "\xE2\x96\x81"), a = gd_tokenizer_find(tokenizer, "a");
    int32_t spaced = gd_tokenizer_find(tokenizer, "\xE2\x96\x81" "a");
    assert_int_equal(gd_tokenizer_bos(tokenizer), 1);
    assert_int_equal(gd_tokenizer_eos(tokenizer), 2);
    assert_true(space > 0 && a > 0 && spaced > 0);
    expect_ids(tokenizer, "a<s>a", GD_SPECIAL_PARSE, true, (int32_t[]){1, spaced, 1, spaced}, 4);
    gd_tokenizer_destroy(tokenizer);
    tokenizer = load_model(root, "tokenizer.model",
                           "{\"tokenizer_class\":\"LlamaTokenizer\",\"legacy\":false,\"add_bos_token\":false,\"add_eos_token\":true,"
                           "\"added_tokens_decoder\":{\"500\":{\"content\":\"<turn>\",\"special\":true}}}");
    expect_ids(tokenizer, "a<s>a<turn>", GD_SPECIAL_PARSE, true, (int32_t[]){spaced, 1, a, 500, 2}, 5);
    gd_tokenizer_destroy(tokenizer);
    cJSON_Delete(root);
}

static void t5_gets_its_end_and_its_sentinels(void **state)
{
    cJSON *root = open_model("t5");
    struct gd_tokenizer *tokenizer = load_model(root, "spiece.model", NULL);
    int32_t count = cJSON_GetArraySize(gd_json_find(root, "pieces"));
    assert_int_equal(gd_tokenizer_vocab_count(tokenizer), count + 100);
    assert_int_equal(gd_tokenizer_find(tokenizer, "<extra_id_0>"), count + 99);
    assert_int_equal(gd_tokenizer_find(tokenizer, "<extra_id_99>"), count);
    expect_ids(tokenizer, "<extra_id_0>", GD_SPECIAL_PARSE, true, (int32_t[]){count + 99, 1}, 2);
    gd_tokenizer_destroy(tokenizer);
    tokenizer = load_model(root, "spiece.model", "{\"tokenizer_class\":\"T5Tokenizer\",\"extra_ids\":3}");
    assert_int_equal(gd_tokenizer_find(tokenizer, "<extra_id_2>"), count);
    gd_tokenizer_destroy(tokenizer);
    cJSON_Delete(root);
}

/* XLM-RoBERTa: fairseq's four tokens first, so every piece of the model is one further. */
static void xlm_roberta_moves_ids_by_one(void **state)
{
    cJSON *root = open_model("bpe");
    struct gd_tokenizer *plain = load_model(root, "tokenizer.model", NULL);
    struct gd_tokenizer *moved = load_model(root, "sentencepiece.bpe.model", NULL);
    struct gd_tokens tokens = {0}, others = {0};
    struct gd_error err = {0};
    assert_true(gd_tokenizer_encode(plain, "All human beings \xE4\xBD\xA0", 20, GD_SPECIAL_PARSE, false, &tokens, &err));
    assert_true(gd_tokenizer_encode(moved, "All human beings \xE4\xBD\xA0", 20, GD_SPECIAL_PARSE, true, &others, &err));
    assert_int_equal(others.count, tokens.count + 2);
    assert_int_equal(others.ids[0], 0);
    assert_int_equal(others.ids[others.count - 1], 2);
    for (int i = 0; i < tokens.count; i++)
        assert_int_equal(others.ids[i + 1], tokens.ids[i] == 0 ? 3 : tokens.ids[i] + 1);
    assert_int_equal(gd_tokenizer_find(moved, "<mask>"), gd_tokenizer_vocab_count(moved) - 1);
    gd_tokens_release(&tokens);
    gd_tokens_release(&others);
    gd_tokenizer_destroy(plain);
    gd_tokenizer_destroy(moved);
    cJSON_Delete(root);
}

/* ---- folders ---- */

struct folder {
    char path[64];
};

static struct folder make_folder(void)
{
    struct folder folder;
    (void)snprintf(folder.path, sizeof(folder.path), "/tmp/gd-tokenizer-XXXXXX");
    assert_non_null(mkdtemp(folder.path));
    return folder;
}

static void put(const struct folder *folder, const char *name, const void *data, size_t length)
{
    char *path = gd_format("%s/%s", folder->path, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    gd_free(path);
}

static void put_text(const struct folder *folder, const char *name, const char *text)
{
    put(folder, name, text, strlen(text));
}

static void remove_folder(const struct folder *folder)
{
    static const char *const names[] = {"vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
                                        "added_tokens.json", "special_tokens_map.json"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        char *path = gd_format("%s/%s", folder->path, names[i]);
        (void)unlink(path);
        gd_free(path);
    }
    assert_int_equal(rmdir(folder->path), 0);
}

static bool open_folder(struct gd_tokenizer **out, const struct folder *folder, const char *config, struct gd_error *err)
{
    cJSON *tree = config != NULL ? cJSON_Parse(config) : NULL;
    *err = (struct gd_error){0};
    bool ok = gd_tokenizer_from_folder(out, folder->path, tree, err);
    cJSON_Delete(tree);
    assert_true(ok == (*out != NULL));
    return ok;
}

/* The older files of a fixture: vocab.txt, or vocab.json with merges.txt. */
static void put_older(const struct folder *folder, const char *name)
{
    char *file = gd_format("%s.json", name);
    cJSON *root = open_fixture(file), *vocab = cJSON_Duplicate(gd_json_find(gd_json_find(root, "model"), "vocab"), true);
    const cJSON *merges = gd_json_find(gd_json_find(root, "model"), "merges");
    struct gd_buf text;
    gd_buf_init(&text, 0);
    if (merges == NULL) {
        int next = 0;
        for (bool found = true; found; next++) {
            found = false;
            for (const cJSON *item = vocab->child; item != NULL && !found; item = item->next)
                if (item->valueint == next) {
                    gd_buf_printf(&text, "%s\n", item->string);
                    found = true;
                }
        }
        put(folder, "vocab.txt", text.data, text.length);
    } else {
        for (const cJSON *item = gd_json_find(root, "added_tokens")->child; item != NULL; item = item->next)
            if (gd_json_find(vocab, gd_json_find(item, "content")->valuestring) == NULL)
                cJSON_AddNumberToObject(vocab, gd_json_find(item, "content")->valuestring, gd_json_find(item, "id")->valueint);
        char *json = gd_json_print(vocab);
        put_text(folder, "vocab.json", json);
        gd_free(json);
        gd_buf_append_text(&text, "#version: 0.2\n");
        for (const cJSON *item = merges->child; item != NULL; item = item->next)
            gd_buf_printf(&text, "%s%s%s\n", cJSON_IsString(item) ? item->valuestring : item->child->valuestring,
                          cJSON_IsString(item) ? "" : " ", cJSON_IsString(item) ? "" : item->child->next->valuestring);
        put(folder, "merges.txt", text.data, text.length);
    }
    gd_buf_release(&text);
    cJSON_Delete(vocab);
    cJSON_Delete(root);
    gd_free(file);
}

static void older_files_give_the_ids_of_the_reference(void **state)
{
    static const struct {
        const char *name, *config;
    } cases[] = {
        {"bert", NULL},
        {"gpt2", NULL},
        {"roberta", "{\"tokenizer_class\":\"RobertaTokenizer\"}"},
        {"roberta", NULL},
        {"opt", "{\"tokenizer_class\":\"GPT2Tokenizer\",\"add_bos_token\":true,\"bos_token\":\"</s>\",\"eos_token\":\"</s>\","
                "\"pad_token\":\"<pad>\",\"unk_token\":\"<unk>\",\"additional_special_tokens\":[\"<s>\"]}"},
        {"qwen2", "{\"tokenizer_class\":\"Qwen2Tokenizer\",\"additional_special_tokens\":[\"<|im_start|>\",\"<|im_end|>\"],"
                  "\"added_tokens_decoder\":{\"1500\":{\"content\":\"<tool_call>\",\"special\":false}}}"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct folder folder = make_folder();
        struct gd_tokenizer *tokenizer = NULL;
        struct gd_error err;
        put_older(&folder, cases[i].name);
        if (!open_folder(&tokenizer, &folder, cases[i].config, &err))
            fail_msg("%s: %s", cases[i].name, err.message);
        char *file = gd_format("%s.cases.json", cases[i].name);
        cJSON *root = open_fixture(file);
        assert_true(check_cases(tokenizer, gd_json_find(root, "cases"), file) >= 54);
        check_with_ends(tokenizer, gd_json_find(root, "with_ends"), file);
        cJSON_Delete(root);
        gd_free(file);
        gd_tokenizer_destroy(tokenizer);
        remove_folder(&folder);
    }
}

static void small_files_beside_a_vocabulary_count(void **state)
{
    struct folder folder = make_folder();
    struct gd_tokenizer *tokenizer = NULL;
    struct gd_error err;
    put_text(&folder, "vocab.txt", "[PAD]\r\n[UNK]\r\n\r\n[CLS]\r\n[SEP]\r\na\r\n##b\r\nA");
    put_text(&folder, "added_tokens.json", "{\"new\": 9}");
    put_text(&folder, "special_tokens_map.json", "{\"cls_token\": {\"content\": \"[CLS]\"}, \"unk_token\": \"[UNK]\"}");
    if (!open_folder(&tokenizer, &folder, "{\"do_lower_case\": false}", &err))
        fail_msg("%s", err.message);
    expect_ids(tokenizer, "ab A new c", GD_SPECIAL_PARSE, true, (int32_t[]){3, 5, 6, 7, 9, 1, 4}, 7);
    gd_tokenizer_destroy(tokenizer);
    remove_folder(&folder);
}

/* ---- what is refused ---- */

static void expect_folder_refusal(const char *name, const char *text, const char *more, const char *config, enum gd_code code,
                                  const char *part)
{
    struct folder folder = make_folder();
    struct gd_tokenizer *tokenizer = NULL;
    struct gd_error err;
    if (name != NULL)
        put_text(&folder, name, text);
    if (more != NULL)
        put_text(&folder, "merges.txt", more);
    bool ok = open_folder(&tokenizer, &folder, config, &err);
    remove_folder(&folder);
    if (ok)
        fail_msg("loaded: %s", text);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("expected %s with \"%s\", got %s: %s", gd_code_wire(code), part, gd_code_wire(err.code), err.message);
}

static void damaged_older_files_are_refused_by_name(void **state)
{
    expect_folder_refusal(NULL, "", NULL, NULL, GD_BAD_MODEL, "none of tokenizer.json");
    expect_folder_refusal("vocab.txt", "", NULL, NULL, GD_BAD_MODEL, "vocab.txt");
    expect_folder_refusal("vocab.txt", "[UNK]\na\n\xFF\n", NULL, NULL, GD_BAD_MODEL, "vocab.txt line 3");
    expect_folder_refusal("vocab.txt", "[UNK]\n[CLS]\n[SEP]\na\na\n", NULL, NULL, GD_BAD_MODEL, "two");
    expect_folder_refusal("vocab.txt", "[UNK]\na\n", NULL, NULL, GD_BAD_MODEL, "cls_token");
    expect_folder_refusal("vocab.txt", "[UNK]\n", NULL, "{\"do_lower_case\":1}", GD_BAD_MODEL, "do_lower_case");
    expect_folder_refusal("vocab.json", "{\"a\":0}", NULL, NULL, GD_BAD_MODEL, "none of");
    expect_folder_refusal("vocab.json", "{\"a\":0", "", NULL, GD_BAD_MODEL, "vocab.json");
    expect_folder_refusal("vocab.json", "[]", "", NULL, GD_BAD_MODEL, "vocab.json");
    expect_folder_refusal("vocab.json", "{\"a\":0,\"b\":1,\"ab\":2}", "#version: 0.2\na b\nab\n", NULL, GD_BAD_MODEL,
                          "merges.txt line 3");
    expect_folder_refusal("vocab.json", "{\"a\":0,\"b\":1}", "a b\n", NULL, GD_BAD_MODEL, "\"ab\"");
    expect_folder_refusal("vocab.json", "{\"a\":0,\"b\":0}", "\n", NULL, GD_BAD_MODEL, "two tokens");
    expect_folder_refusal("vocab.json", "{\"a\":0}", "\n", "{\"tokenizer_class\":\"CTRLTokenizer\"}", GD_UNSUPPORTED,
                          "CTRLTokenizer");
    expect_folder_refusal("tokenizer.model", "not a model", NULL, NULL, GD_BAD_MODEL, "tokenizer.model: byte");
    expect_folder_refusal("tokenizer.model", "", NULL, NULL, GD_BAD_MODEL, "no pieces");
}

/* A protocol buffer from a list of pieces and the two specs. */
static void model_error(const char *bytes, size_t length, const char *config, enum gd_code code, const char *part)
{
    struct gd_tokenizer *tokenizer = NULL;
    struct gd_error err = {0};
    cJSON *tree = config != NULL ? cJSON_Parse(config) : NULL;
    bool ok = gd_tokenizer_from_sentencepiece(&tokenizer, bytes, length, "tokenizer.model", tree, NULL, &err);
    cJSON_Delete(tree);
    if (ok || err.code != code || strstr(err.message, part) == NULL)
        fail_msg("expected %s with \"%s\", got %s: %s", gd_code_wire(code), part, gd_code_wire(err.code), err.message);
}
#define REFUSED(bytes, code, part) model_error(bytes, sizeof(bytes) - 1, NULL, code, part)
#define UNK "\x0A\x09\x0A\x05<unk>\x18\x02"
#define PIECE_A "\x0A\x08\x0A\x01" "a\x15\0\0\x80\xBF"
#define BPE_MODEL "\x12\x02\x18\x02"

static void damaged_models_are_refused_by_name(void **state)
{
    REFUSED("\x0A", GD_BAD_MODEL, "byte 1: the file ends inside a number");
    REFUSED("\x0A\x7F", GD_BAD_MODEL, "byte 2: a field is longer");
    REFUSED("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", GD_BAD_MODEL, "more than 10 bytes");
    REFUSED("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", GD_BAD_MODEL, "longer than what is left");
    REFUSED("\x0B", GD_BAD_MODEL, "unknown kind");
    REFUSED("\x02\x00", GD_BAD_MODEL, "without a number");
    REFUSED("\x0A\x00", GD_BAD_MODEL, "without text");
    REFUSED("\x0A\x02\x0A\x00", GD_BAD_MODEL, "without text");
    REFUSED("\x0A\x03\x0A\x01\x00", GD_BAD_MODEL, "NUL");
    REFUSED("\x0A\x05\x0A\x01" "a\x18\x07", GD_BAD_MODEL, "unknown type");
    REFUSED("\x0A\x03\x0A\x01\xFF" UNK, GD_BAD_MODEL, "UTF-8");
    REFUSED("\x0A\x08\x0A\x01" "a\x15\0\0\xC0\x7F" UNK, GD_BAD_MODEL, "not a number");
    REFUSED(UNK PIECE_A PIECE_A, GD_BAD_MODEL, "piece 2");
    REFUSED(PIECE_A, GD_BAD_MODEL, "0 pieces are the unknown one");
    REFUSED(UNK UNK, GD_BAD_MODEL, "2 pieces are the unknown one");
    REFUSED(UNK "\x12\x02\x18\x03", GD_UNSUPPORTED, "word");
    REFUSED(UNK "\x12\x02\x18\x09", GD_UNSUPPORTED, "unknown kind");
    REFUSED(UNK "\x12\x03\x98\x02\x01", GD_BAD_MODEL, "256 are wanted");
    REFUSED(UNK "\x0A\x0A\x0A\x06<0xZZ>\x18\x06", GD_BAD_MODEL, "spelled");
    REFUSED(UNK PIECE_A "\x1A\x05\x12\x03" "abc", GD_BAD_MODEL, "charsmap");
    REFUSED(UNK PIECE_A "\x2A\x02\x08\x01", GD_UNSUPPORTED, "denormalizer");
    REFUSED(BPE_MODEL UNK PIECE_A "\x0A\x06\x0A\x02" "aa\x18\x05", GD_UNSUPPORTED, "unused");
    model_error(UNK PIECE_A, sizeof(UNK PIECE_A) - 1, "{\"tokenizer_class\":\"AlbertTokenizer\"}", GD_UNSUPPORTED, "AlbertTokenizer");
    model_error(UNK PIECE_A, sizeof(UNK PIECE_A) - 1, "{\"bos_token\":\"<none>\"}", GD_BAD_MODEL, "bos_token");
}

static void cut_and_changed_models_never_crash(void **state)
{
    static const char *const names[] = {"t5", "gemma"};
    uint64_t random = 88172645463325252u;
    for (size_t k = 0; k < GD_COUNT(names); k++) {
        cJSON *root = open_model(names[k]);
        size_t length = 0;
        unsigned char *data = model_of(root, &length);
        for (int round = 0; round < 600; round++) {
            struct gd_tokenizer *tokenizer = NULL;
            struct gd_error err = {0};
            unsigned char *changed = gd_alloc(length);
            memcpy(changed, data, length);
            size_t cut = length;
            for (int i = 0; i < 1 + round % 4; i++) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                changed[random % length] ^= (unsigned char)(1u << (random >> 32) % 8);
                cut = round % 3 == 0 ? random % length : length;
            }
            if (gd_tokenizer_from_sentencepiece(&tokenizer, changed, cut, "tokenizer.model", NULL, NULL, &err)) {
                struct gd_tokens tokens = {.with_offsets = true};
                const char text[] = "  Hello \xC3\xA9" "e\xCC\x81 \xE4\xBD\xA0 <u1> foo \n\n";
                (void)!gd_tokenizer_encode(tokenizer, text, sizeof(text) - 1, GD_SPECIAL_PARSE, true, &tokens, &err);
                gd_tokens_release(&tokens);
                gd_tokenizer_destroy(tokenizer);
            }
            gd_free(changed);
        }
        gd_free(data);
        cJSON_Delete(root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_do_as_sentencepiece_does),
        cmocka_unit_test(llama_wraps_a_model_as_its_config_says),
        cmocka_unit_test(t5_gets_its_end_and_its_sentinels),
        cmocka_unit_test(xlm_roberta_moves_ids_by_one),
        cmocka_unit_test(older_files_give_the_ids_of_the_reference),
        cmocka_unit_test(small_files_beside_a_vocabulary_count),
        cmocka_unit_test(damaged_older_files_are_refused_by_name),
        cmocka_unit_test(damaged_models_are_refused_by_name),
        cmocka_unit_test(cut_and_changed_models_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
