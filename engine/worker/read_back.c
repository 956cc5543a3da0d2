#include "engine/worker/read_back.h"

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"

#include <math.h>

/* Mean difference of log-probabilities that rounding explains: other kernels in f32, and in bf16, where SmolLM2's differ by
 * 0.05 to 0.08. */
#define TOLERANCE_F32 1e-3
#define TOLERANCE_BF16 0.2

struct reading {
    const struct gd_probe *probe;
    int next;
    double sum;
    bool done;
    struct gd_error err;
};

static void on_token(void *context, const struct gd_infer_token *token)
{
    struct reading *reading = context;
    if (token->has_logprob && reading->next < reading->probe->count)
        reading->sum += fabs(token->logprob - (double)reading->probe->logprob[reading->next]);
    reading->next++;
}

static void on_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                      const struct gd_infer_usage *usage, const struct gd_error *error)
{
    struct reading *reading = context;
    reading->done = true;
    if (finish == GD_FINISH_ERROR)
        reading->err = *error;
}

bool gd_read_back(struct gd_infer *infer, const struct gd_graft *graft, const struct gd_probe *probe, double *difference,
                  struct gd_error *err)
{
    struct reading reading = {.probe = probe};
    struct gd_sampling sampling = {.top_p = 1, .repetition_penalty = 1, .echo = true, .logprobs = 0};
    struct gd_infer_sink sink = {.context = &reading, .token = on_token, .finish = on_finish};
    uint64_t id;
    int start = probe->encoder_count > 0, joined = probe->encoder_count + probe->count - start; /* the decoder finds its start itself */
    int32_t *ids = gd_alloc_array((size_t)joined, sizeof(*ids));
    for (int i = 0; i < joined; i++)
        ids[i] = i < probe->encoder_count ? probe->encoder_ids[i] : probe->ids[i - probe->encoder_count + start];
    sampling.encoded = probe->encoder_count;
    bool ok = gd_infer_submit(infer, graft, ids, joined, &sampling, &sink, &id, err);
    gd_free(ids);
    while (ok && !reading.done)
        ok = gd_infer_turn(infer, err);
    if (ok && reading.err.code != GD_OK) {
        *err = reading.err;
        ok = false;
    }
    if (!ok) {
        gd_error_context(err, "serving the adapter that was written");
        return false;
    }
    bool wide = probe->act == GD_F32 && gd_device()->compute == GD_F32;
    double tolerance = wide ? TOLERANCE_F32 : TOLERANCE_BF16;
    *difference = probe->count > 1 ? reading.sum / (probe->count - 1) : 0;
    if (reading.next == probe->count && *difference <= tolerance)
        return true;
    return gd_fail(err, GD_INTERNAL, "the adapter that was written is not the one that was trained: served, its log-probabilities of %d "
                   "of %d tokens differ by %.2e in the mean, at most %.0e is accepted", reading.next, probe->count, *difference, tolerance);
}
