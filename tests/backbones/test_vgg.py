"""VGG-16, 19 and M: published sizes, names of intermediates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import vgg


def shapes(make, size, classes=None):
    images, net = jnp.zeros((1, size, size, 3)), make(num_classes=classes)
    variables = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    found = jax.eval_shape(lambda v: net.apply(v, images, train=False, features=True), variables)
    return {name: x.shape[1:] for name, x in found.items()}


def test_named_intermediates():
    found = shapes(vgg.vgg16, 224, 1000)
    assert found["relu1_2"] == (224, 224, 64)
    assert found["relu5_3"] == (14, 14, 512)
    assert found["pool5"] == (7, 7, 512)
    assert found["relu7"] == (4096,)
    assert found["logits"] == (1000,)
    names = [f"relu{s}_{i}" for s, depth in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, depth + 1)]
    assert set(names) | {f"pool{s}" for s in range(1, 6)} | {"relu6", "relu7", "logits"} == set(found)
    assert shapes(vgg.vgg19, 224)["relu5_4"] == (14, 14, 512)


@pytest.mark.parametrize(("net", "size"), [(vgg.vgg16, 16), (vgg.vgg_m, 40)])
def test_images_that_shrink_to_nothing_are_refused(net, size):
    with pytest.raises(ValueError, match="a last map of 0 x 0 pixels: expected larger images"):
        shapes(net, size)


def test_vgg_m_has_caffe_sizes():
    found = shapes(vgg.vgg_m, 224)
    assert [found[n][0] for n in ("relu1", "pool1", "relu2", "pool2", "relu5", "pool5")] == [109, 54, 26, 13, 13, 6]
    assert shapes(vgg.vgg_m, 448)["relu5"] == (27, 27, 512)


def test_outputs_and_gradients():
    net = vgg.VGG((1, 1), (4, 6), num_classes=3, hidden=5)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.jit(lambda key: net.init(key, images, train=False))(jax.random.key(1))
    found = net.apply(variables, images, train=False, features=True)
    np.testing.assert_array_equal(net.apply(variables, images, train=False), found["logits"])
    blocks = np.asarray(found["relu1_1"]).reshape(2, 4, 2, 4, 2, 4).max((2, 4))
    np.testing.assert_array_equal(found["pool1"], blocks)
    dropped = [net.apply(variables, images, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert not np.allclose(*dropped)
    half = vgg.VGG((1, 1), (4, 6), num_classes=3, hidden=5, dtype=jnp.bfloat16).apply(variables, images, train=False)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, found["logits"], atol=0.02 * float(jnp.abs(found["logits"]).max()) + 1e-4)
