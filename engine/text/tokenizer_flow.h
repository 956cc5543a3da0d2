/*
 * tokenizer_flow.h - a text on its way through normalizers and pre-tokenizers, cut in pieces, with its source ranges.
 *
 * Why      Ids need the rewritten text, loss masks need to know which bytes of the given text each token stands for.
 * Memory   A flow borrows the text until a step rewrites it, then owns two buffers that it writes in turn.
 * Threads  One thread at a time.
 * Errors   GD_TOO_LARGE when rewriting lets the text grow beyond the limit (checked by gd_flow_rewritten).
 * Limits   A rewritten text of 1 MiB + 4 bytes per source byte, at most GD_FLOW_BYTES_MAX.
 * Life     zeroed -> start -> steps ... -> start again ... -> release.
 */
#ifndef GD_TEXT_TOKENIZER_FLOW_H
#define GD_TEXT_TOKENIZER_FLOW_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define GD_FLOW_BYTES_MAX (1 << 28)

struct gd_range {
    int32_t begin, end;
};

struct gd_pieces {
    struct gd_range *at;
    int32_t count, capacity;
};

struct gd_flow_buffer {
    char *bytes;
    int32_t *from, *to;
    int32_t capacity;
};

struct gd_flow {
    const char *bytes;
    int32_t length;
    const int32_t *from, *to; /* source range of each byte; NULL: byte i is source byte base + i */
    int32_t base;
    struct gd_pieces pieces, next;    /* ascending, not empty; `next` is being built */
    struct gd_flow_buffer buffer[2];
    int writing;                      /* index of the buffer that is not read from */
    int32_t written, limit;
    bool overflow;
};

/* Makes text[0..length) the content, in one piece. from/to as above, borrowed. */
void gd_flow_start(struct gd_flow *flow, const char *text, int32_t length, const int32_t *from, const int32_t *to,
                   int32_t base);
void gd_flow_release(struct gd_flow *flow);

/* Splitting: push the new pieces in order (empty ones are left out), then take them over. */
void gd_flow_push(struct gd_flow *flow, int32_t begin, int32_t end);
void gd_flow_split_done(struct gd_flow *flow);

/* Rewriting: put or copy the new bytes and push the pieces of the new text, then take both over. */
void gd_flow_rewrite(struct gd_flow *flow);
void gd_flow_put(struct gd_flow *flow, const char *bytes, size_t length, int32_t from, int32_t to);
void gd_flow_copy(struct gd_flow *flow, int32_t begin, int32_t end);
/* Takes every `text` off the end of what is written. */
void gd_flow_drop_end(struct gd_flow *flow, const char *text);
GD_MUST_CHECK bool gd_flow_rewritten(struct gd_flow *flow, struct gd_error *err);

static inline int32_t gd_flow_from(const struct gd_flow *flow, int32_t at)
{
    return flow->from != NULL ? flow->from[at] : flow->base + at;
}

static inline int32_t gd_flow_to(const struct gd_flow *flow, int32_t at)
{
    return flow->to != NULL ? flow->to[at] : flow->base + at + 1;
}

#endif
