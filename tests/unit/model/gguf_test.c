/* gguf_test.c - the GGUF reader against every public way to break one. */
#include "engine/model/gguf.h"
#include "tests/unit/model/model_testing.h"

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

static void put_string(struct gd_buf *buf, const char *text)
{
    put_u64(buf, strlen(text));
    gd_buf_append_text(buf, text);
}

static void put_header(struct gd_buf *buf, uint64_t tensors, uint64_t values)
{
    gd_buf_append(buf, "GGUF", 4);
    put_u32(buf, 3);
    put_u64(buf, tensors);
    put_u64(buf, values);
}

static void put_key(struct gd_buf *buf, const char *key, uint32_t kind)
{
    put_string(buf, key);
    put_u32(buf, kind);
}

static void put_tensor(struct gd_buf *buf, const char *name, uint64_t columns, uint64_t rows, uint32_t type,
                       uint64_t offset)
{
    put_string(buf, name);
    put_u32(buf, rows > 0 ? 2 : 1);
    put_u64(buf, columns);
    if (rows > 0)
        put_u64(buf, rows);
    put_u32(buf, type);
    put_u64(buf, offset);
}

static void put_data(struct gd_buf *buf, size_t bytes)
{
    while (buf->length % 32 != 0)
        gd_buf_append_char(buf, 0);
    for (size_t i = 0; i < bytes; i++)
        gd_buf_append_char(buf, (char)i);
}

static bool open_buf(const struct gd_buf *buf, size_t length, struct gd_gguf **file, struct gd_error *err)
{
    struct scratch scratch = scratch_begin();
    scratch_write(&scratch, "x.gguf", buf->data != NULL ? buf->data : "", length);
    char *path = scratch_path(&scratch, "x.gguf");
    bool ok = gd_gguf_open(file, path, err);
    gd_free(path);
    scratch_end(&scratch);
    return ok;
}

/* ---- one function for each hostile file ---- */

static void empty(struct gd_buf *b)
{
}
static void bad_magic(struct gd_buf *b)
{
    gd_buf_append_text(b, "GGML0000000000000000000000");
}
static void short_magic(struct gd_buf *b)
{
    gd_buf_append_text(b, "GG");
}
static void only_magic(struct gd_buf *b)
{
    gd_buf_append_text(b, "GGUF");
}
static void version_1(struct gd_buf *b)
{
    gd_buf_append_text(b, "GGUF");
    put_u32(b, 1);
    put_u64(b, 0);
    put_u64(b, 0);
}
static void big_endian(struct gd_buf *b)
{
    gd_buf_append_text(b, "GGUF");
    put_u32(b, 0x03000000);
}
static void half_header(struct gd_buf *b)
{
    gd_buf_append_text(b, "GGUF");
    put_u32(b, 3);
    put_u32(b, 7);
}
static void huge_value_count(struct gd_buf *b)
{
    put_header(b, 0, UINT64_MAX);
    put_data(b, 64);
}
static void huge_tensor_count(struct gd_buf *b)
{
    put_header(b, UINT64_C(1) << 60, 0);
    put_data(b, 64);
}
static void more_values_than_bytes(struct gd_buf *b)
{
    put_header(b, 0, 3);
    put_key(b, "a", U32);
    put_u32(b, 1);
}
static void endless_key(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_u64(b, UINT64_C(1) << 63);
    put_data(b, 64);
}
static void empty_key(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_u64(b, 0);
    put_data(b, 64);
}
static void control_key(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "a\nb", U32);
    put_u32(b, 1);
}
static void endless_string(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "k", STRING);
    put_u64(b, UINT64_C(1) << 63);
    put_data(b, 64);
}
static void unknown_kind(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "k", 0x7fffffff);
    put_data(b, 64);
}
static void array_of_arrays(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "k", ARRAY);
    put_u32(b, ARRAY);
    put_u64(b, 1);
    put_data(b, 64);
}
static void array_of_unknown(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "k", ARRAY);
    put_u32(b, 13);
    put_u64(b, 1);
    put_data(b, 64);
}
static void endless_array(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "k", ARRAY);
    put_u32(b, F64);
    put_u64(b, UINT64_C(1) << 61);
    put_data(b, 64);
}
static void endless_string_array(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "k", ARRAY);
    put_u32(b, STRING);
    put_u64(b, UINT64_MAX);
    put_data(b, 64);
}
static void string_past_array(struct gd_buf *b)
{
    put_header(b, 0, 1);
    put_key(b, "k", ARRAY);
    put_u32(b, STRING);
    put_u64(b, 2);
    put_string(b, "ok");
    put_u64(b, 1000);
}
static void twin_keys(struct gd_buf *b)
{
    put_header(b, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_key(b, "k", U32);
        put_u32(b, 1);
    }
}
static void alignment(struct gd_buf *b, uint32_t kind, uint32_t value)
{
    put_header(b, 1, 1);
    put_key(b, "general.alignment", kind);
    put_u32(b, value);
    put_tensor(b, "t", 8, 0, 0, 0);
    put_data(b, 256);
}
static void alignment_odd(struct gd_buf *b)
{
    alignment(b, U32, 24);
}
static void alignment_zero(struct gd_buf *b)
{
    alignment(b, U32, 0);
}
static void alignment_huge(struct gd_buf *b)
{
    alignment(b, U32, UINT32_C(1) << 31);
}
static void alignment_float(struct gd_buf *b)
{
    alignment(b, F32, 0x42000000);
}
static void no_dimensions(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_string(b, "t");
    put_u32(b, 0);
    put_data(b, 64);
}
static void five_dimensions(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_string(b, "t");
    put_u32(b, 5);
    put_data(b, 64);
}
static void zero_dimension(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 0, 4, 0, 0);
    put_data(b, 64);
}
static void overflowing_dimensions(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", UINT64_C(1) << 33, UINT64_C(1) << 33, 0, 0);
    put_data(b, 64);
}
static void overflowing_bytes(struct gd_buf *b) /* 4 * (2^62 + 1) wraps to 4 */
{
    put_header(b, 1, 0);
    put_tensor(b, "t", (UINT64_C(1) << 62) + 1, 1, 0, 0);
    put_data(b, 64);
}
static void unknown_type(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 32, 1, 99, 0);
    put_data(b, 64);
}
static void removed_type(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 32, 1, 4, 0);
    put_data(b, 64);
}
static void unsupported_type(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 256, 1, 23, 0);
    put_data(b, 256);
}
static void half_block(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 48, 2, 2, 0);
    put_data(b, 256);
}
static void odd_offset(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 8, 0, 0, 4);
    put_data(b, 256);
}
static void offset_past_end(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 8, 0, 0, 1024);
    put_data(b, 256);
}
static void offset_wraps(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 8, 0, 0, UINT64_MAX - 31);
    put_data(b, 256);
}
static void size_past_end(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 65, 0, 0, 0);
    put_data(b, 256);
}
static void overlap(struct gd_buf *b)
{
    put_header(b, 2, 0);
    put_tensor(b, "first", 16, 0, 0, 0);
    put_tensor(b, "second", 8, 0, 0, 32);
    put_data(b, 256);
}
static void twin_tensors(struct gd_buf *b)
{
    put_header(b, 2, 0);
    put_tensor(b, "t", 8, 0, 0, 0);
    put_tensor(b, "t", 8, 0, 0, 32);
    put_data(b, 256);
}
static void no_data(struct gd_buf *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "t", 8, 0, 0, 0);
}

static void each_hostile_file_is_refused_by_name(void **state)
{
    static const struct {
        const char *name;
        void (*build)(struct gd_buf *buf);
        enum gd_code code;
        const char *words;
    } cases[] = {
        {"empty", empty, GD_BAD_MODEL, "empty"},
        {"bad magic", bad_magic, GD_BAD_MODEL, "GGML|GGUF"},
        {"short magic", short_magic, GD_BAD_MODEL, "offset 2"},
        {"only magic", only_magic, GD_BAD_MODEL, "offset 4|header"},
        {"version 1", version_1, GD_UNSUPPORTED, "version 1"},
        {"big endian", big_endian, GD_UNSUPPORTED, "big-endian"},
        {"half header", half_header, GD_BAD_MODEL, "header"},
        {"huge value count", huge_value_count, GD_BAD_MODEL, "18446744073709551615 metadata entries"},
        {"huge tensor count", huge_tensor_count, GD_BAD_MODEL, "1152921504606846976 tensors"},
        {"more values than bytes", more_values_than_bytes, GD_BAD_MODEL, "3 metadata entries"},
        {"endless key", endless_key, GD_BAD_MODEL, "a key at offset 24|9223372036854775808"},
        {"empty key", empty_key, GD_BAD_MODEL, "a key at offset 24|0 bytes"},
        {"control key", control_key, GD_BAD_MODEL, "a key|a\\x0ab"},
        {"endless string", endless_string, GD_BAD_MODEL, "key k|9223372036854775808"},
        {"unknown kind", unknown_kind, GD_BAD_MODEL, "key k|0x7fffffff"},
        {"array of arrays", array_of_arrays, GD_BAD_MODEL, "key k|array of arrays"},
        {"array of unknown", array_of_unknown, GD_BAD_MODEL, "key k|0xd"},
        {"endless array", endless_array, GD_BAD_MODEL, "key k|2305843009213693952"},
        {"endless string array", endless_string_array, GD_BAD_MODEL, "key k|strings"},
        {"string past array", string_past_array, GD_BAD_MODEL, "key k|1000 bytes"},
        {"twin keys", twin_keys, GD_BAD_MODEL, "key k|twice"},
        {"alignment 24", alignment_odd, GD_BAD_MODEL, "general.alignment 24|power of two"},
        {"alignment 0", alignment_zero, GD_BAD_MODEL, "general.alignment is 0"},
        {"alignment 2^31", alignment_huge, GD_BAD_MODEL, "general.alignment is 2147483648"},
        {"alignment float", alignment_float, GD_BAD_MODEL, "general.alignment is float32"},
        {"no dimensions", no_dimensions, GD_BAD_MODEL, "tensor t|0 dimensions"},
        {"five dimensions", five_dimensions, GD_BAD_MODEL, "tensor t|5 dimensions"},
        {"zero dimension", zero_dimension, GD_BAD_MODEL, "tensor t|dimension 0 is 0"},
        {"overflowing dimensions", overflowing_dimensions, GD_BAD_MODEL, "tensor t|overflow"},
        {"overflowing bytes", overflowing_bytes, GD_BAD_MODEL, "tensor t|overflow"},
        {"unknown type", unknown_type, GD_UNSUPPORTED, "tensor t|type 99"},
        {"removed type", removed_type, GD_UNSUPPORTED, "tensor t|type 4"},
        {"unsupported type", unsupported_type, GD_UNSUPPORTED, "tensor t|IQ4_XS|Q4_K"},
        {"half block", half_block, GD_BAD_MODEL, "tensor t|48|Q4_0"},
        {"odd offset", odd_offset, GD_BAD_MODEL, "tensor t|offset 4|alignment 32"},
        {"offset past end", offset_past_end, GD_BAD_MODEL, "tensor t|offset 1024|256 bytes"},
        {"offset wraps", offset_wraps, GD_BAD_MODEL, "tensor t|offset 18446744073709551584"},
        {"size past end", size_past_end, GD_BAD_MODEL, "tensor t|260 bytes|256 bytes"},
        {"overlap", overlap, GD_BAD_MODEL, "tensor second|offset 32|tensor first"},
        {"twin tensors", twin_tensors, GD_BAD_MODEL, "tensor t|twice"},
        {"no data", no_data, GD_BAD_MODEL, "data section"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_buf buf;
        struct gd_error err = {0};
        struct gd_gguf *file = NULL;
        gd_buf_init(&buf, 0);
        cases[i].build(&buf);
        if (open_buf(&buf, buf.length, &file, &err))
            fail_msg("accepted: %s", cases[i].name);
        assert_null(file);
        check_error(cases[i].name, &err, cases[i].code, cases[i].words);
        assert_non_null(strstr(err.message, "x.gguf"));
        gd_buf_release(&buf);
    }
}

/* ---- metadata ---- */

static void put_all_kinds(struct gd_buf *buf)
{
    put_header(buf, 1, 9);
    put_key(buf, "u32", U32);
    put_u32(buf, 4000000000u);
    put_key(buf, "u64", U64);
    put_u64(buf, UINT64_MAX);
    put_key(buf, "f32", F32);
    put_u32(buf, 0x3f000000);
    put_key(buf, "nan", F32);
    put_u32(buf, 0x7fc00000);
    put_key(buf, "bool", BOOL);
    gd_buf_append_char(buf, 1);
    put_key(buf, "text", STRING);
    put_string(buf, "caf\xc3\xa9");
    put_key(buf, "bytes", ARRAY);
    put_u32(buf, I8);
    put_u64(buf, 3);
    gd_buf_append(buf, "\x01\xff\x02", 3);
    put_key(buf, "names", ARRAY);
    put_u32(buf, STRING);
    put_u64(buf, 2);
    put_string(buf, "a");
    put_string(buf, "");
    put_key(buf, "layers", ARRAY);
    put_u32(buf, I32);
    put_u64(buf, 2);
    put_u32(buf, 7);
    put_u32(buf, 7);
    put_tensor(buf, "t", 4, 2, 0, 0);
    put_data(buf, 32);
}

static void values_are_read_as_what_they_are(void **state)
{
    struct gd_buf buf;
    struct gd_error err = {0};
    struct gd_gguf *file = NULL;
    gd_buf_init(&buf, 0);
    put_all_kinds(&buf);
    if (!open_buf(&buf, buf.length, &file, &err))
        fail_msg("%s", err.message);

    int64_t whole = -5;
    double number = 0;
    bool flag = false;
    const char *text = NULL;
    const char *const *names = NULL;
    const int32_t *words = NULL;
    int count = 0;
    assert_true(gd_gguf_get_int(file, "u32", true, 0, UINT32_MAX, &whole, &err));
    assert_int_equal(whole, 4000000000);
    assert_true(gd_gguf_get_int(file, "absent", false, 0, 1, &whole, &err));
    assert_int_equal(whole, 4000000000);
    assert_true(gd_gguf_get_uniform_int(file, "layers", true, 0, 10, &whole, &err));
    assert_int_equal(whole, 7);
    assert_true(gd_gguf_get_number(file, "f32", true, 0, 1, &number, &err));
    assert_true(number == 0.5);
    assert_true(gd_gguf_get_bool(file, "bool", true, &flag, &err));
    assert_true(flag);
    assert_true(gd_gguf_get_string(file, "text", true, &text, &err));
    assert_string_equal(text, "caf\xc3\xa9");
    assert_true(gd_gguf_get_strings(file, "names", true, 2, &names, &count, &err));
    assert_int_equal(count, 2);
    assert_string_equal(names[0], "a");
    assert_string_equal(names[1], "");
    assert_true(gd_gguf_get_i32s(file, "layers", true, 2, &words, &count, &err));
    assert_int_equal(words[1], 7);

    assert_false(gd_gguf_get_int(file, "absent", true, 0, 1, &whole, &err));
    check_error("absent", &err, GD_BAD_MODEL, "key absent is missing");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_int(file, "u32", true, 0, 100, &whole, &err));
    check_error("range", &err, GD_BAD_MODEL, "key u32 is 4000000000|0 to 100");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_int(file, "u64", true, INT64_MIN, INT64_MAX, &whole, &err));
    check_error("beyond int64", &err, GD_BAD_MODEL, "key u64");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_int(file, "f32", true, 0, 100, &whole, &err));
    check_error("float as int", &err, GD_BAD_MODEL, "key f32 is float32, not an integer");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_number(file, "nan", true, -1e300, 1e300, &number, &err));
    check_error("nan", &err, GD_BAD_MODEL, "key nan");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_i32s(file, "bytes", true, 100, &words, &count, &err));
    check_error("int8 as int32", &err, GD_BAD_MODEL, "key bytes is an array of int8, not an array of int32");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_string(file, "names", true, &text, &err));
    check_error("array as string", &err, GD_BAD_MODEL, "key names is an array of string");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_strings(file, "names", true, 1, &names, &count, &err));
    check_error("too many", &err, GD_BAD_MODEL, "key names has 2 items, limit 1");
    gd_error_clear(&err);
    assert_false(gd_gguf_get_uniform_int(file, "bytes", true, -10, 10, &whole, &err));
    check_error("by layer", &err, GD_UNSUPPORTED, "key bytes differs by layer (1 and -1)");
    gd_gguf_close(file);
    gd_buf_release(&buf);
}

static void shapes_are_row_major_and_data_is_in_place(void **state)
{
    struct gd_buf buf;
    struct gd_error err = {0};
    struct gd_gguf *file = NULL;
    struct gd_tensor tensor;
    gd_buf_init(&buf, 0);
    put_all_kinds(&buf);
    assert_true(open_buf(&buf, buf.length, &file, &err));
    assert_true(gd_gguf_find(file, "t", &tensor));
    assert_int_equal(tensor.rank, 2);
    assert_int_equal(tensor.shape[0], 2);
    assert_int_equal(tensor.shape[1], 4);
    assert_int_equal(*(const unsigned char *)tensor.data, 0);
    assert_int_equal(((const unsigned char *)tensor.data)[31], 31);
    assert_false(gd_gguf_find(file, "u", &tensor));
    gd_gguf_close(file);
    gd_buf_release(&buf);
}

static void every_truncation_is_refused_and_no_flipped_bit_crashes(void **state)
{
    struct gd_buf buf;
    struct gd_gguf *file = NULL;
    struct gd_error err = {0};
    gd_buf_init(&buf, 0);
    put_all_kinds(&buf);
    for (size_t length = 0; length < buf.length; length++) {
        gd_error_clear(&err);
        assert_false(open_buf(&buf, length, &file, &err));
        assert_int_equal(err.code, GD_BAD_MODEL);
    }
    for (size_t bit = 0; bit < 8 * (buf.length - 32); bit++) {
        gd_error_clear(&err);
        buf.data[bit / 8] ^= (char)(1 << bit % 8);
        if (open_buf(&buf, buf.length, &file, &err))
            gd_gguf_close(file);
        else
            assert_true(err.code == GD_BAD_MODEL || err.code == GD_UNSUPPORTED);
        file = NULL;
        buf.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    gd_buf_release(&buf);
}

static void a_file_of_the_reference_writer_is_read(void **state)
{
    struct gd_error err = {0};
    struct gd_gguf *file = NULL;
    struct gd_tensor tensor;
    char *path = fixture_path("tiny-llama-q8_0.gguf");
    if (!gd_gguf_open(&file, path, &err))
        fail_msg("%s", err.message);
    assert_int_equal(gd_gguf_count(file), 29);
    assert_true(gd_gguf_find(file, "blk.2.ffn_down.weight", &tensor));
    assert_int_equal(tensor.dtype, GD_Q8_0);
    assert_int_equal(tensor.shape[0], 32);
    assert_int_equal(tensor.shape[1], 64);
    const char *const *tokens = NULL;
    int count = 0;
    assert_true(gd_gguf_get_strings(file, "tokenizer.ggml.tokens", true, 1000, &tokens, &count, &err));
    assert_int_equal(count, 320);
    assert_string_equal(tokens[2], "<|im_end|>");
    gd_gguf_close(file);
    gd_free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_hostile_file_is_refused_by_name),
        cmocka_unit_test(values_are_read_as_what_they_are),
        cmocka_unit_test(shapes_are_row_major_and_data_is_in_place),
        cmocka_unit_test(every_truncation_is_refused_and_no_flipped_bit_crashes),
        cmocka_unit_test(a_file_of_the_reference_writer_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
