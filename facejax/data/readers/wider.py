"""WIDER FACE: the official text and MATLAB files, and RetinaFace's label.txt with five points per face.

Boxes "x y w h" become (x, y, x + w, y + h). Faces marked invalid, and boxes without area, are ignored.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from facejax.data.readers.boxes import Annotated, BoxImages, Path, annotated, inside
from facejax.formats import matfile

POINTS = 5
INVALID = 7
"""Column of the text file: x y w h blur expression illumination invalid occlusion pose."""


def read_wider(file: Path, pictures: Path) -> BoxImages:
    """The official split file: wider_face_train_bbx_gt.txt or wider_face_train.mat, and those of the validation images.

    The points [n, 5, 2] are not visible: these files have none.

    Args:
      file: the file.
      pictures: folder of the images, EVENT/NAME.jpg.

    Raises:
      ValueError: a line is damaged, with its number, or the MATLAB file lacks a list.
    """
    file = pathlib.Path(file)
    images = _read_matlab(file, pictures) if file.suffix == ".mat" else _read_text(file, pictures)
    return BoxImages(images, file)


def _read_text(file: pathlib.Path, pictures: Path) -> list[Annotated]:
    lines, images, at = _lines(file), [], 0
    while at < len(lines):
        picture = inside(pictures, lines[at], f"{file}, line {at + 1}")
        count = lines[at + 1].strip() if at + 1 < len(lines) else ""
        if not (count.isascii() and count.isdecimal() and len(count) < 10):
            raise ValueError(f"{file}, line {at + 2}: {count[:80]!r}: expected the number of faces of {lines[at]!r}")
        stop = at + 2 + max(int(count), 1)  # an image without faces has one row of zeros
        if stop > len(lines):
            raise ValueError(f"{file}, line {len(lines)}: the file ends before row {count} of {lines[at]!r}")
        rows = _table(lines[at + 2 : stop], (10,), file, at + 3)
        if not int(count):
            if rows.any():
                raise ValueError(f"{file}, line {stop}: expected a row of zeros for an image without faces")
            rows = rows[:0]
        images.append(_faces(picture, lines[at], rows[:, :4], rows[:, INVALID] > 0))
        at = stop
    return images


def _read_matlab(file: pathlib.Path, pictures: Path) -> list[Annotated]:
    names = ("event_list", "file_list", "face_bbx_list", "invalid_label_list")
    content = matfile.variables(file, names)
    try:
        events, files, boxes, invalid = (content[name][:, 0] for name in names)
        images = []
        for event, *lists in zip(events, files, boxes, invalid, strict=True):
            for name, rows, flags in zip(*(part[:, 0] for part in lists), strict=True):
                path = f"{event[0]}/{name[0]}.jpg"
                rows = np.asarray(rows, float).reshape(-1, 4)
                flags = np.asarray(flags, float).reshape(len(rows)) > 0
                images.append(_faces(inside(pictures, path, f"{file}"), path, rows, flags))
    except Exception as error:  # damaged files raise various exceptions
        raise ValueError(f"{file}: expected a MATLAB file with {', '.join(names)}: {error}") from error
    return images


def read_retinaface(file: Path, pictures: Path) -> BoxImages:
    """RetinaFace's label.txt: "# path" lines, each followed by rows "x y w h", five times "x y v", and "blur".

    A row of four numbers has no points, as in the validation file. Points (-1, -1) are missing; v, which says whether a
    point is occluded, is not used.

    Args:
      file: the file.
      pictures: folder of the images.

    Raises:
      ValueError: a line is damaged, with its number.
    """
    lines, images = _lines(pathlib.Path(file)), []
    starts = [i for i, line in enumerate(lines) if line.startswith("#")]
    if lines and starts[:1] != [0]:
        raise ValueError(f"{file}, line 1: {lines[0][:80]!r}: expected '# ' and the path of an image")
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        name = lines[start].removeprefix("#").strip()
        picture = inside(pictures, name, f"{file}, line {start + 1}")
        rows = _table(lines[start + 1 : stop], (4, 4 + 3 * POINTS + 1), file, start + 2)
        points = np.full((len(rows), POINTS, 2), -1.0)
        if rows.shape[1] > 4:
            points = rows[:, 4:-1].reshape(-1, POINTS, 3)[..., :2]
        visible = (points != -1).any(-1)
        images.append(_faces(picture, name, rows[:, :4], np.zeros(len(rows), bool), points, visible))
    return BoxImages(images, file)


def _faces(
    picture: pathlib.Path,
    name: str,
    corners: np.ndarray,
    ignored: np.ndarray,
    points: np.ndarray | None = None,
    visible: np.ndarray | None = None,
) -> Annotated:
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    points = np.zeros((len(boxes), POINTS, 2)) if visible is None else np.where(visible[..., None], points, 0)
    return annotated(picture, name, boxes, np.zeros(len(boxes), int), ignored, points, visible)


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a readable text file: {error}") from error


def _table(lines: Sequence[str], widths: Sequence[int], file: Path, first: int) -> np.ndarray:
    """Rows of numbers [n, one of `widths`], the same for all; an error names the line, counted from `first`."""
    rows = []
    for number, line in enumerate(lines, first):
        try:
            row = [float(field) for field in line.split()]
        except ValueError:
            row = []
        if len(row) not in widths or len(row) != len((rows or [row])[0]) or not np.isfinite(row).all():
            expected = " or ".join(map(str, widths))
            raise ValueError(f"{file}, line {number}: {line[:80]!r}: expected {expected} finite numbers")
        rows.append(row)
    return np.array(rows, float).reshape(len(rows), -1) if rows else np.zeros((0, widths[0]))
