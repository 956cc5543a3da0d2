"""Encoders: embeddings, classification jobs on them and on decoders, what tuned and base classifiers say, and refusals."""
import base64
import json
import math
import pathlib
import re
import struct
import subprocess
import textwrap

import pytest

from daemon import GRAFTD
from test_contract import check, schema_of
from test_preference import series

ROOT = pathlib.Path(__file__).parent.parent.parent
GOOD, BAD = "good great fine film".split(), "bad awful dull plot".split()


def rows(count, start=0, labels=("negative", "positive")):
    out = []
    for i in range(start, start + count):
        words = GOOD if i % 3 else BAD
        out.append({"text": " ".join(words[(i * 7 + j) % 4] for j in range(2 + i % 4)), "label": labels[1 if i % 3 else 0]})
    return out


def body(training_file, model="tiny-bert-mlm", options=None, **more):
    hyper = {"n_epochs": 3, "batch_size": 8, "learning_rate": 0.01}
    return {"model": model, "training_file": training_file, "seed": 5, "precision": "f32",
            "method": {"type": "classification", "classification": {"hyperparameters": hyper, **(options or {})}}, **more}


@pytest.fixture(scope="module")
def reviews(daemon):
    return daemon.upload(rows(96)).json["id"]


@pytest.fixture(scope="module")
def held_out(daemon):
    return daemon.upload(rows(32, 500)).json["id"]


@pytest.fixture(scope="module")
def classifier(daemon, reviews, held_out):
    made = daemon.post("/v1/fine_tuning/jobs", body(reviews, validation_file=held_out, options={"class_weights": "balanced"},
                                                    adapter={"type": "lora", "r": 4, "target_modules": ["query", "value"]}))
    assert made.status == 200, made.json
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


def classify(daemon, model, inputs, status=200):
    answer = daemon.post("/v1/classifications", {"model": model, "input": inputs})
    assert answer.status == status, answer.json
    return answer.json


def embed(daemon, model, inputs, status=200, **more):
    answer = daemon.post("/v1/embeddings", {"model": model, "input": inputs, **more})
    assert answer.status == status, answer.json
    return answer.json


def last_metric(daemon, job, name):
    return float(list(series(daemon, job["id"])[name].values())[-1])


def test_a_tuned_encoder_tells_texts_apart(daemon, classifier):
    assert classifier["method"]["classification"]["class_weights"] == "balanced"
    events = daemon.get(f"/v1/fine_tuning/jobs/{classifier['id']}/events?limit=100").json["data"]
    assert any("rows by label: 32 negative, 64 positive" in e["message"] for e in events)
    assert last_metric(daemon, classifier, "valid_accuracy") > 0.9 and last_metric(daemon, classifier, "valid_macro_f1") > 0.9
    held = rows(32, 500)
    answer = classify(daemon, classifier["fine_tuned_model"], [row["text"] for row in held])
    check(answer, schema_of("/v1/classifications", "post"))
    assert [item["index"] for item in answer["data"]] == list(range(32)) and answer["usage"]["prompt_tokens"] > 64
    assert sum(item["labels"] == [row["label"]] for item, row in zip(answer["data"], held)) >= 29
    for item in answer["data"]:
        assert [s["label"] for s in item["scores"]] == ["negative", "positive"]
        assert sum(s["score"] for s in item["scores"]) == pytest.approx(1)
    alone = classify(daemon, classifier["fine_tuned_model"], held[3]["text"])["data"]
    assert len(alone) == 1 and alone[0]["scores"][0]["score"] == pytest.approx(answer["data"][3]["scores"][0]["score"], abs=1e-4)


def test_the_files_are_pefts(daemon, classifier):
    folder = daemon.data_dir / "jobs" / classifier["id"] / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and sorted(config["modules_to_save"]) == ["classifier", "pooler"]
    facts = json.loads((folder / "graftd.json").read_text())
    assert facts["labels"] == ["negative", "positive"] and facts["problem_type"] == "single_label_classification"


def test_a_decoder_classifies_by_its_last_token(daemon, reviews):
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", body(reviews, "tiny-llama")).json["id"])
    assert job["status"] == "succeeded", job["error"]
    held = rows(12, 700)
    answer = classify(daemon, job["fine_tuned_model"], [row["text"] for row in held])
    assert sum(item["labels"] == [row["label"]] for item, row in zip(answer["data"], held)) >= 11
    refused = daemon.post("/v1/chat/completions", {"model": job["fine_tuned_model"], "messages": [{"role": "user", "content": "hi"}]})
    assert refused.status == 400 and "/v1/classifications" in refused.json["error"]["message"]


def test_several_labels_and_pairs_of_texts(daemon):
    data = [{"text": f"{a} {b}", "text_pair": "what is it?", "label": [n for n, w in (("sport", "game"), ("money", "price")) if w in (a, b)]}
            for a in ("game", "dull", "price") for b in ("price", "story", "game")] * 4
    made = daemon.post("/v1/fine_tuning/jobs", body(daemon.upload(data).json["id"], "tiny-bert-mlm",
                                                    {"problem_type": "multi_label_classification", "labels": ["sport", "money"],
                                                     "hyperparameters": {"n_epochs": 20, "batch_size": 9, "learning_rate": 0.02}}))
    assert made.status == 200, made.json
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    answer = classify(daemon, job["fine_tuned_model"], [{"text": "game price", "text_pair": "what is it?"},
                                                        {"text": "dull story", "text_pair": "what is it?"}])
    assert [item["labels"] for item in answer["data"]] == [["sport", "money"], []]


def test_a_base_classifier_needs_no_job(daemon):
    reference = {0: "the cat sat on the mat", 1: "a dog ran far!", 2: "bad"}
    answer = classify(daemon, "tiny-bert", list(reference.values()))
    assert [[s["label"] for s in item["scores"]] for item in answer["data"]] == [["negative", "neutral", "positive"]] * 3
    several = classify(daemon, "tiny-roberta", "a dog ran far!")["data"][0]
    assert [s["label"] for s in several["scores"]] == ["sport", "news", "money", "fun"]
    assert several["labels"] == [s["label"] for s in several["scores"] if s["score"] > 0.5]


def test_embeddings_have_openais_shape(daemon, client):
    texts = ["the cat sat on the mat", "a dog ran far!", "bad"]
    answer = embed(daemon, "tiny-minilm", texts)
    check(answer, schema_of("/v1/embeddings", "post"))
    vectors = [item["embedding"] for item in answer["data"]]
    assert [len(v) for v in vectors] == [16] * 3
    assert all(math.sqrt(sum(x * x for x in v)) == pytest.approx(1, abs=1e-5) for v in vectors)
    coded = embed(daemon, "tiny-minilm", texts[1], encoding_format="base64")["data"][0]["embedding"]
    assert list(struct.unpack("<16f", base64.b64decode(coded))) == pytest.approx(vectors[1], abs=1e-5)
    many = embed(daemon, "tiny-minilm", texts * 30)["data"]
    assert len(many) == 90 and many[89]["embedding"] == pytest.approx(vectors[2], abs=1e-5)
    ids = daemon.post("/v1/tokenize", {"model": "tiny-minilm", "text": texts[0]})
    if ids.status == 200:
        assert embed(daemon, "tiny-minilm", [ids.json["tokens"]])["data"][0]["embedding"] == pytest.approx(vectors[0], abs=1e-5)
    made = client.embeddings.create(model="tiny-minilm", input=texts)
    assert made.data[2].embedding == pytest.approx(vectors[2], abs=1e-5) and made.usage.prompt_tokens == answer["usage"]["prompt_tokens"]


def test_what_a_model_cannot_do_is_refused_by_name(daemon, classifier, reviews):
    for path, more in (("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}), ("/v1/completions", {"prompt": "hi"})):
        for model in ("tiny-minilm", classifier["fine_tuned_model"]):
            answer = daemon.post(path, {"model": model, "max_tokens": 2, **more})
            assert answer.status == 400 and answer.json["error"]["param"] == "model" and "encoder" in answer.json["error"]["message"]
    masked = daemon.post("/v1/completions", {"model": "tiny-xlmr", "prompt": "hi"}).json["error"]["message"]
    assert "/v1/embeddings" in masked and "masked-LM head" in masked
    assert "is no encoder" in embed(daemon, "tiny-llama", "hi", 400)["error"]["message"]
    assert "is no classifier" in classify(daemon, "tiny-minilm", "hi", 400)["error"]["message"]
    assert embed(daemon, "nowhere", "hi", 404)["error"]["code"] == "model_not_found"
    for method in ({"type": "supervised"}, None):
        made = {**body(reviews), "method": method} if method else {k: v for k, v in body(reviews).items() if k != "method"}
        job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", made).json["id"])
        assert job["status"] == "failed" and job["error"]["param"] == "model" and "classification" in job["error"]["message"]
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", body(reviews, adapter={"type": "prompt_tuning"})).json["id"])
    assert job["status"] == "failed" and job["error"]["param"] == "adapter.type" and "virtual tokens" in job["error"]["message"]


@pytest.mark.parametrize("more, param", [
    ({"input": None}, "input"), ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": 3}, "input"), ({"input": ["a", ""]}, "input[1]"),
    ({"input": [[1, -2]]}, "input[0]"), ({"input": [[1, 10 ** 8]]}, "input"), ({"input": "word " * 400}, "input"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format"), ({"input": "a", "dimensions": 8}, "dimensions"),
    ({"input": "a", "pooling": "mean"}, "pooling"), ({"input": {"text": "a"}}, "input")])
def test_bad_input_is_named(daemon, more, param):
    answer = daemon.post("/v1/embeddings", {"model": "tiny-minilm", **more})
    assert answer.status == 400 and answer.json["error"]["param"] == param, answer.json


@pytest.mark.parametrize("options, param", [
    ({"labels": ["a"]}, "method.classification.labels"), ({"labels": ["a", "a"]}, "method.classification.labels"),
    ({"problem_type": "regression"}, "method.classification.problem_type"), ({"class_weights": 3}, "method.classification.class_weights"),
    ({"class_weights": {"a": -1}}, "method.classification.class_weights"), ({"lables": []}, "method.classification.lables")])
def test_bad_methods_are_named(daemon, reviews, options, param):
    answer = daemon.post("/v1/fine_tuning/jobs", body(reviews, options=options))
    assert answer.status == 400 and answer.json["error"]["param"] == param, answer.json


@pytest.mark.parametrize("data, options, word", [
    ([{"prompt": "a", "completion": "b"}] * 4, None, "text and label"), ([{"text": "a", "label": "x"}] * 4, None, "nothing to tell apart"),
    (rows(8), {"labels": ["good", "bad"]}, "there is no label"), ([{"text": "a", "label": ["x", "y"]}] * 4, None, "multi_label_classification"),
    (rows(8), {"class_weights": {"nobody": 2}}, "no label")])
def test_bad_rows_are_named(daemon, data, options, word):
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", body(daemon.upload(data).json["id"], options=options)).json["id"])
    assert job["status"] == "failed" and word in job["error"]["message"], job["error"]


@pytest.mark.parametrize("method", ["ln_tuning", "ia3", "full", "houlsby"])
def test_methods_name_an_encoders_modules_by_themselves(daemon, reviews, held_out, method):
    made = daemon.post("/v1/fine_tuning/jobs", body(reviews, validation_file=held_out, adapter={"type": method}))
    assert made.status == 200, made.json
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    held = rows(32, 500)
    answer = classify(daemon, job["fine_tuned_model"], [row["text"] for row in held])
    right = sum(item["labels"] == [row["label"]] for item, row in zip(answer["data"], held))
    assert right / 32 == pytest.approx(last_metric(daemon, job, "valid_accuracy")) and right > 16


def test_a_classifier_goes_on_from_a_classifier(daemon, classifier, reviews, held_out):
    made = {**body(reviews, validation_file=held_out), "model": classifier["fine_tuned_model"]}
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", made).json["id"])
    assert job["status"] == "succeeded", job["error"]
    assert last_metric(daemon, job, "valid_loss") <= last_metric(daemon, classifier, "valid_loss") + 0.05


@pytest.mark.parametrize("number", [0, 1])
def test_the_readmes_examples_work(daemon, tmp_path, number):
    section = (ROOT / "README.md").read_text().split("## Encoders and classifiers\n", 1)[1].split("\n## ", 1)[0]
    block = re.findall(r"((?:^    .*\n)+)", section, re.MULTILINE)[number]
    script = textwrap.dedent(block).replace("http://127.0.0.1:8900", daemon.url).replace("all-MiniLM-L6-v2", "tiny-minilm")
    made = json.loads(subprocess.run(["bash", "-euc", script], cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout)
    if number == 0:
        assert [len(item["embedding"]) for item in made["data"]] == [16, 16]
        return
    job = daemon.wait_job(made["id"])
    assert job["status"] == "succeeded", job["error"]
    labels = [item["labels"] for item in classify(daemon, job["fine_tuned_model"], ["great film, fine story", "dull plot, awful film"])["data"]]
    assert all(len(each) == 1 for each in labels)


@pytest.mark.parametrize("model", ["tiny-bert-mlm", "tiny-minilm", "tiny-llama", "tiny-neox", "tiny-opt-350m"])
def test_a_merged_classifier_answers_as_the_adapter(daemon, own_daemon, models, reviews, tmp_path, model):
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", body(reviews, model, adapter={"type": "lora", "r": 8})).json["id"])
    assert job["status"] == "succeeded", job["error"]
    folder = tmp_path / "models" / "merged"
    folder.parent.mkdir()
    subprocess.run([GRAFTD, "export", str(daemon.data_dir / "jobs" / job["id"] / "adapter"), "--format", "merged", "--out", str(folder),
                    "--models", str(models)], check=True, stdout=subprocess.PIPE)
    texts = [row["text"] for row in rows(6, 900)]
    ours = classify(daemon, job["fine_tuned_model"], texts)["data"]
    other = own_daemon()
    other.models = folder.parent
    other.start()
    merged = classify(other, "merged", texts)["data"]
    for a, b in zip(ours, merged):
        assert a["labels"] == b["labels"]
        assert [s["score"] for s in a["scores"]] == pytest.approx([s["score"] for s in b["scores"]], abs=2e-2)


def test_a_paused_job_ends_as_one_that_ran_through(daemon, reviews):
    options = {"hyperparameters": {"n_epochs": 6, "batch_size": 8, "learning_rate": 0.01, "checkpoint_interval": 5}}
    finals = []
    for pauses in (False, True):
        job = daemon.post("/v1/fine_tuning/jobs", body(reviews, options=options)).json["id"]
        if pauses:
            daemon.wait_step(job, 3)
            daemon.post(f"/v1/fine_tuning/jobs/{job}/pause")
            state = daemon.wait_job(job, until=("paused", "succeeded"))
            if state["status"] == "paused":
                daemon.post(f"/v1/fine_tuning/jobs/{job}/resume")
        assert daemon.wait_job(job)["status"] == "succeeded"
        finals.append((daemon.data_dir / "jobs" / job / "adapter" / "adapter_model.safetensors").read_bytes())
    assert finals[0] == finals[1]
