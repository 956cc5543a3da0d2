#include "engine/objective/labels.h"

#include <math.h>
#include <string.h>

static bool has(const struct gd_label_batch *batch, int row, int label)
{
    for (int32_t i = 0; i < batch->row_label_count[row]; i++)
        if (batch->row_labels[row][i] == label)
            return true;
    return false;
}

void gd_label_scores(const float *logits, int labels, bool multi, double *scores)
{
    double largest = -INFINITY, sum = 0;
    for (int i = 0; i < labels; i++)
        largest = fmax(largest, (double)logits[i]);
    for (int i = 0; i < labels; i++) {
        scores[i] = multi ? 1 / (1 + exp(-(double)logits[i])) : exp((double)logits[i] - largest);
        sum += scores[i];
    }
    for (int i = 0; i < labels && !multi; i++)
        scores[i] /= sum;
}

/* What a row's logits say, beside what is so. */
static void count_row(struct gd_label_batch *batch, int row, const float *z)
{
    bool all = true;
    int best = 0;
    for (int i = 1; i < batch->labels; i++)
        best = z[i] > z[best] ? i : best;
    for (int i = 0; i < batch->labels; i++) {
        bool is = has(batch, row, i), said = batch->multi ? z[i] > 0 : i == best;
        all &= is == said;
        if (batch->counts != NULL) {
            batch->counts[i].actual += is;
            batch->counts[i].predicted += said;
            batch->counts[i].both += is && said;
        }
    }
    batch->correct += all;
}

static double softmax_row(const struct gd_label_batch *batch, int row, const float *z, float *slopes)
{
    int label = batch->row_labels[row][0];
    double largest = -INFINITY, sum = 0, weight = batch->scale * (batch->weights != NULL ? batch->weights[label] : 1);
    for (int i = 0; i < batch->labels; i++)
        largest = fmax(largest, (double)z[i]);
    for (int i = 0; i < batch->labels; i++)
        sum += exp((double)z[i] - largest);
    for (int i = 0; i < batch->labels; i++)
        slopes[i] = (float)(weight * (exp((double)z[i] - largest) / sum - (i == label)));
    return weight * (log(sum) + largest - (double)z[label]);
}

/* log(1 + e^-|z|) keeps both ends finite. */
static double sigmoid_row(const struct gd_label_batch *batch, int row, const float *z, float *slopes)
{
    double loss = 0, weight = batch->scale / batch->labels;
    for (int i = 0; i < batch->labels; i++) {
        double x = (double)z[i], is = has(batch, row, i);
        loss += weight * (fmax(x, 0) - x * is + log1p(exp(-fabs(x))));
        slopes[i] = (float)(weight * (1 / (1 + exp(-x)) - is));
    }
    return loss;
}

double gd_label_loss(void *context, const float *logits, const float *aside, int64_t count, float *slopes)
{
    struct gd_label_batch *batch = context;
    double loss = 0;
    batch->correct = 0;
    memset(slopes, 0, (size_t)count * sizeof(*slopes));
    for (int row = 0; row < batch->rows; row++) {
        const float *z = logits + (int64_t)row * batch->labels;
        float *slope = slopes + (int64_t)row * batch->labels;
        loss += batch->multi ? sigmoid_row(batch, row, z, slope) : softmax_row(batch, row, z, slope);
        count_row(batch, row, z);
    }
    return loss;
}

double gd_macro_f1(const struct gd_label_counts *counts, int labels)
{
    double sum = 0;
    int seen = 0;
    for (int i = 0; i < labels; i++) {
        double all = (double)(counts[i].actual + counts[i].predicted);
        if (all > 0) {
            sum += 2 * (double)counts[i].both / all;
            seen++;
        }
    }
    return seen > 0 ? sum / seen : 0;
}
