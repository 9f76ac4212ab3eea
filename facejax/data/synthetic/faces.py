"""`facejax_faces`: the face world as a tfds data set, one configuration per task.

`register` adds a task. `load` reads a task and prepares it on first use.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from facejax.data.builders import store
from facejax.data.synthetic import factors as factor
from facejax.data.synthetic.factors import Factors, Ranges
from facejax.data.synthetic.render import Renderer
from facejax.morphable.procedural import ALBEDO, EXPRESSIONS, IDENTITY, procedural

VERSION = "1.3.0"
BATCH = 16
SCALARS = ("age", "hair", "glasses", "tint", "occluder", "motion", "defocus", "resolution", "noise", "jpeg")


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set of the face world.

    Attributes:
      name: name of the task.
      image_size: side of the images, pixels.
      train, test: numbers of identities; the splits are disjoint.
      per_person: examples per identity.
      ranges: ranges of the factors.
      aligned: true: aligned to the recognition template; false: the whole head.
      views: images per example.
      vary: (factors of the first view, number of a view) -> factors of that view; None: a single view.
      dense: whether examples contain position and depth maps.
      seed: seed of everything. Tasks with equal seeds and equal ranges of age and hair show the same identities.
    """

    name: str
    image_size: int = 64
    train: int = 80
    test: int = 40
    per_person: int = 24
    ranges: Ranges = dataclasses.field(default_factory=Ranges)
    aligned: bool = False
    views: int = 1
    vary: Callable[[Factors, int], Factors] | None = None
    dense: bool = False
    seed: int = 0

    @property
    def key(self) -> str:
        """The name with a hash of all settings: changed settings give another data set."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "vary"}
        vary = self.vary.__name__ if self.vary else ""
        return f"{self.name}_{hashlib.sha256(repr((fields, vary, VERSION)).encode()).hexdigest()[:8]}"


def without(*names: str) -> Callable[[Factors, int], Factors]:
    """A `vary` that removes the named factors, such as glasses, blur or low resolution, from the first view."""

    def vary(first: Factors, view: int) -> Factors:
        clean = {name: np.array(1.0 if name == "resolution" else 0.0) for name in names}
        return {**first, **clean} if view else first

    vary.__name__ = "without_" + "_".join(names)
    return vary


STRONGEST = {"motion": 45.0, "defocus": 10.0, "resolution": 12.0, "noise": 90.0, "occluder": 0.65}


def worse(first: Factors, view: int) -> Factors:
    """Views of one identity with varying pose and light, and one degradation in every view but the first."""
    rng = np.random.default_rng([int(first["degrade_seed"]), view])
    kind = ("motion", "defocus", "resolution", "noise", "occluder")[rng.integers(5)] if view else "none"
    level = rng.random()
    changed = {k: np.array(1.0 if k == "resolution" else 0.0) for k in STRONGEST}
    if kind != "none":
        changed[kind] = np.array(max(STRONGEST[kind] * level, 1.0 if kind == "resolution" else 0.0))
    pose = first["pose"] + rng.normal(size=3) * [0.10, 0.35, 0.05]
    light = first["light_direction"] + rng.normal(size=3) * [0.5, 0.3, 0.0]
    return {**first, **changed, "pose": pose, "light_direction": light, "degrade_seed": np.array(rng.integers(2**31))}


def hopeless(first: Factors, view: int) -> Factors:
    """As `worse`, but every third view has all degradations at full strength, and the others have none."""
    plain = {k: np.array(1.0 if k == "resolution" else 0.0) for k in STRONGEST}
    faults = {k: np.array(level) for k, level in STRONGEST.items()}
    return {**worse(first, view), **(faults if view % 3 == 2 else plain)}


def moving(first: Factors, view: int) -> Factors:
    """Frames of a video: head and mouth move, and motion blur follows the speed of the head."""
    rng = np.random.default_rng([int(first["degrade_seed"]), 99])
    speed, phase, size = rng.uniform(0.2, 1.1, 3), rng.uniform(0, 6.28, 3), rng.uniform(0.05, 0.25, 3)
    pose = first["pose"] + size * np.sin(speed * view + phase)
    turn = np.abs(size * speed * np.cos(speed * view + phase))
    talk = first["expression_strength"].copy()
    talk[0] = 0.25 + 0.25 * np.sin(0.9 * view + phase[0])
    blur = 30.0 * turn[1] + 20.0 * turn[0]
    angle = np.arctan2(turn[0], turn[1])
    return {
        **first,
        "pose": pose,
        "expression_strength": talk,
        "motion": np.array(blur),
        "motion_angle": np.array(angle),
    }


def gliding(first: Factors, view: int) -> Factors:
    """Sharp frames at a high rate: head and mouth move smoothly, now slowly, now up to 2 pixels of 64 per frame."""
    rng = np.random.default_rng([int(first["degrade_seed"]), 98])
    turn, shift = rng.uniform(0.05, 0.25, 3), rng.uniform(0.06, 0.16, 3) * [1, 1, 0.5]
    speed, phase = rng.uniform(0.06, 0.18, (3, 3)), rng.uniform(0, 6.28, (3, 3))
    waves = np.sin(speed * view + phase)
    talk = first["expression_strength"].copy()
    talk[0] = 0.3 + 0.3 * waves[2, 0]
    return {
        **first,
        "pose": first["pose"] + turn * waves[0],
        "jitter": first["jitter"] + shift * waves[1],
        "expression_strength": talk,
    }


TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Adds a task. Raises ValueError if its name exists already."""
    if task.name in TASKS:
        raise ValueError(f"face world: a task named {task.name!r} exists already")
    TASKS[task.name] = task
    return task


_WILD = Ranges(yaw_uniform=1.2, pitch=0.25, roll=0.2, glasses=0.2, occluder=0.15, motion=0.1, low_resolution=0.1)
_CLEAN = Ranges(defocus=0.0, noise=0.0, jpeg=0.0)

register(Task("recognition", 48, aligned=True))
register(Task("recognition_112", 112, aligned=True))
register(Task("landmarks", 64, 400, 100, 6, _WILD))
register(Task("attributes", 64, 400, 100, 6, dataclasses.replace(Ranges(), glasses=0.5)))
register(Task("reconstruction", 64, 300, 60, 6, dataclasses.replace(_WILD, occluder=0.0), dense=True))
register(Task("recognition_other", 48, aligned=True, seed=2))
register(Task("groups", 48, 400, 80, 12, aligned=True, seed=5))
register(Task("recognition_faulty", 48, 80, 1, 4, _CLEAN, aligned=True, views=6, vary=worse))
register(Task("quality_clean", 48, 80, 1, aligned=True, seed=1))
register(Task("quality", 48, 80, 60, 4, _CLEAN, aligned=True, views=6, vary=worse, seed=1))
register(Task("magnitude", 48, 200, 1, 8, _CLEAN, aligned=True, views=6, vary=worse, seed=4))
register(Task("hopeless", 48, 200, 1, 8, _CLEAN, aligned=True, views=6, vary=hopeless, seed=4))
register(Task("sets", 48, 80, 60, 4, _CLEAN, aligned=True, views=8, vary=worse, seed=1))
register(
    Task("pairs_glasses", 64, 300, 60, 3, dataclasses.replace(_CLEAN, glasses=1.0), views=2, vary=without("glasses"))
)
register(Task("pairs_blur", 64, 300, 60, 3, dataclasses.replace(_CLEAN, motion=1.0), views=2, vary=without("motion")))
register(
    Task(
        "pairs_resolution",
        64,
        300,
        60,
        3,
        dataclasses.replace(_CLEAN, low_resolution=1.0),
        views=2,
        vary=without("resolution"),
    )
)
register(Task("portraits", 64, 1500, 500, 2, _CLEAN, aligned=True, seed=6))
register(Task("video", 64, 60, 15, 2, _CLEAN, views=12, vary=moving))
register(Task("video_sharp", 64, 48, 12, 1, _CLEAN, views=80, vary=gliding))


class FacejaxFaces(tfds.core.GeneratorBasedBuilder):
    """Rendered faces with ground truth. See `Task`."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, task: Task, data_dir: str | os.PathLike[str] | None = None):
        self.task = task
        config = tfds.core.BuilderConfig(name=task.key, version=VERSION, description=repr(task))
        super().__init__(config=config, data_dir=store.data_dir(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(face_features(self.task)))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        people = {"train": range(self.task.train), "test": range(self.task.train, self.task.train + self.task.test)}
        return {split: self._generate_examples(numbers) for split, numbers in people.items()}

    def _generate_examples(self, people: range) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from generate(self.task, people)


def load(task: str | Task, split: str, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """A split of a task as a random-access source of examples with PNG bytes; prepared on first use.

    Args:
      task: the name of a registered task, or any task.
      split: "train" or "test".
      data_dir: folder of prepared data; see `store.data_dir`.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"face world: unknown task {task!r}, expected one of {', '.join(TASKS)}")
        task = TASKS[task]
    builder = FacejaxFaces(task=task, data_dir=data_dir)
    return store.prepared(builder, split, {"image": store.Encoded()})


def face_features(task: Task) -> dict[str, Any]:
    """Features of an example; several views add a leading axis to all that varies by view."""
    size, views = task.image_size, task.views
    lead = (views,) if views > 1 else ()

    def tensor(*shape: int, dtype: Any = np.float32) -> Any:
        return tfds.features.Tensor(shape=(*lead, *shape), dtype=dtype)

    image = tfds.features.Image(shape=(size, size, 3), encoding_format="png")
    features = {
        "image": tfds.features.Sequence(image, length=views) if views > 1 else image,
        "person": np.int32,
        "identity": tfds.features.Tensor(shape=(IDENTITY,), dtype=np.float32),
        "albedo": tfds.features.Tensor(shape=(ALBEDO,), dtype=np.float32),
        "expression": tensor(len(EXPRESSIONS)),
        "pose": tensor(3),
        "camera": tensor(4),
        "light": tensor(9),
        "landmarks68": tensor(68, 2),
        "visible68": tensor(68, dtype=np.bool_),
        "landmarks98": tensor(98, 2),
        "visible98": tensor(98, dtype=np.bool_),
        "box": tensor(4),
        **{name: tensor() for name in SCALARS},
    }
    if task.dense:
        features |= {"position_map": tensor(64, 64, 3), "depth": tensor(size, size)}
    return features


def generate(task: Task, people: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered examples of identities `people`, in order, rendered by two threads."""
    model, renderer = procedural(), _renderer(task.image_size, task.aligned, task.dense)
    dimensions = (model.identity_std.shape[0], model.albedo_std.shape[0])
    keys = [(person, index) for person in people for index in range(task.per_person)]

    def first(person: int, index: int) -> Factors:
        fixed = factor.person(task.seed, person, dimensions, task.ranges)
        return {**fixed, **factor.picture(task.seed, person, index, len(model.expressions), task.ranges)}

    def views(key: tuple[int, int]) -> list[Factors]:
        start = first(*key)
        return [task.vary(start, v) for v in range(task.views)] if task.vary else [start]

    def render(chunk: tuple[tuple[int, int], ...]) -> list[tuple[int, dict[str, Any]]]:
        groups = [views(key) for key in chunk]
        flat = list(itertools.chain.from_iterable(groups))
        stacked = factor.stack(flat + [flat[-1]] * (-len(flat) % BATCH))
        parts = [renderer({k: v[i : i + BATCH] for k, v in stacked.items()}) for i in range(0, len(flat), BATCH)]
        found = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        examples, start = [], 0
        for key, group in zip(chunk, groups, strict=True):
            rows = range(start, start + len(group))
            start += len(group)
            number = key[0] * task.per_person + key[1]
            examples.append((number, _example(task, renderer, found, stacked, rows, key)))
        return examples

    chunk = max(1, BATCH // max(task.views, 1))
    chunks = [tuple(keys[i : i + chunk]) for i in range(0, len(keys), chunk)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = []
        for part in chunks:
            waiting.append(pool.submit(render, part))
            if len(waiting) > 4:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()


@functools.lru_cache(maxsize=2)
def _renderer(size: int, aligned: bool, dense: bool) -> Renderer:
    return Renderer(procedural(), size, aligned=aligned, dense=dense)


def png(image: np.ndarray) -> bytes:
    """[H, W, 3] uint8 RGB -> PNG bytes."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _example(
    task: Task, renderer: Renderer, found: dict[str, np.ndarray], stacked: Factors, rows: range, key: tuple[int, int]
) -> dict[str, Any]:
    images = [png(renderer.compose(found, stacked, row)) for row in rows]
    many = list(rows) if task.views > 1 else rows[0]
    truth = {name: found[name][many] for name in found if name not in ("face", "alpha")}
    drawn = {"pose": "pose", "expression": "expression_strength", **{name: name for name in SCALARS}}
    truth |= {name: stacked[source][many].astype(np.float32) for name, source in drawn.items()}
    light = np.concatenate([stacked[n] for n in ("light_direction", "light_colour", "ambient")], -1)
    return {
        "image": images if task.views > 1 else images[0],
        "person": key[0],
        "identity": stacked["identity"][rows[0]].astype(np.float32),
        "albedo": stacked["albedo"][rows[0]].astype(np.float32),
        "light": light[many].astype(np.float32),
        **truth,
    }
