import dataclasses
import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gat as experiment
from facejax.data.readers.node_graphs import read_ppi
from facejax.data.readers.planetoid import read_planetoid
from facejax.graph import gat, gcn
from facejax.interop import tensorflow
from facejax.ops import graph as graphs
from facejax.train import Options, Report, app, train
from facejax.train.dry_run import count
from facejax.train.logging import read_metrics


def dense_layer(params, x, adjacency, concat=True, skip=False):
    """The same in whole matrices, as the authors write it: -1e9 where there is no edge."""
    heads = []
    for h in range(params["kernel"].shape[0]):
        mapped = x @ params["kernel"][h]
        scores = mapped @ params["destination"][h] + params["destination_bias"][h]
        scores = scores + (mapped @ params["source"][h] + params["source_bias"][h]).T
        scores = jnp.where(scores > 0, scores, 0.2 * scores) + jnp.where(adjacency, 0, -1e9)
        out = jax.nn.softmax(scores, 1) @ mapped + params["bias"][h]
        heads.append(out + x @ params["skip"][h] + params["skip_bias"][h] if skip else out)
    return jnp.concatenate(heads, 1) if concat else sum(heads) / len(heads)


@pytest.fixture(scope="module")
def problem():
    """Thirteen nodes, the last without neighbours; some edges and a self-loop are given twice."""
    rng = np.random.default_rng(0)
    source, destination = rng.integers(0, 12, 30), rng.integers(0, 12, 30)
    source, destination = np.append(source, [3, 3, source[0]]), np.append(destination, [3, 3, destination[0]])
    adjacency = np.eye(13, dtype=bool)
    adjacency[destination, source] = True
    features = (rng.random((13, 7)) < 0.4).astype(np.float32)
    return gat.neighborhood(source, destination, 13), adjacency, gcn.row_normalized(features)


def randomized(variables, seed=0):
    """Parameters far from zero, biases too."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return tree.unflatten([rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def run(net, variables, x, graph):
    """Outputs of a network, compiled with the graph as an argument."""
    return jax.jit(lambda v, x, g: net.apply(v, x, g, train=False))(variables, x, graph)


def start(net, x, graph):
    """Variables far from zero, of a network for these inputs."""
    shapes = jax.eval_shape(lambda key: net.init(key, x, graph, train=False), jax.random.key(0))
    return randomized(shapes)


def test_a_neighborhood_is_a_set(problem):
    graph, adjacency, _ = problem
    assert len(graph.source) == adjacency.sum()
    assert adjacency[np.asarray(graph.destination), np.asarray(graph.source)].all()


@pytest.mark.parametrize(("concat", "skip"), [(True, False), (False, True)])
def test_a_layer_equals_dense_matrices_in_values_and_gradients(problem, concat, skip):
    graph, adjacency, features = problem
    net = gat.GATLayer(4, 3, concat=concat, skip=skip)
    params = start(net, features, graph)["params"]

    def ours(params, x):
        return jnp.sum(jnp.cos(net.apply({"params": params}, x, graph, train=False)))

    def reference(params, x):
        return jnp.sum(jnp.cos(dense_layer(params, x, adjacency, concat, skip)))

    slopes = (jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (ours, reference))
    gradients = [slope(params, jnp.asarray(features)) for slope in slopes]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-4)


def test_sparse_features_and_a_graph_passed_through_jit_give_the_same(problem):
    graph, _, features = problem
    net = gat.GAT(3)
    variables = start(net, features, graph)
    expected = jax.jit(lambda x: net.apply(variables, x, graph, train=False))(features)
    for x in (features, gcn.SparseFeatures.from_dense(features)):
        np.testing.assert_allclose(run(net, variables, x, graph), expected, rtol=1e-4, atol=1e-5)


def test_attention(problem):
    graph, adjacency, features = problem
    net = gat.GATLayer(4, 3)
    variables = start(net, features, graph)

    @functools.partial(jax.jit, static_argnums=1)
    def attention(variables, net=net):
        return net.apply(variables, features, graph, train=False, mutable="intermediates")[1]["intermediates"][
            "attention"
        ][0]

    found = attention(variables)
    np.testing.assert_allclose(graphs.segment_sum(found, graph), 1, rtol=1e-5)
    np.testing.assert_allclose(found[-1], 1)  # the last node has itself only
    assert float(found.std()) > 0.1
    params = variables["params"]
    ends = {k: 0 * v for k, v in params.items() if "source" in k or "destination" in k}
    uniform = (1 / adjacency.sum(1))[np.asarray(graph.destination)]
    np.testing.assert_allclose(attention({"params": params | ends}), uniform[:, None].repeat(3, 1), rtol=1e-5)
    constant = gat.GATLayer(4, 3, constant=True)
    rest = {"params": {k: v for k, v in params.items() if k not in ends}}
    np.testing.assert_allclose(attention(rest, constant), uniform[:, None].repeat(3, 1), rtol=1e-5)


def test_permuted_nodes_give_permuted_outputs(problem):
    graph, _, features = problem
    order = np.random.default_rng(1).permutation(13)
    place = np.argsort(order)
    moved = gat.neighborhood(place[np.asarray(graph.source)], place[np.asarray(graph.destination)], 13)
    net = gat.GAT(3)
    variables = start(net, features, graph)
    apply = jax.jit(lambda x, g: net.apply(variables, x, g, train=False))
    a, b = (apply(x, g) for x, g in ((features, graph), (features[order], moved)))
    np.testing.assert_allclose(a[order], b, rtol=1e-4, atol=1e-5)


def test_padding_edges_and_edgeless_nodes_have_finite_gradients():
    graph = graphs.make_graph(np.array([0, 1, 2, 0]), np.array([0, 0, 2, 2]), 3, np.array([1, 1, 0, 0]))
    net = gat.GATLayer(2, 2)
    x = jnp.arange(12.0).reshape(3, 4)
    params = start(net, x, graph)["params"]

    def total(params, x):
        out = net.apply({"params": params}, x, graph, train=False)
        return jnp.sum(out**2), out

    (_, out), gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, x)
    np.testing.assert_allclose(out[1:], np.tile(params["bias"].reshape(-1), (2, 1)), rtol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_dropout_is_drawn_for_each_head_and_each_place(problem):
    graph, _, features = problem
    ones = jnp.ones_like(features)

    net = gat.GATLayer(1, 2, dropout=0.5, constant=True)
    params = jax.tree.map(np.ones_like, start(net, ones, graph))
    params["params"]["bias"] *= 0

    def layer(x, seeds):
        def one(seed):
            return net.apply(params, x, graph, train=True, rngs={"dropout": jax.random.key(seed)})

        return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(seeds)))

    draws = layer(ones, 400)
    assert not np.allclose(draws[..., 0], draws[..., 1])
    np.testing.assert_allclose(draws.mean(), 7, rtol=0.05)  # the mean is kept
    # the lonely node: Binomial(7, 1/2) * 2, and two more draws that keep it or not, each doubling what is kept
    np.testing.assert_allclose((draws[:, -1] == 0).mean(), 0.75, atol=0.06)
    sparse = layer(gcn.SparseFeatures.from_dense(np.asarray(ones)), 50)
    assert not np.allclose(sparse[..., 0], sparse[..., 1])


def test_average_of_heads(problem):
    graph, _, features = problem
    joined, mean = gat.GATLayer(4, 3), gat.GATLayer(4, 3, concat=False)
    variables = start(joined, features, graph)
    a, b = (run(net, variables, features, graph) for net in (joined, mean))
    np.testing.assert_allclose(a.reshape(13, 3, 4).mean(1), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "features", "parameters"),
    [
        (gat.gat_citations(7), 1433, 92_391),
        (gat.gat_citations(6), 3703, 237_604),
        (gat.gat_citations(3, output_heads=8), 500, 33_832),
        (gat.gat_ppi(), 50, 2_901_150),
    ],
)
def test_parameter_counts(net, features, parameters):
    graph = gat.neighborhood(np.zeros(0, int), np.zeros(0, int), 5)
    x = jnp.zeros((5, features))
    shapes = jax.eval_shape(lambda key: net.init(key, x, graph, train=False), jax.random.key(0))
    assert count(shapes["params"]) == parameters


def test_weights_of_a_head_are_glorot_of_that_head():
    graph = gat.neighborhood(np.zeros(0, int), np.zeros(0, int), 2)
    init = jax.jit(lambda key: gat.GATLayer(8, 50).init(key, jnp.zeros((2, 100)), graph, train=False))
    params = init(jax.random.key(0))["params"]
    for name, fans in (("kernel", 108), ("source", 9), ("destination", 9)):
        assert np.abs(params[name]).max() == pytest.approx(np.sqrt(6 / fans), rel=0.05)


def test_l2_takes_biases_too():
    assert float(gat.l2({"a": jnp.array([1.0, 2.0]), "b": {"bias": jnp.array(3.0)}})) == 7.0


def test_batches_of_graphs_are_one_graph_side_by_side():
    config = experiment.get_config("inductive")
    config.data.update(nodes=20, graphs=5)
    splits, _ = experiment.load(config.data, 0)
    assert [len(splits[k].mask) for k in ("train", "validation", "test")] == [3, 1, 1]
    train = splits["train"]
    net = gat.GAT(4, (5, 6), (3, 2, 2), skip=True)
    whole = train.graph
    assert (np.diff(whole.destination) >= 0).all()
    variables = start(net, train.features.reshape(60, -1), whole)
    together = run(net, variables, train.features.reshape(60, -1), whole)
    apply = jax.jit(lambda x, g: net.apply(variables, x, g, train=False))
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], train)
        alone = apply(one.features[0], one.graph)
        np.testing.assert_allclose(together[20 * i : 20 * i + 20], alone, rtol=1e-4, atol=1e-4)


def smoke(preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {"data.nodes": 200, "optim.epochs_per_step": 4, "train.steps": 3, "optim.runs": 2, **changes}
    )
    return config


def unevaluated(config):
    return dataclasses.replace(experiment.build(config), evaluate=lambda state: Report({}))


def validation_losses(folder):
    name = "train/validation_loss"
    return {p["step"]: p[name] for p in read_metrics(folder / "metrics.jsonl") if name in p}


def test_smoke(tmp_path):
    _, report = app.run(smoke(), experiment.build, workdir=tmp_path, quiet=True)
    assert report.metrics["epochs"] == 12
    assert set(report.figures) == {"Embeddings", "Attention"}
    assert list(validation_losses(tmp_path)) == [1, 2, 3]
    assert (tmp_path / "report.html").stat().st_size > 20_000


def test_smoke_of_the_inductive_task():
    config = smoke("inductive", **{"data.nodes": 30, "data.graphs": 5, "train.steps": 1, "optim.runs": 1})
    _, report = app.run(config, experiment.build, quiet=True)
    assert 0 <= report.metrics["test_micro_f1"] <= 1
    config.optim.batch_size = 4
    with pytest.raises(ValueError, match="batch_size is 4: expected at most 3, the training graphs"):
        app.run(config, experiment.build, quiet=True)


def test_stopping_by_both_criteria_and_the_kept_weights(tmp_path):
    """At learning rate 0 loss and score stay constant, which is no reason to stop; at rate 3 the loss grows."""
    config = smoke(**{"optim.learning_rate": 0.0, "optim.patience": 3, "optim.runs": 1})
    state, _ = app.run(config, unevaluated, quiet=True)
    assert int(state.model_state["epochs"][0]) == 12
    config.update_from_flattened_dict(
        {"optim.learning_rate": 3.0, "optim.epochs_per_step": 1, "train.steps": 40, "train.log_every": 1}
    )
    state, _ = app.run(config, unevaluated, workdir=tmp_path, quiet=True)
    logged = validation_losses(tmp_path)
    epochs, losses = int(state.model_state["epochs"][0]), list(logged.values())
    assert epochs < 40
    assert list(logged) == list(range(1, epochs + 1)) and np.isfinite(losses).all()
    assert np.argmin(losses) <= epochs - 1 - 3  # three epochs of patience after the lowest loss, or later


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    config = smoke(**{"data.nodes": 100, "train.save_seconds": 0.0})
    states = []
    for folder, steps in ((tmp_path, 1), (tmp_path, 3), (None, 3)):
        options = Options(**dict(config.train) | {"steps": steps})
        states.append(train(unevaluated(config), options, seed=0, workdir=folder, quiet=True)[0])
    for name in ("params", "opt_state", "model_state"):
        chex.assert_trees_all_equal(getattr(states[1], name), getattr(states[2], name))


def write_ppi(folder, split, sizes, damage=()):
    rng, total = np.random.default_rng(0), sum(sizes)
    owner = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    links = [{"source": int(i), "target": int(j)} for i in range(total) for j in range(total) if owner[i] == owner[j]]
    (folder / f"{split}_graph.json").write_text(json.dumps({"links": links + list(damage)}))
    np.save(folder / f"{split}_feats.npy", rng.normal(size=(total, 5)))
    np.save(folder / f"{split}_labels.npy", rng.integers(0, 2, (total, 4)))
    np.save(folder / f"{split}_graph_id.npy", owner)


def test_ppi_files(tmp_path):
    for split in ("train", "valid", "test"):
        write_ppi(tmp_path, split, (3, 2))
    config = experiment.get_config("ppi")
    config.data.path = str(tmp_path)
    splits, _ = experiment.load(config.data, 0)
    assert splits["train"].labels.shape == (2, 3, 4) and splits["validation"].features.shape == (2, 3, 5)
    assert splits["train"].mask.tolist() == [[True] * 3, [True, True, False]]
    features = np.load(tmp_path / "train_feats.npy")
    np.testing.assert_allclose(splits["train"].features[1, :2], features[3:], rtol=1e-6)
    write_ppi(tmp_path, "test", (3, 2), damage=[{"source": 0, "target": 4}])
    with pytest.raises(ValueError, match=r"test_graph\.json: an edge connects two graphs"):
        experiment.load(config.data, 0)
    np.save(tmp_path / "test_feats.npy", np.where(np.arange(5)[:, None] == 3, np.nan, np.zeros((5, 5))))
    with pytest.raises(ValueError, match=r"test_feats\.npy: row 3 is not finite"):
        experiment.load(config.data, 0)
    np.save(tmp_path / "test_feats.npy", np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"test_\*: 4 rows of features, 5 rows of labels"):
        experiment.load(config.data, 0)
    (tmp_path / "test_graph.json").unlink()
    with pytest.raises(ValueError, match=r"test_\*: not PPI files"):
        experiment.load(config.data, 0)


def test_ppi_files_with_nodes_in_another_order(tmp_path):
    """Rows follow the ids 0 to 4, whatever the order of the nodes and whether edges are of ids or positions."""
    for split in ("train", "valid", "test"):
        write_ppi(tmp_path, split, (3, 2))
    expected = read_ppi(tmp_path, "test")
    ids, file = [3, 1, 0, 2, 4], tmp_path / "test_graph.json"
    links = json.loads(file.read_text())["links"]
    by_place = [{key: ids.index(link[key]) for key in link} for link in links]
    in_order = sorted(links, key=lambda link: ids.index(link["source"]))
    for key, edges in (("edges", links), ("links", in_order), ("links", sorted(by_place, key=lambda e: e["source"]))):
        file.write_text(json.dumps({"directed": True, "nodes": [{"id": i} for i in ids], key: edges}))
        for found, wanted in zip(read_ppi(tmp_path, "test"), expected, strict=True):
            edges_of = [sorted(zip(g.source.tolist(), g.destination.tolist(), strict=True)) for g in (found, wanted)]
            assert edges_of[0] == edges_of[1]


def test_eval_only_tests_other_graphs(tmp_path):
    for split in ("train", "valid", "test"):
        write_ppi(tmp_path, split, (3, 2))
    config = experiment.get_config("ppi")
    config.update_from_flattened_dict(
        {"data.path": str(tmp_path), "model.widths": (2,), "model.heads": (2, 1), "optim.runs": 1, "train.steps": 1,
         "optim.batch_size": 1, "optim.epochs_per_step": 2}
    )  # fmt: skip
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    other = shutil.copytree(tmp_path, tmp_path / "other", ignore=shutil.ignore_patterns("run"))
    write_ppi(other, "test", (4, 3, 2))
    config.eval.path = str(other)
    _, again = app.run(config, experiment.build, workdir=tmp_path / "run", eval_only=True, quiet=True)
    assert (report.arrays["logits"].shape, again.arrays["logits"].shape) == ((1, 6, 4), (1, 12, 4))
    assert report.metrics["validation_micro_f1"] == again.metrics["validation_micro_f1"]


WEIGHTS = "(?!.*Adam)(conv1d|BiasAdd).*"  # without the optimizer's


@pytest.fixture(scope="module")
def cora(test_data):
    data = read_planetoid(test_data / "planetoid", "cora")
    return gat.neighborhood(data.source, data.destination, 2708), gcn.SparseFeatures.from_dense(
        gcn.row_normalized(data.features)
    )


def test_the_authors_trained_network(cora, test_data):
    graph, features = cora
    assert len(graph.source) == 10_556 + 2708
    folder = test_data / "weights" / "gat_cora"
    net = gat.gat_citations(7)
    template = jax.eval_shape(lambda key: net.init(key, features, graph, train=False), jax.random.key(0))
    variables = tensorflow.gat(tensorflow.read_checkpoint(folder / "mod_cora.ckpt", WEIGHTS), template)
    reference = np.load(folder / "reference.npz")
    apply = jax.jit(lambda v: net.apply(v, features, graph, train=False, mutable="intermediates"))
    logits, inner = apply(variables)
    inner = inner["intermediates"]
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)
    np.testing.assert_allclose(inner["embeddings"][0], reference["hidden"], atol=1e-4)
    right = np.asarray(logits).argmax(1) == reference["labels"]
    assert right[reference["test_mask"]].mean() == pytest.approx(0.844)
    first = np.asarray(graph.destination) == 0
    assert np.asarray(graph.source)[first].tolist() == reference["attention_node0_neighbours"].tolist()
    np.testing.assert_allclose(inner["layer1"]["attention"][0][first], reference["attention_node0_layer1"].T, atol=1e-5)


def test_every_tensor_of_the_checkpoint(test_data):
    folder = test_data / "weights" / "gat_cora"
    tensors = tensorflow.read_checkpoint(folder / "mod_cora.ckpt", "(?!.*Adam).*")
    recorded = np.load(folder / "mod_cora_variables.npz")
    assert set(tensors) == {name.replace("__", "/") for name in recorded} | {"beta1_power", "beta2_power"}
    for name in recorded:
        np.testing.assert_array_equal(tensors[name.replace("__", "/")], recorded[name])


def test_damaged_checkpoints_raise(cora, test_data, tmp_path):
    for file in (test_data / "weights" / "gat_cora").glob("mod_cora.ckpt.[id]*"):
        shutil.copyfile(file, tmp_path / file.name)
    index, data = tmp_path / "mod_cora.ckpt.index", tmp_path / "mod_cora.ckpt.data-00000-of-00001"
    prefix, whole, numbers = tmp_path / "mod_cora.ckpt", index.read_bytes(), data.read_bytes()
    with pytest.raises(ValueError, match="no tensor name matches 'nothing'"):
        tensorflow.read_checkpoint(prefix, "nothing")
    net, (graph, features) = gat.gat_citations(6), cora
    template = jax.eval_shape(lambda key: net.init(key, features, graph, train=False), jax.random.key(0))
    with pytest.raises(ValueError, match=r"params/output/kernel gives \(1, 64, 7\)"):
        tensorflow.gat(tensorflow.read_checkpoint(prefix, WEIGHTS), template)
    data.write_bytes(numbers[:4] + b"\1" + numbers[5:])
    with pytest.raises(ValueError, match=r"tensor BiasAdd/biases: mod_cora.*: checksum mismatch"):
        tensorflow.read_checkpoint(prefix, "BiasAdd/biases")
    data.write_bytes(numbers[:16])
    with pytest.raises(ValueError, match="is truncated, 16 bytes are missing"):
        tensorflow.read_checkpoint(prefix, "BiasAdd/biases")
    for place in (1, 700, len(whole) - 47, len(whole) - 1):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="not a readable TensorFlow checkpoint"):
            tensorflow.read_checkpoint(prefix)
    index.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="no footer of a table"):
        tensorflow.read_checkpoint(prefix)
    with pytest.raises(ValueError, match=r"absent\.index"):
        tensorflow.read_checkpoint(tmp_path / "absent")
