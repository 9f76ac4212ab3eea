"""Faces with glasses and without: glasses drawn into images by landmarks, and the masks of both.

ByeGlassesGAN (arXiv:2008.11042) makes its pairs by drawing glasses, also tinted ones and with glare, into faces of
CelebA that wear none. Its pictures of frames are not published; here glasses are drawn from a few numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from facejax.data import pipeline, transforms
from facejax.data.landmarks import MIRROR_68
from facejax.data.restoration import MIRROR_5, celeba_face
from facejax.data.synthetic import faces
from facejax.data.synthetic.factors import Ranges
from facejax.data.videos import read_frame
from facejax.formats import texts

SOURCES, TASKS = ("face_world", "celeba"), ("remove", "add")
WORLD = faces.Task(
    "eyeglasses", 64, 300, 60, 3, Ranges(defocus=0.0, noise=0.0, jpeg=0.0, glasses=1.0),
    aligned=True, views=2, vary=faces.without("glasses"), seed=8,
)  # fmt: skip
"""Every picture with rendered glasses and without."""
SUPERSAMPLE = 3
CELEBA_FILES = ("list_attr_celeba.txt", "list_landmarks_align_celeba.txt", "list_eval_partition.txt")


class Style(NamedTuple):
    """Glasses; lengths are multiples of the distance between the eyes.

    Attributes:
      width, height: half the inner size of a lens.
      exponent: of the outline |x|^e + |y|^e = 1; 2 is an ellipse.
      rim: thickness of the frame.
      frame: [3] colour in 0..1.
      lens: [3] colour in 0..1.
      tint: opacity of the lenses, 0..1.
      glare: opacity of a white band across the lenses, 0..1.
      angle, place: the band's direction in radians, and its distance from the middle of a lens.
    """

    width: float
    height: float
    exponent: float
    rim: float
    frame: np.ndarray
    lens: np.ndarray
    tint: float
    glare: float
    angle: float
    place: float


RANGES = {
    "width": (0.28, 0.44), "height": (0.16, 0.34), "exponent": (2.0, 4.0), "rim": (0.03, 0.10), "tint": (0.0, 0.9),
    "glare": (0.0, 0.9), "angle": (0.3, 1.2), "place": (-0.25, 0.25),
}  # fmt: skip
"""Of what `random_style` draws."""
CODE = 1 + len(RANGES) + 6
"""Numbers of `style_code`."""


def random_style(rng: np.random.Generator, tinted: float = 0.5, glaring: float = 0.4) -> Style:
    """Random glasses, with these probabilities of a tint and of glare; others have nearly clear lenses."""
    drawn: dict[str, Any] = {name: rng.uniform(*span) for name, span in RANGES.items()}
    drawn["frame"] = rng.choice([0.05, 0.15, 0.5]) * rng.uniform(0.5, 1.5, 3)
    drawn["lens"] = rng.uniform(0.05, 0.45, 3)
    drawn["tint"] = rng.uniform(0.3, 0.9) if rng.random() < tinted else 0.06
    drawn["glare"] = rng.uniform(0.3, 0.9) if rng.random() < glaring else 0.0
    return Style(**drawn)


def style_code(style: Style | None) -> np.ndarray:
    """[CODE] float32: 1 and every number of a style, scaled to about 0..1; zeros for no glasses."""
    if style is None:
        return np.zeros(CODE, np.float32)
    scaled = [(getattr(style, name) - low) / (high - low) for name, (low, high) in RANGES.items()]
    return np.array([1, *scaled, *style.frame, *style.lens], np.float32)


def draw(
    image: np.ndarray, points: np.ndarray, style: Style, ears: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws glasses into a face.

    The lens to which the nose points is narrower, by the nose's distance from the middle of the eyes.

    Args:
      image: [H, W, 3] uint8.
      points: [5, 2] pixels (x, y) of the left and right eye in the image, the nose's tip, and the mouth's corners.
      style: the glasses.
      ears: [2, 2] pixels at which the temples end, left first; None: no temples.

    Returns:
      The image with glasses; the mask of frame and lenses, bool [H, W], outside which the image is the same.
    """
    eyes = np.asarray(points, np.float32)[:2]
    across = eyes[1] - eyes[0]
    unit = np.linalg.norm(across)
    ends = eyes if ears is None else np.concatenate([eyes, ears])
    room = (style.height + style.width + 2 * style.rim) * unit
    top, bottom = (int(np.clip(y, 0, len(image))) for y in (ends[:, 1].min() - room, ends[:, 1].max() + room + 1))
    whole, image = image, image[top:bottom]
    if not image.size:
        return whole, np.zeros(whole.shape[:2], bool)
    height, width = image.shape[:2]
    steps = [(np.arange(n * SUPERSAMPLE, dtype=np.float32) + 0.5) / SUPERSAMPLE for n in (width, height)]
    at = np.stack(np.meshgrid(steps[0], steps[1] + top), -1)
    axes = np.stack([across, np.array([-across[1], across[0]])]) / unit**2
    turn = float(np.clip(axes[0] @ (points[2] - eyes.mean(0)), -0.4, 0.4))
    frame, lens, band = (np.zeros(at.shape[:2], np.float32) for _ in range(3))
    inner = []
    for which, (side, eye) in enumerate(zip((-1, 1), eyes, strict=True)):
        x, y = np.moveaxis((at - eye) @ axes.T, -1, 0)
        y = y - 0.06
        wide = style.width * (1 + 0.6 * min(side * -turn, 0))
        sizes = [(wide + grow, style.height + grow) for grow in (0, style.rim)]
        within, covered = ((np.abs(x) / w) ** style.exponent + (np.abs(y) / h) ** style.exponent <= 1 for w, h in sizes)
        lens, frame = np.maximum(lens, within), np.maximum(frame, covered & ~within)
        across_band = x * np.cos(style.angle) + y * np.sin(style.angle) - style.place
        band = np.maximum(band, within * np.exp(-((across_band / 0.1) ** 2)))
        corner = sizes[1][0]
        inner.append((eye, -side * corner))
        if ears is not None and side * (axes[0] @ (ears[which] - eye)) > corner:
            frame = np.maximum(frame, _segment(at, eye + side * corner * across, ears[which], 0.5 * style.rim * unit))
    left, right = (eye + x * across for eye, x in inner)
    if axes[0] @ (right - left) > 0:
        frame = np.maximum(frame, _segment(at, left, right, 0.5 * style.rim * unit))
    frame = np.where(lens > 0, 0, frame)

    painted = np.repeat(np.repeat(image / np.float32(255), SUPERSAMPLE, 0), SUPERSAMPLE, 1)
    for opacity, colour in ((style.tint * lens, style.lens), (style.glare * band, np.ones(3)), (frame, style.frame)):
        painted += opacity[..., None] * (np.clip(colour, 0, 1) - painted)
    made, mask = whole.copy(), np.zeros(whole.shape[:2], bool)
    mask[top:bottom] = _shrunk(np.maximum(frame, lens)[..., None])[..., 0] > 0
    drawn = np.rint(255 * np.clip(_shrunk(painted), 0, 1)).astype(np.uint8)
    made[mask] = drawn[mask[top:bottom]]
    return made, mask


def _segment(at: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Where points [..., 2] are within a radius of a line."""
    along = end - start
    part = np.clip((at - start) @ along / max(along @ along, 1e-9), 0, 1)
    return np.linalg.norm(at - start - part[..., None] * along, axis=-1) <= radius


def _shrunk(x: np.ndarray) -> np.ndarray:
    rows, columns = (side // SUPERSAMPLE for side in x.shape[:2])
    return x.reshape(rows, SUPERSAMPLE, columns, SUPERSAMPLE, -1).mean((1, 3))


def face_mask(points: np.ndarray, size: int) -> np.ndarray:
    """The face's region, bool [size, size].

    The convex hull of many landmarks; of five, an ellipse around eyes and mouth (the paper's mask is not published).

    Args:
      points: [L, 2] pixels; of five, the eyes, the nose, the mouth's corners.
      size: of the image.
    """
    mask = np.zeros((size, size), np.uint8)
    if len(points) == 5:
        across = points[1] - points[0]
        eyes, mouth = points[:2].mean(0), points[3:].mean(0)
        centre, down = 0.4 * eyes + 0.6 * mouth, np.linalg.norm(mouth - eyes)
        axes = (1.1 * np.linalg.norm(across), 1.6 * down)
        angle = np.degrees(np.arctan2(across[1], across[0]))
        cv2.ellipse(mask, (tuple(map(float, centre)), tuple(2 * float(a) for a in axes), float(angle)), 1, -1)
    else:
        cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(points - 0.5).astype(np.int32)), 1)
    return mask > 0


class Pairs(NamedTuple):
    """Faces with glasses and the same without.

    Attributes:
      worn, bare: [N, S, S, 3] uint8.
      glasses, face: [N, S, S] bool masks.
      style: [N, CODE] of the drawn glasses; zeros if they are not drawn.
      person: [N] int.
    """

    worn: np.ndarray
    bare: np.ndarray
    glasses: np.ndarray
    face: np.ndarray
    style: np.ndarray
    person: np.ndarray


@dataclasses.dataclass(frozen=True)
class GlassesImages:
    """The `data` section of an experiment on glasses.

    Attributes:
      source: "face_world" (rendered, aligned) or "celeba" (the official folder).
      path: with source "celeba", the folder with img_align_celeba and the lists of attributes, landmarks and partition.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      task: "remove": glasses are in the input; "add": in the target.
      image_size: side of the images, pixels.
      plain: share of training images without glasses in input and target.
      tinted, glaring: shares of glasses with tinted lenses and with glare.
      tests: largest number of test images of "celeba".
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    source: str = "face_world"
    path: str = ""
    data_dir: str = ""
    task: str = "remove"
    image_size: int = 64
    plain: float = 0.1
    tinted: float = 0.5
    glaring: float = 0.4
    tests: int = 1000
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("source", self.source, SOURCES), ("task", self.task, TASKS)):
            if value not in known:
                raise ValueError(f"data.{name} is {value!r}: expected one of {', '.join(known)}")
        for name in ("plain", "tinted", "glaring"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}: expected a share in 0..1")

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches.

        {"image", "target": uint8 [n, S, S, 3], "masks": uint8 [n, S, S, 2] of glasses and face, "style": float32
        [n, CODE]}.
        """
        options = {"threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(self._faces("train"), self._load, batch_size, seed=seed, **options)

    def pairs(self) -> Pairs:
        """Test faces with drawn glasses."""
        bare = self._faces("test")
        number = len(bare) if self.source == "face_world" else min(len(bare), self.tests)
        return _stacked([self._drawn(bare[i], np.random.default_rng([i, 5])) for i in range(number)])

    def rendered(self) -> Pairs | None:
        """The same people with the face world's own glasses, of which none are drawn in training; of CelebA None."""
        if self.source != "face_world":
            return None
        found = []
        for face in self._faces("test"):
            mask = (face.worn != face.bare).any(-1)
            found.append((face.worn, face.bare, mask, face_mask(face.points, len(mask)), style_code(None), face.person))
        return _stacked(found)

    def _faces(self, split: str) -> Sequence[Face]:
        if self.source == "face_world":
            return _world(self.data_dir, self.image_size, split)
        return CelebA(self.path, split, self.image_size)

    def _drawn(self, face: Face, rng: np.random.Generator) -> tuple[Any, ...]:
        style = random_style(rng, self.tinted, self.glaring)
        many = len(face.points) == 68
        five, ears = (transforms.five_points(face.points), face.points[[0, 16]]) if many else (face.points, None)
        worn, glasses = draw(face.bare, five, style, ears)
        region = face_mask(face.points, self.image_size)
        return worn, face.bare, glasses, region, style_code(style), face.person

    def _load(self, examples: Sequence[Face], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        batch: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "target", "masks", "style")}
        for face, rng in zip(examples, rngs, strict=True):
            face = face.mirrored() if rng.random() < 0.5 else face
            worn, bare, glasses, region, style, _ = self._drawn(face, rng)
            if rng.random() < self.plain:
                worn, glasses, style = bare, np.zeros_like(glasses), style_code(None)
            image, target = (worn, bare) if self.task == "remove" else (bare, worn)
            made = {"image": image, "target": target, "masks": np.stack([glasses, region], -1), "style": style}
            for name, value in made.items():
                batch[name].append(value.astype(np.uint8) if name == "masks" else value)
        return {name: np.stack(values) for name, values in batch.items()}


class Face(NamedTuple):
    """A face without glasses.

    Attributes:
      bare: [S, S, 3] uint8.
      points: [68, 2] or [5, 2] landmarks, pixels.
      person: number.
      worn: the same with the face world's glasses; None where there is none.
    """

    bare: np.ndarray
    points: np.ndarray
    person: int
    worn: np.ndarray | None = None

    def mirrored(self) -> Face:
        """The mirror image, without rendered glasses."""
        points = self.points[MIRROR_68 if len(self.points) == 68 else MIRROR_5]
        return Face(self.bare[:, ::-1], [self.bare.shape[1], 0] + [-1, 1] * points, self.person)


def _stacked(rows: Sequence[tuple[Any, ...]]) -> Pairs:
    return Pairs(*(np.stack(values) for values in zip(*rows, strict=True)))


@functools.lru_cache(maxsize=2)
def _world(data_dir: str, size: int, split: str) -> tuple[Face, ...]:
    opened, found = faces.load(WORLD, split, data_dir or None), []
    for example in pipeline.fetch(opened, range(len(opened))):
        worn, bare = (transforms.resize(transforms.decode(x, upright=False), size, size) for x in example["image"])
        found.append(Face(bare, example["landmarks68"][1] * size / WORLD.image_size, int(example["person"]), worn))
    return tuple(found)


class CelebA:
    """Faces without glasses of CelebA's official folder, cut to 178 x 178 pixels and resized.

    Args:
      path: the folder.
      split: "train" or "test", of the official partition.
      size: of the images.

    Raises:
      ValueError: a file is missing, or no face is left.
    """

    def __init__(self, path: str, split: str, size: int):
        self._root, self._size = pathlib.Path(path).expanduser(), size
        attributes, landmarks, partition = map(self._table, CELEBA_FILES)
        wears = attributes.pop("").index("Eyeglasses")
        columns, wanted = landmarks.pop(""), {"train": "0", "test": "2"}[split]
        self._points = {
            name: {k: float(v) for k, v in zip(columns, row, strict=True)}
            for name, row in landmarks.items()
            if partition[name] == [wanted] and attributes[name][wears] == "-1"
        }
        self._names = sorted(self._points)
        if not self._names:
            raise ValueError(f"{self._root}: no {split} image without glasses in {', '.join(CELEBA_FILES)}")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Face:
        name = self._names[index]
        found = celeba_face(read_frame(self._root / "img_align_celeba" / name), self._points[name], self._size)
        return Face(found["image"], found["points"], -1)

    def _table(self, name: str) -> dict[str, list[str]]:
        """Rows by their first word; the head of the columns by an empty one."""
        file = self._root / name
        if not file.is_file():
            raise ValueError(f"{file}: no such file, expected CelebA's list")
        rows = [line.split() for line in texts.lines(texts.read(file)) if line.strip()]
        if len(rows) < 2:
            raise ValueError(f"{file}: {len(rows)} lines with words, expected CelebA's list")
        if len(rows[0]) == 1:
            return {"": rows[1]} | {row[0]: row[1:] for row in rows[2:]}
        return {row[0]: row[1:] for row in rows}
