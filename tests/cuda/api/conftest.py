"""Where the daemon's helper is, and a models folder with one tiny model."""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from daemon import FIXTURES  # noqa: E402


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    os.symlink(FIXTURES / "models" / "tiny-llama", folder / "tiny-llama")
    return folder
