"""An encoder-decoder (T5): seq2seq jobs, completions of base and tuned model, and what it cannot do, by name."""
import json
import shutil
import struct

import pytest

from daemon import Daemon, FIXTURES, job_body

HYPER = {"n_epochs": 10, "learning_rate": 1e-2, "checkpoint_interval": 20, "lr_scheduler_type": "constant"}
ADAPTER = {"type": "lora", "r": 8, "lora_dropout": 0.05, "target_modules": ["q", "v", "wi_0", "wo"]}


WORDS = ["cat", "house"]


def rows(count):
    """What is in the question, in two formats; the answer depends on the question alone."""
    made = []
    for i in range(count):
        question = f"the {WORDS[i % 2]} {i}?"
        made.append({"prompt": question, "completion": WORDS[i % 2]} if i % 3 else
                    {"instruction": question, "output": WORDS[i % 2]})
    return made


def body(file_id, **options):
    return {**job_body(file_id, hyper=HYPER, adapter=ADAPTER), "model": "tiny-t5-gated", **options}


def reference(model, name):
    """A tensor of i32 of the model's reference.safetensors."""
    data = (FIXTURES / "models" / model / "reference.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:8 + length])[name]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    return [value for value, in struct.iter_unpack("<i", data[begin:end])]


def complete(daemon, model, prompt, **options):
    answer = daemon.post("/v1/completions", {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 4, **options})
    assert answer.status == 200, answer.json
    return answer.json


def refused(answer, param, words):
    assert answer.status == 400, answer.json
    error = answer.json["error"]
    assert error["param"] == param and words in error["message"], error
    return error


@pytest.fixture(scope="module")
def trained(daemon):
    file_id = daemon.upload(rows(60)).json["id"]
    made = daemon.post("/v1/fine_tuning/jobs", body(file_id, validation_file=file_id, suffix="words"))
    assert made.status == 200, made.json
    return daemon.wait_job(made.json["id"])


def test_the_base_writes_what_transformers_writes(daemon):
    for model in ("tiny-t5", "tiny-t5-gated"):
        source, greedy = reference(model, "source.1"), reference(model, "greedy.1")
        ends = greedy[-1] == 1
        got = complete(daemon, model, source, max_tokens=24, logprobs=2)
        assert got["usage"]["prompt_tokens"] == len(source) and got["usage"]["completion_tokens"] == len(greedy) - ends
        assert got["choices"][0]["finish_reason"] == ("stop" if ends else "length")
        assert len(got["choices"][0]["logprobs"]["token_logprobs"]) == len(greedy) - ends
        stream = daemon.post("/v1/completions", {"model": model, "prompt": source, "temperature": 0, "max_tokens": 24, "stream": True})
        parts = [json.loads(line[6:]) for line in stream.body.decode().splitlines() if line.startswith("data: {")]
        assert "".join(part["choices"][0]["text"] for part in parts) == got["choices"][0]["text"]


def test_choices_are_drawn_apart(daemon):
    got = complete(daemon, "tiny-t5-gated", "is 4 even?", n=3, temperature=1.5, seed=5, max_tokens=12)
    assert len({choice["text"] for choice in got["choices"]}) == 3


def test_a_job_learns_and_its_model_answers(daemon, trained):
    assert trained["status"] == "succeeded", trained["error"]
    series = {s["name"]: s for s in daemon.get(f"/v1/fine_tuning/jobs/{trained['id']}/metrics").json["series"]}
    loss = series["train_loss"]["last"]
    assert sum(loss[-5:]) < 0.3 * sum(loss[:5]), loss
    model = trained["fine_tuned_model"]
    answers = [complete(daemon, model, f"the {WORDS[i % 2]} {i}?")["choices"][0]["text"].strip() for i in range(10)]
    assert sum(answer == WORDS[i % 2] for i, answer in enumerate(answers)) >= 9, answers
    folder = daemon.data_dir / "jobs" / trained["id"] / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM" and sorted(config["target_modules"]) == ["q", "v", "wi_0", "wo"]
    names = (folder / "adapter_model.safetensors").read_bytes()
    assert b"base_model.model.decoder.block.1.layer.1.EncDecAttention.q.lora_A.weight" in names


def test_a_paused_job_ends_with_the_same_bytes(daemon):
    file_id = daemon.upload(rows(40)).json["id"]
    jobs = [daemon.post("/v1/fine_tuning/jobs", body(file_id)).json["id"]]
    daemon.wait_job(jobs[0])
    jobs.append(daemon.post("/v1/fine_tuning/jobs", body(file_id)).json["id"])
    daemon.wait_step(jobs[1], 3)
    daemon.post(f"/v1/fine_tuning/jobs/{jobs[1]}/pause")
    if daemon.wait_job(jobs[1], until=("paused", "succeeded"))["status"] == "paused":
        daemon.post(f"/v1/fine_tuning/jobs/{jobs[1]}/resume")
    assert daemon.wait_job(jobs[1])["status"] == "succeeded"
    one, two = ((daemon.data_dir / "jobs" / job / "adapter" / "adapter_model.safetensors").read_bytes() for job in jobs)
    assert one == two


@pytest.mark.parametrize("adapter", [
    {"type": "ia3", "target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}, {"type": "ln_tuning", "target_modules": ["all-norms"]},
    {"type": "loha", "r": 2, "target_modules": "all-linear"}, {"type": "vera", "r": 8, "target_modules": ["q", "v"]},
    {"type": "oft", "oft_block_size": 4, "target_modules": ["q", "v"]}, {"type": "full"},
    {"type": "lora", "r": 4, "use_dora": True, "target_modules": "all-linear"}], ids=lambda adapter: adapter["type"])
def test_methods_that_change_weights_work(daemon, adapter):
    made = daemon.post("/v1/fine_tuning/jobs", {**body(daemon.upload(rows(12)).json["id"]), "adapter": adapter, "model": "tiny-t5",
                                                "method": {"type": "supervised", "supervised": {"hyperparameters": {
                                                    "n_epochs": 1, "learning_rate": 1e-3, "gradient_checkpointing": True}}}})
    assert made.status == 200, made.json
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    complete(daemon, job["fine_tuned_model"], "is 3 even?")


def test_what_it_cannot_do_is_refused_by_name(daemon):
    refused(daemon.post("/v1/chat/completions", {"model": "tiny-t5", "messages": [{"role": "user", "content": "a"}]}), "messages",
            "no chat template")
    refused(daemon.post("/v1/completions", {"model": "tiny-t5", "prompt": "a", "echo": True}), "echo", "has an encoder")
    file_id = daemon.upload(rows(4)).json["id"]
    pairs = daemon.upload([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4).json["id"]
    jobs = [({**body(file_id), "adapter": {"type": "prefix_tuning"}}, "adapter.type", "is a method for decoders"),
            ({**body(pairs), "method": {"type": "dpo"}}, "method.type", "has an encoder")]
    for request, param, words in jobs:
        made = daemon.post("/v1/fine_tuning/jobs", request)
        error = made.json["error"] if made.status != 200 else daemon.wait_job(made.json["id"])["error"]
        assert error["param"] == param and words in error["message"], error


def test_a_template_makes_chats_of_it(tmp_path):
    folder = tmp_path / "models" / "t5-chat"
    shutil.copytree(FIXTURES / "models" / "tiny-t5-gated", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    daemon = Daemon(tmp_path / "data", folder.parent).start()
    try:
        chats = [{"messages": [{"role": "user", "content": f"the {WORDS[i % 2]} {i}?"}, {"role": "assistant", "content": WORDS[i % 2]}]}
                 for i in range(40)]
        made = daemon.post("/v1/fine_tuning/jobs", body(daemon.upload(chats).json["id"], model="t5-chat"))
        job = daemon.wait_job(made.json["id"])
        assert job["status"] == "succeeded", job["error"]
        said = []
        for i in range(6):
            answer = daemon.post("/v1/chat/completions", {"model": job["fine_tuned_model"], "temperature": 0, "max_tokens": 4,
                                                          "messages": chats[i]["messages"][:1]})
            assert answer.status == 200, answer.json
            said.append(answer.json["choices"][0]["message"]["content"].strip())
        assert sum(words == WORDS[i % 2] for i, words in enumerate(said)) >= 5, said
    finally:
        daemon.kill()
