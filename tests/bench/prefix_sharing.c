/*
 * Tokens per second of preference training with what both answers begin with computed once, and computed for each side:
 *     prefix_sharing MODEL [ROUNDS [LENGTH ...]]
 * Pairs of LENGTH prompt tokens and answers of LENGTH tokens, packed as a job packs them, one dpo step (reference, forward,
 * backward) after the other in both forms by turns. Tokens are those of the rows: both sides whole. Ratios: of tokens a second,
 * of the processors' own seconds, which other programs on the machine disturb least, and of the rows of a batch, which is what
 * a machine would gain that did nothing but products with weights.
 */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/tensor/device.h"
#include "engine/train/passes.h"
#include "engine/train/survey.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TOKENS_PER_BATCH 1024
#define ROUNDS_MAX 100

struct form {
    struct gd_dataset data;
    struct gd_batch batch;
    struct gd_passes passes;
    struct gd_survey survey;
};

static void must(bool ok, const struct gd_error *err)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

static void make_rows(struct gd_dataset *data, int length, int rows, bool shared, int vocab)
{
    *data = (struct gd_dataset){.pairs = true, .row_count = rows};
    data->rows = gd_alloc_array((size_t)rows, sizeof(*data->rows));
    data->tokens = gd_alloc_array((size_t)(rows * length * 4), sizeof(int32_t));
    data->weights = gd_alloc_array((size_t)(rows * length * 4), sizeof(float));
    for (int r = 0; r < rows; r++) {
        data->rows[r] = (struct gd_dataset_row){.offset = data->token_count, .length = 4 * length, .chosen = 2 * length,
                                                .shared = shared ? length - 1 : 0};
        for (int i = 0; i < 4 * length; i++) {
            int own = i % (2 * length) >= length ? i : i % length;
            data->tokens[data->token_count] = (own * 7919 + r * 104729 + 17) % vocab;
            data->weights[data->token_count++] = own >= length;
        }
    }
}

struct cost {
    double wall, processor;
};

static double processor_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static struct cost run_step(struct form *form, int rows, struct gd_error *err)
{
    int64_t order[64], packed[64];
    int begin[65], leaf[64];
    for (int r = 0; r < rows; r++)
        order[r] = r;
    struct gd_step_counts counts = {0};
    double started = gd_time_monotonic(), busy = processor_seconds();
    for (int r = 0; r < rows; r++)
        gd_step_count_row(&counts, form->passes.preference, &form->data, r);
    gd_survey_begin(&form->survey, &counts, 0, 0);
    form->passes.survey = &form->survey;
    int count = gd_step_pack(&form->data, order, rows, 1, TOKENS_PER_BATCH, packed, begin, leaf);
    for (int m = 0; m < count; m++) {
        int end = m + 1 < count ? begin[m + 1] : rows, space = 0;
        struct gd_pass_result result;
        for (int i = begin[m]; i < end; i++)
            space += gd_dataset_row_space(&form->data, packed[i]);
        gd_batch_fill(&form->batch, &form->data, packed + begin[m], end - begin[m], gd_token_bucket(space));
        must(gd_passes_run(&form->passes, true, &form->batch, 1.0 / rows, NULL, NULL, &result, err), err);
    }
    return (struct cost){gd_time_monotonic() - started, processor_seconds() - busy};
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void compare(const struct gd_model *model, const struct gd_graft *graft, float *block, float *grad, int length, int rounds)
{
    struct gd_error err = {0};
    struct gd_preference preference;
    struct form form[2];
    double ratio[ROUNDS_MAX], busy_ratio[ROUNDS_MAX], speed[2][ROUNDS_MAX], busy[2];
    int rows = 4;
    gd_preference_default(&preference, gd_preference_find("dpo"));
    for (int shared = 0; shared < 2; shared++) {
        make_rows(&form[shared].data, length, rows, shared, model->config.vocab);
        gd_batch_init(&form[shared].batch, gd_token_bucket(4 * length > TOKENS_PER_BATCH ? 4 * length : TOKENS_PER_BATCH),
                      GD_BATCH_SEGMENTS_MAX);
        gd_passes_init(&form[shared].passes, model, graft, gd_objective_find("preference"), &preference, gd_device()->compute, block,
                       grad);
        run_step(&form[shared], rows, &err); /* graphs are built, weights laid out */
    }
    for (int i = 0; i < rounds; i++) {
        for (int k = 0; k < 2; k++) {
            int shared = (i + k) % 2;
            struct cost cost = run_step(&form[shared], rows, &err);
            speed[shared][i] = rows * 4 * length / cost.wall;
            busy[shared] = cost.processor;
        }
        ratio[i] = speed[1][i] / speed[0][i];
        busy_ratio[i] = busy[0] / busy[1];
    }
    for (int shared = 0; shared < 2; shared++) {
        qsort(speed[shared], (size_t)rounds, sizeof(double), ascending);
        gd_passes_release(&form[shared].passes);
        gd_batch_release(&form[shared].batch);
        gd_free(form[shared].data.rows);
        gd_free(form[shared].data.tokens);
        gd_free(form[shared].data.weights);
    }
    qsort(ratio, (size_t)rounds, sizeof(double), ascending);
    qsort(busy_ratio, (size_t)rounds, sizeof(double), ascending);
    printf("%6d  %9.1f  %9.1f   %6.3f   [%.3f, %.3f]   %6.3f   [%.3f, %.3f]   %.3f\n", length, speed[0][rounds / 2], speed[1][rounds / 2],
           ratio[rounds / 2], ratio[0], ratio[rounds - 1], busy_ratio[rounds / 2], busy_ratio[0], busy_ratio[rounds - 1], 4.0 * length / (3.0 * length + 1));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct gd_error err = {0};
    struct gd_model *model = NULL;
    struct gd_graft *graft = NULL;
    struct gd_adapter_config config = {0};
    int lengths[32] = {64, 128, 256}, count = 3, rounds = argc > 2 ? atoi(argv[2]) : 5;
    if (argc < 2 || rounds < 1 || rounds > ROUNDS_MAX || argc > 35) {
        fprintf(stderr, "prefix_sharing MODEL [ROUNDS (1 to %d) [LENGTH ...]]\n", ROUNDS_MAX);
        return 2;
    }
    for (int i = 3; i < argc; i++) {
        lengths[i - 3] = atoi(argv[i]);
        count = i - 2;
        if (lengths[i - 3] < 2 || lengths[i - 3] > 4096) {
            fprintf(stderr, "LENGTH is %s; it must be from 2 to 4096\n", argv[i]);
            return 2;
        }
    }
    must(gd_device_init("cpu", 0, &err) && gd_model_open(&model, "model", argv[1], &err), &err);
    cJSON *json = cJSON_Parse("{\"r\": 16}");
    must(gd_adapter_config_parse(&config, json, &err) && gd_graft_create(&graft, model, &config, &err), &err);
    float *block = gd_alloc_array((size_t)graft->parameter_count, sizeof(float));
    float *grad = gd_alloc_array((size_t)graft->parameter_count, sizeof(float));
    gd_graft_init(graft, block, 1);
    printf("%s, %s, %d threads, %s, %d rounds; dpo, LoRA r 16, tokens_per_batch %d\n", model->config.architecture, gd_device()->isa,
           gd_device()->threads, gd_device()->compute == GD_BF16 ? "bf16" : "f32", rounds, TOKENS_PER_BATCH);
    printf("prompt=   tokens/s   tokens/s  tokens/s                    processor                 rows\n"
           "answer   each side     shared     ratio   [least, most]      ratio   [least, most]   ratio\n");
    for (int i = 0; i < count; i++)
        compare(model, graft, block, grad, lengths[i], rounds);
    gd_free(block);
    gd_free(grad);
    gd_graft_destroy(graft);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    gd_model_destroy(model);
    return 0;
}
