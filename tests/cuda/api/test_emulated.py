"""The daemon on an emulated device (a build with -Dcuda=emulated): a job, what it trained in use, and a device that fails."""
import json
import os
import pathlib
import subprocess
import time

import pytest

from daemon import GRAFTD, Daemon, chat_rows, job_body

HYPER = {"n_epochs": 1, "batch_size": 4, "checkpoint_interval": 2}


def start(folder, models, device="cuda:0", **environment):
    return Daemon(folder / "data", models, arguments=["--device", device], environment=environment).start()


def submit(daemon, count=24):
    file_id = daemon.upload(chat_rows(count)).json["id"]
    answer = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, hyper=HYPER))
    assert answer.status == 200, answer.body
    return answer.json["id"]


def losses(daemon, job_id):
    rows = daemon.get(f"/v1/fine_tuning/jobs/{job_id}/metrics?format=csv").body.decode().splitlines()[1:]
    return [float(row.split(",")[2]) for row in rows if row.split(",")[1] == "train_loss"]


def test_a_job_trains_and_its_model_answers_on_the_device(tmp_path, models):
    daemon = start(tmp_path, models)
    try:
        job = daemon.wait_job(submit(daemon))
        assert job["status"] == "succeeded", job["error"]
        assert daemon.get("/healthz").json["device"] == "emulated"
        metrics = daemon.get("/metrics").body.decode()
        assert 'graftd_device_bytes{worker="0",kind="limit"}' in metrics
        planned, peak = job["memory"]["total_bytes"], job["memory"]["peak_bytes"]
        assert abs(planned - peak) < 0.05 * peak, job["memory"]
        curve = losses(daemon, job["id"])
        assert curve[-1] < curve[0]
        for model in ("tiny-llama", job["fine_tuned_model"]):
            body = {"model": model, "messages": [{"role": "user", "content": "number 4"}], "max_tokens": 4, "temperature": 0}
            answers = [daemon.post("/v1/chat/completions", body) for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 200], answers[0].body
            assert answers[0].json["choices"] == answers[1].json["choices"]
    finally:
        daemon.stop()


def test_losses_are_the_processors(tmp_path, models):
    rows = "".join(json.dumps(row) + "\n" for row in chat_rows(16))
    (tmp_path / "rows.jsonl").write_text(rows)
    body = job_body(str(tmp_path / "rows.jsonl"), hyper=HYPER, precision="bf16")
    (tmp_path / "job.json").write_text(json.dumps(body))
    curves = []
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "-")
        subprocess.run([GRAFTD, "run", tmp_path / "job.json", "--models", models, "--out", out, "--device", device, "--metrics", f"{out}.metrics"],
                       check=True, capture_output=True)
        curves.append([json.loads(line)["train_loss"] for line in pathlib.Path(f"{out}.metrics").read_text().splitlines()])
    assert len(curves[0]) == len(curves[1]) == 4
    assert all(abs(a - b) < 0.02 * a for a, b in zip(*curves))


@pytest.mark.parametrize("setting,words", [({"EMU_DRIVER": "0"}, "no NVIDIA driver"), ({"EMU_CAPABILITY": "7.0"}, "compute capability 7.0")])
def test_a_device_that_cannot_be_used_is_named(tmp_path, models, setting, words):
    (tmp_path / "job.json").write_text(json.dumps(job_body("none.jsonl")))
    done = subprocess.run([GRAFTD, "run", tmp_path / "job.json", "--models", models, "--out", tmp_path / "out", "--device", "cuda:0"],
                          capture_output=True, text=True, env={**os.environ, **setting})
    assert done.returncode != 0 and words in done.stderr and "cuda:0" in done.stderr


def test_a_sick_device_leaves_the_pool_and_its_job_waits(tmp_path, models):
    daemon = start(tmp_path, models, EMU_FAULT="step:1500:214")
    try:
        job_id = submit(daemon)
        end = time.monotonic() + 60
        while daemon.get("/healthz").json["status"] != "failed" and time.monotonic() < end:
            time.sleep(0.1)
        health = daemon.get("/healthz")
        assert health.status == 503 and health.json["workers"] == {"failed": 1}, health.body
        job = daemon.get("/v1/fine_tuning/jobs/" + job_id).json
        assert job["status"] not in ("succeeded", "failed"), job
        answer = daemon.post("/v1/completions", {"model": "tiny-llama", "prompt": "a", "max_tokens": 1})
        assert answer.status == 503 and answer.json["error"]["code"] == "device_lost" and "ECC" in answer.json["error"]["message"]
    finally:
        daemon.stop()
