#include "engine/eval/words.h"

#include "engine/base/alloc.h"
#include "engine/base/buf.h"
#include "engine/eval/lower.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- splitting ---- */

static size_t decode(const char *text, size_t length, int32_t *out)
{
    utf8proc_int32_t codepoint = -1;
    utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &codepoint);
    *out = codepoint;
    return used > 0 ? (size_t)used : 1;
}

/* What Python's str.split splits at. */
static bool is_space(int32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Takes over `bytes`. */
static void split(struct gd_words *words, char *bytes, size_t length)
{
    size_t capacity = length / 2 + 1, start = 0;
    words->bytes = bytes;
    words->count = 0;
    words->id = NULL;
    words->word = gd_alloc_array(capacity, sizeof *words->word);
    for (size_t at = 0, used = 0; at <= length; at += used) {
        int32_t codepoint = ' ';
        used = at < length ? decode(bytes + at, length - at, &codepoint) : 1;
        if (!is_space(codepoint))
            continue;
        if (at > start)
            words->word[words->count++] = (struct gd_word){.text = bytes + start, .length = (uint32_t)(at - start)};
        start = at + used;
    }
}

static char *replace(char *text_taken, const char *from, const char *to)
{
    struct gd_buf out;
    gd_buf_init(&out, 0);
    const char *at = text_taken;
    for (const char *found = strstr(at, from); found != NULL; found = strstr(at, from)) {
        gd_buf_append(&out, at, (size_t)(found - at));
        gd_buf_append_text(&out, to);
        at = found + strlen(from);
    }
    gd_buf_append_text(&out, at);
    gd_free(text_taken);
    return gd_buf_take(&out);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_point(char c)
{
    return c == '.' || c == ',';
}

/* ASCII punctuation that always stands alone: all but ' , - and . */
static bool is_alone(char c)
{
    return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= '!' && c <= '&') || (c >= '(' && c <= '+') ||
           (c >= ':' && c <= '@') || c == '/';
}

enum pass { ALONE, POINT_AFTER, POINT_BEFORE, DASH_AFTER_DIGIT };

/* One substitution of the tokenizer over the whole text. All it looks for is ASCII, so bytes will do. */
static char *substitute(char *text_taken, enum pass pass)
{
    struct gd_buf out;
    gd_buf_init(&out, 0);
    for (const char *p = text_taken; *p != '\0'; p++) {
        const char a = p[0], b = p[1];
        if (pass == ALONE && is_alone(a))
            gd_buf_append(&out, (char[]){' ', a, ' '}, 3);
        else if ((pass == POINT_AFTER && b != '\0' && !is_digit(a) && is_point(b)) ||
                 (pass == DASH_AFTER_DIGIT && is_digit(a) && b == '-'))
            gd_buf_append(&out, (char[]){a, ' ', b, ' '}, 4), p++;
        else if (pass == POINT_BEFORE && is_point(a) && b != '\0' && !is_digit(b))
            gd_buf_append(&out, (char[]){' ', a, ' ', b}, 4), p++;
        else
            gd_buf_append_char(&out, a);
    }
    gd_free(text_taken);
    return gd_buf_take(&out);
}

/* Without blanks at the end. */
static char *strip_end(const char *text)
{
    size_t end = 0;
    for (size_t at = 0, length = strlen(text); at < length;) {
        int32_t codepoint;
        at += decode(text + at, length - at, &codepoint);
        if (!is_space(codepoint))
            end = at;
    }
    return gd_strndup(text, end);
}

static void lower_each(struct gd_words *words)
{
    struct gd_buf out;
    gd_buf_init(&out, 0);
    for (size_t i = 0; i < words->count; i++) {
        gd_lower(words->word[i].text, words->word[i].length, &out);
        gd_buf_append_char(&out, ' ');
    }
    gd_words_release(words);
    size_t length = out.length;
    split(words, gd_buf_take(&out), length);
}

void gd_words_13a(struct gd_words *words, const char *text, bool lower)
{
    char *line = replace(strip_end(text), "<skipped>", "");
    line = replace(line, "-\n", "");
    line = replace(line, "\n", " ");
    line = replace(line, "&quot;", "\"");
    line = replace(line, "&amp;", "&");
    line = replace(line, "&lt;", "<");
    line = replace(line, "&gt;", ">");
    char *padded = gd_format(" %s ", line);
    gd_free(line);
    for (int pass = ALONE; pass <= DASH_AFTER_DIGIT; pass++)
        padded = substitute(padded, (enum pass)pass);
    split(words, padded, strlen(padded));
    if (lower)
        lower_each(words);
}

void gd_words_rouge(struct gd_words *words, const char *text)
{
    struct gd_buf out;
    gd_buf_init(&out, 0);
    gd_lower(text, strlen(text), &out);
    for (size_t i = 0; i < out.length; i++)
        if (!(out.data[i] >= 'a' && out.data[i] <= 'z') && !is_digit(out.data[i]))
            out.data[i] = ' ';
    size_t length = out.length;
    split(words, gd_buf_take(&out), length);
}

void gd_words_release(struct gd_words *words)
{
    gd_free(words->bytes);
    gd_free(words->word);
    gd_free(words->id);
    *words = (struct gd_words){.count = 0};
}

/* ---- numbers ---- */

struct entry {
    struct gd_word word;
    uint32_t *id;
};

static int compare_entries(const void *a, const void *b)
{
    const struct gd_word *x = &((const struct entry *)a)->word, *y = &((const struct entry *)b)->word;
    if (x->length != y->length)
        return x->length < y->length ? -1 : 1;
    return memcmp(x->text, y->text, x->length);
}

uint32_t gd_words_number(struct gd_words *a, struct gd_words *b)
{
    size_t total = a->count + b->count;
    uint32_t last = 0;
    struct entry *entries = gd_alloc_array(total + 1, sizeof *entries);
    a->id = gd_alloc_array(a->count + 1, sizeof *a->id);
    b->id = gd_alloc_array(b->count + 1, sizeof *b->id);
    for (size_t i = 0; i < a->count; i++)
        entries[i] = (struct entry){.word = a->word[i], .id = &a->id[i]};
    for (size_t i = 0; i < b->count; i++)
        entries[a->count + i] = (struct entry){.word = b->word[i], .id = &b->id[i]};
    qsort(entries, total, sizeof *entries, compare_entries);
    for (size_t i = 0; i < total; i++) {
        last += i > 0 && compare_entries(&entries[i - 1], &entries[i]) != 0;
        *entries[i].id = last;
    }
    gd_free(entries);
    return total > 0 ? last + 1 : 0;
}

/* ---- n-grams ---- */

/* An n-gram is the number of its first n-1 words and its last word; `at`: its place, those of b after those of a. */
struct gram {
    uint64_t key;
    uint32_t at;
};

static int compare_grams(const void *a, const void *b)
{
    uint64_t x = ((const struct gram *)a)->key, y = ((const struct gram *)b)->key;
    return x < y ? -1 : x > y;
}

size_t gd_words_grams(const struct gd_words *words, int order)
{
    return words->count >= (size_t)order ? words->count - (size_t)order + 1 : 0;
}

/* Numbers sorted n-grams by equality into `number`, and counts what both texts have. */
static size_t number_grams(const struct gram *grams, size_t count, size_t a_count, uint32_t *number)
{
    size_t shared = 0, of_a = 0, of_b = 0;
    uint32_t last = 0;
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && grams[i].key != grams[i - 1].key) {
            last++;
            shared += of_a < of_b ? of_a : of_b;
            of_a = of_b = 0;
        }
        number[grams[i].at] = last;
        of_a += grams[i].at < a_count;
        of_b += grams[i].at >= a_count;
    }
    return shared + (of_a < of_b ? of_a : of_b);
}

void gd_words_shared(const struct gd_words *a, const struct gd_words *b, int order_max, size_t *shared)
{
    size_t total = a->count + b->count;
    struct gram *grams = gd_alloc_array(total + 1, sizeof *grams);
    uint32_t *number =
        gd_alloc_array(total + 1, sizeof *number); /* of the n-gram that starts at a word, of the last order */
    for (int order = 1; order <= order_max; order++) {
        size_t of_a = gd_words_grams(a, order), of_b = gd_words_grams(b, order), count = 0;
        for (size_t i = 0; i < of_a; i++)
            grams[count++] =
                (struct gram){.key = (uint64_t)number[i] << 32 | a->id[i + (size_t)order - 1], .at = (uint32_t)i};
        for (size_t i = 0; i < of_b; i++)
            grams[count++] = (struct gram){.key = (uint64_t)number[a->count + i] << 32 | b->id[i + (size_t)order - 1],
                                           .at = (uint32_t)(a->count + i)};
        qsort(grams, count, sizeof *grams, compare_grams);
        shared[order - 1] = number_grams(grams, count, a->count, number);
    }
    gd_free(grams);
    gd_free(number);
}

/* ---- longest common subsequence ---- */

struct place {
    uint32_t symbol, at;
};

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return x->symbol != y->symbol ? (x->symbol < y->symbol ? -1 : 1) : (x->at < y->at ? -1 : x->at > y->at);
}

/* Where a symbol's places start; `count` when it has none. */
static size_t find_symbol(const struct place *places, size_t count, uint32_t symbol)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (places[middle].symbol < symbol)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && places[low].symbol == symbol ? low : count;
}

/* Places of the symbols of a, as bits. A symbol that is frequent, which at most 64 can be, keeps its bits; those of the
 * others are set when asked for and cleared afterwards. */
struct places {
    struct place *place;
    size_t count, words;
    uint64_t *bank, *spare;
    uint32_t *kept; /* by first place: its row of the bank, +1 */
};

static size_t group_end(const struct places *places, size_t first)
{
    size_t end = first;
    while (end < places->count && places->place[end].symbol == places->place[first].symbol)
        end++;
    return end;
}

static void set_bits(const struct places *places, size_t first, uint64_t *bits)
{
    for (size_t k = first, end = group_end(places, first); k < end; k++)
        bits[places->place[k].at / 64] |= 1ull << places->place[k].at % 64;
}

static void places_init(struct places *places, const uint32_t *symbols, size_t count)
{
    uint32_t rows = 0;
    *places = (struct places){.count = count, .words = (count + 63) / 64};
    places->place = gd_alloc_array(count + 1, sizeof *places->place);
    places->kept = gd_alloc_array(count + 1, sizeof *places->kept);
    places->spare = gd_alloc_array(places->words + 1, sizeof *places->spare);
    for (size_t i = 0; i < count; i++)
        places->place[i] = (struct place){.symbol = symbols[i], .at = (uint32_t)i};
    qsort(places->place, count, sizeof *places->place, compare_places);
    for (size_t first = 0; first < count; first = group_end(places, first))
        if (group_end(places, first) - first >= places->words)
            places->kept[first] = ++rows;
    places->bank = gd_alloc_array(rows * places->words + 1, sizeof *places->bank);
    for (size_t first = 0; first < count; first = group_end(places, first))
        if (places->kept[first] > 0)
            set_bits(places, first, places->bank + (places->kept[first] - 1) * places->words);
}

static void places_release(struct places *places)
{
    gd_free(places->place);
    gd_free(places->kept);
    gd_free(places->spare);
    gd_free(places->bank);
}

/* Bit-parallel (Hyyrö 2004): bit i of V is 0 where the table rises at a[i]; for each symbol of b, with M its places in
 * a: V = (V + (V & M)) | (V & ~M). The length is the number of zero bits in the end. */
static void advance(uint64_t *v, const uint64_t *mask, size_t start, size_t words)
{
    uint64_t carry = 0;
    for (size_t w = start; w < words; w++) {
        uint64_t both = v[w] & mask[w], sum = v[w] + both, with_carry = sum + carry;
        carry = (sum < both) | (with_carry < sum);
        v[w] = with_carry | (v[w] & ~mask[w]);
    }
}

size_t gd_subsequence(const uint32_t *a, size_t a_count, const uint32_t *b, size_t b_count)
{
    struct places places;
    size_t length = 0;
    places_init(&places, a, a_count);
    uint64_t *v = gd_alloc_array(places.words + 1, sizeof *v);
    memset(v, 0xFF, places.words * sizeof *v);
    for (size_t j = 0; j < b_count; j++) {
        size_t first = find_symbol(places.place, a_count, b[j]);
        if (first == a_count)
            continue;
        size_t start = places.place[first].at / 64;
        if (places.kept[first] > 0) {
            advance(v, places.bank + (places.kept[first] - 1) * places.words, start, places.words);
        } else {
            set_bits(&places, first, places.spare);
            advance(v, places.spare, start, places.words);
            for (size_t k = first, end = group_end(&places, first); k < end; k++)
                places.spare[places.place[k].at / 64] = 0;
        }
    }
    for (size_t i = 0; i < a_count; i++)
        length += (v[i / 64] >> i % 64 & 1u) == 0;
    gd_free(v);
    places_release(&places);
    return length;
}
