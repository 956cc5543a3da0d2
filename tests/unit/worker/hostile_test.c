/* hostile_test.c - files made to hurt, one of each kind that is known to have hurt somebody, through the doors that models, adapters,
 * rows and jobs come in by: each is refused by the file's name and place, within the bounds of bounded.h. */
#include "tests/unit/bounded.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/json.h"
#include "engine/data/row.h"
#include "engine/model/model.h"
#include "engine/tensor/device.h"
#include "engine/train/spec.h"

#include <dirent.h>

enum door { MODEL, GGUF, ADAPTER, ROWS, JOB, PROMPT };

struct hostile {
    enum door door;
    const char *file;               /* that is broken, in its folder */
    const char *what;
    void (*write)(FILE *file);
    const char *words;              /* of the message, each between '|'; NULL: it may be accepted too */
    bool alone;                     /* without the good folder's weights, or tokenizer, so that this one is read */
};

/* ---- bytes ---- */

static void number(FILE *file, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        fputc((int)(value >> (8 * i) & 0xff), file);
}

static void times(FILE *file, const char *part, long count)
{
    for (long i = 0; i < count; i++)
        fputs(part, file);
}

/* So many zero bytes that take no room on the disk. */
static void hole(FILE *file, off_t bytes)
{
    fseeko(file, bytes - 1, SEEK_CUR);
    fputc(0, file);
}

/* ---- safetensors ---- */

static void header(FILE *file, const char *text)
{
    number(file, strlen(text), 8);
    fputs(text, file);
}

static void st_empty(FILE *file)
{
}
static void st_endless_header(FILE *file)
{
    number(file, UINT64_MAX, 8);
    fputs("{}", file);
}
static void st_zeros(FILE *file)
{
    number(file, 100000000, 8);
    fputc('{', file);
    hole(file, 100000000);
}
static void st_values(FILE *file) /* every byte or two of it one more value in a tree */
{
    number(file, 2 * 10000000 + 8, 8);
    fputs("{\"a\":[0", file);
    times(file, ",0", 10000000 - 1);
    fputs("]}  ", file);
}
static void st_keys(FILE *file)
{
    number(file, 13 * 2000000 + 1, 8);
    for (long i = 0; i < 2000000; i++)
        fprintf(file, "%c\"%07ld\":{}", i == 0 ? '{' : ',', i);
    fputc('}', file);
}
static void st_deep(FILE *file)
{
    number(file, 1000005, 8);
    fputs("{\"a\":", file);
    times(file, "[", 1000000);
}
static void st_twins(FILE *file)
{
    header(file, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
    number(file, 0, 4);
}
static void st_overflow(FILE *file)
{
    header(file, "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,1073741824],\"data_offsets\":[0,4]}}");
    number(file, 0, 4);
}
static void st_hole(FILE *file)
{
    header(file, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}");
    number(file, 0, 8);
}
static void index_up(FILE *file)
{
    fputs("{\"weight_map\":{\"model.norm.weight\":\"../../model.safetensors\"}}", file);
}
static void index_missing(FILE *file)
{
    fputs("{\"weight_map\":{\"model.norm.weight\":\"model-00001-of-00002.safetensors\"}}", file);
}
static void index_values(FILE *file)
{
    fputs("{\"weight_map\":{\"x\":\"y\"", file);
    for (int i = 0; i < 2000000; i++)
        fprintf(file, ",\"%d\":\"y\"", i);
    fputs("}}", file);
}

/* ---- GGUF ---- */

enum { U32 = 4, F32 = 6, STRING = 8, ARRAY = 9 };

static void gguf(FILE *file, uint64_t tensors, uint64_t values)
{
    fputs("GGUF", file);
    number(file, 3, 4);
    number(file, tensors, 8);
    number(file, values, 8);
}
static void key(FILE *file, const char *name, uint32_t kind)
{
    number(file, strlen(name), 8);
    fputs(name, file);
    number(file, kind, 4);
}
static void tensor(FILE *file, const char *name, uint64_t columns, uint64_t rows, uint64_t offset)
{
    number(file, strlen(name), 8);
    fputs(name, file);
    number(file, 2, 4);
    number(file, columns, 8);
    number(file, rows, 8);
    number(file, 0, 4);
    number(file, offset, 8);
}
static void gg_magic(FILE *file)
{
    fputs("GGMF", file);
    hole(file, 1 << 20);
}
static void gg_cut(FILE *file)
{
    fputs("GGUF", file);
    number(file, 3, 4);
}
static void gg_values(FILE *file) /* as many as the file could hold */
{
    gguf(file, 0, ((uint64_t)1 << 30) / 14 - 4);
    hole(file, (off_t)1 << 30);
}
static void gg_tensors(FILE *file)
{
    gguf(file, ((uint64_t)1 << 30) / 33 - 4, 0);
    hole(file, (off_t)1 << 30);
}
static void gg_many_values(FILE *file) /* all of them real */
{
    gguf(file, 0, 2000000);
    for (int i = 0; i < 2000000; i++) {
        char name[16];
        snprintf(name, sizeof name, "%07d", i);
        key(file, name, U32);
        number(file, 1, 4);
    }
}
static void gg_many_tensors(FILE *file)
{
    gguf(file, 2000000, 0);
    for (int i = 0; i < 2000000; i++) {
        char name[16];
        snprintf(name, sizeof name, "%07d", i);
        tensor(file, name, 8, 1, (uint64_t)i * 32);
    }
}
static void gg_string(FILE *file)
{
    gguf(file, 0, 1);
    key(file, "k", STRING);
    number(file, UINT64_C(1) << 63, 8);
}
static void gg_strings(FILE *file) /* tokens without end */
{
    gguf(file, 0, 1);
    key(file, "tokenizer.ggml.tokens", ARRAY);
    number(file, STRING, 4);
    number(file, 20000000, 8);
    hole(file, 160000000 - 8);
}
static void gg_arrays(FILE *file)
{
    gguf(file, 0, 1);
    key(file, "k", ARRAY);
    number(file, ARRAY, 4);
    number(file, 1, 8);
}
static void gg_kind(FILE *file)
{
    gguf(file, 0, 1);
    key(file, "k", 0x7fffffff);
    hole(file, 64);
}
static void gg_alignment(FILE *file)
{
    gguf(file, 1, 1);
    key(file, "general.alignment", U32);
    number(file, UINT64_C(1) << 31, 4);
    tensor(file, "t", 8, 1, 0);
    hole(file, 4096);
}
static void gg_overflow(FILE *file)
{
    gguf(file, 1, 0);
    tensor(file, "t", (UINT64_C(1) << 62) + 1, 1, 0);
    hole(file, 4096);
}
static void gg_zero(FILE *file)
{
    gguf(file, 1, 0);
    tensor(file, "t", 0, 4, 0);
}
static void gg_past_end(FILE *file)
{
    gguf(file, 1, 0);
    tensor(file, "t", 1024, 1024, 0);
    hole(file, 4096);
}
static void gg_twin_keys(FILE *file)
{
    gguf(file, 0, 2);
    for (int i = 0; i < 2; i++) {
        key(file, "k", U32);
        number(file, 1, 4);
    }
}
static void gg_twin_tensors(FILE *file)
{
    gguf(file, 2, 0);
    tensor(file, "t", 8, 1, 0);
    tensor(file, "t", 8, 1, 32);
    hole(file, 4096);
}
static void text_value(FILE *file, const char *name, const char *text)
{
    key(file, name, STRING);
    number(file, strlen(text), 8);
    fputs(text, file);
}
static void gg_int8_tokens(FILE *file) /* declared as bytes, read as strings elsewhere */
{
    gguf(file, 0, 2);
    text_value(file, "general.architecture", "llama");
    key(file, "tokenizer.ggml.tokens", ARRAY);
    number(file, 1, 4);
    number(file, 64, 8);
    hole(file, 64);
}
static void gg_blocks(FILE *file) /* more layers than anybody has */
{
    gguf(file, 0, 3);
    text_value(file, "general.architecture", "llama");
    key(file, "llama.embedding_length", U32);
    number(file, 64, 4);
    key(file, "llama.block_count", U32);
    number(file, UINT32_MAX, 4);
}

/* ---- config.json, tokenizers, templates ---- */

static void js_deep(FILE *file)
{
    times(file, "{\"a\":", 100000);
}
static void js_text(FILE *file)
{
    fputs("{\"vocab_size\": 1e999}", file);
}
static void js_utf8(FILE *file)
{
    fputs("{\"vocab_size\": \"\xff\"}", file);
}
static void js_huge(FILE *file)
{
    fputc('{', file);
    hole(file, (off_t)1 << 30);
}
static void js_values(FILE *file)
{
    fputs("{\"a\":[0", file);
    times(file, ",0", 2000000);
    fputs("]}", file);
}
static void cf_layers(FILE *file)
{
    fputs("{\"model_type\":\"llama\",\"vocab_size\":320,\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":2147483647,"
          "\"num_attention_heads\":4,\"rms_norm_eps\":1e-5,\"max_position_embeddings\":256}", file);
}

#define BPE_VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"

static void tk_absent_merge(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\"," BPE_VOCAB ",\"merges\":[\"a c\"]}}", file);
}
static void tk_huge_id(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":2147483648},\"merges\":[]}}", file);
}
static void tk_twin_ids(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", file);
}
static void tk_negative_id(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", file);
}
static void tk_added(FILE *file) /* ten million of them */
{
    fputs("{\"model\":{\"type\":\"BPE\"," BPE_VOCAB ",\"merges\":[]},\"added_tokens\":[{}", file);
    for (int i = 0; i < 10000000; i++)
        fprintf(file, ",{\"id\":%d}", i);
    fputs("]}", file);
}
static void tk_values(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\"," BPE_VOCAB ",\"merges\":[0", file);
    times(file, ",0", 6000000);
    fputs("]}}", file);
}
static void tk_regex(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\"," BPE_VOCAB ",\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":"
          "\"((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}\"},\"behavior\":\"Isolated\"}}", file);
}
static void tk_pattern(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\"," BPE_VOCAB ",\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},"
          "\"behavior\":\"Isolated\"}}", file);
}
static void tk_nested(FILE *file)
{
    fputs("{\"pre_tokenizer\":", file);
    times(file, "{\"type\":\"Sequence\",\"pretokenizers\":[", 100000);
}
static void tk_template(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\"," BPE_VOCAB ",\"merges\":[]},\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":"
          "[{\"SpecialToken\":{\"id\":\"<none>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{}}}", file);
}
static void tk_charsmap(FILE *file)
{
    fputs("{\"model\":{\"type\":\"BPE\"," BPE_VOCAB ",\"merges\":[]},\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":"
          "\"/////w==\"}}", file);
}
static void sp_endless(FILE *file) /* a piece longer than the file */
{
    fputs("\x0a\xff\xff\xff\xff\x0f", file);
}
static void sp_zeros(FILE *file)
{
    hole(file, 64 << 20);
}
static void sp_pieces(FILE *file) /* three million empty pieces */
{
    for (int i = 0; i < 3000000; i++) {
        fputc(0x0a, file);
        fputc(0, file);
    }
}
static void vb_zeros(FILE *file)
{
    fputs("[UNK]\n", file);
    hole(file, 64 << 20);
}
static void vb_lines(FILE *file)
{
    times(file, "a\n", 2000000);
}
static void vocab_json(FILE *file)
{
    fputs("{\"a\":0,\"b\":1,\"ab\":2}", file);
}
static void mg_absent(FILE *file)
{
    fputs("#version: 0.2\na c\n", file);
}
static void jinja_ifs(FILE *file)
{
    times(file, "{% if 1 %}", 5500);
}
static void jinja_open(FILE *file)
{
    fputs("{{ messages[0]", file);
}
static void jinja_long(FILE *file)
{
    hole(file, (off_t)1 << 30);
}
static void jinja_macro(FILE *file)
{
    fputs("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", file);
}
static void jinja_range(FILE *file)
{
    fputs("{% for i in range(1000000000000) %}a{% endfor %}", file);
}
static void jinja_doubling(FILE *file)
{
    fputs("{% set n = namespace(s='ab') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}", file);
}

/* ---- adapters ---- */

static void ad_rank(FILE *file)
{
    fputs("{\"peft_type\":\"LORA\",\"r\":2147483647,\"lora_alpha\":16,\"target_modules\":[\"q_proj\"]}", file);
}
static void ad_modules(FILE *file)
{
    fputs("{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":16,\"target_modules\":[\"q_proj\"", file);
    times(file, ",\"q_proj\"", 300000);
    fputs("]}", file);
}
static void ad_regex(FILE *file)
{
    fputs("{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":16,\"target_modules\":\"(a+)+(b+)+$\"}", file);
}

/* ---- rows ---- */

static void jl_gigabyte(FILE *file)
{
    fputs("{\"prompt\":\"", file);
    hole(file, (off_t)1 << 30);
    fputs("\n", file);
}
static void jl_deep(FILE *file)
{
    fputs("{\"messages\":", file);
    times(file, "[", 1000000);
    fputc('\n', file);
}
static void jl_values(FILE *file)
{
    fputs("{\"messages\":[0", file);
    times(file, ",0", 7000000);
    fputs("]}\n", file);
}
static void jl_lines(FILE *file)
{
    times(file, "{}\n", 300000);
}
static void jl_utf16(FILE *file)
{
    for (const char *c = "{\"prompt\":1}"; *c != '\0'; c++) {
        fputc(*c, file);
        fputc(0, file);
    }
}
static void jl_gzip(FILE *file)
{
    number(file, 0x8b1f, 2);
    hole(file, 100);
}
static void jl_nul(FILE *file)
{
    fputs("{\"prompt\":\"a", file);
    fputc(0, file);
    fputs("\",\"completion\":\"b\"}", file);
}
static void jl_surrogate(FILE *file)
{
    fputs("{\"prompt\":\"\\ud800\",\"completion\":\"b\"}", file);
}
static void jl_twins(FILE *file)
{
    fputs("{\"prompt\":\"a\",\"prompt\":\"b\",\"completion\":\"c\"}\r\n", file);
}
static void jl_huge_number(FILE *file)
{
    fputs("{\"prompt\":\"a\",\"completion\":\"b\",\"weight\":1e999}", file);
}
static void jl_blank(FILE *file)
{
    times(file, " \n", 1000);
}
static void jl_role(FILE *file)
{
    fputs("{\"messages\":[{\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", file);
}

/* ---- jobs ---- */

static void jb_number(FILE *file)
{
    fputs("{\"model\":\"m\",\"training_file\":\"f\",\"method\":{\"type\":\"supervised\",\"supervised\":{\"hyperparameters\":"
          "{\"batch_size\":1e18}}}}", file);
}
static void jb_unknown(FILE *file)
{
    fputs("{\"model\":\"m\",\"training_file\":\"f\",\"lora\":1}", file);
}

static const struct hostile corpus[] = {
    {MODEL, "model.safetensors", "an empty file", st_empty, "0 bytes are too few"},
    {MODEL, "model.safetensors", "a header without end", st_endless_header, "18446744073709551615 bytes|limit 100000000"},
    {MODEL, "model.safetensors", "a header of a hundred million zeros", st_zeros, "header at offset 8|byte 1"},
    {MODEL, "model.safetensors", "a header of ten million values", st_values, "header at offset 8|byte "},
    {MODEL, "model.safetensors", "a header of two million tensors", st_keys, "header at offset 8|byte "},
    {MODEL, "model.safetensors", "a header of a million brackets", st_deep, "header at offset 8|byte 68|64 levels"},
    {MODEL, "model.safetensors", "a tensor twice", st_twins, "header at offset 8|byte|twice"},
    {MODEL, "model.safetensors", "sizes that overflow", st_overflow, "tensor a|overflow"},
    {MODEL, "model.safetensors", "bytes that belong to nobody", st_hole, "tensor a|hole of 4 bytes"},
    {MODEL, "model.safetensors.index.json", "a shard outside the folder", index_up, "../../model.safetensors", true},
    {MODEL, "model.safetensors.index.json", "a shard that is not there", index_missing, "model-00001-of-00002.safetensors", true},
    {MODEL, "model.safetensors.index.json", "two million tensors", index_values, "byte ", true},
    {MODEL, "model.safetensors.index.json", "a hundred thousand objects deep", js_deep, "byte |64 levels", true},
    {GGUF, "x.gguf", "another magic", gg_magic, "begins with GGMF"},
    {GGUF, "x.gguf", "a header cut short", gg_cut, "offset 8"},
    {GGUF, "x.gguf", "millions of keys announced", gg_values, "offset 24"},
    {GGUF, "x.gguf", "millions of tensors announced", gg_tensors, "offset 24"},
    {GGUF, "x.gguf", "two million keys", gg_many_values, "2000000|offset 24"},
    {GGUF, "x.gguf", "two million tensors", gg_many_tensors, "2000000|offset 24"},
    {GGUF, "x.gguf", "a string of 2^63 bytes", gg_string, "offset 37|9223372036854775808"},
    {GGUF, "x.gguf", "twenty million empty tokens", gg_strings, ""},
    {GGUF, "x.gguf", "an array of arrays", gg_arrays, "offset 37"},
    {GGUF, "x.gguf", "an unknown kind", gg_kind, "offset 33|0x7fffffff"},
    {GGUF, "x.gguf", "an alignment of 2^31", gg_alignment, "general.alignment|2147483648"},
    {GGUF, "x.gguf", "a size that wraps", gg_overflow, "tensor t"},
    {GGUF, "x.gguf", "a dimension of zero", gg_zero, "tensor t|0"},
    {GGUF, "x.gguf", "a tensor past the end", gg_past_end, "tensor t|offset"},
    {GGUF, "x.gguf", "a key twice", gg_twin_keys, "key k"},
    {GGUF, "x.gguf", "a tensor twice", gg_twin_tensors, "tensor t"},
    {GGUF, "x.gguf", "tokens that are bytes", gg_int8_tokens, ""},
    {GGUF, "x.gguf", "4294967295 layers", gg_blocks, "4294967295"},
    {MODEL, "config.json", "a hundred thousand objects deep", js_deep, "byte 320|64 levels"},
    {MODEL, "config.json", "a number beyond all", js_text, "byte 15|too large"},
    {MODEL, "config.json", "bytes that are no text", js_utf8, "byte 16|UTF-8"},
    {MODEL, "config.json", "a gigabyte of zeros", js_huge, "bytes"},
    {MODEL, "config.json", "two million values", js_values, "byte "},
    {MODEL, "config.json", "2147483647 layers", cf_layers, "num_hidden_layers|2147483647"},
    {MODEL, "tokenizer_config.json", "two million values", js_values, "byte "},
    {MODEL, "tokenizer_config.json", "a hundred thousand objects deep", js_deep, "byte |64 levels"},
    {MODEL, "tokenizer.json", "a merge of an absent token", tk_absent_merge, "merges[0]|\"c\"", true},
    {MODEL, "tokenizer.json", "an id of 2^31", tk_huge_id, "2147483648"},
    {MODEL, "tokenizer.json", "an id twice", tk_twin_ids, "two tokens"},
    {MODEL, "tokenizer.json", "a negative id", tk_negative_id, "-1"},
    {MODEL, "tokenizer.json", "ten million added tokens", tk_added, "byte "},
    {MODEL, "tokenizer.json", "six million merges that are none", tk_values, "byte ", true},
    {MODEL, "tokenizer.json", "a pattern that explodes", tk_regex, "regular expression", true},
    {MODEL, "tokenizer.json", "an empty pattern", tk_pattern, "empty", true},
    {MODEL, "tokenizer.json", "sequences without end", tk_nested, "byte |64 levels"},
    {MODEL, "tokenizer.json", "a template of an absent token", tk_template, "<none>", true},
    {MODEL, "tokenizer.json", "a damaged trie", tk_charsmap, "trie 4294967295", true},
    {MODEL, "tokenizer.json", "bytes that are no text", js_utf8, "byte 16|UTF-8"},
    {MODEL, "tokenizer.json", "a gigabyte of zeros", js_huge, "bytes"},
    {MODEL, "tokenizer.model", "a piece past the end", sp_endless, "byte 6", true},
    {MODEL, "tokenizer.model", "zeros", sp_zeros, "byte 1", true},
    {MODEL, "tokenizer.model", "three million empty pieces", sp_pieces, "", true},
    {MODEL, "vocab.txt", "zeros", vb_zeros, "line 2", true},
    {MODEL, "vocab.txt", "a token two million times", vb_lines, "2000000 lines", true},
    {MODEL, "merges.txt", "a merge of an absent token", mg_absent, "\"c\"", true},
    {MODEL, "chat_template.jinja", "5500 nested ifs", jinja_ifs, "line 1|deep"},
    {MODEL, "chat_template.jinja", "an open expression", jinja_open, "line 1"},
    {MODEL, "chat_template.jinja", "a gigabyte of zeros", jinja_long, "bytes"},
    {ADAPTER, "adapter_config.json", "a rank of 2147483647", ad_rank, "r"},
    {ADAPTER, "adapter_config.json", "three hundred thousand modules", ad_modules, NULL},
    {ADAPTER, "adapter_config.json", "a pattern without bound", ad_regex, NULL},
    {ADAPTER, "adapter_config.json", "a hundred thousand objects deep", js_deep, "byte |64 levels"},
    {ADAPTER, "adapter_config.json", "a gigabyte of zeros", js_huge, "bytes"},
    {ADAPTER, "adapter_config.json", "two million values", js_values, "byte "},
    {ADAPTER, "adapter_model.safetensors", "an empty file", st_empty, "0 bytes are too few"},
    {ADAPTER, "adapter_model.safetensors", "ten million values", st_values, "header at offset 8|byte "},
    {ADAPTER, "adapter_model.safetensors", "sizes that overflow", st_overflow, "tensor a|overflow"},
    {ROWS, "x.jsonl", "a line of a gigabyte", jl_gigabyte, "line 1|268435456 bytes"},
    {ROWS, "x.jsonl", "a million brackets", jl_deep, "line 1|byte |64 levels"},
    {ROWS, "x.jsonl", "seven million values in a row", jl_values, "line 1|byte "},
    {ROWS, "x.jsonl", "three hundred thousand empty rows", jl_lines, "line 1|300000 bad rows"},
    {ROWS, "x.jsonl", "UTF-16", jl_utf16, "UTF-16"},
    {ROWS, "x.jsonl", "gzip", jl_gzip, "gzip"},
    {ROWS, "x.jsonl", "a NUL", jl_nul, "line 1|byte 12|NUL"},
    {ROWS, "x.jsonl", "half a character", jl_surrogate, "line 1|byte 11|surrogate"},
    {ROWS, "x.jsonl", "a field twice", jl_twins, "line 1|byte 14|twice"},
    {ROWS, "x.jsonl", "a number beyond all", jl_huge_number, "line 1|byte 40|too large"},
    {ROWS, "x.jsonl", "an empty file", st_empty, "empty"},
    {ROWS, "x.jsonl", "white space", jl_blank, "white space"},
    {ROWS, "x.jsonl", "a message without a role", jl_role, "line 1|role"},
    {JOB, "job.json", "two million values", js_values, "byte "},
    {JOB, "job.json", "a hundred thousand objects deep", js_deep, "byte |64 levels"},
    {JOB, "job.json", "a batch of 1e18 rows", jb_number, "batch_size|1e+18"},
    {JOB, "job.json", "a field that is none", jb_unknown, "lora"},
};

/* Templates that are well formed and hurt when they are rendered. */
static const struct hostile rendered[] = {
    {PROMPT, "chat_template.jinja", "a macro that calls itself", jinja_macro, "line 1"},
    {PROMPT, "chat_template.jinja", "a range of 10^12", jinja_range, "line 1|range"},
    {PROMPT, "chat_template.jinja", "a string that doubles", jinja_doubling, "line 1"},
};

/* ---- the doors ---- */

static bool open_model(void *context, struct gd_error *err)
{
    struct gd_model *model = NULL;
    bool ok = gd_model_open(&model, "x", context, err);
    gd_model_destroy(model);
    return ok;
}

static bool render_template(void *context, struct gd_error *err)
{
    struct gd_model *model = NULL;
    struct gd_chat_encoding encoding = {0};
    if (!gd_model_open(&model, "x", context, err))
        return false;
    cJSON *messages = cJSON_Parse("[{\"role\":\"user\",\"content\":\"a\"}]");
    bool ok = gd_chat_encode_prompt(model->chat, messages, NULL, &encoding, err);
    cJSON_Delete(messages);
    gd_chat_encoding_release(&encoding);
    gd_model_destroy(model);
    return ok;
}

static struct gd_model *base; /* of the adapters */

static bool load_adapter(void *context, struct gd_error *err)
{
    struct gd_graft *graft = NULL;
    bool ok = gd_graft_load(&graft, base, context, err);
    gd_graft_destroy(graft);
    return ok;
}

static bool check_rows(void *context, struct gd_error *err)
{
    static struct gd_file_report report;
    if (!gd_file_check(context, &report, err))
        return false;
    return report.bad_rows == 0 || gd_file_report_fail(&report, err);
}

static bool parse_job(void *context, struct gd_error *err)
{
    struct gd_job_spec spec = {0};
    cJSON *body = gd_json_parse_file(context, 16u << 20, err);
    bool ok = body != NULL && gd_job_spec_parse(&spec, body, err);
    if (ok)
        gd_job_spec_release(&spec);
    cJSON_Delete(body);
    return ok;
}

/* ---- one case ---- */

static const char *fixtures;

static bool is_left_out(const char *name, const struct hostile *one)
{
    bool weights = strcmp(name, "model.safetensors") == 0, tokenizer = strncmp(name, "tokenizer", 9) == 0;
    bool broken_weights = strstr(one->file, "safetensors") != NULL;
    return name[0] == '.' || strcmp(name, one->file) == 0 || (one->alone && (broken_weights ? weights : tokenizer));
}

/* Links to the files of a good folder. */
static void link_others(const char *folder, const char *good, const struct hostile *one)
{
    DIR *files = opendir(good);
    assert_non_null(files);
    for (const struct dirent *entry; (entry = readdir(files)) != NULL;) {
        if (is_left_out(entry->d_name, one))
            continue;
        char *from = gd_format("%s/%s", good, entry->d_name), *to = gd_format("%s/%s", folder, entry->d_name);
        assert_int_equal(symlink(from, to), 0);
        gd_free(from);
        gd_free(to);
    }
    closedir(files);
}

static size_t write_file(const char *folder, const char *name, void (*write)(FILE *file))
{
    char *path = gd_format("%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    write(file);
    off_t bytes = ftello(file);
    assert_int_equal(fclose(file), 0);
    gd_free(path);
    return (size_t)bytes;
}

/* Whether the error is the one that it should be. Rows and jobs come in without a file's name, and a template has none any more. */
static bool says(const struct hostile *one, const struct gd_error *err)
{
    const char *words = one->words;
    if (err->code == GD_INTERNAL || err->code == GD_NO_MEMORY || strchr(err->message, '\n') != NULL ||
        (one->door < ROWS && strstr(err->message, one->file) == NULL))
        return false;
    while (*words != '\0') {
        size_t length = strcspn(words, "|");
        char word[128];
        snprintf(word, sizeof word, "%.*s", (int)length, words);
        if (strstr(err->message, word) == NULL)
            return false;
        words += length + (words[length] == '|');
    }
    return true;
}

/* Whether it went as it should; else that is told. */
static bool run_case(const struct hostile *one, bool (*parse)(void *context, struct gd_error *err))
{
    char folder[] = "/tmp/gd-hostile-XXXXXX", *what = gd_format("%s, %s", one->file, one->what);
    struct gd_error err = {0};
    assert_non_null(mkdtemp(folder));
    bool folded = one->door == MODEL || one->door == PROMPT || one->door == ADAPTER;
    if (folded) {
        char *good = gd_format("%s/%s", fixtures, one->door != ADAPTER ? "models/tiny-llama" : "adapters/peft-lora");
        link_others(folder, good, one);
        gd_free(good);
    }
    if (strcmp(one->file, "merges.txt") == 0)
        (void)write_file(folder, "vocab.json", vocab_json);
    size_t bytes = write_file(folder, one->file, one->write);
    char *path = folded ? gd_strdup(folder) : gd_format("%s/%s", folder, one->file);
    struct bounded result = bounded_run(bytes, parse, path);
    bool ok = result.broken[0] == '\0' && (one->words == NULL || (!result.accepted && says(one, &result.err)));
    if (!ok && result.broken[0] != '\0')
        print_error("%s: %s\n", what, result.broken);
    else if (!ok)
        print_error("%s: %s \"%s\", wanted \"%s\"\n", what, result.accepted ? "accepted" : gd_code_wire(result.err.code), result.err.message,
                    one->words);
    assert_true(gd_remove_tree(folder, &err));
    gd_free(path);
    gd_free(what);
    return ok;
}

static void run_door(enum door door)
{
    static bool (*const parse[])(void *context, struct gd_error *err) = {open_model, open_model, load_adapter, check_rows, parse_job};
    int wrong = 0;
    for (size_t i = 0; i < GD_COUNT(corpus); i++)
        wrong += corpus[i].door == door && !run_case(&corpus[i], parse[door]);
    assert_int_equal(wrong, 0);
}

static void hostile_model_folders_are_refused(void **state)
{
    run_door(MODEL);
}

static void hostile_gguf_files_are_refused(void **state)
{
    run_door(GGUF);
}

static void hostile_adapters_are_refused(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/models/tiny-llama", fixtures);
    if (!gd_model_open(&base, "tiny-llama", path, &err))
        fail_msg("%s", err.message);
    run_door(ADAPTER);
    gd_model_destroy(base);
    gd_free(path);
}

static void hostile_rows_are_refused(void **state)
{
    run_door(ROWS);
}

static void hostile_jobs_are_refused(void **state)
{
    run_door(JOB);
}

static void hostile_templates_end_when_they_are_rendered(void **state)
{
    int wrong = 0;
    for (size_t i = 0; i < GD_COUNT(rendered); i++)
        wrong += !run_case(&rendered[i], render_template);
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_model_folders_are_refused), cmocka_unit_test(hostile_gguf_files_are_refused),
        cmocka_unit_test(hostile_adapters_are_refused),      cmocka_unit_test(hostile_rows_are_refused),
        cmocka_unit_test(hostile_jobs_are_refused),          cmocka_unit_test(hostile_templates_end_when_they_are_rendered),
    };
    struct gd_error err = {0};
    fixtures = getenv("GD_FIXTURES");
    if (fixtures == NULL || !gd_device_init("cpu", 1, &err))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
