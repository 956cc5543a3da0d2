"""A mixture of experts: tuned with its load-balancing loss, served beside its base, exported, described; what it refuses."""
import concurrent.futures
import json
import shutil
import subprocess

import pytest

from daemon import FIXTURES, GRAFTD, chat_rows, job_body

TARGETS = ["q_proj", "gate", "w1", "w2", "w3"]
HYPER = {"n_epochs": 3, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
METRICS = {"router_aux_loss", "expert_load_max", "expert_load_min"}


def start(daemon, hyper=None, **options):
    file_id = daemon.upload(chat_rows(60)).json["id"]
    body = job_body(file_id, hyper={**HYPER, **(hyper or {})}, **{"model": "tiny-mixtral", "precision": "f32", **options})
    return daemon.post("/v1/fine_tuning/jobs", body)


@pytest.fixture(scope="module")
def job(daemon):
    made = start(daemon, adapter={"type": "lora", "r": 4, "target_modules": TARGETS}, hyper={"router_aux_loss_coef": 0.02})
    assert made.status == 200, made.json
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


def series(daemon, job):
    return {entry["name"]: entry for entry in daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/metrics").json["series"]}


def ask(daemon, model, number):
    answer = daemon.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": f"number {number}"}],
                                                  "temperature": 0, "max_tokens": 12, "logprobs": True})
    assert answer.status == 200, answer.json
    return [(token["token"], token["logprob"]) for token in answer.json["choices"][0]["logprobs"]["content"]]


def test_it_learns_and_tells_how_its_rows_spread(daemon, job):
    told = series(daemon, job)
    loss = told["train_loss"]["last"]
    assert sum(loss[-5:]) < 0.7 * sum(loss[:5])
    assert METRICS <= set(told)
    for most, least in zip(told["expert_load_max"]["last"], told["expert_load_min"]["last"]):
        assert 0 <= least <= 1 <= most <= 2  # of four experts with two a token
    assert all(0.9 < value < 4.5 for value in told["router_aux_loss"]["last"])
    hyper = job["method"]["supervised"]["hyperparameters"]
    assert hyper["router_aux_loss_coef"] == 0.02


def test_the_coefficient_is_the_models_unless_the_job_says_otherwise(daemon):
    made = start(daemon, adapter={"type": "lora", "r": 4}, hyper={"n_epochs": 1, "max_steps": 2})
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    assert job["method"]["supervised"]["hyperparameters"]["router_aux_loss_coef"] == 0.05
    keys = json.loads((daemon.data_dir / "jobs" / job["id"] / "adapter" / "adapter_config.json").read_text())
    assert keys["r"] == 4


def test_answers_in_company_are_those_alone(daemon, job):
    asked = [(model, number) for number in range(6) for model in (job["fine_tuned_model"], "tiny-mixtral")]
    alone = [ask(daemon, *each) for each in asked]
    assert alone[0] != alone[1]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda each: ask(daemon, *each), asked))
    for one, other in zip(alone, together):
        assert [token for token, _ in one] == [token for token, _ in other]
        assert all(abs(a - b) < 1e-4 for (_, a), (_, b) in zip(one, other))


def test_preferences_are_balanced_too(daemon):
    rows = [{"input": {"messages": [{"role": "user", "content": f"number {i}"}]},
             "preferred_output": [{"role": "assistant", "content": "even" if i % 2 == 0 else "odd"}],
             "non_preferred_output": [{"role": "assistant", "content": "odd" if i % 2 == 0 else "even"}]} for i in range(20)]
    file_id = daemon.upload(rows).json["id"]
    made = daemon.post("/v1/fine_tuning/jobs", {
        "model": "tiny-mixtral", "training_file": file_id, "seed": 1, "adapter": {"type": "lora", "r": 2, "target_modules": TARGETS},
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 4, "router_aux_loss_coef": 0.1}}}})
    assert made.status == 200, made.json
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    assert METRICS <= set(series(daemon, job))


def test_bad_coefficients_and_dense_models_are_refused_by_name(daemon):
    made = start(daemon, hyper={"router_aux_loss_coef": -1})
    assert made.status == 400 and made.json["error"]["param"].endswith("router_aux_loss_coef")
    made = start(daemon, model="tiny-llama", hyper={"router_aux_loss_coef": 0.1})
    if made.status == 200:
        error = daemon.wait_job(made.json["id"])["error"]
    else:
        error = made.json["error"]
    assert error["param"].endswith("hyperparameters.router_aux_loss_coef") and "no" in error["message"], error


def graftd(*arguments):
    return subprocess.run([GRAFTD, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_inspect_describes_it():
    for name in ("tiny-mixtral", "tiny-mixtral.gguf"):
        done = graftd("inspect", FIXTURES / "models" / name, "--json", "--tensors")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["architecture"] == "mixtral" and told["parameters"] == 41376
        assert (told["config"]["experts"], told["config"]["experts_per_token"]) == (4, 2)
        names = {tensor["name"]: tensor["shape"] for tensor in told["tensors"]}
        assert names["model.layers.1.block_sparse_moe.experts.3.w2.weight"] == [32, 32]


@pytest.mark.parametrize("base", ["tiny-mixtral", "tiny-mixtral.gguf"])
def test_its_adapter_is_merged_into_the_experts(daemon, job, tmp_path, base):
    adapter = daemon.data_dir / "jobs" / job["id"] / "adapter"
    if base.endswith("gguf"):  # another base by its digest: as PEFT would have written it
        (tmp_path / "adapter").mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(adapter / name, tmp_path / "adapter")
        adapter = tmp_path / "adapter"
    out = tmp_path / ("merged.gguf" if base.endswith("gguf") else "merged")
    done = graftd("export", adapter, "--out", out, "--base", FIXTURES / "models" / base, "--dtype", "f32")
    assert done.returncode == 0, done.stderr
    told = json.loads(graftd("inspect", out, "--json").stdout)
    assert told["architecture"] == "mixtral" and told["parameters"] == 41376


def test_an_adapter_of_experts_is_no_gguf_adapter(daemon, job, tmp_path):
    done = graftd("export", daemon.data_dir / "jobs" / job["id"] / "adapter", "--out", tmp_path / "x.gguf", "--format", "gguf-lora",
                  "--base", FIXTURES / "models" / "tiny-mixtral")
    assert done.returncode != 0 and "experts.0.w1" in done.stderr and "merged" in done.stderr, done.stderr


@pytest.mark.parametrize("change, field", [
    ({"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ({"num_local_experts": 0}, "num_local_experts"),
    ({"num_local_experts": 5}, "gate.weight is [4, 32]"),
    ({"num_experts_per_tok": "two"}, "num_experts_per_tok"),
    ({"router_aux_loss_coef": -0.1}, "router_aux_loss_coef"),
    ({"router_jitter_noise": 0.1}, "router_jitter_noise"),
    ({"intermediate_size": 64}, "experts.0.w1"),
])
def test_configs_that_do_not_fit_are_refused_by_name(tmp_path, change, field):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "models" / "tiny-mixtral", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    done = graftd("inspect", folder)
    assert done.returncode != 0 and field in done.stderr, done.stderr
