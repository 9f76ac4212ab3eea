import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import analysis_demo as experiment
from facejax.alignment import pfld
from facejax.analysis import demo
from facejax.train.dry_run import count, dry_run


@pytest.mark.parametrize("name", demo.NETS)
def test_every_network_trains(name):
    run, options = experiment.RUNS[name]()
    shapes = jax.eval_shape(run.init, jax.random.key(0))
    trained = shapes.params["backbone"] if name == "recogniser" else shapes.params
    kept = demo.shapes(name)["params"]
    assert {k: v for k, v in trained.items() if k != "auxiliary"} == kept
    assert dry_run(run, options)["parameters"] >= count(kept)


def test_right_landmarks_and_angles_cost_nothing():
    rng = np.random.default_rng(0)
    batch = {
        "points": rng.uniform(0, 63, (2, 68, 2)).astype(np.float32),
        "pose": np.float32([[30, -10, 5], [-60, 0, 20]]),
    }
    angles = np.radians([[10.0, -30.0, -5.0], [0.0, 60.0, -20.0]])  # pitch, yaw, roll, of the opposite sign
    right = {"points": (batch["points"] + 0.5) / 64, "angles": jnp.float32(angles)}
    np.testing.assert_allclose(experiment.landmark_loss(right, batch), 0, atol=1e-4)
    assert experiment.landmark_numbers(right, batch)["nme"] == pytest.approx(0, abs=1e-4)
    off = {"points": right["points"] + jnp.array([3 / 64, 0]), "angles": right["angles"] + 0.1}
    expected = 10 * np.log(1 + 3 / 2) + 3 * 0.1**2
    np.testing.assert_allclose(experiment.landmark_loss(off, batch), expected, rtol=1e-4)


def test_angles_of_the_loss_are_those_of_the_points():
    """Labels of a crop and the angles that its landmarks say agree."""
    from facejax.morphable.procedural import procedural
    from facejax.ops import rotation

    face = procedural()
    mean = face.mean_shape[face.landmarks68]
    labels = np.float32([[30, -10, 5]])
    angles = -np.radians(labels)[:, [1, 0, 2]]
    points = np.asarray(mean @ rotation.from_euler(angles)[0].T)[:, :2] * [1, -1]
    batch = {"points": np.float32([points]), "pose": labels}
    found = {"points": (batch["points"] + 0.5) / 64, "angles": pfld.pose_of(batch["points"], mean)}
    np.testing.assert_allclose(experiment.landmark_loss(found, batch), 0, atol=1e-4)


def test_images_vary_and_some_lose_their_colour():
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)
    load = experiment.varied(lambda *_: {"image": images, "label": 1}, experiment.PHOTOGRAPHED, 0.5)
    batch = load([None] * 20, [np.random.default_rng(i) for i in range(20)])
    grey = (np.ptp(batch["image"].astype(int), axis=-1) == 0).all((1, 2))
    assert batch["label"] == 1 and 4 < grey.sum() < 16
    assert (batch["image"] != images).any((1, 2, 3)).all()


def test_quality_falls_with_what_blurs():
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (56, 56, 3)).astype(np.uint8)
    for seed in range(4):
        detail = [experiment.degraded(face, s, np.random.default_rng(seed)).std() for s in (0.0, 0.2, 0.6, 1.0)]
        assert detail[0] == pytest.approx(face.std()) and detail == sorted(detail, reverse=True)


def test_unknown_networks_are_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analysis_demo", "--only", "nose"])
    with pytest.raises(SystemExit):
        experiment.main()
    assert "no network 'nose': expected some of detector, landmarks" in capsys.readouterr().err
