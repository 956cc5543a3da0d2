#include "engine/worker/usage.h"

#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/model/model.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int gd_usage_error(const char *command, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "graftd %s: ", command);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, " (see 'graftd %s --help')\n", command);
    return 2;
}

int gd_usage_bad_option(const char *command, int argc, char **argv)
{
    const char *given = optind > 0 && optind <= argc ? argv[optind - 1] : "";
    if (optopt != 0 && optopt < 256 && strncmp(given, "--", 2) != 0)
        return gd_usage_error(command, "option -%c is not known", optopt);
    return gd_usage_error(command, "option '%s' is not known or lacks its value", given);
}

bool gd_usage_int(const char *command, const char *flag, const char *text, int64_t min, int64_t max, int64_t *out)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < min || value > max) {
        gd_usage_error(command, "%s is '%s'; it must be an integer from %lld to %lld", flag, text, (long long)min, (long long)max);
        return false;
    }
    *out = value;
    return true;
}

bool gd_usage_number(const char *command, const char *flag, const char *text, double min, double max, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value) || value < min || value > max) {
        gd_usage_error(command, "%s is '%s'; it must be a number from %g to %g", flag, text, min, max);
        return false;
    }
    *out = value;
    return true;
}

int gd_command_failed(const char *command, const struct gd_error *err)
{
    if (err->param[0] != '\0')
        fprintf(stderr, "graftd %s: error: %s (%s)\n", command, err->message, err->param);
    else
        fprintf(stderr, "graftd %s: error: %s\n", command, err->message);
    return 1;
}

static char *id_of_path(const char *path)
{
    char *copy = gd_strdup(path);
    size_t length = strlen(copy);
    while (length > 1 && copy[length - 1] == '/')
        copy[--length] = '\0';
    const char *slash = strrchr(copy, '/');
    char *id = gd_strdup(slash && slash[1] ? slash + 1 : copy);
    size_t id_length = strlen(id);
    if (id_length > 5 && strcmp(id + id_length - 5, ".gguf") == 0)
        id[id_length - 5] = '\0';
    gd_free(copy);
    return id;
}

bool gd_usage_model(const char *model, const char *models_dir, char **id, char **path, struct gd_error *err)
{
    struct gd_model_entry *entries = NULL;
    int count = 0;
    *id = *path = NULL;
    if (models_dir != NULL) {
        if (!gd_model_list(models_dir, &entries, &count, err))
            return false;
        for (int i = 0; i < count && *path == NULL; i++) {
            if (strcmp(entries[i].id, model) == 0) {
                *id = gd_strdup(model);
                *path = gd_strdup(entries[i].path);
            }
        }
    }
    struct stat info;
    if (*path == NULL && stat(model, &info) == 0) {
        *id = id_of_path(model);
        *path = gd_strdup(model);
    }
    bool found = *path != NULL;
    if (!found && count > 0) {
        const char **names = gd_alloc_array((size_t)count, sizeof(char *));
        for (int i = 0; i < count; i++)
            names[i] = entries[i].id;
        const char *near = gd_nearest_name(model, names, (size_t)count);
        gd_fail_param(err, GD_NOT_FOUND, "model", "model '%s' is neither in %s nor a path; did you mean '%s'?", model, models_dir,
                      near ? near : names[0]);
        gd_free(names);
    } else if (!found) {
        gd_fail_param(err, GD_NOT_FOUND, "model", "model '%s' is not a path%s%s", model,
                      models_dir ? " and the models folder is empty: " : "", models_dir ? models_dir : "");
    }
    gd_model_list_release(entries, count);
    return found;
}
