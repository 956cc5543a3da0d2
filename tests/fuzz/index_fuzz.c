/* model.safetensors.index.json beside two shards: what is accepted names every tensor of those that it opens, each in its file. */
#include "engine/base/alloc.h"
#include "engine/base/arena.h"
#include "engine/model/files.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

#define SHARD(tensor) "{\"" tensor "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"
#define HEADER_BYTES (sizeof SHARD("x") - 1)

static char folder[32];

static void put_shard(const char *name, const char *header)
{
    unsigned char bytes[8 + HEADER_BYTES + 8] = {HEADER_BYTES};
    memcpy(bytes + 8, header, HEADER_BYTES);
    gd_fuzz_put(folder, name, bytes, sizeof bytes);
}

static void clear(void)
{
    static const char *const names[] = {"model.safetensors.index.json", "a.safetensors", "b.safetensors"};
    for (size_t i = 0; i < GD_COUNT(names); i++)
        gd_fuzz_put(folder, names[i], NULL, 0);
    (void)rmdir(folder);
}

static void begin(void)
{
    memcpy(folder, "/tmp/gd-index-fuzz-XXXXXX", sizeof "/tmp/gd-index-fuzz-XXXXXX");
    if (mkdtemp(folder) == NULL)
        abort();
    put_shard("a.safetensors", SHARD("x"));
    put_shard("b.safetensors", SHARD("y"));
    (void)atexit(clear);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    if (folder[0] == '\0')
        begin();
    gd_fuzz_put(folder, "model.safetensors.index.json", data, size);
    struct gd_files *files = gd_alloc(sizeof *files);
    bool ok = gd_files_open_folder(files, folder, &err);
    if (ok && (files->tensor_count != files->shard_count || files->tensor_count < 1 || files->tensor_count > 2))
        abort();
    for (int i = 0; ok && i < files->tensor_count; i++)
        if (strcmp(files->tensors[i].file, files->tensors[i].name[0] == 'x' ? "a.safetensors" : "b.safetensors") != 0)
            abort();
    if (!ok && err.message[0] == '\0')
        abort();
    gd_files_close(files);
    return 0;
}
