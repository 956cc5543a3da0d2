/*
 * Who is in: submission, admission with reserved pages, prefix sharing, cancellation. turn.c moves the batches.
 */
#include "engine/infer/engine.h"
#include "engine/base/alloc.h"
#include "engine/infer/engine_internal.h"
#include "engine/tensor/device.h"
#include <assert.h>
#include <omp.h>

bool gd_infer_create(struct gd_infer **out, struct gd_model *model, size_t cache_bytes, struct gd_error *err)
{
    assert(*out == NULL);
    if (!gd_model_generates(model, err))
        return false;
    struct gd_infer *infer = gd_alloc(sizeof(*infer));
    enum gd_dtype act = gd_device()->compute;
    struct gd_kv_shape shape = {act, gd_model_decoder_layers(model), model->config.kv_heads, model->config.head_dim};
    infer->model = model;
    infer->next_id = 1;
    if (!gd_kv_cache_create(&infer->cache, &shape, cache_bytes, err) ||
        !gd_forward_create(&infer->forward, model, act, err)) {
        gd_infer_destroy(infer);
        return false;
    }
    infer->forward->kv = (struct gd_kv_batch){
        .dtype = act, .layer_count = shape.layers, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim,
        .pages = gd_kv_cache_pages(infer->cache), .cu_seqlens = infer->cu_seqlens, .past = infer->past,
    };
    infer->forward->cross = infer->forward->kv;
    infer->forward->cross.past = infer->encoded;
    if (gd_model_encodes(model))
        gd_encoder_create(&infer->encoder, model, act);
    infer->forward->wear = (struct gd_wear){.row_begin = infer->group_begin, .sites = infer->group_sites, .row_index = infer->row_index, .ids = infer->forward->ids, .positions = infer->forward->positions};
    infer->sampler_count = omp_get_max_threads();
    infer->samplers = gd_alloc_array((size_t)infer->sampler_count, sizeof(*infer->samplers));
    for (int i = 0; i < infer->sampler_count; i++)
        gd_sampler_init(&infer->samplers[i], model->config.vocab);
    infer->results = gd_alloc_array((size_t)infer->forward->head->rows_max, sizeof(*infer->results));
    *out = infer;
    return true;
}

bool gd_infer_estimate(struct gd_model *model, size_t cache_bytes, const struct gd_infer_load *load, struct gd_infer_need *need,
                       struct gd_error *err)
{
    if (!gd_model_generates(model, err))
        return false;
    enum gd_dtype act = gd_device()->compute;
    struct gd_kv_shape shape = {act, gd_model_decoder_layers(model), model->config.kv_heads, model->config.head_dim};
    size_t page = gd_kv_page_bytes(&shape), pages = (size_t)(load->tokens + GD_KV_PAGE_TOKENS - 1) / GD_KV_PAGE_TOKENS;
    struct gd_forward_need forward;
    *need = (struct gd_infer_need){0};
    need->kv = pages < cache_bytes / page ? pages * page : cache_bytes / page * page;
    size_t encoder = 0;
    struct gd_layout_cost encoder_weights = {0};
    int rows = model->config.context < GD_INFER_ENCODED_TOKENS ? model->config.context : GD_INFER_ENCODED_TOKENS;
    if (!gd_forward_estimate(model, act, load->rows, load->logits, &forward, err) ||
        (gd_model_encodes(model) && !gd_encoder_estimate(model, act, rows, &encoder, &encoder_weights, err)))
        return false;
    need->forward = forward.bytes + encoder;
    need->weights = forward.layouts;
    need->few = forward.few;
    for (int use = 0; use < GD_WEIGHT_USE_COUNT; use++) { /* other weights than the decoder's */
        need->weights.bytes[use] += encoder_weights.bytes[use];
        need->few.bytes[use] += encoder_weights.bytes[use];
    }
    return true;
}

void gd_infer_destroy(struct gd_infer *infer)
{
    if (infer == NULL)
        return;
    assert(!infer->in_turn);
    for (int i = 0; i < infer->count; i++)
        if (!infer->sequences[i]->finished)
            gd_infer_end(infer, infer->sequences[i], GD_FINISH_CANCELLED, NULL);
    gd_infer_sweep(infer);
    for (int i = 0; i < infer->sampler_count; i++)
        gd_sampler_release(&infer->samplers[i]);
    gd_free(infer->samplers);
    gd_free(infer->results);
    gd_free(infer->sequences);
    gd_free(infer->page_table);
    gd_free(infer->cross_table);
    gd_encoder_destroy(infer->encoder);
    gd_forward_destroy(infer->forward);
    gd_kv_cache_destroy(infer->cache);
    gd_free(infer);
}

/* ---- what a graft's pages are keyed by ---- */

/* The content of a graft: a pointer may come back with another graft behind it. */
static void find_root(const struct gd_graft *graft, struct gd_kv_key *root)
{
    memset(root, 0, sizeof(*root));
    if (graft == NULL)
        memset(root->hex, '0', sizeof(root->hex) - 1);
    else
        memcpy(root->hex, graft->digest, sizeof(root->hex));
}

/* ---- submission ---- */

/* A reward model has a head of its own, and no words. */
static bool check_head(const struct gd_model *model, const struct gd_graft *graft, const struct gd_sampling *sampling,
                       struct gd_error *err)
{
    bool scores = graft != NULL && graft->config.score;
    if (graft != NULL && graft->head_params > 0)
        return gd_fail_param(err, GD_INVALID, "model", "this is a classifier, which tells texts apart and writes none: POST "
                             "/v1/classifications, or ask another model");
    if (scores && !sampling->score)
        return gd_fail_param(err, GD_INVALID, "model", "this is a reward model, which scores answers and writes none: POST /v1/rewards, or "
                             "ask another model");
    if (!scores && sampling->score)
        return gd_fail_param(err, GD_INVALID, "model", "%s is no reward model: only a model of a job with method.type reward gives "
                             "scores", graft == NULL ? model->id : "this tuned model");
    return true;
}

bool gd_infer_submit(struct gd_infer *infer, const struct gd_graft *graft, const int32_t *prompt, int prompt_count,
                     const struct gd_sampling *sampling, const struct gd_infer_sink *sink, uint64_t *id, struct gd_error *err)
{
    if (infer->count - infer->running >= GD_INFER_WAITING_MAX)
        return gd_fail(err, GD_BUSY, "%d requests wait already; try again later", infer->count - infer->running);
    if (graft != NULL && (graft->wear == NULL || graft->block == NULL || (graft->virtual_rows.count > 0 && graft->prefix == NULL)))
        return gd_fail(err, GD_INTERNAL, "the graft was not loaded for serving");
    if (!check_head(infer->model, graft, sampling, err))
        return false;
    struct gd_sequence *sequence = NULL;
    if (!gd_sequence_create(&sequence, infer->model, graft, prompt, prompt_count, sampling, sink, err))
        return false;
    int pages = gd_sequence_pages_left(sequence);
    if (pages > gd_kv_cache_total(infer->cache)) {
        gd_fail_param(err, GD_CONTEXT, "max_tokens", "%d tokens of prompt and max_tokens %d need %d pages of %d tokens; the "
                      "key/value cache holds %d", prompt_count, sampling->max_tokens, pages,
                      GD_KV_PAGE_TOKENS, gd_kv_cache_total(infer->cache));
        gd_sequence_destroy(sequence);
        return false;
    }
    find_root(graft, &sequence->root);
    if (sequence->long_bit != 0) /* its keys are rotated in another way */
        sequence->root.hex[0] = 'L';
    if (infer->count == infer->capacity) {
        infer->capacity = infer->capacity ? 2 * infer->capacity : 64;
        infer->sequences = gd_realloc_array(infer->sequences, (size_t)infer->capacity, sizeof(*infer->sequences));
    }
    sequence->id = infer->next_id++;
    infer->sequences[infer->count++] = sequence;
    *id = sequence->id;
    return true;
}

/* ---- admission ---- */

/* Takes the full pages of virtual rows and prompt that the cache has; the last token always goes through the model. */
static void share_prefix(struct gd_infer *infer, struct gd_sequence *sequence)
{
    sequence->key = sequence->root;
    int full = (sequence->lead + gd_sequence_cacheable(sequence)) / GD_KV_PAGE_TOKENS;
    while (sequence->page_count < full) {
        struct gd_kv_key key;
        gd_infer_page_key(sequence, sequence->page_count, &key);
        int32_t page = gd_kv_cache_share(infer->cache, &key);
        if (page < 0)
            break;
        sequence->pages[sequence->page_count++] = page;
        sequence->key = key;
    }
    sequence->published = sequence->page_count;
    int rows = sequence->page_count * GD_KV_PAGE_TOKENS;
    sequence->past = rows > sequence->lead ? rows - sequence->lead : 0;
}

static void drop_pages(struct gd_infer *infer, struct gd_sequence *sequence)
{
    while (sequence->cross_count > 0)
        gd_kv_cache_drop(infer->cache, sequence->cross_pages[--sequence->cross_count]);
    sequence->encoded = false;
    while (sequence->page_count > 0) /* from the end: what others build on is dropped last and kept longest */
        gd_kv_cache_drop(infer->cache, sequence->pages[--sequence->page_count]);
    sequence->past = sequence->published = 0;
    sequence->led = false;
}

/* Another sequence is just computing a page that this one could share. */
static bool prefix_is_coming(const struct gd_infer *infer, const struct gd_sequence *sequence)
{
    int cacheable = gd_sequence_cacheable(sequence);
    if (cacheable == 0)
        return false;
    for (int i = 0; i < infer->count; i++) {
        const struct gd_sequence *other = infer->sequences[i];
        if (!other->admitted || other->finished || other->graft != sequence->graft || other->past >= other->prompt_count)
            continue;
        int limit = other->prompt_count < cacheable ? other->prompt_count : cacheable;
        int same = 0;
        while (same < limit && other->ids[same] == sequence->ids[same])
            same++;
        if (same > 0 && (sequence->lead + same) / GD_KV_PAGE_TOKENS > sequence->page_count)
            return true;
    }
    return false;
}

enum admission { ADMITTED, LATER, NO_ROOM };

static enum admission try_admit(struct gd_infer *infer, struct gd_sequence *sequence)
{
    bool needs_model = gd_sequence_pending(sequence) > 0;
    if (needs_model) {
        share_prefix(infer, sequence);
        int own = gd_sequence_pages_left(sequence);
        bool coming = prefix_is_coming(infer, sequence);
        if (coming || gd_kv_cache_available(infer->cache) - infer->pages_promised < own) {
            drop_pages(infer, sequence);
            return coming ? LATER : NO_ROOM;
        }
        infer->pages_promised += own;
    }
    sequence->admitted = true;
    sequence->usage.cached_tokens = sequence->past;
    infer->running++;
    infer->stats.prompt_tokens += sequence->prompt_count;
    infer->stats.cached_tokens += sequence->past;
    if (!needs_model)
        sequence->pages_max = sequence->cross_max = 0;
    gd_sequence_report_prompt(sequence);
    if (!needs_model && !sequence->finished)
        gd_infer_end(infer, sequence, GD_FINISH_LENGTH, NULL);
    return ADMITTED;
}

void gd_infer_admit(struct gd_infer *infer)
{
    for (int i = 0; i < infer->count && infer->running < GD_INFER_REQUESTS_MAX; i++) {
        struct gd_sequence *sequence = infer->sequences[i];
        if (!sequence->admitted && !sequence->finished && try_admit(infer, sequence) == NO_ROOM)
            break; /* nobody overtakes for memory */
    }
}

/* ---- the end of a sequence ---- */

void gd_infer_give_back(struct gd_infer *infer, struct gd_sequence *sequence)
{
    assert(sequence->finished);
    if (!sequence->admitted)
        return;
    infer->pages_promised -= gd_sequence_pages_left(sequence);
    infer->running--;
    drop_pages(infer, sequence);
    sequence->admitted = false;
}

void gd_infer_end(struct gd_infer *infer, struct gd_sequence *sequence, enum gd_finish finish, const struct gd_error *error)
{
    gd_sequence_finish(sequence, finish, error);
    gd_infer_give_back(infer, sequence);
}

void gd_infer_sweep(struct gd_infer *infer)
{
    int kept = 0;
    for (int i = 0; i < infer->count; i++) {
        if (infer->sequences[i]->finished)
            gd_sequence_destroy(infer->sequences[i]);
        else
            infer->sequences[kept++] = infer->sequences[i];
    }
    infer->count = kept;
}

void gd_infer_cancel(struct gd_infer *infer, uint64_t id)
{
    for (int i = 0; i < infer->count; i++)
        if (infer->sequences[i]->id == id && !infer->sequences[i]->finished) {
            gd_infer_end(infer, infer->sequences[i], GD_FINISH_CANCELLED, NULL);
            break;
        }
    if (!infer->in_turn) /* a sink may cancel during a turn; the turn still looks at the sequence */
        gd_infer_sweep(infer);
}

/* ---- questions ---- */

bool gd_infer_busy(const struct gd_infer *infer)
{
    return infer->count > 0;
}

int gd_infer_graft_users(const struct gd_infer *infer, const struct gd_graft *graft)
{
    int users = 0;
    for (int i = 0; i < infer->count; i++)
        users += infer->sequences[i]->graft == graft && !infer->sequences[i]->finished;
    return users;
}

void gd_infer_get_stats(const struct gd_infer *infer, struct gd_infer_stats *stats)
{
    *stats = infer->stats;
    stats->running = infer->running;
    stats->waiting = 0;
    for (int i = 0; i < infer->count; i++)
        stats->waiting += !infer->sequences[i]->admitted && !infer->sequences[i]->finished;
    stats->pages_used = gd_kv_cache_held(infer->cache);
    stats->pages_total = gd_kv_cache_total(infer->cache);
}
