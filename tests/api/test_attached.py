"""Evals that a fine-tuning job runs at its checkpoints: their scores are metrics, the best is kept, and judges are local models."""
import pytest

from daemon import chat_rows, job_body

CONFIG = {"type": "custom", "include_sample_schema": True,
          "item_schema": {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]}}
CRITERIA = [{"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", "input": "{{sample.output_text}}",
             "reference": "{{item.a}}", "pass_threshold": 0.5}]


def source(content):
    return {"type": "completions", "source": content,
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]},
            "sampling_params": {"temperature": 0, "max_completion_tokens": 12}}


def items(rows):
    return [{"item": {"q": row["messages"][-2]["content"], "a": row["messages"][-1]["content"]}} for row in rows]


INLINE = {"type": "file_content", "content": items(chat_rows(5))}


def body(file_id, evals, **changes):
    made = job_body(file_id, hyper={"n_epochs": 2, "checkpoint_interval": 4, "learning_rate": 5e-3})
    return {**made, "evaluation": {"evals": evals, **changes}}


def test_scores_of_checkpoints_are_metrics_and_choose_the_best(daemon):
    file_id = daemon.upload(chat_rows(40)).json["id"]
    rows = daemon.upload(items(chat_rows(6)), purpose="evals").json["id"]
    eval_id = daemon.post("/v1/evals", {"name": "near", "data_source_config": CONFIG, "testing_criteria": CRITERIA}).json["id"]
    evals = [{"name": "stored", "eval_id": eval_id, "data_source": source({"type": "file_id", "id": rows}), "max_items": 4},
             {"name": "inline", "data_source_config": CONFIG, "testing_criteria": CRITERIA, "data_source": source(INLINE)}]
    made = daemon.post("/v1/fine_tuning/jobs", body(file_id, evals, metric_for_best_model="eval/stored", load_best_model_at_end=True))
    assert made.status == 200, made.json
    shown = made.json["evaluation"]
    assert shown["evals"][0]["eval_id"] == eval_id and "models" not in shown["evals"][0]
    daemon.call("DELETE", f"/v1/evals/{eval_id}")  # the job has its own copy
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    metrics = daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/metrics").json
    series = {entry["name"]: dict(zip(entry["x"], entry["last"])) for entry in metrics["series"]}
    for name in ("eval/stored", "eval/stored_passed", "eval/inline"):
        assert len(series[name]) >= 2 and all(0 <= value <= 1 for value in series[name].values())
    assert set(series["eval/stored_errors"].values()) == {0}
    told = [event["message"] for event in daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json["data"]]
    scores = series["eval/stored"]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert best == max(scores) or any(f"the adapter of step {int(best)}:" in message for message in told)


@pytest.mark.parametrize("change, param, words", [
    ({"eval_id": "eval_none", "data_source_config": None, "testing_criteria": None}, "evaluation.evals[0]", "eval_none"),
    ({"eval_id": "eval_none"}, "evaluation.evals[0]", "either eval_id"),
    ({"data_source": {"type": "jsonl", "source": INLINE}}, "evaluation.evals[0].data_source.type", "completions"),
    ({"data_source": {**source(INLINE), "model": "tiny-llama"}}, "evaluation.evals[0].data_source.model", "leave it out"),
    ({"data_source": source({"type": "file_id", "id": "file-none"})}, "evaluation.evals[0]", "file-none"),
    ({"testing_criteria": []}, "evaluation.evals[0].testing_criteria", "testing_criteria"),
    ({"max_items": 0}, "evaluation.evals[0].max_items", "max_items"),
    ({"models": []}, "evaluation.evals[0]", "models"),
    ({"name": "a/b"}, "evaluation.evals[0]", "letters"),
    ({"testing_criteria": [{"type": "score_model", "name": "judge", "model": "no-such-model", "range": [0, 1],
                            "input": [{"role": "user", "content": "{{sample.output_text}}"}]}]}, "evaluation.evals[0]", "no-such-model"),
])
def test_a_wrong_eval_is_refused_with_the_job(daemon, change, param, words):
    file_id = daemon.upload(chat_rows(12)).json["id"]
    given = {"name": "x", "data_source_config": CONFIG, "testing_criteria": CRITERIA, "data_source": source(INLINE), **change}
    answer = daemon.post("/v1/fine_tuning/jobs", body(file_id, [{key: value for key, value in given.items() if value is not None}]))
    assert answer.status == 400, answer.json
    assert answer.json["error"]["param"] == param and words in answer.json["error"]["message"]
