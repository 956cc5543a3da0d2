#include "tests/unit/base/scratch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static char *folder;

static int make_folder(void **state)
{
    folder = scratch_new();
    return 0;
}

static int drop_folder(void **state)
{
    scratch_remove(folder);
    return 0;
}

static void a_durable_write_replaces_the_whole_file(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/f", folder), *data;
    size_t length;
    assert_ok(gd_file_write_durable(path, "first version", 13, &err), &err);
    assert_ok(gd_file_write_durable(path, "2", 1, &err), &err);
    assert_ok(gd_file_read(path, 10, &data, &length, &err), &err);
    assert_int_equal(length, 1);
    assert_string_equal(data, "2");
    gd_free(data);
    struct stat facts;
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    char *missing = gd_format("%s/no/f", folder);
    assert_fails(gd_file_write_durable(missing, "x", 1, &err), &err, GD_NOT_FOUND, missing);
    gd_free(missing);
    gd_free(path);
}

static void reading_says_what_is_wrong(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/f", folder), *pipe_path = gd_format("%s/pipe", folder), *data;
    size_t length;
    struct gd_map map;
    assert_fails(gd_file_read(path, 10, &data, &length, &err), &err, GD_NOT_FOUND, path);
    assert_ok(gd_file_write_durable(path, "0123456789a", 11, &err), &err);
    assert_fails(gd_file_read(path, 10, &data, &length, &err), &err, GD_TOO_LARGE, "11 bytes, the limit is 10");
    assert_fails(gd_file_read(folder, 10, &data, &length, &err), &err, GD_INVALID, "a folder");
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    assert_fails(gd_file_read(pipe_path, 10, &data, &length, &err), &err, GD_INVALID, "pipe"); /* and does not hang */
    assert_fails(gd_map_open(&map, pipe_path, &err), &err, GD_INVALID, "pipe");
    assert_fails(gd_file_read("/proc/self/mem", 10, &data, &length, &err), &err, GD_IO, "read");
    assert_ok(gd_file_read("/proc/self/status", 100000, &data, &length, &err), &err); /* stat says size 0 */
    assert_true(length > 100);
    gd_free(data);
    gd_free(path);
    gd_free(pipe_path);
}

static void maps_read_forget_and_read_again(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/f", folder);
    size_t size = 300000;
    unsigned char *bytes = gd_alloc(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(i * 7);
    assert_ok(gd_file_write_durable(path, bytes, size, &err), &err);
    struct gd_map map;
    assert_ok(gd_map_open(&map, path, &err), &err);
    assert_int_equal(map.size_bytes, size);
    assert_memory_equal(map.data, bytes, size);
    gd_map_forget(&map, 1000, size - 1000);
    gd_map_forget(&map, size, 0);
    assert_memory_equal(map.data, bytes, size);
    gd_map_release(&map);
    assert_ok(gd_file_write_durable(path, "", 0, &err), &err);
    assert_ok(gd_map_open(&map, path, &err), &err);
    assert_int_equal(map.size_bytes, 0);
    assert_non_null(map.data);
    gd_map_release(&map);
    gd_free(bytes);
    gd_free(path);
}

static void mkdirs_makes_parents_private_and_refuses_files(void **state)
{
    struct gd_error err = {0};
    char *deep = gd_format("%s/a//b/c/", folder), *file = gd_format("%s/file", folder), *below = gd_format("%s/x", file);
    assert_ok(gd_mkdirs(deep, &err), &err);
    assert_ok(gd_mkdirs(deep, &err), &err);
    struct stat facts;
    assert_int_equal(stat(deep, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0700);
    assert_ok(gd_file_write_durable(file, "x", 1, &err), &err);
    assert_fails(gd_mkdirs(file, &err), &err, GD_IO, "is not a folder");
    assert_fails(gd_mkdirs(below, &err), &err, GD_IO, "");
    assert_fails(gd_mkdirs("", &err), &err, GD_IO, "0 bytes");
    gd_free(deep);
    gd_free(file);
    gd_free(below);
}

static void remove_tree_does_not_follow_links(void **state)
{
    struct gd_error err = {0};
    char *outside = gd_format("%s/outside", folder), *kept = gd_format("%s/kept", outside);
    char *tree = gd_format("%s/tree/deep/er", folder), *top = gd_format("%s/tree", folder);
    char *link_path = gd_format("%s/link", tree);
    assert_ok(gd_mkdirs(outside, &err) && gd_mkdirs(tree, &err), &err);
    assert_ok(gd_file_write_durable(kept, "x", 1, &err), &err);
    assert_int_equal(symlink(outside, link_path), 0);
    assert_ok(gd_remove_tree(top, &err), &err);
    assert_ok(gd_remove_tree(top, &err), &err);
    assert_int_equal(access(top, F_OK), -1);
    assert_int_equal(access(kept, F_OK), 0);
    assert_int_equal(symlink(outside, top), 0);
    assert_ok(gd_remove_tree(top, &err), &err); /* a link itself */
    assert_int_equal(access(kept, F_OK), 0);
    gd_free(outside);
    gd_free(kept);
    gd_free(tree);
    gd_free(top);
    gd_free(link_path);
}

static void digests_match_known_values(void **state)
{
    char hex[65];
    gd_hash_sha256("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    gd_hash_sha256("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    char whole[33], streamed[33];
    gd_hash_xxh3("", 0, whole);
    assert_string_equal(whole, "99aa06d3014798d86001c324468d497f");
    struct gd_error err = {0};
    char *path = gd_format("%s/f", folder), *bytes = gd_alloc(2500000);
    for (size_t i = 0; i < 2500000; i++)
        bytes[i] = (char)(i % 251);
    assert_ok(gd_file_write_durable(path, bytes, 2500000, &err), &err);
    gd_hash_xxh3(bytes, 2500000, whole);
    assert_ok(gd_hash_file_xxh3(path, streamed, &err), &err);
    assert_string_equal(whole, streamed);
    gd_free(bytes);
    gd_free(path);
}

static void random_ids_differ_and_use_every_digit(void **state)
{
    char id[1001], other[1001];
    gd_random_id(id, 1000);
    gd_random_id(other, 1000);
    assert_int_equal(strlen(id), 1000);
    assert_string_not_equal(id, other);
    for (const char *digit = "0123456789abcdefghijklmnopqrstuvwxyz"; *digit != '\0'; digit++)
        assert_non_null(strchr(id, *digit)); /* missing with probability 1e-11 */
    gd_random_id(id, 0);
    assert_string_equal(id, "");
}

static void clocks_move_forward(void **state)
{
    double start = gd_time_monotonic();
    assert_true(gd_time_unix() > 1700000000);
    assert_true(gd_time_unix_fraction() - (double)gd_time_unix() > -1.0);
    assert_true(gd_time_monotonic() >= start);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_durable_write_replaces_the_whole_file, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(reading_says_what_is_wrong, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(maps_read_forget_and_read_again, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(mkdirs_makes_parents_private_and_refuses_files, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(remove_tree_does_not_follow_links, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(digests_match_known_values, make_folder, drop_folder),
        cmocka_unit_test(random_ids_differ_and_use_every_digit),
        cmocka_unit_test(clocks_move_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
