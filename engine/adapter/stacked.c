/*
 * With R the rank of a stack: A [R E, in] holds the experts one after the other, B [out, R E] has the expert e's column r at r E + e.
 * gate_up's rows of B are first those of w1 (gate), then those of w3 (up), which share A.
 */
#include "engine/adapter/stacked.h"

#include "engine/base/alloc.h"
#include "engine/base/arena.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define A_END ".lora_A.weight"
#define B_END ".lora_B.weight"
#define EXPERTS ".mlp.experts"
#define ROUTER ".mlp.gate"

struct unfolding {
    const struct gd_model *model;
    cJSON *config;
    const struct gd_safetensors *file;
    struct gd_arena arena;
    struct gd_safetensors_entry *entries;
    int count;
    int64_t rank;               /* of all modules, in the end */
    double scale;               /* of all, in the end */
    cJSON *targets;
};

bool gd_stacked_is(const struct gd_model *model, const cJSON *config)
{
    const cJSON *names = gd_json_find(config, "target_parameters"), *type = gd_json_find(config, "peft_type");
    return model->config.experts > 0 && cJSON_IsArray(names) && names->child != NULL && cJSON_IsString(type) &&
           strcmp(type->valuestring, "LORA") == 0;
}

static bool ends(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* What belongs to an A. */
struct pair {
    char *stem;                 /* without the end: base_model.model.model.layers.0.mlp.experts.base_layer */
    struct gd_tensor a, b;
    bool stacked, gate_up;
    int64_t rank;               /* of one expert */
    double scale;
};

/* "gate_up_proj" of the pattern ".*\.gate_up_proj", whose value stands for that of the config. */
static double patterned(const cJSON *config, const char *table, const char *name, double value)
{
    const cJSON *patterns = gd_json_find(config, table), *item;
    if (cJSON_IsObject(patterns))
        cJSON_ArrayForEach(item, patterns) if (cJSON_IsNumber(item) && ends(item->string, name)) value = item->valuedouble;
    return value;
}

static bool check_patterns(const cJSON *config, struct gd_error *err)
{
    static const char *const tables[] = {"rank_pattern", "alpha_pattern"};
    for (size_t i = 0; i < GD_COUNT(tables); i++) {
        const cJSON *patterns = gd_json_find(config, tables[i]), *item;
        if (!cJSON_IsObject(patterns))
            continue;
        cJSON_ArrayForEach(item, patterns) if (!ends(item->string, "gate_up_proj") && !ends(item->string, "down_proj"))
            return gd_fail_param(err, GD_UNSUPPORTED, tables[i], "adapter_config.json: %s is for '%.64s', and only that for stacked experts is understood",
                                 tables[i], item->string);
    }
    return true;
}

static bool find_pair(struct unfolding *u, int index, struct pair *pair, struct gd_error *err)
{
    const struct gd_model_config *config = &u->model->config;
    const char *name = gd_safetensors_name(u->file, index);
    double r = 8, alpha = 8;
    bool root = false;
    *pair = (struct pair){.stem = gd_arena_format(&u->arena, "%.*s", (int)(strlen(name) - strlen(A_END)), name)};
    pair->a = gd_safetensors_at(u->file, index);
    if (!gd_safetensors_find(u->file, gd_arena_format(&u->arena, "%s" B_END, pair->stem), &pair->b) || pair->a.rank != 2 || pair->b.rank != 2 ||
        pair->a.shape[0] < 1 || pair->b.shape[1] != pair->a.shape[0])
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: '%s' has no B that fits", name);
    pair->stacked = strstr(pair->stem, EXPERTS) != NULL;
    pair->gate_up = pair->b.shape[0] == 2 * config->ffn_width && pair->a.shape[1] == config->width;
    if (pair->stacked && !pair->gate_up && (pair->b.shape[0] != config->width || pair->a.shape[1] != config->ffn_width))
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: '%s' [%lld, %lld] fits neither gate_up_proj nor down_proj of this base", name,
                       (long long)pair->a.shape[0], (long long)pair->a.shape[1]);
    if (pair->stacked && pair->a.shape[0] % config->experts != 0)
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: '%s' has %lld rows for %d experts", name, (long long)pair->a.shape[0],
                       config->experts);
    pair->rank = pair->a.shape[0] / (pair->stacked ? config->experts : 1);
    if (!gd_json_get_number(u->config, "", "r", false, 1, 1e6, &r, err) || !gd_json_get_number(u->config, "", "lora_alpha", false, 0, 1e9, &alpha, err) ||
        !gd_json_get_bool(u->config, "", "use_rslora", false, &root, err))
        return false;
    u->scale = alpha / (root ? sqrt(r) : r);
    if (pair->stacked)
        alpha = patterned(u->config, "alpha_pattern", pair->gate_up ? "gate_up_proj" : "down_proj", alpha);
    pair->scale = alpha / (root ? sqrt((double)pair->rank) : (double)pair->rank);
    return true;
}

static float *as_f32(struct unfolding *u, const struct gd_tensor *tensor)
{
    float *out = gd_arena_alloc_array(&u->arena, (size_t)gd_tensor_count(tensor), sizeof(float));
    gd_convert_to_f32(out, tensor->data, tensor->dtype, gd_tensor_count(tensor));
    return out;
}

/* One module of the pair: expert e (0 of 1 where it is not stacked), rows [first, first + out) of B. */
static void add_module(struct unfolding *u, const struct pair *pair, const char *module, int e, int experts, int64_t first, int64_t out)
{
    int64_t in = pair->a.shape[1], columns = pair->b.shape[1];
    const float *a = as_f32(u, &pair->a), *b = as_f32(u, &pair->b);
    float *own_a = gd_arena_alloc_array(&u->arena, (size_t)(u->rank * in), sizeof(float));
    float *own_b = gd_arena_alloc_array(&u->arena, (size_t)(out * u->rank), sizeof(float));
    memcpy(own_a, a + e * pair->rank * in, (size_t)(pair->rank * in) * sizeof(float));
    for (int64_t o = 0; o < out; o++)
        for (int64_t r = 0; r < pair->rank; r++)
            own_b[o * u->rank + r] = (float)(pair->scale / u->scale) * b[(first + o) * columns + r * experts + e];
    u->entries[u->count++] = (struct gd_safetensors_entry){gd_arena_format(&u->arena, "%s" A_END, module),
                                                           {.dtype = GD_F32, .rank = 2, .shape = {u->rank, in}, .data = own_a}};
    u->entries[u->count++] = (struct gd_safetensors_entry){gd_arena_format(&u->arena, "%s" B_END, module),
                                                           {.dtype = GD_F32, .rank = 2, .shape = {out, u->rank}, .data = own_b}};
    cJSON_AddItemToArray(u->targets, cJSON_CreateString(module + strlen("base_model.model.")));
}

static void add_pair(struct unfolding *u, const struct pair *pair)
{
    const struct gd_model_config *config = &u->model->config;
    const char *at = strstr(pair->stem, pair->stacked ? EXPERTS : ROUTER);
    if (at == NULL) {
        add_module(u, pair, pair->stem, 0, 1, 0, pair->b.shape[0]);
        return;
    }
    const char *layer = gd_arena_format(&u->arena, "%.*s.block_sparse_moe", (int)(at - pair->stem), pair->stem);
    if (!pair->stacked) {
        add_module(u, pair, gd_arena_format(&u->arena, "%s.gate", layer), 0, 1, 0, pair->b.shape[0]);
        return;
    }
    for (int e = 0; e < config->experts; e++)
        for (int half = 0; half < (pair->gate_up ? 2 : 1); half++)
            add_module(u, pair, gd_arena_format(&u->arena, "%s.experts.%d.%s", layer, e, !pair->gate_up ? "w2" : half == 0 ? "w1" : "w3"), e,
                       config->experts, half * (pair->gate_up ? config->ffn_width : 0), pair->gate_up ? config->ffn_width : config->width);
}

static bool unfold(struct unfolding *u, struct gd_error *err)
{
    int count = gd_safetensors_count(u->file), pair_count = 0;
    struct pair *pairs = gd_arena_alloc_array(&u->arena, (size_t)count + 1, sizeof(*pairs));
    for (int i = 0; i < count; i++) {
        const char *name = gd_safetensors_name(u->file, i);
        if (ends(name, B_END) && strncmp(name, "base_model.model.", 17) == 0)
            continue;
        if (!ends(name, A_END) || strncmp(name, "base_model.model.", 17) != 0)
            return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: '%.160s' is no part of a LoRA of stacked experts", name);
        if (!find_pair(u, i, &pairs[pair_count], err))
            return false;
        u->rank = pairs[pair_count].rank > u->rank ? pairs[pair_count].rank : u->rank;
        pair_count++;
    }
    u->entries = gd_arena_alloc_array(&u->arena, (size_t)pair_count * 4 * (size_t)u->model->config.experts + 1, sizeof(*u->entries));
    for (int i = 0; i < pair_count; i++)
        add_pair(u, &pairs[i]);
    return pair_count > 0 || gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors holds no LoRA");
}

static void replace(cJSON *config, const char *key, cJSON *value)
{
    cJSON_DeleteItemFromObjectCaseSensitive(config, key);
    if (value != NULL)
        cJSON_AddItemToObject(config, key, value);
}

/* Through a file, since readers map one. */
static bool reopen(const struct unfolding *u, struct gd_safetensors **file, struct gd_error *err)
{
    const char *where = getenv("TMPDIR");
    char *folder = gd_format("%s/graftd-XXXXXX", where != NULL ? where : "/tmp");
    if (mkdtemp(folder) == NULL) {
        bool failed = gd_fail(err, GD_INTERNAL, "no folder %s for an adapter's tensors can be made", folder);
        gd_free(folder);
        return failed;
    }
    char *path = gd_format("%s/adapter_model.safetensors", folder);
    struct gd_safetensors *again = NULL;
    bool ok = gd_safetensors_write(path, u->entries, u->count, NULL, err) && gd_safetensors_open(&again, path, err);
    (void)unlink(path);
    (void)rmdir(folder);
    if (ok) {
        gd_safetensors_close(*file);
        *file = again;
    }
    gd_free(path);
    gd_free(folder);
    return ok;
}

bool gd_stacked_unfold(const struct gd_model *model, cJSON *config, struct gd_safetensors **file, struct gd_error *err)
{
    struct unfolding u = {.model = model, .config = config, .file = *file, .targets = cJSON_CreateArray()};
    const cJSON *root = gd_json_find(config, "use_rslora");
    bool ok = check_patterns(config, err) && unfold(&u, err) && reopen(&u, file, err);
    if (ok) {
        replace(config, "r", cJSON_CreateNumber((double)u.rank));
        replace(config, "lora_alpha", cJSON_CreateNumber(u.scale * (cJSON_IsTrue(root) ? sqrt((double)u.rank) : (double)u.rank)));
        replace(config, "target_modules", u.targets);
        replace(config, "target_parameters", NULL);
        replace(config, "rank_pattern", NULL);
        replace(config, "alpha_pattern", NULL);
    } else {
        cJSON_Delete(u.targets);
    }
    gd_arena_release(&u.arena);
    return ok;
}
