"""Every notebook runs from its first cell to its last, with few steps."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

SMALL = """
from functools import partial

from experiments import virface
from facejax.backbones.iresnet import IResNet
from facejax.evaluate import embedder
from facejax.recognition.virface import FaceResNet

embedder.MINIATURES["tiny"] = partial(IResNet, (1,), (8,))
virface.BACKBONES["tiny"] = partial(FaceResNet, (1,), False, (8,))
virface.SHALLOW = "recognition"
"""
FEW = """
import dataclasses

from facejax.data.synthetic import scenes

few = dataclasses.replace(scenes.SCENES["scenes_128"], train=16, test=4, people=(4, 2), views=1, head=64)
scenes.SCENES["scenes_128"] = few
"""
FIRST = {"arcface": SMALL, "clustering": SMALL, "detection": FEW, "recognition": SMALL}
"""Cells that come before a notebook's own: networks of one block, no people of VirFace's to be rendered, few scenes."""
COLABS = pathlib.Path(__file__).parents[1] / "colabs"
PRINTED = {
    "arcface": "tar_at_far_1e-2",
    "attention": "exact_match",
    "clustering": "pairwise_f",
    "deconvnet": "hits",
    "detection": "ap_tiny",
    "graphs": "test_accuracy",
    "quality": "aoc",
    "recognition": "tar_at_far_1e-2",
    "vib": "test_error",
}


@pytest.mark.parametrize("path", sorted(COLABS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("FACEJAX_COLAB_STEPS", "3")
    monkeypatch.setenv("PYTHONPATH", str(COLABS.parent))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    notebook = nbformat.read(path, 4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST.get(path.stem, "")))
    done = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(COLABS)}}
    ).execute()
    texts = [str(output) for cell in done.cells for output in cell.get("outputs", [])]
    assert any(PRINTED[path.stem] in text for text in texts)
