/*
 * formula.h - the formula of a multi grader: numbers, names, + - * / % ^, parentheses, functions.
 *
 * Why      "0.7 * exact + 0.3 * min(near, 0.5)" is data of a request: it is parsed once and only computes.
 * Memory   A formula owns its steps; it keeps no pointer into the text or the names.
 * Threads  Evaluation reads only.
 * Errors   Parsing: GD_INVALID with the position, unknown names with the nearest known. Evaluation: GD_INVALID for
 *          division by zero, roots and logarithms outside the reals, overflow.
 * Limits   GD_FORMULA_BYTES_MAX, GD_FORMULA_STEPS_MAX, GD_FORMULA_DEPTH_MAX.
 * Life     parse -> evaluate ... -> destroy.
 *
 * ^ binds tighter than a sign and to the right: -2^2 is -4, 2^3^2 is 512. % has the sign of its divisor. Functions:
 * abs, ceil, exp, floor, log (natural), sqrt of one value; max, min of one or more.
 */
#ifndef GD_EVAL_FORMULA_H
#define GD_EVAL_FORMULA_H

#include "engine/base/error.h"
#include <stddef.h>

#define GD_FORMULA_BYTES_MAX 4096
#define GD_FORMULA_STEPS_MAX 1024
#define GD_FORMULA_DEPTH_MAX 64

struct gd_formula;

/* `names`: what may be used, by index. Messages start with "PARAM: ". NULL on error. */
struct gd_formula *gd_formula_parse(const char *text, const char *const *names, int name_count, const char *param,
                                    struct gd_error *err) GD_MUST_CHECK;
/* values[i] belongs to names[i]. */
GD_MUST_CHECK bool gd_formula_evaluate(const struct gd_formula *formula, const double *values, double *result,
                                       struct gd_error *err);
void gd_formula_destroy(struct gd_formula *formula);

/* A name that a formula can use: letters, digits and _, not starting with a digit. */
bool gd_formula_is_name(const char *name);

#endif
