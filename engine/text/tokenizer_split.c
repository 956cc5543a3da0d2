#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_step.h"

#include <string.h>

/*
 * A piece is a row of stretches that match the delimiter or do not. The behaviour says which stretches go together:
 * stretches are fed in order, `open` is the piece that may still grow.
 */
struct splitter {
    struct gd_flow *flow;
    enum gd_split_behavior behavior;
    bool invert;
    struct gd_range open;
    bool has_open, last_match;
};

static void flush(struct splitter *s)
{
    if (s->has_open)
        gd_flow_push(s->flow, s->open.begin, s->open.end);
    s->has_open = false;
}

static void begin_open(struct splitter *s, int32_t begin, int32_t end)
{
    flush(s);
    s->open = (struct gd_range){begin, end};
    s->has_open = true;
}

static void feed(struct splitter *s, int32_t begin, int32_t end, bool matched)
{
    bool match = matched != s->invert;
    switch (s->behavior) {
    case GD_SPLIT_ISOLATED:
        gd_flow_push(s->flow, begin, end);
        break;
    case GD_SPLIT_REMOVED:
        if (!match)
            gd_flow_push(s->flow, begin, end);
        break;
    case GD_SPLIT_MERGED_WITH_PREVIOUS: /* a delimiter ends the piece before it; a second one stands alone */
        if (match && !s->last_match && s->has_open)
            s->open.end = end;
        else
            begin_open(s, begin, end);
        break;
    case GD_SPLIT_MERGED_WITH_NEXT: /* the last delimiter of a row begins the piece after it */
        if (!match && s->last_match && s->has_open)
            s->open.end = end;
        else
            begin_open(s, begin, end);
        break;
    case GD_SPLIT_CONTIGUOUS:
        if (match == s->last_match && s->has_open)
            s->open.end = end;
        else
            begin_open(s, begin, end);
        break;
    }
    s->last_match = match;
}

static bool split_by_regex(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece, struct splitter *s,
                           struct gd_regex_run *regex, struct gd_error *err)
{
    const char *text = flow->bytes + piece.begin;
    int32_t length = piece.end - piece.begin, at = 0;
    for (bool first = true;; first = false) {
        int32_t begin = 0, end = 0;
        if (!gd_regex_next(step->regex, regex, text, length, at, first, &begin, &end, err))
            return false;
        if (begin > length)
            break;
        if (begin > at)
            feed(s, piece.begin + at, piece.begin + begin, false);
        feed(s, piece.begin + begin, piece.begin + end, true);
        at = end;
    }
    if (at < length)
        feed(s, piece.begin + at, piece.end, false);
    return true;
}

/* Delimiters are single characters. */
static void split_by_character(bool (*is_delimiter)(int32_t), struct gd_flow *flow, struct gd_range piece,
                               struct splitter *s)
{
    int32_t start = piece.begin;
    for (int32_t at = piece.begin, next; at < piece.end; at = next) {
        int32_t code;
        next = at + (int32_t)gd_char_decode(flow->bytes + at, &code);
        if (!is_delimiter(code))
            continue;
        if (start < at)
            feed(s, start, at, false);
        feed(s, at, next, true);
        start = next;
    }
    if (start < piece.end)
        feed(s, start, piece.end, false);
}

static void split_by_count(int64_t count, struct gd_range piece, struct gd_flow *flow)
{
    int32_t begin = piece.begin;
    int64_t taken = 0;
    for (int32_t at = piece.begin; at < piece.end;) {
        at += (int32_t)gd_char_length(flow->bytes[at]);
        if (++taken < count && at < piece.end)
            continue;
        gd_flow_push(flow, begin, at);
        begin = at;
        taken = 0;
    }
}

/* What is put before a piece has the source of the piece's first character. */
static void put_before(struct gd_flow *flow, struct gd_range piece, const char *text, size_t length)
{
    int32_t last = piece.begin + (int32_t)gd_char_length(flow->bytes[piece.begin]) - 1;
    gd_flow_put(flow, text, length, gd_flow_from(flow, piece.begin), gd_flow_to(flow, last));
}

static bool prefix_space(struct gd_flow *flow, struct gd_error *err)
{
    gd_flow_rewrite(flow);
    for (int32_t i = 0; i < flow->pieces.count; i++) {
        struct gd_range piece = flow->pieces.at[i];
        int32_t begin = flow->written;
        if (flow->bytes[piece.begin] != ' ')
            put_before(flow, piece, " ", 1);
        gd_flow_copy(flow, piece.begin, piece.end);
        gd_flow_push(flow, begin, flow->written);
    }
    return gd_flow_rewritten(flow, err);
}

static bool metaspace(const struct gd_step *step, struct gd_flow *flow, struct gd_error *err)
{
    gd_flow_rewrite(flow);
    for (int32_t i = 0; i < flow->pieces.count; i++) {
        struct gd_range piece = flow->pieces.at[i];
        const char *text = flow->bytes;
        int32_t begin = flow->written;
        size_t length = (size_t)(piece.end - piece.begin);
        bool there = text[piece.begin] == ' ' || (length >= step->text_length &&
                                                  memcmp(text + piece.begin, step->text, step->text_length) == 0);
        if (!there && (step->prepend == GD_PREPEND_ALWAYS ||
                       (step->prepend == GD_PREPEND_FIRST && gd_flow_from(flow, piece.begin) == 0)))
            put_before(flow, piece, step->text, step->text_length);
        for (int32_t at = piece.begin, next; at < piece.end; at = next) {
            const char *space = memchr(text + at, ' ', (size_t)(piece.end - at));
            int32_t stop = space == NULL ? piece.end : (int32_t)(space - text);
            gd_flow_copy(flow, at, stop);
            if (stop < piece.end)
                gd_flow_put(flow, step->text, step->text_length, gd_flow_from(flow, stop), gd_flow_to(flow, stop));
            next = stop + 1;
        }
        gd_flow_push(flow, begin, flow->written);
    }
    return gd_flow_rewritten(flow, err);
}

/* Every replaced space begins a piece. */
static void split_metaspace(const struct gd_step *step, struct gd_flow *flow)
{
    for (int32_t i = 0; i < flow->pieces.count; i++) {
        struct gd_range piece = flow->pieces.at[i];
        int32_t begin = piece.begin;
        for (int32_t at = begin; at < piece.end;) {
            const char *found = memmem(flow->bytes + at, (size_t)(piece.end - at), step->text, step->text_length);
            if (found == NULL)
                break;
            int32_t mark = (int32_t)(found - flow->bytes);
            gd_flow_push(flow, begin, mark);
            begin = mark;
            at = mark + (int32_t)step->text_length;
        }
        gd_flow_push(flow, begin, piece.end);
    }
    gd_flow_split_done(flow);
}

bool gd_step_split(const struct gd_step *step, struct gd_flow *flow, struct gd_regex_run *regex, struct gd_error *err)
{
    if (step->kind == GD_STEP_PREFIX_SPACE)
        return prefix_space(flow, err);
    if (step->kind == GD_STEP_METASPACE) {
        if (!metaspace(step, flow, err))
            return false;
        if (step->split)
            split_metaspace(step, flow);
        return true;
    }
    for (int32_t i = 0; i < flow->pieces.count; i++) {
        struct splitter s = {.flow = flow, .behavior = step->behavior, .invert = step->invert};
        struct gd_range piece = flow->pieces.at[i];
        if (step->kind == GD_STEP_SPLIT) {
            if (!split_by_regex(step, flow, piece, &s, regex, err))
                return false;
        } else if (step->kind == GD_STEP_FIXED_LENGTH) {
            split_by_count(step->characters, piece, flow);
        } else {
            split_by_character(step->kind == GD_STEP_DIGITS        ? gd_char_is_number
                               : step->kind == GD_STEP_PUNCTUATION ? gd_char_is_punctuation
                                                                   : gd_char_is_space,
                               flow, piece, &s);
        }
        flush(&s);
    }
    gd_flow_split_done(flow);
    return true;
}
