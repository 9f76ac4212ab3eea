"""Deep VIB: a code that may hold few bits of its input makes a classifier err less and harder to fool.

    python -m experiments.vib                                    # scikit-learn's digits
    python -m experiments.vib --config=sweep                     # every beta at once: errors, information plane
    python -m experiments.vib --config=plane                     # K = 2 with full covariance: a picture of the code
    python -m experiments.vib --config=mnist --config.data.data_dir=DIR   # the paper's run, one GPU

Published test errors on MNIST, % (paper): mnist 1.13 (K = 256, beta 1e-3; the authors' notebook logs 1.27), baselines
mnist_deterministic 1.38, mnist_dropout 1.34, mnist_confidence_penalty 1.36, mnist_label_smoothing 1.40; mnist_plane
(K = 2) 3.18 at beta 1e-3, 3.44 at 1e-1, 33.82 at 1. Above beta 1e-2 the error of mnist_sweep climbs steeply.

MNIST is read with tfds from its catalogue; preparing it (not reading it) needs TensorFlow to be installed.
Several betas, and `model.repeats` initialisations of each, are trained side by side in one vmapped step on the same
batches; numbers are means over the repeats, with the averaged weights and `eval.samples` codes per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.foundations import vib
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    new_figure,
    optim,
    supervised_step,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "digits",  # 8 x 8, of scikit-learn; or "mnist"
        "train": 200,  # digits to train on, drawn with the seed; the other ones of the 1,797 are for testing
        "data_dir": "",
        "train_split": "train",
        "test_split": "test",
        "threads": 2,
        "workers": 0,
    },
    "model": {
        "widths": (256, 256),
        "latent": 32,  # 0: no bottleneck, the deterministic baseline
        "covariance": "diagonal",
        "dropout": 0.0,
        "repeats": 4,
        "dtype": "float32",
    },
    "loss": {"betas": (1e-2,), "label_smoothing": 0.0, "confidence_penalty": 0.0},
    "optim": {"learning_rate": 1e-3, "factor": 0.97, "every": 15, "b1": 0.5, "ema": 0.99},
    "train": asdict(Options(batch_size=100, steps=1000, log_every=100, save_every=500, devices=1)),
    "eval": {"batch_size": 500, "samples": 12, "attacks": (0.1, 0.2, 0.4)},  # sizes of steps in pixels of -1..1
}


def mnist(**changes: Any) -> dict[str, Any]:
    """The authors' notebook: 784-1024-1024-2x256, 200 epochs of 600 batches, a rate of 1e-4 times 0.97 every two."""
    return {
        "data.source": "mnist",
        "model.widths": (1024, 1024),
        "model.latent": 256,
        "model.repeats": 1,
        "loss.betas": (1e-3,),
        "optim": {"learning_rate": 1e-4, "factor": 0.97, "every": 1200, "b1": 0.5, "ema": 0.999},
        "train.steps": 120_000,
        "train.log_every": 600,
        "train.eval_every": 12_000,
        "train.save_every": 6000,
        **changes,
    }


SWEEP = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
PLANE = {"model.latent": 2, "model.covariance": "full"}

PRESETS = {
    "synthetic": {},
    "deterministic": {"model.latent": 0},
    "dropout": {"model.latent": 0, "model.dropout": 0.5},
    "label_smoothing": {"model.latent": 0, "loss.label_smoothing": 0.1},
    "confidence_penalty": {"model.latent": 0, "loss.confidence_penalty": 0.1},
    "sweep": {"loss.betas": SWEEP, "model.repeats": 1},
    "plane": {**PLANE, "model.repeats": 1},
    "mnist": mnist(),
    "mnist_deterministic": mnist(**{"model.latent": 0}),
    "mnist_dropout": mnist(**{"model.latent": 0, "model.dropout": 0.5}),
    "mnist_label_smoothing": mnist(**{"model.latent": 0, "loss.label_smoothing": 0.1}),
    "mnist_confidence_penalty": mnist(**{"model.latent": 0, "loss.confidence_penalty": 0.1}),
    "mnist_sweep": mnist(**{"loss.betas": SWEEP}),
    "mnist_plane": mnist(**PLANE),
}

CLAIM = (
    Claim(
        "vib.error",
        "a stochastic bottleneck of few bits has a lower test error than the same network without it or with dropout",
        metric="test_error",
        better="lower",
        method="synthetic",
        baseline=("deterministic", "dropout"),
    ),
    Claim(
        "vib.fgsm",
        "a stochastic bottleneck has a lower error on digits moved by a fast gradient step than the network without it",
        metric="fgsm_error_0.2",
        better="lower",
        method="synthetic",
        baseline=("deterministic",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: parameters have a leading axis of members, one per beta and repeat."""
    model, batch = config.model, config.train.batch_size
    pixels = {"digits": 64, "mnist": 784}.get(config.data.source)
    if pixels is None:
        raise ValueError(f"data.source is {config.data.source!r}: expected digits or mnist")
    net = vib.Classifier(
        widths=tuple(model.widths),
        latent=model.latent,
        covariance=model.covariance,
        dropout=model.dropout,
        dtype=jnp.dtype(model.dtype),
    )
    betas = jnp.repeat(jnp.asarray(config.loss.betas, jnp.float32), model.repeats)
    regularisers = {name: config.loss[name] for name in ("label_smoothing", "confidence_penalty")}
    rate = optax.exponential_decay(config.optim.learning_rate, config.optim.every, config.optim.factor, staircase=True)
    tx = optim.optimizer("adam", rate, momentum=config.optim.b1)

    def init(rng: jax.Array) -> TrainState:
        def member(key: jax.Array) -> Any:
            return net.init(key, jnp.zeros((1, pixels)), train=False, samples=0)["params"]

        params = jax.vmap(member)(jax.random.split(rng, len(betas)))
        return TrainState.create(rng, params, tx, ema=True)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        def member(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            rngs = {"latent": key, "dropout": key}
            logits, posterior = net.apply({"params": params}, batch["image"], train=True, rngs=rngs)
            return vib.cross_entropy_bits(logits[0], batch["label"], **regularisers), rate_bits(posterior, logits)

        distortion, held = jax.vmap(member)(params, jax.random.split(rng, len(betas)))  # [members, N] each
        losses = distortion + betas[:, None] * held
        metrics = {"loss": Mean.of(losses), "cross_entropy_bits": Mean.of(distortion), "kl_bits": Mean.of(held)}
        return losses.mean(1).sum(), (model_state, metrics)  # a sum, so that every member has its own gradient

    def train_data() -> Any:
        from facejax.data import pipeline

        source, _ = splits(config)
        return pipeline.train_batches(
            Rows(source),
            lambda rows, _: {k: np.stack([row[k] for row in rows]) for k in source},
            batch,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
        )

    def evaluate(state: TrainState) -> Report:
        return report(config, net, state.ema, *splits(config))

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches, ema_decay=config.optim.ema),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, pixels), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


def rate_bits(posterior: vib.Posterior | None, logits: jax.Array) -> jax.Array:
    """What the code holds, [N] bits; 0 is what is paid where there is no bottleneck."""
    return vib.kl_bits(posterior) if posterior else jnp.zeros(logits.shape[1])


class Rows:
    """A dict of arrays [N, ...] as a source of N dicts."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays["label"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self._arrays.items()}


def splits(config: ConfigDict) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and test images, float32 [N, pixels] in -1..1, and their labels, int32 [N]."""
    data = config.data
    if data.source == "mnist":
        return tuple(read_mnist(data.data_dir, split) for split in (data.train_split, data.test_split))
    from sklearn.datasets import load_digits

    digits = load_digits()
    if not 0 < data.train < len(digits.target):
        raise ValueError(f"data.train is {data.train}: expected 1 to {len(digits.target) - 1} of the digits")
    order = np.random.default_rng(config.seed).permutation(len(digits.target))
    images, labels = (digits.data / 8 - 1).astype(np.float32), digits.target.astype(np.int32)
    return tuple({"image": images[i], "label": labels[i]} for i in np.split(order, [data.train]))


def read_mnist(data_dir: str, split: str) -> dict[str, np.ndarray]:
    """A split of MNIST from the tfds catalogue, prepared as ArrayRecord on first use."""
    import tensorflow_datasets as tfds

    from facejax.data.builders import store

    builder = tfds.builder("mnist", data_dir=store.data_dir(data_dir), file_format="array_record")
    try:
        examples = store.prepared(builder, split)
    except ImportError as error:
        raise ValueError(
            f"MNIST is not prepared in {builder.data_dir}, and preparing it needs TensorFlow ({error}): install it, "
            "or set data.data_dir to a folder where tfds has prepared mnist as ArrayRecord"
        ) from error
    rows = [examples[i] for i in range(len(examples))]
    images = np.stack([row["image"] for row in rows]).reshape(len(rows), -1)
    return {"image": (images / 127.5 - 1).astype(np.float32), "label": np.array([r["label"] for r in rows], np.int32)}


def report(config: ConfigDict, net: vib.Classifier, params: Any, *data: dict[str, np.ndarray]) -> Report:
    """Errors, information and robustness of every beta, as means over its repeats."""
    betas, repeats = config.loss.betas, config.model.repeats
    attacks = config.eval.attacks
    train, test = (measure(config, net, params, part, tried) for part, tried in zip(data, ((), attacks), strict=True))

    def by_beta(values: np.ndarray) -> np.ndarray:
        return values.mean(0).reshape(len(betas), repeats).mean(1)

    label_bits = np.log2(net.num_classes)
    columns = {
        "test_error": 100 * by_beta(test["wrong"]),
        "test_error_one_sample": 100 * by_beta(test["wrong_one_sample"]),
        "train_error": 100 * by_beta(train["wrong"]),
        "test_bits": by_beta(test["bits"]),
        "label_information": label_bits - by_beta(test["bits"]),
        "train_label_information": label_bits - by_beta(train["bits"]),
    }
    if net.latent:
        columns |= {"image_information": by_beta(test["kl"]), "train_image_information": by_beta(train["kl"])}
    columns |= {f"fgsm_error_{size:g}": 100 * by_beta(test["fooled"][size]) for size in attacks}
    rows = [{"beta": f"{b:g}", **{k: float(v[i]) for k, v in columns.items()}} for i, b in enumerate(betas)]
    single = len(betas) == 1
    metrics = {k if single else f"{k}_beta_{b:g}": float(v[i]) for i, b in enumerate(betas) for k, v in columns.items()}
    figures = {"Under attack": attack_figure(betas, attacks, columns)}
    if not single:
        figures = {"Over beta": sweep_figure(betas, columns, label_bits), **figures}
    if net.latent == 2:
        figures["The code"] = plane_figure(net, jax.tree.map(lambda x: x[0], params), data[1])
    return Report(metrics, tables={} if single else {"By beta": rows}, figures=figures)


def measure(
    config: ConfigDict, net: vib.Classifier, params: Any, data: dict[str, np.ndarray], attacks: Sequence[float]
) -> dict[str, Any]:
    """Mistakes, cross-entropy and KL in bits, [N, members] each; under "fooled" the mistakes at each size of attack."""
    samples = config.eval.samples

    def member(params: Any, key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Any]:
        def classify(images: jax.Array, key: jax.Array) -> tuple[jax.Array, vib.Posterior | None]:
            return net.apply({"params": params}, images, train=False, samples=samples, rngs={"latent": key})

        def wrong(logits: jax.Array) -> jax.Array:
            return vib.averaged_log_probabilities(logits).argmax(1) != batch["label"]

        def objective(images: jax.Array) -> jax.Array:
            log_q = vib.averaged_log_probabilities(classify(images, key)[0])
            return -jnp.take_along_axis(log_q, batch["label"][:, None], 1)[:, 0]

        logits, posterior = classify(batch["image"], key)
        fresh = jax.random.fold_in(key, 1)
        attacked = {size: vib.fast_gradient_sign(objective, batch["image"], size) for size in attacks}
        return {
            "wrong": wrong(logits),
            "wrong_one_sample": wrong(logits[:1]),
            "bits": vib.cross_entropy_bits(logits, batch["label"]).mean(0),
            "kl": rate_bits(posterior, logits),
            "fooled": {size: wrong(classify(images, fresh)[0]) for size, images in attacked.items()},
        }

    members = jax.tree.leaves(params)[0].shape[0]
    keys = jax.random.split(jax.random.key(config.seed), members)
    return map_batches(
        lambda variables, batch: jax.vmap(member, (0, 0, None), 1)(*variables, batch),
        (params, keys),
        data,
        config.eval.batch_size,
    )


def sweep_figure(betas: Sequence[float], columns: dict[str, np.ndarray], label_bits: float) -> Any:
    """Errors over beta, the information plane, and both bounds over beta."""
    figure, (left, middle, right) = new_figure(12, 3.6, 1, 3)
    places = np.arange(len(betas))
    for name, label in (
        ("train_error", "training"),
        ("test_error", "test, samples averaged"),
        ("test_error_one_sample", "test, one sample"),
    ):
        left.plot(places, columns[name], marker="o", markersize=3, label=label)
    left.set(yscale="symlog", ylabel="error, %")
    for part, prefix in (("training", "train_"), ("test", "")):
        held, told = columns[f"{prefix}image_information"], columns[f"{prefix}label_information"]
        middle.plot(held, told, marker="o", markersize=3, label=part)
        right.plot(places, held, marker="o", markersize=3, label=f"I(Z; X), {part}")
        if part == "test":
            for beta, x, y in zip(betas, held, told, strict=True):
                middle.annotate(f"{beta:g}", (x, y), fontsize=7, xytext=(2, -8), textcoords="offset points")
    middle.axhline(label_bits, color="grey", linestyle=":")
    middle.set(xscale="symlog", xlabel="I(Z; X), bits (upper bound)", ylabel="I(Z; Y), bits (lower bound)")
    right.axhline(label_bits, color="grey", linestyle=":", label="bits of a label")
    right.set(yscale="symlog", ylabel="bits")
    for axis in (left, right):
        axis.set_xticks(places, [f"{beta:g}" for beta in betas], rotation=60, fontsize=8)
        axis.set_xlabel("beta")
    for axis in (left, middle, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


def attack_figure(betas: Sequence[float], attacks: Sequence[float], columns: dict[str, np.ndarray]) -> Any:
    """Error over the size of a fast gradient step, a line per beta."""
    figure, axis = new_figure(5, 3.2)
    errors = np.stack([columns["test_error"], *(columns[f"fgsm_error_{size:g}"] for size in attacks)])
    for i, beta in enumerate(betas):
        axis.plot([0, *attacks], errors[:, i], marker="o", markersize=3, color=f"{i / max(len(betas), 2):.2f}")
        axis.annotate(f"{beta:g}", (attacks[-1], errors[-1, i]), fontsize=7, xytext=(4, -2), textcoords="offset points")
    axis.set(xlabel="fast gradient step, pixels of -1..1", ylabel="test error, %")
    return figure


def plane_figure(net: vib.Classifier, params: Any, data: dict[str, np.ndarray], shown: int = 500) -> Any:
    """Posteriors of test images in a code of two numbers, one standard deviation each, over the decoder's classes."""
    import matplotlib

    variables = {"params": params}
    _, posterior = net.apply(variables, data["image"][:shown], train=False, samples=0)
    mean = np.asarray(posterior.mean)
    turn = np.linspace(0, 2 * np.pi, 40)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    factors = posterior.scale if posterior.scale.ndim == 3 else jax.vmap(jnp.diag)(posterior.scale)
    outlines = mean[:, :, None] + np.asarray(factors) @ circle
    edge = 1.1 * np.abs(outlines).max()
    ticks = np.linspace(-edge, edge, 200, dtype=np.float32)
    grid = np.stack(np.meshgrid(ticks, ticks), -1)
    certain = jax.nn.softmax(net.apply(variables, grid, method="decode"))
    figure, axis = new_figure(6, 5.4)
    colors = matplotlib.colormaps["tab10"].colors
    pale = 1 - np.asarray(certain.max(-1, keepdims=True)) * (1 - np.asarray(colors)[np.asarray(certain.argmax(-1))])
    axis.imshow(pale, extent=(-edge, edge, -edge, edge), origin="lower", alpha=0.25)
    for outline, label in zip(outlines, data["label"], strict=False):
        axis.plot(*outline, color=colors[label], linewidth=0.6)
    for digit in np.unique(data["label"][:shown]):
        axis.plot([], [], color=colors[digit], label=str(digit))
    axis.set(xlabel="z1", ylabel="z2")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
