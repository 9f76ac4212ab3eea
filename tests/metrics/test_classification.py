import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from facejax.metrics import classification as c

pytestmark = pytest.mark.smoke


def test_top_k_by_hand():
    logits = jnp.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [jnp.nan, 1.0, 2.0], [0.3, 0.2, 0.1]])
    labels = jnp.array([2, 0, 2, 3])  # ranked second; tied; below a NaN; out of range
    np.testing.assert_array_equal(c.top_k_correct(logits, labels, 1), [0, 0, 0, 0])
    np.testing.assert_array_equal(c.top_k_correct(logits, labels, 2), [1, 1, 1, 0])


@pytest.mark.parametrize("k", [1, 3])
def test_sums_over_batches_equal_the_accuracy_of_the_whole(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 6)).astype(np.float32), rng.integers(0, 6, 50)
    accuracy = jax.jit(c.top_k_accuracy, static_argnames="k")
    parts = [accuracy(logits[i : i + 20], labels[i : i + 20], k=k) for i in (0, 20, 40)]
    correct, count = np.sum(parts, axis=0)
    assert count == 50
    assert correct / count == pytest.approx(top_k_accuracy_score(labels, logits, k=k, labels=np.arange(6)))


def test_mask_equals_the_subset():
    rng = np.random.default_rng(1)
    logits, labels, where = rng.normal(size=(9, 4)), rng.integers(0, 4, 9), np.arange(9) % 2 == 0
    masked = c.top_k_accuracy(jnp.asarray(logits), jnp.asarray(labels), where=jnp.asarray(where))
    subset = c.top_k_accuracy(jnp.asarray(logits[where]), jnp.asarray(labels[where]))
    np.testing.assert_array_equal(masked, subset)


def test_shape_mismatch_raises():
    with pytest.raises(ValueError, match=r"expected \[N, C\], \[N\], 1..C"):
        c.top_k_correct(jnp.zeros((2, 3)), jnp.zeros(3, int))
    with pytest.raises(ValueError, match="k 4"):
        c.top_k_correct(jnp.zeros((2, 3)), jnp.zeros(2, int), 4)
