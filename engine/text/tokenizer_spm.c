#include "engine/text/tokenizer_spm.h"
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/text/tokenizer_char.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNKNOWN_PENALTY 10.0f

static int type_of(const struct gd_spm *spm, int32_t id)
{
    return id < spm->count ? spm->types[id] : GD_SPM_UNUSED;
}

/* Pieces of users are matched as they stand in normalized text. */
static bool add_piece_of_user(struct gd_tokenizer *tokenizer, int32_t id, const char *text, struct gd_error *err)
{
    struct gd_added flags = {.id = id, .normalized = true};
    tokenizer->vocab.token[id].flags |= GD_TOKEN_ADDED;
    return gd_added_add(&tokenizer->added_normalized, text, strlen(text), &flags, err);
}

bool gd_spm_add_pieces(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err)
{
    tokenizer->model = spm->unigram ? GD_MODEL_UNIGRAM : GD_MODEL_BPE;
    for (int32_t id = 0; id < spm->count; id++) {
        const char *text = spm->pieces[id];
        int type = spm->types[id];
        char shown[GD_TOKEN_SHOWN_BYTES];
        if (text == NULL || text[0] == '\0')
            continue;
        size_t length = strlen(text);
        if (!gd_utf8_valid(text, length))
            return gd_fail(err, GD_BAD_MODEL, "piece %d is not valid UTF-8", id);
        if (type < GD_SPM_NORMAL || type > GD_SPM_BYTE)
            return gd_fail(err, GD_BAD_MODEL, "piece %d \"%s\" has the type %d, allowed are 1 to 6", id,
                           gd_token_shown(shown, text, length), type);
        if (!isfinite(spm->scores[id]))
            return gd_fail(err, GD_BAD_MODEL, "piece %d \"%s\" has a score that is not a number", id,
                           gd_token_shown(shown, text, length));
        uint32_t flags = type == GD_SPM_NORMAL ? GD_TOKEN_MODEL : type == GD_SPM_BYTE ? GD_TOKEN_MODEL | GD_TOKEN_BYTE : 0;
        if (!gd_vocab_add(&tokenizer->vocab, id, text, length, flags, err)) {
            gd_error_context(err, "piece %d", id);
            return false;
        }
        struct gd_added special = {.id = id, .special = true};
        if (((type == GD_SPM_CONTROL || type == GD_SPM_UNKNOWN) && !gd_tokenizer_add(tokenizer, text, length, &special, err)) ||
            (type == GD_SPM_USER_DEFINED && !add_piece_of_user(tokenizer, id, text, err)))
            return false;
    }
    return true;
}

struct scored {
    float score;
    int32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Both halves of every cut of a piece, where both are pieces, may merge into it. Returns how many cuts do. */
static int add_cuts(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, int32_t id, uint32_t rank, bool add)
{
    const struct gd_token *token = &tokenizer->vocab.token[id];
    int count = 0;
    for (size_t cut = gd_char_length(token->text[0]); cut < token->length; cut += gd_char_length(token->text[cut])) {
        int32_t left = gd_vocab_find_model(&tokenizer->vocab, token->text, cut);
        int32_t right = gd_vocab_find_model(&tokenizer->vocab, token->text + cut, token->length - cut);
        if (left < 0 || right < 0 || type_of(spm, left) != GD_SPM_NORMAL || type_of(spm, right) != GD_SPM_NORMAL)
            continue;
        if (add)
            gd_bpe_add_merge(&tokenizer->bpe, left, right, rank, id);
        count++;
    }
    return count;
}

/* SentencePiece merges the two neighbours whose joined piece has the best score, leftmost among equals: a merge's rank
 * is the place of its score among all scores. */
bool gd_spm_add_merges(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err)
{
    struct scored *order = gd_alloc_array((size_t)spm->count + 1, sizeof(order[0]));
    size_t count = 0;
    bool ok = true;
    for (int32_t id = 0; id < spm->count && id < tokenizer->vocab.count && ok; id++) {
        const struct gd_token *token = &tokenizer->vocab.token[id];
        if (token->text == NULL || !(token->flags & GD_TOKEN_MODEL) || type_of(spm, id) != GD_SPM_NORMAL)
            continue;
        if (token->length > GD_SPM_PIECE_BYTES)
            ok = gd_fail(err, GD_BAD_MODEL, "piece %d has %u bytes, the limit is %d", id, token->length,
                         GD_SPM_PIECE_BYTES);
        else
            order[count++] = (struct scored){spm->scores[id], id};
    }
    if (ok)
        qsort(order, count, sizeof(order[0]), by_score);
    uint32_t rank = 0;
    for (size_t i = 0; i < count && ok; i++) {
        if (i > 0 && order[i].score != order[i - 1].score)
            rank++;
        add_cuts(tokenizer, spm, order[i].id, rank, true);
    }
    gd_free(order);
    return ok;
}

/* The library merges unused pieces and takes them apart again, which can hinder others. */
static bool check_unused(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err)
{
    for (int32_t id = 0; id < spm->count && id < tokenizer->vocab.count; id++) {
        const struct gd_token *token = &tokenizer->vocab.token[id];
        char shown[GD_TOKEN_SHOWN_BYTES];
        if (token->text != NULL && spm->types[id] == GD_SPM_UNUSED && token->length <= GD_SPM_PIECE_BYTES &&
            add_cuts(tokenizer, spm, id, 0, false) > 0)
            return gd_fail(err, GD_UNSUPPORTED, "piece %d \"%s\" is unused but can be merged, which is not supported; use "
                           "the model's tokenizer.json", id, gd_token_shown(shown, token->text, token->length));
    }
    return true;
}

/* The step that rewrites the text as the library's normalizer does. */
static bool add_normalizer(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err)
{
    struct gd_step *step = NULL;
    if (!gd_steps_add(&tokenizer->normalizers, GD_STEP_SENTENCEPIECE, &step, err))
        return false;
    step->squeeze = spm->squeeze;
    step->escape = spm->escape;
    step->left = spm->prefix && !spm->suffix;
    step->right = spm->prefix && spm->suffix;
    step->prepend = spm->first_only ? GD_PREPEND_FIRST : GD_PREPEND_ALWAYS;
    if (spm->charsmap_length > 0) {
        step->text = gd_alloc(spm->charsmap_length);
        memcpy(step->text, spm->charsmap, spm->charsmap_length);
        step->text_length = spm->charsmap_length;
        if (!gd_charsmap_check(step, "normalizer_spec", err))
            return false;
    }
    struct gd_added_set *kept = gd_alloc(sizeof(*kept));
    step->kept = kept;
    for (int32_t i = 0; i < tokenizer->added_normalized.count; i++) {
        const struct gd_added *item = &tokenizer->added_normalized.item[i];
        if (!gd_added_add(kept, item->content, (size_t)item->length, item, err))
            return false;
    }
    gd_added_finish(kept);
    return true;
}

static bool add_decoder(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err)
{
    struct gd_decoder *decoder = NULL;
    if (!gd_decoders_add(&tokenizer->decoders, GD_DECODE_SENTENCEPIECE, &decoder, err))
        return false;
    decoder->text = gd_strdup(GD_SPM_SPACE);
    decoder->text_length = strlen(GD_SPM_SPACE);
    decoder->keep_first = !spm->prefix && !spm->squeeze;
    decoder->cleanup = spm->squeeze;
    return true;
}

/* Scores are floats, and so are their sums. */
static void add_scores(struct gd_tokenizer *tokenizer, const struct gd_spm *spm)
{
    struct gd_unigram *unigram = &tokenizer->unigram;
    float lowest = FLT_MAX;
    unigram->single = true;
    unigram->byte_fallback = spm->byte_fallback;
    unigram->unknown_id = -1;
    for (int32_t id = 0; id < spm->count; id++) {
        gd_unigram_add(unigram, spm->scores[id]);
        if (spm->types[id] == GD_SPM_NORMAL && spm->scores[id] < lowest)
            lowest = spm->scores[id];
        if (spm->types[id] == GD_SPM_UNKNOWN)
            unigram->unknown_id = id;
    }
    unigram->unknown_score = lowest - UNKNOWN_PENALTY;
}

bool gd_spm_finish(struct gd_tokenizer *tokenizer, const struct gd_spm *spm, struct gd_error *err)
{
    if (!add_normalizer(tokenizer, spm, err) || !add_decoder(tokenizer, spm, err))
        return false;
    if (spm->unigram) {
        add_scores(tokenizer, spm);
    } else {
        struct gd_bpe *bpe = &tokenizer->bpe;
        bpe->byte_fallback = spm->byte_fallback;
        bpe->fuse_unknown = true;
        for (int32_t id = 0; id < spm->count && bpe->unknown == NULL; id++)
            if (spm->types[id] == GD_SPM_UNKNOWN)
                bpe->unknown = gd_strdup(spm->pieces[id]);
        if (!check_unused(tokenizer, spm, err) || !gd_spm_add_merges(tokenizer, spm, err))
            return false;
    }
    return gd_tokenizer_finish(tokenizer, err);
}
