/* SentencePiece models: what loads encodes and decodes. */
#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const files[] = {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"};
    static const char text[] = "  Hello  world\r\n 12345 \xc3\xa9" "e\xcc\x81\xf0\x9f\x99\x82 <s> <u1> don't ";
    struct gd_error err = {0};
    struct gd_tokenizer *tokenizer = NULL;
    if (!gd_tokenizer_from_sentencepiece(&tokenizer, data, size, files[size % 3], NULL, NULL, &err))
        return 0;
    struct gd_tokens tokens = {.with_offsets = true};
    if (gd_tokenizer_encode(tokenizer, text, sizeof(text) - 1, size % 2 == 0 ? GD_SPECIAL_PARSE : GD_SPECIAL_AS_TEXT, true,
                            &tokens, &err)) {
        struct gd_buf out;
        gd_buf_init(&out, 1 << 20);
        gd_tokenizer_decode(tokenizer, tokens.ids, tokens.count, size % 5 == 0, &out);
        gd_buf_release(&out);
    }
    gd_tokens_release(&tokens);
    gd_tokenizer_destroy(tokenizer);
    return 0;
}
