/* safetensors_test.c - the reader against the rules of the format, the writer against the reader. */
#include "engine/model/safetensors.h"
#include "tests/unit/model/model_testing.h"

/* Opens `header` and `data_bytes` bytes of data as a file. */
static bool open_parts(const char *header, size_t data_bytes, struct gd_safetensors **file, struct gd_error *err)
{
    struct scratch scratch = scratch_begin();
    struct gd_buf buf;
    gd_buf_init(&buf, 0);
    put_u64(&buf, strlen(header));
    gd_buf_append_text(&buf, header);
    for (size_t i = 0; i < data_bytes; i++)
        gd_buf_append_char(&buf, (char)i);
    scratch_write(&scratch, "x.safetensors", buf.data, buf.length);
    char *path = scratch_path(&scratch, "x.safetensors");
    bool ok = gd_safetensors_open(file, path, err);
    gd_free(path);
    gd_buf_release(&buf);
    scratch_end(&scratch);
    return ok;
}

static bool open_bytes(const void *bytes, size_t length, struct gd_error *err)
{
    struct scratch scratch = scratch_begin();
    struct gd_safetensors *file = NULL;
    scratch_write(&scratch, "x.safetensors", bytes, length);
    char *path = scratch_path(&scratch, "x.safetensors");
    bool ok = gd_safetensors_open(&file, path, err);
    gd_safetensors_close(file);
    gd_free(path);
    scratch_end(&scratch);
    return ok;
}

#define T(dtype, shape, begin, end) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void each_broken_header_is_refused_by_name(void **state)
{
    static const struct {
        const char *header;
        size_t data_bytes;
        enum gd_code code;
        const char *words;
    } cases[] = {
        {"[]", 0, GD_BAD_MODEL, "'{'|offset 8"},
        {" {}", 0, GD_BAD_MODEL, "'{'"},
        {"{", 0, GD_BAD_MODEL, "header at offset 8"},
        {"{}x", 0, GD_BAD_MODEL, "header"},
        {"{\"a\":" T("F32", "[1]", "0", "4") ",\"a\":" T("F32", "[1]", "4", "8") "}", 8, GD_BAD_MODEL, "a"},
        {"{\"\xff\":1}", 0, GD_BAD_MODEL, "UTF-8"},
        {"{\"a\":1}", 0, GD_BAD_MODEL, "tensor a|not an object"},
        {"{\"a\":{}}", 0, GD_BAD_MODEL, "tensor a|dtype"},
        {"{\"a\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,4]}}", 4, GD_BAD_MODEL, "tensor a|dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, GD_BAD_MODEL, "tensor a|shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, GD_BAD_MODEL, "tensor a|data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, GD_BAD_MODEL, "tensor a|x"},
        {"{\"a\":" T("F31", "[1]", "0", "4") "}", 4, GD_UNSUPPORTED, "tensor a|F31"},
        {"{\"a\":" T("F32", "[-1]", "0", "4") "}", 4, GD_BAD_MODEL, "tensor a|shape[0]"},
        {"{\"a\":" T("F32", "[1.5]", "0", "4") "}", 4, GD_BAD_MODEL, "tensor a|shape[0]"},
        {"{\"a\":" T("F32", "[1,\"2\"]", "0", "4") "}", 4, GD_BAD_MODEL, "tensor a|shape[1]"},
        {"{\"a\":" T("F32", "[4294967296,4294967296]", "0", "4") "}", 4, GD_BAD_MODEL, "tensor a|overflow"},
        {"{\"a\":" T("F32", "[4294967296,1073741824]", "0", "4") "}", 4, GD_BAD_MODEL, "tensor a|overflow"},
        {"{\"a\":" T("F32", "[2]", "0", "4") "}", 4, GD_BAD_MODEL, "tensor a|8 bytes"},
        {"{\"a\":" T("F4", "[3]", "0", "1") "}", 1, GD_BAD_MODEL, "tensor a|F4"},
        {"{\"a\":" T("F32", "[1]", "4", "0") "}", 4, GD_BAD_MODEL, "tensor a|backwards"},
        {"{\"a\":" T("F32", "[1]", "-4", "0") "}", 4, GD_BAD_MODEL, "tensor a|data_offsets"},
        {"{\"a\":" T("F32", "[1]", "0", "1e300") "}", 4, GD_BAD_MODEL, "tensor a|data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, GD_BAD_MODEL,
         "tensor a|data_offsets"},
        {"{\"a\":" T("F32", "[1]", "0", "4") "}", 3, GD_BAD_MODEL, "tensor a|ends at offset 4|3 bytes"},
        {"{\"a\":" T("F32", "[1]", "0", "4") "}", 5, GD_BAD_MODEL, "5 bytes|offset 4"},
        {"{\"a\":" T("F32", "[1]", "4", "8") "}", 8, GD_BAD_MODEL, "hole of 4 bytes|tensor a"},
        {"{\"a\":" T("F32", "[1]", "0", "4") ",\"b\":" T("F32", "[1]", "2", "6") "}", 6, GD_BAD_MODEL,
         "tensor b|offset 2|tensor a ends at 4"},
        {"{\"a\":" T("F32", "[1]", "0", "4") ",\"b\":" T("F32", "[1]", "0", "4") "}", 4, GD_BAD_MODEL, "offset 0"},
        {"{\"__metadata__\":{\"k\":1}}", 0, GD_BAD_MODEL, "__metadata__.k"},
        {"{\"__metadata__\":[]}", 0, GD_BAD_MODEL, "__metadata__"},
        {"{\"\\u001b[2J\":" T("F31", "[1]", "0", "4") "}", 4, GD_UNSUPPORTED, "tensor \\x1b[2J"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        struct gd_safetensors *file = NULL;
        if (open_parts(cases[i].header, cases[i].data_bytes, &file, &err))
            fail_msg("accepted: %s", cases[i].header);
        assert_null(file);
        check_error(cases[i].header, &err, cases[i].code, cases[i].words);
        assert_non_null(strstr(err.message, "x.safetensors"));
    }
}

static void lengths_beyond_the_file_are_refused(void **state)
{
    static const unsigned char huge[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}'};
    static const unsigned char longer[] = {3, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    static const unsigned char over_limit[] = {1, 0xe1, 0xf5, 5, 0, 0, 0, 0, '{', '}'};
    static const unsigned char zero[] = {0, 0, 0, 0, 0, 0, 0, 0};
    struct gd_error err = {0};
    assert_false(open_bytes(huge, sizeof huge, &err));
    check_error("huge", &err, GD_BAD_MODEL, "18446744073709551615 bytes|limit 100000000");
    gd_error_clear(&err);
    assert_false(open_bytes(longer, sizeof longer, &err));
    check_error("longer", &err, GD_BAD_MODEL, "3 bytes|file of 10");
    gd_error_clear(&err);
    assert_false(open_bytes(over_limit, sizeof over_limit, &err));
    check_error("over", &err, GD_BAD_MODEL, "100000001 bytes|limit 100000000");
    gd_error_clear(&err);
    assert_false(open_bytes(zero, sizeof zero, &err));
    check_error("zero", &err, GD_BAD_MODEL, "'{'");
    gd_error_clear(&err);
    assert_false(open_bytes("", 0, &err));
    check_error("empty", &err, GD_BAD_MODEL, "0 bytes are too few");
}

static void a_name_over_the_limit_is_refused(void **state)
{
    struct gd_buf header;
    struct gd_safetensors *file = NULL;
    struct gd_error err = {0};
    gd_buf_init(&header, 0);
    gd_buf_append_text(&header, "{\"");
    for (int i = 0; i < 513; i++)
        gd_buf_append_char(&header, 'n');
    gd_buf_append_text(&header, "\":" T("F32", "[1]", "0", "4") "}");
    assert_false(open_parts(header.data, 4, &file, &err));
    check_error("name", &err, GD_BAD_MODEL, "513 bytes|limit 512");
    gd_buf_release(&header);
}

static void odd_but_legal_headers_are_read(void **state)
{
    struct gd_error err = {0};
    struct gd_safetensors *file = NULL;
    struct gd_tensor tensor;
    assert_true(open_parts("{\"e\":" T("F32", "[0,3]", "0", "0") ",\"s\":" T("BF16", "[]", "0", "2") ",\"d\":" T(
                               "F64", "[1]", "2", "10") ",\"r\":" T("F32", "[1,1,1,1,1]", "10", "14") "}      ",
                           14, &file, &err));
    assert_int_equal(gd_safetensors_count(file), 4);
    assert_true(gd_safetensors_find(file, "e", &tensor));
    assert_int_equal(tensor.rank, 2);
    assert_int_equal(gd_tensor_count(&tensor), 0);
    assert_true(gd_safetensors_find(file, "s", &tensor));
    assert_int_equal(tensor.rank, 1);
    assert_int_equal(tensor.shape[0], 1);
    assert_int_equal(tensor.dtype, GD_BF16);
    assert_true(gd_safetensors_find(file, "d", &tensor));
    assert_int_equal(tensor.rank, -1);
    assert_true(gd_safetensors_find(file, "r", &tensor));
    assert_int_equal(tensor.rank, -1);
    assert_false(gd_safetensors_find(file, "x", &tensor));
    assert_null(gd_safetensors_metadata(file, "format"));
    gd_safetensors_close(file);
    file = NULL;
    assert_true(open_parts("{}", 0, &file, &err));
    assert_int_equal(gd_safetensors_count(file), 0);
    gd_safetensors_close(file);
}

static void what_is_written_is_read_back(void **state)
{
    struct scratch scratch = scratch_begin();
    float numbers[6] = {1, -2, 3.5f, 0, 1e-30f, 7};
    uint16_t halves[3] = {0x3f80, 0x4000, 0xbf80};
    int32_t ids[2] = {-1, 1 << 30};
    const struct gd_safetensors_entry entries[] = {
        {"b.weight", {GD_BF16, 1, {3}, halves}},
        {"a \"quoted\" \xc3\xa9", {GD_F32, 2, {2, 3}, numbers}},
        {"ids", {GD_I32, 1, {2}, ids}},
        {"none", {GD_F16, 2, {0, 4}, halves}},
    };
    struct gd_error err = {0};
    cJSON *metadata = cJSON_CreateObject();
    cJSON_AddItemToObject(metadata, "format", cJSON_CreateString("pt"));
    char *path = scratch_path(&scratch, "w.safetensors");
    assert_true(gd_safetensors_write(path, entries, GD_COUNT(entries), metadata, &err));
    cJSON_Delete(metadata);

    struct gd_safetensors *file = NULL;
    struct gd_tensor tensor;
    if (!gd_safetensors_open(&file, path, &err))
        fail_msg("%s", err.message);
    assert_int_equal(gd_safetensors_count(file), GD_COUNT(entries));
    for (size_t i = 0; i < GD_COUNT(entries); i++) {
        assert_true(gd_safetensors_find(file, entries[i].name, &tensor));
        assert_int_equal(tensor.dtype, entries[i].tensor.dtype);
        assert_int_equal(tensor.rank, entries[i].tensor.rank);
        assert_memory_equal(tensor.shape, entries[i].tensor.shape, sizeof tensor.shape);
        size_t bytes = gd_dtype_bytes(tensor.dtype, gd_tensor_count(&tensor));
        if (bytes > 0)
            assert_memory_equal(tensor.data, entries[i].tensor.data, bytes);
    }
    assert_string_equal(gd_safetensors_name(file, 0), "b.weight");
    assert_string_equal(gd_safetensors_metadata(file, "format"), "pt");
    gd_safetensors_close(file);

    char *bytes = NULL;
    size_t length = 0;
    assert_true(gd_file_read(path, 1 << 20, &bytes, &length, &err));
    assert_int_equal((unsigned char)bytes[0] % 8, 0); /* the header's length */
    gd_free(bytes);
    gd_free(path);
    scratch_end(&scratch);
}

static void the_writer_refuses_twins_and_quantised_tensors(void **state)
{
    struct scratch scratch = scratch_begin();
    float number = 1;
    struct gd_safetensors_entry entries[] = {{"a", {GD_F32, 1, {1}, &number}}, {"a", {GD_F32, 1, {1}, &number}}};
    struct gd_error err = {0};
    char *path = scratch_path(&scratch, "w.safetensors");
    assert_false(gd_safetensors_write(path, entries, 2, NULL, &err));
    check_error("twins", &err, GD_INVALID, "tensor a|twice");
    gd_error_clear(&err);
    entries[0].tensor.dtype = GD_Q4_0;
    assert_false(gd_safetensors_write(path, entries, 1, NULL, &err));
    check_error("quantised", &err, GD_UNSUPPORTED, "tensor a|Q4_0");
    gd_free(path);
    scratch_end(&scratch);
}

static void a_file_of_the_reference_writer_is_read(void **state)
{
    struct gd_error err = {0};
    struct gd_safetensors *file = NULL;
    struct gd_tensor tensor;
    char *path = fixture_path("tiny-llama/model.safetensors");
    if (!gd_safetensors_open(&file, path, &err))
        fail_msg("%s", err.message);
    assert_int_equal(gd_safetensors_count(file), 29);
    assert_true(gd_safetensors_find(file, "model.layers.2.mlp.down_proj.weight", &tensor));
    assert_int_equal(tensor.dtype, GD_F32);
    assert_int_equal(tensor.shape[0], 32);
    assert_int_equal(tensor.shape[1], 64);
    assert_string_equal(gd_safetensors_metadata(file, "format"), "pt");
    gd_safetensors_close(file);
    gd_free(path);
}

static void every_truncation_and_flipped_header_bit_ends_cleanly(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"k\":\"v\"},\"a\":" T("F32", "[2,1]", "0", "8") ",\"b\":" T("BF16", "[3]", "8", "14") "}";
    struct gd_buf buf;
    gd_buf_init(&buf, 0);
    put_u64(&buf, sizeof header - 1);
    gd_buf_append_text(&buf, header);
    gd_buf_append(&buf, "12345678abcdef", 14);
    struct gd_error err = {0};
    assert_true(open_bytes(buf.data, buf.length, &err));
    for (size_t length = 0; length < buf.length; length++) {
        gd_error_clear(&err);
        assert_false(open_bytes(buf.data, length, &err));
        assert_int_equal(err.code, GD_BAD_MODEL);
    }
    for (size_t bit = 0; bit < 8 * (8 + sizeof header - 1); bit++) {
        gd_error_clear(&err);
        buf.data[bit / 8] ^= (char)(1 << bit % 8);
        if (!open_bytes(buf.data, buf.length, &err))
            assert_true(err.code == GD_BAD_MODEL || err.code == GD_UNSUPPORTED);
        buf.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    gd_buf_release(&buf);
}

static void a_missing_file_is_not_found(void **state)
{
    struct gd_error err = {0};
    struct gd_safetensors *file = NULL;
    assert_false(gd_safetensors_open(&file, "/nonexistent/x.safetensors", &err));
    check_error("missing", &err, GD_NOT_FOUND, "/nonexistent/x.safetensors");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_broken_header_is_refused_by_name),
        cmocka_unit_test(lengths_beyond_the_file_are_refused),
        cmocka_unit_test(a_name_over_the_limit_is_refused),
        cmocka_unit_test(odd_but_legal_headers_are_read),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(the_writer_refuses_twins_and_quantised_tensors),
        cmocka_unit_test(a_file_of_the_reference_writer_is_read),
        cmocka_unit_test(every_truncation_and_flipped_header_bit_ends_cleanly),
        cmocka_unit_test(a_missing_file_is_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
