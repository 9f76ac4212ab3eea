import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facejax.attributes.ssrnet import absolute_error
from facejax.data.attribute_images import AttributeImages
from facejax.nn.norm import BatchNorm
from facejax.recipes.estimator import estimator
from facejax.train import AXIS, Options, Report


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.1, deterministic=not train)(BatchNorm(name="norm")(x, train=train))
        return nn.Dense(3)(x.mean(-1).reshape(len(x), -1))


@pytest.mark.parametrize("started", [False, True])
def test_one_step_lowers_the_loss(started):
    data, net = AttributeImages("pose", image_size=8), Linear()

    def prepare():
        shapes = jax.eval_shape(lambda key: net.init(key, jnp.zeros((2, 8, 8, 3)), train=False), jax.random.key(0))
        return jax.tree.map(lambda x: np.full(x.shape, 0.1), shapes)

    experiment = estimator(
        net, data, optax.sgd(0.05), Options(batch_size=4, steps=3), loss=absolute_error,
        decode=lambda outputs: {"number": outputs}, seed=0, prepare=prepare if started else None,
        evaluate=lambda predict, variables: Report(
            {"mean": float(predict(variables, jnp.zeros((1, 8, 8, 3), jnp.uint8))["number"].mean())}
        ),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)),
        "target": jnp.float32(rng.uniform(5, 9, (4, 3))),
    }
    step = jax.jit(
        lambda *given: jax.vmap(experiment.train_step, axis_name=AXIS)(*jax.tree.map(lambda x: x[None], given))
    )
    state, losses = experiment.init(jax.random.key(0), *([prepare()] if started else [])), []
    if started:
        assert all((leaf == np.float32(0.1)).all() for leaf in jax.tree.leaves(state.params))
    for _ in range(3):
        state, metrics = jax.tree.map(lambda x: x[0], step(state, batch, jax.random.key(1)))
        losses.append(float(metrics["loss"].total / metrics["loss"].count))
    assert losses[2] < losses[1] < losses[0]
    assert np.isfinite(experiment.evaluate(state).metrics["mean"])
