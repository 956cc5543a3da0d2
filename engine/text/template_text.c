#include "engine/text/template_text.h"
#include <string.h>

static bool strippable(int32_t codepoint, const char *bytes, size_t used, const struct tpl_text *characters)
{
    if (characters == NULL)
        return tpl_is_space(codepoint);
    return memmem(characters->data, characters->length, bytes, used) != NULL;
}

const struct tpl_text *tpl_strip(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *characters,
                                 bool left, bool right)
{
    size_t begin = 0, end = text->length;
    size_t cost = characters == NULL ? 1 : 1 + characters->length / 16;
    while (left && begin < end) {
        int32_t codepoint;
        size_t used = tpl_decode(text->data + begin, end - begin, &codepoint);
        if (!strippable(codepoint, text->data + begin, used, characters))
            break;
        begin += used;
        tpl_charge(r, cost);
    }
    while (right && begin < end) {
        int32_t codepoint;
        size_t previous = tpl_previous(text->data, end);
        tpl_decode(text->data + previous, end - previous, &codepoint);
        if (!strippable(codepoint, text->data + previous, end - previous, characters))
            break;
        end = previous;
        tpl_charge(r, cost);
    }
    return tpl_slice(r, text, begin, end);
}

static void push_slice(struct tpl_render *r, struct tpl_list *list, const struct tpl_text *text, size_t begin, size_t end)
{
    tpl_list_push(r, list, tpl_text_value(tpl_slice(r, text, begin, end)));
}

static size_t skip_space(const struct tpl_text *text, size_t at, bool space)
{
    while (at < text->length) {
        int32_t codepoint;
        size_t used = tpl_decode(text->data + at, text->length - at, &codepoint);
        if (tpl_is_space(codepoint) != space)
            break;
        at += used;
    }
    return at;
}

static size_t skip_space_back(const struct tpl_text *text, size_t end, bool space)
{
    while (end > 0) {
        int32_t codepoint;
        size_t previous = tpl_previous(text->data, end);
        tpl_decode(text->data + previous, end - previous, &codepoint);
        if (tpl_is_space(codepoint) != space)
            break;
        end = previous;
    }
    return end;
}

static void split_space(struct tpl_render *r, struct tpl_list *list, const struct tpl_text *text, int64_t limit)
{
    for (size_t at = skip_space(text, 0, true); at < text->length; at = skip_space(text, at, true)) {
        if (limit >= 0 && list->count >= limit) {
            push_slice(r, list, text, at, text->length);
            return;
        }
        size_t end = skip_space(text, at, false);
        push_slice(r, list, text, at, end);
        at = end;
    }
}

static void split_space_back(struct tpl_render *r, struct tpl_list *list, const struct tpl_text *text, int64_t limit)
{
    for (size_t end = skip_space_back(text, text->length, true); end > 0; end = skip_space_back(text, end, true)) {
        if (limit >= 0 && list->count >= limit) {
            push_slice(r, list, text, 0, end);
            return;
        }
        size_t begin = skip_space_back(text, end, false);
        push_slice(r, list, text, begin, end);
        end = begin;
    }
}

static void split_at(struct tpl_render *r, struct tpl_list *list, const struct tpl_text *text,
                     const struct tpl_text *separator, int64_t limit)
{
    size_t at = 0;
    while (limit < 0 || list->count < limit) {
        const char *found = memmem(text->data + at, text->length - at, separator->data, separator->length);
        if (found == NULL)
            break;
        size_t end = (size_t)(found - text->data);
        push_slice(r, list, text, at, end);
        at = end + separator->length;
    }
    push_slice(r, list, text, at, text->length);
}

static void split_at_back(struct tpl_render *r, struct tpl_list *list, const struct tpl_text *text,
                          const struct tpl_text *separator, int64_t limit)
{
    size_t end = text->length;
    for (size_t at = end; at >= separator->length && (limit < 0 || list->count < limit);) {
        if (memcmp(text->data + at - separator->length, separator->data, separator->length) != 0) {
            at--;
            continue;
        }
        push_slice(r, list, text, at, end);
        end = at - separator->length;
        at = end;
    }
    push_slice(r, list, text, 0, end);
}

struct tpl_value tpl_split(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *separator,
                           int64_t limit, bool from_right)
{
    struct tpl_list *list = tpl_list_new(r, 0);
    tpl_charge(r, text->length / 16);
    if (separator != NULL && separator->length == 0)
        tpl_fail(r, "empty separator");
    if (!from_right && separator == NULL)
        split_space(r, list, text, limit);
    else if (!from_right)
        split_at(r, list, text, separator, limit);
    else if (separator == NULL)
        split_space_back(r, list, text, limit);
    else
        split_at_back(r, list, text, separator, limit);
    for (int i = 0, j = list->count - 1; from_right && i < j; i++, j--) {
        struct tpl_value swapped = list->items[i];
        list->items[i] = list->items[j];
        list->items[j] = swapped;
    }
    return tpl_list_value(TPL_LIST, list);
}

struct tpl_list *tpl_split_lines(struct tpl_render *r, const struct tpl_text *text, bool keep_ends)
{
    struct tpl_list *list = tpl_list_new(r, 0);
    size_t begin = 0;
    tpl_charge(r, text->length / 16);
    for (size_t at = 0; at < text->length;) {
        int32_t codepoint;
        size_t end = at;
        at += tpl_decode(text->data + at, text->length - at, &codepoint);
        if (!tpl_is_line_break(codepoint))
            continue;
        if (codepoint == '\r' && at < text->length && text->data[at] == '\n')
            at++;
        push_slice(r, list, text, begin, keep_ends ? at : end);
        begin = at;
    }
    if (begin < text->length)
        push_slice(r, list, text, begin, text->length);
    return list;
}

/* An empty `old` stands between all characters. */
static const struct tpl_text *interleave(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *new,
                                         int64_t limit)
{
    struct tpl_builder b = {0};
    size_t at = 0;
    for (int64_t done = 0; limit < 0 || done < limit; done++) {
        int32_t codepoint;
        tpl_charge(r, 1);
        tpl_build_text(r, &b, new);
        if (at == text->length)
            break;
        size_t used = tpl_decode(text->data + at, text->length - at, &codepoint);
        tpl_build_slice(r, &b, text, at, at + used);
        at += used;
    }
    tpl_build_slice(r, &b, text, at, text->length);
    return tpl_built(r, &b);
}

const struct tpl_text *tpl_replace(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *old,
                                   const struct tpl_text *new, int64_t limit)
{
    struct tpl_builder b = {0};
    size_t at = 0;
    tpl_charge(r, text->length / 32);
    if (old->length == 0)
        return interleave(r, text, new, limit);
    for (int64_t done = 0; limit < 0 || done < limit; done++) {
        const char *found = memmem(text->data + at, text->length - at, old->data, old->length);
        if (found == NULL)
            break;
        tpl_charge(r, 1);
        tpl_build_slice(r, &b, text, at, (size_t)(found - text->data));
        tpl_build_text(r, &b, new);
        at = (size_t)(found - text->data) + old->length;
    }
    if (at == 0)
        return text;
    tpl_build_slice(r, &b, text, at, text->length);
    return tpl_built(r, &b);
}

const struct tpl_text *tpl_join(struct tpl_render *r, const struct tpl_list *items, const struct tpl_text *separator)
{
    struct tpl_builder b = {0};
    for (int i = 0; i < items->count; i++) {
        tpl_charge(r, 1);
        if (i > 0)
            tpl_build_text(r, &b, separator);
        tpl_build_str(r, &b, items->items[i]);
    }
    return tpl_built(r, &b);
}

static bool cased(int32_t codepoint)
{
    return tpl_is_upper(codepoint) || tpl_is_lower(codepoint) || tpl_is_title(codepoint);
}

/* In text from `begin` on, sigma is final after a cased letter when no cased letter follows (marks and apostrophes in between do not count). */
static bool final_sigma(const struct tpl_text *text, size_t begin, size_t at, size_t used)
{
    bool before = false, after = false;
    for (size_t end = at; end > begin && !before;) {
        int32_t c;
        size_t previous = tpl_previous(text->data, end);
        tpl_decode(text->data + previous, end - previous, &c);
        before = cased(c);
        if (!before && (tpl_is_space(c) || (c < 0x80 && c != '\'' && c != '.' && c != ':' && c != '^' && c != '`')))
            break;
        end = previous;
    }
    for (size_t next = at + used; next < text->length && !after;) {
        int32_t c;
        size_t length = tpl_decode(text->data + next, text->length - next, &c);
        after = cased(c);
        if (!after && (tpl_is_space(c) || (c < 0x80 && c != '\'' && c != '.' && c != ':' && c != '^' && c != '`')))
            break;
        next += length;
    }
    return before && !after;
}

static void build_mapped(struct tpl_render *r, struct tpl_builder *b, const struct tpl_text *text, size_t begin,
                         size_t at, size_t used, int32_t codepoint, enum tpl_case to)
{
    char mapped[12];
    size_t length;
    if (codepoint == 0x3A3 && to == TPL_LOWER)
        length = tpl_encode(final_sigma(text, begin, at, used) ? 0x3C2 : 0x3C3, mapped);
    else
        length = tpl_map_case(codepoint, to, mapped);
    tpl_build(r, b, mapped, length, tpl_label_at(text, at));
}

const struct tpl_text *tpl_change_case(struct tpl_render *r, const struct tpl_text *text, enum tpl_case to)
{
    struct tpl_builder b = {0};
    tpl_charge(r, text->length / 8);
    for (size_t at = 0; at < text->length;) {
        int32_t codepoint;
        size_t used = tpl_decode(text->data + at, text->length - at, &codepoint);
        build_mapped(r, &b, text, 0, at, used, codepoint, to);
        at += used;
    }
    return tpl_built(r, &b);
}

const struct tpl_text *tpl_capitalize(struct tpl_render *r, const struct tpl_text *text)
{
    struct tpl_builder b = {0};
    tpl_charge(r, text->length / 8);
    for (size_t at = 0; at < text->length;) {
        int32_t codepoint;
        size_t used = tpl_decode(text->data + at, text->length - at, &codepoint);
        build_mapped(r, &b, text, 0, at, used, codepoint, at == 0 ? TPL_TITLE : TPL_LOWER);
        at += used;
    }
    return tpl_built(r, &b);
}

const struct tpl_text *tpl_title_words(struct tpl_render *r, const struct tpl_text *text)
{
    struct tpl_builder b = {0};
    bool inside = false;
    tpl_charge(r, text->length / 8);
    for (size_t at = 0; at < text->length;) {
        int32_t codepoint;
        size_t used = tpl_decode(text->data + at, text->length - at, &codepoint);
        build_mapped(r, &b, text, 0, at, used, codepoint, inside ? TPL_LOWER : TPL_TITLE);
        inside = cased(codepoint);
        at += used;
    }
    return tpl_built(r, &b);
}

/* Words begin after runs of -, white space, ( { [ <. */
const struct tpl_text *tpl_title_filter(struct tpl_render *r, const struct tpl_text *text)
{
    struct tpl_builder b = {0};
    bool inside = false;
    size_t word = 0;
    tpl_charge(r, text->length / 8);
    for (size_t at = 0; at < text->length;) {
        int32_t codepoint;
        size_t used = tpl_decode(text->data + at, text->length - at, &codepoint);
        bool breaks = tpl_is_space(codepoint) || (codepoint > 0 && codepoint < 0x80 && strchr("-({[<", codepoint) != NULL);
        build_mapped(r, &b, text, word, at, used, codepoint, inside ? TPL_LOWER : TPL_UPPER);
        if (!inside || breaks)
            word = at + used; /* the first letter of a word is not seen by the rest of it */
        inside = !breaks;
        at += used;
    }
    return tpl_built(r, &b);
}

const struct tpl_text *tpl_reverse(struct tpl_render *r, const struct tpl_text *text)
{
    struct tpl_builder b = {0};
    tpl_charge(r, text->length / 8);
    for (size_t end = text->length; end > 0;) {
        size_t previous = tpl_previous(text->data, end);
        tpl_build_slice(r, &b, text, previous, end);
        end = previous;
    }
    return tpl_built(r, &b);
}

const struct tpl_text *tpl_pad(struct tpl_render *r, const struct tpl_text *text, int64_t width,
                               const struct tpl_text *fill, bool left, bool right)
{
    int64_t length = (int64_t)tpl_count_codepoints(text->data, text->length), missing = width - length;
    struct tpl_builder b = {0};
    if (missing <= 0)
        return text;
    if (width > (int64_t)TPL_TEXT_BYTES_MAX)
        tpl_fail(r, "a string of %lld characters is too long", (long long)width);
    /* CPython puts the odd one to the left when both the padding and the width are odd */
    int64_t front = left && right ? missing / 2 + (missing & width & 1) : left ? missing : 0;
    for (int64_t i = 0; i < missing + 1; i++) {
        if (i == front)
            tpl_build_text(r, &b, text);
        if (i < missing)
            tpl_build_text(r, &b, fill);
    }
    return tpl_built(r, &b);
}
