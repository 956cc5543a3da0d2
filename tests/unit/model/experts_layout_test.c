/* experts_layout_test.c - the layouts that files have experts in: one tensor for each, one of all, one of all with gate and up; in a
 * folder and in GGUF. Each is the same model, and copies of it keep the layout. */
#include "engine/model/files.h"
#include "engine/model/gguf_write.h"
#include "engine/model/rewrite.h"
#include "engine/tensor/device.h"
#include "tests/unit/model/forward.h"
#include <unistd.h>

#define EXPERTS 4
#define TENSORS_MAX 128

static const int32_t prompt[] = {5, 77, 300, 12, 5, 41, 199, 8, 64, 250, 3};

static struct gd_model *open_path(const char *path)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    if (!gd_model_open(&model, "mixtral", path, &err))
        fail_msg("%s", err.message);
    return model;
}

static void check_same(const struct gd_model *a, const struct gd_model *b)
{
    int count = (int)GD_COUNT(prompt);
    assert_int_equal(a->weight_count, b->weight_count);
    assert_int_equal(a->parameter_count, b->parameter_count);
    for (int i = 0; i < a->weight_count; i++)
        assert_string_equal(gd_weight_name(a->weights[i]), gd_weight_name(b->weights[i]));
    float *mine = forward(a, prompt, count, GD_F32), *theirs = forward(b, prompt, count, GD_F32);
    assert_memory_equal(mine, theirs, (size_t)(count * a->config.vocab) * sizeof(float));
    gd_free(mine);
    gd_free(theirs);
}

struct written {
    struct gd_safetensors_entry entry[TENSORS_MAX];
    int count;
};

static void *add(struct written *w, const char *name, struct gd_tensor tensor)
{
    assert_true(w->count < TENSORS_MAX);
    w->entry[w->count++] = (struct gd_safetensors_entry){gd_strdup(name), tensor};
    return tensor.data;
}

static void release(struct written *w)
{
    for (int i = 0; i < w->count; i++)
        gd_free((char *)(uintptr_t)w->entry[i].name);
}

/* ---- folders ---- */

static struct gd_tensor find(const struct gd_safetensors *file, int layer, int expert, const char *part)
{
    struct gd_tensor tensor;
    char *name = gd_format("model.layers.%d.block_sparse_moe.experts.%d.%s.weight", layer, expert, part);
    assert_true(gd_safetensors_find(file, name, &tensor));
    gd_free(name);
    return tensor;
}

/* [EXPERTS, parts of 32 rows, 32] */
static struct gd_tensor stack(const struct gd_safetensors *file, int layer, const char *const *parts, int count)
{
    size_t bytes = 32 * 32 * 2;
    struct gd_tensor out = {.dtype = GD_BF16, .rank = 3, .shape = {EXPERTS, count * 32, 32}, .data = gd_alloc((size_t)(EXPERTS * count) * bytes)};
    for (int e = 0; e < EXPERTS; e++)
        for (int part = 0; part < count; part++)
            memcpy((char *)out.data + (size_t)(e * count + part) * bytes, find(file, layer, e, parts[part]).data, bytes);
    return out;
}

/* tiny-mixtral as transformers writes it in its own layout. */
static void write_stacked(const struct scratch *scratch)
{
    static const char *const both[] = {"w1", "w3"}, *const down[] = {"w2"};
    static const char *const others[] = {"config.json", "tokenizer.json", "tokenizer_config.json"};
    struct gd_safetensors *file = NULL;
    struct gd_error err = {0};
    struct written w = {.count = 0};
    void *made[4];
    int made_count = 0;
    char *from = fixture_path("tiny-mixtral/model.safetensors"), *to = scratch_path(scratch, "model.safetensors");
    assert_true(gd_safetensors_open(&file, from, &err));
    for (int i = 0; i < gd_safetensors_count(file); i++) {
        const char *name = gd_safetensors_name(file, i), *gate = strstr(name, "block_sparse_moe.gate.weight");
        if (gate != NULL) {
            char *renamed = gd_format("%.*smlp.gate.weight", (int)(gate - name), name);
            add(&w, renamed, gd_safetensors_at(file, i));
            gd_free(renamed);
        } else if (strstr(name, "experts.") == NULL) {
            add(&w, name, gd_safetensors_at(file, i));
        }
    }
    for (int layer = 0; layer < 2; layer++) {
        char *one = gd_format("model.layers.%d.mlp.experts.gate_up_proj", layer), *two = gd_format("model.layers.%d.mlp.experts.down_proj", layer);
        made[made_count++] = add(&w, one, stack(file, layer, both, 2));
        made[made_count++] = add(&w, two, stack(file, layer, down, 1));
        gd_free(one);
        gd_free(two);
    }
    assert_true(gd_safetensors_write(to, w.entry, w.count, NULL, &err));
    for (size_t i = 0; i < GD_COUNT(others); i++)
        scratch_copy(scratch, "tiny-mixtral", others[i]);
    for (int i = 0; i < made_count; i++)
        gd_free(made[i]);
    release(&w);
    gd_safetensors_close(file);
    gd_free(from);
    gd_free(to);
}

static void stacked_experts_of_a_folder_are_the_same_model(void **state)
{
    struct scratch scratch = scratch_begin();
    write_stacked(&scratch);
    struct gd_model *apart = open_fixture("tiny-mixtral"), *stacked = open_path(scratch.folder);
    check_same(apart, stacked);
    gd_model_destroy(apart);
    gd_model_destroy(stacked);
    scratch_end(&scratch);
}

static bool is_changed(void *context, const struct gd_weight *weight)
{
    return strcmp(gd_weight_name(weight), context) == 0;
}

static bool double_it(void *context, const struct gd_weight *weight, float *values, struct gd_error *err)
{
    for (int64_t i = 0; i < gd_weight_dim(weight, 0) * gd_weight_dim(weight, 1); i++)
        values[i] *= 2;
    return true;
}

/* One expert's part changes; all else is as it was, in the same tensors. */
static void a_copy_of_stacked_experts_is_stacked(void **state)
{
    static char *const changed[] = {"model.layers.1.block_sparse_moe.experts.2.w3.weight", "model.layers.0.block_sparse_moe.experts.3.w2.weight"};
    struct scratch scratch = scratch_begin();
    struct gd_error err = {0};
    write_stacked(&scratch);
    struct gd_model *before = open_path(scratch.folder);
    for (size_t c = 0; c < GD_COUNT(changed); c++) {
        char *path = gd_format("%s/copy-%zu", scratch.folder, c);
        struct gd_rewrite rewrite = {.context = changed[c], .changes = is_changed, .change = double_it};
        if (!gd_model_rewrite(before, &rewrite, GD_DTYPE_COUNT, path, &err))
            fail_msg("%s", err.message);
        struct gd_model *after = open_path(path);
        assert_int_equal(gd_model_files(after)->tensor_count, gd_model_files(before)->tensor_count);
        for (int i = 0; i < before->weight_count; i++) {
            const struct gd_tensor *was = gd_weight_source(before->weights[i]), *is = gd_weight_source(after->weights[i]);
            float factor = strcmp(gd_weight_name(before->weights[i]), changed[c]) == 0 ? 2 : 1;
            for (int64_t k = 0; k < gd_tensor_count(was); k++)
                assert_true(gd_bf16_to_f32(((const uint16_t *)is->data)[k]) == factor * gd_bf16_to_f32(((const uint16_t *)was->data)[k]));
        }
        gd_model_destroy(after);
        gd_free(path);
    }
    gd_model_destroy(before);
    scratch_end(&scratch);
}

static void bad_stacks_are_refused_by_name(void **state)
{
    static const struct {
        const char *name, *words;
        struct gd_tensor tensor;
    } cases[] = {
        {"model.layers.0.mlp.experts.gate_up_proj", "gate_up_proj is [4, 32, 32], the config wants [4, 64, 32]", {.rank = 3, .shape = {4, 32, 32}}},
        {"model.layers.1.mlp.experts.down_proj", "down_proj is [3, 32, 32], the config wants [4, 32, 32]", {.rank = 3, .shape = {3, 32, 32}}},
        {"model.layers.1.mlp.experts.down_proj", "down_proj is [128, 32]", {.rank = 2, .shape = {128, 32}}},
        {NULL, "tensor model.layers.0.block_sparse_moe.experts.0.w1.weight is missing", {.rank = 0}},
    };
    for (size_t c = 0; c < GD_COUNT(cases); c++) {
        struct scratch scratch = scratch_begin();
        struct gd_safetensors *file = NULL;
        struct gd_error err = {0};
        struct written w = {.count = 0};
        write_stacked(&scratch);
        char *path = scratch_path(&scratch, "model.safetensors");
        static uint16_t zeros[4 * 64 * 32];
        assert_true(gd_safetensors_open(&file, path, &err));
        for (int i = 0; i < gd_safetensors_count(file); i++) {
            const char *name = gd_safetensors_name(file, i);
            struct gd_tensor tensor = cases[c].tensor;
            tensor.dtype = GD_BF16;
            tensor.data = zeros;
            bool bad = cases[c].name != NULL ? strcmp(name, cases[c].name) == 0 : strstr(name, "layers.0.mlp.experts.gate_up") != NULL;
            if (!bad || cases[c].name != NULL)
                add(&w, name, bad ? tensor : gd_safetensors_at(file, i));
        }
        char *other = scratch_path(&scratch, "other");
        assert_true(gd_safetensors_write(other, w.entry, w.count, NULL, &err));
        gd_safetensors_close(file);
        assert_int_equal(rename(other, path), 0);
        struct gd_model *model = NULL;
        assert_false(gd_model_open(&model, "mixtral", scratch.folder, &err));
        assert_int_equal(err.code, GD_BAD_MODEL);
        if (strstr(err.message, cases[c].words) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.message, cases[c].words);
        release(&w);
        gd_free(other);
        gd_free(path);
        scratch_end(&scratch);
    }
}

/* ---- GGUF ---- */

static bool provide(void *context, int index, const void **bytes, struct gd_error *err)
{
    *bytes = ((const struct written *)context)->entry[index].tensor.data;
    return true;
}

/* tiny-mixtral.gguf with a tensor for each expert, as such files had them first. */
static void experts_apart_in_gguf_are_the_same_model(void **state)
{
    struct scratch scratch = scratch_begin();
    struct gd_model *stacked = open_fixture("tiny-mixtral.gguf");
    const struct gd_files *files = gd_model_files(stacked);
    struct written w = {.count = 0};
    struct gd_error err = {0};
    struct gd_gguf_writer writer;
    for (int i = 0; i < files->tensor_count; i++) {
        const char *name = files->tensors[i].name, *end = strstr(name, "_exps.weight");
        struct gd_tensor tensor = files->tensors[i].tensor;
        size_t bytes = gd_dtype_bytes(tensor.dtype, gd_tensor_count(&tensor)) / EXPERTS;
        if (end == NULL)
            add(&w, name, tensor);
        for (int e = 0; end != NULL && e < EXPERTS; e++) {
            char *own = gd_format("%.*s.%d.weight", (int)(end - name), name, e);
            add(&w, own, (struct gd_tensor){.dtype = tensor.dtype, .rank = 2, .shape = {32, 32}, .data = (char *)tensor.data + (size_t)e * bytes});
            gd_free(own);
        }
    }
    assert_int_equal(w.count, files->tensor_count + 2 * 3 * (EXPERTS - 1));
    char *path = scratch_path(&scratch, "apart.gguf");
    gd_gguf_writer_init(&writer);
    gd_gguf_put_all(&writer, files->gguf, NULL);
    if (!gd_gguf_write(&writer, path, w.entry, w.count, provide, &w, &err))
        fail_msg("%s", err.message);
    struct gd_model *apart = open_path(path);
    check_same(stacked, apart);
    gd_gguf_writer_release(&writer);
    gd_model_destroy(apart);
    gd_model_destroy(stacked);
    release(&w);
    gd_free(path);
    scratch_end(&scratch);
}

int main(void)
{
    struct gd_error err = {0};
    if (!gd_device_init("cpu", 2, &err))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stacked_experts_of_a_folder_are_the_same_model),
        cmocka_unit_test(a_copy_of_stacked_experts_is_stacked),
        cmocka_unit_test(bad_stacks_are_refused_by_name),
        cmocka_unit_test(experts_apart_in_gguf_are_the_same_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
