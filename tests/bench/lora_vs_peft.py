"""LoRA tuning beside PyTorch + PEFT in one run: same model, rows, targets, rank, batch, threads; A B A B.

    tests/bench/run [ROUNDS]

prints both figures of every round and the ratio of the medians, with peak resident memory. PyTorch runs in bf16 with rows
padded to the longest of the batch, as Trainer does without packing. Needs the virtual environment that tests/bench/run makes.
"""
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, STEPS, RANK, THREADS = 16, 12, 16, 2


def theirs(gguf, rows_path):
    """Child process: prints tokens per second and peak KiB."""
    import peft
    import torch
    import transformers
    torch.set_num_threads(THREADS)
    folder, name = os.path.split(gguf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    rows = [json.loads(line) for line in open(rows_path)]
    encoded = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        encoded.append((whole, [-100] * len(prompt) + whole[len(prompt):]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    tokens, losses, started = 0, [], None
    for step in range(STEPS):
        if step == 2:
            started, tokens = time.time(), 0
        batch = encoded[step * BATCH:(step + 1) * BATCH]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
        labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        tokens += sum(len(ids) for ids, _ in batch)
    print(json.dumps({"tokens_per_second": tokens / (time.time() - started), "first_loss": losses[0],
                      "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def ours(graftd, gguf, rows_path, work):
    job = {"model": pathlib.Path(gguf).stem, "training_file": rows_path, "seed": 1, "adapter": {"r": RANK},
           "method": {"type": "supervised", "supervised": {"hyperparameters": {
               "batch_size": BATCH, "max_steps": STEPS, "learning_rate": 5e-4, "lr_scheduler_type": "constant"}}}}
    path = f"{work}/job.json"
    pathlib.Path(path).write_text(json.dumps(job))
    out = tempfile.mkdtemp(dir=work)
    metrics = f"{out}.metrics"
    process = subprocess.Popen([graftd, "run", path, "--models", os.path.dirname(gguf), "--out", out, "--threads", str(THREADS),
                                "--metrics", metrics], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(output)
    steps = [json.loads(line) for line in open(metrics)]
    speeds = [step["tokens_per_second"] for step in steps[2:]]
    return {"tokens_per_second": statistics.harmonic_mean(speeds), "first_loss": steps[0]["train_loss"], "peak_kib": usage.ru_maxrss}


def main():
    graftd, gguf, work = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    rows_folder = f"{work}/rows"
    os.makedirs(rows_folder, exist_ok=True)
    subprocess.run([sys.executable, str(pathlib.Path(__file__).parent.parent.parent / "deploy/quickstart.py"), "rows", rows_folder],
                   check=True, stdout=subprocess.DEVNULL)
    rows = f"{work}/bench.jsonl"
    lines = open(f"{rows_folder}/train.jsonl").readlines()[:BATCH * STEPS]
    pathlib.Path(rows).write_text("".join(lines))
    ratios, ours_all, theirs_all = [], [], []
    for number in range(rounds):
        mine = ours(graftd, gguf, rows, work)
        child = subprocess.run([sys.executable, __file__, "--theirs", gguf, rows], stdout=subprocess.PIPE, check=True)
        other = json.loads(child.stdout.decode().strip().splitlines()[-1])
        ours_all.append(mine)
        theirs_all.append(other)
        ratios.append(mine["tokens_per_second"] / other["tokens_per_second"])
        print(f"round {number + 1}: graftd {mine['tokens_per_second']:.0f} tokens/s, {mine['peak_kib'] / 1024:.0f} MiB;"
              f" PEFT {other['tokens_per_second']:.0f} tokens/s, {other['peak_kib'] / 1024:.0f} MiB; ratio {ratios[-1]:.2f}")
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    if sys.argv[1] == "--theirs":
        theirs(sys.argv[2], sys.argv[3])
    else:
        main()
