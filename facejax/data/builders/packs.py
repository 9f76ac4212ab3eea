"""A verification pack (.bin) from a list of pairs and a folder of images.

    python -m facejax.data.builders.packs --pairs pairs.txt --images FOLDER --out mine.bin
    python -m experiments.arcface ... --config.eval.packs=mine.bin

The list is LFW's pairs.txt (a first line of numbers; lines "name n n" and "name n name n" of the images
FOLDER/name/name_000n.jpg), or has lines "image image 1" and "image image 0" of paths within FOLDER, where 1 marks the
same person; where a tab separates the fields, paths may hold spaces. The order stays: the ten folds of the protocol are
tenths of the pack. Images are stored as they are; they should be aligned crops.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

import numpy as np

from facejax.data import sources, transforms
from facejax.data.decoding import ImageFile
from facejax.data.readers.boxes import inside
from facejax.data.readers.folder import SUFFIXES
from facejax.data.readers.verification import VerificationPack, write_pack
from facejax.data.text import lines
from facejax.formats import limits, texts

Path = str | os.PathLike[str]
Pair = tuple[pathlib.Path, pathlib.Path, bool]


def read_pairs(pairs: Path, images: Path) -> list[Pair]:
    """The two images of every pair of a list, and whether they show one person.

    Raises:
      ValueError: a damaged line, with its number, or an image that is not there.
    """
    rows = [(i, row) for i, row in enumerate(lines(texts.read(pairs)), 1) if row.strip()]
    fields = [(f"{pairs}, line {i}", row.split("\t") if "\t" in row else row.split()) for i, row in rows]
    if fields and all(field.isdecimal() for field in fields[0][1]):
        return [_lfw(images, where, row) for where, row in fields[1:]]
    found = []
    for where, row in fields:
        if len(row) != 3 or row[2].strip() not in ("0", "1"):
            raise ValueError(f"{where}: {' '.join(row)[:80]!r}: expected two paths of images and 1 or 0")
        first, second = (_existing(inside(images, name.strip(), where), where) for name in row[:2])
        found.append((first, second, row[2].strip() == "1"))
    return found


def _lfw(images: Path, where: str, row: Sequence[str]) -> Pair:
    if len(row) == 3:
        row = [row[0], row[1], row[0], row[2]]
        same = True
    else:
        same = False
    if len(row) != 4 or not (row[1].isdecimal() and row[3].isdecimal()):
        raise ValueError(f"{where}: {' '.join(row)[:80]!r}: expected 'name number number' or 'name number name number'")
    first, second = (_numbered(images, row[i], int(row[i + 1]), where) for i in (0, 2))
    return first, second, same


def _numbered(images: Path, name: str, number: int, where: str) -> pathlib.Path:
    stem = inside(images, f"{name}/{name}_{number:04d}", where)
    for suffix in (".jpg", ".png", *sorted(SUFFIXES)):
        if (file := stem.with_name(stem.name + suffix)).is_file():
            return file
    raise ValueError(f"{where}: no image {stem}.jpg, nor of another format")


def _existing(file: pathlib.Path, where: str) -> pathlib.Path:
    if not file.is_file():
        raise ValueError(f"{where}: {file} does not exist")
    return file


def make_pack(pairs: Path, images: Path) -> VerificationPack:
    """The pack of a list of pairs; every image is decoded once.

    Raises:
      ValueError: as of `read_pairs`, fewer than ten pairs, pairs of one kind only, or an image that does not decode.
    """
    listed = read_pairs(pairs, images)
    same = np.array([s for *_, s in listed], bool)
    if len(listed) < 10 or same.all() or not same.any():
        raise ValueError(
            f"{pairs}: {int(same.sum())} pairs of one person and {int((~same).sum())} of two: expected ten pairs or "
            "more, of both kinds"
        )
    files = [file for first, second, _ in listed for file in (first, second)]
    limits.memory(sum(file.stat().st_size for file in files), f"{pairs}: the images together")
    known: dict[pathlib.Path, bytes] = {}
    for file in files:
        if file not in known:
            content = ImageFile.read(file)
            transforms.decode(content)
            known[file] = bytes(content)
    return VerificationPack([known[file] for file in files], same)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a pack."""
    parser = argparse.ArgumentParser(prog="python -m facejax.data.builders.packs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--pairs", required=True, help="the list of pairs")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--out", required=True, help="the pack to write, such as mine.bin")
    given = parser.parse_args(arguments)
    try:
        if os.path.exists(given.out):
            raise ValueError(f"{given.out} exists: choose another name")
        pack = make_pack(given.pairs, given.images)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            sources.warn_unaligned(pack.images, 112, given.images)
        write_pack(given.out, pack)
    except (ValueError, OSError) as error:
        sys.exit(f"facejax.data.builders.packs: {error}")
    print(f"{len(pack.same)} pairs, {int(pack.same.sum())} of one person: --config.eval.packs={given.out}")


if __name__ == "__main__":
    main()
