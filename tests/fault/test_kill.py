"""kill -9 of worker and server, SIGTERM, full disks, silent clients: nothing acknowledged is lost, nothing is half there."""
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

import pytest

from daemon import Daemon, chat_rows, job_body

HYPER = {"n_epochs": 3, "batch_size": 4, "checkpoint_interval": 5}
LORA = {"type": "lora", "r": 8, "lora_dropout": 0.1}
OTHERS = [{"type": "lora", "r": 4, "loraplus_lr_ratio": 8}, {"type": "ia3"}, {"type": "ln_tuning"},
          {"type": "vera", "r": 32, "vera_dropout": 0.1}]


def submit(daemon, adapter=LORA, **hyper):
    file_id = daemon.upload(chat_rows(60)).json["id"]
    body = job_body(file_id, validation_file=file_id, adapter=adapter, hyper={**HYPER, "gradient_leaves": 2, **hyper})
    answer = daemon.post("/v1/fine_tuning/jobs", body)
    assert answer.status == 200, answer.body
    return answer.json["id"]


def adapter_digests(daemon, job_id):
    """Hash of every adapter file of the finished job, the job's own id taken out."""
    folder = daemon.data_dir / "jobs" / job_id / "adapter"
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in ("adapter_model.safetensors", "adapter_config.json", "README.md")}


def losses(daemon, job_id):
    rows = daemon.get(f"/v1/fine_tuning/jobs/{job_id}/metrics?format=csv").body.decode().splitlines()[1:]
    return {int(r.split(",")[0]): r.split(",")[2] for r in rows if r.split(",")[1] == "train_loss"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, models):
    """What an uninterrupted run gives."""
    daemon = Daemon(tmp_path_factory.mktemp("reference") / "data", models).start()
    job_id = submit(daemon)
    assert daemon.wait_job(job_id)["status"] == "succeeded"
    result = adapter_digests(daemon, job_id), losses(daemon, job_id)
    daemon.stop()
    return result


def check_finished(daemon, job_id, reference):
    job = daemon.wait_job(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert adapter_digests(daemon, job_id) == reference[0]
    assert losses(daemon, job_id) == reference[1]
    events = [e["message"] for e in daemon.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=100").json["data"]]
    assert sum("completed" in message for message in events) == 1
    models = [m["id"] for m in daemon.get("/v1/models").json["data"]]
    assert models.count(job["fine_tuned_model"]) == 1
    answer = daemon.post("/v1/chat/completions", {"model": job["fine_tuned_model"], "max_tokens": 4,
                                                  "messages": [{"role": "user", "content": "number 2"}]})
    assert answer.status == 200


@pytest.mark.parametrize("step", [2, 7, 21, 44])
def test_kill_of_the_worker_continues_bit_for_bit(own_daemon, reference, step):
    daemon = own_daemon().start()
    job_id = submit(daemon)
    daemon.wait_step(job_id, step)
    for pid in daemon.worker_pids():
        os.kill(pid, signal.SIGKILL)
    check_finished(daemon, job_id, reference)
    daemon.stop()


@pytest.mark.parametrize("adapter", OTHERS, ids=lambda adapter: adapter["type"])
def test_every_method_continues_bit_for_bit(own_daemon, adapter):
    daemon = own_daemon().start()
    whole = submit(daemon, adapter)
    assert daemon.wait_job(whole)["status"] == "succeeded"
    killed = submit(daemon, adapter)
    daemon.wait_step(killed, 13)
    for pid in daemon.worker_pids():
        os.kill(pid, signal.SIGKILL)
    check_finished(daemon, killed, (adapter_digests(daemon, whole), losses(daemon, whole)))
    assert daemon.get(f"/v1/fine_tuning/jobs/{killed}").json["attempt"] == 2
    daemon.stop()


@pytest.mark.parametrize("step", [1, 8, 33])
def test_kill_of_the_server_continues_bit_for_bit(own_daemon, reference, step):
    daemon = own_daemon().start()
    job_id = submit(daemon)
    daemon.wait_step(job_id, step)
    workers = daemon.worker_pids()
    daemon.kill()
    time.sleep(0.3)
    assert not any(pathlib.Path(f"/proc/{pid}").exists() and
                   pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z" for pid in workers)
    daemon.start()
    check_finished(daemon, job_id, reference)
    daemon.stop()


def test_sigterm_writes_a_checkpoint_and_goes_on_from_it(own_daemon, reference):
    daemon = own_daemon().start()
    job_id = submit(daemon)
    daemon.wait_step(job_id, 12)
    daemon.stop()
    steps = sorted(int(p.name[5:]) for p in (daemon.data_dir / "jobs" / job_id / "state").iterdir() if p.name.startswith("step-"))
    assert steps[-1] >= 12
    daemon.start()
    check_finished(daemon, job_id, reference)
    daemon.stop()


def test_pause_survives_a_restart(own_daemon, reference):
    daemon = own_daemon().start()
    job_id = submit(daemon)
    daemon.wait_step(job_id, 9)
    assert daemon.post(f"/v1/fine_tuning/jobs/{job_id}/pause").status == 200
    daemon.wait_job(job_id, until=("paused",))
    daemon.kill()
    daemon.start()
    assert daemon.get(f"/v1/fine_tuning/jobs/{job_id}").json["status"] == "paused"
    assert daemon.post(f"/v1/fine_tuning/jobs/{job_id}/resume").json["status"] == "queued"
    check_finished(daemon, job_id, reference)
    daemon.stop()


def test_a_damaged_checkpoint_is_passed_over(own_daemon, reference):
    daemon = own_daemon().start()
    job_id = submit(daemon)
    daemon.wait_step(job_id, 17)
    daemon.kill()
    states = sorted((daemon.data_dir / "jobs" / job_id / "state").glob("step-*"), key=lambda p: int(p.name[5:]))
    target = states[-1] / "optimizer.safetensors"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    daemon.start()
    check_finished(daemon, job_id, reference)
    events = daemon.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=100").json["data"]
    assert any("damaged" in e["message"] for e in events)
    daemon.stop()


def test_acknowledged_changes_survive_kills_at_random_moments(own_daemon):
    daemon = own_daemon().start()
    generator = random.Random(5)
    files, jobs = {}, {}
    for _ in range(8):
        deadline = time.monotonic() + generator.uniform(0.1, 0.8)
        killer = subprocess.Popen(["sh", "-c", f"sleep {deadline - time.monotonic():.3f}; kill -9 {daemon.process.pid}"])
        try:
            while True:
                rows = chat_rows(generator.randint(1, 20))
                made = daemon.upload(rows)
                if made.status == 200:
                    files[made.json["id"]] = rows
                    job = daemon.post("/v1/fine_tuning/jobs", job_body(made.json["id"]))
                    if job.status == 200:
                        jobs[job.json["id"]] = "created"
                        if generator.random() < 0.7:
                            if daemon.post(f"/v1/fine_tuning/jobs/{job.json['id']}/cancel").status == 200:
                                jobs[job.json["id"]] = "cancelled"
        except (OSError, ValueError, ConnectionError, Exception) as error:
            if isinstance(error, AssertionError):
                raise
        killer.wait()
        daemon.kill()
        daemon.start()
        for file_id, rows in files.items():
            content = daemon.get(f"/v1/files/{file_id}/content")
            assert content.status == 200 and [json.loads(line) for line in content.body.splitlines()] == rows
        for job_id, state in jobs.items():
            job = daemon.get(f"/v1/fine_tuning/jobs/{job_id}")
            assert job.status == 200 and (state != "cancelled" or job.json["status"] == "cancelled")
        assert set(files) <= {f["id"] for f in daemon.get("/v1/files").json["data"]}
    for job_id in jobs: # until nobody writes
        if daemon.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").status not in (200, 409):
            raise AssertionError(job_id)
    daemon.wait_job(next(reversed(jobs)))
    daemon.stop()
    daemon.start()
    listed = {f["id"] for f in daemon.get("/v1/files").json["data"]}
    assert listed == {p.name for p in (daemon.data_dir / "files").iterdir()}
    daemon.stop()
    for name in ("state.db", "metrics.db"):
        check = subprocess.run(["sqlite3", daemon.data_dir / name, "PRAGMA integrity_check; PRAGMA foreign_key_check;"],
                               stdout=subprocess.PIPE, check=True)
        assert check.stdout.strip() == b"ok"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", mount]).returncode != 0:
        pytest.fail("a tmpfs cannot be mounted: run the tests as root")
    yield mount
    subprocess.run(["umount", "-l", mount])


def test_a_full_disk_during_an_upload_is_507_and_loses_nothing(small_disk, models):
    daemon = Daemon(small_disk / "data", models).start()
    kept = daemon.upload(chat_rows(10)).json["id"]
    big = [{"prompt": "x" * 1000, "completion": str(i)} for i in range(60000)]
    answer = daemon.upload(big)
    assert answer.status == 507 and answer.json["error"]["code"] == "disk_full"
    assert len(daemon.get("/v1/files").json["data"]) == 1
    assert daemon.get(f"/v1/files/{kept}/content").status == 200
    assert daemon.upload(chat_rows(10)).status == 200
    assert list((daemon.data_dir / "tmp").iterdir()) == []
    daemon.stop()


def test_a_full_disk_during_a_checkpoint_fails_the_job_and_only_it(small_disk, models):
    daemon = Daemon(small_disk / "data", models).start()
    file_id = daemon.upload(chat_rows(40)).json["id"]
    kept = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, hyper={"n_epochs": 1})).json["id"]
    assert daemon.wait_job(kept)["status"] == "succeeded"
    used = sum(p.stat().st_blocks * 512 for p in small_disk.rglob("*") if p.is_file())
    (small_disk / "ballast").write_bytes(b"x" * max(0, (24 << 20) - used - (3 << 19)))
    job_id = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, adapter={"r": 32}, hyper={"n_epochs": 9, "checkpoint_interval": 1})).json["id"]
    job = daemon.wait_job(job_id)
    assert job["status"] == "failed" and job["error"]["code"] == "disk_full", job
    assert daemon.get(f"/v1/fine_tuning/jobs/{kept}").status == 200
    assert daemon.get("/healthz").status == 200
    (small_disk / "ballast").unlink()
    again = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, hyper={"n_epochs": 1})).json["id"]
    assert daemon.wait_job(again)["status"] == "succeeded"
    assert daemon.get(f"/v1/fine_tuning/jobs/{kept}").json["status"] == "succeeded"
    daemon.stop()


def test_silent_and_half_open_clients_do_not_hold_the_daemon(own_daemon):
    daemon = own_daemon().start()
    links = []
    for start in (b"", b"GET /heal", b"POST /v1/files HTTP/1.1\r\nHost: x\r\n",
                  b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                  b"Content-Length: 1000\r\n\r\n--b\r\n" % daemon.port):
        link = socket.create_connection(("127.0.0.1", daemon.port))
        link.sendall(start)
        links.append(link)
    body = json.dumps({"model": "tiny-llama", "prompt": "a", "max_tokens": 240, "stream": True, "ignore_eos": True, "n": 8}).encode()
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    stuck.connect(("127.0.0.1", daemon.port))
    stuck.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                  b"Content-Length: %d\r\n\r\n" % (daemon.port, len(body)) + body)
    for _ in range(20):
        assert daemon.get("/healthz", timeout=5).status == 200
        assert daemon.post("/v1/completions", {"model": "tiny-llama", "prompt": "b", "max_tokens": 2}).status == 200
    daemon.stop()
    for link in links + [stuck]:
        link.close()


def test_a_broken_model_fails_its_request_not_the_daemon(own_daemon, tmp_path):
    models = tmp_path / "broken-models"
    models.mkdir()
    (models / "torn").mkdir()
    (models / "torn" / "config.json").write_text("{\"model_type\": \"llama\"")
    (models / "junk.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(range(200)))
    daemon = own_daemon()
    daemon.models = models
    daemon.start()
    for model in ("torn", "junk"):
        answer = daemon.post("/v1/completions", {"model": model, "prompt": "a"})
        assert answer.status == 400 and answer.json["error"]["code"] == "bad_model", answer.body
        file_id = daemon.upload(chat_rows(4)).json["id"]
        made = daemon.post("/v1/fine_tuning/jobs", {**job_body(file_id), "model": model})
        if made.status == 200:
            job = daemon.wait_job(made.json["id"])
            assert job["status"] == "failed" and job["error"]["code"] == "bad_model"
        else:
            assert made.status == 400
    daemon.stop()
