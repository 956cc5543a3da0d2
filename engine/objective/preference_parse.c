/* {"loss": "simpo", "beta": 2.0, ...} or {"loss": [...], ...} to losses with their parameters, and back. */
#include "engine/objective/preference.h"

#include <stdio.h>
#include <string.h>

#define NAMES_MAX 96
#define WEIGHT_MAX 1000.0

#define GD_PREFERENCE_PARAMETER_NAME(name, wire, boolean) [GD_PREFERENCE_##name] = {wire, boolean},
static const struct {
    const char *name;
    bool boolean;
} parameters[] = {GD_PREFERENCE_PARAMETER_LIST(GD_PREFERENCE_PARAMETER_NAME)};
#undef GD_PREFERENCE_PARAMETER_NAME

/* TRL's names; the short forms are read as well. */
static const struct {
    const char *name, *other;
} divergences[] = {
    [GD_REVERSE_KL] = {"reverse_kl", "reverse_kl"},
    [GD_FORWARD_KL] = {"forward_kl", "forward_kl"},
    [GD_JS_DIVERGENCE] = {"js_divergence", "js"},
    [GD_ALPHA_DIVERGENCE] = {"alpha_divergence", "alpha"},
};
#define DIVERGENCE_ALPHA 0.5
#define SAMPLE 1024 /* TRL's */
#define SAMPLE_MAX 65536
#define RATIO_MIN 0.5
#define RATIO_MAX 10.0

const char *gd_preference_parameter_name(enum gd_preference_parameter parameter)
{
    return parameters[parameter].name;
}

static void default_term(struct gd_preference_term *term, const struct gd_preference_loss *loss)
{
    *term = (struct gd_preference_term){.loss = loss, .weight = 1};
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++)
        term->parameter[i] = loss->range[i].fallback;
}

/* TRL's ORPO learns the prompt, too. */
static bool learns_prompt(const struct gd_preference *preference)
{
    for (int i = 0; i < preference->term_count; i++)
        if (strcmp(preference->term[i].loss->name, "orpo") == 0)
            return true;
    return false;
}

static void begin(struct gd_preference *preference)
{
    *preference = (struct gd_preference){.ld_alpha = 1, .divergence_alpha = DIVERGENCE_ALPHA,
                                         .matching = {.sample = SAMPLE, .min = RATIO_MIN, .max = RATIO_MAX}};
}

void gd_preference_default(struct gd_preference *preference, const struct gd_preference_loss *loss)
{
    begin(preference);
    preference->term_count = 1;
    default_term(&preference->term[0], loss);
    preference->full_nll = learns_prompt(preference);
}

/* ---- losses ---- */

static bool fail_unknown_loss(const char *param, const char *name, struct gd_error *err)
{
    const char *names[NAMES_MAX];
    char list[400] = "";
    size_t count = 0;
    for (int i = 0; i < gd_preference_count && count + 2 <= NAMES_MAX; i++) {
        const struct gd_preference_loss *loss = &gd_preference_table[i];
        size_t used = strlen(list);
        names[count++] = loss->name;
        if (loss->alias != NULL)
            names[count++] = loss->alias;
        snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "", loss->name);
    }
    const char *nearest = gd_nearest_name(name, names, count);
    return gd_fail_param(err, GD_INVALID, param, "loss '%.64s' is not known%s%s%s; there are %s", name,
                         nearest != NULL ? " (did you mean '" : "", nearest != NULL ? nearest : "", nearest != NULL ? "'?)" : "",
                         list);
}

static bool is_given(const cJSON *value)
{
    return value != NULL && !cJSON_IsNull(value);
}

static void list_parameters(const struct gd_preference *preference, char *text, size_t size)
{
    text[0] = '\0';
    for (int k = 0; k < GD_PREFERENCE_PARAMETERS; k++) {
        bool taken = false;
        for (int i = 0; i < preference->term_count; i++)
            taken |= preference->term[i].loss->range[k].taken;
        size_t used = strlen(text);
        if (taken)
            snprintf(text + used, size - used, "%s%s", used > 0 ? ", " : "", parameters[k].name);
    }
    if (text[0] == '\0')
        snprintf(text, size, "none");
}

/* Parameter i of a term, from a member that is there. */
static bool parse_value(struct gd_preference_term *term, const cJSON *object, const char *path, int i, struct gd_error *err)
{
    const struct gd_preference_range *range = &term->loss->range[i];
    const cJSON *value = gd_json_find(object, parameters[i].name);
    bool flag = term->parameter[i] != 0;
    if (cJSON_IsString(value) && strcmp(value->valuestring, "auto") == 0)
        return true;
    if (!parameters[i].boolean)
        return gd_json_get_number(object, path, parameters[i].name, false, range->min, range->max, &term->parameter[i], err);
    if (!gd_json_get_bool(object, path, parameters[i].name, false, &flag, err))
        return false;
    term->parameter[i] = flag;
    return true;
}

/* Members of the method for every loss that has them; one that none has is an error. */
static bool parse_shared(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++) {
        bool taken = false;
        if (!is_given(gd_json_find(object, parameters[i].name)))
            continue;
        for (int t = 0; t < preference->term_count; t++) {
            if (!preference->term[t].loss->range[i].taken)
                continue;
            taken = true;
            if (!parse_value(&preference->term[t], object, path, i, err))
                return false;
        }
        char param[96], takes[200];
        snprintf(param, sizeof param, "%s.%s", path, parameters[i].name);
        list_parameters(preference, takes, sizeof takes);
        if (!taken && preference->term_count == 1)
            return gd_fail_param(err, GD_INVALID, param, "loss %s has no %s; it takes %s", preference->term[0].loss->name,
                                 parameters[i].name, takes);
        if (!taken)
            return gd_fail_param(err, GD_INVALID, param, "none of the losses has %s; they take %s", parameters[i].name, takes);
    }
    return true;
}

static bool find_loss(struct gd_preference *preference, const char *name, const char *param, struct gd_error *err)
{
    const struct gd_preference_loss *loss = gd_preference_find(name);
    if (loss == NULL)
        return fail_unknown_loss(param, name, err);
    for (int i = 0; i < preference->term_count; i++)
        if (preference->term[i].loss == loss)
            return gd_fail_param(err, GD_INVALID, param, "loss %s is in the list twice; give it the sum of the weights", loss->name);
    default_term(&preference->term[preference->term_count++], loss);
    return true;
}

/* {"name": "sft", "weight": 0.5, its own parameters}. */
static bool parse_item(struct gd_preference *preference, const cJSON *item, const char *path, struct gd_error *err)
{
    const char *known[GD_PREFERENCE_PARAMETERS + 3] = {"name", "weight"}, *name = NULL;
    char param[128];
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++)
        known[i + 2] = parameters[i].name;
    if (cJSON_IsString(item))
        return find_loss(preference, item->valuestring, path, err);
    if (!cJSON_IsObject(item))
        return gd_fail_param(err, GD_INVALID, path, "%s must be a loss's name or {\"name\", \"weight\", its parameters}", path);
    snprintf(param, sizeof param, "%s.name", path);
    if (!gd_json_only_known(item, path, known, err) || !gd_json_get_string(item, path, "name", true, 1, 64, &name, err) ||
        !find_loss(preference, name, param, err))
        return false;
    struct gd_preference one = {.term_count = 1, .term = {preference->term[preference->term_count - 1]}};
    if (!gd_json_get_number(item, path, "weight", false, 0, WEIGHT_MAX, &one.term[0].weight, err) ||
        !parse_shared(&one, item, path, err))
        return false;
    preference->term[preference->term_count - 1] = one.term[0];
    return true;
}

/* TRL's loss_weights: one number a loss. */
static bool parse_weights(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    const cJSON *weights = NULL, *weight, *item;
    const cJSON *losses = is_given(gd_json_find(object, "loss")) ? gd_json_find(object, "loss") : gd_json_find(object, "loss_type");
    char param[96];
    int index = 0;
    if (!gd_json_get_array(object, path, "loss_weights", false, &weights, err))
        return false;
    if (weights == NULL)
        return true;
    snprintf(param, sizeof param, "%s.loss_weights", path);
    if (cJSON_GetArraySize(weights) != preference->term_count)
        return gd_fail_param(err, GD_INVALID, param, "loss_weights has %d numbers for %d losses: give one for each",
                             cJSON_GetArraySize(weights), preference->term_count);
    cJSON_ArrayForEach(item, losses) {
        if (is_given(gd_json_find(item, "weight")))
            return gd_fail_param(err, GD_INVALID, param, "a weight in the list of losses and loss_weights exclude each other");
    }
    cJSON_ArrayForEach(weight, weights) {
        if (!cJSON_IsNumber(weight) || !(weight->valuedouble >= 0) || !(weight->valuedouble <= WEIGHT_MAX))
            return gd_fail_param(err, GD_INVALID, param, "loss_weights[%d] must be a number from 0 to %g", index, WEIGHT_MAX);
        preference->term[index++].weight = weight->valuedouble;
    }
    return true;
}

static bool parse_losses(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    const cJSON *loss = gd_json_find(object, "loss"), *type = gd_json_find(object, "loss_type"), *item;
    const char *key = is_given(loss) || !is_given(type) ? "loss" : "loss_type", *name = NULL;
    char param[96], at[112];
    int index = 0;
    snprintf(param, sizeof param, "%s.%s", path, key);
    if (is_given(loss) && is_given(type))
        return gd_fail_param(err, GD_INVALID, param, "loss and loss_type mean the same; keep one of them");
    loss = gd_json_find(object, key);
    if (!cJSON_IsArray(loss))
        return gd_json_get_string(object, path, key, true, 1, 64, &name, err) && find_loss(preference, name, param, err) &&
               parse_shared(preference, object, path, err) && parse_weights(preference, object, path, err);
    int count = cJSON_GetArraySize(loss);
    if (count < 1 || count > GD_PREFERENCE_TERMS_MAX)
        return gd_fail_param(err, GD_INVALID, param, "%s is a list of %d losses; it may have 1 to %d", key, count,
                             GD_PREFERENCE_TERMS_MAX);
    /* What is shared first, then what each one says itself. */
    struct gd_preference names = {0};
    cJSON_ArrayForEach(item, loss) {
        const cJSON *given = cJSON_IsObject(item) ? gd_json_find(item, "name") : item;
        snprintf(at, sizeof at, "%s[%d]", param, index++);
        if (!parse_item(preference, item, at, err))
            return false;
        if (!find_loss(&names, given->valuestring, at, err))
            return false;
    }
    if (!parse_shared(&names, object, path, err))
        return false;
    index = 0;
    cJSON_ArrayForEach(item, loss) {
        for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++)
            if (!cJSON_IsObject(item) || !is_given(gd_json_find(item, parameters[i].name)))
                preference->term[index].parameter[i] = names.term[index].parameter[i];
        index++;
    }
    return parse_weights(preference, object, path, err);
}

static bool check_sum(const struct gd_preference *preference, const char *path, struct gd_error *err)
{
    char param[96];
    bool any = false;
    snprintf(param, sizeof param, "%s.loss", path);
    for (int i = 0; i < preference->term_count; i++) {
        const struct gd_preference_loss *first = preference->term[0].loss, *loss = preference->term[i].loss;
        static const char *const rows[] = {"pairs of answers", "one answer with a label a row", "three answers a row"};
        any |= preference->term[i].weight > 0;
        if (loss->answers != first->answers)
            return gd_fail_param(err, GD_INVALID, param, "losses %s (over %s) and %s (over %s) cannot be summed", first->name,
                                 rows[first->answers], loss->name, rows[loss->answers]);
    }
    return any || gd_fail_param(err, GD_INVALID, param, "every loss has weight 0: there is nothing to train");
}

/* ---- modifiers ---- */

/* The first loss that lacks the trait, or NULL. */
static const char *without(const struct gd_preference *preference, unsigned trait)
{
    for (int i = 0; i < preference->term_count; i++)
        if (!(preference->term[i].loss->traits & trait))
            return preference->term[i].loss->name;
    return NULL;
}

static bool parse_divergence(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    const char *name = NULL, *names[GD_COUNT(divergences)];
    char param[112];
    bool found = false, has_alpha = is_given(gd_json_find(object, "f_alpha_divergence_coef"));
    if (!gd_json_get_string(object, path, "f_divergence_type", false, 1, 64, &name, err) ||
        !gd_json_get_number(object, path, "f_alpha_divergence_coef", false, 0, 100, &preference->divergence_alpha, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(divergences); i++) {
        names[i] = divergences[i].name;
        if (name != NULL && (strcmp(name, divergences[i].name) == 0 || strcmp(name, divergences[i].other) == 0)) {
            preference->divergence = (enum gd_divergence)i;
            found = true;
        }
    }
    snprintf(param, sizeof param, "%s.f_divergence_type", path);
    if (name != NULL && !found) {
        const char *nearest = gd_nearest_name(name, names, GD_COUNT(names));
        return gd_fail_param(err, GD_INVALID, param, "f_divergence_type '%.64s' is not known%s%s%s; there are reverse_kl, forward_kl, "
                             "js_divergence and alpha_divergence", name, nearest != NULL ? " (did you mean '" : "",
                             nearest != NULL ? nearest : "", nearest != NULL ? "'?)" : "");
    }
    const char *barred = without(preference, GD_LOSS_DIVERGENCE);
    if (preference->divergence != GD_REVERSE_KL && barred != NULL)
        return gd_fail_param(err, GD_INVALID, param, "loss %s takes no f_divergence_type but reverse_kl: only in losses of the margin "
                             "between both sides does the partition function cancel", barred);
    snprintf(param, sizeof param, "%s.f_alpha_divergence_coef", path);
    return !has_alpha || preference->divergence == GD_ALPHA_DIVERGENCE ||
           gd_fail_param(err, GD_INVALID, param, "f_alpha_divergence_coef belongs to f_divergence_type alpha_divergence");
}

static bool parse_scope(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    const char *scope = NULL;
    char param[96];
    preference->full_nll = learns_prompt(preference) && gd_preference_nll_weight(preference) > 0;
    if (!gd_json_get_string(object, path, "nll_scope", false, 1, 64, &scope, err))
        return false;
    if (scope == NULL)
        return true;
    snprintf(param, sizeof param, "%s.nll_scope", path);
    if (gd_preference_nll_weight(preference) == 0)
        return gd_fail_param(err, GD_INVALID, param, "nll_scope is of the negative log-likelihood, but no loss has one: give "
                             "nll_weight, or leave nll_scope out");
    preference->full_nll = strcmp(scope, "full") == 0;
    return preference->full_nll || strcmp(scope, "completion") == 0 ||
           gd_fail_param(err, GD_INVALID, param, "nll_scope is '%.64s'; it must be 'completion' or 'full'", scope);
}

static bool parse_matching(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    static const char *const own[] = {"prompt_sample_size", "min_density_ratio", "max_density_ratio"};
    char param[112];
    int64_t sample = preference->matching.sample;
    if (!gd_json_get_bool(object, path, "match_underlying_distribution", false, &preference->matching.on, err) ||
        !gd_json_get_int(object, path, own[0], false, 2, SAMPLE_MAX, &sample, err) ||
        !gd_json_get_number(object, path, own[1], false, 0, 1e6, &preference->matching.min, err) ||
        !gd_json_get_number(object, path, own[2], false, 0, 1e6, &preference->matching.max, err))
        return false;
    preference->matching.sample = (int)sample;
    for (size_t i = 0; i < GD_COUNT(own); i++) {
        snprintf(param, sizeof param, "%s.%s", path, own[i]);
        if (!preference->matching.on && is_given(gd_json_find(object, own[i])))
            return gd_fail_param(err, GD_INVALID, param, "%s belongs to match_underlying_distribution", own[i]);
    }
    snprintf(param, sizeof param, "%s.match_underlying_distribution", path);
    if (preference->matching.on && !gd_preference_has(preference, GD_LOSS_SHIFT))
        return gd_fail_param(err, GD_INVALID, param, "loss %s takes no match_underlying_distribution: it belongs to bco",
                             preference->term[0].loss->name);
    snprintf(param, sizeof param, "%s.min_density_ratio", path);
    return preference->matching.min <= preference->matching.max ||
           gd_fail_param(err, GD_INVALID, param, "min_density_ratio %g is above max_density_ratio %g", preference->matching.min,
                         preference->matching.max);
}

static bool parse_modifiers(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    char param[96];
    bool has_ld = is_given(gd_json_find(object, "ld_alpha"));
    bool pairs = gd_preference_answers(preference) == GD_ANSWERS_PAIR;
    if (!parse_divergence(preference, object, path, err) || !parse_scope(preference, object, path, err) ||
        !parse_matching(preference, object, path, err) ||
        !gd_json_get_number(object, path, "ld_alpha", false, 0, 1, &preference->ld_alpha, err) ||
        !gd_json_get_bool(object, path, "use_weighting", false, &preference->weighting, err))
        return false;
    const char *barred = NULL;
    for (int i = 0; i < preference->term_count; i++)
        if (preference->term[i].loss->scale != GD_PREFERENCE_PARAMETERS && !(preference->term[i].loss->traits & GD_LOSS_REFERENCE))
            barred = preference->term[i].loss->name;
    snprintf(param, sizeof param, "%s.ld_alpha", path);
    if (has_ld && (!pairs || barred != NULL))
        return gd_fail_param(err, GD_INVALID, param, "loss %s takes no ld_alpha: it belongs to losses over pairs with a reference",
                             barred != NULL ? barred : preference->term[0].loss->name);
    barred = without(preference, GD_LOSS_WEIGHTING);
    snprintf(param, sizeof param, "%s.use_weighting", path);
    if (preference->weighting && barred != NULL)
        return gd_fail_param(err, GD_INVALID, param, "loss %s takes no use_weighting: it is no mean over pairs that stand alone",
                             barred);
    return !preference->weighting || gd_preference_nll_weight(preference) == 0 ||
           gd_fail_param(err, GD_INVALID, param, "use_weighting and nll_weight exclude each other: the likelihood is a mean over "
                         "tokens, not over pairs");
}

bool gd_preference_parse(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    static const char *const own[] = {"loss", "loss_type", "loss_weights", "hyperparameters", "reference", "f_divergence_type",
                                      "f_alpha_divergence_coef", "ld_alpha", "use_weighting", "nll_scope",
                                      "match_underlying_distribution", "prompt_sample_size", "min_density_ratio", "max_density_ratio"};
    const char *known[GD_PREFERENCE_PARAMETERS + GD_COUNT(own) + 1] = {NULL};
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++)
        known[i] = parameters[i].name;
    memcpy(known + GD_PREFERENCE_PARAMETERS, own, sizeof own);
    begin(preference);
    return gd_json_only_known(object, path, known, err) && parse_losses(preference, object, path, err) &&
           check_sum(preference, path, err) && parse_modifiers(preference, object, path, err);
}

/* ---- back, and what follows from the losses ---- */

static void add_term(const struct gd_preference_term *term, cJSON *object)
{
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++) {
        if (!term->loss->range[i].taken)
            continue;
        if (parameters[i].boolean)
            cJSON_AddBoolToObject(object, parameters[i].name, term->parameter[i] != 0);
        else
            cJSON_AddNumberToObject(object, parameters[i].name, term->parameter[i]);
    }
}

void gd_preference_add_json(const struct gd_preference *preference, cJSON *object)
{
    if (preference->term_count == 1 && preference->term[0].weight == 1) {
        cJSON_AddStringToObject(object, "loss", preference->term[0].loss->name);
        add_term(&preference->term[0], object);
    } else {
        cJSON *list = cJSON_AddArrayToObject(object, "loss");
        for (int i = 0; i < preference->term_count; i++) {
            cJSON *item = cJSON_CreateObject();
            cJSON_AddStringToObject(item, "name", preference->term[i].loss->name);
            cJSON_AddNumberToObject(item, "weight", preference->term[i].weight);
            add_term(&preference->term[i], item);
            cJSON_AddItemToArray(list, item);
        }
    }
    if (preference->divergence != GD_REVERSE_KL)
        cJSON_AddStringToObject(object, "f_divergence_type", divergences[preference->divergence].name);
    if (preference->divergence == GD_ALPHA_DIVERGENCE)
        cJSON_AddNumberToObject(object, "f_alpha_divergence_coef", preference->divergence_alpha);
    if (preference->ld_alpha != 1)
        cJSON_AddNumberToObject(object, "ld_alpha", preference->ld_alpha);
    if (preference->weighting)
        cJSON_AddBoolToObject(object, "use_weighting", true);
    if (preference->matching.on) {
        cJSON_AddBoolToObject(object, "match_underlying_distribution", true);
        cJSON_AddNumberToObject(object, "prompt_sample_size", preference->matching.sample);
        cJSON_AddNumberToObject(object, "min_density_ratio", preference->matching.min);
        cJSON_AddNumberToObject(object, "max_density_ratio", preference->matching.max);
    }
    if (gd_preference_nll_weight(preference) > 0)
        cJSON_AddStringToObject(object, "nll_scope", preference->full_nll ? "full" : "completion");
}

enum gd_answers gd_preference_answers(const struct gd_preference *preference)
{
    return preference->term[0].loss->answers;
}

int gd_preference_sides(const struct gd_preference *preference)
{
    static const int sides[] = {[GD_ANSWERS_PAIR] = 2, [GD_ANSWERS_LABELLED] = 1, [GD_ANSWERS_TRIPLE] = 3};
    return sides[gd_preference_answers(preference)];
}

bool gd_preference_has(const struct gd_preference *preference, enum gd_preference_trait trait)
{
    for (int i = 0; i < preference->term_count; i++)
        if (preference->term[i].loss->traits & (unsigned)trait)
            return true;
    return false;
}

double gd_preference_nll_weight(const struct gd_preference *preference)
{
    double sum = 0;
    for (int i = 0; i < preference->term_count; i++) {
        const struct gd_preference_term *term = &preference->term[i];
        bool sft = term->loss->pair == NULL && term->loss->labelled == NULL;
        sum += term->weight * (sft ? 1 : term->parameter[GD_PREFERENCE_NLL_WEIGHT]);
    }
    return sum;
}

double gd_preference_gold_weight(const struct gd_preference *preference)
{
    double sum = 0;
    for (int i = 0; i < preference->term_count; i++)
        sum += preference->term[i].weight * preference->term[i].parameter[GD_PREFERENCE_TPO_ALPHA];
    return sum;
}

double gd_preference_shift_scale(const struct gd_preference *preference)
{
    for (int i = 0; i < preference->term_count; i++)
        if (preference->term[i].loss->traits & GD_LOSS_SHIFT)
            return preference->term[i].parameter[GD_PREFERENCE_BETA];
    return 0;
}
