/* Source to tokens, with jinja's whitespace control under trim_blocks and lstrip_blocks. */
#include "engine/text/template_tree.h"
#include "engine/text/template_unicode.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void tpl_syntax_error(struct tpl_compiler *c, int line, int column, const char *format, ...)
{
    char message[GD_ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    (void)gd_fail(c->err, GD_BAD_MODEL, "%s, line %d, column %d: %s", c->tmpl->plain ? "template" : "chat template", line, column,
                  message);
    longjmp(c->failed, 1);
}

struct lexer {
    struct tpl_compiler *c;
    size_t at;
    int line;
    size_t line_begin;  /* offset of the line's first byte, for columns */
    bool line_starting; /* the last thing read ended with a newline */
    char brackets[TPL_NESTING_MAX * 4];
    int bracket_count;
};

static const char *here(const struct lexer *x)
{
    return x->c->source + x->at;
}

static bool starts(const struct lexer *x, const char *text)
{
    size_t length = strlen(text);
    return x->c->length - x->at >= length && memcmp(here(x), text, length) == 0;
}

static int column(const struct lexer *x)
{
    return (int)(x->at - x->line_begin) + 1;
}

/* Moves over bytes and keeps the line number. */
static void advance(struct lexer *x, size_t bytes)
{
    for (size_t end = x->at + bytes; x->at < end;) {
        if (x->c->source[x->at++] == '\n') {
            x->line++;
            x->line_begin = x->at;
        }
    }
    if (bytes > 0)
        x->line_starting = x->c->source[x->at - 1] == '\n';
}

static size_t space_length(const struct lexer *x)
{
    size_t at = x->at;
    while (at < x->c->length) {
        int32_t codepoint;
        size_t used = tpl_decode(x->c->source + at, x->c->length - at, &codepoint);
        if (!tpl_is_space(codepoint))
            break;
        at += used;
    }
    return at - x->at;
}

static struct tpl_token *push(struct lexer *x, enum tpl_token_kind kind, const char *text, size_t length)
{
    struct tpl_compiler *c = x->c;
    if (c->token_count == c->token_capacity) {
        int capacity = c->token_capacity < 64 ? 64 : c->token_capacity * 2;
        struct tpl_token *tokens = gd_arena_alloc_array(&c->tmpl->arena, (size_t)capacity, sizeof *tokens);
        if (c->token_count > 0)
            memcpy(tokens, c->tokens, (size_t)c->token_count * sizeof *tokens);
        c->tokens = tokens;
        c->token_capacity = capacity;
    }
    struct tpl_token *token = &c->tokens[c->token_count++];
    *token = (struct tpl_token){.kind = kind, .line = x->line, .column = column(x), .text = text, .length = length};
    return token;
}

/* Length of text[0..length) after the strip that the tag behind it asks for. */
static size_t stripped(const char *text, size_t length, char sign, bool block, bool line_starting)
{
    if (sign == '-') {
        while (length > 0) {
            size_t previous = tpl_previous(text, length);
            int32_t codepoint;
            tpl_decode(text + previous, length - previous, &codepoint);
            if (!tpl_is_space(codepoint))
                break;
            length = previous;
        }
        return length;
    }
    if (sign == '+' || !block)
        return length;
    const char *newline = memrchr(text, '\n', length);
    size_t line = newline == NULL ? 0 : (size_t)(newline - text) + 1;
    if (line == 0 && !line_starting)
        return length;
    for (size_t at = line; at < length;) {
        int32_t codepoint;
        at += tpl_decode(text + at, length - at, &codepoint);
        if (!tpl_is_space(codepoint))
            return length;
    }
    return line;
}

/* "-%}" and following space, "+%}", or "%}" and one newline. Returns its length or 0. `close`: "%}", "}}" or "#}". */
static size_t closing(const struct lexer *x, const char *close)
{
    bool variable = close[0] == '}';
    if (starts(x, close)) {
        bool newline = !variable && !x->c->tmpl->plain && x->at + 2 < x->c->length && here(x)[2] == '\n';
        return newline ? 3 : 2;
    }
    struct lexer inner = *x;
    inner.at++;
    if (x->at >= x->c->length || !starts(&inner, close))
        return 0;
    if (here(x)[0] == '+' && !variable)
        return 3;
    if (here(x)[0] != '-')
        return 0;
    inner.at += 2;
    return 3 + space_length(&inner);
}

/* `{%- name -%}` at the lexer: its length or 0, and the sign of each end. */
static size_t bare_tag(const struct lexer *x, const char *name, char *sign, bool trim_newline)
{
    struct lexer inner = *x;
    if (!starts(&inner, "{%"))
        return 0;
    inner.at += 2;
    *sign = starts(&inner, "-") ? '-' : starts(&inner, "+") ? '+' : 0;
    inner.at += *sign != 0;
    inner.at += space_length(&inner);
    if (!starts(&inner, name))
        return 0;
    inner.at += strlen(name);
    inner.at += space_length(&inner);
    size_t end = closing(&inner, "%}");
    if (end == 0 || (!trim_newline && starts(&inner, "+")))
        return 0;
    if (!trim_newline && end == 3 && starts(&inner, "%}"))
        end = 2;
    return inner.at + end - x->at;
}

static void lex_raw(struct lexer *x, size_t begin_length)
{
    int line = x->line, begin_column = column(x);
    advance(x, begin_length);
    struct lexer inner = *x;
    for (; inner.at < x->c->length; inner.at++) {
        char sign;
        size_t end_length = bare_tag(&inner, "endraw", &sign, true);
        if (end_length == 0)
            continue;
        size_t length = inner.at - x->at;
        size_t kept = stripped(here(x), length, sign, !x->c->tmpl->plain, x->line_starting);
        if (kept > 0)
            push(x, TPL_TOKEN_DATA, here(x), kept);
        advance(x, length + end_length);
        return;
    }
    tpl_syntax_error(x->c, line, begin_column, "{%% raw %%} without {%% endraw %%}");
}

static void lex_comment(struct lexer *x)
{
    int line = x->line, begin_column = column(x);
    struct lexer inner = *x;
    for (inner.at += 2; inner.at < x->c->length; inner.at++) {
        size_t end_length = closing(&inner, "#}");
        if (end_length > 0) {
            advance(x, inner.at + end_length - x->at);
            return;
        }
    }
    tpl_syntax_error(x->c, line, begin_column, "a comment without its end");
}

static bool name_byte(unsigned char byte)
{
    return byte == '_' || byte >= 0x80 || (byte >= '0' && byte <= '9') || ((byte | 32) >= 'a' && (byte | 32) <= 'z');
}

static bool digit_byte(char byte)
{
    return byte >= '0' && byte <= '9';
}

/* Digits with single underscores between them; returns their length. */
static size_t digits(const char *text, size_t length)
{
    size_t n = 0;
    while (n < length && (digit_byte(text[n]) || (n > 0 && text[n] == '_' && n + 1 < length && digit_byte(text[n + 1]))))
        n++;
    return n;
}

static size_t float_length(const struct lexer *x)
{
    const char *text = here(x);
    size_t left = x->c->length - x->at;
    if (x->at > 0 && text[-1] == '.')
        return 0;
    size_t n = digits(text, left), fraction = 0;
    bool is_float = false;
    if (n + 1 < left && text[n] == '.' && (fraction = digits(text + n + 1, left - n - 1)) > 0) {
        n += 1 + fraction;
        is_float = true;
    }
    if (n + 1 < left && (text[n] == 'e' || text[n] == 'E')) {
        size_t sign = text[n + 1] == '+' || text[n + 1] == '-';
        size_t exponent = n + 1 + sign < left ? digits(text + n + 1 + sign, left - n - 1 - sign) : 0;
        if (exponent > 0) {
            n += 1 + sign + exponent;
            is_float = true;
        }
    }
    return is_float ? n : 0;
}

static void lex_number(struct lexer *x)
{
    char copy[64];
    size_t length = float_length(x), used = 0;
    bool is_float = length > 0;
    int base = 10;
    if (!is_float) {
        size_t left = x->c->length - x->at;
        char mark = left > 2 && here(x)[0] == '0' ? (char)(here(x)[1] | 32) : 0;
        if (mark == 'x' || mark == 'o' || mark == 'b') {
            base = mark == 'x' ? 16 : mark == 'o' ? 8 : 2;
            for (length = 2; length < left && name_byte((unsigned char)here(x)[length]);)
                length++;
        } else if (here(x)[0] == '0') {
            for (length = 1; length < left && here(x)[length] == '0';)
                length++;
        } else {
            length = digits(here(x), left);
        }
    }
    for (size_t i = base == 10 ? 0 : 2; i < length; i++) {
        if (here(x)[i] == '_')
            continue;
        if (used + 1 >= sizeof copy)
            tpl_syntax_error(x->c, x->line, column(x), "a number with more than %zu digits", sizeof copy - 1);
        copy[used++] = here(x)[i];
    }
    copy[used] = '\0';
    struct tpl_token *token = push(x, is_float ? TPL_TOKEN_FLOAT : TPL_TOKEN_INTEGER, here(x), length);
    char *end = copy;
    errno = 0;
    if (is_float)
        token->number = strtod(copy, &end);
    else
        token->integer = strtoll(copy, &end, base);
    if (used == 0 || *end != '\0' || (errno != 0 && !is_float))
        tpl_syntax_error(x->c, x->line, column(x), "%.*s is not a number of 64 bits", (int)(length < 40 ? length : 40),
                         here(x));
    advance(x, length);
}

static int hex_value(char digit)
{
    if (digit_byte(digit))
        return digit - '0';
    return (digit | 32) >= 'a' && (digit | 32) <= 'f' ? (digit | 32) - 'a' + 10 : -1;
}

/* One escape of a Python string, after the backslash. Returns the bytes read; *codepoint -1 = keep as it stands,
 * -2 = nothing. */
static size_t unescape(struct lexer *x, const char *text, size_t left, int32_t *codepoint)
{
    static const char letters[] = "abfnrtv\\'\"", values[] = "\a\b\f\n\r\t\v\\'\"";
    const char *letter = memchr(letters, text[0], sizeof letters - 1);
    if (letter != NULL) {
        *codepoint = values[letter - letters];
        return 1;
    }
    *codepoint = 0;
    if (text[0] >= '0' && text[0] <= '7') {
        size_t n = 0;
        for (; n < 3 && n < left && text[n] >= '0' && text[n] <= '7'; n++)
            *codepoint = *codepoint * 8 + (text[n] - '0');
        return n;
    }
    if (text[0] == '\n') {
        *codepoint = -2;
        return 1;
    }
    size_t wanted = text[0] == 'x' ? 2 : text[0] == 'u' ? 4 : text[0] == 'U' ? 8 : 0;
    if (wanted == 0) {
        if (text[0] == 'N')
            tpl_syntax_error(x->c, x->line, column(x), "\\N{...} escapes are not supported");
        *codepoint = -1;
        return 0;
    }
    for (size_t i = 1; i <= wanted; i++) {
        int digit = i < left ? hex_value(text[i]) : -1;
        if (digit < 0 || *codepoint > 0x10FFFF)
            tpl_syntax_error(x->c, x->line, column(x), "a broken \\%c escape", text[0]);
        *codepoint = *codepoint * 16 + digit;
    }
    if (*codepoint > 0x10FFFF || (*codepoint >= 0xD800 && *codepoint < 0xE000))
        tpl_syntax_error(x->c, x->line, column(x), "\\%c%0*x is not a character", text[0], (int)wanted,
                         (unsigned)*codepoint);
    return 1 + wanted;
}

static void lex_string(struct lexer *x)
{
    const char *text = here(x);
    size_t left = x->c->length - x->at, end = 1;
    while (end < left && text[end] != text[0])
        end += text[end] == '\\' ? 2 : 1;
    if (end >= left)
        tpl_syntax_error(x->c, x->line, column(x), "a string without its closing quote");
    char *out = gd_arena_alloc(&x->c->tmpl->arena, end + 1);
    size_t length = 0;
    for (size_t i = 1; i < end;) {
        if (text[i] != '\\') {
            out[length++] = text[i++];
            continue;
        }
        int32_t codepoint;
        i += 1 + unescape(x, text + i + 1, end - i - 1, &codepoint);
        if (codepoint == -1)
            out[length++] = '\\';
        else if (codepoint != -2)
            length += tpl_encode(codepoint, out + length);
    }
    push(x, TPL_TOKEN_STRING, out, length);
    advance(x, end + 1);
}

static void lex_name(struct lexer *x)
{
    size_t length = 0;
    while (x->at + length < x->c->length && name_byte((unsigned char)here(x)[length])) {
        int32_t codepoint;
        size_t used = tpl_decode(here(x) + length, x->c->length - x->at - length, &codepoint);
        if (codepoint >= 0x80 && !tpl_is_alpha(codepoint) && !tpl_is_digit(codepoint))
            break;
        length += used;
    }
    if (length == 0)
        tpl_syntax_error(x->c, x->line, column(x), "a character that is not ASCII outside a string");
    push(x, TPL_TOKEN_NAME, here(x), length);
    advance(x, length);
}

static void lex_operator(struct lexer *x)
{
    static const char *const doubles[] = {"//", "**", "==", "!=", ">=", "<="};
    size_t length = 1;
    for (size_t i = 0; i < GD_COUNT(doubles); i++) {
        if (starts(x, doubles[i]))
            length = 2;
    }
    char first = here(x)[0];
    if (length == 1 && (first == '\0' || strchr("+-/*%~[](){}><=.:|,;", first) == NULL))
        tpl_syntax_error(x->c, x->line, column(x), "unexpected character 0x%02X", (unsigned char)first);
    if (strchr("([{", first) != NULL) {
        if (x->bracket_count == (int)sizeof x->brackets)
            tpl_syntax_error(x->c, x->line, column(x), "brackets nested more than %zu deep", sizeof x->brackets);
        x->brackets[x->bracket_count++] = first == '(' ? ')' : first == '[' ? ']' : '}';
    } else if (strchr(")]}", first) != NULL) {
        if (x->bracket_count == 0)
            tpl_syntax_error(x->c, x->line, column(x), "unexpected '%c'", first);
        if (x->brackets[--x->bracket_count] != first)
            tpl_syntax_error(x->c, x->line, column(x), "unexpected '%c', expected '%c'", first,
                             x->brackets[x->bracket_count]);
    }
    push(x, TPL_TOKEN_OPERATOR, here(x), length);
    advance(x, length);
}

/* The inside of {{ }} or {% %} up to and with its end. */
static void lex_code(struct lexer *x, bool variable)
{
    int line = x->line, begin_column = column(x);
    push(x, variable ? TPL_TOKEN_VARIABLE_BEGIN : TPL_TOKEN_BLOCK_BEGIN, here(x), 2);
    advance(x, 2);
    if (starts(x, "-") || starts(x, "+"))
        advance(x, 1);
    for (;;) {
        size_t end_length = x->bracket_count == 0 ? closing(x, variable ? "}}" : "%}") : 0;
        if (end_length > 0) {
            push(x, variable ? TPL_TOKEN_VARIABLE_END : TPL_TOKEN_BLOCK_END, here(x), 2);
            advance(x, end_length);
            return;
        }
        if (x->at >= x->c->length)
            tpl_syntax_error(x->c, line, begin_column, "'%s' without its end", variable ? "{{" : "{%");
        size_t space = space_length(x);
        char first = here(x)[0];
        if (space > 0) {
            advance(x, space);
        } else if (digit_byte(first)) {
            lex_number(x);
        } else if (name_byte((unsigned char)first)) {
            lex_name(x);
        } else if (first == '\'' || first == '"') {
            lex_string(x);
        } else {
            lex_operator(x);
        }
    }
}

/* The next "{%", "{{" or "{#" from the lexer on, or the end. */
static size_t next_tag(const struct lexer *x)
{
    const char *at = here(x), *end = x->c->source + x->c->length;
    while ((at = memchr(at, '{', (size_t)(end - at))) != NULL) {
        if (at + 1 < end && (at[1] == '%' || at[1] == '{' || at[1] == '#'))
            return (size_t)(at - x->c->source);
        at++;
    }
    return x->c->length;
}

void tpl_lex(struct tpl_compiler *c)
{
    struct lexer x = {.c = c, .line = 1, .line_starting = true};
    while (x.at < c->length) {
        size_t tag = next_tag(&x), length = tag - x.at, kept = length;
        if (tag < c->length) {
            char sign = tag + 2 < c->length ? c->source[tag + 2] : 0;
            kept = stripped(here(&x), length, sign, c->source[tag + 1] != '{' && !c->tmpl->plain, x.line_starting);
        }
        if (kept > 0)
            push(&x, TPL_TOKEN_DATA, here(&x), kept);
        if (tag == c->length) {
            advance(&x, length);
            break;
        }
        bool line_starting = length == 0 ? x.line_starting : here(&x)[length - 1] == '\n';
        advance(&x, length);
        x.line_starting = line_starting;
        char sign;
        size_t raw = bare_tag(&x, "raw", &sign, false);
        if (raw > 0)
            lex_raw(&x, raw);
        else if (c->source[tag + 1] == '#')
            lex_comment(&x);
        else
            lex_code(&x, c->source[tag + 1] == '{');
    }
    push(&x, TPL_TOKEN_END, "", 0);
}
