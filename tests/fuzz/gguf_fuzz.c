/* The GGUF reader: metadata of every kind that a model asks for, and every tensor to its end. */
#include "engine/model/gguf.h"
#include "tests/fuzz/fuzz.h"

static void read_metadata(struct gd_gguf *file)
{
    static const char *const keys[] = {"general.architecture", "general.alignment", "llama.block_count",
                                       "llama.attention.head_count", "llama.rope.freq_base", "tokenizer.ggml.model",
                                       "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"};
    for (size_t i = 0; i < GD_COUNT(keys); i++) {
        struct gd_error err[6] = {{0}};
        int64_t integer = 0;
        double number = 0;
        int count = 0;
        const char *text = NULL, *const *texts = NULL;
        const int32_t *integers = NULL;
        const float *floats = NULL;
        bool ok = gd_gguf_get_int(file, keys[i], false, 0, 1000, &integer, &err[0]);
        ok = gd_gguf_get_number(file, keys[i], false, -1e9, 1e9, &number, &err[1]) || ok;
        ok = gd_gguf_get_string(file, keys[i], false, &text, &err[2]) || ok;
        ok = gd_gguf_get_strings(file, keys[i], false, 1 << 16, &texts, &count, &err[3]) || ok;
        ok = gd_gguf_get_i32s(file, keys[i], false, 1 << 16, &integers, &count, &err[4]) || ok;
        ok = gd_gguf_get_f32s(file, keys[i], false, 1 << 16, &floats, &count, &err[5]) || ok;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    struct gd_gguf *file = NULL;
    char path[64];
    int fd = gd_fuzz_file(data, size, path);
    if (gd_gguf_open(&file, path, &err)) {
        int zeros = 0;
        read_metadata(file);
        for (int i = 0; i < gd_gguf_count(file); i++) {
            struct gd_tensor tensor = gd_gguf_at(file, i);
            zeros += gd_fuzz_touch(tensor.data, gd_dtype_bytes(tensor.dtype, gd_tensor_count(&tensor)));
        }
        gd_gguf_close(file);
        if (zeros < 0)
            abort();
    }
    close(fd);
    return 0;
}
