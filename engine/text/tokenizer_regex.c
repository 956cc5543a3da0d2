#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/tokenizer_regex.h"
#include "engine/base/alloc.h"
#include "engine/base/buf.h"
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_patterns.h"

#include <pcre2.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MATCH_STEPS 1000000u      /* per match, plus one per byte: real patterns need a handful */
#define HEAP_KIB 65536u           /* of the interpreter, when JIT cannot be used */
#define SECONDS_BASE 1.5          /* real patterns take 0.1 s per MiB */
#define SECONDS_PER_BYTE (1.0 / (1 << 20))
#define WORK_BASE (1u << 27)      /* of all matches: items tried and bytes gone over, as callouts count them */
#define WORK_PER_BYTE 512u
#define MATCHES_PER_CHECK 256u     /* the clock is a system call */

struct gd_regex {
    char *source, *where;
    size_t source_length;
    pcre2_code *code; /* NULL: a literal */
};

/* What Oniguruma's \w means in Unicode; the numbers below 256 are in its Latin-1 table only. */
#define RUBY_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"

struct translation {
    const char *text;
    size_t length, at;
    bool in_class;
    struct gd_buf out;
    const char *where;
    struct gd_error *err;
};

static bool unsupported(struct translation *t, const char *what)
{
    return gd_fail(t->err, GD_UNSUPPORTED, "%s: the pattern uses %s at byte %zu, which is not supported", t->where,
                   what, t->at);
}

static char peek(const struct translation *t, size_t ahead)
{
    return t->at + ahead < t->length ? t->text[t->at + ahead] : '\0';
}

static bool is_script(const char *name, size_t length)
{
    char pattern[80];
    int written = snprintf(pattern, sizeof(pattern), "\\p{sc:%.*s}", (int)(length < 60 ? length : 60), name);
    int code = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, (PCRE2_SIZE)written, PCRE2_UTF, &code, &offset, NULL);
    pcre2_code_free(compiled);
    return compiled != NULL;
}

/* \p{Han} is a script here; PCRE2 alone would take script extensions. */
static bool translate_property(struct translation *t)
{
    char letter = t->text[t->at + 1];
    if (peek(t, 2) != '{')
        return unsupported(t, "a property without braces");
    const char *name = t->text + t->at + 3;
    const char *close = memchr(name, '}', t->length - t->at - 3);
    if (close == NULL)
        return unsupported(t, "a property without '}'");
    size_t length = (size_t)(close - name);
    bool inverted = length > 0 && name[0] == '^';
    name += inverted;
    length -= inverted;
    gd_buf_printf(&t->out, "\\%c{%s%.*s}", inverted == (letter == 'p') ? 'P' : 'p', is_script(name, length) ? "sc:" : "",
                  (int)length, name);
    t->at = (size_t)(close - t->text) + 1;
    return true;
}

static bool translate_escape(struct translation *t)
{
    char c = peek(t, 1);
    const char *set = NULL; /* what a class of characters holds */
    bool inverted = false;
    switch (c) {
    case '\0':
        return unsupported(t, "a backslash at the end");
    case 'p':
    case 'P':
        return translate_property(t);
    case 's':
    case 'S': /* PCRE2's \s holds U+180E besides */
        gd_buf_append_text(&t->out, c == 's' ? "\\p{White_Space}" : "\\P{White_Space}");
        break;
    case 'w':
    case 'W':
        set = RUBY_WORD;
        inverted = c == 'W';
        break;
    case 'h':
    case 'H':
        set = "0-9a-fA-F";
        inverted = c == 'H';
        break;
    case 'v':
        gd_buf_append_text(&t->out, "\\x{0B}");
        break;
    case 'u':
        gd_buf_append_text(&t->out, "\\x{");
        for (size_t i = 2; i < 6; i++) {
            if (strchr("0123456789abcdefABCDEF", peek(t, i)) == NULL || peek(t, i) == '\0')
                return unsupported(t, "\\u without four hexadecimal digits");
            gd_buf_append_char(&t->out, peek(t, i));
        }
        gd_buf_append_char(&t->out, '}');
        t->at += 4;
        break;
    default: {
        bool letter = ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
        if (letter && strchr("dDnrtfaexAzZbBGKRX", c) == NULL) {
            char what[] = "\\?";
            what[1] = c;
            return unsupported(t, what);
        }
        gd_buf_append_char(&t->out, '\\');
        gd_buf_append_char(&t->out, c);
    }
    }
    if (set != NULL && t->in_class && inverted)
        return unsupported(t, "an inverted set inside a character class");
    if (set != NULL)
        gd_buf_printf(&t->out, t->in_class ? "%s%s" : inverted ? "[^%s%s]" : "[%s%s]", set, "");
    t->at += 2;
    return true;
}

/* {n,m}: Ruby knows {,m}, repeats {n}+ and {n,m}+ greedily, and takes {n}? as optional. */
static bool translate_interval(struct translation *t, bool *done)
{
    size_t i = 1, comma = 0;
    while ((peek(t, i) >= '0' && peek(t, i) <= '9') || (peek(t, i) == ',' && comma == 0)) {
        if (peek(t, i) == ',')
            comma = i;
        i++;
    }
    *done = peek(t, i) == '}' && i > 1 && !(i == 2 && comma == 1);
    if (!*done)
        return true; /* a brace that stands for itself */
    if (peek(t, i + 1) == '+' || (peek(t, i + 1) == '?' && comma == 0))
        return unsupported(t, "a quantifier behind an interval");
    gd_buf_append_text(&t->out, comma == 1 ? "{0" : "{");
    gd_buf_append(&t->out, t->text + t->at + 1, i);
    t->at += i + 1;
    return true;
}

static bool translate_group(struct translation *t)
{
    if (peek(t, 1) == '*')
        return unsupported(t, "(*");
    gd_buf_append_char(&t->out, '(');
    t->at++;
    if (peek(t, 0) != '?')
        return true;
    gd_buf_append_char(&t->out, '?');
    t->at++;
    char c = peek(t, 0);
    if (strchr(":=!<>#imx-", c) == NULL || c == '\0')
        return unsupported(t, "a special group");
    if (strchr("imx-", c) == NULL)
        return true;
    for (; peek(t, 0) != '\0' && strchr("imx-", peek(t, 0)) != NULL; t->at++) /* Ruby's m is PCRE2's s */
        gd_buf_append_char(&t->out, peek(t, 0) == 'm' ? 's' : peek(t, 0));
    return true;
}

static bool translate_class_item(struct translation *t)
{
    char c = peek(t, 0);
    if (c == '[' && peek(t, 1) != ':')
        return unsupported(t, "a class inside a class");
    if (c == '&' && peek(t, 1) == '&')
        return unsupported(t, "an intersection of classes");
    if (c == '[') { /* [:alpha:] */
        const char *close = memmem(t->text + t->at, t->length - t->at, ":]", 2);
        if (close == NULL)
            return unsupported(t, "[: without :]");
        size_t length = (size_t)(close - t->text) + 2 - t->at;
        gd_buf_append(&t->out, t->text + t->at, length);
        t->at += length;
        return true;
    }
    t->in_class = c != ']';
    gd_buf_append_char(&t->out, c);
    t->at++;
    return true;
}

static bool translate(struct translation *t)
{
    while (t->at < t->length) {
        char c = peek(t, 0);
        bool ok = true, done = true;
        if (c == '\\') {
            ok = translate_escape(t);
        } else if (t->in_class) {
            ok = translate_class_item(t);
        } else if (c == '[') {
            t->in_class = true;
            gd_buf_append_char(&t->out, c);
            t->at++;
            if (peek(t, 0) == '^') {
                gd_buf_append_char(&t->out, '^');
                t->at++;
            }
            if (peek(t, 0) == ']')
                return unsupported(t, "an empty class");
        } else if (c == '(') {
            ok = translate_group(t);
        } else {
            done = false;
            if (c == '{')
                ok = translate_interval(t, &done);
            if (ok && !done) {
                gd_buf_append_char(&t->out, c);
                t->at++;
            }
        }
        if (!ok)
            return false;
    }
    return true;
}

/* Patterns whose work is linear. Compiled code counts only some of its steps, so all others call back at every item. */
static bool is_known(const char *pattern, size_t length)
{
    static const char *const known[] = {GD_PATTERN_GPT2,   GD_PATTERN_LLAMA3, GD_PATTERN_QWEN2,
                                        GD_PATTERN_QWEN35, GD_PATTERN_TEKKEN, GD_PATTERN_GPT4O};
    for (size_t i = 0; i < GD_COUNT(known); i++)
        if (strlen(known[i]) == length && memcmp(known[i], pattern, length) == 0)
            return true;
    return false;
}

static pcre2_code *compile(const char *pattern, size_t length, bool watched, const char *where, struct gd_error *err)
{
    int code = 0;
    PCRE2_SIZE offset = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    /* Ruby's ^ and $ always match at line ends. */
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)pattern, length, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | (watched ? PCRE2_AUTO_CALLOUT : 0),
                      &code, &offset, context);
    pcre2_compile_context_free(context);
    if (compiled == NULL) {
        char reason[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof(reason));
        gd_fail(err, GD_BAD_MODEL, "%s: the pattern is not a regular expression (%s, near byte %zu)", where, reason,
                offset);
        return NULL;
    }
    (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* where it fails the interpreter does the same, slower */
    return compiled;
}

bool gd_regex_compile(struct gd_regex **out, const char *pattern, size_t length, enum gd_regex_syntax syntax,
                      const char *where, struct gd_error *err)
{
    *out = NULL;
    if (length == 0)
        return gd_fail(err, GD_BAD_MODEL, "%s: the pattern is empty", where);
    if (length > GD_REGEX_PATTERN_BYTES)
        return gd_fail(err, GD_BAD_MODEL, "%s: a pattern of %zu bytes, the limit is %d", where, length,
                       GD_REGEX_PATTERN_BYTES);
    pcre2_code *code = NULL;
    if (syntax == GD_REGEX_RUBY) {
        struct translation t = {.text = pattern, .length = length, .where = where, .err = err};
        gd_buf_init(&t.out, 0);
        code = translate(&t) ? compile(t.out.data, t.out.length, !is_known(pattern, length), where, err) : NULL;
        gd_buf_release(&t.out);
    } else if (syntax == GD_REGEX_PCRE) {
        code = compile(pattern, length, false, where, err);
    }
    if (code == NULL && syntax != GD_REGEX_LITERAL)
        return false;
    struct gd_regex *regex = gd_alloc(sizeof(*regex));
    regex->source = gd_strndup(pattern, length);
    regex->source_length = length;
    regex->where = gd_strdup(where);
    regex->code = code;
    *out = regex;
    return true;
}

void gd_regex_destroy(struct gd_regex *regex)
{
    if (regex == NULL)
        return;
    pcre2_code_free(regex->code);
    gd_free(regex->source);
    gd_free(regex->where);
    gd_free(regex);
}

const char *gd_regex_source(const struct gd_regex *regex)
{
    return regex->source;
}

static double thread_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int count_work(pcre2_callout_block *block, void *context)
{
    struct gd_regex_run *run = context;
    size_t at = block->current_position;
    size_t work = 1 + (at > run->last ? at - run->last : run->last - at);
    run->last = at;
    if (work > run->work)
        return PCRE2_ERROR_CALLOUT;
    run->work -= work;
    return 0;
}

void gd_regex_run_init(struct gd_regex_run *run, size_t text_length)
{
    run->match_data = pcre2_match_data_create(1, NULL);
    run->match_context = pcre2_match_context_create(NULL);
    run->matches = 0;
    run->deadline = thread_seconds() + SECONDS_BASE + SECONDS_PER_BYTE * (double)text_length;
    run->work = WORK_BASE + WORK_PER_BYTE * text_length;
    run->last = 0;
    pcre2_set_heap_limit(run->match_context, HEAP_KIB);
    pcre2_set_callout(run->match_context, count_work, run);
}

void gd_regex_run_release(struct gd_regex_run *run)
{
    pcre2_match_data_free(run->match_data);
    pcre2_match_context_free(run->match_context);
    memset(run, 0, sizeof(*run));
}

static bool too_much(const struct gd_regex *regex, int32_t from, struct gd_error *err)
{
    return gd_fail(err, GD_BAD_MODEL, "%s: the pattern takes too much work on this text (at byte %d of a piece); a "
                   "tokenizer whose pattern does not backtrack without bound is needed", regex->where, from);
}

static bool match(const struct gd_regex *regex, struct gd_regex_run *run, const char *text, int32_t length, int32_t from,
                  uint32_t options, int32_t *begin, int32_t *end, struct gd_error *err)
{
    if (++run->matches % MATCHES_PER_CHECK == 0 && thread_seconds() > run->deadline)
        return too_much(regex, from, err);
    pcre2_set_match_limit(run->match_context, MATCH_STEPS + (uint32_t)length);
    options |= PCRE2_NO_UTF_CHECK;
    run->last = (size_t)from;
    int rc = pcre2_match(regex->code, (PCRE2_SPTR)text, (PCRE2_SIZE)length, (PCRE2_SIZE)from, options, run->match_data,
                         run->match_context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its frames on the heap */
        rc = pcre2_match(regex->code, (PCRE2_SPTR)text, (PCRE2_SIZE)length, (PCRE2_SIZE)from, options | PCRE2_NO_JIT,
                         run->match_data, run->match_context);
    if (rc == PCRE2_ERROR_NOMATCH) {
        *begin = *end = length + 1;
        return true;
    }
    if (rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT || rc == PCRE2_ERROR_HEAPLIMIT ||
        rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_CALLOUT)
        return too_much(regex, from, err);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(run->match_data);
    if (rc < 0 || range[0] > range[1] || range[0] < (PCRE2_SIZE)from) /* \K can turn a match round */
        return gd_fail(err, GD_BAD_MODEL, "%s: the pattern does not work as a splitter (code %d)", regex->where, rc);
    *begin = (int32_t)range[0];
    *end = (int32_t)range[1];
    return true;
}

bool gd_regex_next(const struct gd_regex *regex, struct gd_regex_run *run, const char *text, int32_t length, int32_t from,
                   bool first, int32_t *begin, int32_t *end, struct gd_error *err)
{
    if (regex->code == NULL) {
        const char *found = memmem(text + from, (size_t)(length - from), regex->source, regex->source_length);
        *begin = found == NULL ? length + 1 : (int32_t)(found - text);
        *end = found == NULL ? length + 1 : *begin + (int32_t)regex->source_length;
        return true;
    }
    if (!match(regex, run, text, length, from, 0, begin, end, err))
        return false;
    if (first || *begin != from || *end != from)
        return true;
    if (from < length) /* the empty match moves on by one character */
        return match(regex, run, text, length, from + (int32_t)gd_char_length(text[from]), 0, begin, end, err);
    *begin = *end = length + 1;
    return true;
}
