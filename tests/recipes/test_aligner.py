import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facejax.data import normalize
from facejax.data.landmark_images import LandmarkImages
from facejax.recipes.aligner import Evaluation, aligner
from facejax.train import AXIS, Options


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(136)(x.mean(-1).reshape(len(x), -1)).reshape(-1, 68, 2)


def test_one_step_lowers_the_loss():
    data = LandmarkImages(image_size=8)
    experiment = aligner(
        Linear(), data, optax.sgd(0.02), Options(batch_size=4, steps=3), Evaluation(),
        losses=lambda points, batch: {"l2": ((points - batch["points"]) ** 2).mean((1, 2))},
        decode=lambda points: {"points": points}, preprocess=normalize.unit, seed=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8),
        "points": rng.uniform(0, 8, (4, 68, 2)).astype(np.float32),
    }
    step = jax.jit(
        lambda *given: jax.vmap(experiment.train_step, axis_name=AXIS)(*jax.tree.map(lambda x: x[None], given))
    )
    state, losses = experiment.init(jax.random.key(0)), []
    for _ in range(3):
        state, metrics = jax.tree.map(lambda x: x[0], step(state, jax.tree.map(jnp.asarray, batch), jax.random.key(1)))
        losses.append(float(metrics["l2"].total / metrics["l2"].count))
    assert losses[2] < losses[1] < losses[0]
    assert set(experiment.batch) == {"image", "points", "visible", "attributes"}


def test_bad_values():
    with pytest.raises(ValueError, match=r"eval.normalizer is 'nose': expected one of inter_ocular"):
        Evaluation(normalizer="nose")
    with pytest.raises(ValueError, match=r"eval.limit is 0"):
        Evaluation(limit=0)
