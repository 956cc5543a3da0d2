#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/json.h"
#include "engine/infer/text_hold.h"
#include <string.h>

struct feed {
    struct gd_text_hold hold;
    struct gd_buf out;
};

static void begin(struct feed *feed, char *const *stops, int stop_count)
{
    gd_text_hold_init(&feed->hold, stops, stop_count);
    gd_buf_init(&feed->out, 0);
}

/* Pushes and checks what became ready. */
static bool push(struct feed *feed, const char *bytes, const char *ready)
{
    gd_buf_clear(&feed->out);
    bool goes_on = gd_text_hold_push(&feed->hold, bytes, strlen(bytes), true, &feed->out);
    assert_string_equal(feed->out.length > 0 ? feed->out.data : "", ready);
    assert_true(gd_utf8_valid(feed->out.length > 0 ? feed->out.data : "", feed->out.length));
    return goes_on;
}

static void end(struct feed *feed, const char *tail)
{
    gd_buf_clear(&feed->out);
    gd_text_hold_flush(&feed->hold, &feed->out);
    assert_string_equal(feed->out.length > 0 ? feed->out.data : "", tail);
    gd_buf_release(&feed->out);
    gd_text_hold_release(&feed->hold);
}

static void text_without_stops_passes_at_once(void **state)
{
    struct feed feed;
    begin(&feed, NULL, 0);
    assert_true(push(&feed, "abc", "abc"));
    assert_true(push(&feed, "", ""));
    assert_true(push(&feed, " d", " d"));
    end(&feed, "");
}

static void characters_are_never_cut(void **state)
{
    struct feed feed;
    begin(&feed, NULL, 0);
    assert_true(push(&feed, "a\xF0\x9F", "a"));
    assert_true(push(&feed, "\x98", ""));
    assert_true(push(&feed, "\x80" "b\xC3", "\xF0\x9F\x98\x80" "b"));
    assert_true(push(&feed, "\xA9", "\xC3\xA9"));
    end(&feed, "");
}

static void an_unfinished_character_at_the_end_becomes_a_replacement(void **state)
{
    struct feed feed;
    begin(&feed, NULL, 0);
    assert_true(push(&feed, "x\xE2\x82", "x"));
    end(&feed, "\xEF\xBF\xBD");
}

static void bytes_that_are_no_utf8_become_replacements(void **state)
{
    struct feed feed;
    begin(&feed, NULL, 0);
    assert_true(push(&feed, "\xFF" "a", "\xEF\xBF\xBD" "a"));
    assert_true(push(&feed, "\xE2\x28", "\xEF\xBF\xBD("));                              /* broken off by an ASCII character */
    assert_true(push(&feed, "\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"));                   /* overlong */
    assert_true(push(&feed, "\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"));   /* a surrogate */
    assert_true(push(&feed, "\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"));
    assert_true(push(&feed, "\xC3\xC3\xA9", "\xEF\xBF\xBD\xC3\xA9"));                   /* the second byte begins anew */
    end(&feed, "");
}

static void a_stop_string_ends_the_text_before_it(void **state)
{
    struct feed feed;
    begin(&feed, (char *[]){"\n\n"}, 1);
    assert_true(push(&feed, "one\n", "one"));
    assert_true(push(&feed, "two", "\ntwo"));
    assert_false(push(&feed, "!\n\nthree", "!"));
    assert_false(push(&feed, "four", ""));
    end(&feed, "");
}

static void a_stop_string_may_come_in_pieces(void **state)
{
    struct feed feed;
    begin(&feed, (char *[]){"STOP", "</a>"}, 2);
    assert_true(push(&feed, "xS", "x"));
    assert_true(push(&feed, "T", ""));
    assert_true(push(&feed, "OST", "STO"));  /* STOS is none, but ST may go on */
    assert_true(push(&feed, "O", ""));
    assert_false(push(&feed, "P y", ""));
    end(&feed, "");
}

static void what_was_held_back_comes_at_the_end(void **state)
{
    struct feed feed;
    begin(&feed, (char *[]){"<|end|>"}, 1);
    assert_true(push(&feed, "text <|en", "text "));
    end(&feed, "<|en");
}

static void the_earliest_stop_string_counts(void **state)
{
    struct feed feed;
    begin(&feed, (char *[]){"cd", "bcde"}, 2);
    assert_false(push(&feed, "abcdef", "a"));
    end(&feed, "");
    begin(&feed, (char *[]){"abc", "b"}, 2);
    assert_false(push(&feed, "ab", "a"));
    end(&feed, "");
}

static void a_stop_string_of_several_bytes_a_character_matches_whole_characters(void **state)
{
    struct feed feed;
    begin(&feed, (char *[]){"\xE3\x80\x82"}, 1);
    assert_true(push(&feed, "\xE3\x80", ""));
    assert_true(push(&feed, "\x81", "\xE3\x80\x81"));
    assert_true(push(&feed, "\xE3", ""));
    assert_false(push(&feed, "\x80\x82z", ""));
    end(&feed, "");
}

static void text_of_the_prompt_is_not_searched(void **state)
{
    struct feed feed;
    begin(&feed, (char *[]){"User:"}, 1);
    assert_true(gd_text_hold_push(&feed.hold, "User: hi", 8, false, &feed.out));
    assert_string_equal(feed.out.data, "User: hi");
    assert_true(push(&feed, "Us", ""));
    assert_false(push(&feed, "er:", ""));
    end(&feed, "");
}

static void empty_stop_strings_are_ignored(void **state)
{
    struct feed feed;
    begin(&feed, (char *[]){"", "q"}, 2);
    assert_true(push(&feed, "abc", "abc"));
    assert_false(push(&feed, "q", ""));
    end(&feed, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_without_stops_passes_at_once),
        cmocka_unit_test(characters_are_never_cut),
        cmocka_unit_test(an_unfinished_character_at_the_end_becomes_a_replacement),
        cmocka_unit_test(bytes_that_are_no_utf8_become_replacements),
        cmocka_unit_test(a_stop_string_ends_the_text_before_it),
        cmocka_unit_test(a_stop_string_may_come_in_pieces),
        cmocka_unit_test(what_was_held_back_comes_at_the_end),
        cmocka_unit_test(the_earliest_stop_string_counts),
        cmocka_unit_test(a_stop_string_of_several_bytes_a_character_matches_whole_characters),
        cmocka_unit_test(text_of_the_prompt_is_not_searched),
        cmocka_unit_test(empty_stop_strings_are_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
