/* SentencePiece's normalizer: the longest entry of the character map, or a piece of the user as it stands, or one character;
 * spaces squeezed, one put before or behind the text, all of them escaped. */
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_spm.h"

#include <string.h>

struct writer {
    const struct gd_step *step;
    struct gd_flow *flow;
    struct gd_range piece;
    struct gd_added_match kept; /* the next piece of the user at or behind `at` */
    bool has_kept, damaged;
};

/* What stands for flow[at, *end). */
struct part {
    const char *text;
    size_t length;
    int32_t end;
};

static bool always(const void *context, const struct gd_added *item, int32_t begin, int32_t end)
{
    return true;
}

static void find_kept(struct writer *w, int32_t at)
{
    while (w->has_kept && w->kept.begin < at)
        w->has_kept = gd_added_next(w->step->kept, w->flow->bytes, w->piece.end, at, always, NULL, &w->kept);
}

static struct part next_part(struct writer *w, int32_t at)
{
    const char *bytes = w->flow->bytes;
    find_kept(w, at);
    if (w->has_kept && w->kept.begin == at)
        return (struct part){bytes + at, (size_t)(w->kept.end - at), w->kept.end};
    struct part part = {bytes + at, gd_char_length(bytes[at]), at};
    if (w->step->text != NULL && !w->damaged) {
        int32_t length = 0;
        const char *text = gd_charsmap_longest(w->step, bytes + at, w->piece.end - at, &length, &w->damaged);
        if (text != NULL)
            return (struct part){text, strnlen(text, w->step->text_length - (size_t)(text - w->step->text)), at + length};
    }
    part.end = at + (int32_t)part.length;
    return part;
}

static void put_space(struct writer *w, int32_t from, int32_t to)
{
    gd_flow_put(w->flow, w->step->escape ? GD_SPM_SPACE : " ", w->step->escape ? strlen(GD_SPM_SPACE) : 1, from, to);
}

static void put_part(struct writer *w, const char *text, size_t length, int32_t begin, int32_t end)
{
    int32_t from = gd_flow_from(w->flow, begin), to = gd_flow_to(w->flow, end - 1);
    for (size_t at = 0, run; at < length; at += run) {
        const char *space = memchr(text + at, ' ', length - at);
        run = space == NULL ? length - at : (size_t)(space - text) - at;
        if (text == w->flow->bytes + begin && (size_t)(end - begin) == length) /* as it was: every byte keeps its place */
            gd_flow_copy(w->flow, begin + (int32_t)at, begin + (int32_t)(at + run));
        else
            gd_flow_put(w->flow, text + at, run, from, to);
        if (space != NULL) {
            put_space(w, from, to);
            run++;
        }
    }
}

bool gd_step_sentencepiece(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece, struct gd_error *err)
{
    struct writer w = {.step = step, .flow = flow, .piece = piece, .kept = {.begin = -1}, .has_kept = step->kept->count > 0};
    int32_t at = piece.begin;
    struct part part;
    while (step->squeeze && at < piece.end && (part = next_part(&w, at), part.length == 1 && part.text[0] == ' '))
        at = part.end;
    if (at == piece.end)
        return true;
    if (step->left && (step->prepend == GD_PREPEND_ALWAYS || gd_flow_from(flow, piece.begin) == 0))
        put_space(&w, gd_flow_from(flow, at), gd_flow_to(flow, at + (int32_t)gd_char_length(flow->bytes[at]) - 1));
    bool after_space = step->squeeze;
    for (; at < piece.end && !flow->overflow; at = part.end) {
        part = next_part(&w, at);
        while (after_space && part.length > 0 && part.text[0] == ' ') {
            part.text++;
            part.length--;
        }
        if (part.length > 0) {
            put_part(&w, part.text, part.length, at, part.end);
            after_space = step->squeeze && part.text[part.length - 1] == ' ';
        }
    }
    if (step->squeeze)
        gd_flow_drop_end(flow, step->escape ? GD_SPM_SPACE : " ");
    if (step->right)
        put_space(&w, gd_flow_to(flow, piece.end - 1), gd_flow_to(flow, piece.end - 1));
    return !w.damaged || gd_fail(err, GD_BAD_MODEL, "the normalizer's precompiled_charsmap points outside of itself");
}
