/*
 * words.h - texts as words, words as numbers, and what two lists of them share.
 *
 * Why      All metrics but fuzzy_match compare words: split once, number equal words equally, then count integers.
 * Memory   gd_words owns its bytes; gd_words_release.
 * Threads  One thread a struct.
 * Errors   none
 * Limits   texts below 4 GiB
 * Life     gd_words_13a or gd_words_rouge -> gd_words_number -> ids ... -> gd_words_release.
 */
#ifndef GD_EVAL_WORDS_H
#define GD_EVAL_WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gd_word {
    const char *text; /* not terminated */
    uint32_t length;
};

struct gd_words {
    char *bytes;
    struct gd_word *word;
    uint32_t *id; /* after gd_words_number */
    size_t count;
};

/* The words of mteval-v13a, as sacrebleu makes them: punctuation stands alone, except inside numbers. `lower`: then each
 * word in lower case, as Python's str.lower. */
void gd_words_13a(struct gd_words *words, const char *text, bool lower);
/* The words of rouge_score: lower case, runs of a-z and 0-9. */
void gd_words_rouge(struct gd_words *words, const char *text);
void gd_words_release(struct gd_words *words);

/* Equal words of both get equal ids, from 0 on; returns how many there are. */
uint32_t gd_words_number(struct gd_words *a, struct gd_words *b);

/* shared[n-1], for n from 1 to `order_max`: how many n-grams both have, each as often as where it is rarer. */
void gd_words_shared(const struct gd_words *a, const struct gd_words *b, int order_max, size_t *shared);
/* How many n-grams there are. */
size_t gd_words_grams(const struct gd_words *words, int order);

/* Length of the longest common subsequence. */
size_t gd_subsequence(const uint32_t *a, size_t a_count, const uint32_t *b, size_t b_count);

#endif
