"""SER-FIQ's network on top of embeddings: trained to classify identities, then scored by its dropout."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facejax.data.sources import Rows
from facejax.quality import ser_fiq
from facejax.train import Mean, TrainState, map_batches, supervised_step


def examples(features: np.ndarray, people: np.ndarray, batch_size: int) -> Rows:
    """Embeddings [N, D] of `people` [N] as training examples, repeated where they are fewer than a batch."""
    order = np.tile(np.arange(len(people)), -(-batch_size // len(people)))
    return Rows({"embedding": features, "label": people.astype(np.int32)}, order)


def training(
    net: ser_fiq.OnTop,
    tx: optax.GradientTransformation,
    *,
    embedding_size: int,
    batch_size: int,
    microbatches: int = 1,
) -> dict[str, Any]:
    """The parts of an `Experiment` that trains the network on batches {"embedding": [n, D], "label": [n]}.

    Args:
      net: the network.
      tx: the optimizer.
      embedding_size: D.
      batch_size: embeddings a step on all devices.
      microbatches: see `supervised_step`.
    """

    def init(rng: jax.Array) -> TrainState:
        params = net.init(rng, jnp.zeros((1, embedding_size)), drop=False, classify=True)["params"]
        return TrainState.create(rng, params, tx)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        logits = net.apply({"params": params}, batch["embedding"], drop=True, classify=True, rngs={"dropout": rng})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (model_state, {"loss": Mean.of(losses)})

    return {
        "init": init,
        "train_step": supervised_step(loss_fn, tx, microbatches=microbatches),
        "batch": {
            "embedding": jax.ShapeDtypeStruct((batch_size, embedding_size), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        },
    }


def scores(
    net: ser_fiq.OnTop, params: Any, features: np.ndarray, *, masks: int, seed: int, batch_size: int = 128
) -> np.ndarray:
    """SER-FIQ scores [N] of embeddings [N, D] under `masks` dropout masks that the seed draws."""

    def one(params: Any, batch: jax.Array) -> dict[str, jax.Array]:
        def embed(key: jax.Array) -> jax.Array:
            return net.apply({"params": params}, batch, drop=True, rngs={"dropout": key})

        return {"score": ser_fiq.robustness(ser_fiq.stochastic_embeddings(embed, jax.random.key(seed), masks))}

    return map_batches(one, params, features, batch_size)["score"]
