import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import resnet

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(("stride", "size"), [(32, 64), (16, 64), (32, 50)])
def test_feature_maps(stride, size):
    net = resnet.resnet50(output_stride=stride)
    shapes = jax.eval_shape(
        lambda key: net.init_with_output(key, jnp.zeros((1, size, size, 3)), train=False, features=True)[0],
        jax.random.key(0),
    )
    sides = {name: -(-size // s) for name, s in (("c2", 4), ("c3", 8), ("c4", 16), ("c5", stride))}
    expected = {name: (1, side, side, 256 * 2**i) for i, (name, side) in enumerate(sides.items())}
    assert {name: x.shape for name, x in shapes.items()} == expected


def test_a_block_without_its_convolutions_passes_its_input():
    net = resnet.ResidualBlock(8, 1, 1, False, resnet.Conv)
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 6, 6, 8)))
    variables = net.init(jax.random.key(1), x, train=False)
    variables = {**variables, "params": {k: jax.tree.map(jnp.zeros_like, v) for k, v in variables["params"].items()}}
    np.testing.assert_allclose(net.apply(variables, x, train=False), x)


def test_other_strides_raise():
    with pytest.raises(ValueError, match="output_stride is 8: expected 16 or 32"):
        resnet.resnet18(output_stride=8).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
