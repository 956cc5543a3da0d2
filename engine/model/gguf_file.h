/*
 * gguf_file.h - what the two halves of the GGUF reader share: gguf.c finds things, gguf_metadata.c reads values.
 *
 * Why      The parser of the file and the typed access to its metadata are two ideas.
 * Memory   Belongs to the gd_gguf.
 * Threads  One.
 * Errors   none
 * Limits   none
 * Life     the file's
 */
#ifndef GD_MODEL_GGUF_FILE_H
#define GD_MODEL_GGUF_FILE_H

#include "engine/base/arena.h"
#include "engine/base/fsio.h"
#include "engine/model/gguf.h"

enum gd_gguf_kind {
    GD_GGUF_U8,
    GD_GGUF_I8,
    GD_GGUF_U16,
    GD_GGUF_I16,
    GD_GGUF_U32,
    GD_GGUF_I32,
    GD_GGUF_F32,
    GD_GGUF_BOOL,
    GD_GGUF_STRING,
    GD_GGUF_ARRAY,
    GD_GGUF_U64,
    GD_GGUF_I64,
    GD_GGUF_F64,
    GD_GGUF_KIND_COUNT
};

struct gd_gguf_value {
    const char *key;
    uint32_t kind;
    uint32_t item_kind;         /* of an array */
    uint64_t count;             /* of an array */
    const unsigned char *bytes; /* the value, or the first item; not aligned; inside the file, all of it */
};

struct gd_gguf_tensor {
    const char *name;
    uint64_t offset; /* in the data section */
    size_t size_bytes;
    struct gd_tensor tensor;
};

struct gd_gguf {
    struct gd_map map;
    struct gd_arena arena;
    struct gd_gguf_value *values; /* sorted by key */
    int value_count;
    struct gd_gguf_tensor *tensors;
    int *by_name;
    int tensor_count;
};

const char *gd_gguf_kind_name(uint32_t kind);
/* Bytes of a value of fixed size; 0 for strings, arrays and unknown kinds. */
size_t gd_gguf_kind_bytes(uint32_t kind);
const struct gd_gguf_value *gd_gguf_value(const struct gd_gguf *file, const char *key); /* or NULL */

#endif
