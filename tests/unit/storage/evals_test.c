/* evals, runs and what they found */
#include "tests/unit/storage/db_testing.h"

static void put_eval(const char *id, const char *project, int64_t created_at, int64_t updated_at)
{
    struct gd_eval_record eval = {.id = (char *)id, .project = (char *)project, .name = "n", .config = "{}",
                                  .criteria = "[]", .created_at = created_at, .updated_at = updated_at};
    assert_ok(gd_db_eval_insert(db, &eval, &err), &err);
}

static void put_run(const char *id, const char *project, const char *eval_id, enum gd_job_status status)
{
    struct gd_job_record run = {.id = (char *)id, .project = (char *)project, .model = "", .training_file = "",
                                .body = "{}", .kind = GD_JOB_KIND_EVAL, .eval_id = (char *)eval_id, .name = "first",
                                .status = status, .created_at = 1};
    assert_ok(gd_db_job_insert(db, &run, &err), &err);
}

/* A score below 0 is one that could not be had. */
static bool put_item(const char *run_id, int64_t index, const char *digest, double score)
{
    struct gd_eval_score scores[] = {{.name = "exact", .type = "string_check", .score = score, .passed = score >= 1,
                                      .failed = score < 0}};
    struct gd_eval_usage usage[] = {{"m", 1, 10, 5, 2}, {"judge", 2, 7, 1, 0}};
    char *id = gd_format("item-%s-%d", run_id, (int)index);
    struct gd_eval_item_record item = {
        .id = id, .run_id = (char *)run_id, .status = score < 0 ? "error" : score >= 1 ? "pass" : "fail",
        .digest = (char *)digest, .body = "{}", .index = index, .created_at = 50 + index, .scores = scores,
        .score_count = 1, .usage = usage, .usage_count = 2};
    bool is_new = false;
    assert_ok(gd_db_eval_item_put(db, &item, &is_new, &err), &err);
    gd_free(id);
    return is_new;
}

static void evals_are_listed_by_creation_or_change_within_their_project(void **state)
{
    put_eval("a", "p", 1, 9);
    put_eval("b", "p", 2, 5);
    put_eval("c", "other", 3, 3);
    static const struct {
        bool by_update, ascending;
        const char *order;
    } cases[] = {{false, true, "ab"}, {false, false, "ba"}, {true, true, "ba"}, {true, false, "ab"}};
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_eval_record *records;
        int count;
        bool more;
        struct gd_page page = {.limit = 1, .ascending = cases[i].ascending};
        char after[2] = "", order[3] = "";
        for (int k = 0; k < 2; k++) {
            assert_ok(gd_db_eval_list(db, "p", cases[i].by_update, &page, &records, &count, &more, &err), &err);
            assert_int_equal(count, 1);
            assert_int_equal(more, k == 0);
            order[k] = after[0] = records[0].id[0];
            page.after = after;
            gd_eval_record_release(&records[0]);
            gd_free(records);
        }
        assert_string_equal(order, cases[i].order);
    }
    struct gd_eval_record eval;
    assert_fails(gd_db_eval_get(db, "other", "a", &eval, &err), &err, GD_NOT_FOUND, "'a'");
    assert_ok(gd_db_eval_get(db, "p", "a", &eval, &err), &err);
    gd_free(eval.name);
    eval.name = gd_strdup("renamed");
    assert_ok(gd_db_eval_update(db, &eval, &err), &err);
    gd_eval_record_release(&eval);
    assert_ok(gd_db_eval_get(db, "p", "a", &eval, &err), &err);
    assert_string_equal(eval.name, "renamed");
    gd_eval_record_release(&eval);
}

static void runs_are_jobs_that_the_list_of_fine_tuning_jobs_does_not_show(void **state)
{
    put_eval("e", "p", 1, 1);
    put_run("r1", "p", "e", GD_JOB_QUEUED);
    put_run("r2", "p", "e", GD_JOB_FAILED);
    struct gd_job_record *runs, run;
    int count;
    bool more;
    const struct gd_page page = {.limit = 5, .ascending = true};
    assert_ok(gd_db_job_list(db, "p", NULL, &page, &runs, &count, &more, &err), &err);
    assert_int_equal(count, 0);
    gd_free(runs);
    assert_ok(gd_db_run_list(db, "p", "e", NULL, 0, &page, &runs, &count, &more, &err), &err);
    assert_int_equal(count, 2);
    gd_job_record_release(&runs[0]);
    gd_job_record_release(&runs[1]);
    gd_free(runs);
    const enum gd_job_status wanted[] = {GD_JOB_FAILED, GD_JOB_CANCELLED};
    assert_ok(gd_db_run_list(db, "p", "e", wanted, 2, &page, &runs, &count, &more, &err), &err);
    assert_int_equal(count, 1);
    assert_string_equal(runs[0].id, "r2");
    assert_string_equal(runs[0].name, "first");
    assert_int_equal(runs[0].kind, GD_JOB_KIND_EVAL);
    gd_job_record_release(&runs[0]);
    gd_free(runs);
    assert_fails(gd_db_run_get(db, "p", "other", "r1", &run, &err), &err, GD_NOT_FOUND, "r1");
    assert_fails(gd_db_run_get(db, "q", "e", "r1", &run, &err), &err, GD_NOT_FOUND, "r1");
    assert_fails(gd_db_job_get_kind(db, GD_JOB_KIND_FINE_TUNING, "p", "r1", &run, &err), &err, GD_NOT_FOUND, "r1");
    assert_ok(gd_db_job_active(db, &runs, &count, &err), &err);
    assert_int_equal(count, 1);
    gd_job_record_release(&runs[0]);
    gd_free(runs);
}

static void an_item_counts_once_however_often_it_is_put(void **state)
{
    put_eval("e", "p", 1, 1);
    put_run("r", "p", "e", GD_JOB_RUNNING);
    static const double scores[] = {1, 0, 1, -1};
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 4; i++)
            assert_int_equal(put_item("r", i == 3 ? 7 : i, "d", scores[i]), round == 0);
    struct gd_eval_results results;
    assert_ok(gd_db_eval_results(db, "r", &results, &err), &err);
    assert_int_equal(results.passed, 2);
    assert_int_equal(results.failed, 1);
    assert_int_equal(results.errored, 1);
    assert_int_equal(results.criterion_count, 1);
    assert_string_equal(results.criteria[0].name, "exact");
    assert_int_equal(results.criteria[0].passed, 2);
    assert_int_equal(results.criteria[0].errored, 1);
    assert_int_equal(results.criteria[0].count, 3);
    assert_int_equal(results.usage_count, 2);
    assert_string_equal(results.usage[0].model, "judge");
    assert_int_equal(results.usage[0].invocations, 8);
    assert_int_equal(results.usage[1].prompt_tokens, 40);
    gd_eval_results_release(&results);
    cJSON *ranges;
    int64_t done;
    assert_ok(gd_db_eval_done(db, "r", &ranges, &done, &err), &err);
    char *text = gd_json_print(ranges);
    assert_string_equal(text, "[[0,2],[7,7]]");
    assert_int_equal(done, 4);
    gd_free(text);
    cJSON_Delete(ranges);
}

static void items_are_listed_by_status_page_by_page(void **state)
{
    put_eval("e", "p", 1, 1);
    put_run("r", "p", "e", GD_JOB_RUNNING);
    for (int i = 0; i < 6; i++)
        put_item("r", i, "d", i % 2);
    struct gd_eval_item_record *items;
    int count;
    bool more;
    struct gd_page page = {.limit = 2, .ascending = true};
    assert_ok(gd_db_eval_item_list(db, "r", "pass", &page, &items, &count, &more, &err), &err);
    assert_int_equal(count, 2);
    assert_true(more);
    assert_int_equal(items[1].index, 3);
    char *after = gd_strdup(items[1].id);
    for (int i = 0; i < 2; i++)
        gd_eval_item_record_release(&items[i]);
    gd_free(items);
    page.after = after;
    assert_ok(gd_db_eval_item_list(db, "r", "pass", &page, &items, &count, &more, &err), &err);
    assert_int_equal(count, 1);
    assert_false(more);
    assert_int_equal(items[0].index, 5);
    struct gd_eval_item_record item;
    assert_ok(gd_db_eval_item_get(db, "r", items[0].id, &item, &err), &err);
    gd_eval_item_record_release(&item);
    assert_fails(gd_db_eval_item_get(db, "other", items[0].id, &item, &err), &err, GD_NOT_FOUND, "item-r-5");
    gd_eval_item_record_release(&items[0]);
    gd_free(items);
    gd_free(after);
}

static void two_runs_meet_where_index_and_item_are_the_same(void **state)
{
    put_eval("e", "p", 1, 1);
    put_run("a", "p", "e", GD_JOB_SUCCEEDED);
    put_run("b", "p", "e", GD_JOB_SUCCEEDED);
    static const struct {
        const char *digest_a, *digest_b;
        double a, b;
    } items[] = {{"x", "x", 1, 0}, {"y", "y", 0.5, 0.25}, {"z", "other", 1, 1}, {"w", "w", -1, 1}};
    for (int i = 0; i < 4; i++) {
        put_item("a", i, items[i].digest_a, items[i].a);
        put_item("b", i, items[i].digest_b, items[i].b);
    }
    put_item("a", 9, "v", 1);
    struct gd_eval_pairs pairs;
    assert_ok(gd_db_eval_pairs(db, "a", "b", &pairs, &err), &err);
    assert_int_equal(pairs.items_a, 5);
    assert_int_equal(pairs.items_b, 4);
    assert_int_equal(pairs.items_shared, 3);
    assert_int_equal(pairs.count, 1);
    assert_int_equal(pairs.pairs[0].count, 2);
    assert_int_equal(pairs.pairs[0].errored, 1);
    assert_true(pairs.pairs[0].a[1] == 0.5 && pairs.pairs[0].b[1] == 0.25);
    gd_eval_pairs_release(&pairs);
}

static void deleting_takes_all_along_but_nothing_that_runs(void **state)
{
    put_eval("e", "p", 1, 1);
    put_run("done", "p", "e", GD_JOB_SUCCEEDED);
    put_run("busy", "p", "e", GD_JOB_RUNNING);
    put_item("done", 0, "d", 1);
    assert_fails(gd_db_run_delete(db, "p", "e", "busy", &err), &err, GD_CONFLICT, "busy is not over");
    assert_ok(gd_db_savepoint(db, &err), &err);
    assert_fails(gd_db_eval_delete(db, "p", "e", &err), &err, GD_CONFLICT, "busy is not over");
    gd_db_savepoint_end(db, false);
    assert_fails(gd_db_eval_delete(db, "other", "e", &err), &err, GD_NOT_FOUND, "'e'");
    assert_ok(gd_db_run_delete(db, "p", "e", "done", &err), &err);
    struct gd_job_record run;
    assert_fails(gd_db_run_get(db, "p", "e", "done", &run, &err), &err, GD_NOT_FOUND, "done");
    assert_ok(gd_db_run_get(db, "p", "e", "busy", &run, &err), &err);
    run.status = GD_JOB_CANCELLED;
    assert_ok(gd_db_job_update(db, &run, &err), &err);
    gd_job_record_release(&run);
    assert_ok(gd_db_eval_delete(db, "p", "e", &err), &err);
    struct gd_eval_record eval;
    assert_fails(gd_db_eval_get(db, "p", "e", &eval, &err), &err, GD_NOT_FOUND, "'e'");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, open_db, close_db)
int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(evals_are_listed_by_creation_or_change_within_their_project),
        CASE(runs_are_jobs_that_the_list_of_fine_tuning_jobs_does_not_show),
        CASE(an_item_counts_once_however_often_it_is_put),
        CASE(items_are_listed_by_status_page_by_page),
        CASE(two_runs_meet_where_index_and_item_are_the_same),
        CASE(deleting_takes_all_along_but_nothing_that_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
