"""Evals, runs and output items over HTTP, with the official client where that is the point."""
import json
import math
import pathlib
import re
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

DOCUMENT = yaml.safe_load((pathlib.Path(__file__).parent.parent.parent / "api-spec" / "openapi.yaml").read_text())
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q"]}
CONFIG = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
EXACT = {"type": "string_check", "name": "exact", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.a}}"}
NEAR = {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", "input": "{{sample.output_text}}",
        "reference": "{{item.a}}", "pass_threshold": 0.5}
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]}


def fits(instance, name):
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}).validate(instance)
    return instance


def make(daemon, criteria=(EXACT,), config=CONFIG, **more):
    answer = daemon.post("/v1/evals", {"name": "e", "data_source_config": config, "testing_criteria": list(criteria), **more})
    assert answer.status == 201, answer.body
    return fits(answer.json, "Eval")["id"]


def jsonl(rows):
    return {"type": "jsonl", "source": {"type": "file_content", "content": rows}}


def completions(rows, model="tiny-llama", **sampling):
    return {"type": "completions", "model": model, "source": {"type": "file_content", "content": rows},
            "input_messages": TEMPLATE, "sampling_params": {"max_completion_tokens": 8, **sampling}}


def graded(answer, reference="b"):
    return {"item": {"q": "?", "a": reference}, "sample": {"output_text": answer}}


def start(daemon, eval_id, source, **more):
    answer = daemon.post(f"/v1/evals/{eval_id}/runs", {"name": "r", "data_source": source, **more})
    assert answer.status == 201, answer.body
    return fits(answer.json, "EvalRun")["id"]


def wait(daemon, eval_id, run_id, until=("completed", "failed", "canceled"), timeout=60):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        run = daemon.get(f"/v1/evals/{eval_id}/runs/{run_id}").json
        if run["status"] in until:
            return fits(run, "EvalRun")
        time.sleep(0.02)
    raise AssertionError(f"run {run_id} is {run['status']}\n{daemon.log()[-2000:]}")


def items(daemon, eval_id, run_id, **query):
    query = "&".join(f"{k}={v}" for k, v in {"limit": 100, **query}.items())
    answer = daemon.get(f"/v1/evals/{eval_id}/runs/{run_id}/output_items?{query}")
    assert answer.status == 200, answer.body
    for item in answer.json["data"]:
        fits(item, "EvalOutputItem")
    return sorted(answer.json["data"], key=lambda item: item["datasource_item_id"])


def run(daemon, criteria, source, config=CONFIG):
    eval_id = make(daemon, criteria, config)
    run_id = start(daemon, eval_id, source)
    return wait(daemon, eval_id, run_id), items(daemon, eval_id, run_id)


def test_the_official_client_does_all_of_it(client, daemon):
    made = client.evals.create(name="capitals", data_source_config=CONFIG, testing_criteria=[EXACT, NEAR], metadata={"k": "v"})
    assert made.object == "eval" and made.metadata == {"k": "v"}
    assert made.data_source_config.schema_["properties"]["item"] == SCHEMA and made.testing_criteria[1].name == "near"
    assert client.evals.update(made.id, name="renamed", metadata={"k": "w"}).metadata == {"k": "w"}
    assert client.evals.retrieve(made.id).name == "renamed"
    assert made.id in [e.id for e in client.evals.list(order="desc", order_by="updated_at", limit=5)]
    rows = [graded("b"), graded("c"), graded("ab")]
    created = client.evals.runs.create(made.id, name="first", data_source=jsonl(rows), metadata={"x": "y"})
    assert created.status == "queued" and created.result_counts.total == 0 and created.report_url is None
    done = wait(daemon, made.id, created.id)
    run = client.evals.runs.retrieve(created.id, eval_id=made.id)
    assert run.status == "completed" and run.error is None and run.metadata == {"x": "y"} and run.model == ""
    assert (run.result_counts.total, run.result_counts.passed, run.result_counts.failed, run.result_counts.errored) == (3, 1, 2, 0)
    assert [(c.testing_criteria, c.passed, c.failed) for c in run.per_testing_criteria_results] == [("exact", 1, 2), ("near", 2, 1)]
    assert run.data_source.source.content[0].item == rows[0]["item"]
    listed = list(client.evals.runs.output_items.list(created.id, eval_id=made.id, limit=1))
    assert sorted(i.datasource_item_id for i in listed) == [0, 1, 2]
    assert [i.datasource_item_id for i in client.evals.runs.output_items.list(created.id, eval_id=made.id, status="pass")] == [0]
    one = client.evals.runs.output_items.retrieve(listed[0].id, eval_id=made.id, run_id=created.id)
    assert one.results[0].name == "exact" and one.sample.output[0].content in ("b", "c", "ab")
    assert [r.id for r in client.evals.runs.list(made.id, status="completed")] == [created.id]
    assert list(client.evals.runs.list(made.id, status="failed")) == []
    assert client.evals.runs.delete(created.id, eval_id=made.id).run_id == created.id
    assert daemon.get(f"/v1/evals/{made.id}/runs/{created.id}").status == 404
    assert client.evals.delete(made.id).deleted is True
    assert daemon.get(f"/v1/evals/{made.id}").status == 404 and done["attempt"] == 1


def test_a_model_answers_and_its_tokens_are_counted(daemon):
    rows = [{"item": {"q": f"number {i}", "a": "even"}} for i in range(20)]
    result, found = run(daemon, [EXACT, NEAR], completions(rows, temperature=0))
    assert result["status"] == "completed" and result["result_counts"]["total"] == 20 and result["model"] == "tiny-llama"
    usage, = result["per_model_usage"]
    assert usage["model_name"] == "tiny-llama" and usage["invocation_count"] == 20
    assert usage["completion_tokens"] == sum(i["sample"]["usage"]["completion_tokens"] for i in found) > 0
    sample = found[3]["sample"]
    assert sample["input"] == [{"role": "user", "content": "number 3"}] and sample["seed"] == 42 and sample["temperature"] == 0
    chat = daemon.post("/v1/chat/completions", {"model": "tiny-llama", "temperature": 0, "max_tokens": 8, "messages": sample["input"]})
    assert sample["output"] == [{"role": "assistant", "content": chat.json["choices"][0]["message"]["content"]}]
    assert result["progress"] == {"items": 20, "total_items": 20}


def test_answers_do_not_depend_on_what_runs_beside_them(daemon):
    rows = [{"item": {"q": f"number {i}", "a": "x"}} for i in range(12)]
    texts = []
    for source in (completions(rows), completions(rows), completions(rows[:5])):
        texts.append([i["sample"]["output"][0]["content"] for i in run(daemon, [EXACT], source)[1]])
    assert texts[0] == texts[1] and texts[0][:5] == texts[2]
    assert len(set(texts[0])) > 6 # one seed, but not one random number for all


def test_every_score_says_how_far_to_trust_it(daemon):
    answers = ["b", "b", "c", "b"]
    result, _ = run(daemon, [EXACT, NEAR], jsonl([graded(a) for a in answers]))
    exact = result["per_testing_criteria_results"][0]["score"]
    assert exact["n"] == 4 and exact["value"] == 0.75 and exact["interval"] == "wilson"
    assert exact["standard_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert 0 < exact["low"] < 0.75 < exact["high"] < 1
    assert result["pass_rate"]["value"] == 0.75
    one, _ = run(daemon, [EXACT], jsonl([graded("b")]))
    assert one["pass_rate"]["n"] == 1 and one["per_testing_criteria_results"][0]["score"]["value"] == 1


def test_two_runs_are_compared_item_by_item(daemon):
    eval_id = make(daemon, [EXACT])
    first = [graded(a) for a in "bbcb"] + [graded("b", "other")]
    second = [graded(a) for a in "bccc"] + [graded("b", "changed")]
    runs = [start(daemon, eval_id, jsonl(rows)) for rows in (first, second)]
    for run_id in runs:
        wait(daemon, eval_id, run_id)
    answer = daemon.get(f"/v1/evals/{eval_id}/runs/{runs[0]}/compare?with={runs[1]}")
    assert answer.status == 200, answer.body
    fits(answer.json, "EvalComparison")
    assert answer.json["items"] == {"shared": 4, "only_in_run": 1, "only_in_with_run": 1}
    criterion, = answer.json["criteria"]
    assert (criterion["run"]["value"], criterion["with_run"]["value"]) == (0.75, 0.25)
    assert criterion["difference"]["value"] == 0.5 and criterion["difference"]["n"] == 4
    assert criterion["difference"]["standard_error"] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert criterion["difference"]["low"] < 0.5 < criterion["difference"]["high"]
    for query, param in (("", "with"), ("?with=nothing", "with")):
        refused = daemon.get(f"/v1/evals/{eval_id}/runs/{runs[0]}/compare{query}")
        assert refused.status in (400, 404) and refused.json["error"]["param"] == param


def test_rows_of_a_file_and_what_is_wrong_with_them(daemon):
    lines = [json.dumps(graded("b")), json.dumps({"item": {"a": "b"}, "sample": {"output_text": "b"}}), "{\"item\": 3}", "not json",
             json.dumps({"item": {"q": ""}, "sample": {"output_text": "kept"}}), json.dumps({"item": {"q": ""}, "smaple": {}})]
    file_id = daemon.upload("\n".join(lines).encode(), purpose="evals").json["id"]
    result, found = run(daemon, [EXACT], {"type": "jsonl", "source": {"type": "file_id", "id": file_id}})
    assert result["result_counts"] == {"total": 6, "passed": 1, "failed": 0, "errored": 5}
    assert "item.q is missing" in found[1]["error"]["message"] and "row 2" in found[1]["error"]["message"]
    assert "item" in found[2]["error"]["message"] and "row 4" in found[3]["error"]["message"]
    assert "{{item.a}}" in found[4]["results"][0]["error"] and found[4]["results"][0]["score"] is None
    assert found[4]["sample"]["output"][0]["content"] == "kept" and found[4]["status"] == "error"
    assert "smaple" in found[5]["error"]["message"]
    assert result["per_testing_criteria_results"][0]["errored"] == 1


def test_a_file_that_is_no_rows_fails_the_run(daemon):
    file_id = daemon.upload(b"\x1f\x8b" + b"x" * 100, purpose="evals").json["id"]
    result, found = run(daemon, [EXACT], {"type": "jsonl", "source": {"type": "file_id", "id": file_id}})
    assert result["status"] == "failed" and result["error"]["code"] == "invalid_file" and "gzip" in result["error"]["message"]
    assert found == []


def test_a_file_in_use_stays(daemon):
    file_id = daemon.upload(b"\n".join(json.dumps({"item": {"q": f"{i}", "a": ""}}).encode() for i in range(400)), purpose="evals").json["id"]
    eval_id = make(daemon)
    source = {**completions([]), "source": {"type": "file_id", "id": file_id}}
    run_id = start(daemon, eval_id, source)
    refused = daemon.call("DELETE", f"/v1/files/{file_id}")
    assert refused.status == 409 and run_id in refused.json["error"]["message"]
    for path in (f"/v1/evals/{eval_id}", f"/v1/evals/{eval_id}/runs/{run_id}"):
        refused = daemon.call("DELETE", path)
        assert refused.status == 409 and "cancel it first" in refused.json["error"]["message"]
    wait(daemon, eval_id, run_id, until=("in_progress", "completed"))
    canceled = daemon.post(f"/v1/evals/{eval_id}/runs/{run_id}")
    assert canceled.status == 200 and fits(canceled.json, "EvalRun")["status"] == "canceled"
    again = daemon.post(f"/v1/evals/{eval_id}/runs/{run_id}")
    assert again.status == 409
    done = len(items(daemon, eval_id, run_id))
    time.sleep(0.3)
    after = daemon.get(f"/v1/evals/{eval_id}/runs/{run_id}").json
    assert after["status"] == "canceled" and len(items(daemon, eval_id, run_id)) == done == min(100, after["result_counts"]["total"])
    assert daemon.call("DELETE", f"/v1/evals/{eval_id}").status == 200
    assert daemon.call("DELETE", f"/v1/files/{file_id}").status == 200


def test_progress_is_told_as_it_happens(daemon):
    eval_id = make(daemon)
    run_id = start(daemon, eval_id, completions([{"item": {"q": str(i), "a": ""}} for i in range(300)]))
    seen = set()
    while (now := daemon.get(f"/v1/evals/{eval_id}/runs/{run_id}").json)["status"] in ("queued", "in_progress"):
        assert now["result_counts"]["total"] == now["progress"]["items"]
        seen.add(now["progress"]["items"])
        time.sleep(0.02)
    assert now["status"] == "completed" and seen <= set(range(301))
    stream = daemon.get(f"/v1/evals/{eval_id}/runs/{run_id}/events?stream=true").body.decode()
    events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
    for event in events:
        fits(event, "EvalRunEvent")
    assert stream.rstrip().endswith("[DONE]") and events[-1]["message"] == "The run has completed"
    steps = [e["data"]["step"] for e in events if e["type"] == "metrics"]
    assert steps == sorted(steps) and steps[-1] == 300 and 2 < len(steps) <= 21


@pytest.mark.parametrize("change, param, code, said", [
    ({"data_source_config": None}, "data_source_config", "missing_required_parameter", ""),
    ({"data_source_config": {"type": "logs"}}, "data_source_config.type", "unsupported_value", "not stored here"),
    ({"data_source_config": {"type": "stored_completions"}}, "data_source_config.type", "unsupported_value", "custom"),
    ({"data_source_config": {**CONFIG, "item_schma": {}}}, "data_source_config.item_schma", "unknown_parameter", "item_schema"),
    ({"data_source_config": {**CONFIG, "item_schema": {"pattern": "x"}}}, "data_source_config.item_schema.pattern", "unsupported_value", "pattern"),
    ({"testing_criteria": []}, "testing_criteria", "invalid_value", "1 to 64"),
    ({"testing_criteria": [{**EXACT, "reference": "{{item.b}}"}]}, "testing_criteria[0].reference", "invalid_value", "'b' is not in item_schema"),
    ({"testing_criteria": [{**EXACT, "type": "strng_check"}]}, "testing_criteria[0].type", "invalid_value", "string_check"),
    ({"testing_criteria": [{**NEAR, "pass_threshold": None}]}, "testing_criteria[0].pass_threshold", "missing_required_parameter", "passes"),
    ({"testing_criteria": [EXACT, EXACT]}, "testing_criteria[1]", "invalid_value", "two criteria"),
    ({"testing_criteria": [{"type": "python", "name": "p", "source": "def grade("}]}, "testing_criteria[0].source", "invalid_value", "line"),
    ({"nam": "x"}, "nam", "unknown_parameter", "name"),
    ({"metadata": {"k": 3}}, "metadata.k", "invalid_value", "string"),
])
def test_evals_that_cannot_work_are_refused_by_name(daemon, change, param, code, said):
    answer = daemon.post("/v1/evals", {"data_source_config": CONFIG, "testing_criteria": [EXACT], **change})
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert (error["param"], error["code"]) == (param, code) and said in error["message"], error


@pytest.mark.parametrize("source, status, param, said", [
    (None, 400, "data_source", "object"),
    ({"type": "responses"}, 400, "data_source.type", "completions"),
    (jsonl([]), 400, "data_source.source.content", "empty"),
    (jsonl([{"itm": {}}]), 400, "data_source.source.content[0].itm", "item"),
    ({"type": "jsonl", "source": {"type": "file_id", "id": "file-none"}}, 400, "data_source.source.id", "does not exist"),
    (completions([{"item": {}}], model="tny-llama"), 404, "model", "tny-llama"),
    (completions([{"item": {}}], temprature=1), 400, "data_source.sampling_params.temprature", "temperature"),
    ({**completions([{"item": {}}]), "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.z}}"}]}},
     400, "data_source.input_messages.template[0].content", "'z' is not in item_schema"),
])
def test_runs_that_cannot_work_are_refused_by_name(daemon, source, status, param, said):
    answer = daemon.post(f"/v1/evals/{make(daemon)}/runs", {"data_source": source})
    assert answer.status == status, answer.body
    assert answer.json["error"]["param"] == param and said in answer.json["error"]["message"], answer.body


def test_a_training_file_is_not_a_file_of_items(daemon):
    file_id = daemon.upload([{"prompt": "a", "completion": "b"}]).json["id"]
    answer = daemon.post(f"/v1/evals/{make(daemon)}/runs", {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": file_id}}})
    assert answer.status == 400 and "purpose 'evals'" in answer.json["error"]["message"]


def test_runs_are_no_fine_tuning_jobs(daemon):
    eval_id = make(daemon)
    run_id = start(daemon, eval_id, jsonl([graded("b")]))
    wait(daemon, eval_id, run_id)
    assert run_id not in [job["id"] for job in daemon.get("/v1/fine_tuning/jobs?limit=1000").json["data"]]
    for path in ("", "/events", "/checkpoints", "/metrics"):
        assert daemon.get(f"/v1/fine_tuning/jobs/{run_id}{path}").status == 404
    for verb in ("cancel", "pause", "resume"):
        assert daemon.post(f"/v1/fine_tuning/jobs/{run_id}/{verb}").status == 404
    assert daemon.get(f"/v1/evals/eval_other/runs/{run_id}").status == 404


def test_pages_have_ends(daemon):
    eval_id = make(daemon)
    run_id = start(daemon, eval_id, jsonl([graded("b") for _ in range(7)]))
    wait(daemon, eval_id, run_id)
    seen, after = [], ""
    while True:
        page = daemon.get(f"/v1/evals/{eval_id}/runs/{run_id}/output_items?limit=3&order=desc{after}").json
        assert page["first_id"] == page["data"][0]["id"] and page["last_id"] == page["data"][-1]["id"]
        seen += [item["datasource_item_id"] for item in page["data"]]
        if not page["has_more"]:
            break
        after = "&after=" + page["last_id"]
    assert sorted(seen) == list(range(7)) and len(seen) == 7
    for query, param in (("limit=0", "limit"), ("order=up", "order"), ("status=ok", "status"), ("after=nothing", "after")):
        answer = daemon.get(f"/v1/evals/{eval_id}/runs/{run_id}/output_items?{query}")
        assert answer.status == 400 and answer.json["error"]["param"] == param
    assert daemon.get("/v1/evals?order_by=name").json["error"]["param"] == "order_by"


def test_projects_do_not_see_each_others_evals(own_daemon, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sk-first-0123456789 one\nsk-second-0123456789 two\n")
    daemon = own_daemon(arguments=["--api-key-file", str(keys)])
    daemon.key = "sk-first-0123456789"
    daemon.start()
    eval_id = make(daemon)
    run_id = start(daemon, eval_id, jsonl([graded("b")]))
    wait(daemon, eval_id, run_id)
    item = items(daemon, eval_id, run_id)[0]["id"]
    daemon.key = "sk-second-0123456789"
    runs = f"/v1/evals/{eval_id}/runs"
    for method, path in (("GET", f"/v1/evals/{eval_id}"), ("POST", f"/v1/evals/{eval_id}"), ("DELETE", f"/v1/evals/{eval_id}"), ("GET", runs),
                         ("POST", runs), ("GET", f"{runs}/{run_id}"), ("POST", f"{runs}/{run_id}"), ("DELETE", f"{runs}/{run_id}"),
                         ("GET", f"{runs}/{run_id}/output_items"), ("GET", f"{runs}/{run_id}/output_items/{item}"),
                         ("GET", f"{runs}/{run_id}/events"), ("GET", f"{runs}/{run_id}/compare?with={run_id}")):
        body = {"name": "x"} if path == f"/v1/evals/{eval_id}" else {"data_source": jsonl([graded("b")])} if path == runs else None
        answer = daemon.call(method, path, body if method == "POST" else None)
        assert answer.status == 404, (method, path, answer.body)
    assert daemon.get("/v1/evals").json["data"] == []
    daemon.stop()


# ---- models that judge ----

LABEL = {"type": "label_model", "name": "label", "model": "tiny-llama", "labels": ["good", "good enough", "bad"], "passing_labels": ["good", "bad"],
         "input": [{"role": "system", "content": "judge"}, {"role": "user", "content": [{"type": "input_text", "text": "is "}, "{{sample.output_text}} ", "{{item.a}}?"]}]}
SCORE = {"type": "score_model", "name": "score", "model": "tiny-llama", "range": [1, 5], "pass_threshold": 3,
         "input": [{"role": "user", "content": "rate {{sample.output_text}}"}], "sampling_params": {"temperature": 1, "seed": 5}}


def test_judges_say_labels_and_scores_and_nothing_else(daemon):
    rows = [graded(f"answer {i}") for i in range(24)]
    result, found = run(daemon, [LABEL, SCORE], jsonl(rows))
    assert result["status"] == "completed" and result["result_counts"]["errored"] == 0
    usage, = result["per_model_usage"]
    assert usage["model_name"] == "tiny-llama" and usage["invocation_count"] == 48 and usage["prompt_tokens"] > 0
    scores = set()
    for item, row in zip(found, rows):
        label, score = item["results"]
        said = label["sample"]["output"][0]["content"]
        assert said in LABEL["labels"] and label["passed"] == (said in LABEL["passing_labels"])
        assert label["sample"]["input"] == [{"role": "system", "content": "judge"},
                                            {"role": "user", "content": f"is {row['sample']['output_text']} b?"}]
        assert score["score"] in (1, 2, 3, 4, 5) and score["passed"] == (score["score"] >= 3)
        assert score["sample"]["output"][0]["content"] == f"{score['score']:g}"
        scores.add(score["score"])
    assert len(scores) > 1
    again, found_again = run(daemon, [LABEL, SCORE], jsonl(rows))
    assert [[r["sample"]["output"] for r in i["results"]] for i in found_again] == [[r["sample"]["output"] for r in i["results"]] for i in found]
    assert again["per_testing_criteria_results"][1]["score"]["n"] == 24


def test_what_a_free_judge_says_is_read_strictly_and_shown(daemon):
    free = {**SCORE, "output": "free", "sampling_params": {"max_completion_tokens": 4}}
    result, found = run(daemon, [EXACT, free], jsonl([graded("b")]))
    item, = found
    assert item["status"] == "error" and result["result_counts"]["errored"] == 1
    said = item["results"][1]["sample"]["output"][0]["content"]
    assert item["results"][1]["score"] is None and "neither a number" in item["results"][1]["error"] and said is not None
    assert item["results"][0]["passed"] # the other criterion stands


def test_judges_within_a_formula(daemon):
    multi = {"type": "multi", "name": "both", "calculate_output": "0.5 * score + 10 * exact", "pass_threshold": 11,
             "graders": {"score": {k: v for k, v in SCORE.items() if k != "name"}, "exact": EXACT}}
    result, found = run(daemon, [multi], jsonl([graded("b"), graded("c")]))
    assert result["status"] == "completed" and [i["results"][0]["score"] >= 10.5 for i in found] == [True, False]
    assert all(0.5 <= i["results"][0]["score"] % 10 <= 2.5 for i in found)
    assert found[0]["results"][0]["sample"]["model"] == "tiny-llama"


def test_a_judge_that_is_not_there_is_refused_by_name(daemon):
    eval_id = make(daemon, [{**LABEL, "model": "tiny-lama"}])
    answer = daemon.post(f"/v1/evals/{eval_id}/runs", {"data_source": jsonl([graded("b")])})
    assert answer.status == 404 and answer.json["error"]["code"] == "model_not_found"
    assert "tiny-lama" in answer.json["error"]["message"] and "judge" in answer.json["error"]["message"]


def test_judges_answer_single_grades(client, daemon):
    graders = client.fine_tuning.alpha.graders
    answer = graders.run(grader=SCORE, model_sample="yes", item={})
    assert answer.reward in (1, 2, 3, 4, 5) and answer.metadata.sampled_model_name == "tiny-llama"
    assert answer.metadata.token_usage > 0 and answer.metadata.errors.model_grader_parse_error is False
    assert answer.model_grader_token_usage_per_model["tiny-llama"]["invocations"] == 1
    body = {"model_sample": "yes", "item": {"a": "x"}}
    path = "/v1/fine_tuning/alpha/graders/"
    assert daemon.post(path + "run", {"grader": LABEL, **body}).json["reward"] in (0, 1)
    free = daemon.post(path + "run", {"grader": {**SCORE, "output": "free", "sampling_params": {"max_completion_tokens": 3}}, **body}).json
    assert free["reward"] == 0 and free["metadata"]["errors"]["model_grader_parse_error"]
    lost = daemon.post(path + "run", {"grader": {**LABEL, "model": "nobody"}, **body}).json
    assert lost["reward"] == 0 and lost["metadata"]["errors"]["model_grader_server_error"]
    assert "nobody" in lost["metadata"]["errors"]["model_grader_server_error_details"]
    missing = daemon.post(path + "run", {"grader": LABEL, "model_sample": "yes", "item": {}}).json
    assert missing["metadata"]["errors"]["invalid_variable_error"] and "{{item.a}}" in missing["metadata"]["errors"]["message"]
    multi = {"type": "multi", "name": "m", "calculate_output": "score + label", "graders": {"score": SCORE, "label": LABEL}}
    both = daemon.post(path + "run", {"grader": multi, **body}).json
    assert both["reward"] == sum(both["sub_rewards"].values()) and both["model_grader_token_usage_per_model"]["tiny-llama"]["invocations"] == 2
    assert daemon.post(path + "validate", {"grader": multi}).json == {"grader": multi}
    refused = daemon.post(path + "validate", {"grader": {**LABEL, "model": "nobody"}})
    assert refused.status == 404 and refused.json["error"]["code"] == "model_not_found"


def test_tuned_models_answer_and_judge(daemon):
    from daemon import chat_rows, job_body
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", job_body(daemon.upload(chat_rows(8)).json["id"], hyper={"n_epochs": 1})).json["id"])
    model = job["fine_tuned_model"]
    result, found = run(daemon, [{**LABEL, "model": model}], completions([{"item": {"q": "number 1", "a": "odd"}}], model=model))
    assert result["status"] == "completed" and result["model"] == model and [u["model_name"] for u in result["per_model_usage"]] == [model]
    assert result["per_model_usage"][0]["invocation_count"] == 2 and found[0]["status"] in ("pass", "fail")


def test_python_grades_in_runs(daemon):
    source = "def grade(sample, item):\n    return len(sample['output_text']) / float(item['a'])"
    rows = [{"item": {"q": "", "a": a}, "sample": {"output_text": "xx"}} for a in ("2", "4", "0")]
    result, found = run(daemon, [{"type": "python", "name": "p", "source": source, "pass_threshold": 0.6}], jsonl(rows))
    assert [(i["status"], i["results"][0]["score"]) for i in found] == [("pass", 1), ("fail", 0.5), ("error", None)]
    assert "ZeroDivisionError" in found[2]["results"][0]["error"] and result["result_counts"]["errored"] == 1


def test_the_readmes_examples_work(daemon, tmp_path):
    section = (pathlib.Path(__file__).parent.parent.parent / "README.md").read_text().split("## Evaluation\n", 1)[1].split("\n## ", 1)[0]
    blocks = ["\n".join(line[4:] for line in block.splitlines()) for block in re.findall(r"(?:^(?:    .*)?\n)+", section, re.M) if block.strip()]
    shell, python = (block.replace("http://127.0.0.1:8900", daemon.url).replace("SmolLM2-135M-Instruct", "tiny-llama") for block in blocks[:2])
    said = subprocess.run(["bash", "-ec", shell], cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert "The run has completed" in said and '"completed"' in said and '"total": 3' in said and '"errored": 0' in said
    assert said.count('"name": "judged"') == 3
    said = subprocess.run([sys.executable, "-c", python], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert "temperature 0 completed ResultCounts(errored=0" in said and "'difference': {'n': 25" in said


def test_the_same_request_runs_in_the_foreground(daemon, models, tmp_path):
    from daemon import GRAFTD
    rows = [{"item": {"q": f"number {i}", "a": "x"}} for i in range(9)] + [{"item": {"a": "no question"}}]
    source = completions(rows)
    result, found = run(daemon, [NEAR, LABEL], source)
    (tmp_path / "eval.json").write_text(json.dumps({"data_source_config": CONFIG, "testing_criteria": [NEAR, LABEL], "data_source": source}))
    command = [GRAFTD, "run", "eval.json", "--models", str(models), "--out", "out", "--threads", "2"]
    said = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert said.returncode == 0, said.stdout
    kept = sorted((json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()), key=lambda item: item["index"])
    assert [item["status"] for item in kept] == [item["status"] for item in found]
    for item, other in zip(kept, found):
        assert [r["score"] for r in item.get("results", item.get("body", {}).get("results"))] == [r["score"] for r in other["results"]]
    again = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert again.returncode == 1 and b"--resume" in again.stdout
    assert subprocess.run([*command, "--resume"], cwd=tmp_path, stdout=subprocess.PIPE).returncode == 0
