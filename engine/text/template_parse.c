/* The statement half of the parser. */
#include "engine/text/template_tree.h"
#include <string.h>

static struct tpl_block parse_block(struct tpl_compiler *c, const char *const *ends, size_t end_count);

static struct tpl_statement *new_statement(struct tpl_compiler *c, enum tpl_statement_kind kind, int line)
{
    struct tpl_statement *statement = gd_arena_alloc(&c->tmpl->arena, sizeof *statement);
    statement->kind = kind;
    statement->line = line;
    return statement;
}

static const struct tpl_text *token_text(struct tpl_compiler *c, const struct tpl_token *token)
{
    struct tpl_text *text = gd_arena_alloc(&c->tmpl->arena, sizeof *text);
    text->data = token->text;
    text->length = token->length;
    return text;
}

static void expect_block_end(struct tpl_compiler *c)
{
    (void)tpl_expect(c, TPL_TOKEN_BLOCK_END);
}

/* The statements up to one of `ends`, whose name is left as the current token. */
static struct tpl_block parse_body(struct tpl_compiler *c, const char *const *ends, size_t end_count)
{
    tpl_skip_operator(c, ":");
    expect_block_end(c);
    return parse_block(c, ends, end_count);
}

/* The same with one end, which is read too (its %} is the statement's). */
static struct tpl_block parse_body_to(struct tpl_compiler *c, const char *end)
{
    struct tpl_block block = parse_body(c, &end, 1);
    c->at++;
    return block;
}

/* Bodies that run apart from the loop around them: break cannot leave through them. */
static struct tpl_block parse_detached_body(struct tpl_compiler *c, const char *end)
{
    int loops = c->loops, soft = c->soft;
    c->loops = c->soft = 0;
    struct tpl_block block = parse_body_to(c, end);
    c->loops = loops;
    c->soft = soft;
    return block;
}

static void parse_target_name(struct tpl_compiler *c, struct tpl_target *target, bool namespaces)
{
    const struct tpl_token *token = tpl_expect(c, TPL_TOKEN_NAME);
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None", "loop"};
    for (size_t i = 0; i < GD_COUNT(reserved) - (c->fors == 0); i++) { /* outside loops, loop is a name like others */
        if (strlen(reserved[i]) == token->length && memcmp(reserved[i], token->text, token->length) == 0)
            tpl_syntax_error(c, token->line, token->column, "can't assign to '%s'", reserved[i]);
    }
    target->kind = TPL_TARGET_NAME;
    target->symbol = tpl_symbol(c, token->text, token->length);
    target->name = token_text(c, token);
    if (namespaces && tpl_skip_operator(c, ".")) {
        target->kind = TPL_TARGET_NAMESPACE;
        target->attribute = token_text(c, tpl_expect(c, TPL_TOKEN_NAME));
    }
}

static struct tpl_target parse_target(struct tpl_compiler *c, bool namespaces);

static void parse_target_item(struct tpl_compiler *c, struct tpl_target *target, bool namespaces)
{
    if (tpl_skip_operator(c, "(")) {
        tpl_nest(c);
        *target = parse_target(c, namespaces);
        tpl_expect_operator(c, ")");
        c->nesting--;
    } else {
        parse_target_name(c, target, namespaces);
    }
}

static struct tpl_target parse_target(struct tpl_compiler *c, bool namespaces)
{
    struct tpl_target first = {0};
    parse_target_item(c, &first, namespaces);
    if (!tpl_at_operator(c, ","))
        return first;
    struct tpl_target tuple = {.kind = TPL_TARGET_TUPLE};
    tuple.items = tpl_grow(c, NULL, 0, sizeof *tuple.items);
    tuple.items[tuple.count++] = first;
    while (tpl_skip_operator(c, ",")) {
        if (tpl_token(c)->kind != TPL_TOKEN_NAME && !tpl_at_operator(c, "("))
            break;
        if (tpl_at_name(c, "in"))
            break;
        struct tpl_target item = {0};
        parse_target_item(c, &item, namespaces);
        tuple.items = tpl_grow(c, tuple.items, tuple.count, sizeof *tuple.items);
        tuple.items[tuple.count++] = item;
    }
    return tuple;
}

static struct tpl_statement *parse_for(struct tpl_compiler *c, int line)
{
    static const char *const ends[] = {"endfor", "else"};
    struct tpl_statement *loop = new_statement(c, TPL_FOR, line);
    c->fors++;
    loop->target = parse_target(c, false);
    if (!tpl_skip_name(c, "in"))
        tpl_unexpected(c, "'in'");
    loop->value = tpl_parse_tuple(c, false, "recursive", false);
    if (tpl_skip_name(c, "if"))
        loop->test = tpl_parse_expression(c, true);
    loop->recursive = tpl_skip_name(c, "recursive");
    int soft = c->soft;
    c->soft = 0;
    c->loops++;
    loop->body = parse_body(c, ends, GD_COUNT(ends));
    c->loops--;
    if (tpl_skip_name(c, "else"))
        loop->otherwise = parse_body_to(c, "endfor");
    else
        c->at++;
    c->soft = soft;
    c->fors--;
    return loop;
}

static struct tpl_statement *parse_if(struct tpl_compiler *c, int line)
{
    static const char *const ends[] = {"elif", "else", "endif"};
    struct tpl_statement *statement = new_statement(c, TPL_IF, line);
    c->soft++;
    for (bool more = true; more;) {
        struct tpl_branch branch = {.test = tpl_parse_tuple(c, false, NULL, false)};
        branch.body = parse_body(c, ends, GD_COUNT(ends));
        statement->branches = tpl_grow(c, statement->branches, statement->branch_count, sizeof branch);
        statement->branches[statement->branch_count++] = branch;
        more = tpl_skip_name(c, "elif");
    }
    if (tpl_skip_name(c, "else")) {
        struct tpl_branch branch = {.body = parse_body_to(c, "endif")};
        statement->branches = tpl_grow(c, statement->branches, statement->branch_count, sizeof branch);
        statement->branches[statement->branch_count++] = branch;
    } else {
        c->at++;
    }
    c->soft--;
    return statement;
}

static struct tpl_statement *parse_set(struct tpl_compiler *c, int line)
{
    struct tpl_statement *set = new_statement(c, TPL_SET, line);
    set->target = parse_target(c, true);
    if (tpl_skip_operator(c, "=")) {
        set->value = tpl_parse_tuple(c, true, NULL, false);
        return set;
    }
    set->kind = TPL_SET_BLOCK;
    tpl_parse_filters(c, false, &set->filters, &set->filter_count);
    int loops = c->loops;
    c->loops = 0;
    set->body = parse_body_to(c, "endset");
    c->loops = loops;
    return set;
}

static void parse_signature(struct tpl_compiler *c, struct tpl_callable *callable)
{
    tpl_expect_operator(c, "(");
    while (!tpl_at_operator(c, ")")) {
        if (callable->count > 0)
            tpl_expect_operator(c, ",");
        struct tpl_target parameter = {0};
        parse_target_name(c, &parameter, false);
        callable->symbols = tpl_grow(c, callable->symbols, callable->count, sizeof *callable->symbols);
        callable->names = tpl_grow(c, callable->names, callable->count, sizeof *callable->names);
        callable->symbols[callable->count] = parameter.symbol;
        callable->names[callable->count++] = parameter.name;
        if (tpl_skip_operator(c, "=")) {
            struct tpl_expr *value = tpl_parse_expression(c, true);
            callable->defaults = tpl_grow(c, callable->defaults, callable->default_count, sizeof value);
            callable->defaults[callable->default_count++] = value;
        } else if (callable->default_count > 0) {
            tpl_syntax_error(c, tpl_token(c)->line, tpl_token(c)->column,
                             "a parameter without a default after one that has one");
        }
    }
    tpl_expect_operator(c, ")");
}

static struct tpl_callable *begin_callable(struct tpl_compiler *c)
{
    struct tpl_callable *callable = gd_arena_alloc(&c->tmpl->arena, sizeof *callable);
    callable->outer = c->callable;
    return callable;
}

static struct tpl_statement *parse_macro(struct tpl_compiler *c, int line)
{
    struct tpl_statement *macro = new_statement(c, TPL_DEFINE_MACRO, line);
    parse_target_name(c, &macro->target, false);
    macro->callable = begin_callable(c);
    macro->callable->name = macro->target.name;
    parse_signature(c, macro->callable);
    c->callable = macro->callable;
    macro->callable->body = parse_detached_body(c, "endmacro");
    c->callable = macro->callable->outer;
    return macro;
}

static struct tpl_statement *parse_call(struct tpl_compiler *c, int line)
{
    struct tpl_statement *call = new_statement(c, TPL_CALL_BLOCK, line);
    call->callable = begin_callable(c);
    if (tpl_at_operator(c, "("))
        parse_signature(c, call->callable);
    const struct tpl_token *token = tpl_token(c);
    call->value = tpl_parse_expression(c, true);
    if (call->value->kind != TPL_EXPR_SUFFIXED || call->value->suffixes[call->value->count - 1].kind != TPL_CALL)
        tpl_syntax_error(c, token->line, token->column, "{%% call %%} needs a call");
    c->callable = call->callable;
    call->callable->body = parse_detached_body(c, "endcall");
    c->callable = call->callable->outer;
    return call;
}

static struct tpl_statement *parse_filter_block(struct tpl_compiler *c, int line)
{
    struct tpl_statement *filter = new_statement(c, TPL_FILTER_BLOCK, line);
    tpl_parse_filters(c, true, &filter->filters, &filter->filter_count);
    int loops = c->loops;
    c->loops = 0;
    filter->body = parse_body_to(c, "endfilter");
    c->loops = loops;
    return filter;
}

static struct tpl_statement *parse_with(struct tpl_compiler *c, int line)
{
    struct tpl_statement *with = new_statement(c, TPL_WITH, line);
    while (tpl_token(c)->kind != TPL_TOKEN_BLOCK_END) {
        if (with->with_count > 0)
            tpl_expect_operator(c, ",");
        struct tpl_target target = {0};
        parse_target_item(c, &target, false);
        tpl_expect_operator(c, "=");
        struct tpl_expr *value = tpl_parse_expression(c, true);
        with->targets = tpl_grow(c, with->targets, with->with_count, sizeof *with->targets);
        with->values = tpl_grow(c, with->values, with->with_count, sizeof *with->values);
        with->targets[with->with_count] = target;
        with->values[with->with_count++] = value;
    }
    with->body = parse_body_to(c, "endwith");
    return with;
}

static struct tpl_statement *parse_generation(struct tpl_compiler *c, int line)
{
    struct tpl_statement *generation = new_statement(c, TPL_GENERATION, line);
    c->tmpl->has_generation = true;
    generation->body = parse_detached_body(c, "endgeneration");
    return generation;
}

static struct tpl_statement *parse_loop_control(struct tpl_compiler *c, int line, enum tpl_statement_kind kind)
{
    if (c->loops == 0)
        tpl_syntax_error(c, line, tpl_token(c)->column, "'%s' outside a loop", kind == TPL_BREAK ? "break" : "continue");
    return new_statement(c, kind, line);
}

static struct tpl_statement *parse_print(struct tpl_compiler *c, int line)
{
    struct tpl_statement *print = new_statement(c, TPL_PRINT, line);
    print->value = tpl_parse_tuple(c, true, NULL, false);
    return print;
}

static struct tpl_statement *parse_statement(struct tpl_compiler *c)
{
    static const char *const foreign[] = {"include", "import", "from", "extends", "block", "autoescape", "do",
                                          "trans", "debug"};
    const struct tpl_token *token = tpl_token(c);
    int line = token->line;
    if (tpl_skip_name(c, "for"))
        return parse_for(c, line);
    if (tpl_skip_name(c, "if"))
        return parse_if(c, line);
    if (tpl_skip_name(c, "set"))
        return parse_set(c, line);
    if (tpl_skip_name(c, "macro"))
        return parse_macro(c, line);
    if (tpl_skip_name(c, "call"))
        return parse_call(c, line);
    if (tpl_skip_name(c, "filter"))
        return parse_filter_block(c, line);
    if (tpl_skip_name(c, "with"))
        return parse_with(c, line);
    if (tpl_skip_name(c, "generation"))
        return parse_generation(c, line);
    if (tpl_skip_name(c, "break"))
        return parse_loop_control(c, line, TPL_BREAK);
    if (tpl_skip_name(c, "continue"))
        return parse_loop_control(c, line, TPL_CONTINUE);
    for (size_t i = 0; i < GD_COUNT(foreign); i++) {
        if (tpl_at_name(c, foreign[i]))
            tpl_syntax_error(c, line, token->column, "{%% %s %%} has no place in a chat template", foreign[i]);
    }
    tpl_unexpected(c, "a statement (for, if, set, macro, call, filter, with, generation)");
}

static void add_statement(struct tpl_compiler *c, struct tpl_block *block, struct tpl_statement *statement)
{
    block->items = tpl_grow(c, block->items, block->count, sizeof *block->items);
    block->items[block->count++] = statement;
}

static bool at_end(const struct tpl_compiler *c, const char *const *ends, size_t end_count)
{
    for (size_t i = 0; i < end_count; i++) {
        if (tpl_at_name(c, ends[i]))
            return true;
    }
    return false;
}

static struct tpl_block parse_block(struct tpl_compiler *c, const char *const *ends, size_t end_count)
{
    struct tpl_block block = {0};
    tpl_nest(c);
    for (;;) {
        const struct tpl_token *token = tpl_token(c);
        if (token->kind == TPL_TOKEN_DATA) {
            struct tpl_statement *data = new_statement(c, TPL_DATA, token->line);
            data->data = token_text(c, token);
            c->at++;
            add_statement(c, &block, data);
        } else if (token->kind == TPL_TOKEN_VARIABLE_BEGIN) {
            c->at++;
            add_statement(c, &block, parse_print(c, token->line));
            (void)tpl_expect(c, TPL_TOKEN_VARIABLE_END);
        } else if (token->kind == TPL_TOKEN_BLOCK_BEGIN) {
            c->at++;
            if (at_end(c, ends, end_count))
                break;
            add_statement(c, &block, parse_statement(c));
            expect_block_end(c);
        } else {
            if (end_count > 0)
                tpl_syntax_error(c, token->line, token->column, "the template ends without '%s'",
                                 ends[end_count - 1]);
            break;
        }
    }
    c->nesting--;
    return block;
}

void tpl_parse(struct tpl_compiler *c)
{
    c->tmpl->body = parse_block(c, NULL, 0);
    if (c->unknown != NULL)
        tpl_syntax_error(c, c->unknown->line, c->unknown->column, "no filter or test named '%.*s'",
                         (int)c->unknown->length, c->unknown->text);
}
