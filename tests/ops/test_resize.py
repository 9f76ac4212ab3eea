import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops.resize import imresize, imresize_on_host

pytestmark = pytest.mark.smoke


def by_loops(line, target, scale, antialias=True):
    """One line, as MATLAB's code computes it: 1-based places, the kernel, mirrored borders."""

    def cubic(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    shrink = scale if scale < 1 and antialias else 1.0
    mirrored, found = [*range(len(line)), *reversed(range(len(line)))], []
    for out in range(1, target + 1):
        u = out / scale + 0.5 * (1 - 1 / scale)
        places = [math.floor(u - 2 / shrink) + i for i in range(math.ceil(4 / shrink) + 2)]
        weights = [cubic(shrink * (u - place)) for place in places]
        values = [line[mirrored[(place - 1) % len(mirrored)]] for place in places]
        found.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return np.array(found)


def expected(image, target, scales, antialias=True):
    for axis in (0, 1):
        image = np.apply_along_axis(by_loops, axis, image, target[axis], scales[axis], antialias)
    return image


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((16, 12), 1 / 4), ((13, 21), 1 / 3), ((13, 7), 4), ((9, 15), 0.7), ((5, 3), 1 / 8), ((11, 8), 1.5)],
)
def test_equals_loops(shape, scale):
    image = np.random.default_rng(0).uniform(0, 255, (*shape, 2))
    target = [math.ceil(scale * side) for side in shape]
    found = jax.jit(lambda x: imresize(x, scale))(image.astype(np.float32))
    np.testing.assert_allclose(found, expected(image, target, (scale, scale)), rtol=1e-5, atol=1e-3)


def test_size_and_no_antialias():
    image = np.random.default_rng(0).uniform(0, 255, (10, 9, 1))
    found = imresize(image.astype(np.float32), size=(4, 17))
    np.testing.assert_allclose(found, expected(image, (4, 17), (4 / 10, 17 / 9)), rtol=1e-5, atol=1e-3)
    found = imresize(image.astype(np.float32), 0.5, antialias=False)
    np.testing.assert_allclose(found, expected(image, (5, 5), (0.5, 0.5), False), rtol=1e-5, atol=1e-3)


def test_equals_matlab(test_data):
    matlab = np.load(test_data / "sr/Set5/matlab_x4_butterfly_woman.npz")
    for name in ("butterfly", "woman"):
        small = imresize(matlab[f"{name}_im_gt"], 1 / 4)  # MATLAB's has been clipped
        np.testing.assert_allclose(jnp.clip(small, 0, 255), matlab[f"{name}_im_l"], atol=1e-4)
        luma = matlab[f"{name}_im_gt_y"].astype(np.float32)[..., None]
        np.testing.assert_allclose(imresize(imresize(luma, 1 / 4), 4)[..., 0], matlab[f"{name}_im_b_y"], atol=2e-4)


def test_jax_resize_differs_at_the_border_only():
    image = np.random.default_rng(0).uniform(0, 255, (32, 32, 1)).astype(np.float32)
    difference = np.abs(imresize(image, 1 / 4) - jax.image.resize(image, (8, 8, 1), "cubic"))
    assert difference[2:-2, 2:-2].max() < 1e-3 and difference.max() > 1


def test_constants_ramps_batches_and_types():
    np.testing.assert_allclose(imresize(np.full((7, 9, 3), 42, np.uint8), 3), 42, rtol=1e-6)
    ramp = np.arange(24, dtype=np.float32)[None, :, None] * np.ones((4, 1, 1), np.float32)
    np.testing.assert_allclose(imresize(ramp, 1 / 2)[0, 2:-2, 0], np.arange(12)[2:-2] * 2 + 0.5, rtol=1e-6)
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 8, 8, 3)).astype(np.float32)
    found = imresize(images, 1 / 2)
    assert found.shape == (2, 3, 4, 4, 3)
    np.testing.assert_allclose(found[1, 2], imresize(images[1, 2], 1 / 2), rtol=1e-5, atol=1e-4)
    on_host = imresize_on_host(images, 1 / 2)
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_allclose(on_host, found, rtol=1e-5, atol=1e-4)
    for dtype in (jnp.bfloat16, np.uint8):
        assert imresize(jnp.zeros((4, 4, 1), dtype), 2).dtype == jnp.float32


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 4, 3), {}, "expected one of them"),
        ((4, 4, 3), {"scale": 2, "size": (8, 8)}, "expected one of them"),
        ((4, 4, 3), {"scale": -1}, "above 0"),
        ((4, 4), {"scale": 2}, r"expected \[..., H, W, C\]"),
    ],
)
def test_bad_input(shape, options, message):
    with pytest.raises(ValueError, match=message):
        imresize(np.zeros(shape), **options)
