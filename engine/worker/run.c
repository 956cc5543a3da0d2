/* run.c - `graftd run`: one job in the foreground. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/base/memory.h"
#include "engine/tensor/device.h"
#include "engine/train/trainer.h"
#include "engine/worker/attached.h"
#include "engine/eval/task.h"
#include "engine/worker/command.h"
#include "engine/worker/plan.h"
#include "engine/worker/read_back.h"
#include "engine/worker/run_eval.h"
#include "engine/worker/usage.h"

#include <errno.h>
#include <getopt.h>
#include <glob.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char help[] =
    "Usage: graftd run JOB.json|TASK.yaml --models DIR --out DIR [options]\n"
    "\n"
    "Runs one job in the foreground. JOB.json is the body of POST /v1/fine_tuning/jobs, or of POST /v1/evals with the\n"
    "data_source of a run in it; file paths (relative to the current folder) stand in place of file ids. TASK.yaml is a task\n"
    "of lm-evaluation-harness whose data_files are local.\n"
    "\n"
    "  --models DIR     folder of base models (Hugging Face folders, NAME.gguf)\n"
    "  --out DIR        checkpoints/, state/ and the final adapter/ go here; of an eval items.jsonl and scores.json\n"
    "  --resume         continue from the newest checkpoint, or the finished items, in --out\n"
    "  --device D       auto (default: the CPU), cpu, cuda:N\n"
    "  --threads N      threads of arithmetic (default: all cores)\n"
    "  --metrics FILE   append one JSON object per step to FILE\n"
    "  --model ID       of an eval or task: the model that answers\n"
    "  --adapter DIR    of an eval or task: the adapter that it wears\n"
    "  --limit N        of a task: the first N rows\n"
    "  --num-fewshot N  of a task: that many examples\n"
    "  --fewshot-seed N of a task: chooses the examples (default 1234, as the harness)\n"
    "  --help           this text\n"
    "\n"
    "Exit code: 0 done, 1 failed or stopped (SIGTERM and ^C write a checkpoint first), 2 wrong usage.\n";

#define CACHE_BYTES ((size_t)512 << 20) /* at most, of keys and values, where the job generates */

static volatile sig_atomic_t stop_requested;

static void on_signal(int number)
{
    stop_requested = 1;
}

struct progress {
    struct gd_residents residents;
    struct gd_resident *resident; /* the only one with a job: it stays where it is */
    struct gd_attached attached;
    bool terminal;
    FILE *metrics;
    double started;
    int64_t first_step;
    char line_open;
};

static void end_line(struct progress *progress)
{
    if (progress->line_open)
        fputc('\n', stdout);
    progress->line_open = 0;
}

static enum gd_train_command poll_signals(void *context)
{
    return stop_requested ? GD_TRAIN_PAUSE : GD_TRAIN_GO;
}

static void on_message(void *context, const char *level, const char *text)
{
    end_line(context);
    printf("%s%s%s\n", strcmp(level, "info") == 0 ? "" : level, strcmp(level, "info") == 0 ? "" : ": ", text);
    fflush(stdout);
}

static void on_started(void *context, int64_t total_steps, int64_t rows, int64_t tokens, const struct gd_job_spec *spec)
{
    struct progress *progress = context;
    cJSON *json = gd_job_spec_hyperparameters(spec);
    char *text = gd_json_print(json);
    cJSON_Delete(json);
    printf("%lld rows, %lld tokens, %lld steps, %s on %s (%s, %d threads)\n%s\n", (long long)rows, (long long)tokens,
           (long long)total_steps, spec->precision, gd_device()->name, gd_device()->isa, gd_device()->threads, text);
    gd_free(text);
    fflush(stdout);
    progress->started = gd_time_monotonic();
    progress->first_step = -1;
}

static double find_metric(const struct gd_metric *metrics, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(metrics[i].name, name) == 0)
            return metrics[i].value;
    return NAN;
}

static void write_metrics(FILE *file, int64_t step, const struct gd_metric *metrics, int count)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "step", (double)step);
    for (int i = 0; i < count; i++)
        cJSON_AddNumberToObject(json, metrics[i].name, metrics[i].value);
    char *text = gd_json_print(json);
    fprintf(file, "%s\n", text);
    fflush(file);
    gd_free(text);
    cJSON_Delete(json);
}

static void format_seconds(double seconds, char out[48])
{
    long whole = (long)(seconds + 0.5);
    if (whole >= 3600)
        snprintf(out, 48, "%ldh%02ldm", whole / 3600, whole / 60 % 60);
    else
        snprintf(out, 48, "%ldm%02lds", whole / 60, whole % 60);
}

static void on_step(void *context, int64_t step, int64_t total_steps, int64_t trained_tokens, int64_t tokens, double seconds,
                    const struct gd_metric *metrics, int metric_count)
{
    struct progress *progress = context;
    if (progress->first_step < 0) {
        progress->first_step = step;
        progress->started = gd_time_monotonic() - seconds;
    }
    if (progress->metrics != NULL)
        write_metrics(progress->metrics, step, metrics, metric_count);
    double loss = find_metric(metrics, metric_count, "train_loss"), valid = find_metric(metrics, metric_count, "valid_loss");
    double rate = find_metric(metrics, metric_count, "tokens_per_second");
    double per_step = (gd_time_monotonic() - progress->started) / (double)(step - progress->first_step + 1);
    char left[48], validation[48] = "";
    format_seconds(per_step * (double)(total_steps - step), left);
    if (!isnan(valid))
        snprintf(validation, sizeof(validation), "  valid %.4f", valid);
    if (progress->terminal) {
        char bar[31] = "..............................";
        memset(bar, '#', (size_t)(30 * step / total_steps));
        printf("\r[%s] %lld/%lld  loss %.4f  %.0f tok/s  %s left%s   ", bar, (long long)step, (long long)total_steps, loss, rate,
               left, validation);
        progress->line_open = 1;
        if (validation[0])
            end_line(progress);
    } else if (total_steps <= 100 || validation[0] || step == total_steps || step % ((total_steps + 99) / 100) == 0) {
        printf("step %lld/%lld loss %.4f tokens/s %.0f left %s%s\n", (long long)step, (long long)total_steps, loss, rate, left,
               validation);
    }
    fflush(stdout);
}

static bool on_checkpoint(void *context, int64_t step, const char *folder, const struct gd_metric *metrics,
                          int metric_count, struct gd_error *err)
{
    end_line(context);
    printf("checkpoint %s\n", folder);
    fflush(stdout);
    return true;
}

static enum gd_evaluate_command poll_evals(void *context, bool idle)
{
    return stop_requested ? GD_EVALUATE_STOP : GD_EVALUATE_GO;
}

static bool on_evaluate(void *context, int64_t step, const char *folder, const cJSON *evals, struct gd_metric *metrics, int metric_max,
                        int *metric_count, struct gd_error *err)
{
    struct progress *progress = context;
    int before = *metric_count;
    if (!gd_attached_run(&progress->attached, folder, evals, metrics, metric_max, metric_count, err))
        return false;
    end_line(progress);
    for (int i = before; i < *metric_count; i++)
        printf("%s %g\n", metrics[i].name, metrics[i].value);
    return true;
}

static bool on_read_back(void *context, const char *folder, const struct gd_probe *probe, struct gd_error *err)
{
    struct progress *progress = context;
    struct gd_graft *graft = NULL;
    double difference = 0;
    bool ok = gd_residents_infer(&progress->residents, progress->resident, err) &&
              gd_residents_graft(&progress->residents, progress->resident, folder, probe->task, &graft, err) &&
              gd_read_back(progress->resident->infer, graft, probe, &difference, err);
    end_line(progress);
    if (ok)
        printf("read back: log-probabilities of %d tokens differ by %.1e in the mean\n", probe->count, difference);
    return ok;
}

static void print_memory(const struct gd_trainer *trainer)
{
    cJSON *json = gd_trainer_memory(trainer);
    char *text = gd_json_print(json);
    printf("memory %s\n", text);
    gd_free(text);
    cJSON_Delete(json);
}

static bool refuse_old_run(const char *out, bool resume, struct gd_error *err)
{
    char *pattern = gd_format("%s/state/step-*", out), *adapter = gd_format("%s/adapter", out);
    glob_t found = {0};
    struct stat info;
    bool there = glob(pattern, GLOB_NOSORT, NULL, &found) == 0 || stat(adapter, &info) == 0;
    globfree(&found);
    gd_free(pattern);
    gd_free(adapter);
    if (!there || resume)
        return true;
    return gd_fail_param(err, GD_CONFLICT, "--out", "%s holds a run already: continue it with --resume, or give another folder", out);
}

/* The date that the job's rows are rendered with: a resumed run reads the same file. */
static int64_t changed_at(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 ? (int64_t)info.st_mtime : 0;
}

struct options {
    const char *job, *models, *out, *device, *metrics, *model, *adapter;
    bool resume;
    int64_t threads, limit, shots, seed;
};

static bool run_job(const struct options *options, struct gd_error *err)
{
    struct gd_job_spec spec = {0};
    struct gd_trainer *trainer = NULL;
    char *id = NULL, *path = NULL;
    struct progress progress = {.terminal = isatty(STDOUT_FILENO) && getenv("NO_COLOR") == NULL};
    gd_memory_set_limit(gd_memory_bytes());
    gd_residents_init(&progress.residents, CACHE_BYTES);
    cJSON *body = gd_json_parse_file(options->job, 16u << 20, err);
    bool parsed = body != NULL && gd_job_spec_parse(&spec, body, err);
    bool ok = parsed && refuse_old_run(options->out, options->resume, err) &&
              gd_device_init(options->device, (int)options->threads, err) &&
              gd_usage_model(spec.model, options->models, &id, &path, err) && gd_mkdirs(options->out, err) &&
              gd_residents_model(&progress.residents, id, path, spec.quantization, &progress.resident, err);
    if (ok && options->metrics != NULL) {
        progress.metrics = fopen(options->metrics, options->resume ? "a" : "w");
        ok = progress.metrics != NULL || gd_fail_errno(err, errno, "open %s", options->metrics);
    }
    if (ok) {
        const struct gd_model *model = progress.resident->model;
        gd_residents_hold(&progress.residents, model, 1);
        progress.attached = (struct gd_attached){.residents = &progress.residents, .base = model, .models_dir = options->models,
                                                 .poll = poll_evals};
        struct gd_train_observer observer = {.context = &progress, .poll = poll_signals, .message = on_message,
                                             .started = on_started, .step = on_step, .checkpoint = on_checkpoint,
                                             .evaluate = on_evaluate, .read_back = on_read_back};
        struct gd_trainer_options trainer_options = {.job_id = "run", .folder = options->out,
                                                     .training_path = spec.training_file,
                                                     .validation_path = spec.validation_file,
                                                     .init_path = spec.init_from, .keep_checkpoints = 2,
                                                     .created_at = changed_at(options->job)};
        gd_plan_room(&trainer_options.room, progress.resident->model, &spec, CACHE_BYTES);
        ok = gd_trainer_create(&trainer, model, &spec, &trainer_options, &observer, err) && gd_trainer_run(trainer, err);
        end_line(&progress);
        if (ok)
            print_memory(trainer);
    }
    if (ok)
        printf("adapter %s/adapter\n", options->out);
    if (progress.metrics != NULL)
        fclose(progress.metrics);
    gd_trainer_destroy(trainer);
    gd_residents_release(&progress.residents);
    if (parsed)
        gd_job_spec_release(&spec);
    cJSON_Delete(body);
    gd_free(id);
    gd_free(path);
    return ok;
}

/* A task file, or a request that has a data source; whatever cannot be read is a job with an error. */
static bool is_eval(const struct options *options)
{
    struct gd_error ignored = {0};
    if (gd_run_is_task(options->job))
        return true;
    cJSON *body = gd_json_parse_file(options->job, 64u << 20, &ignored);
    bool found = body != NULL && gd_json_find(body, "data_source") != NULL;
    cJSON_Delete(body);
    return found;
}

static bool run_eval(const struct options *options, struct gd_error *err)
{
    struct gd_run_eval_options eval = {.job = options->job, .models = options->models, .out = options->out,
                                       .device = options->device, .model = options->model, .adapter = options->adapter,
                                       .resume = options->resume, .threads = (int)options->threads, .limit = options->limit,
                                       .shots = options->shots, .seed = options->seed, .stop = &stop_requested};
    return gd_run_eval(&eval, err);
}

int gd_command_run(int argc, char **argv)
{
    static const struct option known[] = {{"models", required_argument, NULL, 'm'}, {"out", required_argument, NULL, 'o'},
                                          {"resume", no_argument, NULL, 'r'},       {"device", required_argument, NULL, 'd'},
                                          {"threads", required_argument, NULL, 't'}, {"metrics", required_argument, NULL, 'j'},
                                          {"model", required_argument, NULL, 'M'}, {"adapter", required_argument, NULL, 'a'},
                                          {"limit", required_argument, NULL, 'l'}, {"num-fewshot", required_argument, NULL, 'n'},
                                          {"fewshot-seed", required_argument, NULL, 's'},
                                          {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    struct options options = {.device = "auto", .limit = -1, .shots = -1, .seed = -1};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 'm':
            options.models = optarg;
            break;
        case 'o':
            options.out = optarg;
            break;
        case 'r':
            options.resume = true;
            break;
        case 'd':
            options.device = optarg;
            break;
        case 't':
            if (!gd_usage_int("run", "--threads", optarg, 1, 1024, &options.threads))
                return 2;
            break;
        case 'j':
            options.metrics = optarg;
            break;
        case 'M':
            options.model = optarg;
            break;
        case 'a':
            options.adapter = optarg;
            break;
        case 'l':
            if (!gd_usage_int("run", "--limit", optarg, 1, GD_EVAL_ITEMS_MAX, &options.limit))
                return 2;
            break;
        case 'n':
            if (!gd_usage_int("run", "--num-fewshot", optarg, 0, GD_TASK_SHOTS_MAX, &options.shots))
                return 2;
            break;
        case 's':
            if (!gd_usage_int("run", "--fewshot-seed", optarg, 0, INT64_MAX >> 11, &options.seed))
                return 2;
            break;
        case 'h':
            fputs(help, stdout);
            return 0;
        default:
            return gd_usage_bad_option("run", argc, argv);
        }
    }
    if (optind + 1 != argc)
        return gd_usage_error("run", "give one JOB.json");
    options.job = argv[optind];
    if (options.models == NULL || options.out == NULL)
        return gd_usage_error("run", "%s is missing", options.models == NULL ? "--models DIR" : "--out DIR");
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    gd_log_init("run", GD_LOG_WARN);
    struct gd_error err = {0};
    return (is_eval(&options) ? run_eval(&options, &err) : run_job(&options, &err)) ? 0 : gd_command_failed("run", &err);
}
