"""Normalised faces: from the features of a face recogniser to the person's frontal, neutral, evenly lit face.

    python -m experiments.normalized_face                              # rendered faces, two cores
    python -m experiments.normalized_face --config=no_identity         # without the loss of the recogniser's embedding
    python -m experiments.normalized_face --config=no_morphing         # without morphs of the training faces
    python -m experiments.normalized_face --config=frontal             # normalised faces alone as inputs in training
    python -m experiments.normalized_face --config=full --config.data.path=DIR --config.recogniser.weights=r50.pth

The last is the published size, 224 pixels, on one GPU. DIR/person holds frontal, neutral, evenly lit photographs of a
person, each with 68 landmarks in a .pts file of its name; the authors collected about 12,000 of 1,000 people, which are
not public. FaceNet's NN2 is not public either: `recogniser.weights` is a state dict of arcface_torch, whose pooled maps
take the place of its 1024 features. The paper measures distances of FaceNet's embeddings; steps, batch and rate
are not published.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.normal_faces import NormalFaces
from facejax.evaluate import normalization
from facejax.generation import normalized_face
from facejax.generation.normalized_face import Decoder, Normalized
from facejax.metrics.image import eight_bit
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, map_batches, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(NormalFaces()),
    "recogniser": asdict(Recogniser(image_size=48)),
    "model": {
        "layer": "embedding",  # of the recogniser: "embedding", or "pooled", the mean of its last map
        "shared": 128,  # width of the layer before both branches; 0: none
        "hidden": (128, 128),  # widths of the landmark branch
        "channels": (128, 64, 32, 16, 16),  # of the texture branch, at a sixteenth of the side and at each double
        "order": 1,  # of the spline: 1 is r, 2 is r^2 log r
        "smoothing": 1e-4,  # of the spline, for landmarks that nearly coincide
        "dtype": "float32",  # of the computation
    },
    "loss": {"landmarks": 1.0, "texture": 1.0, "identity": 0.03},  # weights
    "morph": {
        "share": 0.5,  # part of the inputs that are morphs, 0..1
        "neighbours": 40,  # most similar faces that a face is morphed with
        "distance": 10.0,  # weight of the landmarks in that similarity
        "blend": False,  # keep the first face's surroundings, by gradient-domain blending
    },
    "optim": {
        "name": "adam",
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 0, "boundaries": (), "power": 1.0},
    },
    "train": asdict(Options(batch_size=32, steps=300)),
    "eval": {"batch_size": 64},
}
PRESETS = {
    "synthetic": {},
    "no_identity": {"loss.identity": 0.0},
    "no_morphing": {"morph.share": 0.0},
    "frontal": {"data.photographs": False},
    "full": {
        "data": {"kind": "folder", "path": "normal", "image_size": 224, "workers": 8},
        "recogniser": {**PUBLISHED, "image_size": 112},
        "model": {"layer": "pooled", "shared": 1024, "hidden": (800, 800), "channels": (256, 128, 64, 32, 32)},
        "morph": {"neighbours": 200, "blend": True},
        "optim.schedule.peak": 1e-3,
        "train": {"batch_size": 32, "steps": 100_000, "devices": 1, "eval_every": 10_000},
    },
}
CLAIM = (
    Claim(
        "normalized_face.identity",
        "the loss of the recogniser's embedding brings the output's identity nearer to the photograph's",
        metric="identity_cosine",
        better="higher",
        method="synthetic",
        baseline=("no_identity",),
    ),
    Claim(
        "normalized_face.morphing",
        "morphs of the training faces lower the error of the normalised faces of held-out people",
        metric="mae",
        better="lower",
        method="synthetic",
        baseline=("no_morphing",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, given, model, morph = NormalFaces(**config.data), Recogniser(**config.recogniser), config.model, config.morph
    if not 0 <= morph.share <= 1:
        raise ValueError(f"morph.share is {morph.share}: expected 0 to 1")
    size, recogniser_size = data.image_size, given.image_size or data.image_size
    tx = optim.from_config(config.optim, config.train.steps)
    recogniser = given.backbone()
    net = Decoder(68, size, model.shared, model.hidden, model.channels, jnp.dtype(model.dtype))
    identify = functools.partial(identity, recogniser, recogniser_size, model.layer)
    warp_options = {"order": model.order, "smoothing": model.smoothing}

    def render(faces: Normalized, mean: jax.Array) -> jax.Array:
        return normalized_face.warped(faces.textures, size * mean[None], size * faces.landmarks, **warp_options)

    def photographed(between: Normalized, first: Normalized, mean: jax.Array) -> jax.Array:
        images = render(between, mean)
        if not morph.blend:
            return images
        masks = jax.vmap(lambda points: normalized_face.hull(size * points, size))(between.landmarks)
        return jax.vmap(normalized_face.poisson_blend)(images, render(first, mean), masks)

    def decode(params: Any, features: jax.Array, model_state: Any) -> Normalized:
        found = net.apply({"params": params}, features)
        points = model_state["mean_landmarks"] + model_state["deviation"] * found.offsets
        return Normalized(points, model_state["mean_texture"] + found.texture)

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        pictures = jnp.zeros((1, recogniser_size, recogniser_size, 3))
        if start is None:
            start = {
                "recogniser": recogniser.init(rng, pictures, train=False),
                "mean_landmarks": jnp.zeros((68, 2)),
                "deviation": jnp.ones(()),
                "mean_texture": jnp.zeros((size, size, 3)),
            }
        features, _ = jax.eval_shape(identify, start["recogniser"], pictures)
        params = net.init(rng, jnp.zeros(features.shape))["params"]
        return TrainState.create(rng, params, tx, model_state=start)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        variables, mean, unit = (model_state[name] for name in ("recogniser", "mean_landmarks", "deviation"))
        wanted, images = of_batch(batch, "", size), normalize.symmetric(batch["image"])
        if count := round(morph.share * len(images)):
            first = Normalized(*(x[:count] for x in wanted))
            other = Normalized(*(x[:count] for x in of_batch(batch, "other_", size)))
            between = normalized_face.morph(rng, first, other)
            images = jnp.concatenate([photographed(between, first, mean), images[count:]])
            wanted = Normalized(*(jnp.concatenate([a, b[count:]]) for a, b in zip(between, wanted, strict=True)))
        features, embedding = identify(variables, images)
        found = decode(params, features, model_state)
        losses = {
            "landmarks": normalized_face.landmark_loss(found.landmarks / unit, wanted.landmarks / unit),
            "texture": normalized_face.texture_loss(found.textures, wanted.textures),
        }
        if config.loss.identity:
            output = identify(variables, render(found, mean))[1]
            losses["identity"] = normalized_face.identity_loss(output, embedding)
        total = sum(config.loss[name] * values for name, values in losses.items())
        return total.mean(), (model_state, {name: Mean.of(values) for name, values in losses.items()})

    def train_data() -> Any:
        found = data.textures(**warp_options)
        faces = Normalized(data.load("train").landmarks / size, np.asarray(normalize.symmetric(found)))
        similar = normalized_face.neighbours(faces, morph.neighbours, morph.distance)
        return data.batches(found, similar, config.train.batch_size, config.seed)

    def prepare() -> Any:
        embedder = given.embedder(0, image_size=recogniser_size, data_dir=data.data_dir)
        landmarks = data.load("train").landmarks / size
        mean_face = {
            "mean_landmarks": landmarks.mean(0),
            "deviation": normalized_face.deviation(landmarks),
            "mean_texture": normalize.symmetric(data.textures(**warp_options)).mean(0),
        }
        return {"recogniser": embedder.variables, **jax.tree.map(jnp.asarray, mean_face)}

    def evaluate(state: TrainState) -> Report:
        test, train, variables = data.load("test"), data.load("train"), state.model_state["recogniser"]
        call, given_state = config.eval.batch_size, (state.params, state.model_state)

        def made(given_state: Any, features: jax.Array) -> dict[str, jax.Array]:
            params, model_state = given_state
            found = decode(params, features, model_state)
            return {"image": render(found, model_state["mean_landmarks"]), "landmarks": size * found.landmarks}

        def embedded(variables: Any, images: jax.Array) -> jax.Array:
            return identify(variables, normalize.symmetric(images))

        def pictures(found: dict[str, np.ndarray]) -> np.ndarray:
            return eight_bit(127.5 * found["image"] + 127.5)

        features, _ = map_batches(embedded, variables, test.photographs, call)
        means = np.stack([features[test.person == p].mean(0) for p in range(len(test.images))])
        found = map_batches(made, given_state, features, call)
        independent = None if given.weights else given.evaluator(image_size=recogniser_size, data_dir=data.data_dir)
        return normalization.assess(
            test,
            pictures(found),
            found["landmarks"],
            pictures(map_batches(made, given_state, means, call)),
            train.images.mean(0),
            train.mean_landmarks,
            lambda images: map_batches(embedded, variables, images, call)[1],
            independent,
        )

    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=prepare,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=train_data,
        batch=data.shapes(config.train.batch_size),
    )


def identity(net: Any, side: int, layer: str, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [N, F] for the decoder and embeddings [N, D] of images [N, S, S, 3] in -1..1, by a frozen recogniser.

    Args:
      net, variables: an IResNet.
      side: of its input, pixels; other images are resized.
      layer: "pooled" or "embedding".
      images: in -1..1.
    """
    if layer not in ("pooled", "embedding"):
        raise ValueError(f"model.layer is {layer!r}: expected pooled or embedding")
    images = jax.image.resize(images, (len(images), side, side, 3), "linear")
    found = net.apply(variables, images, train=False, features=True)
    pooled = found[f"stage{len(net.depths)}"].mean((1, 2)).astype(jnp.float32)
    return pooled if layer == "pooled" else found["embedding"], found["embedding"]


def of_batch(batch: dict[str, jax.Array], prefix: str, size: int) -> Normalized:
    """The normalised faces in a batch."""
    return Normalized(batch[f"{prefix}landmarks"] / size, normalize.symmetric(batch[f"{prefix}texture"]))


if __name__ == "__main__":
    app.main(get_config, build)
