"""One training run of ours or theirs, in a process of its own: when its steps ended, their losses, processor time, peak memory."""
import dataclasses
import json
import os
import pathlib
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import psutil


@dataclasses.dataclass
class Work:
    """What both sides do: every step sees all rows once, packed."""
    folder: pathlib.Path                 # Hugging Face folder
    path: pathlib.Path                   # rows
    ids: list                            # the same as [[(id, weight), ...], ...]
    steps: int
    threads: int
    tokens_per_batch: int = 2048
    adapter: pathlib.Path | None = None  # a LoRA to start from; None: full fine-tuning
    model: str | None = None             # ours, where it is another file of the same model
    job: dict = dataclasses.field(default_factory=dict)  # members of our job besides
    hyperparameters: dict = dataclasses.field(default_factory=dict)

    @property
    def tokens(self):
        return sum(len(row) for row in self.ids)


@dataclasses.dataclass
class Measured:
    tokens: int
    losses: list
    seconds: list                        # of each step but the first
    processor_seconds: list              # the same, of the processors
    peak_bytes: int

    @property
    def rate(self):
        return self.tokens / statistics.median(self.seconds)

    @property
    def processor_rate(self):
        return self.tokens / statistics.median(self.processor_seconds)


def processor_seconds(pid):
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def watch(process, fifo):
    """Stamps the lines, one a step, that the process writes to `fifo` until it ends: (exit code, peak bytes, stamps, records)."""
    stamps, records, rest = [], [], b""
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        readable, _, _ = select.select([fifo], [], [], 0.02)
        more = os.read(fifo, 65536) if readable else b""
        if more:
            stamp = (time.perf_counter(), processor_seconds(process.pid) if not ended else None)
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                stamps.append(stamp)
                records.append(json.loads(line))
        elif ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_maxrss * 1024, stamps, records
        elif readable:
            time.sleep(0.005)  # nobody has it open


def run(command_of, work, environment, what):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="graftd-bench-"))
    try:
        os.mkfifo(folder / "steps")
        fifo = os.open(folder / "steps", os.O_RDONLY | os.O_NONBLOCK)
        with open(folder / "log", "w+") as log:
            command = [str(part) for part in command_of(folder)]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
            code, peak, stamps, records = watch(process, fifo)
            if code != 0 or len(records) != work.steps:
                log.seek(0)
                sys.exit(f"{what}: exit code {code}, {len(records)} of {work.steps} steps\n{' '.join(command)}\n{log.read()[-4000:]}")
        os.close(fifo)
    finally:
        shutil.rmtree(folder)
    steps = [(a, b) for a, b in zip(stamps, stamps[1:]) if b[1] is not None]
    return Measured(work.tokens, [record["train_loss"] for record in records], [b[0] - a[0] for a, b in steps],
                    [b[1] - a[1] for a, b in steps], peak)


def ours(program, work):
    def command(folder):
        hyperparameters = {"batch_size": len(work.ids), "n_epochs": work.steps, "tokens_per_batch": work.tokens_per_batch,
                           "learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_ratio": 0, **work.hyperparameters}
        body = {"model": work.model or work.folder.name, "training_file": str(work.path), "seed": 1, "precision": "bf16",
                "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}, **work.job}
        if work.adapter is not None:
            body["init_from"] = str(work.adapter)
        (folder / "job.json").write_text(json.dumps(body))
        return [program, "run", folder / "job.json", "--models", work.folder.parent, "--out", folder / "out", "--threads", work.threads,
                "--metrics", folder / "steps"]
    return run(command, work, {"OMP_NUM_THREADS": str(work.threads)}, "graftd")


def theirs(work, kind):
    """`kind`: "trl", "trainer"."""
    def command(folder):
        rows = [{"input_ids": [id for id, _ in row], "labels": [id if weight else -100 for id, weight in row]} for row in work.ids]
        (folder / "work.json").write_text(json.dumps({
            "kind": kind, "folder": str(work.folder), "adapter": str(work.adapter) if work.adapter else None, "rows": rows,
            "steps": work.steps, "threads": work.threads, "tokens": work.tokens_per_batch, "fifo": str(folder / "steps"),
            "out": str(folder / "out")}))
        return [sys.executable, pathlib.Path(__file__).with_name("torch_side.py"), folder / "work.json"]
    return run(command, work, {"OMP_NUM_THREADS": str(work.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                               "CUDA_VISIBLE_DEVICES": ""}, kind)
