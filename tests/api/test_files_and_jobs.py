"""Files, job requests and models: what is refused, and how it is said."""
import json

import pytest

from daemon import chat_rows, job_body

BAD_FILES = {
    "empty": b"",
    "spaces": b"  \n \n",
    "not json": b"hello\n",
    "trailing": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]} x\n',
    "no assistant": b'{"messages": [{"role": "user", "content": "a"}]}\n',
    "bad role": b'{"messages": [{"role": "wizard", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
    "duplicate key": b'{"prompt": "a", "prompt": "b", "completion": "c"}\n',
    "nul": b'{"prompt": "a\\u0000", "completion": "c"}\n',
    "bad utf-8": b'{"prompt": "\xff", "completion": "c"}\n',
    "deep": b"[" * 5000 + b"]" * 5000 + b"\n",
    "utf-16": "{}".encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "number": b"5\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_training_file_is_refused_with_its_line(daemon, name):
    before = daemon.get("/v1/files").json["data"]
    answer = daemon.upload(BAD_FILES[name])
    assert answer.status == 400, answer.body
    assert answer.json["error"]["message"] and answer.json["error"]["param"]
    assert daemon.get("/v1/files").json["data"] == before


def test_every_bad_row_is_reported(daemon):
    good = json.dumps(chat_rows(1)[0]).encode() + b"\n"
    answer = daemon.upload(good * 2 + b"{}\n" + good + b'{"messages": 5}\n')
    message = answer.json["error"]["message"]
    assert answer.status == 400 and "line 3" in message and "line 5" in message and "2 bad rows" in message


@pytest.mark.parametrize("row", [
    {"prompt": "2+2=", "completion": "4"},
    {"instruction": "add", "input": "2 2", "output": "4"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                  {"role": "assistant", "content": "a", "weight": 0}, {"role": "user", "content": "u"},
                  {"role": "assistant", "content": "b", "weight": 1}]},
])
def test_known_row_formats_are_accepted_and_previewed(daemon, row):
    uploaded = daemon.upload([row])
    assert uploaded.status == 200, uploaded.body
    preview = daemon.post(f"/v1/files/{uploaded.json['id']}/render", {"model": "tiny-llama", "row": 1})
    assert preview.status == 200, preview.body
    tokens = preview.json["tokens"]
    trained = "".join(t["text"] for t in tokens if t["weight"] > 0 and isinstance(t["text"], str))
    assert 0 < sum(t["weight"] > 0 for t in tokens) < len(tokens)
    assert {"2+2=": "4", "add": "4"}.get(row.get("prompt") or row.get("instruction"), "") in trained
    if "messages" in row:
        assert "b" in trained and "a" not in trained.replace("<|im_end|>", "")


def test_file_life(daemon):
    rows = chat_rows(3)
    made = daemon.upload(rows, filename="päth/../x \".jsonl".replace('"', ""))
    assert made.status == 200
    file = made.json
    assert file["object"] == "file" and file["purpose"] == "fine-tune" and file["status"] == "processed"
    content = daemon.get(f"/v1/files/{file['id']}/content")
    assert [json.loads(line) for line in content.body.splitlines()] == rows
    assert daemon.get(f"/v1/files/{file['id']}").json == file
    assert daemon.call("DELETE", f"/v1/files/{file['id']}").json == {"id": file["id"], "object": "file", "deleted": True}
    assert daemon.get(f"/v1/files/{file['id']}").status == 404


@pytest.mark.parametrize("path", ["/v1/files/..%2f..%2fstate.db", "/v1/files/%2e%2e/content", "/v1/files/a%00b",
                                  "/v1/files/file-none", "/v1/models/%2fetc%2fpasswd", "/v1/models/tiny-llama%00",
                                  "/v1/fine_tuning/jobs/..", "/v1/../v1/files", "/v1/files/%ff"])
def test_strange_ids_never_reach_the_disk(daemon, path):
    answer = daemon.get(path)
    assert answer.status in (400, 404) and "error" in answer.json


@pytest.mark.parametrize("change,param", [
    ({"model": None}, "model"), ({"model": "none"}, "model"), ({"training_file": "file-none"}, "training_file"),
    ({"training_file": 5}, "training_file"), ({"validation_file": "file-none"}, "validation_file"),
    ({"seed": -1}, "seed"), ({"seed": 2147483648}, "seed"), ({"suffix": "x" * 65}, "suffix"), ({"suffix": "a:b"}, "suffix"),
    ({"metadata": {"k": 5}}, "metadata"), ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ({"made_up": 1}, "made_up"), ({"adapter": {"type": "lorra"}}, "adapter.type"), ({"adapter": {"r": 0}}, "adapter.r"),
    ({"adapter": {"rank": 4}}, "adapter.rank"), ({"adapter": {"lora_dropout": 1.0}}, "adapter.lora_dropout"),
    ({"adapter": {"target_modules": []}}, "adapter.target_modules"),
    ({"method": {"type": "reinforcement"}}, "method.type"), ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
    ({"precision": "int3"}, "precision"), ({"data": {"overlong": "cut"}}, "data.overlong"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    ({"hyper": {"n_epochs": 51}}, "method.supervised.hyperparameters.n_epochs"),
    ({"hyper": {"batch_size": 0}}, "method.supervised.hyperparameters.batch_size"),
    ({"hyper": {"learning_rate_multiplier": 0}}, "method.supervised.hyperparameters.learning_rate_multiplier"),
    ({"hyper": {"n_epoch": 1}}, "method.supervised.hyperparameters.n_epoch"),
    ({"hyper": {"gradient_leaves": 3}}, "method.supervised.hyperparameters.gradient_leaves"),
])
def test_a_bad_job_request_names_its_field(daemon, change, param):
    file_id = daemon.upload(chat_rows(4)).json["id"]
    hyper = change.pop("hyper", None)
    body = {**job_body(file_id, hyper=hyper or {}), **change}
    if hyper and "learning_rate_multiplier" in hyper:
        del body["method"]["supervised"]["hyperparameters"]["learning_rate"]
    answer = daemon.post("/v1/fine_tuning/jobs", body)
    assert answer.status in (400, 404), answer.body
    assert answer.json["error"]["param"] == param or answer.json["error"]["param"].startswith(param), answer.json


@pytest.mark.parametrize("change,part", [
    ({"adapter": {"r": 500}}, "rank 500"), ({"adapter": {"target_modules": ["nothing"]}}, "q_proj"),
    ({"data": {"max_length": 8}}, "line"),
])
def test_what_only_the_model_can_tell_fails_the_job_with_the_reason(daemon, change, part):
    file_id = daemon.upload(chat_rows(4)).json["id"]
    answer = daemon.post("/v1/fine_tuning/jobs", {**job_body(file_id), **change})
    if answer.status == 200:
        job = daemon.wait_job(answer.json["id"])
        assert job["status"] == "failed" and part in job["error"]["message"], job["error"]
    else:
        assert answer.status == 400 and part in answer.json["error"]["message"]


@pytest.mark.parametrize("policy,status", [("error", "failed"), ("truncate", "succeeded"), ("drop", "succeeded")])
def test_over_long_rows_follow_the_policy_and_are_counted(daemon, policy, status):
    rows = chat_rows(6) + [{"messages": [{"role": "user", "content": "long " * 400}, {"role": "assistant", "content": "x " * 90}]}]
    file_id = daemon.upload(rows).json["id"]
    made = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, data={"overlong": policy}, hyper={"n_epochs": 1}))
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == status, job
    texts = " ".join(e["message"] for e in daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json["data"])
    if policy == "error":
        assert "line 7" in job["error"]["message"]
    else:
        assert "1 over-long" in texts


def test_a_loss_that_is_not_finite_stops_the_job_with_its_rows(daemon):
    file_id = daemon.upload(chat_rows(24)).json["id"]
    made = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, adapter={"r": 4, "lora_alpha": 1e6}, hyper={
        "n_epochs": 50, "learning_rate": 100.0, "max_grad_norm": 0, "lr_scheduler_type": "constant", "warmup_ratio": 0}))
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "failed", job
    assert "not finite at step" in job["error"]["message"] and "lines" in job["error"]["message"]


def test_an_idempotency_key_makes_one_job(daemon):
    body = job_body(daemon.upload(chat_rows(4)).json["id"])
    first = daemon.post("/v1/fine_tuning/jobs", body, headers={"Idempotency-Key": "once"})
    second = daemon.post("/v1/fine_tuning/jobs", body, headers={"Idempotency-Key": "once"})
    assert first.status == second.status == 200 and first.json["id"] == second.json["id"]


def test_tuned_models_can_be_deleted_and_bases_not(daemon):
    made = daemon.post("/v1/fine_tuning/jobs", job_body(daemon.upload(chat_rows(8)).json["id"]))
    model = daemon.wait_job(made.json["id"])["fine_tuned_model"]
    shown = daemon.get(f"/v1/models/{model}").json
    assert shown["object"] == "model" and shown["parent"] == "tiny-llama"
    assert daemon.call("DELETE", f"/v1/models/{model}").json["deleted"] is True
    assert daemon.get(f"/v1/models/{model}").status == 404
    assert daemon.post("/v1/completions", {"model": model, "prompt": "a"}).status == 404
    assert daemon.call("DELETE", "/v1/models/tiny-llama").status in (400, 403, 409)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"a":1,"a":2}', b'{"a":"\\ud800"}', b'{"a":1} x', b"\xff", b'{"a":1e999}',
                                  b"[" * 100000])
def test_broken_json_is_400(daemon, body):
    answer = daemon.post("/v1/fine_tuning/jobs", body, headers={"Content-Type": "application/json"})
    assert answer.status == 400 and answer.json["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_413(daemon):
    answer = daemon.post("/v1/fine_tuning/jobs", b'{"a":"' + b"x" * (20 << 20) + b'"}', headers={"Content-Type": "application/json"})
    assert answer.status == 413 and answer.json["error"]["code"]


def test_wrong_method_and_path(daemon):
    answer = daemon.call("PUT", "/v1/files")
    assert answer.status == 405 and "GET" in answer.headers["allow"]
    assert daemon.get("/v1/nothing").status == 404


def test_health_metrics_and_contract(daemon):
    health = daemon.get("/healthz")
    assert health.status == 200 and health.json["status"] == "ok"
    assert "graftd_" in daemon.get("/metrics").body.decode()
    assert daemon.get("/openapi.yaml").body.startswith(b"openapi:")


def test_keys_are_asked_for_and_projects_are_apart(own_daemon, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# team keys\nsk-aaaaaaaaaaaaaaaaaaaaaaaa alpha\nsk-bbbbbbbbbbbbbbbbbbbbbbbb beta\n")
    daemon = own_daemon(arguments=["--api-key-file", str(keys)]).start()
    assert daemon.get("/healthz").status == 200
    for path in ("/v1/models", "/v1/files", "/metrics", "/v1/fine_tuning/jobs", "/openapi.yaml"):
        answer = daemon.get(path)
        assert answer.status == 401 and answer.json["error"]["code"] == "invalid_api_key", path
    alpha = {"Authorization": "Bearer sk-aaaaaaaaaaaaaaaaaaaaaaaa"}
    beta = {"Authorization": "Bearer sk-bbbbbbbbbbbbbbbbbbbbbbbb"}
    daemon.key = "sk-aaaaaaaaaaaaaaaaaaaaaaaa"
    file_id = daemon.upload(chat_rows(4)).json["id"]
    job_id = daemon.post("/v1/fine_tuning/jobs", job_body(file_id)).json["id"]
    assert daemon.wait_job(job_id)["status"] == "succeeded"
    model = daemon.get(f"/v1/fine_tuning/jobs/{job_id}").json["fine_tuned_model"]
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/fine_tuning/jobs/{job_id}",
                 f"/v1/fine_tuning/jobs/{job_id}/events", f"/v1/fine_tuning/jobs/{job_id}/checkpoints",
                 f"/v1/fine_tuning/jobs/{job_id}/metrics", f"/v1/models/{model}"):
        assert daemon.get(path, headers=alpha).status == 200, path
        assert daemon.get(path, headers=beta).status == 404, path
    assert daemon.get("/v1/files", headers=beta).json["data"] == []
    assert daemon.post("/v1/completions", {"model": model, "prompt": "a"}, headers=beta).status == 404
    for path in (f"/v1/fine_tuning/jobs/{job_id}/cancel", f"/v1/fine_tuning/jobs/{job_id}/pause"):
        assert daemon.post(path, headers=beta).status == 404
    assert daemon.call("DELETE", f"/v1/files/{file_id}", headers=beta).status == 404
    assert "sk-aaaa" not in daemon.log()
    daemon.stop()
    for path in daemon.data_dir.rglob("*"):
        if path.is_file():
            assert b"sk-aaaa" not in path.read_bytes()
