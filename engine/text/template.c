#include "engine/text/template.h"
#include "engine/base/alloc.h"
#include "engine/text/template_tree.h"
#include <assert.h>
#include <math.h>
#include <string.h>

/* Line ends become "\n" and the last one is dropped (unless plain), as jinja reads its sources. */
static void normalise_source(struct tpl_compiler *c, const char *source, size_t length)
{
    char *copy = gd_arena_alloc(&c->tmpl->arena, length + 1);
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        if (source[i] == '\r' && i + 1 < length && source[i + 1] == '\n')
            continue;
        copy[used++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (used > 0 && copy[used - 1] == '\n' && !c->tmpl->plain)
        used--;
    copy[used] = '\0';
    c->source = copy;
    c->length = used;
}

static bool compile(struct tpl_compiler *c)
{
    if (setjmp(c->failed) != 0)
        return false;
    tpl_lex(c);
    tpl_parse(c);
    c->tmpl->loop_symbol = tpl_symbol(c, "loop", strlen("loop"));
    c->tmpl->caller_symbol = tpl_symbol(c, "caller", strlen("caller"));
    c->tmpl->varargs_symbol = tpl_symbol(c, "varargs", strlen("varargs"));
    c->tmpl->kwargs_symbol = tpl_symbol(c, "kwargs", strlen("kwargs"));
    return true;
}

static bool compile_text(struct gd_template **out, const char *source, size_t length, bool plain, struct gd_error *err)
{
    const char *what = plain ? "template" : "chat template";
    if (length > TPL_SOURCE_BYTES_MAX)
        return gd_fail(err, GD_BAD_MODEL, "the %s has %zu bytes; at most %u are accepted", what, length,
                       TPL_SOURCE_BYTES_MAX);
    if (!gd_utf8_valid(source, length) || memchr(source, '\0', length) != NULL)
        return gd_fail(err, GD_BAD_MODEL, "the %s is not UTF-8 text", what);
    struct gd_template *tmpl = gd_alloc(sizeof *tmpl);
    tmpl->plain = plain;
    struct tpl_compiler compiler = {.tmpl = tmpl, .err = err};
    normalise_source(&compiler, source, length);
    if (!compile(&compiler)) {
        gd_template_destroy(tmpl);
        return false;
    }
    *out = tmpl;
    return true;
}

bool gd_template_compile(struct gd_template **out, const char *source, size_t length, struct gd_error *err)
{
    return compile_text(out, source, length, false, err);
}

bool gd_template_compile_plain(struct gd_template **out, const char *source, size_t length, struct gd_error *err)
{
    return compile_text(out, source, length, true, err);
}

void gd_template_destroy(struct gd_template *tmpl)
{
    if (tmpl == NULL)
        return;
    gd_arena_release(&tmpl->arena);
    gd_free(tmpl);
}

void gd_render_spans_release(struct gd_render_spans *spans)
{
    gd_free(spans->template_spans);
    gd_free(spans->generation_spans);
    memset(spans, 0, sizeof *spans);
}

static bool is_role_name(const char *text)
{
    static const char *const roles[] = {"developer", "system", "user", "assistant", "tool", "function"};
    for (size_t i = 0; i < GD_COUNT(roles); i++) {
        if (strcmp(text, roles[i]) == 0)
            return true;
    }
    return false;
}

static struct tpl_value from_json(struct tpl_render *r, const cJSON *json, uint32_t label, int depth);

static struct tpl_value from_object(struct tpl_render *r, const cJSON *json, uint32_t label, int depth)
{
    struct tpl_dict *dict = tpl_dict_new(r);
    for (const cJSON *item = json->child; item != NULL; item = item->next) {
        bool role = depth == 1 && strcmp(item->string, "role") == 0 && cJSON_IsString(item) &&
                    is_role_name(item->valuestring);
        tpl_dict_push(r, dict, tpl_text_of(r, item->string, strlen(item->string), label),
                      from_json(r, item, role ? 0 : label, depth + 1));
    }
    return (struct tpl_value){.kind = TPL_DICT, .dict = dict};
}

/* Whole numbers are int, as they were in nearly every JSON text; the tree does not remember "1.0". */
static struct tpl_value from_number(double number)
{
    if (number == floor(number) && fabs(number) <= 9007199254740992.0)
        return tpl_int((int64_t)number);
    return tpl_float(number);
}

static struct tpl_value from_json(struct tpl_render *r, const cJSON *json, uint32_t label, int depth)
{
    tpl_charge(r, 1);
    if (depth > GD_JSON_DEPTH_MAX + 8)
        tpl_fail(r, "the conversation is nested more than %d deep", GD_JSON_DEPTH_MAX);
    if (cJSON_IsBool(json))
        return tpl_bool(cJSON_IsTrue(json));
    if (cJSON_IsNumber(json))
        return from_number(json->valuedouble);
    if (cJSON_IsString(json))
        return tpl_text_of(r, json->valuestring, strlen(json->valuestring), label);
    if (cJSON_IsObject(json))
        return from_object(r, json, label, depth);
    if (!cJSON_IsArray(json))
        return tpl_none();
    struct tpl_list *list = tpl_list_new(r, 0);
    for (const cJSON *item = json->child; item != NULL; item = item->next)
        tpl_list_push(r, list, from_json(r, item, label, depth + 1));
    return tpl_list_value(TPL_LIST, list);
}

bool gd_template_reads(const struct gd_template *tmpl, const char *name)
{
    for (int i = 0; i < tmpl->symbol_count; i++)
        if (strcmp(tmpl->symbols[i], name) == 0)
            return true;
    return false;
}

/* Only what the template's text names; the caller's variables hide the global functions. */
static void bind_globals(struct tpl_render *r, const cJSON *variables)
{
    const cJSON *now = variables == NULL ? NULL : gd_json_find(variables, GD_TEMPLATE_NOW);
    const cJSON *more = variables == NULL ? NULL : gd_json_find(variables, GD_TEMPLATE_MORE);
    r->globals = tpl_alloc(r, sizeof *r->globals);
    r->now = cJSON_IsNumber(now) ? (int64_t)now->valuedouble : 0;
    for (int i = 0; i < r->tmpl->symbol_count; i++) {
        const char *name = r->tmpl->symbols[i];
        const cJSON *variable = variables == NULL ? NULL : gd_json_find(variables, name);
        bool extra = variable == NULL && (variable = gd_json_find(more, name)) != NULL;
        if (variable != NULL) {
            bool content = extra || strcmp(name, "messages") == 0 || strcmp(name, "tools") == 0 ||
                           strcmp(name, "documents") == 0;
            tpl_bind(r, r->globals, i, from_json(r, variable, content ? TPL_CONTENT : 0,
                                                 strcmp(name, "messages") == 0 ? 0 : 2));
            continue;
        }
        const struct tpl_function *function = tpl_find_global(name);
        if (function != NULL)
            tpl_bind(r, r->globals, i, (struct tpl_value){.kind = TPL_FUNCTION, .function = function});
    }
}

static bool run(struct tpl_render *r, const cJSON *variables)
{
    if (setjmp(r->failed) != 0)
        return false;
    bind_globals(r, variables);
    tpl_run(r);
    return true;
}

static void push_span(int32_t **spans, int *count, int32_t begin, int32_t end)
{
    if ((*count & (*count - 1)) == 0) /* capacities are powers of two */
        *spans = gd_realloc_array(*spans, *count == 0 ? 2 : 4 * (size_t)*count, sizeof **spans);
    (*spans)[2 * *count] = begin;
    (*spans)[2 * *count + 1] = end;
    ++*count;
}

/* Generation spans in order of their blocks; a block that wrote nothing has an empty one where the next begins. */
static void collect_generations(const struct tpl_builder *b, uint32_t blocks, struct gd_render_spans *spans)
{
    int32_t begin = 0;
    uint32_t done = 0, open = 0;
    for (int i = 0; i < b->run_count; i++) {
        uint32_t block = b->runs[i].label >> TPL_GENERATION_SHIFT;
        int32_t end = (int32_t)b->runs[i].end;
        if (block != 0 && block == open) {
            spans->generation_spans[2 * spans->generation_span_count - 1] = end;
        } else if (block != 0) {
            for (; done + 1 < block; done++)
                push_span(&spans->generation_spans, &spans->generation_span_count, begin, begin);
            push_span(&spans->generation_spans, &spans->generation_span_count, begin, end);
            done = block > done ? block : done;
        }
        open = block;
        begin = end;
    }
    for (; done < blocks; done++)
        push_span(&spans->generation_spans, &spans->generation_span_count, begin, begin);
}

static void collect_spans(const struct tpl_render *r, const struct tpl_builder *b, struct gd_render_spans *spans)
{
    int32_t begin = 0;
    bool joined = false;
    memset(spans, 0, sizeof *spans);
    spans->has_generation = r->tmpl->has_generation;
    for (int i = 0; i < b->run_count; i++) {
        int32_t end = (int32_t)b->runs[i].end;
        bool written_by_template = (b->runs[i].label & TPL_CONTENT) == 0;
        if (written_by_template && joined)
            spans->template_spans[2 * spans->template_span_count - 1] = end;
        else if (written_by_template)
            push_span(&spans->template_spans, &spans->template_span_count, begin, end);
        joined = written_by_template;
        begin = end;
    }
    collect_generations(b, r->generation_count, spans);
}

bool gd_template_render(const struct gd_template *tmpl, const cJSON *variables, struct gd_buf *out,
                        struct gd_render_spans *spans, struct gd_error *err)
{
    struct tpl_builder text = {0};
    struct tpl_render r = {.tmpl = tmpl, .line = 1, .out = &text, .err = err};
    bool ok = run(&r, variables);
    if (ok) {
        gd_buf_append(out, text.data == NULL ? "" : text.data, text.length);
        if (out->overflow)
            ok = gd_fail(err, GD_TOO_LARGE, "the rendered conversation has %zu bytes, more than the %zu that fit",
                         text.length, out->limit_bytes);
    }
    if (ok && spans != NULL)
        collect_spans(&r, &text, spans);
    gd_arena_release(&r.arena);
    return ok;
}
