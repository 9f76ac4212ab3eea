import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data import sources
from facejax.data.synthetic.faces import png
from facejax.evaluate import embedder
from facejax.evaluate.embedder import Backbone, Embedder


class Pixel(nn.Module):
    """Embeds an image as its pixel at row 3, column 2."""

    @nn.compact
    def __call__(self, images, *, train):
        return images[:, 3, 2]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def test_images_of_another_size_are_resized(images):
    large = images.repeat(2, 1).repeat(2, 2)
    embed = Embedder(Pixel(), {}, 8, np.zeros((0, 3)))
    expected = (images[:, 3, 2].astype(np.float32) - 127.5) / 127.5
    np.testing.assert_allclose(embed(images), expected, atol=1e-6)
    np.testing.assert_allclose(embed(large), expected, atol=1e-6)
    encoded = sources.Images([{"image": png(x)} for x in images], np.arange(3), 8)
    np.testing.assert_allclose(embed(encoded), expected, atol=1e-6)


def test_preprocessing_is_chosen(images):
    found = embedder.embed(Pixel(), {}, images, 2, preprocess=lambda x: x.astype(jnp.float32))
    np.testing.assert_array_equal(found, images[:, 3, 2])


def test_an_image_and_its_mirror_are_added(images):
    found = embedder.embed_flipped(Pixel(), {}, images, 2)
    both = (images[:, 3, 2].astype(np.float64) + images[:, 3, 5] - 255) / 127.5
    np.testing.assert_allclose(found, both / np.linalg.norm(both, axis=1, keepdims=True), rtol=1e-5)


def test_backbones_by_name():
    shapes = jax.eval_shape(
        lambda: Backbone("tiny", 16).make().init_with_output(jax.random.key(0), jnp.zeros((2, 48, 48, 3)), train=False)
    )[0]
    assert shapes.shape == (2, 16)
    assert Backbone("mobilefacenet", 16, dropout=0.4).make().embedding_size == 16
    with pytest.raises(ValueError, match=r"model\.name is 'vgg': expected one of tiny, iresnet18"):
        Backbone("vgg").make()
