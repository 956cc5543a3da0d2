"""A memory limit that is one: a control group where the machine grants it, else a guard that ends whatever exceeds it."""
import os
import pathlib
import signal
import threading
import time

ROOTS = ((pathlib.Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
         (pathlib.Path("/sys/fs/cgroup/unified"), "memory.max", "memory.peak"),
         (pathlib.Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"))


def make_group(limit):
    """(folder, name of the peak's file), or None where no group can be made."""
    for root, limit_name, peak_name in ROOTS:
        folder = root / f"graftd-test-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / limit_name).exists() and (folder / "cgroup.procs").exists():  # else a folder like any other
            try:
                (folder / limit_name).write_text(str(limit))
                return folder, peak_name
            except OSError:
                pass
        folder.rmdir()
    return None


def tree(pid):
    pids, found = [pid], []
    while pids:
        one = pids.pop()
        found.append(one)
        try:
            for task in pathlib.Path(f"/proc/{one}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            pass
    return found


def unreclaimable(pid):
    """Memory that no file stands behind."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


class Limit:
    """With Limit(bytes) as limit: Daemon.start through limit.enter; limit.peak() is the most that all processes had together."""

    def __init__(self, limit):
        self.limit, self.group, self.highest, self.exceeded, self.pid, self.ended = limit, make_group(limit), 0, False, None, False

    def __enter__(self):
        return self

    def enter(self):
        """In the child, before it becomes the daemon."""
        if self.group is not None:
            (self.group[0] / "cgroup.procs").write_text(str(os.getpid()))

    def watch(self, pid):
        self.pid = pid
        if self.group is None:
            self.thread = threading.Thread(target=self._guard, daemon=True)
            self.thread.start()

    def _guard(self):
        while not self.ended:
            pids = tree(self.pid)
            used = sum(unreclaimable(pid) for pid in pids)
            self.highest = max(self.highest, used)
            if used > self.limit:
                self.exceeded = True
                for pid in pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except OSError:
                        pass
                return
            time.sleep(0.005)

    def peak(self):
        if self.group is None:
            return self.highest
        try:
            return int((self.group[0] / self.group[1]).read_text())
        except OSError:  # kernels before 5.19 have no memory.peak
            return 0

    def kills(self):
        """How many processes were killed for memory."""
        if self.group is None:
            return int(self.exceeded)
        for name in ("memory.events", "memory.oom_control"):
            try:
                lines = dict(line.split() for line in (self.group[0] / name).read_text().splitlines())
                return int(lines.get("oom_kill", 0))
            except OSError:
                pass
        return 0

    def __exit__(self, *error):
        self.ended = True
        if self.group is not None:
            for _ in range(100):
                try:
                    self.group[0].rmdir()
                    return
                except OSError:
                    time.sleep(0.05)
