"""Images rated by people: LIVE (release 2), TID2013, or a CSV; higher is better in all of them."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

import numpy as np
import scipy.io

from facejax.data.readers import tables

LIVE_FOLDERS = ("jp2k", "jpeg", "wn", "gblur", "fastfading")
"""In the order of dmos.mat."""


class Opinions(NamedTuple):
    """Rated images.

    Attributes:
      paths: of N files.
      opinion: [N] mean, higher for better images.
      reference: [N] names of the undistorted images; an image without one has a name of its own.
      kind: [N] names of the distortions; empty where they are unknown.
    """

    paths: list[pathlib.Path]
    opinion: np.ndarray
    reference: np.ndarray
    kind: np.ndarray

    def split(self, seed: int, share: float = 0.8) -> dict[str, Opinions]:
        """A random `share` of the references, with all images made from them, as "train", the others as "test".

        Raises:
          ValueError: too few references for both.
        """
        names = np.random.default_rng(seed).permutation(np.unique(self.reference))
        cut = round(share * len(names))
        if not 0 < cut < len(names):
            raise ValueError(f"the images have {len(names)} references: expected 3 or more to split")
        train = np.isin(self.reference, names[:cut])
        return {"train": self._take(train), "test": self._take(~train)}

    def _take(self, rows: np.ndarray) -> Opinions:
        paths = [path for path, there in zip(self.paths, rows, strict=True) if there]
        return Opinions(paths, self.opinion[rows], self.reference[rows], self.kind[rows])


def read(path: str | pathlib.Path) -> Opinions:
    """The opinions that a path holds: LIVE's folder (dmos.mat), TID2013's (mos_with_names.txt), or a CSV.

    A CSV has the columns name (of a file, from the CSV's folder), opinion (higher is better) and, where there is one,
    reference.
    """
    path = pathlib.Path(path).expanduser()
    if (path / "dmos.mat").is_file():
        return live(path)
    if (path / "mos_with_names.txt").is_file():
        return tid2013(path)
    if path.is_file():
        return table(path)
    raise ValueError(
        f"{path}: expected LIVE's folder with dmos.mat in it, TID2013's with mos_with_names.txt, or a CSV file"
    )


def live(root: pathlib.Path) -> Opinions:
    """LIVE, release 2: DMOS (0 for a picture as good as its reference), turned by its sign.

    Among the pictures are copies of the references, all with a DMOS of 0, as in the data set.

    Args:
      root: holds dmos.mat ("dmos" and "orgs", 1 where the picture is such a copy), refnames_all.mat, refimgs, and for
        each distortion a folder with img1.bmp and up and info.txt: a line "reference picture parameter" for each.
    """
    folders = [_live_folder(root / name) for name in LIVE_FOLDERS]
    pictures = [row for folder in folders for row in folder]
    dmos, copy = (_vector(root / "dmos.mat", name, len(pictures)) for name in ("dmos", "orgs"))
    names = _vector(root / "refnames_all.mat", "refnames_all", len(pictures))
    for i, ((file, reference, where), name) in enumerate(zip(pictures, names, strict=True)):
        if str(np.squeeze(name)).lower() != reference.lower():
            raise ValueError(
                f"{where}: {file.name} of {reference!r}, but refnames_all.mat has {np.squeeze(name)} at {i + 1}"
            )
        if not np.isfinite(dmos[i]) or (copy[i] and dmos[i]):
            wanted = "0, for it is a copy of its reference" if copy[i] else "a finite number"
            raise ValueError(f"{root / 'dmos.mat'}: dmos is {dmos[i]} at {i + 1}: expected {wanted}")
    paths, references, _ = zip(*pictures, strict=True)
    kinds = np.repeat(LIVE_FOLDERS, [len(folder) for folder in folders])
    return Opinions(list(paths), -dmos.astype(float), np.array(references), kinds)


def _live_folder(folder: pathlib.Path) -> list[tuple[pathlib.Path, str, str]]:
    """Pictures 1 to n, the names of their references, and the lines of info.txt that tell."""
    found = {}
    for where, fields in _lines(folder / "info.txt", "reference picture parameter"):
        match = re.fullmatch(r"img([1-9]\d*)\.bmp", fields[1])
        if not match or match[1] in found:
            raise ValueError(f"{where}: picture {fields[1]!r}: expected imgN.bmp, each once")
        for file in (folder / fields[1], folder.parent / "refimgs" / fields[0]):
            _there(file, where)
        found[match[1]] = (folder / fields[1], fields[0], where)
    missing = [i for i in range(1, len(found) + 1) if str(i) not in found]
    if missing:
        raise ValueError(f"{folder / 'info.txt'}: no line for img{missing[0]}.bmp: expected img1 to img{len(found)}")
    return [found[str(i)] for i in range(1, len(found) + 1)]


def _vector(path: pathlib.Path, name: str, length: int) -> np.ndarray:
    """A vector [length] of a MATLAB file."""
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # damaged files raise anything
        raise ValueError(f"{path}: not a MATLAB file that can be read: {error}") from error
    found = np.asarray(content.get(name, []))
    if found.size != length:
        raise ValueError(f"{path}: {name} has {found.size} values: expected {length}, as info.txt's folders list")
    return found.ravel()


def tid2013(root: pathlib.Path) -> Opinions:
    """TID2013: MOS, higher is better, in 0..9.

    Args:
      root: holds reference_images, distorted_images, and mos_with_names.txt: a line "value name" for each picture, the
        name iRR_KK_L.bmp with the numbers of the reference, the distortion and the level. Capitals are as they come.
    """
    files = {p.name.lower(): p for part in ("distorted", "reference") for p in (root / f"{part}_images").glob("*")}
    rows = {}
    for where, (value, name) in _lines(root / "mos_with_names.txt", "value name"):
        match = re.fullmatch(r"(i\d\d)_(\d\d)_\d\.bmp", name.lower())
        if not match or name.lower() in rows:
            raise ValueError(f"{where}: {name!r}: expected a picture iRR_KK_L.bmp, each once")
        opinion = tables.number(value, where, "value")
        if not 0 <= opinion <= 9:
            raise ValueError(f"{where}: value {value}: expected 0 to 9")
        for part, file in (("distorted_images", match[0]), ("reference_images", f"{match[1]}.bmp")):
            _there(files.get(file, root / part / file), where)
        rows[match[0]] = (files[match[0]], opinion, *match.groups())
    paths, opinion, reference, kind = zip(*rows.values(), strict=True)
    return Opinions(list(paths), np.array(opinion), np.array(reference), np.array(kind))


def table(path: pathlib.Path) -> Opinions:
    """A CSV of one's own; see `read`."""
    rows = {}
    for where, row in tables.read(path, ("name", "opinion")):
        name = row["name"]
        if name in rows:
            raise ValueError(f"{where}: {name!r} is there twice: expected one line for each picture")
        rows[name] = (
            _there(path.parent / name, where),
            tables.number(row["opinion"], where, "opinion"),
            row.get("reference") or name,
        )
    paths, opinion, reference = zip(*rows.values(), strict=True)
    return Opinions(list(paths), np.array(opinion), np.array(reference), np.full(len(paths), ""))


def _lines(path: pathlib.Path, form: str) -> list[tuple[str, list[str]]]:
    """Lines that are not empty, cut into the fields of `form`; where each stands goes first."""
    rows = [
        (f"{path}, line {number}", line.split())
        for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1)
        if line.strip()
    ]
    for where, fields in rows:
        if len(fields) != len(form.split()):
            raise ValueError(f"{where}: {' '.join(fields)!r}: expected {form!r}")
    if not rows:
        raise ValueError(f"{path} holds no line: expected {form!r} for each picture")
    return rows


def _there(file: pathlib.Path, where: str) -> pathlib.Path:
    if not file.is_file():
        raise ValueError(f"{where}: there is no {file}")
    return file
