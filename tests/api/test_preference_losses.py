"""Jobs over labelled answers, triples and sums of losses: rows, metrics, results, resumption, modifiers, and what is refused."""
import hashlib
import signal
import subprocess

import pytest

from daemon import chat_rows
from test_preference import HYPER, METRICS, message, openai_row, pair, preference, preference_body, run_job, series


def labelled_rows(i):
    """Both answers to a prompt as rows of their own, the first as text, the second as messages."""
    good, bad = pair(i)
    return [{"prompt": f"number {i}: ", "completion": good, "label": True, "source": "by hand"},
            {"prompt": [message("user", f"number {i}")], "completion": [message("assistant", bad)], "label": False}]


def triple(i):
    good, bad = pair(i)
    return {"prompt": f"number {i}: ", "chosen": good, "rejected": bad, "reference": f"It is {good}."}


@pytest.fixture(scope="module")
def labelled(daemon):
    made = daemon.upload([row for i in range(30) for row in labelled_rows(i)]).json
    assert made["report"]["formats"] == {"labelled": 60}
    return made["id"]


@pytest.fixture(scope="module")
def triples(daemon):
    return daemon.upload([triple(i) for i in range(30)]).json["id"]


@pytest.fixture(scope="module")
def pairs(daemon):
    return daemon.upload([openai_row(i) for i in range(30)]).json["id"]


def succeed(daemon, file_id, method, **options):
    job = daemon.post("/v1/fine_tuning/jobs", preference_body(file_id, method, **options))
    assert job.status == 200, job.body
    job = daemon.wait_job(job.json["id"])
    assert job["status"] == "succeeded", job["error"]
    return job, series(daemon, job["id"])


@pytest.mark.parametrize("method", [preference("kto", undesirable_weight=1.5), preference("bco"), preference("apo_zero_unpaired"),
                                    preference([{"name": "kto", "weight": 0.5}, "bco"], hyper={"gradient_leaves": 2})])
def test_labelled_answers_train_and_are_told_apart(daemon, labelled, method):
    _, values = succeed(daemon, labelled, method, validation_file=labelled)
    loss = method["preference"]["loss"]
    assert set(METRICS) | {"kl", "rows_desirable", "rows_undesirable", "valid_kl"} <= set(values)
    assert all(int(float(a)) + int(float(b)) in (8, 4) for a, b in zip(values["rows_desirable"].values(), values["rows_undesirable"].values()))
    assert float(list(values["valid_reward_margin"].values())[-1]) > 0
    assert float(list(values["valid_reward_accuracy"].values())[-1]) > 0.6
    assert ("reward_shift" in values) == (loss != "kto" and loss != "apo_zero_unpaired")
    if loss == "apo_zero_unpaired":
        assert abs(float(values["train_loss"][1]) - 0.5) < 1e-6  # no graft yet
    if loss == "kto":  # undesirable rows weigh more
        bad = float(values["rows_undesirable"][1])
        assert abs(float(values["train_loss"][1]) - (0.5 + 0.25 * bad / 8)) < 1e-6 and float(values["kl"][1]) == 0
        assert any(float(value) > 0 for value in values["kl"].values())


def test_undesirable_rows_weigh_by_their_prompts(daemon):
    rows = [{"prompt": f"{'sum' if i % 2 else 'product'} of {i} and {i}: ", "completion": "even", "label": i % 2 == 1} for i in range(24)]
    rows += [{"prompt": "sum of 3 and 4: ", "completion": "odd", "label": False}]
    file_id = daemon.upload(rows).json["id"]
    method = preference("bco", match_underlying_distribution=True, hyper={"max_steps": 3, "batch_size": 25})
    job, values = succeed(daemon, file_id, method, validation_file=file_id)
    assert job["method"]["preference"]["max_density_ratio"] == 10
    said = [e["message"] for e in daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json["data"]]
    told = next(text for text in said if text.startswith("The prompts alone"))
    assert int(told.split("put ")[1].split(" %")[0]) >= 80, told
    # Products are prompts of undesirable rows alone, the sum that is undesirable is one of many desirable ones.
    least, most = (float(part) for part in told.split("weigh ")[1].split(" to "))
    assert least == 0.5 and most > 2
    assert float(values["train_loss"][1]) < 0.693147 * (12 + 12 + most) / 25
    assert succeed(daemon, file_id, method)[1]["train_loss"] == values["train_loss"]
    one_kind = daemon.upload([{**row, "label": True} for row in rows]).json["id"]
    job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", preference_body(one_kind, method)).json["id"])
    assert job["status"] == "failed" and "every row of training_file is desirable" in job["error"]["message"]


def test_uneven_labels_are_warned_of(daemon):
    rows = [labelled_rows(i)[0] for i in range(6)] + [labelled_rows(0)[1]]
    file_id = daemon.upload(rows).json["id"]
    for method, part in ((preference("kto", hyper={"max_steps": 2}), "desirable_weight from 0.167 to 0.222"),
                         (preference("kto", hyper={"max_steps": 2}, desirable_weight=0.2), None)):
        job, _ = succeed(daemon, file_id, method)
        said = [e["message"] for e in daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json["data"] if e["level"] == "warn"]
        assert (said == []) if part is None else any(part in text for text in said), said


def test_rows_with_two_answers_become_two_labelled_ones(daemon, pairs):
    job, values = succeed(daemon, pairs, preference("kto", hyper={"n_epochs": 1}))
    assert len(values["train_loss"]) == 8  # 60 rows, 8 a step
    assert sum(float(v) for v in values["rows_desirable"].values()) == 30


@pytest.mark.parametrize("method,first", [
    (preference(["sigmoid", "sft"], loss_weights=[1, 0.5]), None),
    ({"type": "preference", "preference": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1], "hyperparameters": HYPER}}, None),
    (preference("aot", label_smoothing=0.1), 0.693147), (preference("aot_unpaired"), 0.693147),
    (preference("sigmoid", f_divergence_type="js_divergence"), 0.693147),
    (preference("sigmoid", f_divergence_type="alpha", f_alpha_divergence_coef=0.3), 0.693147),
    (preference("ipo", length_normalize=False), 25), (preference("dpo", ld_alpha=0.5), 0.693147),
    (preference("hinge", reference="none", beta=0.05), None), (preference("dpo", use_weighting=True), None), (preference("cpo", alpha=0.25, label_smoothing=0.1), None)])
def test_sums_and_modifiers_widen_the_margin(daemon, pairs, method, first):
    job, values = succeed(daemon, pairs, method, validation_file=pairs)
    margin = [float(v) for v in values["reward_margin"].values()]
    assert sum(margin[-4:]) > sum(margin[:4])
    assert first is None or abs(float(values["train_loss"][1]) - first) < 1e-5
    compares = method["preference"].get("loss") != "cpo" and "reference" not in method["preference"]
    assert "valid_reward_margin" in values and ("kl" in values) == compares


@pytest.mark.parametrize("loss", ["tpo", "tpo_l"])
def test_triples_train(daemon, triples, loss):
    _, values = succeed(daemon, triples, preference(loss, beta=0.1), validation_file=triples)
    assert float(list(values["valid_loss"].values())[-1]) < float(list(values["valid_loss"].values())[0])


@pytest.mark.parametrize("adapter", [{"type": "ia3"}, {"type": "ln_tuning"}])
def test_other_methods_than_lora_align(daemon, pairs, labelled, adapter):
    for file_id, method in ((pairs, preference("dpo")), (labelled, preference("kto"))):
        job, values = succeed(daemon, file_id, method, adapter=adapter)
        margin = [float(v) for v in values["reward_margin"].values()]
        assert sum(margin[-4:]) > sum(margin[:4])
        assert daemon.post("/v1/chat/completions", {"model": job["fine_tuned_model"], "max_tokens": 2, "messages": [
            message("user", "number 4")]}).status == 200


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_a_killed_run_over_whole_steps_continues_bit_for_bit(tmp_path, loss):
    rows = [openai_row(i) for i in range(30)]
    method = preference(loss, hyper={"n_epochs": 4, "gradient_leaves": 2, "tokens_per_batch": 64})
    whole = run_job(tmp_path, "whole", method, rows, tmp_path / "whole")
    cut = run_job(tmp_path, "cut", method, rows, tmp_path / "cut")
    subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(cut, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 12/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "cut" / "adapter").exists()
    subprocess.run(cut + ["--resume"], check=True, stdout=subprocess.DEVNULL)
    digests = [hashlib.sha256((tmp_path / out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
               for out in ("whole", "cut")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("row,field,reason", [
    ({"prompt": "p", "completion": "c", "label": "yes"}, "label", ""),
    ({"prompt": "p", "completion": "c", "label": None}, "label", ""),
    ({"prompt": "p", "completions": "c", "label": True}, "completions", "completion"),
    ({"prompt": "p", "label": True}, "completion", "missing"),
    ({"prompt": "p", "completion": [message("assistant", "c")], "label": True}, "completion", "both"),
    ({"prompt": [message("user", "p")], "completion": [message("user", "c")], "label": True}, "completion", ""),
])
def test_bad_labelled_rows_are_named(daemon, row, field, reason):
    answer = daemon.upload([labelled_rows(0)[0], row])
    assert answer.status == 400, answer.body
    assert "line 2" in answer.json["error"]["message"] and field in str(answer.json) and reason in str(answer.json), answer.json


def test_rows_that_do_not_fit_the_loss_fail_the_job_with_line_and_way_out(daemon, labelled, pairs):
    chats = daemon.upload(chat_rows(4)).json["id"]
    for file_id, method, part in (
            (labelled, preference("dpo"), "line 1: label: this is a labelled row with one answer; this loss compares two"),
            (labelled, {"type": "supervised"}, "line 1: label: this is a preference row (labelled)"),
            (chats, preference("kto"), "line 1: the row (chat) has no label"),
            (pairs, preference("tpo"), "line 1: reference is missing"),
            (daemon.upload([labelled_rows(0)[0]]).json["id"], preference("kto"), "has one row")):
        job = daemon.wait_job(daemon.post("/v1/fine_tuning/jobs", preference_body(file_id, method)).json["id"])
        assert job["status"] == "failed" and part in job["error"]["message"], job["error"]


@pytest.mark.parametrize("method,param,part", [
    (preference("kto", hyper={"batch_size": 1}), "method.preference.hyperparameters.batch_size", "2"),
    (preference(["dpo", "kto"]), "method.preference.loss", "cannot be summed"),
    (preference("kto", reference="none"), "method.preference.reference", "kto"),
    (preference("kto", match_underlying_distribution=True), "method.preference.match_underlying_distribution", "bco"),
    (preference("bco", max_density_ratio=2), "method.preference.max_density_ratio", "match_underlying_distribution"),
    (preference("bco", match_underlying_distribution=True, min_density_ratio=20), "method.preference.min_density_ratio", "above"),
    (preference("simpo", f_divergence_type="js"), "method.preference.f_divergence_type", "simpo"),
    (preference("aot", use_weighting=True), "method.preference.use_weighting", "aot"),
    (preference("kto", ld_alpha=0.5), "method.preference.ld_alpha", "kto"),
    (preference("dpo", loss_weights=[1, 2]), "method.preference.loss_weights", "2 numbers for 1"),
])
def test_combinations_that_mean_nothing_are_refused(daemon, pairs, method, param, part):
    answer = daemon.post("/v1/fine_tuning/jobs", preference_body(pairs, method))
    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"] == param and part in answer.json["error"]["message"], answer.json


@pytest.mark.parametrize("row,field,reason", [
    ({**openai_row(1), "non_preferred_output": openai_row(1)["preferred_output"]}, "non_preferred_output", "identical"),
    ({**openai_row(1), "preferred_output": [message("assistant", "")]}, "preferred_output", "empty"),
    ({"prompt": "p", "chosen": "a", "rejected": "a"}, "rejected", "identical"),
    ({"prompt": "p", "chosen": "a", "rejected": ""}, "rejected", "empty"),
    ({"prompt": "p", "completion": "", "label": True}, "completion", "empty"),
    ({"prompt": [message("user", "p")], "completion": [message("assistant", "")], "label": False}, "completion", "empty"),
])
def test_rows_with_nothing_to_compare_are_counted_refused_and_dropped_where_asked(daemon, tmp_path, row, field, reason):
    label = "label" in row
    rows = [labelled_rows(i)[i % 2] if label else openai_row(i) for i in range(6)] + [row]
    made = daemon.upload(rows).json
    assert made["report"]["incomparable_rows"] == 1 and made["report"]["bad_rows"] == 0
    assert made["report"]["problems"][0]["line"] == 7 and made["report"]["problems"][0]["field"] == field
    assert reason in made["report"]["problems"][0]["reason"]
    method = preference("kto" if label else "dpo", hyper={"max_steps": 1})
    answer = daemon.post("/v1/fine_tuning/jobs", preference_body(made["id"], method))
    assert answer.status == 400 and answer.json["error"]["param"] == "data.incomparable", answer.body
    assert "1 row with identical or empty answers" in answer.json["error"]["message"] and "drop" in answer.json["error"]["message"]
    job, _ = succeed(daemon, made["id"], method, data={"incomparable": "drop"})
    said = [e["message"] for e in daemon.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json["data"]]
    assert any("1 rows with identical or empty answers were dropped" in text and "line 7" in text for text in said), said
    command = run_job(tmp_path, "job", method, rows, tmp_path / "out")
    refused = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert refused.returncode != 0 and "line 7; remove them, or set data.incomparable" in refused.stdout
