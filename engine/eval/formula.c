#include "engine/eval/formula.h"

#include "engine/base/alloc.h"
#include "engine/base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { NUMBER, VALUE, ADD, SUBTRACT, MULTIPLY, DIVIDE, MODULO, POWER, NEGATE, FIRST_FUNCTION };
enum function { ABS, CEIL, EXP, FLOOR, LOG, MAX, MIN, SQRT, FUNCTION_COUNT };
static const char *const functions[FUNCTION_COUNT] = {"abs", "ceil", "exp", "floor", "log", "max", "min", "sqrt"};

/* Postfix: a step takes what it needs from the stack and leaves one value. */
struct step {
    int kind;    /* enum kind, or FIRST_FUNCTION + enum function */
    int operand; /* VALUE: index; function: number of arguments */
    double number;
};

struct gd_formula {
    char *param;
    int step_count;
    struct step steps[GD_FORMULA_STEPS_MAX];
};

struct parser {
    const char *text, *at;
    const char *const *names;
    int name_count, depth;
    struct gd_formula *formula;
    struct gd_error *err;
};

static bool is_name_byte(char c, bool first)
{
    unsigned char byte = (unsigned char)c;
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || byte == '_' || byte >= 0x80 ||
           (!first && byte >= '0' && byte <= '9');
}

bool gd_formula_is_name(const char *name)
{
    if (!is_name_byte(name[0], true))
        return false;
    for (const char *p = name + 1; *p != '\0'; p++)
        if (!is_name_byte(*p, false))
            return false;
    return true;
}

static bool fail_at(struct parser *parser, const char *at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static bool fail_at(struct parser *parser, const char *at, const char *format, ...)
{
    char what[512];
    size_t position = 1;
    for (const char *p = parser->text; p < at; p++)
        position += ((unsigned char)*p & 0xC0u) != 0x80u;
    va_list list;
    va_start(list, format);
    (void)vsnprintf(what, sizeof what, format, list);
    va_end(list);
    return gd_fail_param(parser->err, GD_INVALID, parser->formula->param, "%s: at character %zu: %s",
                         parser->formula->param, position, what);
}

static void skip_blanks(struct parser *parser)
{
    while (*parser->at != '\0' && strchr(" \t\r\n", *parser->at) != NULL)
        parser->at++;
}

static bool emit(struct parser *parser, int kind, int operand, double number)
{
    struct gd_formula *formula = parser->formula;
    if (formula->step_count == GD_FORMULA_STEPS_MAX)
        return fail_at(parser, parser->at, "a formula has at most %d operations and operands", GD_FORMULA_STEPS_MAX);
    formula->steps[formula->step_count++] = (struct step){.kind = kind, .operand = operand, .number = number};
    return true;
}

static bool parse_sum(struct parser *parser);
static bool parse_signed(struct parser *parser);

static bool parse_number(struct parser *parser)
{
    const char *start = parser->at;
    size_t length = strspn(start, "0123456789.");
    if ((start[length] == 'e' || start[length] == 'E') && strspn(start, "0123456789.") > 0) {
        size_t exponent = length + 1;
        exponent += start[exponent] == '+' || start[exponent] == '-';
        size_t digits = strspn(start + exponent, "0123456789");
        if (digits > 0)
            length = exponent + digits;
    }
    char number[64], *end = NULL;
    if (length >= sizeof number)
        return fail_at(parser, start, "a number has at most %zu characters", sizeof number - 1);
    memcpy(number, start, length);
    number[length] = '\0';
    double value = strtod(number, &end);
    if (*end != '\0' || end == number || !isfinite(value))
        return fail_at(parser, start, "'%s' is not a number", number);
    parser->at += length;
    if (is_name_byte(*parser->at, true))
        return fail_at(parser, parser->at, "an operator must stand between a number and a name");
    return emit(parser, NUMBER, 0, value);
}

static bool parse_call(struct parser *parser, const char *start, const char *name)
{
    int function = -1, arguments = 0;
    for (int i = 0; i < FUNCTION_COUNT; i++)
        if (strcmp(functions[i], name) == 0)
            function = i;
    if (function < 0) {
        const char *near = gd_nearest_name(name, functions, FUNCTION_COUNT);
        return fail_at(parser, start,
                       "there is no function '%.64s'; there are abs, ceil, exp, floor, log, max, min, sqrt%s%s%s", name,
                       near != NULL ? "; did you mean '" : "", near != NULL ? near : "", near != NULL ? "'?" : "");
    }
    do {
        parser->at++;
        if (!parse_sum(parser))
            return false;
        arguments++;
    } while (*parser->at == ',');
    if (*parser->at != ')')
        return fail_at(parser, parser->at, "'%s(' is not closed", name);
    if (arguments > 1 && function != MAX && function != MIN)
        return fail_at(parser, start, "%s takes one value, not %d", name, arguments);
    parser->at++;
    return emit(parser, FIRST_FUNCTION + function, arguments, 0);
}

static bool parse_name(struct parser *parser)
{
    char name[257];
    const char *start = parser->at;
    while (is_name_byte(*parser->at, false))
        parser->at++;
    size_t length = (size_t)(parser->at - start);
    if (length >= sizeof name)
        return fail_at(parser, start, "a name has at most %zu bytes", sizeof name - 1);
    memcpy(name, start, length);
    name[length] = '\0';
    skip_blanks(parser);
    if (*parser->at == '(')
        return parse_call(parser, start, name);
    for (int i = 0; i < parser->name_count; i++)
        if (strcmp(parser->names[i], name) == 0)
            return emit(parser, VALUE, i, 0);
    const char *near = gd_nearest_name(name, parser->names, (size_t)parser->name_count);
    return fail_at(parser, start, "there is no grader '%.64s'%s%.64s%s", name, near != NULL ? "; did you mean '" : "",
                   near != NULL ? near : "", near != NULL ? "'?" : "");
}

static bool parse_operand(struct parser *parser)
{
    skip_blanks(parser);
    const char c = *parser->at, *start = parser->at;
    if (c == '(') {
        parser->at++;
        if (!parse_sum(parser))
            return false;
        if (*parser->at != ')')
            return fail_at(parser, start, "'(' is not closed");
        parser->at++;
        return true;
    }
    if ((c >= '0' && c <= '9') || c == '.')
        return parse_number(parser);
    if (is_name_byte(c, true))
        return parse_name(parser);
    return c == '\0' ? fail_at(parser, start, "a value is missing at the end")
                     : fail_at(parser, start, "a value must stand here, not '%c'", c);
}

static bool parse_power(struct parser *parser)
{
    if (!parse_operand(parser))
        return false;
    skip_blanks(parser);
    if (*parser->at != '^')
        return true;
    parser->at++;
    return parse_signed(parser) && emit(parser, POWER, 0, 0);
}

/* All recursion passes here. */
static bool parse_signed(struct parser *parser)
{
    if (parser->depth == GD_FORMULA_DEPTH_MAX)
        return fail_at(parser, parser->at, "nested deeper than %d", GD_FORMULA_DEPTH_MAX);
    parser->depth++;
    skip_blanks(parser);
    char sign = *parser->at;
    bool ok;
    if (sign == '-' || sign == '+') {
        parser->at++;
        ok = parse_signed(parser) && (sign == '+' || emit(parser, NEGATE, 0, 0));
    } else {
        ok = parse_power(parser);
    }
    parser->depth--;
    return ok;
}

static bool parse_product(struct parser *parser)
{
    if (!parse_signed(parser))
        return false;
    for (skip_blanks(parser); *parser->at == '*' || *parser->at == '/' || *parser->at == '%'; skip_blanks(parser)) {
        const char sign = *parser->at++;
        if (!parse_signed(parser) || !emit(parser, sign == '*' ? MULTIPLY : sign == '/' ? DIVIDE : MODULO, 0, 0))
            return false;
    }
    return true;
}

static bool parse_sum(struct parser *parser)
{
    if (!parse_product(parser))
        return false;
    for (skip_blanks(parser); *parser->at == '+' || *parser->at == '-'; skip_blanks(parser)) {
        int kind = *parser->at++ == '+' ? ADD : SUBTRACT;
        if (!parse_product(parser) || !emit(parser, kind, 0, 0))
            return false;
    }
    return true;
}

struct gd_formula *gd_formula_parse(const char *text, const char *const *names, int name_count, const char *param,
                                    struct gd_error *err)
{
    struct gd_formula *formula = gd_alloc(sizeof *formula);
    struct parser parser = {
        .text = text, .at = text, .names = names, .name_count = name_count, .formula = formula, .err = err};
    formula->param = gd_strdup(param);
    bool ok =
        strlen(text) <= GD_FORMULA_BYTES_MAX
            ? parse_sum(&parser)
            : gd_fail_param(err, GD_INVALID, param, "%s: a formula has at most %d bytes", param, GD_FORMULA_BYTES_MAX);
    if (ok && *parser.at != '\0')
        ok = fail_at(&parser, parser.at, *parser.at == ')' ? "')' closes nothing" : "an operator must stand here");
    if (!ok) {
        gd_formula_destroy(formula);
        return NULL;
    }
    return formula;
}

/* ---- evaluation ---- */

static double binary(int kind, double a, double b)
{
    switch (kind) {
    case ADD:
        return a + b;
    case SUBTRACT:
        return a - b;
    case MULTIPLY:
        return a * b;
    case DIVIDE:
        return a / b;
    case MODULO:
        return a - b * floor(a / b);
    default:
        return pow(a, b);
    }
}

static double call(enum function function, const double *arguments, int count)
{
    double value = arguments[0];
    switch (function) {
    case ABS:
        return fabs(value);
    case CEIL:
        return ceil(value);
    case EXP:
        return exp(value);
    case FLOOR:
        return floor(value);
    case LOG:
        return log(value);
    case SQRT:
        return sqrt(value);
    default:
        for (int i = 1; i < count; i++)
            value = function == MAX ? fmax(value, arguments[i]) : fmin(value, arguments[i]);
        return value;
    }
}

static const char *name_of(int kind)
{
    static const char *const operators[] = {[ADD] = "+",    [SUBTRACT] = "-", [MULTIPLY] = "*",
                                            [DIVIDE] = "/", [MODULO] = "%",   [POWER] = "^"};
    return kind >= FIRST_FUNCTION ? functions[kind - FIRST_FUNCTION] : operators[kind];
}

bool gd_formula_evaluate(const struct gd_formula *formula, const double *values, double *result, struct gd_error *err)
{
    double stack[GD_FORMULA_STEPS_MAX];
    int top = 0;
    for (int i = 0; i < formula->step_count; i++) {
        const struct step *step = &formula->steps[i];
        if (step->kind == NUMBER) {
            stack[top++] = step->number;
            continue;
        }
        if (step->kind == VALUE) {
            stack[top++] = values[step->operand];
            continue;
        }
        if (step->kind == NEGATE) {
            stack[top - 1] = -stack[top - 1];
            continue;
        }
        int count = step->kind >= FIRST_FUNCTION ? step->operand : 2;
        top -= count;
        if ((step->kind == DIVIDE || step->kind == MODULO) && stack[top + 1] == 0)
            return gd_fail_param(err, GD_INVALID, formula->param, "%s: division of %g by zero", formula->param,
                                 stack[top]);
        double value = step->kind >= FIRST_FUNCTION
                           ? call((enum function)(step->kind - FIRST_FUNCTION), &stack[top], count)
                           : binary(step->kind, stack[top], stack[top + 1]);
        if (!isfinite(value) && count == 1)
            return gd_fail_param(err, GD_INVALID, formula->param, "%s: %s(%g) is not a finite number", formula->param,
                                 name_of(step->kind), stack[top]);
        if (!isfinite(value))
            return gd_fail_param(err, GD_INVALID, formula->param, "%s: %g %s %g is not a finite number", formula->param,
                                 stack[top], name_of(step->kind), stack[top + 1]);
        stack[top++] = value;
    }
    *result = stack[0];
    return true;
}

void gd_formula_destroy(struct gd_formula *formula)
{
    if (formula == NULL)
        return;
    gd_free(formula->param);
    gd_free(formula);
}
