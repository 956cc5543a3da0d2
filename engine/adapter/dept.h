/*
 * dept.h - what DePT shares with EPT, whose result is one: a short prompt, and a table of rank r over positions.
 *
 * Why      EPT trains more around the same two parts and is kept and served as DePT.
 * Memory   The graft's.
 * Threads  engine thread
 * Errors   GD_INVALID with param "adapter.FIELD"
 * Limits   r up to GD_WEAR_RANK_MAX
 * Life     inside the methods' functions
 */
#ifndef GD_ADAPTER_DEPT_H
#define GD_ADAPTER_DEPT_H

#include "engine/adapter/build.h"

enum gd_dept_start { GD_DEPT_RANDOM, GD_DEPT_VOCABULARY, GD_DEPT_TEXT };
extern const char *const gd_dept_starts[];
enum gd_dept_reach { GD_DEPT_PROMPT, GD_DEPT_SEQUENCE };
extern const char *const gd_dept_reaches[];

/* The options that both have, as designated initialisers of struct gd_adapter_option. */
#define GD_DEPT_OPTIONS                                                                                                       \
    {.name = "num_virtual_tokens", .type = GD_OPTION_INT, .max = GD_VIRTUAL_ROWS_MAX, .fallback = 40,                         \
     .help = "Rows before the tokens; they count against the context, but not as tokens of usage."},                          \
    {.name = "r", .type = GD_OPTION_INT, .max = GD_WEAR_RANK_MAX, .fallback = 30, .peft_fallback = 8,                         \
     .help = "Rank of the table that is added to the embedded tokens by position; 0: none."},                                 \
    {.name = "lora_alpha", .type = GD_OPTION_NUMBER, .min = 1e-6, .max = 1e6, .fallback = 8, .peft_fallback = 8,              \
     .help = "The table is scaled by lora_alpha / sqrt(r)."},                                                                 \
    {.name = "max_length", .type = GD_OPTION_INT, .max = 1 << 20, .peft_fallback = 256,                                       \
     .help = "Positions that it has; later tokens are left alone. 0: what the context has beside the rows, at most 256."},    \
    {.name = "apply_to", .type = GD_OPTION_CHOICE, .choices = gd_dept_reaches,                                                \
     .help = "Which tokens it is added to: the prompt (what stands before the first trained token), or the sequence."},       \
    {.name = "prompt_tuning_init", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = gd_dept_starts,              \
     .fallback = GD_DEPT_VOCABULARY, .help = "Where the rows start: RANDOM, SAMPLE_VOCAB or TEXT."},                          \
    {.name = "prompt_tuning_init_text", .type = GD_OPTION_TEXT, .use = GD_OPTION_TRAINS,                                      \
     .help = "With TEXT: text of at most num_virtual_tokens tokens, repeated where it has fewer."},                           \
    {.name = "budget_tokens", .type = GD_OPTION_INT, .use = GD_OPTION_OURS, .max = GD_VIRTUAL_ROWS_MAX,                       \
     .help = "Not 0: no more numbers than a prompt of so many tokens has."},                                                  \
    {.name = "prompt_lr_ratio", .type = GD_OPTION_NUMBER, .use = GD_OPTION_OURS, .max = 1e3, .fallback = 1,                   \
     .help = "The rows learn at this multiple of the learning rate."},                                                        \
    {.name = "embedding_update_lr_ratio", .type = GD_OPTION_NUMBER, .use = GD_OPTION_OURS, .max = 1e3, .fallback = 0.02,      \
     .help = "Everything else learns at this multiple of it."}

/* Resolves max_length; positions and rows must fit the context. */
GD_MUST_CHECK bool gd_dept_measure(struct gd_graft *graft, struct gd_error *err);
/* Then adds P, A and B as the first parameters, as many of them as there are. */
GD_MUST_CHECK bool gd_dept_create(struct gd_graft *graft, struct gd_error *err);
/* Their indices, -1 where one is absent. */
struct gd_dept_parts {
    int p, a, b;
};
struct gd_dept_parts gd_dept_parts(const struct gd_graft *graft);
void gd_dept_init(const struct gd_graft *graft, float *block, uint64_t seed);
/* x + lora_alpha / sqrt(r) A[position] B. */
struct gd_value *gd_dept_update(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                                struct gd_value *const *params);
void gd_dept_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                  struct gd_wear_part *part);
void gd_dept_describe(const struct gd_graft *graft, cJSON *json);
double gd_dept_scale(const struct gd_graft *graft);

#endif
