/*
 * model.h - a base model: config, frozen weights, tokenizer, chat template, and how to build its graph.
 *
 * Why      One resident base serves all jobs and requests; an architecture is a config mapping, tensor names, flags.
 * Memory   The model owns mapping, weights, tokenizer, chat. Graphs borrow it.
 * Threads  Open and build on the engine thread; tokenizer and chat are read-only for any thread.
 * Errors   GD_BAD_MODEL (file, field, offset), GD_UNSUPPORTED (architecture, tensor type), GD_NOT_FOUND.
 * Limits   GD_LAYERS_MAX, GD_EOS_MAX; sizes in config.h.
 * Life     gd_model_open -> build / encode ... -> gd_model_destroy (after all plans on it).
 */
#ifndef GD_MODEL_MODEL_H
#define GD_MODEL_MODEL_H

#include "engine/model/site.h"
#include "engine/tensor/activation.h"
#include "engine/tensor/graph.h"
#include "engine/tensor/kv.h"
#include "engine/text/chat.h"

#define GD_LAYERS_MAX 512
#define GD_EOS_MAX 8
#define GD_ROUTER_LOSS_MAX 1e3 /* coefficients of the load-balancing loss */

#define GD_LABELS_MAX 4096

/* What a model's class says is on top of its body. */
enum gd_head_kind { GD_HEAD_VOCABULARY, GD_HEAD_NONE, GD_HEAD_MASKED, GD_HEAD_LABELS };

struct gd_family;
struct gd_model_config {
    const struct gd_family *family;
    char architecture[32];      /* its model_type: "llama", "qwen3" */
    int width;                  /* d, hidden_size */
    int embed_width;            /* of the embeddings and of what the head reads: width, unless `projects` */
    bool projects;              /* two linear maps lead from one to the other and back (OPT-350m) */
    int layers, heads, kv_heads, head_dim, ffn_width, vocab;
    int context;                /* max_position_embeddings */
    double norm_eps, rope_theta;
    int rotary_dim;             /* rotated dimensions of a head */
    double attention_factor;    /* multiplies cos and sin (1 unless scaling defines it) */
    float *inv_freq;            /* [rope_tables * rotary_dim/2], scaling applied; owned by the model */
    int rope_tables;            /* 1; 2: the second is for layers that slide (local_rope) or long sequences (long_from) */
    bool local_rope;
    double local_rope_theta, local_attention_factor;
    int long_from;              /* sequences longer than this go by the second table; 0: none does */
    bool learned_positions;     /* of a decoder: a table of positions is added to the embeddings, and nothing is rotated */
    bool qkv_bias, o_bias, mlp_bias, tied;
    bool fused_qkv;             /* q, k, v are the rows of one matrix */
    bool qkv_by_head;           /* head by head: q, k, v of the first, then of the second (GPT-NeoX) */
    bool gated;                 /* the feed-forward part multiplies f(gate x) and up x; else it is f(up x) */
    bool fused_mlp;             /* gate and up are the rows of one matrix */
    bool transposed;            /* linear weights are [in, out] in Hugging Face files (GPT-2) */
    double norm_offset;         /* is added to a norm's weight: 1 where files hold its distance from 1 (Gemma) */
    bool output_norms;          /* what attention and feed-forward part make is normalised too (Gemma 2) */
    bool norm_after;            /* norms stand after the sums, not before the blocks, and none is last (OPT-350m) */
    bool parallel_residual;     /* attention and feed-forward part read the same rows (GPT-NeoX) */
    bool scaled_embed;          /* embeddings are multiplied by sqrt(width), rounded to the table's dtype (Gemma) */
    double embed_scale;         /* that number, or 1 */
    double attention_scale;     /* of the scores; 0 in a family's defaults: 1 / sqrt(head_dim) */
    double score_softcap, logit_softcap; /* 0: none; c: c tanh(x / c) of the scores and of the logits */
    enum gd_activation activation; /* of the feed-forward part */
    int experts;                /* of a layer's feed-forward part; 0: it is dense */
    int experts_chosen;         /* for each token */
    double router_loss_coefficient; /* of the load-balancing loss in training, where a job says nothing else */
    bool qk_norm;               /* each head of q and k is normalised before rope */
    int sliding_window;         /* 0 = none */
    bool slides[GD_LAYERS_MAX]; /* layers that see no further than the window */
    bool layer_norm;            /* norms have means and biases (LayerNorm); else RMSNorm */
    int positions;              /* rows of a learned position table; 0: none */
    int first_position;         /* the row of position 0 */
    int types;                  /* token types; 0: none */
    enum gd_head_kind head;
    bool classifies, masks;     /* head is LABELS, MASKED */
    bool pools;                 /* an encoder has a pooler: a dense layer on its first token */
    bool label_pools;           /* its classifier has one of its own instead (RoBERTa) */
    char **labels;              /* names of what a classifier tells apart; owned by the model */
    int label_count;
    bool multi_label;           /* a text may have any number of them */
    int encoder_layers;         /* the first of the layers, which are those of an encoder; the others look at its rows. 0: no encoder */
    bool scaled_output;         /* with an encoder: hidden states are multiplied by 1/sqrt(width) before the head */
    bool head_optional;         /* the head is the embedding where the files have none */
    int bias_buckets, bias_distance; /* of the position bias (gd_attention_options); 0: none */
    int32_t decoder_start_id;   /* with an encoder: what the decoder's rows begin with */
    int32_t bos_id;             /* -1 = none */
    int32_t eos_ids[GD_EOS_MAX];
    int eos_count;
};

/* Numbers in config->inv_freq; 1, which nothing reads, where nothing is rotated. */
int gd_model_frequencies(const struct gd_model_config *config);

/* How the linear modules' weights are kept in memory. The head, the embedding and vectors are kept as ever. */
enum gd_quantization {
    GD_QUANTIZATION_NONE,       /* laid out in the compute dtype, once for each direction */
    GD_QUANTIZATION_FILE,       /* in the blocks of their file, unpacked in each product */
    GD_QUANTIZATION_NF4,        /* 4-bit NormalFloat in blocks of 64 (QLoRA, Dettmers et al. 2023), unpacked in each product */
    GD_QUANTIZATION_COUNT
};
extern const char *const gd_quantization_names[GD_QUANTIZATION_COUNT]; /* "none", "file", "nf4" */

struct gd_model_layer {
    struct gd_weight *input_norm, *post_norm, *attention_out_norm, *mlp_out_norm;
    struct gd_weight *input_norm_bias, *post_norm_bias;
    struct gd_weight *q_norm, *k_norm; /* [head_dim]; or NULL */
    struct gd_weight *q, *k, *v, *o, *gate, *up, *down;
    struct gd_weight *cross_norm, *cross_q, *cross_k, *cross_v, *cross_o; /* of a decoder beside an encoder; or NULL */
    struct gd_weight *qkv, *gate_up;   /* instead of q, k, v and gate, up; or NULL */
    struct gd_weight *router, **expert_gate, **expert_up, **expert_down; /* [config.experts], instead of gate, up, down; or NULL */
    struct gd_weight *qkv_bias, *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias; /* or NULL */
};

struct gd_model {
    char *id, *path;
    char format[16];                      /* "safetensors" or "gguf" */
    enum gd_quantization quantization;
    struct gd_model_config config;
    struct gd_weight *embed, *final_norm, *head; /* head == embed when tied */
    struct gd_weight *final_norm_bias;    /* final_norm: after a decoder's layers, after an encoder's embeddings */
    struct gd_weight *project_in, *project_out; /* [width, embed_width] and back; or NULL */
    struct gd_weight *positions, *types;  /* learned tables; or NULL */
    struct gd_weight *pool, *pool_bias;   /* encoder.h; or NULL */
    struct gd_weight *label_head, *label_bias; /* [labels, width], [labels]; or NULL */
    struct gd_weight *mask_dense, *mask_dense_bias, *mask_norm, *mask_norm_bias, *mask_bias; /* of a masked LM; or NULL */
    struct gd_weight *encoder_norm, *encoder_bias, *decoder_bias; /* of models with an encoder; biases: [buckets, heads] */
    struct gd_model_layer *layer;         /* [config.layers] */
    struct gd_weight **weights;           /* all of them, for inspect and merge */
    int weight_count;
    int64_t parameter_count;
    struct gd_tokenizer *tokenizer;
    struct gd_chat *chat;
    char *chat_template, *tools_template; /* sources or NULL; tools_template: for what comes with tools */
    char digest[65];                      /* SHA-256 over config, tensor table (names, dtypes, shapes) and a sample of each tensor's bytes */
    char tokenizer_digest[65], template_digest[65];
    void *files;                          /* mappings; model/ only */
};

/* path: a Hugging Face folder or a .gguf file. id: copied. Strict tensor account: a missing, unknown or ill-shaped
 * tensor is an error that names it. */
GD_MUST_CHECK bool gd_model_open(struct gd_model **out, const char *id, const char *path, struct gd_error *err);
void gd_model_destroy(struct gd_model *model);

/* Right after opening. *plain: weights that stay as they were because they are not quantised (FILE) or their rows are not
 * whole blocks (NF4), or because they choose experts; all of them: GD_UNSUPPORTED with param "quantization". */
GD_MUST_CHECK bool gd_model_quantise(struct gd_model *model, enum gd_quantization quantization, int *plain, struct gd_error *err);

/* Gives back the pages of the model's files that this process has touched: after opening, and once weights are laid out. What
 * is needed again is read again. */
void gd_model_forget_files(const struct gd_model *model);

/* Bytes of the mapped files that reading rows of the embedding brings into memory: the kernel maps pages that it has in
 * stretches of 64 KiB (fault_around_bytes, its default), so that many rows come with one. seen: [vocab]. */
size_t gd_model_touched_bytes(const struct gd_model *model, const bool *seen);
/* What `tokens` tokens touch where no two share a stretch, or all of it: a row of b bytes lies in 1 + b / 64 KiB stretches in the mean. */
size_t gd_model_touched_most(const struct gd_model *model, int64_t tokens);

/* Lists the models of a folder: every subfolder with config.json and every NAME.gguf, sorted. Broken entries are
 * listed too (opening says why). Ids are printable and without '/'; a file NAME.gguf beside a folder NAME keeps its
 * whole name as id; hidden entries are skipped. The array and strings are the caller's (gd_model_list_release). */
struct gd_model_entry {
    char *id, *path;
    int64_t created;            /* mtime, Unix seconds */
};
GD_MUST_CHECK bool gd_model_list(const char *folder, struct gd_model_entry **entries, int *count, struct gd_error *err);
void gd_model_list_release(struct gd_model_entry *entries, int count);

/* The symbolic inputs of a packed batch. */
struct gd_model_inputs {
    struct gd_value *ids, *positions;     /* i32 [T] */
    struct gd_value *types;               /* i32 [T]: token types; NULL where the model has none */
    struct gd_value *inv_freq;            /* f32 [gd_model_frequencies]; bind model->config.inv_freq */
    struct gd_value *cu_seqlens;          /* i32 [S+1]: training and scoring; NULL when cache is set */
    struct gd_value *prefix;              /* i32 [2S]: rows that each segment continues (gd_attention), or NULL; the caller adds it */
    struct gd_value *cache;               /* handle of gd_kv_batch: inference; NULL when cu_seqlens is set */
    struct gd_value **expert_load;        /* with experts, where the sum of the layers' loads is put (gd_expert_load); NULL: nobody asks */
    /* Of a model with an encoder: */
    struct gd_value *encoder_ids;         /* i32 [Te]; segment s of ids looks at segment s of these. NULL when cache is set */
    struct gd_value *encoder_cu_seqlens;  /* i32 [S+1] */
    struct gd_value *cross;               /* handle of gd_kv_batch: what the encoder left (gd_model_encode); with cache */
};
void gd_model_inputs_create(struct gd_model_inputs *inputs, struct gd_graph *graph, const struct gd_model *model,
                            int tokens, int segments, bool cached);
/* The rows of the encoder: encoder_ids, encoder_cu_seqlens. Models with an encoder need them, but not with a cache. */
void gd_model_inputs_encoder(struct gd_model_inputs *inputs, struct gd_graph *graph, int tokens, int segments);

/* Whether rows see the later rows of their segment: it embeds and classifies, and generates nothing. */
bool gd_model_is_encoder(const struct gd_model *model);
/* Fails with param "model" for an encoder and for a classifier: they have no next token. */
GD_MUST_CHECK bool gd_model_generates(const struct gd_model *model, struct gd_error *err);

/* The body: ids to the last hidden state after the final norm, act [T, d]. `sites` may be NULL (bare base). */
struct gd_value *gd_model_hidden(struct gd_graph *graph, const struct gd_model *model,
                                 const struct gd_model_inputs *inputs, const struct gd_sites *sites);
/* Of a model with an encoder: its rows alone, after its last norm, act [Te, d]; and into kv[2 * layers of the decoder], unless
 * NULL, the keys and values that each layer of the decoder sees of them. */
struct gd_value *gd_model_encode(struct gd_graph *graph, const struct gd_model *model, const struct gd_model_inputs *inputs,
                                 const struct gd_sites *sites, struct gd_value **kv);
static inline bool gd_model_encodes(const struct gd_model *model)
{
    return model->config.encoder_layers > 0;
}
/* Layers whose rows see their past: those of a cache. */
static inline int gd_model_decoder_layers(const struct gd_model *model)
{
    return model->config.layers - model->config.encoder_layers;
}
/* The matrix of learned positions, of models that have it, in the same way. */
struct gd_value *gd_model_positions(struct gd_graph *graph, const struct gd_model *model, const struct gd_sites *sites);
/* The matrix of the vocabulary product, [V, d]: the weight, or what the sites (NULL: none) put in its place. */
struct gd_value *gd_model_head(struct gd_graph *graph, const struct gd_model *model, const struct gd_sites *sites);
/* c tanh(z / c) of the logits [T, V], where the model caps them. */
struct gd_value *gd_model_cap(struct gd_graph *graph, const struct gd_model *model, struct gd_value *logits);
/* What the layers get for a token: row `id` of the table, scaled. out: [embed_width] */
void gd_model_embedding_row(const struct gd_model *model, int64_t id, float *out);

/* {"architecture", "parameters", "dtypes", "tensors":[...], "tokenizer", "template", ...} for inspect. */
cJSON *gd_model_describe(const struct gd_model *model, bool with_tensors);

#endif
