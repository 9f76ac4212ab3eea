import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import pcnet as experiment
from facejax.data.quality_faces import QualityFaces
from facejax.data.synthetic import faces, factors
from facejax.evaluate.embedder import Embedder
from facejax.evaluate.quality import score
from facejax.metrics import verification
from facejax.quality import pcnet
from facejax.recipes import recogniser as recipe
from facejax.recipes.recogniser import Recogniser
from facejax.train import app


def test_parameter_count(count):
    assert count(experiment.NETS["resnet18"](), 1, 112, 112, 3, train=False)[0] == 11_177_025


def test_pair_confidence(unit_rows):
    embeddings = jnp.asarray(unit_rows(np.random.default_rng(0), 4, 5))
    people = jnp.array([0, 0, 0, 1])
    q = jnp.array([0.2, 0.5, 0.9, 0.4])
    cosine = embeddings @ embeddings.T
    expected = np.mean([(cosine[i, j] - min(q[i], q[j])) ** 2 for i in range(3) for j in range(3) if i != j])
    chex.assert_trees_all_close(pcnet.pair_confidence_loss(q, embeddings, people), expected, rtol=1e-5)
    order = jnp.array([2, 3, 0, 1])
    chex.assert_trees_all_close(
        pcnet.pair_confidence_loss(q[order], embeddings[order], people[order]), expected, rtol=1e-5
    )
    gradient = jax.grad(pcnet.pair_confidence_loss)(q, embeddings, people)
    assert gradient[0] != 0 and gradient[1] != 0 and gradient[2] == 0 and gradient[3] == 0
    both = jax.grad(lambda q: pcnet.pair_confidence_loss(q, embeddings, people, minimum_only=False))(q)
    assert both[2] != 0
    assert not np.any(jax.grad(pcnet.pair_confidence_loss, 1)(q, embeddings, people))


def test_equal_confidences_share_the_gradient_and_converge_to_the_mean(unit_rows):
    embeddings, people = jnp.asarray(unit_rows(np.random.default_rng(1), 2, 5)), jnp.zeros(2, int)
    target = embeddings[0] @ embeddings[1]
    gradient = jax.grad(pcnet.pair_confidence_loss)(jnp.full(2, 0.4), embeddings, people)
    chex.assert_trees_all_close(gradient, jnp.full(2, 0.4 - target), rtol=1e-5)
    assert pcnet.pair_confidence_loss(jnp.full(2, target), embeddings, people) < 1e-12


def test_images_without_a_pair_or_with_a_zero_embedding():
    embeddings = jnp.eye(3)
    assert pcnet.pair_confidence_loss(jnp.full(3, 0.4), embeddings, jnp.arange(3)) == 0
    zero = pcnet.pair_confidence_loss(jnp.full(3, 0.4), embeddings.at[0].set(0.0), jnp.array([0, 0, 1]))
    chex.assert_trees_all_close(zero, 0.16, rtol=1e-5)  # a zero embedding has cosine 0 with all others


def test_pair_confidence_recovers_what_was_planted(unit_rows):
    """Embeddings whose cosines are products of planted lengths: the smaller of two determines most of it."""
    rng = np.random.default_rng(0)
    truth = np.sort(rng.uniform(0.2, 1.0, 24))
    angle = np.arccos(truth)
    embeddings = np.concatenate([np.cos(angle)[:, None], np.sin(angle)[:, None] * unit_rows(rng, 24, 200)], 1)
    q = pcnet.free_confidences(embeddings, np.zeros(24, int))
    assert stats.spearmanr(q[:-1], truth[:-1]).statistic > 0.95


def test_free_confidences_converge_to_zero_gradient(unit_rows):
    """Two people; with the mean of both the optimum is that of a linear system, one for each person."""
    embeddings, people = unit_rows(np.random.default_rng(2), 9, 6), np.repeat([0, 1], (4, 5))
    q = pcnet.free_confidences(embeddings, people, minimum_only=False, steps=3000)
    for rows in (people == 0, people == 1):
        cosine = embeddings[rows] @ embeddings[rows].T - np.eye(rows.sum())
        others = (rows.sum() - 2) * np.eye(rows.sum()) + 1  # of the sum over pairs of (q_i + q_j) / 2
        np.testing.assert_allclose(others @ q[rows] / 2, cosine.sum(1), atol=1e-3)


def test_presets_trace(presets_trace):
    presets_trace("pcnet")


@pytest.mark.parametrize("preset", ["synthetic", "free"])
def test_smoke(preset, smoke):
    _, report = smoke(f"pcnet:{preset}", **{"loss.images": 2})
    scores = report.arrays["scores"]
    assert scores.shape == (72,) and (preset == "free" or (scores.min() >= 0 and scores.max() <= 1))


def test_each_half_is_labelled_by_the_recogniser_of_the_other(configured):
    _, config = configured("pcnet:synthetic")
    data, recogniser = QualityFaces(**config.data), Recogniser(**config.recogniser)
    tasks = ("recognition", "quality_clean")
    trained = {task: recogniser.embedder(config.seed, **data.view, task=task) for task in tasks}
    found = experiment.labelled(data, recogniser, config.seed)
    for (known, features), shown, stranger in zip(
        found, ("recognition_faulty", "quality"), ("quality_clean", "recognition"), strict=True
    ):
        everybody = data.load("train", shown)
        np.testing.assert_array_equal(known.images, everybody.images[everybody.people < 3])
        np.testing.assert_array_equal(features, trained[stranger](known.images))
    assert not np.array_equal(trained["recognition"](known.images), trained["quality_clean"](known.images))


def test_the_halves_are_the_training_people_of_their_recognisers():
    tasks = [faces.TASKS[name] for name in ("recognition", "recognition_faulty", "quality_clean", "quality")]
    drawn = [factors.person(task.seed, 3, (4, 4), task.ranges) for task in tasks]
    chex.assert_trees_all_equal(*drawn[:2])
    chex.assert_trees_all_equal(*drawn[2:])
    assert not np.array_equal(drawn[0]["identity"], drawn[2]["identity"])


def test_a_batch_mixes_the_halves_but_no_two_people(configured):
    module, config = configured("pcnet:synthetic", **{"loss.images": 2, "train.batch_size": 12})
    batch = next(module.build(config).train_data())
    assert set(batch["person"]) == {0, 1, 2, 3, 4, 5} and (np.bincount(batch["person"]) == 2).all()


def test_people_of_a_path_are_halved_by_their_labels(configured, tmp_path, picture_folder, monkeypatch):
    """The first file is of a recogniser trained on the first half, and labels the second."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 2, 8, 8, 3)).astype(np.uint8)
    picture_folder(tmp_path, {f"p{person}": pictures for person, pictures in enumerate(images)})
    monkeypatch.setattr(recipe, "read_weights", lambda path, net, image_size: path)
    monkeypatch.setattr(Embedder, "__call__", lambda self, images: [self.variables] * len(images))
    changes = {"data.source": "path", "data.path": str(tmp_path), "data.image_size": 8, "data.test_people": 2}
    _, config = configured("pcnet:synthetic", **changes, **{"data.people": 5, "recogniser.weights": "a.pth,b.pth"})
    data, recogniser = QualityFaces(**config.data), Recogniser(**config.recogniser)
    (first, by_second), (second, by_first) = experiment.labelled(data, recogniser, config.seed)
    np.testing.assert_array_equal(first.people, [0, 0, 1, 1])
    np.testing.assert_array_equal(second.people, [2, 2, 3, 3, 4, 4])
    np.testing.assert_array_equal(first.images[:], images[:2].reshape(4, 8, 8, 3))
    np.testing.assert_array_equal(second.images[:], images[2:5].reshape(6, 8, 8, 3))
    assert by_second == ["b.pth"] * 4 and by_first == ["a.pth"] * 6


def test_pooling_weights_unit_embeddings_by_the_confidences(configured):
    """The weights are the network's confidences; equal weights give the mean."""
    module, config = configured("pcnet:synthetic", **{"loss.images": 2})
    state, report = app.run(config, module.build, quiet=True)
    weights, features = report.arrays["weights"], report.arrays["features"]
    chex.assert_trees_all_close(np.linalg.norm(features, axis=1), np.ones(len(features)), atol=1e-5)
    test = QualityFaces(**config.data).sets("test", config.sets.size)
    net, variables = module.Confidence(module.NETS["tiny"]()), {"params": state.params, **state.model_state}
    own = score(net, variables, test.flat, 128)
    chex.assert_trees_all_close(weights, own, atol=1e-6)
    assert np.ptp(weights) > 0
    pooled = np.einsum("mt,mtd->md", weights.reshape(-1, 8), features.reshape(-1, 8, features.shape[1]))
    tar = verification.all_pairs_tar(pooled, test.people, (1e-1,))[0]
    assert report.metrics["set_tar_at_far_1e-1"] == pytest.approx(tar)
    _, config = configured("pcnet:mean")
    _, even = app.run(config, module.build, quiet=True)
    assert not np.ptp(even.arrays["weights"])
    assert even.metrics["set_tar_at_far_1e-1"] == pytest.approx(report.metrics["mean_tar_at_far_1e-1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.images": 1}, "loss.images is 1: expected 2 or more, dividing"),
        ({"loss.images": 16, "train.batch_size": 16}, "no identity has loss.images 16 images"),
        ({"data.people": 1}, "data.people is 1: expected 2 or more, two halves"),
        ({"data.people": 13}, "data.people is 13: expected .* of the face world at most 12"),
        ({"recogniser.weights": "a.pth"}, "recogniser.weights is 'a.pth': expected 2 files with a comma between"),
        ({"recogniser.weights": "a.pth,b.pth,c.pth"}, "expected 2 files with a comma between"),
        ({"model.name": "vgg"}, "expected one of tiny, resnet18, free, mean"),
    ],
)
def test_bad_input(changes, message, raises):
    raises("pcnet:synthetic", message, **changes)


def test_people_split_over_devices_raise(split_raises):
    split_raises("pcnet:synthetic", "12 images meet on a device", **{"train.batch_size": 24, "train.devices": 2})
