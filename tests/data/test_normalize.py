"""Pixel normalisation."""

import jax.numpy as jnp
import numpy as np

from facejax.data import normalize


def test_imagenet_mean_and_deviation():
    pixels = jnp.array([[[[124, 116, 104], [182, 173, 161]]]], jnp.uint8)
    np.testing.assert_allclose(normalize.imagenet(pixels), [[[[0.0] * 3, [1.0] * 3]]], atol=0.02)
    np.testing.assert_allclose(normalize.centred(pixels)[0, 0, 0], [0.325, -0.28, 0.47], atol=1e-4)
    np.testing.assert_array_equal(normalize.centred(pixels, normalize.CAFFE_MEAN)[0, 0, 0], [1, -1, 0])


def test_symmetric_and_bgr():
    pixels = jnp.array([[[[0, 255, 51]]]], jnp.uint8)
    np.testing.assert_allclose(normalize.symmetric(pixels)[0, 0, 0], [-1, 1, -0.6], atol=1e-6)
    np.testing.assert_allclose(normalize.bgr_unit(pixels)[0, 0, 0], [0.2, 1, 0], atol=1e-6)
