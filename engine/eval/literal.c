#include "engine/eval/literal.h"

#include "engine/base/alloc.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static void skip_space(const char **at)
{
    while (**at == ' ' || **at == '\t' || **at == '\n' || **at == '\r')
        (*at)++;
}

static bool append_character(struct gd_buf *out, unsigned long code)
{
    utf8proc_uint8_t bytes[4];
    if (code == 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        return false;
    gd_buf_append(out, bytes, (size_t)utf8proc_encode_char((utf8proc_int32_t)code, bytes));
    return true;
}

/* After the backslash. */
static bool read_escape(const char **at, struct gd_buf *out)
{
    static const char letters[] = "abfnrtv\\'\"", values[] = "\a\b\f\n\r\t\v\\'\"";
    char kind = *(*at)++;
    const char *letter = kind != '\0' ? strchr(letters, kind) : NULL;
    if (letter != NULL) {
        gd_buf_append_char(out, values[letter - letters]);
        return true;
    }
    size_t wanted = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    char digits[9] = {0};
    for (size_t i = 0; i < wanted; i++) {
        if (!isxdigit((unsigned char)**at))
            return false;
        digits[i] = *(*at)++;
    }
    return wanted > 0 && append_character(out, strtoul(digits, NULL, 16));
}

static cJSON *read_string(const char **at)
{
    struct gd_buf out;
    gd_buf_init(&out, 0);
    bool ok = true;
    char quote = *(*at)++;
    while (ok && **at != quote) {
        ok = **at != '\0' && **at != '\n';
        if (!ok)
            break;
        if (**at != '\\') {
            gd_buf_append_char(&out, *(*at)++);
            continue;
        }
        (*at)++;
        ok = read_escape(at, &out);
    }
    *at += ok;
    char *text = gd_buf_take(&out);
    cJSON *json = ok ? cJSON_CreateString(text) : NULL;
    gd_free(text);
    return json;
}

static cJSON *read_value(const char **at, int depth);

static cJSON *read_list(const char **at, int depth)
{
    char close = *(*at)++ == '[' ? ']' : ')';
    cJSON *list = cJSON_CreateArray();
    bool comma = true;
    for (;;) {
        skip_space(at);
        if (**at == close) {
            (*at)++;
            return list;
        }
        cJSON *value = comma && depth < GD_JSON_DEPTH_MAX ? read_value(at, depth + 1) : NULL;
        if (value == NULL) {
            cJSON_Delete(list);
            return NULL;
        }
        cJSON_AddItemToArray(list, value);
        skip_space(at);
        comma = **at == ',';
        *at += comma;
    }
}

static cJSON *read_word(const char **at)
{
    static const char *const words[] = {"True", "False", "None"};
    for (size_t i = 0; i < GD_COUNT(words); i++) {
        size_t length = strlen(words[i]);
        if (strncmp(*at, words[i], length) != 0 || isalnum((unsigned char)(*at)[length]))
            continue;
        *at += length;
        return i == 2 ? cJSON_CreateNull() : cJSON_CreateBool(i == 0);
    }
    return NULL;
}

static cJSON *read_number(const char **at)
{
    const char *start = *at, *digits = start + (*start == '-' || *start == '+');
    char *end;
    if (!isdigit((unsigned char)*digits) && !(*digits == '.' && isdigit((unsigned char)digits[1])))
        return NULL;
    if (digits[0] == '0' && isalnum((unsigned char)digits[1])) /* 0x10 and 007 */
        return NULL;
    double value = strtod(start, &end);
    if (isalnum((unsigned char)*end) || *end == '_' || !isfinite(value))
        return NULL;
    *at = end;
    return cJSON_CreateNumber(value);
}

static cJSON *read_value(const char **at, int depth)
{
    skip_space(at);
    if (**at == '\'' || **at == '"')
        return read_string(at);
    if (**at == '[' || **at == '(')
        return read_list(at, depth);
    cJSON *word = read_word(at);
    return word != NULL ? word : read_number(at);
}

cJSON *gd_literal_read(const char *text)
{
    const char *at = text;
    cJSON *value = read_value(&at, 0);
    skip_space(&at);
    if (value == NULL || *at == '\0')
        return value;
    cJSON_Delete(value);
    return NULL;
}

/* The shortest digits that read back as the number, as repr. */
static void append_number(double value, struct gd_buf *out)
{
    char text[40];
    if (value == floor(value) && fabs(value) < 1e15) {
        gd_buf_printf(out, "%.0f", value);
        return;
    }
    for (int precision = 1; precision <= 17; precision++) {
        snprintf(text, sizeof text, "%.*g", precision, value);
        if (strtod(text, NULL) == value)
            break;
    }
    gd_buf_append_text(out, text);
}

void gd_literal_str(const cJSON *value, struct gd_buf *out)
{
    if (cJSON_IsString(value)) {
        gd_buf_append_text(out, value->valuestring);
    } else if (cJSON_IsNumber(value)) {
        append_number(value->valuedouble, out);
    } else if (cJSON_IsBool(value)) {
        gd_buf_append_text(out, cJSON_IsTrue(value) ? "True" : "False");
    } else if (value == NULL || cJSON_IsNull(value)) {
        gd_buf_append_text(out, "None");
    } else {
        char *json = gd_json_print(value);
        gd_buf_append_text(out, json);
        gd_free(json);
    }
}

bool gd_literal_is_digits(const char *text)
{
    return *text != '\0' && text[strspn(text, "0123456789")] == '\0';
}
