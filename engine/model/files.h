/*
 * files.h - what a model's files hold, the same for both formats, and the account of who used which tensor.
 *
 * Why      A tensor that is silently unused, or silently missing, is another model. Each is used exactly once.
 * Memory   Owns the readers (mappings), the table, permutations, aligned copies and sites: all that weights borrow.
 * Threads  Engine thread; read-only once the model is open.
 * Errors   GD_BAD_MODEL naming file and tensor; GD_UNSUPPORTED naming the dtype.
 * Limits   GD_SHARDS_MAX files; heads * head_dim rows of a permutation.
 * Life     gd_files_open_* -> gd_files_fill -> gd_files_close with the model.
 */
#ifndef GD_MODEL_FILES_H
#define GD_MODEL_FILES_H

#include "engine/base/arena.h"
#include "engine/model/gguf.h"
#include "engine/model/model.h"
#include "engine/model/safetensors.h"

#define GD_SHARDS_MAX 4096

struct gd_file_tensor {
    const char *name;        /* as the file spells it */
    const char *file;        /* name of the file */
    const char *dtype_name;
    struct gd_tensor tensor; /* rank -1: more than GD_RANK_MAX dimensions, or (GD_HANDLE) a dtype that is not computed with */
    struct gd_weight *weight; /* made from it; NULL: ignored (and, until the account is closed, not used yet) */
    bool aside;              /* a part of the files' model that is not read, and that copies of it keep */
    bool transposed;         /* the weight is [out, in], the file has [in, out] */
    float added;             /* what the file's numbers are above the weight's (GGUF's Gemma norms) */
    struct gd_weight **stack; /* of a tensor of three dimensions, [stack_count]: what was made of its rows, in order; NULL: `weight` alone */
    int stack_count;
    const int32_t *rows;     /* row i of the weight is row rows[i] of the file; NULL: in order */
};

struct gd_files {
    struct gd_arena arena;
    struct gd_safetensors **shards;
    int shard_count;
    struct gd_gguf *gguf;
    struct gd_file_tensor *tensors;   /* sorted by name */
    int tensor_count;
    uint64_t size_bytes;              /* of all files */
    int32_t *query_rows, *key_rows;   /* permutations, NULL where rows are plain */
    struct gd_site *linear_sites;     /* the linear modules of each layer */
    struct gd_site *norm_sites;       /* the norms of each layer, then the last, then an encoder's last */
    struct gd_site *kv_sites;         /* layers */
    struct gd_site *block_sites;      /* layers * 2: attention, MLP */
    struct gd_site embed_site, hidden_site;
    struct gd_site table_sites[6];    /* those that the model has of embedding, positions, types, head, encoder's and decoder's distances */
    int table_count;
};

/* The weights of a Hugging Face folder: model.safetensors, or the shards of model.safetensors.index.json. */
GD_MUST_CHECK bool gd_files_open_folder(struct gd_files *files, const char *folder, struct gd_error *err);
/* Takes `gguf` over, on failure too. */
void gd_files_take_gguf(struct gd_files *files, struct gd_gguf *gguf, const char *path);
void gd_files_close(struct gd_files *files);
/* The mapping that holds this byte; NULL: it is a copy. */
const struct gd_map *gd_files_map(const struct gd_files *files, const void *data);

/* Makes the model's weights from its files, strictly. gguf: by the names and in the order of GGUF. */
GD_MUST_CHECK bool gd_files_fill(struct gd_model *model, bool gguf, struct gd_error *err);

/* The row of a file for interleaved rope for each row in half-split order: W_file = [heads, dh/2, 2], W = [heads, 2, dh/2].
 * gd_free it. */
int32_t *gd_rope_rows(int heads, int head_dim);

/* The sites of a filled model (site.c). */
void gd_model_make_sites(struct gd_model *model);
/* config, tensor table and samples of the tensors' bytes as one SHA-256 (digest.c). */
void gd_model_make_digest(struct gd_model *model);

/* A table as a value, or what the sites (NULL: none) put in its place. */
struct gd_value *gd_model_table(struct gd_graph *graph, const struct gd_model *model, const struct gd_weight *weight,
                                const struct gd_sites *sites);
struct gd_value *gd_model_embedding(struct gd_graph *graph, const struct gd_model *model, const struct gd_sites *sites);

/* The two formats (load_hf.c, load_gguf.c): config, files, weights, tokenizer, template source. */
GD_MUST_CHECK bool gd_model_load_folder(struct gd_model *model, struct gd_error *err);
GD_MUST_CHECK bool gd_model_load_gguf(struct gd_model *model, struct gd_error *err);

static inline struct gd_files *gd_model_files(const struct gd_model *model)
{
    return model->files;
}

#endif
