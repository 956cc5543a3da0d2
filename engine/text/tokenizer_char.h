/*
 * tokenizer_char.h - characters as the tokenizers' rules see them, and the byte-level alphabet.
 *
 * Why      Whitespace, word, digit and punctuation mean exactly what the reference's Unicode tables say.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none; the text is valid UTF-8.
 * Limits   none
 * Life     none
 */
#ifndef GD_TEXT_TOKENIZER_CHAR_H
#define GD_TEXT_TOKENIZER_CHAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one character of valid UTF-8 and returns its length. */
static inline size_t gd_char_decode(const char *text, int32_t *code)
{
    const unsigned char *b = (const unsigned char *)text;
    if (b[0] < 0x80) {
        *code = b[0];
        return 1;
    }
    if (b[0] < 0xE0) {
        *code = (b[0] & 0x1F) << 6 | (b[1] & 0x3F);
        return 2;
    }
    if (b[0] < 0xF0) {
        *code = (b[0] & 0x0F) << 12 | (b[1] & 0x3F) << 6 | (b[2] & 0x3F);
        return 3;
    }
    *code = (b[0] & 0x07) << 18 | (b[1] & 0x3F) << 12 | (b[2] & 0x3F) << 6 | (b[3] & 0x3F);
    return 4;
}

static inline size_t gd_char_length(char lead)
{
    unsigned char b = (unsigned char)lead;
    return b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

/* The start of the character that ends at `end` (> 0). */
static inline size_t gd_char_before(const char *text, size_t end)
{
    size_t at = end - 1;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80)
        at--;
    return at;
}

bool gd_char_is_space(int32_t code);       /* White_Space */
bool gd_char_is_word(int32_t code);        /* Alphabetic, M, Nd, Pc, Join_Control */
bool gd_char_is_number(int32_t code);      /* Nd, Nl, No */
bool gd_char_is_punctuation(int32_t code); /* P* and the ASCII symbols */
bool gd_char_is_mark(int32_t code);        /* Mn, Mc, Me */

/*
 * GPT-2's alphabet: every byte has a printable character. Printable Latin-1 bytes stand for themselves, the other 68
 * (0..32, 127..160, 173) are U+0100 onwards in order.
 */
static inline int32_t gd_alphabet_code(unsigned char byte)
{
    if (byte <= 32)
        return 256 + byte;
    if (byte >= 127 && byte <= 160)
        return 289 + (byte - 127);
    return byte == 173 ? 323 : byte;
}

/* The byte that a character of the alphabet stands for, or -1. */
static inline int gd_alphabet_byte(int32_t code)
{
    if (code >= 256)
        return code <= 288 ? code - 256 : code <= 322 ? code - 289 + 127 : code == 323 ? 173 : -1;
    return code <= 32 || (code >= 127 && code <= 160) || code == 173 ? -1 : code;
}

/* Writes the 1 or 2 bytes of a byte's character. */
static inline size_t gd_alphabet_write(unsigned char byte, char *out)
{
    int32_t code = gd_alphabet_code(byte);
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xC0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3F));
    return 2;
}

#endif
