import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

from experiments import graphsage as experiment
from facejax.data.readers.planetoid import Citations
from facejax.graph import graphsage
from facejax.graph.graphsage import Block
from facejax.ops import graph as graphs
from facejax.train import app
from facejax.train.dry_run import count

WIDTH, HIDDEN = 3, 4


@pytest.fixture(scope="module")
def graph():
    """Ten nodes; 9 has no edges."""
    rng = np.random.default_rng(0)
    source, destination = graphs.undirected(rng.integers(0, 9, 20), rng.integers(0, 9, 20))
    return graphs.make_graph(source, destination, 10)


@pytest.fixture(scope="module")
def block(graph):
    """Every node with all of its neighbours."""
    degree = np.diff(graphs.offsets(graph)).max()
    found = graphsage.sample_blocks(jax.random.key(0), graph, graphs.offsets(graph), jnp.arange(10), (int(degree),))
    return found[0]


def cell(params, sequence):
    """An LSTM in NumPy: the state after the last row."""
    memory = output = np.zeros(HIDDEN)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    for row in sequence:
        into, new, keep, out = np.split(np.append(row, output) @ params["kernel"] + params["bias"], 4)
        memory = sigmoid(keep + 1) * memory + sigmoid(into) * np.tanh(new)
        output = sigmoid(out) * np.tanh(memory)
    return output


def by_hand(name, params, rows, block):
    """What an aggregator gives, node by node."""
    params, outputs = jax.tree.map(np.asarray, params), []
    for node, neighbors, mask in zip(*map(np.asarray, block), strict=True):
        near = rows[neighbors[mask]]
        if name == "gcn":
            outputs.append(np.append(near, rows[node][None], 0).mean(0) @ params["both"]["kernel"])
            continue
        if name == "lstm":
            near = cell(params, near)
        elif name == "mean":
            near = near.mean(0) if len(near) else np.zeros(rows.shape[1])
        else:
            near = np.maximum(near @ params["pool"]["kernel"] + params["pool"]["bias"], 0)
            near = getattr(near, name[: -len("pool")])(0) if len(near) else np.zeros(HIDDEN)
        outputs.append(np.append(rows[node] @ params["own"]["kernel"], near @ params["near"]["kernel"]))
    return np.stack(outputs)


@functools.cache
def aggregator(name):
    layer = graphsage.AGGREGATORS[name](WIDTH, HIDDEN)
    empty = Block(jnp.zeros(1, int), jnp.zeros((1, 1), int), jnp.ones((1, 1), bool))
    params = layer.init(jax.random.key(1), jnp.zeros((1, 5)), empty)["params"]
    shake = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)  # noqa: E731
    return jax.tree.map(shake, params), jax.jit(lambda params, *inputs: layer.apply({"params": params}, *inputs))


@pytest.mark.parametrize(
    ("name", "spare"), [*((name, 0) for name in graphsage.AGGREGATORS), ("mean", 100), ("gcn", 100), ("maxpool", 100)]
)
def test_aggregators_equal_loops(block, name, spare):
    """With more rows than neighbours (spare) the layer below is read before it is multiplied, else after."""
    params, apply = aggregator(name)
    rows = jax.random.normal(jax.random.key(0), (10 + spare, 5))
    found = apply(params, rows, block)
    assert found.shape == (10, 2 * WIDTH)
    assert not block.mask[9].any()
    np.testing.assert_allclose(found, by_hand(name, params, np.asarray(rows), block), rtol=1e-4, atol=1e-5)
    if spare:
        return
    gradients = jax.grad(lambda p, r: jnp.sum(apply(p, r, block) ** 2), (0, 1))(params, rows)
    chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("name", graphsage.AGGREGATORS)
def test_the_order_of_neighbours_matters_to_the_lstm_only(block, name):
    params, apply = aggregator(name)
    rows = jax.random.normal(jax.random.key(0), (10, 5))
    turned = block._replace(neighbors=block.neighbors[:, ::-1], mask=block.mask[:, ::-1])
    same = np.allclose(apply(params, rows, block), apply(params, rows, turned), rtol=1e-4, atol=1e-5)
    assert same == (name != "lstm")


def test_constant_features_hide_the_graph(block):
    params, apply = aggregator("mean")
    found = np.asarray(apply(params, jnp.ones((10, 5)), block))
    np.testing.assert_allclose(found[:9], found[:1].repeat(9, 0), rtol=1e-5)


def test_blocks_are_the_tree_of_sampled_neighbours(graph):
    starts, nodes = graphs.offsets(graph), jnp.array([0, 9, 4])
    first, second = graphsage.sample_blocks(jax.random.key(0), graph, starts, nodes, (2, 3))
    assert first.neighbors.shape == (12, 2) and second.neighbors.shape == (3, 3)
    assert first.nodes[:3].tolist() == [0, 9, 4] and second.nodes.tolist() == [0, 1, 2]
    assert sorted(second.neighbors.ravel().tolist()) == list(range(3, 12))
    edges = set(zip(np.asarray(graph.destination).tolist(), np.asarray(graph.source).tolist(), strict=True))
    real = first.nodes[second.neighbors]  # node numbers of the middle layer
    for block, ends in ((first, first.neighbors), (second, real)):
        centres = first.nodes[block.nodes] if block is second else block.nodes
        pairs = np.stack([np.broadcast_to(centres[:, None], ends.shape), ends], -1)[np.asarray(block.mask)]
        assert {tuple(pair) for pair in pairs.tolist()} <= edges
    assert not second.mask[1].any()


def test_shuffling_changes_the_order_alone(graph):
    starts, nodes = graphs.offsets(graph), jnp.full(64, int(jnp.argmax(jnp.diff(graphs.offsets(graph)))))
    blocks = [
        graphsage.sample_blocks(jax.random.key(0), graph, starts, nodes, (9,), shuffle=s)[0] for s in (False, True)
    ]
    plain, mixed = (np.where(b.mask, b.neighbors, -1) for b in blocks)
    np.testing.assert_array_equal(np.sort(plain), np.sort(mixed))
    assert len(np.unique(mixed, axis=0)) > 30 > len(np.unique(plain, axis=0)) == 1


def test_two_layers_over_all_neighbours_equal_dense_matrices(graph):
    matrix = np.zeros((10, 10), np.float32)
    matrix[np.asarray(graph.destination), np.asarray(graph.source)] = 1
    mean = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    features = jax.random.normal(jax.random.key(0), (10, 5))
    blocks = graphsage.sample_blocks(jax.random.key(1), graph, graphs.offsets(graph), jnp.arange(10), (9, 9))
    net = graphsage.GraphSAGE(4, width=WIDTH)
    params = net.init(jax.random.key(2), features, blocks)["params"]

    def dense(params):
        rows = features
        for layer in ("layer1", "layer2"):
            own, near = (params[layer][k]["kernel"] for k in ("own", "near"))
            rows = jnp.concatenate([rows @ own, mean @ rows @ near], 1)
            rows = jax.nn.relu(rows) if layer == "layer1" else rows
        rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ params["classes"]["kernel"] + params["classes"]["bias"]

    results = [
        jax.value_and_grad(lambda p: jnp.sum(jnp.cos(f(p))))(params)  # noqa: B023
        for f in (jax.jit(lambda p: net.apply({"params": p}, features, blocks)), dense)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-3, atol=1e-5)


def shapes(name, features, classes, width=128, hidden=0):
    blocks = jax.eval_shape(
        lambda: graphsage.sample_blocks(
            jax.random.key(0),
            graphs.Graph(jnp.zeros(9, int), jnp.zeros(9, int), jnp.ones(9), 600),
            jnp.zeros(601, int),
            jnp.zeros(512, int),
            (25, 10),
        )
    )
    net, x = graphsage.GraphSAGE(classes, name, width, hidden), jax.ShapeDtypeStruct((600, features), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), x, blocks)["params"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mean", 109_433),
        ("gcn", 109_433),
        ("maxpool", 109_433 - 2 * 128 * (50 + 256 - 2 * 512) // 2 + 512 * (50 + 1 + 256 + 1)),
        ("lstm", 109_433 - 128 * (50 + 256 - 2 * 128) + 512 * (50 + 128 + 1 + 256 + 128 + 1)),
    ],
)
def test_parameter_counts_on_ppi(name, parameters):
    """Mean: 50 * 256 + 256 * 256 + 256 * 121 + 121. Pool and LSTM have their own layer and read its 512 or 128."""
    config = experiment.get_config("ppi").model
    assert tuple(config.samples) == (25, 10)
    assert count(shapes(name, 50, 121, config.width, config.hidden)) == parameters


def test_published_settings():
    for name in ("ppi", "reddit", "citation"):
        config = experiment.get_config(name)
        assert config.optim.to_dict() == {"learning_rate": 0.01, "clip": 5.0, "batch_size": 512, "epochs": 10}
        assert config.loss.to_dict() == {"kind": "supervised", "walks": 50, "walk_length": 5, "negatives": 20}


def test_losses():
    zeros = jnp.zeros((2, 3))
    np.testing.assert_allclose(graphsage.unsupervised_loss(zeros, zeros, jnp.zeros((20, 3))), 21 * np.log(2), rtol=1e-6)
    u, v, n = np.array([[1.0, 2]]), np.array([[0.5, -1]]), np.array([[1.0, 0], [0, -3]])
    expected = np.log1p(np.exp(1.5)) + np.log1p(np.exp(1)) + np.log1p(np.exp(-6))
    np.testing.assert_allclose(graphsage.unsupervised_loss(*map(jnp.asarray, (u, v, n))), [expected], rtol=1e-6)
    logits = jnp.array([[0.0, np.log(3), 0]])
    np.testing.assert_allclose(graphsage.supervised_loss(logits, jnp.array([1])), [-np.log(3 / 5)], rtol=1e-6)
    many = graphsage.supervised_loss(logits, jnp.array([[1, 1, 0]]))
    np.testing.assert_allclose(many, [(2 * np.log(2) - np.log(3 / 4)) / 3], rtol=1e-6)
    huge = jax.grad(lambda x: graphsage.supervised_loss(x, jnp.array([[1, 0, 1]])).sum())(1e4 * jnp.ones((1, 3)))
    np.testing.assert_allclose(huge, [[0, 1 / 3, 0]], atol=1e-6)


def test_walks_follow_edges_uniformly_and_are_seeded():
    path = graphs.make_graph(*graphs.undirected(np.array([0, 1, 1]), np.array([1, 2, 3])), 5)
    starts = graphs.offsets(path)
    walk = jax.jit(lambda key, nodes: graphsage.random_walks(key, path, starts, nodes, 3))
    visited = np.asarray(walk(jax.random.key(0), jnp.zeros(3000, int)))
    assert (visited[:, 0] == 1).all() and (visited[:, 2] == 1).all()
    shares = np.bincount(visited[:, 1], minlength=5) / 3000
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3, 0], atol=0.05)
    assert (walk(jax.random.key(0), jnp.full(3000, 4)) == 4).all()
    np.testing.assert_array_equal(visited, walk(jax.random.key(0), jnp.zeros(3000, int)))


def test_negatives_follow_the_degrees():
    weight = np.array([0, 1, 16, 0, 81]) ** 0.75
    cumulative = graphsage.negative_distribution(np.cumsum([0, 0, 1, 16, 0, 81]))
    shares = np.bincount(graphsage.draw_nodes(jax.random.key(0), cumulative, 20_000), minlength=5) / 20_000
    np.testing.assert_allclose(shares, weight / weight.sum(), atol=0.02)
    assert shares[0] == shares[3] == 0
    with pytest.raises(ValueError, match="the graph has no edges; expected at least one"):
        graphsage.negative_distribution(np.zeros(4))


def test_micro_f1_equals_scikit_learn():
    predicted, labels, where = np.random.default_rng(0).random((3, 30, 5)) < 0.4
    where = where[:, 0]
    expected = f1_score(labels[where], predicted[where], average="micro")
    assert float(graphsage.micro_f1(predicted, labels, where)) == pytest.approx(expected)
    assert float(graphsage.micro_f1(predicted, labels, where & False)) == 0


def smoke(preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {"data.nodes": 400, "data.labelled": 40, "model.width": 16, "model.samples": (8, 4), "optim.epochs": 20,
         "eval.compare": (), **changes}
    )  # fmt: skip
    return config


def test_neighbours_help_on_unseen_nodes():
    _, report = app.run(smoke(**{"eval.compare": ("none",)}), experiment.build, quiet=True)
    ours, features = next(iter(report.tables.values()))
    assert (ours["aggregator"], features["aggregator"]) == ("mean", "none")
    assert report.metrics["test_f1"] == pytest.approx(ours["test_f1"], abs=1e-4)
    assert ours["test_f1"] > features["test_f1"] + 0.05
    assert report.arrays["predictions"].shape == (400, 4)


def test_walks_without_labels_give_embeddings_that_know_the_classes():
    config = smoke("unsupervised", **{"optim.epochs": 4, "data.degree_out": 1.0})
    data = experiment.load(config.data, 0)
    embeddings, losses, parameters = experiment.train(config, data, "mean")
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert losses[-20:].mean() < losses[:5].mean() - 0.5
    assert parameters == 100 * 32 + 32 * 32
    score = graphsage.micro_f1(
        experiment.logistic_regression(embeddings, data), experiment.indicators(data.labels), data.test
    )
    assert score > 0.45


def test_training_never_reads_validation_and_test_nodes():
    """Their features, labels and edges may be anything: the losses stay bit for bit."""
    config = smoke(**{"optim.epochs": 2, "data.nodes": 200})
    data = experiment.load(config.data, 0)
    hidden = data.validation | data.test
    features, labels = data.features.copy(), data.labels.copy()
    features[hidden], labels[hidden] = 7.0, 0
    source, destination = (
        np.where(hidden[ends], np.flatnonzero(hidden)[0], ends) for ends in (data.source, data.destination)
    )
    other = Citations(features, labels, source, destination, data.train, data.validation, data.test)
    np.testing.assert_array_equal(experiment.train(config, data, "mean")[1], experiment.train(config, other, "mean")[1])


@pytest.fixture
def files(tmp_path):
    """Five nodes in the authors' format; their numbers are not their rows, and one lacks the marks of the split."""
    marks = [(False, False), (True, False), (False, True), (False, False)]
    nodes = [{"id": f"n{i}", "val": v, "test": t} for i, (v, t) in enumerate(marks)] + [{"id": "broken"}]
    links = [{"source": a, "target": b} for a, b in ((0, 1), (1, 2), (2, 3), (3, 4), (0, 0))]
    parts = {
        "G": {"nodes": nodes, "links": links},
        "id_map": {f"n{i}": 3 - i for i in range(4)},
        "class_map": {f"n{i}": [i % 2, 1] for i in range(4)},
    }
    for name, content in parts.items():
        (tmp_path / f"toy-{name}.json").write_text(json.dumps(content))
    np.save(tmp_path / "toy-feats.npy", np.arange(8.0).reshape(4, 2))
    return str(tmp_path / "toy")


def test_the_authors_files(files):
    data = experiment.read_files(files)
    assert data.train.tolist() == [True, False, False, True]
    assert (data.validation.tolist(), data.test.tolist()) == ([False, False, True, False], [False, True, False, False])
    assert data.labels.tolist() == [[1, 1], [0, 1], [1, 1], [0, 1]]
    edges = sorted(zip(data.source.tolist(), data.destination.tolist(), strict=True))
    assert edges == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]


def test_bad_words_and_files_are_said(files, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere-\*: not a graph in GraphSAGE's format: FileNotFoundError"):
        experiment.read_files(str(tmp_path / "nowhere"))
    whole = np.load(tmp_path / "toy-feats.npy")
    np.save(tmp_path / "toy-feats.npy", np.where(np.arange(4)[:, None] == 2, np.inf, whole))
    with pytest.raises(ValueError, match=r"toy-feats\.npy: row 2 is not finite"):
        experiment.read_files(files)
    np.save(tmp_path / "toy-feats.npy", whole)
    (tmp_path / "toy-id_map.json").write_text(json.dumps({"n0": 7}))
    with pytest.raises(ValueError, match=r"not a graph in GraphSAGE's format: IndexError"):
        experiment.read_files(files)
    with pytest.raises(ValueError, match=r"aggregator is 'sum': expected one of mean, gcn, meanpool, maxpool, lstm"):
        app.run(smoke(**{"model.aggregator": "sum", "data.nodes": 200}), experiment.build, quiet=True)
    with pytest.raises(ValueError, match=r"loss\.kind is 'hinge': expected supervised or unsupervised"):
        app.run(smoke(**{"loss.kind": "hinge", "data.nodes": 200}), experiment.build, quiet=True)
    with pytest.raises(ValueError, match=r"data\.source is 'web'"):
        app.run(smoke(**{"data.source": "web"}), experiment.build, quiet=True)


def test_inductive_splits(test_data):
    config = experiment.get_config("cora").data
    for name, labels, expected in (("cora", "all", 1208), ("cora", "public", 140), ("citeseer", "all", 1812)):
        config.update({"path": str(test_data / "planetoid"), "source": name, "labels": labels})
        data = experiment.load(config, 0)
        assert [int(m.sum()) for m in (data.train, data.validation, data.test)] == [expected, 500, 1000]
