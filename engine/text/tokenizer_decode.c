#include "engine/text/tokenizer_decode.h"
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/text/tokenizer_char.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

void gd_spellings_push(struct gd_spellings *spellings, const char *text, size_t length)
{
    if (spellings->count == spellings->capacity) {
        spellings->capacity = spellings->capacity < 64 ? 64 : spellings->capacity * 2;
        spellings->end = gd_realloc_array(spellings->end, (size_t)spellings->capacity, sizeof(spellings->end[0]));
    }
    gd_buf_append(&spellings->text, text, length);
    spellings->end[spellings->count++] = spellings->text.length;
}

void gd_spellings_release(struct gd_spellings *spellings)
{
    gd_buf_release(&spellings->text);
    gd_free(spellings->end);
    memset(spellings, 0, sizeof(*spellings));
}

/* The bytes that characters of the alphabet stand for; a spelling with any other character stands for itself. */
static void byte_level(const char *text, size_t length, struct gd_buf *out)
{
    size_t mark = out->length;
    for (size_t at = 0; at < length;) {
        int32_t code = -1;
        if (gd_char_length(text[at]) <= length - at)
            at += gd_char_decode(text + at, &code);
        int byte = code < 0 ? -1 : gd_alphabet_byte(code);
        if (byte < 0) {
            out->length = mark;
            gd_buf_append(out, text, length);
            return;
        }
        gd_buf_append_char(out, (char)byte);
    }
}

/* How many bytes at the start of text are one ill-formed part: at least 1, and all that could have begun a character. */
static size_t ill_formed(const unsigned char *b, size_t left)
{
    if (b[0] < 0xC2 || b[0] > 0xF4)
        return 1;
    size_t length = b[0] < 0xE0 ? 2 : b[0] < 0xF0 ? 3 : 4;
    unsigned char low = b[0] == 0xE0 ? 0xA0 : b[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = b[0] == 0xED ? 0x9F : b[0] == 0xF4 ? 0x8F : 0xBF;
    size_t taken = 1;
    while (taken < length && taken < left && b[taken] >= low && b[taken] <= high) {
        low = 0x80;
        high = 0xBF;
        taken++;
    }
    return taken;
}

static void append_valid(struct gd_buf *out, const char *text, size_t length)
{
    if (gd_utf8_valid(text, length)) {
        gd_buf_append(out, text, length);
        return;
    }
    for (size_t at = 0; at < length;) {
        size_t step = gd_char_length(text[at]);
        if (step <= length - at && gd_utf8_valid(text + at, step)) {
            gd_buf_append(out, text + at, step);
        } else {
            step = ill_formed((const unsigned char *)text + at, length - at);
            gd_buf_append_text(out, REPLACEMENT);
        }
        at += step;
    }
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
}

/* The byte of "<0x41>", or -1. */
static int fallback_byte(const char *text, size_t length)
{
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>' || hex_digit(text[3]) < 0 || hex_digit(text[4]) < 0)
        return -1;
    return hex_digit(text[3]) * 16 + hex_digit(text[4]);
}

static void replace(const struct gd_decoder *step, const char *text, size_t length, struct gd_buf *out)
{
    struct gd_regex_run run;
    struct gd_error err = {0};
    if (length > INT32_MAX || !gd_utf8_valid(text, length)) { /* part of a character: no pattern applies */
        gd_buf_append(out, text, length);
        return;
    }
    gd_regex_run_init(&run, length);
    int32_t at = 0, begin = 0, end = 0;
    bool first = true;
    while (gd_regex_next(step->regex, &run, text, (int32_t)length, at, first, &begin, &end, &err) &&
           begin <= (int32_t)length) {
        gd_buf_append(out, text + at, (size_t)(begin - at));
        gd_buf_append(out, step->text, step->text_length);
        at = end;
        first = false;
    }
    gd_buf_append(out, text + at, length - (size_t)at);
    gd_regex_run_release(&run);
}

static void replace_literal(const char *text, size_t length, const char *old, size_t old_length, const char *new,
                            size_t new_length, struct gd_buf *out)
{
    size_t at = 0;
    for (const char *found; (found = memmem(text + at, length - at, old, old_length)) != NULL;) {
        gd_buf_append(out, text + at, (size_t)(found - text) - at);
        gd_buf_append(out, new, new_length);
        at = (size_t)(found - text) + old_length;
    }
    gd_buf_append(out, text + at, length - at);
}

/* Spaces for the step's character; the first token loses its own unless keep_first. */
static void metaspace(const struct gd_decoder *step, const char *text, size_t length, bool first, struct gd_buf *out)
{
    bool drop = first && !step->keep_first;
    replace_literal(text, length, step->text, step->text_length, " ", drop ? 0 : 1, out);
}

/* The reference's list, in its order, on each piece on its own. */
static void clean_up(struct gd_buf *text)
{
    static const char *const pairs[][2] = {
        {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
        {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    struct gd_buf next;
    gd_buf_init(&next, text->limit_bytes);
    for (size_t i = 0; i < GD_COUNT(pairs) && text->length > 0; i++) {
        gd_buf_clear(&next);
        replace_literal(text->data, text->length, pairs[i][0], strlen(pairs[i][0]), pairs[i][1], strlen(pairs[i][1]),
                        &next);
        struct gd_buf swap = *text;
        *text = next;
        next = swap;
    }
    gd_buf_release(&next);
}

/* Pieces with the prefix continue a word, all others but the first begin one. */
static void wordpiece(const struct gd_decoder *step, const char *text, size_t length, bool first, struct gd_buf *out)
{
    size_t prefix = step->text_length;
    bool inner = !first && length >= prefix && (prefix == 0 || memcmp(text, step->text, prefix) == 0);
    if (!first && !inner)
        gd_buf_append_char(out, ' ');
    gd_buf_append(out, text + (inner ? prefix : 0), length - (inner ? prefix : 0));
    if (step->cleanup)
        clean_up(out);
}

static void strip(const struct gd_decoder *step, const char *text, size_t length, struct gd_buf *out)
{
    size_t begin = 0, end = length, unit = step->text_length;
    for (int32_t i = 0; i < step->start && end - begin >= unit && memcmp(text + begin, step->text, unit) == 0; i++)
        begin += unit;
    for (int32_t i = 0; i < step->stop && end - begin >= unit && memcmp(text + end - unit, step->text, unit) == 0; i++)
        end -= unit;
    gd_buf_append(out, text + begin, end - begin);
}

/* Padding is left out; the word delimiter is only looked for when cleaning up, as in the reference. */
static void ctc(const struct gd_decoder *step, const char *text, size_t length, struct gd_buf *out)
{
    replace_literal(text, length, step->text, step->text_length, "", 0, out);
    if (!step->cleanup)
        return;
    clean_up(out);
    struct gd_buf words;
    gd_buf_init(&words, out->limit_bytes);
    replace_literal(out->length > 0 ? out->data : "", out->length, step->word_end, step->word_end_length, " ", 1, &words);
    gd_buf_release(out);
    *out = words;
}

/* A token that repeats the one before it is the same sound. */
static bool repeats(const struct gd_spellings *in, int i)
{
    if (i == 0)
        return false;
    size_t before = i > 1 ? in->end[i - 2] : 0, begin = in->end[i - 1], length = in->end[i] - begin;
    return begin - before == length && (length == 0 || memcmp(in->text.data + before, in->text.data + begin, length) == 0);
}

/* Runs of byte tokens become their characters, or one U+FFFD per byte when they are not valid together. */
static void byte_fallback(const struct gd_spellings *in, struct gd_spellings *out)
{
    struct gd_buf run;
    gd_buf_init(&run, 0);
    for (int i = 0; i <= in->count; i++) {
        size_t begin = i == 0 ? 0 : in->end[i - 1];
        int byte = i < in->count ? fallback_byte(in->text.data + begin, in->end[i] - begin) : -1;
        if (byte >= 0) {
            gd_buf_append_char(&run, (char)byte);
            continue;
        }
        if (run.length > 0 && gd_utf8_valid(run.data, run.length))
            gd_spellings_push(out, run.data, run.length);
        else
            for (size_t k = 0; k < run.length; k++)
                gd_spellings_push(out, REPLACEMENT, 3);
        gd_buf_clear(&run);
        if (i < in->count)
            gd_spellings_push(out, in->text.data + begin, in->end[i] - begin);
    }
    gd_buf_release(&run);
}

/* Bytes become the characters that they make, and one U+FFFD for each that makes none. */
static void put_bytes(struct gd_buf *run, struct gd_spellings *out)
{
    for (size_t at = 0, step; at < run->length; at += step) {
        step = gd_char_length(run->data[at]);
        bool valid = step <= run->length - at && gd_utf8_valid(run->data + at, step);
        gd_spellings_push(out, valid ? run->data + at : REPLACEMENT, valid ? step : 3);
        step = valid ? step : 1;
    }
    gd_buf_clear(run);
}

/* The space that stands before a text is taken off its first token, with `cleanup` off every token until there is text. */
static void sentencepiece(const struct gd_decoder *step, const struct gd_spellings *in, struct gd_spellings *out)
{
    struct gd_buf run, one;
    gd_buf_init(&run, 0);
    gd_buf_init(&one, 0);
    bool begins = !step->keep_first;
    for (int i = 0; i < in->count; i++) {
        size_t begin = i == 0 ? 0 : in->end[i - 1], length = in->end[i] - begin;
        const char *text = in->text.data + begin;
        int byte = fallback_byte(text, length);
        if (byte >= 0) {
            gd_buf_append_char(&run, (char)byte);
            continue;
        }
        put_bytes(&run, out);
        begins = begins && out->text.length == 0;
        if (begins && length >= step->text_length && memcmp(text, step->text, step->text_length) == 0) {
            text += step->text_length;
            length -= step->text_length;
            begins = step->cleanup;
        }
        gd_buf_clear(&one);
        replace_literal(text, length, step->text, step->text_length, " ", 1, &one);
        gd_spellings_push(out, one.length > 0 ? one.data : "", one.length);
    }
    put_bytes(&run, out);
    gd_buf_release(&run);
    gd_buf_release(&one);
}

static void each(const struct gd_decoder *step, const struct gd_spellings *in, struct gd_spellings *out)
{
    struct gd_buf one;
    gd_buf_init(&one, 0);
    for (int i = 0; i < in->count; i++) {
        size_t begin = i == 0 ? 0 : in->end[i - 1], length = in->end[i] - begin;
        const char *text = in->text.data + begin;
        gd_buf_clear(&one);
        if (step->kind == GD_DECODE_CTC && repeats(in, i))
            continue;
        switch (step->kind) {
        case GD_DECODE_BYTE_LEVEL:
            byte_level(text, length, &one);
            break;
        case GD_DECODE_REPLACE:
            replace(step, text, length, &one);
            break;
        case GD_DECODE_STRIP:
            strip(step, text, length, &one);
            break;
        case GD_DECODE_METASPACE:
            metaspace(step, text, length, i == 0, &one);
            break;
        case GD_DECODE_WORD_END:
            replace_literal(text, length, step->text, step->text_length, " ", i + 1 < in->count ? 1 : 0, &one);
            break;
        case GD_DECODE_WORDPIECE:
            wordpiece(step, text, length, i == 0, &one);
            break;
        case GD_DECODE_CTC:
            ctc(step, text, length, &one);
            break;
        default:
            gd_buf_append(&one, text, length);
        }
        gd_spellings_push(out, one.length > 0 ? one.data : "", one.length);
    }
    gd_buf_release(&one);
}

/* All spellings as one; after the byte level, made valid. */
static void fuse(struct gd_spellings *spellings, bool repair)
{
    struct gd_spellings whole = {0};
    gd_buf_init(&whole.text, spellings->text.limit_bytes);
    struct gd_buf text;
    gd_buf_init(&text, spellings->text.limit_bytes);
    const char *data = spellings->text.length > 0 ? spellings->text.data : "";
    if (repair)
        append_valid(&text, data, spellings->text.length);
    else
        gd_buf_append(&text, data, spellings->text.length);
    gd_spellings_push(&whole, text.length > 0 ? text.data : "", text.length);
    gd_buf_release(&text);
    gd_spellings_release(spellings);
    *spellings = whole;
}

void gd_decoders_all(const struct gd_decoders *decoders, struct gd_spellings *spellings, struct gd_buf *out)
{
    for (int i = 0; i < decoders->count; i++) {
        const struct gd_decoder *step = &decoders->step[i];
        if (step->kind == GD_DECODE_FUSE) {
            fuse(spellings, false);
            continue;
        }
        struct gd_spellings next = {0};
        gd_buf_init(&next.text, spellings->text.limit_bytes);
        if (step->kind == GD_DECODE_BYTE_FALLBACK)
            byte_fallback(spellings, &next);
        else if (step->kind == GD_DECODE_SENTENCEPIECE)
            sentencepiece(step, spellings, &next);
        else
            each(step, spellings, &next);
        gd_spellings_release(spellings);
        *spellings = next;
        if (step->kind == GD_DECODE_BYTE_LEVEL)
            fuse(spellings, true);
    }
    for (int i = 0; i < spellings->count; i++) {
        size_t begin = i == 0 ? 0 : spellings->end[i - 1];
        if (decoders->count == 0 && i > 0)
            gd_buf_append_char(out, ' ');
        gd_buf_append(out, spellings->text.data + begin, spellings->end[i] - begin);
    }
}

void gd_decoders_piece(const struct gd_decoders *decoders, const char *text, size_t length, struct gd_buf *out)
{
    struct gd_buf now, next;
    gd_buf_init(&now, 0);
    gd_buf_init(&next, 0);
    gd_buf_append(&now, text, length);
    for (int i = 0; i < decoders->count; i++) {
        const struct gd_decoder *step = &decoders->step[i];
        int byte;
        gd_buf_clear(&next);
        const char *data = now.length > 0 ? now.data : "";
        if (step->kind == GD_DECODE_BYTE_LEVEL)
            byte_level(data, now.length, &next);
        else if (step->kind == GD_DECODE_REPLACE)
            replace(step, data, now.length, &next);
        else if (step->kind == GD_DECODE_METASPACE)
            metaspace(step, data, now.length, false, &next);
        else if (step->kind == GD_DECODE_WORD_END)
            replace_literal(data, now.length, step->text, step->text_length, " ", 1, &next);
        else if (step->kind == GD_DECODE_WORDPIECE)
            wordpiece(step, data, now.length, false, &next);
        else if (step->kind == GD_DECODE_SENTENCEPIECE)
            replace_literal(data, now.length, step->text, step->text_length, " ", 1, &next);
        else if (step->kind == GD_DECODE_CTC)
            ctc(step, data, now.length, &next);
        else if ((step->kind == GD_DECODE_BYTE_FALLBACK || step->kind == GD_DECODE_SENTENCEPIECE) &&
                 (byte = fallback_byte(data, now.length)) >= 0)
            gd_buf_append_char(&next, (char)byte);
        else
            gd_buf_append(&next, data, now.length);
        struct gd_buf swap = now;
        now = next;
        next = swap;
    }
    gd_buf_append(out, now.length > 0 ? now.data : "", now.length);
    gd_buf_release(&now);
    gd_buf_release(&next);
}

void gd_decoders_release(struct gd_decoders *decoders)
{
    for (int i = 0; i < decoders->count; i++) {
        gd_free(decoders->step[i].text);
        gd_free(decoders->step[i].word_end);
        gd_regex_destroy(decoders->step[i].regex);
    }
    memset(decoders, 0, sizeof(*decoders));
}

void gd_decoders_describe(const struct gd_decoders *decoders, struct gd_buf *out)
{
    for (int i = 0; i < decoders->count; i++) {
        const struct gd_decoder *step = &decoders->step[i];
        gd_buf_printf(out, "decoder %d %d %d %d text %zu:", (int)step->kind, step->start, step->stop,
                      step->keep_first + 2 * step->cleanup, step->text_length);
        gd_buf_append(out, step->text_length > 0 ? step->text : "", step->text_length);
        if (step->word_end != NULL)
            gd_buf_printf(out, " word end %zu:%s", step->word_end_length, step->word_end);
        const char *pattern = step->regex != NULL ? gd_regex_source(step->regex) : "";
        gd_buf_printf(out, " pattern %zu:", strlen(pattern));
        gd_buf_append_text(out, pattern);
        gd_buf_append_char(out, '\n');
    }
}
