#include "engine/tensor/few_rows.h"
#include "engine/base/alloc.h"
#include "engine/tensor/crew.h"
#include "engine/tensor/dequant.h"
#include "engine/tensor/kernel.h"
#include "engine/tensor/weight_rows.h"
#include <assert.h>
#include <math.h>

#define SIDE 16           /* outputs side by side */
#define AHEAD 4096        /* bytes of codes that are asked for before they are used */
#define TILE 4            /* rows that share what was loaded of the codes */
#define PART_CODES 65536  /* products of a thread's part, about two microseconds */
#define LARGEST 32512.0f  /* of X: 127 digits of 256 */

struct gd_few_rows {
    struct gd_block_form form;
    int64_t out, in, groups, parts; /* parts of a row */
    bool nibbles;                   /* codes of 4 bits */
    bool wide;                      /* steps and bases are f32, else f16 */
    size_t code_bytes;              /* of a part of a group */
    uint8_t *codes;                 /* [groups, parts, code_bytes] */
    char *steps, *bases;            /* [groups, parts, SIDE] */
    void *memory;
    size_t size_bytes;
};

/* The digits of rows of x, kept for the process as the library's scratch is. */
struct digits {
    int8_t *high, *low;             /* [rows, in] */
    float *scale, *sum;             /* [rows, parts]: s, and s sum X (times the offset where the format has no base) */
};

static bool runs_here(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* The sizes of the weight's form. False: it has none. */
static bool measure(struct gd_few_rows *few, const struct gd_weight *weight)
{
    const struct gd_tensor *source = gd_weight_source(weight);
    const struct gd_block_form *form = gd_block_form(source->dtype);
    if (!runs_here() || form == NULL || source->rank != 2 || gd_weight_row_blocks(weight, 0) == NULL)
        return false;
    few->form = *form;
    few->out = source->shape[0];
    few->in = source->shape[1];
    few->groups = (few->out + SIDE - 1) / SIDE;
    few->parts = few->in / form->part;
    few->nibbles = form->bits == 4;
    few->wide = gd_dtype_block(source->dtype) != form->part; /* steps of parts of a larger block are no f16 */
    few->code_bytes = (size_t)(SIDE * form->part) / (few->nibbles ? 2 : 1);
    return true;
}

static size_t steps_bytes(const struct gd_few_rows *few)
{
    return aligned((size_t)(few->groups * few->parts * SIDE) * (few->wide ? 4 : 2));
}

static size_t codes_bytes(const struct gd_few_rows *few)
{
    return aligned((size_t)(few->groups * few->parts) * few->code_bytes);
}

static size_t total_bytes(const struct gd_few_rows *few)
{
    return codes_bytes(few) + steps_bytes(few) * (few->form.based ? 2 : 1);
}

size_t gd_few_rows_bytes(const struct gd_weight *weight)
{
    struct gd_few_rows few = {0};
    return measure(&few, weight) ? total_bytes(&few) : 0;
}

/* Four codes in a row of each of the outputs are one vector: byte 4 r + j of it belongs to output r. With 4 bits, its high
 * nibbles hold the next four. */
static void put_codes(uint8_t *to, const uint8_t *q, int part, int r, bool nibbles)
{
    int step = nibbles ? 8 : 4;
    for (int from = 0; from < part; from += step, to += 4 * SIDE)
        for (int j = 0; j < 4; j++)
            to[4 * r + j] = nibbles ? (uint8_t)(q[from + j] | q[from + 4 + j] << 4) : q[from + j];
}

static void put_number(char *to, int64_t at, float value, bool wide)
{
    if (wide)
        ((float *)to)[at] = value;
    else
        ((uint16_t *)to)[at] = gd_f32_to_f16(value);
}

static void pack_row(struct gd_few_rows *few, const struct gd_weight *weight, int64_t row)
{
    enum gd_dtype dtype = gd_weight_source(weight)->dtype;
    const char *block = gd_weight_row_blocks(weight, row);
    int part = few->form.part, in_block = (int)(gd_dtype_block(dtype) / part);
    struct gd_block_codes codes;
    for (int64_t p = 0; p < few->parts; p++) {
        if (p % in_block == 0) {
            gd_block_codes(&codes, block, dtype);
            block += gd_dtype_block_bytes(dtype);
        }
        int64_t at = row / SIDE * few->parts + p;
        put_codes(few->codes + (size_t)at * few->code_bytes, codes.q + p % in_block * part, part, (int)(row % SIDE), few->nibbles);
        put_number(few->steps, at * SIDE + row % SIDE, codes.step[p % in_block], few->wide);
        if (few->form.based)
            put_number(few->bases, at * SIDE + row % SIDE, codes.base[p % in_block], few->wide);
    }
}

bool gd_few_rows_create(struct gd_few_rows **out, const struct gd_weight *weight, struct gd_error *err)
{
    struct gd_few_rows *few = gd_alloc(sizeof(*few));
    bool known = measure(few, weight);
    assert(known);
    (void)known;
    few->size_bytes = total_bytes(few);
    if (!gd_large_alloc(&few->memory, few->size_bytes, "a weight laid out for decoding", err)) {
        gd_free(few);
        return false;
    }
    few->codes = few->memory;
    few->steps = (char *)few->memory + codes_bytes(few);
    few->bases = few->steps + steps_bytes(few);
    GD_PARALLEL(few->out * few->in)
    {
        struct gd_range range = gd_thread_range(few->out, SIDE);
        for (int64_t row = range.begin; row < range.end; row++)
            pack_row(few, weight, row);
    }
    *out = few;
    return true;
}

void gd_few_rows_destroy(struct gd_few_rows *few)
{
    if (few == NULL)
        return;
    gd_large_free(few->memory, few->size_bytes);
    gd_free(few);
}

#ifdef __x86_64__
#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")))
#define VNNI_INLINE VNNI static inline __attribute__((always_inline))

/* One part of one row. */
VNNI_INLINE void take_part(const float *x, int part, int8_t *high, int8_t *low, float *scale, float *sum)
{
    float most = 0, broken = 0;
    int total = 0;
    for (int i = 0; i < part; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        broken += x[i] * 0.0f; /* not zero where x is no number */
    }
    float by = most > 0 ? LARGEST / most : 0;
    for (int i = 0; i < part; i++) {
        int digits = (int)rintf(x[i] * by), top = (digits + 128) >> 8;
        high[i] = (int8_t)top;
        low[i] = (int8_t)(digits - top * 256);
        total += digits;
    }
    *scale = broken == 0 ? most / LARGEST : NAN;
    *sum = *scale * (float)total;
}

VNNI static void take_row(const struct gd_few_rows *few, const void *x, enum gd_dtype dtype, int64_t row, const struct digits *to)
{
    int part = few->form.part;
    float values[32], offset = few->form.based ? 1.0f : (float)few->form.offset;
    for (int64_t p = 0; p < few->parts; p++) {
        int64_t from = row * few->in + p * part, at = row * few->parts + p;
        gd_convert_to_f32(values, (const char *)x + gd_dtype_bytes(dtype, from), dtype, part);
        if (part == 32)
            take_part(values, 32, to->high + from, to->low + from, &to->scale[at], &to->sum[at]);
        else
            take_part(values, 16, to->high + from, to->low + from, &to->scale[at], &to->sum[at]);
        to->sum[at] *= offset;
    }
}

VNNI_INLINE __m512i four(const int8_t *digits)
{
    int32_t word;
    memcpy(&word, digits, 4);
    return _mm512_set1_epi32(word);
}

VNNI_INLINE __m512 numbers(const char *at, bool wide)
{
    return wide ? _mm512_loadu_ps(at) : _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

/* Rows [row, row + rows) for the outputs of a group; all but few, group and row are constants. */
VNNI_INLINE void multiply_group(const struct gd_few_rows *few, const struct digits *x, int64_t group, int64_t row, int rows, int part,
                                bool nibbles, bool based, bool wide, __m512 *y)
{
    const uint8_t *codes = few->codes + (size_t)(group * few->parts) * few->code_bytes;
    const char *steps = few->steps + group * few->parts * SIDE * (wide ? 4 : 2);
    const char *bases = few->bases + group * few->parts * SIDE * (wide ? 4 : 2);
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int64_t p = 0; p < few->parts; p++) {
        __m512i high[TILE], low[TILE];
        const int8_t *x_high = x->high + row * few->in + p * part, *x_low = x->low + row * few->in + p * part;
        for (size_t line = 0; line < few->code_bytes; line += 64)
            _mm_prefetch((const char *)codes + AHEAD + line, _MM_HINT_T0);
        for (int r = 0; r < rows; r++)
            high[r] = low[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int k = 0; k < part; k += 4) {
            __m512i q;
            if (nibbles) {
                q = _mm512_loadu_si512(codes + k / 8 * 64);
                q = _mm512_and_si512(k % 8 == 0 ? q : _mm512_srli_epi16(q, 4), nibble);
            } else {
                q = _mm512_loadu_si512(codes + k * SIDE);
            }
            for (int r = 0; r < rows; r++) {
                high[r] = _mm512_dpbusd_epi32(high[r], q, four(x_high + r * few->in + k));
                low[r] = _mm512_dpbusd_epi32(low[r], q, four(x_low + r * few->in + k));
            }
        }
        __m512 step = numbers(steps, wide);
        for (int r = 0; r < rows; r++) {
            int64_t at = (row + r) * few->parts + p;
            __m512 sum = _mm512_set1_ps(x->sum[at]);
            __m512 all = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[r], 8), low[r]));
            all = based ? _mm512_mul_ps(all, _mm512_set1_ps(x->scale[at])) : _mm512_fmsub_ps(all, _mm512_set1_ps(x->scale[at]), sum);
            y[r] = _mm512_fmadd_ps(step, all, y[r]);
            if (based)
                y[r] = _mm512_fmadd_ps(numbers(bases, wide), sum, y[r]);
        }
        codes += few->code_bytes;
        steps += SIDE * (wide ? 4 : 2);
        bases += SIDE * (wide ? 4 : 2);
    }
}

struct result {
    void *y;
    enum gd_dtype dtype;
    bool accumulate;
};

VNNI_INLINE void put(const struct gd_few_rows *few, const struct result *to, int64_t row, int64_t group, __m512 sums)
{
    float values[SIDE], before[SIDE];
    int64_t at = row * few->out + group * SIDE, count = few->out - group * SIDE < SIDE ? few->out - group * SIDE : SIDE;
    char *y = (char *)to->y + gd_dtype_bytes(to->dtype, at);
    _mm512_storeu_ps(values, sums);
    if (to->accumulate) {
        gd_convert_to_f32(before, y, to->dtype, count);
        for (int64_t i = 0; i < count; i++)
            values[i] += before[i];
    }
    if (to->dtype == GD_F32)
        memcpy(y, values, (size_t)count * sizeof(float));
    else
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)(void *)y)[i] = gd_f32_to_bf16(values[i]);
}

VNNI_INLINE void multiply_groups(const struct gd_few_rows *few, const struct digits *x, const struct result *to, int64_t rows,
                                 int64_t begin, int64_t end, int part, bool nibbles, bool based, bool wide)
{
    for (int64_t group = begin; group < end; group++) {
        int64_t row = 0;
        __m512 y[TILE];
        for (; row + TILE <= rows; row += TILE) {
            for (int r = 0; r < TILE; r++)
                y[r] = _mm512_setzero_ps();
            multiply_group(few, x, group, row, TILE, part, nibbles, based, wide, y);
            for (int r = 0; r < TILE; r++)
                put(few, to, row + r, group, y[r]);
        }
        for (; row < rows; row++) {
            y[0] = _mm512_setzero_ps();
            multiply_group(few, x, group, row, 1, part, nibbles, based, wide, y);
            put(few, to, row, group, y[0]);
        }
    }
}

/*    name      part  nibbles  based  wide    formats */
#define SHAPES(X)                                                    \
    X(offset_4, 32,   true,    false, false) /* Q4_0 */              \
    X(based_4,  32,   true,    true,  false) /* Q4_1 */              \
    X(wide_4,   32,   true,    true,  true)  /* Q4_K */              \
    X(offset_8, 32,   false,   false, false) /* Q5_0, Q8_0 */        \
    X(based_8,  32,   false,   true,  false) /* Q5_1 */              \
    X(wide_8,   32,   false,   true,  true)  /* Q5_K */              \
    X(short_8,  16,   false,   false, true)  /* Q6_K */

#define KERNEL(name, part, nibbles, based, wide)                                                                             \
    VNNI static void name(const struct gd_few_rows *few, const struct digits *x, const struct result *to, int64_t rows,      \
                          int64_t begin, int64_t end)                                                                        \
    {                                                                                                                        \
        multiply_groups(few, x, to, rows, begin, end, part, nibbles, based, wide);                                           \
    }
SHAPES(KERNEL)
#undef KERNEL

#define ENTRY(name, part, nibbles, based, wide) {part, nibbles, based, wide, name},
static const struct shape {
    int part;
    bool nibbles, based, wide;
    void (*run)(const struct gd_few_rows *few, const struct digits *x, const struct result *to, int64_t rows, int64_t begin,
                int64_t end);
} shapes[] = {SHAPES(ENTRY)};
#undef ENTRY

static const struct shape *shape_of(const struct gd_few_rows *few)
{
    for (size_t i = 0; i < GD_COUNT(shapes); i++)
        if (shapes[i].part == few->form.part && shapes[i].nibbles == few->nibbles && shapes[i].based == few->form.based &&
            shapes[i].wide == few->wide)
            return &shapes[i];
    return NULL;
}

/* Room for the digits of `rows` rows. */
static struct digits reserve(const struct gd_few_rows *few, int64_t rows)
{
    static char *memory;
    static size_t size;
    size_t bytes = aligned((size_t)(rows * few->in)), numbers_bytes = aligned((size_t)(rows * few->parts) * sizeof(float));
    if (size < 2 * (bytes + numbers_bytes)) {
        gd_free(memory);
        size = 2 * (bytes + numbers_bytes);
        memory = gd_alloc(size);
    }
    struct digits digits = {.high = (int8_t *)memory, .low = (int8_t *)memory + bytes};
    digits.scale = (float *)(void *)(memory + 2 * bytes);
    digits.sum = (float *)(void *)(memory + 2 * bytes + numbers_bytes);
    return digits;
}

struct product {
    const struct gd_few_rows *few;
    const struct shape *shape;
    const struct digits *x;
    const struct result *to;
    int64_t rows, step; /* groups of a part */
};

static void multiply_part(void *context, int64_t part, int thread)
{
    const struct product *p = context;
    int64_t begin = part * p->step, end = begin + p->step < p->few->groups ? begin + p->step : p->few->groups;
    p->shape->run(p->few, p->x, p->to, p->rows, begin, end);
}

void gd_few_rows_run(const struct gd_few_rows *few, const void *x, enum gd_dtype x_dtype, void *y, enum gd_dtype y_dtype,
                     int64_t rows, bool accumulate)
{
    const struct shape *shape = shape_of(few);
    struct digits digits = reserve(few, rows);
    struct result to = {y, y_dtype, accumulate};
    assert(shape != NULL);
    assert(rows <= GD_FEW_ROWS);
    for (int64_t row = 0; row < rows; row++)
        take_row(few, x, x_dtype, row, &digits);
    int64_t groups = PART_CODES / (rows * few->in * SIDE);
    struct product product = {few, shape, &digits, &to, rows, groups > 0 ? groups : 1};
    gd_crew_run((few->groups + product.step - 1) / product.step, multiply_part, &product);
}

#else

void gd_few_rows_run(const struct gd_few_rows *few, const void *x, enum gd_dtype x_dtype, void *y, enum gd_dtype y_dtype,
                     int64_t rows, bool accumulate)
{
    assert(false); /* gd_few_rows_bytes is 0 here */
}

#endif
