/*
 * config.c - see config.h. One table: a key is a line in it, in the file, in the environment and on the command line.
 */
#include "server/config.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/json.h"
#include "engine/base/memory.h"
#include "engine/eval/sandbox.h"
#include "engine/worker/protocol.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <string.h>

/* What the server itself takes. */
#define SERVER_BYTES (UINT64_C(48) << 20)

enum kind { TEXT, BOOL, INT, BYTES, LISTEN };

struct setting {
    const char *key;
    enum kind kind;
    size_t offset;
    int64_t min, max;
};
#define AT(field) offsetof(struct gd_config, field)

static const struct setting settings[] = {
    {"engine.cache_bytes", BYTES, AT(cache_bytes), 1 << 20, INT64_C(1) << 46},
    {"engine.device", TEXT, AT(device), 0, 0},
    {"engine.memory_limit", BYTES, AT(memory_limit), INT64_C(160) << 20, INT64_C(1) << 46},
    {"engine.packed_cache_bytes", BYTES, AT(packed_cache_bytes), 0, INT64_C(1) << 46},
    {"engine.threads", INT, AT(threads), 0, 4096},
    {"graders.python", TEXT, AT(python), 0, 0},
    {"graders.python_memory_bytes", BYTES, AT(python_memory_bytes), INT64_C(64) << 20, INT64_C(1) << 46},
    {"graders.python_seconds", INT, AT(python_seconds), 1, 60}, /* a worker that grades answers nobody meanwhile */
    {"jobs.jobs_per_pass", INT, AT(jobs_per_pass), 1, GD_WORKER_JOBS_MAX},
    {"jobs.keep_checkpoints", INT, AT(keep_checkpoints), 1, 10000},
    {"server.allowed_hosts", TEXT, AT(allowed_hosts), 0, 0},
    {"server.api_key_file", TEXT, AT(api_key_file), 0, 0},
    {"server.connection_limit", INT, AT(connection_limit), 8, 100000},
    {"server.cors_origins", TEXT, AT(cors_origins), 0, 0},
    {"server.data_dir", TEXT, AT(data_dir), 0, 0},
    {"server.insecure_http", BOOL, AT(insecure_http), 0, 0},
    {"server.listen", LISTEN, 0, 0, 0},
    {"server.models", TEXT, AT(models_dir), 0, 0},
    {"server.request_timeout_seconds", INT, AT(request_timeout_seconds), 1, 3600},
    {"server.upload_max_bytes", BYTES, AT(upload_max_bytes), 1024, INT64_C(1) << 46},
};

void gd_config_init(struct gd_config *config)
{
    *config = (struct gd_config){
        .listen_host = gd_strdup("127.0.0.1"),
        .listen_port = 8900,
        .device = gd_strdup("auto"),
        .upload_max_bytes = UINT64_C(512) << 20,
        .connection_limit = 1024,
        .request_timeout_seconds = 30,
        .packed_cache_bytes = UINT64_C(8) << 30,
        .keep_checkpoints = 3,
        .jobs_per_pass = 4,
        .python = gd_strdup(GD_SANDBOX_INTERPRETER),
        .python_seconds = GD_SANDBOX_SECONDS,
        .python_memory_bytes = GD_SANDBOX_MEMORY_BYTES,
    };
}

void gd_config_release(struct gd_config *config)
{
    char *strings[] = {config->data_dir,     config->models_dir,   config->listen_host,  config->device,
                       config->api_key_file, config->cors_origins, config->allowed_hosts, config->python};
    for (size_t i = 0; i < GD_COUNT(strings); i++)
        gd_free(strings[i]);
    *config = (struct gd_config){0};
}

static void replace(char **slot, const char *text, size_t length)
{
    char *copy = gd_strndup(text, length);
    gd_free(*slot);
    *slot = copy;
}

static bool parse_int(const char *value, int64_t *out)
{
    char *end;
    errno = 0;
    long long number = strtoll(value, &end, 10);
    *out = number;
    return end != value && *end == 0 && errno == 0 && !isspace((unsigned char)value[0]);
}

/* 512, 512k, 512KiB, 512M, 2GiB: powers of 1024. */
static bool parse_bytes(const char *value, int64_t *out)
{
    static const char *const units[] = {"", "k", "m", "g", "t"};
    size_t digits = strspn(value, "0123456789");
    if (digits == 0 || digits > 15)
        return false;
    int64_t number = strtoll(value, NULL, 10);
    char unit[4] = {0};
    size_t length = strlen(value + digits);
    if (length > 3)
        return false;
    for (size_t i = 0; i < length; i++)
        unit[i] = (char)tolower((unsigned char)value[digits + i]);
    if (length == 3 && strcmp(unit + 1, "ib") == 0)
        unit[1] = 0;
    for (size_t i = 0; i < GD_COUNT(units); i++)
        if (strcmp(unit, units[i]) == 0)
            return !__builtin_mul_overflow(number, INT64_C(1) << (10 * i), out);
    return false;
}

static bool set_listen(struct gd_config *config, const char *value)
{
    const char *colon = strrchr(value, ':');
    int64_t port;
    if (colon == NULL || !parse_int(colon + 1, &port) || port < 0 || port > 65535)
        return false;
    size_t length = (size_t)(colon - value);
    if (length >= 2 && value[0] == '[' && value[length - 1] == ']') {
        value++;
        length -= 2;
    } else if (memchr(value, ':', length) != NULL) {
        return false;
    }
    if (length == 0)
        return false;
    replace(&config->listen_host, value, length);
    config->listen_port = (int)port;
    return true;
}

static bool parse_bool(const char *value, bool *out)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t i = 0; i < GD_COUNT(words); i++) {
        if (strcmp(value, words[i]) == 0) {
            *out = i % 2 == 1;
            return true;
        }
    }
    return false;
}

static bool apply(struct gd_config *config, const struct setting *setting, const char *value, const char *origin,
                  struct gd_error *err)
{
    void *slot = (char *)config + setting->offset;
    int64_t number = 0;
    switch (setting->kind) {
    case TEXT:
        if (value[0] == 0)
            return gd_fail_param(err, GD_INVALID, setting->key, "%s: is empty", origin);
        replace(slot, value, strlen(value));
        return true;
    case BOOL:
        if (!parse_bool(value, slot))
            return gd_fail_param(err, GD_INVALID, setting->key, "%s: \"%.64s\" is neither true nor false", origin, value);
        return true;
    case LISTEN:
        if (!set_listen(config, value))
            return gd_fail_param(err, GD_INVALID, setting->key,
                                 "%s: \"%.64s\" is not HOST:PORT (127.0.0.1:8900, [::1]:8900; port 0 picks one)", origin,
                                 value);
        return true;
    case INT:
    case BYTES:
        break;
    }
    bool is_number = setting->kind == INT ? parse_int(value, &number) : parse_bytes(value, &number);
    if (!is_number || number < setting->min || number > setting->max)
        return gd_fail_param(err, GD_INVALID, setting->key, "%s: \"%.64s\" is not a whole number from %lld to %lld%s",
                             origin, value, (long long)setting->min, (long long)setting->max,
                             setting->kind == BYTES ? " (bytes; k, M, G are understood)" : "");
    if (setting->kind == INT)
        *(int *)slot = (int)number;
    else
        *(uint64_t *)slot = (uint64_t)number;
    return true;
}

bool gd_config_set(struct gd_config *config, const char *key, const char *value, const char *origin,
                   struct gd_error *err)
{
    const char *names[GD_COUNT(settings)];
    for (size_t i = 0; i < GD_COUNT(settings); i++) {
        if (strcmp(settings[i].key, key) == 0)
            return apply(config, &settings[i], value, origin, err);
        names[i] = settings[i].key;
    }
    const char *near = gd_nearest_name(key, names, GD_COUNT(names));
    return gd_fail(err, GD_UNKNOWN_FIELD, "%s: there is no setting \"%.64s\"%s%s%s", origin, key,
                   near != NULL ? "; did you mean \"" : "", near != NULL ? near : "", near != NULL ? "\"?" : "");
}

/* inih reads lines into a buffer of this size and would split a longer one silently. */
#define LINE_BYTES_MAX 198

struct file_reader {
    struct gd_config *config;
    struct gd_error *err;
    bool seen[GD_COUNT(settings)];
};

static int on_line(void *context, const char *section, const char *name, const char *value)
{
    struct file_reader *reader = context;
    if (reader->err->code != GD_OK)
        return 0;
    char *key = section[0] != 0 ? gd_format("%s.%s", section, name) : gd_strdup(name);
    bool ok = true;
    for (size_t i = 0; ok && i < GD_COUNT(settings); i++) {
        if (strcmp(settings[i].key, key) != 0)
            continue;
        if (reader->seen[i]) /* also what inih makes of an indented line */
            ok = gd_fail_param(reader->err, GD_INVALID, key, "%s is given twice (or its next line is indented)", key);
        reader->seen[i] = true;
    }
    ok = ok && gd_config_set(reader->config, key, value, key, reader->err);
    gd_free(key);
    return ok;
}

static bool check_lines(const char *path, const char *text, size_t length, struct gd_error *err)
{
    int number = 1;
    for (size_t start = 0; start < length; number++) {
        const char *newline = memchr(text + start, '\n', length - start);
        size_t end = newline != NULL ? (size_t)(newline - text) : length;
        if (end - start > LINE_BYTES_MAX)
            return gd_fail(err, GD_INVALID, "%s:%d: a line has at most %d bytes, this one %zu", path, number,
                           LINE_BYTES_MAX, end - start);
        if (memchr(text + start, 0, end - start) != NULL)
            return gd_fail(err, GD_INVALID, "%s:%d: has a NUL byte", path, number);
        start = end + 1;
    }
    return true;
}

bool gd_config_load_file(struct gd_config *config, const char *path, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (!gd_file_read(path, 1 << 20, &text, &length, err)) {
        gd_error_context(err, "read configuration");
        return false;
    }
    struct file_reader reader = {.config = config, .err = err};
    int line = 0;
    bool readable = check_lines(path, text, length, err);
    if (readable)
        line = ini_parse_string(text, on_line, &reader);
    gd_free(text);
    if (!readable)
        return false;
    if (err->code != GD_OK) {
        gd_error_context(err, "%s:%d", path, line);
        return false;
    }
    if (line > 0)
        return gd_fail(err, GD_INVALID, "%s:%d: not \"[section]\" or \"name = value\"", path, line);
    if (line < 0)
        return gd_fail(err, GD_IO, "%s: cannot be read", path);
    return true;
}

/* server.data_dir -> GRAFTD_SERVER_DATA_DIR */
bool gd_config_load_environment(struct gd_config *config, struct gd_error *err)
{
    for (size_t i = 0; i < GD_COUNT(settings); i++) {
        char name[96];
        int length = snprintf(name, sizeof(name), "GRAFTD_%s", settings[i].key);
        for (int c = 0; c < length; c++)
            name[c] = name[c] == '.' ? '_' : (char)toupper((unsigned char)name[c]);
        const char *value = getenv(name);
        if (value != NULL && !gd_config_set(config, settings[i].key, value, name, err))
            return false;
    }
    return true;
}

static bool is_loopback(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (strcmp(host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return (ntohl(v4.s_addr) >> 24) == 127;
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* scheme://host[:port], nothing behind it: what a browser sends. */
static bool is_origin(const char *text, size_t length)
{
    size_t scheme = length > 8 && memcmp(text, "https://", 8) == 0 ? 8 : length > 7 && memcmp(text, "http://", 7) == 0 ? 7 : 0;
    if (scheme == 0)
        return false;
    for (size_t i = scheme; i < length; i++)
        if (text[i] <= ' ' || strchr("/?#*@", text[i]) != NULL)
            return false;
    return true;
}

bool gd_config_check_python(const struct gd_config *config, struct gd_error *err)
{
    return config->python[0] == '/' || strcmp(config->python, "off") == 0 ||
           gd_fail_param(err, GD_INVALID, "graders.python",
                         "graders.python: \"%.64s\" is neither an absolute path nor \"off\"", config->python);
}

int gd_config_devices(const struct gd_config *config, char names[GD_DEVICES_MAX][GD_DEVICE_NAME_BYTES])
{
    int count = 0;
    const char *list = config->device != NULL ? config->device : "auto";
    for (const char *entry = list; *entry != '\0' && count < GD_DEVICES_MAX;) {
        size_t length = strcspn(entry, ",");
        snprintf(names[count++], GD_DEVICE_NAME_BYTES, "%.*s", (int)length, entry);
        entry += length + (entry[length] == ',');
    }
    return count;
}

/* "auto", "cpu" or "cuda:N", as one entry of the list. */
static bool is_device(const char *entry, size_t length)
{
    if ((length == 4 && memcmp(entry, "auto", 4) == 0) || (length == 3 && memcmp(entry, "cpu", 3) == 0))
        return true;
    return length > 5 && length < 9 && memcmp(entry, "cuda:", 5) == 0 && strspn(entry + 5, "0123456789") == length - 5;
}

static bool check_devices(const struct gd_config *config, struct gd_error *err)
{
    char names[GD_DEVICES_MAX][GD_DEVICE_NAME_BYTES];
    int entries = 0;
    for (const char *entry = config->device;; entry++) {
        size_t length = strcspn(entry, ",");
        if (!is_device(entry, length))
            return gd_fail_param(err, GD_INVALID, "engine.device", "engine.device: \"%.*s\" is no device; name one, or several with "
                                 "commas between them and a worker each: auto, cpu, cuda:0, cuda:1, ...",
                                 (int)(length < 64 ? length : 64), entry);
        entries++;
        entry += length;
        if (*entry == '\0')
            break;
    }
    if (entries > GD_DEVICES_MAX)
        return gd_fail_param(err, GD_INVALID, "engine.device", "engine.device: %d devices, at most %d", entries, GD_DEVICES_MAX);
    int count = gd_config_devices(config, names);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < i; k++)
            if (strncmp(names[i], "cuda:", 5) == 0 && atoi(names[i] + 5) == atoi(names[k] + 5) && strncmp(names[k], "cuda:", 5) == 0)
                return gd_fail_param(err, GD_INVALID, "engine.device", "engine.device: %s is named twice; a device has one worker", names[i]);
    return true;
}

int gd_config_worker_threads(const struct gd_config *config)
{
    char names[GD_DEVICES_MAX][GD_DEVICE_NAME_BYTES];
    int workers = gd_config_devices(config, names);
    if (config->threads > 0 || workers == 1)
        return config->threads;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores / workers > 1 ? (int)(cores / workers) : 1;
}

bool gd_config_check(const struct gd_config *config, struct gd_error *err)
{
    if (!check_devices(config, err))
        return false;
    if (!gd_config_check_python(config, err))
        return false;
    if (config->data_dir == NULL)
        return gd_fail_param(err, GD_MISSING, "server.data_dir", "no data folder; give --data-dir DIR");
    if (config->models_dir == NULL)
        return gd_fail_param(err, GD_MISSING, "server.models", "no models folder; give --models DIR");
    if (!is_loopback(config->listen_host)) {
        if (config->api_key_file == NULL)
            return gd_fail_param(err, GD_INVALID, "server.listen",
                                 "%s is not a loopback address, and without keys anybody who reaches it may use it; give "
                                 "--api-key-file FILE", config->listen_host);
        if (!config->insecure_http)
            return gd_fail_param(err, GD_INVALID, "server.listen",
                                 "%s is not a loopback address, and keys would travel unencrypted; put a TLS proxy in "
                                 "front, or set server.insecure_http = true", config->listen_host);
    }
    for (const char *entry = config->cors_origins; entry != NULL && *entry != 0;) {
        entry += strspn(entry, ", \t");
        size_t length = strcspn(entry, ", \t");
        if (length > 0 && !is_origin(entry, length))
            return gd_fail_param(err, GD_INVALID, "server.cors_origins",
                                 "\"%.*s\" is not an origin (https://host or https://host:port; no \"*\", no path)",
                                 (int)(length < 128 ? length : 128), entry);
        entry += length;
    }
    return true;
}

uint64_t gd_config_worker_bytes(const struct gd_config *config)
{
    uint64_t all = gd_memory_bytes();
    if (config->memory_limit > 0 && config->memory_limit < all)
        all = config->memory_limit;
    char names[GD_DEVICES_MAX][GD_DEVICE_NAME_BYTES];
    return (all > 2 * SERVER_BYTES ? all - SERVER_BYTES : all / 2) / (uint64_t)gd_config_devices(config, names);
}

void gd_config_apply_sandbox(const struct gd_config *config)
{
    gd_sandbox_configure(&(struct gd_sandbox_settings){.interpreter = strcmp(config->python, "off") == 0 ? NULL : config->python,
                                                       .seconds = config->python_seconds,
                                                       .memory_bytes = config->python_memory_bytes});
}
