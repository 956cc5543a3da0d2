#include "engine/infer/sequence.h"
#include "engine/base/alloc.h"
#include <assert.h>
#include <math.h>
#include <stdio.h>

/* ---- checks ---- */

static bool check_range(const char *param, double value, double min, double max, struct gd_error *err)
{
    if (value >= min && value <= max) /* false for NaN */
        return true;
    return gd_fail_param(err, GD_INVALID, param, "%s is %g, must be between %g and %g", param, value, min, max);
}

static bool check_sampling(const struct gd_sampling *s, int vocab, struct gd_error *err)
{
    if (!check_range("temperature", s->temperature, 0, 100, err) || !check_range("top_p", s->top_p, 1e-9, 1, err) ||
        !check_range("top_k", s->top_k, 0, INT32_MAX, err) || !check_range("min_p", s->min_p, 0, 1, err) ||
        !check_range("frequency_penalty", s->frequency_penalty, -100, 100, err) ||
        !check_range("presence_penalty", s->presence_penalty, -100, 100, err) ||
        !check_range("repetition_penalty", s->repetition_penalty, 1e-3, 1e3, err) ||
        !check_range("logprobs", s->logprobs, -1, GD_TOP_LOGPROBS_MAX, err) ||
        !check_range("n", s->choice, 0, 1 << 20, err) || !check_range("stop", s->stop_count, 0, GD_STOPS_MAX, err))
        return false;
    for (int i = 0; i < s->bias_count; i++) {
        if (s->bias_ids[i] < 0 || s->bias_ids[i] >= vocab)
            return gd_fail_param(err, GD_INVALID, "logit_bias", "logit_bias names token %d; the vocabulary has %d",
                                 s->bias_ids[i], vocab);
        if (!check_range("logit_bias", (double)s->bias_values[i], -100, 100, err))
            return false;
    }
    return true;
}

static bool check_prompt(const struct gd_model *model, int lead, const int32_t *prompt, int prompt_count, int max_tokens,
                         struct gd_error *err)
{
    int vocab = model->config.vocab, context = model->config.context - lead;
    char taken[64] = "";
    if (lead > 0)
        snprintf(taken, sizeof taken, " beside the %d virtual tokens of the adapter", lead);
    if (prompt_count < 1)
        return gd_fail_param(err, GD_INVALID, "prompt", "the prompt has no tokens");
    if (max_tokens < 0)
        return gd_fail_param(err, GD_INVALID, "max_tokens", "max_tokens is %d, must not be negative", max_tokens);
    if (gd_model_encodes(model) && (prompt_count > context || max_tokens > context))
        return gd_fail_param(err, GD_CONTEXT, "max_tokens", "%d tokens of prompt are encoded and max_tokens %d decoded; the context of '%s' "
                             "holds %d of each", prompt_count, max_tokens, model->id, context);
    if (!gd_model_encodes(model) && (prompt_count > context || max_tokens > context - prompt_count))
        return gd_fail_param(err, GD_CONTEXT, "max_tokens",
                             "%d tokens of prompt and max_tokens %d make %lld; the context of '%s' holds %d%s", prompt_count,
                             max_tokens, (long long)prompt_count + max_tokens, model->id, context, taken);
    for (int i = 0; i < prompt_count; i++)
        if (prompt[i] < 0 || prompt[i] >= vocab)
            return gd_fail_param(err, GD_INVALID, "prompt", "prompt token %d is %d; the vocabulary has %d", i, prompt[i],
                                 vocab);
    return true;
}

static bool check_outputs(const struct gd_sampling *s, int vocab, struct gd_error *err)
{
    if (s->output_count < 0 || s->output_count > GD_OUTPUTS_MAX)
        return gd_fail_param(err, GD_INVALID, "choices", "%d choices are given; at most %d may be", s->output_count,
                             GD_OUTPUTS_MAX);
    if (s->output_count > 0 && s->ignore_eos)
        return gd_fail_param(err, GD_INVALID, "ignore_eos", "ignore_eos and choices cannot be had together");
    for (int i = 0; i < s->output_count; i++) {
        if (s->output_begin[i + 1] <= s->output_begin[i])
            return gd_fail_param(err, GD_INVALID, "choices", "choice %d has no tokens", i);
        for (int at = s->output_begin[i]; at < s->output_begin[i + 1]; at++)
            if (s->output_ids[at] < 0 || s->output_ids[at] >= vocab)
                return gd_fail_param(err, GD_INVALID, "choices", "choice %d has the token %d; the vocabulary has %d", i,
                                     s->output_ids[at], vocab);
    }
    return true;
}

/* ---- life ---- */

static void copy_sampling(struct gd_sequence *sequence, const struct gd_sampling *sampling)
{
    struct gd_sampling *s = &sequence->sampling;
    *s = *sampling;
    memset(s->stops, 0, sizeof(s->stops));
    s->bias_ids = gd_alloc_array((size_t)s->bias_count + 1, sizeof(*s->bias_ids));
    s->bias_values = gd_alloc_array((size_t)s->bias_count + 1, sizeof(*s->bias_values));
    for (int i = 0; i < s->bias_count; i++) {
        s->bias_ids[i] = sampling->bias_ids[i];
        s->bias_values[i] = sampling->bias_values[i];
    }
    if (s->output_count > 0) {
        size_t tokens = (size_t)sampling->output_begin[s->output_count];
        s->output_begin = gd_alloc_array((size_t)s->output_count + 1, sizeof(*s->output_begin));
        memcpy(s->output_begin, sampling->output_begin, ((size_t)s->output_count + 1) * sizeof(*s->output_begin));
        s->output_ids = gd_alloc_array(tokens, sizeof(*s->output_ids));
        memcpy(s->output_ids, sampling->output_ids, tokens * sizeof(*s->output_ids));
    }
    size_t vocab = (size_t)sequence->model->config.vocab;
    if (s->frequency_penalty != 0 || s->presence_penalty != 0)
        sequence->counts = gd_alloc_array(vocab, sizeof(*sequence->counts));
    if (s->repetition_penalty != 1) {
        sequence->seen = gd_alloc_array(vocab, sizeof(*sequence->seen));
        for (int i = 0; i < sequence->prompt_count; i++)
            sequence->seen[sequence->ids[i]] = 1;
    }
}

static bool is_long(const struct gd_model *model, int rows)
{
    return model->config.long_from > 0 && rows > model->config.long_from;
}

/* With an encoder: how many of the prompt's tokens it reads. */
static bool check_encoded(const struct gd_model *model, int prompt_count, const struct gd_sampling *s, struct gd_error *err)
{
    if (s->encoded < 0 || s->encoded > prompt_count || (s->encoded > 0 && !gd_model_encodes(model)))
        return gd_fail(err, GD_INTERNAL, "%d of %d tokens are to be encoded", s->encoded, prompt_count);
    if (gd_model_encodes(model) && s->echo && s->encoded == 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "echo", "'%s' has an encoder (%s): the prompt is read by it and is no part of what the "
                             "model writes, so it cannot be echoed or scored; leave echo out", model->id, model->config.architecture);
    return true;
}

/* The prompt as what is decoded: all of it, or the start token and what the encoder does not read. */
static void copy_prompt(struct gd_sequence *sequence, const int32_t *prompt, int prompt_count, const struct gd_sampling *sampling)
{
    bool encodes = gd_model_encodes(sequence->model);
    int encoded = !encodes ? 0 : sampling->encoded > 0 ? sampling->encoded : prompt_count, decoded = prompt_count - encoded + encodes;
    sequence->ids = gd_alloc_array((size_t)decoded + (size_t)sampling->max_tokens, sizeof(*sequence->ids));
    sequence->ids[0] = sequence->model->config.decoder_start_id;
    memcpy(sequence->ids + encodes, prompt + encoded, (size_t)(prompt_count - encoded) * sizeof(*prompt));
    sequence->prompt_count = sequence->count = decoded;
    if (!encodes)
        return;
    sequence->encoder_ids = gd_alloc_array((size_t)encoded, sizeof(*sequence->encoder_ids));
    memcpy(sequence->encoder_ids, prompt, (size_t)encoded * sizeof(*prompt));
    sequence->encoder_count = encoded;
    sequence->cross_max = (encoded + GD_KV_PAGE_TOKENS - 1) / GD_KV_PAGE_TOKENS;
    sequence->cross_pages = gd_alloc_array((size_t)sequence->cross_max, sizeof(*sequence->cross_pages));
}

bool gd_sequence_create(struct gd_sequence **out, struct gd_model *model, const struct gd_graft *graft, const int32_t *prompt,
                        int prompt_count, const struct gd_sampling *sampling, const struct gd_infer_sink *sink,
                        struct gd_error *err)
{
    assert(*out == NULL);
    int lead = graft != NULL ? graft->virtual_rows.count : 0;
    if (!check_prompt(model, lead, prompt, prompt_count, sampling->max_tokens, err) ||
        !check_range("score_from", sampling->score_from, 0, prompt_count - 1, err) ||
        !check_encoded(model, prompt_count, sampling, err) || !check_sampling(sampling, model->config.vocab, err) || !check_outputs(sampling, model->config.vocab, err))
        return false;
    struct gd_sequence *sequence = gd_alloc(sizeof(*sequence));
    sequence->model = model;
    sequence->graft = graft;
    sequence->lead = lead;
    sequence->sink = *sink;
    copy_prompt(sequence, prompt, prompt_count, sampling);
    sequence->usage.prompt_tokens = prompt_count;
    copy_sampling(sequence, sampling);
    /* The last token that is generated never goes through the model. */
    int passed = sequence->prompt_count + (sampling->max_tokens > 0 ? sampling->max_tokens - 1 : 0);
    sequence->long_bit = is_long(model, lead + passed) ? GD_POSITION_LONG : 0;
    sequence->pages_max = (lead + passed + GD_KV_PAGE_TOKENS - 1) / GD_KV_PAGE_TOKENS;
    sequence->pages = gd_alloc_array((size_t)sequence->pages_max, sizeof(*sequence->pages));
    gd_text_hold_init(&sequence->hold, sampling->stops, sampling->stop_count);
    gd_buf_init(&sequence->text, 0);
    gd_buf_init(&sequence->piece, 0);
    *out = sequence;
    return true;
}

void gd_sequence_destroy(struct gd_sequence *sequence)
{
    if (sequence == NULL)
        return;
    gd_free(sequence->ids);
    gd_free(sequence->counts);
    gd_free(sequence->seen);
    gd_free(sequence->pages);
    gd_free(sequence->encoder_ids);
    gd_free(sequence->cross_pages);
    gd_free(sequence->sampling.bias_ids);
    gd_free(sequence->sampling.bias_values);
    if (sequence->sampling.output_count > 0) {
        gd_free(sequence->sampling.output_ids);
        gd_free(sequence->sampling.output_begin);
    }
    gd_text_hold_release(&sequence->hold);
    gd_buf_release(&sequence->text);
    gd_buf_release(&sequence->piece);
    gd_free(sequence);
}

int gd_sequence_shared_rows(const struct gd_sequence *sequence)
{
    bool prompt_only = sequence->graft != NULL && sequence->graft->virtual_rows.prompt_only;
    return sequence->lead + (prompt_only && sequence->past > sequence->prompt_count ? sequence->prompt_count : sequence->past);
}

int gd_sequence_pending(const struct gd_sequence *sequence)
{
    bool generates = sequence->sampling.max_tokens > 0 || sequence->sampling.score;
    if (!generates && !gd_sequence_scores_prompt(sequence))
        return 0;
    return (generates ? sequence->count : sequence->prompt_count - 1) - sequence->past;
}

/* ---- what the sink is told ---- */

static void report(struct gd_sequence *sequence, int32_t id, bool from_prompt, const struct gd_sequence_result *scored)
{
    gd_buf_clear(&sequence->piece);
    gd_tokenizer_piece(sequence->model->tokenizer, id, true, &sequence->piece);
    bool with_logprob = scored != NULL && sequence->sampling.logprobs >= 0;
    struct gd_infer_token token = {
        .id = id, .from_prompt = from_prompt,
        .text = sequence->text.length > 0 ? sequence->text.data : "", .text_length = sequence->text.length,
        .piece = sequence->piece.length > 0 ? sequence->piece.data : "", .piece_length = sequence->piece.length,
        .has_logprob = with_logprob,
    };
    if (with_logprob) {
        token.logprob = scored->logprob;
        token.top = scored->top;
        token.top_count = scored->top_count;
    }
    sequence->sink.token(sequence->sink.context, &token);
}

static void report_prompt_token(struct gd_sequence *sequence, int index, const struct gd_sequence_result *scored)
{
    gd_buf_clear(&sequence->piece);
    gd_buf_clear(&sequence->text);
    gd_tokenizer_piece(sequence->model->tokenizer, sequence->ids[index], true, &sequence->piece);
    if (sequence->piece.length > 0)
        gd_text_hold_push(&sequence->hold, sequence->piece.data, sequence->piece.length, false, &sequence->text);
    report(sequence, sequence->ids[index], true, scored);
}

void gd_sequence_report_prompt(struct gd_sequence *sequence)
{
    int scored = sequence->sampling.score_from > 0 ? 0 : 1;
    int count = !sequence->sampling.echo ? 0 : gd_sequence_scores_prompt(sequence) ? scored : sequence->prompt_count;
    for (int i = 0; i < count && !sequence->finished; i++)
        report_prompt_token(sequence, i, NULL);
}

void gd_sequence_report_scored(struct gd_sequence *sequence, int index, const struct gd_sequence_result *result)
{
    assert(index >= 1);
    assert(index < sequence->prompt_count);
    report_prompt_token(sequence, index, result);
}

static bool is_end(const struct gd_sequence *sequence, int32_t id)
{
    const struct gd_model_config *config = &sequence->model->config;
    for (int i = 0; i < config->eos_count; i++)
        if (config->eos_ids[i] == id)
            return !sequence->sampling.ignore_eos;
    return false;
}

/* ---- outputs that are given ---- */

/* Is what was generated so far how output i begins? */
static bool begins(const struct gd_sequence *sequence, int i)
{
    const struct gd_sampling *s = &sequence->sampling;
    int count = sequence->count - sequence->prompt_count, length = s->output_begin[i + 1] - s->output_begin[i];
    return count <= length && memcmp(s->output_ids + s->output_begin[i], sequence->ids + sequence->prompt_count,
                                     (size_t)count * sizeof(*sequence->ids)) == 0;
}

static bool contains(const int32_t *list, int count, int32_t id)
{
    for (int i = 0; i < count; i++)
        if (list[i] == id)
            return true;
    return false;
}

int gd_sequence_next_tokens(const struct gd_sequence *sequence, int32_t *next)
{
    const struct gd_sampling *s = &sequence->sampling;
    int count = 0, generated = sequence->count - sequence->prompt_count;
    for (int i = 0; i < s->output_count; i++) {
        bool whole = s->output_begin[i + 1] - s->output_begin[i] == generated;
        if (!begins(sequence, i) || (whole && sequence->model->config.eos_count == 0))
            continue;
        int32_t id = whole ? sequence->model->config.eos_ids[0] : s->output_ids[s->output_begin[i] + generated];
        if (!contains(next, count, id))
            next[count++] = id;
    }
    return count;
}

/* What is there is an output, and none goes on from it. */
static bool is_whole_output(const struct gd_sequence *sequence)
{
    const struct gd_sampling *s = &sequence->sampling;
    int generated = sequence->count - sequence->prompt_count;
    for (int i = 0; i < s->output_count; i++)
        if (begins(sequence, i) && s->output_begin[i + 1] - s->output_begin[i] > generated)
            return false;
    return s->output_count > 0;
}

void gd_sequence_accept(struct gd_sequence *sequence, const struct gd_sequence_result *result)
{
    int32_t id = result->id;
    if (is_end(sequence, id)) {
        gd_buf_clear(&sequence->text);
        if (sequence->sampling.echo && sequence->sampling.logprobs >= 0)
            report(sequence, id, false, result);
        if (!sequence->finished)
            gd_sequence_finish(sequence, GD_FINISH_STOP, NULL);
        return;
    }
    sequence->ids[sequence->count++] = id;
    sequence->usage.completion_tokens++;
    if (sequence->counts != NULL && sequence->counts[id] < UINT16_MAX)
        sequence->counts[id]++;
    if (sequence->seen != NULL)
        sequence->seen[id] = 1;
    gd_buf_clear(&sequence->piece);
    gd_buf_clear(&sequence->text);
    gd_tokenizer_piece(sequence->model->tokenizer, id, false, &sequence->piece);
    bool goes_on = gd_text_hold_push(&sequence->hold, sequence->piece.data, sequence->piece.length, true, &sequence->text);
    report(sequence, id, false, result);
    if (sequence->finished) /* cancelled by its sink */
        return;
    if (!goes_on || is_whole_output(sequence))
        gd_sequence_finish(sequence, GD_FINISH_STOP, NULL);
    else if (sequence->usage.completion_tokens == sequence->sampling.max_tokens)
        gd_sequence_finish(sequence, GD_FINISH_LENGTH, NULL);
}

void gd_sequence_finish(struct gd_sequence *sequence, enum gd_finish finish, const struct gd_error *error)
{
    assert(!sequence->finished);
    assert((finish == GD_FINISH_ERROR) == (error != NULL));
    sequence->finished = true;
    gd_buf_clear(&sequence->text);
    gd_text_hold_flush(&sequence->hold, &sequence->text);
    sequence->sink.finish(sequence->sink.context, finish, sequence->text.length > 0 ? sequence->text.data : "",
                          sequence->text.length, &sequence->usage, error);
}
