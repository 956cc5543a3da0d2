/* alloc, arena, buf */
#include "engine/base/arena.h"
#include "engine/base/buf.h"
#include "tests/unit/base/scratch.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void alloc_zeroes_and_accepts_size_zero(void **state)
{
    char *memory = gd_alloc(100);
    for (int i = 0; i < 100; i++)
        assert_int_equal(memory[i], 0);
    gd_free(memory);
    gd_free(gd_alloc(0));
    gd_free(gd_alloc_array(SIZE_MAX, 0));
    gd_free(gd_realloc_array(NULL, 0, SIZE_MAX));
    gd_free(NULL);
}

static void alloc_ends_the_process_when_a_product_overflows(void **state)
{
    pid_t child = fork();
    if (child == 0) {
        (void)!freopen("/dev/null", "w", stderr);
        volatile size_t count = SIZE_MAX / 4;
        (void)gd_alloc_array(count, 8);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0));
}

static void strndup_stops_at_nul_and_at_length(void **state)
{
    char *a = gd_strndup("graft", 3), *b = gd_strndup("ab", 100), *c = gd_format("%s-%d", "x", 7);
    assert_string_equal(a, "gra");
    assert_string_equal(b, "ab");
    assert_string_equal(c, "x-7");
    assert_null(gd_strdup(NULL));
    gd_free(a);
    gd_free(b);
    gd_free(c);
}

static void large_alloc_is_aligned_zeroed_and_fails_with_the_size(void **state)
{
    struct gd_error err = {0};
    void *memory;
    size_t size = ((size_t)5 << 20) + 3;
    assert_ok(gd_large_alloc(&memory, size, "a test", &err), &err);
    assert_int_equal((uintptr_t)memory % 64, 0);
    assert_int_equal(((char *)memory)[size - 1], 0);
    memset(memory, 1, size);
    gd_large_free(memory, size);
    assert_ok(gd_large_alloc(&memory, 0, "nothing", &err), &err);
    gd_large_free(memory, 0);
    gd_large_free(NULL, 10);
    assert_fails(gd_large_alloc(&memory, SIZE_MAX, "weights", &err), &err, GD_NO_MEMORY, "for weights");
    assert_null(memory);
    assert_fails(gd_large_alloc(&memory, (size_t)1 << 62, "weights", &err), &err, GD_NO_MEMORY, "4611686018427387904");
}

static void arena_pieces_are_zeroed_aligned_and_apart(void **state)
{
    struct gd_arena arena = {0};
    unsigned char *pieces[300];
    for (size_t i = 0; i < GD_COUNT(pieces); i++) {
        size_t size = i * i % 9000; /* small ones, whole blocks, size 0 */
        pieces[i] = gd_arena_alloc(&arena, size);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        for (size_t j = 0; j < size; j++)
            assert_int_equal(pieces[i][j], 0);
        memset(pieces[i], (int)i, size);
    }
    for (size_t i = 0; i < GD_COUNT(pieces); i++)
        for (size_t j = 0; j < i * i % 9000; j++)
            assert_int_equal(pieces[i][j], (unsigned char)i);
    unsigned char *large = gd_arena_alloc_array(&arena, 3 << 20, 1);
    memset(large, 1, 3 << 20);
    assert_string_equal(gd_arena_format(&arena, "%d+%s", 1, "b"), "1+b");
    assert_string_equal(gd_arena_strndup(&arena, "abc", 2), "ab");
    assert_null(gd_arena_strdup(&arena, NULL));
    gd_arena_release(&arena);
    assert_string_equal(gd_arena_strdup(&arena, "again"), "again");
    gd_arena_release(&arena);
}

static void buf_grows_and_stays_terminated(void **state)
{
    struct gd_buf buf;
    gd_buf_init(&buf, 0);
    for (int i = 0; i < 1000; i++)
        gd_buf_printf(&buf, "%d,", i % 10);
    gd_buf_append_char(&buf, '!');
    gd_buf_append(&buf, NULL, 0);
    assert_int_equal(buf.length, 2001);
    assert_int_equal(strlen(buf.data), 2001);
    gd_buf_clear(&buf);
    assert_int_equal(buf.length, 0);
    gd_buf_append_text(&buf, "new");
    char *taken = gd_buf_take(&buf);
    assert_string_equal(taken, "new");
    gd_free(taken);
    taken = gd_buf_take(&buf);
    assert_string_equal(taken, "");
    gd_free(taken);
    gd_buf_release(&buf);
}

static void buf_keeps_a_prefix_past_its_limit(void **state)
{
    struct gd_buf buf;
    gd_buf_init(&buf, 10);
    gd_buf_append_text(&buf, "0123456789");
    assert_false(buf.overflow);
    gd_buf_append_char(&buf, 'x');
    assert_true(buf.overflow);
    assert_string_equal(buf.data, "0123456789");
    gd_buf_clear(&buf);
    assert_false(buf.overflow);
    gd_buf_append_text(&buf, "12345678");
    gd_buf_printf(&buf, "%s", "too long");
    gd_buf_append_text(&buf, "9"); /* would fit, but would leave a hole */
    assert_true(buf.overflow);
    assert_string_equal(buf.data, "12345678");
    char *taken = gd_buf_take(&buf);
    assert_true(buf.overflow); /* still to be seen after the text was taken */
    gd_free(taken);
    gd_buf_release(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alloc_zeroes_and_accepts_size_zero),
        cmocka_unit_test(alloc_ends_the_process_when_a_product_overflows),
        cmocka_unit_test(strndup_stops_at_nul_and_at_length),
        cmocka_unit_test(large_alloc_is_aligned_zeroed_and_fails_with_the_size),
        cmocka_unit_test(arena_pieces_are_zeroed_aligned_and_apart),
        cmocka_unit_test(buf_grows_and_stays_terminated),
        cmocka_unit_test(buf_keeps_a_prefix_past_its_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
