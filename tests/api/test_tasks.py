"""Rows by task: one model learns contradicting tasks, and requests say which they want."""
import json
import subprocess
import time

import pytest

from daemon import FIXTURES, GRAFTD, chat_rows, job_body

HYPER = {"n_epochs": 6, "batch_size": 8, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "checkpoint_interval": 50}
POLY = {"type": "poly", "r": 8, "n_skills": 3, "n_splits": 4, "target_modules": "all-linear"}


ANSWERS = {"agree": "even", "deny": "odd"}


def rows_by_task():
    """The same questions, and an answer that the task alone decides."""
    return [{"messages": [row["messages"][0], {"role": "assistant", "content": answer}], "task": task}
            for row in chat_rows(30) for task, answer in ANSWERS.items()]


@pytest.fixture(scope="module")
def job(daemon):
    file_id = daemon.upload(rows_by_task()).json["id"]
    made = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, adapter=POLY, hyper=HYPER, validation_file=file_id))
    assert made.status == 200, made.json
    done = daemon.wait_job(made.json["id"])
    assert done["status"] == "succeeded", done["error"]
    return done


def ask(daemon, model, number, **fields):
    return daemon.post("/v1/chat/completions", {
        "model": model, "messages": [{"role": "user", "content": f"number {number}"}], "temperature": 0, "max_tokens": 8, **fields})


def said(daemon, job, number, task):
    answer = ask(daemon, job["fine_tuned_model"], number, task=task)
    assert answer.status == 200, answer.json
    return answer.json["choices"][0]["message"]["content"].strip()


def test_each_task_has_its_own_mixture(daemon, job):
    for number in (4, 7, 12):
        assert {task: said(daemon, job, number, task) for task in ANSWERS} == ANSWERS
    assert ask(daemon, job["fine_tuned_model"], 4, task="average").status == 200


def test_the_job_reports_rows_by_task_and_the_artefact_names_them(daemon, job):
    events = daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json["data"]
    assert any("rows by task: 30 of agree, 30 of deny" in event["message"] for event in events)
    folder = daemon.data_dir / "jobs" / job["id"] / "adapter"
    assert json.loads((folder / "graftd.json").read_text())["tasks"] == ["agree", "deny"]
    assert json.loads((folder / "adapter_config.json").read_text())["n_tasks"] == 2


@pytest.mark.parametrize("fields, part", [
    ({}, "give task, one of 'agree', 'deny'"),
    ({"task": "sum"}, "not trained on task 'sum'; its tasks are 'agree', 'deny'"),
    ({"task": 3}, "task '3'"),
    ({"task": ""}, "task"),
    ({"task": ["agree"]}, "task"),
])
def test_a_task_that_is_missing_or_not_there_is_named(daemon, job, fields, part):
    answer = ask(daemon, job["fine_tuned_model"], 4, **fields)
    assert answer.status == 400
    assert answer.json["error"]["param"] == "task" and part in answer.json["error"]["message"], answer.json


def test_models_without_tasks_take_none(daemon):
    answer = ask(daemon, "tiny-llama", 4, task="agree")
    assert answer.status == 400 and answer.json["error"]["param"] == "task"


@pytest.mark.parametrize("change, valid, part", [
    (lambda rows: rows[5].pop("task"), None, "line 6: the row names no task"),
    (lambda rows: None, [{**chat_rows(1)[0], "task": "sum"}], "line 1: there is no task 'sum'; the training file's tasks are: agree, deny"),
    (lambda rows: None, chat_rows(1), "line 1: the row names no task"),
])
def test_rows_without_a_task_fail_the_job_by_line(daemon, change, valid, part):
    rows = rows_by_task()
    change(rows)
    files = {"validation_file": daemon.upload(valid).json["id"]} if valid else {}
    made = daemon.post("/v1/fine_tuning/jobs", job_body(daemon.upload(rows).json["id"], adapter=POLY, **files))
    failed = daemon.wait_job(made.json["id"])
    assert failed["status"] == "failed" and part in failed["error"]["message"], failed["error"]


def test_a_number_of_tasks_that_the_file_does_not_have_is_named(daemon):
    file_id = daemon.upload(rows_by_task()).json["id"]
    made = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, adapter={**POLY, "n_tasks": 5}))
    failed = daemon.wait_job(made.json["id"])
    assert failed["status"] == "failed" and failed["error"]["param"] == "adapter.n_tasks" and "2 tasks" in failed["error"]["message"]


def test_a_task_is_exported_as_a_low_rank_pair(daemon, job, tmp_path):
    adapter, base = daemon.data_dir / "jobs" / job["id"] / "adapter", FIXTURES / "models" / "tiny-llama"

    def graftd(*arguments):
        return subprocess.run([GRAFTD, *map(str, arguments)], capture_output=True, text=True)

    refused = graftd("export", adapter, "--out", tmp_path / "x", "--base", base)
    assert refused.returncode == 1 and "'agree', 'deny'" in refused.stderr
    for form in (["--format", "gguf-lora"], []):
        done = graftd("export", adapter, "--out", tmp_path / f"out{len(form)}", "--base", base, "--task", "agree", *form)
        assert done.returncode == 0, done.stderr
    told = [graftd("generate", model, "--chat", "number 7", "--max-tokens", 4, *rest).stdout for model, rest in (
        (base, ["--adapter", adapter, "--task", "agree"]), (base, ["--adapter", tmp_path / "out2"]), (tmp_path / "out0", []))]
    assert told[0] == told[1] == told[2]


def run(job, out, *more):
    return subprocess.Popen([GRAFTD, "run", job, "--models", FIXTURES / "models", "--out", out, "--threads", "2", *more],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("adapter", [{**POLY, "target_modules": ["q_proj"]}, {"type": "houlsby", "learned_scaling": True,
                                                                              "adapter_dropout": 0.1}])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, adapter):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_by_task()))
    body = job_body(str(tmp_path / "rows.jsonl"), adapter=adapter, hyper={"n_epochs": 4, "checkpoint_interval": 10})
    (tmp_path / "job.json").write_text(json.dumps(body))
    assert run(tmp_path / "job.json", tmp_path / "whole").wait() == 0
    parts = run(tmp_path / "job.json", tmp_path / "parts")
    for line in parts.stdout:
        if line.startswith("step 13/"):
            parts.kill()
            break
    parts.stdout.read()
    if parts.wait() != 0:
        assert run(tmp_path / "job.json", tmp_path / "parts", "--resume").wait() == 0
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def go_on(daemon, job, rows, adapter, **hyper):
    body = job_body(daemon.upload(rows).json["id"], hyper={**HYPER, "n_epochs": 3, **hyper})
    body["model"] = job["fine_tuned_model"]
    body.pop("adapter")
    made = daemon.post("/v1/fine_tuning/jobs", {**body, **({"adapter": adapter} if adapter else {})})
    assert made.status == 200, made.json
    return daemon.wait_job(made.json["id"])


def folder_of(daemon, job):
    return daemon.data_dir / "jobs" / job["id"] / "adapter"


def tensors(path):
    """Name -> bytes of a safetensors file."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    return {name: data[begin + entry["data_offsets"][0]:begin + entry["data_offsets"][1]]
            for name, entry in header.items() if name != "__metadata__"}


def test_a_model_goes_on_with_its_tasks(daemon, job):
    done = go_on(daemon, job, [row for row in rows_by_task() if row["task"] == "deny"], None)
    assert done["status"] == "succeeded", done["error"]
    assert json.loads((folder_of(daemon, done) / "graftd.json").read_text())["tasks"] == ["agree", "deny"]
    assert said(daemon, done, 4, "deny") == "odd"


def test_routing_alone_adapts_to_a_new_task(daemon, job):
    """MHR-z: the skills are there already, so that a few numbers a module say which."""
    rows = [{**row, "task": "object"} for row in rows_by_task() if row["task"] == "deny"]
    done = go_on(daemon, job, rows, {**POLY, "trained": "routing", "router_noise": "none"}, n_epochs=6)
    assert done["status"] == "succeeded", done["error"]
    assert said(daemon, done, 7, "object") == "odd"
    assert json.loads((folder_of(daemon, done) / "graftd.json").read_text())["tasks"] == ["object"]
    old, new = (tensors(folder_of(daemon, one) / "adapter_model.safetensors") for one in (job, done))
    skills = [name for name in old if "poly_lora" in name]
    assert skills and set(old) == set(new) and all(old[name] == new[name] for name in skills)


def test_a_lora_learns_from_the_mean_of_the_skills(daemon, job):
    """MHR-mu."""
    rows = [{**row, "task": "deny"} for row in rows_by_task() if row["task"] == "deny"]
    done = go_on(daemon, job, rows, {"type": "lora", "r": 8})
    assert done["status"] == "succeeded", done["error"]
    assert json.loads((folder_of(daemon, done) / "adapter_config.json").read_text())["peft_type"] == "LORA"
    answer = ask(daemon, done["fine_tuned_model"], 7)
    assert answer.json["choices"][0]["message"]["content"].strip() == "odd"


@pytest.mark.parametrize("adapter, param, part", [
    ({"type": "lora", "r": 4}, "adapter.r", "rank 8"),
    ({"type": "lora", "r": 8, "target_modules": ["q_proj"]}, "adapter.target_modules", "k_proj"),
    ({**POLY, "n_skills": 2, "trained": "routing"}, "adapter.n_skills", "has 3"),
    ({"type": "ia3"}, "adapter.type", "'poly'"),
])
def test_what_cannot_go_on_from_a_mixture_is_named(daemon, job, adapter, param, part):
    failed = go_on(daemon, job, rows_by_task(), adapter)
    assert failed["status"] == "failed" and failed["error"]["param"] == param and part in failed["error"]["message"], failed["error"]


def test_routing_alone_needs_a_model_to_go_on_from(daemon):
    made = daemon.post("/v1/fine_tuning/jobs", job_body(daemon.upload(rows_by_task()).json["id"], adapter={**POLY, "trained": "routing"}))
    failed = daemon.wait_job(made.json["id"])
    assert failed["status"] == "failed" and failed["error"]["param"] == "adapter.trained"


def test_a_run_of_an_eval_says_which_task(daemon, job):
    config = {"type": "custom", "include_sample_schema": True,
              "item_schema": {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]}}
    criteria = [{"type": "string_check", "name": "said", "operation": "like", "input": "{{sample.output_text}}", "reference": "{{item.a}}"}]
    made = daemon.post("/v1/evals", {"name": "by task", "data_source_config": config, "testing_criteria": criteria}).json
    passed = {}
    for task in ("agree", "deny", None):
        rows = [{"item": {"q": f"number {number}", "a": ANSWERS.get(task, "even")}} for number in (4, 7, 12)]
        source = {"type": "completions", "model": job["fine_tuned_model"], "source": {"type": "file_content", "content": rows},
                  "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]},
                  "sampling_params": {"temperature": 0, "max_completion_tokens": 8}}
        run = daemon.post(f"/v1/evals/{made['id']}/runs", {"data_source": {**source, **({"task": task} if task else {})}}).json
        end = time.monotonic() + 60
        while run["status"] in ("queued", "in_progress") and time.monotonic() < end:
            time.sleep(0.1)
            run = daemon.get(f"/v1/evals/{made['id']}/runs/{run['id']}").json
        passed[task] = run["result_counts"]
    assert passed["agree"]["passed"] == passed["deny"]["passed"] == 3
    assert passed[None]["errored"] == 3
