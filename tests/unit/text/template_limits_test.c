/* Hostile templates end in an error, soon, on a small stack; labels follow every byte through every operation. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/template.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
#define STACK_BYTES (8u << 20) /* red zones make frames several times larger */
#define SECONDS_MAX 20.0
#else
#define STACK_BYTES (1u << 20)
#define SECONDS_MAX 2.0
#endif

struct run {
    const char *source;
    size_t length;
    const cJSON *variables;
    struct gd_error err;
    struct gd_buf out;
    struct gd_render_spans spans;
    bool compiled, rendered;
};

static void *run_template(void *argument)
{
    struct run *run = argument;
    struct gd_template *tmpl = NULL;
    run->compiled = gd_template_compile(&tmpl, run->source, run->length, &run->err);
    run->rendered = run->compiled && gd_template_render(tmpl, run->variables, &run->out, &run->spans, &run->err);
    gd_template_destroy(tmpl);
    return NULL;
}

/* In a thread whose stack is small, against the clock. */
static struct run run_of(const char *source, size_t length, const cJSON *variables)
{
    struct run run = {.source = source, .length = length, .variables = variables};
    pthread_attr_t attributes;
    pthread_t thread;
    clock_t begin = clock(); /* of this process: a crowded machine must not fail the test */
    gd_buf_init(&run.out, 0);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    assert_int_equal(pthread_create(&thread, &attributes, run_template, &run), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    if (seconds > SECONDS_MAX)
        fail_msg("%.60s took %.1f s", source, seconds);
    return run;
}

static void release(struct run *run)
{
    gd_buf_release(&run->out);
    gd_render_spans_release(&run->spans);
}

static char *repeated(const char *begin, const char *part, int times, const char *end)
{
    struct gd_buf text;
    gd_buf_init(&text, 0);
    gd_buf_append_text(&text, begin);
    for (int i = 0; i < times; i++)
        gd_buf_append_text(&text, part);
    gd_buf_append_text(&text, end);
    return gd_buf_take(&text);
}

static void assert_refused(const char *source, enum gd_code code, const char *reason)
{
    struct run run = run_of(source, strlen(source), NULL);
    if (run.rendered)
        fail_msg("%.80s gave %zu bytes", source, run.out.length);
    if (run.err.code != code || strstr(run.err.message, reason) == NULL || strstr(run.err.message, "line ") == NULL)
        fail_msg("%.80s: %s", source, run.err.message);
    release(&run);
}

static void deep_sources_are_refused_by_the_parser(void **state)
{
    static const struct {
        const char *begin, *part, *end;
    } deep[] = {
        {"", "{% if 1 %}", ""},
        {"", "{% for a in b %}", ""},
        {"", "{% macro m() %}", ""},
        {"", "{% call m() %}", ""},
        {"", "{% filter upper %}", ""},
        {"", "{% with %}", ""},
        {"", "{% set x %}", ""},
        {"", "{% generation %}", ""},
        {"{{ ", "(", " }}"},
        {"{{ ", "[", " }}"},
        {"{{ ", "{1:", " }}"},
        {"{{ x", "[x", " }}"},
        {"{{ x", "(x", " }}"},
        {"{{ x", "|default(x", " }}"},
        {"{{ ", "- ", "1 }}"},
        {"{{ ", "not ", "1 }}"},
        {"{{ 1", " if 1 else 1", " }}"},
        {"{{ 1", " if 1", " }}"},
        {"{% set ", "(", "a"},
        {"{{ x is eq ", "(", " }}"},
    };
    for (size_t i = 0; i < sizeof deep / sizeof deep[0]; i++) {
        char *source = repeated(deep[i].begin, deep[i].part, 5600, deep[i].end);
        assert_refused(source, GD_BAD_MODEL, "deep");
        gd_free(source);
    }
}

static void long_flat_sources_need_no_stack(void **state)
{
    static const struct {
        const char *begin, *part, *end, *last;
    } flat[] = {
        {"{{ 0", " + 1", " }}", "20000"},     {"{{ 0", " ~ ''", " }}", "0"},        {"{{ 1", " * 1", " }}", "1"},
        {"{{ 0", " or 0", " }}", "0"},        {"{{ 1", " and 1", " }}", "1"},       {"{{ 'a'", "|trim", " }}", "a"},
        {"{{ 1", " == 1", " }}", "True"},     {"{{ [[[[0]]]]", "[:]", " }}", "[[[[0]]]]"},
        {"{% if 0 %}", "{% elif 0 %}", "{% else %}x{% endif %}", "x"},
        {"{% set x = 1 %}", "{{x}}", "", "1"}, {"", "{# #}", "end", "end"},
    };
    for (size_t i = 0; i < sizeof flat / sizeof flat[0]; i++) {
        int times = (int)(200000 / strlen(flat[i].part));
        char *source = repeated(flat[i].begin, flat[i].part, i == 0 ? 20000 : times, flat[i].end);
        struct run run = run_of(source, strlen(source), NULL);
        if (!run.rendered)
            fail_msg("%.40s: %s", source, run.err.message);
        assert_true(run.out.length >= strlen(flat[i].last));
        assert_string_equal(run.out.data + run.out.length - strlen(flat[i].last), flat[i].last);
        release(&run);
        gd_free(source);
    }
}

static void endless_work_runs_out_of_budget(void **state)
{
    static const struct {
        const char *source, *reason;
    } hostile[] = {
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deep"},
        {"{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}", "deep"},
        {"{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{% call m() %}x{% endcall %}", "deep"},
        {"{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "deep"},
        {"{% set ns = namespace() %}{% macro m() %}{% set ns.m = m %}{{ ns.m() }}{% endmacro %}{{ m() }}", "deep"},
        {"{{ range(10 ** 12) | list }}", "range"},
        {"{{ range(1000000) }}", "range"},
        {"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "for this conversation"},
        {"{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", "for this conversation"},
        {"{% for i in range(100000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
         "xxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}", "MiB"},
        {"{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "MiB"},
        {"{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "MiB"},
        {"{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
         "MiB"},
        {"{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}", "MiB"},
        {"{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
         "MiB"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "MiB"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
         "MiB"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
         "{{ ns.s == [1] or ns.s == ns.s }}", "steps"},
        {"{{ 'a' * 10 ** 15 }}", "MiB"},
        {"{{ [1] * 10 ** 15 }}", "for this conversation"},
        {"{{ '' * 10 ** 15 ~ ('x' | center(10 ** 15)) }}", "long"},
        {"{{ 'x'.ljust(10 ** 10) }}", "long"},
        {"{{ 'x'.zfill(10 ** 10) }}", "long"},
        {"{{ 'x' | indent(10 ** 10) }}", "long"},
        {"{{ [1] | tojson(indent=10 ** 10) }}", "long"},
        {"{{ '%999999999d' % 1 }}", "width"},
        {"{{ '%.999999999f' % 1 }}", "width"},
        {"{{ 10 ** 400 }}", "64 bits"},
        {"{{ 9223372036854775807 + 1 }}", "64 bits"},
        {"{{ (-9223372036854775807 - 1) // -1 }}", "64 bits"},
        {"{{ -(-9223372036854775807 - 1) }}", "64 bits"},
        {"{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
         "deep"},
        {"{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x }}",
         "deep"},
        {"{% set ns = namespace(x=[], y=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}"
         "{% endfor %}{{ ns.x == ns.y }}", "deep"},
        {"{% set ns = namespace(x=[], y=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}"
         "{% endfor %}{{ ns.x < ns.y }}", "deep"},
        {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "deep"},
        {"{% set r = range(100000) | list %}{% for i in range(100000) %}{% set x = r[1:] %}{% endfor %}", "for this conversation"},
        {"{% set r = range(100000) | list %}{% for i in range(100000) %}{% set x = r | sort %}{% endfor %}", "for this conversation"},
        {"{% set r = range(100000) | list %}{% for i in r %}{% if -1 in r %}{% endif %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% if 'b' in s %}{% endif %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% set x = s | length %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% set x = s[1:] %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% set x = s.strip('a') %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% set x = s.split('b') %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% set x = s.count('ab') %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% set x = s == 'a' * 2 %}{% endfor %}", ""},
        {"{% set s = ' ' * 8000000 %}{% for i in range(100000) %}{% set x = s | trim %}{% endfor %}", "for this conversation"},
        {"{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{% set x = s | upper %}{% endfor %}", "for this conversation"},
        {"{% set s = 'ab' * 4000000 %}{{ s | list | length }}", "for this conversation"},
        {"{% set s = 'ab' * 100000 %}{{ s.split('b') | length }}", ""},
        {"{{ ('Σ' * 100000) | lower | length }}", ""},
    };
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        if (hostile[i].reason[0] != '\0') {
            assert_refused(hostile[i].source, GD_INVALID, hostile[i].reason);
            continue;
        }
        struct run run = run_of(hostile[i].source, strlen(hostile[i].source), NULL); /* time is all that counts */
        release(&run);
    }
}

static void deep_expressions_in_deep_calls_fit_the_stack(void **state)
{
    static const struct {
        const char *open, *close;
    } kinds[] = {{"[", "]"}, {"{1: ", "}"}, {"(1 + ", ")"}, {"x | default(", ")"}, {"(0 or ", ")"}, {"(x is eq(", "))"}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char *opening = repeated("{% macro m() %}{{ ", kinds[i].open, 45, "");
        char *source = repeated(opening, "", 0, "m()"), *closed = repeated(source, kinds[i].close, 45, " }}{% endmacro %}");
        char *whole = repeated(closed, "{{ m() }}", 1, "");
        assert_refused(whole, GD_INVALID, "deep");
        gd_free(opening);
        gd_free(source);
        gd_free(closed);
        gd_free(whole);
    }
}

static void many_names_and_keys_stay_cheap(void **state)
{
    struct gd_buf text;
    gd_buf_init(&text, 0);
    for (int i = 0; i < 9000; i++)
        gd_buf_printf(&text, "{%% set v%d = %d %%}", i, i);
    gd_buf_append_text(&text, "{% for i in range(100000) %}{% set x = v0 %}{% endfor %}");
    assert_refused(text.data, GD_INVALID, "steps");
    gd_buf_clear(&text);
    gd_buf_append_text(&text, "{% set d = {");
    for (int i = 0; i < 12000; i++)
        gd_buf_printf(&text, "'k%d': %d,", i, i);
    gd_buf_append_text(&text, "} %}{% for i in range(100000) %}{% set x = d['zz'] %}{% endfor %}");
    assert_refused(text.data, GD_INVALID, "steps");
    gd_buf_release(&text);
}

static void broken_sources_are_refused_with_line_and_column(void **state)
{
    char *large = repeated("", "0123456789abcdef", 20000, "");
    struct run run = run_of(large, strlen(large), NULL);
    assert_false(run.compiled);
    assert_int_equal(run.err.code, GD_BAD_MODEL);
    assert_non_null(strstr(run.err.message, "320000 bytes"));
    release(&run);
    gd_free(large);
    run = run_of("a\xff", 2, NULL);
    assert_false(run.compiled);
    release(&run);
    run = run_of("a\0b", 3, NULL);
    assert_false(run.compiled);
    release(&run);
    run = run_of("one\ntwo {{ x }\n}", 16, NULL);
    assert_false(run.compiled);
    assert_non_null(strstr(run.err.message, "line 2, column "));
    release(&run);
    assert_refused("one\n\n{{ raise_exception('no\nway') }}", GD_INVALID, "no way");
    assert_refused("one\n{# x\n#}\n{{ nothing.here }}", GD_INVALID, "line 4: 'nothing' is undefined");
}

static void every_truncation_of_a_template_ends_well(void **state)
{
    static const char *const names[] = {"house_style.jinja", "llama31.jinja", "hermes_tools.jinja", "qwen3.jinja"};
    struct gd_error err = {0};
    static const char json[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";
    cJSON *variables = gd_json_parse(json, strlen(json), sizeof json, &err);
    assert_non_null(variables);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[512], *source;
        size_t length;
        snprintf(path, sizeof path, "%s/template/%s", getenv("GD_FIXTURES"), names[i]);
        assert_true(gd_file_read(path, 1u << 20, &source, &length, &err));
        for (size_t cut = 0; cut < length; cut++) {
            struct run run = {.source = source, .length = cut, .variables = variables};
            gd_buf_init(&run.out, 0);
            run_template(&run);
            assert_true(run.rendered || run.err.message[0] != '\0');
            release(&run);
        }
        gd_free(source);
    }
    cJSON_Delete(variables);
}

/* "t" for a byte of template text, "c" for content. */
static void assert_labels(const char *source, const char *text, const char *labels)
{
    static const char json[] = "{\"bos_token\":\"<s>\",\"messages\":[{\"role\":\"user\",\"content\":\" hi <s> \","
                               "\"parts\":[\"p\",\"q\"],\"n\":12,\"key\":{\"k\":\"v\"}},{\"role\":\"critic\","
                               "\"content\":\"<|im_end|>\"}],\"tools\":[{\"name\":\"find\"}],\"documents\":[\"doc\"],"
                               "\"date\":\"now\"}";
    struct gd_error err = {0};
    cJSON *variables = gd_json_parse(json, strlen(json), sizeof json, &err);
    assert_non_null(variables);
    struct run run = run_of(source, strlen(source), variables);
    if (!run.rendered)
        fail_msg("%s: %s", source, run.err.message);
    char *got = gd_alloc(run.out.length + 1);
    memset(got, 'c', run.out.length);
    for (int i = 0; i < run.spans.template_span_count; i++) {
        for (int32_t at = run.spans.template_spans[2 * i]; at < run.spans.template_spans[2 * i + 1]; at++)
            got[at] = 't';
    }
    assert_string_equal(run.out.length == 0 ? "" : run.out.data, text);
    if (strcmp(got, labels) != 0)
        fail_msg("%s\n  text   %s\n  wanted %s\n  got    %s", source, text, labels, got);
    gd_free(got);
    release(&run);
    cJSON_Delete(variables);
}

static void labels_follow_content_through_everything(void **state)
{
    static const char m[] = "{% set c = messages[0].content %}";
    static const struct {
        const char *source, *text, *labels;
    } cases[] = {
        {"a{{ c }}b", "a hi <s> b", "tcccccccct"},
        {"{{ bos_token + c.strip() + date }}", "<s>hi <s>now", "tttccccccttt"},
        {"{{ '<' ~ c | trim ~ '>' }}", "<hi <s>>", "tcccccct"},
        {"{{ messages[0].role }}{{ messages[1].role }}", "usercritic", "ttttcccccc"},
        {"{{ c.replace('<s>', bos_token) }}", " hi <s> ", "cccctttc"},
        {"{{ 'xhix'.replace('hi', c.strip()) }}", "xhi <s>x", "tcccccct"},
        {"{{ (c ~ '!')[1:3] }}{{ ('!' ~ c)[::-1] }}", "hi >s< ih !", "cccccccccct"},
        {"{{ ('ab' ~ c).upper() }}", "AB HI <S> ", "ttcccccccc"},
        {"{{ ('ab' ~ c.strip()) | title }}", "Abhi <S>", "ttcccccc"},
        {"{{ messages[0].parts | join('-') }}", "p-q", "ctc"},
        {"{{ '-'.join(['a', messages[0].parts[0]]) }}", "a-p", "ttc"},
        {"{{ messages[0].parts }}", "['p', 'q']", "ttcttttctt"},
        {"{{ messages[0].key | tojson }}", "{\"k\": \"v\"}", "ttcttttctt"},
        {"{{ '%s/%s' % ('t', c.strip()) }}", "t/hi <s>", "ttcccccc"},
        {"{{ '{}|{}'.format(c.strip(), 1) }}", "hi <s>|1", "cccccctt"},
        {"{{ messages[0].n }}", "12", "tt"},
        {"{{ tools[0].name }}{{ documents[0] }}", "finddoc", "ccccccc"},
        {"{{ tools[0] | string }}", "{'name': 'find'}", "ttcccctttt" "cccctt"},
        {"{% macro w(x) %}[{{ x }}]{% endmacro %}{{ w(c.strip()) }}", "[hi <s>]", "tcccccct"},
        {"{% macro w() %}[{{ caller() }}]{% endmacro %}{% call w() %}{{ c }}.{% endcall %}", "[ hi <s> .]", "tcccccccctt"},
        {"{% set x %}<{{ c }}>{% endset %}{{ x }}{{ x | trim('<') }}", "< hi <s> > hi <s> >", "tcccccccc" "tcccccccct"},
        {"{% filter upper %}x{{ c }}{% endfilter %}", "X HI <S> ", "tcccccccc"},
        {"{{ c | default('x') }}{{ c.split('<')[1] }}", " hi <s> s> ", "ccccccccccc"},
        {"{{ c | e }}", " hi &lt;s&gt; ", "cccccccccccccc"},
        {"{{ (c ~ c)|indent(2, true) }}", "   hi <s>  hi <s> ", "ttcccccccccccccccc"},
        {"{{ '<|im_' ~ messages[1].content[5:] }}", "<|im_end|>", "tttttccccc"},
        {"{% for k in messages[0].key %}{{ k }}{% endfor %}", "k", "c"},
        {"{% for x in c.strip() %}{{ x }}{% endfor %}", "hi <s>", "cccccc"},
        {"{{ [c.strip(), 'a'] | sort | join }}", "ahi <s>", "tcccccc"},
        {"{{ c | truncate(5, true, '!', 0) }}", " hi !", "cccct"},
        {"{{ c.strip() * 2 }}{{ 'a' * 2 }}", "hi <s>hi <s>aa", "cccccccccccctt"},
        {"{{ c.partition('h') | join }}", " hi <s> ", "ctcccccc"},
        {"{{ strftime_now(c.strip()) }}", "hi <s>", "cccccc"},
        {"{{ ('' ~ c).center(10, '*') }}", "* hi <s> *", "tcccccccct"},
        {"{% set messages = messages[1:] %}{{ messages[0].content }}", "<|im_end|>", "cccccccccc"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *source = gd_format("%s%s", m, cases[i].source);
        assert_labels(source, cases[i].text, cases[i].labels);
        gd_free(source);
    }
}

/* In every stored template: content made of one letter is content in the output, and nothing else is. */
static void real_templates_keep_content_apart(void **state)
{
    static const char *const names[] = {"chatml_generation", "command_r", "deepseek", "gemma", "gemma3", "llama2", "llama3",
                                        "llama31", "mistral_tools", "mistral_v1", "phi3", "phi4_mini", "qwen25", "qwen3",
                                        "smollm2", "zephyr"};
    static const char json[] = "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_generation_prompt\":true,\"messages\":"
                               "[{\"role\":\"user\",\"content\":\"~~~~\"},{\"role\":\"assistant\",\"content\":\"~~\"},"
                               "{\"role\":\"user\",\"content\":\"~\"}]}";
    struct gd_error err = {0};
    cJSON *variables = gd_json_parse(json, strlen(json), sizeof json, &err);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[512], *source;
        size_t length;
        snprintf(path, sizeof path, "%s/template/%s.jinja", getenv("GD_FIXTURES"), names[i]);
        assert_true(gd_file_read(path, 1u << 20, &source, &length, &err));
        struct run run = run_of(source, length, variables);
        if (!run.rendered)
            fail_msg("%s: %s", names[i], run.err.message);
        for (int s = 0, at = 0; at < (int)run.out.length; at++) {
            while (s < run.spans.template_span_count && at >= run.spans.template_spans[2 * s + 1])
                s++;
            bool content = s == run.spans.template_span_count || at < run.spans.template_spans[2 * s];
            if (content != (run.out.data[at] == '~'))
                fail_msg("%s: byte %d of %s", names[i], at, run.out.data);
        }
        release(&run);
        gd_free(source);
    }
    cJSON_Delete(variables);
}

static void generation_spans_survive_macros_and_captures(void **state)
{
    static const struct {
        const char *source;
        int count;
        int spans[6];
    } cases[] = {
        {"a{% generation %}bc{% endgeneration %}d", 1, {1, 3}},
        {"{% macro m(x) %}<{% generation %}{{ x }}{% endgeneration %}>{% endmacro %}{{ m('a') }}{{ m('bb') }}", 2, {1, 2, 4, 6}},
        {"{% generation %}{{ 'a' | upper }}{% endgeneration %}{% generation %}b{% endgeneration %}", 2, {0, 1, 1, 2}},
        {"{% generation %}{% endgeneration %}a{% generation %}b{% endgeneration %}", 2, {1, 1, 1, 2}},
        {"{% set x %}1{% generation %}2{% endgeneration %}3{% endset %}{{ x }}", 1, {1, 2}},
        {"{% generation %}{% set x %}12{% endset %}{{ x }}{% endgeneration %}3", 1, {0, 2}},
        {"{% filter upper %}a{% generation %}b{% endgeneration %}{% endfilter %}", 1, {1, 2}},
        {"{% macro m() %}[{{ caller() }}]{% endmacro %}{% generation %}{% call m() %}x{% endcall %}{% endgeneration %}", 1, {0, 3}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct run run = run_of(cases[i].source, strlen(cases[i].source), NULL);
        if (!run.rendered)
            fail_msg("%s: %s", cases[i].source, run.err.message);
        assert_true(run.spans.has_generation);
        if (run.spans.generation_span_count != cases[i].count)
            fail_msg("%s: %d spans", cases[i].source, run.spans.generation_span_count);
        for (int s = 0; s < 2 * cases[i].count; s++)
            assert_int_equal(run.spans.generation_spans[s], cases[i].spans[s]);
        release(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deep_sources_are_refused_by_the_parser),
        cmocka_unit_test(long_flat_sources_need_no_stack),
        cmocka_unit_test(endless_work_runs_out_of_budget),
        cmocka_unit_test(deep_expressions_in_deep_calls_fit_the_stack),
        cmocka_unit_test(many_names_and_keys_stay_cheap),
        cmocka_unit_test(broken_sources_are_refused_with_line_and_column),
        cmocka_unit_test(every_truncation_of_a_template_ends_well),
        cmocka_unit_test(labels_follow_content_through_everything),
        cmocka_unit_test(real_templates_keep_content_apart),
        cmocka_unit_test(generation_spans_survive_macros_and_captures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
