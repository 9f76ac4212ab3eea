import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.iresnet import EmbeddingHead, IResNet
from facejax.quality import ser_fiq
from facejax.recipes import on_top

KEY = jax.random.key(0)


def test_robustness():
    axes = jnp.eye(4)[:, None]
    chex.assert_trees_all_close(ser_fiq.robustness(axes), jnp.array([0.3911406350]), rtol=1e-5)
    chex.assert_trees_all_close(ser_fiq.robustness(axes, as_printed=True), jnp.array([0.5143666305]), rtol=1e-5)
    draws = jax.random.normal(KEY, (6, 3, 8))
    chex.assert_trees_all_close(ser_fiq.robustness(draws[::-1]), ser_fiq.robustness(draws), rtol=1e-5)
    chex.assert_trees_all_close(ser_fiq.robustness(9 * draws), ser_fiq.robustness(draws), rtol=1e-5)
    mean, printed = (jax.scipy.special.logit(ser_fiq.robustness(draws, as_printed=p) / 2) for p in (False, True))
    chex.assert_trees_all_close(printed, mean * 5 / 6, rtol=1e-4)
    with pytest.raises(ValueError, match=r"embeddings of shape \(1, 3, 8\), expected \[T, N, D\] with T of 2 or more"):
        ser_fiq.robustness(draws[:1])


def test_rescaled_scores():
    """Half at 0.88 and steep: a hundredth on either side is 1.3 in the exponent."""
    found = ser_fiq.rescaled(jnp.array([0.8, 0.87, 0.88, 0.89]))
    np.testing.assert_allclose(found, [3.0432e-5, 0.2141650, 0.5, 0.7858350], rtol=1e-4)
    np.testing.assert_allclose(ser_fiq.rescaled(jnp.array([0.5, 0.6]), 10.0, 0.5), [0.5, 0.7310586], rtol=1e-5)


def test_equal_and_nearly_equal_embeddings():
    one = jax.random.normal(KEY, (1, 4, 32))
    assert (ser_fiq.robustness(jnp.tile(one, (5, 1, 1))) == 1).all()
    moved = one + 1e-4 * jax.random.normal(jax.random.key(1), (5, 4, 32))
    unit = np.asarray(moved, np.float64)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    pairs = [np.linalg.norm(unit[i] - unit[j], axis=-1) for i in range(5) for j in range(i)]
    distance = -jax.scipy.special.logit(ser_fiq.robustness(moved) / 2)
    chex.assert_trees_all_close(np.asarray(distance), np.mean(pairs, 0), rtol=0.02)


def test_an_embedding_of_zeros_is_orthogonal_to_all():
    none = jnp.zeros((4, 1, 4))
    chex.assert_trees_all_close(ser_fiq.robustness(none), ser_fiq.robustness(jnp.eye(4)[:, None]), rtol=1e-6)


def test_head_repeats_what_the_network_ends_with():
    net = IResNet((1, 1), (4, 8), embedding_size=6, dropout=0.4)
    images = jax.random.normal(KEY, (3, 16, 16, 3))
    variables = net.init(KEY, images, train=False)
    maps = net.apply(variables, images, train=False, features=True)
    head = EmbeddingHead(6, 0.4)
    plain = head.apply(variables, maps["stage2"], train=False)
    chex.assert_trees_all_close(plain, maps["embedding"], rtol=1e-6)

    def embed(key):
        return head.apply(variables, maps["stage2"], train=False, drop=True, rngs={"dropout": key})

    draws = ser_fiq.stochastic_embeddings(embed, KEY, 300)
    assert draws.shape == (300, 3, 6)
    assert len(np.unique(np.asarray(draws)[:, 0, 0])) == 300
    error = np.abs(draws.mean(0) - plain) / (draws.std(0) / np.sqrt(300))
    assert error.max() < 5  # inverted dropout keeps the mean


def test_spread_of_a_linear_head_under_dropout():
    """Cov = p / (1 - p) W diag(h^2) W^T."""
    rng = np.random.default_rng(0)
    numbers, weight, p = rng.normal(size=6), rng.normal(size=(6, 2)), 0.4

    def embed(key):
        kept = jax.random.bernoulli(key, 1 - p, (6,))
        return (jnp.where(kept, numbers / (1 - p), 0.0) @ weight)[None]

    draws = np.asarray(ser_fiq.stochastic_embeddings(embed, KEY, 20_000))[:, 0]
    expected = p / (1 - p) * weight.T @ np.diag(numbers**2) @ weight
    np.testing.assert_allclose(np.cov(draws.T), expected, rtol=0.08, atol=0.08)


def test_on_top_head():
    net = ser_fiq.OnTop(5, (8, 12))
    variables = net.init(KEY, jnp.ones((2, 4)), drop=False, classify=True)
    assert net.apply(variables, jnp.ones((2, 4)), drop=False).shape == (2, 12)
    assert net.apply(variables, jnp.ones((2, 4)), drop=False, classify=True).shape == (2, 5)


def test_few_embeddings_are_repeated_to_fill_a_batch():
    """All equally often; enough of them are taken once each."""
    features, people = np.arange(6.0).reshape(3, 2), np.array([0, 1, 1])
    few, enough = (on_top.examples(features, people, size) for size in (8, 3))
    assert len(few) == 9 and len(enough) == 3
    assert sorted(few[i]["embedding"][0] for i in range(9)) == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert [enough[i]["label"] for i in range(3)] == [0, 1, 1]


def test_presets_trace(presets_trace):
    presets_trace("ser_fiq")


@pytest.mark.parametrize("preset", ["synthetic", "on_top"])
def test_smoke(preset, smoke):
    state, report = smoke(f"ser_fiq:{preset}", masks=3)
    assert (state is not None) == (preset == "on_top")
    scores = report.arrays["scores"]
    assert scores.min() > 0 and scores.max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recogniser.dropout": 0.0}, "expected above 0, or method 'on_top'"),
        ({"method": "magic"}, "method is 'magic': expected one of 'same_model'"),
    ],
)
def test_bad_input(changes, message, raises):
    raises("ser_fiq:synthetic", message, **changes)
