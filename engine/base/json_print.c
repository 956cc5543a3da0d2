/* Printing of json.h: unlike cJSON's, never gives invalid UTF-8 and writes integers as integers. */
#include "engine/base/alloc.h"
#include "engine/base/json_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PRINT_BYTES_MAX ((size_t)4 << 30)

void gd_json_append_string(struct gd_buf *buf, const char *text, size_t length)
{
    static const char letters[] = "\b\f\n\r\t", names[] = "bfnrt";
    gd_buf_append_char(buf, '"');
    for (size_t at = 0; at < length;) {
        size_t plain = at, step = 1;
        while (step > 0 && (at += gd_json_plain_length(text + at, length - at)) < length) {
            step = (unsigned char)text[at] >= 0x80u ? gd_utf8_length(text + at, length - at) : 0;
            at += step;
        }
        gd_buf_append(buf, text + plain, at - plain);
        if (at == length)
            break;
        unsigned char byte = (unsigned char)text[at++];
        const char *letter = byte != 0 ? strchr(letters, byte) : NULL;
        if (byte == '"' || byte == '\\')
            gd_buf_printf(buf, "\\%c", byte);
        else if (letter != NULL)
            gd_buf_printf(buf, "\\%c", names[letter - letters]);
        else if (byte < 0x80u)
            gd_buf_printf(buf, "\\u%04x", byte);
        else
            gd_buf_append_text(buf, "\xEF\xBF\xBD"); /* U+FFFD for each byte that is no character */
    }
    gd_buf_append_char(buf, '"');
}

/* Integers as integers; otherwise the fewest of 15 to 17 digits that give the same double back. */
static void append_number(struct gd_buf *buf, double value)
{
    if (!isfinite(value)) {
        gd_buf_append_text(buf, "null");
        return;
    }
    if (value == trunc(value) && fabs(value) < 9007199254740992.0) {
        gd_buf_printf(buf, "%lld", (long long)value);
        return;
    }
    char digits[40];
    for (int precision = 15; precision <= 17; precision++) {
        (void)snprintf(digits, sizeof(digits), "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    gd_buf_append_text(buf, digits);
}

static void append_value(struct gd_buf *buf, const cJSON *value);

static void append_members(struct gd_buf *buf, const cJSON *value, bool object)
{
    gd_buf_append_char(buf, object ? '{' : '[');
    const cJSON *member;
    cJSON_ArrayForEach(member, value) {
        if (member != value->child)
            gd_buf_append_char(buf, ',');
        if (object) {
            gd_json_append_string(buf, member->string, strlen(member->string));
            gd_buf_append_char(buf, ':');
        }
        append_value(buf, member);
    }
    gd_buf_append_char(buf, object ? '}' : ']');
}

static void append_value(struct gd_buf *buf, const cJSON *value)
{
    const char *text = value->valuestring != NULL ? value->valuestring : "";
    if (cJSON_IsObject(value) || cJSON_IsArray(value))
        append_members(buf, value, cJSON_IsObject(value));
    else if (cJSON_IsString(value))
        gd_json_append_string(buf, text, strlen(text));
    else if (cJSON_IsNumber(value))
        append_number(buf, value->valuedouble);
    else if (cJSON_IsRaw(value))
        gd_buf_append_text(buf, text);
    else
        gd_buf_append_text(buf, cJSON_IsTrue(value) ? "true" : cJSON_IsFalse(value) ? "false" : "null");
}

char *gd_json_print(const cJSON *value)
{
    struct gd_buf buf;
    gd_buf_init(&buf, PRINT_BYTES_MAX);
    append_value(&buf, value);
    return gd_buf_take(&buf);
}
