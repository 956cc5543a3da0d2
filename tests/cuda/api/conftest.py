"""Where the daemon's helper and the tests of the daemon on the processor are, and a models folder with the tiny models."""
import os
import pathlib
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(TESTS), str(TESTS / "api")]  # this folder, which has a test_main_job of its own, goes first
from daemon import FIXTURES  # noqa: E402


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for path in (FIXTURES / "models").iterdir():
        if path.is_dir() or path.name == "tiny-llama-q8_0.gguf":
            os.symlink(path, folder / path.name)
    return folder
