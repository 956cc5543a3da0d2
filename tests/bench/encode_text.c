/* encode_text TOKENIZER_JSON TEXT: encodes every document of TEXT (each ends with a NUL) on one thread and prints seconds, tokens
 * and the SHA-256 of all ids. For tests/bench/tokenize. */
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/text/tokenizer.h"

#include <stdio.h>
#include <string.h>

static bool run(const char *tokenizer_path, const char *text_path, struct gd_error *err)
{
    char *json = NULL, *text = NULL, digest[65];
    size_t json_length = 0, length = 0;
    struct gd_tokenizer *tokenizer = NULL;
    if (!gd_file_read(tokenizer_path, (size_t)256 << 20, &json, &json_length, err) ||
        !gd_file_read(text_path, (size_t)1 << 30, &text, &length, err) ||
        !gd_tokenizer_from_json(&tokenizer, json, json_length, NULL, 0, err))
        return false;
    struct gd_tokens tokens = {0};
    double start = gd_time_monotonic();
    for (size_t at = 0, size; at < length; at += size + 1) {
        size = strnlen(text + at, length - at);
        if (!gd_tokenizer_encode(tokenizer, text + at, size, GD_SPECIAL_PARSE, false, &tokens, err))
            return false;
    }
    double seconds = gd_time_monotonic() - start;
    gd_hash_sha256(tokens.ids, (size_t)tokens.count * sizeof(tokens.ids[0]), digest);
    printf("%.6f %d %s\n", seconds, tokens.count, digest);
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
    return true;
}

int main(int argc, char **argv)
{
    struct gd_error err = {0};
    if (argc == 3 && run(argv[1], argv[2], &err))
        return 0;
    fprintf(stderr, "%s\n", argc == 3 ? err.message : "usage: encode_text TOKENIZER_JSON TEXT");
    return 1;
}
