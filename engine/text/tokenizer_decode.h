/*
 * tokenizer_decode.h - from spellings back to text, by the rules that the file lists.
 *
 * Why      Streaming needs one token's bytes, answers need the reference's exact whole-sequence decoding.
 * Memory   A decoder owns its steps; results go to the caller's buffer.
 * Threads  Read-only.
 * Errors   none; a result beyond the buffer's limit sets its overflow.
 * Limits   GD_DECODERS_MAX steps.
 * Life     filled by a loader -> piece / all ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_DECODE_H
#define GD_TEXT_TOKENIZER_DECODE_H

#include "engine/base/buf.h"
#include "engine/text/tokenizer_regex.h"

#define GD_DECODERS_MAX 32

enum gd_decoder_kind {
    GD_DECODE_BYTE_LEVEL, GD_DECODE_BYTE_FALLBACK, GD_DECODE_FUSE, GD_DECODE_REPLACE, GD_DECODE_STRIP,
    GD_DECODE_METASPACE, GD_DECODE_WORD_END, GD_DECODE_WORDPIECE, GD_DECODE_CTC,
    GD_DECODE_SENTENCEPIECE,
};

struct gd_decoder {
    enum gd_decoder_kind kind;
    char *text;               /* STRIP, METASPACE, SENTENCEPIECE: the character; REPLACE: the new text; WORD_END: the suffix;
                               * WORDPIECE: the prefix; CTC: the padding */
    size_t text_length;
    char *word_end;           /* CTC: what stands for a space */
    size_t word_end_length;
    struct gd_regex *regex;   /* REPLACE */
    int32_t start, stop;      /* STRIP: characters taken off at each end, at most */
    bool keep_first;          /* METASPACE, SENTENCEPIECE: the first space of all is text too */
    bool cleanup;             /* WORDPIECE, CTC: no spaces before English punctuation and contractions; SENTENCEPIECE:
                               * no token begins the text with a space */
};

struct gd_decoders {
    struct gd_decoder step[GD_DECODERS_MAX];
    int count; /* 0: spellings joined by a space */
};

/* Spellings one behind the other: token i is text[end[i - 1], end[i]). */
struct gd_spellings {
    struct gd_buf text;
    size_t *end;
    int count, capacity;
};
void gd_spellings_push(struct gd_spellings *spellings, const char *text, size_t length);
void gd_spellings_release(struct gd_spellings *spellings);

/* The steps in order; uses up `spellings`. */
void gd_decoders_all(const struct gd_decoders *decoders, struct gd_spellings *spellings, struct gd_buf *out);
/* One spelling as it stands in running text: rules for ends of the whole do not apply. */
void gd_decoders_piece(const struct gd_decoders *decoders, const char *text, size_t length, struct gd_buf *out);
void gd_decoders_release(struct gd_decoders *decoders);
void gd_decoders_describe(const struct gd_decoders *decoders, struct gd_buf *out);

#endif
