"""AlexNet's local response normalisation."""

import jax.numpy as jnp
import numpy as np
import pytest

from facejax.nn.norm import local_response_norm

pytestmark = pytest.mark.smoke


def test_local_response_norm():
    x = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    expected = np.empty_like(x)
    for c in range(7):
        near = x[..., max(c - 2, 0) : c + 3]
        expected[..., c] = x[..., c] / (2 + 0.1 * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x), alpha=0.1), expected, rtol=1e-5)
