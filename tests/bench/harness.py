"""lm-evaluation-harness, unmodified, on graftd through local-completions, beside its own transformers backend on the same model,
and graftd's own reading of the same task files.

    python tests/bench/harness.py GRAFTD MODEL WORK

MODEL is a Hugging Face folder, or a .gguf that is written out as one in float32 first. Needs lm_eval[api], torch, transformers
(and gguf). Prints every score of every task by every way, and ends with exit code 1 when some differ by more than rounding.
"""
import argparse
import collections
import fractions
import gzip
import heapq
import json
import os
import pathlib
import random
import statistics
import string
import subprocess
import sys
import textwrap
import zipfile

TOLERANCE = {"word_perplexity": 2e-3, "byte_perplexity": 2e-3, "bits_per_byte": 2e-3, "perplexity": 2e-3}  # relative; else 1e-9
CAPITALS = [line.split(":") for line in """France:Paris Italy:Rome Spain:Madrid Germany:Berlin Japan:Tokyo China:Beijing
Russia:Moscow Egypt:Cairo Greece:Athens Portugal:Lisbon Poland:Warsaw Austria:Vienna Hungary:Budapest Ireland:Dublin
Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Cuba:Havana Peru:Lima Chile:Santiago Kenya:Nairobi
Iran:Tehran Iraq:Baghdad India:Delhi Thailand:Bangkok Vietnam:Hanoi Turkey:Ankara Ukraine:Kyiv Canada:Ottawa""".split()]
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "Question: What is the capital of {{country}}?\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
fewshot_split: few
num_fewshot: 2
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
""",
    "letters": """
output_type: multiple_choice
doc_to_text: "{{country}}'s capital?{% for c in choices %}\\n{{ 'ABCD'[loop.index0] }}. {{ c }}{% endfor %}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: gold
fewshot_split: few
fewshot_config: {sampler: first_n}
num_fewshot: 3
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "yesno": """
output_type: multiple_choice
doc_to_text: "{{choices[0]}} is the capital of {{country}}. True or false?"
doc_to_choice: {no: "false", yes: "true"}
doc_to_target: "{{(gold == 0) | int}}"
metric_list:
  - {metric: acc}
""",
    "last": """
output_type: loglikelihood
doc_to_text: "The capital of {{country}} is"
doc_to_target: " {{choices[gold]}}"
metric_list:
  - {metric: perplexity}
  - {metric: acc}
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
""",
    "sums": """
output_type: generate_until
doc_to_text: "{{a}} + {{b}} ="
doc_to_target: "{{a + b}}"
fewshot_split: few
num_fewshot: 4
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
filter_list:
  - name: number
    filter:
      - {function: regex, regex_pattern: "(-?[0-9]+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, ignore_case: true, ignore_punctuation: true}
""",
    "talk": """
output_type: generate_until
doc_to_text: "Country: {{country}}. Capital:"
doc_to_target: "{{choices[gold]}}"
description: "Name the capital.\\n\\n"
fewshot_split: few
num_fewshot: 1
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 16}
metric_list:
  - {metric: exact_match, ignore_case: true, regexes_to_ignore: ["^ +"]}
  - {metric: bleu}
  - {metric: chrf}
""",
}


def write_tasks(work):
    rng = random.Random(7)
    names = [capital for _, capital in CAPITALS]
    rows = []
    for country, capital in CAPITALS:
        choices = rng.sample([name for name in names if name != capital], 3) + [capital]
        rng.shuffle(choices)
        rows.append({"country": country, "choices": choices, "gold": choices.index(capital), "a": rng.randrange(50),
                     "b": rng.randrange(50)})
    modules = [argparse, collections, fractions, gzip, heapq, random, statistics, string, textwrap, zipfile]
    paragraphs = [text for module in modules for text in (module.__doc__ or "").split("\n\n") if len(text) > 100][:16]
    paragraphs.append("\n\n".join(paragraphs[:8]))
    files = {"few": rows[:6], "test": rows[6:], "texts": [{"text": p} for p in paragraphs]}
    for name, lines in files.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, text in TASKS.items():
        data = {"test": str(work / ("texts.jsonl" if name == "rolling" else "test.jsonl"))}
        if "few" in text:
            data["few"] = str(work / "few.jsonl")
        (work / f"{name}.yaml").write_text(
            f"task: graftd_{name}\ndataset_path: json\ndataset_kwargs: {json.dumps({'data_files': data})}\ntest_split: test\n{text.lstrip()}")


def write_folder(gguf, folder):
    import torch
    import transformers

    if not (folder / "model.safetensors").exists():
        source = pathlib.Path(gguf)
        model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        plain = transformers.AutoModelForCausalLM.from_config(type(model.config)(**settings), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def harness(work, name, model, arguments, environment=None):
    """The scores {task: {metric,filter: value}} of one run of lm_eval's command line."""
    out = work / f"results-{name}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--include_path", str(work), "--tasks",
               ",".join(f"graftd_{task}" for task in TASKS), "--output_path", str(out), "--batch_size", "8", "--device", "cpu"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1",
                                        "OPENAI_API_KEY": "none", **(environment or {})},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-6000:]}")
    newest = max(out.rglob("results_*.json"), key=os.path.getmtime)
    found = json.loads(newest.read_text())["results"]
    return {task: {key: value for key, value in found[f"graftd_{task}"].items() if isinstance(value, (int, float)) and "," in key}
            for task in TASKS}


def serve(graftd, models, work):
    log = open(work / "daemon.log", "ab")
    process = subprocess.Popen([graftd, "serve", "--data-dir", str(work / "data"), "--models", str(models), "--listen", "127.0.0.1:0"],
                               stdout=subprocess.PIPE, stderr=log, env={**os.environ, "GRAFTD_COMPUTE": "f32"})
    return process, process.stdout.readline().decode().split()[-1]


def own(graftd, models, model, work):
    """The scores that graftd itself gives the task files."""
    ways = {}
    for task in TASKS:
        out = work / "own" / task
        subprocess.run(["rm", "-rf", str(out)], check=True)
        subprocess.run([graftd, "run", str(work / f"{task}.yaml"), "--models", str(models), "--model", model, "--out", str(out)],
                       env={**os.environ, "GRAFTD_COMPUTE": "f32"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        ways[task] = {}
        for score in json.loads((out / "scores.json").read_text())["scores"]:
            name, _, rest = score["name"].partition(",")
            ways[task][f"{name},{rest}"] = score["score"]
            ways[task][f"{name}_stderr,{rest}"] = score["standard_error"]
    return ways


def main():
    graftd, model, work = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(model).resolve()
    if model.endswith(".gguf"):
        folder = work / "models" / "model-f32"
        write_folder(model, folder)
    write_tasks(work)
    ways = {"transformers": harness(work, "hf", "hf", f"pretrained={folder},dtype=float32")}
    process, url = serve(graftd, folder.parent, work)
    try:
        ways["graftd"] = harness(work, "graftd", "local-completions",
                                 f"model={folder.name},base_url={url}/v1/completions,tokenizer={folder},tokenizer_backend=huggingface")
        ways["graftd, its tokenizer"] = harness(work, "remote", "local-completions", f"model={folder.name},base_url={url}/v1/completions")
    finally:
        process.terminate()
        process.wait()
    ways["graftd run"] = own(graftd, folder.parent, folder.name, work)
    worse = 0
    print(f"{'task':10} {'score':34}" + "".join(f"{name:>24}" for name in ways))
    for task in TASKS:
        for key, expected in ways["transformers"][task].items():
            values = [way[task].get(key, float("nan")) for way in ways.values()]
            allowed = TOLERANCE.get(key.split(",")[0].replace("_stderr", ""), 1e-9) * max(1, abs(expected))
            same = all(abs(value - expected) <= allowed for value in values)
            worse += not same
            print(f"{task:10} {key:34}" + "".join(f"{value:24.10g}" for value in values) + ("" if same else "  <-- differs"))
    sys.exit(worse > 0)


main()
