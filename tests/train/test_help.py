"""`--help`: fields with their defaults and their meanings from the source."""

import dataclasses
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import __main__ as catalog
from facejax.train import Options, app
from facejax.train.help import attribute_meanings, describe_fields, field_meanings

ROOT = pathlib.Path(__file__).parents[2]
TOY = pathlib.Path(__file__).with_name("toy.py")

SHARED = '''
import dataclasses
BASE = {
    "seed": 0,  # of everything
    "data": {
        "path": "",  # a folder
        "size": 32,  # pixels
    },
    "optim": {"rate": 0.1, "decay": 0.0},  # SGD
}
EVAL = {
    "pairs": 10,  # pairs of pictures
}
@dataclasses.dataclass
class Recogniser:
    """A network.

    Attributes:
      steps, rate: of its training,
        in SGD.
      name: one of many.

    Another paragraph.
    """
    steps: int = 3
    rate: float = 0.1
    name: str = "tiny"
def defaults():
    """A section."""
    return {
        "width": 8,  # channels
    }
'''
PAPER = """
import dataclasses
import paper_shared
from paper_shared import EVAL as judged, defaults
MORE: dict = {
    "angle": 0.5,  # radians
}
BASE = {
    **paper_shared.BASE,
    "data": {**paper_shared.BASE["data"], "size": 48, "crop": 40},
    "eval": judged,  # of verification
    "model": defaults(),
    "loss": MORE | {"scale": 16.0, "kind": "margin"},
    "recogniser": {**dataclasses.asdict(paper_shared.Recogniser(steps=5)), "name": "r50"},
    "two": 1, "fields": 2,  # on one line have none
    "unknown": [*range(3)],
    "levels": {  # of blur
        "low": 1,
    },
    # a line of its own is no meaning
    "hash": "#",
}
"""


@pytest.fixture
def paper(tmp_path, monkeypatch):
    (tmp_path / "paper_shared.py").write_text(SHARED)
    (tmp_path / "paper.py").write_text(PAPER)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("paper")
    for name in ("paper", "paper_shared"):
        del sys.modules[name]


def test_meanings_are_found_through_modules_names_and_functions(paper):
    assert field_meanings(vars(paper)) == {
        "seed": "of everything",
        "data.path": "a folder",
        "data.size": "pixels",
        "optim": "SGD",
        "eval": "of verification",
        "eval.pairs": "pairs of pictures",
        "model.width": "channels",
        "loss.angle": "radians",
        "recogniser.steps": "of its training, in SGD.",
        "recogniser.rate": "of its training, in SGD.",
        "recogniser.name": "one of many.",
        "levels": "of blur",
    }
    assert field_meanings(vars(paper), "ABSENT") == {}
    assert field_meanings({}) == {}


def test_meanings_of_options():
    meanings = attribute_meanings(Options)
    assert set(meanings) == set(Options.__dataclass_fields__)
    assert meanings["eval_every"] == meanings["log_every"]


@dataclasses.dataclass(frozen=True)
class Inner:
    """Inside.

    Attributes:
      angle: degrees.
    """

    angle: float = 1.0


@dataclasses.dataclass(frozen=True)
class Base:
    """Before.

    Attributes:
      path, name: of a file.
    """

    path: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Derived(Base):
    """After.

    Attributes:
      name: of a network.
      inner: nested.
    """

    name: str = "net"
    inner: Inner = Inner()
    made: Inner = dataclasses.field(default_factory=lambda: Inner(2.0))


def test_meanings_of_base_classes_and_nested_dataclasses():
    assert attribute_meanings(Derived) == {
        "path": "of a file.",
        "name": "of a network.",
        "inner": "nested.",
        "inner.angle": "degrees.",
        "made.angle": "degrees.",
    }


def test_lines():
    lines = describe_fields([("seed", 0), ("optim.rate", 0.1)], {"optim": "SGD", "seed": "of everything"}).splitlines()
    assert [line.split() for line in lines] == [
        ["seed", "0", "of", "everything"],
        ["optim.*", "SGD"],
        ["optim.rate", "0.1"],
    ]


def shown(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return {words[0]: words[1:] for words in map(str.split, done.stdout.splitlines()) if words}


def test_an_experiment():
    lines = shown("-m", "experiments.gcn", "--help")
    from experiments import gcn

    assert {"--workdir:", "--[no]dry_run:", "--[no]check_data:", "--seeds:", "--save_arrays:"} <= set(lines)
    assert lines["seed"][0] == str(gcn.BASE["seed"])
    assert {f"{section}.{field}" for section in ("data", "model", "optim") for field in gcn.BASE[section]} <= set(lines)


def test_a_config_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(TOY.parent)!r})\nimport toy\n"
        'BASE = {**toy.BASE,\n    "data": {**toy.BASE["data"],\n        "examples": 64,  # 100 % of them\n    },\n}\n'
        "PRESETS = {'tiny': {'model.dropout': 0.2}}\n"
        "def get_config(name): return toy.app.preset(BASE, PRESETS, name)\n"
    )
    lines = shown(str(TOY), f"--config={file}:tiny", "--help")
    assert lines["data.examples"] == ["64", "100", "%", "of", "them"]
    assert lines["model.dropout"] == ["0.2", "rate,", "0..1"]
    assert lines["train.steps"] == ["20", "total", "number", "of", "updates."]


def test_every_field_of_every_experiment_has_a_meaning():
    """Its own, or that of its section."""
    missing = []
    for name in sorted({system.program.stem for system in catalog.SYSTEMS}):
        module = importlib.import_module(f"experiments.{name}")
        preset = next(iter(module.PRESETS))
        text = app._fields_help(preset, module.get_config(preset), module, module.get_config)
        lines = [line.split(None, 1) for line in text.splitlines() if line.startswith("  ")]
        sections = tuple(field.removesuffix("*") for field, *_ in lines if field.endswith("*"))
        fields = dict(app._flatten(module.get_config(preset)))
        bare = [field for field, rest in lines if field in fields and rest.strip() == repr(fields[field])]
        missing += [f"{name}: {field}" for field in bare if not field.startswith(sections)]
    assert missing == []
