import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.dla import DLA, DLAUp, Enlarge
from facejax.ops.conv import conv_transpose
from facejax.ops.pooling import resize_bilinear


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_is_a_depthwise_transposed_convolution(factor):
    layer, x = Enlarge(factor), jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    kernel = jax.random.normal(jax.random.key(1), (2 * factor, 2 * factor, 1, 3))
    signal = jax.random.normal(jax.random.key(2), (2, 5 * factor, 7 * factor, 3))

    def channelwise(x, kernel):
        cut = ((factor // 2, factor // 2),) * 2
        parts = [conv_transpose(x[..., c : c + 1], kernel[..., c : c + 1], (factor, factor), cut) for c in range(3)]
        return jnp.concatenate(parts, -1)

    found, back = jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel)
    expected, back_expected = jax.vjp(channelwise, x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for got, want in zip(back(signal), back_expected(signal), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_starts_as_bilinear_interpolation(factor):
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 2))
    found, variables = Enlarge(factor).init_with_output(jax.random.key(1), x)
    assert variables["params"]["kernel"].shape == (2 * factor, 2 * factor, 1, 2)
    inner = np.s_[:, factor:-factor, factor:-factor]  # zeros lie outside the image
    np.testing.assert_allclose(found[inner], resize_bilinear(x, (6 * factor, 5 * factor))[inner], atol=1e-6)


def test_sizes():
    net = DLAUp(DLA(widths=(2, 3, 4, 5, 6, 7)))
    images = jnp.zeros((1, 64, 96, 3))
    variables = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    maps = jax.eval_shape(
        lambda v: net.trunk.apply({k: t["trunk"] for k, t in v.items()}, images, train=False), variables
    )
    assert [x.shape[1:] for x in maps] == [(64 >> i, 96 >> i, 2 + i) for i in range(6)]
    assert [x.shape for x in jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)] == [(1, 16, 24, 4)]
    with pytest.raises(ValueError, match=r"DLA: images \(1, 48, 64, 3\), expected .* multiples of 32"):
        jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 48, 64, 3)), train=False), jax.random.key(0))
