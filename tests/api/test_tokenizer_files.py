"""Models without tokenizer.json, and free variables of chat templates, through the daemon."""
import json
import os
import subprocess

import pytest

from daemon import Daemon, FIXTURES, GRAFTD

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}{% if thinking %}{{ 'think ' * thinking }}{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny-llama with a SentencePiece model, with and without the model file."""
    models = tmp_path_factory.mktemp("spm-models")
    for name in ("spm", "nothing"):
        path = models / name
        path.mkdir()
        for file in ("config.json", "model.safetensors"):
            os.symlink(FIXTURES / "models" / "tiny-llama" / file, path / file)
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "chat_template": TEMPLATE}))
    stored = json.loads((FIXTURES / "tokenizer" / "spm_bpe.json").read_text())
    (models / "spm" / "tokenizer.model").write_bytes(bytes.fromhex(stored["model"]))
    return models


@pytest.fixture(scope="module")
def spm(tmp_path_factory, folder):
    daemon = Daemon(tmp_path_factory.mktemp("spm-data"), folder)
    daemon.start()
    yield daemon
    daemon.stop()


def chat(daemon, **options):
    return daemon.post("/v1/chat/completions", {"model": "spm", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, **options})


def test_inspect_names_the_kind_and_what_is_missing(folder):
    done = subprocess.run([GRAFTD, "inspect", folder / "spm", "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokenizer"]["kind"] == "BPE (characters)"
    done = subprocess.run([GRAFTD, "inspect", folder / "nothing"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "none of tokenizer.json, tokenizer.model" in done.stderr


def test_a_sentencepiece_model_completes(spm):
    answer = spm.post("/v1/completions", {"model": "spm", "prompt": "hello world", "max_tokens": 3, "temperature": 0})
    assert answer.status == 200, answer.json
    assert answer.json["usage"]["prompt_tokens"] > 2


def test_free_variables_reach_the_template(spm):
    plain, longer = (chat(spm, chat_template_kwargs=kwargs) for kwargs in (None, {"thinking": 5}))
    assert plain.status == longer.status == 200, longer.json
    assert longer.json["usage"]["prompt_tokens"] > plain.json["usage"]["prompt_tokens"]


@pytest.mark.parametrize("kwargs, param, words", [
    ({"thinkin": 5}, "chat_template_kwargs.thinkin", "does not read 'thinkin'"),
    ({"messages": []}, "chat_template_kwargs.messages", "leave it out"),
    ({"bos_token": "x"}, "chat_template_kwargs.bos_token", "leave it out"),
    ([1], "chat_template_kwargs", "object"),
    ({f"k{i}": 1 for i in range(129)}, "chat_template_kwargs", "129 entries"),
])
def test_other_variables_are_refused_by_name(spm, kwargs, param, words):
    answer = chat(spm, chat_template_kwargs=kwargs)
    assert answer.status == 400, answer.json
    assert answer.json["error"]["param"] == param and words in answer.json["error"]["message"], answer.json
