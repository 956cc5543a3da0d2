"""Graders over HTTP: what they say of a sample, what is refused, and the README's example."""

import json
import pathlib
import re
import subprocess
import threading
import time

import jsonschema
import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCUMENT = yaml.safe_load((ROOT / "api-spec" / "openapi.yaml").read_text())
RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
FLAGS = [
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]
DETAILS = [
    "python_grader_server_error_type",
    "python_grader_runtime_error_details",
    "model_grader_server_error_details",
]


def check(operation="eq", input="{{sample.output_text}}", reference="{{item.answer}}", name="exact", **more):
    return {
        "type": "string_check",
        "name": name,
        "operation": operation,
        "input": input,
        "reference": reference,
        **more,
    }


def similar(metric="fuzzy_match", name="near", **more):
    return {
        "type": "text_similarity",
        "name": name,
        "evaluation_metric": metric,
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        **more,
    }


def multi(graders, formula):
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


def run(daemon, grader, sample="Paris", item=None):
    answer = daemon.post(
        RUN, {"grader": grader, "model_sample": sample, "item": {"answer": "Paris"} if item is None else item}
    )
    assert answer.status == 200, answer.body
    schema = DOCUMENT["paths"][RUN]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(answer.json)
    return answer.json


def test_the_answer_has_openais_shape(daemon):
    answer = run(daemon, check())
    metadata = answer.pop("metadata")
    assert answer == {"reward": 1, "sub_rewards": {}, "model_grader_token_usage_per_model": {}}
    assert metadata.pop("execution_time") >= 0
    assert metadata == {
        "name": "exact",
        "type": "string_check",
        "scores": {},
        "token_usage": None,
        "sampled_model_name": None,
        "errors": {**dict.fromkeys(FLAGS, False), **dict.fromkeys(DETAILS), "message": None},
    }


def test_the_official_client_runs_and_validates(client):
    graders = client.fine_tuning.alpha.graders
    answer = graders.run(grader=similar("rouge_l"), model_sample="in Paris", item={"answer": "Paris"})
    assert (
        answer.reward == pytest.approx(2 / 3)
        and answer.metadata.name == "near"
        and answer.metadata.errors.other_error is False
    )
    assert graders.validate(grader=similar("rouge_l")).grader.evaluation_metric == "rouge_l"


@pytest.mark.parametrize(
    "metric",
    [
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "cosine",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ],
)
def test_every_metric_knows_equal_from_different(daemon, metric):
    item = {"answer": "The cat sat on the mat today."}
    assert run(daemon, similar(metric), item["answer"], item)["reward"] > 0.99
    assert run(daemon, similar(metric), "xyz", item)["reward"] < 0.1


def test_a_multi_grader_shows_its_parts(daemon):
    graders = {
        "city": check("eq", "{{sample.output_json.city}}", "{{item.answer}}"),
        "text": check("ilike", "{{sample.output_json.text}}", "STRASSE", name="anything"),
    }
    sample = json.dumps({"city": "Paris", "text": "die straße", "n": [1]})
    for form, names in (
        (graders, ("city", "text")),
        ([{**grader, "name": name} for name, grader in graders.items()], ("city", "text")),
        ({**graders["city"], "name": "city"}, ("city",)),
    ):
        answer = run(daemon, multi(form, "(city + 0.5) / 2"), sample)
        assert answer["reward"] == 0.75
        assert answer["sub_rewards"] == answer["metadata"]["scores"] == dict.fromkeys(names, 1)


@pytest.mark.parametrize(
    "grader, flag, said",
    [
        (check(input="{{sample.output_json.a}}"), "sample_parse_error", "{{sample.output_json.a}}"),
        (check(reference="{{item.anser}}"), "invalid_variable_error", "did you mean 'answer'"),
        (check(input="{{sample.output_tools}}"), "invalid_variable_error", "output_tools"),
        (multi({"a": check(), "b": check("ne")}, "a / b"), "formula_parse_error", "division of 1 by zero"),
        (multi({"a": check(), "b": check(reference="{{item.x}}")}, "a"), "invalid_variable_error", "b: {{item.x}}"),
    ],
)
def test_what_cannot_be_graded_is_flagged_not_refused(daemon, grader, flag, said):
    answer = run(daemon, grader)
    errors = answer["metadata"]["errors"]
    assert answer["reward"] == 0 and said in errors["message"]
    assert [name for name in FLAGS if errors[name]] == [flag]
    if grader["type"] == "multi":
        assert answer["sub_rewards"]["a"] == 1


def test_without_an_item_its_fields_are_missing(daemon):
    answer = daemon.post(RUN, {"grader": check(), "model_sample": "x"}).json
    assert answer["reward"] == 0 and answer["metadata"]["errors"]["invalid_variable_error"]


@pytest.mark.parametrize(
    "grader, param, code, said",
    [
        (None, "grader", "missing_required_parameter", "grader"),
        ("eq", "grader", "invalid_value", "grader object"),
        ({"type": "string_check"}, "grader.name", "missing_required_parameter", "name"),
        ({"type": "strng_check"}, "grader.type", "invalid_value", "did you mean 'string_check'"),
        ({"type": "python", "name": "p"}, "grader.source", "missing_required_parameter", "source"),
        ({"type": "python", "name": "p", "source": "x", "image": "y"}, "grader.image", "unknown_parameter", "image"),
        (
            {"type": "score_model", "name": "p", "model": "m", "input": []},
            "grader.input",
            "invalid_value",
            "messages",
        ),
        ({"type": "label_model"}, "grader.name", "missing_required_parameter", "name"),
        (check(operatoin="eq"), "grader.operatoin", "unknown_parameter", "operation"),
        (check("contains"), "grader.operation", "invalid_value", "ilike"),
        (check(input="{{item.x"), "grader.input", "invalid_value", "at character 1"),
        (similar("rogue_1"), "grader.evaluation_metric", "invalid_value", "did you mean 'rouge_1'"),
        (similar(pass_threshold=-1), "grader.pass_threshold", "invalid_value", "-1"),
        (multi({"a": check()}, "a +* 2"), "grader.calculate_output", "invalid_value", "at character 4"),
        (
            multi({"precision": check()}, "precison"),
            "grader.calculate_output",
            "invalid_value",
            "did you mean 'precision'",
        ),
        (multi([check(), check()], "exact"), "grader.graders[1]", "invalid_value", "two graders named 'exact'"),
        (multi({"a": multi({"b": check()}, "b")}, "a"), "grader.graders.a", "unsupported_value", "another"),
    ],
)
def test_bad_graders_are_refused_by_name(daemon, grader, param, code, said):
    for path, more in ((VALIDATE, {}), (RUN, {"model_sample": "", "item": {}})):
        answer = daemon.post(path, {"grader": grader, **more})
        assert answer.status == 400, answer.body
        error = answer.json["error"]
        assert (error["param"], error["code"]) == (param, code) and said in error["message"], error


@pytest.mark.parametrize(
    "body, param",
    [
        ({"grader": check()}, "model_sample"),
        ({"grader": check(), "model_sample": 1}, "model_sample"),
        ({"grader": check(), "model_sample": "", "item": []}, "item"),
        ({"grader": check(), "model_sample": "", "items": {}}, "items"),
    ],
)
def test_bad_requests_are_refused_by_name(daemon, body, param):
    answer = daemon.post(RUN, body)
    assert answer.status == 400 and answer.json["error"]["param"] == param


def python(source, **more):
    return {"type": "python", "name": "code", "source": source, **more}


GRADE = "def grade(sample, item):\n    return "


def test_python_grades_alone_and_in_a_formula(daemon):
    code = GRADE + "len(sample['output_text']) / len(item['answer'])"
    assert run(daemon, python(code, image_tag="2025-05-08"), "Par")["reward"] == pytest.approx(0.6)
    answer = run(daemon, multi({"exact": check(), "code": python(code)}, "exact - code"), "Par")
    assert answer["sub_rewards"] == {"exact": 0, "code": 0.6} and answer["reward"] == -0.6


@pytest.mark.parametrize(
    "body, said",
    [
        ("1 / 0", "line 2: ZeroDivisionError"),
        ("__import__('socket').create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("__import__('os').fork()", "PermissionError"),
        ("open('/etc/passwd').read()", "Error"),
        ("'text'", "not a number"),
    ],
)
def test_python_errors_are_the_items(daemon, body, said):
    answer = run(daemon, multi({"exact": check(), "code": python(GRADE + body)}, "exact + code"))
    errors = answer["metadata"]["errors"]
    assert answer["reward"] == 0 and answer["sub_rewards"] == {"exact": 1, "code": None}
    assert errors["python_grader_runtime_error"] and said in errors["python_grader_runtime_error_details"]


def test_python_is_compiled_by_validate_and_not_run(daemon):
    assert daemon.post(VALIDATE, {"grader": python("while True: pass\n" + GRADE + "1")}).status == 200
    for grader, param in (
        (python("def grade(:"), "grader.source"),
        (multi({"a": python("x = 1")}, "a"), "grader.graders.a.source"),
    ):
        answer = daemon.post(VALIDATE, {"grader": grader})
        assert answer.status == 400 and answer.json["error"]["param"] == param, answer.body


def test_the_operator_turns_python_off(own_daemon):
    daemon = own_daemon(environment={"GRAFTD_GRADERS_PYTHON": "off"}).start()
    for path, more in ((VALIDATE, {}), (RUN, {"model_sample": ""})):
        answer = daemon.post(path, {"grader": python(GRADE + "1"), **more})
        assert answer.status == 400 and answer.json["error"]["code"] == "unsupported_value"
        assert "graders.python" in answer.json["error"]["message"]


def test_the_operator_bounds_pythons_time(own_daemon):
    daemon = own_daemon(environment={"GRAFTD_GRADERS_PYTHON_SECONDS": "1"}).start()
    answer = run(daemon, python("import time\n" + GRADE + "time.sleep(60)"))
    assert "longer than 1 seconds" in answer["metadata"]["errors"]["python_grader_runtime_error_details"]


def test_validate_gives_the_grader_back(daemon):
    grader = multi({"a": similar(pass_threshold=0.5), "b": check()}, "0.5 * a + min(b, 1)")
    answer = daemon.post(VALIDATE, {"grader": grader})
    assert answer.status == 200 and answer.json == {"grader": grader}


def test_long_texts_are_compared_while_the_daemon_goes_on(daemon):
    words = "ab ba ca " * 13000
    graders = {f"g{i}": {**similar(), "input": "{{item.a}}", "reference": "{{item.b}}"} for i in range(8)}
    body = {"grader": multi(graders, "g0"), "model_sample": "", "item": {"a": words, "b": words[1:]}}
    done = []
    thread = threading.Thread(target=lambda: done.append(daemon.post(RUN, body)))
    thread.start()
    slowest = 0
    while thread.is_alive():
        start = time.monotonic()
        assert daemon.get("/healthz").status == 200
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.01)
    assert done[0].json["reward"] > 0.99 and slowest < 1
    long = run(daemon, similar(), "x", {"answer": "y" * 200_000})
    assert long["metadata"]["errors"]["other_error"] and "131072" in long["metadata"]["errors"]["message"]


def test_the_readmes_example_works(daemon):
    section = (ROOT / "README.md").read_text().split("## Graders\n", 1)[1].split("\n## ", 1)[0]
    command = "\n".join(line[4:] for line in re.search(r"(?:^    .*\n)+", section, re.M).group(0).splitlines())
    assert "http://127.0.0.1:8900" in command
    answer = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8900", daemon.url).replace("curl ", "curl -s ")],
        stdout=subprocess.PIPE,
        check=True,
    )
    answer = json.loads(answer.stdout)
    assert answer["reward"] == pytest.approx(0.5 + 0.5 * 10 / 14) and answer["sub_rewards"]["city"] == 1
