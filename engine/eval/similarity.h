/*
 * similarity.h - how alike two texts are, from 0 to 1, by the names of OpenAI's text_similarity grader.
 *
 * Why      OpenAI names metrics, not implementations. Each is one that its users can repeat, held to its package by
 *          vectors:
 *
 *   fuzzy_match   rapidfuzz.fuzz.ratio / 100, over characters: 2 LCS / (both lengths). Vendors name rapidfuzz, not which
 *                 of its functions; the score that their documentation shows, 0.6117136659436009, is 282/461: a ratio as
 *                 it stands, not one times the 0.95, 0.9 or 0.6 of WRatio.
 *   bleu          sacrebleu.sentence_bleu / 100 (13a words, orders to 4, "exp" smoothing, effective order): an equal
 *                 answer of one word is 1, where unsmoothed BLEU says 0.
 *   gleu          nltk sentence_gleu, over 13a words: the smaller of precision and recall of all 1- to 4-grams.
 *   meteor        nltk meteor_score, over 13a words in lower case, by its stages exact and Porter stem (no synonyms:
 *                 there is no WordNet here); alpha 0.9, beta 3, gamma 0.5.
 *   cosine        of the counts of 13a words in lower case; no embedding model takes part.
 *   rouge_1..5, l rouge_score F1 without stemming. As there, words are runs of a-z and 0-9.
 *
 * Memory   none kept
 * Threads  Any; pure.
 * Errors   GD_TOO_LARGE; GD_UNSUPPORTED when ROUGE is asked about a reference in another script than a-z, where every
 *          score would be 0.
 * Limits   GD_SIMILARITY_BYTES_MAX a text: time grows with the product of lengths (fuzzy_match, rouge_l).
 * Life     none
 */
#ifndef GD_EVAL_SIMILARITY_H
#define GD_EVAL_SIMILARITY_H

#include "engine/base/error.h"

#define GD_SIMILARITY_BYTES_MAX (128u << 10)

enum gd_similarity_metric {
    GD_SIMILARITY_BLEU,
    GD_SIMILARITY_COSINE,
    GD_SIMILARITY_FUZZY_MATCH,
    GD_SIMILARITY_GLEU,
    GD_SIMILARITY_METEOR,
    GD_SIMILARITY_ROUGE_1,
    GD_SIMILARITY_ROUGE_2,
    GD_SIMILARITY_ROUGE_3,
    GD_SIMILARITY_ROUGE_4,
    GD_SIMILARITY_ROUGE_5,
    GD_SIMILARITY_ROUGE_L,
    GD_SIMILARITY_COUNT,
};
extern const char *const gd_similarity_names[GD_SIMILARITY_COUNT]; /* "bleu", ... */

/* Texts are UTF-8. */
GD_MUST_CHECK bool gd_similarity(enum gd_similarity_metric metric, const char *input, const char *reference,
                                 double *score, struct gd_error *err);

#endif
