/*
 * The tokenizer of a Hugging Face folder. Files older than tokenizer.json are turned into the tree that transformers would
 * write for them, so that one loader knows all rules.
 */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/tokenizer_parts.h"
#include "engine/text/tokenizer_patterns.h"

#include <string.h>

#define FILE_BYTES_MAX ((size_t)256 << 20)
#define SMALL_BYTES_MAX ((size_t)64 << 20)

struct special {
    const char *content;
    const char *keys[2]; /* of tokenizer_config.json, which it is the default of */
    bool lstrip;
};

/* What transformers' class of that name does with vocab.json and merges.txt, or vocab.txt. */
struct class {
    const char *names[2];
    const char *parts; /* normalizer, pre_tokenizer, decoder of tokenizer.json */
    const char *first, *last; /* the post-processor's tokens, or NULL */
    struct special specials[6];
};

static const struct class bert = {
    .parts = "{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"decoder\":{\"type\":\"WordPiece\",\"prefix\":\"##\"}}",
    .first = "cls_token", .last = "sep_token",
    .specials = {{"[UNK]", {"unk_token"}, false}, {"[SEP]", {"sep_token"}, false}, {"[PAD]", {"pad_token"}, false},
                 {"[CLS]", {"cls_token"}, false}, {"[MASK]", {"mask_token"}, false}},
};

#define BYTE_PARTS                                                                                                          \
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"}}"

static const struct class gpt2 = {
    .names = {"GPT2Tokenizer", "GPT2TokenizerFast"}, .parts = BYTE_PARTS,
    .specials = {{"<|endoftext|>", {"bos_token", "eos_token"}, false}},
};
static const struct class roberta = {
    .names = {"RobertaTokenizer", "RobertaTokenizerFast"}, .parts = BYTE_PARTS, .first = "cls_token", .last = "sep_token",
    .specials = {{"<s>", {"bos_token", "cls_token"}, false}, {"</s>", {"eos_token", "sep_token"}, false},
                 {"<pad>", {"pad_token"}, false}, {"<unk>", {"unk_token"}, false}, {"<mask>", {"mask_token"}, true}},
};
static const struct class qwen2 = {
    .names = {"Qwen2Tokenizer", "Qwen2TokenizerFast"},
    .parts = "{\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
             "\"pattern\":{\"Regex\":\"\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
             "\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"}}",
    .specials = {{"<|endoftext|>", {"eos_token", "pad_token"}, false}},
};

struct folder {
    const char *path;
    cJSON *config, *added; /* config: a copy that defaults are put into */
};

static bool has(const struct folder *f, const char *name)
{
    char *path = gd_format("%s/%s", f->path, name);
    bool there = gd_path_exists(path);
    gd_free(path);
    return there;
}

static bool read(const struct folder *f, const char *name, char **text, size_t *length, struct gd_error *err)
{
    char *path = gd_format("%s/%s", f->path, name);
    bool ok = gd_file_read(path, FILE_BYTES_MAX, text, length, err);
    gd_free(path);
    return ok;
}

/* NULL when the file is absent. */
static bool parse_optional(const struct folder *f, const char *name, cJSON **out, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (!has(f, name))
        return true;
    if (!read(f, name, &text, &length, err))
        return false;
    *out = gd_json_parse_within(text, length, SMALL_BYTES_MAX, GD_JSON_FEW_VALUES, err);
    gd_free(text);
    if (*out == NULL)
        gd_error_context(err, "%s", name);
    return *out != NULL;
}

/* special_tokens_map.json fills what tokenizer_config.json leaves out. */
static bool add_map(struct folder *f, struct gd_error *err)
{
    cJSON *map = NULL;
    if (!parse_optional(f, "special_tokens_map.json", &map, err))
        return false;
    for (const cJSON *item = map != NULL ? map->child : NULL; item != NULL; item = item->next)
        if (item->string != NULL && gd_json_find(f->config, item->string) == NULL)
            cJSON_AddItemToObject(f->config, item->string, cJSON_Duplicate(item, true));
    cJSON_Delete(map);
    return true;
}

/* The content of a special token of the config. */
static const char *content_of(const cJSON *config, const char *key)
{
    const cJSON *item = gd_json_find(config, key);
    if (cJSON_IsObject(item))
        item = gd_json_find(item, "content");
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static void add_token(cJSON *list, const cJSON *vocab, const char *content, bool lstrip)
{
    const cJSON *id = gd_json_find(vocab, content);
    if (id == NULL)
        return;
    cJSON *token = cJSON_CreateObject();
    cJSON_AddNumberToObject(token, "id", id->valuedouble);
    cJSON_AddStringToObject(token, "content", content);
    cJSON_AddBoolToObject(token, "lstrip", lstrip);
    cJSON_AddBoolToObject(token, "special", true);
    cJSON_AddBoolToObject(token, "normalized", false);
    cJSON_AddItemToArray(list, token);
}

/* Special tokens by the class's names or the config's, and what added_tokens.json has. */
static void add_specials(struct folder *f, const struct class *class, const cJSON *vocab, cJSON *spec)
{
    cJSON *list = cJSON_AddArrayToObject(spec, "added_tokens");
    for (size_t i = 0; i < GD_COUNT(class->specials) && class->specials[i].content != NULL; i++) {
        const struct special *special = &class->specials[i];
        for (size_t k = 0; k < 2 && special->keys[k] != NULL; k++)
            if (gd_json_find(f->config, special->keys[k]) == NULL && gd_json_find(vocab, special->content) != NULL)
                cJSON_AddStringToObject(f->config, special->keys[k], special->content);
        add_token(list, vocab, special->content, special->lstrip);
    }
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                                       "mask_token"};
    for (size_t i = 0; i < GD_COUNT(keys); i++) {
        const char *content = content_of(f->config, keys[i]);
        bool known = content == NULL;
        for (size_t k = 0; !known && k < GD_COUNT(class->specials) && class->specials[k].content != NULL; k++)
            known = strcmp(content, class->specials[k].content) == 0;
        if (!known)
            add_token(list, vocab, content, false);
    }
    for (const cJSON *item = f->added != NULL ? f->added->child : NULL; item != NULL; item = item->next) {
        cJSON *token = cJSON_CreateObject();
        cJSON_AddItemToObject(token, "id", cJSON_Duplicate(item, true));
        cJSON_AddStringToObject(token, "content", item->string != NULL ? item->string : "");
        cJSON_AddItemToArray(list, token);
    }
}

/* ["[CLS]", id] for BertProcessing; fails when the vocabulary lacks it. */
static bool add_end(cJSON *part, const char *name, const struct folder *f, const cJSON *vocab, const char *key,
                    struct gd_error *err)
{
    const char *content = content_of(f->config, key);
    const cJSON *id = content != NULL ? gd_json_find(vocab, content) : NULL;
    if (id == NULL)
        return gd_fail_param(err, GD_BAD_MODEL, key, "%s \"%.60s\" is not in the vocabulary", key,
                             content != NULL ? content : "");
    cJSON *pair = cJSON_AddArrayToObject(part, name);
    cJSON_AddItemToArray(pair, cJSON_CreateString(content));
    cJSON_AddItemToArray(pair, cJSON_CreateNumber(id->valuedouble));
    return true;
}

/* Takes over model and vocab. */
static bool open_tree(struct gd_tokenizer **out, struct folder *f, const struct class *class, cJSON *model, cJSON *vocab,
                      const cJSON *normalizer, struct gd_error *err)
{
    cJSON *spec = cJSON_Parse(class->parts);
    bool prefix = false, ok = gd_json_get_bool(f->config, "tokenizer_config.json", "add_prefix_space", false, &prefix, err);
    cJSON *pre = cJSON_GetObjectItemCaseSensitive(spec, "pre_tokenizer");
    if (class == &qwen2)
        cJSON_ReplaceItemInObjectCaseSensitive(
            cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(pre, "pretokenizers")->child, "pattern"), "Regex",
            cJSON_CreateString(GD_PATTERN_QWEN2));
    else if (prefix && class != &bert)
        cJSON_ReplaceItemInObjectCaseSensitive(pre, "add_prefix_space", cJSON_CreateTrue());
    if (normalizer != NULL)
        cJSON_AddItemToObject(spec, "normalizer", cJSON_Duplicate(normalizer, true));
    add_specials(f, class, vocab, spec);
    if (ok && class->first != NULL) {
        cJSON *post = cJSON_AddObjectToObject(spec, "post_processor");
        cJSON_AddStringToObject(post, "type", "BertProcessing");
        ok = add_end(post, "cls", f, vocab, class->first, err) && add_end(post, "sep", f, vocab, class->last, err);
    }
    cJSON_AddItemToObject(model, "vocab", vocab);
    cJSON_AddItemToObject(spec, "model", model);
    ok = ok && gd_tokenizer_from_tree(out, spec, f->config, err);
    cJSON_Delete(spec);
    return ok;
}

/* ---- vocab.txt ---- */

/* The next line without its end; NULL behind the last. */
static const char *next_line(const char **at, const char *end, size_t *length)
{
    if (*at == end)
        return NULL;
    const char *line = *at, *stop = memchr(line, '\n', (size_t)(end - line));
    *at = stop != NULL ? stop + 1 : end;
    *length = (size_t)((stop != NULL ? stop : end) - line);
    if (*length > 0 && line[*length - 1] == '\r')
        --*length;
    return line;
}

static bool check_line(const char *line, size_t length, int number, const char *file, struct gd_error *err)
{
    if (memchr(line, 0, length) == NULL && gd_utf8_valid(line, length))
        return true;
    return gd_fail(err, GD_BAD_MODEL, "%s line %d is not valid UTF-8 without NUL", file, number);
}

/* A token a line; its id is the line's place, from 0. */
static bool read_lines(cJSON *vocab, const char *text, size_t length, struct gd_error *err)
{
    size_t size = 0, most = gd_tokenizer_values_max(length), lines = 0;
    int number = 0;
    const char *at = text, *end = text + length;
    for (const char *each = text; (each = memchr(each, '\n', (size_t)(end - each))) != NULL; each++)
        lines++;
    if (lines > most || lines > GD_TOKENIZER_VOCAB_MAX)
        return gd_fail(err, GD_BAD_MODEL, "vocab.txt: %zu lines, at most %zu are read of %zu bytes", lines,
                       most < GD_TOKENIZER_VOCAB_MAX ? most : (size_t)GD_TOKENIZER_VOCAB_MAX, length);
    for (const char *line; (line = next_line(&at, end, &size)) != NULL; number++) {
        if (!check_line(line, size, number + 1, "vocab.txt", err))
            return false;
        if (size == 0) /* an id without a token */
            continue;
        char *token = gd_strndup(line, size);
        cJSON_AddNumberToObject(vocab, token, number);
        gd_free(token);
    }
    return true;
}

static bool open_vocab_text(struct gd_tokenizer **out, struct folder *f, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    bool lower = true, chinese = true;
    const char *unknown = content_of(f->config, "unk_token");
    if (!gd_json_get_bool(f->config, "tokenizer_config.json", "do_lower_case", false, &lower, err) ||
        !gd_json_get_bool(f->config, "tokenizer_config.json", "tokenize_chinese_chars", false, &chinese, err) ||
        !read(f, "vocab.txt", &text, &length, err))
        return false;
    cJSON *vocab = cJSON_CreateObject(), *model = cJSON_CreateObject(), *normalizer = cJSON_CreateObject();
    cJSON_AddStringToObject(model, "type", "WordPiece");
    cJSON_AddStringToObject(model, "unk_token", unknown != NULL ? unknown : "[UNK]");
    cJSON_AddStringToObject(normalizer, "type", "BertNormalizer");
    cJSON_AddBoolToObject(normalizer, "lowercase", lower);
    cJSON_AddBoolToObject(normalizer, "handle_chinese_chars", chinese);
    const cJSON *accents = gd_json_find(f->config, "strip_accents");
    if (accents != NULL)
        cJSON_AddItemToObject(normalizer, "strip_accents", cJSON_Duplicate(accents, true));
    bool ok = read_lines(vocab, text, length, err);
    if (!ok) {
        cJSON_Delete(vocab);
        cJSON_Delete(model);
    } else if (!open_tree(out, f, &bert, model, vocab, normalizer, err)) {
        gd_error_context(err, "vocab.txt");
        ok = false;
    }
    cJSON_Delete(normalizer);
    gd_free(text);
    return ok;
}

/* ---- vocab.json and merges.txt ---- */

static bool read_merges(cJSON *merges, const char *text, size_t length, struct gd_error *err)
{
    size_t size = 0;
    int number = 1;
    const char *at = text, *end = text + length;
    for (const char *line; (line = next_line(&at, end, &size)) != NULL; number++) {
        if (!check_line(line, size, number, "merges.txt", err))
            return false;
        if (size == 0 || (number == 1 && size >= 8 && memcmp(line, "#version", 8) == 0))
            continue;
        const char *space = memchr(line, ' ', size);
        if (space == NULL || space == line || space + 1 == line + size)
            return gd_fail(err, GD_BAD_MODEL, "merges.txt line %d is not two tokens", number);
        char *merge = gd_strndup(line, size);
        cJSON_AddItemToArray(merges, cJSON_CreateString(merge));
        gd_free(merge);
    }
    return true;
}

static bool find_class(const struct folder *f, const cJSON *vocab, const struct class **out, struct gd_error *err)
{
    static const struct class *const classes[] = {&gpt2, &roberta, &qwen2};
    const char *name = NULL;
    if (!gd_json_get_string(f->config, "tokenizer_config.json", "tokenizer_class", false, 1, SIZE_MAX, &name, err))
        return false;
    *out = gd_json_find(vocab, "<s>") != NULL && gd_json_find(vocab, "<mask>") != NULL ? &roberta : &gpt2;
    if (name == NULL)
        return true;
    for (size_t i = 0; i < GD_COUNT(classes); i++)
        for (size_t k = 0; k < 2; k++)
            if (strcmp(name, classes[i]->names[k]) == 0) {
                *out = classes[i];
                return true;
            }
    return gd_fail_param(err, GD_UNSUPPORTED, "tokenizer_class", "tokenizer_config.json: the tokenizer_class \"%.60s\" cannot be "
                         "made from vocab.json and merges.txt; use the model's tokenizer.json", name);
}

static bool open_vocab_merges(struct gd_tokenizer **out, struct folder *f, struct gd_error *err)
{
    cJSON *vocab = NULL, *model = cJSON_CreateObject();
    const struct class *class = NULL;
    char *text = NULL;
    size_t length = 0;
    bool ok = parse_optional(f, "vocab.json", &vocab, err) && find_class(f, vocab, &class, err) &&
              read(f, "merges.txt", &text, &length, err) &&
              read_merges(cJSON_AddArrayToObject(model, "merges"), text, length, err);
    if (ok && !cJSON_IsObject(vocab))
        ok = gd_fail(err, GD_BAD_MODEL, "vocab.json is not an object");
    gd_free(text);
    if (!ok) {
        cJSON_Delete(vocab);
        cJSON_Delete(model);
        return false;
    }
    cJSON_AddStringToObject(model, "type", "BPE");
    ok = open_tree(out, f, class, model, vocab, NULL, err);
    if (!ok)
        gd_error_context(err, "vocab.json with merges.txt");
    return ok;
}

/* ---- which files there are ---- */

static bool open_older(struct gd_tokenizer **out, struct folder *f, struct gd_error *err)
{
    static const char *const models[] = {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"};
    for (size_t i = 0; i < GD_COUNT(models); i++) {
        char *data = NULL;
        size_t length = 0;
        if (!has(f, models[i]))
            continue;
        bool ok = read(f, models[i], &data, &length, err) &&
                  gd_tokenizer_from_sentencepiece(out, data, length, models[i], f->config, f->added, err);
        gd_free(data);
        return ok;
    }
    if (has(f, "vocab.txt"))
        return open_vocab_text(out, f, err);
    if (has(f, "vocab.json") && has(f, "merges.txt"))
        return open_vocab_merges(out, f, err);
    return gd_fail(err, GD_BAD_MODEL, "no tokenizer: none of tokenizer.json, tokenizer.model, spiece.model, "
                   "sentencepiece.bpe.model, vocab.txt, vocab.json with merges.txt is there");
}

static bool open_json(struct gd_tokenizer **out, const struct folder *f, const cJSON *config, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (!read(f, "tokenizer.json", &text, &length, err))
        return false;
    cJSON *root = gd_json_parse_within(text, length, FILE_BYTES_MAX, gd_tokenizer_values_max(length), err);
    bool ok = root != NULL && gd_tokenizer_from_tree(out, root, config, err);
    if (!ok)
        gd_error_context(err, "tokenizer.json");
    cJSON_Delete(root);
    gd_free(text);
    return ok;
}

bool gd_tokenizer_from_folder(struct gd_tokenizer **out, const char *folder, const cJSON *config, struct gd_error *err)
{
    *out = NULL;
    struct folder f = {.path = folder};
    bool ok = true;
    if (has(&f, "tokenizer.json")) {
        ok = open_json(out, &f, config, err);
    } else {
        f.config = cJSON_IsObject(config) ? cJSON_Duplicate(config, true) : cJSON_CreateObject();
        ok = add_map(&f, err) && parse_optional(&f, "added_tokens.json", &f.added, err) && open_older(out, &f, err);
        cJSON_Delete(f.config);
        cJSON_Delete(f.added);
    }
    if (!ok && (err->code == GD_INVALID || err->code == GD_MISSING || err->code == GD_TOO_LARGE))
        err->code = GD_BAD_MODEL;
    return ok;
}
