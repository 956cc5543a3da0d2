#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/text/tokenizer_impl.h"

#include <string.h>

/*
 * The reference's order: added tokens in the text as given; normalizers on each stretch between them; added tokens in
 * the normalized stretch; pre-tokenizers on what lies between those; the model on each piece.
 */
struct encoder {
    const struct gd_tokenizer *tokenizer;
    enum gd_special_mode mode;
    const int32_t *spans; /* where specials count, or NULL: everywhere or nowhere, as `mode` says */
    int span_count;
    struct gd_flow normal, pieces;
    struct gd_regex_run regex;
    struct gd_bpe_work work;
    struct gd_tokens *out;
    struct gd_error *err;
};

/* Where a match was looked for: the text as given (flow NULL) or a normalized stretch. */
struct place {
    const struct encoder *encoder;
    const struct gd_flow *flow;
    int32_t base;
};

/* Spans that touch are one. */
static bool inside_span(const struct encoder *e, int32_t begin, int32_t end)
{
    int low = 0, high = e->span_count; /* the last span that begins at or before `begin` */
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (e->spans[2 * middle] <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return false;
    int span = low - 1;
    int32_t reach = e->spans[2 * span + 1];
    while (reach < end && span + 1 < e->span_count && e->spans[2 * span + 2] == reach)
        reach = e->spans[2 * ++span + 1];
    return end <= reach;
}

static bool allowed(const void *context, const struct gd_added *item, int32_t begin, int32_t end)
{
    const struct place *place = context;
    const struct encoder *e = place->encoder;
    if (!item->special || (e->spans == NULL && e->mode == GD_SPECIAL_PARSE))
        return true;
    if (e->spans == NULL)
        return false;
    if (place->flow == NULL)
        return inside_span(e, begin, end);
    return inside_span(e, gd_flow_from(place->flow, place->base + begin), gd_flow_to(place->flow, place->base + end - 1));
}

static bool encode_piece(struct encoder *e, const char *text, int32_t length)
{
    switch (e->tokenizer->model) {
    case GD_MODEL_UNIGRAM:
        return gd_unigram_encode(&e->tokenizer->unigram, &e->work, text, length, e->err);
    case GD_MODEL_WORDLEVEL:
        return gd_wordlevel_encode(&e->tokenizer->wordpiece, &e->work, text, length, e->err);
    case GD_MODEL_WORDPIECE:
        return gd_wordpiece_encode(&e->tokenizer->wordpiece, &e->work, text, length, e->err);
    default:
        return gd_bpe_encode(&e->tokenizer->bpe, &e->work, text, length, e->err);
    }
}

static bool encode_pieces(struct encoder *e, const struct gd_flow *flow)
{
    for (int32_t i = 0; i < flow->pieces.count; i++) {
        struct gd_range piece = flow->pieces.at[i];
        if (piece.end - piece.begin > GD_PRETOKEN_BYTES_MAX)
            return gd_fail(e->err, GD_TOO_LARGE, "a run of %d bytes that the tokenizer does not split, the limit is %d",
                           piece.end - piece.begin, GD_PRETOKEN_BYTES_MAX);
        if (!encode_piece(e, flow->bytes + piece.begin, piece.end - piece.begin))
            return false;
        for (int32_t k = 0; k < e->work.count; k++) {
            const struct gd_symbol *symbol = &e->work.symbol[k];
            gd_tokens_push(e->out, symbol->id, gd_flow_from(flow, piece.begin + symbol->begin),
                           gd_flow_to(flow, piece.begin + symbol->end - 1));
        }
    }
    return true;
}

/* flow[begin, end) is normalized text without added tokens. */
static bool encode_normalized(struct encoder *e, const struct gd_flow *flow, int32_t begin, int32_t end)
{
    gd_flow_start(&e->pieces, flow->bytes + begin, end - begin, flow->from == NULL ? NULL : flow->from + begin,
                  flow->to == NULL ? NULL : flow->to + begin, flow->base + begin);
    return gd_steps_run(&e->tokenizer->pretokenizers, &e->pieces, &e->regex, e->err) && encode_pieces(e, &e->pieces);
}

/* text[begin, end) has no added tokens as given. */
static bool encode_stretch(struct encoder *e, const char *text, int32_t begin, int32_t end)
{
    struct gd_flow *flow = &e->normal;
    gd_flow_start(flow, text + begin, end - begin, NULL, NULL, begin);
    if (!gd_steps_run(&e->tokenizer->normalizers, flow, &e->regex, e->err))
        return false;
    if (flow->pieces.count == 0)
        return true;
    struct gd_range all = flow->pieces.at[0];
    struct place place = {e, flow, all.begin};
    struct gd_added_match match;
    int32_t at = 0, length = all.end - all.begin;
    while (gd_added_next(&e->tokenizer->added_normalized, flow->bytes + all.begin, length, at, allowed, &place, &match)) {
        if (at < match.begin && !encode_normalized(e, flow, all.begin + at, all.begin + match.begin))
            return false;
        gd_tokens_push(e->out, match.id, gd_flow_from(flow, all.begin + match.begin),
                       gd_flow_to(flow, all.begin + match.end - 1));
        at = match.end;
    }
    return at >= length || encode_normalized(e, flow, all.begin + at, all.end);
}

static bool encode_text(struct encoder *e, const char *text, int32_t length)
{
    struct place place = {e, NULL, 0};
    struct gd_added_match match;
    int32_t at = 0;
    while (gd_added_next(&e->tokenizer->added, text, length, at, allowed, &place, &match)) {
        if (at < match.begin && !encode_stretch(e, text, at, match.begin))
            return false;
        gd_tokens_push(e->out, match.id, match.begin, match.end);
        at = match.end;
    }
    return at >= length || encode_stretch(e, text, at, length);
}

static bool encode(struct encoder *e, const char *text, size_t length)
{
    if (length > GD_TEXT_BYTES_MAX)
        return gd_fail(e->err, GD_TOO_LARGE, "a text of %zu bytes, the limit is %d", length, GD_TEXT_BYTES_MAX);
    if (!gd_utf8_valid(text, length))
        return gd_fail(e->err, GD_INVALID, "the text is not valid UTF-8");
    gd_regex_run_init(&e->regex, length);
    int count = e->out->count;
    bool ok = encode_text(e, text, (int32_t)length);
    if (!ok)
        e->out->count = count;
    gd_regex_run_release(&e->regex);
    gd_flow_release(&e->normal);
    gd_flow_release(&e->pieces);
    gd_bpe_work_release(&e->work);
    return ok;
}

bool gd_tokenizer_encode(const struct gd_tokenizer *tokenizer, const char *text, size_t length, enum gd_special_mode mode,
                         bool add_bos_eos, struct gd_tokens *out, struct gd_error *err)
{
    struct encoder e = {.tokenizer = tokenizer, .mode = mode, .out = out, .err = err};
    int count = out->count;
    for (int i = 0; add_bos_eos && i < tokenizer->before_count; i++)
        gd_tokens_push(out, tokenizer->before[i], 0, 0);
    if (!encode(&e, text, length)) {
        out->count = count;
        return false;
    }
    for (int i = 0; add_bos_eos && i < tokenizer->after_count; i++)
        gd_tokens_push(out, tokenizer->after[i], (int32_t)length, (int32_t)length);
    return true;
}

bool gd_tokenizer_encode_spans(const struct gd_tokenizer *tokenizer, const char *text, size_t length,
                               const int32_t *template_spans, int span_count, struct gd_tokens *out, struct gd_error *err)
{
    static const int32_t none[2] = {0, 0};
    struct encoder e = {.tokenizer = tokenizer,
                        .mode = GD_SPECIAL_AS_TEXT,
                        .spans = span_count > 0 ? template_spans : none,
                        .span_count = span_count,
                        .out = out,
                        .err = err};
    int32_t last = 0;
    for (int i = 0; i < span_count; i++) {
        int32_t begin = template_spans[2 * i], end = template_spans[2 * i + 1];
        if (begin < last || end < begin || (size_t)end > length)
            return gd_fail(err, GD_INTERNAL, "template span %d [%d, %d) of a text of %zu bytes is out of order", i,
                           begin, end, length);
        last = end;
    }
    return encode(&e, text, length);
}
