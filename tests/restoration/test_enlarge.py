import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.restoration import enlarge
from facejax.restoration import super_resolution as sr


def network(scale, features=4, blocks=1):
    net = sr.EDSR(scale, features, blocks)
    return net, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))


def picture(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 33), (21, 57)])
def test_tiles_equal_the_whole(size):
    net, variables = network(2)
    low, restore = picture(*size), jax.jit(lambda x: net.apply(variables, x))
    whole = enlarge.tiled(restore, low, 2, tile=100, overlap=0)
    expected = 255 * np.clip(restore(low[None].astype(np.float32) / 255)[0], 0, 1)
    assert np.abs(whole - expected).max() <= 0.501
    found = enlarge.tiled(restore, low, 2, tile=11, overlap=net.radius)
    assert np.abs(found.astype(int) - whole).max() <= 1  # a half rounds either way


def test_less_overlap_is_equal_away_from_the_borders_of_tiles():
    net, variables = network(2)
    low, restore = picture(40, 40), jax.jit(lambda x: net.apply(variables, x))
    whole = enlarge.tiled(restore, low, 2, tile=40, overlap=0)
    found = enlarge.tiled(restore, low, 2, tile=20, overlap=0)
    wrong = np.abs(found.astype(int) - whole).max((1, 2)) > 1
    near = np.abs(np.arange(80) - 39.5) < 2 * net.radius
    assert wrong[near].any() and not np.abs(found.astype(int) - whole)[:, ~near][~near].max() > 1


def test_a_picture_of_4k_takes_windows_of_one_size():
    shapes, low = [], picture(540, 960)

    def restore(images):
        shapes.append(images.shape)
        return images.repeat(4, 1).repeat(4, 2)

    found = enlarge.tiled(restore, low, 4, tile=96, overlap=16)
    np.testing.assert_array_equal(found, low.repeat(4, 0).repeat(4, 1))
    assert found.shape == (2160, 3840, 3)
    assert set(shapes) == {(1, 128, 128, 3)} and len(shapes) == 6 * 10


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_folded_equals_edsr(scale):
    net, variables = network(scale, features=5)
    restore, whole = jax.jit(enlarge.folded(net, variables)), jax.jit(lambda x: net.apply(variables, x))
    for size in ((9, 12), (7, 5), (4, 9)):
        low = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
        np.testing.assert_allclose(restore(low), whole(low), atol=2e-5)


def test_self_ensemble_is_equivariant():
    net, variables = network(2)
    restore = jax.jit(enlarge.self_ensemble(lambda x: net.apply(variables, x)))
    low = np.random.default_rng(0).uniform(size=(1, 6, 9, 3)).astype(np.float32)
    found = restore(low)
    assert found.shape == (1, 12, 18, 3)
    for turn in (lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: np.rot90(x, 1, (1, 2))):
        np.testing.assert_allclose(restore(turn(low)), turn(found), atol=1e-5)
    assert np.abs(found - net.apply(variables, low)).max() > 1e-3
    np.testing.assert_allclose(enlarge.self_ensemble(lambda x: x)(low), low, atol=1e-6)


@pytest.mark.parametrize(
    ("low", "options", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), {}, r"a picture \(4, 4, 4\) of uint8: expected .* RGB without alpha"),
        (np.zeros((4, 4, 3), np.uint16), {}, "of uint16: expected"),
        (np.zeros((4, 4), np.uint8), {}, "expected"),
        (np.zeros((0, 4, 3), np.uint8), {}, "expected"),
        (np.zeros((4, 4, 3), np.uint8), {"tile": 0}, "tile 0 and overlap 32: expected at least 1 and 0"),
    ],
)
def test_bad_input(low, options, message):
    with pytest.raises(ValueError, match=message):
        enlarge.tiled(lambda x: x, low, 1, **options)
