/* A file as token rows: policies, counts, what stays out. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/data/dataset.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define CHATML                                                                                                         \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"        \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
#define SHORT "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n"
#define LONG                                                                                                           \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"0123456789 0123456789 0123456789 "  \
    "0123456789\"}]}\n"

struct room {
    char path[64];
    struct gd_tokenizer *tokenizer;
    struct gd_chat *chat;
};

static int enter(void **state)
{
    static struct room room;
    struct gd_error err = {0};
    char json_path[512], config_path[512], *json, *config;
    size_t json_length, config_length;
    snprintf(room.path, sizeof room.path, "/tmp/graftd-dataset-test-XXXXXX");
    int fd = mkstemp(room.path);
    if (fd < 0)
        return -1;
    close(fd);
    snprintf(json_path, sizeof json_path, "%s/models/tiny-qwen2/tokenizer.json", getenv("GD_FIXTURES"));
    snprintf(config_path, sizeof config_path, "%s/models/tiny-qwen2/tokenizer_config.json", getenv("GD_FIXTURES"));
    bool ok = gd_file_read(json_path, 1u << 24, &json, &json_length, &err) &&
              gd_file_read(config_path, 1u << 24, &config, &config_length, &err) &&
              gd_tokenizer_from_json(&room.tokenizer, json, json_length, config, config_length, &err) &&
              gd_chat_create(&room.chat, room.tokenizer, CHATML, &err);
    if (!ok) {
        print_message("%s\n", err.message);
        return -1;
    }
    gd_free(json);
    gd_free(config);
    *state = &room;
    return 0;
}

static int leave(void **state)
{
    struct room *room = *state;
    gd_chat_destroy(room->chat);
    gd_tokenizer_destroy(room->tokenizer);
    return unlink(room->path);
}

static struct gd_dataset *open_text(struct room *room, const char *text, struct gd_dataset_options options,
                                    struct gd_error *err)
{
    struct gd_dataset *data = NULL;
    FILE *file = fopen(room->path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    return gd_dataset_open(&data, room->path, room->chat, &options, err) ? data : NULL;
}

static void rows_hold_tokens_and_weights(void **state)
{
    struct room *room = *state;
    struct gd_error err = {0};
    struct gd_dataset *data = open_text(room, "\n" SHORT "{\"prompt\":\"x\",\"completion\":\"y\"}\n",
                                        (struct gd_dataset_options){.context = 100}, &err);
    if (data == NULL)
        fail_msg("%s", err.message);
    assert_int_equal(data->row_count, 2);
    assert_int_equal(data->rows[0].line, 2);
    assert_int_equal(data->rows[1].line, 3);
    assert_int_equal(data->rows[0].trained, 2); /* b <|im_end|> */
    assert_int_equal(data->rows[1].trained, 2); /* y <|im_end|> */
    assert_int_equal(data->rows[1].offset, data->rows[0].length);
    assert_int_equal(data->token_count, data->rows[0].length + data->rows[1].length);
    assert_int_equal(data->trained_token_count, 4);
    assert_int_equal(data->tokens[0], gd_tokenizer_find(room->tokenizer, "<|im_start|>"));
    assert_int_equal(data->tokens[data->token_count - 1], gd_tokenizer_eos(room->tokenizer));
    gd_dataset_destroy(data);
}

static void overlong_rows_are_refused_by_line(void **state)
{
    struct gd_error err = {0};
    assert_null(open_text(*state, SHORT LONG SHORT LONG, (struct gd_dataset_options){.context = 40}, &err));
    assert_int_equal(err.code, GD_CONTEXT);
    assert_string_equal(err.param, "data.overlong");
    assert_non_null(strstr(err.message, "2 rows are longer than 40 tokens"));
    assert_non_null(strstr(err.message, "line 2, 4;"));
    assert_non_null(strstr(err.message, "truncate"));
}

static void overlong_rows_are_dropped_or_truncated_and_counted(void **state)
{
    struct gd_error err = {0};
    struct gd_dataset *data = open_text(*state, SHORT LONG SHORT,
                                        (struct gd_dataset_options){.context = 40, .overlong = GD_OVERLONG_DROP}, &err);
    assert_non_null(data);
    assert_int_equal(data->row_count, 2);
    assert_int_equal(data->dropped_rows, 1);
    assert_int_equal(data->overlong_lines[0], 2);
    int64_t longest = data->longest_row_tokens;
    assert_true(longest > 40);
    gd_dataset_destroy(data);
    data = open_text(*state, SHORT LONG SHORT, (struct gd_dataset_options){.context = 40, .overlong = GD_OVERLONG_TRUNCATE},
                     &err);
    assert_non_null(data);
    assert_int_equal(data->row_count, 3);
    assert_int_equal(data->truncated_rows, 1);
    assert_int_equal(data->truncated_tokens, longest - 40);
    assert_int_equal(data->rows[1].length, 40);
    gd_dataset_destroy(data);
}

static void rows_without_a_trained_token_are_left_out_and_counted(void **state)
{
    struct gd_error err = {0};
    int context = 12; /* the long row keeps its user turn only */
    struct gd_dataset *data = open_text(*state, SHORT LONG, (struct gd_dataset_options){.context = context,
                                        .overlong = GD_OVERLONG_TRUNCATE}, &err);
    assert_non_null(data);
    for (int64_t i = 0; i < data->row_count; i++)
        assert_true(data->rows[i].trained > 0);
    assert_int_equal(data->row_count + data->untrained_rows, 2);
    assert_true(data->untrained_rows > 0);
    assert_true(data->untrained_lines[0] > 0);
    gd_dataset_destroy(data);
}

static void a_bad_row_stops_with_its_line(void **state)
{
    static const struct {
        const char *text, *part;
        enum gd_code code;
    } cases[] = {
        {SHORT "{\"messages\":[]}\n", "line 2: messages", GD_BAD_FILE},
        {SHORT "\nnonsense\n", "line 3: ", GD_BAD_FILE},
        {SHORT "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}],\"tools\":[{\"type\":"
               "\"function\",\"function\":{\"name\":\"f\"}}]}\n", "line 2: this model's chat template has no place for tools",
         GD_UNSUPPORTED},
        {"", "empty", GD_BAD_FILE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gd_error err = {0};
        assert_null(open_text(*state, cases[i].text, (struct gd_dataset_options){.context = 40}, &err));
        if (err.code != cases[i].code || strstr(err.message, cases[i].part) == NULL)
            fail_msg("%d %s", err.code, err.message);
    }
}

#define TWO(chosen, rejected) "{\"prompt\":\"p \",\"chosen\":\"" chosen "\",\"rejected\":\"" rejected "\"}\n"

static void a_pair_is_one_row_of_two_segments(void **state)
{
    struct gd_error err = {0};
    struct gd_dataset *data = open_text(*state, TWO("good", "bad one") TWO("x", "y"),
                                        (struct gd_dataset_options){.context = 40, .pairs = true, .whole_sides = true}, &err);
    assert_non_null(data);
    assert_true(data->pairs && data->row_count == 2);
    const struct gd_dataset_row *row = &data->rows[0];
    assert_true(row->chosen > 0 && row->chosen < row->length);
    assert_int_equal(row->length + data->rows[1].length, data->token_count);
    struct gd_batch batch;
    gd_batch_init(&batch, 128, 8);
    gd_batch_fill(&batch, data, (int64_t[]){1, 0}, 2, 128);
    assert_int_equal(batch.segment_count, 4);
    assert_int_equal(batch.cu_seqlens[1], data->rows[1].chosen);
    assert_int_equal(batch.cu_seqlens[4], data->token_count);
    assert_int_equal(batch.positions[batch.cu_seqlens[3]], 0);
    assert_int_equal(batch.labels[batch.cu_seqlens[3] - 1], -100);
    assert_int_equal(batch.ids[batch.cu_seqlens[3]], data->tokens[row->offset + row->chosen]);
    gd_batch_release(&batch);
    gd_dataset_destroy(data);
}

static void what_both_sides_begin_with_is_in_a_batch_once(void **state)
{
    struct gd_error err = {0};
    struct gd_dataset *data = open_text(*state, TWO("same one", "same two") TWO("x", "y"),
                                        (struct gd_dataset_options){.context = 40, .pairs = true}, &err);
    assert_non_null(data);
    const struct gd_dataset_row *row = &data->rows[0];
    const int32_t *chosen = data->tokens + row->offset, *rejected = chosen + row->chosen;
    assert_true(row->shared > data->rows[1].shared && data->rows[1].shared > 0);
    assert_memory_equal(chosen, rejected, (size_t)(row->shared + 1) * sizeof *chosen);
    assert_int_not_equal(chosen[row->shared + 1], rejected[row->shared + 1]);
    struct gd_batch batch;
    gd_batch_init(&batch, 128, 8);
    gd_batch_fill(&batch, data, (int64_t[]){1, 0}, 2, 128);
    assert_int_equal(batch.used, data->token_count - data->rows[0].shared - data->rows[1].shared);
    int begin = batch.cu_seqlens[3], first = batch.cu_seqlens[2];
    assert_int_equal(batch.prefix[4], 0);
    assert_int_equal(batch.prefix[5], 0);
    assert_int_equal(batch.prefix[6], first);
    assert_int_equal(batch.prefix[7], first + row->shared);
    assert_int_equal(batch.positions[begin], row->shared);
    assert_int_equal(batch.ids[begin], rejected[row->shared]);
    assert_int_equal(batch.labels[begin], rejected[row->shared + 1]);
    assert_int_equal(gd_batch_labelled(&batch, 2) + gd_batch_labelled(&batch, 3), row->trained);
    gd_batch_release(&batch);
    gd_dataset_destroy(data);
}

static void rows_of_the_other_kind_are_refused_by_line_and_field(void **state)
{
    struct gd_error err = {0};
    assert_null(open_text(*state, SHORT TWO("a", "b"), (struct gd_dataset_options){.context = 40}, &err));
    assert_string_equal(err.param, "chosen");
    assert_non_null(strstr(err.message, "line 2: chosen: this is a preference row"));
    err = (struct gd_error){0};
    assert_null(open_text(*state, TWO("a", "b") SHORT, (struct gd_dataset_options){.context = 40, .pairs = true}, &err));
    assert_string_equal(err.param, "row");
    assert_non_null(strstr(err.message, "line 2: the row (chat) has one answer"));
}

static bool stop_at_second(void *context, int64_t rows_done, int64_t rows_total)
{
    *(int64_t *)context = rows_done;
    return rows_done < 2;
}

static void progress_can_stop_the_reading(void **state)
{
    struct gd_error err = {0};
    int64_t done = 0;
    assert_null(open_text(*state, SHORT SHORT SHORT, (struct gd_dataset_options){.context = 40, .progress = stop_at_second,
                          .progress_context = &done}, &err));
    assert_int_equal(err.code, GD_CANCELLED);
    assert_int_equal(done, 2);
}

static void many_rows_grow_the_arrays_without_moving_content(void **state)
{
    struct gd_error err = {0};
    struct gd_buf text;
    gd_buf_init(&text, 0);
    for (int i = 0; i < 9000; i++)
        gd_buf_printf(&text, "{\"prompt\":\"%d\",\"completion\":\"%d\"}\n", i, i * 7);
    struct gd_dataset *data = open_text(*state, text.data, (struct gd_dataset_options){.context = 64}, &err);
    assert_non_null(data);
    assert_int_equal(data->row_count, 9000);
    struct room *room = *state;
    for (int i = 0; i < 9000; i += 37) {
        struct gd_buf decoded;
        char expected[64];
        gd_buf_init(&decoded, 0);
        gd_tokenizer_decode(room->tokenizer, data->tokens + data->rows[i].offset, data->rows[i].length, true, &decoded);
        snprintf(expected, sizeof expected, "%d%d", i, i * 7);
        assert_string_equal(decoded.data, expected);
        gd_buf_release(&decoded);
    }
    gd_dataset_destroy(data);
    gd_buf_release(&text);
}

#define TASK(name) "{\"prompt\":\"x\",\"completion\":\"y\",\"task\":" name "}\n"

static void check_task(const struct gd_dataset *data, int64_t row, const char *name)
{
    assert_string_equal(data->tasks.names[data->rows[row].task], name);
    assert_int_equal(gd_tasks_find(&data->tasks, name), data->rows[row].task);
}

static void tasks_are_numbered_whatever_the_order_of_rows(void **state)
{
    struct room *room = *state;
    struct gd_error err = {0};
    struct gd_dataset *data = open_text(room, TASK("\"sum\"") TASK("\"case\"") SHORT TASK("\"sum\"") TASK("12"),
                                        (struct gd_dataset_options){.context = 100}, &err);
    assert_non_null(data);
    assert_int_equal(data->tasks.count, 3);
    check_task(data, 0, "sum");
    check_task(data, 1, "case");
    check_task(data, 3, "sum");
    check_task(data, 4, "12");
    assert_string_equal(data->tasks.names[2], "sum"); /* sorted by name */
    assert_int_equal(data->tasks.rows[2], 2);
    assert_int_equal(data->rows[2].task, -1);
    assert_int_equal(data->taskless_rows, 1);
    assert_int_equal(data->taskless_line, 3);
    gd_dataset_destroy(data);
    data = open_text(room, TASK("10") TASK("2") TASK("0"), (struct gd_dataset_options){.context = 100}, &err);
    assert_non_null(data);
    assert_string_equal(data->tasks.names[1], "2"); /* sorted by value */
    assert_int_equal(data->rows[0].task, 2);
    gd_dataset_destroy(data);
}

static void tasks_of_another_file_are_kept_to(void **state)
{
    struct room *room = *state;
    struct gd_error err = {0};
    struct gd_dataset *data = open_text(room, TASK("\"b\"") TASK("\"a\"") TASK("\"c\""), (struct gd_dataset_options){.context = 100}, &err);
    assert_non_null(data);
    struct gd_tasks tasks = data->tasks;
    memset(&data->tasks, 0, sizeof data->tasks);
    gd_dataset_destroy(data);
    data = open_text(room, TASK("\"c\"") TASK("\"b\""), (struct gd_dataset_options){.context = 100, .tasks = &tasks}, &err);
    assert_non_null(data);
    assert_int_equal(data->rows[0].task, 2);
    assert_int_equal(data->rows[1].task, 1);
    assert_int_equal(data->tasks.rows[0], 0);
    gd_dataset_destroy(data);
    assert_null(open_text(room, TASK("\"d\""), (struct gd_dataset_options){.context = 100, .tasks = &tasks}, &err));
    assert_string_equal(err.message, "line 1: there is no task 'd'; the training file's tasks are: a, b, c");
    gd_error_clear(&err);
    assert_null(open_text(room, SHORT, (struct gd_dataset_options){.context = 100, .tasks = &tasks}, &err));
    assert_string_equal(err.message, "line 1: the row names no task; the training file's tasks are: a, b, c");
    gd_error_clear(&err);
    assert_null(open_text(room, TASK("[1]"), (struct gd_dataset_options){.context = 100}, &err));
    assert_string_equal(err.param, "task");
    gd_tasks_release(&tasks);
}

static void a_batch_has_the_task_of_each_segment(void **state)
{
    struct room *room = *state;
    struct gd_error err = {0};
    struct gd_batch batch;
    struct gd_dataset *data = open_text(room, TASK("\"b\"") TASK("\"a\"") SHORT, (struct gd_dataset_options){.context = 100}, &err);
    assert_non_null(data);
    gd_batch_init(&batch, 256, 4);
    gd_batch_fill(&batch, data, (int64_t[]){0, 2, 1}, 3, 256);
    assert_memory_equal(batch.tasks, ((int32_t[]){1, -1, 0, -1}), 4 * sizeof(int32_t));
    gd_batch_release(&batch);
    gd_dataset_destroy(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_hold_tokens_and_weights),
        cmocka_unit_test(overlong_rows_are_refused_by_line),
        cmocka_unit_test(overlong_rows_are_dropped_or_truncated_and_counted),
        cmocka_unit_test(rows_without_a_trained_token_are_left_out_and_counted),
        cmocka_unit_test(a_bad_row_stops_with_its_line),
        cmocka_unit_test(a_pair_is_one_row_of_two_segments),
        cmocka_unit_test(what_both_sides_begin_with_is_in_a_batch_once),
        cmocka_unit_test(rows_of_the_other_kind_are_refused_by_line_and_field),
        cmocka_unit_test(progress_can_stop_the_reading),
        cmocka_unit_test(many_rows_grow_the_arrays_without_moving_content),
        cmocka_unit_test(tasks_are_numbered_whatever_the_order_of_rows),
        cmocka_unit_test(tasks_of_another_file_are_kept_to),
        cmocka_unit_test(a_batch_has_the_task_of_each_segment),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
