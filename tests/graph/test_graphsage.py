import dataclasses
import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

from experiments import graphsage as experiment
from facejax.data.readers.node_graphs import edge_ends, read_graphsage
from facejax.data.readers.planetoid import Citations
from facejax.graph import graphsage
from facejax.graph.graphsage import Block
from facejax.ops import graph as graphs
from facejax.train import Options, Report, app, train
from facejax.train.dry_run import count
from facejax.train.logging import read_metrics

WIDTH, HIDDEN = 3, 4
sample_blocks = jax.jit(graphsage.sample_blocks, static_argnums=4, static_argnames="shuffle")


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
    found = sample_blocks(jax.random.key(0), graph, graphs.offsets(graph), jnp.arange(10), (int(degree),))
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
    params = jax.jit(layer.init)(jax.random.key(1), jnp.zeros((1, 5)), empty)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    return params, jax.jit(lambda params, *inputs: layer.apply({"params": params}, *inputs))


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
    first, second = sample_blocks(jax.random.key(0), graph, starts, nodes, (2, 3))
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
    blocks = [sample_blocks(jax.random.key(0), graph, starts, nodes, (9,), shuffle=s)[0] for s in (False, True)]
    plain, mixed = (np.where(b.mask, b.neighbors, -1) for b in blocks)
    np.testing.assert_array_equal(np.sort(plain), np.sort(mixed))
    assert len(np.unique(mixed, axis=0)) > 30 > len(np.unique(plain, axis=0)) == 1


def test_two_layers_over_all_neighbours_equal_dense_matrices(graph):
    matrix = np.zeros((10, 10), np.float32)
    matrix[np.asarray(graph.destination), np.asarray(graph.source)] = 1
    mean = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    features = jax.random.normal(jax.random.key(0), (10, 5))
    blocks = sample_blocks(jax.random.key(1), graph, graphs.offsets(graph), jnp.arange(10), (9, 9))
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
        assert config.optim.to_dict() == {"learning_rate": 0.01, "clip": 5.0, "batch_size": 512}
        assert config.train.steps == 10  # passes over the training nodes
        assert config.loss.to_dict() == {"kind": "supervised", "walk_length": 5, "negatives": 20}


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
        {"data.nodes": 400, "data.labelled": 40, "model.width": 16, "model.samples": (8, 4), "train.steps": 20,
         "model.aggregators": ("mean",), "eval.features": False, **changes}
    )  # fmt: skip
    return config


def trained(config, steps=None, **options):
    """The state after training without an evaluation."""
    run = dataclasses.replace(experiment.build(config), evaluate=lambda state: Report({}))
    settings = dict(config.train) | ({"steps": steps} if steps else {})
    return train(run, Options(**settings), seed=config.seed, quiet=True, **options)[0]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    config = smoke(**{"data.nodes": 200, "train.save_seconds": 0.0})
    for steps in (2, 3):
        state = trained(config, steps, workdir=tmp_path)
    whole = trained(config, 3)
    chex.assert_trees_all_equal(
        *((s.params, s.opt_state, s.model_state, jax.random.key_data(s.rng)) for s in (state, whole))
    )


def test_eval_only_tests_another_graph(files, tmp_path):
    config = smoke("ppi", **{"data.path": files, "model.samples": (2, 2), "train.steps": 2})
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    other = shutil.copytree(tmp_path, tmp_path / "other", ignore=shutil.ignore_patterns("run"))
    (other / "toy-class_map.json").write_text(json.dumps({f"n{i}": [1, 0] for i in range(4)}))
    config.eval.path = str(other / "toy")
    _, again = app.run(config, experiment.build, workdir=tmp_path / "run", eval_only=True, quiet=True)
    np.testing.assert_array_equal(report.arrays["outputs"], again.arrays["outputs"])
    config.eval.path = str(tmp_path / "absent")
    with pytest.raises(ValueError, match="not a graph in GraphSAGE's format"):
        app.run(config, experiment.build, workdir=tmp_path / "run", eval_only=True, quiet=True)


def test_graphs_pass_through_jit(graph):
    def sample(graph, starts, features):
        blocks = graphsage.sample_blocks(jax.random.key(0), graph, starts, jnp.arange(10), (2, 2))
        return graphsage.GraphSAGE(3, width=WIDTH).init_with_output(jax.random.key(1), features, blocks)[0]

    inputs = graph, graphs.offsets(graph), jax.random.normal(jax.random.key(2), (10, 5))
    np.testing.assert_allclose(jax.jit(sample)(*inputs), sample(*inputs), rtol=1e-5, atol=1e-6)


def test_neighbours_improve_on_features_for_held_out_nodes():
    config = smoke(**{"eval.features": True, "model.aggregators": ("mean", "gcn")})
    _, report = app.run(config, experiment.build, quiet=True)
    ours, other, features = next(iter(report.tables.values()))
    assert (ours["aggregator"], other["aggregator"], features["aggregator"]) == ("mean", "gcn", "none")
    assert report.metrics["test_f1"] == pytest.approx(ours["test_f1"], abs=1e-4)
    assert ours["test_f1"] > features["test_f1"] + 0.05
    assert report.arrays["predictions"].shape == (400, 4)


def test_embeddings_trained_without_labels_separate_the_classes(tmp_path):
    config = smoke("unsupervised", **{"train.steps": 32, "data.degree_out": 1.0})
    state, report = app.run(config, experiment.build, workdir=tmp_path, quiet=True)
    np.testing.assert_allclose(np.linalg.norm(report.arrays["outputs"], axis=1), 1, rtol=1e-5)
    losses = [p["train/mean_loss"] for p in read_metrics(tmp_path / "metrics.jsonl") if "train/mean_loss" in p]
    assert np.mean(losses[-4:]) < losses[0] - 0.5
    assert count(state.params) == 100 * 32 + 32 * 32
    assert report.metrics["test_f1"] > 0.45


def test_training_never_reads_validation_and_test_nodes(monkeypatch):
    """Other features, labels and edges of these nodes give the same bits of all parameters."""
    config = smoke(**{"train.steps": 2, "data.nodes": 200})
    data = experiment.load(config.data, 0)
    hidden = data.validation | data.test
    features, labels = data.features.copy(), data.labels.copy()
    features[hidden], labels[hidden] = 7.0, 0
    source, destination = (
        np.where(hidden[ends], np.flatnonzero(hidden)[0], ends) for ends in (data.source, data.destination)
    )
    other = Citations(features, labels, source, destination, data.train, data.validation, data.test)
    states = []
    for given in (data, other):
        monkeypatch.setattr(experiment, "load", lambda *_, given=given: given)
        states.append(trained(config))
    chex.assert_trees_all_equal(*(state.params for state in states))


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
    data = read_graphsage(files)
    assert data.train.tolist() == [True, False, False, True]
    assert (data.validation.tolist(), data.test.tolist()) == ([False, False, True, False], [False, True, False, False])
    assert data.labels.tolist() == [[1, 1], [0, 1], [1, 1], [0, 1]]
    edges = sorted(zip(data.source.tolist(), data.destination.tolist(), strict=True))
    assert edges == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]


IDS = [3, 1, 0, 2]
PATH = [(3, 1), (1, 0), (0, 2)]  # by id: neighbours in the list of nodes


@pytest.mark.parametrize(
    ("ids", "key", "links", "expected"),
    [
        (IDS, "edges", PATH, [(0, 1), (1, 2), (2, 3)]),
        (IDS, "links", PATH, [(0, 1), (1, 2), (2, 3)]),  # positions would be out of networkx's order
        (IDS, "links", [(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]),  # ids would be
        ([7, 5, 9], "links", [(7, 5), (5, 9)], [(0, 1), (1, 2)]),
        ([7, 5, 9], "links", [(0, 1), (1, 2)], [(0, 1), (1, 2)]),
        (["b", "1", "a"], "links", [("b", "1"), ("1", "a")], [(0, 1), (1, 2)]),
        (["2", "1", "0"], "links", [(0, 1), (1, 2)], [(0, 1), (1, 2)]),
        (["2", "1", "0"], "edges", [("2", "1"), ("1", "0")], [(0, 1), (1, 2)]),
        ([1, 2, 3], "links", [(0, 1), (1, 2)], [(0, 1), (1, 2)]),
    ],
)
def test_edges_of_ids_or_positions(ids, key, links, expected):
    graph = {"nodes": [{"id": i} for i in ids], key: [{"source": a, "target": b} for a, b in links]}
    np.testing.assert_array_equal(edge_ends(graph), expected)


@pytest.mark.parametrize(
    ("ids", "key", "links", "message"),
    [
        ([1, 0, 1], "links", [], "2 different ids of 3 nodes"),
        ([7, 5, 9], "edges", [(0, 1)], "an end of edges is not one of the 3 nodes"),
        ([7, 5, 9], "links", [(0, -1)], "an end of links is not one of the 3 nodes"),
        (IDS, "links", [(2, 3), (3, 0)], "links are ids or positions of nodes: expected ids"),
    ],
)
def test_edges_that_could_be_anything_raise(ids, key, links, message):
    graph = {"nodes": [{"id": i} for i in ids], key: [{"source": a, "target": b} for a, b in links]}
    with pytest.raises(ValueError, match=message):
        edge_ends(graph)


def test_networkx_files(tmp_path):
    """What the installed networkx writes, under either key."""
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    graph.add_nodes_from(IDS)
    graph.add_edges_from(PATH)
    for key in ("links", "edges"):
        written = json.loads(json.dumps(networkx.node_link_data(graph, edges=key)))
        np.testing.assert_array_equal(edge_ends(written), [(0, 1), (1, 2), (2, 3)])


def test_rows_of_two_nodes_raise(files, tmp_path):
    for row in (3, -1):
        (tmp_path / "toy-id_map.json").write_text(json.dumps({"n0": 3, "n1": row, "n2": 1, "n3": 0}))
        with pytest.raises(ValueError, match=rf"id_map gives row {row} to 'n1'"):
            read_graphsage(files)


def test_unknown_names_and_damaged_files_raise(files, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere-\*: not a graph in GraphSAGE's format: .*No such file"):
        read_graphsage(str(tmp_path / "nowhere"))
    whole = np.load(tmp_path / "toy-feats.npy")
    np.save(tmp_path / "toy-feats.npy", np.where(np.arange(4)[:, None] == 2, np.inf, whole))
    with pytest.raises(ValueError, match=r"toy-feats\.npy: row 2 is not finite"):
        read_graphsage(files)
    np.save(tmp_path / "toy-feats.npy", whole)
    (tmp_path / "toy-id_map.json").write_text(json.dumps({"n0": 7}))
    with pytest.raises(ValueError, match=r"not a graph in GraphSAGE's format: IndexError"):
        read_graphsage(files)
    with pytest.raises(ValueError, match=r"aggregator is 'sum': expected one of mean, gcn, meanpool, maxpool, lstm"):
        app.run(smoke(**{"model.aggregators": ("sum",), "data.nodes": 200}), experiment.build, quiet=True)
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
