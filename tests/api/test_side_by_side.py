"""Jobs of one base that share their passes: each ends with the adapter that it makes alone, whatever happens to the others."""
import hashlib
import os
import signal
import time

import pytest

from daemon import chat_rows, job_body

JOBS = [dict(adapter={"type": "lora", "r": 4}, hyper={"n_epochs": 3, "batch_size": 4, "checkpoint_interval": 5}),
        dict(adapter={"type": "lora", "r": 8, "lora_dropout": 0.3}, seed=11, hyper={"n_epochs": 2, "batch_size": 2, "checkpoint_interval": 7}),
        dict(adapter={"type": "lora", "r": 2, "use_dora": True}, seed=12, hyper={"n_epochs": 4, "batch_size": 8, "eval_interval": 6}),
        dict(adapter={"type": "lora", "r": 16, "target_modules": ["q_proj", "up_proj"]}, seed=13, hyper={"max_steps": 30, "batch_size": 3})]


def submit(daemon, file_id, options):
    options = {**options, "hyper": dict(options["hyper"])}
    made = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, validation_file=file_id, **options))
    assert made.status == 200, made.json
    return made.json["id"]


def digest(daemon, job_id):
    return hashlib.sha256((daemon.data_dir / "jobs" / job_id / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def running(daemon):
    return daemon.get("/healthz").json["jobs"].get("running", 0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, models):
    """The same jobs one after the other."""
    from daemon import Daemon
    daemon = Daemon(tmp_path_factory.mktemp("alone"), models, arguments=["--jobs-per-pass", "1"])
    daemon.start()
    file_id = daemon.upload(chat_rows(40)).json["id"]
    ids = [submit(daemon, file_id, options) for options in JOBS]
    assert running(daemon) <= 1
    jobs = [daemon.wait_job(job_id) for job_id in ids]
    assert [job["status"] for job in jobs] == ["succeeded"] * 4, [job["error"] for job in jobs]
    digests = [digest(daemon, job_id) for job_id in ids]
    daemon.stop()
    assert len(set(digests)) == 4
    return digests


def start(daemon):
    daemon.start()
    file_id = daemon.upload(chat_rows(40)).json["id"]
    ids = [submit(daemon, file_id, options) for options in JOBS]
    for job_id in ids:
        daemon.wait_step(job_id, 2)
    return ids


def assert_as_alone(daemon, ids, alone):
    for job_id, expected in zip(ids, alone):
        job = daemon.wait_job(job_id)
        assert job["status"] == "succeeded", job["error"]
        assert digest(daemon, job_id) == expected


def test_four_jobs_run_at_once_and_end_as_alone(own_daemon, alone):
    daemon = own_daemon()
    ids = start(daemon)
    shown = [daemon.get("/v1/fine_tuning/jobs/" + job_id).json for job_id in ids]
    assert sum(job["status"] == "running" for job in shown) >= 2
    assert all(job["progress"]["step"] >= 2 and job["progress"]["total_steps"] >= 20 for job in shown)
    assert_as_alone(daemon, ids, alone)
    assert running(daemon) == 0
    steps = sum(float(line.split()[-1]) for line in daemon.get("/metrics").body.decode().splitlines() if line.startswith("graftd_job_steps_total"))
    assert steps == 30 + 40 + 20 + 30
    daemon.stop()


def test_one_is_cancelled_and_one_paused_and_the_others_do_not_notice(own_daemon, alone):
    daemon = own_daemon()
    ids = start(daemon)
    assert daemon.post(f"/v1/fine_tuning/jobs/{ids[1]}/cancel").status == 200
    assert daemon.post(f"/v1/fine_tuning/jobs/{ids[3]}/pause").status == 200
    assert daemon.wait_job(ids[3], until=("paused", "succeeded"))["status"] == "paused"
    for at in (0, 2):
        assert daemon.wait_job(ids[at])["status"] == "succeeded" and digest(daemon, ids[at]) == alone[at]
    assert daemon.wait_job(ids[1])["status"] == "cancelled"
    assert daemon.post(f"/v1/fine_tuning/jobs/{ids[3]}/resume").status == 200
    assert daemon.wait_job(ids[3])["status"] == "succeeded" and digest(daemon, ids[3]) == alone[3]
    daemon.stop()


def test_a_killed_worker_is_made_up_for(own_daemon, alone):
    daemon = own_daemon()
    ids = start(daemon)
    assert running(daemon) >= 2
    os.kill(daemon.worker_pids()[0], signal.SIGKILL)
    assert_as_alone(daemon, ids, alone)
    daemon.stop()


def test_a_killed_server_is_made_up_for(own_daemon, alone):
    daemon = own_daemon()
    ids = start(daemon)
    time.sleep(0.1)
    daemon.kill()
    daemon.start()
    assert_as_alone(daemon, ids, alone)
    daemon.stop()


def test_a_stop_in_the_middle_leaves_checkpoints_of_all(own_daemon, alone):
    daemon = own_daemon()
    ids = start(daemon)
    daemon.stop()
    daemon.start()
    assert_as_alone(daemon, ids, alone)
    daemon.stop()


def test_a_job_that_cannot_join_is_next_and_is_not_passed_by(own_daemon):
    daemon = own_daemon()
    daemon.start()
    file_id = daemon.upload(chat_rows(40)).json["id"]
    long, other = dict(hyper={"n_epochs": 12}), dict(adapter={"type": "ia3"}, hyper={"n_epochs": 1})
    first, second, third = submit(daemon, file_id, long), submit(daemon, file_id, other), submit(daemon, file_id, dict(hyper={"n_epochs": 1}))
    daemon.wait_step(first, 3)
    assert [daemon.get("/v1/fine_tuning/jobs/" + job_id).json["status"] for job_id in (second, third)] == ["queued", "queued"]
    ended = [daemon.wait_job(job_id) for job_id in (first, second, third)]
    assert [job["status"] for job in ended] == ["succeeded"] * 3
    assert ended[0]["finished_at"] <= ended[1]["finished_at"] <= ended[2]["finished_at"]
    daemon.stop()


@pytest.mark.parametrize("value", ["0", "9", "two"])
def test_a_wrong_number_of_jobs_per_pass_is_named(tmp_path, models, value):
    import subprocess
    from daemon import GRAFTD
    done = subprocess.run([GRAFTD, "serve", "--data-dir", str(tmp_path / "data"), "--models", str(models), "--jobs-per-pass", value],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20)
    assert done.returncode == 2 and b"--jobs-per-pass" in done.stderr and value.encode() in done.stderr
