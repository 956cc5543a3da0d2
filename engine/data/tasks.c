/* The table of tasks: found by bisection, numbered in an order that does not depend on the rows'. */
#include "engine/data/tasks.h"
#include "engine/base/alloc.h"
#include "engine/data/lines.h"
#include "engine/data/row.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMES_LISTED 12

void gd_tasks_release(struct gd_tasks *tasks)
{
    for (int i = 0; i < tasks->count; i++)
        gd_free(tasks->names[i]);
    gd_free(tasks->names);
    gd_free(tasks->rows);
    gd_free(tasks->order);
    memset(tasks, 0, sizeof *tasks);
}

/* Where the name stands in `order`, or would. */
static int place_of(const struct gd_tasks *tasks, const char *name)
{
    int low = 0, high = tasks->count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (strcmp(tasks->names[tasks->order[middle]], name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool stands_at(const struct gd_tasks *tasks, int place, const char *name)
{
    return place < tasks->count && strcmp(tasks->names[tasks->order[place]], name) == 0;
}

int gd_tasks_find(const struct gd_tasks *tasks, const char *name)
{
    int place = place_of(tasks, name);
    return stands_at(tasks, place, name) ? tasks->order[place] : -1;
}

int gd_tasks_add(struct gd_tasks *tasks, const char *name, struct gd_error *err)
{
    int place = place_of(tasks, name);
    if (stands_at(tasks, place, name)) {
        tasks->rows[tasks->order[place]]++;
        return tasks->order[place];
    }
    if (tasks->count == GD_TASKS_MAX) {
        gd_fail_param(err, GD_INVALID, "task", "there are more than %d tasks, the most that a file may have", GD_TASKS_MAX);
        return -1;
    }
    size_t wanted = (size_t)tasks->count + 1;
    tasks->names = gd_realloc_array(tasks->names, wanted, sizeof *tasks->names);
    tasks->rows = gd_realloc_array(tasks->rows, wanted, sizeof *tasks->rows);
    tasks->order = gd_realloc_array(tasks->order, wanted, sizeof *tasks->order);
    memmove(tasks->order + place + 1, tasks->order + place, (size_t)(tasks->count - place) * sizeof *tasks->order);
    tasks->names[tasks->count] = gd_strdup(name);
    tasks->rows[tasks->count] = 1;
    tasks->order[place] = tasks->count;
    return tasks->count++;
}

struct entry {
    char *name;
    int64_t rows;
    int number;
    bool by_value;
};

static int compare(const void *a, const void *b)
{
    const struct entry *left = a, *right = b;
    size_t length = strlen(left->name), other = strlen(right->name);
    if (left->by_value && length != other)
        return length < other ? -1 : 1;
    return strcmp(left->name, right->name);
}

void gd_tasks_sort(struct gd_tasks *tasks, int *renumbered)
{
    struct entry *entries = gd_alloc_array((size_t)tasks->count + 1, sizeof *entries);
    bool whole = true;
    for (int i = 0; i < tasks->count; i++)
        whole &= strspn(tasks->names[i], "0123456789") == strlen(tasks->names[i]);
    for (int i = 0; i < tasks->count; i++)
        entries[i] = (struct entry){tasks->names[i], tasks->rows[i], i, whole};
    qsort(entries, (size_t)tasks->count, sizeof *entries, compare);
    for (int i = 0; i < tasks->count; i++) {
        tasks->names[i] = entries[i].name;
        tasks->rows[i] = entries[i].rows;
        renumbered[entries[i].number] = i;
    }
    for (int i = 0; i < tasks->count; i++)
        tasks->order[i] = renumbered[tasks->order[i]];
    gd_free(entries);
}

void gd_tasks_list(char *const *names, int count, char *text, size_t size)
{
    text[0] = '\0';
    for (int i = 0; i < count && i < NAMES_LISTED; i++) {
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s%s", i > 0 ? ", " : "", names[i]);
    }
    size_t used = strlen(text);
    if (count > NAMES_LISTED)
        snprintf(text + used, size - used, ", and %d more", count - NAMES_LISTED);
}

static bool add_line(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_row row;
    bool ok;
    if (text == NULL)
        return gd_fail_param(err, GD_BAD_FILE, "row", "line %lld: the line has more than %u bytes", (long long)line, GD_ROW_BYTES_MAX);
    if (!gd_row_parse(&row, text, length, line, err)) {
        if (row.incomparable) /* dropped or refused when it is read as data */
            gd_error_clear(err);
        return row.incomparable;
    }
    if (row.task[0] == '\0')
        ok = gd_fail_param(err, GD_BAD_FILE, "task", "line %lld: the row names no task, and this adapter type learns by task: give "
                           "every row a \"task\", a string or a whole number", (long long)line);
    else
        ok = gd_tasks_add(context, row.task, err) >= 0;
    gd_row_release(&row);
    return ok;
}

bool gd_tasks_read(struct gd_tasks *tasks, const char *path, struct gd_error *err)
{
    if (!gd_lines_each(path, add_line, tasks, err))
        return false;
    int *renumbered = gd_alloc_array((size_t)tasks->count + 1, sizeof *renumbered);
    gd_tasks_sort(tasks, renumbered);
    gd_free(renumbered);
    return true;
}
