#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/tensor/crew.h"
#include <omp.h>
#include <stdatomic.h>

struct count {
    atomic_int calls[300];
    atomic_int strange; /* thread numbers out of range */
    int spin, threads;
};

static void count_part(void *context, int64_t part, int thread)
{
    struct count *count = context;
    for (volatile int i = 0; i < count->spin; i++)
        ;
    atomic_fetch_add(&count->calls[part], 1);
    if (thread < 0 || thread >= count->threads)
        atomic_fetch_add(&count->strange, 1);
}

static void check_jobs(int threads, int jobs, int spin)
{
    omp_set_num_threads(threads);
    for (int job = 0; job < jobs; job++) {
        struct count count = {.spin = spin, .threads = threads};
        int parts = job * 7 % 300;
        gd_crew_run(parts, count_part, &count);
        for (int p = 0; p < 300; p++)
            if (atomic_load(&count.calls[p]) != (p < parts))
                fail_msg("job %d: part %d of %d was done %d times", job, p, parts, atomic_load(&count.calls[p]));
        assert_int_equal(atomic_load(&count.strange), 0);
    }
}

static void every_part_of_every_job_is_done_once(void **state)
{
    check_jobs(2, 2000, 0);
    check_jobs(4, 300, 100);
}

static void a_lower_number_of_threads_holds_at_once(void **state)
{
    check_jobs(3, 100, 10);
    check_jobs(2, 100, 10);
    check_jobs(1, 100, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_part_of_every_job_is_done_once),
        cmocka_unit_test(a_lower_number_of_threads_holds_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
