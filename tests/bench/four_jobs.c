/*
 * Tokens per second of LoRA jobs (four unless said) in one pass over their base, and of the same ones one after the other:
 *     four_jobs MODEL [ROUNDS [ROWS [RANK [STEPS [PRECISION [JOBS]]]]]]
 * Whole steps (packing, forward, backward, clipping, AdamW) of micro-batches of ROWS tokens and padding (64 when not given), by
 * turns in each round; each job's first step is not timed. After each round the parameters of both forms must be the same to
 * the bit. Ratios: of tokens a second, and of the processors' own seconds, which other programs on the machine disturb least.
 */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"
#include "engine/train/job_group.h"
#include "engine/train/trainer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define JOBS_MAX GD_SPLIT_MAX
#define ROUNDS_MAX 100
#define MODEL_ID "base"

struct settings {
    const char *precision;
    int rounds, rows, rank, steps;
};

struct job {
    struct gd_job_spec spec;
    struct gd_trainer *trainer;
    int64_t step, stop_at;
    bool over;
};

struct cost {
    double wall, processor;
};

static int job_count = 4;
static char scratch[] = "/tmp/graftd-four-jobs-XXXXXX";

static void must(bool ok, const struct gd_error *err)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

static struct cost now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (struct cost){gd_time_monotonic(), (double)t.tv_sec + 1e-9 * (double)t.tv_nsec};
}

static void add(struct cost *sum, struct cost begin)
{
    struct cost end = now();
    sum->wall += end.wall - begin.wall;
    sum->processor += end.processor - begin.processor;
}

static enum gd_train_command poll_job(void *context)
{
    const struct job *job = context;
    return job->step >= job->stop_at ? GD_TRAIN_CANCEL : GD_TRAIN_GO;
}

static void on_step(void *context, int64_t step, int64_t total_steps, int64_t trained_tokens, int64_t tokens, double seconds,
                    const struct gd_metric *metrics, int metric_count)
{
    ((struct job *)context)->step = step;
}

static void on_left(void *context, struct gd_trainer *trainer, bool ok, const struct gd_error *err)
{
    struct job *jobs = context;
    if (err->code != GD_CANCELLED)
        must(ok, err);
    for (int i = 0; i < job_count; i++)
        jobs[i].over |= jobs[i].trainer == trainer;
}

/* A row of about so many tokens, for any vocabulary: the longest beginning of a long one that fits. */
static void write_rows(const struct gd_model *model, int tokens)
{
    char *path = gd_format("%s/rows.jsonl", scratch);
    FILE *file = fopen(path, "w");
    if (file == NULL)
        exit(1);
    for (int row = 0; row < 64; row++) {
        fprintf(file, "{\"messages\": [{\"role\": \"user\", \"content\": \"%d\"}, {\"role\": \"assistant\", \"content\": \"", row);
        for (int i = 0; i < tokens; i++)
            fprintf(file, "%d ", (row * 7919 + i * 104729) % 9);
        fprintf(file, "\"}]}\n");
    }
    fclose(file);
    gd_free(path);
}

static void begin(struct job *job, const struct gd_model *model, const struct settings *settings, int number, const char *form, int steps)
{
    struct gd_error err = {0};
    char *text = gd_format("{\"model\": \"" MODEL_ID "\", \"training_file\": \"rows\", \"seed\": %d, \"precision\": \"%s\", "
                           "\"adapter\": {\"type\": \"lora\", \"r\": %d}, \"data\": {\"overlong\": \"truncate\", \"max_length\": %d}, "
                           "\"method\": {\"type\": \"supervised\", \"supervised\": {\"hyperparameters\": {\"batch_size\": 1, \"n_epochs\": 50, "
                           "\"tokens_per_batch\": %d, \"checkpoint_interval\": 100000}}}}",
                           number, settings->precision, settings->rank, settings->rows, settings->rows);
    char *folder = gd_format("%s/%s-%d", scratch, form, number), *rows = gd_format("%s/rows.jsonl", scratch);
    cJSON *body = cJSON_Parse(text);
    struct gd_train_observer observer = {.context = job, .poll = poll_job, .step = on_step};
    struct gd_trainer_options options = {.job_id = "bench", .folder = folder, .training_path = rows, .keep_checkpoints = 2, .created_at = 1};
    *job = (struct job){.stop_at = steps + 1};
    must(gd_job_spec_parse(&job->spec, body, &err), &err);
    must(gd_trainer_create(&job->trainer, model, &job->spec, &options, &observer, &err), &err);
    cJSON_Delete(body);
    gd_free(text);
    gd_free(folder);
    gd_free(rows);
}

static void end(struct job *job)
{
    gd_trainer_destroy(job->trainer);
    gd_job_spec_release(&job->spec);
}

static struct cost run_alone(struct job *jobs)
{
    struct cost sum = {0};
    for (int i = 0; i < job_count; i++) {
        struct cost begin = {0};
        struct gd_error err = {0};
        gd_trainer_begin(jobs[i].trainer);
        for (bool over = false; gd_trainer_advance(jobs[i].trainer, &over, &err);) {
            if (begin.wall == 0 && jobs[i].step > 0)
                begin = now();
            must(gd_trainer_run_pass(jobs[i].trainer, &err), &err);
        }
        add(&sum, begin);
    }
    return sum;
}

static struct cost run_together(struct job *jobs)
{
    struct cost sum = {0}, begin = {0};
    struct gd_job_group group;
    struct gd_job_group_observer observer = {.context = jobs, .left = on_left};
    gd_job_group_init(&group, &observer);
    for (int i = 0; i < job_count; i++)
        gd_job_group_add(&group, jobs[i].trainer);
    while (group.count > 0) {
        gd_job_group_turn(&group);
        if (begin.wall == 0 && jobs[job_count - 1].trainer->state.step == 1)
            begin = now();
    }
    add(&sum, begin);
    gd_job_group_release(&group);
    return sum;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_ratio(const char *what, double *ratio, int count)
{
    qsort(ratio, (size_t)count, sizeof(*ratio), by_value);
    printf("%-22s %.2f  (%.2f to %.2f over %d rounds)\n", what, ratio[count / 2], ratio[0], ratio[count - 1], count);
}

static void run_rounds(const struct gd_model *model, const struct settings *settings)
{
    double wall[ROUNDS_MAX], processor[ROUNDS_MAX];
    for (int r = 0; r < settings->rounds; r++) {
        struct job alone[JOBS_MAX], together[JOBS_MAX];
        struct cost cost[2] = {{0}};
        for (int i = 0; i < job_count; i++) {
            begin(&alone[i], model, settings, i, "alone", settings->steps);
            begin(&together[i], model, settings, i, "together", settings->steps);
        }
        for (int form = 0; form < 2; form++)
            cost[(form + r) % 2] = (form + r) % 2 == 0 ? run_alone(alone) : run_together(together);
        double tokens = 0;
        for (int i = 0; i < job_count; i++) {
            tokens += (double)alone[i].trainer->state.tokens * settings->steps / (settings->steps + 1);
            if (memcmp(alone[i].trainer->state.block, together[i].trainer->state.block, alone[i].trainer->block_bytes) != 0) {
                fprintf(stderr, "job %d: the parameters are not those that it has alone\n", i);
                exit(1);
            }
            end(&alone[i]);
            end(&together[i]);
        }
        wall[r] = cost[0].wall / cost[1].wall;
        processor[r] = cost[0].processor / cost[1].processor;
        printf("round %d: in turn %.0f tokens/s, together %.0f, ratio %.2f (processor %.2f)\n", r + 1, tokens / cost[0].wall,
               tokens / cost[1].wall, wall[r], processor[r]);
        fflush(stdout);
    }
    print_ratio("tokens/s", wall, settings->rounds);
    print_ratio("processor seconds", processor, settings->rounds);
}

static int number(int argc, char **argv, int at, int otherwise)
{
    return argc > at && atoi(argv[at]) > 0 ? atoi(argv[at]) : otherwise;
}

int main(int argc, char **argv)
{
    struct gd_error err = {0};
    struct gd_model *model = NULL;
    struct settings settings = {argc > 6 ? argv[6] : "auto", number(argc, argv, 2, 5), number(argc, argv, 3, 64), number(argc, argv, 4, 16),
                                number(argc, argv, 5, 8)};
    job_count = number(argc, argv, 7, job_count);
    if (argc < 2 || settings.rounds > ROUNDS_MAX || job_count > JOBS_MAX) {
        fprintf(stderr, "usage: four_jobs MODEL [ROUNDS [ROWS [RANK [STEPS [PRECISION [JOBS]]]]]]\n");
        return 2;
    }
    must(gd_device_init("auto", 0, &err), &err);
    must(gd_model_open(&model, MODEL_ID, argv[1], &err), &err);
    if (mkdtemp(scratch) == NULL)
        return 1;
    write_rows(model, settings.rows);
    printf("%s, %d threads, %d jobs of %d rows, rank %d\n", gd_device()->isa, gd_device()->threads, job_count, settings.rows, settings.rank);
    run_rounds(model, &settings);
    gd_model_destroy(model);
    must(gd_remove_tree(scratch, &err), &err);
    return 0;
}
