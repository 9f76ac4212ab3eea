"""Filters beside SciPy's convolution of the whole filter, zeros between pixels and all; odd sides; gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from facejax.ops import fir


def by_hand(x, taps, up=1, down=1, padding=(0, 0)):
    """[N, H, W, C], map by map."""
    n, height, width, channels = x.shape
    wide = np.zeros((n, up * height, up * width, channels))
    wide[:, ::up, ::up] = x
    edges = [(max(p, 0)) for p in padding]
    wide = np.pad(wide, ((0, 0), edges, edges, (0, 0)))
    cut = slice(max(-padding[0], 0), wide.shape[1] - max(-padding[1], 0))
    wide = wide[:, cut, max(-padding[0], 0) : wide.shape[2] - max(-padding[1], 0)]
    taps = up * np.asarray(taps) / np.sum(taps)
    kernel = np.outer(taps, taps)
    maps = [[signal.convolve2d(image[..., c], kernel, "valid") for c in range(channels)] for image in wide]
    return np.moveaxis(np.array(maps), 1, -1)[:, ::down, ::down]


@pytest.mark.parametrize("size", [(5, 7), (4, 2)])
@pytest.mark.parametrize(
    "options",
    [
        {"taps": (1, 2, 4, 1), "up": 2, "padding": (2, 1)},
        {"taps": (1, 2, 4, 1), "down": 2, "padding": (1, 1)},
        {"taps": (1, 2, 1), "padding": (1, 1)},
        {"taps": (3, 1), "up": 3, "down": 2, "padding": (-1, 2)},
    ],
)
def test_upfirdn(size, options):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    found = jax.jit(functools.partial(fir.upfirdn, **options))(x)
    np.testing.assert_allclose(found, by_hand(x, **options), rtol=1e-5, atol=1e-6)


def test_a_plane_stays_a_plane():
    """Inside the borders, values of constant and linear images are kept: the filters are centred."""
    ramp = np.broadcast_to(np.arange(8.0, dtype=np.float32), (1, 8, 8))[..., None]
    same, larger, smaller = jax.jit(lambda x: (fir.blur(x), fir.upscale(x), fir.downscale(x)))(ramp)
    np.testing.assert_allclose(same[0, 4, 1:-1, 0], np.arange(1.0, 7))
    np.testing.assert_allclose(larger[0, 8, 2:-2, 0], np.arange(0.75, 6.5, 0.5))
    np.testing.assert_allclose(smaller[0, 2, 1:-1, 0], [2.5, 4.5])


@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
def test_upscale_conv(size):
    """The parts in the authors' order: zeros between pixels, the kernel, the filter. Gradients of both arguments."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)

    def parts(x, kernel):
        dims = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        convolved = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((2, 2),) * 2, (2, 2), dimension_numbers=dims)
        return 4 * fir.upfirdn(convolved, fir.SMOOTH, padding=(1, 1))

    @functools.partial(jax.jit, static_argnums=0)
    def everything(form, x, kernel):
        return form(x, kernel), jax.grad(lambda *a: jnp.sum(jnp.sin(form(*a))), (0, 1))(x, kernel)

    for ours, theirs in zip(
        *(jax.tree.leaves(everything(form, x, kernel)) for form in (fir.upscale_conv, parts)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [1, 3])
def test_conv_downscale(side):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 4, 3)).astype(np.float32), rng.normal(size=(side, side, 3, 1)).astype(np.float32)
    smooth = by_hand(x, fir.SMOOTH, padding=((side + 2) // 2, (side + 1) // 2))
    expected = [
        sum(signal.correlate2d(image[..., c], kernel[..., c, 0], "valid") for c in range(3))[::2, ::2]
        for image in smooth
    ]
    np.testing.assert_allclose(jax.jit(fir.conv_downscale)(x, kernel)[..., 0], expected, rtol=1e-5, atol=1e-5)


def test_bad_input():
    kernel = jnp.zeros((3, 3, 1, 1))
    with pytest.raises(ValueError, match="expected even sides"):
        fir.conv_downscale(jnp.zeros((1, 5, 4, 1)), kernel)
    with pytest.raises(ValueError, match=r"a kernel \(1, 1, 1, 1\) and 4 taps, expected \[3, 3, C, features\] and 4"):
        fir.upscale_conv(jnp.zeros((1, 4, 4, 1)), kernel[:1, :1])
