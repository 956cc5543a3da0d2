/*
 * stem.h - Porter's stemmer with NLTK's extensions.
 *
 * Why      METEOR matches words by their stems.
 * Memory   none
 * Threads  Any.
 * Errors   none; words are UTF-8 in lower case.
 * Limits   none
 * Life     none
 */
#ifndef GD_EVAL_STEM_H
#define GD_EVAL_STEM_H

#include "engine/base/buf.h"

void gd_stem(const char *word, size_t length, struct gd_buf *out); /* appends */

#endif
