/* What attention's kernels take of a block's shared memory: every head size must run on every card (attention.h). */
#include "cuda/attention_plain.h"

#include <setjmp.h>
#include <stdarg.h>

extern "C" {
#include <cmocka.h>
}

static const enum attention_kernel kernels[] = {ATTENTION_FORWARD, ATTENTION_CACHED, ATTENTION_ROWS, ATTENTION_KEYS, ATTENTION_BIAS};
static const char *const names[] = {"forward", "cached", "rows", "keys", "bias"};

static void check(int head_dim, enum attention_kernel kernel, size_t bytes, const char *form)
{
    if (bytes == 0 || bytes > GD_ATTENTION_SHARED_MAX)
        fail_msg("heads of %d: the %s kernel of '%s' takes %zu bytes of shared memory, and a block has %d on some cards", head_dim, form,
                 names[kernel], bytes, GD_ATTENTION_SHARED_MAX);
}

static void every_head_size_fits_the_smallest_cards(void **state)
{
    static const int head_dims[] = {1, 16, 32, 64, 80, 96, 128, 160, 192, 256, 257, 300, 512, 1024};
    (void)state;
    for (int head_dim : head_dims)
        for (enum attention_kernel kernel : kernels) {
            if (head_dim <= GD_ATTENTION_MMA_MAX && kernel != ATTENTION_BIAS)
                check(head_dim, kernel, attention_mma_bytes(kernel, head_dim), "tensor cores'");
            check(head_dim, kernel, attention_plain_bytes(kernel, head_dim), "plain");
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_head_size_fits_the_smallest_cards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
