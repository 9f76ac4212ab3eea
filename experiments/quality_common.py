"""What the quality experiments share: recognisers, faces whose faults are known, and how a score is judged.

A score is judged on people whom nobody was trained on, with the embeddings of a recogniser that no score was fitted to
(other people, another margin): does throwing away what it calls bad lower the error, and does it follow the true fault?
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import arcface
from facejax.data import pipeline, transforms
from facejax.data.builders import store
from facejax.data.synthetic import faces
from facejax.metrics import quality
from facejax.ops import vectors
from facejax.quality import factors
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    image_grid,
    map_batches,
    new_figure,
    optim,
    parallel,
    supervised_step,
)
from facejax.train.checkpoint import Checkpointer

DATA = {
    "source": "face_world",  # or "path": whatever facejax.data.readers.read opens
    "path": "",
    "data_dir": "",
    "image_size": 48,
    "people": 80,  # to learn from
    "judged": 60,  # to be judged on
    "threads": 2,
    "workers": 0,
}
RECOGNISER = {
    "name": "tiny",  # of `arcface.BACKBONES`
    "embedding_size": 64,
    "dropout": 0.4,
    "dtype": "float32",
    "loss": "margin",  # that it is trained by: a `kind` of ArcFace's
    "image_size": 0,  # of the pictures it embeds; 0 is data.image_size
    "steps": 300,
    "weights": "",  # PyTorch state dicts of arcface_torch, instead of training: several with commas, taken by seed
}
TRAIN = dataclasses.asdict(Options(batch_size=64, steps=300))
PUBLISHED = {"name": "iresnet50", "embedding_size": 512, "dropout": 0.0}
EVAL = {"batch_size": 128, "fmr": 1e-2, "start": 0.05, "limit": 0.3, "pairs": 5_000_000}
"""`pairs`: at most as many impostor pairs, where all pairs are more; then they are drawn at random."""
FAULTS = ("motion", "defocus", "resolution", "noise", "occluder")
JUDGE = {
    "seed": 100,
    "task": "recognition_other",
    "model__dropout": 0.0,
    "loss__angle": 0.0,
    "loss__cosine": 0.2,
}
BUNDLE = ({"seed": 0}, {"seed": 1}, {"seed": 2}, {"seed": 3}, JUDGE, {"seed": 0, "task": "quality_clean"})
BUNDLED = pathlib.Path(__file__).with_name("recognisers.msgpack")
"""Recognisers of the default settings, in half precision; `python -m experiments.quality_common` adds what it lacks."""


class Pictures:
    """A source's pictures, decoded when they are asked for: indexed like an array [..., S, S, 3] uint8.

    Args:
      source: of encoded images.
      rows: [...] int, which of them.
      size: S.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: Any, rows: np.ndarray, size: int):
        self._source, self._rows, self._size = source, rows, size
        self.shape = (*rows.shape, size, size, 3)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self._rows[index]
        found = [arcface.picture(e, self._size) for e in pipeline.fetch(self._source, np.ravel(rows))]
        return np.stack(found).reshape(*np.shape(rows), *self.shape[-3:])

    @property
    def names(self) -> list[str]:
        """Of all pictures in order: "person/file.jpg" where the source is a folder, else the number in the source."""
        names = self.source_names
        return [names[i] for i in self._rows.ravel()]

    @property
    def source_names(self) -> Sequence[str]:
        """Names of all pictures of the source, those of other people included."""
        return getattr(self._source, "names", None) or [str(i) for i in range(len(self._source))]

    def take(self, places: np.ndarray) -> Pictures:
        """Those at `places`, [...] int along the first axis, not decoded yet."""
        return Pictures(self._source, self._rows[places], self._size)

    def reshape(self, *shape: int) -> Pictures:
        """In another order of axes but the last three."""
        return Pictures(self._source, self._rows.reshape(shape[:-3]), self._size)


def names(images: np.ndarray | Pictures) -> list[str]:
    """What a file of one's own calls pictures [N, S, S, 3]: `Pictures.names`, or their numbers where rendered."""
    return getattr(images, "names", None) or [str(i) for i in range(len(images))]


def take(images: np.ndarray | Pictures, places: np.ndarray) -> np.ndarray | Pictures:
    """Pictures at `places`, [...] int along the first axis."""
    return images.take(places) if isinstance(images, Pictures) else images[places]


class Faces(NamedTuple):
    """Pictures of people.

    Attributes:
      images: [N, S, S, 3] uint8; `Pictures` where they come from a path.
      people: [N] int, 0 and up.
      fault: [N] strength of what is wrong with the picture, 0 to 1; NaN where that is not known.
      kind: [N] int, place in `FAULTS`, -1 for none.
      yaw: [N] radians; NaN where that is not known.
      light: [N] radians between the light and the camera, seen from the head; NaN where that is not known.
      landmarks: [N, 5, 2] pixels of `images`, eyes, nose tip and mouth corners; NaN where they are not known.
    """

    images: np.ndarray | Pictures
    people: np.ndarray
    fault: np.ndarray
    kind: np.ndarray
    yaw: np.ndarray
    light: np.ndarray
    landmarks: np.ndarray


def people(data: ConfigDict, split: str, task: str = "quality") -> Faces:
    """People to learn from ("train") or to be judged on ("test"); of a `path` the first `people`, the next `judged`.

    In the face world every person has 24 pictures, 20 of them with one fault of a random kind and strength. The task
    "sets" has 32, four sets of 8.
    """
    return _people(task, data.source, data.path, data.data_dir, data.image_size, data.people, data.judged, split)


@functools.lru_cache(maxsize=4)
def _people(name: str, source: str, path: str, data_dir: str, size: int, learn: int, judged: int, split: str) -> Faces:
    if source == "face_world":
        task = faces.TASKS[name]
        count, most = (learn, task.train) if split == "train" else (judged, task.test)
        if not 0 < count <= most:
            raise ValueError(f"data.people or data.judged is {count}: expected 1 to {most}, the face world's {split}")
        opened = faces.load(task, split, data_dir or None)
        examples = pipeline.fetch(opened, range(len(opened)))
        first = min(e["person"] for e in examples)
        return _face_world([e for e in examples if e["person"] < first + count], size)
    from facejax.data import readers  # only one's own pictures need it

    opened = readers.read(path)
    labels = arcface.all_labels(opened)
    persons = np.unique(labels)
    if len(persons) < learn + judged:
        raise ValueError(f"{path} holds {len(persons)} people: expected data.people + data.judged, {learn + judged}")
    chosen = persons[:learn] if split == "train" else persons[learn : learn + judged]
    rows = np.flatnonzero(np.isin(labels, chosen))
    return unmeasured(Pictures(opened, rows, size), np.searchsorted(chosen, labels[rows]))


def unmeasured(images: np.ndarray | Pictures, people: np.ndarray) -> Faces:
    """Pictures of which only the people [N] are known."""
    unknown = np.full((len(people), 5, 2), np.nan)
    nothing = unknown[:, 0, 0]
    return Faces(images, people, nothing, np.full(len(people), -1), nothing, nothing, unknown)


def _face_world(examples: Any, size: int) -> Faces:
    images = [
        transforms.resize(transforms.decode(image), size, size) for e in examples for image in np.asarray(e["image"])
    ]
    levels = np.stack(
        [
            np.stack([(e[k] - (k == "resolution")) / (faces.STRONGEST[k] - (k == "resolution")) for k in FAULTS], 1)
            for e in examples
        ]
    ).reshape(-1, len(FAULTS))
    numbers = np.array([e["person"] for e in examples])
    views = len(images) // len(examples)
    scale = size / transforms.decode(examples[0]["image"][0]).shape[0]
    marks = scale * np.concatenate([e["landmarks68"] for e in examples])
    towards = np.concatenate([e["light"][:, :3] for e in examples])
    eyes = [marks[:, eye].mean(1) for eye in (slice(36, 42), slice(42, 48))]
    return Faces(
        images=np.stack(images),
        people=np.repeat(numbers - numbers.min(), views),
        fault=levels.max(1),
        kind=np.where(levels.max(1) > 0, levels.argmax(1), -1),
        yaw=np.concatenate([e["pose"][:, 1] for e in examples]),
        light=np.arccos(towards[:, 2] / np.linalg.norm(towards, axis=1)),
        landmarks=np.stack([*eyes, marks[:, 30], marks[:, 48], marks[:, 54]], 1),
    )


class Recogniser(NamedTuple):
    """A trained embedder.

    Attributes:
      net: Linen module of uint8 pictures made -1..1.
      variables: its parameters and statistics.
      centres: [C, D] of the people it was trained on.
      image_size: of the pictures it was trained on; others are resized.
    """

    net: Any
    variables: Mapping[str, Any]
    centres: np.ndarray
    image_size: int

    def __call__(self, images: np.ndarray | Pictures, batch_size: int = 128) -> np.ndarray:
        """[N, S, S, 3] uint8 -> [N, D] embeddings, of their own lengths."""
        size = self.image_size

        def embed(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
            return {"embedding": self.net.apply(variables, arcface.preprocess(batch), train=False)}

        def fitted(part: np.ndarray) -> np.ndarray:
            return part if part.shape[1] == size else np.stack([transforms.resize(x, size, size) for x in part])

        return map_batches(embed, self.variables, images, batch_size, fitted)["embedding"]


def recogniser(config: ConfigDict, seed: int, task: str = "recognition", **changes: Any) -> Recogniser:
    """An ArcFace network as `config.recogniser` says; of the default task, trained on none of `people`'s people.

    `BUNDLE` comes with the code; another one is trained when it is asked for first, and kept on disk.

    Args:
      config: of a quality experiment.
      seed: of its initialisation and training.
      task: of the face world, whose people it learns.
      **changes: of `arcface.get_config`'s fields, with "__" for dots.
    """
    if config.data.source == "path" and not config.recogniser.weights and config.recogniser.name != "tiny":
        raise ValueError(
            f"recogniser.weights is empty: expected a state dict of arcface_torch's {config.recogniser.name}; "
            "on rendered faces only 'tiny' is trained for one's own pictures"
        )
    settings = _settings(config, seed, task, **changes)
    net, size = arcface.make_backbone(settings.model), settings.data.image_size
    if settings.eval.weights:
        nobody = np.zeros((0, settings.model.embedding_size))
        return Recogniser(net, arcface.read_weights(settings, net), nobody, size)
    kept = _bundled().get(_key(settings)) or _trained(settings, config.data.data_dir)
    return Recogniser(net, {k: kept[k] for k in ("params", "batch_stats")}, kept["centres"], size)


def _settings(config: ConfigDict, seed: int, task: str = "recognition", **changes: Any) -> ConfigDict:
    """ArcFace's configuration for a recogniser."""
    ours, settings = config.recogniser, arcface.get_config("synthetic")
    settings.seed, settings.data.task = seed, task
    settings.data.image_size, settings.train.steps = ours.image_size or config.data.image_size, ours.steps
    settings.loss.kind = ours.loss
    for field in ("name", "embedding_size", "dropout", "dtype"):
        settings.model[field] = ours[field]
    files = ours.weights.split(",")
    settings.eval.weights = files[seed % len(files)]
    settings.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return settings


def _key(settings: ConfigDict) -> str:
    """A name for what these settings train on the pictures as they are drawn now."""
    pictures = faces.TASKS[settings.data.task].key
    return hashlib.sha256((settings.to_json(sort_keys=True) + pictures).encode()).hexdigest()[:16]


def _trained(settings: ConfigDict, data_dir: str) -> dict[str, Any]:
    """Parameters, statistics and class centres, from disk where they were trained before."""
    file = store.data_dir(data_dir or None) / "recognisers" / f"{_key(settings)}.msgpack"
    if not file.exists():
        settings.data.data_dir = data_dir
        state, _ = app.run(settings, _unjudged(arcface.build), quiet=True)
        kept = {"params": state.params["backbone"], "batch_stats": state.model_state, "centres": state.params["head"]}
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(flax.serialization.msgpack_serialize(jax.tree.map(np.asarray, kept)))
        temporary.replace(file)
    return flax.serialization.msgpack_restore(file.read_bytes())


@functools.cache
def _bundled() -> dict[str, Any]:
    """The recognisers that come with the code, by `_key`."""
    halves = flax.serialization.msgpack_restore(BUNDLED.read_bytes())
    return jax.tree.map(lambda x: x.astype(np.float32), halves)


def starting_weights(config: ConfigDict, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables of `recogniser(config, config.seed)`, in place of those of a network of the same kind.

    The recogniser has been trained by then, where the training data were opened.
    """
    return read_later(lambda: recogniser(config, config.seed).variables, variables)


def read_later(read: Callable[[], Any], variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `read` returns, in place of variables of the same shapes, while a state is made, which JAX traces.

    It is called when the state is computed, so a `--dry_run` needs no weights.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    return jax.pure_callback(read, shapes)


def stage_before(
    config: ConfigDict, settings: ConfigDict, build: Callable[[ConfigDict], Experiment], same: tuple[str, ...]
) -> tuple[Any, Any]:
    """Parameters and model_state that the stage before left: read from its workdir, or trained now and kept in memory.

    Args:
      config: of the stage that begins; `start.workdir` is where the one before worked, empty to train it.
      settings: of the stage before, which `stage` names; they are trained by where there is no workdir.
      build: of the experiment.
      same: fields that both stages must have alike.
    """
    workdir = config.start.workdir
    if not workdir:
        if config.data.source == "path":
            raise ValueError(f"start.workdir is empty: expected the folder of a finished {settings.stage} run")
        return _trained_before(settings.to_json_best_effort(sort_keys=True), build)
    theirs, *found = _left_behind(workdir, settings.stage, build)
    for section, name in (field.split(".") for field in same):
        has, wanted = theirs[section][name], config[section][name]
        if has != wanted:
            raise ValueError(f"start.workdir {workdir} has {section}.{name} {has!r}: expected {wanted!r}")
    return tuple(found)


@functools.lru_cache(maxsize=8)
def _trained_before(settings: str, build: Callable[[ConfigDict], Experiment]) -> tuple[Any, Any]:
    state, _ = app.run(ConfigDict(json.loads(settings)), _unjudged(build), quiet=True)
    return jax.tree.map(np.asarray, (state.params, state.model_state))


@functools.lru_cache(maxsize=1)
def _left_behind(workdir: str, stage: str, build: Callable[[ConfigDict], Experiment]) -> tuple[ConfigDict, Any, Any]:
    """Configuration, parameters and model_state of a finished run."""
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").exists():
        raise ValueError(f"start.workdir {folder} holds no config.json: expected a finished run of {stage}")
    settings = ConfigDict(json.loads((folder / "config.json").read_text())["config"])
    if settings.get("stage") != stage:
        raise ValueError(f"start.workdir {folder} is a run of stage {settings.get('stage')!r}: expected {stage!r}")
    experiment = build(settings)
    executor = parallel.make_executor(experiment, "shard_map", 0)
    checkpointer = Checkpointer(folder / "checkpoints")
    try:
        if checkpointer.latest != settings.train.steps:
            raise ValueError(
                f"start.workdir {folder} has come to step {checkpointer.latest}: expected the last, "
                f"{settings.train.steps}"
            )
        state, _ = checkpointer.restore(executor.abstract(jax.eval_shape(experiment.init, jax.random.key(0))))
    finally:
        checkpointer.close()
    return settings, *jax.tree.map(np.asarray, (state.params, state.model_state))


def _unjudged(build: Callable[[ConfigDict], Experiment]) -> Callable[[ConfigDict], Experiment]:
    return lambda config: dataclasses.replace(build(config), evaluate=lambda state: Report({}))


def judge(config: ConfigDict) -> Recogniser:
    """The recogniser whose errors scores are judged by: other people, CosFace's margin, no dropout, always one seed.

    Where `recogniser.weights` are given it is they, and scores learnt from them are judged by what taught them.
    """
    return recogniser(config, 0) if config.recogniser.weights else recogniser(config, **JUDGE)


class Rows:
    """Rows of arrays as a data source.

    Args:
      arrays: name -> [N, ...].
      order: [M] which rows, in which order and how often; None is each once.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], order: np.ndarray | None = None):
        self._arrays = arrays
        self._order = np.arange(len(next(iter(arrays.values())))) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[self._order[index]] for name, array in self._arrays.items()}


def flipped_batch(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
    """A batch of rows with "image" among them, mirrored at random."""
    batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    batch["image"] = np.stack([transforms.random_flip(x, rng) for x, rng in zip(batch["image"], rngs, strict=True)])
    return batch


def batches(config: ConfigDict, source: Any, load: pipeline.Load = flipped_batch, batch_size: int = 0) -> Any:
    """Endless training batches of `source`; `batch_size` 0 is train.batch_size."""
    data, size = config.data, batch_size or config.train.batch_size
    return pipeline.train_batches(source, load, size, seed=config.seed, threads=data.threads, workers=data.workers)


def regression(
    config: ConfigDict,
    net: Any,
    loss: Callable[[jax.Array, dict[str, jax.Array]], jax.Array],
    source: Callable[[], Any],
    fields: Mapping[str, jax.ShapeDtypeStruct],
    *,
    load: pipeline.Load = flipped_batch,
    batch_size: int = 0,
    tx: optax.GradientTransformation | None = None,
    start: Callable[[Any], Any] | None = None,
) -> Experiment:
    """A network that is trained to score pictures, and judged.

    Args:
      config: with sections data, recogniser, optim, train and eval.
      net: Linen module, (pictures -1..1 [N, S, S, 3], train) -> [N].
      loss: (scores [N], batch) -> losses, any shape; their mean is minimised. "step" is in the batch, too: [N] int.
      source: () -> what to draw examples from.
      fields: what a batch holds besides "image", with its global shapes.
      load: examples to a batch.
      batch_size: examples drawn a step; 0 takes train.batch_size (PCNet draws people and gets pictures).
      tx: the optimizer; None takes the section `optim`.
      start: variables -> variables, for weights taken over from elsewhere.
    """
    size, batch = config.data.image_size, config.train.batch_size
    tx = tx or optim.from_config(config.optim, config.train.steps)

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        variables = start(variables) if start else variables
        return TrainState.create(
            rng, variables["params"], tx, model_state={k: v for k, v in variables.items() if k != "params"}
        )

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        scores, updated = net.apply(
            {"params": params, **model_state},
            arcface.preprocess(batch["image"]),
            train=True,
            mutable=list(model_state),
            rngs={"dropout": rng},
        )
        losses = loss(scores, batch)
        return losses.mean(), (updated, {"loss": Mean.of(losses)})

    step = supervised_step(loss_fn, tx, microbatches=config.train.microbatches)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        return step(state, {**batch, "step": jnp.full(len(batch["image"]), state.step)}, rng)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params, **state.model_state}
        return assess(config, score(config, net, variables, people(config.data, "test").images))

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=train_step,
        train_data=lambda: batches(config, source(), load, batch_size),
        batch={"image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8), **fields},
    )


def score(config: ConfigDict, net: Any, variables: Any, images: np.ndarray | Pictures) -> np.ndarray:
    """Scores [N] of pictures [N, S, S, 3] uint8."""

    def one(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"score": net.apply(variables, arcface.preprocess(images), train=False)}

    return map_batches(one, variables, images, config.eval.batch_size)["score"]


def floors(test: Faces, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores that need no learning: chance and sharpness."""
    return {
        "random": np.random.default_rng(seed).random(len(test.people)),
        "sharpness": measured(factors.sharpness, test.images),
    }


def stretched(values: np.ndarray) -> np.ndarray:
    """[N] to 0..1, the lowest to 0 and the highest to 1; all 0 where they are equal."""
    return (values - values.min()) / (np.ptp(values) or 1)


def measured(measure: Callable[[jax.Array], jax.Array], images: np.ndarray | Pictures) -> np.ndarray:
    """A measure of `factors` of all pictures, [N]."""
    return map_batches(lambda _, batch: {"value": measure(batch)}, {}, images, 256)["value"]


class Pairs(NamedTuple):
    """Pairs of the pictures judged: places [P] of both, angular distance [P], whether the person is the same."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    same: np.ndarray


def pairs(config: ConfigDict, test: Faces) -> Pairs:
    """Every pair of pictures, or every genuine one and many others, compared by `judge`."""
    features = judge(config)(test.images, config.eval.batch_size)
    return compare(features, test.people, *chosen_pairs(test.people, config.eval.pairs))


def compare(features: np.ndarray, people: np.ndarray, first: np.ndarray, second: np.ndarray) -> Pairs:
    """The pictures at `first` with those at `second`, [P] each, by embeddings [N, D] of any length."""
    unit, block = vectors.unit_rows(features), 1 << 17
    parts = [(first[i : i + block], second[i : i + block]) for i in range(0, len(first), block)]
    cosine = np.concatenate([np.einsum("pd,pd->p", unit[a], unit[b]) for a, b in parts])
    return Pairs(first, second, np.arccos(np.clip(cosine, -1, 1)) / np.pi, people[first] == people[second])


def chosen_pairs(people: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of pictures of `people` [N], or, where they are more than `most`, the genuine and `most` others."""
    count = len(people)
    if count * (count - 1) // 2 <= most:
        return np.triu_indices(count, 1)
    groups = [np.flatnonzero(people == person) for person in np.unique(people)]
    genuine = np.concatenate([rows[np.stack(np.triu_indices(len(rows), 1))] for rows in groups], 1)
    drawn = np.random.default_rng(0).integers(0, count, (2, most))
    return tuple(np.concatenate([genuine, drawn[:, people[drawn[0]] != people[drawn[1]]]], 1))


def measures(config: ConfigDict, scores: np.ndarray, test: Faces, compared: Pairs) -> dict[str, float]:
    """What a score [N] is worth.

    "aoc" (curve B at eval.fmr, higher is better) and "partial_auc" (the same curve's mean error up to eval.limit, in
    parts of the first: lower is better; neither where nothing is wrong to begin with), "edc_area" (curve A beginning at
    eval.start, up to eval.limit, above the theoretical best: lower is better) and, where faults are known, rank
    correlations with being faultless and with being turned to the camera.
    """
    low = quality.pair_quality(scores[compared.first], scores[compared.second])
    curve = quality.fnmr_discard_curve(compared.distance, compared.same, low, config.eval.fmr)
    fixed = discard_curve(config, scores, compared)
    found = {}
    if curve.errors[0] > 0:
        found["aoc"] = quality.area_over_curve(curve)
        found["partial_auc"] = quality.relative_partial_area(curve, config.eval.limit)
    found["edc_area"] = quality.excess_area(fixed, config.eval.limit)
    if np.isfinite(test.fault).all():
        found["fault_correlation"] = quality.spearman(scores, -test.fault)
    if np.isfinite(test.yaw).all():
        found["yaw_correlation"] = quality.spearman(scores, -np.abs(test.yaw))
    return found


def discard_curve(config: ConfigDict, scores: np.ndarray, compared: Pairs) -> quality.DiscardCurve:
    """Curve A of a score [N] over the genuine pairs."""
    same = compared.same
    low = quality.pair_quality(scores[compared.first[same]], scores[compared.second[same]])
    similarity = -compared.distance[same]
    return quality.error_discard_curve(similarity, low, quality.starting_threshold(similarity, config.eval.start))


def assess(config: ConfigDict, scores: np.ndarray, arrays: Mapping[str, np.ndarray] | None = None) -> Report:
    """Judges a score [N] of `people(config.data, "test")`; `arrays` go into the report."""
    test = people(config.data, "test")
    if scores.shape != test.people.shape or not np.isfinite(scores).all():
        raise ValueError(f"scores of shape {scores.shape}: expected {test.people.shape}, all finite")
    compared = pairs(config, test)
    others = floors(test)
    if np.isfinite(test.fault).all():
        others["true fault"] = -test.fault
    curves = {name: discard_curve(config, s, compared) for name, s in {"this": scores, **others}.items()}
    figures = {"Error over discarded": edc_figure(config, curves)}
    if np.isfinite(test.fault).all():
        figures["Score over fault"] = fault_figure(scores, test)
    return Report(
        measures(config, scores, test, compared),
        figures=figures,
        images={"From the worst to the best": ranked(scores, test.images)},
        arrays={"scores": scores, **(arrays or {})},
    )


def together(first: Report, second: Report) -> Report:
    """All of two reports in one, the first's numbers first."""
    return Report(*({**getattr(first, f.name), **getattr(second, f.name)} for f in dataclasses.fields(Report)))


def edc_figure(config: ConfigDict, curves: Mapping[str, quality.DiscardCurve]) -> Any:
    """FNMR over the share of genuine pairs discarded, one line a score."""
    from matplotlib import colormaps  # takes a while to import

    figure, axis = new_figure(7, 3.6)
    plain = {"random": "0.7", "sharpness": "0.5", "true fault": "black"}
    own = [name for name in curves if name not in plain]
    palette = [c for c in colormaps["tab10" if len(own) < 10 else "tab20"].colors if np.ptp(c) > 0.1]  # no greys
    colours = dict(zip(own, palette, strict=False))
    for name, curve in curves.items():
        style = {"color": plain[name], "ls": "--", "lw": 1.2} if name in plain else {"color": colours[name], "lw": 1.6}
        axis.step(curve.discarded, curve.errors, where="post", label=name, **style)
    axis.set(xlabel="share of genuine pairs discarded", ylabel="false non-match rate", xlim=(0, 0.8))
    axis.set_ylim(0, 2 * config.eval.start)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def fault_figure(scores: np.ndarray, test: Faces, kinds: tuple[str, ...] = FAULTS) -> Any:
    """One panel a fault: score over its strength, with faultless pictures at 0."""
    figure, axes = new_figure(2.2 * len(kinds), 2.6, 1, len(kinds))
    for kind, axis in enumerate(axes):
        for rows, colour in ((test.kind == -1, "lightgrey"), (test.kind == kind, None)):
            axis.plot(test.fault[rows], scores[rows], ".", ms=3, color=colour)
        axis.set_xlabel(kinds[kind])
        axis.tick_params(labelleft=kind == 0)
        if kind:
            axis.sharey(axes[0])
    axes[0].set_ylabel("score")
    return figure


def ranked(scores: np.ndarray, images: np.ndarray, rows: int = 5, columns: int = 12) -> np.ndarray:
    """Pictures by score, row by row from the worst to the best, evenly spread over the ranks."""
    count = min(rows * columns, len(scores))
    places = np.linspace(0, len(scores) - 1, count).astype(int)
    return image_grid(images[np.argsort(scores, kind="stable")[places]], columns)


def main() -> None:
    """Trains the recognisers of the default settings that are neither bundled nor on disk, and writes all."""
    config, kept = ConfigDict({"data": DATA, "recogniser": RECOGNISER}), {}
    for arguments in BUNDLE:
        settings = _settings(config, **arguments)
        key = _key(settings)
        kept[key] = jax.tree.map(np.float16, _bundled().get(key) or _trained(settings, config.data.data_dir))
        print(f"{key}  seed {settings.seed}, {settings.data.task}", flush=True)
    BUNDLED.write_bytes(flax.serialization.msgpack_serialize(kept))


if __name__ == "__main__":
    main()
