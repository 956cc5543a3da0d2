"""Families beside Llama's, from upload to answer: tuned with what a method falls back to, served, exported, merged."""
import json
import subprocess

import pytest

from daemon import GRAFTD, job_body

WORDS = ["library", "section", "file", "archive", "answer", "tree", "fruit", "time"]
ROWS = [{"prompt": f"the base and the graft {word}", "completion": f" {word} their own {word}"} for word in WORDS * 3]
CASES = [("tiny-gpt2", {"type": "lora", "r": 4}, ["c_attn", "c_proj", "c_fc"]), ("tiny-gpt2", {"type": "ia3"}, None),
         ("tiny-neox", {"type": "lora", "r": 4}, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
         ("tiny-opt-350m", {"type": "full", "train_embeddings": True}, None), ("tiny-gemma3", {"type": "ln_tuning"}, None),
         ("tiny-gemma3-sees", {"type": "lora", "r": 4}, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
         ("tiny-phi3-long", {"type": "lora", "r": 4}, ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])]


@pytest.fixture(scope="module")
def rows(daemon):
    return daemon.upload(ROWS).json["id"]


@pytest.mark.parametrize("model, adapter, targets", CASES)
def test_a_family_is_tuned_served_and_merged(daemon, models, rows, tmp_path, model, adapter, targets):
    job = daemon.post("/v1/fine_tuning/jobs", job_body(rows, model=model, adapter=adapter, hyper={"learning_rate": 1e-2})).json
    job = daemon.wait_job(job["id"])
    assert job["status"] == "succeeded", job["error"]
    folder = daemon.data_dir / "jobs" / job["id"] / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert targets is None or config["target_modules"] == targets
    assert config.get("fan_in_fan_out", False) == (model == "tiny-gpt2")
    asked = {"prompt": "the base and", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    tuned, base = [daemon.post("/v1/completions", {"model": name, **asked}).json["choices"][0]["logprobs"]["token_logprobs"]
                   for name in (job["fine_tuned_model"], model)]
    assert tuned != base
    done = subprocess.run([GRAFTD, "export", str(folder), "--format", "merged", "--out", str(tmp_path / "merged"), "--models", str(models)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_long_request_has_its_own_rope(daemon, rows):
    model = "tiny-phi3-long"  # first trained on 16 positions
    job = daemon.post("/v1/fine_tuning/jobs", job_body(rows, model=model, adapter={"type": "prompt_tuning", "num_virtual_tokens": 3})).json
    job = daemon.wait_job(job["id"])
    assert job["status"] == "succeeded", job["error"]
    for name in (model, job["fine_tuned_model"]):
        asked = {"model": name, "prompt": "the base", "temperature": 0, "logprobs": 1}
        short, long = [daemon.post("/v1/completions", {**asked, "max_tokens": count}).json["choices"][0]["logprobs"]["token_logprobs"][0]
                       for count in (2, 60)]
        assert short != long
