/*
 * template.h - chat templates: our interpreter of the Jinja subset that real templates use.
 *
 * Why      The same rendering in training and serving, character for character that of transformers.
 * Memory   A compiled template owns its tree; a rendering is the caller's buffer.
 * Threads  A compiled template is read-only: any thread may render.
 * Errors   GD_BAD_MODEL with line and column at compile time; GD_INVALID at render time (raise_exception's
 *          message, an undefined name, a limit) with the line.
 * Limits   source 256 KiB, nesting 100, macro depth 32, 5 million steps (long strings count by their size), range 100000,
 *          output and any string 8 MiB, 256 MiB of values, integers of 64 bits.
 * Life     compile -> render ... -> destroy.
 */
#ifndef GD_TEXT_TEMPLATE_H
#define GD_TEXT_TEMPLATE_H

#include "engine/base/buf.h"
#include "engine/base/json.h"
#include <stdint.h>

struct gd_template;

GD_MUST_CHECK bool gd_template_compile(struct gd_template **out, const char *source, size_t length,
                                       struct gd_error *err);
/* The same language as plain jinja reads it, which is how lm-evaluation-harness fills its tasks: lines of blocks stay, the
 * last newline too, and a value that is not there is an error where it would be printed. Errors say "template". */
GD_MUST_CHECK bool gd_template_compile_plain(struct gd_template **out, const char *source, size_t length,
                                             struct gd_error *err);
void gd_template_destroy(struct gd_template *tmpl);

/* Where the rendered text came from: byte ranges of the output. */
struct gd_render_spans {
    int32_t *template_spans;   /* ascending [begin, end) pairs written by template literals (and special-token variables) */
    int template_span_count;
    int32_t *generation_spans; /* a pair for each {% generation %} block that ran, in order; empty if it wrote nothing */
    int generation_span_count;
    bool has_generation;       /* the template has generation blocks */
};
void gd_render_spans_release(struct gd_render_spans *spans);

/* A variable of this name (unix seconds) is the time that strftime_now sees instead of the real one. */
#define GD_TEMPLATE_NOW "strftime_now_unix"

/* Whether the template's text names a variable. */
bool gd_template_reads(const struct gd_template *tmpl, const char *name);

/* A variable of this name is an object of more variables, all of them content; they hide nothing. */
#define GD_TEMPLATE_MORE "chat_template_kwargs"

/* variables: object with messages, tools, add_generation_prompt, bos_token, ... (borrowed). `spans` may be NULL.
 * Strings that come from `variables` under "messages", "tools" and "documents" are content (except a message's role when
 * it is one of OpenAI's names, because templates build special tokens from it); every other text in the output (literals,
 * bos_token, ...) is template text, through concatenation, filters and macros. */
GD_MUST_CHECK bool gd_template_render(const struct gd_template *tmpl, const cJSON *variables, struct gd_buf *out,
                                      struct gd_render_spans *spans, struct gd_error *err);

#endif
