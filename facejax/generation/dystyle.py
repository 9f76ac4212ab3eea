"""DyStyle: a dynamic network that edits several attributes of a StyleGAN2 code at once.

Li*, Cai*, Liu, Zhang, He, Hua, Yi. "DyStyle: dynamic neural network for multi-attribute-conditioned style editing".
WACV 2023. arXiv:2109.10737. In every layer of a W+ code each attribute that is edited has an expert, which makes a
proxy code from the layer's code and the attribute's target. Attention among the proxies of the edited attributes lets
each take account of the others; their sum changes the layer's code by a scale and a shift.

There is no public code. Choices of ours, where the text says nothing: widths and depth of the experts, parameters of
their own for every layer, queries, keys and values shared by a layer's experts, weights of the losses, the contrastive
loss as InfoNCE, optimizer. The text writes the fusion as an elementwise product; here a softmax weight is one number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from facejax.ops.vectors import unit

Dtype = Any

FACE_ATTRIBUTES = ("yaw", "pitch", "age", "glasses", "smile", "black_hair", "moustache", "closed_eyes", "open_mouth")
"""Of the paper's model of faces; the first three are numbers, the others are there or not."""
SLOPE = 0.2


def attention(queries: jax.Array, keys: jax.Array, active: jax.Array, *, scaled: bool = False) -> jax.Array:
    """Softmax of the products of queries and keys over the active experts.

    Args:
      queries, keys: [N, A, D].
      active: [N, A] bool.
      scaled: divide the products by sqrt(D), as the paper does not.

    Returns:
      [N, A, A] float32: row i holds the weights of the experts j for expert i. Inactive rows and columns are 0.
    """
    logits = jnp.einsum("nid,njd->nij", queries, keys, preferred_element_type=jnp.float32)
    if scaled:
        logits /= queries.shape[-1] ** 0.5
    both = active[:, :, None] & active[:, None, :]
    logits = jnp.where(both, logits, jnp.finfo(logits.dtype).min)
    powers = jnp.where(both, jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True))), 0.0)
    total = powers.sum(-1, keepdims=True)
    return powers / jnp.where(total > 0, total, 1.0)


def fuse(
    queries: jax.Array, keys: jax.Array, values: jax.Array, active: jax.Array, *, scaled: bool = False
) -> jax.Array:
    """The proxy of a layer: sum over active i of sum over active j of values[j] softmax_j(queries[i] . keys[j]).

    Args:
      queries, keys, values: [N, A, D].
      active, scaled: see `attention`.

    Returns:
      [N, D]; of one active expert its value, of none 0.
    """
    weights = attention(queries, keys, active, scaled=scaled).sum(1)
    return jnp.einsum("nj,njd->nd", weights.astype(values.dtype), jnp.where(active[..., None], values, 0))


class Expert(nn.Module):
    """A layer's code and an attribute's target to a proxy code.

    Attributes:
      hidden: widths of the hidden layers.
      dtype: of the computation.
    """

    hidden: Sequence[int] = (512, 512)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array, values: jax.Array) -> jax.Array:
        """[N, D], [N] -> [N, D]."""
        x = jnp.concatenate([codes, values[:, None]], -1)
        for width in self.hidden:
            x = nn.leaky_relu(nn.Dense(width, dtype=self.dtype)(x), SLOPE)
        return nn.Dense(codes.shape[-1], dtype=self.dtype)(x)


class LayerEditor(nn.Module):
    """The experts of one layer, their fusion, and the affine change of the layer's code.

    Attributes:
      attributes: A.
      hidden, dtype: of the experts.
      scaled: see `attention`.
    """

    attributes: int
    hidden: Sequence[int] = (512, 512)
    scaled: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array, values: jax.Array, active: jax.Array) -> jax.Array:
        """[N, D], [N, A], bool [N, A] -> [N, D] float32."""
        experts = nn.vmap(
            Expert,
            in_axes=(None, 1),
            out_axes=1,
            axis_size=self.attributes,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(self.hidden, self.dtype, name="experts")
        proxies = experts(codes, values)
        projected = (nn.Dense(codes.shape[-1], dtype=self.dtype, name=name)(proxies) for name in ("q", "k", "v"))
        return _changed(codes, fuse(*projected, active, scaled=self.scaled), active, self.dtype)


class DyStyle(nn.Module):
    """W+ codes to W+ codes with wanted attributes. Untrained it changes nothing.

    Attributes:
      attributes: A.
      layers: L, 18 for images of 1024 pixels.
      size: D.
      hidden: widths of an expert's hidden layers.
      scaled: see `attention`.
      dtype: of the computation; parameters and codes are float32.
    """

    attributes: int = len(FACE_ATTRIBUTES)
    layers: int = 18
    size: int = 512
    hidden: Sequence[int] = (512, 512)
    scaled: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array, values: jax.Array, active: jax.Array) -> jax.Array:
        """Edited codes.

        Args:
          codes: [N, L, D] in W+.
          values: [N, A] targets, numbers scaled to about -1..1, and -1 or 1 for what is absent or there.
          active: [N, A] bool, the attributes to edit. Targets of the others have no influence.

        Returns:
          [N, L, D]; exactly `codes` where nothing is active.
        """
        values, active = _checked(self, codes, values, active)
        editors = _per_layer(LayerEditor, self.layers)
        return editors(self.attributes, self.hidden, self.scaled, self.dtype, name="layers")(codes, values, active)


class _ConcatenatedLayer(nn.Module):
    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, codes: jax.Array, values: jax.Array, active: jax.Array) -> jax.Array:
        x = jnp.concatenate([codes, values, active.astype(codes.dtype)], -1)
        for _ in range(3):
            x = nn.leaky_relu(nn.Dense(self.width, dtype=self.dtype)(x), SLOPE)
        return _changed(codes, x, active, self.dtype)


class Concatenation(nn.Module):
    """A baseline without experts: in every layer one MLP of code, targets and mask, then the same affine change.

    Attributes:
      attributes, layers, size, dtype: as of `DyStyle`.
      width: of its three hidden layers; 0: the one that gives nearly as many parameters as a DyStyle with `hidden`.
      hidden: see `width`.
    """

    attributes: int = len(FACE_ATTRIBUTES)
    layers: int = 18
    size: int = 512
    hidden: Sequence[int] = (512, 512)
    width: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array, values: jax.Array, active: jax.Array) -> jax.Array:
        """See `DyStyle`."""
        values, active = _checked(self, codes, values, active)
        width = self.width or equal_width(self.attributes, self.size, self.hidden)
        return _per_layer(_ConcatenatedLayer, self.layers)(width, self.dtype, name="layers")(codes, values, active)


def equal_width(attributes: int, size: int, hidden: Sequence[int]) -> int:
    """The width with which a layer of `Concatenation` is as large as one of `DyStyle`, or the next smaller one."""
    ends = [size + 1, *hidden, size]
    expert = sum((a + 1) * b for a, b in itertools.pairwise(ends))
    rest = attributes * expert + 3 * (size + 1) * size
    goal = rest + (size + 1) * 2 * size

    def parameters(width: int) -> int:
        return (size + 2 * attributes + 1) * width + 2 * (width + 1) * width + (width + 1) * 2 * size

    width = 1
    while parameters(width + 1) <= goal:
        width += 1
    return width


def _per_layer(module: type[nn.Module], layers: int) -> Any:
    return nn.vmap(
        module,
        in_axes=(1, None, None),
        out_axes=1,
        axis_size=layers,
        variable_axes={"params": 0},
        split_rngs={"params": True},
    )


@nn.nowrap
def _changed(codes: jax.Array, proxy: jax.Array, active: jax.Array, dtype: Dtype) -> jax.Array:
    """Codes * (1 + gamma) + beta, both of the proxy and 0 at the beginning; unchanged if nothing is active."""
    zeros = nn.initializers.zeros
    change = nn.Dense(2 * codes.shape[-1], dtype=dtype, kernel_init=zeros, bias_init=zeros, name="affine")(proxy)
    gamma, beta = jnp.split(change.astype(jnp.float32), 2, -1)
    return jnp.where(active.any(-1, keepdims=True), codes * (1 + gamma) + beta, codes)


def _checked(
    net: DyStyle | Concatenation, codes: jax.Array, values: jax.Array, active: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Targets, 0 where inactive, and the mask. Raises ValueError for wrong shapes."""
    wanted = (len(codes), net.attributes)
    if codes.shape[1:] != (net.layers, net.size) or values.shape != wanted or active.shape != wanted:
        raise ValueError(
            f"{type(net).__name__}: codes {codes.shape}, values {values.shape}, active {active.shape}, expected "
            f"[N, {net.layers}, {net.size}], [N, {net.attributes}], [N, {net.attributes}]"
        )
    active = active.astype(bool)
    return jnp.where(active, values, 0.0).astype(jnp.float32), active


def configurations(rng: jax.Array, count: int, binary: Sequence[bool], most: Any) -> tuple[jax.Array, jax.Array]:
    """Random edits: how many attributes (1 to `most`), which of them, and their values are uniform.

    Args:
      rng: key.
      count: N.
      binary: of each of A attributes, whether it is there or not; the others are numbers.
      most: largest number of attributes edited at once, 1..A, also as an array: the easy-to-hard schedule.

    Returns:
      values: [N, A] in -1..1; binary ones are -1 or 1.
      active: [N, A] bool.
    """
    keys = jax.random.split(rng, 3)
    shape = (count, len(binary))
    values = jax.random.uniform(keys[0], shape, minval=-1.0, maxval=1.0)
    values = jnp.where(jnp.asarray(binary), jnp.where(values < 0, -1.0, 1.0), values)
    number = jax.random.randint(keys[1], (count, 1), 1, jnp.asarray(most) + 1)
    order = jnp.argsort(jnp.argsort(jax.random.uniform(keys[2], shape), -1), -1)
    return values, order < number


def easy_to_hard(step: jax.Array, easy_steps: int, attributes: int) -> jax.Array:
    """Largest number of attributes edited at once in the step after `step` others: one, then all."""
    return jnp.where(step < easy_steps, 1, attributes)


def targets(found: jax.Array, values: jax.Array, active: jax.Array, binary: Sequence[bool]) -> jax.Array:
    """Targets of a predictor's outputs for the edited image; no gradient passes.

    Args:
      found: [N, A] its outputs for the unedited image: numbers, and logits of binary attributes.
      values, active: the edit, see `DyStyle`.
      binary: [A].

    Returns:
      [N, A]: the edit's value where active, else the predictor's output; binary ones as probabilities.
    """
    binary = jnp.asarray(binary)
    wished = jnp.where(binary, (values + 1) / 2, values)
    return lax.stop_gradient(jnp.where(active, wished, jnp.where(binary, jax.nn.sigmoid(found), found)))


def attribute_loss(outputs: jax.Array, wanted: jax.Array, binary: Sequence[bool]) -> jax.Array:
    """Squared error of numbers, cross-entropy of binary attributes, [N, A].

    Args:
      outputs: [N, A] of a predictor, see `targets`.
      wanted: [N, A], see `targets`.
      binary: [A].
    """
    entropy = optax.sigmoid_binary_cross_entropy(outputs, wanted)
    return jnp.where(jnp.asarray(binary), entropy, (outputs - wanted) ** 2)


def identity_loss(edited: jax.Array, original: jax.Array) -> jax.Array:
    """1 - cosine of the embeddings [N, D] of edited and unedited images, [N]."""
    return 1 - jnp.sum(unit(edited) * unit(original), -1)


def norm_loss(edited: jax.Array, codes: jax.Array) -> jax.Array:
    """Mean square of the change of codes [N, L, D], [N]."""
    return jnp.mean((edited - codes) ** 2, (1, 2))


def contrastive_loss(features: jax.Array, temperature: float = 0.1) -> jax.Array:
    """InfoNCE of edits: samples n and n + N/2 had the same edit, all others have different ones.

    Args:
      features: [N, D] of edited images, or changes of codes; N is even.
      temperature: divisor of the cosines.

    Returns:
      [N]: minus the log probability of the partner among all other samples.
    """
    count = len(features)
    if count % 2:
        raise ValueError(f"contrastive_loss: {count} samples, expected an even number")
    cosine = unit(features)
    logits = cosine @ cosine.T / temperature
    logits = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, logits)
    partner = (jnp.arange(count) + count // 2) % count
    return optax.softmax_cross_entropy_with_integer_labels(logits, partner)


def linear_map(codes: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least squares of attributes on codes of W, the hyperplanes of InterFaceGAN.

    Args:
      codes: [N, D].
      values: [N, A] in -1..1.

    Returns:
      normals [D, A], offsets [A]: values are about codes @ normals + offsets.
    """
    mean = codes.mean(0)
    normals = jnp.linalg.lstsq(codes - mean, values - values.mean(0))[0]
    return normals, values.mean(0) - mean @ normals


def linear_edit(
    codes: jax.Array, values: jax.Array, active: jax.Array, fitted: tuple[jax.Array, jax.Array], *, projected: bool
) -> jax.Array:
    """The baseline: along each active attribute's direction, as far as its own hyperplane says; the steps add up.

    Args:
      codes: [N, L, D]; all layers move alike, their mean tells where they are.
      values, active: see `DyStyle`.
      fitted: of `linear_map`.
      projected: directions along which the linear map changes no other attribute (conditional manipulation).

    Returns:
      [N, L, D].
    """
    normals, offsets = fitted
    wanted = jnp.where(active, values - (codes.mean(1) @ normals + offsets), 0)
    directions = jnp.linalg.pinv(normals) if projected else (normals / jnp.sum(normals**2, 0)).T
    return codes + (wanted @ directions)[:, None]
