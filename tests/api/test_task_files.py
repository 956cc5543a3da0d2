"""Tasks in lm-evaluation-harness's dialect: as runs of an eval over HTTP, and by graftd run."""
import json
import pathlib
import re
import signal
import subprocess
import time

import jsonschema
import pytest
import yaml

from daemon import FIXTURES, GRAFTD

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCUMENT = yaml.safe_load((ROOT / "api-spec" / "openapi.yaml").read_text())
HEAD = "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl, few: few.jsonl}}\ntest_split: test\n"
CHOICE = HEAD + """
output_type: multiple_choice
fewshot_split: few
num_fewshot: 2
doc_to_text: "{{q}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
"""
ROLLING = HEAD + """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}} {{options | join(' ')}}"
"""
SAY = HEAD + """
doc_to_text: "{{q}}"
doc_to_target: "{{options[gold]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match}, {metric: chrf}]
"""
ROWS = [{"q": f"which is {i}?", "options": [f"one {i}", f"two {i * 3}", "three"][: 2 + i % 2], "gold": i % 2} for i in range(12)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def files(daemon):
    return {name: daemon.upload(lines(rows), purpose="evals").json["id"] for name, rows in {"rows": ROWS[4:], "few": ROWS[:4]}.items()}


def fits(instance, name):
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}).validate(instance)
    return instance


def make(daemon, task):
    body = {"name": "t", "data_source_config": {"type": "task", "task": task}}
    fits(body, "CreateEval")
    answer = daemon.post("/v1/evals", body)
    assert answer.status == 201, answer.body
    return fits(answer.json, "Eval")["id"]


def source(files, examples=False, **more):
    body = {"type": "task", "model": "tiny-llama", "source": {"type": "file_id", "id": files["rows"]}, **more}
    if examples:
        body["examples"] = {"type": "file_id", "id": files["few"]}
    return fits(body, "EvalDataSource")


def run(daemon, eval_id, data_source, timeout=60):
    answer = daemon.post(f"/v1/evals/{eval_id}/runs", {"data_source": data_source})
    assert answer.status == 201, answer.body
    path, end = f"/v1/evals/{eval_id}/runs/{answer.json['id']}", time.monotonic() + timeout
    while time.monotonic() < end:
        found = daemon.get(path).json
        if found["status"] in ("completed", "failed", "canceled"):
            return fits(found, "EvalRun")
        time.sleep(0.05)
    raise AssertionError(found)


def scores_of(found):
    return {result["testing_criteria"]: result["score"] for result in found["per_testing_criteria_results"]}


def in_foreground(folder, task, models, *arguments):
    (folder / "rows.jsonl").write_bytes(lines(ROWS[4:]))
    (folder / "few.jsonl").write_bytes(lines(ROWS[:4]))
    (folder / "task.yaml").write_text(task)
    return subprocess.run([GRAFTD, "run", "task.yaml", "--models", str(models), "--model", "tiny-llama", "--out", "out", "--threads", "2",
                           *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)


@pytest.mark.parametrize("task, examples", [(CHOICE, True), (ROLLING, False), (SAY, False)])
def test_a_run_over_http_scores_as_graftd_run_does(daemon, files, models, tmp_path, task, examples):
    found = run(daemon, make(daemon, task), source(files, examples))
    assert found["status"] == "completed", found
    done = in_foreground(tmp_path, task, models)
    assert done.returncode == 0, done.stdout
    own = json.loads((tmp_path / "out" / "scores.json").read_text())
    scores = scores_of(found)
    assert own["items"] == 8 and own["errored"] == 0 and sorted(scores) == sorted(score["name"] for score in own["scores"])
    for score in own["scores"]:
        other = scores[score["name"]]
        assert other["value"] == pytest.approx(score["score"], rel=2e-3, abs=1e-9) and other["n"] == score["n"] == 8
        assert other["interval"] == score["interval"]["method"] and score["name"] in done.stdout
        assert other["low"] <= other["value"] <= other["high"]


def test_items_show_what_was_asked_and_how_likely_it_was(daemon, files):
    eval_id = make(daemon, CHOICE)
    found = run(daemon, eval_id, source(files, True, limit=2))
    items = daemon.get(f"/v1/evals/{eval_id}/runs/{found['id']}/output_items").json["data"]
    assert len(items) == 2
    for item in items:
        fits(item, "EvalOutputItem")
        prompt = item["sample"]["input"][0]["content"]
        assert prompt.endswith(item["datasource_item"]["q"]) and prompt.count("\n\n") == 2
        asked = [one["continuation"] for one in item["sample"]["loglikelihoods"]]
        assert asked == [" " + option for option in item["datasource_item"]["options"]]
        assert all(one["loglikelihood"] < 0 for one in item["sample"]["loglikelihoods"])
        assert [result["name"] for result in item["results"]] == ["acc,none", "acc_norm,none", "mcc,none"]


def test_choices_share_the_prompt_that_stands_before_them(daemon):
    rows = [{"q": "what comes after " + "one two three " * 8 + str(i), "options": ["a", "b", "c"], "gold": 0} for i in range(2)]
    task = CHOICE.replace("num_fewshot: 2\n", "")
    found = run(daemon, make(daemon, task), source({"rows": daemon.upload(lines(rows), purpose="evals").json["id"]}))
    usage = found["per_model_usage"][0]
    assert usage["invocation_count"] == 6 and usage["cached_tokens"] > usage["prompt_tokens"] / 2


def test_answers_are_repeated_and_voted_on(daemon, files):
    task = HEAD + """
doc_to_text: "{{q}}"
doc_to_target: "{{options[gold]}}"
repeats: 3
generation_kwargs: {do_sample: true, temperature: 1.5, max_gen_toks: 4, until: []}
filter_list:
  - {name: vote, filter: [{function: regex, regex_pattern: "[a-z]"}, {function: majority_vote}, {function: take_first}]}
"""
    eval_id = make(daemon, task)
    found = run(daemon, eval_id, source(files, limit=3))
    items = daemon.get(f"/v1/evals/{eval_id}/runs/{found['id']}/output_items").json["data"]
    said = [[message["content"] for message in item["sample"]["output"]] for item in items]
    assert all(len(answers) == 3 for answers in said) and any(len(set(answers)) > 1 for answers in said), said
    assert all(item["results"][0]["name"] == "exact_match,vote" and item["results"][0]["answer"] for item in items)


def test_two_runs_are_compared_by_their_corpus_scores(daemon, files):
    eval_id = make(daemon, ROLLING)
    a, b = (run(daemon, eval_id, source(files))["id"] for _ in range(2))
    answer = daemon.get(f"/v1/evals/{eval_id}/runs/{a}/compare?with={b}")
    assert answer.status == 200, answer.body
    for criterion in fits(answer.json, "EvalComparison")["criteria"]:
        assert criterion["difference"]["value"] == 0 and criterion["run"]["n"] == 8 and criterion["run"]["interval"] == "bootstrap"


def test_examples_change_with_their_seed_and_number(daemon, files):
    eval_id = make(daemon, CHOICE)
    prompts = []
    for more in ({}, {"fewshot_seed": 5}, {"num_fewshot": 0}):
        found = run(daemon, eval_id, source(files, more.get("num_fewshot") != 0, limit=4, **more))
        items = daemon.get(f"/v1/evals/{eval_id}/runs/{found['id']}/output_items").json["data"]
        prompts.append([item["sample"]["input"][0]["content"] for item in items])
    assert prompts[0] != prompts[1] and prompts[2] == [row["q"] for row in ROWS[4:8]]


@pytest.mark.parametrize(
    "task, said",
    [
        ("a: [", "YAML, line"),
        (HEAD + "doc_to_text: !function utils.f", "!function names Python code"),
        (HEAD + "doc_to_text: q\ndoc_to_target: a\nmetrics: []", "metric_list"),
        (CHOICE.replace("dataset_path: json", "dataset_path: ai2_arc"), "nothing is downloaded"),
        (CHOICE.replace("acc_norm", "acc_nrm"), "acc_norm"),
    ],
)
def test_bad_tasks_are_refused_by_name(daemon, task, said):
    answer = daemon.post("/v1/evals", {"data_source_config": {"type": "task", "task": task}})
    assert answer.status == 400, answer.body
    assert said in answer.json["error"]["message"] and answer.json["error"]["param"].startswith("data_source_config.task")


def test_bad_runs_are_refused_by_name(daemon, files):
    eval_id = make(daemon, CHOICE)
    for body, param in (
        (source(files), "data_source.examples"),
        (source(files, True, num_fewshot=0), "data_source.examples"),
        ({**source(files, True), "limits": 1}, "data_source.limits"),
        ({"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {}}]}}, "data_source.type"),
        ({**source(files, True), "source": {"type": "file_content", "content": []}}, "data_source.source.type"),
        ({**source(files, True), "examples": {"type": "file_id", "id": "file-none"}}, "data_source.examples.id"),
    ):
        answer = daemon.post(f"/v1/evals/{eval_id}/runs", {"data_source": body})
        assert answer.status == 400 and answer.json["error"]["param"] == param, answer.body
    answer = daemon.post("/v1/evals", {"data_source_config": {"type": "task", "task": SAY}, "testing_criteria": [{"type": "x"}]})
    assert answer.status == 400 and answer.json["error"]["param"] == "testing_criteria"


def test_rows_that_do_not_fit_are_errors_of_their_items(daemon):
    rows = [{"q": "a", "options": ["x", "y"], "gold": 1}, {"q": "b", "gold": 0}, {"q": "c", "options": ["x", "y"], "gold": 7}]
    task = CHOICE.replace("num_fewshot: 2\n", "")
    found = run(daemon, make(daemon, task), source({"rows": daemon.upload(lines(rows), purpose="evals").json["id"]}))
    assert found["result_counts"]["errored"] == 2 and scores_of(found)["acc,none"]["n"] == 1


def test_a_stopped_run_continues_with_what_is_left(models, tmp_path):
    task = SAY.replace("max_gen_toks: 6", "max_gen_toks: 200").replace('until: ["."]', "until: []")
    rows = [{"q": f"say {i}", "options": ["x"], "gold": 0} for i in range(400)]
    (tmp_path / "task.yaml").write_text(task)
    (tmp_path / "rows.jsonl").write_bytes(lines(rows))
    command = [GRAFTD, "run", "task.yaml", "--models", str(models), "--model", "tiny-llama", "--out", "out", "--threads", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    items = tmp_path / "out" / "items.jsonl"
    end = time.monotonic() + 60
    while process.poll() is None and not (items.exists() and items.stat().st_size > 0) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "continue with --resume" in output, output
    before = items.read_bytes()
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).returncode == 1
    items.write_bytes(before[:-20])
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["items"] == 400


def test_an_eval_with_criteria_runs_in_the_foreground(models, tmp_path):
    body = {"data_source_config": {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
            "testing_criteria": [{"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.a}}"},
                                 {"type": "python", "name": "code", "pass_threshold": 0.5, "source": "def grade(sample, item):\n    return 0.25 + (item['a'] == 'x')"}],
            "data_source": {"type": "jsonl", "source": {"type": "file_id", "id": "rows.jsonl"}}}
    (tmp_path / "eval.json").write_text(json.dumps(body))
    (tmp_path / "rows.jsonl").write_bytes(lines([{"item": {"a": a}, "sample": {"output_text": "x"}} for a in "xxyx"]))
    done = subprocess.run([GRAFTD, "run", "eval.json", "--models", str(models), "--out", "out"], cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    scores = {score["name"]: score for score in json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]}
    assert scores["same"]["score"] == 0.75 and scores["same"]["interval"]["method"] == "wilson"
    assert scores["code"]["score"] == 1 and scores["code"]["n"] == 4


def test_the_readmes_task_runs(models, tmp_path):
    section = (ROOT / "README.md").read_text().split("## Tasks\n", 1)[1].split("\n## ", 1)[0]
    command = "\n".join(line[4:] for line in re.search(r"(?:^    .*\n)+", section, re.M).group(0).splitlines())
    command = command.replace("build/graftd", GRAFTD).replace("--models models", f"--models {models}").replace("SmolLM2-135M-Instruct.Q4_1", "tiny-llama")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    assert done.returncode == 0 and "acc,none" in done.stdout, done.stdout
