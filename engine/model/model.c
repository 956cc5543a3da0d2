/* model.c - opening and closing a model, whatever its format. */
#include "engine/model/model.h"
#include "engine/base/alloc.h"
#include "engine/model/config.h"
#include "engine/model/files.h"
#include "engine/model/text.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

/* The tokenizer may know fewer ids than the table has rows (padding), never more. Its end token stops generation as
 * well as the config's ids: fine-tunes change the one and forget the other. */
static bool join_tokenizer(struct gd_model *model, struct gd_error *err)
{
    int count = gd_tokenizer_vocab_count(model->tokenizer);
    if (count > model->config.vocab)
        return gd_fail(err, GD_BAD_MODEL, "%s: the tokenizer has ids up to %d, the embedding table has %d rows",
                       model->path, count - 1, model->config.vocab);
    int32_t eos = gd_tokenizer_eos(model->tokenizer);
    return eos < 0 || gd_model_config_add_eos(&model->config, eos, "eos_token", err);
}

static bool load(struct gd_model *model, struct gd_error *err)
{
    struct stat status;
    if (stat(model->path, &status) != 0)
        return gd_fail_errno(err, errno, "model %s", model->path);
    if (!(S_ISDIR(status.st_mode) ? gd_model_load_folder(model, err) : gd_model_load_gguf(model, err)) ||
        !join_tokenizer(model, err))
        return false;
    gd_tokenizer_digest(model->tokenizer, model->tokenizer_digest);
    gd_chat_template_digest(model->chat, model->template_digest);
    gd_model_make_sites(model);
    gd_model_make_digest(model);
    for (int i = 0; i < model->weight_count; i++) {
        gd_weight_identify(model->weights[i], model->digest);
        gd_weight_mapped(model->weights[i], gd_files_map(model->files, gd_weight_source(model->weights[i])->data));
    }
    gd_model_forget_files(model);
    return true;
}

bool gd_model_open(struct gd_model **out, const char *id, const char *path, struct gd_error *err)
{
    struct gd_model *model = gd_alloc(sizeof *model);
    *out = NULL;
    model->id = gd_strdup(id);
    model->path = gd_strdup(path);
    model->files = gd_alloc(sizeof(struct gd_files));
    if (!load(model, err)) {
        gd_model_destroy(model);
        return false;
    }
    *out = model;
    return true;
}

bool gd_model_generates(const struct gd_model *model, struct gd_error *err)
{
    if (gd_model_is_encoder(model))
        return gd_fail_param(err, GD_UNSUPPORTED, "model", "'%s' is an encoder (%s): it embeds and classifies texts and predicts no next "
                             "token; ask /v1/embeddings or /v1/classifications, and train it with method type 'classification'%s", model->id,
                             model->config.architecture, model->config.masks ? " (no route asks for what its masked-LM head says)" : "");
    return !model->config.classifies ||
           gd_fail_param(err, GD_UNSUPPORTED, "model", "'%s' is a classifier of %d labels: it predicts no next token; ask "
                         "/v1/classifications, and train it with method type 'classification'", model->id, model->config.label_count);
}

const char *const gd_quantization_names[GD_QUANTIZATION_COUNT] = {"none", "file", "nf4"};

bool gd_model_quantise(struct gd_model *model, enum gd_quantization quantization, int *plain, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(model, &sites);
    *plain = 0;
    model->quantization = quantization;
    for (int i = 0; i < site_count && quantization != GD_QUANTIZATION_NONE; i++) {
        enum gd_dtype dtype = quantization == GD_QUANTIZATION_NF4 ? GD_NF4 : gd_weight_source(sites[i].weight)->dtype;
        if (sites[i].router || gd_dtype_block(dtype) == 1 || sites[i].in % gd_dtype_block(dtype) != 0)
            (*plain)++;
        else if (!gd_weight_quantise(sites[i].weight, dtype, err))
            return false;
    }
    if (*plain < site_count || quantization == GD_QUANTIZATION_NONE)
        return true;
    if (quantization == GD_QUANTIZATION_FILE)
        return gd_fail_param(err, GD_UNSUPPORTED, "quantization", "quantization is 'file', but the weights of '%s' are not quantised "
                             "(%s): use 'nf4', or a GGUF file with quantised weights", model->id,
                             gd_dtype_name(gd_weight_source(sites[0].weight)->dtype));
    return gd_fail_param(err, GD_UNSUPPORTED, "quantization", "quantization is 'nf4', but no row of the weights of '%s' is a whole "
                         "number of blocks of %d: use 'none'", model->id, (int)gd_dtype_block(GD_NF4));
}

void gd_model_destroy(struct gd_model *model)
{
    if (model == NULL)
        return;
    for (int i = 0; i < model->weight_count; i++)
        gd_weight_destroy(model->weights[i]);
    gd_chat_destroy(model->chat);
    gd_tokenizer_destroy(model->tokenizer);
    gd_model_config_release(&model->config);
    gd_files_close(model->files);
    gd_free(model->weights);
    gd_free(model->layer);
    gd_free(model->chat_template);
    gd_free(model->tools_template);
    gd_free(model->id);
    gd_free(model->path);
    gd_free(model);
}

void gd_model_forget_files(const struct gd_model *model)
{
    const struct gd_files *files = gd_model_files(model);
    for (int i = 0; i < files->shard_count; i++)
        gd_safetensors_forget(files->shards[i]);
    if (files->gguf != NULL)
        gd_gguf_forget(files->gguf);
}
