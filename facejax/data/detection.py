"""Images with boxes and landmarks for detectors: batches of fixed shape, and letterboxed test images.

An example of a detection source is a dict {"image": encoded bytes, "boxes": [n, 4] float32 (x1, y1, x2, y2),
"labels": [n] int from 0, "points": [n, P, 2] float32 (x, y), "visible": [n, P] bool, "ignored": [n] bool,
"name": str}; of COCO also "areas": [n] float32, square pixels of the segments. Coordinates are continuous pixels of the
stored image: its EXIF orientation is ignored. Points that are not annotated are not visible. Ignored objects (crowds,
difficult or invalid boxes) are no training targets.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from facejax.data import augment_boxes, pipeline, sources
from facejax.data.augment_boxes import Picture
from facejax.data.pipeline import Load, Source
from facejax.data.readers import boxes as readers
from facejax.data.readers import wider


def letterboxed(
    example: Mapping[str, Any], size: int, centred: bool = False, value: tuple[int, int, int] = (0, 0, 0)
) -> tuple[np.ndarray, float, np.ndarray]:
    """The test image of an example: its aspect ratio is kept and the rest of a square filled.

    Args:
      example: see the module.
      size: side of the square, pixels.
      centred: the image lies in the middle; false: at the top left (SCRFD).
      value: RGB colour of the rest.

    Returns:
      (uint8 [size, size, 3], scale, offset [2]); `augment_boxes.unletterboxed` maps detections back.
    """
    picture, scale, offset = augment_boxes.letterbox(augment_boxes.opened(example), size, value, centred)
    return picture.image, scale, offset


def packed(pictures: Sequence[Picture], most: int, smallest: float = 0.0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stacks pictures of one size, their objects padded with zeros to `most`.

    Args:
      pictures: n pictures of one size, with P points per object.
      most: G; of more objects, the G of the largest area are kept, in their order.
      smallest: objects with a shorter side, in pixels, are left out.

    Returns:
      ({"image": uint8 [n, H, W, 3], "boxes": float32 [n, G, 4], "labels": int32 [n, G], "points": float32 [n, G, P, 2],
      "visible": bool [n, G, P], "mask": bool [n, G]}, [n] int the number of objects beyond G). Points outside the image
      are not visible.
    """
    kept, dropped = [], []
    for picture in pictures:
        sides = picture.boxes[:, 2:] - picture.boxes[:, :2]
        large = np.flatnonzero((sides > 0).all(1) & (sides >= smallest).all(1))
        dropped.append(max(0, len(large) - most))
        chosen = large[np.sort(np.argsort(-sides[large].prod(1), kind="stable")[:most])]
        kept.append(picture.keep(chosen))
    batch = {}
    for name, dtype in (("boxes", np.float32), ("labels", np.int32), ("points", np.float32), ("visible", bool)):
        batch[name], batch["mask"] = pipeline.pad_ragged([getattr(p, name).astype(dtype) for p in kept], most)
    limit = np.array(kept[0].size[::-1])
    batch["visible"] &= ((batch["points"] >= 0) & (batch["points"] <= limit)).all(-1)
    return {"image": np.stack([p.image for p in kept]), **batch}, np.array(dropped)


def loader(source: Source, size: int, most: int, augment: str, classes: int, smallest: float = 1.0) -> Load:
    """Training batches of `packed`, of size x size pixels.

    A warning tells of the first picture with more objects than `most`.

    Args:
      source: the source of the examples; mosaics draw further ones from it.
      size: side of the images, pixels.
      most, smallest: see `packed`.
      augment: a name of `augment_boxes.RECIPES`.
      classes: number of classes; a label outside 0..classes - 1 raises ValueError.
    """
    recipe, said = augment_boxes.RECIPES[augment], []

    def opened(example: Mapping[str, Any]) -> Picture:
        picture = augment_boxes.opened(example)
        if len(wrong := picture.labels[(picture.labels < 0) | (picture.labels >= classes)]):
            raise ValueError(f"{example.get('name')}: label {wrong[0]}: expected 0 to {classes - 1} (data.classes)")
        return picture

    def augmented(example: Mapping[str, Any], rng: np.random.Generator) -> Picture:
        others = (source[int(rng.integers(len(source)))] for _ in itertools.count())
        pictures = map(opened, itertools.chain([example], others))
        return recipe(lambda: next(pictures), size, rng)

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        pictures = [augmented(example, rng) for example, rng in zip(examples, rngs, strict=True)]
        batch, dropped = packed(pictures, most, smallest)
        if dropped.any() and not said:
            said.append(True)
            warnings.warn(
                f"{examples[dropped.argmax()].get('name')}: {most + dropped.max()} objects in a training image: the "
                f"{most} largest are kept here and from now on (data.max_boxes)",
                stacklevel=2,
            )
        return batch

    return load


KINDS = ("scenes", "wider", "retinaface", "coco", "voc")


@dataclasses.dataclass(frozen=True)
class DetectionImages:
    """The `data` section of a detector's experiment.

    Attributes:
      kind: "scenes" (faces of the face world), "wider" (WIDER FACE), "retinaface" (WIDER FACE with RetinaFace's five
        points), "coco", "voc" (VOC 2007 and 2012; tested on 2007), or "tfds:NAME", a prepared set of the tfds
        catalogue: "tfds:wider_face", "tfds:voc/2007", "tfds:coco/2017".
      path: folder of the data. scenes: the task's name; wider: wider_face_split, WIDER_train/images, WIDER_val/images;
        retinaface: train/label.txt, train/images, val/label.txt, val/images; coco:
        annotations/instances_{train,val}2017.json, images/{train,val}2017; voc: VOC2007, VOC2012.
      data_dir: folder of prepared data (scenes, tfds); empty: the default.
      image_size: side S of the network's input, pixels.
      max_boxes: G, the number of objects to which each image is padded; of more, the largest are kept.
      min_side: training objects with a shorter side, in pixels of the input, are left out.
      augment: a name of `augment_boxes.RECIPES`.
      classes: number of classes.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    kind: str = "scenes"
    path: str = "scenes_128"
    data_dir: str = ""
    image_size: int = 128
    max_boxes: int = 16
    min_side: float = 1.0
    augment: str = "face"
    classes: int = 1
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not self.kind.startswith("tfds:"):
            raise ValueError(f"data.kind is {self.kind!r}: expected one of {', '.join(KINDS)}, tfds:NAME")
        if self.augment not in augment_boxes.RECIPES:
            raise ValueError(f"data.augment is {self.augment!r}: expected one of {', '.join(augment_boxes.RECIPES)}")

    @property
    def points(self) -> int:
        """P, points per object: 5 of faces, 0 of general objects."""
        return 5 if self.kind in ("scenes", "wider", "retinaface", "tfds:wider_face") else 0

    def train(self) -> Source:
        """Training examples."""
        return self._source("train")

    def test(self) -> Source:
        """Test examples: the validation images of WIDER FACE and COCO, VOC 2007's test images."""
        return self._source("test")

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches of `loader`."""
        source = self.train()
        counts = getattr(source, "counts", np.zeros(0, int))
        if (counts > self.max_boxes).any():
            warnings.warn(
                f"{self.path}: {(counts > self.max_boxes).sum()} of {len(counts)} images have more than "
                f"{self.max_boxes} objects, up to {counts.max()} (data.max_boxes)",
                stacklevel=2,
            )
        load = loader(source, self.image_size, self.max_boxes, self.augment, self.classes, self.min_side)
        options = {"threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(
            source, load, batch_size, seed=seed, **options, checked=lambda: sources.Chain(source, self.test())
        )

    def _source(self, split: str) -> Source:
        if self.kind == "scenes":
            from facejax.data.synthetic import scenes

            return scenes.load(self.path, split, self.data_dir or None)
        if self.kind.startswith("tfds:"):
            return readers.Catalogue(self.kind.removeprefix("tfds:"), split, self.data_dir or None)
        return _read(self.kind, pathlib.Path(self.path).expanduser(), {"train": "train", "test": "val"}[split])


def _read(kind: str, root: pathlib.Path, part: str) -> Source:
    """The images of a folder; `part` is "train" or "val"."""
    if kind == "wider":
        return wider.read_wider(root / f"wider_face_split/wider_face_{part}_bbx_gt.txt", root / f"WIDER_{part}/images")
    if kind == "retinaface":
        return wider.read_retinaface(root / part / "label.txt", root / part / "images")
    if kind == "coco":
        return readers.read_coco(root / f"annotations/instances_{part}2017.json", root / f"images/{part}2017")
    if part == "val":
        return readers.read_voc([root / "VOC2007"], "test")
    return readers.read_voc([root / "VOC2007", root / "VOC2012"], "trainval")
