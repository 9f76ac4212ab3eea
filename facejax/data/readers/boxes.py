"""Images with boxes: COCO's and Pascal VOC's files, and prepared sets of the tfds catalogue.

Boxes become (x1, y1, x2, y2) in continuous pixels, where pixel i covers i..i + 1. Errors name the file and the place.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import pathlib
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from facejax.data.decoding import ImageFile, size
from facejax.formats import texts

Path = str | pathlib.Path

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Annotated:
    """An image file and its n objects.

    Attributes:
      picture: path of the image.
      name: name of the image in its data set.
      boxes: [n, 4] float32 (x1, y1, x2, y2) in pixels.
      labels: [n] int32 from 0.
      ignored: [n] bool, objects that are no training targets.
      points: [n, P, 2] float32 (x, y) in pixels.
      visible: [n, P] bool, annotated points.
      areas: [n] float32, square pixels of the objects' segments, or None.
    """

    picture: pathlib.Path
    name: str
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    points: np.ndarray
    visible: np.ndarray
    areas: np.ndarray | None = None


class BoxImages:
    """Annotated images as examples of `facejax.data.detection`. A warning counts the boxes without area.

    Args:
      images: the images.
      origin: what the warning calls them, such as the annotation file.

    Attributes:
      names: names of all images, in order.
      counts: [N] int, objects per image that are not ignored.
    """

    def __init__(self, images: Sequence[Annotated], origin: Path):
        self._images = images
        self.names = [image.name for image in images]
        self.counts = np.array([(~image.ignored).sum() for image in images], int)
        flat = sum(int(without_area(image.boxes).sum()) for image in images)
        if flat:
            total = sum(len(image.boxes) for image in images)
            warnings.warn(f"{origin}: {flat} of {total} boxes have no area: they are ignored", stacklevel=3)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._images[index]
        fields = {f.name: getattr(image, f.name) for f in dataclasses.fields(image) if f.name != "picture"}
        return {"image": ImageFile.read(image.picture), **{k: v for k, v in fields.items() if v is not None}}


def without_area(boxes: np.ndarray) -> np.ndarray:
    """[n] bool, boxes [n, 4] whose width or height is not positive."""
    return (boxes[:, 2:] <= boxes[:, :2]).any(1)


def annotated(
    picture: pathlib.Path,
    name: str,
    boxes: Any,
    labels: Any,
    ignored: Any,
    points: np.ndarray | None = None,
    visible: np.ndarray | None = None,
    areas: Any = None,
) -> Annotated:
    """An `Annotated` with arrays of the right types; boxes without area are ignored. No points: P is 0."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    ignored = np.asarray(ignored, bool) | without_area(boxes)
    points = np.zeros((len(boxes), 0, 2)) if points is None else points
    visible = np.zeros(points.shape[:2], bool) if visible is None else visible
    areas = None if areas is None else np.asarray(areas, np.float32)
    labels, points = np.asarray(labels, np.int32), points.astype(np.float32)
    return Annotated(picture, name, boxes, labels, ignored, points, visible, areas)


def inside(folder: Path, name: str, where: str) -> pathlib.Path:
    """The path of the file `name` in a folder; ValueError, beginning with `where`, if it would lie elsewhere."""
    fine = isinstance(name, str) and name.strip() and min(name) >= " "
    relative = pathlib.PurePosixPath(name if fine else "/")
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{where}: {name!r}: expected the path of an image within its folder")
    return pathlib.Path(folder) / relative


def read_coco(annotations: Path, pictures: Path) -> BoxImages:
    """COCO's instances_*.json; images without objects stay, crowds are ignored.

    The labels are the places of the category ids in ascending order: 0..79 in COCO. Images are in the order of their
    ids. Objects without "area" have that of their box.

    Args:
      annotations: the file.
      pictures: folder of its images.

    Raises:
      ValueError: not a COCO file, or an entry is damaged.
    """
    found = texts.read_json(annotations, dict)
    for key in ("images", "annotations", "categories"):
        if not isinstance(found.get(key), list):
            raise ValueError(f"{annotations}: no list {key}: expected a COCO file of objects")
    where, entry = f"{annotations}", None
    try:
        labels = {number: i for i, number in enumerate(sorted(int(entry["id"]) for entry in found["categories"]))}
        images = {int(entry["id"]): str(entry["file_name"]) for entry in found["images"]}
        objects = defaultdict(list)
        for number, entry in enumerate(found["annotations"]):
            where = f"{annotations}, annotation {number}"
            x, y, width, height = map(float, entry["bbox"])
            image, label = entry["image_id"], labels.get(entry["category_id"])
            if image not in images or label is None:
                raise ValueError(f"image {image!r}, category {entry['category_id']!r}: expected known ids")
            if not math.isfinite(x + y + width + height):
                raise ValueError(f"bbox {entry['bbox']}: expected four finite numbers")
            area = float(entry.get("area", width * height))
            if not math.isfinite(area):
                raise ValueError(f"area {area}: expected a finite number")
            objects[image].append(((x, y, x + width, y + height), label, bool(entry.get("iscrowd", 0)), area))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: {reason}, in {str(entry)[:200]}") from error
    found = []
    for number, name in sorted(images.items()):
        picture = inside(pictures, name, f"{annotations}, image {number}")
        boxes, labels, ignored, areas = _columns(objects[number], 4)
        found.append(annotated(picture, name, boxes, labels, ignored, areas=areas))
    return BoxImages(found, annotations)


def _columns(rows: Sequence[tuple[Any, ...]], count: int) -> tuple[Sequence[Any], ...]:
    return tuple(zip(*rows, strict=True)) or ((),) * count


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type before its entities are defined: entities could expand to any size."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"document type {name!r}: expected none")


VOC_BYTES = 1 << 24


def read_voc_file(file: Path) -> tuple[list[tuple[float, ...]], list[int], list[bool]]:
    """Boxes, labels and "difficult" of one XML file of Pascal VOC.

    VOC's coordinates count pixels from 1 and include the last one: the box becomes (x1 - 1, y1 - 1, x2, y2).

    Raises:
      ValueError: the file is larger than 16 MiB, no XML, contains a document type, or an object is damaged.
    """
    file, objects = pathlib.Path(file), []
    if (size := file.stat().st_size) > VOC_BYTES:
        raise ValueError(f"{file}: {size} bytes: expected at most {VOC_BYTES} for the objects of one image")
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{file}: not a readable XML file of Pascal VOC: {error}") from error
    for number, entry in enumerate(root.findall("object")):
        name = entry.findtext("name", "").strip()
        corners = [entry.findtext(f"bndbox/{key}", "") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = map(float, corners)
            difficult = bool(int(entry.findtext("difficult", "0")))
            if name not in VOC_CLASSES or not math.isfinite(left + top + right + bottom):
                raise ValueError(f"class {name!r}")
        except ValueError as error:
            raise ValueError(
                f"{file}, object {number}: class {name!r}, box {corners}: expected a class of VOC, four numbers, and "
                "difficult 0 or 1"
            ) from error
        objects.append(((left - 1, top - 1, right, bottom), VOC_CLASSES.index(name), difficult))
    return _columns(objects, 3)


def read_voc(folders: Sequence[Path], split: str) -> BoxImages:
    """Pascal VOC's images of a split, such as "trainval"; difficult objects are ignored.

    Args:
      folders: such as VOC2007 and VOC2012, each with Annotations, ImageSets/Main and JPEGImages.
      split: name of the list in ImageSets/Main.
    """
    images = []
    for folder in map(pathlib.Path, folders):
        names = folder / "ImageSets/Main" / f"{split}.txt"
        for number, line in enumerate(texts.read(names).splitlines(), 1):
            name, where = line.strip(), f"{names}, line {number}"
            picture = inside(folder / "JPEGImages", f"{name}.jpg" if name else "", where)
            images.append(
                annotated(picture, name, *read_voc_file(inside(folder / "Annotations", f"{name}.xml", where)))
            )
    return BoxImages(images, ", ".join(map(str, folders)))


def from_catalogue(example: Mapping[str, Any], voc: bool = False) -> dict[str, Any]:
    """An example of tfds's wider_face, voc or coco, with its image encoded, in the form of `facejax.data.detection`.

    Args:
      example: {"image": bytes, "faces" or "objects": {"bbox": [n, 4], ...}}; boxes are (ymin, xmin, ymax, xmax),
        relative to the image.
      voc: the coordinates count pixels from 1, as tfds leaves them in voc.
    """
    faces = "faces" in example
    objects = example["faces" if faces else "objects"]
    width, height = size(example["image"])
    boxes = np.asarray(objects["bbox"], float).reshape(-1, 4)[:, [1, 0, 3, 2]] * [width, height, width, height]
    boxes[:, :2] -= voc
    count = len(boxes)
    flag = next((objects[key] for key in ("invalid", "is_difficult", "is_crowd") if key in objects), np.zeros(count))
    boxes = boxes.astype(np.float32)
    return {
        "image": example["image"],
        "name": _text(example.get("image/filename", "")),
        "boxes": boxes,
        "labels": np.zeros(count, np.int32) if faces else np.asarray(objects["label"], np.int32),
        "ignored": np.asarray(flag, bool) | without_area(boxes),
        "points": np.zeros((count, 5 if faces else 0, 2), np.float32),
        "visible": np.zeros((count, 5 if faces else 0), bool),
        **({"areas": np.asarray(objects["area"], np.float32)} if "area" in objects else {}),
    }


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


CATALOGUE_SPLITS = {
    "wider_face": {"train": ["train"], "test": ["validation"]},
    "coco": {"train": ["train"], "test": ["validation"]},
    "voc": {"train": ["train", "validation"], "test": ["test"]},
}


class Catalogue:
    """A split of a prepared set of the tfds catalogue: wider_face, coco/2017, voc/2007 and the like.

    Args:
      name: name of the set, with its configuration.
      split: "train" or "test", see `CATALOGUE_SPLITS`.
      data_dir: tfds's folder; None: its default.

    Raises:
      ValueError: another set, or the set is not prepared as ArrayRecord.
    """

    def __init__(self, name: str, split: str, data_dir: str | None = None):
        import tensorflow_datasets as tfds  # slow

        base = name.partition("/")[0]
        if base not in CATALOGUE_SPLITS:
            raise ValueError(f"tfds set {name!r}: expected one of {', '.join(CATALOGUE_SPLITS)}")
        self._name, self._voc, decoders = name, base == "voc", {"image": tfds.decode.SkipDecoding()}
        try:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            self._parts = [builder.as_data_source(part, decoders=decoders) for part in CATALOGUE_SPLITS[base][split]]
        except Exception as error:  # tfds raises various exceptions
            raise ValueError(
                f"tfds set {name!r}, not prepared as ArrayRecord in {data_dir or 'its default'}: {error}"
            ) from error
        self._ends = list(itertools.accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index}: expected 0 to {len(self) - 1}")
        part = bisect.bisect(self._ends, index)
        example = self._parts[part][index - self._ends[part] + len(self._parts[part])]
        return from_catalogue({**example, "image": ImageFile(example["image"], f"{self._name}, {index}")}, self._voc)
