/* Experts while serving: the rows in use are those of a key/value cache's batch. */
#include "bench.h"
#include "engine/tensor/backend.h"
#include "engine/tensor/kv.h"

#define ROWS 40
#define EXPERTS 5
#define SLOTS 2

extern const struct gd_backend_op gd_cuda_expert_dispatch, gd_cuda_expert_load, gd_cuda_expert_load_grad;

static void check(const char *name, const struct gd_backend_op *cuda, struct gd_kernel_args args)
{
    struct gd_error err = {0};
    struct gd_kernel_args there = args;
    char staged[64], scratch[4096] = {0};
    void *got[2] = {NULL, NULL};
    assert_true(cuda->staged_bytes(&args) <= sizeof(staged));
    assert_true(cuda->stage(&args, staged, &err));
    there.staged = bench_put(staged, cuda->staged_bytes(&args));
    there.scratch = bench_room(sizeof(scratch));
    args.scratch = scratch;
    for (int j = 0; j < 3; j++)
        if (args.in[j].rank > 0 && args.in[j].dtype != GD_HANDLE)
            there.in[j].data = bench_put(args.in[j].data, (size_t)gd_tensor_count(&args.in[j]) * 4);
    for (int k = 0; k < 2 && args.out[k].rank > 0; k++) {
        size_t bytes = (size_t)gd_tensor_count(&args.out[k]) * 4;
        args.out[k].data = gd_alloc_array(1, bytes);
        got[k] = gd_alloc_array(1, bytes);
        there.out[k].data = bench_room(bytes);
    }
    if (!gd_op_find(name)->run_cpu(&args, &err) || !cuda->run(&there, &err))
        fail_msg("%s", err.message);
    for (int k = 0; k < 2 && args.out[k].rank > 0; k++) {
        size_t bytes = (size_t)gd_tensor_count(&args.out[k]) * 4;
        bench_get(got[k], there.out[k].data, bytes);
        for (size_t i = 0; i < bytes / 4; i++)
            if (args.out[k].dtype == GD_I32 ? ((int32_t *)got[k])[i] != ((int32_t *)args.out[k].data)[i]
                                            : !(((float *)got[k])[i] - ((float *)args.out[k].data)[i] < 1e-4f &&
                                                ((float *)args.out[k].data)[i] - ((float *)got[k])[i] < 1e-4f))
                fail_msg("%s: output %d [%d] differs", name, k, (int)i);
        gd_free(args.out[k].data);
        gd_free(got[k]);
    }
}

static void rows_of_a_cache_are_counted(void **state)
{
    static const int32_t useds[] = {0, 1, 23, ROWS};
    int32_t choice[ROWS * SLOTS];
    float p[ROWS * EXPERTS], dy[2 * EXPERTS];
    for (int i = 0; i < ROWS * SLOTS; i++)
        choice[i] = (i / SLOTS * 3 + i % SLOTS * (1 + i % 4)) % EXPERTS;
    for (int i = 0; i < ROWS * EXPERTS; i++)
        p[i] = bench_normal(1, (uint64_t)i);
    for (int i = 0; i < 2 * EXPERTS; i++)
        dy[i] = bench_normal(2, (uint64_t)i);
    for (size_t n = 0; n < GD_COUNT(useds); n++) {
        int32_t cu[] = {0, useds[n] / 2, useds[n]};
        struct gd_kv_batch batch = {.sequence_count = 2, .cu_seqlens = cu};
        struct gd_tensor handle = {.dtype = GD_HANDLE, .rank = 1, .shape = {1}, .data = &batch};
        struct gd_tensor choices = {.dtype = GD_I32, .rank = 2, .shape = {ROWS, SLOTS}, .data = choice};
        struct gd_op_params params = {.i = {EXPERTS}}, rows = {.i = {ROWS}};
        check("expert_dispatch", &gd_cuda_expert_dispatch, (struct gd_kernel_args){
            .in = {choices, handle}, .params = &params,
            .out = {{.dtype = GD_I32, .rank = 1, .shape = {EXPERTS + 1}}, {.dtype = GD_I32, .rank = 1, .shape = {ROWS * SLOTS * 9 / 8}}}});
        check("expert_load", &gd_cuda_expert_load, (struct gd_kernel_args){
            .in = {{.dtype = GD_F32, .rank = 2, .shape = {ROWS, EXPERTS}, .data = p}, choices, handle}, .params = &params,
            .out = {{.dtype = GD_F32, .rank = 2, .shape = {2, EXPERTS}}}});
        check("expert_load_grad", &gd_cuda_expert_load_grad, (struct gd_kernel_args){
            .in = {{.dtype = GD_F32, .rank = 2, .shape = {2, EXPERTS}, .data = dy}, handle}, .params = &rows,
            .out = {{.dtype = GD_F32, .rank = 2, .shape = {ROWS, EXPERTS}}}});
        bench_release(NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(rows_of_a_cache_are_counted, bench_release)};
    return cmocka_run_group_tests(tests, bench_open, NULL);
}
