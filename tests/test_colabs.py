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
PEOPLE = """
import dataclasses

from facejax.data.synthetic import faces

for name in ("landmarks", "attributes"):
    faces.TASKS[name] = dataclasses.replace(faces.TASKS[name], train=40, test=12)
"""
FACES = """
from facejax.data import pipeline

load = faces.load
faces.load = lambda task, *place: pipeline.fetch(load("landmarks", *place), range(64))
"""
GEOMETRY = """
from experiments import tddfa, wing
from facejax.reconstruction.tddfa import FourConvolutions

for settings in (wing.BASE, tddfa.BASE):
    settings["data"]["image_size"] = 32
wing.BASE["model"]["width"] = 0.05
tddfa.NETS["tiny"] = lambda **options: FourConvolutions(widths=(4, 4, 4, 4), hidden=8, **options)
tddfa.fits = lambda data: {}
"""
STYLES = """
from experiments import stylegan

stylegan.BASE["data"]["image_size"] = 8
stylegan.BASE["model"].update(latent_size=8, mapping_layers=1, base=32, largest=8)
stylegan.BASE["eval"].update(images=32, batch_size=32)
stylegan.BASE["styles"].update(pairs=32, images=32)
"""
RESTORED = """
import numpy as np

from experiments import super_resolution, video_deblur
from facejax.data import videos
from facejax.restoration.super_resolution import EDSR

super_resolution.NETS["edsr_small"] = lambda **options: EDSR(features=4, blocks=1, residual_scale=1.0, **options)
super_resolution.BASE["data"]["patch"] = 16
video_deblur.BASE["data"].update(clip=2, crop=16)
video_deblur.BASE["model"].update(width=4)
noise = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
videos._rendered = lambda *_: [videos.ArrayVideo.averaged("noise", noise, 7, 8, 2.2)] * 5
"""
FIRST = {
    "arcface": SMALL,
    "clustering": SMALL,
    "deconvnet": PEOPLE,
    "detection": FEW,
    "face_geometry": PEOPLE + FACES + GEOMETRY,
    "generation": PEOPLE + FACES + STYLES,
    "photographs": FEW,
    "recognition": SMALL,
    "restoration": PEOPLE + FACES + RESTORED,
    "vib": PEOPLE,
}
"""Cells that come before a notebook's own: small networks, few scenes, no people of VirFace's to be rendered, and for
all tasks with faces the first ones of the task that the tests of landmarks render anyway."""
COLABS = pathlib.Path(__file__).parents[1] / "colabs"
PRINTED = {
    "arcface": "tar_at_far_1e-2",
    "attention": "exact_match",
    "clustering": "pairwise_f",
    "deconvnet": "hits",
    "detection": "ap_tiny",
    "face_geometry": "nme",
    "generation": "recall",
    "graphs": "test_accuracy",
    "photographs": "facejax was imported: False",
    "quality": "aoc",
    "recognition": "tar_at_far_1e-2",
    "restoration": "gliding photograph",
    "vib": "test_error",
}


@pytest.mark.parametrize("path", sorted(COLABS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("FACEJAX_COLAB_STEPS", "3")
    monkeypatch.setenv("PYTHONPATH", str(COLABS.parent))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    notebook = nbformat.read(path, 4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert f"/blob/main/colabs/{path.name})" in notebook.cells[0].source
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST.get(path.stem, "")))
    done = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    texts = [str(output) for cell in done.cells for output in cell.get("outputs", [])]
    assert any(PRINTED[path.stem] in text for text in texts)
