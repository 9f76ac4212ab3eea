"""Image folders with one sub-folder per identity: identity/image.jpg."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from facejax.data.decoding import ImageFile

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".pgm", ".ppm", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".avif"}


class ImageFolder:
    """Images of one sub-folder per identity, in natural order (s2 before s10; 07 before 7).

    Other files, and files and folders whose name begins with a dot (.ipynb_checkpoints, macOS's ._1.jpg), are ignored.

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
        found = [(image_files(p), p) for p in listed(root) if p.is_dir()]
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
        return {"image": ImageFile.read(self.paths[index]), "label": self.labels[index]}


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images of a folder, as `listed`."""
    return [path for path in listed(folder) if path.suffix.lower() in SUFFIXES]


def listed(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files and folders in natural order, without those whose name begins with a dot."""
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda path: natural(path.name))


def natural(name: str) -> tuple[list[Any], str]:
    """The sort key of a name: text and numbers by turns, then the name itself, so that no two names are equal."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name
