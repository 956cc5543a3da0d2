/*
 * SentencePiece's precompiled character map: 4 bytes with the size of a double-array trie, the trie (units of 4 bytes,
 * little-endian), then the NUL-terminated replacements that its values point into. A unit holds the label in bits 0 to 7,
 * "a value follows" in bit 8, and the offset in bits 10 to 30, times 256 when bit 9 is set; a value unit holds 31 bits.
 */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_step.h"

#include <string.h>
#include <utf8proc.h>

#define CLUSTER_BYTES 6 /* grapheme clusters of fewer bytes are looked up whole */
#define ABSENT (-1)
#define DAMAGED (-2)

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* NULL: not base64 with its padding. */
static char *decode_base64(const char *text, size_t *length)
{
    size_t size = strlen(text), padding = 0;
    if (size == 0 || size % 4 != 0)
        return NULL;
    while (padding < 2 && text[size - 1 - padding] == '=')
        padding++;
    char *out = gd_alloc(size / 4 * 3);
    size_t written = 0;
    for (size_t at = 0; at < size; at += 4) {
        uint32_t group = 0;
        for (size_t k = 0; k < 4; k++) {
            int digit = at + k >= size - padding ? 0 : base64_digit(text[at + k]);
            if (digit < 0) {
                gd_free(out);
                return NULL;
            }
            group = group << 6 | (uint32_t)digit;
        }
        out[written++] = (char)(group >> 16);
        out[written++] = (char)(group >> 8);
        out[written++] = (char)group;
    }
    *length = written - padding;
    return out;
}

static uint32_t unit_at(const char *bytes, size_t index)
{
    const unsigned char *b = (const unsigned char *)bytes + 4 * index;
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

bool gd_charsmap_read(struct gd_step *step, const char *base64, const char *path, struct gd_error *err)
{
    step->text = decode_base64(base64, &step->text_length);
    if (step->text == NULL)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.precompiled_charsmap is not base64", path);
    return gd_charsmap_check(step, path, err);
}

bool gd_charsmap_check(const struct gd_step *step, const char *path, struct gd_error *err)
{
    size_t length = step->text_length, trie = length >= 4 ? unit_at(step->text, 0) : 0;
    if (trie == 0 || trie % 4 != 0 || trie > length - 4)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.precompiled_charsmap has %zu bytes, its trie %zu of them", path,
                             length, trie);
    if (!gd_utf8_valid(step->text + 4 + trie, length - 4 - trie))
        return gd_fail_param(err, GD_BAD_MODEL, path, "the replacements of %s.precompiled_charsmap are not valid UTF-8",
                             path);
    return true;
}

static uint32_t offset_of(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* Where the replacement of the shortest (or longest) entry that text starts with begins, ABSENT or DAMAGED. */
static int64_t look_up(const struct gd_step *step, const char *text, int32_t length, bool longest, int32_t *taken)
{
    int64_t best = ABSENT;
    const char *trie = step->text + 4;
    uint32_t units = unit_at(step->text, 0) / 4, at = offset_of(unit_at(trie, 0));
    size_t replacements = step->text_length - 4 - 4 * (size_t)units;
    for (int32_t i = 0; i < length && text[i] != '\0'; i++) {
        at ^= (unsigned char)text[i];
        if (at >= units)
            return DAMAGED;
        uint32_t unit = unit_at(trie, at);
        if ((unit & (1u << 31 | 0xFF)) != (unsigned char)text[i])
            return best;
        at ^= offset_of(unit);
        if ((unit >> 8 & 1) == 0)
            continue;
        uint32_t value = at < units ? unit_at(trie, at) & 0x7FFFFFFF : UINT32_MAX;
        bool outside = value >= replacements || ((unsigned char)trie[4 * (size_t)units + value] & 0xC0) == 0x80;
        if (outside)
            return DAMAGED;
        best = (int64_t)value;
        *taken = i + 1;
        if (!longest)
            break;
    }
    return best;
}

const char *gd_charsmap_longest(const struct gd_step *step, const char *text, int32_t length, int32_t *taken, bool *damaged)
{
    int64_t value = look_up(step, text, length, true, taken);
    *damaged = *damaged || value == DAMAGED;
    return value < 0 ? NULL : step->text + 4 + unit_at(step->text, 0) + value;
}

/* Puts the replacement of flow[begin, end). False: damaged. */
static bool put(const struct gd_step *step, struct gd_flow *flow, int32_t begin, int32_t end, bool *found)
{
    int32_t taken = 0; /* as in the reference, the shortest entry decides for all of the text */
    int64_t value = look_up(step, flow->bytes + begin, end - begin, false, &taken);
    *found = value >= 0;
    if (value >= 0) {
        size_t base = 4 + (size_t)unit_at(step->text, 0) + (size_t)value;
        const char *text = step->text + base;
        gd_flow_put(flow, text, strnlen(text, step->text_length - base), gd_flow_from(flow, begin),
                    gd_flow_to(flow, end - 1));
    }
    return value != DAMAGED;
}

static bool put_cluster(const struct gd_step *step, struct gd_flow *flow, int32_t begin, int32_t end)
{
    bool found = false;
    if (end - begin < CLUSTER_BYTES && (!put(step, flow, begin, end, &found) || found))
        return found;
    for (int32_t at = begin, next; at < end; at = next) {
        next = at + (int32_t)gd_char_length(flow->bytes[at]);
        if (!put(step, flow, at, next, &found))
            return false;
        if (!found)
            gd_flow_copy(flow, at, next);
    }
    return true;
}

bool gd_step_charsmap(const struct gd_step *step, struct gd_flow *flow, struct gd_range piece, struct gd_error *err)
{
    for (int32_t begin = piece.begin, end; begin < piece.end; begin = end) {
        int32_t code, following, state = 0;
        end = begin + (int32_t)gd_char_decode(flow->bytes + begin, &code);
        while (end < piece.end) {
            size_t length = gd_char_decode(flow->bytes + end, &following);
            if (utf8proc_grapheme_break_stateful(code, following, &state))
                break;
            code = following;
            end += (int32_t)length;
        }
        if (!put_cluster(step, flow, begin, end))
            return gd_fail(err, GD_BAD_MODEL, "the normalizer's precompiled_charsmap points outside of itself");
    }
    return true;
}
