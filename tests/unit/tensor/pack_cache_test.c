/* Layouts kept on disk: the same bytes from there, nothing unsound, a bound, and no harm where the disk says no. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"
#include "engine/tensor/pack_cache.h"
#include "engine/tensor/weight.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OUT 96
#define IN 64
#define ROWS 5

static char folder[] = "/tmp/graftd-pack-XXXXXX";
static float numbers[OUT * IN], input[ROWS * OUT];
static const char digest[65] = "0123456789012345678901234567890123456789012345678901234567890123";

static int set_up(void **state)
{
    struct gd_error err = {0};
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < OUT * IN; i++)
        numbers[i] = (float)((i * 7919) % 1000 - 500) / 512;
    for (int i = 0; i < ROWS * OUT; i++)
        input[i] = (float)((i * 104729) % 1000 - 500) / 512;
    return gd_device_init("cpu", 2, &err) ? 0 : 1;
}

static int tear_down(void **state)
{
    struct gd_error err = {0};
    gd_pack_cache_configure(NULL, 0);
    return gd_remove_tree(folder, &err) ? 0 : 1;
}

/* Both products of a weight of this name, laid out now. */
static void products(const char *name, float forward[ROWS * OUT], float back[ROWS * IN])
{
    struct gd_error err = {0};
    struct gd_weight *weight = NULL;
    struct gd_tensor source = {.dtype = GD_F32, .rank = 2, .shape = {OUT, IN}, .data = numbers};
    assert_true(gd_weight_create(&weight, name, &source, NULL, 0, &err));
    gd_weight_identify(weight, digest);
    assert_true(gd_weight_prepare(weight, GD_WEIGHT_LINEAR, GD_F32, &err));
    assert_true(gd_weight_prepare(weight, GD_WEIGHT_LINEAR_BACK, GD_F32, &err));
    assert_true(gd_weight_multiply(weight, false, input, GD_F32, forward, GD_F32, ROWS, false, &err));
    assert_true(gd_weight_multiply(weight, true, input, GD_F32, back, GD_F32, ROWS, false, &err));
    gd_weight_destroy(weight);
}

/* Calls `each` for every file of the folder; returns their number. */
static int for_files(void (*each)(const char *path))
{
    int count = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        char *path = gd_format("%s/%s", folder, entry->d_name);
        if (each != NULL)
            each(path);
        gd_free(path);
        count++;
    }
    if (dir != NULL)
        closedir(dir);
    return count;
}

static void spoil_last_byte(const char *path)
{
    struct stat facts;
    int fd = open(path, O_RDWR);
    unsigned char byte;
    assert_true(fd >= 0 && fstat(fd, &facts) == 0);
    assert_int_equal(pread(fd, &byte, 1, facts.st_size - 1), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, facts.st_size - 1), 1);
    close(fd);
}

static void cut(const char *path)
{
    assert_int_equal(truncate(path, 100), 0);
}

static void kept_layouts_give_the_same_bits_and_unsound_ones_are_made_anew(void **state)
{
    static void (*const harm[])(const char *) = {NULL, spoil_last_byte, cut};
    float forward[ROWS * OUT], back[ROWS * IN], again[ROWS * OUT], back_again[ROWS * IN];
    gd_pack_cache_configure(NULL, 0);
    products("w", forward, back);
    gd_pack_cache_configure(folder, 1 << 24);
    products("w", again, back_again);
    assert_int_equal(gd_pack_cache_get_stats().stored, 2);
    for (size_t i = 0; i < GD_COUNT(harm); i++) {
        assert_int_equal(for_files(harm[i]), 2);
        gd_pack_cache_configure(folder, 1 << 24);
        memset(again, 0, sizeof(again));
        products("w", again, back_again);
        assert_memory_equal(again, forward, sizeof(forward));
        assert_memory_equal(back_again, back, sizeof(back));
        struct gd_pack_cache_stats stats = gd_pack_cache_get_stats();
        assert_int_equal(stats.loaded, harm[i] == NULL ? 2 : 0);
        assert_int_equal(stats.unsound, harm[i] == NULL ? 0 : 2);
        assert_int_equal(stats.stored, harm[i] == NULL ? 0 : 2);
    }
}

static void the_folder_stays_below_its_bound(void **state)
{
    const uint64_t bound = 100000; /* three layouts of 24 KiB and their headers */
    float forward[ROWS * OUT], back[ROWS * IN];
    gd_pack_cache_configure(folder, bound);
    for (int i = 0; i < 6; i++) {
        char name[16];
        snprintf(name, sizeof(name), "w%d", i);
        products(name, forward, back);
        assert_true(gd_pack_cache_get_stats().bytes <= bound);
    }
    assert_true(for_files(NULL) <= 3);
    assert_true(gd_pack_cache_get_stats().evicted >= 9);
}

static void a_folder_that_cannot_be_written_is_harmless(void **state)
{
    float forward[ROWS * OUT], back[ROWS * IN];
    char *path = gd_format("%s/file", folder), *below = gd_format("%s/below", path);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    close(fd);
    gd_pack_cache_configure(below, 1 << 24);
    assert_false(gd_pack_cache_on());
    products("w", forward, back);
    gd_pack_cache_configure("/proc/self/task", 1 << 24); /* there, and nobody can make a file in it */
    products("w", forward, back);
    assert_int_equal(gd_pack_cache_get_stats().stored, 0);
    gd_free(path);
    gd_free(below);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kept_layouts_give_the_same_bits_and_unsound_ones_are_made_anew),
                                       cmocka_unit_test(the_folder_stays_below_its_bound),
                                       cmocka_unit_test(a_folder_that_cannot_be_written_is_harmless)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
