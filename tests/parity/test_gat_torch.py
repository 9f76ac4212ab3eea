"""GATLayer compared with torch_geometric's GATConv: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.graph import gat
from facejax.ops import graph as graphs

torch = pytest.importorskip("torch", reason="needs the parity extra")
pyg = pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric")
pytestmark = pytest.mark.parity

NODES = 9  # the last two have only their self-loops


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("duplicates", [False, True])
def test_values_attention_and_gradients(concat, duplicates):
    rng = np.random.default_rng(0)
    edges = np.concatenate(
        [rng.integers(0, NODES - 2, (2, 20)), [[4, 4], [4, 4]]], 1
    )  # with self-loops, one of them twice
    if duplicates:  # GATConv keeps duplicates; both replace self-loops by one per node
        edges = np.concatenate([edges, edges[:, :6]], 1)
        plain = edges[:, edges[0] != edges[1]]
        graph = graphs.make_graph(*graphs.add_self_loops(*plain, NODES), NODES)
    else:
        edges = np.unique(edges, axis=1)
        graph = gat.neighborhood(*edges, NODES)
    x = rng.normal(size=(NODES, 5)).astype(np.float32)
    theirs = pyg.GATConv(5, 4, heads=3, concat=concat)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32)))
    named = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    params = {
        "kernel": named["lin.weight"].reshape(3, 4, 5).swapaxes(1, 2),
        "source": named["att_src"][0][..., None], "destination": named["att_dst"][0][..., None],
        "source_bias": np.zeros(3, np.float32), "destination_bias": np.zeros(3, np.float32),
        "bias": named["bias"].reshape(3, 4) if concat else np.tile(named["bias"], (3, 1)),
    }  # fmt: skip
    net = gat.GATLayer(4, 3, concat=concat)

    def ours(params, x):
        out, inner = net.apply({"params": params}, x, graph, train=False, mutable="intermediates")
        return jnp.sum(jnp.sin(out)), (out, inner["intermediates"]["attention"][0])

    gradients, (out, attention) = jax.grad(ours, argnums=(0, 1), has_aux=True)(params, jnp.asarray(x))
    inputs = torch.from_numpy(x).requires_grad_()
    expected, (ends, alpha) = theirs(inputs, torch.from_numpy(edges), return_attention_weights=True)
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-5)
    order = np.lexsort((ends[0], ends[1]))
    assert len(order) == len(graph.source)
    np.testing.assert_allclose(attention, alpha.detach().numpy()[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], inputs.grad, rtol=1e-3, atol=1e-4)
    wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    found = {
        "lin.weight": gradients[0]["kernel"].swapaxes(1, 2).reshape(12, 5),
        "att_src": gradients[0]["source"][None, ..., 0],
        "att_dst": gradients[0]["destination"][None, ..., 0],
        "bias": gradients[0]["bias"].ravel() if concat else gradients[0]["bias"].sum(0),
    }
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-3, atol=1e-4, err_msg=name)
