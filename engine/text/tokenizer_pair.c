/* tokenizer_pair.c - two texts as one sequence, with what the post-processor's template puts around and between them. */
#include "engine/text/tokenizer_impl.h"

int gd_tokenizer_ending(const struct gd_tokenizer *tokenizer)
{
    return tokenizer->after_count;
}

static void push_all(struct gd_tokens *out, const int32_t *ids, int count)
{
    for (int i = 0; i < count; i++)
        gd_tokens_push(out, ids[i], 0, 0);
}

bool gd_tokenizer_encode_pair(const struct gd_tokenizer *tokenizer, const char *first, size_t first_length, const char *second,
                              size_t second_length, enum gd_special_mode mode, struct gd_tokens *out, int *begin, int *ending,
                              struct gd_error *err)
{
    int count = out->count;
    push_all(out, tokenizer->before, tokenizer->before_count);
    bool ok = gd_tokenizer_encode(tokenizer, first, first_length, mode, false, out, err);
    push_all(out, tokenizer->between, tokenizer->between_count);
    *begin = out->count;
    ok = ok && gd_tokenizer_encode(tokenizer, second, second_length, mode, false, out, err);
    push_all(out, tokenizer->ending, tokenizer->ending_count);
    *ending = tokenizer->ending_count;
    if (!ok)
        out->count = count;
    return ok;
}
