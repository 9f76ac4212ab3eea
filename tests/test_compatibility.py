"""Version ranges, and what a notebook's first cell installs where jax is there already."""

import importlib.metadata
import importlib.util
import json
import pathlib
import re
import tomllib
import types

import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from facejax.morphable.procedural import layout

ROOT = pathlib.Path(__file__).parents[1]


def test_jax_has_one_range():
    text = (ROOT / "pyproject.toml").read_text()
    assert set(re.findall(r'"jax(?:\[\w+\])?(>=[^"]+)"', text)) == {">=0.10,<0.13"}
    assert tomllib.loads(text)["project"]["requires-python"] == ">=3.11,<3.14"


def test_cross_products_are_of_three_dimensional_vectors(monkeypatch):
    cross = np.cross

    def strict(a, b, **kwargs):
        assert np.shape(a)[-1] == np.shape(b)[-1] == 3
        return cross(a, b, **kwargs)

    monkeypatch.setattr(np, "cross", strict)
    layout.mesh.__wrapped__()


@pytest.mark.parametrize(
    "installed, expected",
    [
        ({"jax": "0.10.0"}, "jax==0.10.0"),
        ({"jax": "0.11.2", "libtpu": "0.0.40"}, "jax==0.11.2"),
        ({"jax": "0.12.0.1", "jax-cuda12-plugin": "0.12.0.1"}, "jax==0.12.0.1"),
        ({"jax": "1.0.0"}, "jax==1.0.0"),
        ({"jax": "0.7.2", "libtpu": "0.0.21.1"}, "jax[tpu]"),
        ({"jax": "0.7.2", "jax-cuda12-plugin": "0.7.2"}, "jax[cuda12]"),
        ({"jax": "0.7.2"}, "jax"),
        ({}, "jax"),
    ],
)
def test_notebook_keeps_a_jax_that_is_new_enough(installed, expected, monkeypatch):
    first = set()
    for path in (ROOT / "colabs").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        first.add("".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code")))
    (cell,) = first
    packages = [types.SimpleNamespace(name=name, version=version) for name, version in installed.items()]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: packages)
    lines = []
    shell = types.SimpleNamespace(run_line_magic=lambda magic, line: lines.append(f"{magic} {line}"))
    names = {"get_ipython": lambda: shell}
    exec(TransformerManager().transform_cell(cell), names)
    (line,) = lines
    assert line.startswith("pip install -q --upgrade-strategy only-if-needed ")
    assert f' "{expected}" ' in line.format(**names)
