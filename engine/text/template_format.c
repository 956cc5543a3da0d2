/* "%s" % value, "{}".format(value), HTML escapes. */
#include "engine/text/template_text.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

const struct tpl_text *tpl_escape(struct tpl_render *r, const struct tpl_text *text)
{
    static const char *const escapes[128] = {
        ['&'] = "&amp;", ['<'] = "&lt;", ['>'] = "&gt;", ['"'] = "&#34;", ['\''] = "&#39;"};
    struct tpl_builder b = {0};
    if (text->markup)
        return text;
    tpl_charge(r, text->length / 16);
    size_t plain = 0;
    for (size_t i = 0; i < text->length; i++) {
        unsigned char byte = (unsigned char)text->data[i];
        if (byte >= 128 || escapes[byte] == NULL)
            continue;
        tpl_build_slice(r, &b, text, plain, i);
        tpl_build(r, &b, escapes[byte], strlen(escapes[byte]), tpl_label_at(text, i));
        plain = i + 1;
    }
    tpl_build_slice(r, &b, text, plain, text->length);
    struct tpl_text *marked = tpl_alloc(r, sizeof *marked);
    *marked = *tpl_built(r, &b);
    marked->markup = true;
    return marked;
}

struct conversion {
    char flags[8], kind;
    int width, precision; /* -1 = none */
};

/* Reads digits at *at; bounded so that no width can ask for much. */
static int read_number(struct tpl_render *r, const struct tpl_text *format, size_t *at)
{
    int number = 0;
    while (*at < format->length && format->data[*at] >= '0' && format->data[*at] <= '9') {
        number = number * 10 + (format->data[(*at)++] - '0');
        if (number > 500)
            tpl_fail(r, "a width or precision above 500 in a format");
    }
    return number;
}

static struct conversion read_conversion(struct tpl_render *r, const struct tpl_text *format, size_t *at)
{
    struct conversion c = {.precision = -1};
    size_t flags = 0;
    while (*at < format->length && strchr("-+ #0", format->data[*at]) != NULL && flags < sizeof c.flags - 1)
        c.flags[flags++] = format->data[(*at)++];
    c.width = read_number(r, format, at);
    if (*at < format->length && format->data[*at] == '.') {
        (*at)++;
        c.precision = read_number(r, format, at);
    }
    if (*at >= format->length)
        tpl_fail(r, "incomplete format");
    c.kind = format->data[(*at)++];
    return c;
}

static void build_padded(struct tpl_render *r, struct tpl_builder *b, const struct tpl_text *text, struct conversion c)
{
    bool left = strchr(c.flags, '-') != NULL;
    if (c.precision >= 0)
        text = tpl_slice(r, text, 0, tpl_codepoint_offset(text->data, text->length, (size_t)c.precision));
    tpl_build_text(r, b, tpl_pad(r, text, c.width, tpl_literal(r, " ").text, !left, left));
}

static void build_number_conversion(struct tpl_render *r, struct tpl_builder *b, struct conversion c,
                                    struct tpl_value value)
{
    char pattern[40], out[1200];
    bool integral = strchr("diuxXo", c.kind) != NULL;
    char precision[16] = "";
    if (c.precision >= 0)
        snprintf(precision, sizeof precision, ".%d", c.precision);
    if (value.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, value);
    if (!tpl_is_number(value) || (integral && c.kind != 'd' && c.kind != 'i' && c.kind != 'u' && value.kind == TPL_FLOAT))
        tpl_fail(r, "%%%c format: a number is required, not %s", c.kind, tpl_type_name(value));
    double number = tpl_as_double(value);
    int64_t integer = value.kind == TPL_FLOAT ? 0 : value.kind == TPL_INT ? value.integer : value.boolean;
    if (integral && value.kind == TPL_FLOAT) {
        if (!(fabs(number) < 9e18))
            tpl_fail(r, "%%%c format: the number is too large", c.kind);
        integer = (int64_t)number;
    }
    if (integral) {
        bool negative = integer < 0 && strchr("xXo", c.kind) != NULL;
        if (negative)
            tpl_fail(r, "%%%c format of a negative number is not supported", c.kind);
        snprintf(pattern, sizeof pattern, "%%%s%d%sll%c", c.flags, c.width, precision, c.kind == 'u' ? 'd' : c.kind);
        if (c.width == 0)
            snprintf(pattern, sizeof pattern, "%%%s%sll%c", c.flags, precision, c.kind == 'u' ? 'd' : c.kind);
        snprintf(out, sizeof out, pattern, (long long)integer);
    } else {
        snprintf(pattern, sizeof pattern, "%%%s%d%s%c", c.flags, c.width, precision, c.kind);
        if (c.width == 0)
            snprintf(pattern, sizeof pattern, "%%%s%s%c", c.flags, precision, c.kind);
        snprintf(out, sizeof out, pattern, number);
    }
    tpl_build_literal(r, b, out);
}

static void build_conversion(struct tpl_render *r, struct tpl_builder *b, struct conversion c, struct tpl_value value)
{
    struct tpl_builder text = {0};
    switch (c.kind) {
    case 's':
        build_padded(r, b, tpl_str(r, value), c);
        break;
    case 'r':
    case 'a':
        tpl_build_repr(r, &text, value);
        build_padded(r, b, tpl_built(r, &text), c);
        break;
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o':
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
        build_number_conversion(r, b, c, value);
        break;
    default:
        tpl_fail(r, "unsupported format character 0x%02x", (unsigned char)c.kind);
    }
}

/* The value of %(name)s. */
static struct tpl_value named_argument(struct tpl_render *r, const struct tpl_call *arguments, const char *name,
                                       size_t length)
{
    for (int i = 0; i < arguments->keyword_count; i++) {
        if (arguments->keywords[i]->length == length && memcmp(arguments->keywords[i]->data, name, length) == 0)
            return arguments->keyword_values[i];
    }
    tpl_fail(r, "the format names '%.*s', which is not given", (int)length, name);
}

struct tpl_value tpl_percent_format(struct tpl_render *r, const struct tpl_text *format,
                                    const struct tpl_call *arguments)
{
    struct tpl_builder b = {0};
    int used = 0;
    bool named = false;
    size_t plain = 0, at = 0;
    while (at < format->length) {
        if (format->data[at] != '%') {
            at++;
            continue;
        }
        tpl_charge(r, 1);
        tpl_build_slice(r, &b, format, plain, at++);
        if (at < format->length && format->data[at] == '%') {
            plain = at++;
            continue;
        }
        struct tpl_value value = {.kind = TPL_MISSING};
        if (at < format->length && format->data[at] == '(') {
            const char *end = memchr(format->data + at, ')', format->length - at);
            if (end == NULL)
                tpl_fail(r, "incomplete format key");
            value = named_argument(r, arguments, format->data + at + 1, (size_t)(end - format->data) - at - 1);
            at = (size_t)(end - format->data) + 1;
            named = true;
        }
        struct conversion conversion = read_conversion(r, format, &at);
        if (value.kind == TPL_MISSING) {
            if (used >= arguments->count)
                tpl_fail(r, "not enough arguments for format string");
            value = arguments->values[used++];
        }
        build_conversion(r, &b, conversion, value);
        plain = at;
    }
    tpl_build_slice(r, &b, format, plain, format->length);
    enum tpl_kind given = arguments->self.kind; /* what has items need not be used */
    bool optional = given == TPL_DICT || given == TPL_LIST || given == TPL_RANGE || given == TPL_UNDEFINED ||
                    arguments->keyword_count > 0;
    if (used < arguments->count && !named && !(optional && used == 0))
        tpl_fail(r, "not all arguments converted during string formatting");
    return tpl_built_value(r, &b);
}

/* The value of a replacement field: "", "0", "name". */
static struct tpl_value field_value(struct tpl_render *r, const struct tpl_call *call, const char *name, size_t length,
                                    int *automatic)
{
    int64_t index = *automatic;
    if (length == 0) {
        (*automatic)++;
    } else if (name[0] >= '0' && name[0] <= '9') {
        index = 0;
        for (size_t i = 0; i < length; i++) {
            if (name[i] < '0' || name[i] > '9' || index > 1000)
                tpl_fail(r, "format(): only {}, {number} and {name} are supported");
            index = index * 10 + (name[i] - '0');
        }
    } else {
        return named_argument(r, call, name, length);
    }
    if (index >= call->count)
        tpl_fail(r, "format(): replacement index %lld out of range", (long long)index);
    return call->values[index];
}

struct tpl_value tpl_brace_format(struct tpl_render *r, const struct tpl_text *format, const struct tpl_call *call)
{
    struct tpl_builder b = {0};
    int automatic = 0;
    size_t plain = 0, at = 0;
    while (at < format->length) {
        char byte = format->data[at];
        if (byte != '{' && byte != '}') {
            at++;
            continue;
        }
        tpl_charge(r, 1);
        tpl_build_slice(r, &b, format, plain, at++);
        if (at < format->length && format->data[at] == byte) {
            plain = at++;
            continue;
        }
        const char *field = format->data + at, *end = memchr(field, '}', format->length - at);
        if (byte == '}' || end == NULL)
            tpl_fail(r, "format(): single '%c' in the format string", byte);
        size_t length = (size_t)(end - field), name = length;
        bool repr = length >= 2 && field[length - 2] == '!' && field[length - 1] == 'r';
        if (length >= 2 && field[length - 2] == '!' && (repr || field[length - 1] == 's'))
            name -= 2;
        if (memchr(field, ':', length) != NULL || memchr(field, '!', name) != NULL || memchr(field, '{', name) != NULL ||
            memchr(field, '.', name) != NULL || memchr(field, '[', name) != NULL)
            tpl_fail(r, "format(): only {}, {number} and {name}, with !r or !s, are supported");
        struct tpl_value value = field_value(r, call, field, name, &automatic);
        if (repr)
            tpl_build_repr(r, &b, value);
        else
            tpl_build_str(r, &b, value);
        at += length + 1;
        plain = at;
    }
    tpl_build_slice(r, &b, format, plain, format->length);
    return tpl_built_value(r, &b);
}
