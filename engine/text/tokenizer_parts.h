/*
 * tokenizer_parts.h - the components of a tokenizer.json, read into a tokenizer.
 *
 * Why      One function per kind of component, Sequence flattened.
 * Memory   The tokenizer owns what is read.
 * Threads  One thread at a time.
 * Errors   GD_UNSUPPORTED naming a component that we do not have, GD_BAD_MODEL or GD_INVALID naming field and value.
 * Limits   GD_STEPS_MAX and GD_DECODERS_MAX steps; nesting as deep as the JSON reader allows.
 * Life     none
 */
#ifndef GD_TEXT_TOKENIZER_PARTS_H
#define GD_TEXT_TOKENIZER_PARTS_H

#include "engine/base/json.h"
#include "engine/text/tokenizer_impl.h"

/* Values of a tokenizer's JSON, or lines of a vocabulary, of so many bytes: those in use have 12 bytes and more for each, and a tree
 * costs some hundred. */
static inline size_t gd_tokenizer_values_max(size_t length)
{
    return GD_JSON_FEW_VALUES + length / 8;
}

/* `part` may be NULL or null: there is none. `path` names it in errors. */
GD_MUST_CHECK bool gd_parts_normalizer(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path,
                                       struct gd_error *err);
GD_MUST_CHECK bool gd_parts_pretokenizer(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path,
                                         struct gd_error *err);
GD_MUST_CHECK bool gd_parts_post_processor(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path,
                                           struct gd_error *err);
GD_MUST_CHECK bool gd_parts_decoder(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path,
                                    struct gd_error *err);

/* The runs that the UnicodeScripts pre-tokenizer keeps. */
GD_MUST_CHECK bool gd_scripts_pattern(struct gd_regex **out, const char *path, struct gd_error *err);

/* The model's part, in tokenizer_json_model.c; what BPE needs besides its vocabulary is read by the caller. */
GD_MUST_CHECK bool gd_model_kind_of(const cJSON *model, enum gd_model_kind *out, struct gd_error *err);
GD_MUST_CHECK bool gd_model_read(struct gd_tokenizer *tokenizer, const cJSON *model, const cJSON *vocab,
                                 struct gd_error *err);
/* {"spelling": id} */
GD_MUST_CHECK bool gd_model_read_vocab(struct gd_tokenizer *tokenizer, const cJSON *vocab, struct gd_error *err);
/* A short text of the model; NULL when it is absent, null or empty. */
GD_MUST_CHECK bool gd_model_read_text(const cJSON *model, const char *key, char **out, struct gd_error *err);

/* What tokenizer_config.json says of added tokens and of bos, eos and pad; NULL says nothing. */
GD_MUST_CHECK bool gd_config_tokens(struct gd_tokenizer *tokenizer, const cJSON *config, struct gd_error *err);
int gd_config_flag(const cJSON *config, const char *key); /* -1 = absent or null */
/* A tokenizer of a tokenizer.json's tree (changed by nobody). Errors do not name the file. */
GD_MUST_CHECK bool gd_tokenizer_from_tree(struct gd_tokenizer **out, const cJSON *root, const cJSON *config,
                                          struct gd_error *err);

/* Adds the merge of two spellings; what they join to must be a token. Free `joined` at the end. */
struct gd_merge_reader {
    struct gd_tokenizer *tokenizer;
    char *joined;
};
GD_MUST_CHECK bool gd_merge_read(struct gd_merge_reader *reader, const char *left, size_t left_length, const char *right,
                                 size_t right_length, uint32_t rank, struct gd_error *err);

#endif
