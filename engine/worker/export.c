/* export.c - `graftd export`: an adapter for other programs, read back and compared before it counts as written. */
#include "engine/adapter/export.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/tensor/device.h"
#include "engine/worker/command.h"
#include "engine/worker/usage.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "Usage: graftd export ADAPTER --out PATH [options]\n"
    "\n"
    "Writes an adapter (a PEFT folder, or a GGUF LoRA file) in another form, reads it back, and compares its logits on fixed\n"
    "texts with the adapter's; what differs too much is removed again.\n"
    "\n"
    "  --format F         merged (default): the base with the adapter folded in, a Hugging Face folder or a GGUF file as the\n"
    "                     base is one; gguf-lora: llama.cpp's adapter file\n"
    "  --base MODEL       the base: a folder, a .gguf file, or an id in --models (default: the id that the adapter names)\n"
    "  --task NAME        of an adapter that was trained by task: whose mixture, or \"average\"\n"
    "  --models DIR       look ids up here\n"
    "  --dtype D          f32, bf16 or f16. merged: of all matrices (default: as they are, bf16 for those that were quantised\n"
    "                     and changed); gguf-lora: default f32\n"
    "  --threads N        threads of arithmetic (default: all cores)\n"
    "  --help             this text\n";

struct options {
    const char *adapter, *out, *format, *base, *models, *dtype, *task;
    int64_t threads;
};

static bool dtype_of(const char *name, enum gd_dtype fallback, enum gd_dtype *out, struct gd_error *err)
{
    static const struct {
        const char *name;
        enum gd_dtype dtype;
    } known[] = {{"f32", GD_F32}, {"bf16", GD_BF16}, {"f16", GD_F16}};
    *out = fallback;
    for (size_t i = 0; name != NULL && i < GD_COUNT(known); i++)
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].dtype;
            return true;
        }
    return name == NULL || gd_fail_param(err, GD_INVALID, "--dtype", "--dtype is '%s'; f32, bf16 and f16 are possible", name);
}

/* The base that an adapter's own files name. */
static bool base_of(const struct options *options, char **base, struct gd_error *err)
{
    const char *name = NULL;
    if (options->base != NULL || gd_path_is_file(options->adapter)) {
        *base = gd_strdup(options->base);
        return options->base != NULL || gd_fail_param(err, GD_MISSING, "--base", "give --base: a GGUF adapter names no base model");
    }
    char *path = gd_format("%s/adapter_config.json", options->adapter);
    cJSON *json = gd_json_parse_file(path, 4u << 20, err);
    bool ok = json != NULL && gd_json_get_string(json, "", "base_model_name_or_path", true, 1, 4096, &name, err);
    *base = gd_strdup(name);
    cJSON_Delete(json);
    gd_free(path);
    return ok;
}

/* How far logits may move: what rounding weights to the dtype (GD_DTYPE_COUNT: the base's) does to them, with room. */
static double tolerance(enum gd_dtype dtype, const struct gd_model *base)
{
    const struct gd_site *sites;
    (void)gd_model_linear_sites(base, &sites);
    dtype = dtype == GD_DTYPE_COUNT ? gd_weight_source(sites[0].weight)->dtype : dtype;
    return dtype == GD_F32 ? 1e-4 : dtype == GD_F16 ? 1e-2 : 5e-2;
}

static bool read_back(const struct gd_worn *meant, bool merged, enum gd_dtype dtype, const char *path, struct gd_error *err)
{
    struct gd_model *model = NULL;
    struct gd_graft *graft = NULL;
    double difference = 0;
    bool ok = merged ? gd_model_open(&model, meant->model->id, path, err) : gd_graft_read_gguf(&graft, meant->model, path, err);
    struct gd_worn written = {merged ? model : meant->model, graft};
    ok = ok && gd_worn_difference(meant, &written, &difference, err);
    if (ok && !(difference <= tolerance(dtype, meant->model)))
        ok = gd_fail(err, GD_INTERNAL, "what was written gives other logits than the adapter: relative difference %.2e, at most "
                     "%.0e is accepted", difference, tolerance(dtype, meant->model));
    if (ok)
        printf("%s: relative difference of logits %.2e\n", path, difference);
    gd_graft_destroy(graft);
    gd_model_destroy(model);
    return ok;
}

static bool export(const struct options *options, struct gd_error *err)
{
    char *base = NULL, *id = NULL, *path = NULL;
    struct gd_model *model = NULL;
    struct gd_graft *graft = NULL;
    bool merged = strcmp(options->format, "merged") == 0;
    enum gd_dtype dtype = GD_F32;
    bool ok = dtype_of(options->dtype, merged ? GD_DTYPE_COUNT : GD_F32, &dtype, err) &&
              gd_device_init("cpu", (int)options->threads, err) && base_of(options, &base, err) &&
              gd_usage_model(base, options->models, &id, &path, err) && gd_model_open(&model, id, path, err) &&
              gd_graft_load(&graft, model, options->adapter, err) && gd_graft_wear_task(graft, options->task, err) && gd_graft_adopt(graft, err);
    ok = ok && (merged ? gd_graft_merge(graft, dtype, options->out, err) : gd_graft_write_gguf(graft, dtype, options->out, err));
    if (ok) {
        struct gd_worn meant = {model, graft};
        struct gd_error unused = {0};
        ok = read_back(&meant, merged, dtype, options->out, err);
        if (!ok)
            (void)!gd_remove_tree(options->out, &unused);
    }
    gd_graft_destroy(graft);
    gd_model_destroy(model);
    gd_free(base);
    gd_free(id);
    gd_free(path);
    return ok;
}

int gd_command_export(int argc, char **argv)
{
    static const struct option known[] = {
        {"out", required_argument, NULL, 'o'},     {"format", required_argument, NULL, 'f'}, {"base", required_argument, NULL, 'b'},
        {"models", required_argument, NULL, 'm'},  {"dtype", required_argument, NULL, 'D'},  {"task", required_argument, NULL, 'k'},
        {"threads", required_argument, NULL, 't'}, {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};
    struct options options = {.format = "merged"};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        const char **text = option == 'o'   ? &options.out
                            : option == 'f' ? &options.format
                            : option == 'b' ? &options.base
                            : option == 'm' ? &options.models
                            : option == 'D' ? &options.dtype
                            : option == 'k' ? &options.task
                                            : NULL;
        if (text != NULL) {
            *text = optarg;
        } else if (option == 'h') {
            fputs(help, stdout);
            return 0;
        } else if (option != 't') {
            return gd_usage_bad_option("export", argc, argv);
        } else if (!gd_usage_int("export", "--threads", optarg, 1, 1024, &options.threads)) {
            return 2;
        }
    }
    if (optind + 1 != argc)
        return gd_usage_error("export", "give one ADAPTER");
    options.adapter = argv[optind];
    if (options.out == NULL)
        return gd_usage_error("export", "give --out PATH");
    if (strcmp(options.format, "merged") != 0 && strcmp(options.format, "gguf-lora") != 0)
        return gd_usage_error("export", "--format is '%s'; merged and gguf-lora are possible", options.format);
    gd_log_init("export", GD_LOG_WARN);
    struct gd_error err = {0};
    return export(&options, &err) ? 0 : gd_command_failed("export", &err);
}
