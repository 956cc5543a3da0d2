/* dataset.c - reads a JSONL file row by row into one array of tokens. */
#include "engine/data/dataset.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/data/lines.h"

#include <stdio.h>
#include <string.h>

#define OVERLONG_NAMED 8

struct loader {
    struct gd_dataset *dataset;
    const struct gd_chat *chat;
    const struct gd_dataset_options *options;
    int64_t token_capacity, row_capacity, lines_done;
    int64_t overlong_lines[OVERLONG_NAMED], overlong_count;
    int longest;
};

static void reserve(struct loader *loader, int more)
{
    struct gd_dataset *data = loader->dataset;
    if (data->token_count + more > loader->token_capacity) {
        loader->token_capacity = (data->token_count + more) * 3 / 2 + 4096;
        data->tokens = gd_realloc_array(data->tokens, (size_t)loader->token_capacity, sizeof(int32_t));
        data->weights = gd_realloc_array(data->weights, (size_t)loader->token_capacity, sizeof(float));
    }
    if (data->row_count == loader->row_capacity) {
        loader->row_capacity = loader->row_capacity * 3 / 2 + 256;
        data->rows = gd_realloc_array(data->rows, (size_t)loader->row_capacity, sizeof(*data->rows));
    }
}

static bool encode_row(const struct loader *loader, const struct gd_row *row, struct gd_chat_encoding *encoding,
                       struct gd_error *err)
{
    if (row->messages != NULL)
        return gd_chat_encode_training(loader->chat, row->messages, row->tools, encoding, err);
    return gd_chat_encode_pair(loader->chat, row->prompt, row->completion, encoding, err);
}

static void keep_row(struct loader *loader, int64_t line, const struct gd_chat_encoding *encoding)
{
    struct gd_dataset *data = loader->dataset;
    int length = encoding->tokens.count, trained = 0;
    if (length > loader->options->context) {
        if (loader->overlong_count < OVERLONG_NAMED)
            loader->overlong_lines[loader->overlong_count] = line;
        loader->overlong_count++;
        loader->longest = length > loader->longest ? length : loader->longest;
        if (loader->options->overlong == GD_OVERLONG_DROP)
            data->dropped_rows++;
        if (loader->options->overlong != GD_OVERLONG_TRUNCATE)
            return;
        data->truncated_rows++;
        data->truncated_tokens += length - loader->options->context;
        length = loader->options->context;
    }
    for (int i = 1; i < length; i++)
        trained += encoding->weights[i] != 0;
    if (trained == 0) {
        data->untrained_rows++;
        return;
    }
    reserve(loader, length);
    memcpy(data->tokens + data->token_count, encoding->tokens.ids, (size_t)length * sizeof(int32_t));
    memcpy(data->weights + data->token_count, encoding->weights, (size_t)length * sizeof(float));
    data->rows[data->row_count++] =
        (struct gd_dataset_row){.line = line, .offset = data->token_count, .length = length, .trained = trained};
    data->token_count += length;
    data->trained_token_count += trained;
}

static bool on_line(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct loader *loader = context;
    struct gd_row row = {0};
    struct gd_chat_encoding encoding = {0};
    if (!gd_row_parse(&row, text, length, line, err))
        return false;
    bool ok = encode_row(loader, &row, &encoding, err);
    if (ok)
        keep_row(loader, line, &encoding);
    else
        gd_error_context(err, "line %lld", (long long)line);
    gd_chat_encoding_release(&encoding);
    gd_row_release(&row);
    loader->lines_done++;
    if (ok && loader->options->progress != NULL &&
        !loader->options->progress(loader->options->progress_context, loader->lines_done, 0))
        ok = gd_fail(err, GD_CANCELLED, "stopped while reading the rows");
    return ok;
}

static bool refuse_overlong(const struct loader *loader, struct gd_error *err)
{
    char lines[160] = "";
    int64_t named = loader->overlong_count < OVERLONG_NAMED ? loader->overlong_count : OVERLONG_NAMED;
    for (int64_t i = 0; i < named; i++)
        snprintf(lines + strlen(lines), sizeof(lines) - strlen(lines), "%s%lld", i ? ", " : "",
                 (long long)loader->overlong_lines[i]);
    return gd_fail_param(err, GD_CONTEXT, "data.overlong",
                         "%lld rows are longer than %d tokens (the longest has %d): line %s%s; set data.overlong to \"truncate\" or "
                         "\"drop\", or shorten them",
                         (long long)loader->overlong_count, loader->options->context, loader->longest, lines,
                         loader->overlong_count > named ? ", ..." : "");
}

bool gd_dataset_open(struct gd_dataset **out, const char *path, const struct gd_chat *chat,
                     const struct gd_dataset_options *options, struct gd_error *err)
{
    struct gd_dataset *dataset = gd_alloc(sizeof(*dataset));
    struct loader loader = {.dataset = dataset, .chat = chat, .options = options};
    bool ok = gd_lines_each(path, on_line, &loader, err);
    if (ok && loader.overlong_count > 0 && options->overlong == GD_OVERLONG_REFUSE)
        ok = refuse_overlong(&loader, err);
    if (ok)
        *out = dataset;
    else
        gd_dataset_destroy(dataset);
    return ok;
}

void gd_dataset_destroy(struct gd_dataset *dataset)
{
    if (dataset == NULL)
        return;
    gd_free(dataset->tokens);
    gd_free(dataset->weights);
    gd_free(dataset->rows);
    gd_free(dataset);
}
