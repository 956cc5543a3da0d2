#include "engine/base/json.h"
#include "tests/unit/base/crash.h"

#include <dirent.h>
#include <sys/stat.h>

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

static bool put(const struct gd_dir_tx *tx, const char *name, const char *text, struct gd_error *err)
{
    char *path = gd_format("%s/%s", gd_dir_tx_path(tx), name);
    FILE *file = fopen(path, "w");
    bool ok = file != NULL && fputs(text, file) >= 0 && fclose(file) == 0;
    gd_free(path);
    return ok || gd_fail(err, GD_IO, "cannot write %s", name);
}

/* A folder with two files and one in a folder below. */
static bool write_folder(const char *path, struct gd_error *err)
{
    struct gd_dir_tx *tx;
    if (!gd_dir_tx_begin(&tx, path, err))
        return false;
    char *below = gd_format("%s/below", gd_dir_tx_path(tx));
    bool ok = put(tx, "adapter.bin", "0123456789", err) && put(tx, "config.json", "{}", err) && gd_mkdirs(below, err) &&
              put(tx, "below/more", "", err);
    gd_free(below);
    if (ok)
        return gd_dir_tx_commit(tx, err);
    gd_dir_tx_abort(tx);
    return false;
}

static int count_entries(const char *path)
{
    int count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count - 2;
}

static void a_committed_folder_verifies_and_lists_its_files(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/jobs/7/step-1", folder), *manifest_path = gd_format("%s/manifest.json", path);
    assert_ok(write_folder(path, &err), &err);
    assert_ok(gd_dir_verify(path, &err), &err);
    cJSON *manifest = gd_json_parse_file(manifest_path, 10000, &err), *files = gd_json_find(manifest, "files");
    assert_int_equal(cJSON_GetArraySize(files), 3);
    char hash[33];
    gd_hash_xxh3("0123456789", 10, hash);
    assert_string_equal(gd_json_find(gd_json_find(files, "adapter.bin"), "xxh3")->valuestring, hash);
    assert_int_equal(gd_json_find(gd_json_find(files, "below/more"), "bytes")->valueint, 0);
    cJSON_Delete(manifest);
    gd_free(manifest_path);
    gd_free(path);
}

static void an_aborted_folder_leaves_nothing(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/final", folder);
    struct gd_dir_tx *tx;
    assert_ok(gd_dir_tx_begin(&tx, path, &err), &err);
    assert_ok(put(tx, "a", "x", &err), &err);
    gd_dir_tx_abort(tx);
    assert_int_equal(count_entries(folder), 0);
    gd_free(path);
}

static void a_folder_is_never_replaced(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/final", folder);
    struct gd_dir_tx *tx;
    assert_ok(gd_dir_tx_begin(&tx, path, &err), &err); /* begun before the other one commits */
    assert_ok(write_folder(path, &err), &err);
    assert_fails(gd_dir_tx_commit(tx, &err), &err, GD_CONFLICT, "is there already");
    assert_fails(gd_dir_tx_begin(&tx, path, &err), &err, GD_CONFLICT, "is there already");
    assert_ok(gd_dir_verify(path, &err), &err);
    assert_int_equal(count_entries(folder), 1);
    gd_free(path);
}

static void files_that_cannot_be_sealed_are_refused(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/final", folder);
    struct gd_dir_tx *tx;
    assert_ok(gd_dir_tx_begin(&tx, path, &err), &err);
    char *link_path = gd_format("%s/link", gd_dir_tx_path(tx));
    assert_int_equal(symlink("/etc/passwd", link_path), 0);
    assert_fails(gd_dir_tx_commit(tx, &err), &err, GD_IO, "neither a regular file nor a folder");
    assert_ok(gd_dir_tx_begin(&tx, path, &err), &err);
    assert_ok(put(tx, "bad\xFF", "x", &err), &err);
    assert_fails(gd_dir_tx_commit(tx, &err), &err, GD_IO, "not UTF-8");
    assert_int_equal(count_entries(folder), 0);
    gd_free(link_path);
    gd_free(path);
}

static void overwrite(const char *path, const char *name, const char *text)
{
    char *file = gd_format("%s/%s", path, name);
    FILE *stream = fopen(file, "w");
    assert_non_null(stream);
    assert_true(fputs(text, stream) >= 0);
    assert_int_equal(fclose(stream), 0);
    gd_free(file);
}

static void damage_is_named(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/final", folder), *file = gd_format("%s/adapter.bin", path);
    char *manifest = gd_format("%s/manifest.json", path), *text;
    size_t length;
    assert_fails(gd_dir_verify(path, &err), &err, GD_NOT_FOUND, path);
    assert_ok(write_folder(path, &err), &err);
    assert_ok(gd_file_read(manifest, 10000, &text, &length, &err), &err);
    overwrite(path, "adapter.bin", "0123456788");
    assert_fails(gd_dir_verify(path, &err), &err, GD_IO, "adapter.bin has xxh3");
    overwrite(path, "adapter.bin", "012345678");
    assert_fails(gd_dir_verify(path, &err), &err, GD_IO, "adapter.bin has 9 bytes, its manifest says 10");
    assert_int_equal(unlink(file), 0);
    assert_fails(gd_dir_verify(path, &err), &err, GD_IO, "adapter.bin is missing");
    overwrite(path, "adapter.bin", "0123456789");
    assert_ok(gd_dir_verify(path, &err), &err);
    overwrite(path, "extra", "x");
    assert_fails(gd_dir_verify(path, &err), &err, GD_IO, "extra is extra");
    char *extra = gd_format("%s/extra", path);
    assert_int_equal(unlink(extra), 0);
    for (size_t i = 0; i < length; i++) { /* each byte of the manifest matters or is space */
        char *changed = gd_strndup(text, length);
        changed[i] ^= 1;
        overwrite(path, "manifest.json", changed);
        bool still = gd_dir_verify(path, &err);
        if (still && strchr(" \n\t\r!", text[i]) == NULL)
            fail_msg("a change of byte %zu ('%c') went unnoticed", i, text[i]);
        assert_true(still || err.code == GD_IO);
        gd_error_clear(&err);
        gd_free(changed);
    }
    overwrite(path, "manifest.json", "");
    assert_fails(gd_dir_verify(path, &err), &err, GD_IO, "no value");
    assert_int_equal(unlink(manifest), 0);
    assert_fails(gd_dir_verify(path, &err), &err, GD_IO, "manifest.json");
    gd_free(extra);
    gd_free(text);
    gd_free(manifest);
    gd_free(file);
    gd_free(path);
}

static void a_sweep_takes_only_what_a_crash_left(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/final", folder), *missing = gd_format("%s/missing", folder);
    struct gd_dir_tx *tx;
    assert_ok(gd_dir_tx_begin(&tx, path, &err), &err);
    assert_ok(put(tx, "a", "x", &err), &err);
    overwrite(folder, "final.json.tmp-0123456789ab", "x");
    overwrite(folder, "notes.tmp-short", "x");
    overwrite(folder, ".tmp-0123456789ab", "x"); /* no name before the mark: not ours */
    assert_ok(gd_dir_sweep(folder, &err), &err);
    assert_int_equal(count_entries(folder), 2);
    assert_ok(gd_dir_sweep(missing, &err), &err);
    gd_dir_tx_abort(tx);
    gd_free(path);
    gd_free(missing);
}

/* Nothing but whole folders and what a sweep takes. Returns the number of whole ones. */
static int check_after_crash(const char *parent)
{
    struct gd_error err = {0};
    assert_ok(gd_dir_sweep(parent, &err), &err);
    int whole = 0;
    DIR *dir = opendir(parent);
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        char *path = gd_format("%s/%s", parent, entry->d_name);
        assert_null(strstr(path, ".tmp-"));
        assert_ok(gd_dir_verify(path, &err), &err);
        gd_free(path);
        whole++;
    }
    closedir(dir);
    return whole;
}

static void kill_at_random_times_leaves_old_or_new(void **state)
{
    uint32_t random = 7;
    int expected = 0;
    for (int round = 0; round < 25; round++) {
        int acks[2];
        assert_int_equal(pipe(acks), 0);
        pid_t child = fork();
        if (child == 0) {
            for (int i = 0; i < 1000; i++) {
                struct gd_error err = {0};
                char *path = gd_format("%s/%d-%d", folder, round, i);
                if (!write_folder(path, &err) || write(acks[1], "a", 1) != 1)
                    _exit(1);
                gd_free(path);
            }
            _exit(0);
        }
        close(acks[1]);
        random = random * 1664525u + 1013904223u;
        usleep(500 + (random >> 8) % 15000);
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        char byte;
        int acked = 0;
        while (read(acks[0], &byte, 1) == 1)
            acked++;
        close(acks[0]);
        int whole = check_after_crash(folder);
        assert_in_range(whole, expected + acked, expected + acked + 1); /* one may be done but not acknowledged */
        expected = whole;
    }
}

static bool write_folder_alone(void *path)
{
    struct gd_error err = {0};
    return write_folder(path, &err);
}

static void kill_before_each_system_call_leaves_nothing_or_all(void **state)
{
    char *path = gd_format("%s/final", folder);
    enum crash crash = CRASH_KILLED;
    int absent = 0, present = 0;
    for (int n = 1; crash == CRASH_KILLED; n++) {
        crash = crash_before_call(n, write_folder_alone, path);
        int whole = check_after_crash(folder);
        absent += whole == 0;
        present += whole == 1;
        struct gd_error err = {0};
        assert_ok(gd_remove_tree(path, &err), &err);
        assert_true(n < 2000);
    }
    gd_free(path);
    if (crash == CRASH_UNTRACED)
        skip();
    assert_true(absent > 20);
    assert_true(present > 0); /* the last one is not killed */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_committed_folder_verifies_and_lists_its_files, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(an_aborted_folder_leaves_nothing, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_folder_is_never_replaced, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(files_that_cannot_be_sealed_are_refused, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(damage_is_named, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_sweep_takes_only_what_a_crash_left, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(kill_at_random_times_leaves_old_or_new, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(kill_before_each_system_call_leaves_nothing_or_all, make_folder, drop_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
