/*
 * family.h - the architectures that graftd builds, as a table.
 *
 * Why      An architecture is a mapping of config, tensor names and flags, not code: Llama, Mistral, Qwen2, Qwen3 and Phi-3
 *          share one graph. Published configs leave out what equals their family's default.
 * Memory   Constants.
 * Threads  Any.
 * Errors   GD_UNSUPPORTED naming the architecture and what is supported.
 * Limits   none
 * Life     none
 *
 * To add one that is a Llama with other flags: one row in family.c, and a fixture in tests/fixtures/make_models.py.
 */
#ifndef GD_MODEL_FAMILY_H
#define GD_MODEL_FAMILY_H

#include "engine/base/error.h"
#include <stdint.h>

struct gd_family {
    const char *model_type;   /* config.json */
    const char *class_name;   /* config.json: architectures */
    const char *gguf;         /* general.architecture; NULL: its files carry another family's name */
    bool gguf_permuted;       /* q and k rows are stored for interleaved rope */
    bool qkv_bias;            /* always has biases on q, k, v */
    bool fused;               /* q, k, v and gate, up are stored as one matrix each */
    bool partial_rotary;      /* partial_rotary_factor is an option */
    bool folder_only;         /* neither models nor adapters of GGUF */
    bool qk_norm;             /* always has norms of the heads of q and k */
    bool bias_options;        /* attention_bias and mlp_bias are options */
    bool window_option;       /* sliding_window counts only with use_sliding_window, from max_window_layers on */
    /* defaults of absent fields (transformers' config classes) */
    int vocab, width, ffn_width, layers, heads;
    int kv_heads;             /* 0: as many as heads */
    int head_dim;             /* 0: width / heads */
    int context;
    int sliding_window;       /* 0: none; -1: the family knows no such field */
    int32_t bos_id, eos_id;   /* -1: none */
};

/* By model_type. */
GD_MUST_CHECK bool gd_family_find(const struct gd_family **out, const char *model_type, struct gd_error *err);
/* By general.architecture. */
GD_MUST_CHECK bool gd_family_find_gguf(const struct gd_family **out, const char *architecture, struct gd_error *err);

#endif
