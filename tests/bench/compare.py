"""The rows of the table: what is measured by turns, against whom, and what it should come to on a processor with AMX."""
import dataclasses
import os
import random
import re
import shutil
import statistics
import tempfile

import curves
import prepare
import report
import serving
import training

LENGTHS = [96, 160, 192, 224, 256, 288, 384, 448]  # of the rows of a step: 2048 tokens


@dataclasses.dataclass
class Row:
    """One line of the table. A side's figure of a round is (value, processor seconds or None)."""
    work: str
    rival: str
    unit: str
    target: float                 # of ours / theirs, or of ours where there is no rival
    more: bool = True             # at least the target; else at most
    ours: list = dataclasses.field(default_factory=list)
    theirs: list = dataclasses.field(default_factory=list)
    processors: list = dataclasses.field(default_factory=list)  # the same ratio by processor seconds, of each round
    check: str = ""               # what was compared
    wrong: bool = False

    @property
    def ratios(self):
        return [a / b for a, b in zip(self.ours, self.theirs)] or self.ours

    @property
    def met(self):
        middle = statistics.median(self.ratios)
        return middle >= self.target if self.more else middle <= self.target


class Bench:
    def __init__(self, chosen):
        self.chosen, self.cache, self.rounds = chosen, chosen.cache, chosen.rounds
        self.program = prepare.graftd(chosen)
        self.models = self.cache / "models"

    def work(self, folder, adapter=True, name="packed-2048", lengths=None, rank=16, **more):
        path, ids = prepare.rows(self.cache, self.program, prepare.smol_folder(self.cache), lengths or LENGTHS, name)
        more.setdefault("threads", self.chosen.threads)
        return training.Work(folder, path, ids, self.chosen.steps, adapter=prepare.adapter(self.cache, folder, rank) if adapter else None,
                             **more)

    def trained(self, title, target, memory_target, ours, theirs, rival):
        """Rows of speed and of memory from the same runs; ours() and theirs() run one round."""
        speed = Row(f"{title}: tokens/s", rival, "tokens/s", target)
        memory = Row(f"{title}: peak memory", rival, "MiB", memory_target or 0.5, more=False)
        apart = 0.0
        for number in range(self.rounds):
            mine, other = ours(), theirs()
            speed.ours.append(mine.rate)
            speed.theirs.append(other.rate)
            speed.processors.append(mine.processor_rate / other.processor_rate)
            memory.ours.append(mine.peak_bytes / 2**20)
            memory.theirs.append(other.peak_bytes / 2**20)
            apart = max([apart] + [abs(a - b) for a, b in zip(mine.losses, other.losses)])
            prepare.say(f"  round {number + 1}: {mine.rate:.0f} and {other.rate:.0f} tokens/s,"
                        f" {mine.processor_rate:.0f} and {other.processor_rate:.0f} a processor second,"
                        f" {mine.peak_bytes >> 20} and {other.peak_bytes >> 20} MiB, losses {mine.losses[-1]:.4f} and {other.losses[-1]:.4f}")
        speed.check = f"losses of {self.chosen.steps} steps within {apart:.4f}"
        speed.wrong = apart > 0.01
        return [speed, memory] if memory_target else [speed]

    # ---- training ----

    def lora(self):
        work = self.work(prepare.smol_folder(self.cache))
        return self.trained("LoRA r=16, SmolLM2-135M, bf16, packed 2048", 2.0, 0.5, lambda: training.ours(self.program, work),
                            lambda: training.theirs(work, "trl"), "TRL + PEFT")

    def qwen(self):
        work = self.work(prepare.qwen_folder(self.cache))
        return self.trained("LoRA r=16, Qwen2.5-0.5B shape, bf16, packed 2048", 1.6, None, lambda: training.ours(self.program, work),
                            lambda: training.theirs(work, "trl"), "TRL + PEFT")

    def full(self):
        work = self.work(prepare.smol_folder(self.cache), adapter=False, job={"adapter": {"type": "full", "train_embeddings": True}})
        return self.trained("full fine-tuning, SmolLM2-135M, bf16, packed 2048", 1.5, None, lambda: training.ours(self.program, work),
                            lambda: training.theirs(work, "trainer"), "transformers Trainer")

    def qlora(self):
        folder = prepare.smol_folder(self.cache)
        base = self.work(folder)
        packed = self.work(folder, model=prepare.smol_gguf(self.cache).stem, job={"quantization": "file"})
        return self.trained("QLoRA on the Q4_1 file", 0.8, 0.6, lambda: training.ours(self.program, packed),
                            lambda: training.ours(self.program, base), "our bf16 LoRA")

    def tax(self):
        """Against a job that trains the first norm alone: the same forward pass, and backward through every layer."""
        folder = prepare.smol_folder(self.cache)
        worn = self.work(folder)
        bare = self.work(folder, adapter=False, job={"adapter": {"type": "full", "target_modules": [], "train_biases": False,
                                                                 "target_norms": ["model.layers.0.input_layernorm"]}})
        row = Row("LoRA tax: step with r=16 on all linear layers over one without", "ours", "ms", 1.05, more=False)
        for number in range(self.rounds):
            a, b = training.ours(self.program, worn), training.ours(self.program, bare)
            row.ours.append(1e3 * statistics.median(a.seconds))
            row.theirs.append(1e3 * statistics.median(b.seconds))
            row.processors.append(b.processor_rate / a.processor_rate)
            prepare.say(f"  round {number + 1}: {row.ours[-1]:.0f} and {row.theirs[-1]:.0f} ms, by processors {row.processors[-1]:.3f}")
        return [row]

    def jobs(self):
        """The tool compares the parameters of both forms to the bit."""
        row = Row("four LoRA jobs of 64 rows in one pass over the same in turn", "ours", "tokens/s", 2.0)
        tool = self.program.parent / "tests" / "bench" / "four_jobs"
        text = prepare.run(tool, prepare.smol_folder(self.cache), self.rounds, env={**os.environ, "OMP_NUM_THREADS": str(self.chosen.threads)})
        for turn, together, processors in re.findall(r"in turn (\d+) tokens/s, together (\d+), ratio [\d.]+ \(processor ([\d.]+)\)", text):
            row.ours.append(float(together))
            row.theirs.append(float(turn))
            row.processors.append(float(processors))
        row.check = "the same parameters to the bit"
        return [row]

    # ---- serving ----

    def prompts(self, count, length):
        """`count` stretches of text, none with the beginning of another."""
        _, ids = prepare.rows(self.cache, self.program, prepare.smol_folder(self.cache), [2048], "text")
        tokens = [id for id, _ in ids[0]]
        starts = random.Random(3 + length).sample(range(len(tokens) - length), count)
        return [tokens[start:start + length] for start in starts]

    def served(self, row, file, prompts_of, count, slots, bench=None):
        """row: tokens/s, of the prompts' tokens where count is 1, else of those made."""
        tools = prepare.llama(self.cache)
        context = max(2048, 2 * len(prompts_of(0)[0]) + count)
        mine, other = serving.Ours(self.program, self.models, self.chosen.threads), serving.Theirs(tools, file, self.chosen.threads, slots, context)
        try:
            self.agree(row, mine, other, file.stem)
            for number in range(self.rounds):
                prompts = prompts_of(number)
                tokens = sum(map(len, prompts)) if count == 1 else count * len(prompts)
                _, seconds, processors = serving.timed(mine, file.stem, prompts, count)
                _, other_seconds, other_processors = serving.timed(other, file.stem, prompts, count)
                best = max(tokens / other_seconds, serving.bench(tools, file, self.chosen.threads, *bench) if bench else 0)
                row.ours.append(tokens / seconds)
                row.theirs.append(best)
                row.processors.append(other_processors / processors)
                prepare.say(f"  round {number + 1}: {row.ours[-1]:.1f} and {tokens / other_seconds:.1f} (best {best:.1f}) tokens/s,"
                            f" ratio by processors {row.processors[-1]:.2f}")
        finally:
            mine.stop()
            other.stop()
        return row

    def agree(self, row, mine, other, model):
        """The greedy token after each of some prompts. Theirs rounds activations to 8 bits: where two tokens are about as likely, it may
        take the other one, and from there on the texts differ."""
        prompts = self.prompts(24, 48)
        same = sum(mine.ask(model, prompt, 1) == other.ask(model, prompt, 1) for prompt in prompts)
        row.check = f"the same greedy token after {same} of {len(prompts)} prompts"
        row.wrong = same < 0.75 * len(prompts)

    def prompt(self):
        return [self.served(Row(f"prompt of 512 tokens, {name}", "llama.cpp", "tokens/s", 2.0), file,
                            lambda number: self.prompts(self.rounds + 1, 512)[number:number + 1], 1, 1, bench=(512, 0))
                for name, file in self.quantised()]

    def stream(self):
        return [self.served(Row(f"one stream of 128 tokens, {name}", "llama.cpp", "tokens/s", 1.0), file,
                            lambda number: self.prompts(self.rounds + 1, 32)[number:number + 1], 128, 1, bench=(0, 128))
                for name, file in self.quantised()]

    def sixteen(self):
        return [self.served(Row(f"sixteen streams of 64 tokens, {name}", "llama.cpp server, 16 slots", "tokens/s", 3.0), file,
                            lambda number: self.prompts(16 * (self.rounds + 1), 32)[16 * number:16 * number + 16], 64, 16)
                for name, file in self.quantised()]

    def quantised(self):
        return ("Q4_1", prepare.smol_gguf(self.cache)), ("Q8_0", prepare.smol_q8(self.cache))

    # ---- promptness ----

    def start(self):
        """To the line that says it listens, and to the first token of the base that is used."""
        model = prepare.smol_folder(self.cache).name
        ready = Row("ready after start, second start", "", "s", 0.3, more=False)
        token = Row("first token after start, second start", "", "s", 0.3, more=False)
        data = tempfile.mkdtemp(prefix="graftd-bench-data-")
        for number in range(self.rounds + 1):
            server = serving.Ours(self.program, self.models, self.chosen.threads, data)
            server.ask(model, [1, 2, 3], 1)
            if number > 0:
                ready.ours.append(server.ready_seconds)
                token.ours.append(serving.time.perf_counter() - server.started)
            server.stop()
        shutil.rmtree(data)
        return [ready, token]

    def first_step(self):
        """A job of 4 rows of 64 tokens a step, after another one on the same base."""
        folder = prepare.smol_folder(self.cache)
        path, ids = prepare.rows(self.cache, self.program, folder, [64] * 16, "short")
        row = Row("job submitted to first step done, warm", "", "s", 2.0, more=False)
        server = serving.Ours(self.program, self.models, self.chosen.threads)
        try:
            serving.first_step(server, folder.name, path, 4)
            row.ours = [serving.first_step(server, folder.name, path, 4) for _ in range(self.rounds)]
        finally:
            server.stop()
        return [row]


ROWS = ["lora", "qwen", "full", "qlora", "tax", "jobs", "prompt", "stream", "sixteen", "start", "first-step"]


def main(chosen):
    names = chosen.only.split(",") if chosen.only else ROWS
    unknown = [name for name in names if name not in ROWS]
    if chosen.list or unknown:
        print(" ".join(ROWS))
        return f"no row named {', '.join(unknown)}" if unknown else 0
    bench, rows = Bench(chosen), []
    before = report.machine(bench.program)
    for name in names:
        prepare.say(name)
        rows += getattr(bench, name.replace("-", "_"))()
        report.write(chosen, before, rows, [])
    tables = curves.measure(bench) if chosen.curves else []
    return report.write(chosen, before, rows, tables, end=True)
