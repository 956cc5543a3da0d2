/* Damaged and hostile tokenizer files and texts: an error by name or the right answer, in bounded time, never a crash. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "tests/unit/text/tokenizer_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define VOCAB "\"a\":0,\"b\":1,\"ab\":2,\"\xC4\xA0\":3,\"<s>\":4"
#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{" VOCAB "},\"merges\":[\"a b\"]}"
#define SPLIT(pattern) "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":" pattern ",\"behavior\":\"Isolated\"}," MODEL "}"
#define REGEX(text) SPLIT("{\"Regex\":\"" text "\"}")
#define TEMPLATE(single, specials)                                                                                     \
    "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" single "],\"special_tokens\":{" specials       \
    "}}," MODEL "}"
#define UNIGRAM(piece, more)                                                                                           \
    "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"<unk>\",0],[\"a\",-1.5]," piece "]" more "}}"
#define WORDPIECE(more) "{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"[UNK]\":0,\"a\":1,\"##a\":2}," more "}}"
#define CHARSMAP(value) "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":" value "}," MODEL "}"
#define TEXT_A "{\"Sequence\":{\"id\":\"A\"}}"

static bool load(const char *json, size_t length, const char *config, struct gd_tokenizer **out, struct gd_error *err)
{
    *out = NULL;
    *err = (struct gd_error){0};
    bool ok = gd_tokenizer_from_json(out, json, length, config, config != NULL ? strlen(config) : 0, err);
    assert_true(ok == (*out != NULL));
    assert_true(ok == (err->code == GD_OK));
    return ok;
}

static void expect_refusal(const char *json, const char *config, enum gd_code code, const char *part)
{
    struct gd_tokenizer *tokenizer;
    struct gd_error err;
    if (load(json, strlen(json), config, &tokenizer, &err))
        fail_msg("loaded: %.200s", json);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%.200s\nexpected %s with \"%s\", got %s: %s", json, gd_code_wire(code), part, gd_code_wire(err.code),
                 err.message);
}

static void expect_load(const char *json, const char *config)
{
    struct gd_tokenizer *tokenizer;
    struct gd_error err;
    if (!load(json, strlen(json), config, &tokenizer, &err))
        fail_msg("%.200s: %s", json, err.message);
    gd_tokenizer_destroy(tokenizer);
}

static struct gd_tokenizer *open_text(const char *json)
{
    struct gd_tokenizer *tokenizer;
    struct gd_error err;
    if (!load(json, strlen(json), NULL, &tokenizer, &err))
        fail_msg("%.200s: %s", json, err.message);
    return tokenizer;
}

struct refusal {
    const char *json;
    enum gd_code code;
    const char *part;
};

static void damaged_files_are_refused_by_name(void **state)
{
    static const struct refusal cases[] = {
        {"", GD_BAD_MODEL, "tokenizer.json"},
        {"{", GD_BAD_MODEL, "tokenizer.json"},
        {"[]", GD_BAD_MODEL, "tokenizer.json"},
        {"null", GD_BAD_MODEL, "model"},
        {"{}", GD_BAD_MODEL, "model"},
        {"{" MODEL "} x", GD_BAD_MODEL, "tokenizer.json"},
        {"{" MODEL ",\"pre_tokenizer\":\"\xFF\"}", GD_BAD_MODEL, "UTF-8"},
        {"{\"model\":7}", GD_BAD_MODEL, "model"},
        {"{\"model\":{\"type\":\"BPE\",\"merges\":[]}}", GD_BAD_MODEL, "vocab"},
        {"{\"model\":{\"vocab\":{},\"merges\":[]}}", GD_BAD_MODEL, "empty"},
        {"{\"model\":{\"vocab\":[],\"merges\":[]}}", GD_BAD_MODEL, "vocab"},
        {"{\"model\":{\"vocab\":{\"a\":0}}}", GD_BAD_MODEL, "merges"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", GD_BAD_MODEL, "-1"},
        {"{\"model\":{\"vocab\":{\"a\":2147483648},\"merges\":[]}}", GD_BAD_MODEL, "2147483648"},
        {"{\"model\":{\"vocab\":{\"a\":4000000},\"merges\":[]}}", GD_BAD_MODEL, "4000000"},
        {"{\"model\":{\"vocab\":{\"a\":1e300},\"merges\":[]}}", GD_BAD_MODEL, "integer"},
        {"{\"model\":{\"vocab\":{\"a\":0.5},\"merges\":[]}}", GD_BAD_MODEL, "integer"},
        {"{\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", GD_BAD_MODEL, "integer"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", GD_BAD_MODEL, "two tokens"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", GD_BAD_MODEL, "tokenizer.json"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}}", GD_BAD_MODEL, "\"ab\""},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a c\"]}}", GD_BAD_MODEL, "\"c\""},
        {"{\"model\":{\"vocab\":{" VOCAB "},\"merges\":[\"a b\",\"ab\"]}}", GD_BAD_MODEL, "merges[1]"},
        {"{\"model\":{\"vocab\":{" VOCAB "},\"merges\":[\"a  b\"]}}", GD_BAD_MODEL, "merges[0]"},
        {"{\"model\":{\"vocab\":{" VOCAB "},\"merges\":[[\"a\",\"b\",\"a\"]]}}", GD_BAD_MODEL, "merges[0]"},
        {"{\"model\":{\"vocab\":{" VOCAB "},\"merges\":[[\"a\",7]]}}", GD_BAD_MODEL, "merges[0]"},
        {"{\"model\":{\"vocab\":{" VOCAB "},\"merges\":[{}]}}", GD_BAD_MODEL, "merges[0]"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", GD_BAD_MODEL, "empty"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":[]}}", GD_BAD_MODEL, "vocab"},
        {WORDPIECE("\"max_input_chars_per_word\":-1"), GD_BAD_MODEL, "max_input_chars_per_word"},
        {WORDPIECE("\"unk_token\":7"), GD_BAD_MODEL, "unk_token"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", GD_BAD_MODEL, "empty"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{}}}", GD_BAD_MODEL, "vocab"},
        {"{\"model\":{\"type\":\"Unigram\"}}", GD_BAD_MODEL, "vocab"},
        {UNIGRAM("[\"b\",\"-1\"]", ""), GD_BAD_MODEL, "model.vocab[2]"},
        {UNIGRAM("[\"b\",null]", ""), GD_BAD_MODEL, "model.vocab[2]"},
        {UNIGRAM("[\"b\",NaN]", ""), GD_BAD_MODEL, "tokenizer.json"},
        {UNIGRAM("[\"b\",-1e999]", ""), GD_BAD_MODEL, "tokenizer.json"},
        {UNIGRAM("[\"b\"]", ""), GD_BAD_MODEL, "model.vocab[2]"},
        {UNIGRAM("[\"b\",-1,2]", ""), GD_BAD_MODEL, "model.vocab[2]"},
        {UNIGRAM("\"b\"", ""), GD_BAD_MODEL, "model.vocab[2]"},
        {UNIGRAM("[\"a\",-1]", ""), GD_BAD_MODEL, "two ids"},
        {UNIGRAM("[\"b\",-1]", ",\"unk_id\":3"), GD_BAD_MODEL, "unk_id"},
        {UNIGRAM("[\"b\",-1]", ",\"unk_id\":-1"), GD_BAD_MODEL, "unk_id"},
        {UNIGRAM("[\"b\",-1]", ",\"byte_fallback\":1"), GD_BAD_MODEL, "byte_fallback"},
        {"{\"model\":{\"type\":\"WordLevel\",\"vocab\":{}}}", GD_BAD_MODEL, "empty"},
        {"{\"model\":{\"type\":\"WordLevel\",\"vocab\":{\"a\":0},\"unk_token\":7}}", GD_BAD_MODEL, "unk_token"},
        {"{\"pre_tokenizer\":{\"type\":\"FixedLength\",\"length\":0}," MODEL "}", GD_BAD_MODEL, "length"},
        {"{\"pre_tokenizer\":{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"ab\"}," MODEL "}", GD_BAD_MODEL, "one character"},
        {"{\"decoder\":{\"type\":\"CTC\",\"pad_token\":\"\",\"word_delimiter_token\":\"|\"}," MODEL "}", GD_BAD_MODEL,
         "pad_token"},
        {"{\"model\":{\"type\":\"CharLevel\",\"vocab\":{}}}", GD_UNSUPPORTED, "CharLevel"},
        {"{\"model\":{\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}", GD_UNSUPPORTED, "dropout"},
        {CHARSMAP("\"AAAA\""), GD_BAD_MODEL, "3 bytes"},
        {CHARSMAP("\"AAAAAA==\""), GD_BAD_MODEL, "its trie 0"},
        {CHARSMAP("\"/////w==\""), GD_BAD_MODEL, "its trie 4294967295"},
        {CHARSMAP("\"BAAAAAA=\""), GD_BAD_MODEL, "its trie 4"},
        {CHARSMAP("\"BAAAAAAAAAD/\""), GD_BAD_MODEL, "UTF-8"},
        {CHARSMAP("\"AAA\""), GD_BAD_MODEL, "base64"},
        {CHARSMAP("\"A=AA\""), GD_BAD_MODEL, "base64"},
        {CHARSMAP("\"====\""), GD_BAD_MODEL, "base64"},
        {CHARSMAP("\"AA A\""), GD_BAD_MODEL, "base64"},
        {CHARSMAP("\"\""), GD_BAD_MODEL, "precompiled_charsmap"},
        {CHARSMAP("null"), GD_BAD_MODEL, "precompiled_charsmap"},
        {"{\"normalizer\":{\"type\":\"Precompiled\"}," MODEL "}", GD_BAD_MODEL, "precompiled_charsmap"},
        {"{\"normalizer\":{\"type\":\"BertNormalizer\",\"strip_accents\":1}," MODEL "}", GD_BAD_MODEL, "strip_accents"},
        {"{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Nmd\"}]}," MODEL "}",
         GD_UNSUPPORTED, "normalizer.normalizers[1]"},
        {"{\"normalizer\":{\"type\":\"Sequence\"}," MODEL "}", GD_BAD_MODEL, "normalizers"},
        {"{\"normalizer\":{}," MODEL "}", GD_BAD_MODEL, "type"},
        {"{\"normalizer\":[]," MODEL "}", GD_BAD_MODEL, "normalizer"},
        {"{\"pre_tokenizer\":{\"type\":\"RandomSplit\"}," MODEL "}", GD_UNSUPPORTED, "RandomSplit"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}," MODEL "}", GD_BAD_MODEL,
         "one character"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"maybe\"}," MODEL "}",
         GD_BAD_MODEL, "maybe"},
        {"{\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":\"Gone\"}," MODEL "}", GD_BAD_MODEL, "Gone"},
        {SPLIT("\"x\""), GD_BAD_MODEL, "pattern"},
        {SPLIT("{\"Glob\":\"x\"}"), GD_BAD_MODEL, "pattern"},
        {SPLIT("{\"String\":\"\"}"), GD_BAD_MODEL, "empty"},
        {REGEX(""), GD_BAD_MODEL, "empty"},
        {REGEX("("), GD_BAD_MODEL, "regular expression"},
        {REGEX("[a"), GD_BAD_MODEL, "regular expression"},
        {REGEX("a{2,1}"), GD_BAD_MODEL, "regular expression"},
        {REGEX("\\\\p{Nonsense}"), GD_BAD_MODEL, "regular expression"},
        {REGEX("\\\\p{L"), GD_UNSUPPORTED, "property"},
        {REGEX("[a&&b]"), GD_UNSUPPORTED, "intersection"},
        {REGEX("[a[b]]"), GD_UNSUPPORTED, "class inside"},
        {REGEX("[\\\\W]"), GD_UNSUPPORTED, "inverted"},
        {REGEX("a{1,2}+"), GD_UNSUPPORTED, "quantifier"},
        {REGEX("(*ACCEPT)"), GD_UNSUPPORTED, "(*"},
        {REGEX("\\\\C"), GD_UNSUPPORTED, "\\C"},
        {REGEX("(?~a)"), GD_UNSUPPORTED, "group"},
        {REGEX("(((a{1,1000}){1,1000}){1,1000}){1,1000}"), GD_BAD_MODEL, "regular expression"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\"}," MODEL "}", GD_BAD_MODEL, "cls"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",0],\"sep\":[\"x\",99]}," MODEL "}", GD_BAD_MODEL,
         "sep has id 99"},
        {"{\"post_processor\":{\"type\":\"RobertaProcessing\",\"cls\":[\"a\",1e300],\"sep\":[\"b\",1]}," MODEL "}",
         GD_BAD_MODEL, "cls has id"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[0],\"sep\":[\"b\",1]}," MODEL "}", GD_BAD_MODEL,
         "[token, id]"},
        {TEMPLATE("{\"SpecialToken\":{\"id\":\"<x>\"}}," TEXT_A, ""), GD_BAD_MODEL, "<x>"},
        {TEMPLATE("{\"SpecialToken\":{\"id\":\"<x>\"}}," TEXT_A, "\"<x>\":{\"ids\":[99]}"), GD_BAD_MODEL, "99"},
        {TEMPLATE("{\"SpecialToken\":{\"id\":\"<x>\"}}," TEXT_A, "\"<x>\":{\"ids\":[-1]}"), GD_BAD_MODEL, "-1"},
        {TEMPLATE("{\"SpecialToken\":{\"id\":\"<x>\"}}," TEXT_A, "\"<x>\":{\"ids\":[1e99]}"), GD_BAD_MODEL, "1e+99"},
        {TEMPLATE("{\"SpecialToken\":{\"id\":\"<x>\"}}," TEXT_A,
                  "\"<x>\":{\"ids\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}"),
         GD_BAD_MODEL, "more than"},
        {TEMPLATE("", ""), GD_BAD_MODEL, "sequence A"},
        {TEMPLATE(TEXT_A "," TEXT_A, ""), GD_BAD_MODEL, "once"},
        {TEMPLATE("{\"Other\":1}", ""), GD_BAD_MODEL, "something else"},
        {"{\"decoder\":{\"type\":\"WordPiece\",\"cleanup\":true}," MODEL "}", GD_BAD_MODEL, "prefix"},
        {"{\"decoder\":{\"type\":\"CTP\"}," MODEL "}", GD_UNSUPPORTED, "CTP"},
        {"{\"decoder\":{\"type\":\"Strip\",\"content\":\"\",\"start\":1,\"stop\":0}," MODEL "}", GD_BAD_MODEL,
         "content"},
        {"{\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}," MODEL "}", GD_BAD_MODEL,
         "start"},
        {"{\"added_tokens\":[{\"id\":9,\"content\":\"a\"}]," MODEL "}", GD_BAD_MODEL, "two ids"},
        {"{\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]," MODEL "}", GD_BAD_MODEL, "two tokens"},
        {"{\"added_tokens\":[{\"id\":9,\"content\":\"\"}]," MODEL "}", GD_BAD_MODEL, "0 bytes"},
        {"{\"added_tokens\":[{\"id\":-9,\"content\":\"x\"}]," MODEL "}", GD_BAD_MODEL, "added_tokens[0].id"},
        {"{\"added_tokens\":[{\"id\":2147483648,\"content\":\"x\"}]," MODEL "}", GD_BAD_MODEL, "added_tokens[0].id"},
        {"{\"added_tokens\":[{\"content\":\"x\"}]," MODEL "}", GD_BAD_MODEL, "added_tokens[0].id"},
        {"{\"added_tokens\":[7]," MODEL "}", GD_BAD_MODEL, "added_tokens[0]"},
        {"{\"added_tokens\":{}," MODEL "}", GD_BAD_MODEL, "added_tokens"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++)
        expect_refusal(cases[i].json, NULL, cases[i].code, cases[i].part);
}

static void damaged_configs_are_refused_by_name(void **state)
{
    expect_load("{" MODEL "}", "{\"bos_token\":\"<s>\",\"add_bos_token\":true,\"pad_token\":\"[PAD]\"}");
    expect_refusal("{" MODEL "}", "{\"bos_token\":\"<none>\"}", GD_BAD_MODEL, "bos_token");
    expect_refusal("{" MODEL "}", "{\"eos_token\":7}", GD_BAD_MODEL, "eos_token");
    expect_refusal("{" MODEL "}", "{\"add_eos_token\":true}", GD_BAD_MODEL, "eos");
    expect_refusal("{" MODEL "}", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"y\"}}}", GD_BAD_MODEL,
                   "added_tokens_decoder.x");
    expect_refusal("{" MODEL "}", "{\"added_tokens_decoder\":{\"0\":{\"content\":\"y\"}}}", GD_BAD_MODEL, "two tokens");
    expect_refusal("{" MODEL "}", "{", GD_BAD_MODEL, "tokenizer_config.json");
}

/* Gaps are in real vocabularies: an id without a token decodes to nothing. */
static void gaps_between_ids_are_no_tokens(void **state)
{
    struct gd_tokenizer *tokenizer = open_text("{\"model\":{\"vocab\":{\"a\":3,\"b\":3999999},\"merges\":[]}}");
    assert_int_equal(gd_tokenizer_vocab_count(tokenizer), 4000000);
    assert_null(gd_tokenizer_token(tokenizer, 0));
    assert_null(gd_tokenizer_token(tokenizer, -1));
    assert_null(gd_tokenizer_token(tokenizer, 4000000));
    int32_t ids[] = {0, 3, 77, 3999999, -5, INT32_MAX};
    struct gd_buf text;
    gd_buf_init(&text, 0);
    gd_tokenizer_decode(tokenizer, ids, (int)GD_COUNT(ids), false, &text);
    assert_string_equal(text.data, "a b");
    gd_tokenizer_piece(tokenizer, 77, true, &text);
    assert_int_equal(text.length, 3);
    gd_buf_release(&text);
    gd_tokenizer_destroy(tokenizer);
}

static void deep_nesting_is_refused(void **state)
{
    struct gd_buf json;
    gd_buf_init(&json, 0);
    gd_buf_append_text(&json, "{" MODEL ",\"pre_tokenizer\":");
    for (int i = 0; i < 100000; i++)
        gd_buf_append_text(&json, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 100000; i++)
        gd_buf_append_text(&json, "]}");
    gd_buf_append_text(&json, "}");
    expect_refusal(json.data, NULL, GD_BAD_MODEL, "tokenizer.json");
    gd_buf_clear(&json);
    gd_buf_append_text(&json, "{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}");
    for (int i = 0; i < 100; i++)
        gd_buf_append_text(&json, ",{\"type\":\"NFC\"}");
    gd_buf_append_text(&json, "]}}");
    expect_refusal(json.data, NULL, GD_BAD_MODEL, "in a row");
    gd_buf_release(&json);
}

/* Encodes `text`, which must work or fail with `code`, within some seconds of processor time. */
static void encode_in_time(const struct gd_tokenizer *tokenizer, const char *text, size_t length, enum gd_code code,
                           double seconds)
{
    struct gd_tokens tokens = {.with_offsets = true};
    struct gd_error err = {0};
    double start = gd_time_monotonic();
    bool ok = gd_tokenizer_encode(tokenizer, text, length, GD_SPECIAL_PARSE, true, &tokens, &err);
    double took = gd_time_monotonic() - start;
    if (ok != (code == GD_OK) || err.code != code)
        fail_msg("expected %s, got %s: %s", gd_code_wire(code), gd_code_wire(err.code), err.message);
    if (!ok)
        assert_int_equal(tokens.count, 0);
    if (took > seconds)
        fail_msg("took %.1f s, allowed are %.1f s", took, seconds);
    gd_tokens_release(&tokens);
}

static char *repeat(const char *part, size_t length)
{
    char *text = gd_alloc(length + 1);
    for (size_t i = 0; i < length; i++)
        text[i] = part[i % strlen(part)];
    return text;
}

/* Work that grows faster than the text, whether compiled code counts it (groups) or not (single characters). */
static void patterns_without_bound_end_in_an_error(void **state)
{
    static const char *const patterns[] = {REGEX("(a+)+$"), REGEX("(a|aa)+b|a"), REGEX(".*.*=.*|a"), REGEX("(?=(a+)+b)|a"),
                                           REGEX("(?:a?){20}a{20}c|a")};
    char *text = repeat("a", 100000);
    text[99999] = 'c';
    for (size_t i = 0; i < GD_COUNT(patterns); i++) {
        struct gd_tokenizer *tokenizer = open_text(patterns[i]);
        encode_in_time(tokenizer, text, 100000, GD_BAD_MODEL, 20);
        gd_tokenizer_destroy(tokenizer);
    }
    gd_free(text);
}

static void many_added_tokens_are_found_in_time(void **state)
{
    struct gd_buf json;
    gd_buf_init(&json, 0);
    gd_buf_append_text(&json, "{" MODEL ",\"added_tokens\":[");
    for (int i = 0; i < 100000; i++)
        gd_buf_printf(&json, "%s{\"id\":%d,\"content\":\"<%d>\",\"special\":true}", i > 0 ? "," : "", i + 10, i);
    gd_buf_append_text(&json, "]}");
    double start = gd_time_monotonic();
    struct gd_tokenizer *tokenizer = open_text(json.data);
    char *text = repeat("<", 300000);
    encode_in_time(tokenizer, text, 300000, GD_OK, 20);
    assert_true(gd_time_monotonic() - start < 30);
    gd_free(text);
    gd_tokenizer_destroy(tokenizer);
    gd_buf_release(&json);
}

static void an_empty_match_moves_on(void **state)
{
    struct gd_tokenizer *tokenizer = open_text(REGEX("b*"));
    char *text = repeat("a\xC3\xA9z", 100000);
    encode_in_time(tokenizer, text, 100000, GD_OK, 30);
    gd_tokenizer_destroy(tokenizer);
    gd_free(text);
}

static struct gd_tokenizer *open_file(const char *name)
{
    char *path = gd_format("%s/tokenizer/%s.json", fixtures(), name), *text = NULL;
    size_t length = 0;
    struct gd_error err = {0};
    struct gd_tokenizer *tokenizer;
    if (!gd_file_read(path, 1 << 20, &text, &length, &err) || !load(text, length, NULL, &tokenizer, &err))
        fail_msg("%s: %s", path, err.message);
    gd_free(path);
    gd_free(text);
    return tokenizer;
}

static void huge_runs_are_encoded_in_time(void **state)
{
    const char *const runs[] = {
        "a", " ", "\n", "ab", "0", "!?", "\xE4\xBD\xA0", "a\xCC\xA3\xCC\x87", "\xCC\x87\xCC\xA3", "\t \t ", "'s"};
    const char *const names[] = {"gpt2", "llama3", "qwen2", "smollm", "llama2", "mistral",
                                 "t5", "albert", "unigram_bytes", "bert"};
    size_t length = 300000;
    for (size_t k = 0; k < GD_COUNT(names); k++) {
        struct gd_tokenizer *tokenizer = open_file(names[k]);
        for (size_t i = 0; i < GD_COUNT(runs); i++) {
            size_t whole = length / strlen(runs[i]) * strlen(runs[i]);
            char *text = repeat(runs[i], whole);
            encode_in_time(tokenizer, text, whole, GD_OK, 20);
            gd_free(text);
        }
        gd_tokenizer_destroy(tokenizer);
    }
}

static void text_that_is_not_utf8_is_refused(void **state)
{
    struct gd_tokenizer *tokenizer = open_file("gpt2");
    const char *const bad[] = {"\x80", "a\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "ok \xFF ok"};
    for (size_t i = 0; i < GD_COUNT(bad); i++)
        encode_in_time(tokenizer, bad[i], strlen(bad[i]), GD_INVALID, 5);
    gd_tokenizer_destroy(tokenizer);
}

static void rules_that_blow_text_up_are_stopped(void **state)
{
    char *content = repeat("x", 60000);
    char *json = gd_format(
        "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"%s\"},%s}", content, MODEL);
    struct gd_tokenizer *tokenizer = open_text(json);
    char *text = repeat("a", 1000000);
    encode_in_time(tokenizer, text, 1000000, GD_TOO_LARGE, 30);
    encode_in_time(tokenizer, text, 10, GD_OK, 30);
    gd_tokenizer_destroy(tokenizer);
    gd_free(text);
    gd_free(json);
    gd_free(content);
}

static void an_absent_unknown_token_is_named_when_it_is_needed(void **state)
{
    struct gd_tokenizer *tokenizer =
        open_text("{\"model\":{\"unk_token\":\"<unk>\",\"vocab\":{" VOCAB "},\"merges\":[\"a b\"]}}");
    encode_in_time(tokenizer, "abba", 4, GD_OK, 5);
    encode_in_time(tokenizer, "abc", 3, GD_BAD_MODEL, 5);
    gd_tokenizer_destroy(tokenizer);
}

static void a_unigram_without_unknown_token_says_so(void **state)
{
    struct gd_tokenizer *tokenizer = open_text(UNIGRAM("[\"aa\",1e308]", ""));
    encode_in_time(tokenizer, "aaaaaa", 6, GD_OK, 5);
    encode_in_time(tokenizer, "aab", 3, GD_BAD_MODEL, 5);
    gd_tokenizer_destroy(tokenizer);
    tokenizer = open_text("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}");
    encode_in_time(tokenizer, "a", 1, GD_OK, 5);
    encode_in_time(tokenizer, "aa", 2, GD_BAD_MODEL, 5);
    gd_tokenizer_destroy(tokenizer);
}

static void a_piece_beyond_the_limit_is_refused(void **state)
{
    char *piece = repeat("a", 1025);
    char *json = gd_format("{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"%s\",-1]]}}", piece);
    expect_refusal(json, NULL, GD_BAD_MODEL, "piece 0");
    gd_free(json);
    gd_free(piece);
}

/* A long word is looked at once per character and length of a token, not per length of the word. */
static void a_huge_word_of_wordpiece_ends_in_time(void **state)
{
    struct gd_tokenizer *tokenizer = open_text(WORDPIECE("\"max_input_chars_per_word\":2147483647"));
    char *text = repeat("a", 1000000);
    encode_in_time(tokenizer, text, 1000000, GD_OK, 20);
    text[999999] = 'b';
    encode_in_time(tokenizer, text, 1000000, GD_OK, 20);
    gd_free(text);
    gd_tokenizer_destroy(tokenizer);
}

/* The root's offset is 1 << 8 times 3, beyond the only unit; then a value beyond the replacements. */
static void a_charsmap_that_points_outside_is_named(void **state)
{
    struct gd_tokenizer *tokenizer = open_text(CHARSMAP("\"BAAAAAAOAABhAA==\""));
    encode_in_time(tokenizer, "ab", 2, GD_BAD_MODEL, 5);
    gd_tokenizer_destroy(tokenizer);
}

/* Whatever loads must also run. */
static void use(const char *json, size_t length)
{
    struct gd_tokenizer *tokenizer;
    struct gd_error err;
    if (!load(json, length, NULL, &tokenizer, &err))
        return;
    struct gd_tokens tokens = {0};
    struct gd_buf text;
    char digest[65];
    gd_buf_init(&text, 0);
    const char sample[] = "Hello  <|im_start|> 123 \xC3\xA9\xE4\xBD\xA0 it's <s> a b";
    if (gd_tokenizer_encode(tokenizer, sample, strlen(sample), GD_SPECIAL_PARSE, true, &tokens, &err))
        gd_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &text);
    gd_tokenizer_digest(tokenizer, digest);
    gd_buf_release(&text);
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
}

static void cut_and_changed_files_never_crash(void **state)
{
    const char *const names[] = {"llama3", "llama2", "mistral", "t5", "bert"};
    uint64_t random = 88172645463325252u;
    for (size_t k = 0; k < GD_COUNT(names); k++) {
        char *path = gd_format("%s/tokenizer/%s.json", fixtures(), names[k]), *text = NULL;
        size_t length = 0;
        struct gd_error err = {0};
        assert_true(gd_file_read(path, 1 << 20, &text, &length, &err));
        for (size_t cut = 0; cut < length; cut += 997)
            use(text, cut);
        for (int round = 0; round < 60; round++) {
            char *changed = gd_strndup(text, length);
            for (int i = 0; i < 1 + round % 4; i++) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                changed[random % (round % 3 == 0 ? length : 1500)] = "0\"{}[],:a9-\\ \xC3"[(random >> 32) % 14];
            }
            use(changed, length);
            gd_free(changed);
        }
        gd_free(text);
        gd_free(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_files_are_refused_by_name),
        cmocka_unit_test(damaged_configs_are_refused_by_name),
        cmocka_unit_test(gaps_between_ids_are_no_tokens),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(patterns_without_bound_end_in_an_error),
        cmocka_unit_test(many_added_tokens_are_found_in_time),
        cmocka_unit_test(an_empty_match_moves_on),
        cmocka_unit_test(huge_runs_are_encoded_in_time),
        cmocka_unit_test(text_that_is_not_utf8_is_refused),
        cmocka_unit_test(rules_that_blow_text_up_are_stopped),
        cmocka_unit_test(an_absent_unknown_token_is_named_when_it_is_needed),
        cmocka_unit_test(a_unigram_without_unknown_token_says_so),
        cmocka_unit_test(a_piece_beyond_the_limit_is_refused),
        cmocka_unit_test(a_huge_word_of_wordpiece_ends_in_time),
        cmocka_unit_test(a_charsmap_that_points_outside_is_named),
        cmocka_unit_test(cut_and_changed_files_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
