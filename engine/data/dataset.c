#include "engine/data/dataset.h"
#include "engine/base/alloc.h"
#include "engine/data/lines.h"
#include <stdio.h>
#include <string.h>

#define TOKENS_FIRST 65536
#define ROWS_FIRST 4096

/* The dataset with what its memory measures: large arrays are given back by size. */
struct owned {
    struct gd_dataset dataset; /* first: the caller's view */
    size_t token_capacity, row_capacity;
};

struct loader {
    struct owned *owned;
    const struct gd_chat *chat;
    const struct gd_dataset_options *options;
    int64_t rows_done, overlong_count;
};

/* Large arrays can fail to grow, and say so. */
static bool grow(void **items, size_t used, size_t capacity, size_t wanted, size_t item_bytes, struct gd_error *err)
{
    void *grown;
    if (!gd_large_alloc(&grown, wanted * item_bytes, "the tokens of the training rows", err))
        return false;
    if (used > 0)
        memcpy(grown, *items, used * item_bytes);
    if (*items != NULL)
        gd_large_free(*items, capacity * item_bytes);
    *items = grown;
    return true;
}

static bool reserve_tokens(struct owned *owned, size_t more, struct gd_error *err)
{
    struct gd_dataset *data = &owned->dataset;
    size_t used = (size_t)data->token_count, capacity = owned->token_capacity;
    if (used + more <= capacity)
        return true;
    size_t wanted = capacity == 0 ? TOKENS_FIRST : capacity + capacity / 2;
    if (wanted < used + more)
        wanted = used + more;
    void *tokens = data->tokens, *weights = data->weights;
    if (!grow(&tokens, used, capacity, wanted, sizeof *data->tokens, err))
        return false;
    data->tokens = tokens;
    if (!grow(&weights, used, capacity, wanted, sizeof *data->weights, err)) {
        gd_large_free(data->tokens, wanted * sizeof *data->tokens);
        data->tokens = NULL;
        return false;
    }
    data->weights = weights;
    owned->token_capacity = wanted;
    return true;
}

static bool reserve_row(struct owned *owned, struct gd_error *err)
{
    struct gd_dataset *data = &owned->dataset;
    size_t used = (size_t)data->row_count, capacity = owned->row_capacity;
    if (used < capacity)
        return true;
    size_t wanted = capacity == 0 ? ROWS_FIRST : capacity + capacity / 2;
    void *rows = data->rows;
    if (!grow(&rows, used, capacity, wanted, sizeof *data->rows, err))
        return false;
    data->rows = rows;
    owned->row_capacity = wanted;
    return true;
}

static bool encode_row(const struct loader *loader, const struct gd_row *row, struct gd_chat_encoding *encoding,
                       struct gd_error *err)
{
    if (row->messages != NULL)
        return gd_chat_encode_training(loader->chat, row->messages, row->tools, encoding, err);
    return gd_chat_encode_pair(loader->chat, row->prompt, row->completion, encoding, err);
}

/* How many tokens of the row stay: all, the context's worth, or 0 for a row that is left out. */
static int32_t kept_length(struct loader *loader, int64_t line, int length)
{
    struct gd_dataset *data = &loader->owned->dataset;
    int context = loader->options->context;
    if (length > data->longest_row_tokens)
        data->longest_row_tokens = length;
    if (length <= context)
        return length;
    if (loader->overlong_count < GD_DATASET_LINES_NAMED)
        data->overlong_lines[loader->overlong_count] = line;
    loader->overlong_count++;
    if (loader->options->overlong == GD_OVERLONG_TRUNCATE) {
        data->truncated_rows++;
        data->truncated_tokens += length - context;
        return context;
    }
    if (loader->options->overlong == GD_OVERLONG_DROP)
        data->dropped_rows++;
    return 0;
}

static bool keep_row(struct loader *loader, int64_t line, const struct gd_chat_encoding *encoding, struct gd_error *err)
{
    struct gd_dataset *data = &loader->owned->dataset;
    bool empty = encoding->tokens.count == 0;
    int32_t length = kept_length(loader, line, encoding->tokens.count), trained = 0;
    if (length == 0 && !empty)
        return true;
    for (int32_t i = 1; i < length; i++) /* nothing predicts the first token */
        trained += encoding->weights[i] != 0;
    if (trained == 0) {
        if (data->untrained_rows < GD_DATASET_LINES_NAMED)
            data->untrained_lines[data->untrained_rows] = line;
        data->untrained_rows++;
        return true;
    }
    if (!reserve_tokens(loader->owned, (size_t)length, err) || !reserve_row(loader->owned, err))
        return false;
    memcpy(data->tokens + data->token_count, encoding->tokens.ids, (size_t)length * sizeof *data->tokens);
    memcpy(data->weights + data->token_count, encoding->weights, (size_t)length * sizeof *data->weights);
    data->rows[data->row_count++] =
        (struct gd_dataset_row){.line = line, .offset = data->token_count, .length = length, .trained = trained};
    data->token_count += length;
    data->trained_token_count += trained;
    return true;
}

static bool read_row(struct loader *loader, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_row row;
    struct gd_chat_encoding encoding;
    if (!gd_row_parse(&row, text, length, line, err))
        return false;
    bool ok = encode_row(loader, &row, &encoding, err);
    if (ok) {
        ok = keep_row(loader, line, &encoding, err);
        gd_chat_encoding_release(&encoding);
    } else {
        gd_error_context(err, "line %lld", (long long)line);
    }
    gd_row_release(&row);
    return ok;
}

static bool on_line(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct loader *loader = context;
    const struct gd_dataset_options *options = loader->options;
    if (text == NULL)
        return gd_fail_param(err, GD_BAD_FILE, "row", "line %lld: the line has more than %u bytes", (long long)line,
                             GD_ROW_BYTES_MAX);
    if (!read_row(loader, text, length, line, err))
        return false;
    loader->rows_done++;
    if (options->progress == NULL || options->progress(options->progress_context, loader->rows_done, 0))
        return true;
    return gd_fail(err, GD_CANCELLED, "stopped while reading the rows");
}

static bool refuse_overlong(const struct loader *loader, struct gd_error *err)
{
    const struct gd_dataset *data = &loader->owned->dataset;
    struct gd_buf lines;
    int64_t count = loader->overlong_count;
    gd_buf_init(&lines, 0);
    for (int64_t i = 0; i < count && i < GD_DATASET_LINES_NAMED; i++)
        gd_buf_printf(&lines, "%s%lld", i > 0 ? ", " : "", (long long)data->overlong_lines[i]);
    gd_fail_param(err, GD_CONTEXT, "data.overlong",
                  "%lld row%s longer than %d tokens (the longest has %lld): line %s%s; shorten them, or set data.overlong "
                  "to \"truncate\" or \"drop\"", (long long)count, count == 1 ? " is" : "s are", loader->options->context,
                  (long long)data->longest_row_tokens, lines.data, count > GD_DATASET_LINES_NAMED ? ", ..." : "");
    gd_buf_release(&lines);
    return false;
}

bool gd_dataset_open(struct gd_dataset **out, const char *path, const struct gd_chat *chat,
                     const struct gd_dataset_options *options, struct gd_error *err)
{
    struct owned *owned = gd_alloc(sizeof *owned);
    struct loader loader = {.owned = owned, .chat = chat, .options = options};
    bool ok = gd_lines_each(path, on_line, &loader, err);
    if (ok && loader.overlong_count > 0 && options->overlong == GD_OVERLONG_REFUSE)
        ok = refuse_overlong(&loader, err);
    if (ok)
        *out = &owned->dataset;
    else
        gd_dataset_destroy(&owned->dataset);
    return ok;
}

void gd_dataset_destroy(struct gd_dataset *dataset)
{
    struct owned *owned = (struct owned *)dataset;
    if (dataset == NULL)
        return;
    if (dataset->tokens != NULL)
        gd_large_free(dataset->tokens, owned->token_capacity * sizeof *dataset->tokens);
    if (dataset->weights != NULL)
        gd_large_free(dataset->weights, owned->token_capacity * sizeof *dataset->weights);
    if (dataset->rows != NULL)
        gd_large_free(dataset->rows, owned->row_capacity * sizeof *dataset->rows);
    gd_free(owned);
}
