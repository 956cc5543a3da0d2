/* The expression half of the parser. */
#include "engine/text/template_tree.h"
#include <string.h>

static struct gd_arena *arena(struct tpl_compiler *c)
{
    return &c->tmpl->arena;
}

void *tpl_grow(struct tpl_compiler *c, void *items, int count, size_t item_bytes)
{
    if (count != 0 && (count & (count - 1)) != 0)
        return items; /* capacities are powers of two */
    void *grown = gd_arena_alloc_array(arena(c), count == 0 ? 1 : (size_t)count * 2, item_bytes);
    if (count > 0)
        memcpy(grown, items, (size_t)count * item_bytes);
    return grown;
}

const struct tpl_token *tpl_token(const struct tpl_compiler *c)
{
    return &c->tokens[c->at];
}

static const struct tpl_token *next(struct tpl_compiler *c)
{
    const struct tpl_token *token = tpl_token(c);
    if (token->kind != TPL_TOKEN_END)
        c->at++;
    return token;
}

static bool is(const struct tpl_token *token, enum tpl_token_kind kind, const char *text)
{
    return token->kind == kind && token->length == strlen(text) && memcmp(token->text, text, token->length) == 0;
}

bool tpl_at_name(const struct tpl_compiler *c, const char *name)
{
    return is(tpl_token(c), TPL_TOKEN_NAME, name);
}

bool tpl_at_operator(const struct tpl_compiler *c, const char *text)
{
    return is(tpl_token(c), TPL_TOKEN_OPERATOR, text);
}

bool tpl_skip_name(struct tpl_compiler *c, const char *name)
{
    bool found = tpl_at_name(c, name);
    c->at += found;
    return found;
}

bool tpl_skip_operator(struct tpl_compiler *c, const char *text)
{
    bool found = tpl_at_operator(c, text);
    c->at += found;
    return found;
}

_Noreturn void tpl_unexpected(struct tpl_compiler *c, const char *wanted)
{
    static const char *const kinds[] = {
        [TPL_TOKEN_DATA] = "template text", [TPL_TOKEN_BLOCK_BEGIN] = "'{%'", [TPL_TOKEN_BLOCK_END] = "'%}'",
        [TPL_TOKEN_VARIABLE_BEGIN] = "'{{'", [TPL_TOKEN_VARIABLE_END] = "'}}'", [TPL_TOKEN_STRING] = "a string",
        [TPL_TOKEN_INTEGER] = "a number", [TPL_TOKEN_FLOAT] = "a number", [TPL_TOKEN_END] = "the end of the template",
    };
    const struct tpl_token *token = tpl_token(c);
    if (token->kind == TPL_TOKEN_NAME || token->kind == TPL_TOKEN_OPERATOR)
        tpl_syntax_error(c, token->line, token->column, "expected %s, found '%.*s'", wanted,
                         (int)(token->length < 60 ? token->length : 60), token->text);
    tpl_syntax_error(c, token->line, token->column, "expected %s, found %s", wanted, kinds[token->kind]);
}

void tpl_expect_operator(struct tpl_compiler *c, const char *text)
{
    char wanted[8] = {'\''};
    strcat(strcat(wanted, text), "'");
    if (!tpl_skip_operator(c, text))
        tpl_unexpected(c, wanted);
}

const struct tpl_token *tpl_expect(struct tpl_compiler *c, enum tpl_token_kind kind)
{
    if (tpl_token(c)->kind != kind)
        tpl_unexpected(c, kind == TPL_TOKEN_NAME ? "a name" : kind == TPL_TOKEN_BLOCK_END ? "'%}'" : "'}}'");
    return next(c);
}

void tpl_nest(struct tpl_compiler *c)
{
    if (++c->nesting > TPL_NESTING_MAX)
        tpl_syntax_error(c, tpl_token(c)->line, tpl_token(c)->column, "nested more than %d deep", TPL_NESTING_MAX);
}

static uint32_t hash_name(const char *name, size_t length)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)name[i]) * 16777619u;
    return hash;
}

static void rehash(struct tpl_compiler *c)
{
    struct gd_template *t = c->tmpl;
    t->symbol_slot_count = t->symbol_slot_count == 0 ? 128 : t->symbol_slot_count * 2;
    t->symbol_slots = gd_arena_alloc_array(&t->arena, (size_t)t->symbol_slot_count, sizeof *t->symbol_slots);
    memset(t->symbol_slots, 0xFF, (size_t)t->symbol_slot_count * sizeof *t->symbol_slots);
    for (int i = 0; i < t->symbol_count; i++) {
        uint32_t slot = hash_name(t->symbols[i], strlen(t->symbols[i]));
        while (t->symbol_slots[slot & (uint32_t)(t->symbol_slot_count - 1)] >= 0)
            slot++;
        t->symbol_slots[slot & (uint32_t)(t->symbol_slot_count - 1)] = i;
    }
}

int tpl_symbol(struct tpl_compiler *c, const char *name, size_t length)
{
    struct gd_template *t = c->tmpl;
    if (t->symbol_count * 2 >= t->symbol_slot_count)
        rehash(c);
    uint32_t mask = (uint32_t)(t->symbol_slot_count - 1), slot = hash_name(name, length);
    for (; t->symbol_slots[slot & mask] >= 0; slot++) {
        const char *known = t->symbols[t->symbol_slots[slot & mask]];
        if (strlen(known) == length && memcmp(known, name, length) == 0)
            return t->symbol_slots[slot & mask];
    }
    t->symbols = tpl_grow(c, t->symbols, t->symbol_count, sizeof *t->symbols);
    t->symbols[t->symbol_count] = gd_arena_strndup(&t->arena, name, length);
    t->symbol_slots[slot & mask] = t->symbol_count;
    return t->symbol_count++;
}

static const struct tpl_text *constant_text(struct tpl_compiler *c, const char *data, size_t length)
{
    struct tpl_text *text = gd_arena_alloc(arena(c), sizeof *text);
    text->data = data;
    text->length = length;
    return text;
}

static struct tpl_expr *new_expr(struct tpl_compiler *c, enum tpl_expr_kind kind, int line)
{
    struct tpl_expr *expr = gd_arena_alloc(arena(c), sizeof *expr);
    expr->kind = kind;
    expr->line = line;
    return expr;
}

static void add_item(struct tpl_compiler *c, struct tpl_expr *expr, struct tpl_expr *item)
{
    expr->items = tpl_grow(c, expr->items, expr->count, sizeof *expr->items);
    expr->items[expr->count++] = item;
}

static struct tpl_expr *constant(struct tpl_compiler *c, int line, struct tpl_value value)
{
    struct tpl_expr *expr = new_expr(c, TPL_EXPR_CONST, line);
    expr->constant = value;
    return expr;
}

static void note_special_name(struct tpl_compiler *c, const struct tpl_token *name)
{
    for (struct tpl_callable *callable = c->callable; callable != NULL; callable = callable->outer) {
        callable->wants_varargs |= is(name, TPL_TOKEN_NAME, "varargs");
        callable->wants_kwargs |= is(name, TPL_TOKEN_NAME, "kwargs");
        callable->wants_caller |= is(name, TPL_TOKEN_NAME, "caller");
    }
}

static struct tpl_expr *parse_name(struct tpl_compiler *c)
{
    const struct tpl_token *token = next(c);
    if (is(token, TPL_TOKEN_NAME, "true") || is(token, TPL_TOKEN_NAME, "True"))
        return constant(c, token->line, tpl_bool(true));
    if (is(token, TPL_TOKEN_NAME, "false") || is(token, TPL_TOKEN_NAME, "False"))
        return constant(c, token->line, tpl_bool(false));
    if (is(token, TPL_TOKEN_NAME, "none") || is(token, TPL_TOKEN_NAME, "None"))
        return constant(c, token->line, tpl_none());
    note_special_name(c, token);
    struct tpl_expr *expr = new_expr(c, TPL_EXPR_NAME, token->line);
    expr->symbol = tpl_symbol(c, token->text, token->length);
    expr->constant = tpl_text_value(constant_text(c, token->text, token->length));
    return expr;
}

/* Adjacent strings are one string. */
static struct tpl_expr *parse_string(struct tpl_compiler *c)
{
    int line = tpl_token(c)->line, first = c->at;
    size_t length = 0;
    for (; tpl_token(c)->kind == TPL_TOKEN_STRING; c->at++)
        length += tpl_token(c)->length;
    if (c->at == first + 1)
        return constant(c, line, tpl_text_value(constant_text(c, c->tokens[first].text, length)));
    char *joined = gd_arena_alloc(arena(c), length + 1);
    size_t used = 0;
    for (int i = first; i < c->at; i++) {
        memcpy(joined + used, c->tokens[i].text, c->tokens[i].length);
        used += c->tokens[i].length;
    }
    return constant(c, line, tpl_text_value(constant_text(c, joined, length)));
}

static struct tpl_expr *parse_list(struct tpl_compiler *c)
{
    struct tpl_expr *list = new_expr(c, TPL_EXPR_LIST, next(c)->line);
    while (!tpl_at_operator(c, "]")) {
        if (list->count > 0) {
            tpl_expect_operator(c, ",");
            if (tpl_at_operator(c, "]"))
                break;
        }
        add_item(c, list, tpl_parse_expression(c, true));
    }
    tpl_expect_operator(c, "]");
    return list;
}

static struct tpl_expr *parse_dict(struct tpl_compiler *c)
{
    struct tpl_expr *dict = new_expr(c, TPL_EXPR_DICT, next(c)->line);
    while (!tpl_at_operator(c, "}")) {
        if (dict->count > 0) {
            tpl_expect_operator(c, ",");
            if (tpl_at_operator(c, "}"))
                break;
        }
        add_item(c, dict, tpl_parse_expression(c, true));
        tpl_expect_operator(c, ":");
        add_item(c, dict, tpl_parse_expression(c, true));
    }
    tpl_expect_operator(c, "}");
    return dict;
}

static struct tpl_expr *parse_primary(struct tpl_compiler *c)
{
    const struct tpl_token *token = tpl_token(c);
    switch (token->kind) {
    case TPL_TOKEN_NAME:
        return parse_name(c);
    case TPL_TOKEN_STRING:
        return parse_string(c);
    case TPL_TOKEN_INTEGER:
        next(c);
        return constant(c, token->line, tpl_int(token->integer));
    case TPL_TOKEN_FLOAT:
        next(c);
        return constant(c, token->line, tpl_float(token->number));
    default:
        break;
    }
    if (tpl_skip_operator(c, "(")) {
        struct tpl_expr *inner = tpl_parse_tuple(c, true, NULL, true);
        tpl_expect_operator(c, ")");
        return inner;
    }
    if (tpl_at_operator(c, "["))
        return parse_list(c);
    if (tpl_at_operator(c, "{"))
        return parse_dict(c);
    tpl_unexpected(c, "an expression");
}

static struct tpl_suffix *add_suffix(struct tpl_compiler *c, struct tpl_suffix **suffixes, int *count,
                                     enum tpl_suffix_kind kind)
{
    *suffixes = tpl_grow(c, *suffixes, *count, sizeof **suffixes);
    struct tpl_suffix *suffix = &(*suffixes)[(*count)++];
    memset(suffix, 0, sizeof *suffix);
    suffix->kind = kind;
    suffix->line = tpl_token(c)->line;
    return suffix;
}

static void parse_keyword(struct tpl_compiler *c, struct tpl_arguments *a)
{
    const struct tpl_token *name = next(c);
    next(c);
    a->keywords = tpl_grow(c, a->keywords, a->keyword_count, sizeof *a->keywords);
    a->keyword_values = tpl_grow(c, a->keyword_values, a->keyword_count, sizeof *a->keyword_values);
    a->keywords[a->keyword_count] = constant_text(c, name->text, name->length);
    for (int i = 0; i < a->keyword_count; i++) {
        if (a->keywords[i]->length == name->length && memcmp(a->keywords[i]->data, name->text, name->length) == 0)
            tpl_syntax_error(c, name->line, name->column, "keyword argument '%.*s' given twice", (int)name->length,
                             name->text);
    }
    int at = a->keyword_count++;
    struct tpl_expr *value = tpl_parse_expression(c, true);
    a->keyword_values[at] = value;
}

static void parse_argument(struct tpl_compiler *c, struct tpl_arguments *a)
{
    const struct tpl_token *token = tpl_token(c);
    bool keyword = token->kind == TPL_TOKEN_NAME && is(&c->tokens[c->at + 1], TPL_TOKEN_OPERATOR, "=");
    bool spread = tpl_at_operator(c, "*"), keyword_spread = tpl_at_operator(c, "**");
    if (a->keyword_spread != NULL || (spread && a->spread != NULL) ||
        (!keyword && !spread && !keyword_spread && (a->spread != NULL || a->keyword_count > 0)))
        tpl_syntax_error(c, token->line, token->column, "invalid order of arguments in a call");
    if (keyword) {
        parse_keyword(c, a);
    } else if (spread || keyword_spread) {
        next(c);
        *(spread ? &a->spread : &a->keyword_spread) = tpl_parse_expression(c, true);
    } else {
        struct tpl_expr *value = tpl_parse_expression(c, true);
        a->values = tpl_grow(c, a->values, a->count, sizeof *a->values);
        a->values[a->count++] = value;
    }
}

static struct tpl_arguments parse_arguments(struct tpl_compiler *c)
{
    struct tpl_arguments arguments = {0};
    tpl_expect_operator(c, "(");
    for (bool first = true; !tpl_at_operator(c, ")"); first = false) {
        if (!first) {
            tpl_expect_operator(c, ",");
            if (tpl_at_operator(c, ")"))
                break;
        }
        parse_argument(c, &arguments);
    }
    tpl_expect_operator(c, ")");
    return arguments;
}

/* A bound of a slice, or NULL where none is written. */
static struct tpl_expr *parse_bound(struct tpl_compiler *c)
{
    if (tpl_at_operator(c, ":") || tpl_at_operator(c, "]") || tpl_at_operator(c, ","))
        return NULL;
    return tpl_parse_expression(c, true);
}

static void parse_subscript(struct tpl_compiler *c, struct tpl_suffix **suffixes, int *count)
{
    struct tpl_suffix parsed = {.kind = TPL_ITEM};
    parsed.index[0] = parse_bound(c);
    if (tpl_skip_operator(c, ":")) {
        parsed.kind = TPL_SLICE;
        parsed.index[1] = parse_bound(c);
        if (tpl_skip_operator(c, ":"))
            parsed.index[2] = parse_bound(c);
    } else if (parsed.index[0] == NULL) {
        tpl_unexpected(c, "an index");
    } else if (tpl_at_operator(c, ",")) {
        struct tpl_expr *tuple = new_expr(c, TPL_EXPR_TUPLE, tpl_token(c)->line);
        add_item(c, tuple, parsed.index[0]);
        while (tpl_skip_operator(c, ","))
            add_item(c, tuple, tpl_parse_expression(c, true));
        parsed.index[0] = tuple;
    }
    tpl_expect_operator(c, "]");
    struct tpl_suffix *suffix = add_suffix(c, suffixes, count, parsed.kind);
    memcpy(suffix->index, parsed.index, sizeof parsed.index);
}

/* .name .0 [index] [a:b:c] (arguments). Returns false when nothing of the kind follows. */
static bool parse_postfix(struct tpl_compiler *c, struct tpl_suffix **suffixes, int *count)
{
    if (tpl_skip_operator(c, ".")) {
        const struct tpl_token *token = next(c);
        if (token->kind != TPL_TOKEN_NAME && token->kind != TPL_TOKEN_INTEGER)
            tpl_syntax_error(c, token->line, token->column, "expected a name or number after '.'");
        bool name = token->kind == TPL_TOKEN_NAME;
        struct tpl_suffix *suffix = add_suffix(c, suffixes, count, name ? TPL_ATTRIBUTE : TPL_ITEM);
        suffix->line = token->line;
        if (name)
            suffix->name = constant_text(c, token->text, token->length);
        else
            suffix->index[0] = constant(c, token->line, tpl_int(token->integer));
        return true;
    }
    if (tpl_skip_operator(c, "[")) {
        parse_subscript(c, suffixes, count);
        return true;
    }
    if (tpl_at_operator(c, "(")) {
        struct tpl_arguments arguments = parse_arguments(c);
        add_suffix(c, suffixes, count, TPL_CALL)->arguments = arguments;
        return true;
    }
    return false;
}

static const struct tpl_text *parse_dotted_name(struct tpl_compiler *c)
{
    const struct tpl_token *first = tpl_expect(c, TPL_TOKEN_NAME), *last = first;
    while (tpl_skip_operator(c, "."))
        last = tpl_expect(c, TPL_TOKEN_NAME);
    return constant_text(c, first->text, (size_t)(last->text + last->length - first->text));
}

static void parse_filter(struct tpl_compiler *c, struct tpl_suffix **suffixes, int *count)
{
    const struct tpl_token *token = tpl_token(c);
    struct tpl_suffix filter = {.kind = TPL_FILTER, .line = token->line, .name = parse_dotted_name(c)};
    filter.function = tpl_find_filter(filter.name->data, filter.name->length);
    if (filter.function == NULL && c->soft == 0 && c->unknown == NULL)
        c->unknown = token;
    if (tpl_at_operator(c, "("))
        filter.arguments = parse_arguments(c);
    *add_suffix(c, suffixes, count, TPL_FILTER) = filter;
}

void tpl_parse_filters(struct tpl_compiler *c, bool bare, struct tpl_suffix **suffixes, int *count)
{
    while (bare || tpl_skip_operator(c, "|")) {
        parse_filter(c, suffixes, count);
        bare = false;
    }
}

static struct tpl_expr *suffixed(struct tpl_compiler *c, struct tpl_expr *base, struct tpl_suffix *suffixes, int count)
{
    if (count == 0)
        return base;
    struct tpl_expr *expr = new_expr(c, TPL_EXPR_SUFFIXED, base->line);
    expr->items = tpl_grow(c, NULL, 0, sizeof *expr->items);
    expr->items[0] = base;
    expr->suffixes = suffixes;
    expr->count = count;
    return expr;
}

/* The one argument that a test may take without parentheses. */
static void parse_test_argument(struct tpl_compiler *c, struct tpl_arguments *arguments)
{
    const struct tpl_token *token = tpl_token(c);
    if (token->kind == TPL_TOKEN_DATA || token->kind == TPL_TOKEN_END || tpl_at_name(c, "else") ||
        tpl_at_name(c, "or") || tpl_at_name(c, "and"))
        return;
    if (tpl_at_name(c, "is"))
        tpl_syntax_error(c, token->line, token->column, "tests with 'is' cannot be chained");
    bool opens = tpl_at_operator(c, "[") || tpl_at_operator(c, "{");
    if (token->kind != TPL_TOKEN_NAME && token->kind != TPL_TOKEN_STRING && token->kind != TPL_TOKEN_INTEGER &&
        token->kind != TPL_TOKEN_FLOAT && !opens)
        return;
    struct tpl_suffix *suffixes = NULL;
    int count = 0;
    struct tpl_expr *value = parse_primary(c);
    while (parse_postfix(c, &suffixes, &count))
        continue;
    arguments->values = tpl_grow(c, NULL, 0, sizeof *arguments->values);
    arguments->values[arguments->count++] = suffixed(c, value, suffixes, count);
}

static void parse_test(struct tpl_compiler *c, struct tpl_suffix **suffixes, int *count)
{
    struct tpl_suffix test = {.kind = TPL_TEST, .negated = tpl_skip_name(c, "not")};
    const struct tpl_token *token = tpl_token(c);
    test.line = token->line;
    test.name = parse_dotted_name(c);
    test.function = tpl_find_test(test.name->data, test.name->length);
    if (test.function == NULL && c->soft == 0 && c->unknown == NULL)
        c->unknown = token;
    if (tpl_at_operator(c, "("))
        test.arguments = parse_arguments(c);
    else
        parse_test_argument(c, &test.arguments);
    *add_suffix(c, suffixes, count, TPL_TEST) = test;
}

static struct tpl_expr *parse_unary(struct tpl_compiler *c, bool filters)
{
    struct tpl_expr *expr;
    int line = tpl_token(c)->line;
    bool minus = tpl_skip_operator(c, "-");
    if (minus || tpl_skip_operator(c, "+")) {
        tpl_nest(c);
        expr = new_expr(c, minus ? TPL_EXPR_NEGATE : TPL_EXPR_PLUS, line);
        add_item(c, expr, parse_unary(c, false));
        c->nesting--;
    } else {
        expr = parse_primary(c);
    }
    struct tpl_suffix *suffixes = NULL;
    int count = 0;
    while (parse_postfix(c, &suffixes, &count))
        continue;
    while (filters) {
        if (tpl_skip_operator(c, "|")) {
            parse_filter(c, &suffixes, &count);
        } else if (tpl_skip_name(c, "is")) {
            parse_test(c, &suffixes, &count);
        } else if (tpl_at_operator(c, "(")) {
            parse_postfix(c, &suffixes, &count);
        } else {
            break;
        }
    }
    return suffixed(c, expr, suffixes, count);
}

struct operator_name {
    const char *text;
    enum tpl_operator operator_;
};

static bool skip_operator_of(struct tpl_compiler *c, const struct operator_name *names, size_t count,
                             unsigned char *found)
{
    for (size_t i = 0; i < count; i++) {
        if (tpl_skip_operator(c, names[i].text)) {
            *found = (unsigned char)names[i].operator_;
            return true;
        }
    }
    return false;
}

/* left, or the chain so far (NULL: none yet), and another operand behind an operator. */
static struct tpl_expr *add_operand(struct tpl_compiler *c, struct tpl_expr *chain, enum tpl_expr_kind kind, struct tpl_expr *left,
                                    unsigned char found, struct tpl_expr *right)
{
    if (chain == NULL) {
        chain = new_expr(c, kind, left->line);
        add_item(c, chain, left);
    }
    chain->operators = tpl_grow(c, chain->operators, chain->count - 1, 1);
    chain->operators[chain->count - 1] = found;
    add_item(c, chain, right);
    return chain;
}

static struct tpl_expr *parse_chain(struct tpl_compiler *c, struct tpl_expr *(*operand)(struct tpl_compiler *c),
                                    const struct operator_name *names, size_t count)
{
    struct tpl_expr *left = operand(c), *chain = NULL;
    unsigned char found;
    while (skip_operator_of(c, names, count, &found)) {
        struct tpl_expr *right = operand(c);
        chain = add_operand(c, chain, TPL_EXPR_ARITHMETIC, left, found, right);
    }
    return chain == NULL ? left : chain;
}

static struct tpl_expr *parse_factor(struct tpl_compiler *c)
{
    return parse_unary(c, true);
}

static struct tpl_expr *parse_power(struct tpl_compiler *c)
{
    static const struct operator_name names[] = {{"**", TPL_POWER}};
    return parse_chain(c, parse_factor, names, GD_COUNT(names));
}

static struct tpl_expr *parse_product(struct tpl_compiler *c)
{
    static const struct operator_name names[] = {
        {"*", TPL_MULTIPLY}, {"/", TPL_DIVIDE}, {"//", TPL_FLOOR_DIVIDE}, {"%", TPL_MODULO}};
    return parse_chain(c, parse_power, names, GD_COUNT(names));
}

/* Operands joined by one operator or word; a single operand is itself. */
static struct tpl_expr *parse_joined(struct tpl_compiler *c, struct tpl_expr *(*operand)(struct tpl_compiler *c),
                                     enum tpl_expr_kind kind, const char *word)
{
    struct tpl_expr *first = operand(c), *joined = NULL;
    while (kind == TPL_EXPR_CONCAT ? tpl_skip_operator(c, word) : tpl_skip_name(c, word)) {
        struct tpl_expr *right = operand(c);
        if (joined == NULL) {
            joined = new_expr(c, kind, first->line);
            add_item(c, joined, first);
        }
        add_item(c, joined, right);
    }
    return joined == NULL ? first : joined;
}

static struct tpl_expr *parse_concat(struct tpl_compiler *c)
{
    return parse_joined(c, parse_product, TPL_EXPR_CONCAT, "~");
}

static struct tpl_expr *parse_sum(struct tpl_compiler *c)
{
    static const struct operator_name names[] = {{"+", TPL_ADD}, {"-", TPL_SUBTRACT}};
    return parse_chain(c, parse_concat, names, GD_COUNT(names));
}

static bool skip_comparison(struct tpl_compiler *c, unsigned char *found)
{
    static const struct operator_name names[] = {{"==", TPL_EQ}, {"!=", TPL_NE}, {"<", TPL_LT},
                                                 {"<=", TPL_LE}, {">", TPL_GT},  {">=", TPL_GE}};
    if (skip_operator_of(c, names, GD_COUNT(names), found))
        return true;
    if (tpl_skip_name(c, "in")) {
        *found = TPL_IN;
        return true;
    }
    if (tpl_at_name(c, "not") && is(&c->tokens[c->at + 1], TPL_TOKEN_NAME, "in")) {
        c->at += 2;
        *found = TPL_NOT_IN;
        return true;
    }
    return false;
}

static struct tpl_expr *parse_comparison(struct tpl_compiler *c)
{
    struct tpl_expr *left = parse_sum(c), *chain = NULL;
    unsigned char found;
    while (skip_comparison(c, &found)) {
        struct tpl_expr *right = parse_sum(c);
        chain = add_operand(c, chain, TPL_EXPR_COMPARE, left, found, right);
    }
    return chain == NULL ? left : chain;
}

static struct tpl_expr *parse_not(struct tpl_compiler *c)
{
    if (!tpl_at_name(c, "not"))
        return parse_comparison(c);
    struct tpl_expr *expr = new_expr(c, TPL_EXPR_NOT, next(c)->line);
    tpl_nest(c);
    add_item(c, expr, parse_not(c));
    c->nesting--;
    return expr;
}

static struct tpl_expr *parse_and(struct tpl_compiler *c)
{
    return parse_joined(c, parse_not, TPL_EXPR_AND, "and");
}

static struct tpl_expr *parse_or(struct tpl_compiler *c)
{
    return parse_joined(c, parse_and, TPL_EXPR_OR, "or");
}

struct tpl_expr *tpl_parse_expression(struct tpl_compiler *c, bool conditional)
{
    int nesting = c->nesting;
    const struct tpl_token *unknown = c->unknown;
    tpl_nest(c);
    struct tpl_expr *expr = parse_or(c);
    while (conditional && tpl_skip_name(c, "if")) {
        tpl_nest(c); /* `a if b if c` puts each one inside the next */
        c->soft++;
        c->unknown = unknown; /* what stands before the if is evaluated on a condition */
        struct tpl_expr *condition = new_expr(c, TPL_EXPR_CONDITION, expr->line);
        add_item(c, condition, parse_or(c));
        add_item(c, condition, expr);
        add_item(c, condition, tpl_skip_name(c, "else") ? tpl_parse_expression(c, true) : NULL);
        c->soft--;
        expr = condition;
    }
    c->nesting = nesting;
    return expr;
}

static bool tuple_ends(const struct tpl_compiler *c, const char *until)
{
    enum tpl_token_kind kind = tpl_token(c)->kind;
    return kind == TPL_TOKEN_VARIABLE_END || kind == TPL_TOKEN_BLOCK_END || tpl_at_operator(c, ")") ||
           (until != NULL && tpl_at_name(c, until));
}

struct tpl_expr *tpl_parse_tuple(struct tpl_compiler *c, bool conditional, const char *until, bool parenthesised)
{
    int line = tpl_token(c)->line;
    struct tpl_expr *tuple = NULL, *only = NULL;
    while (!tuple_ends(c, until)) {
        struct tpl_expr *item = tpl_parse_expression(c, conditional);
        if (tuple == NULL && !tpl_at_operator(c, ",")) {
            only = item;
            break;
        }
        if (tuple == NULL)
            tuple = new_expr(c, TPL_EXPR_TUPLE, line);
        add_item(c, tuple, item);
        if (!tpl_skip_operator(c, ","))
            break;
    }
    if (only != NULL)
        return only;
    if (tuple == NULL && !parenthesised)
        tpl_unexpected(c, "an expression");
    return tuple == NULL ? new_expr(c, TPL_EXPR_TUPLE, line) : tuple;
}
