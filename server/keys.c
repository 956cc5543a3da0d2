#include "server/keys.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"

#include <string.h>

#define FILE_BYTES_MAX (8u << 20)
#define DIGEST_LENGTH 64

struct key {
    char digest[DIGEST_LENGTH + 1];
    char *project;
};

struct gd_keys {
    struct key *items;
    int count;
};

static bool visible(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (text[i] <= 0x20 || text[i] >= 0x7f)
            return false;
    return true;
}

static bool project_name(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-'))
            return false;
    }
    return length >= 1 && length <= 64;
}

static bool add_line(struct gd_keys *keys, const char *line, size_t length, struct gd_error *err)
{
    const char *blank = " \t\r";
    size_t start = 0;
    while (start < length && strchr(blank, line[start]) != NULL)
        start++;
    while (length > start && strchr(blank, line[length - 1]) != NULL)
        length--;
    if (start == length || line[start] == '#')
        return true;
    size_t key_end = start;
    while (key_end < length && strchr(blank, line[key_end]) == NULL)
        key_end++;
    size_t project_start = key_end;
    while (project_start < length && strchr(blank, line[project_start]) != NULL)
        project_start++;
    size_t key_length = key_end - start;
    if (key_length < GD_KEY_LENGTH_MIN || key_length > GD_KEY_LENGTH_MAX || !visible(line + start, key_length))
        return gd_fail(err, GD_INVALID, "a key has %d to %d visible ASCII characters, this one has %zu",
                       GD_KEY_LENGTH_MIN, GD_KEY_LENGTH_MAX, key_length);
    const char *project = "default";
    size_t project_length = strlen(project);
    if (project_start < length) {
        project = line + project_start;
        project_length = length - project_start;
        if (!project_name(project, project_length))
            return gd_fail(err, GD_INVALID, "a project name has 1 to 64 letters, digits, \"_\" or \"-\"");
    }
    if (keys->count == GD_KEYS_MAX)
        return gd_fail(err, GD_INVALID, "more than %d keys", GD_KEYS_MAX);
    struct key *key = &keys->items[keys->count];
    gd_hash_sha256(line + start, key_length, key->digest);
    for (int i = 0; i < keys->count; i++)
        if (memcmp(keys->items[i].digest, key->digest, DIGEST_LENGTH) == 0)
            return gd_fail(err, GD_INVALID, "this key is there twice");
    key->project = gd_strndup(project, project_length);
    keys->count++;
    return true;
}

bool gd_keys_load(struct gd_keys **out, const char *path, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (!gd_file_read(path, FILE_BYTES_MAX, &text, &length, err)) {
        gd_error_context(err, "read keys");
        return false;
    }
    struct gd_keys *keys = gd_alloc(sizeof(*keys));
    keys->items = gd_alloc_array(GD_KEYS_MAX, sizeof(*keys->items));
    bool ok = true;
    int number = 0;
    for (size_t start = 0; ok && start < length;) {
        const char *newline = memchr(text + start, '\n', length - start);
        size_t end = newline != NULL ? (size_t)(newline - text) : length;
        number++;
        ok = add_line(keys, text + start, end - start, err);
        start = end + 1;
    }
    if (!ok)
        gd_error_context(err, "%s:%d", path, number);
    else if (keys->count == 0)
        ok = gd_fail(err, GD_INVALID, "%s: no key in it; one key a line, \"KEY [project]\"", path);
    explicit_bzero(text, length);
    gd_free(text);
    if (ok)
        *out = keys;
    else
        gd_keys_destroy(keys);
    return ok;
}

void gd_keys_destroy(struct gd_keys *keys)
{
    if (keys == NULL)
        return;
    for (int i = 0; i < keys->count; i++)
        gd_free(keys->items[i].project);
    gd_free(keys->items);
    gd_free(keys);
}

/* Every key is looked at to its last byte, found or not. */
const char *gd_keys_project(const struct gd_keys *keys, const char *key, size_t length)
{
    if (length < GD_KEY_LENGTH_MIN || length > GD_KEY_LENGTH_MAX)
        return NULL;
    char digest[DIGEST_LENGTH + 1];
    gd_hash_sha256(key, length, digest);
    const char *project = NULL;
    for (int i = 0; i < keys->count; i++) {
        volatile unsigned char different = 0;
        for (int byte = 0; byte < DIGEST_LENGTH; byte++)
            different = (unsigned char)(different | (digest[byte] ^ keys->items[i].digest[byte]));
        if (different == 0)
            project = keys->items[i].project;
    }
    return project;
}
