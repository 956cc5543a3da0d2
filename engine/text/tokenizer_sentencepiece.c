/*
 * SentencePiece's .model file: a protocol buffer, read by hand. ModelProto holds pieces (1: piece 1, score 2, type 3),
 * trainer_spec (2: model_type 3, treat_whitespace_as_suffix 24, byte_fallback 35, bos_piece 46, eos_piece 47, pad_piece 48) and
 * normalizer_spec (3: precompiled_charsmap 2, add_dummy_prefix 3, remove_extra_whitespaces 4, escape_whitespaces 5).
 */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/text/tokenizer_parts.h"
#include "engine/text/tokenizer_spm.h"

#include <stdio.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { MODEL_UNIGRAM = 1, MODEL_BPE, MODEL_WORD, MODEL_CHAR };

struct field {
    uint32_t number, wire;
    uint64_t value;      /* VARINT, 32, 64 */
    const uint8_t *data; /* BYTES */
    size_t length;
};

struct reader {
    const uint8_t *start, *at, *end;
    struct gd_error *err;
};

struct model {
    struct gd_arena arena;
    const char **pieces;
    float *scores;
    int32_t *types;
    int32_t count, capacity;
    int64_t type;
    bool byte_fallback, suffix, prefix, squeeze, escape;
    const uint8_t *charsmap;
    size_t charsmap_length;
    char *bos, *eos, *pad;
};

static bool broken(struct reader *r, const char *what)
{
    return gd_fail(r->err, GD_BAD_MODEL, "byte %zu: %s", (size_t)(r->at - r->start), what);
}

static bool read_varint(struct reader *r, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (r->at == r->end)
            return broken(r, "the file ends inside a number");
        uint8_t byte = *r->at++;
        *out |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return true;
    }
    return broken(r, "a number of more than 10 bytes");
}

static uint64_t little_endian(const uint8_t *bytes, size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static bool read_field(struct reader *r, struct field *field)
{
    uint64_t key = 0;
    if (!read_varint(r, &key))
        return false;
    *field = (struct field){.number = (uint32_t)(key >> 3), .wire = (uint32_t)(key & 7)};
    if (key >> 3 == 0 || key >> 3 > 0x1FFFFFFF)
        return broken(r, "a field without a number");
    size_t fixed = field->wire == WIRE_64 ? 8 : 4;
    switch (field->wire) {
    case WIRE_VARINT:
        return read_varint(r, &field->value);
    case WIRE_64:
    case WIRE_32:
        if ((size_t)(r->end - r->at) < fixed)
            return broken(r, "the file ends inside a number");
        field->value = little_endian(r->at, fixed);
        r->at += fixed;
        return true;
    case WIRE_BYTES:
        if (!read_varint(r, &field->value))
            return false;
        if (field->value > (uint64_t)(r->end - r->at))
            return broken(r, "a field is longer than what is left of its message");
        field->data = r->at;
        field->length = (size_t)field->value;
        r->at += field->length;
        return true;
    default:
        return broken(r, "a field of an unknown kind; this is not a SentencePiece model");
    }
}

static struct reader inside(const struct reader *r, const struct field *field)
{
    return (struct reader){r->start, field->data, field->data + field->length, r->err};
}

static char *text_of(struct model *m, const struct field *field)
{
    return gd_arena_strndup(&m->arena, (const char *)field->data, field->length);
}

static void reserve(struct model *m)
{
    if (m->count < m->capacity)
        return;
    m->capacity = m->capacity < 1024 ? 1024 : m->capacity * 2;
    m->pieces = gd_realloc_array(m->pieces, (size_t)m->capacity, sizeof(m->pieces[0]));
    m->scores = gd_realloc_array(m->scores, (size_t)m->capacity, sizeof(m->scores[0]));
    m->types = gd_realloc_array(m->types, (size_t)m->capacity, sizeof(m->types[0]));
}

static bool read_piece(struct model *m, struct reader r)
{
    struct field field;
    const char *text = NULL;
    float score = 0;
    uint64_t type = GD_SPM_NORMAL;
    if (m->count == GD_TOKENIZER_VOCAB_MAX)
        return broken(&r, "too many pieces");
    while (r.at < r.end) {
        if (!read_field(&r, &field))
            return false;
        if (field.number == 1 && field.wire == WIRE_BYTES) {
            if (memchr(field.data, 0, field.length) != NULL)
                return broken(&r, "a piece holds a NUL byte");
            text = text_of(m, &field);
        } else if (field.number == 2 && field.wire == WIRE_32) {
            uint32_t bits = (uint32_t)field.value;
            memcpy(&score, &bits, sizeof(score));
        } else if (field.number == 3 && field.wire == WIRE_VARINT) {
            type = field.value;
        }
    }
    if (text == NULL || text[0] == '\0')
        return broken(&r, "a piece without text");
    if (type < GD_SPM_NORMAL || type > GD_SPM_BYTE)
        return broken(&r, "a piece of an unknown type");
    reserve(m);
    m->pieces[m->count] = text;
    m->scores[m->count] = score;
    m->types[m->count++] = (int32_t)type;
    return true;
}

static bool read_trainer(struct model *m, struct reader r)
{
    struct field field;
    while (r.at < r.end) {
        if (!read_field(&r, &field))
            return false;
        if (field.wire == WIRE_VARINT) {
            if (field.number == 3)
                m->type = field.value > MODEL_CHAR ? 0 : (int64_t)field.value;
            else if (field.number == 24)
                m->suffix = field.value != 0;
            else if (field.number == 35)
                m->byte_fallback = field.value != 0;
        } else if (field.wire == WIRE_BYTES && field.number >= 46 && field.number <= 48) {
            *(field.number == 46 ? &m->bos : field.number == 47 ? &m->eos : &m->pad) = text_of(m, &field);
        }
    }
    return true;
}

static bool read_normalizer(struct model *m, struct reader r)
{
    struct field field;
    while (r.at < r.end) {
        if (!read_field(&r, &field))
            return false;
        if (field.number == 2 && field.wire == WIRE_BYTES) {
            m->charsmap = field.data;
            m->charsmap_length = field.length;
        } else if (field.wire == WIRE_VARINT) {
            bool value = field.value != 0;
            if (field.number == 3)
                m->prefix = value;
            else if (field.number == 4)
                m->squeeze = value;
            else if (field.number == 5)
                m->escape = value;
        }
    }
    return true;
}

static bool read_model(struct model *m, struct reader *r)
{
    struct field field;
    while (r->at < r->end) {
        if (!read_field(r, &field))
            return false;
        if (field.wire != WIRE_BYTES)
            continue;
        bool ok = field.number == 1   ? read_piece(m, inside(r, &field))
                  : field.number == 2 ? read_trainer(m, inside(r, &field))
                  : field.number == 3 ? read_normalizer(m, inside(r, &field))
                                      : true;
        if (!ok)
            return false;
        if (field.number == 5 && field.length > 0)
            return gd_fail(r->err, GD_UNSUPPORTED, "a denormalizer is not supported");
    }
    return true;
}

static bool check_model(const struct model *m, struct gd_error *err)
{
    static const char *const names[] = {"an unknown kind", "unigram", "bpe", "word", "char"};
    int unknowns = 0, bytes = 0;
    if (m->count == 0)
        return gd_fail(err, GD_BAD_MODEL, "no pieces; this is not a SentencePiece model");
    if (m->type != MODEL_UNIGRAM && m->type != MODEL_BPE)
        return gd_fail(err, GD_UNSUPPORTED, "the model is of %s, only unigram and bpe are supported", names[m->type]);
    for (int32_t id = 0; id < m->count; id++) {
        unknowns += m->types[id] == GD_SPM_UNKNOWN;
        bytes += m->types[id] == GD_SPM_BYTE;
        unsigned value = 0;
        char spelling[16];
        if (m->types[id] != GD_SPM_BYTE)
            continue;
        if (sscanf(m->pieces[id], "<0x%2X>", &value) == 1)
            (void)snprintf(spelling, sizeof(spelling), "<0x%02X>", value & 0xFF);
        else
            spelling[0] = '\0';
        if (strcmp(m->pieces[id], spelling) != 0)
            return gd_fail(err, GD_BAD_MODEL, "piece %d is a byte, but not spelled <0x00> to <0xFF>", id);
    }
    if (unknowns != 1)
        return gd_fail(err, GD_BAD_MODEL, "%d pieces are the unknown one, there must be one", unknowns);
    if (bytes != (m->byte_fallback ? 256 : 0))
        return gd_fail(err, GD_BAD_MODEL, "%d pieces are bytes, %d are wanted", bytes, m->byte_fallback ? 256 : 0);
    return true;
}

/* How classes of transformers wrap a model. */
enum wrapping { WRAP_LLAMA, WRAP_T5, WRAP_FAIRSEQ };

static bool find_wrapping(const cJSON *config, const char *file, enum wrapping *out, struct gd_error *err)
{
    static const struct {
        const char *name;
        enum wrapping wrapping;
    } classes[] = {
        {"LlamaTokenizer", WRAP_LLAMA}, {"LlamaTokenizerFast", WRAP_LLAMA}, {"CodeLlamaTokenizer", WRAP_LLAMA},
        {"GemmaTokenizer", WRAP_LLAMA}, {"GemmaTokenizerFast", WRAP_LLAMA}, {"PreTrainedTokenizerFast", WRAP_LLAMA},
        {"TokenizersBackend", WRAP_LLAMA}, {"SentencePieceBackend", WRAP_LLAMA},
        {"T5Tokenizer", WRAP_T5}, {"T5TokenizerFast", WRAP_T5},
        {"XLMRobertaTokenizer", WRAP_FAIRSEQ}, {"XLMRobertaTokenizerFast", WRAP_FAIRSEQ},
    };
    const char *name = NULL;
    if (config != NULL && !gd_json_get_string(config, "", "tokenizer_class", false, 1, SIZE_MAX, &name, err)) {
        gd_error_context(err, "tokenizer_config.json");
        return false;
    }
    *out = strcmp(file, "spiece.model") == 0                ? WRAP_T5
           : strcmp(file, "sentencepiece.bpe.model") == 0 ? WRAP_FAIRSEQ
                                                          : WRAP_LLAMA;
    if (name == NULL)
        return true;
    for (size_t i = 0; i < GD_COUNT(classes); i++)
        if (strcmp(name, classes[i].name) == 0) {
            *out = classes[i].wrapping;
            return true;
        }
    return gd_fail_param(err, GD_UNSUPPORTED, "tokenizer_class", "tokenizer_config.json: the tokenizer_class \"%.60s\" has rules "
                         "of its own for a SentencePiece model; use the model's tokenizer.json", name);
}

/* fairseq's order: four special tokens, then the pieces behind the library's first three, then the mask. */
static void as_fairseq(struct model *m)
{
    static const char *const first[] = {"<s>", "<pad>", "</s>", "<unk>"};
    static const int32_t types[] = {GD_SPM_CONTROL, GD_SPM_CONTROL, GD_SPM_CONTROL, GD_SPM_UNKNOWN};
    for (int i = 0; i < 2; i++) { /* room for two more */
        reserve(m);
        m->count++;
    }
    memmove(m->pieces + 4, m->pieces + 3, (size_t)(m->count - 5) * sizeof(m->pieces[0]));
    memmove(m->scores + 4, m->scores + 3, (size_t)(m->count - 5) * sizeof(m->scores[0]));
    memmove(m->types + 4, m->types + 3, (size_t)(m->count - 5) * sizeof(m->types[0]));
    for (int i = 0; i < 4; i++) {
        m->pieces[i] = first[i];
        m->types[i] = types[i];
        m->scores[i] = 0;
    }
    m->pieces[m->count - 1] = "<mask>";
    m->types[m->count - 1] = GD_SPM_CONTROL;
    m->scores[m->count - 1] = 0;
}

static int32_t find_control(const struct gd_tokenizer *tokenizer, const char *text)
{
    int32_t id = gd_tokenizer_find(tokenizer, text);
    return id >= 0 && gd_tokenizer_is_special(tokenizer, id) ? id : -1;
}

/* T5's sentinels come last, counted down: <extra_id_0> has the highest id. */
static bool add_sentinels(struct gd_tokenizer *tokenizer, const cJSON *config, int32_t count, struct gd_error *err)
{
    int64_t extra = 100;
    if (gd_tokenizer_find(tokenizer, "<extra_id_0>") >= 0)
        return true;
    if (config != NULL && !gd_json_get_int(config, "tokenizer_config.json", "extra_ids", false, 0, 10000, &extra, err))
        return false;
    for (int64_t i = 0; i < extra; i++) {
        char text[32];
        int length = snprintf(text, sizeof(text), "<extra_id_%lld>", (long long)(extra - 1 - i));
        struct gd_added flags = {.id = count + (int32_t)i, .special = true};
        if (!gd_tokenizer_add(tokenizer, text, (size_t)length, &flags, err))
            return false;
    }
    return true;
}

/* {"token": id}, of older folders. */
static bool add_older(struct gd_tokenizer *tokenizer, const cJSON *added, struct gd_error *err)
{
    for (const cJSON *item = added != NULL ? added->child : NULL; item != NULL; item = item->next) {
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0) || id >= GD_TOKENIZER_VOCAB_MAX || id != (double)(int32_t)id)
            return gd_fail(err, GD_BAD_MODEL, "added_tokens.json: the id of \"%.60s\" is not one", item->string);
        struct gd_added flags = {.id = (int32_t)id};
        if (gd_tokenizer_find(tokenizer, item->string) == flags.id)
            continue;
        if (!gd_tokenizer_add(tokenizer, item->string, strlen(item->string), &flags, err)) {
            gd_error_context(err, "added_tokens.json");
            return false;
        }
    }
    return true;
}

static bool build(struct gd_tokenizer *tokenizer, struct model *m, enum wrapping wrapping, const cJSON *config,
                  const cJSON *added, struct gd_error *err)
{
    struct gd_spm spm = {.count = m->count, .pieces = m->pieces, .scores = m->scores, .types = m->types,
                         .unigram = m->type == MODEL_UNIGRAM, .byte_fallback = m->byte_fallback, .squeeze = m->squeeze,
                         .escape = m->escape, .prefix = m->prefix, .suffix = m->suffix,
                         .first_only = gd_config_flag(config, "legacy") == 0,
                         .charsmap = (const char *)m->charsmap, .charsmap_length = m->charsmap_length};
    if (!gd_spm_add_pieces(tokenizer, &spm, err) || !add_older(tokenizer, added, err))
        return false;
    tokenizer->bos = find_control(tokenizer, m->bos != NULL ? m->bos : "<s>");
    tokenizer->eos = find_control(tokenizer, m->eos != NULL ? m->eos : "</s>");
    tokenizer->pad = find_control(tokenizer, m->pad != NULL ? m->pad : "<pad>");
    int add_bos = gd_config_flag(config, "add_bos_token"), add_eos = gd_config_flag(config, "add_eos_token");
    if (!gd_config_tokens(tokenizer, config, err) ||
        (wrapping == WRAP_T5 && !add_sentinels(tokenizer, config, m->count, err)) || !gd_spm_finish(tokenizer, &spm, err))
        return false;
    if (add_bos < 0)
        add_bos = wrapping != WRAP_T5 && tokenizer->bos >= 0;
    if (add_eos < 0)
        add_eos = wrapping != WRAP_LLAMA && tokenizer->eos >= 0;
    return gd_tokenizer_set_ends(tokenizer, add_bos, add_eos, err);
}

bool gd_tokenizer_from_sentencepiece(struct gd_tokenizer **out, const void *data, size_t length, const char *file,
                                     const cJSON *config, const cJSON *added, struct gd_error *err)
{
    *out = NULL;
    struct model m = {.type = MODEL_UNIGRAM, .prefix = true, .squeeze = true, .escape = true};
    struct reader r = {data, data, (const uint8_t *)data + length, err};
    enum wrapping wrapping = WRAP_LLAMA;
    bool ok = read_model(&m, &r) && check_model(&m, err);
    if (!ok)
        gd_error_context(err, "%s", file);
    ok = ok && find_wrapping(config, file, &wrapping, err);
    if (ok && wrapping == WRAP_FAIRSEQ && m.count < 4)
        ok = gd_fail(err, GD_BAD_MODEL, "%s: %d pieces are too few", file, m.count);
    if (ok && wrapping == WRAP_FAIRSEQ)
        as_fairseq(&m);
    struct gd_tokenizer *tokenizer = ok ? gd_tokenizer_create((size_t)m.count, (size_t)m.count) : NULL;
    if (ok && !build(tokenizer, &m, wrapping, config, added, err)) {
        gd_error_context(err, "%s", file);
        gd_tokenizer_destroy(tokenizer);
        ok = false;
    }
    if (ok)
        *out = tokenizer;
    gd_free(m.pieces);
    gd_free(m.scores);
    gd_free(m.types);
    gd_arena_release(&m.arena);
    return ok;
}
