"""Rows, progress and comparison for deploy/quickstart. Standard library only."""
import concurrent.futures
import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request

SYSTEM = "File the Debian package into its archive section. Answer with the name of the section only."
COUNTS = {"train": 2000, "valid": 100, "heldout": 200}


def packages():
    """(name, short description, section) of every package that the machine's own index knows."""
    index = subprocess.run(["apt-cache", "dumpavail"], stdout=subprocess.PIPE, check=True).stdout.decode("utf-8", "replace")
    found = {}
    for stanza in index.split("\n\n"):
        fields = {}
        for line in stanza.split("\n"):
            key, separator, value = line.partition(": ")
            if separator and not line.startswith(" "):
                fields.setdefault(key, value.strip())
        section = fields.get("Section", "").split("/")[-1]
        if "Package" in fields and "Description" in fields and section:
            found[fields["Package"]] = (fields["Package"], fields["Description"], section)
    return [found[name] for name in sorted(found)]


def message_row(name, description, section):
    return {"messages": [{"role": "system", "content": SYSTEM},
                         {"role": "user", "content": f"Package: {name}\nDescription: {description}"},
                         {"role": "assistant", "content": section}]}


def write_rows(folder):
    if all(os.path.exists(f"{folder}/{part}.jsonl") for part in COUNTS):
        print("rows are there already")
        return
    everything = packages()
    if len(everything) < sum(COUNTS.values()):
        sys.exit(f"the package index knows {len(everything)} packages only: run 'apt-get update' first")
    chosen = random.Random(1).sample(everything, sum(COUNTS.values()))
    start = 0
    for part, count in COUNTS.items():
        with open(f"{folder}/{part}.jsonl.part", "w", encoding="utf-8") as file:
            for package in chosen[start:start + count]:
                file.write(json.dumps(message_row(*package), ensure_ascii=False) + "\n")
        os.rename(f"{folder}/{part}.jsonl.part", f"{folder}/{part}.jsonl")
        start += count
    print(f"{len(everything)} packages; {', '.join(f'{count} {part}' for part, count in COUNTS.items())} rows, disjoint")


def call(url, body=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode()}")


def show_progress(job, terminal, last):
    progress = job.get("progress") or {}
    step, total = progress.get("step") or 0, progress.get("total_steps") or 0
    if not total:
        text = job["status"]
    else:
        loss, speed, left = progress.get("train_loss"), progress.get("tokens_per_second"), progress.get("seconds_remaining")
        bar = "#" * (30 * step // total)
        text = f"[{bar:.<30}] {step}/{total}"
        text += f"  loss {loss:.4f}" if loss is not None else ""
        text += f"  {speed:.0f} tokens/s" if speed else ""
        text += f"  {int(left) // 60}m{int(left) % 60:02d}s left" if left is not None else ""
    if terminal:
        print("\r" + text.ljust(90), end="", flush=True)
    elif text != last[0] and (step % 10 == 0 or not total):
        print(text, flush=True)
    last[0] = text


def follow(url, job_id):
    last = [""]
    while True:
        job = call(f"{url}/v1/fine_tuning/jobs/{job_id}")
        show_progress(job, sys.stdout.isatty(), last)
        if job["status"] in ("succeeded", "failed", "cancelled"):
            print()
            if job["status"] != "succeeded":
                sys.exit(f"job {job_id} {job['status']}: {(job.get('error') or {}).get('message')}")
            print(f"trained tokens {job['trained_tokens']}, model {job['fine_tuned_model']}")
            return
        time.sleep(1)


def ask(url, model, row):
    answer = call(f"{url}/v1/chat/completions", {"model": model, "messages": row["messages"][:-1], "temperature": 0,
                                                 "max_tokens": 16})
    return answer["choices"][0]["message"]["content"]


def names(text, section):
    """Whether the section stands anywhere in the answer as a word: a base model may wrap it in a sentence."""
    return section in [word.strip("\"'`*.,:;()").lower() for word in text.split()]


def compare(url, path, base, tuned):
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    answers, accuracy = {}, {}
    for model in (base, tuned):
        started = time.time()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers[model] = list(pool.map(lambda row: ask(url, model, row), rows))
        right = sum(names(text, row["messages"][-1]["content"]) for text, row in zip(answers[model], rows))
        accuracy[model] = right / len(rows)
        print(f"{accuracy[model]:6.1%}  {right:3d} of {len(rows)}  {model}  ({time.time() - started:.0f} s)")
    print(f"\n{'package':28} {'section':14} {'base':24} tuned")
    for row, before, after in list(zip(rows, answers[base], answers[tuned]))[:8]:
        package = row["messages"][1]["content"].split("\n")[0][9:]
        print(f"{package:28.28} {row['messages'][-1]['content']:14} {' '.join(before.split()):24.24} {' '.join(after.split())}")
    if accuracy[tuned] < 3 * accuracy[base]:
        sys.exit("the tuned model is not three times as accurate as the base")


if __name__ == "__main__":
    commands = {"rows": write_rows, "follow": follow, "compare": compare, "system": lambda: print(SYSTEM)}
    commands[sys.argv[1]](*sys.argv[2:])
