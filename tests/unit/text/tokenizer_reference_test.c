/* The ids and texts of the reference implementation, for every stored case of every stored tokenizer. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "tests/unit/text/tokenizer_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct gd_tokenizer *open_json(const char *name)
{
    char *text = NULL;
    size_t length = 0;
    struct gd_error err = {0};
    char *path = gd_format("%s/tokenizer/%s.json", fixtures(), name);
    if (!gd_file_read(path, 1 << 20, &text, &length, &err))
        fail_msg("%s", err.message);
    struct gd_tokenizer *tokenizer = NULL;
    if (!gd_tokenizer_from_json(&tokenizer, text, length, NULL, 0, &err))
        fail_msg("%s: %s", name, err.message);
    gd_free(path);
    gd_free(text);
    return tokenizer;
}

static void check_family(const char *name, int least)
{
    struct gd_tokenizer *tokenizer = open_json(name);
    char *file = gd_format("%s.cases.json", name);
    cJSON *root = open_fixture(file);
    assert_true(check_cases(tokenizer, gd_json_find(root, "cases"), name) >= least);
    check_with_ends(tokenizer, gd_json_find(root, "with_ends"), name);
    cJSON_Delete(root);
    gd_free(file);
    gd_tokenizer_destroy(tokenizer);
}

static void gpt2_gives_the_ids_of_the_reference(void **state)
{
    check_family("gpt2", 420);
}

static void llama3_gives_the_ids_of_the_reference(void **state)
{
    check_family("llama3", 420);
}

static void qwen2_gives_the_ids_of_the_reference(void **state)
{
    check_family("qwen2", 420);
}

static void smollm_gives_the_ids_of_the_reference(void **state)
{
    check_family("smollm", 420);
}

static void llama2_gives_the_ids_of_the_reference(void **state)
{
    check_family("llama2", 420);
}

static void mistral_gives_the_ids_of_the_reference(void **state)
{
    check_family("mistral", 420);
}

/* Variants hold single components on a shared model. */
static void check_parts(const char *name)
{
    char *file = gd_format("parts_%s.json", name);
    cJSON *root = open_fixture(file);
    const cJSON *variants = gd_json_find(root, "variants");
    int index = 0;
    for (const cJSON *item = variants->child; item != NULL; item = item->next, index++) {
        cJSON *spec = cJSON_Duplicate(gd_json_find(item, "parts"), true);
        cJSON *model = cJSON_Duplicate(gd_json_find(root, "model"), true);
        for (const cJSON *change = gd_json_find(item, "model_changes")->child; change != NULL; change = change->next)
            assert_true(cJSON_ReplaceItemInObjectCaseSensitive(model, change->string, cJSON_Duplicate(change, true)));
        cJSON_AddItemToObject(spec, "model", model);
        char *text = cJSON_PrintUnformatted(spec), *parts = cJSON_PrintUnformatted(gd_json_find(item, "parts"));
        char *label = gd_format("%s variant %d %s", name, index, parts);
        struct gd_tokenizer *tokenizer = NULL;
        struct gd_error err = {0};
        if (!gd_tokenizer_from_json(&tokenizer, text, strlen(text), NULL, 0, &err))
            fail_msg("%s: %s", label, err.message);
        assert_true(check_cases(tokenizer, gd_json_find(item, "cases"), label) >= 5);
        gd_tokenizer_destroy(tokenizer);
        gd_free(label);
        cJSON_free(text);
        cJSON_free(parts);
        cJSON_Delete(spec);
    }
    assert_true(index > 0);
    cJSON_Delete(root);
    gd_free(file);
}

static void components_on_characters_do_as_the_reference(void **state)
{
    check_parts("char");
}

static void components_on_bytes_do_as_the_reference(void **state)
{
    check_parts("byte");
}

static void word_affixes_do_as_the_reference(void **state)
{
    check_parts("affix");
}

static void t5_gives_the_ids_of_the_reference(void **state)
{
    check_family("t5", 200);
}

static void albert_gives_the_ids_of_the_reference(void **state)
{
    check_family("albert", 200);
}

static void unigram_with_byte_fallback_gives_the_ids_of_the_reference(void **state)
{
    check_family("unigram_bytes", 150);
}

static void bert_gives_the_ids_of_the_reference(void **state)
{
    check_family("bert", 200);
}

static void components_on_words_do_as_the_reference(void **state)
{
    check_parts("word");
}

static void gemma_gives_the_ids_of_the_reference(void **state)
{
    check_family("gemma", 54);
}

static void phi3_gives_the_ids_of_the_reference(void **state)
{
    check_family("phi3", 54);
}

static void mixtral_gives_the_ids_of_the_reference(void **state)
{
    check_family("mixtral", 54);
}

static void gpt_neox_gives_the_ids_of_the_reference(void **state)
{
    check_family("neox", 54);
}

static void opt_gives_the_ids_of_the_reference(void **state)
{
    check_family("opt", 54);
}

static void roberta_gives_the_ids_of_the_reference(void **state)
{
    check_family("roberta", 56);
}

static void whole_words_do_as_the_reference(void **state)
{
    check_parts("level");
}

static void rare_components_do_as_the_reference(void **state)
{
    check_parts("rare");
}

static void sums_of_scores_are_those_of_the_reference(void **state)
{
    cJSON *root = open_fixture("ties.json");
    int count = 0;
    for (const cJSON *item = gd_json_find(root, "variants")->child; item != NULL; item = item->next) {
        const char *text = gd_json_find(item, "json")->valuestring;
        struct gd_tokenizer *tokenizer = NULL;
        struct gd_error err = {0};
        assert_true(gd_tokenizer_from_json(&tokenizer, text, strlen(text), NULL, 0, &err));
        count += check_cases(tokenizer, gd_json_find(item, "cases"), text);
        gd_tokenizer_destroy(tokenizer);
    }
    assert_int_equal(count, 30);
    cJSON_Delete(root);
}

/* Characters that begin before byte `at`, or that end at or before it. */
static int characters(const char *text, int32_t at, bool begun)
{
    int count = 0;
    for (int32_t i = 0; i < at; i++)
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return begun || ((unsigned char)text[at] & 0xC0) != 0x80 ? count : count - 1;
}

/* Ours hold the characters that a normalizer drops or joins, and the single bytes of a character: then one of the two ranges
 * lies within the other. Returns how many are equal. */
static int check_offsets(const struct gd_tokenizer *tokenizer, const char *name, const cJSON *row, int *all)
{
    const char *text = row->child->valuestring;
    struct gd_tokens tokens = {.with_offsets = true};
    struct gd_error err = {0};
    assert_true(gd_tokenizer_encode(tokenizer, text, strlen(text), GD_SPECIAL_PARSE, false, &tokens, &err));
    assert_int_equal(cJSON_GetArraySize(row->child->next), 2 * tokens.count);
    const cJSON *at = row->child->next->child;
    int same = 0;
    for (int i = 0; i < tokens.count; i++, at = at->next->next) {
        int begin = at->valueint, end = at->next->valueint;
        int our_begin = characters(text, tokens.begin[i], false), our_end = characters(text, tokens.end[i], true);
        if (our_begin == begin && our_end == end)
            same++;
        else if (!(our_begin <= begin && our_end >= end) && !(our_begin >= begin && our_end <= end))
            fail_msg("%s \"%s\": token %d is [%d, %d), expected [%d, %d)", name, text, i, our_begin, our_end, begin, end);
    }
    *all += tokens.count;
    gd_tokens_release(&tokens);
    return same;
}

static void tokens_lie_where_the_reference_has_them(void **state)
{
    static const char *const joining[] = {"t5", "albert", "bert", "neox", "qwen2", "unigram_bytes"};
    cJSON *root = open_fixture("offsets.json");
    int families = 0;
    for (const cJSON *item = gd_json_find(root, "offsets")->child; item != NULL; item = item->next, families++) {
        struct gd_tokenizer *tokenizer = open_json(item->string);
        int all = 0, same = 0;
        bool joins = false;
        for (size_t i = 0; i < GD_COUNT(joining); i++)
            joins = joins || strcmp(item->string, joining[i]) == 0;
        for (const cJSON *row = item->child; row != NULL; row = row->next)
            same += check_offsets(tokenizer, item->string, row, &all);
        if (joins ? 10 * same < 7 * all : same != all)
            fail_msg("%s: only %d of %d ranges are those of the reference", item->string, same, all);
        gd_tokenizer_destroy(tokenizer);
    }
    assert_int_equal(families, 16);
    cJSON_Delete(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_gives_the_ids_of_the_reference),
        cmocka_unit_test(llama3_gives_the_ids_of_the_reference),
        cmocka_unit_test(qwen2_gives_the_ids_of_the_reference),
        cmocka_unit_test(smollm_gives_the_ids_of_the_reference),
        cmocka_unit_test(llama2_gives_the_ids_of_the_reference),
        cmocka_unit_test(mistral_gives_the_ids_of_the_reference),
        cmocka_unit_test(components_on_characters_do_as_the_reference),
        cmocka_unit_test(components_on_bytes_do_as_the_reference),
        cmocka_unit_test(word_affixes_do_as_the_reference),
        cmocka_unit_test(t5_gives_the_ids_of_the_reference),
        cmocka_unit_test(albert_gives_the_ids_of_the_reference),
        cmocka_unit_test(unigram_with_byte_fallback_gives_the_ids_of_the_reference),
        cmocka_unit_test(bert_gives_the_ids_of_the_reference),
        cmocka_unit_test(components_on_words_do_as_the_reference),
        cmocka_unit_test(gemma_gives_the_ids_of_the_reference),
        cmocka_unit_test(phi3_gives_the_ids_of_the_reference),
        cmocka_unit_test(mixtral_gives_the_ids_of_the_reference),
        cmocka_unit_test(gpt_neox_gives_the_ids_of_the_reference),
        cmocka_unit_test(opt_gives_the_ids_of_the_reference),
        cmocka_unit_test(roberta_gives_the_ids_of_the_reference),
        cmocka_unit_test(whole_words_do_as_the_reference),
        cmocka_unit_test(rare_components_do_as_the_reference),
        cmocka_unit_test(sums_of_scores_are_those_of_the_reference),
        cmocka_unit_test(tokens_lie_where_the_reference_has_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
