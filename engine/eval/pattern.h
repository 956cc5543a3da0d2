/*
 * pattern.h - regular expressions as Python's re reads them, as far as PCRE2 does.
 *
 * Why      Filters and metrics of tasks are written for Python: what findall finds and sub("") removes.
 * Memory   A pattern owns its code.
 * Threads  A pattern is read-only.
 * Errors   GD_INVALID: it does not compile, or is too much work on a text.
 * Limits   GD_PATTERN_STEPS_MAX of PCRE2's match limit for each match.
 * Life     compile -> find, remove ... -> destroy.
 */
#ifndef GD_EVAL_PATTERN_H
#define GD_EVAL_PATTERN_H

#include "engine/base/buf.h"
#include "engine/base/error.h"

#define GD_PATTERN_STEPS_MAX 1000000

struct gd_pattern;

/* Messages start with "PARAM: ". NULL on error. */
struct gd_pattern *gd_pattern_compile(const char *source, const char *param, struct gd_error *err) GD_MUST_CHECK;
void gd_pattern_destroy(struct gd_pattern *pattern);

/* re.findall(text)[select], select from the end when negative: the match, its group, or the first of its groups that is not
 * empty. *found false: there are not so many matches, or all groups are empty. Appends to `out`. */
GD_MUST_CHECK bool gd_pattern_find(const struct gd_pattern *pattern, const char *text, int select, struct gd_buf *out,
                                   bool *found, struct gd_error *err);
/* re.sub("", text), appended to `out`. */
GD_MUST_CHECK bool gd_pattern_remove(const struct gd_pattern *pattern, const char *text, struct gd_buf *out,
                                     struct gd_error *err);

#endif
