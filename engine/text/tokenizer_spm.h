/*
 * tokenizer_spm.h - a SentencePiece model, wherever its pieces come from (a .model file, a GGUF file).
 *
 * Why      Normalisation, segmentation and decoding follow the sentencepiece library, not the tokenizers library, where the two
 *          differ: longest character-map entry, float sums, pieces of users kept whole, one U+FFFD per byte.
 * Memory   gd_spm borrows everything; the tokenizer copies what it keeps.
 * Threads  One loads.
 * Errors   GD_BAD_MODEL naming the piece, GD_UNSUPPORTED for unused pieces that merges could make.
 * Limits   GD_SPM_PIECE_BYTES per piece that merges make.
 * Life     fill -> gd_spm_add_pieces -> (more added tokens) -> gd_spm_finish.
 */
#ifndef GD_TEXT_TOKENIZER_SPM_H
#define GD_TEXT_TOKENIZER_SPM_H

#include "engine/text/tokenizer_impl.h"

#define GD_SPM_PIECE_BYTES 512 /* every cut of a piece is looked up at load time */
#define GD_SPM_SPACE "\xE2\x96\x81" /* U+2581 stands for a space */

enum gd_spm_type {
    GD_SPM_NORMAL = 1, GD_SPM_UNKNOWN, GD_SPM_CONTROL, GD_SPM_USER_DEFINED, GD_SPM_UNUSED, GD_SPM_BYTE,
};

struct gd_spm {
    int32_t count;
    const char *const *pieces; /* valid UTF-8; NULL or "": no piece has this id */
    const float *scores;
    const int32_t *types;      /* enum gd_spm_type */
    bool unigram;              /* else BPE */
    bool byte_fallback;
    bool squeeze;              /* remove_extra_whitespaces */
    bool escape;               /* spaces become U+2581 */
    bool prefix, suffix;       /* add_dummy_prefix: a space before the text, or behind it */
    bool first_only;           /* before the first stretch only, not behind every special token */
    const char *charsmap;      /* or NULL */
    size_t charsmap_length;
};

/* All pieces into the vocabulary; control and unknown pieces are special, those of users are matched in the text. */
GD_MUST_CHECK bool gd_spm_add_pieces(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err);
/* Model, normalizer and decoder; then gd_tokenizer_finish. */
GD_MUST_CHECK bool gd_spm_finish(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err);
/* The merges that scores imply. */
GD_MUST_CHECK bool gd_spm_add_merges(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err);

#endif
