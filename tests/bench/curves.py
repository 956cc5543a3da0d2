"""How speed and memory grow: with length, rank, jobs, threads; memory with and without recomputation. Ours alone, medians; PNG plots."""
import dataclasses
import os
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import prepare  # noqa: E402
import training  # noqa: E402

LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
RANKS = [4, 16, 64, 128]  # keys and values of the model have 192 outputs
JOBS = [1, 2, 4, 8]


def plot(chosen, name, x, series, x_label, y_label):
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for label, y in series:
        axes.plot(x, y, marker="o", label=label)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(value) for value in x])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(chosen.out / f"{name}.png", dpi=110)
    plt.close(figure)


def by_length(bench, length, **more):
    """Steps of 2048 tokens in rows of `length`, or of one longer row."""
    rows = max(1, 2048 // length)
    return bench.work(prepare.smol_folder(bench.cache), name=f"rows-{length}", lengths=[length] * rows,
                      tokens_per_batch=length * rows, **more)


def measure(bench):
    def run(work):
        done = training.ours(bench.program, dataclasses.replace(work, steps=3))
        prepare.say(f"  {done.tokens} tokens a step, {work.threads} threads: {done.rate:.0f} tokens/s, {done.peak_bytes >> 20} MiB")
        return done

    chosen = bench.chosen
    threads = sorted({1, chosen.threads})
    tables = []

    prepare.say("curves: length")
    kept = {count: [run(by_length(bench, length, threads=count)) for length in LENGTHS] for count in threads}
    again = [run(by_length(bench, length, hyperparameters={"gradient_checkpointing": True})) for length in LENGTHS]
    head = ["length", *[f"tokens/s, {count} thread{'s' * (count > 1)}" for count in threads], "a processor second",
            "tokens/s, layers recomputed", "peak MiB", "peak MiB, layers recomputed"]
    last = kept[threads[-1]]
    tables.append(("Speed and memory against length: LoRA r=16 on SmolLM2-135M, bf16, steps of 2048 tokens or one longer row", head,
                   [[str(length), *[f"{kept[count][i].rate:.0f}" for count in threads], f"{last[i].processor_rate:.0f}",
                     f"{again[i].rate:.0f}", str(last[i].peak_bytes >> 20), str(again[i].peak_bytes >> 20)]
                    for i, length in enumerate(LENGTHS)]))
    plot(chosen, "speed-length", LENGTHS, [(f"{count} threads", [m.rate for m in kept[count]]) for count in threads] +
         [("layers recomputed", [m.rate for m in again])], "tokens of a row", "tokens/s")
    plot(chosen, "memory-length", LENGTHS, [("kept", [m.peak_bytes / 2**20 for m in last]),
                                            ("layers recomputed", [m.peak_bytes / 2**20 for m in again])], "tokens of a row", "peak MiB")

    prepare.say("curves: rank")
    ranked = [run(bench.work(prepare.smol_folder(bench.cache), rank=rank)) for rank in RANKS]
    tables.append(("Speed and memory against rank: LoRA on SmolLM2-135M, bf16, packed 2048", ["rank", "tokens/s", "a processor second", "peak MiB"],
                   [[str(rank), f"{m.rate:.0f}", f"{m.processor_rate:.0f}", str(m.peak_bytes >> 20)] for rank, m in zip(RANKS, ranked)]))
    plot(chosen, "speed-rank", RANKS, [("tokens/s", [m.rate for m in ranked])], "rank", "tokens/s")

    prepare.say("curves: jobs")
    tool, shared = bench.program.parent / "tests" / "bench" / "four_jobs", []
    for count in JOBS:
        text = prepare.run(tool, prepare.smol_folder(bench.cache), 1, 64, 16, 8, "auto", count, env={**os.environ, "OMP_NUM_THREADS": str(chosen.threads)})
        shared.append(re.search(r"in turn (\d+) tokens/s, together (\d+)", text).groups())
    tables.append(("Speed against jobs side by side: LoRA r=16 on SmolLM2-135M, rows of 64 tokens, all jobs' tokens/s", ["jobs", "in turn", "in one pass"],
                   [[str(count), *pair] for count, pair in zip(JOBS, shared)]))
    plot(chosen, "speed-jobs", JOBS, [("in turn", [float(pair[0]) for pair in shared]), ("in one pass", [float(pair[1]) for pair in shared])],
         "jobs", "tokens/s")
    return tables
