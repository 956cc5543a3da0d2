#include "engine/base/log.h"
#include "engine/base/error.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES_MAX 4096
#define TOPIC_COUNT_MAX 32
#define TOPIC_BYTES_MAX 32

static const char *const level_names[] = {"error", "warn", "info", "debug"};

struct topic_level {
    char topic[TOPIC_BYTES_MAX];
    enum gd_log_level level;
};

/* Written by gd_log_init before there are threads, only read afterwards. */
static struct {
    char process[32];
    enum gd_log_level level;
    struct topic_level topics[TOPIC_COUNT_MAX];
    size_t topic_count;
} config = {.level = GD_LOG_INFO};

static bool level_from_name(const char *name, size_t length, enum gd_log_level *out)
{
    for (size_t i = 0; i < GD_COUNT(level_names); i++)
        if (strlen(level_names[i]) == length && memcmp(level_names[i], name, length) == 0) {
            *out = (enum gd_log_level)i;
            return true;
        }
    return false;
}

/* One part of GRAFTD_LOG: "debug" or "job:debug". */
static bool apply_part(const char *part, size_t length)
{
    const char *colon = memchr(part, ':', length);
    if (colon == NULL)
        return level_from_name(part, length, &config.level);
    size_t topic_length = (size_t)(colon - part);
    struct topic_level entry = {.level = GD_LOG_INFO};
    if (topic_length == 0 || topic_length >= TOPIC_BYTES_MAX || config.topic_count == TOPIC_COUNT_MAX ||
        !level_from_name(colon + 1, length - topic_length - 1, &entry.level))
        return false;
    memcpy(entry.topic, part, topic_length);
    config.topics[config.topic_count++] = entry;
    return true;
}

void gd_log_init(const char *process, enum gd_log_level level)
{
    (void)snprintf(config.process, sizeof(config.process), "%s", process);
    config.level = level;
    config.topic_count = 0;
    const char *part = getenv("GRAFTD_LOG");
    while (part != NULL && *part != '\0') {
        size_t length = strcspn(part, ",");
        if (length > 0 && !apply_part(part, length))
            gd_log_warn("log", "GRAFTD_LOG part=%.*s ignored=true expected=[TOPIC:]LEVEL levels=error,warn,info,debug",
                        (int)(length < 64 ? length : 64), part);
        part += length;
        part += *part == ',' ? 1 : 0;
    }
}

static bool wanted(enum gd_log_level level, const char *topic)
{
    for (size_t i = config.topic_count; i > 0; i--) /* the last one given wins */
        if (strcmp(config.topics[i - 1].topic, topic) == 0)
            return level <= config.topics[i - 1].level;
    return level <= config.level;
}

/* The length of the valid UTF-8 character at text[0..left), 0 if it is not one. */
static size_t utf8_length(const unsigned char *text, size_t left)
{
    size_t length = text[0] < 0x80u ? 1 : text[0] < 0xC2u ? 0 : text[0] < 0xE0u ? 2 : text[0] < 0xF0u ? 3 : 4;
    if (length == 0 || length > left || text[0] > 0xF4u)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xC0u) != 0x80u)
            return 0;
    return length;
}

/* Appends `text` escaped for a JSON string while it fits below `end`. False if it was cut. No allocation: the log must
 * work when memory is out. */
static bool append_escaped(char **at, const char *end, const char *text, size_t text_length)
{
    for (size_t i = 0; i < text_length;) {
        unsigned char byte = (unsigned char)text[i];
        char piece[8];
        size_t length = utf8_length((const unsigned char *)text + i, text_length - i);
        size_t used = length == 0 ? 1 : length;
        if (byte == '"' || byte == '\\')
            length = (size_t)snprintf(piece, sizeof(piece), "\\%c", byte);
        else if (byte < 0x20u || byte == 0x7Fu)
            length = (size_t)snprintf(piece, sizeof(piece), "\\u%04x", byte);
        else if (length == 0)
            length = (size_t)snprintf(piece, sizeof(piece), "\\ufffd");
        else
            memcpy(piece, text + i, length);
        if ((size_t)(end - *at) < length)
            return false;
        memcpy(*at, piece, length);
        *at += length;
        i += used;
    }
    return true;
}

void gd_log(enum gd_log_level level, const char *topic, const char *format, ...)
{
    if (!wanted(level, topic))
        return;
    char message[LINE_BYTES_MAX];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(message, sizeof(message), format, list);
    va_end(list);
    bool whole = length >= 0 && (size_t)length < sizeof(message);
    size_t message_length = length < 0 ? 0 : whole ? (size_t)length : sizeof(message) - 1;

    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    static const char tail[] = "\",\"cut\":true}\n"; /* room for it is kept free */
    char line[LINE_BYTES_MAX];
    char *end = line + sizeof(line) - sizeof(tail);
    char *at = line;
    at += strftime(at, 64, "{\"time\":\"%Y-%m-%dT%H:%M:%S", &utc);
    at += snprintf(at, 128, ".%03ldZ\",\"level\":\"%s\",\"process\":\"", now.tv_nsec / 1000000, level_names[level]);
    whole = append_escaped(&at, end, config.process, strlen(config.process)) && whole;
    at += snprintf(at, 128, "\",\"topic\":\"%.64s\",\"message\":\"", topic);
    whole = append_escaped(&at, end, message, message_length) && whole;
    at += snprintf(at, sizeof(tail), "%s", whole ? "\"}\n" : tail);
    ssize_t written = write(STDERR_FILENO, line, (size_t)(at - line));
    (void)written; /* nowhere left to report it */
}
