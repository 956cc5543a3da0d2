/*
 * adapter.h - grafts: what is trained on a frozen base, how it enters the graph, how it is kept.
 *
 * Why      A tuning method is one file here and one line in the registry; what can be trained can be served.
 * Memory   A graft owns its parameters' description; the flat f32 parameter block belongs to whoever made it
 *          (the trainer, or the loaded graft itself).
 * Threads  engine thread
 * Errors   GD_INVALID with param "adapter.FIELD"; GD_BAD_FILE for a broken adapter folder (tensor named).
 * Limits   GD_TARGETS_MAX, GD_ADAPTER_OPTIONS_MAX; ranks up to GD_WEAR_RANK_MAX
 * Life     gd_adapter_config_parse -> gd_graft_create -> sites in graphs ... -> gd_graft_save -> gd_graft_destroy.
 *
 * To add a method: 1 write adapter/NAME.c with `const struct gd_adapter_method gd_adapter_NAME` 2 add its name to
 * adapter_names in meson.build. Requests, GET /v1/tuning/methods, files on disk, training and serving find all they
 * need in its table; what it shares with others is in build.h.
 */
#ifndef GD_ADAPTER_ADAPTER_H
#define GD_ADAPTER_ADAPTER_H

#include "engine/base/json.h"
#include "engine/model/model.h"
#include "engine/model/virtual_rows.h"
#include "engine/tensor/wear.h"

#define GD_TARGETS_MAX 4096
#define GD_ADAPTER_OPTIONS_MAX 16
#define GD_ADAPTER_TEXT_MAX 65536
#define GD_ADAPTER_INTS_MAX GD_VIRTUAL_ROWS_MAX

enum gd_adapter_option_type {
    GD_OPTION_INT,
    GD_OPTION_NUMBER,
    GD_OPTION_BOOL,
    GD_OPTION_CHOICE,            /* one of a closed list of names, by its position; "true" and "false" are JSON's own */
    GD_OPTION_TEXT,              /* text, or null, which is the default */
    GD_OPTION_INTS,              /* a list of integers from min to max, or null, which is the default */
    GD_OPTION_MODULES,           /* module names, dotted suffixes, or, for linear modules, "all-linear" */
};

enum gd_adapter_option_use {
    GD_OPTION_SHAPES,            /* part of what the adapter computes: in PEFT's adapter_config.json, read back from it */
    GD_OPTION_TRAINS,            /* only training uses it: written for the record, not read back */
    GD_OPTION_OURS,              /* only training uses it, and PEFT has no such field */
};

struct gd_adapter_option {
    const char *name;            /* in requests and in PEFT's files */
    enum gd_adapter_option_type type;
    enum gd_adapter_option_use use;
    double min, max;             /* INT, NUMBER */
    double fallback;             /* value when absent from a request; times the value of `times` where that is given */
    const char *times;           /* an option before this one, or NULL */
    bool of_data;                /* a job that goes on from a model finds it anew in its own data */
    double peft_fallback;        /* what absence from adapter_config.json means */
    const char *modules;         /* MODULES: the fallback, names separated by commas */
    const char *const *choices;  /* CHOICE: the names, NULL at the end */
    const char *help;
};

struct gd_modules {
    char **names;
    int count;                   /* <= GD_TARGETS_MAX */
};

struct gd_ints {
    int32_t *values;
    int count;                   /* <= GD_ADAPTER_INTS_MAX; 0: null */
};

/* Resolved options of a graft, by position in the method's table. */
struct gd_adapter_config {
    const struct gd_adapter_method *method;
    bool finished;               /* of a graft that has been trained: limits on what may be trained do not bind it */
    double values[GD_ADAPTER_OPTIONS_MAX];
    struct gd_modules modules[GD_ADAPTER_OPTIONS_MAX];
    char *texts[GD_ADAPTER_OPTIONS_MAX];
    struct gd_ints ints[GD_ADAPTER_OPTIONS_MAX];
    struct gd_modules tasks;     /* of a method by task: their names, by number; not among the options */
    struct gd_modules labels;    /* of a classifier: what it tells apart; its head is beside the method's parameters (head.h) */
    bool multi_label;            /* a text has any number of them, else one */
    bool score;                  /* a reward model: a head of one score beside the method's parameters */
};
void gd_adapter_config_release(struct gd_adapter_config *config);

/* `json`: the request's "adapter" object or NULL (then all defaults of "lora"). Unknown fields, fields of other methods
 * and values out of range are errors naming adapter.FIELD. Needs no model. */
GD_MUST_CHECK bool gd_adapter_config_parse(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err);
/* The same, resolved, as it is echoed in the job. */
cJSON *gd_adapter_config_json(const struct gd_adapter_config *config);
/* The option must be one of the method's. */
double gd_adapter_value(const struct gd_adapter_config *config, const char *option);
const struct gd_modules *gd_adapter_modules(const struct gd_adapter_config *config, const char *option);
const char *gd_adapter_text(const struct gd_adapter_config *config, const char *option); /* or NULL */
const struct gd_ints *gd_adapter_ints(const struct gd_adapter_config *config, const char *option);

/* An option's value as JSON has it, in requests and in PEFT's files; not for MODULES, TEXT and INTS. */
cJSON *gd_adapter_text_json(const char *text);
cJSON *gd_adapter_ints_json(const struct gd_ints *ints);
/* Member `option->name` of `json`, INTS; stays empty where it is absent. */
GD_MUST_CHECK bool gd_adapter_read_ints(const struct gd_adapter_option *option, const cJSON *json, const char *param_prefix,
                                        struct gd_ints *ints, struct gd_error *err);
cJSON *gd_adapter_value_json(const struct gd_adapter_option *option, double value);
/* Member `option->name` of `json`, a CHOICE; *value stays where it is absent. */
GD_MUST_CHECK bool gd_adapter_choice(const struct gd_adapter_option *option, const cJSON *json, const char *param_prefix,
                                     double *value, struct gd_error *err);

/* The names that a method by task is to know; copied. */
void gd_adapter_set_tasks(struct gd_adapter_config *config, char *const *names, int count);

/* The names of a classifier's labels; copied. */
void gd_adapter_set_labels(struct gd_adapter_config *config, char *const *names, int count, bool multi);

/* Every method with its options, as GET /v1/tuning/methods shows them: an array. */
cJSON *gd_adapter_registry_json(void);

/* Name of a reward model's head in files, as PEFT has it for the task SEQ_CLS. */
#define GD_SCORE_NAME "base_model.model.score.weight"

struct gd_graft_param {
    char name[192];              /* PEFT key: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight */
    int64_t offset;              /* into the flat block, in floats */
    int rank;                    /* of the file's tensor */
    int64_t shape[2];
    int64_t file_shape[4];       /* of a tensor of rank 4, which the block holds as [shape[0]][shape[1]] */
    bool flat;                   /* a graph sees it as a vector */
    bool transposed;             /* the block holds [shape[1]][shape[0]] */
    bool integers;               /* the file holds I32; the block f32 */
    bool apart;                  /* frozen, and kept in a file of its own, which PEFT does not read */
    int piece, pieces;           /* if not 0 of 0: which of so many equal blocks of columns of the file's tensor this is; all
                                  * pieces follow each other */
    double rate;                 /* factor of the learning rate */
    bool undecayed;              /* weight decay leaves it alone */
};

struct gd_graft {
    struct gd_adapter_config config;
    const struct gd_adapter_method *method;
    const struct gd_model *model;
    struct gd_graft_param *params; /* trained ones, then frozen ones that belong to the file */
    int param_count, frozen_param_count;
    int64_t parameter_count;     /* trained floats: the head of the flat block */
    int64_t frozen_count;        /* frozen floats after them */
    int head_params;             /* of a classifier's head: the last trained ones; 0: it is none */
    double scale;                /* of a low-rank product */
    double dropout;              /* of the input of a site's own part */
    bool noisy;                  /* its training draws other numbers too (noise_key) */
    int *site_param;             /* [slot] -> index of its first param, -1 where untouched */
    struct gd_virtual_rows virtual_rows;
    struct gd_picks *picks;      /* of methods that train the base's own tensors (picks.h); else NULL */
    char summary[256];           /* what was chosen, for people; or empty */
    bool bakes;                  /* what is kept is computed from what is trained, which only a checkpoint's state holds; set by
                                  * create, never for a finished graft */
    /* Called between the parts of a long init; false: stop, what has been made is of no use. NULL: nobody asks. */
    bool (*between)(void *context);
    void *between_context;
    float *block;                /* parameters: loaded grafts own theirs; else NULL (the trainer holds them) */
    /* For serving, made by gd_graft_load; a whole tensor's values in the block are then their difference from the base's. */
    int task;                    /* of a method by task: what it is worn for; -1: the mean of all */
    struct gd_wear_part *wear;   /* [slot] */
    bool adopted;                /* the device has what they point at */
    enum gd_wear_depth depth;
    float **derived;             /* what the parts need beside the block (gd_graft_derive) */
    int derived_count;
    int64_t derived_floats;
    float *prefix;               /* keys and values of the virtual rows, [layer][key, value][row][width of keys], then those of
                                  * long sequences where the model has a rope for them (config.long_from); or NULL */
    char digest[65];             /* of everything that changes what the graft computes */
};

/* The sites that grafts touch have one number, the slot: linear sites first (slot = index), then norms, then blocks, then
 * the embedded tokens, then the matrices of embedding and head. */
int gd_slot_count(const struct gd_model *model);
int gd_slot_of(const struct gd_model *model, const struct gd_site *site);
const struct gd_site *gd_slot_site(const struct gd_model *model, int slot);
/* Of the matrix of the vocabulary product. */
int gd_slot_of_head(const struct gd_model *model);

/* Floats of the flat block. */
static inline int64_t gd_graft_floats(const struct gd_graft *graft)
{
    return graft->parameter_count + graft->frozen_count;
}

struct gd_graft_training;
struct gd_safetensors;

/* What a method that chooses its parameters chooses by. */
struct gd_graft_source {
    const struct gd_safetensors *file; /* what was chosen before: the tensors of a saved graft. NULL: choose now. */
    uint64_t seed;
    /* Sums of squared gradients of the parameters of `probe`, as its init leaves them: the gradient of the mean loss of a batch,
     * over up to `batches` batches of `batch_size` training rows. squares: [probe->parameter_count]. NULL: no rows are at hand. */
    bool (*squares)(void *context, const struct gd_graft *probe, int batches, int batch_size, float *squares, struct gd_error *err);
    void *context;
};

struct gd_adapter_method {
    const char *name, *peft_type, *paper;
    const char *help;
    const struct gd_adapter_option *options;
    int option_count;
    const char *anchor;          /* end of the name of the tensor that every touched module has one of; ends, separated by commas; NULL: it touches none */
    const char *peft_fields;     /* JSON: further members of adapter_config.json, as constant as the method */
    const char *const *refused;  /* NULL at the end: members that would change the mathematics if they were set */
    bool shares_pass;            /* its grafts touch linear sites alone, change a row by nothing but that row and their own parameters, and
                                  * take the base's product from gd_graft_base: jobs may train side by side (group.h) */
    bool by_task;                /* rows of its training data name tasks (gd_graft_training_segments, gd_graft_wear_task) */
    /* What adapter_config.json holds beside options and refused members, once the options are read: NULL: nothing. */
    bool (*check_file)(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err);
    /* Before create, or NULL: fills picks. Its loaded grafts take their targets from there. */
    bool (*choose)(struct gd_graft *graft, const struct gd_graft_source *source, struct gd_error *err);
    /* Fills params, site_param, scale, dropout. Targets that match nothing: an error listing what exists. */
    bool (*create)(struct gd_graft *graft, struct gd_error *err);
    void (*init)(const struct gd_graft *graft, float *block, uint64_t seed);
    /* Fills the block of a job that goes on from a graft by task that is not like its own; `from` was read, not readied. With
     * from NULL: whether a job may start from the base alone; with block NULL: only whether it may. NULL: from its like only. */
    bool (*start)(const struct gd_graft *graft, struct gd_graft *from, uint64_t seed, float *block, struct gd_error *err);
    /* A touched site in a training or evaluation graph; params: the site's own. NULL: the method touches none such. */
    struct gd_value *(*linear)(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params);
    struct gd_value *(*norm)(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                             struct gd_value *x, struct gd_value *w, struct gd_value *bias, double eps,
                             struct gd_value *const *params);
    /* The matrix [V, width] to use at the embedding or the head. */
    struct gd_value *(*table)(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                              struct gd_value *w, struct gd_value *const *params);
    struct gd_value *(*block)(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                              struct gd_value *input, struct gd_value *output, struct gd_value *const *params);
    /* A term of its own in the training loss, f32 [1]; params: the whole graft's. NULL, as a hook or a
     * result: none. */
    struct gd_value *(*penalty)(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params);
    /* Embedded tokens, act [T, width]; virtual rows are among them already, as virtual_rows says; params: all of them. */
    struct gd_value *(*embed)(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                              struct gd_value *const *params);
    /* Keys (after rope) and values of a layer, act [T, width of keys] each; params: all of them. */
    void (*kv)(struct gd_graft_training *training, struct gd_graph *g, int layer, struct gd_value **k, struct gd_value **v,
               struct gd_value *const *params);
    /* Keys and values of the virtual rows of a loaded graft, as graft->prefix has them. NULL: the model makes them of the
     * embeddings that are the first parameter. */
    void (*prefix)(const struct gd_graft *graft, float *prefix);
    /* Fills the frozen parameters that are kept apart, from the base: a graft that PEFT wrote lacks them. */
    void (*derive)(const struct gd_graft *graft, float *block);
    /* After each step of the optimiser: where the parameters must stay. NULL: anywhere. */
    void (*after_step)(const struct gd_graft *graft, float *block);
    /* Further members of adapter_config.json. NULL: none. */
    void (*describe)(const struct gd_graft *graft, cJSON *json);
    /* The same for serving: what rows that wear the graft do at that site (zero bytes: nothing). */
    void (*wear)(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part);
    /* Where what is kept differs from what is trained, all three: the options of the kept graft, changed in place (false: no
     * difference with these options), and the blocks. Grafts that bake have `keep` alone. */
    bool (*kept_options)(struct gd_adapter_config *config);
    bool (*keep)(const struct gd_graft *graft, const float *block, const struct gd_graft *kept, float *kept_block,
                 struct gd_error *err);
    void (*resume)(const struct gd_graft *graft, float *block, const struct gd_graft *kept);
};
extern const struct gd_adapter_method *const gd_adapter_table[];
extern const int gd_adapter_count;
const struct gd_adapter_method *gd_adapter_find(const char *name); /* NULL: unknown */

GD_MUST_CHECK bool gd_graft_create(struct gd_graft **out, const struct gd_model *model,
                                   const struct gd_adapter_config *config, struct gd_error *err);
GD_MUST_CHECK bool gd_graft_create_by(struct gd_graft **out, const struct gd_model *model,
                                      const struct gd_adapter_config *config, const struct gd_graft_source *source,
                                      struct gd_error *err);
void gd_graft_destroy(struct gd_graft *graft);
/* The head of a reward model, [width] in the graft's block: its last trained parameter. NULL: it is none. */
static inline const float *gd_graft_score(const struct gd_graft *graft, const float *block)
{
    return graft->config.score ? block + graft->params[graft->param_count - 1].offset : NULL;
}

/* What a loaded graft holds: its numbers, what is derived from them, its prefix. */
size_t gd_graft_bytes(const struct gd_graft *graft);
void gd_graft_init(const struct gd_graft *graft, float *block, uint64_t seed);
/* End of the run of trained floats from `begin` on that share one factor of the learning rate, and either all decay or none. */
int64_t gd_graft_rate_run(const struct gd_graft *graft, int64_t begin, double *factor);
bool gd_graft_decays(const struct gd_graft *graft, int64_t at);

/* Sites for a training graph: declares one value per trained parameter (in param order, [param_count]): PARAMs and
 * dropout when `training` (dropout_key: i32 [4] input, NULL without dropout), plain inputs for evaluation. */
struct gd_graft_training {
    const struct gd_graft *graft;
    struct gd_value **params;
    struct gd_value *dropout_key;
    struct gd_value *noise_key;  /* the same value, in a training pass of a noisy graft */
    struct gd_value *cu_seqlens; /* of a method by task: i32 [S+1], the task of each segment and its owner, i32 [S] */
    struct gd_value *tasks, *owner;
    struct gd_sites sites;
    struct gd_graft_view {       /* the first rows of a frozen parameter */
        const struct gd_graft_param *param;
        struct gd_value *value;
    } *views;
    int view_count;
    struct gd_value *base_x, *base_y; /* in a group: y is the base's product of x, made for all members at once */
    struct gd_value *made;       /* what a method makes once for all sites of a graph */
    struct gd_value *index[GD_ROW_INDICES]; /* i32 [T] inputs, NULL where the graph needs none */
    struct gd_graft_list {       /* I32 lists that the graft owns */
        struct gd_value *value;
        const int32_t *data;
    } *lists;
    int list_count;
};
void gd_graft_training_sites(struct gd_graft_training *training, struct gd_graph *graph, const struct gd_graft *graft,
                             bool training_pass);
/* The segments of the batch, for methods by task: `tasks` is an input then, and in a noisy training pass `owner`, the row of the
 * batch that a segment belongs to. Before the graph is built. */
void gd_graft_training_segments(struct gd_graft_training *training, struct gd_graph *graph, struct gd_value *cu_seqlens);
struct gd_plan;
/* Binds all parameters, trained and frozen, to a flat block. */
void gd_graft_training_bind(const struct gd_graft_training *training, struct gd_plan *plan, float *block);
void gd_graft_training_release(struct gd_graft_training *training);

/* The small tables of a serving graph, which all of its rows share (tables.c): f32 inputs. */
#define GD_GRAFT_TABLES_MAX 3
struct gd_graft_tables {
    struct {
        const struct gd_site *site;
        struct gd_value *value;
        float *data;
    } table[GD_GRAFT_TABLES_MAX];
    int count;
};
struct gd_value *gd_graft_tables_value(struct gd_graft_tables *tables, struct gd_graph *graph, const struct gd_site *site);
void gd_graft_tables_bind(struct gd_graft_tables *tables, struct gd_plan *plan);
/* Before a run; wear: of a graft, NULL: of the base. Rows of grafts whose gd_graft_tables_key is the same may share a run. */
void gd_graft_tables_fill(const struct gd_graft_tables *tables, const struct gd_model *model, const struct gd_wear_part *wear);
void gd_graft_tables_release(struct gd_graft_tables *tables);
const void *gd_graft_tables_key(const struct gd_graft *graft); /* NULL: the base's own (graft NULL, too) */

/* Sites for a serving graph: what any graft of up to `depth` does at them, read from `wear` (handle) and `tables`. */
struct gd_graft_serving {
    const struct gd_model *model;
    struct gd_value *wear;
    enum gd_wear_depth depth;
    struct gd_graft_tables tables;
    struct gd_sites sites;
};
void gd_graft_serving_sites(struct gd_graft_serving *serving, struct gd_graph *graph, const struct gd_model *model,
                            enum gd_wear_depth depth);

/* PEFT folder: adapter_config.json, adapter_model.safetensors, README.md (model card), graftd.json (digests of base,
 * tokenizer, template; job id; seed). Written inside `folder` (a gd_dir_tx path); the caller commits. `extra`: members
 * merged into graftd.json. */
GD_MUST_CHECK bool gd_graft_save(const struct gd_graft *graft, const float *block, const char *folder,
                                 const cJSON *extra, struct gd_error *err);
/* Where a method keeps other parameters than it trains: *kept becomes the graft of what is kept, with its block. NULL: both
 * are the same. */
GD_MUST_CHECK bool gd_graft_keep(const struct gd_graft *graft, const float *block, struct gd_graft **kept, struct gd_error *err);
/* The other way: the block (trained and frozen) of `graft` from what was kept of it. */
GD_MUST_CHECK bool gd_graft_resume(const struct gd_graft *graft, const struct gd_graft *kept, float *block, struct gd_error *err);

/* A PEFT folder, or a GGUF LoRA file (export.h). Strict account: every tensor used, every target filled. Digests in graftd.json that differ from the model's are an
 * error naming both (absent graftd.json, as PEFT writes: accepted). */
GD_MUST_CHECK bool gd_graft_load(struct gd_graft **out, const struct gd_model *model, const char *folder,
                                 struct gd_error *err);
/* What is served needs: gives the device what its parts point at, and makes its prefix where it has virtual rows. */
GD_MUST_CHECK bool gd_graft_prepare(struct gd_graft *graft, struct gd_error *err);
GD_MUST_CHECK bool gd_graft_adopt(struct gd_graft *graft, struct gd_error *err);
GD_MUST_CHECK bool gd_graft_make_prefix(struct gd_graft *graft, struct gd_error *err);
/* Numbers of one of the prefix's tables; bytes of all. */
size_t gd_graft_prefix_floats(const struct gd_graft *graft);
size_t gd_graft_prefix_bytes(const struct gd_graft *graft);
/* The same without what serving needs: the block holds the parameters as they are in the file. */
GD_MUST_CHECK bool gd_graft_read(struct gd_graft **out, const struct gd_model *model, const char *folder,
                                 struct gd_error *err);

#define GD_TASK_AVERAGE "average" /* the mean of all tasks, unless one is called so */

/* Chooses what a loaded graft is worn for. `task`: a name; NULL: the only one there is. A graft without tasks takes NULL only. */
GD_MUST_CHECK bool gd_graft_wear_task(struct gd_graft *graft, const char *task, struct gd_error *err);

#endif
