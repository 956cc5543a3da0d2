/* inspect.c - `graftd inspect`: what a model folder or file holds, and how a training row looks to it. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/tensor/device.h"
#include "engine/worker/command.h"
#include "engine/worker/usage.h"
#include "engine/worker/worker.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "Usage: graftd inspect MODEL [options]\n"
    "\n"
    "Shows architecture, tensors, dtypes, tokenizer, template, and the memory to tune and to serve.\n"
    "MODEL is a Hugging Face folder, a .gguf file, or an id in --models.\n"
    "\n"
    "  --models DIR       look ids up here\n"
    "  --tensors          list every tensor\n"
    "  --row FILE:LINE    instead: the text, tokens and loss mask that training would use for this row of a JSONL file\n"
    "  --json             print JSON\n"
    "  --help             this text\n";

static void print_value(const cJSON *value, int indent)
{
    const cJSON *item;
    if (cJSON_IsObject(value)) {
        fputc('\n', stdout);
        cJSON_ArrayForEach(item, value)
        {
            printf("%*s%-22s ", indent, "", item->string);
            print_value(item, indent + 2);
        }
    } else if (cJSON_IsArray(value) && cJSON_IsObject(value->child)) {
        fputc('\n', stdout);
        cJSON_ArrayForEach(item, value)
        {
            char *text = gd_json_print(item);
            printf("%*s%s\n", indent, "", text);
            gd_free(text);
        }
    } else if (cJSON_IsString(value)) {
        printf("%s\n", value->valuestring);
    } else {
        char *text = gd_json_print(value);
        printf("%s\n", text);
        gd_free(text);
    }
}

static void print_side(const cJSON *row)
{
    const cJSON *token;
    printf("tokens          %d, of which trained: %d%s\n\n%s\n\n", gd_json_find(row, "token_count")->valueint,
           gd_json_find(row, "trained_tokens")->valueint,
           cJSON_IsTrue(gd_json_find(row, "overlong")) ? " (longer than the model's context)" : "",
           gd_json_find(row, "text")->valuestring);
    printf("%8s %8s  %s\n", "id", "weight", "text");
    cJSON_ArrayForEach(token, gd_json_find(row, "tokens"))
    {
        char *text = gd_json_print(gd_json_find(token, "text"));
        printf("%8d %8g  %s\n", gd_json_find(token, "id")->valueint, gd_json_find(token, "weight")->valuedouble, text);
        gd_free(text);
    }
}

static void print_row(const cJSON *row)
{
    const cJSON *rejected = gd_json_find(row, "rejected");
    printf("format          %s\n", gd_json_find(row, "format")->valuestring);
    if (rejected != NULL)
        printf("\nchosen\n");
    print_side(row);
    if (rejected == NULL)
        return;
    printf("\nrejected\n");
    print_side(rejected);
}

/* Line `line` (1-based) of a file, without its newline. */
static bool read_line(const char *path, int64_t line, char **text, size_t *length, struct gd_error *err)
{
    FILE *file = fopen(path, "r");
    size_t capacity = 0;
    ssize_t got = -1;
    *text = NULL;
    if (file == NULL)
        return gd_fail_errno(err, errno, "open %s", path);
    for (int64_t i = 0; i < line && (got = getline(text, &capacity, file)) >= 0; i++)
        ;
    fclose(file);
    if (got < 0) {
        free(*text);
        return gd_fail(err, GD_NOT_FOUND, "%s has fewer than %lld lines", path, (long long)line);
    }
    while (got > 0 && ((*text)[got - 1] == '\n' || (*text)[got - 1] == '\r'))
        got--;
    *length = (size_t)got;
    return true;
}

static bool inspect_row(const struct gd_model *model, const char *where, bool as_json, struct gd_error *err)
{
    const char *colon = strrchr(where, ':');
    char *end = NULL;
    long long line = colon ? strtoll(colon + 1, &end, 10) : 1;
    if (colon != NULL && (end == colon + 1 || *end != '\0' || line < 1))
        return gd_fail_param(err, GD_INVALID, "--row", "'%s' is not FILE:LINE with a line from 1", where);
    char *path = colon ? gd_strndup(where, (size_t)(colon - where)) : gd_strdup(where), *text = NULL;
    size_t length = 0;
    bool ok = read_line(path, line, &text, &length, err);
    cJSON *row = ok ? gd_render_row(model, text, length, line, err) : NULL;
    if (row != NULL && as_json) {
        char *printed = gd_json_print(row);
        puts(printed);
        gd_free(printed);
    } else if (row != NULL) {
        print_row(row);
    }
    if (ok)
        free(text);
    gd_free(path);
    cJSON_Delete(row);
    return row != NULL;
}

static bool inspect(const char *name, const char *models, const char *row, bool tensors, bool as_json, struct gd_error *err)
{
    char *id = NULL, *path = NULL;
    struct gd_model *model = NULL;
    bool ok = gd_device_init("cpu", 0, err) && gd_usage_model(name, models, &id, &path, err) &&
              gd_model_open(&model, id, path, err);
    if (ok && row != NULL) {
        ok = inspect_row(model, row, as_json, err);
    } else if (ok) {
        cJSON *json = gd_model_describe(model, tensors);
        char *text = as_json ? gd_json_print(json) : NULL;
        const cJSON *item;
        if (as_json)
            puts(text);
        else
            cJSON_ArrayForEach(item, json)
            {
                printf("%-24s ", item->string);
                print_value(item, 2);
            }
        gd_free(text);
        cJSON_Delete(json);
    }
    gd_model_destroy(model);
    gd_free(id);
    gd_free(path);
    return ok;
}

int gd_command_inspect(int argc, char **argv)
{
    static const struct option known[] = {{"models", required_argument, NULL, 'm'}, {"row", required_argument, NULL, 'r'},
                                          {"tensors", no_argument, NULL, 't'},      {"json", no_argument, NULL, 'j'},
                                          {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    const char *models = NULL, *row = NULL;
    bool tensors = false, as_json = false;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 'm':
            models = optarg;
            break;
        case 'r':
            row = optarg;
            break;
        case 't':
            tensors = true;
            break;
        case 'j':
            as_json = true;
            break;
        case 'h':
            fputs(help, stdout);
            return 0;
        default:
            return gd_usage_bad_option("inspect", argc, argv);
        }
    }
    if (optind + 1 != argc)
        return gd_usage_error("inspect", "give one MODEL");
    gd_log_init("inspect", GD_LOG_WARN);
    struct gd_error err = {0};
    return inspect(argv[optind], models, row, tensors, as_json, &err) ? 0 : gd_command_failed("inspect", &err);
}
