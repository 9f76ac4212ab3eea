"""Transformer: sequences to sequences by attention alone.

Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin. "Attention is all you need". NeurIPS 2017.
arXiv:1706.03762. The encoder attends to the source, the decoder to its own previous outputs and to the encoder's.
Without recurrence all positions train in parallel.
Differs from the paper: beam search accepts END only among the best `beam` continuations and stops a sentence after
`beam` finished translations, so beam 1 is greedy search; PAD is never an output. `pre_norm` is an option that the paper
lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from facejax.nn.attention import MultiHeadAttention
from facejax.nn.blocks import rematerialised
from facejax.nn.norm import LayerNorm

Dtype = Any
Cache = Any
PAD, BEGIN, END = 0, 1, 2
IMPOSSIBLE = -1e7


def sinusoids(length: int, width: int) -> np.ndarray:
    """Position encodings [length, width] (Sec. 3.5): sin(p / 10000^(2i / width)) at 2i, the cosine at 2i + 1."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, -1)[:, :width].astype(np.float32)


def noam(width: int, warmup: int, factor: float = 1.0) -> optax.Schedule:
    """Learning rate (Eq. 3): factor width^-0.5 min(step^-0.5, step warmup^-1.5), steps counted from 1."""

    def rate(count: jax.Array) -> jax.Array:
        step = jnp.asarray(count, jnp.float32) + 1
        return factor * width**-0.5 * jnp.minimum(step**-0.5, step * warmup**-1.5)

    return rate


def smoothed_cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float = 0.1) -> jax.Array:
    """Cross-entropy [...] in nats of logits [..., V]; the target has probability 1 - smoothing, the others the rest.

    The entropy of that distribution is subtracted, so the minimum is 0 (the authors' code).
    """
    others = logits.shape[-1] - 1
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    loss = -(1 - smoothing) * picked - smoothing / others * (log_p.sum(-1) - picked)
    if not smoothing:
        return loss
    return loss + (1 - smoothing) * np.log(1 - smoothing) + smoothing * np.log(smoothing / others)


class FeedForward(nn.Module):
    """Eq. 2: two dense layers at every position with `hidden` ReLU units between."""

    hidden: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform()
        hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name="inner")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name="outer")(hidden)


class Layer(nn.Module):
    """One layer of the encoder, or with `cross` of the decoder (Sec. 3.1). Attributes as of `Transformer`."""

    width: int
    heads: int
    hidden: int
    dropout: float
    pre_norm: bool
    bias: bool
    cross: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        attention = {"features": self.width, "heads": self.heads, "bias": self.bias, "dtype": self.dtype}
        self.own = MultiHeadAttention(**attention)
        if self.cross:
            self.other = MultiHeadAttention(**attention)
        self.feed = FeedForward(self.hidden, self.dtype)
        self.norms = [LayerNorm(1e-6, dtype=self.dtype) for _ in range(3 if self.cross else 2)]
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self, x: jax.Array, mask: jax.Array, other: Any = None, other_mask: Any = None, *, train: bool = False
    ) -> jax.Array:
        """[N, T, D] -> [N, T, D]; `other` holds the keys and values of the encoder's output."""
        x = self._around(0, x, lambda y: self.own(y, y, mask), train)
        return self._rest(x, other, other_mask, train)

    def project(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the encoder's output."""
        return self.other.project(memory)

    def step(
        self, x: jax.Array, position: jax.Array, cache: tuple[jax.Array, jax.Array], other: Any, other_mask: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """`__call__` for one token x [N, 1, D] at `position`, with cached keys and values [N, L, H, d]."""
        updated = cache

        def attend(y: jax.Array) -> jax.Array:
            nonlocal updated
            updated = tuple(
                lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), position, 1)
                for old, new in zip(cache, self.own.project(y), strict=True)
            )
            seen = jnp.arange(cache[0].shape[1])[None, None, None] <= position
            return self.own.attend(y, *updated, seen)

        x = self._around(0, x, attend, train=False)
        return self._rest(x, other, other_mask, train=False), updated

    def _rest(self, x: jax.Array, other: Any, other_mask: Any, train: bool) -> jax.Array:
        if self.cross:
            x = self._around(1, x, lambda y: self.other.attend(y, *other, other_mask), train)
        return self._around(len(self.norms) - 1, x, self.feed, train)

    def _around(self, index: int, x: jax.Array, function: Callable[[jax.Array], jax.Array], train: bool) -> jax.Array:
        norm = self.norms[index]
        if self.pre_norm:
            return x + self.drop(function(norm(x)), deterministic=not train)
        return norm(x + self.drop(function(x), deterministic=not train))


class Transformer(nn.Module):
    """The encoder-decoder. Token 0 is padding.

    Attributes:
      vocabulary: V, shared by source, target and the output projection.
      width, heads, hidden, layers, dropout: d_model, h, d_ff, N and P_drop; the defaults are the base model's.
      max_length: largest number of tokens of a sequence.
      pre_norm: whether each sublayer's input is normalised, not its sum, and the stacks' outputs too.
      bias: whether the attention's projections have biases.
      dtype: of the computation.
      remat: whether the backward pass computes the insides of layers anew, which saves memory; see `rematerialised`.
    """

    vocabulary: int = 37_000
    width: int = 512
    heads: int = 8
    hidden: int = 2048
    layers: int = 6
    dropout: float = 0.1
    max_length: int = 256
    pre_norm: bool = False
    bias: bool = False
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        init = nn.initializers.normal(self.width**-0.5)
        self.embedding = nn.Embed(self.vocabulary, self.width, embedding_init=init)  # in 16 bits its gradient saturates
        options = {
            "width": self.width, "heads": self.heads, "hidden": self.hidden, "dropout": self.dropout,
            "pre_norm": self.pre_norm, "bias": self.bias, "dtype": self.dtype,
        }  # fmt: skip
        self.encoder = [Layer(**options) for _ in range(self.layers)]
        self.decoder = [Layer(**options, cross=True) for _ in range(self.layers)]
        self.final = [LayerNorm(1e-6, dtype=self.dtype) for _ in range(2 * self.pre_norm)]
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, source: jax.Array, target: jax.Array, *, train: bool) -> jax.Array:
        """Logits [N, T, V] of the token after each of target [N, T] (which starts with BEGIN), for source [N, S]."""
        memory = self.encode(source, train=train)
        mask, causal = visible(source), jnp.tril(jnp.ones((target.shape[1],) * 2, bool))[None, None]
        x = self._embed(target, train=train)
        for layer in self.decoder:
            inputs = x, causal & visible(target), layer.project(memory), mask
            x = rematerialised(layer, self.remat)(*inputs, train=train)
        return self._logits(x)

    def encode(self, source: jax.Array, *, train: bool = False) -> jax.Array:
        """[N, S, D] of tokens [N, S]."""
        x = self._embed(source, train=train)
        for layer in self.encoder:
            x = rematerialised(layer, self.remat)(x, visible(source), train=train)
        return self.final[0](x) if self.pre_norm else x

    def start(self, source: jax.Array, length: int) -> tuple[Cache, Any]:
        """An empty cache for `length` tokens, and the encoded source for every step; leading axes are N."""
        self._check(length)
        memory = self.encode(source)
        other = [layer.project(memory) for layer in self.decoder]
        shape = (len(source), length, self.heads, self.width // self.heads)
        cache = [(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) for _ in self.decoder]
        return cache, (other, visible(source))

    def step(self, tokens: jax.Array, position: jax.Array, cache: Cache, context: Any) -> tuple[jax.Array, Cache]:
        """Logits [N, V] after tokens [N] at `position` [], and the cache with them in it."""
        other, mask = context
        place = jnp.asarray(sinusoids(self.max_length, self.width))[position]
        x = (self.embedding(tokens) * self.width**0.5 + place)[:, None].astype(self.dtype)
        updated = []
        for layer, own, keys in zip(self.decoder, cache, other, strict=True):
            x, own = layer.step(x, position, own, keys, mask)
            updated.append(own)
        return self._logits(x)[:, 0], updated

    def _embed(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        self._check(tokens.shape[1])
        x = (self.embedding(tokens) * self.width**0.5 + sinusoids(tokens.shape[1], self.width)).astype(self.dtype)
        return self.drop(x, deterministic=not train)

    def _logits(self, x: jax.Array) -> jax.Array:
        x = self.final[1](x) if self.pre_norm else x
        shared = self.embedding.embedding.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", x, shared, preferred_element_type=jnp.float32)

    def _check(self, length: int) -> None:
        if not 0 < length <= self.max_length:
            raise ValueError(f"Transformer: a sequence of {length} tokens, expected 1 to {self.max_length}")


class Recurrent(nn.Module):
    """The baseline: one GRU encodes the source, another decodes the target, without attention.

    It has the interface of `Transformer`.

    Attributes:
      vocabulary: V, shared as in the Transformer.
      width: of embeddings and states.
      dropout: on embeddings and outputs.
    """

    vocabulary: int
    width: int
    dropout: float = 0.1

    def setup(self) -> None:
        self.embedding = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(self.width**-0.5))
        self.reader = nn.RNN(nn.GRUCell(self.width), return_carry=True)
        self.writer = nn.GRUCell(self.width)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, source: jax.Array, target: jax.Array, *, train: bool) -> jax.Array:
        """Logits [N, T, V] of the token after each of target [N, T]."""
        x = self.drop(self.embedding(target), deterministic=not train) * self.width**0.5
        scan = nn.scan(
            lambda cell, carry, x: cell(carry, x), variable_broadcast="params", split_rngs={"params": False},
            in_axes=1, out_axes=1,
        )  # fmt: skip
        _, x = scan(self.writer, self._read(source, train), x)
        return self.embedding.attend(self.drop(x, deterministic=not train))

    def start(self, source: jax.Array, length: int) -> tuple[Cache, Any]:
        """The state after the source, and an empty context; `length` is not used."""
        del length
        return self._read(source, False), ()

    def step(self, tokens: jax.Array, position: jax.Array, cache: Cache, context: Any) -> tuple[jax.Array, Cache]:
        """Logits [N, V] after tokens [N], and the next state."""
        del position, context
        state, x = self.writer(cache, self.embedding(tokens) * self.width**0.5)
        return self.embedding.attend(x), state

    def _read(self, source: jax.Array, train: bool) -> jax.Array:
        x = self.drop(self.embedding(source), deterministic=not train) * self.width**0.5
        return self.reader(x, seq_lengths=(source != PAD).sum(1))[0]


def visible(tokens: jax.Array) -> jax.Array:
    """Mask [N, 1, 1, T] of the tokens [N, T] that are not padding."""
    return (tokens != PAD)[:, None, None]


def length_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """((5 + length) / 6)^alpha, the divisor of log-probabilities."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    net: Any, variables: Any, source: jax.Array, limits: jax.Array, *, length: int, beam: int = 4, alpha: float = 0.6
) -> tuple[jax.Array, jax.Array]:
    """Translations by beam search with cached decoding, of all sentences in one loop.

    Args:
      net: a module with `start` and `step`.
      variables: of the module.
      source: [N, S] tokens.
      limits: [N] largest number of tokens of a translation, END included; at most `length`.
      length: static size of the output.
      beam: hypotheses kept; 1 is greedy search.
      alpha: of the length penalty.

    Returns:
      Tokens [N, length], END included and PAD after it, and their log-probabilities over the length penalty [N].
    """
    count = len(source)
    cache, context = net.apply(variables, source, length, method="start")
    cache, context = jax.tree.map(lambda x: jnp.repeat(x, beam, 0), (cache, context))

    def pick(tree: Any, index: jax.Array) -> Any:
        return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, index), tree)

    def body(state: Any) -> Any:
        position, last, alive, scores, finished, ended, done, cache = state
        logits, cache = net.apply(variables, last.reshape(-1), position, cache, context, method="step")
        log_p = scores[..., None] + jax.nn.log_softmax(logits).at[:, PAD].set(-jnp.inf).reshape(count, beam, -1)
        size = log_p.shape[-1]
        best, flat = lax.top_k(log_p.reshape(count, -1), 2 * beam)
        parent, token = flat // size, flat % size
        written = pick(alive, parent).at[:, :, position].set(token)
        ends = token == END
        fresh = jnp.where(
            ends & (jnp.arange(2 * beam) < beam) & ~done[:, None], best / length_penalty(position + 1, alpha), -jnp.inf
        )
        ended, order = lax.top_k(jnp.concatenate([ended, fresh], 1), beam)
        finished = pick(jnp.concatenate([finished, written], 1), order)
        kept, order = lax.top_k(jnp.where(ends, 2 * IMPOSSIBLE, best), beam)
        moved, last, parent = pick((written, token, parent), order)
        scores, alive = jnp.where(done[:, None], scores, kept), jnp.where(done[:, None, None], alive, moved)
        cache = jax.tree.map(lambda x: pick(x.reshape(count, beam, *x.shape[1:]), parent).reshape(x.shape), cache)
        hopeless = ended[:, 0] > scores[:, 0] / length_penalty(limits, alpha)
        done |= jnp.isfinite(ended[:, -1]) | hopeless | (position + 1 >= limits)
        return position + 1, last, alive, scores, finished, ended, done, cache

    empty = jnp.zeros((count, beam, length), jnp.int32)
    start = (
        jnp.int32(0),
        jnp.full((count, beam), BEGIN, jnp.int32),
        empty,
        jnp.tile(jnp.where(jnp.arange(beam) == 0, 0.0, IMPOSSIBLE), (count, 1)),
        empty,
        jnp.full((count, beam), -jnp.inf),
        limits <= 0,
        cache,
    )
    _, _, alive, scores, finished, ended, _, _ = lax.while_loop(lambda s: (s[0] < length) & ~s[6].all(), body, start)
    over = jnp.isfinite(ended[:, 0])
    return (
        jnp.where(over[:, None], finished[:, 0], alive[:, 0]),
        jnp.where(over, ended[:, 0], scores[:, 0] / length_penalty(limits, alpha)),
    )


def greedy_search(net: Any, variables: Any, source: jax.Array, limits: jax.Array, *, length: int) -> jax.Array:
    """Tokens [N, length], each the most probable next one; arguments as of `beam_search`."""
    cache, context = net.apply(variables, source, length, method="start")

    def body(state: Any) -> Any:
        position, last, written, done, cache = state
        logits, cache = net.apply(variables, last, position, cache, context, method="step")
        token = jnp.where(done, PAD, logits.at[:, PAD].set(-jnp.inf).argmax(-1).astype(jnp.int32))
        done |= (token == END) | (position + 1 >= limits)
        return position + 1, token, written.at[:, position].set(token), done, cache

    count = len(source)
    start = (
        jnp.int32(0), jnp.full(count, BEGIN, jnp.int32), jnp.zeros((count, length), jnp.int32), limits <= 0, cache
    )  # fmt: skip
    return lax.while_loop(lambda s: (s[0] < length) & ~s[3].all(), body, start)[2]
