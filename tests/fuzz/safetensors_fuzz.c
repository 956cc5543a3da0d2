/* The safetensors reader: every tensor of an accepted file can be read to its end. */
#include "engine/model/safetensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    struct gd_safetensors *file = NULL;
    char path[64];
    int fd = gd_fuzz_file(data, size, path);
    if (gd_safetensors_open(&file, path, &err)) {
        int zeros = 0;
        for (int i = 0; i < gd_safetensors_count(file); i++) {
            struct gd_tensor tensor = gd_safetensors_at(file, i);
            if (tensor.rank < 0)
                continue;
            zeros += gd_fuzz_touch(tensor.data, gd_dtype_bytes(tensor.dtype, gd_tensor_count(&tensor)));
        }
        gd_safetensors_close(file);
        if (zeros < 0)
            abort();
    }
    close(fd);
    return 0;
}
