"""Every kind of job, graft, objective and request on an emulated device, in f32: the processor's losses, gradient norms, scores and
answers. One daemon a device does all of it, so that jobs of one kind also share their passes."""
import concurrent.futures

import pytest

from daemon import job_body
from test_encoders import rows as classified_rows
from test_evals import EXACT, NEAR, completions as eval_source, run as run_eval
from test_main_job import start
from test_methods import SETTINGS, kind
from test_preference import pair
from test_preference_losses import triple
from test_rewards import conversation
from test_t5 import rows as question_rows
from test_task_files import CHOICE, ROWS as TASK_ROWS, lines, make as make_task, run as run_task, scores_of, source as task_source

FILES = {
    "prompts": [{"prompt": f"{i} is ", "completion": ["even", "odd"][i % 2], "task": "parity"} for i in range(4)],
    "pairs": [{"prompt": f"{i} is ", "chosen": pair(i)[0], "rejected": pair(i)[1], "margin": 0.5} for i in range(4)],
    "labelled": [{"prompt": f"{i // 2} is ", "completion": pair(i)[0], "label": i % 4 < 2} for i in range(6)],
    "triples": [triple(i) for i in range(4)],
    "classes": classified_rows(6),
    "questions": question_rows(4),
}
HYPER = {"n_epochs": 1, "batch_size": 2, "max_steps": 2}
LORA = {"type": "lora", "r": 4}
BASE = "tiny-qwen3"  # two layers: an emulator counts them


def supervised(adapter, model=BASE, file="prompts", hyper=None, **options):
    return file, job_body(None, hyper={**HYPER, **(hyper or {})}, adapter=adapter, model=model, **options)


def objective(method, file, adapter=None, model=BASE, hyper=None, **options):
    """A job by another method than supervised tuning; `options` are the method's."""
    hyper = {**HYPER, "learning_rate": 5e-3, **(hyper or {})}
    return file, {"model": model, "training_file": None, "seed": 7, "adapter": adapter or LORA,
                  "method": {"type": method, method: {**options, "hyperparameters": hyper}}}


def preference(loss, file="pairs", **options):
    return objective("preference", file, loss=loss, **options)


TWO = {"target_modules": ["q_proj", "v_proj"]}
# Of these the emulator is spared some.
FEWER = {"poly": {"n_splits": 2, "n_skills": 2, "r": 2, **TWO}, "spt": {"sensitivity_batches": 1, **TWO}, "vera": {"r": 8, **TWO},
         **{name: TWO for name in ("dora", "pissa", "kasa", "loha", "lokr")}}
# Name -> the file of its rows, and its body.
JOBS = {
    **{name: supervised({"type": kind(name), **options, **FEWER.get(name, {})}, hyper={"learning_rate": rate})
       for name, (options, rate) in SETTINGS.items()},
    "rslora, leaves, dropout, recomputed": supervised({**LORA, "use_rslora": True, "lora_dropout": 0.2}, hyper={
        "batch_size": 4, "n_epochs": 2, "gradient_leaves": 2, "tokens_per_batch": 16, "gradient_checkpointing": True}),
    "full with its tables": supervised({"type": "full", "train_embeddings": True}, hyper={"learning_rate": 1e-3}),
    "nf4": supervised({**LORA, "r": 2}, quantization="nf4"),
    "blocks of a file": supervised({**LORA, "r": 2}, "tiny-llama-q8_0", quantization="file",
                                   hyper={"gradient_checkpointing": "feed_forward"}),
    "experts": supervised({**LORA, "r": 2, "target_modules": ["q_proj", "gate", "w2"]}, "tiny-mixtral",
                          hyper={"router_aux_loss_coef": 0.02}),
    "t5": supervised({**LORA, "lora_dropout": 0.05, "target_modules": ["q", "v", "wo"]}, "tiny-t5", "questions"),
    # AdamW's first step is the rate in the direction of even the smallest gradient, rounding's too.
    "t5, full": supervised({"type": "full", "train_embeddings": True}, "tiny-t5-gated", "questions", {
        "learning_rate": 1e-4, "gradient_checkpointing": True}),
    "dpo": preference("dpo", ld_alpha=0.5, use_weighting=True, f_divergence_type="js_divergence"),
    "sum": preference(["sigmoid", "bco_pair", {"name": "sft", "weight": 0.5}], reference="start"),
    "simpo": preference("simpo", alpha=0.25), "orpo": preference("orpo"),
    "ipo": preference("ipo", reference="precomputed"), "aot": preference("aot"),
    "tpo": preference("tpo", "triples"), "kto": preference("kto", "labelled"),
    "bco": preference("bco", "labelled", match_underlying_distribution=True, hyper={"batch_size": 3}),
    "reward": objective("reward", "pairs", center_rewards_coefficient=0.01),
    "encoder classes": objective("classification", "classes", {**LORA, "target_modules": ["query", "value"]}, "tiny-bert-mlm",
                                 class_weights="balanced"),
    "decoder classes": objective("classification", "classes"),
    "learned positions": supervised(LORA, "tiny-gpt2"),
}
VALIDATED = ("lora", "encoder classes")


def metrics(daemon, job):
    rows = [row.split(",")[:3] for row in daemon.get(f"/v1/fine_tuning/jobs/{job}/metrics?format=csv").body.decode().splitlines()[1:]]
    return {(name, int(step)): float(value) for step, name, value in rows if name != "tokens_per_second"}


def submit(daemon):
    files = {name: daemon.upload(rows).json["id"] for name, rows in FILES.items()}
    jobs = {}
    for name, (file, body) in JOBS.items():
        validation = {"validation_file": files[file]} if name in VALIDATED else {}
        made = daemon.post("/v1/fine_tuning/jobs", {**body, "training_file": files[file], **validation})
        assert made.status == 200, (name, made.json)
        jobs[name] = made.json["id"]
    return jobs


def wait(daemon, jobs):
    return {name: daemon.wait_job(job, timeout=1200) for name, job in jobs.items()}


@pytest.fixture(scope="module")
def sides(tmp_path_factory, models):
    """(daemon, its finished jobs) on the processor and on the device."""
    folder, daemons = tmp_path_factory.mktemp("kinds"), []
    try:
        for device in ("cpu", "cuda:0"):
            daemons.append(start(folder / device[:4], models, device))
        submitted = [submit(daemon) for daemon in daemons]
        yield [(daemon, wait(daemon, jobs)) for daemon, jobs in zip(daemons, submitted)]
    finally:
        for daemon in daemons:
            daemon.stop()


def near(a, b, relative=1e-3, absolute=1e-4):
    return abs(a - b) <= max(relative * abs(a), absolute)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_the_processors_losses_and_gradients(sides, name):
    jobs = [jobs[name] for _, jobs in sides]
    assert [job["status"] for job in jobs] == ["succeeded"] * 2, [job["error"] for job in jobs]
    cpu, cuda = (metrics(daemon, job["id"]) for (daemon, _), job in zip(sides, jobs))
    assert cpu.keys() == cuda.keys() and {("train_loss", 2), ("grad_norm", 2)} <= cpu.keys()
    assert (("valid_loss", 2) in cpu) == (name in VALIDATED)
    apart = {point: (value, cuda[point]) for point, value in cpu.items() if not near(value, cuda[point])}
    assert not apart, apart


def differences(a, b, at=""):
    """Where two answers differ: what names this one request may, numbers by rounding."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a if key not in ("id", "created", "model") for d in differences(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, pair in enumerate(zip(a, b)) for d in differences(*pair, f"{at}[{i}]")]
    numbers = isinstance(a, float) or isinstance(b, float)
    return [] if a == b or (numbers and near(a, b, absolute=1e-3)) else [(at, a, b)]


def both(sides, asks, at_once):
    """The answers to (path, job or base, body) of each side."""
    answers = []
    for daemon, jobs in sides:
        def ask(path, model, body):
            made = daemon.post(path, {"model": jobs[model]["fine_tuned_model"] if model in jobs else model, **body}, timeout=300)
            assert made.status == 200, (model, made.json)
            return made.json
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            answers.append([made.result() for made in [pool.submit(ask, *each) for each in asks]])
    return answers


def test_all_grafts_answer_in_one_batch_as_on_the_processor(sides):
    grafts = [name for name, (_, body) in JOBS.items() if body["model"] == BASE and name not in ("reward", "decoder classes")]
    asks = [("/v1/completions", name, {"prompt": "4 is ", "max_tokens": 2, "temperature": 0, "logprobs": 1, "ignore_eos": True})
            for name in [BASE, *grafts]]
    cpu, cuda = both(sides, asks, len(asks))
    assert {name: apart for (_, name, _), a, b in zip(asks, cpu, cuda) if (apart := differences(a, b))} == {}


SAMPLED = {"prompt": "one two", "max_tokens": 6, "temperature": 1.0, "seed": 5, "ignore_eos": True}
ASKS = [
    ("/v1/completions", "lora", {**SAMPLED, "top_p": 0.9, "n": 2, "logprobs": 2}),
    ("/v1/completions", "dora", {**SAMPLED, "presence_penalty": 0.5, "frequency_penalty": 1.0, "logit_bias": {"65": 5}}),
    ("/v1/completions", BASE, {**SAMPLED, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.3}),
    ("/v1/completions", "prefix_tuning", {"prompt": "one two three four", "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 2}),
    ("/v1/chat/completions", "tiny-llama", {"messages": [{"role": "user", "content": "number 3"}], "max_tokens": 3, "temperature": 0, "logprobs": True,
                                     "top_logprobs": 3}),
    *[("/v1/completions", model, {"prompt": "4 is ", "max_tokens": 3, "temperature": 0, "logprobs": 2})
      for model in ("nf4", "blocks of a file", "experts", "t5", "learned positions")],
    ("/v1/embeddings", "tiny-minilm", {"input": ["the cat sat on the mat", "bad"]}),
    ("/v1/classifications", "tiny-bert", {"input": ["a dog ran far!", "bad"]}),
    ("/v1/classifications", "encoder classes", {"input": ["great film", "bad"]}),
    ("/v1/classifications", "decoder classes", {"input": ["great film", "bad"]}),
    ("/v1/rewards", "reward", {"input": [conversation(1, "odd"), "any text"]}),
]


def test_requests_of_every_kind_are_answered_as_on_the_processor(sides):
    cpu, cuda = both(sides, ASKS, 4)  # a worker holds so many bases at a time
    assert [(ask[:2], apart) for ask, a, b in zip(ASKS, cpu, cuda) if (apart := differences(a, b))] == []


def test_evals_and_tasks_score_as_on_the_processor(sides):
    found = []
    for daemon, _ in sides:
        rows = [{"item": {"q": f"number {i}", "a": "even"}} for i in range(3)]
        result, items = run_eval(daemon, [EXACT, NEAR], eval_source(rows, temperature=0))
        assert result["status"] == "completed", result
        files = {"rows": daemon.upload(lines(TASK_ROWS[4:7]), purpose="evals").json["id"],
                 "few": daemon.upload(lines(TASK_ROWS[:4]), purpose="evals").json["id"]}
        scored = run_task(daemon, make_task(daemon, CHOICE), task_source(files, True))
        assert scored["status"] == "completed", scored
        found.append([[item["sample"]["output"] for item in items], scores_of(scored)])
    assert differences(*found) == []
