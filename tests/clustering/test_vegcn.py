import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import vegcn as experiment
from facejax.clustering import vegcn
from facejax.data.synthetic import embeddings
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.train import Options, Report, app, train


@pytest.fixture(scope="module")
def world():
    people = embeddings.hypersphere(12, 0, width=16, noise=0.5)
    return people, knn.knn(people.features, 8)


def test_gcn_v_equals_dense_matrices(world):
    people, near = world
    graph, net = knn.affinity(near), vegcn.GCNV(6)
    x = jnp.asarray(people.features)
    params = net.init(jax.random.key(0), x, graph)["params"]
    dense = np.zeros((len(x), len(x)), np.float32)
    dense[np.asarray(graph.destination), np.asarray(graph.source)] = graph.weight

    def reference(p):
        conv, head = p["GraphConv_0"]["Dense_0"], p["PReLUHead_0"]
        hidden = jax.nn.relu(jnp.concatenate([x, dense @ x], 1) @ conv["kernel"] + conv["bias"])
        y = hidden @ head["Dense_1"]["kernel"] + head["Dense_1"]["bias"]
        y = jnp.where(y >= 0, y, head["PReLU_0"]["slope"] * y)
        return jnp.sum(jnp.sin((y @ head["Dense_0"]["kernel"] + head["Dense_0"]["bias"])[:, 0]))

    def ours(p, chunk):
        return jnp.sum(jnp.sin(net.apply({"params": p}, x, graph, chunk=chunk)[0]))

    expected = jax.value_and_grad(reference)(params)
    for chunk in (0, 100):
        found = jax.value_and_grad(ours)(params, chunk)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, expected)


def test_confidence_of_hand_worked_neighbours():
    near = knn.Neighbours(
        np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]]), np.array([[1, 0.8, 0.5], [1, 0.8, 0.1], [1, 0.5, 0.1]])
    )
    found = vegcn.confidence_target(near, np.array([0, 0, 1]))
    np.testing.assert_allclose(found, np.array([1.3, 1.7, 0.4]) / 1.7, rtol=1e-6)


def test_trees_rise_and_only_peaks_are_roots(world):
    _, near = world
    confidence = np.random.default_rng(0).normal(size=len(near.ids))
    confidence[5] = confidence[6]
    tree = vegcn.nearest_peaks(near, confidence)
    nodes = np.arange(len(confidence))
    inner = tree.parent != nodes
    assert (confidence[tree.parent[inner]] > confidence[inner]).all()
    peaks = ~(confidence[near.ids] > confidence[:, None]).any(1)
    np.testing.assert_array_equal(peaks, ~inner)
    assert len(np.unique(vegcn.trees_to_labels(tree, -1.0))) == peaks.sum()
    assert len(np.unique(vegcn.trees_to_labels(tree, 1.0))) == len(nodes)
    for i in np.flatnonzero(inner)[:20]:
        assert tree.parent[i] == next(j for j in near.ids[i] if confidence[j] > confidence[i])


def test_true_confidence_and_separated_identities_are_perfect():
    people = embeddings.hypersphere(10, 1, noise=0.2, drift=0.0, relatives=0.0)
    near = knn.knn(people.features, 8)
    tree = vegcn.nearest_peaks(near, vegcn.confidence_target(near, people.labels))
    assert clustering.pairwise(people.labels, vegcn.trees_to_labels(tree, 0.5)).f > 0.98


def test_subgraphs_against_loops(world):
    people, near = world
    confidence = np.random.default_rng(0).normal(size=len(near.ids)).astype(np.float32)
    nodes = np.array([0, 3, 9])
    x = people.features
    found = vegcn.subgraphs(
        jnp.asarray(x), jnp.asarray(near.ids), jnp.asarray(near.similarity), jnp.asarray(confidence), nodes
    )
    raw = np.zeros((len(x), len(x)))
    raw[np.arange(len(x))[:, None], near.ids] = near.similarity
    raw = np.maximum(raw, raw.T)
    np.fill_diagonal(raw, 1)
    for b, i in enumerate(nodes):
        candidates = np.flatnonzero(confidence[near.ids[i]] > confidence[i])
        np.testing.assert_array_equal(np.flatnonzero(found.mask[b]), candidates)
        ids = near.ids[i][candidates]
        block = raw[np.ix_(ids, ids)]
        expected = block / block.sum(1, keepdims=True)
        np.testing.assert_allclose(np.asarray(found.adjacency[b])[np.ix_(candidates, candidates)], expected, atol=1e-5)
        np.testing.assert_allclose(np.asarray(found.features[b])[candidates], x[ids] - x[i], atol=1e-6)


def test_loss_over_candidates_only():
    logits = jnp.array([[[0.0, 2.0], [1.0, 0.0], [50.0, 0.0]], [[0.0, 0.0]] * 3])
    same, mask = jnp.array([[1, 0, 1], [0, 0, 0]]), jnp.array([[1, 1, 0], [0, 0, 0]])
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    np.testing.assert_allclose(vegcn.connectivity_loss(logits, same, mask), [expected, 0], rtol=1e-5)


def test_connections_follow_the_most_probable_candidate(world):
    _, near = world
    confidence = np.random.default_rng(0).normal(size=len(near.ids))
    several = np.flatnonzero((confidence[near.ids] > confidence[:, None]).sum(1) > 1)[:4]
    score = np.random.default_rng(1).normal(size=(4, 8))
    tree = vegcn.connected_peaks(near, confidence, score, several)
    for row, i in enumerate(several):
        allowed = confidence[near.ids[i]] > confidence[i]
        assert tree.parent[i] == near.ids[i][np.where(allowed, score[row], -np.inf).argmax()]


def test_duplicates_and_identities_with_one_image():
    """Equal rows have equal confidence and no parent; a single image has only itself as a confident neighbour."""
    rows = np.eye(4, dtype=np.float32)[[0, 0, 0, 1]]
    near = knn.knn(rows, 3)
    labels = np.array([0, 0, 0, 1])
    target = vegcn.confidence_target(near, labels)
    np.testing.assert_allclose(target, [1, 1, 1, 1 / 3], rtol=1e-6)
    tree = vegcn.nearest_peaks(near, target)
    np.testing.assert_array_equal(tree.parent[:3], [0, 1, 2])
    graph = knn.affinity(near)
    variables = vegcn.GCNV(4).init(jax.random.key(0), jnp.asarray(rows), graph)
    confidence, hidden = vegcn.GCNV(4).apply(variables, jnp.asarray(rows), graph)
    np.testing.assert_allclose(confidence[:3], confidence[0], rtol=1e-6)
    assert np.isfinite(hidden).all()


def test_more_neighbours_than_rows_raise():
    config = experiment.get_config()
    config.update_from_flattened_dict({"data.labelled": 3, "eval.people": 3, "graph.k": 500})
    with pytest.raises(ValueError, match=r"k is 500: expected 1 to \d+, the number of rows"):
        app.run(config, experiment.build, quiet=True)


def smoke(**changes):
    config = experiment.get_config()
    config.update_from_flattened_dict({
        "data.labelled": 20, "eval.people": 12, "graph.k": 8, "gcn_e.k": 8, "gcn_v.hidden": 16, "gcn_v.steps": 5,
        "gcn_e.widths": (8, 8), "train.steps": 11, "train.batch_size": 8, "train.save_every": 1,
        "train.save_seconds": 0.0, **changes,
    })  # fmt: skip
    return config


@pytest.fixture(scope="module")
def whole():
    """State and report of a run on eight devices."""
    return app.run(smoke(), experiment.build, quiet=True)


def test_smoke(whole):
    state, report = whole
    assert 0 < report.metrics["pairwise_f"] <= 1
    assert -1 <= report.metrics["confidence_correlation"] <= 1
    links = state.model_state
    assert 0 < links["used"] <= len(links["nodes"])
    np.testing.assert_array_equal(links["ids"][:, 0], np.arange(len(links["nodes"])))


def test_resumed_run_ends_with_the_same_bits_and_clusters_other_identities(whole, tmp_path):
    for steps in (4, 6, 11):  # in GCN-V, after its use, in GCN-E
        start = experiment.build(smoke(**{"train.steps": 11}))
        options = Options(**{**smoke().train, "steps": steps})
        state, _ = train(
            dataclasses.replace(start, evaluate=lambda state: Report({})), options, seed=0, workdir=tmp_path, quiet=True
        )
    chex.assert_trees_all_equal((state.params, state.opt_state), (whole[0].params, whole[0].opt_state))
    found = [experiment.build(smoke(**{"eval.people": n})).evaluate(state) for n in (12, 15)]
    np.testing.assert_array_equal(found[0].arrays["clusters"], whole[1].arrays["clusters"])
    assert found[1].metrics["people"] == 15


def test_one_device_equals_eight(whole):
    state, _ = app.run(smoke(**{"train.devices": 1}), experiment.build, quiet=True)
    chex.assert_trees_all_close(state.params, whole[0].params, rtol=1e-3, atol=1e-4)


def test_presets_are_wired():
    for preset in experiment.PRESETS:
        experiment.build(experiment.get_config(preset))
    with pytest.raises(ValueError, match="expected gcn_v, density or none"):
        config = experiment.get_config()
        config.confidence = "magic"
        experiment.build(config)
    with pytest.raises(ValueError, match=r"train\.steps is 6: expected gcn_v\.steps, 5, and at least 2 for GCN-E"):
        experiment.build(smoke(**{"train.steps": 6}))
