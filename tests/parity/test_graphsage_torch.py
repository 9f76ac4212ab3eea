"""Aggregators and GCN propagation compared with torch_geometric and PyTorch's LSTM, on graphs with special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.graph import gcn, graphsage
from facejax.ops import graph as graphs

torch = pytest.importorskip("torch", reason="needs the parity extra")
layers = pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric")
pytestmark = pytest.mark.parity

NODES, FEATURES, WIDTH = 9, 5, 3


@pytest.fixture(scope="module")
def edges():
    """Directed edges; 7 and 8 have none, 0 and 3 have self-loops, one edge occurs twice and one three times."""
    source = np.array([0, 1, 2, 3, 3, 4, 4, 4, 5, 6, 1, 2, 6])
    destination = np.array([0, 0, 1, 3, 2, 2, 2, 2, 3, 3, 4, 5, 6])
    return np.append(source, 1), np.append(destination, 0)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(NODES, FEATURES)).astype(np.float32)


def every_neighbor(source, destination):
    graph = graphs.make_graph(source, destination, NODES)
    most = int(np.bincount(destination).max())
    return graphsage.sample_blocks(jax.random.key(0), graph, graphs.offsets(graph), jnp.arange(NODES), (most,))[0]


def ours(name, block, features, params):
    """Values, and gradients of a weighted sum of cosines with respect to parameters and features."""
    layer = graphsage.AGGREGATORS[name](WIDTH, FEATURES)
    weights = jnp.arange(1.0, NODES + 1)[:, None]
    apply = lambda p, x: layer.apply({"params": p}, x, block)  # noqa: E731
    loss = lambda p, x: jnp.sum(weights * jnp.cos(apply(p, x)))  # noqa: E731
    return apply(params, features), *jax.grad(loss, (0, 1))(params, jnp.asarray(features))


def weighted(values):
    return (torch.arange(1.0, NODES + 1)[:, None] * torch.cos(values)).sum()


def kernel(linear, gradient=False):
    return (linear.weight.grad if gradient else linear.weight.detach()).numpy().T


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "aggregation"), [("mean", "mean"), ("maxpool", "max"), ("meanpool", "mean")])
def test_sage(edges, features, name, aggregation):
    """PyG adds the two halves that we concatenate; the reference subtracts its self half, then concatenates."""
    torch.manual_seed(0)
    pooled = name != "mean"
    theirs = layers.SAGEConv(FEATURES, WIDTH, aggregation, project=pooled, bias=False)
    x = torch.tensor(features, requires_grad=True)
    index = torch.tensor(np.stack(edges))
    near = theirs(x, index) - theirs.lin_r(x)
    joined = torch.cat([theirs.lin_r(x), near], 1)
    weighted(joined).backward()
    params = {"own": {"kernel": kernel(theirs.lin_r)}, "near": {"kernel": kernel(theirs.lin_l)}}
    if pooled:
        params["pool"] = {"kernel": kernel(theirs.lin), "bias": theirs.lin.bias.detach().numpy()}
    values, gradients, features_gradient = ours(name, every_neighbor(*edges), features, params)
    close(values, joined.detach())
    close(features_gradient, x.grad)
    close(gradients["own"]["kernel"], kernel(theirs.lin_r, gradient=True))
    close(gradients["near"]["kernel"], kernel(theirs.lin_l, gradient=True))
    if pooled:
        close(gradients["pool"]["kernel"], kernel(theirs.lin, gradient=True))
        close(gradients["pool"]["bias"], theirs.lin.bias.grad)


def test_gcn_aggregator_is_the_mean_with_a_loop_added(edges, features):
    torch.manual_seed(0)
    theirs = layers.SAGEConv(FEATURES, 2 * WIDTH, "mean", root_weight=False, bias=False)
    x = torch.tensor(features, requires_grad=True)
    values = theirs(x, torch.tensor(np.stack(graphs.add_self_loops(*edges, NODES))))
    weighted(values).backward()
    params = {"both": {"kernel": kernel(theirs.lin_l)}}
    found, gradients, features_gradient = ours("gcn", every_neighbor(*edges), features, params)
    close(found, values.detach())
    close(features_gradient, x.grad)
    close(gradients["both"]["kernel"], kernel(theirs.lin_l, gradient=True))


def test_lstm_aggregator(edges, features):
    """PyTorch has gate order input, forget, cell, output, and two biases."""
    torch.manual_seed(0)
    lstm, near, own = torch.nn.LSTM(FEATURES, FEATURES), *(torch.nn.Linear(FEATURES, WIDTH, False) for _ in range(2))
    block = every_neighbor(*edges)
    x = torch.tensor(features, requires_grad=True)
    states = []
    for neighbors, mask in zip(np.asarray(block.neighbors), np.asarray(block.mask), strict=True):
        state = lstm(x[torch.tensor(neighbors[mask])])[0][-1] if mask.any() else torch.zeros(FEATURES)
        states.append(state)
    joined = torch.cat([own(x), near(torch.stack(states))], 1)
    weighted(joined).backward()

    def ordered(values):
        into, keep, new, out = np.split(np.asarray(values), 4, -1)
        return np.concatenate([into, new, keep, out], -1)

    def stacked(*parts):
        return ordered(np.concatenate([part.T for part in parts]))

    forget = np.repeat(np.array([0.0, 0, 1, 0], np.float32), FEATURES)
    params = {
        "kernel": stacked(lstm.weight_ih_l0.detach().numpy(), lstm.weight_hh_l0.detach().numpy()),
        "bias": ordered((lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().numpy()) - forget,
        "own": {"kernel": kernel(own)},
        "near": {"kernel": kernel(near)},
    }
    values, gradients, features_gradient = ours("lstm", block, features, params)
    close(values, joined.detach())
    close(features_gradient, x.grad)
    close(gradients["kernel"], stacked(lstm.weight_ih_l0.grad.numpy(), lstm.weight_hh_l0.grad.numpy()))
    close(gradients["bias"], ordered(lstm.bias_ih_l0.grad.numpy()))


@pytest.mark.parametrize("undirected", [True, False])
def test_gcn_propagation(edges, features, undirected):
    """PyG adds no second self-loop to a node; ours are added to a graph without self-loops."""
    torch.manual_seed(0)
    source, destination = graphs.undirected(*edges) if undirected else edges
    source, destination = source[source != destination], destination[source != destination]
    theirs = layers.GCNConv(FEATURES, WIDTH, bias=False)
    x = torch.tensor(features, requires_grad=True)
    values = theirs(x, torch.tensor(np.stack([source, destination])))
    weighted(values).backward()
    graph = gcn.renormalized(source, destination, NODES)
    weights = jnp.arange(1.0, NODES + 1)[:, None]
    apply = lambda w, x: graphs.propagate(graph, x @ w)  # noqa: E731
    w = kernel(theirs.lin)
    close(apply(w, features), values.detach())
    loss = lambda w, x: jnp.sum(weights * jnp.cos(apply(w, x)))  # noqa: E731
    for_kernel, for_features = jax.grad(loss, (0, 1))(jnp.asarray(w), jnp.asarray(features))
    close(for_kernel, kernel(theirs.lin, gradient=True))
    close(for_features, x.grad)
