"""kill -9 of worker and server during a run of an eval: what is finished stays and is not done again."""
import os
import signal
import time

import pytest

ROWS = [{"item": {"q": f"number {i}", "a": "x"}} for i in range(1000)]
EVAL = {"name": "e", "data_source_config": {"type": "custom", "include_sample_schema": True, "item_schema": {
            "type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}}},
        "testing_criteria": [{"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
                              "input": "{{sample.output_text}}", "reference": "{{item.a}}", "pass_threshold": 0.5}]}
SOURCE = {"type": "completions", "model": "tiny-llama", "source": {"type": "file_content", "content": ROWS},
          "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]},
          "sampling_params": {"max_completion_tokens": 32}}


def start(daemon):
    eval_id = daemon.post("/v1/evals", EVAL).json["id"]
    return f"/v1/evals/{eval_id}/runs/" + daemon.post(f"/v1/evals/{eval_id}/runs", {"data_source": SOURCE}).json["id"]


def wait(daemon, path, items=None, timeout=120):
    """Until so many items are finished, or the run is over."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        run = daemon.get(path).json
        if run["status"] in ("completed", "failed", "canceled") or (items is not None and run["progress"]["items"] >= items):
            return run
        time.sleep(0.01)
    raise AssertionError(f"{run['progress']} after {timeout} s\n{daemon.log()[-2000:]}")


def items(daemon, path):
    found, after = {}, ""
    while True:
        page = daemon.get(f"{path}/output_items?limit=100{after}").json
        for item in page["data"]:
            assert item["datasource_item_id"] not in found
            found[item["datasource_item_id"]] = item
        if not page["has_more"]:
            return found
        after = "&after=" + page["last_id"]


def texts(found):
    return [found[i]["sample"]["output"][0]["content"] for i in range(len(ROWS))]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, models):
    from daemon import Daemon
    daemon = Daemon(tmp_path_factory.mktemp("reference") / "data", models).start()
    path = start(daemon)
    run = wait(daemon, path)
    assert run["status"] == "completed" and run["result_counts"]["errored"] == 0
    result = texts(items(daemon, path)), run["per_testing_criteria_results"]
    daemon.stop()
    return result


def check_finished(daemon, path, count, reference):
    """count: items that were finished when it was interrupted."""
    before = items(daemon, path)
    assert len(before) >= count
    run = wait(daemon, path)
    assert run["status"] == "completed", run["error"]
    found = items(daemon, path)
    assert sorted(found) == list(range(len(ROWS)))
    for index, item in before.items():
        assert found[index] == item # the very same, with its time
    assert texts(found) == reference[0] and run["per_testing_criteria_results"] == reference[1]
    usage, = run["per_model_usage"]
    assert usage["invocation_count"] == len(ROWS)
    said = [e["message"] for e in daemon.get(path + "/events?limit=100").json["data"]]
    went_on = [int(m.split()[1]) for m in said if m.startswith("Continuing: ")]
    assert went_on and max(went_on) >= count and said.count("The run has completed") == 1
    assert run["attempt"] == len(went_on) + 1


@pytest.mark.parametrize("count", [1, 200])
def test_kill_of_the_worker_repeats_nothing(own_daemon, reference, count):
    daemon = own_daemon().start()
    path = start(daemon)
    count = wait(daemon, path, items=count)["progress"]["items"]
    for pid in daemon.worker_pids():
        os.kill(pid, signal.SIGKILL)
    check_finished(daemon, path, count, reference)
    daemon.stop()


@pytest.mark.parametrize("count", [1, 250])
def test_kill_of_the_server_repeats_nothing(own_daemon, reference, count):
    daemon = own_daemon().start()
    path = start(daemon)
    count = wait(daemon, path, items=count)["progress"]["items"]
    daemon.kill()
    daemon.start()
    check_finished(daemon, path, count, reference)
    daemon.stop()


def test_sigterm_stores_what_is_finished(own_daemon, reference):
    daemon = own_daemon().start()
    path = start(daemon)
    count = wait(daemon, path, items=64)["progress"]["items"]
    daemon.stop()
    daemon.start()
    check_finished(daemon, path, count, reference)
    daemon.stop()


def test_runs_and_jobs_wait_in_one_queue(own_daemon):
    from daemon import chat_rows, job_body
    daemon = own_daemon().start()
    path = start(daemon)
    job = daemon.post("/v1/fine_tuning/jobs", job_body(daemon.upload(chat_rows(8)).json["id"], hyper={"n_epochs": 1})).json["id"]
    second = start(daemon)
    wait(daemon, path, items=1)
    assert daemon.get(f"/v1/fine_tuning/jobs/{job}").json["status"] == "queued"
    assert daemon.get(second).json["status"] == "queued"
    chat = daemon.post("/v1/chat/completions", {"model": "tiny-llama", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]})
    assert chat.status == 200 # served beside the run
    assert daemon.post(path).json["status"] == "canceled"
    assert daemon.wait_job(job)["status"] == "succeeded"
    wait(daemon, second, items=1)
    stopped = daemon.post(second)
    assert stopped.status == 200 and stopped.json["status"] == "canceled", stopped.json
    assert daemon.get("/healthz").status == 200
    daemon.stop()
