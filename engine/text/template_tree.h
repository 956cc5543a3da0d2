/*
 * template_tree.h - a compiled chat template: tokens, tree, and what the evaluator hangs on it.
 *
 * Why      Parsed once, rendered often. Chains (a + b + c, x.y|f|g) are flat lists, so that the depth of the tree is the
 *          nesting that the source shows, which is bounded, and no source can exhaust the C stack.
 * Memory   Nodes and names live in the template's arena.
 * Threads  Read-only once compiled.
 * Errors   GD_BAD_MODEL with line and column; the parser leaves by longjmp (it holds arena memory only).
 * Limits   TPL_SOURCE_BYTES_MAX, TPL_NESTING_MAX
 * Life     tpl_lex -> tpl_parse -> tpl_run, any number of times -> gd_template_destroy.
 */
#ifndef GD_TEXT_TEMPLATE_TREE_H
#define GD_TEXT_TEMPLATE_TREE_H

#include "engine/text/template_value.h"

struct tpl_suffix;

/* Tokens */

enum tpl_token_kind {
    TPL_TOKEN_DATA, TPL_TOKEN_BLOCK_BEGIN, TPL_TOKEN_BLOCK_END, TPL_TOKEN_VARIABLE_BEGIN, TPL_TOKEN_VARIABLE_END,
    TPL_TOKEN_NAME, TPL_TOKEN_STRING, TPL_TOKEN_INTEGER, TPL_TOKEN_FLOAT, TPL_TOKEN_OPERATOR, TPL_TOKEN_END,
};
struct tpl_token {
    enum tpl_token_kind kind;
    int line, column;
    const char *text; /* DATA, NAME, STRING (unescaped), OPERATOR ("==") */
    size_t length;
    int64_t integer;
    double number;
};

struct tpl_compiler {
    struct gd_template *tmpl;
    const char *source; /* newlines normalised */
    size_t length;
    struct tpl_token *tokens;
    int token_count, token_capacity;
    int at;                       /* parser's token */
    int nesting, loops;           /* depth of the source here; loops that break may leave */
    int fors;                     /* for statements around this place, whatever else lies between */
    int soft;                     /* inside an if: an unknown filter matters only when it is reached */
    const struct tpl_token *unknown; /* the first unknown filter or test that is not */
    struct tpl_callable *callable; /* macro or call block being parsed, for its use of varargs, kwargs, caller */
    jmp_buf failed;
    struct gd_error *err;
};
_Noreturn void tpl_syntax_error(struct tpl_compiler *c, int line, int column, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void tpl_lex(struct tpl_compiler *c);
void tpl_parse(struct tpl_compiler *c);

/* The token under the parser's nose (template_expr.c serves the statements too). */
const struct tpl_token *tpl_token(const struct tpl_compiler *c);
bool tpl_at_name(const struct tpl_compiler *c, const char *name);
bool tpl_at_operator(const struct tpl_compiler *c, const char *text);
bool tpl_skip_name(struct tpl_compiler *c, const char *name);
bool tpl_skip_operator(struct tpl_compiler *c, const char *text);
void tpl_expect_operator(struct tpl_compiler *c, const char *text);
const struct tpl_token *tpl_expect(struct tpl_compiler *c, enum tpl_token_kind kind);
_Noreturn void tpl_unexpected(struct tpl_compiler *c, const char *wanted);
void tpl_nest(struct tpl_compiler *c); /* one level deeper in the source; undone by c->nesting-- */
int tpl_symbol(struct tpl_compiler *c, const char *name, size_t length);
struct tpl_expr *tpl_parse_expression(struct tpl_compiler *c, bool conditional);
/* Comma makes a tuple; `until` names a word that ends it ("in", "recursive") or is NULL. */
struct tpl_expr *tpl_parse_tuple(struct tpl_compiler *c, bool conditional, const char *until, bool parenthesised);
/* |name(arguments)... without a value in front; the first name without its bar when `bare`. */
void tpl_parse_filters(struct tpl_compiler *c, bool bare, struct tpl_suffix **suffixes, int *count);
void *tpl_grow(struct tpl_compiler *c, void *items, int count, size_t item_bytes); /* room for one more */

/* Expressions */

enum tpl_expr_kind {
    TPL_EXPR_CONST, TPL_EXPR_NAME, TPL_EXPR_LIST, TPL_EXPR_TUPLE, TPL_EXPR_DICT, /* items: key, value, key, ... */
    TPL_EXPR_NOT, TPL_EXPR_NEGATE, TPL_EXPR_PLUS,
    TPL_EXPR_AND, TPL_EXPR_OR, TPL_EXPR_CONCAT,
    TPL_EXPR_ARITHMETIC,  /* items[0] operators[0] items[1] operators[1] ..., from the left */
    TPL_EXPR_COMPARE,     /* the same, as Python chains them */
    TPL_EXPR_CONDITION,   /* items: test, then, else or NULL */
    TPL_EXPR_SUFFIXED,    /* items[0] followed by suffixes */
};
enum tpl_operator {
    TPL_ADD, TPL_SUBTRACT, TPL_MULTIPLY, TPL_DIVIDE, TPL_FLOOR_DIVIDE, TPL_MODULO, TPL_POWER,
    TPL_EQ, TPL_NE, TPL_LT, TPL_LE, TPL_GT, TPL_GE, TPL_IN, TPL_NOT_IN,
};
struct tpl_expr {
    enum tpl_expr_kind kind;
    int line;
    int symbol;                  /* NAME */
    struct tpl_value constant;   /* CONST; the name as text for NAME */
    int count;
    struct tpl_expr **items;
    unsigned char *operators;
    struct tpl_suffix *suffixes; /* count of them for SUFFIXED */
};

struct tpl_arguments {
    int count, keyword_count;
    struct tpl_expr **values;
    const struct tpl_text **keywords;
    struct tpl_expr **keyword_values;
    struct tpl_expr *spread, *keyword_spread; /* *args, **kwargs */
};
enum tpl_suffix_kind { TPL_ATTRIBUTE, TPL_ITEM, TPL_SLICE, TPL_CALL, TPL_FILTER, TPL_TEST };
struct tpl_suffix {
    enum tpl_suffix_kind kind;
    int line;
    bool negated;                    /* is not */
    const struct tpl_text *name;     /* ATTRIBUTE, FILTER, TEST */
    struct tpl_expr *index[3];       /* ITEM: [0]; SLICE: start, stop, step, each may be NULL */
    struct tpl_arguments arguments;
    const struct tpl_function *function; /* FILTER, TEST; NULL = unknown name */
};

/* Statements */

struct tpl_target {
    enum { TPL_TARGET_NAME, TPL_TARGET_TUPLE, TPL_TARGET_NAMESPACE } kind;
    int symbol;
    const struct tpl_text *name, *attribute;
    struct tpl_target *items;
    int count;
};
struct tpl_block {
    struct tpl_statement **items;
    int count;
};
/* A macro, or what call blocks hand over as caller(). */
struct tpl_callable {
    const struct tpl_text *name; /* NULL for caller */
    int count, default_count;    /* the last default_count parameters have defaults */
    int *symbols;
    const struct tpl_text **names;
    struct tpl_expr **defaults;
    bool wants_varargs, wants_kwargs, wants_caller; /* the body reads them */
    struct tpl_block body;
    struct tpl_callable *outer;
};
struct tpl_branch {
    struct tpl_expr *test; /* NULL for else */
    struct tpl_block body;
};
enum tpl_statement_kind {
    TPL_DATA, TPL_PRINT, TPL_FOR, TPL_IF, TPL_SET, TPL_SET_BLOCK, TPL_DEFINE_MACRO, TPL_CALL_BLOCK, TPL_FILTER_BLOCK,
    TPL_WITH, TPL_GENERATION, TPL_BREAK, TPL_CONTINUE,
};
struct tpl_statement {
    enum tpl_statement_kind kind;
    int line;
    const struct tpl_text *data;
    struct tpl_expr *value;      /* PRINT, FOR's iterable, SET, CALL_BLOCK's call */
    struct tpl_expr *test;       /* FOR */
    bool recursive;              /* FOR */
    struct tpl_target target;    /* FOR, SET, SET_BLOCK */
    struct tpl_block body, otherwise;
    struct tpl_branch *branches; /* IF */
    int branch_count;
    struct tpl_callable *callable;
    struct tpl_suffix *filters;  /* SET_BLOCK, FILTER_BLOCK */
    int filter_count;
    struct tpl_target *targets;  /* WITH */
    struct tpl_expr **values;
    int with_count;
};

struct gd_template {
    struct gd_arena arena;
    struct tpl_block body;
    const char **symbols; /* names that the source mentions */
    int symbol_count, symbol_capacity;
    int *symbol_slots;    /* hash table over symbols, -1 = free */
    int symbol_slot_count;
    int loop_symbol, caller_symbol, varargs_symbol, kwargs_symbol;
    bool has_generation;
    bool plain;           /* jinja's own defaults instead of trim_blocks, lstrip_blocks and silent undefined values */
};

/* Running */

struct tpl_binding {
    struct tpl_binding *next;
    int symbol;
    struct tpl_value value;
};
struct tpl_scope {
    struct tpl_scope *parent;
    struct tpl_binding *bindings;
    int count;
};
struct tpl_macro {
    const struct tpl_callable *callable;
    struct tpl_scope *scope; /* where it was defined */
    const struct tpl_text *name;
};
struct tpl_loop {
    const struct tpl_statement *statement;
    struct tpl_scope *scope;     /* around the loop */
    struct tpl_list *source;     /* what is iterated */
    int source_at;
    struct tpl_list *taken;      /* items that passed the loop's own `if` */
    int index0, depth0;
    struct tpl_value changed; /* what loop.changed() saw last */
};
/* len(loop): looks through to the end when the loop has an `if`. */
int64_t tpl_loop_length(struct tpl_render *r, struct tpl_loop *loop);
bool tpl_loop_has(struct tpl_render *r, struct tpl_loop *loop, int index);
struct tpl_value tpl_loop_attribute(struct tpl_render *r, struct tpl_loop *loop, const struct tpl_text *name);

/* Evaluated arguments of a call. */
struct tpl_call {
    struct tpl_value self;          /* what a filter, test or method is applied to */
    int count, keyword_count;
    struct tpl_value *values;
    const struct tpl_text **keywords;
    struct tpl_value *keyword_values;
};
/* Filters, tests, global functions and methods. `parameters`: names of its arguments, space separated, required ones
 * first and optional ones after a '|' ("old new|count"), with a '/' in front when none may be given by name; the function
 * then gets call->values[] in that order with TPL_MISSING for what is absent. NULL: it reads the call as it is. */
struct tpl_function {
    const char *name, *parameters;
    struct tpl_value (*run)(struct tpl_render *r, const struct tpl_call *call);
};
struct tpl_bound {
    const struct tpl_function *function;
    struct tpl_value self;
};
const struct tpl_function *tpl_find_filter(const char *name, size_t length);
const struct tpl_function *tpl_find_test(const char *name, size_t length);
const struct tpl_function *tpl_find_global(const char *name);
const struct tpl_function *tpl_find_in(const struct tpl_function *table, size_t count, const char *name, size_t length);
/* Binds keywords to parameters, then runs. */
struct tpl_value tpl_apply(struct tpl_render *r, const struct tpl_function *function, const struct tpl_call *call);

/* value.name and value[key], with jinja's rules for which comes first. */
struct tpl_value tpl_attribute(struct tpl_render *r, struct tpl_value value, const struct tpl_text *name);
struct tpl_value tpl_item(struct tpl_render *r, struct tpl_value value, struct tpl_value key);
/* A bound method, or MISSING. */
struct tpl_value tpl_method(struct tpl_render *r, struct tpl_value value, const struct tpl_text *name);
struct tpl_value tpl_slice_value(struct tpl_render *r, struct tpl_value value, const struct tpl_value bounds[3]);
/* "a.b.0" as the attribute= of filters; NULL path gives the value itself. */
struct tpl_value tpl_path(struct tpl_render *r, struct tpl_value value, struct tpl_value path);
struct tpl_value tpl_binary(struct tpl_render *r, enum tpl_operator operator_, struct tpl_value a, struct tpl_value b);
bool tpl_compare_values(struct tpl_render *r, enum tpl_operator operator_, struct tpl_value a, struct tpl_value b);
/* "%s" % ...; with keywords given, %(name)s too. */
struct tpl_value tpl_percent_format(struct tpl_render *r, const struct tpl_text *format, const struct tpl_call *arguments);
const struct tpl_text *tpl_escape(struct tpl_render *r, const struct tpl_text *text); /* HTML; markup stays */

struct tpl_value tpl_eval(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr);
struct tpl_value tpl_eval_suffixes(struct tpl_render *r, struct tpl_scope *scope, struct tpl_value value,
                                   const struct tpl_suffix *suffixes, int count);
struct tpl_value tpl_call_value(struct tpl_render *r, struct tpl_value callee, const struct tpl_call *call);
void tpl_eval_arguments(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_arguments *arguments,
                        struct tpl_call *call);
struct tpl_value tpl_call_macro(struct tpl_render *r, const struct tpl_macro *macro, const struct tpl_call *call);
struct tpl_value tpl_call_loop(struct tpl_render *r, struct tpl_loop *loop, const struct tpl_call *call);
struct tpl_value tpl_lookup(struct tpl_render *r, struct tpl_scope *scope, int symbol, const struct tpl_text *name);
void tpl_bind(struct tpl_render *r, struct tpl_scope *scope, int symbol, struct tpl_value value);
void tpl_assign(struct tpl_render *r, struct tpl_scope *scope, struct tpl_scope *names, const struct tpl_target *target,
                struct tpl_value value);
void tpl_run(struct tpl_render *r); /* the whole template into r->out */

#endif
