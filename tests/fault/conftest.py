"""The fixtures of tests/api."""
import importlib.util
import pathlib

_spec = importlib.util.spec_from_file_location("api_conftest", pathlib.Path(__file__).parent.parent / "api" / "conftest.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
models = _module.models
own_daemon = _module.own_daemon
