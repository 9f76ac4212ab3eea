"""The fast forms and the native operations have equal values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from facejax.nn.conv import Conv, explicit_padding
from facejax.ops import conv, pooling


def reference(x, kernel, stride, padding, dilation, groups):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=numbers, feature_group_count=groups
    )


def value_and_gradients(fn, *args):
    output, vjp = jax.vjp(fn, *args)
    return output, vjp(jnp.cos(output))


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation", "groups"),
    [
        ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 8),
        ((3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), 8),
        ((3, 2), (2, 1), ((1, 0), (2, 1)), (2, 1), 8),
        ((7, 6), (1, 1), ((0, 0), (0, 0)), (1, 1), 8),
        ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 4),
        ((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 2),
        ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
        ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    ],
)
def test_conv_equals_native(size, stride, padding, dilation, groups):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 9, 8, 8))
    kernel = jax.random.normal(keys[1], (*size, 8 // groups, 8))
    ours = value_and_gradients(lambda x, k: conv.conv(x, k, stride, padding, dilation, groups), x, kernel)
    native = value_and_gradients(lambda x, k: reference(x, k, stride, padding, dilation, groups), x, kernel)
    chex.assert_trees_all_close(ours, native, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("width", "channels", "features", "size", "stride", "padding", "forms"),
    [
        (16, 3, 8, (3, 3), (2, 2), ((1, 1), (1, 1)), (3, 5, 6, 32)),
        (16, 3, 16, (3, 3), (2, 2), ((1, 1), (1, 1)), (3, 3, 6, 32)),
        (24, 1, 6, (5, 5), (1, 1), ((2, 2), (2, 2)), (5, 4, 2, 24)),
        (16, 4, 12, (7, 7), (2, 2), ((3, 3), (3, 3)), (7, 9, 4, 24)),
        (16, 3, 16, (2, 3), (1, 2), ((1, 0), (0, 1)), (2, 3, 6, 32)),
        (14, 16, 16, (3, 3), (1, 1), ((1, 1), (1, 1)), (3, 4, 16, 32)),
        (13, 8, 16, (3, 3), (3, 2), ((0, 0), (0, 0)), (3, 5, 8, 32)),
        (9, 8, 4, (1, 3), (1, 1), ((0, 0), (1, 0)), (1, 10, 8, 32)),
        (15, 3, 16, (3, 3), (1, 1), ((1, 1), (1, 2)), (3, 3, 3, 16)),  # an odd width of pairs
        (15, 8, 16, (3, 3), (1, 1), ((1, 1), (1, 1)), (3, 3, 8, 16)),  # an odd width of the result
        (8, 8, 30, (3, 3), (1, 1), ((1, 1), (1, 1)), (3, 3, 8, 32)),
        (7, 8, 28, (3, 3), (2, 2), ((1, 1), (1, 1)), (3, 3, 8, 32)),
        (8, 8, 24, (3, 3), (1, 1), ((1, 1), (1, 1)), (3, 3, 8, 24)),
    ],
)
def test_narrow_and_uneven_widths(width, channels, features, size, stride, padding, forms):
    """Values and gradients, and `forms`, the shape of the kernel that the compiler sees."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 9, width, channels))
    kernel = jax.random.normal(keys[1], (*size, channels, features)) / 8
    ours = value_and_gradients(lambda x, k: conv.conv(x, k, stride, padding), x, kernel)
    native = value_and_gradients(lambda x, k: reference(x, k, stride, padding, (1, 1), 1), x, kernel)
    chex.assert_trees_all_close(ours, native, rtol=5e-5, atol=5e-5)
    if jax.default_backend() == "cpu":
        program = jax.jit(lambda x, k: conv.conv(x, k, stride, padding)).lower(x, kernel).as_text()
        assert f"tensor<{'x'.join(map(str, forms))}xf32>" in program


@pytest.mark.parametrize(
    ("kernel", "stride", "pad"),
    [
        (4, 2, (1, 1)), (3, 2, (1, 1)), (3, 2, (1, 0)), (2, 2, (0, 0)), (5, 3, (2, 2)), (3, 1, (1, 1)), (4, 1, (1, 2)),
        (3, 1, (0, 0)), (3, 1, (3, 2)), (2, 3, (0, 0)),
    ],
)  # fmt: skip
def test_conv_transpose_is_the_gradient_of_conv(kernel, stride, pad):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 6))
    weights = jax.random.normal(jax.random.key(1), (kernel, kernel, 6, 3))
    height, width = ((n - 1) * stride + kernel - sum(pad) for n in (5, 4))

    def expected(x, weights):
        def forward(y):
            return reference(y, weights.swapaxes(2, 3), (stride,) * 2, (pad, pad), (1, 1), 1)

        return jax.linear_transpose(forward, jnp.zeros((2, height, width, 3)))(x)[0]

    def ours(x, weights):
        return conv.conv_transpose(x, weights, (stride, stride), (pad, pad))

    assert ours(x, weights).shape == (2, height, width, 3)
    chex.assert_trees_all_close(
        value_and_gradients(ours, x, weights), value_and_gradients(expected, x, weights), rtol=2e-5, atol=2e-5
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form for a CPU")
@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 2), (3, 1)])
def test_gradients_of_conv_transpose_are_fast_convolutions(kernel, stride):
    """XLA has no fast form on a CPU of the reversed windows that the gradient of a fully padded kernel needs."""
    x, weights = jnp.ones((2, 8, 8, 32)), jnp.ones((kernel, kernel, 32, 32))

    def slope(x, weights):
        return jax.grad(lambda k: jnp.sum(conv.conv_transpose(x, k, (stride, stride), ((0, 0), (0, 0))) ** 2))(weights)

    assert "reversal" not in jax.jit(slope).lower(x, weights).compile().as_text()


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, ((0, 0), (0, 0))), (3, 2, ((1, 1), (0, 1)))])
def test_max_pool_equals_native(window, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))

    def native(x):
        sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, ((0, 0), *padding, (0, 0)))

    ours = value_and_gradients(lambda x: pooling.max_pool(x, (window,) * 2, (stride,) * 2, padding), x)
    chex.assert_trees_all_close(ours, value_and_gradients(native, x), rtol=1e-6)


def test_max_pool_shares_the_gradient_of_ties():
    x = jnp.array([1.0, 1, 0, 0]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: pooling.max_pool(x, (2, 2), (2, 2)).sum())
    np.testing.assert_allclose(gradient(x).ravel(), [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(gradient(jnp.ones((1, 2, 2, 1))).sum(), 1.0)


def test_avg_pool_at_the_edge():
    x = jnp.ones((1, 4, 4, 1))
    padding = ((1, 1), (1, 1))
    with_padding = pooling.avg_pool(x, (3, 3), (2, 2), padding)
    without = pooling.avg_pool(x, (3, 3), (2, 2), padding, count_padding=False)
    np.testing.assert_allclose(with_padding[0, :, :, 0], [[4 / 9, 6 / 9], [6 / 9, 1]], rtol=1e-6)
    np.testing.assert_allclose(without, 1, rtol=1e-6)


@pytest.mark.parametrize("size", [(10, 8), (7, 3), (5, 4)])
def test_resize_bilinear_equals_jax(size):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    ours = value_and_gradients(lambda x: pooling.resize_bilinear(x, size), x)
    native = value_and_gradients(lambda x: jax.image.resize(x, (2, *size, 3), "bilinear", antialias=False), x)
    chex.assert_trees_all_close(ours, native, rtol=1e-5, atol=1e-6)


def test_resize_bilinear_aligns_corners():
    row = pooling.resize_bilinear(jnp.arange(3.0).reshape(1, 1, 3, 1), (1, 5), align_corners=True)
    np.testing.assert_allclose(row[0, 0, :, 0], [0, 0.5, 1, 1.5, 2], atol=1e-6)


def test_upsample_nearest():
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 4))
    ours = value_and_gradients(lambda x: pooling.upsample_nearest(x, 2), x)
    native = value_and_gradients(lambda x: jax.image.resize(x, (2, 4, 6, 4), "nearest"), x)
    chex.assert_trees_all_close(ours, native, rtol=1e-6)


def test_same_padding_equals_tensorflow():
    assert explicit_padding("SAME", (8, 9), (3, 3), (2, 2)) == ((0, 1), (1, 1))
    assert explicit_padding(1, (8, 8), (3, 3), (2, 2)) == ((1, 1), (1, 1))


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="expected a number, two pairs or 'SAME'"):
        Conv(4, 3, padding="VALID").init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    with pytest.raises(ValueError, match=r"7 channels, kernel .* and 2 groups are inconsistent"):
        conv.conv(jnp.zeros((1, 4, 4, 7)), jnp.zeros((3, 3, 3, 4)), groups=2)
