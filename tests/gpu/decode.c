/*
 * Tokens per second of many streams that wear many grafts:
 *     decode DEVICE MODEL CACHE_MIB STREAMS PROMPT TOKENS ROUNDS [ADAPTER ...]
 * Stream s wears adapter s modulo their count; none: the base. Each round gives STREAMS prompts of PROMPT tokens, runs until all are
 * read and until each made TOKENS more. Prints one JSON object with the medians of the rounds.
 */
#include "engine/adapter/adapter.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/infer/engine.h"
#include "engine/tensor/device.h"
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS_MAX 100

struct round {
    int streams, begun, finished;
    double all_begun;
    uint64_t hash;                     /* of all tokens */
};

struct stream {
    struct round *round;
    bool begun;
};

static void must(bool ok, const struct gd_error *err)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

static void on_token(void *context, const struct gd_infer_token *token)
{
    struct stream *stream = context;
    if (!stream->begun && ++stream->round->begun == stream->round->streams)
        stream->round->all_begun = gd_time_monotonic();
    stream->begun = true;
    stream->round->hash += (uint64_t)token->id * UINT64_C(0x9E3779B97F4A7C15);
}

static void on_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length, const struct gd_infer_usage *usage,
                      const struct gd_error *error)
{
    if (finish == GD_FINISH_ERROR)
        must(false, error);
    ((struct stream *)context)->round->finished++;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    struct gd_error err = {0};
    struct gd_model *model = NULL;
    struct gd_infer *infer = NULL;
    int cache_mib = argc > 7 ? atoi(argv[3]) : 0, streams = argc > 7 ? atoi(argv[4]) : 0, prompt_count = argc > 7 ? atoi(argv[5]) : 0;
    int tokens = argc > 7 ? atoi(argv[6]) : 0, rounds = argc > 7 ? atoi(argv[7]) : 0, graft_count = argc > 8 ? argc - 8 : 0;
    if (cache_mib < 1 || streams < 1 || prompt_count < 2 || tokens < 2 || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: decode DEVICE MODEL CACHE_MIB STREAMS PROMPT TOKENS ROUNDS [ADAPTER ...]\n");
        return 2;
    }
    must(gd_device_init(argv[1], 0, &err), &err);
    must(gd_model_open(&model, "model", argv[2], &err), &err);
    must(gd_infer_create(&infer, model, (size_t)cache_mib << 20, &err), &err);
    struct gd_graft **grafts = gd_alloc_array((size_t)graft_count + 1, sizeof(struct gd_graft *));
    for (int g = 0; g < graft_count; g++)
        must(gd_graft_load(&grafts[g], model, argv[8 + g], &err) && gd_graft_prepare(grafts[g], &err), &err);
    double reading[ROUNDS_MAX], making[ROUNDS_MAX];
    int32_t *prompt = gd_alloc_array((size_t)prompt_count, sizeof(*prompt));
    struct stream *all = gd_alloc_array((size_t)streams, sizeof(*all));
    uint64_t hash = 0;
    for (int turn = -1; turn < rounds; turn++) { /* one to warm up */
        struct round round = {.streams = streams};
        double began = gd_time_monotonic();
        for (int s = 0; s < streams; s++) {
            struct gd_sampling sampling = {.top_p = 1, .repetition_penalty = 1, .max_tokens = tokens, .logprobs = -1, .ignore_eos = true};
            struct gd_infer_sink sink = {.context = &all[s], .token = on_token, .finish = on_finish};
            uint64_t id;
            all[s] = (struct stream){.round = &round};
            for (int i = 0; i < prompt_count; i++)
                prompt[i] = (int32_t)(((int64_t)i * 7919 + s * INT64_C(104729) + (turn + 2) * INT64_C(15485863)) % model->config.vocab);
            must(gd_infer_submit(infer, graft_count > 0 ? grafts[s % graft_count] : NULL, prompt, prompt_count, &sampling, &sink, &id, &err),
                 &err);
        }
        while (gd_infer_busy(infer))
            must(gd_infer_turn(infer, &err), &err);
        double end = gd_time_monotonic();
        if (turn < 0)
            continue;
        hash += round.hash;
        reading[turn] = (double)prompt_count * streams / (round.all_begun - began);
        making[turn] = (double)(tokens - 1) * streams / (end - round.all_begun);
    }
    qsort(reading, (size_t)rounds, sizeof(double), compare);
    qsort(making, (size_t)rounds, sizeof(double), compare);
    printf("{\"streams\": %d, \"grafts\": %d, \"prompt_tokens_s\": %.1f, \"decode_tokens_s\": %.1f, \"hash\": \"%016llx\"}\n", streams, graft_count,
           reading[rounds / 2], making[rounds / 2], (unsigned long long)hash);
    gd_infer_destroy(infer);
    for (int g = 0; g < graft_count; g++)
        gd_graft_destroy(grafts[g]);
    gd_model_destroy(model);
    gd_free(grafts);
    gd_free(prompt);
    gd_free(all);
    return 0;
}
