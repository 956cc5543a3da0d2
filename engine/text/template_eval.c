/* Statements, scopes, macros and loops. */
#include "engine/text/template_tree.h"
#include <string.h>

enum flow { FLOW_NORMAL, FLOW_BREAK, FLOW_CONTINUE };

static enum flow run_block(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_block *block);

static struct tpl_scope *inner_scope(struct tpl_render *r, struct tpl_scope *parent)
{
    struct tpl_scope *scope = tpl_alloc(r, sizeof *scope);
    scope->parent = parent;
    return scope;
}

static struct tpl_binding *find_binding(struct tpl_render *r, struct tpl_scope *scope, int symbol)
{
    tpl_charge(r, (size_t)scope->count / 16);
    for (struct tpl_binding *binding = scope->bindings; binding != NULL; binding = binding->next) {
        if (binding->symbol == symbol)
            return binding;
    }
    return NULL;
}

struct tpl_value tpl_lookup(struct tpl_render *r, struct tpl_scope *scope, int symbol, const struct tpl_text *name)
{
    for (; scope != NULL; scope = scope->parent) {
        struct tpl_binding *binding = find_binding(r, scope, symbol);
        if (binding != NULL)
            return binding->value;
    }
    return tpl_undefined_name(r, NULL, name);
}

void tpl_bind(struct tpl_render *r, struct tpl_scope *scope, int symbol, struct tpl_value value)
{
    struct tpl_binding *binding = find_binding(r, scope, symbol);
    if (binding == NULL) {
        binding = tpl_alloc(r, sizeof *binding);
        binding->symbol = symbol;
        binding->next = scope->bindings;
        scope->bindings = binding;
        scope->count++;
    }
    binding->value = value;
}

static void assign_attribute(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_target *target,
                             struct tpl_value value)
{
    struct tpl_value space = tpl_lookup(r, scope, target->symbol, target->name);
    if (space.kind != TPL_NAMESPACE)
        tpl_fail(r, "cannot assign attribute on non-namespace object '%.*s'", (int)target->name->length,
                 target->name->data);
    if (target->attribute->data[0] == '_')
        tpl_fail(r, "a namespace attribute cannot begin with '_'");
    tpl_dict_set(r, space.dict, tpl_text_value(target->attribute), value);
}

/* Names go into `names`, which is `scope` except where a statement fills a scope of its own. */
void tpl_assign(struct tpl_render *r, struct tpl_scope *scope, struct tpl_scope *names, const struct tpl_target *target,
                struct tpl_value value)
{
    if (target->kind == TPL_TARGET_NAME) {
        tpl_bind(r, names, target->symbol, value);
        return;
    }
    if (target->kind == TPL_TARGET_NAMESPACE) {
        assign_attribute(r, scope, target, value);
        return;
    }
    struct tpl_list *items = tpl_items(r, value);
    if (items->count != target->count)
        tpl_fail(r, "cannot unpack %d values into %d names", items->count, target->count);
    for (int i = 0; i < target->count; i++)
        tpl_assign(r, scope, names, &target->items[i], items->items[i]);
}

/* What the block writes, as text. The builder on the C stack is left behind by longjmp, which is harmless. */
static const struct tpl_text *capture(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_block *block)
{
    struct tpl_builder text = {0}, *out = r->out;
    r->out = &text;
    (void)run_block(r, scope, block);
    r->out = out;
    return tpl_built(r, &text);
}

static void enter_call(struct tpl_render *r)
{
    if (++r->macro_depth > TPL_MACRO_DEPTH_MAX)
        tpl_fail(r, "macros and recursive loops call one another more than %d deep", TPL_MACRO_DEPTH_MAX);
}

/* Text of the innermost generation block, unless it comes from another one. */
static void write_text(struct tpl_render *r, const struct tpl_text *text)
{
    if (r->generation == 0) {
        tpl_build_text(r, r->out, text);
        return;
    }
    uint32_t block = r->generation << TPL_GENERATION_SHIFT, begin = 0;
    for (int i = 0; i < (text->run_count == 0 ? 1 : text->run_count); i++) {
        uint32_t end = text->run_count == 0 ? (uint32_t)text->length : text->runs[i].end;
        uint32_t label = text->run_count == 0 ? text->label : text->runs[i].label;
        if (label >> TPL_GENERATION_SHIFT == 0)
            label |= block;
        tpl_build(r, r->out, text->data + begin, end - begin, label);
        begin = end;
    }
}

static void run_generation(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_statement *statement)
{
    uint32_t outer = r->generation;
    if (outer == 0)
        r->generation = ++r->generation_count;
    (void)run_block(r, inner_scope(r, scope), &statement->body);
    r->generation = outer;
}

/* Moves the next item that passes the loop's `if` into `taken`. */
static bool take_item(struct tpl_render *r, struct tpl_loop *loop)
{
    const struct tpl_statement *statement = loop->statement;
    while (loop->source_at < loop->source->count) {
        struct tpl_value item = loop->source->items[loop->source_at++];
        tpl_charge(r, 1);
        if (statement->test != NULL) {
            struct tpl_scope *scope = inner_scope(r, loop->scope);
            tpl_assign(r, scope, scope, &statement->target, item);
            if (!tpl_truthy(tpl_eval(r, scope, statement->test)))
                continue;
        }
        tpl_list_push(r, loop->taken, item);
        return true;
    }
    return false;
}

bool tpl_loop_has(struct tpl_render *r, struct tpl_loop *loop, int index)
{
    while (loop->taken->count <= index) {
        if (!take_item(r, loop))
            return false;
    }
    return true;
}

int64_t tpl_loop_length(struct tpl_render *r, struct tpl_loop *loop)
{
    if (loop->statement->test == NULL)
        return loop->source->count;
    while (take_item(r, loop))
        continue;
    return loop->taken->count;
}

struct tpl_value tpl_loop_attribute(struct tpl_render *r, struct tpl_loop *loop, const struct tpl_text *name)
{
    if (tpl_text_is(name, "index"))
        return tpl_int(loop->index0 + 1);
    if (tpl_text_is(name, "index0"))
        return tpl_int(loop->index0);
    if (tpl_text_is(name, "first"))
        return tpl_bool(loop->index0 == 0);
    if (tpl_text_is(name, "last"))
        return tpl_bool(!tpl_loop_has(r, loop, loop->index0 + 1));
    if (tpl_text_is(name, "length"))
        return tpl_int(tpl_loop_length(r, loop));
    if (tpl_text_is(name, "revindex"))
        return tpl_int(tpl_loop_length(r, loop) - loop->index0);
    if (tpl_text_is(name, "revindex0"))
        return tpl_int(tpl_loop_length(r, loop) - loop->index0 - 1);
    if (tpl_text_is(name, "depth"))
        return tpl_int(loop->depth0 + 1);
    if (tpl_text_is(name, "depth0"))
        return tpl_int(loop->depth0);
    if (tpl_text_is(name, "previtem"))
        return loop->index0 > 0 ? loop->taken->items[loop->index0 - 1]
                                : tpl_undefined_hint(r, "there is no previous item");
    if (tpl_text_is(name, "nextitem"))
        return tpl_loop_has(r, loop, loop->index0 + 1) ? loop->taken->items[loop->index0 + 1]
                                                       : tpl_undefined_hint(r, "there is no next item");
    return (struct tpl_value){.kind = TPL_MISSING};
}

static void run_loop(struct tpl_render *r, struct tpl_loop *loop, int loop_symbol)
{
    const struct tpl_statement *statement = loop->statement;
    bool completed = false;
    for (loop->index0 = 0; tpl_loop_has(r, loop, loop->index0); loop->index0++) {
        struct tpl_scope *scope = inner_scope(r, loop->scope);
        tpl_charge(r, 1);
        tpl_assign(r, scope, scope, &statement->target, loop->taken->items[loop->index0]);
        if (loop_symbol >= 0)
            tpl_bind(r, scope, loop_symbol, (struct tpl_value){.kind = TPL_LOOP, .loop = loop});
        enum flow flow = run_block(r, scope, &statement->body);
        completed |= flow == FLOW_NORMAL;
        if (flow == FLOW_BREAK)
            break;
    }
    if (!completed) /* jinja's else: no iteration came to its end */
        (void)run_block(r, inner_scope(r, loop->scope), &statement->otherwise);
}

static void start_loop(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_statement *statement,
                       struct tpl_value iterable, int depth0)
{
    struct tpl_loop *loop = tpl_alloc(r, sizeof *loop);
    *loop = (struct tpl_loop){.statement = statement, .scope = scope, .depth0 = depth0};
    loop->source = tpl_items(r, iterable);
    loop->taken = tpl_list_new(r, 0);
    if (statement->test == NULL) { /* all at once: no copy */
        loop->taken = loop->source;
        loop->source_at = loop->source->count;
    }
    run_loop(r, loop, r->tmpl->loop_symbol);
}

struct tpl_value tpl_call_loop(struct tpl_render *r, struct tpl_loop *loop, const struct tpl_call *call)
{
    if (!loop->statement->recursive)
        tpl_fail(r, "the loop must have the 'recursive' marker to be called recursively");
    if (call->count != 1 || call->keyword_count > 0)
        tpl_fail(r, "loop() takes one iterable");
    struct tpl_builder text = {0}, *out = r->out;
    enter_call(r);
    r->out = &text;
    start_loop(r, loop->scope, loop->statement, call->values[0], loop->depth0 + 1);
    r->out = out;
    r->macro_depth--;
    return tpl_built_value(r, &text);
}

static void bind_keywords(struct tpl_render *r, const struct tpl_macro *macro, const struct tpl_call *call,
                          struct tpl_value *bound, struct tpl_dict *extra)
{
    const struct tpl_callable *callable = macro->callable;
    int positional = call->count < callable->count ? call->count : callable->count;
    for (int i = 0; i < call->keyword_count; i++) {
        const struct tpl_text *keyword = call->keywords[i];
        int at = positional;
        while (at < callable->count && (callable->names[at]->length != keyword->length ||
                                        memcmp(callable->names[at]->data, keyword->data, keyword->length) != 0))
            at++;
        if (at < callable->count)
            bound[at] = call->keyword_values[i];
        else if (tpl_text_is(keyword, "caller") && callable->wants_caller)
            bound[callable->count] = call->keyword_values[i];
        else if (callable->wants_kwargs)
            tpl_dict_set(r, extra, tpl_text_value(keyword), call->keyword_values[i]);
        else
            tpl_fail(r, "macro '%.*s' takes no keyword argument '%.*s'", macro->name == NULL ? 6 : (int)macro->name->length,
                     macro->name == NULL ? "caller" : macro->name->data, (int)keyword->length, keyword->data);
    }
}

static void bind_extras(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_macro *macro,
                        const struct tpl_call *call, struct tpl_value caller, struct tpl_dict *extra)
{
    const struct tpl_callable *callable = macro->callable;
    const struct gd_template *tmpl = r->tmpl;
    if (callable->wants_kwargs)
        tpl_bind(r, scope, tmpl->kwargs_symbol, (struct tpl_value){.kind = TPL_DICT, .dict = extra});
    if (callable->wants_varargs) {
        struct tpl_list *rest = tpl_list_new(r, 0);
        for (int i = callable->count; i < call->count; i++)
            tpl_list_push(r, rest, call->values[i]);
        tpl_bind(r, scope, tmpl->varargs_symbol, tpl_list_value(TPL_TUPLE, rest));
    } else if (call->count > callable->count) {
        tpl_fail(r, "macro '%.*s' takes not more than %d argument(s)", macro->name == NULL ? 6 : (int)macro->name->length,
                 macro->name == NULL ? "caller" : macro->name->data, callable->count);
    }
    bool named_caller = false; /* a parameter called caller is bound like the others */
    for (int i = 0; i < callable->count; i++)
        named_caller |= callable->symbols[i] == tmpl->caller_symbol;
    if (callable->wants_caller && !named_caller && macro->name != NULL)
        tpl_bind(r, scope, tmpl->caller_symbol,
                 caller.kind == TPL_MISSING ? tpl_undefined_hint(r, "No caller defined") : caller);
}

struct tpl_value tpl_call_macro(struct tpl_render *r, const struct tpl_macro *macro, const struct tpl_call *call)
{
    const struct tpl_callable *callable = macro->callable;
    struct tpl_scope *scope = inner_scope(r, macro->scope);
    struct tpl_value *bound = tpl_alloc(r, ((size_t)callable->count + 1) * sizeof *bound); /* last: caller */
    struct tpl_dict *extra = tpl_dict_new(r);
    for (int i = 0; i < callable->count && i < call->count; i++)
        bound[i] = call->values[i];
    bind_keywords(r, macro, call, bound, extra);
    bind_extras(r, scope, macro, call, bound[callable->count], extra);
    enter_call(r);
    int line = r->line, first_default = callable->count - callable->default_count;
    for (int i = 0; i < callable->count; i++) {
        if (bound[i].kind == TPL_MISSING && i >= first_default)
            bound[i] = tpl_eval(r, scope, callable->defaults[i - first_default]);
        else if (bound[i].kind == TPL_MISSING)
            bound[i] = tpl_undefined_hint(r, "a parameter of the macro was not provided");
        tpl_bind(r, scope, callable->symbols[i], bound[i]);
    }
    uint32_t generation = r->generation;
    r->generation = 0; /* the text is marked where it is written */
    const struct tpl_text *text = capture(r, scope, &callable->body);
    r->generation = generation;
    r->macro_depth--;
    r->line = line;
    return tpl_text_value(text);
}

static struct tpl_value new_macro(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_callable *callable)
{
    struct tpl_macro *macro = tpl_alloc(r, sizeof *macro);
    macro->callable = callable;
    macro->scope = scope;
    macro->name = callable->name;
    return (struct tpl_value){.kind = TPL_MACRO, .macro = macro};
}

/* {% call f(x) %}body{% endcall %} is f(x, caller=body). */
static void run_call_block(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_statement *statement)
{
    const struct tpl_expr *expr = statement->value;
    const struct tpl_suffix *last = &expr->suffixes[expr->count - 1];
    struct tpl_value callee = tpl_eval(r, scope, expr->items[0]);
    callee = tpl_eval_suffixes(r, scope, callee, expr->suffixes, expr->count - 1);
    struct tpl_call call;
    tpl_eval_arguments(r, scope, &last->arguments, &call);
    const struct tpl_text **keywords = tpl_alloc(r, ((size_t)call.keyword_count + 1) * sizeof *keywords);
    struct tpl_value *values = tpl_alloc(r, ((size_t)call.keyword_count + 1) * sizeof *values);
    for (int i = 0; i < call.keyword_count; i++) {
        keywords[i] = call.keywords[i];
        values[i] = call.keyword_values[i];
    }
    keywords[call.keyword_count] = tpl_literal(r, "caller").text;
    values[call.keyword_count] = new_macro(r, scope, statement->callable);
    call.keywords = keywords;
    call.keyword_values = values;
    call.keyword_count++;
    write_text(r, tpl_str(r, tpl_call_value(r, callee, &call)));
}

static enum flow run_if(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_statement *statement)
{
    for (int i = 0; i < statement->branch_count; i++) {
        const struct tpl_branch *branch = &statement->branches[i];
        if (branch->test == NULL || tpl_truthy(tpl_eval(r, scope, branch->test)))
            return run_block(r, scope, &branch->body);
    }
    return FLOW_NORMAL;
}

static void run_captured(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_statement *statement)
{
    uint32_t generation = r->generation;
    r->generation = 0;
    struct tpl_value text = tpl_text_value(capture(r, inner_scope(r, scope), &statement->body));
    r->generation = generation;
    text = tpl_eval_suffixes(r, scope, text, statement->filters, statement->filter_count);
    if (statement->kind == TPL_SET_BLOCK)
        tpl_assign(r, scope, scope, &statement->target, text);
    else
        write_text(r, tpl_str(r, text));
}

static enum flow run_with(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_statement *statement)
{
    struct tpl_scope *inner = inner_scope(r, scope);
    for (int i = 0; i < statement->with_count; i++)
        tpl_assign(r, scope, inner, &statement->targets[i], tpl_eval(r, scope, statement->values[i]));
    return run_block(r, inner, &statement->body);
}

static enum flow run_statement(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_statement *statement)
{
    r->line = statement->line;
    switch (statement->kind) {
    case TPL_DATA:
        write_text(r, statement->data);
        break;
    case TPL_PRINT:
        write_text(r, tpl_str(r, tpl_eval(r, scope, statement->value)));
        break;
    case TPL_FOR:
        start_loop(r, scope, statement, tpl_eval(r, scope, statement->value), 0);
        break;
    case TPL_IF:
        return run_if(r, scope, statement);
    case TPL_SET:
        tpl_assign(r, scope, scope, &statement->target, tpl_eval(r, scope, statement->value));
        break;
    case TPL_SET_BLOCK:
    case TPL_FILTER_BLOCK:
        run_captured(r, scope, statement);
        break;
    case TPL_DEFINE_MACRO:
        tpl_bind(r, scope, statement->target.symbol, new_macro(r, scope, statement->callable));
        break;
    case TPL_CALL_BLOCK:
        run_call_block(r, scope, statement);
        break;
    case TPL_WITH:
        return run_with(r, scope, statement);
    case TPL_GENERATION:
        run_generation(r, scope, statement);
        break;
    case TPL_BREAK:
        return FLOW_BREAK;
    case TPL_CONTINUE:
        return FLOW_CONTINUE;
    }
    return FLOW_NORMAL;
}

static enum flow run_block(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_block *block)
{
    enum flow flow = FLOW_NORMAL;
    tpl_enter(r);
    for (int i = 0; i < block->count && flow == FLOW_NORMAL; i++) {
        tpl_charge(r, 1);
        flow = run_statement(r, scope, block->items[i]);
    }
    tpl_leave(r);
    return flow;
}

void tpl_run(struct tpl_render *r)
{
    (void)run_block(r, inner_scope(r, r->globals), &r->tmpl->body);
}
