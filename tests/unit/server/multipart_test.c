#include "server/multipart.h"

#include "engine/base/alloc.h"
#include "engine/base/buf.h"
#include "engine/base/philox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

/* Writes what it is told as text: "name|filename:data;" */
static bool on_begin(void *context, const char *name, const char *filename, struct gd_error *err)
{
    gd_buf_printf(context, "%s|%s:", name, filename != NULL ? filename : "-");
    return true;
}

static bool on_data(void *context, const void *bytes, size_t length, struct gd_error *err)
{
    gd_buf_append(context, bytes, length);
    return true;
}

static bool on_end(void *context, struct gd_error *err)
{
    gd_buf_append_char(context, ';');
    return true;
}

/* Feeds in pieces of `piece` bytes (0: random sizes from `seed`). */
static bool parse(const char *content_type, const char *body, size_t length, size_t piece, uint64_t seed,
                  struct gd_buf *out, struct gd_error *err)
{
    struct gd_multipart *parser = NULL;
    struct gd_multipart_sink sink = {out, on_begin, on_data, on_end};
    *err = (struct gd_error){0};
    gd_buf_init(out, 0);
    if (!gd_multipart_create(&parser, content_type, &sink, err))
        return false;
    bool ok = true;
    for (size_t at = 0; ok && at < length;) {
        size_t size = piece != 0 ? piece : 1 + gd_philox4(seed, 0, at).v[0] % 7;
        if (size > length - at)
            size = length - at;
        char *copy = gd_alloc(size); /* of its own, so that a sanitizer sees reads past the end */
        memcpy(copy, body + at, size);
        ok = gd_multipart_feed(parser, copy, size, err);
        gd_free(copy);
        at += size;
    }
    ok = ok && gd_multipart_finish(parser, err);
    gd_multipart_destroy(parser);
    return ok;
}

#define TYPE "multipart/form-data; boundary=B"
#define PART(disposition, data) "--B\r\nContent-Disposition: " disposition "\r\n\r\n" data "\r\n"

static void parts_come_out_the_same_for_every_split(void **state)
{
    static const char body[] =
        PART("form-data; name=\"file\"; filename=\"a.jsonl\"", "x\r\n--Bogus\r\n--C\r\r\n-\r\n--\r\n")
        PART("form-data; name=\"purpose\"", "fine-tune")
        PART("form-data; name=\"expires_after[anchor]\"", "")
        "--B--\r\n";
    static const char expected[] =
        "file|a.jsonl:x\r\n--C\r\r\n-\r\n--\r\n;purpose|-:fine-tune;expires_after[anchor]|-:;";
    static const char real_body[] =
        PART("form-data; name=\"file\"; filename=\"a.jsonl\"", "x\r\n--C\r\r\n-\r\n--\r\n")
        PART("form-data; name=\"purpose\"", "fine-tune")
        PART("form-data; name=\"expires_after[anchor]\"", "")
        "--B--\r\n";
    for (size_t piece = 1; piece <= sizeof(real_body); piece++) {
        struct gd_buf out;
        struct gd_error err;
        if (!parse(TYPE, real_body, sizeof(real_body) - 1, piece, 0, &out, &err))
            fail_msg("pieces of %zu: %s", piece, err.message);
        assert_string_equal(out.data, expected);
        gd_buf_release(&out);
    }
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct gd_buf out;
        struct gd_error err;
        assert_true(parse(TYPE, real_body, sizeof(real_body) - 1, 0, seed, &out, &err));
        assert_string_equal(out.data, expected);
        gd_buf_release(&out);
    }
    struct gd_buf out; /* "--Bogus" begins with the boundary: what follows it must be a line end */
    struct gd_error err;
    assert_false(parse(TYPE, body, sizeof(body) - 1, 5, 0, &out, &err));
    gd_buf_release(&out);
}

static void binary_data_passes_unchanged(void **state)
{
    char body[8192], expected[8192];
    static const char head[] = "--B\r\nContent-Disposition: form-data; name=f; filename=g\r\nContent-Type: a/b\r\n\r\n";
    size_t length = sizeof(head) - 1, data = 4000;
    memcpy(body, head, length);
    for (size_t i = 0; i < data; i++) /* many CR, LF, "-" and "B" */
        body[length + i] = "\r\n-B\0x"[gd_philox4(3, 0, i).v[0] % 6];
    memcpy(body + length + data, "\r\n--B--", 7);
    memcpy(expected, "f|g:", 4);
    memcpy(expected + 4, body + length, data);
    expected[4 + data] = ';';
    struct gd_buf out;
    struct gd_error err;
    /* A random run of these bytes may hold the delimiter itself: then it would end there. This seed has none. */
    assert_null(memmem(body + length, data, "\r\n--B", 5));
    assert_true(parse(TYPE, body, length + data + 7, 0, 1, &out, &err));
    assert_int_equal(out.length, data + 5);
    assert_memory_equal(out.data, expected, data + 5);
    gd_buf_release(&out);
}

static void filenames_are_data(void **state)
{
    static const struct {
        const char *given, *name; /* NULL: refused */
    } cases[] = {
        {"filename=\"../../etc/passwd\"", "../../etc/passwd"},
        {"filename=\"C:\\dir\\a.txt\"", "C:\\dir\\a.txt"},
        {"filename=\"a \\\"b\\\".txt\"", "a \"b\".txt"},
        {"filename=\"a%22b.txt\"", "a%22b.txt"},
        {"filename=a.txt", "a.txt"},
        {"filename=\"na\xc3\xafve.txt\"", "na\xc3\xafve.txt"},
        {"filename=\"a;b=c.txt\"", "a;b=c.txt"},
        {"filename=\"x\"; filename*=UTF-8''na%C3%AFve.txt", "na\xc3\xafve.txt"},
        {"filename=\"\"", NULL},
        {"filename=\"a\x01.txt\"", NULL},
        {"filename=\"a\xff.txt\"", NULL},
        {"filename*=UTF-8''a%00b", NULL},
        {"filename*=UTF-8''a%0Ab", NULL},
        {"filename*=latin1''a", NULL},
        {"filename*=UTF-8''a%4", NULL},
        {"filename=\"open", NULL},
        {"filename=a; filename=b", NULL},
        {"filename", NULL},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        char body[512], expected[256];
        snprintf(body, sizeof(body), "--B\r\nContent-Disposition: form-data; name=\"f\"; %s\r\n\r\nd\r\n--B--", cases[i].given);
        struct gd_buf out;
        struct gd_error err;
        bool ok = parse(TYPE, body, strlen(body), 3, 0, &out, &err);
        if (ok != (cases[i].name != NULL))
            fail_msg("%s: %s", cases[i].given, ok ? "was taken" : err.message);
        if (ok) {
            snprintf(expected, sizeof(expected), "f|%s:d;", cases[i].name);
            assert_string_equal(out.data, expected);
        }
        gd_buf_release(&out);
    }
}

static void malformed_bodies_are_refused(void **state)
{
    static const struct {
        const char *type, *body;
    } cases[] = {
        {TYPE, ""},
        {TYPE, "--B"},
        {TYPE, "--B-"},
        {TYPE, "--Bx"},
        {TYPE, "x--B\r\n"},
        {TYPE, "--B\r\n\r\nno headers\r\n--B--"},
        {TYPE, "--B\n\n"},
        {TYPE, "--B\r\nContent-Type: a/b\r\n\r\nx\r\n--B--"},
        {TYPE, "--B\r\nContent-Disposition: attachment; name=\"a\"\r\n\r\nx\r\n--B--"},
        {TYPE, "--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--"},
        {TYPE, "--B\r\nContent-Disposition: form-data; name=\"\"\r\n\r\nx\r\n--B--"},
        {TYPE, "--B\r\nContent-Disposition: form-data; name=\"a\"; name=\"b\"\r\n\r\nx\r\n--B--"},
        {TYPE, "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n"
               "Content-Disposition: form-data; name=\"b\"\r\n\r\nx\r\n--B--"},
        {TYPE, PART("form-data; name=\"a\"\r\nContent-Transfer-Encoding: base64", "eA==") "--B--"},
        {TYPE, PART("form-data; name=\"a\"", "x")},
        {TYPE, PART("form-data; name=\"a\"", "x") "--B-\r\n"},
        {TYPE, PART("form-data; name=\"a\"", "x") "--B\r"},
        {"multipart/form-data", "--B--"},
        {"multipart/form-data; boundary=", "--"},
        {"multipart/form-data; boundary=\"B", "--B--"},
        {"multipart/form-data; boundary=B; boundary=C", "--B--"},
        {"multipart/form-data; boundary=\"B \"", "--B --"},
        {"multipart/form-data; boundary=a\x01", "--a--"},
        {"multipart/form-data; boundary="
         "0123456789012345678901234567890123456789012345678901234567890123456789x", "--"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_buf out;
        struct gd_error err;
        if (parse(cases[i].type, cases[i].body, strlen(cases[i].body), 0, i, &out, &err))
            fail_msg("case %zu was taken", i);
        assert_int_equal(err.code, GD_INVALID);
        gd_buf_release(&out);
    }
}

static void part_headers_and_parts_are_bounded(void **state)
{
    struct gd_buf body, out;
    struct gd_error err;
    gd_buf_init(&body, 0);
    gd_buf_append_text(&body, "--B\r\nContent-Disposition: form-data; name=\"a\"\r\nX: ");
    for (int i = 0; i < GD_MULTIPART_HEADER_MAX; i++)
        gd_buf_append_char(&body, 'x');
    gd_buf_append_text(&body, "\r\n\r\nx\r\n--B--");
    assert_false(parse(TYPE, body.data, body.length, 100, 0, &out, &err));
    gd_buf_release(&out);
    gd_buf_clear(&body);
    for (int i = 0; i <= GD_MULTIPART_PARTS_MAX; i++)
        gd_buf_append_text(&body, PART("form-data; name=\"a\"", "x"));
    gd_buf_append_text(&body, "--B--");
    assert_false(parse(TYPE, body.data, body.length, 100, 0, &out, &err));
    gd_buf_release(&out);
    gd_buf_release(&body);
}

static void boundaries_may_be_quoted_and_odd(void **state)
{
    struct gd_buf out;
    struct gd_error err;
    static const char body[] = "--a b'()+_,-./:=?z\r\nContent-Disposition: form-data; name=n\r\n\r\nv\r\n--a b'()+_,-./:=?z--x";
    assert_true(parse("multipart/form-data; charset=utf-8; boundary=\"a b'()+_,-./:=?z\"", body, strlen(body), 2, 0, &out,
                      &err));
    assert_string_equal(out.data, "n|-:v;");
    gd_buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_come_out_the_same_for_every_split),
        cmocka_unit_test(binary_data_passes_unchanged),
        cmocka_unit_test(filenames_are_data),
        cmocka_unit_test(malformed_bodies_are_refused),
        cmocka_unit_test(part_headers_and_parts_are_bounded),
        cmocka_unit_test(boundaries_may_be_quoted_and_odd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
