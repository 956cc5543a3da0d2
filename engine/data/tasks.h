/*
 * tasks.h - the tasks that rows name, numbered.
 *
 * Why      Methods that mix modules by task need a dense number a row; people need the names.
 * Memory   The table owns its names.
 * Threads  Filled by one thread; read-only afterwards.
 * Errors   GD_INVALID with param "task"
 * Limits   GD_TASKS_MAX tasks, names of 1 to GD_TASK_NAME_MAX bytes
 * Life     zeroed -> add ... -> sort -> find ... -> release.
 */
#ifndef GD_DATA_TASKS_H
#define GD_DATA_TASKS_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define GD_TASKS_MAX 4096
#define GD_TASK_NAME_MAX 63

struct gd_tasks {
    char **names;
    int64_t *rows;               /* how many name it */
    int *order;                  /* numbers by name */
    int count;
};
void gd_tasks_release(struct gd_tasks *tasks);

int gd_tasks_find(const struct gd_tasks *tasks, const char *name); /* -1: none */
/* One more row of that task; its number, or -1 with an error. */
int gd_tasks_add(struct gd_tasks *tasks, const char *name, struct gd_error *err);
/* Numbers by name, or by value where all are whole numbers: independent of the order of rows. renumbered[old] = new. */
void gd_tasks_sort(struct gd_tasks *tasks, int *renumbered);
/* The tasks of a training file, sorted; every row must name one. GD_BAD_FILE with the line of one that does not. */
GD_MUST_CHECK bool gd_tasks_read(struct gd_tasks *tasks, const char *path, struct gd_error *err);
/* "a, b, c, and 4 more" */
void gd_tasks_list(char *const *names, int count, char *text, size_t size);

#endif
