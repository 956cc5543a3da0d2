#include "engine/train/matching.h"

#include "engine/base/alloc.h"
#include "engine/objective/density.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* The bare base over a batch of prompts, for one bucket of tokens at a time. */
struct reader {
    const struct gd_model *model;
    const struct gd_matching_options *options;
    const struct gd_run_options *run;
    struct gd_batch *batch;
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_model_inputs inputs;
    struct gd_value *hidden;
    int tokens;                  /* of the graph */
    struct gd_device_block arena;
};

static void reader_release(struct reader *reader)
{
    gd_plan_destroy(reader->plan);
    gd_graph_destroy(reader->graph);
    gd_device_release(&reader->arena);
    reader->plan = NULL;
    reader->graph = NULL;
    reader->tokens = 0;
}

static bool reader_build(struct reader *reader, int tokens, struct gd_error *err)
{
    if (reader->tokens == tokens)
        return true;
    reader_release(reader);
    if (!gd_graph_create(&reader->graph, reader->options->act, err))
        return false;
    gd_model_inputs_create(&reader->inputs, reader->graph, reader->model, tokens, GD_BATCH_SEGMENTS_MAX, false);
    reader->hidden = gd_cast(reader->graph, gd_model_hidden(reader->graph, reader->model, &reader->inputs, NULL), GD_F32);
    if (!gd_graph_ok(reader->graph, err) || !gd_plan_create(&reader->plan, reader->graph, &reader->hidden, 1, false, err))
        return false;
    if (!gd_device_reserve(&reader->arena, gd_plan_arena_bytes(reader->plan), "activations of a batch of prompts", err))
        return false;
    reader->tokens = tokens;
    gd_plan_attach(reader->plan, reader->arena.memory);
    gd_plan_bind(reader->plan, reader->inputs.inv_freq, reader->model->config.inv_freq);
    return true;
}

/* The mean hidden state of each segment of the batch. */
static bool read_batch(struct reader *reader, float *out, struct gd_error *err)
{
    struct gd_batch *batch = reader->batch;
    int width = reader->model->config.embed_width;
    if (!reader_build(reader, batch->capacity, err))
        return false;
    gd_plan_bind(reader->plan, reader->inputs.ids, batch->ids);
    gd_plan_bind(reader->plan, reader->inputs.positions, batch->positions);
    gd_plan_bind(reader->plan, reader->inputs.cu_seqlens, batch->cu_seqlens);
    if (!gd_plan_run(reader->plan, reader->run, err))
        return false;
    const float *hidden = gd_plan_read(reader->plan, reader->hidden, err);
    if (hidden == NULL)
        return false;
    for (int s = 0; s < batch->segment_count; s++) {
        int begin = batch->cu_seqlens[s], end = batch->cu_seqlens[s + 1];
        for (int k = 0; k < width; k++) {
            double sum = 0;
            for (int t = begin; t < end; t++)
                sum += (double)hidden[(size_t)t * (size_t)width + (size_t)k];
            out[(size_t)s * (size_t)width + (size_t)k] = (float)(sum / (end - begin));
        }
    }
    return true;
}

/* The prompts of the rows, a packed batch at a time. */
static bool read_prompts(struct reader *reader, const struct gd_dataset *data, const int64_t *rows, int64_t count,
                         void (*visit)(void *context, int64_t row, const float *x),
                         void *context, struct gd_error *err)
{
    struct gd_dataset bare = *data; /* the base has no virtual rows */
    int width = reader->model->config.embed_width;
    bool ok = true;
    float *x = gd_alloc_array((size_t)GD_BATCH_SEGMENTS_MAX * (size_t)width, sizeof(float));
    memset(&bare.virtual_rows, 0, sizeof(bare.virtual_rows));
    for (int64_t next = 0; ok && next < count;) {
        int64_t first = next;
        int space = 0;
        while (next < count && next - first < GD_BATCH_SEGMENTS_MAX) {
            int more = gd_prompt_length(&bare, rows[next]);
            if (next > first && space + more > reader->options->tokens_per_batch)
                break;
            space += more;
            next++;
        }
        gd_batch_fill_prompts(reader->batch, &bare, rows + first, (int)(next - first), gd_token_bucket(space));
        ok = read_batch(reader, x, err);
        for (int64_t i = 0; ok && i < next - first; i++)
            visit(context, rows[first + i], x + (size_t)i * (size_t)width);
    }
    gd_free(x);
    return ok;
}

/* ---- the sample ---- */

struct sample {
    const struct gd_dataset *data;
    int64_t *rows;
    float *x;
    bool *label;
    int count, width, read;
};

/* Up to `most` rows of each kind, in the order of an epoch that no training has. */
static bool draw(struct sample *sample, const struct gd_dataset *data, int most, uint64_t seed, struct gd_error *err)
{
    int64_t *order = gd_alloc_array((size_t)data->row_count, sizeof(int64_t));
    int drawn[2] = {0};
    gd_epoch_order(order, data->row_count, seed, -1);
    sample->rows = gd_alloc_array((size_t)2 * (size_t)most, sizeof(int64_t));
    for (int64_t i = 0; i < data->row_count; i++)
        if (drawn[data->rows[order[i]].desirable] < most) {
            drawn[data->rows[order[i]].desirable]++;
            sample->rows[sample->count++] = order[i];
        }
    gd_free(order);
    return (drawn[0] > 0 && drawn[1] > 0) ||
           gd_fail_param(err, GD_BAD_FILE, "training_file", "every row of training_file is %s; match_underlying_distribution compares the "
                         "prompts of both kinds", drawn[0] > 0 ? "undesirable" : "desirable");
}

static void keep_sample(void *context, int64_t row, const float *x)
{
    struct sample *sample = context;
    memcpy(sample->x + (size_t)sample->read * (size_t)sample->width, x, (size_t)sample->width * sizeof(float));
    sample->label[sample->read++] = sample->data->rows[row].desirable;
}

static bool fit(struct reader *reader, const struct gd_dataset *data, struct gd_density *density, double *told_apart, struct gd_error *err)
{
    struct sample sample = {.data = data, .width = reader->model->config.embed_width};
    void *x = NULL;
    bool ok = draw(&sample, data, reader->options->preference->matching.sample, reader->options->seed, err);
    size_t bytes = (size_t)sample.count * (size_t)sample.width * sizeof(float);
    ok = ok && gd_large_alloc(&x, bytes, "the prompts that are compared", err);
    sample.x = x;
    sample.label = gd_alloc_array((size_t)sample.count + 1, sizeof(bool));
    ok = ok && read_prompts(reader, data, sample.rows, sample.count, keep_sample, &sample, err);
    if (ok) {
        int right = 0;
        gd_density_fit(density, sample.x, sample.label, sample.count, sample.width);
        for (int i = 0; i < sample.count; i++)
            right += (gd_density_ratio(density, sample.x + (size_t)i * (size_t)sample.width, 0, INFINITY) > 1) == sample.label[i];
        *told_apart = (double)right / sample.count;
    }
    if (x != NULL)
        gd_large_free(x, bytes);
    gd_free(sample.label);
    gd_free(sample.rows);
    return ok;
}

/* ---- the weights ---- */

struct weigher {
    struct gd_dataset *data;
    const struct gd_density *density;
    const struct gd_preference *preference;
    struct gd_matching_result *result; /* or NULL */
};

static void weigh_row(void *context, int64_t row, const float *x)
{
    struct weigher *weigher = context;
    double weight = gd_density_ratio(weigher->density, x, weigher->preference->matching.min, weigher->preference->matching.max);
    weigher->data->rows[row].importance = (float)weight;
    if (weigher->result != NULL) {
        weigher->result->least = fmin(weigher->result->least, weight);
        weigher->result->most = fmax(weigher->result->most, weight);
    }
}

static bool weigh(struct reader *reader, struct gd_dataset *data, const struct gd_density *density, struct gd_matching_result *result,
                  struct gd_error *err)
{
    struct weigher weigher = {data, density, reader->options->preference, result};
    int64_t *rows = gd_alloc_array((size_t)data->row_count, sizeof(int64_t)), count = 0;
    for (int64_t i = 0; i < data->row_count; i++)
        if (!data->rows[i].desirable)
            rows[count++] = i;
    bool ok = read_prompts(reader, data, rows, count, weigh_row, &weigher, err);
    gd_free(rows);
    return ok;
}

bool gd_match_prompts(const struct gd_model *model, struct gd_dataset *train, struct gd_dataset *valid, struct gd_batch *batch,
                      const struct gd_matching_options *options, const struct gd_run_options *run, struct gd_matching_result *result,
                      struct gd_error *err)
{
    struct reader reader = {.model = model, .options = options, .run = run, .batch = batch};
    struct gd_density density = {0};
    *result = (struct gd_matching_result){.least = INFINITY};
    assert(train->labelled);
    bool ok = fit(&reader, train, &density, &result->told_apart, err) && weigh(&reader, train, &density, result, err) &&
              (valid == NULL || weigh(&reader, valid, &density, NULL, err));
    gd_density_release(&density);
    reader_release(&reader);
    return ok;
}
