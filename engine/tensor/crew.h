/*
 * crew.h - threads for work that lasts microseconds: the products and the attention of a decode step.
 *
 * Why      A step of decoding is hundreds of small pieces one after the other. To wake a thread for each costs more than the piece;
 *          to spin between them starves whoever else needs the processor. So nobody is waited for that has not begun: the caller
 *          takes part after part, and so does who is awake; after the last job the others spin for GD_CREW_SPIN_US, then sleep.
 * Memory   Static; a stack for each thread.
 * Threads  gd_crew_run from the engine thread, outside of parallel regions. It returns when all parts are done.
 * Errors   none: where no thread can be started the caller does all.
 * Limits   GD_CREW_PARTS_MAX parts
 * Life     Threads start with the first job and stay for the process.
 *
 * Which thread takes a part is left to chance, so a part's result must depend on the part alone.
 *
 * A thread that loses its processor in the middle of a part is waited for. On a busy machine that takes longer than the others'
 * help is worth, so after such a wait the caller works alone for GD_CREW_ALONE times as long: waiting never costs more than one part
 * in GD_CREW_ALONE of the time.
 */
#ifndef GD_TENSOR_CREW_H
#define GD_TENSOR_CREW_H

#include <stdint.h>

#define GD_CREW_SPIN_US 50
#define GD_CREW_LATE_US 100 /* beyond two parts' time */
#define GD_CREW_ALONE 32
#define GD_CREW_PARTS_MAX INT32_MAX

/* One part, on thread `thread` of omp_get_max_threads(). */
typedef void (*gd_crew_fn)(void *context, int64_t part, int thread);
/* Calls run for the parts [0, parts). */
void gd_crew_run(int64_t parts, gd_crew_fn run, void *context);

#endif
