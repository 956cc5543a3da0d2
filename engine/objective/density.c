/* L-BFGS (Nocedal 1980) with halved steps: the function is smooth and convex. */
#include "engine/objective/density.h"

#include "engine/base/alloc.h"

#include <math.h>
#include <string.h>

#define MEMORY 10
#define STEPS_MAX 300
#define HALVINGS_MAX 40
#define GRADIENT_SMALL 1e-6 /* of its largest entry */
#define DECREASE 1e-4       /* of what the slope promises (Armijo) */

struct problem {
    const float *x;
    const bool *label;
    int count, width;
    double class_weight[2];
};

struct history {
    double *s[MEMORY], *y[MEMORY], rho[MEMORY], alpha[MEMORY];
    int used, next;
};

static double dot(const double *a, const double *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static double score(const double *w, const float *x, int width)
{
    double sum = w[width];
    for (int i = 0; i < width; i++)
        sum += w[i] * (double)x[i];
    return sum;
}

static double evaluate(const struct problem *p, const double *w, double *gradient)
{
    double sum = 0.5 * dot(w, w, p->width);
    memcpy(gradient, w, (size_t)p->width * sizeof(*w));
    gradient[p->width] = 0;
    for (int i = 0; i < p->count; i++) {
        const float *x = p->x + (size_t)i * (size_t)p->width;
        double sign = p->label[i] ? 1 : -1, u = sign * score(w, x, p->width), weight = p->class_weight[p->label[i]];
        sum += weight * (u >= 0 ? log1p(exp(-u)) : log1p(exp(u)) - u);
        double slope = -sign * weight * (u >= 0 ? exp(-u) / (1 + exp(-u)) : 1 / (1 + exp(u)));
        for (int k = 0; k < p->width; k++)
            gradient[k] += slope * (double)x[k];
        gradient[p->width] += slope;
    }
    return sum;
}

/* direction = -H gradient, with H from the newest steps. */
static void find_direction(struct history *h, const double *gradient, double *direction, int n)
{
    for (int i = 0; i < n; i++)
        direction[i] = -gradient[i];
    for (int k = 1; k <= h->used; k++) {
        int at = (h->next - k + MEMORY) % MEMORY;
        h->alpha[at] = h->rho[at] * dot(h->s[at], direction, n);
        for (int i = 0; i < n; i++)
            direction[i] -= h->alpha[at] * h->y[at][i];
    }
    if (h->used > 0) {
        int at = (h->next - 1 + MEMORY) % MEMORY;
        double size = 1 / (h->rho[at] * dot(h->y[at], h->y[at], n));
        for (int i = 0; i < n; i++)
            direction[i] *= size;
    }
    for (int k = h->used; k >= 1; k--) {
        int at = (h->next - k + MEMORY) % MEMORY;
        double beta = h->rho[at] * dot(h->y[at], direction, n);
        for (int i = 0; i < n; i++)
            direction[i] += h->s[at][i] * (h->alpha[at] - beta);
    }
}

static void remember(struct history *h, const double *w, const double *old_w, const double *gradient, const double *old_gradient, int n)
{
    double *s = h->s[h->next], *y = h->y[h->next];
    for (int i = 0; i < n; i++) {
        s[i] = w[i] - old_w[i];
        y[i] = gradient[i] - old_gradient[i];
    }
    double curvature = dot(s, y, n);
    if (!(curvature > 0))
        return;
    h->rho[h->next] = 1 / curvature;
    h->next = (h->next + 1) % MEMORY;
    h->used += h->used < MEMORY;
}

static double largest(const double *x, int n)
{
    double most = 0;
    for (int i = 0; i < n; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

/* From w, whose value and gradient are known, down along direction. False: no step goes down. */
static bool step_down(const struct problem *p, double *w, double *value, double *gradient, const double *direction, double size, double *old_w,
                      double *old_gradient)
{
    int n = p->width + 1;
    double slope = dot(gradient, direction, n);
    memcpy(old_w, w, (size_t)n * sizeof(*w));
    memcpy(old_gradient, gradient, (size_t)n * sizeof(*w));
    for (int tries = 0; tries < HALVINGS_MAX; tries++, size /= 2) {
        for (int i = 0; i < n; i++)
            w[i] = old_w[i] + size * direction[i];
        double now = evaluate(p, w, gradient);
        if (now <= *value + DECREASE * size * slope) {
            *value = now;
            return true;
        }
    }
    memcpy(w, old_w, (size_t)n * sizeof(*w));
    return false;
}

static void minimise(const struct problem *p, double *w)
{
    int n = p->width + 1;
    struct history history = {.used = 0};
    double *memory = gd_alloc_array((size_t)n * (2 * MEMORY + 4), sizeof(double)), *gradient = memory + 2 * MEMORY * n;
    double *direction = gradient + n, *old_w = direction + n, *old_gradient = old_w + n;
    for (int k = 0; k < MEMORY; k++) {
        history.s[k] = memory + 2 * k * n;
        history.y[k] = history.s[k] + n;
    }
    double value = evaluate(p, w, gradient);
    for (int step = 0; step < STEPS_MAX && largest(gradient, n) > GRADIENT_SMALL; step++) {
        find_direction(&history, gradient, direction, n);
        double size = history.used > 0 ? 1 : 1 / fmax(1, largest(gradient, n));
        if (!step_down(p, w, &value, gradient, direction, size, old_w, old_gradient))
            break;
        remember(&history, w, old_w, gradient, old_gradient, n);
    }
    gd_free(memory);
}

void gd_density_fit(struct gd_density *density, const float *x, const bool *label, int count, int width)
{
    struct problem problem = {.x = x, .label = label, .count = count, .width = width};
    int good = 0;
    for (int i = 0; i < count; i++)
        good += label[i];
    problem.class_weight[1] = (double)count / (2.0 * good);
    problem.class_weight[0] = (double)count / (2.0 * (count - good));
    density->width = width;
    density->weight = gd_alloc_array((size_t)width + 1, sizeof(double));
    minimise(&problem, density->weight);
}

void gd_density_release(struct gd_density *density)
{
    gd_free(density->weight);
    density->weight = NULL;
}

double gd_density_ratio(const struct gd_density *density, const float *x, double min, double max)
{
    double ratio = exp(fmin(score(density->weight, x, density->width), 700)); /* p / (1 - p) of a logistic p */
    return fmin(fmax(ratio, min), max);
}
