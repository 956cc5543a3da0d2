/* What must hold for every text: round trips, ranges that tile, specials only where the template wrote them. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "tests/unit/text/tokenizer_cases.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct gd_tokenizer *open_json(const char *name, const char *config)
{
    char *path = gd_format("%s/tokenizer/%s.json", fixtures(), name), *text = NULL;
    size_t length = 0;
    struct gd_error err = {0};
    struct gd_tokenizer *tokenizer = NULL;
    if (!gd_file_read(path, 1 << 20, &text, &length, &err) ||
        !gd_tokenizer_from_json(&tokenizer, text, length, config, config != NULL ? strlen(config) : 0, &err))
        fail_msg("%s: %s", path, err.message);
    gd_free(path);
    gd_free(text);
    return tokenizer;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 2685821657736338717u;
}

/* Random bytes made valid UTF-8: each lead byte gets what it needs, often ASCII, spaces and pieces of special tokens. */
static size_t random_text(uint64_t *random, char *out, size_t length_max)
{
    static const char *const parts[] = {"<|im_end|>", "<|im_start|>", "<s>",           "</s>",  "<|",
                                        "|>",         "im_end",       "<|endoftext|>", "<unk>", "<0x41>"};
    size_t length = 0, wanted = next_random(random) % (length_max - 16);
    while (length < wanted) {
        uint64_t r = next_random(random) >> 20;
        uint32_t code = (uint32_t)(r >> 8);
        switch (r % 8) {
        case 0: {
            const char *part = parts[(r >> 8) % GD_COUNT(parts)];
            memcpy(out + length, part, strlen(part));
            length += strlen(part);
            break;
        }
        case 1:
            out[length++] = " \n\t\r"[code % 4];
            break;
        case 2:
        case 3:
        case 4:
            out[length++] = (char)(1 + code % 127);
            break;
        case 5:
            code = 0x80 + code % 0x780;
            out[length++] = (char)(0xC0 | code >> 6);
            out[length++] = (char)(0x80 | (code & 0x3F));
            break;
        case 6:
            code = 0x800 + code % 0xF800;
            code = code >= 0xD800 && code < 0xE000 ? 0x4E00 : code;
            out[length++] = (char)(0xE0 | code >> 12);
            out[length++] = (char)(0x80 | (code >> 6 & 0x3F));
            out[length++] = (char)(0x80 | (code & 0x3F));
            break;
        default:
            code = 0x10000 + code % 0x100000;
            out[length++] = (char)(0xF0 | code >> 18);
            out[length++] = (char)(0x80 | (code >> 12 & 0x3F));
            out[length++] = (char)(0x80 | (code >> 6 & 0x3F));
            out[length++] = (char)(0x80 | (code & 0x3F));
        }
    }
    out[length] = '\0';
    return length;
}

static void encode(const struct gd_tokenizer *tokenizer, const char *text, size_t length, enum gd_special_mode mode,
                   struct gd_tokens *out)
{
    struct gd_error err = {0};
    out->count = 0;
    if (!gd_tokenizer_encode(tokenizer, text, length, mode, false, out, &err))
        fail_msg("%s", err.message);
}

/* Decoding and the joined pieces give the text back; ranges tile it and hold the token's own bytes. */
static void check_round_trip(const struct gd_tokenizer *tokenizer, const char *text, size_t length,
                             enum gd_special_mode mode)
{
    struct gd_tokens tokens = {.with_offsets = true};
    struct gd_buf whole, piece;
    gd_buf_init(&whole, 0);
    gd_buf_init(&piece, 0);
    encode(tokenizer, text, length, mode, &tokens);
    gd_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &whole);
    assert_int_equal(whole.length, length);
    assert_memory_equal(whole.length > 0 ? whole.data : "", text, length);
    int32_t at = 0;
    for (int i = 0; i < tokens.count; i++) {
        assert_int_equal(tokens.begin[i], at);
        at = tokens.end[i];
        gd_buf_clear(&piece);
        gd_tokenizer_piece(tokenizer, tokens.ids[i], true, &piece);
        assert_int_equal(piece.length, tokens.end[i] - tokens.begin[i]);
        assert_memory_equal(piece.data, text + tokens.begin[i], piece.length);
        if (mode == GD_SPECIAL_AS_TEXT)
            assert_false(gd_tokenizer_is_special(tokenizer, tokens.ids[i]));
    }
    assert_int_equal(at, (int32_t)length);
    gd_buf_release(&whole);
    gd_buf_release(&piece);
    gd_tokens_release(&tokens);
}

static void byte_level_texts_come_back(void **state)
{
    const char *const names[] = {"gpt2", "llama3", "smollm"};
    char text[600];
    for (size_t k = 0; k < GD_COUNT(names); k++) {
        struct gd_tokenizer *tokenizer = open_json(names[k], NULL);
        uint64_t random = 42 + k;
        for (int round = 0; round < 2000; round++) {
            size_t length = random_text(&random, text, round % 10 == 0 ? sizeof(text) : 120);
            check_round_trip(tokenizer, text, length, round % 2 == 0 ? GD_SPECIAL_AS_TEXT : GD_SPECIAL_PARSE);
        }
        gd_tokenizer_destroy(tokenizer);
    }
}

/* Rewriting normalizers lose the text as given, but what they made is stable. */
static void normalized_texts_are_stable(void **state)
{
    const char *const names[] = {"qwen2", "llama2", "mistral"};
    char text[300];
    for (size_t k = 0; k < GD_COUNT(names); k++) {
        struct gd_tokenizer *tokenizer = open_json(names[k], NULL);
        int32_t unknown = gd_tokenizer_find(tokenizer, "<unk>");
        struct gd_tokens tokens = {0}, again = {0};
        struct gd_buf whole;
        gd_buf_init(&whole, 0);
        uint64_t random = 7 + k;
        for (int round = 0; round < 1000; round++) {
            size_t length = random_text(&random, text, sizeof(text));
            encode(tokenizer, text, length, GD_SPECIAL_AS_TEXT, &tokens);
            for (int i = 0; i < tokens.count; i++)
                assert_true(!gd_tokenizer_is_special(tokenizer, tokens.ids[i]) || tokens.ids[i] == unknown);
            gd_buf_clear(&whole);
            gd_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &whole);
            assert_true(gd_utf8_valid(whole.data, whole.length));
            if (strcmp(names[k], "mistral") == 0) /* a first token of spaces alone is stripped there */
                continue;
            encode(tokenizer, whole.length > 0 ? whole.data : "", whole.length, GD_SPECIAL_AS_TEXT, &again);
            assert_int_equal(again.count, tokens.count);
            if (tokens.count > 0)
                assert_memory_equal(again.ids, tokens.ids, (size_t)tokens.count * sizeof(tokens.ids[0]));
        }
        gd_buf_release(&whole);
        gd_tokens_release(&tokens);
        gd_tokens_release(&again);
        gd_tokenizer_destroy(tokenizer);
    }
}

static void expect_spans(const struct gd_tokenizer *tokenizer, const char *text, const int32_t *spans, int span_count,
                         const char *expected)
{
    struct gd_tokens tokens = {.with_offsets = true};
    struct gd_error err = {0};
    struct gd_buf found;
    gd_buf_init(&found, 0);
    if (!gd_tokenizer_encode_spans(tokenizer, text, strlen(text), spans, span_count, &tokens, &err))
        fail_msg("%s", err.message);
    for (int i = 0; i < tokens.count; i++)
        if (gd_tokenizer_is_special(tokenizer, tokens.ids[i]))
            gd_buf_printf(&found, "%s@%d ", gd_tokenizer_token(tokenizer, tokens.ids[i]), tokens.begin[i]);
    assert_string_equal(found.length > 0 ? found.data : "", expected);
    gd_buf_release(&found);
    gd_tokens_release(&tokens);
}

static void specials_count_in_template_spans_only(void **state)
{
    struct gd_tokenizer *tokenizer = open_json("smollm", NULL);
    const char *text = "<|im_start|>a<|im_end|>b<|im_end|>";
    /*                  0           12 13       23 24      34 */
    const int32_t all[] = {0, 34}, outer[] = {0, 12, 24, 34}, cut[] = {0, 11, 25, 34},
                  split[] = {0, 5, 5, 12, 13, 18, 19, 23};
    expect_spans(tokenizer, text, NULL, 0, "");
    expect_spans(tokenizer, text, all, 1, "<|im_start|>@0 <|im_end|>@13 <|im_end|>@24 ");
    expect_spans(tokenizer, text, outer, 2, "<|im_start|>@0 <|im_end|>@24 ");
    expect_spans(tokenizer, text, cut, 2, "");
    expect_spans(tokenizer, text, split, 4, "<|im_start|>@0 "); /* spans that touch are one */
    gd_tokenizer_destroy(tokenizer);
    tokenizer = open_json("llama2", NULL); /* ranges behind a normalizer are those of the text as given */
    const int32_t ends[] = {0, 3, 8, 12};
    expect_spans(tokenizer, "<s>a <s></s>", ends, 2, "<s>@0 </s>@8 ");
    gd_tokenizer_destroy(tokenizer);
}

static void spans_out_of_order_are_an_internal_error(void **state)
{
    struct gd_tokenizer *tokenizer = open_json("smollm", NULL);
    const int32_t bad[][4] = {{3, 2, 4, 5}, {0, 3, 2, 4}, {0, 1, 2, 7}, {-1, 2, 3, 4}};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        struct gd_tokens tokens = {0};
        struct gd_error err = {0};
        assert_false(gd_tokenizer_encode_spans(tokenizer, "abcdef", 6, bad[i], 2, &tokens, &err));
        assert_int_equal(err.code, GD_INTERNAL);
        assert_int_equal(tokens.count, 0);
    }
    gd_tokenizer_destroy(tokenizer);
}

/* Random spans: specials exactly where a whole match lies in a span, ordinary ids elsewhere. */
static void random_spans_never_let_content_through(void **state)
{
    struct gd_tokenizer *tokenizer = open_json("smollm", NULL);
    uint64_t random = 99;
    char text[400];
    struct gd_tokens tokens = {.with_offsets = true};
    for (int round = 0; round < 2000; round++) {
        size_t length = random_text(&random, text, sizeof(text));
        int32_t spans[16], at = 0;
        int count = 0;
        while (count < 8 && (size_t)at < length) {
            int32_t begin = at + (int32_t)(next_random(&random) % 30), end = begin + (int32_t)(next_random(&random) % 60);
            if ((size_t)end > length)
                break;
            spans[2 * count] = begin;
            spans[2 * count++ + 1] = at = end;
        }
        struct gd_error err = {0};
        tokens.count = 0;
        assert_true(gd_tokenizer_encode_spans(tokenizer, text, length, spans, count, &tokens, &err));
        for (int i = 0; i < tokens.count; i++) {
            bool inside = false;
            for (int s = 0; s < count; s++) /* touching spans are joined by the longest reach */
                for (int e = s; e < count && (e == s || spans[2 * e] == spans[2 * e - 1]); e++)
                    inside = inside || (spans[2 * s] <= tokens.begin[i] && tokens.end[i] <= spans[2 * e + 1]);
            assert_true(inside || !gd_tokenizer_is_special(tokenizer, tokens.ids[i]));
        }
    }
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
}

static void ranges_survive_normalizers(void **state)
{
    struct gd_tokenizer *tokenizer = open_json("qwen2", NULL);
    struct gd_tokens tokens = {.with_offsets = true};
    const char *text = "x e\xCC\x81<|im_end|>y"; /* e and its accent become one character */
    encode(tokenizer, text, strlen(text), GD_SPECIAL_PARSE, &tokens);
    bool accent = false;
    for (int i = 0; i < tokens.count; i++) {
        accent = accent || (tokens.begin[i] <= 2 && tokens.end[i] == 5);
        assert_true(tokens.begin[i] != 3 && tokens.begin[i] != 4);
        if (gd_tokenizer_is_special(tokenizer, tokens.ids[i]))
            assert_true(tokens.begin[i] == 5 && tokens.end[i] == 15);
    }
    assert_true(accent);
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
}

static void the_config_sets_ends_and_specials(void **state)
{
    struct gd_tokenizer *tokenizer = open_json(
        "llama2",
        "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"</s>\",\"add_bos_token\":false,\"add_eos_token\":true}");
    struct gd_tokens tokens = {.with_offsets = true};
    struct gd_error err = {0};
    assert_int_equal(gd_tokenizer_bos(tokenizer), 1);
    assert_int_equal(gd_tokenizer_eos(tokenizer), 2);
    assert_int_equal(gd_tokenizer_pad(tokenizer), -1);
    assert_true(gd_tokenizer_encode(tokenizer, "a", 1, GD_SPECIAL_PARSE, true, &tokens, &err));
    assert_int_not_equal(tokens.ids[0], 1);
    assert_int_equal(tokens.ids[tokens.count - 1], 2);
    assert_true(tokens.begin[tokens.count - 1] == 1 && tokens.end[tokens.count - 1] == 1);
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
    tokenizer = open_json("llama2", "{\"additional_special_tokens\":[\"e\"],\"added_tokens_decoder\":{\"5000\":{"
                                    "\"content\":\"<new>\",\"special\":true}}}");
    assert_int_equal(gd_tokenizer_find(tokenizer, "<new>"), 5000);
    assert_true(gd_tokenizer_is_special(tokenizer, 5000));
    assert_true(gd_tokenizer_is_special(tokenizer, gd_tokenizer_find(tokenizer, "e")));
    gd_tokenizer_destroy(tokenizer);
}

static void pieces_of_specials_are_on_request(void **state)
{
    struct gd_tokenizer *tokenizer = open_json("smollm", NULL);
    struct gd_buf text;
    gd_buf_init(&text, 0);
    int32_t id = gd_tokenizer_find(tokenizer, "<|im_end|>");
    gd_tokenizer_piece(tokenizer, id, false, &text);
    assert_int_equal(text.length, 0);
    gd_tokenizer_piece(tokenizer, id, true, &text);
    assert_string_equal(text.data, "<|im_end|>");
    assert_string_equal(gd_tokenizer_token(tokenizer, id), "<|im_end|>");
    assert_int_equal(gd_tokenizer_find(tokenizer, "no such token"), -1);
    assert_string_equal(gd_tokenizer_kind(tokenizer), "BPE (byte-level)");
    gd_buf_release(&text);
    gd_tokenizer_destroy(tokenizer);
}

static void the_digest_names_what_decides_ids(void **state)
{
    char one[65], two[65], other[65];
    struct gd_tokenizer *tokenizer = open_json("gpt2", NULL);
    gd_tokenizer_digest(tokenizer, one);
    gd_tokenizer_destroy(tokenizer);
    tokenizer = open_json("gpt2", NULL); /* hash seeds differ */
    gd_tokenizer_digest(tokenizer, two);
    gd_tokenizer_destroy(tokenizer);
    tokenizer = open_json("gpt2", "{\"eos_token\":\"<|endoftext|>\"}");
    gd_tokenizer_digest(tokenizer, other);
    gd_tokenizer_destroy(tokenizer);
    assert_int_equal(strlen(one), 64);
    assert_string_equal(one, two);
    assert_string_not_equal(one, other);
}

struct worker {
    const struct gd_tokenizer *tokenizer;
    uint64_t sum;
};

static void *encode_many(void *context)
{
    struct worker *worker = context;
    uint64_t random = 5;
    char text[300];
    struct gd_tokens tokens = {0};
    for (int round = 0; round < 1500; round++) {
        size_t length = random_text(&random, text, sizeof(text));
        struct gd_error err = {0};
        tokens.count = 0;
        if (!gd_tokenizer_encode(worker->tokenizer, text, length, GD_SPECIAL_PARSE, false, &tokens, &err))
            break;
        for (int i = 0; i < tokens.count; i++)
            worker->sum = worker->sum * 31 + (uint64_t)tokens.ids[i];
    }
    gd_tokens_release(&tokens);
    return NULL;
}

static void threads_share_a_tokenizer(void **state)
{
    struct gd_tokenizer *tokenizer = open_json("llama3", NULL);
    struct worker alone = {tokenizer, 0}, workers[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        workers[i] = (struct worker){tokenizer, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    encode_many(&alone);
    for (int i = 0; i < 4; i++)
        assert_true(workers[i].sum == alone.sum);
    gd_tokenizer_destroy(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_level_texts_come_back),
        cmocka_unit_test(normalized_texts_are_stable),
        cmocka_unit_test(specials_count_in_template_spans_only),
        cmocka_unit_test(spans_out_of_order_are_an_internal_error),
        cmocka_unit_test(random_spans_never_let_content_through),
        cmocka_unit_test(ranges_survive_normalizers),
        cmocka_unit_test(the_config_sets_ends_and_specials),
        cmocka_unit_test(pieces_of_specials_are_on_request),
        cmocka_unit_test(the_digest_names_what_decides_ids),
        cmocka_unit_test(threads_share_a_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
