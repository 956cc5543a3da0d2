/* config_labels.c - what config.json says of a model's head: its class, and what a classifier tells apart. */
#include "engine/base/alloc.h"
#include "engine/model/config_read.h"
#include "engine/model/text.h"
#include <stdio.h>
#include <stdlib.h>

#define PATH GD_CONFIG_PATH
#define LABEL_BYTES_MAX 256

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* What stands on the body of the family's own class. One of a suffix that its body does not know holds more than the body, and has
 * what the body's first has. */
static enum gd_head_kind own_head(const struct gd_family *family)
{
    for (const struct gd_class *each = family->body->classes; each->suffix != NULL; each++)
        if (ends_with(family->class_name, each->suffix))
            return each->head;
    return family->body->classes[0].head;
}

static bool refuse_class(const struct gd_config_reader *r, const char *name)
{
    size_t stem = gd_family_stem(r->family);
    char known[256];
    int used = snprintf(known, sizeof known, "%s", r->family->class_name);
    for (const struct gd_class *each = r->family->body->classes; each->suffix != NULL; each++)
        if (!ends_with(r->family->class_name, each->suffix) && used < (int)sizeof known)
            used += snprintf(known + used, sizeof known - (size_t)used, ", %.*s%s", (int)stem, r->family->class_name, each->suffix);
    return gd_config_refuse(r, "architectures", name, known);
}

static bool read_one_class(const struct gd_config_reader *r, const char *name)
{
    size_t stem = gd_family_stem(r->family);
    r->config->head = own_head(r->family);
    if (strcmp(name, r->family->class_name) == 0)
        return true;
    if (r->family->classifier != NULL && strcmp(name, r->family->classifier) == 0) {
        r->config->head = GD_HEAD_LABELS;
        return true;
    }
    for (const struct gd_class *each = r->family->body->classes; each->suffix != NULL; each++)
        if (strlen(name) == stem + strlen(each->suffix) && memcmp(name, r->family->class_name, stem) == 0 && ends_with(name, each->suffix)) {
            r->config->head = each->head;
            return true;
        }
    return refuse_class(r, name);
}

static void number_labels(struct gd_model_config *config, int count)
{
    config->label_count = count;
    config->labels = gd_alloc_array((size_t)count, sizeof *config->labels);
}

/* {"0": "negative", ...}: each number once, from 0. */
static bool read_names(const struct gd_config_reader *r, const cJSON *names)
{
    struct gd_model_config *config = r->config;
    int count = cJSON_GetArraySize(names);
    if (count < 1 || count > GD_LABELS_MAX)
        return gd_fail_param(r->err, GD_BAD_MODEL, PATH ".id2label", PATH ".id2label has %d labels; 1 to %d are supported", count, GD_LABELS_MAX);
    number_labels(config, count);
    for (const cJSON *each = names->child; each != NULL; each = each->next) {
        char *end;
        long id = strtol(each->string, &end, 10);
        if (*end != '\0' || end == each->string || id < 0 || id >= count || config->labels[id] != NULL)
            return gd_fail_param(r->err, GD_BAD_MODEL, PATH ".id2label", PATH ".id2label has the number \"%s\"; its %d labels must be "
                                 "numbered from 0, each once", gd_show_text(each->string).text, count);
        if (!cJSON_IsString(each) || strlen(each->valuestring) > LABEL_BYTES_MAX)
            return gd_fail_param(r->err, GD_BAD_MODEL, PATH ".id2label", PATH ".id2label.%ld is no name of at most %d bytes", id, LABEL_BYTES_MAX);
        config->labels[id] = gd_strdup(each->valuestring);
    }
    return true;
}

/* transformers: two labels where nothing is said. Of one label alone a softmax would say 1 to everything: it is so or not, as in
 * transformers' pipeline. */
static bool read_labels(const struct gd_config_reader *r)
{
    const cJSON *names = NULL;
    const char *problem = NULL;
    int count = 2;
    if (!gd_json_get_object(r->json, PATH, "id2label", false, &names, r->err) ||
        !gd_config_read_int(r, "num_labels", GD_LABELS_MAX, &count) ||
        (!gd_config_is_null(r->json, "problem_type") &&
         !gd_json_get_string(r->json, PATH, "problem_type", false, 1, 64, &problem, r->err)))
        return false;
    if (problem != NULL && strcmp(problem, "single_label_classification") != 0 && strcmp(problem, "multi_label_classification") != 0)
        return gd_config_refuse(r, "problem_type", problem, "single_label_classification, multi_label_classification");
    if (names != NULL && !read_names(r, names))
        return false;
    if (names == NULL)
        number_labels(r->config, count);
    r->config->multi_label = r->config->label_count == 1 || (problem != NULL && strcmp(problem, "multi_label_classification") == 0);
    for (int i = 0; names == NULL && i < count; i++)
        r->config->labels[i] = gd_format("LABEL_%d", i);
    return true;
}

bool gd_config_read_class(const struct gd_config_reader *r)
{
    const cJSON *classes = NULL;
    struct gd_model_config *config = r->config;
    config->head = own_head(r->family);
    if (!gd_json_get_array(r->json, PATH, "architectures", false, &classes, r->err))
        return false;
    for (const cJSON *each = classes != NULL ? classes->child : NULL; each != NULL; each = each->next)
        if (!cJSON_IsString(each))
            return gd_config_refuse(r, "architectures", "(not a string)", r->family->class_name);
        else if (!read_one_class(r, each->valuestring))
            return false;
    config->classifies = config->head == GD_HEAD_LABELS;
    config->masks = config->head == GD_HEAD_MASKED;
    config->tied |= config->classifies; /* there is no vocabulary product */
    return !config->classifies || read_labels(r);
}
