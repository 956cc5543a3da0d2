/*
 * text_hold.h - bytes of tokens to text that may be shown: whole characters, and nothing of a stop string.
 *
 * Why      A token may end inside a character or inside what turns out to be a stop string; what was shown cannot be
 *          taken back.
 * Memory   Owns its buffer and copies of the stop strings.
 * Threads  One thread at a time.
 * Errors   none: bytes that are no UTF-8 become U+FFFD, one for each maximal part of a character (Unicode 15, 3.9).
 * Limits   holds back at most the longest stop string and 3 bytes.
 * Life     gd_text_hold_init -> push ... -> flush -> gd_text_hold_release.
 */
#ifndef GD_INFER_TEXT_HOLD_H
#define GD_INFER_TEXT_HOLD_H

#include "engine/base/buf.h"

struct gd_text_hold {
    char **stops;
    size_t *stop_lengths;
    int stop_count;
    unsigned char part[4];    /* begin of a character */
    int part_length;
    struct gd_buf held;       /* whole characters that may begin a stop string */
    bool stopped;             /* a stop string was met: nothing comes after it */
};

/* Empty stop strings are ignored. */
void gd_text_hold_init(struct gd_text_hold *hold, char *const *stops, int stop_count);
void gd_text_hold_release(struct gd_text_hold *hold);

/* Appends to `out` what became ready. False once a stop string was met (out got the text before it). `watch_stops` false:
 * text of the prompt, in which stop strings mean nothing. */
bool gd_text_hold_push(struct gd_text_hold *hold, const char *bytes, size_t length, bool watch_stops, struct gd_buf *out);
/* The end: appends everything that is held back (a part of a character as U+FFFD), unless a stop string was met. */
void gd_text_hold_flush(struct gd_text_hold *hold, struct gd_buf *out);

#endif
