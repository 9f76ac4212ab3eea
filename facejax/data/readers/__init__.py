"""Foreign file formats. Errors name the file and the position."""

from __future__ import annotations

import pathlib
from typing import Any, Protocol

from facejax._lazy import lazy
from facejax.data.readers.folder import ImageFolder
from facejax.data.readers.matlab import MatlabFaces
from facejax.data.readers.recordio import RecordFile

__getattr__, __dir__, __all__ = lazy(__name__, __path__, "ImageSource", "read")


class ImageSource(Protocol):
    """Random access to encoded images with labels."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": encoded bytes, "label": int in 0..num_classes - 1}."""


def read(path: str | pathlib.Path) -> ImageSource:
    """Opens a data set as an image source.

    Supported are a folder that contains train.rec (InsightFace), a set prepared by `facejax.data.builders.images`, a
    folder identity/image.jpg, and a .mat file of faces. A source may have the attributes `labels` and `names`, each a
    sequence over all images, and `class_names`, the name of each label.

    Raises:
      ValueError: the path is none of these.
    """
    path = pathlib.Path(path).expanduser()
    if (path / "train.rec").is_file():
        return RecordFile(path / "train.rec")
    if (path / "dataset_info.json").is_file():
        from facejax.data.readers.prepared import PreparedImages  # imports tfds, which is slow

        return PreparedImages(path)
    if path.is_dir():
        return ImageFolder(path)
    if path.suffix == ".mat" and path.is_file():
        return MatlabFaces(path)
    raise ValueError(
        f"{path}: expected a folder that contains train.rec, a prepared set, a folder identity/image.jpg, "
        "or a .mat file"
    )
