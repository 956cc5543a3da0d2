"""Chat and text completions: every sampling field, streams, log-probabilities, and their errors."""
import json
import math
import threading

import openai
import pytest

from daemon import FIXTURES

CHAT = [{"role": "user", "content": "tell me"}]


def complete(client, **options):
    return client.completions.create(**{"model": "tiny-llama", "prompt": "one two", "max_tokens": 6, "temperature": 0, **options})


def test_greedy_is_reproducible_and_counts_tokens(client):
    first, second = complete(client), complete(client)
    assert first.choices[0].text == second.choices[0].text
    assert first.usage.completion_tokens <= 6
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens


def test_a_seed_fixes_sampling(client):
    options = {"temperature": 1.0, "max_tokens": 20, "extra_body": {"ignore_eos": True}}
    texts = [complete(client, seed=seed, **options).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_neighbours_in_the_batch_do_not_change_an_answer(client):
    alone = complete(client, seed=5, temperature=1.0, max_tokens=24).choices[0].text
    answers = []

    def run(seed):
        answers.append((seed, complete(client, seed=seed, temperature=1.0, max_tokens=24).choices[0].text))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (5, 6, 7, 8, 9, 10)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert dict(answers)[5] == alone


def test_n_choices_and_several_prompts_are_indexed(client):
    options = {"prompt": ["one", "two"], "n": 2, "temperature": 1.0, "seed": 1, "max_tokens": 20, "extra_body": {"ignore_eos": True}}
    answer = complete(client, **options)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 4
    assert [choice.text for choice in complete(client, **options).choices] == [choice.text for choice in answer.choices]


def test_a_prompt_that_the_model_ends_after_has_an_entry_for_its_end(client, daemon):
    config = json.loads((FIXTURES / "models" / "tiny-llama" / "config.json").read_text())
    ids = [5, 6, 7, 8]
    answer = complete(client, prompt=[ids], max_tokens=1, echo=True, logprobs=1, extra_body={"logit_bias": {config["eos_token_id"]: 100}})
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens == 0
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(ids) + 1


def test_echo_gives_prompt_logprobs_as_evaluation_harnesses_read_them(client, daemon):
    ids = daemon.post("/tokenize", {"model": "tiny-llama", "prompt": "one two three", "add_special_tokens": False}).json["tokens"]
    answer = complete(client, prompt=[ids], max_tokens=1, echo=True, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and len(logprobs.token_logprobs) == len(ids) + 1
    for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:]):
        assert value <= 0 and max(top.values()) >= value
    greedy = complete(client, prompt=[ids], max_tokens=0, echo=True, logprobs=1).choices[0].logprobs
    assert greedy.token_logprobs == logprobs.token_logprobs[:-1]


def test_chat_logprobs_are_normalised_and_sorted(client):
    answer = client.chat.completions.create(model="tiny-llama", messages=CHAT, max_tokens=3, temperature=0, logprobs=True,
                                            top_logprobs=20)
    for token in answer.choices[0].logprobs.content:
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True) and len(values) == 20
        assert token.logprob == pytest.approx(values[0]) and sum(map(math.exp, values)) <= 1.0001


def test_logit_bias_forces_and_forbids(client):
    forced = complete(client, logit_bias={"65": 100}, max_tokens=3, logprobs=0)
    assert len(set(forced.choices[0].logprobs.tokens)) == 1
    usual = complete(client, max_tokens=1, logprobs=1, echo=False)
    assert usual.choices[0].text is not None


def test_stop_strings_end_the_text_before_them(client):
    text = complete(client, max_tokens=40, seed=4, temperature=1.0, extra_body={"ignore_eos": True}).choices[0].text
    assert len(text) > 6
    stop = text[4:6]
    cut = complete(client, max_tokens=40, seed=4, temperature=1.0, stop=[stop], extra_body={"ignore_eos": True})
    assert cut.choices[0].text == text[:text.index(stop)] and cut.choices[0].finish_reason == "stop"


def test_stream_equals_the_whole_answer(client):
    options = {"model": "tiny-llama", "messages": CHAT, "max_tokens": 30, "seed": 11, "temperature": 1.0, "n": 2}
    whole = client.chat.completions.create(**options)
    texts = {0: "", 1: ""}
    finishes = {}
    for chunk in client.chat.completions.create(stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes.get(choice.index)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}


def test_unknown_fields_are_accepted_and_listed(daemon):
    answer = daemon.post("/v1/completions", {"model": "tiny-llama", "prompt": "a", "max_tokens": 1, "made_up": 1})
    assert answer.status == 200 and "made_up" in answer.headers["x-graftd-ignored-fields"]


@pytest.mark.parametrize("field,value,path", [
    ("temperature", 3, "/v1/completions"), ("temperature", "warm", "/v1/completions"), ("top_p", 1.5, "/v1/completions"),
    ("n", 0, "/v1/completions"), ("n", 129, "/v1/chat/completions"), ("max_tokens", -1, "/v1/completions"),
    ("logprobs", 6, "/v1/completions"), ("stop", ["a", "b", "c", "d", "e"], "/v1/completions"),
    ("stop", 5, "/v1/completions"), ("logit_bias", {"x": 1}, "/v1/completions"), ("logit_bias", {"5": 101}, "/v1/completions"),
    ("logit_bias", {"999999": 1}, "/v1/completions"), ("presence_penalty", 2.1, "/v1/completions"),
    ("frequency_penalty", -2.1, "/v1/completions"), ("best_of", 1, "/v1/completions"), ("suffix", "x", "/v1/completions"),
    ("prompt", [], "/v1/completions"), ("prompt", [1, -2], "/v1/completions"), ("prompt", [1.5], "/v1/completions"),
    ("prompt", [99999999], "/v1/completions"), ("prompt", {"a": 1}, "/v1/completions"), ("model", 5, "/v1/completions"),
    ("top_logprobs", 21, "/v1/chat/completions"), ("messages", [], "/v1/chat/completions"),
    ("messages", [{"role": "wizard", "content": "x"}], "/v1/chat/completions"),
    ("messages", [{"role": "user"}], "/v1/chat/completions"), ("messages", "hello", "/v1/chat/completions"),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "/v1/chat/completions"),
    ("response_format", {"type": "json_object"}, "/v1/chat/completions"), ("stream", "yes", "/v1/completions"),
])
def test_a_bad_field_is_named(daemon, field, value, path):
    body = {"model": "tiny-llama", "max_tokens": 2, **({"messages": CHAT} if "chat" in path else {"prompt": "a"})}
    if field == "best_of":
        body["n"] = 2
    if field == "top_logprobs":
        body["logprobs"] = True
    body[field] = value
    answer = daemon.post(path, body)
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert error["param"] and error["param"].split(".")[0].split("[")[0] == field, error
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert answer.headers["x-request-id"]


def test_too_long_a_prompt_names_the_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt="word " * 2000)
    assert caught.value.code == "context_length_exceeded" and "256" in caught.value.message


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, model="no-such-model")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("ft:no/such:model")


def test_a_client_that_goes_away_frees_its_request(daemon):
    import socket
    body = json.dumps({"model": "tiny-llama", "prompt": "a", "max_tokens": 200, "stream": True, "ignore_eos": True}).encode()
    for _ in range(5):
        link = socket.create_connection(("127.0.0.1", daemon.port))
        link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n" % (daemon.port, len(body)) + body)
        link.recv(100)
        link.close()
    answer = daemon.post("/v1/completions", {"model": "tiny-llama", "prompt": "a", "max_tokens": 1})
    assert answer.status == 200


def test_tokens_there_and_back(daemon):
    text = "one two, three: été 🙂"
    tokens = daemon.post("/tokenize", {"model": "tiny-llama", "prompt": text, "add_special_tokens": False}).json["tokens"]
    back = daemon.post("/detokenize", {"model": "tiny-llama", "tokens": tokens}).json
    assert back["prompt"] == text
    assert daemon.post("/tokenize", {"model": "tiny-llama", "prompt": "", "add_special_tokens": False}).json["tokens"] == []
