import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from experiments import gcn as experiment
from facejax.data.readers.planetoid import read_planetoid
from facejax.graph import gcn
from facejax.ops import segment
from facejax.train import app


def dense(graph):
    matrix = np.zeros((graph.num_nodes, graph.num_nodes))
    np.add.at(matrix, (np.asarray(graph.destination), np.asarray(graph.source)), np.asarray(graph.weight))
    return matrix


def test_a_path_of_three_nodes():
    graph = gcn.renormalized(*segment.undirected(np.array([0, 1]), np.array([1, 2])), 3)
    r = 1 / np.sqrt(6)
    np.testing.assert_allclose(dense(graph), [[1 / 2, r, 0], [r, 1 / 3, r], [0, r, 1 / 2]], rtol=1e-6)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    source, destination = segment.undirected(rng.integers(0, 12, 30), rng.integers(0, 12, 30))
    features = (rng.random((13, 7)) < 0.4).astype(np.float32)
    features[12] = 0
    return gcn.renormalized(source, destination, 13), gcn.row_normalized(features)


def test_normalisation(problem):
    matrix = dense(problem[0])
    assert np.linalg.eigvalsh(matrix).max() == pytest.approx(1, abs=1e-5)
    assert matrix[12, 12] == 1  # a node without neighbours keeps itself
    walk = segment.random_walk_normalization(problem[0]._replace(weight=jnp.ones_like(problem[0].weight)))
    np.testing.assert_allclose(dense(walk).sum(1), 1, rtol=1e-6)


def test_equals_dense_matrices_in_values_and_gradients(problem):
    graph, features = problem
    net = gcn.GCN(3, 5)
    sparse = gcn.SparseFeatures(features)
    params = net.init(jax.random.key(0), sparse, graph, train=False)["params"]
    s = jnp.asarray(dense(graph), jnp.float32)

    def ours(p):
        return jnp.sum(jnp.cos(net.apply({"params": p}, sparse, graph, train=False)))

    def reference(p):
        return jnp.sum(jnp.cos(s @ jax.nn.relu(s @ jnp.asarray(features) @ p["first"][0]) @ p["second"][0]))

    chex.assert_trees_all_close(
        jax.value_and_grad(ours)(params), jax.value_and_grad(reference)(params), rtol=1e-4, atol=1e-5
    )


def test_chebyshev_equals_dense_polynomials(problem):
    rng = np.random.default_rng(0)
    source, destination = segment.undirected(rng.integers(0, 12, 30), rng.integers(0, 12, 30))
    graph, features = gcn.scaled_laplacian(source, destination, 13), problem[1]
    scaled = dense(graph)
    values = np.linalg.eigvalsh(scaled)
    assert values.max() == pytest.approx(1, abs=1e-5) and values.min() >= -1 - 1e-5
    polynomials = [np.eye(13), scaled]
    for _ in range(2):
        polynomials.append(2 * scaled @ polynomials[-1] - polynomials[-2])
    net, sparse = gcn.GCN(3, 5, degree=3), gcn.SparseFeatures(features)
    params = net.init(jax.random.key(0), sparse, graph, train=False)["params"]
    assert params["first"].shape == (4, 7, 5)
    t = jnp.asarray(np.stack(polynomials), jnp.float32)

    def ours(p):
        return jnp.sum(jnp.cos(net.apply({"params": p}, sparse, graph, train=False)))

    def reference(p):
        hidden = jax.nn.relu(jnp.einsum("kmn,nf,kfh->mh", t, jnp.asarray(features), p["first"]))
        return jnp.sum(jnp.cos(jnp.einsum("kmn,nf,kfh->mh", t, hidden, p["second"])))

    chex.assert_trees_all_close(
        jax.value_and_grad(ours)(params), jax.value_and_grad(reference)(params), rtol=1e-3, atol=1e-4
    )


def test_karate_club_from_one_member_of_each_community():
    _, report = app.run(experiment.get_config("karate"), experiment.build, quiet=True)
    assert report.metrics["test_accuracy"] > 75
    assert report.arrays["hidden"].shape == (5, 34, 16)


def test_dropout_falls_on_what_is_not_zero(problem):
    graph, features = problem
    sparse = gcn.SparseFeatures(features)
    net = gcn.GCN(3, 5, dropout=0.5)
    variables = net.init(jax.random.key(0), sparse, graph, train=False)
    draws = [net.apply(variables, sparse, graph, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert not np.allclose(*draws)


def test_softmax_over_the_edges_of_a_node():
    graph = segment.make_graph(np.array([0, 1, 2, 0]), np.array([2, 2, 2, 0]), 4, np.array([1, 1, 0, 1]))
    logits = jnp.array([5.0, 1.0, 3.0, 900.0])
    weights = segment.segment_softmax(logits, graph)
    np.testing.assert_allclose(
        weights, [1, np.exp(1) / (np.exp(1) + np.exp(3)), np.exp(3) / (np.exp(1) + np.exp(3)), 0], rtol=1e-5
    )
    assert np.isfinite(jax.jacobian(segment.segment_softmax)(logits, graph)).all()


def test_the_order_of_nodes_does_not_matter(problem):
    graph, features = problem
    order = np.random.default_rng(1).permutation(13)
    place = np.argsort(order)
    moved = segment.make_graph(
        place[np.asarray(graph.source)], place[np.asarray(graph.destination)], 13, np.asarray(graph.weight)
    )
    net = gcn.GCN(3, 5)
    params = net.init(jax.random.key(0), gcn.SparseFeatures(features), graph, train=False)
    a = net.apply(params, gcn.SparseFeatures(features), graph, train=False)
    b = net.apply(params, gcn.SparseFeatures(features[order]), moved, train=False)
    np.testing.assert_allclose(a[order], b, rtol=1e-5, atol=1e-6)


def test_a_graph_without_edges_is_a_network_without_a_graph(problem):
    """Every node keeps itself, by either way of spreading."""
    none, features = np.zeros(0, int), gcn.SparseFeatures(problem[1])
    np.testing.assert_array_equal(dense(gcn.renormalized(none, none, 13)), np.eye(13))
    np.testing.assert_allclose(dense(gcn.scaled_laplacian(none, none, 13)), np.eye(13), atol=1e-6)
    net = gcn.GCN(3, 5)
    params = net.init(jax.random.key(0), features, problem[0], train=False)["params"]
    found = net.apply({"params": params}, features, gcn.renormalized(none, none, 13), train=False)
    expected = jax.nn.relu(problem[1] @ params["first"][0]) @ params["second"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_smoke():
    config = experiment.get_config()
    config.update_from_flattened_dict({"data.nodes": 200, "optim.epochs": 60, "eval.runs": 2})
    _, report = app.run(config, experiment.build, quiet=True)
    config.model.graph = False
    _, without = app.run(config, experiment.build, quiet=True)
    assert report.metrics["test_accuracy"] > without.metrics["test_accuracy"] + 10


def test_cora(test_data):
    data = read_planetoid(test_data / "planetoid", "cora")
    assert (data.features.shape, len(data.source)) == ((2708, 1433), 10_556)
    assert int((data.features > 0).sum()) == 49_216
    assert [int(m.sum()) for m in (data.train, data.validation, data.test)] == [140, 500, 1000]
    assert np.bincount(data.labels).tolist() == [351, 217, 418, 818, 426, 298, 180]
    config = experiment.get_config("cora")
    config.update_from_flattened_dict({"data.path": str(test_data / "planetoid"), "eval.runs": 5})
    _, report = app.run(config, experiment.build, quiet=True)
    assert report.metrics["test_accuracy"] > 80.5


def test_citeseer_has_its_gaps_filled(test_data):
    data = read_planetoid(test_data / "planetoid", "citeseer")
    assert (data.features.shape, len(data.source)) == ((3327, 3703), 2 * 4552)
    assert int((data.features.sum(1) == 0).sum()) == 15
    assert not (data.train & data.test).any()


def test_wrong_graphs_and_files_are_said(tmp_path):
    with pytest.raises(ValueError, match="edges name nodes outside 0 to 2"):
        segment.make_graph(np.array([0]), np.array([3]), 3)
    with pytest.raises(ValueError, match="graph: edges name nodes outside 0 to -1"):
        segment.make_graph(np.zeros(0), np.zeros(0), 0)
    with pytest.raises(ValueError, match=r"\(2,\) sources, \(1,\) destinations"):
        segment.make_graph(np.array([0, 1]), np.array([0]), 3)
    with pytest.raises(ValueError, match=r"ind\.cora\.y: not a Planetoid file"):
        read_planetoid(tmp_path, "cora")


def test_features_that_are_no_numbers_are_said(tmp_path):
    rows = csr_matrix(np.float32([[1, 0], [0, np.nan]]))
    one_hot = np.eye(2)
    parts = {
        "y": one_hot[:1],
        "tx": rows[:1],
        "ty": one_hot[:1],
        "allx": rows,
        "ally": one_hot,
        "graph": {0: [1], 1: [2]},
    }
    for part, value in parts.items():
        (tmp_path / f"ind.small.{part}").write_bytes(pickle.dumps(value))
    (tmp_path / "ind.small.test.index").write_text("2")
    with pytest.raises(ValueError, match="features of node 1 are not finite"):
        read_planetoid(tmp_path, "small")
