"""GroupFace: learning latent groups and constructing group-based representations for face recognition.

Kim, Park, Roh, Shin. CVPR 2020. arXiv:2005.10497.
A decision network assigns faces to latent groups without labels, and each group has a branch that adds to the feature.
Group labels are the network's own decisions after normalisation: the label is the group whose probability exceeds its
expectation most, which keeps all groups in use.

There is no official code. Choices not specified in our sources: the widths of the decision network's three dense layers
(256, 256, K; PReLU between them); the output of the second, without normalisation, is the feature u of the group-aware
similarity; the window of the expectation includes the current batch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.nn.init import torch_default
from facejax.nn.norm import PReLU

Ensemble = Literal["soft", "hard", "none"]


class Representation(NamedTuple):
    """Output of the network.

    Attributes:
      embedding: [N, D], not normalised.
      logits: [N, K], of the groups.
      decision: [N, H], the feature u of the decision network.
    """

    embedding: jax.Array
    logits: jax.Array
    decision: jax.Array


class GroupDecision(nn.Module):
    """Three dense layers from the instance embedding to the feature u and the group logits.

    Attributes:
      groups: number K of groups.
      hidden: widths of the first two layers.
    """

    groups: int = 32
    hidden: tuple[int, int] = (256, 256)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N, D] -> u [N, H], logits [N, K]."""
        for i, width in enumerate(self.hidden):
            x = PReLU(name=f"prelu{i}")(nn.Dense(width, kernel_init=torch_default, name=f"fc{i}")(x))
        return x, nn.Dense(self.groups, kernel_init=torch_default, name=f"fc{len(self.hidden)}")(x)


class GroupFace(nn.Module):
    """A shared feature, an instance branch, K group branches and the decision network.

    Attributes:
      backbone: images [N, H, W, 3] -> shared features [N, S]; S is 4096 in the paper.
      groups: number K of groups.
      embedding_size: dimension D of every branch.
      hidden: widths of the decision network.
      ensemble: "soft" adds all branches weighted by the group probabilities (S-GroupFace), "hard" adds the branch of
        the most probable group (H-GroupFace), "none" adds nothing: the instance branch alone.
    """

    backbone: nn.Module
    groups: int = 32
    embedding_size: int = 512
    hidden: tuple[int, int] = (256, 256)
    ensemble: Ensemble = "soft"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Representation:
        """[N, H, W, 3] -> embeddings and groups."""
        shared = self.backbone(images, train=train)
        instance = nn.Dense(self.embedding_size, kernel_init=torch_default, name="instance")(shared)
        branches = nn.DenseGeneral((self.groups, self.embedding_size), kernel_init=torch_default, name="branches")(
            shared
        )
        decision, logits = GroupDecision(self.groups, self.hidden, name="decision")(instance)
        added = combine(branches, jax.nn.softmax(logits), self.ensemble)
        return Representation(instance + added, logits, decision)


def combine(branches: jax.Array, probabilities: jax.Array, ensemble: Ensemble) -> jax.Array:
    """Group-aware part of the embedding: combines the branches. [N, K, D] and [N, K] -> [N, D]."""
    if ensemble not in get_args(Ensemble):
        raise ValueError(f"combine: ensemble {ensemble!r}, expected one of {get_args(Ensemble)}")
    if branches.ndim != 3 or probabilities.shape != branches.shape[:2]:
        raise ValueError(
            f"combine: branches {branches.shape} and probabilities {probabilities.shape}, expected [N, K, D] and [N, K]"
        )
    if ensemble == "none":
        return jnp.zeros_like(branches[:, 0])
    if ensemble == "soft":
        return jnp.einsum("nk,nkd->nd", probabilities, branches)
    best = jnp.argmax(probabilities, 1)
    return jnp.take_along_axis(branches, best[:, None, None], 1)[:, 0]


def observe(window: jax.Array, mean: jax.Array) -> jax.Array:
    """Adds the mean probabilities of a batch to the window and drops the oldest.

    Args:
      window: [B, K], newest first; zero rows are empty.
      mean: [K], over the images of all devices.
    """
    if window.shape[1:] != mean.shape:
        raise ValueError(f"observe: window {window.shape} and mean {mean.shape}, expected [B, K] and [K]")
    return jnp.roll(window, 1, 0).at[0].set(lax.stop_gradient(mean))


def expectation(window: jax.Array) -> jax.Array:
    """E[p] over the batches in the window; 1 / K for an empty window. [B, K] -> [K] with sum 1."""
    total = window.sum(0)
    count = total.sum()
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 1 / total.shape[0])


def normalized_probabilities(probabilities: jax.Array, expected: jax.Array) -> jax.Array:
    """p~ = (p - E[p]) / K + 1 / K, whose expectation is 1 / K for every group. [N, K], [K] -> [N, K]."""
    groups = probabilities.shape[-1]
    if expected.shape != (groups,):
        raise ValueError(
            f"normalized_probabilities: an expectation of shape {expected.shape}, expected [K] = [{groups}]"
        )
    return (probabilities - expected) / groups + 1 / groups


def self_distributed_labels(probabilities: jax.Array, expected: jax.Array) -> jax.Array:
    """The group with the largest normalised probability; no gradient. [N, K], [K] -> [N] int."""
    return lax.stop_gradient(jnp.argmax(normalized_probabilities(probabilities, expected), -1))


def group_aware_similarity(
    cosine: jax.Array, distance: jax.Array, *, beta: float = 0.1, gamma: float = 1 / 3
) -> jax.Array:
    """S* = cos(v_a, v_b) - beta ||u_a - u_b||^gamma: a difference of groups lowers the similarity.

    Args:
      cosine: [...], of the embeddings of pairs.
      distance: [...], between their features u, at least 0.
      beta, gamma: as in the paper.
    """
    return cosine - beta * distance**gamma
