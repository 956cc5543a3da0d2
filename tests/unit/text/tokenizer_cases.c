#include "tests/unit/text/tokenizer_cases.h"
#include "engine/base/alloc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

const char *fixtures(void)
{
    const char *path = getenv("GD_FIXTURES");
    if (path == NULL)
        fail_msg("GD_FIXTURES must name tests/fixtures");
    return path;
}

cJSON *open_fixture(const char *file)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/tokenizer/%s", fixtures(), file);
    cJSON *root = gd_json_parse_file(path, 1 << 20, &err);
    if (root == NULL)
        fail_msg("%s", err.message);
    gd_free(path);
    return root;
}

static void print_ids(struct gd_buf *out, const char *name, const int32_t *ids, int count)
{
    gd_buf_printf(out, "%s (%d):", name, count);
    for (int i = 0; i < count && i < 64; i++)
        gd_buf_printf(out, " %d", ids[i]);
    gd_buf_append_char(out, '\n');
}

static void check_ids(const cJSON *expected, const struct gd_tokens *got, const char *text, const char *label)
{
    int count = cJSON_GetArraySize(expected), i = 0;
    int32_t *ids = gd_alloc_array((size_t)count + 1, sizeof(ids[0]));
    for (const cJSON *item = expected->child; item != NULL; item = item->next)
        ids[i++] = item->valueint;
    if (count != got->count || (count > 0 && memcmp(ids, got->ids, (size_t)count * sizeof(ids[0])) != 0)) {
        struct gd_buf message;
        gd_buf_init(&message, 0);
        print_ids(&message, "expected", ids, count);
        print_ids(&message, "got", got->ids, got->count);
        fail_msg("%s\ntext: %s\n%s", label, text, message.data);
    }
    gd_free(ids);
}

static void check_decoded(const struct gd_tokenizer *tokenizer, const struct gd_tokens *tokens, bool skip,
                          const char *expected, const char *label)
{
    struct gd_buf text;
    gd_buf_init(&text, 0);
    gd_tokenizer_decode(tokenizer, tokens->ids, tokens->count, skip, &text);
    if (strcmp(text.length > 0 ? text.data : "", expected) != 0)
        fail_msg("%s decoded (skip %d)\nexpected: %s\ngot: %s", label, skip, expected, text.data);
    gd_buf_release(&text);
}

static void encode(const struct gd_tokenizer *tokenizer, const char *text, enum gd_special_mode mode, bool ends,
                   struct gd_tokens *out)
{
    struct gd_error err = {0};
    out->count = 0;
    if (!gd_tokenizer_encode(tokenizer, text, strlen(text), mode, ends, out, &err))
        fail_msg("%s: %s", text, err.message);
}

/* Every range lies in the text and they begin in ascending order. */
static void check_ranges(const struct gd_tokens *tokens, const char *text, const char *label)
{
    for (int i = 0; i < tokens->count; i++)
        if (tokens->begin[i] < 0 || tokens->begin[i] > tokens->end[i] || (size_t)tokens->end[i] > strlen(text) ||
            (i > 0 && tokens->begin[i] < tokens->begin[i - 1]))
            fail_msg("%s: token %d of \"%s\" has the range [%d, %d)", label, i, text, tokens->begin[i], tokens->end[i]);
}

int check_cases(const struct gd_tokenizer *tokenizer, const cJSON *cases, const char *label)
{
    struct gd_tokens tokens = {.with_offsets = true};
    int count = 0;
    for (const cJSON *item = cases->child; item != NULL; item = item->next, count++) {
        const cJSON *text = item->child, *ids = text->next, *decoded = ids->next, *plain = decoded->next,
                    *skipped = plain->next;
        const char *whole = cJSON_IsString(decoded) ? decoded->valuestring : text->valuestring;
        encode(tokenizer, text->valuestring, GD_SPECIAL_PARSE, false, &tokens);
        check_ids(ids, &tokens, text->valuestring, label);
        check_ranges(&tokens, text->valuestring, label);
        check_decoded(tokenizer, &tokens, false, whole, label);
        check_decoded(tokenizer, &tokens, true, cJSON_IsString(skipped) ? skipped->valuestring : whole, label);
        encode(tokenizer, text->valuestring, GD_SPECIAL_AS_TEXT, false, &tokens);
        check_ids(cJSON_IsArray(plain) ? plain : ids, &tokens, text->valuestring, label);
        int32_t unknown = gd_tokenizer_find(tokenizer, "<unk>");
        if (unknown < 0)
            unknown = gd_tokenizer_find(tokenizer, "[UNK]");
        for (int i = 0; i < tokens.count; i++)
            assert_true(!gd_tokenizer_is_special(tokenizer, tokens.ids[i]) || tokens.ids[i] == unknown);
    }
    gd_tokens_release(&tokens);
    return count;
}

int check_plain_cases(const struct gd_tokenizer *tokenizer, const cJSON *cases, const char *label)
{
    struct gd_tokens tokens = {.with_offsets = true};
    int count = 0;
    for (const cJSON *item = cases->child; item != NULL; item = item->next, count++) {
        const cJSON *text = item->child, *ids = text->next, *decoded = ids->next;
        encode(tokenizer, text->valuestring, GD_SPECIAL_AS_TEXT, false, &tokens);
        check_ids(ids, &tokens, text->valuestring, label);
        check_ranges(&tokens, text->valuestring, label);
        check_decoded(tokenizer, &tokens, true, decoded->valuestring, label);
    }
    gd_tokens_release(&tokens);
    return count;
}

unsigned char *hex_of(const char *text, size_t *length)
{
    *length = strlen(text) / 2;
    unsigned char *out = gd_alloc(*length + 1);
    for (size_t i = 0; i < *length; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], '\0'};
        out[i] = (unsigned char)strtoul(pair, NULL, 16);
    }
    return out;
}

void check_with_ends(const struct gd_tokenizer *tokenizer, const cJSON *cases, const char *label)
{
    struct gd_tokens tokens = {0};
    for (const cJSON *item = cases->child; item != NULL; item = item->next) {
        encode(tokenizer, item->child->valuestring, GD_SPECIAL_PARSE, true, &tokens);
        check_ids(item->child->next, &tokens, item->child->valuestring, label);
    }
    gd_tokens_release(&tokens);
}
