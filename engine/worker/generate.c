/* generate.c - `graftd generate`: one completion on the terminal. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/infer/engine.h"
#include "engine/tensor/device.h"
#include "engine/worker/command.h"
#include "engine/worker/usage.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char help[] =
    "Usage: graftd generate MODEL (--chat TEXT | --prompt TEXT) [options]\n"
    "\n"
    "Prints one completion as it is generated. MODEL is a Hugging Face folder, a .gguf file, or an id in --models.\n"
    "\n"
    "  --chat TEXT        a user message, rendered by the model's chat template\n"
    "  --system TEXT      a system message before it\n"
    "  --prompt TEXT      plain text to continue\n"
    "  --adapter DIR      wear this adapter (a PEFT folder or a GGUF LoRA)\n"
    "  --task NAME        of an adapter that was trained by task\n"
    "  --models DIR       look ids up here\n"
    "  --max-tokens N     default 256\n"
    "  --temperature T    default 0 (greedy)\n"
    "  --top-p P          default 1\n"
    "  --seed N           default 0\n"
    "  --device D         auto (default: the CPU), cpu, cuda:N\n"
    "  --threads N        threads of arithmetic (default: all cores)\n"
    "  --verbose          token counts and speed on standard error\n"
    "  --help             this text\n";

struct options {
    const char *model, *models, *chat, *system, *prompt, *adapter, *task, *device;
    int64_t max_tokens, seed, threads;
    double temperature, top_p;
    bool verbose;
};

struct output {
    bool done;
    struct gd_error err;
    struct gd_infer_usage usage;
    double first_token;
};

static void on_token(void *context, const struct gd_infer_token *token)
{
    struct output *output = context;
    if (output->first_token == 0)
        output->first_token = gd_time_monotonic();
    fwrite(token->text, 1, token->text_length, stdout);
    fflush(stdout);
}

static void on_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                      const struct gd_infer_usage *usage, const struct gd_error *error)
{
    struct output *output = context;
    if (tail_length > 0)
        fwrite(tail, 1, tail_length, stdout);
    fputc('\n', stdout);
    fflush(stdout);
    output->usage = *usage;
    if (finish == GD_FINISH_ERROR)
        output->err = *error;
    output->done = true;
}

static bool encode(const struct gd_model *model, const struct options *options, struct gd_chat_encoding *chat,
                   struct gd_tokens *tokens, struct gd_error *err)
{
    if (options->prompt != NULL)
        return gd_tokenizer_encode(model->tokenizer, options->prompt, strlen(options->prompt), GD_SPECIAL_PARSE, true, tokens, err);
    cJSON *messages = cJSON_CreateArray();
    const char *const roles[] = {"system", "user"}, *const contents[] = {options->system, options->chat};
    for (int i = 0; i < 2; i++) {
        if (contents[i] == NULL)
            continue;
        cJSON *message = cJSON_CreateObject();
        cJSON_AddStringToObject(message, "role", roles[i]);
        cJSON_AddStringToObject(message, "content", contents[i]);
        cJSON_AddItemToArray(messages, message);
    }
    bool ok = gd_chat_encode_prompt(model->chat, messages, NULL, chat, err);
    for (int i = 0; ok && i < chat->tokens.count; i++)
        gd_tokens_push(tokens, chat->tokens.ids[i], 0, 0);
    cJSON_Delete(messages);
    return ok;
}

static bool generate(const struct options *options, struct gd_error *err)
{
    char *id = NULL, *path = NULL;
    struct gd_model *model = NULL;
    struct gd_graft *graft = NULL;
    struct gd_infer *infer = NULL;
    struct gd_chat_encoding chat = {0};
    struct gd_tokens tokens = {0};
    struct output output = {0};
    bool ok = gd_device_init(options->device, (int)options->threads, err) &&
              gd_usage_model(options->model, options->models, &id, &path, err) && gd_model_open(&model, id, path, err) &&
              (options->adapter == NULL ||
               (gd_graft_load(&graft, model, options->adapter, err) && gd_graft_wear_task(graft, options->task, err) &&
                gd_graft_prepare(graft, err))) &&
              encode(model, options, &chat, &tokens, err) && gd_infer_create(&infer, model, (size_t)512 << 20, err);
    if (ok && gd_model_encodes(model))
        gd_chat_end_text(model->chat, &tokens);
    if (ok) {
        int room = gd_model_encodes(model) ? model->config.context : model->config.context - tokens.count - (graft != NULL ? graft->virtual_rows.count : 0);
        struct gd_sampling sampling = {.temperature = options->temperature, .top_p = options->top_p, .repetition_penalty = 1,
                                       .seed = (uint64_t)options->seed, .logprobs = -1,
                                       .max_tokens = options->max_tokens < room || room < 0 ? (int)options->max_tokens : room};
        struct gd_infer_sink sink = {.context = &output, .token = on_token, .finish = on_finish};
        uint64_t sequence;
        double started = gd_time_monotonic();
        ok = gd_infer_submit(infer, graft, tokens.ids, tokens.count, &sampling, &sink, &sequence, err);
        while (ok && !output.done)
            ok = gd_infer_turn(infer, err);
        double ended = gd_time_monotonic();
        if (ok && output.err.code != GD_OK) {
            *err = output.err;
            ok = false;
        }
        if (ok && options->verbose)
            fprintf(stderr, "prompt %d tokens in %.3f s, completion %d tokens at %.1f tokens/s\n", output.usage.prompt_tokens,
                    output.first_token - started, output.usage.completion_tokens,
                    output.usage.completion_tokens > 1 ? (output.usage.completion_tokens - 1) / (ended - output.first_token) : 0.0);
    }
    gd_infer_destroy(infer);
    gd_graft_destroy(graft);
    gd_model_destroy(model);
    gd_chat_encoding_release(&chat);
    gd_tokens_release(&tokens);
    gd_free(id);
    gd_free(path);
    return ok;
}

int gd_command_generate(int argc, char **argv)
{
    static const struct option known[] = {
        {"chat", required_argument, NULL, 'c'},        {"system", required_argument, NULL, 's'},
        {"prompt", required_argument, NULL, 'p'},      {"adapter", required_argument, NULL, 'a'},
        {"task", required_argument, NULL, 'k'},
        {"models", required_argument, NULL, 'm'},      {"max-tokens", required_argument, NULL, 'n'},
        {"temperature", required_argument, NULL, 'T'}, {"top-p", required_argument, NULL, 'P'},
        {"seed", required_argument, NULL, 'S'},        {"device", required_argument, NULL, 'd'},
        {"threads", required_argument, NULL, 't'},     {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},              {NULL, 0, NULL, 0}};
    struct options options = {.device = "auto", .max_tokens = 256, .top_p = 1};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        bool ok = true;
        switch (option) {
        case 'c':
            options.chat = optarg;
            break;
        case 's':
            options.system = optarg;
            break;
        case 'p':
            options.prompt = optarg;
            break;
        case 'a':
            options.adapter = optarg;
            break;
        case 'k':
            options.task = optarg;
            break;
        case 'm':
            options.models = optarg;
            break;
        case 'n':
            ok = gd_usage_int("generate", "--max-tokens", optarg, 1, 1 << 24, &options.max_tokens);
            break;
        case 'T':
            ok = gd_usage_number("generate", "--temperature", optarg, 0, 2, &options.temperature);
            break;
        case 'P':
            ok = gd_usage_number("generate", "--top-p", optarg, 1e-6, 1, &options.top_p);
            break;
        case 'S':
            ok = gd_usage_int("generate", "--seed", optarg, 0, INT64_MAX, &options.seed);
            break;
        case 'd':
            options.device = optarg;
            break;
        case 't':
            ok = gd_usage_int("generate", "--threads", optarg, 1, 1024, &options.threads);
            break;
        case 'v':
            options.verbose = true;
            break;
        case 'h':
            fputs(help, stdout);
            return 0;
        default:
            return gd_usage_bad_option("generate", argc, argv);
        }
        if (!ok)
            return 2;
    }
    if (optind + 1 != argc)
        return gd_usage_error("generate", "give one MODEL");
    options.model = argv[optind];
    if ((options.chat == NULL) == (options.prompt == NULL))
        return gd_usage_error("generate", "give either --chat TEXT or --prompt TEXT");
    gd_log_init("generate", GD_LOG_WARN);
    struct gd_error err = {0};
    return generate(&options, &err) ? 0 : gd_command_failed("generate", &err);
}
