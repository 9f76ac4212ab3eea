"""Faces with landmarks: `.pts` files and 300W, WFLW, COFW, AFLW and LaPa.

Points are (x, y) in pixels; integers are pixel centres, from 0. Coordinates of MATLAB's files and of `.pts` files
begin at 1 and are lowered by 1; those of WFLW's, AFLW's and LaPa's lists are kept. Images are read when they are asked
for, as stored: the EXIF orientation is ignored. Errors name the file and the place.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from facejax.data.decoding import ImageFile
from facejax.data.readers import matlab
from facejax.data.readers.boxes import inside
from facejax.data.readers.folder import SUFFIXES
from facejax.formats import hdf5, matfile

Path = str | pathlib.Path

TEXT_BYTES = 1 << 26
PTS_BYTES = 1 << 20
WFLW_ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
"""WFLW's attributes, in the order of its lists."""

FOLDERS_300W = {
    "train": ("afw", "helen/trainset", "lfpw/trainset"),
    "common": ("helen/testset", "lfpw/testset"),
    "challenging": ("ibug",),
    "full": ("helen/testset", "lfpw/testset", "ibug"),
    "private": ("01_Indoor", "02_Outdoor"),
}
"""300W's splits as folders: 3148, 554, 135, 689 and 600 faces."""


class Picture(Protocol):
    """An encoded image: a path, or an image within a larger file."""

    def read_bytes(self) -> bytes:
        """The encoded image."""


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in an image; what a data set does not tell is None.

    Attributes:
      picture: the image.
      name: name of the face in its data set.
      points: [L, 2] float32 (x, y) in pixels.
      visible: [L] bool, points that are not occluded.
      box: [4] float32 (x1, y1, x2, y2) in pixels.
      attributes: named flags.
      pose: [3] float32 pitch, yaw, roll in radians, in the convention of `facejax.ops.rotation.from_euler`.
      age: years.
      person: name of the identity.
    """

    picture: Picture
    name: str
    points: np.ndarray | None = None
    visible: np.ndarray | None = None
    box: np.ndarray | None = None
    attributes: Mapping[str, bool] | None = None
    pose: np.ndarray | None = None
    age: float | None = None
    person: str | None = None

    def encoded(self) -> ImageFile:
        """The encoded image; its origin is the path, or the name of the face."""
        origin = str(self.picture) if isinstance(self.picture, pathlib.Path) else self.name
        return ImageFile(self.picture.read_bytes(), origin)


class FaceImages:
    """Faces as examples: the fields of `Face` that are not None, with the encoded image under "image"."""

    def __init__(self, faces: Sequence[Face]):
        self.faces = faces

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Any]:
        face = self.faces[index]
        fields = {f.name: getattr(face, f.name) for f in dataclasses.fields(face) if f.name != "picture"}
        return {"image": face.encoded(), **{k: v for k, v in fields.items() if v is not None}}


def read_lines(path: Path, limit: int = TEXT_BYTES) -> list[str]:
    """The lines of a UTF-8 file, cut at newlines only, without those at its end that are empty.

    Raises:
      ValueError: not readable, larger than `limit` bytes, or not UTF-8.
    """
    path = pathlib.Path(path)
    try:
        if (size := path.stat().st_size) > limit:
            raise ValueError(f"{size} bytes: expected at most {limit}")
        text = path.read_bytes().decode("utf-8-sig").rstrip()
        return text.replace("\r\n", "\n").split("\n") if text else []
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable text file: {error}") from error


def floats(fields: Sequence[str], count: int, where: str) -> np.ndarray:
    """`count` finite numbers [count] float64; an error begins with `where`."""
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        values = np.array([np.nan])
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{where}: {' '.join(fields)[:80]!r}: expected {count} finite numbers")
    return values


def read_pts(path: Path, count: int | None = None) -> np.ndarray:
    """The points [L, 2] float32 of a `.pts` file, whose coordinates begin at 1 and which become pixels from 0.

    Args:
      path: the file: "version: 1", "n_points: L", and L lines "x y" in braces.
      count: the L to expect; None: any.

    Raises:
      ValueError: another form or another number of points, with its line.
    """
    lines = [line.strip() for line in read_lines(path, PTS_BYTES)]
    if not lines or not lines[0].replace(" ", "").startswith("version:1"):
        raise ValueError(f"{path}, line 1: {''.join(lines[:1])[:80]!r}: expected 'version: 1'")
    key, _, number = (lines[1] if len(lines) > 1 else "").partition(":")
    number = number.strip()
    if key.strip() != "n_points" or not (number.isascii() and number.isdecimal()) or not 0 < len(number) < 6:
        raise ValueError(f"{path}, line 2: expected 'n_points: ' and a number")
    length = int(number)
    if count is not None and length != count:
        raise ValueError(f"{path}, line 2: {length} points: expected {count}")
    if len(lines) != length + 4 or lines[2] != "{" or lines[-1] != "}":
        raise ValueError(f"{path}: {len(lines)} lines: expected {length + 4}: a header, and {length} points in braces")
    rows = [floats(line.split(), 2, f"{path}, line {number}") for number, line in enumerate(lines[3:-1], 4)]
    return (np.array(rows).reshape(length, 2) - 1).astype(np.float32)


def write_pts(path: Path, points: np.ndarray) -> None:
    """Writes points [L, 2] in pixels from 0 as a `.pts` file."""
    rows = "".join(f"{x:.6f} {y:.6f}\n" for x, y in np.asarray(points, np.float64) + 1)
    pathlib.Path(path).write_text(f"version: 1\nn_points: {len(points)}\n{{\n{rows}}}\n")


def read_300w(root: Path, split: str, count: int = 68) -> FaceImages:
    """Faces of 300W's folders, which hold `NAME.pts` beside `NAME.png` or `NAME.jpg`, in the order of their names.

    Args:
      root: the folder.
      split: a key of `FOLDERS_300W`.
      count: points of each face.

    Raises:
      ValueError: an unknown split, a folder without `.pts` files, a damaged one, or one without its image.
    """
    if split not in FOLDERS_300W:
        raise ValueError(f"300W: split {split!r}: expected one of {', '.join(FOLDERS_300W)}")
    return FaceImages([face for part in FOLDERS_300W[split] for face in _pts_folder(pathlib.Path(root), part, count)])


def _pts_folder(root: pathlib.Path, part: str, count: int) -> list[Face]:
    files = sorted((root / part).glob("*.pts"))
    if not files:
        raise ValueError(f"{root / part}: no .pts files, expected one beside each image")
    return [
        Face(beside(file), f"{part}/{file.stem}", points=read_pts(file, count)) for file in files if file.name[0] != "."
    ]


def beside(file: pathlib.Path) -> pathlib.Path:
    """The image whose name differs from that of `file` by its suffix only; ValueError unless there is exactly one."""
    suffixes = {*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)}
    found = [image for suffix in sorted(suffixes) if (image := file.with_suffix(suffix)).is_file()]
    if len({image.stat().st_ino for image in found}) != 1:
        raise ValueError(f"{file}: {len(found)} images of this name beside it, expected one")
    return found[0]


def read_wflw(annotations: Path, pictures: Path) -> FaceImages:
    """WFLW's list_98pt_rect_attr_{train,test}.txt: 98 points, box, six attributes and image per line.

    Args:
      annotations: the file.
      pictures: folder of the images (WFLW_images).

    Raises:
      ValueError: a line is damaged, with its number.
    """
    faces = []
    for number, line in enumerate(read_lines(annotations), 1):
        where, fields = f"{annotations}, line {number}", line.split()
        if len(fields) != 207:
            raise ValueError(f"{where}: {len(fields)} fields: expected 207: 98 points, box, six attributes and image")
        values, flags = floats(fields[:200], 200, where), fields[200:206]
        if not set(flags) <= {"0", "1"}:
            raise ValueError(f"{where}: attributes {' '.join(flags)!r}: expected six times 0 or 1")
        box = _box(values[196:], where)
        attributes = dict(zip(WFLW_ATTRIBUTES, (flag == "1" for flag in flags), strict=True))
        points = values[:196].reshape(98, 2).astype(np.float32)
        picture = inside(pictures, fields[206], where)
        faces.append(Face(picture, fields[206], points=points, box=box, attributes=attributes))
    return FaceImages(faces)


def _box(corners: np.ndarray, where: str) -> np.ndarray:
    """(x1, y1, x2, y2) float32; ValueError if it has no area."""
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{where}: box {x1:g}, {y1:g} to {x2:g}, {y2:g}: expected x1 < x2 and y1 < y2")
    return np.array(corners, np.float32)


def read_aflw(annotations: Path, pictures: Path, split: str, train: int = 20_000) -> FaceImages:
    """AFLW with 19 points, from AFLWinfo_release.mat of Zhu et al. (CVPR 2016).

    Args:
      annotations: the file: "nameList", "bbox" [N, 4] (left, right, top, bottom), "data" [N, 38] (19 x, then 19 y),
        "mask_new" [N, 19] (1: visible), and the order "ra" [1, N] of the split.
      pictures: folder of the images (flickr).
      split: "train", "test" (AFLW-Full) or "frontal" (test faces with all points visible).
      train: number of training faces, the first in the order.

    Raises:
      ValueError: an unknown split, or the file lacks a variable or one has another shape.
    """
    if split not in ("train", "test", "frontal"):
        raise ValueError(f"AFLW: split {split!r}: expected train, test or frontal")
    found = matfile.variables(annotations, ("nameList", "bbox", "data", "mask_new", "ra"))
    names, total = found.pop("nameList").ravel(), found["bbox"].shape[0]
    shapes = {"bbox": (total, 4), "data": (total, 38), "mask_new": (total, 19), "ra": (1, total)}
    boxes, points, visible, order = (matlab.numbers(annotations, k, found[k], shape) for k, shape in shapes.items())
    if len(names) != total or not np.array_equal(np.sort(order[0]), np.arange(1, total + 1)):
        raise ValueError(f"{annotations}: expected {total} names, and in ra each of 1..{total} once")
    rows = order[0].astype(int) - 1
    rows = rows[:train] if split == "train" else rows[train:]
    faces = []
    for row in rows:
        where = f"{annotations}, face {row + 1}"
        shown = visible[row] == 1
        if split == "frontal" and not shown.all():
            continue
        name = str(np.asarray(names[row]).ravel()[0]) if np.size(names[row]) else ""
        box = _box(boxes[row][[0, 2, 1, 3]], where)
        xy = points[row].reshape(2, 19).T.astype(np.float32)
        faces.append(Face(inside(pictures, name, where), name, points=xy, visible=shown, box=box))
    return FaceImages(faces)


def read_lapa(root: Path, split: str) -> FaceImages:
    """LaPa's landmarks/NAME.txt, the number of points and as many lines "x y", with images/NAME.jpg; in name order.

    Args:
      root: the folder.
      split: "train", "val" or "test".

    Raises:
      ValueError: no such file, a damaged one, or one without its image.
    """
    folder = pathlib.Path(root) / split
    faces = []
    for file in sorted((folder / "landmarks").glob("*.txt")):
        lines = read_lines(file, PTS_BYTES)
        if lines[:1] != ["106"] or len(lines) != 107:
            raise ValueError(f"{file}: {len(lines)} lines: expected '106', and 106 points")
        points = np.array([floats(line.split(), 2, f"{file}, line {i}") for i, line in enumerate(lines[1:], 2)])
        picture = beside(folder / "images" / file.name)
        faces.append(Face(picture, f"{split}/{file.stem}", points=points.astype(np.float32)))
    if not faces:
        raise ValueError(f"{folder / 'landmarks'}: no .txt files, expected one for each image")
    return FaceImages(faces)


COFW = {"train": ("IsTr", "phisTr", "bboxesTr"), "test": ("IsT", "phisT", "bboxesT")}
"""COFW's variables: images, points with occlusion, boxes."""


def read_cofw(file: Path, split: str) -> FaceImages:
    """COFW_{train,test}.mat and COFW_{train,test}_color.mat: images, 29 points and their occlusion, boxes.

    Images of HDF5 files (MATLAB 7.3) are read when they are asked for, all others with the file; both as PNG.

    Args:
      file: the file.
      split: "train" or "test", which names the variables.

    Raises:
      ValueError: an unknown split, or the file lacks a variable or one has another shape.
      ImportError: an HDF5 file, and h5py is not installed.
    """
    if split not in COFW:
        raise ValueError(f"COFW: split {split!r}: expected train or test")
    with open(file, "rb") as opened:
        head = opened.read(520)
    hdf5 = b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:])
    pictures, phis, corners = (_cofw_hdf5 if hdf5 else _cofw_matlab)(file, *COFW[split])
    phis = matlab.numbers(file, COFW[split][1], phis, (len(pictures), 87))
    corners = matlab.numbers(file, COFW[split][2], corners, (len(pictures), 4))
    corners = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1) - 1
    faces = []
    for number, (picture, row, box) in enumerate(zip(pictures, phis, corners, strict=True)):
        points, hidden = row[:58].reshape(2, 29).T - 1, row[58:]
        where = f"{file}, face {number + 1}"
        if not np.isin(hidden, (0, 1)).all():
            raise ValueError(f"{where}: occlusion {hidden[~np.isin(hidden, (0, 1))][0]:g}: expected 0 or 1")
        fields = {"points": points.astype(np.float32), "visible": hidden == 0, "box": _box(box, where)}
        faces.append(Face(picture, f"{split}/{number:04d}", **fields))
    return FaceImages(faces)


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """An image of a MATLAB file, grey or RGB."""

    pixels: np.ndarray

    def read_bytes(self) -> bytes:
        return cv2.imencode(".png", self.pixels[..., ::-1] if self.pixels.ndim == 3 else self.pixels)[1].tobytes()


@dataclasses.dataclass(frozen=True)
class _Hdf5Pixels:
    """Image `number` of a list of images in an HDF5 file, where axes are in reverse order."""

    file: Path
    variable: str
    number: int

    def read_bytes(self) -> bytes:
        h5py = _h5py(self.file)
        where = f"{self.file}: {self.variable}, image {self.number + 1}"
        try:
            with h5py.File(self.file, "r") as opened:
                place = hdf5.read(opened, self.variable).ravel()[self.number]
                pixels = np.ascontiguousarray(hdf5.read(opened, place).T)
        except Exception as error:  # damaged files raise various exceptions
            raise ValueError(f"{where}: expected a matrix: {error}") from error
        return _Pixels(_image(pixels, where)).read_bytes()


def _image(pixels: np.ndarray, where: str) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"{where}: {pixels.dtype} {pixels.shape}: expected uint8 [H, W] or [H, W, 3]")
    return pixels


def _cofw_matlab(file: Path, *names: str) -> tuple[list[Picture], np.ndarray, np.ndarray]:
    images, phis, boxes = matfile.variables(file, names).values()
    checked = [_image(np.asarray(x), f"{file}: {names[0]}, image {i + 1}") for i, x in enumerate(images.ravel())]
    return [_Pixels(image) for image in checked], phis, boxes


def _cofw_hdf5(file: Path, *names: str) -> tuple[list[Picture], np.ndarray, np.ndarray]:
    h5py = _h5py(file)
    try:
        with h5py.File(file, "r") as opened:
            images, phis, boxes = (hdf5.read(opened, name) for name in names)
            if images.dtype != h5py.ref_dtype:
                raise ValueError(f"{names[0]} of type {images.dtype}: expected references to images")
    except Exception as error:  # damaged files raise various exceptions
        raise ValueError(f"{file}: expected a MATLAB file with {', '.join(names)}: {error}") from error
    return [_Hdf5Pixels(file, names[0], number) for number in range(images.size)], phis.T, boxes.T


def _h5py(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{file}: an HDF5 file needs h5py: pip install 'facejax[convert]'") from error
    return h5py
