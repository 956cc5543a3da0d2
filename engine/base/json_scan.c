/* The grammar of RFC 8259 without any leniency, in one pass and without recursion. Builds nothing: cJSON does. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/json_internal.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define PAIRWISE_MAX 8u /* objects up to this size are compared key by key, larger ones by sorted hash */

/* A key that was seen: its hash after unescaping, and where its quoted text starts. */
struct key {
    uint64_t hash;
    size_t offset;
};

struct level {
    bool object;
    size_t first_key; /* index into keys */
};

struct scan {
    const char *text;
    size_t length, at, values, values_max;
    struct level levels[GD_JSON_DEPTH_MAX];
    int depth;
    struct key *keys; /* of all open objects, innermost last */
    size_t key_count, key_capacity;
    struct gd_buf unescaped;
    struct gd_error *err;
};

/* Seeded per process: nobody can send keys that collide. */
static uint64_t hash_seed;
static pthread_once_t hash_once = PTHREAD_ONCE_INIT;

static void make_hash_seed(void)
{
    gd_random_bytes(&hash_seed, sizeof(hash_seed));
}

size_t gd_utf8_length(const char *text, size_t left)
{
    const unsigned char *b = (const unsigned char *)text;
    if (b[0] < 0x80u)
        return 1;
    if (b[0] < 0xC2u || b[0] > 0xF4u) /* continuation bytes, overlong forms, above U+10FFFF */
        return 0;
    size_t length = b[0] < 0xE0u ? 2 : b[0] < 0xF0u ? 3 : 4;
    if (length > left)
        return 0;
    unsigned char low = 0x80u, high = 0xBFu; /* of the second byte */
    if (b[0] == 0xE0u)
        low = 0xA0u;
    else if (b[0] == 0xEDu)
        high = 0x9Fu; /* surrogates */
    else if (b[0] == 0xF0u)
        low = 0x90u;
    else if (b[0] == 0xF4u)
        high = 0x8Fu;
    if (b[1] < low || b[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((b[i] & 0xC0u) != 0x80u)
            return 0;
    return length;
}

bool gd_utf8_valid(const char *text, size_t length)
{
    for (size_t at = 0; at < length;) {
        size_t step = gd_utf8_length(text + at, length - at);
        if (step == 0)
            return false;
        at += step;
    }
    return true;
}

/* Columns count characters from 1, as editors do; bytes count from 0. */
static bool fail_at(struct scan *scan, size_t offset, const char *what)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < offset && i < scan->length; i++) {
        if (scan->text[i] == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)scan->text[i] & 0xC0u) != 0x80u) {
            column++;
        }
    }
    return gd_fail(scan->err, GD_INVALID, "bad JSON at byte %zu (line %zu, column %zu): %s", offset, line, column, what);
}

/* The next byte, or NUL at the end (a NUL in the text is refused wherever it is looked at). */
static char peek(const struct scan *scan)
{
    return scan->at < scan->length ? scan->text[scan->at] : '\0';
}

static bool fail_here(struct scan *scan, const char *what)
{
    if (scan->at >= scan->length)
        return fail_at(scan, scan->length, "it ends too early");
    if (scan->text[scan->at] == '\0')
        return fail_at(scan, scan->at, "a NUL byte");
    return fail_at(scan, scan->at, what);
}

static void skip_space(struct scan *scan)
{
    while (scan->at < scan->length && (scan->text[scan->at] == ' ' || scan->text[scan->at] == '\t' ||
                                       scan->text[scan->at] == '\n' || scan->text[scan->at] == '\r'))
        scan->at++;
}

static bool hex4(const struct scan *scan, size_t at, unsigned *out)
{
    unsigned value = 0;
    if (scan->length - at < 4)
        return false;
    for (size_t i = at; i < at + 4; i++) {
        char c = scan->text[i];
        unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10u
                         : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10u
                                                : 16u;
        if (digit == 16u)
            return false;
        value = value * 16u + digit;
    }
    *out = value;
    return true;
}

static void append_code_point(struct gd_buf *buf, unsigned code)
{
    char bytes[4];
    size_t length = code < 0x80u ? 1 : code < 0x800u ? 2 : code < 0x10000u ? 3 : 4;
    if (length == 1) {
        bytes[0] = (char)code;
    } else {
        static const unsigned char lead[] = {0, 0, 0xC0u, 0xE0u, 0xF0u};
        for (size_t i = length - 1; i > 0; i--, code >>= 6)
            bytes[i] = (char)(0x80u | (code & 0x3Fu));
        bytes[0] = (char)(lead[length] | code);
    }
    gd_buf_append(buf, bytes, length);
}

/* An escape after its backslash; scan->at is at the backslash and ends behind the escape. `out` may be NULL. */
static bool scan_escape(struct scan *scan, struct gd_buf *out)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    size_t start = scan->at++;
    char letter = peek(scan);
    const char *found = letter != '\0' ? strchr(letters, letter) : NULL;
    if (found != NULL) {
        scan->at++;
        if (out != NULL)
            gd_buf_append_char(out, meanings[found - letters]);
        return true;
    }
    if (letter != 'u')
        return fail_here(scan, "an unknown escape after a backslash");
    unsigned code, low;
    if (!hex4(scan, scan->at + 1, &code))
        return fail_at(scan, start, "\\u needs four hexadecimal digits");
    scan->at += 5;
    if (code == 0)
        return fail_at(scan, start, "the character NUL (\\u0000) is not accepted");
    if (code >= 0xDC00u && code <= 0xDFFFu)
        return fail_at(scan, start, "a low surrogate without a high one before it");
    if (code >= 0xD800u && code <= 0xDBFFu) {
        bool pair = scan->length - scan->at >= 6 && scan->text[scan->at] == '\\' && scan->text[scan->at + 1] == 'u' &&
                    hex4(scan, scan->at + 2, &low) && low >= 0xDC00u && low <= 0xDFFFu;
        if (!pair)
            return fail_at(scan, start, "a high surrogate without a low one after it");
        scan->at += 6;
        code = 0x10000u + ((code - 0xD800u) << 10) + (low - 0xDC00u);
    }
    if (out != NULL)
        append_code_point(out, code);
    return true;
}

/* A quoted string from its opening quote; `out` (may be NULL) gets the unescaped text. */
static bool scan_string(struct scan *scan, struct gd_buf *out)
{
    if (peek(scan) != '"')
        return fail_here(scan, "expected a string in double quotes");
    size_t start = scan->at++;
    for (;;) {
        size_t plain = scan->at;
        while (scan->at < scan->length) {
            scan->at += gd_json_plain_length(scan->text + scan->at, scan->length - scan->at);
            if (scan->at == scan->length || (unsigned char)scan->text[scan->at] < 0x80u)
                break;
            size_t step = gd_utf8_length(scan->text + scan->at, scan->length - scan->at);
            if (step == 0)
                return fail_at(scan, scan->at, "this byte is not valid UTF-8");
            scan->at += step;
        }
        if (scan->at == scan->length)
            return fail_at(scan, start, "the string that starts here has no closing quote");
        if (out != NULL)
            gd_buf_append(out, scan->text + plain, scan->at - plain);
        char byte = scan->text[scan->at];
        if (byte == '"') {
            scan->at++;
            return true;
        }
        if (byte != '\\')
            return fail_here(scan, "a control character in a string must be escaped (\\n, \\t, \\u00XX)");
        if (!scan_escape(scan, out))
            return false;
    }
}

static bool digits(struct scan *scan)
{
    size_t start = scan->at;
    while (peek(scan) >= '0' && peek(scan) <= '9')
        scan->at++;
    return scan->at > start || fail_here(scan, "expected a digit");
}

static bool scan_number(struct scan *scan)
{
    size_t start = scan->at;
    bool exponent = false;
    if (peek(scan) == '-')
        scan->at++;
    if (peek(scan) == '0') {
        scan->at++;
        if (peek(scan) >= '0' && peek(scan) <= '9')
            return fail_at(scan, start, "a number must not start with extra zeros");
    } else if (!digits(scan)) {
        return false;
    }
    if (peek(scan) == '.') {
        scan->at++;
        if (!digits(scan))
            return false;
    }
    if (peek(scan) == 'e' || peek(scan) == 'E') {
        exponent = true;
        scan->at++;
        if (peek(scan) == '+' || peek(scan) == '-')
            scan->at++;
        if (!digits(scan))
            return false;
    }
    size_t length = scan->at - start;
    if (length > GD_JSON_NUMBER_BYTES_MAX)
        return fail_at(scan, start, "a number longer than 63 characters");
    if (exponent) { /* without one, 63 digits stay far below the largest double */
        char copy[GD_JSON_NUMBER_BYTES_MAX + 1];
        memcpy(copy, scan->text + start, length);
        copy[length] = '\0';
        if (!isfinite(strtod(copy, NULL)))
            return fail_at(scan, start, "this number is too large for a double");
    }
    return true;
}

static bool scan_word(struct scan *scan)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < GD_COUNT(words); i++) {
        size_t length = strlen(words[i]);
        if (scan->length - scan->at >= length && memcmp(scan->text + scan->at, words[i], length) == 0) {
            scan->at += length;
            return true;
        }
    }
    return fail_here(scan, "expected a value: object, array, string, number, true, false or null");
}

/* The unescaped text of the key at `offset` (checked before), appended to `out`. */
static void key_text(struct scan *scan, size_t offset, struct gd_buf *out)
{
    size_t at = scan->at;
    scan->at = offset;
    bool ok = scan_string(scan, out);
    assert(ok);
    (void)ok;
    scan->at = at;
}

static bool same_key(struct scan *scan, size_t a, size_t b)
{
    struct gd_buf left = {0}, right = {0};
    key_text(scan, a, &left);
    key_text(scan, b, &right);
    bool same = left.length == right.length && (left.length == 0 || memcmp(left.data, right.data, left.length) == 0);
    gd_buf_release(&left);
    gd_buf_release(&right);
    return same;
}

static int by_hash(const void *a, const void *b)
{
    const struct key *left = a, *right = b;
    if (left->hash != right->hash)
        return left->hash < right->hash ? -1 : 1;
    return left->offset < right->offset ? -1 : left->offset > right->offset;
}

/* At the end of an object: n log n in its number of keys. */
static bool check_duplicates(struct scan *scan, struct key *keys, size_t count)
{
    if (count < 2)
        return true;
    bool sorted = count > PAIRWISE_MAX;
    if (sorted)
        qsort(keys, count, sizeof(struct key), by_hash);
    size_t duplicate = SIZE_MAX; /* the first repeated one */
    for (size_t i = 0; i < count; i++)
        for (size_t j = i + 1; j < count && (!sorted || keys[j].hash == keys[i].hash); j++)
            if (keys[j].hash == keys[i].hash && keys[j].offset < duplicate &&
                same_key(scan, keys[i].offset, keys[j].offset))
                duplicate = keys[j].offset;
    if (duplicate == SIZE_MAX)
        return true;
    struct gd_buf name = {0};
    key_text(scan, duplicate, &name);
    char *what = gd_format("the key \"%.200s\" is there twice in one object", name.data != NULL ? name.data : "");
    fail_at(scan, duplicate, what);
    gd_free(what);
    gd_buf_release(&name);
    return false;
}

static bool scan_key(struct scan *scan)
{
    if (scan->key_count == scan->key_capacity) {
        scan->key_capacity = scan->key_capacity == 0 ? 64 : scan->key_capacity * 2;
        scan->keys = gd_realloc_array(scan->keys, scan->key_capacity, sizeof(struct key));
    }
    size_t offset = scan->at;
    if (!scan_string(scan, NULL))
        return false;
    const char *key = scan->text + offset + 1;
    size_t length = scan->at - offset - 2;
    if (memchr(key, '\\', length) != NULL) { /* hashed by what it means, not by how it is written */
        gd_buf_clear(&scan->unescaped);
        key_text(scan, offset, &scan->unescaped);
        key = scan->unescaped.data;
        length = scan->unescaped.length;
    }
    scan->keys[scan->key_count++] = (struct key){.hash = XXH3_64bits_withSeed(key, length, hash_seed), .offset = offset};
    skip_space(scan);
    if (peek(scan) != ':')
        return fail_here(scan, "expected ':' after the key");
    scan->at++;
    skip_space(scan);
    return true;
}

static bool open_level(struct scan *scan, bool object)
{
    if (scan->depth == GD_JSON_DEPTH_MAX)
        return fail_here(scan, "nested deeper than 64 levels");
    scan->levels[scan->depth++] = (struct level){.object = object, .first_key = scan->key_count};
    scan->at++;
    skip_space(scan);
    return true;
}

static bool close_level(struct scan *scan)
{
    const struct level *level = &scan->levels[--scan->depth];
    bool ok = !level->object || check_duplicates(scan, scan->keys + level->first_key, scan->key_count - level->first_key);
    scan->key_count = level->first_key;
    scan->at++;
    return ok;
}

/* One value, or the opening of one: *opened says that its members follow. */
static bool scan_value(struct scan *scan, bool *opened)
{
    *opened = false;
    if (++scan->values > scan->values_max) {
        char what[80];
        snprintf(what, sizeof what, "this is value %zu, more than are accepted here", scan->values);
        return fail_here(scan, what);
    }
    char byte = peek(scan);
    if (byte == '{' || byte == '[') {
        if (!open_level(scan, byte == '{'))
            return false;
        if (peek(scan) == (byte == '{' ? '}' : ']'))
            return close_level(scan);
        *opened = true;
        return byte == '[' || scan_key(scan);
    }
    if (byte == '"')
        return scan_string(scan, NULL);
    if (byte == '-' || (byte >= '0' && byte <= '9'))
        return scan_number(scan);
    return scan_word(scan);
}

/* After a value: closes what ends here and stands at the next value, or at the end with depth 0. */
static bool scan_next(struct scan *scan)
{
    while (scan->depth > 0) {
        bool object = scan->levels[scan->depth - 1].object;
        skip_space(scan);
        if (peek(scan) == ',') {
            scan->at++;
            skip_space(scan);
            return !object || scan_key(scan);
        }
        if (peek(scan) != (object ? '}' : ']'))
            return fail_here(scan, object ? "expected ',' or '}'" : "expected ',' or ']'");
        if (!close_level(scan))
            return false;
    }
    return true;
}

static bool scan_text(struct scan *scan)
{
    static const char mark[] = "\xEF\xBB\xBF";
    if (scan->length >= 3 && memcmp(scan->text, mark, 3) == 0)
        return fail_at(scan, 0, "a byte order mark; save the text as UTF-8 without one");
    skip_space(scan);
    if (scan->at == scan->length)
        return fail_at(scan, scan->at, "there is no value");
    do {
        bool opened = true;
        while (opened)
            if (!scan_value(scan, &opened))
                return false;
        if (!scan_next(scan))
            return false;
    } while (scan->depth > 0);
    skip_space(scan);
    return scan->at == scan->length || fail_here(scan, "something follows the end of the value");
}

bool gd_json_scan(const char *text, size_t length, size_t values_max, struct gd_error *err)
{
    (void)pthread_once(&hash_once, make_hash_seed);
    struct scan scan = {.text = text, .length = length, .values_max = values_max, .err = err};
    bool ok = scan_text(&scan);
    gd_free(scan.keys);
    gd_buf_release(&scan.unescaped);
    return ok;
}
