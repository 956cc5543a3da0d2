#include "engine/infer/text_hold.h"
#include "engine/base/alloc.h"
#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

void gd_text_hold_init(struct gd_text_hold *hold, char *const *stops, int stop_count)
{
    memset(hold, 0, sizeof(*hold));
    gd_buf_init(&hold->held, 0);
    hold->stops = gd_alloc_array((size_t)stop_count + 1, sizeof(*hold->stops));
    hold->stop_lengths = gd_alloc_array((size_t)stop_count + 1, sizeof(*hold->stop_lengths));
    for (int i = 0; i < stop_count; i++) {
        if (stops[i] == NULL || stops[i][0] == '\0')
            continue;
        hold->stops[hold->stop_count] = gd_strdup(stops[i]);
        hold->stop_lengths[hold->stop_count++] = strlen(stops[i]);
    }
}

void gd_text_hold_release(struct gd_text_hold *hold)
{
    for (int i = 0; i < hold->stop_count; i++)
        gd_free(hold->stops[i]);
    gd_free(hold->stops);
    gd_free(hold->stop_lengths);
    gd_buf_release(&hold->held);
    memset(hold, 0, sizeof(*hold));
}

/* ---- bytes to characters ---- */

/* How `length` bytes stand: the length of the whole character that they are, 0 if they may become one, -1 if not. */
static int character(const unsigned char *bytes, int length)
{
    unsigned char first = bytes[0];
    if (first < 0x80)
        return 1;
    int need = first >= 0xC2 && first <= 0xDF ? 2 : (first & 0xF0) == 0xE0 ? 3 : first >= 0xF0 && first <= 0xF4 ? 4 : -1;
    if (need < 0)
        return -1;
    unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;   /* no overlong forms */
    unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;  /* no surrogates, no more than U+10FFFF */
    for (int i = 1; i < length && i < need; i++) {
        if (bytes[i] < low || bytes[i] > high)
            return -1;
        low = 0x80;
        high = 0xBF;
    }
    return length >= need ? need : 0;
}

static void push_byte(struct gd_text_hold *hold, unsigned char byte)
{
    hold->part[hold->part_length++] = byte;
    int state = character(hold->part, hold->part_length);
    if (state > 0) {
        gd_buf_append(&hold->held, hold->part, (size_t)state);
        hold->part_length = 0;
    } else if (state < 0) {
        gd_buf_append_text(&hold->held, replacement);
        bool begins_again = hold->part_length > 1; /* the byte that does not fit may begin another character */
        hold->part_length = 0;
        if (begins_again)
            push_byte(hold, byte);
    }
}

/* ---- stop strings ---- */

static bool starts_with(const char *text, size_t length, const char *prefix, size_t prefix_length)
{
    return length >= prefix_length && memcmp(text, prefix, prefix_length) == 0;
}

/* Where the earliest stop string begins in what is held, or held.length. */
static size_t find_stop(const struct gd_text_hold *hold)
{
    for (size_t at = 0; at < hold->held.length; at++)
        for (int i = 0; i < hold->stop_count; i++)
            if (starts_with(hold->held.data + at, hold->held.length - at, hold->stops[i], hold->stop_lengths[i]))
                return at;
    return hold->held.length;
}

/* Where text begins that may grow into a stop string, or held.length. */
static size_t find_begin(const struct gd_text_hold *hold)
{
    for (size_t at = 0; at < hold->held.length; at++) {
        size_t rest = hold->held.length - at;
        for (int i = 0; i < hold->stop_count; i++)
            if (rest < hold->stop_lengths[i] && memcmp(hold->held.data + at, hold->stops[i], rest) == 0)
                return at;
    }
    return hold->held.length;
}

static void release_text(struct gd_text_hold *hold, size_t length, struct gd_buf *out)
{
    if (length == 0)
        return;
    gd_buf_append(out, hold->held.data, length);
    memmove(hold->held.data, hold->held.data + length, hold->held.length - length);
    hold->held.length -= length;
    hold->held.data[hold->held.length] = '\0';
}

bool gd_text_hold_push(struct gd_text_hold *hold, const char *bytes, size_t length, bool watch_stops, struct gd_buf *out)
{
    if (hold->stopped)
        return false;
    for (size_t i = 0; i < length; i++)
        push_byte(hold, (unsigned char)bytes[i]);
    if (!watch_stops) {
        release_text(hold, hold->held.length, out);
        return true;
    }
    size_t stop = find_stop(hold);
    if (stop < hold->held.length) {
        release_text(hold, stop, out);
        gd_buf_clear(&hold->held);
        hold->stopped = true;
        return false;
    }
    release_text(hold, find_begin(hold), out);
    return true;
}

void gd_text_hold_flush(struct gd_text_hold *hold, struct gd_buf *out)
{
    if (hold->stopped)
        return;
    if (hold->part_length > 0)
        gd_buf_append_text(&hold->held, replacement);
    hold->part_length = 0;
    release_text(hold, hold->held.length, out);
}
