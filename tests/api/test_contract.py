"""The running daemon against api-spec/openapi.yaml: every answer fits its schema, every operation exists."""
import pathlib
import re

import jsonschema
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (content_type_conformance, response_schema_conformance, status_code_conformance)

from daemon import chat_rows, job_body

SPEC = pathlib.Path(__file__).parent.parent.parent / "api-spec" / "openapi.yaml"
DOCUMENT = yaml.safe_load(SPEC.read_text())


def test_the_document_served_is_the_document_in_the_repository(daemon):
    assert daemon.get("/openapi.yaml").body == SPEC.read_bytes()


def test_every_path_and_method_of_the_document_is_routed(daemon):
    for path, operations in DOCUMENT["paths"].items():
        for method in operations:
            if method in ("parameters", "summary", "description"):
                continue
            answer = daemon.call(method.upper(), re.sub(r"\{[^}]+\}", "nothing-here", path))
            assert answer.status != 405, (method, path)
            if answer.status == 404 and method != "head":
                assert "No route" not in answer.json["error"]["message"], (method, path)


@pytest.fixture(scope="module")
def finished(daemon):
    """Ids of things that exist, so that answers of 200 are looked at too."""
    file_id = daemon.upload(chat_rows(12)).json["id"]
    job = daemon.post("/v1/fine_tuning/jobs", job_body(file_id, validation_file=file_id, hyper={"checkpoint_interval": 2})).json
    return {"file_id": file_id, "job_id": job["id"], "model": daemon.wait_job(job["id"])["fine_tuned_model"]}


def schema_of(path, method="get", status="200"):
    content = DOCUMENT["paths"][path][method]["responses"][status]
    while "$ref" in content:
        content = resolve(content["$ref"])
    return content["content"]["application/json"]["schema"]


def resolve(reference):
    node = DOCUMENT
    for part in reference.lstrip("#/").split("/"):
        node = node[part]
    return node


def check(instance, schema):
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(instance)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/{file_id}", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{job_id}",
                                  "/v1/fine_tuning/jobs/{job_id}/checkpoints", "/v1/fine_tuning/jobs/{job_id}/metrics",
                                  "/v1/models", "/v1/models/{model}", "/healthz"])
def test_real_answers_fit_their_schemas(daemon, finished, path):
    assert path in DOCUMENT["paths"], sorted(DOCUMENT["paths"])
    answer = daemon.get(path.format(**finished))
    assert answer.status == 200
    check(answer.json, schema_of(path))


def test_completions_fit_their_schemas(daemon, finished):
    chat = daemon.post("/v1/chat/completions", {"model": finished["model"], "messages": [{"role": "user", "content": "number 1"}],
                                                "logprobs": True, "top_logprobs": 3, "max_tokens": 3, "n": 2})
    check(chat.json, schema_of("/v1/chat/completions", "post"))
    text = daemon.post("/v1/completions", {"model": "tiny-llama", "prompt": "one", "logprobs": 2, "max_tokens": 3, "echo": True})
    check(text.json, schema_of("/v1/completions", "post"))


def test_random_requests_get_declared_answers(daemon, finished):
    """Generated requests to every operation: declared status codes, schemas and content types, and never a 5xx."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    seen = set()

    for result in schema.exclude(path_regex="events$").get_all_operations():
        operation = result.ok()

        @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def probe(case):
            response = case.call(base_url=daemon.url, timeout=60)
            case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance,
                                                     response_schema_conformance])

        probe()
        seen.add((operation.method, operation.path))
    assert len(seen) >= 15
    assert daemon.get("/healthz").status == 200

