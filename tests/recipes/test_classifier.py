"""The classifier's run: smoothed labels, side losses, averaged parameters, the optimizer."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import inception, mobilenet
from facejax.data.classification import LabelledImages
from facejax.evaluate import classification
from facejax.recipes.classifier import Optimizer, Schedule, classifier
from facejax.train import Options, Report, parallel


class Colours(nn.Module):
    """Scores of the mean colour, and beside them scores of their own layer in training."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.mean((1, 2))
        main, side = nn.Dense(3, name="main")(x), nn.Dense(3, name="side")(x)
        return [main, side] if train else main


def experiment(auxiliary=0.0, label_smoothing=0.0, **changes):
    return classifier(
        Colours(),
        LabelledImages(image_size=4, classes=3),
        Optimizer("adam", schedule=Schedule("constant", peak=1e-3), **changes),
        Options(batch_size=6, steps=300),
        seed=0,
        eval_batch_size=6,
        label_smoothing=label_smoothing,
        auxiliary=auxiliary,
        preprocess=lambda x: x / 255.0,
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    return {"image": images, "label": np.arange(6, dtype=np.int32) % 3}


def stepped(built, batch):
    executor = parallel.make_executor(built, "shard_map", 1)
    start = jax.tree.map(np.asarray, built.init(jax.random.key(0)).params)
    state, metrics = executor.step(executor.init(0), executor.put(batch))
    return start, state, metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_labels_are_smoothed(batch, smoothing):
    start, _, metrics = stepped(experiment(label_smoothing=smoothing), batch)
    scores = (batch["image"] / 255.0).mean((1, 2)) @ start["main"]["kernel"] + start["main"]["bias"]
    targets = (1 - smoothing) * np.eye(3)[batch["label"]] + smoothing / 3
    expected = -(targets * np.asarray(jax.nn.log_softmax(jnp.float32(scores)))).sum(1).mean()
    np.testing.assert_allclose(metrics["loss"].total / metrics["loss"].count, expected, rtol=1e-5)


@pytest.mark.parametrize("auxiliary", [0.0, 0.3])
def test_side_classifiers_train_with_their_weight(batch, auxiliary):
    start, state, _ = stepped(experiment(auxiliary, weight_decay=0.0), batch)
    moved = np.abs(np.asarray(state.params["side"]["bias"]) - start["side"]["bias"]).max()
    assert (moved > 1e-6) == (auxiliary > 0)


def test_averaged_parameters_are_evaluated(batch, monkeypatch):
    monkeypatch.setattr(LabelledImages, "split", lambda self: (None, None))
    monkeypatch.setattr(
        classification, "report", lambda net, variables, *a, **options: Report({}, arrays=variables["params"])
    )
    built = experiment(ema=0.9)
    _, state, _ = stepped(built, batch)
    chex.assert_trees_all_equal(built.evaluate(state).arrays, state.ema)
    assert np.abs(np.asarray(state.ema["main"]["kernel"] - state.params["main"]["kernel"])).max() > 1e-6


@pytest.mark.parametrize(
    ("module", "preset"), [(inception, "imagenet_bn"), (inception, "imagenet_v3"), (mobilenet, "imagenet_v2")]
)
def test_published_runs_share_no_batch_statistics(module, preset):
    """Tracing outside of a mapped axis fails where statistics are shared over one."""
    net, images = module.make_net(module.get_config(preset)), jax.ShapeDtypeStruct((2, 80, 80, 3), jnp.float32)

    def train(key, images):
        variables = net.init(key, images, train=False)
        return net.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    assert jax.eval_shape(train, jax.random.key(0), images)[1]["batch_stats"]
