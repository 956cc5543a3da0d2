/*
 * space.h - what Python calls white space.
 *
 * Why      strip, split and \s of the reference packages know all of Unicode's spaces; three files here must agree with them.
 * Memory   none
 * Threads  Any; pure.
 * Errors   none; bytes that are no UTF-8 are characters of one byte.
 * Limits   none
 * Life     none
 */
#ifndef GD_EVAL_SPACE_H
#define GD_EVAL_SPACE_H

#include <stdbool.h>
#include <stddef.h>

/* The character at `text` (terminated, not at its end): how many bytes it has, and whether it is space. */
size_t gd_space_skip(const char *text, bool *is_space);

#endif
