"""Jobs that go on from a tuned model, and what their losses compare with."""
import hashlib
import json
import pathlib
import re
import signal
import subprocess

import pytest

from daemon import chat_rows, job_body
from test_preference import dpo, openai_row, preference, preference_body, run_job, series

LOG_2 = 0.693147


def submit(daemon, body):
    made = daemon.post("/v1/fine_tuning/jobs", body)
    assert made.status == 200, made.json
    return daemon.wait_job(made.json["id"])


def model_entry(daemon, name):
    return next(m for m in daemon.get("/v1/models").json["data"] if m["id"] == name)


@pytest.fixture(scope="module")
def chats(daemon):
    return daemon.upload(chat_rows(60)).json["id"]


@pytest.fixture(scope="module")
def pairs(daemon):
    return daemon.upload([openai_row(i) for i in range(24)]).json["id"]


@pytest.fixture(scope="module")
def tuned(daemon, chats):
    job = submit(daemon, job_body(chats, suffix="first"))
    assert job["status"] == "succeeded", job["error"]
    return job


def body_from(model, file_id, method, **options):
    body = {**preference_body(file_id, method, **options), "model": model}
    if "adapter" not in options:
        del body["adapter"]
    return body


@pytest.mark.parametrize("reference, at_its_start", [("start", True), ("precomputed", True), ("base", False), ("none", False)])
def test_a_preference_job_goes_on_from_a_tuned_model(daemon, tuned, pairs, reference, at_its_start):
    method = dpo(n_epochs=2)
    method["dpo"]["reference"] = reference
    job = submit(daemon, body_from(tuned["fine_tuned_model"], pairs, method, validation_file=pairs))
    assert job["status"] == "succeeded", job["error"]
    assert job["model"] == tuned["fine_tuned_model"] and job["base_model"] == "tiny-llama"
    assert job["method"]["dpo"]["reference"] == reference
    assert job["fine_tuned_model"].startswith("ft:tiny-llama:")
    loss = [float(v) for v in series(daemon, job["id"])["train_loss"].values()]
    assert (abs(loss[0] - LOG_2) < 1e-5) == at_its_start
    entry = model_entry(daemon, job["fine_tuned_model"])
    assert entry["root"] == "tiny-llama" and entry["parent"] == tuned["fine_tuned_model"]
    assert model_entry(daemon, tuned["fine_tuned_model"])["parent"] == "tiny-llama"
    facts = json.loads((daemon.data_dir / "jobs" / job["id"] / "adapter" / "graftd.json").read_text())
    assert facts["init_from"] == tuned["fine_tuned_model"] and facts["base_model"] == "tiny-llama" and len(facts["init_digest"]) == 64
    folders = {path.name for path in (daemon.data_dir / "jobs" / job["id"]).iterdir()}
    assert "start" in folders and ("reference-training" in folders) == ("reference-validation" in folders) == (reference == "precomputed")
    answer = daemon.post("/v1/chat/completions", {"model": job["fine_tuned_model"], "max_tokens": 2,
                                                  "messages": [{"role": "user", "content": "number 4"}]})
    assert answer.status == 200, answer.json


def test_a_supervised_job_goes_on_where_the_other_ended(daemon, tuned, chats):
    fresh = series(daemon, tuned["id"])["train_loss"]
    body = job_body(chats, init_from=tuned["fine_tuned_model"], hyper={"n_epochs": 1})
    job = submit(daemon, body)
    assert job["status"] == "succeeded" and job["adapter"]["r"] == 4, job["error"]
    assert job["model"] == tuned["fine_tuned_model"]
    assert float(series(daemon, job["id"])["train_loss"][1]) < 0.5 * float(fresh[1])
    again = submit(daemon, {**job_body(chats, hyper={"n_epochs": 1}), "model": job["fine_tuned_model"], "adapter": None})
    assert again["status"] == "succeeded", again["error"]
    assert model_entry(daemon, again["fine_tuned_model"])["parent"] == job["fine_tuned_model"]


@pytest.mark.parametrize("adapter, param", [({"r": 8}, "adapter.r"), ({"type": "ia3"}, "adapter.type"),
                                            ({"r": 4, "lora_alpha": 4}, "adapter.lora_alpha"),
                                            ({"r": 4, "target_modules": ["q_proj"]}, "adapter")])
def test_another_adapter_than_the_starts_fails_by_its_field(daemon, tuned, chats, adapter, param):
    job = submit(daemon, job_body(chats, init_from=tuned["fine_tuned_model"], adapter=adapter))
    assert job["status"] == "failed" and job["error"]["param"] == param, job["error"]
    assert "leave adapter out" in job["error"]["message"]


def test_starts_that_are_not_there_are_refused(daemon, tuned, chats):
    for body, status, param, text in [
            ({"model": "ft:tiny-llama:none"}, 404, "model", "ft:tiny-llama:none"),
            ({"model": "tiny-llama", "init_from": "ft:tiny-llama:none"}, 404, "model", "ft:tiny-llama:none"),
            ({"model": "tiny-qwen2", "init_from": tuned["fine_tuned_model"]}, 400, "init_from", "was tuned on 'tiny-llama'"),
            ({"model": tuned["fine_tuned_model"], "init_from": tuned["fine_tuned_model"]}, 400, "init_from", "leave init_from out"),
            ({"model": "tiny-llama", "init_from": "tiny-llama"}, 400, "init_from", "must be a tuned model")]:
        answer = daemon.post("/v1/fine_tuning/jobs", {**job_body(chats), **body})
        assert answer.status == status, answer.json
        assert answer.json["error"]["param"] == param and text in answer.json["error"]["message"], answer.json


def test_the_same_request_again_gets_the_same_job(daemon, tuned, chats):
    body = job_body(chats, init_from=tuned["fine_tuned_model"], hyper={"max_steps": 1})
    first, second = (daemon.post("/v1/fine_tuning/jobs", body, headers={"Idempotency-Key": "go on"}) for _ in range(2))
    assert first.status == second.status == 200 and first.json["id"] == second.json["id"]
    other = daemon.post("/v1/fine_tuning/jobs", {**body, "seed": 8}, headers={"Idempotency-Key": "go on"})
    assert other.status == 409
    daemon.wait_job(first.json["id"])


def test_computed_once_or_in_every_step_is_the_same(daemon, pairs):
    losses = []
    for reference in ("base", "precomputed", "start"):
        method = preference("dpo", reference=reference)
        job = submit(daemon, {**preference_body(pairs, method, validation_file=pairs), "precision": "f32"})
        assert job["status"] == "succeeded" and job["method"]["preference"]["reference"] == reference, job["error"]
        values = series(daemon, job["id"])
        losses.append([float(v) for name in ("train_loss", "valid_loss") for v in values[name].values()])
    for other in losses[1:]:
        assert max(abs(a - b) for a, b in zip(losses[0], other)) < 2e-5


def reference_rows(count, given):
    return [{**openai_row(i), **({"ref_chosen_logps": -30.0, "ref_rejected_logps": -70.5} if i in given else {})} for i in range(count)]


def test_rows_bring_the_references_log_probabilities(daemon):
    file_id = daemon.upload(reference_rows(8, range(8))).json["id"]
    job = submit(daemon, preference_body(file_id, preference("dpo", reference="precomputed", beta=0.5)))
    assert job["status"] == "succeeded", job["error"]
    values = {name: float(v[1]) for name, v in series(daemon, job["id"]).items() if 1 in v}
    assert values["rewards_chosen"] == pytest.approx(0.5 * (values["logps_chosen"] + 30), abs=1e-3)
    assert values["rewards_rejected"] == pytest.approx(0.5 * (values["logps_rejected"] + 70.5), abs=1e-3)
    partly = daemon.upload(reference_rows(8, [0, 1, 4])).json["id"]
    job = submit(daemon, preference_body(partly, preference("dpo", reference="precomputed")))
    assert job["status"] == "failed" and job["error"]["param"] == "ref_chosen_logps"
    assert "3 of 8 rows" in job["error"]["message"] and "line 3, 4, 6" in job["error"]["message"]
    half = daemon.upload([{**openai_row(0), "ref_chosen_logps": -3.0}, {**openai_row(1), "ref_chosen_logps": 3.0, "ref_rejected_logps": 0}])
    problems = half.json["error"]["message"] if half.status != 200 else json.dumps(half.json)
    assert "ref_rejected_logps" in problems and "ref_chosen_logps" in problems


def test_references_that_make_no_sense_are_refused(daemon, pairs):
    for method, param in [(preference("simpo", reference="base"), "method.preference.reference"),
                          (preference("dpo", reference="strat"), "method.preference.reference")]:
        answer = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, method))
        assert answer.status == 400 and answer.json["error"]["param"] == param, answer.json
    assert daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, preference("simpo", {"max_steps": 1}, reference="none"))).status == 200


def test_a_killed_run_reads_its_reference_and_its_start_back(tmp_path):
    rows = [openai_row(i) for i in range(60)]
    first = run_job(tmp_path, "first", preference("dpo"), rows, tmp_path / "first")
    subprocess.run(first, check=True, stdout=subprocess.DEVNULL)
    folders = []
    for out in ("whole", "cut"):
        command = run_job(tmp_path, "job", preference("dpo", reference="precomputed"), rows, tmp_path / out)
        job = json.loads((tmp_path / "job.json").read_text())
        del job["adapter"]
        (tmp_path / "job.json").write_text(json.dumps({**job, "init_from": str(tmp_path / "first" / "adapter")}))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if out == "cut" and line.startswith("step 12/"):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        process.stdout.close()
        if out == "cut":
            (tmp_path / "first" / "adapter").rename(tmp_path / "gone")
            log = subprocess.run(command + ["--resume"], check=True, stdout=subprocess.PIPE, text=True).stdout
            assert "are computed" not in log
        folders.append(tmp_path / out / "adapter" / "adapter_model.safetensors")
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in folders}) == 1
    lost = run_job(tmp_path, "lost", preference("dpo"), rows, tmp_path / "lost")
    job = json.loads((tmp_path / "lost.json").read_text())
    (tmp_path / "lost.json").write_text(json.dumps({**job, "init_from": str(tmp_path / "nowhere")}))
    failed = subprocess.run(lost, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert failed.returncode != 0 and "nowhere" in failed.stderr and "gone" in failed.stderr


def test_the_readmes_three_settings_are_requests(daemon, chats, pairs):
    readme = (pathlib.Path(__file__).parent.parent.parent / "README.md").read_text()
    section = readme.split("### Three settings")[1].split("\n## ")[0]
    bodies = [json.loads(line) for line in re.findall(r"^    (\{.*\})$", section, re.MULTILINE)]
    files = {"ROWS": chats, "PAIRS": pairs}
    assert len(bodies) == 4
    tuned = None
    for body in bodies:
        options = body["method"].setdefault(body["method"]["type"], {})
        options["hyperparameters"] = {"max_steps": 4, "batch_size": 4}
        body["training_file"] = files[body["training_file"]]
        body["model"] = tuned if body["model"].startswith("ft:") else "tiny-llama"
        job = submit(daemon, body)
        assert job["status"] == "succeeded" and job["model"] == body["model"], job["error"]
        tuned = job["fine_tuned_model"]
