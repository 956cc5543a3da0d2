/*
 * Porter, "An algorithm for suffix stripping" (1980), with the changes that NLTK makes by default: a table of irregular
 * forms, words of two letters stay, -ies and -ied of four letters, y to i after a consonant only, -bli, -alli first,
 * -fulli, -logi, *o of two letters. Letters that are not ASCII count as consonants.
 */
#include "engine/eval/stem.h"

#include "engine/base/alloc.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <utf8proc.h>

#define ROOM 4 /* what a rule may add */

struct stem {
    int32_t *letter;
    size_t count;
};

struct rule {
    const char *suffix, *replacement;
};

static bool is_vowel(int32_t c)
{
    return c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u';
}

/* y is a consonant unless a consonant stands before it. */
static bool is_consonant(const struct stem *stem, size_t at)
{
    bool turned = false;
    while (at > 0 && stem->letter[at] == 'y') {
        turned = !turned;
        at--;
    }
    return !is_vowel(stem->letter[at]) != turned;
}

/* How often a consonant follows a vowel in the first `count` letters. */
static size_t measure(const struct stem *stem, size_t count)
{
    size_t turns = 0;
    bool before = true;
    for (size_t i = 0; i < count; i++) {
        bool consonant = stem->letter[i] == 'y' ? i == 0 || !before : !is_vowel(stem->letter[i]);
        turns += i > 0 && !before && consonant;
        before = consonant;
    }
    return turns;
}

static bool has_vowel(const struct stem *stem, size_t count)
{
    bool before = false;
    for (size_t i = 0; i < count; i++) {
        before = stem->letter[i] == 'y' ? i == 0 || !before : !is_vowel(stem->letter[i]);
        if (!before)
            return true;
    }
    return false;
}

static bool ends_with(const struct stem *stem, const char *suffix)
{
    size_t length = strlen(suffix);
    if (stem->count < length)
        return false;
    for (size_t i = 0; i < length; i++)
        if (stem->letter[stem->count - length + i] != suffix[i])
            return false;
    return true;
}

static void put(struct stem *stem, size_t kept, const char *ending)
{
    stem->count = kept;
    for (const char *p = ending; *p != '\0'; p++)
        stem->letter[stem->count++] = *p;
}

/* The first rule whose suffix is there decides: it applies if the measure of what stands before is at least `least`. */
static void apply(struct stem *stem, const struct rule *rules, size_t rule_count, size_t least)
{
    for (size_t i = 0; i < rule_count; i++) {
        if (!ends_with(stem, rules[i].suffix))
            continue;
        size_t kept = stem->count - strlen(rules[i].suffix);
        if (measure(stem, kept) >= least)
            put(stem, kept, rules[i].replacement);
        return;
    }
}

/* Consonant, vowel, consonant other than w, x, y; or vowel, consonant. */
static bool ends_cvc(const struct stem *stem, size_t count)
{
    if (count == 2)
        return !is_consonant(stem, 0) && is_consonant(stem, 1);
    if (count < 3)
        return false;
    int32_t last = stem->letter[count - 1];
    return is_consonant(stem, count - 3) && !is_consonant(stem, count - 2) && is_consonant(stem, count - 1) &&
           last != 'w' && last != 'x' && last != 'y';
}

static void plural(struct stem *stem)
{
    if (ends_with(stem, "ies") && stem->count == 4)
        put(stem, stem->count - 3, "ie");
    else if (ends_with(stem, "sses") || ends_with(stem, "ies"))
        stem->count -= 2;
    else if (ends_with(stem, "s") && !ends_with(stem, "ss"))
        stem->count--;
}

static void repair_verb(struct stem *stem)
{
    int32_t last = stem->letter[stem->count - 1];
    if (ends_with(stem, "at") || ends_with(stem, "bl") || ends_with(stem, "iz")) {
        put(stem, stem->count, "e");
    } else if (stem->count >= 2 && stem->letter[stem->count - 2] == last && is_consonant(stem, stem->count - 1)) {
        if (last != 'l' && last != 's' && last != 'z')
            stem->count--;
    } else if (measure(stem, stem->count) == 1 && ends_cvc(stem, stem->count)) {
        put(stem, stem->count, "e");
    }
}

static void past_and_participle(struct stem *stem)
{
    if (ends_with(stem, "ied")) {
        put(stem, stem->count - 3, stem->count == 4 ? "ie" : "i");
    } else if (ends_with(stem, "eed")) {
        if (measure(stem, stem->count - 3) > 0)
            stem->count--;
    } else if (ends_with(stem, "ed") && has_vowel(stem, stem->count - 2)) {
        stem->count -= 2;
        repair_verb(stem);
    } else if (ends_with(stem, "ing") && has_vowel(stem, stem->count - 3)) {
        stem->count -= 3;
        repair_verb(stem);
    }
}

static void double_suffixes(struct stem *stem)
{
    static const struct rule rules[] = {{"ational", "ate"}, {"tional", "tion"}, {"enci", "ence"},   {"anci", "ance"},
                                        {"izer", "ize"},    {"bli", "ble"},     {"alli", "al"},     {"entli", "ent"},
                                        {"eli", "e"},       {"ousli", "ous"},   {"ization", "ize"}, {"ation", "ate"},
                                        {"ator", "ate"},    {"alism", "al"},    {"iveness", "ive"}, {"fulness", "ful"},
                                        {"ousness", "ous"}, {"aliti", "al"},    {"iviti", "ive"},   {"biliti", "ble"},
                                        {"fulli", "ful"}};
    if (ends_with(stem, "alli") && measure(stem, stem->count - 4) > 0)
        stem->count -= 2;
    if (ends_with(stem, "logi")) { /* the l counts with what stands before */
        if (measure(stem, stem->count - 3) > 0)
            stem->count--;
        return;
    }
    apply(stem, rules, GD_COUNT(rules), 1);
}

static void last_suffixes(struct stem *stem)
{
    static const struct rule third[] = {{"icate", "ic"}, {"ative", ""}, {"alize", "al"}, {"iciti", "ic"},
                                        {"ical", "ic"},  {"ful", ""},   {"ness", ""}};
    static const struct rule fourth[] = {{"al", ""},   {"ance", ""}, {"ence", ""}, {"er", ""},    {"ic", ""},
                                         {"able", ""}, {"ible", ""}, {"ant", ""},  {"ement", ""}, {"ment", ""},
                                         {"ent", ""},  {"ou", ""},   {"ism", ""},  {"ate", ""},   {"iti", ""},
                                         {"ous", ""},  {"ive", ""},  {"ize", ""}};
    apply(stem, third, GD_COUNT(third), 1);
    if (ends_with(stem, "ion")) { /* s or t before it stays, and counts */
        int32_t before = stem->count > 3 ? stem->letter[stem->count - 4] : 0;
        if ((before == 's' || before == 't') && measure(stem, stem->count - 3) > 1)
            stem->count -= 3;
    } else {
        apply(stem, fourth, GD_COUNT(fourth), 2);
    }
}

static void tidy(struct stem *stem)
{
    size_t kept = stem->count - 1;
    if (stem->count > 0 && stem->letter[kept] == 'e') {
        size_t turns = measure(stem, kept);
        if (turns > 1 || (turns == 1 && !ends_cvc(stem, kept)))
            stem->count = kept;
    }
    if (ends_with(stem, "ll") && measure(stem, stem->count - 1) > 1)
        stem->count--;
}

static const char *irregular(const char *word, size_t length)
{
    static const struct rule forms[] = {
        {"sky", "sky"},        {"skies", "sky"},       {"dying", "die"},        {"lying", "lie"},
        {"tying", "tie"},      {"news", "news"},       {"innings", "inning"},   {"inning", "inning"},
        {"outings", "outing"}, {"outing", "outing"},   {"cannings", "canning"}, {"canning", "canning"},
        {"howe", "howe"},      {"proceed", "proceed"}, {"exceed", "exceed"},    {"succeed", "succeed"}};
    for (size_t i = 0; i < GD_COUNT(forms); i++)
        if (strlen(forms[i].suffix) == length && memcmp(forms[i].suffix, word, length) == 0)
            return forms[i].replacement;
    return NULL;
}

static void strip(struct stem *stem)
{
    plural(stem);
    past_and_participle(stem);
    if (ends_with(stem, "y") && stem->count > 2 && is_consonant(stem, stem->count - 2))
        stem->letter[stem->count - 1] = 'i';
    double_suffixes(stem);
    last_suffixes(stem);
    tidy(stem);
}

void gd_stem(const char *word, size_t length, struct gd_buf *out)
{
    const char *form = irregular(word, length);
    if (form != NULL) {
        gd_buf_append_text(out, form);
        return;
    }
    struct stem stem = {.letter = gd_alloc_array(length + ROOM, sizeof *stem.letter)};
    for (size_t at = 0; at < length;) {
        utf8proc_int32_t codepoint = -1;
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)word + at, (utf8proc_ssize_t)(length - at), &codepoint);
        if (used > 0)
            stem.letter[stem.count++] = codepoint;
        at += used > 0 ? (size_t)used : 1;
    }
    if (stem.count > 2)
        strip(&stem);
    for (size_t i = 0; i < stem.count; i++) {
        utf8proc_uint8_t bytes[4];
        gd_buf_append(out, bytes, (size_t)utf8proc_encode_char(stem.letter[i], bytes));
    }
    gd_free(stem.letter);
}
