"""Reward models: trained as a job, their scores over HTTP, beside completions, and refusals both ways."""
import concurrent.futures
import json

import pytest

from daemon import chat_rows, job_body
from test_contract import check, schema_of
from test_preference import HYPER, message, openai_row, pair, preference, preference_body, series


def reward(centre=None, **hyper):
    options = {"hyperparameters": {**HYPER, **hyper}}
    if centre is not None:
        options["center_rewards_coefficient"] = centre
    return {"type": "reward", "reward": options}


def conversation(i, answer):
    return [message("user", f"number {i}"), message("assistant", answer)]


@pytest.fixture(scope="module")
def pairs(daemon):
    return daemon.upload([{**openai_row(i), "margin": 0.5} for i in range(60)]).json["id"]


@pytest.fixture(scope="module")
def judge(daemon, pairs):
    made = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, reward(0.01), validation_file=pairs))
    assert made.status == 200, made.json
    job = daemon.wait_job(made.json["id"])
    assert job["status"] == "succeeded", job["error"]
    assert job["method"]["type"] == "reward" and job["method"]["reward"]["center_rewards_coefficient"] == 0.01
    return job


def score(daemon, model, inputs, status=200):
    answer = daemon.post("/v1/rewards", {"model": model, "input": inputs})
    assert answer.status == status, answer.json
    return answer.json


def test_the_margin_grows_and_the_scores_tell_answers_apart(daemon, judge):
    values = series(daemon, judge["id"])
    assert {"rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy"} <= set(values)
    assert "logps_chosen" not in values and "kl" not in values
    margin = [float(v) for v in values["reward_margin"].values()]
    assert sum(margin[-5:]) > sum(margin[:5])
    assert float(list(values["valid_reward_accuracy"].values())[-1]) > 0.6
    inputs = [conversation(i, answer) for i in range(20) for answer in pair(i)]
    answer = score(daemon, judge["fine_tuned_model"], inputs)
    check(answer, schema_of("/v1/rewards", "post"))
    scores = [item["score"] for item in answer["data"]]
    assert [item["index"] for item in answer["data"]] == list(range(40)) and answer["usage"]["prompt_tokens"] > 40
    assert sum(good > bad for good, bad in zip(scores[::2], scores[1::2])) >= 12
    for i in (0, 7):
        alone = score(daemon, judge["fine_tuned_model"], inputs[i])["data"]
        assert len(alone) == 1 and alone[0]["score"] == pytest.approx(scores[i], abs=1e-3)


def test_the_files_are_pefts(daemon, judge):
    folder = daemon.data_dir / "jobs" / judge["id"] / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]


def test_scores_and_completions_share_the_batches(daemon, judge):
    tuned = daemon.post("/v1/fine_tuning/jobs", job_body(daemon.upload(chat_rows(20)).json["id"], hyper={"max_steps": 2})).json
    tuned = daemon.wait_job(tuned["id"])["fine_tuned_model"]
    inputs = [conversation(i, answer) for i in range(8) for answer in pair(i)]
    alone = [item["score"] for item in score(daemon, judge["fine_tuned_model"], inputs)["data"]]

    def chat(i):
        return daemon.post("/v1/chat/completions", {"model": tuned, "max_tokens": 24, "temperature": 0,
                                                    "messages": [message("user", f"number {i}")]})
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        chats = [pool.submit(chat, i) for i in range(4)]
        together = [pool.submit(score, daemon, judge["fine_tuned_model"], inputs) for _ in range(4)]
        assert all(answer.result().status == 200 for answer in chats)
        for answer in together:
            assert [item["score"] for item in answer.result()["data"]] == pytest.approx(alone, abs=1e-3)


def test_both_kinds_of_model_refuse_the_others_work(daemon, judge):
    for path, body in (("/v1/chat/completions", {"messages": [message("user", "hi")]}), ("/v1/completions", {"prompt": "hi"})):
        answer = daemon.post(path, {"model": judge["fine_tuned_model"], "max_tokens": 2, **body})
        assert answer.status == 400 and answer.json["error"]["param"] == "model" and "/v1/rewards" in answer.json["error"]["message"]
    error = score(daemon, "tiny-llama", "hi", 400)["error"]
    assert error["param"] == "model" and "no reward model" in error["message"]
    assert score(daemon, "nowhere", "hi", 404)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("given, param", [
    (None, "input"), ("", "input"), ([], "input"), (3, "input"), (["a", ""], "input[1]"), ([[1, -2]], "input[0]"),
    ([[{"role": "user", "content": "a"}]], "input[0]"), ([["a"]], "input[0]"), ([[{"role": "nobody", "content": "a"}]], "input[0][0].role"),
    ([1, 2, 10 ** 8], "prompt"), ("word " * 4000, "max_tokens")])
def test_bad_input_is_named(daemon, judge, given, param):
    error = score(daemon, judge["fine_tuned_model"], given, 400)["error"]
    assert error["param"].startswith(param), error


@pytest.mark.parametrize("body, param", [
    ({"type": "reward", "reward": {"loss": "dpo"}}, "method.reward.loss"),
    ({"type": "reward", "reward": {"center_rewards_coefficient": -1}}, "method.reward.center_rewards_coefficient"),
    (preference("bradley_terry"), "method.preference.loss")])
def test_bad_methods_are_named(daemon, pairs, body, param):
    answer = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, body))
    assert answer.status == 400 and answer.json["error"]["param"] == param, answer.json


def test_a_reward_model_goes_on_from_a_reward_model_only(daemon, judge, pairs):
    body = {**preference_body(pairs, reward(n_epochs=1)), "model": judge["fine_tuned_model"]}
    del body["adapter"]
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", body).json["id"])
    assert job["status"] == "succeeded", job["error"]
    margins = [list(map(float, series(daemon, j["id"])["reward_margin"].values())) for j in (judge, job)]
    assert margins[1][0] > margins[0][0]
    body["method"] = preference("dpo")
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", body).json["id"])
    assert job["status"] == "failed" and job["error"]["param"] == "model" and "reward" in job["error"]["message"]
