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
from facejax.ops import graph as graphs
from facejax.train import app


def dense(graph):
    matrix = np.zeros((graph.num_nodes, graph.num_nodes))
    np.add.at(matrix, (np.asarray(graph.destination), np.asarray(graph.source)), np.asarray(graph.weight))
    return matrix


def test_a_path_of_three_nodes():
    graph = gcn.renormalized(*graphs.undirected(np.array([0, 1]), np.array([1, 2])), 3)
    r = 1 / np.sqrt(6)
    np.testing.assert_allclose(dense(graph), [[1 / 2, r, 0], [r, 1 / 3, r], [0, r, 1 / 2]], rtol=1e-6)


def test_a_self_loop_counts_beside_the_one_that_is_added():
    """As in the authors' normalize_adj(adj + eye); `undirected` removes it."""
    source, destination = np.array([0, 0, 1]), np.array([0, 1, 0])
    r = 1 / np.sqrt(6)
    np.testing.assert_allclose(dense(gcn.renormalized(source, destination, 2)), [[2 / 3, r], [r, 1 / 2]], rtol=1e-6)
    clean = gcn.renormalized(*graphs.undirected(source, destination), 2)
    np.testing.assert_allclose(dense(clean), np.full((2, 2), 1 / 2), rtol=1e-6)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    source, destination = graphs.undirected(rng.integers(0, 12, 30), rng.integers(0, 12, 30))
    features = (rng.random((13, 7)) < 0.4).astype(np.float32)
    features[12] = 0
    return gcn.renormalized(source, destination, 13), gcn.row_normalized(features)


def test_normalisation(problem):
    matrix = dense(problem[0])
    assert np.linalg.eigvalsh(matrix).max() == pytest.approx(1, abs=1e-5)
    assert matrix[12, 12] == 1  # a node without neighbours keeps itself
    walk = graphs.random_walk_normalization(problem[0].replace(weight=jnp.ones_like(problem[0].weight)))
    np.testing.assert_allclose(dense(walk).sum(1), 1, rtol=1e-6)


def test_equals_dense_matrices_in_values_and_gradients(problem):
    graph, features = problem
    net = gcn.GCN(3, 5)
    sparse = gcn.SparseFeatures.from_dense(features)
    params = net.init(jax.random.key(0), sparse, graph, train=False)["params"]
    s = jnp.asarray(dense(graph), jnp.float32)

    def ours(p):
        return jnp.sum(jnp.cos(net.apply({"params": p}, sparse, graph, train=False)))

    def reference(p):
        return jnp.sum(jnp.cos(s @ jax.nn.relu(s @ jnp.asarray(features) @ p["first"][0]) @ p["second"][0]))

    chex.assert_trees_all_close(
        jax.value_and_grad(ours)(params), jax.value_and_grad(reference)(params), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("nodes", [2, 3, 40, 60])
def test_the_laplacian_of_a_ring(nodes):
    """All nodes have two neighbours: ones are an eigenvector of eigenvalue 0. The largest is 2 in even rings."""
    ring = np.arange(nodes)
    scaled = dense(gcn.scaled_laplacian(*graphs.undirected(ring, (ring + 1) % nodes), nodes))
    largest = 1 - np.cos(2 * np.pi / nodes * np.arange(nodes)).min() if nodes > 2 else 2
    values = np.linalg.eigvalsh(scaled)
    assert values.max() == pytest.approx(1, abs=1e-5)
    assert values.min() == pytest.approx(-1, abs=1e-5)
    assert scaled[0, 0] == pytest.approx(2 / largest - 1, abs=1e-5)


def test_the_laplacian_of_a_graph_with_four_neighbours_each():
    """Its weights, 1/4, are exact, and so is the product of the Laplacian and ones: 0."""
    ring, turn = np.arange(60), 2 * np.pi / 60 * np.arange(60)
    ends = np.concatenate([(ring + 1) % 60, (ring + 2) % 60])
    scaled = dense(gcn.scaled_laplacian(*graphs.undirected(np.tile(ring, 2), ends), 60))
    largest = (1 - (np.cos(turn) + np.cos(2 * turn)) / 2).max()
    assert scaled[0, 0] == pytest.approx(2 / largest - 1, abs=1e-5)


def test_the_laplacian_of_one_node():
    none = np.zeros(0, int)
    np.testing.assert_allclose(dense(gcn.scaled_laplacian(none, none, 1)), [[1]])
    np.testing.assert_allclose(dense(gcn.scaled_laplacian(np.zeros(1, int), np.zeros(1, int), 1)), [[-1]])


def test_chebyshev_equals_dense_polynomials(problem):
    rng = np.random.default_rng(0)
    source, destination = graphs.undirected(rng.integers(0, 12, 30), rng.integers(0, 12, 30))
    graph, features = gcn.scaled_laplacian(source, destination, 13), problem[1]
    scaled = dense(graph)
    values = np.linalg.eigvalsh(scaled)
    assert values.max() == pytest.approx(1, abs=1e-5) and values.min() >= -1 - 1e-5
    polynomials = [np.eye(13), scaled]
    for _ in range(2):
        polynomials.append(2 * scaled @ polynomials[-1] - polynomials[-2])
    net, sparse = gcn.GCN(3, 5, degree=3), gcn.SparseFeatures.from_dense(features)
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


def test_dropout_of_sparse_features(problem):
    graph, features = problem
    sparse = gcn.SparseFeatures.from_dense(features)
    net = gcn.GCN(3, 5, dropout=0.5)
    variables = net.init(jax.random.key(0), sparse, graph, train=False)
    draws = [net.apply(variables, sparse, graph, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert not np.allclose(*draws)


def test_softmax_over_the_edges_of_a_node():
    graph = graphs.make_graph(np.array([0, 1, 2, 0]), np.array([2, 2, 2, 0]), 4, np.array([1, 1, 0, 1]))
    logits = jnp.array([5.0, 1.0, 3.0, 900.0])
    weights = graphs.segment_softmax(logits, graph)
    np.testing.assert_allclose(
        weights, [1, np.exp(1) / (np.exp(1) + np.exp(3)), np.exp(3) / (np.exp(1) + np.exp(3)), 0], rtol=1e-5
    )
    assert np.isfinite(jax.jacobian(graphs.segment_softmax)(logits, graph)).all()


def test_permuted_nodes_give_permuted_outputs(problem):
    graph, features = problem
    order = np.random.default_rng(1).permutation(13)
    place = np.argsort(order)
    moved = graphs.make_graph(
        place[np.asarray(graph.source)], place[np.asarray(graph.destination)], 13, np.asarray(graph.weight)
    )
    net = gcn.GCN(3, 5)
    params = net.init(jax.random.key(0), gcn.SparseFeatures.from_dense(features), graph, train=False)
    a = net.apply(params, gcn.SparseFeatures.from_dense(features), graph, train=False)
    b = net.apply(params, gcn.SparseFeatures.from_dense(features[order]), moved, train=False)
    np.testing.assert_allclose(a[order], b, rtol=1e-5, atol=1e-6)


def test_a_graph_without_edges_is_a_network_without_a_graph(problem):
    """Every node keeps itself, with the renormalised adjacency and with the scaled Laplacian."""
    none, features = np.zeros(0, int), gcn.SparseFeatures.from_dense(problem[1])
    np.testing.assert_array_equal(dense(gcn.renormalized(none, none, 13)), np.eye(13))
    np.testing.assert_allclose(dense(gcn.scaled_laplacian(none, none, 13)), np.eye(13), atol=1e-6)
    net = gcn.GCN(3, 5)
    params = net.init(jax.random.key(0), features, problem[0], train=False)["params"]
    found = net.apply({"params": params}, features, gcn.renormalized(none, none, 13), train=False)
    expected = jax.nn.relu(problem[1] @ params["first"][0]) @ params["second"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_smoke():
    config = experiment.get_config()
    config.update_from_flattened_dict({"data.nodes": 200, "train.steps": 3, "optim.runs": 2})
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
    config.update_from_flattened_dict({"data.path": str(test_data / "planetoid"), "optim.runs": 5})
    _, report = app.run(config, experiment.build, quiet=True)
    assert report.metrics["test_accuracy"] > 80.5


def test_citeseer_has_its_gaps_filled(test_data):
    data = read_planetoid(test_data / "planetoid", "citeseer")
    assert (data.features.shape, len(data.source)) == ((3327, 3703), 2 * 4552)
    assert int((data.features.sum(1) == 0).sum()) == 15
    assert not (data.train & data.test).any()


def test_wrong_graphs_and_missing_files_raise(tmp_path):
    with pytest.raises(ValueError, match="edges name nodes outside 0 to 2"):
        graphs.make_graph(np.array([0]), np.array([3]), 3)
    with pytest.raises(ValueError, match="graph: edges name nodes outside 0 to -1"):
        graphs.make_graph(np.zeros(0), np.zeros(0), 0)
    with pytest.raises(ValueError, match=r"\(2,\) sources, \(1,\) destinations"):
        graphs.make_graph(np.array([0, 1]), np.array([0]), 3)
    with pytest.raises(ValueError, match=r"ind\.cora\.y: not a readable Planetoid file"):
        read_planetoid(tmp_path, "cora")


def write_planetoid(folder, features, tested=1):
    """A path of nodes with two classes: the first two for training, the last `tested` ones for the test."""
    rows, one_hot = csr_matrix(np.float32(features)), np.eye(2)[np.arange(len(features)) % 2]
    path = {i: [i + 1] for i in range(len(features) - 1)}
    cut = len(features) - tested
    parts = {"y": one_hot[:2], "tx": rows[cut:], "ty": one_hot[cut:], "allx": rows[:cut], "ally": one_hot[:cut]}
    folder.mkdir(exist_ok=True)
    for part, value in (parts | {"graph": path}).items():
        (folder / f"ind.cora.{part}").write_bytes(pickle.dumps(value))
    (folder / "ind.cora.test.index").write_text("\n".join(map(str, range(cut, len(features)))))


def test_features_that_are_not_finite_raise(tmp_path):
    write_planetoid(tmp_path, [[1, 0], [0, np.nan], [1, 1]])
    with pytest.raises(ValueError, match="features of node 1 are not finite"):
        read_planetoid(tmp_path, "cora")


@pytest.mark.parametrize("index", ["-1\n4", "4\n4", "1\n4", "4\nx"])
def test_test_nodes_are_each_once_after_the_others(tmp_path, index):
    """Nodes 3 and 4 are for the test; other numbers replaced features and labels of training nodes."""
    write_planetoid(tmp_path, [*np.eye(2), *np.eye(2), [1, 1]], tested=2)
    np.testing.assert_array_equal(np.flatnonzero(read_planetoid(tmp_path, "cora").test), [3, 4])
    (tmp_path / "ind.cora.test.index").write_text(index)
    with pytest.raises(ValueError, match=r"test\.index: (. different nodes of 2 from|not a list of node numbers)"):
        read_planetoid(tmp_path, "cora")


@pytest.mark.parametrize("part", ["allx", "tx", "ally", "ty"])
def test_parts_that_are_nan_altogether_raise(tmp_path, part):
    write_planetoid(tmp_path, [*np.eye(2), [1, 1]])
    file = tmp_path / f"ind.cora.{part}"
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()) * np.nan))
    with pytest.raises(ValueError, match=r"ind\.cora: (features of node . are|labels are) not finite"):
        read_planetoid(tmp_path, "cora")


def test_eval_only_tests_another_graph(tmp_path):
    for name, last in (("one", [1, 0]), ("other", [0, 1])):
        write_planetoid(tmp_path / name, [*np.eye(2), *np.eye(2), last])
    config = experiment.get_config("cora")
    config.update_from_flattened_dict(
        {"data.path": str(tmp_path / "one"), "model.graph": False, "model.dropout": 0.0, "optim.runs": 1}
    )
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    config.eval.path = str(tmp_path / "other")
    _, other = app.run(config, experiment.build, workdir=tmp_path / "run", eval_only=True, quiet=True)
    assert (report.metrics["test_accuracy"], other.metrics["test_accuracy"]) == (100, 0)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {"data.nodes": 100, "optim.epochs_per_step": 5, "optim.runs": 2, "train.save_seconds": 0.0}
    )
    states = []
    for folder, steps in ((tmp_path, 2), (tmp_path, 4), (None, 4)):
        config.train.steps = steps
        states.append(app.run(config, experiment.build, workdir=folder, quiet=True)[0])
    for name in ("params", "opt_state", "model_state"):
        chex.assert_trees_all_equal(getattr(states[1], name), getattr(states[2], name))


def test_graph_and_sparse_features_pass_through_jit(problem):
    graph, features = problem[0], gcn.SparseFeatures.from_dense(problem[1])
    net = gcn.GCN(3, 5)
    params = net.init(jax.random.key(0), features, graph, train=False)
    found = jax.jit(lambda g, x: net.apply(params, x, g, train=False))(graph, features)
    np.testing.assert_allclose(found, net.apply(params, features, graph, train=False), rtol=1e-5, atol=1e-6)


def test_own_graphs_are_classified_by_name(tmp_path):
    """Two rings of two classes; another graph that lacks the first class is numbered by the first graph's classes."""

    def written(name, labels):
        folder, count = tmp_path / name, len(labels)
        folder.mkdir()
        (folder / "labels.txt").write_text("\n".join(labels) + "\n")
        (folder / "edges.txt").write_text("".join(f"{i} {(i + 2) % count}\n" for i in range(count)))
        np.save(folder / "features.npy", np.eye(2)[[int(label == "wolf") for label in labels]])
        (folder / "split.txt").write_text(("train\n" * 2 + "validation\n" * 2) * 2 + "test\n" * (count - 8))
        return str(folder)

    config = experiment.get_config("files")
    path, other = written("first", ["cat", "wolf"] * 8), written("other", ["wolf"] * 16)
    config.update_from_flattened_dict({"data.path": path, "optim.runs": 1, "train.steps": 3})
    _, report = app.run(config, experiment.build, quiet=True, save_arrays=tmp_path / "arrays")
    assert report.metrics["test_accuracy"] == 100
    assert (tmp_path / "arrays" / "classes.txt").read_text().split() == ["cat", "wolf"] * 8
    config.eval.path = other
    assert app.run(config, experiment.build, quiet=True)[1].metrics["test_accuracy"] == 100
