#include "engine/data/dataset.h"
#include "engine/base/alloc.h"
#include "engine/data/lines.h"
#include <stdio.h>
#include <string.h>

#define TOKENS_FIRST 65536
#define ROWS_FIRST 4096
#define SIDES_MAX 3

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

bool gd_row_encode(const struct gd_chat *chat, const struct gd_row *row, int side, struct gd_chat_encoding *encoding,
                   struct gd_error *err)
{
    const cJSON *messages[] = {row->messages, row->rejected_messages, row->gold_messages};
    const char *texts[] = {row->completion, row->rejected, row->gold};
    if (row->messages != NULL)
        return gd_chat_encode_training(chat, messages[side], row->tools, row->template_kwargs, encoding, err);
    return gd_chat_encode_pair(chat, row->prompt, texts[side], encoding, err);
}

bool gd_row_encode_apart(const struct gd_chat *chat, const struct gd_row *row, struct gd_chat_encoding *encoding,
                         struct gd_error *err)
{
    if (row->messages != NULL)
        return gd_chat_encode_training_apart(chat, row->messages, row->tools, row->template_kwargs, encoding, err);
    return gd_chat_encode_pair_apart(chat, row->prompt, row->completion, encoding, err);
}

/* Tokens of the longer of two texts apart, or of the one. */
static int side_length(const struct gd_chat_encoding *side)
{
    int answer = side->tokens.count - side->encoded;
    return answer > side->encoded ? answer : side->encoded;
}

/* How many tokens of a segment stay: all, the context's worth, or 0 where the row is left out. */
static int32_t kept_length(struct loader *loader, const struct gd_chat_encoding *side)
{
    int context = loader->options->context;
    if (side_length(side) <= context)
        return side->tokens.count;
    return loader->options->overlong == GD_OVERLONG_TRUNCATE ? context : 0;
}

/* Cuts each of two texts apart to the context; the prompt keeps its end token. */
static void cut_apart(struct gd_chat_encoding *side, int context)
{
    struct gd_tokens *tokens = &side->tokens;
    int surplus = side->encoded - context;
    if (surplus > 0) {
        size_t rest = (size_t)(tokens->count - side->encoded + 1);
        memmove(tokens->ids + context - 1, tokens->ids + side->encoded - 1, rest * sizeof *tokens->ids);
        memmove(side->weights + context - 1, side->weights + side->encoded - 1, rest * sizeof *side->weights);
        tokens->count -= surplus;
        side->encoded = context;
    }
    if (tokens->count - side->encoded > context)
        tokens->count = side->encoded + context;
}

/* Counts a row with a segment beyond the context. Returns whether the row stays. */
static bool count_overlong(struct loader *loader, int64_t line, const struct gd_chat_encoding *sides, int side_count)
{
    struct gd_dataset *data = &loader->owned->dataset;
    int context = loader->options->context;
    bool overlong = false, truncate = loader->options->overlong == GD_OVERLONG_TRUNCATE;
    for (int s = 0; s < side_count; s++) {
        int length = side_length(&sides[s]);
        if (length > data->longest_row_tokens)
            data->longest_row_tokens = length;
        overlong |= length > context;
        if (length > context && truncate)
            data->truncated_tokens += length - context;
    }
    if (!overlong)
        return true;
    if (loader->overlong_count < GD_DATASET_LINES_NAMED)
        data->overlong_lines[loader->overlong_count] = line;
    loader->overlong_count++;
    data->truncated_rows += truncate;
    data->dropped_rows += loader->options->overlong == GD_OVERLONG_DROP;
    return truncate;
}

/* Tokens of a segment that are trained: nothing predicts the first one. */
static int32_t trained_tokens(const struct gd_chat_encoding *side, int32_t length)
{
    int32_t trained = 0;
    for (int32_t i = 1; i < length; i++)
        trained += side->weights[i] != 0;
    return trained;
}

/* What both sides begin with, less one token: the last one in common is in both, since each goes on from it in its own way. */
static int32_t shared_tokens(const struct gd_chat_encoding *sides, const int32_t *length)
{
    int32_t most = length[0] < length[1] ? length[0] : length[1], same = 0;
    while (same < most && sides[0].tokens.ids[same] == sides[1].tokens.ids[same] && sides[0].weights[same] == sides[1].weights[same])
        same++;
    return same > 0 ? same - 1 : 0;
}

static void append_side(struct gd_dataset *data, const struct gd_chat_encoding *side, int32_t length)
{
    memcpy(data->tokens + data->token_count, side->tokens.ids, (size_t)length * sizeof *data->tokens);
    memcpy(data->weights + data->token_count, side->weights, (size_t)length * sizeof *data->weights);
    data->token_count += length;
}

static bool number_task(struct loader *loader, struct gd_dataset_row *row, const char *name, struct gd_error *err)
{
    struct gd_dataset *data = &loader->owned->dataset;
    const struct gd_tasks *wanted = loader->options->tasks;
    row->task = -1;
    if (wanted == NULL && name[0] == '\0') {
        data->taskless_line = data->taskless_rows++ == 0 ? row->line : data->taskless_line;
        return true;
    }
    if (wanted != NULL && gd_tasks_find(wanted, name) < 0) {
        char list[512];
        gd_tasks_list(wanted->names, wanted->count, list, sizeof list);
        return gd_fail_param(err, GD_BAD_FILE, "task", "line %lld: %s%s%s; the training file's tasks are: %s", (long long)row->line,
                             name[0] ? "there is no task '" : "the row names no task", name, name[0] ? "'" : "", list);
    }
    row->task = gd_tasks_add(&data->tasks, name, err);
    return row->task >= 0;
}

/* By name, or by value: the numbers do not depend on the order of rows. */
static void renumber_tasks(struct gd_dataset *data)
{
    int *renumbered = gd_alloc_array((size_t)data->tasks.count + 1, sizeof *renumbered);
    gd_tasks_sort(&data->tasks, renumbered);
    for (int64_t i = 0; i < data->row_count; i++)
        if (data->rows[i].task >= 0)
            data->rows[i].task = renumbered[data->rows[i].task];
    gd_free(renumbered);
}

/* One segment, or those of a pair: chosen, rejected, and the third one. `side`: that the segment is of its source. */
static bool keep_row(struct loader *loader, const struct gd_row *source, int side, int64_t line, struct gd_chat_encoding *sides,
                     int side_count, bool desirable, struct gd_error *err)
{
    struct gd_dataset *data = &loader->owned->dataset;
    struct gd_dataset_row row = {.line = line, .offset = data->token_count, .desirable = desirable, .importance = 1,
                                 .has_reference = source->has_reference, .margin = (float)source->margin};
    for (int s = 0; s < 2 && side + s < 2; s++)
        row.reference[s] = (float)source->reference[side + s];
    int32_t length[SIDES_MAX] = {0};
    bool trained = true;
    if (!count_overlong(loader, line, sides, side_count))
        return true;
    if (loader->options->apart)
        cut_apart(sides, loader->options->context);
    for (int s = 0; s < side_count; s++) {
        length[s] = kept_length(loader, &sides[s]);
        row.has_reference &= length[s] == sides[s].tokens.count; /* it is the whole answer's */
        int32_t count = trained_tokens(&sides[s], length[s]);
        trained &= count > 0;
        row.trained += count;
        row.length += length[s];
    }
    if (!trained) {
        if (data->untrained_rows < GD_DATASET_LINES_NAMED)
            data->untrained_lines[data->untrained_rows] = line;
        data->untrained_rows++;
        return true;
    }
    if (!number_task(loader, &row, source->task, err) || !reserve_tokens(loader->owned, (size_t)row.length, err) ||
        !reserve_row(loader->owned, err))
        return false;
    row.chosen = side_count >= 2 ? length[0] : 0;
    row.gold = length[2];
    row.encoded = sides[0].encoded;
    row.shared = side_count >= 2 && !loader->options->whole_sides ? shared_tokens(sides, length) : 0;
    for (int s = 0; s < side_count; s++)
        append_side(data, &sides[s], length[s]);
    data->rows[data->row_count++] = row;
    data->trained_token_count += row.trained;
    return true;
}

/* ---- classified rows ---- */

static bool add_label(struct gd_dataset *data, const cJSON *label, int64_t line, struct gd_error *err)
{
    char buffer[GD_TASK_NAME_MAX + 1], list[512];
    const char *name = gd_label_name(label, buffer);
    int number = gd_tasks_find(&data->classes, name);
    if (number < 0) {
        gd_tasks_list(data->classes.names, data->classes.count, list, sizeof list);
        return gd_fail_param(err, GD_BAD_FILE, "label", "line %lld: there is no label '%s'; the labels are: %s", (long long)line, name, list);
    }
    data->classes.rows[number]++;
    if ((data->label_total & (data->label_total + 1)) == 0) /* doubles at 0, 1, 3, 7, ... */
        data->labels = gd_realloc_array(data->labels, (size_t)data->label_total * 2 + 2, sizeof *data->labels);
    data->labels[data->label_total++] = number;
    return true;
}

static bool add_labels(struct gd_dataset *data, struct gd_dataset_row *row, const cJSON *label, bool multi, struct gd_error *err)
{
    const cJSON *item;
    row->label_at = data->label_total;
    if (cJSON_IsArray(label) != multi)
        return gd_fail_param(err, GD_BAD_FILE, "label", "line %lld: label is %s; problem_type %s wants %s", (long long)row->line,
                             multi ? "one label" : "a list", multi ? "multi_label_classification" : "single_label_classification",
                             multi ? "a list in every row" : "one label in every row");
    if (!multi && !add_label(data, label, row->line, err))
        return false;
    if (multi)
        cJSON_ArrayForEach(item, label)
            if (!add_label(data, item, row->line, err))
                return false;
    row->label_count = (int32_t)(data->label_total - row->label_at);
    for (int32_t i = 0; i < row->label_count; i++)
        for (int32_t j = 0; j < i; j++)
            if (data->labels[row->label_at + i] == data->labels[row->label_at + j])
                return gd_fail_param(err, GD_BAD_FILE, "label", "line %lld: label '%s' is there twice", (long long)row->line,
                                     data->classes.names[data->labels[row->label_at + i]]);
    return true;
}

static bool keep_classified(struct loader *loader, const struct gd_row *source, int64_t line, struct gd_error *err)
{
    const struct gd_classes *classes = loader->options->classes;
    struct gd_dataset *data = &loader->owned->dataset;
    struct gd_chat_encoding side = {0};
    struct gd_dataset_row row = {.line = line, .offset = data->token_count, .importance = 1, .trained = 1, .task = -1};
    int second = 0, whole = 0, context = loader->options->context;
    if (!gd_text_encode(classes->tokenizer, source->text, source->text_pair, 0, &side.tokens, &second, &whole, err)) {
        gd_tokens_release(&side.tokens);
        gd_error_context(err, "line %lld", (long long)line);
        return false;
    }
    bool ok = true, keep = count_overlong(loader, line, &side, 1);
    if (keep && whole > context) {
        side.tokens.count = 0;
        ok = gd_text_encode(classes->tokenizer, source->text, source->text_pair, context, &side.tokens, &second, &whole, err);
        side.tokens.count = side.tokens.count < context ? side.tokens.count : context;
    }
    if (ok && keep) {
        row.length = side.tokens.count;
        row.second = classes->typed ? second : 0;
        side.weights = gd_alloc_array((size_t)row.length + 1, sizeof *side.weights);
        ok = add_labels(data, &row, source->label, classes->multi, err) && number_task(loader, &row, source->task, err) &&
             reserve_tokens(loader->owned, (size_t)row.length, err) && reserve_row(loader->owned, err);
    }
    if (ok && keep) {
        append_side(data, &side, row.length);
        data->rows[data->row_count++] = row;
        data->trained_token_count++;
    }
    gd_free(side.weights);
    gd_tokens_release(&side.tokens);
    return ok;
}

/* The method of the job decides how many answers a row needs. */
static bool check_kind(const struct gd_row *row, const struct gd_dataset_options *options, int64_t line, struct gd_error *err)
{
    bool is_pair = gd_row_is_pair(row), is_labelled = row->format == GD_ROW_LABELLED;
    const char *field = row->format == GD_ROW_PREFERENCE ? "preferred_output" : is_pair ? "chosen" : is_labelled ? "label" : "row";
    if ((row->format == GD_ROW_CLASSIFIED) != (options->classes != NULL))
        return gd_fail_param(err, GD_BAD_FILE, options->classes != NULL ? "row" : "label", options->classes != NULL
                             ? "line %lld: the row (%s) has no text with a label; method classification needs text and label"
                             : "line %lld: the row (%s) is a text with a label; only method classification learns from those: set method.type, "
                             "or give the row an answer", (long long)line, gd_row_format_name(row->format));
    if (options->classes != NULL)
        return true;
    if (options->labelled ? is_labelled || is_pair : is_pair == options->pairs && !is_labelled)
        return true;
    if (options->labelled)
        return gd_fail_param(err, GD_BAD_FILE, field,
                             "line %lld: the row (%s) has no label; losses over labelled answers need prompt, completion and label, "
                             "or rows with two answers, or use method.type supervised",
                             (long long)line, gd_row_format_name(row->format));
    if (options->pairs && is_labelled)
        return gd_fail_param(err, GD_BAD_FILE, field,
                             "line %lld: label: this is a labelled row with one answer; this loss compares two: use method.type "
                             "preference with the loss kto, apo_zero_unpaired or bco, or give rows with two answers", (long long)line);
    if (options->pairs)
        return gd_fail_param(err, GD_BAD_FILE, field,
                             "line %lld: the row (%s) has one answer; methods dpo and preference need two: give input, "
                             "preferred_output and non_preferred_output, or use method.type supervised",
                             (long long)line, gd_row_format_name(row->format));
    return gd_fail_param(err, GD_BAD_FILE, field,
                         "line %lld: %s: this is a preference row (%s) %s; method supervised trains on one: use method.type %s",
                         (long long)line, field, gd_row_format_name(row->format), is_pair ? "with two answers" : "with a judged answer",
                         is_pair ? "dpo or preference" : "preference with a loss over labelled answers");
}

/* The sides as one row, or each as a row of its own. */
static bool keep_sides(struct loader *loader, const struct gd_row *row, int64_t line, struct gd_chat_encoding *sides, int count,
                       struct gd_error *err)
{
    if (!loader->options->labelled)
        return keep_row(loader, row, 0, line, sides, count, false, err);
    for (int s = 0; s < count; s++)
        if (!keep_row(loader, row, s, line, &sides[s], 1, count == 2 ? s == 0 : row->desirable, err))
            return false;
    return true;
}

static bool encode_and_keep(struct loader *loader, const struct gd_row *row, int64_t line, struct gd_error *err)
{
    struct gd_chat_encoding sides[SIDES_MAX] = {0};
    int wanted = loader->options->triples ? 3 : gd_row_is_pair(row) ? 2 : 1, made = 0;
    bool ok = true;
    while (made < wanted && ok) {
        ok = loader->options->apart ? gd_row_encode_apart(loader->chat, row, &sides[made], err)
                                    : gd_row_encode(loader->chat, row, made, &sides[made], err);
        made += ok;
    }
    if (ok)
        ok = keep_sides(loader, row, line, sides, made, err);
    else
        gd_error_context(err, "line %lld", (long long)line);
    for (int s = 0; s < made; s++)
        gd_chat_encoding_release(&sides[s]);
    return ok;
}

static bool parse_gold(struct gd_row *row, int64_t line, struct gd_error *err)
{
    struct gd_error why = {0};
    return gd_row_parse_gold(row, &why) ||
           gd_fail_param(err, GD_BAD_FILE, why.param, "line %lld: %s", (long long)line, why.message);
}

/* A row with nothing to compare. */
static bool keep_out(struct loader *loader, int64_t line)
{
    struct gd_dataset *data = &loader->owned->dataset;
    if (data->incomparable_rows < GD_DATASET_LINES_NAMED)
        data->incomparable_lines[data->incomparable_rows] = line;
    data->incomparable_rows++;
    return true;
}

/* Parsed as far as the job looks at it. */
static bool parse_row(struct loader *loader, struct gd_row *row, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    if (!gd_row_parse(row, text, length, line, err))
        return false;
    if (check_kind(row, loader->options, line, err) && (!loader->options->triples || parse_gold(row, line, err)))
        return true;
    bool incomparable = row->incomparable;
    gd_row_release(row);
    row->incomparable = incomparable;
    return false;
}

static bool read_row(struct loader *loader, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_row row;
    if (!parse_row(loader, &row, text, length, line, err)) {
        if (!row.incomparable || !(loader->options->pairs || loader->options->labelled))
            return false;
        gd_error_clear(err);
        return keep_out(loader, line);
    }
    bool ok = loader->options->classes != NULL ? keep_classified(loader, &row, line, err) : encode_and_keep(loader, &row, line, err);
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

/* "3, 9" and ", ..." behind the last that is kept. */
static void name_lines(struct gd_buf *text, const int64_t *lines, int64_t count)
{
    for (int64_t i = 0; i < count && i < GD_DATASET_LINES_NAMED; i++)
        gd_buf_printf(text, "%s%lld", i > 0 ? ", " : "", (long long)lines[i]);
    if (count > GD_DATASET_LINES_NAMED)
        gd_buf_printf(text, ", ...");
}

static bool refuse_incomparable(const struct loader *loader, struct gd_error *err)
{
    const struct gd_dataset *data = &loader->owned->dataset;
    struct gd_buf lines;
    gd_buf_init(&lines, 0);
    name_lines(&lines, data->incomparable_lines, data->incomparable_rows);
    gd_fail_param(err, GD_BAD_FILE, "data.incomparable",
                  "%lld row%s identical or empty answers, so there is nothing to compare: line %s; remove them, or set data.incomparable "
                  "to \"drop\"", (long long)data->incomparable_rows, data->incomparable_rows == 1 ? " has" : "s have", lines.data);
    gd_buf_release(&lines);
    return false;
}

static bool refuse_overlong(const struct loader *loader, struct gd_error *err)
{
    const struct gd_dataset *data = &loader->owned->dataset;
    struct gd_buf lines;
    int64_t count = loader->overlong_count;
    char room[64] = "";
    if (loader->options->virtual_rows > 0)
        snprintf(room, sizeof room, ", beside %d virtual ones,", loader->options->virtual_rows);
    gd_buf_init(&lines, 0);
    name_lines(&lines, data->overlong_lines, count);
    gd_fail_param(err, GD_CONTEXT, "data.overlong",
                  "%lld row%s longer than %d tokens%s (the longest has %lld): line %s; shorten them, or set data.overlong "
                  "to \"truncate\" or \"drop\"", (long long)count, count == 1 ? " is" : "s are", loader->options->context, room,
                  (long long)data->longest_row_tokens, lines.data);
    gd_buf_release(&lines);
    return false;
}

bool gd_dataset_open(struct gd_dataset **out, const char *path, const struct gd_chat *chat,
                     const struct gd_dataset_options *options, struct gd_error *err)
{
    struct owned *owned = gd_alloc(sizeof *owned);
    owned->dataset.pairs = options->pairs;
    owned->dataset.triples = options->triples;
    owned->dataset.labelled = options->labelled;
    owned->dataset.apart = options->apart;
    struct loader loader = {.owned = owned, .chat = chat, .options = options};
    owned->dataset.classified = options->classes != NULL;
    owned->dataset.multi = options->classes != NULL && options->classes->multi;
    for (int i = 0; options->classes != NULL && i < options->classes->labels->count; i++) {
        gd_tasks_add(&owned->dataset.classes, options->classes->labels->names[i], err);
        owned->dataset.classes.rows[i] = 0;
    }
    for (int i = 0; options->tasks != NULL && i < options->tasks->count; i++) {
        gd_tasks_add(&owned->dataset.tasks, options->tasks->names[i], err);
        owned->dataset.tasks.rows[i] = 0;
    }
    bool ok = gd_lines_each(path, on_line, &loader, err);
    if (ok && owned->dataset.incomparable_rows > 0 && !options->drop_incomparable)
        ok = refuse_incomparable(&loader, err);
    if (options->tasks == NULL)
        renumber_tasks(&owned->dataset);
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
    gd_tasks_release(&dataset->tasks);
    gd_tasks_release(&dataset->classes);
    gd_free(dataset->labels);
    if (dataset->rows != NULL)
        gd_large_free(dataset->rows, owned->row_capacity * sizeof *dataset->rows);
    gd_free(owned);
}
