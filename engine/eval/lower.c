#include "engine/eval/lower.h"

#include "engine/base/alloc.h"

#include <stdbool.h>
#include <stdint.h>
#include <utf8proc.h>

#define SIGMA 0x3A3
#define FINAL_SIGMA 0x3C2
#define DOTTED_I 0x130
#define DOT_ABOVE 0x307

static bool is_cased(int32_t c)
{
    utf8proc_category_t category = utf8proc_category(c);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

/* Unicode's Case_Ignorable: marks, and what may stand inside a word. */
static bool is_ignorable(int32_t c)
{
    static const int32_t inside[] = {'\'',   '.',    ':',    '^',    '`',    0xA8,   0xAD,   0xAF,
                                     0xB4,   0xB7,   0xB8,   0x387,  0x55F,  0x5F4,  0x2018, 0x2019,
                                     0x2024, 0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    utf8proc_category_t category = utf8proc_category(c);
    if (category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME || category == UTF8PROC_CATEGORY_CF ||
        category == UTF8PROC_CATEGORY_LM || category == UTF8PROC_CATEGORY_SK)
        return true;
    for (size_t i = 0; i < sizeof inside / sizeof inside[0]; i++)
        if (inside[i] == c)
            return true;
    return false;
}

/* `cased_before`: of the nearest character before it that is not ignorable. */
static bool is_final(const int32_t *text, size_t count, size_t at, bool cased_before)
{
    if (!cased_before)
        return false;
    size_t next = at + 1;
    while (next < count && is_ignorable(text[next]))
        next++;
    return next == count || !is_cased(text[next]);
}

static void append(struct gd_buf *out, int32_t codepoint)
{
    utf8proc_uint8_t bytes[4];
    utf8proc_ssize_t length = utf8proc_encode_char(codepoint, bytes);
    gd_buf_append(out, bytes, (size_t)length);
}

void gd_lower(const char *text, size_t length, struct gd_buf *out)
{
    int32_t *codepoints = gd_alloc_array(length + 1, sizeof *codepoints);
    size_t count = 0;
    for (size_t at = 0; at < length;) {
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(length - at), &codepoints[count]);
        count += used > 0;
        at += used > 0 ? (size_t)used : 1;
    }
    bool cased_before = false;
    for (size_t i = 0; i < count; i++) {
        int32_t c = codepoints[i];
        if (c == SIGMA)
            append(out, is_final(codepoints, count, i, cased_before) ? FINAL_SIGMA : utf8proc_tolower(c));
        else if (c == DOTTED_I)
            append(out, 'i'), append(out, DOT_ABOVE);
        else
            append(out, c < 0x80 ? (c >= 'A' && c <= 'Z' ? c + 32 : c) : utf8proc_tolower(c));
        if (!is_ignorable(c))
            cased_before = is_cased(c);
    }
    gd_free(codepoints);
}
