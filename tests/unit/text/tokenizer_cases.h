/*
 * tokenizer_cases.h - stored answers of the reference, for the tokenizer tests.
 *
 * Why      Several tests compare a tokenizer, however it was loaded, with the same cases (see make_tokenizer.py).
 * Memory   none kept.
 * Threads  One.
 * Errors   A difference fails the test and prints both sides.
 * Limits   none
 * Life     none
 */
#ifndef GD_TESTS_TOKENIZER_CASES_H
#define GD_TESTS_TOKENIZER_CASES_H

#include "engine/base/json.h"
#include "engine/text/tokenizer.h"

const char *fixtures(void);                 /* GD_FIXTURES */
cJSON *open_fixture(const char *file);      /* of tokenizer/, parsed */
/* Ids with and without special tokens, decodings. Returns how many cases there were. */
int check_cases(const struct gd_tokenizer *tokenizer, const cJSON *cases, const char *label);
/* [text, ids, decoded without special tokens], as text of people. */
int check_plain_cases(const struct gd_tokenizer *tokenizer, const cJSON *cases, const char *label);
unsigned char *hex_of(const char *text, size_t *length); /* gd_free it */
void check_with_ends(const struct gd_tokenizer *tokenizer, const cJSON *cases, const char *label);

#endif
