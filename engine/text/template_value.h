/*
 * template_value.h - values of a running chat template, with Python's meaning.
 *
 * Why      Templates were written against Python: truth, equality, printing and slicing must be Python's.
 * Memory   Everything lives in the arena of one rendering, whose total is bounded; nothing is freed before its end.
 *          Text borrows its bytes (from the template, the caller's JSON or another text of the rendering).
 * Threads  One rendering belongs to one thread.
 * Errors   tpl_fail leaves the rendering by longjmp: nothing but arena memory is ever held by these functions.
 * Limits   TPL_*_MAX below
 * Life     template.c sets up a struct tpl_render, evaluates, releases the arena.
 */
#ifndef GD_TEXT_TEMPLATE_VALUE_H
#define GD_TEXT_TEMPLATE_VALUE_H

#include "engine/base/arena.h"
#include "engine/base/error.h"
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

#define TPL_SOURCE_BYTES_MAX (256u << 10)
#define TPL_NESTING_MAX 100           /* statements and expressions inside one another in the source */
#define TPL_MACRO_DEPTH_MAX 32        /* macro calls, caller() and recursive loops inside one another */
#define TPL_EVAL_DEPTH_MAX 600        /* evaluator frames inside one another, whatever they are */
#define TPL_VALUE_DEPTH_MAX 200       /* lists and dicts inside one another when compared or printed */
#define TPL_STEPS_MAX 5000000         /* one per evaluated node; long strings and lists count by their size */
#define TPL_RANGE_MAX 100000
#define TPL_TEXT_BYTES_MAX (8u << 20) /* the output and every string that is built */
#define TPL_MEMORY_BYTES_MAX (256u << 20)

enum tpl_kind {
    TPL_MISSING, /* an argument that was not given; never a template's value */
    TPL_UNDEFINED, TPL_NONE, TPL_BOOL, TPL_INT, TPL_FLOAT, TPL_TEXT, TPL_LIST, TPL_TUPLE, TPL_DICT, TPL_RANGE,
    TPL_VIEW,      /* dict.keys(), .values(), .items() */
    TPL_ITERATOR,  /* a generator: read once */
    TPL_NAMESPACE, TPL_MACRO, TPL_FUNCTION, TPL_METHOD, TPL_LOOP, TPL_JOINER, TPL_CYCLER,
};

/* Labels say who wrote a byte: bit 0 = content (people), the rest = number of the generation block, 0 = none. */
#define TPL_CONTENT 1u
#define TPL_GENERATION_SHIFT 1

struct tpl_run {
    uint32_t end;   /* first byte after the run */
    uint32_t label;
};

struct tpl_text {
    const char *data; /* UTF-8, not NUL-terminated */
    size_t length;
    uint32_t label;   /* of all bytes when run_count is 0 */
    int run_count;
    const struct tpl_run *runs;
    bool markup;      /* result of `safe` or `escape`: `+` escapes the other side */
};

struct tpl_value {
    enum tpl_kind kind;
    union {
        bool boolean;
        int64_t integer;
        double number;
        const struct tpl_text *text;
        struct tpl_list *list;           /* LIST, TUPLE, ITERATOR (from its cursor on) */
        struct tpl_dict *dict;           /* DICT, NAMESPACE */
        const struct tpl_range *range;
        const struct tpl_view *view;
        const struct tpl_undefined *undefined;
        const struct tpl_macro *macro;
        const struct tpl_function *function;
        const struct tpl_bound *bound;
        struct tpl_loop *loop;
        struct tpl_joiner *joiner;
        struct tpl_cycler *cycler;
    };
};

struct tpl_list {
    struct tpl_value *items;
    int count, capacity;
    int cursor; /* of an ITERATOR: items before it are used up */
};
struct tpl_dict { /* in order of insertion */
    struct tpl_value *keys, *values;
    int count, capacity;
};
struct tpl_range {
    int64_t start, stop, step, count;
};
enum tpl_view_kind { TPL_VIEW_KEYS, TPL_VIEW_VALUES, TPL_VIEW_ITEMS };
struct tpl_view {
    const struct tpl_dict *dict;
    enum tpl_view_kind kind;
};
struct tpl_undefined {
    const char *owner;           /* "dict object", or NULL for a plain name */
    const struct tpl_text *name; /* or NULL when `hint` says it all */
    const char *hint;
};
struct tpl_joiner {
    const struct tpl_text *separator;
    bool used;
};
struct tpl_cycler {
    struct tpl_list *items;
    int at;
};

struct tpl_builder {
    char *data;
    size_t length, capacity;
    struct tpl_run *runs;
    int run_count, run_capacity;
};

struct tpl_scope;
struct gd_template;

struct tpl_render {
    const struct gd_template *tmpl;
    struct gd_arena arena;
    size_t allocated_bytes;
    int64_t steps;
    int64_t now; /* for strftime_now; 0 = the real clock */
    int line, depth, macro_depth;
    uint32_t generation, generation_count; /* block being written (0 = none), blocks begun so far */
    struct tpl_builder *out;
    struct tpl_scope *globals;
    jmp_buf failed;
    struct gd_error *err;
};

/* Leave the rendering with GD_INVALID "chat template, line N: ...". */
_Noreturn void tpl_fail(struct tpl_render *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The template's own raise_exception. */
_Noreturn void tpl_raise(struct tpl_render *r, const struct tpl_text *message);

/* Counts work; fails when the budget is used up. */
void tpl_charge(struct tpl_render *r, size_t steps);
void *tpl_alloc(struct tpl_render *r, size_t size_bytes);
void tpl_enter(struct tpl_render *r); /* one evaluator frame deeper; tpl_leave on the way out */
void tpl_leave(struct tpl_render *r);

/* Constructors. */
struct tpl_value tpl_none(void);
struct tpl_value tpl_bool(bool boolean);
struct tpl_value tpl_int(int64_t integer);
struct tpl_value tpl_float(double number);
struct tpl_value tpl_text_value(const struct tpl_text *text);
struct tpl_value tpl_undefined_hint(struct tpl_render *r, const char *hint);
struct tpl_value tpl_undefined_name(struct tpl_render *r, const char *owner, const struct tpl_text *name);
struct tpl_value tpl_text_of(struct tpl_render *r, const char *data, size_t length, uint32_t label);
struct tpl_value tpl_literal(struct tpl_render *r, const char *text); /* template text, borrowed */
struct tpl_list *tpl_list_new(struct tpl_render *r, int capacity);
void tpl_list_push(struct tpl_render *r, struct tpl_list *list, struct tpl_value value);
struct tpl_value tpl_list_value(enum tpl_kind kind, struct tpl_list *list);
struct tpl_dict *tpl_dict_new(struct tpl_render *r);
void tpl_dict_set(struct tpl_render *r, struct tpl_dict *dict, struct tpl_value key, struct tpl_value value);
void tpl_dict_push(struct tpl_render *r, struct tpl_dict *dict, struct tpl_value key, struct tpl_value value);
struct tpl_value *tpl_dict_find(struct tpl_render *r, const struct tpl_dict *dict, struct tpl_value key);
struct tpl_value *tpl_dict_find_text(struct tpl_render *r, const struct tpl_dict *dict, const char *key, size_t length);

/* Growing text. */
void tpl_build(struct tpl_render *r, struct tpl_builder *b, const char *data, size_t length, uint32_t label);
void tpl_build_literal(struct tpl_render *r, struct tpl_builder *b, const char *text);
void tpl_build_text(struct tpl_render *r, struct tpl_builder *b, const struct tpl_text *text);
void tpl_build_slice(struct tpl_render *r, struct tpl_builder *b, const struct tpl_text *text, size_t begin,
                     size_t end);
const struct tpl_text *tpl_built(struct tpl_render *r, const struct tpl_builder *b);
struct tpl_value tpl_built_value(struct tpl_render *r, const struct tpl_builder *b);
/* Bytes [begin, end) of a text, sharing its data. */
const struct tpl_text *tpl_slice(struct tpl_render *r, const struct tpl_text *text, size_t begin, size_t end);
uint32_t tpl_label_at(const struct tpl_text *text, size_t offset);
bool tpl_text_is(const struct tpl_text *text, const char *literal);

/* Python's questions. */
const char *tpl_type_name(struct tpl_value value);    /* "str", "NoneType": for errors */
bool tpl_truthy(struct tpl_value value);
bool tpl_is_number(struct tpl_value value);           /* bool, int, float */
bool tpl_as_int(struct tpl_value value, int64_t *out); /* int and bool */
double tpl_as_double(struct tpl_value value);         /* of a number */
bool tpl_equal(struct tpl_render *r, struct tpl_value a, struct tpl_value b);
int tpl_compare(struct tpl_render *r, struct tpl_value a, struct tpl_value b, const char *operator_name); /* <0, 0, >0 */
bool tpl_contains(struct tpl_render *r, struct tpl_value container, struct tpl_value item);
bool tpl_hashable(struct tpl_value value);
bool tpl_callable(struct tpl_value value);
_Noreturn void tpl_fail_undefined(struct tpl_render *r, struct tpl_value undefined);
/* len(); fails with Python's TypeError. has_length says whether it would succeed. */
int64_t tpl_length(struct tpl_render *r, struct tpl_value value);
bool tpl_has_length(struct tpl_value value);
bool tpl_iterable(struct tpl_value value);
/* iter(): all items as a list, which is the value's own when it is one (do not change it). Uses up an ITERATOR. */
struct tpl_list *tpl_items(struct tpl_render *r, struct tpl_value value);
struct tpl_value tpl_range_item(const struct tpl_range *range, int64_t index);
/* Stable, ascending by keys[] (Python's order); permutes values the same way. */
void tpl_sort(struct tpl_render *r, struct tpl_value *keys, struct tpl_value *values, int count, bool reverse);

/* str(), repr() and json.dumps(). */
const struct tpl_text *tpl_str(struct tpl_render *r, struct tpl_value value);
void tpl_build_str(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value);
void tpl_build_repr(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value);
struct tpl_json_style {
    bool ensure_ascii, sort_keys, indented;
    const struct tpl_text *indent, *item_separator, *key_separator;
};
void tpl_build_json(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value,
                    const struct tpl_json_style *style);
/* Python's repr of a float: the shortest digits that read back as the same number. */
void tpl_format_double(double number, char out[40]);

#endif
