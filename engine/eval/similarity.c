#include "engine/eval/similarity.h"

#include "engine/base/alloc.h"
#include "engine/eval/stem.h"
#include "engine/eval/words.h"

#include <math.h>
#include <string.h>
#include <utf8proc.h>

#define BLEU_ORDER 4
#define NONE SIZE_MAX

const char *const gd_similarity_names[GD_SIMILARITY_COUNT] = {"bleu",    "cosine",  "fuzzy_match", "gleu",
                                                              "meteor",  "rouge_1", "rouge_2",     "rouge_3",
                                                              "rouge_4", "rouge_5", "rouge_l"};

/* ---- characters ---- */

static uint32_t *codepoints(const char *text, size_t *count)
{
    size_t length = strlen(text);
    uint32_t *out = gd_alloc_array(length + 1, sizeof *out);
    *count = 0;
    for (size_t at = 0; at < length;) {
        utf8proc_int32_t codepoint = -1;
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(length - at), &codepoint);
        out[(*count)++] = (uint32_t)codepoint;
        at += used > 0 ? (size_t)used : 1;
    }
    return out;
}

/* 2 LCS / (n + m); two empty texts are equal. */
static double fuzzy_match(const char *input, const char *reference)
{
    size_t n, m;
    uint32_t *a = codepoints(input, &n), *b = codepoints(reference, &m);
    double score = n + m == 0 ? 1 : 2.0 * (double)gd_subsequence(a, n, b, m) / (double)(n + m);
    gd_free(a);
    gd_free(b);
    return score;
}

/* ---- words ---- */

/* BP * exp(mean of log p_n), p_n the share of the input's n-grams that the reference has. The k-th order without any
 * counts as 1 / (2^k times their number). Orders longer than the input do not count. BP = exp(1 - reference / input)
 * for short inputs. */
static double bleu(const struct gd_words *input, const struct gd_words *reference)
{
    size_t shared[BLEU_ORDER];
    double sum = 0, smoothing = 1;
    int order = 0;
    gd_words_shared(input, reference, BLEU_ORDER, shared);
    if (shared[0] == 0)
        return 0;
    while (order < BLEU_ORDER && gd_words_grams(input, order + 1) > 0) {
        double grams = (double)gd_words_grams(input, order + 1);
        if (shared[order] == 0)
            smoothing *= 2;
        sum += log(shared[order] > 0 ? (double)shared[order] / grams : 1 / (smoothing * grams));
        order++;
    }
    double brevity = input->count < reference->count ? exp(1 - (double)reference->count / (double)input->count) : 1;
    return fmin(1, brevity * exp(sum / order));
}

/* Shared 1- to 4-grams over the number of those of the text that has more. */
static double gleu(const struct gd_words *input, const struct gd_words *reference)
{
    size_t shared[BLEU_ORDER], of_input = 0, of_reference = 0, both = 0;
    gd_words_shared(input, reference, BLEU_ORDER, shared);
    for (int order = 1; order <= BLEU_ORDER; order++) {
        of_input += gd_words_grams(input, order);
        of_reference += gd_words_grams(reference, order);
        both += shared[order - 1];
    }
    size_t more = of_input > of_reference ? of_input : of_reference;
    return more > 0 ? (double)both / (double)more : 0;
}

static double f1(size_t both, size_t of_input, size_t of_reference)
{
    if (both == 0)
        return 0;
    double precision = (double)both / (double)of_input, recall = (double)both / (double)of_reference;
    return 2 * precision * recall / (precision + recall);
}

static double rouge(const struct gd_words *input, const struct gd_words *reference, enum gd_similarity_metric metric)
{
    size_t shared[GD_SIMILARITY_ROUGE_5 - GD_SIMILARITY_ROUGE_1 + 1];
    if (metric == GD_SIMILARITY_ROUGE_L)
        return f1(gd_subsequence(input->id, input->count, reference->id, reference->count), input->count,
                  reference->count);
    int order = (int)metric - GD_SIMILARITY_ROUGE_1 + 1;
    gd_words_shared(input, reference, order, shared);
    return f1(shared[order - 1], gd_words_grams(input, order), gd_words_grams(reference, order));
}

static double *count_ids(const struct gd_words *words, uint32_t id_count, double *squares)
{
    double *counts = gd_alloc_array((size_t)id_count + 1, sizeof *counts);
    for (size_t i = 0; i < words->count; i++)
        counts[words->id[i]]++;
    *squares = 0;
    for (uint32_t id = 0; id < id_count; id++)
        *squares += counts[id] * counts[id];
    return counts;
}

static double cosine(const struct gd_words *input, const struct gd_words *reference, uint32_t id_count)
{
    double a_squares, b_squares, product = 0;
    double *a = count_ids(input, id_count, &a_squares), *b = count_ids(reference, id_count, &b_squares);
    for (uint32_t id = 0; id < id_count; id++)
        product += a[id] * b[id];
    gd_free(a);
    gd_free(b);
    return product > 0 ? fmin(1, product / sqrt(a_squares * b_squares)) : 0;
}

/* ---- METEOR ---- */

/* Matches what is still free (match: NONE), from the last input word on, each with the last free reference word of its
 * id. */
static void match_words(const struct gd_words *input, const struct gd_words *reference, uint32_t id_count,
                        size_t *match, size_t *taken_by)
{
    size_t *last = gd_alloc_array((size_t)id_count + 1, sizeof *last); /* the last free place of an id, +1 */
    size_t *before =
        gd_alloc_array(reference->count + 1, sizeof *before); /* the free place of the same id before a place, +1 */
    for (size_t j = 0; j < reference->count; j++)
        if (taken_by[j] == NONE) {
            before[j] = last[reference->id[j]];
            last[reference->id[j]] = j + 1;
        }
    for (size_t i = input->count; i-- > 0;) {
        size_t place = match[i] == NONE ? last[input->id[i]] : 0;
        if (place == 0)
            continue;
        match[i] = place - 1;
        taken_by[place - 1] = i;
        last[input->id[i]] = before[place - 1];
    }
    gd_free(last);
    gd_free(before);
}

/* Each word becomes its stem; places stay. */
static void stem_words(struct gd_words *words)
{
    struct gd_buf out;
    size_t *ends = gd_alloc_array(words->count + 1, sizeof *ends);
    gd_buf_init(&out, 0);
    for (size_t i = 0; i < words->count; i++) {
        gd_stem(words->word[i].text, words->word[i].length, &out);
        ends[i] = out.length;
    }
    gd_free(words->bytes);
    gd_free(words->id);
    words->id = NULL;
    words->bytes = gd_buf_take(&out);
    for (size_t i = 0; i < words->count; i++) {
        size_t start = i > 0 ? ends[i - 1] : 0;
        words->word[i] = (struct gd_word){.text = words->bytes + start, .length = (uint32_t)(ends[i] - start)};
    }
    gd_free(ends);
}

/* F = P R / (0.9 P + 0.1 R), less 0.5 (chunks / matches)^3 of it, where a chunk is a run of matches adjacent in both.
 */
static double meteor_of(const size_t *match, size_t input_count, size_t reference_count)
{
    size_t matches = 0, chunks = 0;
    for (size_t i = 0; i < input_count; i++) {
        matches += match[i] != NONE;
        chunks += match[i] != NONE && !(i > 0 && match[i - 1] != NONE && match[i] == match[i - 1] + 1);
    }
    if (matches == 0)
        return 0;
    double precision = (double)matches / (double)input_count, recall = (double)matches / (double)reference_count;
    double mean = precision * recall / (0.9 * precision + 0.1 * recall);
    return (1 - 0.5 * pow((double)chunks / (double)matches, 3)) * mean;
}

static double meteor(struct gd_words *input, struct gd_words *reference, uint32_t id_count)
{
    size_t *match = gd_alloc_array(input->count + 1, sizeof *match),
           *taken_by = gd_alloc_array(reference->count + 1, sizeof *taken_by);
    for (size_t i = 0; i < input->count; i++)
        match[i] = NONE;
    for (size_t j = 0; j < reference->count; j++)
        taken_by[j] = NONE;
    match_words(input, reference, id_count, match, taken_by);
    stem_words(input);
    stem_words(reference);
    match_words(input, reference, gd_words_number(input, reference), match, taken_by);
    double score = meteor_of(match, input->count, reference->count);
    gd_free(match);
    gd_free(taken_by);
    return score;
}

/* ---- all ---- */

static bool has_letter(const char *text)
{
    size_t count;
    bool found = false;
    uint32_t *characters = codepoints(text, &count);
    for (size_t i = 0; i < count && !found; i++) {
        utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)characters[i]);
        found = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
    }
    gd_free(characters);
    return found;
}

static double compare(enum gd_similarity_metric metric, struct gd_words *input, struct gd_words *reference)
{
    uint32_t id_count = gd_words_number(input, reference);
    switch (metric) {
    case GD_SIMILARITY_BLEU:
        return bleu(input, reference);
    case GD_SIMILARITY_COSINE:
        return cosine(input, reference, id_count);
    case GD_SIMILARITY_GLEU:
        return gleu(input, reference);
    case GD_SIMILARITY_METEOR:
        return meteor(input, reference, id_count);
    default:
        return rouge(input, reference, metric);
    }
}

bool gd_similarity(enum gd_similarity_metric metric, const char *input, const char *reference, double *score,
                   struct gd_error *err)
{
    struct gd_words a, b;
    size_t longer = strlen(input) > strlen(reference) ? strlen(input) : strlen(reference);
    if (longer > GD_SIMILARITY_BYTES_MAX)
        return gd_fail(err, GD_TOO_LARGE, "%s compares texts of at most %u bytes, got %zu", gd_similarity_names[metric],
                       GD_SIMILARITY_BYTES_MAX, longer);
    if (metric == GD_SIMILARITY_FUZZY_MATCH) {
        *score = fuzzy_match(input, reference);
        return true;
    }
    if (metric >= GD_SIMILARITY_ROUGE_1) {
        gd_words_rouge(&a, input);
        gd_words_rouge(&b, reference);
    } else {
        bool lower = metric == GD_SIMILARITY_COSINE || metric == GD_SIMILARITY_METEOR;
        gd_words_13a(&a, input, lower);
        gd_words_13a(&b, reference, lower);
    }
    bool ok = metric < GD_SIMILARITY_ROUGE_1 || b.count > 0 || !has_letter(reference) ||
              gd_fail(err, GD_UNSUPPORTED,
                      "%s sees words of a-z and 0-9 only, and the reference has none: use fuzzy_match, bleu or gleu",
                      gd_similarity_names[metric]);
    if (ok)
        *score = compare(metric, &a, &b);
    gd_words_release(&a);
    gd_words_release(&b);
    return ok;
}
