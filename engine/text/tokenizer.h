/*
 * tokenizer.h - text to ids and back, exactly as the model's own tokenizer does it.
 *
 * Why      A tokenizer that differs in one id trains and serves another model.
 * Memory   The tokenizer owns its tables; ids and text go into the caller's growing arrays.
 * Threads  A loaded tokenizer is read-only: any thread, each with its own gd_tokens / gd_buf.
 * Errors   GD_BAD_MODEL naming file, field, value; GD_UNSUPPORTED naming the component. Encoding: GD_INVALID (not UTF-8),
 *          GD_TOO_LARGE, GD_BAD_MODEL (a pattern that takes too much work); the ids are as before the call.
 * Limits   GD_TOKENIZER_VOCAB_MAX ids; texts of 64 MiB; bounded regex work.
 * Life     open -> encode / decode ... -> destroy.
 */
#ifndef GD_TEXT_TOKENIZER_H
#define GD_TEXT_TOKENIZER_H

#include "engine/base/buf.h"
#include "engine/base/error.h"
#include "engine/base/json.h"
#include <stdint.h>

#define GD_TOKENIZER_VOCAB_MAX 4000000

struct gd_tokenizer;

struct gd_tokens {
    int32_t *ids;
    /* byte range of each token in the text that was encoded, leading spaces included; filled when with_offsets was
     * asked */
    int32_t *begin, *end;
    int count, capacity;
    bool with_offsets;
};
void gd_tokens_push(struct gd_tokens *tokens, int32_t id, int32_t begin, int32_t end);
void gd_tokens_release(struct gd_tokens *tokens);

/* tokenizer.json text (tokenizers format: BPE byte-level or with byte fallback, Unigram, WordPiece, WordLevel). `config_json`:
 * tokenizer_config.json text or NULL (bos/eos/pad tokens, add_bos_token). */
GD_MUST_CHECK bool gd_tokenizer_from_json(struct gd_tokenizer **out, const char *json, size_t length,
                                          const char *config_json, size_t config_length, struct gd_error *err);

/* GGUF metadata, as arrays borrowed during the call. model: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE), "t5"
 * (SentencePiece unigram), "bert" (WordPiece); pre (of gpt2): pre-tokenizer family
 * ("smollm", "llama-bpe", "qwen2", "default", "gpt-2", ...). Unknown `model` or `pre`: GD_UNSUPPORTED by name. */
struct gd_tokenizer_gguf {
    const char *model, *pre;
    int vocab_count;
    const char *const *tokens;      /* may hold NUL-free UTF-8 of the byte-level alphabet */
    const int32_t *token_types;     /* or NULL; 1 normal 2 unknown 3 control 4 user 5 unused 6 byte */
    const float *scores;            /* or NULL */
    int merge_count;
    const char *const *merges;      /* "a b" */
    int32_t bos_id, eos_id, unknown_id, padding_id; /* -1 = absent */
    int32_t cls_id, separator_id;                   /* of "bert"; -1 = absent */
    int add_bos, add_eos, add_space_prefix;         /* -1 = absent (family default) */
    int remove_extra_whitespaces;                   /* of "t5"; -1 = absent */
    const char *charsmap;                           /* of "t5": precompiled character map, or NULL */
    size_t charsmap_length;
};
GD_MUST_CHECK bool gd_tokenizer_from_gguf(struct gd_tokenizer **out, const struct gd_tokenizer_gguf *meta,
                                          struct gd_error *err);
/* A SentencePiece .model file, wrapped as the class in tokenizer_config.json wraps it (Llama, Gemma, T5, XLM-RoBERTa); without
 * one `file`, its name, decides. config and added (added_tokens.json) may be NULL. */
GD_MUST_CHECK bool gd_tokenizer_from_sentencepiece(struct gd_tokenizer **out, const void *data, size_t length,
                                                   const char *file, const cJSON *config, const cJSON *added,
                                                   struct gd_error *err);

/* The tokenizer of a Hugging Face folder: tokenizer.json, else tokenizer.model, spiece.model, sentencepiece.bpe.model, vocab.txt
 * (BERT), vocab.json with merges.txt (GPT-2, RoBERTa, ...). config: tokenizer_config.json, parsed, or NULL. */
GD_MUST_CHECK bool gd_tokenizer_from_folder(struct gd_tokenizer **out, const char *folder, const cJSON *config,
                                            struct gd_error *err);
void gd_tokenizer_destroy(struct gd_tokenizer *tokenizer);

enum gd_special_mode {
    GD_SPECIAL_AS_TEXT,  /* user content: "<|im_end|>" is ordinary characters (only the unknown token may come of it) */
    GD_SPECIAL_PARSE,    /* template output: special tokens become their ids */
};

/* Appends the ids of text[0..length) (valid UTF-8). add_bos_eos: apply the post-processor's template. */
GD_MUST_CHECK bool gd_tokenizer_encode(const struct gd_tokenizer *tokenizer, const char *text, size_t length,
                                       enum gd_special_mode mode, bool add_bos_eos, struct gd_tokens *out,
                                       struct gd_error *err);

/* Two texts as the post-processor's template for pairs has them (one after the other where it has none). *begin: the index in `out`
 * where the second text begins; *ending: how many tokens stand behind it. */
GD_MUST_CHECK bool gd_tokenizer_encode_pair(const struct gd_tokenizer *tokenizer, const char *first, size_t first_length,
                                            const char *second, size_t second_length, enum gd_special_mode mode, struct gd_tokens *out,
                                            int *begin, int *ending, struct gd_error *err);
/* How many tokens the template puts behind one text. */
int gd_tokenizer_ending(const struct gd_tokenizer *tokenizer);

/* Text in which special tokens count only inside given byte ranges: `literal` spans come from the
 * template, everything between them is content that people wrote. spans: ascending [begin, end) pairs of
 * TEMPLATE text; spans that touch are one. Content never yields a special id; pre-tokenisation runs over the whole text
 * between specials. */
GD_MUST_CHECK bool gd_tokenizer_encode_spans(const struct gd_tokenizer *tokenizer, const char *text, size_t length,
                                             const int32_t *template_spans, int span_count, struct gd_tokens *out,
                                             struct gd_error *err);

/* Appends the bytes of one token as they stand in running text (may be part of a UTF-8 character). Special tokens
 * append nothing unless `specials`. Ids outside the vocabulary append nothing. */
void gd_tokenizer_piece(const struct gd_tokenizer *tokenizer, int32_t id, bool specials, struct gd_buf *out);
/* Whole-sequence decode with the reference's decoder rules (invalid UTF-8 becomes U+FFFD). */
void gd_tokenizer_decode(const struct gd_tokenizer *tokenizer, const int32_t *ids, int count, bool skip_specials,
                         struct gd_buf *out);

int gd_tokenizer_vocab_count(const struct gd_tokenizer *tokenizer);          /* highest id + 1 */
int32_t gd_tokenizer_find(const struct gd_tokenizer *tokenizer, const char *token); /* stored spelling; -1 = none */
const char *gd_tokenizer_token(const struct gd_tokenizer *tokenizer, int32_t id);   /* stored spelling or NULL */
bool gd_tokenizer_is_special(const struct gd_tokenizer *tokenizer, int32_t id);
int32_t gd_tokenizer_bos(const struct gd_tokenizer *tokenizer);              /* -1 = none */
int32_t gd_tokenizer_eos(const struct gd_tokenizer *tokenizer);
int32_t gd_tokenizer_pad(const struct gd_tokenizer *tokenizer);
/* "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token" as the config names them; -1 = none */
int32_t gd_tokenizer_named(const struct gd_tokenizer *tokenizer, const char *name);
const char *gd_tokenizer_kind(const struct gd_tokenizer *tokenizer);         /* "BPE (byte-level)" for inspect */
/* SHA-256 over a canonical form of everything that decides ids; the same for a model's json and gguf is not promised. */
void gd_tokenizer_digest(const struct gd_tokenizer *tokenizer, char out[65]);

#endif
