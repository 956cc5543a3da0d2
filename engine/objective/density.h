/*
 * density.h - how much likelier a point is among desirable rows than among undesirable ones.
 *
 * Why      BCO weighs undesirable rows by it where their prompts are other ones than those of desirable rows (Jung et al.
 *          2024, underlying distribution matching).
 * Memory   gd_density owns its weights; release with gd_density_release.
 * Threads  Any; pure functions of their arguments.
 * Errors   none
 * Limits   none of its own
 * Life     fit -> ratio ... -> release.
 *
 * A logistic regression with L2 penalty and classes of equal weight, as scikit-learn's LogisticRegression(class_weight="balanced"):
 * least 1/2 |w|^2 + sum_i s_i log(1 + e^(-y_i (w x_i + b))), s_i = n / (2 n of i's class).
 */
#ifndef GD_OBJECTIVE_DENSITY_H
#define GD_OBJECTIVE_DENSITY_H

#include <stdbool.h>

struct gd_density {
    int width;
    double *weight;              /* [width + 1], the last one is b */
};

/* x: [count][width], both labels among them. */
void gd_density_fit(struct gd_density *density, const float *x, const bool *label, int count, int width);
void gd_density_release(struct gd_density *density);
/* p / (1 - p) with p the probability that x is desirable, within [min, max]. */
double gd_density_ratio(const struct gd_density *density, const float *x, double min, double max);

#endif
