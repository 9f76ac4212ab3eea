"""Layers of progressive GANs: scales, groups, norms, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.nn import equalized
from facejax.nn.equalized import EqualizedConv, EqualizedDense
from facejax.ops import pooling


def test_outputs_have_the_gains_deviation():
    x = jax.random.normal(jax.random.key(0), (64, 6, 6, 48))
    for gain in (1.0, equalized.GAIN):
        conv = EqualizedConv(96, gain=gain, use_bias=False)
        y = conv.apply(conv.init(jax.random.key(1), x), x)[:, 1:-1, 1:-1]
        np.testing.assert_allclose(y.std(), gain, rtol=0.03)
        dense = EqualizedDense(256, gain=gain, use_bias=False)
        y = dense.apply(dense.init(jax.random.key(1), x[:, 0, 0]), x[:, 0, 0])
        np.testing.assert_allclose(y.std(), gain, rtol=0.05)


def test_stored_weights_have_unit_variance_whatever_the_size():
    for inputs in (4, 512):
        kernel = EqualizedConv(64).init(jax.random.key(0), jnp.zeros((1, 4, 4, inputs)))["params"]["kernel"]
        np.testing.assert_allclose(np.std(kernel), 1, rtol=0.05)


@pytest.mark.parametrize("layer", [EqualizedDense, EqualizedConv])
def test_a_multiplier_changes_the_rate_and_not_the_outputs(layer):
    """With 1/100 the stored values are 100 times as large, and a step of the same size moves them 100 times less."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    outputs, slopes = [], []
    for multiplier in (1.0, 0.01):
        net = layer(4, multiplier=multiplier, bias_init=1.0)
        params = net.init(jax.random.key(1), x)
        outputs.append(net.apply(params, x))
        slopes.append(jax.grad(lambda p, net=net: net.apply(p, x).sum())(params)["params"])
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(slopes[0][name], 100 * slopes[1][name], rtol=1e-4, atol=1e-4)


def test_scales():
    """A kernel that averages keeps the inside of constant images; sides double or halve."""
    x = jnp.full((1, 8, 8, 2), 3.0)
    for scale, side in (("same", 8), ("up", 16), ("down", 4)):
        conv = EqualizedConv(1, scale=scale, gain=float(np.sqrt(18)) / 18, use_bias=False)
        y = conv.apply({"params": {"kernel": jnp.ones((3, 3, 2, 1))}}, x)
        assert y.shape == (1, side, side, 1)
        np.testing.assert_allclose(y[:, 1:-1, 1:-1], 3.0, rtol=1e-5)


def test_pixel_norm():
    x = 50 * jax.random.normal(jax.random.key(0), (3, 2, 2, 7))
    np.testing.assert_allclose((equalized.pixel_norm(x) ** 2).mean(-1), 1.0, rtol=1e-5)
    assert equalized.pixel_norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(equalized.pixel_norm(jnp.zeros((1, 3))), np.zeros((1, 3)))


def test_groups_of_the_minibatch_are_strided():
    """Six images in groups of three: images 0, 2, 4 and images 1, 3, 5."""
    x = np.random.default_rng(0).normal(size=(6, 2, 3, 4)).astype(np.float32)
    found = np.asarray(equalized.minibatch_stddev(x, 3))
    np.testing.assert_array_equal(found[..., :4], x)
    for first in range(2):
        expected = np.sqrt(x[first::2].var(0) + 1e-8).mean()
        np.testing.assert_allclose(found[first::2, ..., 4], expected, rtol=1e-5)


def test_equal_images_have_the_smallest_deviation():
    found = equalized.minibatch_stddev(jnp.ones((2, 1, 1, 3)), 4)
    np.testing.assert_allclose(found[..., 3], 1e-4, rtol=1e-4)
    slope = jax.grad(lambda x: equalized.minibatch_stddev(x)[..., 3].sum())(jnp.ones((2, 1, 1, 3)))
    np.testing.assert_array_equal(slope, np.zeros((2, 1, 1, 3)))


def test_incomplete_groups_raise():
    with pytest.raises(ValueError, match="6 images of a device, expected a multiple of the group of 4"):
        equalized.minibatch_stddev(jnp.zeros((6, 4, 4, 1)))


def test_fades_are_exact_at_both_ends():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 5)).astype(np.float32)
    fade = jax.jit(equalized.fade)
    np.testing.assert_array_equal(fade(old, new, 0.0), old)
    np.testing.assert_array_equal(fade(old, new, 1.0), new)
    np.testing.assert_allclose(fade(old, new, 0.25), 0.75 * old + 0.25 * new, rtol=1e-6)


def test_changes_of_scale():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(equalized.downscale(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(equalized.downscale(equalized.upscale(x)), x)
    np.testing.assert_array_equal(equalized.upscale(x), pooling.upsample_nearest(x, 2))
