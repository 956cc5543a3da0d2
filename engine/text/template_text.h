/*
 * template_text.h - Python's str operations on labelled text.
 *
 * Why      Methods and filters share them; each keeps who wrote which byte.
 * Memory   Results live in the rendering's arena; slices share their bytes.
 * Threads  One rendering, one thread.
 * Errors   tpl_fail
 * Limits   TPL_TEXT_BYTES_MAX for what is built
 * Life     none
 */
#ifndef GD_TEXT_TEMPLATE_TEXT_H
#define GD_TEXT_TEMPLATE_TEXT_H

#include "engine/text/template_tree.h"
#include "engine/text/template_unicode.h"

/* characters NULL: white space. */
const struct tpl_text *tpl_strip(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *characters,
                                 bool left, bool right);
/* separator NULL: runs of white space. limit < 0: no limit. */
struct tpl_value tpl_split(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *separator,
                           int64_t limit, bool from_right);
struct tpl_list *tpl_split_lines(struct tpl_render *r, const struct tpl_text *text, bool keep_ends);
const struct tpl_text *tpl_replace(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *old,
                                   const struct tpl_text *new, int64_t limit);
const struct tpl_text *tpl_join(struct tpl_render *r, const struct tpl_list *items, const struct tpl_text *separator);
const struct tpl_text *tpl_change_case(struct tpl_render *r, const struct tpl_text *text, enum tpl_case to);
const struct tpl_text *tpl_capitalize(struct tpl_render *r, const struct tpl_text *text);
const struct tpl_text *tpl_title_words(struct tpl_render *r, const struct tpl_text *text);  /* str.title */
const struct tpl_text *tpl_title_filter(struct tpl_render *r, const struct tpl_text *text); /* jinja's |title */
const struct tpl_text *tpl_reverse(struct tpl_render *r, const struct tpl_text *text);
const struct tpl_text *tpl_pad(struct tpl_render *r, const struct tpl_text *text, int64_t width,
                               const struct tpl_text *fill, bool left, bool right);
/* "{} {0} {name!r}".format(...) without format specifications. */
struct tpl_value tpl_brace_format(struct tpl_render *r, const struct tpl_text *format, const struct tpl_call *call);

#endif
