/* task_metric.c - metric_list: which metrics there are for which kind of answer, and what each makes of one. */
#include "engine/base/alloc.h"
#include "engine/eval/corpus.h"
#include "engine/eval/grader_type.h"
#include "engine/eval/literal.h"
#include "engine/eval/lower.h"
#include "engine/eval/space.h"
#include "engine/eval/task_parts.h"

#include <float.h>
#include <math.h>
#include <string.h>

struct judgement {
    double score;                         /* the metric of this row alone */
    double values[GD_CORPUS_VALUES_MAX];  /* what the aggregation adds up */
};

typedef bool judge(const struct gd_task *task, const struct gd_task_metric *metric, const struct gd_task_outcome *outcome,
                   struct judgement *out, struct gd_error *err);

struct gd_task_metric_type {
    const char *name, *aggregation;
    unsigned outputs;         /* a bit for each gd_task_output */
    bool higher, by_default;
    bool binary;              /* 1 is a pass, 0 is not */
    judge *judge;
};

/* ---- choices ---- */

/* Which choice is meant; -1: none of them. */
static int gold_of(const cJSON *target, const cJSON *choices)
{
    int count = cJSON_GetArraySize(choices);
    if (cJSON_IsNumber(target))
        return target->valuedouble == floor(target->valuedouble) && target->valuedouble >= -count && target->valuedouble < count
                   ? ((int)target->valuedouble + count) % count
                   : -1;
    for (int i = 0; cJSON_IsString(target) && i < count; i++)
        if (strcmp(cJSON_GetArrayItem(choices, i)->valuestring, target->valuestring) == 0)
            return i;
    return -1;
}

static bool is_gold(const cJSON *target, const cJSON *choices, int choice)
{
    const cJSON *one;
    if (!cJSON_IsArray(target))
        return gold_of(target, choices) == choice;
    cJSON_ArrayForEach(one, target)
        if (gold_of(one, choices) == choice)
            return true;
    return false;
}

static size_t characters_of(const char *text)
{
    size_t count = 0;
    for (; *text != '\0'; text++)
        count += ((unsigned char)*text & 0xC0u) != 0x80u;
    return count;
}

enum length { LENGTH_NONE, LENGTH_CHARACTERS, LENGTH_BYTES, LENGTH_UNCONDITIONAL };

/* The choice with the highest log-likelihood, of several the first. */
static int best_choice(const struct gd_task_outcome *outcome, enum length length)
{
    int count = cJSON_GetArraySize(outcome->choices), best = 0;
    double highest = -INFINITY;
    for (int i = 0; i < count; i++) {
        const char *text = cJSON_GetArrayItem(outcome->choices, i)->valuestring;
        double value = outcome->asks[i].loglikelihood;
        if (length == LENGTH_CHARACTERS)
            value /= (double)characters_of(text);
        else if (length == LENGTH_BYTES)
            value /= (double)strlen(text);
        else if (length == LENGTH_UNCONDITIONAL)
            value -= outcome->asks[count + i].loglikelihood;
        if (value > highest) {
            highest = value;
            best = i;
        }
    }
    return best;
}

static bool judge_choice(const struct gd_task_outcome *outcome, enum length length, struct judgement *out, struct gd_error *err)
{
    const cJSON *target = outcome->target;
    if (!cJSON_IsArray(target) && gold_of(target, outcome->choices) < 0)
        return gd_fail(err, GD_INVALID, "doc_to_target names none of the %d choices", cJSON_GetArraySize(outcome->choices));
    out->score = out->values[0] = is_gold(target, outcome->choices, best_choice(outcome, length));
    return true;
}

static bool judge_acc(const struct gd_task *task, const struct gd_task_metric *metric, const struct gd_task_outcome *outcome,
                      struct judgement *out, struct gd_error *err)
{
    if (task->output == GD_TASK_CHOICE)
        return judge_choice(outcome, LENGTH_NONE, out, err);
    out->score = out->values[0] = outcome->asks[0].greedy;
    return true;
}

static bool judge_acc_norm(const struct gd_task *task, const struct gd_task_metric *metric,
                           const struct gd_task_outcome *outcome, struct judgement *out, struct gd_error *err)
{
    return judge_choice(outcome, LENGTH_CHARACTERS, out, err);
}

static bool judge_acc_bytes(const struct gd_task *task, const struct gd_task_metric *metric,
                            const struct gd_task_outcome *outcome, struct judgement *out, struct gd_error *err)
{
    return judge_choice(outcome, LENGTH_BYTES, out, err);
}

static bool judge_mutual(const struct gd_task *task, const struct gd_task_metric *metric,
                         const struct gd_task_outcome *outcome, struct judgement *out, struct gd_error *err)
{
    return judge_choice(outcome, LENGTH_UNCONDITIONAL, out, err);
}

static bool judge_pair(const struct gd_task *task, const struct gd_task_metric *metric, const struct gd_task_outcome *outcome,
                       struct judgement *out, struct gd_error *err)
{
    int gold = gold_of(outcome->target, outcome->choices), choice = best_choice(outcome, LENGTH_NONE);
    if (gold < 0)
        return gd_fail(err, GD_INVALID, "doc_to_target names none of the %d choices", cJSON_GetArraySize(outcome->choices));
    out->values[0] = gold;
    out->values[1] = choice;
    out->score = gold == choice;
    return true;
}

/* The squared distance of softmax(log-likelihoods) from the truth. */
static bool judge_brier(const struct gd_task *task, const struct gd_task_metric *metric, const struct gd_task_outcome *outcome,
                        struct judgement *out, struct gd_error *err)
{
    int count = cJSON_GetArraySize(outcome->choices), gold = gold_of(outcome->target, outcome->choices);
    if (gold < 0)
        return gd_fail(err, GD_INVALID, "doc_to_target names none of the %d choices", count);
    double highest = outcome->asks[best_choice(outcome, LENGTH_NONE)].loglikelihood, sum = 0, score = 0;
    for (int i = 0; i < count; i++)
        sum += exp(outcome->asks[i].loglikelihood - highest);
    for (int i = 0; i < count; i++) {
        double off = exp(outcome->asks[i].loglikelihood - highest) / sum - (i == gold);
        score += off * off;
    }
    out->score = out->values[0] = score;
    return true;
}

/* ---- likelihoods ---- */

static bool judge_perplexity(const struct gd_task *task, const struct gd_task_metric *metric,
                             const struct gd_task_outcome *outcome, struct judgement *out, struct gd_error *err)
{
    out->values[0] = outcome->asks[0].loglikelihood;
    out->score = exp(-out->values[0]);
    return true;
}

/* len(re.split(r"\s+", text)): runs of space, and one more */
static double count_words(const char *text)
{
    double count = 1;
    bool was = false, is;
    while (*text != '\0') {
        text += gd_space_skip(text, &is);
        count += is && !was;
        was = is;
    }
    return count;
}

static bool judge_words(const struct gd_task *task, const struct gd_task_metric *metric, const struct gd_task_outcome *outcome,
                        struct judgement *out, struct gd_error *err)
{
    out->values[0] = outcome->asks[0].loglikelihood;
    out->values[1] = count_words(outcome->scored);
    out->score = exp(-out->values[0] / out->values[1]);
    return true;
}

static bool judge_bytes(const struct gd_task *task, const struct gd_task_metric *metric, const struct gd_task_outcome *outcome,
                        struct judgement *out, struct gd_error *err)
{
    out->values[0] = outcome->asks[0].loglikelihood;
    out->values[1] = (double)strlen(outcome->scored);
    double nats = -out->values[0] / out->values[1];
    out->score = strcmp(metric->aggregation, "bits_per_byte") == 0 ? nats / log(2) : exp(nats);
    return true;
}

/* ---- texts ---- */

static bool drop_ignored(const struct gd_task_metric *metric, const char *text, char **out, struct gd_error *err)
{
    char *kept = gd_strdup(text);
    for (int i = 0; i < metric->ignored_count; i++) {
        struct gd_buf next;
        gd_buf_init(&next, 0);
        bool ok = gd_pattern_remove(metric->ignored[i], kept, &next, err);
        gd_free(kept);
        kept = gd_buf_take(&next);
        if (!ok) {
            gd_free(kept);
            return false;
        }
    }
    *out = kept;
    return true;
}

/* What is compared: without what the metric ignores. */
static bool normalise(const struct gd_task_metric *metric, const char *text, char **out, struct gd_error *err)
{
    static const char punctuation[] = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", digits[] = "0123456789";
    char *kept = NULL;
    if (!drop_ignored(metric, text, &kept, err))
        return false;
    if (metric->ignore_case) {
        struct gd_buf lower;
        gd_buf_init(&lower, 0);
        gd_lower(kept, strlen(kept), &lower);
        gd_free(kept);
        kept = gd_buf_take(&lower);
    }
    size_t used = 0;
    for (size_t i = 0; kept[i] != '\0'; i++)
        if (!(metric->ignore_punctuation && strchr(punctuation, kept[i]) != NULL) &&
            !(metric->ignore_numbers && strchr(digits, kept[i]) != NULL))
            kept[used++] = kept[i];
    kept[used] = '\0';
    *out = kept;
    return true;
}

static bool equals(const struct gd_task_metric *metric, const char *answer, const cJSON *target, bool *equal, struct gd_error *err)
{
    struct gd_buf text;
    char *a = NULL, *b = NULL;
    gd_buf_init(&text, 0);
    gd_literal_str(target, &text);
    bool ok = normalise(metric, answer, &a, err) && normalise(metric, text.data != NULL ? text.data : "", &b, err);
    *equal = ok && strcmp(a, b) == 0;
    gd_free(a);
    gd_free(b);
    gd_buf_release(&text);
    return ok;
}

/* doc_to_choice turns a number into the text that is meant. */
static const cJSON *meant(const struct gd_task_outcome *outcome)
{
    int gold = outcome->choices != NULL ? gold_of(outcome->target, outcome->choices) : -1;
    return gold >= 0 ? cJSON_GetArrayItem(outcome->choices, gold) : outcome->target;
}

static bool judge_exact_match(const struct gd_task *task, const struct gd_task_metric *metric,
                              const struct gd_task_outcome *outcome, struct judgement *out, struct gd_error *err)
{
    const cJSON *target = meant(outcome), *one;
    bool equal = false, any = false, ok = true;
    if (task->output == GD_TASK_CHOICE) {
        for (int i = 0; i < cJSON_GetArraySize(outcome->choices); i++)
            any = any || (outcome->asks[i].greedy && is_gold(outcome->target, outcome->choices, i));
    } else if (cJSON_IsArray(target)) {
        cJSON_ArrayForEach(one, target)
        {
            ok = ok && equals(metric, outcome->answer, one, &equal, err);
            any = any || equal;
        }
    } else {
        ok = equals(metric, outcome->answer, target, &any, err);
    }
    out->score = out->values[0] = any;
    return ok;
}

static bool reference_of(const struct gd_task_outcome *outcome, struct gd_buf *out, struct gd_error *err)
{
    const cJSON *target = meant(outcome);
    if (cJSON_IsArray(target))
        return gd_fail(err, GD_UNSUPPORTED, "bleu and chrf compare with one target, this row has a list");
    gd_literal_str(target, out);
    return true;
}

static bool judge_translation(const struct gd_task *task, const struct gd_task_metric *metric,
                              const struct gd_task_outcome *outcome, struct judgement *out, struct gd_error *err)
{
    static const uint32_t first = 0;
    struct gd_buf reference;
    gd_buf_init(&reference, 0);
    bool ok = reference_of(outcome, &reference, err);
    if (ok) {
        const char *text = reference.data != NULL ? reference.data : "";
        if (strcmp(metric->aggregation, "bleu") == 0)
            gd_bleu_values(outcome->answer, text, out->values);
        else
            gd_chrf_values(outcome->answer, text, out->values);
        out->score = gd_aggregation_find(metric->aggregation)->score(out->values, &first, 1);
    }
    gd_buf_release(&reference);
    return ok;
}

/* ---- the list ---- */

#define GENERATE (1u << GD_TASK_GENERATE)
#define LIKELIHOOD (1u << GD_TASK_LOGLIKELIHOOD)
#define ROLLING (1u << GD_TASK_ROLLING)
#define CHOICE (1u << GD_TASK_CHOICE)

static const struct gd_task_metric_type types[] = {
    /* name              aggregation            outputs               higher default binary */
    {"acc",             "mean",                LIKELIHOOD | CHOICE,   true,  true,  true,  judge_acc},
    {"acc_bytes",       "mean",                CHOICE,                true,  false, true,  judge_acc_bytes},
    {"acc_mutual_info", "mean",                CHOICE,                true,  false, true,  judge_mutual},
    {"acc_norm",        "mean",                CHOICE,                true,  true,  true,  judge_acc_norm},
    {"bits_per_byte",   "bits_per_byte",       ROLLING,               false, true,  false, judge_bytes},
    {"bleu",            "bleu",                GENERATE,              true,  false, false, judge_translation},
    {"brier_score",     "mean",                CHOICE,                false, false, false, judge_brier},
    {"byte_perplexity", "weighted_perplexity", ROLLING,               false, true,  false, judge_bytes},
    {"chrf",            "chrf",                GENERATE,              true,  false, false, judge_translation},
    {"exact_match",     "mean",                GENERATE | CHOICE,     true,  true,  true,  judge_exact_match},
    {"f1",              "f1",                  CHOICE,                true,  false, true,  judge_pair},
    {"mcc",             "matthews_corrcoef",   CHOICE,                true,  false, true,  judge_pair},
    {"perplexity",      "perplexity",          LIKELIHOOD,            false, true,  false, judge_perplexity},
    {"word_perplexity", "weighted_perplexity", ROLLING,               false, true,  false, judge_words},
};

static bool is_default(const struct gd_task_metric_type *type, enum gd_task_output output)
{
    return type->by_default && (type->outputs & (1u << output)) != 0 && !(output == GD_TASK_CHOICE && type->judge == judge_exact_match);
}

static void add_defaults(struct gd_task *task)
{
    for (size_t i = 0; i < GD_COUNT(types); i++)
        if (is_default(&types[i], task->output))
            task->metrics[task->metric_count++] = (struct gd_task_metric){
                .type = &types[i], .aggregation = types[i].aggregation, .higher_is_better = types[i].higher};
}

static bool parse_ignored(struct gd_task_metric *metric, const cJSON *json, const char *path, struct gd_error *err)
{
    const cJSON *list = NULL, *source;
    char *param = gd_format("%s.regexes_to_ignore", path);
    bool ok = gd_json_get_array(json, path, "regexes_to_ignore", false, &list, err);
    cJSON_ArrayForEach(source, list)
    {
        ok = ok && ((cJSON_IsString(source) && metric->ignored_count < (int)GD_COUNT(metric->ignored)) ||
                    gd_fail_param(err, GD_INVALID, param, "%s must be at most %zu regular expressions", param,
                                  GD_COUNT(metric->ignored)));
        ok = ok && (metric->ignored[metric->ignored_count] = gd_pattern_compile(source->valuestring, param, err)) != NULL;
        metric->ignored_count += ok;
    }
    gd_free(param);
    return ok;
}

static bool parse_exact_match(struct gd_task_metric *metric, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"aggregation", "hf_evaluate", "higher_is_better", "ignore_case", "ignore_numbers",
                                        "ignore_punctuation", "metric", "regexes_to_ignore", NULL};
    return gd_json_only_known(json, path, known, err) &&
           gd_json_get_bool(json, path, "ignore_case", false, &metric->ignore_case, err) &&
           gd_json_get_bool(json, path, "ignore_numbers", false, &metric->ignore_numbers, err) &&
           gd_json_get_bool(json, path, "ignore_punctuation", false, &metric->ignore_punctuation, err) &&
           parse_ignored(metric, json, path, err);
}

/* Another aggregation than the metric's own must add up the same number of numbers. */
static bool parse_aggregation(struct gd_task_metric *metric, const cJSON *json, const char *path, struct gd_error *err)
{
    const char *names[32], *wanted = NULL;
    int count = gd_aggregation_names(names, (int)GD_COUNT(names)), index = 0;
    metric->aggregation = metric->type->aggregation;
    if (!gd_json_get_string(json, path, "aggregation", false, 1, 64, &wanted, err) || wanted == NULL)
        return wanted == NULL && err->code == GD_OK;
    if (!gd_grader_choice(json, path, "aggregation", names, count, &index, err))
        return false;
    int values = gd_aggregation_find(metric->aggregation)->values;
    if (strcmp(wanted, metric->aggregation) != 0 && (values != 1 || gd_aggregation_find(wanted)->values != 1)) {
        char *param = gd_format("%s.aggregation", path);
        gd_fail_param(err, GD_INVALID, param, "%s: '%s' cannot add up %s, only '%s' can", param, wanted, metric->type->name,
                      metric->aggregation);
        gd_free(param);
        return false;
    }
    metric->aggregation = gd_aggregation_find(wanted)->name;
    return true;
}

static const struct gd_task_metric_type *find_type(const struct gd_task *task, const cJSON *json, const char *path,
                                                   struct gd_error *err)
{
    const char *names[GD_COUNT(types)];
    const struct gd_task_metric_type *fitting[GD_COUNT(types)];
    int count = 0, index = 0;
    for (size_t i = 0; i < GD_COUNT(types); i++)
        if ((types[i].outputs & (1u << task->output)) != 0) {
            fitting[count] = &types[i];
            names[count++] = types[i].name;
        }
    return gd_grader_choice(json, path, "metric", names, count, &index, err) ? fitting[index] : NULL;
}

static bool parse_metric(struct gd_task *task, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"aggregation", "hf_evaluate", "higher_is_better", "metric", NULL};
    struct gd_task_metric *metric = &task->metrics[task->metric_count];
    bool elsewhere = false;
    if (!cJSON_IsObject(json) || task->metric_count == GD_TASK_METRICS_MAX)
        return gd_fail_param(err, GD_INVALID, path, "%s must be a mapping with a metric, one of at most %d", path, GD_TASK_METRICS_MAX);
    task->metric_count++;
    metric->type = find_type(task, json, path, err);
    if (metric->type == NULL || !gd_json_get_bool(json, path, "hf_evaluate", false, &elsewhere, err))
        return false;
    if (elsewhere)
        return gd_fail_param(err, GD_UNSUPPORTED, path, "%s.hf_evaluate: metrics of the evaluate package are Python code", path);
    for (int i = 0; i < task->metric_count - 1; i++)
        if (task->metrics[i].type == metric->type)
            return gd_fail_param(err, GD_INVALID, path, "%s: the metric '%s' is there twice", path, metric->type->name);
    metric->higher_is_better = metric->type->higher;
    return parse_aggregation(metric, json, path, err) &&
           gd_json_get_bool(json, path, "higher_is_better", false, &metric->higher_is_better, err) &&
           (metric->type->judge == judge_exact_match ? parse_exact_match(metric, json, path, err)
                                                     : gd_json_only_known(json, path, known, err));
}

bool gd_task_metrics_parse(struct gd_task *task, const char *path, struct gd_error *err)
{
    const cJSON *list = NULL, *metric;
    int index = 0;
    if (!gd_json_get_array(task->config, path, "metric_list", false, &list, err))
        return false;
    if (list == NULL) {
        add_defaults(task);
        return true;
    }
    bool ok = cJSON_GetArraySize(list) > 0 || gd_fail_param(err, GD_INVALID, path, "%s.metric_list is empty", path);
    cJSON_ArrayForEach(metric, list)
    {
        char *at = gd_format("%s.metric_list[%d]", path, index++);
        ok = ok && parse_metric(task, metric, at, err);
        gd_free(at);
    }
    for (int i = 0; ok && i < task->metric_count; i++)
        task->mutual = task->mutual || task->metrics[i].type->judge == judge_mutual;
    return ok;
}

void gd_task_metrics_release(struct gd_task *task)
{
    for (int i = 0; i < task->metric_count; i++)
        for (int k = 0; k < task->metrics[i].ignored_count; k++)
            gd_pattern_destroy(task->metrics[i].ignored[k]);
}

char *gd_task_result_name(const struct gd_task_metric *metric, const char *filter)
{
    return gd_format("%s,%s", metric->type->name, filter);
}

cJSON *gd_task_judge(const struct gd_task *task, const struct gd_task_metric *metric, const char *filter,
                     const struct gd_task_outcome *outcome)
{
    struct judgement judgement = {.score = 0};
    struct gd_error err = {0};
    bool ok = metric->type->judge(task, metric, outcome, &judgement, &err);
    char *name = gd_task_result_name(metric, filter);
    cJSON *result = gd_eval_result(name, "task", judgement.score, ok && (!metric->type->binary || judgement.score == 1), &err, NULL);
    gd_free(name);
    cJSON_AddStringToObject(result, "aggregation", metric->aggregation);
    cJSON_AddBoolToObject(result, "higher_is_better", metric->higher_is_better);
    if (ok)
        cJSON_AddItemToObject(result, "values", cJSON_CreateDoubleArray(judgement.values, gd_aggregation_find(metric->aggregation)->values));
    return result;
}
