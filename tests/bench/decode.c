/*
 * Tokens per second of one engine without server:
 *     decode MODEL [STREAMS [PROMPT [TOKENS [ROUNDS]]]]
 * Each round gives STREAMS prompts of PROMPT random tokens to the engine, runs it until all are read, then until each has made
 * TOKENS more. Prints both rates of each round and their medians, by the clock and by the processors' own seconds, which other
 * programs on the machine disturb least. GRAFTD_THREADS bounds the threads.
 */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/infer/engine.h"
#include "engine/tensor/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS_MAX 100
#define CACHE_BYTES ((size_t)1 << 30)

struct clock {
    int begun, finished;
    double all_begun, busy; /* when the last stream's first token came; processor seconds until then */
    int streams;
};

static void must(bool ok, const struct gd_error *err)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

static double processor_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

struct stream {
    struct clock *clock;
    bool begun;
};

static void on_first(void *context, const struct gd_infer_token *token)
{
    struct stream *stream = context;
    if (!stream->begun && ++stream->clock->begun == stream->clock->streams) {
        stream->clock->all_begun = gd_time_monotonic();
        stream->clock->busy = processor_seconds();
    }
    stream->begun = true;
}

static void on_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length, const struct gd_infer_usage *usage,
                      const struct gd_error *error)
{
    struct stream *stream = context;
    if (finish == GD_FINISH_ERROR)
        must(false, error);
    stream->clock->finished++;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int count)
{
    qsort(x, (size_t)count, sizeof(*x), compare);
    return count % 2 ? x[count / 2] : (x[count / 2 - 1] + x[count / 2]) / 2;
}

int main(int argc, char **argv)
{
    int streams = argc > 2 ? atoi(argv[2]) : 1, prompt_count = argc > 3 ? atoi(argv[3]) : 512;
    int tokens = argc > 4 ? atoi(argv[4]) : 64, rounds = argc > 5 ? atoi(argv[5]) : 5;
    const char *threads = getenv("GRAFTD_THREADS");
    struct gd_model *model = NULL;
    struct gd_infer *infer = NULL;
    struct gd_error err = {0};
    double prompt_rates[ROUNDS_MAX], rates[ROUNDS_MAX], busy_prompts[ROUNDS_MAX], busy_rates[ROUNDS_MAX];
    if (argc < 2 || streams < 1 || prompt_count < 2 || tokens < 1 || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: decode MODEL [STREAMS [PROMPT [TOKENS [ROUNDS]]]]\n");
        return 2;
    }
    must(gd_device_init("cpu", threads != NULL ? atoi(threads) : 0, &err), &err);
    must(gd_model_open(&model, "model", argv[1], &err), &err);
    must(gd_infer_create(&infer, model, CACHE_BYTES, &err), &err);
    printf("%s, %d streams, prompts of %d, %d tokens each, %s, %d threads\n", argv[1], streams, prompt_count, tokens,
           gd_device()->isa, gd_device()->threads);
    int32_t *prompt = gd_alloc_array((size_t)prompt_count, sizeof(*prompt));
    struct stream *stream = gd_alloc_array((size_t)streams, sizeof(*stream));
    for (int round = -1; round < rounds; round++) { /* one to warm up */
        struct clock clock = {.streams = streams};
        double started = gd_time_monotonic(), busy = processor_seconds();
        for (int s = 0; s < streams; s++) {
            struct gd_sampling sampling = {.top_p = 1, .repetition_penalty = 1, .max_tokens = tokens, .logprobs = -1, .ignore_eos = true};
            struct gd_infer_sink sink = {.context = &stream[s], .token = on_first, .finish = on_finish};
            uint64_t id;
            stream[s] = (struct stream){.clock = &clock};
            for (int i = 0; i < prompt_count; i++)
                prompt[i] = (int32_t)((i * 7919L + s * 104729L + round * 15485863L + 17) % model->config.vocab);
            for (int i = 0; i < prompt_count; i++)
                prompt[i] = prompt[i] < 0 ? -prompt[i] : prompt[i];
            must(gd_infer_submit(infer, NULL, prompt, prompt_count, &sampling, &sink, &id, &err), &err);
        }
        while (gd_infer_busy(infer))
            must(gd_infer_turn(infer, &err), &err);
        double now = gd_time_monotonic(), end = processor_seconds();
        if (round < 0)
            continue;
        prompt_rates[round] = (double)prompt_count * streams / (clock.all_begun - started);
        rates[round] = (double)(tokens - 1) * streams / (now - clock.all_begun);
        busy_prompts[round] = (double)prompt_count * streams / (clock.busy - busy);
        busy_rates[round] = (double)(tokens - 1) * streams / (end - clock.busy);
        printf("prompt %.1f/s (%.1f a processor second), decode %.1f/s (%.1f)\n", prompt_rates[round], busy_prompts[round],
               rates[round], busy_rates[round]);
    }
    printf("median: prompt %.1f/s (%.1f), decode %.1f/s (%.1f)\n", median(prompt_rates, rounds), median(busy_prompts, rounds),
           median(rates, rounds), median(busy_rates, rounds));
    gd_infer_destroy(infer);
    gd_model_destroy(model);
    gd_free(prompt);
    gd_free(stream);
    return 0;
}
