import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.graph import gcn
from facejax.ops import graph as graphs

torch = pytest.importorskip("torch")
geometric = pytest.importorskip("torch_geometric.nn")
pytestmark = pytest.mark.parity


def test_layer_equals_gcnconv_in_values_and_gradients():
    """A graph with an isolated node and a duplicate edge; PyG adds the self-loops itself."""
    rng = np.random.default_rng(0)
    source, destination = graphs.undirected(rng.integers(0, 14, 40), rng.integers(0, 14, 40))
    source, destination = np.r_[source, source[:1]], np.r_[destination, destination[:1]]
    features = rng.normal(size=(15, 6)).astype(np.float32)
    layer = geometric.GCNConv(6, 4, bias=False)
    inputs = torch.tensor(features, requires_grad=True)
    out = layer(inputs, torch.tensor(np.stack([source, destination])))
    out.cos().sum().backward()
    graph = gcn.renormalized(source, destination, 15)

    def ours(features, weight):
        spread = graphs.propagate(graph, features @ weight)
        return jnp.cos(spread).sum(), spread

    weight = jnp.asarray(layer.lin.weight.detach().numpy().T)
    (_, spread), slopes = jax.value_and_grad(ours, (0, 1), has_aux=True)(jnp.asarray(features), weight)
    np.testing.assert_allclose(spread, out.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slopes[0], inputs.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slopes[1].T, layer.lin.weight.grad, rtol=1e-4, atol=1e-5)


def test_polynomials_equal_chebconv():
    rng = np.random.default_rng(1)
    source, destination = graphs.undirected(rng.integers(0, 14, 40), rng.integers(0, 14, 40))
    features = rng.normal(size=(14, 6)).astype(np.float32)
    graph = gcn.scaled_laplacian(source, destination, 14)
    loops = np.asarray(graph.weight)[np.asarray(graph.source) == np.asarray(graph.destination)]
    largest = 2 / (1 + (loops[0] if len(loops) else 0.0))
    layer = geometric.ChebConv(6, 4, K=4, normalization="sym", bias=False)
    out = layer(
        torch.tensor(features), torch.tensor(np.stack([source, destination])), lambda_max=torch.tensor(float(largest))
    )
    weights = jnp.stack([jnp.asarray(lin.weight.detach().numpy().T) for lin in layer.lins])
    ours = gcn.chebyshev(graph, jnp.einsum("nf,kfh->knh", jnp.asarray(features), weights))
    np.testing.assert_allclose(ours, out.detach(), rtol=1e-3, atol=1e-4)
