/* main.c - the one binary: tells the subcommands apart, and reads the command line of `serve`. */
#include "engine/base/log.h"
#include "engine/eval/sandbox.h"
#include "engine/tensor/device.h"
#include "engine/worker/command.h"
#include "engine/worker/usage.h"
#include "server/app.h"
#include "server/config.h"
#ifdef GD_CUDA
#include "cuda/probe.h"
#endif

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "Usage: graftd COMMAND [options]\n"
    "\n"
    "graftd tunes, aligns, evaluates and serves transformer models.\n"
    "\n"
    "  serve      the daemon: an OpenAI-compatible HTTP API over a queue of tuning jobs\n"
    "  run        one job in the foreground\n"
    "  inspect    what a model holds; how a training row looks to it\n"
    "  generate   one completion on the terminal\n"
    "  export     an adapter folded into its base, or as a GGUF file\n"
    "  version    version and build\n"
    "  help       this text; 'graftd COMMAND --help' for each\n";

static const char serve_help[] =
    "Usage: graftd serve --data-dir DIR --models DIR [options]\n"
    "\n"
    "Prints 'listening on http://HOST:PORT' when ready; logs to standard error. SIGTERM stops gracefully: the running job\n"
    "writes a checkpoint and goes back to the queue.\n"
    "\n"
    "  --data-dir DIR       database, files, jobs and adapters (created with mode 0700)\n"
    "  --models DIR         base models: every subfolder in Hugging Face layout and every NAME.gguf\n"
    "  --listen HOST:PORT   default 127.0.0.1:8900; port 0 picks a free one\n"
    "  --device D           auto (default: the CPU), cpu, cuda:N; several with commas, a worker each\n"
    "  --threads N          threads of arithmetic (default: all cores)\n"
    "  --jobs-per-pass N    LoRA jobs of one base that train side by side, 1 to 8 (default 4)\n"
    "  --memory-limit BYTES of all processes together (512M, 8G; default: the machine's, or the control group's): what\n"
    "                       cannot fit is refused, caches give way\n"
    "  --config FILE        settings file; flags and GRAFTD_* variables come before it\n"
    "  --api-key-file FILE  one 'KEY [project]' a line; then every endpoint but /healthz asks for a key\n"
    "  --help               this text\n"
    "\n"
    "Every setting of the file is an environment variable too: [server] listen is GRAFTD_SERVER_LISTEN.\n";

struct flag {
    const char *name, *key;
};
static const struct flag serve_flags[] = {
    {"data-dir", "server.data_dir"},   {"models", "server.models"},   {"listen", "server.listen"},
    {"device", "engine.device"},       {"threads", "engine.threads"}, {"api-key-file", "server.api_key_file"},
    {"jobs-per-pass", "jobs.jobs_per_pass"},
    {"memory-limit", "engine.memory_limit"},
};

/* Two passes, so that the file is read before the environment and the flags that come before it. */
static int read_serve_options(int argc, char **argv, struct gd_config *config)
{
    struct option known[GD_COUNT(serve_flags) + 3];
    memset(known, 0, sizeof(known));
    for (size_t i = 0; i < GD_COUNT(serve_flags); i++)
        known[i] = (struct option){serve_flags[i].name, required_argument, NULL, (int)(256 + i)};
    known[GD_COUNT(serve_flags)] = (struct option){"config", required_argument, NULL, 'C'};
    known[GD_COUNT(serve_flags) + 1] = (struct option){"help", no_argument, NULL, 'h'};
    struct gd_error err = {0};
    bool ok = true;
    for (int pass = 0; pass < 2 && ok; pass++) {
        int option;
        optind = 1;
        opterr = 0;
        while (ok && (option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
            if (option == 'h') {
                fputs(serve_help, stdout);
                return 0;
            }
            if (option == '?')
                return gd_usage_bad_option("serve", argc, argv);
            if (option == 'C' && pass == 0)
                ok = gd_config_load_file(config, optarg, &err);
            if (option >= 256 && pass == 1) {
                const struct flag *flag = &serve_flags[option - 256];
                char origin[32];
                snprintf(origin, sizeof(origin), "--%s", flag->name);
                ok = gd_config_set(config, flag->key, optarg, origin, &err);
            }
        }
        if (ok && pass == 0)
            ok = gd_config_load_environment(config, &err);
    }
    if (ok && optind < argc)
        return gd_usage_error("serve", "'%s' is not an option", argv[optind]);
    ok = ok && gd_config_check(config, &err);
    return ok ? -1 : gd_usage_error("serve", "%s", err.message);
}

static int serve(int argc, char **argv)
{
    struct gd_config config;
    gd_config_init(&config);
    int code = read_serve_options(argc, argv, &config);
    if (code < 0) {
        gd_log_init("server", GD_LOG_INFO);
        gd_config_apply_sandbox(&config);
        code = gd_app_run(&config);
    }
    gd_config_release(&config);
    return code;
}

/* Python graders follow the settings in the foreground too. */
static int run(int argc, char **argv)
{
    struct gd_config config;
    struct gd_error err = {0};
    gd_config_init(&config);
    int code = gd_config_load_environment(&config, &err) && gd_config_check_python(&config, &err)
                   ? -1
                   : gd_usage_error("run", "%s", err.message);
    if (code < 0) {
        gd_config_apply_sandbox(&config);
        code = gd_command_run(argc, argv);
    }
    gd_config_release(&config);
    return code;
}

static int version(void)
{
    struct gd_error err = {0};
    printf("graftd %s\n", GD_VERSION);
    if (gd_device_init("cpu", 0, &err))
        printf("device %s, %s, %d threads, computes in %s\n", gd_device()->name, gd_device()->isa, gd_device()->threads,
               gd_dtype_name(gd_device()->compute));
#ifdef GD_CUDA
    char devices[512];
    gd_cuda_describe(devices, sizeof(devices));
    printf("cuda %s\n", devices);
#else
    printf("cuda not in this build\n");
#endif
    return 0;
}

/* OpenMP reads its wait policy before main: the arithmetic of a foreground command starts over with a quiet one. */
static void start_quietly(char **argv)
{
    if (gd_device_quiet_environment())
        execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "run") == 0 || strcmp(command, "generate") == 0 || strcmp(command, "export") == 0)
        start_quietly(argv);
    if (strcmp(command, "serve") == 0)
        return serve(argc - 1, argv + 1);
    if (strcmp(command, "sandbox") == 0)
        return gd_sandbox_main(argc, argv);
    if (strcmp(command, "worker") == 0)
        return gd_command_worker(argc - 1, argv + 1);
    if (strcmp(command, "run") == 0)
        return run(argc - 1, argv + 1);
    if (strcmp(command, "inspect") == 0)
        return gd_command_inspect(argc - 1, argv + 1);
    if (strcmp(command, "generate") == 0)
        return gd_command_generate(argc - 1, argv + 1);
    if (strcmp(command, "export") == 0)
        return gd_command_export(argc - 1, argv + 1);
    if (strcmp(command, "version") == 0 || strcmp(command, "--version") == 0)
        return version();
    if (strcmp(command, "help") == 0 || strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0) {
        fputs(help, stdout);
        return 0;
    }
    if (command[0] == '\0')
        fprintf(stderr, "graftd: give a command: serve, run, inspect, generate, export, version (see 'graftd --help')\n");
    else
        fprintf(stderr, "graftd: '%s' is not a command: serve, run, inspect, generate, export, version (see 'graftd --help')\n", command);
    return 2;
}
