import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import sdd_fiqa as experiment
from facejax.interop import pytorch
from facejax.quality import sdd_fiqa

KEY = jax.random.key(0)


def test_shortcut_subsamples_pixels():
    """With all convolutions zero, a block whose width stays passes every second pixel on."""
    net = sdd_fiqa.QualityResNet((1,), (4,))
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    variables = net.init(KEY, images, train=False)
    params = {name: jax.tree.map(jnp.zeros_like, tree) if "conv" in name else tree for name, tree in
              variables["params"].items()}  # fmt: skip
    found, seen = net.apply({**variables, "params": params}, images, train=False, capture_intermediates=True)
    seen = seen["intermediates"]
    last = seen["stem_prelu"]["__call__"][0][:, ::2, ::2]
    head = params["score"]
    flat = last.reshape(2, -1)
    flat = jnp.where(flat > 0, flat, 0.25 * flat)
    chex.assert_trees_all_close(found, (flat @ head["kernel"] + head["bias"])[:, 0], rtol=1e-4, atol=1e-5)


def test_wasserstein():
    chex.assert_trees_all_close(
        sdd_fiqa.wasserstein(jnp.array([0.8, 0.6, 0.7]), jnp.array([0.1, 0, 0.2])), 0.6, rtol=1e-5
    )
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(20, 7)), rng.normal(size=(20, 12)) + 1
    sizes = rng.integers(1, 8, 20)
    mask = np.arange(7) < sizes[:, None]
    found = sdd_fiqa.wasserstein(jnp.asarray(first), jnp.asarray(second), jnp.asarray(mask))
    expected = [stats.wasserstein_distance(a[:n], b) for a, b, n in zip(first, second, sizes, strict=True)]
    chex.assert_trees_all_close(np.asarray(found), np.array(expected), rtol=1e-4)
    chex.assert_trees_all_close(sdd_fiqa.wasserstein(jnp.arange(3.0), jnp.arange(3.0) - 5), 5.0, rtol=1e-6)
    assert sdd_fiqa.wasserstein(jnp.arange(3.0), jnp.arange(3.0)) == 0


def test_pseudo_labels_order_images(unit_rows):
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(12), 9)
    spread = np.tile(np.linspace(0.05, 1.2, 9), 12)  # the first image of each is the best
    features = unit_rows(rng, 12, 32)[people] + spread[:, None] * unit_rows(rng, 108, 32)
    shuffled = rng.permutation(108)
    for block in (2048, 50):
        labels = np.empty(108)
        labels[shuffled] = sdd_fiqa.pseudo_labels(
            KEY, features[shuffled], people[shuffled], samples=6, rounds=4, block=block
        )
        assert labels.min() >= 0 and labels.max() <= 100
        assert stats.spearmanr(labels, -spread).statistic > 0.8
    mated = sdd_fiqa.pseudo_labels(KEY, features, people, mated_only=True)
    assert stats.spearmanr(mated, -spread).statistic > 0.8


@pytest.mark.parametrize("mated", [False, True])
def test_pseudo_labels_equal_the_plain_form(mated):
    """With as many samples as images the labels are deterministic. Blocks overlap at the end."""
    rng = np.random.default_rng(0)
    people = rng.permutation(np.repeat([4, 9, 2], (2, 4, 7)))
    features = rng.normal(size=(13, 5))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    plain = np.empty(13)
    for i, cosine in enumerate(unit @ unit.T):
        own = (people == people[i]) & (np.arange(13) != i)
        plain[i] = cosine[own].mean() if mated else stats.wasserstein_distance(cosine[own], cosine[people != people[i]])
    found = sdd_fiqa.pseudo_labels(KEY, features, people, samples=13, rounds=2, block=8, mated_only=mated)
    np.testing.assert_allclose(found, 100 * (plain - plain.min()) / np.ptp(plain), rtol=1e-4, atol=1e-3)


def test_pseudo_labels_compare_the_right_images():
    """Two people with orthogonal embeddings; a zero embedding has the lowest label."""
    features = np.repeat(np.eye(2), 4, 0) * [[1.0], [1], [1], [1], [1], [1], [1], [0.0]]
    labels = sdd_fiqa.pseudo_labels(KEY, features, np.repeat([0, 1], 4), samples=3, rounds=2)
    assert labels[7] == 0 and (labels[:4] == 100).all()


def test_undefined_labels_raise():
    features = np.repeat(np.eye(2), 4, 0)
    with pytest.raises(ValueError, match="all 8 images have the same distance: expected different ones"):
        sdd_fiqa.pseudo_labels(KEY, features, np.repeat([0, 1], 4), samples=2)
    with pytest.raises(ValueError, match="2 people, 1 of them with one image: expected two people or more"):
        sdd_fiqa.pseudo_labels(KEY, features, np.r_[np.zeros(7, int), 1])


def test_trunk_begins_with_published_weights(test_data):
    path = test_data / "weights" / "mobilefacenet" / "068.ckpt"
    net = sdd_fiqa.QualityMobileFaceNet()
    found = jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, 112, 112, 3)), train=False))
    trunk = experiment.read_trunk(path, {part: tree["trunk"] for part, tree in found.items()})
    stem = pytorch.read_state_dict(path)["conv1.conv.weight"]
    np.testing.assert_array_equal(trunk["params"]["stem"]["conv"]["kernel"], stem.transpose(2, 3, 1, 0))


def test_presets_trace(presets_trace):
    presets_trace("sdd_fiqa")


def test_smoke(smoke):
    smoke("sdd_fiqa:synthetic", **{"labels.rounds": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "r50"}, "expected one of tiny, mobilefacenet, resnet50"),
        ({"model.weights": "x.ckpt"}, "model.weights for 'tiny': expected model.name 'mobilefacenet'"),
    ],
)
def test_bad_input(changes, message, raises):
    raises("sdd_fiqa:synthetic", message, **changes)
