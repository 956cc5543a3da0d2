/*
 * by_element.h - template: run_cpu of an op that works element by element, or with BY_ROW row by row, split over threads.
 *
 * Why      Such ops differ in one line; how it is compiled for both dtypes, and who does which elements, is the same.
 * Memory   none
 * Threads  ranges of elements, or rows, of the first output
 * Errors   none
 * Limits   F32 and BF16; every operand in the dtype of the first output
 * Life     none
 *
 * What is included before defines
 *
 *     GD_INLINE void body(const struct gd_kernel_args *args, bool bf16, int64_t begin, int64_t end)
 */
GD_KERNEL static void part_f32(const struct gd_kernel_args *args, int64_t begin, int64_t end)
{
    body(args, false, begin, end);
}

GD_KERNEL static void part_bf16(const struct gd_kernel_args *args, int64_t begin, int64_t end)
{
    body(args, true, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = gd_tensor_count(&args->out[0]);
    GD_PARALLEL(count)
    {
#ifdef BY_ROW
        struct gd_range r = gd_thread_range(args->out[0].shape[0], 1);
#else
        struct gd_range r = gd_thread_range(count, 32);
#endif
        if (args->out[0].dtype == GD_BF16)
            part_bf16(args, r.begin, r.end);
        else
            part_f32(args, r.begin, r.end);
    }
    return true;
}
