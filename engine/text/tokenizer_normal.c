#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_step.h"

#include <string.h>
#include <utf8proc.h>

static void put_char(struct gd_flow *flow, int32_t code, int32_t from, int32_t to)
{
    utf8proc_uint8_t bytes[4];
    gd_flow_put(flow, (const char *)bytes, (size_t)utf8proc_encode_char(code, bytes), from, to);
}

/* Only U+0130 has a lower case of two characters. */
static void lowercase(struct gd_flow *flow, struct gd_range piece)
{
    for (int32_t at = piece.begin, next; at < piece.end; at = next) {
        int32_t code;
        next = at + (int32_t)gd_char_decode(flow->bytes + at, &code);
        int32_t lower = code < 0x80 ? (code >= 'A' && code <= 'Z' ? code + 32 : code) : utf8proc_tolower(code);
        int32_t from = gd_flow_from(flow, at), to = gd_flow_to(flow, next - 1);
        if (code == 0x130)
            gd_flow_put(flow, "i\xCC\x87", 3, from, to);
        else if (lower == code)
            gd_flow_copy(flow, at, next);
        else
            put_char(flow, lower, from, to);
    }
}

static void strip_accents(struct gd_flow *flow, struct gd_range piece)
{
    for (int32_t at = piece.begin, next; at < piece.end; at = next) {
        int32_t code;
        next = at + (int32_t)gd_char_decode(flow->bytes + at, &code);
        if (code < 0x300 || !gd_char_is_mark(code))
            gd_flow_copy(flow, at, next);
    }
}

static void strip_nonspacing(struct gd_flow *flow, struct gd_range piece)
{
    for (int32_t at = piece.begin, next; at < piece.end; at = next) {
        int32_t code;
        next = at + (int32_t)gd_char_decode(flow->bytes + at, &code);
        if (code < 0x300 || utf8proc_category(code) != UTF8PROC_CATEGORY_MN)
            gd_flow_copy(flow, at, next);
    }
}

enum fate { KEPT, DROPPED, A_SPACE };

/* SentencePiece's NMT rules. */
static enum fate nmt_fate(int32_t code)
{
    if ((code >= 0x01 && code <= 0x08) || code == 0x0B || (code >= 0x0E && code <= 0x1F) || code == 0x7F ||
        code == 0x8F || code == 0x9F)
        return DROPPED;
    bool space = code == 0x09 || code == 0x0A || code == 0x0C || code == 0x0D || code == 0x1680 ||
                 (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 || code == 0x2581 ||
                 code == 0xFEFF || code == 0xFFFD;
    return space ? A_SPACE : KEPT;
}

/* BERT's clean_text: no control characters, every whitespace a space. */
static enum fate clean_fate(int32_t code)
{
    if (code >= ' ' && code < 0x7F)
        return KEPT;
    if (code == '\t' || code == '\n' || code == '\r')
        return A_SPACE;
    if (code == 0 || code == 0xFFFD)
        return DROPPED;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CO:
        return DROPPED;
    default:
        return gd_char_is_space(code) ? A_SPACE : KEPT;
    }
}

static void clean(struct gd_flow *flow, struct gd_range piece, enum fate (*fate_of)(int32_t code))
{
    for (int32_t at = piece.begin, next; at < piece.end; at = next) {
        int32_t code;
        next = at + (int32_t)gd_char_decode(flow->bytes + at, &code);
        enum fate fate = fate_of(code);
        if (fate == KEPT)
            gd_flow_copy(flow, at, next);
        else if (fate == A_SPACE)
            gd_flow_put(flow, " ", 1, gd_flow_from(flow, at), gd_flow_to(flow, next - 1));
    }
}

/* The blocks that BERT's tokenizer calls Chinese. */
static bool is_chinese(int32_t code)
{
    return (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0x3400 && code <= 0x4DBF) ||
           (code >= 0x20000 && code <= 0x2A6DF) || (code >= 0x2A700 && code <= 0x2B73F) ||
           (code >= 0x2B740 && code <= 0x2B81F) || (code >= 0x2B920 && code <= 0x2CEAF) ||
           (code >= 0xF900 && code <= 0xFAFF) || (code >= 0x2F800 && code <= 0x2FA1F);
}

static void set_chinese_apart(struct gd_flow *flow, struct gd_range piece)
{
    for (int32_t at = piece.begin, next; at < piece.end; at = next) {
        int32_t code;
        next = at + (int32_t)gd_char_decode(flow->bytes + at, &code);
        bool apart = is_chinese(code);
        int32_t from = gd_flow_from(flow, at), to = gd_flow_to(flow, next - 1);
        if (apart)
            gd_flow_put(flow, " ", 1, from, to);
        gd_flow_copy(flow, at, next);
        if (apart)
            gd_flow_put(flow, " ", 1, from, to);
    }
}

static void strip(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece)
{
    int32_t begin = piece.begin, end = piece.end, code;
    while (step->left && begin < end) {
        size_t length = gd_char_decode(flow->bytes + begin, &code);
        if (!gd_char_is_space(code))
            break;
        begin += (int32_t)length;
    }
    while (step->right && end > begin) {
        int32_t at = (int32_t)gd_char_before(flow->bytes, (size_t)end);
        gd_char_decode(flow->bytes + at, &code);
        if (!gd_char_is_space(code))
            break;
        end = at;
    }
    gd_flow_push(flow, begin, end);
}

static bool replace(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece, struct gd_regex_run *regex,
                    struct gd_error *err)
{
    const char *text = flow->bytes + piece.begin;
    int32_t length = piece.end - piece.begin, at = 0;
    for (bool first = true; !flow->overflow; first = false) {
        int32_t begin = 0, end = 0;
        if (!gd_regex_next(step->regex, regex, text, length, at, first, &begin, &end, err))
            return false;
        if (begin > length)
            break;
        gd_flow_copy(flow, piece.begin + at, piece.begin + begin);
        int32_t last = begin < end ? end - 1 : begin < length ? begin : length - 1;
        gd_flow_put(flow, step->text, step->text_length,
                    gd_flow_from(flow, piece.begin + (begin < length ? begin : length - 1)),
                    gd_flow_to(flow, piece.begin + last));
        at = end;
    }
    gd_flow_copy(flow, piece.begin + at, piece.end);
    return true;
}

static void bytes_as_alphabet(struct gd_flow *flow, struct gd_range piece)
{
    for (int32_t at = piece.begin; at < piece.end; at++) {
        char spelling[2];
        size_t length = gd_alphabet_write((unsigned char)flow->bytes[at], spelling);
        gd_flow_put(flow, spelling, length, gd_flow_from(flow, at), gd_flow_to(flow, at));
    }
}

static bool is_ascii(const struct gd_flow *flow)
{
    for (int32_t i = 0; i < flow->length; i++)
        if ((unsigned char)flow->bytes[i] >= 0x80)
            return false;
    return true;
}

static bool rewrite_piece(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece,
                          struct gd_regex_run *regex, struct gd_error *err)
{
    switch (step->kind) {
    case GD_STEP_LOWERCASE:
        lowercase(flow, piece);
        return true;
    case GD_STEP_STRIP_ACCENTS:
        strip_accents(flow, piece);
        return true;
    case GD_STEP_PREPEND: {
        int32_t last = piece.begin + (int32_t)gd_char_length(flow->bytes[piece.begin]) - 1;
        gd_flow_put(flow, step->text, step->text_length, gd_flow_from(flow, piece.begin), gd_flow_to(flow, last));
        gd_flow_copy(flow, piece.begin, piece.end);
        return true;
    }
    case GD_STEP_REPLACE:
        return replace(step, flow, piece, regex, err);
    case GD_STEP_BYTES:
        bytes_as_alphabet(flow, piece);
        return true;
    case GD_STEP_NMT:
        clean(flow, piece, nmt_fate);
        return true;
    case GD_STEP_CLEAN:
        clean(flow, piece, clean_fate);
        return true;
    case GD_STEP_CHINESE:
        set_chinese_apart(flow, piece);
        return true;
    case GD_STEP_STRIP_NONSPACING:
        strip_nonspacing(flow, piece);
        return true;
    case GD_STEP_SENTENCEPIECE:
        return gd_step_sentencepiece(step, flow, piece, err);
    case GD_STEP_CHARSMAP:
        return gd_step_charsmap(step, flow, piece, err);
    default:
        gd_step_unicode_form(step, flow, piece);
        return true;
    }
}

bool gd_step_normalize(const struct gd_step *step, struct gd_flow *flow, struct gd_regex_run *regex, struct gd_error *err)
{
    if (step->kind == GD_STEP_STRIP) {
        for (int32_t i = 0; i < flow->pieces.count; i++)
            strip(step, flow, flow->pieces.at[i]);
        gd_flow_split_done(flow);
        return true;
    }
    if (step->kind <= GD_STEP_NFKD && is_ascii(flow))
        return true;
    gd_flow_rewrite(flow);
    for (int32_t i = 0; i < flow->pieces.count; i++) {
        int32_t begin = flow->written;
        if (!rewrite_piece(step, flow, flow->pieces.at[i], regex, err))
            return false;
        gd_flow_push(flow, begin, flow->written);
    }
    return gd_flow_rewritten(flow, err);
}
