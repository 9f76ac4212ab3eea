import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.restoration import fsrnet

SMALL = fsrnet.FSRNet(4, 3, 2, 4, (1, 0, 0, 0), 2, 1)


@pytest.fixture(scope="module")
def low():
    return np.random.default_rng(0).uniform(size=(2, 4, 6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(low):
    return jax.jit(SMALL.init)(jax.random.key(0), low)


def test_images_and_priors(low, variables):
    found = jax.jit(SMALL.apply)(variables, low)
    assert found.coarse.shape == found.fine.shape == (2, 16, 24, 3)
    assert [maps.shape for maps in found.priors] == [(2, 8, 12, 5)] * 2
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))


def test_residual_adds_the_enlargement_to_both(low, variables):
    silent = jax.tree.map(jnp.zeros_like, variables)
    found = jax.jit(SMALL.clone(residual=True).apply)(silent, low)
    np.testing.assert_array_equal(found.fine, fsrnet.imresize(low, 4))
    np.testing.assert_array_equal(found.coarse, found.fine)
    assert not np.any(jax.jit(SMALL.apply)(silent, low).fine)


def test_priors_reach_the_image(low, variables):
    """The fine image depends on the prior network's features, not on its maps."""

    def fine(params):
        return SMALL.apply({**variables, "params": params}, low).fine.sum()

    gradient = jax.jit(jax.grad(fine))(variables["params"])
    assert np.any(gradient["prior_first"]["conv"]["kernel"]) and not np.any(gradient["maps1"]["kernel"])


def test_prior_maps():
    points = np.float32([[[5.0, 9.0], [16.0, 3.0], [200.0, 3.0]]])
    parsing = np.zeros((1, 8, 12, 2), np.uint8)
    parsing[..., 1] = 1
    maps = fsrnet.prior_maps(points, parsing, (16, 24))
    assert maps.shape == (1, 8, 12, 5)
    assert np.unravel_index(maps[0, ..., 0].argmax(), (8, 12)) == (4, 2)
    np.testing.assert_allclose(maps[0, 4, 2, 0], 1, rtol=1e-5)  # 9 / 2 - 0.5 = 4, 5 / 2 - 0.5 = 2
    np.testing.assert_allclose(maps[0, 1, 7:9, 1], np.exp(-0.125), rtol=1e-5)  # 16 / 2 - 0.5 = 7.5
    assert not maps[..., 2].any() and not maps[..., 3].any() and (maps[..., 4] == 1).all()


def test_loss_by_hand():
    truth, priors = np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 2, 2, 5), np.float32)
    found = fsrnet.Restored(truth + 0.1, (priors + 1, priors + 2), truth + np.float32([0.2, 0.3])[:, None, None, None])
    losses = fsrnet.loss(found, truth, priors, fine_weight=2.0, prior_weight=0.5)
    np.testing.assert_allclose(losses["coarse"], 0.5 * 48 * 0.01, rtol=1e-5)
    np.testing.assert_allclose(losses["fine"], 48 * np.square([0.2, 0.3]), rtol=1e-5)
    np.testing.assert_allclose(losses["priors"], 0.5 * 0.5 * 20 * (1 + 4) / 2, rtol=1e-5)
    gradient = jax.grad(lambda x: sum(v.sum() for v in fsrnet.loss(found._replace(fine=x), truth, priors).values()))
    np.testing.assert_allclose(gradient(found.fine), found.fine, rtol=1e-5)


def test_sides_must_divide(low):
    with pytest.raises(ValueError, match="images of 4 x 6 pixels: expected sides that 8 divides after enlarging by 2"):
        SMALL.clone(scale=2, depth=2).init(jax.random.key(0), low)
