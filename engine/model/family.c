/* family.c - the table of architectures. */
#include "engine/model/family.h"
#include "engine/base/buf.h"
#include "engine/model/text.h"

static const struct gd_family families[] = {
    {
        .model_type = "llama",
        .class_name = "LlamaForCausalLM",
        .gguf = "llama",
        .gguf_permuted = true,
        .bias_options = true,
        .vocab = 32000,
        .width = 4096,
        .ffn_width = 11008,
        .layers = 32,
        .heads = 32,
        .context = 2048,
        .sliding_window = -1,
        .bos_id = 1,
        .eos_id = 2,
    },
    {
        .model_type = "mistral",
        .class_name = "MistralForCausalLM",
        .vocab = 32000,
        .width = 4096,
        .ffn_width = 14336,
        .layers = 32,
        .heads = 32,
        .kv_heads = 8,
        .context = 131072,
        .sliding_window = 4096,
        .bos_id = 1,
        .eos_id = 2,
    },
    {
        .model_type = "qwen2",
        .class_name = "Qwen2ForCausalLM",
        .gguf = "qwen2",
        .qkv_bias = true,
        .window_option = true,
        .vocab = 151936,
        .width = 4096,
        .ffn_width = 22016,
        .layers = 32,
        .heads = 32,
        .kv_heads = 32,
        .context = 32768,
        .sliding_window = 4096,
        .bos_id = -1,
        .eos_id = -1,
    },
    {
        .model_type = "qwen3",
        .class_name = "Qwen3ForCausalLM",
        .gguf = "qwen3",
        .qk_norm = true,
        .window_option = true,
        .vocab = 151936,
        .width = 4096,
        .ffn_width = 22016,
        .layers = 32,
        .heads = 32,
        .kv_heads = 32,
        .head_dim = 128,
        .context = 32768,
        .sliding_window = 4096,
        .bos_id = -1,
        .eos_id = -1,
    },
    {
        .model_type = "phi3",
        .class_name = "Phi3ForCausalLM",
        .fused = true,
        .partial_rotary = true,
        .folder_only = true,
        .vocab = 32064,
        .width = 3072,
        .ffn_width = 8192,
        .layers = 32,
        .heads = 32,
        .context = 4096,
        .bos_id = 1,
        .eos_id = 32000,
    },
};

static bool refuse(const char *what, const char *name, bool gguf, struct gd_error *err)
{
    struct gd_buf known;
    gd_buf_init(&known, 1024);
    for (size_t i = 0; i < GD_COUNT(families); i++) {
        const char *each = gguf ? families[i].gguf : families[i].model_type;
        if (each != NULL)
            gd_buf_printf(&known, "%s%s", known.length > 0 ? ", " : "", each);
    }
    gd_fail_param(err, GD_UNSUPPORTED, what, "%s \"%s\" is not supported; supported are %s", what,
                  gd_show_text(name).text, known.data);
    gd_buf_release(&known);
    return false;
}

bool gd_family_find(const struct gd_family **out, const char *model_type, struct gd_error *err)
{
    for (size_t i = 0; i < GD_COUNT(families); i++) {
        *out = &families[i];
        if (strcmp(model_type, families[i].model_type) == 0)
            return true;
    }
    return refuse("model_type", model_type, false, err);
}

bool gd_family_find_gguf(const struct gd_family **out, const char *architecture, struct gd_error *err)
{
    for (size_t i = 0; i < GD_COUNT(families); i++) {
        *out = &families[i];
        if (families[i].gguf != NULL && strcmp(architecture, families[i].gguf) == 0)
            return true;
    }
    return refuse("general.architecture", architecture, true, err);
}
