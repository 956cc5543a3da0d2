"""The command line that scripts rely on."""
import json
import os
import pathlib
import subprocess
import time

import pytest

from daemon import FIXTURES, GRAFTD, chat_rows, job_body


def graftd(*arguments, **options):
    return subprocess.run([GRAFTD, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120,
                          **options)


@pytest.fixture
def job(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(40)))
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job_body(str(rows), hyper={"checkpoint_interval": 4})))
    return path


@pytest.mark.parametrize("arguments", [
    [], ["fly"], ["serve"], ["serve", "--data-dir", "x"], ["serve", "--what"], ["serve", "--listen", "nowhere", "--data-dir", "x",
    "--models", "y"], ["run"], ["run", "a.json"], ["run", "a.json", "--models"], ["inspect"], ["inspect", "a", "b"],
    ["generate", "m"], ["generate", "m", "--chat", "a", "--prompt", "b"], ["generate", "m", "--chat", "a", "--temperature", "hot"],
    ["run", "a.json", "--models", "m", "--out", "o", "--threads", "0"], ["worker"], ["export"], ["export", "a"], ["export", "a", "--out", "b", "--format", "zip"],
    ["serve", "--data-dir", "x", "--models", "y", "--listen", "0.0.0.0:8900"],
])
def test_wrong_usage_is_one_line_and_exit_code_2(arguments):
    done = graftd(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("graftd")


@pytest.mark.parametrize("command", [[], ["serve"], ["run"], ["inspect"], ["generate"], ["export"]])
def test_help_everywhere(command):
    done = graftd(*command, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage: graftd") and done.stderr == ""


def test_version():
    assert graftd("version").stdout.startswith("graftd 0.")


def test_run_and_resume_give_the_same_bytes(job, models, tmp_path):
    whole = graftd("run", job, "--models", models, "--out", tmp_path / "whole", "--threads", 2)
    assert whole.returncode == 0, whole.stderr
    assert "step 20/20" in whole.stdout and f"adapter {tmp_path}/whole/adapter" in whole.stdout
    parts = subprocess.Popen([GRAFTD, "run", job, "--models", models, "--out", tmp_path / "parts", "--threads", "2"],
                             stdout=subprocess.PIPE, text=True)
    for line in parts.stdout:
        if line.startswith("step 6/"):
            parts.terminate()
            break
    parts.stdout.read()
    code = parts.wait()
    if code != 0:
        refused = graftd("run", job, "--models", models, "--out", tmp_path / "parts", "--threads", 2)
        assert refused.returncode == 1 and "--resume" in refused.stderr
        resumed = graftd("run", job, "--models", models, "--out", tmp_path / "parts", "--resume", "--threads", 2)
        assert resumed.returncode == 0, resumed.stderr
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    text = graftd("generate", "tiny-llama", "--models", models, "--adapter", tmp_path / "whole" / "adapter", "--chat", "number 2",
                  "--max-tokens", 4)
    assert text.returncode == 0 and text.stdout


def test_run_names_what_is_wrong(job, models, tmp_path):
    body = json.loads(job.read_text())
    body["training_file"] = str(tmp_path / "missing.jsonl")
    job.write_text(json.dumps(body))
    done = graftd("run", job, "--models", models, "--out", tmp_path / "out")
    assert done.returncode == 1 and "missing.jsonl" in done.stderr and len(done.stderr.splitlines()) == 1


def test_inspect_tells_the_memory_to_serve(models):
    def plan(load):
        return json.loads(graftd("inspect", "tiny-llama", "--models", models, "--serve", load, "--json").stdout)["memory"]["serving"]

    one, four = plan("1x64+64"), plan("4x64+64")
    assert one["total_bytes"] == sum(value for name, value in one.items() if name != "total_bytes")
    assert four["kv_cache_bytes"] == 4 * one["kv_cache_bytes"] > 0 and four["weights_bytes"] == one["weights_bytes"]
    assert four["activations_bytes"] > one["activations_bytes"] and one["process_bytes"] > 1 << 20
    for wrong in ("", "16", "16x", "0x1+1", "4294967297x1+1", "1x0+1", "257x1+1", "1x64+-1", "1x64+64x", "1x99999999999+1"):
        refused = graftd("inspect", "tiny-llama", "--models", models, "--serve", wrong)
        assert refused.returncode == 2 and "16x512+64" in refused.stderr, (wrong, refused.stderr)
    beyond = graftd("inspect", "tiny-llama", "--models", models, "--serve", "1x200+57")
    assert beyond.returncode == 1 and "make 257; the context of 'tiny-llama' holds 256" in beyond.stderr


def test_inspect_a_model_and_a_row(job, models, tmp_path):
    shown = graftd("inspect", "tiny-llama", "--models", models, "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert facts["architecture"] == "llama"
    assert graftd("inspect", models / "tiny-qwen2").returncode == 0
    row = json.loads(graftd("inspect", "tiny-llama", "--models", models, "--row", f"{tmp_path}/rows.jsonl:3", "--json").stdout)
    trained = "".join(t["text"] for t in row["tokens"] if t["weight"] > 0)
    assert trained == "even<|im_end|>" and "number 2" in row["text"]
    wrong = graftd("inspect", "tiny-lama", "--models", models)
    assert wrong.returncode == 1 and "tiny-llama" in wrong.stderr


def test_smollm2_is_read_and_talks():
    path = os.environ["GD_SMOLLM2_GGUF"]
    facts = json.loads(graftd("inspect", path, "--json").stdout)
    assert facts["parameters"] == 134515008
    text = graftd("generate", path, "--chat", "What is the capital of France?", "--max-tokens", 24)
    assert text.returncode == 0 and "Paris" in text.stdout


def test_the_daemon_is_ready_within_a_second(own_daemon):
    daemon = own_daemon()
    started = time.monotonic()
    daemon.start()
    first = time.monotonic() - started
    assert daemon.get("/healthz").status == 200
    daemon.stop()
    assert first < 5, "the figure itself is tests/bench's business; this catches a daemon that waits for something"


def test_two_daemons_do_not_share_a_data_folder(own_daemon, models):
    daemon = own_daemon().start()
    second = graftd("serve", "--data-dir", daemon.data_dir, "--models", models, "--listen", "127.0.0.1:0")
    assert second.returncode == 1 and str(daemon.data_dir) in second.stderr
    daemon.stop()


def test_an_adapter_is_exported_and_read_back(models, tmp_path):
    adapter = FIXTURES / "adapters" / "peft-lora"
    base = ["--base", FIXTURES / "models" / "tiny-llama"]
    merged, gguf = tmp_path / "merged", tmp_path / "adapter.gguf"
    for arguments in ([adapter, "--out", merged], [adapter, "--out", gguf, "--format", "gguf-lora"]):
        done = graftd("export", *arguments, *base)
        assert done.returncode == 0, done.stderr
        assert "relative difference of logits" in done.stdout
    told = [graftd("generate", model, "--prompt", "one two", "--max-tokens", "12", *rest).stdout
            for model, rest in ((base[1], ["--adapter", adapter]), (base[1], ["--adapter", gguf]), (merged, []))]
    assert told[0] == told[1] == told[2] != graftd("generate", base[1], "--prompt", "one two", "--max-tokens", "12").stdout

    again = graftd("export", adapter, "--out", merged, *base)
    assert again.returncode == 1 and "exists already" in again.stderr
    ia3 = graftd("export", FIXTURES / "adapters" / "peft-ia3", "--out", tmp_path / "x.gguf", "--format", "gguf-lora", *base)
    assert ia3.returncode == 1 and "ia3" in ia3.stderr and not (tmp_path / "x.gguf").exists()
    odd = graftd("export", adapter, "--out", tmp_path / "y", "--dtype", "q4", *base)
    assert odd.returncode == 1 and "f32, bf16 and f16" in odd.stderr


def run_losses(job, out, **changes):
    """The losses of a few steps of `job` with other members."""
    path = out.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(job.read_text()), **changes}))
    done = graftd("run", path, "--models", FIXTURES / "models", "--out", out, "--metrics", out.with_suffix(".metrics"))
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["train_loss"] for line in out.with_suffix(".metrics").read_text().splitlines()], done.stdout


def test_a_quantised_base_is_tuned_in_its_blocks(job, tmp_path):
    gguf = {"model": "tiny-llama-q8_0", "precision": "f32"}
    plain, _ = run_losses(job, tmp_path / "plain", **gguf)
    kept, told = run_losses(job, tmp_path / "kept", **gguf, quantization="file")
    assert "quantised in memory (file)" in told
    assert all(abs(a - b) < 1e-3 for a, b in zip(plain, kept)) and kept[-1] < kept[0]
    nf4, told = run_losses(job, tmp_path / "nf4", model="tiny-llama", precision="f32", quantization="nf4")
    assert "quantised in memory (nf4): " in told and nf4[-1] < nf4[0]
    path = tmp_path / "refused.json"
    path.write_text(json.dumps({**json.loads(job.read_text()), "quantization": "file"}))
    done = graftd("run", path, "--models", FIXTURES / "models", "--out", tmp_path / "refused")
    assert done.returncode == 1 and "quantization is 'file'" in done.stderr and "'nf4'" in done.stderr


def test_training_stops_when_it_gets_worse_and_the_best_is_kept(job, tmp_path):
    body = json.loads(job.read_text())
    valid = tmp_path / "valid.jsonl"
    valid.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(8)))
    hyper = body["method"]["supervised"]["hyperparameters"]
    hyper.update({"learning_rate": 0.3, "lr_scheduler_type": "constant", "eval_interval": 2, "checkpoint_interval": 100, "max_steps": 60})
    body.update({"validation_file": str(valid), "evaluation": {"early_stopping_patience": 3, "load_best_model_at_end": True}})
    path, out = tmp_path / "stop.json", tmp_path / "out"
    path.write_text(json.dumps(body))
    done = graftd("run", path, "--models", FIXTURES / "models", "--out", out, "--metrics", tmp_path / "metrics")
    assert done.returncode == 0, done.stderr
    seen = {row["step"]: row["valid_loss"] for row in map(json.loads, (tmp_path / "metrics").read_text().splitlines()) if "valid_loss" in row}
    best = min(seen, key=seen.get)
    assert "Stopped at step" in done.stdout and f"the adapter of step {best}:" in done.stdout
    assert max(seen) < 60 and max(seen) >= best + 6
    weights = [(out / folder / "adapter_model.safetensors").read_bytes() for folder in ("adapter", f"checkpoints/step-{best}")]
    assert weights[0] == weights[1]
    again = graftd("run", path, "--models", FIXTURES / "models", "--out", out, "--resume")
    assert again.returncode == 0 and "Stopped at step" in again.stdout
