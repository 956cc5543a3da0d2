#include "engine/eval/pattern.h"

#include "engine/base/alloc.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

struct gd_pattern {
    pcre2_code *code;
    uint32_t groups;
};

/* Python's \Z is PCRE's \z. */
static char *translated(const char *source)
{
    char *copy = gd_strdup(source);
    for (char *at = copy; *at != '\0' && at[1] != '\0'; at++) {
        if (*at != '\\')
            continue;
        at++;
        if (*at == 'Z')
            *at = 'z';
    }
    return copy;
}

struct gd_pattern *gd_pattern_compile(const char *source, const char *param, struct gd_error *err)
{
    int status;
    PCRE2_SIZE at;
    char *text = translated(source);
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                                     &status, &at, NULL);
    gd_free(text);
    if (code == NULL) {
        PCRE2_UCHAR message[256] = "";
        (void)pcre2_get_error_message(status, message, sizeof message);
        gd_fail_param(err, GD_INVALID, param, "%s: not a regular expression, at byte %zu: %s", param, (size_t)at,
                      (const char *)message);
        return NULL;
    }
    struct gd_pattern *pattern = gd_alloc(sizeof *pattern);
    pattern->code = code;
    (void)pcre2_pattern_info(code, PCRE2_INFO_CAPTURECOUNT, &pattern->groups);
    return pattern;
}

void gd_pattern_destroy(struct gd_pattern *pattern)
{
    if (pattern == NULL)
        return;
    pcre2_code_free(pattern->code);
    gd_free(pattern);
}

struct walk {
    const struct gd_pattern *pattern;
    const char *text;
    size_t length, at;
    bool after_empty; /* the last match was empty: the next must not be so at the same place */
    pcre2_match_data *data;
    pcre2_match_context *context;
};

static void walk_begin(struct walk *walk, const struct gd_pattern *pattern, const char *text)
{
    *walk = (struct walk){.pattern = pattern, .text = text, .length = strlen(text)};
    walk->data = pcre2_match_data_create_from_pattern(pattern->code, NULL);
    walk->context = pcre2_match_context_create(NULL);
    (void)pcre2_set_match_limit(walk->context, GD_PATTERN_STEPS_MAX);
}

static void walk_end(struct walk *walk)
{
    pcre2_match_data_free(walk->data);
    pcre2_match_context_free(walk->context);
}

/* The next match from left to right. */
static bool walk_next(struct walk *walk, bool *found, struct gd_error *err)
{
    while (walk->at <= walk->length) {
        uint32_t options = walk->after_empty ? PCRE2_NOTEMPTY_ATSTART | PCRE2_ANCHORED : 0;
        int status = pcre2_match(walk->pattern->code, (PCRE2_SPTR)walk->text, walk->length, walk->at, options, walk->data,
                                 walk->context);
        if (status >= 0) {
            const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(walk->data);
            walk->after_empty = ends[0] == ends[1];
            walk->at = ends[1];
            *found = true;
            return true;
        }
        if (status != PCRE2_ERROR_NOMATCH)
            return gd_fail(err, GD_INVALID, "a regular expression is too much work on this text (PCRE2 error %d)", status);
        if (!walk->after_empty)
            break;
        walk->after_empty = false;
        walk->at++;
        while (walk->at < walk->length && ((unsigned char)walk->text[walk->at] & 0xC0u) == 0x80u)
            walk->at++;
    }
    *found = false;
    return true;
}

/* What findall gives for the match that the walk stands at. */
static bool take(const struct walk *walk, struct gd_buf *out)
{
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(walk->data);
    uint32_t first = walk->pattern->groups > 0 ? 1 : 0;
    for (uint32_t group = first; group <= walk->pattern->groups; group++) {
        if (ends[2 * group] == PCRE2_UNSET || (walk->pattern->groups > 1 && ends[2 * group] == ends[2 * group + 1]))
            continue;
        gd_buf_append(out, walk->text + ends[2 * group], ends[2 * group + 1] - ends[2 * group]);
        return true;
    }
    return walk->pattern->groups < 2; /* one group that took no part is "" */
}

bool gd_pattern_find(const struct gd_pattern *pattern, const char *text, int select, struct gd_buf *out, bool *found,
                     struct gd_error *err)
{
    struct walk walk;
    bool ok = true, more = true;
    *found = false;
    int wanted = select;
    if (select < 0) {
        int count = 0;
        walk_begin(&walk, pattern, text);
        while ((ok = walk_next(&walk, &more, err)) && more)
            count++;
        walk_end(&walk);
        wanted = count + select;
    }
    if (!ok || wanted < 0)
        return ok;
    walk_begin(&walk, pattern, text);
    for (int i = 0; (ok = walk_next(&walk, &more, err)) && more; i++)
        if (i == wanted) {
            *found = take(&walk, out);
            break;
        }
    walk_end(&walk);
    return ok;
}

bool gd_pattern_remove(const struct gd_pattern *pattern, const char *text, struct gd_buf *out, struct gd_error *err)
{
    struct walk walk;
    size_t kept = 0;
    bool ok, more;
    walk_begin(&walk, pattern, text);
    while ((ok = walk_next(&walk, &more, err)) && more) {
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(walk.data);
        gd_buf_append(out, text + kept, ends[0] - kept);
        kept = ends[1];
    }
    if (ok)
        gd_buf_append(out, text + kept, walk.length - kept);
    walk_end(&walk);
    return ok;
}
