#include "engine/base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct code_facts {
    int http;
    const char *type, *wire;
};

#define CODE_FACTS(name, http, type, wire) {http, type, wire},
static const struct code_facts facts[GD_CODE_COUNT] = {GD_CODE_LIST(CODE_FACTS)};

/* Ends `text` (capacity bytes, filled by a formatter that wanted `wanted` bytes) at a whole UTF-8 character, and turns
 * control characters into spaces: a message is one line. */
static void tidy(char *text, size_t capacity, size_t wanted)
{
    size_t length = wanted < capacity ? wanted : capacity - 1;
    if (wanted >= capacity) {
        size_t start = length; /* of the last character */
        while (start > 0 && length - start < 4 && ((unsigned char)text[start - 1] & 0xC0u) == 0x80u)
            start--;
        if (start > 0 && (unsigned char)text[start - 1] >= 0xC0u) {
            unsigned char lead = (unsigned char)text[start - 1];
            size_t needs = lead >= 0xF0u ? 4 : lead >= 0xE0u ? 3 : 2;
            if (length - (start - 1) < needs)
                length = start - 1;
        }
        text[length] = '\0';
    }
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < 0x20u || text[i] == 0x7F)
            text[i] = ' ';
}

static void format_into(char *text, size_t capacity, const char *format, va_list list)
{
    int wanted = vsnprintf(text, capacity, format, list);
    tidy(text, capacity, wanted < 0 ? 0 : (size_t)wanted);
}

static bool fail_list(struct gd_error *err, enum gd_code code, const char *param, const char *format, va_list list)
{
    assert(err != NULL);
    assert(code > GD_OK && code < GD_CODE_COUNT);
    if (err->code != GD_OK)
        return false;
    err->code = code;
    int wanted = snprintf(err->param, sizeof(err->param), "%s", param);
    tidy(err->param, sizeof(err->param), (size_t)wanted);
    format_into(err->message, sizeof(err->message), format, list);
    return false;
}

bool gd_fail(struct gd_error *err, enum gd_code code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fail_list(err, code, "", format, list);
    va_end(list);
    return false;
}

bool gd_fail_param(struct gd_error *err, enum gd_code code, const char *param, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fail_list(err, code, param, format, list);
    va_end(list);
    return false;
}

bool gd_fail_errno(struct gd_error *err, int errno_value, const char *format, ...)
{
    char what[GD_ERROR_MESSAGE_BYTES];
    va_list list;
    va_start(list, format);
    format_into(what, sizeof(what), format, list);
    va_end(list);
    enum gd_code code = GD_IO;
    if (errno_value == ENOSPC || errno_value == EDQUOT)
        code = GD_DISK_FULL;
    else if (errno_value == ENOENT)
        code = GD_NOT_FOUND;
    char reason[128];
    return gd_fail(err, code, "%s: %s", what, strerror_r(errno_value, reason, sizeof(reason)));
}

void gd_error_context(struct gd_error *err, const char *format, ...)
{
    if (err->code == GD_OK)
        return;
    char old[GD_ERROR_MESSAGE_BYTES], context[GD_ERROR_MESSAGE_BYTES];
    memcpy(old, err->message, sizeof(old));
    va_list list;
    va_start(list, format);
    format_into(context, sizeof(context), format, list);
    va_end(list);
    int wanted = snprintf(err->message, sizeof(err->message), "%s: %s", context, old);
    tidy(err->message, sizeof(err->message), wanted < 0 ? 0 : (size_t)wanted);
}

void gd_error_clear(struct gd_error *err)
{
    *err = (struct gd_error){.code = GD_OK};
}

int gd_code_http(enum gd_code code)
{
    assert(code >= GD_OK && code < GD_CODE_COUNT);
    return facts[code].http;
}

const char *gd_code_type(enum gd_code code)
{
    assert(code >= GD_OK && code < GD_CODE_COUNT);
    return facts[code].type;
}

const char *gd_code_wire(enum gd_code code)
{
    assert(code >= GD_OK && code < GD_CODE_COUNT);
    return facts[code].wire;
}

enum gd_code gd_code_from_wire(const char *wire)
{
    for (int code = 0; code < GD_CODE_COUNT && wire != NULL; code++)
        if (strcmp(facts[code].wire, wire) == 0)
            return (enum gd_code)code;
    return GD_INTERNAL;
}
