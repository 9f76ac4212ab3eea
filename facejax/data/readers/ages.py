"""Faces with ages: IMDB-WIKI, MORPH2, MegaAge and lists "image age"."""

from __future__ import annotations

import datetime
import pathlib
import re

import numpy as np

from facejax.data.readers.boxes import inside
from facejax.data.readers.folder import SUFFIXES
from facejax.data.readers.landmarks import Face, FaceImages, Path, floats, read_lines
from facejax.formats import matfile

OLDEST = 120
"""The highest age that a list may hold, years."""


def age_when_taken(born: float, taken: float) -> int:
    """Age at the middle of the year `taken`, of a birth at MATLAB's day number `born` (1 is 1 January of year 0).

    Day numbers before year 1 count as its first day, as in SSR-Net's code.
    """
    birth = datetime.date.fromordinal(min(max(int(born) - 366, 1), datetime.date.max.toordinal()))
    return int(taken) - birth.year - (birth.month >= 7)


def read_imdb_wiki(annotations: Path, pictures: Path, score: float = 1.0) -> FaceImages:
    """IMDB-WIKI's imdb.mat or wiki.mat, with the selection of SSR-Net's authors.

    A face is kept if its detection score is at least `score`, no second face was found, its sex is known and its age
    lies in 0..100.

    Args:
      annotations: the file; its variable has the name of the file.
      pictures: folder of the images (imdb_crop, wiki_crop).
      score: the lowest score of the detector.

    Raises:
      ValueError: not such a file, or nothing is left.
    """
    annotations = pathlib.Path(annotations)
    name = annotations.stem
    wanted = ("dob", "photo_taken", "full_path", "gender", "face_score", "second_face_score")
    table = matfile.variables(annotations, (name,))[name]
    if missing := [field for field in wanted if field not in (table.dtype.names or ())]:
        raise ValueError(f"{annotations}: {name} has no field {missing[0]}: expected {', '.join(wanted)}")
    columns = {field: np.asarray(table[field].ravel()[0]).ravel() for field in wanted}
    if len({len(column) for column in columns.values()}) != 1:
        lengths = ", ".join(f"{field} {len(column)}" for field, column in columns.items())
        raise ValueError(f"{annotations}: lengths {lengths}: expected equal ones")
    faces = []
    for row in range(len(columns["dob"])):
        born, taken, path, sex, first, second = (columns[field][row] for field in wanted)
        if not first >= score or second > 0 or np.isnan(sex) or not np.isfinite(born):
            continue
        age = age_when_taken(born, taken)
        if not 0 <= age <= 100:
            continue
        file, where = str(np.asarray(path).ravel()[0]), f"{annotations}, face {row + 1}"
        attributes = {"male": bool(sex == 1)}
        faces.append(Face(inside(pictures, file, where), file, attributes=attributes, age=float(age)))
    if not faces:
        raise ValueError(f"{annotations}: none of {len(columns['dob'])} faces is left: expected a score of {score}")
    return FaceImages(faces)


def read_morph(root: Path) -> FaceImages:
    """MORPH2's images, whose names PERSON_PICTURE{M,F}AGE.JPG hold the labels; `person` is PERSON.

    Raises:
      ValueError: a name of another form, or no image.
    """
    faces = []
    for file in sorted(file for file in pathlib.Path(root).iterdir() if file.suffix.lower() in SUFFIXES):
        match = re.fullmatch(r"(\d+)_(\d+)([MF])(\d{1,3})", file.stem, re.ASCII)
        if not match:
            raise ValueError(f"{file}: expected a name such as 009055_1M54.JPG")
        age = _age(match[4], f"{file}")
        faces.append(Face(file, file.name, attributes={"male": match[3] == "M"}, age=age, person=match[1]))
    if not faces:
        raise ValueError(f"{root}: no images, expected names such as 009055_1M54.JPG")
    return FaceImages(faces)


def read_mega_age(root: Path, split: str) -> FaceImages:
    """MegaAge and MegaAge-Asian: list/{train,test}_name.txt and _age.txt, one line an image of {train,test}.

    Raises:
      ValueError: an unknown split, lists of different lengths, or a damaged line.
    """
    if split not in ("train", "test"):
        raise ValueError(f"MegaAge: split {split!r}: expected train or test")
    root = pathlib.Path(root)
    listed, ages = (root / "list" / f"{split}_{kind}.txt" for kind in ("name", "age"))
    names, numbers = read_lines(listed), read_lines(ages)
    if len(names) != len(numbers):
        raise ValueError(f"{listed} has {len(names)} lines and {ages.name} {len(numbers)}: expected as many")
    faces = []
    for i, (name, age) in enumerate(zip(names, numbers, strict=True), 1):
        picture = inside(root / split, name.strip(), f"{listed}, line {i}")
        faces.append(Face(picture, name.strip(), age=_age(age, f"{ages}, line {i}")))
    return FaceImages(faces)


def read_age_list(annotations: Path, pictures: Path) -> FaceImages:
    """A text file of lines "image age".

    Raises:
      ValueError: a line is damaged, with its number.
    """
    faces = []
    for number, line in enumerate(read_lines(annotations), 1):
        where, (name, _, age) = f"{annotations}, line {number}", line.strip().rpartition(" ")
        faces.append(Face(inside(pictures, name.strip(), where), name.strip(), age=_age(age, where)))
    return FaceImages(faces)


def _age(text: str, where: str) -> float:
    age = floats(text.split(), 1, where)[0]
    if not 0 <= age <= OLDEST:
        raise ValueError(f"{where}: age {age:g}: expected 0 to {OLDEST}")
    return float(age)
