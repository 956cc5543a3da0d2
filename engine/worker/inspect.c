/* inspect.c - `graftd inspect`: what a model folder or file holds, and how a training row looks to it. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/base/memory.h"
#include "engine/infer/engine.h"
#include "engine/model/config.h"
#include "engine/tensor/device.h"
#include "engine/tensor/few_rows.h"
#include "engine/tensor/kv.h"
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
    "  --serve NxP+G      also the memory to serve N requests at a time, each of a prompt of P tokens and an answer of G\n"
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

/* ---- the memory to serve ---- */

struct serving {
    int streams, prompt, answer; /* streams 0: not asked */
};

static bool parse_serving(struct serving *serving, const char *text, struct gd_error *err)
{
    char rest;
    if (sscanf(text, "%9dx%9d+%9d%c", &serving->streams, &serving->prompt, &serving->answer, &rest) == 3 && serving->streams >= 1 &&
        serving->streams <= GD_INFER_REQUESTS_MAX && serving->prompt >= 1 && serving->prompt <= GD_CONTEXT_MAX && serving->answer >= 0 &&
        serving->answer <= GD_CONTEXT_MAX)
        return true;
    return gd_fail_param(err, GD_INVALID, "--serve", "'%s' is not NxP+G with up to %d requests, a prompt from 1 and an answer from 0 tokens: "
                         "16x512+64", text, GD_INFER_REQUESTS_MAX);
}

/* Rows of a batch, and pages, as the engine takes them. */
static void serving_load(struct gd_infer_load *load, const struct serving *serving)
{
    int64_t prompts = (int64_t)serving->streams * serving->prompt, each = serving->prompt + serving->answer;
    int64_t rows = prompts < GD_INFER_PREFILL_TOKENS ? prompts : GD_INFER_PREFILL_TOKENS;
    int64_t pages = (each + GD_KV_PAGE_TOKENS - 1) / GD_KV_PAGE_TOKENS;
    *load = (struct gd_infer_load){.rows = (int)rows, .logits = serving->streams, .tokens = serving->streams * pages * GD_KV_PAGE_TOKENS};
}

static void add_bytes(cJSON *json, double *total, const char *name, size_t bytes)
{
    cJSON_AddNumberToObject(json, name, (double)bytes);
    *total += (double)bytes;
}

static bool add_serving(cJSON *json, struct gd_model *model, const struct serving *serving, struct gd_error *err)
{
    struct gd_infer_load load;
    struct gd_infer_need need;
    double total = 0;
    serving_load(&load, serving);
    if (serving->prompt + serving->answer > model->config.context)
        return gd_fail_param(err, GD_CONTEXT, "--serve", "a prompt of %d tokens and an answer of %d make %d; the context of '%s' holds %d",
                             serving->prompt, serving->answer, serving->prompt + serving->answer, model->id, model->config.context);
    if (!gd_infer_estimate(model, SIZE_MAX, &load, &need, err))
        return false;
    cJSON *plan = cJSON_CreateObject();
    bool few = serving->answer > 1 || serving->prompt <= GD_FEW_ROWS; /* an answer's first token comes with its prompt */
    add_bytes(plan, &total, "weights_bytes", gd_layout_cost_sum(few ? &need.few : &need.weights));
    add_bytes(plan, &total, "model_file_bytes", gd_model_touched_most(model, load.tokens));
    add_bytes(plan, &total, "activations_bytes", need.forward);
    add_bytes(plan, &total, "kv_cache_bytes", need.kv);
    add_bytes(plan, &total, "process_bytes", gd_memory_process(model->config.vocab));
    cJSON_AddNumberToObject(plan, "total_bytes", total);
    cJSON_AddItemToObject(gd_json_find(json, "memory"), "serving", plan);
    return true;
}

struct request {
    const char *models, *row;
    bool tensors, as_json;
    struct serving serving;
};

static bool inspect(const char *name, const struct request *request, struct gd_error *err)
{
    char *id = NULL, *path = NULL;
    struct gd_model *model = NULL;
    bool ok = gd_device_init("cpu", 0, err) && gd_usage_model(name, request->models, &id, &path, err) &&
              gd_model_open(&model, id, path, err);
    if (ok && request->row != NULL) {
        ok = inspect_row(model, request->row, request->as_json, err);
    } else if (ok) {
        cJSON *json = gd_model_describe(model, request->tensors);
        ok = request->serving.streams == 0 || add_serving(json, model, &request->serving, err);
        char *text = ok && request->as_json ? gd_json_print(json) : NULL;
        const cJSON *item;
        if (text != NULL)
            puts(text);
        else if (ok)
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
                                          {"serve", required_argument, NULL, 's'},  {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    struct request request = {0};
    struct gd_error err = {0};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 'm':
            request.models = optarg;
            break;
        case 'r':
            request.row = optarg;
            break;
        case 't':
            request.tensors = true;
            break;
        case 'j':
            request.as_json = true;
            break;
        case 's':
            if (!parse_serving(&request.serving, optarg, &err))
                return gd_usage_error("inspect", "%s", err.message);
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
    return inspect(argv[optind], &request, &err) ? 0 : gd_command_failed("inspect", &err);
}
