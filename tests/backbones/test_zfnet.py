"""ZFNet: published sizes of the maps, head and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.zfnet import ZFNet


def shapes(net, size):
    images = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    found = jax.eval_shape(lambda v: net.apply(v, images, train=False, features=True), variables)
    return {name: x.shape[1:] for name, x in found.items()}


def test_published_sizes():
    found = shapes(ZFNet(), 224)
    sizes = {"relu1": 110, "pool1": 55, "norm1": 55, "relu2": 26, "pool2": 13, "relu3": 13, "relu5": 13, "pool5": 6}
    assert {name: found[name][0] for name in sizes} == sizes
    assert found["pool5"] == (6, 6, 256)
    assert found["logits"] == (1000,)


def test_outputs_and_gradients():
    net = ZFNet(3, (4, 5, 6, 6, 5), hidden=7)
    images = 50 * jax.random.normal(jax.random.key(0), (2, 53, 55, 3))
    variables = jax.jit(lambda key: net.init(key, images, train=False))(jax.random.key(1))
    found = net.apply(variables, images, train=False, features=True)
    np.testing.assert_array_equal(net.apply(variables, images, train=False), found["logits"])
    x = np.asarray(found["relu1"])
    assert found["pool5"].shape == (2, 1, 1, 5)
    assert found["pool1"][0, 1, 1, 2] == x[0, 1:4, 1:4, 2].max()
    assert found["pool1"][0, 0, 0, 2] == x[0, :2, :2, 2].max()
    near = np.square(found["pool1"][0, 1, 1]).sum()  # 4 channels: every window of 5 about channel 2 holds them all
    expected = found["pool1"][0, 1, 1, 2] * (2 + 1e-4 * near) ** -0.75
    np.testing.assert_allclose(found["norm1"][0, 1, 1, 2], expected, rtol=1e-5)
    dropped = [net.apply(variables, images, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert not np.array_equal(*dropped)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(net.apply(variables, x, train=False))))(images)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_too_small_an_image_raises():
    net, images = ZFNet(), jnp.zeros((1, 52, 64, 3))
    with pytest.raises(ValueError, match=r"images \(1, 52, 64, 3\), expected \[N, H, W, 3\] with sides of 53"):
        jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
