"""The face recogniser that other papers build on: trained with a margin, bundled, kept on disk or read from weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from facejax.data import normalize
from facejax.data.builders import store
from facejax.data.identities import Identities
from facejax.data.synthetic import faces
from facejax.evaluate.embedder import Backbone, Embedder, read_weights
from facejax.recognition.heads import Head
from facejax.train import Experiment, Mean, Options, Report, TrainState, optim, supervised_step, train, warm_start

OPTIM = {
    "name": "sgd",
    "weight_decay": 5e-4,
    "clip": 5.0,
    "clip_only": "backbone",
    "schedule": {"kind": "cosine", "peak": 0.1, "warmup": 0, "boundaries": (), "power": 1.0},
}
"""The `optim` section of ArcFace's miniature."""
START = {
    "weights": "",  # file of published weights of the network, which training begins with; empty: random ones
}
"""The `start` section of recognition experiments."""


def training(
    net: nn.Module,
    head: Head,
    tx: optax.GradientTransformation,
    *,
    image_size: int,
    embedding_size: int,
    num_classes: int,
    batch_size: int,
    devices: int = 0,
    microbatches: int = 1,
    weights: str = "",
    preprocess: Callable[[jax.Array], jax.Array] = normalize.symmetric,
) -> dict[str, Any]:
    """The parts of an `Experiment` that trains an embedder under a classification head.

    The parameters are {"backbone", "head"}, `model_state` the batch statistics.

    Args:
      net: images [N, S, S, 3] -> embeddings [N, D].
      head: the loss.
      tx: the optimizer.
      image_size, embedding_size, num_classes, batch_size: S, D, C, and images a step on all devices.
      devices: that the class centres are split over, with `head.sharded`; 0 is all.
      microbatches: see `supervised_step`.
      weights: file of published weights that the network begins with (`read_weights`); "": it begins at random.
      preprocess: uint8 images -> what the network takes.
    """
    rows = head.rows(num_classes, devices or jax.device_count())
    sharded = ("head",) if head.sharded else ()

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = warm_start.taken(start, net.init(rng, jnp.zeros((2, image_size, image_size, 3)), train=False))
        centres = 0.01 * jax.random.normal(jax.random.fold_in(rng, 1), (rows, embedding_size))
        params = {"backbone": variables["params"], "head": centres}
        return TrainState.create(rng, params, tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        features, updated = net.apply(
            {"params": params["backbone"], "batch_stats": batch_stats},
            preprocess(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        losses = head.loss(features, params["head"], batch["label"], num_classes=num_classes, rng=rng)
        return losses.mean(), (updated["batch_stats"], {"loss": Mean.of(losses)})

    return {
        "init": init,
        "prepare": (lambda: read_weights(weights, net, image_size)) if weights else None,
        "train_step": supervised_step(loss_fn, tx, sharded=sharded, microbatches=microbatches),
        "batch": {
            "image": jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        },
        "sharded": sharded,
    }


PUBLISHED = {"name": "iresnet50", "embedding_size": 512, "dropout": 0.0}
"""Changes of the `recogniser` section for published weights of arcface_torch."""


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """The `recogniser` section: the embedder that a quality score is learnt from, or that a paper begins with.

    Attributes:
      name: of `facejax.evaluate.embedder`; "tiny" is trained on rendered faces, others need weights.
      embedding_size: D.
      dropout: before the last layer, in training.
      dtype: to compute in.
      loss: kind of the head that trains it (`facejax.recognition.heads.Head`).
      angle, cosine: margins of that head.
      image_size: side of its input, pixels; 0 is that of the data.
      steps: of its training.
      weights: PyTorch state dicts of arcface_torch in place of training; several, with commas between, go by seed.
    """

    name: str = "tiny"
    embedding_size: int = 64
    dropout: float = 0.4
    dtype: str = "float32"
    loss: str = "margin"
    angle: float = 0.5
    cosine: float = 0.0
    image_size: int = 0
    steps: int = 300
    weights: str = ""

    def backbone(self) -> nn.Module:
        """The untrained network."""
        return Backbone(self.name, self.embedding_size, self.dropout, self.dtype).make()

    def embedder(
        self,
        seed: int,
        *,
        image_size: int,
        data_dir: str = "",
        task: str = "recognition",
        classes: int = 80,
        photographs: bool = False,
    ) -> Embedder:
        """The trained network: of the bundle, or trained now and kept on disk, or with published weights.

        Args:
          seed: of its initialisation and training; also chooses among `weights`.
          image_size: side of its input where the section leaves it open, pixels.
          data_dir: of prepared data and of kept recognisers.
          task: of the face world, whose training people it learns.
          classes: how many of these.
          photographs: the images to embed are photographs, for which only `weights` or "tiny" do.

        Raises:
          ValueError: photographs and a full-size network without weights.
        """
        if photographs and not self.weights and self.name != "tiny":
            raise ValueError(
                f"recogniser.weights is empty: expected a state dict of arcface_torch's {self.name}; "
                "only 'tiny' is trained here, on rendered faces"
            )
        recogniser = dataclasses.replace(self, image_size=self.image_size or image_size)
        net = recogniser.backbone()
        if self.weights:
            files = self.weights.split(",")
            variables = read_weights(files[seed % len(files)], net, recogniser.image_size)
            return Embedder(net, variables, recogniser.image_size, np.zeros((0, self.embedding_size)))
        run = Run(recogniser, seed, task, classes)
        kept = bundled().get(BUNDLE.get(run, "")) or run.kept(data_dir)
        return Embedder(net, {k: kept[k] for k in ("params", "batch_stats")}, recogniser.image_size, kept["centres"])

    def evaluator(self, *, image_size: int, data_dir: str = "", photographs: bool = False) -> Embedder:
        """The recogniser whose errors evaluate a score: other people, CosFace's margin, no dropout, always one seed.

        With `weights` it is the first of these, and a score learnt from it is evaluated by what taught it.
        """
        options = {"image_size": image_size, "data_dir": data_dir, "photographs": photographs}
        if self.weights:
            return self.embedder(0, **options)
        other = dataclasses.replace(self, dropout=0.0, angle=0.0, cosine=0.2)
        return other.embedder(100, task="recognition_other", **options)


@dataclasses.dataclass(frozen=True)
class Run:
    """A recogniser's training: everything that its weights depend on."""

    recogniser: Recogniser
    seed: int
    task: str = "recognition"
    classes: int = 80

    def train(self, data_dir: str) -> dict[str, Any]:
        """Trains it: {"params", "batch_stats", "centres"} as NumPy arrays."""
        ours, steps, size = self.recogniser, self.recogniser.steps, 64
        data = Identities(task=self.task, data_dir=data_dir, image_size=ours.image_size, classes=self.classes)
        experiment = Experiment(
            evaluate=lambda state: Report({}),
            train_data=lambda: data.batches(data.split(self.seed)[0], size, self.seed),
            **training(
                ours.backbone(),
                Head(ours.loss, angle=ours.angle, cosine=ours.cosine),
                optim.from_config(OPTIM, steps),
                image_size=ours.image_size,
                embedding_size=ours.embedding_size,
                num_classes=self.classes,
                batch_size=size,
            ),
        )
        state, _ = train(experiment, Options(batch_size=size, steps=steps), seed=self.seed, quiet=True)
        kept = {"params": state.params["backbone"], "batch_stats": state.model_state, "centres": state.params["head"]}
        return jax.tree.map(np.asarray, kept)

    def kept(self, data_dir: str) -> dict[str, Any]:
        """As `train`, from disk where it was trained before with the same version of the faces."""
        described = f"{self} {VERSION} {faces.TASKS[self.task].key}"
        name = hashlib.sha256(described.encode()).hexdigest()[:16]
        file = store.data_dir(data_dir or None) / "recognisers" / f"{name}.msgpack"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(flax.serialization.msgpack_serialize(self.train(data_dir)))
            temporary.replace(file)
        return flax.serialization.msgpack_restore(file.read_bytes())


VERSION = 1
"""Of the recipe and of the faces; a change of either that changes weights raises it, and the bundle is made anew."""
_DEFAULT = Recogniser(image_size=48)
BUNDLE = {Run(_DEFAULT, seed): f"recognition_{seed}" for seed in range(4)} | {
    Run(_DEFAULT, 0, "quality_clean"): "quality_clean_0",
    Run(dataclasses.replace(_DEFAULT, dropout=0.0, angle=0.0, cosine=0.2), 100, "recognition_other"): "evaluator",
}
"""The trainings whose results come with the code, in half precision, by the name of each."""


def bundle_file() -> pathlib.Path:
    """The file of the bundled recognisers."""
    return pathlib.Path(str(importlib.resources.files("facejax") / "assets" / f"recognisers_v{VERSION}.msgpack"))


@functools.cache
def bundled() -> dict[str, Any]:
    """The recognisers that come with the code, by name."""
    halves = flax.serialization.msgpack_restore(bundle_file().read_bytes())
    return jax.tree.map(lambda x: x.astype(np.float32), halves)


def bundle(file: pathlib.Path, data_dir: str = "") -> None:
    """Writes the recognisers of `BUNDLE`; those that the bundle has already stay bit by bit."""
    have = flax.serialization.msgpack_restore(bundle_file().read_bytes()) if bundle_file().exists() else {}
    found = {name: have.get(name) or jax.tree.map(np.float16, run.kept(data_dir)) for run, name in BUNDLE.items()}
    file.write_bytes(flax.serialization.msgpack_serialize(found))


if __name__ == "__main__":
    bundle(bundle_file())
