/*
 * virtual_rows.h - what a graft puts before the tokens of every sequence, and how it counts these tokens.
 *
 * Why      Soft prompts and prefixes lengthen sequences. Batches, losses and the key/value cache must know by how much,
 *          and nothing else of the method.
 * Memory   Borrowed from the graft, which outlives what reads it.
 * Threads  engine thread
 * Errors   none
 * Limits   GD_VIRTUAL_ROWS_MAX; count and tokens together fit the model's context
 * Life     filled by gd_graft_create; constant afterwards.
 *
 * Virtual row j stands at position j, the first token at position `count`. Usage counts and echoes never show them.
 */
#ifndef GD_MODEL_VIRTUAL_ROWS_H
#define GD_MODEL_VIRTUAL_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#define GD_VIRTUAL_ROWS_MAX 8192

/* In training, where row t of a batch comes from; -1: not from there. */
enum gd_row_index {
    GD_ROW_VIRTUAL,              /* number of the virtual row */
    GD_ROW_TOKEN,                /* t itself where t is a token, that is no virtual row */
    GD_ROW_TABLE,                /* index of the token in its sequence, where a table has an entry for it */
    GD_ROW_INDICES,
};

struct gd_virtual_rows {
    int count;                   /* 0: none */
    const int32_t *ids;          /* [count] tokens that the rows stand for; NULL: none, their embeddings start at zero */
    const float *weights;        /* [count] weight of ids[j] as a target of row j - 1 in a loss over one answer; or NULL */
    int target_count;            /* of ids, those that are targets: what each adds to a loss's divisor */
    const int32_t *learned;      /* [count] the row's own number, or -1 where it stays what it stands for; NULL: all learn */
    int table_rows;              /* tokens with a smaller index are changed by their index; 0: none */
    bool prompt_only;            /* of these, only those before the first trained token, or of a request's prompt */
};

#endif
