import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops import graph as graphs
from facejax.train import parallel


@pytest.fixture(scope="module")
def graph():
    """Nine nodes: 7 and 8 have no edges, 0 has a self-loop; one edge occurs twice, one is padding."""
    source = np.array([1, 2, 0, 3, 3, 4, 5, 6, 2, 5, 0])
    destination = np.array([0, 0, 0, 1, 1, 2, 3, 3, 6, 6, 8])
    weight = np.array([1.0, 2, 3, 1, 1, 0.5, 2, 1, 1, 4, 0])
    return graphs.make_graph(source, destination, 9, weight)


@pytest.fixture(scope="module")
def star():
    """Node 0 has twelve neighbours, 13 has one, 14 none."""
    return graphs.make_graph(np.append(np.arange(1, 13), 5), np.append(np.zeros(12, int), 13), 15)


def by_node(graph, values):
    destination, live = np.asarray(graph.destination), np.asarray(graph.weight) > 0
    return [np.asarray(values)[(destination == node) & live] for node in range(graph.num_nodes)]


@pytest.mark.parametrize("name", ["mean", "max"])
def test_reductions_equal_loops_in_values_and_gradients(graph, name):
    values = jax.random.normal(jax.random.key(0), (11, 2, 3)) - 1
    ours = getattr(graphs, f"segment_{name}")
    expected = np.stack([getattr(part, name)(0) if len(part) else np.zeros((2, 3)) for part in by_node(graph, values)])
    np.testing.assert_allclose(ours(values, graph), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours(values, graph)[7:], 0)
    gradient = jax.grad(lambda v: jnp.sum(ours(v, graph) ** 3))(values)
    chex.assert_tree_all_finite(gradient)
    assert not gradient[-1].any()  # padding
    step = 1e-2 * jax.random.normal(jax.random.key(1), values.shape)
    difference = jnp.sum(ours(values + step, graph) ** 3) - jnp.sum(ours(values - step, graph) ** 3)
    np.testing.assert_allclose(difference / 2, jnp.sum(gradient * step), rtol=2e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_hub_of_many_neighbours_in_16_bits(dtype):
    hub = graphs.make_graph(np.arange(1, 4001), np.zeros(4000, int), 4001)
    values = jnp.full((4000, 1), 0.5, dtype)
    total = graphs.segment_sum(values, hub)
    assert total.dtype == dtype and float(total[0, 0]) == 2000
    assert float(graphs.segment_mean(values, hub)[0, 0]) == 0.5


def test_equal_maxima_share_the_gradient(graph):
    gradient = jax.grad(lambda v: graphs.segment_max(v, graph).sum())(jnp.zeros(11))
    np.testing.assert_allclose(graphs.segment_sum(gradient, graph), [1, 1, 1, 1, 0, 0, 1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 11, 50])
def test_propagation_in_chunks_equals_the_dense_product(graph, chunk):
    matrix = np.zeros((9, 9), np.float32)
    np.add.at(matrix, (np.asarray(graph.destination), np.asarray(graph.source)), np.asarray(graph.weight))
    features = jax.random.normal(jax.random.key(0), (9, 5))

    def ours(x):
        return jnp.sum(jnp.sin(graphs.propagate(graph, x, chunk=chunk)))

    np.testing.assert_allclose(graphs.propagate(graph, features, chunk=chunk), matrix @ features, rtol=1e-5, atol=1e-5)
    gradients = jax.grad(ours)(features), jax.grad(lambda x: jnp.sum(jnp.sin(matrix @ x)))(features)
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_offsets_delimit_the_edges_of_each_node(graph):
    assert graphs.offsets(graph).tolist() == [0, 3, 5, 6, 8, 8, 8, 10, 10, 11]
    assert graphs.offsets(graphs.make_graph(np.zeros(0), np.zeros(0), 2)).tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def draws(star):
    """Five neighbours of 0, 13, 14 and 0 again, 3000 times."""
    starts, nodes = graphs.offsets(star), jnp.array([0, 13, 14, 0])
    keys = jax.random.split(jax.random.key(0), 3000)
    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(lambda key: graphs.sample_neighbors(key, star, starts, nodes, 5)))(keys)
    )


def test_samples_are_distinct_neighbours(draws):
    found, mask = draws
    hub = np.sort(found[:, 0], axis=1)
    assert mask[:, 0].all()
    assert (np.diff(hub, axis=1) > 0).all()
    assert hub.min() == 1 and hub.max() == 12


def test_samples_are_uniform(draws):
    """Frequencies of neighbours (5 / 12) and pairs (20 / 132), within five standard deviations."""
    held = (draws[0][:, 0, :, None] == np.arange(1, 13)).any(1)
    p = 5 / 12
    np.testing.assert_allclose(held.mean(0), p, atol=5 * np.sqrt(p * (1 - p) / 3000))
    pairs = (held.T.astype(float) @ held / 3000)[~np.eye(12, dtype=bool)]
    q = 20 / 132
    np.testing.assert_allclose(pairs, q, atol=5 * np.sqrt(q * (1 - q) / 3000))


def test_equal_nodes_of_a_batch_draw_independently(draws):
    first, last = np.sort(draws[0][:, 0]), np.sort(draws[0][:, 3])
    assert (first == last).all(1).mean() < 0.01  # expected 1 / 792


def test_few_neighbours_are_all_returned_and_padding_is_masked(draws, star):
    found, mask = draws
    assert (found[:, 1, 0] == 5).all() and (found[:, 1, 1:] == 13).all()
    assert (mask[:, 1] == [True, False, False, False, False]).all()
    assert (found[:, 2] == 14).all() and not mask[:, 2].any()
    every, there = graphs.sample_neighbors(jax.random.key(3), star, graphs.offsets(star), jnp.array([0]), 12)
    assert sorted(every[0].tolist()) == list(range(1, 13)) and there.all()


def test_double_edges_are_two_neighbours_and_equal_keys_give_equal_draws(graph):
    starts, nodes = graphs.offsets(graph), jnp.array([1, 0])
    found = graphs.sample_neighbors(jax.random.key(0), graph, starts, nodes, 2)
    assert found[0][0].tolist() == [3, 3] and found[1].all()
    chex.assert_trees_all_equal(found, graphs.sample_neighbors(jax.random.key(0), graph, starts, nodes, 2))


def test_samples_of_a_graph_without_edges():
    empty = graphs.make_graph(np.zeros(0), np.zeros(0), 3)
    found, mask = graphs.sample_neighbors(jax.random.key(0), empty, graphs.offsets(empty), jnp.arange(3), 2)
    assert found.tolist() == [[0, 0], [1, 1], [2, 2]] and not mask.any()


@pytest.mark.parametrize(("nodes", "parts", "chunk"), [(40, 8, 0), (41, 8, 5), (10, 3, 0), (5, 8, 0)])
def test_parts_on_several_devices_equal_the_whole(nodes, parts, chunk):
    rng = np.random.default_rng(0)
    graph = graphs.make_graph(*rng.integers(0, nodes, (2, 3 * nodes)), nodes, rng.uniform(size=3 * nodes))
    features = jnp.asarray(rng.normal(size=(nodes, 4)), jnp.float32)
    cut = graphs.split(graph, parts)
    if parts == jax.device_count():
        cut = parallel.shard(cut)
        assert len(cut.source.sharding.device_set) == parts
    run = lambda graph, x: jnp.sum(graphs.propagate(graph, x, chunk=chunk) ** 2, 1)  # noqa: E731
    np.testing.assert_allclose(run(cut, features), run(graph, features), rtol=1e-5, atol=1e-6)
    found, expected = (jax.grad(lambda x, g=g: run(g, x).sum())(features) for g in (cut, graph))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
