"""Methods that train the base's own tensors: resumed to the bit, continued, and refused where they cannot fit."""
import hashlib
import json
import os
import pathlib
import resource
import signal
import subprocess

import pytest

from daemon import FIXTURES, GRAFTD, chat_rows, job_body

METHODS = {
    "full": {"type": "full", "first_layer": 1},
    "bitfit": {"type": "bitfit"},
    "hft": {"type": "hft"},
    "spt": {"type": "spt", "budget": 2000, "r": 2, "sensitivity_batch_size": 8},
}


def command(folder, name, out, adapter, model="tiny-llama", models=FIXTURES / "models", **members):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows(60)))
    hyper = {"n_epochs": 2, "learning_rate": 0.003, "checkpoint_interval": 10, "weight_decay": 0.1, "max_grad_norm": 0.3,
             "gradient_leaves": 2, "tokens_per_batch": 64}
    (folder / f"{name}.json").write_text(json.dumps({**job_body(str(folder / "rows.jsonl"), adapter=adapter, hyper=hyper), "model": model,
                                                     **members}))
    return [GRAFTD, "run", str(folder / f"{name}.json"), "--models", str(models), "--out", str(out), "--threads", "2"]


def run(arguments):
    return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout


def digest(folder):
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_continues_bit_for_bit(tmp_path, method):
    told = run(command(tmp_path, "job", tmp_path / "whole", METHODS[method]))
    assert (f"{method}" in told) == (method in ("hft", "spt")) # what was chosen
    cut = command(tmp_path, "job", tmp_path / "cut", METHODS[method])
    process = subprocess.Popen(cut, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 12/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "cut" / "adapter").exists()
    assert "Continuing from the checkpoint of step 10" in run(cut + ["--resume"])
    assert digest(tmp_path / "whole") == digest(tmp_path / "cut")


def test_norms_are_spared_by_weight_decay_where_that_is_asked(tmp_path):
    digests = []
    for decay, spared in ((0.5, False), (0.5, True), (0, True)):
        made = command(tmp_path, "job", tmp_path / "out", {"type": "full", "target_modules": [], "decay_vectors": not spared})
        job = json.loads((tmp_path / "job.json").read_text())
        job["method"]["supervised"]["hyperparameters"]["weight_decay"] = decay
        (tmp_path / "job.json").write_text(json.dumps(job))
        run(made)
        digests.append(digest(tmp_path / "out"))
        (tmp_path / "out").rename(tmp_path / f"out-{len(digests)}")
    assert digests[0] != digests[1] == digests[2]


def test_what_spt_selects_is_measured_once(tmp_path):
    first = command(tmp_path, "job", tmp_path / "out", METHODS["spt"])
    process = subprocess.Popen(first, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    kept = (tmp_path / "out" / "start" / "adapter_model.safetensors").read_bytes()
    told = run(first + ["--resume"])
    assert "most sensitive" not in told # read back from start/
    assert (tmp_path / "out" / "start" / "adapter_model.safetensors").read_bytes() == kept
    (tmp_path / "out" / "start" / "adapter_model.safetensors").write_bytes(kept[:-4] + b"\1\2\3\4")
    run(command(tmp_path, "job", tmp_path / "again", METHODS["spt"]))
    assert digest(tmp_path / "out") == digest(tmp_path / "again")


@pytest.mark.parametrize("method", METHODS)
def test_a_job_goes_on_from_tuned_tensors(tmp_path, method):
    run(command(tmp_path, "first", tmp_path / "first", METHODS[method]))
    second = command(tmp_path, "second", tmp_path / "second", METHODS[method], init_from=str(tmp_path / "first" / "adapter"))
    job = json.loads((tmp_path / "second.json").read_text())
    del job["adapter"]
    (tmp_path / "second.json").write_text(json.dumps(job))
    run(second + ["--metrics", str(tmp_path / "metrics")])
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "metrics").read_text().splitlines()]
    assert digest(tmp_path / "first") != digest(tmp_path / "second")
    assert (tmp_path / "second" / "start" / "adapter_model.safetensors").read_bytes() == \
        (tmp_path / "first" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert sum(losses[-4:]) < sum(losses[:4])


def test_a_job_larger_than_the_memory_is_refused_with_its_account(tmp_path):
    base = pathlib.Path(os.environ["GD_SMOLLM2_GGUF"])
    job = command(tmp_path, "job", tmp_path / "out", {"type": "full"}, model=base.stem, models=base.parent)
    done = subprocess.run(job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29)))
    assert done.returncode == 1
    assert "and has 1536 (weights 108," in done.stderr and "optimizer 810" in done.stderr, done.stderr
