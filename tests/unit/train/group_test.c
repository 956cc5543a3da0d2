/* Jobs that train side by side end with the bits that each has alone. */
#include "engine/tensor/device.h"
#include "engine/train/job_group.h"
#include "tests/unit/base/scratch.h"

#include <unistd.h>

static struct gd_model *model;
static char scratch[] = "/tmp/graftd-group-XXXXXX";

/* Rows whose lengths differ from each other. */
static void write_rows(const char *name, int count, int longest)
{
    char *path = gd_format("%s/%s", scratch, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < count; i++) {
        fprintf(file, "{\"prompt\": \"%d\", \"completion\": \"", i);
        for (int j = 0; j <= (i * 7 + 3) % longest; j++)
            fprintf(file, "%s%c%c", j > 0 ? " " : "", 'a' + (i + j) % 26, 'a' + (i * j) % 26);
        fprintf(file, "\"}\n");
    }
    fclose(file);
    gd_free(path);
}

static int set_up(void **state)
{
    struct gd_error err = {0};
    must(gd_device_init("cpu", 2, &err), &err);
    char *path = gd_format("%s/models/tiny-llama", getenv("GD_FIXTURES"));
    must(gd_model_open(&model, "tiny-llama", path, &err), &err);
    assert_non_null(mkdtemp(scratch));
    write_rows("short.jsonl", 12, 9);
    write_rows("long.jsonl", 9, 40);
    gd_free(path);
    return 0;
}

static int tear_down(void **state)
{
    struct gd_error err = {0};
    gd_model_destroy(model);
    must(gd_remove_tree(scratch, &err), &err);
    return 0;
}

/* ---- a job ---- */

struct job {
    char *name;
    struct gd_job_spec spec;
    struct gd_trainer *trainer;
    struct gd_error err;
    bool ok, left;
    int64_t stop_at, step; /* cancelled after so many steps; 0: never */
    enum gd_train_command stop_how;
};

static enum gd_train_command poll_job(void *context)
{
    const struct job *job = context;
    return job->stop_at > 0 && job->step >= job->stop_at ? job->stop_how : GD_TRAIN_GO;
}

static void on_step(void *context, int64_t step, int64_t total_steps, int64_t trained_tokens, int64_t tokens, double seconds,
                    const struct gd_metric *metrics, int metric_count)
{
    ((struct job *)context)->step = step;
}

/* what: "hyperparameters" and other members of the request. */
static void begin(struct job *job, const char *name, const char *folder, const char *rows, const char *what)
{
    struct gd_train_observer observer = {.context = job, .poll = poll_job, .step = on_step};
    char *training = gd_format("%s/%s.jsonl", scratch, rows), *to = gd_format("%s/%s-%s", scratch, name, folder);
    char *text = gd_format("{\"model\": \"tiny-llama\", \"training_file\": \"rows\", \"seed\": %d, %s}", name[0], what);
    cJSON *body = cJSON_Parse(text);
    assert_non_null(body);
    must(gd_job_spec_parse(&job->spec, body, &job->err), &job->err);
    struct gd_trainer_options options = {.job_id = name, .folder = to, .training_path = training, .validation_path = training,
                                         .keep_checkpoints = 2, .created_at = 1};
    must(gd_trainer_create(&job->trainer, model, &job->spec, &options, &observer, &job->err), &job->err);
    job->name = to;
    cJSON_Delete(body);
    gd_free(text);
    gd_free(training);
}

static void end(struct job *job)
{
    gd_trainer_destroy(job->trainer);
    gd_job_spec_release(&job->spec);
    gd_free(job->name);
}

static char *content(const char *folder, const char *file, size_t *length)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/%s", folder, file);
    char *bytes = NULL;
    must(gd_file_read(path, 1 << 24, &bytes, length, &err), &err);
    gd_free(path);
    return bytes;
}

static void assert_same_file(const char *one, const char *other, const char *file)
{
    size_t length, other_length;
    char *bytes = content(one, file, &length), *others = content(other, file, &other_length);
    assert_int_equal(length, other_length);
    if (memcmp(bytes, others, length) != 0)
        fail_msg("%s differs between %s and %s", file, one, other);
    gd_free(bytes);
    gd_free(others);
}

/* ---- together and alone ---- */

struct kind {
    const char *name, *rows, *what;
};

#define SUPERVISED(hyper) "\"method\": {\"type\": \"supervised\", \"supervised\": {\"hyperparameters\": {" hyper "}}}"

static void on_left(void *context, struct gd_trainer *trainer, bool ok, const struct gd_error *err)
{
    struct job *jobs = context;
    for (int i = 0; i < GD_SPLIT_MAX; i++)
        if (jobs[i].trainer == trainer) {
            assert_false(jobs[i].left);
            jobs[i].left = true;
            jobs[i].ok = ok;
            jobs[i].err = *err;
            return;
        }
    fail_msg("an unknown trainer left");
}

static void run_group(struct job *jobs, int count, int64_t *passes, int64_t *passed)
{
    struct gd_job_group group;
    struct gd_job_group_observer observer = {.context = jobs, .left = on_left};
    gd_job_group_init(&group, &observer);
    for (int i = 0; i < count; i++) {
        assert_true(gd_job_group_takes(&group, jobs[i].trainer));
        gd_job_group_add(&group, jobs[i].trainer);
        if (i % 2 == 1)
            gd_job_group_turn(&group); /* the next ones join on the way */
    }
    while (group.count > 0)
        gd_job_group_turn(&group);
    *passes = group.passes_made;
    *passed = group.jobs_passed;
    gd_job_group_release(&group);
}

static void check(const struct kind *kinds, int count)
{
    struct job together[GD_SPLIT_MAX] = {{0}}, alone[GD_SPLIT_MAX] = {{0}};
    int64_t passes, passed;
    for (int i = 0; i < count; i++)
        begin(&together[i], kinds[i].name, "together", kinds[i].rows, kinds[i].what);
    run_group(together, count, &passes, &passed);
    assert_true(passed >= 2 * passes && passes > 0);
    for (int i = 0; i < count; i++) {
        if (!together[i].ok)
            fail_msg("%s: %s", kinds[i].name, together[i].err.message);
        begin(&alone[i], kinds[i].name, "alone", kinds[i].rows, kinds[i].what);
        must(gd_trainer_run(alone[i].trainer, &alone[i].err), &alone[i].err);
        assert_int_equal(alone[i].step, together[i].step);
        assert_same_file(alone[i].name, together[i].name, "adapter/adapter_model.safetensors");
        assert_int_equal(gd_trainer_trained_tokens(alone[i].trainer), gd_trainer_trained_tokens(together[i].trainer));
        end(&together[i]);
        end(&alone[i]);
    }
}

static const struct kind lora_kinds[] = {
    {"a", "short", "\"adapter\": {\"type\": \"lora\", \"r\": 4}, " SUPERVISED("\"n_epochs\": 2, \"batch_size\": 3")},
    {"b", "long", "\"adapter\": {\"type\": \"lora\", \"r\": 8, \"lora_dropout\": 0.2, \"target_modules\": [\"q_proj\", \"down_proj\"]}, "
                  SUPERVISED("\"n_epochs\": 3, \"batch_size\": 4, \"tokens_per_batch\": 128, \"gradient_leaves\": 2")},
    {"c", "short", "\"adapter\": {\"type\": \"lora\", \"r\": 3, \"lora_dropout\": 0.5, \"use_rslora\": true, \"loraplus_lr_ratio\": 8}, "
                   SUPERVISED("\"n_epochs\": 1, \"batch_size\": 12, \"max_grad_norm\": 0.1, \"weight_decay\": 0.1")},
    {"d", "long", "\"adapter\": {\"type\": \"lora\", \"r\": 2}, " SUPERVISED("\"max_steps\": 5, \"batch_size\": 2, \"eval_interval\": 2, \"checkpoint_interval\": 2")},
};

static void four_loras_of_other_ranks_lengths_and_dropouts_end_as_alone(void **state)
{
    check(lora_kinds, GD_COUNT(lora_kinds));
}

static void in_bf16_too(void **state)
{
    struct kind kinds[GD_COUNT(lora_kinds)];
    char *texts[GD_COUNT(lora_kinds)];
    for (size_t i = 0; i < GD_COUNT(lora_kinds); i++) {
        kinds[i] = lora_kinds[i];
        kinds[i].what = texts[i] = gd_format("\"precision\": \"bf16\", %s", lora_kinds[i].what);
        kinds[i].name = (const char *const[]){"e", "f", "g", "h"}[i];
    }
    check(kinds, GD_COUNT(lora_kinds));
    for (size_t i = 0; i < GD_COUNT(lora_kinds); i++)
        gd_free(texts[i]);
}

static void variants_and_other_linear_methods_stand_side_by_side(void **state)
{
    static const struct kind kinds[] = {
        {"i", "short", "\"adapter\": {\"type\": \"lora\", \"r\": 4, \"use_dora\": true, \"lora_dropout\": 0.1}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 3")},
        {"j", "long", "\"adapter\": {\"type\": \"lora\", \"r\": 2, \"use_kasa\": true}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 3")},
        {"k", "short", "\"adapter\": {\"type\": \"lora\", \"r\": 4, \"init_lora_weights\": \"pissa\"}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 4")},
        {"l", "long", "\"adapter\": {\"type\": \"vera\", \"r\": 8}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 5")},
        {"m", "short", "\"adapter\": {\"type\": \"loha\", \"r\": 2}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 2")},
        {"n", "long", "\"adapter\": {\"type\": \"lokr\", \"r\": 2}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 9")},
    };
    check(kinds, GD_COUNT(kinds));
}

/* One is cancelled in the middle and one paused; both would be at other steps alone, which the others do not notice. */
static void those_who_leave_do_not_change_those_who_stay(void **state)
{
    struct job together[4] = {{0}}, alone[4] = {{0}};
    struct gd_job_group group;
    struct gd_job_group_observer observer = {.context = together, .left = on_left};
    gd_job_group_init(&group, &observer);
    for (int i = 0; i < 4; i++) {
        char name[2] = {(char)('o' + i), '\0'};
        begin(&together[i], name, "together", lora_kinds[i].rows, lora_kinds[i].what);
        together[i].stop_at = i == 0 ? 3 : i == 3 ? 2 : 0;
        together[i].stop_how = i == 0 ? GD_TRAIN_CANCEL : GD_TRAIN_PAUSE;
        gd_job_group_add(&group, together[i].trainer);
    }
    while (group.count > 0)
        gd_job_group_turn(&group);
    gd_job_group_release(&group);
    for (int i = 0; i < 4; i++) {
        char name[2] = {(char)('o' + i), '\0'};
        assert_true(together[i].left);
        assert_int_equal(together[i].ok, i == 1 || i == 2);
        if (i == 3) { /* it goes on alone from its checkpoint */
            end(&together[3]);
            together[3] = (struct job){0};
            begin(&together[3], name, "together", lora_kinds[3].rows, lora_kinds[3].what);
            assert_int_equal(gd_trainer_resumed_from(together[3].trainer), 2);
            must(gd_trainer_run(together[3].trainer, &together[3].err), &together[3].err);
        }
        if (i == 0) {
            assert_int_equal(together[0].err.code, GD_CANCELLED);
            assert_int_equal(together[0].step, 3);
        } else {
            begin(&alone[i], name, "alone", lora_kinds[i].rows, lora_kinds[i].what);
            must(gd_trainer_run(alone[i].trainer, &alone[i].err), &alone[i].err);
            assert_same_file(alone[i].name, together[i].name, "adapter/adapter_model.safetensors");
            end(&alone[i]);
        }
        end(&together[i]);
    }
}

static void on_other_bases_too(void **state)
{
    static const char *const bases[] = {"tiny-qwen2", "tiny-phi3", "tiny-gemma2", "tiny-gpt2", "tiny-neox", "tiny-opt", "tiny-llama-q8_0.gguf"};
    struct gd_model *first = model;
    for (size_t i = 0; i < GD_COUNT(bases); i++) {
        struct gd_error err = {0};
        struct kind kinds[2];
        char names[2][40], *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), bases[i]);
        int plain;
        model = NULL;
        must(gd_model_open(&model, "tiny-llama", path, &err), &err);
        if (strstr(bases[i], "q8_0") != NULL)
            must(gd_model_quantise(model, GD_QUANTIZATION_FILE, &plain, &err), &err);
        for (int k = 0; k < 2; k++) {
            kinds[k] = lora_kinds[k];
            kinds[k].what = k == 0 ? "\"adapter\": {\"type\": \"lora\", \"r\": 4}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 3")
                                   : "\"adapter\": {\"type\": \"lora\", \"r\": 2, \"lora_dropout\": 0.2}, " SUPERVISED("\"n_epochs\": 1, \"batch_size\": 2");
            snprintf(names[k], sizeof(names[k]), "%d%.16s", k, bases[i]);
            kinds[k].name = names[k];
        }
        check(kinds, 2);
        gd_model_destroy(model);
        gd_free(path);
    }
    model = first;
}

static void those_who_cannot_share_are_told_apart(void **state)
{
    struct job jobs[2] = {{0}};
    struct gd_job_group group;
    struct gd_job_group_observer observer = {.context = jobs, .left = on_left};
    gd_job_group_init(&group, &observer);
    begin(&jobs[0], "x", "together", "short", lora_kinds[0].what);
    begin(&jobs[1], "y", "together", "short", "\"adapter\": {\"type\": \"ia3\"}, " SUPERVISED("\"n_epochs\": 1"));
    assert_true(gd_trainer_shares(jobs[0].trainer));
    assert_false(gd_trainer_shares(jobs[1].trainer));
    assert_true(gd_job_group_takes(&group, jobs[1].trainer));
    gd_job_group_add(&group, jobs[0].trainer);
    assert_false(gd_job_group_takes(&group, jobs[1].trainer));
    char *key = gd_job_spec_pass_key(&jobs[0].spec);
    assert_non_null(key);
    assert_null(gd_job_spec_pass_key(&jobs[1].spec));
    gd_free(key);
    gd_job_group_release(&group);
    end(&jobs[0]);
    end(&jobs[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(four_loras_of_other_ranks_lengths_and_dropouts_end_as_alone),
        cmocka_unit_test(in_bf16_too),
        cmocka_unit_test(variants_and_other_linear_methods_stand_side_by_side),
        cmocka_unit_test(those_who_leave_do_not_change_those_who_stay),
        cmocka_unit_test(on_other_bases_too),
        cmocka_unit_test(those_who_cannot_share_are_told_apart),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
