/* Job requests: OpenAI's shape and graftd's extensions, ranges, automatic values, and the way back to JSON. */
#include "engine/base/alloc.h"
#include "engine/train/spec.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define BASE "\"model\": \"m\", \"training_file\": \"f\""

static bool parse(struct gd_job_spec *spec, const char *text, struct gd_error *err)
{
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    bool ok = gd_job_spec_parse(spec, json, err);
    cJSON_Delete(json);
    return ok;
}

static void refuse(const char *text, const char *param)
{
    struct gd_error err = {0};
    struct gd_job_spec spec;
    if (parse(&spec, text, &err))
        fail_msg("accepted: %s", text);
    assert_string_equal(err.param, param);
    assert_true(err.message[0] != '\0');
}

static void a_minimal_request_is_enough(void **state)
{
    struct gd_error err = {0};
    struct gd_job_spec spec;
    assert_true(parse(&spec, "{" BASE "}", &err));
    assert_string_equal(spec.method, "supervised");
    assert_string_equal(spec.adapter.method->name, "lora");
    assert_int_equal((int)gd_adapter_value(&spec.adapter, "r"), 16);
    assert_true(gd_adapter_value(&spec.adapter, "lora_alpha") == 32 && spec.seed == -1 && spec.batch_size == 0 && spec.n_epochs == 0);
    cJSON *echo = gd_job_spec_hyperparameters(&spec);
    assert_string_equal(gd_json_find(echo, "n_epochs")->valuestring, "auto");
    cJSON_Delete(echo);
    gd_job_spec_release(&spec);
}

static void bad_fields_are_named(void **state)
{
    const char *hyper = "method.supervised.hyperparameters";
    refuse("{\"training_file\": \"f\"}", "model");
    refuse("{" BASE ", \"seed\": 2147483648}", "seed");
    refuse("{" BASE ", \"seed\": 1.5}", "seed");
    refuse("{" BASE ", \"suffix\": \"\"}", "suffix");
    refuse("{" BASE ", \"suffix\": \"a/b\"}", "suffix");
    refuse("{" BASE ", \"modle\": 1}", "modle");
    refuse("{" BASE ", \"method\": {\"type\": \"reinforcement\"}}", "method.type");
    refuse("{" BASE ", \"method\": {\"supervised\": {}}}", "method.type");
    refuse("{" BASE ", \"hyperparameters\": {\"n_epochs\": 0}}", "hyperparameters.n_epochs");
    refuse("{" BASE ", \"hyperparameters\": {\"weight_decay\": 0}}", "hyperparameters.weight_decay");
    refuse("{" BASE ", \"precision\": \"fp8\"}", "precision");
    refuse("{" BASE ", \"quantization\": \"int4\"}", "quantization");
    refuse("{" BASE ", \"data\": {\"max_length\": 4}}", "data.max_length");
    static const char *const members[][2] = {
        {"n_epochs", "51"}, {"n_epochs", "\"many\""}, {"batch_size", "257"}, {"learning_rate_multiplier", "0"},
        {"learning_rate", "-1"}, {"adam_beta2", "1"}, {"warmup_ratio", "1.01"}, {"lr_scheduler_type", "\"sine\""},
        {"gradient_leaves", "6"}, {"tokens_per_batch", "1"}, {"gradient_checkpointing", "\"on\""}, {"epochs", "1"}};
    for (size_t i = 0; i < GD_COUNT(members); i++) {
        char *text = gd_format("{" BASE ", \"method\": {\"type\": \"supervised\", \"supervised\": {\"hyperparameters\": {\"%s\": %s}}}}",
                               members[i][0], members[i][1]);
        char *param = gd_format("%s.%s", hyper, members[i][0]);
        refuse(text, param);
        gd_free(text);
        gd_free(param);
    }
}

#define METHOD(type, options) "{" BASE ", \"method\": {\"type\": \"" type "\"" options "}}"

static void preference_methods_name_their_fields(void **state)
{
    refuse(METHOD("dpo", ", \"supervised\": {}"), "method.supervised");
    refuse(METHOD("supervised", ", \"dpo\": {}"), "method.dpo");
    refuse(METHOD("dpo", ", \"dpoo\": {}"), "method.dpoo");
    refuse(METHOD("dpo", ", \"dpo\": {\"loss\": \"ipo\"}"), "method.dpo.loss");
    refuse(METHOD("dpo", ", \"dpo\": {\"hyperparameters\": {\"beta\": 0}}"), "method.dpo.hyperparameters.beta");
    refuse(METHOD("dpo", ", \"dpo\": {\"hyperparameters\": {\"beta\": 2.01}}"), "method.dpo.hyperparameters.beta");
    refuse(METHOD("dpo", ", \"dpo\": {\"hyperparameters\": {\"n_epochs\": 0}}"), "method.dpo.hyperparameters.n_epochs");
    refuse(METHOD("supervised", ", \"supervised\": {\"hyperparameters\": {\"beta\": 1}}"),
           "method.supervised.hyperparameters.beta");
    refuse(METHOD("preference", ""), "method.preference");
    refuse(METHOD("preference", ", \"preference\": {}"), "method.preference.loss");
    refuse(METHOD("preference", ", \"preference\": {\"loss\": \"dop\"}"), "method.preference.loss");
    refuse(METHOD("preference", ", \"preference\": {\"loss\": \"dpo\", \"gamma\": 1}"), "method.preference.gamma");
    refuse(METHOD("preference", ", \"preference\": {\"loss\": \"dpo\", \"hyperparameters\": {\"beta\": 1}}"),
           "method.preference.hyperparameters.beta");
}

static void dpo_is_openais_and_preference_takes_any_loss(void **state)
{
    struct gd_error err = {0};
    struct gd_job_spec spec, again;
    assert_true(parse(&spec, METHOD("dpo", ""), &err));
    assert_string_equal(spec.preference.term[0].loss->name, "dpo");
    assert_true(spec.preference.term[0].parameter[GD_PREFERENCE_BETA] == 0.1);
    gd_job_spec_release(&spec);
    assert_true(parse(&spec, METHOD("dpo", ", \"dpo\": {\"hyperparameters\": {\"beta\": \"auto\", \"n_epochs\": \"auto\"}}"), &err));
    assert_true(gd_job_spec_resolve(&spec, 100, 5000, 576, 2048, &err));
    assert_int_equal(spec.n_epochs, 3);
    assert_true(fabs(spec.learning_rate - 2e-5 * sqrt(4096.0 / 576)) < 1e-12);
    cJSON *shown = gd_job_spec_hyperparameters(&spec);
    assert_true(gd_json_find(shown, "beta")->valuedouble == 0.1);
    cJSON_Delete(shown);
    gd_job_spec_release(&spec);
    assert_true(parse(&spec, METHOD("preference", ", \"preference\": {\"loss\": \"simpo\", \"beta\": 2.5, \"hyperparameters\": "
                                                  "{\"batch_size\": 8}}"), &err));
    cJSON *json = gd_job_spec_json(&spec);
    char *text = gd_json_print(json);
    assert_true(parse(&again, text, &err));
    assert_string_equal(again.preference.term[0].loss->name, "simpo");
    assert_true(again.preference.term[0].parameter[GD_PREFERENCE_BETA] == 2.5 && again.preference.term[0].parameter[GD_PREFERENCE_GAMMA] == 0.5);
    assert_int_equal(again.batch_size, 8);
    gd_free(text);
    cJSON_Delete(json);
    gd_job_spec_release(&spec);
    gd_job_spec_release(&again);
}

static void automatic_values_follow_the_documented_rules(void **state)
{
    static const struct {
        int64_t rows;
        int batch, epochs;
    } rules[] = {{1, 1, 10}, {100, 4, 10}, {500, 4, 4}, {501, 8, 4}, {2000, 16, 1}, {100000, 64, 1}};
    for (size_t i = 0; i < GD_COUNT(rules); i++) {
        struct gd_error err = {0};
        struct gd_job_spec spec;
        assert_true(parse(&spec, "{" BASE "}", &err));
        assert_true(gd_job_spec_resolve(&spec, rules[i].rows, rules[i].rows * 50, 576, 8192, &err));
        assert_int_equal(spec.batch_size, rules[i].batch);
        assert_int_equal(spec.n_epochs, rules[i].epochs);
        assert_true(fabs(spec.learning_rate - 2e-4 * sqrt(4096.0 / 576)) < 1e-12);
        assert_int_equal(spec.max_length, 8192);
        gd_job_spec_release(&spec);
    }
}

static void resolved_values_go_to_json_and_back(void **state)
{
    struct gd_error err = {0};
    struct gd_job_spec spec, again;
    assert_true(parse(&spec,
                      "{" BASE ", \"validation_file\": \"v\", \"suffix\": \"s-1\", \"seed\": 5, \"adapter\": {\"r\": 8, "
                      "\"target_modules\": [\"q_proj\"]}, \"data\": {\"overlong\": \"drop\"}, \"hyperparameters\": {\"batch_size\": 3, "
                      "\"learning_rate_multiplier\": 0.5}}",
                      &err));
    assert_true(gd_job_spec_resolve(&spec, 1000, 50000, 576, 2048, &err));
    cJSON *json = gd_job_spec_json(&spec);
    char *text = gd_json_print(json);
    assert_true(parse(&again, text, &err));
    cJSON *second = gd_job_spec_json(&again);
    char *second_text = gd_json_print(second);
    assert_string_equal(text, second_text);
    assert_true(again.learning_rate == spec.learning_rate && again.batch_size == 3 && again.overlong == GD_OVERLONG_DROP);
    assert_string_equal(gd_adapter_modules(&again.adapter, "target_modules")->names[0], "q_proj");
    gd_free(text);
    gd_free(second_text);
    cJSON_Delete(json);
    cJSON_Delete(second);
    gd_job_spec_release(&spec);
    gd_job_spec_release(&again);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_minimal_request_is_enough),
        cmocka_unit_test(bad_fields_are_named),
        cmocka_unit_test(preference_methods_name_their_fields),
        cmocka_unit_test(dpo_is_openais_and_preference_takes_any_loss),
        cmocka_unit_test(automatic_values_follow_the_documented_rules),
        cmocka_unit_test(resolved_values_go_to_json_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
