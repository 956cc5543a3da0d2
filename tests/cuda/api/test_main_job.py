"""The main job on an emulated device, as a user runs it: the CPU's losses and answers in f32, a resume to the bit, and a job that
outlives its device."""
import hashlib
import os
import signal
import time

from daemon import Daemon, chat_rows, job_body


def start(folder, models, device, **environment):
    daemon = Daemon(folder, models, arguments=["--device", device], threads=1, environment={"GRAFTD_COMPUTE": "f32", **environment}).start()
    end = time.monotonic() + 60
    while daemon.get("/healthz").json["workers"].get("ready", 0) < 1 + device.count(","):
        assert time.monotonic() < end, daemon.get("/healthz").json
        time.sleep(0.05)
    return daemon


def tune(daemon):
    rows = daemon.upload(chat_rows(12)).json["id"]
    body = job_body(rows, hyper={"n_epochs": 2, "batch_size": 4}, validation_file=rows)
    return daemon.post("/v1/fine_tuning/jobs", body).json["id"]


def told(daemon, job):
    rows = [row.split(",")[:3] for row in daemon.get(f"/v1/fine_tuning/jobs/{job}/metrics?format=csv").body.decode().splitlines()[1:]]
    return {(name, int(step)): float(value) for step, name, value in rows if name in ("train_loss", "valid_loss", "grad_norm")}


def answer(daemon, model):
    body = {"model": model, "prompt": "number 4", "max_tokens": 6, "temperature": 0}
    return daemon.post("/v1/completions", body, timeout=300).json["choices"][0]["text"]


def adapter(daemon):
    [path] = [path for path in daemon.data_dir.rglob("adapter_model.safetensors") if path.parent.name == "adapter"]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def whole(folder, models, device):
    daemon = start(folder, models, device)
    done = daemon.wait_job(tune(daemon), timeout=400)
    assert done["status"] == "succeeded", done["error"]
    result = told(daemon, done["id"]), answer(daemon, done["fine_tuned_model"]), adapter(daemon)
    daemon.stop()
    return result


def test_losses_and_answers_are_the_cpus_and_a_killed_worker_repeats_every_bit(tmp_path, models):
    cpu, cuda = whole(tmp_path / "cpu", models, "cpu"), whole(tmp_path / "cuda", models, "cuda:0")
    assert cpu[0].keys() == cuda[0].keys() and len(cpu[0]) >= 9
    assert all(abs(cuda[0][point] - value) < 1e-3 * max(abs(value), 1e-3) for point, value in cpu[0].items())
    assert cpu[1] == cuda[1]
    daemon = start(tmp_path / "killed", models, "cuda:0")
    job = tune(daemon)
    daemon.wait_step(job, 3, timeout=300)
    os.kill(daemon.worker_pids()[0], signal.SIGKILL)
    assert daemon.wait_job(job, timeout=400)["status"] == "succeeded"
    assert adapter(daemon) == cuda[2]
    daemon.stop()


def test_a_job_outlives_its_device(tmp_path, models):
    daemon = start(tmp_path / "data", models, "cuda:0,cpu", EMU_FAULT="cudaStreamSynchronize:40:214")
    assert daemon.wait_job(tune(daemon), timeout=400)["status"] == "succeeded"
    health = daemon.get("/healthz").json
    assert health["status"] == "degraded" and health["workers"]["failed"] == 1, health
    daemon.stop()
