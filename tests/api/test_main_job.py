"""The main job with the official openai package: upload, job, events, checkpoints, and the tuned model's answers."""
import json

from daemon import chat_rows

HYPER = {"n_epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "checkpoint_interval": 10, "eval_interval": 10}


def start_job(client, tmp_path, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(60)))
    with open(path, "rb") as rows:
        training = client.files.create(file=rows, purpose="fine-tune")
    assert training.status == "processed" and training.bytes == path.stat().st_size
    return client.fine_tuning.jobs.create(
        model="tiny-llama", training_file=training.id, validation_file=training.id, suffix="parity", seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPER}}, metadata={"test": "main"},
        extra_body={"adapter": {"type": "lora", "r": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}}, **options)


def wait(client, daemon, job):
    daemon.wait_job(job.id)
    return client.fine_tuning.jobs.retrieve(job.id)


def test_upload_tune_watch_and_stream(client, daemon, tmp_path):
    job = start_job(client, tmp_path)
    assert job.object == "fine_tuning.job" and job.status in ("validating_files", "queued", "running")
    assert job.fine_tuned_model is None and job.seed == 3 and job.metadata == {"test": "main"}
    job = wait(client, daemon, job)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft:tiny-llama:") and ":parity:" in job.fine_tuned_model
    assert job.trained_tokens > 0 and job.finished_at >= job.created_at
    assert job.hyperparameters.n_epochs == 2 and job.hyperparameters.batch_size == 4

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=7))
    messages = [event.message for event in events]
    assert "succe" in messages[0].lower() or "complet" in messages[0].lower()
    metrics = [event for event in events if event.type == "metrics"]
    assert len(metrics) >= 20 and {"step", "total_steps", "train_loss"} <= set(metrics[0].data)
    assert len({event.id for event in events}) == len(events)

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [c.step_number for c in checkpoints] == [30, 20, 10]
    assert all(c.fine_tuned_model_checkpoint.startswith("ft:") for c in checkpoints)

    losses = [event.data["train_loss"] for event in reversed(metrics)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])

    results = client.files.content(job.result_files[0]).text
    assert results.splitlines()[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(results.splitlines()) == 31

    stream = client.chat.completions.create(model=job.fine_tuned_model, stream=True, temperature=0, max_tokens=8,
                                            stream_options={"include_usage": True},
                                            messages=[{"role": "user", "content": "number 4"}])
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    whole = client.chat.completions.create(model=job.fine_tuned_model, temperature=0, max_tokens=8,
                                           messages=[{"role": "user", "content": "number 4"}])
    assert whole.choices[0].message.content == text
    assert whole.choices[0].message.content in ("even", "odd")
    assert len({chunk.id for chunk in chunks}) == 1

    # a checkpoint is a model too
    again = client.chat.completions.create(model=checkpoints[0].fine_tuned_model_checkpoint, temperature=0, max_tokens=8,
                                           messages=[{"role": "user", "content": "number 4"}])
    assert again.choices[0].message.content == text
    assert job.fine_tuned_model in [model.id for model in client.models.list()]


def test_the_list_pages_through_all_jobs(client, daemon, tmp_path):
    ids = [start_job(client, tmp_path, timeout=60).id for _ in range(3)]
    listed = [job.id for job in client.fine_tuning.jobs.list(limit=1)]
    assert listed[:3] == ids[::-1]
    for job_id in ids:
        assert client.fine_tuning.jobs.cancel(job_id).status == "cancelled"
        assert client.fine_tuning.jobs.retrieve(job_id).status == "cancelled"


def test_events_stream_with_replay(client, daemon, tmp_path):
    job = start_job(client, tmp_path)
    body = daemon.get(f"/v1/fine_tuning/jobs/{job.id}/events?stream=true", timeout=120).body.decode()
    frames = [dict(line.split(": ", 1) for line in frame.split("\n") if ": " in line and not line.startswith(":"))
              for frame in body.strip().split("\n\n")]
    ids = [int(frame["id"]) for frame in frames if "id" in frame]
    assert ids == sorted(ids) and len(ids) > 30
    middle = ids[len(ids) // 2]
    rest = daemon.get(f"/v1/fine_tuning/jobs/{job.id}/events?stream=true", headers={"Last-Event-ID": str(middle)}).body.decode()
    again = [int(line[4:]) for line in rest.split("\n") if line.startswith("id: ")]
    assert again == [i for i in ids if i > middle]


def test_metrics_are_reduced_on_the_server(client, daemon, tmp_path):
    job = start_job(client, tmp_path)
    wait(client, daemon, job)
    answer = daemon.get(f"/v1/fine_tuning/jobs/{job.id}/metrics?buckets=10&smooth=0.5").json
    series = {entry["name"]: entry for entry in answer["series"]}
    assert {"train_loss", "learning_rate", "grad_norm", "valid_loss"} <= set(series)
    loss = series["train_loss"]
    assert len(loss["x"]) <= 10 and sum(loss["count"]) == 30
    assert all(low <= last <= high for low, last, high in zip(loss["min"], loss["last"], loss["max"]))
    assert answer["job_id"] == job.id


def test_pause_and_resume(client, daemon, tmp_path):
    job = start_job(client, tmp_path)
    daemon.wait_step(job.id, 3)
    assert client.fine_tuning.jobs.pause(job.id).status in ("pausing", "paused")
    paused = daemon.wait_job(job.id, until=("paused", "succeeded"))
    if paused["status"] == "paused":
        assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert daemon.wait_job(job.id)["status"] == "succeeded"
    answer = daemon.post(f"/v1/fine_tuning/jobs/{job.id}/resume")
    assert answer.status == 409 and answer.headers["x-should-retry"] == "false"
