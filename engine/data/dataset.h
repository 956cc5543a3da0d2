/*
 * dataset.h - a training file as token rows, packed into micro-batches.
 *
 * Why      Tokenised once, packed without padding, drawn in an order that (seed, epoch) alone decides.
 * Memory   The dataset owns all tokens (i32) and weights (f32); batches are views plus small arrays of their own.
 * Threads  Built by one thread; read-only afterwards.
 * Errors   GD_BAD_FILE naming line and reason; GD_CONTEXT naming the lines that are too long under GD_OVERLONG_REFUSE;
 *          GD_NO_MEMORY. Over-long rows per policy, counted.
 * Limits   tokens of a row <= context.
 * Life     gd_dataset_open -> gd_batch_plan_* -> gd_dataset_destroy.
 */
#ifndef GD_DATA_DATASET_H
#define GD_DATA_DATASET_H

#include "engine/data/classes.h"
#include "engine/model/virtual_rows.h"
#include "engine/text/chat.h"

#define GD_BATCH_SEGMENTS_MAX 256 /* rows in one micro-batch */
#define GD_DATASET_LINES_NAMED 8

enum gd_overlong { GD_OVERLONG_REFUSE, GD_OVERLONG_TRUNCATE, GD_OVERLONG_DROP };

struct gd_dataset_options {
    int context;                 /* longest segment in tokens: a row, or each side of a pair */
    int virtual_rows;            /* what a graft takes of the model's context, for the error; the context above is without them */
    enum gd_overlong overlong;
    bool pairs;                  /* rows must have two answers; else one. A row of the other kind is an error */
    bool triples;                /* with pairs: and a third one */
    bool labelled;               /* rows must have one answer and a label; one with two answers is a row each, as TRL does it */
    bool drop_incomparable;      /* leave out preference rows with identical or empty answers; else they are an error */
    bool apart;                  /* for a model with an encoder: prompt and answer are two texts, each within the context */
    bool whole_sides;            /* nothing is shared by the sides of a pair: to compare with */
    const struct gd_classes *classes; /* rows must be classified ones; NULL: none is */
    const struct gd_tasks *tasks; /* a row that names none of these is an error; NULL: the file's own */
    /* Called now and then with rows done (of the file's rows when known, else 0); false stops. May be NULL. */
    bool (*progress)(void *context, int64_t rows_done, int64_t rows_total);
    void *progress_context;
};

struct gd_dataset_row {
    int64_t line;
    int64_t offset;              /* into tokens / weights */
    int32_t length;              /* of a pair: all sides, the chosen one first, each with the prompt */
    int32_t trained;             /* tokens with weight != 0 as targets */
    int32_t chosen;              /* of a pair: tokens of the chosen side; 0: no pair */
    int32_t gold;                /* of a row with three answers: tokens of the third side; else 0 */
    bool desirable;              /* of a labelled row */
    float importance;            /* of it, 1 unless its prompt weighs more or less (train/matching.h) */
    float margin;                /* of a pair: by how much the chosen answer is better, as the row says */
    bool has_reference;          /* the row's file brings what stands in reference */
    float reference[3];          /* log p of each of its answers under a reference, where known */
    int32_t task;                /* its number in `tasks`; -1: the row names none */
    int32_t second;              /* of a classified one: where its second text begins; 0: it has one */
    int64_t label_at;            /* of it: its labels are data->labels[label_at .. label_at + label_count) */
    int32_t label_count;
    int32_t encoded;             /* of a row whose prompt and answer are apart: tokens of the prompt; else 0 */
    int32_t shared;              /* of a pair: first tokens that both sides have in common and a batch holds once */
};

struct gd_dataset {
    int32_t *tokens;
    float *weights;              /* weight of each token as a target (its own, not shifted) */
    bool pairs, triples, labelled, apart; /* as the options: every row is two segments, or three, or one */
    int32_t start_id;            /* with apart: what answers stand behind in batches; set by whoever trains */
    struct gd_virtual_rows virtual_rows; /* what its batches put before each segment; set by whoever trains */
    int long_from;                       /* rows of longer segments stand at positions with GD_POSITION_LONG; 0: none; set likewise */
    bool classified, multi;      /* rows have labels, one each or any number (multi) */
    int32_t *labels;
    int64_t label_total;
    struct gd_tasks classes;     /* the names of labels, with this file's counts */
    const double *class_weights; /* [classes.count], or NULL: a row counts as its label does; set by whoever trains */
    struct gd_dataset_row *rows;
    struct gd_tasks tasks;       /* as the options have them, with this file's counts, or the file's own */
    int64_t taskless_rows, taskless_line; /* rows that name none, and the first */
    int64_t row_count, token_count, trained_token_count;
    int64_t dropped_rows, truncated_rows, truncated_tokens, untrained_rows; /* untrained: kept out, counted */
    int64_t incomparable_rows;   /* kept out, counted */
    /* The first lines that were too long, those without a trained token, those with nothing to compare; the longest row, in tokens. */
    int64_t overlong_lines[GD_DATASET_LINES_NAMED], untrained_lines[GD_DATASET_LINES_NAMED];
    int64_t incomparable_lines[GD_DATASET_LINES_NAMED];
    int64_t longest_row_tokens;
};

GD_MUST_CHECK bool gd_dataset_open(struct gd_dataset **out, const char *path, const struct gd_chat *chat,
                                   const struct gd_dataset_options *options, struct gd_error *err);
void gd_dataset_destroy(struct gd_dataset *dataset);

/* A row as tokens with loss weights. side: 0, or of a pair 1 for the rejected one, 2 for the third one. */
GD_MUST_CHECK bool gd_row_encode(const struct gd_chat *chat, const struct gd_row *row, int side,
                                 struct gd_chat_encoding *encoding, struct gd_error *err);
/* The same of a row with one answer, for a model with an encoder. */
GD_MUST_CHECK bool gd_row_encode_apart(const struct gd_chat *chat, const struct gd_row *row, struct gd_chat_encoding *encoding,
                                       struct gd_error *err);

/* Rows of a batch that row `row` takes: its tokens, those in common once, and virtual rows before what continues no other. */
static inline int32_t gd_dataset_row_space(const struct gd_dataset *dataset, int64_t row)
{
    const struct gd_dataset_row *entry = &dataset->rows[row];
    int beginnings = (entry->chosen > 0 && entry->shared == 0 ? 2 : 1) + (entry->gold > 0);
    return entry->length - entry->shared + dataset->virtual_rows.count * beginnings;
}

/* What a classified row counts in the loss: as its label does, if it has one label and they are weighted. */
static inline double gd_dataset_class_weight(const struct gd_dataset *dataset, int64_t row)
{
    bool weighted = dataset->class_weights != NULL && !dataset->multi;
    return weighted ? dataset->class_weights[dataset->labels[dataset->rows[row].label_at]] : 1;
}

/* One packed micro-batch. T = capacity; rows beyond `used` are padding (label -100, weight 0). */
struct gd_batch {
    int capacity, used;          /* rows: tokens and virtual ones */
    int segment_count;           /* rows in it; with pairs twice as many: chosen, rejected, chosen, ... */
    const struct gd_dataset *dataset; /* that its rows are of */
    int32_t *ids;                /* [capacity] */
    int32_t *types;              /* [capacity]: 1 in the second text of a classified row, else 0 */
    int32_t *positions;          /* [capacity], restarting at 0 in each segment without prefix */
    int32_t *cu_seqlens;         /* [segment_max + 1], tail repeats `used` */
    int32_t *prefix;             /* [2 * segment_max]: rows [begin, end) that a segment continues; 0, 0: it has no prefix */
    int32_t *tasks;              /* [segment_max]: the task of each segment; -1: none */
    int32_t *owner;              /* [segment_max]: which of its rows a segment belongs to */
    int32_t *labels;             /* [capacity]: the next token of the same segment, -100 where none or weight 0; a segment's
                                  * first token is nobody's target */
    float *weights;              /* [capacity]: weight of labels[t] */
    float *reference;            /* [segment_max]: what the rows have of the reference, 0 where nothing */
    int64_t *row_index;          /* [rows in it]: rows of the dataset */
    int32_t *index[GD_ROW_INDICES]; /* [capacity] each */
    bool *desirable;             /* [rows in it]: of labelled rows */
    float *importance;           /* [rows in it] */
    float *margin;               /* [rows in it]: of pairs */
    bool mismatched;             /* its answers are other rows': what a row has of the reference does not hold */
    int segment_max;
    /* Where prompt and answer are apart: ids are the answers, each behind `start_id` and without its last token, and these the
     * prompts, segment by segment. */
    int encoder_capacity, encoder_used;
    int32_t *encoder_ids;        /* [encoder_capacity] */
    int32_t *encoder_cu_seqlens; /* [segment_max + 1] */
};
void gd_batch_init(struct gd_batch *batch, int capacity_max, int segment_max);
void gd_batch_release(struct gd_batch *batch);
/* capacity: for all tokens of the rows; where prompt and answer are apart, each side gets what it needs of it. */
void gd_batch_fill(struct gd_batch *batch, const struct gd_dataset *dataset, const int64_t *row_index, int row_count,
                   int capacity);
/* The same batch as a bare base sees it: without virtual rows. */
void gd_batch_strip(struct gd_batch *batch, const struct gd_batch *from, int capacity);

/* The prompts of the rows, each with the answer of its partner: what mismatched answers cost (Ethayarajh et al. 2024). One that
 * is longer than `longest` is cut at it. */
void gd_batch_fill_mismatched(struct gd_batch *batch, const struct gd_dataset *dataset, const int64_t *row_index,
                              const int64_t *partner, int row_count, int longest, int capacity);
/* Tokens of one of them, before it is cut; of the answer of a row with one. */
int32_t gd_mismatched_length(const struct gd_dataset *dataset, int64_t row, int64_t partner);
int32_t gd_answer_length(const struct gd_dataset *dataset, int64_t row);
/* The prompts alone, without labels. */
void gd_batch_fill_prompts(struct gd_batch *batch, const struct gd_dataset *dataset, const int64_t *row_index, int row_count,
                           int capacity);
int32_t gd_prompt_length(const struct gd_dataset *dataset, int64_t row);

/* Labelled tokens of a segment, those of its prefix with them. */
int gd_batch_labelled(const struct gd_batch *batch, int segment);

/* The order of rows in an epoch: Fisher-Yates with Philox(seed, SHUFFLE, epoch). order: [row_count]. */
void gd_epoch_order(int64_t *order, int64_t row_count, uint64_t seed, int epoch);

/*
 * An optimiser step takes batch_size rows (the next ones in epoch order; the last step of an epoch may have
 * fewer) and divides them into `leaf_count` leaves (row i of the step to leaf i % leaf_count); inside a leaf rows are packed first-fit in
 * order into micro-batches of at most token_budget tokens and GD_BATCH_SEGMENTS_MAX segments (a longer row is alone; both
 * sides of a pair stay together). Pure function of its arguments.
 * Fills micro_begin[m]: where micro-batch m starts in `rows` (reordered by leaf), leaf_of[m]. Returns the number of micro-batches.
 */
int gd_step_pack(const struct gd_dataset *dataset, const int64_t *step_rows, int step_row_count, int leaf_count,
                 int token_budget, int64_t *rows_out, int *micro_begin, int *leaf_of);

/* Tokens rounded up to the bucket: multiples of 64 to 512, of 128 to 2048, of 256 beyond. */
int gd_token_bucket(int tokens);

#endif
