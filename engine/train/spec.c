#include "engine/train/spec.h"

#include "engine/base/alloc.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define DPO_BETA_MAX 2.0 /* OpenAI's */

void gd_job_spec_release(struct gd_job_spec *spec)
{
    gd_evaluation_release(&spec->evaluation);
    gd_free(spec->model);
    gd_free(spec->init_from);
    gd_free(spec->training_file);
    gd_free(spec->validation_file);
    gd_free(spec->suffix);
    gd_adapter_config_release(&spec->adapter);
    for (int i = 0; i < spec->classes.labels.count; i++)
        gd_free(spec->classes.labels.names[i]);
    gd_free(spec->classes.labels.names);
    cJSON_Delete(spec->classes.weights);
    memset(spec, 0, sizeof(*spec));
}

static const char *const schedule_names[] = {"constant", "linear", "cosine"};
static const char *const incomparable_names[] = {"error", "drop"};
static const char *const overlong_names[] = {"error", "truncate", "drop"};
static const char *const precision_names[] = {"auto", "f32", "bf16"};

/* One of `names`, or unchanged when absent. */
static bool get_choice(const cJSON *object, const char *path, const char *key, const char *const *names, int count, int *out,
                       struct gd_error *err)
{
    const char *value = NULL;
    if (!gd_json_get_string(object, path, key, false, 1, 64, &value, err))
        return false;
    if (value == NULL)
        return true;
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], value) == 0) {
            *out = i;
            return true;
        }
    char param[96], list[160] = "";
    snprintf(param, sizeof(param), "%s%s%s", path, path[0] ? "." : "", key);
    for (int i = 0; i < count; i++)
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s'%s'", i ? ", " : "", names[i]);
    return gd_fail_param(err, GD_INVALID, param, "%s is '%s'; it must be one of %s", key, value, list);
}

/* "auto" counts as absent. */
static bool is_auto(const cJSON *object, const char *key)
{
    const cJSON *value = gd_json_find(object, key);
    return cJSON_IsString(value) && strcmp(value->valuestring, "auto") == 0;
}

static bool get_auto_int(const cJSON *object, const char *path, const char *key, int64_t min, int64_t max, int *out,
                         struct gd_error *err)
{
    int64_t value = *out;
    if (is_auto(object, key))
        return true;
    if (!gd_json_get_int(object, path, key, false, min, max, &value, err))
        return false;
    *out = (int)value;
    return true;
}

static bool get_auto_number(const cJSON *object, const char *path, const char *key, double min, double max, double *out,
                            struct gd_error *err)
{
    return is_auto(object, key) || gd_json_get_number(object, path, key, false, min, max, out, err);
}

#define FEED_FORWARD "feed_forward"

cJSON *gd_checkpointing_json(enum gd_checkpointing checkpointing)
{
    return checkpointing == GD_CHECKPOINTING_FEED_FORWARD ? cJSON_CreateString(FEED_FORWARD) : cJSON_CreateBool(checkpointing == GD_CHECKPOINTING_ON);
}

static bool get_checkpointing(const cJSON *object, const char *path, enum gd_checkpointing *out, struct gd_error *err)
{
    const cJSON *value = gd_json_find(object, "gradient_checkpointing");
    char param[96];
    if (value == NULL || cJSON_IsNull(value) || is_auto(object, "gradient_checkpointing"))
        return true;
    snprintf(param, sizeof(param), "%s.gradient_checkpointing", path);
    bool feed_forward = cJSON_IsString(value) && strcmp(value->valuestring, FEED_FORWARD) == 0;
    if (!cJSON_IsBool(value) && !feed_forward)
        return gd_fail_param(err, GD_INVALID, param, "gradient_checkpointing must be true, false, \"" FEED_FORWARD "\" or \"auto\"");
    *out = feed_forward ? GD_CHECKPOINTING_FEED_FORWARD : cJSON_IsTrue(value) ? GD_CHECKPOINTING_ON : GD_CHECKPOINTING_OFF;
    return true;
}

/* OpenAI's members alone (the deprecated place), those and the extensions, or all of them with dpo's beta. */
enum members { STANDARD, EXTENDED, EXTENDED_DPO };

static bool parse_hyperparameters(struct gd_job_spec *spec, const cJSON *object, const char *path, enum members members,
                                  struct gd_error *err)
{
    static const char *const standard[] = {"batch_size", "learning_rate_multiplier", "n_epochs", NULL};
    const char *const all[] = {"batch_size", "learning_rate_multiplier", "n_epochs", "learning_rate", "weight_decay",
                                      "adam_beta1", "adam_beta2", "adam_eps", "max_grad_norm", "lr_scheduler_type",
                                      "warmup_ratio", "max_steps", "gradient_leaves", "tokens_per_batch", "eval_interval",
                                      "checkpoint_interval", "gradient_checkpointing", "router_aux_loss_coef",
                                      members == EXTENDED_DPO ? "beta" : NULL, NULL};
    if (!gd_json_only_known(object, path, members == STANDARD ? standard : all, err) ||
        (members == EXTENDED_DPO && !get_auto_number(object, path, "beta", spec->preference.term[0].loss->range[GD_PREFERENCE_BETA].min,
                                                     DPO_BETA_MAX, &spec->preference.term[0].parameter[GD_PREFERENCE_BETA], err)))
        return false;
    int schedule = (int)spec->schedule;
    bool ok = get_auto_int(object, path, "batch_size", 1, 256, &spec->batch_size, err) &&
              get_auto_number(object, path, "learning_rate_multiplier", 1e-9, 1e9, &spec->learning_rate_multiplier, err) &&
              get_auto_int(object, path, "n_epochs", 1, 50, &spec->n_epochs, err) &&
              get_auto_number(object, path, "learning_rate", 1e-12, 100.0, &spec->learning_rate, err) &&
              gd_json_get_number(object, path, "weight_decay", false, 0.0, 10.0, &spec->weight_decay, err) &&
              gd_json_get_number(object, path, "adam_beta1", false, 0.0, 0.999999, &spec->adam_beta1, err) &&
              gd_json_get_number(object, path, "adam_beta2", false, 0.0, 0.9999999, &spec->adam_beta2, err) &&
              gd_json_get_number(object, path, "adam_eps", false, 1e-20, 1.0, &spec->adam_eps, err) &&
              gd_json_get_number(object, path, "max_grad_norm", false, 0.0, 1e9, &spec->max_grad_norm, err) &&
              get_choice(object, path, "lr_scheduler_type", schedule_names, 3, &schedule, err) &&
              gd_json_get_number(object, path, "warmup_ratio", false, 0.0, 1.0, &spec->warmup_ratio, err) &&
              get_auto_int(object, path, "max_steps", 1, 100000000, &spec->max_steps, err) &&
              get_auto_int(object, path, "gradient_leaves", 1, 256, &spec->leaf_count, err) &&
              get_auto_int(object, path, "tokens_per_batch", 16, 1 << 20, &spec->tokens_per_batch, err) &&
              get_auto_int(object, path, "eval_interval", 1, 100000000, &spec->eval_interval, err) &&
              get_auto_int(object, path, "checkpoint_interval", 1, 100000000, &spec->checkpoint_interval, err) &&
              get_checkpointing(object, path, &spec->gradient_checkpointing, err) &&
              get_auto_number(object, path, "router_aux_loss_coef", 0.0, GD_ROUTER_LOSS_MAX, &spec->router_aux_loss_coef, err);
    spec->schedule = (enum gd_schedule)schedule;
    char param[96];
    if (ok && (spec->leaf_count & (spec->leaf_count - 1)) != 0) {
        snprintf(param, sizeof(param), "%s.gradient_leaves", path);
        ok = gd_fail_param(err, GD_INVALID, param, "gradient_leaves is %d; it must be a power of two", spec->leaf_count);
    }
    if (ok && spec->learning_rate > 0 && spec->learning_rate_multiplier > 0) {
        snprintf(param, sizeof(param), "%s.learning_rate", path);
        ok = gd_fail_param(err, GD_INVALID, param, "learning_rate and learning_rate_multiplier exclude each other: give one");
    }
    return ok;
}

static const char *const method_names[] = {"supervised", "dpo", "preference", "reward", "classification"};

/* The member of the method's name, which alone may stand beside type. */
static bool find_options(const cJSON *method, const char *type, const cJSON **options, struct gd_error *err)
{
    const char *const known[] = {"type", "supervised", "dpo", "preference", "reward", "classification", NULL};
    if (!gd_json_only_known(method, "method", known, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(method_names); i++) {
        const cJSON *other = gd_json_find(method, method_names[i]);
        char param[32];
        snprintf(param, sizeof param, "method.%s", method_names[i]);
        if (other != NULL && !cJSON_IsNull(other) && strcmp(type, method_names[i]) != 0)
            return gd_fail_param(err, GD_INVALID, param, "%s belongs to method type '%s', but method.type is '%s'", param,
                                 method_names[i], type);
    }
    return gd_json_get_object(method, "method", type, false, options, err);
}

#define GD_REFERENCE_NAME(name, wire) [GD_REFERENCE_##name] = wire,
static const char *const reference_names[] = {GD_REFERENCE_LIST(GD_REFERENCE_NAME)};
#undef GD_REFERENCE_NAME

static bool parse_reference(struct gd_job_spec *spec, const cJSON *options, const char *path, struct gd_error *err)
{
    bool has = gd_preference_has(&spec->preference, GD_LOSS_REFERENCE);
    int reference = has ? GD_REFERENCE_BASE : GD_REFERENCE_NONE;
    char param[64];
    if (options != NULL && !get_choice(options, path, "reference", reference_names, GD_REFERENCES, &reference, err))
        return false;
    spec->reference = (enum gd_reference)reference;
    snprintf(param, sizeof param, "%s.reference", path);
    if (has && reference == GD_REFERENCE_NONE && gd_preference_answers(&spec->preference) == GD_ANSWERS_LABELLED)
        return gd_fail_param(err, GD_INVALID, param, "loss %s cannot do without a reference: one answer is likely or not only against it",
                             spec->preference.term[0].loss->name);
    return has || reference == GD_REFERENCE_NONE ||
           gd_fail_param(err, GD_INVALID, param, "loss %s compares with no reference; leave %s out, or set it to 'none'",
                         spec->preference.term[0].loss->name, param);
}

/* A head beside the graft, on scores of whole answers. */
static bool parse_reward(struct gd_job_spec *spec, const cJSON *options, const char *path, struct gd_error *err)
{
    const char *name = gd_preference_parameter_name(GD_PREFERENCE_CENTER_REWARDS);
    const char *const known[] = {"hyperparameters", name, NULL};
    gd_preference_default(&spec->preference, &gd_preference_reward);
    spec->reference = GD_REFERENCE_NONE;
    const struct gd_preference_range *range = &gd_preference_reward.range[GD_PREFERENCE_CENTER_REWARDS];
    return options == NULL ||
           (gd_json_only_known(options, path, known, err) &&
            get_auto_number(options, path, name, range->min, range->max,
                            &spec->preference.term[0].parameter[GD_PREFERENCE_CENTER_REWARDS], err));
}

static bool read_labels(struct gd_classes_spec *classes, const cJSON *list, struct gd_error *err)
{
    static const char path[] = "method.classification.labels";
    int count = cJSON_GetArraySize(list), index = 0;
    const cJSON *item;
    if (count < (classes->multi ? 1 : 2) || count > GD_TASKS_MAX)
        return gd_fail_param(err, GD_INVALID, path, "%s has %d names; give %d to %d, or leave it out for those of the training file", path, count,
                             classes->multi ? 1 : 2, GD_TASKS_MAX);
    classes->labels.names = gd_alloc_array((size_t)count, sizeof *classes->labels.names);
    cJSON_ArrayForEach(item, list) {
        char buffer[GD_TASK_NAME_MAX + 1];
        const char *name = gd_label_name(item, buffer);
        if (name == NULL)
            return gd_fail_param(err, GD_INVALID, path, "%s[%d] must be a name of 1 to %d bytes, or a whole number from 0", path, index,
                                 GD_TASK_NAME_MAX);
        for (int i = 0; i < classes->labels.count; i++)
            if (strcmp(classes->labels.names[i], name) == 0)
                return gd_fail_param(err, GD_INVALID, path, "%s has '%s' twice", path, name);
        classes->labels.names[classes->labels.count++] = gd_strdup(name);
        index++;
    }
    return true;
}

static bool read_class_weights(struct gd_classes_spec *classes, const cJSON *weights, struct gd_error *err)
{
    static const char path[] = "method.classification.class_weights";
    const cJSON *item;
    bool balanced = cJSON_IsString(weights) && strcmp(weights->valuestring, "balanced") == 0;
    if (!balanced && !cJSON_IsObject(weights))
        return gd_fail_param(err, GD_INVALID, path, "%s must be \"balanced\", or an object with a number for each label", path);
    if (classes->multi)
        return gd_fail_param(err, GD_INVALID, path, "%s are of rows with one label; leave them out with multi_label_classification", path);
    cJSON_ArrayForEach(item, weights)
        if (!cJSON_IsNumber(item) || !(item->valuedouble > 0) || item->valuedouble > 1e6)
            return gd_fail_param(err, GD_INVALID, path, "%s.%s must be a number above 0, at most 1000000", path, item->string);
    classes->weights = cJSON_Duplicate(weights, true);
    return true;
}

static const char *const problem_names[] = {"single_label_classification", "multi_label_classification"};

/* A head beside the graft, over labels. */
static bool parse_classification(struct gd_job_spec *spec, const cJSON *options, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"hyperparameters", "labels", "problem_type", "class_weights", NULL};
    const cJSON *labels = NULL, *weights = gd_json_find(options, "class_weights");
    int problem = 0;
    spec->classes.on = true;
    spec->reference = GD_REFERENCE_NONE;
    if (options == NULL)
        return true;
    if (!gd_json_only_known(options, path, known, err) || !get_choice(options, path, "problem_type", problem_names, 2, &problem, err) ||
        !gd_json_get_array(options, path, "labels", false, &labels, err))
        return false;
    spec->classes.multi = problem == 1;
    return (labels == NULL || read_labels(&spec->classes, labels, err)) &&
           (weights == NULL || cJSON_IsNull(weights) || read_class_weights(&spec->classes, weights, err));
}

/* The loss of the method; the members beside "hyperparameters" are checked. */
static bool parse_options(struct gd_job_spec *spec, const cJSON *options, const char *path, struct gd_error *err)
{
    bool dpo = strcmp(spec->method, "dpo") == 0;
    const char *const known[] = {"hyperparameters", dpo ? "reference" : NULL, NULL};
    if (strcmp(spec->method, "reward") == 0)
        return parse_reward(spec, options, path, err);
    if (strcmp(spec->method, "classification") == 0)
        return parse_classification(spec, options, path, err);
    if (strcmp(spec->method, "preference") == 0) {
        if (options == NULL)
            return gd_fail_param(err, GD_MISSING, "method.preference", "method.preference is missing: it names the loss");
        return gd_preference_parse(&spec->preference, options, path, err) && parse_reference(spec, options, path, err);
    }
    if (dpo)
        gd_preference_default(&spec->preference, gd_preference_find("dpo"));
    return (options == NULL || gd_json_only_known(options, path, known, err)) && (!dpo || parse_reference(spec, options, path, err));
}

/* KTO pairs each row's prompt with another row's answer. */
static bool check_step(const struct gd_job_spec *spec, const char *path, struct gd_error *err)
{
    char param[112];
    snprintf(param, sizeof param, "%s.batch_size", path);
    return spec->preference.term_count == 0 || spec->batch_size != 1 || !gd_preference_has(&spec->preference, GD_LOSS_KL) ||
           gd_fail_param(err, GD_INVALID, param, "batch_size is 1; kto compares the rows of a step with each other and needs 2 or more");
}

static bool parse_method(struct gd_job_spec *spec, const cJSON *body, struct gd_error *err)
{
    const cJSON *method = NULL, *options = NULL, *nested = NULL, *top = NULL;
    const char *type = "supervised";
    char path[64], hyper[96];
    if (!gd_json_get_object(body, "", "method", false, &method, err) ||
        !gd_json_get_object(body, "", "hyperparameters", false, &top, err) ||
        (method != NULL && !gd_json_get_string(method, "method", "type", true, 1, 64, &type, err)))
        return false;
    bool found = false;
    for (size_t i = 0; i < GD_COUNT(method_names); i++)
        found |= strcmp(method_names[i], type) == 0;
    if (!found)
        return gd_fail_param(err, GD_UNSUPPORTED, "method.type",
                             "method type '%s' is not supported by this version; 'supervised', 'dpo', 'preference', 'reward' and 'classification' are", type);
    snprintf(spec->method, sizeof(spec->method), "%s", type);
    snprintf(path, sizeof path, "method.%s", type);
    snprintf(hyper, sizeof hyper, "%s.hyperparameters", path);
    if ((method != NULL && !find_options(method, type, &options, err)) || !parse_options(spec, options, path, err) ||
        (options != NULL && !gd_json_get_object(options, path, "hyperparameters", false, &nested, err)))
        return false;
    if (top != NULL && nested != NULL)
        return gd_fail_param(err, GD_INVALID, "hyperparameters",
                             "hyperparameters and %s are both given; the first is deprecated: keep the second", hyper);
    if (nested != NULL)
        return parse_hyperparameters(spec, nested, hyper, strcmp(type, "dpo") == 0 ? EXTENDED_DPO : EXTENDED, err) &&
               check_step(spec, hyper, err);
    return top == NULL || (parse_hyperparameters(spec, top, "hyperparameters", STANDARD, err) && check_step(spec, "hyperparameters", err));
}

static bool parse_data(struct gd_job_spec *spec, const cJSON *body, struct gd_error *err)
{
    static const char *const known[] = {"overlong", "incomparable", "max_length", NULL};
    const cJSON *data = NULL;
    int overlong = (int)spec->overlong, incomparable = spec->drop_incomparable;
    if (!gd_json_get_object(body, "", "data", false, &data, err))
        return false;
    if (data == NULL)
        return true;
    bool ok = gd_json_only_known(data, "data", known, err) &&
              get_choice(data, "data", "overlong", overlong_names, 3, &overlong, err) &&
              get_choice(data, "data", "incomparable", incomparable_names, 2, &incomparable, err) &&
              get_auto_int(data, "data", "max_length", 8, 1 << 24, &spec->max_length, err);
    spec->overlong = (enum gd_overlong)overlong;
    spec->drop_incomparable = incomparable != 0;
    return ok;
}

static bool suffix_ok(const char *suffix)
{
    for (const char *c = suffix; *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("-_.", *c)))
            return false;
    return true;
}

static bool parse_top(struct gd_job_spec *spec, const cJSON *body, struct gd_error *err)
{
    static const char *const known[] = {"model", "init_from", "training_file", "validation_file", "suffix", "seed", "metadata",
                                        "integrations", "hyperparameters", "method", "adapter", "data", "precision", "quantization",
                                        "evaluation", NULL};
    const char *model = NULL, *init = NULL, *training = NULL, *validation = NULL, *suffix = NULL;
    if (!gd_json_only_known(body, "", known, err) ||
        !gd_json_get_string(body, "", "model", true, 1, 512, &model, err) ||
        !gd_json_get_string(body, "", "init_from", false, 1, 4095, &init, err) ||
        !gd_json_get_string(body, "", "training_file", true, 1, 4095, &training, err) ||
        !gd_json_get_string(body, "", "validation_file", false, 1, 4095, &validation, err) ||
        !gd_json_get_string(body, "", "suffix", false, 1, 64, &suffix, err) ||
        !gd_json_get_int(body, "", "seed", false, 0, 2147483647, &spec->seed, err))
        return false;
    if (suffix != NULL && !suffix_ok(suffix))
        return gd_fail_param(err, GD_INVALID, "suffix", "suffix '%s' may hold letters, digits, '-', '_' and '.' only", suffix);
    int precision = 0;
    if (!get_choice(body, "", "precision", precision_names, 3, &precision, err))
        return false;
    strcpy(spec->precision, precision_names[precision]);
    int quantization = 0;
    if (!get_choice(body, "", "quantization", gd_quantization_names, GD_QUANTIZATION_COUNT, &quantization, err))
        return false;
    spec->quantization = (enum gd_quantization)quantization;
    spec->model = gd_strdup(model);
    spec->init_from = gd_strdup(init);
    spec->training_file = gd_strdup(training);
    spec->validation_file = gd_strdup(validation);
    spec->suffix = gd_strdup(suffix);
    return true;
}

bool gd_job_spec_parse(struct gd_job_spec *spec, const cJSON *body, struct gd_error *err)
{
    *spec = (struct gd_job_spec){.seed = -1, .adam_beta1 = 0.9, .adam_beta2 = 0.999, .adam_eps = 1e-8, .max_grad_norm = 1.0, .router_aux_loss_coef = -1,
                                 .schedule = GD_SCHEDULE_LINEAR, .warmup_ratio = 0.03};
    bool ok = cJSON_IsObject(body) || gd_fail(err, GD_INVALID, "the request body must be a JSON object");
    ok = ok && parse_top(spec, body, err) && parse_method(spec, body, err) && parse_data(spec, body, err) &&
         gd_adapter_config_parse(&spec->adapter, gd_json_find(body, "adapter"), err) &&
         gd_evaluation_parse(&spec->evaluation, body, spec->validation_file != NULL, err);
    spec->adapter.score = strcmp(spec->method, "reward") == 0;
    spec->adapter_given = ok && cJSON_IsObject(gd_json_find(body, "adapter"));
    if (!ok)
        gd_job_spec_release(spec);
    return ok;
}

static int clamp_int(int64_t value, int min, int max)
{
    return value < min ? min : value > max ? max : (int)value;
}

/* The rules stand in README.md, "Automatic values". */
bool gd_job_spec_resolve(struct gd_job_spec *spec, int64_t rows, int64_t tokens, int model_width, int model_context,
                         struct gd_error *err)
{
    bool preference = spec->preference.term_count > 0;
    if (rows < 1)
        return gd_fail_param(err, GD_BAD_FILE, "training_file", "the training file has no row with a token to train");
    if (spec->max_length == 0)
        spec->max_length = model_context;
    if (spec->max_length > model_context)
        return gd_fail_param(err, GD_INVALID, "data.max_length", "max_length is %d; the model's context is %d", spec->max_length,
                             model_context);
    if (spec->batch_size == 0) {
        int size = 4;
        while (size < 64 && (int64_t)size * 125 < rows)
            size *= 2;
        spec->batch_size = size;
    }
    if (spec->batch_size > rows)
        spec->batch_size = (int)rows;
    if (spec->n_epochs == 0)
        spec->n_epochs = clamp_int((2000 + rows / 2) / rows, 1, preference ? 3 : 10);
    if (spec->learning_rate == 0) {
        if (spec->learning_rate_multiplier == 0)
            spec->learning_rate_multiplier = 1.0;
        double base = 2e-4 * sqrt(4096.0 / model_width);
        base = base < 1e-4 ? 1e-4 : base > 1e-3 ? 1e-3 : base;
        if (preference && !spec->adapter.score) /* away from a reference that is good already: small steps */
            base /= 10;
        spec->learning_rate = base * spec->learning_rate_multiplier;
    }
    if (spec->leaf_count == 0)
        spec->leaf_count = 1;
    if (spec->tokens_per_batch == 0)
        spec->tokens_per_batch = 1024;
    int64_t steps_per_epoch = (rows + spec->batch_size - 1) / spec->batch_size;
    int64_t total = spec->max_steps > 0 ? spec->max_steps : steps_per_epoch * spec->n_epochs;
    if (spec->eval_interval == 0)
        spec->eval_interval = clamp_int((total + 4) / 5, 1, 1000);
    if (spec->checkpoint_interval == 0)
        spec->checkpoint_interval = clamp_int((total + 4) / 5, 10, 200);
    (void)tokens;
    return true;
}

char *gd_job_spec_pass_key(const struct gd_job_spec *spec)
{
    bool shares = strcmp(spec->method, "supervised") == 0 && spec->adapter.method->shares_pass && !spec->adapter.score;
    return shares ? gd_format("%s %s %s", gd_quantization_names[spec->quantization], spec->precision, spec->model) : NULL;
}

cJSON *gd_job_spec_hyperparameters(const struct gd_job_spec *spec)
{
    cJSON *json = cJSON_CreateObject();
    bool resolved = spec->tokens_per_batch > 0 && spec->n_epochs > 0 && spec->batch_size > 0 && spec->learning_rate > 0;
    if (spec->n_epochs > 0)
        cJSON_AddNumberToObject(json, "n_epochs", spec->n_epochs);
    else
        cJSON_AddStringToObject(json, "n_epochs", "auto");
    if (spec->batch_size > 0)
        cJSON_AddNumberToObject(json, "batch_size", spec->batch_size);
    else
        cJSON_AddStringToObject(json, "batch_size", "auto");
    if (spec->learning_rate_multiplier > 0)
        cJSON_AddNumberToObject(json, "learning_rate_multiplier", spec->learning_rate_multiplier);
    else if (spec->learning_rate == 0)
        cJSON_AddStringToObject(json, "learning_rate_multiplier", "auto");
    if (strcmp(spec->method, "dpo") == 0)
        cJSON_AddNumberToObject(json, "beta", spec->preference.term[0].parameter[GD_PREFERENCE_BETA]);
    if (!resolved)
        return json;
    cJSON_AddNumberToObject(json, "learning_rate", spec->learning_rate);
    cJSON_AddNumberToObject(json, "weight_decay", spec->weight_decay);
    cJSON_AddNumberToObject(json, "adam_beta1", spec->adam_beta1);
    cJSON_AddNumberToObject(json, "adam_beta2", spec->adam_beta2);
    cJSON_AddNumberToObject(json, "adam_eps", spec->adam_eps);
    cJSON_AddNumberToObject(json, "max_grad_norm", spec->max_grad_norm);
    cJSON_AddStringToObject(json, "lr_scheduler_type", schedule_names[spec->schedule]);
    cJSON_AddNumberToObject(json, "warmup_ratio", spec->warmup_ratio);
    if (spec->max_steps > 0)
        cJSON_AddNumberToObject(json, "max_steps", spec->max_steps);
    cJSON_AddNumberToObject(json, "gradient_leaves", spec->leaf_count);
    cJSON_AddNumberToObject(json, "tokens_per_batch", spec->tokens_per_batch);
    cJSON_AddNumberToObject(json, "eval_interval", spec->eval_interval);
    cJSON_AddNumberToObject(json, "checkpoint_interval", spec->checkpoint_interval);
    if (spec->gradient_checkpointing != GD_CHECKPOINTING_AUTO)
        cJSON_AddItemToObject(json, "gradient_checkpointing", gd_checkpointing_json(spec->gradient_checkpointing));
    if (spec->router_aux_loss_coef >= 0)
        cJSON_AddNumberToObject(json, "router_aux_loss_coef", spec->router_aux_loss_coef);
    return json;
}

static void add_number_unless_auto(cJSON *json, const char *key, double value)
{
    if (value > 0)
        cJSON_AddNumberToObject(json, key, value);
}

cJSON *gd_job_spec_json(const struct gd_job_spec *spec)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "model", spec->model);
    if (spec->init_from != NULL)
        cJSON_AddStringToObject(json, "init_from", spec->init_from);
    cJSON_AddStringToObject(json, "training_file", spec->training_file);
    if (spec->validation_file != NULL)
        cJSON_AddStringToObject(json, "validation_file", spec->validation_file);
    if (spec->suffix != NULL)
        cJSON_AddStringToObject(json, "suffix", spec->suffix);
    if (spec->seed >= 0)
        cJSON_AddNumberToObject(json, "seed", (double)spec->seed);
    cJSON_AddStringToObject(json, "precision", spec->precision);
    cJSON_AddStringToObject(json, "quantization", gd_quantization_names[spec->quantization]);
    if (spec->adapter_given || spec->init_from == NULL)
        cJSON_AddItemToObject(json, "adapter", gd_adapter_config_json(&spec->adapter));
    cJSON *evaluation = gd_evaluation_json(&spec->evaluation);
    if (evaluation != NULL)
        cJSON_AddItemToObject(json, "evaluation", evaluation);
    cJSON *data = cJSON_AddObjectToObject(json, "data");
    cJSON_AddStringToObject(data, "overlong", overlong_names[spec->overlong]);
    if (spec->drop_incomparable)
        cJSON_AddStringToObject(data, "incomparable", "drop");
    add_number_unless_auto(data, "max_length", spec->max_length);
    cJSON *method = cJSON_AddObjectToObject(json, "method");
    cJSON_AddStringToObject(method, "type", spec->method);
    cJSON *options = cJSON_AddObjectToObject(method, spec->method);
    if (strcmp(spec->method, "preference") == 0)
        gd_preference_add_json(&spec->preference, options);
    if (spec->classes.on)
        cJSON_AddStringToObject(options, "problem_type", problem_names[spec->classes.multi]);
    if (spec->classes.labels.count > 0)
        cJSON_AddItemToObject(options, "labels", cJSON_CreateStringArray((const char *const *)(uintptr_t)spec->classes.labels.names,
                                                                         spec->classes.labels.count));
    if (spec->classes.weights != NULL)
        cJSON_AddItemToObject(options, "class_weights", cJSON_Duplicate(spec->classes.weights, true));
    if (spec->adapter.score)
        cJSON_AddNumberToObject(options, gd_preference_parameter_name(GD_PREFERENCE_CENTER_REWARDS),
                                spec->preference.term[0].parameter[GD_PREFERENCE_CENTER_REWARDS]);
    else if (spec->preference.term_count > 0)
        cJSON_AddStringToObject(options, "reference", reference_names[spec->reference]);
    cJSON *hyper = cJSON_AddObjectToObject(options, "hyperparameters");
    if (strcmp(spec->method, "dpo") == 0)
        cJSON_AddNumberToObject(hyper, "beta", spec->preference.term[0].parameter[GD_PREFERENCE_BETA]);
    add_number_unless_auto(hyper, "n_epochs", spec->n_epochs);
    add_number_unless_auto(hyper, "batch_size", spec->batch_size);
    /* A resolved rate stands for itself: the multiplier that led to it would exclude it. */
    if (spec->learning_rate > 0)
        cJSON_AddNumberToObject(hyper, "learning_rate", spec->learning_rate);
    else
        add_number_unless_auto(hyper, "learning_rate_multiplier", spec->learning_rate_multiplier);
    cJSON_AddNumberToObject(hyper, "weight_decay", spec->weight_decay);
    cJSON_AddNumberToObject(hyper, "adam_beta1", spec->adam_beta1);
    cJSON_AddNumberToObject(hyper, "adam_beta2", spec->adam_beta2);
    cJSON_AddNumberToObject(hyper, "adam_eps", spec->adam_eps);
    cJSON_AddNumberToObject(hyper, "max_grad_norm", spec->max_grad_norm);
    cJSON_AddStringToObject(hyper, "lr_scheduler_type", schedule_names[spec->schedule]);
    cJSON_AddNumberToObject(hyper, "warmup_ratio", spec->warmup_ratio);
    add_number_unless_auto(hyper, "max_steps", spec->max_steps);
    add_number_unless_auto(hyper, "gradient_leaves", spec->leaf_count);
    add_number_unless_auto(hyper, "tokens_per_batch", spec->tokens_per_batch);
    add_number_unless_auto(hyper, "eval_interval", spec->eval_interval);
    add_number_unless_auto(hyper, "checkpoint_interval", spec->checkpoint_interval);
    if (spec->gradient_checkpointing != GD_CHECKPOINTING_AUTO)
        cJSON_AddItemToObject(hyper, "gradient_checkpointing", gd_checkpointing_json(spec->gradient_checkpointing));
    if (spec->router_aux_loss_coef >= 0)
        cJSON_AddNumberToObject(hyper, "router_aux_loss_coef", spec->router_aux_loss_coef);
    return json;
}
