"""Several devices are several workers; one that cannot be used leaves the pool."""
import os
import signal
import subprocess
import time

from daemon import GRAFTD, chat_rows, job_body


def status_of(daemon, until, timeout=30):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        health = daemon.get("/healthz").json
        if until(health):
            return health
        time.sleep(0.05)
    raise AssertionError(health)


def test_two_devices_train_two_jobs_at_once(own_daemon):
    daemon = own_daemon(arguments=["--device", "cpu,cpu"], threads=1).start()
    status_of(daemon, lambda health: health["workers"].get("ready") == 2)
    rows = daemon.upload(chat_rows(64)).json["id"]
    jobs = [daemon.post("/v1/fine_tuning/jobs", job_body(rows, hyper={"n_epochs": 30})).json["id"] for _ in range(2)]
    for job in jobs:
        assert daemon.wait_step(job, 1)["status"] == "running"
    started = [line for line in daemon.log().splitlines() if "job_started" in line or "started" in line]
    both = [daemon.get("/v1/fine_tuning/jobs/" + job).json for job in jobs]
    assert [job["status"] for job in both] == ["running", "running"], started[-4:]
    assert len(daemon.worker_pids()) == 2
    for job in jobs:
        daemon.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    daemon.stop()


def test_a_worker_that_dies_leaves_the_other_one_at_work(own_daemon):
    daemon = own_daemon(arguments=["--device", "cpu,cpu"], threads=1).start()
    status_of(daemon, lambda health: health["workers"].get("ready") == 2)
    rows = daemon.upload(chat_rows(32)).json["id"]
    jobs = [daemon.post("/v1/fine_tuning/jobs", job_body(rows, hyper={"n_epochs": 12})).json["id"] for _ in range(2)]
    for job in jobs:
        daemon.wait_step(job, 1)
    os.kill(daemon.worker_pids()[0], signal.SIGKILL)
    for job in jobs:
        assert daemon.wait_job(job)["status"] == "succeeded"
    status_of(daemon, lambda health: health["workers"].get("ready") == 2)
    daemon.stop()


def test_a_device_that_cannot_be_used_is_shown_and_its_requests_say_why(own_daemon):
    daemon = own_daemon(arguments=["--device", "cuda:999"]).start()
    health = status_of(daemon, lambda health: health["status"] == "failed")
    assert health["workers"] == {"failed": 1}
    assert daemon.get("/healthz").status == 503
    answer = daemon.post("/v1/completions", {"model": "tiny-llama", "prompt": "a", "max_tokens": 1})
    assert answer.status == 503 and answer.json["error"]["code"] == "device_lost", answer.json
    assert "cuda:999" in answer.json["error"]["message"]
    assert 'graftd_workers{state="failed"} 1' in daemon.get("/metrics").body.decode()
    daemon.stop()


def test_jobs_go_on_beside_a_device_that_cannot_be_used(own_daemon):
    daemon = own_daemon(arguments=["--device", "cuda:999,cpu"]).start()
    status_of(daemon, lambda health: health["status"] == "degraded" and health["workers"].get("ready") == 1)
    rows = daemon.upload(chat_rows(16)).json["id"]
    job = daemon.post("/v1/fine_tuning/jobs", job_body(rows)).json["id"]
    assert daemon.wait_job(job)["status"] == "succeeded"
    assert daemon.post("/v1/completions", {"model": "tiny-llama", "prompt": "a", "max_tokens": 1}).status == 200
    daemon.stop()


def test_bad_lists_of_devices_are_refused(tmp_path, models):
    for device, says in (("gpu", "is no device"), ("cpu,", "is no device"), ("cuda:0,cuda:00", "named twice"), ("cuda", "is no device")):
        done = subprocess.run([GRAFTD, "serve", "--data-dir", str(tmp_path / "data"), "--models", str(models), "--device", device],
                              capture_output=True, text=True, timeout=20)
        assert done.returncode == 2 and says in done.stderr and "engine.device" in done.stderr, done.stderr
