/*
 * tokenizer_patterns.h - the splitting patterns of the families, in Ruby syntax as their own files have them.
 *
 * Why      GGUF files name them; a file that brings one of them needs no watch over its work, which is linear.
 * Memory   none
 * Threads  none
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TEXT_TOKENIZER_PATTERNS_H
#define GD_TEXT_TOKENIZER_PATTERNS_H

#define GD_PATTERN_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define GD_PART_LLAMA3_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GD_PART_LLAMA3_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define GD_PART_ENGLISH "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define GD_PART_MARKS_HEAD GD_PART_ENGLISH "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|"
#define GD_PART_MARKS_TAIL "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GD_PART_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define GD_PART_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define GD_PART_UPPER_THEN "[^\\r\\n\\p{L}\\p{N}]?" GD_PART_UPPER "*" GD_PART_LOWER
#define GD_PART_UPPER_FIRST "[^\\r\\n\\p{L}\\p{N}]?" GD_PART_UPPER "+" GD_PART_LOWER
#define GD_PART_SLASH_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

#define GD_PATTERN_LLAMA3 GD_PART_LLAMA3_HEAD "\\p{N}{1,3}" GD_PART_LLAMA3_TAIL
#define GD_PATTERN_QWEN2 GD_PART_LLAMA3_HEAD "\\p{N}" GD_PART_LLAMA3_TAIL
#define GD_PATTERN_QWEN35 GD_PART_MARKS_HEAD "\\p{N}" GD_PART_MARKS_TAIL
#define GD_PATTERN_TEKKEN GD_PART_UPPER_THEN "+|" GD_PART_UPPER_FIRST "*|\\p{N}" GD_PART_SLASH_TAIL
#define GD_PATTERN_GPT4O                                                                                               \
    GD_PART_UPPER_THEN "+" GD_PART_ENGLISH "?|" GD_PART_UPPER_FIRST "*" GD_PART_ENGLISH "?|\\p{N}{1,3}" GD_PART_SLASH_TAIL

#endif
