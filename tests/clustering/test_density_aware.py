import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import density_aware as experiment
from facejax.clustering import density_aware
from facejax.data.synthetic.embeddings import hypersphere
from facejax.ops import knn
from facejax.ops.graph import propagate
from facejax.train import app
from facejax.train.logging import read_metrics


@pytest.fixture(scope="module")
def people():
    features = hypersphere(12, 0, width=8).features
    near = knn.knn(features, 6)
    return features, near, knn.density(near)


@pytest.mark.parametrize("length", [1, 2, 8])
def test_chains_rise_to_a_peak_or_to_their_full_length(people, length):
    _, near, density = people
    chains = density_aware.density_chains(near, density, length)
    for i, (nodes, count) in enumerate(zip(*chains, strict=True)):
        chain = nodes[:count]
        assert chain[0] == i and (np.diff(density[chain]) > 0).all()
        assert (nodes[count:] == chain[-1]).all()
        denser = near.ids[chain[-1]][density[near.ids[chain[-1]]] > density[chain[-1]]]
        assert count == length or not len(denser)
        for here, above in itertools.pairwise(chain):
            assert above == next(j for j in near.ids[here] if density[j] > density[here])


def test_equal_densities_make_no_circle():
    near = knn.knn(np.ones((5, 3)), 3)
    chains = density_aware.density_chains(near, knn.density(near), 4)
    assert chains.lengths.tolist() == [1] * 5


def test_a_node_without_neighbours_is_its_own_peak():
    near = knn.knn(np.eye(4), 3)
    chains = density_aware.density_chains(near, knn.density(near), 3)
    assert chains.nodes.tolist() == [[i] * 3 for i in range(4)] and chains.lengths.tolist() == [1] * 4


def test_one_node():
    near = knn.knn(np.ones((1, 3)), 1)
    assert density_aware.density_chains(near, knn.density(near), 4).nodes.tolist() == [[0] * 4]


@pytest.fixture(scope="module")
def small(people):
    features, near, density = people
    chains = density_aware.density_chains(near, density, 5)
    inputs = jnp.asarray(features), propagate(knn.affinity(near), jnp.asarray(features))
    net = density_aware.DANet(7, 4)
    variables = net.init(jax.random.key(0), *inputs, *(jnp.asarray(x[:2]) for x in chains))
    shake = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return net, jax.tree.map(shake, variables), inputs, chains


def lstm(params, sequence):
    """The state after the last row."""
    cell = hidden = np.zeros(7)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    gate = {k: lambda x, h, k=k: x @ params[f"i{k}"]["kernel"] + h @ params[f"h{k}"]["kernel"] + params[f"h{k}"]["bias"]
            for k in "ifgo"}  # fmt: skip
    for row in sequence:
        new = np.tanh(gate["g"](row, hidden))
        cell = sigmoid(gate["f"](row, hidden)) * cell + sigmoid(gate["i"](row, hidden)) * new
        hidden = sigmoid(gate["o"](row, hidden)) * np.tanh(cell)
    return hidden


def test_equals_loops(small):
    """Both directions read a chain up to its true length."""
    net, variables, (features, aggregated), chains = small
    found = net.apply(variables, features, aggregated, *map(jnp.asarray, chains))
    params = jax.tree.map(np.asarray, variables["params"])
    dense = lambda x, p: x @ p["kernel"] + p["bias"]  # noqa: E731
    local = np.maximum(dense(np.concatenate([features, aggregated], 1), params["local"]["Dense_0"]), 0)
    forward, backward = (params[f"OptimizedLSTMCell_{i}"] for i in range(2))
    assert set(chains.lengths.tolist()) > {1}
    for i, (nodes, count) in enumerate(zip(*chains, strict=True)):
        sequence = local[nodes[:count]]
        far = np.concatenate([lstm(forward, sequence), lstm(backward, sequence[::-1])])
        total = dense(local[i], params["near"]) + dense(far, params["far"])
        np.testing.assert_allclose(found[i], total / np.linalg.norm(total), rtol=1e-4, atol=1e-5)


def test_without_chains_only_the_neighbourhood_counts(small):
    net, variables, inputs, chains = small
    local = density_aware.DANet(7, 4, chains=False)
    params = {k: variables["params"][k] for k in ("local", "near")}
    found = local.apply({"params": params}, *inputs, *map(jnp.asarray, chains))
    silent = {**variables["params"], "far": jax.tree.map(jnp.zeros_like, variables["params"]["far"])}
    expected = net.apply({"params": silent}, *inputs, *map(jnp.asarray, chains))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_share_of_faces_without_near_neighbours():
    """Of four faces with two near ones each and a fifth far away, a share of 0.2 leaves the fifth alone."""
    near = knn.knn(np.array([[1, 0, 0.0], [1, 0.1, 0], [1, 0, 0.1], [1, 0.1, 0.1], [0, 0.3, 1]]), 4)
    found = experiment.cluster(near, 0.2, 2)
    assert len(set(found[:4])) == 1 and found[4] != found[0]
    assert len(set(experiment.cluster(near, 0.0, 100))) <= 2
    assert len(set(experiment.cluster(near, 1.0, 1))) == 5


def test_identity_loss_by_hand():
    embeddings, centres = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 5.0]])
    loss = density_aware.identity_loss(embeddings, centres, jnp.array([0]), scale=3.0)
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-3))], rtol=1e-5)
    gradient = jax.grad(lambda c: density_aware.identity_loss(embeddings, c, jnp.array([1])).sum())(0 * centres)
    assert nn.relu(jnp.abs(gradient)).max() < 1e9


SMALL = {
    "data.labelled": 30, "eval.people": 12, "graph.k": 6, "model.hidden": 8, "model.features": 8, "model.length": 4,
    "train.steps": 5, "train.batch_size": 32, "train.log_every": 5,
}  # fmt: skip


@pytest.mark.parametrize("preset", ["synthetic", "local", "components"])
def test_smoke(preset, tmp_path):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(SMALL)
    _, report = app.run(config, experiment.build, workdir=tmp_path, quiet=True)
    assert 0 < report.metrics["pairwise_f"] <= 1
    logged = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert bool(logged) == (preset != "components")


def test_bad_arguments_raise(people):
    with pytest.raises(ValueError, match="method is 'x': expected chains, local or none"):
        config = experiment.get_config()
        config.method = "x"
        experiment.build(config)
    with pytest.raises(ValueError, match=r"density chains of 0 nodes with densities \(3,\): expected 1 or more"):
        density_aware.density_chains(people[1], np.zeros(3), 0)
    with pytest.raises(ValueError, match=r"train\.batch_size is 9999: expected at most"):
        config = experiment.get_config()
        config.update_from_flattened_dict({**SMALL, "train.batch_size": 9999})
        experiment.build(config).init(jax.random.key(0))
