/* The multipart parser: the same parts whatever the split; the first byte chooses it. */
#include "server/multipart.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

struct seen {
    uint64_t hash;
};

static void mix(struct seen *seen, const void *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        seen->hash = (seen->hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
}

static bool begin(void *context, const char *name, const char *filename, struct gd_error *err)
{
    mix(context, name, strlen(name) + 1);
    if (filename != NULL)
        mix(context, filename, strlen(filename) + 1);
    return true;
}

static bool add(void *context, const void *bytes, size_t length, struct gd_error *err)
{
    mix(context, bytes, length);
    return true;
}

static bool end(void *context, struct gd_error *err)
{
    mix(context, "|", 1);
    return true;
}

static bool parse(const uint8_t *data, size_t size, size_t step, struct seen *seen)
{
    struct gd_error err = {0};
    struct gd_multipart *parser = NULL;
    struct gd_multipart_sink sink = {.context = seen, .begin = begin, .data = add, .end = end};
    if (!gd_multipart_create(&parser, "multipart/form-data; boundary=b", &sink, &err))
        abort();
    bool ok = true;
    for (size_t at = 0; ok && at < size; at += step)
        ok = gd_multipart_feed(parser, data + at, size - at < step ? size - at : step, &err);
    ok = ok && gd_multipart_finish(parser, &err);
    gd_multipart_destroy(parser);
    return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    struct seen whole = {0}, parts = {0};
    bool first = parse(data + 1, size - 1, size, &whole), second = parse(data + 1, size - 1, data[0] % 16 + 1u, &parts);
    if (first != second || (first && whole.hash != parts.hash))
        abort();
    return 0;
}
