/* Frames: a u32 little-endian length, then that many bytes of JSON. Refuses what a sound peer never sends. */
#include "engine/worker/protocol.h"

#include "engine/base/alloc.h"
#include <math.h>
#include <string.h>

#define PREFIX_BYTES 4
/* One whole frame, the read that completed it, and what follows it. */
#define READER_BYTES_MAX ((size_t)GD_FRAME_BYTES_MAX + (16u << 20))

void gd_frame_reader_init(struct gd_frame_reader *reader)
{
    gd_buf_init(&reader->buf, READER_BYTES_MAX);
    reader->consumed = 0;
}

void gd_frame_reader_release(struct gd_frame_reader *reader)
{
    gd_buf_release(&reader->buf);
    reader->consumed = 0;
}

/* Moves the unread tail to the front, so that the buffer is bounded by one frame and one read. */
static void compact(struct gd_frame_reader *reader)
{
    if (reader->consumed == 0)
        return;
    size_t rest = reader->buf.length - reader->consumed;
    if (rest > 0)
        memmove(reader->buf.data, reader->buf.data + reader->consumed, rest);
    reader->buf.length = rest;
    reader->consumed = 0;
}

void gd_frame_reader_feed(struct gd_frame_reader *reader, const void *bytes, size_t length)
{
    compact(reader);
    gd_buf_append(&reader->buf, bytes, length);
}

bool gd_frame_next(struct gd_frame_reader *reader, cJSON **out, struct gd_error *err)
{
    *out = NULL;
    if (reader->buf.overflow)
        return gd_fail(err, GD_INVALID, "more than %zu bytes wait in the frame reader: read frames before feeding more",
                       READER_BYTES_MAX);
    size_t available = reader->buf.length - reader->consumed;
    if (available < PREFIX_BYTES)
        return true;
    const unsigned char *at = (const unsigned char *)reader->buf.data + reader->consumed;
    size_t length = (size_t)at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
    if (length == 0 || length > GD_FRAME_BYTES_MAX)
        return gd_fail(err, GD_INVALID, "frame of %zu bytes: a frame has 1 to %u", length, GD_FRAME_BYTES_MAX);
    if (available - PREFIX_BYTES < length)
        return true;
    cJSON *message = gd_json_parse((const char *)at + PREFIX_BYTES, length, GD_FRAME_BYTES_MAX, err);
    if (message == NULL) {
        gd_error_context(err, "frame");
        return false;
    }
    const cJSON *type = cJSON_IsObject(message) ? gd_json_find(message, "type") : NULL;
    if (!cJSON_IsString(type)) {
        cJSON_Delete(message);
        return gd_fail_param(err, GD_INVALID, "type", "frame without a \"type\": frames are objects with a type");
    }
    reader->consumed += PREFIX_BYTES + length;
    *out = message;
    return true;
}

void gd_frame_write(struct gd_buf *out, const cJSON *message)
{
    char *text = gd_json_print(message);
    size_t length = strlen(text);
    if (length > GD_FRAME_BYTES_MAX) {
        out->overflow = true;
    } else {
        unsigned char prefix[PREFIX_BYTES] = {length & 0xff, length >> 8 & 0xff, length >> 16 & 0xff, length >> 24 & 0xff};
        size_t before = out->length;
        gd_buf_append(out, prefix, sizeof prefix);
        gd_buf_append(out, text, length);
        if (out->overflow && before != out->length)
            out->length = before; /* the prefix alone would desynchronise the peer */
    }
    gd_free(text);
}

int64_t gd_frame_int(const cJSON *frame, const char *name, int64_t otherwise)
{
    const cJSON *value = gd_json_find(frame, name);
    return cJSON_IsNumber(value) && fabs(value->valuedouble) < 9e15 ? (int64_t)value->valuedouble : otherwise;
}

double gd_frame_number(const cJSON *frame, const char *name, double otherwise)
{
    const cJSON *value = gd_json_find(frame, name);
    return cJSON_IsNumber(value) ? value->valuedouble : otherwise;
}

const char *gd_frame_text(const cJSON *frame, const char *name, const char *otherwise)
{
    const cJSON *value = gd_json_find(frame, name);
    return cJSON_IsString(value) ? value->valuestring : otherwise;
}

cJSON *gd_error_to_json(const struct gd_error *err)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "code", gd_code_wire(err->code));
    cJSON_AddStringToObject(json, "message", err->message);
    if (err->param[0] != '\0')
        cJSON_AddStringToObject(json, "param", err->param);
    else
        cJSON_AddNullToObject(json, "param");
    return json;
}

void gd_error_from_json(const cJSON *json, struct gd_error *err)
{
    const cJSON *code = cJSON_IsObject(json) ? gd_json_find(json, "code") : NULL;
    const cJSON *message = cJSON_IsObject(json) ? gd_json_find(json, "message") : NULL;
    const cJSON *param = cJSON_IsObject(json) ? gd_json_find(json, "param") : NULL;
    enum gd_code value = cJSON_IsString(code) ? gd_code_from_wire(code->valuestring) : GD_INTERNAL;
    if (value == GD_OK)
        value = GD_INTERNAL;
    gd_error_clear(err);
    gd_fail_param(err, value, cJSON_IsString(param) ? param->valuestring : "", "%s",
                  cJSON_IsString(message) && message->valuestring[0] != '\0' ? message->valuestring
                                                                             : "the worker gave no reason");
}
