"""A graftd daemon under test: start, stop, kill, and plain HTTP calls."""
import http.client
import json
import os
import pathlib
import signal
import subprocess
import time
import urllib.parse

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
GRAFTD = os.environ.get("GRAFTD", str(pathlib.Path(__file__).parent.parent / "build-tests" / "graftd"))


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class Daemon:
    def __init__(self, data_dir, models, key=None, environment=None, threads=2, arguments=(), enter=None):
        self.data_dir, self.models, self.key = pathlib.Path(data_dir), pathlib.Path(models), key
        self.environment = {**os.environ, **(environment or {})}
        self.threads, self.arguments, self.enter = threads, list(arguments), enter
        self.process, self.url, self.port = None, None, None
        self.log_path = self.data_dir.parent / (self.data_dir.name + ".log")

    def start(self):
        command = [GRAFTD, "serve", "--data-dir", str(self.data_dir), "--models", str(self.models), "--listen", "127.0.0.1:0",
                   "--threads", str(self.threads), *self.arguments]
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=self.environment, preexec_fn=self.enter)
        line = self.process.stdout.readline().decode().strip()
        assert line.startswith("listening on http://"), f"{line!r}\n{self.log()[-3000:]}"
        self.url = line[len("listening on "):]
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def stop(self):
        """SIGTERM; the exit code must be 0."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=90)
        self.process.stdout.close()
        self.process = None
        assert code == 0, f"exit code {code}\n{self.log()[-3000:]}"

    def kill(self):
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process = None

    def worker_pids(self):
        answer = subprocess.run(["pgrep", "-P", str(self.process.pid)], stdout=subprocess.PIPE)
        return [int(pid) for pid in answer.stdout.split()]

    def call(self, method, path, body=None, headers=None, timeout=60):
        """One request; a dict body is sent as JSON, bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = dict(headers or {})
        if self.key and "Authorization" not in headers:
            headers["Authorization"] = "Bearer " + self.key
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return answer

    def get(self, path, **options):
        return self.call("GET", path, **options)

    def post(self, path, body=None, **options):
        return self.call("POST", path, body, **options)

    def upload(self, rows, purpose="fine-tune", filename="rows.jsonl"):
        """rows: a list of objects, or the bytes of the file."""
        data = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        boundary = "----graftd-test-boundary"
        body = (f"--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n"
                f"--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n"
                f"Content-Type: application/octet-stream\r\n\r\n").encode() + data + f"\r\n--{boundary}--\r\n".encode()
        return self.post("/v1/files", body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def wait_job(self, job_id, until=("succeeded", "failed", "cancelled"), timeout=180):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            job = self.get("/v1/fine_tuning/jobs/" + job_id).json
            if job["status"] in until:
                return job
            time.sleep(0.05)
        raise AssertionError(f"job {job_id} is {job['status']} after {timeout} s\n{self.log()[-2000:]}")

    def wait_step(self, job_id, step, timeout=120):
        """Until the job has done `step` steps (or ended)."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            job = self.get("/v1/fine_tuning/jobs/" + job_id).json
            if job["progress"]["step"] >= step or job["status"] in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.01)
        raise AssertionError(f"job {job_id} is at step {job['progress']['step']} after {timeout} s")


def chat_rows(count, start=0):
    """Conversations a tiny model can learn: a number and its parity."""
    return [{"messages": [{"role": "user", "content": f"number {i}"},
                          {"role": "assistant", "content": "even" if i % 2 == 0 else "odd"}]}
            for i in range(start, start + count)]


def job_body(training_file, **options):
    """A small LoRA job on tiny-llama; `hyper` goes into the hyperparameters."""
    hyper = {"n_epochs": 2, "batch_size": 4, "learning_rate": 5e-3, **options.pop("hyper", {})}
    return {"model": "tiny-llama", "training_file": training_file, "seed": 7,
            "adapter": {"type": "lora", "r": 4},
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}}, **options}
