#include "engine/text/tokenizer_flow.h"
#include "engine/base/alloc.h"

#include <assert.h>
#include <string.h>

static void push(struct gd_pieces *pieces, int32_t begin, int32_t end)
{
    if (pieces->count == pieces->capacity) {
        pieces->capacity = pieces->capacity < 64 ? 64 : pieces->capacity * 2;
        pieces->at = gd_realloc_array(pieces->at, (size_t)pieces->capacity, sizeof(pieces->at[0]));
    }
    pieces->at[pieces->count++] = (struct gd_range){begin, end};
}

void gd_flow_start(struct gd_flow *flow, const char *text, int32_t length, const int32_t *from, const int32_t *to,
                   int32_t base)
{
    assert((from == NULL) == (to == NULL));
    flow->bytes = text;
    flow->length = length;
    flow->from = from;
    flow->to = to;
    flow->base = base;
    flow->overflow = false;
    flow->limit = length > (GD_FLOW_BYTES_MAX - (1 << 20)) / 4 ? GD_FLOW_BYTES_MAX : (1 << 20) + 4 * length;
    flow->pieces.count = 0;
    flow->next.count = 0;
    if (length > 0)
        push(&flow->pieces, 0, length);
}

void gd_flow_release(struct gd_flow *flow)
{
    for (int i = 0; i < 2; i++) {
        gd_free(flow->buffer[i].bytes);
        gd_free(flow->buffer[i].from);
        gd_free(flow->buffer[i].to);
    }
    gd_free(flow->pieces.at);
    gd_free(flow->next.at);
    memset(flow, 0, sizeof(*flow));
}

void gd_flow_push(struct gd_flow *flow, int32_t begin, int32_t end)
{
    if (begin < end)
        push(&flow->next, begin, end);
}

void gd_flow_split_done(struct gd_flow *flow)
{
    struct gd_pieces done = flow->next;
    flow->next = flow->pieces;
    flow->next.count = 0;
    flow->pieces = done;
}

void gd_flow_rewrite(struct gd_flow *flow)
{
    flow->writing = flow->bytes == flow->buffer[0].bytes ? 1 : 0;
    flow->written = 0;
}

/* Room for `length` more bytes, or NULL. */
static struct gd_flow_buffer *reserve(struct gd_flow *flow, size_t length)
{
    struct gd_flow_buffer *buffer = &flow->buffer[flow->writing];
    if (flow->overflow || length > (size_t)(flow->limit - flow->written)) {
        flow->overflow = true;
        return NULL;
    }
    size_t needed = (size_t)flow->written + length;
    if (needed > (size_t)buffer->capacity) {
        size_t capacity = needed + needed / 2 + 64;
        buffer->bytes = gd_realloc_array(buffer->bytes, capacity, 1);
        buffer->from = gd_realloc_array(buffer->from, capacity, sizeof(buffer->from[0]));
        buffer->to = gd_realloc_array(buffer->to, capacity, sizeof(buffer->to[0]));
        buffer->capacity = (int32_t)capacity;
    }
    return buffer;
}

void gd_flow_put(struct gd_flow *flow, const char *bytes, size_t length, int32_t from, int32_t to)
{
    struct gd_flow_buffer *buffer = reserve(flow, length);
    if (buffer == NULL || length == 0)
        return;
    memcpy(buffer->bytes + flow->written, bytes, length);
    for (size_t i = 0; i < length; i++) {
        buffer->from[(size_t)flow->written + i] = from;
        buffer->to[(size_t)flow->written + i] = to;
    }
    flow->written += (int32_t)length;
}

void gd_flow_copy(struct gd_flow *flow, int32_t begin, int32_t end)
{
    struct gd_flow_buffer *buffer = reserve(flow, (size_t)(end - begin));
    if (buffer == NULL || begin == end)
        return;
    memcpy(buffer->bytes + flow->written, flow->bytes + begin, (size_t)(end - begin));
    for (int32_t i = begin; i < end; i++) {
        buffer->from[flow->written + i - begin] = gd_flow_from(flow, i);
        buffer->to[flow->written + i - begin] = gd_flow_to(flow, i);
    }
    flow->written += end - begin;
}

void gd_flow_drop_end(struct gd_flow *flow, const char *text)
{
    int32_t length = (int32_t)strlen(text);
    const char *bytes = flow->buffer[flow->writing].bytes;
    while (flow->written >= length && memcmp(bytes + flow->written - length, text, (size_t)length) == 0)
        flow->written -= length;
}

bool gd_flow_rewritten(struct gd_flow *flow, struct gd_error *err)
{
    if (flow->overflow)
        return gd_fail(err, GD_TOO_LARGE, "the tokenizer's rules make the text larger than %d bytes", flow->limit);
    const struct gd_flow_buffer *buffer = &flow->buffer[flow->writing];
    flow->bytes = buffer->bytes == NULL ? "" : buffer->bytes;
    flow->from = buffer->from;
    flow->to = buffer->to;
    flow->length = flow->written;
    gd_flow_split_done(flow);
    return true;
}
