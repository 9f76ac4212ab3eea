import importlib.util
import pathlib
import sys

import pytest


@pytest.fixture(scope="session")
def toy():
    """The small experiment of toy.py, imported as a module."""
    spec = importlib.util.spec_from_file_location("toy", pathlib.Path(__file__).with_name("toy.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module
    spec.loader.exec_module(module)
    return module
