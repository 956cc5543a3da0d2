#include "engine/text/tokenizer_parts.h"
#include "engine/base/alloc.h"
#include "engine/text/tokenizer_char.h"
#include "engine/text/tokenizer_patterns.h"

#include <stdio.h>
#include <string.h>

#define PATH_BYTES 160

/* Rust's \w and \s, which the Whitespace pre-tokenizer uses. */
#define WORD_SET "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}"
#define PATTERN_WORDS "[" WORD_SET "]+|[^" WORD_SET "\\p{White_Space}]+"

/* The type of a component, or NULL with an error. */
static const char *type_of(const cJSON *part, const char *path, struct gd_error *err)
{
    const char *type = NULL;
    if (!cJSON_IsObject(part)) {
        gd_fail_param(err, GD_BAD_MODEL, path, "%s is not an object", path);
        return NULL;
    }
    if (!gd_json_get_string(part, path, "type", true, 1, SIZE_MAX, &type, err))
        return NULL;
    return type;
}

static bool unsupported(const char *what, const char *type, const char *path, struct gd_error *err)
{
    char shown[GD_TOKEN_SHOWN_BYTES];
    return gd_fail_param(err, GD_UNSUPPORTED, path, "the %s \"%s\" is not supported (%s)", what,
                         gd_token_shown(shown, type, strlen(type)), path);
}

typedef bool read_part(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err);

static bool read_sequence(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, const char *key,
                          read_part *read, struct gd_error *err)
{
    const cJSON *list = NULL;
    int index = 0;
    if (!gd_json_get_array(part, path, key, true, &list, err))
        return false;
    for (const cJSON *item = list->child; item != NULL; item = item->next, index++) {
        char inner[PATH_BYTES];
        (void)snprintf(inner, sizeof(inner), "%.100s.%s[%d]", path, key, index);
        if (cJSON_IsNull(item))
            return gd_fail_param(err, GD_BAD_MODEL, inner, "%s is null", inner);
        if (!read(tokenizer, item, inner, err))
            return false;
    }
    return true;
}

static bool read_text(const cJSON *part, const char *path, const char *key, size_t length_min, char **out, size_t *length,
                      struct gd_error *err)
{
    const char *text = NULL;
    if (!gd_json_get_string(part, path, key, true, length_min, GD_REGEX_PATTERN_BYTES, &text, err))
        return false;
    *out = gd_strdup(text);
    *length = strlen(text);
    return true;
}

/* One character. */
static bool read_character(const cJSON *part, const char *path, const char *key, const char *absent, char **out,
                           size_t *length, struct gd_error *err)
{
    const char *text = absent;
    if (!gd_json_get_string(part, path, key, absent == NULL, 1, 64, &text, err))
        return false;
    if (gd_char_length(text[0]) != strlen(text))
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.%s \"%s\" is not one character", path, key, text);
    *out = gd_strdup(text);
    *length = strlen(text);
    return true;
}

/* "pattern": {"String": ...} or {"Regex": ...} */
static bool read_pattern(const cJSON *part, const char *path, struct gd_regex **out, struct gd_error *err)
{
    const cJSON *pattern = NULL;
    const char *text = NULL;
    if (!gd_json_get_object(part, path, "pattern", true, &pattern, err))
        return false;
    const cJSON *item = pattern->child;
    bool literal = item != NULL && strcmp(item->string, "String") == 0;
    if (item == NULL || item->next != NULL || (!literal && strcmp(item->string, "Regex") != 0) || !cJSON_IsString(item))
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.pattern must be {\"String\": text} or {\"Regex\": text}", path);
    text = item->valuestring;
    return gd_regex_compile(out, text, strlen(text), literal ? GD_REGEX_LITERAL : GD_REGEX_RUBY, path, err);
}

static bool read_behavior(const cJSON *part, const char *path, const char *absent, enum gd_split_behavior *out,
                          struct gd_error *err)
{
    static const char *const names[] = {
        [GD_SPLIT_ISOLATED] = "Isolated",
        [GD_SPLIT_REMOVED] = "Removed",
        [GD_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [GD_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [GD_SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *name = absent;
    if (!gd_json_get_string(part, path, "behavior", absent == NULL, 1, SIZE_MAX, &name, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (enum gd_split_behavior)i;
            return true;
        }
    return gd_fail_param(err, GD_BAD_MODEL, path, "%s.behavior \"%.60s\" is not Isolated, Removed, MergedWithPrevious, "
                         "MergedWithNext or Contiguous", path, name);
}

/* strip_accents follows lowercase when it is absent or null, as in the reference. */
static bool read_bert_normalizer(struct gd_steps *steps, const cJSON *part, const char *path, struct gd_error *err)
{
    bool clean = true, chinese = true, lowercase = true;
    if (!gd_json_get_bool(part, path, "clean_text", false, &clean, err) ||
        !gd_json_get_bool(part, path, "handle_chinese_chars", false, &chinese, err) ||
        !gd_json_get_bool(part, path, "lowercase", false, &lowercase, err))
        return false;
    bool accents = lowercase;
    if (!cJSON_IsNull(gd_json_find(part, "strip_accents")) &&
        !gd_json_get_bool(part, path, "strip_accents", false, &accents, err))
        return false;
    const struct {
        bool wanted;
        enum gd_step_kind kind;
    } kinds[] = {{clean, GD_STEP_CLEAN}, {chinese, GD_STEP_CHINESE}, {accents, GD_STEP_NFD},
                 {accents, GD_STEP_STRIP_NONSPACING}, {lowercase, GD_STEP_LOWERCASE}};
    struct gd_step *step = NULL;
    for (size_t i = 0; i < GD_COUNT(kinds); i++)
        if (kinds[i].wanted && !gd_steps_add(steps, kinds[i].kind, &step, err))
            return false;
    return true;
}

bool gd_parts_normalizer(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    static const struct {
        const char *name;
        enum gd_step_kind kind;
    } kinds[] = {
        {"NFC", GD_STEP_NFC}, {"NFD", GD_STEP_NFD}, {"NFKC", GD_STEP_NFKC}, {"NFKD", GD_STEP_NFKD},
        {"Lowercase", GD_STEP_LOWERCASE}, {"Strip", GD_STEP_STRIP}, {"StripAccents", GD_STEP_STRIP_ACCENTS},
        {"Prepend", GD_STEP_PREPEND}, {"Replace", GD_STEP_REPLACE}, {"ByteLevel", GD_STEP_BYTES},
        {"Nmt", GD_STEP_NMT}, {"Precompiled", GD_STEP_CHARSMAP},
    };
    if (part == NULL || cJSON_IsNull(part))
        return true;
    const char *type = type_of(part, path, err);
    if (type == NULL)
        return false;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(tokenizer, part, path, "normalizers", gd_parts_normalizer, err);
    if (strcmp(type, "BertNormalizer") == 0)
        return read_bert_normalizer(&tokenizer->normalizers, part, path, err);
    size_t k = 0;
    while (k < GD_COUNT(kinds) && strcmp(type, kinds[k].name) != 0)
        k++;
    if (k == GD_COUNT(kinds))
        return unsupported("normalizer", type, path, err);
    struct gd_step *step = NULL;
    if (!gd_steps_add(&tokenizer->normalizers, kinds[k].kind, &step, err))
        return false;
    if (step->kind == GD_STEP_STRIP) {
        step->left = step->right = true;
        return gd_json_get_bool(part, path, "strip_left", false, &step->left, err) &&
               gd_json_get_bool(part, path, "strip_right", false, &step->right, err);
    }
    if (step->kind == GD_STEP_CHARSMAP) {
        const char *base64 = NULL;
        return gd_json_get_string(part, path, "precompiled_charsmap", true, 1, SIZE_MAX, &base64, err) &&
               gd_charsmap_read(step, base64, path, err);
    }
    if (step->kind == GD_STEP_PREPEND)
        return read_text(part, path, "prepend", 0, &step->text, &step->text_length, err);
    if (step->kind == GD_STEP_REPLACE)
        return read_pattern(part, path, &step->regex, err) &&
               read_text(part, path, "content", 0, &step->text, &step->text_length, err);
    return true;
}

static bool read_byte_level(struct gd_steps *steps, const cJSON *part, const char *path, struct gd_error *err)
{
    /* trim_offsets only moves the reference's offsets off spaces; ours cover every byte, so that masks have no holes. */
    bool prefix = true, regex = true, trim = true;
    struct gd_step *step = NULL;
    if (!gd_json_get_bool(part, path, "add_prefix_space", false, &prefix, err) ||
        !gd_json_get_bool(part, path, "use_regex", false, &regex, err) ||
        !gd_json_get_bool(part, path, "trim_offsets", false, &trim, err))
        return false;
    if (prefix && !gd_steps_add(steps, GD_STEP_PREFIX_SPACE, &step, err))
        return false;
    if (regex && (!gd_steps_add(steps, GD_STEP_SPLIT, &step, err) ||
                  !gd_regex_compile(&step->regex, GD_PATTERN_GPT2, strlen(GD_PATTERN_GPT2), GD_REGEX_RUBY, path, err)))
        return false;
    return gd_steps_add(steps, GD_STEP_BYTES, &step, err);
}

static bool read_metaspace(struct gd_steps *steps, const cJSON *part, const char *path, struct gd_error *err)
{
    struct gd_step *step = NULL;
    bool prefix = true;
    const char *scheme = NULL;
    if (!gd_steps_add(steps, GD_STEP_METASPACE, &step, err) ||
        !read_character(part, path, "replacement", NULL, &step->text, &step->text_length, err) ||
        !gd_json_get_bool(part, path, "add_prefix_space", false, &prefix, err) ||
        !gd_json_get_string(part, path, "prepend_scheme", false, 1, SIZE_MAX, &scheme, err))
        return false;
    step->split = true;
    if (scheme == NULL)
        scheme = prefix ? "always" : "never";
    if (strcmp(scheme, "always") == 0)
        step->prepend = GD_PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        step->prepend = GD_PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        step->prepend = GD_PREPEND_NEVER;
    else
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.prepend_scheme \"%.60s\" is not always, first or never", path,
                             scheme);
    if (!prefix && step->prepend != GD_PREPEND_NEVER)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.add_prefix_space is false but prepend_scheme is \"%s\"", path,
                             scheme);
    return gd_json_get_bool(part, path, "split", false, &step->split, err);
}

static bool read_splitter(struct gd_steps *steps, const char *type, const cJSON *part, const char *path,
                          struct gd_error *err)
{
    struct gd_step *step = NULL;
    bool individual = false;
    if (!gd_steps_add(steps, GD_STEP_SPLIT, &step, err))
        return false;
    if (strcmp(type, "Split") == 0)
        return read_pattern(part, path, &step->regex, err) && read_behavior(part, path, NULL, &step->behavior, err) &&
               gd_json_get_bool(part, path, "invert", false, &step->invert, err);
    if (strcmp(type, "Whitespace") == 0) {
        step->behavior = GD_SPLIT_REMOVED;
        step->invert = true;
        return gd_regex_compile(&step->regex, PATTERN_WORDS, strlen(PATTERN_WORDS), GD_REGEX_PCRE, path, err);
    }
    if (strcmp(type, "WhitespaceSplit") == 0 || strcmp(type, "BertPreTokenizer") == 0) {
        step->kind = GD_STEP_WHITESPACE_SPLIT;
        step->behavior = GD_SPLIT_REMOVED;
        if (type[0] == 'W')
            return true;
        if (!gd_steps_add(steps, GD_STEP_PUNCTUATION, &step, err))
            return false;
        step->behavior = GD_SPLIT_ISOLATED;
        return true;
    }
    if (strcmp(type, "Punctuation") == 0) {
        step->kind = GD_STEP_PUNCTUATION;
        return read_behavior(part, path, "Isolated", &step->behavior, err);
    }
    if (strcmp(type, "Digits") == 0) {
        step->kind = GD_STEP_DIGITS;
        if (!gd_json_get_bool(part, path, "individual_digits", false, &individual, err))
            return false;
        step->behavior = individual ? GD_SPLIT_ISOLATED : GD_SPLIT_CONTIGUOUS;
        return true;
    }
    if (strcmp(type, "FixedLength") == 0) {
        step->kind = GD_STEP_FIXED_LENGTH;
        step->characters = 5;
        return gd_json_get_int(part, path, "length", false, 1, INT32_MAX, &step->characters, err);
    }
    if (strcmp(type, "UnicodeScripts") == 0) {
        step->behavior = GD_SPLIT_REMOVED;
        step->invert = true;
        return gd_scripts_pattern(&step->regex, path, err);
    }
    if (strcmp(type, "CharDelimiterSplit") == 0) {
        char *delimiter = NULL;
        size_t length = 0;
        step->behavior = GD_SPLIT_REMOVED;
        bool ok = read_character(part, path, "delimiter", NULL, &delimiter, &length, err) &&
                  gd_regex_compile(&step->regex, delimiter, length, GD_REGEX_LITERAL, path, err);
        gd_free(delimiter);
        return ok;
    }
    return unsupported("pre-tokenizer", type, path, err);
}

static bool read_pretokenizer(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    const char *type = type_of(part, path, err);
    if (type == NULL)
        return false;
    struct gd_steps *steps = &tokenizer->pretokenizers;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(tokenizer, part, path, "pretokenizers", read_pretokenizer, err);
    if (strcmp(type, "ByteLevel") == 0)
        return read_byte_level(steps, part, path, err);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(steps, part, path, err);
    return read_splitter(steps, type, part, path, err);
}

/* A byte level at the end needs no rewriting: BPE starts from the bytes themselves. */
bool gd_parts_pretokenizer(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    if (part == NULL || cJSON_IsNull(part))
        return true;
    struct gd_steps *steps = &tokenizer->pretokenizers;
    if (!read_pretokenizer(tokenizer, part, path, err))
        return false;
    if (tokenizer->model == GD_MODEL_BPE && steps->count > 0 && steps->step[steps->count - 1].kind == GD_STEP_BYTES) {
        steps->count--;
        tokenizer->bpe.byte_level = true;
    }
    return true;
}

/* The ids that a special token of the template stands for. */
static bool read_template_ids(struct gd_tokenizer *tokenizer, const cJSON *specials, const char *name, const char *path,
                              int32_t ids[GD_TEMPLATE_IDS_MAX], int *count, struct gd_error *err)
{
    char shown[GD_TOKEN_SHOWN_BYTES];
    gd_token_shown(shown, name, strlen(name));
    const cJSON *special = gd_json_find(specials, name), *list = NULL;
    if (special == NULL)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s names \"%s\", which is not in its special_tokens", path, shown);
    if (!gd_json_get_array(special, path, "ids", true, &list, err))
        return false;
    for (const cJSON *item = list->child; item != NULL; item = item->next) {
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0) || id >= tokenizer->vocab.count || tokenizer->vocab.token[(int32_t)id].text == NULL)
            return gd_fail_param(err, GD_BAD_MODEL, path, "%s: \"%s\" stands for id %g, which is not in the vocabulary",
                                 path, shown, id);
        if (*count == GD_TEMPLATE_IDS_MAX)
            return gd_fail_param(err, GD_BAD_MODEL, path, "%s adds more than %d tokens", path, GD_TEMPLATE_IDS_MAX);
        ids[(*count)++] = (int32_t)id;
    }
    return true;
}

/* Puts ids around what the post-processors before put around a text. */
static bool wrap(struct gd_tokenizer *tokenizer, const int32_t *before, int before_count, const int32_t *after,
                 int after_count, const char *path, struct gd_error *err)
{
    size_t size = sizeof(before[0]);
    if (tokenizer->before_count + before_count > GD_TEMPLATE_IDS_MAX ||
        tokenizer->after_count + after_count > GD_TEMPLATE_IDS_MAX)
        return gd_fail_param(err, GD_BAD_MODEL, path, "the post-processor adds more than %d tokens", GD_TEMPLATE_IDS_MAX);
    memmove(tokenizer->before + before_count, tokenizer->before, (size_t)tokenizer->before_count * size);
    memcpy(tokenizer->before, before, (size_t)before_count * size);
    tokenizer->before_count += before_count;
    memcpy(tokenizer->after + tokenizer->after_count, after, (size_t)after_count * size);
    tokenizer->after_count += after_count;
    return true;
}

/* What the template of one text puts before and behind it. */
static bool read_template(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    const cJSON *single = NULL, *specials = NULL;
    int32_t ids[2][GD_TEMPLATE_IDS_MAX];
    int count[2] = {0, 0}, texts = 0;
    if (!gd_json_get_array(part, path, "single", true, &single, err) ||
        !gd_json_get_object(part, path, "special_tokens", false, &specials, err))
        return false;
    for (const cJSON *item = single->child; item != NULL; item = item->next) {
        const cJSON *special = gd_json_find(item, "SpecialToken"), *sequence = gd_json_find(item, "Sequence");
        const char *name = NULL;
        if ((special == NULL) == (sequence == NULL))
            return gd_fail_param(err, GD_BAD_MODEL, path,
                                 "%s.single holds something else than SpecialToken and Sequence", path);
        if (!gd_json_get_string(special != NULL ? special : sequence, path, "id", true, 1, SIZE_MAX, &name, err))
            return false;
        if (sequence != NULL) {
            if (strcmp(name, "A") != 0 || ++texts > 1)
                return gd_fail_param(err, GD_BAD_MODEL, path, "%s.single must hold the sequence A once and no other",
                                     path);
        } else if (!read_template_ids(tokenizer, specials, name, path, ids[texts], &count[texts], err)) {
            return false;
        }
    }
    if (texts == 0)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.single does not hold the sequence A", path);
    return wrap(tokenizer, ids[0], count[0], ids[1], count[1], path, err);
}

static void set_pair(struct gd_tokenizer *tokenizer, const int32_t *between, int between_count, const int32_t *ending, int ending_count)
{
    memcpy(tokenizer->between, between, (size_t)between_count * sizeof(between[0]));
    memcpy(tokenizer->ending, ending, (size_t)ending_count * sizeof(ending[0]));
    tokenizer->between_count = between_count;
    tokenizer->ending_count = ending_count;
}

/* What the template of two texts puts between them and behind the second; before the first it puts what one text has there. */
static bool read_pair_template(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    const cJSON *pair = NULL, *specials = NULL;
    int32_t ids[3][GD_TEMPLATE_IDS_MAX];
    int count[3] = {0}, texts = 0;
    if (!gd_json_get_array(part, path, "pair", false, &pair, err) ||
        !gd_json_get_object(part, path, "special_tokens", false, &specials, err))
        return false;
    for (const cJSON *item = pair != NULL ? pair->child : NULL; item != NULL; item = item->next) {
        const cJSON *special = gd_json_find(item, "SpecialToken"), *sequence = gd_json_find(item, "Sequence");
        const char *name = NULL;
        if ((special == NULL) == (sequence == NULL))
            return gd_fail_param(err, GD_BAD_MODEL, path, "%s.pair holds something else than SpecialToken and Sequence", path);
        if (!gd_json_get_string(special != NULL ? special : sequence, path, "id", true, 1, SIZE_MAX, &name, err))
            return false;
        if (sequence != NULL && (texts == 2 || strcmp(name, texts == 0 ? "A" : "B") != 0))
            return gd_fail_param(err, GD_BAD_MODEL, path, "%s.pair must hold the sequences A and B once each, in this order", path);
        if (sequence != NULL)
            texts++;
        else if (!read_template_ids(tokenizer, specials, name, path, ids[texts], &count[texts], err))
            return false;
    }
    if (pair != NULL)
        set_pair(tokenizer, ids[1], count[1], ids[2], count[2]);
    return true;
}

/* ["[CLS]", 101] */
static bool read_token_pair(const struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, const char *key,
                            int32_t *id, struct gd_error *err)
{
    const cJSON *pair = NULL;
    if (!gd_json_get_array(part, path, key, true, &pair, err))
        return false;
    const cJSON *text = pair->child, *number = text != NULL ? text->next : NULL;
    if (!cJSON_IsString(text) || !cJSON_IsNumber(number) || number->next != NULL)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.%s must be [token, id]", path, key);
    double value = number->valuedouble;
    if (!(value >= 0) || value >= tokenizer->vocab.count || value != (int32_t)value ||
        tokenizer->vocab.token[(int32_t)value].text == NULL)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.%s has id %g, which is not in the vocabulary", path, key,
                             value);
    *id = (int32_t)value;
    return true;
}

/* BertProcessing and RobertaProcessing: cls text sep. Roberta's other fields only move offsets. */
static bool read_cls_sep(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    int32_t cls = -1, sep = -1;
    bool twice = strcmp(gd_json_find(part, "type")->valuestring, "RobertaProcessing") == 0;
    if (!read_token_pair(tokenizer, part, path, "cls", &cls, err) || !read_token_pair(tokenizer, part, path, "sep", &sep, err))
        return false;
    set_pair(tokenizer, (int32_t[]){sep, sep}, twice ? 2 : 1, &sep, 1);
    return wrap(tokenizer, &cls, 1, &sep, 1, path, err);
}

bool gd_parts_post_processor(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    if (part == NULL || cJSON_IsNull(part))
        return true;
    const char *type = type_of(part, path, err);
    if (type == NULL)
        return false;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(tokenizer, part, path, "processors", gd_parts_post_processor, err);
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(tokenizer, part, path, err) && read_pair_template(tokenizer, part, path, err);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0)
        return read_cls_sep(tokenizer, part, path, err);
    if (strcmp(type, "ByteLevel") == 0) /* moves offsets only */
        return true;
    return unsupported("post-processor", type, path, err);
}

bool gd_parts_decoder(struct gd_tokenizer *tokenizer, const cJSON *part, const char *path, struct gd_error *err)
{
    static const struct {
        const char *name;
        enum gd_decoder_kind kind;
    } kinds[] = {
        {"ByteLevel", GD_DECODE_BYTE_LEVEL}, {"ByteFallback", GD_DECODE_BYTE_FALLBACK}, {"Fuse", GD_DECODE_FUSE},
        {"Replace", GD_DECODE_REPLACE}, {"Strip", GD_DECODE_STRIP}, {"Metaspace", GD_DECODE_METASPACE},
        {"BPEDecoder", GD_DECODE_WORD_END}, {"WordPiece", GD_DECODE_WORDPIECE}, {"CTC", GD_DECODE_CTC},
    };
    if (part == NULL || cJSON_IsNull(part))
        return true;
    const char *type = type_of(part, path, err);
    if (type == NULL)
        return false;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(tokenizer, part, path, "decoders", gd_parts_decoder, err);
    size_t k = 0;
    while (k < GD_COUNT(kinds) && strcmp(type, kinds[k].name) != 0)
        k++;
    if (k == GD_COUNT(kinds))
        return unsupported("decoder", type, path, err);
    struct gd_decoder *step = NULL;
    if (!gd_decoders_add(&tokenizer->decoders, kinds[k].kind, &step, err))
        return false;
    int64_t start = 0, stop = 0;
    const char *scheme = "always";
    switch (step->kind) {
    case GD_DECODE_REPLACE:
        return read_pattern(part, path, &step->regex, err) &&
               read_text(part, path, "content", 0, &step->text, &step->text_length, err);
    case GD_DECODE_STRIP:
        if (!read_character(part, path, "content", NULL, &step->text, &step->text_length, err) ||
            !gd_json_get_int(part, path, "start", false, 0, INT32_MAX, &start, err) ||
            !gd_json_get_int(part, path, "stop", false, 0, INT32_MAX, &stop, err))
            return false;
        step->start = (int32_t)start;
        step->stop = (int32_t)stop;
        return true;
    case GD_DECODE_METASPACE:
        if (!read_character(part, path, "replacement", NULL, &step->text, &step->text_length, err) ||
            !gd_json_get_string(part, path, "prepend_scheme", false, 1, SIZE_MAX, &scheme, err))
            return false;
        const cJSON *prefix = gd_json_find(part, "add_prefix_space");
        step->keep_first = strcmp(scheme, "never") == 0 || cJSON_IsFalse(prefix);
        return true;
    case GD_DECODE_WORDPIECE:
        step->cleanup = true;
        return read_text(part, path, "prefix", 0, &step->text, &step->text_length, err) &&
               gd_json_get_bool(part, path, "cleanup", false, &step->cleanup, err);
    case GD_DECODE_CTC:
        step->cleanup = true;
        return read_text(part, path, "pad_token", 1, &step->text, &step->text_length, err) &&
               read_text(part, path, "word_delimiter_token", 1, &step->word_end, &step->word_end_length, err) &&
               gd_json_get_bool(part, path, "cleanup", false, &step->cleanup, err);
    case GD_DECODE_WORD_END:
        return read_text(part, path, "suffix", 1, &step->text, &step->text_length, err);
    default:
        return true;
    }
}

static bool find_side(const struct gd_tokenizer *tokenizer, const char *text, size_t length, int32_t *id,
                      struct gd_error *err)
{
    char shown[GD_TOKEN_SHOWN_BYTES];
    *id = gd_vocab_find(&tokenizer->vocab, text, length);
    if (*id >= 0 && (tokenizer->vocab.token[*id].flags & GD_TOKEN_MODEL))
        return true;
    return gd_fail(err, GD_BAD_MODEL, "the merge names \"%s\", which is not in the vocabulary",
                   gd_token_shown(shown, text, length));
}

bool gd_merge_read(struct gd_merge_reader *reader, const char *left, size_t left_length, const char *right,
                   size_t right_length, uint32_t rank, struct gd_error *err)
{
    struct gd_tokenizer *tokenizer = reader->tokenizer;
    size_t prefix = tokenizer->bpe.prefix != NULL ? strlen(tokenizer->bpe.prefix) : 0;
    int32_t left_id = -1, right_id = -1, id = -1;
    if (!find_side(tokenizer, left, left_length, &left_id, err) ||
        !find_side(tokenizer, right, right_length, &right_id, err))
        return false;
    if (right_length < prefix)
        return gd_fail(err, GD_BAD_MODEL, "the right side is shorter than continuing_subword_prefix");
    if (reader->joined == NULL)
        reader->joined = gd_alloc(2 * (size_t)tokenizer->vocab.length_max + 1);
    memcpy(reader->joined, left, left_length);
    memcpy(reader->joined + left_length, right + prefix, right_length - prefix);
    if (!find_side(tokenizer, reader->joined, left_length + right_length - prefix, &id, err))
        return false;
    gd_bpe_add_merge(&tokenizer->bpe, left_id, right_id, rank, id);
    return true;
}
