/*
 * digest.c - which model this is, in 64 characters, without reading all of it.
 *
 * SHA-256 over one text: what of the config decides the function (not the context or end ids, which a generation
 * config may change), then for each tensor its name, dtype, shape and the xxh3 of its first, middle and last 64 KiB
 * (all of it when it is not larger). Another fine-tune differs in every tensor; a few megabytes tell.
 */
#include "engine/base/buf.h"
#include "engine/base/fsio.h"
#include "engine/model/files.h"
#include "engine/model/text.h"
#include <inttypes.h>
#include <math.h>

#define SAMPLE_BYTES (64u << 10)

static void add_config(struct gd_buf *text, const struct gd_model_config *c)
{
    gd_buf_printf(text, "width %d layers %d heads %d kv_heads %d head_dim %d ffn_width %d vocab %d\n", c->width,
                  c->layers, c->heads, c->kv_heads, c->head_dim, c->ffn_width, c->vocab);
    gd_buf_printf(text, "norm_eps %.17g rope_theta %.17g attention_factor %.17g window %d", c->norm_eps,
                  c->rope_theta, c->attention_factor, c->sliding_window);
    for (int layer = 0; layer < c->layers && c->sliding_window > 0; layer++)
        gd_buf_append_char(text, c->slides[layer] ? 's' : 'f');
    gd_buf_append_char(text, '\n');
    if (c->score_softcap != 0 || c->logit_softcap != 0 || c->embed_scale != 1 || c->activation != GD_ACTIVATION_SILU)
        gd_buf_printf(text, "caps %.17g %.17g embed %.17g activation %d\n", c->score_softcap, c->logit_softcap, c->embed_scale,
                      (int)c->activation);
    if (c->projects)
        gd_buf_printf(text, "embed_width %d\n", c->embed_width);
    if (c->parallel_residual || c->norm_after || c->attention_scale != 1 / sqrt(c->head_dim))
        gd_buf_printf(text, "parallel %d after %d scale %.17g\n", c->parallel_residual, c->norm_after, c->attention_scale);
    if (c->encoder_layers > 0)
        gd_buf_printf(text, "encoder_layers %d gated %d activation %d scaled %d distance %d start %d\n", c->encoder_layers, c->gated,
                      (int)c->activation, c->scaled_output, c->bias_distance, (int)c->decoder_start_id);
    gd_buf_printf(text, "biases %d %d %d tied %d inv_freq", c->qkv_bias, c->o_bias, c->mlp_bias, c->tied);
    for (int j = 0; j < gd_model_frequencies(c); j++)
        gd_buf_printf(text, " %.9g", (double)c->inv_freq[j]);
    gd_buf_append_char(text, '\n');
    if (c->positions > 0 || c->types > 0)
        gd_buf_printf(text, "positions %d from %d types %d\n", c->positions, c->first_position, c->types);
    for (int i = 0; i < c->label_count; i++)
        gd_buf_printf(text, "label %s%s\n", c->labels[i], c->multi_label ? " or not" : "");
}

static void add_sample(struct gd_buf *text, const unsigned char *bytes, size_t length)
{
    char hash[33];
    gd_hash_xxh3(bytes, length, hash);
    gd_buf_printf(text, " %s", hash);
}

static void add_tensor(struct gd_buf *text, const struct gd_file_tensor *entry)
{
    const struct gd_tensor *tensor = &entry->tensor;
    const unsigned char *bytes = tensor->data;
    size_t size = gd_dtype_bytes(tensor->dtype, gd_tensor_count(tensor));
    gd_buf_printf(text, "%s %s %s", entry->name, entry->dtype_name, gd_show_shape(tensor).text);
    if (size <= 3 * SAMPLE_BYTES)
        add_sample(text, bytes, size);
    else {
        add_sample(text, bytes, SAMPLE_BYTES);
        add_sample(text, bytes + size / 2, SAMPLE_BYTES);
        add_sample(text, bytes + size - SAMPLE_BYTES, SAMPLE_BYTES);
    }
    gd_buf_append_char(text, '\n');
}

void gd_model_make_digest(struct gd_model *model)
{
    const struct gd_files *files = gd_model_files(model);
    struct gd_buf text;
    gd_buf_init(&text, 0);
    add_config(&text, &model->config);
    for (int i = 0; i < files->tensor_count; i++)
        if (files->tensors[i].weight != NULL)
            add_tensor(&text, &files->tensors[i]);
    gd_hash_sha256(text.data, text.length, model->digest);
    gd_buf_release(&text);
}
