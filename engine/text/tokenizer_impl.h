/*
 * tokenizer_impl.h - what a tokenizer is made of; for the files of this folder that load and run it.
 *
 * Why      Two loaders (tokenizer.json, GGUF) fill one structure, one encoder and one decoder use it.
 * Memory   gd_tokenizer owns all parts.
 * Threads  Filled by one thread, then read-only.
 * Errors   As in tokenizer.h.
 * Limits   GD_TEMPLATE_IDS_MAX ids before and after a text.
 * Life     gd_tokenizer_create -> vocabulary, added tokens, model, steps -> gd_tokenizer_finish.
 */
#ifndef GD_TEXT_TOKENIZER_IMPL_H
#define GD_TEXT_TOKENIZER_IMPL_H

#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_added.h"
#include "engine/text/tokenizer_bpe.h"
#include "engine/text/tokenizer_decode.h"
#include "engine/text/tokenizer_step.h"
#include "engine/text/tokenizer_unigram.h"
#include "engine/text/tokenizer_wordpiece.h"

#define GD_TEMPLATE_IDS_MAX 16
#define GD_TEXT_BYTES_MAX (64 << 20)     /* of one text to encode */
#define GD_PRETOKEN_BYTES_MAX (32 << 20) /* of one run that no rule splits */

enum gd_model_kind { GD_MODEL_BPE, GD_MODEL_UNIGRAM, GD_MODEL_WORDPIECE, GD_MODEL_WORDLEVEL };

struct gd_tokenizer {
    struct gd_vocab vocab;
    enum gd_model_kind model;
    struct gd_bpe bpe;             /* always there, used by GD_MODEL_BPE */
    struct gd_unigram unigram;
    struct gd_wordpiece wordpiece; /* and WordLevel: whole words only */
    struct gd_added_set pending;          /* while loading: all added tokens, the last of an id counts */
    struct gd_added_set added;            /* matched in the text as given */
    struct gd_added_set added_normalized; /* matched behind the normalizers */
    struct gd_steps normalizers, pretokenizers;
    struct gd_decoders decoders;
    int32_t before[GD_TEMPLATE_IDS_MAX], after[GD_TEMPLATE_IDS_MAX]; /* the post-processor's template */
    int before_count, after_count;
    int32_t between[GD_TEMPLATE_IDS_MAX], ending[GD_TEMPLATE_IDS_MAX]; /* of two texts: between them, and behind the second */
    int between_count, ending_count;
    int32_t bos, eos, pad;
    int32_t unk, sep, cls, mask;          /* for templates only */
    const char *kind;
};

/* An empty tokenizer with room for that many tokens and merges. */
struct gd_tokenizer *gd_tokenizer_create(size_t tokens_expected, size_t merges_expected);
/* Adds or changes an added token. The spelling is put into the vocabulary under the id, or must have that id there. */
GD_MUST_CHECK bool gd_tokenizer_add(struct gd_tokenizer *tokenizer, const char *content, size_t length,
                                    const struct gd_added *flags, struct gd_error *err);
/* Sets whether the template begins with bos / ends with eos; -1 leaves it. */
GD_MUST_CHECK bool gd_tokenizer_set_ends(struct gd_tokenizer *tokenizer, int add_bos, int add_eos, struct gd_error *err);
/* All parts are there: sorts the added tokens into their sets, fills the tables of the model. */
GD_MUST_CHECK bool gd_tokenizer_finish(struct gd_tokenizer *tokenizer, struct gd_error *err);

/* New steps at the end of a list; fail when it is full. The caller fills them. */
GD_MUST_CHECK bool gd_steps_add(struct gd_steps *steps, enum gd_step_kind kind, struct gd_step **step,
                                struct gd_error *err);
GD_MUST_CHECK bool gd_decoders_add(struct gd_decoders *decoders, enum gd_decoder_kind kind, struct gd_decoder **step,
                                   struct gd_error *err);

#endif
