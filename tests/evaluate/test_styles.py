"""The measures on generators whose factors, path lengths and mixtures are known."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data.generation import GenerationImages
from facejax.evaluate import generation, styles
from facejax.evaluate.generation import Extractor
from facejax.evaluate.styles import StyleNet, StyleProtocol
from facejax.metrics import generative

LAYERS, SIZE = 4, 8


def paint(yaw, light, skin):
    """Images [N, 8, 8, 3] in -1..1: skin is red, light green on the left half, yaw blue in the upper half."""
    images = jnp.zeros((len(yaw), SIZE, SIZE, 3))
    images = images.at[..., 0].add(skin[:, None, None]).at[:, :, :4, 1].add(light[:, None, None])
    return jnp.tanh(images.at[:, :4, :, 2].add(yaw[:, None, None]) / 2)


def synthesize(variables, given):
    """Yaw and light come from 4 pixels, skin from 8."""
    return paint(given[:, 0, 0], given[:, 1, 1], given[:, 3, 2])


EXTRACTOR = Extractor("pixels", lambda _, images: images.reshape(len(images), -1), {})
NET = StyleNet(
    lambda variables, latents: 2 * latents @ variables,
    synthesize,
    lambda given, average, psi: average + psi * (given - average),
    np.eye(3, dtype=np.float32)[::-1].copy(),
    np.zeros(3, np.float32),
    LAYERS,
    3,
    16,
)


class FaceWorld(GenerationImages):
    """Painted images of known factors."""

    def training(self):
        factors = np.random.default_rng(0).normal(size=(120, 3))
        images = generation.to_uint8(paint(*jnp.asarray(factors).T))
        return [
            {
                "image": cv2.imencode(".png", np.asarray(image)[..., ::-1])[1].tobytes(),
                "pose": np.array([0, yaw, 0]), "light": np.array([light, 0]), "albedo": np.array([skin]),
            }
            for image, (yaw, light, skin) in zip(images, factors, strict=True)
        ]  # fmt: skip

    def real(self, count):
        return np.asarray(generation.to_uint8(paint(*np.random.default_rng(1).normal(size=(3, count))))), None


@pytest.fixture(scope="module")
def report():
    return StyleProtocol(pairs=40, images=60, separable=80).assess(NET, FaceWorld(image_size=SIZE), EXTRACTOR)


def test_mixed_styles(report):
    """Each factor comes from the resolution whose styles the generator reads it from."""
    (rows,) = (rows for title, rows in report.tables.items() if title.startswith("Mixed styles"))
    assert [row.pop("styles of another image at") for row in rows] == ["4 pixels", "8 pixels"]
    assert {name: round(value, 1) for name, value in rows[0].items()} == {"yaw": 1.0, "light": 1.0, "skin": 0.0}
    assert {name: round(value, 1) for name, value in rows[1].items()} == {"yaw": 0.0, "light": 0.0, "skin": 1.0}


def test_separability_and_readers(report):
    """Every factor is linear in z and in w."""
    assert all(1 <= report.metrics[f"separability_{space}"] < 1.5 for space in "zw")
    (rows,) = (rows for title, rows in report.tables.items() if title.startswith("Readers"))
    assert [row["factor"] for row in rows] == ["yaw", "light", "skin"]
    assert min(row["R2"] for row in rows) > 0.9 and min(row["accuracy"] for row in rows) > 0.9


def test_truncation(report):
    rows = report.tables["Truncation, 60 images"]
    assert [row["psi"] for row in rows] == [1.0, 0.7, 0.5]
    half = generation.latents(range(60), 3)[:, ::-1]  # w is twice as long
    fake = np.asarray(generation.to_uint8(paint(*half.T)))
    real = FaceWorld(image_size=SIZE).real(60)[0]
    flat = [images.reshape(60, -1) / 127.5 - 1 for images in (real, fake)]
    expected = generative.precision_recall(*flat)
    assert 0 < expected.precision < 1
    np.testing.assert_allclose([rows[2]["precision"], rows[2]["recall"]], expected, atol=0.02)


def test_sheets(report):
    first, second, sweep = (image for title, image in report.images.items())
    assert first.shape == second.shape == (7 * SIZE, 7 * SIZE, 3) and sweep.shape == (6 * SIZE, 5 * SIZE, 3)
    np.testing.assert_array_equal(first[:SIZE, SIZE:], first[SIZE : 2 * SIZE, SIZE:])  # all layers are coarse here
    column, row = second[SIZE:, :SIZE], second[SIZE:, SIZE : 2 * SIZE]
    np.testing.assert_array_equal(column, row)
    np.testing.assert_array_equal(sweep[:SIZE, :SIZE], first[:SIZE, SIZE : 2 * SIZE])
    assert np.all(sweep[:, 3 * SIZE : 4 * SIZE] == 128)  # the average image is grey


def test_path_lengths_are_those_of_the_spaces(report):
    """In W: mean ||d f / d t||^2 of the unit features along straight lines, by finite differences in float64."""
    ends = [2 * generation.latents(range(i, 80, 2), 3)[:, ::-1].astype(np.float64) for i in range(2)]
    t = np.random.default_rng(0).random(40)

    def features(t):
        w = ends[0] + t[:, None] * (ends[1] - ends[0])
        yaw, light, skin = (x / 2 for x in w.T)
        images = np.zeros((40, SIZE, SIZE, 3))
        images[..., 0] += skin[:, None, None]
        images[:, :, :4, 1] += light[:, None, None]
        images[:, :4, :, 2] += yaw[:, None, None]
        flat = np.tanh(images).reshape(40, -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    slopes = ((features(t + 0.01) - features(t)) ** 2).sum(1) / 1e-4
    np.testing.assert_allclose(report.metrics["ppl_w_full"], slopes.mean(), rtol=0.02)
    assert set(report.metrics) >= {f"ppl_{space}_{places}" for space in "zw" for places in ("full", "end")}
    assert report.metrics["ppl"] == report.metrics["ppl_w_full"] != report.metrics["ppl_z_full"]
    np.testing.assert_allclose(styles.lerp(ends[0], ends[1], np.ones(40)), ends[1])
