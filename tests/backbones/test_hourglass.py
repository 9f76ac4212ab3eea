import jax
import jax.numpy as jnp
import pytest

from facejax.backbones.hourglass import Hourglass, hourglass104
from facejax.train.dry_run import count


def shapes(net, size):
    images = jnp.zeros((1, *size, 3))
    variables = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    return variables, jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)


def test_parts_of_hourglass104():
    """Counts of CornerNet's code."""
    variables, maps = shapes(hourglass104(), (511, 511))
    params = variables["params"]
    assert count(params["stack0"]) + count(params["stack1"]) == 184_268_800
    assert count(params["stem_conv"]) + count(params["stem_block"]) == 938_112
    assert [x.shape for x in maps] == [(1, 128, 128, 256)] * 2


def test_sizes():
    net = Hourglass(3, (4, 6, 8), (1, 1, 2), stem=4, features=5)
    for size, cells in (((64, 96), (16, 24)), ((31, 45), (8, 12)), ((61, 47), (16, 12))):
        assert [x.shape for x in shapes(net, size)[1]] == [(1, *cells, 5)] * 3
    with pytest.raises(ValueError, match=r"Hourglass: images \(1, 36, 64, 3\), expected .* rounded up, multiples of 4"):
        shapes(net, (36, 64))
