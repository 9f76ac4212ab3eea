"""Normalisation: short rows, half precision, gradients, validation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops.vectors import check_finite, unit, unit_rows

pytestmark = pytest.mark.smoke


def test_rows_have_unit_length():
    rows = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    expected = rows / np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(unit(jnp.asarray(rows)), expected, rtol=1e-6)
    np.testing.assert_allclose(unit_rows(rows[0]), expected[0], rtol=1e-6)
    np.testing.assert_allclose(unit(jnp.array([[3e-3, 4e-3]]), 1e-2), [[0.3, 0.4]], rtol=1e-6)


def test_a_zero_row_stays_zero_with_a_finite_gradient():
    for shortest in (1e-12, 1e-6):
        value, slope = jax.value_and_grad(lambda x, shortest=shortest: unit(x, shortest).sum())(jnp.zeros((1, 4)))
        assert value == 0
        np.testing.assert_allclose(slope, np.full((1, 4), 1 / shortest), rtol=1e-5)
    np.testing.assert_array_equal(unit_rows([[0.0, 0.0], [0.0, 2.0]]), [[0, 0], [0, 1]])


def test_precision():
    assert unit(jnp.ones((1, 3), jnp.bfloat16)).dtype == np.float32
    rows = np.random.default_rng(0).normal(size=(4, 9))
    assert unit_rows(rows.astype(np.float16)).dtype == unit_rows(rows, np.float32).dtype == np.float32
    assert unit_rows(rows).dtype == np.float64
    np.testing.assert_allclose(np.sum(unit_rows(rows) ** 2, 1), 1, rtol=1e-14)


def test_invalid_rows_raise():
    with pytest.raises(ValueError, match=r"features are \(3,\): expected \[N, D\]"):
        unit_rows(np.ones(3))
    with pytest.raises(ValueError, match="features: row 1 is not finite"):
        unit_rows([[1.0, 2.0], [np.nan, 1.0]])


def test_rows_that_are_not_finite_are_named():
    rows = np.zeros((4, 3), np.float32)
    check_finite(rows)
    rows[2, 1] = np.inf
    for values in (rows, jnp.asarray(rows), rows.tolist()):
        with pytest.raises(ValueError, match="features: row 2 is not finite"):
            check_finite(values)
    jax.jit(check_finite)(rows)  # values are unknown there
