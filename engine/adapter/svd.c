/*
 * svd.c - eigenvectors of the Gram matrix of the smaller side: Householder's reduction to a tridiagonal matrix, QL steps
 * with implicit shifts (Golub & Van Loan, Matrix Computations, 8.3), and the other side by one product.
 */
#include "engine/adapter/svd.h"
#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/kernel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX 100 /* of one eigenvalue; two or three are usual, and numbers that are not finite have none */

GD_KERNEL static double dot(const double *restrict a, const double *restrict b, int64_t n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

GD_KERNEL static void add_scaled(double *restrict y, double factor, const double *restrict x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] += factor * x[i];
}

/* a = Q T Q^T. The reflector of step k, H = I - 2 v v^T with v[0..k] = 0, stands in row k of a from column k + 1 on (a unit
 * vector, or zeros for H = I); T's diagonal goes to d, its off-diagonal to e[0..n-1). */
static void tridiagonalise(double *a, int64_t n, double *d, double *e, double *work)
{
    for (int64_t k = 0; k < n; k++) {
        d[k] = a[k * n + k];
        if (k + 1 == n)
            return;
        int64_t m = n - k - 1;
        double *x = a + k * n + k + 1, *w = work, length = sqrt(dot(x, x, m));
        e[k] = x[0] > 0 ? -length : length;
        double tail = length * length - x[0] * x[0]; /* of the others: nothing to reflect where it is nothing */
        if (k + 2 >= n || length == 0 || tail <= 0) {
            e[k] = x[0];
            memset(x, 0, (size_t)m * sizeof(double));
            continue;
        }
        x[0] -= e[k];
        double size = sqrt(dot(x, x, m));
        for (int64_t i = 0; i < m; i++)
            x[i] /= size;
        /* H A H = A - v w^T - w v^T with p = A v, w = 2 p - 2 (v.p) v. */
        double *block = a + (k + 1) * n + k + 1;
        for (int64_t i = 0; i < m; i++)
            w[i] = 2 * dot(block + i * n, x, m);
        add_scaled(w, -dot(x, w, m), x, m);
        for (int64_t i = 0; i < m; i++) {
            add_scaled(block + i * n, -x[i], w, m);
            add_scaled(block + i * n, -w[i], x, m);
        }
    }
}

/* Rows p and q of z turned by an angle. */
GD_KERNEL static void rotate(double *restrict p, double *restrict q, double c, double s, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        double old = q[i];
        q[i] = s * p[i] + c * old;
        p[i] = c * p[i] - s * old;
    }
}

/* One QL step on T's rows [low, high], shifted towards the eigenvalue at `low`. */
static void ql_step(double *d, double *e, double *z, int64_t n, int64_t low, int64_t high)
{
    double half = (d[low + 1] - d[low]) / (2 * e[low]), root = hypot(half, 1);
    double g = d[high] - d[low] + e[low] / (half + copysign(root, half)), s = 1, c = 1, p = 0;
    for (int64_t i = high - 1; i >= low; i--) {
        double f = s * e[i], b = c * e[i], r = hypot(f, g);
        e[i + 1] = r;
        if (r == 0) { /* split early: undo the shift's rest */
            d[i + 1] -= p;
            e[high] = 0;
            return;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        rotate(z + i * n, z + (i + 1) * n, c, s, n);
    }
    d[low] -= p;
    e[low] = g;
    e[high] = 0;
}

static void diagonalise(double *d, double *e, double *z, int64_t n)
{
    e[n - 1] = 0;
    for (int64_t low = 0; low < n; low++)
        for (int step = 0; step < STEPS_MAX; step++) {
            int64_t high = low;
            while (high + 1 < n && fabs(e[high]) > 0x1p-53 * (fabs(d[high]) + fabs(d[high + 1])))
                high++;
            if (high == low)
                break;
            ql_step(d, e, z, n, low, high);
        }
}

/* v = Q s: the reflectors on a vector, the last first. */
static void reflect(const double *a, int64_t n, double *s)
{
    for (int64_t k = n - 3; k >= 0; k--) {
        const double *v = a + k * n + k + 1;
        add_scaled(s + k + 1, -2 * dot(v, s + k + 1, n - k - 1), v, n - k - 1);
    }
}

struct order {
    double value;
    int64_t index;
};

static int compare(const void *a, const void *b)
{
    const struct order *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

void gd_symmetric_eigen(double *a, int64_t n, double *values, double *vectors)
{
    double *e = gd_alloc_array((size_t)n, sizeof(double)), *d = gd_alloc_array((size_t)n, sizeof(double));
    double *z = gd_alloc_array((size_t)(n * n), sizeof(double));
    struct order *order = gd_alloc_array((size_t)n, sizeof(*order));
    tridiagonalise(a, n, d, e, values);
    for (int64_t i = 0; i < n; i++)
        z[i * n + i] = 1;
    diagonalise(d, e, z, n);
    for (int64_t i = 0; i < n; i++)
        order[i] = (struct order){d[i], i};
    qsort(order, (size_t)n, sizeof(*order), compare);
    for (int64_t i = 0; i < n; i++) {
        values[i] = order[i].value;
        memcpy(vectors + i * n, z + order[i].index * n, (size_t)n * sizeof(double));
        reflect(a, n, vectors + i * n);
    }
    gd_free(order);
    gd_free(z);
    gd_free(d);
    gd_free(e);
}

#define ROWS 8 /* of x that pass over the Gram matrix together */

/* g [n, n] = x^T x, x [m, n]. */
static void gram(const double *x, int64_t m, int64_t n, double *g)
{
    for (int64_t k = 0; k < m; k += ROWS) {
        int64_t rows = m - k < ROWS ? m - k : ROWS;
        const double *part = x + k * n;
        for (int64_t i = 0; i < n; i++)
            for (int64_t r = 0; r < rows; r++)
                add_scaled(g + i * n + i, part[r * n + i], part + r * n + i, n - i);
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++)
            g[i * n + j] = g[j * n + i];
}

void gd_singular_triplets(const float *w, int64_t out, int64_t in, int64_t first, int64_t count, double *sigma, float *u,
                          float *v)
{
    bool tall = out >= in;
    int64_t n = tall ? in : out, m = tall ? out : in;
    double *x = gd_alloc_array((size_t)(m * n), sizeof(double)), *g = gd_alloc_array((size_t)(n * n), sizeof(double));
    double *vectors = gd_alloc_array((size_t)(n * n), sizeof(double)), *values = gd_alloc_array((size_t)n, sizeof(double));
    double *far = gd_alloc_array((size_t)m, sizeof(double));
    for (int64_t i = 0; i < out; i++)
        for (int64_t j = 0; j < in; j++)
            x[tall ? i * in + j : j * out + i] = (double)w[i * in + j];
    gram(x, m, n, g);
    gd_symmetric_eigen(g, n, values, vectors);
    for (int64_t i = 0; i < n; i++)
        sigma[i] = values[n - 1 - i] > 0 ? sqrt(values[n - 1 - i]) : 0;
    for (int64_t i = first; i < first + count; i++) {
        const double *near = vectors + (n - 1 - i) * n;
        float *of_near = tall ? v + (i - first) * in : u + (i - first) * out;
        float *of_far = tall ? u + (i - first) * out : v + (i - first) * in;
        double squares = 0;
        for (int64_t j = 0; j < n; j++)
            of_near[j] = (float)near[j];
        for (int64_t k = 0; k < m; k++) {
            far[k] = dot(x + k * n, near, n);
            squares += far[k] * far[k];
        }
        sigma[i] = sqrt(squares); /* more exact than the root of the eigenvalue */
        for (int64_t k = 0; k < m; k++)
            of_far[k] = sigma[i] > 1e-9 * sigma[0] ? (float)(far[k] / sigma[i]) : 0.0f;
    }
    gd_free(far);
    gd_free(values);
    gd_free(vectors);
    gd_free(g);
    gd_free(x);
}

/* Of how many sites at once. */
static int threads_for(const struct gd_site *sites, int site_count)
{
    double most = 1, threads = gd_device()->threads;
    for (int i = 0; i < site_count; i++) {
        double out = sites[i].out, in = sites[i].in, small = out < in ? out : in;
        most = fmax(most, 12 * out * in + 24 * small * small); /* w in f32, x, and three squares */
    }
    return (int)fmax(1, fmin(threads, floor(0x1p32 / most)));
}

void gd_svd_each(const struct gd_graft *graft, float *block,
                 void (*module)(const struct gd_graft *graft, const struct gd_site *site, float *block))
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites), threads = threads_for(sites, site_count);
    for (int begin = 0; begin < site_count; begin += threads) {
        int end = begin + threads < site_count ? begin + threads : site_count;
        if (graft->between != NULL && !graft->between(graft->between_context))
            return;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int i = begin; i < end; i++)
            if (graft->site_param[i] >= 0)
                module(graft, &sites[i], block);
    }
}
