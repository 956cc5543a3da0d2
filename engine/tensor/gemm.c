#include "engine/tensor/gemm.h"
#include "engine/base/alloc.h"
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <oneapi/dnnl/dnnl.h>

/* Making a primitive generates code (milliseconds), so they are kept, keyed by shape and not by weight: the layers of
 * a model share them. Decoding sees many row counts, which is why there is a bound. */
#define PRIMITIVES_MAX 512
#define PROBE_ROWS 256 /* packed layouts are asked for at this many rows and then used for all */

struct key {
    struct gd_gemm gemm;
    bool packed;
};

struct primitive {
    struct key key;
    uint64_t used;                    /* tick of the last use */
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c, scratch;   /* b is absent where the packed operand brings its own */
    size_t scratch_bytes;
};

struct gd_gemm_packed {
    int64_t k, n;
    enum gd_dtype dtype;
    dnnl_memory_desc_t desc;
    dnnl_memory_t memory;
    void *data;
    size_t size_bytes;
    struct gd_map map;                /* that data are in; else they are ours */
};

static dnnl_engine_t engine;          /* of all threads */

/* Each thread that multiplies has its own: one that is in a parallel region multiplies alone, the engine thread with all. */
static _Thread_local struct {
    dnnl_stream_t stream;
    struct primitive *entries[PRIMITIVES_MAX];
    int count;
    uint64_t tick;
    void *scratch;
    size_t scratch_bytes;
} library;

static bool check(dnnl_status_t status, const char *what, struct gd_error *err)
{
    if (status == dnnl_success)
        return true;
    if (status == dnnl_out_of_memory)
        return gd_fail(err, GD_NO_MEMORY, "oneDNN: no memory to %s", what);
    return gd_fail(err, GD_INTERNAL, "oneDNN cannot %s (status %d)", what, (int)status);
}

static bool start(struct gd_error *err)
{
    if (library.stream != NULL)
        return true;
    dnnl_status_t status = dnnl_success;
#pragma omp critical(gd_gemm_engine)
    if (engine == NULL)
        status = dnnl_engine_create(&engine, dnnl_cpu, 0);
    return check(status, "start on this processor", err) &&
           check(dnnl_stream_create(&library.stream, engine, dnnl_stream_default_flags), "open a stream", err);
}

static dnnl_data_type_t dnnl_dtype(enum gd_dtype dtype)
{
    assert(dtype == GD_F32 || dtype == GD_BF16);
    return dtype == GD_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* `stride`: elements from row to row as stored; 0: rows touch. */
static bool matrix_desc(dnnl_memory_desc_t *desc, int64_t rows, int64_t columns, bool transposed, int64_t stride,
                        enum gd_dtype dtype, struct gd_error *err)
{
    int64_t apart = stride != 0 ? stride : transposed ? rows : columns;
    dnnl_dims_t sizes = {rows, columns}, strides = {transposed ? 1 : apart, transposed ? apart : 1};
    return check(dnnl_memory_desc_init_by_strides(desc, 2, sizes, dnnl_dtype(dtype), strides), "describe a matrix", err);
}

static bool any_desc(dnnl_memory_desc_t *desc, int64_t rows, int64_t columns, enum gd_dtype dtype, struct gd_error *err)
{
    dnnl_dims_t sizes = {rows, columns};
    return check(dnnl_memory_desc_init_by_tag(desc, 2, sizes, dnnl_dtype(dtype), dnnl_format_tag_any),
                 "describe a packed matrix", err);
}

/* The product's description; b: its right operand, packed or plain or still to be chosen by the library. */
static bool describe(dnnl_primitive_desc_t *out, const struct gd_gemm *gemm, const dnnl_memory_desc_t *b,
                     struct gd_error *err)
{
    dnnl_memory_desc_t a, c;
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t sum = NULL;
    bool ok = matrix_desc(&a, gemm->m, gemm->k, gemm->transpose_a, gemm->lda, gemm->in, err) &&
              matrix_desc(&c, gemm->m, gemm->n, false, gemm->ldc, gemm->out, err) &&
              check(dnnl_matmul_desc_init(&matmul, &a, b, NULL, &c), "describe a product", err) &&
              check(dnnl_primitive_attr_create(&attributes), "make attributes", err) &&
              check(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user), "set attributes", err);
    if (ok && gemm->alpha != 1.0f)
        ok = check(dnnl_primitive_attr_set_output_scales(attributes, 1, 0, &gemm->alpha), "set a scale", err);
    if (ok && gemm->accumulate)
        ok = check(dnnl_post_ops_create(&sum), "make post-ops", err) &&
             check(dnnl_post_ops_append_sum(sum, 1.0f), "add a sum", err) &&
             check(dnnl_primitive_attr_set_post_ops(attributes, sum), "set post-ops", err);
    if (ok)
        ok = check(dnnl_primitive_desc_create(out, (const_dnnl_op_desc_t)&matmul, attributes, engine, NULL),
                   "choose a product", err);
    if (!ok)
        gd_error_context(err, "product %" PRId64 "x%" PRId64 "x%" PRId64, gemm->m, gemm->k, gemm->n);
    dnnl_post_ops_destroy(sum);
    dnnl_primitive_attr_destroy(attributes);
    return ok;
}

/* ---- the cache of primitives ---- */

static void destroy_primitive(struct primitive *entry)
{
    dnnl_memory_destroy(entry->a);
    dnnl_memory_destroy(entry->b);
    dnnl_memory_destroy(entry->c);
    dnnl_memory_destroy(entry->scratch);
    dnnl_primitive_destroy(entry->primitive);
    gd_free(entry);
}

static bool same_key(const struct key *x, const struct key *y)
{
    const struct gd_gemm *a = &x->gemm, *b = &y->gemm;
    return a->m == b->m && a->n == b->n && a->k == b->k && a->transpose_a == b->transpose_a &&
           a->transpose_b == b->transpose_b && a->in == b->in && a->out == b->out && a->accumulate == b->accumulate &&
           memcmp(&a->alpha, &b->alpha, sizeof(a->alpha)) == 0 && a->lda == b->lda && a->ldc == b->ldc && x->packed == y->packed;
}

static struct primitive *find_primitive(const struct key *key)
{
    for (int i = 0; i < library.count; i++) {
        struct primitive *entry = library.entries[i];
        if (same_key(&entry->key, key)) {
            if (i > 0) { /* recent ones drift to the front, so that the search stays short */
                library.entries[i] = library.entries[i / 2];
                library.entries[i / 2] = entry;
            }
            return entry;
        }
    }
    return NULL;
}

static void keep_primitive(struct primitive *entry)
{
    if (library.count < PRIMITIVES_MAX) {
        library.entries[library.count++] = entry;
        return;
    }
    int oldest = 0;
    for (int i = 1; i < library.count; i++)
        if (library.entries[i]->used < library.entries[oldest]->used)
            oldest = i;
    destroy_primitive(library.entries[oldest]);
    library.entries[oldest] = entry;
}

static bool bare_memory(dnnl_memory_t *out, const dnnl_memory_desc_t *desc, struct gd_error *err)
{
    return check(dnnl_memory_create(out, desc, engine, DNNL_MEMORY_NONE), "make a view", err);
}

static bool make_primitive(struct primitive **out, const struct key *key, const dnnl_memory_desc_t *b, struct gd_error *err)
{
    struct primitive *entry = gd_alloc(sizeof(*entry));
    entry->key = *key;
    dnnl_primitive_desc_t desc = NULL;
    bool ok = describe(&desc, &key->gemm, b, err) && check(dnnl_primitive_create(&entry->primitive, desc), "make a product", err);
    if (ok) {
        const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
        entry->scratch_bytes = dnnl_memory_desc_get_size(scratch);
        ok = bare_memory(&entry->a, dnnl_primitive_desc_query_md(desc, dnnl_query_src_md, 0), err) &&
             bare_memory(&entry->c, dnnl_primitive_desc_query_md(desc, dnnl_query_dst_md, 0), err) &&
             bare_memory(&entry->scratch, scratch, err) && (key->packed || bare_memory(&entry->b, b, err));
    }
    dnnl_primitive_desc_destroy(desc);
    if (!ok) {
        destroy_primitive(entry);
        return false;
    }
    keep_primitive(entry);
    *out = entry;
    return true;
}

static bool reserve_scratch(size_t size_bytes, struct gd_error *err)
{
    if (size_bytes <= library.scratch_bytes)
        return true;
    gd_large_free(library.scratch, library.scratch_bytes);
    library.scratch = NULL;
    library.scratch_bytes = 0;
    if (!gd_large_alloc(&library.scratch, size_bytes, "scratch of a matrix product", err))
        return false;
    library.scratch_bytes = size_bytes;
    return true;
}

static bool execute(const struct key *key, const dnnl_memory_desc_t *b_desc, dnnl_memory_t b_memory, const void *a,
                    const void *b, void *c, struct gd_error *err)
{
    struct primitive *entry = start(err) ? find_primitive(key) : NULL;
    if (library.stream == NULL)
        return false;
    if (entry == NULL && !make_primitive(&entry, key, b_desc, err))
        return false;
    entry->used = ++library.tick;
    if (!reserve_scratch(entry->scratch_bytes, err))
        return false;
    dnnl_memory_set_data_handle(entry->a, (void *)a);
    dnnl_memory_set_data_handle(entry->c, c);
    dnnl_memory_set_data_handle(entry->scratch, library.scratch);
    if (b_memory == NULL) {
        dnnl_memory_set_data_handle(entry->b, (void *)b);
        b_memory = entry->b;
    }
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, entry->a},
                                   {DNNL_ARG_WEIGHTS, b_memory},
                                   {DNNL_ARG_DST, entry->c},
                                   {DNNL_ARG_SCRATCHPAD, entry->scratch}};
    return check(dnnl_primitive_execute(entry->primitive, library.stream, GD_COUNT(arguments), arguments),
                 "run a product", err);
}

bool gd_gemm_run(const struct gd_gemm *gemm, const void *a, const void *b, void *c, struct gd_error *err)
{
    struct key key = {.gemm = *gemm};
    dnnl_memory_desc_t desc;
    return start(err) && matrix_desc(&desc, gemm->k, gemm->n, gemm->transpose_b, 0, gemm->in, err) &&
           execute(&key, &desc, NULL, a, b, c, err);
}

/* ---- packed right operands ---- */

static bool packed_desc(dnnl_memory_desc_t *out, int64_t k, int64_t n, enum gd_dtype dtype, struct gd_error *err)
{
    struct gd_gemm gemm = {.m = PROBE_ROWS, .n = n, .k = k, .in = dtype, .out = dtype, .alpha = 1.0f};
    dnnl_memory_desc_t any;
    dnnl_primitive_desc_t desc = NULL;
    if (!start(err) || !any_desc(&any, k, n, dtype, err) || !describe(&desc, &gemm, &any, err))
        return false;
    *out = *dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
    dnnl_primitive_desc_destroy(desc);
    return true;
}

/* Planners ask again and again for the few shapes of a model. */
size_t gd_gemm_packed_bytes(int64_t k, int64_t n, enum gd_dtype dtype)
{
    static struct {
        int64_t k, n;
        enum gd_dtype dtype;
        size_t bytes;
    } known[32];
    static int next;
    struct gd_error ignored = {0};
    dnnl_memory_desc_t desc;
    for (size_t i = 0; i < GD_COUNT(known); i++)
        if (known[i].k == k && known[i].n == n && known[i].dtype == dtype && known[i].bytes > 0)
            return known[i].bytes;
    size_t bytes = packed_desc(&desc, k, n, dtype, &ignored) ? dnnl_memory_desc_get_size(&desc) : 0;
    known[next].k = k;
    known[next].n = n;
    known[next].dtype = dtype;
    known[next].bytes = bytes;
    next = (next + 1) % (int)GD_COUNT(known);
    return bytes;
}

static bool reorder(struct gd_gemm_packed *packed, const void *b, bool transposed, struct gd_error *err)
{
    dnnl_memory_desc_t from_desc;
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    bool ok = matrix_desc(&from_desc, packed->k, packed->n, transposed, 0, packed->dtype, err) &&
              check(dnnl_memory_create(&from, &from_desc, engine, (void *)b), "make a view", err) &&
              check(dnnl_reorder_primitive_desc_create(&desc, &from_desc, engine, &packed->desc, engine,
                                                       NULL), "choose a reorder", err) &&
              check(dnnl_primitive_create(&primitive, desc), "make a reorder", err);
    if (ok) {
        dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, packed->memory}};
        ok = check(dnnl_primitive_execute(primitive, library.stream, GD_COUNT(arguments), arguments), "run a reorder", err);
    }
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(desc);
    dnnl_memory_destroy(from);
    return ok;
}

bool gd_gemm_pack(struct gd_gemm_packed **out, int64_t k, int64_t n, enum gd_dtype dtype, const void *b, bool transposed,
                  const char *what, struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_gemm_packed *packed = gd_alloc(sizeof(*packed));
    packed->k = k;
    packed->n = n;
    packed->dtype = dtype;
    bool ok = packed_desc(&packed->desc, k, n, dtype, err);
    if (ok) {
        packed->size_bytes = dnnl_memory_desc_get_size(&packed->desc);
        ok = gd_large_alloc(&packed->data, packed->size_bytes, what, err);
    }
    ok = ok && check(dnnl_memory_create(&packed->memory, &packed->desc, engine, packed->data), "make a view", err) &&
         reorder(packed, b, transposed, err);
    if (!ok) {
        gd_gemm_packed_destroy(packed);
        return false;
    }
    *out = packed;
    return true;
}

void gd_gemm_packed_destroy(struct gd_gemm_packed *packed)
{
    if (packed == NULL)
        return;
    dnnl_memory_destroy(packed->memory);
    if (packed->map.size_bytes > 0)
        gd_map_release(&packed->map);
    else if (packed->data != NULL)
        gd_large_free(packed->data, packed->size_bytes);
    gd_free(packed);
}

static void append(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void append(char *text, size_t size, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

bool gd_gemm_packed_layout(int64_t k, int64_t n, enum gd_dtype dtype, char *text, size_t size)
{
    struct gd_error ignored = {0};
    dnnl_memory_desc_t desc;
    if (!packed_desc(&desc, k, n, dtype, &ignored) || desc.format_kind != dnnl_blocked || desc.extra.flags != dnnl_memory_extra_flag_none)
        return false;
    const dnnl_blocking_desc_t *blocking = &desc.format_desc.blocking;
    const dnnl_version_t *version = dnnl_version();
    text[0] = '\0';
    append(text, size, "oneDNN %d.%d.%d %s %s", version->major, version->minor, version->patch, version->hash, gd_gemm_isa());
    for (int i = 0; i < desc.ndims; i++)
        append(text, size, " %" PRId64 "/%" PRId64 "+%" PRId64, desc.padded_dims[i], blocking->strides[i], desc.padded_offsets[i]);
    append(text, size, " from %" PRId64, desc.offset0);
    for (int i = 0; i < blocking->inner_nblks; i++)
        append(text, size, " %" PRId64 "of%" PRId64, blocking->inner_blks[i], blocking->inner_idxs[i]);
    return strlen(text) + 1 < size;
}

const void *gd_gemm_packed_data(const struct gd_gemm_packed *packed)
{
    return packed->data;
}

size_t gd_gemm_packed_size(const struct gd_gemm_packed *packed)
{
    return packed->size_bytes;
}

bool gd_gemm_packed_map(struct gd_gemm_packed **out, int64_t k, int64_t n, enum gd_dtype dtype, struct gd_map *map, size_t offset,
                        struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_gemm_packed *packed = gd_alloc(sizeof(*packed));
    packed->k = k;
    packed->n = n;
    packed->dtype = dtype;
    packed->map = *map;
    bool ok = packed_desc(&packed->desc, k, n, dtype, err);
    packed->size_bytes = ok ? dnnl_memory_desc_get_size(&packed->desc) : 0;
    packed->data = (void *)(uintptr_t)(map->data + offset); /* products only read it */
    ok = ok && (packed->size_bytes == map->size_bytes - offset || gd_fail(err, GD_BAD_FILE, "a packed weight has another size")) &&
         check(dnnl_memory_create(&packed->memory, &packed->desc, engine, packed->data), "make a view", err);
    if (!ok) {
        gd_gemm_packed_destroy(packed);
        return false;
    }
    *out = packed;
    return true;
}

bool gd_gemm_run_packed(const struct gd_gemm_packed *packed, const void *a, void *c, enum gd_dtype out, int64_t rows,
                        bool accumulate, struct gd_error *err)
{
    struct key key = {
        .gemm = {.m = rows, .n = packed->n, .k = packed->k, .in = packed->dtype, .out = out, .accumulate = accumulate, .alpha = 1.0f},
        .packed = true,
    };
    return execute(&key, &packed->desc, packed->memory, a, NULL, c, err);
}

int64_t gd_gemm_depth(int64_t k, enum gd_dtype dtype)
{
    bool tiles = dtype == GD_BF16 && dnnl_get_effective_cpu_isa() == dnnl_cpu_isa_avx512_core_amx;
    return tiles ? (k + 31) / 32 * 32 : k;
}

const char *gd_gemm_isa(void)
{
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    if (isa == dnnl_cpu_isa_avx512_core_amx)
        return "amx_bf16";
    if (isa == dnnl_cpu_isa_avx512_core_bf16)
        return "avx512_bf16";
    if (isa == dnnl_cpu_isa_avx512_core || isa == dnnl_cpu_isa_avx512_core_vnni)
        return "avx512";
    if (isa == dnnl_cpu_isa_avx2 || isa == dnnl_cpu_isa_avx2_vnni)
        return "avx2";
    return "generic";
}
