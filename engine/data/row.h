/*
 * row.h - one line of a training file: which format, is it good, what does it mean.
 *
 * Why      A bad row is found when the file arrives, with line, field and reason, not in hour three.
 * Memory   gd_row owns its parsed tree.
 * Threads  Any.
 * Errors   GD_BAD_FILE with param = field path and a message that starts "line N: ".
 * Limits   GD_ROW_BYTES_MAX a line, GD_FILE_ROWS_MAX rows, first GD_REPORT_ERRORS_MAX errors reported.
 * Life     parse -> use -> release.
 */
#ifndef GD_DATA_ROW_H
#define GD_DATA_ROW_H

#include "engine/base/buf.h"
#include "engine/base/json.h"
#include "engine/data/tasks.h"
#include <stdint.h>

#define GD_ROW_BYTES_MAX (16u << 20)
#define GD_FILE_ROWS_MAX 50000000
#define GD_REPORT_ERRORS_MAX 100

/*    name               wire */
#define GD_ROW_FORMAT_LIST(X)                                                         \
    X(CHAT,              "chat")              /* {"messages":[..],"tools":[..]} */    \
    X(PROMPT_COMPLETION, "prompt_completion") /* {"prompt":"..","completion":".."} */ \
    X(ALPACA,            "alpaca")            /* {"instruction","input","output"} */  \
    X(SHAREGPT,          "sharegpt")          /* {"conversations":[{"from","value"}]} */  \
    X(PREFERENCE,        "preference")        /* {"input":{..},"preferred_output":[..],"non_preferred_output":[..]} */ \
    X(CHOSEN_REJECTED,   "chosen_rejected")   /* {"prompt":..,"chosen":..,"rejected":..} */ \
    X(LABELLED,          "labelled")          /* {"prompt":..,"completion":..,"label":true} */ \
    X(CLASSIFIED,        "classified")        /* {"text":"..","text_pair":"..","label":"name" | 1 | [..]} */

#define GD_ROW_FORMAT_ENUM(name, wire) GD_ROW_##name,
enum gd_row_format { GD_ROW_FORMAT_LIST(GD_ROW_FORMAT_ENUM) GD_ROW_FORMAT_COUNT };
#undef GD_ROW_FORMAT_ENUM
const char *gd_row_format_name(enum gd_row_format format);

/* An unknown field is an error in chat, prompt_completion and preference rows. The other files carry columns of their own;
 * there only one that looks like a misspelt field is. All formats become one of two shapes: messages or prompt +
 * completion. A row with two answers (preference, chosen_rejected) holds the chosen one there, and the other one in
 * rejected_messages or rejected; a labelled row says whether its answer is desirable. Rows of every format may name a task:
 * "task", a string or a whole number; those that become messages may bring "chat_template_kwargs" (OpenAI's preference rows in
 * "input"). */
struct gd_row {
    enum gd_row_format format;
    cJSON *tree;               /* owned */
    cJSON *messages;           /* owned by tree, or NULL; OpenAI shape after normalisation */
    const cJSON *tools;        /* or NULL */
    const cJSON *template_kwargs; /* free variables of the template (chat.h), of a row with messages; or NULL */
    const char *prompt, *completion; /* or NULL */
    cJSON *rejected_messages;  /* owned by tree, or NULL */
    const char *rejected;      /* or NULL */
    cJSON *gold_messages;      /* of gd_row_parse_gold; owned by tree, or NULL */
    const char *gold;          /* or NULL */
    bool desirable;            /* of a labelled row */
    const char *text, *text_pair; /* of a classified row; text_pair NULL: it has one text */
    const cJSON *label;        /* of it: a name, a whole number, or a list of those */
    bool has_reference;        /* of a row with two answers: it brings ref_chosen_logps and ref_rejected_logps */
    double margin;             /* of a row with two answers: by how much the chosen one is better, as TRL has it; 0 */
    double reference[2];       /* these: log p of the whole answers under a reference, as TRL keeps them */
    bool incomparable;         /* stays after an error: all that is wrong is that answers are identical or empty */
    char task[GD_TASK_NAME_MAX + 1]; /* "" where the row names none; a whole number is its decimal digits */
};

/* text: one line without its newline. line: 1-based, for errors. purpose is training (an assistant turn is required). */
GD_MUST_CHECK bool gd_row_parse(struct gd_row *row, const char *text, size_t length, int64_t line,
                                struct gd_error *err);
void gd_row_release(struct gd_row *row);
static inline bool gd_row_is_pair(const struct gd_row *row)
{
    return row->rejected_messages != NULL || row->rejected != NULL;
}

/* The third answer of a row with two, its member `reference`: a text or messages as the other two are. */
GD_MUST_CHECK bool gd_row_parse_gold(struct gd_row *row, struct gd_error *err);

struct gd_row_problem {
    int64_t line;
    char field[96];
    char reason[256];
};
struct gd_file_report {
    int64_t rows, bad_rows;
    int64_t incomparable_rows; /* preference rows with identical or empty answers; among the problems, but no bad rows */
    int64_t format_rows[GD_ROW_FORMAT_COUNT];
    int64_t messages, longest_row_bytes;
    struct gd_row_problem problems[GD_REPORT_ERRORS_MAX];
    int problem_count;         /* at most GD_REPORT_ERRORS_MAX; bad_rows counts all */
};

/* Reads a whole JSONL file. Returns false only when it cannot be read or is hopeless (empty, binary, too large); bad
 * rows are in the report. CRLF, a BOM and a missing last newline are accepted. */
GD_MUST_CHECK bool gd_file_check(const char *path, struct gd_file_report *report, struct gd_error *err);
/* {"rows":..,"bad_rows":..,"incomparable_rows":..,"formats":{..},"problems":[{"line","field","reason"}]} */
cJSON *gd_file_report_json(const struct gd_file_report *report);
/* "line 3: messages[0].role: ...; line 9: ... (12 bad rows in all)" into err (GD_BAD_FILE). Returns false. */
bool gd_file_report_fail(const struct gd_file_report *report, struct gd_error *err);

#endif
