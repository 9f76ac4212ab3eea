"""Foreign file formats, read strictly: what is not as expected is said with the file and the place in it."""

from __future__ import annotations

import pathlib
from typing import Any, Protocol

from facejax._lazy import lazy
from facejax.data.readers.folder import ImageFolder
from facejax.data.readers.matlab import MatlabFaces
from facejax.data.readers.recordio import RecordFile

__getattr__, __dir__, __all__ = lazy(__name__, __path__, "ImageSource", "read")


class ImageSource(Protocol):
    """Labelled, encoded images at random access."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": encoded bytes, "label": int in 0..num_classes - 1}."""


def read(path: str | pathlib.Path) -> ImageSource:
    """The source that a path holds.

    A folder with train.rec in it (InsightFace), a set that `facejax.data.builders.images` prepared, a folder
    identity/image.jpg, or a .mat file of faces. A source that knows them has `labels` and `names` of all images.
    """
    path = pathlib.Path(path).expanduser()
    if (path / "train.rec").is_file():
        return RecordFile(path / "train.rec")
    if (path / "dataset_info.json").is_file():
        from facejax.data.readers.prepared import PreparedImages  # tfds takes a while to import

        return PreparedImages(path)
    if path.is_dir():
        return ImageFolder(path)
    if path.suffix == ".mat" and path.is_file():
        return MatlabFaces(path)
    raise ValueError(
        f"{path}: expected a folder with train.rec in it, a prepared one or one with a folder for each person, "
        "or a .mat file"
    )
