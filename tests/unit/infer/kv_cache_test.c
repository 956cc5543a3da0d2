#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/infer/kv_cache.h"
#include "engine/tensor/device.h"

static const struct gd_kv_shape shape = {GD_F32, 2, 1, 4}; /* 2 layers x 2 x 32 x 4 x 4 = 2 KiB a page */

static struct gd_kv_cache *make(int pages)
{
    struct gd_kv_cache *cache = NULL;
    struct gd_error err = {0};
    assert_true(gd_kv_cache_create(&cache, &shape, (size_t)pages * 2048 + 100, &err));
    assert_int_equal(gd_kv_cache_total(cache), pages);
    return cache;
}

static struct gd_kv_key key_of(int first)
{
    struct gd_kv_key root = {"0"}, key;
    int32_t ids[GD_KV_PAGE_TOKENS];
    memset(root.hex, '0', 64);
    for (int i = 0; i < GD_KV_PAGE_TOKENS; i++)
        ids[i] = first + i;
    gd_kv_key_next(&key, &root, ids);
    return key;
}

static void a_cache_that_holds_no_page_is_refused(void **state)
{
    struct gd_kv_cache *cache = NULL;
    struct gd_error err = {0};
    assert_false(gd_kv_cache_create(&cache, &shape, 2047, &err));
    assert_int_equal(err.code, GD_INVALID);
}

static void pages_are_taken_and_dropped(void **state)
{
    struct gd_kv_cache *cache = make(3);
    int32_t a = gd_kv_cache_take(cache), b = gd_kv_cache_take(cache), c = gd_kv_cache_take(cache);
    assert_true(a != b && b != c && a != c);
    assert_int_equal(gd_kv_cache_held(cache), 3);
    assert_int_equal(gd_kv_cache_available(cache), 0);
    gd_kv_cache_drop(cache, b);
    assert_int_equal(gd_kv_cache_take(cache), b);
    gd_kv_cache_drop(cache, a);
    gd_kv_cache_drop(cache, b);
    gd_kv_cache_drop(cache, c);
    assert_int_equal(gd_kv_cache_held(cache), 0);
    gd_kv_cache_destroy(cache);
}

static void published_content_is_shared_and_survives_its_holder(void **state)
{
    struct gd_kv_cache *cache = make(3);
    struct gd_kv_key key = key_of(7), other = key_of(8);
    int32_t page = gd_kv_cache_take(cache);
    assert_int_equal(gd_kv_cache_share(cache, &key), -1);
    gd_kv_cache_publish(cache, page, &key);
    assert_int_equal(gd_kv_cache_share(cache, &key), page);
    assert_int_equal(gd_kv_cache_share(cache, &other), -1);
    gd_kv_cache_drop(cache, page);
    assert_int_equal(gd_kv_cache_held(cache), 1);
    gd_kv_cache_drop(cache, page);
    assert_int_equal(gd_kv_cache_held(cache), 0);
    assert_int_equal(gd_kv_cache_available(cache), 3);
    assert_int_equal(gd_kv_cache_share(cache, &key), page);
    assert_int_equal(gd_kv_cache_held(cache), 1);
    gd_kv_cache_drop(cache, page);
    gd_kv_cache_destroy(cache);
}

static void free_pages_go_first_then_the_least_recently_used(void **state)
{
    struct gd_kv_cache *cache = make(3);
    struct gd_kv_key keys[3] = {key_of(1), key_of(2), key_of(3)};
    int32_t pages[3];
    for (int i = 0; i < 3; i++) {
        pages[i] = gd_kv_cache_take(cache);
        gd_kv_cache_publish(cache, pages[i], &keys[i]);
    }
    for (int i = 0; i < 3; i++)
        gd_kv_cache_drop(cache, pages[i]);
    assert_int_equal(gd_kv_cache_share(cache, &keys[0]), pages[0]); /* 0 was used last */
    gd_kv_cache_drop(cache, pages[0]);
    assert_int_equal(gd_kv_cache_take(cache), pages[1]);
    assert_int_equal(gd_kv_cache_share(cache, &keys[1]), -1);
    assert_int_equal(gd_kv_cache_share(cache, &keys[2]), pages[2]);
    assert_int_equal(gd_kv_cache_take(cache), pages[0]);
    assert_int_equal(gd_kv_cache_available(cache), 0);
    gd_kv_cache_destroy(cache);
}

static void the_same_content_is_published_once(void **state)
{
    struct gd_kv_cache *cache = make(2);
    struct gd_kv_key key = key_of(5);
    int32_t a = gd_kv_cache_take(cache), b = gd_kv_cache_take(cache);
    gd_kv_cache_publish(cache, a, &key);
    gd_kv_cache_publish(cache, b, &key);
    gd_kv_cache_drop(cache, b);
    assert_int_equal(gd_kv_cache_take(cache), b); /* b went back to the free ones */
    assert_int_equal(gd_kv_cache_share(cache, &key), a);
    gd_kv_cache_destroy(cache);
}

static void keys_depend_on_parent_and_every_token(void **state)
{
    struct gd_kv_key a = key_of(1), b = key_of(2), c, d;
    int32_t ids[GD_KV_PAGE_TOKENS] = {0};
    assert_string_not_equal(a.hex, b.hex);
    gd_kv_key_next(&c, &a, ids);
    gd_kv_key_next(&d, &b, ids);
    assert_string_not_equal(c.hex, d.hex);
    ids[GD_KV_PAGE_TOKENS - 1] = 1;
    gd_kv_key_next(&d, &a, ids);
    assert_string_not_equal(c.hex, d.hex);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cache_that_holds_no_page_is_refused),
        cmocka_unit_test(pages_are_taken_and_dropped),
        cmocka_unit_test(published_content_is_shared_and_survives_its_holder),
        cmocka_unit_test(free_pages_go_first_then_the_least_recently_used),
        cmocka_unit_test(the_same_content_is_published_once),
        cmocka_unit_test(keys_depend_on_parent_and_every_token),
    };
    struct gd_error err = {0};
    return gd_device_init("cpu", 1, &err) ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
}
