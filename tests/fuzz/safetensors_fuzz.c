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
        static volatile uint8_t sum;
        for (int i = 0; i < gd_safetensors_count(file); i++) {
            struct gd_tensor tensor = gd_safetensors_at(file, i);
            if (tensor.rank < 0)
                continue;
            size_t bytes = gd_dtype_bytes(tensor.dtype, gd_tensor_count(&tensor));
            for (size_t b = 0; b < bytes; b++)
                sum ^= ((const uint8_t *)tensor.data)[b];
        }
        gd_safetensors_close(file);
    }
    close(fd);
    return 0;
}
