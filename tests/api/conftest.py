"""Fixtures: a daemon with the tiny fixture models, started as a user would, and ended cleanly."""
import json
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from daemon import Daemon, FIXTURES, chat_rows  # noqa: E402


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A models folder with the tiny models (linked) and, where the runner brought it, SmolLM2."""
    folder = tmp_path_factory.mktemp("models")
    for path in sorted((FIXTURES / "models").iterdir()):
        if path.is_dir() and (path / "config.json").exists():
            os.symlink(path, folder / path.name)
    return folder


@pytest.fixture(scope="session")
def daemon(tmp_path_factory, models):
    daemon = Daemon(tmp_path_factory.mktemp("data"), models)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="session")
def client(daemon):
    import openai
    return openai.OpenAI(base_url=daemon.url + "/v1", api_key="not-needed", max_retries=0, timeout=120)


@pytest.fixture
def own_daemon(tmp_path, models):
    """A daemon of the test's own, for tests that kill, stop or configure it."""
    made = []

    def make(**options):
        daemon = Daemon(tmp_path / f"data{len(made)}", models, **options)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.kill()
