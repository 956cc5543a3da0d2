/*
 * tokenizer_step.h - normalizers and pre-tokenizers as one list of steps over a flow.
 *
 * Why      A model's tokenizer is such a list; Sequence components are flattened into it.
 * Memory   A step owns its regex and text.
 * Threads  A step is read-only; flow and regex run belong to one thread.
 * Errors   From the regex (GD_BAD_MODEL) and from growth (GD_TOO_LARGE).
 * Limits   GD_STEPS_MAX per list.
 * Life     filled by a loader -> run ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_STEP_H
#define GD_TEXT_TOKENIZER_STEP_H

#include "engine/base/buf.h"
#include "engine/text/tokenizer_added.h"
#include "engine/text/tokenizer_flow.h"
#include "engine/text/tokenizer_regex.h"

#define GD_STEPS_MAX 64

enum gd_step_kind {
    GD_STEP_NFC, GD_STEP_NFD, GD_STEP_NFKC, GD_STEP_NFKD,
    GD_STEP_LOWERCASE, GD_STEP_STRIP, GD_STEP_STRIP_ACCENTS, GD_STEP_PREPEND, GD_STEP_REPLACE, GD_STEP_BYTES,
    GD_STEP_NMT, GD_STEP_CHARSMAP, GD_STEP_CLEAN, GD_STEP_CHINESE, GD_STEP_STRIP_NONSPACING,
    GD_STEP_SENTENCEPIECE,
    GD_STEP_SPLIT, GD_STEP_DIGITS, GD_STEP_PUNCTUATION, GD_STEP_WHITESPACE_SPLIT, GD_STEP_FIXED_LENGTH, GD_STEP_PREFIX_SPACE,
    GD_STEP_METASPACE,
};

enum gd_split_behavior {
    GD_SPLIT_ISOLATED, GD_SPLIT_REMOVED, GD_SPLIT_MERGED_WITH_PREVIOUS, GD_SPLIT_MERGED_WITH_NEXT, GD_SPLIT_CONTIGUOUS,
};

enum gd_prepend_scheme { GD_PREPEND_ALWAYS, GD_PREPEND_FIRST, GD_PREPEND_NEVER };

struct gd_step {
    enum gd_step_kind kind;
    struct gd_regex *regex;          /* SPLIT, REPLACE */
    char *text;                      /* PREPEND: what; REPLACE: with what; METASPACE: the character for a space;
                                      * CHARSMAP, SENTENCEPIECE: the precompiled map */
    size_t text_length;
    enum gd_split_behavior behavior; /* SPLIT, DIGITS, PUNCTUATION */
    bool invert;                     /* SPLIT: the pattern matches what is kept apart from the delimiters */
    bool left, right;                /* STRIP; SENTENCEPIECE: where a space is put */
    bool squeeze, escape;            /* SENTENCEPIECE: runs of spaces become one; spaces become U+2581 */
    struct gd_added_set *kept;       /* SENTENCEPIECE: what is not normalized */
    int64_t characters;              /* FIXED_LENGTH: of each piece */
    bool split;                      /* METASPACE */
    enum gd_prepend_scheme prepend;  /* METASPACE, SENTENCEPIECE */
};

struct gd_steps {
    struct gd_step step[GD_STEPS_MAX];
    int count;
};

GD_MUST_CHECK bool gd_steps_run(const struct gd_steps *steps, struct gd_flow *flow, struct gd_regex_run *regex,
                                struct gd_error *err);
void gd_steps_release(struct gd_steps *steps);
/* All that decides what the steps do, for the digest. */
void gd_steps_describe(const struct gd_steps *steps, struct gd_buf *out);

/* The two halves of the work. */
GD_MUST_CHECK bool gd_step_normalize(const struct gd_step *step, struct gd_flow *flow, struct gd_regex_run *regex,
                                     struct gd_error *err);
GD_MUST_CHECK bool gd_step_split(const struct gd_step *step, struct gd_flow *flow, struct gd_regex_run *regex,
                                 struct gd_error *err);
void gd_step_unicode_form(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece);
GD_MUST_CHECK bool gd_step_charsmap(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece,
                                    struct gd_error *err);
GD_MUST_CHECK bool gd_step_sentencepiece(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece,
                                         struct gd_error *err);
/* Decodes a precompiled_charsmap into the step's text, checked. `path` names it in errors. */
GD_MUST_CHECK bool gd_charsmap_read(struct gd_step *step, const char *base64, const char *path, struct gd_error *err);
/* The same for bytes that are in the step's text already. */
GD_MUST_CHECK bool gd_charsmap_check(const struct gd_step *step, const char *path, struct gd_error *err);
/* The replacement (ends with NUL or the map) of the longest entry that text starts with, or NULL. */
const char *gd_charsmap_longest(const struct gd_step *step, const char *text, int32_t length, int32_t *taken, bool *damaged);

#endif
