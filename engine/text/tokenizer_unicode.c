/*
 * The four Unicode normal forms, with source ranges. The text is cut where no form can reach across: before a character
 * whose decomposition begins with a starter that never composes with what stands before it. Each such stretch is
 * decomposed, put in canonical order and composed on its own, and all its output has the source of the stretch.
 */
#include "engine/base/alloc.h"
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_step.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define DECOMPOSED_MAX 32 /* the longest decomposition is 18 characters (U+FDFA) */
#define FEW 16

struct stretch {
    int32_t *code;
    size_t count, capacity;
    int32_t begin, end; /* bytes of the flow */
    int characters;
};

static int decompose(int32_t code, int options, int32_t out[DECOMPOSED_MAX])
{
    int boundary = 0;
    utf8proc_ssize_t count = utf8proc_decompose_char(code, out, DECOMPOSED_MAX, (utf8proc_option_t)options, &boundary);
    if (count < 1 || count > DECOMPOSED_MAX) {
        out[0] = code;
        return 1;
    }
    return (int)count;
}

static bool begins_stretch(int32_t code)
{
    if (code < 0x300)
        return true;
    bool jamo = (code >= 0x1160 && code <= 0x11FF) || (code >= 0xD7B0 && code <= 0xD7FF); /* compose with a leading one */
    return !jamo && !gd_char_is_mark(code) && utf8proc_get_property(code)->combining_class == 0;
}

static int by_key(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Marks of one run in ascending combining class, equal ones in their order. */
static void order_run(int32_t *code, size_t count)
{
    if (count < 2)
        return;
    if (count <= FEW) {
        for (size_t i = 1; i < count; i++) {
            int32_t moved = code[i];
            int rank = utf8proc_get_property(moved)->combining_class;
            size_t at = i;
            for (; at > 0 && utf8proc_get_property(code[at - 1])->combining_class > rank; at--)
                code[at] = code[at - 1];
            code[at] = moved;
        }
        return;
    }
    uint64_t *key = gd_alloc_array(count, sizeof(key[0])); /* class (8 bits), index (32), code (24) */
    for (size_t i = 0; i < count; i++)
        key[i] = (uint64_t)utf8proc_get_property(code[i])->combining_class << 56 | (uint64_t)i << 24 | (uint32_t)code[i];
    qsort(key, count, sizeof(key[0]), by_key);
    for (size_t i = 0; i < count; i++)
        code[i] = (int32_t)(key[i] & 0xFFFFFF);
    gd_free(key);
}

static void order_marks(int32_t *code, size_t count)
{
    size_t start = 0;
    for (size_t i = 0; i <= count; i++) {
        if (i < count && utf8proc_get_property(code[i])->combining_class != 0)
            continue;
        order_run(code + start, i - start);
        start = i + 1;
    }
}

static void finish(struct stretch *s, struct gd_flow *flow, bool compose)
{
    if (s->characters == 0)
        return;
    order_marks(s->code, s->count);
    size_t count = s->count;
    if (compose)
        count = (size_t)utf8proc_normalize_utf32(s->code, (utf8proc_ssize_t)count,
                                                 (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    int32_t from = gd_flow_from(flow, s->begin), to = gd_flow_to(flow, s->end - 1), old = 0;
    bool same = s->characters == 1 && count == 1 && gd_char_decode(flow->bytes + s->begin, &old) > 0 && old == s->code[0];
    for (size_t i = 0; i < count && !same; i++) {
        utf8proc_uint8_t bytes[4];
        gd_flow_put(flow, (const char *)bytes, (size_t)utf8proc_encode_char(s->code[i], bytes), from, to);
    }
    if (same)
        gd_flow_copy(flow, s->begin, s->end);
    s->count = 0;
    s->characters = 0;
}

void gd_step_unicode_form(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece)
{
    bool compose = step->kind == GD_STEP_NFC || step->kind == GD_STEP_NFKC;
    bool compatible = step->kind == GD_STEP_NFKC || step->kind == GD_STEP_NFKD;
    int options = UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | (compatible ? UTF8PROC_COMPAT : 0);
    struct stretch s = {0};
    for (int32_t at = piece.begin, next; at < piece.end; at = next) {
        int32_t code, out[DECOMPOSED_MAX];
        next = at + (int32_t)gd_char_decode(flow->bytes + at, &code);
        int count = 1;
        out[0] = code;
        if (code >= 0x80)
            count = decompose(code, options, out);
        if (begins_stretch(out[0])) {
            finish(&s, flow, compose);
            s.begin = at;
        } else if (s.characters == 0) {
            s.begin = at;
        }
        if (s.count + (size_t)count > s.capacity) {
            s.capacity = 2 * s.capacity + DECOMPOSED_MAX;
            s.code = gd_realloc_array(s.code, s.capacity, sizeof(s.code[0]));
        }
        memcpy(s.code + s.count, out, (size_t)count * sizeof(out[0]));
        s.count += (size_t)count;
        s.characters += s.characters < 2;
        s.end = next;
    }
    finish(&s, flow, compose);
    gd_free(s.code);
}
