#include "server/counters.h"

#include "engine/base/alloc.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum kind { COUNTER, GAUGE, HISTOGRAM };

struct family {
    enum kind kind;
    const char *name, *labels, *help;
};
#define FAMILY(id, kind, name, labels, help) {kind, name, labels, help},
static const struct family families[] = {GD_COUNTER_LIST(FAMILY)};
_Static_assert(GD_COUNT(families) == GD_COUNTER_COUNT, "one family for each counter");

/* Seconds; from half a millisecond, because small models answer fast. */
static const double bounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                0.25,   0.5,   1,      2.5,   5,    10,    30,   120};
#define BOUND_COUNT GD_COUNT(bounds)

struct series {
    char *labels[GD_COUNTER_LABELS_MAX];
    double value;                       /* histogram: the sum */
    uint64_t buckets[BOUND_COUNT + 1];  /* not cumulative; the last is +Inf */
};

struct gd_counters {
    struct {
        struct series *items;
        int count, capacity;
    } families[GD_COUNTER_COUNT];
};

static int label_count(const struct family *family)
{
    int count = family->labels[0] != 0;
    for (const char *c = family->labels; *c != 0; c++)
        count += *c == ',';
    return count;
}

struct gd_counters *gd_counters_create(void)
{
    return gd_alloc(sizeof(struct gd_counters));
}

void gd_counters_clear(struct gd_counters *counters, enum gd_counter counter)
{
    if (counters == NULL)
        return;
    for (int i = 0; i < counters->families[counter].count; i++)
        for (int l = 0; l < GD_COUNTER_LABELS_MAX; l++)
            gd_free(counters->families[counter].items[i].labels[l]);
    counters->families[counter].count = 0;
}

void gd_counters_destroy(struct gd_counters *counters)
{
    if (counters == NULL)
        return;
    for (int i = 0; i < GD_COUNTER_COUNT; i++) {
        gd_counters_clear(counters, (enum gd_counter)i);
        gd_free(counters->families[i].items);
    }
    gd_free(counters);
}

static struct series *find(struct gd_counters *counters, enum gd_counter counter, const char *const *labels)
{
    static const char *const other[GD_COUNTER_LABELS_MAX] = {"other", "other", "other"};
    int wanted = label_count(&families[counter]);
    struct series *items = counters->families[counter].items;
    int count = counters->families[counter].count;
    for (int i = 0; i < count; i++) {
        bool same = true;
        for (int l = 0; same && l < wanted; l++)
            same = strcmp(items[i].labels[l], labels[l]) == 0;
        if (same)
            return &items[i];
    }
    if (count == GD_COUNTER_SERIES_MAX)
        return labels == other ? &items[count - 1] : find(counters, counter, other);
    if (count == GD_COUNTER_SERIES_MAX - 1)
        labels = other; /* the last series takes the rest */
    if (count == counters->families[counter].capacity) {
        int capacity = count == 0 ? 4 : count * 2;
        counters->families[counter].items = gd_realloc_array(items, (size_t)capacity, sizeof(*items));
        counters->families[counter].capacity = capacity;
        items = counters->families[counter].items;
    }
    struct series *series = &items[counters->families[counter].count++];
    *series = (struct series){0};
    for (int l = 0; l < wanted; l++)
        series->labels[l] = gd_strdup(labels[l]);
    return series;
}

void gd_counters_add(struct gd_counters *counters, enum gd_counter counter, double amount, const char *const *labels)
{
    if (counters != NULL)
        find(counters, counter, labels)->value += amount;
}

void gd_counters_set(struct gd_counters *counters, enum gd_counter counter, double value, const char *const *labels)
{
    if (counters != NULL)
        find(counters, counter, labels)->value = value;
}

void gd_counters_observe(struct gd_counters *counters, enum gd_counter counter, double value, const char *const *labels)
{
    if (counters == NULL)
        return;
    struct series *series = find(counters, counter, labels);
    size_t bucket = 0;
    while (bucket < BOUND_COUNT && value > bounds[bucket])
        bucket++;
    series->buckets[bucket]++;
    series->value += value;
}

static void print_number(struct gd_buf *out, double value)
{
    if (value == floor(value) && fabs(value) < 9007199254740992.0)
        gd_buf_printf(out, "%.0f\n", value);
    else
        gd_buf_printf(out, "%.17g\n", value);
}

/* name{a="x",b="y"} or name{a="x",le="0.5"} */
static void print_head(struct gd_buf *out, const struct family *family, const char *suffix, const struct series *series,
                       const char *le)
{
    gd_buf_printf(out, "%s%s", family->name, suffix);
    int count = label_count(family);
    if (count > 0 || le != NULL) {
        gd_buf_append_char(out, '{');
        const char *name = family->labels;
        for (int l = 0; l < count; l++) {
            size_t length = strcspn(name, ",");
            gd_buf_printf(out, "%s%.*s=\"", l > 0 ? "," : "", (int)length, name);
            for (const char *c = series->labels[l]; *c != 0; c++) {
                if (*c == '\\' || *c == '"')
                    gd_buf_append_char(out, '\\');
                if (*c == '\n')
                    gd_buf_append_text(out, "\\n");
                else
                    gd_buf_append_char(out, *c);
            }
            gd_buf_append_char(out, '"');
            name += length + 1;
        }
        if (le != NULL)
            gd_buf_printf(out, "%sle=\"%s\"", count > 0 ? "," : "", le);
        gd_buf_append_char(out, '}');
    }
    gd_buf_append_char(out, ' ');
}

static void print_histogram(struct gd_buf *out, const struct family *family, const struct series *series)
{
    uint64_t total = 0;
    for (size_t b = 0; b <= BOUND_COUNT; b++) {
        char le[32] = "+Inf";
        if (b < BOUND_COUNT)
            snprintf(le, sizeof(le), "%g", bounds[b]);
        total += series->buckets[b];
        print_head(out, family, "_bucket", series, le);
        print_number(out, (double)total);
    }
    print_head(out, family, "_sum", series, NULL);
    print_number(out, series->value);
    print_head(out, family, "_count", series, NULL);
    print_number(out, (double)total);
}

void gd_counters_print(const struct gd_counters *counters, struct gd_buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    for (int i = 0; counters != NULL && i < GD_COUNTER_COUNT; i++) {
        const struct family *family = &families[i];
        if (counters->families[i].count == 0)
            continue;
        gd_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", family->name, family->help, family->name,
                      kinds[family->kind]);
        for (int s = 0; s < counters->families[i].count; s++) {
            const struct series *series = &counters->families[i].items[s];
            if (family->kind == HISTOGRAM) {
                print_histogram(out, family, series);
            } else {
                print_head(out, family, "", series, NULL);
                print_number(out, series->value);
            }
        }
    }
}
