"""Jobs over preferences: upload, dpo and other losses, metrics, results, bad rows and fields, and README's example."""
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import textwrap

import pytest
import yaml

from daemon import FIXTURES, GRAFTD, chat_rows, job_body

ROOT = pathlib.Path(__file__).parent.parent.parent
METRICS = ("rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy", "logps_chosen", "logps_rejected")
HYPER = {"n_epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "checkpoint_interval": 5}


def message(role, content):
    return {"role": role, "content": content}


def pair(i):
    return ("even", "odd") if i % 2 == 0 else ("odd", "even")


def openai_row(i):
    good, bad = pair(i)
    return {"input": {"messages": [message("user", f"number {i}")], "parallel_tool_calls": True},
            "preferred_output": [message("assistant", good)], "non_preferred_output": [message("assistant", bad)]}


def other_rows(i):
    """The same pair in every other spelling."""
    good, bad = pair(i)
    prompt, a, b = [message("user", f"number {i}")], [message("assistant", good)], [message("assistant", bad)]
    return [{"input": {"messages": prompt}, "preferred_completion": a, "non_preferred_completion": b},
            {"prompt": prompt, "chosen": a, "rejected": b, "score_chosen": 9.5},
            {"prompt": f"number {i}", "chosen": prompt + a, "rejected": prompt + b},
            {"chosen": prompt + a, "rejected": prompt + b},
            {"prompt": f"number {i}: ", "chosen": good, "rejected": bad}]


def preference_body(file_id, method, **options):
    return {**job_body(file_id, **options), "method": method}


def dpo(**hyper):
    return {"type": "dpo", "dpo": {"hyperparameters": {**HYPER, **hyper}}}


def preference(loss, hyper=None, **parameters):
    return {"type": "preference", "preference": {"loss": loss, **parameters, "hyperparameters": {**HYPER, **(hyper or {})}}}


def series(daemon, job_id):
    rows = daemon.get(f"/v1/fine_tuning/jobs/{job_id}/metrics?format=csv").body.decode().splitlines()[1:]
    out = {}
    for row in rows:
        step, name, value = row.split(",")[:3]
        out.setdefault(name, {})[int(step)] = value
    return out


@pytest.fixture(scope="module")
def pairs(daemon):
    return daemon.upload([openai_row(i) for i in range(60)]).json["id"]


def test_a_dpo_job_with_the_openai_package(client, daemon, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(openai_row(i)) + "\n" for i in range(60)))
    with open(path, "rb") as rows:
        training = client.files.create(file=rows, purpose="fine-tune")
    assert training.report["formats"] == {"preference": 60}
    job = client.fine_tuning.jobs.create(
        model="tiny-llama", training_file=training.id, validation_file=training.id, seed=3,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": "auto", "n_epochs": 3, "batch_size": 8}}},
        extra_body={"adapter": {"r": 8}})
    assert job.method.type == "dpo" and job.method.dpo.hyperparameters.beta == 0.1
    daemon.wait_job(job.id)
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.method.dpo.hyperparameters.n_epochs == 3
    events = [e for e in client.fine_tuning.jobs.list_events(job.id, limit=100) if e.type == "metrics"]
    assert set(METRICS) <= set(events[0].data)
    results = client.files.content(job.result_files[0]).text.splitlines()
    assert results[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,rewards_chosen")
    assert "valid_reward_margin" in results[0] and len(results) == 25
    answer = client.chat.completions.create(model=job.fine_tuned_model, max_tokens=4,
                                            messages=[{"role": "user", "content": "number 4"}])
    assert answer.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("method", [dpo(), dpo(gradient_leaves=2, tokens_per_batch=64), preference("simpo"),
                                    preference("orpo", **{"lambda": 2, "nll_weight": 0.1}), preference("ipo", nll_weight=0.1)])
def test_the_margin_grows_and_held_out_pairs_are_told_apart(daemon, pairs, method):
    job = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, method, validation_file=pairs)).json
    job = daemon.wait_job(job["id"])
    assert job["status"] == "succeeded", job["error"]
    values = series(daemon, job["id"])
    assert set(METRICS) <= set(values) and {"valid_" + name for name in METRICS} <= set(values)
    assert "train_mean_token_accuracy" not in values
    margin = [float(v) for v in values["reward_margin"].values()]
    assert sum(margin[-5:]) > sum(margin[:5])
    assert float(list(values["valid_reward_accuracy"].values())[-1]) > 0.6
    if method["type"] == "dpo":
        assert abs(float(values["train_loss"][1]) - 0.693147) < 1e-5  # no graft yet: the model is its reference
        assert float(values["reward_margin"][1]) == 0 and float(values["reward_accuracy"][1]) == 0


def test_every_spelling_of_a_row_trains(daemon):
    rows = [row for i in range(8) for row in other_rows(i)]
    made = daemon.upload(rows).json
    assert made["report"]["formats"] == {"preference": 8, "chosen_rejected": 32}
    job = daemon.post("/v1/fine_tuning/jobs", preference_body(made["id"], dpo(n_epochs=1))).json
    assert daemon.wait_job(job["id"])["status"] == "succeeded"
    sides = daemon.post(f"/v1/files/{made['id']}/render", {"model": "tiny-llama", "row": 1}).json
    assert "even" in sides["text"] + sides["rejected"]["text"] and sides["text"] != sides["rejected"]["text"]
    assert sides["trained_tokens"] > 0 and sides["rejected"]["trained_tokens"] > 0


def run_job(folder, name, method, rows, out, wait=True):
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {**preference_body(str(folder / "pairs.jsonl"), method), "adapter": {"r": 8, "lora_dropout": 0.1}}
    (folder / f"{name}.json").write_text(json.dumps(job))
    command = [GRAFTD, "run", str(folder / f"{name}.json"), "--models", str(FIXTURES / "models"), "--out", str(out), "--threads", "2"]
    return command


@pytest.mark.parametrize("method", [dpo(gradient_leaves=2, tokens_per_batch=64), preference("simpo")])
def test_a_killed_run_continues_bit_for_bit(tmp_path, method):
    rows = [openai_row(i) for i in range(60)]
    whole = run_job(tmp_path, "job", method, rows, tmp_path / "whole")
    subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
    cut = run_job(tmp_path, "job", method, rows, tmp_path / "cut")
    process = subprocess.Popen(cut, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 12/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "cut" / "adapter").exists()
    subprocess.run(cut + ["--resume"], check=True, stdout=subprocess.DEVNULL)
    digests = [hashlib.sha256((tmp_path / out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
               for out in ("whole", "cut")]
    assert digests[0] == digests[1]


def test_kill_of_the_worker_continues_bit_for_bit(own_daemon):
    daemon = own_daemon().start()
    file_id = daemon.upload([openai_row(i) for i in range(60)]).json["id"]
    results = []
    for killed in (False, True):
        body = preference_body(file_id, dpo(n_epochs=6), validation_file=file_id, adapter={"r": 8, "lora_dropout": 0.1})
        job = daemon.post("/v1/fine_tuning/jobs", body).json
        if killed:
            daemon.wait_step(job["id"], 12)
            for pid in daemon.worker_pids():
                os.kill(pid, signal.SIGKILL)
        assert daemon.wait_job(job["id"])["status"] == "succeeded"
        folder = daemon.data_dir / "jobs" / job["id"] / "adapter"
        values = series(daemon, job["id"])
        results.append((hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
                        {name: values[name] for name in METRICS + ("train_loss", "valid_loss")}))
    assert results[0] == results[1]
    daemon.stop()


@pytest.mark.parametrize("row,field,reason", [
    ({**openai_row(1), "preferred_output": []}, "preferred_output", "empty"),
    ({**openai_row(1), "preferred_outputs": []}, "preferred_outputs", "preferred_output"),
    ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "input.messages", "required"),
    ({"prompt": "p", "chosen": "a"}, "rejected", "missing"),
])
def test_bad_rows_are_named_by_line_and_field(daemon, row, field, reason):
    answer = daemon.upload([openai_row(0), row])
    assert answer.status == 400, answer.body
    text = json.dumps(answer.json)
    assert "line 2" in text and field in text and reason in text, text


def test_a_method_that_does_not_fit_the_rows_fails_the_job_with_line_and_field(daemon, pairs):
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", job_body(pairs)).json["id"])
    assert job["status"] == "failed" and "line 1: preferred_output: this is a preference row" in job["error"]["message"]
    chats = daemon.upload(chat_rows(4)).json["id"]
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", preference_body(chats, dpo())).json["id"])
    assert job["status"] == "failed" and "line 1: the row (chat) has one answer" in job["error"]["message"]


@pytest.mark.parametrize("method,param,part", [
    ({"type": "dop"}, "method.type", "dpo"),
    (dpo(beta=0), "method.dpo.hyperparameters.beta", ""), (dpo(beta=2.5), "method.dpo.hyperparameters.beta", "2"),
    (dpo(betta=1), "method.dpo.hyperparameters.betta", "beta"),
    ({"type": "dpo", "preference": {"loss": "dpo"}}, "method.preference", "type"),
    ({"type": "preference"}, "method.preference", "missing"),
    (preference("simpi"), "method.preference.loss", "did you mean 'simpo'"),
    (preference("robust", label_smoothing=0.5), "method.preference.label_smoothing", ""),
    (preference("dpo", gamma=1), "method.preference.gamma", "it takes beta, label_smoothing"),
])
def test_bad_fields_are_named(daemon, pairs, method, param, part):
    answer = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, method))
    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"] == param and part in answer.json["error"]["message"], answer.json


def test_the_document_and_the_readme_name_the_losses_that_there_are(daemon, pairs):
    document = yaml.safe_load((ROOT / "api-spec" / "openapi.yaml").read_text())
    names = document["components"]["schemas"]["PreferenceLoss"]["enum"]
    answer = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, preference("?")))
    known = answer.json["error"]["message"].split("there are ")[1].split(", ")
    section = (ROOT / "README.md").read_text().split("| loss | of one pair |")[1].split("\n\n")[0]
    table = re.findall(r"^\| `([\w-]+)`(?: \(`([\w-]+)`\))? \|", section, re.MULTILINE)
    assert [name for name, _ in table] == known
    assert [n for row in table for n in row if n] == names
    for name in names:
        job = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, preference(name)))
        assert job.status == 200, job.body
        shown = job.json["method"]["preference"]
        assert shown["loss"] in known and ("beta" in shown or name in ("orpo", "sft"))
        daemon.post(f"/v1/fine_tuning/jobs/{job.json['id']}/cancel")


@pytest.mark.parametrize("number", [0, 1])
def test_the_readme_examples_work(daemon, tmp_path, number):
    section = (ROOT / "README.md").read_text().split("## Preferences")[1]
    block = re.findall(r"((?:^    .*\n)+)", section.split("\n## ")[0], re.MULTILINE)[number]
    script = textwrap.dedent(block).replace("http://127.0.0.1:8900", daemon.url).replace("SmolLM2-135M-Instruct", "tiny-llama")
    made = subprocess.run(["bash", "-euc", script], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    job = daemon.wait_job(json.loads(made.stdout)["id"])
    assert job["status"] == "succeeded", job["error"]
