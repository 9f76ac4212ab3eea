"""DA-Net: embeddings refined by neighbours and by density chains, sequences of ever denser faces.

Guo, Xu, Chen, Zhang, Wang & Zhao, Density-Aware Feature Embedding for Face Clustering. CVPR 2020, pp. 6697-6705.
A graph convolution aggregates the neighbourhood of a face; an LSTM reads the chain from the face up to a peak of
density; an ordinary density-based clusterer then processes the refined embeddings.

Only the abstract was available: it names the local graph convolution, the density chains, the LSTM over them and the
clusterer. Density, the step of a chain, widths, the sum of both parts and the loss are choices made here: neither code
nor a table of settings is published.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.nn.graph import GraphConv
from facejax.ops import vectors
from facejax.ops.knn import Neighbours


class Chains(NamedTuple):
    """Paths up to a peak of density.

    Attributes:
      nodes: [N, L] int32, the node itself first; the last node is repeated up to L.
      lengths: [N] int32, 1 to L.
    """

    nodes: np.ndarray
    lengths: np.ndarray


def density_chains(neighbours: Neighbours, density: np.ndarray, length: int) -> Chains:
    """Chains of steps to the nearest strictly denser neighbour, until there is none or `length` nodes are reached.

    The density rises at every step, so no chain returns to a node.

    Args:
      neighbours: of N nodes.
      density: [N].
      length: L.
    """
    if length < 1 or density.shape != (len(neighbours.ids),):
        raise ValueError(
            f"density chains of {length} nodes with densities {density.shape}: expected 1 or more, "
            f"[{len(neighbours.ids)}]"
        )
    denser = density[neighbours.ids] > density[:, None]
    nodes = np.arange(len(density), dtype=np.int32)
    above = np.where(denser.any(1), neighbours.ids[nodes, denser.argmax(1)], nodes)
    chain = [nodes]
    for _ in range(length - 1):
        chain.append(above[chain[-1]])
    chain = np.stack(chain, 1)
    return Chains(chain, 1 + (np.diff(chain, axis=1) != 0).sum(1, dtype=np.int32))


class DANet(nn.Module):
    """Embeddings of length 1 from local features and, with `chains`, from the LSTM's end states.

    Attributes:
      hidden: width of the graph convolution, and of the LSTM in each direction.
      features: D' of the embeddings.
      chains: False uses local features alone.
    """

    hidden: int = 256
    features: int = 256
    chains: bool = True

    @nn.compact
    def __call__(self, features: jax.Array, aggregated: jax.Array, nodes: jax.Array, lengths: jax.Array) -> jax.Array:
        """[B, D'] of B nodes.

        Args:
          features: [N, D] of length 1, of all nodes.
          aggregated: [N, D], their means over neighbours: `propagate` on the affinity graph. No trained layer
            precedes it, so it is constant.
          nodes: [B, L], chains of the B nodes.
          lengths: [B].
        """
        nodes = nodes if self.chains else nodes[:, :1]
        local = GraphConv(self.hidden, name="local")(features[nodes], aggregated[nodes])
        total = nn.Dense(self.features, name="near")(local[:, 0])
        if self.chains:
            up, down = (nn.RNN(nn.OptimizedLSTMCell(self.hidden), name=name) for name in ("up", "down"))
            ends, _ = nn.Bidirectional(up, down, return_carry=True)(local, seq_lengths=lengths)
            total += nn.Dense(self.features, name="far")(jnp.concatenate([hidden for _, hidden in ends], 1))
        return vectors.unit(total, 1e-6)


def identity_loss(embeddings: jax.Array, centres: jax.Array, labels: jax.Array, scale: float = 30.0) -> jax.Array:
    """Cross-entropy [B] of scaled cosines between embeddings [B, D'] of length 1 and identities' centres [C, D']."""
    log_p = nn.log_softmax(scale * embeddings @ vectors.unit(centres, 1e-6).T)
    return -jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
