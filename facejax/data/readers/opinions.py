"""Images with mean opinion scores: LIVE (release 2), TID2013, or a user's CSV. Higher scores are better."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

import numpy as np

from facejax.data.readers import tables
from facejax.data.readers.boxes import inside
from facejax.formats import matfile

LIVE_FOLDERS = ("jp2k", "jpeg", "wn", "gblur", "fastfading")
"""LIVE's folders in the order of dmos.mat."""


class Opinions(NamedTuple):
    """Images with opinion scores.

    Attributes:
      paths: paths of N image files.
      opinion: [N] mean opinion scores, higher is better.
      reference: [N] name of each image's undistorted reference; without a reference, the image's own name.
      kind: [N] names of the distortions; empty if unknown.
      source: path that they were read from.
    """

    paths: list[pathlib.Path]
    opinion: np.ndarray
    reference: np.ndarray
    kind: np.ndarray
    source: pathlib.Path

    def split(self, seed: int, share: float = 0.8) -> dict[str, Opinions]:
        """A random `share` of the references, with all images made from them, as "train", the others as "test".

        Raises:
          ValueError: too few references for both.
        """
        names = np.random.default_rng(seed).permutation(np.unique(self.reference))
        cut = round(share * len(names))
        if not 0 < cut < len(names):
            raise ValueError(f"{self.source}: images of {len(names)} references: expected 3 or more to split")
        train = np.isin(self.reference, names[:cut])
        return {"train": self._take(train), "test": self._take(~train)}

    def _take(self, rows: np.ndarray) -> Opinions:
        paths = [path for path, there in zip(self.paths, rows, strict=True) if there]
        return Opinions(paths, self.opinion[rows], self.reference[rows], self.kind[rows], self.source)


def read(path: str | pathlib.Path) -> Opinions:
    """Reads LIVE's folder (with dmos.mat), TID2013's folder (with mos_with_names.txt), or a CSV file.

    A CSV has the columns name (image file, relative to the CSV's folder), opinion (higher is better) and, optionally,
    reference.

    Raises:
      ValueError: the path is none of these, or a file is malformed.
    """
    path = pathlib.Path(path).expanduser()
    if (path / "dmos.mat").is_file():
        return live(path)
    if (path / "mos_with_names.txt").is_file():
        return tid2013(path)
    if path.is_file():
        return table(path)
    raise ValueError(
        f"{path}: expected LIVE's folder with dmos.mat, TID2013's folder with mos_with_names.txt, or a CSV file"
    )


def live(root: pathlib.Path) -> Opinions:
    """LIVE, release 2, with the negative DMOS as opinion.

    As in the data set, the images include copies of the references with a DMOS of 0.

    Args:
      root: folder that contains dmos.mat ("dmos", and "orgs": 1 for a copy of a reference), refnames_all.mat, refimgs,
        and per distortion a folder of imgN.bmp and info.txt with one line "reference image parameter" per image.
    """
    folders = [_live_folder(root / name) for name in LIVE_FOLDERS]
    images = [row for folder in folders for row in folder]
    dmos, copy = (_vector(root / "dmos.mat", name, len(images)) for name in ("dmos", "orgs"))
    names = _vector(root / "refnames_all.mat", "refnames_all", len(images))
    for i, ((file, reference, where), name) in enumerate(zip(images, names, strict=True)):
        if str(np.squeeze(name)).lower() != reference.lower():
            raise ValueError(
                f"{where}: {file.name} of {reference!r}, but refnames_all.mat has {np.squeeze(name)} at {i + 1}"
            )
        if not np.isfinite(dmos[i]) or (copy[i] and dmos[i]):
            wanted = "0 for a copy of a reference" if copy[i] else "a finite number"
            raise ValueError(f"{root / 'dmos.mat'}: dmos is {dmos[i]} at {i + 1}: expected {wanted}")
    paths, references, _ = zip(*images, strict=True)
    kinds = np.repeat(LIVE_FOLDERS, [len(folder) for folder in folders])
    return Opinions(list(paths), -dmos.astype(float), np.array(references), kinds, root)


def _live_folder(folder: pathlib.Path) -> list[tuple[pathlib.Path, str, str]]:
    """Images 1 to n as (path, name of the reference, position in info.txt)."""
    found = {}
    for where, fields in _lines(folder / "info.txt", "reference image parameter"):
        match = re.fullmatch(r"img([1-9]\d*)\.bmp", fields[1])
        if not match or match[1] in found:
            raise ValueError(f"{where}: image {fields[1]!r}: expected imgN.bmp, each once")
        for file in (folder / fields[1], folder.parent / "refimgs" / fields[0]):
            _existing(file, where)
        found[match[1]] = (folder / fields[1], fields[0], where)
    missing = [i for i in range(1, len(found) + 1) if str(i) not in found]
    if missing:
        raise ValueError(f"{folder / 'info.txt'}: no line for img{missing[0]}.bmp: expected img1 to img{len(found)}")
    return [found[str(i)] for i in range(1, len(found) + 1)]


def _vector(path: pathlib.Path, name: str, length: int) -> np.ndarray:
    """A vector [length] of a MATLAB file."""
    found = matfile.variables(path, (name,))[name]
    if found.size != length:
        raise ValueError(f"{path}: {name} has {found.size} values: expected {length}, one per line of info.txt")
    return found.ravel()


def tid2013(root: pathlib.Path) -> Opinions:
    """TID2013: MOS in 0..9.

    Args:
      root: folder that contains reference_images, distorted_images, and mos_with_names.txt with one line "value name"
        per image; the name iRR_KK_L.bmp gives reference, distortion and level. Case is ignored.
    """
    files = {p.name.lower(): p for part in ("distorted", "reference") for p in (root / f"{part}_images").glob("*")}
    rows = {}
    for where, (value, name) in _lines(root / "mos_with_names.txt", "value name"):
        match = re.fullmatch(r"(i\d\d)_(\d\d)_\d\.bmp", name.lower())
        if not match or name.lower() in rows:
            raise ValueError(f"{where}: {name!r}: expected an image iRR_KK_L.bmp, each once")
        opinion = tables.number(value, where, "value")
        if not 0 <= opinion <= 9:
            raise ValueError(f"{where}: value {value}: expected 0 to 9")
        for part, file in (("distorted_images", match[0]), ("reference_images", f"{match[1]}.bmp")):
            _existing(files.get(file, root / part / file), where)
        rows[match[0]] = (files[match[0]], opinion, *match.groups())
    paths, opinion, reference, kind = zip(*rows.values(), strict=True)
    return Opinions(list(paths), np.array(opinion), np.array(reference), np.array(kind), root)


def table(path: pathlib.Path) -> Opinions:
    """A user's CSV file; see `read`."""
    rows = {}
    for where, row in tables.read(path, ("name", "opinion")):
        name = row["name"]
        if name in rows:
            raise ValueError(f"{where}: {name!r} occurs twice: expected one line per image")
        rows[name] = (
            _existing(inside(path.parent, name, where), where),
            tables.number(row["opinion"], where, "opinion"),
            row.get("reference") or name,
        )
    paths, opinion, reference = zip(*rows.values(), strict=True)
    return Opinions(list(paths), np.array(opinion), np.array(reference), np.full(len(paths), ""), path)


def _lines(path: pathlib.Path, form: str) -> list[tuple[str, list[str]]]:
    """(position for errors, fields as in `form`) of each non-empty line; ASCII space separates fields."""
    rows = [
        (f"{path}, line {number}", [field.decode("latin-1") for field in line.split()])
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1)
        if line.strip()
    ]
    for where, fields in rows:
        if len(fields) != len(form.split()):
            raise ValueError(f"{where}: {' '.join(fields)!r}: expected {form!r}")
    if not rows:
        raise ValueError(f"{path}: no lines: expected {form!r} for each image")
    return rows


def _existing(file: pathlib.Path, where: str) -> pathlib.Path:
    if not file.is_file():
        raise ValueError(f"{where}: {file} does not exist")
    return file
