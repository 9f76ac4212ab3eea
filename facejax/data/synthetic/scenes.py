"""`facejax_scenes`: scenes of the face world with many faces, for detection, and ground truth of every face.

Heads are rendered once with transparency and reused in several scenes, mirrored, turned, scaled and recoloured; the
truth follows exactly. `register` adds settings. `load` reads scenes and prepares them on first use.

Boxes are left, top, right, bottom of the bare face from forehead to chin, and points are (x, y), in continuous pixels.
A face's mesh in pixels of the scene is

    camera.perspective(model.shape(face, identity, expression), rotation.from_euler(pose), s, (x, y), distance)

with `face = procedural()` and the face's "camera" (s, x, y, distance). It is exact for heads that are not mirrored. The
basis of the model is not quite symmetric: a mirrored vertex deviates by at most 0.001 model units, or 0.1 % of s.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from facejax.data.builders import store
from facejax.data.synthetic import degrade, scenery
from facejax.data.synthetic import factors as factor
from facejax.data.synthetic.factors import Factors, Ranges
from facejax.data.synthetic.render import Renderer
from facejax.morphable import camera, model
from facejax.morphable.procedural import IDENTITY, procedural
from facejax.ops import rotation

VERSION = "1.0.0"
BATCH = 16
ANGLE = np.radians(30)
"""Largest rotation of a head in the image, radians."""
HIDDEN = 0.8
"""A face with more than this part covered is not counted."""
SPLITS = ("train", "test")
FRAME = -0.12  # change of scale that shows more of the neck
NECK = np.array([[0.0, -1.22, -0.07], [0.0, -0.90, -0.07]], np.float32)  # base and top of the neck, model units


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Settings of a data set of scenes.

    Attributes:
      name: name of the settings.
      image_size: side of the images, pixels.
      train, test: numbers of scenes; people of the splits are disjoint.
      faces: largest number of faces in a scene; their number is log-uniform from 1.
      height: smallest and largest height of a face, pixels, before the image clips it.
      small: heights are low * (high / low) ** (u ** small) with u uniform in 0..1: 1 is log-uniform, above 1 favours
        small faces.
      empty: probability of a scene without faces.
      crowd: probability that the faces of a scene have similar sizes and stand in groups.
      overlap: largest intersection over union of two boxes.
      occluder: probability that a hand, a mask or a thing covers part of a face.
      behind: probability, for each face, of another head that is seen from behind and is not counted.
      light: strength of the variation of light, 0..1.
      blur: probability of a blurred scene; the blur is at most 1.2 pixels, or a motion of 4 pixels.
      noise: largest standard deviation of the noise, in 1/255.
      jpeg: range of the quality of the stored JPEG images.
      people: numbers of people in the train and in the test split, each rendered `views` times.
      views: rendered heads per person.
      head: side of the rendered heads, pixels; a face covers a little over half of it.
      seed: seed of everything.

    Raises:
      ValueError: a value out of range.
    """

    name: str
    image_size: int = 128
    train: int = 1500
    test: int = 300
    faces: int = 12
    height: tuple[float, float] = (8.0, 90.0)
    small: float = 1.2
    empty: float = 0.04
    crowd: float = 0.35
    overlap: float = 0.2
    occluder: float = 0.15
    behind: float = 0.1
    light: float = 0.7
    blur: float = 0.3
    noise: float = 8.0
    jpeg: tuple[int, int] = (60, 95)
    people: tuple[int, int] = (200, 50)
    views: int = 2
    head: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.height
        wrong = {
            "image_size": (self.image_size, "16 or more", self.image_size >= 16),
            "faces": (self.faces, "1 or more", self.faces >= 1),
            "height": (self.height, "8 <= low <= high <= image_size", 8 <= low <= high <= self.image_size),
            "small": (self.small, "a number above 0", self.small > 0),
            "overlap": (self.overlap, "0 to 1", 0 <= self.overlap <= 1),
            "jpeg": (self.jpeg, "1 <= low <= high <= 100", 1 <= self.jpeg[0] <= self.jpeg[1] <= 100),
            "people": (self.people, "1 or more in either split", min(self.people) >= 1),
            "views": (self.views, "1 or more", self.views >= 1),
            **{n: (getattr(self, n), "0 to 1", 0 <= getattr(self, n) <= 1)
               for n in ("empty", "crowd", "occluder", "behind", "light", "blur")},
        }  # fmt: skip
        for field, (value, expected, right) in wrong.items():
            if not right:
                raise ValueError(f"scenes {self.name!r}: {field} is {value}, expected {expected}")

    @property
    def key(self) -> str:
        """The name with a hash of all settings: changed settings give another data set."""
        return f"{self.name}_{hashlib.sha256(repr((self, VERSION)).encode()).hexdigest()[:8]}"


SCENES: dict[str, Scenes] = {}


def register(scenes: Scenes) -> Scenes:
    """Adds settings. Raises ValueError if their name exists already."""
    if scenes.name in SCENES:
        raise ValueError(f"scenes: settings named {scenes.name!r} exist already")
    SCENES[scenes.name] = scenes
    return scenes


register(Scenes("scenes_128"))
register(Scenes("scenes_640", 640, 300, 60, faces=60, height=(8, 400), small=1.5, people=(150, 40), views=1, head=256))


class FacejaxScenes(tfds.core.GeneratorBasedBuilder):
    """Scenes with ground truth. See `Scenes`."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, scenes: Scenes, data_dir: str | os.PathLike[str] | None = None):
        self.scenes = scenes
        config = tfds.core.BuilderConfig(name=scenes.key, version=VERSION, description=repr(scenes))
        super().__init__(config=config, data_dir=store.data_dir(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features(self.scenes)))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from generate(self.scenes, split)


def load(scenes: str | Scenes, split: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """A split as a random-access source; prepared on first use.

    Args:
      scenes: the name of registered settings, or any settings.
      split: "train" or "test".
      data_dir: folder of prepared data; see `store.data_dir`.

    Raises:
      ValueError: an unknown name or split.
    """
    if isinstance(scenes, str):
        if scenes not in SCENES:
            raise ValueError(f"scenes: unknown settings {scenes!r}, expected one of {', '.join(SCENES)}")
        scenes = SCENES[scenes]
    _check(split)
    builder = FacejaxScenes(scenes=scenes, data_dir=data_dir)
    return Source(store.prepared(builder, split, {"image": store.Encoded()}))


class Source:
    """Scenes without padding: an example has the n faces of its scene.

    Keys: "image" JPEG bytes; "name" str; "ignored" [n] bool, none; "boxes" [n, 4] clipped to the image; "points"
    [n, 5, 2] left eye, right eye, nose, left and right corner of the mouth as seen in the image; "visible" [n, 5] bool;
    "labels" [n] int32 zeros; "occlusion" [n] covered part of the box; "person" [n] int32; "identity" [n, I];
    "expression" [n, E]; "pose" [n, 3]; "camera" [n, 4]. The module's docstring says how the last four give the mesh.
    """

    def __init__(self, padded: Any):
        self._padded = padded

    def __len__(self) -> int:
        return len(self._padded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = dict(self._padded[index])
        image, count = example.pop("image"), int(example.pop("count"))
        faces = {name: value[:count] for name, value in example.items()}
        nothing = {"labels": np.zeros(count, np.int32), "ignored": np.zeros(count, bool)}
        return {"image": image, "name": f"scene {index}", **nothing, **faces}


def features(scenes: Scenes) -> dict[str, Any]:
    """Features of a stored scene; the entries of faces from `count` on are zero."""

    def tensor(*shape: int, dtype: Any = np.float32) -> Any:
        return tfds.features.Tensor(shape=(scenes.faces, *shape), dtype=dtype)

    size = scenes.image_size
    return {
        "image": tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg"),
        "count": np.int32,
        "boxes": tensor(4),
        "points": tensor(5, 2),
        "visible": tensor(5, dtype=np.bool_),
        "occlusion": tensor(),
        "person": tensor(dtype=np.int32),
        "identity": tensor(IDENTITY),
        "expression": tensor(procedural().expression_std.shape[0]),
        "pose": tensor(3),
        "camera": tensor(4),
    }


def generate(scenes: Scenes, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered examples of a split, in order, made by two threads.

    The scenes of "test" follow those of "train" in the numbering. A scene depends on its number and on the people of
    its split only.
    """
    _check(split)
    if split == "train":
        numbers, people = range(scenes.train), range(scenes.people[0])
    else:
        numbers = range(scenes.train, scenes.train + scenes.test)
        people = range(scenes.people[0], sum(scenes.people))
    heads, backs = pool(scenes, people)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        waiting = collections.deque[tuple[int, concurrent.futures.Future[dict[str, Any]]]]()
        for number in numbers:
            waiting.append((number, threads.submit(compose, scenes, number, heads, backs)))
            if len(waiting) > 16:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _check(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"scenes: unknown split {split!r}, expected train or test")


# ---------------------------------------------------------------------------------------------------------------------
# Heads


class Head(NamedTuple):
    """A rendered head of S x S pixels with its truth in these pixels; pairs are (as rendered, mirrored)."""

    rgba: np.ndarray  # [S, S, 4] float16 linear light, premultiplied
    outline: np.ndarray  # [K, 2] convex outline of the face
    marks: np.ndarray  # [68, 2] landmarks
    visible: np.ndarray  # [5] bool, five points not hidden by the head itself
    neck: np.ndarray  # [2] base of the neck
    skin: np.ndarray  # [3] mean colour
    hair: np.ndarray | None  # [3] colour
    person: int
    identity: np.ndarray  # [2, I]
    expression: np.ndarray  # [2, E]
    pose: np.ndarray  # [3]
    camera: np.ndarray  # [4] scale, x, y, distance


MIRROR = np.array([1, 0, 2, 4, 3])  # partners of the five points


def pool(scenes: Scenes, people: range) -> tuple[list[Head], list[Head]]:
    """Renders the heads of people: with faces, and from behind."""
    face = procedural()
    dimensions = (face.identity_std.shape[0], face.albedo_std.shape[0])
    ranges = Ranges(
        pitch=0.16, yaw=0.5, roll=0.1, light=scenes.light, jitter=0, glasses=0.2, defocus=0, noise=0, jpeg=0
    )
    drawn = []
    for person in people:
        fixed = factor.person(scenes.seed, person, dimensions, ranges)
        for view in range(scenes.views):
            one = {**fixed, **factor.picture(scenes.seed, person, view, len(face.expressions), ranges)}
            one["pose"] = np.clip(one["pose"], [-0.4, -1.4, -0.35], [0.4, 1.4, 0.35])
            drawn.append((person, one, False))
    for person in people[:: max(1, len(people) // 24)]:
        fixed = factor.person(scenes.seed, person, dimensions, dataclasses.replace(ranges, hair=1.0))
        one = {**fixed, **factor.picture(scenes.seed, person, scenes.views, len(face.expressions), ranges)}
        rng = np.random.default_rng([scenes.seed, person, 4])
        one["pose"] = np.array([rng.normal() * 0.1, np.pi + rng.uniform(-0.6, 0.6), 0.0])
        one["glasses"] = np.array(0.0)
        drawn.append((person, one, True))
    for _, one, _ in drawn:
        one["jitter"] = np.array([0.0, 0.0, FRAME])
    chunks = [drawn[i : i + BATCH] for i in range(0, len(drawn), BATCH)]
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        parts = list(threads.map(lambda chunk: _heads(scenes.head, chunk), chunks))
    every = [(head, behind) for part in parts for head, behind in part]
    return [h for h, behind in every if not behind], [h for h, behind in every if behind]


@functools.lru_cache(maxsize=2)
def _renderer(size: int) -> Renderer:
    return Renderer(procedural(), size, aligned=False)


@functools.cache
def _truth() -> Any:
    """A function: factors [N, ...] and the framing -> outlines of the faces' vertices, necks and coefficients."""
    face = procedural()
    y = face.mean_shape[:, 1]
    member = np.flatnonzero(face.regions["skin"] & (face.mean_shape[:, 2] > 0.0) & (y < 0.62))
    strengths = jnp.stack(list(face.expressions.values()))
    names = list(face.expressions)
    swap = [names.index({"wink_left": "wink_right", "wink_right": "wink_left"}.get(n, n)) for n in names]
    mirrored = _mirrored(face)

    @jax.jit
    def find(identity: jax.Array, strength: jax.Array, pose: jax.Array, place: jax.Array) -> dict[str, jax.Array]:
        expression = strength @ strengths
        vertices = model.shape(face, identity, expression)[:, member]
        points = jnp.concatenate([vertices, jnp.broadcast_to(NECK, (len(pose), *NECK.shape))], 1)
        pixels = camera.perspective(points, rotation.from_euler(pose), place[:, 0], place[:, 1:3], place[:, 3])
        return {
            "face": pixels[:, :-2, :2],
            "neck": pixels[:, -2:, :2],
            "identity": jnp.stack([identity, identity @ mirrored], 1),
            "expression": jnp.stack([expression, strength[:, np.array(swap)] @ strengths], 1),
        }

    return find


def _mirrored(face: model.MorphableModel) -> np.ndarray:
    """[I, I]: coefficients of a head (rows) -> those of its mirror image, by least squares."""
    basis = np.asarray(face.identity_basis, np.float64) * np.asarray(face.identity_std)
    other = basis[np.asarray(face.symmetry)] * np.array([-1, 1, 1])[:, None]
    flat = (-1, basis.shape[-1])
    return np.linalg.lstsq(basis.reshape(flat), other.reshape(flat), rcond=None)[0].T.astype(np.float32)


def _heads(size: int, chunk: list[tuple[int, Factors, bool]]) -> list[tuple[Head, bool]]:
    full = [one for _, one, _ in chunk] + [chunk[-1][1]] * (BATCH - len(chunk))
    stacked = factor.stack(full)
    found = _renderer(size)(stacked)
    place = np.concatenate([found["camera"][:, [0, 2, 3]], stacked["distance"][:, None]], 1).astype(np.float32)
    drawn = (stacked[n].astype(np.float32) for n in ("identity", "expression_strength", "pose"))
    truth = jax.tree.map(np.asarray, _truth()(*drawn, place))
    heads = []
    for i, (person, one, behind) in enumerate(chunk):
        seen = found["visible68"][i]
        outline = cv2.convexHull(truth["face"][i])[:, 0].astype(np.float64)
        rgba = np.concatenate([found["face"][i], found["alpha"][i][..., None]], -1)
        rgba *= _collar(size, truth["neck"][i], place[i, 0], outline)[..., None]
        where, mask = scenery.region((size, size), outline.mean(0) + 0.6 * (outline - outline.mean(0)))
        mean = (rgba[where] * mask[..., None]).sum((0, 1)) / max(mask.sum(), 1e-6)
        head = Head(
            rgba=rgba.astype(np.float16),
            outline=outline,
            marks=found["landmarks68"][i].astype(np.float64),
            visible=np.array([seen[36:42].mean() >= 0.5, seen[42:48].mean() >= 0.5, seen[30], seen[48], seen[54]]),
            neck=truth["neck"][i][0].astype(np.float64),
            skin=np.clip(mean[:3], 0, 1),
            hair=np.clip(one["hair_colour"], 0.01, 1) ** scenery.GAMMA if one["hair"] else None,
            person=person,
            identity=truth["identity"][i],
            expression=truth["expression"][i],
            pose=stacked["pose"][i].astype(np.float32),
            camera=place[i],
        )
        heads.append((head, behind))
    return heads


def five(marks: np.ndarray) -> np.ndarray:
    """Five points [..., 5, 2] of 68 landmarks [..., 68, 2]: eyes, nose, corners of the mouth."""
    eyes = [marks[..., 36:42, :].mean(-2), marks[..., 42:48, :].mean(-2)]
    return np.stack([*eyes, marks[..., 30, :], marks[..., 48, :], marks[..., 54, :]], -2)


def _collar(size: int, neck: np.ndarray, scale: float, outline: np.ndarray) -> np.ndarray:
    """[size, size] coverage 0..1: ends the neck in a round line, and keeps the face."""
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    base, top = neck
    down = (base - top) / max(np.linalg.norm(base - top), 1e-6)
    along = ((x - base[0]) * down[0] + (y - base[1]) * down[1]) / scale
    across = ((x - base[0]) * down[1] - (y - base[1]) * down[0]) / scale
    kept = np.clip((0.06 - 0.5 * across * across - along) * scale + 0.5, 0, 1)
    where, mask = scenery.region((size, size), outline)
    kept[where] = np.maximum(kept[where], mask)
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Scenes


class Placed(NamedTuple):
    """A head in a scene: the matrix [2, 3] from its pixels to the scene's, the mirror, and the rotation in radians."""

    head: Head
    matrix: np.ndarray
    mirrored: bool
    angle: float


def placed(head: Head, centre: np.ndarray, height: float, mirrored: bool, angle: float) -> Placed:
    """Places a head so that the box of its face has this centre and height.

    Args:
      head: the head.
      centre: (x, y) in the scene, pixels.
      height: of the box, pixels.
      mirrored: whether to mirror the head before it is turned.
      angle: clockwise rotation, radians.
    """
    linear = scenery.turn(angle) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    points = head.outline @ linear.T
    low, high = points.min(0), points.max(0)
    scale = height / (high[1] - low[1])
    shift = centre - scale * (low + high) / 2
    return Placed(head, np.concatenate([scale * linear, shift[:, None]], 1), mirrored, angle)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Applies a matrix [2, 3] to points [..., 2]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def face_truth(place: Placed) -> dict[str, np.ndarray]:
    """Truth of one face: its box (not clipped), points, their visibility on the head, and the mesh's parameters."""
    head, which = place.head, int(place.mirrored)
    order = MIRROR if place.mirrored else np.arange(5)
    outline = moved(place.matrix, head.outline)
    scale = np.sqrt(abs(np.linalg.det(place.matrix[:, :2])))
    return {
        "boxes": np.concatenate([outline.min(0), outline.max(0)]),
        "points": five(moved(place.matrix, head.marks))[order],
        "visible": head.visible[order],
        "person": np.int32(head.person),
        "identity": head.identity[which],
        "expression": head.expression[which],
        "pose": _turned(head.pose, which, place.angle),
        "camera": np.array([scale * head.camera[0], *moved(place.matrix, head.camera[1:3]), head.camera[3]]),
    }


def _turned(pose: np.ndarray, mirrored: int, angle: float) -> np.ndarray:
    """Euler angles [3] of a head that was mirrored and then turned clockwise in the image."""
    p, y, r = pose * ([1, -1, -1] if mirrored else [1, 1, 1])
    (cp, cy, cr), (sp, sy, sr) = np.cos([p, y, r]), np.sin([p, y, r])
    around_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    c, s = np.cos(angle), np.sin(angle)
    m = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ around_x @ around_y @ around_z
    return np.array([np.arctan2(-m[1, 2], m[2, 2]), np.arcsin(np.clip(m[0, 2], -1, 1)), np.arctan2(-m[0, 1], m[0, 0])])


def paste(image: np.ndarray, order: np.ndarray, rgba: np.ndarray, matrix: np.ndarray, number: int) -> None:
    """Draws a head over an image, and its number where it is opaque.

    Args:
      image: [H, W, 3] float32 linear light, changed in place.
      order: [H, W] int, the number of the topmost layer, changed in place.
      rgba: [S, S, 4] premultiplied.
      matrix: [2, 3] from pixels of the head to those of the image.
      number: of the layer.
    """
    size = len(rgba)
    corners = moved(matrix, np.array([[0, 0], [size, 0], [size, size], [0, size]], float))
    limit = np.array([image.shape[1], image.shape[0]])
    low, high = (np.clip(f, 0, limit).astype(int) for f in (np.floor(corners.min(0)), np.ceil(corners.max(0))))
    if (high <= low).any():
        return
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    small = min(size, int(np.ceil(size * scale)))
    source = rgba.astype(np.float32)
    if small < size:
        source = cv2.resize(source, (small, small), interpolation=cv2.INTER_AREA)
    linear = matrix[:, :2] * size / small
    shift = matrix[:, 2] - low + linear @ [0.5, 0.5] - 0.5  # from pixel edges to OpenCV's pixel centres
    exact = np.concatenate([linear, shift[:, None]], 1)
    drawn = cv2.warpAffine(source, exact, tuple((high - low).tolist()), flags=cv2.INTER_LINEAR)
    where = (slice(low[1], high[1]), slice(low[0], high[0]))
    part = image[where]
    part *= 1 - drawn[..., 3:]
    part += drawn[..., :3]
    order[where][drawn[..., 3] > 0.5] = number


def compose(scenes: Scenes, number: int, heads: list[Head], backs: list[Head]) -> dict[str, Any]:
    """One scene as a stored example: see `features`."""
    rng = np.random.default_rng([scenes.seed, number, 3])
    size = scenes.image_size
    image = scenery.background(rng, size)
    order = np.full((size, size), -1, np.int32)
    people = plan(scenes, rng, heads, backs)
    for i, (place, counted) in enumerate(people):
        _person(scenes, rng, image, order, place, counted, 2 * i)
    image = scenery.light(rng, image, scenes.light)
    count, truth = 0, {n: np.zeros(f.shape, f.np_dtype) for n, f in _tensors(scenes).items()}
    for i, (place, counted) in enumerate(people):
        if not counted:
            continue
        found = face_truth(place)
        box, points = found["boxes"], found["points"]
        left, top = np.clip(np.floor(box[:2]), 0, size - 1).astype(int)
        right, bottom = np.clip(np.ceil(box[2:]), 1, size).astype(int)
        covered = float((order[top:bottom, left:right] > 2 * i).mean())
        if covered > HIDDEN:
            continue
        at = np.clip(np.floor(points), 0, size - 1).astype(int)
        inside = ((points >= 0) & (points < size)).all(-1)
        found["visible"] = found["visible"] & inside & (order[at[:, 1], at[:, 0]] <= 2 * i)
        found |= {"boxes": np.clip(box, 0, size), "occlusion": covered}
        for name, value in found.items():
            truth[name][count] = value
        count += 1
    return {"image": _photograph(scenes, rng, image), "count": count, **truth}


@functools.lru_cache(maxsize=4)
def _tensors(scenes: Scenes) -> dict[str, Any]:
    return {name: f for name, f in features(scenes).items() if name not in ("image", "count")}


def _person(
    scenes: Scenes,
    rng: np.random.Generator,
    image: np.ndarray,
    order: np.ndarray,
    place: Placed,
    counted: bool,
    number: int,
) -> None:
    """Paints a body, a head with layer `number`, and perhaps an occluder with layer `number` + 1."""
    head, matrix = place.head, place.matrix
    unit = np.sqrt(abs(np.linalg.det(matrix[:, :2]))) * head.camera[0]
    base = moved(matrix, head.neck)
    middle = moved(matrix, head.camera[1:3])
    if head.hair is not None and rng.random() < 0.3:
        scenery.long_hair(rng, image, middle, unit, place.angle, head.hair)
    body = scenery.body(rng, image, base, unit, head.skin)
    if body is not None:
        order[body] = number
        scenery.shade(image, body, base + np.array([0, 0.1 * unit]), unit * np.array([0.75, 0.55]), 0.12 * unit)
    gain = np.exp(rng.normal(size=3) * 0.06 + rng.normal() * 0.2 * scenes.light)
    rgba = head.rgba.astype(np.float32) * np.append(gain, 1).astype(np.float32)
    paste(image, order, rgba, matrix, number)
    if counted and rng.random() < scenes.occluder:
        outline = moved(matrix, head.outline)
        box = np.concatenate([outline.min(0), outline.max(0)])
        if rng.random() < 0.3:
            drawn = scenery.medical_mask(rng, image, outline, five(moved(matrix, head.marks)))
        else:
            drawn = scenery.occluder(rng, image, box)
        if drawn:
            order[drawn[0]][drawn[1] > 0.5] = number + 1


def _photograph(scenes: Scenes, rng: np.random.Generator, image: np.ndarray) -> bytes:
    """Linear light -> blurred, noisy JPEG."""
    image = cv2.pow(np.clip(image, 0, 1).astype(np.float32), 1 / scenery.GAMMA)
    if rng.random() < scenes.blur:
        if rng.random() < 0.3:
            image = degrade.motion_blur(image, float(rng.uniform(1.5, 4)), float(rng.uniform(0, np.pi)))
        else:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.2)))
    level = rng.uniform(0, scenes.noise) * rng.random() / 255
    image = image + level * rng.standard_normal(image.shape, np.float32)
    stored = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    quality = int(rng.integers(scenes.jpeg[0], scenes.jpeg[1] + 1))
    return cv2.imencode(".jpg", stored[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


TRIES = 24
COVER = 0.45


def plan(scenes: Scenes, rng: np.random.Generator, heads: list[Head], backs: list[Head]) -> list[tuple[Placed, bool]]:
    """Random heads of a scene from far to near, each with whether its face counts."""
    if rng.random() < scenes.empty:
        count = 0
    else:
        count = int(np.exp(rng.uniform(0, np.log(scenes.faces + 1))))
    behind = int(rng.binomial(max(count, 3), scenes.behind))
    counted = np.arange(count + behind) < count
    crowd = rng.random() < scenes.crowd
    low, high = scenes.height
    if crowd:
        high = np.clip(0.8 * scenes.image_size / np.sqrt(count + 1), low, high)
    height = low * (high / low) ** (rng.random(len(counted)) ** scenes.small)
    if crowd and count:
        height = np.clip(height[0] * np.exp(rng.normal(size=len(counted)) * 0.15), *scenes.height)
    chosen = rng.permutation(len(heads))
    level, slope = rng.uniform(0.15, 0.7) * scenes.image_size, rng.normal() * 0.6
    standing = rng.random() < 0.5  # heads lie at a height that depends on their distance
    people: list[tuple[Placed, bool]] = []
    boxes = np.zeros((0, 4))
    for i in np.argsort(-height):
        head = heads[chosen[i % len(heads)]] if counted[i] else backs[rng.integers(len(backs))]
        angle = float(np.clip(rng.normal() * ANGLE / 3, -ANGLE, ANGLE))
        place = placed(head, np.zeros(2), float(height[i]), bool(rng.integers(2)), angle)
        outline = moved(place.matrix, head.outline)
        half = np.ptp(outline, 0) / 2
        free = rng.uniform(0.4 * half, scenes.image_size - 0.4 * half, (TRIES, 2))
        free[:, 1] = np.minimum(free[:, 1], rng.uniform(0, scenes.image_size, TRIES))  # room for bodies
        if standing:
            free[:, 1] = level + slope * height[i] + rng.normal(size=TRIES) * 0.3 * height[i]
        if crowd and len(boxes):
            beside = boxes[rng.integers(len(boxes), size=TRIES)]
            size = beside[:, 2:] - beside[:, :2]
            step = rng.choice([-1, 1], TRIES) * rng.uniform(0.9, 2.2, TRIES), rng.uniform(-0.9, 0.9, TRIES)
            near = (beside[:, :2] + beside[:, 2:]) / 2 + np.stack(step, -1) * size
            free = np.where(rng.random((TRIES, 1)) < 0.8, near, free)
        fits = _fits(scenes, free, half, boxes)
        if not fits.any():
            continue
        centre = free[fits.argmax()]
        boxes = np.concatenate([boxes, [[*(centre - half), *(centre + half)]]])
        people.append((placed(head, centre, float(height[i]), place.mirrored, angle), bool(counted[i])))
    return people[::-1]


def _fits(scenes: Scenes, centres: np.ndarray, half: np.ndarray, nearer: np.ndarray) -> np.ndarray:
    """[T] bool: centres in the image whose boxes neither overlap nor hide behind the nearer people too much."""
    inside = ((centres > 0) & (centres < scenes.image_size)).all(-1)
    mine = np.concatenate([centres - half, centres + half], -1)[:, None]
    wide, high = nearer[:, 2] - nearer[:, 0], nearer[:, 3] - nearer[:, 1]
    area = 4 * half.prod()
    both = _shared(mine, nearer)
    union = area + wide * high - both
    head = nearer + np.stack([-0.15 * wide, -0.3 * high, 0.15 * wide, 0 * high], -1)
    body = np.stack([nearer[:, 0] - 0.6 * wide, nearer[:, 3], nearer[:, 2] + 0.6 * wide, nearer[:, 3] + 3.5 * high], -1)
    covered = (_shared(mine, head) + _shared(mine, body)).max(-1, initial=0) / area
    return inside & ((both / union).max(-1, initial=0) <= scenes.overlap) & (covered <= COVER)


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area of the intersection of boxes [..., 4], broadcast."""
    return np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
