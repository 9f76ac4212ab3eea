"""The worked example of CONTRIBUTING.md runs as it stands there, and is as short as it says."""

import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from facejax.train import app

ROOT = pathlib.Path(__file__).parents[1]
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL))


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The example's three files as modules, beside the library's own."""
    found = {}
    for path, source in FILES.items():
        name = path.removesuffix(".py").replace("/", ".")
        file = tmp_path / pathlib.Path(path).name
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name and not name.startswith("tests"):
            monkeypatch.setattr(importlib.import_module(name.rpartition(".")[0]), "adacos", module, raising=False)
        spec.loader.exec_module(module)
        found[name] = module
    return found


def test_the_example_passes_ruff(tmp_path):
    for path, source in FILES.items():
        (tmp_path / pathlib.Path(path).name).write_text(source)
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--config",
            str(ROOT / "pyproject.toml"),
            "--ignore=D",
            "--no-cache",
        ]
        done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_example_is_short():
    assert list(FILES) == ["facejax/recognition/adacos.py", "experiments/adacos.py", "tests/recognition/test_adacos.py"]
    assert sum(source.count("\n") for source in FILES.values()) < 150


def test_the_example_runs(modules, photographs):
    experiment = modules["experiments.adacos"]
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(photographs), "data.image_size": 16, "data.held_out": 0.25,
            "data.classes": 6, "model.embedding_size": 8, "train.steps": 2, "train.batch_size": 8, "eval.batch_size": 8,
        }
    )  # fmt: skip
    state, report = app.run(config, experiment.build, quiet=True)
    assert 0 <= report.metrics["tar_at_far_1e-2"] <= 1
    assert state.model_state["scale"] != modules["facejax.recognition.adacos"].fixed_scale(6)


def test_the_examples_own_tests_pass(modules):
    tests = modules["tests.recognition.test_adacos"]
    tests.test_scale_by_hand()
    tests.test_devices_agree_on_the_scale_of_the_whole_batch()
