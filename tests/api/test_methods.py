"""Every method of GET /v1/tuning/methods: a tiny job learns, and its model answers, alone and beside other methods."""
import concurrent.futures
import json
import subprocess
import time

import pytest

from daemon import FIXTURES, GRAFTD, chat_rows, job_body
from test_contract import DOCUMENT, check, schema_of

# What a method, or a variant of one ("type"), needs to learn the tiny task; a method that the listing has and this table
# lacks fails the test.
SETTINGS = {
    "lora": ({"r": 8, "loraplus_lr_ratio": 4}, 5e-3),
    "dora": ({"type": "lora", "r": 8, "use_dora": True, "init_lora_weights": "gaussian", "lora_dropout": 0.05}, 5e-3),
    "pissa": ({"type": "lora", "r": 8, "init_lora_weights": "pissa"}, 5e-3),
    "kasa": ({"type": "lora", "r": 4, "use_kasa": True, "kasa_gamma": 0.01}, 2e-2),
    "loha": ({"r": 4}, 2e-2),
    "lokr": ({"r": 4, "alpha": 8}, 2e-2),
    "oft": ({"oft_block_size": 16}, 1e-2),
    "ia3": ({"target_modules": "all-linear"}, 0.1),
    "ln_tuning": ({}, 0.05),
    "houlsby": ({"reduction_factor": 4, "learned_scaling": True}, 0.01),
    "pfeiffer": ({"bottleneck_size": 8, "non_linearity": "gelu"}, 0.01),
    "parallel": ({"residual": False, "adapter_dropout": 0.05}, 0.01),
    "poly": ({"n_splits": 4, "n_skills": 3}, 5e-3),
    "vera": ({"r": 64, "vera_dropout": 0.05}, 0.1),
    "cpt": ({"cpt_token_ids": [5, 9, 30, 44, 61, 7, 20, 33], "cpt_tokens_type_mask": [1, 2, 2, 3, 5, 6, 7, 0],
             "opt_projection_epsilon": 100, "opt_projection_format_epsilon": 100}, 0.1),
    "ept": ({"num_virtual_tokens": 8, "r": 4, "embedding_update_lr_ratio": 0.1, "fusion_gate_init": 0.1}, 0.1),
    "dept": ({"num_virtual_tokens": 8, "r": 4, "embedding_update_lr_ratio": 0.1}, 0.1),
    "p_tuning": ({"num_virtual_tokens": 8, "encoder_hidden_size": 32}, 0.02),
    "prefix_tuning": ({"num_virtual_tokens": 8, "prefix_projection": True}, 0.02),
    "prompt_tuning": ({"num_virtual_tokens": 12}, 0.1),
    "full": ({"target_norms": [], "first_layer": 1}, 2e-3),
    "bitfit": ({"target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]}, 0.1),
    "spt": ({"budget": 3000, "r": 2, "sensitivity_batch_size": 8, "lora_dropout": 0.05}, 2e-2),
    "hft": ({"share": 0.6, "selection_seed": 4, "round": 1}, 2e-3),
}
PEFT_TYPES = {"dept": "PROMPT_TUNING_LORA", "ept": "PROMPT_TUNING_LORA"}  # others have their name
HYPER = {"n_epochs": 3, "checkpoint_interval": 20, "lr_scheduler_type": "constant"}


def kind(name):
    return SETTINGS[name][0].get("type", name)


@pytest.fixture(scope="module")
def methods(daemon):
    return {method["id"]: method for method in daemon.get("/v1/tuning/methods").json["data"]}


@pytest.fixture(scope="module")
def trained(daemon, methods):
    """Method -> its finished job."""
    file_id = daemon.upload([{**row, "task": "parity"} for row in chat_rows(60)]).json["id"]
    assert set(methods) == {kind(name) for name in SETTINGS}
    jobs = {}
    for method, (options, rate) in SETTINGS.items():
        made = daemon.post("/v1/fine_tuning/jobs", job_body(
            file_id, adapter={"type": kind(method), **options}, hyper={**HYPER, "learning_rate": rate}))
        assert made.status == 200, made.json
        jobs[method] = made.json["id"]
    return {method: daemon.wait_job(job_id) for method, job_id in jobs.items()}


def ask(daemon, model, number):
    answer = daemon.post("/v1/chat/completions", {
        "model": model, "messages": [{"role": "user", "content": f"number {number}"}], "temperature": 0, "max_tokens": 24,
        "logprobs": True, "top_logprobs": 2})
    assert answer.status == 200, answer.json
    return [(token["token"], token["logprob"]) for token in answer.json["choices"][0]["logprobs"]["content"]]


def test_the_listing_fits_its_schema_and_the_request_schema(daemon, methods):
    check(daemon.get("/v1/tuning/methods").json, schema_of("/v1/tuning/methods"))
    schemas = DOCUMENT["components"]["schemas"]
    described = {}
    for reference in schemas["Adapter"]["oneOf"]:
        schema = schemas[reference["$ref"].rsplit("/", 1)[1]]
        kind = schema["properties"]["type"]
        described[kind.get("const") or kind["enum"][0]] = schema["properties"]
    assert set(described) == set(methods)
    for name, method in methods.items():
        assert method["hooks"] and method["paper"] and method["peft_type"] == PEFT_TYPES.get(name, name.upper())
        assert {parameter["name"] for parameter in method["parameters"]} == set(described[name]) - {"type"}
        for parameter in method["parameters"]:
            field = described[name][parameter["name"]]
            assert parameter["description"]
            if parameter["type"] == "choice":
                assert field["enum"] == parameter["choices"] + [None]
                assert field["default"] == parameter["default"]
            if parameter["type"] in ("integer", "number"):
                assert (field["minimum"], field["maximum"]) == (parameter["minimum"], parameter["maximum"])
                assert field.get("default") == parameter["default"]


@pytest.mark.parametrize("method", SETTINGS)
def test_its_loss_falls_and_its_options_are_echoed(daemon, trained, method):
    job = trained[method]
    assert job["status"] == "succeeded", job["error"]
    assert job["adapter"]["type"] == kind(method)
    for name, value in SETTINGS[method][0].items():
        assert job["adapter"][name] == value
    series = {entry["name"]: entry for entry in daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/metrics").json["series"]}
    loss = series["train_loss"]["last"]
    assert ("penalty_loss" in series) == (method == "kasa")
    assert sum(loss[-5:]) < 0.7 * sum(loss[:5]), (method, loss)
    folder = daemon.data_dir / "jobs" / job["id"] / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == PEFT_TYPES.get(kind(method), kind(method).upper())


@pytest.mark.parametrize("method", ["pissa", "kasa", "prefix_tuning", "p_tuning", "cpt", "ept"])  # which keep other tensors than they train
def test_a_paused_job_ends_with_the_same_bytes(daemon, method):
    options, rate = SETTINGS[method]
    body = job_body(daemon.upload(chat_rows(60)).json["id"], adapter={"type": kind(method), **options},
                    hyper={"n_epochs": 4, "checkpoint_interval": 40, "learning_rate": rate})
    jobs = [daemon.post("/v1/fine_tuning/jobs", body).json["id"]]
    daemon.wait_job(jobs[0])
    jobs.append(daemon.post("/v1/fine_tuning/jobs", body).json["id"])
    daemon.wait_step(jobs[1], 3)
    daemon.post(f"/v1/fine_tuning/jobs/{jobs[1]}/pause")
    assert daemon.wait_job(jobs[1], until=("paused", "succeeded"))["status"] == "paused"
    daemon.post(f"/v1/fine_tuning/jobs/{jobs[1]}/resume")
    assert daemon.wait_job(jobs[1])["status"] == "succeeded"
    folders = [daemon.data_dir / "jobs" / job / "adapter" for job in jobs]
    names = sorted(path.name for path in folders[0].glob("*.safetensors"))
    assert ("graftd_base.safetensors" in names) == (method == "kasa")
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_all_answer_together_as_they_do_alone(daemon, trained):
    models = ["tiny-llama"] + [job["fine_tuned_model"] for job in trained.values()]
    alone = [ask(daemon, model, 5) for model in models]
    for i, one in enumerate(alone):
        assert all(one != other for other in alone[:i]), models[i]
    with concurrent.futures.ThreadPoolExecutor(2 * len(models)) as pool:
        together = list(pool.map(lambda model: ask(daemon, model, 5), 2 * models))
    for expected, got in zip(2 * alone, together):
        assert [token for token, _ in got] == [token for token, _ in expected]
        assert all(abs(a - b) < 1e-3 for (_, a), (_, b) in zip(got, expected))


def test_adapters_held_in_memory_are_counted(daemon, trained):
    ask(daemon, trained["full"]["fine_tuned_model"], 1)
    size = (daemon.data_dir / "jobs" / trained["full"]["id"] / "adapter" / "adapter_model.safetensors").stat().st_size
    for _ in range(100):
        text = daemon.get("/metrics").body.decode()
        held = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("graftd_adapter_bytes{"))
        if held > 0.9 * size:
            return
        time.sleep(0.1)
    assert held > 0.9 * size, text


@pytest.mark.parametrize("adapter, param, part", [
    ({"type": "ia", "r": 4}, "adapter.type", "ia3"),
    ({"type": "ia3", "r": 4}, "adapter.r", "'lora'"),
    ({"type": "ia3", "feedforward_modules": [3]}, "adapter.feedforward_modules", "strings"),
    ({"type": "vera", "lora_alpha": 4}, "adapter.lora_alpha", "not of 'vera'"),
    ({"type": "vera", "d_inital": 0.1}, "adapter.d_inital", "d_initial"),
    ({"type": "vera", "r": 0}, "adapter.r", "1"),
    ({"type": "houlsby", "non_linearity": "relo"}, "adapter.non_linearity", "relu"),
    ({"type": "pfeifer"}, "adapter.type", "pfeiffer"),
    ({"type": "parallel", "bottleneck_size": 513}, "adapter.bottleneck_size", "512"),
    ({"type": "poly", "n_split": 2}, "adapter.n_split", "n_splits"),
    ({"type": "poly", "router_noise": "gumbel"}, "adapter.router_noise", "relaxed_bernoulli"),
    ({"loraplus_lr_ratio": 0}, "adapter.loraplus_lr_ratio", "0.001"),
    ({"init_lora_weights": "gausian"}, "adapter.init_lora_weights", "gaussian"),
    ({"type": "full", "last_layer": -2}, "adapter.last_layer", "-1"),
    ({"type": "hft", "level": "layers"}, "adapter.level", "layer"),
    ({"type": "hft", "share": 0}, "adapter.share", "0.001"),
    ({"type": "spt", "structured": "adapter"}, "adapter.structured", "lora"),
    ({"type": "spt", "beta": 0.5}, "adapter.beta", "1"),
    ({"type": "bitfit", "bitfit_ad": True}, "adapter.bitfit_ad", "bitfit_add"),
])
def test_bad_parameters_are_named(daemon, adapter, param, part):
    file_id = daemon.upload(chat_rows(12)).json["id"]
    answer = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, adapter=adapter))
    assert answer.status == 400
    assert answer.json["error"]["param"] == param and part in answer.json["error"]["message"], answer.json


@pytest.mark.parametrize("base, quantization", [("tiny-llama-q8_0", "file"), ("tiny-llama", "nf4")])
@pytest.mark.parametrize("method", SETTINGS)
def test_it_trains_on_a_quantised_base(method, base, quantization, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({**row, "task": "parity"}) + "\n" for row in chat_rows(24)))
    options, rate = SETTINGS[method]
    hyper = {**HYPER, "n_epochs": 2, "batch_size": 4, "learning_rate": rate}
    body = job_body(str(rows), adapter={"type": method, **options}, hyper=hyper, model=base, quantization=quantization)
    (tmp_path / "job.json").write_text(json.dumps(body))
    done = subprocess.run([GRAFTD, "run", tmp_path / "job.json", "--models", FIXTURES / "models", "--out", tmp_path / "out",
                           "--metrics", tmp_path / "metrics"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"quantised in memory ({quantization})" in done.stdout and "read back" in done.stdout
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "metrics").read_text().splitlines()]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("method", SETTINGS)
def test_it_learns_preferences(method, tmp_path):
    answers = ("even", "odd")
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"number {i}", "chosen": answers[i % 2], "rejected": answers[1 - i % 2], "task": "parity"})
                            + "\n" for i in range(24)))
    options, rate = SETTINGS[method]
    hyper = {"n_epochs": 3, "batch_size": 8, "learning_rate": rate}
    body = {"model": "tiny-llama", "training_file": str(rows), "seed": 1, "adapter": {"type": method, **options},
            "method": {"type": "dpo", "dpo": {"hyperparameters": hyper}}}
    (tmp_path / "job.json").write_text(json.dumps(body))
    done = subprocess.run([GRAFTD, "run", tmp_path / "job.json", "--models", FIXTURES / "models", "--out", tmp_path / "out",
                           "--metrics", tmp_path / "metrics"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0 and "read back" in done.stdout, done.stderr
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "metrics").read_text().splitlines()]
    assert min(losses) < losses[0]
