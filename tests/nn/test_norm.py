"""Statistics of the norms in float32, and AlexNet's response normalisation."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from facejax.nn.norm import BatchNorm, GroupNorm, LayerNorm, local_response_norm

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(("mean", "deviation"), [(127, 0.02), (-5000, 1), (0, 1)])
def test_norms_of_a_mean_far_above_the_deviation(mean, deviation):
    x = np.float32(np.random.default_rng(0).normal(mean, deviation, (8, 32, 32, 1)))
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    norm = BatchNorm()
    variables = {"params": {"norm": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}}
    variables["batch_stats"] = {"norm": {"mean": jnp.zeros(1), "var": jnp.zeros(1)}}
    found, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, exact, atol=1e-2)
    np.testing.assert_allclose(updated["batch_stats"]["norm"]["var"], [0.1 * x.var(dtype=np.float64)], rtol=1e-2)
    rows = x.reshape(1, -1)
    params = {"params": {"scale": jnp.ones(rows.shape[1]), "bias": jnp.zeros(rows.shape[1])}}
    np.testing.assert_allclose(LayerNorm(1e-5).apply(params, rows), exact.reshape(1, -1), atol=1e-2)
    params = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}
    np.testing.assert_allclose(GroupNorm(1).apply(params, x.reshape(1, -1, 1)), exact.reshape(1, -1, 1), atol=1e-2)


def test_no_module_takes_flax_norms_with_their_fast_variance():
    root = pathlib.Path(facejax.__file__).parent
    used = {
        file.name
        for folder in (root, root.parent / "experiments")
        for file in folder.rglob("*.py")
        if re.search(r"nn\.\w+Norm\b", file.read_text())
    }
    assert used == {"norm.py"}


def test_local_response_norm():
    x = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    expected = np.empty_like(x)
    for c in range(7):
        near = x[..., max(c - 2, 0) : c + 3]
        expected[..., c] = x[..., c] / (2 + 0.1 * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x), alpha=0.1), expected, rtol=1e-5)
