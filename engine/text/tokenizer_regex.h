/*
 * tokenizer_regex.h - the regular expressions of tokenizer files, in bounded time.
 *
 * Why      The files are written for Oniguruma (Ruby syntax); we run them on PCRE2 with the same meaning or refuse them.
 * Memory   A regex owns its compiled code; a run owns its match data.
 * Threads  A regex is read-only; one run per thread.
 * Errors   GD_BAD_MODEL (pattern, offset, reason; too much work), GD_UNSUPPORTED (a construct that PCRE2 lacks).
 * Limits   GD_REGEX_PATTERN_BYTES; per match a step limit, per run a limit on processor time that grows with the text.
 * Life     compile -> run_init -> next ... -> run_release -> destroy.
 */
#ifndef GD_TEXT_TOKENIZER_REGEX_H
#define GD_TEXT_TOKENIZER_REGEX_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define GD_REGEX_PATTERN_BYTES 65536

struct gd_regex;

enum gd_regex_syntax {
    GD_REGEX_LITERAL, /* the characters themselves */
    GD_REGEX_RUBY,    /* as in tokenizer.json */
    GD_REGEX_PCRE,    /* our own */
};

/* `where` names the component in messages. */
GD_MUST_CHECK bool gd_regex_compile(struct gd_regex **out, const char *pattern, size_t length,
                                    enum gd_regex_syntax syntax, const char *where, struct gd_error *err);
void gd_regex_destroy(struct gd_regex *regex);
/* As given to compile. */
const char *gd_regex_source(const struct gd_regex *regex);

struct gd_regex_run {
    void *match_data, *match_context;
    double deadline; /* seconds of this thread's processor time */
    size_t work;     /* left */
    size_t last;     /* where the last item was tried */
    unsigned matches;
};
void gd_regex_run_init(struct gd_regex_run *run, size_t text_length);
void gd_regex_run_release(struct gd_regex_run *run);

/* The next match in text[0..length) at or after `from`. No match: *begin = *end = length + 1. An empty match directly
 * behind the match that ended at `from` does not count, unless `from` is 0 and `first`. */
GD_MUST_CHECK bool gd_regex_next(const struct gd_regex *regex, struct gd_regex_run *run, const char *text, int32_t length,
                                 int32_t from, bool first, int32_t *begin, int32_t *end, struct gd_error *err);

#endif
