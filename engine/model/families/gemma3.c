/*
 * gemma3.c - Gemma 3 from 4b on (Gemma Team 2025): its language model is gemma3_text's, below names of its own and described by
 * an object of its own in config.json. Of its eyes nothing is read; copies of the model keep them.
 */
#include "engine/model/families/gemma.h"

static const struct gd_names names = GD_GEMMA_NAMES("model.language_model", "language_model.model");
static const char *const eyes[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.", NULL};

const struct gd_family gd_family_gemma3 = {
    .model_type = "gemma3",
    .class_name = "Gemma3ForConditionalGeneration",
    .gguf = "gemma3", /* adapters for such files; the files are gemma3_text's */
    .body = &gd_body_decoder,
    .names = &names,
    .fields = &gd_size_fields_llama,
    .nested = "text_config",
    .aside = eyes,
    .read_hf = gd_gemma3_read,
    .defaults = GD_GEMMA3_DEFAULTS,
};
