"""Scatter with repeated indices, compared with a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops.scatter import last_of_equal

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("seed", range(5))
def test_the_last_of_equal_indices_is_written(seed):
    rng = np.random.default_rng(seed)
    indices, rows = rng.integers(-2, 9, 20), rng.normal(size=(20, 3)).astype(np.float32)
    expected = np.zeros((7, 3), np.float32)
    for index, row in zip(indices, rows, strict=True):
        if 0 <= index < 7:
            expected[index] = row
    place = jax.jit(last_of_equal, static_argnums=1)(jnp.asarray(indices), 7)
    assert len(np.unique(place[place < 7])) == (place < 7).sum()
    np.testing.assert_array_equal(jnp.zeros((7, 3)).at[place].set(rows, mode="drop"), expected)
