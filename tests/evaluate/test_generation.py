"""The protocol on a generator that knows the truth, extractors, sheets, and path lengths in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data import generation as data
from facejax.data.generation import GenerationImages
from facejax.evaluate import generation
from facejax.evaluate.generation import Extractor, GenerationProtocol
from facejax.metrics import generative
from facejax.metrics.generative import Moments

PROTOCOL = GenerationProtocol(images=24, batch_size=8, swd_images=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory, picture_folder):
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (48, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    folder = picture_folder(tmp_path_factory.mktemp("real"), {"a": smooth + rng.normal(size=smooth.shape) * 8})
    return GenerationImages("folder", str(folder), image_size=16)


def test_a_generator_that_draws_real_images(images, monkeypatch):
    """Latents 0, 1, ... give the real images in order: no distance, full precision and recall."""
    monkeypatch.setattr(generation, "CHUNK", 10)
    monkeypatch.setattr(generation, "latents", lambda seeds, size: np.array(list(seeds), np.float32)[:, None])
    real, others = images.real(24)
    stored = real[:].astype(np.float32) / 127.5 - 1

    def draw(variables, latents):
        return variables[latents[:, 0].astype(int)]

    report = PROTOCOL.assess(draw, stored, 1, images)
    found = report.metrics
    assert next(iter(found)) == "frechet_random_cnn@24"
    extractor = generation.random_cnn()
    features = [extractor.apply(extractor.variables, part[:] / np.float32(127.5) - 1) for part in (real, others)]
    floor = generative.frechet_distance(*map(Moments.of, features))
    np.testing.assert_allclose(found["frechet_random_cnn@24_real"], floor, rtol=1e-3)
    assert found["frechet_random_cnn@24"] < 1e-3 * floor
    assert (found["precision"], found["recall"]) == (1, 1)
    np.testing.assert_array_equal(report.arrays["generated"], real[:])
    assert all(image.shape == (32, 256, 3) for image in report.images.values())
    worse = PROTOCOL.assess(draw, 0 * stored, 1, images).metrics
    assert worse["frechet_random_cnn@24"] > 2 * floor and worse["swd@8"] > 1.2 * found["swd@8"]
    assert worse["recall"] == 0 and worse["kid_random_cnn@24"] > found["kid_random_cnn@24"]


def test_features_are_the_same_everywhere():
    """A golden number guards the weights, which NumPy draws."""
    extractor = generation.random_cnn()
    ramp = np.linspace(-1, 1, 2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3)
    features = np.asarray(jax.jit(extractor.apply)(extractor.variables, ramp))
    assert features.shape == (2, 128)
    np.testing.assert_allclose(features[:, 0], [0.539404, 0.327060], rtol=1e-4)


def test_torchvisions_inception(monkeypatch):
    """The file is read for the whole network; features are those before the last layer, of resized images."""
    asked = []
    net = generation.facejax.create_model("inception_v3_torchvision")
    monkeypatch.setattr(generation.torchvision, "load", lambda path, shapes: asked.append((path, shapes)) or shapes)
    extractor = generation.inception("weights.pth")
    assert extractor.name == "inception_torchvision" and asked[0][0] == "weights.pth"
    assert type(net).__name__ == "InceptionV3" and "fc" in asked[0][1]["params"]
    image = jax.ShapeDtypeStruct((3, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(extractor.apply, extractor.variables, image).shape == (3, 2048)


def test_latents_belong_to_their_seeds():
    both, one = generation.latents([3, 8], 5), generation.latents([8], 5)
    np.testing.assert_array_equal(both[1:], one)
    np.testing.assert_array_equal(one[0], np.random.default_rng(8).normal(size=5).astype(np.float32))


def test_pixels():
    values = jnp.array([-3.0, -1, -0.998, 0, 0.004, 1, 9], jnp.bfloat16)
    assert generation.to_uint8(values).tolist() == [0, 0, 0, 128, 128, 255, 255]
    image = np.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(generation.enlarged(image, 8)[:, ::2, ::2], image)
    assert generation.enlarged(image, 2)[0, :, :, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]


def test_path_length_of_a_linear_generator():
    """Unit features of images on a circle: distances are angles, and a path's length is its angle squared."""
    flat = Extractor("pixels", lambda _, images: images.reshape(len(images), -1), None)
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(2, 200, 3)).astype(np.float32)
    angles = np.arccos(np.sum(generative.slerp(*ends, np.zeros(200)) * generative.slerp(*ends, np.ones(200)), 1))

    def draw(variables, latents):
        return jnp.zeros((len(latents), 8, 8, 3)).at[:, 4, 3].set(latents)

    options = {"epsilon": 1e-2, "batch_size": 64}
    expected = np.sort(angles**2)[1:-1].mean()
    for full in (True, False):
        found = generation.perceptual_path_length(draw, None, flat, tuple(ends), full=full, crop=True, **options)
        np.testing.assert_allclose(found, expected, rtol=2e-2)
    straight = generation.perceptual_path_length(
        draw, None, flat, tuple(ends), between=lambda a, b, t: a + t[:, None] * (b - a), full=False, **options
    )
    sines = np.sum((ends[1] - ends[0]) ** 2, 1) / np.sum(ends[0] ** 2, 1)
    turn = np.sum((ends[1] - ends[0]) * ends[0], 1) ** 2 / np.sum(ends[0] ** 2, 1) ** 2
    assert abs(straight / np.sort(sines - turn)[2:-2].mean() - 1) < 0.1


def test_bad_settings(images):
    with pytest.raises(ValueError, match=r"eval.swd_images is 30: expected 0 to eval.images, 24"):
        GenerationProtocol(images=24, swd_images=30)
    with pytest.raises(ValueError, match=r"eval.images is 49: expected at most the 48 images of folder"):
        GenerationProtocol(images=49).assess(lambda v, z: jnp.zeros((len(z), 16, 16, 3)), None, 1, images)
    assert data.SOURCES[0] == "face_world"
