"""A server of ours or theirs under one client: prompts in, greedy tokens out, over HTTP; what it took, by the wall and by the processors."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import psutil


def post(url, body, timeout=600):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def get(url, timeout=60):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return json.load(answer)


class Server:
    """A process with its log; `ask` returns the text of `count` greedy tokens after the prompt's ids."""

    def start(self, command):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="graftd-bench-"))
        self.log = open(self.folder / "log", "w+")
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=self.log)

    def fail(self, text):
        self.log.seek(0)
        sys.exit(f"{text}\n{self.log.read()[-3000:]}")

    def processor_seconds(self):
        """Of the process and its children."""
        total = 0.0
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.NoSuchProcess:
                pass
        return total

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder)


class Ours(Server):
    def __init__(self, program, models, threads, data=None):
        self.started = time.perf_counter()
        self.start([program, "serve", "--data-dir", data or tempfile.mkdtemp(prefix="graftd-bench-data-"), "--models", models, "--listen",
                    "127.0.0.1:0", "--threads", threads])
        line = self.process.stdout.readline().decode()
        self.ready_seconds = time.perf_counter() - self.started
        if not line.startswith("listening"):
            self.fail(f"graftd serve says {line!r}")
        self.url = line.split()[-1]

    def ask(self, model, ids, count):
        answer = post(f"{self.url}/v1/completions", {"model": model, "prompt": ids, "max_tokens": count, "temperature": 0,
                                                     "ignore_eos": True})
        return answer["choices"][0]["text"]


class Theirs(Server):
    def __init__(self, tools, file, threads, slots, context):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.start([tools / "llama-server", "-m", file, "-t", threads, "-tb", threads, "-np", slots, "-c", slots * context, "--host",
                    "127.0.0.1", "--port", port, "--no-webui"])
        for _ in range(600):
            try:
                get(f"{self.url}/health")
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    self.fail("llama-server ended")
                time.sleep(0.1)
        self.fail("llama-server does not get ready")

    def start(self, command):
        super().start(command)
        self.process.stdout.close()

    def ask(self, model, ids, count):
        answer = post(f"{self.url}/completion", {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True,
                                                 "cache_prompt": False})
        return answer["content"]


def bench(tools, file, threads, prompt, generate):
    """Tokens per second as llama-bench has it: the engine alone, without sampling and HTTP."""
    out = subprocess.run([str(part) for part in [tools / "llama-bench", "-m", file, "-t", threads, "-p", prompt, "-n", generate, "-r", 1,
                                                 "-o", "json"]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    return json.loads(out)[-1]["avg_ts"]


def timed(server, model, prompts, count):
    """All prompts at once: (texts, seconds, processor seconds)."""
    before, processors = time.perf_counter(), server.processor_seconds()
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        texts = list(pool.map(lambda ids: server.ask(model, ids, count), prompts))
    return texts, time.perf_counter() - before, server.processor_seconds() - processors


def multipart(url, path):
    boundary = "graftd-bench"
    body = (f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n').encode()
    body += pathlib.Path(path).read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(url, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def first_step(server, model, path, count):
    """Seconds from a job's submission until its first step is in the metrics; the job is then cancelled."""
    file = multipart(f"{server.url}/v1/files", path)["id"]
    before = time.perf_counter()
    job = post(f"{server.url}/v1/fine_tuning/jobs", {
        "model": model, "training_file": file, "method": {"type": "supervised", "supervised": {"hyperparameters": {
            "batch_size": count, "n_epochs": 20}}}})["id"]
    while get(f"{server.url}/v1/fine_tuning/jobs/{job}/metrics?names=train_loss")["rows"] == 0:
        state = get(f"{server.url}/v1/fine_tuning/jobs/{job}")
        if state["status"] in ("failed", "cancelled", "succeeded"):
            server.fail(f"job {job} {state['status']}: {state.get('error')}")
        time.sleep(0.01)
    seconds = time.perf_counter() - before
    try:
        post(f"{server.url}/v1/fine_tuning/jobs/{job}/cancel", {})
    except urllib.error.HTTPError:
        pass
    while get(f"{server.url}/v1/fine_tuning/jobs/{job}")["status"] not in ("failed", "cancelled", "succeeded"):
        time.sleep(0.05)
    return seconds
