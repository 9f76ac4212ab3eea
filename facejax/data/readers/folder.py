"""Image folders with one sub-folder per identity: identity/image.jpg."""

from __future__ import annotations

import pathlib
import re
from typing import Any

SUFFIXES = {".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".bmp", ".webp"}


class ImageFolder:
    """Images of one sub-folder per identity, in natural order (s2 before s10). Other files are ignored.

    Args:
      root: the folder.

    Attributes:
      class_names: names of the sub-folders, in the order of the labels.
      num_classes: number of identities.
      labels: labels of all images, in order.
      paths: paths of all images, in order.
      names: "identity/image.jpg" of all images, in order.

    Raises:
      ValueError: no sub-folder contains an image.
    """

    def __init__(self, root: str | pathlib.Path):
        root = pathlib.Path(root)
        folders = sorted((p for p in root.iterdir() if p.is_dir()), key=_natural)
        found = [(sorted((f for f in p.iterdir() if f.suffix.lower() in SUFFIXES), key=_natural), p) for p in folders]
        found = [(files, p) for files, p in found if files]
        if not found:
            raise ValueError(f"{root}: no images in its sub-folders, expected identity/image.jpg")
        self.class_names = [p.name for _, p in found]
        self.num_classes = len(found)
        self.paths = [file for files, _ in found for file in files]
        self.labels = [label for label, (files, _) in enumerate(found) for _ in files]

    @property
    def names(self) -> list[str]:
        return [f"{path.parent.name}/{path.name}" for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.paths[index].read_bytes(), "label": self.labels[index]}


def _natural(path: pathlib.Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
