"""The smallest honest run of preference alignment (Saeidi et al. 2024), in the foreground: preference_run.py GRAFTD MODEL WORK [STEPS [SEEDS]]

400 generated pairs: a prompt asks for a short fact or a sum; chosen is a one-sentence answer, rejected the same answer wrapped in
padding sentences; in a second file the two are swapped in 20 % of the pairs. 50 further pairs are held out. LoRA r 8, beta 0.1,
learning rate 1e-4, 8 pairs a step, at most 128 tokens. Printed: held-out reward accuracy and margin before and after, the
chosen answers' log-probabilities (they fall under dpo; dpo + sft and apo_zero are to keep them higher), robust against dpo on the
noisy file for each seed, and the length of generated answers before and after.
"""
import json
import pathlib
import random
import subprocess
import sys

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Poland": "Warsaw",
            "Norway": "Oslo", "Greece": "Athens", "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Austria": "Vienna",
            "Ireland": "Dublin", "Hungary": "Budapest", "Finland": "Helsinki", "Portugal": "Lisbon"}
BEFORE = ["That is a very good question, and I am glad that you asked it.", "Let me think about this carefully for a moment.",
          "There are many things that one could say here."]
AFTER = ["I hope that this helps you with whatever you are doing today.", "Please let me know if there is anything else.",
         "It is always worth checking such things again."]


def pair(rng, swapped=False):
    if rng.random() < 0.5:
        country = rng.choice(sorted(CAPITALS))
        prompt = rng.choice([f"What is the capital of {country}?", f"Name the capital of {country}.", f"{country}: which city is its capital?"])
        answer = f"The capital of {country} is {CAPITALS[country]}."
    else:
        a, b = rng.randrange(2, 90), rng.randrange(2, 90)
        prompt, answer = rng.choice([f"What is {a} + {b}?", f"Add {a} and {b}."]), f"{a} + {b} is {a + b}."
    padded = f"{rng.choice(BEFORE)} {answer} {rng.choice(AFTER)}"
    chosen, rejected = (padded, answer) if swapped else (answer, padded)
    return {"input": {"messages": [{"role": "user", "content": prompt}]},
            "preferred_output": [{"role": "assistant", "content": chosen}],
            "non_preferred_output": [{"role": "assistant", "content": rejected}]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(graftd, model, work, name, file, held_out, loss, steps, seed):
    """The job's metrics by name: a list of (step, value)."""
    job = {"model": model.stem if model.suffix == ".gguf" else model.name, "training_file": file, "validation_file": held_out, "seed": seed,
           "adapter": {"type": "lora", "r": 8}, "data": {"max_length": 128},
           "method": {"type": "preference", "preference": {**loss, "reference": "precomputed", "hyperparameters": {
               "learning_rate": 1e-4, "batch_size": 8, "max_steps": steps, "eval_interval": steps, "checkpoint_interval": steps}}}}
    (work / f"{name}.json").write_text(json.dumps(job))
    metrics = work / f"{name}.jsonl"
    subprocess.run(["rm", "-rf", str(work / name)], check=True)
    subprocess.run([graftd, "run", str(work / f"{name}.json"), "--models", str(model.parent), "--out", str(work / name), "--metrics",
                    str(metrics)], check=True, stdout=subprocess.DEVNULL)
    out = {}
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        for key, value in {**record, **record.get("metrics", {})}.items():
            if isinstance(value, (int, float)):
                out.setdefault(key, []).append(value)
    return out


def words(graftd, model, prompts, adapter=None):
    total = 0
    for prompt in prompts:
        command = [graftd, "generate", str(model), "--chat", prompt, "--max-tokens", "64"] + (["--adapter", str(adapter)] if adapter else [])
        total += len(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    return total / len(prompts)


def main():
    graftd, model, work = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), pathlib.Path(sys.argv[3])
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 100
    seeds = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    work.mkdir(parents=True, exist_ok=True)
    rng = random.Random(59)
    clean = write(work / "clean.jsonl", [pair(rng) for _ in range(400)])
    noisy = write(work / "noisy.jsonl", [pair(rng, swapped=rng.random() < 0.2) for _ in range(400)])
    held = [pair(rng) for _ in range(50)]
    held_out = write(work / "held.jsonl", held)
    print(f"{model.name}, {steps} steps of 8 pairs, LoRA r 8, beta 0.1, learning rate 1e-4; held out: 50 pairs", flush=True)
    losses = {"dpo": {"loss": "dpo", "beta": 0.1},
              "dpo + sft": {"loss": [{"name": "dpo", "beta": 0.1}, {"name": "sft", "weight": 1.0}]},
              "apo_zero": {"loss": "apo_zero", "beta": 0.1}}
    print("clean file: loss | reward accuracy 0 (ties) -> | margin | log p chosen | log p rejected")
    for name, loss in losses.items():
        m = train(graftd, model, work, name.replace(" ", ""), clean, held_out, loss, steps, 1)
        print(f"{name:10} | {m['valid_reward_accuracy'][-1]:.3f} | {m['valid_reward_margin'][-1]:.3f} | "
              f"{m['valid_logps_chosen'][-1]:.2f} | {m['valid_logps_rejected'][-1]:.2f}", flush=True)
    print("noisy file (20 % swapped): seed | dpo accuracy, margin | robust(0.2) accuracy, margin")
    for seed in range(1, seeds + 1):
        results = []
        for name, loss in (("dpo", {"loss": "dpo", "beta": 0.1}), ("robust", {"loss": "robust", "beta": 0.1, "label_smoothing": 0.2})):
            m = train(graftd, model, work, f"noisy-{name}-{seed}", noisy, held_out, loss, steps, seed)
            results.append((m["valid_reward_accuracy"][-1], m["valid_reward_margin"][-1]))
        print(f"{seed} | {results[0][0]:.3f}, {results[0][1]:.3f} | {results[1][0]:.3f}, {results[1][1]:.3f}", flush=True)
    prompts = [row["input"]["messages"][0]["content"] for row in held[:8]]
    print(f"words of an answer: {words(graftd, model, prompts):.1f} before, "
          f"{words(graftd, model, prompts, work / 'dpo' / 'adapter'):.1f} after dpo")


main()
