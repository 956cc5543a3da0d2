/* Folders of older vocabulary files: the first byte says which, two zero bytes stand between the files. */
#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[32];

static void clear(void)
{
    static const char *const names[] = {"vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"};
    for (size_t i = 0; i < GD_COUNT(names); i++)
        gd_fuzz_put(folder, names[i], NULL, 0);
    (void)rmdir(folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello  world\r\n 12345 \xc3\xa9\xf0\x9f\x99\x82 [CLS] <s> don't";
    struct gd_error err = {0};
    struct gd_tokenizer *tokenizer = NULL;
    if (folder[0] == '\0') {
        memcpy(folder, "/tmp/gd-vocab-fuzz-XXXXXX", sizeof("/tmp/gd-vocab-fuzz-XXXXXX"));
        if (mkdtemp(folder) == NULL)
            abort();
        (void)atexit(clear);
    }
    if (size < 1)
        return 0;
    const uint8_t *rest = data + 1, *cut = memmem(rest, size - 1, "\0\0", 2);
    size_t first = cut != NULL ? (size_t)(cut - rest) : size - 1, second = cut != NULL ? size - 1 - first - 2 : 0;
    const uint8_t *more = cut != NULL ? cut + 2 : rest;
    bool lines = data[0] % 2 == 0;
    gd_fuzz_put(folder, "vocab.txt", lines ? rest : NULL, first);
    gd_fuzz_put(folder, "vocab.json", lines ? NULL : rest, first);
    gd_fuzz_put(folder, "merges.txt", lines ? NULL : more, second);
    gd_fuzz_put(folder, "added_tokens.json", lines && second > 0 ? more : NULL, second);
    if (!gd_tokenizer_from_folder(&tokenizer, folder, NULL, &err))
        return 0;
    struct gd_tokens tokens = {.with_offsets = true};
    if (gd_tokenizer_encode(tokenizer, text, sizeof(text) - 1, GD_SPECIAL_PARSE, true, &tokens, &err)) {
        struct gd_buf out;
        gd_buf_init(&out, 1 << 20);
        gd_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &out);
        gd_buf_release(&out);
    }
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
    return 0;
}
